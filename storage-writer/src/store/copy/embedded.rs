//! Another directory as the target: a store of its own with the same rows, and an id of its own. Until the copy is
//! proven a marker lies in it, and no process opens it.

use super::journey::Mark;
use super::source::{Chunk, Source, Table, is_no_part_of_a_store};
use super::{CopyError, Found, Report, Sum, TableSums, Target, source_io};
use crate::store::embedded::files::{
    DirectoryLock, SCHEMA_VERSION, UNFINISHED_FILE, make_private, sync_directory, write_schema, write_whole,
};
use crate::store::embedded::high_water::{HIGH_WATER_FILE, HighWater};
use crate::store::embedded::layout;
use crate::store::embedded::open::ENGINE_DIR;
use crate::store::embedded::tables::{META_FLOOR, META_GROUPS, META_STORE, Tables};
use crate::store::embedded::{EmbeddedOptions, EmbeddedView, OpenError};
use fjall::{Database, PersistMode};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A store cannot be copied into itself, nor into its own engine's directory.
pub(super) fn refuse_same(from: &Path, to: &Path) -> Result<(), CopyError> {
    let Ok(from) = from.canonicalize() else { return Ok(()) };
    // What does not exist yet lies where its parent is.
    let existing = to.ancestors().find_map(|path| path.canonicalize().ok());
    let within = existing.is_some_and(|path| path.starts_with(&from));
    if within {
        let (from, to) = (from.display(), to.display());
        return Err(CopyError::Wrong(format!("--to-data {to} lies in the source {from}; choose another directory")));
    }
    Ok(())
}

/// The target's directory, locked.
pub(super) struct Directory {
    path: PathBuf,
    store: Option<Store>,
    _lock: DirectoryLock,
}

/// The open target.
struct Store {
    database: Database,
    tables: Arc<Tables>,
    /// As many as batches were written: each counts itself, as every group does.
    groups: u64,
}

impl Directory {
    pub(super) fn take(path: &Path) -> Result<Self, CopyError> {
        let path = std::path::absolute(path).map_err(source_io("find", path))?;
        make_private(&path).map_err(source_io("make the directory", &path))?;
        let lock = DirectoryLock::take(&path).map_err(|error| match error {
            OpenError::InUse { .. } => {
                CopyError::Foreign { target: path.display().to_string(), what: format!("a running store ({error})") }
            }
            error => CopyError::Open(error),
        })?;
        Ok(Self { path, store: None, _lock: lock })
    }

    fn marker(&self) -> PathBuf {
        self.path.join(UNFINISHED_FILE)
    }

    fn engine_dir(&self) -> PathBuf {
        self.path.join(ENGINE_DIR)
    }

    fn failed(&self) -> impl Fn(fjall::Error) -> CopyError + use<> {
        let path = self.path.display().to_string();
        move |error| CopyError::Target(format!("the store in {path} did not take rows: {error}"))
    }

    /// Makes the engine anew: nothing in it is needed.
    fn make(&mut self) -> Result<(), CopyError> {
        let engine_dir = self.engine_dir();
        if engine_dir.exists() {
            std::fs::remove_dir_all(&engine_dir).map_err(source_io("remove", &engine_dir))?;
        }
        let mut store = [0; 16];
        getrandom::fill(&mut store).map_err(|error| CopyError::Target(format!("no random number: {error}")))?;
        let store = u128::from_le_bytes(store);
        HighWater::create(&self.path, store).map_err(CopyError::Open)?;
        self.open()?;
        sync_directory(&self.path).map_err(CopyError::Open)?;
        let meta = self.store().tables.meta.clone();
        self.group(|batch| batch.insert(&meta, META_STORE, &layout::u128_value(store)[..]))
    }

    fn open(&mut self) -> Result<(), CopyError> {
        let opened = Tables::open(&self.engine_dir(), &EmbeddedOptions::default());
        let (database, tables) = opened.map_err(self.failed())?;
        let view = EmbeddedView::take(&database, &tables);
        let groups = view.groups().map_err(|error| CopyError::Target(error.to_string()))?.unwrap_or(0);
        self.store = Some(Store { database, tables, groups });
        Ok(())
    }

    /// Makes everything durable and closes the engine. How many groups it has.
    fn close(&mut self) -> Result<u64, CopyError> {
        let failed = self.failed();
        let Store { database, tables, groups } = self.store.take().expect("rows follow `begin` or `resume`");
        database.persist(PersistMode::SyncAll).map_err(failed)?;
        drop((tables, database));
        Ok(groups)
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("rows follow `begin` or `resume`")
    }

    /// Writes one batch in the form of a group, which is what the next opening looks for in the journals.
    fn group(&mut self, fill: impl FnOnce(&mut fjall::OwnedWriteBatch)) -> Result<(), CopyError> {
        let failed = self.failed();
        let store = self.store.as_mut().expect("rows follow `begin` or `resume`");
        let Store { database, tables, groups } = store;
        let mut batch = fjall::OwnedWriteBatch::with_capacity(database.clone(), 1_024);
        fill(&mut batch);
        batch.insert(&tables.meta, META_GROUPS, &layout::u64_value(*groups + 1)[..]);
        batch.insert(&tables.meta, META_FLOOR, &layout::u64_value(database.seqno())[..]);
        batch.commit().map_err(failed)?;
        *groups += 1;
        Ok(())
    }
}

impl Target for Directory {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn found(&mut self) -> Result<Found, CopyError> {
        match std::fs::read_to_string(self.marker()) {
            Ok(text) => return Ok(Found::Unfinished(Mark::from_text(&text))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(source_io("read", &self.marker())(error)),
        }
        if self.path.join("schema").exists() {
            return Ok(Found::Other("a store already".to_owned()));
        }
        for entry in std::fs::read_dir(&self.path).map_err(source_io("read", &self.path))? {
            let name = entry.map_err(source_io("read", &self.path))?.file_name();
            if !is_no_part_of_a_store(&name.to_string_lossy()) {
                return Ok(Found::Other(format!("{name:?}, and must be empty")));
            }
        }
        Ok(Found::Nothing)
    }

    fn begin(&mut self, mark: Mark) -> Result<(), CopyError> {
        write_whole(&self.marker(), mark.to_text().as_bytes()).map_err(CopyError::Open)?;
        sync_directory(&self.path).map_err(CopyError::Open)?;
        self.make()
    }

    fn resume(&mut self, rows: u64) -> Result<(), CopyError> {
        // The engine may have been interrupted while it was made.
        if rows == 0 { self.make() } else { self.open() }
    }

    fn put(&mut self, source: &Source, table: Table, chunk: &Chunk) -> Result<(), CopyError> {
        source.read(table, chunk).try_for_each(|record| record.map(|_| ()))?;
        let keyspace = table.keyspace(&self.store().tables).clone();
        self.group(|batch| {
            chunk.rows.iter().for_each(|row| batch.insert(&keyspace, &row.key[..], &row.value[..]));
        })
    }

    fn sync(&mut self) -> Result<(), CopyError> {
        self.store().database.persist(PersistMode::SyncData).map_err(self.failed())
    }

    fn verify(&mut self, source: &Source, step: &mut dyn FnMut(Table, &Chunk)) -> Result<Report, CopyError> {
        // Opened anew, so that what is compared comes from files and not from what was kept in memory.
        let groups = self.close()?;
        self.open()?;
        if self.store().groups != groups {
            let (path, found) = (self.path.display(), self.store().groups);
            let what = format!("the store in {path} has {found} of {groups} groups; its disk loses what is written");
            return Err(CopyError::Target(what));
        }
        let Store { database, tables, .. } = self.store();
        let view = EmbeddedView::take(database, tables);
        let mut report = Report { tables: Vec::new() };
        for table in Table::ALL {
            let mut sums = TableSums::new(table.name());
            let mut after: Option<Vec<u8>> = None;
            loop {
                let chunk = source.chunk(table, after.as_deref())?;
                let mut here = Sum::default();
                chunk.rows.iter().for_each(|row| here.add(&row.key, &row.value));
                // What lies behind the source's last row must be nothing.
                let to = if chunk.last { None } else { chunk.last_key() };
                let mut there = Sum::default();
                let scanned = table.scan(&view, after.as_deref(), to, |key, value| {
                    there.add(key, value);
                    Ok(ControlFlow::Continue(()))
                });
                scanned.map_err(|error| CopyError::Target(error.to_string()))?;
                sums.add(here, there, || format!("keys up to {:02x?}", chunk.last_key().unwrap_or_default()));
                step(table, &chunk);
                if chunk.last {
                    break;
                }
                after = chunk.last_key().map(<[u8]>::to_vec);
            }
            report.tables.push(sums);
        }
        Ok(report)
    }

    fn finish(&mut self) -> Result<(), CopyError> {
        let groups = self.close()?;
        let high_water = HighWater::open(&self.path).map_err(CopyError::Open)?;
        let path = self.path.join(HIGH_WATER_FILE);
        let mut high_water = high_water.ok_or_else(|| CopyError::Target(format!("{} is gone", path.display())))?;
        high_water.raise(groups).map_err(source_io("write", &path))?;
        write_schema(&self.path, SCHEMA_VERSION).map_err(CopyError::Open)?;
        std::fs::remove_file(self.marker()).map_err(source_io("remove", &self.marker()))?;
        sync_directory(&self.path).map_err(CopyError::Open)
    }
}
