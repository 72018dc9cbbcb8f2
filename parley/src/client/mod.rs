//! The client library: a blocking session over a WebSocket that reconnects, resends and misses nothing. `queue` and
//! `follow` decide and know no socket; `connection`, `state` and `session` do the IO.

mod backoff;
mod connection;
mod error;
mod follow;
mod queue;
mod session;
mod state;
mod who;

pub(crate) use connection::Address;
pub(crate) use error::ClientError;
pub(crate) use session::{Mode, Session, SessionOptions, Update, random_u128};
pub(crate) use state::state_dir;
pub(crate) use who::Who;

/// Milliseconds of the wall clock since 1970.
pub(crate) fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
