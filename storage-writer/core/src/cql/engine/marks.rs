//! Marks of members: after the entry of own state that tells of them, those of one member in the order in which they
//! were submitted, one write of a chat at a time.

use super::{Engine, Owner};
use crate::cql::rows::{Partition, Row};
use crate::store::MarkRow;
use parley_protocol::{ChatId, UserId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Marks in one write.
const MARKS_ROWS_MAX: usize = 100;

#[derive(Debug)]
pub(super) struct MarkJob {
    pub(super) no: u64,
    pub(super) user_id: UserId,
    pub(super) row: MarkRow,
    /// The write of a list of work that it waits for.
    pub(super) list: Option<u64>,
    /// The entry of own state that it waits for.
    pub(super) entry: Option<u64>,
    /// It is part of an append.
    pub(super) joined: bool,
    /// It waits for the events of that.
    pub(super) event: bool,
}

/// The marks of a chat that do not stand.
#[derive(Debug, Default)]
pub(super) struct MarkLane {
    pub(super) jobs: VecDeque<MarkJob>,
    /// Group, and whether part of its append, of each mark that is under way.
    pub(super) sent: Vec<(u64, bool)>,
}

impl MarkLane {
    pub(super) fn push(&mut self, job: MarkJob) {
        self.jobs.push_back(job);
    }

    pub(super) fn events_stand(&mut self, no: u64) {
        self.jobs.iter_mut().filter(|job| job.joined && job.no == no).for_each(|job| job.event = false);
    }

    pub(super) fn list_stands(&mut self, list: u64) {
        self.jobs.iter_mut().filter(|job| job.list == Some(list)).for_each(|job| job.list = None);
    }

    /// Takes what can be written; of several marks of one member the last holds all of them.
    fn take(&mut self) -> BTreeMap<UserId, MarkRow> {
        let mut rows = BTreeMap::new();
        let mut blocked = BTreeSet::new();
        let mut kept = VecDeque::new();
        for job in self.jobs.drain(..) {
            let full = rows.len() >= MARKS_ROWS_MAX && !rows.contains_key(&job.user_id);
            if job.list.is_some() || job.entry.is_some() || job.event || full || blocked.contains(&job.user_id) {
                blocked.insert(job.user_id);
                kept.push_back(job);
            } else {
                self.sent.push((job.no, job.joined));
                rows.insert(job.user_id, job.row);
            }
        }
        self.jobs = kept;
        rows
    }
}

impl Engine {
    /// Writes the marks of a chat that can be, if none are under way.
    pub(super) fn write_marks(&mut self, chat_id: ChatId) {
        let Some(lane) = self.marks.get_mut(&chat_id) else { return };
        if !lane.sent.is_empty() {
            return;
        }
        let rows = lane.take();
        if !rows.is_empty() {
            let rows = rows.into_iter().map(|(user_id, row)| Row::Mark { user_id, row }).collect();
            self.put(Partition::Marks { chat_id }, rows, Owner::Marks(chat_id));
        } else if lane.jobs.is_empty() {
            self.marks.remove(&chat_id);
        }
    }

    /// The entry of own state of a mark stands.
    pub(super) fn mark_entered(&mut self, chat_id: ChatId, user_id: UserId, inbox_seq: u64) {
        let Some(lane) = self.marks.get_mut(&chat_id) else { return };
        let waits = |job: &&mut MarkJob| job.user_id == user_id && job.entry == Some(inbox_seq);
        lane.jobs.iter_mut().filter(waits).for_each(|job| job.entry = None);
        self.write_marks(chat_id);
    }

    pub(super) fn marks_stand(&mut self, chat_id: ChatId) {
        let Some(lane) = self.marks.get_mut(&chat_id) else { return };
        let sent = std::mem::take(&mut lane.sent);
        self.write_marks(chat_id);
        for (no, joined) in sent {
            if joined {
                self.append_part_stands(chat_id, no);
            } else {
                self.part_done(no);
            }
        }
    }
}
