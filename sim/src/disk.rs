//! The disk, and an engine on it for each writer process: commits that take time, fail, are not told, are applied late or
//! torn away by a crash; readers that see a group some time between its commit and its answer.

use crate::plan::{Fault, Plan};
use crate::random::Rng;
use std::collections::VecDeque;
use storage_core::model::{Model, State};
use storage_core::planted::{self, Bug};
use storage_core::store::{Group, OpId, Outcome, StoreRequest, StoreResult};

/// What survives every crash.
#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) rows: State,
    /// The engine that holds it; whatever an older one writes is refused.
    owner: u64,
    /// Groups that reached the disk since the last look.
    pub(crate) written: Vec<Group>,
    /// No commit succeeds before this time, microseconds.
    pub(crate) full_until: u64,
    /// The next sync fails.
    pub(crate) sync_fails: bool,
}

impl Disk {
    fn write(&mut self, group: Group) {
        self.rows.put(&group);
        self.written.push(group);
    }
}

struct Waiting {
    at: u64,
    op: OpId,
    result: StoreResult,
    /// The commit's group; it reaches the disk before the answer, unless its outcome is not told.
    group_no: Option<u64>,
}

/// An engine, as one writer process has it.
pub(crate) struct Engine {
    id: u64,
    /// With every group that did not fail: what loads see.
    accepted: Model,
    /// Groups that are accepted and not on the disk, in order.
    late: VecDeque<Group>,
    /// The number of the last group that is on the disk.
    disk_no: u64,
    /// What readers see.
    shown: State,
    /// On the disk, and not yet seen by readers.
    unseen: VecDeque<Group>,
    failed_from: Option<u64>,
    waiting: Vec<Waiting>,
    rng: Rng,
    slow: u32,
    fails: u32,
    unknown: u32,
    loses: u32,
}

impl Engine {
    /// Opens the disk, and shuts every engine out that was there before.
    pub(crate) fn open(disk: &mut Disk, plan: &Plan, seed: u64) -> Engine {
        disk.owner += 1;
        if planted::has(Bug::DedupeForgottenInCrash) {
            disk.rows.commands.clear();
        }
        Engine {
            id: disk.owner,
            accepted: Model::open(disk.rows.clone()),
            late: VecDeque::new(),
            disk_no: 0,
            shown: disk.rows.clone(),
            unseen: VecDeque::new(),
            failed_from: None,
            waiting: Vec::new(),
            rng: Rng::new(seed, 1_000_000 + disk.owner),
            slow: plan.fault(Fault::SlowDisk),
            fails: plan.fault(Fault::FailedCommit),
            unknown: plan.fault(Fault::UnknownOutcome),
            loses: plan.fault(Fault::LostUnsynced),
        }
    }

    pub(crate) fn holds(&self, disk: &Disk) -> bool {
        self.id == disk.owner || planted::has(Bug::WriterNotFenced)
    }

    /// Faults of this engine are over.
    pub(crate) fn behave(&mut self) {
        (self.slow, self.fails, self.unknown) = (0, 0, 0);
    }

    /// The process is gone, or another has taken over: what was on its way to the disk arrives, or some of it, or
    /// nothing.
    pub(crate) fn tear(&mut self, disk: &mut Disk) {
        while self.holds(disk) && !self.rng.chance(self.loses) {
            let Some(group) = self.late.pop_front() else { break };
            disk.write(group);
        }
        self.late.clear();
    }

    pub(crate) fn submit(&mut self, now: u64, disk: &mut Disk, op: OpId, request: StoreRequest) {
        let slow = if self.rng.chance(self.slow) { 20_000 } else { 0 };
        let (result, group_no, takes) = match request {
            StoreRequest::Commit(group) => {
                let no = group.no;
                let outcome = self.commit(now, disk, group);
                let known = matches!(outcome, Outcome::Durable).then_some(no);
                (StoreResult::Committed(outcome), known, 100 + self.rng.around(800 + slow))
            }
            load => {
                let result = self.accepted.state.load(&load).expect("everything but a commit is a load");
                (result, None, self.rng.around(100 + slow))
            }
        };
        self.waiting.push(Waiting { at: now + takes, op, result, group_no });
    }

    fn commit(&mut self, now: u64, disk: &mut Disk, group: Group) -> Outcome {
        if !self.holds(disk) {
            return Outcome::Fenced;
        }
        if let Some(failed) = self.failed_from {
            if group.no > failed {
                return Outcome::Failed("a group before this one failed".to_owned());
            }
            if group.no == failed {
                self.failed_from = None;
            }
        }
        // A group whose outcome was not told comes again, unchanged.
        let again = group.no <= self.accepted.group_no;
        if !again {
            if now < disk.full_until || self.rng.chance(self.fails) {
                self.failed_from = Some(group.no);
                return Outcome::Failed("no room on the disk".to_owned());
            }
            if self.accepted.commit(&group) == Outcome::Fenced {
                return Outcome::Fenced;
            }
            self.late.push_back(group);
        }
        if std::mem::take(&mut disk.sync_fails) {
            return Outcome::Broken("the sync failed".to_owned());
        }
        if self.rng.chance(self.unknown) {
            return Outcome::Unknown;
        }
        Outcome::Durable
    }

    /// When something completes next.
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.waiting.iter().map(|waiting| waiting.at).min()
    }

    /// What has completed by now, in the order of its times.
    pub(crate) fn completions(&mut self, now: u64, disk: &mut Disk, done: &mut Vec<(OpId, StoreResult)>) {
        if self.unknown > 0 && !self.late.is_empty() && self.rng.chance(100) {
            // Applied late, by itself.
            self.write_through(disk, self.disk_no + 1);
        }
        let mut ready: Vec<Waiting> = self.waiting.extract_if(.., |waiting| waiting.at <= now).collect();
        ready.sort_by_key(|waiting| waiting.at);
        for Waiting { op, result, group_no, .. } in ready {
            let result = match (result, group_no) {
                (StoreResult::Committed(Outcome::Durable), Some(_)) if !self.holds(disk) => {
                    StoreResult::Committed(Outcome::Fenced)
                }
                (result, Some(no)) => {
                    if !planted::has(Bug::DurableWithoutSync) {
                        self.write_through(disk, no);
                    }
                    // What is answered as durable is seen by every later read.
                    self.see_all();
                    result
                }
                (result, None) => result,
            };
            done.push((op, result));
        }
    }

    /// What a reader sees who looks now: everything that was answered as durable, and perhaps what will be.
    pub(crate) fn look(&mut self) -> &State {
        while self.rng.chance(300) {
            let Some(group) = self.unseen.pop_front() else { break };
            self.shown.put(&group);
        }
        &self.shown
    }

    fn see_all(&mut self) {
        while let Some(group) = self.unseen.pop_front() {
            self.shown.put(&group);
        }
    }

    /// Brings every accepted group up to `no` to the disk.
    fn write_through(&mut self, disk: &mut Disk, no: u64) {
        while let Some(group) = self.late.pop_front_if(|group| group.no <= no) {
            if !self.holds(disk) {
                return;
            }
            self.disk_no = group.no;
            self.unseen.push_back(group.clone());
            disk.write(group);
        }
    }
}
