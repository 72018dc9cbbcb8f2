//! Proof that the simulator can fail: with a rule of the delivery protocol taken out of a core, a violation is found within
//! 200 seeds. Run by `cargo test -p sim --features planted --test planted`.

use sim::{Plan, catch_panics, plant, run};
use std::collections::{BTreeMap, BTreeSet};

/// Seeds that a bug may need.
const SEEDS_MAX: u64 = 200;

/// Bugs that alone change nothing that a client could see, because another rule makes good for them; with that rule. Each
/// breaks a rule that other bugs break visibly.
const HIDDEN: [(&str, &str); 3] = [
    ("HoleNeverRead", "whoever drops an item nudges (rule 10), and a nudge reads; `NoNudgeAtAll` shows"),
    (
        "RelinkUntold",
        "what was lost with a link is resent (rule 6), and the answer to a resend nudges; `DuplicateUntold` shows",
    ),
    ("SweepOff", "whoever drops an item nudges (rule 10); half of all runs have no sweep anyway"),
];

/// The first seed that finds it, and the oracle.
fn found(name: &str) -> Option<(u64, String)> {
    plant(name).expect("a bug of this name");
    let found = (1..=SEEDS_MAX).find_map(|seed| {
        let violation = run(&Plan::new(seed, Plan::TICKS, None), false).violation?;
        Some((seed, violation.oracle))
    });
    plant("").expect("no bug is no name");
    found
}

#[test]
fn every_planted_bug_is_found() {
    catch_panics();
    let mut missed = Vec::new();
    let mut rules = BTreeSet::new();
    let mut oracles: BTreeMap<String, usize> = BTreeMap::new();
    for (name, rule) in sim::bugs() {
        if let Some((_, why)) = HIDDEN.iter().find(|(hidden, _)| *hidden == name) {
            println!("rule {rule:>2}  {name:<28} hidden: {why}");
            continue;
        }
        match found(name) {
            Some((seed, oracle)) => {
                println!("rule {rule:>2}  {name:<28} seed {seed:>3}  {oracle}");
                rules.insert(rule);
                *oracles.entry(oracle).or_default() += 1;
            }
            None => missed.push(name),
        }
    }
    println!("oracles: {oracles:?}");
    // A panic's text is kept for the report, so it is said here as well.
    println!("not found within {SEEDS_MAX} seeds: {missed:?}");
    assert!(missed.is_empty(), "not found within {SEEDS_MAX} seeds: {missed:?}");
    assert!((1..=14).all(|rule| rules.contains(&rule)), "every rule has a bug that is found: {rules:?}");
}
