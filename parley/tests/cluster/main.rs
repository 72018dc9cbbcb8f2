//! Real processes over a real cluster of three nodes: two storage-writers of which one stands by, a gateway, devices that
//! write all the time, and what happens to each of them.
//!
//! PARLEY_CQL_DIR names a cluster that `scripts/cql-cluster` runs; otherwise one is started for the time of these tests.
//! They take turns: each wants the nodes for itself.

#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod common;

mod copied;
mod fleet;
mod nodes;
mod takeover;
