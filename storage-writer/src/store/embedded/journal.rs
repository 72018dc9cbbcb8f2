//! What happens to the engine's journals before the engine sees them at a start.
//!
//! Two needs, one copy. After a failed sync the page cache may hold bytes that no disk has, and marks them clean: what
//! is recovered must be written again. And the engine cuts a journal off at the first byte that it does not
//! understand: should acknowledged groups be missing then, the whole journal must still be there to look at.
//! So each journal is copied, the copy is synced and takes its place, and the old file is kept aside until the store
//! has proven whole. Nothing is written to the store before that, so putting the old files back is always right.
//! A torn tail is not copied.

use super::error::OpenError;
use super::files::sync_directory;
use super::journal_scan::{First, Kept, Scanned, scan};
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
    scanned: Scanned,
}

impl Journals {
    /// Judges every journal (see `journal_scan.rs`), copies what is whole and keeps the old ones aside. `acknowledged`:
    /// groups by the high-water record.
    pub(crate) fn set_aside(data_dir: &Path, engine_dir: &Path, acknowledged: u64) -> Result<Self, OpenError> {
        let mut journals = Self::find(data_dir, engine_dir)?;
        journals.scanned = scan(engine_dir, &journal_names(engine_dir)?, acknowledged)?;
        journals.copy()?;
        Ok(journals)
    }

    /// Undoes an earlier start that got no further.
    fn find(data_dir: &Path, engine_dir: &Path) -> Result<Self, OpenError> {
        let aside = data_dir.join(ASIDE);
        let (data_dir, engine_dir) = (data_dir.to_owned(), engine_dir.to_owned());
        let journals = Self { data_dir, engine_dir, aside, scanned: Scanned::default() };
        if journals.aside.exists() {
            journals.put_back()?;
        }
        Ok(journals)
    }

    fn copy(&self) -> Result<(), OpenError> {
        let (aside, engine_dir) = (&self.aside, &self.engine_dir);
        std::fs::create_dir(aside).map_err(OpenError::io("make the directory", aside))?;
        sync_directory(&self.data_dir)?;
        for Kept { name, bytes, .. } in &self.scanned.kept {
            let (old, new) = (engine_dir.join(name), engine_dir.join(format!("{name}.new")));
            copy_synced(&old, &new, *bytes)?;
            std::fs::hard_link(&old, aside.join(name)).map_err(OpenError::io("link aside", &old))?;
            sync_directory(aside)?;
            std::fs::rename(&new, &old).map_err(OpenError::io("replace", &old))?;
        }
        sync_directory(engine_dir)
    }

    /// The journal with a torn tail, and what is torn, should the store turn out to lack what was acknowledged.
    pub(crate) fn torn(&self) -> Option<(PathBuf, &str)> {
        let kept = self.scanned.kept.iter().find(|kept| kept.torn.is_some())?;
        Some((self.engine_dir.join(&kept.name), kept.torn.as_deref()?))
    }

    /// The first group that they hold.
    pub(crate) fn first(&self) -> Option<First> {
        self.scanned.first
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
        if let Some((file, what)) = self.torn() {
            tracing::info!(file = %file.display(), "a group that was never acknowledged is dropped: {what}");
        }
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

/// Copies the first bytes of a file with its holes (a journal is mostly one: it is made at its full length), leaves the
/// rest a hole, and syncs the copy.
fn copy_synced(from: &Path, to: &Path, kept_bytes: u64) -> Result<(), OpenError> {
    let source = File::open(from).map_err(OpenError::io("open", from))?;
    let target = File::create(to).map_err(OpenError::io("create", to))?;
    let bytes = source.metadata().map_err(OpenError::io("read", from))?.len();
    target.set_len(bytes).map_err(OpenError::io("write", to))?;
    let bytes = bytes.min(kept_bytes);
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
        let hole = hole.min(bytes);
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

        let copied = |bytes| {
            let mut journals = Journals::find(dir.path(), &engine).unwrap();
            journals.scanned.kept = vec![Kept { name: "3.jnl".to_owned(), bytes, torn: None }];
            journals.copy().unwrap();
            journals
        };
        copied(8_000_000);
        assert_eq!(std::fs::read(engine.join("3.jnl")).unwrap(), before);
        // What is not kept is a hole in the copy.
        copied(3);
        assert_eq!(std::fs::read(engine.join("3.jnl")).unwrap(), [&b"sta"[..], &vec![0; 7_999_997]].concat());
        std::fs::write(engine.join("3.jnl"), "cut off").unwrap();
        // A start that follows a crash finds the old journal again.
        let journals = copied(8_000_000);
        assert_eq!(std::fs::read(engine.join("3.jnl")).unwrap(), before);
        journals.drop_old().unwrap();
        std::fs::write(engine.join("3.jnl"), "went on").unwrap();
        copied(7);
        assert_eq!(std::fs::read(engine.join("3.jnl")).unwrap(), b"went on");
    }
}
