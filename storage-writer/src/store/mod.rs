//! The engines that make groups durable.

pub mod embedded;
pub mod scylla;
