//! Groups: gathering, sealing, and what follows from each outcome. Answers leave here, in the order of the groups.

use super::api::{HaltReason, LinkId};
use super::jobs::Answered;
use super::loads::Op;
use super::{Phase, Writer};
use crate::planted::{self, Bug};
use crate::store::{APPEND_BYTES_MAX, APPEND_EVENTS_MAX, Append, Group, Meta, OpId, Outcome, SEQ_BUCKET, StoreRequest};
use parley_idgen::NotYet;
use parley_protocol::ChatId;
use parley_protocol::link::{Answer, LinkHello, LinkWelcome, Reply, ToGateway};

/// Pace of repeating a group whose outcome is not known, milliseconds: doubling from the first to the last.
const RESUBMIT_INTERVAL_MS: (u64, u64) = (10, 1_000);
/// So many unknown outcomes of one group in a row make the writer say that it is not ready.
const UNKNOWN_ATTEMPTS_READY_MAX: u32 = 3;
/// The clock is looked at again after this long, milliseconds, when it was behind.
const CLOCK_RETRY_INTERVAL_MS: u64 = 250;

/// What leaves when a group is durable.
#[derive(Clone, Debug)]
pub(super) enum Pending {
    /// An answer; `Failed` if the group falls.
    Reply { to: Answered, reply: Reply },
    /// The hello is answered with the epoch that the link was given.
    Welcome { link: LinkId, hello: LinkHello },
    /// The hello came from a gateway that is replaced.
    FencedHello { link: LinkId, hello: LinkHello },
}

/// A group that is being filled.
#[derive(Clone, Debug)]
pub(super) struct Gathering {
    pub(super) group: Group,
    pub(super) pending: Vec<Pending>,
    pub(super) commands: usize,
    pub(super) bytes: usize,
    /// A gateway was granted this epoch: links of lower ones are closed.
    pub(super) granted: Option<u64>,
}

impl Gathering {
    pub(super) fn new(no: u64) -> Gathering {
        Gathering { group: Group { no, ..Group::default() }, pending: Vec::new(), commands: 0, bytes: 0, granted: None }
    }
}

/// A group that the store has.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    gathering: Gathering,
    op: OpId,
    state: FlightState,
    attempts: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum FlightState {
    Submitted,
    Durable,
    Unknown {
        retry_at: u64,
    },
    /// It, or one before it, failed; the store has not said so of this one yet.
    Fallen,
}

impl Flight {
    pub(super) fn resubmit_at(&self) -> Option<u64> {
        match self.state {
            FlightState::Unknown { retry_at } if !planted::has(Bug::UnknownNotRepeated) => Some(retry_at),
            _ => None,
        }
    }

    pub(super) fn group(&self) -> &Group {
        &self.gathering.group
    }
}

impl Writer {
    /// Whether a command finds room in the gathered group; makes room by sealing it, if the store has a slot free.
    pub(super) fn has_room(&mut self) -> bool {
        if planted::has(Bug::BatchUnbounded) {
            return true;
        }
        let full = |gathering: &Gathering, writer: &Writer| {
            let bytes_max = writer.options.batch_bytes_max;
            let bytes_full = gathering.bytes >= bytes_max && !planted::has(Bug::BatchBytesIgnored);
            gathering.commands >= writer.options.batch_commands_max || bytes_full
        };
        if full(&self.gathering, self) && self.flights.len() < self.options.commits_in_flight_max {
            self.seal();
        }
        !full(&self.gathering, self)
    }

    /// Whether the next event of a chat finds room in its append; makes room by sealing the group, as `has_room`.
    pub(super) fn append_has_room(&mut self, chat_id: ChatId) -> bool {
        let full = |writer: &Writer| {
            let Some(chat) = writer.chats.get(chat_id) else { return false };
            let (no, at) = chat.append_at;
            let gathered = writer.gathering.group.appends.get(at).filter(|_| no == writer.gathering.group.no);
            let border = chat.head_seq.is_multiple_of(SEQ_BUCKET);
            let bytes = |append: &Append| append.events.iter().map(|event| event.envelope.body.len()).sum::<usize>();
            gathered.is_some_and(|append| {
                border || append.events.len() >= APPEND_EVENTS_MAX || bytes(append) >= APPEND_BYTES_MAX
            })
        };
        if full(self) && self.flights.len() < self.options.commits_in_flight_max {
            self.seal();
        }
        !full(self)
    }

    /// The append of a chat in the gathered group, which is made if there is none.
    pub(super) fn append_of<'a>(group: &'a mut Group, chat_id: ChatId, at: &mut (u64, usize)) -> &'a mut Append {
        let misplaced = |append: &Append| append.chat_id != chat_id;
        let fallen = planted::has(Bug::FallenChatsKept) && group.appends.get(at.1).is_none_or(misplaced);
        if at.0 != group.no || fallen {
            *at = (group.no, group.appends.len());
            group.appends.push(Append {
                chat_id,
                events: Vec::new(),
                entries: Vec::new(),
                commands: Vec::new(),
                members: Vec::new(),
                checkpoint: None,
                present: 0,
            });
        }
        &mut group.appends[at.1]
    }

    pub(super) fn attach(&mut self, to: Answered, reply: Reply) {
        let early = match &reply {
            Reply::Durable(_) => planted::has(Bug::AnswersBeforeCommit),
            Reply::Opened | Reply::Chat(_) => planted::has(Bug::OpenAnsweredEarly),
            _ => false,
        };
        if early {
            return self.answer(to, reply);
        }
        self.gathering.pending.push(Pending::Reply { to, reply });
    }

    pub(super) fn write_meta(&mut self) {
        self.gathering.group.meta = Some(self.meta.clone());
    }

    pub(super) fn seal_if_possible(&mut self) {
        self.reserve_ids();
        if !self.gathering.group.is_empty() {
            if self.phase == Phase::Serving && self.flights.len() < self.options.commits_in_flight_max {
                self.seal();
                self.run_stalled();
            }
            return;
        }
        if self.gathering.pending.is_empty() {
            return;
        }
        let pending = std::mem::take(&mut self.gathering.pending);
        match self.flights.back_mut() {
            Some(flight) if flight.state != FlightState::Fallen => flight.gathering.pending.extend(pending),
            _ => pending.into_iter().for_each(|pending| self.release_pending(pending)),
        }
    }

    /// Puts a new mark of the ids into the group, when one is due and the group is written anyway or ids wait for it.
    fn reserve_ids(&mut self) {
        let worth = !self.gathering.group.is_empty() || !self.stalled.is_empty();
        if self.phase == Phase::Serving
            && worth
            && !self.mark_pending
            && let Some(mark) = self.ids.reservation_due(self.now.unix_ms)
        {
            self.meta.ids_reserved_until_ms = mark;
            self.mark_pending = true;
            self.write_meta();
        }
    }

    /// An id above all of the chat, or a reason to wait: `None` when the caller waits, and is run again when it may.
    pub(super) fn next_id(&mut self, above: u64) -> Result<u64, NotYet> {
        let id = self.ids.next(self.now.unix_ms, above);
        match &id {
            Ok(_) => self.ids_reason = None,
            Err(NotYet::Unreserved { .. }) => {}
            Err(NotYet::NotBefore { unix_ms }) => {
                let wait_ms = unix_ms.saturating_sub(self.now.unix_ms).max(1);
                self.ids_at = Some(self.now.mono_ms + wait_ms);
            }
            Err(refusal @ (NotYet::ClockBehind { .. } | NotYet::Exhausted)) => {
                self.ids_reason = Some(refusal.to_string());
                self.ids_at = Some(self.now.mono_ms + CLOCK_RETRY_INTERVAL_MS);
            }
        }
        id.map(|id| id.get())
    }

    /// Whether the clock is right again, without drawing an id.
    pub(super) fn look_at_clock(&mut self) {
        if self.ids_reason.is_none() {
            return;
        }
        match self.ids.clone().next(self.now.unix_ms, 0) {
            Err(refusal @ (NotYet::ClockBehind { .. } | NotYet::Exhausted)) => {
                self.ids_reason = Some(refusal.to_string());
                self.ids_at = Some(self.now.mono_ms + CLOCK_RETRY_INTERVAL_MS);
            }
            _ => self.ids_reason = None,
        }
    }

    /// Submits a small group that shows whether the store takes writes: the writer's epoch and a mark of the ids.
    pub(super) fn probe(&mut self) {
        assert!(self.flights.is_empty() && self.gathering.group.is_empty());
        self.phase = Phase::Probing;
        if let Some(mark) = self.ids.reservation_due(self.now.unix_ms) {
            self.meta.ids_reserved_until_ms = mark;
            self.mark_pending = true;
        }
        self.write_meta();
        self.seal();
    }

    fn seal(&mut self) {
        let next = Gathering::new(self.gathering.group.no + 1);
        let mut gathering = std::mem::replace(&mut self.gathering, next);
        gathering.group.writer_epoch = self.meta.writer_epoch;
        let op = self.store(Op::Commit, StoreRequest::Commit(gathering.group.clone()));
        self.flights.push_back(Flight { gathering, op, state: FlightState::Submitted, attempts: 0 });
    }

    pub(super) fn committed(&mut self, op: OpId, outcome: Outcome) {
        let at = self.flights.iter().position(|flight| flight.op == op).expect("a commit in flight has its flight");
        let flight = &mut self.flights[at];
        let fallen = flight.state == FlightState::Fallen;
        match guessed(outcome) {
            Outcome::Fenced => self.halt(HaltReason::Fenced),
            Outcome::Broken(what) => self.halt(HaltReason::Broken(what)),
            Outcome::Failed(_) if fallen => {
                self.flights.remove(at);
                self.end_drain();
            }
            Outcome::Durable | Outcome::Unknown if fallen => {
                self.halt(HaltReason::Broken("the store took a group on top of one that failed".to_owned()));
            }
            Outcome::Durable => {
                flight.state = FlightState::Durable;
                self.release_durable();
            }
            Outcome::Unknown => {
                let (first, last) = RESUBMIT_INTERVAL_MS;
                let wait_ms = (first << flight.attempts.min(16)).min(last);
                flight.attempts += 1;
                flight.state = FlightState::Unknown { retry_at: self.now.mono_ms + wait_ms };
            }
            Outcome::Failed(why) => self.fall(at, why),
        }
    }

    /// Repeats, unchanged, what the store did not know the outcome of.
    pub(super) fn resubmit_unknown(&mut self) {
        for at in 0..self.flights.len() {
            if self.flights[at].resubmit_at().is_some_and(|retry_at| self.now.mono_ms >= retry_at) {
                let group = self.flights[at].gathering.group.clone();
                let op = self.store(Op::Commit, StoreRequest::Commit(group));
                self.flights[at].op = op;
                self.flights[at].state = FlightState::Submitted;
            }
        }
    }

    pub(super) fn unknown_reason(&self) -> Option<String> {
        let stuck = self.flights.iter().find(|flight| flight.attempts >= UNKNOWN_ATTEMPTS_READY_MAX)?;
        Some(format!("the store does not know whether group {} is durable; it is repeated", stuck.group().no))
    }

    fn release_durable(&mut self) {
        while self.flights.front().is_some_and(|flight| flight.state == FlightState::Durable) {
            let flight = self.flights.pop_front().expect("it was looked at");
            self.release(flight.gathering);
        }
        self.end_drain();
        self.run_stalled();
    }

    /// A group is durable: the state follows, then its answers leave.
    fn release(&mut self, gathering: Gathering) {
        let Gathering { group, pending, commands, granted, .. } = gathering;
        self.durable_no = group.no;
        self.commands_durable += commands as u64;
        if let Some(meta) = &group.meta {
            self.ids.reserved(meta.ids_reserved_until_ms);
            self.durable_meta = meta.clone();
            self.mark_pending = self.meta.ids_reserved_until_ms > meta.ids_reserved_until_ms;
        }
        for append in &group.appends {
            if let Some(chat) = self.chats.get_mut(append.chat_id) {
                chat.durable_seq = append.events.last().map_or(chat.durable_seq, |event| event.seq);
            }
            for row in &append.commands {
                self.name_durable(row);
            }
        }
        for (key, value) in &group.uniques {
            self.unique_durable(key, *value);
        }
        for pending in pending {
            self.release_pending(pending);
        }
        if let Some(epoch) = granted {
            self.fence_links(epoch);
        }
        if self.phase == Phase::Probing {
            self.phase = Phase::Serving;
            self.reason = None;
            self.started = true;
            self.run_hellos();
        }
    }

    pub(super) fn release_pending(&mut self, pending: Pending) {
        match pending {
            Pending::Reply { to, reply } => self.answer(to, reply),
            Pending::Welcome { link, .. } => {
                if let Some(opened) = self.links.get_mut(&link) {
                    opened.welcome = true;
                    let home_epoch = opened.home_epoch;
                    let welcome = LinkWelcome { home_epoch, writer_epoch: self.meta.writer_epoch };
                    self.send(link, ToGateway::Welcome(welcome));
                    self.send_status(link);
                }
            }
            Pending::FencedHello { link, .. } => {
                self.send(link, ToGateway::Fenced);
                self.close(link);
            }
        }
    }

    pub(super) fn answer(&mut self, to: Answered, reply: Reply) {
        self.send(to.link, ToGateway::Answer(Answer { no: to.no, reply }));
    }

    /// The group at `at` failed: it and all that was numbered on top of it fall, and what was in memory with them.
    fn fall(&mut self, at: usize, why: String) {
        let failed = self.flights.remove(at).expect("it is in flight");
        let mut fallen = failed.gathering.pending;
        let mut on_top = Vec::new();
        let mut applied = false;
        // Those without an operation in the store are gone at once; the others are waited for.
        let later = self.flights.split_off(at);
        for mut flight in later {
            applied |= flight.state == FlightState::Durable;
            on_top.append(&mut flight.gathering.pending);
            if flight.state == FlightState::Submitted {
                flight.state = FlightState::Fallen;
                self.flights.push_back(flight);
            }
        }
        if applied {
            let what = "the store made a group durable on top of one that failed".to_owned();
            return self.halt(HaltReason::Broken(what));
        }
        self.reason = Some(why);
        self.phase = Phase::Draining;
        on_top.append(&mut self.gathering.pending);
        if planted::has(Bug::FallTakesNotAll) {
            on_top.drain(..).for_each(|pending| self.release_pending(pending));
        }
        fallen.append(&mut on_top);
        self.drop_numbered(fallen);
        self.end_drain();
    }
}

impl Writer {
    /// Forgets everything that was numbered and is not durable, and all that was loaded on top of it.
    fn drop_numbered(&mut self, fallen: Vec<Pending>) {
        self.gathering = Gathering::new(u64::MAX);
        self.meta = self.durable_meta.clone();
        self.mark_pending = false;
        self.ids_at = None;
        self.opened.fill(0);
        self.forget_loaded();
        let (mut hellos, mut jobs) = (Vec::new(), Vec::new());
        for pending in fallen {
            match pending {
                Pending::Reply { to, .. } => self.answer(to, Reply::Failed),
                Pending::Welcome { link, hello } | Pending::FencedHello { link, hello } => hellos.push((link, hello)),
            }
        }
        let keys: Vec<_> = self.births.drain(..).collect();
        for (key, born) in keys {
            if self.jobs.get(key).is_some_and(|job| job.born == born) {
                jobs.push(self.jobs.remove(key));
            }
        }
        assert!(self.jobs.is_empty(), "every job has its birth");
        for job in jobs {
            self.answer(job.to, Reply::Failed);
        }
        for (link, hello) in hellos {
            if let Some(link) = self.links.get_mut(&link) {
                link.home_epoch = 0;
                self.hellos.push_back((link.id, hello));
            }
        }
    }

    fn forget_loaded(&mut self) {
        if !planted::has(Bug::FallenChatsKept) {
            self.chats.clear();
            self.seats.clear();
        }
        if !planted::has(Bug::FallenInboxesKept) {
            self.users.clear();
        }
        self.names.clear();
        self.uniques.clear();
        self.queues.clear();
        self.loads.clear();
        self.stalled.clear();
        self.ops.retain(|_, op| matches!(op, Op::Commit));
    }

    /// When a fall is over, because the store has answered for everything in flight: wait, then probe.
    fn end_drain(&mut self) {
        if self.phase != Phase::Draining || !self.flights.is_empty() {
            return;
        }
        self.meta = Meta { writer_epoch: self.meta.writer_epoch, ..self.durable_meta.clone() };
        // What was answered while draining waits for nothing any more.
        let pending = std::mem::take(&mut self.gathering.pending);
        self.gathering = Gathering::new(self.durable_no + 1);
        self.phase = Phase::Waiting { retry_at: self.now.mono_ms + self.options.commit_retry_interval_ms };
        for pending in pending {
            self.release_pending(pending);
        }
        self.run_hellos();
    }
}

/// The outcome, unless a planted bug guesses one that is not known.
fn guessed(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Unknown if planted::has(Bug::UnknownTakenAsDurable) => Outcome::Durable,
        Outcome::Unknown if planted::has(Bug::UnknownTakenAsFailed) => Outcome::Failed("guessed".to_owned()),
        outcome => outcome,
    }
}
