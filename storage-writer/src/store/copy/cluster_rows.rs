//! The rows of the embedded store as rows of a cluster: which partition each lies in, what of it is written together,
//! and how it is asked for again. All of it follows from the source alone, so writing it twice changes nothing.
//!
//! Rows have epoch 0, below every writer's. An event counts as an append of its own: everything before it is derived.
//! The newest event of a chat carries a `redo` that names nothing: a taker that finds the chat in a list of work, whose
//! own append never arrived, derives that one again under its epoch.

use super::source::{Chunk, Record, Source, Table};
use super::{CopyError, Sum};
use parley_protocol::{ChatId, UserId};
use storage_core::cql::redo::Redo;
use storage_core::cql::rows::{
    Change, ChatStateRow, EventRow, INBOX_BUCKET, LEVEL_CREATIONS, Partition, Read, Row, Write, command_bucket,
    command_level, inbox_bucket, seq_bucket, timestamp,
};
use storage_core::store::{CommandRow, ReadError, View};

/// The one partition set.
pub(super) const SET: u16 = 0;
/// Rows in one write, and in one read; names in one read are bounded by the same.
const ROWS_MAX: usize = 64;
/// A write ends with the row that brings it here, bytes. ScyllaDB and Cassandra refuse batches of 1 MiB.
const WRITE_BYTES: usize = 96 << 10;
/// Of every row: a writer's are higher from its first epoch on.
pub(super) const TIMESTAMP: i64 = timestamp(0, 1);

/// Rows of one partition that are written, and read back, together.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rows {
    pub(super) partition: Partition,
    pub(super) rows: Vec<Row>,
    bytes: usize,
}

/// Where a command's name lies.
fn command_partition(row: &CommandRow) -> Partition {
    let (scope, level) = match row.name.chat_id {
        ChatId(0) => (u128::from(row.name.sender.0), LEVEL_CREATIONS),
        chat_id => (chat_id.0, command_level(row.seq)),
    };
    Partition::Commands { scope, level, bucket: command_bucket(level, row.name.client_msg_id) }
}

/// The rows of a chunk, gathered by partition; none for what only the embedded store has.
pub(super) fn rows_of(source: &Source, table: Table, chunk: &Chunk) -> Result<Vec<Rows>, CopyError> {
    let mut rows = Vec::with_capacity(chunk.rows.len());
    let mut records = source.read(table, chunk).peekable();
    while let Some(record) = records.next() {
        let record = record?;
        let newest = match (&record, records.peek()) {
            (Record::Event(event), Some(Ok(Record::Event(next)))) => event.chat_id != next.chat_id,
            (Record::Event(event), None) if !chunk.last => {
                let next = source.view.event(event.chat_id, event.seq + 1);
                next.map_err(|error| source.damaged(&error.to_string()))?.is_none()
            }
            _ => true,
        };
        put_rows(source, record, newest, &mut rows)?;
    }
    if table == Table::Commands {
        // Their order in the source is that of nothing.
        rows.sort_by(|one: &(Partition, Row), other| one.0.cmp(&other.0));
    }
    Ok(gather(rows))
}

/// `newest`: of an event, whether it is the newest of its chat.
fn put_rows(source: &Source, record: Record, newest: bool, rows: &mut Vec<(Partition, Row)>) -> Result<(), CopyError> {
    let damaged = |error: ReadError| source.damaged(&error.to_string());
    let row = match record {
        Record::Event(event) => {
            let (chat_id, seq) = (event.chat_id, event.seq);
            let redo = if newest { Redo::default().encode() } else { Vec::new() };
            let row = EventRow { event: *event, epoch: 0, derived_through: seq - 1, redo };
            (Partition::Events { chat_id, bucket: seq_bucket(seq) }, Row::Event(row))
        }
        Record::Run { user_id, first, rows: run } => {
            for (inbox_seq, row) in (first..).zip(run) {
                let bucket = inbox_bucket(inbox_seq);
                if bucket > 0 && inbox_bucket(inbox_seq - 1) < bucket {
                    // Asked once a bucket: whether it is the newest.
                    let next = u64::from(bucket + 1) * INBOX_BUCKET;
                    if source.view.entries(user_id, next, 1).map_err(damaged)?.is_empty() {
                        rows.push((Partition::InboxState { user_id }, Row::InboxState { bucket, epoch: 0 }));
                    }
                }
                rows.push((Partition::Inbox { user_id, bucket }, Row::Entry { inbox_seq, row, epoch: 0 }));
            }
            return Ok(());
        }
        Record::Command(row) => (command_partition(&row), Row::Command(row)),
        Record::Member { chat_id, user_id, row } => (Partition::Members { chat_id }, Row::Member { user_id, row }),
        Record::Membership { user_id, chat_id, row } => {
            (Partition::Memberships { user_id }, Row::Membership { chat_id, row })
        }
        Record::Mark { chat_id, user_id, row } => (Partition::Marks { chat_id }, Row::Mark { user_id, row }),
        Record::Checkpoint { chat_id, checkpoint } => {
            // There is a checkpoint whenever the members change, so those of now are those of then.
            let present = source.view.member_count(chat_id).map_err(damaged)?;
            let row = ChatStateRow { slot: 0, epoch: 0, checkpoint, present };
            (Partition::ChatState { chat_id }, Row::ChatState(row))
        }
        Record::User(row) => (Partition::User { user_id: row.user_id }, Row::User(row)),
        Record::Unique { key, value } => (Partition::Unique { key }, Row::Unique { value }),
        Record::Opened => return Ok(()),
        Record::Meta(meta) => {
            let (home_epoch, gateway) = (meta.home_epoch, meta.gateway);
            let row = Row::Meta { home_epoch, gateway, ids_reserved_until_ms: meta.ids_reserved_until_ms };
            (Partition::Meta { set: SET }, row)
        }
    };
    rows.push(row);
    Ok(())
}

/// Gathers rows of one partition after the other; `rows` lie side by side where partitions do, or are sorted first.
fn gather(rows: Vec<(Partition, Row)>) -> Vec<Rows> {
    let mut gathered: Vec<Rows> = Vec::new();
    for (partition, row) in rows {
        let bytes = bytes(&row);
        match gathered.last_mut() {
            Some(last) if last.partition == partition && last.rows.len() < ROWS_MAX && last.bytes < WRITE_BYTES => {
                last.rows.push(row);
                last.bytes += bytes;
            }
            _ => gathered.push(Rows { partition, rows: vec![row], bytes }),
        }
    }
    gathered
}

/// Names of the tables, in the order of [`Rows::table`].
pub(super) const TABLES: [&str; 11] = [
    "meta",
    "events",
    "chat_state",
    "members",
    "marks",
    "commands",
    "users",
    "inbox_state",
    "inbox",
    "memberships",
    "unique_keys",
];

/// About how much a row takes.
fn bytes(row: &Row) -> usize {
    match row {
        Row::Event(row) => 256 + row.event.envelope.body.len() + row.redo.len(),
        Row::ChatState(row) => 128 + row.checkpoint.title.len() + 16 * row.checkpoint.sent.len(),
        Row::Member { row, .. } | Row::Membership { row, .. } => 64 + 32 * row.intervals.len(),
        _ => 128,
    }
}

impl Rows {
    /// As one statement.
    pub(super) fn write(&self) -> Write {
        Write { partition: self.partition.clone(), change: Change::Put(self.rows.clone()), timestamp: TIMESTAMP }
    }

    /// In whose table of sums they are counted.
    pub(super) fn table(&self) -> usize {
        match &self.partition {
            Partition::Meta { .. } => 0,
            Partition::Events { .. } => 1,
            Partition::ChatState { .. } => 2,
            Partition::Members { .. } => 3,
            Partition::Marks { .. } => 4,
            Partition::Commands { .. } => 5,
            Partition::User { .. } => 6,
            Partition::InboxState { .. } => 7,
            Partition::Inbox { .. } => 8,
            Partition::Memberships { .. } => 9,
            Partition::Unique { .. } => 10,
            Partition::Work { .. } => unreachable!("a stopped store has no work in flight"),
        }
    }

    /// The sum of rows of this partition, those of the source or those that were read.
    pub(super) fn sum(&self, rows: &[Row]) -> Sum {
        let key = format!("{:?}", self.partition);
        let mut sum = Sum::default();
        for row in rows {
            // Every column is in it, and nothing but the columns.
            sum.add(key.as_bytes(), format!("{row:?}").as_bytes());
        }
        sum
    }

    /// Asks for these rows, and for whatever else lies between them.
    pub(super) fn read(&self) -> Read {
        let limit = self.rows.len() as u32 + 1;
        let numbers = || {
            let number = |row: &Row| match row {
                Row::Event(row) => row.event.seq,
                Row::Entry { inbox_seq, .. } => *inbox_seq,
                other => unreachable!("{other:?} has no number"),
            };
            (number(&self.rows[0]), self.rows.last().map_or(0, number))
        };
        let users = || self.rows.iter().filter_map(user_of).collect::<Vec<UserId>>();
        match &self.partition {
            Partition::Events { chat_id, bucket } => {
                let (from, to) = numbers();
                Read::Events { chat_id: *chat_id, bucket: *bucket, from, to, limit, newest_first: false }
            }
            Partition::Inbox { user_id, bucket } => {
                let (from, to) = numbers();
                Read::Entries { user_id: *user_id, bucket: *bucket, from, to, limit, newest_first: false }
            }
            Partition::Members { chat_id } => {
                let after = users()[0].0.checked_sub(1).map(UserId);
                Read::Members { chat_id: *chat_id, after, limit: limit - 1 }
            }
            Partition::Marks { chat_id } => Read::Marks { chat_id: *chat_id, users: users() },
            Partition::Memberships { user_id } => {
                let first = self.rows.iter().find_map(|row| match row {
                    Row::Membership { chat_id, .. } => Some(*chat_id),
                    _ => None,
                });
                let after = first.and_then(|chat_id| chat_id.0.checked_sub(1)).map(ChatId);
                Read::Memberships { user_id: *user_id, after, limit: limit - 1 }
            }
            Partition::Commands { scope, level, bucket } => {
                let names = self.rows.iter().filter_map(|row| match row {
                    Row::Command(row) => Some((row.name.sender, row.name.client_msg_id)),
                    _ => None,
                });
                Read::Commands { scope: *scope, level: *level, bucket: *bucket, names: names.collect() }
            }
            other => Read::All(other.clone()),
        }
    }
}

fn user_of(row: &Row) -> Option<UserId> {
    match row {
        Row::Member { user_id, .. } | Row::Mark { user_id, .. } => Some(*user_id),
        _ => None,
    }
}
