//! The scenarios `group` and `broadcast`: one chat that many look at. What a delivery costs the servers, and how long a
//! message takes to the first, the median and the last member, beside a raw fan-out of frames of the same size.

pub(crate) mod args;
mod chat;
mod crowd;
mod fills;
mod ledger;
mod measured;
mod pace;
mod raw;
mod report;
mod run;
#[cfg(test)]
mod tests;

use crate::cpu::Probes;
use crate::net::{Stop, Url};
use std::path::PathBuf;

/// A run.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) url: Url,
    pub(crate) members: u32,
    /// Of these, who write.
    pub(crate) senders: u32,
    pub(crate) load: pace::Load,
    pub(crate) rounds: u32,
    /// Of each round.
    pub(crate) warmup_ns: u64,
    pub(crate) measured_ns: u64,
    pub(crate) drain_ns: u64,
    pub(crate) payload_bytes: usize,
    /// This program, which can also be the raw server; `None` measures no baseline.
    pub(crate) baseline: Option<PathBuf>,
    pub(crate) logins_max: u32,
    pub(crate) login_rate: u32,
    /// A turn takes so long at least.
    pub(crate) turn_ns: u64,
    pub(crate) seed: u64,
    /// Names this run in ids.
    pub(crate) run: u64,
    pub(crate) driver: String,
    pub(crate) probes: Probes,
    pub(crate) stop: Stop,
}
