//! The targets, one a file: what an input means, and what must hold whatever it is.

pub mod client_frame;
pub mod config;
pub mod frame;
pub mod jwt;
pub mod link_record;
pub mod upgrade;
