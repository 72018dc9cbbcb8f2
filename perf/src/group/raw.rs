//! The generator's side of the raw fan-out: triggers by the same pace, and each frame compared byte by byte.

use super::measured::Measured;
use super::pace::Pace;
use crate::baseline_fanout::{Shape, frame};
use crate::net::Closed;
use crate::rings::{Action, Client};
use std::collections::VecDeque;
use std::rc::Rc;

/// Triggers of one turn at most.
const SENDS_PER_TURN_MAX: usize = 4_096;

/// A trigger that did not reach everybody yet.
#[derive(Debug)]
struct Trigger {
    sent_at_ns: u64,
    members: u32,
}

/// All raw connections.
pub(super) struct RawCrowd {
    trigger: Rc<[u8]>,
    frame: Vec<u8>,
    /// Bytes that each connection got.
    got: Vec<u64>,
    under_way: VecDeque<Trigger>,
    /// The number of the first of these.
    first: u64,
    pub(super) open: u32,
    pub(super) pace: Option<Pace>,
    pub(super) measured: Measured,
    pub(super) failure: Option<String>,
}

impl RawCrowd {
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            trigger: vec![b'.'; shape.trigger_bytes].into(),
            frame: frame(shape.frame_bytes),
            got: vec![0; shape.connections as usize],
            under_way: VecDeque::new(),
            first: 0,
            open: 0,
            pace: None,
            measured: Measured::never(shape.connections),
            failure: None,
        }
    }

    pub(super) fn under_way(&self) -> usize {
        self.under_way.len()
    }

    pub(super) fn tick(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        for _ in 0..SENDS_PER_TURN_MAX {
            let Some((conn, sent_at_ns)) = self.pace.as_mut().and_then(|pace| pace.due(now_ns)) else { return };
            self.measured.sent(sent_at_ns, now_ns);
            self.under_way.push_back(Trigger { sent_at_ns, members: 0 });
            actions.push(Action::Send { conn, bytes: self.trigger.clone() });
        }
    }

    /// A connection has the frame with this number whole.
    fn on_frame(&mut self, number: u64, now_ns: u64) -> Option<()> {
        let trigger = self.under_way.get_mut(number.checked_sub(self.first)? as usize)?;
        trigger.members += 1;
        self.measured.reached(trigger.members, trigger.sent_at_ns, now_ns);
        if trigger.members as usize == self.got.len() {
            self.pace.iter_mut().for_each(Pace::complete);
        }
        while self.under_way.front().is_some_and(|trigger| trigger.members as usize == self.got.len()) {
            self.under_way.pop_front();
            self.first += 1;
        }
        Some(())
    }

    fn fail(&mut self, conn: u32, why: &str) {
        self.failure.get_or_insert(format!("raw connection {conn}: {why}"));
    }
}

impl Client for RawCrowd {
    fn connected(&mut self, _conn: u32, _now_ns: u64, _actions: &mut Vec<Action>) {
        self.open += 1;
    }

    fn data(&mut self, conn: u32, mut data: &[u8], now_ns: u64, _actions: &mut Vec<Action>) {
        let size = self.frame.len();
        while !data.is_empty() {
            let got = self.got[conn as usize];
            let at = (got % size as u64) as usize;
            let (piece, rest) = data.split_at(data.len().min(size - at));
            if piece != &self.frame[at..at + piece.len()] {
                return self.fail(conn, "what came is not what was to be sent");
            }
            self.got[conn as usize] += piece.len() as u64;
            if at + piece.len() == size && self.on_frame(got / size as u64, now_ns).is_none() {
                return self.fail(conn, "more came than was triggered");
            }
            data = rest;
        }
    }

    fn ended(&mut self, conn: u32, why: Closed) {
        self.fail(conn, &why.to_string());
    }

    fn vacant(&mut self, _conn: u32, _now_ns: u64) {}
}
