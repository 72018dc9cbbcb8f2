//! One sample or more of everything that crosses a wire, and the lists that say whether anything is missing.
#![allow(dead_code, reason = "each test takes what it needs")]

use parley_protocol::body::*;
use parley_protocol::frame::*;
use parley_protocol::link::*;
use parley_protocol::{
    Attachment, Body, ChatId, ClientFrame, ClientMsgId, DeviceId, Envelope, ErrorCode, Event, Extension, MemberAction,
    MemberChange, MessageBody, MessageId, OwnState, Posting, Role, ServerFrame, UserId,
};

/// The variants of an enum, and the name of one: a new variant does not compile until it is listed here.
macro_rules! variants {
    ($names:ident, $name:ident, $type:ident: $($variant:ident)*) => {
        pub(crate) const $names: &[&str] = &[$(stringify!($variant)),*];
        pub(crate) fn $name(value: &$type) -> &'static str {
            match value { $($type::$variant { .. } => stringify!($variant)),* }
        }
    };
}

variants!(CLIENT_NAMES, client_name, ClientFrame: Hello Send GroupCreate GroupChange Delivered Read Mute Subscribe
    Unsubscribe Chats History Members Resolve Profiles Ping Renew DeviceEnd ChannelCreate);
variants!(SERVER_NAMES, server_name, ServerFrame: Welcome Sent Error Event Own Receipt Head Mark Truncated ChatList
    HistoryPage MemberPage Users Pong Reconnect Renewed);
variants!(BODY_NAMES, body_name, Body: Message Edit Delete Reaction Membership Title Unknown);
variants!(CHANGE_NAMES, change_name, Change: Add Remove Role Rename Leave Join);
variants!(ASK_NAMES, ask_name, Ask: Open LoadChat Command Marks Mute Inbox History Chats Members Login Resolve
    Profiles LookUp Among);
variants!(ACTION_NAMES, action_name, Action: Send Create Change CreateChannel);
variants!(REPLY_NAMES, reply_name, Reply: Opened Chat Durable Duplicate Refused Failed Fenced Marked Inbox History Chats
    Members LoggedIn Users);
variants!(TO_WRITER_NAMES, to_writer_name, ToWriter: Hello Request);
variants!(TO_GATEWAY_NAMES, to_gateway_name, ToGateway: Welcome Fenced Rejected Answer Status
    NotActive);
variants!(ERROR_NAMES, error_name, ErrorCode: BadFrame NoSuchChat NoSuchUser Forbidden TooLarge RateLimited Unavailable
    GroupFull WrongChatKind OwnerMustHandOver NoSuchSeq UnsupportedKind BadToken TooMany NoChange Damaged);

pub(crate) const ERRORS: [ErrorCode; 16] = [
    ErrorCode::BadFrame,
    ErrorCode::NoSuchChat,
    ErrorCode::NoSuchUser,
    ErrorCode::Forbidden,
    ErrorCode::TooLarge,
    ErrorCode::RateLimited,
    ErrorCode::Unavailable,
    ErrorCode::GroupFull,
    ErrorCode::WrongChatKind,
    ErrorCode::OwnerMustHandOver,
    ErrorCode::NoSuchSeq,
    ErrorCode::UnsupportedKind,
    ErrorCode::BadToken,
    ErrorCode::TooMany,
    ErrorCode::NoChange,
    ErrorCode::Damaged,
];

const ALICE: UserId = UserId(1_001);
const BOB: UserId = UserId(1_002);
const CAROL: UserId = UserId(9_223_372_036_854_775_807);
const COMMAND: ClientMsgId = ClientMsgId(0x0193_c2a1_5f00_7000_8000_0000_0000_002a);
const DEVICE: DeviceId = DeviceId(0xa1a2_a3a4_a5a6_a7a8_a9aa_abac_adae_afb0);

/// A name for a golden file: `GroupCreate` and a number.
pub(crate) fn file_stem(name: &str, nth: usize) -> String {
    let mut stem = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !stem.is_empty() {
            stem.push('_');
        }
        stem.push(c.to_ascii_lowercase());
    }
    if nth == 0 { stem } else { format!("{stem}_{}", nth + 1) }
}

pub(crate) fn direct() -> ChatId {
    ChatId::direct(BOB, ALICE).unwrap()
}

pub(crate) fn group() -> ChatId {
    ChatId::group(7_266_900_000_000_000_001)
}

pub(crate) fn channel() -> ChatId {
    ChatId::channel(7_266_900_000_000_000_001, Posting::Everybody)
}

pub(crate) fn text(text: &str) -> MessageBody {
    MessageBody { content_type: "text/plain".into(), payload: text.as_bytes().to_vec(), ..Default::default() }
}

pub(crate) fn full_message() -> MessageBody {
    MessageBody {
        content_type: "application/x-poll".into(),
        payload: vec![0xff, 0x00, 0x80, 0x01],
        reply_to: Some(41),
        mentions: vec![BOB, CAROL],
        expires_at_ms: Some(1_900_000_000_000),
        attachments: vec![Attachment {
            reference: "media/77".into(),
            content_type: "image/png".into(),
            size_bytes: 48_213,
            name: "cat.png".into(),
        }],
        extensions: vec![Extension { tag: 32_768, value: vec![1, 2, 3] }],
    }
}

pub(crate) fn bodies() -> Vec<Body> {
    let change = |user_id, action, role| MemberChange { user_id, action, role };
    vec![
        Body::Message(text("Good morning, Bob ☕")),
        Body::Message(full_message()),
        Body::Edit(EditBody { target_seq: 41, message: text("Good evening, Bob") }),
        Body::Delete(DeleteBody { target_seq: 41 }),
        Body::Reaction(ReactionBody { target_seq: 41, reaction: "👍".into(), set: true }),
        Body::Membership(MembershipBody {
            changes: vec![
                change(ALICE, MemberAction::Added, Role::Owner),
                change(BOB, MemberAction::RoleChanged, Role::Admin),
                change(CAROL, MemberAction::Removed, Role::Member),
                change(UserId(1_004), MemberAction::Left, Role::Member),
            ],
        }),
        Body::Title(TitleBody { title: "Climbing on Sunday".into() }),
        Body::Unknown { kind: 900, base64: vec![9, 0, 0] },
    ]
}

pub(crate) fn event(seq: u64, body: &Body) -> Event {
    Event {
        chat_id: direct(),
        seq,
        ordinal: 40,
        message_id: MessageId(7_266_900_000_000_000_000 + seq),
        sender: ALICE,
        sender_sent: 17,
        client_msg_id: COMMAND,
        envelope: body.to_envelope(),
    }
}

pub(crate) fn redacted() -> Event {
    Event { envelope: Envelope { kind: kind::MESSAGE, flags: flag::REDACTED, body: Vec::new() }, ..event(40, &title()) }
}

fn title() -> Body {
    Body::Title(TitleBody { title: "x".into() })
}

fn own() -> OwnState {
    OwnState { chat_id: direct(), read_seq: 41, read_ordinal: 39, read_sent: 17, muted_until_ms: 1_790_000_000_000 }
}

pub(crate) fn client_frames() -> Vec<ClientFrame> {
    let command = |chat_id, change| {
        ClientFrame::GroupChange(GroupChange { chat_id, client_msg_id: ClientMsgId(COMMAND.0 + 1), change })
    };
    let send =
        |chat_id, body: Body| ClientFrame::Send(Send { chat_id, client_msg_id: COMMAND, envelope: body.to_envelope() });
    let position = Position { chat_id: direct(), seq: 42 };
    vec![
        ClientFrame::Hello(Hello {
            version: 1,
            device_id: DEVICE,
            token: Some("eyJ.eyJ.sig".into()),
            resume: None,
            mark: Some(1_234),
            kinds_known: vec![7, 8],
            client: "example 1.0".into(),
            act_for: None,
        }),
        ClientFrame::Hello(Hello {
            version: 1,
            device_id: DEVICE,
            token: None,
            resume: Some("ticket".into()),
            mark: None,
            kinds_known: vec![],
            client: String::new(),
            act_for: Some(ALICE),
        }),
        send(direct(), bodies().remove(0)),
        send(group(), Body::Message(full_message())),
        ClientFrame::GroupCreate(GroupCreate {
            client_msg_id: COMMAND,
            title: "Climbing".into(),
            members: vec![BOB, CAROL],
        }),
        command(group(), Change::Add { users: vec![BOB, CAROL] }),
        command(group(), Change::Remove { users: vec![CAROL] }),
        command(group(), Change::Role { user: BOB, role: Role::Admin }),
        command(group(), Change::Rename { title: "Climbing on Sunday".into() }),
        command(group(), Change::Leave {}),
        ClientFrame::Delivered(position),
        ClientFrame::Read(position),
        ClientFrame::Mute(Mute { chat_id: direct(), until_ms: 1_790_000_000_000 }),
        ClientFrame::Subscribe(ChatRef { chat_id: group() }),
        ClientFrame::Unsubscribe(ChatRef { chat_id: group() }),
        ClientFrame::Chats(Chats { request_id: 1, after: None, limit: 0 }),
        ClientFrame::Chats(Chats { request_id: 2, after: Some(direct()), limit: 50 }),
        ClientFrame::History(History { request_id: 3, chat_id: direct(), before: Some(42), after: None, limit: 50 }),
        ClientFrame::History(History { request_id: 4, chat_id: direct(), before: None, after: Some(41), limit: 0 }),
        ClientFrame::Members(Members { request_id: 5, chat_id: group(), after: Some(BOB), limit: 100 }),
        ClientFrame::Resolve(Resolve { request_id: 6, names: vec!["alice".into(), "a longer name".into()] }),
        ClientFrame::Profiles(Profiles { request_id: 7, users: vec![ALICE, BOB] }),
        ClientFrame::Ping(Ping { nonce: 9 }),
        ClientFrame::Renew(Renew { token: "eyJ.eyJ.new".into() }),
        ClientFrame::DeviceEnd(DeviceEnd { device_id: DEVICE }),
        command(channel(), Change::Join {}),
        ClientFrame::ChannelCreate(ChannelCreate {
            client_msg_id: COMMAND,
            title: "News".into(),
            posting: Posting::Everybody,
        }),
    ]
}

pub(crate) fn summary() -> ChatSummary {
    ChatSummary {
        chat_id: direct(),
        title: String::new(),
        members: 2,
        role: Some(Role::Member),
        head_seq: 42,
        head_ordinal: 40,
        delivered_seq: 42,
        own: own(),
        unread: 1,
        intervals: vec![
            Interval { joined_seq: 1, left_seq: Some(20), history_from: 1 },
            Interval { joined_seq: 30, left_seq: None, history_from: 30 },
        ],
        large: false,
        last: Some(event(42, &Body::Message(text("Good morning, Bob")))),
    }
}

pub(crate) fn server_frames() -> Vec<ServerFrame> {
    let mut frames = vec![
        ServerFrame::Welcome(Welcome {
            user_id: ALICE,
            name: "alice".into(),
            resume: "ticket".into(),
            resume_expires_at_ms: 1_790_000_000_000,
            server_time_ms: 1_780_000_000_000,
            heartbeat_interval_ms: 25_000,
            payload_bytes_max: 16_384,
            frame_bytes_max: 65_536,
            requests_in_flight_max: 64,
        }),
        ServerFrame::Sent(Sent {
            chat_id: direct(),
            client_msg_id: COMMAND,
            message_id: MessageId(7_266_900_000_000_000_042),
            seq: 42,
        }),
    ];
    frames.extend(ERRORS.map(|code| {
        ServerFrame::Error(Error {
            code,
            message: "what was wrong".into(),
            client_msg_id: Some(COMMAND),
            request_id: Some(3),
            chat_id: Some(direct()),
            retry_after_ms: Some(500),
        })
    }));
    frames.extend(bodies().iter().map(|body| ServerFrame::Event(event(42, body))));
    frames.push(ServerFrame::Event(redacted()));
    frames.extend([
        ServerFrame::Own(own()),
        ServerFrame::Receipt(Receipt { chat_id: direct(), user_id: BOB, delivered_seq: 42, read_seq: 41 }),
        ServerFrame::Head(Head { chat_id: group(), seq: 42, ordinal: 40 }),
        ServerFrame::Mark(Mark { inbox_seq: 1_235, head: 1_240 }),
        ServerFrame::Truncated(Truncated { mark: 9_000 }),
        ServerFrame::ChatList(ChatList { request_id: 1, chats: vec![summary()], more: true }),
        ServerFrame::HistoryPage(HistoryPage {
            request_id: 3,
            chat_id: direct(),
            events: vec![event(41, &title()), event(42, &Body::Message(text("hi")))],
            more: false,
        }),
        ServerFrame::MemberPage(MemberPage {
            request_id: 5,
            chat_id: group(),
            members: vec![Member { user_id: BOB, role: Role::Owner, delivered_seq: 42, read_seq: 41 }],
            more: false,
        }),
        ServerFrame::Users(Users { request_id: 6, users: vec![UserName { user_id: ALICE, name: "alice".into() }] }),
        ServerFrame::Pong(Pong { nonce: 9 }),
        ServerFrame::Reconnect(Reconnect {
            delay_ms: 1_500,
            resume: "ticket".into(),
            resume_expires_at_ms: 1_790_000_000_000,
        }),
        ServerFrame::Renewed(Renewed { expires_at_ms: 1_790_000_000_000 }),
    ]);
    frames
}

pub(crate) fn actions() -> Vec<Action> {
    vec![
        Action::Send(Body::Message(text("hi")).to_envelope()),
        Action::Create { title: "Climbing".into(), members: vec![BOB] },
        Action::Change(Change::Leave {}),
    ]
}

pub(crate) fn asks() -> Vec<Ask> {
    let command =
        |action| Ask::Command(Command { chat_id: Some(group()), sender: ALICE, client_msg_id: COMMAND, action });
    let mut asks = vec![
        Ask::Open { partition: 1_023 },
        Ask::LoadChat { chat_id: group() },
        Ask::Marks { chat_id: direct(), marks: vec![MarkUpdate { user_id: BOB, delivered_seq: 42, read_seq: 0 }] },
        Ask::Mute { chat_id: direct(), user_id: BOB, until_ms: 0 },
        Ask::Inbox { user_id: BOB, after: 1_234, limit: 100 },
        Ask::History { user_id: BOB, chat_id: direct(), before: None, after: Some(41), limit: 50 },
        Ask::Chats { user_id: BOB, after: Some(direct()), limit: 50 },
        Ask::Members { user_id: BOB, chat_id: group(), after: None, limit: 100 },
        Ask::Login { issuer: "https://id.example".into(), subject: "a-7".into(), name: "alice".into() },
        Ask::Resolve { names: vec!["alice".into()] },
        Ask::Profiles { users: vec![ALICE] },
    ];
    asks.extend(actions().into_iter().map(command));
    asks.push(Ask::LookUp { issuer: "https://id.example".into(), subject: "a-7".into() });
    asks.push(Ask::Among { chat_id: channel(), users: vec![ALICE, BOB] });
    asks.push(command(Action::CreateChannel { title: "News".into(), posting: Posting::Admins }));
    asks
}

pub(crate) fn replies() -> Vec<Reply> {
    let event = event(42, &Body::Message(text("hi")));
    let page = InboxPage {
        after: 1_233,
        to: 1_236,
        head: 1_240,
        entries: vec![InboxEntry::Event(event.clone()), InboxEntry::Own(own()), InboxEntry::Empty],
    };
    vec![
        Reply::Opened,
        Reply::Chat(ChatState {
            head_seq: 42,
            head_ordinal: 40,
            large: true,
            members: vec![MemberState { user_id: BOB, role: Role::Admin, delivered_seq: 42, read_seq: 41 }],
        }),
        Reply::Durable(vec![Committed {
            event: event.clone(),
            targets: vec![Target { user_id: BOB, inbox_seq: 1_235 }],
            large: false,
            joined: vec![Marked { user_id: BOB, delivered_seq: 42, own: own(), inbox_seq: Some(1_236) }],
        }]),
        Reply::Duplicate { chat_id: direct(), message_id: MessageId(77), seq: 42 },
        Reply::Refused(ErrorCode::NoSuchChat),
        Reply::Failed,
        Reply::Fenced,
        Reply::Marked(vec![Marked { user_id: BOB, delivered_seq: 42, own: own(), inbox_seq: Some(1_236) }]),
        Reply::Inbox(page),
        Reply::History { events: vec![event], more: true },
        Reply::Chats { chats: vec![summary()], more: false },
        Reply::Members {
            members: vec![Member { user_id: BOB, role: Role::Member, delivered_seq: 1, read_seq: 1 }],
            more: false,
        },
        Reply::LoggedIn(UserName { user_id: ALICE, name: "alice".into() }),
        Reply::Users(vec![UserName { user_id: ALICE, name: "alice".into() }]),
    ]
}

pub(crate) fn to_writer() -> Vec<ToWriter> {
    let hello = LinkHello { version: 1, gateway: 0xdead_beef, shard: 1, shards: 2, home_epoch: 7 };
    let request = |(at, ask)| ToWriter::Request(Request { no: at as u64 + 1, home_epoch: 7, ask });
    std::iter::once(ToWriter::Hello(hello)).chain(asks().into_iter().enumerate().map(request)).collect()
}

pub(crate) fn to_gateway() -> Vec<ToGateway> {
    let answer = |(at, reply)| ToGateway::Answer(Answer { no: at as u64 + 1, reply });
    let mut records = vec![
        ToGateway::Welcome(LinkWelcome { home_epoch: 7, writer_epoch: 3 }),
        ToGateway::Fenced,
        ToGateway::Rejected { reason: "link version 2 is not spoken here".into() },
    ];
    records.extend(replies().into_iter().enumerate().map(answer));
    records.push(ToGateway::Status { ready: false, reason: "disk full".into() });
    records.push(ToGateway::NotActive { active: "/run/parley/b/writer.sock".into() });
    records
}
