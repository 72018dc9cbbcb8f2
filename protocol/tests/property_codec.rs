//! Whatever a frame holds survives both encodings, and whatever bytes come in, decoding them answers and never panics.

mod common;

use parley_protocol::body::{DeleteBody, EditBody, MembershipBody, ReactionBody, TitleBody, check_message, kind};
use parley_protocol::check::check_envelope;
use parley_protocol::frame::*;
use parley_protocol::limits::{FRAME_BYTES_MAX, PAYLOAD_BYTES_MAX};
use parley_protocol::link::{Action, Ask, Command, Request, ToWriter};
use parley_protocol::wire::*;
use parley_protocol::{
    Attachment, Body, ChatId, ClientFrame, ClientMsgId, DeviceId, Envelope, ErrorCode, Event, Extension, MemberAction,
    MemberChange, MessageBody, MessageId, OwnState, Role, ServerFrame, UserId,
};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

fn user() -> impl Strategy<Value = UserId> {
    (1..1_u64 << 63).prop_map(UserId)
}

fn chat() -> impl Strategy<Value = ChatId> {
    any::<u128>().prop_map(ChatId)
}

fn command_name() -> impl Strategy<Value = ClientMsgId> {
    any::<u128>().prop_map(ClientMsgId)
}

fn role() -> impl Strategy<Value = Role> {
    select(vec![Role::Member, Role::Admin, Role::Owner])
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 0..200), any::<String>().prop_map(String::into_bytes)]
}

fn message() -> impl Strategy<Value = MessageBody> {
    let attachment = (any::<String>(), any::<String>(), any::<u64>(), any::<String>()).prop_map(
        |(reference, content_type, size_bytes, name)| Attachment { reference, content_type, size_bytes, name },
    );
    let extension = (any::<u16>(), payload()).prop_map(|(tag, value)| Extension { tag, value });
    (
        any::<String>(),
        payload(),
        of(any::<u64>()),
        vec(user(), 0..4),
        of(any::<u64>()),
        vec(attachment, 0..3),
        vec(extension, 0..3),
    )
        .prop_map(|(content_type, payload, reply_to, mentions, expires_at_ms, attachments, extensions)| {
            MessageBody { content_type, payload, reply_to, mentions, expires_at_ms, attachments, extensions }
        })
}

fn body() -> impl Strategy<Value = Body> {
    let action =
        select(vec![MemberAction::Added, MemberAction::Removed, MemberAction::Left, MemberAction::RoleChanged]);
    let change = (user(), action, role()).prop_map(|(user_id, action, role)| MemberChange { user_id, action, role });
    prop_oneof![
        4 => message().prop_map(Body::Message),
        1 => (any::<u64>(), message()).prop_map(|(target_seq, message)| Body::Edit(EditBody { target_seq, message })),
        1 => any::<u64>().prop_map(|target_seq| Body::Delete(DeleteBody { target_seq })),
        1 => (any::<u64>(), any::<String>(), any::<bool>())
            .prop_map(|(target_seq, reaction, set)| Body::Reaction(ReactionBody { target_seq, reaction, set })),
        1 => vec(change, 0..5).prop_map(|changes| Body::Membership(MembershipBody { changes })),
        1 => any::<String>().prop_map(|title| Body::Title(TitleBody { title })),
        1 => (kind::TITLE + 1.., payload()).prop_map(|(kind, base64)| Body::Unknown { kind, base64 }),
    ]
}

fn envelope() -> impl Strategy<Value = Envelope> {
    let redacted = (any::<u16>(), payload()).prop_map(|(kind, body)| Envelope { kind, flags: 1, body });
    prop_oneof![8 => body().prop_map(|body| body.to_envelope()), 1 => redacted]
}

fn event() -> impl Strategy<Value = Event> {
    let numbers = (any::<u64>(), any::<u64>(), any::<u64>());
    (chat(), numbers, 1..1_u64 << 63, user(), command_name(), envelope()).prop_map(
        |(chat_id, (seq, ordinal, sender_sent), id, sender, client_msg_id, envelope)| Event {
            chat_id,
            seq,
            ordinal,
            message_id: MessageId(id),
            sender,
            sender_sent,
            client_msg_id,
            envelope,
        },
    )
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        vec(user(), 0..5).prop_map(|users| Change::Add { users }),
        vec(user(), 0..5).prop_map(|users| Change::Remove { users }),
        (user(), role()).prop_map(|(user, role)| Change::Role { user, role }),
        any::<String>().prop_map(|title| Change::Rename { title }),
        Just(Change::Leave {}),
        Just(Change::Join {}),
    ]
}

fn hello() -> impl Strategy<Value = Hello> {
    let credentials = (of(any::<String>()), of(any::<String>()));
    (any::<u16>(), any::<u128>(), credentials, of(any::<u64>()), vec(any::<u16>(), 0..9), any::<String>(), of(user()))
        .prop_map(|(version, device, (token, resume), mark, kinds_known, client, act_for)| Hello {
            version,
            device_id: DeviceId(device),
            token,
            resume,
            mark,
            kinds_known,
            client,
            act_for,
        })
}

fn client_frame() -> impl Strategy<Value = ClientFrame> {
    let sample = select(common::client_frames());
    let send = (chat(), command_name(), envelope())
        .prop_map(|(chat_id, client_msg_id, envelope)| ClientFrame::Send(Send { chat_id, client_msg_id, envelope }));
    let history = (any::<u32>(), chat(), of(any::<u64>()), of(any::<u64>()), any::<u32>()).prop_map(
        |(request_id, chat_id, before, after, limit)| {
            ClientFrame::History(History { request_id, chat_id, before, after, limit })
        },
    );
    prop_oneof![
        1 => sample,
        1 => hello().prop_map(ClientFrame::Hello),
        3 => send,
        1 => (chat(), command_name(), change()).prop_map(|(chat_id, client_msg_id, change)| {
            ClientFrame::GroupChange(GroupChange { chat_id, client_msg_id, change })
        }),
        1 => (command_name(), any::<String>(), vec(user(), 0..5)).prop_map(|(client_msg_id, title, members)| {
            ClientFrame::GroupCreate(GroupCreate { client_msg_id, title, members })
        }),
        1 => (chat(), any::<u64>()).prop_map(|(chat_id, seq)| ClientFrame::Read(Position { chat_id, seq })),
        1 => history,
        1 => (any::<u32>(), vec(any::<String>(), 0..4))
            .prop_map(|(request_id, names)| ClientFrame::Resolve(Resolve { request_id, names })),
    ]
}

fn own() -> impl Strategy<Value = OwnState> {
    (chat(), any::<[u64; 4]>()).prop_map(|(chat_id, [read_seq, read_ordinal, read_sent, muted_until_ms])| OwnState {
        chat_id,
        read_seq,
        read_ordinal,
        read_sent,
        muted_until_ms,
    })
}

fn summary() -> impl Strategy<Value = ChatSummary> {
    let interval = (any::<u64>(), of(any::<u64>()), any::<u64>())
        .prop_map(|(joined_seq, left_seq, history_from)| Interval { joined_seq, left_seq, history_from });
    (chat(), any::<String>(), of(role()), any::<[u64; 4]>(), own(), vec(interval, 0..3), any::<bool>(), of(event()))
        .prop_map(|(chat_id, title, role, numbers, own, intervals, large, last)| ChatSummary {
            chat_id,
            title,
            members: numbers[0] as u32,
            role,
            head_seq: numbers[0],
            head_ordinal: numbers[1],
            delivered_seq: numbers[2],
            own,
            unread: numbers[3],
            intervals,
            large,
            last,
        })
}

fn server_frame() -> impl Strategy<Value = ServerFrame> {
    let error = (select(common::ERRORS.to_vec()), any::<String>(), of(command_name()), of(any::<u32>()), of(chat()))
        .prop_map(|(code, message, client_msg_id, request_id, chat_id)| {
            ServerFrame::Error(Error { code, message, client_msg_id, request_id, chat_id, retry_after_ms: request_id })
        });
    prop_oneof![
        1 => select(common::server_frames()),
        3 => event().prop_map(ServerFrame::Event),
        1 => error,
        1 => own().prop_map(ServerFrame::Own),
        1 => (any::<u32>(), vec(summary(), 0..3), any::<bool>())
            .prop_map(|(request_id, chats, more)| ServerFrame::ChatList(ChatList { request_id, chats, more })),
        1 => (any::<u32>(), chat(), vec(event(), 0..3), any::<bool>()).prop_map(|(request_id, chat_id, events, more)| {
            ServerFrame::HistoryPage(HistoryPage { request_id, chat_id, events, more })
        }),
    ]
}

/// Everything that a session does with bytes from outside, before it knows whether they make sense.
fn take_apart(bytes: &[u8]) {
    for encoding in [Encoding::Rkyv, Encoding::Json] {
        if let Ok(frame) = decode_client_frame(encoding, bytes) {
            let _ = frame.check();
            if let ClientFrame::Send(send) = &frame {
                let _ = check_envelope(&send.envelope, PAYLOAD_BYTES_MAX);
                let _ = send.envelope.to_body();
            }
            // Whatever decodes has a JSON form too: the encoder is infallible.
            encode_client_frame(Encoding::Json, &frame, &mut Vec::new());
        }
        if let Ok(frame) = decode_server_frame(encoding, bytes) {
            encode_server_frame(Encoding::Json, &frame, &mut Vec::new());
        }
    }
    let _ = access_client_frame(bytes);
    let _ = check_message(bytes, PAYLOAD_BYTES_MAX);
    let _ = decode_to_writer(bytes);
    let _ = decode_to_gateway(bytes);
    if let Ok(Some((record, taken))) = split_record(bytes) {
        assert!(record.len() + 4 == taken && taken <= bytes.len());
    }
    for kind in 0..=kind::TITLE + 1 {
        let _ = Envelope { kind, flags: 0, body: bytes.to_vec() }.to_body();
    }
}

/// Valid bytes of every kind, to be damaged.
fn valid_bytes() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for encoding in [Encoding::Rkyv, Encoding::Json] {
        for frame in common::client_frames() {
            let mut out = Vec::new();
            encode_client_frame(encoding, &frame, &mut out);
            all.push(out);
        }
        for frame in common::server_frames() {
            let mut out = Vec::new();
            encode_server_frame(encoding, &frame, &mut out);
            all.push(out);
        }
    }
    all.extend(common::to_writer().iter().map(to_rkyv));
    all.extend(common::to_gateway().iter().map(to_rkyv));
    all.extend(common::bodies().iter().map(|body| body.to_envelope().body));
    all
}

fn mutate(bytes: &mut Vec<u8>, changes: &[(prop::sample::Index, u8, u8)]) {
    for (at, how, value) in changes.iter().filter(|_| !bytes.is_empty()).collect::<Vec<_>>() {
        let at = at.index(bytes.len().max(1));
        match how % 5 {
            0 if at < bytes.len() => bytes[at] = *value,
            1 if at < bytes.len() => bytes[at] ^= 1 << (value % 8),
            2 if at < bytes.len() => drop(bytes.remove(at)),
            3 => bytes.insert(at.min(bytes.len()), *value),
            _ => bytes.truncate(at.max(1)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn client_frames_survive_both_encodings(frame in client_frame(), before in vec(any::<u8>(), 0..20)) {
        for encoding in [Encoding::Rkyv, Encoding::Json] {
            let mut bytes = before.clone();
            encode_client_frame(encoding, &frame, &mut bytes);
            prop_assert_eq!(&bytes[..before.len()], &before[..]);
            prop_assert_eq!(&decode_client_frame(encoding, &bytes[before.len()..]).unwrap(), &frame);
        }
    }

    #[test]
    fn server_frames_survive_both_encodings(frame in server_frame()) {
        for encoding in [Encoding::Rkyv, Encoding::Json] {
            let mut bytes = Vec::new();
            encode_server_frame(encoding, &frame, &mut bytes);
            prop_assert_eq!(&decode_server_frame(encoding, &bytes).unwrap(), &frame);
        }
    }

    #[test]
    fn records_are_found_again_one_by_one(envelopes in vec(envelope(), 1..5), cut in any::<prop::sample::Index>()) {
        let records: Vec<_> = envelopes.into_iter().enumerate().map(|(at, envelope)| {
            let action = Action::Send(envelope);
            let command = Command { chat_id: None, sender: UserId(1), client_msg_id: ClientMsgId(7), action };
            ToWriter::Request(Request { no: at as u64, home_epoch: 1, ask: Ask::Command(command) })
        }).collect();
        let mut bytes = Vec::new();
        records.iter().for_each(|record| encode_record(record, &mut bytes));
        let mut rest = &bytes[..];
        for record in &records {
            let short = &rest[..cut.index(split_record(rest).unwrap().unwrap().1)];
            prop_assert_eq!(split_record(short), Ok(None));
            let (found, taken) = split_record(rest).unwrap().unwrap();
            prop_assert_eq!(&decode_to_writer(found).unwrap(), record);
            rest = &rest[taken..];
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..600)) {
        take_apart(&bytes);
    }

    #[test]
    fn damaged_bytes_never_panic(
        mut bytes in select(valid_bytes()),
        changes in vec((any::<prop::sample::Index>(), any::<u8>(), any::<u8>()), 1..6),
        offset in 0..16_usize,
    ) {
        mutate(&mut bytes, &changes);
        take_apart(&bytes);
        // At every alignment: frames are read where they lie.
        let mut moved = vec![0; offset];
        moved.extend_from_slice(&bytes);
        take_apart(&moved[offset..]);
    }
}

#[test]
fn json_that_is_deep_or_large_is_refused() {
    let deep = format!(r#"{{"type":"ping","nonce":{}1{}}}"#, "[".repeat(50_000), "]".repeat(50_000));
    assert!(decode_client_frame(Encoding::Json, deep.as_bytes()).is_err());
    let mut large = br#"{"type":"ping"}"#.to_vec();
    assert!(decode_client_frame(Encoding::Json, &large).is_ok());
    large.resize(FRAME_BYTES_MAX + 1, b' ');
    assert!(decode_client_frame(Encoding::Json, &large).is_err());
}

#[test]
fn a_record_above_the_limit_is_refused_from_its_length() {
    assert!(split_record(&u32::MAX.to_le_bytes()).is_err());
    assert_eq!(split_record(&[0, 0, 0]), Ok(None));
}

#[test]
fn an_unknown_error_code_is_refused() {
    assert!(serde_json::from_str::<ErrorCode>("\"nonsense\"").is_err());
}
