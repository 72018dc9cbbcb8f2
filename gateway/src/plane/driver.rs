//! What a shard asks of the kernel: the two drivers answer to the same trait, and report through the same sink.

use super::conn::Outgoing;
use bytes::Bytes;
use gateway_core::output::ConnId;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Hears what happened to the sockets. Called from `dispatch` and `flush` only.
pub(crate) trait Sink {
    /// A connection came in.
    fn accepted(&mut self, conn: ConnId, peer: SocketAddr);
    /// Bytes came in, in the driver's buffer.
    fn data(&mut self, conn: ConnId, data: &mut [u8]);
    /// The kernel took bytes; `queued` are left.
    fn sent(&mut self, conn: ConnId, bytes: usize, queued: usize);
    /// The connection is over; said once, and never after `abort` or `detach`.
    fn closed(&mut self, conn: ConnId);
}

/// A connection outside of any driver: on its way from one shard to another.
#[derive(Debug)]
pub(crate) struct Detached {
    pub(crate) fd: OwnedFd,
    /// Came in after the seat was decided.
    pub(crate) unread: Vec<u8>,
    /// Was queued and not taken by the kernel yet.
    pub(crate) unsent: Outgoing,
}

/// The sockets of one shard. All calls come from the shard's own thread; ids of connections that are gone are ignored.
///
/// One turn: `wait`, `dispatch`, then what the brain wants (`send` to `detach`), then `flush`.
pub(crate) trait Driver {
    /// Hands work to the kernel and waits for events, at most `timeout` (`None`: for ever), if this driver is one that
    /// waits; the other's host does.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()>;
    /// Reports what came.
    fn dispatch(&mut self, now_ms: u64, sink: &mut impl Sink);
    /// Queues a copy.
    fn send(&mut self, conn: ConnId, bytes: &[u8]);
    /// Queues by reference.
    fn send_shared(&mut self, conn: ConnId, bytes: Bytes);
    /// Stops reading.
    fn pause(&mut self, conn: ConnId);
    /// Reads again.
    fn resume(&mut self, conn: ConnId);
    /// The connection leaves the lobby and stays.
    fn promote(&mut self, conn: ConnId);
    /// Sends what is queued, shuts down, waits for the peer within the linger time, reports `closed`.
    fn close(&mut self, now_ms: u64, conn: ConnId);
    /// Drops the connection.
    fn abort(&mut self, conn: ConnId);
    /// Takes a lobby connection out; it comes out of `take_detached`, in this turn or a later one. False when it is
    /// gone already.
    fn detach(&mut self, conn: ConnId) -> bool;
    /// A connection that was detached.
    fn take_detached(&mut self) -> Option<(ConnId, Detached)>;
    /// Takes a connection in, live; `busy` says that bytes are expected all the time, as on the link, whose room nobody
    /// else gets. `None` when there is no room: it is dropped.
    fn adopt(&mut self, arrival: Detached, busy: bool) -> Option<ConnId>;
    /// Carries out what was asked for since `dispatch`.
    fn flush(&mut self, now_ms: u64, sink: &mut impl Sink);
    /// Accepts nobody any more.
    fn stop_accepting(&mut self);
    /// When `dispatch` has something to do though nothing happened, in `Now::mono_ms`.
    fn next_deadline(&self) -> Option<u64>;
    /// True when events wait that one `dispatch` did not get to.
    fn has_more(&mut self) -> bool;
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::super::epoll::Epoll;
    use super::super::uring::Uring;
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    fn arrival() -> Detached {
        let (fd, _peer) = UnixStream::pair().expect("two sockets");
        Detached { fd: fd.into(), unread: Vec::new(), unsent: Outgoing::default() }
    }

    fn clients_leave_the_room_of_the_link(mut driver: impl Driver) {
        assert!((0..2).all(|_| driver.adopt(arrival(), false).is_some()));
        // The link comes, goes, and comes again, while somebody waits for any room.
        for _ in 0..3 {
            assert_eq!(driver.adopt(arrival(), false), None);
            let link = driver.adopt(arrival(), true).expect("room for the link");
            assert_eq!(driver.adopt(arrival(), false), None);
            driver.abort(link);
        }
    }

    #[test]
    fn clients_from_other_shards_leave_the_room_of_the_link() {
        let listener = || OwnedFd::from(TcpListener::bind(("127.0.0.1", 0)).expect("a free port"));
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd");
        let options = Options { connections_max: 2, ..Options::default() };
        let epoll = Epoll::new(listener(), &wake, 2, options.linger_ms, Arc::default());
        clients_leave_the_room_of_the_link(epoll.expect("epoll"));
        let uring = Uring::new(listener(), &wake, &options, Arc::default());
        clients_leave_the_room_of_the_link(uring.expect("io_uring"));
    }
}
