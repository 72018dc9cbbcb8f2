//! What goes into the writer and comes out of it, besides link records and store operations: options, time, actions.

use crate::store::{OpId, StoreRequest};
use parley_protocol::limits;
use parley_protocol::link::{Ask, ToGateway};

/// Names a link; chosen by the shell, never used again for another.
pub type LinkId = u64;

/// The time, handed in with every call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a clock that never steps.
    pub mono_ms: u64,
    /// Milliseconds since 1970.
    pub unix_ms: u64,
}

/// What an operator may set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The writer's number in ids, 0 to 1,023.
    pub worker: u16,
    /// Members of a group.
    pub group_members_max: usize,
    /// Members of a channel.
    pub channel_members_max: usize,
    /// Chats of more members leave no inbox entries for what is said in them.
    pub inbox_fanout_members_max: usize,
    /// Payload of a message.
    pub payload_bytes_max: usize,
    /// Commands in one group commit.
    pub batch_commands_max: usize,
    /// Bytes in one group commit; the last command may go over it.
    pub batch_bytes_max: usize,
    /// Groups that the store works on at a time.
    pub commits_in_flight_max: usize,
    /// Chats kept in memory.
    pub chats_cached_max: usize,
    /// Users kept in memory.
    pub users_cached_max: usize,
    /// Members of channels kept in memory, of all channels together; about 300 bytes each.
    pub seats_cached_max: usize,
    /// Requests that wait for a load, for room in a group, or for an id; one more is answered `Failed`.
    pub parked_max: usize,
    /// A longer backlog of an inbox is not sent.
    pub sync_backlog_max: u64,
    /// Between a failed commit and the next attempt, milliseconds.
    pub commit_retry_interval_ms: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            worker: 0,
            group_members_max: 100,
            channel_members_max: 100_000,
            inbox_fanout_members_max: 100,
            payload_bytes_max: 16 * 1024,
            batch_commands_max: 4096,
            batch_bytes_max: 8 * 1024 * 1024,
            commits_in_flight_max: 2,
            chats_cached_max: 200_000,
            users_cached_max: 500_000,
            seats_cached_max: 200_000,
            parked_max: 65_536,
            sync_backlog_max: 10_000,
            commit_retry_interval_ms: 1_000,
        }
    }
}

impl Options {
    /// Whether the values go together; the text says which do not.
    pub fn check(&self) -> Result<(), String> {
        let rules = [
            (parley_idgen::Worker::new(self.worker).is_some(), "worker is at most 1,023"),
            (self.group_members_max >= 2, "group_members_max is at least 2"),
            (self.group_members_max <= limits::GROUP_MEMBERS_MAX, "group_members_max is above the protocol's limit"),
            (self.inbox_fanout_members_max >= 2, "inbox_fanout_members_max is at least 2: direct chats have entries"),
            (self.payload_bytes_max >= 1, "payload_bytes_max is at least 1"),
            (self.payload_bytes_max <= limits::PAYLOAD_BYTES_MAX, "payload_bytes_max is above the protocol's limit"),
            (self.batch_commands_max >= 1, "batch_commands_max is at least 1"),
            (self.batch_bytes_max >= 1, "batch_bytes_max is at least 1"),
            (self.commits_in_flight_max >= 1, "commits_in_flight_max is at least 1"),
            (self.channel_members_max >= 2, "channel_members_max is at least 2"),
            (
                self.channel_members_max <= limits::CHANNEL_MEMBERS_MAX,
                "channel_members_max is above the protocol's limit",
            ),
            (self.chats_cached_max >= 1 && self.users_cached_max >= 1, "caches hold at least 1"),
            (self.seats_cached_max >= 1, "caches hold at least 1"),
            (self.parked_max >= 1, "parked_max is at least 1"),
            (self.commit_retry_interval_ms >= 1, "commit_retry_interval_ms is at least 1"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err((*rule).to_owned()),
            None => Ok(()),
        }
    }
}

/// What the shell does for the writer, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Submits an operation to the store.
    Store(OpId, StoreRequest),
    /// Sends a record to a gateway.
    Send {
        /// Over this link.
        link: LinkId,
        /// What.
        record: ToGateway,
    },
    /// Has a reader answer `ask` with [`crate::reads::answer`], as answer `no` of the link.
    Read {
        /// Over this link.
        link: LinkId,
        /// The request's number.
        no: u64,
        /// One of the reads.
        ask: Ask,
    },
    /// Closes a link, after what was sent.
    Close {
        /// Which.
        link: LinkId,
    },
    /// Ends the process: nothing more is acknowledged.
    Halt(HaltReason),
}

/// Why the writer must end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HaltReason {
    /// Another writer holds the store.
    Fenced,
    /// What is in the store is not known until the next start: a failed sync, or damage where all begins. The text
    /// names what the engine can name.
    Broken(String),
}

/// How the writer is, for `/readyz` and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// It takes commands.
    pub ready: bool,
    /// Why it does not.
    pub reason: Option<String>,
    /// Links that are open.
    pub links: usize,
    /// Groups that the store works on.
    pub groups_in_flight: usize,
    /// Groups durable since the start.
    pub groups_durable: u64,
    /// Commands durable since the start.
    pub commands_durable: u64,
    /// Commands in the group that is being gathered.
    pub gathered_commands: usize,
    /// Requests that wait.
    pub parked: usize,
    /// Chats in memory.
    pub chats_cached: usize,
    /// Users in memory.
    pub users_cached: usize,
}
