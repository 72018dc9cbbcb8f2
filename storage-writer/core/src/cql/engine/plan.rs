//! Groups: what each becomes, and when it is complete. The order within is kept by the lanes: `chats`, `inboxes`, `marks`.

use super::chats::AppendJob;
use super::flight::Keys;
use super::inboxes::{EntryJob, Gate, Of};
use super::marks::MarkJob;
use super::work::Waiter;
use super::{Engine, Owner};
use crate::cql::redo::{Redo, RedoCommand, RedoEntry, RedoMark, RedoMember, events_hash};
use crate::cql::rows::{Change, EventRow, Partition, Row, WorkKey};
use crate::store::{
    Append, EntryRow, Group, MarkWrite, OpId, Outcome, StoreRequest, StoreResult, UserRow, identity_key,
};
use hashbrown::{HashMap, HashSet};
use parley_protocol::{ChatId, UserId};
use std::collections::{BTreeMap, VecDeque};

/// A group that is not complete.
#[derive(Debug, Default)]
pub(super) struct Flight {
    /// Who hears of it; none while it was told to be unknown and did not come again, and for the recovery.
    pub(super) op: Option<OpId>,
    unknown_ms: u64,
    /// Appends, marks, users, unique keys and records that do not stand.
    pub(super) left: usize,
    pub(super) keys: Keys,
    /// Loads of what it touches.
    pub(super) loads: Vec<(OpId, StoreRequest)>,
}

impl Flight {
    /// When the writer is told that nothing is known of it.
    pub(super) fn unknown_ms(&self) -> Option<u64> {
        self.op.map(|_| self.unknown_ms)
    }

    pub(super) fn tell_unknown(&mut self, now_ms: u64) -> Option<OpId> {
        self.op.take_if(|_| now_ms >= self.unknown_ms)
    }
}

/// Rows of a user and the keys that name it, in order: each with its group and the list of work that it waits for.
#[derive(Debug, Default)]
pub(super) struct AccountLane {
    jobs: VecDeque<(u64, Option<u64>, Partition, Row)>,
    /// The first is under way.
    sent: bool,
}

/// A group, taken apart.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) no: u64,
    pub(super) appends: Vec<PlannedAppend>,
    /// Marks that follow from no append.
    pub(super) marks: Vec<MarkWrite>,
    pub(super) users: Vec<UserRow>,
    pub(super) uniques: Vec<(String, u128)>,
    /// Rows that nothing waits for but the group.
    pub(super) parts: Vec<(Partition, Row)>,
    /// Chats and users are put into a list of work; not those that the recovery found in one.
    pub(super) listed: bool,
}

/// An append with its events as rows, and what follows from them.
#[derive(Debug)]
pub(super) struct PlannedAppend {
    pub(super) append: Append,
    /// Marks of who joined: they follow from it, and are in its `redo`.
    pub(super) joined: Vec<MarkWrite>,
    /// Marks of these are not written; their own entries are.
    pub(super) marked: HashSet<UserId>,
    pub(super) derived_through: u64,
    /// Entries of `append` and `joined` that stand already.
    pub(super) entered: HashSet<(UserId, u64)>,
    /// The checkpoint is not written again.
    pub(super) checkpoint_stands: bool,
}

impl PlannedAppend {
    fn redo(&self) -> Redo {
        let append = &self.append;
        let entry = |entry: &crate::store::Entry| match entry.row {
            EntryRow::Event { seq, .. } => Some(RedoEntry { user_id: entry.user_id, inbox_seq: entry.inbox_seq, seq }),
            EntryRow::Own { .. } => None,
        };
        Redo {
            events: events_hash(append.events.iter().map(|event| event.message_id)),
            entries: append.entries.iter().filter_map(entry).collect(),
            commands: append
                .commands
                .iter()
                .map(|row| RedoCommand { seq: row.seq, creation: row.name.chat_id != append.chat_id })
                .collect(),
            members: append
                .members
                .iter()
                .map(|(user_id, row)| RedoMember { user_id: *user_id, row: row.clone() })
                .collect(),
            checkpoint: append.checkpoint.clone(),
            present: append.present,
            joined: self
                .joined
                .iter()
                .map(|mark| RedoMark { user_id: mark.user_id, row: mark.row, inbox_seq: mark.inbox_seq })
                .collect(),
        }
    }

    fn rows(&mut self, epoch: u64) -> Vec<Row> {
        let redo = self.redo().encode();
        let events = std::mem::take(&mut self.append.events);
        let derived_through = self.derived_through;
        let mut rows: Vec<_> =
            events.into_iter().map(|event| EventRow { event, epoch, derived_through, redo: Vec::new() }).collect();
        if let Some(last) = rows.last_mut() {
            last.redo = redo;
        }
        rows.into_iter().map(Row::Event).collect()
    }
}

impl Engine {
    pub(super) fn commit(&mut self, op: OpId, group: Group) {
        let unknown_ms = self.now_ms.saturating_add(self.options.unknown_after_ms);
        if group.writer_epoch < self.epoch {
            return self.answer(op, StoreResult::Committed(Outcome::Fenced));
        }
        if group.no <= self.complete_to || self.complete.contains(&group.no) {
            return self.answer(op, StoreResult::Committed(Outcome::Durable));
        }
        if let Some(flight) = self.flights.get_mut(&group.no) {
            // It comes again, unchanged, and goes on where it was.
            (flight.op, flight.unknown_ms) = (Some(op), unknown_ms);
            return;
        }
        self.flights.insert(group.no, Flight { op: Some(op), unknown_ms, ..Flight::default() });
        self.work.rotate_if_due(self.now_ms, self.submitted_no);
        self.outlive_lists();
        self.submitted_no = self.submitted_no.max(group.no);
        let plan = self.take_apart(group);
        self.plan(plan);
    }

    /// What follows from an append is put to it. `opened` needs no row: who restarts has granted a new home epoch
    /// before it takes a command, and that grant, in the records, is a barrier for every partition.
    fn take_apart(&mut self, group: Group) -> Plan {
        let Group { no, meta, appends, marks, users, uniques, .. } = group;
        let mut parts = Vec::new();
        if let Some(meta) = meta {
            let row = Row::Meta {
                home_epoch: meta.home_epoch,
                gateway: meta.gateway,
                ids_reserved_until_ms: meta.ids_reserved_until_ms,
            };
            parts.push((Partition::Meta { set: self.options.set }, row));
            self.meta = meta;
        }
        let mut member_of: HashMap<(ChatId, UserId), usize> = HashMap::new();
        let mut planned = Vec::with_capacity(appends.len());
        for (at, append) in appends.into_iter().enumerate() {
            member_of.extend(append.members.iter().map(|(user_id, _)| ((append.chat_id, *user_id), at)));
            let derived_through = append.events.first().map_or(0, |event| event.seq - 1);
            let (joined, marked, entered) = Default::default();
            planned.push(PlannedAppend { append, joined, marked, derived_through, entered, checkpoint_stands: false });
        }
        let mut own = Vec::with_capacity(marks.len());
        for mark in marks {
            match member_of.get(&(mark.chat_id, mark.user_id)) {
                Some(at) => planned[*at].joined.push(mark),
                None => own.push(mark),
            }
        }
        Plan { no, appends: planned, marks: own, users, uniques, parts, listed: true }
    }

    /// Puts a group into the lanes; its flight is there already.
    pub(super) fn plan(&mut self, mut plan: Plan) {
        let no = plan.no;
        self.enter_keys(&plan);
        let lists = self.list_work(&plan);
        let accounts = account_steps(&plan.users, std::mem::take(&mut plan.uniques), &mut plan.parts);
        let flight = self.flights.get_mut(&no).expect("the caller put it there");
        flight.left = plan.appends.len() + plan.marks.len() + plan.parts.len() + accounts.len();
        if flight.left == 0 {
            return self.group_complete(no);
        }
        let mut entries = self.entries_of(&plan, &lists);
        entries.sort_by_key(|(user_id, entry)| (*user_id, entry.inbox_seq));
        let (mut users, mut chats, mut marked) = (Vec::new(), Vec::new(), Vec::new());
        for (user_id, entry) in entries {
            if users.last() != Some(&user_id) {
                users.push(user_id);
            }
            self.inboxes.entry(user_id).or_default().push(entry);
        }
        for write in std::mem::take(&mut plan.marks) {
            marked.push(write.chat_id);
            let list = lists.get(&WorkKey::Mark(write.chat_id, write.user_id)).copied();
            let MarkWrite { user_id, row, inbox_seq: entry, .. } = write;
            let job = MarkJob { no, user_id, row, list, entry, joined: false, event: false };
            self.marks.entry(write.chat_id).or_default().push(job);
        }
        for append in std::mem::take(&mut plan.appends) {
            let chat_id = append.append.chat_id;
            chats.push(chat_id);
            self.push_append(no, append, lists.get(&WorkKey::Chat(chat_id)).copied());
        }
        chats.into_iter().for_each(|chat_id| self.start_append(chat_id));
        users.into_iter().for_each(|user_id| self.write_entries(user_id));
        marked.into_iter().for_each(|chat_id| self.write_marks(chat_id));
        for (partition, row) in plan.parts {
            self.put(partition, vec![row], Owner::Part(no));
        }
        for (user_id, partition, row) in accounts {
            let list = lists.get(&WorkKey::User(user_id)).copied();
            self.accounts.entry(user_id).or_default().jobs.push_back((no, list, partition, row));
            self.write_account(user_id);
        }
    }

    /// Writes the next row of a user: each when the one before stands, also across groups.
    fn write_account(&mut self, user_id: UserId) {
        let Some(lane) = self.accounts.get_mut(&user_id).filter(|lane| !lane.sent) else { return };
        match lane.jobs.front() {
            Some((_, Some(list), ..)) if self.work.is_open(*list) => {}
            Some((.., partition, row)) => {
                lane.sent = true;
                let (partition, row) = (partition.clone(), row.clone());
                self.put(partition, vec![row], Owner::Account(user_id));
            }
            None => drop(self.accounts.remove(&user_id)),
        }
    }

    pub(super) fn account_stands(&mut self, user_id: UserId) {
        let Some(lane) = self.accounts.get_mut(&user_id) else { return };
        lane.sent = false;
        let Some((no, ..)) = lane.jobs.pop_front() else { return };
        self.write_account(user_id);
        self.part_done(no);
    }

    /// Readers, and loads, know of the group from now on.
    fn enter_keys(&mut self, plan: &Plan) {
        let no = plan.no;
        let mut keys = Keys::default();
        let mut users: Vec<(UserId, u64)> = Vec::new();
        for planned in &plan.appends {
            let append = &planned.append;
            keys.chats.push(append.chat_id);
            if append.chat_id.is_channel() {
                keys.members.extend(append.members.iter().map(|(user_id, _)| (append.chat_id, *user_id)));
            }
            keys.names.extend(append.commands.iter().map(|row| row.name));
            users.extend(append.entries.iter().map(|entry| (entry.user_id, entry.inbox_seq)));
            users.extend(planned.joined.iter().filter_map(|mark| Some((mark.user_id, mark.inbox_seq?))));
            if let Some(last) = append.events.last() {
                self.facts.of(append.chat_id).head = Some(last.seq);
            }
        }
        users.extend(plan.marks.iter().filter_map(|mark| Some((mark.user_id, mark.inbox_seq?))));
        users.sort_unstable();
        if plan.listed {
            let mut shared = self.in_flight.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            for planned in &plan.appends {
                let first = planned.append.events.first().map_or(u64::MAX, |event| event.seq);
                shared.enter_chat(no, planned.append.chat_id, first);
            }
            users.iter().for_each(|(user_id, inbox_seq)| shared.enter_user(no, *user_id, *inbox_seq));
        }
        users.dedup_by_key(|(user_id, _)| *user_id);
        keys.users = users.into_iter().map(|(user_id, _)| user_id).collect();
        keys.users.extend(plan.users.iter().map(|user| user.user_id));
        keys.chats.extend(plan.marks.iter().map(|mark| mark.chat_id));
        let of_channels = plan.marks.iter().filter(|mark| mark.chat_id.is_channel());
        keys.members.extend(of_channels.map(|mark| (mark.chat_id, mark.user_id)));
        keys.uniques.extend(plan.uniques.iter().map(|(key, _)| key.clone()));
        keys.names.iter().for_each(|name| self.known_names.enter(name));
        self.touched.enter(no, &keys);
        self.flights.get_mut(&no).expect("the caller put it there").keys = keys;
    }

    /// Puts chats and users into the current list of work; gives the write that each waits for.
    fn list_work(&mut self, plan: &Plan) -> HashMap<WorkKey, u64> {
        if !plan.listed {
            return HashMap::new();
        }
        let mut keys: Vec<_> = plan.appends.iter().map(|planned| WorkKey::Chat(planned.append.chat_id)).collect();
        keys.extend(plan.marks.iter().map(|mark| WorkKey::Mark(mark.chat_id, mark.user_id)));
        keys.extend(plan.users.iter().map(|user| WorkKey::User(user.user_id)));
        keys.sort_unstable();
        keys.dedup();
        let (lists, writes) = self.work.list(self.now_ms, &keys);
        for slot in self.work.take_outlived(!writes.is_empty()) {
            self.write(Partition::Work { set: self.options.set, slot }, Change::Delete, Owner::Delete(slot));
        }
        for write in writes {
            let partition = Partition::Work { set: self.options.set, slot: write.slot };
            self.put(partition, write.keys.into_iter().map(Row::Work).collect(), Owner::List(write.list));
        }
        let mut waits = HashMap::new();
        for (key, list) in keys.into_iter().zip(lists) {
            let Some(list) = list else { continue };
            waits.insert(key, list);
            let waiter = match key {
                WorkKey::Chat(chat_id) => Waiter::Chat(chat_id),
                WorkKey::Mark(chat_id, user_id) => Waiter::Mark(chat_id, user_id),
                WorkKey::User(user_id) => Waiter::User(user_id),
            };
            self.work.wait(list, waiter);
        }
        waits
    }

    fn entries_of(&self, plan: &Plan, lists: &HashMap<WorkKey, u64>) -> Vec<(UserId, EntryJob)> {
        let no = plan.no;
        let mut entries = Vec::new();
        for planned in &plan.appends {
            let chat_id = planned.append.chat_id;
            let gate = super::chats::gate_of_entries(chat_id);
            for entry in &planned.append.entries {
                let (user_id, inbox_seq, row) = (entry.user_id, entry.inbox_seq, entry.row);
                if !planned.entered.contains(&(user_id, inbox_seq)) {
                    entries.push((user_id, EntryJob { no, inbox_seq, row, gate, of: Of::Append(chat_id) }));
                }
            }
            for mark in &planned.joined {
                let Some(inbox_seq) = mark.inbox_seq else { continue };
                if !planned.entered.contains(&(mark.user_id, inbox_seq)) {
                    let row = EntryRow::Own { chat_id };
                    entries.push((mark.user_id, EntryJob { no, inbox_seq, row, gate, of: Of::Joined(chat_id) }));
                }
            }
        }
        for mark in &plan.marks {
            let Some(inbox_seq) = mark.inbox_seq else { continue };
            let gate =
                lists.get(&WorkKey::Mark(mark.chat_id, mark.user_id)).map_or(Gate::Open, |list| Gate::List(*list));
            let row = EntryRow::Own { chat_id: mark.chat_id };
            entries.push((mark.user_id, EntryJob { no, inbox_seq, row, gate, of: Of::Mark(mark.chat_id) }));
        }
        entries
    }

    fn push_append(&mut self, no: u64, mut planned: PlannedAppend, list: Option<u64>) {
        let chat_id = planned.append.chat_id;
        let first_seq = planned.append.events.first().map_or(0, |event| event.seq);
        let rows = planned.rows(self.epoch);
        let PlannedAppend { append, joined, marked, entered, checkpoint_stands, .. } = planned;
        let mut entries: Vec<_> = append.entries.iter().map(|entry| (entry.user_id, entry.inbox_seq)).collect();
        entries.extend(joined.iter().filter_map(|mark| Some((mark.user_id, mark.inbox_seq?))));
        entries.retain(|entry| !entered.contains(entry));
        let mut left = 1 + append.entries.iter().filter(|at| !entered.contains(&(at.user_id, at.inbox_seq))).count();
        for mark in joined {
            let entry = mark.inbox_seq.filter(|inbox_seq| !entered.contains(&(mark.user_id, *inbox_seq)));
            left += usize::from(entry.is_some());
            if !marked.contains(&mark.user_id) {
                left += 1;
                let (user_id, row) = (mark.user_id, mark.row);
                let job = MarkJob { no, user_id, row, list: None, entry, joined: true, event: true };
                self.marks.entry(chat_id).or_default().push(job);
            }
        }
        let Append { commands, members, checkpoint, present, .. } = append;
        let checkpoint = checkpoint.filter(|_| !checkpoint_stands);
        let job = AppendJob::new(no, list, first_seq, rows, entries, left);
        self.chats.entry(chat_id).or_default().push(job.with_derived(commands, members, checkpoint, present));
    }

    pub(super) fn list_deleted(&mut self, slot: u8) {
        self.work.deleted(slot);
    }

    pub(super) fn list_stands(&mut self, list: u64) {
        for waiter in self.work.stands(list) {
            match waiter {
                Waiter::Chat(chat_id) => self.start_append(chat_id),
                Waiter::User(user_id) => self.write_account(user_id),
                Waiter::Mark(chat_id, user_id) => {
                    self.open_entries(user_id, list);
                    if let Some(lane) = self.marks.get_mut(&chat_id) {
                        lane.list_stands(list);
                        self.write_marks(chat_id);
                    }
                }
            }
        }
    }

    /// Something of a group stands.
    pub(super) fn part_done(&mut self, no: u64) {
        let Some(flight) = self.flights.get_mut(&no) else { return };
        flight.left -= 1;
        if flight.left == 0 {
            self.group_complete(no);
        }
    }

    fn group_complete(&mut self, no: u64) {
        let flight = self.flights.remove(&no).expect("it was in flight");
        self.touched.leave(no, &flight.keys);
        {
            let mut shared = self.shared();
            flight.keys.chats.iter().for_each(|chat_id| shared.leave_chat(no, *chat_id));
            flight.keys.users.iter().for_each(|user_id| shared.leave_user(no, *user_id));
        }
        if no == 0 {
            return self.recovery_written();
        }
        self.complete.insert(no);
        while self.complete.remove(&(self.complete_to + 1)) {
            self.complete_to += 1;
        }
        if let Some(op) = flight.op {
            self.answer(op, StoreResult::Committed(Outcome::Durable));
        }
        for (op, request) in flight.loads {
            self.load(op, request);
        }
        self.outlive_lists();
    }

    fn outlive_lists(&mut self) {
        let oldest_no = self.flights.keys().next().copied();
        self.work.outlive(oldest_no);
        for slot in self.work.take_surplus() {
            self.write(Partition::Work { set: self.options.set, slot }, Change::Delete, Owner::Delete(slot));
        }
    }
}

/// What is written of users, in order: the row without its name, the key of the identity, the key of the name, the row
/// with its name. So a name is never shown by two, and a key that names nobody's name yet is free for its user. Keys of
/// nobody in the group are written by themselves.
fn account_steps(
    users: &[UserRow],
    uniques: Vec<(String, u128)>,
    parts: &mut Vec<(Partition, Row)>,
) -> Vec<(UserId, Partition, Row)> {
    let mut newest: BTreeMap<UserId, (&UserRow, Vec<String>)> = BTreeMap::new();
    for user in users {
        newest.entry(user.user_id).or_insert((user, Vec::new())).0 = user;
    }
    for (key, value) in uniques {
        let user_id = u64::try_from(value).ok().map(UserId);
        match user_id.and_then(|user_id| newest.get_mut(&user_id)) {
            Some((_, keys)) => keys.push(key),
            None => parts.push((Partition::Unique { key }, Row::Unique { value })),
        }
    }
    let mut steps = Vec::new();
    for (user_id, (user, mut keys)) in newest {
        let is_identity = |key: &String| *key == identity_key(&user.issuer, &user.subject);
        keys.sort_by_key(|key| !is_identity(key));
        let partition = Partition::User { user_id };
        let created = keys.first().is_some_and(is_identity);
        if created {
            let nameless = UserRow { name: String::new(), ..user.clone() };
            steps.push((user_id, partition.clone(), Row::User(nameless)));
        }
        let value = u128::from(user_id.0);
        steps.extend(keys.into_iter().map(|key| (user_id, Partition::Unique { key }, Row::Unique { value })));
        if !user.name.is_empty() || !created {
            steps.push((user_id, partition, Row::User(user.clone())));
        }
    }
    steps
}
