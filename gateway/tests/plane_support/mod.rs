//! What the tests of the socket plane share: a server on each driver, and clients.
#![allow(dead_code, unreachable_pub)] // Each test file is a crate of its own and uses a part.

use gateway::echo;
use gateway::mesh::Capacities;
use gateway::plane::{BufferOptions, DriverChoice, Exit, Handle, Options, RingOptions};
use std::net::TcpStream;
use std::time::Duration;
use tungstenite::WebSocket;

/// A drain that takes this long has hung.
const DRAIN: Duration = Duration::from_secs(20);
/// A client that waits this long for its server has hung.
const READ: Duration = Duration::from_secs(20);

/// The drivers under test.
pub const DRIVERS: [DriverChoice; 2] = [DriverChoice::Epoll, DriverChoice::Uring];

/// Rings so small that all that can overflow does.
pub const RINGS: RingOptions = RingOptions {
    connections_max: 32,
    buffers: BufferOptions { count: 16, bytes: 1024 },
    submissions: 8,
    completions: 16,
    poll_after_ms: 1_000,
};

/// Options of a small server: few buffers, queues of four, many small rings, and connections that are soon idle.
pub fn options(driver: DriverChoice, shards: u16) -> Options {
    Options {
        driver,
        shards,
        connections_max: 1_000,
        mesh: Capacities { request: 4, answer: 4, fanout: 4, seat: 4 },
        buffers: BufferOptions { count: 64, bytes: 2048 },
        rings: RINGS,
        ..Options::default()
    }
}

/// Runs a test against an echo server on each driver, and sees the server end well.
pub fn on_both_drivers(shards: u16, test: impl Fn(&Handle)) {
    for driver in DRIVERS {
        let server = echo::serve(options(driver, shards)).expect("the server starts");
        test(&server);
        server.drain(DRAIN);
        assert_eq!(server.join(), Exit::Drained, "{driver:?}");
    }
}

/// A plain connection.
pub fn tcp(server: &Handle) -> TcpStream {
    let stream = TcpStream::connect(server.addr()).expect("connects");
    stream.set_nodelay(true).expect("a TCP socket");
    stream.set_read_timeout(Some(READ)).expect("a TCP socket");
    stream.set_write_timeout(Some(READ)).expect("a TCP socket");
    stream
}

/// A WebSocket.
pub fn connect(server: &Handle) -> WebSocket<TcpStream> {
    let url = format!("ws://{}/ws", server.addr());
    tungstenite::client(url, tcp(server)).expect("upgrades").0
}
