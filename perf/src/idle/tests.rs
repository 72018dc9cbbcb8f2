//! The fleet told of bytes by hand, and whole runs against a small chat server on tungstenite that plants a fault.

use super::Settings;
use super::fleet::{Fleet, Identity};
use super::logins::Logins;
use super::plan::Hearts;
use super::run::run;
use super::talk::Talk;
use crate::chat_server::{Chats, Fault, welcome};
use crate::cpu::{Probe, Probes};
use crate::frames::Encoder;
use crate::net::{Closed, Stop, Url};
use crate::report::{Measures, Window};
use crate::rings::{Action, Client};
use crate::tokens::Tokens;
use parley_protocol::wire::{Encoding, decode_client_frame, encode_server_frame};
use parley_protocol::{ClientFrame, ServerFrame, UserId};
use serde_json::Value;

const SECOND_NS: u64 = 1_000_000_000;
const ACCEPTED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A fleet of four sessions, two logins at a time, hearts every 4 s.
fn fleet(encoder: &Encoder) -> Fleet<'_> {
    let identity = Identity { tokens: Tokens::new(&[1; 32], "test"), run: 7, now_unix_s: 1_000 };
    let url = Url::parse("ws://127.0.0.1:7400/ws").unwrap();
    let measures = Measures::new(Window { start_ns: 0, end_ns: u64::MAX });
    let talk = Talk::new(encoder, 7, 4, measures);
    let logins = Logins::new(4, 2, 1_000_000, 1, 0);
    Fleet::new(encoder, identity, &url, 4, logins, Hearts::new(0, 4 * SECOND_NS, 4), talk)
}

fn encoder() -> Encoder {
    Encoder::new(Encoding::Rkyv, 16, [0; 4])
}

fn framed(frame: &ServerFrame) -> Vec<u8> {
    let mut payload = Vec::new();
    encode_server_frame(Encoding::Rkyv, frame, &mut payload);
    let mut bytes = vec![0x82];
    match payload.len() {
        len @ ..126 => bytes.push(len as u8),
        len => bytes.extend([126, (len >> 8) as u8, len as u8]),
    }
    bytes.extend(payload);
    bytes
}

/// The client frames among the actions. (The mask of these tests is 0.)
fn sent(actions: &[Action]) -> Vec<(u32, ClientFrame)> {
    let frame = |action: &Action| {
        let Action::Send { conn, bytes } = action else { return None };
        let head = if bytes[1] & 0x7f == 126 { 8 } else { 6 };
        (bytes[0] == 0x82).then(|| (*conn, decode_client_frame(Encoding::Rkyv, &bytes[head..]).unwrap()))
    };
    actions.iter().filter_map(frame).collect()
}

/// Takes a session from its connect to its seat; what it sends on the way.
fn seat(fleet: &mut Fleet<'_>, conn: u32, now_ns: u64) -> Vec<Action> {
    let mut actions = Vec::new();
    fleet.connected(conn, now_ns, &mut actions);
    fleet.data(conn, ACCEPTED, now_ns, &mut actions);
    fleet.data(conn, &framed(&ServerFrame::Welcome(welcome(UserId(u64::from(conn) + 1)))), now_ns, &mut actions);
    actions
}

#[test]
fn a_session_logs_in_step_by_step_also_byte_by_byte() {
    let encoder = encoder();
    let mut fleet = fleet(&encoder);
    let mut actions = Vec::new();
    fleet.tick(SECOND_NS / 2, &mut actions);
    let opened: Vec<_> = actions.iter().map(|it| matches!(it, Action::Open { source: Some(_), .. })).collect();
    assert_eq!(opened, [true, true], "as many as may log in at a time");
    actions.clear();
    fleet.connected(0, 0, &mut actions);
    assert!(matches!(&actions[..], [Action::Send { conn: 0, bytes }] if bytes.starts_with(b"GET /ws HTTP/1.1\r\n")));
    actions.clear();
    for byte in [ACCEPTED, &framed(&ServerFrame::Welcome(welcome(UserId(9))))].concat() {
        fleet.data(0, &[byte], SECOND_NS, &mut actions);
    }
    let frames = sent(&actions);
    let [(0, ClientFrame::Hello(hello))] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!((hello.device_id.0, hello.token.as_ref().unwrap().split('.').count()), (7 << 64, 3));
    assert_eq!((fleet.tally.sessions, fleet.tally.logins), (1, 1));
    // Its place is free: the next one begins.
    actions.clear();
    fleet.tick(SECOND_NS, &mut actions);
    assert!(matches!(actions[0], Action::Open { conn: 2, .. }));
}

#[test]
fn a_refused_login_is_made_again_and_one_that_can_never_succeed_ends_the_run() {
    let encoder = encoder();
    let mut fleet = fleet(&encoder);
    let mut actions = Vec::new();
    fleet.tick(SECOND_NS, &mut actions);
    for (conn, bytes) in [(0, &b"HTTP/1.1 503 Busy\r\n\r\n"[..]), (1, &[ACCEPTED, &[0x88, 2, 0x0f, 0xa3]].concat())] {
        actions.clear();
        fleet.connected(conn, 0, &mut actions);
        fleet.data(conn, bytes, SECOND_NS, &mut actions);
        assert_eq!(actions.last(), Some(&Action::End { conn }), "4003 and 503 are for later");
        fleet.vacant(conn, SECOND_NS);
    }
    assert_eq!((fleet.logins.refused, &fleet.failure), (2, &None));
    actions.clear();
    fleet.tick(3 * SECOND_NS, &mut actions);
    let mut again: Vec<_> =
        actions.iter().map(|it| if let Action::Open { conn, .. } = it { *conn } else { 99 }).collect();
    again.sort_unstable();
    assert_eq!(again, [0, 1]);
    assert_eq!(seat(&mut fleet, 0, 3 * SECOND_NS).len(), 2);
    actions.clear();
    fleet.connected(1, 0, &mut actions);
    fleet.data(1, &[ACCEPTED, &[0x88, 2, 0x0f, 0xaa]].concat(), SECOND_NS, &mut actions);
    assert!(fleet.failure.as_ref().is_some_and(|why| why.contains("4010") && why.contains("--data")));
}

#[test]
fn hearts_beat_in_turn_and_what_the_server_ends_is_counted_by_its_code() {
    let encoder = encoder();
    let mut fleet = fleet(&encoder);
    // The first heart was to beat before anybody was seated.
    fleet.tick(100_000, &mut Vec::new());
    for conn in 0..4 {
        seat(&mut fleet, conn, 100_000);
        fleet.tick(100_000, &mut Vec::new());
    }
    assert_eq!((fleet.tally.sessions, fleet.logins.is_done()), (4, true));
    let mut pings = Vec::new();
    for now_ns in (1..=10).map(|second| second * SECOND_NS) {
        let mut actions = Vec::new();
        fleet.tick(now_ns, &mut actions);
        for (conn, frame) in sent(&actions) {
            let ClientFrame::Ping(ping) = frame else { panic!("{frame:?}") };
            pings.push(conn);
            // The second session hears nothing any more.
            if conn != 1 {
                let pong = framed(&ServerFrame::Pong(parley_protocol::frame::Pong { nonce: ping.nonce }));
                fleet.data(conn, &pong, now_ns + SECOND_NS / 10, &mut actions);
            }
        }
    }
    assert_eq!(pings, [1, 2, 3, 0, 1, 2, 3, 0, 1, 2]);
    assert_eq!((fleet.tally.heartbeats, fleet.tally.heartbeats_unanswered), (10, 2));
    assert!((95_000..105_000).contains(&fleet.tally.heartbeat_us.value_at_percentile(99.0)));
    let mut actions = Vec::new();
    fleet.data(1, &[0x88, 2, 0x0f, 0xa2], 11 * SECOND_NS, &mut actions);
    fleet.ended(2, Closed::Eof);
    assert_eq!(actions, [Action::End { conn: 1 }]);
    (1..=2).for_each(|conn| fleet.vacant(conn, 11 * SECOND_NS));
    let tally = &fleet.tally;
    assert_eq!((tally.sessions, tally.disconnected(), tally.heartbeat_timeouts()), (2, 2, 1));
    assert_eq!((tally.ended["4002"], tally.ended["hung_up"]), (1, 1));
    // They do not come back, and their hearts beat no more.
    let mut actions = Vec::new();
    fleet.tick(14 * SECOND_NS, &mut actions);
    assert_eq!(sent(&actions).iter().map(|(conn, _)| *conn).collect::<Vec<_>>(), [3, 0]);
}

fn report(fault: Fault, connections: u32) -> (Vec<String>, Value) {
    let server = Chats::serve(fault, Encoding::Rkyv, connections as usize);
    let own = Some(Probe { pid: std::process::id() });
    let settings = Settings {
        url: Url::parse(&format!("ws://{}/ws", server.address)).unwrap(),
        connections,
        talkers: connections,
        hold_ns: SECOND_NS * 3 / 2,
        drain_ns: 2 * SECOND_NS,
        rate: 200,
        payload_bytes: 32,
        heartbeat_ns: SECOND_NS / 2,
        logins_max: 32,
        login_rate: 100_000,
        // Several rings.
        ring_files: 100,
        turn_ns: 1_000_000,
        seed: 5,
        run: 0x1234,
        driver: "test".to_owned(),
        probes: Probes { gateway: own, writer: None, cluster: None },
        stop: Stop::default(),
    };
    let report = run(&settings, &Tokens::new(&[1; 32], "test")).unwrap();
    server.join();
    (report.broken(), serde_json::to_value(&report).unwrap())
}

#[test]
fn some_hundred_sessions_on_a_faithful_server_stay_and_lose_nothing() {
    let (broken, json) = report(Fault::None, 300);
    assert_eq!(broken, [""; 0]);
    assert_eq!((json["sessions"].as_u64(), json["heartbeat_timeouts"].as_u64()), (Some(300), Some(0)));
    assert_eq!((json["sent"].as_u64(), json["delivered"].as_u64()), (Some(300), Some(300)));
    assert!(json["heartbeats"].as_u64().unwrap() >= 600, "{}", json["heartbeats"]);
    for name in ["gateway_rss_mb", "latency_ms_p99", "logins_per_s", "generator_rss_mb", "gateway_cores"] {
        assert!(json[name].as_f64().unwrap() > 0.0, "{name}: {}", json[name]);
    }
    assert!(json["kernel_mb"].is_f64() && json["curve"].as_array().unwrap().len() >= 2);
}

#[test]
fn a_lost_event_and_a_dropped_session_are_told() {
    let (broken, json) = report(Fault::LosesAnEvent, 20);
    assert_eq!(broken, ["1 acknowledged messages lost"]);
    assert_eq!(json["sent"].as_u64().unwrap() - 1, json["delivered"].as_u64().unwrap());
    let (broken, json) = report(Fault::HangsUp, 20);
    assert!(broken.iter().any(|what| what == "1 sessions ended by the server"), "{broken:?}");
    assert_eq!((json["sessions"].as_u64(), json["disconnected"].as_u64()), (Some(19), Some(1)));
}

#[test]
fn a_server_that_is_not_there_is_a_clear_error() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = Settings {
        url: Url::parse(&format!("ws://{address}/ws")).unwrap(),
        connections: 4,
        talkers: 4,
        hold_ns: 1,
        drain_ns: 1,
        rate: 0,
        payload_bytes: 1,
        heartbeat_ns: SECOND_NS,
        logins_max: 4,
        login_rate: 100,
        ring_files: 4,
        turn_ns: 0,
        seed: 1,
        run: 1,
        driver: "test".to_owned(),
        probes: Probes::default(),
        stop: Stop::default(),
    };
    let error = run(&settings, &Tokens::new(&[1; 32], "test")).unwrap_err();
    assert!(error.contains("nothing listens there"), "{error}");
}
