//! Listening sockets: one per shard on the same address, so that the kernel spreads connections over the shards.

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Connections that wait to be accepted, of each shard; the kernel lowers it to its `somaxconn`.
const BACKLOG: i32 = 16_384;

/// One listener per shard, and the address with its port.
pub(super) fn listeners(addr: SocketAddr, shards: u16) -> io::Result<(Vec<OwnedFd>, SocketAddr)> {
    // Sockets with SO_REUSEPORT of the same user may share a port, also those of two processes that do not mean to.
    // A socket without it finds the port taken.
    if addr.port() != 0 {
        wait_for_port(addr)?;
    }
    let first = listener(addr)?;
    let local = SocketAddr::try_from(rustix::net::getsockname(&first)?).map_err(io::Error::from)?;
    let mut listeners = vec![first];
    for _ in 1..shards {
        listeners.push(listener(local)?);
    }
    Ok((listeners, local))
}

/// A ring of a process that was killed keeps its listener for some milliseconds after the process is gone.
const PORT_ATTEMPTS_MAX: u32 = 20;
const PORT_PAUSE: Duration = Duration::from_millis(50);

fn wait_for_port(addr: SocketAddr) -> io::Result<()> {
    for attempt in 1.. {
        let guard = open(addr)?;
        match rustix::net::bind(&guard, &addr).and_then(|()| rustix::net::listen(&guard, 1)) {
            Err(Errno::ADDRINUSE) if attempt < PORT_ATTEMPTS_MAX => std::thread::sleep(PORT_PAUSE),
            result => return Ok(result?),
        }
    }
    Ok(())
}

fn open(addr: SocketAddr) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    Ok(fd)
}

fn listener(addr: SocketAddr) -> io::Result<OwnedFd> {
    let fd = open(addr)?;
    sockopt::set_socket_reuseport(&fd, true)?;
    // Accepted sockets inherit it: small frames leave at once, without a call per connection.
    sockopt::set_tcp_nodelay(&fd, true)?;
    rustix::net::bind(&fd, &addr)?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_sockets_send_at_once() {
        let (listeners, addr) = listeners(SocketAddr::from(([127, 0, 0, 1], 0)), 1).expect("a free port");
        let _client = std::net::TcpStream::connect(addr).expect("listening");
        let accepted = rustix::net::accept(&listeners[0]).expect("a connection waits");
        assert!(sockopt::tcp_nodelay(&accepted).expect("a TCP socket"));
    }

    #[test]
    fn a_port_in_use_is_refused_even_to_the_same_user() {
        let (_held, addr) = listeners(SocketAddr::from(([127, 0, 0, 1], 0)), 2).expect("a free port");
        let error = listeners(addr, 2).expect_err("the port is taken");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
