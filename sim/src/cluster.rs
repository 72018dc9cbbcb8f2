//! The cluster of the world: statements on their way to its replicas and back, its row of the lease, and what it does by
//! itself. What the rows mean is the engine's affair; what they say of the truth is in `replay`.

use crate::plan::Fault;
use crate::random::Rng;
use crate::replay;
use crate::world::{Event, Phase, World};
use std::collections::BTreeMap;
use storage_core::cql::cluster::{BegunRead, Cluster, Register, Ticket};
use storage_core::cql::lease::{AskId, LeaseAnswer, LeaseAsk, LeaseRow};
use storage_core::cql::rows::{Read, Statement, StatementError, StatementResult, Write};

/// Replicas.
const REPLICAS: usize = 3;
/// From one machine to another, microseconds, about.
const HOP_US: u64 = 60;
/// So long after it was sent the driver gives a statement up, microseconds.
const TIMEOUT_US: u64 = 60_000;
/// So long what a dead process sent may be on its way, microseconds, about: longer than it takes to take over.
const STRAGGLER_US: u64 = 800_000;
/// Between two looks at what is late, microseconds, about.
const LATE_US: u64 = 3_000;

/// Who waits for a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// An engine, that of a term, by its number for the statement.
    Engine { writer: u32, term: u64, id: u64 },
    /// A read of a reader thread.
    Reader { writer: u32, read: u64 },
}

impl From {
    fn writer(self) -> u32 {
        match self {
            From::Engine { writer, .. } | From::Reader { writer, .. } => writer,
        }
    }
}

/// What happens to a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// A write reaches a replica.
    Deliver(u8),
    /// The first replica answers a read.
    First,
    /// The others do.
    Others,
    /// The answer is back.
    Answer,
    /// The driver gives it up.
    Timeout,
}

#[derive(Debug)]
enum Stage {
    /// A write; none has it yet that would tell of it.
    Written {
        ticket: Option<Ticket>,
        answered: bool,
    },
    Asked,
    Begun(BegunRead),
    Read(StatementResult),
}

#[derive(Debug)]
struct Flight {
    from: From,
    statement: Statement,
    stage: Stage,
    /// The answer never arrives.
    unheard: bool,
}

#[derive(Debug)]
struct Asked {
    writer: u32,
    lease: u64,
    id: AskId,
    ask: LeaseAsk,
    answer: Option<LeaseAnswer>,
    unheard: bool,
}

/// The cluster, and everything on its way to it and back.
pub(crate) struct Shared {
    pub(crate) cluster: Cluster,
    register: Register<LeaseRow>,
    flights: BTreeMap<u64, Flight>,
    asks: BTreeMap<u64, Asked>,
    /// Writes of processes that are gone, by replicas that still get them.
    stragglers: BTreeMap<(u64, u8), Write>,
    next: u64,
    rng: Rng,
    /// Nothing that is late arrives before.
    late_until: u64,
    /// The newest epoch in which somebody began to recover: what an older one hears counts no more.
    pub(crate) epoch: u64,
    /// The newest epoch of which something left.
    pub(crate) acted: u64,
    /// Each is another lease, or another read.
    pub(crate) names: u64,
}

impl Shared {
    pub(crate) fn new(seed: u64) -> Shared {
        let mut rng = Rng::new(seed, 5);
        Shared {
            cluster: Cluster::new(rng.next()),
            register: Register::new(rng.next()),
            flights: BTreeMap::new(),
            asks: BTreeMap::new(),
            stragglers: BTreeMap::new(),
            next: 0,
            rng,
            late_until: 0,
            epoch: 0,
            acted: 0,
            names: 0,
        }
    }

    /// A random number, of what the cluster's part of the world draws.
    pub(crate) fn random(&mut self) -> u64 {
        self.rng.next()
    }

    /// A name that was never given before.
    pub(crate) fn name(&mut self) -> u64 {
        self.names += 1;
        self.names
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl World {
    fn cluster_chance(&mut self, fault: Fault) -> bool {
        let chance = if self.phase == Phase::Storm { self.plan.fault(fault) } else { 0 };
        self.shared.rng.chance(chance)
    }

    /// When something arrives that leaves now.
    fn hop(&mut self, may_be_late: bool) -> u64 {
        let mut takes = 10 + self.shared.rng.around(HOP_US);
        if self.cluster_chance(Fault::SlowDisk) {
            takes += self.shared.rng.around(20_000);
        }
        if may_be_late && self.cluster_chance(Fault::LateWrite) {
            takes += self.shared.rng.around(300_000);
        }
        self.now + takes
    }

    /// Sends a statement.
    pub(crate) fn execute(&mut self, from: From, statement: Statement) {
        let flight = self.shared.number();
        self.trace.tell(self.now, || format!("cluster: {from:?} sends {flight}: {}", replay::tell(&statement)));
        let unheard = self.cluster_chance(Fault::UnknownOutcome);
        let stage = match &statement {
            Statement::Write(write) => {
                self.truth.expect(write);
                // All of it late: it was on its way when the sender was given up.
                let late = self.cluster_chance(Fault::LateWrite);
                for replica in 0..REPLICAS as u8 {
                    let mut at = self.hop(true);
                    if late {
                        at += self.shared.rng.around(40_000);
                    }
                    self.at(at, Event::Statement { flight, step: Step::Deliver(replica) });
                }
                Stage::Written { ticket: None, answered: false }
            }
            Statement::Read(_) => {
                let at = self.hop(false);
                self.at(at, Event::Statement { flight, step: Step::First });
                Stage::Asked
            }
        };
        self.shared.flights.insert(flight, Flight { from, statement, stage, unheard });
        self.at(self.now + TIMEOUT_US, Event::Statement { flight, step: Step::Timeout });
    }

    /// A statement goes on. Never an event of its own: what comes of it is one, where it arrives.
    pub(crate) fn statement_goes_on(&mut self, flight: u64, step: Step) -> bool {
        match step {
            Step::Deliver(replica) => self.deliver(flight, replica),
            Step::First => self.first_answers(flight),
            Step::Others => self.others_answer(flight),
            Step::Answer => self.answer_arrives(flight, false),
            Step::Timeout => self.answer_arrives(flight, true),
        }
        false
    }

    fn deliver(&mut self, number: u64, replica: u8) {
        let Some(Flight { from, statement: Statement::Write(write), stage, unheard }) =
            self.shared.flights.get_mut(&number)
        else {
            return;
        };
        let Stage::Written { ticket, answered } = stage else { return };
        if ticket.is_none() && !self.writers[from.writer() as usize].alive && self.shared.rng.chance(500) {
            // It never left.
            self.shared.flights.remove(&number);
            return;
        }
        let ticket = *ticket.get_or_insert_with(|| self.shared.cluster.begin(write));
        self.shared.cluster.deliver(ticket, usize::from(replica));
        if self.shared.cluster.is_standing(ticket) && !*answered {
            *answered = true;
            if !*unheard {
                let at = self.hop(false);
                self.at(at, Event::Statement { flight: number, step: Step::Answer });
            }
        }
    }

    fn first_answers(&mut self, number: u64) {
        let Some(flight) = self.shared.flights.get_mut(&number) else { return };
        let Statement::Read(read) = &flight.statement else { return };
        let (stage, step) = match self.shared.cluster.begin_read(read) {
            Ok(begun) => (Stage::Begun(begun), Step::Others),
            Err(error) => (Stage::Read(Err(error)), Step::Answer),
        };
        flight.stage = stage;
        let at = self.hop(false);
        self.at(at, Event::Statement { flight: number, step });
    }

    fn others_answer(&mut self, number: u64) {
        let Some(flight) = self.shared.flights.get_mut(&number) else { return };
        let Stage::Begun(begun) = std::mem::replace(&mut flight.stage, Stage::Asked) else { return };
        flight.stage = Stage::Read(self.shared.cluster.finish_read(begun));
        let unheard = flight.unheard;
        let at = self.hop(false);
        if !unheard {
            self.at(at, Event::Statement { flight: number, step: Step::Answer });
        }
    }

    fn answer_arrives(&mut self, number: u64, timeout: bool) {
        let Some(Flight { from, statement, stage, .. }) = self.shared.flights.remove(&number) else { return };
        let mut result = match stage {
            Stage::Written { ticket, .. } => {
                let Statement::Write(write) = &statement else { return };
                let ticket = ticket.unwrap_or_else(|| self.shared.cluster.begin(write));
                self.shared.cluster.finish(ticket)
            }
            Stage::Read(result) => result,
            Stage::Asked | Stage::Begun(_) => Ok(Vec::new()),
        };
        if timeout {
            result = Err(StatementError::Unknown("no answer in time".to_owned()));
        }
        self.trace.tell(self.now, || match &result {
            Ok(rows) => format!("cluster: {number} is answered with {} rows", rows.len()),
            Err(error) => format!("cluster: {number}: {error:?}"),
        });
        self.trace.note(number << 1 | u64::from(result.is_ok()));
        match from {
            From::Engine { writer, term, id } => {
                let written = match statement {
                    Statement::Write(write) => Some(write),
                    Statement::Read(_) => None,
                };
                self.hand_to_engine(writer, (term, id, result, written));
            }
            From::Reader { writer, read } => {
                let Statement::Read(asked) = statement else { return };
                self.hand_to_reader(writer, read, asked, result);
            }
        }
    }

    /// Asks for the lease.
    pub(crate) fn ask_for_lease(&mut self, writer: u32, lease: u64, id: AskId, ask: LeaseAsk) {
        let number = self.shared.number();
        let unheard = self.cluster_chance(Fault::LostLease);
        let at = self.hop(false);
        self.trace.tell(self.now, || format!("writer {writer} asks for the lease: {ask:?}"));
        self.shared.asks.insert(number, Asked { writer, lease, id, ask, answer: None, unheard });
        self.at(at, Event::Lease { ask: number });
    }

    /// An ask arrives, or its answer.
    pub(crate) fn lease_goes_on(&mut self, number: u64) -> bool {
        let lost = self.cluster_chance(Fault::LostLease);
        let Some(asked) = self.shared.asks.get_mut(&number) else { return false };
        if let Some(answer) = asked.answer.take() {
            let Some(Asked { writer, lease, id, unheard, .. }) = self.shared.asks.remove(&number) else { return false };
            if !unheard {
                self.trace.tell(self.now, || format!("writer {writer} hears of the lease: {answer:?}"));
                self.hand_to_lease(writer, (lease, id, answer));
            }
            return false;
        }
        let up = self.shared.cluster.available();
        self.shared.register.unknown_per_mille = if lost { 1_000 } else { 0 };
        let answer = match asked.ask.clone() {
            LeaseAsk::Read => self.shared.register.read(up).map(LeaseAnswer::Row),
            LeaseAsk::Cas { expected, new } => {
                let done = self.shared.register.cas(up, expected.as_ref(), new);
                done.map(|done| match done {
                    Ok(()) => LeaseAnswer::Applied,
                    Err(row) => LeaseAnswer::NotApplied(row),
                })
            }
        };
        let answer = answer.unwrap_or_else(|error| LeaseAnswer::Unknown(format!("{error:?}")));
        asked.answer = Some(answer);
        let at = self.hop(false);
        self.at(at, Event::Lease { ask: number });
        false
    }

    /// What is late arrives, some of it.
    pub(crate) fn late_arrives(&mut self) -> bool {
        let next = self.now + 1 + self.shared.rng.around(LATE_US);
        self.at(next, Event::Late);
        if self.now >= self.shared.late_until {
            for _ in 0..=self.shared.cluster.late() / 8 {
                self.shared.cluster.arrive();
            }
        }
        false
    }

    /// A process is gone: some of what it had sent goes on, some never left, some arrives when nobody thinks of it any more.
    pub(crate) fn leave_stragglers(&mut self, writer: u32) {
        let sent = self.shared.flights.iter().filter(|(_, flight)| {
            let written = matches!(flight.stage, Stage::Written { answered: false, .. });
            written && flight.from.writer() == writer
        });
        for number in sent.map(|(number, _)| *number).collect::<Vec<_>>() {
            if !self.shared.rng.chance(400) {
                continue;
            }
            let Some(Flight { statement: Statement::Write(write), .. }) = self.shared.flights.remove(&number) else {
                continue;
            };
            self.trace.tell(self.now, || format!("cluster: {number} straggles"));
            for replica in 0..REPLICAS as u8 {
                let at = self.now + self.shared.rng.around(STRAGGLER_US);
                self.shared.stragglers.insert((number, replica), write.clone());
                self.at(at, Event::Straggler { flight: number, replica });
            }
        }
    }

    /// What a dead process sent reaches a replica.
    pub(crate) fn straggler_arrives(&mut self, flight: u64, replica: u8) -> bool {
        if let Some(write) = self.shared.stragglers.remove(&(flight, replica)) {
            self.shared.cluster.apply(usize::from(replica), &write);
        }
        false
    }

    /// Everything arrives that still may.
    pub(crate) fn settle_cluster(&mut self) {
        self.shared.cluster.settle();
        for ((_, replica), write) in std::mem::take(&mut self.shared.stragglers) {
            self.shared.cluster.apply(usize::from(replica), &write);
        }
    }

    /// A replica goes; it comes back after a while. Now and then two at once: then nothing is acknowledged.
    pub(crate) fn take_replica_down(&mut self) {
        let replica = self.shared.rng.below(REPLICAS as u64) as u8;
        self.shared.cluster.set_up(usize::from(replica), false);
        let back = self.now + self.shared.rng.around(80_000);
        self.at(back, Event::ReplicaUp { replica });
    }

    /// A replica is back.
    pub(crate) fn replica_is_up(&mut self, replica: u8) -> bool {
        self.trace.tell(self.now, || format!("replica {replica} is up"));
        self.shared.cluster.set_up(usize::from(replica), true);
        true
    }

    /// What replicas still have to get is held back.
    pub(crate) fn hold_late_writes(&mut self) {
        let until = self.now + self.shared.rng.around(400_000);
        self.shared.late_until = self.shared.late_until.max(until);
    }

    /// Nothing of the cluster is broken any more.
    pub(crate) fn repair_cluster(&mut self) {
        (0..REPLICAS).for_each(|replica| self.shared.cluster.set_up(replica, true));
        self.shared.late_until = 0;
    }

    /// What every reader finds at the least.
    pub(crate) fn standing(&self, read: &Read) -> Vec<storage_core::cql::rows::Row> {
        self.shared.cluster.standing(read)
    }
}

/// Term, number of the statement, result, and what was written.
pub(crate) type EngineResult = (u64, u64, StatementResult, Option<Write>);
/// Name of the lease, number of the ask, answer.
pub(crate) type LeaseResult = (u64, AskId, LeaseAnswer);
