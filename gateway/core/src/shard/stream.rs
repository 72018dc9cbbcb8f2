//! The stream of one session: rule 8's local check of every item against the session's own position, rule 11's pages,
//! rule 13's falling behind, rule 14's truncation. Numbers only; who holds what in which socket is not known here.

use crate::fan::Fan;
use crate::planted::{self, Bug};
use std::sync::Arc;

/// Items ahead of a position, by number, rising.
#[derive(Debug, Default)]
pub(crate) struct Held(Vec<(u64, Arc<Fan>)>);

impl Held {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Position and hole handling of one session. Nine bytes, wherever they lie: it is kept for every idle session.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Everything up to here was put into the stream.
    position: [u8; 8],
    bits: u8,
}

/// The device was told the position in this stream.
const TOLD: u8 = 1;
/// The device presented no mark: the position is not known before the head is.
const FRESH: u8 = 1 << 1;
/// A page was judged, so the head is known: before that a mark would claim that the device has caught up.
const JUDGED: u8 = 1 << 2;
/// A page is being read.
const READING: u8 = 1 << 3;
/// Read once more when that page is there: something may have been missed meanwhile.
const AGAIN: u8 = 1 << 4;
/// Items were dropped for want of room: read on when there is some.
const BEHIND: u8 = 1 << 5;

/// What to do with a live item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// It is old.
    Stale,
    /// It is the next: send it, then look at [`Stream::next_held`].
    Send,
    /// It waits behind a hole.
    Held {
        /// Nothing was held before: the hole's time starts.
        first: bool,
    },
    /// There was no room; it will be read.
    Dropped,
}

/// What to do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// The position moved on meanwhile: leave it.
    Leave,
    /// Send its entries; the position is at its end.
    Take,
    /// Tell the device to start over at this mark.
    Truncate {
        /// The head.
        mark: u64,
    },
}

impl Stream {
    pub(crate) fn new(mark: Option<u64>) -> Self {
        let bits = if mark.is_none() { FRESH } else { 0 };
        Self { position: mark.unwrap_or(0).to_ne_bytes(), bits }
    }

    fn is(&self, bit: u8) -> bool {
        self.bits & bit != 0
    }

    fn set(&mut self, bit: u8, on: bool) {
        self.bits = if on { self.bits | bit } else { self.bits & !bit };
    }

    pub(crate) fn position(&self) -> u64 {
        u64::from_ne_bytes(self.position)
    }

    /// Elsewhere, the device was not told.
    fn move_to(&mut self, position: u64) {
        if position != self.position() {
            self.position = position.to_ne_bytes();
            self.set(TOLD, false);
        }
    }

    /// The highest item of which this stream is a witness.
    pub(crate) fn known(&self) -> u64 {
        if self.is(JUDGED) { self.position() } else { 0 }
    }

    /// A read failed, or something was missed while none was under way.
    pub(crate) fn owes_read(&self) -> bool {
        self.is(AGAIN) && !self.is(READING)
    }

    pub(crate) fn is_behind(&self) -> bool {
        self.is(BEHIND)
    }

    /// Judges a live item; `None` when it is ahead, and has to be held.
    pub(crate) fn offer(&mut self, inbox_seq: u64, has_room: bool) -> Option<Offer> {
        if self.is(FRESH) {
            return None;
        }
        if inbox_seq <= self.position() {
            return Some(if planted::has(Bug::StaleNotDropped) { Offer::Send } else { Offer::Stale });
        }
        if planted::has(Bug::StartsAtFirstLive) && !self.is(JUDGED) {
            self.move_to(inbox_seq);
            return Some(Offer::Send);
        }
        if self.is(BEHIND) {
            return Some(Offer::Dropped);
        }
        if inbox_seq != self.position() + 1 && !planted::has(Bug::HoleNotWaited) {
            return None;
        }
        if !has_room {
            self.set(BEHIND, !planted::has(Bug::OverBudgetNotBehind));
            self.move_to(self.position() + u64::from(planted::has(Bug::OverBudgetSkips)));
            return Some(Offer::Dropped);
        }
        self.move_to(inbox_seq);
        Some(Offer::Send)
    }

    /// Holds an item that is ahead, among so many.
    pub(crate) fn hold(&mut self, held: &mut Held, inbox_seq: u64, fan: &Arc<Fan>, held_max: usize) -> Offer {
        let Held(items) = held;
        match items.binary_search_by_key(&inbox_seq, |(seq, _)| *seq) {
            Ok(_) => Offer::Stale,
            Err(index) if items.len() < held_max => {
                let first = items.is_empty();
                items.insert(index, (inbox_seq, fan.clone()));
                Offer::Held { first }
            }
            Err(_) => {
                if planted::has(Bug::FullSetSkips) {
                    self.move_to(inbox_seq);
                }
                // What is dropped lies above the position: the read that closes the hole, or the next one, has it.
                self.set(AGAIN, true);
                Offer::Dropped
            }
        }
    }

    /// Takes the next held item, if the position has come up to it.
    pub(crate) fn next_held(&mut self, held: &mut Held, has_room: bool) -> Option<Arc<Fan>> {
        if self.is(FRESH) {
            return None;
        }
        let Held(items) = held;
        let position = self.position();
        let old = items.partition_point(|(seq, _)| *seq <= position);
        items.drain(..old);
        if items.first().is_none_or(|(seq, _)| *seq != position + 1) {
            return None;
        }
        if !has_room {
            self.set(BEHIND, !planted::has(Bug::OverBudgetNotBehind));
            items.clear();
            return None;
        }
        self.move_to(position + 1);
        Some(items.remove(0).1)
    }

    /// Asks for a page; false when one is on its way, which is then followed by another.
    pub(crate) fn begin_read(&mut self) -> bool {
        if self.is(READING) {
            self.set(AGAIN, true);
            return false;
        }
        self.set(READING, true);
        self.set(AGAIN | BEHIND, false);
        true
    }

    /// A page of (after, to] came, with the head that was read before it.
    pub(crate) fn take_page(&mut self, after: u64, to: u64, head: u64, backlog_max: u64) -> Page {
        self.set(READING, false);
        let first = !self.is(JUDGED);
        self.set(JUDGED, true);
        let fresh = self.is(FRESH);
        if planted::has(Bug::StartsAtTheHead) && first && !fresh {
            self.move_to(self.position().max(head));
        }
        if fresh {
            self.set(FRESH, false);
            self.truncate_to(head);
            return if planted::has(Bug::FreshUntold) { Page::Leave } else { Page::Truncate { mark: head } };
        }
        let position = self.position();
        if after != position && !planted::has(Bug::PageTakenAnywhere) {
            return Page::Leave;
        }
        // A page of nothing below the head is how the storage tier says that the backlog is too long for it.
        let backlog_max = if planted::has(Bug::TruncatesNeedlessly) && first { 0 } else { backlog_max };
        if position > head || head - position > backlog_max || (to == after && head > after) {
            self.truncate_to(head);
            return if planted::has(Bug::TruncationUntold) { Page::Leave } else { Page::Truncate { mark: head } };
        }
        self.move_to(match () {
            () if planted::has(Bug::PageMovesToTheHead) => head,
            () if planted::has(Bug::PageMovesTooLittle) && to > after => to - 1,
            () => to,
        });
        Page::Take
    }

    pub(crate) fn truncate_to(&mut self, head: u64) {
        self.move_to(head);
        self.set(TOLD, true);
    }

    /// The read failed: the position is where it was.
    pub(crate) fn read_failed(&mut self) {
        self.set(READING, false);
        self.set(AGAIN, true);
    }

    /// Whether another page is wanted after one that named `head`.
    pub(crate) fn wants_read(&self, head: u64) -> bool {
        !self.is(READING) && (self.is(AGAIN | FRESH) || self.position() < head)
    }

    /// There is no room for the page that is wanted.
    pub(crate) fn fall_behind(&mut self) {
        self.set(BEHIND, true);
    }

    /// The mark to send, if the device was not told it.
    pub(crate) fn unmarked(&mut self) -> Option<u64> {
        let unmarked = self.is_unmarked();
        self.set(TOLD, self.is(TOLD) || unmarked);
        unmarked.then_some(self.position())
    }

    /// A mark is due.
    pub(crate) fn is_unmarked(&self) -> bool {
        self.is(JUDGED) && !self.is(FRESH | TOLD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parley_protocol::ServerFrame;
    use parley_protocol::frame::Pong;

    fn fan(nonce: u64) -> Arc<Fan> {
        Arc::new(Fan::new(ServerFrame::Pong(Pong { nonce: nonce as u32 })))
    }

    /// A stream with what it holds.
    struct Rig {
        stream: Stream,
        held: Held,
    }

    impl Rig {
        fn new(mark: Option<u64>) -> Self {
            Self { stream: Stream::new(mark), held: Held::default() }
        }

        fn offer(&mut self, inbox_seq: u64, fan: &Arc<Fan>, has_room: bool, held_max: usize) -> Offer {
            let judged = self.stream.offer(inbox_seq, has_room);
            judged.unwrap_or_else(|| self.stream.hold(&mut self.held, inbox_seq, fan, held_max))
        }

        fn next_held(&mut self, has_room: bool) -> Option<Arc<Fan>> {
            self.stream.next_held(&mut self.held, has_room)
        }

        fn has_hole(&self) -> bool {
            !self.held.is_empty()
        }
    }

    impl std::ops::Deref for Rig {
        type Target = Stream;

        fn deref(&self) -> &Stream {
            &self.stream
        }
    }

    impl std::ops::DerefMut for Rig {
        fn deref_mut(&mut self) -> &mut Stream {
            &mut self.stream
        }
    }

    fn nonce(fan: &Fan) -> u64 {
        let ServerFrame::Pong(Pong { nonce }) = fan.frame() else { panic!("only pongs here") };
        u64::from(*nonce)
    }

    #[test]
    fn an_item_out_of_order_waits_and_comes_once() {
        let mut stream = Rig::new(Some(4));
        assert!(stream.begin_read());
        assert_eq!(stream.unmarked(), None, "the head is not known yet");
        assert_eq!(stream.take_page(4, 4, 4, 100), Page::Take);
        assert_eq!(stream.unmarked(), Some(4), "caught up is said once");
        assert_eq!(stream.offer(6, &fan(6), true, 8), Offer::Held { first: true });
        assert_eq!(stream.offer(6, &fan(6), true, 8), Offer::Stale);
        assert_eq!(stream.offer(5, &fan(5), true, 8), Offer::Send);
        assert_eq!(stream.next_held(true).map(|fan| nonce(&fan)), Some(6));
        assert!(stream.next_held(true).is_none() && !stream.has_hole());
        assert_eq!(stream.offer(5, &fan(5), true, 8), Offer::Stale);
        assert_eq!(stream.unmarked(), Some(6));
        assert_eq!(stream.unmarked(), None);
    }

    #[test]
    fn a_page_is_taken_only_at_the_position() {
        let mut stream = Rig::new(Some(4));
        assert!(stream.begin_read());
        assert_eq!(stream.offer(5, &fan(5), true, 8), Offer::Send);
        assert_eq!(stream.take_page(4, 7, 7, 100), Page::Leave);
        assert!(stream.wants_read(7));
        assert!(stream.begin_read());
        assert_eq!(stream.take_page(5, 7, 7, 100), Page::Take);
        assert_eq!(stream.position(), 7);
        assert!(!stream.wants_read(7));
    }

    #[test]
    fn without_room_the_session_falls_behind_and_reads_on() {
        let mut stream = Rig::new(Some(0));
        assert_eq!(stream.offer(1, &fan(1), false, 8), Offer::Dropped);
        assert_eq!(stream.offer(2, &fan(2), true, 8), Offer::Dropped, "nothing overtakes what was dropped");
        assert!(stream.is_behind());
        assert!(stream.begin_read());
        assert_eq!(stream.take_page(0, 2, 2, 100), Page::Take);
    }

    #[test]
    fn a_new_device_starts_at_the_head_and_misses_nothing_after_it() {
        let mut stream = Rig::new(None);
        assert!(stream.begin_read());
        assert_eq!(stream.offer(9, &fan(9), true, 8), Offer::Held { first: true });
        assert_eq!(stream.take_page(0, 0, 8, 100), Page::Truncate { mark: 8 });
        assert_eq!(stream.next_held(true).map(|fan| nonce(&fan)), Some(9));
    }

    #[test]
    fn a_mark_above_the_head_and_a_long_backlog_are_truncated() {
        let mut ahead = Rig::new(Some(50));
        assert!(ahead.begin_read());
        assert_eq!(ahead.take_page(50, 50, 8, 100), Page::Truncate { mark: 8 });
        let mut far = Rig::new(Some(1));
        assert!(far.begin_read());
        assert_eq!(far.take_page(1, 1, 200, 100), Page::Truncate { mark: 200 });
        assert_eq!(far.unmarked(), None, "the device was told by Truncated");
    }

    #[test]
    fn what_finds_the_held_set_full_is_read_later() {
        let mut stream = Rig::new(Some(0));
        assert_eq!(stream.offer(2, &fan(2), true, 1), Offer::Held { first: true });
        assert_eq!(stream.offer(3, &fan(3), true, 1), Offer::Dropped);
        assert!(stream.begin_read());
        assert_eq!(stream.take_page(0, 1, 1, 100), Page::Take);
        assert_eq!(stream.next_held(true).map(|fan| nonce(&fan)), Some(2));
    }

    #[cfg(feature = "planted")]
    #[test]
    fn planted_bugs_take_effect() {
        use crate::planted::plant;
        let stream = |bug: Bug| {
            plant(Some(bug));
            let mut stream = Rig::new(Some(4));
            assert!(stream.begin_read());
            stream
        };
        assert_eq!(stream(Bug::StartsAtFirstLive).offer(9, &fan(9), true, 8), Offer::Send);
        assert_eq!(stream(Bug::HoleNotWaited).offer(6, &fan(6), true, 8), Offer::Send);
        assert_eq!(stream(Bug::StaleNotDropped).offer(3, &fan(3), true, 8), Offer::Send);
        let mut full = stream(Bug::FullSetSkips);
        assert_eq!((full.offer(6, &fan(6), true, 0), full.position()), (Offer::Dropped, 6));
        let mut over = stream(Bug::OverBudgetSkips);
        assert_eq!((over.offer(5, &fan(5), false, 8), over.position()), (Offer::Dropped, 5));
        let mut over = stream(Bug::OverBudgetNotBehind);
        assert_eq!((over.offer(5, &fan(5), false, 8), over.is_behind()), (Offer::Dropped, false));
        assert_eq!(stream(Bug::PageTakenAnywhere).take_page(3, 5, 5, 100), Page::Take);
        let mut short = stream(Bug::PageMovesTooLittle);
        assert_eq!((short.take_page(4, 6, 6, 100), short.position()), (Page::Take, 5));
        let mut fresh = Rig::new(None);
        plant(Some(Bug::FreshUntold));
        assert_eq!((fresh.take_page(0, 0, 6, 100), fresh.position()), (Page::Leave, 6));
        plant(None);
        assert_eq!(Rig::new(None).take_page(0, 0, 6, 100), Page::Truncate { mark: 6 });
        assert_eq!(Rig::new(Some(4)).offer(3, &fan(3), true, 8), Offer::Stale);
    }
}
