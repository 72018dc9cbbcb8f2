//! Whole runs against a small chat server on tungstenite, faithful or with one planted fault, and of the raw baseline
//! in this process: the report must tell.

use super::pace::Load;
use super::raw::RawCrowd;
use super::run::run;
use super::{Settings, measured::Measured, pace::Pace};
use crate::baseline_fanout::{Shape, serve};
use crate::chat_server::{Chats, Fault};
use crate::cpu::{Probe, Probes};
use crate::net::{Clock, Stop, Url};
use crate::report::Window;
use crate::rings::{Action, BufferOptions, Client, Rings};
use crate::tokens::Tokens;
use parley_protocol::wire::Encoding;
use serde_json::Value;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

const MEMBERS: u32 = 8;

fn settings(address: SocketAddr, load: Load) -> Settings {
    let own = Some(Probe { pid: std::process::id() });
    Settings {
        url: Url::parse(&format!("ws://{address}/ws")).unwrap(),
        members: MEMBERS,
        senders: 3,
        load,
        rounds: 2,
        warmup_ns: 50_000_000,
        measured_ns: 250_000_000,
        drain_ns: 30_000_000_000,
        payload_bytes: 128,
        baseline: None,
        logins_max: 4,
        login_rate: 1_000,
        turn_ns: 0,
        seed: 1,
        run: 0x1234_5678_0000_0000,
        driver: "test".to_owned(),
        probes: Probes { gateway: own, writer: own, cluster: None },
        stop: Stop::default(),
    }
}

fn report(fault: Fault, load: Load) -> (Vec<String>, Value) {
    let server = Chats::serve(fault, Encoding::Rkyv, MEMBERS as usize);
    let mut settings = settings(server.address, load);
    if matches!(fault, Fault::LosesForGood | Fault::HangsUp) {
        // Nothing ends these drains but their time.
        settings.drain_ns = 1_000_000_000;
    }
    let report = run(&settings, &Tokens::new(&[1; 32], "test")).unwrap();
    server.join();
    (report.broken(), serde_json::to_value(&report).unwrap())
}

const OPEN: Load = Load::Open { rate: 500 };
const CLOSED: Load = Load::Closed { window: 5 };

#[test]
fn an_open_loop_on_a_faithful_server_delivers_each_message_to_every_member_once() {
    let (broken, json) = report(Fault::None, OPEN);
    assert_eq!(broken, [""; 0]);
    // Two rounds of 0.3 s.
    assert_eq!((json["sent"].as_u64(), json["acknowledged"].as_u64()), (Some(300), Some(300)));
    assert_eq!((json["delivered"].as_u64(), json["gap_deliveries"].as_u64()), (Some(300 * 8), Some(0)));
    assert_eq!((json["offered_per_s"].as_f64(), json["rate"].as_u64()), (Some(500.0), Some(500)));
    for name in [
        "deliveries_per_s",
        "server_cpu_us_per_delivery",
        "gateway_cpu_us_per_delivery",
        "writer_cpu_us_per_delivery",
        "per_cpu_s",
        "first_ms_p50",
        "median_ms_p50",
        "last_ms_p99",
        "ack_ms_p99",
        "gather_seconds",
    ] {
        assert!(json[name].as_f64().unwrap() > 0.0, "{name}: {}", json[name]);
    }
    assert!(json["first_ms_p50"].as_f64() <= json["last_ms_p50"].as_f64());
    assert!(json.get("ratio").is_none() && json["rounds"].as_array().unwrap().len() == 2);
}

#[test]
fn a_closed_loop_on_a_faithful_server_keeps_every_promise() {
    let (broken, json) = report(Fault::None, CLOSED);
    assert_eq!(broken, [""; 0]);
    // More than the first fill: slots freed and were used again.
    assert!(json["sent"].as_u64().unwrap() > 2 * 5, "{}", json["sent"]);
    assert_eq!(json["delivered"].as_u64().unwrap(), json["sent"].as_u64().unwrap() * 8);
    assert_eq!((&json["window"], &json["lost"]), (&Value::from(5), &Value::from(0)));
}

#[test]
fn a_live_event_that_a_member_missed_is_a_gap_that_the_history_fills() {
    let (broken, json) = report(Fault::LosesAnEvent, OPEN);
    assert_eq!(broken, [""; 0]);
    let count = |name: &str| json[name].as_u64().unwrap();
    assert_eq!((count("gaps"), count("gap_deliveries"), count("filled")), (1, 1, 1));
    assert_eq!((count("delivered"), count("lost")), (300 * 8, 0));
    assert!(count("history_pages") >= 1);
}

#[test]
fn what_the_history_lacks_too_is_lost() {
    let (broken, json) = report(Fault::LosesForGood, OPEN);
    assert_eq!(broken, ["1 deliveries of acknowledged messages lost"]);
    assert_eq!((json["filled"].as_u64(), json["delivered"].as_u64()), (Some(0), Some(300 * 8 - 1)));
    // What never came is the slowest: it counts with the whole drain.
    assert!(json["last_ms_max"].as_f64().unwrap() >= 1_000.0, "{}", json["last_ms_max"]);
}

#[test]
fn doubled_and_altered_events_and_a_dropped_member_are_told() {
    assert_eq!(report(Fault::DoublesAnEvent, OPEN).0, ["1 events seen twice by a member"]);
    assert_eq!(report(Fault::AltersAnEvent, OPEN).0, ["1 events that are not what was sent"]);
    let (broken, json) = report(Fault::HangsUp, OPEN);
    assert!(broken.iter().any(|what| what == "1 members disconnected by the server"), "{broken:?}");
    assert!(json["lost"].as_u64().unwrap() > 0);
}

#[test]
fn a_server_that_is_not_there_is_a_clear_error() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = run(&settings(address, CLOSED), &Tokens::new(&[1; 32], "test")).unwrap_err();
    assert!(error.contains("nothing listens there"), "{error}");
}

#[test]
fn the_raw_fan_out_reaches_every_socket_at_the_pace_of_the_closed_loop() {
    let shape = Shape { connections: 20, trigger_bytes: 100, frame_bytes: 700 };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || serve(&listener, shape));
    let clock = Clock::start();
    let mut rings = Rings::new(20, 20, address, BufferOptions { count: 16, bytes: 256 }).unwrap();
    let mut crowd = RawCrowd::new(shape);
    crowd.measured = Measured::new(Window { start_ns: 0, end_ns: u64::MAX }, 20);
    let mut actions: Vec<_> = (0..20).map(|conn| Action::Open { conn, source: None }).collect();
    crowd.pace = Some(Pace::new(Load::Closed { window: 3 }, 0, 0, 20, 1));
    for _ in 0..60_000 {
        if crowd.open == 20 {
            crowd.tick(clock.now_ns(), &mut actions);
        }
        rings.run(&mut actions).unwrap();
        if rings.turn(&mut crowd, &clock).unwrap() == 0 {
            rings.wait(Duration::from_millis(1)).unwrap();
        }
        if crowd.measured.messages >= 100 {
            break;
        }
    }
    assert_eq!(crowd.failure, None);
    let Measured { messages, deliveries, spread, .. } = &crowd.measured;
    assert!(*messages >= 100 && *deliveries >= messages * 20);
    assert!(spread.first.len() >= *messages && spread.last.len() == *messages && crowd.under_way() <= 3);
    crowd.data(4, b"zzz", 0, &mut actions);
    assert!(crowd.failure.as_ref().is_some_and(|why| why.contains("raw connection 4")), "other bytes are found out");
}
