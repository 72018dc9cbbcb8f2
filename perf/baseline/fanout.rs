//! The physical baseline of fan-out: raw TCP on one thread and one io_uring, no WebSocket, no chat. Each trigger, so
//! many bytes from any connection, sends one prebuilt frame to all of them: one submission and one completion a
//! delivery. It is fixed: a change here changes what every ratio means.
//!
//! `unsafe`: submissions with the addresses of what is sent and of where is read to.
#![allow(unsafe_code)]

use io_uring::types::Fixed;
use io_uring::{IoUring, opcode, squeue};
use rustix::fd::AsRawFd;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};

const SUBMISSIONS: u32 = 4096;
const COMPLETIONS: u32 = 32_768;
/// Which kind a completion is of, beside the connection's number.
const RECEIVE: u64 = 1 << 32;

/// What goes in and out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// So many are accepted before any is served.
    pub(crate) connections: u32,
    /// Of a trigger, from whomever it comes.
    pub(crate) trigger_bytes: usize,
    /// Of what all get for it.
    pub(crate) frame_bytes: usize,
}

/// What a frame holds.
pub(crate) fn frame(bytes: usize) -> Vec<u8> {
    (b'a'..=b'z').cycle().take(bytes).collect()
}

/// A connection's place.
#[derive(Clone, Copy, Default)]
struct Conn {
    /// Bytes of a trigger that came.
    got: usize,
    /// Frames that it has not got whole.
    owed: u32,
    /// Bytes of the first of these that the socket took.
    sent: usize,
}

/// Serves one crowd of connections after the other, for ever, or until the listener or the ring fails.
pub(crate) fn serve(listener: &TcpListener, shape: Shape) -> io::Result<()> {
    loop {
        let accept = |_| {
            let (socket, _) = listener.accept()?;
            socket.set_nodelay(true)?;
            Ok(socket)
        };
        let sockets = (0..shape.connections).map(accept).collect::<io::Result<Vec<_>>>()?;
        Server::new(shape, sockets)?.run()?;
    }
}

struct Server {
    ring: IoUring,
    shape: Shape,
    frame: Vec<u8>,
    sockets: Vec<TcpStream>,
    conns: Vec<Conn>,
    /// `trigger_bytes` for each connection.
    triggers: Vec<u8>,
    in_flight: usize,
    over: bool,
}

impl Server {
    fn new(shape: Shape, sockets: Vec<TcpStream>) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_clamp()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        let files: Vec<i32> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        ring.submitter().register_files(&files)?;
        Ok(Self {
            ring,
            frame: frame(shape.frame_bytes),
            conns: vec![Conn::default(); sockets.len()],
            triggers: vec![0; sockets.len() * shape.trigger_bytes],
            shape,
            sockets,
            in_flight: 0,
            over: false,
        })
    }

    fn run(mut self) -> io::Result<()> {
        (0..self.sockets.len()).try_for_each(|conn| self.receive(conn))?;
        let mut completed: Vec<(u64, i32)> = Vec::with_capacity(COMPLETIONS as usize);
        while self.in_flight > 0 {
            match self.ring.submit_and_wait(1) {
                Err(error) if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY)) => {
                    return self.fail(error);
                }
                _ => {}
            }
            completed.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
            for (name, result) in completed.drain(..) {
                self.in_flight -= 1;
                let conn = (name & !RECEIVE) as usize;
                let done =
                    if name & RECEIVE == 0 { self.on_sent(conn, result) } else { self.on_received(conn, result) };
                if let Err(error) = done {
                    return self.fail(error);
                }
            }
        }
        Ok(())
    }

    /// The kernel may still use what operations point to: it is not freed.
    fn fail(self, error: io::Error) -> io::Result<()> {
        std::mem::forget(self);
        Err(error)
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: entries point into `frame` and `triggers`, which do not move or go before `in_flight` is 0, or
            // else are never freed; see `run` and `fail`.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                self.in_flight += 1;
                return Ok(());
            }
            self.ring.submit()?;
        }
    }

    fn receive(&mut self, conn: usize) -> io::Result<()> {
        let (size, got) = (self.shape.trigger_bytes, self.conns[conn].got);
        let rest = &mut self.triggers[conn * size..][got..size];
        let entry = opcode::Recv::new(Fixed(conn as u32), rest.as_mut_ptr(), rest.len() as u32).build();
        self.push(&entry.user_data(RECEIVE | conn as u64))
    }

    fn send(&mut self, conn: usize) -> io::Result<()> {
        let rest = &self.frame[self.conns[conn].sent..];
        let entry = opcode::Send::new(Fixed(conn as u32), rest.as_ptr(), rest.len() as u32).flags(libc::MSG_NOSIGNAL);
        self.push(&entry.build().user_data(conn as u64))
    }

    fn on_received(&mut self, conn: usize, result: i32) -> io::Result<()> {
        if result <= 0 || self.over {
            self.end();
            return Ok(());
        }
        self.conns[conn].got += result as usize;
        if self.conns[conn].got == self.shape.trigger_bytes {
            self.conns[conn].got = 0;
            for other in 0..self.conns.len() {
                self.conns[other].owed += 1;
                if self.conns[other].owed == 1 {
                    self.send(other)?;
                }
            }
        }
        self.receive(conn)
    }

    fn on_sent(&mut self, conn: usize, result: i32) -> io::Result<()> {
        if result <= 0 || self.over {
            self.end();
            return Ok(());
        }
        let state = &mut self.conns[conn];
        state.sent += result as usize;
        if state.sent == self.frame.len() {
            state.sent = 0;
            state.owed -= 1;
        }
        if state.owed > 0 { self.send(conn) } else { Ok(()) }
    }

    /// Somebody left: with that the crowd is over, and what is in flight completes.
    fn end(&mut self) {
        if !std::mem::replace(&mut self.over, true) {
            for socket in &self.sockets {
                // One that is over already needs no end.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    #[test]
    fn a_trigger_reaches_everybody_once_however_it_is_cut_and_one_crowd_follows_the_other() {
        let shape = Shape { connections: 3, trigger_bytes: 10, frame_bytes: 3_000_000 };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || serve(&listener, shape));
        for _ in 0..2 {
            let mut crowd: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
            crowd[1].write_all(&[7; 4]).unwrap();
            crowd[1].write_all(&[7; 16]).unwrap();
            crowd[2].write_all(&[7; 10]).unwrap();
            // Three frames each, far more than sockets buffer.
            for client in &mut crowd {
                let mut got = vec![0; shape.frame_bytes * 3];
                client.read_exact(&mut got).unwrap();
                assert!(got.chunks(shape.frame_bytes).all(|chunk| chunk == frame(shape.frame_bytes)));
            }
            drop(crowd.remove(0));
            // Nothing more came: only the end.
            for mut client in crowd {
                assert!(matches!(client.read(&mut [0; 8]), Ok(0) | Err(_)));
            }
        }
    }
}
