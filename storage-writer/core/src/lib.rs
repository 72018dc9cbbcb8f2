//! The storage-writer's brain: numbering, dedupe, epochs, batching, and what is asked of an engine. No IO, no clock.
#![forbid(unsafe_code)]

pub mod store;
