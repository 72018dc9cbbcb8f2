//! Error codes of the wire: each says what the caller can do. `docs/PROTOCOL.md` has one entry for each.

use rkyv::{Archive, Deserialize, Serialize};

/// Why a request was not done. Frozen numbers; JSON has the snake-case names.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[rkyv(derive(Clone, Copy, Debug))]
#[repr(u8)]
pub enum ErrorCode {
    /// The frame does not decode, or a field is out of its bounds. Do not resend it.
    BadFrame = 1,
    /// The chat does not exist, or you are not in it: the same answer for both.
    NoSuchChat = 2,
    /// No user has this id.
    NoSuchUser = 3,
    /// Your role in the chat does not allow it.
    Forbidden = 4,
    /// The payload is larger than the server takes.
    TooLarge = 5,
    /// Too fast; try again after `retry_after_ms`.
    RateLimited = 6,
    /// The server cannot make it durable now; resend the same frame after `retry_after_ms`.
    Unavailable = 7,
    /// The group has as many members as it may.
    GroupFull = 8,
    /// Not possible for this kind of chat (a direct chat has no members to change, no title).
    WrongChatKind = 9,
    /// The owner hands over before leaving.
    OwnerMustHandOver = 10,
    /// The sequence number is above the head of the chat.
    NoSuchSeq = 11,
    /// This kind of event is not taken from clients.
    UnsupportedKind = 12,
    /// The new token is not valid; the session goes on until the old one expires.
    BadToken = 13,
    /// Too many requests without an answer, or too many subscriptions; wait for answers.
    TooMany = 14,
    /// The user is a member already, or is not one.
    NoChange = 15,
    /// Data of this chat or inbox is damaged on disk; operators are told.
    Damaged = 16,
}
