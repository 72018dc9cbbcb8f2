//! Figures of made-up rounds, and the client against the raw server in this process.

use super::client::EchoClient;
use super::{Load, Report, Round, Side, measure};
use crate::cpu::Probe;
use crate::net::{Stop, Url};
use crate::report::histogram;
use crate::rings::{Action, Client};
use std::io::{Read, Write};
use std::net::TcpListener;

const LOAD: Load = Load { connections: 3, payload_bytes: 70_000, warmup_ns: 50_000_000, measured_ns: 200_000_000 };

#[test]
fn a_ratio_is_the_median_of_the_rounds_own_ratios() {
    let side = |echoes| Side::new(echoes, 2_000_000_000, 1_000_000, &histogram());
    let round = |server, raw| Round { server: side(server), baseline: Some(side(raw)) };
    // The second round was disturbed for both alike.
    let rounds = [round(90, 100), round(8, 10), round(99, 100)];
    let json = serde_json::to_value(Report::new(LOAD, "uring".into(), &rounds)).unwrap();
    assert_eq!((json["ratio"].as_f64(), json["ratio_min"].as_f64()), (Some(0.9), Some(0.8)));
    assert_eq!((json["per_cpu_s"].as_f64(), json["baseline_per_cpu_s"].as_f64()), (Some(90.0), Some(100.0)));
    assert_eq!((json["per_s"].as_f64(), json["baseline_per_s"].as_f64()), (Some(45.0), Some(50.0)));
    assert!(Report::new(LOAD, "uring".into(), &rounds).broken().is_empty());
    let starved = Round { server: Side::new(5, 2_000_000_000, 20_000, &histogram()), baseline: None };
    assert!(Report::new(LOAD, "uring".into(), &[rounds[0], starved]).broken()[0].starts_with("1 measurements"));
    let alone = [Round { server: side(7), baseline: None }];
    let json = serde_json::to_value(Report::new(LOAD, "uring".into(), &alone)).unwrap();
    assert!(json.get("ratio").is_none() && json.get("baseline_per_cpu_s").is_none());
}

#[test]
fn the_raw_server_echoes_what_the_client_sends_and_both_are_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || crate::baseline::serve(&listener));
    let side = measure(LOAD, address, None, Probe { pid: std::process::id() }, &Stop::default()).unwrap();
    let json = serde_json::to_value(side).unwrap();
    for name in ["per_s", "per_cpu_s", "cpu_us_each", "ms_p99"] {
        assert!(json[name].as_f64().unwrap() > 0.0, "{name}");
    }
}

#[test]
fn a_server_that_changes_a_byte_is_found_out() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 64];
        stream.read_exact(&mut buffer).unwrap();
        buffer[63] ^= 1;
        stream.write_all(&buffer).unwrap();
        // Open until the client leaves.
        let _ = stream.read(&mut buffer);
    });
    let load = Load { connections: 1, payload_bytes: 64, ..LOAD };
    let error = measure(load, address, None, Probe { pid: std::process::id() }, &Stop::default()).unwrap_err();
    assert!(error.contains("not what was sent"), "{error}");
}

#[test]
fn a_websocket_is_upgraded_first_and_its_echo_is_a_frame_without_a_mask() {
    for (payload_bytes, head) in [(20, vec![0x82, 20]), (512, vec![0x82, 126, 2, 0])] {
        let load = Load { connections: 1, payload_bytes, ..LOAD };
        let url = Url::parse("ws://127.0.0.1:7400/").unwrap();
        let mut client = EchoClient::new(load, Some(&url));
        let mut actions = Vec::new();
        client.connected(0, 0, &mut actions);
        assert!(matches!(&actions[..], [Action::Send { bytes, .. }] if bytes.starts_with(b"GET / HTTP/1.1\r\n")));
        actions.clear();
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        client.data(0, &answer[..20], 0, &mut actions);
        assert!(actions.is_empty());
        client.data(0, &answer[20..], 0, &mut actions);
        assert!(matches!(&actions[..], [Action::Send { bytes, .. }] if bytes[1] & 0x80 != 0));
        let payload: Vec<u8> = (b'a'..=b'z').cycle().take(payload_bytes).collect();
        let echo = [head, payload].concat();
        client.data(0, &echo[..10], 0, &mut actions);
        assert_eq!((client.open, client.echoes), (1, 0));
        client.data(0, &echo[10..], 0, &mut actions);
        assert_eq!((client.echoes, actions.len(), &client.failure), (1, 2, &None));
    }
}
