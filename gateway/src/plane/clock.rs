//! The clocks that the shells read and the cores do not.

use gateway_core::time::Now;
use std::time::{Instant, SystemTime};

/// Both clocks, with the origin that all shards share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now() }
    }

    pub(crate) fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Above zero, so that a deadline of zero is always in the past.
        let mono_ms = self.origin.elapsed().as_millis() as u64 + 1;
        Now { mono_ms, unix_ms: unix.as_millis() as u64 }
    }
}
