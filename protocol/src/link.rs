//! What a gateway's shard and the storage-writer say to each other over their link: rkyv records behind a length.
//!
//! Requests are numbered per gateway instance and shard, densely from 1; every request gets exactly one answer, in any
//! order. After a link is cut the gateway sends everything unanswered again, in order and unchanged.

#![expect(missing_docs, reason = "the derive of the archived forms leaves fields of struct variants undocumented")]

use crate::event::{Event, OwnState};
use crate::frame::{Change, ChatSummary, Interval, Member, UserName};
use crate::{ChatId, ClientMsgId, Envelope, ErrorCode, MessageId, Posting, Role, UserId};
use rkyv::{Archive, Deserialize, Serialize};

/// Gateway to writer.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum ToWriter {
    /// The first record of a link.
    Hello(LinkHello),
    /// Something to do.
    Request(Request),
}

/// Opens a link.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct LinkHello {
    /// [`crate::limits::LINK_VERSION`].
    pub version: u16,
    /// The gateway process, by a random id of its own: all its shards share one grant.
    pub gateway: u128,
    /// Which shard this link serves.
    pub shard: u16,
    /// How many shards the gateway has.
    pub shards: u16,
    /// The epoch that the gateway was granted; 0 asks for one. It never asks twice.
    pub home_epoch: u64,
}

/// A request under an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Request {
    /// Dense per gateway instance and shard.
    pub no: u64,
    /// The epoch under which the home runs that asks.
    pub home_epoch: u64,
    /// What.
    pub ask: Ask,
}

/// What a home or session asks of the storage tier.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Ask {
    /// The barrier: lower epochs are refused for this partition from the answer on, and nothing older can commit.
    /// Answer: `Opened`, `Fenced` or `Failed`.
    Open {
        /// The partition.
        partition: u16,
    },
    /// Who is in a chat, for its home. Answer: `Chat`, `Refused` or `Failed`.
    LoadChat {
        /// The chat.
        chat_id: ChatId,
    },
    /// A command for a log. Answer: `Durable`, `Duplicate`, `Refused` or `Failed`.
    Command(Command),
    /// Marks of a chat's members, coalesced by its home. Answer: `Marked` or `Failed`.
    Marks {
        /// The chat.
        chat_id: ChatId,
        /// At most one a member.
        marks: Vec<MarkUpdate>,
    },
    /// Mutes a chat for a user. Answer: `Marked`, `Refused` or `Failed`.
    Mute {
        /// The chat.
        chat_id: ChatId,
        /// The user.
        user_id: UserId,
        /// Unix milliseconds; 0 ends it.
        until_ms: u64,
    },
    /// A page of an inbox. Answer: `Inbox`.
    Inbox {
        /// Whose.
        user_id: UserId,
        /// Entries above this number.
        after: u64,
        /// Entries at the most; 0 asks for the head only.
        limit: u32,
    },
    /// A page of a log. Answer: `History` or `Refused`.
    History {
        /// Who asks.
        user_id: UserId,
        /// The chat.
        chat_id: ChatId,
        /// Below this `seq`.
        before: Option<u64>,
        /// Above this `seq`.
        after: Option<u64>,
        /// Events at the most.
        limit: u32,
    },
    /// A page of a user's chats. Answer: `Chats`.
    Chats {
        /// Whose.
        user_id: UserId,
        /// Chats after this one.
        after: Option<ChatId>,
        /// Chats at the most.
        limit: u32,
    },
    /// A page of a chat's members. Answer: `Members` or `Refused`.
    Members {
        /// Who asks.
        user_id: UserId,
        /// The chat.
        chat_id: ChatId,
        /// Members after this one.
        after: Option<UserId>,
        /// Members at the most.
        limit: u32,
    },
    /// The user of an identity, made at the first login. Answer: `LoggedIn` or `Failed`.
    Login {
        /// The token's `iss`.
        issuer: String,
        /// The token's `sub`.
        subject: String,
        /// The name asked for; empty for none. A name of another user stays that user's, and this one has none.
        name: String,
    },
    /// Users by name. Answer: `Users`.
    Resolve {
        /// At most [`crate::limits::RESOLVE_MAX`].
        names: Vec<String>,
    },
    /// Users by id. Answer: `Users`.
    Profiles {
        /// At most [`crate::limits::RESOLVE_MAX`].
        users: Vec<UserId>,
    },
    /// The user of an identity, without making one. Answer: `LoggedIn` or `Refused(NoSuchUser)`.
    LookUp {
        /// The token's `iss`.
        issuer: String,
        /// The token's `sub`.
        subject: String,
    },
    /// Which of these users are in a channel, after everything that was asked before. Answer: `Chat` with those who are,
    /// `Refused` or `Failed`.
    Among {
        /// The channel.
        chat_id: ChatId,
        /// At most [`crate::limits::MEMBER_CHANGES_MAX`].
        users: Vec<UserId>,
    },
}

/// A command, named for ever by (chat, sender, client_msg_id); a creation by (sender, client_msg_id).
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Command {
    /// The chat; none for a creation.
    pub chat_id: Option<ChatId>,
    /// Who.
    pub sender: UserId,
    /// The name.
    pub client_msg_id: ClientMsgId,
    /// What.
    pub action: Action,
}

/// What a command does.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Action {
    /// Appends an event of a kind that clients may send.
    Send(Envelope),
    /// Creates a group.
    Create {
        /// May be empty.
        title: String,
        /// Besides the sender.
        members: Vec<UserId>,
    },
    /// Changes a group.
    Change(Change),
    /// Creates a channel.
    CreateChannel {
        /// May be empty.
        title: String,
        /// Who may write.
        posting: Posting,
    },
}

/// New marks of a member; 0 leaves a mark where it is, and a lower one than stored changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct MarkUpdate {
    /// The member.
    pub user_id: UserId,
    /// Delivered up to here.
    pub delivered_seq: u64,
    /// Read up to here (and so delivered).
    pub read_seq: u64,
}

/// Writer to gateway.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum ToGateway {
    /// The link is open.
    Welcome(LinkWelcome),
    /// The gateway runs under a dead epoch and must end.
    Fenced,
    /// The link cannot be opened.
    Rejected {
        /// For people.
        reason: String,
    },
    /// An answer.
    Answer(Answer),
    /// Whether the storage tier takes commands; sent after every `Welcome` and whenever it changes.
    Status {
        /// It does.
        ready: bool,
        /// Why it does not, for people; empty when it does.
        reason: String,
    },
    /// This writer stands by: another one holds the lease, or nobody does yet. In place of `Welcome`, or at any time
    /// after it; nothing follows, and nothing that was asked on this link is answered here. The gateway tries the next
    /// writer that it knows.
    NotActive {
        /// Where the active one is, for people; empty when that is not known.
        active: String,
    },
}

/// The link is open.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct LinkWelcome {
    /// The epoch of the gateway: granted now, or the one it presented.
    pub home_epoch: u64,
    /// The writer's epoch, for logs.
    pub writer_epoch: u64,
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Answer {
    /// Of the request.
    pub no: u64,
    /// What.
    pub reply: Reply,
}

/// What the storage tier answers.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Reply {
    /// The barrier stands.
    Opened,
    /// Who is in the chat.
    Chat(ChatState),
    /// The command's events are durable, in `seq` order.
    Durable(Vec<Committed>),
    /// The command was durable before; these are its first ids.
    Duplicate {
        /// The chat (of a creation: the one that it made).
        chat_id: ChatId,
        /// Of the first event.
        message_id: MessageId,
        /// Of the first event.
        seq: u64,
    },
    /// The command or request is not allowed, and changed nothing.
    Refused(ErrorCode),
    /// The store could not make it durable, and it never will be by itself: the client may try again.
    Failed,
    /// The request's epoch is dead.
    Fenced,
    /// Marks after the update, each with what it changed.
    Marked(Vec<Marked>),
    /// A page of an inbox.
    Inbox(InboxPage),
    /// Events, rising.
    History {
        /// At most as many as asked for.
        events: Vec<Event>,
        /// There are more.
        more: bool,
    },
    /// Chats, rising by id.
    Chats {
        /// At most as many as asked for.
        chats: Vec<ChatSummary>,
        /// There are more.
        more: bool,
    },
    /// Members, rising by id.
    Members {
        /// At most as many as asked for.
        members: Vec<Member>,
        /// There are more.
        more: bool,
    },
    /// The identity's user.
    LoggedIn(UserName),
    /// Those that exist.
    Users(Vec<UserName>),
}

/// An event that became durable, with its place in the inboxes.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Committed {
    /// The event.
    pub event: Event,
    /// Every user with an inbox entry of it.
    pub targets: Vec<Target>,
    /// The chat is above the inbox limit after it: members without an entry are told by subscription and head.
    pub large: bool,
    /// Own states of those who came in with it, each with an entry: what was said before counts as read.
    pub joined: Vec<Marked>,
}

/// An inbox entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
#[rkyv(derive(Clone, Copy))]
pub struct Target {
    /// Whose inbox.
    pub user_id: UserId,
    /// Dense per user, from 1.
    pub inbox_seq: u64,
}

/// A chat as its home keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ChatState {
    /// The newest durable event; 0 for a direct chat that nobody wrote in.
    pub head_seq: u64,
    /// Messages up to it.
    pub head_ordinal: u64,
    /// Above the inbox limit.
    pub large: bool,
    /// Everybody in it now; of a channel, those who were asked about.
    pub members: Vec<MemberState>,
}

/// A member as the chat's home keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct MemberState {
    /// Who.
    pub user_id: UserId,
    /// The role.
    pub role: Role,
    /// See [`crate::frame::Receipt`].
    pub delivered_seq: u64,
    /// See [`crate::frame::Receipt`].
    pub read_seq: u64,
}

/// A member's marks after an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Marked {
    /// The member.
    pub user_id: UserId,
    /// Delivered up to here.
    pub delivered_seq: u64,
    /// The own state after it.
    pub own: OwnState,
    /// The entry that tells the user's own devices; none where the own state did not change.
    pub inbox_seq: Option<u64>,
}

/// A page of an inbox.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct InboxPage {
    /// The first number that the page does not hold lies before this: the `after` of the request.
    pub after: u64,
    /// The last number that the page covers; every number in (after, to] has its entry below.
    pub to: u64,
    /// The durable head of the inbox, read before the entries.
    pub head: u64,
    /// One an number, in order.
    pub entries: Vec<InboxEntry>,
}

/// An entry of an inbox.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum InboxEntry {
    /// An event of a chat.
    Event(Event),
    /// The own state in a chat, the newest known.
    Own(OwnState),
    /// Superseded: nothing to show under this number.
    Empty,
}

/// A membership as the store keeps it; here, because both engines and the summary share it.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Membership {
    /// None after the last leave.
    pub role: Option<Role>,
    /// Oldest first.
    pub intervals: Vec<Interval>,
}
