//! What happens to the engine's journals before the engine sees them at a start.
//!
//! Two needs, one copy. After a failed sync the page cache may hold bytes that no disk has, and marks them clean: what
//! is recovered must be written again. And the engine cuts a journal off at the first byte that it does not
//! understand: should acknowledged groups be missing then, the whole journal must still be there to look at.
//! So each journal is copied, the copy is synced and takes its place, and the old file is kept aside until the store
//! has proven whole. Nothing is written to the store before that, so putting the old files back is always right.

use super::error::OpenError;
use super::files::sync_directory;
use rustix::fs::SeekFrom;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Where the old journals wait, in the data directory.
const ASIDE: &str = "journals-before-recovery";
const COPY_CHUNK_BYTES: usize = 1024 * 1024;

/// The journals of a store that is being opened.
#[derive(Debug)]
pub(crate) struct Journals {
    data_dir: PathBuf,
    engine_dir: PathBuf,
    aside: PathBuf,
}

impl Journals {
    /// Copies every journal and keeps the old ones aside. An earlier start that got no further is undone first.
    pub(crate) fn set_aside(data_dir: &Path, engine_dir: &Path) -> Result<Self, OpenError> {
        let aside = data_dir.join(ASIDE);
        let journals = Self { data_dir: data_dir.to_owned(), engine_dir: engine_dir.to_owned(), aside };
        if journals.aside.exists() {
            journals.put_back()?;
        }
        let aside = &journals.aside;
        std::fs::create_dir(aside).map_err(OpenError::io("make the directory", aside))?;
        sync_directory(data_dir)?;
        for name in journal_names(engine_dir)? {
            let (old, new) = (engine_dir.join(&name), engine_dir.join(format!("{name}.new")));
            copy_synced(&old, &new)?;
            std::fs::hard_link(&old, aside.join(&name)).map_err(OpenError::io("link aside", &old))?;
            sync_directory(aside)?;
            std::fs::rename(&new, &old).map_err(OpenError::io("replace", &old))?;
        }
        sync_directory(engine_dir)?;
        Ok(journals)
    }

    /// The store is not whole: the old journals take their places again.
    pub(crate) fn put_back(&self) -> Result<(), OpenError> {
        for name in journal_names(&self.aside)? {
            let place = self.engine_dir.join(&name);
            std::fs::rename(self.aside.join(&name), &place).map_err(OpenError::io("put back", &place))?;
        }
        sync_directory(&self.engine_dir)?;
        std::fs::remove_dir(&self.aside).map_err(OpenError::io("remove", &self.aside))?;
        sync_directory(&self.data_dir)
    }

    /// The store is whole: the old journals go. Durable before anything is written to the store.
    pub(crate) fn drop_old(self) -> Result<(), OpenError> {
        // Gone at once under their name, so that a crash cannot leave a part of them behind as if nothing had followed.
        let gone = self.data_dir.join("journals-to-remove");
        if gone.exists() {
            std::fs::remove_dir_all(&gone).map_err(OpenError::io("remove", &gone))?;
        }
        std::fs::rename(&self.aside, &gone).map_err(OpenError::io("rename", &self.aside))?;
        sync_directory(&self.data_dir)?;
        std::fs::remove_dir_all(&gone).map_err(OpenError::io("remove", &gone))
    }
}

/// Names of the journals in a directory, oldest first.
fn journal_names(dir: &Path) -> Result<Vec<String>, OpenError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(OpenError::io("list", dir))? {
        let name = entry.map_err(OpenError::io("list", dir))?.file_name();
        if let Some(name) = name.to_str().filter(|name| name.ends_with(".jnl")) {
            names.push(name.to_owned());
        }
    }
    names.sort_by_key(|name| (name.len(), name.clone()));
    Ok(names)
}

/// Copies a file with its holes (a journal is mostly one: it is made at its full length), and syncs the copy.
fn copy_synced(from: &Path, to: &Path) -> Result<(), OpenError> {
    let source = File::open(from).map_err(OpenError::io("open", from))?;
    let target = File::create(to).map_err(OpenError::io("create", to))?;
    let bytes = source.metadata().map_err(OpenError::io("read", from))?.len();
    target.set_len(bytes).map_err(OpenError::io("write", to))?;
    let mut chunk = vec![0; COPY_CHUNK_BYTES];
    let mut at = 0;
    while at < bytes {
        at = match rustix::fs::seek(&source, SeekFrom::Data(at)) {
            Ok(data) => data,
            // No data behind here.
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(OpenError::io("read", from)(error.into())),
        };
        let hole =
            rustix::fs::seek(&source, SeekFrom::Hole(at)).map_err(|error| OpenError::io("read", from)(error.into()))?;
        while at < hole {
            let part = (hole - at).min(COPY_CHUNK_BYTES as u64) as usize;
            source.read_exact_at(&mut chunk[..part], at).map_err(OpenError::io("read", from))?;
            target.write_all_at(&chunk[..part], at).map_err(OpenError::io("write", to))?;
            at += part as u64;
        }
    }
    target.sync_all().map_err(OpenError::io("sync", to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journals_are_copied_with_their_holes_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let engine = dir.path().join("engine");
        std::fs::create_dir(&engine).unwrap();
        let file = File::create(engine.join("3.jnl")).unwrap();
        file.write_all_at(b"start", 0).unwrap();
        file.write_all_at(b"later", 5_000_000).unwrap();
        file.set_len(8_000_000).unwrap();
        std::fs::write(engine.join("other"), "not a journal").unwrap();
        let before = std::fs::read(engine.join("3.jnl")).unwrap();

        Journals::set_aside(dir.path(), &engine).unwrap();
        assert_eq!(std::fs::read(engine.join("3.jnl")).unwrap(), before);
        std::fs::write(engine.join("3.jnl"), "cut off").unwrap();
        // A second start that follows a crash finds the old journal again.
        let journals = Journals::set_aside(dir.path(), &engine).unwrap();
        assert_eq!(std::fs::read(engine.join("3.jnl")).unwrap(), before);
        journals.drop_old().unwrap();
        std::fs::write(engine.join("3.jnl"), "went on").unwrap();
        Journals::set_aside(dir.path(), &engine).unwrap();
        assert_eq!(std::fs::read(engine.join("3.jnl")).unwrap(), b"went on");
    }
}
