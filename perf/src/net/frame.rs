//! Client-side WebSocket framing (RFC 6455): writes masked frames, reads unmasked ones in place. Only what a Parley
//! server may send is taken: whole frames, no extension bits.

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Op {
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// The longest head of a client frame: two bytes, a 64-bit length, the mask.
pub(crate) const HEAD_BYTES_MAX: usize = 14;

/// A server frame above this ends the connection: an inbox or history page with room to spare.
const PAYLOAD_BYTES_MAX: u64 = 16 << 20;

/// Appends the head of a masked frame.
pub(crate) fn write_head(op: Op, mask: [u8; 4], payload_bytes: usize, out: &mut Vec<u8>) {
    out.push(0x80 | op as u8);
    match payload_bytes {
        0..=125 => out.push(0x80 | payload_bytes as u8),
        126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(payload_bytes as u16).to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(payload_bytes as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
}

/// Masks (or unmasks) in place; the first byte lies `phase` bytes into the payload.
pub(crate) fn apply_mask(bytes: &mut [u8], mask: [u8; 4], phase: usize) {
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte ^= mask[(phase + index) & 3];
    }
}

/// Appends a whole masked frame.
pub(crate) fn write_frame(op: Op, mask: [u8; 4], payload: &[u8], out: &mut Vec<u8>) {
    write_head(op, mask, payload.len(), out);
    let at = out.len();
    out.extend_from_slice(payload);
    apply_mask(&mut out[at..], mask, 0);
}

/// A frame in place, and the bytes that it takes up with its head.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) op: Op,
    pub(crate) payload: &'a [u8],
    pub(crate) bytes: usize,
}

/// Reads the first frame: `Ok(None)` while it is not whole, an error where a server broke the protocol.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Frame<'_>>, &'static str> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    let op = match first & 0x0f {
        1 => Op::Text,
        2 => Op::Binary,
        8 => Op::Close,
        9 => Op::Ping,
        10 => Op::Pong,
        _ => return Err("the server sent a fragment or a reserved opcode"),
    };
    if first & 0xf0 != 0x80 {
        return Err("the server sent a fragment or a reserved bit");
    }
    let (length, head) = match second {
        0..=125 => (u64::from(*second), 2),
        126 => match rest.first_chunk::<2>() {
            Some(length) => (u64::from(u16::from_be_bytes(*length)), 4),
            None => return Ok(None),
        },
        127 => match rest.first_chunk::<8>() {
            Some(length) => (u64::from_be_bytes(*length), 10),
            None => return Ok(None),
        },
        _ => return Err("the server sent a masked frame"),
    };
    if length > PAYLOAD_BYTES_MAX {
        return Err("the server sent a frame above 16 MiB");
    }
    let end = head + length as usize;
    Ok(bytes.get(head..end).map(|payload| Frame { op, payload, bytes: end }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tungstenite::protocol::frame::FrameHeader;
    use tungstenite::protocol::frame::coding::{Data, OpCode};

    const LENGTHS: [usize; 8] = [0, 1, 125, 126, 127, 65_535, 65_536, 70_000];

    #[test]
    fn written_frames_agree_with_tungstenite_around_every_length_form() {
        let mask = [0x12, 0x34, 0x56, 0x78];
        for len in LENGTHS {
            let payload: Vec<u8> = (0..len).map(|index| index as u8).collect();
            let mut ours = Vec::new();
            write_frame(Op::Binary, mask, &payload, &mut ours);
            let mut theirs = Vec::new();
            let header = FrameHeader { opcode: OpCode::Data(Data::Binary), mask: Some(mask), ..FrameHeader::default() };
            header.format(len as u64, &mut theirs).expect("a vector takes all");
            assert!(theirs.len() <= HEAD_BYTES_MAX);
            theirs.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
            assert_eq!(ours, theirs, "length {len}");
        }
    }

    #[test]
    fn a_frame_is_read_once_it_is_whole_and_not_before() {
        for len in LENGTHS {
            let payload = vec![7; len];
            let mut bytes = Vec::new();
            let header = FrameHeader { opcode: OpCode::Data(Data::Text), ..FrameHeader::default() };
            header.format(len as u64, &mut bytes).expect("a vector takes all");
            bytes.extend_from_slice(&payload);
            let whole = bytes.len();
            bytes.extend_from_slice(b"next");
            for cut in [0, 1, 2, 3, 9].into_iter().chain([whole - 1]).filter(|cut| *cut < whole) {
                assert_eq!(parse(&bytes[..cut]), Ok(None), "length {len}, {cut} bytes");
            }
            assert_eq!(parse(&bytes), Ok(Some(Frame { op: Op::Text, payload: &payload, bytes: whole })));
        }
    }

    #[test]
    fn what_a_server_must_not_send_is_an_error() {
        for head in [[0x02, 0], [0x80, 0], [0xc2, 0], [0x83, 0], [0x82, 0x80]] {
            assert!(parse(&head).is_err(), "{head:x?}");
        }
        assert!(parse(&[0x82, 127, 0, 0, 0, 0, 0xff, 0, 0, 0]).is_err());
    }
}
