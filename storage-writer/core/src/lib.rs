//! The storage-writer's brain: numbering, dedupe, epochs, batching, and what is asked of an engine. No IO, no clock.
#![forbid(unsafe_code)]

pub mod conformance;
pub mod cql;
pub mod model;
pub mod planted;
pub mod reads;
pub mod store;
pub mod treacherous;
pub mod writer;

pub use writer::{Action, HaltReason, LinkId, Now, Options, Status, Writer};
