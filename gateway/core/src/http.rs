//! The HTTP/1.1 head that opens a WebSocket (RFC 6455, section 4.2), sans-IO: parse, accept, reject. Who may come in
//! (Origin, tokens) is decided elsewhere.

use crate::stats::Reason;
use tungstenite::handshake::derive_accept_key;

/// Headers that one head may have.
pub const HEADERS_MAX: usize = 64;
/// `Sec-WebSocket-Protocol` headers that one head may have; each may list several.
const PROTOCOL_HEADERS_MAX: usize = 4;
/// A key: 16 bytes in base64.
const KEY_BYTES: usize = 24;

/// Bounds and the address of the one resource.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// Bytes of the whole head.
    pub head_bytes_max: usize,
    /// Headers, at most [`HEADERS_MAX`].
    pub headers_max: usize,
    /// The only path that is served; `None` serves all.
    pub path: Option<&'a str>,
}

/// What the bytes so far mean.
#[derive(Debug)]
pub enum Upgrade<'a> {
    /// Call again with more bytes (the same ones and what follows).
    Incomplete,
    /// A well-formed request for a WebSocket.
    Request(Request<'a>),
    /// Answer with [`write_reject`] and close.
    Reject(Reject),
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    /// The HTTP status.
    pub status: u16,
    /// What the client should do about it.
    pub reason: &'static str,
}

impl Reject {
    /// How it is counted: each status stands for one kind of refusal.
    pub fn cause(&self) -> Reason {
        match self.status {
            401 => Reason::Authorization,
            403 => Reason::Origin,
            404 => Reason::Path,
            405 => Reason::Method,
            408 => Reason::HeadSlow,
            426 => Reason::UpgradeVersion,
            431 => Reason::HeadTooLarge,
            505 => Reason::HttpVersion,
            _ => Reason::BadUpgrade,
        }
    }
}

/// A request to upgrade, borrowed from the bytes.
#[derive(Debug)]
pub struct Request<'a> {
    /// Path of the target.
    pub path: &'a str,
    /// What follows its question mark.
    pub query: Option<&'a str>,
    /// `Host`.
    pub host: &'a str,
    /// `Origin`: browsers always send it, others seldom.
    pub origin: Option<&'a str>,
    /// `Authorization`.
    pub authorization: Option<&'a str>,
    /// `Sec-WebSocket-Key`, for [`write_accept`].
    pub key: [u8; KEY_BYTES],
    /// Length of the head; what follows belongs to the WebSocket.
    pub consumed: usize,
    protocols: [&'a str; PROTOCOL_HEADERS_MAX],
}

impl<'a> Request<'a> {
    /// The subprotocols that the client offers, in its order of preference.
    pub fn protocols(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let protocols = self.protocols;
        protocols.into_iter().flat_map(|list| list.split(',')).map(str::trim).filter(|name| !name.is_empty())
    }
}

fn reject<'a>(status: u16, reason: &'static str) -> Upgrade<'a> {
    Upgrade::Reject(Reject { status, reason })
}

/// Parses the head at the start of `bytes`.
pub fn parse_upgrade<'a>(bytes: &'a [u8], limits: &Limits<'_>) -> Upgrade<'a> {
    let mut storage = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut storage[..limits.headers_max.min(HEADERS_MAX)]);
    let head = &bytes[..bytes.len().min(limits.head_bytes_max)];
    let consumed = match request.parse(head) {
        Ok(httparse::Status::Complete(consumed)) => consumed,
        Ok(httparse::Status::Partial) if bytes.len() < limits.head_bytes_max => return Upgrade::Incomplete,
        Ok(httparse::Status::Partial) => return reject(431, "the request head is too big: send fewer headers"),
        Err(httparse::Error::TooManyHeaders) => return reject(431, "too many headers: send fewer"),
        Err(httparse::Error::Version) => return reject(505, "use HTTP/1.1"),
        Err(_) => return reject(400, "this is not an HTTP/1.1 request"),
    };
    if request.version != Some(1) {
        return reject(505, "use HTTP/1.1");
    }
    if request.method != Some("GET") {
        return reject(405, "open a WebSocket with GET");
    }
    let Some((path, query)) = request.path.and_then(target) else {
        return reject(400, "the request target must be a path");
    };
    if limits.path.is_some_and(|served| served != path) {
        return reject(404, "no WebSocket at this path");
    }
    match Headers::collect(request.headers) {
        Ok(headers) => match headers.check() {
            Ok((host, key)) => Upgrade::Request(Request {
                path,
                query,
                host,
                origin: headers.origin,
                authorization: headers.authorization,
                key,
                consumed,
                protocols: headers.protocols,
            }),
            Err(reject) => Upgrade::Reject(reject),
        },
        Err(reject) => Upgrade::Reject(reject),
    }
}

/// Path and query of an origin-form or absolute-form target (RFC 9112, section 3.2).
fn target(target: &str) -> Option<(&str, Option<&str>)> {
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => target,
    };
    if !path.starts_with('/') {
        return None;
    }
    Some(path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query))))
}

/// The headers that matter, each at most once.
#[derive(Default)]
struct Headers<'a> {
    host: Option<&'a str>,
    origin: Option<&'a str>,
    authorization: Option<&'a str>,
    key: Option<&'a str>,
    version: Option<&'a str>,
    upgrade: bool,
    connection: bool,
    protocols: [&'a str; PROTOCOL_HEADERS_MAX],
    protocols_len: usize,
}

const TWICE: Reject = Reject { status: 400, reason: "a header that may come once came twice" };
const NOT_TEXT: Reject = Reject { status: 400, reason: "a header is not visible ASCII" };
const BODY: Reject = Reject { status: 400, reason: "a request for a WebSocket has no body" };

impl<'a> Headers<'a> {
    fn collect(headers: &[httparse::Header<'a>]) -> Result<Self, Reject> {
        let mut found = Self::default();
        for header in headers {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            // Only ASCII: `trim` would take other scripts' blanks off too, and what was sent would not be what is judged.
            let text = || match core::str::from_utf8(header.value) {
                Ok(text) if text.is_ascii() => Ok(text.trim()),
                _ => Err(NOT_TEXT),
            };
            let slot = match () {
                () if is("host") => &mut found.host,
                () if is("origin") => &mut found.origin,
                () if is("authorization") => &mut found.authorization,
                () if is("sec-websocket-key") => &mut found.key,
                () if is("sec-websocket-version") => &mut found.version,
                () if is("upgrade") => {
                    found.upgrade |= lists(text()?, "websocket");
                    continue;
                }
                () if is("connection") => {
                    found.connection |= lists(text()?, "upgrade");
                    continue;
                }
                () if is("sec-websocket-protocol") => {
                    let slot = found.protocols.get_mut(found.protocols_len).ok_or(TWICE)?;
                    *slot = text()?;
                    found.protocols_len += 1;
                    continue;
                }
                () if is("transfer-encoding") => return Err(BODY),
                () if is("content-length") && text()? != "0" => return Err(BODY),
                () => continue,
            };
            if slot.replace(text()?).is_some() {
                return Err(TWICE);
            }
        }
        Ok(found)
    }

    fn check(&self) -> Result<(&'a str, [u8; KEY_BYTES]), Reject> {
        let bad = |reason| Reject { status: 400, reason };
        if !self.upgrade || !self.connection {
            return Err(Reject { status: 426, reason: "this address speaks WebSocket only: ask for an upgrade" });
        }
        if self.version != Some("13") {
            return Err(Reject { status: 426, reason: "use version 13 of the WebSocket protocol" });
        }
        let host = self.host.ok_or(bad("the Host header is missing"))?;
        let key = self.key.ok_or(bad("the Sec-WebSocket-Key header is missing"))?;
        let key = key_of(key).ok_or(bad("Sec-WebSocket-Key must be 16 bytes in base64"))?;
        Ok((host, key))
    }
}

fn lists(value: &str, token: &str) -> bool {
    value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// Base64 of 16 bytes: 22 letters and two signs of padding.
fn key_of(value: &str) -> Option<[u8; KEY_BYTES]> {
    let key: [u8; KEY_BYTES] = value.as_bytes().try_into().ok()?;
    let letters = key[..22].iter().all(|b| b.is_ascii_alphanumeric() || *b == b'+' || *b == b'/');
    (letters && key[22..] == *b"==").then_some(key)
}

/// Appends the answer that opens the WebSocket, with the subprotocol that was chosen.
pub fn write_accept(out: &mut Vec<u8>, key: &[u8], protocol: Option<&str>) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: ",
    );
    out.extend_from_slice(derive_accept_key(key).as_bytes());
    if let Some(protocol) = protocol {
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(protocol.as_bytes());
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// Appends a refusal in plain text, after which the connection is closed.
pub fn write_reject(out: &mut Vec<u8>, status: u16, reason: &str) {
    let phrase = match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    };
    let extra = match status {
        401 => "WWW-Authenticate: Bearer\r\n",
        405 => "Allow: GET\r\n",
        426 => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
        _ => "",
    };
    let connection = if status == 426 { "Upgrade, close" } else { "close" };
    let bytes = reason.len() + 1;
    out.extend_from_slice(
        format!(
            "HTTP/1.1 {status} {phrase}\r\nConnection: {connection}\r\n{extra}Content-Type: text/plain; \
             charset=utf-8\r\nContent-Length: {bytes}\r\n\r\n{reason}\n"
        )
        .as_bytes(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits<'static> = Limits { head_bytes_max: 1024, headers_max: 16, path: Some("/ws") };
    const GOOD: &str = "GET /ws?v=1 HTTP/1.1\r\nHost: chat.example\r\nUpgrade: WebSocket\r\nConnection: keep-alive, \
                        Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                        Origin: https://chat.example\r\nAuthorization: Bearer abc\r\nSec-WebSocket-Protocol: a, b\r\n\
                        Sec-WebSocket-Protocol: c\r\n\r\n";

    fn rejected(head: &str) -> Reject {
        match parse_upgrade(head.as_bytes(), &LIMITS) {
            Upgrade::Reject(reject) => reject,
            other => panic!("{other:?} for {head}"),
        }
    }

    #[test]
    fn reads_what_a_client_asks_for() {
        let bytes = format!("{GOOD}\u{1}");
        let Upgrade::Request(request) = parse_upgrade(bytes.as_bytes(), &LIMITS) else { panic!("refused") };
        assert_eq!((request.path, request.query), ("/ws", Some("v=1")));
        assert_eq!(request.host, "chat.example");
        assert_eq!(request.origin, Some("https://chat.example"));
        assert_eq!(request.authorization, Some("Bearer abc"));
        assert_eq!(request.protocols().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(&request.key, b"dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(request.consumed, GOOD.len());
    }

    #[test]
    fn every_prefix_is_incomplete() {
        for end in 0..GOOD.len() {
            assert!(matches!(parse_upgrade(&GOOD.as_bytes()[..end], &LIMITS), Upgrade::Incomplete), "{end}");
        }
    }

    #[test]
    fn refuses_with_the_status_that_says_what_to_do() {
        for (from, to, status) in [
            ("GET", "POST", 405),
            ("HTTP/1.1", "HTTP/1.0", 505),
            ("HTTP/1.1", "HTTP/2.0", 505),
            ("GET /ws", "G\u{1}T /ws", 400),
            ("/ws?v=1", "/other", 404),
            ("/ws?v=1", "*", 400),
            ("Upgrade: WebSocket\r\n", "", 426),
            ("keep-alive, Upgrade", "keep-alive", 426),
            ("Version: 13", "Version: 8", 426),
            ("Version: 13", "Version: \u{a0}13\u{3000}", 400),
            ("https://chat.example", "\u{a0}https://chat.example", 400),
            ("Host: chat.example\r\n", "", 400),
            ("Host: chat.example\r\n", "Host: a\r\nHost: b\r\n", 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZQ==", 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "!!!lIHNhbXBsZSBub25jZQ==", 400),
            ("Origin: https://chat.example", "Content-Length: 5", 400),
            ("Origin: https://chat.example", "Transfer-Encoding: chunked", 400),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let reject = rejected(&GOOD.replacen(from, to, 1));
            assert_eq!(reject.status, status, "{to}: {}", reject.reason);
        }
    }

    #[test]
    fn bounds_bytes_and_headers() {
        let many = GOOD.replace("\r\n\r\n", &format!("\r\n{}\r\n", "X: y\r\n".repeat(16)));
        assert_eq!(rejected(&many).status, 431);
        let long = GOOD.replace("chat.example\r\nUp", &format!("{}\r\nUp", "h".repeat(1024)));
        assert_eq!(rejected(&long).status, 431);
        assert_eq!(rejected(&long[..1024]).status, 431);
    }

    #[test]
    fn the_accept_key_is_the_one_of_the_rfc() {
        let mut out = Vec::new();
        write_accept(&mut out, b"dGhlIHNhbXBsZSBub25jZQ==", Some("b"));
        let text = String::from_utf8(out).expect("ASCII");
        assert!(text.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{text}");
        assert!(text.contains("Sec-WebSocket-Protocol: b\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\n"));
    }

    #[test]
    fn a_refusal_closes_and_names_the_version() {
        let mut out = Vec::new();
        write_reject(&mut out, 426, "use version 13");
        let text = String::from_utf8(out).expect("ASCII");
        assert!(text.starts_with("HTTP/1.1 426 Upgrade Required\r\n"), "{text}");
        assert!(text.contains("\r\nSec-WebSocket-Version: 13\r\n") && text.contains("close"), "{text}");
        assert!(text.ends_with("Content-Length: 15\r\n\r\nuse version 13\n"), "{text}");
    }
}
