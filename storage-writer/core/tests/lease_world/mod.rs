//! Several machines over a linearizable row, one millisecond after the other: what is lost, late or stopped, and clocks
//! that run apart.
#![allow(dead_code, reason = "each test takes what it needs")]

use proptest::prelude::*;
use std::collections::BTreeMap;
#[cfg(feature = "planted")]
use storage_core::cql::lease::LeaseBug;
use storage_core::cql::lease::{AskId, Lease, LeaseAnswer, LeaseAsk, LeaseOptions, LeaseRow, LeaseState};

/// Of each lease in these tests, milliseconds.
pub(crate) const LEASE_MS: u32 = 400;

pub(crate) fn options(holder: u128) -> LeaseOptions {
    LeaseOptions { lease_ms: LEASE_MS, holder, worker: holder as u16, address: format!("w{holder}") }
}

/// How bad the days are, out of 1000 where no unit is named.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    pub(crate) seed: u64,
    pub(crate) writers: usize,
    /// Requests that never arrive, and answers.
    lost: u64,
    /// Requests and answers that take up to two leases.
    late: u64,
    /// Each, in a lease: stopped for up to four leases, killed, stopped in order.
    stops: u64,
    kills: u64,
    releases: u64,
}

pub(crate) fn weather() -> impl Strategy<Value = Weather> {
    (any::<u64>(), 2..=3usize, 0..200u64, 0..200u64, 0..200u64, 0..60u64, 0..60u64).prop_map(
        |(seed, writers, lost, late, stops, kills, releases)| Weather {
            seed,
            writers,
            lost,
            late,
            stops,
            kills,
            releases,
        },
    )
}

struct Machine {
    lease: Lease,
    holder: u128,
    /// Out of 1000, from 950 to 1050; where its clock began.
    rate: u64,
    offset: u64,
    stopped_until: u64,
    answers: Vec<(u64, AskId, LeaseAnswer)>,
    served: u64,
}

impl Machine {
    fn clock(&self, at: u64) -> u64 {
        self.offset + at * self.rate / 1_000
    }

    fn valid(&self, at: u64) -> bool {
        self.lease.valid_until(self.clock(at)).is_some()
    }

    fn epoch(&self, at: u64) -> Option<u64> {
        match self.lease.state(self.clock(at)) {
            LeaseState::Held { epoch, .. } => Some(epoch),
            _ => None,
        }
    }
}

struct Asked {
    holder: u128,
    id: AskId,
    ask: LeaseAsk,
    /// None: it never arrives, or its answer does not.
    applied_at: Option<u64>,
    answered_at: Option<u64>,
    /// The driver gives up then.
    given_up_at: u64,
}

pub(crate) struct World {
    weather: Weather,
    random: u64,
    now: u64,
    calm: bool,
    row: Option<LeaseRow>,
    machines: Vec<Machine>,
    asked: Vec<Asked>,
    next_holder: u128,
    /// Who served each epoch.
    epochs: BTreeMap<u64, u128>,
    pub(crate) takings: u64,
    asks: u64,
    #[cfg(feature = "planted")]
    bugs: Vec<LeaseBug>,
}

impl World {
    pub(crate) fn new(weather: Weather) -> Self {
        Self {
            weather,
            random: weather.seed,
            now: 0,
            calm: false,
            row: None,
            machines: Vec::new(),
            asked: Vec::new(),
            next_holder: 1,
            epochs: BTreeMap::new(),
            takings: 0,
            asks: 0,
            #[cfg(feature = "planted")]
            bugs: Vec::new(),
        }
    }

    #[cfg(feature = "planted")]
    pub(crate) fn with(mut self, bugs: &[LeaseBug]) -> Self {
        self.bugs = bugs.to_vec();
        self
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random = parley_protocol::partition::split_mix_64(self.random);
        self.random % bound.max(1)
    }

    fn happens(&mut self, of_1000: u64) -> bool {
        self.below(1_000) < of_1000
    }

    /// In a lease, not in a step.
    fn befalls(&mut self, of_1000: u64) -> bool {
        !self.calm && self.below(1_000 * u64::from(LEASE_MS)) < of_1000
    }

    fn machine(&mut self) -> Machine {
        let holder = self.next_holder;
        self.next_holder += 1;
        let (rate, offset, seed) = (950 + self.below(101), self.below(1 << 40), self.below(u64::MAX));
        let lease = Lease::new(options(holder), seed, offset + self.now * rate / 1_000);
        #[cfg(feature = "planted")]
        let lease = self.bugs.iter().fold(lease, |mut lease, bug| {
            lease.plant(*bug);
            lease
        });
        Machine { lease, holder, rate, offset, stopped_until: 0, answers: Vec::new(), served: 0 }
    }

    fn apply(&mut self, ask: &LeaseAsk) -> LeaseAnswer {
        match ask {
            LeaseAsk::Read => LeaseAnswer::Row(self.row.clone()),
            LeaseAsk::Cas { expected, new } if self.row.as_ref().map(LeaseRow::key) == *expected => {
                self.row = Some(new.clone());
                LeaseAnswer::Applied
            }
            LeaseAsk::Cas { .. } => LeaseAnswer::NotApplied(self.row.clone()),
        }
    }

    fn delay(&mut self) -> u64 {
        let late = !self.calm && self.happens(self.weather.late);
        1 + self.below(if late { 2 * u64::from(LEASE_MS) } else { 12 })
    }

    fn send(&mut self, holder: u128, id: AskId, ask: LeaseAsk) {
        self.asks += 1;
        let applied_at = self.now + self.delay();
        let answered_at = applied_at + self.delay();
        let request_lost = !self.calm && self.happens(self.weather.lost);
        let answer_lost = !self.calm && self.happens(self.weather.lost);
        let given_up_at = self.now + u64::from(LEASE_MS) / 8 + self.below(u64::from(LEASE_MS));
        self.asked.push(Asked {
            holder,
            id,
            ask,
            applied_at: (!request_lost).then_some(applied_at),
            answered_at: (!request_lost && !answer_lost).then_some(answered_at),
            given_up_at,
        });
    }

    fn cluster(&mut self) {
        let mut asked = std::mem::take(&mut self.asked);
        asked.retain_mut(|asked| {
            if asked.applied_at == Some(self.now) {
                let answer = self.apply(&asked.ask);
                if let Some(at) = asked.answered_at {
                    self.answer(asked.holder, at, asked.id, answer);
                }
            }
            if asked.given_up_at == self.now {
                // It may still be applied; an answer that came before was taken, one that comes later is ignored.
                self.answer(asked.holder, self.now, asked.id, LeaseAnswer::Unknown("no answer".to_owned()));
            }
            self.now < asked.given_up_at.max(asked.applied_at.unwrap_or(0))
        });
        self.asked.append(&mut asked);
    }

    fn answer(&mut self, holder: u128, at: u64, id: AskId, answer: LeaseAnswer) {
        if let Some(machine) = self.machines.iter_mut().find(|machine| machine.holder == holder) {
            machine.answers.push((at, id, answer));
            machine.answers.sort_by_key(|(at, ..)| *at);
        }
    }

    /// What befalls a machine; then it does what it has to.
    fn run(&mut self, at: usize) {
        let weather = self.weather;
        if self.befalls(weather.kills) || (self.machines[at].lease.is_over() && self.happens(20)) {
            self.machines[at] = self.machine();
        }
        if self.befalls(weather.stops) {
            self.machines[at].stopped_until = self.now + self.below(4 * u64::from(LEASE_MS));
        }
        let releases = self.befalls(weather.releases);
        let answers_first = self.happens(800);
        let now = self.now;
        let machine = &mut self.machines[at];
        if now < machine.stopped_until {
            return;
        }
        let clock = machine.clock(now);
        let early = if answers_first { None } else { machine.lease.poll(clock) };
        while machine.answers.first().is_some_and(|(at, ..)| *at <= now) {
            let (_, id, answer) = machine.answers.remove(0);
            machine.lease.handle(clock, id, answer);
        }
        if releases {
            machine.lease.release(clock);
            assert_eq!(machine.lease.state(clock), LeaseState::Lost);
        }
        let holder = machine.holder;
        let asks = [early, machine.lease.poll(clock)];
        let due = machine.lease.next_timer(clock);
        assert!(due.is_some() || machine.lease.is_over(), "it stands still");
        for (id, ask) in asks.into_iter().flatten() {
            self.send(holder, id, ask);
        }
    }

    pub(crate) fn step(&mut self) -> Result<(), String> {
        while self.machines.len() < self.weather.writers {
            let machine = self.machine();
            self.machines.push(machine);
        }
        self.now += 1;
        self.cluster();
        (0..self.machines.len()).for_each(|at| self.run(at));
        let now = self.now;
        // A stopped one counts: it looked at its lease before it was stopped.
        let valid: Vec<_> = self.machines.iter().filter(|machine| machine.valid(now)).collect();
        if valid.len() > 1 {
            let who: Vec<_> = valid.iter().map(|machine| (machine.holder, machine.epoch(now))).collect();
            return Err(format!("at {now} two serve: {who:?}"));
        }
        for machine in valid {
            let epoch = machine.epoch(now).ok_or("valid and not held")?;
            let newest = self.epochs.last_key_value().map_or(0, |(epoch, _)| *epoch);
            if epoch < newest {
                return Err(format!("at {now} epoch {epoch} is served after {newest}"));
            }
            let holder = *self.epochs.entry(epoch).or_insert(machine.holder);
            if holder != machine.holder {
                return Err(format!("at {now} epoch {epoch} is of {holder} and of {}", machine.holder));
            }
        }
        for machine in &mut self.machines {
            machine.served += u64::from(machine.valid(now));
        }
        self.takings = self.epochs.len() as u64;
        Ok(())
    }

    /// The end of the faults: one of them holds it, soon, and from then on without a gap.
    pub(crate) fn calms_down(&mut self) -> Result<(), String> {
        self.calm = true;
        for machine in &mut self.machines {
            machine.stopped_until = 0;
        }
        for _ in 0..8 * LEASE_MS {
            self.step()?;
        }
        let holder = |world: &World| world.machines.iter().position(|machine| machine.valid(world.now));
        let first = holder(self).ok_or_else(|| format!("nobody holds it at {}", self.now))?;
        let asks = self.asks;
        for _ in 0..4 * LEASE_MS {
            self.step()?;
            if holder(self) != Some(first) {
                return Err(format!("at {} it is not held by who held it", self.now));
            }
        }
        let each = (self.asks - asks) / (4 * self.machines.len() as u64);
        if each > 8 {
            return Err(format!("{each} asks a lease"));
        }
        let active = format!("w{}", self.machines[first].holder);
        for (at, machine) in self.machines.iter().enumerate() {
            let state = machine.lease.state(machine.clock(self.now));
            let stands_by = LeaseState::Watching { holder: active.clone() };
            if at != first && state != stands_by {
                return Err(format!("{} is {state:?} beside {active}", machine.holder));
            }
        }
        Ok(())
    }
}

pub(crate) fn run(mut world: World) -> Result<u64, String> {
    for _ in 0..40 * LEASE_MS {
        world.step()?;
    }
    world.calms_down()?;
    Ok(world.takings)
}
