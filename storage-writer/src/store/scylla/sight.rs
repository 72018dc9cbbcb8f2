//! What reader threads see of the cluster: its rows, as far as the planner knows them to be durable.

use super::executor::ClusterReader;
use crate::tier::Sight;
use parley_protocol::link::{Ask, Reply};
use parley_protocol::{ChatId, ErrorCode, UserId};
use std::sync::{Arc, Mutex, PoisonError};
use storage_core::cql::engine::InFlight;
use storage_core::cql::rows::{Read, StatementResult};
use storage_core::cql::view::{Bounds, CqlView, Rows};
use storage_core::reads::{ReadOptions, answer};

/// What the planner of this moment has in flight; none while this process is not the sequencer.
#[derive(Debug, Default)]
pub(super) struct Flying(Mutex<Option<Planner>>);

/// The planner's epoch, and what it has in flight.
#[derive(Clone, Debug)]
pub(super) struct Planner {
    pub(super) epoch: u64,
    pub(super) in_flight: Arc<Mutex<InFlight>>,
}

impl Flying {
    pub(super) fn replace(&self, planner: Option<Planner>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = planner;
    }

    fn get(&self) -> Option<Planner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Bounds for Planner {
    fn chat(&self, chat_id: ChatId) -> Option<u64> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner).chat(chat_id)
    }

    fn user(&self, user_id: UserId) -> Option<u64> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner).user(user_id)
    }

    fn epoch(&self) -> u64 {
        self.epoch
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
