//! The truth about a run: what was sent, acknowledged and received, and every promise that was broken. Sequence numbers
//! come from the acknowledgement and from the delivery, apart, and must agree.

use std::collections::HashMap;

/// A message by the order in which it was sent.
pub(crate) type Index = u64;

const ACKED: u8 = 1;
const DELIVERED: u8 = 2;
/// The sender's own device got its event back.
const ECHOED: u8 = 4;
const REFUSED: u8 = 8;

/// A message.
#[derive(Clone, Copy, Debug)]
struct Entry {
    sent_at_ns: u64,
    /// 0 until the server named it.
    seq: u64,
    sender: u32,
    flags: u8,
}

/// What one device saw of its one chat.
#[derive(Clone, Copy, Debug, Default)]
struct Device {
    last_seq: u64,
    /// The peer's last message, plus one.
    after_index: u64,
}

/// Broken promises and other counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) sent: u64,
    pub(crate) acked: u64,
    pub(crate) delivered: u64,
    pub(crate) refused: u64,
    /// A device received the same event again.
    pub(crate) duplicated: u64,
    /// An event came after a later one of its chat, or a sender's messages changed places.
    pub(crate) out_of_order: u64,
    /// Acknowledgement and event name different places for a message, or two messages have the same place.
    pub(crate) wrong_seq: u64,
    /// An event or an acknowledgement reached a device that it is not for.
    pub(crate) misdirected: u64,
    /// A command was acknowledged twice, or acknowledged and refused.
    pub(crate) answered_twice: u64,
}

/// What became of a message by an answer or an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The first acknowledgement or the first delivery; `complete` when both have arrived now.
    First { sender: u32, sent_at_ns: u64, complete: bool },
    /// The sender's own device got it.
    Echo,
    /// Counted as broken.
    Broken,
}

/// What is left at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Audit {
    /// Acknowledged and never delivered.
    pub(crate) lost: u64,
    /// Neither acknowledged nor refused.
    pub(crate) unanswered: u64,
    /// Two messages of a chat with one `seq`.
    pub(crate) seq_collisions: u64,
    /// Numbers of a chat between the first and the last message that no message of the run has.
    pub(crate) seq_holes: u64,
}

/// Entries per chunk: a long run must not copy its whole past when a vector grows.
const CHUNK: usize = 1 << 16;

/// The ledger of pairs of devices: device `d` talks with `d ^ 1`.
#[derive(Debug)]
pub(crate) struct Ledger {
    chunks: Vec<Vec<Entry>>,
    devices: Vec<Device>,
    counts: Counts,
}

impl Ledger {
    pub(crate) fn new(devices: u32) -> Self {
        assert!(devices.is_multiple_of(2));
        Self { chunks: Vec::new(), devices: vec![Device::default(); devices as usize], counts: Counts::default() }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    fn entry(&mut self, index: Index) -> Option<&mut Entry> {
        self.chunks.get_mut(index as usize / CHUNK)?.get_mut(index as usize % CHUNK)
    }

    /// A message goes out; its index is part of its `client_msg_id`.
    pub(crate) fn sent(&mut self, sender: u32, sent_at_ns: u64) -> Index {
        let index = self.counts.sent;
        if (index as usize).is_multiple_of(CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let chunk = self.chunks.last_mut().expect("a chunk was just pushed");
        chunk.push(Entry { sent_at_ns, seq: 0, sender, flags: 0 });
        self.counts.sent += 1;
        index
    }

    /// The acknowledgement of a message reached `device`.
    pub(crate) fn acked(&mut self, device: u32, index: Index, seq: u64) -> Step {
        let Some(entry) = self.entry(index).filter(|entry| entry.sender == device) else {
            self.counts.misdirected += 1;
            return Step::Broken;
        };
        if entry.flags & (ACKED | REFUSED) != 0 {
            self.counts.answered_twice += 1;
            return Step::Broken;
        }
        entry.flags |= ACKED;
        let agrees = seq != 0 && (entry.seq == 0 || entry.seq == seq);
        entry.seq = seq;
        let complete = entry.flags & DELIVERED != 0;
        let step = Step::First { sender: entry.sender, sent_at_ns: entry.sent_at_ns, complete };
        self.counts.wrong_seq += u64::from(!agrees);
        self.counts.acked += 1;
        step
    }

    /// The server refused a message. Whether it is the first answer.
    pub(crate) fn refused(&mut self, device: u32, index: Index) -> bool {
        let Some(entry) = self.entry(index).filter(|entry| entry.sender == device) else {
            self.counts.misdirected += 1;
            return false;
        };
        if entry.flags & (ACKED | REFUSED) != 0 {
            self.counts.answered_twice += 1;
            return false;
        }
        entry.flags |= REFUSED;
        self.counts.refused += 1;
        true
    }

    /// The event of a message reached `device`.
    pub(crate) fn received(&mut self, device: u32, index: Index, seq: u64) -> Step {
        let Some(entry) = self.entry(index).filter(|entry| entry.sender | 1 == device | 1) else {
            self.counts.misdirected += 1;
            return Step::Broken;
        };
        let echo = entry.sender == device;
        let flag = if echo { ECHOED } else { DELIVERED };
        let again = entry.flags & flag != 0;
        entry.flags |= flag;
        let agrees = seq != 0 && (entry.seq == 0 || entry.seq == seq);
        entry.seq = seq;
        let (sender, sent_at_ns, complete) = (entry.sender, entry.sent_at_ns, entry.flags & ACKED != 0);
        self.counts.wrong_seq += u64::from(!agrees);
        if again {
            self.counts.duplicated += 1;
            return Step::Broken;
        }
        let seen = &mut self.devices[device as usize];
        let mut in_order = seq > seen.last_seq;
        seen.last_seq = seen.last_seq.max(seq);
        if !echo {
            in_order &= index >= seen.after_index;
            seen.after_index = seen.after_index.max(index + 1);
        }
        self.counts.out_of_order += u64::from(!in_order);
        if echo {
            return Step::Echo;
        }
        self.counts.delivered += 1;
        Step::First { sender, sent_at_ns, complete }
    }

    /// Messages without an answer, or acknowledged without a delivery: what a drain waits for.
    pub(crate) fn open(&self) -> u64 {
        let Counts { sent, acked, refused, delivered, .. } = self.counts;
        (sent - acked - refused) + acked.saturating_sub(delivered)
    }

    fn entries(&self) -> impl Iterator<Item = (Index, &Entry)> {
        (0..).zip(self.chunks.iter().flatten())
    }

    /// When those messages were to be sent that neither arrived nor were refused: the slowest of all.
    pub(crate) fn undelivered(&self) -> impl Iterator<Item = u64> {
        let missing = |entry: &Entry| entry.flags & (DELIVERED | REFUSED) == 0;
        self.entries().filter(move |(_, entry)| missing(entry)).map(|(_, entry)| entry.sent_at_ns)
    }

    /// What is missing at the end, and whether places in the log are dense and given once.
    pub(crate) fn audit(&self) -> Audit {
        let mut audit = Audit::default();
        let mut places: Vec<(u32, u64)> = Vec::with_capacity(self.counts.sent as usize);
        for (_, entry) in self.entries() {
            audit.lost += u64::from(entry.flags & (ACKED | DELIVERED) == ACKED);
            audit.unanswered += u64::from(entry.flags & (ACKED | REFUSED) == 0);
            if entry.seq != 0 {
                places.push((entry.sender / 2, entry.seq));
            }
        }
        places.sort_unstable();
        for pair in places.windows(2) {
            if let [(chat, seq), (next_chat, next_seq)] = *pair
                && chat == next_chat
            {
                audit.seq_collisions += u64::from(seq == next_seq);
                audit.seq_holes += (next_seq - seq).saturating_sub(1);
            }
        }
        audit
    }

    /// The acknowledged messages of each chat, (seq, index), by the pair's number: what a history must hold.
    pub(crate) fn acknowledged(&self) -> HashMap<u32, Vec<(u64, Index)>> {
        let mut chats: HashMap<u32, Vec<(u64, Index)>> = HashMap::new();
        for (index, entry) in self.entries().filter(|(_, entry)| entry.flags & ACKED != 0) {
            chats.entry(entry.sender / 2).or_default().push((entry.seq, index));
        }
        for chat in chats.values_mut() {
            chat.sort_unstable();
        }
        chats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: Audit = Audit { lost: 0, unanswered: 0, seq_collisions: 0, seq_holes: 0 };

    /// Two messages of device 0 to device 1, as a faithful server handles them, up to the events of the second.
    fn history() -> (Ledger, Index, Index) {
        let mut ledger = Ledger::new(4);
        let first = ledger.sent(0, 100);
        let second = ledger.sent(0, 200);
        assert_eq!(ledger.acked(0, first, 1), Step::First { sender: 0, sent_at_ns: 100, complete: false });
        assert_eq!(ledger.received(1, first, 1), Step::First { sender: 0, sent_at_ns: 100, complete: true });
        assert_eq!(ledger.received(0, first, 1), Step::Echo);
        (ledger, first, second)
    }

    fn broken<T>(change: impl FnOnce(&mut Ledger, Index, Index) -> T) -> Counts {
        let (mut ledger, first, second) = history();
        let before = ledger.counts();
        change(&mut ledger, first, second);
        let after = ledger.counts();
        Counts {
            duplicated: after.duplicated - before.duplicated,
            out_of_order: after.out_of_order - before.out_of_order,
            wrong_seq: after.wrong_seq - before.wrong_seq,
            misdirected: after.misdirected - before.misdirected,
            answered_twice: after.answered_twice - before.answered_twice,
            ..Counts::default()
        }
    }

    #[test]
    fn a_faithful_history_is_clean_and_completes_in_either_order() {
        let (mut ledger, _, second) = history();
        assert_eq!(ledger.open(), 1);
        assert_eq!(ledger.received(1, second, 2), Step::First { sender: 0, sent_at_ns: 200, complete: false });
        assert_eq!(ledger.acked(0, second, 2), Step::First { sender: 0, sent_at_ns: 200, complete: true });
        assert_eq!(ledger.counts(), Counts { sent: 2, acked: 2, delivered: 2, ..Counts::default() });
        assert_eq!((ledger.audit(), ledger.open()), (CLEAN, 0));
        assert_eq!(ledger.acknowledged()[&0], [(1, 0), (2, 1)]);
    }

    #[test]
    fn acknowledged_but_never_delivered_is_lost() {
        let (mut ledger, _, second) = history();
        ledger.acked(0, second, 2);
        assert_eq!(ledger.audit(), Audit { lost: 1, ..CLEAN });
        assert_eq!(ledger.open(), 1);
        assert_eq!(ledger.undelivered().collect::<Vec<_>>(), [200]);
    }

    #[test]
    fn never_answered_is_not_lost_and_refused_is_neither() {
        let (mut ledger, _, second) = history();
        assert_eq!(ledger.audit(), Audit { unanswered: 1, ..CLEAN });
        assert!(ledger.refused(0, second));
        assert_eq!((ledger.audit(), ledger.open()), (CLEAN, 0));
    }

    #[test]
    fn an_event_seen_twice_by_a_device_is_duplicated() {
        let expected = Counts { duplicated: 1, ..Counts::default() };
        assert_eq!(broken(|ledger, first, _| assert_eq!(ledger.received(1, first, 1), Step::Broken)), expected);
        assert_eq!(broken(|ledger, first, _| assert_eq!(ledger.received(0, first, 1), Step::Broken)), expected);
    }

    #[test]
    fn an_event_below_the_last_one_is_out_of_order() {
        let mut ledger = Ledger::new(2);
        let (first, second) = (ledger.sent(0, 1), ledger.sent(1, 2));
        ledger.received(1, second, 2);
        ledger.received(1, first, 1);
        assert_eq!(ledger.counts().out_of_order, 1);
    }

    #[test]
    fn messages_of_one_sender_that_change_places_are_out_of_order() {
        let mut ledger = Ledger::new(2);
        let (first, second) = (ledger.sent(0, 1), ledger.sent(0, 2));
        ledger.received(1, second, 1);
        ledger.received(1, first, 2);
        assert_eq!(ledger.counts().out_of_order, 1);
    }

    #[test]
    fn answers_and_events_must_agree_on_the_place() {
        let expected = Counts { wrong_seq: 1, ..Counts::default() };
        let differs = |ledger: &mut Ledger, _, second| {
            ledger.acked(0, second, 2);
            ledger.received(1, second, 3);
        };
        assert_eq!(broken(differs), expected);
        assert_eq!(broken(|ledger, _, second| ledger.acked(0, second, 0)), expected);
    }

    #[test]
    fn what_reaches_the_wrong_device_is_misdirected() {
        let expected = Counts { misdirected: 1, ..Counts::default() };
        assert_eq!(broken(|ledger, first, _| ledger.received(2, first, 1)), expected);
        assert_eq!(broken(|ledger, _, second| ledger.acked(1, second, 2)), expected);
        assert_eq!(broken(|ledger, _, _| ledger.received(1, 99, 2)), expected);
        assert_eq!(broken(|ledger, _, second| assert!(!ledger.refused(3, second))), expected);
    }

    #[test]
    fn a_command_has_one_answer() {
        let expected = Counts { answered_twice: 1, ..Counts::default() };
        assert_eq!(broken(|ledger, first, _| ledger.acked(0, first, 1)), expected);
        assert_eq!(broken(|ledger, first, _| assert!(!ledger.refused(0, first))), expected);
    }

    #[test]
    fn places_are_given_once_and_without_holes() {
        let (mut ledger, _, second) = history();
        ledger.acked(0, second, 1);
        assert_eq!(ledger.audit().seq_collisions, 1);
        let (mut ledger, _, second) = history();
        ledger.acked(0, second, 4);
        assert_eq!(ledger.audit().seq_holes, 2);
    }

    #[test]
    fn entries_survive_many_chunks() {
        let mut ledger = Ledger::new(2);
        for at in 0..CHUNK as u64 * 2 + 10 {
            assert_eq!(ledger.sent((at % 2) as u32, at), at);
        }
        let index = CHUNK as u64 + 3;
        let sender = (index % 2) as u32;
        assert_eq!(ledger.acked(sender, index, 1), Step::First { sender, sent_at_ns: index, complete: false });
    }
}
