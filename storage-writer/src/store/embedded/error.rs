//! Why an embedded store does not open, each with what an operator can do about it.

use std::path::{Path, PathBuf};

/// Why a store does not open.
#[derive(Debug)]
pub enum OpenError {
    /// Another process holds the directory.
    InUse {
        /// The lock file.
        lock: PathBuf,
        /// What the holder wrote there; empty when it wrote nothing.
        holder: String,
    },
    /// The store was written by a newer version.
    Newer {
        /// The file with the version.
        file: PathBuf,
        /// What it says.
        found: u32,
        /// The newest version that is known here.
        known: u32,
    },
    /// A file of the store is not what it should be.
    Damaged {
        /// Which.
        file: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The store has fewer groups than were acknowledged: data is missing.
    Behind {
        /// The directory of the engine.
        engine: PathBuf,
        /// Groups in it.
        engine_groups: u64,
        /// The high-water record.
        high_water: PathBuf,
        /// Groups that were acknowledged.
        high_water_groups: u64,
    },
    /// Parts of two stores, or a store without its high-water record.
    Mixed {
        /// Which file does not fit.
        file: PathBuf,
        /// Why.
        what: String,
    },
    /// A copy into the directory did not come to its end.
    Unfinished {
        /// The file that says so.
        marker: PathBuf,
    },
    /// The operating system refused something.
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The engine refused something.
    Engine {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: Box<fjall::Error>,
    },
}

impl OpenError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| OpenError::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn engine(path: &Path) -> impl FnOnce(fjall::Error) -> Self {
        move |source| OpenError::Engine { path: path.to_owned(), source: Box::new(source) }
    }
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenError::InUse { lock, holder } => {
                write!(f, "the data directory is in use: {} is locked", lock.display())?;
                if !holder.is_empty() {
                    write!(f, " by {holder}")?;
                }
                f.write_str("; stop that process or choose another directory")
            }
            OpenError::Newer { file, found, known } => write!(
                f,
                "{} says schema version {found}, and this program knows versions up to {known}; start the newer program",
                file.display()
            ),
            OpenError::Damaged { file, what } => {
                write!(f, "{} is damaged: {what}; restore the data directory from a backup", file.display())
            }
            OpenError::Behind { engine, engine_groups, high_water, high_water_groups } => write!(
                f,
                "acknowledged data is missing: {} holds {engine_groups} groups, but {} says that {high_water_groups} \
                 were acknowledged; nothing was changed: keep both, and restore the data directory from a backup",
                engine.display(),
                high_water.display()
            ),
            OpenError::Mixed { file, what } => {
                write!(f, "{}: {what}; restore the whole data directory from one backup", file.display())
            }
            OpenError::Unfinished { marker } => write!(
                f,
                "{} says that a copy into this directory is not finished: give the same `parley store copy` again, and \
                 it goes on where it was; or remove the directory",
                marker.display()
            ),
            OpenError::Io { action, path, .. } => write!(f, "cannot {action} {}", path.display()),
            OpenError::Engine { path, .. } => write!(f, "the embedded engine failed in {}", path.display()),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OpenError::Io { source, .. } => Some(source),
            OpenError::Engine { source, .. } => Some(source),
            _ => None,
        }
    }
}
