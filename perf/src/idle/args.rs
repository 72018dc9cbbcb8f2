//! The command line of `idle`.

use super::report::Report;
use super::{Settings, run};
use crate::cpu::{Probe, Probes};
use crate::net::{Stop, Url, raise_file_limit};
use crate::{DriverArg, spawn, stop_on_signals, tokens};
use clap::Args;
use std::path::PathBuf;

/// Shown with --help.
pub(crate) const EXAMPLES: &str = "\
Examples:
  30,000 sessions on a gateway of its own for two minutes, 1,000 messages a second among them
    cargo run --release -p perf -- idle --spawn --connections 30000 --minutes 2
  A million, for ten minutes (about 20 GiB of memory, most of it sockets of the kernel)
    cargo run --release -p perf -- idle --spawn --connections 1000000 --minutes 10 --rate 1000

The last line on stdout is one JSON object; progress goes to stderr. The exit code is 0 when every session stayed and
nothing was lost. docs/PERFORMANCE.md explains every field.";

const SECOND_NS: u64 = 1_000_000_000;
/// Descriptors of this process beside those in rings.
const FILES_SPARE: u64 = 256;
/// What a shard may hold above its share of the sessions: users are spread by a hash, and a lobby is beside them.
const SHARD_SPARE: u32 = 4_096;
/// What `gateway.toml` has, and the most that it may say.
const SHIPPED_CONNECTIONS_MAX: u32 = 1_000_000;
const MOST_CONNECTIONS: u32 = 1 << 20;
/// What `storage-writer.toml` has.
const SHIPPED_USERS_CACHED: u32 = 1_000_000;

#[derive(Args)]
pub(crate) struct IdleArgs {
    /// Sessions, each a user with one device on one connection; an even number, at most 1,048,576.
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    connections: u32,
    /// How long all of them are held, once they are logged in.
    #[arg(long, default_value_t = 2.0, value_name = "M")]
    minutes: f64,
    /// Messages a second in all, sent by the clock, each from a session to its peer; 0 sends none.
    #[arg(long, default_value_t = 1_000, value_name = "PER_SECOND")]
    rate: u32,
    /// Only so many of the sessions, an even number, send and receive [default: all].
    #[arg(long, value_name = "N")]
    talkers: Option<u32>,
    /// Bytes of text in a message.
    #[arg(long, default_value_t = 128, value_name = "BYTES")]
    payload: usize,
    /// Between two pings of a session.
    #[arg(long, default_value_t = 25.0, value_name = "S")]
    heartbeat_seconds: f64,
    /// Logins at a time: below the room in the lobbies (1,024 a shard).
    #[arg(long, default_value_t = 384, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    logins: u32,
    /// Attempts to log in a second at most.
    #[arg(long, default_value_t = 20_000, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..))]
    login_rate: u32,
    /// Sockets in one ring of the generator at most; the limit of open files bounds it too.
    #[arg(long, default_value_t = 18_000, value_parser = clap::value_parser!(u32).range(1..))]
    ring_files: u32,
    /// The generator looks at its sockets this often at most, and so pays less; the wait is part of the latencies.
    #[arg(long, default_value_t = 1_000, value_name = "US")]
    turn_us: u32,
    /// How long what was acknowledged may still arrive after the last message was sent; then it counts as lost.
    #[arg(long, default_value_t = 15)]
    drain_seconds: u32,
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
    /// Address of a running gateway.
    #[arg(long, default_value = "ws://127.0.0.1:7400/ws")]
    url: String,
    /// Data directory of the server, for its development key [default: ./data; with --spawn a temporary one].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Process of a running gateway, for its memory and CPU time.
    #[arg(long, value_name = "PID")]
    gateway_pid: Option<u32>,
    /// Process of a running storage-writer.
    #[arg(long, value_name = "PID")]
    writer_pid: Option<u32>,
}

impl IdleArgs {
    fn talkers(&self) -> u32 {
        self.talkers.unwrap_or(self.connections)
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        if !self.connections.is_multiple_of(2) {
            return Err("--connections: an even number: sessions come in pairs".to_owned());
        }
        let talkers = self.talkers();
        if talkers < 2 || !talkers.is_multiple_of(2) || talkers > self.connections {
            return Err("--talkers: an even number, from 2 to --connections".to_owned());
        }
        let positive = |value: f64, most: f64| value > 0.0 && value <= most;
        if !positive(self.minutes, 60.0 * 24.0 * 7.0) || !positive(self.heartbeat_seconds, 3_600.0) {
            return Err("--minutes and --heartbeat-seconds: above 0, at most a week and an hour".to_owned());
        }
        Ok(())
    }

    pub(crate) fn settings(&self, url: Url, driver: String, probes: Probes, stop: Stop) -> Result<Settings, String> {
        let mut run = [0; 8];
        getrandom::fill(&mut run).map_err(|error| format!("no randomness: {error}"))?;
        let files = raise_file_limit().saturating_sub(FILES_SPARE).max(1);
        Ok(Settings {
            url,
            connections: self.connections,
            talkers: self.talkers(),
            hold_ns: (self.minutes * 60.0 * SECOND_NS as f64) as u64,
            drain_ns: u64::from(self.drain_seconds) * SECOND_NS,
            rate: self.rate,
            payload_bytes: self.payload,
            heartbeat_ns: (self.heartbeat_seconds * SECOND_NS as f64) as u64,
            logins_max: self.logins,
            login_rate: self.login_rate,
            ring_files: u32::try_from(files).unwrap_or(u32::MAX).min(self.ring_files),
            turn_ns: u64::from(self.turn_us) * 1_000,
            seed: self.seed,
            run: u64::from_le_bytes(run),
            driver,
            probes,
            stop,
        })
    }

    /// Keys that so many sessions need, as variables of the environment, which lie above files of configuration.
    fn environment(&self) -> Vec<(String, String)> {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        let shards = if self.shards > 0 { u32::from(self.shards) } else { cores };
        let share = self.connections.div_ceil(shards);
        let mut keys = Vec::new();
        if share + SHARD_SPARE > SHIPPED_CONNECTIONS_MAX {
            let most = (share + SHARD_SPARE).min(MOST_CONNECTIONS);
            keys.push(("PARLEY_GATEWAY__CONNECTIONS_MAX".to_owned(), most.to_string()));
        }
        if self.connections > SHIPPED_USERS_CACHED {
            let users = "PARLEY_STORAGE_WRITER__LIMITS__USERS_CACHED_MAX";
            keys.push((users.to_owned(), self.connections.to_string()));
        }
        keys
    }

    pub(crate) fn run(&self) -> Result<Report, String> {
        self.check()?;
        let stop = stop_on_signals()?;
        // Without it every short sleep is 50 us longer.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1_000));
        if self.spawn {
            let options = spawn::Options {
                driver: self.driver.name(),
                shards: self.shards,
                data: self.data.clone(),
                config: self.config.clone(),
                keyspace: None,
            };
            let program = self.program.clone().map_or_else(spawn::build, Ok)?;
            let servers = spawn::Servers::start_program(&program, &options, &self.environment())?;
            let tokens = tokens::Tokens::load(&servers.data)?;
            let settings = self.settings(Url::parse(&servers.url)?, servers.driver.clone(), servers.probes(), stop)?;
            return run::run(&settings, &tokens);
        }
        let tokens = tokens::Tokens::load(&self.data.clone().unwrap_or_else(|| PathBuf::from("data")))?;
        let probe = |pid: Option<u32>| pid.map(|pid| Probe { pid });
        let probes = Probes { gateway: probe(self.gateway_pid), writer: probe(self.writer_pid), cluster: None };
        run::run(&self.settings(Url::parse(&self.url)?, self.driver.name(), probes, stop)?, &tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn parse(line: &str) -> IdleArgs {
        let command = crate::Cli::parse_from(["perf", "idle"].into_iter().chain(line.split_ascii_whitespace())).command;
        let crate::Command::Idle(args) = command else { panic!("another command") };
        args
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let wrong = ["--connections 3", "--talkers 3", "--talkers 20000", "--minutes 0", "--heartbeat-seconds 0"];
        for line in wrong {
            assert!(parse(line).check().is_err(), "{line}");
        }
        assert!(parse("--connections 1000000 --minutes 10 --rate 0").check().is_ok());
        for line in ["--connections 1048578", "--program x", "--logins 0"] {
            let line = ["perf", "idle"].into_iter().chain(line.split(' '));
            assert!(crate::Cli::try_parse_from(line).is_err());
        }
    }

    #[test]
    fn a_gateway_gets_room_for_all_sessions_and_for_how_they_are_spread() {
        assert_eq!(parse("--connections 1000000 --shards 2").environment(), []);
        for (sessions, room) in [("999000", "1003096"), ("1048000", "1048576")] {
            let keys = parse(&format!("--connections {sessions} --shards 1")).environment();
            assert_eq!(keys[0], ("PARLEY_GATEWAY__CONNECTIONS_MAX".to_owned(), room.to_owned()));
        }
        let users = parse("--connections 1040000 --shards 2").environment();
        assert!(users.iter().any(|(key, value)| key.ends_with("USERS_CACHED_MAX") && value == "1040000"));
    }
}
