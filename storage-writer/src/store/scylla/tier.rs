//! The cluster as the shell drives it, on the writer thread: the lease says whether this process may act, the planner
//! what is sent, the executor sends it. What is decided is decided in `storage_core::cql`.

use super::connect::ClusterOptions;
use super::error::OpenError;
use super::executor::{AskResult, ClusterReader, Executor, Timed};
use super::metrics::{ClusterMetrics, PlannerMetrics};
use super::sight::{ClusterSight, Flying};
use crate::store::embedded::files::DirectoryLock;
use crate::store::embedded::{self, Waker};
use crate::tier::{Standing, Tier, boot_ms};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use storage_core::cql::engine::{Engine, EngineOptions, EngineStatus};
use storage_core::cql::lease::{Lease, LeaseAnswer, LeaseOptions, LeaseState};
use storage_core::cql::rows::{StatementError, StatementResult};
use storage_core::cql::view::{CqlView, WriterBounds};
use storage_core::store::{OpId, Store, StoreRequest, StoreResult};

/// How the cluster is used.
#[derive(Clone, Debug)]
pub struct ScyllaOptions {
    /// How it is reached.
    pub cluster: ClusterOptions,
    /// How long a renewal of the lease holds, milliseconds. A writer that is killed is replaced after about two of them.
    pub lease_ms: u32,
    /// The planner's.
    pub engine: EngineOptions,
}

impl Default for ScyllaOptions {
    fn default() -> Self {
        Self { cluster: ClusterOptions::default(), lease_ms: 2_000, engine: EngineOptions::default() }
    }
}

/// How long a stop waits for the lease to be given back: a standby that is not told waits it out.
const GIVE_BACK_MS: u64 = 1_000;
/// Bits of a number that the planner, or the lease, counts; those above name the planner or the lease.
const STATEMENT_BITS: u32 = 40;
const STATEMENT_MASK: u64 = (1 << STATEMENT_BITS) - 1;

/// A planner, for as long as the lease is held.
struct Term {
    epoch: u64,
    engine: Engine,
}

/// The engine, as the writer thread owns it.
pub struct ScyllaStore {
    executor: Executor,
    options: ScyllaOptions,
    lease_options: LeaseOptions,
    lease: Lease,
    /// Counts the leases: an answer to an earlier one is of no use to a later one.
    leases: u64,
    /// What the cluster will not do for the lease, however often it is asked.
    broken: Option<String>,
    term: Option<Term>,
    /// No copy into the keyspace was under way when this process first had the lease: from then on none begins.
    unmarked: bool,
    /// Counts the planners: what an earlier one asked for is of no use to a later one.
    terms: u64,
    flying: Arc<Flying>,
    metrics: Arc<PlannerMetrics>,
    results: Vec<Timed<StatementResult>>,
    answers: Vec<Timed<AskResult>>,
    /// No other process uses the directory: two with one socket would take it from each other. Held, never looked at.
    directory: Option<DirectoryLock>,
}

impl ScyllaStore {
    /// Connects. `address` is where gateways find this writer, `worker` its number in ids.
    pub fn open(
        options: ScyllaOptions,
        worker: u16,
        address: String,
        metrics: (Arc<ClusterMetrics>, Arc<PlannerMetrics>),
        waker: Waker,
    ) -> Result<Self, OpenError> {
        let (cluster_metrics, metrics) = metrics;
        let executor = Executor::connect(&options.cluster, cluster_metrics, waker)?;
        let lease_options = LeaseOptions { lease_ms: options.lease_ms, holder: 0, worker, address };
        let lease = new_lease(&lease_options);
        Ok(Self {
            executor,
            options,
            lease_options,
            lease,
            leases: 1,
            broken: None,
            term: None,
            unmarked: false,
            terms: 0,
            flying: Arc::default(),
            metrics,
            results: Vec::new(),
            answers: Vec::new(),
            directory: None,
        })
    }

    /// Keeps every other process out of the directory with the socket.
    pub(crate) fn lock_directory(&mut self, dir: &Path) -> Result<(), embedded::OpenError> {
        self.directory = Some(DirectoryLock::take(dir)?);
        Ok(())
    }

    /// What a read sees now, for one answer; none while this process is not the sequencer.
    pub fn view(&self) -> Option<CqlView<ClusterReader, WriterBounds>> {
        Some(CqlView::new(self.executor.reader(), self.flying.get()?))
    }

    /// When [`Store::completions`] wants to be called, in milliseconds from now, if nothing wakes it before.
    pub fn timer_in_ms(&self) -> Option<u64> {
        self.next_timer().map(|at| at.saturating_sub(boot_ms()))
    }

    /// What reader threads use.
    pub(crate) fn sight(&self) -> ClusterSight {
        ClusterSight::new(self.executor.reader(), self.flying.clone())
    }

    /// Moves everything on: the lease, the planner, what is between them and the cluster.
    fn drive(&mut self) {
        self.hold();
        let now_ms = boot_ms();
        let mut results = std::mem::take(&mut self.results);
        self.executor.results(&mut results);
        if let Some(Term { engine, .. }) = &mut self.term {
            for (id, result, _) in results.drain(..) {
                if id >> STATEMENT_BITS == self.terms {
                    engine.handle_result(now_ms, id & STATEMENT_MASK, result);
                }
            }
            engine.handle_timer(now_ms);
        }
        results.clear();
        self.results = results;
        self.send();
    }

    /// Takes the lease's answers, and asks for it.
    fn ask_for_lease(&mut self) {
        let mut answers = std::mem::take(&mut self.answers);
        self.executor.answers(&mut answers);
        for (id, answer, _) in answers.drain(..) {
            let answer = match answer {
                Ok(answer) => answer,
                Err(StatementError::Unknown(what)) => LeaseAnswer::Unknown(what),
                Err(StatementError::Refused(what) | StatementError::Damaged(what)) => {
                    self.broken.get_or_insert_with(|| format!("the row of the lease: {what}"));
                    LeaseAnswer::Unknown(what)
                }
            };
            if id >> STATEMENT_BITS == self.leases {
                self.lease.handle(boot_ms(), id & STATEMENT_MASK, answer);
            }
        }
        self.answers = answers;
        while let Some((id, ask)) = self.lease.poll(boot_ms()) {
            debug_assert!(id >> STATEMENT_BITS == 0);
            self.executor.ask(self.leases << STATEMENT_BITS | id, self.options.engine.set, ask);
        }
    }

    /// Another has the lease, or nobody: nothing of this time of being active is of use any more.
    fn end_term(&mut self) {
        self.flying.set_lease(0);
        if self.term.take().is_some() {
            self.flying.replace(None);
            self.metrics.set(&EngineStatus::default());
        }
    }

    /// Asks for the lease and follows what comes of it.
    fn hold(&mut self) {
        self.ask_for_lease();
        match self.lease.state(boot_ms()) {
            LeaseState::Held { epoch, valid_until, .. } => {
                if !self.is_unmarked() {
                    return;
                }
                if self.term.as_ref().is_none_or(|term| term.epoch != epoch) {
                    self.begin(epoch);
                }
                self.flying.set_lease(valid_until);
                if let Some(Term { engine, .. }) = &mut self.term {
                    engine.set_lease(Some(valid_until));
                }
            }
            LeaseState::Expired { .. } => {
                self.flying.set_lease(0);
                if let Some(Term { engine, .. }) = &mut self.term {
                    engine.set_lease(None);
                }
            }
            LeaseState::Lost => {
                self.end_term();
                self.leases += 1;
                self.lease = new_lease(&self.lease_options);
            }
            LeaseState::Watching { .. } | LeaseState::Taking | LeaseState::WaitingOut { .. } => self.end_term(),
        }
    }

    /// Looks once, with the lease in hand, whether a copy into the keyspace has begun since this process looked at its
    /// start: the copy looks at the lease after it has set its mark, so that one of the two gives way.
    fn is_unmarked(&mut self) -> bool {
        if self.unmarked || self.broken.is_some() {
            return self.unmarked;
        }
        match self.executor.copy_mark(&self.options.cluster) {
            Ok(None) => self.unmarked = true,
            Ok(Some(_)) => {
                let keyspace = self.options.cluster.keyspace.clone();
                self.broken = Some(OpenError::Unfinished { keyspace }.to_string());
            }
            // Asked again with the next move.
            Err(error) => tracing::warn!("{error}"),
        }
        self.unmarked
    }

    fn begin(&mut self, epoch: u64) {
        self.terms += 1;
        let engine = Engine::new(self.options.engine, epoch, random() as u64);
        self.flying.replace(Some(WriterBounds { epoch, in_flight: engine.in_flight() }));
        self.term = Some(Term { epoch, engine });
    }

    fn send(&mut self) {
        let Some(Term { engine, .. }) = &mut self.term else { return };
        while self.executor.room() > 0
            && let Some((id, statement)) = engine.poll_statement(boot_ms())
        {
            debug_assert!(id >> STATEMENT_BITS == 0);
            self.executor.execute(self.terms << STATEMENT_BITS | id, statement);
        }
        self.metrics.set(&engine.status());
    }
}

fn random() -> u128 {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system gives random bytes");
    u128::from_ne_bytes(bytes)
}

/// A lease of a holder that never was.
fn new_lease(options: &LeaseOptions) -> Lease {
    let options = LeaseOptions { holder: random() | 1, ..options.clone() };
    Lease::new(options, random() as u64, boot_ms())
}

impl Store for ScyllaStore {
    fn submit(&mut self, op: OpId, request: StoreRequest) {
        // Without a planner there is nobody left who waits for the answer.
        if let Some(Term { engine, .. }) = &mut self.term {
            engine.submit(boot_ms(), op, request);
            self.send();
        }
    }

    fn completions(&mut self, done: &mut Vec<(OpId, StoreResult)>) {
        self.drive();
        if let Some(Term { engine, .. }) = &mut self.term {
            engine.completions(done);
        }
    }
}

impl Tier for ScyllaStore {
    fn standing(&mut self, now_ms: u64) -> Standing {
        let state = self.lease.state(now_ms);
        match (&self.term, state) {
            (Some(term), LeaseState::Held { epoch, worker, .. }) if term.epoch == epoch => {
                Standing::Active { term: self.terms, epoch, worker: Some(worker) }
            }
            (Some(_), LeaseState::Held { .. } | LeaseState::Expired { .. }) => {
                let error = self.lease.last_error();
                let cause = if error.is_empty() { "it was not renewed in time" } else { error };
                Standing::Suspended { reason: format!("the lease of the cluster ran out: {cause}") }
            }
            _ => Standing::Standby {
                active: self.lease.active().to_owned(),
                trouble: self.lease.last_error().to_owned(),
            },
        }
    }

    fn broken(&self) -> Option<String> {
        self.broken.clone()
    }

    fn next_timer(&self) -> Option<u64> {
        let engine = self.term.as_ref().and_then(|term| term.engine.next_timer());
        [self.lease.next_timer(boot_ms()), engine].into_iter().flatten().min()
    }

    fn give_back(&mut self) {
        if self.term.as_ref().is_some_and(|term| term.engine.status().groups > 0) {
            // Something is on its way whose outcome is not known: the next one waits the lease out.
            return;
        }
        self.end_term();
        self.lease.release(boot_ms());
        let until = boot_ms() + GIVE_BACK_MS;
        while !self.lease.is_over() && boot_ms() < until {
            self.ask_for_lease();
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
