//! What the shell asks of an engine besides [`Store`]: whether it may act for the store now, and answers to reads. An
//! engine of one process always may; one that shares a cluster may while its lease holds.

use parley_protocol::link::{Ask, Reply};
use storage_core::reads::ReadOptions;
use storage_core::store::Store;

/// An engine as the shell drives it, on the writer thread.
pub(crate) trait Tier: Store + Send {
    /// What the process may do at `now_ms` of [`boot_ms`]. Cheap: it is asked before anything leaves.
    fn standing(&mut self, now_ms: u64) -> Standing;
    /// When [`Store::completions`] wants to be called, on that clock, if nothing wakes it before.
    fn next_timer(&self) -> Option<u64>;
    /// Why the process must end, though nobody asked it for anything.
    fn broken(&self) -> Option<String> {
        None
    }
    /// Everything taken is answered and the process ends: another may act at once. Waits a bounded time.
    fn give_back(&mut self) {}
}

/// What a process may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is the sequencer.
    Active {
        /// Names this time of being active: another one needs a writer that knows nothing of the one before.
        term: u64,
        /// The writer's epoch, where a lease gives it; 0 where none does.
        epoch: u64,
        /// The number in ids, where the store gives it.
        worker: Option<u16>,
    },
    /// It is the sequencer as far as anybody knows, and cannot prove it now: nothing leaves, nothing is taken.
    Suspended {
        /// Why.
        reason: String,
    },
    /// Another is.
    Standby {
        /// Where it listens; empty when that is not known.
        active: String,
        /// Why the last request for the lease has no answer; empty when it has.
        trouble: String,
    },
}

/// Answers reads from what is confirmed, on reader threads.
pub(crate) trait Sight: Send + Sync {
    /// Answers one read.
    fn answer(&self, options: &ReadOptions, ask: &Ask) -> Reply;
}

/// Milliseconds of a clock that never steps, and that goes on while the machine is suspended: a lease that ran out
/// meanwhile has run out.
pub(crate) fn boot_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1_000 + now.tv_nsec as u64 / 1_000_000
}
