//! The gateway's shell: sockets, threads, clocks and queues around the brain in `gateway-core`. Without the feature
//! `plane` only `identity` is left, which needs none of them.

#[cfg(feature = "plane")]
pub mod echo;
#[cfg(feature = "plane")]
mod host;
pub mod identity;
#[cfg(feature = "plane")]
pub mod mesh;
#[cfg(all(test, feature = "plane"))]
mod mesh_model;
#[cfg(feature = "plane")]
pub mod plane;
#[cfg(feature = "plane")]
mod refusals;
#[cfg(feature = "plane")]
mod serve;

#[cfg(feature = "plane")]
pub use serve::{Error, Handle, Monitor, Options, Status, serve};
