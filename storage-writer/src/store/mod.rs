//! The engines that make groups durable.

pub mod copy;
pub mod embedded;
pub mod scylla;
