//! One WebSocket of a device over a socket that never blocks.

use parley_protocol::wire::Encoding;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use tungstenite::client::{ClientRequestBuilder, client_with_config};
use tungstenite::handshake::MidHandshake;
use tungstenite::handshake::client::ClientHandshake;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Error, HandshakeError, Message, WebSocket};

/// Bytes that may wait for one socket: beyond that the connection is given up.
const OUT_BYTES_MAX: usize = 1 << 20;
const READ_BYTES: usize = 8 << 10;

/// A connection that is being made, or is made.
pub(crate) enum Wire {
    Shaking(MidHandshake<ClientHandshake<TcpStream>>),
    Open(Box<WebSocket<TcpStream>>),
}

/// What a wire brought.
pub(crate) enum Came {
    /// The upgrade is done.
    Opened,
    /// A text or binary message.
    Frame(Vec<u8>),
    /// Nothing more for now.
    Nothing,
    /// It is over: the close code, 1006 without one.
    Closed(u16),
}

/// Begins a connection. `register` gets the socket before anything is sent.
pub(crate) fn dial(
    address: SocketAddr,
    encoding: Encoding,
    register: impl FnOnce(&OwnedFd) -> io::Result<()>,
) -> io::Result<Option<Wire>> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    sockopt::set_tcp_nodelay(socket.as_fd(), true)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    register(&socket)?;
    let uri = format!("ws://{address}/ws").parse().map_err(|_| io::Error::other("the address makes no URL"))?;
    let request = ClientRequestBuilder::new(uri).with_sub_protocol(encoding.subprotocol());
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(OUT_BYTES_MAX);
    let config = config.write_buffer_size(READ_BYTES);
    Ok(match client_with_config(request, TcpStream::from(socket), Some(config)) {
        Ok((socket, _)) => Some(Wire::Open(Box::new(socket))),
        Err(HandshakeError::Interrupted(middle)) => Some(Wire::Shaking(middle)),
        Err(HandshakeError::Failure(_)) => None,
    })
}

/// Takes the next thing; the wire comes back unless it is over.
pub(crate) fn take(wire: Wire) -> (Option<Wire>, Came) {
    match wire {
        Wire::Shaking(middle) => match middle.handshake() {
            Ok((socket, _)) => (Some(Wire::Open(Box::new(socket))), Came::Opened),
            Err(HandshakeError::Interrupted(middle)) => (Some(Wire::Shaking(middle)), Came::Nothing),
            Err(HandshakeError::Failure(_)) => (None, Came::Closed(1006)),
        },
        Wire::Open(mut socket) => loop {
            match socket.read() {
                Ok(Message::Text(text)) => return (Some(Wire::Open(socket)), Came::Frame(text.as_bytes().to_vec())),
                Ok(Message::Binary(bytes)) => return (Some(Wire::Open(socket)), Came::Frame(bytes.to_vec())),
                Ok(Message::Close(frame)) => {
                    return (None, Came::Closed(frame.map_or(1005, |frame| frame.code.into())));
                }
                Ok(_) => {}
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return (Some(Wire::Open(socket)), Came::Nothing);
                }
                Err(_) => return (None, Came::Closed(1006)),
            }
        },
    }
}

impl Wire {
    /// Queues a frame; false when the connection is of no use any more.
    pub(crate) fn say(&mut self, encoding: Encoding, bytes: &[u8]) -> bool {
        let Wire::Open(socket) = self else { return false };
        let message = match encoding {
            Encoding::Json => match std::str::from_utf8(bytes) {
                Ok(text) => Message::text(text),
                Err(_) => return false,
            },
            Encoding::Rkyv => Message::binary(bytes.to_vec()),
        };
        still_open(socket.write(message))
    }

    /// Sends what is queued; false when the connection is of no use any more.
    pub(crate) fn flush(&mut self) -> bool {
        match self {
            Wire::Open(socket) => still_open(socket.flush()),
            Wire::Shaking(_) => true,
        }
    }
}

fn still_open(result: Result<(), Error>) -> bool {
    match result {
        Ok(()) => true,
        Err(Error::Io(error)) => error.kind() == io::ErrorKind::WouldBlock,
        Err(_) => false,
    }
}
