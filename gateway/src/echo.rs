//! A brain that echoes WebSocket messages: the gateway's own data plane without a chat, for conformance suites and for
//! benchmarks of the plane itself.

use crate::plane::{self, Handle, Options, StartError};
use gateway_core::brain::{Brain, MeshClass, MeshMessage};
use gateway_core::http::{self, Limits, Upgrade};
use gateway_core::output::{ConnId, Output, Outputs};
use gateway_core::time::Now;
use gateway_core::ws::{self, Decoder, Event, FrameError, Opcode};
use std::collections::VecDeque;
use std::net::SocketAddr;

/// The largest message that is echoed by default: conformance suites send 16 MiB.
pub const MESSAGE_BYTES_MAX: u32 = 16 << 20;
/// The head of the upgrade.
const LIMITS: Limits<'static> = Limits { head_bytes_max: 16 << 10, headers_max: http::HEADERS_MAX, path: None };
/// How long a client may take for its upgrade.
const HANDSHAKE_MS: u64 = 10_000;
/// A client that does not read its echoes is not read from either, above this many bytes and until below the next.
const QUEUED_BYTES_HIGH: usize = 1 << 20;
const QUEUED_BYTES_LOW: usize = 256 << 10;
/// Payloads above this size are framed once and sent by reference.
const SHARED_BYTES_MIN: usize = 16 << 10;

/// Serves echoes, at any path and without authentication.
pub fn serve(options: Options) -> Result<Handle, StartError> {
    serve_up_to(options, MESSAGE_BYTES_MAX)
}

/// The same; refuses messages above `message_bytes_max` with 1009.
pub fn serve_up_to(options: Options, message_bytes_max: u32) -> Result<Handle, StartError> {
    plane::run(options, move |_| Echo::new(message_bytes_max))
}

/// Echo shards tell each other nothing.
#[derive(Debug)]
pub enum Nothing {}

impl MeshMessage for Nothing {
    fn class(&self) -> MeshClass {
        match *self {}
    }
}

type Out = Outputs<Nothing, ()>;

#[derive(Debug)]
enum Phase {
    /// Before the upgrade; what came of its head.
    Head(Vec<u8>),
    Open(Decoder),
    /// Closing, or gone.
    Ended,
}

#[derive(Debug)]
struct Conn {
    generation: u32,
    phase: Phase,
    /// Bytes given to the shell and not yet taken by the kernel.
    queued: usize,
    paused: bool,
}

/// The brain of one shard.
#[derive(Debug)]
pub struct Echo {
    message_bytes_max: u32,
    /// By slot.
    conns: Vec<Conn>,
    open: usize,
    /// Ends of handshakes, in order.
    handshakes: VecDeque<(u64, ConnId)>,
}

impl Echo {
    fn new(message_bytes_max: u32) -> Self {
        Self { message_bytes_max, conns: Vec::new(), open: 0, handshakes: VecDeque::new() }
    }

    fn conn(&mut self, conn: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(conn.slot as usize).filter(|entry| entry.generation == conn.generation)
    }

    fn handle_head(&mut self, id: ConnId, data: &mut [u8], out: &mut Out) {
        let message_bytes_max = self.message_bytes_max;
        let Some(entry) = self.conn(id) else { return };
        let Phase::Head(kept) = &mut entry.phase else { return };
        // The usual head comes whole; only one that does not is kept.
        let mut kept = std::mem::take(kept);
        let bytes: &mut [u8] = if kept.is_empty() {
            data
        } else {
            kept.extend_from_slice(data);
            &mut kept
        };
        match http::parse_upgrade(bytes, &LIMITS) {
            Upgrade::Incomplete => {
                let head = bytes.to_vec();
                entry.phase = Phase::Head(head);
            }
            Upgrade::Request(request) => {
                let consumed = request.consumed;
                entry.queued += out.send_with(id, |out| http::write_accept(out, &request.key, None));
                out.push(Output::Promote(id));
                entry.phase = Phase::Open(Decoder::new(message_bytes_max));
                echo(id, entry, &mut bytes[consumed..], out);
            }
            Upgrade::Reject(reject) => {
                entry.phase = Phase::Ended;
                out.send_with(id, |out| http::write_reject(out, reject.status, reject.reason));
                out.push(Output::Close(id));
            }
        }
    }
}

/// Echoes what a chunk holds.
fn echo(id: ConnId, entry: &mut Conn, chunk: &mut [u8], out: &mut Out) {
    let Phase::Open(decoder) = &mut entry.phase else { return };
    let mut at = 0;
    let end = loop {
        match decoder.next(chunk, &mut at) {
            Ok(None) => break None,
            Ok(Some(Event::Text(text))) => entry.queued += send(id, Opcode::Text, text.as_bytes(), out),
            Ok(Some(Event::Binary(bytes))) => entry.queued += send(id, Opcode::Binary, bytes, out),
            Ok(Some(Event::Ping(payload))) => entry.queued += send(id, Opcode::Pong, payload, out),
            Ok(Some(Event::Pong(_))) => {}
            Ok(Some(Event::Close { code, .. })) => break Some(Ok(code)),
            Err(error) => break Some(Err(error)),
        }
    };
    if let Some(end) = end {
        entry.phase = Phase::Ended;
        close(id, end, out);
    } else if entry.queued > QUEUED_BYTES_HIGH && !entry.paused {
        entry.paused = true;
        out.push(Output::Pause(id));
    }
}

fn send(id: ConnId, opcode: Opcode, payload: &[u8], out: &mut Out) -> usize {
    if payload.len() < SHARED_BYTES_MIN {
        return out.send_with(id, |out| ws::encode_frame(out, opcode, payload));
    }
    let bytes = ws::framed(opcode, payload);
    let len = bytes.len();
    out.push(Output::SendShared { conn: id, bytes });
    len
}

fn close(id: ConnId, end: Result<Option<u16>, FrameError>, out: &mut Out) {
    out.send_with(id, |out| match end {
        Ok(Some(code)) => ws::encode_close(out, code, ""),
        Ok(None) => ws::encode_frame(out, Opcode::Close, &[]),
        Err(error) => ws::encode_close(out, error.close_code(), error.reason()),
    });
    out.push(Output::Close(id));
}

impl Brain for Echo {
    type Mesh = Nothing;
    type Seat = ();

    fn handle_accept(&mut self, now: Now, conn: ConnId, _: SocketAddr, _: &mut Out) {
        let slot = conn.slot as usize;
        while self.conns.len() <= slot {
            self.conns.push(Conn { generation: 0, phase: Phase::Ended, queued: 0, paused: false });
        }
        self.conns[slot] =
            Conn { generation: conn.generation, phase: Phase::Head(Vec::new()), queued: 0, paused: false };
        self.open += 1;
        self.handshakes.push_back((now.mono_ms + HANDSHAKE_MS, conn));
    }

    fn handle_data(&mut self, _: Now, conn: ConnId, data: &mut [u8], out: &mut Out) {
        let Some(entry) = self.conn(conn) else { return };
        match entry.phase {
            Phase::Head(_) => self.handle_head(conn, data, out),
            Phase::Open(_) => echo(conn, entry, data, out),
            Phase::Ended => {}
        }
    }

    fn handle_sent(&mut self, _: Now, conn: ConnId, bytes: usize, _: usize, out: &mut Out) {
        let Some(entry) = self.conn(conn) else { return };
        entry.queued = entry.queued.saturating_sub(bytes);
        if entry.paused && entry.queued < QUEUED_BYTES_LOW {
            entry.paused = false;
            out.push(Output::Resume(conn));
        }
    }

    fn handle_closed(&mut self, _: Now, conn: ConnId, _: &mut Out) {
        let Some(entry) = self.conn(conn) else { return };
        entry.phase = Phase::Ended;
        entry.generation = 0;
        self.open -= 1;
    }

    fn handle_seated(&mut self, _: Now, conn: ConnId, (): (), out: &mut Out) {
        // An echo gives no connection away, so none arrives.
        out.push(Output::Abort(conn));
    }

    fn handle_mesh(&mut self, _: Now, _: u16, message: Nothing, _: &mut Out) {
        match message {}
    }

    fn handle_mesh_full(&mut self, _: Now, _: u16, message: Nothing, _: &mut Out) {
        match message {}
    }

    fn handle_link_up(&mut self, _: Now, _: &mut Out) {}

    fn handle_link_data(&mut self, _: Now, _: &mut [u8], _: &mut Out) {}

    fn handle_link_down(&mut self, _: Now, _: &mut Out) {}

    fn handle_timer(&mut self, now: Now, out: &mut Out) {
        while let Some((_, id)) = self.handshakes.pop_front_if(|(due, _)| *due <= now.mono_ms) {
            let Some(entry) = self.conn(id) else { continue };
            if matches!(entry.phase, Phase::Head(_)) {
                entry.phase = Phase::Ended;
                out.send_with(id, |out| http::write_reject(out, 408, "the upgrade took too long"));
                out.push(Output::Close(id));
            }
        }
    }

    fn next_timer(&self) -> Option<u64> {
        self.handshakes.front().map(|(due, _)| *due)
    }

    fn handle_drain(&mut self, _: Now, out: &mut Out) {
        for (slot, entry) in self.conns.iter_mut().enumerate() {
            let id = ConnId { slot: slot as u32, generation: entry.generation };
            match std::mem::replace(&mut entry.phase, Phase::Ended) {
                Phase::Head(_) => out.push(Output::Close(id)),
                Phase::Open(_) => {
                    out.send_with(id, |out| ws::encode_close(out, 1001, "the server ends"));
                    out.push(Output::Close(id));
                }
                Phase::Ended => {}
            }
        }
    }

    fn is_drained(&self) -> bool {
        self.open == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ConnId = ConnId { slot: 0, generation: 1 };
    const NOW: Now = Now { mono_ms: 0, unix_ms: 0 };

    /// What an echo that is limited to 4 bytes answers to one binary message.
    fn answer(payload: &[u8]) -> (Vec<u8>, bool) {
        let mut echo = Echo::new(4);
        let mut out = Out::default();
        echo.handle_accept(NOW, ID, SocketAddr::from(([127, 0, 0, 1], 1)), &mut out);
        let mut head = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            .to_vec();
        echo.handle_data(NOW, ID, &mut head, &mut out);
        assert!(out.arena.starts_with(b"HTTP/1.1 101 "), "{:?}", String::from_utf8_lossy(&out.arena));
        out.clear();
        let mut frame = vec![0x82, 0x80 | payload.len() as u8, 0, 0, 0, 0];
        frame.extend_from_slice(payload);
        echo.handle_data(NOW, ID, &mut frame, &mut out);
        (out.arena.to_vec(), out.items.iter().any(|output| matches!(output, Output::Close(_))))
    }

    #[test]
    fn a_message_up_to_the_limit_is_echoed() {
        assert_eq!(answer(b"four"), (b"\x82\x04four".to_vec(), false));
    }

    #[test]
    fn a_message_above_the_limit_is_refused_with_1009() {
        let (bytes, closes) = answer(b"fives");
        assert_eq!((bytes[0], u16::from_be_bytes([bytes[2], bytes[3]]), closes), (0x88, 1009, true));
    }
}
