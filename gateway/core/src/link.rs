//! The gateway's end of the link to the storage-writer: numbering, window, resend, epoch hello. Rule 6: after a cut,
//! everything unanswered is sent again, in order and unchanged, until it is answered; an outcome is never guessed.
//!
//! There may be several writers, one of them active: they are tried in turn, whoever welcomes the link gets what is
//! unanswered, and stays the one to try first.

use crate::planted::{self, Bug};
use parley_protocol::ErrorCode;
use parley_protocol::limits::LINK_VERSION;
use parley_protocol::link::{Action, Answer, Ask, LinkHello, LinkWelcome, Reply, Request, ToGateway, ToWriter};
use parley_protocol::wire::{self, DecodeError};
use std::collections::VecDeque;

/// Where the link is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Waits for the time to connect, or for an epoch.
    Down,
    /// The shell connects.
    Connecting,
    /// Hello is sent.
    Greeting,
    /// Requests flow.
    Up,
}

/// What a record from the writer means.
#[derive(Debug)]
pub enum LinkEvent<T> {
    /// The link is open, perhaps again.
    Up {
        /// It was open before: answers may have been lost with it.
        again: bool,
    },
    /// An answer, with what the asker left.
    Answer {
        /// What the asker left.
        tag: T,
        /// The request was sent on more than one link.
        resent: bool,
        /// The answer.
        reply: Reply,
    },
    /// Whether the storage tier takes commands; the text says why not.
    Status {
        /// It does.
        ready: bool,
        /// Why not.
        reason: String,
    },
    /// This gateway must end.
    Fenced,
    /// The writer will not have this gateway; the text says why.
    Rejected(String),
    /// The writer stands by: close the link, the next one is tried. Where the active one is, if the writer knows.
    NotActive(String),
}

/// When the next attempt is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// At once: another writer was not tried yet.
    Now,
    /// After a pause: all were tried, or the link was open.
    Paused,
}

#[derive(Debug)]
struct Pending<T> {
    request: ToWriter,
    sent: u8,
    tag: Option<T>,
}

/// One shard's link. `T` is what an asker wants to see again with its answer.
#[derive(Debug)]
pub struct Link<T> {
    gateway: u128,
    shard: u16,
    shards: u16,
    window: usize,
    home_epoch: u64,
    state: State,
    was_up: bool,
    /// The number of the first entry of `pending`.
    first_no: u64,
    pending: VecDeque<Pending<T>>,
    unanswered: usize,
    /// Entries from here on were not sent on this link.
    next_unsent: usize,
    input: Vec<u8>,
    failures: u32,
    /// How many writers there are.
    writers: u16,
    /// The one that is tried next, or that the link is to.
    writer: u16,
    /// Those that were tried in this round.
    tried: u16,
    /// One of them said that it stands by.
    stands_by: bool,
    /// Rounds in a row in which nobody said anything.
    silent_rounds: u32,
    /// The epoch of the last writer that welcomed it.
    writer_epoch: u64,
    /// Whom to try next, whoever's turn it is.
    next: Option<u16>,
}

impl<T> Link<T> {
    /// A link that was never connected, to one of `writers`. `home_epoch` 0: not granted yet.
    pub fn new(gateway: u128, shard: u16, shards: u16, window: usize, writers: u16) -> Self {
        Self {
            gateway,
            shard,
            shards,
            window: window.max(1),
            home_epoch: 0,
            state: State::Down,
            was_up: false,
            first_no: 1,
            pending: VecDeque::new(),
            unanswered: 0,
            next_unsent: 0,
            input: Vec::new(),
            failures: 0,
            writers: writers.max(1),
            writer: 0,
            tried: 0,
            stands_by: false,
            silent_rounds: 0,
            writer_epoch: 0,
            next: None,
        }
    }

    /// Where it is.
    pub fn state(&self) -> State {
        self.state
    }

    /// The granted epoch; 0 before.
    pub fn home_epoch(&self) -> u64 {
        self.home_epoch
    }

    /// Takes over the epoch that another shard of this gateway was granted.
    pub fn set_home_epoch(&mut self, home_epoch: u64) {
        if self.home_epoch == 0 {
            self.home_epoch = home_epoch;
        }
    }

    /// Requests without an answer.
    pub fn unanswered(&self) -> usize {
        self.unanswered
    }

    /// The shell was told to connect.
    pub fn connecting(&mut self) {
        self.state = State::Connecting;
    }

    /// Rounds through all writers that failed since the link was last open.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Rounds in a row in which no writer said anything, not even that it stands by: they may all be slow.
    pub fn silent_rounds(&self) -> u32 {
        self.silent_rounds
    }

    /// The epoch of the last writer that welcomed it; 0 before.
    pub fn writer_epoch(&self) -> u64 {
        self.writer_epoch
    }

    /// The writer fell silent: the next attempt is for another one, though this one welcomed the link.
    pub fn distrust(&mut self) {
        if self.state == State::Up {
            self.state = State::Greeting;
        }
    }

    /// Another link found that this writer is active: it is tried next, at once. Whoever is tried now, or was open, is left
    /// when the link goes down.
    pub fn follow(&mut self, writer: u16) {
        let writer = writer % self.writers;
        self.tried = 0;
        if self.state == State::Down {
            self.writer = writer;
        } else {
            self.next = Some(writer);
        }
    }

    /// How many writers there are.
    pub fn writers(&self) -> u16 {
        self.writers
    }

    /// Which writer the next attempt is for, or the link is to; below [`Link::writers`].
    pub fn writer(&self) -> u16 {
        self.writer
    }

    /// The socket is there: appends the hello.
    pub fn handle_up(&mut self, out: &mut Vec<u8>) {
        self.state = State::Greeting;
        self.input.clear();
        if !planted::has(Bug::NotResent) {
            self.next_unsent = 0;
        }
        let hello = LinkHello {
            version: LINK_VERSION,
            gateway: self.gateway,
            shard: self.shard,
            shards: self.shards,
            home_epoch: self.home_epoch,
        };
        wire::encode_record(&ToWriter::Hello(hello), out);
    }

    /// The socket is gone, or never came.
    pub fn handle_down(&mut self) -> Retry {
        let was_open = self.state == State::Up;
        self.state = State::Down;
        self.input.clear();
        if let Some(next) = self.next.take() {
            self.writer = next;
            self.tried = 0;
            return Retry::Now;
        }
        // Who welcomed it is tried again first: it knows best whether it is still active.
        if !was_open {
            self.writer = (self.writer + 1) % self.writers;
            self.tried += 1;
            if self.tried < self.writers {
                return Retry::Now;
            }
        }
        self.tried = 0;
        self.failures = self.failures.saturating_add(1);
        let silent = !was_open && !std::mem::take(&mut self.stands_by);
        self.silent_rounds = if silent { self.silent_rounds.saturating_add(1) } else { 0 };
        Retry::Paused
    }

    /// Asks; the record leaves with the next [`Link::transmit`] that has room in the window. The caller bounds how much
    /// it asks.
    pub fn ask(&mut self, ask: Ask, tag: T) {
        let no = self.first_no + self.pending.len() as u64;
        let request = ToWriter::Request(Request { no, home_epoch: self.home_epoch, ask });
        self.pending.push_back(Pending { request, sent: 0, tag: Some(tag) });
        self.unanswered += 1;
    }

    /// Takes back those of the requests that were never sent on any link for which `refusable` holds, as if the writer
    /// had done nothing for them: it never heard of them. What was sent even once stays, and so does the order.
    pub fn take_back(&mut self, refusable: impl Fn(&Ask) -> bool, events: &mut VecDeque<LinkEvent<T>>) {
        // Sent ones are never behind unsent ones: all leave in order.
        let mut from = self.pending.len();
        while from > 0 && self.pending[from - 1].sent == 0 {
            from -= 1;
        }
        for mut pending in self.pending.split_off(from) {
            let ToWriter::Request(request) = &mut pending.request else { continue };
            if !refusable(&request.ask) {
                // Nobody knows the number that it had.
                request.no = self.first_no + self.pending.len() as u64;
                self.pending.push_back(pending);
            } else if let Some(tag) = pending.tag {
                self.unanswered -= 1;
                events.push_back(LinkEvent::Answer { tag, resent: false, reply: Reply::Failed });
            }
        }
        self.next_unsent = self.next_unsent.min(self.pending.len());
    }

    /// How many entries may be unanswered on the link.
    fn window(&self) -> usize {
        if planted::has(Bug::WindowIgnored) { usize::MAX } else { self.window }
    }

    /// True when [`Link::transmit`] has something to append.
    pub fn wants_transmit(&self) -> bool {
        self.state == State::Up && self.next_unsent < self.pending.len().min(self.window())
    }

    /// Appends what the window lets out, in order.
    pub fn transmit(&mut self, out: &mut Vec<u8>) {
        if self.state != State::Up {
            return;
        }
        let end = self.pending.len().min(self.window());
        let start = self.next_unsent.min(end);
        let resends = self.pending.get(start).is_some_and(|pending| pending.sent > 0);
        let backwards = planted::has(Bug::ResentOutOfOrder) && resends;
        for step in start..end {
            let at = if backwards { start + end - 1 - step } else { step };
            let pending = &mut self.pending[at];
            if pending.tag.is_some() {
                if planted::has(Bug::ResentChanged) && pending.sent > 0 {
                    rename(&mut pending.request);
                }
                // What was asked before the first grant leaves under the granted epoch, and never changes after that.
                if let (ToWriter::Request(request), 0) = (&mut pending.request, pending.sent) {
                    request.home_epoch = self.home_epoch;
                }
                match &pending.request {
                    ToWriter::Request(bare) if planted::has(Bug::ResentBare) && pending.sent > 0 => {
                        wire::encode_record(bare, out);
                    }
                    request => wire::encode_record(request, out),
                }
                pending.sent = pending.sent.saturating_add(1);
            }
        }
        self.next_unsent = self.next_unsent.max(end);
    }

    /// Takes bytes from the link and appends what they mean. An error means that the link cannot be trusted: close it.
    pub fn handle_data(&mut self, data: &[u8], events: &mut VecDeque<LinkEvent<T>>) -> Result<(), DecodeError> {
        if self.input.is_empty() {
            let rest = self.take_records(data, events)?;
            self.input.extend_from_slice(&data[rest..]);
            return Ok(());
        }
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(data);
        let rest = self.take_records(&input, events)?;
        input.drain(..rest);
        self.input = input;
        Ok(())
    }

    fn take_records(&mut self, data: &[u8], events: &mut VecDeque<LinkEvent<T>>) -> Result<usize, DecodeError> {
        let mut at = 0;
        while let Some((record, len)) = wire::split_record(&data[at..])? {
            let record = rkyv::from_bytes::<ToGateway, rkyv::rancor::Error>(record)
                .map_err(|_| DecodeError("a link record does not decode".to_owned()))?;
            at += len;
            self.handle_record(record, events)?;
        }
        Ok(at)
    }

    fn handle_record(&mut self, record: ToGateway, events: &mut VecDeque<LinkEvent<T>>) -> Result<(), DecodeError> {
        match record {
            ToGateway::Welcome(LinkWelcome { home_epoch, writer_epoch }) => {
                // A granted epoch never changes: another one means that this gateway is not the holder any more.
                if home_epoch == 0 || (self.home_epoch != 0 && self.home_epoch != home_epoch) {
                    events.push_back(LinkEvent::Fenced);
                    return Ok(());
                }
                self.home_epoch = home_epoch;
                self.state = State::Up;
                self.failures = 0;
                self.tried = 0;
                self.stands_by = false;
                self.silent_rounds = 0;
                self.writer_epoch = writer_epoch;
                self.next = None;
                events.push_back(LinkEvent::Up { again: self.was_up });
                self.was_up = true;
            }
            ToGateway::Status { ready, reason } => events.push_back(LinkEvent::Status { ready, reason }),
            ToGateway::Fenced => events.push_back(LinkEvent::Fenced),
            ToGateway::Rejected { reason } => events.push_back(LinkEvent::Rejected(reason)),
            ToGateway::NotActive { active } => {
                // Nothing leaves on this link any more, and its end counts as a failed attempt.
                self.state = State::Greeting;
                self.stands_by = true;
                events.push_back(LinkEvent::NotActive(active));
            }
            ToGateway::Answer(Answer { reply: Reply::Fenced, .. }) => events.push_back(LinkEvent::Fenced),
            ToGateway::Answer(Answer { no, reply }) => {
                let index = no.checked_sub(self.first_no).map(|index| index as usize);
                let pending = index.and_then(|index| self.pending.get_mut(index));
                // A second answer to a resent request finds nothing and is dropped.
                if let Some((tag, sent)) = pending.and_then(|entry| Some((entry.tag.take()?, entry.sent))) {
                    self.unanswered -= 1;
                    events.push_back(LinkEvent::Answer { tag, resent: sent > 1, reply });
                    self.forget_answered();
                }
            }
        }
        Ok(())
    }

    fn forget_answered(&mut self) {
        while self.pending.front().is_some_and(|entry| entry.tag.is_none()) {
            self.pending.pop_front();
            self.first_no += 1;
            self.next_unsent = self.next_unsent.saturating_sub(1);
        }
    }

    /// What a planted bug does at a cut: commands that were sent are taken for refused.
    pub(crate) fn guess_outcomes(&mut self, events: &mut VecDeque<LinkEvent<T>>) {
        for pending in &mut self.pending {
            let ToWriter::Request(Request { ask: Ask::Command(command), .. }) = &pending.request else { continue };
            let changes = !matches!(command.action, Action::Send(_));
            if (changes || !planted::has(Bug::ChangeGuessed))
                && pending.sent > 0
                && let Some(tag) = pending.tag.take()
            {
                self.unanswered -= 1;
                let reply = Reply::Refused(ErrorCode::Forbidden);
                events.push_back(LinkEvent::Answer { tag, resent: false, reply });
            }
        }
        self.forget_answered();
    }
}

/// What a planted bug does to a command that is sent again.
fn rename(request: &mut ToWriter) {
    if let ToWriter::Request(Request { ask: Ask::Command(command), .. }) = request {
        command.client_msg_id.0 ^= 1 << 127;
    }
}
