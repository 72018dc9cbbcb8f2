//! The scenario `storm`: everybody is cut off at once, because the gateway is drained, killed or the network fails, and
//! comes back with its ticket as docs/PROTOCOL.md asks. How long that takes, what it costs, and whether a small flow of
//! messages beside it loses anything.

mod fleet;
mod flow;
mod report;
mod run;
#[cfg(test)]
mod tests;

use crate::net::Stop;
use crate::stop_on_signals;
use crate::target::TargetArgs;
use clap::{Args, ValueEnum};
pub(crate) use report::Report;

/// Shown with --help.
pub(crate) const EXAMPLES: &str = "\
Examples:
  The gateway is drained and replaced (a new version, say) under 10,000 sessions
    cargo run --release -p perf -- storm --spawn --sessions 10000
  It is killed: nobody is told to wait
    cargo run --release -p perf -- storm --spawn --sessions 10000 --how kill
  The network fails for a moment, and the gateway stays
    cargo run --release -p perf -- storm --spawn --sessions 10000 --how cut --html storm.html

The last line on stdout is one JSON object; the exit code is 0 when everybody came back and no message was lost,
doubled or out of order. docs/PERFORMANCE.md explains every field.";

const SECOND_NS: u64 = 1_000_000_000;

/// What ends all connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum How {
    /// SIGTERM to the gateway, and another one in its place: sessions are told when to come back.
    Drain,
    /// SIGKILL to the gateway, and another one in its place.
    Kill,
    /// The clients lose all connections at once; the gateway stays.
    Cut,
}

impl How {
    fn name(self) -> &'static str {
        match self {
            How::Drain => "drain",
            How::Kill => "kill",
            How::Cut => "cut",
        }
    }
}

#[derive(Args)]
pub(crate) struct StormArgs {
    /// Sessions, each a user with one device on one connection.
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    sessions: u32,
    /// What ends all connections.
    #[arg(long, value_enum, default_value = "drain")]
    how: How,
    /// Messages a second of the flow beside it; 0 sends none.
    #[arg(long, default_value_t = 200, value_name = "PER_SECOND")]
    rate: u32,
    /// Only so many of the sessions, an even number, write and receive [default: 200, or all].
    #[arg(long, value_name = "N")]
    talkers: Option<u32>,
    /// The flow runs so long before the storm and after everybody is back.
    #[arg(long, default_value_t = 3.0, value_name = "S")]
    calm_seconds: f64,
    /// Everybody is back within this, or the run fails.
    #[arg(long, default_value_t = 180, value_name = "S")]
    patience_seconds: u32,
    /// First logins at a time.
    #[arg(long, default_value_t = 384, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    logins: u32,
    /// Who writes when, and who waits how long. The same seed gives the same schedule.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    target: TargetArgs,
}

/// A run.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) sessions: u32,
    pub(crate) how: How,
    pub(crate) rate: u32,
    pub(crate) talkers: u32,
    pub(crate) calm_ns: u64,
    pub(crate) patience_ns: u64,
    pub(crate) logins: u32,
    pub(crate) seed: u64,
    /// Names this run in ids.
    pub(crate) run: u64,
    pub(crate) stop: Stop,
}

impl StormArgs {
    pub(crate) fn settings(&self, run: u64, stop: Stop) -> Result<Settings, String> {
        let talkers = self.talkers.unwrap_or((self.sessions & !1).min(200));
        if talkers < 2 || !talkers.is_multiple_of(2) || talkers > self.sessions {
            return Err("--talkers: an even number, from 2 to --sessions".to_owned());
        }
        if !(0.1..=3_600.0).contains(&self.calm_seconds) {
            return Err("--calm-seconds: a tenth of a second at least, an hour at most".to_owned());
        }
        if self.how != How::Cut && !self.target.spawn {
            return Err(format!("--how {}: only a gateway that is started here is ended: --spawn", self.how.name()));
        }
        Ok(Settings {
            sessions: self.sessions,
            how: self.how,
            rate: self.rate,
            talkers,
            calm_ns: (self.calm_seconds * SECOND_NS as f64) as u64,
            patience_ns: u64::from(self.patience_seconds) * SECOND_NS,
            logins: self.logins,
            seed: self.seed,
            run,
            stop,
        })
    }

    pub(crate) fn run(&self) -> Result<Report, String> {
        let mut run = [0; 8];
        getrandom::fill(&mut run).map_err(|error| format!("no randomness: {error}"))?;
        let settings = self.settings(u64::from_le_bytes(run), stop_on_signals()?)?;
        run::run(&settings, self.target.open(&[])?)
    }
}
