//! Appends of chats: one of a chat is in flight at a time, until everything of it is derived.

use super::inboxes::Gate;
use super::{Engine, Owner};
use crate::cql::rows::{ChatStateRow, LEVEL_CREATIONS, Partition, Row, command_bucket, command_level, seq_bucket};
use crate::planted::{self, Bug};
use crate::store::{Checkpoint, CommandRow, MemberRow};
use parley_protocol::{ChatId, ChatKind, UserId};
use std::collections::{BTreeMap, VecDeque};

/// Members in one write.
const MEMBERS_ROWS_MAX: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// For its turn, or for its list of work.
    Waiting,
    /// The events are under way.
    Events,
    /// The events stand.
    Derived,
}

#[derive(Debug)]
pub(super) struct AppendJob {
    pub(super) no: u64,
    list: Option<u64>,
    pub(super) stage: Stage,
    pub(super) first_seq: u64,
    rows: Vec<Row>,
    /// Those that wait for the events.
    pub(super) entries: Vec<(UserId, u64)>,
    commands: Vec<CommandRow>,
    members: Vec<(UserId, MemberRow)>,
    checkpoint: Option<Checkpoint>,
    present: u32,
    /// One for the events, and one for everything else that does not stand.
    pub(super) left: usize,
}

impl AppendJob {
    pub(super) fn new(
        no: u64,
        list: Option<u64>,
        first_seq: u64,
        rows: Vec<Row>,
        entries: Vec<(UserId, u64)>,
        left: usize,
    ) -> AppendJob {
        AppendJob {
            no,
            list,
            stage: Stage::Waiting,
            first_seq,
            rows,
            entries,
            commands: Vec::new(),
            members: Vec::new(),
            checkpoint: None,
            present: 0,
            left,
        }
    }

    pub(super) fn with_derived(
        self,
        commands: Vec<CommandRow>,
        members: Vec<(UserId, MemberRow)>,
        checkpoint: Option<Checkpoint>,
        present: u32,
    ) -> AppendJob {
        AppendJob { commands, members, checkpoint, present, ..self }
    }
}

/// The appends of a chat, the first of them in flight.
#[derive(Debug, Default)]
pub(super) struct ChatLane {
    pub(super) jobs: VecDeque<AppendJob>,
}

impl ChatLane {
    pub(super) fn push(&mut self, job: AppendJob) {
        self.jobs.push_back(job);
    }
}

/// What the entries of an append wait for.
pub(super) fn gate_of_entries(chat_id: ChatId) -> Gate {
    if planted::has(Bug::InboxBeforeEvent) { Gate::Open } else { Gate::Event(chat_id) }
}

impl Engine {
    /// Sends the events of a chat's first append, if its list of work stands.
    pub(super) fn start_append(&mut self, chat_id: ChatId) {
        let Some(job) = self.chats.get_mut(&chat_id).and_then(|lane| lane.jobs.front_mut()) else { return };
        if job.stage != Stage::Waiting || job.list.is_some_and(|list| self.work.is_open(list)) {
            return;
        }
        job.stage = Stage::Events;
        let rows = std::mem::take(&mut job.rows);
        let bucket = seq_bucket(job.first_seq);
        self.put(Partition::Events { chat_id, bucket }, rows, Owner::Events(chat_id));
    }

    /// The truth stands: everything that follows from it may be written.
    pub(super) fn events_stand(&mut self, chat_id: ChatId) {
        let Some(job) = self.chats.get_mut(&chat_id).and_then(|lane| lane.jobs.front_mut()) else { return };
        job.stage = Stage::Derived;
        let no = job.no;
        let entries = std::mem::take(&mut job.entries);
        let commands = std::mem::take(&mut job.commands);
        let members = std::mem::take(&mut job.members);
        let mut writes = commands_by_partition(chat_id, commands);
        for chunk in members.chunks(MEMBERS_ROWS_MAX) {
            let member = |(user_id, row): &(UserId, MemberRow)| Row::Member { user_id: *user_id, row: row.clone() };
            writes.push((Partition::Members { chat_id }, chunk.iter().map(member).collect()));
        }
        for (user_id, row) in members {
            writes.push((Partition::Memberships { user_id }, vec![Row::Membership { chat_id, row }]));
        }
        // The token of the events is taken over by the checkpoint, or is the last thing to go.
        job.left += writes.len();
        for (partition, rows) in writes {
            self.put(partition, rows, Owner::Derived(chat_id));
        }
        for (user_id, inbox_seq) in entries {
            self.open_entry(user_id, inbox_seq, chat_id);
        }
        if let Some(lane) = self.marks.get_mut(&chat_id) {
            lane.events_stand(no);
            self.write_marks(chat_id);
        }
        self.write_checkpoint(chat_id);
    }

    /// Writes the checkpoint of the append in flight into the slot of the older one, which may have to be found first.
    fn write_checkpoint(&mut self, chat_id: ChatId) {
        let Some(job) = self.chats.get_mut(&chat_id).and_then(|lane| lane.jobs.front_mut()) else { return };
        let (no, first_seq, present) = (job.no, job.first_seq, job.present);
        let Some(checkpoint) = job.checkpoint.take() else { return self.append_part_stands(chat_id, no) };
        let fact = self.facts.of(chat_id);
        let given_once = matches!(chat_id.kind(), Some(ChatKind::Group(_) | ChatKind::Channel(..)));
        if first_seq == 1 && fact.slots.is_none() && given_once {
            // Its id was never given before.
            fact.slots = Some([None, None]);
        }
        let Some(slots) = &mut fact.slots else {
            let job = self.chats.get_mut(&chat_id).and_then(|lane| lane.jobs.front_mut()).expect("it was there");
            job.checkpoint = Some(checkpoint);
            return self.read(crate::cql::rows::Read::All(Partition::ChatState { chat_id }), Owner::Slots(chat_id));
        };
        let slot = match slots {
            [None, _] => 0,
            [_, None] => 1,
            [Some(first), Some(second)] => usize::from(*first > *second),
        };
        slots[slot] = Some(checkpoint.seq);
        let row = ChatStateRow { slot: slot as u8, epoch: self.epoch, checkpoint, present };
        self.put(Partition::ChatState { chat_id }, vec![Row::ChatState(row)], Owner::Derived(chat_id));
    }

    pub(super) fn slots_read(&mut self, chat_id: ChatId, rows: &[Row]) {
        self.facts.of(chat_id).slots = Some(slots_of(rows));
        self.write_checkpoint(chat_id);
    }

    pub(super) fn derived_stands(&mut self, chat_id: ChatId) {
        let no = self.chats.get(&chat_id).and_then(|lane| lane.jobs.front()).map(|job| job.no);
        if let Some(no) = no {
            self.append_part_stands(chat_id, no);
        }
    }

    /// Something of an append stands.
    pub(super) fn append_part_stands(&mut self, chat_id: ChatId, no: u64) {
        let Some(lane) = self.chats.get_mut(&chat_id) else { return };
        let Some(job) = lane.jobs.iter_mut().find(|job| job.no == no) else { return };
        job.left -= 1;
        if job.left > 0 {
            return;
        }
        lane.jobs.pop_front();
        if lane.jobs.is_empty() {
            self.chats.remove(&chat_id);
        } else {
            self.start_append(chat_id);
        }
        self.part_done(no);
    }
}

/// The `seq` of the checkpoint in each slot.
pub(super) fn slots_of(rows: &[Row]) -> [Option<u64>; 2] {
    let mut slots = [None, None];
    for row in rows {
        if let Row::ChatState(row) = row
            && let Some(slot) = slots.get_mut(usize::from(row.slot))
        {
            *slot = Some(row.checkpoint.seq);
        }
    }
    slots
}

fn commands_by_partition(chat_id: ChatId, commands: Vec<CommandRow>) -> Vec<(Partition, Vec<Row>)> {
    let mut writes: BTreeMap<Partition, Vec<Row>> = BTreeMap::new();
    for row in commands {
        let partition = if row.name.chat_id == chat_id {
            let level = command_level(row.seq);
            let bucket = command_bucket(level, row.name.client_msg_id);
            Partition::Commands { scope: chat_id.0, level, bucket }
        } else {
            let bucket = command_bucket(LEVEL_CREATIONS, row.name.client_msg_id);
            Partition::Commands { scope: u128::from(row.name.sender.0), level: LEVEL_CREATIONS, bucket }
        };
        writes.entry(partition).or_default().push(Row::Command(row));
    }
    writes.into_iter().collect()
}
