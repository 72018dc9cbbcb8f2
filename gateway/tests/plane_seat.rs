//! Connections that move to another shard, or to their own: with what was read, what was not yet sent, and what
//! arrives in between. And the link to a Unix socket, which is a connection of the shard too.

mod plane_support;

use gateway::plane::{self, Brain, Exit, Handle, MeshClass, MeshMessage, Options};
use gateway_core::output::{ConnId, HaltReason, Output, Outputs};
use gateway_core::time::Now;
use plane_support::{DRIVERS, options, tcp};
use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::time::Duration;

#[derive(Debug)]
enum Nothing {}

impl MeshMessage for Nothing {
    fn class(&self) -> MeshClass {
        match *self {}
    }
}

type Out = Outputs<Nothing, Vec<u8>>;

/// A line of commands from each client: `seat N REST` moves it now, `later N` after more came, `link` connects the
/// link and passes everything on, `halt` ends the process. A seated client gets its seat, then its bytes back.
struct Mover {
    me: u16,
    open: HashSet<ConnId>,
    seated: HashSet<ConnId>,
    later: Option<(u64, u16, ConnId, Vec<u8>)>,
    linked: Option<ConnId>,
}

impl Mover {
    fn seat(&mut self, conn: ConnId, shard: u16, seat: Vec<u8>, out: &mut Out) {
        self.open.remove(&conn);
        out.push(Output::Seat { conn, shard, seat });
    }
}

impl Brain for Mover {
    type Mesh = Nothing;
    type Seat = Vec<u8>;

    fn handle_accept(&mut self, _: Now, conn: ConnId, _: SocketAddr, out: &mut Out) {
        self.open.insert(conn);
        out.send_with(conn, |out| out.extend_from_slice(b"lobby\n"));
    }

    fn handle_data(&mut self, now: Now, conn: ConnId, data: &mut [u8], out: &mut Out) {
        if self.seated.contains(&conn) {
            out.send_with(conn, |out| out.extend_from_slice(data));
            return;
        }
        if let Some((_, _, waiting, kept)) = &mut self.later
            && *waiting == conn
        {
            return kept.extend_from_slice(data);
        }
        if self.linked == Some(conn) {
            return out.link_send_with(|out| out.extend_from_slice(data));
        }
        let text = std::str::from_utf8(data).expect("text");
        let (command, rest) = text.split_once(' ').unwrap_or((text, ""));
        match command.trim_end() {
            "seat" => {
                let (shard, seat) = rest.split_once(' ').expect("a shard");
                out.send_with(conn, |out| out.extend_from_slice(b"moving\n"));
                let seat = seat.as_bytes().to_vec();
                self.seat(conn, shard.parse().expect("a shard"), seat, out);
            }
            "later" => {
                let shard = rest.trim_end().parse().expect("a shard");
                self.later = Some((now.mono_ms + 30, shard, conn, Vec::new()));
            }
            "link" => {
                self.linked = Some(conn);
                out.push(Output::LinkConnect { writer: 0 });
            }
            "halt" => out.push(Output::Halt(HaltReason::Fenced)),
            other => panic!("{other}"),
        }
    }

    fn handle_sent(&mut self, _: Now, _: ConnId, _: usize, _: usize, _: &mut Out) {}

    fn handle_closed(&mut self, _: Now, conn: ConnId, _: &mut Out) {
        assert!(self.open.remove(&conn), "a connection ends once");
    }

    fn handle_seated(&mut self, _: Now, conn: ConnId, seat: Vec<u8>, out: &mut Out) {
        self.open.insert(conn);
        self.seated.insert(conn);
        let me = self.me;
        out.send_with(conn, |out| {
            out.extend_from_slice(format!("seated {me}\n").as_bytes());
            out.extend_from_slice(&seat);
        });
    }

    fn handle_mesh(&mut self, _: Now, _: u16, message: Nothing, _: &mut Out) {
        match message {}
    }

    fn handle_mesh_full(&mut self, _: Now, _: u16, message: Nothing, _: &mut Out) {
        match message {}
    }

    fn handle_link_up(&mut self, _: Now, out: &mut Out) {
        if let Some(conn) = self.linked {
            out.send_with(conn, |out| out.extend_from_slice(b"up\n"));
        }
    }

    fn handle_link_data(&mut self, _: Now, data: &mut [u8], out: &mut Out) {
        if data == b"close\n" {
            out.push(Output::LinkClose);
        } else if let Some(conn) = self.linked {
            out.send_with(conn, |out| out.extend_from_slice(data));
        }
    }

    fn handle_link_down(&mut self, _: Now, out: &mut Out) {
        if let Some(conn) = self.linked.take() {
            out.send_with(conn, |out| out.extend_from_slice(b"down\n"));
        }
    }

    fn handle_timer(&mut self, _: Now, out: &mut Out) {
        if let Some((_, shard, conn, kept)) = self.later.take() {
            self.seat(conn, shard, kept, out);
        }
    }

    fn next_timer(&self) -> Option<u64> {
        self.later.as_ref().map(|(due, ..)| *due)
    }

    fn handle_drain(&mut self, _: Now, out: &mut Out) {
        for conn in &self.open {
            out.push(Output::Close(*conn));
        }
    }

    fn is_drained(&self) -> bool {
        self.open.is_empty()
    }
}

const SHARDS: u16 = 3;

fn on_both_drivers(link: Option<&std::path::Path>, test: impl Fn(&Handle)) {
    for driver in DRIVERS {
        let options = Options { link_paths: link.map(Into::into).into_iter().collect(), ..options(driver, SHARDS) };
        let running = plane::run(options, |me| Mover {
            me,
            open: HashSet::new(),
            seated: HashSet::new(),
            later: None,
            linked: None,
        })
        .expect("starts");
        test(&running);
        running.drain(Duration::from_secs(20));
        assert_eq!(running.join(), Exit::Drained, "{driver:?}");
    }
}

fn line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line");
    line
}

#[test]
fn connections_move_to_every_shard_with_what_was_read() {
    on_both_drivers(None, |running| {
        let mut clients: Vec<_> = (0..60).map(|_| BufReader::new(tcp(running))).collect();
        for (n, client) in clients.iter_mut().enumerate() {
            assert_eq!(line(client), "lobby\n");
            let shard = n as u16 % SHARDS;
            client.get_mut().write_all(format!("seat {shard} token {n}\n").as_bytes()).expect("sends");
        }
        for (n, client) in clients.iter_mut().enumerate() {
            assert_eq!(line(client), "moving\n");
            assert_eq!(line(client), format!("seated {}\n", n as u16 % SHARDS));
            assert_eq!(line(client), format!("token {n}\n"));
            client.get_mut().write_all(b"hello\n").expect("sends");
            assert_eq!(line(client), "hello\n");
        }
        let seated: u64 = running.counters().iter().map(|shard| shard.seated.get()).sum();
        assert_eq!(seated, 60);
    });
}

#[test]
fn bytes_that_arrive_during_the_move_follow_in_order() {
    on_both_drivers(None, |running| {
        for shard in 0..SHARDS {
            let mut client = BufReader::new(tcp(running));
            assert_eq!(line(&mut client), "lobby\n");
            client.get_mut().write_all(format!("later {shard}\n").as_bytes()).expect("sends");
            // Wait for the lobby to have taken the command on its own, then write across the move.
            std::thread::sleep(Duration::from_millis(10));
            for n in 0..2_000 {
                client.get_mut().write_all(format!("{n}\n").as_bytes()).expect("sends");
                if n % 50 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            assert_eq!(line(&mut client), format!("seated {shard}\n"));
            for n in 0..2_000 {
                assert_eq!(line(&mut client), format!("{n}\n"));
            }
        }
    });
}

#[test]
fn the_link_says_whether_it_is_up_and_carries_bytes_both_ways() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("writer.sock");
    on_both_drivers(Some(&path), |running| {
        let mut client = BufReader::new(tcp(running));
        assert_eq!(line(&mut client), "lobby\n");
        let ask = |client: &mut BufReader<std::net::TcpStream>, command: &[u8]| {
            client.get_mut().write_all(command).expect("sends");
            line(client)
        };
        assert_eq!(ask(&mut client, b"link\n"), "down\n", "nobody listens");
        let writer = UnixListener::bind(&path).expect("binds");
        assert_eq!(ask(&mut client, b"link\n"), "up\n");
        let (mut link, _) = writer.accept().expect("the gateway connects");
        client.get_mut().write_all(b"to the writer").expect("sends");
        let mut got = [0; 13];
        link.read_exact(&mut got).expect("bytes");
        assert_eq!(&got, b"to the writer");
        let large = vec![b'x'; 1 << 20];
        link.write_all(&large).expect("sends");
        let mut got = vec![0; 1 << 20];
        client.read_exact(&mut got).expect("bytes");
        assert!(got == large);
        drop(link);
        assert_eq!(line(&mut client), "down\n", "the writer left");
        assert_eq!(ask(&mut client, b"link\n"), "up\n");
        let (mut link, _) = writer.accept().expect("the gateway connects again");
        link.write_all(b"close\n").expect("sends");
        assert_eq!(line(&mut client), "down\n", "the brain closed it");
        assert_eq!(link.read(&mut [0; 8]).expect("the end"), 0);
        drop(writer);
        std::fs::remove_file(&path).expect("removes");
    });
}

#[test]
fn a_halt_ends_all_shards_and_says_why() {
    for driver in DRIVERS {
        let running = plane::run(options(driver, SHARDS), |me| Mover {
            me,
            open: HashSet::new(),
            seated: HashSet::new(),
            later: None,
            linked: None,
        })
        .expect("starts");
        let mut client = BufReader::new(tcp(&running));
        assert_eq!(line(&mut client), "lobby\n");
        client.get_mut().write_all(b"halt\n").expect("sends");
        assert_eq!(running.join(), Exit::Halted(HaltReason::Fenced), "{driver:?}");
        assert_eq!(client.read(&mut [0; 8]).expect("the end"), 0);
    }
}
