//! What reader threads see of the cluster: its rows, as far as the planner knows them to be durable.

use super::executor::ClusterReader;
use crate::tier::Sight;
use parley_protocol::ErrorCode;
use parley_protocol::link::{Ask, Reply};
use std::sync::{Arc, Mutex, PoisonError};
use storage_core::cql::rows::{Read, StatementResult};
use storage_core::cql::view::{CqlView, Rows, WriterBounds};
use storage_core::reads::{ReadOptions, answer};

/// What the planner of this moment has in flight; none while this process is not the sequencer.
#[derive(Debug, Default)]
pub(super) struct Flying(Mutex<Option<WriterBounds>>);

impl Flying {
    pub(super) fn replace(&self, planner: Option<WriterBounds>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = planner;
    }

    pub(super) fn get(&self) -> Option<WriterBounds> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
            Some(planner) => answer(&CqlView::new(self.reader.clone(), planner), options, ask),
            None => Reply::Refused(ErrorCode::Unavailable),
        }
    }
}
