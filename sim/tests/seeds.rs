//! A seed is a run: the same one every time, in every process, and a plan that was narrowed can be typed again. Seeds that
//! found a bug are run again.

mod common;

use common::sim;
use sim::{Action, Fault, Overflow, Plan, Preset, Report, Store, run};
use std::collections::BTreeSet;

const TICKS: u64 = 4_000;

/// Everything of a report but the words.
fn figures(report: &Report) -> (u64, u64, u64, u64, Option<sim::Violation>) {
    (report.hash, report.ticks, report.ms, report.logged, report.violation.clone())
}

fn seeds() -> impl Iterator<Item = Plan> {
    let kinds =
        [Preset::Default, Preset::Tiny].map(|preset| [Store::Local, Store::Cluster].map(|store| (preset, store)));
    let plan = |seed, (preset, store)| Plan { store, ..Plan::new(seed, TICKS, Some(preset)) };
    (1..=4).flat_map(move |seed| kinds.as_flattened().to_vec().into_iter().map(move |kind| plan(seed, kind)))
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    for plan in seeds() {
        let (first, second) = (run(&plan, true), run(&plan, true));
        assert_eq!(figures(&first), figures(&second), "{}", plan.command_line());
        assert!(!first.lines.is_empty());
        assert_eq!(first.lines, second.lines, "{}", plan.command_line());
        assert_eq!(figures(&run(&plan, false)), figures(&first), "telling it changes nothing: {}", plan.command_line());
    }
}

#[test]
fn two_processes_run_a_seed_alike() {
    for plan in seeds() {
        let here = run(&plan, false).hash;
        let there: Vec<u64> = (0..2).map(|_| sim(&plan.command_line()).hash()).collect();
        assert_eq!(there, [here, here], "{}", plan.command_line());
    }
}

#[test]
fn other_seeds_and_other_presets_are_other_runs() {
    let hashes: BTreeSet<u64> = seeds().map(|plan| run(&plan, false).hash).collect();
    assert_eq!(hashes.len(), seeds().count());
}

/// Plans that differ from what their seed means in every way in which the shrinker makes a plan smaller.
fn narrowed() -> Vec<Plan> {
    let drawn = |seed| Plan::new(seed, TICKS, None);
    let without = |seed, names: &[&str]| {
        let mut plan = drawn(seed);
        names.iter().for_each(|name| plan.leave_out(name).expect("a name"));
        plan
    };
    let all_faults: Vec<&str> = Fault::ALL.iter().map(|fault| fault.name()).collect();
    let all_actions: Vec<&str> = Action::ALL.iter().map(|action| action.name()).collect();
    vec![
        drawn(1),
        Plan::new(2, TICKS, Some(Preset::Default)),
        Plan::new(2, TICKS, Some(Preset::Tiny)),
        Plan { users: 2, ..drawn(3) },
        Plan { shards: 7, ..drawn(4) },
        Plan { ticks: 777, ..drawn(5) },
        Plan { store: Store::Local, ..drawn(1) },
        Plan { store: Store::Cluster, ..drawn(1) },
        Plan { store: Store::Local, ..drawn(2) },
        Plan { store: Store::Cluster, ..drawn(2) },
        without(6, &["send-group", "stall-writer", "delay"]),
        without(7, &all_faults),
        without(8, &all_actions),
        Plan { users: 3, shards: 1, ..without(9, &["split", "read", "mute", "unknown-outcome"]) },
    ]
}

#[test]
fn a_command_line_is_the_plan_that_wrote_it() {
    for plan in narrowed() {
        let line = plan.command_line();
        let ended = sim(&line);
        assert_eq!(ended.code, Some(0), "{line}: {}", ended.out);
        assert_eq!(ended.hash(), run(&plan, false).hash, "{line}");
    }
}

#[test]
fn two_in_five_seeds_are_on_a_cluster() {
    let on_cluster = (1..=1_000).filter(|seed| Plan::new(*seed, TICKS, None).store == Store::Cluster).count();
    assert!((350..450).contains(&on_cluster), "{on_cluster} of 1,000");
    for (store, words) in [(Store::Local, "a local disk"), (Store::Cluster, "a cluster")] {
        let plan = Plan { store, ..Plan::new(1, TICKS, None) };
        assert!(plan.describe().contains(words), "{}", plan.describe());
    }
    let runs = |store| run(&Plan { store, ..Plan::new(1, TICKS, None) }, false).hash;
    assert_ne!(runs(Store::Local), runs(Store::Cluster));
}

#[test]
fn what_is_left_out_does_not_happen() {
    let plan = Plan::new(1, TICKS, None);
    // A send is what writes into logs; membership needs a group, and that is created.
    let mut mute = plan.clone();
    let writes = |name: &str| name.starts_with("send-") || ["create", "trespass"].contains(&name);
    for action in Action::ALL.iter().filter(|action| writes(action.name())) {
        mute.leave_out(action.name()).expect("a name");
    }
    let logged = |seed: u64| run(&Plan { seed, ..plan.clone() }, false).logged;
    assert!((1..=3).any(|seed| logged(seed) > 0), "with them there is something in the logs");
    for seed in 1..=3 {
        assert_eq!(run(&Plan { seed, ..mute.clone() }, false).logged, 0, "and without them nothing");
    }
    let mut calm = Plan::new(1, TICKS, None);
    Fault::ALL.iter().for_each(|fault| calm.leave_out(fault.name()).expect("a name"));
    assert_ne!(run(&calm, false).hash, run(&plan, false).hash);
    let unknown = calm.leave_out("earthquake").expect_err("there is none");
    assert!(unknown.contains("`earthquake`") && unknown.contains("stall-writer"), "{unknown}");
}

#[test]
fn the_exit_code_is_0_for_seeds_that_keep_every_promise_and_2_for_nonsense() {
    let ended = sim(&format!("--seed 1 --seeds 3 --ticks {TICKS}"));
    assert_eq!(ended.code, Some(0), "{}", ended.out);
    assert!(ended.out.starts_with("3 seeds from 1, 0 failed, "), "{}", ended.out);
    for nonsense in ["--without earthquake", "--preset huge", "--store tape", "--sed 1"] {
        let ended = sim(nonsense);
        assert_eq!(ended.code, Some(2), "{nonsense}: {}", ended.out);
        assert!(!ended.err.is_empty(), "{nonsense}");
    }
}

/// The seeds that CI runs come to every bound that the simulator knows of. Most are reached by the first few.
#[test]
fn the_fixed_seeds_reach_every_bound() {
    const SEEDS: u64 = 200;
    let mut missing = Overflow::ALL.to_vec();
    for seed in 1..=SEEDS {
        if missing.is_empty() {
            break;
        }
        let overflows = run(&Plan::new(seed, Plan::TICKS, None), false).overflows;
        missing.retain(|overflow| overflows.of(*overflow) == 0);
    }
    let missing: Vec<&str> = missing.into_iter().map(Overflow::name).collect();
    assert!(missing.is_empty(), "no seed up to {SEEDS} reaches {missing:?}");
}

#[test]
fn seeds_that_found_a_bug_find_none() {
    let mut ran = 0;
    for line in include_str!("regressions.txt").lines().filter(|line| !line.trim().is_empty()) {
        let (arguments, found) = line.split_once('#').unwrap_or_else(|| panic!("say what it found: {line}"));
        if arguments.trim().is_empty() {
            continue;
        }
        let ended = sim(&format!("{arguments} --no-shrink"));
        assert_eq!(ended.code, Some(0), "{arguments}, which once found:{found}\n{}{}", ended.out, ended.err);
        ended.hash();
        ran += 1;
    }
    assert!(ran >= 1, "no regression was run");
}
