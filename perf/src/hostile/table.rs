//! The attacks: a row each, with its name, what it is in words, how its rate is counted, what is sent and what the
//! server answers. How it is sent is next door. Exact answers in many variants are the integration tests' table, not
//! this one.

use super::cast::{Cast, MALLORY, MASK};
use super::client::{Client, now_unix_s};
use crate::tokens::{claims, unsigned};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use parley_protocol::frame::{ChatRef, DeviceEnd, History, Members, Mute, Ping, Position, Send};
use parley_protocol::wire::Encoding;
use parley_protocol::{Body, ClientFrame, ClientMsgId, DeviceId, ErrorCode, MessageBody};
use serde_json::{Value, json};
use sha2::Sha256;

/// First bytes of frames: with FIN, without, and what goes on.
const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const TEXT_PART: u8 = 0x01;
const NEXT_PART: u8 = 0x00;
const LAST_PART: u8 = 0x80;
const PING_PART: u8 = 0x09;
const RSV1: u8 = 0x40;
const RESERVED: u8 = 0x83;
/// Above what one message may have.
const EMPTY_FRAGMENTS: usize = 1_500;
const HEADER_BYTES: usize = 1 << 20;
const HEADERS: usize = 2_000;

/// How far an attacker comes before it attacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    Connected,
    Upgraded(Encoding),
    Seated,
    /// Seated by a token that expires within two seconds.
    SeatedForNow,
}

/// What an attacker gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// An HTTP status, and the end of the connection.
    Status(u16),
    /// A close code, and the end of the connection.
    Close(u16),
}

type Bytes = fn(&Cast) -> Vec<u8>;

/// How an attack goes.
#[derive(Clone, Copy)]
pub(crate) enum Act {
    /// Connects, and resets the connection.
    Reset,
    /// A connection each: says this once, and is refused at once.
    Once(Opening, Bytes, Answer),
    /// Connections held until their time is over, with one byte of this a second, if any.
    Held(Opening, Bytes, Answer),
    /// Sessions that ask for all of this over and over, and get this error for each.
    Ask(fn(&Cast) -> Vec<ClientFrame>, ErrorCode),
    /// Sessions that send pings and read no pong, until they are closed as stalled readers.
    Pings,
    /// Sessions that read nothing of what is sent to their user, until they are closed as stalled readers.
    NeverReading,
}

/// What is counted, and so which of the strengths applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Connections,
    Sessions,
    Heavy,
    Requests,
    Pings,
    Messages,
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connections | Self::Heavy => "connections",
            Self::Sessions => "sessions",
            Self::Requests => "requests",
            Self::Pings => "pings",
            Self::Messages => "messages",
        }
    }
}

/// One attack.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) unit: Unit,
    pub(crate) act: Act,
}

const fn row(name: &'static str, what: &'static str, unit: Unit, act: Act) -> Row {
    Row { name, what, unit, act }
}

/// A connection that sends this as its upgrade.
const fn head(name: &'static str, what: &'static str, bytes: Bytes, status: u16) -> Row {
    row(name, what, Unit::Connections, Act::Once(Opening::Connected, bytes, Answer::Status(status)))
}

/// A connection that upgrades (to JSON) and sends this.
const fn broken(name: &'static str, what: &'static str, bytes: Bytes, code: u16) -> Row {
    row(name, what, Unit::Connections, Act::Once(Opening::Upgraded(Encoding::Json), bytes, Answer::Close(code)))
}

/// A connection that upgrades (to rkyv) and sends this.
const fn login(name: &'static str, what: &'static str, bytes: Bytes, code: u16) -> Row {
    row(name, what, Unit::Connections, Act::Once(Opening::Upgraded(Encoding::Rkyv), bytes, Answer::Close(code)))
}

const fn ask(name: &'static str, what: &'static str, frames: fn(&Cast) -> Vec<ClientFrame>, code: ErrorCode) -> Row {
    row(name, what, Unit::Requests, Act::Ask(frames, code))
}

const fn heavy(row: Row) -> Row {
    Row { unit: Unit::Heavy, ..row }
}

const JSON: Opening = Opening::Upgraded(Encoding::Json);

/// All attacks.
pub(crate) const ROWS: &[Row] = &[
    broken("unmasked-frame", "frames without a mask", |_| vec![TEXT, 2, b'{', b'}'], 1002),
    broken("rsv-bits", "frames with a reserved bit", |_| frame(TEXT | RSV1, b"{}"), 1002),
    broken("reserved-opcode", "frames with a reserved opcode", |_| frame(RESERVED, b""), 1002),
    broken("long-ping", "pings of 126 bytes", |_| frame(PING, &[0; 126]), 1002),
    broken("fragmented-control", "fragmented pings", |_| frame(PING_PART, b""), 1002),
    broken("stray-continuation", "continuations of nothing", |_| frame(LAST_PART, b"{}"), 1002),
    broken("text-inside-message", "text inside a fragmented message", text_inside, 1002),
    broken("bad-utf8-fragment", "invalid UTF-8 in a message without an end", |_| frame(TEXT_PART, &[b'"', 0xff]), 1007),
    broken("close-1-byte", "closes with a body of 1 byte", |_| frame(CLOSE, &[3]), 1002),
    broken("close-bad-code", "closes with a code that is none", |_| frame(CLOSE, &999_u16.to_be_bytes()), 1002),
    broken("close-bad-utf8", "closes with a reason that is not UTF-8", |_| frame(CLOSE, &[3, 0xe8, 0xff]), 1007),
    broken("length-1-tib", "a declared length of 1 TiB", |_| declared(1 << 40), 1009),
    broken("length-top-bit", "a length with the top bit", |_| declared(1 << 63), 1002),
    broken("length-not-minimal", "16 bits of length for 5 bytes", not_minimal, 1002),
    heavy(broken("empty-fragments", "empty fragments without end", empty_fragments, 1002)),
    row("ping-flood", "a flood of pings whose pongs nobody reads", Unit::Pings, Act::Pings),
    row("never-reading", "clients that never read", Unit::Messages, Act::NeverReading),
    row(
        "slow-handshake",
        "handshakes at 1 byte a second",
        Unit::Connections,
        Act::Held(Opening::Connected, |cast| good_head(cast).into_bytes(), Answer::Status(408)),
    ),
    heavy(head("headers-1-mb", "1 MB of headers each", |cast| with(cast, &one_header()), 431)),
    heavy(head("headers-2000", "2,000 headers each", |cast| with(cast, &many_headers()), 431)),
    head("wrong-version", "upgrades to another version", |cast| replaced(cast, "Version: 13", "Version: 8"), 426),
    head("short-key", "upgrades with a short key", short_key, 400),
    head("foreign-origin", "a foreign Origin", |cast| with(cast, "Origin: https://evil.example"), 403),
    head("null-origin", "a null Origin", |cast| with(cast, "Origin: null"), 403),
    head("suffix-origin", "an allowed Origin with a suffix", suffix_origin, 403),
    login("token-alg-none", "tokens with alg: none", |cast| cast.hello_with(alg_none(cast)), 4010),
    login("token-hmac", "tokens with the public key as HMAC secret", |cast| cast.hello_with(public_hmac(cast)), 4010),
    login("token-kid-path", "tokens with a path in kid", |cast| cast.hello_with(kid_path(cast)), 4010),
    login("token-other-issuer", "another issuer's tokens", |cast| cast.hello_with(other_issuer(cast)), 4010),
    login("token-bad-signature", "tokens with a wrong signature", |cast| cast.hello_with(bad_signature(cast)), 4010),
    row(
        "token-expires",
        "tokens that expire mid-session",
        Unit::Sessions,
        Act::Held(Opening::SeatedForNow, |_| Vec::new(), Answer::Close(4011)),
    ),
    login("early-frame", "a frame before Hello", |cast| framed(cast, &ClientFrame::Ping(Ping { nonce: 1 })), 1008),
    row("no-hello", "no Hello", Unit::Connections, Act::Held(JSON, |_| Vec::new(), Answer::Close(4010))),
    row(
        "second-hello",
        "a second Hello",
        Unit::Sessions,
        Act::Once(Opening::Seated, |cast| cast.hello_with(cast.token(MALLORY)), Answer::Close(1008)),
    ),
    ask("other-chats", "other people's chats", others_chat, ErrorCode::NoSuchChat),
    ask("other-history", "history positions of other people's chats", others_history, ErrorCode::NoSuchChat),
    ask("other-ids", "other people's device ids", others_devices, ErrorCode::Forbidden),
    login("forged-ticket", "forged resume tickets", |cast| cast.hello_again(&cast.tickets.forged), 4010),
    login("expired-ticket", "expired resume tickets", |cast| cast.hello_again(&cast.tickets.expired), 4010),
    row("connects", "a flood of connects that are reset", Unit::Connections, Act::Reset),
];

// --- frames

/// A short masked frame with any first byte.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = match payload.len() {
        len @ 0..=125 => vec![first, 0x80 | len as u8],
        len => vec![first, 0x80 | 126, (len >> 8) as u8, len as u8],
    };
    bytes.extend_from_slice(&MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// A frame that only says how long it will be.
fn declared(length: u64) -> Vec<u8> {
    let mut bytes = vec![TEXT, 0x80 | 127];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&MASK);
    bytes
}

fn text_inside(_: &Cast) -> Vec<u8> {
    [frame(TEXT_PART, b"{"), frame(TEXT, b"}")].concat()
}

fn not_minimal(_: &Cast) -> Vec<u8> {
    [&[TEXT, 0x80 | 126, 0, 5, 0, 0, 0, 0][..], b"12345"].concat()
}

fn empty_fragments(_: &Cast) -> Vec<u8> {
    [frame(TEXT_PART, b""), frame(NEXT_PART, b"").repeat(EMPTY_FRAGMENTS)].concat()
}

fn framed(cast: &Cast, frame: &ClientFrame) -> Vec<u8> {
    let mut out = Vec::new();
    cast.encoder.frame(frame, &mut out);
    out
}

// --- heads

fn good_head(cast: &Cast) -> String {
    Client::upgrade_request(&cast.url, Encoding::Json)
}

fn with(cast: &Cast, header: &str) -> Vec<u8> {
    good_head(cast).replace("\r\n\r\n", &format!("\r\n{header}\r\n\r\n")).into_bytes()
}

fn replaced(cast: &Cast, from: &str, to: &str) -> Vec<u8> {
    good_head(cast).replace(from, to).into_bytes()
}

fn one_header() -> String {
    format!("X-Long: {}", "v".repeat(HEADER_BYTES))
}

fn many_headers() -> String {
    (0..HEADERS).map(|index| format!("X-{index}: v")).collect::<Vec<_>>().join("\r\n")
}

fn short_key(cast: &Cast) -> Vec<u8> {
    let head = good_head(cast);
    let lines = head.split("\r\n").map(|line| match line.split_once("Sec-WebSocket-Key: ") {
        Some(_) => "Sec-WebSocket-Key: c2hvcnQ=",
        None => line,
    });
    lines.collect::<Vec<_>>().join("\r\n").into_bytes()
}

fn suffix_origin(cast: &Cast) -> Vec<u8> {
    with(cast, &format!("Origin: {}.evil.example", super::preset::ORIGIN))
}

// --- tokens

fn good_claims() -> Value {
    claims(MALLORY, now_unix_s() + 24 * 3_600)
}

fn alg_none(_: &Cast) -> String {
    format!("{}.", unsigned(&json!({"alg": "none"}), &good_claims()))
}

fn public_hmac(cast: &Cast) -> String {
    let header = json!({"alg": "HS256", "typ": "JWT", "kid": cast.tokens.header()["kid"]});
    let signed = unsigned(&header, &good_claims());
    let mut mac = Hmac::<Sha256>::new_from_slice(&cast.tokens.public()).expect("HMAC takes keys of any length");
    mac.update(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

fn kid_path(cast: &Cast) -> String {
    cast.tokens.signed(&json!({"alg": "EdDSA", "kid": "../../../../dev/null"}), &good_claims())
}

fn other_issuer(cast: &Cast) -> String {
    let mut claims = good_claims();
    claims["iss"] = json!("https://other.example");
    cast.tokens.signed(cast.tokens.header(), &claims)
}

fn bad_signature(cast: &Cast) -> String {
    let good = cast.token(MALLORY);
    let cut = good.rfind('.').map_or(0, |dot| dot + 1);
    format!("{}{}", &good[..cut], "A".repeat(good.len() - cut))
}

// --- what belongs to others

fn others_chat(cast: &Cast) -> Vec<ClientFrame> {
    let chat_id = cast.chat;
    let body =
        Body::Message(MessageBody { content_type: "text/plain".to_owned(), payload: vec![b'?'], ..Default::default() });
    let at = Position { chat_id, seq: 1 };
    vec![
        ClientFrame::Send(Send { chat_id, client_msg_id: ClientMsgId(1), envelope: body.to_envelope() }),
        ClientFrame::Delivered(at),
        ClientFrame::Read(at),
        ClientFrame::Mute(Mute { chat_id, until_ms: 1 }),
        ClientFrame::Subscribe(ChatRef { chat_id }),
        ClientFrame::Members(Members { request_id: 1, chat_id, after: None, limit: 0 }),
    ]
}

fn others_history(cast: &Cast) -> Vec<ClientFrame> {
    let positions = [(None, None), (None, Some(0)), (Some(2), None), (None, Some(1 << 50)), (Some(1 << 50), None)];
    let history = |(request_id, (before, after))| {
        ClientFrame::History(History { request_id, chat_id: cast.chat, before, after, limit: 1 })
    };
    (1..).zip(positions).map(history).collect()
}

fn others_devices(cast: &Cast) -> Vec<ClientFrame> {
    let end = |device_id| ClientFrame::DeviceEnd(DeviceEnd { device_id });
    [cast.device_of_others, DeviceId(1), DeviceId(u128::MAX)].map(end).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_row_has_a_name_and_words_of_its_own() {
        let names: BTreeSet<&str> = ROWS.iter().map(|row| row.name).collect();
        let words: BTreeSet<&str> = ROWS.iter().map(|row| row.what).collect();
        assert_eq!((names.len(), words.len()), (ROWS.len(), ROWS.len()));
    }

    #[test]
    fn a_frame_carries_what_it_says_in_either_form_of_length() {
        for len in [0, 125, 126, 300] {
            let payload = vec![7; len];
            let bytes = frame(0x82, &payload);
            let mut expected = Vec::new();
            crate::net::frame::write_frame(crate::net::frame::Op::Binary, MASK, &payload, &mut expected);
            assert_eq!(bytes, expected, "{len} bytes");
        }
    }
}
