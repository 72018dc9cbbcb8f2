//! Proof of the mesh: what a shard can do with it is one enum, [`Op`], and an [`Actor`] does it with the code that ships.
//! `explore` runs actors through every interleaving under the C11 memory model, `property` any order of operations
//! beside a reference, `threads` the same actors on real threads. Nothing of this is in the product.

mod explore;
mod property;
mod threads;
mod weave;

use crate::mesh::{Capacities, Fabric, Flag, Mesh, Sender};
use gateway_core::brain::{MeshClass, MeshMessage};
use gateway_core::mesh::Credits;
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;

/// What shards of the model say to each other, each with a number of its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    Ask(u32),
    Reply(u32),
    Fan(u32),
    /// Fan-out messages up to this one may be lost.
    Nudge(u32),
}

impl MeshMessage for Message {
    fn class(&self) -> MeshClass {
        match self {
            Message::Ask(_) => MeshClass::Request,
            Message::Reply(_) => MeshClass::Answer,
            Message::Fan(_) | Message::Nudge(_) => MeshClass::Fanout,
        }
    }
}

/// What one shard does; the number is the other shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    /// A request, if a credit is left.
    Ask(u16),
    /// The answer to the oldest request that is still open here.
    Reply,
    /// A fan-out message. While a nudge is owed it counts as refused: it would overtake.
    Fan(u16),
    /// The nudge that is owed after a refused fan-out message.
    Nudge(u16),
    /// A connection.
    Seat(u16),
    /// What is on no queue: a flag, as the drain and the halt are.
    News(u16),
    EndTurn,
    Drain,
    /// Arms, and looks a last time.
    Arm,
    Disarm,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// There was nothing to answer or to nudge.
    Nothing,
    NoCredit,
    Full,
    Took(Vec<(u16, Item)>),
    /// After `Arm`: whether it may sleep.
    Idle(bool),
}

/// What a drain finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    Mesh(Message),
    Seat(u32),
    News,
}

/// Bugs that the model must find, one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutation {
    /// No fence between the flag and the last look.
    SleeperWithoutFence,
    /// No fence between the push and the look at the flag.
    SenderWithoutFence,
    /// The queues are not looked at again after the flag.
    NoLastLook,
    /// Two senders may both find the flag set.
    FlagNotTaken,
    /// The target is woken before it has the message.
    WakeBeforePush,
    /// Requests are sent without a credit.
    NoCredit,
    /// The credit comes back when the request is sent, not when its answer is here.
    CreditBackEarly,
    /// A refused fan-out message leaves no nudge.
    NoNudge,
}

thread_local! {
    /// All threads of an exploration run on the thread that explores.
    static PLANTED: Cell<Option<Mutation>> = const { Cell::new(None) };
}

fn is_planted(mutation: Mutation) -> bool {
    PLANTED.get() == Some(mutation)
}

/// A fabric that a test can sleep on.
trait Rest: Fabric {
    /// Sleeps until the bell was rung. Never ends by itself: a wake that is lost is a deadlock.
    fn sleep(bell: &Self::Bell);
    /// Lets others run, in place of a timer.
    fn pause();
}

type Woven<F> = Arc<Mesh<Message, u32, F>>;

/// What all actors share.
struct World<F: Fabric> {
    mesh: Woven<F>,
    news: Arc<[F::Flag]>,
    capacities: Capacities,
}

impl<F: Fabric> World<F> {
    fn new(shards: u16, capacities: Capacities) -> Self {
        let mesh = Arc::new(Mesh::new(shards, capacities).expect("bells"));
        Self { mesh, news: (0..shards).map(|_| F::Flag::new()).collect(), capacities }
    }

    fn actor(&self, me: u16) -> Actor<F> {
        let shards = self.mesh.shards();
        Actor {
            me,
            mesh: self.mesh.clone(),
            news: self.news.clone(),
            sender: Sender::new(self.mesh.clone(), me),
            credits: Credits::new(shards, self.capacities.request as u32),
            sent: 0,
            owed: VecDeque::new(),
            nudges: vec![None; usize::from(shards)],
            refused: Vec::new(),
            knows_news: false,
        }
    }
}

/// One shard of the model: as little of a brain as the protocol of the mesh needs.
struct Actor<F: Fabric> {
    me: u16,
    mesh: Woven<F>,
    news: Arc<[F::Flag]>,
    sender: Sender<Message, u32, F>,
    credits: Credits,
    /// Numbers requests, fan-out messages and seats.
    sent: u32,
    /// Requests that are not answered yet: who asked, and its number.
    owed: VecDeque<(u16, u32)>,
    /// Per target, the last fan-out message that was refused.
    nudges: Vec<Option<u32>>,
    /// Fan-out messages that were refused, with their target.
    refused: Vec<(u16, u32)>,
    knows_news: bool,
}

impl<F: Fabric> Actor<F> {
    fn apply(&mut self, op: Op) -> Outcome {
        match op {
            Op::Ask(to) => self.ask(to),
            Op::Reply => match self.owed.pop_front() {
                None => Outcome::Nothing,
                Some((from, number)) => self.send(from, Message::Reply(number)),
            },
            Op::Fan(to) => self.fan(to),
            Op::Nudge(to) => match self.nudges[usize::from(to)] {
                None => Outcome::Nothing,
                Some(number) => {
                    let outcome = self.send(to, Message::Nudge(number));
                    if outcome == Outcome::Done {
                        self.nudges[usize::from(to)] = None;
                    }
                    outcome
                }
            },
            Op::Seat(to) => match self.sender.push_seat(to, self.sent + 1) {
                Ok(()) => {
                    self.sent += 1;
                    Outcome::Done
                }
                Err(_) => Outcome::Full,
            },
            Op::News(to) => {
                self.news[usize::from(to)].set(true);
                self.mesh.waker(to).wake();
                Outcome::Done
            }
            Op::EndTurn => {
                self.sender.end_turn();
                Outcome::Done
            }
            Op::Drain => Outcome::Took(self.drain()),
            Op::Arm => {
                let news = &self.news[usize::from(self.me)];
                Outcome::Idle(self.mesh.arm(self.me, || !self.knows_news && news.peek()))
            }
            Op::Disarm => {
                self.mesh.waker(self.me).disarm();
                Outcome::Done
            }
        }
    }

    fn send(&mut self, to: u16, message: Message) -> Outcome {
        match self.sender.push(to, message) {
            Ok(()) => Outcome::Done,
            Err(back) => {
                assert_eq!((back, back.class()), (message, MeshClass::Fanout), "only fan-out comes back");
                Outcome::Full
            }
        }
    }

    fn ask(&mut self, to: u16) -> Outcome {
        if !self.credits.take(to) && !is_planted(Mutation::NoCredit) {
            return Outcome::NoCredit;
        }
        if is_planted(Mutation::CreditBackEarly) {
            self.credits.give(to);
        }
        self.sent += 1;
        self.send(to, Message::Ask(self.sent))
    }

    fn fan(&mut self, to: u16) -> Outcome {
        self.sent += 1;
        let message = Message::Fan(self.sent);
        if is_planted(Mutation::WakeBeforePush) {
            self.mesh.waker(to).wake();
            return self.mesh.push(self.me, to, message).map_or(Outcome::Full, |()| Outcome::Done);
        }
        let waits = self.nudges[usize::from(to)].is_some();
        let outcome = if waits { Outcome::Full } else { self.send(to, message) };
        if outcome == Outcome::Full {
            self.refused.push((to, self.sent));
            if !is_planted(Mutation::NoNudge) {
                self.nudges[usize::from(to)] = Some(self.sent);
            }
        }
        outcome
    }

    fn drain(&mut self) -> Vec<(u16, Item)> {
        let mut took = Vec::new();
        for from in 0..self.mesh.shards() {
            self.mesh.drain(from, self.me, |message| took.push((from, Item::Mesh(message))));
        }
        for &(from, item) in &took {
            match item {
                Item::Mesh(Message::Ask(number)) => self.owed.push_back((from, number)),
                Item::Mesh(Message::Reply(_)) if is_planted(Mutation::CreditBackEarly) => {}
                Item::Mesh(Message::Reply(_)) => self.credits.give(from),
                _ => {}
            }
        }
        for from in 0..self.mesh.shards() {
            while let Some(seat) = self.mesh.pop_seat(from, self.me) {
                took.push((from, Item::Seat(seat)));
            }
        }
        if !self.knows_news && self.news[usize::from(self.me)].peek() {
            self.knows_news = true;
            took.push((self.me, Item::News));
        }
        took
    }
}

/// When a shard that slept says that it is awake: the two hosts differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    /// At once (`host::executor`).
    Executor,
    /// After the turn that follows (`host::thread`).
    Thread,
}

/// What a shard saw and did.
#[derive(Debug, Default)]
struct Tally {
    /// What came, in order.
    took: Vec<(u16, Item)>,
    /// How often it armed.
    arms: usize,
    /// See `Actor::refused`.
    refused: Vec<(u16, u32)>,
}

/// Runs one shard as a host does, until it has carried out its script and received all that the scripts send to it. A
/// script says only what is sent: `Ask`, `Fan`, `Seat`, `News`.
fn live<F: Rest>(mut actor: Actor<F>, scripts: &[Vec<Op>], host: Host) -> Tally {
    let me = actor.me;
    let mut script: VecDeque<Op> = scripts[usize::from(me)].iter().copied().collect();
    let mut tally = Tally::default();
    let mut awaited = Awaited::new(scripts, me);
    loop {
        let Outcome::Took(took) = actor.apply(Op::Drain) else { unreachable!("a drain takes") };
        took.iter().for_each(|&(from, item)| awaited.came(from, item));
        tally.took.extend(took);
        while actor.apply(Op::Reply) == Outcome::Done {}
        let mut soon = false;
        for to in 0..actor.mesh.shards() {
            soon |= actor.apply(Op::Nudge(to)) == Outcome::Full;
        }
        while let Some(&op) = script.front() {
            match (op, actor.apply(op)) {
                (_, Outcome::NoCredit) => break,
                (Op::Seat(_), Outcome::Full) => {
                    soon = true;
                    break;
                }
                _ => script.pop_front(),
            };
        }
        soon |= actor.nudges.iter().any(Option::is_some);
        actor.apply(Op::EndTurn);
        if host == Host::Thread {
            actor.apply(Op::Disarm);
        }
        let is_asking = (0..actor.mesh.shards()).any(|to| actor.credits.open(to) > 0);
        if script.is_empty() && !soon && !is_asking && awaited.is_over() {
            tally.refused = actor.refused;
            return tally;
        }
        if soon {
            F::pause();
            continue;
        }
        tally.arms += 1;
        if actor.apply(Op::Arm) == Outcome::Idle(true) {
            F::sleep(actor.mesh.waker(me).bell());
            if host == Host::Executor {
                actor.apply(Op::Disarm);
            }
        }
    }
}

/// What scripts send to one shard, as far as it has not come.
struct Awaited {
    asks: usize,
    seats: usize,
    news: bool,
    /// Per sender, the number of its last fan-out message, until that came or a nudge for it.
    last_fans: Vec<Option<u32>>,
}

impl Awaited {
    fn new(scripts: &[Vec<Op>], me: u16) -> Self {
        let count = |op| scripts.iter().flatten().filter(|&&it| it == op).count();
        let last_fans = scripts.iter().map(|script| fans(script, me).last().copied()).collect();
        Self { asks: count(Op::Ask(me)), seats: count(Op::Seat(me)), news: count(Op::News(me)) > 0, last_fans }
    }

    fn came(&mut self, from: u16, item: Item) {
        match item {
            Item::Mesh(Message::Ask(_)) => self.asks -= 1,
            Item::Mesh(Message::Reply(_)) => {}
            Item::Mesh(Message::Fan(number) | Message::Nudge(number)) => {
                let last = &mut self.last_fans[usize::from(from)];
                *last = last.filter(|&last| number < last);
            }
            Item::Seat(_) => self.seats -= 1,
            Item::News => self.news = false,
        }
    }

    fn is_over(&self) -> bool {
        self.asks == 0 && self.seats == 0 && !self.news && self.last_fans.iter().all(Option::is_none)
    }
}

/// The numbers of what a script sends, of the operations that `is` picks.
fn numbers(script: &[Op], is: impl Fn(Op) -> bool) -> Vec<u32> {
    let numbered = script.iter().filter(|op| matches!(op, Op::Ask(_) | Op::Fan(_) | Op::Seat(_)));
    (1..).zip(numbered).filter(|&(_, &op)| is(op)).map(|(number, _)| number).collect()
}

fn fans(script: &[Op], to: u16) -> Vec<u32> {
    numbers(script, |op| op == Op::Fan(to))
}

/// What holds when all shards have ended: everything came once and in order, and each refusal was said once.
fn check(scripts: &[Vec<Op>], tallies: &[Tally]) {
    for (from, script) in (0u16..).zip(scripts) {
        for (to, tally) in (0u16..).zip(tallies) {
            let came = |pick: fn(Item) -> Option<u32>| -> Vec<u32> {
                tally.took.iter().filter(|it| it.0 == from).filter_map(|it| pick(it.1)).collect()
            };
            let asks = came(|item| if let Item::Mesh(Message::Ask(number)) = item { Some(number) } else { None });
            assert_eq!(asks, numbers(script, |op| op == Op::Ask(to)), "requests from {from} to {to}");
            let replies = came(|item| if let Item::Mesh(Message::Reply(number)) = item { Some(number) } else { None });
            let asked = numbers(&scripts[usize::from(to)], |op| op == Op::Ask(from));
            assert_eq!(replies, asked, "answers from {from} to {to}");
            let seats = came(|item| if let Item::Seat(number) = item { Some(number) } else { None });
            assert_eq!(seats, numbers(script, |op| op == Op::Seat(to)), "seats from {from} to {to}");
            let mut fanned = came(|item| if let Item::Mesh(Message::Fan(number)) = item { Some(number) } else { None });
            assert!(fanned.is_sorted(), "fan-out from {from} to {to} out of order: {fanned:?}");
            fanned.extend(tallies[usize::from(from)].refused.iter().filter(|it| it.0 == to).map(|it| it.1));
            fanned.sort_unstable();
            assert_eq!(fanned, fans(script, to), "fan-out from {from} to {to} comes or is refused, once");
        }
    }
}
