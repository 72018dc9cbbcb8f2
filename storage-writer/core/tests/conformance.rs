//! The engines of this crate pass the suite that every engine must pass.

use storage_core::conformance::{Harness, run};
use storage_core::model::{Model, State};
use storage_core::store::{OpId, Store, StoreRequest, StoreResult};
use storage_core::treacherous::{Faults, Treacherous};

struct InMemory(Model);

impl Harness for InMemory {
    type View = State;

    fn submit(&mut self, op: OpId, request: StoreRequest) {
        self.0.submit(op, request);
    }

    fn poll(&mut self, done: &mut Vec<(OpId, StoreResult)>) {
        self.0.completions(done);
        assert!(!done.is_empty());
    }

    fn view(&self) -> State {
        self.0.state.clone()
    }

    fn reopen(self) -> InMemory {
        InMemory(Model::open(self.0.state))
    }
}

struct Slow(Treacherous);

impl Harness for Slow {
    type View = State;

    fn submit(&mut self, op: OpId, request: StoreRequest) {
        self.0.submit(op, request);
        self.0.faults.fail_per_mille = 0;
    }

    fn poll(&mut self, done: &mut Vec<(OpId, StoreResult)>) {
        for _ in 0..100 {
            self.0.completions(done);
            if !done.is_empty() {
                return;
            }
        }
        panic!("nothing completes");
    }

    fn view(&self) -> State {
        self.0.view().clone()
    }

    fn reopen(self) -> Slow {
        Slow(self.0.crash())
    }

    fn fail_next(&mut self) -> bool {
        self.0.faults.fail_per_mille = 1_000;
        true
    }
}

#[test]
fn the_model_conforms() {
    run(|| InMemory(Model::default()));
}

#[test]
fn the_treacherous_engine_conforms_when_it_only_delays() {
    let mut seed = 0;
    run(|| {
        seed += 1;
        Slow(Treacherous::open(State::default(), Faults { delay_polls_max: 5, ..Faults::NONE }, seed))
    });
}
