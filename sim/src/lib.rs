//! The simulator: the shipping cores of the gateway and of the storage-writer, with networks, disks, clocks and people that
//! are made up, on one thread, in virtual time, from one seed. The same seed is the same run, to the last byte.
//!
//! ```text
//!  people ──▶ devices ──▶ connections ──▶ gateway(s): shards, mesh ──▶ links ──▶ writer(s) ──▶ engine ──▶ disk
//!  (people)   (device,     (network)        (gateway)                  (world)    (writer)      (disk)      │
//!              clients)                                                                                     ▼
//!  faults strike everywhere (faults)            oracles look at every step (clients, truth, rest) ◀───── the truth
//! ```
//!
//! A run is a storm, in which people act and things break, then a calm, in which everything has to come to rest: every
//! device at the head of its inbox, every command answered.

mod authority;
mod bounds;
mod clients;
mod cluster;
mod device;
mod disk;
mod faults;
mod gateway;
mod network;
mod overflows;
mod people;
mod plan;
mod random;
mod replay;
mod rest;
mod shell;
mod shrink;
mod tier;
mod trace;
mod truth;
mod world;
mod writer;

pub use overflows::{Overflow, Overflows};
pub use plan::{Action, Fault, Plan, Preset, Store};
pub use shrink::shrink;
pub use world::{ORACLES, Violation};

use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use world::World;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// Of every event and every byte that a client received.
    pub hash: u64,
    /// Events, the calm at the end included.
    pub ticks: u64,
    /// Virtual time, milliseconds.
    pub ms: u64,
    /// Events of all logs.
    pub logged: u64,
    /// Which bounds were reached.
    pub overflows: Overflows,
    /// The first violation.
    pub violation: Option<Violation>,
    /// The last events in words, if asked for.
    pub lines: Vec<String>,
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs a plan; `tells` keeps the last events in words. A panic of a core is a violation like any other.
pub fn run(plan: &Plan, tells: bool) -> Report {
    let mut world = World::new(plan.clone(), tells);
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| world.run()));
    if ended.is_err() {
        let what = PANIC.with_borrow_mut(Option::take).unwrap_or_else(|| "somewhere".to_owned());
        world.fail("cores do not panic", what);
    }
    Report {
        hash: world.trace.hash(),
        ticks: world.tick,
        ms: world.now / 1_000,
        logged: world.truth.chats.values().map(|chat| chat.head()).sum(),
        overflows: world.overflows,
        violation: world.violation.take(),
        lines: std::mem::take(&mut world.trace).into_lines(),
    }
}

/// Panics of this thread are kept for the report and not printed.
pub fn catch_panics() {
    std::panic::set_hook(Box::new(|info| {
        PANIC.with_borrow_mut(|panic| *panic = Some(info.to_string()));
    }));
}

/// Plants a bug in a core, or one in each with a `+` between, on this thread, until the next call; an empty name takes
/// them out.
#[cfg(feature = "planted")]
pub fn plant(names: &str) -> Result<(), String> {
    use gateway_core::planted as gateway;
    use storage_core::planted as storage;
    let names: Vec<&str> = names.split('+').filter(|name| !name.is_empty()).collect();
    let in_gateway: Vec<_> = names.iter().filter_map(|name| gateway::Bug::named(name)).collect();
    let in_storage: Vec<_> = names.iter().filter_map(|name| storage::Bug::named(name)).collect();
    if in_gateway.len() + in_storage.len() != names.len() || in_gateway.len() > 1 || in_storage.len() > 1 {
        let known: Vec<_> = bugs().map(|(name, _)| name).collect();
        return Err(format!("no bug `{}` to plant; there are {}", names.join("+"), known.join(", ")));
    }
    gateway::plant(in_gateway.first().copied());
    storage::plant(in_storage.first().copied());
    Ok(())
}

/// Every bug that can be planted, with the rule of the delivery protocol that it breaks; 0: a promise beside the rules.
#[cfg(feature = "planted")]
pub fn bugs() -> impl Iterator<Item = (&'static str, u8)> {
    let in_gateway = gateway_core::planted::Bug::ALL.iter().map(|bug| (bug.name(), bug.rule()));
    in_gateway.chain(storage_core::planted::Bug::ALL.iter().map(|bug| (bug.name(), bug.rule())))
}
