//! An event of a chat's log as it is stored and sent, and the own state of a user. Frozen: both are in stores.

use crate::{ChatId, ClientMsgId, Envelope, MessageId, UserId};
use rkyv::{Archive, Deserialize, Serialize};

/// One event of a chat's log.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct Event {
    /// The chat.
    pub chat_id: ChatId,
    /// Dense, from 1, per chat.
    pub seq: u64,
    /// How many messages the chat has up to here, this one included if it is one.
    pub ordinal: u64,
    /// Snowflake; its upper bits are the time of the commit.
    pub message_id: MessageId,
    /// Who did it.
    pub sender: UserId,
    /// How many messages the sender has in this chat, this one included if it is one.
    pub sender_sent: u64,
    /// The sender's name of the command.
    pub client_msg_id: ClientMsgId,
    /// Kind, flags, body.
    #[serde(flatten)]
    pub envelope: Envelope,
}

/// A change of one's own state in a chat, for one's own devices: the newest values, not what changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct OwnState {
    /// The chat.
    pub chat_id: ChatId,
    /// Everything up to this `seq` is read.
    pub read_seq: u64,
    /// The `ordinal` at `read_seq`.
    pub read_ordinal: u64,
    /// How many of the user's own messages lie at or below `read_seq`.
    pub read_sent: u64,
    /// Unix milliseconds until which the chat makes no noise; 0: not muted.
    pub muted_until_ms: u64,
}

/// Unread messages of a member: those of others above the read mark. `sent` is the member's count of own messages.
pub const fn unread(head_ordinal: u64, sent: u64, read_ordinal: u64, read_sent: u64) -> u64 {
    head_ordinal.saturating_sub(read_ordinal).saturating_sub(sent.saturating_sub(read_sent))
}
