//! A blocking connection for attackers: it upgrades, logs in, and then does what no honest client does.

use crate::frames::Encoder;
use crate::net::Url;
use crate::net::frame::{self, Op};
use parley_protocol::frame::{Hello, Welcome};
use parley_protocol::limits::PROTOCOL_VERSION;
use parley_protocol::wire::{Encoding, decode_server_frame};
use parley_protocol::{ClientFrame, DeviceId, ServerFrame};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a server may take to answer an attacker.
const PATIENCE: Duration = Duration::from_secs(10);
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// An attacker that does not read lets its kernel take little.
const NARROW_BYTES: usize = 64 << 10;

/// A socket and what came of it that is not used yet.
pub(crate) struct Client {
    stream: TcpStream,
    input: Vec<u8>,
}

fn text(error: std::io::Error) -> String {
    error.to_string()
}

/// Kept of what is thrown away.
const LAST_BYTES: usize = 64;

impl Client {
    pub(crate) fn connect(url: &Url) -> Result<Self, String> {
        let stream = TcpStream::connect(url.address).map_err(text)?;
        stream.set_nodelay(true).map_err(text)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(text)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(text)?;
        // Reset at the end: thousands of ports in TIME_WAIT would slow down the attack, not the server.
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).map_err(|error| error.to_string())?;
        Ok(Self { stream, input: Vec::new() })
    }

    pub(crate) fn upgrade_request(url: &Url, encoding: Encoding) -> String {
        url.upgrade(KEY, encoding.subprotocol())
    }

    /// Connects and opens the WebSocket.
    pub(crate) fn upgraded(url: &Url, encoding: Encoding) -> Result<Self, String> {
        let mut client = Self::connect(url)?;
        client.send(Self::upgrade_request(url, encoding).as_bytes())?;
        loop {
            if let Some(end) = client.input.windows(4).position(|window| window == b"\r\n\r\n") {
                if !client.input.starts_with(b"HTTP/1.1 101") {
                    return Err(String::from_utf8_lossy(&client.input[..end]).into_owned());
                }
                client.input.drain(..end + 4);
                return Ok(client);
            }
            if !client.fill()? {
                return Err("the server hung up before the upgrade".to_owned());
            }
        }
    }

    /// Logs in on rkyv with this framed `Hello`.
    pub(crate) fn seated(url: &Url, hello: &[u8]) -> Result<(Self, Welcome), String> {
        let mut client = Self::upgraded(url, Encoding::Rkyv)?;
        client.send(hello)?;
        loop {
            if let ServerFrame::Welcome(welcome) = client.next()? {
                return Ok((client, welcome));
            }
        }
    }

    /// The next frame on rkyv; an error at the end of the connection.
    pub(crate) fn next(&mut self) -> Result<ServerFrame, String> {
        loop {
            while let Some(found) = frame::parse(&self.input)? {
                let incoming = match found.op {
                    Op::Binary => Some(decode_server_frame(Encoding::Rkyv, found.payload).map_err(|e| e.to_string())?),
                    Op::Close => return Err(format!("closed with {:?}", found.payload)),
                    _ => None,
                };
                let used = found.bytes;
                self.input.drain(..used);
                if let Some(incoming) = incoming {
                    return Ok(incoming);
                }
            }
            if !self.fill()? {
                return Err("the server hung up".to_owned());
            }
        }
    }

    /// The kernel takes little for a client that does not read.
    pub(crate) fn narrow(&self) -> Result<(), String> {
        rustix::net::sockopt::set_socket_recv_buffer_size(&self.stream, NARROW_BYTES).map_err(|error| error.to_string())
    }

    /// From now on nothing waits.
    pub(crate) fn nonblocking(&self) -> Result<(), String> {
        self.stream.set_nonblocking(true).map_err(text)
    }

    /// From now on everything waits, for so long at the most.
    pub(crate) fn blocking(&self, patience: Duration) -> Result<(), String> {
        self.stream.set_read_timeout(Some(patience)).and_then(|()| self.stream.set_nonblocking(false)).map_err(text)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.stream.write_all(bytes).map_err(text)
    }

    /// Sends what the socket takes now; an error once the connection is over.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> Result<usize, String> {
        match self.stream.write(bytes) {
            Ok(sent) => Ok(sent),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(text(error)),
        }
    }

    fn fill(&mut self) -> Result<bool, String> {
        let mut buffer = [0; 4096];
        let count = self.stream.read(&mut buffer).map_err(text)?;
        self.input.extend_from_slice(&buffer[..count]);
        Ok(count > 0)
    }

    /// Throws away what came; false once the connection is over.
    pub(crate) fn discard(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => {
                    // The last of it may be a close, which an error shows.
                    self.input.clear();
                    self.input.extend_from_slice(&buffer[count.saturating_sub(LAST_BYTES)..count]);
                }
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
    }

    /// Keeps what came, without waiting; true once the connection is over.
    pub(crate) fn is_over(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return true,
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(error) => return error.kind() != ErrorKind::WouldBlock,
            }
        }
    }

    /// What came and was not used.
    pub(crate) fn words(&self) -> &[u8] {
        &self.input
    }

    /// Reads until the server ends the connection; what it said.
    pub(crate) fn last_words(mut self) -> Result<Vec<u8>, String> {
        loop {
            match self.fill() {
                Ok(true) => {}
                Ok(false) => return Ok(self.input),
                // A reset behind an answer: what was said counts.
                Err(_) if !self.input.is_empty() => return Ok(self.input),
                Err(error) => return Err(error),
            }
        }
    }
}

pub(crate) fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

pub(crate) fn now_unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A framed `Hello` with a token, or else a ticket.
pub(crate) fn hello(encoder: &Encoder, token: Option<String>, resume: Option<String>, device_id: DeviceId) -> Vec<u8> {
    let hello = Hello {
        version: PROTOCOL_VERSION,
        device_id,
        token,
        resume,
        mark: None,
        kinds_known: Vec::new(),
        client: concat!("parley-perf/", env!("CARGO_PKG_VERSION")).to_owned(),
        act_for: None,
    };
    let mut out = Vec::new();
    encoder.frame(&ClientFrame::Hello(hello), &mut out);
    out
}
