//! The engine between the writer and the cluster: groups become statements in the order that keeps what was answered,
//! loads become questions, and a taker derives again what a dead writer left. The order and its reasons are in
//! `docs/adr/0010-a-group-as-rows-of-a-cluster.md`. No IO, no clock, no randomness but from the seed.
//!
//! ```text
//!  submit --> plan -----> lanes of chats, inboxes, marks --+
//!        \--> loads ------------------------------------------> requests --> poll_statement
//!             recover (once, at the start) ----------------+        ^             |
//!                                                                   +-- owner <-- handle_result
//! ```

mod chats;
mod flight;
mod inboxes;
mod invariants;
mod known;
mod loads;
mod marks;
mod names;
mod plan;
mod recover;
mod requests;
mod tail;
mod work;

pub use flight::{Aside, InFlight};
pub use requests::{StatementCounts, StatementId};
pub(super) use tail::log_without_ghosts;

use super::limit::LimitOptions;
use super::rows::{
    Change, Partition, Read, Row, Statement, StatementError, StatementResult, Write, timestamp, timestamp_fits,
};
use crate::planted::{self, Bug};
use crate::store::{Meta, OpId, Outcome, StoreRequest, StoreResult};
use chats::ChatLane;
use flight::{Facts, Touched};
use hashbrown::HashMap;
use inboxes::InboxLane;
use known::{KnownNames, ScanId};
use loads::Loads;
use marks::MarkLane;
use names::{NamesKey, NamesLane};
use parley_protocol::{ChatId, UserId};
use plan::{AccountLane, Flight};
use recover::{Recovery, SetAside};
use requests::Requests;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use work::Work;

/// What an operator may set, and what tests make small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// The partition set.
    pub set: u16,
    /// A group that is not complete so long after it was submitted is told to be unknown.
    pub unknown_after_ms: u64,
    /// Statements under way.
    pub limit: LimitOptions,
    /// Before the first repetition of a statement.
    pub retry_first_ms: u64,
    /// Before each later one, at the most; it doubles up to here.
    pub retry_last_ms: u64,
    /// Repetitions a second that no success has to pay for.
    pub retries_free_a_second: u64,
    /// Chats and users in one list of work; then the next one is taken.
    pub work_keys_max: usize,
    /// Age of a list of work at which the next one is taken.
    pub work_age_ms: u64,
    /// Chats of which is remembered how long they are, and where their checkpoints lie.
    pub chats_known_max: usize,
    /// Names of commands of which is remembered that they were used, 9 to 18 bytes each: chats of which all are known
    /// need no request for a new one.
    pub names_known_max: usize,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            set: 0,
            unknown_after_ms: 2_000,
            limit: LimitOptions::default(),
            retry_first_ms: 20,
            retry_last_ms: 2_000,
            retries_free_a_second: 20,
            work_keys_max: 4_096,
            work_age_ms: 30_000,
            chats_known_max: 400_000,
            names_known_max: 2_000_000,
        }
    }
}

/// How the engine is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineStatus {
    /// Statements given out.
    pub statements: StatementCounts,
    /// Statements under way.
    pub in_flight: usize,
    /// How many may be.
    pub limit: usize,
    /// Statements that wait for the limit, the lease, or to be repeated.
    pub waiting: usize,
    /// Groups that are not complete.
    pub groups: usize,
    /// Loads under way.
    pub loads: usize,
    /// Chats and users in the lists of work.
    pub work_keys: usize,
    /// Recovery is over.
    pub recovered: bool,
    /// Appends that a dead writer left and recovery derived again.
    pub recovered_appends: u64,
    /// Entries of them that had to be numbered again.
    pub recovered_entries: u64,
    /// Chats and inboxes with damaged rows, that nothing is done with until the next start.
    pub set_aside: usize,
}

impl EngineStatus {
    /// Requests to the cluster since the start.
    pub fn requests(&self) -> u64 {
        self.statements.total()
    }
}

/// What a statement is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    /// A write of a list of work.
    List(u64),
    /// The deletion of a list.
    Delete(u8),
    /// The events of the append of a chat that is in flight.
    Events(ChatId),
    /// A derived row of it.
    Derived(ChatId),
    /// Where its checkpoints lie.
    Slots(ChatId),
    /// Entries.
    Inbox(UserId),
    /// Where the newest part of an inbox lies.
    InboxState(UserId),
    /// Marks of a chat.
    Marks(ChatId),
    /// Something of a group that nothing waits for but the group.
    Part(u64),
    /// A row of a user, or a key: the next waits.
    Account(UserId),
    /// A part of a load.
    Load(u64),
    /// Names of commands in one partition.
    Names(NamesKey),
    /// All names of a chat, for a load.
    Scan(u64, ChatId, ScanId),
    /// A part of the recovery.
    Recover(recover::Part),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Recovering,
    Serving,
    Fenced,
    Broken(String),
}

/// The engine.
#[derive(Debug)]
pub struct Engine {
    options: EngineOptions,
    epoch: u64,
    /// Of the newest call.
    now_ms: u64,
    /// Writes that were stamped.
    stamps: u64,
    phase: Phase,
    requests: Requests,
    done: VecDeque<(OpId, StoreResult)>,
    /// What came before the recovery was over.
    early: Vec<(OpId, StoreRequest)>,
    meta: Meta,
    recovery: Option<Box<Recovery>>,

    /// Groups that are not complete; the recovery's is number 0.
    flights: BTreeMap<u64, Flight>,
    submitted_no: u64,
    /// Every group up to here is complete, and those in `complete`.
    complete_to: u64,
    complete: BTreeSet<u64>,
    work: Work,
    chats: HashMap<ChatId, ChatLane>,
    inboxes: HashMap<UserId, InboxLane>,
    marks: HashMap<ChatId, MarkLane>,
    /// Rows of users and their keys that do not stand, with their groups; the first is under way.
    accounts: HashMap<UserId, AccountLane>,
    touched: Touched,
    in_flight: Arc<Mutex<InFlight>>,
    facts: Facts,
    known_names: KnownNames,

    loads: Loads,
    names: HashMap<NamesKey, NamesLane>,
    recovered_appends: u64,
    recovered_entries: u64,
    set_aside: SetAside,
}

impl Engine {
    /// An engine that begins by recovering; `LoadMeta` is answered after it. `epoch` is the lease's, `seed` is for the
    /// jitter of repetitions.
    pub fn new(options: EngineOptions, epoch: u64, seed: u64) -> Engine {
        let mut engine = Engine {
            requests: Requests::new(&options, seed),
            work: Work::new(options.work_keys_max, options.work_age_ms),
            facts: Facts::new(&options),
            known_names: KnownNames::new(options.names_known_max),
            options,
            epoch,
            now_ms: 0,
            stamps: 0,
            phase: Phase::Recovering,
            done: VecDeque::new(),
            early: Vec::new(),
            meta: Meta::default(),
            recovery: None,
            flights: BTreeMap::new(),
            submitted_no: 0,
            complete_to: 0,
            complete: BTreeSet::new(),
            chats: HashMap::new(),
            inboxes: HashMap::new(),
            marks: HashMap::new(),
            accounts: HashMap::new(),
            touched: Touched::default(),
            in_flight: Arc::default(),
            loads: Loads::default(),
            names: HashMap::new(),
            recovered_appends: 0,
            recovered_entries: 0,
            set_aside: SetAside::default(),
        };
        engine.recover();
        engine.end_without_timestamps();
        engine
    }

    /// Takes an operation of the writer.
    pub fn submit(&mut self, now_ms: u64, op: OpId, request: StoreRequest) {
        self.now_ms = now_ms;
        match (&self.phase, request) {
            (Phase::Recovering, request) => self.early.push((op, request)),
            (Phase::Serving, StoreRequest::Commit(group)) => self.commit(op, group),
            (Phase::Serving, load) => self.load(op, load),
            (Phase::Fenced, StoreRequest::Commit(_)) => self.answer(op, StoreResult::Committed(Outcome::Fenced)),
            (Phase::Fenced, _) => self.answer(op, StoreResult::Damaged("the lease is another's".to_owned())),
            (Phase::Broken(why), StoreRequest::Commit(_)) => {
                let outcome = Outcome::Broken(why.clone());
                self.answer(op, StoreResult::Committed(outcome));
            }
            (Phase::Broken(why), _) => {
                let why = why.clone();
                self.answer(op, StoreResult::Damaged(why));
            }
        }
        self.end_without_timestamps();
    }

    /// Appends what completed since the last call to `done`.
    pub fn completions(&mut self, done: &mut Vec<(OpId, StoreResult)>) {
        done.extend(self.done.drain(..));
    }

    /// The next statement to execute. None when nothing waits, or the limit is reached, or the lease is not
    /// valid.
    pub fn poll_statement(&mut self, now_ms: u64) -> Option<(StatementId, Statement)> {
        self.requests.poll(now_ms)
    }

    /// What came of a statement. Unknown ids are ignored.
    pub fn handle_result(&mut self, now_ms: u64, id: StatementId, result: StatementResult) {
        self.now_ms = now_ms;
        match result {
            Err(StatementError::Unknown(_)) => self.requests.unknown(now_ms, id),
            Err(StatementError::Refused(why)) => {
                if self.requests.answered(now_ms, id).is_some() {
                    self.break_off(why);
                }
            }
            Err(StatementError::Damaged(why)) => match self.requests.answered(now_ms, id) {
                Some((_, Statement::Write(_))) => self.break_off(format!("a write was answered with damage: {why}")),
                Some((owner, Statement::Read(_))) => self.owner_damaged(owner, why),
                None => {}
            },
            Ok(rows) => {
                if let Some((owner, statement)) = self.requests.answered(now_ms, id) {
                    self.owner_answered(owner, statement, rows);
                }
            }
        }
        self.end_without_timestamps();
    }

    /// Until when statements may be sent, on the clock of `now_ms`; none: not now.
    pub fn set_lease(&mut self, valid_until_ms: Option<u64>) {
        let zombie = planted::has(Bug::ZombieWrites);
        self.requests.set_lease(if zombie { Some(u64::MAX) } else { valid_until_ms });
    }

    /// The lease is another's: every commit that waits, and every later one, is fenced. Nothing is sent any more.
    pub fn fence(&mut self) {
        if matches!(self.phase, Phase::Recovering | Phase::Serving) {
            self.end(Phase::Fenced, Outcome::Fenced, "the lease is another's");
        }
    }

    /// When [`Engine::handle_timer`] wants to be called.
    pub fn next_timer(&self) -> Option<u64> {
        let unknown = self.flights.values().filter_map(Flight::unknown_ms).min();
        [self.requests.next_timer(), unknown].into_iter().flatten().min()
    }

    /// The time of [`Engine::next_timer`] has come; earlier or later calls do no harm.
    pub fn handle_timer(&mut self, now_ms: u64) {
        self.requests.promote(now_ms);
        for flight in self.flights.values_mut() {
            if let Some(op) = flight.tell_unknown(now_ms) {
                self.done.push_back((op, StoreResult::Committed(Outcome::Unknown)));
            }
        }
    }

    /// What is in flight, shared with readers.
    pub fn in_flight(&self) -> Arc<Mutex<InFlight>> {
        Arc::clone(&self.in_flight)
    }

    /// How the engine is.
    pub fn status(&self) -> EngineStatus {
        EngineStatus {
            statements: self.requests.counts,
            in_flight: self.requests.under_way(),
            limit: self.requests.limit(),
            waiting: self.requests.waiting(),
            groups: self.flights.len(),
            loads: self.loads.len(),
            work_keys: self.work.keys(),
            recovered: self.recovery.is_none() && matches!(self.phase, Phase::Serving),
            recovered_appends: self.recovered_appends,
            recovered_entries: self.recovered_entries,
            set_aside: self.set_aside.len(),
        }
    }

    fn answer(&mut self, op: OpId, result: StoreResult) {
        self.done.push_back((op, result));
    }

    fn write(&mut self, partition: Partition, change: Change, owner: Owner) {
        if !timestamp_fits(self.epoch, self.stamps) {
            // Who calls is in the midst of something: the end comes after it.
            return;
        }
        let timestamp = timestamp(self.epoch, self.stamps);
        self.stamps += 1;
        self.requests.push(Statement::Write(Write { partition, change, timestamp }), owner);
    }

    fn put(&mut self, partition: Partition, rows: Vec<Row>, owner: Owner) {
        self.write(partition, Change::Put(rows), owner);
    }

    fn read(&mut self, read: Read, owner: Owner) {
        self.requests.push(Statement::Read(read), owner);
    }

    /// A statement has its rows.
    fn owner_answered(&mut self, owner: Owner, statement: Statement, rows: Vec<Row>) {
        match owner {
            Owner::List(list) => self.list_stands(list),
            Owner::Delete(slot) => self.list_deleted(slot),
            Owner::Events(chat_id) => self.events_stand(chat_id),
            Owner::Derived(chat_id) => self.derived_stands(chat_id),
            Owner::Slots(chat_id) => self.slots_read(chat_id, &rows),
            Owner::Inbox(user_id) => self.entries_stand(user_id),
            Owner::InboxState(user_id) => self.inbox_state_stands(user_id),
            Owner::Marks(chat_id) => self.marks_stand(chat_id),
            Owner::Part(no) => self.part_done(no),
            Owner::Account(user_id) => self.account_stands(user_id),
            Owner::Load(load) => self.load_read(load, statement, rows),
            Owner::Names(key) => self.names_read(key, &rows),
            Owner::Scan(load, chat_id, scan) => self.names_scanned(load, chat_id, scan, &rows),
            Owner::Recover(part) => self.recover_read(part, Some(rows)),
        }
    }

    /// A row that was asked for does not decode.
    fn owner_damaged(&mut self, owner: Owner, why: String) {
        match owner {
            Owner::Load(load) => self.load_damaged(load, why),
            Owner::Names(key) => self.names_damaged(key, &why),
            Owner::Scan(load, chat_id, _) => self.scan_damaged(load, chat_id),
            Owner::Recover(part) => self.recovery_damaged(part, why),
            // Without knowing where the older checkpoint lies none can be written, nor can the group go on.
            owner => self.break_off(format!("{owner:?}: {why}")),
        }
    }

    /// Without timestamps nothing can be written: another process goes on, under the next epoch.
    fn end_without_timestamps(&mut self) {
        let (epoch, stamps) = (self.epoch, self.stamps);
        if !timestamp_fits(epoch, stamps) && matches!(self.phase, Phase::Recovering | Phase::Serving) {
            self.break_off(format!("no write timestamp is left for write {stamps} of epoch {epoch}"));
        }
    }

    /// The cluster will not do what it must: the process ends.
    fn break_off(&mut self, why: String) {
        self.end(Phase::Broken(why.clone()), Outcome::Broken(why.clone()), &why);
    }

    fn end(&mut self, phase: Phase, outcome: Outcome, why: &str) {
        self.phase = phase;
        self.requests.clear();
        self.names.clear();
        self.recovery = None;
        let flights = std::mem::take(&mut self.flights);
        let mut loads = self.loads.drain();
        for flight in flights.into_values() {
            if let Some(op) = flight.op {
                self.answer(op, StoreResult::Committed(outcome.clone()));
            }
            loads.extend(flight.loads.into_iter().map(|(op, _)| op));
        }
        for op in loads {
            self.answer(op, StoreResult::Damaged(why.to_owned()));
        }
        for (op, request) in std::mem::take(&mut self.early) {
            let result = match request {
                StoreRequest::Commit(_) => StoreResult::Committed(outcome.clone()),
                _ => StoreResult::Damaged(why.to_owned()),
            };
            self.answer(op, result);
        }
    }

    fn shared(&self) -> std::sync::MutexGuard<'_, InFlight> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Group;

    fn commit(engine: &mut Engine) -> Vec<(OpId, StoreResult)> {
        let group = Group { no: 1, writer_epoch: u64::MAX, uniques: vec![("x".to_owned(), 1)], ..Group::default() };
        engine.submit(0, 1, StoreRequest::Commit(group));
        engine.check_invariants();
        let mut done = Vec::new();
        engine.completions(&mut done);
        done
    }

    fn is_broken(done: &[(OpId, StoreResult)]) -> bool {
        let why = "no write timestamp is left";
        matches!(done, [(1, StoreResult::Committed(Outcome::Broken(told)))] if told.starts_with(why))
    }

    #[test]
    fn an_epoch_that_no_timestamp_has_ends_the_engine() {
        for epoch in [1 << 23, u64::MAX] {
            let mut engine = Engine::new(EngineOptions::default(), epoch, 1);
            engine.set_lease(Some(u64::MAX));
            assert_eq!(engine.poll_statement(0), None);
            assert!(is_broken(&commit(&mut engine)), "{epoch}");
        }
    }

    #[test]
    fn the_engine_ends_when_its_timestamps_do() {
        let mut engine = Engine::new(EngineOptions::default(), (1 << 23) - 1, 1);
        engine.set_lease(Some(u64::MAX));
        while let Some((id, _)) = engine.poll_statement(0) {
            engine.handle_result(0, id, Ok(Vec::new()));
        }
        assert!(engine.status().recovered);
        engine.stamps = (1 << 40) - 1;
        assert!(is_broken(&commit(&mut engine)));
    }
}
