//! The scenario `churn`: devices connect, are let in and leave, at a rate or as fast as they can: TCP, upgrade, `Hello`
//! with a resume ticket or a fresh token, `Welcome`, and the end of the connection. What counts is how many a second of
//! the gateway's CPU, beside accept, two reads, two writes and close on a raw socket.

mod client;
mod report;
#[cfg(test)]
mod tests;
mod verify;

use crate::baseline_handshake::{self, Steps};
use crate::cpu::Probes;
use crate::device::Identity;
use crate::frames::Encoder;
use crate::net::{Clock, Stop, Url};
use crate::rings::{BufferOptions, Rings};
use crate::spawn::Server;
use crate::stop_on_signals;
use crate::target::{Target, TargetArgs};
use clap::Args;
use client::{ChurnClient, Devices, Pace, Way};
use parley_protocol::wire::Encoding;
use report::{Baseline, Count, Counted};
pub(crate) use report::{Report, Round};
use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Shown with --help.
pub(crate) const EXAMPLES: &str = "\
Examples:
  Resumes as fast as they go, in turns with accept, two reads, two writes and close on a raw socket
    cargo run --release -p perf -- churn --spawn --shards 1 --baseline
  Fresh tokens, in turns with resumes, beside the cost of one EdDSA verification
    cargo run --release -p perf -- churn --spawn --shards 1 --fresh --baseline
  1,000 connects a second: their latency on a gateway that is not full
    cargo run --release -p perf -- churn --spawn --rate 1000 --seconds 10 --rounds 1
  With a page of plots
    cargo run --release -p perf -- churn --spawn --baseline --html churn.html

The last line on stdout is one JSON object; the exit code is 0 when nobody was refused. docs/PERFORMANCE.md explains
every field.";

const SECOND_NS: u64 = 1_000_000_000;
const MASK: [u8; 4] = [0x9d, 0x3a, 0xc4, 0x71];
/// Without anybody let in for this long the run is given up.
const PATIENCE_NS: u64 = 30 * SECOND_NS;
/// Sockets of one ring of the generator.
const RING_FILES: u32 = 10_000;
/// An answer fits whole.
const BUFFERS: BufferOptions = BufferOptions { count: 512, bytes: 1024 };

#[derive(Args)]
pub(crate) struct ChurnArgs {
    /// With the ticket of the Welcome before. The default.
    #[arg(long, conflicts_with = "fresh")]
    resume: bool,
    /// With an EdDSA token that was never seen before, each time.
    #[arg(long)]
    fresh: bool,
    /// Measures in turns with it: of resumes a raw server, of fresh tokens resumes and an EdDSA verification.
    #[arg(long)]
    baseline: bool,
    /// Connects a second [default: as many as the window allows].
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Connections at a time, from their connect to the end of their socket.
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=900))]
    window: u32,
    /// Users with one device each, who take turns.
    #[arg(long, default_value_t = 2_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    devices: u32,
    /// Rounds, each with the gateway and its baseline.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Length of what is measured of each in a round.
    #[arg(long, default_value_t = 3.0, value_name = "S")]
    seconds: f64,
    /// Load before that, left out.
    #[arg(long, default_value_t = 0.5, value_name = "S")]
    warmup_seconds: f64,
    #[command(flatten)]
    target: TargetArgs,
}

/// `perf baseline-churn`: the raw server, which `churn --baseline` starts.
#[derive(Args)]
pub(crate) struct BaselineArgs {
    /// Where clients connect.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Bytes of the first question, its answer, the second question, its answer.
    #[arg(long, value_delimiter = ',', default_values_t = [200, 160, 250, 250])]
    bytes: Vec<u16>,
}

impl BaselineArgs {
    pub(crate) fn run(&self) -> Result<(), String> {
        let said = |error: std::io::Error| format!("{}: {error}", self.listen);
        let bytes: Vec<usize> = self.bytes.iter().map(|bytes| usize::from(*bytes)).collect();
        let [first, accepted, second, welcomed] = bytes[..] else { return Err("--bytes: four numbers".to_owned()) };
        let listener = TcpListener::bind(self.listen).map_err(said)?;
        println!("ready {}", listener.local_addr().map_err(said)?);
        let steps = Steps { asks: [first, second], answers: [accepted, welcomed] };
        baseline_handshake::serve(&listener, steps).map_err(said)
    }
}

/// For how long, how many at a time.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) pace: Pace,
    pub(crate) warmup_ns: u64,
    pub(crate) measured_ns: u64,
    pub(crate) stop: Stop,
}

impl ChurnArgs {
    fn load(&self, stop: Stop) -> Result<Load, String> {
        let in_range = |seconds: f64| seconds > 0.0 && seconds <= 3_600.0;
        if !in_range(self.seconds) || !in_range(self.warmup_seconds) {
            return Err("--seconds and --warmup-seconds: above 0, an hour at most".to_owned());
        }
        if self.devices < self.window {
            return Err("--devices: at least as many as --window".to_owned());
        }
        Ok(Load {
            pace: Pace { devices: self.devices, window: self.window, rate: self.rate },
            warmup_ns: (self.warmup_seconds * SECOND_NS as f64) as u64,
            measured_ns: (self.seconds * SECOND_NS as f64) as u64,
            stop,
        })
    }

    pub(crate) fn run(&self) -> Result<Report, String> {
        let load = self.load(stop_on_signals()?)?;
        let mut run = [0; 8];
        getrandom::fill(&mut run).map_err(|error| format!("no randomness: {error}"))?;
        let target = self.target.open(&[])?;
        let now_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let identity = Identity { tokens: target.tokens.clone(), run: u64::from_le_bytes(run), now_unix_s };
        let mut devices = Devices::new(identity.clone(), self.devices);
        eprintln!("login: {} devices get their first tickets", self.devices);
        let steps = log_in(&mut devices, &load, &target.url)?;
        let raw = (self.baseline && !self.fresh).then(|| Raw::start(steps)).transpose()?;
        let way = if self.fresh { Way::Fresh } else { Way::Resume };
        let mut counted = Vec::new();
        for number in 0..self.rounds {
            let side = |devices: &mut Devices, way| measure(devices, &load, &target.url, way, target.probes);
            let baseline = |devices: &mut Devices| -> Result<Option<Baseline>, String> {
                if let Some(raw) = &raw {
                    let count = measure(devices, &load, &raw.url, Way::Raw(steps), raw.probes)?;
                    return Ok(Some(Baseline::Raw(count)));
                }
                if !self.baseline {
                    return Ok(None);
                }
                let count = side(devices, Way::Resume)?;
                let verify = self.verify(&identity, &target)?;
                Ok(Some(Baseline::Resume { count, verify }))
            };
            // Whatever changes on the machine while both are measured befalls each of them first as often.
            let (server, baseline) = if number % 2 == 0 {
                let server = side(&mut devices, way)?;
                (server, baseline(&mut devices)?)
            } else {
                let baseline = baseline(&mut devices)?;
                (side(&mut devices, way)?, baseline)
            };
            let round = Counted { server, baseline };
            eprintln!("round {:2}: {}", number + 1, Round::new(&round));
            counted.push(round);
        }
        Ok(Report::new(&counted, load.pace, target.driver, self.seconds))
    }

    fn verify(&self, identity: &Identity, target: &Target) -> Result<verify::Cost, String> {
        let spawned = target.servers.as_ref().map(|servers| servers.data.as_path());
        let data = spawned.or(self.target.data.as_deref()).unwrap_or(Path::new("data"));
        verify::cost(&identity.tokens, &identity.token(0, 0), data, identity.now_unix_s)
    }
}

/// The raw server, as a process of its own.
struct Raw {
    url: Url,
    probes: Probes,
    _server: Server,
    _directory: tempfile::TempDir,
}

impl Raw {
    fn start(steps: Steps) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let Steps { asks, answers } = steps;
        let bytes = format!("{},{},{},{}", asks[0], answers[0], asks[1], answers[1]);
        let args: [OsString; 3] = ["baseline-churn".into(), "--bytes".into(), bytes.into()];
        let (server, said) = Server::start(&program, "baseline", &args, &[], directory.path())?;
        let address = said.last().and_then(|line| line.strip_prefix("ready ")).ok_or("the raw server named no address");
        let url = Url::parse(&format!("ws://{}", address?))?;
        let probes = Probes { gateway: Some(server.probe()), writer: None, cluster: None };
        Ok(Self { url, probes, _server: server, _directory: directory })
    }
}

/// Everybody comes once, with a token; the bytes of the way in.
fn log_in(devices: &mut Devices, load: &Load, url: &Url) -> Result<Steps, String> {
    let encoder = Encoder::new(Encoding::Rkyv, 0, MASK);
    let mut turns = Turns::new(load, url)?;
    let now_ns = turns.clock.now_ns();
    let pace = Pace { rate: None, ..load.pace };
    let mut client = ChurnClient::new(devices, &encoder, url, Way::Fresh, pace, true, now_ns);
    while !client.is_over() {
        turns.turn(&mut client)?;
    }
    Ok(client.steps)
}

/// One server under load for a while.
pub(crate) fn measure(
    devices: &mut Devices,
    load: &Load,
    url: &Url,
    way: Way,
    probes: Probes,
) -> Result<Count, String> {
    let encoder = Encoder::new(Encoding::Rkyv, 0, MASK);
    let mut turns = Turns::new(load, url)?;
    let clock = turns.clock;
    let mut client = ChurnClient::new(devices, &encoder, url, way, load.pace, false, clock.now_ns());
    let start_ns = clock.now_ns() + load.warmup_ns;
    while clock.now_ns() < start_ns {
        turns.turn(&mut client)?;
    }
    let (begun_ns, begun) = (clock.now_ns(), probes.read()?);
    client.begin();
    while clock.now_ns() < begun_ns + load.measured_ns {
        turns.turn(&mut client)?;
    }
    Ok(Count {
        way,
        done: client.done,
        elapsed_ns: clock.now_ns() - begun_ns,
        cost: probes.read()?.since(&begun),
        latency_us: client.latency_us,
        refused: client.refused,
        steps: client.steps,
    })
}

/// The sockets of one measurement.
struct Turns<'a> {
    load: &'a Load,
    clock: Clock,
    rings: Rings,
    actions: Vec<crate::rings::Action>,
    let_in: u64,
    moved_ns: u64,
}

impl<'a> Turns<'a> {
    fn new(load: &'a Load, url: &Url) -> Result<Self, String> {
        let rings = Rings::new(load.pace.devices, RING_FILES, url.address, BUFFERS)
            .map_err(|error| format!("cannot set up io_uring: {error}"))?;
        Ok(Self { load, clock: Clock::start(), rings, actions: Vec::new(), let_in: 0, moved_ns: 0 })
    }

    fn turn(&mut self, client: &mut ChurnClient<'_>) -> Result<(), String> {
        let io = |error: std::io::Error| error.to_string();
        if self.load.stop.load(Ordering::Relaxed) {
            return Err("stopped by a signal".to_owned());
        }
        let now_ns = self.clock.now_ns();
        client.tick(now_ns, &mut self.actions);
        self.rings.run(&mut self.actions).map_err(io)?;
        if self.rings.turn(client, &self.clock).map_err(io)? == 0 {
            let until_ns = client.next_ns().saturating_sub(now_ns).clamp(SECOND_NS / 20_000, SECOND_NS / 1_000);
            self.rings.wait(Duration::from_nanos(until_ns)).map_err(io)?;
        }
        if client.done != self.let_in || self.load.pace.rate.is_some_and(|rate| rate < 2) {
            (self.let_in, self.moved_ns) = (client.done, now_ns);
        } else if now_ns > self.moved_ns + PATIENCE_NS {
            return Err(format!("nobody was let in for 30 s; refused: {:?}", client.refused));
        }
        client.failure.take().map_or(Ok(()), Err)
    }
}
