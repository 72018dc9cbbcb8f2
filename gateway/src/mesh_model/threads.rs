//! The shards of the model on real threads, over crossbeam's queues and eventfds: what the exploration leaves out.

use super::{Host, Op, Rest, Tally, World, check, live};
use crate::mesh::{Capacities, Native};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Long after every shard of a test has ended: a shard that still sleeps sleeps for ever.
const SECONDS_MAX: usize = 60;

/// A shard was not woken; the others end too, rather than wait for it.
static IS_LOST: AtomicBool = AtomicBool::new(false);

impl Rest for Native {
    fn sleep(eventfd: &OwnedFd) {
        let mut fds = [PollFd::new(eventfd, PollFlags::IN)];
        for _ in 0..SECONDS_MAX {
            if poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })) == Ok(1) {
                rustix::io::read(eventfd, &mut [0; 8]).expect("readable");
                return;
            }
            assert!(!IS_LOST.load(Ordering::Relaxed), "another shard was not woken");
        }
        IS_LOST.store(true, Ordering::Relaxed);
        panic!("a shard was not woken");
    }

    fn pause() {
        assert!(!IS_LOST.load(Ordering::Relaxed), "another shard was not woken");
        thread::yield_now();
    }
}

/// What each shard sends, from a seed.
fn scripts(shards: u16, ops: usize, seed: u64) -> Vec<Vec<Op>> {
    let mut state = seed;
    let mut draw = |below: u16| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % u64::from(below)) as u16
    };
    (0..shards)
        .map(|me| {
            (0..ops)
                .map(|_| {
                    let to = (me + 1 + draw(shards - 1)) % shards;
                    match draw(8) {
                        0..4 => Op::Ask(to),
                        4..6 => Op::Fan(to),
                        6 => Op::Seat(to),
                        _ => Op::News(to),
                    }
                })
                .collect()
        })
        .collect()
}

#[test]
fn shards_on_threads_lose_nothing() {
    for (seed, host) in (1..).zip([Host::Executor, Host::Thread, Host::Executor, Host::Thread]) {
        let capacity = if seed < 3 { 1 } else { 2 };
        let capacities = Capacities { request: capacity, answer: capacity, fanout: capacity, seat: 1 };
        let (scripts, world) = (scripts(3, 4_000, seed), World::<Native>::new(3, capacities));
        let tallies: Vec<Tally> = thread::scope(|scope| {
            let shards = (0..3).map(|me| (world.actor(me), &scripts));
            let shards: Vec<_> =
                shards.map(|(actor, scripts)| scope.spawn(move || live(actor, scripts, host))).collect();
            shards.into_iter().map(|shard| shard.join().expect("a shard ends")).collect()
        });
        check(&scripts, &tallies);
    }
}
