//! The scenario `echo`: the gateway's data plane with an echo for a brain, on one shard, beside a raw TCP echo on one
//! thread, in turns. What counts is echoes per second of the server's CPU.

mod client;
mod report;
#[cfg(test)]
mod tests;

use crate::cpu::Probe;
use crate::net::{Clock, Stop, Url};
use crate::rings::{BufferOptions, Rings};
use crate::spawn::{self, Server};
use crate::{DriverArg, stop_on_signals};
use clap::Args;
use client::EchoClient;
pub(crate) use report::{Report, Round, Side, median, thousandths};
use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Shown with --help.
pub(crate) const EXAMPLES: &str = "\
Examples:
  Beside the raw echo, in turns: the ratio of echoes per second of CPU
    cargo run --release -p perf -- echo --driver uring --connections 100 --payload 512 --baseline
  Large messages on the epoll driver
    cargo run --release -p perf -- echo --driver epoll --connections 500 --payload 16384 --baseline

docs/PERFORMANCE.md explains every field.";

const SECOND_NS: u64 = 1_000_000_000;
/// All sockets are connected, and upgraded, within this.
const CONNECT_PATIENCE_NS: u64 = 30 * SECOND_NS;
/// Sockets of one ring of the generator.
const RING_FILES: u32 = 10_000;
/// Receive buffers of the generator.
const BUFFERS: u16 = 512;

#[derive(Args)]
pub(crate) struct EchoArgs {
    /// Driver of the server.
    #[arg(long, value_enum, default_value = "auto")]
    driver: DriverArg,
    /// Connections, each with one message on its way.
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Bytes of a message.
    #[arg(long, default_value_t = 512, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    payload: u32,
    /// Measures a raw TCP echo in turns with it.
    #[arg(long)]
    baseline: bool,
    /// Rounds, each with both servers.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Length of what is measured of each server in a round.
    #[arg(long, default_value_t = 3.0, value_name = "S")]
    seconds: f64,
    /// Load before that, left out.
    #[arg(long, default_value_t = 0.5, value_name = "S")]
    warmup_seconds: f64,
    /// Starts this program instead of building one.
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

/// `perf baseline-echo`: the raw server, which `echo --baseline` starts.
#[derive(Args)]
pub(crate) struct BaselineArgs {
    /// Where clients connect.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

impl BaselineArgs {
    pub(crate) fn run(&self) -> Result<(), String> {
        let said = |error: std::io::Error| format!("{}: {error}", self.listen);
        let listener = TcpListener::bind(self.listen).map_err(said)?;
        println!("ready {}", listener.local_addr().map_err(said)?);
        crate::baseline::serve(&listener).map_err(said)
    }
}

/// What is echoed how, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) connections: u32,
    pub(crate) payload_bytes: usize,
    pub(crate) warmup_ns: u64,
    pub(crate) measured_ns: u64,
}

impl EchoArgs {
    pub(crate) fn run(&self) -> Result<Report, String> {
        let in_range = |seconds: f64| seconds > 0.0 && seconds <= 3_600.0;
        if !in_range(self.seconds) || !in_range(self.warmup_seconds) {
            return Err("--seconds and --warmup-seconds: above 0, an hour at most".to_owned());
        }
        let stop = stop_on_signals()?;
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let program = self.program.clone().map_or_else(spawn::build, Ok)?;
        let driver = self.driver.name();
        let args = ["echo", "--listen", "127.0.0.1:0", "--shards", "1", "--driver", &driver];
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let (server, said) = Server::start(&program, "echo", &args, &[], directory.path())?;
        let url = Url::parse(&spawn::find_url(&said).ok_or("the echo server named no address")?)?;
        let driver = spawn::find_driver(&said).map_or(driver.clone(), str::to_owned);
        let baseline = self.baseline.then(|| Baseline::start(directory.path())).transpose()?;
        let load = Load {
            connections: self.connections,
            payload_bytes: self.payload as usize,
            warmup_ns: (self.warmup_seconds * SECOND_NS as f64) as u64,
            measured_ns: (self.seconds * SECOND_NS as f64) as u64,
        };
        let mut rounds = Vec::new();
        for number in 0..self.rounds {
            // Whatever changes on the machine while both are measured befalls each of them first as often.
            let raw = |it: &Baseline| measure(load, it.address, None, it.server.probe(), &stop);
            let (server_side, baseline_side) = if number % 2 == 0 {
                let side = measure(load, url.address, Some(&url), server.probe(), &stop)?;
                (side, baseline.as_ref().map(raw).transpose()?)
            } else {
                let raw = baseline.as_ref().map(raw).transpose()?;
                (measure(load, url.address, Some(&url), server.probe(), &stop)?, raw)
            };
            let round = Round { server: server_side, baseline: baseline_side };
            eprintln!("round {:2}: {round}", number + 1);
            rounds.push(round);
        }
        Ok(Report::new(load, driver, &rounds))
    }
}

/// The raw server, as a process of its own.
struct Baseline {
    server: Server,
    address: SocketAddr,
}

impl Baseline {
    fn start(directory: &std::path::Path) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let (server, said) = Server::start(&program, "baseline", &["baseline-echo".into()], &[], directory)?;
        let address = said.last().and_then(|line| line.strip_prefix("ready ")?.parse().ok());
        Ok(Self { server, address: address.ok_or("the raw echo server named no address")? })
    }
}

/// One server under load for a while. With a `url` it is spoken to in WebSocket, else raw.
pub(crate) fn measure(
    load: Load,
    address: SocketAddr,
    url: Option<&Url>,
    probe: Probe,
    stop: &Stop,
) -> Result<Side, String> {
    let io = |error: std::io::Error| error.to_string();
    let clock = Clock::start();
    let bytes = (load.payload_bytes + 16).next_multiple_of(1024).min(64 << 10);
    let buffers = BufferOptions { count: BUFFERS, bytes };
    let mut rings = Rings::new(load.connections, RING_FILES, address, buffers).map_err(io)?;
    let mut client = EchoClient::new(load, url);
    rings.run(&mut client.open_all()).map_err(io)?;
    let turn = |client: &mut EchoClient, rings: &mut Rings| {
        if stop.load(Ordering::Relaxed) {
            return Err("stopped by a signal".to_owned());
        }
        if rings.turn(client, &clock).map_err(io)? == 0 {
            rings.wait(Duration::from_millis(1)).map_err(io)?;
        }
        client.failure.take().map_or(Ok(()), Err)
    };
    while client.open < load.connections {
        turn(&mut client, &mut rings)?;
        if clock.now_ns() > CONNECT_PATIENCE_NS {
            return Err(format!("{} of {} connections were made in 30 s", client.open, load.connections));
        }
    }
    let start_ns = clock.now_ns() + load.warmup_ns;
    while clock.now_ns() < start_ns {
        turn(&mut client, &mut rings)?;
    }
    let (begun_ns, begun_us) = (clock.now_ns(), probe.cpu_us()?);
    client.begin();
    while clock.now_ns() < begun_ns + load.measured_ns {
        turn(&mut client, &mut rings)?;
    }
    let (echoes, cpu_us) = (client.echoes, probe.cpu_us()? - begun_us);
    Ok(Side::new(echoes, clock.now_ns() - begun_ns, cpu_us, &client.latency_us))
}
