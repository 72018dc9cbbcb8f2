//! The storage-writer's shell: engines, the links' sockets, the reader threads. What is decided is decided in
//! `storage-core`; here bytes are moved and made durable.
//!
//! ```text
//! gateways == Unix socket ==> writer thread: intake, Writer, group commit, answers
//!                               |  reads ^               | groups ^
//!                               v        | (eventfd)     v        | (eventfd)
//!                             reader threads           store and its high-water thread
//! ```

mod handle;
mod links;
pub mod metrics;
mod options;
mod readers;
mod shell;
pub mod store;
mod tier;
mod wake;

pub use handle::{Failure, Handle, run};
pub use options::{Error, Options};
