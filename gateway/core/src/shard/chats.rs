//! What a shard does as the owner of chats: barriers and loads, commands to the log and their answers, fan-out,
//! receipts, heads.

use super::channels::concerned;
use super::home::{ChatHome, Phase};
use super::inbound::own_frame;
use super::{Barrier, Out, Shard, Tag, Timer};
use crate::fan::Fan;
use crate::mesh::{Fanout, HomeAsk, HomeReply, Mesh, Origin};
use crate::output::Output;
use crate::planted::{self, Bug};
use crate::time::Now;
use parley_protocol::frame::{Head, Receipt, Sent, ServerFrame};
use parley_protocol::link::{Action, Ask, Committed, MarkUpdate, Marked, Reply, Target};
use parley_protocol::partition;
use parley_protocol::{ChatId, ClientMsgId, ErrorCode, UserId};
use std::sync::Arc;

/// A home that could not be loaded again is tried so often.
pub(super) const RELOAD_MS: u64 = 1_000;

impl Shard {
    /// A session, here or on another shard, asks a chat home.
    pub(super) fn home_ask(&mut self, now: Now, origin: Origin, ask: HomeAsk, out: &mut Out) {
        let chat_id = ask.chat_id();
        if let Some(home) = self.chats.get_mut(&chat_id) {
            home.used = true;
            if let Phase::Loading(asks) = &mut home.phase {
                if self.away.refuses() {
                    return self.reply(origin, refused(&ask, ErrorCode::Unavailable), out);
                }
                return asks.push((origin, ask));
            }
            return self.home_act(now, origin, ask, out);
        }
        self.make_room_for_chat();
        let mut home = ChatHome::loading();
        home.phase = Phase::Loading(vec![(origin, ask)]);
        self.chats.insert(chat_id, home);
        self.chat_clock.push_back(chat_id);
        let partition = partition::of_chat(chat_id);
        if planted::has(Bug::HomeLoadsBeforeOpen) {
            self.ask_home(chat_id);
        }
        match self.barriers[partition as usize] {
            Barrier::Open if planted::has(Bug::HomeLoadsBeforeOpen) => {}
            Barrier::Open => self.ask_home(chat_id),
            barrier => {
                self.behind_barrier.entry(partition).or_default().push(chat_id);
                if barrier == Barrier::Closed {
                    self.barriers[partition as usize] = Barrier::Asked;
                    self.ask(Ask::Open { partition }, Tag::Open { partition });
                }
            }
        }
    }

    /// Second chance (Corbato 1968): the oldest home that was not used since the last look goes.
    fn make_room_for_chat(&mut self) {
        const STEPS_MAX: usize = 32;
        for _ in 0..STEPS_MAX {
            if self.chats.len() < self.options.chats_max {
                return;
            }
            let Some(chat_id) = self.chat_clock.pop_front() else { return };
            let Some(home) = self.chats.get_mut(&chat_id) else { continue };
            if home.is_idle() && !home.used {
                self.chats.remove(&chat_id);
            } else {
                home.used = false;
                self.chat_clock.push_back(chat_id);
            }
        }
    }

    /// Rule 5: the barrier stands, so homes of its partition may load.
    pub(super) fn opened(&mut self, now: Now, partition: u16, reply: Reply, out: &mut Out) {
        let chats = self.behind_barrier.remove(&partition).unwrap_or_default();
        if matches!(reply, Reply::Opened) {
            self.barriers[partition as usize] = Barrier::Open;
            for chat_id in chats.into_iter().filter(|_| !planted::has(Bug::HomeLoadsBeforeOpen)) {
                self.ask_home(chat_id);
            }
        } else {
            self.barriers[partition as usize] = Barrier::Closed;
            for chat_id in chats {
                self.loaded(now, chat_id, reply.clone(), out);
            }
        }
    }

    /// Asks the log for what a home must know.
    fn ask_home(&mut self, chat_id: ChatId) {
        if chat_id.is_channel() {
            self.ask_channel(chat_id);
        } else {
            self.ask(Ask::LoadChat { chat_id }, Tag::LoadChat { chat_id });
        }
    }

    pub(super) fn loaded(&mut self, now: Now, chat_id: ChatId, reply: Reply, out: &mut Out) {
        let Some(home) = self.chats.get_mut(&chat_id) else { return };
        if let Reply::Chat(state) = reply {
            let before = home.before.take();
            let asks = home.load(state);
            if let Some(before) = before {
                self.make_known(now, chat_id, before, out);
            }
            for (origin, ask) in asks {
                self.home_act(now, origin, ask, out);
            }
            return;
        }
        let code = refusal(&reply);
        let Phase::Loading(asks) = std::mem::replace(&mut home.phase, Phase::Loading(Vec::new())) else { return };
        if home.before.is_some() {
            // Whose subscriptions must end is not known yet: the home stays until it is.
            self.timers.arm(now.mono_ms + RELOAD_MS, Timer::Reload(chat_id));
        } else {
            self.chats.remove(&chat_id);
            self.trim_chat_clock();
        }
        for (origin, ask) in asks {
            self.reply(origin, refused(&ask, code), out);
        }
    }

    /// Homes that could not be loaded leave their entry behind; it goes before such entries are half of all.
    pub(super) fn trim_chat_clock(&mut self) {
        const SLACK: usize = 1024;
        if self.chat_clock.len() > 2 * self.chats.len() + SLACK {
            let chats = &self.chats;
            self.chat_clock.retain(|chat_id| chats.contains_key(chat_id));
        }
    }

    /// The answer to a command was lost with a link, and with it what the command did: the home is loaded again.
    fn reload(&mut self, chat_id: ChatId, concerned: Vec<UserId>) {
        let Some(home) = self.chats.get_mut(&chat_id) else { return };
        home.channel.suspects.extend(concerned);
        // A load that is under way was asked for after every command that is answered now, and knows what they did.
        if matches!(home.phase, Phase::Ready) {
            home.before = Some(home.members.iter().map(|member| member.user_id).collect());
            home.phase = Phase::Loading(Vec::new());
            self.ask_home(chat_id);
        }
    }

    pub(super) fn reload_due(&mut self, chat_id: ChatId) {
        if self.chats.get(&chat_id).is_some_and(|home| home.before.is_some()) {
            self.ask_home(chat_id);
        }
    }

    /// Makes good what was lost with an answer: subscriptions of those who left end, and everybody compares positions.
    fn make_known(&mut self, now: Now, chat_id: ChatId, before: Vec<UserId>, out: &mut Out) {
        let Some(home) = self.chats.get(&chat_id) else { return };
        let mut users: Vec<UserId> = home.members.iter().map(|member| member.user_id).collect();
        let large = home.large;
        for user_id in before {
            if users.binary_search(&user_id).is_err() {
                let shard = self.shard_of(user_id);
                self.fan_out(now, shard, Fanout::EndSubscription { chat_id, user_id }, out);
                users.insert(users.partition_point(|other| *other < user_id), user_id);
            }
        }
        self.nudge_everywhere(now, users.into_iter(), out);
        if large {
            self.arm_heads(now, chat_id);
        }
    }

    /// Commands go to the log, even those of strangers: it knows the ones that a former member retries. Marks and
    /// subscriptions of strangers are refused here.
    pub(super) fn home_act(&mut self, now: Now, origin: Origin, ask: HomeAsk, out: &mut Out) {
        let chat_id = ask.chat_id();
        let Some(home) = self.chats.get_mut(&chat_id) else { return };
        let channel = chat_id.is_channel();
        let stranger = !channel && home.member(origin.user_id).is_none() && !planted::has(Bug::StrangersSubscribe);
        if !matches!(ask, HomeAsk::Command(_)) && stranger {
            return self.reply(origin, refused(&ask, ErrorCode::NoSuchChat), out);
        }
        match ask {
            HomeAsk::Command(command) => {
                if planted::has(Bug::GroupChangesRefused) && matches!(command.action, Action::Change(_)) {
                    let client_msg_id = Some(command.client_msg_id);
                    let reply = HomeReply::Error { code: ErrorCode::Forbidden, chat_id, client_msg_id };
                    return self.reply(origin, reply, out);
                }
                let client_msg_id = command.client_msg_id;
                if channel && let Err(retry_after_ms) = self.charge_channel(now, chat_id, &command.action) {
                    return self.reply(origin, HomeReply::Slow { chat_id, client_msg_id, retry_after_ms }, out);
                }
                let Some(home) = self.chats.get_mut(&chat_id) else { return };
                home.commands_under_way += 1;
                let concerned = if channel { concerned(&command) } else { Vec::new() };
                self.ask(Ask::Command(command), Tag::Command { origin, chat_id, client_msg_id, concerned });
            }
            HomeAsk::Marks { delivered_seq, read_seq, .. } => {
                // With a command under way the client may know more than the home: its event may be durable and read
                // already. The log judges then.
                let above = delivered_seq.max(read_seq) > home.head_seq && home.commands_under_way == 0;
                if above || (read_seq > 0 && planted::has(Bug::ReadMarksRefused)) {
                    let reply = HomeReply::Error { code: ErrorCode::NoSuchSeq, chat_id, client_msg_id: None };
                    return self.reply(origin, reply, out);
                }
                let update = MarkUpdate { user_id: origin.user_id, delivered_seq, read_seq };
                if home.keep(chat_id, update) {
                    self.arm_receipts(now, chat_id);
                }
                self.reply(origin, HomeReply::Taken, out);
            }
            HomeAsk::Subscribe { .. } if channel && !planted::has(Bug::SeatsUnasked) => {
                self.ask_seat(origin, chat_id);
            }
            HomeAsk::Subscribe { .. } => {
                let head = home.head(chat_id);
                self.let_subscribe(now, origin, head, out);
            }
        }
    }

    /// Whoever asks is a member, and hears of live events from now on.
    pub(super) fn let_subscribe(&mut self, now: Now, origin: Origin, head: Head, out: &mut Out) {
        let chat_id = head.chat_id;
        let Some(home) = self.chats.get_mut(&chat_id) else {
            let reply = HomeReply::NotSubscribed { code: ErrorCode::Unavailable, chat_id };
            return self.reply(origin, reply, out);
        };
        let generation = home.subscribe(origin.shard);
        let head = if head.seq < home.head_seq { home.head(chat_id) } else { head };
        self.fan_out(now, origin.shard, Fanout::Subscribed { conn: origin.conn, head, generation }, out);
        self.reply(origin, HomeReply::Taken, out);
    }

    pub(super) fn reply(&mut self, origin: Origin, reply: HomeReply, out: &mut Out) {
        let message = Mesh::Reply { origin, reply };
        if origin.shard == self.options.shard {
            self.local.push_back(message);
        } else {
            out.push(Output::Mesh { shard: origin.shard, message });
        }
    }

    /// The log answered a command.
    #[expect(clippy::too_many_arguments, reason = "the fields of one request and its answer")]
    pub(super) fn command_done(
        &mut self,
        now: Now,
        origin: Origin,
        chat_id: ChatId,
        client_msg_id: ClientMsgId,
        (resent, concerned): (bool, Vec<UserId>),
        reply: Reply,
        out: &mut Out,
    ) {
        if let Some(home) = self.chats.get_mut(&chat_id) {
            home.commands_under_way -= 1;
            // Rule 10: the first answer, and what it would have made known, may have been lost with its link. A writer
            // that takes nothing now answers `Failed` without having looked whether the first one was done.
            let lost = match &reply {
                Reply::Duplicate { seq, .. } => resent || *seq > home.head_seq,
                Reply::Failed => resent,
                _ => false,
            };
            if lost && !planted::no_nudge(Bug::DuplicateUntold) {
                self.reload(chat_id, concerned);
            }
        }
        let reply = self.commit(now, chat_id, client_msg_id, reply, out);
        self.reply(origin, reply, out);
    }

    /// Fans out what became durable; gives what the sender hears.
    pub(super) fn commit(
        &mut self,
        now: Now,
        chat_id: ChatId,
        client_msg_id: ClientMsgId,
        reply: Reply,
        out: &mut Out,
    ) -> HomeReply {
        match reply {
            Reply::Durable(committed) if !committed.is_empty() => {
                let first = &committed[0].event;
                let sent = Sent { chat_id: first.chat_id, client_msg_id, message_id: first.message_id, seq: first.seq };
                for committed in committed {
                    self.fan_out_event(now, committed, out);
                }
                self.stats.commands_sent_total += 1;
                HomeReply::Sent(sent)
            }
            Reply::Duplicate { chat_id, message_id, seq } => {
                self.stats.commands_sent_total += 1;
                HomeReply::Sent(Sent { chat_id, client_msg_id, message_id, seq })
            }
            reply => HomeReply::Error { code: refusal(&reply), chat_id, client_msg_id: Some(client_msg_id) },
        }
    }

    fn fan_out_event(&mut self, now: Now, committed: Committed, out: &mut Out) {
        let Committed { event, targets, large, joined } = committed;
        let chat_id = event.chat_id;
        let mut gone = Vec::new();
        let mut subscribers = Vec::new();
        if let Some(home) = self.chats.get_mut(&chat_id) {
            gone = home.apply(&event, large);
            // While the home is loaded again it does not know whose subscriptions must end: live events are dropped,
            // and what tells the members of the head once it is loaded makes good for them.
            let members_known = matches!(home.phase, Phase::Ready);
            if members_known && (large || !home.subscribers.is_empty()) {
                subscribers.clone_from(&home.subscribers);
            }
        }
        if planted::has(Bug::LiveTwice) && large {
            subscribers.extend_from_within(..);
        }
        let fan = Arc::new(Fan::new(ServerFrame::Event(event)));
        if !subscribers.is_empty() {
            self.tell_subscribers(now, chat_id, &fan, &targets.as_slice().into(), subscribers, out);
        }
        self.deliver_everywhere(now, &fan, targets, out);
        for marked in &joined {
            if let Some(home) = self.chats.get_mut(&chat_id) {
                home.marked(marked);
            }
            self.tell_own(now, marked, out);
        }
        for user_id in gone.into_iter().filter(|_| !planted::has(Bug::RemovedStaySubscribed)) {
            let shard = self.shard_of(user_id);
            self.fan_out(now, shard, Fanout::EndSubscription { chat_id, user_id }, out);
        }
        if large {
            self.arm_heads(now, chat_id);
        }
    }

    /// Sends a frame to the subscribed sessions of some shards.
    fn tell_subscribers(
        &mut self,
        now: Now,
        chat_id: ChatId,
        fan: &Arc<Fan>,
        except: &Arc<[Target]>,
        subscribers: Vec<(u16, u32)>,
        out: &mut Out,
    ) {
        for (shard, generation) in subscribers {
            let (fan, except) = (fan.clone(), except.clone());
            self.fan_out(now, shard, Fanout::Live { chat_id, fan, except, generation }, out);
        }
    }

    /// Rule 7: one message to each shard that has targets, the frame once.
    pub(super) fn deliver_everywhere(&mut self, now: Now, fan: &Arc<Fan>, targets: Vec<Target>, out: &mut Out) {
        if self.options.shards == 1 {
            return self.deliver(now, fan, &targets, out);
        }
        let mut by_shard: Vec<Vec<Target>> = vec![Vec::new(); self.options.shards as usize];
        for target in targets {
            by_shard[self.shard_of(target.user_id) as usize].push(target);
        }
        if planted::has(Bug::FanOutSkipsAShard) {
            by_shard.pop();
        }
        for (shard, targets) in by_shard.into_iter().enumerate() {
            if shard == self.options.shard as usize {
                self.deliver(now, fan, &targets, out);
            } else if !targets.is_empty() {
                self.fan_out(now, shard as u16, Fanout::Deliver { fan: fan.clone(), targets }, out);
            }
        }
    }

    pub(super) fn shard_of(&self, user_id: UserId) -> u16 {
        partition::shard(partition::of_user(user_id), self.options.shards)
    }

    /// Users compare their positions, wherever they are.
    pub(super) fn nudge_everywhere(&mut self, now: Now, users: impl Iterator<Item = UserId>, out: &mut Out) {
        self.fan_out_to_users(now, users, Fanout::Nudge, out);
    }

    /// Sends something to users, wherever they are, one message a shard.
    fn fan_out_to_users(
        &mut self,
        now: Now,
        users: impl Iterator<Item = UserId>,
        make: impl Fn(Vec<UserId>) -> Fanout,
        out: &mut Out,
    ) {
        let mut by_shard: Vec<Vec<UserId>> = vec![Vec::new(); self.options.shards as usize];
        for user_id in users {
            by_shard[self.shard_of(user_id) as usize].push(user_id);
        }
        for (shard, users) in by_shard.into_iter().enumerate() {
            if !users.is_empty() {
                self.fan_out(now, shard as u16, make(users), out);
            }
        }
    }

    fn arm_receipts(&mut self, now: Now, chat_id: ChatId) {
        let interval_ms = self.options.receipt_interval_ms;
        let Some(home) = self.chats.get_mut(&chat_id) else { return };
        if home.receipts_armed || home.marks_under_way || !home.has_marks() {
            return;
        }
        // The first mark after a pause leaves at once; those after it are coalesced.
        let due_ms = home.receipts_ms.map_or(now.mono_ms, |last| (last + interval_ms).max(now.mono_ms));
        home.receipts_armed = true;
        self.timers.arm(due_ms, Timer::Receipts(chat_id));
    }

    pub(super) fn receipts_due(&mut self, now: Now, chat_id: ChatId) {
        let Some(home) = self.chats.get_mut(&chat_id) else { return };
        home.receipts_armed = false;
        if !home.has_marks() || home.marks_under_way {
            return;
        }
        home.marks_under_way = true;
        home.receipts_ms = Some(now.mono_ms);
        let marks = if chat_id.is_channel() { home.channel.take_reads() } else { std::mem::take(&mut home.marks) };
        self.ask(Ask::Marks { chat_id, marks: marks.clone() }, Tag::Marks { chat_id, marks });
    }

    /// The log has the marks of a chat: the others are told, and the user's own devices.
    pub(super) fn marks_done(
        &mut self,
        now: Now,
        chat_id: ChatId,
        marks: Vec<MarkUpdate>,
        reply: Reply,
        out: &mut Out,
    ) {
        let receipt_members_max = self.options.receipt_members_max;
        let Some(home) = self.chats.get_mut(&chat_id) else { return };
        home.marks_under_way = false;
        let Reply::Marked(list) = reply else {
            // Not durable: they are tried again with the next ones.
            if matches!(reply, Reply::Failed) {
                for mark in marks {
                    home.keep(chat_id, mark);
                }
            }
            return self.arm_receipts(now, chat_id);
        };
        // In the order of what was asked, without those who are no members.
        let mut asked = marks.into_iter();
        for marked in list {
            let Some(home) = self.chats.get_mut(&chat_id) else { return };
            let user_id = marked.user_id;
            let mark = asked.find(|mark| mark.user_id == user_id);
            // A reader saw an event before the log knew that it is durable, which did not take its mark: it does now. What
            // the head is, is not known while the home is loaded again.
            let head_seq = if matches!(home.phase, Phase::Ready) { home.head_seq } else { u64::MAX };
            let early = |mark: &MarkUpdate| {
                (mark.read_seq > marked.own.read_seq && mark.read_seq <= head_seq)
                    || (mark.delivered_seq > marked.delivered_seq && mark.delivered_seq <= head_seq)
            };
            if let Some(mark) = mark.filter(early) {
                home.keep(chat_id, mark);
            }
            let members_known = matches!(home.phase, Phase::Ready);
            if home.marked(&marked) && members_known && home.members.len() <= receipt_members_max {
                let others = home.members.iter().map(|member| member.user_id).filter(|other| *other != user_id);
                #[cfg(feature = "planted")]
                let others = others.chain(home.former_told());
                let others: Vec<UserId> = others.collect();
                let (delivered_seq, read_seq) = (marked.delivered_seq, marked.own.read_seq);
                let receipt = ServerFrame::Receipt(Receipt { chat_id, user_id, delivered_seq, read_seq });
                let fan = Arc::new(Fan::new(receipt));
                self.fan_out_to_users(now, others.into_iter(), |users| Fanout::Beside { fan: fan.clone(), users }, out);
            }
            self.tell_own(now, &marked, out);
        }
        if !planted::has(Bug::ReceiptsNotRearmed) {
            self.arm_receipts(now, chat_id);
        }
    }

    /// The user's devices hear of its own state, if that changed.
    fn tell_own(&mut self, now: Now, marked: &Marked, out: &mut Out) {
        if let Marked { user_id, inbox_seq: Some(inbox_seq), own, .. } = *marked {
            let fan = Arc::new(Fan::new(own_frame(own)));
            self.deliver_everywhere(now, &fan, vec![Target { user_id, inbox_seq }], out);
        }
    }

    pub(super) fn arm_heads(&mut self, now: Now, chat_id: ChatId) {
        let interval_ms = self.options.head_interval_ms;
        if let Some(home) = self.chats.get_mut(&chat_id)
            && !home.heads_armed
        {
            home.heads_armed = true;
            self.timers.arm(now.mono_ms + interval_ms, Timer::Heads(chat_id));
        }
    }

    /// Members of a large chat hear of its head; subscribed ones too, because their last live event may be lost.
    pub(super) fn heads_due(&mut self, now: Now, chat_id: ChatId, out: &mut Out) {
        let Some(home) = self.chats.get_mut(&chat_id) else { return };
        home.heads_armed = false;
        if !matches!(home.phase, Phase::Ready) {
            // Armed again once it is known who is a member.
            return;
        }
        let fan = Arc::new(Fan::new(ServerFrame::Head(home.head(chat_id))));
        if chat_id.is_channel() {
            let subscribers = home.subscribers.clone();
            return self.tell_subscribers(now, chat_id, &fan, &[].into(), subscribers, out);
        }
        let users: Vec<UserId> = home.members.iter().map(|member| member.user_id).collect();
        self.fan_out_to_users(now, users.into_iter(), |users| Fanout::Beside { fan: fan.clone(), users }, out);
    }
}

/// The refusal of what a session asked.
pub(super) fn refused(ask: &HomeAsk, code: ErrorCode) -> HomeReply {
    let chat_id = ask.chat_id();
    match ask {
        HomeAsk::Command(command) => HomeReply::Error { code, chat_id, client_msg_id: Some(command.client_msg_id) },
        HomeAsk::Marks { .. } => HomeReply::Error { code, chat_id, client_msg_id: None },
        HomeAsk::Subscribe { .. } => HomeReply::NotSubscribed { code, chat_id },
    }
}

/// The error code of an answer that is not what was asked for.
pub(super) fn refusal(reply: &Reply) -> ErrorCode {
    match reply {
        Reply::Refused(code) => *code,
        _ => ErrorCode::Unavailable,
    }
}
