//! The command line of `perf hostile`, which explains itself.

use crate::cpu::{Probe, Probes};
use crate::direct::{self, Loop, MarkOptions};
use crate::hostile::{self, Kind, Strength};
use crate::net::{self, Stop, Url};
use crate::{DriverArg, FILES_SPARE, SECOND_NS, spawn, stop_on_signals, tokens};
use clap::Args;
use parley_protocol::wire::Encoding;
use std::path::PathBuf;

pub(crate) const EXAMPLES: &str = "\
Examples:
  All attacks on servers of its own, three rounds: about ten minutes; let nothing else run meanwhile
    cargo run --release -p perf -- hostile --spawn --rounds 3
  One attack, harder than usual, on one driver
    cargo run --release -p perf -- hostile --spawn --driver epoll --attack bad-tokens --connects-per-second 1000
  Against a server that runs on this machine (`parley up`, its data in ./data)
    cargo run --release -p perf -- hostile --url ws://127.0.0.1:7400/ws --data ./data

Every attack is measured between two runs without one. The table compares the p99 of the honest load beside the attack
with its p99 alone (medians over the rounds); what SPECIFICATION.md promises is a ratio of at most 2. Attackers and honest
clients share this machine with the servers, so on few cores part of the ratio is the attackers' own work: lower the
strengths, or run them from another machine with --url. This is a measurement: its exit code says only that the honest
clients lost nothing and were not disconnected, and that every attacker got the answer that it should.";

#[derive(Args)]
pub(crate) struct HostileArgs {
    /// Honest users, each on one connection. An even number.
    #[arg(long, visible_alias = "users", default_value_t = 200, value_name = "N")]
    connections: u32,
    /// Honest messages a second in all, sent by the clock whatever the server does.
    #[arg(long, default_value_t = 1_000, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Length of each measured window.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Load, and attack, before each measured window.
    #[arg(long, default_value_t = 2)]
    warmup_seconds: u32,
    /// How often the round of all attacks is repeated; the table has medians.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only these attacks; may be given several times [default: all].
    #[arg(long, value_enum, value_name = "ATTACK")]
    attack: Vec<Kind>,
    /// Connections a second of connects, bad-frames and bad-tokens.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    connects_per_second: u32,
    /// Upgrades with 1 MB of headers a second.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    headers_per_second: u32,
    /// Pings a second, over eight sessions.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pings_per_second: u32,
    /// Messages of 4 KiB a second to the eight sessions that never read.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    spoken_per_second: u32,
    /// Slow handshakes at a time.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    held: u32,
    /// Builds the server, and starts gateway and storage-writer as processes of their own; ends them afterwards.
    #[arg(long, conflicts_with_all = ["url", "gateway_pid"])]
    spawn: bool,
    /// Driver of the spawned gateway; without --spawn only the name in the report.
    #[arg(long, value_enum, default_value = "auto")]
    driver: DriverArg,
    /// Shards of the spawned gateway; 0: one per core.
    #[arg(long, default_value_t = 0)]
    shards: u16,
    /// A directory with a gateway.toml or a storage-writer.toml for the spawned servers.
    #[arg(long, value_name = "DIR", requires = "spawn")]
    config: Option<PathBuf>,
    /// Address of a running gateway.
    #[arg(long, default_value = "ws://127.0.0.1:7400/ws")]
    url: String,
    /// Data directory of the server, for its development key [default: ./data; with --spawn a temporary one].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Process of a running gateway, for its memory.
    #[arg(long, value_name = "PID")]
    gateway_pid: Option<u32>,
}

impl HostileArgs {
    fn check(&self) -> Result<(), String> {
        if self.connections < 2 || !self.connections.is_multiple_of(2) {
            return Err("--connections: an even number, at least 2: users come in pairs".to_owned());
        }
        let (files, wanted) = (net::raise_file_limit(), self.connections + self.held);
        if u64::from(wanted) + FILES_SPARE > files {
            return Err(format!("{wanted} connections: this process may open {files} files; raise the hard limit"));
        }
        Ok(())
    }

    fn settings(&self, url: Url, driver: String, probes: Probes, stop: Stop) -> hostile::Settings {
        let honest = direct::Settings {
            url,
            users: self.connections,
            load: Loop::Open { rate: u64::from(self.rate) },
            warmup_ns: u64::from(self.warmup_seconds) * SECOND_NS,
            measured_ns: u64::from(self.seconds) * SECOND_NS,
            drain_ns: 15 * SECOND_NS,
            payload_bytes: 128,
            marks: MarkOptions { interval_ns: SECOND_NS, messages_max: 32 },
            encoding: Encoding::Rkyv,
            seed: 1,
            run: 0,
            connect_rate: 1_000,
            handshakes_max: 64,
            turn_ns: 0,
            verify_history: false,
            driver,
            probes,
            stop,
        };
        let strength = Strength {
            honest_rate: u64::from(self.rate),
            connects_per_s: u64::from(self.connects_per_second),
            headers_per_s: u64::from(self.headers_per_second),
            pings_per_s: u64::from(self.pings_per_second),
            spoken_per_s: u64::from(self.spoken_per_second),
            held: self.held as usize,
        };
        let kinds = if self.attack.is_empty() { Kind::ALL.to_vec() } else { self.attack.clone() };
        hostile::Settings { honest, kinds, strength, rounds: self.rounds }
    }

    pub(crate) fn run(&self) -> Result<hostile::Report, String> {
        self.check()?;
        let stop = stop_on_signals()?;
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1_000));
        if self.spawn {
            let options = spawn::Options {
                driver: self.driver.name(),
                shards: self.shards,
                data: self.data.clone(),
                config: self.config.clone(),
                keyspace: None,
            };
            let servers = spawn::Servers::start(&options)?;
            let tokens = tokens::Tokens::load(&servers.data)?;
            let url = Url::parse(&servers.url)?;
            return hostile::run(&self.settings(url, servers.driver.clone(), servers.probes(), stop), &tokens);
        }
        let tokens = tokens::Tokens::load(&self.data.clone().unwrap_or_else(|| PathBuf::from("data")))?;
        let probes = Probes { gateway: self.gateway_pid.map(|pid| Probe { pid }), ..Probes::default() };
        hostile::run(&self.settings(Url::parse(&self.url)?, self.driver.name(), probes, stop), &tokens)
    }
}
