//! The planner over a cluster, and what readers see of it, pass the suite that every engine must pass: with replicas that
//! miss writes or get them late, answers that are lost, and what dead writers sent arriving after them.

use parley_protocol::partition::split_mix_64;
use std::cell::RefCell;
use std::rc::Rc;
use storage_core::conformance::{Harness, run};
use storage_core::cql::cluster::{Cluster, ClusterFaults};
use storage_core::cql::engine::{Engine, EngineOptions, StatementId};
use storage_core::cql::rows::{Statement, Write};
use storage_core::cql::view::{CqlView, WriterBounds};
use storage_core::store::{OpId, StoreRequest, StoreResult};

struct Cql {
    engine: Engine,
    epoch: u64,
    cluster: Rc<RefCell<Cluster>>,
    faults: ClusterFaults,
    now_ms: u64,
    /// Given out and not executed.
    pending: Vec<(StatementId, Statement)>,
    /// Sent by dead writers.
    stragglers: Vec<Write>,
    seed: u64,
}

fn options() -> EngineOptions {
    EngineOptions {
        // Nobody waits so long here: the suite takes an unknown outcome for a wrong one.
        unknown_after_ms: 1_000_000_000,
        retry_first_ms: 1,
        retry_last_ms: 8,
        retries_free_a_second: 10_000,
        work_keys_max: 6,
        work_age_ms: 300,
        chats_known_max: 3,
        ..EngineOptions::default()
    }
}

fn engine(epoch: u64) -> Engine {
    let mut engine = Engine::new(options(), epoch, epoch);
    engine.set_lease(Some(u64::MAX));
    engine
}

impl Cql {
    fn new(faults: ClusterFaults, seed: u64) -> Cql {
        Cql {
            engine: engine(1),
            epoch: 1,
            cluster: Rc::new(RefCell::new(Cluster::new(seed))),
            faults,
            now_ms: 1_000,
            pending: Vec::new(),
            stragglers: Vec::new(),
            seed,
        }
    }

    fn random(&mut self, below: usize) -> usize {
        self.seed = self.seed.wrapping_add(1);
        (split_mix_64(self.seed) % below.max(1) as u64) as usize
    }

    fn step(&mut self) {
        self.now_ms += 1;
        if self.engine.next_timer().is_some_and(|at| at <= self.now_ms) {
            self.engine.handle_timer(self.now_ms);
        }
        while let Some(given) = self.engine.poll_statement(self.now_ms) {
            self.pending.push(given);
        }
        if !self.stragglers.is_empty() && self.random(100) < 10 {
            let at = self.random(self.stragglers.len());
            let write = self.stragglers.swap_remove(at);
            let _unheard = self.cluster.borrow_mut().write(&write);
        }
        for _ in 0..self.random(self.pending.len() + 1) {
            let at = self.random(self.pending.len());
            let (id, statement) = self.pending.swap_remove(at);
            let result = self.cluster.borrow_mut().execute(&statement);
            self.engine.handle_result(self.now_ms, id, result);
        }
    }
}

impl Harness for Cql {
    type View = CqlView<Rc<RefCell<Cluster>>, WriterBounds>;

    fn submit(&mut self, op: OpId, request: StoreRequest) {
        self.engine.submit(self.now_ms, op, request);
    }

    fn poll(&mut self, done: &mut Vec<(OpId, StoreResult)>) {
        self.cluster.borrow_mut().faults = self.faults;
        let had = done.len();
        for _ in 0..100_000 {
            self.engine.completions(done);
            if done.len() > had {
                // The suite reads once: what is late stays late, but readers get their answers.
                self.cluster.borrow_mut().faults.unknown_per_mille = 0;
                return;
            }
            self.step();
        }
        panic!("nothing completes");
    }

    fn view(&self) -> Self::View {
        let bounds = WriterBounds { in_flight: self.engine.in_flight(), epoch: self.epoch };
        CqlView::new(self.cluster.clone(), bounds)
    }

    fn reopen(mut self) -> Cql {
        let left = std::mem::take(&mut self.pending).into_iter();
        self.stragglers.extend(left.filter_map(|(_, statement)| match statement {
            Statement::Write(write) => Some(write),
            Statement::Read(_) => None,
        }));
        self.epoch += 1;
        self.engine = engine(self.epoch);
        self
    }
}

#[test]
fn the_planner_conforms_over_a_cluster_that_does_as_it_is_told() {
    run(|| Cql::new(ClusterFaults::NONE, 1));
}

#[test]
fn the_planner_conforms_over_a_cluster_with_every_fault() {
    for round in 0..6 {
        let mut seed = round * 1_000;
        run(|| {
            seed += 1;
            Cql::new(ClusterFaults::MANY, seed)
        });
    }
}
