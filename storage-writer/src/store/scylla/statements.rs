//! Statements as they are prepared, and which of them answers a read. What columns hold says `values.rs`.

use super::tables::{Column, LEASES, TableId};
use super::values::{TooLarge, command_name, partition_key, partition_of, table_of};
use parley_protocol::UserId;
use scylla::client::session::Session;
use scylla::errors::PrepareError;
use scylla::statement::Consistency;
use scylla::statement::prepared::PreparedStatement;
use scylla::value::CqlValue;
use storage_core::cql::rows::Read;

/// Rows of one page. Events can have a payload of 256 KiB, the others are small.
const PAGE_ROWS: i32 = 2_048;
const PAGE_EVENTS: i32 = 128;

/// Of one table.
pub(super) struct OfTable {
    pub(super) insert: PreparedStatement,
    pub(super) delete: PreparedStatement,
    pub(super) all: PreparedStatement,
}

/// Of the lease.
pub(super) struct OfLease {
    pub(super) read: PreparedStatement,
    pub(super) create: PreparedStatement,
    pub(super) change: PreparedStatement,
}

/// Everything that is ever asked on the way of a message.
pub(super) struct Prepared {
    pub(super) tables: Vec<OfTable>,
    pub(super) lease: OfLease,
    events: Range,
    entries: Range,
    senders: PreparedStatement,
    member: PreparedStatement,
    members: PreparedStatement,
    memberships: PreparedStatement,
    marks: PreparedStatement,
    commands: PreparedStatement,
}

/// Both directions of a range with a limit.
struct Range {
    oldest_first: PreparedStatement,
    newest_first: PreparedStatement,
}

async fn prepare(session: &Session, text: String, page_rows: i32) -> Result<PreparedStatement, PrepareError> {
    let mut prepared = session.prepare(text).await?;
    prepared.set_is_idempotent(true);
    prepared.set_page_size(page_rows);
    Ok(prepared)
}

impl Prepared {
    pub(super) async fn new(session: &Session, keyspace: &str) -> Result<Self, PrepareError> {
        let mut tables = Vec::new();
        for id in TableId::ALL {
            let (table, page) = (id.table(), page_rows(id));
            let all = table.select(keyspace, &table.read_columns(), "");
            tables.push(OfTable {
                insert: prepare(session, table.insert(keyspace), page).await?,
                delete: prepare(session, table.delete(keyspace), page).await?,
                all: prepare(session, all, page).await?,
            });
        }
        let select = async |id: TableId, rest: &str| {
            let table = id.table();
            let text = table.select(keyspace, &table.read_columns(), rest);
            prepare(session, text, page_rows(id)).await
        };
        let range = async |id: TableId, number: &str| {
            let within = format!(" AND {number} >= ? AND {number} <= ?");
            Ok::<Range, PrepareError>(Range {
                oldest_first: select(id, &format!("{within} LIMIT ?")).await?,
                newest_first: select(id, &format!("{within} ORDER BY {number} DESC LIMIT ?")).await?,
            })
        };
        let senders = " AND seq >= ? AND seq <= ?";
        let senders = TableId::Events.table().select(keyspace, "seq, sender, kind", senders);
        Ok(Prepared {
            tables,
            lease: OfLease::new(session, keyspace).await?,
            events: range(TableId::Events, "seq").await?,
            entries: range(TableId::Inbox, "inbox_seq").await?,
            senders: prepare(session, senders, PAGE_ROWS).await?,
            member: select(TableId::Members, " AND user_id = ?").await?,
            members: select(TableId::Members, " AND user_id > ? LIMIT ?").await?,
            memberships: select(TableId::Memberships, " AND chat_id > ? LIMIT ?").await?,
            marks: select(TableId::Marks, " AND user_id IN ?").await?,
            commands: select(TableId::Commands, " AND name IN ?").await?,
        })
    }

    pub(super) fn table(&self, id: TableId) -> &OfTable {
        &self.tables[id as usize]
    }

    /// What to ask for a read; nothing where no row can be meant.
    pub(super) fn select(&self, read: &Read) -> Option<(&PreparedStatement, Vec<CqlValue>)> {
        // A key that no row can have is found nowhere.
        let mut values = partition_key(&partition_of(read)).ok()?;
        let statement = match read {
            Read::All(partition) => &self.table(table_of(partition)).all,
            Read::Events { from, to, limit, newest_first, .. } => {
                values.extend(range(*from, *to)?);
                values.push(at_most(*limit)?);
                self.events.of(*newest_first)
            }
            Read::Entries { from, to, limit, newest_first, .. } => {
                values.extend(range(*from, *to)?);
                values.push(at_most(*limit)?);
                self.entries.of(*newest_first)
            }
            Read::Senders { from, to, .. } => {
                values.extend(range(*from, *to)?);
                &self.senders
            }
            Read::Member { user_id, .. } => {
                values.push(user(*user_id)?);
                &self.member
            }
            Read::Members { after, limit, .. } => {
                values.push(match after {
                    Some(after) => user(*after)?,
                    None => CqlValue::BigInt(-1),
                });
                values.push(at_most(*limit)?);
                &self.members
            }
            Read::Memberships { after, limit, .. } => {
                // The empty one lies before all.
                let after = after.map_or(Vec::new(), |after| after.0.to_be_bytes().to_vec());
                values.extend([CqlValue::Blob(after), at_most(*limit)?]);
                &self.memberships
            }
            Read::Marks { users, .. } => {
                values.push(one_of(users.iter().filter_map(|id| user(*id)).collect())?);
                &self.marks
            }
            Read::Commands { names, .. } => {
                values.push(one_of(names.iter().map(|(sender, id)| command_name(*sender, *id)).collect())?);
                &self.commands
            }
        };
        Some((statement, values))
    }
}

impl Range {
    fn of(&self, newest_first: bool) -> &PreparedStatement {
        if newest_first { &self.newest_first } else { &self.oldest_first }
    }
}

impl OfLease {
    async fn new(session: &Session, keyspace: &str) -> Result<Self, PrepareError> {
        let read = LEASES.select(keyspace, &LEASES.read_columns(), "");
        let create = format!("{} IF NOT EXISTS", LEASES.insert(keyspace));
        let set: Vec<String> = LEASES.regular.iter().map(|(name, _): &Column| format!("{name} = ?")).collect();
        let change = format!(
            "UPDATE {keyspace}.{} SET {} WHERE set_id = ? IF writer_epoch = ? AND holder = ? AND renewal = ?",
            LEASES.name,
            set.join(", ")
        );
        let mut read = prepare(session, read, PAGE_ROWS).await?;
        read.set_consistency(Consistency::Serial);
        let mut create = prepare(session, create, PAGE_ROWS).await?;
        let mut change = prepare(session, change, PAGE_ROWS).await?;
        create.set_is_idempotent(false);
        change.set_is_idempotent(false);
        Ok(OfLease { read, create, change })
    }
}

const fn page_rows(id: TableId) -> i32 {
    if matches!(id, TableId::Events) { PAGE_EVENTS } else { PAGE_ROWS }
}

/// The bounds of a range, or nothing where no number is in it.
fn range(from: u64, to: u64) -> Option<[CqlValue; 2]> {
    let from = i64::try_from(from).ok()?;
    let to = i64::try_from(to).unwrap_or(i64::MAX);
    (from <= to).then_some([CqlValue::BigInt(from), CqlValue::BigInt(to)])
}

fn at_most(limit: u32) -> Option<CqlValue> {
    (limit > 0).then(|| CqlValue::Int(i32::try_from(limit).unwrap_or(i32::MAX)))
}

fn user(user_id: UserId) -> Option<CqlValue> {
    i64::try_from(user_id.0).ok().map(CqlValue::BigInt)
}

fn one_of(keys: Vec<CqlValue>) -> Option<CqlValue> {
    (!keys.is_empty()).then_some(CqlValue::List(keys))
}

impl From<TooLarge> for storage_core::cql::rows::StatementError {
    fn from(TooLarge(text): TooLarge) -> Self {
        Self::Refused(text)
    }
}
