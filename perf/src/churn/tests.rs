//! Figures of made-up rounds, the client told of bytes by hand, and whole measurements against the raw server here.

use super::client::{ChurnClient, Devices, Pace, Way};
use super::report::{Baseline, Count, Counted, Report};
use super::{Load, log_in, measure};
use crate::baseline_handshake::{Steps, serve};
use crate::chat_server::welcome;
use crate::cpu::{Probe, Probes};
use crate::device::Identity;
use crate::frames::Encoder;
use crate::net::{Closed, Stop, Url};
use crate::report::{Cost, histogram};
use crate::rings::{Action, Client};
use crate::tokens::Tokens;
use parley_protocol::wire::{Encoding, decode_client_frame, encode_server_frame};
use parley_protocol::{ClientFrame, ServerFrame, UserId};
use std::collections::BTreeMap;
use std::net::TcpListener;

const STEPS: Steps = Steps { asks: [200, 300], answers: [150, 260] };
const PACE: Pace = Pace { devices: 20, window: 4, rate: None };
const ACCEPTED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

fn identity() -> Identity {
    Identity { tokens: Tokens::new(&[1; 32], "test"), run: 7, now_unix_s: 1_000 }
}

fn url() -> Url {
    Url::parse("ws://127.0.0.1:7400/ws").unwrap()
}

fn framed(frame: &ServerFrame) -> Vec<u8> {
    let mut payload = Vec::new();
    encode_server_frame(Encoding::Rkyv, frame, &mut payload);
    assert!(payload.len() < 126);
    [vec![0x82, payload.len() as u8], payload].concat()
}

fn welcomed(ticket: &str) -> Vec<u8> {
    let mut answer = welcome(UserId(5));
    answer.resume = ticket.to_owned();
    framed(&ServerFrame::Welcome(answer))
}

fn hello(action: Option<&Action>) -> parley_protocol::frame::Hello {
    let Some(Action::Send { bytes, .. }) = action else { panic!("nothing is sent") };
    let head = if bytes[1] & 0x7f == 126 { 8 } else { 6 };
    let Ok(ClientFrame::Hello(hello)) = decode_client_frame(Encoding::Rkyv, &bytes[head..]) else { panic!("no Hello") };
    hello
}

#[test]
fn a_device_is_let_in_with_a_token_and_comes_back_with_the_ticket() {
    let encoder = Encoder::new(Encoding::Rkyv, 0, [0; 4]);
    let mut devices = Devices::new(identity(), 1);
    let pace = Pace { devices: 1, window: 1, rate: None };
    for (way, ticket) in [(Way::Fresh, "first"), (Way::Resume, "second"), (Way::Resume, "third")] {
        let shown = devices.tickets[0].to_string();
        let mut client = ChurnClient::new(&mut devices, &encoder, &url(), way, pace, false, 0);
        let mut actions = Vec::new();
        client.tick(0, &mut actions);
        assert!(matches!(actions[..], [Action::Open { conn: 0, source: Some(_) }]));
        actions.clear();
        client.connected(0, 0, &mut actions);
        client.data(0, &ACCEPTED[..9], 0, &mut actions);
        client.data(0, &ACCEPTED[9..], 0, &mut actions);
        let hello = hello(actions.last());
        assert_eq!((hello.token.is_some(), hello.resume.is_some()), (way == Way::Fresh, way == Way::Resume));
        assert_eq!(hello.resume.unwrap_or_default(), if way == Way::Resume { shown } else { String::new() });
        // Byte by byte, and with what a gateway says next in the same read.
        let answer = welcomed(ticket);
        client.data(0, &answer[..7], 2_000_000, &mut actions);
        client.data(0, &[&answer[7..], &answer[..2]].concat(), 3_000_000, &mut actions);
        assert_eq!(actions.last(), Some(&Action::End { conn: 0 }));
        assert_eq!((client.done, client.steps.answers), (1, [ACCEPTED.len(), answer.len()]));
        assert!(client.latency_us.max() >= 3_000);
        client.vacant(0, 0);
        client.tick(0, &mut actions);
        assert_eq!(actions.last(), Some(&Action::Open { conn: 0, source: client_source(&actions) }), "it comes again");
        assert_eq!(&*devices.tickets[0], ticket);
    }
}

fn client_source(actions: &[Action]) -> Option<std::net::Ipv4Addr> {
    let Some(Action::Open { source, .. }) = actions.last() else { return None };
    *source
}

#[test]
fn the_window_and_the_rate_bound_who_comes_and_a_refused_one_waits() {
    let encoder = Encoder::new(Encoding::Rkyv, 0, [0; 4]);
    let mut devices = Devices::new(identity(), 20);
    let mut client = ChurnClient::new(&mut devices, &encoder, &url(), Way::Fresh, PACE, true, 0);
    let mut actions = Vec::new();
    client.tick(0, &mut actions);
    assert_eq!(actions.len(), 4);
    client.connected(1, 0, &mut actions);
    client.data(1, b"HTTP/1.1 503 Busy\r\n\r\n", 0, &mut actions);
    assert_eq!((actions.last(), client.refused["refused"]), (Some(&Action::End { conn: 1 }), 1));
    client.vacant(1, 0);
    actions.clear();
    client.tick(10_000_000, &mut actions);
    assert!(matches!(actions[..], [Action::Open { conn: 4, .. }]), "the refused one waits");
    client.ended(2, Closed::Close { code: 4010, reason: String::new() });
    assert!(client.failure.as_ref().is_some_and(|why| why.contains("4010")), "no ticket will ever do");
    let slow = Pace { rate: Some(10), ..PACE };
    let mut client = ChurnClient::new(&mut devices, &encoder, &url(), Way::Fresh, slow, true, 0);
    let mut came = |now_ns| {
        let mut actions = Vec::new();
        client.tick(now_ns, &mut actions);
        actions.len()
    };
    assert_eq!((came(0), came(99_999_999), came(200_000_000)), (1, 0, 2));
}

fn load(stop: Stop) -> Load {
    Load { pace: PACE, warmup_ns: 20_000_000, measured_ns: 200_000_000, stop }
}

#[test]
fn the_raw_server_lets_devices_in_and_one_that_says_too_much_is_found_out() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = Url::parse(&format!("ws://{}", listener.local_addr().unwrap())).unwrap();
    std::thread::spawn(move || serve(&listener, STEPS));
    let probes = Probes { gateway: Some(Probe { pid: std::process::id() }), ..Probes::default() };
    let mut devices = Devices::new(identity(), PACE.devices);
    let count = measure(&mut devices, &load(Stop::default()), &url, Way::Raw(STEPS), probes).unwrap();
    assert!(count.done > u64::from(PACE.devices), "{} came", count.done);
    assert_eq!((count.done, count.refused.len()), (count.latency_us.len(), 0));
    let less = Steps { answers: [150, 259], ..STEPS };
    let error = measure(&mut devices, &load(Stop::default()), &url, Way::Raw(less), probes).unwrap_err();
    assert!(error.contains("more than it was asked for"), "{error}");
}

#[test]
fn a_server_that_is_not_there_is_a_clear_error() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = Url::parse(&format!("ws://{address}/ws")).unwrap();
    let error = log_in(&mut Devices::new(identity(), 20), &load(Stop::default()), &url).unwrap_err();
    assert!(error.contains("nothing listens there"), "{error}");
}

fn count(way: Way, done: u64, refused: u64) -> Count {
    let cost = Cost { gateway_us: Some(2_000_000), writer_us: Some(100_000), generator_us: 1, cql: None };
    let refused: BTreeMap<_, _> = (refused > 0).then(|| ("4003".to_owned(), refused)).into_iter().collect();
    Count { way, done, elapsed_ns: 4_000_000_000, cost, latency_us: histogram(), refused, steps: STEPS }
}

fn report(rounds: &[Counted]) -> (Vec<String>, serde_json::Value) {
    let report = Report::new(rounds, PACE, "uring".into(), 4.0);
    (report.broken(), serde_json::to_value(&report).unwrap())
}

#[test]
fn resumes_are_compared_with_the_raw_server_of_their_own_round() {
    let round = |server, raw| Counted {
        server: count(Way::Resume, server, 0),
        baseline: Some(Baseline::Raw(count(Way::Raw(STEPS), raw, 0))),
    };
    let (broken, json) = report(&[round(50_000, 100_000), round(4_000, 10_000), round(60_000, 100_000)]);
    assert_eq!(broken, [""; 0]);
    assert_eq!((json["ratio"].as_f64(), json["ratio_min"].as_f64()), (Some(0.5), Some(0.4)));
    assert_eq!((json["per_cpu_s"].as_f64(), json["baseline_per_cpu_s"].as_f64()), (Some(25_000.0), Some(50_000.0)));
    assert_eq!((json["per_s"].as_f64(), json["gateway_cpu_us_each"].as_f64()), (Some(12_500.0), Some(40.0)));
    assert!(json.get("eddsa_cpu_us").is_none() && json.get("resume_cpu_us_each").is_none());
    let (broken, json) = report(&[Counted { server: count(Way::Resume, 10, 3), baseline: None }]);
    assert!(broken[0].starts_with("3 attempts were refused") && json.get("ratio").is_none(), "{broken:?}");
}

#[test]
fn fresh_tokens_are_compared_with_a_resume_and_a_verification() {
    let verify = super::verify::Cost { eddsa_us: 60.0, token_us: 70.0 };
    let baseline = Some(Baseline::Resume { count: count(Way::Resume, 50_000, 0), verify });
    // 40 us a resume and 60 us a verification allow 10,000 a second of CPU; 8,000 came.
    let (_, json) = report(&[Counted { server: count(Way::Fresh, 16_000, 0), baseline }]);
    assert_eq!((json["baseline_per_cpu_s"].as_f64(), json["ratio"].as_f64()), (Some(10_000.0), Some(0.8)));
    assert_eq!((json["resume_cpu_us_each"].as_f64(), json["eddsa_cpu_us"].as_f64()), (Some(40.0), Some(60.0)));
}
