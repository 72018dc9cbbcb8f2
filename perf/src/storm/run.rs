//! One run: everybody logs in, messages flow, the storm comes, everybody is back, messages flow on, the ledger is read.

use super::fleet::Fleet;
use super::flow::Flow;
use super::report::{Findings, Report, Sample, Spent};
use super::{How, Settings};
use crate::cpu::{Probe, own_us};
use crate::device::{Beats, Identity};
use crate::frames::Encoder;
use crate::idle::memory::{megabytes, resident_bytes};
use crate::idle::plan::files_per_ring;
use crate::net::{Clock, raise_file_limit};
use crate::report::percentile_ms;
use crate::rings::{Action, BufferOptions, Rings};
use crate::schedule::Schedule;
use crate::spawn::Servers;
use crate::target::Target;
use parley_protocol::wire::Encoding;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECOND_NS: u64 = 1_000_000_000;
const MASK: [u8; 4] = [0x9d, 0x3a, 0xc4, 0x71];
const BUFFERS: BufferOptions = BufferOptions { count: 256, bytes: 1024 };
const PAYLOAD_BYTES: usize = 128;
/// Sockets of one ring at most, beside the limit of open files.
const RING_FILES: u32 = 18_000;
const FILES_SPARE: u64 = 256;
/// Without a login for this long the run is given up.
const PATIENCE_NS: u64 = 30 * SECOND_NS;
/// What was acknowledged arrives within this after the last message.
const DRAIN_NS: u64 = 15 * SECOND_NS;
const SAMPLE_NS: u64 = SECOND_NS / 20;
const PROGRESS_NS: u64 = SECOND_NS;
/// Points of the curve at most: a run that goes on longer samples less often.
const SAMPLES_MAX: usize = 2_000;

struct Engine<'a> {
    settings: &'a Settings,
    clock: Clock,
    rings: Rings,
    fleet: Fleet<'a>,
    actions: Vec<Action>,
    gateway: Option<Probe>,
    curve: Vec<Sample>,
    sample_ns: u64,
    progress_ns: u64,
    /// When the storm began, once it did.
    storm_ns: Option<u64>,
    /// The last that was heard of the gateway's CPU time.
    gateway_us: Option<u64>,
}

/// Runs it, and says what came out.
pub(super) fn run(settings: &Settings, target: Target) -> Result<Report, String> {
    let clock = Clock::start();
    let encoder = Encoder::new(Encoding::Rkyv, PAYLOAD_BYTES, MASK);
    let now_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let identity = Identity { tokens: target.tokens.clone(), run: settings.run, now_unix_s };
    let files_max = u32::try_from(raise_file_limit().saturating_sub(FILES_SPARE).max(1)).unwrap_or(u32::MAX);
    let files = files_per_ring(settings.sessions, files_max.min(RING_FILES));
    let rings = Rings::new(settings.sessions, files, target.url.address, BUFFERS)
        .map_err(|error| format!("cannot set up io_uring: {error}"))?;
    let beats = Beats::new(clock.now_ns(), settings.sessions);
    let flow = Flow::new(&encoder, settings.run, settings.talkers);
    let fleet = Fleet::new(&encoder, identity, &target.url, settings.sessions, settings.logins, beats, flow);
    let gateway = target.probes.gateway;
    let mut engine = Engine {
        settings,
        clock,
        rings,
        fleet,
        actions: Vec::new(),
        gateway,
        curve: Vec::new(),
        sample_ns: 0,
        progress_ns: 0,
        storm_ns: None,
        gateway_us: None,
    };
    let begun_ns = clock.now_ns();
    engine.log_in()?;
    let login_seconds = (clock.now_ns() - begun_ns) as f64 / 1e9;
    eprintln!("all {} sessions are seated after {login_seconds:.1} s", settings.sessions);
    engine.curve.clear();

    let calm_ns = clock.now_ns() + SECOND_NS / 2;
    let schedule = || Schedule::new(calm_ns, u64::MAX, u64::from(settings.rate), settings.talkers, settings.seed);
    engine.fleet.flow.set_schedule((settings.rate > 0).then(schedule));
    engine.until(calm_ns + settings.calm_ns)?;
    let mut found = engine.storm(target, login_seconds)?;
    engine.until(clock.now_ns() + settings.calm_ns)?;
    engine.fleet.flow.set_schedule(None);
    let drained_ns = clock.now_ns() + DRAIN_NS;
    while engine.fleet.flow.ledger.open() > 0 && clock.now_ns() < drained_ns {
        engine.step()?;
    }
    // An event that came after all would show as a double.
    engine.until(clock.now_ns() + SECOND_NS / 5)?;
    let Engine { rings, fleet, curve, storm_ns, .. } = engine;
    drop(rings);
    let storm_s = storm_ns.unwrap_or_default() as f64 / 1e9;
    found.0.curve = curve.into_iter().map(|it| Sample { s: ((it.s - storm_s) * 1e3).round() / 1e3, ..it }).collect();
    Ok(Report::new(settings, &fleet, found.0))
}

/// The servers, given back by the thread that replaces the gateway, or never given away.
struct Kept(#[expect(dead_code, reason = "dropping it ends the servers")] Option<Servers>);

impl Engine<'_> {
    /// One turn: queue what is due, serve what came, rest until something is due.
    fn step(&mut self) -> Result<(), String> {
        let io = |error: std::io::Error| error.to_string();
        if self.settings.stop.load(Ordering::Relaxed) {
            return Err("stopped by a signal".to_owned());
        }
        let now_ns = self.clock.now_ns();
        self.watch(now_ns);
        self.fleet.tick(now_ns, &mut self.actions);
        self.rings.run(&mut self.actions).map_err(io)?;
        let taken = self.rings.turn(&mut self.fleet, &self.clock).map_err(io)?;
        if let Some(failure) = self.fleet.failure.take() {
            return Err(failure);
        }
        let rest_ns = self.fleet.next_ns().saturating_sub(self.clock.now_ns());
        if taken == 0 && rest_ns > 0 {
            self.rings.wait(Duration::from_nanos(rest_ns.min(SECOND_NS / 1_000))).map_err(io)?;
        }
        Ok(())
    }

    fn until(&mut self, until_ns: u64) -> Result<(), String> {
        while self.clock.now_ns() < until_ns {
            self.step()?;
        }
        Ok(())
    }

    fn log_in(&mut self) -> Result<(), String> {
        let (mut seated, mut moved_ns) = (0, self.clock.now_ns());
        while self.fleet.tally.seated < self.settings.sessions {
            let now_ns = self.clock.now_ns();
            if self.fleet.tally.seated != seated {
                (seated, moved_ns) = (self.fleet.tally.seated, now_ns);
            } else if now_ns > moved_ns + PATIENCE_NS {
                return Err(format!("{seated} sessions are seated, and no further one was for 30 s"));
            }
            self.step()?;
        }
        Ok(())
    }

    /// The storm, until everybody is back.
    fn storm(&mut self, mut target: Target, login_seconds: f64) -> Result<(Findings, Kept), String> {
        let settings = self.settings;
        let writer_us = |target: &Option<Probe>| target.map(Probe::cpu_us).transpose();
        let writer = target.probes.writer;
        let begun_ns = self.clock.now_ns();
        let (old_us, writer_begun_us, own_begun_us) =
            (self.gateway.map(Probe::cpu_us).transpose()?, writer_us(&writer)?, own_us());
        eprintln!("{:6.1} s  the storm: {}", begun_ns as f64 / 1e9, settings.how.name());
        (self.storm_ns, self.gateway_us) = (Some(begun_ns), old_us);
        self.fleet.begin();
        let mut servers = target.servers.take();
        let mut replacing: Option<JoinHandle<Result<Servers, String>>> = None;
        match (settings.how, servers.take()) {
            (How::Cut, kept) => {
                servers = kept;
                self.fleet.cut(begun_ns, &mut self.actions);
            }
            (how, Some(mut running)) => {
                let replace = move || running.replace_gateway(how == How::Kill).map(|()| running);
                replacing = Some(std::thread::spawn(replace));
            }
            (_, None) => return Err("no gateway that may be ended".to_owned()),
        }
        let (mut least, mut replaced_after_s, mut new_gateway) = (settings.sessions, None, None);
        let mut old_gateway_us = None;
        loop {
            self.step()?;
            let now_ns = self.clock.now_ns();
            if let Some(thread) = replacing.take_if(|thread| thread.is_finished()) {
                let running = thread.join().map_err(|_| "the thread that replaces the gateway panicked")??;
                replaced_after_s = Some((now_ns - begun_ns) as f64 / 1e9);
                // What was last heard of the old one, in steps of a sample.
                old_gateway_us = self.gateway_us;
                new_gateway = running.probes().gateway;
                self.gateway = new_gateway;
                servers = Some(running);
            }
            let seated = self.fleet.tally.seated;
            least = least.min(seated);
            let came = self.fleet.tally.away_us.len() >= u64::from(settings.sessions);
            if came && seated == settings.sessions && replacing.is_none() {
                break;
            }
            if now_ns > begun_ns + settings.patience_ns {
                let refused = &self.fleet.tally.refused;
                return Err(format!("{seated} of {} are seated again; refused: {refused:?}", settings.sessions));
            }
        }
        let now_us = self.gateway.map(Probe::cpu_us).transpose()?;
        let spent = Spent {
            old_gateway_us: old_gateway_us.or(now_us).zip(old_us).map(|(end, begun)| end.saturating_sub(begun)),
            new_gateway_us: new_gateway.and(now_us),
            writer_us: writer_us(&writer)?.zip(writer_begun_us).map(|(end, begun)| end.saturating_sub(begun)),
            generator_us: own_us() - own_begun_us,
        };
        let found = Findings {
            driver: target.driver,
            login_seconds,
            seated_after_s: (self.clock.now_ns() - begun_ns) as f64 / 1e9,
            seated_least: least,
            replaced_after_s,
            spent,
            curve: Vec::new(),
        };
        eprintln!("{:6.1} s  everybody is back", self.clock.now_ns() as f64 / 1e9);
        Ok((found, Kept(servers)))
    }

    /// Samples of the curve, and lines of progress.
    fn watch(&mut self, now_ns: u64) {
        if now_ns >= self.sample_ns {
            self.sample_ns = now_ns + SAMPLE_NS;
            // A gateway that is being replaced has neither.
            let resident = self.gateway.and_then(|probe| resident_bytes(probe.pid).ok()).filter(|bytes| *bytes > 0);
            self.gateway_us = self.gateway.and_then(|probe| probe.cpu_us().ok()).or(self.gateway_us);
            if self.curve.len() < SAMPLES_MAX {
                self.curve.push(Sample {
                    s: now_ns as f64 / 1e9,
                    sessions: self.fleet.tally.seated,
                    gateway_rss_mb: resident.map(|bytes| megabytes(bytes as i64)),
                });
            }
        }
        if now_ns >= self.progress_ns + PROGRESS_NS {
            self.progress_ns = now_ns;
            let (tally, counts) = (&self.fleet.tally, self.fleet.flow.ledger.counts());
            eprintln!(
                "{:6.1} s  seated {:7}  attempts {:7}  refused {:6}  away p99 {:8.1} ms  messages {}, delivered {}",
                now_ns as f64 / 1e9,
                tally.seated,
                tally.attempts,
                tally.refused.values().sum::<u64>(),
                percentile_ms(&tally.away_us, 99.0),
                counts.sent,
                counts.delivered,
            );
        }
    }
}
