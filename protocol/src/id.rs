//! The ids of Parley as newtypes, with their bit layouts and their text forms. Layouts are frozen: they are in stores.

use rkyv::{Archive, Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A text that is not an id of the kind asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdParseError(
    /// What was expected.
    pub &'static str,
);

impl fmt::Display for IdParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", self.0)
    }
}

impl std::error::Error for IdParseError {}

macro_rules! text_form {
    ($name:ident) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
        impl From<$crate::id::rkyv_names::$name> for $name {
            fn from(archived: $crate::id::rkyv_names::$name) -> Self {
                Self(archived.0.to_native())
            }
        }
        impl From<&$crate::id::rkyv_names::$name> for $name {
            fn from(archived: &$crate::id::rkyv_names::$name) -> Self {
                Self(archived.0.to_native())
            }
        }
    };
}

/// The archived forms under the names of the ids, for the macros of this file.
pub(crate) mod rkyv_names {
    pub(crate) use super::{
        ArchivedChatId as ChatId, ArchivedClientMsgId as ClientMsgId, ArchivedDeviceId as DeviceId,
        ArchivedMessageId as MessageId, ArchivedUserId as UserId,
    };
}

macro_rules! decimal_id {
    ($name:ident, $expected:literal) => {
        text_form!($name);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
        impl FromStr for $name {
            type Err = IdParseError;
            fn from_str(text: &str) -> Result<Self, IdParseError> {
                let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                match text.parse::<u64>() {
                    Ok(value) if digits && value > 0 && value >> 63 == 0 => Ok(Self(value)),
                    _ => Err(IdParseError($expected)),
                }
            }
        }
    };
}

macro_rules! hex_id {
    ($name:ident, $expected:literal) => {
        text_form!($name);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }
        impl FromStr for $name {
            type Err = IdParseError;
            fn from_str(text: &str) -> Result<Self, IdParseError> {
                let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
                if text.len() != 32 || !text.bytes().all(lower) {
                    return Err(IdParseError($expected));
                }
                u128::from_str_radix(text, 16).map(Self).map_err(|_| IdParseError($expected))
            }
        }
    };
}

/// A user: 63 bits, allocated by the storage-writer at the first login, never 0. Text: decimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize)]
#[rkyv(derive(Clone, Copy))]
pub struct UserId(
    /// 1 to 2^63 - 1.
    pub u64,
);
decimal_id!(UserId, "a user id: a decimal number from 1 to 2^63 - 1");

impl UserId {
    /// Whether the number is in range. JSON takes no other; rkyv carries any.
    pub const fn is_valid(self) -> bool {
        self.0 != 0 && self.0 >> USER_BITS == 0
    }
}

/// A Snowflake: 63 bits, rising within a chat and in commit order within a writer. Text: decimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize)]
#[rkyv(derive(Clone, Copy))]
pub struct MessageId(
    /// 41 bits of milliseconds since 2024-01-01 UTC, 10 of worker, 12 of sequence.
    pub u64,
);
decimal_id!(MessageId, "a message id: a decimal number from 1 to 2^63 - 1");

/// Chosen by the sender, for ever the name of one command of that sender in that chat. Text: 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize)]
#[rkyv(derive(Clone, Copy))]
pub struct ClientMsgId(
    /// Any value; a random or time-ordered UUID is a good choice.
    pub u128,
);
hex_id!(ClientMsgId, "a client message id: 32 lower-case hex digits");

/// A device, by an id of its own choosing that it keeps. Text: 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize)]
#[rkyv(derive(Clone, Copy))]
pub struct DeviceId(
    /// Any value; random is a good choice.
    pub u128,
);
hex_id!(DeviceId, "a device id: 32 lower-case hex digits");

/// A chat. Text: 32 lower-case hex digits.
///
/// The two top bits are a tag. `01`: a direct chat, then the smaller and the larger user id, 63 bits each; whoever
/// starts it computes the same id, without a lookup. `10`: a group, with a Snowflake in the low 63 bits and zeros
/// between. `11`: a channel, with a Snowflake in the low 63 bits and, of the bits between, the lowest set where everybody
/// may write: who may is settled at creation, and every tier knows without asking.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize)]
#[rkyv(derive(Clone, Copy))]
pub struct ChatId(
    /// The tagged value; [`ChatId::kind`] says whether it is well-formed.
    pub u128,
);
hex_id!(ChatId, "a chat id: 32 lower-case hex digits");

/// What a well-formed [`ChatId`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChatKind {
    /// The chat of two different users, the smaller id first.
    Direct(UserId, UserId),
    /// A group, by its Snowflake.
    Group(u64),
    /// A channel, by its Snowflake.
    Channel(u64, Posting),
}

/// Who may write in a channel.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[rkyv(derive(Clone, Copy, Debug))]
#[repr(u8)]
pub enum Posting {
    /// The owner and admins.
    #[default]
    Admins = 1,
    /// Every member.
    Everybody = 2,
}

const USER_BITS: u32 = 63;
const USER_MASK: u128 = (1 << USER_BITS) - 1;
const TAG_SHIFT: u32 = 126;
const TAG_DIRECT: u128 = 0b01;
const TAG_GROUP: u128 = 0b10;
const TAG_CHANNEL: u128 = 0b11;
const EVERYBODY: u64 = 1;
const _: () = assert!(2 * USER_BITS == TAG_SHIFT && TAG_SHIFT + 2 == u128::BITS);

impl ChatId {
    /// The direct chat of two users, in either order; `None` with oneself or with an id out of range.
    pub fn direct(a: UserId, b: UserId) -> Option<Self> {
        if a == b || !a.is_valid() || !b.is_valid() {
            return None;
        }
        let (low, high) = if a < b { (a, b) } else { (b, a) };
        Some(Self(TAG_DIRECT << TAG_SHIFT | u128::from(low.0) << USER_BITS | u128::from(high.0)))
    }

    /// The group that was created under this Snowflake.
    pub fn group(snowflake: u64) -> Self {
        debug_assert!(snowflake != 0 && snowflake >> USER_BITS == 0);
        Self(TAG_GROUP << TAG_SHIFT | u128::from(snowflake))
    }

    /// The channel that was created under this Snowflake.
    pub fn channel(snowflake: u64, posting: Posting) -> Self {
        debug_assert!(snowflake != 0 && snowflake >> USER_BITS == 0);
        let high = if posting == Posting::Everybody { EVERYBODY } else { 0 };
        Self(TAG_CHANNEL << TAG_SHIFT | u128::from(high) << USER_BITS | u128::from(snowflake))
    }

    /// Whether it names a channel.
    pub fn is_channel(self) -> bool {
        matches!(self.kind(), Some(ChatKind::Channel(..)))
    }

    /// What the id names; `None` when it is not well-formed.
    pub fn kind(self) -> Option<ChatKind> {
        let high = (self.0 >> USER_BITS & USER_MASK) as u64;
        let low = (self.0 & USER_MASK) as u64;
        match self.0 >> TAG_SHIFT {
            TAG_DIRECT if high != 0 && high < low => Some(ChatKind::Direct(UserId(high), UserId(low))),
            TAG_GROUP if high == 0 && low != 0 => Some(ChatKind::Group(low)),
            TAG_CHANNEL if low != 0 => match high {
                0 => Some(ChatKind::Channel(low, Posting::Admins)),
                EVERYBODY => Some(ChatKind::Channel(low, Posting::Everybody)),
                _ => None,
            },
            _ => None,
        }
    }

    /// The other user of a direct chat; `None` for groups, for channels and for chats that `user` is not in.
    pub fn peer_of(self, user: UserId) -> Option<UserId> {
        match self.kind() {
            Some(ChatKind::Direct(a, b)) if a == user => Some(b),
            Some(ChatKind::Direct(a, b)) if b == user => Some(a),
            _ => None,
        }
    }
}
