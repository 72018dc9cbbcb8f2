//! The gateway's brain: every decision of a shard, and no IO, clock, thread or random source.
#![forbid(unsafe_code)]

pub mod brain;
pub mod output;
pub mod time;
pub mod http;
pub mod ws;
