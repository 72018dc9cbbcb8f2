//! The sockets of the gateways' links: listening, whole records in, bounded bytes out. Nothing here knows what a record
//! means.

use crate::options::Error;
use parley_protocol::link::{ToGateway, ToWriter};
use parley_protocol::wire::{encode_record, split_record};
use rkyv::rancor::Error as RkyvError;
use rustix::net::SendFlags;
use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Bytes asked for with one read.
const READ_BYTES: usize = 256 * 1024;
/// Bytes taken from one link before the others have their turn.
const TURN_BYTES_MAX: usize = 1024 * 1024;
/// An idle link keeps at most this much buffer.
const KEPT_BYTES_MAX: usize = 4 * READ_BYTES;

/// Listens on a Unix socket; what a dead process left at the path is taken away.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, Error> {
    let io = |action: &'static str| move |source| Error::Io { action, path: path.to_owned(), source };
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            match UnixStream::connect(path) {
                Ok(_) => return Err(Error::SocketInUse(path.to_owned())),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(io("use the socket")(error)),
            }
            // Connecting to a plain file is refused too; that one is not ours to take away.
            let kind = std::fs::symlink_metadata(path).map_err(io("use the socket"))?.file_type();
            if !std::os::unix::fs::FileTypeExt::is_socket(&kind) {
                return Err(io("listen on")(ErrorKind::AlreadyExists.into()));
            }
            std::fs::remove_file(path).map_err(io("remove the stale socket"))?;
            UnixListener::bind(path).map_err(io("listen on"))?
        }
        bound => bound.map_err(io("listen on"))?,
    };
    let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path, owner_only).map_err(io("restrict"))?;
    listener.set_nonblocking(true).map_err(io("listen on"))?;
    Ok(listener)
}

/// Why a link ends.
#[derive(Debug)]
pub(crate) enum LinkEnd {
    /// The peer closed it.
    Closed,
    /// The socket failed.
    Io(std::io::Error),
    /// The peer sent what is no record.
    Malformed(String),
    /// The peer takes nothing.
    Stalled,
    /// This process may not act for the store any more, or cannot show that it may.
    NotActive,
}

impl std::fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LinkEnd::Closed => f.write_str("closed by the gateway"),
            LinkEnd::Io(error) => write!(f, "the socket failed: {error}"),
            LinkEnd::Malformed(what) => write!(f, "malformed: {what}"),
            LinkEnd::NotActive => f.write_str("this writer is not the active one"),
            LinkEnd::Stalled => f.write_str("the gateway does not read its answers"),
        }
    }
}

/// One link's socket and buffers.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) socket: UnixStream,
    input: Vec<u8>,
    /// Bytes of `input` that are decoded.
    taken: usize,
    output: Vec<u8>,
    /// Bytes of `output` that are with the kernel.
    sent: usize,
    output_bytes_max: usize,
    /// Whether its hello was seen.
    pub(crate) greeted: bool,
    /// It closes once `output` is out, and at that millisecond at the latest.
    pub(crate) closing_at: Option<u64>,
    /// It is in the list of links with output.
    pub(crate) dirty: bool,
    /// What epoll watches it for.
    pub(crate) interest: rustix::event::epoll::EventFlags,
}

impl Link {
    pub(crate) fn new(socket: UnixStream, output_bytes_max: usize) -> std::io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            input: Vec::new(),
            taken: 0,
            output: Vec::new(),
            sent: 0,
            output_bytes_max,
            greeted: false,
            closing_at: None,
            dirty: false,
            interest: rustix::event::epoll::EventFlags::IN,
        })
    }

    /// Takes what the socket has, up to a turn's worth, and hands over every record that is whole.
    pub(crate) fn read(&mut self, mut each: impl FnMut(ToWriter) -> Result<(), String>) -> Result<usize, LinkEnd> {
        let mut total = 0;
        while total < TURN_BYTES_MAX {
            self.input.reserve(READ_BYTES);
            let got = match rustix::io::read(&self.socket, rustix::buffer::spare_capacity(&mut self.input)) {
                Ok(0) => return Err(LinkEnd::Closed),
                Ok(got) => got,
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(LinkEnd::Io(error.into())),
            };
            total += got;
            self.decode(&mut each).map_err(LinkEnd::Malformed)?;
            if got < READ_BYTES {
                break;
            }
        }
        Ok(total)
    }

    fn decode(&mut self, each: &mut impl FnMut(ToWriter) -> Result<(), String>) -> Result<(), String> {
        while let Some((record, bytes)) = split_record(&self.input[self.taken..]).map_err(|error| error.0)? {
            let record = rkyv::from_bytes::<ToWriter, RkyvError>(record);
            self.taken += bytes;
            each(record.map_err(|_| "the bytes are not a link record".to_owned())?)?;
        }
        // The rest of a record stays, at the front.
        self.input.drain(..self.taken);
        self.taken = 0;
        if self.input.is_empty() && self.input.capacity() > KEPT_BYTES_MAX {
            self.input = Vec::new();
        }
        Ok(())
    }

    /// Adds a record to the output.
    pub(crate) fn push(&mut self, record: &ToGateway) {
        encode_record(record, &mut self.output);
    }

    /// Adds encoded records to the output.
    pub(crate) fn push_bytes(&mut self, records: &[u8]) {
        self.output.extend_from_slice(records);
    }

    /// Bytes that the kernel did not take yet.
    pub(crate) fn pending(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Whether so much waits that nothing more should be asked of this link.
    pub(crate) fn is_behind(&self) -> bool {
        self.pending() > self.output_bytes_max / 2
    }

    /// Gives the kernel what it takes.
    pub(crate) fn write(&mut self) -> Result<(), LinkEnd> {
        while self.pending() > 0 {
            match rustix::net::send(&self.socket, &self.output[self.sent..], SendFlags::NOSIGNAL) {
                Ok(sent) => self.sent += sent,
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(LinkEnd::Io(error.into())),
            }
        }
        if self.pending() > self.output_bytes_max {
            return Err(LinkEnd::Stalled);
        }
        if self.pending() == 0 {
            self.output.clear();
            if self.output.capacity() > KEPT_BYTES_MAX {
                self.output = Vec::new();
            }
            self.sent = 0;
        } else if self.sent > self.output.len() / 2 {
            self.output.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("writer.sock");
        drop(listen(&path).unwrap());
        assert!(path.exists(), "a dead process leaves its socket");
        let _live = listen(&path).unwrap();
        assert!(matches!(listen(&path), Err(Error::SocketInUse(_))));
        std::fs::write(dir.path().join("file"), "not a socket").unwrap();
        assert!(listen(&dir.path().join("file")).is_err());
        assert!(dir.path().join("file").exists(), "what is no socket stays");
    }

    #[test]
    fn a_peer_that_reads_nothing_is_told_apart() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut link = Link::new(ours, 4 << 20).unwrap();
        link.push_bytes(&vec![0; 3 << 20]);
        link.write().unwrap();
        assert!(link.pending() > 0 && link.is_behind());
        link.push_bytes(&vec![0; 3 << 20]);
        assert!(matches!(link.write(), Err(LinkEnd::Stalled)));
    }
}
