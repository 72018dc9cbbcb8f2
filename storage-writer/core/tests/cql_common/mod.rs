//! An engine over the cluster in memory, as the store of a writer: statements are executed in any order, some late, some
//! with an unknown outcome, and a crash may come between any two.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod random;
#[path = "../common/work.rs"]
pub mod work;

use parley_protocol::partition::split_mix_64;
use parley_protocol::{ChatId, UserId};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use storage_core::cql::cluster::Cluster;
use storage_core::cql::engine::{Engine as CqlEngine, EngineOptions, StatementId};
use storage_core::cql::limit::LimitOptions;
use storage_core::cql::rows::{INBOX_BUCKET, Partition, Read, Row, SEQ_BUCKET, Statement, Write};
use storage_core::cql::view::{CqlView, WriterBounds};
use storage_core::model::State;
use storage_core::store::{EntryRow, Group, OpId, Outcome, Store, StoreRequest, StoreResult, View};

pub const PATIENCE: u64 = 200;

pub fn options() -> EngineOptions {
    EngineOptions {
        unknown_after_ms: 200,
        limit: LimitOptions { min: 4, initial: 8, max: 64 },
        retry_first_ms: 1,
        retry_last_ms: 8,
        retries_free_a_second: 500,
        work_keys_max: 6,
        work_age_ms: 300,
        chats_known_max: 3,
        names_known_max: 20,
        ..EngineOptions::default()
    }
}

/// Everything that was ever named, so that all of it can be read again.
#[derive(Clone, Debug, Default)]
pub struct Named {
    pub chats: BTreeSet<ChatId>,
    pub users: BTreeSet<UserId>,
    pub uniques: BTreeSet<String>,
}

pub struct CqlStore {
    pub engine: CqlEngine,
    pub cluster: Cluster,
    pub options: EngineOptions,
    pub epoch: u64,
    pub now_ms: u64,
    /// Given out and not executed.
    pub pending: Vec<(StatementId, Statement)>,
    /// Writes of dead engines that may still reach the cluster.
    pub stragglers: Vec<Write>,
    pub named: Named,
    pub groups: HashMap<OpId, Group>,
    /// Every group that was answered as durable.
    pub durable: Vec<Group>,
    pub shown: State,
    /// In a thousand: a statement that could be executed waits.
    pub wait_per_mille: u64,
    pub executed: u64,
    /// In a thousand steps: one in which a reader of a dead writer, stopped and waking, reads something.
    pub zombie_per_mille: u64,
    /// What such readers know.
    zombies: Vec<WriterBounds>,
    pub zombie_reads: u64,
    /// Steps in which something is waited for.
    pub patience: u64,
    seed: u64,
}

impl CqlStore {
    pub fn new(cluster: Cluster, options: EngineOptions, seed: u64) -> CqlStore {
        let mut engine = CqlEngine::new(options, 1, seed);
        engine.set_lease(Some(u64::MAX));
        CqlStore {
            engine,
            cluster,
            options,
            epoch: 1,
            now_ms: 1_000,
            pending: Vec::new(),
            stragglers: Vec::new(),
            named: Named::default(),
            groups: HashMap::new(),
            durable: Vec::new(),
            shown: State::default(),
            wait_per_mille: 0,
            zombie_per_mille: 0,
            zombies: Vec::new(),
            zombie_reads: 0,
            executed: 0,
            patience: PATIENCE,
            seed,
        }
    }

    pub fn random(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_add(1);
        split_mix_64(self.seed) % below.max(1)
    }

    /// The process dies; another one takes over. What it had sent may arrive any time later, or never.
    pub fn crash(&mut self) {
        for (_, statement) in std::mem::take(&mut self.pending) {
            if let Statement::Write(write) = statement {
                self.stragglers.push(write);
            }
        }
        self.zombies.push(WriterBounds { in_flight: self.engine.in_flight(), epoch: self.epoch });
        self.epoch += 1;
        self.engine = CqlEngine::new(self.options, self.epoch, self.epoch);
        self.engine.set_lease(Some(u64::MAX));
        self.groups.clear();
    }

    /// One operation, to its end.
    pub fn one(&mut self, op: OpId, request: StoreRequest) -> StoreResult {
        self.submit(op, request);
        let mut done = Vec::new();
        for _ in 0..1_000 {
            self.completions(&mut done);
            if let Some((_, result)) = done.pop() {
                return result;
            }
        }
        panic!("no answer: {:?}", self.engine.status());
    }

    /// A reader whose writer is dead reads at quorum. What it says goes nowhere, but its reads repair rows, and only those
    /// that it asked for.
    fn zombie_read(&mut self) {
        let at = self.random(self.zombies.len() as u64) as usize;
        let Some(bounds) = self.zombies.get(at).cloned() else { return };
        let (chats, users): (Vec<_>, Vec<_>) =
            (self.named.chats.iter().copied().collect(), self.named.users.iter().copied().collect());
        if chats.is_empty() || users.is_empty() {
            return;
        }
        self.zombie_reads += 1;
        let chat_id = chats[self.random(chats.len() as u64) as usize];
        let user_id = users[self.random(users.len() as u64) as usize];
        let (newest, more) = (self.random(8), self.random(4));
        let newest_of = |rows: &[Row]| match rows.first() {
            Some(Row::Event(row)) => row.event.seq,
            Some(Row::Entry { inbox_seq, .. }) => *inbox_seq,
            _ => 0,
        };
        let what = self.random(5);
        let cluster = RefCell::new(std::mem::replace(&mut self.cluster, Cluster::new(0)));
        let view = CqlView::new(&cluster, bounds);
        match what {
            0 => drop(view.head(chat_id)),
            1 => drop(view.user(user_id)),
            2 => drop(view.events(chat_id, newest, newest + more, 9, false)),
            // Rows near the end, one or few alone; also such that no reader should ask for.
            3 => {
                let standing =
                    Read::Events { chat_id, bucket: 0, from: 1, to: SEQ_BUCKET, limit: 1, newest_first: true };
                let top = newest_of(&cluster.borrow().standing(&standing).into_iter().rev().collect::<Vec<_>>());
                let from = (top + 4).saturating_sub(newest).max(1);
                let read = Read::Events { chat_id, bucket: 0, from, to: from + more, limit: 9, newest_first: false };
                drop(cluster.borrow_mut().read(&read));
            }
            _ => {
                let standing =
                    Read::Entries { user_id, bucket: 0, from: 1, to: INBOX_BUCKET, limit: 1, newest_first: true };
                let top = newest_of(&cluster.borrow().standing(&standing).into_iter().rev().collect::<Vec<_>>());
                let from = (top + 4).saturating_sub(newest).max(1);
                let read = Read::Entries { user_id, bucket: 0, from, to: from + more, limit: 9, newest_first: false };
                drop(cluster.borrow_mut().read(&read));
            }
        }
        drop(view);
        self.cluster = cluster.into_inner();
    }

    /// Some milliseconds of the engine and the cluster.
    pub fn step(&mut self) {
        self.now_ms += 1 + self.random(4);
        if self.engine.next_timer().is_some_and(|at| at <= self.now_ms) {
            self.engine.handle_timer(self.now_ms);
            self.engine.check_invariants();
        }
        while let Some(given) = self.engine.poll_statement(self.now_ms) {
            self.pending.push(given);
        }
        if !self.stragglers.is_empty() && self.random(100) < 5 {
            let at = self.random(self.stragglers.len() as u64) as usize;
            let write = self.stragglers.swap_remove(at);
            let _ = self.cluster.execute(&Statement::Write(write));
        }
        if self.random(100) < 10 {
            self.cluster.arrive();
        }
        if self.random(1_000) < self.zombie_per_mille {
            self.zombie_read();
        }
        for _ in 0..self.pending.len() {
            let at = self.random(self.pending.len() as u64) as usize;
            if self.random(1_000) < self.wait_per_mille {
                continue;
            }
            let (id, statement) = self.pending.swap_remove(at);
            self.executed += 1;
            if self.random(1_000) < self.zombie_per_mille {
                self.zombie_read();
            }
            let result = self.cluster.execute(&statement);
            self.engine.handle_result(self.now_ms, id, result);
            self.engine.check_invariants();
        }
    }

    fn learn(&mut self, group: &Group) {
        for append in &group.appends {
            self.named.chats.insert(append.chat_id);
            self.named.users.extend(append.entries.iter().map(|entry| entry.user_id));
        }
        self.named.users.extend(group.users.iter().map(|user| user.user_id));
        self.named.users.extend(group.marks.iter().map(|mark| mark.user_id));
        self.named.uniques.extend(group.uniques.iter().map(|(key, _)| key.clone()));
    }

    fn rows(&mut self, read: Read) -> Vec<Row> {
        self.cluster.execute(&Statement::Read(read)).expect("the cluster is well")
    }

    /// Everything that is stored, by the rules of `docs/adr/0010`, and by nothing of the engine. The cluster must be well.
    pub fn dump(&mut self) -> State {
        let named = self.named.clone();
        let mut state = State::default();
        for key in named.uniques {
            for row in self.rows(Read::All(Partition::Unique { key: key.clone() })) {
                let Row::Unique { value } = row else { panic!("{row:?}") };
                state.uniques.insert(key.clone(), value);
            }
        }
        for user_id in named.users {
            self.dump_user(user_id, &mut state);
        }
        for chat_id in named.chats {
            self.dump_chat(chat_id, &mut state);
        }
        state
    }

    fn dump_user(&mut self, user_id: UserId, state: &mut State) {
        for row in self.rows(Read::All(Partition::User { user_id })) {
            let Row::User(row) = row else { panic!("{row:?}") };
            state.users.insert(user_id, row);
        }
        let mut before = 0;
        for row in self.rows(Read::All(Partition::InboxState { user_id })) {
            let Row::InboxState { bucket, epoch } = row else { panic!("{row:?}") };
            before = if bucket == 0 { epoch } else { 0 };
        }
        let limit = INBOX_BUCKET as u32;
        let read = Read::Entries { user_id, bucket: 0, from: 1, to: INBOX_BUCKET, limit, newest_first: false };
        for row in self.rows(read) {
            let Row::Entry { inbox_seq, row, epoch } = row else { panic!("{row:?}") };
            if epoch < before {
                break;
            }
            before = epoch;
            state.inboxes.entry(user_id).or_default().insert(inbox_seq, row);
        }
    }

    fn dump_chat(&mut self, chat_id: ChatId, state: &mut State) {
        let mut before = 0;
        let mut rows = storage_core::model::ChatRows::default();
        for row in self.rows(Read::All(Partition::ChatState { chat_id })) {
            let Row::ChatState(row) = row else { panic!("{row:?}") };
            if row.checkpoint.seq >= rows.checkpoint.seq {
                before = if row.checkpoint.seq == 0 { row.epoch } else { 0 };
                rows.checkpoint = row.checkpoint;
            }
        }
        let limit = SEQ_BUCKET as u32;
        let read = Read::Events { chat_id, bucket: 0, from: 1, to: SEQ_BUCKET, limit, newest_first: false };
        let events = self.rows(read).into_iter().map(|row| match row {
            Row::Event(row) => row,
            row => panic!("{row:?}"),
        });
        let events: Vec<_> = events.collect();
        let newest = events.iter().map(|row| row.epoch).max().unwrap_or(0);
        let head = events.iter().rposition(|row| row.epoch == newest && newest >= before).map_or(0, |at| at + 1);
        rows.events = events.into_iter().take(head).map(|row| (row.event.seq, row.event)).collect();
        for row in self.rows(Read::All(Partition::Members { chat_id })) {
            let Row::Member { user_id, row } = row else { panic!("{row:?}") };
            let twin = self.rows(Read::Memberships { user_id, after: None, limit: 1_000 });
            let twin = twin.into_iter().find_map(|row| match row {
                Row::Membership { chat_id: of, row } if of == chat_id => Some(row),
                _ => None,
            });
            assert_eq!(twin.as_ref(), Some(&row), "a membership is stored by chat and by user");
            rows.members.insert(user_id, row);
        }
        for row in self.rows(Read::All(Partition::Marks { chat_id })) {
            let Row::Mark { user_id, row } = row else { panic!("{row:?}") };
            rows.marks.insert(user_id, row);
        }
        if !rows.events.is_empty() {
            state.chats.insert(chat_id, rows);
        }
    }

    /// Everything that was answered as durable is there, where it was said to be, and nowhere else.
    pub fn check_durable(&self, state: &State) {
        for group in &self.durable {
            for append in &group.appends {
                let rows = &state.chats[&append.chat_id];
                for event in &append.events {
                    assert_eq!(rows.events.get(&event.seq), Some(event), "an acknowledged event is there");
                }
                for entry in &append.entries {
                    let inbox = &state.inboxes[&entry.user_id];
                    assert_eq!(inbox.get(&entry.inbox_seq), Some(&entry.row), "{:?}", entry.user_id);
                }
            }
            for mark in &group.marks {
                let Some(inbox_seq) = mark.inbox_seq else { continue };
                let row = EntryRow::Own { chat_id: mark.chat_id };
                assert_eq!(state.inboxes[&mark.user_id].get(&inbox_seq), Some(&row));
            }
            for (key, value) in &group.uniques {
                assert_eq!(state.uniques.get(key), Some(value));
            }
            for user in &group.users {
                assert!(state.users.contains_key(&user.user_id));
            }
        }
    }
}

impl Store for CqlStore {
    fn submit(&mut self, op: OpId, request: StoreRequest) {
        if let StoreRequest::Commit(group) = &request {
            self.learn(group);
            self.groups.insert(op, group.clone());
        }
        self.engine.submit(self.now_ms, op, request);
        self.engine.check_invariants();
    }

    fn completions(&mut self, done: &mut Vec<(OpId, StoreResult)>) {
        let before = done.len();
        for _ in 0..self.patience {
            self.engine.completions(done);
            if done.len() > before {
                break;
            }
            self.step();
        }
        for (op, result) in &done[before..] {
            if let StoreResult::Committed(outcome) = result {
                let group = self.groups.remove(op).expect("a commit is answered once");
                if *outcome == Outcome::Durable {
                    self.shown.put(&group);
                    self.durable.push(group);
                }
            }
        }
    }
}
