//! Inboxes: entries are written in the order of their numbers, one write of an inbox at a time.

use super::{Engine, Owner};
use crate::cql::rows::{INBOX_BUCKET, INBOX_ROWS_MAX, Partition, Row, inbox_bucket};
use crate::store::EntryRow;
use parley_protocol::{ChatId, UserId};
use std::collections::VecDeque;

/// What an entry waits for, besides those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    Open,
    /// A write of a list of work.
    List(u64),
    /// The events of its append.
    Event(ChatId),
}

/// What an entry is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// An append of the chat.
    Append(ChatId),
    /// Marks of one who joined with an append of the chat.
    Joined(ChatId),
    /// Marks in the chat.
    Mark(ChatId),
}

#[derive(Debug)]
pub(super) struct EntryJob {
    pub(super) no: u64,
    pub(super) inbox_seq: u64,
    pub(super) row: EntryRow,
    pub(super) gate: Gate,
    pub(super) of: Of,
}

/// The entries of an inbox that do not stand.
#[derive(Debug, Default)]
pub(super) struct InboxLane {
    pub(super) jobs: VecDeque<EntryJob>,
    /// Of the first, so many are under way.
    pub(super) sent: usize,
    /// `inbox_state` is under way.
    pub(super) state_sent: bool,
    /// It says that entries may be in this bucket.
    state: u32,
}

impl InboxLane {
    pub(super) fn push(&mut self, job: EntryJob) {
        self.jobs.push_back(job);
    }

    /// How many entries can be written together now.
    fn writable(&self) -> usize {
        let Some(first) = self.jobs.front() else { return 0 };
        let bucket = inbox_bucket(first.inbox_seq);
        let fits = |job: &&EntryJob| job.gate == Gate::Open && inbox_bucket(job.inbox_seq) == bucket;
        self.jobs.iter().take(INBOX_ROWS_MAX).take_while(fits).count()
    }
}

impl Engine {
    /// Writes the next entries of an inbox, if none are under way.
    pub(super) fn write_entries(&mut self, user_id: UserId) {
        let Some(lane) = self.inboxes.get_mut(&user_id) else { return };
        if lane.sent > 0 || lane.state_sent {
            return;
        }
        let writable = lane.writable();
        if writable == 0 {
            if lane.jobs.is_empty() {
                self.inboxes.remove(&user_id);
            }
            return;
        }
        let first = lane.jobs[0].inbox_seq;
        let bucket = inbox_bucket(first);
        let epoch = self.epoch;
        if bucket > 0 && first % INBOX_BUCKET == 1 && lane.state != bucket {
            // Readers look for the head where this row says: it is there before an entry is.
            lane.state_sent = true;
            let row = Row::InboxState { bucket, epoch };
            return self.put(Partition::InboxState { user_id }, vec![row], Owner::InboxState(user_id));
        }
        lane.sent = writable;
        let jobs = lane.jobs.iter().take(writable);
        let rows = jobs.map(|job| Row::Entry { inbox_seq: job.inbox_seq, row: job.row, epoch }).collect();
        self.put(Partition::Inbox { user_id, bucket }, rows, Owner::Inbox(user_id));
    }

    pub(super) fn inbox_state_stands(&mut self, user_id: UserId) {
        if let Some(lane) = self.inboxes.get_mut(&user_id) {
            lane.state_sent = false;
            lane.state = lane.jobs.front().map_or(0, |job| inbox_bucket(job.inbox_seq));
            self.write_entries(user_id);
        }
    }

    pub(super) fn entries_stand(&mut self, user_id: UserId) {
        let Some(lane) = self.inboxes.get_mut(&user_id) else { return };
        let sent = std::mem::take(&mut lane.sent);
        let jobs: Vec<_> = lane.jobs.drain(..sent).collect();
        self.write_entries(user_id);
        for job in jobs {
            match job.of {
                Of::Append(chat_id) => self.append_part_stands(chat_id, job.no),
                Of::Joined(chat_id) => {
                    self.mark_entered(chat_id, user_id, job.inbox_seq);
                    self.append_part_stands(chat_id, job.no);
                }
                Of::Mark(chat_id) => self.mark_entered(chat_id, user_id, job.inbox_seq),
            }
        }
    }

    /// The event of an entry stands.
    pub(super) fn open_entry(&mut self, user_id: UserId, inbox_seq: u64, chat_id: ChatId) {
        let Some(lane) = self.inboxes.get_mut(&user_id) else { return };
        let from = lane.jobs.partition_point(|job| job.inbox_seq < inbox_seq);
        for job in lane.jobs.range_mut(from..).take_while(|job| job.inbox_seq == inbox_seq) {
            if job.gate == Gate::Event(chat_id) {
                job.gate = Gate::Open;
            }
        }
        self.write_entries(user_id);
    }

    /// A list that names a user stands.
    pub(super) fn open_entries(&mut self, user_id: UserId, list: u64) {
        let Some(lane) = self.inboxes.get_mut(&user_id) else { return };
        lane.jobs.iter_mut().filter(|job| job.gate == Gate::List(list)).for_each(|job| job.gate = Gate::Open);
        self.write_entries(user_id);
    }
}
