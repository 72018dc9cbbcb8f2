//! Bytes on their way: one direction of a connection, and the client's side of WebSocket framing (RFC 6455 section 5).

use std::collections::VecDeque;

/// One direction of a stream: bytes arrive in order, whole or cut, after a while.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    chunks: VecDeque<(u64, Vec<u8>)>,
    last_at: u64,
    end_at: Option<u64>,
}

impl Pipe {
    /// Puts bytes in; they arrive at the returned time at the earliest `at`, after everything before them.
    pub(crate) fn push(&mut self, at: u64, bytes: Vec<u8>) -> u64 {
        self.last_at = self.last_at.max(at);
        // Nothing comes out of a broken connection behind what was lost.
        if self.end_at.is_none() {
            self.chunks.push_back((self.last_at, bytes));
        }
        self.last_at
    }

    /// Nothing follows; the end arrives after everything before it.
    pub(crate) fn end(&mut self, at: u64) -> u64 {
        self.last_at = self.last_at.max(at);
        *self.end_at.get_or_insert(self.last_at)
    }

    /// What has not arrived by `now` never does; the end comes at `now` or later.
    pub(crate) fn cut(&mut self, now: u64) {
        self.chunks.retain(|(at, _)| *at <= now);
        self.end_at = Some(now);
        self.last_at = now;
    }

    /// Takes what has arrived.
    pub(crate) fn take(&mut self, now: u64, into: &mut Vec<u8>) {
        while let Some((_, bytes)) = self.chunks.pop_front_if(|(at, _)| *at <= now) {
            into.extend_from_slice(&bytes);
        }
    }

    /// Takes some of what has arrived: so many bytes at the most.
    pub(crate) fn take_some(&mut self, now: u64, most: usize, into: &mut Vec<u8>) {
        while let Some((_, bytes)) = self.chunks.front_mut().filter(|(at, _)| *at <= now) {
            let room = most - into.len();
            if bytes.len() > room {
                into.extend(bytes.drain(..room));
                return;
            }
            into.append(bytes);
            self.chunks.pop_front();
        }
    }

    /// Something has arrived.
    pub(crate) fn has_come(&self, now: u64) -> bool {
        self.chunks.front().is_some_and(|(at, _)| *at <= now)
    }

    /// Everything has arrived, and the end has.
    pub(crate) fn is_over(&self, now: u64) -> bool {
        self.chunks.is_empty() && self.end_at.is_some_and(|at| at <= now)
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.end_at.is_some()
    }
}

/// A frame from a server: opcode, payload, and all the bytes it takes up; `None` while it is not whole.
pub(crate) fn server_frame(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let [first, second, ..] = bytes else { return None };
    let (len, head) = match second & 0x7f {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?), 10),
        short => (u64::from(short), 2),
    };
    let end = head + len as usize;
    Some((first & 0x0f, bytes.get(head..end)?, end))
}

/// Appends a masked frame from a client.
pub(crate) fn client_frame(opcode: u8, payload: &[u8], key: u32, out: &mut Vec<u8>) {
    let mask = key.to_be_bytes();
    out.push(0x80 | opcode);
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
}
