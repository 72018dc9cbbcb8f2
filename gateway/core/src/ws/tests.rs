//! The decoder against streams cut anywhere, against tungstenite, and against what a client may not send.

use super::*;
use proptest::prelude::*;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Message, WebSocket};

const MAX: u32 = 1 << 16;

/// An event that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owned {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
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

/// What a decoder makes of a stream in chunks, up to its error or the client's close.
fn decode<'a>(chunks: impl Iterator<Item = &'a [u8]>, max: u32) -> (Vec<Owned>, Option<FrameError>) {
    let mut decoder = Decoder::new(max);
    let mut events = Vec::new();
    for chunk in chunks {
        let mut chunk = chunk.to_vec();
        let mut at = 0;
        loop {
            match decoder.next(&mut chunk, &mut at) {
                Ok(None) => break,
                Ok(Some(event)) => {
                    events.push(own(event));
                    if matches!(events.last(), Some(Owned::Close(..))) {
                        return (events, None);
                    }
                }
                Err(error) => return (events, Some(error)),
            }
        }
        assert_eq!(at, chunk.len(), "a chunk is used up");
    }
    (events, None)
}

/// A client frame, masked, with any first byte.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut out = Vec::new();
    encode_frame(&mut out, Opcode::Binary, payload);
    out[0] = first;
    out[1] |= 0x80;
    let head = out.len() - payload.len();
    out.splice(head..head, mask);
    unmask(&mut out[head + 4..], mask, 0);
    out
}

fn error_of(bytes: &[u8]) -> Option<FrameError> {
    let (whole, bytewise) = (decode([bytes].into_iter(), MAX), decode(bytes.chunks(1), MAX));
    assert_eq!(whole, bytewise, "cutting changes nothing");
    whole.1
}

#[test]
fn violations_have_their_names() {
    let oversized = [&[0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 1][..], &[0; 4]].concat();
    let empty = [frame(0x02, b""), [0x00, 0x80, 1, 2, 3, 4].repeat(usize::from(EMPTY_FRAGMENTS_MAX))].concat();
    let cases: [(&str, Vec<u8>, FrameError); 21] = [
        ("unmasked", vec![0x81, 0x01, b'a'], FrameError::Unmasked),
        ("RSV1", frame(0xc1, b"a"), FrameError::ReservedBits),
        ("RSV3", frame(0x91, b"a"), FrameError::ReservedBits),
        ("opcode 3", frame(0x83, b"a"), FrameError::ReservedOpcode),
        ("opcode 11", frame(0x8b, b"a"), FrameError::ReservedOpcode),
        ("ping of 126", frame(0x89, &[0; 126]), FrameError::ControlTooLong),
        ("ping in parts", frame(0x09, b"a"), FrameError::ControlFragmented),
        ("stray continuation", frame(0x80, b"a"), FrameError::StrayContinuation),
        ("text in text", [frame(0x01, b"a"), frame(0x81, b"b")].concat(), FrameError::MessageInsideMessage),
        ("16 bits for 125", vec![0x82, 0xfe, 0, 125], FrameError::LengthNotMinimal),
        ("64 bits for 65535", [&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff][..]].concat(), FrameError::LengthNotMinimal),
        ("top bit", vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 1, 0, 0], FrameError::LengthTopBit),
        ("declared too big", oversized, FrameError::MessageTooBig),
        (
            "too big in parts",
            [frame(0x02, &[0; 40_000]), frame(0x80, &[0; 40_000])].concat(),
            FrameError::MessageTooBig,
        ),
        ("empty fragments", empty, FrameError::EmptyFragments),
        ("not UTF-8", frame(0x81, b"\xc0\xaf"), FrameError::NotUtf8),
        ("surrogate", frame(0x81, b"\xed\xa0\x80"), FrameError::NotUtf8),
        ("cut character at the end", [frame(0x01, b"a\xc3"), frame(0x80, b"")].concat(), FrameError::NotUtf8),
        ("close of one byte", frame(0x88, b"\x03"), FrameError::ClosePayload),
        ("close 1005", frame(0x88, &1005u16.to_be_bytes()), FrameError::CloseCode),
        ("close reason", frame(0x88, b"\x03\xe8\xff"), FrameError::NotUtf8),
    ];
    for (name, bytes, expected) in cases {
        assert_eq!(error_of(&bytes), Some(expected), "{name}");
    }
}

#[test]
fn every_violation_is_reported_with_a_close_code_of_the_rfc() {
    assert_eq!(FrameError::NotUtf8.close_code(), 1007);
    assert_eq!(FrameError::MessageTooBig.close_code(), 1009);
    assert_eq!(FrameError::Unmasked.close_code(), 1002);
}

#[test]
fn bad_text_fails_before_its_message_ends() {
    // The fragment is the first of a message that never ends, and its frame is not complete either.
    let mut bytes = frame(0x01, b"good \xff and more");
    bytes.truncate(6 + 8);
    assert_eq!(error_of_prefix(&bytes), Some(FrameError::NotUtf8));
    fn error_of_prefix(bytes: &[u8]) -> Option<FrameError> {
        decode(bytes.chunks(5), MAX).1
    }
}

#[test]
fn a_declared_length_costs_nothing() {
    let mut decoder = Decoder::new(16 << 20);
    let mut head = frame(0x82, &vec![0; 10 << 20]);
    head.truncate(30);
    assert_eq!(decoder.next(&mut head, &mut 0), Ok(None));
    assert!(decoder.pending_bytes() < 100, "{}", decoder.pending_bytes());
}

#[test]
fn an_idle_decoder_is_small_and_owns_nothing() {
    assert!(size_of::<Decoder>() <= 16);
    let mut decoder = Decoder::new(MAX);
    let bytes = [frame(0x01, &[b'a'; 1000]), frame(0x80, &[b'b'; 1000])].concat();
    for chunk in bytes.chunks(100) {
        let (mut chunk, mut at) = (chunk.to_vec(), 0);
        while decoder.next(&mut chunk, &mut at).expect("valid").is_some() {}
    }
    assert_eq!(decoder.pending_bytes(), 0);
}

#[test]
fn a_whole_frame_is_handed_out_in_place() {
    let mut bytes = frame(0x82, b"payload");
    let range = bytes.as_ptr_range();
    let mut at = 0;
    let mut decoder = Decoder::new(MAX);
    let Ok(Some(Event::Binary(payload))) = decoder.next(&mut bytes, &mut at) else { panic!("a message") };
    assert!(range.contains(&payload.as_ptr()));
}

/// A message of a valid stream: its kind and its fragments, with a control frame after each.
fn messages() -> impl Strategy<Value = Vec<u8>> {
    let text = proptest::collection::vec(".{0,40}", 1..4).prop_map(|parts| {
        // Cut into fragments anywhere, also inside a character.
        let all = parts.concat().into_bytes();
        (0x01u8, all)
    });
    let binary = proptest::collection::vec(any::<u8>(), 0..400).prop_map(|bytes| (0x02u8, bytes));
    let large = (60_000usize..65_536).prop_map(|len| (0x02u8, vec![9; len]));
    let message = (prop_oneof![4 => text, 4 => binary, 1 => large], 1usize..5, 0u8..4);
    proptest::collection::vec(message, 0..8).prop_map(|messages| {
        let mut stream = Vec::new();
        for ((opcode, payload), fragments, control) in messages {
            let size = payload.len().div_ceil(fragments).max(1);
            let mut parts: Vec<&[u8]> = payload.chunks(size).collect();
            if parts.is_empty() {
                parts.push(&[]);
            }
            let last = parts.len() - 1;
            for (index, part) in parts.into_iter().enumerate() {
                let opcode = if index == 0 { opcode } else { 0 };
                let fin = if index == last { 0x80 } else { 0 };
                stream.extend(frame(opcode | fin, part));
                match control {
                    0 => stream.extend(frame(0x89, b"ping")),
                    1 => stream.extend(frame(0x8a, &[1; 125])),
                    _ => {}
                }
            }
        }
        stream.extend(frame(0x88, b"\x0f\xa1bye"));
        stream
    })
}

/// What tungstenite makes of the same stream.
fn oracle(stream: &[u8]) -> (Vec<Owned>, bool) {
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
    let config = WebSocketConfig::default().max_message_size(Some(MAX as usize)).max_frame_size(Some(MAX as usize));
    let mut socket = WebSocket::from_raw_socket(Input(stream), Role::Server, Some(config));
    let mut events = Vec::new();
    loop {
        let event = match socket.read() {
            Ok(Message::Text(text)) => Owned::Text(text.to_string()),
            Ok(Message::Binary(bytes)) => Owned::Binary(bytes.to_vec()),
            Ok(Message::Ping(bytes)) => Owned::Ping(bytes.to_vec()),
            Ok(Message::Pong(bytes)) => Owned::Pong(bytes.to_vec()),
            Ok(Message::Close(close)) => {
                let (code, reason) =
                    close.map_or((None, String::new()), |c| (Some(c.code.into()), c.reason.to_string()));
                events.push(Owned::Close(code, reason));
                return (events, true);
            }
            Ok(Message::Frame(_)) | Err(_) => return (events, false),
        };
        events.push(event);
    }
}

fn cut(stream: &[u8], sizes: &[usize]) -> Vec<Vec<u8>> {
    let (mut chunks, mut rest, mut sizes) = (Vec::new(), stream, sizes.iter().cycle());
    while !rest.is_empty() {
        let (chunk, more) = rest.split_at((*sizes.next().expect("a cycle")).min(rest.len()));
        chunks.push(chunk.to_vec());
        rest = more;
    }
    chunks
}

proptest! {
    #[test]
    fn any_cut_of_a_valid_stream_decodes_to_what_tungstenite_reads(
        stream in messages(),
        sizes in proptest::collection::vec(1usize..300, 1..20),
    ) {
        let chunks = cut(&stream, &sizes);
        let (events, error) = decode(chunks.iter().map(Vec::as_slice), MAX);
        prop_assert_eq!(error, None);
        prop_assert_eq!(&events, &decode([&stream[..]].into_iter(), MAX).0);
        let (expected, closed) = oracle(&stream);
        prop_assert!(closed, "tungstenite takes the stream to its close");
        prop_assert_eq!(events, expected);
    }

    /// One flipped byte of a valid stream: no panic, the same outcome for any cut, and nothing accepted that
    /// tungstenite refuses.
    #[test]
    fn a_damaged_stream_ends_the_same_for_any_cut(
        stream in messages(),
        at in any::<prop::sample::Index>(),
        flip in 1u8..,
        sizes in proptest::collection::vec(1usize..50, 1..20),
    ) {
        let mut stream = stream;
        let at = at.index(stream.len());
        stream[at] ^= flip;
        let chunks = cut(&stream, &sizes);
        let cut = decode(chunks.iter().map(Vec::as_slice), MAX);
        let whole = decode([&stream[..]].into_iter(), MAX);
        prop_assert_eq!(&cut, &whole);
        let (expected, _) = oracle(&stream);
        if whole.1.is_none() {
            prop_assert_eq!(whole.0, expected);
        } else {
            prop_assert!(whole.0.len() <= expected.len() && whole.0[..] == expected[..whole.0.len()]);
        }
    }

    #[test]
    fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), size in 1usize..40) {
        prop_assert_eq!(decode(bytes.chunks(size), MAX), decode([&bytes[..]].into_iter(), MAX));
    }
}
