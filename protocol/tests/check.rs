//! Each bound of a client frame: at the bound it passes, one above it is refused with the code that PROTOCOL.md names.

mod common;

use parley_protocol::check::{check_envelope, valid_name};
use parley_protocol::frame::{Change, GroupChange, GroupCreate, Members};
use parley_protocol::limits::*;
use parley_protocol::wire::{Encoding, decode_client_frame};
use parley_protocol::{
    Attachment, Body, ChatId, ClientFrame, ClientMsgId, Envelope, ErrorCode, Extension, MessageBody, UserId, body,
};

fn bad(frame: ClientFrame) -> ErrorCode {
    let (code, text) = frame.check().expect_err("out of bounds");
    assert!(!text.is_empty());
    code
}

fn json(text: &str) -> Result<ClientFrame, String> {
    decode_client_frame(Encoding::Json, text.as_bytes()).map_err(|error| error.0)
}

fn code(text: &str) -> Option<ErrorCode> {
    json(text).unwrap_or_else(|error| panic!("{text}: {error}")).check().err().map(|(code, _)| code)
}

fn change(change: Change) -> ClientFrame {
    ClientFrame::GroupChange(GroupChange { chat_id: common::group(), client_msg_id: ClientMsgId(1), change })
}

#[test]
fn samples_pass() {
    for frame in common::client_frames() {
        assert_eq!(frame.check(), Ok(()), "{frame:?}");
    }
}

#[test]
fn lists_of_users_are_bounded_and_their_ids_in_range() {
    let users = |count: usize| vec![UserId(5); count];
    assert_eq!(change(Change::Add { users: users(MEMBER_CHANGES_MAX) }).check(), Ok(()));
    assert_eq!(bad(change(Change::Add { users: users(MEMBER_CHANGES_MAX + 1) })), ErrorCode::BadFrame);
    assert_eq!(bad(change(Change::Add { users: vec![] })), ErrorCode::BadFrame);
    assert_eq!(bad(change(Change::Remove { users: vec![] })), ErrorCode::BadFrame);
    assert_eq!(bad(change(Change::Remove { users: vec![UserId(0)] })), ErrorCode::BadFrame);
    assert_eq!(bad(change(Change::Add { users: vec![UserId(1 << 63)] })), ErrorCode::BadFrame);
    let create = |count| {
        ClientFrame::GroupCreate(GroupCreate {
            client_msg_id: ClientMsgId(1),
            title: String::new(),
            members: users(count),
        })
    };
    assert_eq!(create(0).check(), Ok(()));
    assert_eq!(bad(create(MEMBER_CHANGES_MAX + 1)), ErrorCode::BadFrame);
}

#[test]
fn texts_are_bounded() {
    assert_eq!(change(Change::Rename { title: "t".repeat(TITLE_BYTES_MAX) }).check(), Ok(()));
    assert_eq!(bad(change(Change::Rename { title: "t".repeat(TITLE_BYTES_MAX + 1) })), ErrorCode::BadFrame);
    assert_eq!(bad(change(Change::Rename { title: "a\nb".into() })), ErrorCode::BadFrame);
    let hello =
        |fields: &str| code(&format!(r#"{{"type":"hello","version":1,"device_id":"{:032x}"{fields}}}"#, 7)).is_none();
    assert!(hello(""));
    assert!(hello(&format!(r#","token":"{}""#, "t".repeat(TOKEN_BYTES_MAX))));
    assert!(!hello(&format!(r#","token":"{}""#, "t".repeat(TOKEN_BYTES_MAX + 1))));
    assert!(!hello(r#","token":"""#) && !hello(r#","resume":"""#) && !hello(r#","token":"é""#));
    assert!(hello(&format!(r#","client":"{}""#, "c".repeat(CLIENT_BYTES_MAX))));
    assert!(!hello(&format!(r#","client":"{}""#, "c".repeat(CLIENT_BYTES_MAX + 1))));
    assert!(!hello(r#","client":"a\nb""#));
    assert!(!hello(&format!(r#","kinds_known":{:?}"#, vec![7; KINDS_KNOWN_MAX + 1])));
    assert_eq!(code(r#"{"type":"renew","token":""}"#), Some(ErrorCode::BadFrame));
    assert_eq!(code(r#"{"type":"resolve","request_id":1,"names":[""]}"#), Some(ErrorCode::BadFrame));
    let many = format!(r#"{{"type":"resolve","request_id":1,"names":{:?}}}"#, vec!["n"; RESOLVE_MAX + 1]);
    assert_eq!(code(&many), Some(ErrorCode::BadFrame));
}

#[test]
fn fields_that_exclude_each_other_and_pages() {
    let history = |fields: &str| {
        let chat = common::direct();
        code(&format!(r#"{{"type":"history","request_id":1,"chat_id":"{chat}"{fields}}}"#))
    };
    assert_eq!(history(r#","before":5,"limit":200"#), None);
    assert_eq!(history(r#","before":5,"after":3"#), Some(ErrorCode::BadFrame));
    assert_eq!(history(r#","limit":201"#), Some(ErrorCode::BadFrame));
    assert_eq!(code(r#"{"type":"chats","request_id":1,"limit":101}"#), Some(ErrorCode::BadFrame));
    let members = |after| {
        let after = Some(UserId(after));
        ClientFrame::Members(Members { request_id: 1, chat_id: common::group(), after, limit: 0 })
    };
    assert_eq!(members(1).check(), Ok(()));
    // JSON takes no such id; rkyv carries it.
    assert_eq!((bad(members(0)), bad(members(1 << 63))), (ErrorCode::BadFrame, ErrorCode::BadFrame));
    let mute = |until: u64| code(&format!(r#"{{"type":"mute","chat_id":"{}","until_ms":{until}}}"#, common::direct()));
    assert_eq!((mute(NUMBER_MAX), mute(NUMBER_MAX + 1)), (None, Some(ErrorCode::BadFrame)));
}

#[test]
fn a_malformed_chat_id_answers_like_a_chat_that_does_not_exist() {
    let id = "0".repeat(32);
    for text in [
        format!(r#"{{"type":"read","chat_id":"{id}","seq":1}}"#),
        format!(r#"{{"type":"subscribe","chat_id":"{id}"}}"#),
        format!(r#"{{"type":"send","chat_id":"{id}","client_msg_id":"{id}","body":{{"title":{{"title":"x"}}}}}}"#),
        format!(r#"{{"type":"history","chat_id":"{id}","request_id":1}}"#),
        format!(r#"{{"type":"members","chat_id":"{id}","request_id":1}}"#),
    ] {
        assert_eq!(code(&text), Some(ErrorCode::NoSuchChat), "{text}");
    }
}

#[test]
fn unknown_fields_wrong_numbers_and_wrong_ids_are_refused() {
    let chat = common::direct();
    let send = |fields: &str, body: &str| {
        let id = "0".repeat(32);
        json(&format!(r#"{{"type":"send","chat_id":"{chat}","client_msg_id":"{id}"{fields},"body":{body}}}"#))
    };
    let hi = r#"{"message":{"payload":{"text":"hi"}}}"#;
    assert!(send("", hi).is_ok() && send(r#","kind":1,"flags":0"#, hi).is_ok());
    assert!(send(r#","kind":2"#, hi).is_err(), "a kind that is not the body's");
    assert!(send(r#","surprise":1"#, hi).unwrap_err().contains("surprise"));
    assert!(send("", r#"{"message":{"payload":{"text":"hi"},"surprise":1}}"#).is_err());
    assert!(send("", r#"{"message":{"payload":{"text":"hi"}},"title":{"title":"x"}}"#).is_err());
    assert!(send("", r#"{"unknown":{"kind":9,"base64":"","surprise":1}}"#).is_err());
    assert!(send("", r#"{"message":{"payload":{"base64":"!"}}}"#).is_err());
    for text in [
        r#"{"type":"ping","nonce":1,"surprise":1}"#.to_owned(),
        r#"{"type":"ping","nonce":-1}"#.to_owned(),
        r#"{"type":"ping","nonce":1.0}"#.to_owned(),
        r#"{"type":"ping","nonce":4294967296}"#.to_owned(),
        r#"{"type":"ping","nonce":1,"nonce":2}"#.to_owned(),
        r#"{"type":"ping"} x"#.to_owned(),
        r#"{"type":"nonsense"}"#.to_owned(),
        r#"{"nonce":1}"#.to_owned(),
        r#"["ping"]"#.to_owned(),
        format!(r#"{{"type":"read","chat_id":{},"seq":1}}"#, 5),
        format!(r#"{{"type":"read","chat_id":"{chat}","seq":"1"}}"#),
        format!(r#"{{"type":"read","chat_id":"{}","seq":1}}"#, chat.to_string().to_uppercase()),
        r#"{"type":"profiles","request_id":1,"users":[1]}"#.to_owned(),
        r#"{"type":"profiles","request_id":1,"users":["0"]}"#.to_owned(),
    ] {
        assert!(json(&text).is_err(), "{text}");
    }
}

#[test]
fn a_message_keeps_to_its_limits() {
    let checked = |change: fn(&mut MessageBody)| {
        let mut message = common::full_message();
        change(&mut message);
        check_envelope(&Body::Message(message).to_envelope(), 100).map_err(|(code, _)| code)
    };
    assert_eq!(checked(|_| ()), Ok(()));
    assert_eq!(checked(|m| m.payload = vec![0; 100]), Ok(()));
    assert_eq!(checked(|m| m.payload = vec![0; 101]), Err(ErrorCode::TooLarge));
    let refused: [fn(&mut MessageBody); 12] = [
        |m| m.content_type.clear(),
        |m| m.content_type = "x".repeat(CONTENT_TYPE_BYTES_MAX + 1),
        |m| m.mentions = vec![UserId(1); MENTIONS_MAX + 1],
        |m| m.mentions = vec![UserId(0)],
        |m| m.reply_to = Some(NUMBER_MAX + 1),
        |m| m.expires_at_ms = Some(u64::MAX),
        |m| m.attachments = vec![m.attachments[0].clone(); ATTACHMENTS_MAX + 1],
        |m| m.attachments[0].reference = "r".repeat(EXTENSION_BYTES_MAX + 1),
        |m| m.attachments[0].name = "r".repeat(EXTENSION_BYTES_MAX + 1),
        |m| m.attachments[0].size_bytes = u64::MAX,
        |m| m.extensions = vec![Extension { tag: 1, value: vec![] }; EXTENSIONS_MAX + 1],
        |m| m.extensions[0].value = vec![0; EXTENSION_BYTES_MAX + 1],
    ];
    for (nth, change) in refused.into_iter().enumerate() {
        assert_eq!(checked(change), Err(ErrorCode::BadFrame), "change {nth}");
    }
    let attachment: fn(&mut MessageBody) = |m| {
        m.attachments = vec![Attachment { content_type: "y".repeat(128), ..m.attachments[0].clone() }];
    };
    assert_eq!(checked(attachment), Err(ErrorCode::BadFrame));
}

#[test]
fn other_kinds_and_flags_are_not_taken_from_clients() {
    let code = |envelope: &Envelope| check_envelope(envelope, 100).map_err(|(code, _)| code);
    for body in common::bodies().iter().filter(|body| !matches!(body, Body::Message(_))) {
        assert_eq!(code(&body.to_envelope()), Err(ErrorCode::UnsupportedKind), "{body:?}");
    }
    let flagged = Envelope { flags: 1, ..common::bodies()[0].to_envelope() };
    assert_eq!(code(&flagged), Err(ErrorCode::BadFrame));
    let garbage = Envelope { kind: body::kind::MESSAGE, flags: 0, body: vec![1, 2, 3] };
    assert_eq!(code(&garbage), Err(ErrorCode::BadFrame));
}

#[test]
fn names_of_users() {
    for good in ["alice", "Alice B.", "Zoë", "愛", &"n".repeat(NAME_BYTES_MAX)] {
        assert!(valid_name(good), "{good:?}");
    }
    let id = ChatId::group(1).to_string();
    for bad in ["", " a", "a ", "a\nb", "a\u{0}", "a\u{202e}b", "a\u{a0}b", &id, &"n".repeat(NAME_BYTES_MAX + 1)] {
        assert!(!valid_name(bad), "{bad:?}");
    }
}

#[test]
fn an_error_names_what_it_answers() {
    let frame = json(&format!(r#"{{"type":"history","request_id":9,"chat_id":"{}"}}"#, common::group())).unwrap();
    let error = frame.error(ErrorCode::NoSuchChat, "x");
    assert_eq!((error.request_id, error.chat_id, error.client_msg_id), (Some(9), Some(common::group()), None));
    let error = change(Change::Leave {}).error(ErrorCode::Forbidden, "x");
    assert_eq!((error.request_id, error.client_msg_id), (None, Some(ClientMsgId(1))));
}
