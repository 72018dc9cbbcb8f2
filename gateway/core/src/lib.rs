//! The gateway's brain: every decision of a shard, and no IO, clock, thread or random source.
#![forbid(unsafe_code)]

pub mod authority;
pub mod brain;
mod chunks;
pub mod fan;
pub mod http;
pub mod link;
pub mod mesh;
pub mod options;
pub mod output;
pub mod planted;
pub mod shard;
pub mod stats;
pub mod time;
pub mod timers;
pub mod ws;
