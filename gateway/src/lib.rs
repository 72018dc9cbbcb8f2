//! The gateway's shell: sockets, threads, clocks and queues around the brain in `gateway-core`.

pub mod echo;
mod host;
pub mod identity;
pub mod mesh;
#[cfg(test)]
mod mesh_model;
pub mod plane;
mod refusals;
mod serve;

pub use serve::{Error, Handle, Monitor, Options, Status, serve};
