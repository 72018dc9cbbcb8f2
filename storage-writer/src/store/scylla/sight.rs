//! What reader threads see of the cluster: its rows, as far as the planner knows them to be durable.

use super::executor::ClusterReader;
use crate::tier::{Sight, boot_ms};
use parley_protocol::ErrorCode;
use parley_protocol::link::{Ask, Reply};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use storage_core::cql::rows::{Read, StatementError, StatementResult};
use storage_core::cql::view::{CqlView, Rows, WriterBounds};
use storage_core::reads::{ReadOptions, answer};

/// What the planner of this moment has in flight; none while this process is not the sequencer.
#[derive(Debug, Default)]
pub(super) struct Flying {
    planner: Mutex<Option<WriterBounds>>,
    /// Until when the lease holds, on the boot-time clock; 0: it does not.
    valid_until_ms: AtomicU64,
}

impl Flying {
    pub(super) fn set_lease(&self, valid_until_ms: u64) {
        self.valid_until_ms.store(valid_until_ms, Ordering::Release);
    }

    fn is_held(&self) -> bool {
        boot_ms() < self.valid_until_ms.load(Ordering::Acquire)
    }

    pub(super) fn replace(&self, planner: Option<WriterBounds>) {
        *self.planner.lock().unwrap_or_else(PoisonError::into_inner) = planner;
    }

    pub(super) fn get(&self) -> Option<WriterBounds> {
        self.planner.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Rows for ClusterReader {
    fn read(&self, read: &Read) -> StatementResult {
        ClusterReader::read(self, read)
    }

    fn read_many(&self, reads: &[Read]) -> Vec<StatementResult> {
        ClusterReader::read_many(self, reads)
    }
}

/// Rows, asked for inside the lease only. A read changes something, too: it repairs the rows that it asks for, some here
/// and some there, under the hands of the next writer.
struct Leased<'a, R> {
    reader: R,
    flying: &'a Flying,
}

fn outside() -> StatementResult {
    Err(StatementError::Unknown("the lease ran out".to_owned()))
}

impl<R: Rows> Rows for Leased<'_, R> {
    fn read(&self, read: &Read) -> StatementResult {
        if self.flying.is_held() { self.reader.read(read) } else { outside() }
    }

    fn read_many(&self, reads: &[Read]) -> Vec<StatementResult> {
        if self.flying.is_held() { self.reader.read_many(reads) } else { reads.iter().map(|_| outside()).collect() }
    }
}

/// Answers reads; whether the answer may leave is asked where it leaves.
pub(crate) struct ClusterSight {
    reader: ClusterReader,
    flying: Arc<Flying>,
}

impl ClusterSight {
    pub(super) fn new(reader: ClusterReader, flying: Arc<Flying>) -> Self {
        Self { reader, flying }
    }
}

impl Sight for ClusterSight {
    fn answer(&self, options: &ReadOptions, ask: &Ask) -> Reply {
        inside_the_lease(&self.reader, &self.flying, options, ask)
    }
}

fn inside_the_lease(reader: impl Rows, flying: &Flying, options: &ReadOptions, ask: &Ask) -> Reply {
    match flying.get() {
        Some(planner) => answer(&CqlView::new(Leased { reader, flying }, planner), options, ask),
        None => Reply::Refused(ErrorCode::Unavailable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parley_protocol::UserId;
    use std::cell::{Cell, RefCell};
    use storage_core::cql::cluster::Cluster;
    use storage_core::cql::engine::InFlight;

    /// The rows of an empty cluster, and how often one was asked for.
    struct Asked {
        cluster: RefCell<Cluster>,
        reads: Cell<usize>,
    }

    impl Rows for Asked {
        fn read(&self, read: &Read) -> StatementResult {
            self.reads.set(self.reads.get() + 1);
            self.cluster.borrow_mut().read(read)
        }
    }

    fn ask(rows: &Asked, flying: &Flying) -> Reply {
        let options = ReadOptions { inbox_fanout_members_max: 10, sync_backlog_max: 100, page_bytes_max: 1 << 16 };
        inside_the_lease(rows, flying, &options, &Ask::Inbox { user_id: UserId(1), after: 0, limit: 10 })
    }

    #[test]
    fn outside_the_lease_nothing_is_answered_and_no_row_is_asked_for() {
        let flying = Flying::default();
        let unavailable = Reply::Refused(ErrorCode::Unavailable);
        let rows = Asked { cluster: RefCell::new(Cluster::new(1)), reads: Cell::new(0) };
        flying.set_lease(u64::MAX);
        assert_eq!(ask(&rows, &flying), unavailable, "nobody is the sequencer");
        assert_eq!(rows.reads.get(), 0);

        let in_flight = Arc::<Mutex<InFlight>>::default();
        flying.replace(Some(WriterBounds { epoch: 1, in_flight }));
        let inside = ask(&rows, &flying);
        assert!(!matches!(inside, Reply::Refused(_)), "{inside:?}");
        let reads = rows.reads.get();
        assert!(reads > 0);
        // Over, by a word of the writer thread or by the clock alone: the writer thread may stand still.
        for valid_until_ms in [0, boot_ms() - 1, boot_ms()] {
            flying.set_lease(valid_until_ms);
            assert_eq!(ask(&rows, &flying), unavailable, "{valid_until_ms}");
            let many = [Read::All(storage_core::cql::rows::Partition::Meta { set: 0 })];
            let many = Leased { reader: &rows, flying: &flying }.read_many(&many);
            assert!(matches!(&many[..], [Err(StatementError::Unknown(_))]), "{many:?}");
        }
        assert_eq!(rows.reads.get(), reads, "a read changes rows, too");
    }
}
