//! A client's socket before it goes into a ring, and the address that it connects to.
//!
//! `unsafe`: one socket option that no safe wrapper knows.
#![allow(unsafe_code)]

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

/// A blocking socket, bound to an address of this machine but to no port yet: the port is chosen with the connect, so
/// that each source address has all of them for each target.
pub(super) fn open(target: SocketAddr, source: Option<Ipv4Addr>) -> io::Result<OwnedFd> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    // A close resets: a million ports in TIME_WAIT would make the next run slow.
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    if let Some(source) = source {
        set_bind_without_port(&socket)?;
        rustix::net::bind(&socket, &SocketAddrV4::new(source, 0))?;
    }
    Ok(socket)
}

fn set_bind_without_port(socket: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is a `c_int`, whose address and size are passed, and which outlives the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A target as the kernel reads it, at one address for as long as it lives.
pub(super) enum Target {
    V4(Box<libc::sockaddr_in>),
    V6(Box<libc::sockaddr_in6>),
}

impl Target {
    pub(super) fn new(address: SocketAddr) -> Self {
        let port = address.port().to_be();
        match address.ip() {
            IpAddr::V4(ip) => Self::V4(Box::new(libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: port,
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
                sin_zero: [0; 8],
            })),
            IpAddr::V6(ip) => Self::V6(Box::new(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: port,
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: ip.octets() },
                sin6_scope_id: 0,
            })),
        }
    }

    pub(super) fn raw(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        match self {
            Self::V4(address) => ((&raw const **address).cast(), size_of::<libc::sockaddr_in>() as libc::socklen_t),
            Self::V6(address) => ((&raw const **address).cast(), size_of::<libc::sockaddr_in6>() as libc::socklen_t),
        }
    }
}
