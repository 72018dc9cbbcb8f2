//! What the crash harness judges by: the histories that client processes keep, and the checker that reads them. Nothing
//! here opens a socket, starts a process, or knows how a server works.
//!
//! # The harness
//!
//! `scripts/crash-test --minutes M --seed N` starts a real storage-writer and a real gateway, several client processes
//! with many devices of many users, and a director that kills (SIGKILL), stops (SIGSTOP for longer than every timeout,
//! then SIGCONT), ends (SIGTERM), replaces and restarts the servers in an order that the seed decides. Devices follow
//! `docs/PROTOCOL.md`: they keep commands without an answer and send them again unchanged, come back with the last mark
//! that they were issued, and write down what they sent, what was acknowledged and what they received. At the end the
//! faults stop, everything is started again, every device follows its stream to the head, the logs of all chats are
//! read over the wire, and the [`checker`] proves:
//!
//! - what was acknowledged is in the log, once, where the acknowledgement said;
//! - each device received each event of its inbox exactly once beyond the marks that it presented, in the log's order,
//!   without a hole, and unchanged; nothing that nobody sent, nothing of chats that its user was not in; live events of
//!   large chats at most once on a connection; no mark ahead of the entries that came before it;
//! - commands without an answer took effect once or never, refused ones never;
//! - `seq` is dense and `message_id` rises.
//!
//! One JSON line on the standard output has the figures; any violation makes the exit code 1 and keeps the directory
//! with data, logs and histories. `crash check DIR` judges kept histories again, `crash show DIR --device N` prints one
//! device's; the seed repeats the faults and the workload, though not the timing of real processes.

pub mod checker;
pub mod history;
pub mod random;
