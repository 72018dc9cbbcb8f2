//! What the terminal client knows and decides: frames and keys in, state and requests out. No IO, no clock.

use super::line::Line;
use super::words::{self, Words};
use crate::commands::show;
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use parley_protocol::body::{MessageBody, kind};
use parley_protocol::frame::{self, Change, ChatSummary, Member, ServerFrame, Welcome};
use parley_protocol::{Body, ChatId, ChatKind, ClientFrame, ClientMsgId, ErrorCode, Event, OwnState, UserId, limits};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Events of one chat kept in memory; older ones are read again when one scrolls there.
const EVENTS_MAX: usize = 2_000;
/// Events of one page.
const PAGE: u32 = 50;
/// Milliseconds of an hour.
const HOUR_MS: u64 = 3_600_000;

/// What the model wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// A request with an answer.
    Submit(ClientFrame),
    /// A frame without one.
    Fire(ClientFrame),
    /// A read mark.
    Read(ChatId, u64),
    /// Live events of a large chat.
    Subscribe(ChatId),
    /// The end of that.
    Unsubscribe(ChatId),
    /// The end.
    Quit,
}

/// The connection, for the status line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// The first attempt.
    Connecting,
    /// A session is open.
    Up,
    /// None is; the text says why.
    Down(String),
}

/// A message of one's own that is not in the log yet, as far as this device knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sending {
    /// Its name.
    pub(crate) client_msg_id: ClientMsgId,
    /// What it says.
    pub(crate) text: String,
    /// Durable already.
    pub(crate) sent: bool,
    /// Refused, and why.
    pub(crate) failed: Option<String>,
}

/// A chat.
#[derive(Debug, Default)]
pub(crate) struct Chat {
    pub(crate) title: String,
    pub(crate) member_count: u32,
    pub(crate) events: BTreeMap<u64, Event>,
    pub(crate) sending: Vec<Sending>,
    /// Others' marks: delivered and read.
    pub(crate) marks: BTreeMap<UserId, (u64, u64)>,
    pub(crate) muted_until_ms: u64,
    pub(crate) left: bool,
    /// There are older events than those kept here.
    pub(crate) older: bool,
    large: bool,
    head_seq: u64,
    head_ordinal: u64,
    sent: u64,
    read_seq: u64,
    read_ordinal: u64,
    read_sent: u64,
    last: u64,
    loading: bool,
    loaded: bool,
}

/// How far a message of one's own has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Durable.
    Sent,
    /// On a device of everyone else.
    Delivered,
    /// Read by so many of so many others.
    ReadBy(usize, usize),
    /// Read by everyone else.
    Read,
}

impl Chat {
    /// Messages of others above one's read mark.
    pub(crate) fn unread(&self) -> u64 {
        parley_protocol::event::unread(self.head_ordinal, self.sent, self.read_ordinal, self.read_sent)
    }

    /// How far one's own message at `seq` has come.
    pub(crate) fn reach(&self, seq: u64) -> Reach {
        let others = self.marks.len();
        let read = self.marks.values().filter(|(_, read)| *read >= seq).count();
        if others > 0 && read == others {
            Reach::Read
        } else if read > 0 {
            Reach::ReadBy(read, others)
        } else if others > 0 && self.marks.values().all(|(delivered, _)| *delivered >= seq) {
            Reach::Delivered
        } else {
            Reach::Sent
        }
    }
}

/// What a request was for.
#[derive(Clone, Debug)]
enum Asked {
    History(ChatId),
    Members { show: bool },
    Summary,
    Profiles,
    Resolve { names: Vec<String>, then: Then },
}

/// What to do with users once their ids are known.
#[derive(Clone, Debug)]
enum Then {
    Dm,
    Group { title: String },
    Add(ChatId),
    Remove(ChatId),
    Role(ChatId, parley_protocol::Role),
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) me: Option<UserId>,
    pub(crate) my_name: String,
    pub(crate) link: Link,
    pub(crate) chats: BTreeMap<ChatId, Chat>,
    pub(crate) open: Option<ChatId>,
    pub(crate) line: Line,
    pub(crate) notice: Option<String>,
    pub(crate) help: bool,
    /// Lines above the newest one that are scrolled to.
    pub(crate) scroll: usize,
    /// Events that came below what is scrolled to.
    pub(crate) new_below: usize,
    page_lines: usize,
    names: HashMap<UserId, String>,
    asked: HashMap<u32, Asked>,
    commands: HashMap<ClientMsgId, &'static str>,
    next_request: u32,
    next_command: u128,
    effects: Vec<Effect>,
}

impl Model {
    /// Before the first connection. `random` makes the names of this client's commands unique.
    pub(crate) fn new(random: u128) -> Self {
        Self {
            me: None,
            my_name: String::new(),
            link: Link::Connecting,
            chats: BTreeMap::new(),
            open: None,
            line: Line::default(),
            notice: None,
            help: false,
            scroll: 0,
            new_below: 0,
            page_lines: 10,
            names: HashMap::new(),
            asked: HashMap::new(),
            commands: HashMap::new(),
            next_request: 1,
            next_command: random,
            effects: Vec::new(),
        }
    }

    /// What is to be done since the last call.
    pub(crate) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// The chats, the one with the newest event first.
    pub(crate) fn order(&self) -> Vec<ChatId> {
        let mut order: Vec<ChatId> = self.chats.keys().copied().collect();
        order.sort_by_key(|chat_id| (std::cmp::Reverse(self.chats[chat_id].last), *chat_id));
        order
    }

    /// A user's name, or the number until it is known.
    pub(crate) fn name(&self, user: UserId) -> String {
        match self.names.get(&user) {
            Some(name) if !name.is_empty() => show::plain(name),
            _ => format!("user {user}"),
        }
    }

    /// What to call a chat.
    pub(crate) fn label(&self, chat_id: ChatId) -> String {
        let peer = self.me.and_then(|me| chat_id.peer_of(me));
        match (peer, self.chats.get(&chat_id)) {
            (Some(peer), _) => self.name(peer),
            (None, Some(chat)) if !chat.title.is_empty() => format!("#{}", show::plain(&chat.title)),
            (None, Some(chat)) => format!("a group of {}", chat.member_count),
            (None, None) => chat_id.to_string(),
        }
    }

    /// A session is open.
    pub(crate) fn connected(&mut self, welcome: &Welcome) {
        self.link = Link::Up;
        if self.me.is_some_and(|me| me != welcome.user_id) {
            self.forget();
        }
        self.me = Some(welcome.user_id);
        // A name does not go away; an empty one says nothing.
        if !welcome.name.is_empty() {
            self.my_name.clone_from(&welcome.name);
            self.names.insert(welcome.user_id, welcome.name.clone());
        }
        if let Some(chat_id) = self.open {
            self.mark_read(chat_id);
        }
    }

    /// The server's store is another one: its ids mean nothing of what was shown.
    fn forget(&mut self) {
        self.chats.clear();
        self.open = None;
        self.names.clear();
        self.asked.clear();
        self.commands.clear();
        self.effects.clear();
        self.scroll = 0;
        self.new_below = 0;
        self.notice = Some("this server has a new history; what was here before is gone from it".to_owned());
    }

    /// No session is open.
    pub(crate) fn disconnected(&mut self, why: &str, retry_in: Duration) {
        // An old notice must not hide it.
        if self.link == Link::Up {
            self.notice = None;
        }
        self.link = Link::Down(format!("{why}; next attempt in {} ms", retry_in.as_millis()));
    }

    /// How many lines the messages take and how many are seen, from the view. Reads older events near the top.
    pub(crate) fn rendered(&mut self, lines: usize, seen: usize) {
        self.page_lines = seen.max(1);
        self.scroll = self.scroll.min(lines.saturating_sub(seen));
        if self.scroll == 0 {
            self.new_below = 0;
        }
        let Some(chat_id) = self.open else { return };
        let near_top = self.scroll + seen + seen / 2 >= lines;
        let Some(chat) = self.chats.get(&chat_id) else { return };
        if self.scroll > 0 && near_top && chat.older && !chat.loading {
            let before = chat.events.keys().next().copied();
            self.load(chat_id, before);
        }
    }

    /// A frame of the server.
    pub(crate) fn frame(&mut self, frame: ServerFrame) {
        match frame {
            ServerFrame::Event(event) => self.event(event, true),
            ServerFrame::Sent(sent) => self.sent(sent),
            ServerFrame::Error(error) => self.error(error),
            ServerFrame::Own(own) => self.own(own),
            ServerFrame::Receipt(receipt) => {
                if Some(receipt.user_id) != self.me
                    && let Some(chat) = self.chats.get_mut(&receipt.chat_id)
                {
                    let marks = chat.marks.entry(receipt.user_id).or_default();
                    *marks = (marks.0.max(receipt.delivered_seq), marks.1.max(receipt.read_seq));
                }
            }
            ServerFrame::Head(head) => {
                if let Some(chat) = self.chats.get_mut(&head.chat_id) {
                    chat.head_seq = chat.head_seq.max(head.seq);
                    chat.head_ordinal = chat.head_ordinal.max(head.ordinal);
                }
            }
            ServerFrame::ChatList(list) => {
                self.asked.remove(&list.request_id);
                list.chats.into_iter().for_each(|summary| self.summary(summary));
            }
            ServerFrame::HistoryPage(page) => self.history(page),
            ServerFrame::MemberPage(page) => self.members(page),
            ServerFrame::Users(users) => self.users(users),
            _ => {}
        }
    }

    /// A key.
    pub(crate) fn key(&mut self, key: KeyEvent, now_unix_ms: u64) {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c' | 'd') if control => self.effects.push(Effect::Quit),
            KeyCode::Char('w') if control => self.line.delete_word(),
            KeyCode::Char('u') if control => self.line.clear(),
            KeyCode::Char('a') if control => self.line.home(),
            KeyCode::Char('e') if control => self.line.end(),
            KeyCode::Char(_) if control => {}
            KeyCode::Char(character) => self.line.insert(character.encode_utf8(&mut [0; 4])),
            KeyCode::Backspace => self.line.backspace(),
            KeyCode::Delete => self.line.delete(),
            KeyCode::Left => self.line.left(),
            KeyCode::Right => self.line.right(),
            KeyCode::Home => self.line.home(),
            KeyCode::End => self.line.end(),
            KeyCode::Tab | KeyCode::Down => self.step(1),
            KeyCode::BackTab | KeyCode::Up => self.step(-1),
            KeyCode::PageUp => self.scroll += self.page_lines.max(2) - 1,
            KeyCode::PageDown => self.scroll = self.scroll.saturating_sub(self.page_lines.max(2) - 1),
            KeyCode::Esc => {
                self.help = false;
                self.notice = None;
                self.scroll = 0;
            }
            KeyCode::Enter => self.enter(now_unix_ms),
            _ => {}
        }
    }

    /// A pasted text.
    pub(crate) fn paste(&mut self, text: &str) {
        self.line.insert(text);
    }

    fn enter(&mut self, now_unix_ms: u64) {
        let text = self.line.text().trim().to_owned();
        self.help = false;
        self.notice = None;
        if text.is_empty() {
            return;
        }
        match words::parse(&text) {
            Ok(words) => {
                self.line.clear();
                self.act(words, now_unix_ms);
            }
            // What was typed stays, to be mended.
            Err(what) => self.notice = Some(format!("{what} (Ctrl-U clears the line)")),
        }
    }

    fn act(&mut self, words: Words, now_unix_ms: u64) {
        match words {
            Words::Help => self.help = true,
            Words::Quit => self.effects.push(Effect::Quit),
            Words::Dm(name) => self.resolve(vec![name], Then::Dm),
            Words::Group { title, names } if names.is_empty() => self.create_group(title, Vec::new()),
            Words::Group { title, names } => self.resolve(names, Then::Group { title }),
            Words::Say(text) => {
                if let Some(chat_id) = self.need_chat() {
                    self.say(chat_id, text);
                }
            }
            Words::Add(names) => self.in_group(|model, chat_id| model.resolve(names, Then::Add(chat_id))),
            Words::Remove(names) => self.in_group(|model, chat_id| model.resolve(names, Then::Remove(chat_id))),
            Words::Role(name, role) => {
                self.in_group(|model, chat_id| model.resolve(vec![name], Then::Role(chat_id, role)));
            }
            Words::Rename(title) => {
                self.in_group(|model, chat_id| model.change(chat_id, "rename the group", Change::Rename { title }));
            }
            Words::Leave => self.in_group(|model, chat_id| model.change(chat_id, "leave", Change::Leave {})),
            Words::Members => {
                if let Some(chat_id) = self.need_chat() {
                    self.ask_members(chat_id, true);
                }
            }
            Words::Mute(hours) => {
                if let Some(chat_id) = self.need_chat() {
                    let until_ms = if hours == 0 { 0 } else { now_unix_ms.saturating_add(hours * HOUR_MS) };
                    self.effects.push(Effect::Fire(ClientFrame::Mute(frame::Mute { chat_id, until_ms })));
                }
            }
        }
    }

    fn need_chat(&mut self) -> Option<ChatId> {
        if self.open.is_none() {
            self.notice = Some("open a chat first: /dm NAME".to_owned());
        }
        self.open
    }

    fn in_group(&mut self, act: impl FnOnce(&mut Self, ChatId)) {
        let Some(chat_id) = self.need_chat() else { return };
        if matches!(chat_id.kind(), Some(ChatKind::Group(_) | ChatKind::Channel(..))) {
            act(self, chat_id);
        } else {
            self.notice = Some("this is a direct chat; /group makes a group".to_owned());
        }
    }

    fn say(&mut self, chat_id: ChatId, text: String) {
        let client_msg_id = self.command_name();
        let body = MessageBody {
            content_type: "text/plain".to_owned(),
            payload: text.clone().into_bytes(),
            ..MessageBody::default()
        };
        let envelope = Body::Message(body).to_envelope();
        self.scroll = 0;
        self.effects.push(Effect::Submit(ClientFrame::Send(frame::Send { chat_id, client_msg_id, envelope })));
        let chat = self.chats.entry(chat_id).or_default();
        chat.sending.push(Sending { client_msg_id, text, sent: false, failed: None });
    }

    fn create_group(&mut self, title: String, members: Vec<UserId>) {
        let client_msg_id = self.command_name();
        self.commands.insert(client_msg_id, "create the group");
        let create = frame::GroupCreate { client_msg_id, title, members };
        self.effects.push(Effect::Submit(ClientFrame::GroupCreate(create)));
    }

    fn change(&mut self, chat_id: ChatId, what: &'static str, change: Change) {
        let client_msg_id = self.command_name();
        self.commands.insert(client_msg_id, what);
        let change = frame::GroupChange { chat_id, client_msg_id, change };
        self.effects.push(Effect::Submit(ClientFrame::GroupChange(change)));
    }

    fn resolve(&mut self, names: Vec<String>, then: Then) {
        if names.len() > limits::RESOLVE_MAX {
            self.notice = Some(format!("at most {} names at once", limits::RESOLVE_MAX));
            return;
        }
        let asked = Asked::Resolve { names: names.clone(), then };
        self.ask(asked, |request_id| ClientFrame::Resolve(frame::Resolve { request_id, names }));
    }

    fn ask(&mut self, asked: Asked, make: impl FnOnce(u32) -> ClientFrame) {
        let id = self.next_request;
        // The upper half is the session's own.
        self.next_request = (self.next_request + 1) & (u32::MAX >> 1);
        self.asked.insert(id, asked);
        self.effects.push(Effect::Submit(make(id)));
    }

    fn ask_members(&mut self, chat_id: ChatId, show: bool) {
        self.ask(Asked::Members { show }, |request_id| {
            ClientFrame::Members(frame::Members { request_id, chat_id, after: None, limit: 0 })
        });
    }

    /// The summary of one chat: the list of those after the id before it.
    fn ask_summary(&mut self, chat_id: ChatId) {
        let after = Some(ChatId(chat_id.0.saturating_sub(1)));
        self.ask(Asked::Summary, |request_id| ClientFrame::Chats(frame::Chats { request_id, after, limit: 1 }));
    }

    fn ask_names(&mut self, users: impl IntoIterator<Item = UserId>) {
        let mut unknown: Vec<UserId> = users.into_iter().filter(|user| !self.names.contains_key(user)).collect();
        unknown.sort_unstable();
        unknown.dedup();
        for chunk in unknown.chunks(limits::RESOLVE_MAX) {
            let users = chunk.to_vec();
            // Known as nobody until the answer comes, so that nobody is asked for twice.
            self.names.extend(users.iter().map(|user| (*user, String::new())));
            self.ask(Asked::Profiles, |request_id| ClientFrame::Profiles(frame::Profiles { request_id, users }));
        }
    }

    fn load(&mut self, chat_id: ChatId, before: Option<u64>) {
        if let Some(chat) = self.chats.get_mut(&chat_id) {
            chat.loading = true;
        }
        self.ask(Asked::History(chat_id), |request_id| {
            ClientFrame::History(frame::History { request_id, chat_id, before, after: None, limit: PAGE })
        });
    }

    fn command_name(&mut self) -> ClientMsgId {
        self.next_command = self.next_command.wrapping_add(1);
        ClientMsgId(self.next_command)
    }

    fn step(&mut self, by: isize) {
        let order = self.order();
        if order.is_empty() {
            return;
        }
        let at = self.open.and_then(|open| order.iter().position(|chat_id| *chat_id == open));
        let count = order.len() as isize;
        let next = at.map_or(0, |at| (at as isize + by).rem_euclid(count));
        self.open_chat(order[next as usize]);
    }

    fn open_chat(&mut self, chat_id: ChatId) {
        if let Some(old) = self.open.replace(chat_id)
            && old != chat_id
            && self.chats.get(&old).is_some_and(|chat| chat.large)
        {
            self.effects.push(Effect::Unsubscribe(old));
        }
        self.scroll = 0;
        self.new_below = 0;
        let peer = self.me.and_then(|me| chat_id.peer_of(me));
        self.ask_names(peer);
        let chat = self.chats.entry(chat_id).or_default();
        if chat.large {
            self.effects.push(Effect::Subscribe(chat_id));
        }
        if !chat.loaded && !chat.loading {
            self.load(chat_id, None);
            self.ask_members(chat_id, false);
        }
        self.mark_read(chat_id);
    }

    /// The chat is in view: what is shown is read.
    fn mark_read(&mut self, chat_id: ChatId) {
        if self.open != Some(chat_id) {
            return;
        }
        if let Some(chat) = self.chats.get(&chat_id)
            && chat.head_seq > chat.read_seq
        {
            let seq = chat.head_seq;
            // Only the newest counts.
            self.effects.retain(|effect| !matches!(effect, Effect::Read(earlier, _) if *earlier == chat_id));
            self.effects.push(Effect::Read(chat_id, seq));
        }
    }

    fn event(&mut self, event: Event, live: bool) {
        let me = self.me;
        let (chat_id, seq) = (event.chat_id, event.seq);
        self.ask_names(show::users_of(&event));
        let known = self.chats.contains_key(&chat_id);
        let chat = self.chats.entry(chat_id).or_default();
        if chat.events.contains_key(&seq) {
            return;
        }
        chat.head_seq = chat.head_seq.max(seq);
        chat.head_ordinal = chat.head_ordinal.max(event.ordinal);
        chat.last = chat.last.max(event.message_id.0);
        if Some(event.sender) == me {
            chat.sent = chat.sent.max(event.sender_sent);
            chat.sending.retain(|sending| sending.client_msg_id != event.client_msg_id);
        }
        let kind = event.envelope.kind;
        if let Ok(Body::Title(title)) = event.envelope.to_body()
            && live
        {
            chat.title = title.title;
        }
        chat.events.insert(seq, event);
        if live && self.scroll > 0 && self.open == Some(chat_id) {
            self.new_below += 1;
        }
        while chat.events.len() > EVENTS_MAX && self.scroll == 0 && live {
            chat.events.pop_first();
            chat.older = true;
        }
        if live && (!known || kind == kind::MEMBERSHIP) {
            self.ask_summary(chat_id);
            if self.open == Some(chat_id) {
                self.ask_members(chat_id, false);
            }
        }
        if live {
            self.mark_read(chat_id);
        }
    }

    fn sent(&mut self, sent: frame::Sent) {
        match self.commands.remove(&sent.client_msg_id) {
            Some("create the group") => {
                self.ask_summary(sent.chat_id);
                self.open_chat(sent.chat_id);
            }
            Some(_) => {}
            None => {
                if let Some(chat) = self.chats.get_mut(&sent.chat_id) {
                    if chat.events.contains_key(&sent.seq) {
                        chat.sending.retain(|sending| sending.client_msg_id != sent.client_msg_id);
                    }
                    for sending in &mut chat.sending {
                        sending.sent |= sending.client_msg_id == sent.client_msg_id;
                    }
                    chat.last = chat.last.max(sent.message_id.0);
                }
            }
        }
    }

    fn error(&mut self, error: frame::Error) {
        let asked = error.request_id.and_then(|id| self.asked.remove(&id));
        if let Some(Asked::History(chat_id)) = asked {
            if let Some(chat) = self.chats.get_mut(&chat_id) {
                // A direct chat in which nobody has said anything does not exist yet.
                chat.loading = false;
                chat.loaded = error.code != ErrorCode::NoSuchChat;
                chat.older = false;
            }
            return;
        }
        if let (Some(Asked::Members { .. } | Asked::Summary), ErrorCode::NoSuchChat) = (&asked, error.code) {
            return;
        }
        let message = show::plain(&error.message);
        if let Some(name) = error.client_msg_id {
            if let Some(what) = self.commands.remove(&name) {
                self.notice = Some(format!("cannot {what}: {message}"));
                return;
            }
            let sending = self.chats.values_mut().flat_map(|chat| &mut chat.sending);
            for sending in sending.filter(|sending| sending.client_msg_id == name) {
                sending.failed = Some(message.clone());
            }
        }
        self.notice = Some(message);
    }

    fn own(&mut self, own: OwnState) {
        if let Some(chat) = self.chats.get_mut(&own.chat_id) {
            chat.muted_until_ms = own.muted_until_ms;
            if own.read_seq >= chat.read_seq {
                (chat.read_seq, chat.read_ordinal, chat.read_sent) = (own.read_seq, own.read_ordinal, own.read_sent);
            }
        }
    }

    fn summary(&mut self, summary: ChatSummary) {
        let chat_id = summary.chat_id;
        let chat = self.chats.entry(chat_id).or_default();
        chat.title = summary.title;
        chat.member_count = summary.members;
        chat.large = summary.large;
        chat.left = summary.role.is_none() && !matches!(chat_id.kind(), Some(ChatKind::Direct(..)));
        // The list says how many are unread; with the marks that says how many one sent.
        let read_since = summary.head_ordinal.saturating_sub(summary.own.read_ordinal);
        let sent = summary.own.read_sent + read_since.saturating_sub(summary.unread);
        chat.sent = chat.sent.max(sent);
        chat.head_seq = chat.head_seq.max(summary.head_seq);
        chat.head_ordinal = chat.head_ordinal.max(summary.head_ordinal);
        let peer = self.me.and_then(|me| chat_id.peer_of(me));
        if let Some(last) = &summary.last {
            chat.last = chat.last.max(last.message_id.0);
        }
        self.own(summary.own);
        self.ask_names(peer);
        match self.open {
            None => self.open_chat(chat_id),
            Some(_) => self.mark_read(chat_id),
        }
    }

    fn history(&mut self, page: frame::HistoryPage) {
        self.asked.remove(&page.request_id);
        let before = self.scroll;
        for event in page.events {
            self.event(event, false);
        }
        self.scroll = before;
        if let Some(chat) = self.chats.get_mut(&page.chat_id) {
            chat.loading = false;
            chat.loaded = true;
            chat.older = page.more;
        }
        self.mark_read(page.chat_id);
    }

    fn members(&mut self, page: frame::MemberPage) {
        let show = matches!(self.asked.remove(&page.request_id), Some(Asked::Members { show: true }));
        let me = self.me;
        self.ask_names(page.members.iter().map(|member| member.user_id));
        if let Some(chat) = self.chats.get_mut(&page.chat_id) {
            let others = page.members.iter().filter(|member| Some(member.user_id) != me);
            let old = std::mem::take(&mut chat.marks);
            chat.marks = others
                .map(|member| {
                    let (delivered, read) = old.get(&member.user_id).copied().unwrap_or_default();
                    (member.user_id, (delivered.max(member.delivered_seq), read.max(member.read_seq)))
                })
                .collect();
        }
        if show {
            let who = |member: &Member| match member.role {
                parley_protocol::Role::Member => self.name(member.user_id),
                role => format!("{} ({})", self.name(member.user_id), show::role(role)),
            };
            let names: Vec<String> = page.members.iter().map(who).collect();
            self.notice = Some(names.join(", "));
        }
    }

    fn users(&mut self, users: frame::Users) {
        for user in &users.users {
            self.names.insert(user.user_id, user.name.clone());
        }
        let Some(Asked::Resolve { names, then }) = self.asked.remove(&users.request_id) else { return };
        let mut ids = Vec::with_capacity(names.len());
        for name in &names {
            match users.users.iter().find(|user| user.name == *name) {
                Some(user) => ids.push(user.user_id),
                None => {
                    self.notice = Some(format!("no user is called {name:?}: they have to log in once"));
                    return;
                }
            }
        }
        match then {
            Then::Dm => match self.me.zip(ids.first()).and_then(|(me, peer)| ChatId::direct(me, *peer)) {
                Some(chat_id) => self.open_chat(chat_id),
                None => self.notice = Some("a chat needs somebody else".to_owned()),
            },
            Then::Group { title } => self.create_group(title, ids),
            Then::Add(chat_id) => self.change(chat_id, "add them", Change::Add { users: ids }),
            Then::Remove(chat_id) => self.change(chat_id, "remove them", Change::Remove { users: ids }),
            Then::Role(chat_id, role) => {
                self.change(chat_id, "give that role", Change::Role { user: ids[0], role });
            }
        }
    }
}

#[cfg(test)]
mod tests;
