//! One run from the first connect to the report: log everybody in, hold them while messages flow, drain, report.

use super::Settings;
use super::fleet::{Fleet, Identity};
use super::logins::Logins;
use super::memory::{Curve, Kernel, Sample, megabytes, resident_bytes};
use super::plan::{Hearts, files_per_ring};
use super::report::{Findings, Memory, Report};
use super::talk::Talk;
use crate::cpu::{Meter, Probe};
use crate::frames::Encoder;
use crate::net::Clock;
use crate::report::{Measures, Window, percentile_ms};
use crate::rings::{Action, BufferOptions, Rings};
use crate::schedule::Schedule;
use crate::tokens::Tokens;
use parley_protocol::wire::Encoding;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECOND_NS: u64 = 1_000_000_000;
const MASK: [u8; 4] = [0x9d, 0x3a, 0xc4, 0x71];
/// A buffer holds each answer but a large page whole.
const BUFFERS: BufferOptions = BufferOptions { count: 256, bytes: 1024 };
/// Without any login for this long the run is given up.
const PATIENCE_NS: u64 = 60 * SECOND_NS;
/// Between the last login and the first message.
const SETTLE_NS: u64 = SECOND_NS / 2;
/// How often memory is looked at.
const SAMPLE_NS: u64 = SECOND_NS;
/// Between two lines of progress, while logging in and while holding.
const PROGRESS_LOGIN_NS: u64 = 2 * SECOND_NS;
const PROGRESS_HOLD_NS: u64 = 5 * SECOND_NS;

/// The generator: sessions, their sockets, and what is watched meanwhile.
struct Engine<'a> {
    settings: &'a Settings,
    clock: Clock,
    rings: Rings,
    fleet: Fleet<'a>,
    watch: Watch,
    actions: Vec<Action>,
}

/// Memory over time, and lines of progress.
struct Watch {
    gateway: Option<Probe>,
    writer: Option<Probe>,
    kernel_start: Kernel,
    curve: Curve,
    memory: Memory,
    last: Sample,
    sample_ns: u64,
    progress_ns: u64,
    logins_before: u64,
    delivered_before: u64,
    began_ns: u64,
}

/// Runs it, and says what came out.
pub(crate) fn run(settings: &Settings, tokens: &Tokens) -> Result<Report, String> {
    let clock = Clock::start();
    let mut watch = Watch::new(settings, clock.now_ns())?;
    let encoder = Encoder::new(Encoding::Rkyv, settings.payload_bytes, MASK);
    let now_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let files = files_per_ring(settings.connections, settings.ring_files);
    let rings = Rings::new(settings.connections, files, settings.url.address, BUFFERS)
        .map_err(|error| format!("cannot set up io_uring, which idle sessions live in: {error}"))?;
    let start_ns = clock.now_ns();
    watch.began_ns = start_ns;
    let identity = Identity { tokens: tokens.clone(), run: settings.run, now_unix_s };
    let logins = Logins::new(settings.connections, settings.logins_max, settings.login_rate, settings.run, start_ns);
    let hearts = Hearts::new(start_ns, settings.heartbeat_ns, settings.connections);
    // No time to measure yet.
    let never = Measures::new(Window { start_ns: u64::MAX - 1, end_ns: u64::MAX });
    let talk = Talk::new(&encoder, settings.run, settings.talkers, never);
    let fleet = Fleet::new(&encoder, identity, &settings.url, settings.connections, logins, hearts, talk);
    let mut engine = Engine { settings, clock, rings, fleet, watch, actions: Vec::new() };

    let cost_start = settings.probes.read()?;
    engine.log_in()?;
    let login_cost = settings.probes.read()?.since(&cost_start);
    let login_seconds = (clock.now_ns() - start_ns) as f64 / 1e9;
    eprintln!("all {} sessions are seated after {login_seconds:.1} s", settings.connections);

    let (hold_cost, sessions) = engine.hold()?;
    let Engine { rings, mut fleet, watch, .. } = engine;
    // The sessions end before the servers do, so that these need not say goodbye to them all.
    drop(rings);
    let now_ns = clock.now_ns();
    for sent_at_ns in fleet.talk.ledger.undelivered() {
        // What never arrived took at least until now.
        fleet.talk.measures.delivered(sent_at_ns, now_ns);
    }
    let Watch { mut memory, curve, last, .. } = watch;
    memory.curve = curve.finish(last);
    Ok(Report::new(Findings {
        connections: settings.connections,
        tally: &fleet.tally,
        sessions,
        logins_refused: fleet.logins.refused,
        login_seconds,
        login_cost,
        hold_seconds: settings.hold_ns as f64 / 1e9,
        hold_cost,
        measures: &fleet.talk.measures,
        counts: fleet.talk.ledger.counts(),
        audit: fleet.talk.ledger.audit(),
        delivered_marks: fleet.talk.marks_sent,
        memory,
        driver: settings.driver.clone(),
    }))
}

impl Engine<'_> {
    /// One turn: queue what is due, serve what came, rest until `until_ns` or something comes.
    fn step(&mut self, until_ns: u64) -> Result<(), String> {
        let io = |error: std::io::Error| error.to_string();
        if self.settings.stop.load(Ordering::Relaxed) {
            return Err("stopped by a signal".to_owned());
        }
        let begun_ns = self.clock.now_ns();
        self.fleet.tick(begun_ns, &mut self.actions);
        self.rings.run(&mut self.actions).map_err(io)?;
        let taken = self.rings.turn(&mut self.fleet, &self.clock).map_err(io)?;
        if let Some(failure) = self.fleet.failure.take() {
            return Err(failure);
        }
        let turned_ns = self.clock.now_ns();
        let rest_ns = (begun_ns + self.settings.turn_ns).saturating_sub(turned_ns);
        let until_ns = self.fleet.next_ns().min(until_ns).saturating_sub(turned_ns);
        if rest_ns > 0 && self.fleet.logins.is_done() {
            // What comes meanwhile is served at once, which is cheaper.
            std::thread::sleep(Duration::from_nanos(rest_ns));
        } else if taken == 0 && until_ns > 0 {
            self.rings.wait(Duration::from_nanos(until_ns.min(SECOND_NS / 1_000))).map_err(io)?;
        }
        Ok(())
    }

    fn log_in(&mut self) -> Result<(), String> {
        let (mut seated, mut moved_ns) = (0, self.clock.now_ns());
        loop {
            let now_ns = self.clock.now_ns();
            self.watch.tick(now_ns, PROGRESS_LOGIN_NS, &self.fleet, false)?;
            if self.fleet.logins.is_done() {
                return Ok(());
            }
            if self.fleet.tally.logins != seated {
                (seated, moved_ns) = (self.fleet.tally.logins, now_ns);
            } else if now_ns - moved_ns > PATIENCE_NS {
                let waiting = u64::from(self.settings.connections) - seated;
                return Err(format!("{waiting} sessions wait for their Welcome, and none came for 60 s"));
            }
            self.step(now_ns + SECOND_NS)?;
        }
    }

    /// Holds them; what that cost, and how many were left at its end.
    fn hold(&mut self) -> Result<(crate::report::Cost, u32), String> {
        let settings = self.settings;
        let start_ns = self.clock.now_ns() + SETTLE_NS;
        let end_ns = start_ns + settings.hold_ns;
        let window = Window { start_ns, end_ns };
        self.fleet.talk.measures = Measures::new(window);
        // How long a pong takes while everybody logs in says nothing about holding them.
        self.fleet.tally.heartbeat_us.reset();
        let rate = u64::from(settings.rate);
        let schedule = || Schedule::new(start_ns, end_ns, rate, settings.talkers, settings.seed);
        self.fleet.talk.set_schedule((rate > 0).then(schedule));
        let mut meter = Meter::new(settings.probes, window);
        let mut sessions = None;
        loop {
            let now_ns = self.clock.now_ns();
            meter.tick(now_ns)?;
            self.watch.tick(now_ns, PROGRESS_HOLD_NS, &self.fleet, sessions.is_none())?;
            if now_ns >= end_ns && sessions.is_none() {
                self.watch.end_of_hold(now_ns, &self.fleet)?;
                // Messages whose time came just before the end, and was noticed after it, still go out.
                self.step(now_ns)?;
                self.fleet.talk.set_schedule(None);
                sessions = Some(self.fleet.tally.sessions);
            }
            let settled = self.fleet.talk.ledger.open() == 0 && now_ns >= end_ns + SECOND_NS / 5;
            if let Some(sessions) = sessions
                && (settled || now_ns >= end_ns + settings.drain_ns)
            {
                return Ok((meter.finish()?, sessions));
            }
            self.step(meter.next_ns())?;
        }
    }
}

impl Watch {
    fn new(settings: &Settings, now_ns: u64) -> Result<Self, String> {
        let probes = settings.probes;
        let gateway_start = probes.gateway.map(|probe| resident_bytes(probe.pid)).transpose()?;
        Ok(Self {
            gateway: probes.gateway,
            writer: probes.writer,
            kernel_start: Kernel::now()?,
            curve: Curve::new(),
            memory: Memory { gateway_start, ..Memory::default() },
            last: Sample::default(),
            sample_ns: now_ns,
            progress_ns: now_ns,
            logins_before: 0,
            delivered_before: 0,
            began_ns: now_ns,
        })
    }

    fn tick(&mut self, now_ns: u64, progress_every_ns: u64, fleet: &Fleet<'_>, holds: bool) -> Result<(), String> {
        if now_ns >= self.sample_ns {
            self.sample_ns = now_ns + SAMPLE_NS;
            self.sample(now_ns, fleet, holds)?;
            self.curve.push(self.last);
        }
        if now_ns >= self.progress_ns + progress_every_ns {
            self.progress(now_ns, fleet);
        }
        Ok(())
    }

    fn sample(&mut self, now_ns: u64, fleet: &Fleet<'_>, holds: bool) -> Result<(), String> {
        let resident = |probe: Option<Probe>| probe.map(|probe| resident_bytes(probe.pid)).transpose();
        let (gateway, writer) = (resident(self.gateway)?, resident(self.writer)?);
        let kernel = Kernel::now()?.since(self.kernel_start);
        if holds {
            self.memory.gateway_most = self.memory.gateway_most.max(gateway);
            self.memory.writer_most = self.memory.writer_most.max(writer);
            let own = resident_bytes(std::process::id())?;
            self.memory.generator_most = self.memory.generator_most.max(own);
            self.memory.kernel = kernel;
        }
        self.last = Sample {
            s: ((now_ns - self.began_ns) as f64 / 1e8).round() / 10.0,
            sessions: fleet.tally.sessions,
            gateway_rss_mb: gateway.map(|bytes| megabytes(bytes as i64)),
            writer_rss_mb: writer.map(|bytes| megabytes(bytes as i64)),
            kernel_mb: megabytes(kernel.total()),
        };
        Ok(())
    }

    fn end_of_hold(&mut self, now_ns: u64, fleet: &Fleet<'_>) -> Result<(), String> {
        self.sample(now_ns, fleet, true)
    }

    fn progress(&mut self, now_ns: u64, fleet: &Fleet<'_>) {
        let seconds = (now_ns - self.progress_ns) as f64 / 1e9;
        self.progress_ns = now_ns;
        let rate = |now: u64, before: u64| ((now - before) as f64 / seconds).round();
        let (tally, counts) = (&fleet.tally, fleet.talk.ledger.counts());
        eprintln!(
            "{:6.1} s  sessions {:8}  logins {:6}/s  messages {:6}/s  RSS of the gateway {:7.1} MB, the writer {:7.1}  \
             kernel {:8.1} MB  heartbeat p99 {:7.2} ms  ended {}  refused {}",
            (now_ns - self.began_ns) as f64 / 1e9,
            tally.sessions,
            rate(tally.logins, self.logins_before),
            rate(counts.delivered, self.delivered_before),
            self.last.gateway_rss_mb.unwrap_or_default(),
            self.last.writer_rss_mb.unwrap_or_default(),
            self.last.kernel_mb,
            percentile_ms(&tally.heartbeat_us, 99.0),
            tally.disconnected(),
            fleet.logins.refused,
        );
        self.logins_before = tally.logins;
        self.delivered_before = counts.delivered;
    }
}
