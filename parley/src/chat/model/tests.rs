//! What the terminal client shows after frames and keys, at 80x24, and what it asks for.

use super::*;
use crate::chat::view;
use parley_protocol::body::{MemberChange, MembershipBody, TitleBody};
use parley_protocol::frame::{ChatList, HistoryPage, MemberPage, Receipt, Sent, UserName, Users};
use parley_protocol::{MemberAction, MessageId, Role};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

const ALICE: UserId = UserId(1);
const BOB: UserId = UserId(2);
const CAROL: UserId = UserId(3);
/// 2026-11-21 12:00 UTC.
const NOON_MS: u64 = 1_795_262_400_000;

fn message_id(minute: u64) -> MessageId {
    MessageId((NOON_MS + minute * 60_000 - parley_idgen::EPOCH_UNIX_MS) << 22)
}

fn direct() -> ChatId {
    ChatId::direct(ALICE, BOB).expect("two users")
}

fn group() -> ChatId {
    ChatId::group(9)
}

fn event(chat_id: ChatId, seq: u64, sender: UserId, body: Body) -> Event {
    Event {
        chat_id,
        seq,
        ordinal: seq,
        message_id: message_id(seq),
        sender,
        sender_sent: seq,
        client_msg_id: ClientMsgId(u128::from(seq) << 64),
        envelope: body.to_envelope(),
    }
}

fn text(chat_id: ChatId, seq: u64, sender: UserId, text: &str) -> Event {
    let body =
        MessageBody { content_type: "text/plain".into(), payload: text.as_bytes().to_vec(), ..Default::default() };
    event(chat_id, seq, sender, Body::Message(body))
}

fn summary(chat_id: ChatId, head: u64, unread: u64) -> ChatSummary {
    let own =
        OwnState { chat_id, read_seq: head - unread, read_ordinal: head - unread, read_sent: 0, muted_until_ms: 0 };
    ChatSummary {
        chat_id,
        title: if chat_id == group() { "the team".to_owned() } else { String::new() },
        members: 3,
        role: Some(Role::Member),
        head_seq: head,
        head_ordinal: head,
        delivered_seq: head,
        own,
        unread,
        intervals: Vec::new(),
        large: false,
        last: (head > 0).then(|| text(chat_id, head, BOB, "last")),
    }
}

fn welcome(user_id: UserId) -> Welcome {
    Welcome {
        user_id,
        name: "alice".to_owned(),
        resume: String::new(),
        resume_expires_at_ms: 0,
        server_time_ms: NOON_MS,
        heartbeat_interval_ms: 25_000,
        payload_bytes_max: 16_384,
        frame_bytes_max: 65_536,
        requests_in_flight_max: 16,
    }
}

/// Alice, connected.
fn alice() -> Model {
    let mut model = Model::new(0);
    model.connected(&welcome(ALICE));
    let users = [(BOB, "bob"), (CAROL, "carol")];
    let users = users.map(|(user_id, name)| UserName { user_id, name: name.to_owned() }).to_vec();
    model.frame(ServerFrame::Users(Users { request_id: u32::MAX, users }));
    model
}

/// Alice with a direct chat and a group, the direct chat open.
fn with_chats() -> Model {
    let mut model = alice();
    let chats = vec![summary(direct(), 2, 0), summary(group(), 4, 3)];
    model.frame(ServerFrame::ChatList(ChatList { request_id: u32::MAX, chats, more: false }));
    let request_id = asked_history(&mut model);
    let events = vec![text(direct(), 1, ALICE, "are you there?"), text(direct(), 2, BOB, "ja, größe 👍🏽")];
    model.frame(ServerFrame::HistoryPage(HistoryPage { request_id, chat_id: direct(), events, more: false }));
    let member = |user_id, read_seq| Member { user_id, role: Role::Member, delivered_seq: read_seq, read_seq };
    let members = vec![member(ALICE, 2), member(BOB, 2)];
    model.frame(ServerFrame::MemberPage(MemberPage { request_id: 0, chat_id: direct(), members, more: false }));
    model.take_effects();
    model
}

fn submitted(model: &mut Model) -> Vec<ClientFrame> {
    let submitted = |effect| match effect {
        Effect::Submit(frame) => Some(frame),
        _ => None,
    };
    model.take_effects().into_iter().filter_map(submitted).collect()
}

fn asked_history(model: &mut Model) -> u32 {
    let history = |frame: ClientFrame| match frame {
        ClientFrame::History(ask) => Some(ask.request_id),
        _ => None,
    };
    submitted(model).into_iter().find_map(history).expect("a page of history was asked for")
}

fn press(model: &mut Model, code: KeyCode) {
    model.key(KeyEvent::new(code, KeyModifiers::NONE), NOON_MS);
}

fn enter(model: &mut Model, line: &str) {
    line.chars().for_each(|character| press(model, KeyCode::Char(character)));
    press(model, KeyCode::Enter);
}

fn screen(model: &mut Model, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a screen");
    // Twice: the first tells the model how much there is to scroll.
    for _ in 0..2 {
        let mut rendered = None;
        terminal.draw(|frame| rendered = Some(view::render(frame, model, NOON_MS))).expect("drawn");
        let rendered = rendered.expect("drawn");
        model.rendered(rendered.lines, rendered.seen);
    }
    terminal.backend().to_string()
}

#[test]
fn the_first_screen_says_what_to_do() {
    insta::assert_snapshot!(screen(&mut Model::new(0), 80, 24));
}

#[test]
fn chats_messages_and_states_fit_80x24() {
    let mut model = with_chats();
    enter(&mut model, "a long message that does not fit into one line of the terminal, so that it goes on below");
    model.frame(ServerFrame::Event(text(direct(), 3, ALICE, "delivered to bob, not read")));
    model.frame(ServerFrame::Receipt(Receipt { chat_id: direct(), user_id: BOB, delivered_seq: 3, read_seq: 2 }));
    model.frame(ServerFrame::Event(text(direct(), 4, ALICE, "only durable")));
    insta::assert_snapshot!(screen(&mut model, 80, 24));
}

#[test]
fn a_narrow_terminal_shows_the_messages_only() {
    insta::assert_snapshot!(screen(&mut with_chats(), 40, 10));
}

#[test]
fn help_and_errors_are_shown() {
    let mut model = with_chats();
    enter(&mut model, "/dance");
    assert_eq!(model.line.text(), "/dance", "what was typed stays, to be mended");
    let error = screen(&mut model, 80, 24);
    assert!(error.contains("no command /dance: /help lists them"), "{error}");
    press(&mut model, KeyCode::Esc);
    model.line.clear();
    enter(&mut model, "/help");
    insta::assert_snapshot!(screen(&mut model, 80, 24));
}

#[test]
fn a_message_goes_from_sending_to_sent_to_read() {
    let mut model = with_chats();
    enter(&mut model, "hello");
    let [ClientFrame::Send(send)] = &submitted(&mut model)[..] else { panic!("one message") };
    let name = send.client_msg_id;
    assert_eq!((send.chat_id, model.chats[&direct()].sending.len()), (direct(), 1));
    assert!(screen(&mut model, 80, 24).contains("hello  …"));
    let sent = Sent { chat_id: direct(), client_msg_id: name, message_id: message_id(3), seq: 3 };
    model.frame(ServerFrame::Sent(sent));
    assert!(screen(&mut model, 80, 24).contains("hello  sent"));
    let event = Event { client_msg_id: name, ..text(direct(), 3, ALICE, "hello") };
    model.frame(ServerFrame::Event(event.clone()));
    model.frame(ServerFrame::Event(event));
    assert!(model.chats[&direct()].sending.is_empty());
    assert_eq!(model.chats[&direct()].reach(3), Reach::Sent);
    model.frame(ServerFrame::Receipt(Receipt { chat_id: direct(), user_id: BOB, delivered_seq: 3, read_seq: 0 }));
    assert_eq!(model.chats[&direct()].reach(3), Reach::Delivered);
    model.frame(ServerFrame::Receipt(Receipt { chat_id: direct(), user_id: BOB, delivered_seq: 0, read_seq: 3 }));
    let read = screen(&mut model, 80, 24);
    assert_eq!((model.chats[&direct()].reach(3), read.matches("hello  read").count()), (Reach::Read, 1), "{read}");
}

#[test]
fn a_refused_message_says_why() {
    let mut model = with_chats();
    enter(&mut model, "hello");
    let [ClientFrame::Send(send)] = &submitted(&mut model)[..] else { panic!("one message") };
    model.frame(ServerFrame::Error(frame::Error {
        code: ErrorCode::TooLarge,
        message: "too long".to_owned(),
        client_msg_id: Some(send.client_msg_id),
        request_id: None,
        chat_id: None,
        retry_after_ms: None,
    }));
    assert!(screen(&mut model, 80, 24).contains("not sent: too long"));
}

#[test]
fn unread_counts_others_messages_until_the_chat_is_in_view() {
    let mut model = with_chats();
    assert_eq!(model.chats[&group()].unread(), 3);
    model.frame(ServerFrame::Event(text(group(), 5, BOB, "one more")));
    assert_eq!(model.chats[&group()].unread(), 4);
    assert_eq!(model.take_effects(), [], "a chat that is not in view is not read");
    assert!(screen(&mut model, 80, 24).contains("#the team (4)"));
    press(&mut model, KeyCode::Tab);
    assert_eq!(model.open, Some(group()));
    assert!(model.take_effects().contains(&Effect::Read(group(), 5)));
    let own = OwnState { chat_id: group(), read_seq: 5, read_ordinal: 5, read_sent: 0, muted_until_ms: 0 };
    model.frame(ServerFrame::Own(own));
    assert_eq!(model.chats[&group()].unread(), 0);
    // From another device.
    model.frame(ServerFrame::Event(text(group(), 6, BOB, "in view")));
    assert_eq!(model.take_effects(), [Effect::Read(group(), 6)]);
}

#[test]
fn a_name_opens_a_chat_and_an_unknown_one_says_so() {
    let mut model = alice();
    enter(&mut model, "hello");
    assert!(screen(&mut model, 80, 24).contains("open a chat first"));
    enter(&mut model, "/dm carol");
    let [ClientFrame::Resolve(ask)] = &submitted(&mut model)[..] else { panic!("one question") };
    assert_eq!(ask.names, ["carol"]);
    let nobody = Users { request_id: ask.request_id, users: Vec::new() };
    model.frame(ServerFrame::Users(nobody));
    assert!(screen(&mut model, 80, 24).contains("no user is called \"carol\": they have to log in once"));
    enter(&mut model, "/dm carol");
    let [ClientFrame::Resolve(ask)] = &submitted(&mut model)[..] else { panic!("one question") };
    let users = vec![UserName { user_id: CAROL, name: "carol".to_owned() }];
    model.frame(ServerFrame::Users(Users { request_id: ask.request_id, users }));
    assert_eq!(model.open, ChatId::direct(ALICE, CAROL));
}

#[test]
fn a_group_is_made_named_and_left() {
    let mut model = with_chats();
    enter(&mut model, "/leave");
    assert!(screen(&mut model, 80, 24).contains("this is a direct chat"));
    enter(&mut model, "/group 'new team' bob carol");
    let [ClientFrame::Resolve(ask)] = &submitted(&mut model)[..] else { panic!("one question") };
    let users = [(CAROL, "carol"), (BOB, "bob")];
    let users = users.map(|(user_id, name)| UserName { user_id, name: name.to_owned() }).to_vec();
    model.frame(ServerFrame::Users(Users { request_id: ask.request_id, users }));
    let [ClientFrame::GroupCreate(create)] = &submitted(&mut model)[..] else { panic!("one group") };
    assert_eq!((create.title.as_str(), &create.members[..]), ("new team", &[BOB, CAROL][..]), "in the typed order");
    let chat_id = ChatId::group(77);
    let sent = Sent { chat_id, client_msg_id: create.client_msg_id, message_id: message_id(1), seq: 1 };
    model.frame(ServerFrame::Sent(sent));
    assert_eq!(model.open, Some(chat_id));
    let change = |user_id, action, role| MemberChange { user_id, action, role };
    let body = MembershipBody {
        changes: vec![change(ALICE, MemberAction::Added, Role::Owner), change(BOB, MemberAction::Added, Role::Member)],
    };
    model.frame(ServerFrame::Event(event(chat_id, 1, ALICE, Body::Membership(body))));
    model.frame(ServerFrame::Event(event(chat_id, 2, BOB, Body::Title(TitleBody { title: "renamed".to_owned() }))));
    let shown = screen(&mut model, 80, 24);
    assert!(shown.contains("alice: [creates the group, adds bob]") && shown.contains("#renamed"), "{shown}");
    model.take_effects();
    enter(&mut model, "/leave");
    let [ClientFrame::GroupChange(change)] = &submitted(&mut model)[..] else { panic!("one change") };
    assert_eq!((change.chat_id, &change.change), (chat_id, &Change::Leave {}));
    model.frame(ServerFrame::Error(frame::Error {
        code: ErrorCode::OwnerMustHandOver,
        message: "the owner hands over before leaving".to_owned(),
        client_msg_id: Some(change.client_msg_id),
        request_id: None,
        chat_id: None,
        retry_after_ms: None,
    }));
    assert!(screen(&mut model, 80, 24).contains("cannot leave: the owner hands over before leaving"));
}

#[test]
fn scrolling_up_reads_older_messages_and_stays_where_one_looks() {
    let mut model = with_chats();
    press(&mut model, KeyCode::Tab);
    let request_id = asked_history(&mut model);
    let events = (101..=150).map(|seq| text(group(), seq, BOB, &format!("message {seq}"))).collect();
    model.frame(ServerFrame::HistoryPage(HistoryPage { request_id, chat_id: group(), events, more: true }));
    assert!(screen(&mut model, 80, 24).contains("message 150"));
    assert_eq!(submitted(&mut model), [], "the newest are in view: nothing older is needed");
    for _ in 0..2 {
        press(&mut model, KeyCode::PageUp);
        screen(&mut model, 80, 24);
    }
    let request_id = asked_history(&mut model);
    assert!(screen(&mut model, 80, 24).contains("message 101"));
    assert_eq!(submitted(&mut model), [], "one page at a time");
    let events = (51..=100).map(|seq| text(group(), seq, BOB, &format!("message {seq}"))).collect();
    model.frame(ServerFrame::HistoryPage(HistoryPage { request_id, chat_id: group(), events, more: false }));
    let shown = screen(&mut model, 80, 24);
    assert!(shown.contains("message 101") && !shown.contains("message 150"), "{shown}");
    model.frame(ServerFrame::Event(text(group(), 151, BOB, "new")));
    press(&mut model, KeyCode::Esc);
    assert!(screen(&mut model, 80, 24).contains("bob: new"));
}

#[test]
fn what_comes_below_while_one_reads_older_messages_is_counted() {
    let mut model = with_chats();
    for seq in 3..=60 {
        model.frame(ServerFrame::Event(text(direct(), seq, BOB, &format!("message {seq}"))));
    }
    assert!(!screen(&mut model, 80, 24).contains("new below"));
    press(&mut model, KeyCode::PageUp);
    screen(&mut model, 80, 24);
    model.frame(ServerFrame::Event(text(direct(), 61, BOB, "one")));
    model.frame(ServerFrame::Event(text(direct(), 62, BOB, "two")));
    let shown = screen(&mut model, 80, 24);
    assert!(shown.contains("2 new below"), "{shown}");
    press(&mut model, KeyCode::Esc);
    let shown = screen(&mut model, 80, 24);
    assert!(shown.contains("bob: two") && !shown.contains("new below"), "{shown}");
}

#[test]
fn expired_messages_are_not_shown_and_replies_and_mentions_are() {
    let mut model = with_chats();
    let message = |payload: &str, expires_at_ms, reply_to, mentions| {
        let (content_type, payload) = ("text/plain".to_owned(), payload.as_bytes().to_vec());
        Body::Message(MessageBody { content_type, payload, expires_at_ms, reply_to, mentions, ..Default::default() })
    };
    let gone = message("gone already", Some(NOON_MS), None, vec![]);
    let stays = message("still here", Some(NOON_MS + 1), Some(2), vec![ALICE, CAROL]);
    model.frame(ServerFrame::Event(event(direct(), 3, BOB, gone)));
    model.frame(ServerFrame::Event(event(direct(), 4, BOB, stays)));
    let shown = screen(&mut model, 120, 24);
    assert!(!shown.contains("gone already"), "{shown}");
    assert!(shown.contains("bob: (reply to 2) still here (to @alice, @carol)"), "{shown}");
}

#[test]
fn another_history_begins_with_an_empty_screen() {
    let mut model = with_chats();
    model.connected(&welcome(UserId(71)));
    assert!(model.chats.is_empty() && model.open.is_none());
    let shown = screen(&mut model, 80, 24);
    assert!(shown.contains("this server has a new history") && !shown.contains("are you there?"), "{shown}");
}

#[test]
fn memory_for_one_chat_is_bounded() {
    let mut model = with_chats();
    for seq in 3..=EVENTS_MAX as u64 + 10 {
        model.frame(ServerFrame::Event(text(direct(), seq, BOB, "x")));
    }
    let chat = &model.chats[&direct()];
    assert_eq!((chat.events.len(), chat.older), (EVENTS_MAX, true));
}

#[test]
fn a_lost_connection_shows_and_ends() {
    let mut model = with_chats();
    enter(&mut model, "/dance");
    model.line.clear();
    model.disconnected("connection refused", Duration::from_millis(50));
    assert!(screen(&mut model, 80, 24).contains("reconnecting: connection refused"));
    enter(&mut model, "said meanwhile");
    assert_eq!(submitted(&mut model).len(), 1, "the session keeps it until it is connected");
}

#[test]
fn hostile_names_titles_and_texts_do_not_drive_the_terminal() {
    let mut model = with_chats();
    let users = vec![UserName { user_id: BOB, name: "b\x1b[31mob".to_owned() }];
    model.frame(ServerFrame::Users(Users { request_id: u32::MAX, users }));
    model.frame(ServerFrame::Event(text(direct(), 3, BOB, "x\x1b]0;owned\x07\u{202e}")));
    for (width, height) in [(80, 24), (10, 4), (1, 1), (200, 3)] {
        let shown = screen(&mut model, width, height);
        assert!(!shown.contains('\x1b') && !shown.contains('\x07') && !shown.contains('\u{202e}'), "{shown}");
    }
}
