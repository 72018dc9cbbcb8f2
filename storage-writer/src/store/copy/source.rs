//! The store that is copied: held, whole, read in chunks of bounded size in the order of its keys, each row proven.

use super::CopyError;
use crate::store::embedded::files::LOCK_FILE;
use crate::store::embedded::layout::{self, Damage};
use crate::store::embedded::open::{Held, hold};
use crate::store::embedded::runs::Run;
use crate::store::embedded::tables::{META_RECORDS, Tables};
use crate::store::embedded::{EmbeddedOptions, EmbeddedView, OpenError};
use fjall::Keyspace;
use parley_protocol::{ChatId, Event, UserId};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use storage_core::store::{Checkpoint, CommandRow, EntryRow, MarkRow, MemberRow, Meta, ReadError, UserRow};

/// A chunk ends with the row that brings it here; a run counts as its entries.
const CHUNK_ROWS: u64 = 8_192;
/// A chunk ends with the row that brings it here, bytes.
const CHUNK_BYTES: usize = 4 << 20;
/// Above every key: numbers are at most 44 bytes, and text holds no 0xff.
const ABOVE_ALL: [u8; 48] = [0xff; 48];

/// The tables, in the order in which they are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    Events,
    Inbox,
    Commands,
    Members,
    ChatsOfUser,
    Marks,
    Checkpoints,
    Users,
    Uniques,
    Partitions,
    Records,
}

impl Table {
    pub(super) const ALL: [Table; 11] = [
        Table::Events,
        Table::Inbox,
        Table::Commands,
        Table::Members,
        Table::ChatsOfUser,
        Table::Marks,
        Table::Checkpoints,
        Table::Users,
        Table::Uniques,
        Table::Partitions,
        Table::Records,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Table::Events => "events",
            Table::Inbox => "inbox",
            Table::Commands => "commands",
            Table::Members => "members",
            Table::ChatsOfUser => "chats_of_user",
            Table::Marks => "marks",
            Table::Checkpoints => "checkpoints",
            Table::Users => "users",
            Table::Uniques => "uniques",
            Table::Partitions => "partitions",
            Table::Records => "records",
        }
    }

    pub(super) fn keyspace(self, tables: &Tables) -> &Keyspace {
        match self {
            Table::Events => &tables.events,
            Table::Inbox => &tables.inbox,
            Table::Commands => &tables.commands,
            Table::Members => &tables.members,
            Table::ChatsOfUser => &tables.chats_of_user,
            Table::Marks => &tables.marks,
            Table::Checkpoints => &tables.checkpoints,
            Table::Users => &tables.users,
            Table::Uniques => &tables.uniques,
            Table::Partitions => &tables.partitions,
            Table::Records => &tables.meta,
        }
    }

    /// Whether its keys begin with bytes that are spread evenly, so that a key says how much of the table lies below.
    fn is_spread(self) -> bool {
        !matches!(self, Table::Uniques | Table::Partitions | Table::Records)
    }

    /// Rows above `after` up to `to`, in order.
    pub(super) fn scan(
        self,
        view: &EmbeddedView,
        after: Option<&[u8]>,
        to: Option<&[u8]>,
        visit: impl FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Damage>,
    ) -> Result<(), ReadError> {
        let above_all = if self == Table::Records { META_RECORDS } else { &ABOVE_ALL };
        let low = match after {
            // The least key above another is the same with a zero behind it.
            Some(after) => [after, &[0]].concat(),
            None if self == Table::Records => META_RECORDS.to_vec(),
            None => Vec::new(),
        };
        let high = to.unwrap_or(above_all);
        if *low > *high {
            return Ok(());
        }
        view.scan(self.keyspace(view.tables()), &low[..]..=high, false, visit)
    }
}

/// A row as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RawRow {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

/// Neighbouring rows of one table.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) rows: Vec<RawRow>,
    /// The table ends here.
    pub(super) last: bool,
}

impl Chunk {
    pub(super) fn last_key(&self) -> Option<&[u8]> {
        self.rows.last().map(|row| &row.key[..])
    }
}

/// A row in its own terms.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Record {
    Event(Box<Event>),
    /// Entries of an inbox that follow each other.
    Run {
        user_id: UserId,
        first: u64,
        rows: Vec<EntryRow>,
    },
    Command(CommandRow),
    Member {
        chat_id: ChatId,
        user_id: UserId,
        row: MemberRow,
    },
    Membership {
        user_id: UserId,
        chat_id: ChatId,
        row: MemberRow,
    },
    Mark {
        chat_id: ChatId,
        user_id: UserId,
        row: MarkRow,
    },
    Checkpoint {
        chat_id: ChatId,
        checkpoint: Checkpoint,
    },
    User(UserRow),
    Unique {
        key: String,
        value: u128,
    },
    /// A partition's home epoch: the embedded store's own.
    Opened,
    Meta(Meta),
}

/// Reads a row; what does not decode is damage.
pub(super) fn read(table: Table, RawRow { key, value }: &RawRow) -> Result<Record, Damage> {
    let form = Damage::Form;
    Ok(match table {
        Table::Events => {
            let at = layout::parse_event_key(key).ok_or(form)?;
            let event = layout::parse_checked::<Event>(value)?;
            // The checksum does not cover the key.
            if (event.chat_id, event.seq) != at {
                return Err(form);
            }
            Record::Event(Box::new(event))
        }
        Table::Inbox => {
            let (user_id, first) = layout::parse_inbox_key(key).ok_or(form)?;
            let run = Run::parse(value)?;
            run.last(first)?;
            Record::Run { user_id, first, rows: run.rows().collect() }
        }
        Table::Commands => {
            let name = layout::parse_command_key(key).ok_or(form)?;
            Record::Command(layout::parse_command(name, value)?)
        }
        Table::Members => {
            let (chat_id, user_id) = layout::parse_member_key(key).ok_or(form)?;
            Record::Member { chat_id, user_id, row: layout::parse_checked(value)? }
        }
        Table::ChatsOfUser => {
            let (user_id, chat_id) = layout::parse_user_chat_key(key).ok_or(form)?;
            Record::Membership { user_id, chat_id, row: layout::parse_checked(value)? }
        }
        Table::Marks => {
            let (chat_id, user_id) = layout::parse_member_key(key).ok_or(form)?;
            Record::Mark { chat_id, user_id, row: layout::parse_marks(value)? }
        }
        Table::Checkpoints => {
            let chat_id = layout::parse_chat_key(key).ok_or(form)?;
            Record::Checkpoint { chat_id, checkpoint: layout::parse_checked(value)? }
        }
        Table::Users => {
            let row = layout::parse_checked::<UserRow>(value)?;
            if layout::user_key(row.user_id)[..] != key[..] {
                return Err(form);
            }
            Record::User(row)
        }
        Table::Uniques => {
            let key = String::from_utf8(key.clone()).map_err(|_| form)?;
            Record::Unique { key, value: layout::parse_u128(value)? }
        }
        Table::Partitions => layout::parse_u64(value).map(|_| Record::Opened)?,
        Table::Records => Record::Meta(layout::parse_checked(value)?),
    })
}

/// Where the walk through rows that are numbered densely from 1 stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Walk(Option<(u128, u64)>);

impl Walk {
    fn scope(table: Table, key: &[u8]) -> Option<(u128, u64)> {
        match table {
            Table::Events => layout::parse_event_key(key).map(|(chat_id, seq)| (chat_id.0, seq)),
            Table::Inbox => layout::parse_inbox_key(key).map(|(user_id, number)| (u128::from(user_id.0), number)),
            _ => None,
        }
    }

    /// Takes a row; the number that it should have where it has another.
    fn step(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), u64> {
        let Some((scope, number)) = Self::scope(table, key) else { return Ok(()) };
        let expected = match self.0 {
            Some((before, last)) if before == scope => last + 1,
            _ => 1,
        };
        self.0 = Some((scope, number.saturating_add(numbers_of(table, value) - 1)));
        if number == expected { Ok(()) } else { Err(expected) }
    }
}

/// How many numbers a row takes. One that does not decode is named where it is read.
fn numbers_of(table: Table, value: &[u8]) -> u64 {
    if table == Table::Inbox { Run::parse(value).map_or(1, |run| run.entries) } else { 1 }
}

/// A stopped store, held for as long as this lives.
pub(super) struct Source {
    pub(super) data_dir: PathBuf,
    pub(super) view: EmbeddedView,
    /// Its own id.
    pub(super) store: u128,
    /// Groups over its life: they rise at every start and every write, so they say whether it is as it was.
    pub(super) groups: u64,
    /// About how many rows each table has.
    weights: [u64; Table::ALL.len()],
    _held: Held,
}

impl Source {
    /// Takes the lock and proves what an opening proves, and the checksum of every table's blocks.
    pub(super) fn open(data_dir: &Path) -> Result<Self, CopyError> {
        if !data_dir.is_dir() {
            let what = if data_dir.exists() { "is not a directory" } else { "no such directory" };
            return Err(CopyError::Wrong(format!("--from-data {}: {what}", data_dir.display())));
        }
        let nothing = || CopyError::Wrong(format!("--from-data {}: there is no store in it", data_dir.display()));
        if !data_dir.join("schema").exists() && !data_dir.join("engine").exists() {
            return Err(nothing());
        }
        let held = hold(data_dir, &EmbeddedOptions::default()).map_err(|error| match error {
            OpenError::InUse { lock, holder } => {
                CopyError::Running { lock, holder: if holder.is_empty() { "a process".to_owned() } else { holder } }
            }
            error => CopyError::Open(error),
        })?;
        if !held.damaged_tables.is_empty() {
            return Err(damage(data_dir, &held.damaged_tables.join("\n")));
        }
        let unreadable = |error: ReadError| damage(data_dir, &error.to_string());
        let view = held.view.clone();
        let store = view.store_id().map_err(unreadable)?.unwrap_or_default();
        let groups = view.groups().map_err(unreadable)?.unwrap_or_default();
        let weights = Table::ALL.map(|table| table.keyspace(view.tables()).approximate_len() as u64);
        Ok(Self { data_dir: data_dir.to_owned(), view, store, groups, weights, _held: held })
    }

    /// The rows of a table above `after`, as many as a chunk holds; each decodes, and none is missing between them.
    pub(super) fn chunk(&self, table: Table, after: Option<&[u8]>) -> Result<Chunk, CopyError> {
        let (mut rows, mut numbers, mut bytes, mut last) = (Vec::new(), 0, 0, true);
        let scanned = table.scan(&self.view, after, None, |key, value| {
            if numbers >= CHUNK_ROWS || bytes >= CHUNK_BYTES {
                last = false;
                return Ok(ControlFlow::Break(()));
            }
            numbers += numbers_of(table, value);
            bytes += key.len() + value.len();
            rows.push(RawRow { key: key.to_vec(), value: value.to_vec() });
            Ok(ControlFlow::Continue(()))
        });
        scanned.map_err(|error| damage(&self.data_dir, &error.to_string()))?;
        let mut walk = self.walk_from(table, after)?;
        for row in &rows {
            walk.step(table, &row.key, &row.value).map_err(|expected| {
                let what = format!("{}: number {expected} should be there before it", place(table, row));
                damage(&self.data_dir, &what)
            })?;
        }
        Ok(Chunk { rows, last })
    }

    /// Where the walk stands behind a row.
    fn walk_from(&self, table: Table, after: Option<&[u8]>) -> Result<Walk, CopyError> {
        let Some((key, (scope, first))) = after.and_then(|key| Some((key, Walk::scope(table, key)?))) else {
            return Ok(Walk::default());
        };
        let mut last = first;
        let scanned = self.view.scan(table.keyspace(self.view.tables()), key..=key, false, |_, value| {
            last = first.saturating_add(numbers_of(table, value) - 1);
            Ok(ControlFlow::Break(()))
        });
        scanned.map_err(|error| damage(&self.data_dir, &error.to_string()))?;
        Ok(Walk(Some((scope, last))))
    }

    /// Damage in it, in words.
    pub(super) fn damaged(&self, what: &str) -> CopyError {
        damage(&self.data_dir, what)
    }

    /// The rows of a chunk in their own terms.
    pub(super) fn read<'a>(
        &'a self,
        table: Table,
        chunk: &'a Chunk,
    ) -> impl Iterator<Item = Result<Record, CopyError>> + 'a {
        chunk.rows.iter().map(move |row| {
            read(table, row).map_err(|found| damage(&self.data_dir, &format!("{}: {found}", place(table, row))))
        })
    }

    /// How much of all rows lies at or below a key of a table: 0 to 1, about.
    pub(super) fn share(&self, table: Table, key: Option<&[u8]>) -> f64 {
        let at = Table::ALL.iter().position(|other| *other == table).expect("all tables are there");
        let all = self.weights.iter().sum::<u64>().max(1) as f64;
        let before = self.weights[..at].iter().sum::<u64>() as f64;
        let head = key.and_then(|key| key.first_chunk::<4>()).filter(|_| table.is_spread());
        let within = head.map_or(0.0, |head| f64::from(u32::from_be_bytes(*head)) / f64::from(u32::MAX));
        (before + within * self.weights[at] as f64) / all
    }
}

/// Files that a data directory may hold without being a store.
pub(super) fn is_no_part_of_a_store(name: &str) -> bool {
    [LOCK_FILE, "dev-key.json", "ticket.key", "lost+found"].contains(&name)
}

fn place(table: Table, row: &RawRow) -> String {
    let key: String = row.key.iter().map(|byte| format!("{byte:02x}")).collect();
    let told = match table {
        Table::Events => layout::parse_event_key(&row.key).map(|(chat, seq)| format!("chat {chat}, seq {seq}")),
        Table::Inbox => layout::parse_inbox_key(&row.key).map(|(user, no)| format!("user {user}, entry {no}")),
        _ => None,
    };
    format!("table {}, {}", table.name(), told.unwrap_or_else(|| format!("key {key}")))
}

fn damage(data_dir: &Path, what: &str) -> CopyError {
    CopyError::Damaged { data_dir: data_dir.to_owned(), what: what.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::runs;

    #[test]
    fn a_hole_in_numbered_rows_is_named() {
        let key = |chat, seq| layout::event_key(ChatId(chat), seq).to_vec();
        let mut walk = Walk::default();
        for (key, says) in [
            (key(1, 1), Ok(())),
            (key(1, 2), Ok(())),
            (key(1, 4), Err(3)),
            (key(1, 5), Ok(())),
            (key(2, 1), Ok(())),
            (key(3, 2), Err(1)),
        ] {
            assert_eq!(walk.step(Table::Events, &key, &[]), says);
        }
        let mut run = Vec::new();
        runs::put_run([4, 5, 6].into_iter().map(|seq| EntryRow::Event { chat_id: ChatId(1), seq }), &mut run);
        let key = |number| layout::inbox_key(UserId(1), number);
        let mut walk = Walk::default();
        for (number, says) in [(1, Ok(())), (4, Ok(())), (8, Err(7)), (9, Err(11)), (12, Ok(()))] {
            assert_eq!(walk.step(Table::Inbox, &key(number), &run), says, "{number}");
        }
    }

    #[test]
    fn rows_that_do_not_fit_their_key_are_damage() {
        let row = UserRow { user_id: UserId(7), ..empty_user() };
        let mut value = Vec::new();
        layout::checked(&row, &mut value);
        let good = RawRow { key: layout::user_key(UserId(7)).to_vec(), value: value.clone() };
        assert_eq!(read(Table::Users, &good), Ok(Record::User(row)));
        let moved = RawRow { key: layout::user_key(UserId(8)).to_vec(), value };
        assert_eq!(read(Table::Users, &moved), Err(Damage::Form));
    }

    fn empty_user() -> UserRow {
        UserRow { user_id: UserId(0), name: String::new(), issuer: String::new(), subject: String::new() }
    }
}
