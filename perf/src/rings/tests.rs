//! Real sockets on loopback: an echo server of the standard library, several small rings, cuts in the middle.

use super::{Action, BufferOptions, Client, Rings};
use crate::net::{Clock, Closed};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::time::Duration;

/// So few that receives run out of them.
const BUFFERS: BufferOptions = BufferOptions { count: 4, bytes: 512 };

/// What was told, by socket.
struct Told {
    connected: Vec<bool>,
    data: Vec<Vec<u8>>,
    ended: Vec<Option<String>>,
    vacant: Vec<u32>,
}

impl Told {
    fn new(sockets: usize) -> Self {
        Self {
            connected: vec![false; sockets],
            data: vec![Vec::new(); sockets],
            ended: vec![None; sockets],
            vacant: vec![0; sockets],
        }
    }
}

impl Client for Told {
    fn connected(&mut self, conn: u32, _now_ns: u64, _actions: &mut Vec<Action>) {
        self.connected[conn as usize] = true;
    }

    fn data(&mut self, conn: u32, data: &[u8], _now_ns: u64, _actions: &mut Vec<Action>) {
        self.data[conn as usize].extend_from_slice(data);
    }

    fn ended(&mut self, conn: u32, why: Closed) {
        assert_eq!(self.ended[conn as usize].replace(why.to_string()), None, "told once");
    }

    fn vacant(&mut self, conn: u32, _now_ns: u64) {
        self.vacant[conn as usize] += 1;
    }
}

/// Echoes; a socket whose bytes hold an `X` is closed.
fn echo_server(connections: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = |mut stream: TcpStream| {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            if buffer[..read].contains(&b'X') || stream.write_all(&buffer[..read]).is_err() {
                return;
            }
        }
    };
    std::thread::spawn(move || {
        for stream in listener.incoming().take(connections) {
            std::thread::spawn(move || serve(stream.unwrap()));
        }
    });
    address
}

/// Turns until it is so; a minute at most.
fn until(rings: &mut Rings, told: &mut Told, clock: &Clock, done: impl Fn(&Told) -> bool) {
    for _ in 0..60_000 {
        rings.turn(told, clock).unwrap();
        if done(told) {
            return;
        }
        rings.wait(Duration::from_millis(1)).unwrap();
    }
    panic!("it did not come to pass within a minute");
}

fn open_all(rings: &mut Rings, sockets: u32) {
    let source = |conn: u32| Some(Ipv4Addr::new(127, 70, 0, 1 + (conn % 3) as u8));
    rings.run(&mut (0..sockets).map(|conn| Action::Open { conn, source: source(conn) }).collect()).unwrap();
}

fn send(conn: u32, bytes: &[u8]) -> Action {
    Action::Send { conn, bytes: Rc::from(bytes) }
}

#[test]
fn sockets_of_several_rings_echo_in_order_more_than_any_buffer_holds() {
    const SOCKETS: u32 = 20;
    let (clock, mut told) = (Clock::start(), Told::new(SOCKETS as usize));
    // Seven sockets a ring: three rings.
    let mut rings = Rings::new(SOCKETS, 7, echo_server(SOCKETS as usize), BUFFERS).unwrap();
    assert_eq!(rings.list.len(), 3);
    open_all(&mut rings, SOCKETS);
    until(&mut rings, &mut told, &clock, |told| told.connected.iter().all(|it| *it));
    let text = |conn: u32| -> Vec<u8> { (0..600_000_u32).map(|at| b'a' + ((at / 7 + conn) % 20) as u8).collect() };
    for conn in 0..SOCKETS {
        // Several sends of one socket, of which only one may be under way at a time.
        rings.run(&mut text(conn).chunks(100_000).map(|chunk| send(conn, chunk)).collect()).unwrap();
    }
    until(&mut rings, &mut told, &clock, |told| told.data.iter().all(|data| data.len() >= 600_000));
    for conn in 0..SOCKETS {
        assert!(told.data[conn as usize] == text(conn), "what socket {conn} got is not what it sent");
    }
    assert!(told.ended.iter().all(Option::is_none));
    assert!(rings.shipments.list.iter().all(Option::is_none) && rings.waiting.is_empty());
}

#[test]
fn a_socket_that_ended_is_vacant_and_is_opened_again() {
    let (clock, mut told) = (Clock::start(), Told::new(4));
    let mut rings = Rings::new(4, 2, echo_server(7), BUFFERS).unwrap();
    open_all(&mut rings, 4);
    until(&mut rings, &mut told, &clock, |told| told.connected.iter().all(|it| *it));
    // One is hung up by the server, one ends by itself, one ends while the server hangs up.
    rings.run(&mut vec![send(0, b"X"), Action::End { conn: 1 }, send(2, b"X"), Action::End { conn: 2 }]).unwrap();
    until(&mut rings, &mut told, &clock, |told| told.vacant[..3] == [1, 1, 1]);
    assert_eq!((told.ended[0].is_some(), &told.ended[1], &told.ended[3]), (true, &None, &None));
    // What is sent to a vacant socket goes nowhere.
    rings.run(&mut vec![send(0, b"lost"), Action::End { conn: 0 }]).unwrap();
    told.connected = vec![false; 4];
    let again: Vec<u32> = vec![0, 1, 2];
    rings.run(&mut again.iter().map(|conn| Action::Open { conn: *conn, source: None }).collect()).unwrap();
    until(&mut rings, &mut told, &clock, |told| told.connected[..3].iter().all(|it| *it));
    rings.run(&mut (0..4).map(|conn| send(conn, b"hello")).collect()).unwrap();
    until(&mut rings, &mut told, &clock, |told| told.data.iter().all(|data| data == b"hello"));
    assert_eq!(told.vacant, [1, 1, 1, 0]);
}

#[test]
fn a_connect_that_is_refused_is_told_and_leaves_the_socket_vacant() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (clock, mut told) = (Clock::start(), Told::new(1));
    let mut rings = Rings::new(1, 1, address, BUFFERS).unwrap();
    open_all(&mut rings, 1);
    until(&mut rings, &mut told, &clock, |told| told.vacant[0] == 1);
    assert!(!told.connected[0] && told.ended[0].as_ref().is_some_and(|why| why.contains("refused")));
}

#[test]
fn a_server_that_takes_nothing_ends_the_socket_instead_of_filling_memory() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (clock, mut told) = (Clock::start(), Told::new(1));
    let mut rings = Rings::new(1, 1, listener.local_addr().unwrap(), BUFFERS).unwrap();
    open_all(&mut rings, 1);
    until(&mut rings, &mut told, &clock, |told| told.connected[0]);
    let chunk: Rc<[u8]> = vec![b'a'; 1 << 20].into();
    for _ in 0..super::WAITING_MAX + 40 {
        rings.run(&mut vec![Action::Send { conn: 0, bytes: chunk.clone() }]).unwrap();
    }
    until(&mut rings, &mut told, &clock, |told| told.vacant[0] == 1);
    assert!(told.ended[0].as_ref().unwrap().contains("takes nothing"));
    assert_eq!(Rc::strong_count(&chunk), 1, "nothing of it is kept");
}

#[test]
fn what_a_socket_takes_only_a_part_of_goes_out_whole() {
    const BYTES: usize = 16 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let text: Vec<u8> = (0..BYTES).map(|at| (at / 3) as u8).collect();
    let expected = text.clone();
    let (begin, begins) = std::sync::mpsc::channel::<()>();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        begins.recv().unwrap();
        let mut got = vec![0; BYTES + 3];
        stream.read_exact(&mut got).unwrap();
        assert!(got[..BYTES] == expected && got[BYTES..] == *b"end");
        stream.write_all(b"all").unwrap();
    });
    let (clock, mut told) = (Clock::start(), Told::new(1));
    let mut rings = Rings::new(1, 1, address, BUFFERS).unwrap();
    open_all(&mut rings, 1);
    until(&mut rings, &mut told, &clock, |told| told.connected[0]);
    // More than both ends buffer while nobody reads: the first send falls short.
    rings.run(&mut vec![send(0, &text), send(0, b"end")]).unwrap();
    rings.turn(&mut told, &clock).unwrap();
    begin.send(()).unwrap();
    until(&mut rings, &mut told, &clock, |told| told.data[0] == b"all");
    server.join().unwrap();
}
