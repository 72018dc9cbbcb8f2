//! The tests of the engine find the bugs that can be planted in it.
#![cfg(feature = "planted")]

mod common;
mod cql_common;

use cql_common::random::{Run, step};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::panic::{AssertUnwindSafe, catch_unwind};
use storage_core::planted::{Bug, plant};

/// Runs that a bug may need.
const RUNS_MAX: u64 = 300;

fn found(bug: Option<Bug>, runs: u64) -> Option<u64> {
    let mut runner = TestRunner::deterministic();
    let strategy = prop::collection::vec(step(), 60..120);
    for seed in 0..runs {
        let steps = strategy.new_tree(&mut runner).expect("steps").current();
        plant(bug);
        let run = AssertUnwindSafe(|| {
            let mut run = Run::new(seed);
            steps.iter().for_each(|step| run.take(step));
            run.finish();
        });
        let violated = catch_unwind(run).is_err();
        plant(None);
        if violated {
            return Some(seed);
        }
    }
    None
}

#[test]
fn nothing_is_found_where_nothing_is_planted() {
    assert_eq!(found(None, 60), None);
}

#[test]
fn an_entry_before_its_event_is_found() {
    assert!(found(Some(Bug::InboxBeforeEvent), RUNS_MAX).is_some());
}

#[test]
fn a_missing_rederivation_is_found() {
    assert!(found(Some(Bug::NoRederivation), RUNS_MAX).is_some());
}
