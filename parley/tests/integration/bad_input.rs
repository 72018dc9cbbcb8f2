//! Whatever a stranger sends is answered with the HTTP status or the close code that `docs/PROTOCOL.md` names; others do
//! not notice, and the server neither panics nor hangs.

use crate::common::device::{direct, text_frame};
use crate::common::raw::{Raw, Received, frame, message, upgrade};
use crate::common::{Device, JSON, RKYV, Server, Settings, Target, random};
use gateway::identity::DevKey;
use parley_protocol::wire::{self, Encoding};
use parley_protocol::{ClientFrame, ClientMsgId, ErrorCode, ServerFrame};
use rustix::process::Signal;

/// Opcodes with FIN set.
const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const RSV1: u8 = 0x40;
/// Without FIN.
const TEXT_PART: u8 = 0x01;
const LAST_PART: u8 = 0x80;

fn hello(target: &Target, name: &str) -> ClientFrame {
    let device = Device::new(target, name, JSON);
    ClientFrame::Hello(device.hello(Some(target.token(name, 3_600, false)), None))
}

/// A raw connection with a session.
fn seated(server: &Server, encoding: Encoding) -> Raw {
    let mut raw = Raw::upgraded(server.listen.addr, encoding);
    raw.send(&message(encoding, &hello(&server.target(), "mallory")));
    let welcome = raw.receive().expect("welcome");
    assert!(matches!(decoded(encoding, &welcome), ServerFrame::Welcome(_)), "{welcome:?}");
    raw
}

fn decoded(encoding: Encoding, received: &Received) -> ServerFrame {
    wire::decode_server_frame(encoding, &received.payload).expect("a server's frame")
}

/// After every attack: someone else talks as before, and at the end nothing panicked.
struct Bystander {
    server: Server,
    alice: Device,
    bob: Device,
}

impl Bystander {
    fn new(settings: Settings) -> Self {
        let server = Server::up_with(settings);
        let (alice, bob) = (server.device("alice", JSON), server.device("bob", RKYV));
        Self { server, alice, bob }
    }

    fn talks(&mut self) {
        let chat = direct(&self.alice, &self.bob);
        let sent = self.alice.post(chat, "undisturbed");
        self.bob.wait_event(chat, sent.seq);
    }

    fn ends_well(mut self) {
        self.talks();
        let gateway = self.server.gateway();
        assert!(gateway.is_running());
        assert!(gateway.terminate().success());
        let log = gateway.log();
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// Bytes after the upgrade, before any hello, and the code that they are closed with.
fn before_hello() -> Vec<(&'static str, Encoding, Vec<u8>, u16)> {
    let unmasked = || vec![TEXT, 2, b'{', b'}'];
    let not_minimal = {
        let mut bytes = vec![TEXT, 0x80 | 126, 0, 5, 0, 0, 0, 0];
        bytes.extend_from_slice(b"12345");
        bytes
    };
    let not_minimal_64 = {
        let mut bytes = vec![TEXT, 0x80 | 127, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0];
        bytes.extend_from_slice(&[b' '; 256]);
        bytes
    };
    // Only a header: the size alone is too much.
    let oversized = {
        let mut bytes = vec![TEXT, 0x80 | 127];
        bytes.extend_from_slice(&(1_u64 << 20).to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes
    };
    let absurd = |first: u8| vec![BINARY, 0x80 | 127, first, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
    let fragments_too_large = {
        let mut bytes = frame(TEXT_PART, &[b' '; 40_000]);
        bytes.extend(frame(LAST_PART, &[b' '; 40_000]));
        bytes
    };
    let text_within_fragments = {
        let mut bytes = frame(TEXT_PART, b"{");
        bytes.extend(frame(TEXT, b"}"));
        bytes
    };
    let ping = ClientFrame::Ping(parley_protocol::frame::Ping { nonce: 1 });
    vec![
        ("a frame without a mask", JSON, unmasked(), 1002),
        ("a reserved bit", JSON, frame(TEXT | RSV1, b"{}"), 1002),
        ("a reserved opcode", JSON, frame(0x83, b""), 1002),
        ("a reserved control opcode", JSON, frame(0x8b, b""), 1002),
        ("a control frame of 126 bytes", JSON, frame(PING, &[0; 126]), 1002),
        ("a control frame in parts", JSON, frame(0x09, b""), 1002),
        ("a continuation of nothing", JSON, frame(LAST_PART, b"{}"), 1002),
        ("a message inside a fragmented one", JSON, text_within_fragments, 1002),
        ("16 bits of length for 5 bytes", JSON, not_minimal, 1002),
        ("64 bits of length for 256 bytes", JSON, not_minimal_64, 1002),
        ("a close frame of one byte", JSON, frame(CLOSE, &[3]), 1002),
        ("a close frame with a reserved code", JSON, frame(CLOSE, &1005_u16.to_be_bytes()), 1002),
        ("a close frame with a reason that is not UTF-8", JSON, frame(CLOSE, &[3, 0xe8, 0xff]), 1007),
        ("text that is not UTF-8", JSON, frame(TEXT, &[b'{', 0xc3, 0x28, b'}']), 1007),
        ("text that ends within a character", JSON, frame(TEXT, &[b'"', 0xe2, 0x82]), 1007),
        ("a message above frame_bytes_max", JSON, oversized, 1009),
        ("a length of 2^63 - 1", RKYV, absurd(0x7f), 1009),
        ("a length of 2^64 - 1: the first bit must be 0", RKYV, absurd(0xff), 1002),
        ("fragments above frame_bytes_max", JSON, fragments_too_large, 1009),
        ("a binary message on JSON", JSON, frame(BINARY, b"{}"), 1003),
        ("a text message on rkyv", RKYV, frame(TEXT, b"{}"), 1003),
        ("text that is no frame", JSON, frame(TEXT, b"hello?"), 1007),
        ("JSON that is no frame", JSON, frame(TEXT, br#"{"type":"dance"}"#), 1007),
        ("a field that is unknown", JSON, frame(TEXT, br#"{"type":"ping","nonce":1,"loud":true}"#), 1007),
        ("a field that comes twice", JSON, frame(TEXT, br#"{"type":"ping","nonce":1,"nonce":1}"#), 1007),
        ("a field that is missing", JSON, frame(TEXT, br#"{"type":"chats"}"#), 1007),
        ("a number of the wrong form", JSON, frame(TEXT, br#"{"type":"ping","nonce":"1"}"#), 1007),
        ("an id of the wrong form", JSON, frame(TEXT, br#"{"type":"subscribe","chat_id":"80"}"#), 1007),
        ("an array", JSON, frame(TEXT, br#"["hello"]"#), 1007),
        ("JSON 200 deep", JSON, frame(TEXT, "[".repeat(200).as_bytes()), 1007),
        ("an empty message", JSON, frame(TEXT, b""), 1007),
        ("bytes that are no archive", RKYV, frame(BINARY, &[0xff; 64]), 1007),
        ("an empty archive", RKYV, frame(BINARY, b""), 1007),
        ("another frame than hello, JSON", JSON, message(JSON, &ping), 1008),
        ("another frame than hello, rkyv", RKYV, message(RKYV, &ping), 1008),
        ("a close", JSON, frame(CLOSE, &1000_u16.to_be_bytes()), 1000),
    ]
}

#[test]
fn broken_frames_before_hello_have_their_close_codes() {
    let mut others = Bystander::new(Settings::new());
    for (what, encoding, bytes, code) in before_hello() {
        let mut raw = Raw::upgraded(others.server.listen.addr, encoding);
        raw.send(&bytes);
        assert_eq!(raw.close_code(), code, "{what}");
        others.talks();
    }
    others.ends_well();
}

/// The rules of the WebSocket hold for a session as they do before it; they come in one byte at a time here.
#[test]
fn broken_frames_of_a_session_have_their_close_codes() {
    let mut others = Bystander::new(Settings::new());
    for (what, encoding, bytes, code) in before_hello() {
        // Another frame than hello is what a session is for.
        if code == 1008 {
            continue;
        }
        let mut raw = seated(&others.server, encoding);
        if bytes.len() < 300 {
            for byte in &bytes {
                raw.send(&[*byte]);
            }
        } else {
            raw.send(&bytes);
        }
        assert_eq!(raw.close_code(), code, "{what}");
    }
    let mut raw = seated(&others.server, JSON);
    raw.send(&message(JSON, &hello(&others.server.target(), "mallory")));
    assert_eq!(raw.close_code(), 1008, "hello twice");
    others.talks();
    others.ends_well();
}

/// Before `welcome` nothing is acted on, and only so much of it is kept: a login that takes long is no way to fill memory.
#[test]
fn too_much_before_welcome_is_closed_with_1008() {
    let mut server = Server::apart();
    let mut alice = server.device("alice", JSON);
    server.writer().signal(Signal::STOP);
    for encoding in [JSON, RKYV] {
        let mut raw = Raw::upgraded(server.listen.addr, encoding);
        raw.send(&message(encoding, &hello(&server.target(), "mallory")));
        for _ in 0..40 {
            raw.send(&frame(BINARY, &[0; 4_096]));
        }
        assert_eq!(raw.close_code(), 1008);
    }
    server.writer().signal(Signal::CONT);
    alice.sync();
}

#[test]
fn bad_hellos_have_their_close_codes() {
    let settings = Settings::new().gateway("lobby.hello_timeout_ms", 1_000);
    let others = Bystander::new(settings);
    let target = others.server.target();
    let stranger = tempfile::tempdir().expect("a directory");
    let forged = DevKey::load_or_create(stranger.path()).expect("a key of somebody else");
    let (forged, _) = forged.sign("mallory", crate::common::unix_s(), 3_600, true).expect("a name");
    let good = || target.token("mallory", 3_600, false);
    let unsigned = {
        // {"alg":"none"}, and the claims of a good token.
        let claims = good().split('.').nth(1).expect("three parts").to_owned();
        format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{claims}.")
    };
    let device = Device::new(&target, "mallory", JSON);
    let token = |text: &str| device.hello(Some(text.to_owned()), None);
    let leeway_s = 30;
    let past = DevKey::load(others.server.data()).expect("the server's key");
    let (past, _) = past.sign("mallory", crate::common::unix_s() - 2 * leeway_s, leeway_s, false).expect("a name");
    let mut future_version = token(&good());
    future_version.version = 2;
    let mut long_client = token(&good());
    long_client.client = "c".repeat(129);
    let mut many_kinds = token(&good());
    many_kinds.kinds_known = vec![900; 65];
    for encoding in [JSON, RKYV] {
        for (what, hello, code) in [
            ("no token at all", device.hello(None, None), 4010),
            ("a token of another key", token(&forged), 4010),
            ("a token without a signature", token(&unsigned), 4010),
            ("an expired token", token(&past), 4010),
            ("words", token("let me in"), 4010),
            ("a ticket that is none", device.hello(None, Some("AAAA".into())), 4010),
            ("an empty token", token(""), 1008),
            ("a token of 4,097 bytes", token(&"t".repeat(4_097)), 1008),
            ("a client's name that is too long", long_client.clone(), 1008),
            ("too many kinds", many_kinds.clone(), 1008),
            ("another version", future_version.clone(), 4024),
        ] {
            let mut raw = Raw::upgraded(others.server.listen.addr, encoding);
            raw.send(&message(encoding, &ClientFrame::Hello(hello)));
            assert_eq!(raw.close_code(), code, "{what}");
        }
        let mut silent = Raw::upgraded(others.server.listen.addr, encoding);
        assert_eq!(silent.close_code(), 4010, "no hello in time");
        assert!(silent.is_ended());
    }
    others.ends_well();
}

#[test]
fn upgrades_that_are_refused_have_their_status() {
    let settings = Settings::new()
        .gateway("lobby.origins", "https://chat.example.com")
        .gateway("lobby.handshake_timeout_ms", 1_000);
    let others = Bystander::new(settings);
    let addr = others.server.listen.addr;
    let good = upgrade(JSON);
    let with = |header: &str| good.replace("\r\n\r\n", &format!("\r\n{header}\r\n\r\n"));
    let replaced = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replace(from, to)
    };
    let long = with(&format!("X-Long: {}", "x".repeat(9_000)));
    let many = with(&(0..100).map(|index| format!("X-{index}: y")).collect::<Vec<_>>().join("\r\n"));
    for (what, head, status) in [
        ("a good one", good.clone(), 101),
        ("an allowed origin", with("Origin: https://chat.example.com"), 101),
        ("another origin", with("Origin: https://evil.example"), 403),
        ("an origin that begins like an allowed one", with("Origin: https://chat.example.com.evil.example"), 403),
        ("no origin that a page could have", with("Origin: null"), 403),
        ("another path", replaced("/ws", "/other"), 404),
        ("another method", replaced("GET", "POST"), 405),
        ("an old version of the WebSocket", replaced("Version: 13", "Version: 8"), 426),
        ("no upgrade", replaced("Upgrade: websocket\r\n", ""), 426),
        ("no subprotocol", replaced("Sec-WebSocket-Protocol: parley.v1.json\r\n", ""), 400),
        ("an unknown subprotocol", replaced("parley.v1.json", "parley.v9.json"), 400),
        ("a bad key", replaced("dGhlIHNhbXBsZSBub25jZQ==", "short"), 400),
        ("no host", replaced("Host: localhost\r\n", ""), 400),
        ("a malformed Authorization", with("Authorization: Basic abc"), 401),
        ("a header of 9,000 bytes", long, 431),
        ("a hundred headers", many, 431),
        ("no HTTP at all", "\u{1}\u{2}\u{3}\r\n\r\n".to_owned(), 400),
        ("half a head", good[..40].to_owned(), 408),
    ] {
        let mut raw = Raw::connect(addr);
        raw.send(head.as_bytes());
        let (got, text) = raw.http_answer();
        assert_eq!(got, status, "{what}: {text}");
        if status != 101 {
            assert!(raw.is_ended(), "{what}");
        }
    }
    others.ends_well();
}

/// Hello and what follows it in one packet, or byte by byte: a session all the same.
#[test]
fn it_does_not_matter_how_bytes_are_cut() {
    let others = Bystander::new(Settings::new());
    let chat = direct(&others.alice, &others.bob);
    let no_chat = text_frame(chat, ClientMsgId(random()), "not mine");
    for encoding in [JSON, RKYV] {
        let mut bytes = upgrade(encoding).into_bytes();
        bytes.extend(message(encoding, &hello(&others.server.target(), "mallory")));
        bytes.extend(message(encoding, &no_chat));
        for step in [bytes.len(), 1] {
            let mut raw = Raw::connect(others.server.listen.addr);
            for part in bytes.chunks(step) {
                raw.send(part);
            }
            assert_eq!(raw.http_answer().0, 101);
            assert!(matches!(decoded(encoding, &raw.receive().expect("welcome")), ServerFrame::Welcome(_)));
            loop {
                match decoded(encoding, &raw.receive().expect("an answer")) {
                    ServerFrame::Error(error) => break assert_eq!(error.code, ErrorCode::NoSuchChat),
                    ServerFrame::Truncated(_) | ServerFrame::Mark(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    others.ends_well();
}

/// Random bytes at every stage: no panic, no hang, no harm to others.
#[test]
fn noise_is_survived() {
    let mut others = Bystander::new(Settings::new());
    let addr = others.server.listen.addr;
    for round in 0..40 {
        let noise: Vec<u8> = (0..64).flat_map(|_| random().to_le_bytes()).collect();
        let mut raw = match round % 4 {
            0 => Raw::connect(addr),
            1 => Raw::upgraded(addr, JSON),
            2 => seated(&others.server, JSON),
            _ => seated(&others.server, RKYV),
        };
        raw.send(&noise);
        // A well-formed frame around noise goes further in.
        raw.send(&frame(if round % 4 == 3 { BINARY } else { TEXT }, &noise));
        drop(raw);
    }
    others.talks();
    others.ends_well();
}

/// A lobby has so many places; who holds them does not lock others out for ever.
#[test]
fn idle_strangers_do_not_lock_others_out() {
    let settings = Settings::new().gateway("lobby.connections_max", 8).gateway("lobby.handshake_timeout_ms", 1_000);
    let others = Bystander::new(settings);
    let addr = others.server.listen.addr;
    let strangers: Vec<Raw> = (0..64).map(|_| Raw::connect(addr)).collect();
    crate::common::poll("the strangers' time to pass", || {
        let mut late = Device::new(&others.server.target(), "late", JSON);
        late.dial().is_ok() && {
            let hello = late.hello(Some(others.server.target().token("late", 60, false)), None);
            late.greet(hello).is_ok()
        }
    });
    drop(strangers);
    others.ends_well();
}
