//! What is done to the servers, one thing after the other, as the seed decides.

use super::servers::{Place, Server};
use crash::random::Random;
use rustix::process::Signal;
use std::net::SocketAddr;
use std::time::Duration;

/// Longer than the liveness of sessions (3 s), of links (1 s) and of clients (2.3 s).
const STOP_MS: u64 = 4_000;
const STOP_SPREAD_MS: u64 = 1_500;

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
}

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

/// Those of the first round, which has each once: a short run meets all of them.
pub(crate) fn first_round(random: &mut Random) -> Vec<Fault> {
    let mut all: Vec<Fault> = WEIGHTS.iter().map(|(fault, _)| *fault).collect();
    for place in 1..all.len() {
        all.swap(place, random.below(place as u64 + 1) as usize);
    }
    all
}

pub(crate) fn choose(random: &mut Random) -> Fault {
    let mut left = random.below(WEIGHTS.iter().map(|(_, weight)| weight).sum());
    for (fault, weight) in WEIGHTS {
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
}

/// The servers, and what was done to them.
pub(crate) struct Fleet {
    gateway: Option<Server>,
    writer: Option<Server>,
    place: Place,
    addresses: Vec<SocketAddr>,
    /// Which address the gateway has.
    at: usize,
    pub(crate) counts: Counts,
}

impl Fleet {
    pub(crate) fn new(place: Place, addresses: Vec<SocketAddr>) -> Self {
        Self { gateway: None, writer: None, place, addresses, at: 0, counts: Counts::default() }
    }

    /// Starts what does not run, and waits until both are ready. Sometimes what starts is killed at once, in the middle
    /// of its recovery.
    pub(crate) fn start(
        &mut self,
        random: &mut Random,
        watch: &mut dyn FnMut() -> Result<(), String>,
    ) -> Result<(), String> {
        let gateway_first = random.one_in(2);
        for step in 0..2 {
            if (step == 0) == gateway_first {
                if self.gateway.is_none() {
                    self.gateway = Some(Server::gateway(&self.place, self.addresses[self.at])?);
                }
            } else if self.writer.is_none() {
                self.writer = Some(self.start_writer(random, watch)?);
            }
        }
        for server in [&mut self.writer, &mut self.gateway].into_iter().flatten() {
            server.wait_ready(&mut *watch)?;
        }
        Ok(())
    }

    fn start_writer(
        &mut self,
        random: &mut Random,
        watch: &mut dyn FnMut() -> Result<(), String>,
    ) -> Result<Server, String> {
        let faulty = self.counts.kills > 0;
        while faulty && random.one_in(6) {
            let writer = Server::writer(&self.place)?;
            pause(Duration::from_millis(random.below(120)), watch)?;
            writer.kill()?;
            self.counts.kills += 1;
        }
        Server::writer(&self.place)
    }

    pub(crate) fn must_run(&mut self) -> Result<(), String> {
        [&mut self.writer, &mut self.gateway].into_iter().flatten().try_for_each(|server| server.must_run("by itself"))
    }

    fn kill(&mut self, writer: bool) -> Result<(), String> {
        let server = if writer { self.writer.take() } else { self.gateway.take() };
        self.counts.kills += u64::from(server.is_some());
        server.map_or(Ok(()), Server::kill)
    }

    /// Does it, and has everything running again.
    pub(crate) fn suffer(
        &mut self,
        fault: Fault,
        random: &mut Random,
        watch: &mut dyn FnMut() -> Result<(), String>,
    ) -> Result<(), String> {
        match fault {
            Fault::KillGateway => self.kill(false)?,
            Fault::KillWriter => self.kill(true)?,
            Fault::KillBoth => {
                let writer_first = random.one_in(2);
                self.kill(writer_first)?;
                if random.one_in(2) {
                    pause(Duration::from_millis(random.below(300)), watch)?;
                }
                self.kill(!writer_first)?;
            }
            Fault::StopGateway | Fault::StopWriter => {
                let server = if fault == Fault::StopWriter { &self.writer } else { &self.gateway };
                let Some(server) = server else { return Ok(()) };
                server.signal(Signal::STOP)?;
                self.counts.stops += 1;
                pause(stop_time(random), watch)?;
                server.signal(Signal::CONT)?;
            }
            Fault::TerminateGateway | Fault::TerminateWriter => {
                let server = if fault == Fault::TerminateWriter { self.writer.take() } else { self.gateway.take() };
                self.counts.terminations += 1;
                server.map_or(Ok(()), |server| server.terminate(&mut *watch))?;
            }
            Fault::TakeOver | Fault::Replace => self.take_over(fault == Fault::TakeOver, random, watch)?,
        }
        // Mostly back at once; sometimes away for longer than every timeout.
        let longest = if random.one_in(8) { STOP_MS } else { 400 };
        if self.gateway.is_none() || self.writer.is_none() {
            pause(Duration::from_millis(random.below(longest)), watch)?;
        }
        self.start(random, watch)
    }

    fn take_over(
        &mut self,
        stopped: bool,
        random: &mut Random,
        watch: &mut dyn FnMut() -> Result<(), String>,
    ) -> Result<(), String> {
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

    /// The end: both by SIGTERM, and the store proves itself.
    pub(crate) fn end(mut self, watch: &mut dyn FnMut() -> Result<(), String>) -> Result<Counts, String> {
        for server in [self.gateway.take(), self.writer.take()].into_iter().flatten() {
            server.terminate(&mut *watch)?;
        }
        let data = self.place.data();
        self.place.output(&["check-store", "--data", &data.to_string_lossy()])?;
        Ok(self.counts)
    }
}

fn stop_time(random: &mut Random) -> Duration {
    Duration::from_millis(STOP_MS + random.below(STOP_SPREAD_MS))
}

/// Lets time pass, watchfully.
pub(crate) fn pause(time: Duration, watch: &mut dyn FnMut() -> Result<(), String>) -> Result<(), String> {
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
    use super::*;

    #[test]
    fn a_seed_decides_and_the_first_round_has_every_fault_once() {
        let round = |seed| first_round(&mut Random::new(seed, 0));
        assert_eq!(round(1), round(1));
        assert_ne!(round(1), round(2));
        for (fault, _) in WEIGHTS {
            assert_eq!(round(1).iter().filter(|chosen| *chosen == fault).count(), 1, "{fault:?}");
        }
    }

    #[test]
    fn every_fault_is_chosen_about_as_often_as_its_weight_says() {
        let mut random = Random::new(7, 0);
        let chosen: Vec<Fault> = (0..100_000).map(|_| choose(&mut random)).collect();
        for (fault, weight) in WEIGHTS {
            let times = chosen.iter().filter(|chosen| *chosen == fault).count() as u64;
            assert!((weight * 900..weight * 1_100).contains(&times), "{fault:?}: {times}");
        }
    }
}
