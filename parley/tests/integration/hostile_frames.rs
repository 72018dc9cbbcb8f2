//! Rows of hostile input: frames that break the WebSocket protocol (RFC 6455), or that no encoding knows. Each comes
//! twice, in one piece before `Hello` and byte by byte in a session.

use crate::common::raw::{Raw, frame};
use crate::common::{JSON, RKYV, Settings};
use crate::hostile::{Answer, Opening, Row, Table};
use parley_protocol::wire::Encoding;

/// First bytes of frames: opcodes with FIN, without FIN, a reserved bit.
const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const RSV1: u8 = 0x40;
const RSV3: u8 = 0x10;
const TEXT_PART: u8 = 0x01;
const NEXT_PART: u8 = 0x00;
const LAST_PART: u8 = 0x80;
/// Above what one message may have.
const EMPTY_FRAGMENTS: usize = 1_500;
/// What is sent byte by byte at the most.
const BYTEWISE_MAX: usize = 300;

/// A frame that only says how long it will be.
fn declared(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![first, 0x80 | 127];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes
}

fn close_of(code: u16) -> Vec<u8> {
    frame(CLOSE, &code.to_be_bytes())
}

type Broken = (&'static str, Encoding, Vec<u8>, u16, &'static str);

/// Frames and the order of frames: name, encoding, bytes, close code, reason.
fn broken_frames() -> Vec<Broken> {
    let not_minimal = [&[TEXT, 0x80 | 126, 0, 5, 0, 0, 0, 0][..], b"12345"].concat();
    let not_minimal_64 = [declared(TEXT, 256), vec![b' '; 256]].concat();
    let then = |first: Vec<u8>, second: Vec<u8>| [first, second].concat();
    let endless = [frame(TEXT_PART, b""), frame(NEXT_PART, b"").repeat(EMPTY_FRAGMENTS)].concat();
    vec![
        ("an unmasked frame", JSON, vec![TEXT, 2, b'{', b'}'], 1002, "unmasked"),
        ("an unmasked control frame", RKYV, vec![PING, 0], 1002, "unmasked"),
        ("RSV1", JSON, frame(TEXT | RSV1, b"{}"), 1002, "reserved_bits"),
        ("RSV3 on a control frame", RKYV, frame(PING | RSV3, b""), 1002, "reserved_bits"),
        ("reserved opcode 3", JSON, frame(0x83, b""), 1002, "reserved_opcode"),
        ("reserved opcode 7", RKYV, frame(0x87, b""), 1002, "reserved_opcode"),
        ("reserved control opcode 11", JSON, frame(0x8b, b""), 1002, "reserved_opcode"),
        ("reserved control opcode 15", RKYV, frame(0x8f, b""), 1002, "reserved_opcode"),
        ("a ping of 126 bytes", JSON, frame(PING, &[0; 126]), 1002, "control_too_long"),
        ("a close of 126 bytes", RKYV, frame(CLOSE, &[3; 126]), 1002, "control_too_long"),
        ("a fragmented ping", JSON, frame(0x09, b""), 1002, "control_fragmented"),
        ("a fragmented close", RKYV, frame(0x08, &[3, 0xe8]), 1002, "control_fragmented"),
        ("a stray continuation", JSON, frame(LAST_PART, b"{}"), 1002, "stray_continuation"),
        ("a stray continuation without an end", RKYV, frame(NEXT_PART, b"{}"), 1002, "stray_continuation"),
        (
            "text inside a fragmented message",
            JSON,
            then(frame(TEXT_PART, b"{"), frame(TEXT, b"}")),
            1002,
            "message_inside_message",
        ),
        ("16 bits of length for 5 bytes", JSON, not_minimal, 1002, "length_not_minimal"),
        ("64 bits of length for 256 bytes", JSON, not_minimal_64, 1002, "length_not_minimal"),
        ("a length with the top bit", RKYV, declared(BINARY, 1 << 63), 1002, "length_top_bit"),
        ("a length of 2^64 - 1", RKYV, declared(BINARY, u64::MAX), 1002, "length_top_bit"),
        ("endless empty fragments", JSON, endless, 1002, "empty_fragments"),
        ("a close with a 1-byte body", JSON, frame(CLOSE, &[3]), 1002, "close_payload"),
        ("close code 999", JSON, close_of(999), 1002, "close_code"),
        ("close code 1005", JSON, close_of(1005), 1002, "close_code"),
        ("close code 1006", RKYV, close_of(1006), 1002, "close_code"),
        ("close code 2999", RKYV, close_of(2999), 1002, "close_code"),
        ("close code 65535", JSON, close_of(65_535), 1002, "close_code"),
        ("a close reason that is not UTF-8", JSON, frame(CLOSE, &[3, 0xe8, 0xff]), 1007, "not_utf8"),
        ("text that is not UTF-8", JSON, frame(TEXT, &[b'{', 0xc3, 0x28, b'}']), 1007, "not_utf8"),
        ("text that ends within a character", JSON, frame(TEXT, &[b'"', 0xe2, 0x82]), 1007, "not_utf8"),
        // These messages have no end: the answer comes at the fragment that is bad.
        ("invalid UTF-8 in the first fragment", JSON, frame(TEXT_PART, &[b'"', 0xff]), 1007, "not_utf8"),
        (
            "a character cut by a fragment and not continued",
            JSON,
            then(frame(TEXT_PART, &[b'"', 0xe2, 0x82]), frame(NEXT_PART, b"x")),
            1007,
            "not_utf8",
        ),
        ("a surrogate in a fragment", JSON, frame(TEXT_PART, &[0xed, 0xa0, 0x80]), 1007, "not_utf8"),
    ]
}

/// Sizes, kinds and contents of messages.
fn broken_messages() -> Vec<Broken> {
    let parts = [frame(TEXT_PART, &[b' '; 40_000]), frame(LAST_PART, &[b' '; 40_000])].concat();
    let text = |text: &str| frame(TEXT, text.as_bytes());
    vec![
        ("a declared length of 1 TiB", RKYV, declared(BINARY, 1 << 40), 1009, "message_too_big"),
        ("a declared length of 1 TiB of text", JSON, declared(TEXT, 1 << 40), 1009, "message_too_big"),
        ("a declared fragment of 1 TiB", JSON, declared(TEXT_PART, 1 << 40), 1009, "message_too_big"),
        ("a declared length of 2^63 - 1", RKYV, declared(BINARY, (1 << 63) - 1), 1009, "message_too_big"),
        ("a message above frame_bytes_max", JSON, declared(TEXT, 1 << 20), 1009, "message_too_big"),
        ("fragments above frame_bytes_max", JSON, parts, 1009, "message_too_big"),
        ("a binary message on JSON", JSON, frame(BINARY, b"{}"), 1003, "message_kind"),
        ("a text message on rkyv", RKYV, frame(TEXT, b"{}"), 1003, "message_kind"),
        ("text that is no JSON", JSON, text("hello?"), 1007, "undecodable"),
        ("an unknown type", JSON, text(r#"{"type":"dance"}"#), 1007, "undecodable"),
        ("an unknown field", JSON, text(r#"{"type":"ping","nonce":1,"loud":true}"#), 1007, "undecodable"),
        ("a field that comes twice", JSON, text(r#"{"type":"ping","nonce":1,"nonce":1}"#), 1007, "undecodable"),
        ("a field that is missing", JSON, text(r#"{"type":"chats"}"#), 1007, "undecodable"),
        ("a number of the wrong form", JSON, text(r#"{"type":"ping","nonce":"1"}"#), 1007, "undecodable"),
        ("an id of the wrong form", JSON, text(r#"{"type":"subscribe","chat_id":"80"}"#), 1007, "undecodable"),
        ("an array", JSON, text(r#"["hello"]"#), 1007, "undecodable"),
        ("JSON 200 deep", JSON, text(&"[".repeat(200)), 1007, "undecodable"),
        ("JSON 30,000 deep", JSON, text(&"[".repeat(30_000)), 1007, "undecodable"),
        ("an empty message", JSON, text(""), 1007, "undecodable"),
        ("bytes that are no archive", RKYV, frame(BINARY, &[0xff; 64]), 1007, "undecodable"),
        ("an empty archive", RKYV, frame(BINARY, b""), 1007, "undecodable"),
    ]
}

fn rows(broken: Vec<Broken>) -> Vec<Row<'static>> {
    let mut rows = Vec::new();
    for (name, encoding, bytes, code, reason) in broken {
        let whole = bytes.clone();
        let before = move |raw: &mut Raw| raw.send(&whole);
        let within = move |raw: &mut Raw| {
            let step = if bytes.len() <= BYTEWISE_MAX { 1 } else { bytes.len() };
            bytes.chunks(step).for_each(|part| raw.send(part));
        };
        let answer = Answer::Close(code);
        rows.push(Row::new(format!("{name}, before Hello"), Opening::Upgraded(encoding), before, answer, reason));
        rows.push(Row::new(format!("{name}, in a session"), Opening::Seated(encoding), within, answer, reason));
    }
    rows
}

#[test]
fn broken_frames_have_their_close_codes() {
    let mut table = Table::new(Settings::new());
    table.run(&rows(broken_frames()));
    table.ends_well();
}

#[test]
fn broken_messages_have_their_close_codes() {
    let mut table = Table::new(Settings::new());
    table.run(&rows(broken_messages()));
    table.ends_well();
}

/// The table can tell good from bad: a close is answered as one, and counted as nothing.
#[test]
fn a_close_is_no_refusal() {
    let mut table = Table::new(Settings::new());
    let attack = |raw: &mut Raw| raw.send(&close_of(1000));
    for opening in [Opening::Upgraded(JSON), Opening::Seated(RKYV)] {
        table.run(&[Row::new("a close", opening, attack, Answer::Close(1000), "").not_counted()]);
    }
    table.ends_well();
}
