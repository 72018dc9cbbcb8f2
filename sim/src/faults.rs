//! What breaks, when, and how it is repaired.

use crate::plan::Fault;
use crate::world::{Event, World};

/// Faults that strike; the others are chances of single steps.
const STRIKES: [Fault; 17] = [
    Fault::CutConnection,
    Fault::CutLink,
    Fault::SlowConsumer,
    Fault::StallShard,
    Fault::FullMesh,
    Fault::StopGateway,
    Fault::CrashGateway,
    Fault::Takeover,
    Fault::DrainGateway,
    Fault::StallWriter,
    Fault::CrashBeforeCommit,
    Fault::CrashDuringCommit,
    Fault::CrashAfterCommit,
    Fault::ReplaceWriter,
    Fault::SyncError,
    Fault::DiskFull,
    Fault::ClockStep,
];

/// And those that strike on a cluster beside them.
const STRIKES_ON_A_CLUSTER: [Fault; 3] = [Fault::ReplicaDown, Fault::LateWrites, Fault::GiveBack];

/// Events before anything breaks.
const WARM_TICKS: u64 = 1_500;
/// Gateways alive at a time.
const GATEWAYS_MAX: usize = 3;

impl World {
    /// Something breaks.
    pub(crate) fn strike(&mut self) -> bool {
        if !self.in_storm() {
            return false;
        }
        // To take over takes some leases; in between something should happen that could be lost.
        let rarer = if self.plan.on_cluster() { 4 } else { 1 };
        let next = self.now + 1 + self.faults.around(self.plan.fault_interval_us * rarer);
        self.at(next, Event::Strike);
        // Until then people come online; later nothing would be there to break.
        if self.tick < self.plan.ticks.min(WARM_TICKS) {
            return true;
        }
        let on_cluster = if self.plan.on_cluster() { &STRIKES_ON_A_CLUSTER[..] } else { &[] };
        let strikes: Vec<Fault> = STRIKES.iter().chain(on_cluster).copied().collect();
        let weights: Vec<u32> = strikes.iter().map(|fault| self.plan.fault(*fault)).collect();
        let Some(fault) = self.faults.weighted(&weights).map(|at| strikes[at]) else { return true };
        self.trace.tell(self.now, || format!("!!! {fault}"));
        match fault {
            Fault::CutConnection => self.cut_connection(),
            Fault::CutLink => self.cut_link(),
            Fault::SlowConsumer => {
                let device = self.faults.below(self.devices.len() as u64) as usize;
                self.devices[device].stopped_reading_until = self.now + self.faults.around(1_500_000);
            }
            Fault::StallShard => self.stall_shard(),
            Fault::FullMesh => self.mesh_full_until = self.now + self.faults.around(50_000),
            Fault::StopGateway => {
                if let Some(gateway) = self.living_gateway() {
                    let long = self.faults.around(3_000_000);
                    self.gateways[gateway as usize].stopped_until = self.now + long;
                }
            }
            Fault::CrashGateway => {
                if let Some(gateway) = self.living_gateway() {
                    self.end_gateway(gateway);
                }
            }
            Fault::Takeover if self.gateways.iter().filter(|gateway| gateway.alive).count() < GATEWAYS_MAX => {
                self.start_gateway();
            }
            Fault::DrainGateway => self.drain_gateway(),
            Fault::StallWriter => {
                if let Some(writer) = self.living_writer() {
                    // Also longer than a lease, if there is one.
                    let long = self.faults.around(500_000);
                    self.writers[writer as usize].stopped_until = self.now + long;
                }
            }
            Fault::CrashBeforeCommit | Fault::CrashDuringCommit | Fault::CrashAfterCommit => {
                // At the next commit, whenever that is.
                self.crash_at = Some(fault);
            }
            Fault::ReplaceWriter if !self.plan.on_cluster() => self.replace_writer(),
            Fault::SyncError => self.disk.sync_fails = true,
            Fault::DiskFull => self.disk.full_until = self.now + self.faults.around(200_000),
            Fault::ClockStep => self.step_a_clock(),
            Fault::ReplicaDown => self.take_replica_down(),
            Fault::LateWrites => self.hold_late_writes(),
            Fault::GiveBack => self.give_back(),
            _ => {}
        }
        true
    }

    fn living_gateway(&mut self) -> Option<u32> {
        let alive: Vec<u32> = (0u32..).zip(&self.gateways).filter(|(_, g)| g.alive).map(|(at, _)| at).collect();
        self.faults.pick(&alive).copied()
    }

    fn living_writer(&mut self) -> Option<u32> {
        let alive: Vec<u32> = (0u32..).zip(&self.writers).filter(|(_, w)| w.alive).map(|(at, _)| at).collect();
        self.faults.pick(&alive).copied()
    }

    fn cut_connection(&mut self) {
        let open: Vec<u32> = self.devices.iter().filter_map(|device| device.conn).collect();
        let Some(conn) = self.faults.pick(&open).copied() else { return };
        let (now, later) = (self.now, self.now + self.faults.around(20_000));
        let state = &mut self.conns[conn as usize];
        // Each end keeps what had arrived, and hears of the end in its own time.
        state.up.cut(now);
        state.down.cut(now);
        self.at(now, Event::Down { conn });
        self.at(later, Event::Up { conn });
    }

    fn open_links(&self) -> Vec<u32> {
        (0u32..).zip(&self.links).filter(|(_, l)| l.shard_has_it && l.writer_has_it).map(|(at, _)| at).collect()
    }

    fn cut_link(&mut self) {
        let open = self.open_links();
        let link = self.faults.pick(&open).copied();
        link.into_iter().for_each(|link| self.cut(link));
    }

    /// Every link breaks.
    pub(crate) fn cut_links(&mut self) -> bool {
        self.open_links().into_iter().for_each(|link| self.cut(link));
        true
    }

    fn cut(&mut self, link: u32) {
        let (now, later) = (self.now, self.now + self.faults.around(20_000));
        let state = &mut self.links[link as usize];
        state.up.cut(now);
        state.down.cut(now);
        self.at(now, Event::LinkDown { link });
        self.at(later, Event::LinkUp { link });
    }

    fn stall_shard(&mut self) {
        let Some(gateway) = self.living_gateway() else { return };
        let shard = self.faults.below(u64::from(self.plan.shards)) as usize;
        let long = if self.faults.chance(200) { 3_000_000 } else { 60_000 };
        let until = self.now + self.faults.around(long);
        self.gateways[gateway as usize].shards[shard].stalled_until = until;
    }

    fn drain_gateway(&mut self) {
        let Some(gateway) = self.living_gateway() else { return };
        self.gateways[gateway as usize].draining = true;
        (0..self.plan.shards).for_each(|shard| self.wake_shard(gateway, shard, self.now));
        // Whoever told it to end does not wait for ever.
        self.at(self.now + 2_000_000, Event::EndGateway { gateway });
    }

    /// The old writer lives on for a while, and finds that it holds nothing any more.
    fn replace_writer(&mut self) {
        let old: Vec<u32> = (0u32..).zip(&self.writers).filter(|(_, w)| w.alive).map(|(at, _)| at).collect();
        self.start_writer();
        for writer in old {
            let end = self.now + self.faults.around(300_000);
            self.at(end, Event::EndWriter { writer });
        }
    }

    fn step_a_clock(&mut self) {
        let by_ms = self.faults.below(6_000) as i64 - 3_000;
        if self.faults.chance(500) {
            if let Some(gateway) = self.living_gateway() {
                self.step_clock_of_gateway(gateway, by_ms);
            }
        } else if let Some(writer) = self.living_writer() {
            self.writers[writer as usize].offset_ms += by_ms;
        }
    }

    /// What breaks at the very end, when nothing follows that would show a loss.
    pub(crate) fn last_blow(&mut self) {
        let strikes = |world: &mut World, fault| world.plan.fault(fault) > 0 && world.faults.chance(400);
        if strikes(self, Fault::CutLink) {
            // The writer stands still meanwhile: it finds what came over the old links and, again, over the new ones.
            if self.faults.chance(700)
                && let Some(writer) = self.living_writer()
            {
                self.writers[writer as usize].stopped_until = self.now + 10_000 + self.faults.around(30_000);
            }
            let soon = self.now + self.faults.around(5_000);
            self.at(soon, Event::CutLinks);
        }
        for fault in [Fault::CrashBeforeCommit, Fault::CrashDuringCommit, Fault::CrashAfterCommit] {
            if strikes(self, fault) {
                self.crash_at = Some(fault);
            }
        }
        if strikes(self, Fault::FullMesh) {
            self.mesh_full_until = self.now + self.faults.around(10_000);
        }
    }

    /// Nothing breaks any more, and what is broken is repaired.
    pub(crate) fn repair(&mut self) {
        self.mesh_full_until = 0;
        self.disk.full_until = 0;
        self.disk.sync_fails = false;
        self.crash_at = None;
        self.repair_cluster();
        for gateway in 0..self.gateways.len() as u32 {
            let process = &mut self.gateways[gateway as usize];
            if !process.alive {
                continue;
            }
            process.stopped_until = process.stopped_until.min(self.now);
            process.shards.iter_mut().for_each(|shard| shard.stalled_until = shard.stalled_until.min(self.now));
            (0..self.plan.shards).for_each(|shard| self.wake_shard(gateway, shard, self.now));
        }
        for writer in 0..self.writers.len() as u32 {
            let process = &mut self.writers[writer as usize];
            process.stopped_until = process.stopped_until.min(self.now);
            process.engine.iter_mut().for_each(|engine| engine.behave());
            self.wake_writer(writer, self.now);
        }
    }
}
