//! User homes: the sessions of a user, the streams that they receive, marks, inbox reads, nudges (rules 7 to 14 of the
//! delivery protocol). A user home filters nothing: each session judges every item by its own position.

use super::inbound::own_frame;
use super::session::{Conn, Rate, Seat, Session};
use super::stream::{Offer, Page, Stream};
use super::{Out, Shard, Tag, Timer};
use crate::authority::Ticket;
use crate::fan::Fan;
use crate::output::ConnId;
use crate::planted::{self, Bug};
use crate::stats::Reason;
use crate::time::Now;
use crate::ws::Decoder;
use parley_protocol::frame::{Mark, Reconnect, Renewed, ServerFrame, Truncated, Welcome};
use parley_protocol::link::{Ask, InboxEntry, InboxPage, Reply, Target};
use parley_protocol::{UserId, close};
use std::sync::Arc;

/// Frames up to this size are copied for each receiver; larger ones are shared by reference.
const COPY_BYTES_MAX: usize = 1024;
/// Frames beside the stream wait so long for one to travel with, and are dropped above so many bytes.
const BESIDE_WAIT_MS: u64 = 200;
const BESIDE_BYTES_MAX: usize = 16 << 10;
/// Sessions looked at in one step of a nudge to everybody, and the pause between steps.
const NUDGE_STEP_SESSIONS: u32 = 256;
const NUDGE_STEP_MS: u64 = 16;

impl Shard {
    /// A connection whose user is known comes to its shard.
    pub(super) fn seat(&mut self, now: Now, conn: ConnId, mut seat: Seat, out: &mut Out) {
        let rest = std::mem::take(&mut seat.rest);
        let session = Session {
            conn,
            encoding: seat.encoding,
            acting: seat.acting,
            loopback: seat.loopback,
            development: seat.development,
            closing: false,
            draining: false,
            mark_armed: false,
            beside_armed: false,
            marked_ms: now.mono_ms,
            waits_to_read: false,
            requests: 0,
            user_id: seat.user_id,
            device_id: seat.device_id,
            decoder: Decoder::new(self.options.frame_bytes_max as u32),
            stream: Stream::new(if seat.acting { Some(0) } else { self.mark_of(&seat) }),
            queued: 0,
            heard_ms: now.mono_ms,
            took: false,
            stalled_since_ms: None,
            token_expires_at_ms: seat.token_expires_at_ms,
            rate: Rate::new(now.mono_ms, self.options.rate_burst),
            parked: None,
            beside: Vec::new(),
            subscriptions: Vec::new(),
            subscribing: Vec::new(),
        };
        self.watch_first(now, &session);
        self.put(conn, Conn::Session(Box::new(session)));
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
                let session = self.session(conn).filter(|session| session.device_id == seat.device_id);
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
            if session.closing || session.acting || seat.acting {
                continue;
            }
            if session.device_id == seat.device_id {
                self.close(other, close::REPLACED, "replaced", out);
            } else {
                devices += 1;
            }
        }
        if devices >= self.options.devices_max {
            self.reject(conn, close::TOO_MANY_DEVICES, "too many devices", Reason::TooManyDevices, out);
            return false;
        }
        self.users.entry(seat.user_id).or_default().sessions.push(conn.slot);
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
        if session.acting {
            return (String::new(), 0);
        }
        let ticket = Ticket {
            user_id: session.user_id,
            device_id: session.device_id,
            name,
            expires_at_ms: (now.unix_ms + ttl_ms).min(session.token_expires_at_ms),
            development: session.development,
        };
        (self.authority.issue_ticket(&ticket), ticket.expires_at_ms)
    }

    /// Connections of a user's sessions here.
    pub(super) fn sessions_of(&self, user_id: UserId) -> Vec<ConnId> {
        let Some(home) = self.users.get(&user_id) else { return Vec::new() };
        let conn_of = |slot: &u32| match self.conns.get(*slot as usize) {
            Some(Conn::Session(session)) => Some(session.conn),
            _ => None,
        };
        home.sessions.iter().filter_map(conn_of).collect()
    }

    /// A connection is gone.
    pub(super) fn forget(&mut self, now: Now, conn: ConnId, out: &mut Out) {
        if self.lobby(conn).is_some() {
            self.conns[conn.slot as usize] = Conn::Free;
            self.lobby_count -= 1;
            return;
        }
        let Some(session) = self.session(conn) else { return };
        let user_id = session.user_id;
        for chat_id in std::mem::take(&mut session.subscriptions) {
            self.drop_subscriber(now, conn, chat_id, out);
        }
        self.conns[conn.slot as usize] = Conn::Free;
        self.stats.sessions -= 1;
        if let Some(home) = self.users.get_mut(&user_id) {
            home.sessions.retain(|slot| *slot != conn.slot);
            if home.sessions.is_empty() {
                self.users.remove(&user_id);
            }
        }
    }

    /// Rule 7: entries of an event, for users seated here.
    pub(super) fn deliver(&mut self, now: Now, fan: &Arc<Fan>, targets: &[Target], out: &mut Out) {
        for target in targets {
            let Some(home) = self.users.get_mut(&target.user_id) else { continue };
            home.head = home.head.max(target.inbox_seq);
            // Offering never changes who is seated: the list is lent out meanwhile.
            let sessions = std::mem::take(&mut home.sessions);
            for slot in &sessions {
                self.offer(now, *slot, target.inbox_seq, fan, out);
            }
            if let Some(home) = self.users.get_mut(&target.user_id) {
                home.sessions = sessions;
            }
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
        let Some(Conn::Session(session)) = self.conns.get_mut(slot as usize) else { return };
        if session.closing || session.acting {
            return;
        }
        let conn = session.conn;
        match session.stream.offer(inbox_seq, fan, session.queued < outbox_max, held_max) {
            Offer::Stale => {}
            Offer::Send => {
                send_shared(session, fan, out);
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
        let mut sent = 0;
        if let Some(session) = self.session(conn) {
            while let Some(fan) = session.stream.next_held(session.queued < outbox_max) {
                send_shared(session, &fan, out);
                sent += 1;
            }
        }
        self.stats.entries_total += sent;
    }

    /// A live event of a large chat, beside the stream.
    pub(super) fn send_live(&mut self, conn: ConnId, fan: &Arc<Fan>, out: &mut Out) {
        let outbox_max = self.options.outbox_bytes_max;
        if let Some(session) = self.session(conn)
            && !session.closing
            && !session.acting
            && session.queued < outbox_max
        {
            send_shared(session, fan, out);
        }
    }

    /// A receipt or a head: what a person hardly notices late. It travels with the next frame, because a send of its own
    /// costs as much as a message; alone it leaves after a moment.
    pub(super) fn send_beside(&mut self, now: Now, conn: ConnId, fan: &Arc<Fan>) {
        let outbox_max = self.options.outbox_bytes_max;
        let Some(session) = self.session(conn) else { return };
        let full = session.queued >= outbox_max || session.beside.len() >= BESIDE_BYTES_MAX;
        if session.closing || session.acting || full {
            return;
        }
        session.beside.extend_from_slice(fan.bytes(session.encoding));
        if !std::mem::replace(&mut session.beside_armed, true) {
            self.timers.arm(now.mono_ms + BESIDE_WAIT_MS, Timer::Beside(conn));
        }
    }

    pub(super) fn beside_due(&mut self, conn: ConnId, out: &mut Out) {
        if let Some(session) = self.session(conn) {
            session.beside_armed = false;
            flush_beside(session, out);
        }
    }

    /// A session wants a page of its inbox; so many are under way at a time, the others wait in line.
    pub(super) fn want_read(&mut self, conn: ConnId) {
        let Some(session) = self.session(conn) else { return };
        if session.closing || session.acting || session.waits_to_read {
            return;
        }
        if session.stream.begin_read() {
            session.waits_to_read = true;
            self.readers.push_back(conn);
        }
    }

    pub(super) fn start_reads(&mut self, _now: Now) {
        while self.reads_under_way < self.options.inbox_reads_max {
            let Some(conn) = self.readers.pop_front() else { return };
            let limit = self.options.sync_page_entries_max;
            let Some(session) = self.session(conn) else { continue };
            session.waits_to_read = false;
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
        let Some(session) = self.session(conn) else { return };
        let Reply::Inbox(page) = reply else {
            // Unreadable now: tried again at the next head check, or when the client comes back.
            session.stream.read_failed();
            return self.timers.arm(now.mono_ms + self.options.hole_wait_ms.max(1_000), Timer::Hole(conn));
        };
        let user_id = session.user_id;
        let verdict = session.stream.take_page(page.after, page.to, page.head, backlog_max);
        let head = self.users.get_mut(&user_id).map_or(page.head, |home| {
            home.head = home.head.max(page.head);
            home.head
        });
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
            if session.queued < outbox_max / 2 {
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
        let head = self.users.get(&user_id).map_or(0, |home| home.head);
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
        let end = (from + NUDGE_STEP_SESSIONS).min(self.conns.len() as u32);
        for slot in from..end {
            if let Conn::Session(session) = &self.conns[slot as usize] {
                let conn = session.conn;
                self.want_read(conn);
            }
        }
        if (end as usize) < self.conns.len() {
            self.nudge_walk = Some(end);
            self.timers.arm(now.mono_ms + NUDGE_STEP_MS, Timer::NudgeWalk);
        } else {
            self.nudge_walk = None;
        }
    }

    pub(super) fn hole_due(&mut self, conn: ConnId) {
        if self.session(conn).is_some_and(|session| session.stream.has_hole() || session.stream.owes_read()) {
            self.want_read(conn);
        }
    }

    pub(super) fn head_check(&mut self, now: Now, conn: ConnId) {
        if planted::no_nudge(Bug::SweepOff) {
            return;
        }
        if self.session(conn).is_some_and(|session| !session.closing) {
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
        if now.mono_ms >= session.marked_ms + interval_ms {
            session.marked_ms = now.mono_ms;
            return self.send_mark(conn, out);
        }
        if !session.mark_armed {
            session.mark_armed = true;
            let due_ms = session.marked_ms + 2 * interval_ms;
            self.timers.arm(due_ms, Timer::Mark(conn));
        }
    }

    pub(super) fn mark_due(&mut self, now: Now, conn: ConnId, out: &mut Out) {
        if let Some(session) = self.session(conn) {
            session.mark_armed = false;
            session.marked_ms = now.mono_ms;
            self.send_mark(conn, out);
        }
    }

    /// Rule 12: tells the device how far its stream has come, if it was not told.
    pub(super) fn send_mark(&mut self, conn: ConnId, out: &mut Out) {
        let Some(session) = self.session(conn) else { return };
        if session.closing || session.acting || planted::has(Bug::NoMarks) {
            return;
        }
        let user_id = session.user_id;
        if let Some(inbox_seq) = session.stream.unmarked() {
            let head = self.users.get(&user_id).map_or(inbox_seq, |home| home.head.max(inbox_seq));
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
        if self.session(conn).is_none_or(|session| session.closing) {
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

fn send_shared(session: &mut Session, fan: &Fan, out: &mut Out) {
    let bytes = fan.bytes(session.encoding);
    session.queued += bytes.len();
    if bytes.len() <= COPY_BYTES_MAX {
        out.send_with(session.conn, |arena| arena.extend_from_slice(bytes));
    } else {
        out.push(crate::output::Output::SendShared { conn: session.conn, bytes: bytes.clone() });
    }
    flush_beside(session, out);
}

/// Sends what waits beside the stream.
pub(super) fn flush_beside(session: &mut Session, out: &mut Out) {
    if !session.beside.is_empty() && !session.closing {
        let frames = std::mem::take(&mut session.beside);
        session.queued += out.send_with(session.conn, |arena| arena.extend_from_slice(&frames));
    }
}
