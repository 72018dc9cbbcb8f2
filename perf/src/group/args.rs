//! The command lines of `group`, `broadcast` and `baseline-fanout`.

use super::pace::Load;
use super::report::Report;
use super::{Settings, run};
use crate::baseline_fanout::{Shape, serve};
use crate::cpu::{Probe, Probes};
use crate::net::{Stop, Url, raise_file_limit};
use crate::{DriverArg, spawn, stop_on_signals, tokens};
use clap::Args;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

/// Shown with `group --help`.
pub(crate) const GROUP_EXAMPLES: &str = "\
Examples:
  1,000 members, 64 messages in flight: how many deliveries a second, and the CPU of each
    cargo run --release -p perf -- group --spawn --members 1000 --window 64 --seconds 30
  One message at a time beside raw sends of the same size: `ratio`, and `last_ratio` for the time to the last member
    cargo run --release -p perf -- group --spawn --members 1000 --window 1 --baseline --seconds 10

The last line on stdout is one JSON object; progress goes to stderr. The exit code is 0 when nothing was lost, doubled
or out of order, and nobody was disconnected. docs/PERFORMANCE.md explains every field.";

/// Shown with `broadcast --help`.
pub(crate) const BROADCAST_EXAMPLES: &str = "\
Examples:
  10,000 subscribers, 20 messages a second by the clock: 200,000 deliveries a second
    cargo run --release -p perf -- broadcast --spawn --members 10000 --rate 20 --seconds 30
  The same beside raw sends
    cargo run --release -p perf -- broadcast --spawn --rate 20 --baseline --seconds 10

A server may drop a live event of a large chat for a reader that is slow; the reader sees the gap and fills it from the
history. `gap_deliveries` counts these, and `lost` what the history did not fill either.";

const SECOND_NS: u64 = 1_000_000_000;
/// Descriptors of this process beside those of the members.
const FILES_SPARE: u64 = 256;
/// What the configuration files have for members of a chat.
const SHIPPED_MEMBERS_MAX: u32 = 100;

#[derive(Args)]
pub(crate) struct GroupArgs {
    /// Members of the chat, all online and looking at it; each delivery of a message to one of them counts.
    #[arg(long, default_value_t = 1_000, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=10_000))]
    members: u32,
    /// Closed loop: messages in flight in all. A slot frees when the acknowledgement has arrived and every member has
    /// the message.
    #[arg(long, default_value_t = 64, value_name = "MESSAGES")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    window: u32,
    /// So many of the members write, in turns [default: all].
    #[arg(long, value_name = "N")]
    senders: Option<u32>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Args)]
pub(crate) struct BroadcastArgs {
    /// Subscribers of the chat, the writers among them.
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=10_000))]
    members: u32,
    /// Open loop: messages a second in all, sent by the clock whatever the server does.
    #[arg(long, default_value_t = 20, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// So many of the subscribers write.
    #[arg(long, default_value_t = 4, value_name = "N")]
    senders: u32,
    #[command(flatten)]
    common: CommonArgs,
}

/// What both have.
#[derive(Args)]
struct CommonArgs {
    /// Length of what is measured of each round.
    #[arg(long, default_value_t = 10.0, value_name = "S")]
    seconds: f64,
    /// Load before that in each round, left out.
    #[arg(long, default_value_t = 2.0, value_name = "S")]
    warmup_seconds: f64,
    /// How long what was acknowledged may still arrive, or be filled from the history; then it counts as lost.
    #[arg(long, default_value_t = 15)]
    drain_seconds: u32,
    /// Rounds [default: 1, with --baseline 3].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: Option<u32>,
    /// Measures a raw fan-out in turns with it: frames of the same size to as many sockets, at the same pace.
    #[arg(long)]
    baseline: bool,
    /// Bytes of text in a message.
    #[arg(long, default_value_t = 128, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=16_384))]
    payload: u32,
    /// Logins at a time: below the room in the lobbies (1,024 a shard).
    #[arg(long, default_value_t = 384, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    logins: u32,
    /// Attempts to log in a second at most.
    #[arg(long, default_value_t = 20_000, value_name = "PER_SECOND")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    login_rate: u32,
    /// The generator looks at its sockets this often at most, and so pays less for a delivery; the wait is part of the
    /// latencies [default: 200, with one message in flight 0].
    #[arg(long, value_name = "US")]
    turn_us: Option<u32>,
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
    /// A directory with a gateway.toml or a storage-writer.toml for the spawned servers. Chats may have as many members
    /// as the run needs whatever they say.
    #[arg(long, value_name = "DIR", requires = "spawn")]
    config: Option<PathBuf>,
    /// Address of a running gateway, whose group_members_max allows the chat.
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
}

impl GroupArgs {
    pub(crate) fn run(&self) -> Result<Report, String> {
        let senders = self.senders.unwrap_or(self.members);
        self.common.run(self.members, senders, Load::Closed { window: self.window })
    }
}

impl BroadcastArgs {
    pub(crate) fn run(&self) -> Result<Report, String> {
        self.common.run(self.members, self.senders, Load::Open { rate: u64::from(self.rate) })
    }
}

/// Keys that a chat of so many needs, as variables of the environment, which lie above files of configuration.
fn environment(members: u32) -> Vec<(String, String)> {
    let keys = ["PARLEY_GATEWAY__CHAT__GROUP_MEMBERS_MAX", "PARLEY_STORAGE_WRITER__LIMITS__GROUP_MEMBERS_MAX"];
    let needed = keys.iter().filter(|_| members > SHIPPED_MEMBERS_MAX);
    needed.map(|key| ((*key).to_owned(), members.to_string())).collect()
}

impl CommonArgs {
    fn check(&self, members: u32, senders: u32) -> Result<(), String> {
        let in_range = |seconds: f64| seconds > 0.0 && seconds <= 3_600.0;
        if !in_range(self.seconds) || !in_range(self.warmup_seconds) {
            return Err("--seconds and --warmup-seconds: above 0, an hour at most".to_owned());
        }
        if senders == 0 || senders > members {
            return Err("--senders: from 1 to --members".to_owned());
        }
        let files = raise_file_limit();
        if u64::from(members) + FILES_SPARE > files {
            return Err(format!(
                "--members {members}: a ring of this process holds {files} sockets less {FILES_SPARE}; raise the hard \
                 limit of open files (ulimit -Hn) or lower it"
            ));
        }
        Ok(())
    }

    fn settings(
        &self,
        (members, senders, load): (u32, u32, Load),
        (url, driver): (Url, String),
        probes: Probes,
        stop: Stop,
    ) -> Result<Settings, String> {
        let mut run = [0; 8];
        getrandom::fill(&mut run).map_err(|error| format!("no randomness: {error}"))?;
        let lone = load == Load::Closed { window: 1 };
        let program = || std::env::current_exe().map_err(|error| error.to_string());
        Ok(Settings {
            url,
            members,
            senders,
            load,
            rounds: self.rounds.unwrap_or(if self.baseline { 3 } else { 1 }),
            warmup_ns: (self.warmup_seconds * SECOND_NS as f64) as u64,
            measured_ns: (self.seconds * SECOND_NS as f64) as u64,
            drain_ns: u64::from(self.drain_seconds) * SECOND_NS,
            payload_bytes: self.payload as usize,
            baseline: self.baseline.then(program).transpose()?,
            logins_max: self.logins,
            login_rate: self.login_rate,
            turn_ns: u64::from(self.turn_us.unwrap_or(if lone { 0 } else { 200 })) * 1_000,
            seed: self.seed,
            run: u64::from_le_bytes(run),
            driver,
            probes,
            stop,
        })
    }

    fn run(&self, members: u32, senders: u32, load: Load) -> Result<Report, String> {
        self.check(members, senders)?;
        let stop = stop_on_signals()?;
        // Without it every short sleep is 50 us longer.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1_000));
        let work = (members, senders, load);
        if self.spawn {
            let options = spawn::Options {
                driver: self.driver.name(),
                shards: self.shards,
                data: self.data.clone(),
                config: self.config.clone(),
                keyspace: None,
            };
            let program = self.program.clone().map_or_else(spawn::build, Ok)?;
            let servers = spawn::Servers::start_program(&program, &options, &environment(members))?;
            let tokens = tokens::Tokens::load(&servers.data)?;
            let server = (Url::parse(&servers.url)?, servers.driver.clone());
            return run::run(&self.settings(work, server, servers.probes(), stop)?, &tokens);
        }
        let tokens = tokens::Tokens::load(&self.data.clone().unwrap_or_else(|| PathBuf::from("data")))?;
        let probe = |pid: Option<u32>| pid.map(|pid| Probe { pid });
        let probes = Probes { gateway: probe(self.gateway_pid), writer: probe(self.writer_pid), cluster: None };
        run::run(&self.settings(work, (Url::parse(&self.url)?, self.driver.name()), probes, stop)?, &tokens)
    }
}

/// `perf baseline-fanout`: the raw server, which `--baseline` starts.
#[derive(Args)]
pub(crate) struct BaselineArgs {
    /// Where clients connect.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Served once so many are there.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    connections: u32,
    /// Bytes from any connection that make a frame for all.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    trigger_bytes: u32,
    /// Bytes of that frame.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    frame_bytes: u32,
}

impl BaselineArgs {
    pub(crate) fn run(&self) -> Result<(), String> {
        let said = |error: std::io::Error| format!("{}: {error}", self.listen);
        raise_file_limit();
        let listener = TcpListener::bind(self.listen).map_err(said)?;
        println!("ready {}", listener.local_addr().map_err(said)?);
        let shape = Shape {
            connections: self.connections,
            trigger_bytes: self.trigger_bytes as usize,
            frame_bytes: self.frame_bytes as usize,
        };
        serve(&listener, shape).map_err(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn parse(line: &str) -> GroupArgs {
        let command =
            crate::Cli::parse_from(["perf", "group"].into_iter().chain(line.split_ascii_whitespace())).command;
        let crate::Command::Group(args) = command else { panic!("another command") };
        args
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in ["--seconds 0", "--warmup-seconds 0", "--senders 0", "--members 10 --senders 11"] {
            let args = parse(line);
            assert!(args.common.check(args.members, args.senders.unwrap_or(1)).is_err(), "{line}");
        }
        for line in ["group --members 1", "group --window 0", "group --program x", "broadcast --rate 0"] {
            assert!(crate::Cli::try_parse_from(["perf"].into_iter().chain(line.split(' '))).is_err(), "{line}");
        }
    }

    #[test]
    fn servers_are_told_of_a_chat_that_the_shipped_configuration_refuses() {
        assert_eq!(environment(100), []);
        let keys = environment(1_000);
        assert!(keys.len() == 2 && keys.iter().all(|(key, value)| key.ends_with("MEMBERS_MAX") && value == "1000"));
    }

    #[test]
    fn a_lone_message_is_looked_for_at_once_and_a_baseline_has_rounds() {
        let settings = |line: &str| {
            let GroupArgs { common, window, .. } = parse(line);
            let server = (Url::parse("ws://127.0.0.1:1/ws").unwrap(), "test".to_owned());
            common.settings((10, 10, Load::Closed { window }), server, Probes::default(), Stop::default()).unwrap()
        };
        let lone = settings("--window 1 --baseline");
        assert_eq!((lone.turn_ns, lone.rounds, lone.baseline.is_some()), (0, 3, true));
        let many = settings("--window 64");
        assert_eq!((many.turn_ns, many.rounds, many.baseline.is_some()), (200_000, 1, false));
    }
}
