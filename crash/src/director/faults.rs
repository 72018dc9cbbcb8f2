//! What is done to the servers, one thing after the other, as the seed decides.

use super::servers::{Place, Server};
use crash::random::Random;
use rustix::process::Signal;
use std::net::SocketAddr;
use std::process::Child;
use std::time::Duration;

/// Longer than the liveness of sessions (3 s), of links (1 s) and of clients (2.3 s).
const STOP_MS: u64 = 4_000;
const STOP_SPREAD_MS: u64 = 1_500;
/// Nodes of a cluster.
const NODES: u64 = 3;

/// Looks whether the run can go on.
pub(crate) type Watch<'a> = &'a mut dyn FnMut() -> Result<(), String>;

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    KillGateway,
    KillWriter,
    KillBoth,
    StopGateway,
    StopWriter,
    TerminateGateway,
    TerminateWriter,
    /// A second gateway starts while the first is stopped; woken, the first must end.
    TakeOver,
    /// The same while the first serves.
    Replace,
    /// Of two storage-writers both.
    KillWriters,
    /// A node of the cluster, which comes back while other things happen.
    KillNode,
    /// A node is silent for a while; its connections stay open.
    PauseNode,
}

/// How often each is chosen, over a cluster.
const CLUSTER_WEIGHTS: &[(Fault, u64)] = &[
    (Fault::KillGateway, 12),
    (Fault::KillWriter, 26),
    (Fault::KillBoth, 8),
    (Fault::StopGateway, 4),
    (Fault::StopWriter, 14),
    (Fault::TerminateGateway, 2),
    (Fault::TerminateWriter, 8),
    (Fault::TakeOver, 3),
    (Fault::Replace, 2),
    (Fault::KillWriters, 8),
    (Fault::KillNode, 7),
    (Fault::PauseNode, 6),
];

/// How often each is chosen.
const WEIGHTS: &[(Fault, u64)] = &[
    (Fault::KillGateway, 29),
    (Fault::KillWriter, 29),
    (Fault::KillBoth, 16),
    (Fault::StopGateway, 5),
    (Fault::StopWriter, 5),
    (Fault::TerminateGateway, 4),
    (Fault::TerminateWriter, 4),
    (Fault::TakeOver, 5),
    (Fault::Replace, 3),
];

/// What can happen to such servers.
pub(crate) fn weights(place: &Place) -> Vec<(Fault, u64)> {
    let Some(cluster) = &place.cluster else { return WEIGHTS.to_vec() };
    let of_node = |fault: Fault| matches!(fault, Fault::KillNode | Fault::PauseNode);
    CLUSTER_WEIGHTS.iter().filter(|(fault, _)| cluster.nodes.is_some() || !of_node(*fault)).copied().collect()
}

/// Those of the first round, which has each once: a short run meets all of them.
pub(crate) fn first_round(weights: &[(Fault, u64)], random: &mut Random) -> Vec<Fault> {
    let mut all: Vec<Fault> = weights.iter().map(|(fault, _)| *fault).collect();
    for place in 1..all.len() {
        all.swap(place, random.below(place as u64 + 1) as usize);
    }
    all
}

pub(crate) fn choose(weights: &[(Fault, u64)], random: &mut Random) -> Fault {
    let mut left = random.below(weights.iter().map(|(_, weight)| weight).sum());
    for (fault, weight) in weights {
        match left.checked_sub(*weight) {
            Some(rest) => left = rest,
            None => return *fault,
        }
    }
    Fault::KillGateway
}

/// How often what was done.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct Counts {
    pub(crate) kills: u64,
    pub(crate) stops: u64,
    pub(crate) terminations: u64,
    pub(crate) takeovers: u64,
    /// Kills and pauses of nodes of a cluster.
    pub(crate) nodes: u64,
}

/// The servers, and what was done to them.
pub(crate) struct Fleet {
    gateway: Option<Server>,
    /// One, or two over a cluster.
    writers: Vec<Option<Server>>,
    place: Place,
    addresses: Vec<SocketAddr>,
    /// Which address the gateway has.
    at: usize,
    /// The node that is not whole, and what brings it back: never two at a time.
    healing: Option<(u64, Child)>,
    pub(crate) counts: Counts,
}

impl Fleet {
    pub(crate) fn new(place: Place, addresses: Vec<SocketAddr>) -> Self {
        let writers = (0..place.writers()).map(|_| None).collect();
        Self { gateway: None, writers, place, addresses, at: 0, healing: None, counts: Counts::default() }
    }

    /// Starts what does not run, and waits until the gateway and a lone writer are ready; of two one may stand by.
    /// Sometimes what starts is killed at once, in the middle of its recovery.
    pub(crate) fn start(&mut self, random: &mut Random, watch: Watch<'_>) -> Result<(), String> {
        let gateway_first = random.one_in(2);
        for step in 0..2 {
            if (step == 0) == gateway_first {
                if self.gateway.is_none() {
                    self.gateway = Some(Server::gateway(&self.place, self.addresses[self.at])?);
                }
            } else {
                for index in 0..self.writers.len() {
                    if self.writers[index].is_none() {
                        self.writers[index] = Some(self.start_writer(index, random, watch)?);
                    }
                }
            }
        }
        if let [Some(writer)] = &mut self.writers[..] {
            writer.wait_ready(&mut *watch)?;
        }
        self.gateway.as_mut().map_or(Ok(()), |gateway| gateway.wait_ready(&mut *watch))
    }

    fn start_writer(&mut self, index: usize, random: &mut Random, watch: Watch<'_>) -> Result<Server, String> {
        let faulty = self.counts.kills > 0;
        while faulty && random.one_in(6) {
            let writer = Server::writer(&self.place, index)?;
            pause(Duration::from_millis(random.below(120)), watch)?;
            writer.kill()?;
            self.counts.kills += 1;
        }
        Server::writer(&self.place, index)
    }

    pub(crate) fn must_run(&mut self) -> Result<(), String> {
        let servers = self.writers.iter_mut().chain([&mut self.gateway]);
        servers.flatten().try_for_each(|server| server.must_run("by itself"))
    }

    fn kill_gateway(&mut self) -> Result<(), String> {
        let server = self.gateway.take();
        self.kill(server)
    }

    /// One of them.
    fn kill_writer(&mut self, random: &mut Random) -> Result<(), String> {
        let index = self.a_writer(random);
        let server = self.writers[index].take();
        self.kill(server)
    }

    fn kill(&mut self, server: Option<Server>) -> Result<(), String> {
        self.counts.kills += u64::from(server.is_some());
        server.map_or(Ok(()), Server::kill)
    }

    fn a_writer(&self, random: &mut Random) -> usize {
        // A lone one takes nothing from the seed.
        if self.writers.len() == 1 { 0 } else { random.below(self.writers.len() as u64) as usize }
    }

    /// Does it, and has everything running again.
    pub(crate) fn suffer(&mut self, fault: Fault, random: &mut Random, watch: Watch<'_>) -> Result<(), String> {
        match fault {
            Fault::KillGateway => self.kill_gateway()?,
            Fault::KillWriter => self.kill_writer(random)?,
            Fault::KillWriters => {
                for index in 0..self.writers.len() {
                    let server = self.writers[index].take();
                    self.kill(server)?;
                }
            }
            Fault::KillBoth => {
                let writer_first = random.one_in(2);
                if writer_first {
                    self.kill_writer(random)?
                } else {
                    self.kill_gateway()?
                }
                if random.one_in(2) {
                    pause(Duration::from_millis(random.below(300)), watch)?;
                }
                if writer_first { self.kill_gateway()? } else { self.kill_writer(random)? }
            }
            Fault::StopGateway | Fault::StopWriter => {
                let index = self.a_writer(random);
                let server = if fault == Fault::StopWriter { &self.writers[index] } else { &self.gateway };
                let Some(server) = server else { return Ok(()) };
                server.signal(Signal::STOP)?;
                self.counts.stops += 1;
                pause(stop_time(random), watch)?;
                server.signal(Signal::CONT)?;
            }
            Fault::TerminateGateway | Fault::TerminateWriter => {
                let index = self.a_writer(random);
                let server = if fault == Fault::TerminateWriter { &mut self.writers[index] } else { &mut self.gateway };
                let Some(mut server) = server.take() else { return Ok(()) };
                // One that a signal meets during its start rightly ends with an error.
                server.wait_ready(&mut *watch)?;
                server.terminate(&mut *watch)?;
                self.counts.terminations += 1;
            }
            Fault::TakeOver | Fault::Replace => self.take_over(fault == Fault::TakeOver, random, watch)?,
            Fault::KillNode | Fault::PauseNode => self.hurt_node(fault == Fault::KillNode, random, watch)?,
        }
        // Mostly back at once; sometimes away for longer than every timeout.
        let longest = if random.one_in(8) { STOP_MS } else { 400 };
        if self.gateway.is_none() || self.writers.iter().any(Option::is_none) {
            pause(Duration::from_millis(random.below(longest)), watch)?;
        }
        self.start(random, watch)
    }

    /// Waits for the node that is coming back, and has another one killed or silent.
    fn hurt_node(&mut self, kill: bool, random: &mut Random, watch: Watch<'_>) -> Result<(), String> {
        self.heal(watch)?;
        let node = 1 + random.below(NODES);
        let away = if kill { Duration::from_millis(random.below(STOP_MS)) } else { stop_time(random) };
        let (hurts, heals) = if kill { ("kill", "restart") } else { ("pause", "resume") };
        finish(self.place.node(hurts, node)?, &format!("{hurts} of node {node}"), watch)?;
        self.counts.nodes += 1;
        let waited = pause(away, watch);
        // Also when the run ends here: a silent node could not be stopped.
        self.healing = Some((node, self.place.node(heals, node)?));
        waited
    }

    /// Waits until every node is whole.
    fn heal(&mut self, watch: Watch<'_>) -> Result<(), String> {
        let Some((node, child)) = self.healing.take() else { return Ok(()) };
        finish(child, &format!("the return of node {node}"), watch)
    }

    fn take_over(&mut self, stopped: bool, random: &mut Random, watch: Watch<'_>) -> Result<(), String> {
        let Some(first) = self.gateway.take() else { return Ok(()) };
        let next = (self.at + 1) % self.addresses.len();
        if stopped {
            first.signal(Signal::STOP)?;
            self.counts.stops += 1;
        }
        // Both are killed on every way out of here by an error.
        let mut second = Server::gateway(&self.place, self.addresses[next])?;
        second.wait_ready(&mut *watch)?;
        if stopped {
            pause(stop_time(random), watch)?;
            first.signal(Signal::CONT)?;
        }
        first.end_fenced(&mut *watch)?;
        self.counts.takeovers += 1;
        (self.gateway, self.at) = (Some(second), next);
        Ok(())
    }

    /// The end: all by SIGTERM, and a store of files proves itself.
    pub(crate) fn end(mut self, watch: Watch<'_>) -> Result<Counts, String> {
        self.heal(watch)?;
        for mut server in std::iter::once(self.gateway.take()).chain(self.writers.drain(..)).flatten() {
            server.wait_ready(&mut *watch)?;
            server.terminate(&mut *watch)?;
        }
        if self.place.cluster.is_none() {
            let data = self.place.data();
            self.place.output(&["check-store", "--data", &data.to_string_lossy()])?;
        }
        Ok(self.counts)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some((_, mut child)) = self.healing.take() {
            // It ends by itself, bounded by its own patience.
            let _ = child.wait();
        }
    }
}

/// Waits for what a script does to a node.
fn finish(mut child: Child, what: &str, watch: Watch<'_>) -> Result<(), String> {
    loop {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            return if status.success() { Ok(()) } else { Err(format!("{what}: {status}; see nodes.log")) };
        }
        if let Err(why) = watch() {
            let _ = child.wait();
            return Err(why);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn stop_time(random: &mut Random) -> Duration {
    Duration::from_millis(STOP_MS + random.below(STOP_SPREAD_MS))
}

/// Lets time pass, watchfully.
pub(crate) fn pause(time: Duration, watch: Watch<'_>) -> Result<(), String> {
    let end = std::time::Instant::now() + time;
    loop {
        watch()?;
        let left = end.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::servers::Cluster;
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn a_seed_decides_and_the_first_round_has_every_fault_once() {
        for weights in [WEIGHTS, CLUSTER_WEIGHTS] {
            let round = |seed| first_round(weights, &mut Random::new(seed, 0));
            assert_eq!(round(1), round(1));
            assert_ne!(round(1), round(2));
            for (fault, _) in weights {
                assert_eq!(round(1).iter().filter(|chosen| *chosen == fault).count(), 1, "{fault:?}");
            }
        }
    }

    #[test]
    fn every_fault_is_chosen_about_as_often_as_its_weight_says() {
        for weights in [WEIGHTS, CLUSTER_WEIGHTS] {
            let mut random = Random::new(7, 0);
            let chosen: Vec<Fault> = (0..100_000).map(|_| choose(weights, &mut random)).collect();
            for (fault, weight) in weights {
                let times = chosen.iter().filter(|chosen| *chosen == fault).count() as u64;
                assert!((weight * 900..weight * 1_100).contains(&times), "{fault:?}: {times}");
            }
        }
    }

    #[test]
    fn nodes_suffer_only_where_there_are_some() {
        let nodes = Some((PathBuf::from("script"), PathBuf::from("dir")));
        let cluster = |nodes| Some(Cluster { contact: "a:1".to_owned(), keyspace: "k".to_owned(), nodes });
        let faults = |cluster: Option<Cluster>| {
            let place = Place { parley: PathBuf::new(), dir: PathBuf::new(), driver: "auto".to_owned(), cluster };
            weights(&place).into_iter().map(|(fault, _)| fault).collect::<Vec<_>>()
        };
        assert!(faults(cluster(nodes)).contains(&Fault::KillNode));
        for without in [faults(cluster(None)), faults(None)] {
            assert!(!without.contains(&Fault::KillNode) && !without.contains(&Fault::PauseNode));
        }
    }
}
