//! Every interleaving of a few shards, and every value that a relaxed load may return, by loom. A failure names its
//! scenario; the exploration is deterministic, so running the test again is the replay. `LOOM_LOG=trace` shows the steps.

use super::weave::Modelled;
use super::{Host, Mutation, Op, PLANTED, World, check, live};
use crate::mesh::Capacities;
use loom::model::Builder;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const ONE: Capacities = Capacities { request: 1, answer: 1, fanout: 1, seat: 1 };
const TWO: Capacities = Capacities { request: 2, answer: 2, fanout: 2, seat: 1 };

/// Preemptions in one interleaving; switches where a thread sleeps or yields do not count. The larger scenarios have
/// fewer; `LOOM_MAX_PREEMPTIONS` sets it for all: 2 takes a minute or two.
const PREEMPTIONS_MAX: usize = 3;

/// Explores shards that carry out one script each; returns how many interleavings there were.
fn explore(capacities: Capacities, host: Host, preemptions_max: Option<usize>, scripts: &[&[Op]]) -> usize {
    let scripts: Arc<Vec<Vec<Op>>> = Arc::new(scripts.iter().map(|script| script.to_vec()).collect());
    let explored = Arc::new(AtomicUsize::new(0));
    let count = explored.clone();
    let mut builder = Builder::new();
    builder.max_branches = 10_000;
    builder.preemption_bound = builder.preemption_bound.or(preemptions_max);
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        let shards = scripts.len() as u16;
        let world: World<Modelled> = World::new(shards, capacities);
        let others: Vec<_> = (1..shards)
            .map(|me| {
                let (actor, scripts) = (world.actor(me), scripts.clone());
                loom::thread::spawn(move || live(actor, &scripts, host))
            })
            .collect();
        let mut tallies = vec![live(world.actor(0), &scripts, host)];
        tallies.extend(others.into_iter().map(|other| other.join().expect("a shard ends")));
        check(&scripts, &tallies);
        for (shard, tally) in (0u16..).zip(&tallies) {
            let rings = world.mesh.waker(shard).bell().rings.load(Ordering::Relaxed);
            assert!(rings <= tally.arms, "shard {shard} armed {} times and was woken {rings} times", tally.arms);
            assert!(world.mesh.is_empty(shard), "something is left for shard {shard}");
        }
    });
    explored.load(Ordering::Relaxed)
}

fn explore_both_hosts(name: &str, capacities: Capacities, preemptions_max: Option<usize>, scripts: &[&[Op]]) {
    for host in [Host::Executor, Host::Thread] {
        let explored = explore(capacities, host, preemptions_max, scripts);
        println!("{name}, {host:?}: {explored} interleavings");
        assert!(explored > 1, "nothing was explored");
    }
}

#[test]
fn whatever_is_sent_wakes_a_sleeping_shard() {
    for op in [Op::Fan(1), Op::Seat(1), Op::News(1)] {
        explore_both_hosts(&format!("{op:?}"), ONE, None, &[&[op], &[]]);
    }
    explore_both_hosts("a request", ONE, Some(PREEMPTIONS_MAX), &[&[Op::Ask(1)], &[]]);
}

#[test]
fn two_senders_wake_a_shard_once_a_sleep() {
    let fan: &[Op] = &[Op::Fan(0)];
    explore_both_hosts("two senders", ONE, Some(PREEMPTIONS_MAX), &[&[], fan, fan]);
}

#[test]
fn answers_find_room_and_nobody_waits_for_ever() {
    let (right, left): (&[Op], &[Op]) = (&[Op::Ask(1); 3], &[Op::Ask(0); 3]);
    explore_both_hosts("one way", ONE, Some(2), &[right, &[]]);
    explore_both_hosts("both ways", ONE, Some(2), &[&right[..2], &left[..2]]);
    explore_both_hosts("both ways, room for two", TWO, Some(1), &[right, left]);
}

#[test]
fn three_shards_that_ask_each_other_in_a_ring_end() {
    explore_both_hosts("ring", ONE, Some(1), &[&[Op::Ask(1)], &[Op::Ask(2)], &[Op::Ask(0)]]);
}

#[test]
fn fanout_without_room_is_refused_once_and_nudged() {
    explore_both_hosts("fan-out", ONE, Some(PREEMPTIONS_MAX), &[&[Op::Fan(1); 3], &[]]);
}

#[test]
fn what_is_sent_together_arrives_together() {
    let all = &[Op::Seat(1), Op::Fan(1), Op::Ask(1), Op::News(1), Op::Fan(1)];
    explore_both_hosts("all", ONE, Some(2), &[all, &[Op::Ask(0)]]);
}

/// The model is worth something if it finds these.
#[test]
fn planted_bugs_are_found() {
    let fan: &[Op] = &[Op::Fan(0)];
    let twice: &[Op] = &[Op::Ask(1); 2];
    let planted: [(Mutation, &str, &[&[Op]]); 8] = [
        (Mutation::SleeperWithoutFence, "deadlock", &[&[], fan]),
        (Mutation::SenderWithoutFence, "deadlock", &[&[], fan]),
        (Mutation::NoLastLook, "deadlock", &[&[], fan]),
        (Mutation::WakeBeforePush, "deadlock", &[&[], fan]),
        (Mutation::FlagNotTaken, "was woken", &[&[], fan, fan]),
        (Mutation::NoCredit, "more requests from 0 to 1 than credits", &[twice, &[]]),
        (Mutation::CreditBackEarly, "more requests from 0 to 1 than credits", &[twice, &[]]),
        (Mutation::NoNudge, "deadlock", &[&[Op::Fan(1); 3], &[]]),
    ];
    for (mutation, symptom, scripts) in planted {
        PLANTED.set(Some(mutation));
        let explored = catch_unwind(AssertUnwindSafe(|| explore(ONE, Host::Executor, Some(PREEMPTIONS_MAX), scripts)));
        PLANTED.set(None);
        let panic = explored.expect_err(&format!("{mutation:?} was not found"));
        let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        assert!(said.is_some_and(|said| said.contains(symptom)), "{mutation:?} showed as {said:?}");
    }
}
