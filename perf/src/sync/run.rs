//! One run: all log in and the devices leave, the writers write and leave, the devices come back and catch up.

use super::Settings;
use super::fleet::{Act, Fleet};
use super::report::{Findings, Report, Sample};
use crate::device::{Beats, Identity};
use crate::frames::Encoder;
use crate::idle::memory::{megabytes, resident_bytes};
use crate::idle::plan::files_per_ring;
use crate::net::{Clock, raise_file_limit};
use crate::rings::{Action, BufferOptions, Rings};
use crate::target::Target;
use parley_protocol::wire::Encoding;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECOND_NS: u64 = 1_000_000_000;
const MASK: [u8; 4] = [0x9d, 0x3a, 0xc4, 0x71];
/// A page of entries fits in a few.
const BUFFERS: BufferOptions = BufferOptions { count: 512, bytes: 16 << 10 };
const RING_FILES: u32 = 18_000;
const FILES_SPARE: u64 = 256;
/// Without progress for this long the run is given up.
const PATIENCE_NS: u64 = 30 * SECOND_NS;
const SAMPLE_NS: u64 = SECOND_NS / 20;
const SAMPLES_MAX: usize = 2_000;
const PROGRESS_NS: u64 = SECOND_NS;
/// Between the acts: sockets are gone, and the servers at rest.
const SETTLE_NS: u64 = SECOND_NS;

struct Engine<'a> {
    settings: &'a Settings,
    target: &'a Target,
    clock: Clock,
    rings: Rings,
    fleet: Fleet<'a>,
    actions: Vec<Action>,
    progress_ns: u64,
    curve: Vec<Sample>,
    sample_ns: u64,
    came_before: u64,
}

/// Runs it, and says what came out.
pub(super) fn run(settings: &Settings, target: &Target) -> Result<Report, String> {
    let clock = Clock::start();
    let encoder = Encoder::new(Encoding::Rkyv, settings.payload_bytes, MASK);
    let now_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let identity = Identity { tokens: target.tokens.clone(), run: settings.run, now_unix_s };
    let all = settings.cast.devices + settings.cast.writers;
    let files_max = u32::try_from(raise_file_limit().saturating_sub(FILES_SPARE).max(1)).unwrap_or(u32::MAX);
    let rings = Rings::new(all, files_per_ring(all, files_max.min(RING_FILES)), target.url.address, BUFFERS)
        .map_err(|error| format!("cannot set up io_uring: {error}"))?;
    let fleet = Fleet::new(&encoder, identity, &target.url, settings.cast, Beats::new(clock.now_ns(), all));
    let mut engine = Engine {
        settings,
        target,
        clock,
        rings,
        fleet,
        actions: Vec::new(),
        progress_ns: 0,
        curve: Vec::new(),
        sample_ns: u64::MAX,
        came_before: 0,
    };
    engine.act("logged in")?;
    engine.rest(SETTLE_NS)?;
    engine.fleet.begin(Act::Write);
    let begun_ns = clock.now_ns();
    engine.act("messages written")?;
    let written_per_s = engine.fleet.tally.answered as f64 * 1e9 / (clock.now_ns() - begun_ns) as f64;
    engine.fleet.dismiss(&mut engine.actions);
    engine.rest(SETTLE_NS)?;

    engine.fleet.begin(Act::Return);
    let (begun_ns, begun) = (clock.now_ns(), target.probes.read()?);
    engine.sample_ns = begun_ns;
    engine.act("devices caught up")?;
    let (ended_ns, cost) = (clock.now_ns(), target.probes.read()?.since(&begun));
    engine.sample(ended_ns, true);
    // What comes after the last mark that said so would be a double.
    engine.sample_ns = u64::MAX;
    engine.rest(SETTLE_NS / 2)?;
    let Engine { rings, fleet, curve, .. } = engine;
    drop(rings);
    let begun_s = begun_ns as f64 / 1e9;
    let curve = curve.into_iter().map(|it| Sample { s: ((it.s - begun_s) * 1e3).round() / 1e3, ..it }).collect();
    let seconds = (ended_ns - begun_ns) as f64 / 1e9;
    let found = Findings { driver: target.driver.clone(), seconds, cost, written_per_s, curve };
    Ok(Report::new(settings.cast, &fleet.tally, found))
}

impl Engine<'_> {
    /// One turn: queue what is due, serve what came, rest a moment if nothing did.
    fn step(&mut self) -> Result<(), String> {
        let io = |error: std::io::Error| error.to_string();
        if self.settings.stop.load(Ordering::Relaxed) {
            return Err("stopped by a signal".to_owned());
        }
        let now_ns = self.clock.now_ns();
        if now_ns >= self.sample_ns {
            self.sample(now_ns, false);
        }
        self.fleet.tick(now_ns, &mut self.actions);
        self.rings.run(&mut self.actions).map_err(io)?;
        if self.rings.turn(&mut self.fleet, &self.clock).map_err(io)? == 0 {
            self.rings.wait(Duration::from_micros(500)).map_err(io)?;
        }
        self.fleet.failure.take().map_or(Ok(()), Err)
    }

    fn rest(&mut self, rest_ns: u64) -> Result<(), String> {
        let until_ns = self.clock.now_ns() + rest_ns;
        while self.clock.now_ns() < until_ns {
            self.step()?;
        }
        Ok(())
    }

    /// Until the act is over.
    fn act(&mut self, what: &str) -> Result<(), String> {
        let mut moved = (self.fleet.progress(), 0, self.clock.now_ns());
        while !self.fleet.is_over() {
            self.step()?;
            let now_ns = self.clock.now_ns();
            let come = self.fleet.tally.streamed + self.fleet.tally.filled;
            if (moved.0, moved.1) != (self.fleet.progress(), come) {
                moved = (self.fleet.progress(), come, now_ns);
            } else if now_ns > moved.2 + PATIENCE_NS {
                let refused = &self.fleet.tally.refused;
                return Err(format!(
                    "{} of {} {what}, and nothing for 30 s; refused: {refused:?}",
                    moved.0,
                    self.fleet.goal()
                ));
            }
            if now_ns >= self.progress_ns + PROGRESS_NS {
                self.progress_ns = now_ns;
                eprintln!("{:6.1} s  {:8} of {} {what}", now_ns as f64 / 1e9, moved.0, self.fleet.goal());
            }
        }
        eprintln!(
            "{:6.1} s  {:8} of {} {what}",
            self.clock.now_ns() as f64 / 1e9,
            self.fleet.goal(),
            self.fleet.goal()
        );
        Ok(())
    }

    fn sample(&mut self, now_ns: u64, last: bool) {
        let since_ns = now_ns + SAMPLE_NS - self.sample_ns;
        let come = self.fleet.tally.streamed + self.fleet.tally.filled;
        let resident = self.target.probes.gateway.and_then(|probe| resident_bytes(probe.pid).ok());
        if self.curve.len() < SAMPLES_MAX || last {
            self.curve.push(Sample {
                s: now_ns as f64 / 1e9,
                caught_up: self.fleet.tally.through,
                entries_per_s: ((come - self.came_before) as f64 * 1e9 / since_ns.max(1) as f64).round(),
                gateway_rss_mb: resident.map(|bytes| megabytes(bytes as i64)),
            });
        }
        self.came_before = come;
        self.sample_ns = now_ns + SAMPLE_NS;
    }
}
