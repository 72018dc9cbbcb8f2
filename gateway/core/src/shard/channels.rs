//! What the home of a channel does otherwise than that of a group: it holds no members, asks the log about those whom
//! something depends on, and has a rate of its own. Nothing in here costs more with more members.

use super::chats::{RELOAD_MS, refusal, refused};
use super::home::{Channel, Phase};
use super::{Out, Shard, Tag, Timer};
use crate::mesh::{Fanout, HomeReply, Origin};
use crate::time::Now;
use parley_protocol::frame::{Change, Head};
use parley_protocol::link::{Action, Ask, ChatState, Command, MarkUpdate, Reply};
use parley_protocol::{ChatId, ErrorCode, UserId, limits};

/// Read marks that are sent to the log together.
const READS_MAX: usize = 1_024;

/// Whose membership a command changes.
pub(super) fn concerned(command: &Command) -> Vec<UserId> {
    match &command.action {
        Action::Change(Change::Add { users } | Change::Remove { users }) => users.clone(),
        Action::Change(Change::Join {} | Change::Leave {}) => vec![command.sender],
        _ => Vec::new(),
    }
}

impl Channel {
    /// Keeps a read mark until it is sent; false when it changes nothing. What was delivered to whom is not kept.
    pub(super) fn read(&mut self, update: MarkUpdate) -> bool {
        let read_seq = self.reads.get(&update.user_id).copied().unwrap_or(0);
        if update.read_seq > read_seq {
            self.reads.insert(update.user_id, update.read_seq);
        }
        update.read_seq > read_seq
    }

    /// Takes a bounded number of marks, to be sent.
    pub(super) fn take_reads(&mut self) -> Vec<MarkUpdate> {
        let mut marks = Vec::with_capacity(self.reads.len().min(READS_MAX));
        while marks.len() < READS_MAX
            && let Some((user_id, read_seq)) = self.reads.pop_first()
        {
            marks.push(MarkUpdate { user_id, delivered_seq: 0, read_seq });
        }
        marks
    }
}

impl Shard {
    /// Charges a message to its channel, or says when there is room again.
    pub(super) fn charge_channel(&mut self, now: Now, chat_id: ChatId, action: &Action) -> Result<(), u32> {
        let (per_s, burst) = (self.options.channel_rate_per_s, self.options.channel_rate_burst);
        match self.chats.get_mut(&chat_id) {
            Some(home) if matches!(action, Action::Send(_)) => home.channel.rate.take(now.mono_ms, per_s, burst),
            _ => Ok(()),
        }
    }

    /// Asks the log for the head of a channel, and whether the suspects are in it still.
    pub(super) fn ask_channel(&mut self, chat_id: ChatId) {
        let Some(home) = self.chats.get_mut(&chat_id) else { return };
        let count = home.channel.suspects.len().min(limits::MEMBER_CHANGES_MAX);
        let suspects: Vec<UserId> = home.channel.suspects.drain(..count).collect();
        self.ask(Ask::Among { chat_id, users: suspects.clone() }, Tag::LoadChannel { chat_id, suspects });
    }

    pub(super) fn channel_loaded(
        &mut self,
        now: Now,
        chat_id: ChatId,
        suspects: Vec<UserId>,
        reply: Reply,
        out: &mut Out,
    ) {
        let Some(home) = self.chats.get_mut(&chat_id) else { return };
        let Reply::Chat(state) = reply else {
            home.channel.suspects.extend(suspects);
            return self.channel_not_loaded(now, chat_id, &reply, out);
        };
        self.judge_suspects(now, chat_id, suspects, &state, out);
        let Some(home) = self.chats.get_mut(&chat_id) else { return };
        if !home.channel.suspects.is_empty() {
            return self.ask_channel(chat_id);
        }
        let again = home.before.take().is_some();
        let asks = home.load(ChatState { members: Vec::new(), ..state });
        if again {
            // Live events were dropped meanwhile.
            self.arm_heads(now, chat_id);
        }
        for (origin, ask) in asks {
            self.home_act(now, origin, ask, out);
        }
    }

    /// Makes good what was lost with an answer: subscriptions of those who left end, and all of them compare positions.
    fn judge_suspects(&mut self, now: Now, chat_id: ChatId, suspects: Vec<UserId>, state: &ChatState, out: &mut Out) {
        for user_id in &suspects {
            if state.members.iter().all(|member| member.user_id != *user_id) {
                let shard = self.shard_of(*user_id);
                self.fan_out(now, shard, Fanout::EndSubscription { chat_id, user_id: *user_id }, out);
            }
        }
        self.nudge_everywhere(now, suspects.into_iter(), out);
    }

    fn channel_not_loaded(&mut self, now: Now, chat_id: ChatId, reply: &Reply, out: &mut Out) {
        let Some(home) = self.chats.get_mut(&chat_id) else { return };
        let Phase::Loading(asks) = std::mem::replace(&mut home.phase, Phase::Loading(Vec::new())) else { return };
        if home.before.is_some() {
            // Whose subscriptions must end is not known yet: the home stays until it is.
            self.timers.arm(now.mono_ms + RELOAD_MS, Timer::Reload(chat_id));
        } else {
            self.chats.remove(&chat_id);
            self.trim_chat_clock();
        }
        for (origin, ask) in asks {
            self.reply(origin, refused(&ask, refusal(reply)), out);
        }
    }

    /// Asks the log whether who subscribes is a member. Its answer comes after that of every removal that it knows of.
    pub(super) fn ask_seat(&mut self, origin: Origin, chat_id: ChatId) {
        let Some(home) = self.chats.get_mut(&chat_id) else { return };
        home.channel.checks += 1;
        self.ask(Ask::Among { chat_id, users: vec![origin.user_id] }, Tag::Seat { origin, chat_id });
    }

    pub(super) fn seat_known(&mut self, now: Now, origin: Origin, chat_id: ChatId, reply: &Reply, out: &mut Out) {
        if let Some(home) = self.chats.get_mut(&chat_id) {
            home.channel.checks -= 1;
        }
        let code = match reply {
            Reply::Chat(state) if state.members.iter().any(|member| member.user_id == origin.user_id) => {
                // A home that is loaded again may not know the event that let the member in.
                let head = Head { chat_id, seq: state.head_seq, ordinal: state.head_ordinal };
                return self.let_subscribe(now, origin, head, out);
            }
            Reply::Chat(_) => ErrorCode::NoSuchChat,
            reply => refusal(reply),
        };
        self.reply(origin, HomeReply::NotSubscribed { code, chat_id }, out);
    }
}
