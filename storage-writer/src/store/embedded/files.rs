//! The small files of a data directory: its lock, its schema version, and what makes their changes durable.

use super::error::OpenError;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The schema version that this program writes.
pub const SCHEMA_VERSION: u32 = 2;

/// Stands in a directory into which a store is being copied, until the copy is proven.
pub(crate) const UNFINISHED_FILE: &str = "COPYING";

pub(crate) const LOCK_FILE: &str = "LOCK";
const SCHEMA_FILE: &str = "schema";
const SCHEMA_PREFIX: &str = "parley embedded store, schema ";
/// More than either file ever holds.
const SMALL_FILE_BYTES_MAX: u64 = 256;

/// Makes creations, renames and removals in a directory durable.
pub(crate) fn sync_directory(dir: &Path) -> Result<(), OpenError> {
    File::open(dir).and_then(|handle| handle.sync_all()).map_err(OpenError::io("sync the directory", dir))
}

/// The lock of a data directory, held as long as this lives, or as the process does.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Takes the lock, and writes into it who holds it.
    pub(crate) fn take(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join(LOCK_FILE);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(OpenError::io("open the lock", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Who holds it is a help for people; the refusal stands without it.
                let _ = (&file).take(SMALL_FILE_BYTES_MAX).read_to_string(&mut holder);
                return Err(OpenError::InUse { lock: path, holder: holder.trim().to_owned() });
            }
            Err(TryLockError::Error(error)) => return Err(OpenError::io("lock", &path)(error)),
        }
        let written = file.set_len(0).and_then(|()| writeln!(file, "process {}", std::process::id()));
        written.map_err(OpenError::io("write", &path))?;
        Ok(Self { _file: file })
    }
}

/// A store is not opened while a copy into its directory is under way: rows are missing.
pub(crate) fn refuse_unfinished(dir: &Path) -> Result<(), OpenError> {
    let marker = dir.join(UNFINISHED_FILE);
    match marker.try_exists() {
        Ok(false) => Ok(()),
        Ok(true) => Err(OpenError::Unfinished { marker }),
        Err(error) => Err(OpenError::io("look for", &marker)(error)),
    }
}

/// Makes a directory and those above it, for the owner's eyes only: all messages are in it. One that is there stays as it
/// is.
pub(crate) fn make_private(dir: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// The schema version of a data directory; none when it is new.
pub(crate) fn read_schema(dir: &Path) -> Result<Option<u32>, OpenError> {
    let path = dir.join(SCHEMA_FILE);
    let mut text = String::new();
    match File::open(&path).and_then(|file| file.take(SMALL_FILE_BYTES_MAX).read_to_string(&mut text)) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(OpenError::io("read", &path)(error)),
    }
    let version = text.strip_prefix(SCHEMA_PREFIX).and_then(|rest| rest.trim().parse::<u32>().ok());
    match version {
        Some(found) if found > SCHEMA_VERSION => Err(OpenError::Newer { file: path, found, known: SCHEMA_VERSION }),
        Some(found) if found > 0 => Ok(Some(found)),
        _ => Err(OpenError::Damaged { file: path, what: "it does not hold a schema version".to_owned() }),
    }
}

/// Writes the schema version, durably, whole or not at all.
pub(crate) fn write_schema(dir: &Path, version: u32) -> Result<(), OpenError> {
    let path = dir.join(SCHEMA_FILE);
    write_whole(&path, format!("{SCHEMA_PREFIX}{version}\n").as_bytes())?;
    sync_directory(dir)
}

/// Writes a small file so that after a crash it is the old or the new one. The directory is synced by the caller.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), OpenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let written = File::create(&new).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.map_err(OpenError::io("write", &new))?;
    std::fs::rename(&new, path).map_err(OpenError::io("replace", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_version_comes_back_and_a_newer_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_schema(dir.path()).unwrap(), None);
        write_schema(dir.path(), SCHEMA_VERSION).unwrap();
        assert_eq!(read_schema(dir.path()).unwrap(), Some(SCHEMA_VERSION));
        write_schema(dir.path(), SCHEMA_VERSION + 1).unwrap();
        let text = read_schema(dir.path()).unwrap_err().to_string();
        assert!(text.contains("schema version 3") && text.contains("start the newer program"), "{text}");
        std::fs::write(dir.path().join("schema"), "something else").unwrap();
        assert!(matches!(read_schema(dir.path()), Err(OpenError::Damaged { .. })));
    }
}
