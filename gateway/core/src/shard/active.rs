//! What a shard keeps of a session only while it is busy: half a frame, frames that wait, requests, entries behind a
//! hole. An idle session has none of it. State only; what happens to it is next door.

use super::session::{Flag, Session};
use super::stream::Held;
use crate::ws::Decoder;
use parley_protocol::{ChatId, ClientFrame};

/// Boxes that are kept for whoever gets busy next.
const SPARE_MAX: usize = 256;
/// Room that a spare box may keep for what waits beside a stream.
const BESIDE_KEPT_BYTES_MAX: usize = 512;
/// Room for slots that is kept between two events.
const TOUCHED_KEPT_MAX: usize = 1024;

/// Why a session's input stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// For a credit of a shard.
    Credit(u16),
    /// For room in its own outbox.
    Outbox,
    /// For answers to its own requests.
    Answers,
}

/// A frame that could not be acted on yet, and what came after it.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) frame: ClientFrame,
    pub(crate) wait: Wait,
    pub(crate) stash: Vec<u8>,
    /// How much of the stash was acted on.
    pub(crate) at: usize,
    /// The socket is not read.
    pub(crate) paused: bool,
}

impl Parked {
    /// Bytes that were not acted on.
    pub(crate) fn waits(&self) -> usize {
        self.stash.len() - self.at
    }
}

/// The busy part of a session. As it is made, it says nothing: whoever has none loses nothing.
#[derive(Debug, Default)]
pub(crate) struct Active {
    /// Requests without an answer.
    pub(crate) requests: u16,
    pub(crate) rate: Rate,
    /// Since when bytes wait and nothing is taken.
    pub(crate) stalled_since_ms: Option<u64>,
    /// The highest entry of the user's inbox that was seen, while the stream has not come so far.
    pub(crate) head: u64,
    /// With a message that is incomplete.
    pub(crate) decoder: Option<Decoder>,
    pub(crate) parked: Option<Box<Parked>>,
    /// Whole frames that go out with the next one, or soon.
    pub(crate) beside: Vec<u8>,
    /// Entries behind a hole.
    pub(crate) held: Held,
    pub(crate) subscriptions: Vec<ChatId>,
    /// Asked for, not answered, and not taken back.
    pub(crate) subscribing: Vec<ChatId>,
}

impl Active {
    /// It says what one that was just made says, of a session whose stream has come to `position`.
    pub(crate) fn says_nothing(&self, position: u64, now_ms: u64, rate_per_s: u32) -> bool {
        let Self { requests, rate, stalled_since_ms, head, decoder, parked, beside, held, .. } = self;
        *requests == 0
            && self.subscriptions.is_empty()
            && self.subscribing.is_empty()
            && *head <= position
            && beside.is_empty()
            && held.is_empty()
            && parked.is_none()
            && decoder.is_none()
            && stalled_since_ms.is_none()
            && rate.is_full(now_ms, rate_per_s)
    }

    /// As new, with a little of its room.
    fn clear(&mut self) {
        let beside = std::mem::take(&mut self.beside);
        *self = Self::default();
        self.keep_room(beside);
    }

    /// What waits beside the stream, to be sent.
    pub(crate) fn take_beside(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.beside)
    }

    /// The room of what was sent is used again, if it is not much.
    pub(crate) fn keep_room(&mut self, mut beside: Vec<u8>) {
        beside.clear();
        if beside.capacity() <= BESIDE_KEPT_BYTES_MAX {
            self.beside = beside;
        }
    }
}

/// Spare boxes, and the sessions whose busy part was used in this event: at its end those that say nothing go.
#[derive(Debug, Default)]
pub(crate) struct Actives {
    #[expect(clippy::vec_box, reason = "it is the boxes that are kept")]
    spare: Vec<Box<Active>>,
    touched: Vec<u32>,
}

impl Actives {
    /// One for a session that gets busy.
    pub(crate) fn make(&mut self) -> Box<Active> {
        self.spare.pop().unwrap_or_default()
    }

    /// Takes one back.
    pub(crate) fn give_back(&mut self, mut active: Box<Active>) {
        if self.spare.len() < SPARE_MAX {
            active.clear();
            self.spare.push(active);
        }
    }

    /// The session's busy part was used: it is looked at when the event ends.
    pub(crate) fn touch(&mut self, slot: u32, session: &mut Session) {
        if !session.replace(Flag::Touched, true) {
            self.touched.push(slot);
        }
    }

    /// The next session to look at.
    pub(crate) fn next_touched(&mut self) -> Option<u32> {
        let slot = self.touched.pop();
        if slot.is_none() {
            self.touched.shrink_to(TOUCHED_KEPT_MAX);
        }
        slot
    }
}

/// A token bucket, by what is missing in it. The default is a full one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rate {
    /// Thousandths of a command that were missing then.
    missing: u64,
    at_ms: u64,
}

impl Rate {
    /// Takes one, or says in how many milliseconds there is one.
    pub(crate) fn take(&mut self, now_ms: u64, per_s: u32, burst: u32) -> Result<(), u32> {
        let (per_s, full) = (u64::from(per_s.max(1)), u64::from(burst.max(1)) * 1000);
        self.missing = self.missing_at(now_ms, per_s);
        self.at_ms = now_ms;
        match self.missing + 1000 {
            missing if missing <= full => {
                self.missing = missing;
                Ok(())
            }
            missing => Err((missing - full).div_ceil(per_s) as u32),
        }
    }

    fn missing_at(&self, now_ms: u64, per_s: u64) -> u64 {
        self.missing.saturating_sub(now_ms.saturating_sub(self.at_ms).saturating_mul(per_s))
    }

    /// Nothing is missing any more.
    fn is_full(&self, now_ms: u64, per_s: u32) -> bool {
        self.missing_at(now_ms, u64::from(per_s.max(1))) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::super::stream::Stream;
    use super::*;
    use crate::fan::Fan;
    use parley_protocol::ServerFrame;
    use parley_protocol::frame::{Ping, Pong};
    use std::sync::Arc;

    #[test]
    fn a_burst_passes_and_the_rest_is_paced() {
        let mut rate = Rate::default();
        assert_eq!((0..4).map(|_| rate.take(0, 10, 3)).collect::<Vec<_>>(), [Ok(()), Ok(()), Ok(()), Err(100)]);
        assert_eq!(rate.take(99, 10, 3), Err(1));
        assert_eq!(rate.take(100, 10, 3), Ok(()));
        assert!(!rate.is_full(399, 10) && rate.is_full(400, 10));
    }

    #[test]
    fn each_thing_that_a_busy_session_has_keeps_its_box() {
        let is_kept = |change: fn(&mut Active)| {
            let mut active = Active::default();
            assert!(active.says_nothing(5, 1_000, 10));
            change(&mut active);
            let kept = !active.says_nothing(5, 1_000, 10);
            active.clear();
            assert!(active.says_nothing(0, 0, 1), "cleared, it is as new");
            kept
        };
        assert!(is_kept(|active| active.requests = 1));
        assert!(is_kept(|active| active.rate.take(1_000, 10, 3).expect("a full one")));
        assert!(is_kept(|active| active.stalled_since_ms = Some(0)));
        assert!(is_kept(|active| active.head = 6));
        assert!(!is_kept(|active| active.head = 5), "the stream has come there");
        assert!(is_kept(|active| active.decoder = Some(Decoder::new(1))));
        assert!(is_kept(|active| active.beside.push(1)));
        assert!(is_kept(|active| active.subscriptions.push(ChatId(1))));
        assert!(is_kept(|active| active.subscribing.push(ChatId(1))));
        assert!(is_kept(|active| {
            let (frame, wait) = (ClientFrame::Ping(Ping { nonce: 1 }), Wait::Outbox);
            active.parked = Some(Box::new(Parked { frame, wait, stash: Vec::new(), at: 0, paused: false }));
        }));
        assert!(is_kept(|active| {
            let fan = Arc::new(Fan::new(ServerFrame::Pong(Pong { nonce: 1 })));
            Stream::new(Some(4)).hold(&mut active.held, 6, &fan, 8);
        }));
    }
}
