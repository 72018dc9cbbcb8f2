//! The final log of one chat, and what follows from it for each user: who was in when, and which events went through
//! whose inbox. Derived here from the rules of `docs/PROTOCOL.md` alone.

use crate::history::Seen;
use parley_protocol::{ChatId, ChatKind, ClientMsgId, UserId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// One event of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) message_id: u64,
    pub(super) name: ClientMsgId,
    pub(super) sender: UserId,
    pub(super) content: u64,
}

impl From<Seen> for Entry {
    fn from(seen: Seen) -> Self {
        let Seen { message_id, name, sender, content, .. } = seen;
        Self { message_id, name, sender, content }
    }
}

/// Rising numbers as inclusive ranges.
#[derive(Debug, Default)]
pub(super) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Adds a number above all others.
    fn push(&mut self, seq: u64) {
        match self.0.last_mut() {
            Some((_, end)) if *end + 1 == seq => *end = seq,
            _ => self.0.push((seq, seq)),
        }
    }

    /// All numbers above `seq`.
    pub(super) fn successors(&self, seq: u64) -> impl Iterator<Item = u64> + '_ {
        let at = self.0.partition_point(|(_, end)| *end <= seq);
        self.0[at..].iter().flat_map(move |(start, end)| (*start).max(seq + 1)..=*end)
    }

    pub(super) fn contains(&self, seq: u64) -> bool {
        let at = self.0.partition_point(|(_, end)| *end < seq);
        self.0.get(at).is_some_and(|(start, _)| *start <= seq)
    }

    /// All numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().flat_map(|(start, end)| *start..=*end)
    }
}

/// What a chat's log means to one user.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// The times as a member: from the event that let the user in to the one that took the user out.
    pub(super) inside: Ranges,
    /// Those of them that went through the inbox.
    pub(super) inbox: Ranges,
    /// Those of these that let the user in although messages were there that it had not read: an entry with the own
    /// state follows each. The harness's devices read and mute nothing, so inboxes have no other such entries.
    pub(super) own: Ranges,
    /// Messages up to the last time that the user was let in.
    read: u64,
}

/// The log of a chat.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// `seq` 1 is the first.
    pub(super) entries: Vec<Entry>,
    changes: BTreeMap<u64, Vec<(UserId, bool)>>,
    pub(super) shares: HashMap<UserId, Share>,
    /// It was above the inbox limit at some time.
    pub(super) was_large: bool,
}

impl Log {
    pub(super) fn at(&self, seq: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(seq.checked_sub(1)?).ok()?)
    }

    pub(super) fn head(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(super) fn change(&mut self, seq: u64, user: UserId, joined: bool) {
        self.changes.entry(seq).or_default().push((user, joined));
    }

    /// Replays the log: chats up to `limit` members leave every event in the inbox of everybody who is a member before
    /// or after it; above that, only those whom an event lets in or takes out get it; an event that carries the chat
    /// over the limit, either way, goes to everybody. What is no change of members is taken for a message.
    pub(super) fn derive(&mut self, chat: ChatId, limit: usize) {
        let mut members = BTreeSet::new();
        if let Some(ChatKind::Direct(a, b)) = chat.kind() {
            members.extend([a, b]);
        }
        let (mut large, mut messages) = (false, 0);
        let mut shares: HashMap<UserId, Share> = HashMap::new();
        for seq in 1..=self.head() {
            let changes = self.changes.get(&seq).map_or(&[][..], |changes| changes);
            let mut concerned = members.clone();
            for (user, joined) in changes {
                concerned.insert(*user);
                let _ = if *joined { members.insert(*user) } else { members.remove(user) };
            }
            let large_now = members.len() > limit;
            let everybody = !large_now || !large;
            large = large_now;
            messages += u64::from(changes.is_empty());
            self.was_large |= large;
            for user in &concerned {
                let share = shares.entry(*user).or_default();
                share.inside.push(seq);
                if everybody || changes.iter().any(|(changed, _)| changed == user) {
                    share.inbox.push(seq);
                }
                if changes.contains(&(*user, true)) && messages > share.read {
                    share.own.push(seq);
                    share.read = messages;
                }
            }
        }
        self.shares = shares;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_know_their_successors() {
        let mut ranges = Ranges::default();
        for seq in [1, 2, 5, 6, 9] {
            ranges.push(seq);
        }
        let after: Vec<_> = (0..10).map(|seq| ranges.successors(seq).next()).collect();
        let expected = [1, 2, 5, 5, 5, 6, 9, 9, 9].map(Some);
        assert_eq!((&after[..9], after[9]), (&expected[..], None));
        assert_eq!((0..11).filter(|seq| ranges.contains(*seq)).collect::<Vec<_>>(), [1, 2, 5, 6, 9]);
    }

    #[test]
    fn a_chat_that_crosses_the_limit_leaves_the_events_around_it_to_everybody() {
        let entry = Entry { message_id: 1, name: ClientMsgId(1), sender: UserId(1), content: 1 };
        let mut log = Log { entries: vec![entry; 8], ..Log::default() };
        let (a, b, c, d) = (UserId(1), UserId(2), UserId(3), UserId(4));
        for user in [a, b] {
            log.change(1, user, true);
        }
        let own = |log: &Log, user: UserId| log.shares[&user].own.iter().collect::<Vec<_>>();
        // Over the limit of 2 with the third; a fourth comes and goes; back under it with the third's removal.
        log.change(3, c, true);
        log.change(5, d, true);
        log.change(6, d, false);
        log.change(7, c, false);
        log.derive(ChatId::group(1), 2);
        let of = |user: UserId| {
            let share = &log.shares[&user];
            (share.inside.iter().collect::<Vec<_>>(), share.inbox.iter().collect::<Vec<_>>())
        };
        assert_eq!(of(a), ((1..=8).collect(), vec![1, 2, 3, 7, 8]));
        assert_eq!(of(c), ((3..=7).collect(), vec![3, 7]));
        assert_eq!(of(d), (vec![5, 6], vec![5, 6]));
        assert!(log.was_large);
        // In at the beginning: nothing was there to read. In later: the message before it.
        assert_eq!([a, b, c, d].map(|user| own(&log, user)), [vec![], vec![], vec![3], vec![5]]);
        // Out and in again without a message in between.
        let mut log = Log { entries: vec![entry; 6], ..Log::default() };
        for (seq, user, joined) in [(1, a, true), (3, b, true), (4, b, false), (5, b, true)] {
            log.change(seq, user, joined);
        }
        log.derive(ChatId::group(1), 2);
        assert_eq!(own(&log, b), [3]);
    }
}
