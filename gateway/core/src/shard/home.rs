//! A chat home: what the owner shard keeps of a chat to refuse early, to coalesce marks and to fan out. It numbers
//! nothing and decides nothing for good: the log does.

use super::active::Rate;
use crate::mesh::{HomeAsk, Origin};
use crate::planted::{self, Bug};
use parley_protocol::frame::Head;
use parley_protocol::link::{ChatState, MarkUpdate, Marked, MemberState};
use parley_protocol::{ChatId, Event, MemberAction, Role, UserId, body};
use std::collections::BTreeMap;

/// How far a home has come.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Waits for its partition's barrier, then for its members; asks wait here, each with a credit of its own.
    Loading(Vec<(Origin, HomeAsk)>),
    Ready,
}

/// What a home keeps of a channel besides: nothing that grows with its members.
#[derive(Debug, Default)]
pub(crate) struct Channel {
    /// Messages of all members.
    pub(crate) rate: Rate,
    /// Read marks that are not at the log yet, at most one a member.
    pub(crate) reads: BTreeMap<UserId, u64>,
    /// Subscriptions whose member is asked about.
    pub(crate) checks: u32,
    /// Whose membership a command changed whose answer was lost: whether they are members is asked.
    pub(crate) suspects: Vec<UserId>,
}

#[derive(Debug)]
pub(crate) struct ChatHome {
    pub(crate) phase: Phase,
    pub(crate) head_seq: u64,
    pub(crate) head_ordinal: u64,
    pub(crate) large: bool,
    /// By user id; nobody of a channel.
    pub(crate) members: Vec<MemberState>,
    /// Marks that are not at the log yet, at most one a member.
    pub(crate) marks: Vec<MarkUpdate>,
    /// Marks are on their way to the log.
    pub(crate) marks_under_way: bool,
    pub(crate) receipts_armed: bool,
    /// When marks last left.
    pub(crate) receipts_ms: Option<u64>,
    pub(crate) heads_armed: bool,
    pub(crate) commands_under_way: u32,
    /// Members before the home had to be loaded again, because an answer of the log was lost.
    pub(crate) before: Option<Vec<UserId>>,
    /// Shards with sessions that look at the chat; counts their subscriptions.
    pub(crate) subscribers: Vec<(u16, u32)>,
    /// Only of a channel.
    pub(crate) channel: Channel,
    /// Used since the clock of the eviction passed.
    pub(crate) used: bool,
    /// Members who went, for a planted bug only.
    #[cfg(feature = "planted")]
    pub(crate) former: Vec<UserId>,
}

impl ChatHome {
    pub(crate) fn loading() -> Self {
        Self {
            phase: Phase::Loading(Vec::new()),
            head_seq: 0,
            head_ordinal: 0,
            large: false,
            members: Vec::new(),
            marks: Vec::new(),
            marks_under_way: false,
            receipts_armed: false,
            receipts_ms: None,
            heads_armed: false,
            commands_under_way: 0,
            before: None,
            subscribers: Vec::new(),
            channel: Channel::default(),
            used: true,
            #[cfg(feature = "planted")]
            former: Vec::new(),
        }
    }

    /// Its members are here: gives back the asks that waited.
    pub(crate) fn load(&mut self, state: ChatState) -> Vec<(Origin, HomeAsk)> {
        self.head_seq = state.head_seq;
        self.head_ordinal = state.head_ordinal;
        self.large = state.large;
        self.members = state.members;
        self.members.sort_unstable_by_key(|member| member.user_id);
        match std::mem::replace(&mut self.phase, Phase::Ready) {
            Phase::Loading(asks) => asks,
            Phase::Ready => Vec::new(),
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Ready)
            && self.marks.is_empty()
            && !self.marks_under_way
            && !self.heads_armed
            && self.commands_under_way == 0
            && self.subscribers.is_empty()
            && self.channel.checks == 0
            && self.channel.reads.is_empty()
    }

    pub(crate) fn member(&self, user_id: UserId) -> Option<&MemberState> {
        let index = self.members.binary_search_by_key(&user_id, |member| member.user_id).ok()?;
        self.members.get(index)
    }

    /// The former members who hear of marks: nobody, unless a planted bug tells them.
    #[cfg(feature = "planted")]
    pub(crate) fn former_told(&self) -> impl Iterator<Item = UserId> {
        let told = planted::has(Bug::ReceiptsToFormerMembers);
        self.former.iter().copied().filter(move |user_id| told && self.member(*user_id).is_none())
    }

    pub(crate) fn head(&self, chat_id: ChatId) -> Head {
        Head { chat_id, seq: self.head_seq, ordinal: self.head_ordinal }
    }

    /// A durable event: the head rises and members change. Gives those who are no longer in.
    pub(crate) fn apply(&mut self, event: &Event, large: bool) -> Vec<UserId> {
        self.large = large;
        if event.seq > self.head_seq {
            self.head_seq = event.seq;
            self.head_ordinal = event.ordinal;
        }
        let mut gone = Vec::new();
        if event.envelope.kind != body::kind::MEMBERSHIP {
            return gone;
        }
        let Ok(parley_protocol::Body::Membership(body)) = event.envelope.to_body() else { return gone };
        for change in body.changes {
            match change.action {
                MemberAction::Added | MemberAction::RoleChanged if event.chat_id.is_channel() => {}
                MemberAction::Added | MemberAction::RoleChanged => self.put(change.user_id, change.role),
                MemberAction::Left if event.chat_id.is_channel() && planted::has(Bug::LeaversStaySubscribed) => {}
                MemberAction::Removed | MemberAction::Left => {
                    self.members.retain(|member| member.user_id != change.user_id);
                    self.marks.retain(|mark| mark.user_id != change.user_id);
                    self.channel.reads.remove(&change.user_id);
                    gone.push(change.user_id);
                    #[cfg(feature = "planted")]
                    if !self.former.contains(&change.user_id) {
                        self.former.push(change.user_id);
                    }
                }
            }
        }
        gone
    }

    fn put(&mut self, user_id: UserId, role: Role) {
        match self.members.binary_search_by_key(&user_id, |member| member.user_id) {
            Ok(index) => self.members[index].role = role,
            Err(index) => {
                self.members.insert(index, MemberState { user_id, role, delivered_seq: 0, read_seq: 0 });
            }
        }
    }

    pub(crate) fn has_marks(&self) -> bool {
        !self.marks.is_empty() || !self.channel.reads.is_empty()
    }

    /// Keeps a member's marks until they are sent; false when they change nothing.
    pub(crate) fn keep(&mut self, chat_id: ChatId, update: MarkUpdate) -> bool {
        if chat_id.is_channel() { self.channel.read(update) } else { self.merge(update) }
    }

    /// Merges a member's marks; false when they change nothing.
    pub(crate) fn merge(&mut self, update: MarkUpdate) -> bool {
        let Some(member) = self.member(update.user_id) else { return false };
        let fits = |seq: u64, stored: u64| if seq > stored { seq } else { 0 };
        let update = MarkUpdate {
            user_id: update.user_id,
            delivered_seq: fits(update.delivered_seq, member.delivered_seq),
            read_seq: fits(update.read_seq, member.read_seq),
        };
        if update.delivered_seq == 0 && update.read_seq == 0 {
            return false;
        }
        match self.marks.iter_mut().find(|mark| mark.user_id == update.user_id) {
            Some(mark) => {
                mark.delivered_seq = mark.delivered_seq.max(update.delivered_seq);
                mark.read_seq = mark.read_seq.max(update.read_seq);
            }
            None => self.marks.push(update),
        }
        true
    }

    /// The log has a member's marks; false when they are no news.
    pub(crate) fn marked(&mut self, marked: &Marked) -> bool {
        let Ok(index) = self.members.binary_search_by_key(&marked.user_id, |member| member.user_id) else {
            return false;
        };
        let member = &mut self.members[index];
        let news = marked.delivered_seq > member.delivered_seq || marked.own.read_seq > member.read_seq;
        member.delivered_seq = member.delivered_seq.max(marked.delivered_seq);
        member.read_seq = member.read_seq.max(marked.own.read_seq);
        news
    }

    /// A session of a shard looks at the chat; gives the count that its live events carry.
    pub(crate) fn subscribe(&mut self, shard: u16) -> u32 {
        match self.subscribers.iter_mut().find(|(known, _)| *known == shard) {
            Some((_, generation)) => {
                *generation = generation.wrapping_add(1);
                *generation
            }
            None => {
                self.subscribers.push((shard, 1));
                1
            }
        }
    }

    pub(crate) fn unsubscribe(&mut self, shard: u16, generation: u32) {
        self.subscribers.retain(|entry| *entry != (shard, generation));
    }
}
