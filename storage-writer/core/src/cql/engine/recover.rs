//! Taking over: before the first number is given, every chat and inbox in which a dead writer had work in flight is
//! read, the last append of each chat is derived again, and all of it is written under the own epoch.

use super::plan::{Flight, Plan, PlannedAppend};
use super::tail::{Head, StoredEntry, Tail, reads_of};
use super::{Engine, Owner, Phase};
use crate::cql::redo::Redo;
use crate::cql::rows::{
    APPEND_EVENTS_MAX, Change, ChatStateRow, EventRow, Partition, Read, Row, SEQ_BUCKET, WORK_SLOTS, WorkKey,
    inbox_bucket, seq_bucket,
};
use crate::planted::{self, Bug};
use crate::store::{Append, Checkpoint, Entry, EntryRow, MarkRow, Meta};
use hashbrown::HashSet;
use parley_protocol::{ChatId, UserId};
use std::collections::{BTreeMap, BTreeSet};

/// Marks in one read.
const MARKS_USERS_MAX: usize = 100;

/// What a statement of the recovery is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Meta,
    Work(u8),
    States(ChatId),
    Tail(ChatId),
    Head(UserId),
    Rows(UserId),
    Marks(ChatId),
    Fence,
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Records and lists of work.
    Records,
    /// Checkpoints and tails of chats.
    Logs,
    /// Heads of inboxes.
    Inboxes,
    /// What the recorded numbers name, and marks.
    Details,
    /// Newest entries and listed marks, under the own epoch.
    Fences,
    Writing,
    Deleting,
}

/// A taking over that is under way.
#[derive(Debug)]
pub(super) struct Recovery {
    stage: Stage,
    /// Reads, or writes, of this stage that are not answered.
    left: usize,
    /// Lists that hold something.
    slots: BTreeSet<u8>,
    chats: BTreeMap<ChatId, OldChat>,
    inboxes: BTreeMap<UserId, OldInbox>,
    /// Listed marks, as they are stored.
    marks: BTreeMap<ChatId, BTreeMap<UserId, MarkRow>>,
}

#[derive(Debug, Default)]
struct OldChat {
    states: Vec<ChatStateRow>,
    tail: Option<Tail>,
    /// The last append; none when the chat has no event.
    last: Option<LastAppend>,
    /// Who joined with it, and has read further than it says.
    marked: HashSet<UserId>,
}

#[derive(Debug)]
struct LastAppend {
    rows: Vec<EventRow>,
    redo: Redo,
}

#[derive(Debug)]
struct OldInbox {
    head: Option<Head>,
    rows: BTreeMap<u64, EntryRow>,
    last: Option<StoredEntry>,
    /// Up to the head: they are taken over.
    newest: Vec<StoredEntry>,
    wanted: Vec<Wanted>,
}

/// An entry that a `redo` names.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    /// As recorded.
    inbox_seq: u64,
    chat_id: ChatId,
    row: EntryRow,
    /// Where it stands in the `redo`: in `entries` or in `joined`.
    at: usize,
}

impl OldInbox {
    fn new(user_id: UserId) -> OldInbox {
        OldInbox {
            head: Some(Head::new(user_id)),
            rows: BTreeMap::new(),
            last: None,
            newest: Vec::new(),
            wanted: Vec::new(),
        }
    }

    fn head_seq(&self) -> u64 {
        self.last.map_or(0, |last| last.inbox_seq)
    }
}

impl OldChat {
    /// Marks of one who joined are not written if they are below what is stored.
    fn meet_mark(&mut self, user_id: UserId, stored: &MarkRow) {
        let joined = self.last.iter().flat_map(|last| &last.redo.joined).filter(|mark| mark.user_id == user_id);
        if joined.map(|mark| mark.row.read_seq).max().is_some_and(|read_seq| stored.read_seq >= read_seq) {
            self.marked.insert(user_id);
        }
    }
}

impl Recovery {
    fn new() -> Recovery {
        let (slots, chats, inboxes, marks) = Default::default();
        Recovery { stage: Stage::Records, left: 0, slots, chats, inboxes, marks }
    }

    fn inbox(&mut self, user_id: UserId) -> &mut OldInbox {
        self.inboxes.entry(user_id).or_insert_with(|| OldInbox::new(user_id))
    }
}

impl Engine {
    pub(super) fn recover(&mut self) {
        let set = self.options.set;
        self.recovery = Some(Box::new(Recovery::new()));
        self.ask(Read::All(Partition::Meta { set }), Part::Meta);
        if planted::has(Bug::NoRederivation) {
            return;
        }
        for slot in 0..WORK_SLOTS {
            self.ask(Read::All(Partition::Work { set, slot }), Part::Work(slot));
        }
    }

    fn ask(&mut self, read: Read, part: Part) {
        self.recovery.as_mut().expect("it asks while it lasts").left += 1;
        self.read(read, Owner::Recover(part));
    }

    pub(super) fn recovery_damaged(&mut self, why: String) {
        self.break_off(format!("recovery: {why}"));
    }

    /// A statement of the recovery is answered.
    pub(super) fn recover_read(&mut self, part: Part, rows: Vec<Row>) {
        let Some(recovery) = self.recovery.as_mut() else { return };
        recovery.left -= 1;
        if let Err(why) = self.take_part(part, rows) {
            return self.recovery_damaged(why);
        }
        while let Some(recovery) = self.recovery.as_mut().filter(|recovery| recovery.left == 0) {
            let begun = match recovery.stage {
                Stage::Records => self.begin_logs(),
                Stage::Logs => self.begin_inboxes(),
                Stage::Inboxes => self.begin_details(),
                Stage::Details => self.begin_fences(),
                Stage::Fences => self.begin_writing(),
                Stage::Writing => return,
                Stage::Deleting => return self.serve(),
            };
            if let Err(why) = begun {
                return self.recovery_damaged(why);
            }
        }
    }

    fn take_part(&mut self, part: Part, rows: Vec<Row>) -> Result<(), String> {
        let recovery = self.recovery.as_mut().expect("the caller looked");
        match part {
            Part::Meta => self.take_meta(&rows),
            Part::Work(slot) => {
                for row in rows {
                    let Row::Work(key) = row else { continue };
                    recovery.slots.insert(slot);
                    match key {
                        WorkKey::Chat(chat_id) => drop(recovery.chats.entry(chat_id).or_default()),
                        WorkKey::User(user_id) => drop(recovery.inbox(user_id)),
                        WorkKey::Mark(chat_id, user_id) => {
                            recovery.inbox(user_id);
                            recovery.marks.entry(chat_id).or_default().insert(user_id, MarkRow::default());
                        }
                    }
                }
            }
            Part::States(chat_id) => {
                let chat = recovery.chats.get_mut(&chat_id).expect("it was listed");
                chat.states = rows.into_iter().filter_map(state_of).collect();
                let tail = Tail::new(chat_id, tail_from(newest_seq(&chat.states)));
                let read = tail.read();
                chat.tail = Some(tail);
                self.ask(read, Part::Tail(chat_id));
            }
            Part::Tail(chat_id) => {
                let chat = recovery.chats.get_mut(&chat_id).expect("it was listed");
                let tail = chat.tail.as_mut().expect("it asked");
                if !tail.take(rows) {
                    let read = tail.read();
                    self.ask(read, Part::Tail(chat_id));
                }
            }
            Part::Head(user_id) => {
                let head = recovery.inbox(user_id).head.as_mut().expect("it asked");
                if !head.take(&rows) {
                    let read = head.read();
                    self.ask(read, Part::Head(user_id));
                }
            }
            Part::Rows(user_id) => {
                let entries = rows.iter().filter_map(StoredEntry::of);
                recovery.inbox(user_id).rows.extend(entries.map(|entry| (entry.inbox_seq, entry.row)));
            }
            Part::Marks(chat_id) => {
                let listed = recovery.marks.get_mut(&chat_id);
                let mut listed = listed.into_iter().flat_map(|marks| marks.iter_mut()).collect::<BTreeMap<_, _>>();
                let mut chat = recovery.chats.get_mut(&chat_id);
                for row in rows {
                    let Row::Mark { user_id, row } = row else { continue };
                    if let Some(stored) = listed.get_mut(&user_id) {
                        **stored = row;
                    }
                    if let Some(chat) = &mut chat {
                        chat.meet_mark(user_id, &row);
                    }
                }
            }
            Part::Fence => {}
            Part::Delete => {}
        }
        Ok(())
    }

    fn take_meta(&mut self, rows: &[Row]) {
        for row in rows {
            if let Row::Meta { home_epoch, gateway, ids_reserved_until_ms } = row {
                self.meta = Meta {
                    writer_epoch: 0,
                    home_epoch: *home_epoch,
                    gateway: *gateway,
                    ids_reserved_until_ms: *ids_reserved_until_ms,
                };
            }
        }
    }

    fn begin_logs(&mut self) -> Result<(), String> {
        let recovery = self.recovery.as_mut().expect("the caller looked");
        recovery.stage = Stage::Logs;
        for chat_id in recovery.chats.keys().copied().collect::<Vec<_>>() {
            self.ask(Read::All(Partition::ChatState { chat_id }), Part::States(chat_id));
        }
        Ok(())
    }

    /// The logs are read: their last appends name inboxes.
    fn begin_inboxes(&mut self) -> Result<(), String> {
        let recovery = self.recovery.as_mut().expect("the caller looked");
        recovery.stage = Stage::Inboxes;
        let mut wanted: Vec<(UserId, Wanted)> = Vec::new();
        for (chat_id, chat) in &mut recovery.chats {
            let seq = newest_seq(&chat.states);
            let first = chat.states.iter().find(|state| state.checkpoint.seq == 0);
            let before = first.filter(|_| seq == 0).map(|state| state.epoch);
            let rows = chat.tail.take().map_or(Vec::new(), |tail| tail.finish_dense(before));
            chat.last = last_append(*chat_id, rows, seq)?;
            let Some(last) = &chat.last else { continue };
            for (at, entry) in last.redo.entries.iter().enumerate() {
                let row = EntryRow::Event { chat_id: *chat_id, seq: entry.seq };
                wanted.push((entry.user_id, Wanted { inbox_seq: entry.inbox_seq, chat_id: *chat_id, row, at }));
            }
            for (at, mark) in last.redo.joined.iter().enumerate() {
                let Some(inbox_seq) = mark.inbox_seq else { continue };
                let row = EntryRow::Own { chat_id: *chat_id };
                wanted.push((mark.user_id, Wanted { inbox_seq, chat_id: *chat_id, row, at }));
            }
        }
        for (user_id, wanted) in wanted {
            recovery.inbox(user_id).wanted.push(wanted);
        }
        let mut reads = Vec::new();
        for (user_id, inbox) in &recovery.inboxes {
            let head = inbox.head.as_ref().expect("it was not read yet");
            reads.push((head.read(), Part::Head(*user_id)));
        }
        reads.into_iter().for_each(|(read, part)| self.ask(read, part));
        Ok(())
    }

    /// The heads are read: what recorded numbers below them name, and the marks of joiners.
    fn begin_details(&mut self) -> Result<(), String> {
        let recovery = self.recovery.as_mut().expect("the caller looked");
        recovery.stage = Stage::Details;
        let mut reads = Vec::new();
        for (user_id, inbox) in &mut recovery.inboxes {
            let rows = inbox.head.take().expect("it is finished once").finish()?;
            inbox.last = rows.last().copied();
            inbox.rows = rows.iter().map(|entry| (entry.inbox_seq, entry.row)).collect();
            inbox.newest = rows;
            inbox.wanted.sort_by_key(|wanted| (wanted.inbox_seq, wanted.chat_id));
            let head_seq = inbox.head_seq();
            let recorded = inbox.wanted.iter().map(|wanted| wanted.inbox_seq);
            let mut below: Vec<_> =
                recorded.filter(|number| *number <= head_seq && !inbox.rows.contains_key(number)).collect();
            below.dedup();
            reads.extend(reads_of(*user_id, &below).into_iter().map(|read| (read, Part::Rows(*user_id))));
        }
        let mut marks: BTreeMap<ChatId, BTreeSet<UserId>> = BTreeMap::new();
        for (chat_id, chat) in &recovery.chats {
            let joined = chat.last.iter().flat_map(|last| &last.redo.joined);
            marks.entry(*chat_id).or_default().extend(joined.map(|mark| mark.user_id));
        }
        for (chat_id, listed) in &recovery.marks {
            marks.entry(*chat_id).or_default().extend(listed.keys());
        }
        for (chat_id, users) in marks {
            let users: Vec<_> = users.into_iter().collect();
            for users in users.chunks(MARKS_USERS_MAX) {
                reads.push((Read::Marks { chat_id, users: users.to_vec() }, Part::Marks(chat_id)));
            }
        }
        reads.into_iter().for_each(|(read, part)| self.ask(read, part));
        Ok(())
    }

    /// What dead writers have on their way to the inboxes and marks in question loses from here on: their newest rows
    /// are the own epoch's before anything is numbered again.
    fn begin_fences(&mut self) -> Result<(), String> {
        let epoch = self.epoch;
        let recovery = self.recovery.as_mut().expect("the caller looked");
        recovery.stage = Stage::Fences;
        let mut fences: Vec<(Partition, Vec<Row>)> = Vec::new();
        for (user_id, inbox) in &mut recovery.inboxes {
            let user_id = *user_id;
            if inbox.newest.is_empty() {
                fences.push((Partition::InboxState { user_id }, vec![Row::InboxState { bucket: 0, epoch }]));
            }
            let mut rows: BTreeMap<u32, Vec<Row>> = BTreeMap::new();
            for entry in std::mem::take(&mut inbox.newest) {
                let row = Row::Entry { inbox_seq: entry.inbox_seq, row: entry.row, epoch };
                rows.entry(inbox_bucket(entry.inbox_seq)).or_default().push(row);
            }
            fences.extend(rows.into_iter().map(|(bucket, rows)| (Partition::Inbox { user_id, bucket }, rows)));
        }
        for (chat_id, marks) in std::mem::take(&mut recovery.marks) {
            let rows: Vec<_> = marks.into_iter().map(|(user_id, row)| Row::Mark { user_id, row }).collect();
            fences.extend(rows.chunks(MARKS_USERS_MAX).map(|rows| (Partition::Marks { chat_id }, rows.to_vec())));
        }
        recovery.left = fences.len();
        for (partition, rows) in fences {
            self.put(partition, rows, Owner::Recover(Part::Fence));
        }
        Ok(())
    }

    /// Everything is read: entries that were never written get numbers, and all of it is one more group.
    fn begin_writing(&mut self) -> Result<(), String> {
        let recovery = self.recovery.as_mut().expect("the caller looked");
        recovery.stage = Stage::Writing;
        let mut plan = Plan::default();
        let mut entered: BTreeMap<ChatId, HashSet<(UserId, u64)>> = BTreeMap::new();
        let epoch = self.epoch;
        for (user_id, inbox) in &recovery.inboxes {
            let mut next = inbox.head_seq() + 1;
            for wanted in &inbox.wanted {
                let stands =
                    wanted.inbox_seq < inbox.head_seq() + 1 && inbox.rows.get(&wanted.inbox_seq) == Some(&wanted.row);
                if stands {
                    entered.entry(wanted.chat_id).or_default().insert((*user_id, wanted.inbox_seq));
                    continue;
                }
                self.recovered_entries += 1;
                let chat = recovery.chats.get_mut(&wanted.chat_id).expect("its redo named the entry");
                let redo = &mut chat.last.as_mut().expect("its redo named the entry").redo;
                match wanted.row {
                    EntryRow::Event { .. } => redo.entries[wanted.at].inbox_seq = next,
                    EntryRow::Own { .. } => redo.joined[wanted.at].inbox_seq = Some(next),
                }
                next += 1;
            }
        }
        for (chat_id, chat) in std::mem::take(&mut recovery.chats) {
            let fact = self.facts.of(chat_id);
            fact.slots = Some(slots_of(&chat.states));
            fact.head = Some(0);
            match chat.last {
                Some(last) => {
                    let entered = entered.remove(&chat_id).unwrap_or_default();
                    let newest_seq = newest_seq(&chat.states);
                    self.recovered_appends += 1;
                    plan.appends.push(planned(chat_id, last, chat.marked, entered, newest_seq)?);
                }
                None => {
                    fact.slots = Some([Some(0), None]);
                    let checkpoint = Checkpoint::default();
                    let row = Row::ChatState(ChatStateRow { slot: 0, epoch, checkpoint, present: 0 });
                    plan.parts.push((Partition::ChatState { chat_id }, row));
                }
            }
        }
        self.flights.insert(0, Flight::default());
        self.plan(plan);
        Ok(())
    }

    /// Everything of the dead writers is the own epoch's: their lists are not needed any more.
    pub(super) fn recovery_written(&mut self) {
        let Some(recovery) = self.recovery.as_mut() else { return };
        recovery.stage = Stage::Deleting;
        let slots = std::mem::take(&mut recovery.slots);
        recovery.left = slots.len();
        if slots.is_empty() {
            return self.serve();
        }
        for slot in slots {
            let partition = Partition::Work { set: self.options.set, slot };
            self.write(partition, Change::Delete, Owner::Recover(Part::Delete));
        }
    }

    fn serve(&mut self) {
        self.recovery = None;
        self.phase = Phase::Serving;
        for (op, request) in std::mem::take(&mut self.early) {
            self.load(op, request);
        }
    }
}

fn state_of(row: Row) -> Option<ChatStateRow> {
    match row {
        Row::ChatState(row) => Some(row),
        _ => None,
    }
}

fn newest_seq(states: &[ChatStateRow]) -> u64 {
    states.iter().map(|state| state.checkpoint.seq).max().unwrap_or(0)
}

fn slots_of(states: &[ChatStateRow]) -> [Option<u64>; 2] {
    let mut slots = [None, None];
    for state in states {
        slots[usize::from(state.slot & 1)] = Some(state.checkpoint.seq);
    }
    slots
}

/// From where the tail is read: a checkpoint may lie within the last append, which lies within one bucket.
fn tail_from(newest_seq: u64) -> u64 {
    let bucket_first = u64::from(seq_bucket(newest_seq)) * SEQ_BUCKET + 1;
    newest_seq.saturating_sub(APPEND_EVENTS_MAX as u64 - 1).max(bucket_first)
}

/// The last append of a log, given its newest rows. Only a whole one counts: dense, from the `seq` after
/// `derived_through` to a row with `redo`. Parts of an append were at no quorum, so nothing was derived from them: they
/// are left to be ghosts, and the whole append before them is the last one.
fn last_append(chat_id: ChatId, mut rows: Vec<EventRow>, checkpoint_seq: u64) -> Result<Option<LastAppend>, String> {
    while let Some(last) = rows.last() {
        let (head, derived_through) = (last.event.seq, last.derived_through);
        if head < checkpoint_seq {
            break;
        }
        if derived_through >= head {
            // Everything was derived before: the head alone is taken over.
            return Ok(Some(LastAppend { rows: rows.split_off(rows.len() - 1), redo: Redo::default() }));
        }
        let first = rows.iter().position(|row| row.event.seq == derived_through + 1);
        if let Some(first) = first.filter(|_| !last.redo.is_empty()) {
            let redo = Redo::decode(&last.redo).map_err(|why| format!("chat {chat_id}: event {head}: {why}"))?;
            return Ok(Some(LastAppend { rows: rows.split_off(first), redo }));
        }
        rows.retain(|row| row.event.seq <= derived_through);
    }
    match checkpoint_seq {
        0 => Ok(None),
        seq => Err(format!("chat {chat_id}: no whole append at its checkpoint {seq}")),
    }
}

fn planned(
    chat_id: ChatId,
    last: LastAppend,
    marked: HashSet<UserId>,
    entered: HashSet<(UserId, u64)>,
    newest_seq: u64,
) -> Result<PlannedAppend, String> {
    let LastAppend { rows, redo } = last;
    let derived_through = rows.last().map_or(0, |row| row.derived_through);
    let mut commands = Vec::with_capacity(redo.commands.len());
    for command in &redo.commands {
        let row = rows.iter().find(|row| row.event.seq == command.seq);
        let row = row.ok_or_else(|| format!("chat {chat_id}: redo names event {}", command.seq))?;
        commands.push(command.row(&row.event));
    }
    let entry = |entry: &crate::cql::redo::RedoEntry| Entry {
        user_id: entry.user_id,
        inbox_seq: entry.inbox_seq,
        row: EntryRow::Event { chat_id, seq: entry.seq },
    };
    let checkpoint_stands = redo.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.seq <= newest_seq);
    let append = Append {
        chat_id,
        events: rows.into_iter().map(|row| row.event).collect(),
        entries: redo.entries.iter().map(entry).collect(),
        commands,
        members: redo.members.into_iter().map(|member| (member.user_id, member.row)).collect(),
        checkpoint: redo.checkpoint,
        present: redo.present,
    };
    let joined = redo.joined.iter().map(|mark| mark.write(chat_id)).collect();
    Ok(PlannedAppend { append, joined, marked, derived_through, entered, checkpoint_stands })
}
