//! The embedded engine: fjall, one writer thread, one atomic batch over all keyspaces and one data sync a group.
//!
//! A data directory holds `LOCK`, `schema` (the version), `high-water` (see `high_water.rs`) and `engine/` (fjall's).
//! Heads are derived from keys, never stored: the last key of a chat's or an inbox's prefix.

pub mod check;
mod engine_files;
pub mod error;
pub(super) mod files;
pub(super) mod high_water;
mod journal;
mod journal_scan;
pub(super) mod layout;
mod names;
pub(super) mod open;
mod recorder;
pub(super) mod runs;
pub(super) mod tables;
mod tier;
pub mod view;

pub use error::OpenError;
pub use files::SCHEMA_VERSION;
pub use view::EmbeddedView;

use crate::metrics::StoreMetrics;
use files::DirectoryLock;
use names::Names;
use recorder::{Job, Recorder};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use storage_core::store::{
    Append, EntryRow, Group, MarkRow, MarkWrite, Meta, OpId, Outcome, ReadError, Store, StoreRequest, StoreResult, View,
};
use tables::Tables;

/// How an embedded store uses memory and disk.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// Blocks of tables kept in memory, bytes.
    pub cache_bytes: u64,
    /// A table's part in memory is written out above this, bytes. There are up to five of one kind at a time.
    pub memtable_bytes: u64,
    /// Journals on the disk at the most, bytes; at least 64 MiB. Their length is also what a start reads and rewrites.
    pub journal_bytes_max: u64,
    /// Groups are refused while less than this is free: room that the engine needs to write its memory out, bytes.
    pub disk_reserve_bytes: u64,
    /// Memory that remembers which command names may be stored, bytes: 12 bits a name keep the search for new ones away.
    pub names_filter_bytes: usize,
    /// Threads that write memory out and merge tables. With two or more fjall keeps one spinning during merges.
    pub worker_threads: usize,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
            memtable_bytes: 32 << 20,
            journal_bytes_max: 256 << 20,
            disk_reserve_bytes: 512 << 20,
            names_filter_bytes: 32 << 20,
            worker_threads: 1,
        }
    }
}

/// Called when completions appear, from another thread.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// What reader threads see: everything that was answered as durable, and nothing else.
#[derive(Clone)]
pub struct Views(Arc<Mutex<Arc<EmbeddedView>>>);

impl Views {
    /// The newest confirmed sight.
    pub fn newest(&self) -> Arc<EmbeddedView> {
        self.0.lock().expect("no holder of the view panics").clone()
    }

    fn publish(&self, view: EmbeddedView) {
        *self.0.lock().expect("no holder of the view panics") = Arc::new(view);
    }
}

/// The engine, as the writer thread owns it.
pub struct EmbeddedStore {
    /// First, so that its scan ends before what it scans is closed.
    names: Names,
    database: fjall::Database,
    tables: Arc<Tables>,
    views: Views,
    recorder: Recorder,
    data_dir: PathBuf,
    engine_dir: PathBuf,
    disk_reserve_bytes: u64,
    records: Meta,
    /// The number that the next group of this start must have.
    group_next: u64,
    /// Groups over the life of the store.
    groups: u64,
    broken: Option<String>,
    done: Vec<(OpId, StoreResult)>,
    scratch: Vec<u8>,
    metrics: Arc<StoreMetrics>,
    /// Last, so that it is given back last.
    _lock: DirectoryLock,
}

impl EmbeddedStore {
    /// What readers see. Handed to the reader threads once; it moves on by itself.
    pub fn views(&self) -> Views {
        self.views.clone()
    }

    /// Whether the names of all stored commands are in memory, so that a new command costs no search. They are read in
    /// the background from the start on.
    pub fn names_are_whole(&self) -> bool {
        self.names.are_whole()
    }

    /// Changes how much room must be free, bytes.
    pub fn set_disk_reserve(&mut self, bytes: u64) {
        self.disk_reserve_bytes = bytes;
    }

    /// Answers a load from what is submitted so far.
    fn load(&self, request: &StoreRequest) -> StoreResult {
        if let StoreRequest::FindCommand(name) = request
            && !self.names.may_hold(name)
        {
            return StoreResult::Found(None);
        }
        let view = EmbeddedView::take(&self.database, &self.tables);
        let found: Result<StoreResult, ReadError> = match request {
            StoreRequest::LoadMeta => Ok(StoreResult::Meta(self.records.clone())),
            StoreRequest::LoadChat(chat_id) => view.chat(*chat_id).map(|chat| StoreResult::Chat(chat.map(Box::new))),
            StoreRequest::LoadMember { chat_id, user_id } => {
                view.stored_member(*chat_id, *user_id).map(StoreResult::Member)
            }
            StoreRequest::LoadUser(user_id) => view.user(*user_id).map(StoreResult::User),
            StoreRequest::FindCommand(name) => view.command(name).map(StoreResult::Found),
            StoreRequest::FindUnique(key) => view.unique(key).map(StoreResult::Unique),
            StoreRequest::CountMessages { chat_id, sender, from, to } => {
                view.count_messages(*chat_id, *sender, *from, *to).map(StoreResult::Count)
            }
            StoreRequest::LoadEvent { chat_id, seq } => {
                view.event(*chat_id, *seq).map(|event| StoreResult::Event(event.map(Box::new)))
            }
            StoreRequest::Commit(_) => unreachable!("commits are not loads"),
        };
        found.unwrap_or_else(|error| StoreResult::Damaged(error.to_string()))
    }

    /// Writes a group, or says why not. Its answer comes from the recorder once the high-water record is synced.
    fn commit(&mut self, op: OpId, group: &Group) {
        if let Err(outcome) = self.admit(group) {
            self.done.push((op, StoreResult::Committed(outcome)));
            return;
        }
        if group.no >= self.group_next {
            let started = Instant::now();
            group.appends.iter().flat_map(|append| &append.commands).for_each(|row| self.names.insert(&row.name));
            let written = self.fill_batch(group).and_then(|batch| {
                self.metrics.rows.add(batch.len() as u64);
                batch.commit().map_err(|error| format!("{}: {error}", self.engine_dir.display()))
            });
            // A full disk is no exception here: whatever failed, part of the group may be in the journal, and fjall takes
            // no write after it (`Error::Poisoned`). The room is looked at before, in `admit`.
            if let Err(text) = written {
                self.broken = Some(text.clone());
                self.done.push((op, StoreResult::Committed(Outcome::Broken(text))));
                return;
            }
            self.metrics.commit.record(started.elapsed());
            self.metrics.groups.add(1);
            if let Some(records) = &group.meta {
                self.records = records.clone();
                self.metrics.ids_reserved_until_ms.set(records.ids_reserved_until_ms);
            }
            self.group_next += 1;
            self.groups += 1;
        }
        let view = EmbeddedView::take(&self.database, &self.tables);
        self.recorder.submit(Job { op, groups: self.groups, view });
    }

    /// Whether a group may be written now.
    fn admit(&self, group: &Group) -> Result<(), Outcome> {
        if let Some(text) = &self.broken {
            return Err(Outcome::Broken(text.clone()));
        }
        if group.no > self.group_next {
            return Err(Outcome::Failed(format!("group {} failed before it", self.group_next)));
        }
        if group.writer_epoch < self.records.writer_epoch {
            return Err(Outcome::Fenced);
        }
        if let Some((key, _)) = group.uniques.iter().find(|(key, _)| key.len() > UNIQUE_KEY_BYTES_MAX) {
            return Err(Outcome::Failed(format!("a unique key has {} bytes", key.len())));
        }
        // Said before the journal is touched: an engine whose journal or table write fails takes no more writes, and
        // nobody could say what of the group will show up at the next start.
        let free = free_bytes(&self.data_dir).map_err(|error| Outcome::Failed(error.to_string()))?;
        self.metrics.disk_free_bytes.set(free);
        if free < self.disk_reserve_bytes {
            return Err(Outcome::Failed(format!(
                "disk full: {free} bytes are free for {}, and {} must be",
                self.data_dir.display(),
                self.disk_reserve_bytes
            )));
        }
        Ok(())
    }

    /// One batch with every row of the group and the group's count.
    fn fill_batch(&mut self, group: &Group) -> Result<fjall::OwnedWriteBatch, String> {
        let rows = group.appends.iter().map(|append| append.events.len() + append.entries.len()).sum::<usize>();
        let batch = fjall::OwnedWriteBatch::with_capacity(self.database.clone(), 2 * rows + group.marks.len() + 8)
            .durability(Some(fjall::PersistMode::SyncData));
        let mut rows = Rows { batch, tables: &self.tables, scratch: &mut self.scratch };
        rows.appends(&group.appends);
        rows.inboxes(group);
        if !group.marks.is_empty() {
            let view = EmbeddedView::take(&self.database, &self.tables);
            for write in &group.marks {
                let stored = view.marks(write.chat_id, write.user_id).map_err(|error| error.to_string())?;
                rows.marks(write, &merge(stored, write.row));
            }
        }
        rows.rest(group);
        rows.batch.insert(&self.tables.meta, tables::META_GROUPS, &layout::u64_value(self.groups + 1)[..]);
        rows.batch.insert(&self.tables.meta, tables::META_FLOOR, &layout::u64_value(self.database.seqno())[..]);
        Ok(rows.batch)
    }
}

/// What the engine's keys hold; the writer's own limits are far below.
const UNIQUE_KEY_BYTES_MAX: usize = u16::MAX as usize;

/// Marks only rise; the mute is the newest.
fn merge(stored: MarkRow, new: MarkRow) -> MarkRow {
    let read = if stored.read_seq > new.read_seq { stored } else { new };
    MarkRow {
        delivered_seq: stored.delivered_seq.max(new.delivered_seq),
        read_seq: read.read_seq,
        read_ordinal: read.read_ordinal,
        read_sent: read.read_sent,
        muted_until_ms: new.muted_until_ms,
    }
}

/// Room on the file system of a directory, bytes.
fn free_bytes(dir: &std::path::Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A batch that is being filled.
struct Rows<'a> {
    batch: fjall::OwnedWriteBatch,
    tables: &'a Tables,
    scratch: &'a mut Vec<u8>,
}

impl Rows<'_> {
    /// Events and all that follows from them, each table's rows in the order of their keys: neighbours in the engine's
    /// memory are then touched one after the other.
    fn appends(&mut self, appends: &[Append]) {
        let tables = self.tables;
        let mut events = Vec::with_capacity(appends.len());
        let mut commands = Vec::with_capacity(appends.len());
        for append in appends {
            events.extend(append.events.iter().map(|event| (layout::event_key(append.chat_id, event.seq), event)));
            commands.extend(append.commands.iter().map(|command| (layout::command_key(&command.name), command)));
            self.rare(append);
        }
        events.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        commands.sort_unstable_by_key(|command| command.0);
        for (key, event) in events {
            layout::checked(event, self.scratch);
            self.batch.insert(&tables.events, &*key, &self.scratch[..]);
        }
        for (key, command) in commands {
            self.scratch.clear();
            layout::put_command(command, self.scratch);
            self.batch.insert(&tables.commands, &key[..], &self.scratch[..]);
        }
    }

    /// What few appends have.
    fn rare(&mut self, append: &Append) {
        let tables = self.tables;
        for (user_id, row) in &append.members {
            layout::checked(row, self.scratch);
            let by_chat = layout::member_key(append.chat_id, *user_id);
            self.batch.insert(&tables.members, &by_chat[..], &self.scratch[..]);
            let by_user = layout::user_chat_key(*user_id, append.chat_id);
            self.batch.insert(&tables.chats_of_user, &by_user[..], &self.scratch[..]);
        }
        if let Some(checkpoint) = &append.checkpoint {
            layout::checked(checkpoint, self.scratch);
            self.batch.insert(&tables.checkpoints, &layout::chat_key(append.chat_id)[..], &self.scratch[..]);
        }
    }

    /// The entries of appends and of changes of own state, those of each inbox in runs.
    fn inboxes(&mut self, group: &Group) {
        let appended = group.appends.iter().flat_map(|append| &append.entries);
        let appended = appended.map(|entry| (layout::inbox_key(entry.user_id, entry.inbox_seq), entry.row));
        let own = group.marks.iter().filter_map(|write| {
            let key = layout::inbox_key(write.user_id, write.inbox_seq?);
            Some((key, EntryRow::Own { chat_id: write.chat_id }))
        });
        let mut entries: Vec<_> = appended.chain(own).collect();
        entries.sort_unstable_by_key(|entry| entry.0);
        let mut rest = &entries[..];
        while let Some(((first, _), _)) = rest.split_first() {
            let next = rest.windows(2).position(|pair| !layout::follows(&pair[0].0, &pair[1].0));
            let (run, after) = rest.split_at(next.map_or(rest.len(), |last| last + 1).min(runs::RUN_ENTRIES_MAX));
            self.scratch.clear();
            runs::put_run(run.iter().map(|(_, row)| *row), self.scratch);
            self.batch.insert(&self.tables.inbox, &first[..], &self.scratch[..]);
            rest = after;
        }
    }

    fn marks(&mut self, write: &MarkWrite, row: &MarkRow) {
        let key = layout::member_key(write.chat_id, write.user_id);
        self.batch.insert(&self.tables.marks, &key[..], &layout::marks_value(row)[..]);
    }

    /// What is rare.
    fn rest(&mut self, group: &Group) {
        let tables = self.tables;
        for (partition, epoch) in &group.opened {
            self.batch.insert(&tables.partitions, &partition.to_be_bytes()[..], &layout::u64_value(*epoch)[..]);
        }
        for user in &group.users {
            layout::checked(user, self.scratch);
            self.batch.insert(&tables.users, &layout::user_key(user.user_id)[..], &self.scratch[..]);
        }
        for (key, value) in &group.uniques {
            self.batch.insert(&tables.uniques, key.as_bytes(), &layout::u128_value(*value)[..]);
        }
        if let Some(records) = &group.meta {
            layout::checked(records, self.scratch);
            self.batch.insert(&tables.meta, tables::META_RECORDS, &self.scratch[..]);
        }
    }
}

impl Store for EmbeddedStore {
    fn submit(&mut self, op: OpId, request: StoreRequest) {
        match request {
            StoreRequest::Commit(group) => self.commit(op, &group),
            load => {
                let result = self.load(&load);
                self.metrics.loads.add(1);
                self.done.push((op, result));
            }
        }
    }

    fn completions(&mut self, done: &mut Vec<(OpId, StoreResult)>) {
        done.append(&mut self.done);
        self.recorder.completions(done);
    }
}
