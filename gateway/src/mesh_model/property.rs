//! Any operations in any order, one after another, on the shipped mesh and on a reference of plain queues beside it:
//! each has the same outcome, credits are what is under way, and everything comes to rest.

use super::{Actor, Item, Message, Op, Outcome, World};
use crate::mesh::{Capacities, Native, Waker};
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;

const SHARDS: u16 = 3;

/// What is under way from one shard to another.
#[derive(Clone, Debug, Default)]
struct Way {
    requests: VecDeque<Message>,
    answers: VecDeque<Message>,
    fanout: VecDeque<Message>,
    seats: VecDeque<u32>,
    /// Of the sender's turn: something was put here.
    touched: bool,
    /// Of the sender's turn: a fan-out message was refused.
    full: bool,
    /// The last refused fan-out message, until its nudge is sent.
    nudge: Option<u32>,
    /// Requests that the target has and has not answered.
    unanswered: usize,
}

impl Way {
    fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.answers.is_empty() && self.fanout.is_empty() && self.seats.is_empty()
    }
}

#[derive(Clone, Debug, Default)]
struct Shard {
    sent: u32,
    owed: VecDeque<(u16, u32)>,
    news: bool,
    knows_news: bool,
    asleep: bool,
    rings: u64,
}

#[derive(Debug)]
struct Reference {
    capacities: Capacities,
    shards: Vec<Shard>,
    /// By sender, then by target.
    ways: Vec<Vec<Way>>,
}

impl Reference {
    fn new(capacities: Capacities) -> Self {
        let count = usize::from(SHARDS);
        Self { capacities, shards: vec![Shard::default(); count], ways: vec![vec![Way::default(); count]; count] }
    }

    /// Requests from one shard to another whose answer is not back.
    fn open(&self, from: usize, to: usize) -> usize {
        self.ways[from][to].requests.len() + self.ways[from][to].unanswered + self.ways[to][from].answers.len()
    }

    fn is_empty(&self, to: usize) -> bool {
        self.ways.iter().all(|ways| ways[to].is_empty())
    }

    fn wake(&mut self, shard: usize) {
        let shard = &mut self.shards[shard];
        shard.rings += u64::from(std::mem::take(&mut shard.asleep));
    }

    fn fanout(&mut self, from: usize, to: usize, message: Message) -> Outcome {
        let (max, way) = (self.capacities.fanout, &mut self.ways[from][to]);
        if way.full || way.fanout.len() == max {
            way.full = true;
            return Outcome::Full;
        }
        way.fanout.push_back(message);
        way.touched = true;
        Outcome::Done
    }

    fn apply(&mut self, me: usize, op: Op) -> Outcome {
        match op {
            Op::Ask(to) => {
                let to = usize::from(to);
                if self.open(me, to) == self.capacities.request {
                    return Outcome::NoCredit;
                }
                self.shards[me].sent += 1;
                let way = &mut self.ways[me][to];
                way.requests.push_back(Message::Ask(self.shards[me].sent));
                way.touched = true;
            }
            Op::Reply => {
                let Some((from, number)) = self.shards[me].owed.pop_front() else { return Outcome::Nothing };
                self.ways[usize::from(from)][me].unanswered -= 1;
                let way = &mut self.ways[me][usize::from(from)];
                way.answers.push_back(Message::Reply(number));
                way.touched = true;
            }
            Op::Fan(to) => {
                let to = usize::from(to);
                self.shards[me].sent += 1;
                let number = self.shards[me].sent;
                let waits = self.ways[me][to].nudge.is_some();
                if waits || self.fanout(me, to, Message::Fan(number)) == Outcome::Full {
                    self.ways[me][to].nudge = Some(number);
                    return Outcome::Full;
                }
            }
            Op::Nudge(to) => {
                let to = usize::from(to);
                let Some(number) = self.ways[me][to].nudge else { return Outcome::Nothing };
                if self.fanout(me, to, Message::Nudge(number)) == Outcome::Full {
                    return Outcome::Full;
                }
                self.ways[me][to].nudge = None;
            }
            Op::Seat(to) => {
                let way = &mut self.ways[me][usize::from(to)];
                // Also for one that found no room: an extra wake does no harm.
                way.touched = true;
                if way.seats.len() == self.capacities.seat {
                    return Outcome::Full;
                }
                self.shards[me].sent += 1;
                way.seats.push_back(self.shards[me].sent);
            }
            Op::News(to) => {
                self.shards[usize::from(to)].news = true;
                self.wake(usize::from(to));
            }
            Op::EndTurn => {
                for to in 0..self.shards.len() {
                    self.ways[me][to].full = false;
                    if std::mem::take(&mut self.ways[me][to].touched) {
                        self.wake(to);
                    }
                }
            }
            Op::Drain => return Outcome::Took(self.drain(me)),
            Op::Arm => {
                let shard = &self.shards[me];
                let idle = self.is_empty(me) && (shard.knows_news || !shard.news);
                self.shards[me].asleep = idle;
                return Outcome::Idle(idle);
            }
            Op::Disarm => self.shards[me].asleep = false,
        }
        Outcome::Done
    }

    fn drain(&mut self, me: usize) -> Vec<(u16, Item)> {
        let mut took = Vec::new();
        for from in 0..SHARDS {
            let way = &mut self.ways[usize::from(from)][me];
            took.extend(way.answers.drain(..).map(|message| (from, Item::Mesh(message))));
            for message in way.requests.drain(..) {
                let Message::Ask(number) = message else { unreachable!("only requests are there") };
                way.unanswered += 1;
                self.shards[me].owed.push_back((from, number));
                took.push((from, Item::Mesh(message)));
            }
            took.extend(way.fanout.drain(..).map(|message| (from, Item::Mesh(message))));
        }
        for from in 0..SHARDS {
            took.extend(self.ways[usize::from(from)][me].seats.drain(..).map(|seat| (from, Item::Seat(seat))));
        }
        if self.shards[me].news && !self.shards[me].knows_news {
            self.shards[me].knows_news = true;
            took.push((me as u16, Item::News));
        }
        took
    }
}

/// How often an eventfd was written since the last look.
fn rings(waker: &Waker) -> u64 {
    let mut fds = [PollFd::new(waker.eventfd(), PollFlags::IN)];
    if poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("poll") == 0 {
        return 0;
    }
    let mut bytes = [0; 8];
    rustix::io::read(waker.eventfd(), &mut bytes).expect("readable");
    u64::from_ne_bytes(bytes)
}

/// The mesh and its reference, side by side.
struct Pair {
    world: World<Native>,
    actors: Vec<Actor<Native>>,
    reference: Reference,
}

impl Pair {
    fn new(capacities: Capacities) -> Self {
        let world = World::new(SHARDS, capacities);
        let actors = (0..SHARDS).map(|me| world.actor(me)).collect();
        Self { world, actors, reference: Reference::new(capacities) }
    }

    /// Does one thing on both; returns whether it did anything.
    fn apply(&mut self, me: u16, op: Op) -> Result<bool, TestCaseError> {
        let outcome = self.actors[usize::from(me)].apply(op);
        let expected = self.reference.apply(usize::from(me), op);
        prop_assert_eq!(&outcome, &expected, "{:?} of shard {}", op, me);
        for shard in 0..SHARDS {
            let at = usize::from(shard);
            let rung = std::mem::take(&mut self.reference.shards[at].rings);
            prop_assert_eq!(rings(self.world.mesh.waker(shard)), rung, "wakes of {} after {:?} of {}", shard, op, me);
            prop_assert_eq!(self.world.mesh.is_empty(shard), self.reference.is_empty(at));
            for to in 0..SHARDS {
                let open = self.actors[at].credits.open(to) as usize;
                prop_assert_eq!(open, self.reference.open(at, usize::from(to)), "credits of {} to {}", shard, to);
            }
        }
        Ok(match outcome {
            Outcome::Done => true,
            Outcome::Took(took) => !took.is_empty(),
            _ => false,
        })
    }

    /// Lets every shard work until there is nothing left, and looks at what is left.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        // What waits is taken, answered and nudged in the first rounds; the last one takes the answers.
        for _ in 0..4 {
            for me in 0..SHARDS {
                self.apply(me, Op::Disarm)?;
                self.apply(me, Op::EndTurn)?;
                self.apply(me, Op::Drain)?;
                while self.apply(me, Op::Reply)? {}
                for to in (0..SHARDS).filter(|&to| to != me) {
                    self.apply(me, Op::Nudge(to))?;
                }
                self.apply(me, Op::EndTurn)?;
            }
        }
        for me in 0..SHARDS {
            let actor = &self.actors[usize::from(me)];
            prop_assert!(self.world.mesh.is_empty(me), "something is left for {}", me);
            prop_assert!(actor.owed.is_empty() && actor.nudges.iter().all(Option::is_none), "{} owes", me);
            prop_assert!((0..SHARDS).all(|to| actor.credits.open(to) == 0), "credits of {} are out", me);
            prop_assert_eq!(self.actors[usize::from(me)].apply(Op::Arm), Outcome::Idle(true));
        }
        Ok(())
    }
}

fn any_op() -> impl Strategy<Value = (u16, Op)> {
    (0..SHARDS, 1..SHARDS, 0u8..16).prop_map(|(me, step, kind)| {
        let to = (me + step) % SHARDS;
        let op = match kind {
            0..3 => Op::Ask(to),
            3..5 => Op::Reply,
            5..8 => Op::Fan(to),
            8 => Op::Nudge(to),
            9 => Op::Seat(to),
            10 => Op::News(to),
            11 | 12 => Op::EndTurn,
            13 => Op::Drain,
            14 => Op::Arm,
            _ => Op::Disarm,
        };
        (me, op)
    })
}

fn any_capacities() -> impl Strategy<Value = Capacities> {
    (1usize..4, 0usize..2, 1usize..4, 1usize..3).prop_map(|(request, spare, fanout, seat)| Capacities {
        request,
        answer: request + spare,
        fanout,
        seat,
    })
}

proptest! {
    #[test]
    fn property_the_mesh_does_what_plain_queues_do(
        capacities in any_capacities(),
        ops in prop::collection::vec(any_op(), 0..120),
    ) {
        let mut pair = Pair::new(capacities);
        for (me, op) in ops {
            pair.apply(me, op)?;
        }
        pair.settle()?;
    }
}
