//! An engine that does whatever the contract allows: it answers late and out of order, does not know, fails, applies
//! late, and shows readers derived rows before or after their event. All of it from one seed.

use crate::model::{Model, State};
use crate::planted::{self, Bug};
use crate::store::{Group, OpId, Outcome, Store, StoreRequest, StoreResult};
use parley_protocol::partition::split_mix_64;
use std::collections::BTreeMap;

/// How bad it is; each in a thousand operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults {
    /// Groups that fail, with all on top of them.
    pub fail_per_mille: u64,
    /// Commits whose outcome is not told.
    pub unknown_per_mille: u64,
    /// Loads that meet damage.
    pub damage_per_mille: u64,
    /// An operation completes after this many polls at the most.
    pub delay_polls_max: u64,
}

impl Faults {
    /// Nothing fails and nothing waits.
    pub const NONE: Faults =
        Faults { fail_per_mille: 0, unknown_per_mille: 0, damage_per_mille: 0, delay_polls_max: 0 };
    /// Rare paths are common.
    pub const MANY: Faults =
        Faults { fail_per_mille: 60, unknown_per_mille: 200, damage_per_mille: 0, delay_polls_max: 4 };
}

/// The engine.
#[derive(Clone, Debug)]
pub struct Treacherous {
    /// With every group that did not fail: what loads see.
    accepted: Model,
    /// What is on the disk: the groups that are durable, and some that are not known to be.
    disk: State,
    disk_no: u64,
    /// What readers see now.
    shown: State,
    /// Groups that are accepted and not on the disk, by number.
    late: BTreeMap<u64, Group>,
    /// Groups whose outcome was not told, by number: they come again unchanged.
    untold: BTreeMap<u64, Group>,
    failed_from: Option<u64>,
    waiting: Vec<(u64, OpId, StoreResult)>,
    seed: u64,
    /// How bad it is from now on.
    pub faults: Faults,
}

impl Treacherous {
    /// An engine over what is stored.
    pub fn open(state: State, faults: Faults, seed: u64) -> Treacherous {
        Treacherous {
            disk: state.clone(),
            disk_no: 0,
            shown: state.clone(),
            accepted: Model::open(state),
            late: BTreeMap::new(),
            untold: BTreeMap::new(),
            failed_from: None,
            waiting: Vec::new(),
            seed,
            faults,
        }
    }

    /// What readers see now: everything that was answered as durable, perhaps with rows of what was not yet.
    pub fn view(&self) -> &State {
        &self.shown
    }

    /// The process dies and starts again: what was accepted and not durable is there, or some of it, or none.
    pub fn crash(mut self) -> Treacherous {
        for no in self.late.keys().copied().collect::<Vec<_>>() {
            if self.chance(500) {
                break;
            }
            self.write(no);
        }
        if planted::has(Bug::DedupeForgottenInCrash) {
            self.disk.commands.clear();
        }
        let seed = self.random();
        Treacherous::open(self.disk, self.faults, seed)
    }

    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(1);
        split_mix_64(self.seed)
    }

    fn chance(&mut self, per_mille: u64) -> bool {
        self.random() % 1_000 < per_mille
    }

    /// Brings every accepted group up to `no` to the disk.
    fn write(&mut self, no: u64) {
        while let Some(entry) = self.late.first_entry().filter(|entry| *entry.key() <= no) {
            let group = entry.remove();
            self.disk.put(&group);
            self.disk_no = group.no;
        }
    }

    fn commit(&mut self, group: Group) -> Outcome {
        if let Some(failed) = self.failed_from {
            if group.no > failed {
                return Outcome::Failed("a group before this one failed".to_owned());
            }
            if group.no == failed {
                self.failed_from = None;
            }
        }
        let no = group.no;
        if let Some(first) = self.untold.get(&no) {
            assert!(*first == group || planted::any(), "a group comes again unchanged");
        } else {
            if self.chance(self.faults.fail_per_mille) {
                self.failed_from = Some(no);
                return Outcome::Failed("no room on the disk".to_owned());
            }
            if self.accepted.commit(&group) == Outcome::Fenced {
                return Outcome::Fenced;
            }
            self.late.insert(no, group.clone());
            self.show_a_part(&group);
        }
        if self.chance(self.faults.unknown_per_mille) {
            self.untold.insert(no, group);
            if self.chance(500) {
                self.write(no);
            }
            return Outcome::Unknown;
        }
        if !planted::has(Bug::DurableWithoutSync) {
            self.write(no);
        }
        Outcome::Durable
    }

    /// Readers may meet an event before its derived rows, or these before it; whole appends come in any order.
    fn show_a_part(&mut self, group: &Group) {
        if self.faults.unknown_per_mille == 0 {
            return;
        }
        for append in &group.appends {
            match self.random() % 4 {
                0 => self.shown.put_events(append),
                1 => self.shown.put_derived(append),
                2 => {
                    self.shown.put_events(append);
                    self.shown.put_derived(append);
                }
                _ => {}
            }
        }
    }
}

impl Store for Treacherous {
    fn submit(&mut self, op: OpId, request: StoreRequest) {
        let result = match request {
            StoreRequest::Commit(group) => StoreResult::Committed(self.commit(group)),
            StoreRequest::LoadMeta => StoreResult::Meta(self.accepted.state.meta.clone()),
            _ if self.chance(self.faults.damage_per_mille) => StoreResult::Damaged("a damaged block".to_owned()),
            load => self.accepted.state.load(&load).expect("everything but a commit is a load"),
        };
        let delay = self.random() % (self.faults.delay_polls_max + 1);
        self.waiting.push((delay, op, result));
    }

    fn completions(&mut self, done: &mut Vec<(OpId, StoreResult)>) {
        let due = |(delay, ..): &mut (u64, OpId, StoreResult)| *delay == 0;
        let mut ready: Vec<_> = self.waiting.extract_if(.., due).collect();
        self.waiting.iter_mut().for_each(|(delay, ..)| *delay -= 1);
        if self.faults.delay_polls_max > 0 && ready.len() > 1 {
            let turn = self.random() as usize % ready.len();
            ready.rotate_left(turn);
        }
        if ready.iter().any(|(.., result)| *result == StoreResult::Committed(Outcome::Durable)) {
            // What is answered as durable is shown.
            let unsynced = planted::has(Bug::DurableWithoutSync);
            self.shown = if unsynced { self.accepted.state.clone() } else { self.disk.clone() };
        }
        done.extend(ready.into_iter().map(|(_, op, result)| (op, result)));
    }
}
