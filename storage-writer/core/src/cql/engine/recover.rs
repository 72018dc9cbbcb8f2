//! Taking over: before the first number is given, every chat and inbox in which a dead writer had work in flight is
//! read, the last append of each chat is derived again, and all of it is written under the own epoch.

use super::plan::{Flight, Plan, PlannedAppend};
use super::tail::{Head, LastAppend, StoredEntry, Tail, reads_of};
use super::{Aside, Engine, Owner, Phase};
use crate::cql::rows::{
    APPEND_EVENTS_MAX, Change, ChatStateRow, Partition, Read, Row, SEQ_BUCKET, WORK_ASIDE, WORK_SLOTS, WorkKey,
    inbox_bucket, seq_bucket,
};
use crate::planted::{self, Bug};
use crate::store::{Append, Checkpoint, CommandName, Entry, EntryRow, MarkRow, Meta, StoreRequest};
use hashbrown::{HashMap, HashSet};
use parley_protocol::{ChatId, UserId};
use std::collections::{BTreeMap, BTreeSet};

/// Marks in one read.
const MARKS_USERS_MAX: usize = 100;
/// Keys in one write of the list of what is set aside.
const ASIDE_ROWS_MAX: usize = 1_000;
/// Chats and inboxes that are set aside; if more are damaged, no writer should go on.
const SET_ASIDE_MAX: usize = 10_000;

/// Chats and inboxes with damaged rows, and what is wrong: until the next start their loads say so.
#[derive(Debug, Default)]
pub(super) struct SetAside {
    pub(super) chats: HashMap<ChatId, String>,
    pub(super) users: HashMap<UserId, String>,
}

impl SetAside {
    pub(super) fn len(&self) -> usize {
        self.chats.len() + self.users.len()
    }

    /// Why what is asked for cannot be told.
    pub(super) fn why(&self, request: &StoreRequest) -> Option<&String> {
        match request {
            StoreRequest::LoadChat(chat_id)
            | StoreRequest::LoadMember { chat_id, .. }
            | StoreRequest::CountMessages { chat_id, .. }
            | StoreRequest::LoadEvent { chat_id, .. }
            | StoreRequest::FindCommand(CommandName { chat_id, .. }) => self.chats.get(chat_id),
            StoreRequest::LoadUser(user_id) => self.users.get(user_id),
            StoreRequest::FindUnique(_) | StoreRequest::LoadMeta | StoreRequest::Commit(_) => None,
        }
    }
}

/// What a statement of the recovery is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Meta,
    Work(u8),
    States(ChatId),
    Tail(ChatId),
    Head(UserId),
    Rows(UserId),
    Account(UserId),
    Marks(ChatId),
    Write,
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
    /// Newest entries and listed marks, as they are stored.
    Standing,
    /// The heads of the inboxes, under the own epoch.
    Fences,
    /// The list of what is set aside.
    Aside,
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
    /// Rows of listed users.
    accounts: BTreeMap<UserId, Option<Row>>,
    /// Is listed again.
    aside: BTreeSet<WorkKey>,
    /// Listed marks, as they are stored.
    marks: BTreeMap<ChatId, BTreeMap<UserId, MarkRow>>,
}

#[derive(Debug, Default)]
struct OldChat {
    states: Vec<ChatStateRow>,
    /// While it is read.
    tail: Option<Tail>,
    /// The last append; none when the chat has no event. The rest of the tail is not kept: lists name many chats.
    last: Option<LastAppend>,
    /// Who joined with it, and has read further than it says.
    marked: HashSet<UserId>,
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
    /// Its log is read.
    fn judge(&mut self, tail: Tail) -> Result<(), String> {
        let seq = newest_seq(&self.states);
        let first = self.states.iter().find(|state| state.checkpoint.seq == 0);
        let before = first.filter(|_| seq == 0).map(|state| state.epoch);
        self.last = tail.last_append(before, seq)?;
        Ok(())
    }

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
        let (slots, chats, inboxes, accounts, aside, marks) = Default::default();
        Recovery { stage: Stage::Records, left: 0, slots, chats, inboxes, accounts, aside, marks }
    }

    /// Logs that are kept while they are read.
    pub(super) fn tails(&self) -> usize {
        self.chats.values().filter(|chat| chat.tail.is_some()).count()
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
        for slot in (0..WORK_SLOTS).chain([WORK_ASIDE]) {
            self.ask(Read::All(Partition::Work { set, slot }), Part::Work(slot));
        }
    }

    fn ask(&mut self, read: Read, part: Part) {
        self.recovery.as_mut().expect("it asks while it lasts").left += 1;
        self.read(read, Owner::Recover(part));
    }

    /// A row that the recovery asked for does not decode.
    pub(super) fn recovery_damaged(&mut self, part: Part, why: String) {
        match part {
            Part::States(chat_id) | Part::Tail(chat_id) | Part::Marks(chat_id) => self.set_chat_aside(chat_id, why),
            Part::Head(user_id) | Part::Rows(user_id) | Part::Account(user_id) => self.set_inbox_aside(user_id, why),
            Part::Meta | Part::Work(_) | Part::Write => return self.break_off(format!("recovery: {why}")),
        }
        self.recover_read(part, None);
    }

    /// Nothing of the chat is taken over: the next taker finds it as it is.
    fn set_chat_aside(&mut self, chat_id: ChatId, why: String) {
        let Some(recovery) = self.recovery.as_mut() else { return };
        recovery.chats.remove(&chat_id);
        let marks = recovery.marks.remove(&chat_id).unwrap_or_default();
        recovery.aside.insert(WorkKey::Chat(chat_id));
        recovery.aside.extend(marks.into_keys().map(|user_id| WorkKey::Mark(chat_id, user_id)));
        for inbox in recovery.inboxes.values_mut() {
            inbox.wanted.retain(|wanted| wanted.chat_id != chat_id);
        }
        self.shared().set_aside(Aside::Chat(chat_id));
        self.set_aside.chats.insert(chat_id, why);
    }

    /// Nothing of the inbox is taken over. The chats whose last appends name it are looked at again by the next taker,
    /// which then may number the entries.
    fn set_inbox_aside(&mut self, user_id: UserId, why: String) {
        let Some(recovery) = self.recovery.as_mut() else { return };
        recovery.aside.insert(WorkKey::User(user_id));
        for wanted in recovery.inboxes.remove(&user_id).into_iter().flat_map(|inbox| inbox.wanted) {
            recovery.aside.insert(WorkKey::Chat(wanted.chat_id));
        }
        self.shared().set_aside(Aside::Inbox(user_id));
        self.set_aside.users.insert(user_id, why);
    }

    /// A statement of the recovery is answered; without rows when they are damaged.
    pub(super) fn recover_read(&mut self, part: Part, rows: Option<Vec<Row>>) {
        let Some(recovery) = self.recovery.as_mut() else { return };
        recovery.left -= 1;
        if let Some(rows) = rows {
            self.take_part(part, rows);
        }
        while let Some(recovery) = self.recovery.as_mut().filter(|recovery| recovery.left == 0) {
            match recovery.stage {
                Stage::Records => self.begin_logs(),
                Stage::Logs => self.begin_inboxes(),
                Stage::Inboxes => self.begin_details(),
                Stage::Details => self.begin_standing(),
                Stage::Standing => self.begin_fences(),
                Stage::Fences => self.begin_aside(),
                Stage::Aside => self.begin_writing(),
                Stage::Writing => return,
                Stage::Deleting => return self.serve(),
            }
            if self.set_aside.len() > SET_ASIDE_MAX {
                let why = "recovery: more is damaged than is set aside";
                return self.break_off(why.to_owned());
            }
        }
    }

    fn take_part(&mut self, part: Part, rows: Vec<Row>) {
        let recovery = self.recovery.as_mut().expect("the caller looked");
        match part {
            Part::Meta => self.take_meta(&rows),
            Part::Work(slot) => {
                for row in rows {
                    let Row::Work(key) = row else { continue };
                    recovery.slots.insert(slot);
                    match key {
                        WorkKey::Chat(chat_id) => drop(recovery.chats.entry(chat_id).or_default()),
                        WorkKey::User(user_id) => {
                            recovery.inbox(user_id);
                            recovery.accounts.insert(user_id, None);
                        }
                        WorkKey::Mark(chat_id, user_id) => {
                            recovery.inbox(user_id);
                            recovery.marks.entry(chat_id).or_default().insert(user_id, MarkRow::default());
                        }
                    }
                }
            }
            Part::States(chat_id) => {
                let Some(chat) = recovery.chats.get_mut(&chat_id) else { return };
                chat.states = rows.into_iter().filter_map(state_of).collect();
                let tail = Tail::new(chat_id, tail_from(newest_seq(&chat.states)));
                let read = tail.read();
                chat.tail = Some(tail);
                self.ask(read, Part::Tail(chat_id));
            }
            Part::Tail(chat_id) => {
                let Some(chat) = recovery.chats.get_mut(&chat_id) else { return };
                let mut tail = chat.tail.take().expect("it asked");
                if !tail.take(rows) {
                    let read = tail.read();
                    chat.tail = Some(tail);
                    return self.ask(read, Part::Tail(chat_id));
                }
                if let Err(why) = chat.judge(tail) {
                    self.set_chat_aside(chat_id, why);
                }
            }
            Part::Head(user_id) => {
                let Some(inbox) = recovery.inboxes.get_mut(&user_id) else { return };
                let head = inbox.head.as_mut().expect("it asked");
                if !head.take(&rows) {
                    let read = head.read();
                    self.ask(read, Part::Head(user_id));
                }
            }
            Part::Rows(user_id) => {
                let Some(inbox) = recovery.inboxes.get_mut(&user_id) else { return };
                let entries = rows.iter().filter_map(StoredEntry::of);
                inbox.rows.extend(entries.map(|entry| (entry.inbox_seq, entry.row)));
            }
            Part::Account(user_id) => {
                recovery.accounts.insert(user_id, rows.into_iter().next());
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
            Part::Write => {}
        }
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

    fn begin_logs(&mut self) {
        let recovery = self.recovery.as_mut().expect("the caller looked");
        recovery.stage = Stage::Logs;
        for chat_id in recovery.chats.keys().copied().collect::<Vec<_>>() {
            self.ask(Read::All(Partition::ChatState { chat_id }), Part::States(chat_id));
        }
    }

    /// The logs are read: their last appends name inboxes.
    fn begin_inboxes(&mut self) {
        let recovery = self.recovery.as_mut().expect("the caller looked");
        recovery.stage = Stage::Inboxes;
        let mut wanted: Vec<(UserId, Wanted)> = Vec::new();
        for (chat_id, chat) in &recovery.chats {
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
        let account = |user_id: &UserId| (Read::All(Partition::User { user_id: *user_id }), Part::Account(*user_id));
        let mut reads: Vec<_> = recovery.accounts.keys().map(account).collect();
        for (user_id, inbox) in &recovery.inboxes {
            let head = inbox.head.as_ref().expect("it was not read yet");
            reads.push((head.read(), Part::Head(*user_id)));
        }
        reads.into_iter().for_each(|(read, part)| self.ask(read, part));
    }

    /// The heads are read: what recorded numbers below them name, and the marks of joiners.
    fn begin_details(&mut self) {
        let recovery = self.recovery.as_mut().expect("the caller looked");
        recovery.stage = Stage::Details;
        let (mut reads, mut damaged) = (Vec::new(), Vec::new());
        for (user_id, inbox) in &mut recovery.inboxes {
            let rows = match inbox.head.take().expect("it is finished once").finish_dense() {
                Ok(rows) => rows,
                Err(why) => {
                    damaged.push((*user_id, why));
                    continue;
                }
            };
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
        damaged.into_iter().for_each(|(user_id, why)| self.set_inbox_aside(user_id, why));
        let recovery = self.recovery.as_ref().expect("the caller looked");
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
    }

    /// What is taken for real stands from here on, as it is stored: what a read found may have been on one replica. Rows
    /// of inboxes keep their epochs, so that a part of this, which a read may leave somewhere, makes no ghost of the rest.
    fn begin_standing(&mut self) {
        let epoch = self.epoch;
        let recovery = self.recovery.as_mut().expect("the caller looked");
        recovery.stage = Stage::Standing;
        let mut fences: Vec<(Partition, Vec<Row>)> = Vec::new();
        for (user_id, inbox) in &recovery.inboxes {
            let user_id = *user_id;
            if inbox.newest.is_empty() {
                fences.push((Partition::InboxState { user_id }, vec![Row::InboxState { bucket: 0, epoch }]));
            }
            let mut rows: BTreeMap<u32, Vec<Row>> = BTreeMap::new();
            for entry in &inbox.newest {
                rows.entry(inbox_bucket(entry.inbox_seq)).or_default().push(entry.to_row(entry.epoch));
            }
            fences.extend(rows.into_iter().map(|(bucket, rows)| (Partition::Inbox { user_id, bucket }, rows)));
        }
        // A name that a dead writer has on its way must not come when the key of the name is another's.
        for (user_id, row) in std::mem::take(&mut recovery.accounts) {
            fences.extend(row.map(|row| (Partition::User { user_id }, vec![row])));
        }
        for (chat_id, marks) in std::mem::take(&mut recovery.marks) {
            let rows: Vec<_> = marks.into_iter().map(|(user_id, row)| Row::Mark { user_id, row }).collect();
            fences.extend(rows.chunks(MARKS_USERS_MAX).map(|rows| (Partition::Marks { chat_id }, rows.to_vec())));
        }
        self.put_all(fences);
    }

    /// What dead writers have on their way to the inboxes in question loses from here on, before anything is numbered
    /// again: the head is the own epoch's. It is one row, so it is there or not.
    fn begin_fences(&mut self) {
        let epoch = self.epoch;
        let recovery = self.recovery.as_mut().expect("the caller looked");
        recovery.stage = Stage::Fences;
        let mut fences = Vec::new();
        for (user_id, inbox) in &mut recovery.inboxes {
            let Some(head) = std::mem::take(&mut inbox.newest).pop() else { continue };
            let partition = Partition::Inbox { user_id: *user_id, bucket: inbox_bucket(head.inbox_seq) };
            fences.push((partition, vec![head.to_row(epoch)]));
        }
        self.put_all(fences);
    }

    /// What is set aside is listed again, where it stays for the next taker: the other lists go.
    fn begin_aside(&mut self) {
        let set = self.options.set;
        let recovery = self.recovery.as_mut().expect("the caller looked");
        recovery.stage = Stage::Aside;
        let keys: Vec<_> = std::mem::take(&mut recovery.aside).into_iter().map(Row::Work).collect();
        if !keys.is_empty() {
            recovery.slots.remove(&WORK_ASIDE);
        }
        let partition = Partition::Work { set, slot: WORK_ASIDE };
        self.put_all(keys.chunks(ASIDE_ROWS_MAX).map(|keys| (partition.clone(), keys.to_vec())).collect());
    }

    fn put_all(&mut self, writes: Vec<(Partition, Vec<Row>)>) {
        self.recovery.as_mut().expect("it writes while it lasts").left = writes.len();
        for (partition, rows) in writes {
            self.put(partition, rows, Owner::Recover(Part::Write));
        }
    }

    /// Everything is read: entries that were never written get numbers, and all of it is one more group.
    fn begin_writing(&mut self) {
        let recovery = self.recovery.as_mut().expect("the caller looked");
        recovery.stage = Stage::Writing;
        let mut plan = Plan::default();
        let mut entered: BTreeMap<ChatId, HashSet<(UserId, u64)>> = BTreeMap::new();
        let epoch = self.epoch;
        let aside = &self.set_aside;
        for (chat_id, chat) in &recovery.chats {
            // Entries of an inbox that is set aside are left as they are, also in `redo`.
            let named = chat.last.iter().flat_map(|last| last.redo.inboxes());
            let left = named.filter(|(user_id, _)| aside.users.contains_key(user_id)).collect::<Vec<_>>();
            entered.entry(*chat_id).or_default().extend(left);
        }
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
                    plan.appends.push(planned(chat_id, last, chat.marked, entered, newest_seq));
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
    }

    /// Everything of the dead writers is the own epoch's: their lists are not needed any more. All of them go, also those
    /// in which nothing was found: what a dead writer has on its way to one must not stand there until the next taker.
    pub(super) fn recovery_written(&mut self) {
        let Some(recovery) = self.recovery.as_mut() else { return };
        recovery.stage = Stage::Deleting;
        let mut slots = std::mem::take(&mut recovery.slots);
        slots.extend(0..WORK_SLOTS);
        recovery.left = slots.len();
        for slot in slots {
            let partition = Partition::Work { set: self.options.set, slot };
            self.write(partition, Change::Delete, Owner::Recover(Part::Write));
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

fn planned(
    chat_id: ChatId,
    last: LastAppend,
    marked: HashSet<UserId>,
    entered: HashSet<(UserId, u64)>,
    newest_seq: u64,
) -> PlannedAppend {
    let LastAppend { rows, redo } = last;
    let derived_through = rows.last().map_or(0, |row| row.derived_through);
    let event = |seq| rows.iter().find(|row| row.event.seq == seq);
    let commands = redo.commands.iter().filter_map(|command| Some(command.row(&event(command.seq)?.event))).collect();
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
    PlannedAppend { append, joined, marked, derived_through, entered, checkpoint_stands }
}
