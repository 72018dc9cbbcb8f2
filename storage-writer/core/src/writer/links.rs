//! Links and epochs: who may ask, and the barrier between one home and the next.

use super::api::LinkId;
use super::groups::Pending;
use super::jobs::Answered;
use super::{Phase, Writer};
use crate::planted::{self, Bug};
use parley_protocol::limits;
use parley_protocol::link::{LinkHello, Reply, ToGateway};

/// An open link.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) id: LinkId,
    /// The epoch of its gateway, as numbered; 0 before.
    pub(super) home_epoch: u64,
    /// Requests are taken.
    pub(super) welcome: bool,
}

impl Writer {
    pub(super) fn hello(&mut self, link: LinkId, hello: LinkHello) {
        if self.links.contains_key(&link) {
            return self.close(link);
        }
        self.links.insert(link, Link { id: link, home_epoch: 0, welcome: false });
        if hello.version != limits::LINK_VERSION {
            let reason = format!("the link speaks version {}, this writer {}", hello.version, limits::LINK_VERSION);
            self.send(link, ToGateway::Rejected { reason });
            return self.close(link);
        }
        self.judge_hello(link, hello);
    }

    /// Grants an epoch, or finds that the one presented holds or is dead. Waits while that cannot be written.
    pub(super) fn judge_hello(&mut self, link: LinkId, hello: LinkHello) {
        let holds = self.meta.home_epoch != 0 && hello.gateway == self.meta.gateway;
        let grant = hello.home_epoch == 0 && !holds;
        let writes = matches!(self.phase, Phase::Serving);
        let reads = matches!(self.phase, Phase::Serving | Phase::Waiting { .. } | Phase::Probing) && self.started;
        if (grant && !writes) || !reads {
            return self.hellos.push_back((link, hello));
        }
        if grant {
            self.meta.home_epoch += 1;
            self.meta.gateway = hello.gateway;
            self.gathering.granted = Some(self.meta.home_epoch);
            self.write_meta();
        }
        let current = self.meta.home_epoch;
        if grant || (holds && (hello.home_epoch == 0 || hello.home_epoch == current)) {
            self.links.get_mut(&link).expect("it is open").home_epoch = current;
            self.gathering.pending.push(Pending::Welcome { link, hello });
        } else {
            self.gathering.pending.push(Pending::FencedHello { link, hello });
        }
    }

    /// The barrier. Its answer leaves with the group that is gathered now, so after everything older.
    pub(super) fn open(&mut self, to: Answered, partition: u16) {
        let Some(&opened) = self.opened.get(partition as usize) else {
            return self.close(to.link);
        };
        if to.epoch < opened && !planted::has(Bug::OlderEpochsTaken) {
            return self.attach(to, Reply::Fenced);
        }
        if self.phase != Phase::Serving {
            // Clients wait behind the barrier: they hear at once that nothing can be done for them now.
            return self.answer(to, Reply::Failed);
        }
        if to.epoch > opened {
            self.opened[partition as usize] = to.epoch;
            self.gathering.group.opened.push((partition, to.epoch));
        }
        self.attach(to, Reply::Opened);
    }

    /// Tells every open link whether commands are taken, if that changed since they were told.
    pub(super) fn tell_readiness(&mut self) {
        let reason = self.unready();
        if reason == self.told {
            return;
        }
        self.told = reason;
        let mut open: Vec<_> = self.links.values().filter(|link| link.welcome).map(|link| link.id).collect();
        // The simulator repeats a run from its seed: no order of a hash table leaves.
        open.sort_unstable();
        for link in open {
            self.send_status(link);
        }
    }

    pub(super) fn send_status(&mut self, link: LinkId) {
        let reason = self.unready();
        let record = ToGateway::Status { ready: reason.is_none(), reason: reason.unwrap_or_default() };
        self.send(link, record);
    }

    /// A grant is durable: every link of an older gateway is told and closed.
    pub(super) fn fence_links(&mut self, granted: u64) {
        if planted::has(Bug::OlderEpochsTaken) || planted::has(Bug::GrantIsNoBarrier) {
            return;
        }
        let older = |link: &&Link| link.welcome && link.home_epoch < granted;
        let mut dead: Vec<_> = self.links.values().filter(older).map(|link| link.id).collect();
        dead.sort_unstable();
        for link in dead {
            self.send(link, ToGateway::Fenced);
            self.close(link);
        }
    }
}
