//! A socket without a WebSocket library: for clients that break the rules.

use super::PATIENCE;
use parley_protocol::ClientFrame;
use parley_protocol::wire::{self, Encoding};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A good upgrade for an encoding.
pub(crate) fn upgrade(encoding: Encoding) -> String {
    format!(
        "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {}\r\n\r\n",
        encoding.subprotocol()
    )
}

/// A masked frame: first byte (FIN, RSV, opcode) and payload.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut out = vec![first];
    match payload.len() {
        len @ 0..126 => out.push(0x80 | len as u8),
        len @ 126..0x1_0000 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// A whole message that holds a client frame.
pub(crate) fn message(encoding: Encoding, content: &ClientFrame) -> Vec<u8> {
    let mut bytes = Vec::new();
    wire::encode_client_frame(encoding, content, &mut bytes);
    frame(if encoding == Encoding::Json { 0x81 } else { 0x82 }, &bytes)
}

/// What the server sent: opcode and payload.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) opcode: u8,
    pub(crate) payload: Vec<u8>,
}

impl Received {
    /// The code of a close frame.
    pub(crate) fn close_code(&self) -> Option<u16> {
        (self.opcode == 8).then(|| self.payload.first_chunk::<2>().map_or(1005, |code| u16::from_be_bytes(*code)))
    }
}

/// A connected socket.
pub(crate) struct Raw {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Raw {
    pub(crate) fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).expect("the gateway accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("no delay");
        Self { stream, input: Vec::new() }
    }

    /// The kernel takes little before this client reads.
    pub(crate) fn narrow(&self) {
        const BYTES: usize = 64 * 1024;
        rustix::net::sockopt::set_socket_recv_buffer_size(&self.stream, BYTES).expect("a small buffer");
    }

    /// Whether something came, or the end of the stream, within `wait`.
    pub(crate) fn answered_within(&self, wait: Duration) -> bool {
        self.stream.set_read_timeout(Some(wait)).expect("a timeout");
        let answered = !matches!(self.stream.peek(&mut [0]), Err(error) if matches!(
            error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted));
        self.stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        answered
    }

    /// Whether the server has read everything that was sent (proc(5), `/proc/net/tcp`): nothing waits in either kernel
    /// buffer. IPv4 only.
    pub(crate) fn is_read(&self) -> bool {
        let (own, peer) = (self.stream.local_addr().expect("bound"), self.stream.peer_addr().expect("connected"));
        let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's sockets");
        // Bytes that wait to be sent and to be read, of the socket with these two ends.
        let queues = |local: SocketAddr, remote: SocketAddr| {
            let ends = (format!(":{:04X}", local.port()), format!(":{:04X}", remote.port()));
            let line = table
                .lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>())
                .find(|fields| fields.len() > 4 && fields[1].ends_with(&ends.0) && fields[2].ends_with(&ends.1));
            line.unwrap_or_else(|| panic!("no socket {local} to {remote}"))[4].to_owned()
        };
        queues(own, peer).starts_with("00000000:") && queues(peer, own).ends_with(":00000000")
    }

    /// Connects and upgrades.
    pub(crate) fn upgraded(addr: SocketAddr, encoding: Encoding) -> Self {
        let mut raw = Self::connect(addr);
        raw.send(upgrade(encoding).as_bytes());
        let (status, text) = raw.http_answer();
        assert_eq!(status, 101, "{text}");
        raw
    }

    /// Sends bytes; a peer that has closed already is no failure, its answer counts.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Reads more; false at the end of the stream.
    fn fill(&mut self) -> bool {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.input.extend_from_slice(&buffer[..count]);
                true
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("no answer within {PATIENCE:?}: {error}"),
        }
    }

    /// Status and text of an HTTP answer's head.
    pub(crate) fn http_answer(&mut self) -> (u16, String) {
        loop {
            if let Some(end) = self.input.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.input[..end]).into_owned();
                self.input.drain(..end + 4);
                let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
                return (status.unwrap_or_else(|| panic!("not an HTTP answer: {head}")), head);
            }
            assert!(self.fill(), "closed without an HTTP answer: {:?}", String::from_utf8_lossy(&self.input));
        }
    }

    /// The next frame of the server; `None` at the end of the stream.
    pub(crate) fn receive(&mut self) -> Option<Received> {
        loop {
            if let Some((received, used)) = split(&self.input) {
                self.input.drain(..used);
                return Some(received);
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// The code of the server's close frame; everything before it is skipped. 1006: the connection ended without one.
    pub(crate) fn close_code(&mut self) -> u16 {
        loop {
            match self.receive() {
                None => return 1006,
                Some(received) => {
                    if let Some(code) = received.close_code() {
                        return code;
                    }
                }
            }
        }
    }

    /// True when the server ended the connection and not only said so.
    pub(crate) fn is_ended(&mut self) -> bool {
        while self.fill() {}
        true
    }
}

/// A server's frame: never masked, never fragmented here.
fn split(input: &[u8]) -> Option<(Received, usize)> {
    let (&first, &second) = (input.first()?, input.get(1)?);
    assert_eq!(second & 0x80, 0, "a server's frame is not masked");
    assert_eq!(first & 0x70, 0, "no reserved bits");
    let (len, at) = match second {
        126 => (u16::from_be_bytes(*input.get(2..4)?.first_chunk()?) as usize, 4),
        127 => (u64::from_be_bytes(*input.get(2..10)?.first_chunk()?) as usize, 10),
        len => (len as usize, 2),
    };
    let payload = input.get(at..at + len)?.to_vec();
    Some((Received { opcode: first & 0x0f, payload }, at + len))
}
