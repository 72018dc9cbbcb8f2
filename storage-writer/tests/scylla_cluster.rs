//! The rows of a CQL cluster on a real node (Apache Cassandra, see `scripts/cql-cluster`): PARLEY_CQL_CONTACT names one
//! that runs, otherwise one is started for the time of these tests.

#[path = "scylla_cluster/damage.rs"]
mod damage;
#[path = "scylla_cluster/lease.rs"]
mod lease;
#[path = "scylla_cluster/rows.rs"]
mod rows;
#[path = "scylla_cluster/schema.rs"]
mod schema;
mod scylla_common;
