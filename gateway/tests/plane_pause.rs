//! Pausing and resuming one connection over and over: only the last word of a turn counts, what was asked for while
//! the kernel was still at the former wish is caught up with, and a connection may end in the middle of it.

mod plane_support;

use gateway::plane::{self, Brain, Exit, Handle, MeshClass, MeshMessage};
use gateway_core::output::{ConnId, Output, Outputs};
use gateway_core::time::Now;
use plane_support::{DRIVERS, options, tcp};
use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// More than any narrow counter holds.
const PAIRS: usize = 1_000;

#[derive(Debug)]
enum Nothing {}

impl MeshMessage for Nothing {
    fn class(&self) -> MeshClass {
        match *self {}
    }
}

type Out = Outputs<Nothing, ()>;

/// Sends back what it gets, but for these lines. `live`: promote the sender. `pairs`: resume and pause it many times
/// in this turn. `abort`: the same, and abort it. `flicker`: for many turns, resume or pause it in each. `resume`:
/// resume whoever was paused last.
#[derive(Default)]
struct Flickerer {
    open: HashSet<ConnId>,
    paused: Option<ConnId>,
    /// Who flickers, and how many turns are left.
    flickers: Option<(ConnId, usize)>,
    now_ms: u64,
}

fn pairs(conn: ConnId, out: &mut Out) {
    for _ in 0..PAIRS {
        out.push(Output::Resume(conn));
        out.push(Output::Pause(conn));
    }
}

impl Brain for Flickerer {
    type Mesh = Nothing;
    type Seat = ();

    fn handle_accept(&mut self, now: Now, conn: ConnId, _: SocketAddr, _: &mut Out) {
        self.now_ms = now.mono_ms;
        self.open.insert(conn);
    }

    fn handle_data(&mut self, now: Now, conn: ConnId, data: &mut [u8], out: &mut Out) {
        self.now_ms = now.mono_ms;
        match &*data {
            b"live\n" => out.push(Output::Promote(conn)),
            b"pairs\n" => {
                pairs(conn, out);
                self.paused = Some(conn);
            }
            b"abort\n" => {
                pairs(conn, out);
                self.open.remove(&conn);
                return out.push(Output::Abort(conn));
            }
            b"flicker\n" => self.flickers = Some((conn, 2 * PAIRS)),
            b"resume\n" => out.push(Output::Resume(self.paused.take().expect("somebody is paused"))),
            _ => {}
        }
        out.send_with(conn, |out| out.extend_from_slice(data));
    }

    fn handle_sent(&mut self, _: Now, _: ConnId, _: usize, _: usize, _: &mut Out) {}

    fn handle_closed(&mut self, _: Now, conn: ConnId, _: &mut Out) {
        assert!(self.open.remove(&conn), "a connection ends once");
    }

    fn handle_seated(&mut self, _: Now, _: ConnId, (): (), _: &mut Out) {}

    fn handle_mesh(&mut self, _: Now, _: u16, message: Nothing, _: &mut Out) {
        match message {}
    }

    fn handle_mesh_full(&mut self, _: Now, _: u16, message: Nothing, _: &mut Out) {
        match message {}
    }

    fn handle_link_up(&mut self, _: Now, _: &mut Out) {}
    fn handle_link_data(&mut self, _: Now, _: &mut [u8], _: &mut Out) {}
    fn handle_link_down(&mut self, _: Now, _: &mut Out) {}

    fn handle_timer(&mut self, now: Now, out: &mut Out) {
        self.now_ms = now.mono_ms;
        let Some((conn, left)) = self.flickers.take() else { return };
        // The last word, for `left == 1`, is to go on.
        out.push(if left % 2 == 0 { Output::Pause(conn) } else { Output::Resume(conn) });
        self.flickers = (left > 1).then_some((conn, left - 1));
    }

    fn next_timer(&self) -> Option<u64> {
        // At once: one turn after the other.
        self.flickers.map(|_| self.now_ms)
    }

    fn handle_drain(&mut self, _: Now, out: &mut Out) {
        self.open.drain().for_each(|conn| out.push(Output::Abort(conn)));
    }

    fn is_drained(&self) -> bool {
        self.open.is_empty()
    }
}

fn on_both_drivers(test: impl Fn(&Handle)) {
    for driver in DRIVERS {
        let server = plane::run(options(driver, 1), |_| Flickerer::default()).expect("starts");
        test(&server);
        server.drain(Duration::from_secs(20));
        assert_eq!(server.join(), Exit::Drained, "{driver:?}");
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(server: &Handle) -> Self {
        Self(BufReader::new(tcp(server)))
    }

    fn say(&mut self, line: &str) {
        self.0.get_mut().write_all(line.as_bytes()).expect("sends");
    }

    fn hear(&mut self, line: &str) {
        let mut heard = String::new();
        self.0.read_line(&mut heard).expect("an answer");
        assert_eq!(heard, line);
    }

    fn ask(&mut self, line: &str) {
        self.say(line);
        self.hear(line);
    }

    /// In the lobby, with receives in single steps, and live, with one that goes on.
    fn lobby_and_live(server: &Handle) -> [Self; 2] {
        let mut clients = [Self::connect(server), Self::connect(server)];
        clients[1].ask("live\n");
        clients[1].ask("is live\n");
        clients
    }
}

#[test]
fn many_pairs_in_one_turn_leave_a_connection_paused_until_it_is_resumed() {
    on_both_drivers(|server| {
        let mut other = Client::connect(server);
        for mut client in Client::lobby_and_live(server) {
            for _ in 0..3 {
                client.ask("pairs\n");
                client.say("while paused\n");
                for _ in 0..20 {
                    other.ask("a turn\n");
                }
                client.0.get_ref().set_nonblocking(true).expect("a socket");
                let early = client.0.get_mut().read(&mut [0; 64]).expect_err("nothing is read while paused");
                assert_eq!(early.kind(), std::io::ErrorKind::WouldBlock);
                client.0.get_ref().set_nonblocking(false).expect("a socket");
                other.ask("resume\n");
                client.hear("while paused\n");
                client.ask("goes on\n");
            }
        }
    });
}

#[test]
fn a_connection_that_flickers_from_turn_to_turn_loses_nothing() {
    on_both_drivers(|server| {
        for mut client in Client::lobby_and_live(server) {
            client.ask("flicker\n");
            for n in 0..200 {
                client.say(&format!("{n}\n"));
            }
            for n in 0..200 {
                client.hear(&format!("{n}\n"));
            }
            client.ask("goes on\n");
        }
    });
}

#[test]
fn a_slot_is_used_again_after_an_end_amid_pairs() {
    on_both_drivers(|server| {
        for _ in 0..50 {
            for mut client in Client::lobby_and_live(server) {
                client.say("abort\n");
                // With a reset, when bytes are left unread.
                let _ = client.0.read_to_end(&mut Vec::new());
            }
        }
        Client::connect(server).ask("still here\n");
        assert_eq!(server.counters()[0].accepted.get(), 101);
    });
}
