//! The HTTP head that opens a WebSocket, whole and cut anywhere, against a naive reading of RFC 6455, section 4.2.1, and
//! against tungstenite's server handshake. An input is what a client sends first.

use crate::{Target, Verdict};
use gateway_core::http::{HEADERS_MAX, Limits, Reject, Request, Upgrade, parse_upgrade, write_accept, write_reject};
use tungstenite::handshake::derive_accept_key;
use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server::{Request as TheirRequest, create_response};

/// See [`crate::TARGETS`].
pub const TARGET: Target = Target {
    name: "upgrade",
    about: "the HTTP head of an upgrade",
    run,
    input_bytes_max: 6_000,
    dictionary: &[
        b"\r\n",
        b"\r\n\r\n",
        b"GET /ws HTTP/1.1\r\n",
        b"HTTP/1.0",
        b"http://",
        b"Host: h\r\n",
        b"Origin: null\r\n",
        b"Upgrade: websocket\r\n",
        b"Connection: Upgrade\r\n",
        b"Connection: keep-alive, Upgrade\r\n",
        b"Sec-WebSocket-Version: 13\r\n",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        b"Sec-WebSocket-Protocol: parley.v1.json\r\n",
        b"Authorization: Bearer x\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 0\r\n",
        b"\xc2\xa0",
        b"\xe3\x80\x80",
        b"\t",
        b" ,",
    ],
    golden: &[],
};

/// A gateway's and the echo server's.
const LIMITS: [Limits<'static>; 2] = [
    Limits { head_bytes_max: 2_048, headers_max: HEADERS_MAX, path: Some("/ws") },
    Limits { head_bytes_max: 16 << 10, headers_max: 16, path: None },
];

/// Lengths at which an input is cut, at most.
const CUTS_MAX: usize = 64;

fn run(data: &[u8]) -> Verdict {
    let mut taken = false;
    for limits in &LIMITS {
        let whole = Outcome::of(&parse_upgrade(data, limits));
        check_cuts(data, limits, &whole);
        match parse_upgrade(data, limits) {
            Upgrade::Incomplete => assert!(data.len() < limits.head_bytes_max, "waits for more than it will take"),
            Upgrade::Request(request) => {
                taken = true;
                check_request(data, limits, &request);
            }
            Upgrade::Reject(reject) => check_reject(data, reject),
        }
    }
    taken.into()
}

/// An answer without its borrows.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Incomplete,
    Request(String),
    Reject(Reject),
}

impl Outcome {
    fn of(upgrade: &Upgrade<'_>) -> Self {
        match upgrade {
            Upgrade::Incomplete => Self::Incomplete,
            // Its Debug form names every field.
            Upgrade::Request(request) => Self::Request(format!("{request:?}")),
            Upgrade::Reject(reject) => Self::Reject(*reject),
        }
    }
}

/// A prefix is incomplete, or is answered as the whole: how the network cuts a head changes nothing.
fn check_cuts(data: &[u8], limits: &Limits<'_>, whole: &Outcome) {
    let step = data.len().div_ceil(CUTS_MAX).max(1);
    // Every cut of a short input; of a long one those around its end and evenly spread ones.
    for cut in (0..data.len()).step_by(step).chain(data.len().saturating_sub(8)..data.len()) {
        let prefix = Outcome::of(&parse_upgrade(&data[..cut], limits));
        assert!(prefix == Outcome::Incomplete || prefix == *whole, "cut at {cut}: {prefix:?}, whole: {whole:?}");
    }
}

/// The fields of a head as RFC 9110 cuts them: name, and value without the blanks around it.
fn fields(head: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    // Empty lines before the request line are passed over (RFC 9112, section 2.2).
    let _request_line = lines.find(|line| !line.is_empty());
    let fields = lines.filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let blank = |byte: &u8| *byte == b' ' || *byte == b'\t';
        let value = &line[colon + 1..];
        let start = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
        let end = value.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
        Some((String::from_utf8_lossy(&line[..colon]).to_ascii_lowercase(), value[start..end].to_vec()))
    });
    fields.collect()
}

fn values<'a>(fields: &'a [(String, Vec<u8>)], name: &str) -> Vec<&'a [u8]> {
    fields.iter().filter(|(found, _)| found == name).map(|(_, value)| &value[..]).collect()
}

/// Whether one of the values is a list with this member (RFC 9110, section 5.6.1).
fn lists(values: &[&[u8]], member: &[u8]) -> bool {
    let mut parts = values.iter().flat_map(|value| value.split(|byte| *byte == b','));
    parts.any(|part| part.trim_ascii().eq_ignore_ascii_case(member))
}

fn check_request(data: &[u8], limits: &Limits<'_>, request: &Request<'_>) {
    assert!(request.consumed <= data.len() && request.consumed <= limits.head_bytes_max, "consumes what is there");
    let head = &data[..request.consumed];
    assert!(head.ends_with(b"\n\r\n") || head.ends_with(b"\n\n"), "a head ends with an empty line");
    let line = head.split(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
    assert!(line.starts_with(b"GET ") && line.trim_ascii_end().ends_with(b" HTTP/1.1"), "the request line");
    assert!(limits.path.is_none_or(|path| path == request.path) && request.path.starts_with('/'), "another path");

    let fields = fields(head);
    assert!(fields.len() <= limits.headers_max, "{} headers", fields.len());
    assert_eq!(values(&fields, "host"), [request.host.as_bytes()], "Host, once");
    assert_eq!(values(&fields, "sec-websocket-key"), [&request.key[..]], "the key, once");
    assert_eq!(values(&fields, "sec-websocket-version"), [b"13"], "the version, once");
    assert!(lists(&values(&fields, "upgrade"), b"websocket"), "Upgrade");
    assert!(lists(&values(&fields, "connection"), b"upgrade"), "Connection");
    for (name, shown) in [("origin", request.origin), ("authorization", request.authorization)] {
        assert_eq!(values(&fields, name), shown.iter().map(|text| text.as_bytes()).collect::<Vec<_>>(), "{name}");
    }
    assert!(values(&fields, "transfer-encoding").is_empty(), "no body");
    assert!(values(&fields, "content-length").iter().all(|length| *length == b"0"), "no body");
    assert!(request.protocols().all(|name| !name.is_empty() && !name.contains(',')), "subprotocols are names");

    let mut answer = Vec::new();
    write_accept(&mut answer, &request.key, request.protocols().next());
    let accept = derive_accept_key(&request.key);
    check_answer(&answer, 101, &[("sec-websocket-accept", accept.as_bytes()), ("upgrade", b"websocket")]);
    // tungstenite is stricter in places where the RFC is not; none of them changes who may come in.
    if !tungstenite_is_stricter(head, &fields) {
        assert_eq!(tungstenite(head), Some(head.len()), "tungstenite refuses it");
    }
}

/// What tungstenite makes of a head: its length if it would answer 101.
fn tungstenite(head: &[u8]) -> Option<usize> {
    let (length, request) = TheirRequest::try_parse(head).ok()??;
    create_response(&request).ok().map(|_| length)
}

/// Where tungstenite refuses what RFC 6455 allows, or what has no meaning here: a target that is no URI of the `http`
/// crate; Upgrade and Connection in several headers, or Upgrade with several members, of which it reads the first; bytes
/// that are not ASCII in headers that nobody reads; a key whose last letter has spare bits set.
fn tungstenite_is_stricter(head: &[u8], fields: &[(String, Vec<u8>)]) -> bool {
    let line = head.split(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/?=&.-_ \r".contains(byte);
    let ascii = |value: &[u8]| value.iter().all(|byte| (0x20..0x7f).contains(byte) || *byte == b'\t');
    !line.iter().all(plain)
        || ["upgrade", "connection"].iter().any(|name| values(fields, name).len() > 1)
        || values(fields, "upgrade").iter().any(|value| !value.eq_ignore_ascii_case(b"websocket"))
        || values(fields, "connection").iter().any(|value| value.contains(&b'\t'))
        || fields.iter().any(|(_, value)| !ascii(value))
        || values(fields, "sec-websocket-key").iter().any(|key| !matches!(key.get(21), Some(b'A' | b'Q' | b'g' | b'w')))
}

fn check_reject(data: &[u8], reject: Reject) {
    assert!([400, 404, 405, 426, 431, 505].contains(&reject.status), "{}", reject.status);
    assert!(!reject.reason.is_empty() && reject.reason.is_ascii());
    let mut answer = Vec::new();
    write_reject(&mut answer, reject.status, reject.reason);
    check_answer(&answer, reject.status, &[]);
    // Nothing that tungstenite opens is told to ask for an upgrade, to use GET or to use another HTTP.
    if let Some(length) = tungstenite(data) {
        let connection = values(&fields(&data[..length]), "connection").concat();
        // It takes blanks for commas in Connection.
        let blanks_for_commas = connection.contains(&b' ');
        let fitting = [400, 404, 431].contains(&reject.status) || (reject.status == 426 && blanks_for_commas);
        assert!(fitting || values(&fields(&data[..length]), "sec-websocket-version").len() > 1, "{reject:?}");
    }
}

/// The answer is HTTP that another parser reads, and its length is that of its body.
fn check_answer(answer: &[u8], status: u16, must: &[(&str, &[u8])]) {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(answer).expect("an HTTP response");
    let httparse::Status::Complete(consumed) = parsed else { panic!("an incomplete response") };
    assert_eq!(response.code, Some(status));
    let find = |name: &str| response.headers.iter().find(|found| found.name.eq_ignore_ascii_case(name));
    for (name, value) in must {
        assert_eq!(find(name).map(|found| found.value), Some(*value), "{name}");
    }
    let length = find("content-length").map_or(0, |found| String::from_utf8_lossy(found.value).parse().unwrap_or(0));
    assert_eq!(answer.len(), consumed + length, "the body is as long as it says");
}
