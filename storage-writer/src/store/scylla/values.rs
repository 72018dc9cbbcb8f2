//! What the columns hold: rows to values and back. Values with text or lists, and those that the embedded store has too,
//! are its bytes (`embedded/layout.rs`). Numbers are bigint; those in keys are below 2^63, so that their order is kept.

use super::tables::TableId;
use crate::store::embedded::layout::{self, Damage};
use parley_protocol::{ChatId, ClientMsgId, Event, UserId};
use scylla::errors::{DeserializationError, RowsError};
use scylla::response::query_result::QueryRowsResult;
use scylla::value::CqlValue;
use storage_core::cql::rows::{
    ChatStateRow, EventRow, LEVEL_CREATIONS, Partition, Read, Row, SenderRow, StatementError, WorkKey,
};
use storage_core::store::{CommandName, CommandRow};

/// Kinds of rows in `work`, in the order of `WorkKey`.
const WORK_CHAT: i8 = 0;
const WORK_USER: i8 = 1;
const WORK_MARK: i8 = 2;
/// Bytes of a unique key, at the most: what a partition key holds.
const KEY_BYTES_MAX: usize = u16::MAX as usize;

/// A value that no column holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TooLarge(pub(super) String);

/// A number in a key.
fn key(number: u64) -> Result<CqlValue, TooLarge> {
    i64::try_from(number).map(CqlValue::BigInt).map_err(|_| TooLarge(format!("{number} in a key is not below 2^63")))
}

/// A number that is no key: all 64 bits come back.
fn bits(number: u64) -> CqlValue {
    CqlValue::BigInt(number as i64)
}

fn blob(bytes: &[u8]) -> CqlValue {
    CqlValue::Blob(bytes.to_vec())
}

fn chat(chat_id: ChatId) -> CqlValue {
    blob(&chat_id.0.to_be_bytes())
}

fn checked<T>(value: &T) -> CqlValue
where
    T: for<'a> rkyv::Serialize<parley_protocol::wire::Rkyv<'a>>,
{
    let mut bytes = Vec::new();
    layout::checked(value, &mut bytes);
    CqlValue::Blob(bytes)
}

/// Sender and name, in their order.
pub(super) fn command_name(sender: UserId, client_msg_id: ClientMsgId) -> CqlValue {
    let mut bytes = sender.0.to_be_bytes().to_vec();
    bytes.extend_from_slice(&client_msg_id.0.to_be_bytes());
    CqlValue::Blob(bytes)
}

/// The table of a partition.
pub(super) fn table_of(partition: &Partition) -> TableId {
    match partition {
        Partition::Meta { .. } => TableId::Meta,
        Partition::Work { .. } => TableId::Work,
        Partition::Events { .. } => TableId::Events,
        Partition::ChatState { .. } => TableId::ChatState,
        Partition::Members { .. } => TableId::Members,
        Partition::Marks { .. } => TableId::Marks,
        Partition::Commands { .. } => TableId::Commands,
        Partition::User { .. } => TableId::Users,
        Partition::InboxState { .. } => TableId::InboxState,
        Partition::Inbox { .. } => TableId::Inbox,
        Partition::Memberships { .. } => TableId::Memberships,
        Partition::Unique { .. } => TableId::UniqueKeys,
    }
}

/// The values of a partition's key.
pub(super) fn partition_key(partition: &Partition) -> Result<Vec<CqlValue>, TooLarge> {
    Ok(match partition {
        Partition::Meta { set } => vec![CqlValue::SmallInt(*set as i16)],
        Partition::Work { set, slot } => vec![CqlValue::SmallInt(*set as i16), CqlValue::TinyInt(*slot as i8)],
        Partition::Events { chat_id, bucket } => vec![chat(*chat_id), CqlValue::Int(*bucket as i32)],
        Partition::ChatState { chat_id } | Partition::Members { chat_id } | Partition::Marks { chat_id } => {
            vec![chat(*chat_id)]
        }
        Partition::Commands { scope, level, bucket } => {
            vec![blob(&scope.to_be_bytes()), CqlValue::SmallInt(i16::from(*level)), CqlValue::Int(*bucket as i32)]
        }
        Partition::User { user_id } | Partition::InboxState { user_id } | Partition::Memberships { user_id } => {
            vec![key(user_id.0)?]
        }
        Partition::Inbox { user_id, bucket } => vec![key(user_id.0)?, CqlValue::Int(*bucket as i32)],
        Partition::Unique { key } if key.is_empty() || key.len() > KEY_BYTES_MAX => {
            return Err(TooLarge(format!("a unique key has {} bytes", key.len())));
        }
        Partition::Unique { key } => vec![CqlValue::Text(key.clone())],
    })
}

/// All columns of a row, in the order of the table. Panics when the row belongs to another table: no caller may ask for
/// that.
pub(super) fn row_values(partition: &Partition, row: &Row) -> Result<Vec<CqlValue>, TooLarge> {
    let mut values = partition_key(partition)?;
    match (partition, row) {
        (Partition::Meta { .. }, Row::Meta { home_epoch, gateway, ids_reserved_until_ms }) => {
            values.extend([bits(*home_epoch), blob(&gateway.to_be_bytes()), bits(*ids_reserved_until_ms)]);
        }
        (Partition::Work { .. }, Row::Work(WorkKey::Chat(chat_id))) => {
            values.extend([CqlValue::TinyInt(WORK_CHAT), chat(*chat_id)]);
        }
        (Partition::Work { .. }, Row::Work(WorkKey::User(user_id))) => {
            values.extend([CqlValue::TinyInt(WORK_USER), blob(&user_id.0.to_be_bytes())]);
        }
        (Partition::Work { .. }, Row::Work(WorkKey::Mark(chat_id, user_id))) => {
            let id = [&chat_id.0.to_be_bytes()[..], &user_id.0.to_be_bytes()].concat();
            values.extend([CqlValue::TinyInt(WORK_MARK), blob(&id)]);
        }
        (Partition::Events { chat_id, .. }, Row::Event(row)) if row.event.chat_id == *chat_id => values.extend([
            key(row.event.seq)?,
            bits(row.epoch),
            bits(row.derived_through),
            bits(row.event.sender.0),
            CqlValue::Int(i32::from(row.event.envelope.kind)),
            checked(&row.event),
            blob(&row.redo),
        ]),
        (Partition::ChatState { .. }, Row::ChatState(row)) => values.extend([
            CqlValue::TinyInt(row.slot as i8),
            bits(row.epoch),
            checked(&row.checkpoint),
            CqlValue::Int(row.present as i32),
        ]),
        (Partition::Members { .. }, Row::Member { user_id, row }) => values.extend([key(user_id.0)?, checked(row)]),
        (Partition::Marks { .. }, Row::Mark { user_id, row }) => {
            values.extend([key(user_id.0)?, blob(&layout::marks_value(row))]);
        }
        (Partition::Commands { scope, level, .. }, Row::Command(row)) => {
            assert_eq!(row.name.chat_id, named_under(*scope, *level), "a name lies in its own partition");
            let mut command = Vec::new();
            layout::put_command(row, &mut command);
            values.extend([command_name(row.name.sender, row.name.client_msg_id), CqlValue::Blob(command)]);
        }
        (Partition::User { user_id }, Row::User(row)) if row.user_id == *user_id => values.push(checked(row)),
        (Partition::InboxState { .. }, Row::InboxState { bucket, epoch }) => {
            values.extend([CqlValue::Int(*bucket as i32), bits(*epoch)]);
        }
        (Partition::Inbox { .. }, Row::Entry { inbox_seq, row, epoch }) => {
            let mut entry = Vec::new();
            layout::put_entry(row, &mut entry);
            values.extend([key(*inbox_seq)?, bits(*epoch), CqlValue::Blob(entry)]);
        }
        (Partition::Memberships { .. }, Row::Membership { chat_id, row }) => {
            values.extend([chat(*chat_id), checked(row)]);
        }
        (Partition::Unique { .. }, Row::Unique { value }) => values.push(blob(&layout::u128_value(*value))),
        (partition, row) => panic!("{row:?} does not belong in {partition:?}"),
    }
    Ok(values)
}

/// The chat that a name stands under.
fn named_under(scope: u128, level: u8) -> ChatId {
    if level == LEVEL_CREATIONS { ChatId(0) } else { ChatId(scope) }
}

/// The partition that a read asks.
pub(super) fn partition_of(read: &Read) -> Partition {
    match read {
        Read::All(partition) => partition.clone(),
        Read::Events { chat_id, bucket, .. } | Read::Senders { chat_id, bucket, .. } => {
            Partition::Events { chat_id: *chat_id, bucket: *bucket }
        }
        Read::Member { chat_id, .. } | Read::Members { chat_id, .. } => Partition::Members { chat_id: *chat_id },
        Read::Marks { chat_id, .. } => Partition::Marks { chat_id: *chat_id },
        Read::Commands { scope, level, bucket, .. } => {
            Partition::Commands { scope: *scope, level: *level, bucket: *bucket }
        }
        Read::Entries { user_id, bucket, .. } => Partition::Inbox { user_id: *user_id, bucket: *bucket },
        Read::Memberships { user_id, .. } => Partition::Memberships { user_id: *user_id },
    }
}

/// Why a page of rows does not become rows.
enum Bad {
    /// The columns are of other types.
    Columns(String),
    Bytes(Damage),
    /// A null, or a column that does not say what another one says.
    Row(String),
}

impl From<RowsError> for Bad {
    fn from(error: RowsError) -> Self {
        Bad::Columns(error.to_string())
    }
}

impl From<DeserializationError> for Bad {
    fn from(error: DeserializationError) -> Self {
        Bad::Row(error.to_string())
    }
}

impl From<Damage> for Bad {
    fn from(damage: Damage) -> Self {
        Bad::Bytes(damage)
    }
}

/// Appends the rows of a page.
pub(super) fn decode(read: &Read, page: &QueryRowsResult, out: &mut Vec<Row>) -> Result<(), StatementError> {
    let partition = partition_of(read);
    let done = match read {
        Read::Senders { .. } => senders(page, out),
        _ => rows(&partition, page, out),
    };
    done.map_err(|bad| {
        let name = table_of(&partition).table().name;
        match bad {
            Bad::Columns(text) => StatementError::Refused(format!("the table {name} is not as expected: {text}")),
            Bad::Bytes(damage) => StatementError::Damaged(format!("{name}, {partition:?}: {damage}")),
            Bad::Row(text) => StatementError::Damaged(format!("{name}, {partition:?}: {text}")),
        }
    })
}

fn senders(page: &QueryRowsResult, out: &mut Vec<Row>) -> Result<(), Bad> {
    for row in page.rows::<(i64, i64, i32)>()? {
        let (seq, sender, kind) = row?;
        let kind = kind_of(kind)?;
        out.push(Row::Sender(SenderRow { seq: seq as u64, sender: UserId(sender as u64), kind }));
    }
    Ok(())
}

fn kind_of(kind: i32) -> Result<u16, Bad> {
    u16::try_from(kind).map_err(|_| Bad::Row(format!("{kind} is no kind of event")))
}

fn number<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Bad> {
    bytes.try_into().map_err(|_| Bad::Bytes(Damage::Form))
}

fn number_u128(bytes: &[u8]) -> Result<u128, Bad> {
    number(bytes).map(u128::from_be_bytes)
}

/// Of any table, with the columns of `Table::read_columns`.
fn rows(partition: &Partition, page: &QueryRowsResult, out: &mut Vec<Row>) -> Result<(), Bad> {
    match partition {
        Partition::Meta { .. } => {
            for row in page.rows::<(i64, &[u8], i64)>()? {
                let (home_epoch, gateway, reserved) = row?;
                out.push(Row::Meta {
                    home_epoch: home_epoch as u64,
                    gateway: number_u128(gateway)?,
                    ids_reserved_until_ms: reserved as u64,
                });
            }
        }
        Partition::Work { .. } => {
            for row in page.rows::<(i8, &[u8])>()? {
                out.push(Row::Work(match row? {
                    (WORK_CHAT, id) => WorkKey::Chat(ChatId(number_u128(id)?)),
                    (WORK_USER, id) => WorkKey::User(UserId(u64::from_be_bytes(number(id)?))),
                    (WORK_MARK, id) => {
                        let (chat_id, user_id) = id.split_at_checked(16).ok_or(Bad::Bytes(Damage::Form))?;
                        let user_id = UserId(u64::from_be_bytes(number(user_id)?));
                        WorkKey::Mark(ChatId(number_u128(chat_id)?), user_id)
                    }
                    (kind, _) => return Err(Bad::Row(format!("{kind} is no kind of work"))),
                }));
            }
        }
        Partition::Events { chat_id, .. } => events(*chat_id, page, out)?,
        Partition::ChatState { .. } => {
            for row in page.rows::<(i8, i64, &[u8], i32)>()? {
                let (slot, epoch, checkpoint, present) = row?;
                let checkpoint = layout::parse_checked(checkpoint)?;
                let (slot, epoch, present) = (slot as u8, epoch as u64, present as u32);
                out.push(Row::ChatState(ChatStateRow { slot, epoch, checkpoint, present }));
            }
        }
        Partition::Members { .. } => {
            for row in page.rows::<(i64, &[u8])>()? {
                let (user_id, row) = row?;
                out.push(Row::Member { user_id: UserId(user_id as u64), row: layout::parse_checked(row)? });
            }
        }
        Partition::Marks { .. } => {
            for row in page.rows::<(i64, &[u8])>()? {
                let (user_id, row) = row?;
                out.push(Row::Mark { user_id: UserId(user_id as u64), row: layout::parse_marks(row)? });
            }
        }
        Partition::Commands { scope, level, .. } => commands(named_under(*scope, *level), page, out)?,
        Partition::User { user_id } => {
            for row in page.rows::<(&[u8],)>()? {
                let user: storage_core::store::UserRow = layout::parse_checked(row?.0)?;
                if user.user_id != *user_id {
                    return Err(Bad::Row(format!("it is the row of {:?}", user.user_id)));
                }
                out.push(Row::User(user));
            }
        }
        Partition::InboxState { .. } => {
            for row in page.rows::<(i32, i64)>()? {
                let (bucket, epoch) = row?;
                out.push(Row::InboxState { bucket: bucket as u32, epoch: epoch as u64 });
            }
        }
        Partition::Inbox { .. } => {
            for row in page.rows::<(i64, i64, &[u8])>()? {
                let (inbox_seq, epoch, entry) = row?;
                let row = layout::parse_entry(entry)?;
                out.push(Row::Entry { inbox_seq: inbox_seq as u64, row, epoch: epoch as u64 });
            }
        }
        Partition::Memberships { .. } => {
            for row in page.rows::<(&[u8], &[u8])>()? {
                let (chat_id, row) = row?;
                let chat_id = ChatId(number_u128(chat_id)?);
                out.push(Row::Membership { chat_id, row: layout::parse_checked(row)? });
            }
        }
        Partition::Unique { .. } => {
            for row in page.rows::<(&[u8],)>()? {
                out.push(Row::Unique { value: layout::parse_u128(row?.0)? });
            }
        }
    }
    Ok(())
}

type EventColumns<'a> = (i64, i64, i64, i64, i32, &'a [u8], &'a [u8]);

/// Columns and the event itself say the same: readers of the one believe what readers of the other count.
fn events(chat_id: ChatId, page: &QueryRowsResult, out: &mut Vec<Row>) -> Result<(), Bad> {
    for row in page.rows::<EventColumns<'_>>()? {
        let (seq, epoch, derived_through, sender, kind, event, redo) = row?;
        let event: Event = layout::parse_checked(event)?;
        let said = (chat_id, seq as u64, UserId(sender as u64), kind_of(kind)?);
        if (event.chat_id, event.seq, event.sender, event.envelope.kind) != said {
            return Err(Bad::Row(format!("the event at {seq} is another one")));
        }
        let (epoch, derived_through) = (epoch as u64, derived_through as u64);
        out.push(Row::Event(EventRow { event, epoch, derived_through, redo: redo.to_vec() }));
    }
    Ok(())
}

fn commands(chat_id: ChatId, page: &QueryRowsResult, out: &mut Vec<Row>) -> Result<(), Bad> {
    for row in page.rows::<(&[u8], &[u8])>()? {
        let (name, command) = row?;
        let bytes: [u8; 24] = number(name)?;
        let (sender, id) = bytes.split_at(8);
        let sender = UserId(u64::from_be_bytes(number(sender)?));
        let name = CommandName { chat_id, sender, client_msg_id: ClientMsgId(number_u128(id)?) };
        let row: CommandRow = layout::parse_command(name, command)?;
        out.push(Row::Command(row));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use parley_protocol::body::{MessageBody, kind};
    use parley_protocol::frame::Interval;
    use parley_protocol::wire::encode_rkyv;
    use parley_protocol::{Envelope, MessageId, Role};
    use storage_core::store::{EntryRow, MarkRow, MemberRow};

    /// Bytes of the values that are no partition key.
    fn bytes(partition: &Partition, row: &Row) -> usize {
        let width = |value: &CqlValue| match value {
            CqlValue::BigInt(_) => 8,
            CqlValue::Int(_) => 4,
            CqlValue::SmallInt(_) => 2,
            CqlValue::TinyInt(_) => 1,
            CqlValue::Blob(bytes) => bytes.len(),
            CqlValue::Text(text) => text.len(),
            other => panic!("{other:?} is in no table"),
        };
        let values = row_values(partition, row).expect("small numbers");
        values[table_of(partition).table().partition.len()..].iter().map(width).sum()
    }

    /// What docs/SCHEMA.md reckons with.
    #[test]
    fn a_message_of_a_hundred_bytes_takes_what_the_documentation_says() {
        let (chat_id, user_id, bucket) = (ChatId(1), UserId(2), 0);
        let message =
            MessageBody { content_type: "text/plain".to_owned(), payload: vec![b'x'; 100], ..MessageBody::default() };
        let mut body = Vec::new();
        encode_rkyv(&message, &mut body);
        let (message_id, client_msg_id) = (MessageId(1), ClientMsgId(1));
        let envelope = Envelope { kind: kind::MESSAGE, flags: 0, body };
        let (sender, seq, ordinal, sender_sent) = (user_id, 1, 1, 1);
        let event = Event { chat_id, seq, ordinal, message_id, sender, sender_sent, client_msg_id, envelope };
        let event = Row::Event(EventRow { event, epoch: 1, derived_through: 0, redo: Vec::new() });
        let name = CommandName { chat_id, sender, client_msg_id };
        let command = Row::Command(CommandRow { name, chat_id, message_id, seq });
        let entry = Row::Entry { inbox_seq: 1, row: EntryRow::Event { chat_id, seq }, epoch: 1 };
        let mark = Row::Mark { user_id, row: MarkRow::default() };
        let intervals = vec![Interval { joined_seq: 1, left_seq: None, history_from: 1 }];
        let member = Row::Member { user_id, row: MemberRow { role: Some(Role::Member), intervals } };
        let sizes = [
            bytes(&Partition::Events { chat_id, bucket }, &event),
            bytes(&Partition::Commands { scope: 1, level: 0, bucket }, &command),
            bytes(&Partition::Inbox { user_id, bucket }, &entry),
            bytes(&Partition::Marks { chat_id }, &mark),
            bytes(&Partition::Members { chat_id }, &member),
        ];
        assert_eq!(sizes, [292, 41, 36, 49, 47]);
    }
}
