//! The rows of the cluster, typed, and the statements over them. The shell binds them to prepared statements, the
//! in-memory cluster keeps them in maps: what is decided here is which partition a row is in, and nothing else.

use crate::store::{Checkpoint, CommandRow, EntryRow, MarkRow, MemberRow, UserRow};
use parley_protocol::partition::split_mix_64;
use parley_protocol::{ChatId, ClientMsgId, Event, UserId};

/// Events of one chat in one partition, at the most: a `seq` names its partition. Frozen: it is in every stored address.
pub const SEQ_BUCKET: u64 = crate::store::SEQ_BUCKET;
/// Entries of one inbox in one partition, at the most. Frozen.
pub const INBOX_BUCKET: u64 = 8_192;
/// Rows in one write of one inbox: the most that a dead writer can leave above a head.
pub const INBOX_ROWS_MAX: usize = 32;
/// Events in one append: the most that a dead writer can leave above a head.
pub const APPEND_EVENTS_MAX: usize = crate::store::APPEND_EVENTS_MAX;
/// Lists of work in flight that take turns.
pub const WORK_SLOTS: u8 = 4;
/// The list of what a taker set aside, beside those that take turns.
pub const WORK_ASIDE: u8 = WORK_SLOTS;
/// Names of commands in one partition, about. Frozen.
pub const COMMANDS_BUCKET: u64 = 16_384;

/// The partition of an event; `seq` counts from 1.
pub const fn seq_bucket(seq: u64) -> u32 {
    (seq.saturating_sub(1) / SEQ_BUCKET) as u32
}

/// The partition of an inbox entry; `inbox_seq` counts from 1.
pub const fn inbox_bucket(inbox_seq: u64) -> u32 {
    (inbox_seq.saturating_sub(1) / INBOX_BUCKET) as u32
}

/// The level of a command's name: 0 for the first [`COMMANDS_BUCKET`] events of a chat, then one more each time the
/// chat doubles. A level has as many partitions as keep them of one size, so a look-up asks one partition a level.
pub const fn command_level(seq: u64) -> u8 {
    (u64::BITS - (seq.saturating_sub(1) / COMMANDS_BUCKET).leading_zeros()) as u8
}

/// The level under which a sender's creations are named; the scope is the sender.
pub const LEVEL_CREATIONS: u8 = u8::MAX;

/// Partitions of the creations of a sender: there is no level to double them, and a bot creates for ever. Frozen.
pub const CREATIONS_BUCKETS: u32 = 16;

/// Where a name lies within its level: levels 0 and 1 have one partition, each further one twice as many; creations
/// have [`CREATIONS_BUCKETS`].
pub const fn command_bucket(level: u8, client_msg_id: ClientMsgId) -> u32 {
    let folded = (client_msg_id.0 ^ (client_msg_id.0 >> 64)) as u64;
    match level {
        0 | 1 => 0,
        LEVEL_CREATIONS => (split_mix_64(folded) % CREATIONS_BUCKETS as u64) as u32,
        level => (split_mix_64(folded) & ((1 << (level - 1)) - 1)) as u32,
    }
}

/// A write timestamp, epoch-major: a straggler of a dead epoch loses to any write of a later one. `n` counts the
/// writes of an epoch.
///
/// # Panics
/// Unless [`timestamp_fits`].
pub const fn timestamp(writer_epoch: u64, n: u64) -> i64 {
    assert!(timestamp_fits(writer_epoch, n), "23 bits of epochs, 40 bits of writes");
    (writer_epoch << TIMESTAMP_N_BITS | n) as i64
}

const TIMESTAMP_N_BITS: u32 = 40;

/// Whether there is a [`timestamp`]: an epoch from a damaged lease may be any number.
pub const fn timestamp_fits(writer_epoch: u64, n: u64) -> bool {
    writer_epoch < 1 << (63 - TIMESTAMP_N_BITS) && n < 1 << TIMESTAMP_N_BITS
}

/// One partition of one table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Partition {
    /// Records of a partition set: one row.
    Meta {
        /// The set.
        set: u16,
    },
    /// Chats and users with work in flight.
    Work {
        /// The set.
        set: u16,
        /// Below [`WORK_SLOTS`], or [`WORK_ASIDE`].
        slot: u8,
    },
    /// Events, by `seq`: the truth.
    Events {
        /// The chat.
        chat_id: ChatId,
        /// [`seq_bucket`].
        bucket: u32,
    },
    /// The newest two checkpoints, by slot.
    ChatState {
        /// The chat.
        chat_id: ChatId,
    },
    /// Present and past members, by user.
    Members {
        /// The chat.
        chat_id: ChatId,
    },
    /// Marks of members, by user.
    Marks {
        /// The chat.
        chat_id: ChatId,
    },
    /// Names of commands, by sender and name.
    Commands {
        /// The chat; the sender of creations.
        scope: u128,
        /// [`command_level`], or [`LEVEL_CREATIONS`].
        level: u8,
        /// [`command_bucket`].
        bucket: u32,
    },
    /// A user: one row.
    User {
        /// The user.
        user_id: UserId,
    },
    /// Where the newest part of an inbox lies: one row, or none while that is the first.
    InboxState {
        /// The user.
        user_id: UserId,
    },
    /// Entries of an inbox, by number.
    Inbox {
        /// The user.
        user_id: UserId,
        /// [`inbox_bucket`].
        bucket: u32,
    },
    /// The chats of a user, present and past, by chat.
    Memberships {
        /// The user.
        user_id: UserId,
    },
    /// A unique key: one row.
    Unique {
        /// The key.
        key: String,
    },
}

/// Who has work in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WorkKey {
    /// An append of this chat.
    Chat(ChatId),
    /// Rows of this user; or its inbox, when it is set aside.
    User(UserId),
    /// Marks of a member in this chat, with or without an entry of own state.
    Mark(ChatId, UserId),
}

/// A row. Which partition it is in says the [`Write`] or [`Read`] around it; every write of a row names all its columns.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    /// In `Meta`.
    Meta {
        /// The highest epoch that was granted to a gateway.
        home_epoch: u64,
        /// Which gateway holds it.
        gateway: u128,
        /// Ids are given below this millisecond (Unix) only.
        ids_reserved_until_ms: u64,
    },
    /// In `Work`.
    Work(WorkKey),
    /// In `Events`.
    Event(EventRow),
    /// In `Events`, asked for without the body.
    Sender(SenderRow),
    /// In `ChatState`.
    ChatState(ChatStateRow),
    /// In `Members`.
    Member {
        /// Who.
        user_id: UserId,
        /// Role and intervals.
        row: MemberRow,
    },
    /// In `Marks`.
    Mark {
        /// Whose.
        user_id: UserId,
        /// All of them.
        row: MarkRow,
    },
    /// In `Commands`.
    Command(CommandRow),
    /// In `User`.
    User(UserRow),
    /// In `InboxState`.
    InboxState {
        /// The newest bucket that an entry was, or is about to be, written to.
        bucket: u32,
        /// Of the writer.
        epoch: u64,
    },
    /// In `Inbox`.
    Entry {
        /// Its number.
        inbox_seq: u64,
        /// What it names.
        row: EntryRow,
        /// Of the writer.
        epoch: u64,
    },
    /// In `Memberships`.
    Membership {
        /// The chat.
        chat_id: ChatId,
        /// Role and intervals.
        row: MemberRow,
    },
    /// In `Unique`.
    Unique {
        /// The value.
        value: u128,
    },
}

/// An event with what a taker needs to derive the rest again.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRow {
    /// The event.
    pub event: Event,
    /// Of the writer.
    pub epoch: u64,
    /// Everything up to this `seq` was derived when this was written: the `seq` before its append's first.
    pub derived_through: u64,
    /// An encoded [`super::redo::Redo`] in the last event of an append; empty in the others.
    pub redo: Vec<u8>,
}

/// What counting needs of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderRow {
    /// Its `seq`.
    pub seq: u64,
    /// Who.
    pub sender: UserId,
    /// Its kind.
    pub kind: u16,
}

/// A checkpoint. Two are kept, so that a reader finds one that does not lie above the confirmed head.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatStateRow {
    /// 0 or 1; a new one takes the place of the older.
    pub slot: u8,
    /// Of the writer.
    pub epoch: u64,
    /// The state; `seq` 0 says that a taker found no event.
    pub checkpoint: Checkpoint,
    /// Members at the checkpoint.
    pub present: u32,
}

/// A change of one partition, applied whole or not at all on each replica.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// Where.
    pub partition: Partition,
    /// What; never empty in `Put`.
    pub change: Change,
    /// [`timestamp`].
    pub timestamp: i64,
}

/// What a write does.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Puts rows, one unlogged batch when they are several.
    Put(Vec<Row>),
    /// Deletes the partition.
    Delete,
}

/// A question to one partition. Rows come in the order of their keys, unless `newest_first`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Read {
    /// Every row of a partition that is bounded and small: `Meta`, `Work`, `ChatState`, `User`, `InboxState`, `Unique`,
    /// and `Members` and `Marks` of a chat that is loaded.
    All(Partition),
    /// Events in `from..=to` of one bucket. Rows: `Event`.
    Events {
        /// The chat.
        chat_id: ChatId,
        /// The bucket.
        bucket: u32,
        /// First `seq`.
        from: u64,
        /// Last `seq`.
        to: u64,
        /// Rows at the most.
        limit: u32,
        /// From the high end.
        newest_first: bool,
    },
    /// As `Events`, from the low end, without bodies. Rows: `Sender`.
    Senders {
        /// The chat.
        chat_id: ChatId,
        /// The bucket.
        bucket: u32,
        /// First `seq`.
        from: u64,
        /// Last `seq`.
        to: u64,
    },
    /// One member. Rows: `Member`.
    Member {
        /// The chat.
        chat_id: ChatId,
        /// Who.
        user_id: UserId,
    },
    /// Members after one. Rows: `Member`.
    Members {
        /// The chat.
        chat_id: ChatId,
        /// After this one.
        after: Option<UserId>,
        /// Rows at the most.
        limit: u32,
    },
    /// Marks of some members. Rows: `Mark`, of those who have one.
    Marks {
        /// The chat.
        chat_id: ChatId,
        /// Whose; at most 100.
        users: Vec<UserId>,
    },
    /// Names of commands in one partition. Rows: `Command`, of those that exist.
    Commands {
        /// As in [`Partition::Commands`].
        scope: u128,
        /// As in [`Partition::Commands`].
        level: u8,
        /// As in [`Partition::Commands`].
        bucket: u32,
        /// Which; at most 100.
        names: Vec<(UserId, ClientMsgId)>,
    },
    /// Entries in `from..=to` of one bucket. Rows: `Entry`.
    Entries {
        /// The user.
        user_id: UserId,
        /// The bucket.
        bucket: u32,
        /// First number.
        from: u64,
        /// Last number.
        to: u64,
        /// Rows at the most.
        limit: u32,
        /// From the high end.
        newest_first: bool,
    },
    /// Chats of a user after one. Rows: `Membership`.
    Memberships {
        /// The user.
        user_id: UserId,
        /// After this one.
        after: Option<ChatId>,
        /// Rows at the most.
        limit: u32,
    },
}

/// What is asked of the cluster, at quorum both ways.
#[derive(Clone, Debug, PartialEq)]
pub enum Statement {
    /// A write.
    Write(Write),
    /// A read.
    Read(Read),
}

/// Why a statement has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatementError {
    /// A timeout, too few replicas, a broken connection: a write may be applied, now, later, in parts of the replicas, or
    /// never. Repeated unchanged.
    Unknown(String),
    /// The cluster will not do it, however often it is asked: schema, permission, syntax. The process must end.
    Refused(String),
    /// A row that does not decode.
    Damaged(String),
}

/// What came of a statement. A write has no rows.
pub type StatementResult = Result<Vec<Row>, StatementError>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_have_their_borders() {
        assert_eq!([1, SEQ_BUCKET, SEQ_BUCKET + 1].map(seq_bucket), [0, 0, 1]);
        assert_eq!([0, 1, INBOX_BUCKET, INBOX_BUCKET + 1].map(inbox_bucket), [0, 0, 0, 1]);
    }

    #[test]
    fn a_level_doubles_and_so_do_its_partitions() {
        let first = |level: u8| if level == 0 { 1 } else { COMMANDS_BUCKET * (1 << (level - 1)) + 1 };
        for level in 0..20 {
            assert_eq!(command_level(first(level)), level);
            assert_eq!(command_level(first(level + 1) - 1), level);
            let buckets = (0..4_000).map(|name| command_bucket(level, ClientMsgId(name * 7))).max().expect("some");
            let names = first(level + 1) - first(level);
            assert!(u64::from(buckets) < names.div_ceil(COMMANDS_BUCKET), "level {level}: bucket {buckets}");
        }
        let mut names = vec![0; CREATIONS_BUCKETS as usize];
        (0..16_000).for_each(|name| names[command_bucket(LEVEL_CREATIONS, ClientMsgId(name)) as usize] += 1);
        assert!(names.iter().all(|names| (800..1_200).contains(names)), "{names:?}");
        assert_eq!(
            [0, 1, 2, 3].map(|name| command_bucket(LEVEL_CREATIONS, ClientMsgId(name))),
            [15, 1, 14, 13],
            "frozen"
        );
    }

    #[test]
    fn timestamps_are_epoch_major() {
        assert!(timestamp(1, (1 << 40) - 1) < timestamp(2, 0));
        assert!(timestamp(2, 0) < timestamp(2, 1));
        assert!(timestamp((1 << 23) - 1, (1 << 40) - 1) > 0);
        assert!(!timestamp_fits(1 << 23, 0) && !timestamp_fits(u64::MAX, 0) && !timestamp_fits(1, 1 << 40));
    }
}
