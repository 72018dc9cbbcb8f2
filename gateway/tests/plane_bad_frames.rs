//! What a client gets for breaking the rules: the close code, or the HTTP status, and the end of its connection.

mod plane_support;

use plane_support::{on_both_drivers, tcp};
use std::io::{Read, Write};
use std::net::Shutdown;

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Sends bytes and reads until the server closes.
fn answer(server: &gateway::plane::Handle, bytes: &[u8]) -> Vec<u8> {
    let mut stream = tcp(server);
    stream.write_all(bytes).expect("sends");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the server closes");
    answer
}

#[test]
fn bad_frames_are_answered_with_their_close_code() {
    let cases: [(&str, &[u8], u16); 6] = [
        ("unmasked", &[0x81, 0x01, b'a'], 1002),
        ("reserved bits", &[0xf1, 0x80, 1, 2, 3, 4], 1002),
        ("stray continuation", &[0x80, 0x80, 1, 2, 3, 4], 1002),
        ("not UTF-8", &[0x81, 0x81, 0, 0, 0, 0, 0xff], 1007),
        ("bad close code", &[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xed], 1002),
        ("too big", &[0x82, 0xff, 0, 0, 0, 0, 0x01, 0, 0, 1, 0, 0, 0, 0], 1009),
    ];
    on_both_drivers(1, |server| {
        for (name, frame, code) in cases {
            // In one packet with the upgrade, and with more behind it that must be ignored.
            let answer = answer(server, &[UPGRADE.as_bytes(), frame, &[0x81; 50]].concat());
            let head = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("the upgrade is answered") + 4;
            assert!(answer.starts_with(b"HTTP/1.1 101 "), "{name}");
            assert_eq!(answer[head], 0x88, "{name}: a close frame");
            assert_eq!(answer[head + 2..head + 4], code.to_be_bytes(), "{name}");
            assert_eq!(answer.len(), head + 2 + usize::from(answer[head + 1]), "{name}: and nothing after it");
        }
    });
}

#[test]
fn bad_requests_are_answered_with_their_status() {
    on_both_drivers(1, |server| {
        for (request, status) in [
            ("POST /ws HTTP/1.1\r\nHost: a\r\n\r\n", "405"),
            ("GET /ws HTTP/1.1\r\nHost: a\r\n\r\n", "426"),
            ("\u{16}\u{3}\u{1}\r\n\r\n", "400"),
            (&format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(20_000)), "431"),
        ] {
            let answer = answer(server, request.as_bytes());
            assert_eq!(&String::from_utf8_lossy(&answer)[..12], format!("HTTP/1.1 {status}"));
        }
    });
}

#[test]
fn a_head_may_come_byte_by_byte() {
    on_both_drivers(1, |server| {
        let mut stream = tcp(server);
        for byte in UPGRADE.as_bytes() {
            stream.write_all(&[*byte]).expect("sends");
        }
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 101");
    });
}

#[test]
fn a_client_that_only_stops_sending_gets_its_answers() {
    on_both_drivers(1, |server| {
        let mut stream = tcp(server);
        stream.write_all(UPGRADE.as_bytes()).expect("sends");
        stream.write_all(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i']).expect("sends");
        stream.shutdown(Shutdown::Write).expect("a socket");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the server closes");
        assert!(answer.ends_with(&[0x81, 2, b'h', b'i']), "{answer:?}");
    });
}
