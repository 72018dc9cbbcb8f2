//! The storage tier on a CQL cluster, without the cluster: which rows a group becomes, in which order they are written,
//! what a taker reads and derives again, and how a lease is held. No IO, no clock; the shell and the simulator execute
//! the statements. The reasons are in `docs/adr/0010-a-group-as-rows-of-a-cluster.md`, the tables in `docs/SCHEMA.md`.
//!
//! ```text
//!            submit                 poll_statement
//!  Writer ----------> Engine ---------------------> cluster (shell: the driver; simulator: `cluster::Cluster`)
//!         <----------        <---------------------
//!          completions            handle_result            readers: `view::CqlView` over the same rows
//! ```

pub mod cluster;
pub mod engine;
pub mod lease;
pub mod limit;
pub mod redo;
pub mod rows;
pub mod view;
