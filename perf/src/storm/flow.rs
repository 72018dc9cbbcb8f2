//! A small flow of messages beside a storm: pairs of sessions write to each other by the clock. A sender keeps what has
//! no answer and sends it again, under the same name, once it is back; a receiver drops what it has.

use crate::frames::Encoder;
use crate::ledger::{Ledger, Step};
use crate::report::{histogram, micros};
use crate::rings::Action;
use crate::schedule::Schedule;
use hdrhistogram::Histogram;
use parley_protocol::{ChatId, ClientMsgId, ErrorCode, UserId};
use std::collections::{HashMap, VecDeque};

/// A refused message is sent again after this.
const RETRY_NS: u64 = 200_000_000;

/// One session that takes part.
#[derive(Clone, Debug, Default)]
struct Talker {
    /// 0 before the first `Welcome`.
    user: u64,
    seated: bool,
    /// Indices without an answer, oldest first. The first of them is under way if `asked`: one at a time, so that what
    /// is sent again keeps its place.
    unanswered: VecDeque<u64>,
    asked: bool,
    /// The newest event of its one chat.
    last_seq: u64,
}

/// The flow.
pub(crate) struct Flow<'a> {
    encoder: &'a Encoder,
    /// High bits of every `client_msg_id`.
    run: u64,
    talkers: Vec<Talker>,
    schedule: Option<Schedule>,
    /// (when, who): refused ones.
    retries: VecDeque<(u64, u32)>,
    pub(crate) ledger: Ledger,
    /// From when a message was to be sent to its delivery.
    pub(crate) latency_us: Histogram<u64>,
    /// Events that a session had already, and got again because its mark was older.
    pub(crate) redelivered: u64,
    /// Events whose predecessor never came.
    pub(crate) holes: u64,
    pub(crate) resent: u64,
    pub(crate) refusals: HashMap<ErrorCode, u64>,
}

impl<'a> Flow<'a> {
    /// Sessions below `talkers`, an even number, write to their pairs.
    pub(crate) fn new(encoder: &'a Encoder, run: u64, talkers: u32) -> Self {
        Self {
            encoder,
            run,
            talkers: vec![Talker::default(); talkers as usize],
            schedule: None,
            retries: VecDeque::new(),
            ledger: Ledger::new(talkers),
            latency_us: histogram(),
            redelivered: 0,
            holes: 0,
            resent: 0,
            refusals: HashMap::new(),
        }
    }

    /// Messages are due by this schedule, or none any more.
    pub(crate) fn set_schedule(&mut self, schedule: Option<Schedule>) {
        self.schedule = schedule;
    }

    pub(crate) fn tick(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        while let Some((conn, scheduled_ns)) = self.schedule.as_mut().and_then(|it| it.due(now_ns)) {
            let index = self.ledger.sent(conn, scheduled_ns);
            self.talkers[conn as usize].unanswered.push_back(index);
            self.ask(conn, actions);
        }
        while let Some((_, conn)) = self.retries.front().copied().filter(|(due_ns, _)| *due_ns <= now_ns) {
            self.retries.pop_front();
            self.talkers[conn as usize].asked = false;
            self.ask(conn, actions);
        }
    }

    /// When `tick` has something to do next.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        let retry = self.retries.front().map(|(due_ns, _)| *due_ns);
        retry.into_iter().chain(self.schedule.as_ref().and_then(Schedule::next_at_ns)).min()
    }

    /// Sends the oldest message without an answer, unless it is under way.
    fn ask(&mut self, conn: u32, actions: &mut Vec<Action>) {
        let peer = self.talkers[(conn ^ 1) as usize].user;
        let talker = &mut self.talkers[conn as usize];
        let Some(index) = talker.unanswered.front().filter(|_| talker.seated && !talker.asked) else { return };
        let Some(chat) = ChatId::direct(UserId(talker.user), UserId(peer)).filter(|_| peer != 0) else { return };
        let mut bytes = Vec::new();
        self.encoder.send(chat, ClientMsgId(u128::from(self.run) << 64 | u128::from(*index)), &mut bytes);
        talker.asked = true;
        actions.push(Action::Send { conn, bytes: bytes.into() });
    }

    /// A session is in, for the first time or again.
    pub(crate) fn seated(&mut self, conn: u32, user: UserId, actions: &mut Vec<Action>) {
        let Some(talker) = self.talkers.get_mut(conn as usize) else { return };
        (talker.user, talker.seated) = (user.0, true);
        self.ask(conn, actions);
    }

    /// Its connection is over: what is under way has no answer.
    pub(crate) fn gone(&mut self, conn: u32) {
        let Some(talker) = self.talkers.get_mut(conn as usize) else { return };
        talker.seated = false;
        self.resent += u64::from(talker.asked);
        talker.asked = false;
        self.retries.retain(|(_, retrying)| *retrying != conn);
    }

    fn index(&self, name: ClientMsgId) -> Option<u64> {
        ((name.0 >> 64) as u64 == self.run).then_some(name.0 as u64)
    }

    pub(crate) fn on_sent(&mut self, conn: u32, name: ClientMsgId, seq: u64, actions: &mut Vec<Action>) {
        let Some(index) = self.index(name) else { return };
        self.ledger.acked(conn, index, seq);
        let Some(talker) = self.talkers.get_mut(conn as usize) else { return };
        if talker.unanswered.front() == Some(&index) {
            talker.unanswered.pop_front();
            talker.asked = false;
            self.ask(conn, actions);
        }
    }

    pub(crate) fn on_event(&mut self, conn: u32, name: ClientMsgId, seq: u64, now_ns: u64) {
        let index = self.index(name);
        let Some(talker) = self.talkers.get_mut(conn as usize) else { return };
        if seq <= talker.last_seq {
            self.redelivered += 1;
            return;
        }
        self.holes += seq - talker.last_seq - 1;
        talker.last_seq = seq;
        let Some(index) = index else { return };
        if let Step::First { sent_at_ns, .. } = self.ledger.received(conn, index, seq) {
            self.latency_us.saturating_record(micros(sent_at_ns, now_ns));
        }
    }

    pub(crate) fn on_error(
        &mut self,
        conn: u32,
        code: ErrorCode,
        message: &str,
        name: Option<ClientMsgId>,
        now_ns: u64,
    ) {
        let count = self.refusals.entry(code).or_default();
        *count += 1;
        if *count == 1 {
            eprintln!("refused: {code:?}: {message} (further ones of this kind are only counted)");
        }
        let index = name.and_then(|name| self.index(name));
        let front = self.talkers.get(conn as usize).and_then(|talker| talker.unanswered.front().copied());
        if index.is_some() && index == front {
            self.retries.push_back((now_ns + RETRY_NS, conn));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parley_protocol::ClientFrame;
    use parley_protocol::wire::{Encoding, decode_client_frame};

    const RUN: u64 = 9;

    fn name(index: u64) -> ClientMsgId {
        ClientMsgId(u128::from(RUN) << 64 | u128::from(index))
    }

    /// Indices of the messages among the actions.
    fn sent(actions: &mut Vec<Action>) -> Vec<u64> {
        let index = |action: Action| {
            let Action::Send { bytes, .. } = action else { panic!("{action:?}") };
            let head = if bytes[1] & 0x7f == 126 { 8 } else { 6 };
            let Ok(ClientFrame::Send(send)) = decode_client_frame(Encoding::Rkyv, &bytes[head..]) else { panic!() };
            send.client_msg_id.0 as u64
        };
        actions.drain(..).map(index).collect()
    }

    #[test]
    fn what_has_no_answer_is_sent_again_in_its_order_and_nothing_twice_at_a_time() {
        let encoder = Encoder::new(Encoding::Rkyv, 16, [0; 4]);
        let mut flow = Flow::new(&encoder, RUN, 2);
        let mut actions = Vec::new();
        (0..2).for_each(|conn| flow.seated(conn, UserId(u64::from(conn) + 1), &mut actions));
        // Five messages in five milliseconds, of whichever of the two.
        flow.set_schedule(Some(Schedule::new(0, 5_000_000, 1_000, 2, 3)));
        flow.tick(10_000_000, &mut actions);
        let first = sent(&mut actions);
        assert!(first.len() <= 2, "one at a time each: {first:?}");
        let conn = u32::from(flow.talkers[1].unanswered.len() > flow.talkers[0].unanswered.len());
        let queue: Vec<u64> = flow.talkers[conn as usize].unanswered.iter().copied().collect();
        assert!(queue.len() >= 3);
        flow.on_sent(conn, name(queue[0]), 1, &mut actions);
        assert_eq!(sent(&mut actions), queue[1..2]);
        flow.gone(conn);
        flow.on_sent(conn ^ 1, name(99), 1, &mut actions);
        assert_eq!(sent(&mut actions), [0; 0]);
        flow.seated(conn, UserId(u64::from(conn) + 1), &mut actions);
        assert_eq!((sent(&mut actions), flow.resent), (queue[1..2].to_vec(), 1));
        flow.on_error(conn, ErrorCode::Unavailable, "later", Some(name(queue[1])), 0);
        flow.tick(RETRY_NS - 1, &mut actions);
        assert_eq!(sent(&mut actions), [0; 0]);
        flow.tick(RETRY_NS, &mut actions);
        assert_eq!(sent(&mut actions), queue[1..2]);
    }

    #[test]
    fn what_a_session_has_is_dropped_and_a_hole_is_seen() {
        let encoder = Encoder::new(Encoding::Rkyv, 16, [0; 4]);
        let mut flow = Flow::new(&encoder, RUN, 2);
        let indices: Vec<u64> = (0..3).map(|_| flow.ledger.sent(0, 0)).collect();
        for (index, seq) in [(0, 1), (1, 2), (0, 1), (1, 2)] {
            flow.on_event(1, name(indices[index]), seq, 1_000);
        }
        assert_eq!((flow.redelivered, flow.holes, flow.ledger.counts().delivered), (2, 0, 2));
        flow.on_event(1, name(indices[2]), 5, 1_000);
        assert_eq!((flow.holes, flow.ledger.counts().duplicated), (2, 0));
    }
}
