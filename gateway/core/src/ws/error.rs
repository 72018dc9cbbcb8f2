//! What a client can do wrong in framing, and the close code that it gets for it.

use core::fmt;

/// A violation of RFC 6455 or of a limit. The connection cannot go on: send a close frame with
/// [`FrameError::close_code`] and close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// A client frame without a mask (section 5.1).
    Unmasked,
    /// RSV bits without an extension that gives them a meaning (5.2).
    ReservedBits,
    /// Opcodes 3 to 7 and 11 to 15 (5.2).
    ReservedOpcode,
    /// A ping, pong or close above 125 bytes (5.5).
    ControlTooLong,
    /// A ping, pong or close in fragments (5.5).
    ControlFragmented,
    /// A continuation without a message to continue (5.4).
    StrayContinuation,
    /// A new text or binary frame inside a fragmented message (5.4).
    MessageInsideMessage,
    /// A length in more bytes than it needs (5.2).
    LengthNotMinimal,
    /// A 64-bit length with its top bit set (5.2).
    LengthTopBit,
    /// More empty fragments in one message than any sender has a reason for.
    EmptyFragments,
    /// Text, or a close reason, that is not UTF-8 (8.1).
    NotUtf8,
    /// A close payload of a single byte (5.5.1).
    ClosePayload,
    /// A close code that must not be on the wire (7.4).
    CloseCode,
    /// A message above the limit.
    MessageTooBig,
}

impl FrameError {
    /// The close code for it: 1002 protocol error, 1007 not UTF-8, 1009 too big.
    pub fn close_code(self) -> u16 {
        match self {
            Self::NotUtf8 => 1007,
            Self::MessageTooBig => 1009,
            _ => 1002,
        }
    }

    /// A reason for the close frame, under 123 bytes.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unmasked => "client frames must be masked",
            Self::ReservedBits => "reserved bits are set",
            Self::ReservedOpcode => "reserved opcode",
            Self::ControlTooLong => "control frame above 125 bytes",
            Self::ControlFragmented => "control frame in fragments",
            Self::StrayContinuation => "continuation without a message",
            Self::MessageInsideMessage => "new message inside a fragmented one",
            Self::LengthNotMinimal => "length is not minimally encoded",
            Self::LengthTopBit => "length above 2^63",
            Self::EmptyFragments => "too many empty fragments",
            Self::NotUtf8 => "text is not UTF-8",
            Self::ClosePayload => "close payload of one byte",
            Self::CloseCode => "close code is not allowed",
            Self::MessageTooBig => "message is too big",
        }
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl core::error::Error for FrameError {}
