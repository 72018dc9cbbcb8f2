//! The storage-writer's shell: engines, the links' sockets, the reader threads. What is decided is decided in
//! `storage-core`; here bytes are moved and made durable.

pub mod metrics;
pub mod store;
