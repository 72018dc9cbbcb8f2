//! Rows of hostile input: HTTP heads that are refused, too long, too many or too slow (RFC 9110, 9112, 6455 section 4).

use crate::common::raw::{Raw, message, upgrade};
use crate::common::{JSON, RKYV, Settings};
use crate::hostile::{Answer, Opening, Row, Table, hello};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
/// What a head may have: the last that is taken, and one more is refused.
const HEADERS_MAX: usize = 64;
const HEAD_BYTES_MAX: usize = 8_192;

fn with(header: &str) -> String {
    upgrade(JSON).replace("\r\n\r\n", &format!("\r\n{header}\r\n\r\n"))
}

fn replaced(from: &str, to: &str) -> String {
    let good = upgrade(JSON);
    assert!(good.contains(from), "{from}");
    good.replace(from, to)
}

/// `count` headers of their own names, with values of `bytes`.
fn headers(count: usize, bytes: usize) -> String {
    let value = "v".repeat(bytes);
    with(&(0..count).map(|index| format!("X-{index}: {value}")).collect::<Vec<_>>().join("\r\n"))
}

/// A good head of exactly so many headers.
fn headers_in_all(count: usize) -> String {
    let own = upgrade(JSON).matches(": ").count();
    headers(count - own, 1)
}

/// A good head of exactly so many bytes.
fn bytes_in_all(bytes: usize) -> String {
    let rest = bytes - with("X-Padding: ").len();
    with(&format!("X-Padding: {}", "v".repeat(rest)))
}

fn refused_heads() -> Vec<(&'static str, String, u16, &'static str)> {
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    let protocol = "Sec-WebSocket-Protocol: parley.v1.json\r\n";
    vec![
        ("a foreign Origin", with("Origin: https://evil.example"), 403, "origin"),
        ("a null Origin", with("Origin: null"), 403, "origin"),
        ("an empty Origin", with("Origin:"), 403, "origin"),
        ("an Origin with a suffix", with("Origin: https://chat.example.com.evil.example"), 403, "origin"),
        ("an Origin with a port", with("Origin: https://chat.example.com:8443"), 403, "origin"),
        ("an Origin with a name before it", with("Origin: https://evil-chat.example.com"), 403, "origin"),
        ("an Origin behind an @", with("Origin: https://chat.example.com@evil.example"), 403, "origin"),
        ("an Origin without TLS", with("Origin: http://chat.example.com"), 403, "origin"),
        ("two Origins", with("Origin: https://chat.example.com\r\nOrigin: https://evil.example"), 400, "bad_upgrade"),
        ("another path", replaced("/ws", "/other"), 404, "path"),
        ("a path through the parent", replaced("/ws", "/x/../ws"), 404, "path"),
        ("another method", replaced("GET", "POST"), 405, "method"),
        ("WebSocket version 8", replaced("Version: 13", "Version: 8"), 426, "upgrade_version"),
        ("WebSocket version 13, 8", replaced("Version: 13", "Version: 13, 8"), 426, "upgrade_version"),
        ("no upgrade", replaced("Upgrade: websocket\r\n", ""), 426, "upgrade_version"),
        ("HTTP/1.0", replaced("HTTP/1.1", "HTTP/1.0"), 505, "http_version"),
        ("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 505, "http_version"),
        ("no subprotocol", replaced(protocol, ""), 400, "bad_upgrade"),
        ("an unknown subprotocol", replaced("parley.v1.json", "parley.v9.json"), 400, "bad_upgrade"),
        ("a short key", replaced(key, "c2hvcnQ="), 400, "bad_upgrade"),
        ("a key that is not base64", replaced(key, "!!!!!!!!!!!!!!!!!!!!!!=="), 400, "bad_upgrade"),
        ("a long key", replaced(key, &"A".repeat(1_000)), 400, "bad_upgrade"),
        ("no key", replaced(&format!("Sec-WebSocket-Key: {key}\r\n"), ""), 400, "bad_upgrade"),
        ("no Host", replaced("Host: localhost\r\n", ""), 400, "bad_upgrade"),
        ("a body", with("Content-Length: 4"), 400, "bad_upgrade"),
        ("a chunked body", with("Transfer-Encoding: chunked"), 400, "bad_upgrade"),
        ("no HTTP at all", "\u{1}\u{2}\u{3}\r\n\r\n".to_owned(), 400, "bad_upgrade"),
        ("a TLS hello", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\r\n\r\n".to_owned(), 400, "bad_upgrade"),
        ("a malformed Authorization", with("Authorization: Basic abc"), 401, "authorization"),
        ("1 MB of headers", headers(50, 20_000), 431, "head_too_large"),
        ("1 MB in one header", headers(1, 1_000_000), 431, "head_too_large"),
        ("1 MB of a target", replaced("/ws", &format!("/{}", "w".repeat(1_000_000))), 431, "head_too_large"),
        ("2,000 headers", headers(2_000, 1), 431, "head_too_large"),
        ("100 headers that fit in bytes", headers(100, 1), 431, "head_too_large"),
        ("65 headers", headers_in_all(HEADERS_MAX + 1), 431, "head_too_large"),
        ("8,193 bytes", bytes_in_all(HEAD_BYTES_MAX + 1), 431, "head_too_large"),
    ]
}

#[test]
fn refused_upgrades_have_their_status() {
    let mut table = Table::new(Settings::new().gateway("lobby.origins", "https://chat.example.com"));
    let rows: Vec<_> = refused_heads()
        .into_iter()
        .map(|(name, head, status, reason)| {
            let attack = move |raw: &mut Raw| raw.send(head.as_bytes());
            Row::new(name, Opening::Connected, attack, Answer::Status(status), reason)
        })
        .collect();
    table.run(&rows);
    // The same head without what is wrong is taken, so that is what was refused.
    let good = [
        ("a good Origin", with("Origin: https://chat.example.com")),
        ("64 headers", headers_in_all(HEADERS_MAX)),
        ("8,192 bytes", bytes_in_all(HEAD_BYTES_MAX)),
    ];
    let rows = good.map(|(name, head)| {
        let attack = move |raw: &mut Raw| raw.send(head.as_bytes());
        Row::new(name, Opening::Connected, attack, Answer::Status(101), "").not_counted()
    });
    table.run(&rows);
    table.ends_well();
}

/// A byte a second until the server says something.
fn drip(raw: &mut Raw, bytes: &[u8]) {
    for byte in bytes {
        raw.send(&[*byte]);
        if raw.answered_within(SECOND) {
            return;
        }
    }
    panic!("{} bytes came at one a second, and the server had the patience", bytes.len());
}

#[test]
fn slow_handshakes_end_in_time() {
    let settings =
        Settings::new().gateway("lobby.handshake_timeout_ms", 2_500).gateway("lobby.hello_timeout_ms", 2_500);
    let mut table = Table::new(settings);
    let target = table.server.target();
    let first = message(RKYV, &hello(&target));
    let half = |raw: &mut Raw| raw.send(&upgrade(JSON).as_bytes()[..40]);
    let rows = [
        Row::new(
            "a handshake at 1 byte a second",
            Opening::Connected,
            |raw: &mut Raw| drip(raw, upgrade(JSON).as_bytes()),
            Answer::Status(408),
            "head_slow",
        ),
        Row::new("half a head and silence", Opening::Connected, half, Answer::Status(408), "head_slow"),
        Row::new("a connection and silence", Opening::Connected, |_: &mut Raw| {}, Answer::Status(408), "head_slow"),
        Row::new("no Hello", Opening::Upgraded(JSON), |_: &mut Raw| {}, Answer::Close(4010), "no_hello"),
        Row::new(
            "a Hello at 1 byte a second",
            Opening::Upgraded(RKYV),
            |raw: &mut Raw| drip(raw, &first),
            Answer::Close(4010),
            "no_hello",
        ),
        Row::new(
            "half a Hello, and pings to look alive",
            Opening::Upgraded(RKYV),
            |raw: &mut Raw| raw.send(&[&crate::common::raw::frame(0x89, b"alive"), &first[..20]].concat()),
            Answer::Close(4010),
            "no_hello",
        ),
    ];
    table.run(&rows.map(Row::once));
    table.ends_well();
}
