//! Delivered and read marks, and mute: state, not log. A read mark carries what the log says at its `seq`.

use super::Writer;
use super::cache::{Chat, Member};
use super::jobs::{Answered, Judged};
use super::loads::Need;
use crate::planted::{self, Bug};
use crate::store::{MarkRow, MarkWrite, StoreRequest};
use parley_protocol::link::{MarkUpdate, Marked, Reply};
use parley_protocol::{ChatId, ErrorCode, Event, UserId};

/// What the log says at a `seq`: history, so it never grows stale.
#[derive(Clone, Debug)]
pub(super) struct Fact {
    user_id: UserId,
    seq: u64,
    chat_id: ChatId,
    direct: bool,
    /// Own messages are not counted.
    channel: bool,
    count: Count,
    ordinal: Option<u64>,
    /// Own messages of the user up to `seq`.
    sent: Option<u64>,
}

/// How own messages are counted: over the shorter side.
#[derive(Clone, Copy, Debug)]
enum Count {
    /// These, and those in `from..=seq`.
    Above { from: u64, base: u64 },
    /// These, without those in `seq + 1..=to`.
    Below { to: u64, base: u64 },
}

impl Fact {
    /// What must be asked, each with whether it asks for the event.
    pub(super) fn requests(&self) -> [Option<(StoreRequest, bool)>; 2] {
        let (chat_id, sender) = (self.chat_id, self.user_id);
        let event = StoreRequest::LoadEvent { chat_id, seq: self.seq };
        let count = match self.count {
            Count::Above { from, .. } => StoreRequest::CountMessages { chat_id, sender, from, to: self.seq },
            Count::Below { to, .. } => StoreRequest::CountMessages { chat_id, sender, from: self.seq + 1, to },
        };
        [Some((event, true)), (!self.direct && !self.channel).then_some((count, false))]
    }

    pub(super) fn take_event(&mut self, event: &Event) {
        self.ordinal = Some(event.ordinal);
        if self.channel {
            self.sent = Some(0);
        } else if self.direct {
            let own = event.sender == self.user_id;
            let sent = if own { event.sender_sent } else { event.ordinal.saturating_sub(event.sender_sent) };
            self.sent = Some(sent);
        }
    }

    pub(super) fn take_count(&mut self, count: u64) {
        self.sent = Some(match self.count {
            Count::Above { base, .. } => base + count,
            Count::Below { base, .. } => base.saturating_sub(count),
        });
    }
}

/// The read mark that an update asks for, if it would rise: never above what is durable, as nobody can have read that.
fn rises(chat: &Chat, member: &Member, update: &MarkUpdate) -> bool {
    update.read_seq > member.marks.read_seq && update.read_seq <= chat.durable_seq
}

impl Writer {
    pub(super) fn needs_of_marks(
        &self,
        chat_id: ChatId,
        chat: &Chat,
        marks: &[MarkUpdate],
        known: &[Fact],
        needs: &mut Vec<Need>,
    ) {
        for update in marks {
            if chat.channel {
                needs.push(Need::Member(chat_id, update.user_id));
            }
            let member = chat.seat(chat_id, &self.seats, update.user_id);
            let Some(member) = member.filter(|member| member.role.is_some()) else { continue };
            if !rises(chat, member, update) {
                continue;
            }
            needs.push(Need::User(update.user_id));
            let is_known = known.iter().any(|fact| fact.user_id == update.user_id && fact.seq == update.read_seq);
            if update.read_seq == chat.head_seq || is_known {
                continue;
            }
            let above = update.read_seq - member.marks.read_seq;
            // The store does not count what is only gathered, nor what is in flight and already failed there.
            let settled = chat.durable_seq == chat.head_seq;
            let count = if !settled || above <= chat.head_seq - update.read_seq {
                Count::Above { from: member.marks.read_seq + 1, base: member.marks.read_sent }
            } else {
                Count::Below { to: chat.head_seq, base: member.sent }
            };
            needs.push(Need::Fact(Fact {
                user_id: update.user_id,
                seq: update.read_seq,
                chat_id,
                direct: chat.direct,
                channel: chat.channel,
                count,
                ordinal: None,
                sent: None,
            }));
        }
    }

    pub(super) fn judge_marks(
        &mut self,
        to: Answered,
        chat_id: ChatId,
        updates: &[MarkUpdate],
        facts: &[Fact],
    ) -> Judged {
        if !self.has_room() {
            return Judged::Stalled;
        }
        self.greet(chat_id);
        let mut answers = Vec::with_capacity(updates.len());
        for update in updates {
            let chat = self.chats.get(chat_id).expect("the job was prepared");
            let member = chat.seat(chat_id, &self.seats, update.user_id);
            let Some(member) = member.filter(|member| member.role.is_some()) else { continue };
            let mut row = member.marks;
            if rises(chat, member, update) {
                row.read_seq = update.read_seq;
                (row.read_ordinal, row.read_sent) = if update.read_seq == chat.head_seq {
                    (chat.head_ordinal, member.sent)
                } else {
                    let fact = facts.iter().find(|fact| fact.user_id == update.user_id && fact.seq == update.read_seq);
                    let fact = fact.expect("the job was prepared");
                    (fact.ordinal.expect("it was loaded"), fact.sent.expect("it was counted"))
                };
            }
            if planted::has(Bug::ReadMarkFalls) && update.read_seq == 0 && self.users.get(update.user_id).is_some() {
                (row.read_seq, row.read_ordinal, row.read_sent) = (0, 0, 0);
            }
            if planted::has(Bug::DeliveredMarkFalls) {
                row.delivered_seq = 0;
            }
            let there = update.delivered_seq <= chat.durable_seq || planted::has(Bug::MarksAboveTheHead);
            if there && !planted::has(Bug::DeliveredNotStored) {
                row.delivered_seq = row.delivered_seq.max(update.delivered_seq);
            }
            row.delivered_seq = row.delivered_seq.max(row.read_seq);
            answers.push(self.write_marks(chat_id, update.user_id, row));
        }
        self.attach(to, Reply::Marked(answers));
        Judged::Done
    }

    pub(super) fn judge_mute(&mut self, to: Answered, chat_id: ChatId, user_id: UserId, until_ms: u64) -> Judged {
        if !self.has_room() {
            return Judged::Stalled;
        }
        let chat = self.chats.get(chat_id).expect("the job was prepared");
        let member = chat.seat(chat_id, &self.seats, user_id);
        let member = member.filter(|member| member.role.is_some() && chat.head_seq > 0);
        let reply = match member {
            None => Reply::Refused(ErrorCode::NoSuchChat),
            Some(member) => {
                let row = MarkRow { muted_until_ms: until_ms, ..member.marks };
                Reply::Marked(vec![self.write_marks(chat_id, user_id, row)])
            }
        };
        self.attach(to, reply);
        Judged::Done
    }

    /// Makes `row` the marks of a member, as far as it differs, with an entry for the own devices if the own state
    /// changed.
    fn write_marks(&mut self, chat_id: ChatId, user_id: UserId, row: MarkRow) -> Marked {
        let Writer { chats, users, seats, gathering, .. } = self;
        let chat = chats.get_mut(chat_id).expect("the job was prepared");
        let before = chat.seat(chat_id, seats, user_id).expect("it was found").marks;
        if before != row {
            chat.usage.group_no = gathering.group.no;
        }
        let no = if before == row { 0 } else { gathering.group.no };
        let member = chat.seat_mut(chat_id, seats, user_id, no).expect("it was found");
        member.marks = row;
        let own_changed = before.read_seq != row.read_seq || before.muted_until_ms != row.muted_until_ms;
        let group_no = gathering.group.no;
        let mut inbox_seq = None;
        if own_changed {
            let user = users.get_mut(user_id).expect("the job was prepared");
            user.inbox_head += 1;
            user.usage.group_no = group_no;
            inbox_seq = Some(user.inbox_head);
        }
        if before != row {
            gathering.bytes += size_of::<MarkWrite>();
            if !own_changed && member.mark_at.0 == group_no && !planted::has(Bug::FallenChatsKept) {
                gathering.group.marks[member.mark_at.1].row = row;
            } else {
                member.mark_at = (group_no, gathering.group.marks.len());
                gathering.group.marks.push(MarkWrite { chat_id, user_id, row, inbox_seq });
            }
        }
        Marked { user_id, delivered_seq: row.delivered_seq, own: member.own(chat_id), inbox_seq }
    }
}
