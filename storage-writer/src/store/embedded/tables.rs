//! The engine's keyspaces and how each is tuned. Keys are only ever added or overwritten: no clear, no FIFO, no weak
//! tombstones.

use super::EmbeddedOptions;
use fjall::config::{
    BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry, PinningPolicy, RestartIntervalPolicy,
};
use fjall::{Database, Keyspace, KeyspaceCreateOptions};
use std::path::Path;
use std::sync::Arc;

/// Rows of `meta`.
pub(crate) const META_RECORDS: &[u8] = b"records";
/// Groups over the life of the store; the high-water record's counterpart.
pub(crate) const META_GROUPS: &[u8] = b"groups";
/// The engine's sequence number right before the group that writes it: a bound for the group's own, which the journal
/// does not protect by a checksum.
pub(crate) const META_FLOOR: &[u8] = b"floor";
/// Keyspaces beside the engine's own, which is number 0; they are numbered in the order in which they are made.
pub(crate) const KEYSPACES: u64 = 11;
/// The number of `meta`.
pub(crate) const META_KEYSPACE: u64 = 11;
/// The store's own id, which the high-water record carries too.
pub(crate) const META_STORE: &[u8] = b"store";

/// How a table is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// By key, and mostly for keys that are not there: the hot path of every message.
    Misses,
    /// By key, for keys that are there.
    Hits,
    /// By range only.
    Ranges,
    /// Few rows.
    Small,
}

/// All keyspaces of a store.
pub(crate) struct Tables {
    /// chat, seq -> event.
    pub(crate) events: Keyspace,
    /// user, inbox_seq -> entry.
    pub(crate) inbox: Keyspace,
    /// chat, sender, client_msg_id -> what the command did.
    pub(crate) commands: Keyspace,
    /// chat, user -> membership.
    pub(crate) members: Keyspace,
    /// user, chat -> the same membership.
    pub(crate) chats_of_user: Keyspace,
    /// chat, user -> marks.
    pub(crate) marks: Keyspace,
    /// chat -> checkpoint.
    pub(crate) checkpoints: Keyspace,
    /// user -> row.
    pub(crate) users: Keyspace,
    /// text -> number.
    pub(crate) uniques: Keyspace,
    /// partition -> home epoch.
    pub(crate) partitions: Keyspace,
    /// The store's own records.
    pub(crate) meta: Keyspace,
}

impl Tables {
    /// Opens the engine and all keyspaces, and makes those that are missing.
    pub(crate) fn open(path: &Path, options: &EmbeddedOptions) -> fjall::Result<(Database, Arc<Self>)> {
        let database = Database::builder(path)
            .cache_size(options.cache_bytes)
            .journal_compression(fjall::CompressionType::None)
            .max_journaling_size(options.journal_bytes_max)
            .worker_threads(options.worker_threads)
            .manual_journal_persist(true)
            .open()?;
        let open = |name: &str, used: Use| database.keyspace(name, || create_options(used, options));
        let tables = Self {
            events: open("events", Use::Hits)?,
            inbox: open("inbox", Use::Ranges)?,
            commands: open("commands", Use::Misses)?,
            members: open("members", Use::Hits)?,
            chats_of_user: open("chats_of_user", Use::Ranges)?,
            marks: open("marks", Use::Hits)?,
            checkpoints: open("checkpoints", Use::Misses)?,
            users: open("users", Use::Hits)?,
            uniques: open("uniques", Use::Misses)?,
            partitions: open("partitions", Use::Small)?,
            meta: open("meta", Use::Small)?,
        };
        assert!(tables.meta.path().ends_with(META_KEYSPACE.to_string()), "keyspaces are made in the order above");
        Ok((database, Arc::new(tables)))
    }
}

fn create_options(used: Use, options: &EmbeddedOptions) -> KeyspaceCreateOptions {
    let bloom = |bits: f32| FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(bits));
    let base = KeyspaceCreateOptions::default()
        .manual_journal_persist(true)
        .max_memtable_size(options.memtable_bytes)
        .data_block_restart_interval_policy(RestartIntervalPolicy::all(16))
        .data_block_compression_policy(CompressionPolicy::new([
            fjall::CompressionType::None,
            fjall::CompressionType::None,
            fjall::CompressionType::Lz4,
        ]));
    match used {
        Use::Misses => base
            .filter_policy(FilterPolicy::new([bloom(14.0), bloom(12.0)]))
            .filter_block_pinning_policy(PinningPolicy::new([true, true, true, false])),
        Use::Hits => base.filter_policy(FilterPolicy::new([bloom(10.0)])).expect_point_read_hits(true),
        Use::Ranges => base.filter_policy(FilterPolicy::disabled()),
        Use::Small => base.max_memtable_size(1024 * 1024),
    }
}
