//! The rows of `storage_core::cql` on a real cluster, ScyllaDB or Cassandra: its tables, a driver that executes
//! statements, the lease's row. Nothing here decides what is written in which order, or what is repeated.
//!
//! ```text
//!  writer thread -- execute, ask --> Executor (thread "cql": tokio and the driver) ==> nodes
//!                <- results, answers, waker --
//!  reader threads -- read, read_many (wait) --> ClusterReader ==> nodes
//! ```

mod connect;
mod copying;
mod error;
mod executor;
mod lease;
mod metrics;
pub mod schema;
mod sight;
mod statements;
mod tables;
mod tier;
mod values;

pub use connect::ClusterOptions;
pub use error::OpenError;
pub use executor::{AskResult, ClusterReader, Executor, Timed};
pub use metrics::{ClusterMetrics, PlannerMetrics};
pub use tier::{ScyllaOptions, ScyllaStore};
