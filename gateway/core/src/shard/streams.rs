//! User homes: the sessions of a user, the streams that they receive, marks, inbox reads, nudges (rules 7 to 14 of the
//! delivery protocol). A user home filters nothing: each session judges every item by its own position.

use super::active::Actives;
use super::inbound::own_frame;
use super::session::{Conn, Flag, Moment, NOBODY, Seat, Session};
use super::stream::{Offer, Page};
use super::{Out, Shard, Tag, Timer};
use crate::authority::Ticket;
use crate::fan::Fan;
use crate::output::ConnId;
use crate::planted::{self, Bug};
use crate::stats::Reason;
use crate::time::Now;
use parley_protocol::frame::{Mark, Reconnect, Renewed, ServerFrame, Truncated, Welcome};
use parley_protocol::link::{Ask, InboxEntry, InboxPage, Reply, Target};
use parley_protocol::{UserId, close};
use std::sync::Arc;

/// Frames up to this size are copied for each receiver; larger ones are shared by reference.
const COPY_BYTES_MAX: usize = 1024;
/// Frames beside the stream wait so long for one to travel with.
const BESIDE_WAIT_MS: u64 = 200;
/// The pause between steps of a nudge to everybody.
const NUDGE_STEP_MS: u64 = 16;

impl Shard {
    /// A connection whose user is known comes to its shard.
    pub(super) fn seat(&mut self, now: Now, conn: ConnId, mut seat: Seat, out: &mut Out) {
        let rest = std::mem::take(&mut seat.rest);
        let mark = if seat.acting { Some(0) } else { self.mark_of(&seat) };
        self.conns.put(conn, Conn::Session(Session::new(conn, &seat, mark, now.mono_ms)));
        self.watch_first(now, conn, seat.token_expires_at_ms);
        self.stats.sessions += 1;
        if !self.admit(conn, &seat, out) {
            return;
        }
        let (resume, resume_expires_at_ms) = self.ticket(now, conn, seat.name.clone());
        let welcome = Welcome {
            user_id: seat.user_id,
            name: seat.name,
            resume,
            resume_expires_at_ms,
            server_time_ms: now.unix_ms,
            heartbeat_interval_ms: self.options.heartbeat_interval_ms,
            payload_bytes_max: self.options.payload_bytes_max as u32,
            frame_bytes_max: self.options.frame_bytes_max as u32,
            requests_in_flight_max: u32::from(self.options.requests_in_flight_max),
        };
        self.send(conn, &ServerFrame::Welcome(welcome), out);
        if self.draining {
            return self.see_off(now, conn, out);
        }
        if !seat.acting {
            if !planted::has(Bug::AttachUnread) {
                self.want_read(conn);
            }
            self.timers.arm(now.mono_ms + self.head_check_in(conn), Timer::HeadCheck(conn));
        }
        if !rest.is_empty() {
            let mut rest = rest;
            self.session_data(now, conn, &mut rest, out);
        }
    }

    /// Rule 12: where a session starts. Only what the device presents counts.
    fn mark_of(&mut self, seat: &Seat) -> Option<u64> {
        let mut mark = seat.mark;
        if planted::has(Bug::RemembersMarks) {
            for conn in self.sessions_of(seat.user_id) {
                let session = self.session(conn).filter(|session| session.device_id() == seat.device_id);
                mark = mark.max(session.map(|session| session.stream.position()));
            }
        }
        mark
    }

    /// Puts a session into its user's home: a device has one connection, and a user so many devices.
    fn admit(&mut self, conn: ConnId, seat: &Seat, out: &mut Out) -> bool {
        if self.halted {
            self.close(conn, close::RETRY_LATER, "retry later", out);
            return false;
        }
        let mut devices = 0;
        for other in self.sessions_of(seat.user_id) {
            let Some(session) = self.session(other) else { continue };
            if session.is(Flag::Closing) || session.is(Flag::Acting) || seat.acting {
                continue;
            }
            if session.device_id() == seat.device_id {
                self.close(other, close::REPLACED, "replaced", out);
            } else {
                devices += 1;
            }
        }
        if devices >= self.options.devices_max {
            self.reject(conn, close::TOO_MANY_DEVICES, "too many devices", Reason::TooManyDevices, out);
            return false;
        }
        self.users.link(&mut self.conns, conn.slot, seat.user_id);
        true
    }

    /// Head checks of many sessions do not fall together.
    fn head_check_in(&self, conn: ConnId) -> u64 {
        let interval = self.options.head_check_interval_ms.max(2);
        interval / 2 + u64::from(conn.slot).wrapping_mul(7919) % (interval / 2)
    }

    fn ticket(&mut self, now: Now, conn: ConnId, name: String) -> (String, u64) {
        let ttl_ms = self.options.resume_ttl_ms;
        let Some(session) = self.session(conn) else { return (String::new(), 0) };
        if session.is(Flag::Acting) {
            return (String::new(), 0);
        }
        let ticket = Ticket {
            user_id: session.user_id,
            device_id: session.device_id(),
            name,
            expires_at_ms: (now.unix_ms + ttl_ms).min(session.token_expires_at_ms),
            development: session.is(Flag::Development),
        };
        (self.authority.issue_ticket(&ticket), ticket.expires_at_ms)
    }

    /// Connections of a user's sessions here.
    pub(super) fn sessions_of(&self, user_id: UserId) -> Vec<ConnId> {
        self.users.slots(&self.conns, user_id).filter_map(|slot| self.conns.conn_at(slot)).collect()
    }

    /// The highest entry of a user's inbox that was seen here. Its sessions know it together: as the position of their
    /// streams, or beside one that has not come so far.
    fn head_of(&self, user_id: UserId) -> u64 {
        self.users.first(&self.conns, user_id).map_or(0, |first| self.head_from(first))
    }

    fn head_from(&self, first: u32) -> u64 {
        let known = |slot| self.conns.session_at(slot).map_or(0, Session::known);
        self.conns.linked_from(first).map(known).max().unwrap_or(0)
    }

    /// An entry was seen: if no session of a home knows of it, the one in a slot keeps it in mind.
    fn see_head(&mut self, first: u32, slot: u32, head: u64) {
        if self.head_from(first) < head
            && let Some(session) = self.conns.session_at_mut(slot)
        {
            session.active(slot, &mut self.actives).head = head;
        }
    }

    /// A connection is gone.
    pub(super) fn forget(&mut self, now: Now, conn: ConnId, out: &mut Out) {
        if self.lobby(conn).is_some() {
            self.conns.free(conn.slot);
            self.lobby_count -= 1;
            return;
        }
        let Some(session) = self.conns.session(conn) else { return };
        let user_id = session.user_id;
        let busy = session.busy_mut(conn.slot, &mut self.actives);
        for chat_id in busy.map(|active| std::mem::take(&mut active.subscriptions)).unwrap_or_default() {
            self.drop_subscriber(now, conn, chat_id, out);
        }
        let head = self.head_of(user_id);
        self.users.unlink(&mut self.conns, conn.slot, user_id);
        if let Conn::Session(session) = self.conns.free(conn.slot)
            && let Some(active) = session.into_active()
        {
            self.actives.give_back(active);
        }
        self.stats.sessions -= 1;
        if let Some(first) = self.users.first(&self.conns, user_id) {
            self.see_head(first, first, head);
        }
    }

    /// Rule 7: entries of an event, for users seated here.
    pub(super) fn deliver(&mut self, now: Now, fan: &Arc<Fan>, targets: &[Target], out: &mut Out) {
        for target in targets {
            let Some(first) = self.users.first(&self.conns, target.user_id) else { continue };
            // Offering never changes who is seated. Who acts for the user has no stream that would come to the head.
            let (mut slot, mut witness) = (first, NOBODY);
            while let Some(session) = self.conns.session_at(slot) {
                let next = session.next;
                if witness == NOBODY && !session.is(Flag::Acting) {
                    witness = slot;
                }
                self.offer(now, slot, target.inbox_seq, fan, out);
                slot = next;
            }
            self.see_head(first, if witness == NOBODY { first } else { witness }, target.inbox_seq);
        }
    }

    /// Bytes that may be queued for a session before entries are dropped.
    fn outbox_max(&self) -> usize {
        if planted::has(Bug::OutboxUnbounded) { usize::MAX } else { self.options.outbox_bytes_max }
    }

    /// Rule 8: the session judges the item by its own position.
    fn offer(&mut self, now: Now, slot: u32, inbox_seq: u64, fan: &Arc<Fan>, out: &mut Out) {
        let held_max = if planted::has(Bug::HeldUnbounded) { usize::MAX } else { self.options.held_items_max };
        let outbox_max = self.outbox_max();
        let Some(session) = self.conns.session_at_mut(slot) else { return };
        if session.is(Flag::Closing) || session.is(Flag::Acting) {
            return;
        }
        let conn = ConnId { slot, generation: session.generation };
        let has_room = (session.queued as usize) < outbox_max;
        let judged = session.stream.offer(inbox_seq, has_room).unwrap_or_else(|| {
            let (stream, active) = session.stream_and_active(slot, &mut self.actives);
            stream.hold(&mut active.held, inbox_seq, fan, held_max)
        });
        match judged {
            Offer::Stale => {}
            Offer::Send => {
                send_shared(conn, session, fan, &mut self.actives, out);
                self.stats.entries_total += 1;
                self.send_held(conn, out);
                self.owe_mark(now, conn, out);
            }
            Offer::Held { first } => {
                self.stats.entries_held_total += 1;
                if first && !planted::has(Bug::HoleNeverRead) {
                    self.timers.arm(now.mono_ms + self.options.hole_wait_ms, Timer::Hole(conn));
                }
            }
            Offer::Dropped => self.stats.entries_dropped_total += 1,
        }
    }

    fn send_held(&mut self, conn: ConnId, out: &mut Out) {
        let outbox_max = self.outbox_max();
        let Some(session) = self.conns.session(conn) else { return };
        while session.busy().is_some_and(|active| !active.held.is_empty()) {
            let has_room = (session.queued as usize) < outbox_max;
            let (stream, active) = session.stream_and_active(conn.slot, &mut self.actives);
            let Some(fan) = stream.next_held(&mut active.held, has_room) else { return };
            send_shared(conn, session, &fan, &mut self.actives, out);
            self.stats.entries_total += 1;
        }
    }

    /// A live event of a large chat, beside the stream.
    pub(super) fn send_live(&mut self, conn: ConnId, fan: &Arc<Fan>, out: &mut Out) {
        let outbox_max = self.options.outbox_bytes_max;
        if let Some(session) = self.conns.session(conn)
            && !session.is(Flag::Closing)
            && !session.is(Flag::Acting)
            && (session.queued as usize) < outbox_max
        {
            send_shared(conn, session, fan, &mut self.actives, out);
        }
    }

    /// A receipt or a head: what a person hardly notices late. It travels with the next frame, because a send of its own
    /// costs as much as a message; alone it leaves after a moment.
    pub(super) fn send_beside(&mut self, now: Now, conn: ConnId, fan: &Arc<Fan>) {
        let outbox_max = self.options.outbox_bytes_max;
        let beside_max = if planted::has(Bug::BesideUnbounded) { usize::MAX } else { self.options.beside_bytes_max };
        let Some(session) = self.conns.session(conn) else { return };
        let waits = session.busy().map_or(0, |active| active.beside.len());
        let full = session.queued as usize >= outbox_max || waits >= beside_max;
        if session.is(Flag::Closing) || session.is(Flag::Acting) || full {
            return;
        }
        let bytes = fan.bytes(session.encoding);
        session.active(conn.slot, &mut self.actives).beside.extend_from_slice(bytes);
        if !session.replace(Flag::BesideArmed, true) {
            self.timers.arm(now.mono_ms + BESIDE_WAIT_MS, Timer::Beside(conn));
        }
    }

    pub(super) fn beside_due(&mut self, conn: ConnId, out: &mut Out) {
        if let Some(session) = self.conns.session(conn) {
            session.replace(Flag::BesideArmed, false);
            flush_beside(conn, session, &mut self.actives, out);
        }
    }

    /// A session wants a page of its inbox; so many are under way at a time, the others wait in line.
    pub(super) fn want_read(&mut self, conn: ConnId) {
        let Some(session) = self.session(conn) else { return };
        if session.is(Flag::Closing) || session.is(Flag::Acting) || session.is(Flag::WaitsToRead) {
            return;
        }
        if session.stream.begin_read() {
            session.replace(Flag::WaitsToRead, true);
            self.readers.push_back(conn);
        }
    }

    pub(super) fn start_reads(&mut self, _now: Now) {
        while self.reads_under_way < self.options.inbox_reads_max {
            let Some(conn) = self.readers.pop_front() else { return };
            let limit = self.options.sync_page_entries_max;
            let Some(session) = self.session(conn) else { continue };
            session.replace(Flag::WaitsToRead, false);
            let ask = Ask::Inbox { user_id: session.user_id, after: session.stream.position(), limit };
            self.reads_under_way += 1;
            self.stats.inbox_reads_total += 1;
            self.ask(ask, Tag::Inbox { conn });
        }
    }

    /// Rule 11: a page counts only if it begins at the session's position.
    pub(super) fn take_inbox(&mut self, now: Now, conn: ConnId, reply: Reply, out: &mut Out) {
        self.reads_under_way -= usize::from(!planted::has(Bug::ReadSlotLeaked));
        let backlog_max = self.options.sync_backlog_max;
        let Some(session) = self.conns.session(conn) else { return };
        let Reply::Inbox(page) = reply else {
            // Unreadable now: tried again at the next head check, or when the client comes back.
            session.stream.read_failed();
            return self.timers.arm(now.mono_ms + self.options.hole_wait_ms.max(1_000), Timer::Hole(conn));
        };
        let user_id = session.user_id;
        let verdict = session.stream.take_page(page.after, page.to, page.head, backlog_max);
        // With the position further on, what was kept in mind beside it may be needed no more.
        session.busy_mut(conn.slot, &mut self.actives);
        let first = self.users.first(&self.conns, user_id).unwrap_or(conn.slot);
        self.see_head(first, conn.slot, page.head);
        let head = self.head_from(first).max(page.head);
        match verdict {
            Page::Leave => {}
            Page::Truncate { mark } => {
                self.stats.truncated_total += 1;
                self.send(conn, &ServerFrame::Truncated(Truncated { mark }), out);
            }
            Page::Take => self.send_page(conn, page, out),
        }
        self.send_held(conn, out);
        let outbox_max = self.outbox_max();
        let Some(session) = self.session(conn) else { return };
        if session.stream.wants_read(head) {
            if (session.queued as usize) < outbox_max / 2 {
                self.want_read(conn);
            } else {
                session.stream.fall_behind();
            }
            self.owe_mark(now, conn, out);
        } else if !matches!(verdict, Page::Truncate { .. }) {
            self.send_mark(conn, out);
        }
    }

    fn send_page(&mut self, conn: ConnId, page: InboxPage, out: &mut Out) {
        let count = page.entries.len() as u64;
        for entry in page.entries {
            let frame = match entry {
                InboxEntry::Event(event) => ServerFrame::Event(event),
                InboxEntry::Own(own) => own_frame(own),
                InboxEntry::Empty => continue,
            };
            self.send(conn, &frame, out);
        }
        self.stats.entries_total += count;
    }

    /// What a planted bug does when a session's chats were read: the inbox head is read now, and the stream goes on there.
    pub(super) fn read_head_last(&mut self, conn: ConnId, out: &mut Out) {
        let Some(session) = self.session(conn) else { return };
        let user_id = session.user_id;
        let position = session.stream.position();
        let head = self.head_of(user_id);
        if head > position
            && let Some(session) = self.session(conn)
        {
            session.stream.truncate_to(head);
            self.send(conn, &ServerFrame::Mark(Mark { inbox_seq: head, head }), out);
        }
    }

    /// Rule 10: something for this user may have been lost.
    pub(super) fn nudge(&mut self, user_id: UserId) {
        for conn in self.sessions_of(user_id) {
            self.want_read(conn);
        }
    }

    /// The same for everybody, a step at a time.
    pub(super) fn nudge_everybody(&mut self, now: Now) {
        // A walk that is under way began before what is lost now: it starts over.
        if self.nudge_walk.replace(0).is_none() {
            self.timers.arm(now.mono_ms, Timer::NudgeWalk);
        }
    }

    pub(super) fn walk_nudges(&mut self, now: Now) {
        let Some(from) = self.nudge_walk else { return };
        let end = from.saturating_add(self.options.nudge_step_sessions.max(1)).min(self.conns.len());
        for slot in from..end {
            if let Some(conn) = self.conns.conn_at(slot) {
                self.want_read(conn);
            }
        }
        if end < self.conns.len() {
            self.nudge_walk = Some(end);
            self.timers.arm(now.mono_ms + NUDGE_STEP_MS, Timer::NudgeWalk);
        } else {
            self.nudge_walk = None;
        }
    }

    pub(super) fn hole_due(&mut self, conn: ConnId) {
        let has_hole = |session: &Session| session.busy().is_some_and(|active| !active.held.is_empty());
        if self.session(conn).is_some_and(|session| has_hole(session) || session.stream.owes_read()) {
            self.want_read(conn);
        }
    }

    pub(super) fn head_check(&mut self, now: Now, conn: ConnId) {
        if planted::no_nudge(Bug::SweepOff) {
            return;
        }
        if self.session(conn).is_some_and(|session| !session.is(Flag::Closing)) {
            self.want_read(conn);
            self.timers.arm(now.mono_ms + self.options.head_check_interval_ms.max(1), Timer::HeadCheck(conn));
        }
    }

    /// A mark is owed after entries, at most one an interval. It travels with an entry where it can: a send of its own
    /// costs as much as a message, so the timer that sends it alone gives the next entry an interval's time.
    fn owe_mark(&mut self, now: Now, conn: ConnId, out: &mut Out) {
        let interval_ms = self.options.mark_interval_ms;
        let Some(session) = self.session(conn) else { return };
        if !session.stream.is_unmarked() {
            return;
        }
        let marked_ago_ms = session.marked.ago_ms(now.mono_ms);
        if marked_ago_ms >= interval_ms {
            session.marked = Moment::new(now.mono_ms);
            return self.send_mark(conn, out);
        }
        if !session.replace(Flag::MarkArmed, true) {
            let due_ms = now.mono_ms - marked_ago_ms + 2 * interval_ms;
            self.timers.arm(due_ms, Timer::Mark(conn));
        }
    }

    pub(super) fn mark_due(&mut self, now: Now, conn: ConnId, out: &mut Out) {
        if let Some(session) = self.session(conn) {
            session.replace(Flag::MarkArmed, false);
            session.marked = Moment::new(now.mono_ms);
            self.send_mark(conn, out);
        }
    }

    /// Rule 12: tells the device how far its stream has come, if it was not told.
    pub(super) fn send_mark(&mut self, conn: ConnId, out: &mut Out) {
        let Some(session) = self.session(conn) else { return };
        if session.is(Flag::Closing) || session.is(Flag::Acting) || planted::has(Bug::NoMarks) {
            return;
        }
        let user_id = session.user_id;
        if let Some(inbox_seq) = session.stream.unmarked() {
            let head = self.head_of(user_id).max(inbox_seq);
            let inbox_seq = if planted::has(Bug::MarkAhead) { head } else { inbox_seq };
            let head = head + u64::from(planted::has(Bug::HeadIsNextNumber));
            self.send(conn, &ServerFrame::Mark(Mark { inbox_seq, head }), out);
        }
    }

    pub(super) fn renewed(&mut self, conn: ConnId, expires_at_ms: u64, out: &mut Out) {
        if let Some(session) = self.session(conn) {
            session.token_expires_at_ms = session.token_expires_at_ms.max(expires_at_ms);
            let expires_at_ms = session.token_expires_at_ms;
            self.send(conn, &ServerFrame::Renewed(Renewed { expires_at_ms }), out);
        }
    }

    /// Sends a session elsewhere, with a delay of its own, so that no herd forms.
    pub(super) fn see_off(&mut self, now: Now, conn: ConnId, out: &mut Out) {
        if self.session(conn).is_none_or(|session| session.is(Flag::Closing)) {
            return;
        }
        self.send_mark(conn, out);
        let spread_ms = self.options.reconnect_spread_ms.max(1);
        let delay_ms = (u64::from(conn.slot).wrapping_mul(0x9e37_79b9) % spread_ms) as u32;
        let (resume, resume_expires_at_ms) = self.ticket(now, conn, String::new());
        self.send(conn, &ServerFrame::Reconnect(Reconnect { delay_ms, resume, resume_expires_at_ms }), out);
        self.close(conn, close::DRAINING, "draining", out);
    }
}

fn send_shared(conn: ConnId, session: &mut Session, fan: &Fan, actives: &mut Actives, out: &mut Out) {
    let bytes = fan.bytes(session.encoding);
    session.queue(bytes.len());
    if bytes.len() <= COPY_BYTES_MAX {
        out.send_with(conn, |arena| arena.extend_from_slice(bytes));
    } else {
        out.push(crate::output::Output::SendShared { conn, bytes: bytes.clone() });
    }
    flush_beside(conn, session, actives, out);
}

/// Sends what waits beside the stream.
pub(super) fn flush_beside(conn: ConnId, session: &mut Session, actives: &mut Actives, out: &mut Out) {
    let waits = session.busy().is_some_and(|active| !active.beside.is_empty());
    if waits && !session.is(Flag::Closing) {
        let mut frames = session.active(conn.slot, actives).take_beside();
        session.queue(out.send_with(conn, |arena| arena.append(&mut frames)));
        session.active(conn.slot, actives).keep_room(frames);
    }
}
