//! Opening a data directory: lock, schema, journals, the proof that nothing acknowledged is missing, and a first group
//! that makes durable again what was recovered.

use super::error::OpenError;
use super::files::{self, DirectoryLock, SCHEMA_VERSION};
use super::high_water::{HIGH_WATER_FILE, HighWater};
use super::journal::Journals;
use super::journal_scan::First;
use super::names::Names;
use super::recorder::Recorder;
use super::tables::{self, Tables};
use super::{EmbeddedOptions, EmbeddedStore, EmbeddedView, Views, Waker, engine_files, layout};
use crate::metrics::StoreMetrics;
use fjall::AbstractTree;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use storage_core::store::ReadError;

pub(crate) const ENGINE_DIR: &str = "engine";

/// A step from one schema version to the next.
struct Migration {
    /// The version that it starts from.
    from: u32,
    /// Changes rows in place; running it a second time after a crash must do no harm.
    run: fn(&fjall::Database, &Tables) -> fjall::Result<()>,
}

/// Every step from the oldest supported version on; version 1 is the first.
const MIGRATIONS: &[Migration] = &[
    // Version 2 has inbox entries in runs (`runs.rs`), and every row of version 1 is a run of one.
    Migration { from: 1, run: |_, _| Ok(()) },
];

const _: () = assert!(MIGRATIONS.len() as u32 + 1 == SCHEMA_VERSION, "each older version has a step to the next");

/// A store that is proven whole, before anything is written to it.
struct Recovered {
    lock: DirectoryLock,
    database: fjall::Database,
    tables: Arc<Tables>,
    high_water: HighWater,
    engine_dir: PathBuf,
    schema: u32,
    groups: u64,
}

impl EmbeddedStore {
    /// Opens the store of a data directory, or makes it. `waker` is called whenever commits complete.
    pub fn open(
        data_dir: &Path,
        options: &EmbeddedOptions,
        metrics: Arc<StoreMetrics>,
        waker: Waker,
    ) -> Result<Self, OpenError> {
        let Recovered { lock, database, tables, mut high_water, engine_dir, schema, mut groups } =
            recover(data_dir, options, take_lock(data_dir)?)?;
        migrate(data_dir, &engine_dir, &database, &tables, schema)?;
        // A group of the store's own: journal and record are written and synced before anything is acknowledged.
        groups += 1;
        let mut batch = database.batch().durability(Some(fjall::PersistMode::SyncAll));
        batch.insert(&tables.meta, tables::META_GROUPS, &layout::u64_value(groups)[..]);
        batch.insert(&tables.meta, tables::META_FLOOR, &layout::u64_value(database.seqno())[..]);
        batch.insert(&tables.meta, tables::META_STORE, &layout::u128_value(high_water.record().store)[..]);
        batch.commit().map_err(OpenError::engine(&engine_dir))?;
        high_water.raise(groups).map_err(OpenError::io("write", &data_dir.join(HIGH_WATER_FILE)))?;
        files::write_schema(data_dir, SCHEMA_VERSION)?;

        let view = EmbeddedView::take(&database, &tables);
        let records = view.records().map_err(unreadable(&engine_dir))?.unwrap_or_default();
        let names = Names::of(options.names_filter_bytes, EmbeddedView::take(&database, &tables));
        let views = Views(Arc::new(Mutex::new(Arc::new(view))));
        let recorder = Recorder::start(high_water, views.clone(), waker, metrics.clone());
        Ok(Self {
            names,
            database,
            tables,
            views,
            recorder,
            data_dir: data_dir.to_owned(),
            engine_dir,
            disk_reserve_bytes: options.disk_reserve_bytes,
            records,
            group_next: 1,
            groups,
            broken: None,
            done: Vec::new(),
            scratch: Vec::with_capacity(1024),
            metrics,
            _lock: lock,
        })
    }
}

/// A store that is held and proven whole, for reading only.
pub(crate) struct Held {
    pub(crate) view: EmbeddedView,
    /// Tables whose checksum is wrong, as they were before the engine opened them.
    pub(crate) damaged_tables: Vec<String>,
    _database: fjall::Database,
    _lock: DirectoryLock,
}

/// Opens an existing store to look at it; nothing is made where there is none.
pub(crate) fn hold(data_dir: &Path, options: &EmbeddedOptions) -> Result<Held, OpenError> {
    files::refuse_unfinished(data_dir)?;
    if files::read_schema(data_dir)?.is_none() {
        let what = "there is no embedded store here".to_owned();
        return Err(OpenError::Mixed { file: data_dir.to_owned(), what });
    }
    let lock = take_lock(data_dir)?;
    // Before the engine may merge tables.
    let damaged_tables = engine_files::damaged_tables(&data_dir.join(ENGINE_DIR))?;
    let Recovered { lock, database, tables, .. } = recover(data_dir, options, lock)?;
    let view = EmbeddedView::take(&database, &tables);
    Ok(Held { view, damaged_tables, _database: database, _lock: lock })
}

fn take_lock(data_dir: &Path) -> Result<DirectoryLock, OpenError> {
    files::make_private(data_dir).map_err(OpenError::io("make the directory", data_dir))?;
    let lock = DirectoryLock::take(data_dir)?;
    files::refuse_unfinished(data_dir)?;
    Ok(lock)
}

fn recover(data_dir: &Path, options: &EmbeddedOptions, lock: DirectoryLock) -> Result<Recovered, OpenError> {
    let engine_dir = data_dir.join(ENGINE_DIR);
    let schema = files::read_schema(data_dir)?;
    let high_water = match (schema, HighWater::open(data_dir)?) {
        (Some(_), Some(high_water)) => high_water,
        (None, found) => prepare_new(data_dir, &engine_dir, found)?,
        (Some(_), None) => {
            let what = "the high-water record is missing".to_owned();
            return Err(OpenError::Mixed { file: data_dir.join(HIGH_WATER_FILE), what });
        }
    };
    let record = high_water.record();
    let behind = |engine_groups| OpenError::Behind {
        engine: engine_dir.clone(),
        engine_groups,
        high_water: high_water.path().to_owned(),
        high_water_groups: record.groups,
    };
    let journals = match (schema, engine_dir.exists()) {
        (Some(_), true) => {
            engine_files::verify(&engine_dir)?;
            Some(Journals::set_aside(data_dir, &engine_dir, record.groups)?)
        }
        (Some(_), false) => return Err(behind(0)),
        (None, _) => None,
    };
    let first = journals.as_ref().and_then(Journals::first);
    let opened = match first {
        // Before the engine writes journals out into tables, which it begins to do when it opens.
        Some(first) if first.group > 1 && !engine_files::has_tables(&engine_dir, tables::META_KEYSPACE)? => {
            Err(journals_missing(&engine_dir, first, 0))
        }
        _ => open_engine(&engine_dir, options, record.store, first),
    };
    let refused = match opened {
        Ok((database, tables, groups)) if groups >= record.groups => {
            if let Some(journals) = journals {
                journals.drop_old()?;
            }
            let schema = schema.unwrap_or(SCHEMA_VERSION);
            return Ok(Recovered { lock, database, tables, high_water, engine_dir, schema, groups });
        }
        Ok((database, tables, groups)) => {
            // The engine is closed before its journals are put back.
            drop((database, tables));
            match journals.as_ref().and_then(Journals::torn) {
                Some((file, what)) => OpenError::Damaged { file, what: what.to_owned() },
                None => behind(groups),
            }
        }
        Err(error) => engine_files::blame(&engine_dir, error),
    };
    if let Some(journals) = journals {
        journals.put_back()?;
    }
    Err(refused)
}

/// A directory without a schema: new, or one whose making was cut short, in which nothing was acknowledged.
fn prepare_new(data_dir: &Path, engine_dir: &Path, found: Option<HighWater>) -> Result<HighWater, OpenError> {
    let acknowledged = found.as_ref().is_some_and(|high_water| high_water.record().groups > 1);
    if acknowledged || found.is_none() && engine_dir.exists() {
        let what = "parts of a store are here, but its schema version is missing".to_owned();
        return Err(OpenError::Mixed { file: data_dir.to_owned(), what });
    }
    if engine_dir.exists() {
        std::fs::remove_dir_all(engine_dir).map_err(OpenError::io("remove", engine_dir))?;
    }
    let mut store = [0; 16];
    getrandom::fill(&mut store)
        .map_err(|error| OpenError::io("draw an id for", data_dir)(std::io::Error::other(error.to_string())))?;
    HighWater::create(data_dir, u128::from_le_bytes(store))?;
    files::sync_directory(data_dir)?;
    // A mistyped directory shows here.
    tracing::info!("there was no store in {}: a new one is made", data_dir.display());
    Ok(HighWater::open(data_dir)?.expect("the file was just made"))
}

/// Opens the engine; a store that is not the record's is refused. The number is its count of groups.
fn open_engine(
    engine_dir: &Path,
    options: &EmbeddedOptions,
    store: u128,
    first: Option<First>,
) -> Result<(fjall::Database, Arc<Tables>, u64), OpenError> {
    let (database, tables) = Tables::open(engine_dir, options).map_err(OpenError::engine(engine_dir))?;
    let view = EmbeddedView::take(&database, &tables);
    let found = view.store_id().map_err(unreadable(engine_dir))?;
    if found.is_some_and(|found| found != store) {
        let what = "the engine's data and the high-water record are of two stores".to_owned();
        return Err(OpenError::Mixed { file: engine_dir.to_owned(), what });
    }
    let groups = view.groups().map_err(unreadable(engine_dir))?.unwrap_or(0);
    drop(view);
    if let Some(first) = first {
        follows_tables(engine_dir, &tables, first)?;
    }
    Ok((database, tables, groups))
}

/// Refuses a store whose oldest journals are gone though not all of them is in the tables. Each group counts itself in
/// `meta`: tables of it that do not reach the journals' first group must end with the one before.
fn follows_tables(engine_dir: &Path, tables: &Tables, first: First) -> Result<(), OpenError> {
    let tree = &tables.meta.tree;
    let engine = |error: fjall::LsmError| OpenError::engine(engine_dir)(error.into());
    let before = tree.get(tables::META_GROUPS, first.seqno).map_err(engine)?;
    let before = before.and_then(|value| layout::parse_u64(&value).ok()).unwrap_or(0);
    // Asked last: tables that reach further may be new, and merging them drops the older count.
    if before + 1 == first.group || tree.get_highest_persisted_seqno().is_some_and(|newest| newest >= first.seqno) {
        return Ok(());
    }
    Err(journals_missing(engine_dir, first, before))
}

fn journals_missing(engine_dir: &Path, first: First, before: u64) -> OpenError {
    let what = format!("journals are missing: the oldest begins with group {}, tables end with {before}", first.group);
    OpenError::Damaged { file: engine_dir.to_owned(), what }
}

fn unreadable(engine_dir: &Path) -> impl FnOnce(ReadError) -> OpenError {
    move |error| OpenError::Damaged { file: engine_dir.to_owned(), what: error.to_string() }
}

/// Brings an older schema up to this program's, step by step, each made durable before the next begins.
fn migrate(
    data_dir: &Path,
    engine_dir: &Path,
    database: &fjall::Database,
    tables: &Tables,
    schema: u32,
) -> Result<(), OpenError> {
    for step in MIGRATIONS.iter().filter(|step| step.from >= schema) {
        tracing::info!(from = step.from, to = step.from + 1, "migrating the embedded store");
        (step.run)(database, tables).map_err(OpenError::engine(engine_dir))?;
        database.persist(fjall::PersistMode::SyncAll).map_err(OpenError::engine(engine_dir))?;
        files::write_schema(data_dir, step.from + 1)?;
    }
    Ok(())
}
