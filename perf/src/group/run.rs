//! One run from the first connect to the report: log in, make the chat, subscribe, and then rounds, each of the servers
//! and of the raw baseline in turns.

use super::Settings;
use super::crowd::Crowd;
use super::measured::Measured;
use super::pace::{Load, Pace};
use super::raw::RawCrowd;
use super::report::{Findings, Report, Round, Side};
use crate::baseline_fanout::Shape;
use crate::cpu::{Meter, Probe, Probes};
use crate::frames::Encoder;
use crate::idle::fleet::Identity;
use crate::idle::logins::Logins;
use crate::idle::plan::{Hearts, Sources};
use crate::ledger::Counts;
use crate::net::Clock;
use crate::report::{Cost, Window, percentile_ms};
use crate::rings::{Action, BufferOptions, Rings};
use crate::spawn::Server;
use crate::tokens::Tokens;
use parley_protocol::wire::{Encoding, encode_server_frame};
use parley_protocol::{ChatId, ClientMsgId, Event, MessageId, ServerFrame, UserId};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECOND_NS: u64 = 1_000_000_000;
const MASK: [u8; 4] = [0x9d, 0x3a, 0xc4, 0x71];
/// Many small frames in one, and few of them in all: the memory of a receive is still in the cache when it is read.
const BUFFERS: BufferOptions = BufferOptions { count: 512, bytes: 8192 };
/// Below the server's heartbeat interval of 25 s.
const HEARTBEAT_NS: u64 = 20 * SECOND_NS;
/// Without any progress before the first round for this long the run is given up.
const PATIENCE_NS: u64 = 60 * SECOND_NS;
/// Between what came before and the first message of a round.
const SETTLE_NS: u64 = SECOND_NS / 4;
/// After a drain, for duplicates, which would come late.
const LINGER_NS: u64 = SECOND_NS / 5;
/// While the raw server is measured, the members' sockets are looked at this often.
const ASIDE_NS: u64 = SECOND_NS / 20;

/// Runs it, and says what came out.
pub(crate) fn run(settings: &Settings, tokens: &Tokens) -> Result<Report, String> {
    let clock = Clock::start();
    let encoder = Encoder::new(Encoding::Rkyv, settings.payload_bytes, MASK);
    let shape = shape(settings, &encoder);
    let mut raw = settings.baseline.as_ref().map(|_| Raw::start(settings, clock, shape)).transpose()?;
    let mut engine = Engine::new(settings, clock, tokens, &encoder)?;
    let began_ns = clock.now_ns();
    engine.gather()?;
    let gather_seconds = (clock.now_ns() - began_ns) as f64 / 1e9;
    eprintln!("{} members look at the chat after {gather_seconds:.1} s", settings.members);
    let mut rounds = Vec::new();
    for number in 0..settings.rounds {
        // Whatever changes on the machine while both are measured befalls each of them first as often.
        let round = if number % 2 == 0 {
            let server = engine.round(number)?;
            Round { server, baseline: raw.as_mut().map(|raw| raw.round(number, &mut engine)).transpose()? }
        } else {
            let baseline = raw.as_mut().map(|raw| raw.round(number, &mut engine)).transpose()?;
            Round { server: engine.round(number)?, baseline }
        };
        eprintln!("round {:2}: {round}", number + 1);
        rounds.push(round);
    }
    let Engine { rings, crowd, .. } = engine;
    // The sessions end before the servers do, so that these need not say goodbye to them all.
    drop(rings);
    if crowd.foreign > 0 {
        eprintln!("{} events are of the chat's beginning or of others, and were left out", crowd.foreign);
    }
    Ok(Report::new(Findings {
        settings,
        frame_bytes: shape.frame_bytes,
        gather_seconds,
        rounds: &rounds,
        counts: Counts {
            out_of_order: crowd.ledger.counts.out_of_order + crowd.ledger.overtaken(),
            ..crowd.ledger.counts
        },
        audit: crowd.ledger.audit(),
        gaps: crowd.ledger.gaps,
        history_pages: crowd.pages(),
        altered: crowd.altered,
        disconnected: crowd.disconnected(),
    }))
}

/// The sizes of what goes in and out on the wire.
fn shape(settings: &Settings, encoder: &Encoder) -> Shape {
    let (chat_id, client_msg_id) = (ChatId::group(1), ClientMsgId(1));
    let mut trigger = Vec::new();
    encoder.send(chat_id, client_msg_id, &mut trigger);
    let event = Event {
        chat_id,
        seq: 1,
        ordinal: 1,
        message_id: MessageId(1),
        sender: UserId(1),
        sender_sent: 1,
        client_msg_id,
        envelope: encoder.envelope(),
    };
    let mut payload = Vec::new();
    encode_server_frame(Encoding::Rkyv, &ServerFrame::Event(event), &mut payload);
    let head = match payload.len() {
        ..126 => 2,
        126..=0xffff => 4,
        _ => 10,
    };
    Shape { connections: settings.members, trigger_bytes: trigger.len(), frame_bytes: payload.len() + head }
}

fn io(error: std::io::Error) -> String {
    error.to_string()
}

fn check_stop(settings: &Settings) -> Result<(), String> {
    if settings.stop.load(Ordering::Relaxed) { Err("stopped by a signal".to_owned()) } else { Ok(()) }
}

/// Ends a turn: rests as long as one takes at least, or waits until something comes or `until_ns`.
fn rest(rings: &Rings, clock: Clock, begun_ns: u64, taken: usize, turn_ns: u64, until_ns: u64) -> Result<(), String> {
    let now_ns = clock.now_ns();
    let rest_ns = (begun_ns + turn_ns).saturating_sub(now_ns);
    let until_ns = until_ns.saturating_sub(now_ns);
    if rest_ns > 0 {
        // What comes meanwhile is served at once, which is cheaper.
        std::thread::sleep(Duration::from_nanos(rest_ns));
    } else if taken == 0 && until_ns > 0 {
        rings.wait(Duration::from_nanos(until_ns.min(SECOND_NS / 100))).map_err(io)?;
    }
    Ok(())
}

/// The times of a round: the warm-up's start, and the window.
fn times(settings: &Settings, now_ns: u64) -> (u64, Window) {
    let start_ns = now_ns + SETTLE_NS;
    let window_ns = start_ns + settings.warmup_ns;
    (start_ns, Window { start_ns: window_ns, end_ns: window_ns + settings.measured_ns })
}

fn pace(settings: &Settings, start_ns: u64, window: Window, number: u32) -> Pace {
    let seed = settings.seed.wrapping_add(u64::from(number));
    Pace::new(settings.load, start_ns, window.end_ns, settings.senders, seed)
}

/// The members, their sockets, and what is watched meanwhile.
struct Engine<'a> {
    settings: &'a Settings,
    clock: Clock,
    rings: Rings,
    crowd: Crowd<'a>,
    actions: Vec<Action>,
}

impl<'a> Engine<'a> {
    fn new(settings: &'a Settings, clock: Clock, tokens: &Tokens, encoder: &'a Encoder) -> Result<Self, String> {
        let rings = Rings::new(settings.members, settings.members, settings.url.address, BUFFERS)
            .map_err(|error| format!("cannot set up io_uring, which the members' sockets live in: {error}"))?;
        let now_ns = clock.now_ns();
        let now_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let identity = Identity { tokens: tokens.clone(), run: settings.run, now_unix_s };
        let logins = Logins::new(settings.members, settings.logins_max, settings.login_rate, settings.run, now_ns);
        let hearts = Hearts::new(now_ns, HEARTBEAT_NS, settings.members);
        let crowd = Crowd::new(encoder, identity, &settings.url, settings.members, logins, hearts);
        Ok(Self { settings, clock, rings, crowd, actions: Vec::new() })
    }

    /// Queues what is due and serves what came; how much that was.
    fn turn(&mut self) -> Result<usize, String> {
        check_stop(self.settings)?;
        self.crowd.tick(self.clock.now_ns(), &mut self.actions);
        self.rings.run(&mut self.actions).map_err(io)?;
        let taken = self.rings.turn(&mut self.crowd, &self.clock).map_err(io)?;
        self.crowd.failure.take().map_or(Ok(taken), Err)
    }

    fn step(&mut self, until_ns: u64, turn_ns: u64) -> Result<(), String> {
        let begun_ns = self.clock.now_ns();
        let taken = self.turn()?;
        rest(&self.rings, self.clock, begun_ns, taken, turn_ns, self.crowd.next_ns().min(until_ns))
    }

    /// Until all members look at the chat.
    fn gather(&mut self) -> Result<(), String> {
        let (mut done, mut moved_ns) = (0, self.clock.now_ns());
        let mut told_ns = moved_ns;
        while !self.crowd.is_ready() {
            let now_ns = self.clock.now_ns();
            self.step(now_ns + SECOND_NS / 1_000, 0)?;
            let (what, now_done) = self.crowd.progress();
            if now_done != done {
                (done, moved_ns) = (now_done, now_ns);
            } else if now_ns > moved_ns + PATIENCE_NS {
                return Err(format!("{what}, and none more for 60 s"));
            }
            if now_ns > told_ns + SECOND_NS {
                told_ns = now_ns;
                eprintln!("{what}");
            }
        }
        Ok(())
    }

    fn round(&mut self, number: u32) -> Result<Side, String> {
        let settings = self.settings;
        let (start_ns, window) = times(settings, self.clock.now_ns());
        self.crowd.measured = Measured::new(window, settings.members);
        let mut meter = Meter::new(settings.probes, window);
        let mut progress = Progress::new(start_ns, self.crowd.ledger.counts);
        let mut sending = false;
        let mut settled_ns = None;
        loop {
            let now_ns = self.clock.now_ns();
            if !sending && (start_ns..window.end_ns).contains(&now_ns) {
                sending = true;
                self.crowd.pace = Some(pace(settings, start_ns, window, number));
            }
            meter.tick(now_ns)?;
            progress.tick(now_ns, &mut self.crowd);
            self.step(meter.next_ns(), settings.turn_ns)?;
            if now_ns < window.end_ns {
                continue;
            }
            // What came due just before the end, and was noticed after it, went out with the step above.
            self.crowd.pace = None;
            let settled = self.crowd.ledger.open() == 0 || now_ns >= window.end_ns + settings.drain_ns;
            match settled_ns {
                None if settled => settled_ns = Some(now_ns),
                Some(settled_ns) if now_ns > settled_ns + LINGER_NS => break,
                _ => {}
            }
        }
        let now_ns = self.clock.now_ns();
        for sent_at_ns in self.crowd.ledger.unreached() {
            self.crowd.measured.never_reached(sent_at_ns, now_ns);
        }
        let measured = std::mem::replace(&mut self.crowd.measured, Measured::never(settings.members));
        Ok(Side::new(measured, meter.finish()?))
    }
}

/// The raw server as a process of its own, and the connections to it.
struct Raw<'a> {
    settings: &'a Settings,
    clock: Clock,
    server: Server,
    rings: Rings,
    crowd: RawCrowd,
    actions: Vec<Action>,
    _directory: tempfile::TempDir,
}

impl<'a> Raw<'a> {
    fn start(settings: &'a Settings, clock: Clock, shape: Shape) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(io)?;
        let program = settings.baseline.as_ref().expect("started where there is one");
        let flags = [("--connections", shape.connections as usize), ("--trigger-bytes", shape.trigger_bytes)];
        let mut args = vec!["baseline-fanout".into(), "--frame-bytes".into(), shape.frame_bytes.to_string().into()];
        args.extend(flags.iter().flat_map(|(flag, value)| [(*flag).into(), value.to_string().into()]));
        let (server, said) = Server::start(program, "baseline", &args, &[], directory.path())?;
        let address = said.last().and_then(|line| line.strip_prefix("ready ")?.parse::<SocketAddr>().ok());
        let address = address.ok_or("the raw server named no address")?;
        let rings = Rings::new(shape.connections, shape.connections, address, BUFFERS).map_err(io)?;
        let crowd = RawCrowd::new(shape);
        let mut raw = Self { settings, clock, server, rings, crowd, actions: Vec::new(), _directory: directory };
        let sources = Sources::new(address, settings.run);
        for conn in 0..shape.connections {
            raw.actions.push(Action::Open { conn, source: sources.of(conn) });
            // Fewer at a time than the listener's queue holds.
            if conn % 64 == 63 {
                raw.open(conn + 1)?;
            }
        }
        raw.open(shape.connections)?;
        Ok(raw)
    }

    fn open(&mut self, connections: u32) -> Result<(), String> {
        let patience_ns = self.clock.now_ns() + PATIENCE_NS;
        while self.crowd.open < connections {
            self.step(self.clock.now_ns() + SECOND_NS / 1_000)?;
            if self.clock.now_ns() > patience_ns {
                return Err(format!("{} of {connections} raw connections were made in 60 s", self.crowd.open));
            }
        }
        Ok(())
    }

    fn step(&mut self, until_ns: u64) -> Result<(), String> {
        check_stop(self.settings)?;
        let begun_ns = self.clock.now_ns();
        self.crowd.tick(begun_ns, &mut self.actions);
        self.rings.run(&mut self.actions).map_err(io)?;
        let taken = self.rings.turn(&mut self.crowd, &self.clock).map_err(io)?;
        if let Some(failure) = self.crowd.failure.take() {
            return Err(failure);
        }
        let next_ns = self.crowd.pace.as_ref().and_then(Pace::next_ns).unwrap_or(u64::MAX).min(until_ns);
        rest(&self.rings, self.clock, begun_ns, taken, self.settings.turn_ns, next_ns)
    }

    fn round(&mut self, number: u32, engine: &mut Engine<'_>) -> Result<Side, String> {
        let settings = self.settings;
        let (start_ns, window) = times(settings, self.clock.now_ns());
        self.crowd.measured = Measured::new(window, settings.members);
        let probe: Probe = self.server.probe();
        let mut meter = Meter::new(Probes { gateway: Some(probe), writer: None, cluster: None }, window);
        let mut aside_ns = start_ns;
        let mut sending = false;
        loop {
            let now_ns = self.clock.now_ns();
            if !sending && (start_ns..window.end_ns).contains(&now_ns) {
                sending = true;
                self.crowd.pace = Some(pace(settings, start_ns, window, number));
            }
            meter.tick(now_ns)?;
            if now_ns > aside_ns + ASIDE_NS {
                aside_ns = now_ns;
                engine.turn()?;
            }
            self.step(meter.next_ns())?;
            if now_ns >= window.end_ns {
                self.crowd.pace = None;
                if self.crowd.under_way() == 0 {
                    break;
                }
                if now_ns > window.end_ns + settings.drain_ns {
                    return Err("the raw server did not deliver".to_owned());
                }
            }
        }
        let measured = std::mem::replace(&mut self.crowd.measured, Measured::never(settings.members));
        Ok(Side::new(measured, meter.finish()?))
    }
}

/// A line a second for those who wait.
struct Progress {
    began_ns: u64,
    next_ns: u64,
    last: Counts,
}

impl Progress {
    fn new(now_ns: u64, last: Counts) -> Self {
        Self { began_ns: now_ns, next_ns: now_ns + SECOND_NS, last }
    }

    fn tick(&mut self, now_ns: u64, crowd: &mut Crowd<'_>) {
        if now_ns < self.next_ns {
            return;
        }
        let seconds = (now_ns + SECOND_NS - self.next_ns) as f64 / 1e9;
        self.next_ns = now_ns + SECOND_NS;
        let counts = crowd.ledger.counts;
        let phase = match crowd.measured.window {
            window if now_ns < window.start_ns => "warm-up",
            window if now_ns < window.end_ns => "measure",
            _ => "drain",
        };
        let rate = |now: u64, before: u64| ((now - before) as f64 / seconds).round();
        eprintln!(
            "{:5.1} s {phase:8} sent {:6}/s  acknowledged {:6}/s  delivered {:8}/s  p99 to the last {:8.2} ms  \
             open {:5}  gaps {}  refused {}  disconnected {}",
            (now_ns - self.began_ns) as f64 / 1e9,
            rate(counts.sent, self.last.sent),
            rate(counts.acked, self.last.acked),
            rate(counts.delivered, self.last.delivered),
            percentile_ms(&crowd.measured.recent, 99.0),
            crowd.ledger.open(),
            crowd.ledger.gaps.events,
            counts.refused,
            crowd.disconnected(),
        );
        self.last = counts;
        crowd.measured.recent.reset();
    }
}

/// What a load is called in the report.
pub(super) fn load_of(settings: &Settings) -> (Option<u32>, Option<u64>) {
    match settings.load {
        Load::Closed { window } => (Some(window), None),
        Load::Open { rate } => (None, Some(rate)),
    }
}

/// What a window cost, as it is divided.
pub(super) fn server_us(cost: &Cost) -> Option<u64> {
    Some(cost.gateway_us? + cost.writer_us?)
}
