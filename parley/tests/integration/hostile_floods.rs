//! Rows of hostile input: clients that send without end or take nothing, and lobbies that are full. Memory stays within
//! the bounds of one connection.

use crate::common::device::{direct, payload_frame};
use crate::common::raw::{Raw, frame, message};
use crate::common::{Device, JSON, RKYV, Server, Settings, http, poll, random};
use crate::hostile::{
    Answer, FLOOD_GROWTH_KIB_MAX, MALLORY, Opening, Row, Table, Watch, decoded, hello, open, rejected,
};
use parley_protocol::frame::{Ping, Pong};
use parley_protocol::{ChatId, ClientFrame, ClientMsgId, ServerFrame};
use rustix::process::Signal;
use std::sync::Mutex;

const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;
/// Pings before `hello` that are answered; one more ends the connection.
const HELLO_PINGS_MAX: usize = 16;
/// What is kept of a client before `welcome`: the default of `message.frame_bytes_max`.
const SENT_AHEAD_MAX: usize = 65_536;
/// More than the kernels of both ends keep for a connection whose receive buffer is small: the rest is the server's.
const FLOOD_BYTES: usize = 12 << 20;
/// Bytes of one write.
const CHUNK_BYTES: usize = 64 << 10;

fn settings() -> Settings {
    Settings::new().gateway("session.stalled_reader_ms", 1_500)
}

/// Sends the same bytes over and over, at least `bytes` in all.
fn flood(raw: &mut Raw, unit: &[u8], bytes: usize) {
    let chunk = unit.repeat(CHUNK_BYTES.div_ceil(unit.len()));
    for _ in 0..bytes.div_ceil(chunk.len()) {
        raw.send(&chunk);
    }
}

/// As many pings as are answered, and their answers.
fn ping_before_hello(raw: &mut Raw) {
    raw.send(&frame(PING, b"early").repeat(HELLO_PINGS_MAX));
    for _ in 0..HELLO_PINGS_MAX {
        let pong = raw.receive().expect("a pong");
        assert_eq!((pong.opcode, &pong.payload[..]), (0xa, &b"early"[..]));
    }
}

#[test]
fn pings_before_hello_are_few() {
    let mut table = Table::new(Settings::new());
    let pings = frame(PING, &[b'p'; 125]);
    let attack = |raw: &mut Raw| raw.send(&pings.repeat(100));
    let rows = [JSON, RKYV].map(|encoding| {
        let name = format!("a ping flood before Hello, {encoding:?}");
        Row::new(name, Opening::Upgraded(encoding), attack, Answer::Close(1008), "hello_pings")
    });
    table.run(&rows);
    let target = table.server.target();
    let mut rows = Vec::new();
    for encoding in [JSON, RKYV] {
        let name = format!("a ping more than are answered before Hello, {encoding:?}");
        let attack = |raw: &mut Raw| {
            ping_before_hello(raw);
            raw.send(&frame(PING, b"one more"));
        };
        rows.push(Row::new(name, Opening::Upgraded(encoding), attack, Answer::Close(1008), "hello_pings"));
        let name = format!("as many pings as are answered before Hello, {encoding:?}");
        let target = &target;
        let session = move |raw: &mut Raw| {
            ping_before_hello(raw);
            raw.send(&message(encoding, &hello(target)));
            let welcome = decoded(encoding, &raw.receive().expect("welcome").payload);
            assert!(matches!(welcome, ServerFrame::Welcome(_)), "{welcome:?}");
            raw.send(&frame(CLOSE, &1000_u16.to_be_bytes()));
        };
        rows.push(Row::new(name, Opening::Upgraded(encoding), session, Answer::Close(1000), "").not_counted());
    }
    table.run(&rows);
    drop(rows);
    table.ends_well();
}

#[test]
fn a_ping_flood_whose_pongs_nobody_reads_is_4001() {
    let mut table = Table::new(settings());
    let admin = table.server.admin.addr;
    let mut rows = Vec::new();
    for encoding in [JSON, RKYV] {
        let pings = [
            ("WebSocket pings", frame(PING, &[b'p'; 125])),
            ("ping frames", message(encoding, &ClientFrame::Ping(Ping { nonce: 7 }))),
        ];
        for (what, unit) in pings {
            let attack = move |raw: &mut Raw| {
                raw.narrow();
                let before = rejected(admin, "stalled_reader");
                // Pongs that find the outbox full are dropped, so how many fill the kernels too is not known before.
                poll("the flood to be noticed", || {
                    flood(raw, &unit, 1 << 20);
                    rejected(admin, "stalled_reader") > before
                });
            };
            let name = format!("a flood of {what} whose pongs nobody reads, {encoding:?}");
            rows.push(Row::new(name, Opening::Seated(encoding), attack, Answer::Close(4001), "stalled_reader").alone());
        }
    }
    table.run(&rows);
    table.ends_well();
}

/// A flood whose pongs are read is served, and costs only the turns it takes.
#[test]
fn pings_that_are_read_are_answered() {
    let mut table = Table::new(settings());
    let target = table.server.target();
    let mut raw = open(&target, Opening::Seated(RKYV));
    for round in 0..200 {
        let pings: Vec<u8> =
            (0..100).flat_map(|nonce| message(RKYV, &ClientFrame::Ping(Ping { nonce: round * 100 + nonce }))).collect();
        raw.send(&pings);
        for nonce in round * 100..(round + 1) * 100 {
            let pong = ServerFrame::Pong(Pong { nonce });
            while decoded(RKYV, &raw.receive().expect("a pong").payload) != pong {}
        }
    }
    table.talk();
    table.ends_well();
}

/// Payloads to mallory's devices, more than the kernels keep for one of them.
fn speak(speaker: &mut Device, chat: ChatId) {
    const BYTES: usize = 16 << 10;
    for _ in 0..FLOOD_BYTES / BYTES {
        let frame = payload_frame(chat, ClientMsgId(random()), &[b'.'; BYTES]);
        speaker.command(&frame).expect("taken");
    }
}

#[test]
fn a_client_that_never_reads_is_4001() {
    let mut table = Table::new(settings());
    let admin = table.server.admin.addr;
    let mallory = table.server.device(MALLORY, JSON);
    let speaker = Mutex::new(table.server.device("carol", RKYV));
    let chat = direct(&speaker.lock().expect("nobody panics"), &mallory);
    drop(mallory);
    let rows = [JSON, RKYV].map(|encoding| {
        let attack = |raw: &mut Raw| {
            raw.narrow();
            let before = rejected(admin, "stalled_reader");
            speak(&mut speaker.lock().expect("nobody panics"), chat);
            poll("the stalled reader to be noticed", || rejected(admin, "stalled_reader") > before);
        };
        let name = format!("a client that never reads, {encoding:?}");
        let row = Row::new(name, Opening::Seated(encoding), attack, Answer::Close(4001), "stalled_reader");
        row.alone().stores()
    });
    table.run(&rows);
    table.ends_well();
}

/// What is kept of a client that sends without waiting is bounded, before `welcome` and after it. Nobody is answered
/// while the storage-writer stands still, so this is beside the table.
#[test]
fn too_much_sent_ahead_is_bounded() {
    const AHEAD_BYTES: usize = 24 << 20;
    let settings = Settings::new().gateway("writer.link_idle_ms", 600_000).gateway("session.commands_in_flight_max", 4);
    let mut server = Server::apart_with(settings);
    let (admin, target) = (server.admin.addr, server.target());
    let mut alice = server.device("alice", JSON);
    let mut bob = server.device("bob", JSON);
    let chat = direct(&alice, &bob);
    let mallory = server.device(MALLORY, JSON).user_id;
    let own = ChatId::direct(mallory, alice.user_id).expect("two users");
    let mut seated = [JSON, RKYV].map(|encoding| (encoding, open(&target, Opening::Seated(encoding))));
    let watch = Watch::new("gateway", server.gateway());
    server.writer().signal(Signal::STOP);
    for (times, encoding) in (1..).zip([JSON, RKYV]) {
        let mut raw = open(&target, Opening::Upgraded(encoding));
        raw.send(&message(encoding, &hello(&target)));
        (0..40).for_each(|_| raw.send(&frame(BINARY, &[0; 4_096])));
        assert_eq!(raw.close_code(), 1008);
        poll("what was sent before welcome to be counted", || rejected(admin, "sent_ahead") == times);
    }
    std::thread::scope(|scope| {
        for (encoding, raw) in &mut seated {
            let unit = message(*encoding, &payload_frame(own, ClientMsgId(random()), &[b'.'; 4_096]));
            // Most of it stays here until the server reads again: it does not read what it cannot act on.
            scope.spawn(move || flood(raw, &unit, AHEAD_BYTES));
        }
        poll("both sessions not to be read any more", || http::metric(admin, "parley_gateway_pauses_total") >= 2);
        watch.check("commands sent without waiting for answers", FLOOD_GROWTH_KIB_MAX);
        server.writer().signal(Signal::CONT);
        // Unread answers park what is left for good, so whoever sends it is cut off: that ends the flood.
        alice.post(chat, "undisturbed");
        bob.wait_event(chat, 1);
        server.kill_gateway();
    });
}

/// Exactly so many bytes of frames that mean nothing, then a ping.
fn ahead(bytes: usize) -> Vec<u8> {
    const FRAME_BYTES: [usize; 2] = [6, 131];
    let ping = frame(PING, b"the end");
    let mut left = bytes - ping.len();
    let mut out = Vec::new();
    while left > 0 {
        let [least, most] = FRAME_BYTES;
        let take = if left > most { most.min(left - least) } else { left };
        out.extend(frame(PONG, &vec![b'p'; take - least]));
        left -= take;
    }
    out.extend(ping);
    assert_eq!(out.len(), bytes);
    out
}

/// As much as is kept before `welcome` is acted on after it, and one byte more is 1008. Beside the table, as nobody is
/// welcomed while the storage-writer stands still.
#[test]
fn what_is_sent_before_welcome_has_an_exact_bound() {
    let settings = Settings::new().gateway("writer.link_idle_ms", 600_000).gateway("lobby.hello_timeout_ms", 60_000);
    let mut server = Server::apart_with(settings);
    let (admin, target) = (server.admin.addr, server.target());
    server.writer().signal(Signal::STOP);
    let mut fits = Vec::new();
    for (times, encoding) in (1..).zip([JSON, RKYV]) {
        let [kept, mut refused] = [(); 2].map(|()| {
            let mut raw = open(&target, Opening::Upgraded(encoding));
            raw.send(&message(encoding, &hello(&target)));
            raw.send(&ahead(SENT_AHEAD_MAX));
            poll("the server to read what was sent ahead", || raw.is_read());
            raw
        });
        assert_eq!(rejected(admin, "sent_ahead"), times - 1, "nothing above the bound yet");
        refused.send(&[PONG]);
        assert_eq!(refused.close_code(), 1008);
        poll("what was sent before welcome to be counted", || rejected(admin, "sent_ahead") == times);
        fits.push((encoding, kept));
    }
    server.writer().signal(Signal::CONT);
    for (encoding, mut raw) in fits {
        let welcome = raw.receive().expect("welcome");
        assert!(matches!(decoded(encoding, &welcome.payload), ServerFrame::Welcome(_)), "{welcome:?}");
        let pong = std::iter::from_fn(|| raw.receive()).find(|received| received.opcode > 2).expect("a pong");
        assert_eq!((pong.opcode, &pong.payload[..]), (0xa, &b"the end"[..]));
    }
    assert_eq!(rejected(admin, "sent_ahead"), 2);
    server.stop();
}

/// A lobby has so many places; who holds them does not lock others out for ever.
#[test]
fn a_full_lobby_refuses_and_empties() {
    let settings = Settings::new().gateway("lobby.connections_max", 8).gateway("lobby.handshake_timeout_ms", 1_000);
    let mut table = Table::cold(settings);
    let (addr, admin) = (table.server.listen.addr, table.server.admin.addr);
    let strangers: Vec<Raw> = (0..64).map(|_| Raw::connect(addr)).collect();
    // Two shards hold 8 each.
    poll("the lobbies to be full", || rejected(admin, "lobby_full") >= 64 - 16);
    table.talk();
    poll("the strangers' time to pass", || {
        let mut late = Device::new(&table.server.target(), "late", JSON);
        late.dial().is_ok() && {
            let hello = late.hello(Some(table.server.target().token("late", 60, false)), None);
            late.greet(hello).is_ok()
        }
    });
    drop(strangers);
    table.ends_well();
}
