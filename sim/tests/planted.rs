//! Proof that the simulator can fail: with a rule of the delivery protocol taken out of a core, a violation is found within
//! 200 seeds. Run by `cargo test -p sim --features planted --test planted`.

use sim::{Plan, catch_panics, plant, run};
use std::collections::BTreeSet;

/// Seeds that a bug may need.
const SEEDS_MAX: u64 = 200;

/// Bugs that show nothing alone, with what hides them, and the company in which they show; none: nothing shows them.
const HIDDEN: [(&str, Option<&str>, &str); 0] = [];

/// The first seed that finds it, and the oracle.
fn found(names: &str) -> Option<(u64, String)> {
    plant(names).expect("a bug of this name");
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
    for (name, rule) in sim::bugs() {
        let (plants, hidden) = match HIDDEN.iter().find(|(hidden, ..)| *hidden == name) {
            Some((_, Some(together), _)) => (format!("{name}+{together}"), false),
            Some((_, None, _)) => (name.to_owned(), true),
            None => (name.to_owned(), false),
        };
        if hidden {
            continue;
        }
        match found(&plants) {
            Some((seed, oracle)) => {
                println!("rule {rule:>2}  {plants:<40} seed {seed:>3}  {oracle}");
                rules.insert(rule);
            }
            None => missed.push(plants),
        }
    }
    println!("not found: {missed:?}");
    assert!(missed.is_empty(), "not found within {SEEDS_MAX} seeds: {missed:?}");
    assert!((1..=14).all(|rule| rules.contains(&rule)), "every rule has a bug that is found: {rules:?}");
}
