//! One WebSocket to a gateway: connect, hear without blocking, say. Knows frames, not what they mean.

use parley_protocol::wire::{self, Encoding};
use parley_protocol::{ClientFrame, ServerFrame, limits};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::BorrowedFd;
use std::time::Duration;
use tungstenite::client::IntoClientRequest;
use tungstenite::http::{HeaderValue, StatusCode, Uri};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Message, WebSocket};

/// A handshake that takes longer has failed.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A frame from the server at the most: a page of messages.
const SERVER_FRAME_BYTES_MAX: usize = limits::LINK_RECORD_BYTES_MAX * 2;

/// A parsed `ws://` address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    text: String,
    host: String,
    port: u16,
}

impl Address {
    /// Parses an address; the error says what is expected.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let expected = || format!("{text:?} is not a WebSocket address; expected ws://HOST:PORT/PATH");
        let uri: Uri = text.parse().map_err(|_| expected())?;
        match uri.scheme_str() {
            Some("ws") => {}
            Some("wss") => return Err(format!("{text}: this client speaks ws:// only; put a TLS proxy in between")),
            _ => return Err(expected()),
        }
        let host = uri.host().ok_or_else(expected)?.trim_matches(['[', ']']).to_owned();
        Ok(Self { text: text.to_owned(), host, port: uri.port_u16().unwrap_or(80) })
    }

    /// As it was given.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether it names this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        let resolved = (self.host.as_str(), self.port).to_socket_addrs();
        resolved.is_ok_and(|mut addresses| addresses.all(|address| address.ip().is_loopback()))
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum ConnectError {
    /// Nobody answered there.
    Unreachable(String),
    /// Somebody answered, but not a gateway.
    Refused(String),
    /// Somebody answered that there is no such thing here; asking again changes nothing.
    Final(String),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Unreachable(what) | ConnectError::Refused(what) | ConnectError::Final(what) => {
                f.write_str(what)
            }
        }
    }
}

/// Whether an HTTP status says that the request itself is wrong, not the moment.
fn is_final(status: StatusCode) -> bool {
    let passes = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
    status.is_client_error() && !passes.contains(&status)
}

/// What was heard.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A frame.
    Frame(Box<ServerFrame>),
    /// Bytes, but no frame: a WebSocket ping, say.
    Alive,
    /// Nothing now.
    Nothing,
    /// The connection is over.
    Closed {
        /// A close code; 1006 when none came.
        code: u16,
        /// For people.
        reason: String,
    },
}

/// An open WebSocket.
pub(crate) struct Connection {
    socket: WebSocket<TcpStream>,
    encoding: Encoding,
    unsent: bool,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects and upgrades.
    pub(crate) fn open(address: &Address, encoding: Encoding, timeout: Duration) -> Result<Self, ConnectError> {
        let timeout = timeout.clamp(Duration::from_millis(50), HANDSHAKE_TIMEOUT);
        let unreachable = |error: io::Error| ConnectError::Unreachable(error.to_string());
        let addresses: Vec<SocketAddr> =
            (address.host.as_str(), address.port).to_socket_addrs().map_err(unreachable)?.collect();
        let mut last = ConnectError::Unreachable("the name has no address".to_owned());
        let mut stream = None;
        for socket_address in addresses {
            match TcpStream::connect_timeout(&socket_address, timeout) {
                Ok(open) => {
                    stream = Some(open);
                    break;
                }
                Err(error) => last = unreachable(error),
            }
        }
        let Some(stream) = stream else { return Err(last) };
        let set = |stream: &TcpStream| -> io::Result<()> {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(timeout))?;
            stream.set_write_timeout(Some(timeout))
        };
        set(&stream).map_err(unreachable)?;
        let refused = |what: &dyn fmt::Display| ConnectError::Refused(what.to_string());
        let mut request = address.text.as_str().into_client_request().map_err(|error| refused(&error))?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(encoding.subprotocol()));
        let config = WebSocketConfig::default()
            .write_buffer_size(0)
            .max_message_size(Some(SERVER_FRAME_BYTES_MAX))
            .max_frame_size(Some(SERVER_FRAME_BYTES_MAX));
        let (socket, _) =
            tungstenite::client::client_with_config(request, stream, Some(config)).map_err(|error| match error {
                tungstenite::HandshakeError::Failure(tungstenite::Error::Io(error)) => unreachable(error),
                tungstenite::HandshakeError::Failure(tungstenite::Error::Http(answer)) if is_final(answer.status()) => {
                    ConnectError::Final(format!(
                        "{} answers {}: no gateway is there; `parley up` prints the address after `ready`, and its \
                         path is /ws unless configured otherwise",
                        address.text,
                        answer.status()
                    ))
                }
                other => refused(&other),
            })?;
        socket.get_ref().set_nonblocking(true).map_err(unreachable)?;
        Ok(Self { socket, encoding, unsent: false, buffer: Vec::new() })
    }

    /// What came in, without waiting.
    pub(crate) fn hear(&mut self) -> Heard {
        let bytes = match self.socket.read() {
            Ok(message @ (Message::Binary(_) | Message::Text(_))) => message.into_data(),
            Ok(Message::Close(frame)) => {
                let _ = self.socket.flush();
                let (code, reason) =
                    frame.map_or((1005, String::new()), |frame| (u16::from(frame.code), frame.reason.to_string()));
                return Heard::Closed { code, reason };
            }
            Ok(_) => {
                self.unsent = true;
                return Heard::Alive;
            }
            Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Heard::Nothing,
            Err(error) => return Heard::Closed { code: 1006, reason: error.to_string() },
        };
        match wire::decode_server_frame(self.encoding, &bytes) {
            Ok(frame) => Heard::Frame(Box::new(frame)),
            Err(error) => Heard::Closed { code: 1007, reason: format!("cannot read the server's frame: {error}") },
        }
    }

    /// Sends a frame, or as much of it as the socket takes; the rest goes with `flush`.
    pub(crate) fn say(&mut self, frame: &ClientFrame) -> Result<(), String> {
        self.buffer.clear();
        wire::encode_client_frame(self.encoding, frame, &mut self.buffer);
        let bytes = std::mem::take(&mut self.buffer);
        let message = match self.encoding {
            Encoding::Rkyv => Message::Binary(bytes.into()),
            Encoding::Json => Message::Text(String::from_utf8(bytes).expect("JSON is UTF-8").into()),
        };
        match self.socket.write(message) {
            Ok(()) => self.flush(),
            Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                self.unsent = true;
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Goes on sending.
    pub(crate) fn flush(&mut self) -> Result<(), String> {
        match self.socket.flush() {
            Ok(()) => self.unsent = false,
            Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => self.unsent = true,
            Err(error) => return Err(error.to_string()),
        }
        Ok(())
    }

    /// Whether a part of what was said still waits here.
    pub(crate) fn unsent(&self) -> bool {
        self.unsent
    }

    /// Says goodbye, without waiting for the answer.
    pub(crate) fn close(mut self) {
        let _ = self.socket.close(None);
        let _ = self.socket.flush();
    }

    /// Waits until there is something to hear, room to send, or the wake descriptor is readable.
    pub(crate) fn wait(connection: Option<&Self>, wake: Option<BorrowedFd<'_>>, timeout: Duration) {
        let mut fds = Vec::with_capacity(2);
        if let Some(connection) = connection {
            let interest = if connection.unsent { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            fds.push(PollFd::new(connection.socket.get_ref(), interest));
        }
        if let Some(wake) = wake {
            fds.push(PollFd::from_borrowed_fd(wake, PollFlags::IN));
        }
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        // An interruption is as good as an event: the caller looks again.
        let _ = poll(&mut fds, Some(&timeout));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_or_explained() {
        let address = Address::parse("ws://127.0.0.1:7400/ws").expect("an address");
        assert_eq!((address.host.as_str(), address.port, address.is_loopback()), ("127.0.0.1", 7400, true));
        assert_eq!(Address::parse("ws://[::1]/ws").map(|address| (address.host, address.port)), Ok(("::1".into(), 80)));
        assert!(Address::parse("wss://x/ws").expect_err("refused").contains("TLS proxy"));
        for text in ["", "127.0.0.1:7400", "http://x/ws", "ws://", "::"] {
            assert!(Address::parse(text).expect_err(text).contains("expected ws://"), "{text}");
        }
    }
}
