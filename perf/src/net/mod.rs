//! Many client connections on one thread: one epoll, non-blocking sockets, one read buffer for all, one write per
//! socket and turn. What messages mean is the handler's business.

pub(crate) mod frame;
mod url;

pub(crate) use url::Url;

use frame::Op;
use parley_protocol::wire::Encoding;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, sockopt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{io, mem};

/// Bytes waiting for one socket above which the connection counts as stalled and is given up.
const OUT_BYTES_MAX: usize = 4 << 20;
/// Head of the answer to an upgrade.
const UPGRADE_BYTES_MAX: usize = 16 << 10;
/// How long servers may take to close after a goodbye.
const GOODBYE_NS: u64 = 2_000_000_000;
const READ_BYTES: usize = 64 << 10;
/// Sockets served per turn at most.
const EVENTS_MAX: usize = 1024;

/// The key of the RFC's own example (section 1.3) and the answer to it: a load generator needs no nonce.
pub(crate) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Set from outside to end a run early.
pub(crate) type Stop = Arc<AtomicBool>;

/// Nanoseconds since the generator began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// Why a connection is over.
#[derive(Debug)]
pub(crate) enum Closed {
    /// The system call failed.
    Io(io::Error),
    /// The server hung up without a close frame.
    Eof,
    /// The server's close frame.
    Close { code: u16, reason: String },
    /// The server broke the WebSocket protocol.
    Broken(&'static str),
    /// The answer to the upgrade, where it is not 101.
    Refused(String),
    /// The server takes nothing any more.
    Stalled,
}

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Closed::Io(error) => write!(f, "{error}"),
            Closed::Eof => f.write_str("the server hung up"),
            Closed::Close { code, reason } => write!(f, "the server closed with {code} ({reason})"),
            Closed::Broken(what) => f.write_str(what),
            Closed::Refused(answer) => write!(f, "the upgrade was answered with: {answer}"),
            Closed::Stalled => write!(f, "{OUT_BYTES_MAX} bytes wait and the server takes none"),
        }
    }
}

/// What is told about connections. `wires` takes answers at once; they are written at the end of the turn.
pub(crate) trait Handler {
    /// The upgrade is done.
    fn opened(&mut self, conn: u32, wires: &mut Wires);
    /// A whole text or binary message.
    fn message(&mut self, conn: u32, payload: &[u8], now_ns: u64, wires: &mut Wires);
    /// The connection is over; it is told once.
    fn closed(&mut self, conn: u32, why: Closed);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Upgrading,
    Open,
    Closed,
}

/// The sending side of one connection.
#[derive(Debug)]
struct Wire {
    socket: Option<OwnedFd>,
    state: State,
    /// Bytes from `written` on wait.
    out: Vec<u8>,
    written: usize,
    queued: bool,
    /// The socket took less than it was given; epoll tells when it takes more.
    blocked: bool,
    last_write_ns: u64,
}

/// The sending sides.
#[derive(Debug)]
pub(crate) struct Wires {
    list: Vec<Wire>,
    dirty: Vec<u32>,
}

impl Wires {
    /// The buffer of a connection, to append whole frames to; `None` once it is closed.
    pub(crate) fn out(&mut self, conn: u32) -> Option<&mut Vec<u8>> {
        let wire = &mut self.list[conn as usize];
        if wire.state == State::Closed {
            return None;
        }
        if !wire.queued {
            wire.queued = true;
            self.dirty.push(conn);
        }
        Some(&mut wire.out)
    }

    /// When something was last written to it.
    pub(crate) fn last_write_ns(&self, conn: u32) -> u64 {
        self.list[conn as usize].last_write_ns
    }

    /// Whether it is past its upgrade and not closed.
    pub(crate) fn is_open(&self, conn: u32) -> bool {
        self.list[conn as usize].state == State::Open
    }
}

/// The connections.
pub(crate) struct Net {
    pub(crate) clock: Clock,
    pub(crate) wires: Wires,
    epoll: OwnedFd,
    /// Of each connection, the bytes of a frame that is not whole.
    partial: Vec<Vec<u8>>,
    events: Vec<epoll::Event>,
    buffer: Box<[u8]>,
    url: Url,
    encoding: Encoding,
    stop: Stop,
}

impl Net {
    pub(crate) fn new(clock: Clock, url: Url, encoding: Encoding, stop: Stop) -> io::Result<Self> {
        Ok(Self {
            clock,
            wires: Wires { list: Vec::new(), dirty: Vec::new() },
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            partial: Vec::new(),
            events: Vec::with_capacity(EVENTS_MAX),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            url,
            encoding,
            stop,
        })
    }

    /// Begins a connection; its number is the count of those before it.
    pub(crate) fn connect(&mut self) -> io::Result<u32> {
        let address = self.url.address;
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let conn = self.wires.list.len() as u32;
        let interest = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(u64::from(conn)), interest)?;
        self.wires.list.push(Wire {
            socket: Some(socket),
            state: State::Connecting,
            out: Vec::new(),
            written: 0,
            queued: false,
            blocked: false,
            last_write_ns: 0,
        });
        self.partial.push(Vec::new());
        Ok(conn)
    }

    /// Serves what is ready, without waiting, and writes what was queued. How many sockets were ready. An error once
    /// the run is to stop.
    pub(crate) fn turn(&mut self, handler: &mut impl Handler) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("stopped by a signal"));
        }
        self.flush(handler);
        let mut events = mem::take(&mut self.events);
        events.clear();
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let polled = epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&zero));
        for event in &events {
            let conn = event.data.u64() as u32;
            self.serve(conn, event.flags, handler);
        }
        let ready = events.len();
        self.events = events;
        match polled {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.flush(handler);
        Ok(ready)
    }

    /// Waits until a socket is ready or the time is over. (`ppoll` on the epoll: it knows nanoseconds.)
    pub(crate) fn wait(&self, longest: Duration) -> io::Result<()> {
        let timeout = Timespec { tv_sec: longest.as_secs() as i64, tv_nsec: i64::from(longest.subsec_nanos()) };
        match poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn serve(&mut self, conn: u32, flags: epoll::EventFlags, handler: &mut impl Handler) {
        let failed = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
        let wire = &mut self.wires.list[conn as usize];
        if wire.state == State::Connecting {
            let Some(socket) = &wire.socket else { return };
            match sockopt::socket_error(socket) {
                Ok(Ok(())) if flags.contains(epoll::EventFlags::OUT) => {
                    wire.state = State::Upgrading;
                    let request = self.url.upgrade(KEY, self.encoding.subprotocol());
                    if let Some(out) = self.wires.out(conn) {
                        out.extend_from_slice(request.as_bytes());
                    }
                }
                Ok(Ok(())) => return,
                Ok(Err(error)) | Err(error) => return self.close(conn, Closed::Io(error.into()), handler),
            }
        }
        if flags.intersects(epoll::EventFlags::IN | failed) {
            self.read(conn, handler);
        }
        if flags.contains(epoll::EventFlags::OUT) && mem::take(&mut self.wires.list[conn as usize].blocked) {
            // `out` queues the socket for the flush at the end of the turn.
            let _ = self.wires.out(conn);
        }
    }

    fn read(&mut self, conn: u32, handler: &mut impl Handler) {
        loop {
            let Some(socket) = &self.wires.list[conn as usize].socket else { return };
            let received = match rustix::net::recv(socket, &mut self.buffer[..], RecvFlags::empty()) {
                Ok((0, _)) => return self.close(conn, Closed::Eof, handler),
                Ok((received, _)) => received,
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => continue,
                Err(error) => return self.close(conn, Closed::Io(error.into()), handler),
            };
            let now_ns = self.clock.now_ns();
            let mut partial = mem::take(&mut self.partial[conn as usize]);
            let taken = if partial.is_empty() {
                let bytes = &self.buffer[..received];
                let taken = take_bytes(&mut self.wires, conn, bytes, now_ns, handler);
                if let Ok(taken) = taken {
                    partial.extend_from_slice(&bytes[taken..]);
                }
                taken
            } else {
                partial.extend_from_slice(&self.buffer[..received]);
                let taken = take_bytes(&mut self.wires, conn, &partial, now_ns, handler);
                if let Ok(taken) = taken {
                    partial.drain(..taken);
                }
                taken
            };
            self.partial[conn as usize] = partial;
            if let Err(why) = taken {
                return self.close(conn, why, handler);
            }
            if received < self.buffer.len() {
                // A short read empties the socket: edge-triggered epoll tells of what comes later.
                return;
            }
        }
    }

    /// Writes what is queued: one `send` a socket.
    fn flush(&mut self, handler: &mut impl Handler) {
        if self.wires.dirty.is_empty() {
            return;
        }
        let now_ns = self.clock.now_ns();
        let mut dirty = mem::take(&mut self.wires.dirty);
        for conn in dirty.drain(..) {
            let wire = &mut self.wires.list[conn as usize];
            wire.queued = false;
            if wire.blocked || wire.state == State::Connecting {
                if wire.out.len() - wire.written > OUT_BYTES_MAX {
                    self.close(conn, Closed::Stalled, handler);
                }
                continue;
            }
            if let Err(error) = write(wire, now_ns) {
                self.close(conn, Closed::Io(error.into()), handler);
            }
        }
        // Handlers may have queued more while connections were closed: keep both.
        dirty.append(&mut self.wires.dirty);
        self.wires.dirty = dirty;
    }

    fn close(&mut self, conn: u32, why: Closed, handler: &mut impl Handler) {
        let wire = &mut self.wires.list[conn as usize];
        if wire.state != State::Closed {
            wire.state = State::Closed;
            if let Some(socket) = wire.socket.take() {
                // Best effort: without it the port stays in TIME_WAIT where the server did not close first.
                let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
            }
            wire.out = Vec::new();
            wire.written = 0;
            self.partial[conn as usize] = Vec::new();
            handler.closed(conn, why);
        }
    }

    /// Says goodbye on every open connection (close code 1000), lets the server close for a moment, and resets the
    /// rest: thousands of ports in TIME_WAIT would make the connects of the next run slow.
    pub(crate) fn shut(mut self) -> io::Result<()> {
        let mut goodbye = Vec::new();
        frame::write_frame(Op::Close, [0; 4], &1000_u16.to_be_bytes(), &mut goodbye);
        let mut leaving = Leaving { open: 0 };
        for conn in 0..self.wires.list.len() as u32 {
            if self.wires.is_open(conn)
                && let Some(out) = self.wires.out(conn)
            {
                out.extend_from_slice(&goodbye);
                leaving.open += 1;
            }
        }
        let until_ns = self.clock.now_ns() + GOODBYE_NS;
        while leaving.open > 0 && self.clock.now_ns() < until_ns {
            if self.turn(&mut leaving)? == 0 {
                self.wait(Duration::from_millis(1))?;
            }
        }
        for wire in &mut self.wires.list {
            if let Some(socket) = wire.socket.take() {
                sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
            }
        }
        Ok(())
    }
}

/// Counts those who are not gone yet.
struct Leaving {
    open: usize,
}

impl Handler for Leaving {
    fn opened(&mut self, _conn: u32, _wires: &mut Wires) {}

    fn message(&mut self, _conn: u32, _payload: &[u8], _now_ns: u64, _wires: &mut Wires) {}

    fn closed(&mut self, _conn: u32, _why: Closed) {
        self.open = self.open.saturating_sub(1);
    }
}

fn write(wire: &mut Wire, now_ns: u64) -> Result<(), Errno> {
    let Some(socket) = &wire.socket else { return Ok(()) };
    while wire.written < wire.out.len() {
        match rustix::net::send(socket, &wire.out[wire.written..], SendFlags::NOSIGNAL) {
            Ok(sent) => wire.written += sent,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                wire.blocked = true;
                wire.out.drain(..wire.written);
                wire.written = 0;
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
    wire.last_write_ns = now_ns;
    wire.out.clear();
    wire.written = 0;
    Ok(())
}

/// Hands out what lies whole in `bytes`; how many bytes that were.
fn take_bytes(
    wires: &mut Wires,
    conn: u32,
    bytes: &[u8],
    now_ns: u64,
    handler: &mut impl Handler,
) -> Result<usize, Closed> {
    let mut taken = 0;
    if wires.list[conn as usize].state == State::Upgrading {
        let Some(end) = bytes.windows(4).position(|end| end == b"\r\n\r\n") else {
            if bytes.len() > UPGRADE_BYTES_MAX {
                return Err(Closed::Broken("the server answers the upgrade without end"));
            }
            return Ok(0);
        };
        check_upgrade(&bytes[..end + 4]).map_err(|answer| {
            let body = String::from_utf8_lossy(&bytes[end + 4..]).trim().to_owned();
            Closed::Refused(format!("{answer} {body}").trim().to_owned())
        })?;
        taken = end + 4;
        wires.list[conn as usize].state = State::Open;
        handler.opened(conn, wires);
    }
    while let Some(frame) = frame::parse(&bytes[taken..]).map_err(Closed::Broken)? {
        match frame.op {
            Op::Text | Op::Binary => handler.message(conn, frame.payload, now_ns, wires),
            Op::Ping => {
                if let Some(out) = wires.out(conn) {
                    frame::write_frame(Op::Pong, [0; 4], frame.payload, out);
                }
            }
            Op::Pong => {}
            Op::Close => {
                let code = frame.payload.first_chunk::<2>().map_or(1005, |code| u16::from_be_bytes(*code));
                let reason = frame.payload.get(2..).map(String::from_utf8_lossy).unwrap_or_default().into_owned();
                return Err(Closed::Close { code, reason });
            }
        }
        taken += frame.bytes;
    }
    Ok(taken)
}

/// The status line is 101 and the accept key is ours, or the status line comes back.
pub(crate) fn check_upgrade(head: &[u8]) -> Result<(), String> {
    let head = String::from_utf8_lossy(head);
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default();
    let accepted = lines.any(|line| {
        line.split_once(':').is_some_and(|(name, value)| {
            name.trim().eq_ignore_ascii_case("sec-websocket-accept") && value.trim() == ACCEPT
        })
    });
    if status.starts_with("HTTP/1.1 101") && accepted { Ok(()) } else { Err(status.to_owned()) }
}

/// Raises the soft limit of open files to the hard one, and says how many there may be.
pub(crate) fn raise_file_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    if raised.is_ok() { most } else { limit.current.unwrap_or(u64::MAX) }
}
