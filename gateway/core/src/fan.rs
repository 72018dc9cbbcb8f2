//! A frame for many receivers: encoded and framed at most once per encoding, by whichever shard needs it first.

use crate::planted::{self, Bug};
use crate::ws;
use bytes::Bytes;
use parley_protocol::ServerFrame;
use parley_protocol::wire::{self, Encoding};
use std::sync::OnceLock;

/// A frame and its encodings, shared by reference.
#[derive(Debug)]
pub struct Fan {
    frame: ServerFrame,
    rkyv: OnceLock<Bytes>,
    json: OnceLock<Bytes>,
}

impl Fan {
    /// Nothing is encoded yet.
    pub fn new(frame: ServerFrame) -> Self {
        Self { frame, rkyv: OnceLock::new(), json: OnceLock::new() }
    }

    /// The frame itself.
    pub fn frame(&self) -> &ServerFrame {
        &self.frame
    }

    /// The whole WebSocket frame in an encoding.
    pub fn bytes(&self, encoding: Encoding) -> &Bytes {
        let cell = match encoding {
            Encoding::Rkyv => &self.rkyv,
            Encoding::Json if planted::has(Bug::EncodingShared) => &self.rkyv,
            Encoding::Json => &self.json,
        };
        cell.get_or_init(|| {
            let mut out = Vec::with_capacity(256);
            append(&self.frame, encoding, &mut out);
            Bytes::from(out)
        })
    }
}

/// Appends a frame for one receiver.
pub fn append(frame: &ServerFrame, encoding: Encoding, out: &mut Vec<u8>) {
    let opcode = match encoding {
        Encoding::Rkyv => ws::Opcode::Binary,
        Encoding::Json => ws::Opcode::Text,
    };
    ws::encode_frame_with(out, opcode, |out| wire::encode_server_frame(encoding, frame, out));
}

#[cfg(test)]
mod tests {
    use super::*;
    use parley_protocol::frame::Pong;

    /// The first bytes of what receivers of either encoding get: text is 1, binary is 2.
    fn opcodes() -> [u8; 2] {
        let fan = Fan::new(ServerFrame::Pong(Pong { nonce: 1 }));
        [Encoding::Rkyv, Encoding::Json].map(|encoding| fan.bytes(encoding)[0] & 0x0f)
    }

    #[test]
    fn everybody_gets_the_encoding_that_was_asked_for() {
        assert_eq!(opcodes(), [2, 1]);
        #[cfg(feature = "planted")]
        {
            planted::plant(Some(Bug::EncodingShared));
            let shared = opcodes();
            planted::plant(None);
            assert_eq!(shared, [2, 2]);
        }
    }
}
