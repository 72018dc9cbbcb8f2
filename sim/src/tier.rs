//! A store on the cluster, as one writer process has it: the lease says whether the process may act, the engine what is
//! sent. As `storage-writer/src/store/scylla/tier.rs` does it.

use crate::cluster::{EngineResult, From, LeaseResult};
use crate::plan::Fault;
use crate::world::World;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use storage_core::cql::engine::Engine;
use storage_core::cql::lease::{Lease, LeaseOptions, LeaseState};
use storage_core::cql::rows::Read;
use storage_core::planted::{self, Bug};
use storage_core::store::{Group, OpId, Outcome, StoreRequest, StoreResult};

/// What a process may do; as the shell of `storage-writer` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Active { term: u64, worker: u16 },
    Suspended,
    Standby,
}

/// An engine, for as long as the lease is held.
pub(crate) struct Term {
    pub(crate) epoch: u64,
    pub(crate) engine: Engine,
    /// What it found is known to the truth.
    recovered: bool,
    /// Barriers of groups that are not complete, or come after one that is not.
    groups: BTreeMap<u64, Group>,
    ops: HashMap<OpId, u64>,
    complete: BTreeSet<u64>,
}

/// The store.
pub(crate) struct Tier {
    lease: Lease,
    /// Which lease this is: answers to an earlier one are of no use.
    name: u64,
    pub(crate) term: Option<Term>,
    terms: u64,
    worker: u16,
    /// Milliseconds that the boot-time clock counts in a million microseconds, and where it began.
    rate: u64,
    began_ms: u64,
    results: Vec<EngineResult>,
    answers: Vec<LeaseResult>,
    /// It gives the lease back, and ends.
    stopping: bool,
}

impl Tier {
    /// The process's boot-time clock.
    pub(crate) fn boot_ms(&self, now_us: u64) -> u64 {
        self.began_ms + (u128::from(now_us) * u128::from(self.rate) / 1_000_000) as u64
    }

    /// When that clock shows a time, or later.
    fn at_us(&self, boot_ms: u64) -> u64 {
        (u128::from(boot_ms.saturating_sub(self.began_ms)) * 1_000_000).div_ceil(u128::from(self.rate)) as u64
    }

    pub(crate) fn standing(&self, now_us: u64) -> Standing {
        let zombie = planted::has(Bug::ZombieWrites);
        match (&self.term, self.lease.state(self.boot_ms(now_us))) {
            (Some(_), _) if zombie => Standing::Active { term: self.terms, worker: self.worker },
            (Some(term), LeaseState::Held { epoch, worker, .. }) if term.epoch == epoch => {
                Standing::Active { term: self.terms, worker }
            }
            (Some(_), LeaseState::Held { .. } | LeaseState::Expired { .. }) => Standing::Suspended,
            _ => Standing::Standby,
        }
    }

    /// When [`World::drive`] has something to do.
    pub(crate) fn next_due(&self, now_us: u64) -> Option<u64> {
        let engine = self.term.as_ref().and_then(|term| term.engine.next_timer());
        let due = [self.lease.next_timer(self.boot_ms(now_us)), engine].into_iter().flatten().min();
        due.map(|at| self.at_us(at))
    }

    /// When that clock shows the time of the sequencer's timer.
    pub(crate) fn timer_us(&self, due_ms: u64) -> u64 {
        self.at_us(due_ms)
    }

    /// Nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        let status = self.term.as_ref().map(|term| term.engine.status());
        status.is_none_or(|status| status.groups + status.in_flight + status.waiting == 0)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.stopping && self.lease.is_over()
    }

    pub(crate) fn check_invariants(&self) {
        if let Some(term) = &self.term {
            term.engine.check_invariants();
        }
    }
}

impl World {
    pub(crate) fn new_tier(&mut self, worker: u16) -> Tier {
        let apart = self.shared.random() % 101;
        let apart = if self.faults.chance(self.plan.fault(Fault::ClockRate)) { apart } else { 50 };
        let rate = 950 + apart;
        let began_ms = self.shared.random() % 1_000_000;
        let (name, lease) = self.new_lease(worker, began_ms + self.now * rate / 1_000_000);
        Tier {
            lease,
            name,
            term: None,
            terms: 0,
            worker,
            rate,
            began_ms,
            results: Vec::new(),
            answers: Vec::new(),
            stopping: false,
        }
    }

    fn new_lease(&mut self, worker: u16, now_ms: u64) -> (u64, Lease) {
        let name = self.shared.name();
        let seed = self.shared.random();
        let options = LeaseOptions {
            lease_ms: self.plan.lease_ms(),
            holder: u128::from(name),
            worker,
            address: format!("writer {worker}"),
        };
        #[cfg_attr(not(feature = "planted"), expect(unused_mut, reason = "nothing is planted"))]
        let mut lease = Lease::new(options, seed, now_ms);
        #[cfg(feature = "planted")]
        if planted::has(Bug::LeaseNotWaitedOut) {
            use storage_core::cql::lease::LeaseBug;
            lease.plant(LeaseBug::NotWatched);
            lease.plant(LeaseBug::NotWaitedOut);
        }
        (name, lease)
    }

    fn tier(&mut self, writer: u32) -> Option<&mut Tier> {
        self.writers[writer as usize].tier.as_mut()
    }

    /// Something for a process arrives.
    pub(crate) fn hand_to_engine(&mut self, writer: u32, result: EngineResult) {
        let Some(tier) = self.tier(writer) else { return };
        tier.results.push(result);
        self.wake_writer(writer, self.now);
    }

    /// Something for a process arrives.
    pub(crate) fn hand_to_lease(&mut self, writer: u32, answer: LeaseResult) {
        let Some(tier) = self.tier(writer) else { return };
        tier.answers.push(answer);
        self.wake_writer(writer, self.now);
    }

    /// Moves everything on: the lease, the engine, what is between them and the cluster.
    pub(crate) fn drive(&mut self, writer: u32) {
        self.hold(writer);
        let Some(mut tier) = self.writers[writer as usize].tier.take() else { return };
        let now_ms = tier.boot_ms(self.now);
        for (of, id, result, written) in std::mem::take(&mut tier.results) {
            let Some(term) = tier.term.as_mut().filter(|_| of == tier.terms) else { continue };
            let stands = result.is_ok();
            term.engine.handle_result(now_ms, id, result);
            // What an older epoch hears when a newer one has begun is for that one to find.
            if let Some(write) = written.filter(|_| stands && term.epoch == self.shared.epoch) {
                self.write_stands(&write);
            }
        }
        if let Some(term) = &mut tier.term {
            term.engine.handle_timer(now_ms);
            if !term.recovered && term.engine.status().recovered {
                term.recovered = true;
                let (epoch, status) = (term.epoch, term.engine.status());
                self.trace.tell(self.now, || {
                    let (appends, entries) = (status.recovered_appends, status.recovered_entries);
                    format!(
                        "writer {writer} has recovered under epoch {epoch}: {appends} appends, {entries} new entries"
                    )
                });
                if epoch == self.shared.epoch {
                    self.learn_marks();
                }
            }
        }
        self.writers[writer as usize].tier = Some(tier);
        self.send_statements(writer);
    }

    /// Asks for the lease, and follows what comes of it.
    fn hold(&mut self, writer: u32) {
        let Some(mut tier) = self.writers[writer as usize].tier.take() else { return };
        let now_ms = tier.boot_ms(self.now);
        for (name, id, answer) in std::mem::take(&mut tier.answers) {
            if name == tier.name {
                tier.lease.handle(now_ms, id, answer);
            }
        }
        while let Some((id, ask)) = tier.lease.poll(now_ms) {
            self.ask_for_lease(writer, tier.name, id, ask);
        }
        let zombie = planted::has(Bug::ZombieWrites) && tier.term.is_some();
        match tier.lease.state(now_ms) {
            LeaseState::Held { epoch, valid_until, .. } => {
                if tier.term.as_ref().is_none_or(|term| term.epoch != epoch) {
                    self.begin_term(writer, &mut tier, epoch);
                }
                if let Some(term) = &mut tier.term {
                    term.engine.set_lease(Some(valid_until));
                }
            }
            _ if zombie => {}
            LeaseState::Expired { .. } => {
                if let Some(term) = &mut tier.term {
                    term.engine.set_lease(None);
                }
            }
            LeaseState::Lost if tier.stopping => tier.term = None,
            LeaseState::Lost => {
                tier.term = None;
                (tier.name, tier.lease) = self.new_lease(tier.worker, now_ms);
            }
            LeaseState::Watching { .. } | LeaseState::Taking | LeaseState::WaitingOut { .. } => tier.term = None,
        }
        self.writers[writer as usize].tier = Some(tier);
    }

    fn begin_term(&mut self, writer: u32, tier: &mut Tier, epoch: u64) {
        self.trace.tell(self.now, || format!("writer {writer} begins epoch {epoch}"));
        tier.terms += 1;
        let engine = Engine::new(self.plan.engine_options(), epoch, self.shared.random());
        self.shared.epoch = self.shared.epoch.max(epoch);
        let (groups, ops, complete) = Default::default();
        tier.term = Some(Term { epoch, engine, recovered: false, groups, ops, complete });
    }

    fn send_statements(&mut self, writer: u32) {
        let now_us = self.now;
        while let Some(tier) = self.tier(writer) {
            let (now_ms, term) = (tier.boot_ms(now_us), tier.terms);
            let next = tier.term.as_mut().and_then(|term| term.engine.poll_statement(now_ms));
            let Some((id, statement)) = next else { return };
            self.execute(From::Engine { writer, term, id }, statement);
        }
    }

    pub(crate) fn submit_to_cluster(&mut self, writer: u32, op: OpId, request: StoreRequest) {
        let now_us = self.now;
        let Some(tier) = self.tier(writer) else { return };
        let now_ms = tier.boot_ms(now_us);
        // Without an engine there is nobody left who waits for the answer.
        let Some(term) = &mut tier.term else { return };
        if let StoreRequest::Commit(group) = &request {
            term.ops.insert(op, group.no);
            // What is in an append tells of itself when it stands.
            let barrier = Group { meta: group.meta.clone(), opened: group.opened.clone(), ..Group::default() };
            term.groups.entry(group.no).or_insert(barrier);
        }
        term.engine.submit(now_ms, op, request);
        self.send_statements(writer);
    }

    /// What the engine has completed. Barriers stand when everything before them does.
    pub(crate) fn completions_of_cluster(&mut self, writer: u32, done: &mut Vec<(OpId, StoreResult)>) {
        let now = self.now;
        let newest = self.shared.epoch;
        let Some(term) = self.writers[writer as usize].tier.as_mut().and_then(|tier| tier.term.as_mut()) else {
            return;
        };
        term.engine.completions(done);
        for (op, result) in done.iter() {
            let StoreResult::Committed(outcome) = result else { continue };
            let no = term.ops.remove(op);
            term.complete.extend(no.filter(|_| *outcome == Outcome::Durable));
        }
        let mut verdict = Ok(());
        while let Some((no, _)) = term.groups.first_key_value().filter(|(no, _)| term.complete.contains(*no)) {
            let no = *no;
            term.complete.remove(&no);
            let Some(group) = term.groups.remove(&no) else { break };
            if term.epoch == newest {
                verdict = verdict.and(self.truth.take(&group, now));
            }
        }
        self.judge(verdict);
    }

    /// The active writer stops in order.
    pub(crate) fn give_back(&mut self) {
        let active = (0u32..).zip(&self.writers).find(|(_, writer)| {
            let held = writer.tier.as_ref().is_some_and(|tier| {
                matches!(tier.standing(self.now), Standing::Active { .. }) && tier.is_idle() && !tier.stopping
            });
            writer.alive && held && writer.stopped_until <= self.now
        });
        let Some((writer, _)) = active else { return };
        self.trace.tell(self.now, || format!("writer {writer} gives its lease back"));
        let now_us = self.now;
        if let Some(tier) = self.tier(writer) {
            let now_ms = tier.boot_ms(now_us);
            (tier.term, tier.stopping) = (None, true);
            tier.lease.release(now_ms);
        }
        self.wake_writer(writer, self.now);
    }

    /// Whether a list of work holds something that it should not: not more than one that is current, and what waits.
    pub(crate) fn lists_of_work(&self) -> usize {
        let lists = (0..storage_core::cql::rows::WORK_SLOTS).map(|slot| {
            let partition = storage_core::cql::rows::Partition::Work { set: 0, slot };
            self.standing(&Read::All(partition)).len()
        });
        lists.filter(|keys| *keys > 0).count()
    }
}
