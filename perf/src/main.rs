//! Load generator for Parley: drives a gateway over WebSocket, checks what it promises, and prints what it costs.

#[path = "../baseline/echo.rs"]
mod baseline;
#[path = "../baseline/fanout.rs"]
mod baseline_fanout;
#[path = "../baseline/handshake.rs"]
mod baseline_handshake;
#[cfg(test)]
mod chat_server;
mod churn;
mod cluster;
mod cpu;
mod curve;
mod device;
mod direct;
mod echo;
mod frames;
mod group;
mod hostile;
mod idle;
mod ledger;
mod login;
mod net;
mod page;
mod report;
mod rings;
mod schedule;
mod scrape;
mod spawn;
mod storm;
mod sync;
mod target;
mod tokens;
mod writer;

use clap::{Args, Parser, Subcommand, ValueEnum};
use cpu::{Probe, Probes};
use direct::{Loop, MarkOptions, Settings};
use net::{Stop, Url};
use parley_protocol::wire::Encoding;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ABOUT: &str = "Load generator for Parley: measures latency and CPU, and checks that nothing is lost";
const EXAMPLES: &str = "\
Examples:
  An open loop on servers of its own: 30,000 messages a second from 10,000 users for a minute
    cargo run --release -p perf -- direct --spawn --connections 10000 --rate 30000 --seconds 60
  A closed loop: 1,000 users with 16 messages in flight each
    cargo run --release -p perf -- direct --spawn --users 1000 --window 16 --seconds 30
  Rows in a Cassandra node that is started for the run (--contact HOST:PORT: in a cluster that runs)
    cargo run --release -p perf -- direct --spawn --store scylla --users 200 --window 4 --seconds 30
  How many sessions a gateway holds, and what each costs in memory
    cargo run --release -p perf -- idle --spawn --connections 30000 --minutes 2
  Deliveries to a group of 1,000 online members, and the CPU of each
    cargo run --release -p perf -- group --spawn --members 1000 --window 64
  What an attacker can do to the others: the p99 of an honest load alone and beside each attack
    cargo run --release -p perf -- hostile --spawn
  Against a server that runs (`parley up`, its data in ./data)
    cargo run --release -p perf -- direct --url ws://127.0.0.1:7400/ws --data ./data --users 100 --rate 1000

The last line on stdout is one JSON object; progress goes to stderr. The exit code is 0 when every promise was kept:
nothing lost, duplicated or out of order, and no connection ended.";

#[derive(Parser)]
#[command(name = "perf", version, about = ABOUT, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Writes the report as one HTML page with plots, too.
    #[arg(long, global = true, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Pairs of users talk; every user has one device, and sends to its peer.
    #[command(after_help = EXAMPLES)]
    Direct(DirectArgs),
    /// The gateway's data plane with an echo for a brain, beside a raw TCP echo.
    #[command(after_help = echo::EXAMPLES)]
    Echo(echo::EchoArgs),
    /// The raw TCP echo, which `echo --baseline` starts.
    BaselineEcho(echo::BaselineArgs),
    /// Devices connect, are let in and leave, over and over, beside a raw server.
    #[command(after_help = churn::EXAMPLES)]
    Churn(churn::ChurnArgs),
    /// Accept, two reads, two writes, close: the raw server that `churn --baseline` starts.
    BaselineChurn(churn::BaselineArgs),
    /// Very many sessions that do little but live: what each costs in memory.
    #[command(after_help = idle::args::EXAMPLES)]
    Idle(idle::args::IdleArgs),
    /// One group whose members all look at it: deliveries a second, the CPU of each, the time to the last member.
    #[command(after_help = group::args::GROUP_EXAMPLES)]
    Group(group::args::GroupArgs),
    /// One large chat with few writers, by the clock; gaps that a busy server leaves are filled from the history.
    #[command(after_help = group::args::BROADCAST_EXAMPLES)]
    Broadcast(group::args::BroadcastArgs),
    /// The raw fan-out, which `group --baseline` and `broadcast --baseline` start.
    BaselineFanout(group::args::BaselineArgs),
    /// The p99 of an honest load, alone and beside each kind of attack.
    #[command(after_help = hostile::args::EXAMPLES)]
    Hostile(hostile::args::HostileArgs),
    /// Everybody is cut off at once and comes back: how long that takes, and what it costs.
    #[command(after_help = storm::EXAMPLES)]
    Storm(storm::StormArgs),
    /// Devices that were away come back and catch up with what they missed.
    #[command(after_help = sync::EXAMPLES)]
    Sync(sync::SyncArgs),
    /// A storage-writer on a CQL cluster beside a bare loop over the driver, and what a message costs in requests.
    #[command(after_help = writer::EXAMPLES)]
    Writer(writer::WriterArgs),
}

#[derive(Clone, Copy, ValueEnum)]
enum EncodingArg {
    Rkyv,
    Json,
}

#[derive(Clone, Copy, ValueEnum)]
enum DriverArg {
    Auto,
    Uring,
    Epoll,
}

impl DriverArg {
    fn name(self) -> String {
        match self {
            DriverArg::Auto => "auto",
            DriverArg::Uring => "uring",
            DriverArg::Epoll => "epoll",
        }
        .to_owned()
    }
}

#[derive(Args)]
struct DirectArgs {
    /// Users, each on one connection; half as many pairs. An even number.
    #[arg(long, visible_alias = "users", default_value_t = 1000, value_name = "N")]
    connections: u32,
    /// Open loop: messages a second in all, sent by the clock whatever the server does. Latency counts from the time
    /// at which a message was to be sent, so a server that stalls is not spared (no coordinated omission).
    #[arg(long, value_name = "PER_SECOND", conflicts_with = "window", required_unless_present = "window")]
    rate: Option<u32>,
    /// Closed loop: messages in flight per user. A slot frees when the acknowledgement and the delivery have arrived.
    #[arg(long, value_name = "MESSAGES")]
    window: Option<u32>,
    /// Length of the measured window.
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// Load before the measured window, left out of all figures.
    #[arg(long, default_value_t = 5)]
    warmup_seconds: u32,
    /// How long what was acknowledged may still arrive after the last message was sent; then it counts as lost.
    #[arg(long, default_value_t = 15)]
    drain_seconds: u32,
    /// Bytes of text in a message.
    #[arg(long, default_value_t = 128, value_name = "BYTES")]
    payload: usize,
    /// A delivered mark goes out when its oldest message is this old ...
    #[arg(long, default_value_t = 1_000, value_name = "MS")]
    marks_interval_ms: u32,
    /// ... or when this many messages have none. 0 sends no delivered marks.
    #[arg(long, default_value_t = 32, value_name = "MESSAGES")]
    marks_messages: u32,
    /// Encoding of the frames.
    #[arg(long, value_enum, default_value = "rkyv")]
    encoding: EncodingArg,
    /// Who sends when. The same seed gives the same schedule.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Builds the server, and starts gateway and storage-writer as processes of their own; ends them afterwards.
    #[arg(long, conflicts_with_all = ["url", "gateway_pid", "writer_pid"])]
    spawn: bool,
    /// Starts this program instead of building one.
    #[arg(long, value_name = "PATH", requires = "spawn")]
    program: Option<PathBuf>,
    /// Driver of the spawned gateway; without --spawn only the name in the report.
    #[arg(long, value_enum, default_value = "auto")]
    driver: DriverArg,
    /// Shards of the spawned gateway; 0: one per core.
    #[arg(long, default_value_t = 0)]
    shards: u16,
    /// A directory with a gateway.toml or a storage-writer.toml for the spawned servers.
    #[arg(long, value_name = "DIR", requires = "spawn")]
    config: Option<PathBuf>,
    #[command(flatten)]
    store: cluster::StoreArgs,
    /// Address of a running gateway.
    #[arg(long, default_value = "ws://127.0.0.1:7400/ws")]
    url: String,
    /// Data directory of the server, for its development key [default: ./data; with --spawn a temporary one].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Process of a running gateway, for its CPU time.
    #[arg(long, value_name = "PID")]
    gateway_pid: Option<u32>,
    /// Process of a running storage-writer, for its CPU time.
    #[arg(long, value_name = "PID")]
    writer_pid: Option<u32>,
    /// Reads every chat's history after the run and compares it with what was acknowledged.
    #[arg(long)]
    verify_history: bool,
    /// Connects a second at most.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..))]
    connect_rate: u32,
    /// Connections between their connect and their login at most.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    handshakes: u32,
    /// The generator looks at its sockets this often at most, and so pays less per message; the wait is part of the
    /// latency that it reports [default: 200, below 5,000 messages a second 0].
    #[arg(long, value_name = "US")]
    turn_us: Option<u32>,
}

/// Descriptors besides the connections.
const FILES_SPARE: u64 = 64;
/// Where an open loop gets busy enough to share turns.
const BUSY_RATE: u32 = 5_000;
const SECOND_NS: u64 = 1_000_000_000;

impl DirectArgs {
    fn check(&self) -> Result<(), String> {
        if self.connections < 2 || !self.connections.is_multiple_of(2) {
            return Err("--connections: an even number, at least 2: users come in pairs".to_owned());
        }
        if self.rate == Some(0) || self.window == Some(0) || self.seconds == 0 {
            return Err("--rate, --window and --seconds: at least 1".to_owned());
        }
        let files = net::raise_file_limit();
        if u64::from(self.connections) + FILES_SPARE > files {
            return Err(format!(
                "--connections {}: this process may open {files} files; raise the hard limit (ulimit -Hn) or lower it",
                self.connections
            ));
        }
        Ok(())
    }

    fn settings(&self, url: Url, driver: String, probes: Probes, stop: Stop) -> Result<Settings, String> {
        let load = match (self.rate, self.window) {
            (Some(rate), _) => Loop::Open { rate: u64::from(rate) },
            (None, Some(window)) => Loop::Closed { window },
            (None, None) => return Err("--rate for an open loop, or --window for a closed one".to_owned()),
        };
        let busy = self.rate.is_none_or(|rate| rate >= BUSY_RATE);
        let turn_us = self.turn_us.unwrap_or(if busy { 200 } else { 0 });
        let mut run = [0; 8];
        getrandom::fill(&mut run).map_err(|error| format!("no randomness: {error}"))?;
        Ok(Settings {
            url,
            users: self.connections,
            load,
            warmup_ns: u64::from(self.warmup_seconds) * SECOND_NS,
            measured_ns: u64::from(self.seconds) * SECOND_NS,
            drain_ns: u64::from(self.drain_seconds) * SECOND_NS,
            payload_bytes: self.payload,
            marks: MarkOptions {
                interval_ns: u64::from(self.marks_interval_ms) * 1_000_000,
                messages_max: self.marks_messages,
            },
            encoding: match self.encoding {
                EncodingArg::Rkyv => Encoding::Rkyv,
                EncodingArg::Json => Encoding::Json,
            },
            seed: self.seed,
            run: u64::from_le_bytes(run),
            connect_rate: self.connect_rate,
            handshakes_max: self.handshakes,
            turn_ns: u64::from(turn_us) * 1_000,
            verify_history: self.verify_history,
            driver,
            probes,
            stop,
            watch: None,
        })
    }

    fn run(&self) -> Result<report::Report, String> {
        self.check()?;
        let stop = stop_on_signals()?;
        // Without it every short sleep is 50 us longer.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1_000));
        // In this order: the servers end first, then their keyspace goes, then the cluster that was started for it.
        let cluster = self.store.cluster(self.spawn)?;
        let keyspace = cluster.as_ref().map(cluster::Cluster::keyspace).transpose()?;
        if self.spawn {
            let options = spawn::Options {
                driver: self.driver.name(),
                shards: self.shards,
                data: self.data.clone(),
                config: self.config.clone(),
                keyspace: keyspace.as_ref().map(|keyspace| keyspace.0.clone()),
            };
            let program = self.program.clone().map_or_else(spawn::build, Ok)?;
            let servers = spawn::Servers::start_program(&program, &options, &[])?;
            let tokens = tokens::Tokens::load(&servers.data)?;
            let settings = self.settings(Url::parse(&servers.url)?, servers.driver.clone(), servers.probes(), stop)?;
            return direct::run(&settings, &tokens);
        }
        let tokens = tokens::Tokens::load(&self.data.clone().unwrap_or_else(|| PathBuf::from("data")))?;
        let probe = |pid: Option<u32>| pid.map(|pid| Probe { pid });
        let probes = Probes { gateway: probe(self.gateway_pid), writer: probe(self.writer_pid), cluster: None };
        direct::run(&self.settings(Url::parse(&self.url)?, self.driver.name(), probes, stop)?, &tokens)
    }
}

/// The first SIGTERM or Ctrl-C ends the run and the servers that it started, the second one this process at once.
fn stop_on_signals() -> Result<Stop, String> {
    let stop = Stop::default();
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        // In this order: the handler that ends must see the flag as it was before the signal.
        signal_hook::flag::register_conditional_shutdown(signal, 1, stop.clone())
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
            .map_err(|error| format!("cannot handle signals: {error}"))?;
    }
    Ok(stop)
}

fn main() -> ExitCode {
    let Cli { command, html } = Cli::parse();
    let html = html.as_deref();
    let done = match command {
        Command::Direct(args) => args.run().and_then(|report| finish(html, &report, &report.broken())),
        Command::Echo(args) => args.run().and_then(|report| finish(html, &report, &report.broken())),
        Command::BaselineEcho(args) => args.run().map(|()| ExitCode::SUCCESS),
        Command::Churn(args) => args.run().and_then(|report| finish(html, &report, &report.broken())),
        Command::BaselineChurn(args) => args.run().map(|()| ExitCode::SUCCESS),
        Command::Idle(args) => args.run().and_then(|report| finish(html, &report, &report.broken())),
        Command::Group(args) => args.run().and_then(|report| finish(html, &report, &report.broken())),
        Command::Broadcast(args) => args.run().and_then(|report| finish(html, &report, &report.broken())),
        Command::BaselineFanout(args) => args.run().map(|()| ExitCode::SUCCESS),
        Command::Hostile(args) => args.run().and_then(|report| {
            eprint!("{}", report.table());
            finish(html, &report, &report.broken)
        }),
        Command::Storm(args) => args.run().and_then(|report| finish(html, &report, &report.broken())),
        Command::Sync(args) => args.run().and_then(|report| finish(html, &report, &report.broken())),
        Command::Writer(args) => args.run().and_then(|report| finish(html, &report, &report.broken)),
    };
    done.unwrap_or_else(|error| {
        eprintln!("perf: {error}");
        ExitCode::from(2)
    })
}

/// The page, the last line, and whether every promise was kept.
fn finish(html: Option<&Path>, report: &impl serde::Serialize, broken: &[String]) -> Result<ExitCode, String> {
    for what in broken {
        eprintln!("broken: {what}");
    }
    let report = serde_json::to_string(report).expect("numbers and names have a JSON form");
    // The figures first: a page that cannot be written must not cost them.
    println!("{report}");
    if let Some(path) = html {
        let words: Vec<String> = std::env::args().skip(1).collect();
        let command = format!("perf {}", words.join(" "));
        let scenario = words.iter().find(|word| !word.starts_with('-')).map_or("", String::as_str);
        let report = serde_json::from_str(&report).map_err(|error| error.to_string())?;
        page::write(path, page::Run { scenario, command: &command, broken }, &report)?;
    }
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_takes_the_documented_calls() {
        Cli::command().debug_assert();
        let examples = EXAMPLES
            .lines()
            .chain(idle::args::EXAMPLES.lines())
            .chain(echo::EXAMPLES.lines())
            .chain(churn::EXAMPLES.lines())
            .chain(storm::EXAMPLES.lines())
            .chain(sync::EXAMPLES.lines())
            .chain(group::args::GROUP_EXAMPLES.lines())
            .chain(group::args::BROADCAST_EXAMPLES.lines())
            .chain(hostile::args::EXAMPLES.lines())
            .chain(writer::EXAMPLES.lines());
        for line in examples.filter_map(|line| line.trim().split_once(" -p perf -- ")) {
            assert!(Cli::try_parse_from(["perf"].into_iter().chain(line.1.split(' '))).is_ok(), "{}", line.1);
        }
        let fails = |line: &str| Cli::try_parse_from(["perf", "direct"].into_iter().chain(line.split(' '))).is_err();
        assert!(fails("--connections 10") && fails("--rate 1 --window 1") && fails("--spawn --rate 1 --url ws://a:1"));
    }

    #[test]
    fn an_odd_number_of_users_is_refused() {
        let command = Cli::parse_from(["perf", "direct", "--users", "3", "--rate", "1"]).command;
        let Command::Direct(args) = command else { panic!("another command") };
        assert!(args.check().unwrap_err().contains("even"));
    }
}
