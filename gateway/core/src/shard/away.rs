//! While no storage-writer is active: what nobody has sent to one yet is refused, to be sent again later, rather than
//! left to wait. What was sent keeps waiting for its outcome, which is never guessed (rule 6); that is the link's.

use super::chats::refused;
use super::home::Phase;
use super::{Out, Shard, Tag, Timer};
use crate::link::{LinkEvent, State};
use crate::time::Now;
use parley_protocol::link::{Ask, Reply};
use parley_protocol::{ChatId, ErrorCode};

/// Since when a link is away.
#[derive(Debug, Default)]
pub(super) struct Away {
    since_ms: Option<u64>,
    /// For too long: nothing new waits for it.
    refuses: bool,
}

impl Away {
    pub(super) fn since(now_ms: u64) -> Self {
        Self { since_ms: Some(now_ms), refuses: false }
    }

    pub(super) fn refuses(&self) -> bool {
        self.refuses
    }
}

/// Whether somebody waits for the answer, and hears a refusal. Marks and reads of inboxes are the gateway's own: they
/// are bounded, and wait.
fn refusable(ask: &Ask) -> bool {
    !matches!(ask, Ask::Marks { .. } | Ask::Inbox { .. })
}

impl Shard {
    /// Asks the storage tier; while it is away for too long the answer is a refusal, which the end of the turn tells.
    pub(super) fn ask(&mut self, ask: Ask, tag: Tag) {
        if self.away.refuses && refusable(&ask) {
            self.link_events.push_back(LinkEvent::Answer { tag, resent: false, reply: Reply::Failed });
        } else {
            self.link.ask(ask, tag);
        }
    }

    /// The link is not there. A link that was not there before is away since then.
    pub(super) fn link_away(&mut self, now: Now) {
        if self.away.since_ms.is_none() {
            self.away = Away::since(now.mono_ms);
            self.timers.arm(now.mono_ms + self.options.link_refuse_after_ms, Timer::LinkAway);
        }
    }

    /// A link that is away had its time, if it is the same absence still.
    pub(super) fn away_due(&mut self, now: Now, out: &mut Out) {
        let due = self.away.since_ms.is_some_and(|since| now.mono_ms >= since + self.options.link_refuse_after_ms);
        if !due || self.away.refuses || self.link.state() == State::Up {
            return;
        }
        self.away.refuses = true;
        self.link.take_back(refusable, &mut self.link_events);
        self.refuse_before_homes(out);
    }

    /// What waits for a chat home that waits for an answer was not sent either. In the order of the chats: the simulator
    /// repeats a run from its seed.
    fn refuse_before_homes(&mut self, out: &mut Out) {
        let waits = |phase: &Phase| matches!(phase, Phase::Loading(asks) if !asks.is_empty());
        let homes = self.chats.iter().filter(|(_, home)| waits(&home.phase));
        let mut chats: Vec<ChatId> = homes.map(|(chat_id, _)| *chat_id).collect();
        chats.sort_unstable();
        for chat_id in chats {
            let Some(home) = self.chats.get_mut(&chat_id) else { continue };
            let Phase::Loading(asks) = &mut home.phase else { continue };
            for (origin, ask) in std::mem::take(asks) {
                self.reply(origin, refused(&ask, ErrorCode::Unavailable), out);
            }
        }
    }
}
