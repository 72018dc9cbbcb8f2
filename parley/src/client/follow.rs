//! How a device misses nothing and shows nothing twice: marks, positions per chat, and holes filled from history
//! (rules 12 and 14 of the delivery protocol, and how large chats are compared by their heads). No IO, no clock.

use parley_protocol::frame::{ChatSummary, HistoryPage, Mark};
use parley_protocol::{ChatId, Event, UserId};
use std::collections::BTreeMap;

/// Events held back while a hole before them is filled; more come from history anyway.
const HELD_MAX: usize = 256;
/// How often a history that does not reach what was announced is asked again.
const TRIES_MAX: u32 = 5;

/// What a frame led to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// To be handed on, in this order.
    pub(crate) events: Vec<Event>,
    /// History pages to ask for: the chat, and after which `seq`.
    pub(crate) fetch: Vec<(ChatId, u64)>,
    /// The chat list is needed, from its start.
    pub(crate) list: bool,
    /// A page did not bring what was announced: ask these again, after a moment.
    pub(crate) fetch_later: Vec<(ChatId, u64)>,
}

#[derive(Debug)]
struct Fill {
    upto: u64,
    held: BTreeMap<u64, Event>,
    tries: u32,
}

impl Fill {
    /// There is more than was known: a page that is on its way may be of before, so it is no try that failed.
    fn announce(&mut self, seq: u64) {
        if seq > self.upto {
            self.upto = seq;
            self.tries = 0;
        }
    }
}

/// The position of a device.
#[derive(Debug, Default)]
pub(crate) struct Follow {
    mark: Option<u64>,
    /// A mark that becomes the device's when no hole before it is open.
    arriving: Option<u64>,
    known: BTreeMap<ChatId, u64>,
    fills: BTreeMap<ChatId, Fill>,
    /// The list is being read because the backlog was truncated.
    truncated: bool,
    /// A list is being read.
    listing: bool,
    caught_up: bool,
    me: Option<UserId>,
    /// Delivered marks to send.
    delivered: BTreeMap<ChatId, u64>,
    changed: bool,
}

impl Follow {
    /// Goes on where a device was.
    pub(crate) fn new(mark: Option<u64>, known: BTreeMap<ChatId, u64>) -> Self {
        Self { mark, known, ..Self::default() }
    }

    /// What to present at `Hello`.
    pub(crate) fn mark(&self) -> Option<u64> {
        self.mark
    }

    /// What to store, once after each change.
    pub(crate) fn take_changed(&mut self) -> Option<(Option<u64>, &BTreeMap<ChatId, u64>)> {
        std::mem::take(&mut self.changed).then_some((self.mark, &self.known))
    }

    /// A session is open. Fills that were under way go on: their requests are sent again.
    pub(crate) fn connected(&mut self, me: UserId) {
        self.me = Some(me);
        self.caught_up = false;
        self.truncated = false;
        self.listing = false;
        self.arriving = None;
    }

    /// Delivered marks since the last call.
    pub(crate) fn take_delivered(&mut self) -> BTreeMap<ChatId, u64> {
        std::mem::take(&mut self.delivered)
    }

    /// Whether the stream has come to its end once since the connection opened, and no hole is open.
    pub(crate) fn is_caught_up(&self) -> bool {
        self.caught_up && self.fills.is_empty() && !self.listing
    }

    /// The backlog is not sent.
    pub(crate) fn truncated(&mut self, mark: u64) -> Outcome {
        if self.mark.is_some() {
            if self.mark > Some(mark) {
                // The server's store is younger than this device: what the device knows is of another life.
                self.known.clear();
                self.fills.clear();
            }
            self.truncated = true;
        }
        self.arriving = Some(mark);
        // The mark was the inbox's head: what comes above it is live, and the list compares the heads of large chats.
        self.caught_up = true;
        self.listing = true;
        Outcome { list: true, ..Outcome::default() }
    }

    /// The stream has come this far.
    pub(crate) fn marked(&mut self, mark: Mark) -> Outcome {
        self.arriving = Some(mark.inbox_seq);
        let first = mark.inbox_seq >= mark.head && !self.caught_up;
        // The heads of large chats are compared once a connection, after the stream has come to its end.
        let list = first && !self.listing;
        self.caught_up |= first;
        self.listing |= list;
        if !list {
            self.settle();
        }
        Outcome { list, ..Outcome::default() }
    }

    /// A page of the chat list. `more` pages follow.
    pub(crate) fn listed(&mut self, chats: &[ChatSummary], more: bool) -> Outcome {
        let mut outcome = Outcome::default();
        for chat in chats {
            match self.known.get(&chat.chat_id).copied() {
                Some(known) if known < chat.head_seq && (self.truncated || chat.large) => {
                    self.open_fill(chat.chat_id, known, chat.head_seq, None, &mut outcome);
                }
                Some(_) => {}
                None if self.truncated => self.open_fill(chat.chat_id, 0, chat.head_seq, None, &mut outcome),
                // Events of a large chat come beside the inbox: from here on its head is compared.
                None if chat.large => self.advance(chat.chat_id, chat.head_seq),
                None => {}
            }
        }
        if !more {
            self.listing = false;
            self.truncated = false;
            self.settle();
        }
        outcome
    }

    /// The list cannot be read: the stream goes on without it.
    pub(crate) fn list_refused(&mut self) {
        self.listing = false;
        self.truncated = false;
        self.settle();
    }

    /// The head of a large chat.
    pub(crate) fn head(&mut self, chat_id: ChatId, seq: u64) -> Outcome {
        let mut outcome = Outcome::default();
        match self.known.get(&chat_id).copied() {
            Some(known) if known < seq => self.open_fill(chat_id, known, seq, None, &mut outcome),
            Some(_) => {}
            None => self.advance(chat_id, seq),
        }
        outcome
    }

    /// An event of the stream.
    pub(crate) fn event(&mut self, event: Event) -> Outcome {
        let mut outcome = Outcome::default();
        let (chat_id, seq) = (event.chat_id, event.seq);
        if let Some(fill) = self.fills.get_mut(&chat_id) {
            fill.announce(seq);
            if fill.held.len() < HELD_MAX {
                fill.held.insert(seq, event);
            }
            return outcome;
        }
        match self.known.get(&chat_id).copied() {
            Some(known) if seq <= known => {}
            Some(known) if seq > known + 1 => self.open_fill(chat_id, known, seq, Some(event), &mut outcome),
            // The list that is under way has not named this chat yet; what lies before the event was truncated with it.
            None if self.truncated && seq > 1 => self.open_fill(chat_id, 0, seq, Some(event), &mut outcome),
            _ => self.emit(event, &mut outcome),
        }
        outcome
    }

    /// A page of history that a hole asked for.
    pub(crate) fn filled(&mut self, page: HistoryPage) -> Outcome {
        let mut outcome = Outcome::default();
        let chat_id = page.chat_id;
        let Some(mut fill) = self.fills.remove(&chat_id) else { return outcome };
        let before = self.known.get(&chat_id).copied().unwrap_or(0);
        for event in page.events {
            if event.seq > self.known.get(&chat_id).copied().unwrap_or(0) && event.chat_id == chat_id {
                self.emit(event, &mut outcome);
            }
        }
        let known = self.known.get(&chat_id).copied().unwrap_or(0);
        if known >= fill.upto {
            self.settle();
            return outcome;
        }
        let progress = known > before;
        fill.tries = if progress { 0 } else { fill.tries + 1 };
        if page.more && progress {
            outcome.fetch.push((chat_id, known));
        } else if fill.tries < TRIES_MAX {
            outcome.fetch_later.push((chat_id, known));
        } else {
            self.give_up(chat_id, fill, &mut outcome);
            return outcome;
        }
        self.fills.insert(chat_id, fill);
        outcome
    }

    /// A history request of a hole was refused: what was held is handed on, the hole stays.
    pub(crate) fn fill_refused(&mut self, chat_id: ChatId) -> Outcome {
        let mut outcome = Outcome::default();
        if let Some(fill) = self.fills.remove(&chat_id) {
            self.give_up(chat_id, fill, &mut outcome);
        }
        outcome
    }

    /// What is not in the history may not be read (one was not a member then).
    fn give_up(&mut self, chat_id: ChatId, fill: Fill, outcome: &mut Outcome) {
        for (seq, event) in fill.held {
            if seq > self.known.get(&chat_id).copied().unwrap_or(0) {
                self.emit(event, outcome);
            }
        }
        self.advance(chat_id, fill.upto);
        self.settle();
    }

    fn open_fill(&mut self, chat_id: ChatId, known: u64, upto: u64, held: Option<Event>, outcome: &mut Outcome) {
        if let Some(fill) = self.fills.get_mut(&chat_id) {
            fill.announce(upto);
            return;
        }
        let held = held.into_iter().map(|event| (event.seq, event)).collect();
        self.fills.insert(chat_id, Fill { upto, held, tries: 0 });
        outcome.fetch.push((chat_id, known));
    }

    fn emit(&mut self, event: Event, outcome: &mut Outcome) {
        self.advance(event.chat_id, event.seq);
        if self.me.is_some_and(|me| me != event.sender) {
            self.delivered.insert(event.chat_id, event.seq);
        }
        outcome.events.push(event);
    }

    fn advance(&mut self, chat_id: ChatId, seq: u64) {
        let known = self.known.entry(chat_id).or_insert(0);
        if *known < seq {
            *known = seq;
            self.changed = true;
        }
    }

    /// Takes the arrived mark over when everything before it was handed on.
    fn settle(&mut self) {
        if self.fills.is_empty()
            && !self.listing
            && let Some(mark) = self.arriving.take()
            && self.mark != Some(mark)
        {
            self.mark = Some(mark);
            self.changed = true;
        }
    }
}

#[cfg(test)]
mod tests;
