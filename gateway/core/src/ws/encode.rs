//! Frames from the server to a client: never masked, never fragmented.

use super::Opcode;
use bytes::Bytes;

/// The longest head of a server frame: two bytes and a 64-bit length.
pub const HEAD_BYTES_MAX: usize = 10;

/// A close frame's reason is at most this long: 125 bytes less the code.
const CLOSE_REASON_BYTES_MAX: usize = 123;

fn head(opcode: Opcode, payload_bytes: usize) -> ([u8; HEAD_BYTES_MAX], usize) {
    let mut head = [0; HEAD_BYTES_MAX];
    head[0] = 0x80 | opcode as u8;
    let len = match payload_bytes {
        0..=125 => {
            head[1] = payload_bytes as u8;
            2
        }
        126..=0xffff => {
            head[1] = 126;
            head[2..4].copy_from_slice(&(payload_bytes as u16).to_be_bytes());
            4
        }
        _ => {
            head[1] = 127;
            head[2..10].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
            10
        }
    };
    (head, len)
}

/// Appends one whole frame.
pub fn encode_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    let (head, len) = head(opcode, payload.len());
    out.reserve(len + payload.len());
    out.extend_from_slice(&head[..len]);
    out.extend_from_slice(payload);
}

/// Appends one whole frame whose payload `write` appends: saves the buffer in between. `write` must only append.
pub fn encode_frame_with(out: &mut Vec<u8>, opcode: Opcode, write: impl FnOnce(&mut Vec<u8>)) {
    // Most payloads need a head of two or four bytes; for the others the payload moves.
    const GUESS: usize = 4;
    let start = out.len();
    out.extend_from_slice(&[0; GUESS]);
    write(out);
    let payload_bytes = out.len().checked_sub(start + GUESS).expect("the writer only appends");
    let (head, len) = head(opcode, payload_bytes);
    if len != GUESS {
        out.splice(start..start + GUESS, head[..len].iter().copied());
    } else {
        out[start..start + GUESS].copy_from_slice(&head[..len]);
    }
}

/// Appends a close frame; a reason above 123 bytes is cut at a character.
pub fn encode_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let reason = &reason[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)];
    let (head, len) = head(Opcode::Close, 2 + reason.len());
    out.extend_from_slice(&head[..len]);
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

/// One whole frame to be shared by many receivers.
pub fn framed(opcode: Opcode, payload: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(HEAD_BYTES_MAX + payload.len());
    encode_frame(&mut out, opcode, payload);
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_agree_with_tungstenite_around_every_length_form() {
        use tungstenite::protocol::frame::FrameHeader;
        use tungstenite::protocol::frame::coding::{Data, OpCode};
        for len in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
            let payload = vec![7; len];
            let mut expected = Vec::new();
            let header = FrameHeader { opcode: OpCode::Data(Data::Binary), ..FrameHeader::default() };
            header.format(len as u64, &mut expected).expect("a vector takes all");
            expected.extend_from_slice(&payload);
            let mut direct = vec![1, 2, 3];
            encode_frame(&mut direct, Opcode::Binary, &payload);
            assert_eq!(direct[3..], expected, "length {len}");
            let mut with = vec![1, 2, 3];
            encode_frame_with(&mut with, Opcode::Binary, |out| out.extend_from_slice(&payload));
            assert_eq!(with, direct, "length {len}");
            assert_eq!(framed(Opcode::Binary, &payload), expected, "length {len}");
        }
    }

    #[test]
    fn a_long_close_reason_is_cut_at_a_character() {
        let mut out = Vec::new();
        encode_close(&mut out, 4001, &"é".repeat(100));
        assert_eq!(out[..4], [0x88, 2 + 122, 0x0f, 0xa1]);
        assert_eq!(core::str::from_utf8(&out[4..]), Ok("é".repeat(61).as_str()));
    }
}
