//! What a shard counts, for operators. The shell copies it out; nothing here decides anything.

use crate::ws::FrameError;
use parley_protocol::ErrorCode;

macro_rules! stats {
    ($($(#[doc = $doc:literal])* $kind:ident $name:ident;)*) => {
        /// Counters and gauges of one shard.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[doc = $doc])* pub $name: u64,)*
            /// What was refused, by reason.
            pub rejected: Rejections,
        }

        impl Stats {
            /// How many values there are.
            pub const LEN: usize = [$(stringify!($name)),*].len();
            /// Name, Prometheus type and help of each value, in order.
            pub const TABLE: [(&'static str, &'static str, &'static str); Self::LEN] =
                [$((stringify!($name), stringify!($kind), concat!($($doc),*))),*];

            /// The values, in the order of the table.
            pub fn values(&self) -> [u64; Self::LEN] {
                [$(self.$name),*]
            }
        }
    };
}

stats! {
    /// Connections without a session yet.
    gauge lobby_connections;
    /// Sessions.
    gauge sessions;
    /// Users with a session here.
    gauge user_homes;
    /// Chat homes in memory.
    gauge chat_homes;
    /// Requests on the link without an answer.
    gauge link_unanswered;
    /// 1 while the link to the storage-writer is open.
    gauge link_up;
    /// 1 while the storage tier takes commands, as it said last.
    gauge storage_ready;
    /// Times the link was opened.
    counter link_opened_total;
    /// Requests refused before a session: bad heads, origins, tokens, deadlines.
    counter lobby_rejected_total;
    /// Sessions opened with a token.
    counter logins_total;
    /// Sessions opened with a ticket.
    counter resumes_total;
    /// Frames from clients.
    counter client_frames_total;
    /// Commands answered as durable.
    counter commands_sent_total;
    /// Error frames.
    counter errors_total;
    /// Inbox entries put into streams.
    counter entries_total;
    /// Entries held behind a hole.
    counter entries_held_total;
    /// Live entries dropped, to be read later.
    counter entries_dropped_total;
    /// Pages of inboxes read.
    counter inbox_reads_total;
    /// Backlogs truncated.
    counter truncated_total;
    /// Nudges sent for fan-out that found no room.
    counter nudges_total;
    /// Times a client's frame waited for room in a queue that it feeds.
    counter parks_total;
    /// Times a client's socket was not read while its frame waited.
    counter pauses_total;
    /// Sessions closed by the gateway with a code that is an error of the client.
    counter closed_violation_total;
    /// Sessions closed as stalled readers.
    counter closed_stalled_total;
    /// Sessions closed for silence.
    counter closed_silent_total;
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $variant:ident = $label:literal;)*) => {
        /// Why something that a client sent was refused: the label of one counter, so that there are only so many.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Reason {
            /// Every reason, in order.
            pub const ALL: [Self; [$($label),*].len()] = [$(Self::$variant),*];

            /// Its name in metrics.
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)*
                }
            }
        }
    };
}

reasons! {
    /// No place in the lobby, or the gateway drains: the connection is dropped.
    LobbyFull = "lobby_full";
    /// HTTP 400: not HTTP, a header that is missing, comes twice or is malformed, no known subprotocol.
    BadUpgrade = "bad_upgrade";
    /// HTTP 401: a malformed `Authorization`.
    Authorization = "authorization";
    /// HTTP 403: an `Origin` that is not listed.
    Origin = "origin";
    /// HTTP 404: another path.
    Path = "path";
    /// HTTP 405: another method than GET.
    Method = "method";
    /// HTTP 408: the head took too long.
    HeadSlow = "head_slow";
    /// HTTP 426: no upgrade, or another version of the WebSocket.
    UpgradeVersion = "upgrade_version";
    /// HTTP 431: more bytes or more headers than a head may have.
    HeadTooLarge = "head_too_large";
    /// HTTP 505: another version of HTTP.
    HttpVersion = "http_version";
    /// 1002: a frame without a mask.
    Unmasked = "unmasked";
    /// 1002: reserved bits.
    ReservedBits = "reserved_bits";
    /// 1002: a reserved opcode.
    ReservedOpcode = "reserved_opcode";
    /// 1002: a control frame above 125 bytes.
    ControlTooLong = "control_too_long";
    /// 1002: a control frame in fragments.
    ControlFragmented = "control_fragmented";
    /// 1002: a continuation of nothing.
    StrayContinuation = "stray_continuation";
    /// 1002: a new message inside a fragmented one.
    MessageInsideMessage = "message_inside_message";
    /// 1002: a length in more bytes than it needs.
    LengthNotMinimal = "length_not_minimal";
    /// 1002: a length with its top bit set.
    LengthTopBit = "length_top_bit";
    /// 1002: too many empty fragments in one message.
    EmptyFragments = "empty_fragments";
    /// 1002: a close payload of one byte.
    ClosePayload = "close_payload";
    /// 1002: a close code that must not be on the wire.
    CloseCode = "close_code";
    /// 1003: text on a binary subprotocol, or the other way round.
    MessageKind = "message_kind";
    /// 1007: text that is not UTF-8.
    NotUtf8 = "not_utf8";
    /// 1007: a message that does not decode as a frame.
    Undecodable = "undecodable";
    /// 1008: something else before `Hello`.
    NotHello = "not_hello";
    /// 1008: `Hello` twice.
    HelloTwice = "hello_twice";
    /// 1008: a `Hello` whose fields are out of their bounds.
    HelloBounds = "hello_bounds";
    /// 1008: pings without a `Hello`.
    HelloPings = "hello_pings";
    /// 1008 before `Welcome`, 4001 after: more sent ahead than is kept.
    SentAhead = "sent_ahead";
    /// 1009: a message above the limit.
    MessageTooBig = "message_too_big";
    /// 4001: takes nothing from its socket.
    StalledReader = "stalled_reader";
    /// 4002: silence.
    Silent = "silent";
    /// 4003: nobody to log in with, because the storage tier does not answer.
    LoginUnavailable = "login_unavailable";
    /// 4010: no `Hello` in time.
    NoHello = "no_hello";
    /// 4010: neither a token nor a ticket that could be looked at instead.
    NoCredentials = "no_credentials";
    /// 4010, or the error `bad_token`: a token that is not accepted.
    Token = "token";
    /// A resume ticket that is not accepted; 4010 where no token stands beside it.
    Ticket = "ticket";
    /// 4011: the token expired and was not renewed.
    TokenExpired = "token_expired";
    /// 4022: as many devices as allowed are there.
    TooManyDevices = "too_many_devices";
    /// 4024: another protocol version.
    ProtocolVersion = "protocol_version";
    /// The error `bad_frame`.
    BadFrame = "bad_frame";
    /// The error `no_such_chat`: not there, or not the asker's.
    NoSuchChat = "no_such_chat";
    /// The error `no_such_user`.
    NoSuchUser = "no_such_user";
    /// The error `forbidden`; 4023: `act_for` without the service role.
    Forbidden = "forbidden";
    /// The error `too_large`.
    TooLarge = "too_large";
    /// The error `rate_limited`.
    RateLimited = "rate_limited";
    /// The error `unavailable`.
    Unavailable = "unavailable";
    /// The error `group_full`.
    GroupFull = "group_full";
    /// The error `wrong_chat_kind`.
    WrongChatKind = "wrong_chat_kind";
    /// The error `owner_must_hand_over`.
    OwnerMustHandOver = "owner_must_hand_over";
    /// The error `no_such_seq`.
    NoSuchSeq = "no_such_seq";
    /// The error `unsupported_kind`.
    UnsupportedKind = "unsupported_kind";
    /// The error `too_many`.
    TooMany = "too_many";
    /// The error `no_change`.
    NoChange = "no_change";
    /// The error `damaged`.
    Damaged = "damaged";
}

impl From<FrameError> for Reason {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Unmasked => Self::Unmasked,
            FrameError::ReservedBits => Self::ReservedBits,
            FrameError::ReservedOpcode => Self::ReservedOpcode,
            FrameError::ControlTooLong => Self::ControlTooLong,
            FrameError::ControlFragmented => Self::ControlFragmented,
            FrameError::StrayContinuation => Self::StrayContinuation,
            FrameError::MessageInsideMessage => Self::MessageInsideMessage,
            FrameError::LengthNotMinimal => Self::LengthNotMinimal,
            FrameError::LengthTopBit => Self::LengthTopBit,
            FrameError::EmptyFragments => Self::EmptyFragments,
            FrameError::NotUtf8 => Self::NotUtf8,
            FrameError::ClosePayload => Self::ClosePayload,
            FrameError::CloseCode => Self::CloseCode,
            FrameError::MessageTooBig => Self::MessageTooBig,
        }
    }
}

impl From<ErrorCode> for Reason {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::BadFrame => Self::BadFrame,
            ErrorCode::NoSuchChat => Self::NoSuchChat,
            ErrorCode::NoSuchUser => Self::NoSuchUser,
            ErrorCode::Forbidden => Self::Forbidden,
            ErrorCode::TooLarge => Self::TooLarge,
            ErrorCode::RateLimited => Self::RateLimited,
            ErrorCode::Unavailable => Self::Unavailable,
            ErrorCode::GroupFull => Self::GroupFull,
            ErrorCode::WrongChatKind => Self::WrongChatKind,
            ErrorCode::OwnerMustHandOver => Self::OwnerMustHandOver,
            ErrorCode::NoSuchSeq => Self::NoSuchSeq,
            ErrorCode::UnsupportedKind => Self::UnsupportedKind,
            ErrorCode::BadToken => Self::Token,
            ErrorCode::TooMany => Self::TooMany,
            ErrorCode::NoChange => Self::NoChange,
            ErrorCode::Damaged => Self::Damaged,
        }
    }
}

/// How often each reason was one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejections {
    counts: [u64; Reason::ALL.len()],
    total: u64,
}

impl Default for Rejections {
    fn default() -> Self {
        Self { counts: [0; Reason::ALL.len()], total: 0 }
    }
}

impl Rejections {
    /// Counts one.
    pub fn add(&mut self, reason: Reason) {
        self.counts[reason as usize] += 1;
        self.total += 1;
    }

    /// The counts, in the order of [`Reason::ALL`].
    pub fn values(&self) -> &[u64; Reason::ALL.len()] {
        &self.counts
    }

    /// All of them: tells cheaply whether anything changed.
    pub fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_reason_has_a_label_and_a_place_of_its_own() {
        let labels: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), Reason::ALL.len());
        let mut rejections = Rejections::default();
        for (place, reason) in Reason::ALL.into_iter().enumerate() {
            (0..=place).for_each(|_| rejections.add(reason));
        }
        assert!(rejections.values().iter().enumerate().all(|(place, count)| *count == place as u64 + 1));
        assert_eq!(rejections.total(), rejections.values().iter().sum::<u64>());
    }
}
