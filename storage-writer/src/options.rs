//! What an operator may set of the storage-writer, and why it does not start.

use crate::store::embedded::{EmbeddedOptions, OpenError};
use crate::store::scylla::{self, ScyllaOptions};
use std::path::PathBuf;

/// How a storage-writer runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of everything that lasts.
    pub data_dir: PathBuf,
    /// Path of the Unix socket for gateways.
    pub socket: PathBuf,
    /// The brain's.
    pub writer: storage_core::Options,
    /// The embedded engine's, unless there is a cluster.
    pub embedded: EmbeddedOptions,
    /// The cluster that is the store.
    pub scylla: Option<ScyllaOptions>,
    /// Threads that answer reads.
    pub reader_threads: usize,
    /// Reads that wait for such a thread, or whose answer waits for its link; one more is refused.
    pub reads_max: usize,
    /// Links that are open at a time, one a gateway's shard.
    pub links_max: usize,
    /// Answers that wait for one link, bytes; a link that lets more gather is closed.
    pub link_output_bytes_max: usize,
    /// How long a stop waits for what was taken, milliseconds.
    pub stop_timeout_ms: u64,
}

impl Options {
    /// The defaults, for a data directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        let data_dir = data_dir.into();
        Self {
            socket: data_dir.join("writer.sock"),
            data_dir,
            writer: storage_core::Options::default(),
            embedded: EmbeddedOptions::default(),
            scylla: None,
            reader_threads: 1,
            reads_max: 8192,
            links_max: 1024,
            link_output_bytes_max: 64 << 20,
            stop_timeout_ms: 10_000,
        }
    }
}

/// Why a storage-writer does not start.
#[derive(Debug)]
pub enum Error {
    /// The options do not go together.
    Options(String),
    /// The store does not open.
    Store(OpenError),
    /// The cluster cannot be used.
    Cluster(scylla::OpenError),
    /// Another process listens on the socket.
    SocketInUse(PathBuf),
    /// The operating system refused something.
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Options(text) => f.write_str(text),
            Error::Store(error) => error.fmt(f),
            Error::Cluster(error) => error.fmt(f),
            Error::SocketInUse(path) => {
                write!(f, "another process listens on {}; stop it or choose another socket", path.display())
            }
            Error::Io { action, path, .. } => write!(f, "cannot {action} {}", path.display()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Store(error) => error.source(),
            Error::Cluster(error) => error.source(),
            Error::Io { source, .. } => Some(source),
            Error::Options(_) | Error::SocketInUse(_) => None,
        }
    }
}
