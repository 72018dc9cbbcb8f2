//! One run from the first connect to the report: log in, warm up, measure, drain, compare.

use super::{Direct, Load, MarkOptions, Watch, verify::verify};
use crate::cpu::{Meter, Probes};
use crate::frames::Encoder;
use crate::login::{self, login};
use crate::net::{Clock, Net, Stop, Url};
use crate::report::{Cost, Extra, Measures, Report, Window, percentile_ms};
use crate::schedule::Schedule;
use crate::tokens::Tokens;
use parley_protocol::wire::Encoding;
use std::sync::Arc;
use std::time::Duration;

const SECOND_NS: u64 = 1_000_000_000;
const MASK: [u8; 4] = [0x9d, 0x3a, 0xc4, 0x71];

/// What decides when messages go out.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Loop {
    /// Messages a second.
    Open { rate: u64 },
    /// Messages in flight per user.
    Closed { window: u32 },
}

/// A run.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) url: Url,
    pub(crate) users: u32,
    pub(crate) load: Loop,
    pub(crate) warmup_ns: u64,
    pub(crate) measured_ns: u64,
    /// How long acknowledged messages may still arrive.
    pub(crate) drain_ns: u64,
    pub(crate) payload_bytes: usize,
    pub(crate) marks: MarkOptions,
    pub(crate) encoding: Encoding,
    pub(crate) seed: u64,
    /// Names this run in ids.
    pub(crate) run: u64,
    pub(crate) connect_rate: u32,
    pub(crate) handshakes_max: u32,
    /// A turn takes so long at least: what arrives meanwhile is served at once.
    pub(crate) turn_ns: u64,
    pub(crate) verify_history: bool,
    pub(crate) driver: String,
    pub(crate) probes: Probes,
    pub(crate) stop: Stop,
    /// Who looks on from another thread, and may end the run before its time. It prints no progress then.
    pub(crate) watch: Option<Arc<Watch>>,
}

/// Runs it, and says what came out.
pub(crate) fn run(settings: &Settings, tokens: &Tokens) -> Result<Report, String> {
    let clock = settings.watch.as_ref().map_or_else(Clock::start, |watch| watch.clock);
    let mut net = Net::new(clock, settings.url.clone(), settings.encoding, settings.stop.clone())
        .map_err(|error| error.to_string())?;
    let encoder = Encoder::new(settings.encoding, settings.payload_bytes, MASK);
    let options = login::Options {
        users: settings.users,
        handshakes_max: settings.handshakes_max,
        rate: settings.connect_rate,
        run: settings.run,
        encoding: settings.encoding,
    };
    let users = login(&mut net, options, tokens, &encoder)?;
    eprintln!("login: {} users after {:.1} s", users.len(), clock.now_ns() as f64 / 1e9);

    let start_ns = clock.now_ns() + SECOND_NS / 10;
    let window_ns = start_ns + settings.warmup_ns;
    let end_ns = window_ns + settings.measured_ns;
    let load = match settings.load {
        Loop::Open { rate } => Load::Open(Schedule::new(start_ns, end_ns, rate, settings.users, settings.seed)),
        Loop::Closed { window } => Load::Closed { window },
    };
    let measures = Measures::new(Window { start_ns: window_ns, end_ns });
    let mut direct = Direct::new(&encoder, settings, clock, &users, load, measures)?;
    let cost = drive(&mut net, &mut direct, settings, end_ns)?;

    // What never arrived took at least until now: percentiles over survivors only would flatter an overloaded server.
    let now_ns = clock.now_ns();
    for sent_at_ns in direct.ledger.undelivered() {
        direct.measures.delivered(sent_at_ns, now_ns);
    }

    let history_missing = if settings.verify_history {
        eprintln!("history: reading {} messages back", direct.ledger.counts().acked);
        let chats: Vec<_> = direct.devices.iter().step_by(2).map(|device| device.chat).collect();
        Some(verify(&mut net, &encoder, settings.encoding, settings.run, &direct.ledger, &chats)?)
    } else {
        None
    };
    net.shut().map_err(|error| error.to_string())?;
    let extra = Extra {
        driver: settings.driver.clone(),
        connections: settings.users,
        disconnected: direct.disconnected,
        delivered_marks: direct.marks_sent,
        receipts: direct.receipts,
        history_missing,
    };
    if direct.foreign > 0 {
        eprintln!("{} frames belong to messages of other runs, and were left out", direct.foreign);
    }
    Ok(Report::new(&direct.measures, direct.ledger.counts(), direct.ledger.audit(), cost, extra))
}

/// The loop: send what is due, serve what is ready, wait for the earlier of both. Ends when all that was sent is
/// settled, or the drain time is over.
fn drive(net: &mut Net, direct: &mut Direct<'_>, settings: &Settings, mut end_ns: u64) -> Result<Cost, String> {
    let io = |error: std::io::Error| error.to_string();
    let mut meter = Meter::new(settings.probes, direct.measures.window);
    let mut progress = Progress::new(net.clock.now_ns());
    let mut stopped = false;
    loop {
        let now_ns = net.clock.now_ns();
        meter.tick(now_ns)?;
        match &settings.watch {
            Some(watch) if !stopped && watch.is_ended() => end_ns = now_ns.min(end_ns),
            Some(_) => {}
            None => progress.tick(now_ns, direct),
        }
        if now_ns >= end_ns && !stopped {
            // Messages whose time came just before the end, and was noticed after it, still go out.
            direct.tick(now_ns, &mut net.wires);
            direct.stop_sending();
            stopped = true;
        }
        if let Some(failure) = direct.failure.take() {
            return Err(failure);
        }
        if stopped && (direct.ledger.open() == 0 || now_ns >= end_ns + settings.drain_ns) {
            // A little longer, for duplicates, which would come late.
            linger(net, direct, now_ns + SECOND_NS / 5).map_err(io)?;
            return if settings.watch.is_some() { Ok(Cost::default()) } else { meter.finish() };
        }
        direct.tick(now_ns, &mut net.wires);
        let ready = net.turn(direct).map_err(io)?;
        let turned_ns = net.clock.now_ns();
        let until_next = direct.next_ns().min(meter.next_ns()).saturating_sub(turned_ns);
        let rest = (now_ns + settings.turn_ns).saturating_sub(turned_ns);
        if rest > 0 {
            std::thread::sleep(Duration::from_nanos(rest));
        } else if ready == 0 && until_next > 0 {
            net.wait(Duration::from_nanos(until_next.min(SECOND_NS / 10))).map_err(io)?;
        }
    }
}

fn linger(net: &mut Net, direct: &mut Direct<'_>, until_ns: u64) -> std::io::Result<()> {
    loop {
        let now_ns = net.clock.now_ns();
        if now_ns >= until_ns {
            return Ok(());
        }
        direct.tick(now_ns, &mut net.wires);
        if net.turn(direct)? == 0 {
            net.wait(Duration::from_nanos((until_ns - now_ns).min(SECOND_NS / 100)))?;
        }
    }
}

/// A line a second for those who wait.
struct Progress {
    began_ns: u64,
    next_ns: u64,
    last: crate::ledger::Counts,
}

impl Progress {
    fn new(now_ns: u64) -> Self {
        Self { began_ns: now_ns, next_ns: now_ns + SECOND_NS, last: crate::ledger::Counts::default() }
    }

    fn tick(&mut self, now_ns: u64, direct: &mut Direct<'_>) {
        if now_ns < self.next_ns {
            return;
        }
        let seconds = (now_ns + SECOND_NS - self.next_ns) as f64 / 1e9;
        self.next_ns = now_ns + SECOND_NS;
        let counts = direct.ledger.counts();
        let phase = match direct.measures.window {
            window if now_ns < window.start_ns => "warm-up",
            window if now_ns < window.end_ns => "measure",
            _ => "drain",
        };
        let rate = |now: u64, before: u64| ((now - before) as f64 / seconds).round();
        eprintln!(
            "{:5.1} s {phase:8} sent {:6}/s  acknowledged {:6}/s  delivered {:6}/s  p99 {:8.2} ms  open {:6}  \
             refused {}  disconnected {}",
            (now_ns - self.began_ns) as f64 / 1e9,
            rate(counts.sent, self.last.sent),
            rate(counts.acked, self.last.acked),
            rate(counts.delivered, self.last.delivered),
            percentile_ms(&direct.measures.recent, 99.0),
            direct.ledger.open(),
            counts.refused,
            direct.disconnected,
        );
        self.last = counts;
        direct.measures.recent.reset();
    }
}
