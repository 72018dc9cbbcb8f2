//! What a device does with what it hears, and the oracles that look over its shoulder.

use crate::device::{Held, Kept, Page};
use crate::world::{World, short};
use parley_protocol::frame::{self, ClientFrame, ServerFrame};
use parley_protocol::{ChatId, ErrorCode, OwnState, UserId};
use storage_core::store::EntryRow;

/// So much later than the log a chat's home may know who is a member, and a device hear what it said, microseconds: a
/// home that waits for a writer and a device that is slow were seen to take 2.3 s together (seed 80921).
const LATE_US: u64 = 4_000_000;

impl World {
    /// A frame arrives.
    pub(super) fn hear(&mut self, conn: u32, frame: ServerFrame) {
        let device = self.conns[conn as usize].device;
        self.tell_conn(conn, || format!("hears {}", tell_server_frame(&frame)));
        let page = matches!(frame, ServerFrame::ChatList(_) | ServerFrame::HistoryPage(_) | ServerFrame::MemberPage(_));
        if page || matches!(frame, ServerFrame::Sent(_)) {
            self.look_at_rate(conn);
        }
        match frame {
            ServerFrame::Welcome(welcome) => self.hear_welcome(device, welcome),
            ServerFrame::Sent(sent) => {
                let user = self.user_of(device);
                let verdict = self.truth.acknowledged(user, &sent);
                self.judge(verdict);
                self.devices[device as usize].kept.retain(|kept| kept.client_msg_id != sent.client_msg_id);
            }
            ServerFrame::Error(error) => self.hear_error(device, &error),
            ServerFrame::Event(event) => {
                self.look_at_event(conn, &event);
                self.devices[device as usize].store(&event, true);
                self.fill(device);
            }
            ServerFrame::Own(own) => self.hear_own(conn, own),
            ServerFrame::Receipt(receipt) => self.hear_receipt(conn, receipt),
            ServerFrame::Head(head) => {
                let user = self.user_of(device);
                // Nobody wrote in a direct chat yet: both may look at it.
                let unwritten = head.seq == 0 && head.chat_id.peer_of(user).is_some();
                let may = unwritten || self.truth.may_read(user, head.chat_id, head.seq);
                self.ensure(may, "nobody receives what they may not", || format!("{user} gets {head:?}"));
                if self.devices[device as usize].take_head(head.chat_id, head.seq) {
                    self.fill(device);
                }
            }
            ServerFrame::Mark(mark) => self.hear_mark(conn, mark),
            ServerFrame::Truncated(truncated) => self.hear_truncated(conn, truncated.mark),
            ServerFrame::ChatList(list) => self.hear_chats(device, &list),
            ServerFrame::HistoryPage(page) => self.hear_history(device, &page),
            ServerFrame::MemberPage(page) => {
                self.devices[device as usize].pages.remove(&page.request_id);
                let since = self.conns[conn as usize].opened_at;
                let chat = self.truth.chats.get(&page.chat_id);
                let member = |user: UserId| chat.is_none_or(|chat| chat.was_member(user, since, false));
                let listed = page.members.iter().all(|listed| member(listed.user_id));
                self.ensure(listed, "what is received is what is stored", || format!("{page:?} lists former members"));
                let may = self.was_member(conn, page.chat_id);
                self.ensure(may, "nobody receives what they may not", || format!("connection {conn} gets {page:?}"));
            }
            ServerFrame::Reconnect(reconnect) => {
                self.devices[device as usize].ticket = Some(reconnect.resume);
            }
            ServerFrame::Users(_) | ServerFrame::Pong(_) | ServerFrame::Renewed(_) => {}
        }
    }

    fn hear_welcome(&mut self, device: u32, welcome: frame::Welcome) {
        let state = &mut self.devices[device as usize];
        let name = state.name;
        state.ticket = Some(welcome.resume);
        state.welcome = true;
        state.failures = 0;
        let known = *state.user.get_or_insert(welcome.user_id);
        let same = *self.users[name].get_or_insert(welcome.user_id);
        self.ensure(known == same && same == welcome.user_id, "one user", || {
            format!("u{name} is {same}, then {}", welcome.user_id)
        });
        // Everything without an answer again, oldest first, unchanged.
        let kept: Vec<_> = self.devices[device as usize].kept.iter().map(|kept| kept.frame.clone()).collect();
        for frame in kept {
            self.say(device, frame);
        }
        let state = &mut self.devices[device as usize];
        if state.refreshing || state.chats.values().any(|chat| chat.large) {
            state.listing = Some(None);
        }
        self.fill(device);
    }

    fn hear_error(&mut self, device: u32, error: &frame::Error) {
        let passing = matches!(error.code, ErrorCode::RateLimited | ErrorCode::Unavailable | ErrorCode::TooMany);
        let too_fast = error.code == ErrorCode::RateLimited;
        // Seconds of a deployment are tenths here, but for the pace that the plan sets itself.
        let most_ms = if too_fast { u32::MAX } else { 200 };
        let wait_us = 1_000 * u64::from(error.retry_after_ms.unwrap_or(50).min(most_ms));
        let later = self.now + wait_us + self.net.around(20_000);
        let user = self.user_of(device);
        let bad = matches!(error.code, ErrorCode::BadFrame | ErrorCode::Damaged | ErrorCode::TooLarge);
        self.ensure(!bad, "clients are served", || format!("{error:?}"));
        let state = &mut self.devices[device as usize];
        if too_fast {
            state.quiet_until = later;
            self.wake_device(device, later);
        }
        let state = &mut self.devices[device as usize];
        if let Some(id) = error.client_msg_id {
            if passing {
                state
                    .kept
                    .iter_mut()
                    .filter(|kept| kept.client_msg_id == id)
                    .for_each(|kept| kept.again_at = Some(later));
                return self.wake_device(device, later);
            }
            let Some(at) = state.kept.iter().position(|kept| kept.client_msg_id == id) else { return };
            let Some(kept) = state.kept.remove(at) else { return };
            return self.refused(user, &kept, error.code);
        }
        if let Some(page) = error.request_id.and_then(|id| state.pages.remove(&id)) {
            match page {
                Page::Fill { chat_id, .. } if !passing => {
                    state.holes.remove(&chat_id);
                    let may = self.truth.chats.get(&chat_id).and_then(|chat| chat.members.get(&user));
                    let served = may.is_none_or(|member| member.spans.is_empty());
                    self.ensure(served, "history inside an interval is served", || format!("{user}: {error:?}"));
                }
                // Again with the next look at the clock.
                _ => {}
            }
        } else if let Some(chat_id) = error.chat_id {
            state.subscribed.remove(&chat_id);
            let Some(chat) = state.chats.get_mut(&chat_id) else { return };
            let behind = chat.own.map_or(0, |own| own.read_seq) < chat.wants_read;
            if passing && behind {
                state.unsaid_reads.insert(chat_id);
            } else if !passing && self.truth.keeps_marks(user, chat_id, chat.wants_read) {
                // What the log would keep is not given up, whatever is said of it: it has to be there in the end. A home
                // may hear of a join later than the one who joined.
                state.read_again = false;
            } else if !passing {
                chat.wants_read = 0;
            }
        }
    }

    /// Oracle: who is told that a command will never be done finds it nowhere. A command that was sent more than once may
    /// be refused once and done once, but not refused when all of it was sent after it was done.
    fn refused(&mut self, user: UserId, kept: &Kept, code: ErrorCode) {
        let id = kept.client_msg_id;
        let Some(asked) = self.truth.asked.get_mut(&(user, id)) else { return };
        asked.refused = asked.copies == 1;
        let asked = asked.clone();
        // What may be said in a chat, by whoever is in it all the time, is not refused for good.
        let chat = asked.chat_id.and_then(|chat_id| self.truth.chats.get(&chat_id));
        let direct = asked.chat_id.is_some_and(|chat_id| chat_id.peer_of(user).is_some());
        let channel = asked.chat_id.is_some_and(ChatId::is_channel);
        // Not everybody may write in every channel.
        let forbids = channel && code == ErrorCode::Forbidden;
        let in_it = !forbids && chat.is_some_and(|chat| chat.was_member(user, asked.at, true));
        let may = asked.says && (direct || in_it);
        let members_max = if channel { self.plan.channel_members_max() } else { self.plan.group_members_max() };
        let due = match (&kept.frame, chat) {
            (ClientFrame::GroupChange(frame), Some(chat)) => {
                chat.must_do(user, &frame.change, asked.at, code, members_max)
            }
            _ => false,
        };
        self.ensure(!may && !due, "clients are served", || {
            format!("{user} is told {code:?} of {id} in {:?}: {:?}", asked.chat_id, kept.frame)
        });
        let place = self.truth.place(user, id, asked.chat_id);
        let logged = place.and_then(|(chat_id, seq)| self.truth.chats.get(&chat_id)?.at(seq));
        let before = logged.is_some_and(|logged| kept.said_at.is_some_and(|said| logged.at < said));
        self.ensure(!asked.refused || place.is_none(), "refused is refused", || {
            format!("{user} is told {code:?} of {id}, which is at {place:?}")
        });
        self.ensure(!before, "a retry gets the first answer", || {
            format!("{user} is told {code:?} of {id}, which was at {place:?} before it was sent")
        });
    }

    /// Oracles: nobody receives what they may not; a stream is the inbox, in order, without a hole or a double.
    fn look_at_event(&mut self, conn: u32, event: &parley_protocol::Event) {
        let device = self.conns[conn as usize].device;
        let user = self.user_of(device);
        let (chat_id, seq) = (event.chat_id, event.seq);
        self.look_at_content(user, event);
        let inbox = self.truth.inboxes.get(&user);
        let Some((inbox, number)) = inbox.and_then(|inbox| Some((inbox, inbox.number(chat_id, seq)?))) else {
            let first = self.conns[conn as usize].seen.live.insert((chat_id, seq));
            return self.ensure(first, "a stream has no doubles", || format!("{user}: {} {seq}, live", short(chat_id)));
        };
        let position = self.conns[conn as usize].seen.position;
        let Some(position) = position else {
            return self.fail("a stream begins with its mark", format!("{user}: {} {seq} comes first", short(chat_id)));
        };
        let between = inbox.event_between(position, number);
        self.ensure(number > position, "a stream has no doubles", || {
            format!("{user}: {} {seq} is entry {number}, after {position}", short(chat_id))
        });
        self.ensure(between.is_none(), "a stream has no holes", || {
            format!("{user}: {} {seq} is entry {number}, after {position}; {between:?} was left out", short(chat_id))
        });
        self.conns[conn as usize].seen.position = Some(number.max(position));
    }

    fn look_at_content(&mut self, user: UserId, event: &parley_protocol::Event) {
        let (chat_id, seq) = (event.chat_id, event.seq);
        let may = self.truth.may_read(user, chat_id, seq);
        self.ensure(may, "nobody receives what they may not", || format!("{user} gets {} {seq}", short(chat_id)));
        let logged = self.truth.chats.get(&chat_id).and_then(|chat| chat.at(seq));
        let held = Held::of(event);
        let same = logged.is_some_and(|logged| {
            let logged = Held {
                message_id: logged.message_id.0,
                ordinal: logged.ordinal,
                sender: logged.sender,
                sender_sent: logged.sender_sent,
                kind: logged.kind,
                digest: logged.digest,
            };
            logged == held
        });
        self.ensure(same, "what is received is what is stored", || format!("{user} gets {event:?}"));
    }

    fn hear_own(&mut self, conn: u32, own: OwnState) {
        let device = self.conns[conn as usize].device;
        let user = self.user_of(device);
        // It stands for the newest entry of its kind that was durable when it left; no later one than now. A mute that
        // changes nothing has no entry, and no frame.
        if let Some(inbox) = self.truth.inboxes.get(&user) {
            let row = EntryRow::Own { chat_id: own.chat_id };
            let newest = inbox.rows.iter().rposition(|other| *other == row).map_or(0, |at| at as u64 + 1);
            self.conns[conn as usize].seen.owns.insert(own.chat_id, newest);
        }
        let durable = self.truth.chats.get(&own.chat_id).and_then(|chat| chat.members.get(&user));
        let durable = durable.map(|member| member.marks);
        // A cluster shows marks that nobody was told of yet.
        let expected = self.truth.expected.get(&(own.chat_id, user)).copied().unwrap_or(0);
        let above = durable.is_none_or(|marks| own.read_seq > marks.read_seq.max(expected));
        self.ensure(!above, "what is received is what is stored", || format!("{user} gets {own:?} of {durable:?}"));
        self.devices[device as usize].take_own(own);
        self.devices[device as usize].chats.entry(own.chat_id).or_default().own_of_list = false;
    }

    /// Whether the user of a connection is a member of a chat, or was one not long ago: the home of the chat hears late
    /// who has left, and what it said before may wait for a gateway, or a device, that stands still.
    fn was_member(&self, conn: u32, chat_id: ChatId) -> bool {
        let user = self.user_of(self.conns[conn as usize].device);
        let chat = self.truth.chats.get(&chat_id);
        let waited = self.devices[self.conns[conn as usize].device as usize].silence;
        let waited = waited.filter(|(_, to)| self.now < to + LATE_US);
        let since = waited.map_or(self.now, |(from, _)| from).saturating_sub(LATE_US);
        chat_id.peer_of(user).is_some() || chat.is_some_and(|chat| chat.was_member(user, since, false))
    }

    /// Oracle: marks never fall.
    fn hear_receipt(&mut self, conn: u32, receipt: frame::Receipt) {
        let device = self.conns[conn as usize].device;
        let user = self.user_of(device);
        let may = self.was_member(conn, receipt.chat_id);
        self.ensure(may, "nobody receives what they may not", || format!("{user} gets {receipt:?}"));
        let now = (receipt.delivered_seq, receipt.read_seq);
        let key = (receipt.chat_id, receipt.user_id);
        let before = self.devices[device as usize].receipts.insert(key, now);
        self.ensure(before.is_none_or(|before| before.0 <= now.0 && before.1 <= now.1), "marks never fall", || {
            format!("{user} sees {before:?}, then {receipt:?}")
        });
    }

    /// Oracle: everything up to a mark was put into the stream before it.
    fn hear_mark(&mut self, conn: u32, mark: frame::Mark) {
        let device = self.conns[conn as usize].device;
        let user = self.user_of(device);
        let seen = &self.conns[conn as usize].seen;
        let (position, last) = (seen.position, seen.mark);
        let head = self.truth.inbox_head(user);
        self.ensure(mark.inbox_seq <= mark.head && mark.head <= head, "marks are below the head", || {
            format!("{user} gets {mark:?}, the head is {head}")
        });
        let Some(position) = position else {
            return self.fail("a stream begins with its mark", format!("{user}: {mark:?} without one"));
        };
        self.ensure(mark.inbox_seq >= last, "marks never fall", || format!("{user} gets {mark:?} after {last}"));
        if let Some(inbox) = self.truth.inboxes.get(&user) {
            let left_out = inbox.event_between(position, mark.inbox_seq + 1);
            let own = self.own_left_out(conn, user, mark.inbox_seq);
            self.ensure(left_out.is_none(), "a mark covers what came before it", || {
                format!("{user} gets {mark:?} at {position}; {left_out:?} did not come")
            });
            self.ensure(own.is_none(), "a mark covers what came before it", || {
                format!("{user} gets {mark:?}; the own state of entry {own:?} did not come")
            });
        }
        let seen = &mut self.conns[conn as usize].seen;
        seen.position = Some(position.max(mark.inbox_seq));
        seen.mark = mark.inbox_seq;
        let state = &mut self.devices[device as usize];
        state.take_mark(mark.inbox_seq);
        state.caught_up = mark.inbox_seq == mark.head;
        let said = state.read_again;
        self.read_again(device);
        if !said {
            self.say_marks(device);
        }
    }

    /// An own state that should have come by `mark`, and is not superseded by a later entry.
    fn own_left_out(&self, conn: u32, user: UserId, mark: u64) -> Option<u64> {
        let seen = &self.conns[conn as usize].seen;
        let inbox = self.truth.inboxes.get(&user)?;
        (seen.mark + 1..=mark).find(|number| {
            let Some(EntryRow::Own { chat_id }) = inbox.rows.get(*number as usize - 1) else { return false };
            let row = EntryRow::Own { chat_id: *chat_id };
            let superseded = inbox.rows[*number as usize..].contains(&row);
            !superseded && seen.owns.get(chat_id).is_none_or(|newest| newest < number)
        })
    }

    fn hear_truncated(&mut self, conn: u32, mark: u64) {
        let device = self.conns[conn as usize].device;
        let user = self.user_of(device);
        let head = self.truth.inbox_head(user);
        self.ensure(mark <= head, "marks are below the head", || format!("{user} is truncated to {mark} of {head}"));
        let backlog_max = self.plan.gateway_options(1, 0).sync_backlog_max;
        let position = self.conns[conn as usize].seen.position;
        let must = position.is_none_or(|position| position > mark || mark - position > backlog_max);
        self.ensure(must, "a backlog is sent", || format!("{user} is truncated from {position:?} to {mark}"));
        let seen = &mut self.conns[conn as usize].seen;
        seen.position = Some(mark);
        seen.mark = mark;
        self.devices[device as usize].take_truncated(mark);
        self.fill(device);
    }

    /// Oracle: unread counts are right, whatever the moment of the read was.
    fn hear_chats(&mut self, device: u32, list: &frame::ChatList) {
        let user = self.user_of(device);
        let asked = self.devices[device as usize].pages.remove(&list.request_id).is_some();
        for summary in &list.chats {
            let Some(chat) = self.truth.chats.get(&summary.chat_id) else {
                return self.fail("what is received is what is stored", format!("{user} gets {summary:?}"));
            };
            let unread = chat.unread(user, summary.own.read_seq, summary.head_seq);
            // A member sees the newest title; who left one that it may have seen, or none.
            let title = chat.title_at(summary.head_seq);
            let titled =
                summary.title == title || (summary.role.is_none() && chat.may_know_title(user, &summary.title));
            let ordinal = chat.at(summary.head_seq).map(|logged| logged.ordinal);
            let may = chat.members.get(&user).is_some_and(|member| member.may_read(summary.head_seq));
            self.ensure(may, "nobody receives what they may not", || format!("{user} gets {summary:?}"));
            self.ensure(ordinal == Some(summary.head_ordinal), "what is received is what is stored", || {
                format!("{user} gets {summary:?}, the ordinal is {ordinal:?}")
            });
            self.ensure(unread == summary.unread, "unread is right", || {
                format!(
                    "{user} gets {} unread of {}, there are {unread}: {summary:?}",
                    summary.unread,
                    short(summary.chat_id)
                )
            });
            self.ensure(titled, "what is received is what is stored", || format!("{user} gets {summary:?}"));
            if let Some(event) = &summary.last {
                self.look_at_content(user, event);
            }
            if asked {
                self.devices[device as usize].take_summary(summary);
            }
        }
        let state = &mut self.devices[device as usize];
        if asked && state.listing.is_some() {
            state.listing = match (list.more, list.chats.last()) {
                (true, Some(last)) => Some(Some(last.chat_id)),
                _ => None,
            };
        }
        self.fill(device);
    }

    fn hear_history(&mut self, device: u32, page: &frame::HistoryPage) {
        let user = self.user_of(device);
        for event in &page.events {
            self.look_at_content(user, event);
            self.devices[device as usize].store(event, false);
        }
        let asked = self.devices[device as usize].pages.remove(&page.request_id);
        if let Some(Page::Fill { chat_id, upto }) = asked {
            let last = page.events.last().map(|event| event.seq);
            self.devices[device as usize].take_filled(chat_id, upto, last, page.more);
        }
        self.fill(device);
    }
}

fn tell_server_frame(frame: &ServerFrame) -> String {
    match frame {
        ServerFrame::Event(event) => format!("{} seq {} of {}", short(event.chat_id), event.seq, event.sender),
        ServerFrame::HistoryPage(page) => {
            let seqs: Vec<_> = page.events.iter().map(|event| event.seq).collect();
            format!("history {} of {}: {seqs:?}, more: {}", page.request_id, short(page.chat_id), page.more)
        }
        ServerFrame::ChatList(list) => {
            let heads: Vec<_> = list.chats.iter().map(|chat| (short(chat.chat_id), chat.head_seq)).collect();
            format!("chats {}: {heads:?}, more: {}", list.request_id, list.more)
        }
        other => format!("{other:?}"),
    }
}
