//! What reaches a shard from the other shards and from the storage tier, and what it sends them: dispatch, and the
//! fan-out that found no room.

use super::chats::refusal;
use super::session::Flag;
use super::{Out, Shard, Tag, Timer};
use crate::fan::Fan;
use crate::mesh::{Fanout, HomeReply, Mesh, Origin};
use crate::output::{ConnId, Output};
use crate::planted::{self, Bug};
use crate::time::Now;
use parley_protocol::check::NO_SUCH_CHAT;
use parley_protocol::frame::{ChatList, Error, Head, HistoryPage, MemberPage, ServerFrame, Users};
use parley_protocol::link::{Reply, Target};
use parley_protocol::{ChatId, ClientMsgId, ErrorCode, OwnState};
use std::sync::Arc;

/// How long a shard waits before it tries again what a full queue refused.
const OWED_RETRY_MS: u64 = 50;
/// What clients are told to wait when the storage tier cannot answer.
const UNAVAILABLE_RETRY_MS: u32 = 1_000;

impl Shard {
    pub(super) fn take_mesh(&mut self, now: Now, from: u16, message: Mesh, out: &mut Out) {
        match message {
            Mesh::Ask { origin, ask } => self.home_ask(now, origin, ask, out),
            Mesh::Reply { origin, reply } => {
                self.take_reply(now, origin, reply, out);
                if from == self.options.shard || !planted::has(Bug::CreditNotReturned) {
                    self.credit_back(now, from, out);
                }
            }
            Mesh::Fanout(fanout) => self.take_fanout(now, from, fanout, out),
        }
    }

    fn take_reply(&mut self, now: Now, origin: Origin, reply: HomeReply, out: &mut Out) {
        let conn = origin.conn;
        match reply {
            HomeReply::Sent(sent) => self.send(conn, &ServerFrame::Sent(sent), out),
            HomeReply::Error { code, chat_id, client_msg_id } => {
                self.refuse_command(conn, code, Some(chat_id), client_msg_id, out);
            }
            HomeReply::Slow { chat_id, client_msg_id, retry_after_ms } => {
                let error = error_of(ErrorCode::RateLimited);
                let (client_msg_id, chat_id) = (Some(client_msg_id), Some(chat_id));
                let retry_after_ms = Some(retry_after_ms);
                self.error(conn, Error { client_msg_id, chat_id, retry_after_ms, ..error }, out);
            }
            HomeReply::NotSubscribed { code, chat_id } => {
                self.stop_subscribing(conn, chat_id);
                self.refuse_command(conn, code, Some(chat_id), None, out);
            }
            HomeReply::Taken => {}
        }
        self.request_done(now, conn, out);
    }

    fn refuse_command(
        &mut self,
        conn: ConnId,
        code: ErrorCode,
        chat_id: Option<ChatId>,
        client_msg_id: Option<ClientMsgId>,
        out: &mut Out,
    ) {
        let error = Error { client_msg_id, chat_id, request_id: None, ..error_of(code) };
        self.error(conn, error, out);
    }

    fn take_fanout(&mut self, now: Now, from: u16, fanout: Fanout, out: &mut Out) {
        match fanout {
            Fanout::Deliver { fan, targets } => self.deliver(now, &fan, &targets, out),
            Fanout::Beside { fan, users } => {
                for conn in users.into_iter().flat_map(|user_id| self.sessions_of(user_id)).collect::<Vec<_>>() {
                    self.send_beside(now, conn, &fan);
                }
            }
            Fanout::Live { chat_id, fan, except, generation } => {
                self.live(now, from, chat_id, &fan, &except, generation, out);
            }
            Fanout::Subscribed { conn, head, generation } => {
                self.subscribed(now, from, conn, head, generation, out);
            }
            Fanout::EndSubscription { chat_id, user_id } => {
                for conn in self.sessions_of(user_id) {
                    self.unsubscribe(now, conn, chat_id, out);
                }
            }
            Fanout::NoSubscribers { chat_id, generation } => {
                if let Some(home) = self.chats.get_mut(&chat_id) {
                    home.unsubscribe(from, generation);
                }
            }
            Fanout::Nudge(users) => users.into_iter().for_each(|user_id| self.nudge(user_id)),
            Fanout::NudgeAll => self.nudge_everybody(now),
            Fanout::Epoch(home_epoch) => {
                self.link.set_home_epoch(home_epoch);
                self.connect_link(out);
            }
            Fanout::Writer { writer, writer_epoch } => self.follow_writer(writer, writer_epoch, out),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    fn live(
        &mut self,
        now: Now,
        from: u16,
        chat_id: ChatId,
        fan: &Arc<Fan>,
        except: &[Target],
        generation: u32,
        out: &mut Out,
    ) {
        let Some(conns) = self.subscribers.get(&chat_id).map(|subscribers| subscribers.conns.clone()) else {
            return self.fan_out(now, from, Fanout::NoSubscribers { chat_id, generation }, out);
        };
        for conn in conns {
            let Some(user_id) = self.session(conn).map(|session| session.user_id) else { continue };
            if except.iter().all(|target| target.user_id != user_id) {
                self.send_live(conn, fan, out);
            }
        }
    }

    fn add_subscriber(&mut self, conn: ConnId, chat_id: ChatId, generation: u32) {
        let Some(session) = self.conns.session(conn) else { return };
        let active = session.active(conn.slot, &mut self.actives);
        let known = active.subscriptions.contains(&chat_id);
        if !known {
            active.subscriptions.push(chat_id);
        }
        let subscribers = self.subscribers.entry(chat_id).or_default();
        subscribers.generation = generation;
        if !known {
            subscribers.add(conn);
        }
    }

    /// A chat home counts a subscription of this shard. Whoever asked may be gone, or not want it any more.
    fn subscribed(&mut self, now: Now, from: u16, conn: ConnId, head: Head, generation: u32, out: &mut Out) {
        let chat_id = head.chat_id;
        if let Some(subscribers) = self.subscribers.get_mut(&chat_id) {
            subscribers.generation = generation;
        }
        if self.stop_subscribing(conn, chat_id) {
            self.add_subscriber(conn, chat_id, generation);
            self.send(conn, &ServerFrame::Head(head), out);
        } else if !self.subscribers.contains_key(&chat_id) {
            self.fan_out(now, from, Fanout::NoSubscribers { chat_id, generation }, out);
        }
    }

    /// Whether the session still wanted the subscription that it asked for.
    fn stop_subscribing(&mut self, conn: ConnId, chat_id: ChatId) -> bool {
        let busy = self.conns.session(conn).and_then(|session| session.busy_mut(conn.slot, &mut self.actives));
        let Some(active) = busy else { return false };
        let place = active.subscribing.iter().position(|other| *other == chat_id);
        place.map(|place| active.subscribing.swap_remove(place)).is_some()
    }

    pub(super) fn unsubscribe(&mut self, now: Now, conn: ConnId, chat_id: ChatId, out: &mut Out) {
        let busy = self.conns.session(conn).and_then(|session| session.busy_mut(conn.slot, &mut self.actives));
        if let Some(active) = busy {
            active.subscriptions.retain(|other| *other != chat_id);
            active.subscribing.retain(|other| *other != chat_id);
        }
        self.drop_subscriber(now, conn, chat_id, out);
    }

    /// The chat's home hears when nobody here looks at it any more. If that is lost, its next live event finds nobody.
    pub(super) fn drop_subscriber(&mut self, now: Now, conn: ConnId, chat_id: ChatId, out: &mut Out) {
        let Some(subscribers) = self.subscribers.get_mut(&chat_id) else { return };
        subscribers.remove(conn);
        if subscribers.conns.is_empty() {
            let generation = subscribers.generation;
            self.subscribers.remove(&chat_id);
            let home = self.home_of(chat_id);
            self.fan_out(now, home, Fanout::NoSubscribers { chat_id, generation }, out);
        }
    }

    /// Sends fan-out to a shard, which may be this one.
    pub(super) fn fan_out(&mut self, now: Now, shard: u16, fanout: Fanout, out: &mut Out) {
        if shard == self.options.shard {
            return self.take_fanout(now, shard, fanout, out);
        }
        // While the end of a subscription waits for room, no live event may overtake it.
        let owed = &mut self.owed[shard as usize];
        match fanout {
            Fanout::Live { .. } if !owed.is_empty() => return,
            Fanout::Subscribed { .. } | Fanout::EndSubscription { .. } if !owed.others.is_empty() => {
                return owed.others.push_back(fanout);
            }
            _ => {}
        }
        out.push(Output::Mesh { shard, message: Mesh::Fanout(fanout) });
    }

    /// Rule 10: what found no room is made good by a nudge once there is some.
    pub(super) fn owe(&mut self, now: Now, shard: u16, fanout: Fanout) {
        let owed = &mut self.owed[shard as usize];
        match fanout {
            Fanout::Deliver { .. } if planted::no_nudge(Bug::OverflowUntold) => return,
            Fanout::Deliver { targets, .. } => owed.nudges.extend(targets.iter().map(|target| target.user_id)),
            Fanout::Nudge(users) => owed.nudges.extend(users),
            Fanout::NudgeAll => owed.nudge_all = true,
            // Receipts, heads and live events of large chats come again, or show as a gap that history fills.
            // Who the active writer is, each shard finds out by itself.
            Fanout::Beside { .. } | Fanout::Live { .. } | Fanout::Writer { .. } => return,
            // As many as members can be removed within one pause: bounded by the commands under way.
            Fanout::Subscribed { .. }
            | Fanout::EndSubscription { .. }
            | Fanout::NoSubscribers { .. }
            | Fanout::Epoch(_) => {
                owed.others.push_back(fanout);
            }
        }
        if owed.nudges.len() > self.options.owed_users_max && !planted::has(Bug::OwedUnbounded) {
            owed.nudges = Default::default();
            owed.nudge_all = !planted::has(Bug::OwedForgotten);
        }
        if !self.owed_armed {
            self.owed_armed = true;
            self.timers.arm(now.mono_ms + OWED_RETRY_MS, Timer::Owed);
        }
    }

    pub(super) fn pay_owed(&mut self, now: Now, out: &mut Out) {
        self.owed_armed = false;
        for shard in 0..self.options.shards {
            let owed = std::mem::take(&mut self.owed[shard as usize]);
            for fanout in owed.others {
                self.fan_out(now, shard, fanout, out);
            }
            if owed.nudge_all {
                self.stats.nudges_total += 1;
                self.fan_out(now, shard, Fanout::NudgeAll, out);
            } else if !owed.nudges.is_empty() {
                self.stats.nudges_total += 1;
                self.fan_out(now, shard, Fanout::Nudge(owed.nudges.into_iter().collect()), out);
            }
        }
    }

    /// The storage tier answered.
    pub(super) fn take_answer(&mut self, now: Now, tag: Tag, resent: bool, reply: Reply, out: &mut Out) {
        // Rule 10: the first answer, which named the entries, may have been lost with its link; this one need not.
        let lost = resent && !planted::no_nudge(Bug::DuplicateUntold);
        match tag {
            Tag::Login { conn } => self.logged_in(conn, reply, out),
            Tag::Open { partition } => self.opened(now, partition, reply, out),
            Tag::LoadChat { chat_id } => self.loaded(now, chat_id, reply, out),
            Tag::LoadChannel { chat_id, suspects } => self.channel_loaded(now, chat_id, suspects, reply, out),
            Tag::Seat { origin, chat_id } => self.seat_known(now, origin, chat_id, &reply, out),
            Tag::Command { origin, chat_id, client_msg_id, concerned } => {
                self.command_done(now, origin, chat_id, client_msg_id, (resent, concerned), reply, out);
            }
            Tag::Marks { chat_id, marks } => {
                if lost {
                    self.nudge_everywhere(now, marks.iter().map(|mark| mark.user_id), out);
                }
                self.marks_done(now, chat_id, marks, reply, out);
            }
            Tag::Inbox { conn } => self.take_inbox(now, conn, reply, out),
            Tag::Create { conn, client_msg_id } => {
                if lost && matches!(reply, Reply::Duplicate { .. } | Reply::Failed) {
                    // Its members are not known here, and may have looked before it was there.
                    (0..self.options.shards).for_each(|shard| self.fan_out(now, shard, Fanout::NudgeAll, out));
                }
                match self.commit(now, ChatId(0), client_msg_id, reply, out) {
                    HomeReply::Sent(sent) => self.send(conn, &ServerFrame::Sent(sent), out),
                    HomeReply::Error { code, .. } => self.refuse_command(conn, code, None, Some(client_msg_id), out),
                    HomeReply::NotSubscribed { .. } | HomeReply::Slow { .. } | HomeReply::Taken => {}
                }
                self.direct_done(now, conn, out);
            }
            Tag::Mute { conn, user_id, chat_id } => {
                if lost {
                    self.nudge(user_id);
                }
                self.muted(now, conn, chat_id, reply, out);
                self.direct_done(now, conn, out);
            }
            Tag::Page { conn, request_id, chat_id } => {
                self.page(conn, request_id, chat_id, reply, out);
                self.direct_done(now, conn, out);
            }
            Tag::Renew { conn, expires_at_ms } => {
                self.renewal_judged(conn, expires_at_ms, reply, out);
                self.direct_done(now, conn, out);
            }
        }
    }

    /// The storage tier knows whose identity a new token is of. A service's is never the user's that it acts for.
    fn renewal_judged(&mut self, conn: ConnId, expires_at_ms: u64, reply: Reply, out: &mut Out) {
        let Some(session) = self.session(conn) else { return };
        let (user_id, acting) = (session.user_id, session.is(Flag::Acting));
        match reply {
            Reply::LoggedIn(user) if user.user_id == user_id => self.renewed(conn, expires_at_ms, out),
            Reply::LoggedIn(_) | Reply::Refused(ErrorCode::NoSuchUser) if acting => {
                self.renewed(conn, expires_at_ms, out);
            }
            Reply::LoggedIn(_) | Reply::Refused(ErrorCode::NoSuchUser) => {
                let message = "the token is another user's".to_owned();
                self.error(conn, Error { message, ..error_of(ErrorCode::BadToken) }, out);
            }
            _ => self.error(conn, error_of(ErrorCode::Unavailable), out),
        }
    }

    /// A request that went straight to the storage tier held a credit of this shard itself.
    fn direct_done(&mut self, now: Now, conn: ConnId, out: &mut Out) {
        self.request_done(now, conn, out);
        self.credit_back(now, self.options.shard, out);
    }

    fn muted(&mut self, now: Now, conn: ConnId, chat_id: ChatId, reply: Reply, out: &mut Out) {
        let Reply::Marked(list) = reply else {
            return self.refuse_command(conn, refusal(&reply), Some(chat_id), None, out);
        };
        for marked in list {
            // Else nothing changed. A frame beside the stream could come after an own state that is newer.
            if let Some(inbox_seq) = marked.inbox_seq {
                let fan = Arc::new(Fan::new(own_frame(marked.own)));
                self.deliver(now, &fan, &[Target { user_id: marked.user_id, inbox_seq }], out);
            }
        }
    }

    fn page(&mut self, conn: ConnId, request_id: u32, chat_id: Option<ChatId>, reply: Reply, out: &mut Out) {
        let chat = chat_id.unwrap_or(ChatId(0));
        let frame = match reply {
            Reply::Chats { chats, more } => {
                if planted::has(Bug::InboxHeadReadLast) {
                    self.read_head_last(conn, out);
                }
                ServerFrame::ChatList(ChatList { request_id, chats, more })
            }
            Reply::History { events, more } => {
                ServerFrame::HistoryPage(HistoryPage { request_id, chat_id: chat, events, more })
            }
            Reply::Members { members, more } => {
                ServerFrame::MemberPage(MemberPage { request_id, chat_id: chat, members, more })
            }
            Reply::Users(users) => ServerFrame::Users(Users { request_id, users }),
            reply => {
                let error = Error { request_id: Some(request_id), chat_id, ..error_of(refusal(&reply)) };
                return self.error(conn, error, out);
            }
        };
        self.send(conn, &frame, out);
    }
}

/// One's own state, for the stream.
pub(super) fn own_frame(own: OwnState) -> ServerFrame {
    let own = if planted::has(Bug::MuteUntold) { OwnState { muted_until_ms: 0, ..own } } else { own };
    ServerFrame::Own(own)
}

/// An error frame with the usual text of its code.
pub(super) fn error_of(code: ErrorCode) -> Error {
    let message = match code {
        ErrorCode::NoSuchChat => NO_SUCH_CHAT,
        ErrorCode::NoSuchUser => "no user has this id",
        ErrorCode::Forbidden => "your role does not allow it",
        ErrorCode::TooLarge => "the payload is too large",
        ErrorCode::RateLimited => "too fast",
        ErrorCode::Unavailable => "the server cannot make it durable now: resend the same frame later",
        ErrorCode::GroupFull => "the group has as many members as it may",
        ErrorCode::WrongChatKind => "not possible for this kind of chat",
        ErrorCode::OwnerMustHandOver => "the owner hands over before leaving",
        ErrorCode::NoSuchSeq => "above the head of the chat",
        ErrorCode::UnsupportedKind => "this kind of event is not taken from clients",
        ErrorCode::BadToken => "the token is not valid",
        ErrorCode::TooMany => "too many requests without an answer",
        ErrorCode::NoChange => "nothing would change",
        ErrorCode::Damaged => "stored data is damaged; operators are told",
        ErrorCode::BadFrame => "the frame is not valid",
    };
    let retry_after_ms = (code == ErrorCode::Unavailable).then_some(UNAVAILABLE_RETRY_MS);
    Error { code, message: message.to_owned(), client_msg_id: None, request_id: None, chat_id: None, retry_after_ms }
}
