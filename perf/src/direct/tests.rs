//! Whole runs against a small chat server on tungstenite, faithful or with one planted fault: the report must tell.

use super::MarkOptions;
use super::run::{Loop, Settings, run};
use crate::chat_server::{Chats, Fault};
use crate::cpu::Probes;
use crate::net::{Stop, Url};
use crate::report::Report;
use crate::tokens::Tokens;
use parley_protocol::wire::Encoding;
use serde_json::Value;
use std::net::TcpListener;

fn settings(address: std::net::SocketAddr, load: Loop, encoding: Encoding) -> Settings {
    Settings {
        url: Url::parse(&format!("ws://{address}/ws")).unwrap(),
        users: 6,
        load,
        warmup_ns: 50_000_000,
        measured_ns: 250_000_000,
        drain_ns: 30_000_000_000,
        payload_bytes: 128,
        marks: MarkOptions { interval_ns: 20_000_000, messages_max: 8 },
        encoding,
        seed: 1,
        run: 0x1234_5678_0000_0000,
        connect_rate: 1_000,
        handshakes_max: 2,
        turn_ns: 0,
        verify_history: true,
        driver: "none".to_owned(),
        probes: Probes::default(),
        stop: Stop::default(),
        watch: None,
    }
}

/// A run against a server with the fault: the report, also as JSON, and how many marks the server got.
fn report(fault: Fault, load: Loop, encoding: Encoding) -> (Report, Value, u64) {
    let server = Chats::serve(fault, encoding, 6);
    let mut settings = settings(server.address, load, encoding);
    if matches!(fault, Fault::LosesAnEvent | Fault::HangsUp) {
        // Nothing ends these drains but their time.
        settings.drain_ns = 2_000_000_000;
    }
    let report = run(&settings, &Tokens::new(&[1; 32], "test")).unwrap();
    let chats = server.chats.clone();
    server.join();
    let marks = chats.lock().unwrap().marks;
    let json = serde_json::to_value(&report).unwrap();
    (report, json, marks)
}

const OPEN: Loop = Loop::Open { rate: 1_000 };
const CLOSED: Loop = Loop::Closed { window: 4 };

#[test]
fn an_open_loop_on_a_faithful_server_offers_its_rate_and_keeps_every_promise() {
    for encoding in [Encoding::Rkyv, Encoding::Json] {
        let (report, json, marks) = report(Fault::None, OPEN, encoding);
        assert_eq!(report.broken(), [""; 0], "{encoding:?}");
        assert_eq!((json["sent"].as_u64(), json["delivered"].as_u64()), (Some(300), Some(300)));
        assert_eq!(json["offered_per_s"], 1_000.0);
        assert_eq!((json["unanswered"].as_u64(), json["seq_holes"].as_u64()), (Some(0), Some(0)));
        // Every pair talked, so every pair marked; and marks are coalesced.
        assert!((3..300).contains(&marks), "{marks} marks");
        assert_eq!(json["delivered_marks"], marks);
    }
}

#[test]
fn a_closed_loop_on_a_faithful_server_keeps_every_promise() {
    let (report, json, _) = report(Fault::None, CLOSED, Encoding::Rkyv);
    assert_eq!(report.broken(), [""; 0]);
    // More than the first fill: slots freed and were used again.
    assert!(json["sent"].as_u64().unwrap() > 6 * 4);
    assert_eq!((&json["sent"], &json["sent"]), (&json["acknowledged"], &json["delivered"]));
}

#[test]
fn a_lost_event_is_reported_and_is_not_missing_in_the_history() {
    let (report, json, _) = report(Fault::LosesAnEvent, OPEN, Encoding::Rkyv);
    assert_eq!(report.broken(), ["1 acknowledged messages lost"]);
    assert_eq!((json["sent"].as_u64(), json["delivered"].as_u64()), (Some(300), Some(299)));
    // What never came is the slowest: it counts with the whole drain.
    assert!(json["latency_ms_max"].as_f64().unwrap() >= 2_000.0);
}

#[test]
fn a_doubled_event_is_reported() {
    let (report, ..) = report(Fault::DoublesAnEvent, OPEN, Encoding::Rkyv);
    assert_eq!(report.broken(), ["1 events seen twice by a device"]);
}

#[test]
fn a_message_that_the_history_lacks_is_reported() {
    let (report, ..) = report(Fault::ForgetsInHistory, OPEN, Encoding::Rkyv);
    assert_eq!(report.broken(), ["1 acknowledged messages missing in the history"]);
}

#[test]
fn a_dropped_connection_is_reported_with_what_it_lost() {
    let (report, ..) = report(Fault::HangsUp, OPEN, Encoding::Rkyv);
    assert_eq!(report.disconnected, 1);
    assert!(report.lost >= 1 && report.history_missing == Some(0));
}

#[test]
fn a_run_that_is_stopped_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = settings(listener.local_addr().unwrap(), OPEN, Encoding::Rkyv);
    settings.stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let error = run(&settings, &Tokens::new(&[1; 32], "test")).unwrap_err();
    assert!(error.contains("stopped"), "{error}");
}

#[test]
fn a_server_that_is_not_there_is_a_clear_error() {
    // Bound and closed again: nothing listens there.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = run(&settings(address, OPEN, Encoding::Rkyv), &Tokens::new(&[1; 32], "test")).unwrap_err();
    assert!(error.contains("nothing listens there"), "{error}");
}
