//! Proof that the property of the lease can fail: each rule that is left out is seen, in the weather of the property.

mod lease_world;

use lease_world::{World, run, weather};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use storage_core::cql::lease::LeaseBug;

/// The first time that two serve, or an old epoch after a newer one, or two under one.
fn first_violation(bugs: &[LeaseBug]) -> Option<String> {
    let mut runner = TestRunner::deterministic();
    (0..160).find_map(|_| {
        let weather = weather().new_tree(&mut runner).unwrap().current();
        let told = run(World::new(weather).with(bugs)).err()?;
        ["two serve", "is served after", "is of"].iter().any(|what| told.contains(what)).then_some(told)
    })
}

fn is_seen(bugs: &[LeaseBug]) {
    assert!(first_violation(bugs).is_some(), "{bugs:?}: nothing shows");
}

#[test]
fn a_lease_counted_from_the_answer_is_seen() {
    is_seen(&[LeaseBug::CountedFromAnswer]);
}

#[test]
fn a_guessed_outcome_is_seen() {
    is_seen(&[LeaseBug::UnknownTakenAsApplied]);
}

#[test]
fn neither_watched_nor_waited_out_is_seen() {
    is_seen(&[LeaseBug::NotWatched, LeaseBug::NotWaitedOut]);
}

#[test]
fn watching_and_waiting_out_stand_for_each_other() {
    assert_eq!(first_violation(&[LeaseBug::NotWaitedOut]), None);
    assert_eq!(first_violation(&[LeaseBug::NotWatched]), None);
}
