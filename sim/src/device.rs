//! A device: what it stores, and what it does with each frame, as `docs/PROTOCOL.md` asks of a client. It trusts nothing
//! but the marks that it was issued.

use crate::trace::digest;
use parley_protocol::event::unread;
use parley_protocol::frame::{self, ChatSummary, ClientFrame};
use parley_protocol::wire::Encoding;
use parley_protocol::{ChatId, ClientMsgId, DeviceId, Event, OwnState, UserId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Commands of a device without an answer, at the most.
pub(crate) const KEPT_MAX: usize = 8;

/// A stored event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) message_id: u64,
    pub(crate) ordinal: u64,
    pub(crate) sender: UserId,
    pub(crate) sender_sent: u64,
    pub(crate) kind: u16,
    pub(crate) digest: u64,
}

impl Held {
    pub(crate) fn of(event: &Event) -> Held {
        Held {
            message_id: event.message_id.0,
            ordinal: event.ordinal,
            sender: event.sender,
            sender_sent: event.sender_sent,
            kind: event.envelope.kind,
            digest: digest(&event.envelope.body),
        }
    }
}

/// What a device stores of a chat.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeldChat {
    pub(crate) events: BTreeMap<u64, Held>,
    /// Everything that may be read up to here is held.
    pub(crate) complete_to: u64,
    /// The newest event that a chat list or a head told of.
    pub(crate) announced: u64,
    pub(crate) own: Option<OwnState>,
    /// A chat list came after the last own state of the stream.
    pub(crate) own_of_list: bool,
    /// What the user has read here; sent again until the server has it.
    pub(crate) wants_read: u64,
    /// Above the inbox limit, as far as the device knows.
    pub(crate) large: bool,
}

impl HeldChat {
    fn newest(&self) -> u64 {
        self.events.last_key_value().map_or(0, |(seq, _)| *seq)
    }

    fn advance(&mut self) {
        while self.events.contains_key(&(self.complete_to + 1)) {
            self.complete_to += 1;
        }
    }

    fn has_hole(&self) -> bool {
        self.newest() > self.complete_to
    }

    /// The newest event that it knows of.
    pub(crate) fn known_to(&self) -> u64 {
        self.newest().max(self.announced)
    }

    /// Unread messages, derived from what is held; nothing while that is not all.
    pub(crate) fn unread(&self, user: UserId) -> Option<u64> {
        let own = self.own?;
        let head = self.events.last_key_value()?.1.ordinal;
        let sent = self.events.values().rev().find(|held| held.sender == user).map_or(0, |held| held.sender_sent);
        Some(unread(head, sent, own.read_ordinal, own.read_sent))
    }
}

/// A command without an answer.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) client_msg_id: ClientMsgId,
    pub(crate) frame: ClientFrame,
    /// When it was first sent on this connection.
    pub(crate) said_at: Option<u64>,
    /// When to send it again, after the server said that it cannot now.
    pub(crate) again_at: Option<u64>,
}

/// What a page was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    Chats,
    /// Fills a hole below the newest event that the device knew of when it asked.
    Fill {
        chat_id: ChatId,
        upto: u64,
    },
    /// Looks around.
    Look(ChatId),
}

/// A device.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) id: DeviceId,
    pub(crate) encoding: Encoding,
    pub(crate) name: usize,
    pub(crate) user: Option<UserId>,

    // What is stored.
    pub(crate) mark: Option<u64>,
    pub(crate) ticket: Option<String>,
    /// A refresh is under way: it begins again after a crash.
    pub(crate) refreshing: bool,
    pub(crate) chats: BTreeMap<ChatId, HeldChat>,
    pub(crate) kept: VecDeque<Kept>,
    /// Stored after the last mark: lost with a crash of the device.
    since_mark: Vec<(ChatId, u64)>,

    // What is not.
    pub(crate) conn: Option<u32>,
    pub(crate) welcome: bool,
    pub(crate) pages: BTreeMap<u32, Page>,
    next_request: u32,
    /// Chats with holes to fill.
    pub(crate) holes: BTreeSet<ChatId>,
    /// It pages through its chats, from here.
    pub(crate) listing: Option<Option<ChatId>>,
    pub(crate) subscribed: BTreeSet<ChatId>,
    pub(crate) caught_up: bool,
    /// It has said again, on this connection, what it has read.
    pub(crate) read_again: bool,
    /// Chats whose read mark it has yet to say again.
    pub(crate) unsaid_reads: BTreeSet<ChatId>,
    /// It was told that it is too fast: until then it asks for nothing by itself.
    pub(crate) quiet_until: u64,
    pub(crate) heard_at: u64,
    /// The last long time, from and to, in which it heard nothing on this connection.
    pub(crate) silence: Option<(u64, u64)>,
    pub(crate) said_at: u64,
    pub(crate) stopped_reading_until: u64,
    /// Marks of others, as this connection told them.
    pub(crate) receipts: BTreeMap<(ChatId, UserId), (u64, u64)>,

    pub(crate) offline_until: u64,
    /// Connections since the last session.
    pub(crate) failures: u32,
    pub(crate) wake: Option<u64>,
    /// The user does not use it any more.
    pub(crate) retired: bool,
}

impl Device {
    pub(crate) fn new(id: u128, name: usize, mark: Option<u64>, encoding: Encoding) -> Device {
        Device {
            id: DeviceId(id),
            encoding,
            name,
            user: None,
            mark,
            ticket: None,
            refreshing: false,
            chats: BTreeMap::new(),
            kept: VecDeque::new(),
            since_mark: Vec::new(),
            conn: None,
            welcome: false,
            pages: BTreeMap::new(),
            next_request: 1,
            holes: BTreeSet::new(),
            listing: None,
            subscribed: BTreeSet::new(),
            caught_up: false,
            read_again: false,
            unsaid_reads: BTreeSet::new(),
            quiet_until: 0,
            heard_at: 0,
            silence: None,
            said_at: 0,
            stopped_reading_until: 0,
            receipts: BTreeMap::new(),
            offline_until: 0,
            failures: 0,
            wake: None,
            retired: false,
        }
    }

    /// Nothing of a connection is left.
    pub(crate) fn disconnected(&mut self) {
        self.conn = None;
        self.welcome = false;
        self.kept.iter_mut().for_each(|kept| kept.said_at = None);
        self.pages.clear();
        self.listing = None;
        self.subscribed.clear();
        self.caught_up = false;
        self.read_again = false;
        self.unsaid_reads.clear();
        self.quiet_until = 0;
        self.receipts.clear();
        self.stopped_reading_until = 0;
        self.silence = None;
    }

    /// The device dies: what it stored after its last mark is lost with it.
    pub(crate) fn crash(&mut self) {
        for (chat_id, seq) in std::mem::take(&mut self.since_mark) {
            let chat = self.chats.get_mut(&chat_id).expect("it is held");
            chat.events.remove(&seq);
            chat.complete_to = chat.complete_to.min(seq - 1);
        }
        self.holes = self.chats.iter().filter(|(_, chat)| chat.has_hole()).map(|(chat_id, _)| *chat_id).collect();
    }

    /// Nothing is left to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.caught_up
            && self.kept.is_empty()
            && self.pages.is_empty()
            && !self.refreshing
            && self.holes.is_empty()
            && self.listing.is_none()
    }

    pub(crate) fn request_id(&mut self, page: Page) -> u32 {
        let id = self.next_request;
        self.next_request += 1;
        self.pages.insert(id, page);
        id
    }

    /// Stores an event of the stream, or one of a page, which is stored for good at once; false if it was there.
    pub(crate) fn store(&mut self, event: &Event, of_stream: bool) -> bool {
        let held = Held::of(event);
        let chat = self.chats.entry(event.chat_id).or_default();
        if chat.events.insert(event.seq, held).is_some() {
            return false;
        }
        chat.advance();
        if of_stream {
            self.since_mark.push((event.chat_id, event.seq));
        }
        if chat.has_hole() {
            self.holes.insert(event.chat_id);
        }
        true
    }

    pub(crate) fn take_mark(&mut self, mark: u64) {
        self.mark = Some(mark);
        self.since_mark.clear();
    }

    pub(crate) fn take_truncated(&mut self, mark: u64) {
        self.refreshing = true;
        self.caught_up = true;
        self.take_mark(mark);
        self.listing = Some(None);
        // What was asked before is answered from before.
        self.pages.retain(|_, page| *page != Page::Chats);
    }

    pub(crate) fn take_own(&mut self, own: OwnState) {
        let chat = self.chats.entry(own.chat_id).or_default();
        // Of two values of the same chat the one that has read further is newer; of equals the later one.
        if chat.own.is_none_or(|held| held.read_seq <= own.read_seq) {
            chat.own = Some(own);
        }
    }

    /// A chat of the list; what lies above what is held is fetched.
    pub(crate) fn take_summary(&mut self, summary: &ChatSummary) {
        self.take_own(summary.own);
        let chat = self.chats.entry(summary.chat_id).or_default();
        chat.large = summary.large;
        chat.own_of_list = true;
        self.take_head(summary.chat_id, summary.head_seq);
    }

    /// The chat has an event of this number; true if the device does not have all up to there.
    pub(crate) fn take_head(&mut self, chat_id: ChatId, seq: u64) -> bool {
        let chat = self.chats.entry(chat_id).or_default();
        chat.announced = chat.announced.max(seq);
        seq > chat.complete_to && { self.holes.insert(chat_id) | true }
    }

    /// A page that was asked for with `after` = what was complete then, and `upto` = what was known of.
    pub(crate) fn take_filled(&mut self, chat_id: ChatId, upto: u64, last: Option<u64>, more: bool) {
        let chat = self.chats.entry(chat_id).or_default();
        // The last page has all that may be read of what was there when it was asked for, and maybe nothing newer.
        chat.complete_to = chat.complete_to.max(last.unwrap_or(0)).max(if more { 0 } else { upto });
        chat.advance();
        if chat.known_to() <= chat.complete_to {
            self.holes.remove(&chat_id);
        }
    }

    /// Confirms what is held, up to a hole.
    pub(crate) fn confirmable(&self, chat_id: ChatId) -> Option<frame::Position> {
        let chat = self.chats.get(&chat_id)?;
        let seq = chat.events.range(..=chat.complete_to).next_back().map(|(seq, _)| *seq)?;
        Some(frame::Position { chat_id, seq })
    }
}
