//! Chats and users in memory: the state as of everything numbered, durable or not. Nothing in here decides.

use crate::planted::{self, Bug};
use crate::store::{Checkpoint, MarkRow, MemberRow, StoredChat, StoredMember, StoredUser};
use hashbrown::HashMap;
use parley_protocol::body::{Body, kind};
use parley_protocol::frame::Interval;
use parley_protocol::{ChatId, ChatKind, Event, OwnState, Role, UserId};
use std::collections::VecDeque;
use std::hash::Hash;

/// Events between two checkpoints at least, so that loading a chat replays few.
const CHECKPOINT_EVENTS_MIN: u64 = 64;

/// When an entry of a cache was last needed, and which group it is in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    /// The newest group that holds something of it: it stays until that one is durable.
    pub(super) group_no: u64,
    /// The tick at which it was last needed.
    pub(super) touched: u64,
    /// The tick at which eviction last passed by.
    pub(super) visited: u64,
}

/// An entry that can leave the cache.
pub(super) trait Cached {
    fn usage(&mut self) -> &mut Usage;
}

/// A member, present or past.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) user_id: UserId,
    pub(super) role: Option<Role>,
    pub(super) intervals: Vec<Interval>,
    /// Own messages up to the head.
    pub(super) sent: u64,
    pub(super) marks: MarkRow,
    /// Group and index of the newest write of these marks.
    pub(super) mark_at: (u64, usize),
}

impl Member {
    /// Somebody who never was one.
    pub(super) fn stranger(user_id: UserId) -> Member {
        Member { user_id, role: None, intervals: Vec::new(), sent: 0, marks: MarkRow::default(), mark_at: (0, 0) }
    }

    fn stored(member: StoredMember) -> Member {
        let StoredMember { user_id, row, marks } = member;
        Member { role: row.role, intervals: row.intervals, marks, ..Member::stranger(user_id) }
    }

    /// Comes in at `seq`, for the first time or again.
    fn come(&mut self, role: Role, seq: u64) {
        assert!(self.role.is_none(), "whoever joins is not a member");
        self.role = Some(role);
        self.intervals.push(Interval { joined_seq: seq, left_seq: None, history_from: seq });
    }

    /// Goes at `seq`.
    fn go(&mut self, seq: u64) {
        self.role = None;
        self.intervals.last_mut().expect("a member has an interval").left_seq = Some(seq);
    }

    pub(super) fn row(&self) -> MemberRow {
        MemberRow { role: self.role, intervals: self.intervals.clone() }
    }

    pub(super) fn own(&self, chat_id: ChatId) -> OwnState {
        OwnState {
            chat_id,
            read_seq: self.marks.read_seq,
            read_ordinal: self.marks.read_ordinal,
            read_sent: self.marks.read_sent,
            muted_until_ms: self.marks.muted_until_ms,
        }
    }
}

/// Somebody in a channel, or the knowledge that somebody is not: members of channels are known one by one, as they are
/// asked about, because nothing that is done in a channel needs all of them.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    pub(super) member: Member,
    pub(super) usage: Usage,
}

impl Cached for Seat {
    fn usage(&mut self) -> &mut Usage {
        &mut self.usage
    }
}

impl Seat {
    pub(super) fn load(user_id: UserId, stored: Option<StoredMember>) -> Seat {
        let member = stored.map_or_else(|| Member::stranger(user_id), Member::stored);
        Seat { member, usage: Usage::default() }
    }
}

/// Known members of channels.
pub(super) type Seats = Cache<(ChatId, UserId), Seat>;

/// A chat. `head_seq` 0: nothing was ever written in it.
#[derive(Clone, Debug, Default)]
pub(super) struct Chat {
    pub(super) direct: bool,
    /// Its members are in [`Seats`], and nobody's own messages are counted.
    pub(super) channel: bool,
    pub(super) head_seq: u64,
    pub(super) head_ordinal: u64,
    /// The newest event that is durable.
    pub(super) durable_seq: u64,
    pub(super) last_message_id: u64,
    pub(super) checkpoint_seq: u64,
    pub(super) title: String,
    /// By user id.
    pub(super) members: Vec<Member>,
    pub(super) present: usize,
    /// Group and index of the newest append.
    pub(super) append_at: (u64, usize),
    pub(super) usage: Usage,
}

impl Cached for Chat {
    fn usage(&mut self) -> &mut Usage {
        &mut self.usage
    }
}

impl Chat {
    /// From what the store holds; the error says what is wrong with it.
    pub(super) fn load(chat_id: ChatId, stored: Option<Box<StoredChat>>) -> Result<Chat, String> {
        let direct = matches!(chat_id.kind(), Some(ChatKind::Direct(..)));
        let channel = chat_id.is_channel();
        let Some(stored) = stored else { return Ok(Chat { direct, channel, ..Chat::default() }) };
        let StoredChat { checkpoint, tail, members } = *stored;
        let mut chat = Chat {
            direct,
            channel,
            head_seq: checkpoint.seq,
            head_ordinal: checkpoint.ordinal,
            last_message_id: checkpoint.message_id,
            checkpoint_seq: checkpoint.seq,
            title: checkpoint.title.clone(),
            ..Chat::default()
        };
        if channel {
            chat.present = checkpoint.channel_members() as usize;
            chat.replay(chat_id, tail)?;
            return Ok(chat);
        }
        chat.members = members.into_iter().map(Member::stored).collect();
        chat.members.sort_unstable_by_key(|member| member.user_id);
        chat.present = chat.members.iter().filter(|member| member.role.is_some()).count();
        for (user_id, sent) in checkpoint.sent {
            let member = chat.member_mut(user_id).ok_or("the checkpoint names someone who never was a member")?;
            member.sent = sent;
        }
        chat.replay(chat_id, tail)?;
        Ok(chat)
    }

    /// Goes on from the checkpoint by the events above it.
    fn replay(&mut self, chat_id: ChatId, tail: Vec<Event>) -> Result<(), String> {
        let chat = self;
        for event in tail {
            if event.seq != chat.head_seq + 1 {
                return Err(format!("chat {chat_id}: event {} follows {}", event.seq, chat.head_seq));
            }
            chat.head_seq = event.seq;
            chat.head_ordinal = event.ordinal;
            chat.last_message_id = event.message_id.0;
            if !chat.channel {
                let member = chat.member_mut(event.sender).ok_or("a sender in the tail never was a member")?;
                member.sent = event.sender_sent;
            }
            if event.envelope.kind == kind::TITLE
                && let Ok(Body::Title(title)) = event.envelope.to_body()
            {
                chat.title = title.title;
            }
        }
        if chat.head_seq == 0 {
            return Err(format!("chat {chat_id} has rows but no event"));
        }
        chat.durable_seq = chat.head_seq;
        Ok(())
    }

    pub(super) fn find(&self, user_id: UserId) -> Result<usize, usize> {
        // Direct chats are most of all: two comparisons instead of a search.
        match &self.members[..] {
            [low, _] if low.user_id == user_id => Ok(0),
            [_, high] if high.user_id == user_id => Ok(1),
            members => members.binary_search_by_key(&user_id, |member| member.user_id),
        }
    }

    /// A member, present or past.
    pub(super) fn member(&self, user_id: UserId) -> Option<&Member> {
        self.find(user_id).ok().map(|at| &self.members[at])
    }

    /// A member, present or past, of a chat of any kind. Of a channel: somebody who is known.
    pub(super) fn seat<'a>(&'a self, chat_id: ChatId, seats: &'a Seats, user_id: UserId) -> Option<&'a Member> {
        if self.channel { seats.get((chat_id, user_id)).map(|seat| &seat.member) } else { self.member(user_id) }
    }

    /// As `seat`, to be changed in the group `no`: it stays in memory until that is durable.
    pub(super) fn seat_mut<'a>(
        &'a mut self,
        chat_id: ChatId,
        seats: &'a mut Seats,
        user_id: UserId,
        no: u64,
    ) -> Option<&'a mut Member> {
        if !self.channel {
            return self.member_mut(user_id);
        }
        let seat = seats.get_mut((chat_id, user_id))?;
        seat.usage.group_no = seat.usage.group_no.max(no);
        Some(&mut seat.member)
    }

    /// A member, present or past.
    pub(super) fn member_mut(&mut self, user_id: UserId) -> Option<&mut Member> {
        self.find(user_id).ok().map(|at| &mut self.members[at])
    }

    /// The role of someone who is a member now.
    pub(super) fn role(&self, user_id: UserId) -> Option<Role> {
        self.member(user_id).and_then(|member| member.role)
    }

    /// Whether somebody may send, who has or had this membership: a member now, unless a planted bug looks at the past.
    pub(super) fn may_send(&self, member: Option<&Member>) -> bool {
        member.is_some_and(|member| {
            let left_seq = member.intervals.last().and_then(|interval| interval.left_seq);
            member.role.is_some()
                || planted::has(Bug::FormerMembersMaySend)
                || (planted::has(Bug::RemovedMaySend) && left_seq > Some(self.durable_seq))
        })
    }

    /// Members now.
    pub(super) fn present_members(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.role.is_some())
    }

    /// Lets somebody in at `seq`, for the first time or again.
    pub(super) fn join(&mut self, user_id: UserId, role: Role, seq: u64) {
        let at = self.find(user_id).unwrap_or_else(|at| {
            let member = Member { intervals: Vec::with_capacity(1), ..Member::stranger(user_id) };
            self.members.insert(at, member);
            at
        });
        self.members[at].come(role, seq);
        self.present += 1;
    }

    /// Takes somebody out at `seq`.
    pub(super) fn part(&mut self, user_id: UserId, seq: u64) {
        self.member_mut(user_id).expect("whoever leaves is a member").go(seq);
        self.present -= 1;
    }

    /// The same two in a channel.
    pub(super) fn come_or_go(&mut self, member: &mut Member, role: Option<Role>, seq: u64) {
        match role {
            Some(role) => {
                member.come(role, seq);
                self.present += 1;
            }
            None => {
                member.go(seq);
                self.present -= 1;
            }
        }
    }

    /// Whether the event just numbered ends with a checkpoint.
    pub(super) fn checkpoint_due(&self) -> bool {
        // A channel has no members here, and a checkpoint that is small whatever their number.
        let interval = CHECKPOINT_EVENTS_MIN.max(self.members.len() as u64 / 4);
        self.checkpoint_seq == 0 || self.head_seq >= self.checkpoint_seq + interval
    }

    /// The state at the head.
    pub(super) fn checkpoint(&self) -> Checkpoint {
        if self.channel {
            let (seq, ordinal, present) = (self.head_seq, self.head_ordinal, self.present as u64);
            return Checkpoint::of_channel(seq, ordinal, self.last_message_id, self.title.clone(), present);
        }
        let sent = self.members.iter().filter(|member| member.sent > 0);
        Checkpoint {
            seq: self.head_seq,
            ordinal: self.head_ordinal,
            message_id: self.last_message_id,
            title: self.title.clone(),
            sent: sent.map(|member| (member.user_id, member.sent)).collect(),
        }
    }
}

/// A user, or the knowledge that there is none.
#[derive(Clone, Debug, Default)]
pub(super) struct User {
    pub(super) exists: bool,
    pub(super) inbox_head: u64,
    pub(super) name: Box<str>,
    pub(super) usage: Usage,
}

impl Cached for User {
    fn usage(&mut self) -> &mut Usage {
        &mut self.usage
    }
}

impl User {
    pub(super) fn is_nameless(&self) -> bool {
        self.exists && self.name.is_empty()
    }

    pub(super) fn load(stored: Option<StoredUser>) -> User {
        match stored {
            None => User::default(),
            Some(stored) => User {
                exists: true,
                inbox_head: stored.inbox_head.saturating_sub(u64::from(planted::has(Bug::InboxHeadTooLow))),
                name: stored.row.name.into_boxed_str(),
                usage: Usage::default(),
            },
        }
    }
}

/// A bounded map. Above its bound, entries leave that nobody needs, those first that were not needed for longest (by
/// second chance); an entry in a group that is not durable stays.
#[derive(Debug)]
pub(super) struct Cache<K, V> {
    map: HashMap<K, V>,
    clock: VecDeque<K>,
    entries_max: usize,
}

impl<K: Copy + Eq + Hash, V: Cached> Cache<K, V> {
    pub(super) fn new(entries_max: usize) -> Cache<K, V> {
        Cache { map: HashMap::new(), clock: VecDeque::new(), entries_max }
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    pub(super) fn get(&self, key: K) -> Option<&V> {
        self.map.get(&key)
    }

    pub(super) fn get_mut(&mut self, key: K) -> Option<&mut V> {
        self.map.get_mut(&key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.map.iter()
    }

    /// Adds an entry, or replaces the one that is there.
    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.map.insert(key, value).is_none() {
            self.clock.push_back(key);
        }
    }

    pub(super) fn clear(&mut self) {
        self.map.clear();
        self.clock.clear();
    }

    /// Makes room, in a bounded number of steps. Entries touched at or after tick `needed_since` stay, because someone
    /// who waits since then may need them.
    pub(super) fn evict(&mut self, durable_no: u64, needed_since: u64, tick: u64) {
        let excess = self.map.len().saturating_sub(self.entries_max);
        for _ in 0..(excess * 4).min(self.clock.len()) {
            if self.map.len() <= self.entries_max {
                return;
            }
            let Some(key) = self.clock.pop_front() else { return };
            let usage = self.map.get_mut(&key).expect("the clock holds what the map holds").usage();
            let needed = usage.group_no > durable_no || usage.touched >= needed_since;
            if needed || usage.touched > usage.visited {
                usage.visited = tick;
                self.clock.push_back(key);
            } else {
                self.map.remove(&key);
            }
        }
    }

    pub(super) fn check_invariants(&self) {
        assert_eq!(self.map.len(), self.clock.len());
    }
}
