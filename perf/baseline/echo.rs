//! The physical baseline of `echo`: raw TCP on one thread and one epoll, no WebSocket, no frames. Each read is written
//! back as it came. It is fixed: a change here changes what every ratio means.

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, sockopt};
use std::io;
use std::net::TcpListener;

/// Sockets served per wait at most.
const EVENTS_MAX: usize = 1024;
/// Larger than any payload that is measured: one read takes what there is.
const READ_BYTES: usize = 64 << 10;
/// The listener's place among the connections.
const LISTENER: u64 = u64::MAX;

/// A connection, and what the socket did not take.
struct Conn {
    socket: OwnedFd,
    unsent: Vec<u8>,
}

/// Serves for ever, or until the listener fails.
pub(crate) fn serve(listener: &TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
    let mut conns: Vec<Option<Conn>> = Vec::new();
    let mut events = Vec::with_capacity(EVENTS_MAX);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        events.clear();
        match epoll::wait(&epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let key = event.data.u64();
            if key == LISTENER {
                accept(listener, &epoll, &mut conns)?;
            } else if let Some(slot) = conns.get_mut(key as usize)
                && let Some(conn) = slot
                && !echo(conn, &mut buffer)
            {
                *slot = None;
            }
        }
    }
}

fn accept(listener: &TcpListener, epoll: &OwnedFd, conns: &mut Vec<Option<Conn>>) -> io::Result<()> {
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match rustix::net::accept_with(listener.as_fd(), flags) {
            Ok(socket) => socket,
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR | Errno::CONNABORTED) => continue,
            Err(error) => return Err(error.into()),
        };
        sockopt::set_tcp_nodelay(&socket, true)?;
        let interest = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(epoll, &socket, epoll::EventData::new_u64(conns.len() as u64), interest)?;
        conns.push(Some(Conn { socket, unsent: Vec::new() }));
    }
}

/// Writes back what is there; false when the connection is over.
fn echo(conn: &mut Conn, buffer: &mut [u8]) -> bool {
    loop {
        if !conn.unsent.is_empty() {
            match send(&conn.socket, &conn.unsent) {
                Ok(sent) => drop(conn.unsent.drain(..sent)),
                Err(_) => return false,
            }
            if !conn.unsent.is_empty() {
                return true;
            }
        }
        let read = match rustix::net::recv(&conn.socket, &mut *buffer, RecvFlags::empty()) {
            Ok((0, _)) => return false,
            Ok((read, _)) => read,
            Err(Errno::AGAIN) => return true,
            Err(Errno::INTR) => continue,
            Err(_) => return false,
        };
        match send(&conn.socket, &buffer[..read]) {
            Ok(sent) => conn.unsent.extend_from_slice(&buffer[sent..read]),
            Err(_) => return false,
        }
        // A short read empties the socket: edge-triggered epoll tells of what comes later.
        if read < buffer.len() && conn.unsent.is_empty() {
            return true;
        }
    }
}

/// How many bytes the socket took.
fn send(socket: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    let mut sent = 0;
    while sent < bytes.len() {
        match rustix::net::send(socket, &bytes[sent..], SendFlags::NOSIGNAL) {
            Ok(more) => sent += more,
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    #[test]
    fn bytes_come_back_in_order_also_those_that_a_socket_does_not_take_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || serve(&listener));
        let mut clients: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
        let text: Vec<u8> = (0..8_000_000_u32).map(|at| (at / 5) as u8).collect();
        for client in &mut clients {
            // Far more than sockets buffer: the server's writes must fall short before this client begins to read.
            let mut writing = client.try_clone().unwrap();
            let sent = text.clone();
            let writer = std::thread::spawn(move || writing.write_all(&sent).unwrap());
            let mut back = vec![0; text.len()];
            client.read_exact(&mut back).unwrap();
            writer.join().unwrap();
            assert!(back == text);
        }
        // A client that leaves does not disturb the others.
        clients.remove(0);
        clients[0].write_all(b"still there").unwrap();
        let mut back = [0; 11];
        clients[0].read_exact(&mut back).unwrap();
        assert_eq!(&back, b"still there");
    }
}
