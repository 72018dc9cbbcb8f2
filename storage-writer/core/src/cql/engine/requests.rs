//! Statements: those that wait, those under way, those that are repeated. What they are for is the owner's affair.

use super::{EngineOptions, Owner};
use crate::cql::limit::{Kind, Limit};
use crate::cql::rows::{Partition, Statement};
use hashbrown::HashMap;
use parley_protocol::partition::split_mix_64;
use std::collections::{BTreeSet, VecDeque};

/// Names a statement between `poll_statement` and `handle_result`.
pub type StatementId = u64;

/// Statements given out, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatementCounts {
    /// Appends.
    pub events: u64,
    /// Entries of inboxes, and where their newest part lies.
    pub inbox: u64,
    /// Everything else that follows from events, marks, users, unique keys, records.
    pub derived: u64,
    /// Lists of work in flight.
    pub work: u64,
    /// Questions.
    pub reads: u64,
    /// Of all those, how many were given out again.
    pub retries: u64,
}

impl StatementCounts {
    /// Requests to the cluster.
    pub fn total(&self) -> u64 {
        self.events + self.inbox + self.derived + self.work + self.reads
    }
}

#[derive(Debug)]
struct Request {
    statement: Statement,
    owner: Owner,
    attempts: u32,
    /// Tokens of the budget that its repetitions took.
    borrowed: u64,
    /// When it was given out; none while it waits.
    sent_ms: Option<u64>,
}

/// A thousandth of a repetition.
const TOKEN: u64 = 1_000;
/// What a success adds to the budget: a fifth of a repetition.
const TOKENS_A_SUCCESS: u64 = TOKEN / 5;
/// No more repetitions than these are saved up.
const TOKENS_MAX: u64 = 100 * TOKEN;

/// Repetitions are paid for by successes, so that they do not bury a cluster that has too much to do. Some are free, as
/// probes of one that is away; one that succeeds is paid back, so that all are under way soon when it returns.
#[derive(Debug)]
struct Budget {
    tokens: u64,
    free_a_second: u64,
    filled_ms: u64,
}

impl Budget {
    fn fill(&mut self, now_ms: u64) {
        let passed_ms = now_ms.saturating_sub(self.filled_ms);
        self.filled_ms = self.filled_ms.max(now_ms);
        self.give(passed_ms.min(10_000) * self.free_a_second);
    }

    fn give(&mut self, tokens: u64) {
        self.tokens = (self.tokens + tokens).min(TOKENS_MAX);
    }

    fn take(&mut self) -> bool {
        let enough = self.tokens >= TOKEN;
        if enough {
            self.tokens -= TOKEN;
        }
        enough
    }

    /// When the next repetition can be paid.
    fn ready_ms(&self) -> u64 {
        self.filled_ms + TOKEN.saturating_sub(self.tokens).div_ceil(self.free_a_second.max(1))
    }
}

#[derive(Debug)]
pub(super) struct Requests {
    all: HashMap<StatementId, Request>,
    next_id: StatementId,
    writes: VecDeque<StatementId>,
    reads: VecDeque<StatementId>,
    /// By the time from which they may be given out again.
    retries: BTreeSet<(u64, StatementId)>,
    budget: Budget,
    under_way: usize,
    limit: Limit,
    lease_ms: Option<u64>,
    retry_ms: (u64, u64),
    seed: u64,
    pub(super) counts: StatementCounts,
}

impl Requests {
    pub(super) fn new(options: &EngineOptions, seed: u64) -> Requests {
        Requests {
            all: HashMap::new(),
            next_id: 1,
            writes: VecDeque::new(),
            reads: VecDeque::new(),
            retries: BTreeSet::new(),
            budget: Budget { tokens: TOKENS_MAX / 2, free_a_second: options.retries_free_a_second, filled_ms: 0 },
            under_way: 0,
            limit: Limit::new(options.limit),
            lease_ms: None,
            retry_ms: (options.retry_first_ms.max(1), options.retry_last_ms.max(1)),
            seed,
            counts: StatementCounts::default(),
        }
    }

    pub(super) fn set_lease(&mut self, valid_until_ms: Option<u64>) {
        self.lease_ms = valid_until_ms;
    }

    pub(super) fn push(&mut self, statement: Statement, owner: Owner) {
        let id = self.next_id;
        self.next_id += 1;
        match statement {
            Statement::Write(_) => self.writes.push_back(id),
            Statement::Read(_) => self.reads.push_back(id),
        }
        self.all.insert(id, Request { statement, owner, attempts: 0, borrowed: 0, sent_ms: None });
    }

    pub(super) fn clear(&mut self) {
        self.all.clear();
        self.writes.clear();
        self.reads.clear();
        self.retries.clear();
        self.under_way = 0;
    }

    /// Lets what is to be repeated, and can be paid, stand in front again.
    pub(super) fn promote(&mut self, now_ms: u64) {
        self.budget.fill(now_ms);
        while let Some((due_ms, id)) = self.retries.first().copied() {
            if due_ms > now_ms || !self.budget.take() {
                return;
            }
            self.retries.pop_first();
            let request = self.all.get_mut(&id).expect("what is repeated is known");
            request.borrowed += TOKEN;
            match request.statement {
                Statement::Write(_) => self.writes.push_front(id),
                Statement::Read(_) => self.reads.push_front(id),
            }
        }
    }

    pub(super) fn next_timer(&self) -> Option<u64> {
        self.retries.first().map(|(due_ms, _)| (*due_ms).max(self.budget.ready_ms()))
    }

    pub(super) fn poll(&mut self, now_ms: u64) -> Option<(StatementId, Statement)> {
        self.promote(now_ms);
        // A read is no harmless thing: it repairs rows, under the hands of the next writer.
        let leased = self.lease_ms.is_some_and(|until_ms| now_ms < until_ms);
        if !leased || self.under_way >= self.limit.allowed() {
            return None;
        }
        let write = self.writes.front().copied();
        let read = self.reads.front().copied();
        // The older first.
        let id = match (write, read) {
            (Some(write), Some(read)) => write.min(read),
            (write, read) => write.or(read)?,
        };
        if Some(id) == write {
            self.writes.pop_front()
        } else {
            self.reads.pop_front()
        };
        let request = self.all.get_mut(&id).expect("what waits is known");
        request.sent_ms = Some(now_ms);
        self.under_way += 1;
        self.counts.retries += u64::from(request.attempts > 0);
        *counter(&mut self.counts, &request.statement) += 1;
        Some((id, request.statement.clone()))
    }

    /// A statement has its result: who waits for it, with the statement.
    pub(super) fn answered(&mut self, now_ms: u64, id: StatementId) -> Option<(Owner, Statement)> {
        let sent_ms = self.all.get(&id)?.sent_ms?;
        let request = self.all.remove(&id)?;
        let kind = match request.statement {
            Statement::Write(_) => Kind::Write,
            Statement::Read(_) => Kind::Read,
        };
        self.limit.answered(now_ms, kind, now_ms.saturating_sub(sent_ms), self.under_way);
        self.under_way -= 1;
        self.budget.give(TOKENS_A_SUCCESS + request.borrowed);
        Some((request.owner, request.statement))
    }

    /// Nobody knows what became of a statement: it is repeated, unchanged.
    pub(super) fn unknown(&mut self, now_ms: u64, id: StatementId) {
        let Some(request) = self.all.get_mut(&id).filter(|request| request.sent_ms.is_some()) else { return };
        request.sent_ms = None;
        // What failed is not paid back.
        request.borrowed = 0;
        let (first_ms, last_ms) = self.retry_ms;
        let wait_ms = (first_ms << request.attempts.min(16)).min(last_ms);
        request.attempts += 1;
        self.seed = self.seed.wrapping_add(1);
        let jittered_ms = wait_ms / 2 + split_mix_64(self.seed) % (wait_ms / 2 + 1);
        self.retries.insert((now_ms + jittered_ms.max(1), id));
        self.under_way -= 1;
        self.limit.timed_out(now_ms);
    }

    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }

    pub(super) fn waiting(&self) -> usize {
        self.all.len() - self.under_way
    }

    pub(super) fn limit(&self) -> usize {
        self.limit.allowed()
    }

    pub(super) fn owners(&self) -> impl Iterator<Item = &Owner> {
        self.all.values().map(|request| &request.owner)
    }

    pub(super) fn check_invariants(&self) {
        let sent = self.all.values().filter(|request| request.sent_ms.is_some()).count();
        assert_eq!(sent, self.under_way);
        assert_eq!(self.all.len(), sent + self.writes.len() + self.reads.len() + self.retries.len());
    }
}

fn counter<'a>(counts: &'a mut StatementCounts, statement: &Statement) -> &'a mut u64 {
    match statement {
        Statement::Read(_) => &mut counts.reads,
        Statement::Write(write) => match write.partition {
            Partition::Events { .. } => &mut counts.events,
            Partition::Inbox { .. } | Partition::InboxState { .. } => &mut counts.inbox,
            Partition::Work { .. } => &mut counts.work,
            _ => &mut counts.derived,
        },
    }
}
