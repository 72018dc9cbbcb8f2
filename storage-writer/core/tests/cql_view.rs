//! A view over the rows of a cluster reads like the model: at rest, with ghosts above every head, with groups in flight,
//! and while they are written.

use parley_protocol::body::kind;
use parley_protocol::frame::ChatSummary;
use parley_protocol::link::{Ask, InboxEntry, Reply};
use parley_protocol::partition::split_mix_64;
use parley_protocol::{ChatId, Event, UserId, limits};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use storage_core::conformance::{Harness, compare, run};
use storage_core::cql::cluster::{Cluster, ClusterFaults};
use storage_core::cql::rows::{
    APPEND_EVENTS_MAX, Change, ChatStateRow, EventRow, INBOX_BUCKET, INBOX_ROWS_MAX, Partition, Read, Row, SEQ_BUCKET,
    StatementResult, Write, inbox_bucket, seq_bucket, timestamp,
};
use storage_core::cql::view::{Bounds, CqlView, Rows, Settled};
use storage_core::model::{Model, State};
use storage_core::reads::{ReadOptions, answer};
use storage_core::store::{Checkpoint, EntryRow, Group, OpId, ReadError, Store, StoreRequest, StoreResult, View};

/// Makes groups rows, in an order that the planner may choose.
#[derive(Clone, Debug)]
struct Layout {
    epoch: u64,
    stamps: u64,
    /// The slot of the older checkpoint.
    slots: BTreeMap<ChatId, u8>,
}

impl Layout {
    fn new(epoch: u64) -> Layout {
        Layout { epoch, stamps: 0, slots: BTreeMap::new() }
    }

    fn write(&mut self, partition: Partition, rows: Vec<Row>) -> Write {
        self.stamps += 1;
        Write { partition, change: Change::Put(rows), timestamp: timestamp(self.epoch, self.stamps) }
    }

    fn events(&mut self, events: &[Event]) -> Write {
        let (chat_id, first) = (events[0].chat_id, events[0].seq);
        let row = |event: &Event| {
            let event = event.clone();
            Row::Event(EventRow { event, epoch: self.epoch, derived_through: first - 1, redo: Vec::new() })
        };
        let rows = events.iter().map(row).collect();
        self.write(Partition::Events { chat_id, bucket: seq_bucket(first) }, rows)
    }

    fn entry(&mut self, user_id: UserId, inbox_seq: u64, row: EntryRow) -> Write {
        let epoch = self.epoch;
        let bucket = inbox_bucket(inbox_seq);
        self.write(Partition::Inbox { user_id, bucket }, vec![Row::Entry { inbox_seq, row, epoch }])
    }

    fn checkpoint(&mut self, chat_id: ChatId, checkpoint: &Checkpoint, present: u32) -> Write {
        let slot = self.slots.entry(chat_id).or_default();
        let row = ChatStateRow { slot: *slot, epoch: self.epoch, checkpoint: checkpoint.clone(), present };
        *slot = 1 - *slot;
        self.write(Partition::ChatState { chat_id }, vec![Row::ChatState(row)])
    }

    /// Events first, then the rest: the entries of an inbox in their order.
    fn group(&mut self, group: &Group) -> Vec<Vec<Write>> {
        self.epoch = group.writer_epoch;
        let events = group.appends.iter().map(|append| self.events(&append.events)).collect();
        let mut derived = Vec::new();
        let mut entries: Vec<(UserId, u64, EntryRow)> = Vec::new();
        for append in &group.appends {
            let chat_id = append.chat_id;
            entries.extend(append.entries.iter().map(|entry| (entry.user_id, entry.inbox_seq, entry.row)));
            for (user_id, row) in &append.members {
                let (user_id, row) = (*user_id, row.clone());
                derived
                    .push(self.write(Partition::Members { chat_id }, vec![Row::Member { user_id, row: row.clone() }]));
                derived.push(self.write(Partition::Memberships { user_id }, vec![Row::Membership { chat_id, row }]));
            }
            if let Some(checkpoint) = &append.checkpoint {
                derived.push(self.checkpoint(chat_id, checkpoint, append.present));
            }
        }
        let mut marks = Vec::new();
        for write in &group.marks {
            let row = EntryRow::Own { chat_id: write.chat_id };
            entries.extend(write.inbox_seq.map(|inbox_seq| (write.user_id, inbox_seq, row)));
            let (user_id, row) = (write.user_id, write.row);
            marks.push(self.write(Partition::Marks { chat_id: write.chat_id }, vec![Row::Mark { user_id, row }]));
        }
        entries.sort_unstable_by_key(|(user_id, inbox_seq, _)| (*inbox_seq, *user_id));
        derived.extend(entries.into_iter().map(|(user_id, inbox_seq, row)| self.entry(user_id, inbox_seq, row)));
        for user in &group.users {
            marks.push(self.write(Partition::User { user_id: user.user_id }, vec![Row::User(user.clone())]));
        }
        for (key, value) in &group.uniques {
            marks.push(self.write(Partition::Unique { key: key.clone() }, vec![Row::Unique { value: *value }]));
        }
        vec![events, derived, marks]
    }
}

fn random(seed: &mut u64, below: u64) -> u64 {
    *seed += 1;
    split_mix_64(*seed) % below
}

fn ghost_event(chat_id: ChatId, seq: u64, like: Option<&Event>) -> Event {
    let mut event = like.cloned().unwrap_or_else(some_event);
    (event.chat_id, event.seq) = (chat_id, seq);
    event
}

fn some_event() -> Event {
    Event {
        chat_id: ChatId::group(9),
        seq: 1,
        ordinal: 1,
        message_id: parley_protocol::MessageId(1),
        sender: UserId(1),
        sender_sent: 1,
        client_msg_id: parley_protocol::ClientMsgId(1),
        envelope: parley_protocol::Envelope { kind: kind::MESSAGE, flags: 0, body: b"ghost".to_vec() },
    }
}

/// What a taker makes of every tail, and then stragglers of the dead above it: up to the most there can be.
fn take_over(cluster: &mut Cluster, layout: &mut Layout, state: &State, epochs: std::ops::Range<u64>, seed: &mut u64) {
    let dead: Vec<u64> = epochs.clone().collect();
    layout.epoch = epochs.end;
    for (chat_id, rows) in &state.chats {
        let head = rows.events.last_key_value().map(|(_, head)| head);
        let adopted = match head {
            Some(head) => layout.events(std::slice::from_ref(head)),
            None => layout.checkpoint(*chat_id, &Checkpoint::default(), 0),
        };
        cluster.seed_with(&adopted);
        let head_seq = head.map_or(0, |head| head.seq);
        for epoch in &dead {
            let room = SEQ_BUCKET - head_seq % SEQ_BUCKET;
            let count = random(seed, APPEND_EVENTS_MAX as u64 + 1).min(room);
            let ghosts: Vec<Event> = (1..=count).map(|at| ghost_event(*chat_id, head_seq + at, head)).collect();
            if !ghosts.is_empty() {
                let mut of = Layout { epoch: *epoch, stamps: 1 << 39, slots: BTreeMap::new() };
                cluster.seed_with(&of.events(&ghosts));
            }
        }
    }
    for user_id in state.users.keys() {
        let last = state.inboxes.get(user_id).and_then(|inbox| inbox.last_key_value());
        let adopted = match last {
            Some((number, row)) => layout.entry(*user_id, *number, *row),
            None => {
                let row = Row::InboxState { bucket: 0, epoch: layout.epoch };
                layout.write(Partition::InboxState { user_id: *user_id }, vec![row])
            }
        };
        cluster.seed_with(&adopted);
        let head = last.map_or(0, |(number, _)| *number);
        for epoch in &dead {
            let mut of = Layout { epoch: *epoch, stamps: 1 << 39, slots: BTreeMap::new() };
            for at in 1..=random(seed, INBOX_ROWS_MAX as u64 + 1) {
                let row = EntryRow::Own { chat_id: ChatId::group(99) };
                cluster.seed_with(&of.entry(*user_id, head + at, row));
            }
        }
    }
}

/// The model, with its groups as rows beside it.
struct Direct {
    model: Model,
    cluster: Rc<RefCell<Cluster>>,
    layout: Layout,
    haunted: bool,
    seed: u64,
    recorded: Rc<RefCell<Vec<Group>>>,
}

impl Direct {
    fn new(haunted: bool, recorded: Rc<RefCell<Vec<Group>>>) -> Direct {
        recorded.borrow_mut().clear();
        let cluster = Rc::new(RefCell::new(Cluster::new(7)));
        Direct { model: Model::default(), cluster, layout: Layout::new(1), haunted, seed: 3, recorded }
    }
}

impl Harness for Direct {
    type View = CqlView<Rc<RefCell<Cluster>>, Settled>;

    fn submit(&mut self, op: OpId, request: StoreRequest) {
        if let StoreRequest::Commit(group) = &request
            && group.writer_epoch >= self.model.state.meta.writer_epoch
        {
            let mut cluster = self.cluster.borrow_mut();
            for write in self.layout.group(group).into_iter().flatten() {
                cluster.write(&write).expect("no faults");
            }
            self.recorded.borrow_mut().push(group.clone());
        }
        self.model.submit(op, request);
    }

    fn poll(&mut self, done: &mut Vec<(OpId, StoreResult)>) {
        self.model.completions(done);
    }

    fn view(&self) -> Self::View {
        CqlView::new(self.cluster.clone(), Settled)
    }

    fn reopen(mut self) -> Direct {
        self.model = Model::open(self.model.state);
        if self.haunted {
            // Several writers died since, the last of them before it wrote anything.
            let epoch = self.model.state.meta.writer_epoch;
            let cluster = &mut self.cluster.borrow_mut();
            take_over(cluster, &mut self.layout, &self.model.state, epoch..epoch + 1, &mut self.seed);
        }
        self
    }
}

#[test]
fn a_view_reads_like_the_model() {
    run(|| Direct::new(false, Rc::default()));
}

#[test]
fn a_view_reads_like_the_model_with_stragglers_above_every_head() {
    run(|| Direct::new(true, Rc::default()));
}

/// Groups as a writer makes them: those of the last case, random work.
fn recorded() -> Vec<Group> {
    let groups = Rc::new(RefCell::new(Vec::new()));
    run(|| Direct::new(false, groups.clone()));
    groups.take()
}

#[test]
fn ghosts_of_several_dead_writers_are_not_shown() {
    let groups = recorded();
    for seed in 0..12 {
        let (mut cluster, mut layout, mut state) = (Cluster::new(seed), Layout::new(1), State::default());
        for group in &groups[..groups.len() * (seed as usize + 1) / 12] {
            layout.group(group).iter().flatten().for_each(|write| cluster.seed_with(write));
            state.put(group);
        }
        let last = state.meta.writer_epoch;
        let mut seed = seed * 1_000;
        take_over(&mut cluster, &mut layout, &state, last..last + 3, &mut seed);
        let cluster = RefCell::new(cluster);
        compare(&CqlView::new(&cluster, Settled), &state);
    }
}

/// Logs and inboxes whose heads, or ghosts, lie at the borders of partitions.
#[test]
fn borders_of_partitions_are_crossed() {
    let chat_id = ChatId::group(5);
    for head in [0, 1, 63, 64, 65, SEQ_BUCKET - 1, SEQ_BUCKET, SEQ_BUCKET + 1, SEQ_BUCKET + 60, 2 * SEQ_BUCKET] {
        for (ghosts, dead) in [(0, 1), (1, 1), (30, 1), (64, 1), (64, 2)] {
            let (mut cluster, mut layout) = (Cluster::new(1), Layout::new(2));
            let event = |seq| Event { seq, ordinal: seq, ..ghost_event(chat_id, seq, None) };
            for seq in 1..=head {
                cluster.seed_with(&layout.events(&[event(seq)]));
            }
            let checkpoint = Checkpoint { seq: head.saturating_sub(70), ordinal: 1, ..Checkpoint::default() };
            if head == 0 || checkpoint.seq > 0 {
                cluster.seed_with(&layout.checkpoint(chat_id, &checkpoint, 2));
            }
            if head > 0 {
                layout.epoch = 5;
                cluster.seed_with(&layout.events(&[event(head)]));
            }
            let (mut at, mut of) = (head, Layout::new(1));
            for _ in 0..dead {
                let room = (SEQ_BUCKET - at % SEQ_BUCKET).min(ghosts);
                let rows: Vec<Event> = (1..=room).map(|more| event(at + more)).collect();
                if !rows.is_empty() && at < head + 1 {
                    cluster.seed_with(&of.events(&rows));
                }
                at += 64;
            }
            let cluster = RefCell::new(cluster);
            let view = CqlView::new(&cluster, Settled);
            let seen = view.head(chat_id).expect("it reads").map_or(0, |event| event.seq);
            assert_eq!(seen, head, "{ghosts} ghosts above {head}");
            assert_eq!(view.events(chat_id, 1, u64::MAX, 9_999, false).expect("it reads").len() as u64, head);
            assert_eq!(view.event(chat_id, head + 1), Ok(None));
        }
    }
    for head in [0, 1, 31, 32, 33, INBOX_BUCKET - 1, INBOX_BUCKET, INBOX_BUCKET + 1, INBOX_BUCKET + 40] {
        for (ghosts, state) in [(0, None), (1, None), (32, None), (0, Some(0)), (32, Some(1))] {
            let (mut cluster, mut layout, user_id) = (Cluster::new(1), Layout::new(2), UserId(7));
            let row = EntryRow::Own { chat_id };
            for number in 1..=head {
                cluster.seed_with(&layout.entry(user_id, number, row));
            }
            let user = storage_core::store::UserRow {
                user_id,
                name: String::new(),
                issuer: String::new(),
                subject: String::new(),
            };
            cluster.seed_with(&layout.write(Partition::User { user_id }, vec![Row::User(user)]));
            let newest = inbox_bucket(head.max(1));
            // Written before the first entry of its bucket, so it may be there and the entry not.
            let bucket = if head == INBOX_BUCKET { state.unwrap_or(newest) } else { newest };
            if bucket > 0 || head == 0 {
                let row = Row::InboxState { bucket, epoch: 2 };
                cluster.seed_with(&layout.write(Partition::InboxState { user_id }, vec![row]));
            }
            let mut of = Layout::new(1);
            (1..=ghosts).for_each(|at| cluster.seed_with(&of.entry(user_id, head + at, row)));
            let cluster = RefCell::new(cluster);
            let view = CqlView::new(&cluster, Settled);
            let user = view.user(user_id).expect("it reads").expect("it is there");
            assert_eq!(user.inbox_head, head, "{ghosts} ghosts above {head}");
            let entries = view.entries(user_id, 0, 99_999).expect("it reads");
            assert!(entries.iter().map(|(number, _)| *number).eq(1..=head));
        }
    }
}

/// Groups being written: one statement each time something is read. Groups follow one another without a pause.
struct Writing {
    cluster: RefCell<Cluster>,
    layout: RefCell<Layout>,
    groups: RefCell<VecDeque<Group>>,
    /// The group in flight, and what of it is not written.
    current: RefCell<Option<(Group, VecDeque<Write>)>>,
    /// States after each durable group.
    states: RefCell<Vec<State>>,
    seed: Cell<u64>,
    planned: Cell<u64>,
}

impl Writing {
    fn new(groups: &[Group], seed: u64) -> Writing {
        let faults = ClusterFaults { late_per_mille: 150, arrive_per_mille: 200, ..ClusterFaults::NONE };
        Writing {
            cluster: RefCell::new(Cluster::with(3, faults, seed)),
            layout: RefCell::new(Layout::new(1)),
            groups: RefCell::new(groups.iter().cloned().collect()),
            current: RefCell::new(None),
            states: RefCell::new(vec![State::default()]),
            seed: Cell::new(seed * 7_919),
            planned: Cell::new(0),
        }
    }

    fn below(&self, below: u64) -> u64 {
        let mut seed = self.seed.get();
        let random = random(&mut seed, below);
        self.seed.set(seed);
        random
    }

    /// One statement, or the end of a group; false when all is written.
    fn step(&self) -> bool {
        let mut current = self.current.borrow_mut();
        if let Some((group, writes)) = &mut *current {
            if let Some(write) = writes.front() {
                // What is not known is repeated, unchanged.
                if self.cluster.borrow_mut().write(write).is_ok() {
                    writes.pop_front();
                }
            } else {
                let mut state = self.states.borrow().last().cloned().expect("the first is empty");
                state.put(group);
                self.states.borrow_mut().push(state);
                *current = None;
            }
            return true;
        }
        let Some(group) = self.groups.borrow_mut().pop_front() else { return false };
        let mut stages = self.layout.borrow_mut().group(&group);
        // Derived rows of different partitions come in any order.
        let turn = self.below(stages[1].len().max(1) as u64) as usize;
        let inbox = |write: &Write| matches!(write.partition, Partition::Inbox { .. });
        let (entries, mut others): (Vec<Write>, Vec<Write>) = stages[1].drain(..).partition(inbox);
        let turn = turn.min(others.len());
        others.rotate_left(turn);
        let mut writes: VecDeque<Write> = stages[0].drain(..).collect();
        match self.below(2) {
            0 => writes.extend(entries.into_iter().chain(others)),
            _ => writes.extend(others.into_iter().chain(entries)),
        }
        writes.extend(stages[2].drain(..));
        *current = Some((group, writes));
        self.planned.set(self.planned.get() + 1);
        true
    }

    fn durable(&self) -> usize {
        self.states.borrow().len() - 1
    }
}

impl Rows for Writing {
    fn read(&self, read: &Read) -> StatementResult {
        for _ in 0..self.below(4) * self.below(12) {
            self.step();
        }
        self.cluster.borrow_mut().read(read)
    }
}

impl Bounds for Writing {
    fn chat(&self, chat_id: ChatId) -> Option<u64> {
        let current = self.current.borrow();
        let (group, _) = current.as_ref()?;
        group.appends.iter().find(|append| append.chat_id == chat_id).map(|append| append.events[0].seq)
    }

    fn user(&self, user_id: UserId) -> Option<u64> {
        let current = self.current.borrow();
        let (group, _) = current.as_ref()?;
        let entries = group.appends.iter().flat_map(|append| &append.entries);
        let entries = entries.filter(|entry| entry.user_id == user_id).map(|entry| entry.inbox_seq);
        let marks = group.marks.iter().filter(|write| write.user_id == user_id).filter_map(|write| write.inbox_seq);
        entries.chain(marks).min()
    }

    fn epoch(&self) -> u64 {
        self.layout.borrow().epoch
    }
}

impl Bounds for &Writing {
    fn chat(&self, chat_id: ChatId) -> Option<u64> {
        (**self).chat(chat_id)
    }

    fn user(&self, user_id: UserId) -> Option<u64> {
        (**self).user(user_id)
    }

    fn epoch(&self) -> u64 {
        (**self).epoch()
    }
}

const OPTIONS: ReadOptions =
    ReadOptions { inbox_fanout_members_max: 5, sync_backlog_max: 100_000, page_bytes_max: limits::PAGE_BYTES_MAX };

fn heads_of(state: &State, chat_id: ChatId) -> u64 {
    state.chats.get(&chat_id).and_then(|rows| rows.events.last_key_value()).map_or(0, |(seq, _)| *seq)
}

/// A summary is what the model said when the chat's head was this one, but for marks, and a removal on its way.
fn check_summary(summary: &ChatSummary, user_id: UserId, states: &[State]) {
    let chat_id = summary.chat_id;
    let member = |state: &&State| state.chats.get(&chat_id).is_some_and(|rows| rows.members.contains_key(&user_id));
    let expected: Vec<ChatSummary> = states
        .iter()
        .filter(member)
        .map(|state| match answer(state, &OPTIONS, &Ask::Chats { user_id, after: None, limit: 0 }) {
            Reply::Chats { chats, .. } => chats.into_iter().find(|chat| chat.chat_id == chat_id).expect("a member"),
            other => panic!("{other:?}"),
        })
        .collect();
    let same = |expected: &&ChatSummary| {
        let facts = |of: &ChatSummary| (of.head_seq, of.head_ordinal, of.title.clone(), of.members, of.last.clone());
        facts(expected) == facts(summary)
    };
    assert!(expected.iter().any(|expected| same(&expected)), "{user_id}: {summary:?} never was so: {expected:?}");
    let last = summary.last.as_ref().expect("a chat has an event");
    assert!(summary.intervals.iter().any(|interval| interval.joined_seq <= last.seq), "{user_id}: {summary:?}");
    let at_end = states.last().expect("some").member(chat_id, user_id).expect("the model reads").expect("a member");
    assert!(
        at_end.intervals.iter().any(|interval| interval.contains(last.seq)),
        "{user_id} must not see {}: {:?}",
        last.seq,
        at_end.intervals
    );
    let log = &states.last().expect("some").chats[&chat_id].events;
    // In a channel nobody's own messages are counted, so they are unread until they are read.
    let counts = |event: &Event| event.sender != user_id || chat_id.is_channel();
    let unread = log
        .range(summary.own.read_seq + 1..)
        .take_while(|(seq, _)| **seq <= last.seq)
        .filter(|(_, event)| event.envelope.kind == kind::MESSAGE && counts(event));
    assert_eq!(summary.unread, unread.count() as u64, "{user_id}: {summary:?}");
}

fn check(ask: &Ask, reply: &Reply, before: usize, writing: &Writing) {
    let states = writing.states.borrow();
    let (first, end) = (&states[before], states.last().expect("some"));
    // What is in flight may be durable by the time somebody looks, not what was not begun.
    match (ask, reply) {
        (Ask::Inbox { user_id, after, .. }, Reply::Inbox(page)) => {
            let head = |state: &State| state.user(*user_id).expect("the model reads").map_or(0, |user| user.inbox_head);
            assert!((head(first)..=head(end)).contains(&page.head), "{ask:?}: {page:?}");
            assert_eq!(page.to - page.after, page.entries.len() as u64);
            let stored = end.entries(*user_id, *after, 100_000).expect("the model reads");
            for ((_, row), entry) in stored.iter().zip(&page.entries) {
                match (row, entry) {
                    (EntryRow::Event { chat_id, seq }, InboxEntry::Event(event)) => {
                        assert_eq!(end.event(*chat_id, *seq), Ok(Some(event.clone())));
                    }
                    (EntryRow::Own { .. }, InboxEntry::Own(_) | InboxEntry::Empty) => {}
                    other => panic!("{ask:?}: {other:?}"),
                }
            }
        }
        (Ask::History { chat_id, .. }, Reply::History { events, .. }) if heads_of(end, *chat_id) == 0 => {
            assert!(events.is_empty(), "nobody wrote yet");
        }
        (Ask::History { user_id, chat_id, .. }, Reply::History { events, .. }) => {
            let member = end.member(*chat_id, *user_id).expect("the model reads").expect("a member");
            for event in events {
                assert_eq!(end.event(*chat_id, event.seq), Ok(Some(event.clone())), "it is durable");
                let may = member.intervals.iter().any(|interval| interval.contains(event.seq));
                assert!(may, "{user_id} must not see {}: {member:?}", event.seq);
            }
            let (low, high) = (heads_of(first, *chat_id), heads_of(end, *chat_id));
            let newest = events.last().map_or(0, |event| event.seq);
            let left = member.role.is_none() || member.intervals.len() > 1;
            assert!(newest <= high && (left || newest >= low), "{ask:?}: {newest} of {low}..={high}");
        }
        (Ask::Chats { user_id, .. }, Reply::Chats { chats, .. }) => {
            let known = first.chats(*user_id, None, 1_000).expect("the model reads");
            for (chat_id, _) in known {
                assert!(chats.iter().any(|chat| chat.chat_id == chat_id), "{chat_id} is left out");
            }
            for summary in chats {
                let low = heads_of(first, summary.chat_id);
                let left = summary.role.is_none() || summary.intervals.len() > 1;
                assert!(left || summary.head_seq >= low, "{summary:?} is older than {low}");
                check_summary(summary, *user_id, &states);
            }
        }
        (Ask::History { .. } | Ask::Members { .. }, Reply::Refused(parley_protocol::ErrorCode::NoSuchChat)) => {}
        (Ask::Members { chat_id, .. }, Reply::Members { .. }) if heads_of(end, *chat_id) == 0 => {
            assert!(matches!(chat_id.kind(), Some(parley_protocol::ChatKind::Direct(..))), "nobody wrote yet");
        }
        (Ask::Members { chat_id, .. }, Reply::Members { members, .. }) => {
            for member in members {
                assert!(end.member(*chat_id, member.user_id).expect("the model reads").is_some());
            }
        }
        other => panic!("{other:?}"),
    }
}

/// Asks while groups are written, as long as there are any; what was met.
fn interleave(groups: &[Group], seed: u64) -> BTreeMap<&'static str, u64> {
    let writing = Writing::new(groups, seed);
    let mut met = BTreeMap::new();
    let end = {
        let mut state = State::default();
        groups.iter().for_each(|group| state.put(group));
        state
    };
    let users: Vec<UserId> = end.users.keys().copied().collect();
    let chats: Vec<ChatId> = end.chats.keys().copied().collect();
    for _ in 0..groups.len() / 3 {
        writing.step();
    }
    while writing.durable() < groups.len() {
        let user_id = users[writing.below(users.len() as u64) as usize];
        let chat_id = chats[writing.below(chats.len() as u64) as usize];
        let ask = match writing.below(4) {
            0 => Ask::Inbox { user_id, after: 0, limit: 1_000 },
            1 => Ask::History { user_id, chat_id, before: None, after: None, limit: 5 },
            2 => Ask::Members { user_id, chat_id, after: None, limit: 0 },
            _ => Ask::Chats { user_id, after: None, limit: 0 },
        };
        let before = writing.durable();
        let view = CqlView::new(&writing, &writing);
        let reply = answer(&view, &OPTIONS, &ask);
        *met.entry(if writing.durable() > before { "moved" } else { "still" }).or_default() += 1;
        if reply == Reply::Refused(parley_protocol::ErrorCode::Unavailable) {
            *met.entry("unavailable").or_default() += 1;
        } else {
            // The one in flight may have been whole when it was looked at: it is durable soon.
            while writing.current.borrow().is_some() {
                writing.step();
            }
            check(&ask, &reply, before, &writing);
        }
        writing.step();
    }
    writing.cluster.borrow_mut().settle();
    compare(&CqlView::new(&writing, &writing), &end);
    met
}

#[test]
fn what_is_read_while_groups_are_written_was_true_at_its_head() {
    let groups = recorded();
    let mut met: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..40 {
        for (what, count) in interleave(&groups, seed) {
            *met.entry(what).or_default() += count;
        }
    }
    let count = |what| met.get(what).copied().unwrap_or(0);
    assert!(count("moved") > 200 && count("unavailable") * 50 < count("moved"), "{met:?}");
}

#[test]
fn a_cluster_that_does_not_answer_is_no_damage() {
    let cluster = RefCell::new(Cluster::new(1));
    cluster.borrow_mut().set_up(0, false);
    cluster.borrow_mut().set_up(1, false);
    let view = CqlView::new(&cluster, Settled);
    assert!(matches!(view.head(ChatId::group(5)), Err(ReadError::Unavailable(_))));
    let reply = answer(&view, &OPTIONS, &Ask::Chats { user_id: UserId(7), after: None, limit: 0 });
    assert_eq!(reply, Reply::Refused(parley_protocol::ErrorCode::Unavailable));
}
