//! What the writer asks of an engine: intents, not keys. The writer submits operations and hears of their completion
//! later; readers ask a [`View`] of what is confirmed. Rows here are the logical ones; each engine lays them out.

#![expect(missing_docs, reason = "the derive of the archived forms leaves fields of struct variants undocumented")]

use parley_protocol::frame::Interval;
use parley_protocol::{ChatId, ClientMsgId, Event, MessageId, Role, UserId};
use rkyv::{Archive, Deserialize, Serialize};

/// Names an operation between its submission and its completion.
pub type OpId = u64;

/// Events of one chat that an engine may keep in one partition: an append does not cross such a border. Frozen.
pub const SEQ_BUCKET: u64 = 2_048;
/// Events in one append.
pub const APPEND_EVENTS_MAX: usize = 64;
/// Bytes of the bodies in one append; the last event may go over it. It is one mutation of a cluster, and those are
/// bounded (16 MiB by default: half a segment of the commit log).
pub const APPEND_BYTES_MAX: usize = 1 << 20;

/// An engine, as the one writer thread uses it.
pub trait Store {
    /// Takes an operation. Loads see every group that was submitted before them and did not fail.
    fn submit(&mut self, op: OpId, request: StoreRequest);
    /// Appends what completed since the last call to `done`. Never blocks.
    fn completions(&mut self, done: &mut Vec<(OpId, StoreResult)>);
}

/// An operation of the writer.
#[derive(Clone, Debug, PartialEq)]
pub enum StoreRequest {
    /// Answer: `Meta`.
    LoadMeta,
    /// Answer: `Chat`, of a channel without its members.
    LoadChat(ChatId),
    /// One member of a channel. Answer: `Member`.
    LoadMember {
        /// The channel.
        chat_id: ChatId,
        /// Who.
        user_id: UserId,
    },
    /// Answer: `User`.
    LoadUser(UserId),
    /// Answer: `Found`.
    FindCommand(CommandName),
    /// Answer: `Unique`.
    FindUnique(String),
    /// How many messages of `sender` lie in `from..=to`. Answer: `Count`.
    CountMessages {
        /// The chat.
        chat_id: ChatId,
        /// Whose.
        sender: UserId,
        /// First `seq`.
        from: u64,
        /// Last `seq`.
        to: u64,
    },
    /// The event at a `seq`. Answer: `Event`.
    LoadEvent {
        /// The chat.
        chat_id: ChatId,
        /// Which.
        seq: u64,
    },
    /// Makes a group durable. Answer: `Committed`.
    Commit(Group),
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq)]
pub enum StoreResult {
    /// Of `LoadMeta`.
    Meta(Meta),
    /// Of `LoadChat`: nothing when the chat was never written.
    Chat(Option<Box<StoredChat>>),
    /// Of `LoadMember`: nothing when the user never was one.
    Member(Option<StoredMember>),
    /// Of `LoadUser`: nothing when there is no such user.
    User(Option<StoredUser>),
    /// Of `FindCommand`.
    Found(Option<CommandRow>),
    /// Of `FindUnique`.
    Unique(Option<u128>),
    /// Of `CountMessages`.
    Count(u64),
    /// Of `LoadEvent`.
    Event(Option<Box<Event>>),
    /// Of `Commit`.
    Committed(Outcome),
    /// A load met damaged or unreadable data: the text names what the engine can name.
    Damaged(String),
}

/// What came of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it is durable.
    Durable,
    /// None of it is applied or ever will be (no room on the disk, say); the text says why.
    Failed(String),
    /// Another writer holds a higher epoch: nothing is applied, this writer must end.
    Fenced,
    /// Not known, perhaps in parts, perhaps later. The writer submits the same group again, unchanged, or ends.
    Unknown,
    /// A sync failed: what is on the disk is not known until the next start. The writer must end.
    Broken(String),
}

/// What is durable together, and answered together. Groups are numbered densely from 1 at each start; an engine applies
/// them in that order and fails a group whose predecessor failed, until the writer submits that number again. Atomic
/// only within one [`Append`], unless the engine can do better. Applying a group twice changes nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    /// The group's number.
    pub no: u64,
    /// Of the writer.
    pub writer_epoch: u64,
    /// New values of the store's own records; `None` leaves them.
    pub meta: Option<Meta>,
    /// Partitions opened under a new home epoch, with that epoch.
    pub opened: Vec<(u16, u64)>,
    /// At most one a chat.
    pub appends: Vec<Append>,
    /// Own state and its inbox entries; the marks are merged by maximum.
    pub marks: Vec<MarkWrite>,
    /// New users, with their names.
    pub users: Vec<UserRow>,
    /// Unique keys with their values. The writer looked each up before, so none exists with another value.
    pub uniques: Vec<(String, u128)>,
}

impl Group {
    /// Nothing to write.
    pub fn is_empty(&self) -> bool {
        self.meta.is_none()
            && self.opened.is_empty()
            && self.appends.is_empty()
            && self.marks.is_empty()
            && self.users.is_empty()
            && self.uniques.is_empty()
    }
}

/// Records of the store itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Meta {
    /// Raised at each start of a writer.
    pub writer_epoch: u64,
    /// The highest epoch that was granted to a gateway.
    pub home_epoch: u64,
    /// Which gateway holds it.
    pub gateway: u128,
    /// Ids are given below this millisecond (Unix) only.
    pub ids_reserved_until_ms: u64,
}

/// The events of one append of one chat, and every row that follows from them.
#[derive(Clone, Debug, PartialEq)]
pub struct Append {
    /// The chat.
    pub chat_id: ChatId,
    /// Rising by one from the stored head; never empty, at most [`APPEND_EVENTS_MAX`], all within one [`SEQ_BUCKET`].
    pub events: Vec<Event>,
    /// Inbox entries, each the next of its inbox.
    pub entries: Vec<Entry>,
    /// One a command.
    pub commands: Vec<CommandRow>,
    /// Members whose role or intervals changed, with their new rows.
    pub members: Vec<(UserId, MemberRow)>,
    /// A checkpoint, now and then: loading replays the events above it. There is one whenever the members change.
    pub checkpoint: Option<Checkpoint>,
    /// Members after it.
    pub present: u32,
}

/// An inbox entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whose inbox.
    pub user_id: UserId,
    /// Dense per user, from 1.
    pub inbox_seq: u64,
    /// What it names.
    pub row: EntryRow,
}

/// What an inbox entry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum EntryRow {
    /// An event.
    Event {
        /// The chat.
        chat_id: ChatId,
        /// The event.
        seq: u64,
    },
    /// A change of the own state in a chat.
    Own {
        /// The chat.
        chat_id: ChatId,
    },
}

/// The name of a command. A creation has no chat of its own yet and is named under chat id 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CommandName {
    /// The chat; 0 for creations.
    pub chat_id: ChatId,
    /// Who.
    pub sender: UserId,
    /// The sender's name of it.
    pub client_msg_id: ClientMsgId,
}

/// What a command did first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandRow {
    /// Its name.
    pub name: CommandName,
    /// Where it went; the new chat of a creation.
    pub chat_id: ChatId,
    /// Of its first event.
    pub message_id: MessageId,
    /// Of its first event.
    pub seq: u64,
}

/// A membership. Stored by chat and by user.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct MemberRow {
    /// None after the last leave.
    pub role: Option<Role>,
    /// Oldest first.
    pub intervals: Vec<Interval>,
}

/// Marks of a member. All only rise, but `muted_until_ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct MarkRow {
    /// Delivered up to here.
    pub delivered_seq: u64,
    /// Read up to here.
    pub read_seq: u64,
    /// `ordinal` at `read_seq`.
    pub read_ordinal: u64,
    /// Own messages at or below `read_seq`.
    pub read_sent: u64,
    /// Unix milliseconds; 0: not muted.
    pub muted_until_ms: u64,
}

/// New marks of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkWrite {
    /// The chat.
    pub chat_id: ChatId,
    /// The member.
    pub user_id: UserId,
    /// All values, already merged by the writer.
    pub row: MarkRow,
    /// The entry for the user's own devices, where the own state changed.
    pub inbox_seq: Option<u64>,
}

/// The state of a log at a `seq`, so that loading needs no long replay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Checkpoint {
    /// After this event.
    pub seq: u64,
    /// Messages up to it.
    pub ordinal: u64,
    /// The last id given in the chat.
    pub message_id: u64,
    /// A group's title.
    pub title: String,
    /// Own messages of everyone who sent one and is, or was, a member. Of a channel, where own messages are not counted:
    /// how many members there are now, under user id 0, which nobody has ([`Checkpoint::of_channel`]).
    pub sent: Vec<(UserId, u64)>,
}

impl Checkpoint {
    /// A channel's. So the count of members is in a row that both engines have had from the first, and costs no walk.
    pub fn of_channel(seq: u64, ordinal: u64, message_id: u64, title: String, present: u64) -> Checkpoint {
        Checkpoint { seq, ordinal, message_id, title, sent: vec![(UserId(0), present)] }
    }

    /// Members of a channel after this event.
    pub fn channel_members(&self) -> u64 {
        self.sent.first().map_or(0, |(_, present)| *present)
    }
}

/// A chat as it is loaded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredChat {
    /// The newest checkpoint.
    pub checkpoint: Checkpoint,
    /// Events above it, in order, whole to the head.
    pub tail: Vec<Event>,
    /// Everyone who is or was a member; nobody of a channel, whose members are loaded one by one.
    pub members: Vec<StoredMember>,
}

/// A member as it is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredMember {
    /// Who.
    pub user_id: UserId,
    /// Role and intervals, at the head.
    pub row: MemberRow,
    /// Marks.
    pub marks: MarkRow,
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct UserRow {
    /// The id.
    pub user_id: UserId,
    /// The name; empty without one.
    pub name: String,
    /// The token's `iss` at the first login.
    pub issuer: String,
    /// The token's `sub` at the first login.
    pub subject: String,
}

/// A user as it is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredUser {
    /// The row.
    pub row: UserRow,
    /// The last entry of the inbox; 0 when it is empty.
    pub inbox_head: u64,
}

/// A consistent sight of what is confirmed: everything that was answered as durable, and nothing that was not.
///
/// Not every view is one moment. One that is not keeps within an answer what it said of heads, inbox heads and
/// checkpoints, and these fit each other; rows of members and marks are newer or as old as the heads asked for before.
pub trait View {
    /// Whether all answers are of one moment.
    fn is_snapshot(&self) -> bool {
        true
    }
    /// Says what will be asked for next, so that it can be fetched at once. Changes no answer.
    fn ahead(&self, _wants: &[Want]) {}
    /// A user with the head of the inbox.
    fn user(&self, user_id: UserId) -> Result<Option<StoredUser>, ReadError>;
    /// A user without the inbox.
    fn profile(&self, user_id: UserId) -> Result<Option<UserRow>, ReadError> {
        Ok(self.user(user_id)?.map(|user| user.row))
    }
    /// The value of a unique key.
    fn unique(&self, key: &str) -> Result<Option<u128>, ReadError>;
    /// Entries in (after, after + limit], in order.
    fn entries(&self, user_id: UserId, after: u64, limit: u32) -> Result<Vec<(u64, EntryRow)>, ReadError>;
    /// One event.
    fn event(&self, chat_id: ChatId, seq: u64) -> Result<Option<Event>, ReadError>;
    /// The newest event; nothing when the chat was never written.
    fn head(&self, chat_id: ChatId) -> Result<Option<Event>, ReadError>;
    /// Events in `from..=to`, at most `limit`, from the low end, or from the high end when `newest_first`, in the order
    /// in which they were met.
    fn events(
        &self,
        chat_id: ChatId,
        from: u64,
        to: u64,
        limit: u32,
        newest_first: bool,
    ) -> Result<Vec<Event>, ReadError>;
    /// Messages of `sender` in `from..=to`.
    fn count_messages(&self, chat_id: ChatId, sender: UserId, from: u64, to: u64) -> Result<u64, ReadError>;
    /// The newest checkpoint; the default one when there is none.
    fn checkpoint(&self, chat_id: ChatId) -> Result<Checkpoint, ReadError>;
    /// Role and intervals of one member.
    fn member(&self, chat_id: ChatId, user_id: UserId) -> Result<Option<MemberRow>, ReadError>;
    /// Marks of one member.
    fn marks(&self, chat_id: ChatId, user_id: UserId) -> Result<MarkRow, ReadError>;
    /// Members (present and past) after `after`, by id.
    fn members(
        &self,
        chat_id: ChatId,
        after: Option<UserId>,
        limit: u32,
    ) -> Result<Vec<(UserId, MemberRow)>, ReadError>;
    /// How many members there are now. May cost a walk over all of them: not for channels, whose checkpoint says it.
    fn member_count(&self, chat_id: ChatId) -> Result<u32, ReadError>;
    /// Chats that the user is or was in, after `after`, by id.
    fn chats(&self, user_id: UserId, after: Option<ChatId>, limit: u32) -> Result<Vec<(ChatId, MemberRow)>, ReadError>;
}

/// What will be asked of a [`View`] next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// An event.
    Event {
        /// The chat.
        chat_id: ChatId,
        /// Which.
        seq: u64,
    },
    /// Head, checkpoint, and count of own messages above it; then the membership, the marks, and the last event of who
    /// left.
    Chat {
        /// The chat.
        chat_id: ChatId,
        /// As whom.
        user_id: UserId,
    },
    /// Marks of a member.
    Marks {
        /// The chat.
        chat_id: ChatId,
        /// Whose.
        user_id: UserId,
    },
    /// A user.
    Profile(UserId),
    /// A unique key.
    Unique(String),
}

/// Why a read has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// Damaged or unreadable data. Operators must look: the text names what the engine can name (table, key, file).
    Damaged(String),
    /// Nothing is wrong with the data: the same read may be answered later.
    Unavailable(String),
}

impl std::fmt::Display for ReadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (ReadError::Damaged(text) | ReadError::Unavailable(text)) = self;
        f.write_str(text)
    }
}

impl std::error::Error for ReadError {}

/// The unique key of an identity.
pub fn identity_key(issuer: &str, subject: &str) -> String {
    format!("i\0{issuer}\0{subject}")
}

/// The unique key of a name.
pub fn name_key(name: &str) -> String {
    format!("n\0{name}")
}
