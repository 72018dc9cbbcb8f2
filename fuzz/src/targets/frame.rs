//! The WebSocket decoder, whole and cut anywhere, against tungstenite as a server with the same limits: the same
//! messages up to the first error, and an error where tungstenite has one. Deliberate differences stand in
//! `stricter`. An input is one byte that chooses limit and cuts, then what a client sends after the handshake.

use crate::mutate::Random;
use crate::{Target, Verdict};
use gateway_core::ws::{Decoder, Event, FrameError};
use tungstenite::error::ProtocolError;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};

/// See [`crate::TARGETS`].
pub const TARGET: Target = Target {
    name: "frame",
    about: "the frame decoder, against tungstenite",
    run,
    input_bytes_max: 4_096,
    dictionary: &[
        b"\x81\x81\0\0\0\0a",
        b"\x82\x80\0\0\0\0",
        b"\x01\x81\0\0\0\0\xc3",
        b"\x80\x81\0\0\0\0\xa9",
        b"\x00\x80\0\0\0\0",
        b"\x89\x84\0\0\0\0ping",
        b"\x8a\x80\0\0\0\0",
        b"\x88\x82\0\0\0\0\x03\xe8",
        b"\x88\x80\0\0\0\0",
        b"\xfe\x00\x7e",
        b"\xfe\x00\x7d",
        b"\xff\0\0\0\0\0\x01\0\0",
        b"\xff\x80\0\0\0\0\0\0\0",
        b"\xff\0\0\x01\0\0\0\0\0",
        b"\xf0\x9f\x98\x80",
        b"\xed\xa0\x80",
        b"\xc0\xaf",
    ],
    golden: &[],
};

/// Not below 125: control frames have a limit of their own.
const LIMITS: [u32; 4] = [125, 126, 1_000, 70_000];

/// An event that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owned {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

/// How a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Everything was read, and more could come.
    Open,
    Closed,
    Error(FrameError),
}

fn run(data: &[u8]) -> Verdict {
    let Some((choice, stream)) = data.split_first() else { return Verdict::Refused };
    let limit = LIMITS[usize::from(choice & 3)];
    let mut cuts = Random::new(u64::from(choice >> 2));
    let whole = decode(stream, limit, || usize::MAX);
    assert_eq!(whole, decode(stream, limit, || 1), "byte by byte");
    assert_eq!(whole, decode(stream, limit, || 1 + cuts.below(40)), "in pieces");
    compare(stream, limit, &whole.0, whole.1);
    (!whole.0.is_empty()).into()
}

fn own(event: Event<'_>) -> Owned {
    match event {
        Event::Text(text) => Owned::Text(text.to_owned()),
        Event::Binary(bytes) => Owned::Binary(bytes.to_vec()),
        Event::Ping(bytes) => Owned::Ping(bytes.to_vec()),
        Event::Pong(bytes) => Owned::Pong(bytes.to_vec()),
        Event::Close { code, reason } => Owned::Close(code, reason.to_owned()),
    }
}

/// Decodes a stream that comes in pieces of these sizes, and watches what the decoder keeps.
fn decode(stream: &[u8], limit: u32, mut size: impl FnMut() -> usize) -> (Vec<Owned>, End) {
    let mut decoder = Decoder::new(limit);
    let (mut events, mut rest, mut came) = (Vec::new(), stream, 0);
    while !rest.is_empty() {
        let (piece, more) = rest.split_at(size().min(rest.len()));
        (rest, came) = (more, came + piece.len());
        let (mut piece, mut at) = (piece.to_vec(), 0);
        loop {
            let before = at;
            let next = decoder.next(&mut piece, &mut at).map(|event| event.map(own));
            assert!(before <= at && at <= piece.len(), "a position inside the piece");
            match next {
                Ok(None) => break,
                Ok(Some(event)) => events.push(event),
                Err(error) => return (events, End::Error(error)),
            }
            if matches!(events.last(), Some(Owned::Close(..))) {
                return (events, End::Closed);
            }
        }
        assert_eq!(at, piece.len(), "a piece is used up");
        // A growing Vec doubles, so it holds at most twice of what lies in it.
        let kept = decoder.pending_bytes();
        assert!(kept <= 64.max(2 * limit as usize), "{kept} bytes kept under a limit of {limit}");
        assert!(kept <= 64.max(2 * came), "{kept} bytes kept of {came} that came");
    }
    (events, End::Open)
}

/// Violations of RFC 6455, or of a bound of ours, that tungstenite 0.30 lets pass:
/// lengths in more bytes than they need; any number of empty fragments; a close code that must not be on the wire, which
/// it hands out as 1002.
fn stricter(error: FrameError) -> bool {
    matches!(error, FrameError::LengthNotMinimal | FrameError::EmptyFragments | FrameError::CloseCode)
}

fn compare(stream: &[u8], limit: u32, events: &[Owned], end: End) {
    let (mut theirs, mut their_end) = tungstenite(stream, limit);
    let End::Error(error) = end else {
        assert_eq!(theirs, events);
        assert_eq!(their_end, if end == End::Closed { TheirEnd::Closed } else { TheirEnd::Truncated });
        return;
    };
    assert!(theirs.starts_with(events), "{theirs:?} against {events:?} up to {error:?}");
    check_code(error);
    if stricter(error) {
        return;
    }
    // A head is judged before its payload, and text before the end of its frame; tungstenite judges whole frames. So
    // the frame is completed for it.
    if their_end == TheirEnd::Truncated {
        let completed = [stream, &vec![0; 14 + limit as usize]].concat();
        (theirs, their_end) = tungstenite(&completed, limit);
    }
    // A control frame within 125 bytes whose length takes more bytes than it needs has this name too.
    let control = |next: &Owned| matches!(next, Owned::Ping(_) | Owned::Pong(_) | Owned::Close(..));
    if error == FrameError::ControlTooLong && theirs.get(events.len()).is_some_and(control) {
        return;
    }
    assert_eq!(theirs, events, "tungstenite reads on after {error:?}");
    assert_eq!(their_end, TheirEnd::Error, "{error:?}");
}

/// RFC 6455, section 7.4.1.
fn check_code(error: FrameError) {
    let code = match error {
        FrameError::NotUtf8 => 1007,
        FrameError::MessageTooBig => 1009,
        _ => 1002,
    };
    assert_eq!(error.close_code(), code, "{error:?}");
    assert!((1..=123).contains(&error.reason().len()), "a reason fits a close frame");
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TheirEnd {
    Closed,
    Truncated,
    Error,
}

/// What tungstenite makes of the same stream.
fn tungstenite(stream: &[u8], limit: u32) -> (Vec<Owned>, TheirEnd) {
    let limit = Some(limit as usize);
    let config = WebSocketConfig::default().max_message_size(limit).max_frame_size(limit).read_buffer_size(8 << 10);
    let mut socket = WebSocket::from_raw_socket(Input(stream), Role::Server, Some(config));
    let mut events = Vec::new();
    loop {
        events.push(match socket.read() {
            Ok(Message::Text(text)) => Owned::Text(text.to_string()),
            Ok(Message::Binary(bytes)) => Owned::Binary(bytes.to_vec()),
            Ok(Message::Ping(bytes)) => Owned::Ping(bytes.to_vec()),
            Ok(Message::Pong(bytes)) => Owned::Pong(bytes.to_vec()),
            Ok(Message::Close(close)) => {
                let (code, reason) =
                    close.map_or((None, String::new()), |close| (Some(close.code.into()), close.reason.to_string()));
                events.push(Owned::Close(code, reason));
                return (events, TheirEnd::Closed);
            }
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => return (events, TheirEnd::Truncated),
            Ok(Message::Frame(_)) | Err(_) => return (events, TheirEnd::Error),
        });
    }
}

/// A socket that sends a stream, and takes every answer.
struct Input<'a>(&'a [u8]);

impl std::io::Read for Input<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(into)
    }
}

impl std::io::Write for Input<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
