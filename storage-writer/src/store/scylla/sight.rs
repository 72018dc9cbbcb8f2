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
struct Leased<'a> {
    reader: &'a ClusterReader,
    flying: &'a Flying,
}

fn outside() -> StatementResult {
    Err(StatementError::Unknown("the lease ran out".to_owned()))
}

impl Rows for Leased<'_> {
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
        match self.flying.get() {
            Some(planner) => {
                let rows = Leased { reader: &self.reader, flying: &self.flying };
                answer(&CqlView::new(rows, planner), options, ask)
            }
            None => Reply::Refused(ErrorCode::Unavailable),
        }
    }
}
