//! A client's end of a connection: what it received, and frames by hand.

use gateway_core::output::ConnId;
use parley_protocol::Body;
use parley_protocol::frame::{self, ServerFrame};

/// A client's end of a connection.
#[derive(Default)]
pub struct Client {
    pub(super) shard: u16,
    pub(super) conn: Option<ConnId>,
    pub(super) input: Vec<u8>,
    pub(super) upgraded: bool,
    pub status: Option<u16>,
    pub frames: Vec<ServerFrame>,
    pub closed: Option<u16>,
    pub gone: bool,
    /// Takes nothing from its socket: what is sent to it stays queued.
    pub deaf: bool,
}

impl Client {
    pub fn texts(&self) -> Vec<String> {
        let text = |frame: &ServerFrame| match frame {
            ServerFrame::Event(event) => match event.envelope.to_body() {
                Ok(Body::Message(body)) => Some(String::from_utf8_lossy(&body.payload).into_owned()),
                _ => None,
            },
            _ => None,
        };
        self.frames.iter().filter_map(text).collect()
    }

    pub fn mark(&self) -> Option<u64> {
        self.frames.iter().rev().find_map(|frame| match frame {
            ServerFrame::Mark(mark) => Some(mark.inbox_seq),
            ServerFrame::Truncated(truncated) => Some(truncated.mark),
            _ => None,
        })
    }

    pub fn sent(&self) -> Vec<frame::Sent> {
        let sent = |frame: &ServerFrame| match frame {
            ServerFrame::Sent(sent) => Some(*sent),
            _ => None,
        };
        self.frames.iter().filter_map(sent).collect()
    }

    pub fn errors(&self) -> Vec<parley_protocol::ErrorCode> {
        let code = |frame: &ServerFrame| match frame {
            ServerFrame::Error(error) => Some(error.code),
            _ => None,
        };
        self.frames.iter().filter_map(code).collect()
    }
}

/// Opcode, payload and length of the first whole frame.
pub(super) fn server_frame(bytes: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    let [first, second, ..] = bytes else { return None };
    let (len, head) = match second & 0x7f {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?), 10),
        short => (u64::from(short), 2),
    };
    let end = head + len as usize;
    Some((first & 0x0f, bytes.get(head..end)?.to_vec(), end))
}

/// A masked frame from a client.
pub fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x12, 0x34, 0x56, 0x78];
    let mut out = vec![0x80 | opcode];
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}
