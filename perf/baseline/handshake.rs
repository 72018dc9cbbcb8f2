//! The physical baseline of `churn`: accept, two reads, two writes, close, on one thread with one epoll, with as many
//! bytes each as an upgrade, its answer, a `Hello` and its `Welcome` have. Knows no WebSocket.

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, sockopt};
use std::io;
use std::net::TcpListener;

/// Sockets served per turn at most.
const EVENTS_MAX: usize = 1024;
/// The listener's place among the connections.
const LISTENER: u64 = u64::MAX;
const READ_BYTES: usize = 8 << 10;

/// Bytes of the two questions and of their answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Steps {
    pub(crate) asks: [usize; 2],
    pub(crate) answers: [usize; 2],
}

/// A connection, and the bytes of its question that came.
struct Conn {
    socket: OwnedFd,
    step: usize,
    got: usize,
}

/// Serves for ever, or until the listener fails.
pub(crate) fn serve(listener: &TcpListener, steps: Steps) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    // Accepted sockets inherit it.
    sockopt::set_tcp_nodelay(listener, true)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
    let (mut conns, mut free): (Vec<Option<Conn>>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut events = Vec::with_capacity(EVENTS_MAX);
    let mut buffer = vec![0; READ_BYTES];
    let answers = steps.answers.map(|bytes| vec![b'a'; bytes]);
    loop {
        events.clear();
        match epoll::wait(&epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let key = event.data.u64();
            if key == LISTENER {
                accept(listener, &epoll, &mut conns, &mut free)?;
            } else if let Some(slot) = conns.get_mut(key as usize)
                && let Some(conn) = slot
                && !step(conn, &steps, &answers, &mut buffer)
            {
                *slot = None;
                free.push(key as usize);
            }
        }
    }
}

fn accept(
    listener: &TcpListener,
    epoll: &OwnedFd,
    conns: &mut Vec<Option<Conn>>,
    free: &mut Vec<usize>,
) -> io::Result<()> {
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match rustix::net::accept_with(listener.as_fd(), flags) {
            Ok(socket) => socket,
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR | Errno::CONNABORTED) => continue,
            Err(error) => return Err(error.into()),
        };
        let at = free.pop().unwrap_or_else(|| {
            conns.push(None);
            conns.len() - 1
        });
        epoll::add(epoll, &socket, epoll::EventData::new_u64(at as u64), epoll::EventFlags::IN)?;
        conns[at] = Some(Conn { socket, step: 0, got: 0 });
    }
}

/// Reads what is there, and answers a question that is whole; false when the connection is over.
fn step(conn: &mut Conn, steps: &Steps, answers: &[Vec<u8>; 2], buffer: &mut [u8]) -> bool {
    match rustix::net::recv(&conn.socket, &mut *buffer, RecvFlags::empty()) {
        Ok((read @ 1.., _)) => conn.got += read,
        Err(Errno::AGAIN | Errno::INTR) => return true,
        Ok((0, _)) | Err(_) => return false,
    }
    if conn.got < steps.asks[conn.step] {
        return true;
    }
    let answer = &answers[conn.step];
    // An empty socket takes a few hundred bytes at once, or is broken.
    let sent = rustix::net::send(&conn.socket, answer, SendFlags::NOSIGNAL);
    (conn.step, conn.got) = (conn.step + 1, 0);
    sent == Ok(answer.len()) && conn.step < steps.asks.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    #[test]
    fn each_question_has_its_answer_and_then_the_server_closes() {
        let steps = Steps { asks: [5, 9], answers: [3, 4_000] };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || serve(&listener, steps));
        for _ in 0..3 {
            let mut client = TcpStream::connect(address).unwrap();
            // A question in two pieces is one.
            client.write_all(b"12").unwrap();
            client.write_all(b"345").unwrap();
            let mut answer = [0; 3];
            client.read_exact(&mut answer).unwrap();
            client.write_all(b"123456789").unwrap();
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).unwrap();
            assert_eq!((&answer, rest.len()), (b"aaa", 4_000));
        }
        // One that leaves early is forgotten.
        drop(TcpStream::connect(address).unwrap());
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"12345").unwrap();
        client.read_exact(&mut [0; 3]).unwrap();
    }
}
