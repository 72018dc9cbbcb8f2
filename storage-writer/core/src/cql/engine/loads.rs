//! Loads: what the writer asks for becomes one or more reads. A load waits for the groups in flight that touch what it
//! asks for; it takes nothing from memory but how long a chat is.

use super::flight::Touched;
use super::tail::{Head, Tail};
use super::{Engine, Owner};
use crate::cql::rows::{ChatStateRow, EventRow, Partition, Read, Row, SEQ_BUCKET, Statement, seq_bucket};
use crate::store::{
    Checkpoint, CommandName, CommandRow, MarkRow, MemberRow, OpId, StoreRequest, StoreResult, StoredChat, StoredMember,
    StoredUser, UserRow,
};
use hashbrown::HashMap;
use parley_protocol::body::kind;
use parley_protocol::{ChatId, UserId, limits};
use std::collections::BTreeMap;

/// Buckets that are counted at a time.
const BUCKETS_AT_A_TIME: u32 = 4;

#[derive(Debug)]
struct Load {
    op: OpId,
    state: State,
}

#[derive(Debug)]
enum State {
    Chat(Box<ChatLoad>),
    User {
        row: Option<UserRow>,
        row_read: bool,
        head: Option<Head>,
        head_state_read: bool,
        user_id: UserId,
    },
    /// How long the chat is: its checkpoints are asked for.
    Length {
        name: CommandName,
    },
    /// A load of the chat, which is under way, will say how long it is.
    Behind {
        name: CommandName,
        head_max: u64,
    },
    Find {
        name: CommandName,
        left: usize,
        found: Option<CommandRow>,
    },
    Unique,
    Count {
        chat_id: ChatId,
        sender: UserId,
        from: u64,
        to: u64,
        next: u32,
        left: usize,
        count: u64,
    },
    Event {
        seq: u64,
    },
    /// Of a channel: its row and its marks.
    Member {
        user_id: UserId,
        row: Option<MemberRow>,
        marks: MarkRow,
        left: usize,
    },
}

/// A chat, as far as it is read.
#[derive(Debug)]
struct ChatLoad {
    chat_id: ChatId,
    /// Of checkpoints, members, marks.
    left: usize,
    states: Vec<ChatStateRow>,
    members: Vec<StoredMember>,
    marks: Vec<Row>,
    tail: Option<Tail>,
}

/// How many loads of a chat are under way, and the look-ups that wait for one.
#[derive(Debug, Default)]
struct Loaded {
    loads: usize,
    behind: Vec<u64>,
}

/// The loads under way.
#[derive(Debug, Default)]
pub(super) struct Loads {
    all: BTreeMap<u64, Load>,
    next: u64,
    /// Chats that are being loaded.
    chats: HashMap<ChatId, Loaded>,
}

impl Loads {
    pub(super) fn drain(&mut self) -> Vec<OpId> {
        self.chats.clear();
        std::mem::take(&mut self.all).into_values().map(|load| load.op).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}

/// The newest group in flight that touches what is asked for.
fn waits_for(touched: &Touched, request: &StoreRequest) -> Option<u64> {
    match request {
        StoreRequest::LoadChat(chat_id)
        | StoreRequest::CountMessages { chat_id, .. }
        | StoreRequest::LoadEvent { chat_id, .. } => touched.chats.get(chat_id),
        StoreRequest::LoadMember { chat_id, user_id } => touched.members.get(&(*chat_id, *user_id)),
        StoreRequest::LoadUser(user_id) => touched.users.get(user_id),
        // Only the name itself: look-ups in a chat that is written all the time must not wait for it.
        StoreRequest::FindCommand(name) => touched.names.get(name),
        StoreRequest::FindUnique(key) => touched.uniques.get(key),
        StoreRequest::LoadMeta | StoreRequest::Commit(_) => None,
    }
    .copied()
}

/// Not below the head of a chat whose newest checkpoint is at `seq`: the writer makes one each 64 events, or each
/// quarter of the members, present and past, of whom an event adds a bounded number.
fn head_max(seq: u64) -> u64 {
    let members =
        (limits::GROUP_MEMBERS_MAX as u64).saturating_add(seq.saturating_mul(limits::MEMBER_CHANGES_MAX as u64));
    seq.saturating_add((members / 4).max(64)).saturating_add(64)
}

fn newest(states: &[ChatStateRow]) -> Option<&ChatStateRow> {
    states.iter().max_by_key(|state| state.checkpoint.seq)
}

fn states_of(rows: Vec<Row>) -> Vec<ChatStateRow> {
    let state = |row| match row {
        Row::ChatState(row) => Some(row),
        _ => None,
    };
    rows.into_iter().filter_map(state).collect()
}

impl Engine {
    /// Starts a load, or has it wait.
    pub(super) fn load(&mut self, op: OpId, request: StoreRequest) {
        if let Some(why) = self.set_aside.why(&request).cloned() {
            return self.answer(op, StoreResult::Damaged(why));
        }
        if let Some(no) = waits_for(&self.touched, &request) {
            self.flights.get_mut(&no).expect("what touches is in flight").loads.push((op, request));
            return;
        }
        let load = self.loads.next;
        self.loads.next += 1;
        let state = match request {
            StoreRequest::LoadMeta => {
                let meta = crate::store::Meta { writer_epoch: self.epoch.saturating_sub(1), ..self.meta.clone() };
                return self.answer(op, StoreResult::Meta(meta));
            }
            StoreRequest::Commit(group) => return self.commit(op, group),
            StoreRequest::LoadChat(chat_id) => self.start_chat(load, chat_id),
            StoreRequest::LoadMember { chat_id, user_id } => {
                self.read(Read::Member { chat_id, user_id }, Owner::Load(load));
                self.read(Read::Marks { chat_id, users: vec![user_id] }, Owner::Load(load));
                State::Member { user_id, row: None, marks: MarkRow::default(), left: 2 }
            }
            StoreRequest::LoadUser(user_id) => {
                self.read(Read::All(Partition::User { user_id }), Owner::Load(load));
                let head = Head::new(user_id);
                self.read(head.read(), Owner::Load(load));
                State::User { row: None, row_read: false, head: Some(head), head_state_read: false, user_id }
            }
            StoreRequest::FindCommand(name) => match self.start_find(load, name) {
                Some(state) => state,
                None => return self.answer(op, StoreResult::Found(None)),
            },
            StoreRequest::FindUnique(key) => {
                self.read(Read::All(Partition::Unique { key }), Owner::Load(load));
                State::Unique
            }
            StoreRequest::CountMessages { chat_id, sender, from, to } => {
                let (from, to) = (from.max(1), to.min(u64::from(u32::MAX) * SEQ_BUCKET));
                if from > to {
                    return self.answer(op, StoreResult::Count(0));
                }
                State::Count { chat_id, sender, from, to, next: seq_bucket(from), left: 0, count: 0 }
            }
            StoreRequest::LoadEvent { chat_id, seq } => {
                if seq == 0 || seq > u64::from(u32::MAX) * SEQ_BUCKET {
                    return self.answer(op, StoreResult::Event(None));
                }
                // Asked for at or below the durable head only: no ghost lies there.
                let bucket = seq_bucket(seq);
                let read = Read::Events { chat_id, bucket, from: seq, to: seq, limit: 1, newest_first: false };
                self.read(read, Owner::Load(load));
                State::Event { seq }
            }
        };
        self.loads.all.insert(load, Load { op, state });
        self.count_on(load);
    }

    fn start_chat(&mut self, load: u64, chat_id: ChatId) -> State {
        let parts = [Partition::ChatState { chat_id }, Partition::Members { chat_id }, Partition::Marks { chat_id }];
        // Members of a channel are loaded one by one.
        let parts = if chat_id.is_channel() { &parts[..1] } else { &parts[..] };
        for partition in parts {
            self.read(Read::All(partition.clone()), Owner::Load(load));
        }
        let left = parts.len();
        self.loads.chats.entry(chat_id).or_default().loads += 1;
        let (states, members, marks) = Default::default();
        State::Chat(Box::new(ChatLoad { chat_id, left, states, members, marks, tail: None }))
    }

    /// None: the name cannot be there.
    fn start_find(&mut self, load: u64, name: CommandName) -> Option<State> {
        let chat_id = name.chat_id;
        let head = if chat_id.0 == 0 { Some(1) } else { self.facts.head(chat_id) };
        match head {
            Some(0) => None,
            Some(_) if self.known_names.is_unused(&name) => None,
            Some(head) if self.scan_names(load, chat_id, head) => Some(State::Find { name, left: 1, found: None }),
            Some(head) => {
                let left = self.look_up(load, &name, head);
                Some(State::Find { name, left, found: None })
            }
            None => {
                self.read(Read::All(Partition::ChatState { chat_id }), Owner::Load(load));
                Some(State::Length { name })
            }
        }
    }

    /// A read of a load has its rows.
    pub(super) fn load_read(&mut self, id: u64, statement: Statement, rows: Vec<Row>) {
        let Some(load) = self.loads.all.get_mut(&id) else { return };
        let Statement::Read(read) = statement else { return };
        match &mut load.state {
            State::Chat(_) => self.chat_read(id, &read, rows),
            State::User { .. } => self.user_read(id, &read, rows),
            State::Length { name } => {
                let name = *name;
                self.length_read(id, name, rows);
            }
            State::Unique => {
                let value = rows.into_iter().find_map(|row| match row {
                    Row::Unique { value } => Some(value),
                    _ => None,
                });
                self.finish(id, StoreResult::Unique(value));
            }
            State::Count { sender, left, count, next, to, .. } => {
                *left -= 1;
                let own =
                    |row: &&Row| matches!(row, Row::Sender(row) if row.sender == *sender && row.kind == kind::MESSAGE);
                *count += rows.iter().filter(own).count() as u64;
                if rows.is_empty() {
                    // The log ended before.
                    *next = seq_bucket(*to) + 1;
                }
                self.count_on(id);
            }
            State::Event { seq } => {
                let seq = *seq;
                let event = rows.into_iter().find_map(|row| match row {
                    Row::Event(row) if row.event.seq == seq => Some(Box::new(row.event)),
                    _ => None,
                });
                self.finish(id, StoreResult::Event(event));
            }
            State::Member { user_id, row, marks, left } => {
                *left -= 1;
                let user_id = *user_id;
                for read in rows {
                    match read {
                        Row::Member { user_id: of, row: read } if of == user_id => *row = Some(read),
                        Row::Mark { user_id: of, row: read } if of == user_id => *marks = read,
                        _ => {}
                    }
                }
                if *left == 0 {
                    let marks = *marks;
                    let member = row.take().map(|row| StoredMember { user_id, row, marks });
                    self.finish(id, StoreResult::Member(member));
                }
            }
            State::Behind { .. } | State::Find { .. } => {}
        }
    }

    /// Asks for the next buckets of a count, or ends it.
    fn count_on(&mut self, id: u64) {
        let Some(Load { state: State::Count { chat_id, from, to, next, left, count, .. }, .. }) =
            self.loads.all.get_mut(&id)
        else {
            return;
        };
        let (chat_id, from, to, count) = (*chat_id, *from, *to, *count);
        let mut reads = Vec::new();
        while *left < BUCKETS_AT_A_TIME as usize && *next <= seq_bucket(to) {
            let first = u64::from(*next) * SEQ_BUCKET + 1;
            let (low, high) = (from.max(first), to.min(first + SEQ_BUCKET - 1));
            reads.push(Read::Senders { chat_id, bucket: *next, from: low, to: high });
            *next += 1;
            *left += 1;
        }
        if *left == 0 {
            return self.finish(id, StoreResult::Count(count));
        }
        for read in reads {
            self.read(read, Owner::Load(id));
        }
    }

    fn chat_read(&mut self, id: u64, read: &Read, rows: Vec<Row>) {
        let Some(Load { state: State::Chat(chat), .. }) = self.loads.all.get_mut(&id) else { return };
        match read {
            Read::All(Partition::ChatState { .. }) => chat.states = states_of(rows),
            Read::All(Partition::Members { .. }) => {
                let member = |row| match row {
                    Row::Member { user_id, row } => Some(StoredMember { user_id, row, marks: Default::default() }),
                    _ => None,
                };
                chat.members = rows.into_iter().filter_map(member).collect();
            }
            Read::All(_) => chat.marks = rows,
            _ => {
                let tail = chat.tail.as_mut().expect("events are asked for by it");
                if tail.take(rows) {
                    return self.chat_whole(id);
                }
                let read = tail.read();
                return self.read(read, Owner::Load(id));
            }
        }
        chat.left -= 1;
        if chat.left == 0 {
            let from = newest(&chat.states).map_or(0, |state| state.checkpoint.seq);
            let tail = Tail::new(chat.chat_id, from);
            let read = tail.read();
            chat.tail = Some(tail);
            self.read(read, Owner::Load(id));
        }
    }

    /// Everything of a chat is read.
    fn chat_whole(&mut self, id: u64) {
        let Some(Load { state: State::Chat(chat), .. }) = self.loads.all.get_mut(&id) else { return };
        let (chat_id, tail) = (chat.chat_id, chat.tail.take());
        let states = std::mem::take(&mut chat.states);
        let mut members = std::mem::take(&mut chat.members);
        let marks = std::mem::take(&mut chat.marks);
        let state = newest(&states).cloned();
        let before = state.as_ref().filter(|state| state.checkpoint.seq == 0).map(|state| state.epoch);
        let checkpoint = state.map(|state| state.checkpoint).unwrap_or_default();
        let rows = match tail.map_or(Ok(Vec::new()), |tail| tail.finish(before)) {
            Ok(rows) => rows,
            Err(why) => return self.load_damaged(id, why),
        };
        if checkpoint.seq > 0 && rows.first().map(|row| row.event.seq) != Some(checkpoint.seq) {
            return self.load_damaged(id, format!("chat {chat_id}: no event at its checkpoint {}", checkpoint.seq));
        }
        let head = rows.last().map_or(0, |row| row.event.seq);
        let mut slots = [None, None];
        for state in &states {
            slots[usize::from(state.slot & 1)] = Some(state.checkpoint.seq);
        }
        let lane = self.chats.contains_key(&chat_id);
        let fact = self.facts.of(chat_id);
        fact.head = fact.head.max(Some(head));
        if !lane && fact.slots.is_none() {
            fact.slots = Some(slots);
        }
        if head == 0 {
            return self.finish(id, StoreResult::Chat(None));
        }
        for row in marks {
            if let Row::Mark { user_id, row } = row
                && let Some(member) = members.iter_mut().find(|member| member.user_id == user_id)
            {
                member.marks = row;
            }
        }
        let tail = tail_of(&checkpoint, rows);
        self.finish(id, StoreResult::Chat(Some(Box::new(StoredChat { checkpoint, tail, members }))));
    }

    fn user_read(&mut self, id: u64, read: &Read, rows: Vec<Row>) {
        let Some(Load { state, .. }) = self.loads.all.get_mut(&id) else { return };
        let State::User { row, row_read, head, head_state_read, user_id } = state else { return };
        let user_id = *user_id;
        let mut done = false;
        match read {
            Read::All(Partition::User { .. }) => {
                *row_read = true;
                *row = rows.into_iter().find_map(|row| match row {
                    Row::User(row) => Some(row),
                    _ => None,
                });
            }
            _ => {
                *head_state_read = true;
                done = head.as_mut().expect("it is there until it is finished").take(&rows);
            }
        }
        if !*row_read || !*head_state_read {
            return;
        }
        if row.is_none() {
            return self.finish(id, StoreResult::User(None));
        }
        if !done {
            let read = head.as_ref().expect("it is there until it is finished").read();
            return self.read(read, Owner::Load(id));
        }
        let (row, head) = (row.take().expect("it was looked at"), head.take().expect("it is finished once"));
        debug_assert_eq!(row.user_id, user_id);
        match head.finish() {
            Ok(rows) => {
                let inbox_head = rows.last().map_or(0, |row| row.inbox_seq);
                self.finish(id, StoreResult::User(Some(StoredUser { row, inbox_head })));
            }
            Err(why) => self.load_damaged(id, why),
        }
    }

    fn length_read(&mut self, id: u64, name: CommandName, rows: Vec<Row>) {
        let states = states_of(rows);
        let known = self.facts.head(name.chat_id);
        let Some(newest) = newest(&states).map(|state| state.checkpoint.seq) else {
            // The first append has a checkpoint: what is durable there, if anything, would have one.
            if known.is_none_or(|head| head == 0) {
                return self.finish(id, StoreResult::Found(None));
            }
            return self.find_on(id, name, known.unwrap_or(0));
        };
        let bound = known.unwrap_or_else(|| head_max(newest));
        match self.loads.chats.get_mut(&name.chat_id) {
            Some(loaded) if known.is_none() => {
                loaded.behind.push(id);
                if let Some(load) = self.loads.all.get_mut(&id) {
                    load.state = State::Behind { name, head_max: bound };
                }
            }
            _ => self.find_on(id, name, bound),
        }
    }

    /// It is known how long the chat is at the most.
    pub(super) fn find_on(&mut self, id: u64, name: CommandName, head_max: u64) {
        let left = self.look_up(id, &name, head_max);
        if let Some(load) = self.loads.all.get_mut(&id) {
            load.state = State::Find { name, left, found: None };
        }
    }

    /// What a look-up looks for.
    pub(super) fn name_of(&self, id: u64) -> Option<CommandName> {
        match self.loads.all.get(&id)?.state {
            State::Find { name, .. } => Some(name),
            _ => None,
        }
    }

    /// A partition of names answered.
    pub(super) fn name_read(&mut self, id: u64, row: Option<CommandRow>) {
        let Some(Load { state: State::Find { name, left, found }, .. }) = self.loads.all.get_mut(&id) else { return };
        *left -= 1;
        *found = found.or(row.map(|row| Engine::named(name, row)));
        if *left == 0 {
            let found = *found;
            self.finish(id, StoreResult::Found(found));
        }
    }

    pub(super) fn load_damaged(&mut self, id: u64, why: String) {
        self.finish(id, StoreResult::Damaged(why));
    }

    fn finish(&mut self, id: u64, result: StoreResult) {
        let Some(load) = self.loads.all.remove(&id) else { return };
        self.answer(load.op, result);
        let State::Chat(chat) = load.state else { return };
        let chat_id = chat.chat_id;
        let Some(loaded) = self.loads.chats.get_mut(&chat_id) else { return };
        loaded.loads -= 1;
        if loaded.loads > 0 {
            return;
        }
        let behind = self.loads.chats.remove(&chat_id).map(|loaded| loaded.behind);
        for behind in behind.unwrap_or_default() {
            let Some(Load { state: State::Behind { name, head_max }, .. }) = self.loads.all.get(&behind) else {
                continue;
            };
            let (name, bound) = (*name, *head_max);
            let head = self.facts.head(chat_id).unwrap_or(bound);
            self.find_on(behind, name, head);
        }
    }
}

fn tail_of(checkpoint: &Checkpoint, rows: Vec<EventRow>) -> Vec<parley_protocol::Event> {
    rows.into_iter().map(|row| row.event).filter(|event| event.seq > checkpoint.seq).collect()
}
