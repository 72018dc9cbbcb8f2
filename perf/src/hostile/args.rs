//! The command line of `perf hostile`, which explains itself.

use crate::cpu::{Probe, Probes};
use crate::direct::{self, Loop, MarkOptions};
use crate::hostile::cast::Strength;
use crate::hostile::{self, preset, table};
use crate::net::{self, Stop, Url};
use crate::{DriverArg, FILES_SPARE, SECOND_NS, spawn, stop_on_signals, tokens};
use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser};
use parley_protocol::wire::Encoding;
use std::net::SocketAddr;
use std::path::PathBuf;

pub(crate) const EXAMPLES: &str = "\
Examples:
  All attacks on servers of its own, three rounds: about six minutes; let nothing else run meanwhile
    cargo run --release -p perf -- hostile --spawn
  Two attacks, one of them harder than usual, on one driver, with long halves
    cargo run --release -p perf -- hostile --spawn --driver epoll --attack token-bad-signature --attack no-hello \
--connects-per-second 1000 --seconds 10
  Against a server that runs on this machine (`parley up`, its data in ./data)
    cargo run --release -p perf -- hostile --url ws://127.0.0.1:7400/ws --data ./data

The honest users stay connected all the time. Before anything is measured each attack is carried out once, until the
server refuses it as it should. Then, in every round, each attack has two halves: the honest load alone, and beside
the attack. The table has each row's medians over the rounds; its ratio is the p99 beside the attack against the usual
one, which is the median of all halves without an attack, and SPECIFICATION.md promises at most 2. A disk that stalls
for a moment spoils a half, so rows above 2 are measured in six further rounds before they say so. Attackers and honest clients share this machine with the servers, so
on few cores part of the ratio is the attackers' own work: lower the strengths, or run them from another machine with
--url. A spawned gateway has times of 1 s where the shipped configuration waits 10 s or 30 s for a client, so that it
refuses those in time that must be waited for. This is a measurement: its exit code says only that the honest clients
lost nothing and were not disconnected, and that every attacker got the answer that it should.";

#[derive(Args)]
pub(crate) struct HostileArgs {
    /// Honest users, each on one connection. An even number.
    #[arg(long, visible_alias = "users", default_value_t = 200, value_name = "N")]
    connections: u32,
    /// Honest messages a second in all, sent by the clock whatever the server does.
    #[arg(long, default_value_t = 2_000, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Length of each half. A half of 1.2 s has 2,400 messages, 24 of them above its p99.
    #[arg(long, default_value = "1.2", value_parser = half_seconds)]
    seconds: f64,
    /// How often the round of all attacks is repeated; the table has medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only these attacks; may be given several times [default: all].
    #[arg(long, value_name = "ATTACK", value_parser = attack_names())]
    attack: Vec<String>,
    /// Connections a second of the attacks that are refused before they have a session.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    connects_per_second: u32,
    /// Sessions a second of second-hello and token-expires.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    logins_per_second: u32,
    /// Connections a second of headers-1-mb, headers-2000 and empty-fragments.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    heavy_per_second: u32,
    /// Requests a second about what belongs to others, over eight sessions.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    requests_per_second: u32,
    /// Pings a second, over eight sessions.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pings_per_second: u32,
    /// Messages of 4 KiB a second to the eight sessions that never read.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    spoken_per_second: u32,
    /// Connections at a time of those that wait for the end of their time, at the most.
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
    /// Its admin endpoint, which counts what it refuses.
    #[arg(long, default_value = "127.0.0.1:7401", value_name = "HOST:PORT")]
    admin: SocketAddr,
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

    fn settings(&self, url: Url, admin: SocketAddr, driver: String, probes: Probes, stop: Stop) -> hostile::Settings {
        let honest = direct::Settings {
            url,
            users: self.connections,
            load: Loop::Open { rate: u64::from(self.rate) },
            warmup_ns: SECOND_NS,
            // Until it is told to end.
            measured_ns: 24 * 3_600 * SECOND_NS,
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
            watch: None,
        };
        let strength = Strength {
            connects_per_s: u64::from(self.connects_per_second),
            logins_per_s: u64::from(self.logins_per_second),
            heavy_per_s: u64::from(self.heavy_per_second),
            requests_per_s: u64::from(self.requests_per_second),
            pings_per_s: u64::from(self.pings_per_second),
            spoken_per_s: u64::from(self.spoken_per_second),
            held: self.held as usize,
        };
        let chosen = |row: &&table::Row| self.attack.is_empty() || self.attack.iter().any(|name| name == row.name);
        let preset = self.spawn && self.config.is_none();
        hostile::Settings {
            honest,
            rate: u64::from(self.rate),
            half_ns: (self.seconds * SECOND_NS as f64) as u64,
            rows: table::ROWS.iter().filter(chosen).collect(),
            strength,
            patience: if preset { preset::PATIENCE } else { preset::PATIENCE_SHIPPED },
            admin,
            rounds: self.rounds,
        }
    }

    pub(crate) fn run(&self) -> Result<hostile::Report, String> {
        self.check()?;
        let stop = stop_on_signals()?;
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1_000));
        if self.spawn {
            let own = tempfile::tempdir().map_err(|error| format!("no directory for the configuration: {error}"))?;
            preset::write(own.path())?;
            let options = spawn::Options {
                driver: self.driver.name(),
                shards: self.shards,
                data: self.data.clone(),
                config: Some(self.config.clone().unwrap_or_else(|| own.path().to_owned())),
                keyspace: None,
            };
            let servers = spawn::Servers::start(&options)?;
            let tokens = tokens::Tokens::load(&servers.data)?;
            let url = Url::parse(&servers.url)?;
            let (driver, probes) = (servers.driver.clone(), servers.probes());
            return hostile::run(&self.settings(url, servers.gateway_admin, driver, probes, stop), &tokens);
        }
        let tokens = tokens::Tokens::load(&self.data.clone().unwrap_or_else(|| PathBuf::from("data")))?;
        let probes = Probes { gateway: self.gateway_pid.map(|pid| Probe { pid }), ..Probes::default() };
        let url = Url::parse(&self.url)?;
        hostile::run(&self.settings(url, self.admin, self.driver.name(), probes, stop), &tokens)
    }
}

fn attack_names() -> PossibleValuesParser {
    table::ROWS.iter().map(|row| PossibleValue::new(row.name).help(row.what)).collect::<Vec<_>>().into()
}

/// From 0.1 s to an hour.
fn half_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds, such as 1.2".to_owned())?;
    if (0.1..=3_600.0).contains(&seconds) { Ok(seconds) } else { Err("from 0.1 to 3600 seconds".to_owned()) }
}
