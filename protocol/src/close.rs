//! Close codes of Parley (RFC 6455 section 7.4.2 leaves 4000 to 4999 to applications). Each tells a client what to do.

/// What a client does after a close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAction {
    /// Reconnect at once with the resume ticket and the last mark.
    RetryNow,
    /// Reconnect after a delay with jitter.
    RetryLater,
    /// Get a new token, then reconnect.
    Reauthenticate,
    /// Do not reconnect by itself.
    Stop,
}

macro_rules! close_codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $action:ident, $reason:literal;)*) => {
        $($(#[$doc])* pub const $name: u16 = $code;)*
        /// Every code of this file, with what a client does and the reason that is sent.
        pub const ALL: &[(u16, ClientAction, &str)] = &[$(($code, ClientAction::$action, $reason)),*];
    };
}

close_codes! {
    /// The server goes away or moves you; a `Reconnect` frame came before with a delay.
    DRAINING = 4000, RetryNow, "draining";
    /// You took nothing for too long; resume from your mark.
    STALLED_READER = 4001, RetryNow, "stalled reader";
    /// No byte from you for the heartbeat timeout.
    HEARTBEAT_TIMEOUT = 4002, RetryNow, "heartbeat timeout";
    /// The server cannot serve now (overload, or another gateway took over).
    RETRY_LATER = 4003, RetryLater, "retry later";
    /// No valid token or ticket in time.
    UNAUTHENTICATED = 4010, Reauthenticate, "unauthenticated";
    /// The token expired and was not renewed within the grace.
    TOKEN_EXPIRED = 4011, Reauthenticate, "token expired";
    /// The same device connected again; this connection is the older one.
    REPLACED = 4020, Stop, "replaced";
    /// The device's sessions were ended.
    ENDED = 4021, Stop, "ended";
    /// The user has as many devices connected as allowed.
    TOO_MANY_DEVICES = 4022, Stop, "too many devices";
    /// The token does not allow what `Hello` asked for.
    FORBIDDEN = 4023, Stop, "forbidden";
    /// `Hello` asked for a protocol version that the server does not speak.
    VERSION = 4024, Stop, "protocol version";
}

/// What a client does after a close with `code`, standard codes included; unknown ones: retry later.
pub fn client_action(code: u16) -> ClientAction {
    match code {
        1000 | 1002 | 1003 | 1007 | 1008 | 1009 | 1010 => ClientAction::Stop,
        1001 | 1005 | 1006 | 1012 => ClientAction::RetryNow,
        1011 | 1013 => ClientAction::RetryLater,
        _ => ALL.iter().find(|(known, ..)| *known == code).map_or(ClientAction::RetryLater, |(_, action, _)| *action),
    }
}
