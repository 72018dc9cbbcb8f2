//! The scenario `idle`: very many sessions that do little but live. How many a gateway holds, and what each costs in
//! memory of the gateway and of the kernel, while some messages flow and every heart beats.

pub(crate) mod args;
pub(crate) mod fleet;
pub(crate) mod logins;
pub(crate) mod memory;
pub(crate) mod plan;
mod report;
mod run;
pub(crate) mod session;
mod talk;
#[cfg(test)]
mod tests;

use crate::cpu::Probes;
use crate::net::{Stop, Url};

/// A run.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) url: Url,
    /// An even number: sessions come in pairs.
    pub(crate) connections: u32,
    /// Of these, who may send.
    pub(crate) talkers: u32,
    /// How long all of them are held.
    pub(crate) hold_ns: u64,
    /// How long acknowledged messages may still arrive.
    pub(crate) drain_ns: u64,
    /// Messages a second; 0 sends none.
    pub(crate) rate: u32,
    pub(crate) payload_bytes: usize,
    pub(crate) heartbeat_ns: u64,
    /// Sessions between their connect and their `Welcome`.
    pub(crate) logins_max: u32,
    /// Attempts to log in a second.
    pub(crate) login_rate: u32,
    /// Sockets of one ring at most.
    pub(crate) ring_files: u32,
    /// A turn takes so long at least, once all are logged in.
    pub(crate) turn_ns: u64,
    pub(crate) seed: u64,
    /// Names this run in ids.
    pub(crate) run: u64,
    pub(crate) driver: String,
    pub(crate) probes: Probes,
    pub(crate) stop: Stop,
}
