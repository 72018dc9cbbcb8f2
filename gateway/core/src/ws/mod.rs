//! WebSocket framing (RFC 6455), server side, sans-IO: [`Decoder`] reads what clients send, [`encode`](encode_frame)
//! writes what the gateway sends. The handshake is in `http`; what a message means is nobody's business here.

mod decode;
mod encode;
mod error;
mod mask;
#[cfg(test)]
mod tests;

pub use decode::{Decoder, EMPTY_FRAGMENTS_MAX, Event};
pub use encode::{HEAD_BYTES_MAX, encode_close, encode_frame, encode_frame_with, framed};
pub use error::FrameError;
pub use mask::unmask;

/// What a frame is. Continuations never leave the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// UTF-8 text.
    Text = 1,
    /// Bytes.
    Binary = 2,
    /// Close handshake.
    Close = 8,
    /// Heartbeat question.
    Ping = 9,
    /// Heartbeat answer.
    Pong = 10,
}
