//! Snowflake ids: 63 bits, strictly rising whatever the clock does, numbered by one [`Generator`] a writer.
//! No clock and no store in here: the time is an argument, and the caller stores the marks that it is told to.
//!
//! ```
//! use parley_idgen::{Generator, NotYet, Worker};
//!
//! let worker = Worker::new(7).unwrap();
//! let now = 1_800_000_000_000;
//! let mut ids = Generator::restore(worker, 0); // nothing stored yet
//! if let Some(mark) = ids.reservation_due(now) {
//!     // ... store `mark`, then:
//!     ids.reserved(mark);
//! }
//! let first = ids.next(now, 0)?;
//! let second = ids.next(now - 1_000, 0)?; // a step back within the bound does not stall
//! assert!(second > first);
//! assert_eq!(first.unix_ms(), now);
//! # Ok::<(), NotYet>(())
//! ```
#![forbid(unsafe_code)]

mod generator;
mod layout;

pub use generator::{Generator, NotYet, RESERVE_STEP_MS_MIN, RUN_AHEAD_MS_MAX};
pub use layout::{
    EPOCH_UNIX_MS, ID_MAX, Id, MS_BITS, Parts, SEQUENCE_BITS, UNIX_MS_MAX, WORKER_BITS, Worker, parts, unix_ms_of,
};
