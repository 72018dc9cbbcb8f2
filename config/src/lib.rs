//! The configuration of both servers: the shipped TOML files are the defaults, a file, the environment and flags lie
//! over them, and the result is validated once into [`Gateway`] and [`StorageWriter`]. Environment and machine are
//! arguments; the only thing read here is the directory of [`Sources`].
#![forbid(unsafe_code)]

mod check;
mod error;
mod layers;
mod rules;
mod types;

pub use check::{Finding, Machine, Report, Severity, check};
pub use error::{ConfigError, Origin, Problem};
pub use layers::{Entry, Loaded, Sources, load_gateway, load_storage_writer};
#[doc(hidden)]
pub use layers::{load_gateway_text, load_storage_writer_text};
pub use types::{
    Chat, Commit, Driver, Embedded, Engine, Gateway, Identity, Level, Limits, Lobby, Log, LogFormat, Mesh, Message,
    Readers, Scylla, Session, StorageWriter, Tablets, WriterLink,
};

/// The shipped `gateway.toml`, which is the default of every key.
pub const GATEWAY_TOML: &str = include_str!("../gateway.toml");
/// The shipped `storage-writer.toml`, which is the default of every key.
pub const STORAGE_WRITER_TOML: &str = include_str!("../storage-writer.toml");
