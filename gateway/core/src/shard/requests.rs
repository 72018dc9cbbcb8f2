//! What a session's frames ask for: refusals that need nobody else, what is answered on the spot, and requests to chat
//! homes and to the storage tier, each under a credit of its target and the session's rate.

use super::active::Wait;
use super::session::Flag;
use super::{Out, Shard, Tag};
use crate::mesh::{HomeAsk, Mesh, Origin};
use crate::output::{ConnId, Output};
use crate::planted::{self, Bug};
use crate::stats::Reason;
use crate::time::Now;
use parley_protocol::check::check_envelope;
use parley_protocol::frame::{self, Pong, Renew, ServerFrame};
use parley_protocol::link::{Action, Ask, Command};
use parley_protocol::{ChatId, ClientFrame, DeviceId, ErrorCode, UserId, close, limits, partition};

/// What became of a frame.
pub(super) enum Taken {
    Done,
    /// It needs room that is not there.
    Wait(ClientFrame, Wait),
}

impl Shard {
    /// Acts on one frame, or says what it waits for.
    pub(super) fn take_frame(&mut self, now: Now, conn: ConnId, frame: ClientFrame, out: &mut Out) -> Taken {
        let (outbox_bytes_max, requests_max) = (self.options.outbox_bytes_max, self.options.requests_in_flight_max);
        let Some(session) = self.session(conn) else { return Taken::Done };
        if session.is(Flag::Closing) || session.is(Flag::Draining) {
            return Taken::Done;
        }
        if session.queued as usize > outbox_bytes_max {
            return Taken::Wait(frame, Wait::Outbox);
        }
        if session.busy().map_or(0, |active| active.requests) >= requests_max {
            return Taken::Wait(frame, Wait::Answers);
        }
        if let Err((code, message)) = self.refuse_early(conn, &frame) {
            self.error(conn, frame.error(code, message), out);
            return Taken::Done;
        }
        let Some(target) = self.target_of(&frame) else {
            self.act_here(now, conn, &frame, out);
            return Taken::Done;
        };
        // The rate is charged under the credit: a frame that waits is not charged twice.
        if !self.credits.take(target) {
            return Taken::Wait(frame, Wait::Credit(target));
        }
        if let Err(refused) = self.charge(now, conn, &frame).and_then(|()| self.request(now, conn, target, frame, out))
        {
            self.credits.give(target);
            self.error(conn, refused, out);
        } else if let Some(session) = self.conns.session(conn) {
            session.active(conn.slot, &mut self.actives).requests += 1;
        }
        Taken::Done
    }

    /// What is wrong with a frame, whoever it is for.
    fn refuse_early(&mut self, conn: ConnId, frame: &ClientFrame) -> Result<(), (ErrorCode, &'static str)> {
        frame.check()?;
        let (payload_bytes_max, subscriptions_max) = (self.options.payload_bytes_max, self.options.subscriptions_max);
        let Some(session) = self.session(conn) else { return Ok(()) };
        let looks_at = |chat_id| {
            let Some(active) = session.busy() else { return (0, false) };
            (active.subscriptions.len() + active.subscribing.len(), active.subscriptions.contains(&chat_id))
        };
        match frame {
            ClientFrame::Send(send) => check_envelope(&send.envelope, payload_bytes_max),
            ClientFrame::Subscribe(chat) => match looks_at(chat.chat_id) {
                (chats, false) if chats >= subscriptions_max => {
                    Err((ErrorCode::TooMany, "unsubscribe from another chat first"))
                }
                _ => Ok(()),
            },
            ClientFrame::DeviceEnd(_) if !session.is(Flag::Acting) => {
                Err((ErrorCode::Forbidden, "only services end devices"))
            }
            _ => Ok(()),
        }
    }

    /// The shard whose credit a request holds: the chat's home, or this one for what goes straight to the storage tier.
    fn target_of(&self, frame: &ClientFrame) -> Option<u16> {
        match frame {
            ClientFrame::Send(_)
            | ClientFrame::GroupChange(_)
            | ClientFrame::Delivered(_)
            | ClientFrame::Read(_)
            | ClientFrame::Subscribe(_) => frame.chat_id().map(|chat_id| self.home_of(chat_id)),
            ClientFrame::Unsubscribe(_) | ClientFrame::Ping(_) | ClientFrame::DeviceEnd(_) | ClientFrame::Hello(_) => {
                None
            }
            _ => Some(self.options.shard),
        }
    }

    pub(super) fn home_of(&self, chat_id: ChatId) -> u16 {
        partition::shard(partition::of_chat(chat_id), self.options.shards)
    }

    /// What needs nobody else.
    fn act_here(&mut self, now: Now, conn: ConnId, frame: &ClientFrame, out: &mut Out) {
        match frame {
            ClientFrame::Unsubscribe(chat) => self.unsubscribe(now, conn, chat.chat_id, out),
            ClientFrame::Ping(ping) => {
                self.send_mark(conn, out);
                self.send(conn, &ServerFrame::Pong(Pong { nonce: ping.nonce }), out);
            }
            ClientFrame::DeviceEnd(end) => self.device_end(conn, end.device_id, out),
            _ => self.violation(conn, 1008, "Hello comes once", Reason::HelloTwice, out),
        }
    }

    /// Charges a request to the session's rate, or makes the refusal.
    fn charge(&mut self, now: Now, conn: ConnId, frame: &ClientFrame) -> Result<(), frame::Error> {
        let (per_s, burst) = (self.options.rate_per_s, self.options.rate_burst);
        if planted::has(Bug::RateIgnored) {
            return Ok(());
        }
        let Some(session) = self.conns.session(conn) else { return Ok(()) };
        let active = session.active(conn.slot, &mut self.actives);
        active.rate.take(now.mono_ms, per_s, burst).map_err(|retry_after_ms| frame::Error {
            retry_after_ms: Some(retry_after_ms),
            ..frame.error(ErrorCode::RateLimited, "too fast")
        })
    }

    /// Asks whoever has the answer; an error asked nobody.
    fn request(
        &mut self,
        now: Now,
        conn: ConnId,
        target: u16,
        frame: ClientFrame,
        out: &mut Out,
    ) -> Result<(), frame::Error> {
        let Some(session) = self.conns.session(conn) else { return Ok(()) };
        let sender = session.user_id;
        let ask = match frame {
            ClientFrame::Send(send) => {
                let (chat_id, client_msg_id) = (Some(send.chat_id), send.client_msg_id);
                HomeAsk::Command(Command { chat_id, sender, client_msg_id, action: Action::Send(send.envelope) })
            }
            ClientFrame::GroupChange(group) => {
                let (chat_id, client_msg_id) = (Some(group.chat_id), group.client_msg_id);
                HomeAsk::Command(Command { chat_id, sender, client_msg_id, action: Action::Change(group.change) })
            }
            ClientFrame::Delivered(at) => HomeAsk::Marks { chat_id: at.chat_id, delivered_seq: at.seq, read_seq: 0 },
            ClientFrame::Read(at) => HomeAsk::Marks { chat_id: at.chat_id, delivered_seq: 0, read_seq: at.seq },
            ClientFrame::Subscribe(chat) => {
                session.active(conn.slot, &mut self.actives).subscribing.push(chat.chat_id);
                HomeAsk::Subscribe { chat_id: chat.chat_id }
            }
            ClientFrame::Renew(renew) => return self.renew(now, conn, renew),
            frame => {
                self.ask_storage(conn, sender, frame);
                return Ok(());
            }
        };
        let origin = Origin { shard: self.options.shard, conn, user_id: sender };
        let message = Mesh::Ask { origin, ask };
        if target == self.options.shard {
            self.local.push_back(message);
        } else {
            out.push(Output::Mesh { shard: target, message });
        }
        Ok(())
    }

    /// Creations, mutes and reads go straight to the storage tier.
    fn ask_storage(&mut self, conn: ConnId, user_id: UserId, frame: ClientFrame) {
        let page = |limit: u32, max: u32| if limit == 0 { max } else { limit.min(max) };
        let of_page = |request_id, chat_id| Tag::Page { conn, request_id, chat_id };
        let (ask, tag) = match frame {
            ClientFrame::GroupCreate(create) => {
                let client_msg_id = create.client_msg_id;
                let action = Action::Create { title: create.title, members: create.members };
                let command = Command { chat_id: None, sender: user_id, client_msg_id, action };
                (Ask::Command(command), Tag::Create { conn, client_msg_id })
            }
            ClientFrame::ChannelCreate(create) => {
                let client_msg_id = create.client_msg_id;
                let action = Action::CreateChannel { title: create.title, posting: create.posting };
                let command = Command { chat_id: None, sender: user_id, client_msg_id, action };
                (Ask::Command(command), Tag::Create { conn, client_msg_id })
            }
            ClientFrame::Mute(mute) => {
                let chat_id = mute.chat_id;
                (Ask::Mute { chat_id, user_id, until_ms: mute.until_ms }, Tag::Mute { conn, user_id, chat_id })
            }
            ClientFrame::Chats(chats) => {
                let limit = page(chats.limit, limits::CHATS_PAGE_MAX);
                (Ask::Chats { user_id, after: chats.after, limit }, of_page(chats.request_id, None))
            }
            ClientFrame::History(history) => {
                let frame::History { request_id, chat_id, before, after, limit } = history;
                let limit = page(limit, limits::HISTORY_PAGE_MAX);
                (Ask::History { user_id, chat_id, before, after, limit }, of_page(request_id, Some(chat_id)))
            }
            ClientFrame::Members(members) => {
                let frame::Members { request_id, chat_id, after, limit } = members;
                let limit = page(limit, limits::MEMBERS_PAGE_MAX);
                (Ask::Members { user_id, chat_id, after, limit }, of_page(request_id, Some(chat_id)))
            }
            ClientFrame::Resolve(resolve) => (Ask::Resolve { names: resolve.names }, of_page(resolve.request_id, None)),
            ClientFrame::Profiles(profiles) => {
                (Ask::Profiles { users: profiles.users }, of_page(profiles.request_id, None))
            }
            _ => unreachable!("the other frames have another target"),
        };
        self.ask(ask, tag);
    }

    /// Checks a new token, and asks whether it is for the same user: that the storage tier knows. A service's token says
    /// nothing of the user that it acts for, and needs its role again.
    fn renew(&mut self, now: Now, conn: ConnId, renew: Renew) -> Result<(), frame::Error> {
        let Some(session) = self.session(conn) else { return Ok(()) };
        let (loopback, acting) = (session.is(Flag::Loopback), session.is(Flag::Acting));
        let bad = |message: &str| Err(ClientFrame::Renew(renew.clone()).error(ErrorCode::BadToken, message));
        let identity = match self.authority.verify_token(&renew.token, now, loopback) {
            Ok(identity) => identity,
            Err(reason) => return bad(&reason),
        };
        if acting && !identity.service {
            return bad("this session needs a service token");
        }
        let ask = Ask::LookUp { issuer: identity.issuer, subject: identity.subject };
        self.ask(ask, Tag::Renew { conn, expires_at_ms: identity.expires_at_ms });
        Ok(())
    }

    fn device_end(&mut self, conn: ConnId, device_id: DeviceId, out: &mut Out) {
        let Some(user_id) = self.session(conn).map(|session| session.user_id) else { return };
        for other in self.sessions_of(user_id) {
            let ended = self.session(other).is_some_and(|it| it.device_id() == device_id && !it.is(Flag::Acting));
            if ended {
                self.close(other, close::ENDED, "ended", out);
            }
        }
    }
}
