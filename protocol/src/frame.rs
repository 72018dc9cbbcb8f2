//! The frames that clients and gateways exchange: one semantic model, encoded in rkyv or JSON by `wire`.
//! Frozen for version 1. `docs/PROTOCOL.md` shows each and says what a client must do.

#![expect(missing_docs, reason = "the derive of the archived forms leaves fields of struct variants undocumented")]

use crate::event::{Event, OwnState};
use crate::{ChatId, ClientMsgId, DeviceId, Envelope, ErrorCode, MessageId, Posting, Role, UserId};
use rkyv::{Archive, Deserialize, Serialize};

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ClientFrame {
    /// The first frame, and only the first.
    Hello(Hello),
    /// Appends a message to a chat. Answer: `Sent` or `Error` with the `client_msg_id`.
    Send(Send),
    /// Creates a group. Answer: `Sent`, which names the new chat, or `Error`.
    GroupCreate(GroupCreate),
    /// Adds, removes, promotes, renames, leaves. Answer: `Sent` or `Error`.
    GroupChange(GroupChange),
    /// Everything up to `seq` reached this device. No answer.
    Delivered(Position),
    /// Everything up to `seq` was read by the user. No answer; the user's devices get `Own`.
    Read(Position),
    /// Makes a chat silent for oneself. The user's devices get `Own`.
    Mute(Mute),
    /// Live events of a chat above the inbox limit, while one looks at it. Answer: `Head` or `Error`.
    Subscribe(ChatRef),
    /// Ends that.
    Unsubscribe(ChatRef),
    /// One's chats, with heads, unread counts and the last message. Answer: `ChatList`.
    Chats(Chats),
    /// A page of a chat's log. Answer: `HistoryPage`.
    History(History),
    /// A page of a group's members with their marks. Answer: `MemberPage`.
    Members(Members),
    /// Ids of names. Answer: `Users`, without those that do not exist.
    Resolve(Resolve),
    /// Names of ids. Answer: `Users`.
    Profiles(Profiles),
    /// Says that one is alive; at least every `heartbeat_interval_ms` without other frames. Answer: `Pong`.
    Ping(Ping),
    /// A new token before the old one expires. Answer: `Renewed` or `Error`.
    Renew(Renew),
    /// Service role: ends the sessions of a device of the user that the session acts for.
    DeviceEnd(DeviceEnd),
    /// Creates a channel. Answer: `Sent`, which names the new chat, or `Error`.
    ChannelCreate(ChannelCreate),
}

/// Opens a session.
#[derive(Clone, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`crate::limits::PROTOCOL_VERSION`].
    pub version: u16,
    /// The device's own id.
    pub device_id: DeviceId,
    /// An access token, unless the upgrade request carried one in `Authorization`, or `resume` is there.
    #[serde(default)]
    pub token: Option<String>,
    /// A ticket of an earlier `Welcome` or `Reconnect`, in place of a token.
    #[serde(default)]
    pub resume: Option<String>,
    /// The last `Mark` that the device received; absent on a new device.
    #[serde(default)]
    pub mark: Option<u64>,
    /// Event kinds that the client understands beyond version 1's.
    #[serde(default)]
    pub kinds_known: Vec<u16>,
    /// Name and version of the client, for logs of operators.
    #[serde(default)]
    pub client: String,
    /// Service role only: the user on whose behalf this session acts. Such a session gets no stream.
    #[serde(default)]
    pub act_for: Option<UserId>,
}

/// A message to a chat.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "crate::json::SendIn")]
pub struct Send {
    /// Where to.
    pub chat_id: ChatId,
    /// The command's name, for ever: a retry carries the same.
    pub client_msg_id: ClientMsgId,
    /// Kind, flags (0 from clients) and body.
    #[serde(flatten)]
    pub envelope: Envelope,
}

/// A new group. The sender becomes its owner.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupCreate {
    /// The command's name.
    pub client_msg_id: ClientMsgId,
    /// May be empty.
    #[serde(default)]
    pub title: String,
    /// Members besides the sender.
    #[serde(default)]
    pub members: Vec<UserId>,
}

/// A new channel. The sender becomes its owner, and its one member; others join.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelCreate {
    /// The command's name.
    pub client_msg_id: ClientMsgId,
    /// May be empty.
    #[serde(default)]
    pub title: String,
    /// Who may write; settled for ever.
    #[serde(default)]
    pub posting: Posting,
}

/// A change of a group.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupChange {
    /// The group.
    pub chat_id: ChatId,
    /// The command's name.
    pub client_msg_id: ClientMsgId,
    /// What to do.
    pub change: Change,
}

/// What to do to a group.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// Adds members. Admins.
    Add {
        /// Whom.
        users: Vec<UserId>,
    },
    /// Removes members of a lower role. Admins.
    Remove {
        /// Whom.
        users: Vec<UserId>,
    },
    /// Gives a member a role; `owner` hands over, and the old owner becomes an admin. The owner.
    Role {
        /// Whom.
        user: UserId,
        /// The new role.
        role: Role,
    },
    /// A new title. Admins.
    Rename {
        /// At most [`crate::limits::TITLE_BYTES_MAX`] bytes.
        title: String,
    },
    /// Leaves. Anyone but the owner.
    Leave {},
    /// Comes into a channel. Anyone.
    Join {},
}

/// A position in a chat's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The chat.
    pub chat_id: ChatId,
    /// The position, inclusive.
    pub seq: u64,
}

/// A chat made silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mute {
    /// The chat.
    pub chat_id: ChatId,
    /// Unix milliseconds; 0 ends it.
    pub until_ms: u64,
}

/// A chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatRef {
    /// The chat.
    pub chat_id: ChatId,
}

/// Asks for one's chats, in the order of their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chats {
    /// Comes back in the answer.
    pub request_id: u32,
    /// The last chat of the page before; absent for the first.
    #[serde(default)]
    pub after: Option<ChatId>,
    /// At most [`crate::limits::CHATS_PAGE_MAX`]; 0 takes that.
    #[serde(default)]
    pub limit: u32,
}

/// Asks for a page of a log. Without `before` and `after`: the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// Comes back in the answer.
    pub request_id: u32,
    /// The chat.
    pub chat_id: ChatId,
    /// Events below this `seq`, the nearest ones.
    #[serde(default)]
    pub before: Option<u64>,
    /// Events above this `seq`, the nearest ones. Not together with `before`.
    #[serde(default)]
    pub after: Option<u64>,
    /// At most [`crate::limits::HISTORY_PAGE_MAX`]; 0 takes that.
    #[serde(default)]
    pub limit: u32,
}

/// Asks for members, in the order of their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Members {
    /// Comes back in the answer.
    pub request_id: u32,
    /// The chat.
    pub chat_id: ChatId,
    /// The last member of the page before; absent for the first.
    #[serde(default)]
    pub after: Option<UserId>,
    /// At most [`crate::limits::MEMBERS_PAGE_MAX`]; 0 takes that.
    #[serde(default)]
    pub limit: u32,
}

/// Asks for the ids of names.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolve {
    /// Comes back in the answer.
    pub request_id: u32,
    /// At most [`crate::limits::RESOLVE_MAX`].
    pub names: Vec<String>,
}

/// Asks for the names of ids.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profiles {
    /// Comes back in the answer.
    pub request_id: u32,
    /// At most [`crate::limits::RESOLVE_MAX`].
    pub users: Vec<UserId>,
}

/// A sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ping {
    /// Comes back in the answer.
    #[serde(default)]
    pub nonce: u32,
}

/// A new token.
#[derive(Clone, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Renew {
    /// For the same user.
    pub token: String,
}

/// Ends a device's sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceEnd {
    /// The device.
    pub device_id: DeviceId,
}

/// What a gateway says.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerFrame {
    /// The session is open.
    Welcome(Welcome),
    /// The command is durable.
    Sent(Sent),
    /// The request was not done.
    Error(Error),
    /// An event of a chat.
    Event(Event),
    /// One's own state in a chat.
    Own(OwnState),
    /// Another member's marks in a chat.
    Receipt(Receipt),
    /// The head of a chat above the inbox limit.
    Head(Head),
    /// How far the stream has come; store it with what came before it.
    Mark(Mark),
    /// The backlog is not sent: take `mark`, fetch `Chats`, and fill from history.
    Truncated(Truncated),
    /// Answer to `Chats`.
    ChatList(ChatList),
    /// Answer to `History`.
    HistoryPage(HistoryPage),
    /// Answer to `Members`.
    MemberPage(MemberPage),
    /// Answer to `Resolve` and `Profiles`.
    Users(Users),
    /// Answer to `Ping`.
    Pong(Pong),
    /// Connect again after a delay, with this ticket.
    Reconnect(Reconnect),
    /// The new token holds.
    Renewed(Renewed),
}

/// The session is open.
#[derive(Clone, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct Welcome {
    /// Who one is.
    pub user_id: UserId,
    /// One's name; empty without one.
    pub name: String,
    /// Resumes a session of this device without a token until it expires.
    pub resume: String,
    /// Unix milliseconds at which `resume` expires.
    pub resume_expires_at_ms: u64,
    /// Unix milliseconds of the gateway's clock.
    pub server_time_ms: u64,
    /// Say something at least this often.
    pub heartbeat_interval_ms: u32,
    /// Payload of a message at the most.
    pub payload_bytes_max: u32,
    /// A frame from the client at the most.
    pub frame_bytes_max: u32,
    /// Requests without an answer at the most.
    pub requests_in_flight_max: u32,
}

/// A command is durable. A retry gets the ids of the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct Sent {
    /// The chat; the new one after `GroupCreate`.
    pub chat_id: ChatId,
    /// The command's name.
    pub client_msg_id: ClientMsgId,
    /// The (first) event's id.
    pub message_id: MessageId,
    /// The (first) event's position.
    pub seq: u64,
}

/// A request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct Error {
    /// Says what to do.
    pub code: ErrorCode,
    /// For people: what was wrong.
    pub message: String,
    /// Of the command that it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_msg_id: Option<ClientMsgId>,
    /// Of the request that it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<u32>,
    /// Of the frame that it answers, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_id: Option<ChatId>,
    /// With `rate_limited` and `unavailable`: when to try again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u32>,
}

/// A member's marks; they only rise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct Receipt {
    /// The chat.
    pub chat_id: ChatId,
    /// The member.
    pub user_id: UserId,
    /// Everything up to here reached a device of the member.
    pub delivered_seq: u64,
    /// Everything up to here was read by the member.
    pub read_seq: u64,
}

/// The head of a chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct Head {
    /// The chat.
    pub chat_id: ChatId,
    /// The newest event.
    pub seq: u64,
    /// Messages up to it.
    pub ordinal: u64,
}

/// Everything up to `inbox_seq` was put into this stream before this frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct Mark {
    /// Present it in the next `Hello`.
    pub inbox_seq: u64,
    /// The newest entry that the gateway knows of: at `inbox_seq == head` the stream has caught up.
    pub head: u64,
}

/// The backlog is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct Truncated {
    /// The new mark; the stream goes on above it.
    pub mark: u64,
}

/// A page of one's chats.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct ChatList {
    /// Of the request.
    pub request_id: u32,
    /// In the order of their ids.
    pub chats: Vec<ChatSummary>,
    /// There are more, after the last of these.
    pub more: bool,
}

/// A chat as one of its members sees it.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct ChatSummary {
    /// The chat.
    pub chat_id: ChatId,
    /// A group's title; empty for direct chats.
    pub title: String,
    /// Members now.
    pub members: u32,
    /// One's role; none after one left.
    pub role: Option<Role>,
    /// The newest event that one may see.
    pub head_seq: u64,
    /// Messages up to it.
    pub head_ordinal: u64,
    /// One's own delivered mark.
    pub delivered_seq: u64,
    /// One's own state.
    pub own: OwnState,
    /// Messages of others above one's read mark.
    pub unread: u64,
    /// The ranges of the log that one may read, oldest first.
    pub intervals: Vec<Interval>,
    /// Above the inbox limit: live events only while subscribed.
    pub large: bool,
    /// The newest event that one may see.
    pub last: Option<Event>,
}

/// A time as a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[rkyv(derive(Clone, Copy))]
pub struct Interval {
    /// The event that let one in.
    pub joined_seq: u64,
    /// The event that took one out; none while a member.
    pub left_seq: Option<u64>,
    /// The first event that one may read.
    pub history_from: u64,
}

impl Interval {
    /// Whether `seq` may be read in this time.
    pub fn contains(&self, seq: u64) -> bool {
        seq >= self.history_from && self.left_seq.is_none_or(|left| seq <= left)
    }
}

/// A page of a log.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct HistoryPage {
    /// Of the request.
    pub request_id: u32,
    /// The chat.
    pub chat_id: ChatId,
    /// Rising by `seq`, whatever the direction asked for. Gaps only where one was not a member.
    pub events: Vec<Event>,
    /// There are more in the direction asked for.
    pub more: bool,
}

/// A page of members.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct MemberPage {
    /// Of the request.
    pub request_id: u32,
    /// The chat.
    pub chat_id: ChatId,
    /// In the order of their ids.
    pub members: Vec<Member>,
    /// There are more, after the last of these.
    pub more: bool,
}

/// A member and its marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct Member {
    /// The member.
    pub user_id: UserId,
    /// Its role.
    pub role: Role,
    /// See [`Receipt`].
    pub delivered_seq: u64,
    /// See [`Receipt`].
    pub read_seq: u64,
}

/// Names and ids.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct Users {
    /// Of the request.
    pub request_id: u32,
    /// Those that exist.
    pub users: Vec<UserName>,
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct UserName {
    /// The id.
    pub user_id: UserId,
    /// The name; empty without one.
    pub name: String,
}

/// Answer to `Ping`; a `Mark` comes before it where the stream has moved since the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct Pong {
    /// Of the ping.
    pub nonce: u32,
}

/// Connect again.
#[derive(Clone, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct Reconnect {
    /// How long to wait; the server spreads these.
    pub delay_ms: u32,
    /// A fresh ticket.
    pub resume: String,
    /// Unix milliseconds at which `resume` expires.
    pub resume_expires_at_ms: u64,
}

/// The new token holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct Renewed {
    /// Unix milliseconds at which it expires.
    pub expires_at_ms: u64,
}
