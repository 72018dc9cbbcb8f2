//! The frames of clients in both encodings: what decodes survives its encoding and, where a session would act on it, the
//! other encoding too; a decoded frame is never larger than its bytes allow; what passes the checks keeps the limits.
//! An input is the payload of one WebSocket message.

use crate::{Target, Verdict};
use parley_protocol::check::check_envelope;
use parley_protocol::frame::Change;
use parley_protocol::limits::*;
use parley_protocol::wire::{Encoding, access_client_frame, decode_client_frame, encode_client_frame};
use parley_protocol::{Body, ClientFrame, Envelope, MessageBody, UserId};

/// The payload limit of the checks: the shipped one.
const PAYLOAD_BYTES: usize = 16_384;

/// See [`crate::TARGETS`].
pub const RKYV: Target = Target {
    name: "client_frame_rkyv",
    about: "client frames of parley.v1.rkyv",
    run: rkyv,
    input_bytes_max: 4_096,
    dictionary: &[
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\xf8\xff\xff\xff",
        b"\x01\0\0\0",
        b"\0\0\0\0\0\0\0\x80",
        b"text/plain",
        b"\x80\0\0\0",
        b"\xbf\xff\xff\xff",
    ],
    golden: &[("client", "hex", b"")],
};

/// See [`crate::TARGETS`].
pub const JSON: Target = Target {
    name: "client_frame_json",
    about: "client frames of parley.v1.json",
    run: json,
    input_bytes_max: 4_096,
    dictionary: &[
        b"{\"type\":\"",
        b"\"hello\"",
        b"\"send\"",
        b"\"ping\"",
        b"\"group_change\"",
        b"\"change\":{\"leave\":{}}",
        b"\"chat_id\":\"40000000000001f480000000000003ea\"",
        b"\"client_msg_id\":\"0193c2a15f007000800000000000002a\"",
        b"\"body\":{\"message\":{\"payload\":{\"text\":\"\"}}}",
        b"\"unknown\":{\"kind\":1,\"base64\":\"\"}",
        b"\"extensions\":[{\"tag\":1,\"value\":\"AA==\"}]",
        b"\"users\":[\"1\"]",
        b"\"9223372036854775808\"",
        b"18446744073709551616",
        b"\\ud800",
        b"\\u0000",
        b"null",
        b"1e400",
        b"[[[[",
    ],
    golden: &[("client", "json", b"")],
};

fn rkyv(data: &[u8]) -> Verdict {
    let decoded = decode_client_frame(Encoding::Rkyv, data);
    assert_eq!(decoded.is_ok(), access_client_frame(data).is_ok(), "reading in place and decoding agree");
    let Ok(frame) = decoded else { return Verdict::Refused };
    let bytes = encode(Encoding::Rkyv, &frame);
    // No byte counts twice: a frame costs no more than what came.
    assert!(bytes.len() <= data.len(), "{} bytes became {}", data.len(), bytes.len());
    assert_eq!(decode_client_frame(Encoding::Rkyv, &bytes).as_ref(), Ok(&frame), "through its own encoding");
    act(&frame);
    Verdict::Taken
}

fn json(data: &[u8]) -> Verdict {
    let Ok(frame) = decode_client_frame(Encoding::Json, data) else { return Verdict::Refused };
    let bytes = encode(Encoding::Rkyv, &frame);
    assert!(bytes.len() <= 8 * data.len() + 512, "{} bytes became {}", data.len(), bytes.len());
    assert_eq!(decode_client_frame(Encoding::Rkyv, &bytes).as_ref(), Ok(&frame), "through the other encoding");
    same_in_json(&frame);
    act(&frame);
    Verdict::Taken
}

fn encode(encoding: Encoding, frame: &ClientFrame) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_client_frame(encoding, frame, &mut bytes);
    bytes
}

/// What a session does before it acts, and what must hold when it does.
fn act(frame: &ClientFrame) {
    let answer = frame.error(parley_protocol::ErrorCode::BadFrame, "no");
    assert_eq!(
        (answer.client_msg_id, answer.request_id, answer.chat_id),
        (frame.client_msg_id(), frame.request_id(), frame.chat_id())
    );
    if let Err((_, reason)) = frame.check() {
        assert!(!reason.is_empty());
        // Whatever decodes has a JSON form: encoders are infallible.
        encode(Encoding::Json, frame);
        return;
    }
    keeps_limits(frame);
    if let ClientFrame::Send(send) = frame {
        let Ok(()) = check_envelope(&send.envelope, PAYLOAD_BYTES) else {
            encode(Encoding::Json, frame);
            return;
        };
        let Ok(Body::Message(message)) = send.envelope.to_body() else { panic!("what passes is a message") };
        message_keeps_limits(&message);
    }
    same_in_json(frame);
}

/// A frame through JSON and back is the same frame. Bodies are compared by what they say: rkyv has several forms of the
/// same body, and JSON none of them.
fn same_in_json(frame: &ClientFrame) {
    let text = encode(Encoding::Json, frame);
    let again = match decode_client_frame(Encoding::Json, &text) {
        Ok(again) => again,
        Err(error) => panic!("{error}: {}", String::from_utf8_lossy(&text)),
    };
    match (frame, &again) {
        (ClientFrame::Send(one), ClientFrame::Send(other)) => {
            assert_eq!((one.chat_id, one.client_msg_id), (other.chat_id, other.client_msg_id));
            assert_eq!(said(&one.envelope), said(&other.envelope), "{}", String::from_utf8_lossy(&text));
        }
        _ => assert_eq!(*frame, again),
    }
}

/// What an envelope says. Bytes that are not a body of their kind are shown as an unknown body of that kind.
fn said(envelope: &Envelope) -> (u16, u16, Body) {
    let unknown = || Body::Unknown { kind: envelope.kind, base64: envelope.body.clone() };
    (envelope.kind, envelope.flags, envelope.to_body().unwrap_or_else(|_| unknown()))
}

fn users_fit(users: &[UserId], max: usize) {
    assert!(users.len() <= max && users.iter().all(|user| user.is_valid()));
}

/// The limits of `docs/PROTOCOL.md`, once more: a frame that was let through keeps them.
fn keeps_limits(frame: &ClientFrame) {
    let well_formed = |chat: parley_protocol::ChatId| assert!(chat.kind().is_some(), "{chat}");
    let credential = |text: &str| assert!((1..=TOKEN_BYTES_MAX).contains(&text.len()) && text.is_ascii());
    match frame {
        ClientFrame::Hello(hello) => {
            hello.token.iter().chain(&hello.resume).for_each(|text| credential(text));
            assert!(hello.kinds_known.len() <= KINDS_KNOWN_MAX && hello.client.len() <= CLIENT_BYTES_MAX);
            assert!(!hello.client.contains(['\n', '\r', '\x1b', '\0']), "no control characters reach a log");
            assert!(hello.act_for.is_none_or(UserId::is_valid));
        }
        ClientFrame::GroupCreate(create) => {
            assert!(create.title.len() <= TITLE_BYTES_MAX);
            users_fit(&create.members, MEMBER_CHANGES_MAX);
        }
        ClientFrame::ChannelCreate(create) => assert!(create.title.len() <= TITLE_BYTES_MAX),
        ClientFrame::GroupChange(change) => {
            well_formed(change.chat_id);
            match &change.change {
                Change::Add { users } | Change::Remove { users } => users_fit(users, MEMBER_CHANGES_MAX),
                Change::Role { user, .. } => assert!(user.is_valid()),
                Change::Rename { title } => assert!(title.len() <= TITLE_BYTES_MAX),
                Change::Leave {} | Change::Join {} => {}
            }
        }
        ClientFrame::Mute(mute) => assert!(mute.until_ms <= NUMBER_MAX),
        ClientFrame::Chats(chats) => assert!(chats.limit <= CHATS_PAGE_MAX),
        ClientFrame::History(history) => {
            assert!(history.limit <= HISTORY_PAGE_MAX && (history.before.is_none() || history.after.is_none()));
        }
        ClientFrame::Members(members) => {
            assert!(members.limit <= MEMBERS_PAGE_MAX && members.after.is_none_or(UserId::is_valid));
        }
        ClientFrame::Resolve(resolve) => {
            assert!(resolve.names.len() <= RESOLVE_MAX);
            assert!(resolve.names.iter().all(|name| (1..=NAME_BYTES_MAX).contains(&name.len())));
        }
        ClientFrame::Profiles(profiles) => users_fit(&profiles.users, RESOLVE_MAX),
        ClientFrame::Renew(renew) => credential(&renew.token),
        ClientFrame::Send(_)
        | ClientFrame::Delivered(_)
        | ClientFrame::Read(_)
        | ClientFrame::Subscribe(_)
        | ClientFrame::Unsubscribe(_)
        | ClientFrame::Ping(_)
        | ClientFrame::DeviceEnd(_) => {}
    }
    // A page of chats may begin anywhere; everything else names a chat that can exist.
    if let Some(chat) = frame.chat_id() {
        well_formed(chat);
    }
}

fn message_keeps_limits(message: &MessageBody) {
    assert!(message.payload.len() <= PAYLOAD_BYTES);
    assert!((1..=CONTENT_TYPE_BYTES_MAX).contains(&message.content_type.len()));
    assert!(message.reply_to.is_none_or(|seq| seq <= NUMBER_MAX));
    assert!(message.expires_at_ms.is_none_or(|at| at <= NUMBER_MAX));
    users_fit(&message.mentions, MENTIONS_MAX);
    assert!(message.attachments.len() <= ATTACHMENTS_MAX && message.extensions.len() <= EXTENSIONS_MAX);
    assert!(message.extensions.iter().all(|extension| extension.value.len() <= EXTENSION_BYTES_MAX));
    for attachment in &message.attachments {
        assert!(attachment.size_bytes <= NUMBER_MAX && attachment.content_type.len() <= CONTENT_TYPE_BYTES_MAX);
        assert!(attachment.reference.len().max(attachment.name.len()) <= EXTENSION_BYTES_MAX);
    }
}
