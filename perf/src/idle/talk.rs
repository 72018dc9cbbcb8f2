//! The messages that flow among the sessions: who sends when, and the ledger of what became of each.

use super::session::Sessions;
use crate::frames::Encoder;
use crate::ledger::{Ledger, Step};
use crate::report::Measures;
use crate::rings::Action;
use crate::schedule::Schedule;
use parley_protocol::{ClientMsgId, ErrorCode};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

/// Messages written in one turn at most, so that reading goes on when the generator is late.
const SENDS_PER_TURN_MAX: usize = 1_024;
/// A delivered mark waits so long for others of its chat.
const MARK_WAIT_NS: u64 = 1_000_000_000;

/// The talk.
pub(crate) struct Talk<'a> {
    encoder: &'a Encoder,
    /// High bits of every `client_msg_id`: other runs' messages are told apart.
    run: u64,
    /// `None` before it begins, and once it has ended.
    schedule: Option<Schedule>,
    pub(crate) ledger: Ledger,
    pub(crate) measures: Measures,
    /// (when, who): marks that are due, in order.
    marks_due: VecDeque<(u64, u32)>,
    /// The newest event of each that a mark is due for.
    newest: HashMap<u32, u64>,
    pub(crate) marks_sent: u64,
    refusals: HashMap<ErrorCode, u64>,
}

impl<'a> Talk<'a> {
    /// Sessions below `talkers` may send; each to its peer.
    pub(crate) fn new(encoder: &'a Encoder, run: u64, talkers: u32, measures: Measures) -> Self {
        Self {
            encoder,
            run,
            schedule: None,
            ledger: Ledger::new(talkers),
            measures,
            marks_due: VecDeque::new(),
            newest: HashMap::new(),
            marks_sent: 0,
            refusals: HashMap::new(),
        }
    }

    /// Messages go out by this schedule, or none any more; answers and marks go on.
    pub(crate) fn set_schedule(&mut self, schedule: Option<Schedule>) {
        self.schedule = schedule;
    }

    /// Queues what is due.
    pub(crate) fn tick(&mut self, now_ns: u64, sessions: &Sessions, actions: &mut Vec<Action>) {
        for _ in 0..SENDS_PER_TURN_MAX {
            let Some((sender, scheduled_ns)) = self.schedule.as_mut().and_then(|it| it.due(now_ns)) else { break };
            let index = self.ledger.sent(sender, scheduled_ns);
            self.measures.sent(scheduled_ns, now_ns);
            // A message that a session owes which has ended counts as offered and stays unanswered.
            let Some(chat) = sessions.chat(sender).filter(|_| sessions.is_seated(sender)) else { continue };
            let mut bytes = Vec::new();
            self.encoder.send(chat, ClientMsgId(u128::from(self.run) << 64 | u128::from(index)), &mut bytes);
            actions.push(Action::Send { conn: sender, bytes: bytes.into() });
        }
        while let Some((_, conn)) = self.marks_due.front().copied().filter(|(due_ns, _)| *due_ns <= now_ns) {
            self.marks_due.pop_front();
            if let Some(seq) = self.newest.remove(&conn)
                && let Some(chat) = sessions.chat(conn).filter(|_| sessions.is_seated(conn))
            {
                let mut bytes = Vec::new();
                self.encoder.delivered(chat, seq, &mut bytes);
                actions.push(Action::Send { conn, bytes: Rc::from(bytes) });
                self.marks_sent += 1;
            }
        }
    }

    /// When `tick` has something to do next.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        let mark = self.marks_due.front().map(|(due_ns, _)| *due_ns);
        let send = self.schedule.as_ref().and_then(Schedule::next_at_ns);
        mark.into_iter().chain(send).min()
    }

    fn index(&self, name: ClientMsgId) -> Option<u64> {
        ((name.0 >> 64) as u64 == self.run).then_some(name.0 as u64)
    }

    pub(crate) fn on_sent(&mut self, conn: u32, name: ClientMsgId, seq: u64, now_ns: u64) {
        let Some(index) = self.index(name) else { return };
        if let Step::First { sent_at_ns, complete, .. } = self.ledger.acked(conn, index, seq) {
            self.measures.acked(sent_at_ns, now_ns);
            if complete {
                self.measures.complete(now_ns);
            }
        }
    }

    pub(crate) fn on_event(&mut self, conn: u32, name: ClientMsgId, seq: u64, now_ns: u64) {
        let Some(index) = self.index(name) else { return };
        let Step::First { sent_at_ns, complete, .. } = self.ledger.received(conn, index, seq) else { return };
        self.measures.delivered(sent_at_ns, now_ns);
        if complete {
            self.measures.complete(now_ns);
        }
        let newest = self.newest.entry(conn).or_default();
        if *newest == 0 {
            self.marks_due.push_back((now_ns + MARK_WAIT_NS, conn));
        }
        *newest = (*newest).max(seq);
    }

    pub(crate) fn on_error(&mut self, conn: u32, code: ErrorCode, message: &str, name: Option<ClientMsgId>) {
        let count = self.refusals.entry(code).or_default();
        *count += 1;
        if *count == 1 {
            eprintln!("refused: {code:?}: {message} (further ones of this kind are only counted)");
        }
        if let Some(index) = name.and_then(|name| self.index(name)) {
            self.ledger.refused(conn, index);
        }
    }
}
