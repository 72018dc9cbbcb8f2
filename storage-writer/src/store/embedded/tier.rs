//! The embedded engine as the shell drives it: it holds its directory's lock, so it is always the sequencer.

use super::{EmbeddedStore, Views};
use crate::tier::{Sight, Standing, Tier};
use parley_protocol::link::{Ask, Reply};
use storage_core::reads::{ReadOptions, answer};

impl Tier for EmbeddedStore {
    fn standing(&mut self, _now_ms: u64) -> Standing {
        Standing::Active { term: 0, epoch: 0, worker: None }
    }

    fn next_timer(&self) -> Option<u64> {
        None
    }
}

impl Sight for Views {
    fn answer(&self, options: &ReadOptions, ask: &Ask) -> Reply {
        answer(&*self.newest(), options, ask)
    }
}
