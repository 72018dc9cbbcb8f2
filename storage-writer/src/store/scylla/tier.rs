//! The cluster as the shell drives it, on the writer thread: the lease says whether this process may act, the planner
//! what is sent, the executor sends it. What is decided is decided in `storage_core::cql`.

use super::connect::ClusterOptions;
use super::error::OpenError;
use super::executor::{AskResult, ClusterReader, Executor, Timed};
use super::metrics::{ClusterMetrics, PlannerMetrics};
use super::sight::{ClusterSight, Flying};
use crate::store::embedded::Waker;
use crate::tier::{Standing, Tier, boot_ms};
use std::sync::Arc;
use std::time::Duration;
use storage_core::cql::engine::{Engine, EngineOptions};
use storage_core::cql::lease::{Lease, LeaseAnswer, LeaseOptions, LeaseState};
use storage_core::cql::rows::StatementResult;
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
/// Bits of a statement's number that the planner counts; those above name the planner.
const STATEMENT_BITS: u32 = 40;

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
    term: Option<Term>,
    /// Counts the planners: what an earlier one asked for is of no use to a later one.
    terms: u64,
    flying: Arc<Flying>,
    metrics: Arc<PlannerMetrics>,
    results: Vec<Timed<StatementResult>>,
    answers: Vec<Timed<AskResult>>,
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
            term: None,
            terms: 0,
            flying: Arc::default(),
            metrics,
            results: Vec::new(),
            answers: Vec::new(),
        })
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
                    engine.handle_result(now_ms, id & ((1 << STATEMENT_BITS) - 1), result);
                }
            }
            engine.handle_timer(now_ms);
        }
        results.clear();
        self.results = results;
        self.send();
    }

    /// Asks for the lease and follows what comes of it.
    fn hold(&mut self) {
        let mut answers = std::mem::take(&mut self.answers);
        self.executor.answers(&mut answers);
        for (id, answer, _) in answers.drain(..) {
            let answer = answer.unwrap_or_else(|error| {
                tracing::error!(?error, "the cluster does not answer for the lease");
                LeaseAnswer::Unknown(format!("{error:?}"))
            });
            self.lease.handle(boot_ms(), id, answer);
        }
        self.answers = answers;
        while let Some((id, ask)) = self.lease.poll(boot_ms()) {
            self.executor.ask(id, self.options.engine.set, ask);
        }
        match self.lease.state(boot_ms()) {
            LeaseState::Held { epoch, valid_until, .. } => {
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
                self.term = None;
                self.flying.replace(None);
                self.flying.set_lease(0);
                self.lease = new_lease(&self.lease_options);
            }
            LeaseState::Watching { .. } | LeaseState::Taking | LeaseState::WaitingOut { .. } => {
                self.term = None;
                self.flying.replace(None);
                self.flying.set_lease(0);
            }
        }
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
            _ => Standing::Standby { active: self.lease.active().to_owned() },
        }
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
        self.term = None;
        self.flying.replace(None);
        self.flying.set_lease(0);
        self.lease.release(boot_ms());
        let until = boot_ms() + GIVE_BACK_MS;
        while !self.lease.is_over() && boot_ms() < until {
            self.answers.clear();
            let mut answers = std::mem::take(&mut self.answers);
            self.executor.answers(&mut answers);
            for (id, answer, _) in answers.drain(..) {
                let answer = answer.unwrap_or_else(|error| LeaseAnswer::Unknown(format!("{error:?}")));
                self.lease.handle(boot_ms(), id, answer);
            }
            self.answers = answers;
            while let Some((id, ask)) = self.lease.poll(boot_ms()) {
                self.executor.ask(id, self.options.engine.set, ask);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
