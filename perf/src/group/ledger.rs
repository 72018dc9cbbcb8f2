//! The truth about one chat that many look at: what was sent, acknowledged, and seen by each member, and every promise
//! that was broken. An event is decoded once; every further member must show the very same bytes at the same place. No
//! socket, no clock.

use crate::ledger::{Audit, Counts, Index};
use std::collections::{HashMap, VecDeque};

const ACKED: u8 = 1;
const REFUSED: u8 = 2;
/// Every member has it.
const EVERYWHERE: u8 = 4;

/// A message of the run.
#[derive(Clone, Copy, Debug)]
struct Message {
    sent_at_ns: u64,
    /// 0 until the server named it.
    seq: u64,
    sender: u32,
    flags: u8,
}

/// A place of the log that not every member has yet.
#[derive(Debug, Default)]
struct Place {
    /// The whole WebSocket frame as the first member got it; empty while no member did.
    frame: Box<[u8]>,
    message: Option<Index>,
    sent_at_ns: u64,
    members: u32,
}

/// A message reached one member more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    pub(crate) sent_at_ns: u64,
    /// So many have it now.
    pub(crate) members: u32,
    /// Everybody has it now, and it was acknowledged before.
    pub(crate) complete: bool,
}

/// What an event was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The next one, or one after a gap that `missing` tells of.
    Reached(Reached),
    /// From before the run, or of somebody else.
    Foreign,
    /// Counted as broken.
    Broken,
}

/// Counts that pairs do not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gaps {
    /// Times that a member saw that it had missed something.
    pub(crate) gaps: u64,
    /// Deliveries that were missed so.
    pub(crate) events: u64,
    /// Of these, found in the history.
    pub(crate) filled: u64,
}

/// The ledger.
#[derive(Debug)]
pub(crate) struct Ledger {
    members: u32,
    messages: Vec<Message>,
    /// By `seq` from `first` on.
    places: VecDeque<Place>,
    first: u64,
    /// Of each member, the newest event that it saw or knows to have missed.
    last: Vec<u64>,
    /// (from, to) that members missed, rising, for the few that did.
    missing: HashMap<u32, Vec<(u64, u64)>>,
    pub(crate) counts: Counts,
    pub(crate) gaps: Gaps,
}

impl Ledger {
    /// The log of the chat ends at `head`, and every member knows it up to there.
    pub(crate) fn new(members: u32, head: u64) -> Self {
        Self {
            members,
            messages: Vec::new(),
            places: VecDeque::new(),
            first: head + 1,
            last: vec![head; members as usize],
            missing: HashMap::new(),
            counts: Counts::default(),
            gaps: Gaps::default(),
        }
    }

    /// A message goes out; its index is part of its `client_msg_id`.
    pub(crate) fn sent(&mut self, sender: u32, sent_at_ns: u64) -> Index {
        self.messages.push(Message { sent_at_ns, seq: 0, sender, flags: 0 });
        self.counts.sent += 1;
        self.counts.sent - 1
    }

    fn own(&mut self, member: u32, index: Index) -> Option<&mut Message> {
        let message = self.messages.get_mut(index as usize).filter(|message| message.sender == member);
        self.counts.misdirected += u64::from(message.is_none());
        message
    }

    /// The acknowledgement of a message reached a member: when it was sent, and whether everybody has it already.
    pub(crate) fn acked(&mut self, member: u32, index: Index, seq: u64) -> Option<(u64, bool)> {
        let message = self.own(member, index)?;
        if message.flags & (ACKED | REFUSED) != 0 {
            self.counts.answered_twice += 1;
            return None;
        }
        message.flags |= ACKED;
        let agrees = seq != 0 && (message.seq == 0 || message.seq == seq);
        message.seq = seq;
        let done = (message.sent_at_ns, message.flags & EVERYWHERE != 0);
        self.counts.wrong_seq += u64::from(!agrees);
        self.counts.acked += 1;
        Some(done)
    }

    /// The server refused a message. Whether it is the first answer.
    pub(crate) fn refused(&mut self, member: u32, index: Index) -> bool {
        let Some(message) = self.own(member, index) else { return false };
        let first = message.flags & (ACKED | REFUSED) == 0;
        message.flags |= REFUSED;
        self.counts.answered_twice += u64::from(!first);
        self.counts.refused += u64::from(first);
        first
    }

    /// If `bytes` begin with the very frame that this member is to see next, and somebody saw it before: takes it, and
    /// says how long it is.
    pub(crate) fn expected(&mut self, member: u32, bytes: &[u8]) -> Option<(usize, Reached)> {
        let seq = self.last[member as usize] + 1;
        let place = self.places.get(seq.checked_sub(self.first)? as usize)?;
        if place.frame.is_empty() || !bytes.starts_with(&place.frame) {
            return None;
        }
        let len = place.frame.len();
        self.last[member as usize] = seq;
        self.counts.delivered += 1;
        Some((len, self.reach(seq)))
    }

    /// An event that was decoded reached a member; `frame` is all of it.
    pub(crate) fn event(&mut self, member: u32, index: Option<Index>, seq: u64, frame: &[u8]) -> Step {
        let last = self.last[member as usize];
        if seq <= last && !self.take_missing(member, seq) {
            // The log up to the beginning of the run is not the run's business.
            let known = index.is_some_and(|index| index < self.counts.sent);
            self.counts.duplicated += u64::from(known);
            return if known { Step::Broken } else { Step::Foreign };
        }
        if let Err(step) = self.name(index, seq, frame) {
            return step;
        }
        if seq <= last {
            // It was missed, and history was to fill it; it came after what follows it.
            self.counts.out_of_order += 1;
        } else {
            self.miss(member, seq - 1);
            self.last[member as usize] = seq;
        }
        self.counts.delivered += 1;
        Step::Reached(self.reach(seq))
    }

    /// A page of the history holds an event. `None` if the member had it.
    pub(crate) fn filled(&mut self, member: u32, index: Option<Index>, seq: u64) -> Option<Reached> {
        if !self.take_missing(member, seq) {
            return None;
        }
        self.name(index, seq, &[]).ok()?;
        self.gaps.filled += 1;
        self.counts.delivered += 1;
        Some(self.reach(seq))
    }

    /// The log goes up to `head`: whether the member missed something.
    pub(crate) fn head(&mut self, member: u32, head: u64) -> bool {
        // A head that this run cannot have caused says nothing.
        let possible = head < self.first + self.places.len() as u64 + self.counts.sent;
        possible && self.miss(member, head)
    }

    /// What a member misses first.
    pub(crate) fn missing(&self, member: u32) -> Option<(u64, u64)> {
        self.missing.get(&member)?.first().copied()
    }

    /// Everything up to `to` that the member has not seen is missed.
    fn miss(&mut self, member: u32, to: u64) -> bool {
        let last = &mut self.last[member as usize];
        if to <= *last {
            return false;
        }
        self.gaps.gaps += 1;
        self.gaps.events += to - *last;
        self.missing.entry(member).or_default().push((*last + 1, to));
        *last = to;
        self.extend(to);
        true
    }

    /// Whether it was missed until now.
    fn take_missing(&mut self, member: u32, seq: u64) -> bool {
        let Some(ranges) = self.missing.get_mut(&member) else { return false };
        let Some(at) = ranges.iter().position(|(from, to)| (*from..=*to).contains(&seq)) else { return false };
        let (from, to) = ranges.remove(at);
        let rest = [(from, seq - 1), (seq + 1, to)].into_iter().filter(|(from, to)| from <= to);
        ranges.splice(at..at, rest);
        if ranges.is_empty() {
            self.missing.remove(&member);
        }
        true
    }

    fn extend(&mut self, seq: u64) {
        while self.first + self.places.len() as u64 <= seq {
            self.places.push_back(Place::default());
        }
    }

    /// The event at `seq` is this message.
    fn name(&mut self, index: Option<Index>, seq: u64, frame: &[u8]) -> Result<(), Step> {
        let Some(index) = index else { return Err(Step::Foreign) };
        // Dense numbers: as many as messages, and no more.
        let possible = seq >= self.first && seq - self.first < self.places.len() as u64 + self.counts.sent;
        let Some(message) = self.messages.get_mut(index as usize).filter(|_| possible) else {
            self.counts.misdirected += 1;
            return Err(Step::Broken);
        };
        self.counts.wrong_seq += u64::from(message.seq != 0 && message.seq != seq);
        message.seq = seq;
        let sent_at_ns = message.sent_at_ns;
        self.extend(seq);
        let place = &mut self.places[(seq - self.first) as usize];
        self.counts.wrong_seq += u64::from(place.message.is_some_and(|known| known != index));
        place.message = Some(index);
        place.sent_at_ns = sent_at_ns;
        if place.frame.is_empty() {
            place.frame = frame.into();
        }
        Ok(())
    }

    fn reach(&mut self, seq: u64) -> Reached {
        let place = &mut self.places[(seq - self.first) as usize];
        place.members += 1;
        let mut reached = Reached { sent_at_ns: place.sent_at_ns, members: place.members, complete: false };
        if place.members == self.members {
            if let Some(message) = place.message.and_then(|index| self.messages.get_mut(index as usize)) {
                message.flags |= EVERYWHERE;
                reached.complete = message.flags & ACKED != 0;
            }
            while self.places.front().is_some_and(|place| place.members == self.members) {
                self.places.pop_front();
                self.first += 1;
            }
        }
        reached
    }

    /// Messages that are not settled: what a drain waits for.
    pub(crate) fn open(&self) -> u64 {
        let unanswered = self.counts.sent - self.counts.acked - self.counts.refused;
        unanswered.max(self.places.len() as u64)
    }

    /// When those messages were to be sent that did not reach everybody: the slowest of all.
    pub(crate) fn unreached(&self) -> impl Iterator<Item = u64> {
        let missing = |message: &&Message| message.flags & (EVERYWHERE | REFUSED) == 0;
        self.messages.iter().filter(missing).map(|message| message.sent_at_ns)
    }

    /// What is missing at the end. `lost` counts deliveries: a message that three members never got counts three.
    pub(crate) fn audit(&self) -> Audit {
        let mut audit = Audit::default();
        for message in &self.messages {
            audit.unanswered += u64::from(message.flags & (ACKED | REFUSED) == 0);
            if message.flags & (ACKED | EVERYWHERE) == ACKED {
                let at = message.seq.checked_sub(self.first).map(|at| at as usize);
                let place = at.and_then(|at| self.places.get(at));
                audit.lost += u64::from(self.members - place.map_or(0, |place| place.members));
            }
        }
        let mut seqs: Vec<u64> = self.messages.iter().map(|message| message.seq).filter(|seq| *seq != 0).collect();
        seqs.sort_unstable();
        for pair in seqs.windows(2) {
            audit.seq_collisions += u64::from(pair[0] == pair[1]);
            audit.seq_holes += (pair[1] - pair[0]).saturating_sub(1);
        }
        audit
    }

    /// Messages of one sender that changed places in the log.
    pub(crate) fn overtaken(&self) -> u64 {
        let mut newest: HashMap<u32, u64> = HashMap::new();
        let placed = self.messages.iter().filter(|message| message.seq != 0);
        let overtaken = placed.filter(|message| {
            let newest = newest.entry(message.sender).or_default();
            let overtaken = message.seq < *newest;
            *newest = message.seq.max(*newest);
            overtaken
        });
        overtaken.count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: u64 = 40;

    fn frame(seq: u64) -> Vec<u8> {
        vec![seq as u8; 5]
    }

    fn reached(step: Step) -> Reached {
        let Step::Reached(reached) = step else { panic!("{step:?}") };
        reached
    }

    /// Three members; two messages of the first one, the first of which everybody has.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(3, HEAD);
        assert_eq!((ledger.sent(0, 100), ledger.sent(0, 200)), (0, 1));
        assert_eq!(ledger.acked(0, 0, HEAD + 1), Some((100, false)));
        assert_eq!(ledger.expected(1, &frame(41)), None, "nobody has shown it yet");
        let first = reached(ledger.event(1, Some(0), HEAD + 1, &frame(41)));
        assert_eq!(first, Reached { sent_at_ns: 100, members: 1, complete: false });
        let both = [frame(41), frame(42)].concat();
        assert_eq!(ledger.expected(0, &both), Some((5, Reached { members: 2, ..first })));
        assert_eq!(ledger.expected(0, &both[5..]), None);
        assert_eq!(ledger.expected(0, &both), None, "not again");
        assert_eq!(ledger.expected(2, &both), Some((5, Reached { members: 3, complete: true, ..first })));
        ledger
    }

    #[test]
    fn a_faithful_run_is_clean_in_either_order_of_acknowledgement_and_deliveries() {
        let mut ledger = ledger();
        assert_eq!(ledger.open(), 1);
        for (member, members) in [(2, 1), (0, 2), (1, 3)] {
            let step = reached(ledger.event(member, Some(1), 42, &frame(42)));
            assert_eq!((step.members, step.complete), (members, false));
        }
        assert_eq!(ledger.acked(0, 1, 42), Some((200, true)));
        assert_eq!(ledger.counts, Counts { sent: 2, acked: 2, delivered: 6, ..Counts::default() });
        assert_eq!((ledger.audit(), ledger.overtaken(), ledger.open()), (Audit::default(), 0, 0));
        assert_eq!((ledger.gaps, ledger.places.len()), (Gaps::default(), 0));
    }

    #[test]
    fn a_gap_shows_at_the_next_event_and_history_fills_it() {
        let mut ledger = ledger();
        assert_eq!(ledger.sent(2, 300), 2);
        assert_eq!((ledger.acked(0, 1, 42), ledger.acked(2, 2, 43)), (Some((200, false)), Some((300, false))));
        reached(ledger.event(1, Some(2), 43, &frame(43)));
        assert_eq!((ledger.missing(1), ledger.gaps), (Some((42, 42)), Gaps { gaps: 1, events: 1, filled: 0 }));
        assert_eq!(ledger.audit().lost, 5, "of the second message all three, of the third one two");
        assert_eq!(ledger.filled(1, Some(0), 41), None, "it has that");
        assert_eq!(ledger.filled(1, Some(1), 42).unwrap().members, 1);
        assert_eq!((ledger.missing(1), ledger.gaps.filled, ledger.audit().lost), (None, 1, 4));
        assert_eq!(ledger.filled(1, Some(1), 42), None);
        assert_eq!(ledger.expected(0, &frame(42)), None, "only the history showed it");
    }

    #[test]
    fn a_head_shows_what_was_missed_at_the_end() {
        let mut ledger = ledger();
        ledger.acked(0, 1, 42);
        assert!(!ledger.head(1, 41) && !ledger.head(1, 1_000));
        assert!(ledger.head(1, 42) && !ledger.head(1, 42));
        assert_eq!(ledger.missing(1), Some((42, 42)));
        assert_eq!(ledger.unreached().collect::<Vec<_>>(), [200]);
    }

    #[test]
    fn a_gap_is_filled_in_pieces() {
        let mut ledger = Ledger::new(1, HEAD);
        (0..6).for_each(|at| assert_eq!(ledger.sent(0, at), at));
        reached(ledger.event(0, Some(5), 46, &frame(46)));
        for (seq, rest) in [(43, (41, 42)), (41, (42, 42)), (42, (44, 45)), (45, (44, 44))] {
            assert!(ledger.filled(0, Some(seq - 41), seq).is_some());
            assert_eq!(ledger.missing(0), Some(rest));
        }
        assert!(ledger.filled(0, Some(3), 44).is_some());
        assert_eq!((ledger.missing(0), ledger.open()), (None, 6), "nothing was acknowledged");
        assert_eq!(ledger.gaps, Gaps { gaps: 1, events: 5, filled: 5 });
    }

    #[test]
    fn every_broken_promise_is_counted() {
        let broken = |change: &dyn Fn(&mut Ledger)| {
            let mut ledger = ledger();
            let before = ledger.counts;
            change(&mut ledger);
            let Counts { duplicated, out_of_order, wrong_seq, misdirected, answered_twice, .. } = ledger.counts;
            let after = [duplicated, out_of_order, wrong_seq, misdirected, answered_twice];
            assert_eq!(before.duplicated + before.out_of_order + before.wrong_seq + before.misdirected, 0);
            after
        };
        let again = |ledger: &mut Ledger| assert_eq!(ledger.event(1, Some(0), 41, &frame(41)), Step::Broken);
        assert_eq!(broken(&again), [1, 0, 0, 0, 0]);
        let late = |ledger: &mut Ledger| {
            ledger.sent(0, 300);
            ledger.event(1, Some(2), 43, &frame(43));
            assert!(matches!(ledger.event(1, Some(1), 42, &frame(42)), Step::Reached(_)));
        };
        assert_eq!(broken(&late), [0, 1, 0, 0, 0]);
        let differs = |ledger: &mut Ledger| {
            ledger.acked(0, 1, 43);
            ledger.event(1, Some(1), 42, &frame(42));
        };
        assert_eq!(broken(&differs), [0, 0, 1, 0, 0]);
        let two = |ledger: &mut Ledger| {
            ledger.event(1, Some(1), 42, &frame(42));
            ledger.event(2, Some(0), 42, &frame(42));
        };
        assert_eq!(broken(&two), [0, 0, 2, 0, 0], "one message at two places, and two at one");
        let nobodys = |ledger: &mut Ledger| assert_eq!(ledger.event(1, Some(9), 42, &frame(42)), Step::Broken);
        assert_eq!(broken(&nobodys), [0, 0, 0, 1, 0]);
        assert_eq!(broken(&|ledger| assert_eq!(ledger.acked(1, 1, 42), None)), [0, 0, 0, 1, 0]);
        assert_eq!(broken(&|ledger| assert!(!ledger.refused(0, 0))), [0, 0, 0, 0, 1]);
        let far = |ledger: &mut Ledger| assert_eq!(ledger.event(1, Some(1), u64::MAX, &[1]), Step::Broken);
        assert_eq!(broken(&far), [0, 0, 0, 1, 0]);
        let early = |ledger: &mut Ledger| assert_eq!(ledger.event(1, None, 7, &frame(7)), Step::Foreign);
        assert_eq!(broken(&early), [0, 0, 0, 0, 0]);
    }

    #[test]
    fn messages_of_one_sender_keep_their_order_and_places_are_given_once() {
        let mut ledger = Ledger::new(2, HEAD);
        for sender in [0, 0, 1, 1] {
            ledger.sent(sender, 1);
        }
        for (index, seq) in [(0, 42), (1, 41), (2, 43), (3, 46)] {
            ledger.acked(ledger.messages[index as usize].sender, index, seq);
        }
        assert_eq!((ledger.overtaken(), ledger.audit().seq_holes, ledger.audit().lost), (1, 2, 8));
        ledger.messages[3].seq = 43;
        assert_eq!(ledger.audit().seq_collisions, 1);
    }
}
