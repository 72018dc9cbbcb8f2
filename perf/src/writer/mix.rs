//! What a writer asked of the cluster, kept small enough to be noted while it runs: which rows of which tables went
//! together, by their keys and sizes. How it is asked again is `bare.rs`.

use scylla::value::CqlValue;
use serde::Serialize;
use std::collections::BTreeMap;
use storage_core::cql::rows::{Change, Partition, Read, Row, Statement, WorkKey};

/// One request.
#[derive(Clone, Debug)]
pub(super) enum Request {
    /// Rows of one partition.
    Put(Partition, Vec<Key>),
    /// A partition goes.
    Delete(Partition),
    /// Names of commands in one partition.
    Names(Partition, Vec<Key>),
    /// Another question; it is counted and not repeated.
    Other,
}

/// What tells a row from the others of its partition.
#[derive(Clone, Copy, Debug)]
pub(super) enum Key {
    /// The partition has one row, or none that a message writes.
    None,
    /// An event, and the bytes of its `redo`.
    Event(u64, usize),
    Number(u64),
    Chat(u128),
    Slot(u8),
    Name(u64, u128),
    Work(WorkKey),
}

impl Request {
    pub(super) fn of(statement: &Statement) -> Self {
        match statement {
            Statement::Write(write) => match &write.change {
                Change::Put(rows) => Self::Put(write.partition.clone(), rows.iter().map(key).collect()),
                Change::Delete => Self::Delete(write.partition.clone()),
            },
            Statement::Read(Read::Commands { scope, level, bucket, names }) => {
                let partition = Partition::Commands { scope: *scope, level: *level, bucket: *bucket };
                Self::Names(partition, names.iter().map(|(sender, id)| Key::Name(sender.0, id.0)).collect())
            }
            Statement::Read(_) => Self::Other,
        }
    }

    pub(super) fn rows(&self) -> usize {
        if let Self::Put(_, rows) = self { rows.len() } else { 0 }
    }
}

fn key(row: &Row) -> Key {
    match row {
        Row::Event(row) => Key::Event(row.event.seq, row.redo.len()),
        Row::Entry { inbox_seq, .. } => Key::Number(*inbox_seq),
        Row::Member { user_id, .. } | Row::Mark { user_id, .. } => Key::Number(user_id.0),
        Row::Membership { chat_id, .. } => Key::Chat(chat_id.0),
        Row::ChatState(row) => Key::Slot(row.slot),
        Row::Command(row) => Key::Name(row.name.sender.0, row.name.client_msg_id.0),
        Row::Work(key) => Key::Work(*key),
        Row::Meta { .. } | Row::Sender(_) | Row::User(_) | Row::InboxState { .. } | Row::Unique { .. } => Key::None,
    }
}

/// The name of a partition's table.
pub(super) fn table(partition: &Partition) -> &'static str {
    match partition {
        Partition::Meta { .. } => "meta",
        Partition::Work { .. } => "work",
        Partition::Events { .. } => "events",
        Partition::ChatState { .. } => "chat_state",
        Partition::Members { .. } => "members",
        Partition::Marks { .. } => "marks",
        Partition::Commands { .. } => "commands",
        Partition::User { .. } => "users",
        Partition::InboxState { .. } => "inbox_state",
        Partition::Inbox { .. } => "inbox",
        Partition::Memberships { .. } => "memberships",
        Partition::Unique { .. } => "unique_keys",
    }
}

/// The values of a partition's key, in the order of the table's columns.
pub(super) fn partition_values(partition: &Partition) -> Vec<CqlValue> {
    let chat = |id: u128| CqlValue::Blob(id.to_be_bytes().to_vec());
    let number = |number: u64| CqlValue::BigInt(number as i64);
    match partition {
        Partition::Meta { set } => vec![CqlValue::SmallInt(*set as i16)],
        Partition::Work { set, slot } => vec![CqlValue::SmallInt(*set as i16), CqlValue::TinyInt(*slot as i8)],
        Partition::Events { chat_id, bucket } => vec![chat(chat_id.0), CqlValue::Int(*bucket as i32)],
        Partition::ChatState { chat_id } | Partition::Members { chat_id } | Partition::Marks { chat_id } => {
            vec![chat(chat_id.0)]
        }
        Partition::Commands { scope, level, bucket } => {
            vec![chat(*scope), CqlValue::SmallInt(i16::from(*level)), CqlValue::Int(*bucket as i32)]
        }
        Partition::User { user_id } | Partition::InboxState { user_id } | Partition::Memberships { user_id } => {
            vec![number(user_id.0)]
        }
        Partition::Inbox { user_id, bucket } => vec![number(user_id.0), CqlValue::Int(*bucket as i32)],
        Partition::Unique { key } => vec![CqlValue::Text(key.clone())],
    }
}

impl Key {
    /// The values of the clustering key.
    pub(super) fn values(self) -> Vec<CqlValue> {
        let number = |number: u64| CqlValue::BigInt(number as i64);
        match self {
            Key::None => Vec::new(),
            Key::Event(seq, _) => vec![number(seq)],
            Key::Number(value) => vec![number(value)],
            Key::Chat(id) => vec![CqlValue::Blob(id.to_be_bytes().to_vec())],
            Key::Slot(slot) => vec![CqlValue::TinyInt(slot as i8)],
            Key::Name(sender, id) => vec![CqlValue::Blob([&sender.to_be_bytes()[..], &id.to_be_bytes()].concat())],
            Key::Work(key) => {
                let (kind, id) = match key {
                    WorkKey::Chat(chat_id) => (0, chat_id.0.to_be_bytes().to_vec()),
                    WorkKey::User(user_id) => (1, user_id.0.to_be_bytes().to_vec()),
                    WorkKey::Mark(chat_id, user_id) => {
                        (2, [&chat_id.0.to_be_bytes()[..], &user_id.0.to_be_bytes()].concat())
                    }
                };
                vec![CqlValue::TinyInt(kind), CqlValue::Blob(id)]
            }
        }
    }
}

/// Requests of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Share {
    pub(super) requests: u64,
    pub(super) rows: u64,
}

/// What was asked, by kind.
pub(super) fn shares(requests: &[Request]) -> BTreeMap<String, Share> {
    let mut shares = BTreeMap::<String, Share>::new();
    for request in requests {
        let kind = match request {
            Request::Put(partition, _) => format!("write_{}", table(partition)),
            Request::Delete(partition) => format!("delete_{}", table(partition)),
            Request::Names(partition, _) => format!("read_{}", table(partition)),
            Request::Other => "read_other".to_owned(),
        };
        let share = shares.entry(kind).or_default();
        share.requests += 1;
        share.rows += request.rows() as u64;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use parley_protocol::{ChatId, UserId};
    use storage_core::cql::rows::Write;
    use storage_core::store::EntryRow;

    #[test]
    fn requests_are_counted_by_table_with_their_rows() {
        let entry = |inbox_seq| {
            let row = EntryRow::Event { chat_id: ChatId(1), seq: inbox_seq };
            Row::Entry { inbox_seq, row, epoch: 1 }
        };
        let partition = Partition::Inbox { user_id: UserId(7), bucket: 0 };
        let write = |change| Statement::Write(Write { partition: partition.clone(), change, timestamp: 1 });
        let names = vec![(UserId(7), parley_protocol::ClientMsgId(9))];
        let read = Statement::Read(Read::Commands { scope: 1, level: 0, bucket: 0, names });
        let statements = [write(Change::Put(vec![entry(1), entry(2)])), write(Change::Put(vec![entry(3)])), read];
        let requests: Vec<Request> = statements.iter().map(Request::of).collect();
        let shares = shares(&requests);
        assert_eq!(shares["write_inbox"], Share { requests: 2, rows: 3 });
        assert_eq!(shares["read_commands"], Share { requests: 1, rows: 0 });
        let Request::Put(partition, rows) = &requests[0] else { panic!("{:?}", requests[0]) };
        assert_eq!(partition_values(partition), [CqlValue::BigInt(7), CqlValue::Int(0)]);
        assert_eq!(rows[1].values(), [CqlValue::BigInt(2)]);
    }
}
