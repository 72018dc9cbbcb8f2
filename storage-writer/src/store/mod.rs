//! The engines that make groups durable.

pub mod embedded;
