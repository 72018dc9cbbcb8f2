//! The scenario `sync`: devices that were away come back with their mark and what they missed, some of them so late
//! that they start over. How fast everybody has caught up, and what an entry costs.

mod fleet;
mod report;
mod run;
#[cfg(test)]
mod tests;

use crate::net::Stop;
use crate::stop_on_signals;
use crate::target::TargetArgs;
use clap::Args;
use fleet::Cast;
pub(crate) use report::Report;

/// Shown with --help.
pub(crate) const EXAMPLES: &str = "\
Examples:
  1,000 devices missed 100 entries each, and come back, 256 at a time
    cargo run --release -p perf -- sync --spawn
  A tenth of them come back without a mark: they list their chats and fill from history
    cargo run --release -p perf -- sync --spawn --devices 2000 --missed 200 --truncated 200
  One device with a long backlog, page by page
    cargo run --release -p perf -- sync --spawn --devices 1 --missed 9000 --html sync.html

The last line on stdout is one JSON object; the exit code is 0 when every device got each entry once and in order.
docs/PERFORMANCE.md explains every field.";

#[derive(Args)]
pub(crate) struct SyncArgs {
    /// Devices that were away, each of a user of its own.
    #[arg(long, default_value_t = 1_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 19))]
    devices: u32,
    /// Entries that each missed.
    #[arg(long, default_value_t = 100, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    missed: u32,
    /// Of the devices, so many come back without a mark, are told that their backlog is truncated, and fill from
    /// history. (So are all, if --missed is above the gateway's session.sync_backlog_max of 10,000.)
    #[arg(long, default_value_t = 0, value_name = "N")]
    truncated: u32,
    /// Devices on their way back at a time, from their connect until they have caught up.
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=900))]
    window: u32,
    /// Users who write what is missed [default: one for each ten devices].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    writers: Option<u32>,
    /// Messages of a writer without an answer.
    #[arg(long, default_value_t = 64, value_name = "MESSAGES", value_parser = clap::value_parser!(u32).range(1..=256))]
    in_flight: u32,
    /// Bytes of text in a message.
    #[arg(long, default_value_t = 128, value_name = "BYTES")]
    payload: usize,
    #[command(flatten)]
    target: TargetArgs,
}

/// A run.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) cast: Cast,
    pub(crate) payload_bytes: usize,
    /// Names this run in ids.
    pub(crate) run: u64,
    pub(crate) stop: Stop,
}

impl SyncArgs {
    pub(crate) fn settings(&self, run: u64, stop: Stop) -> Result<Settings, String> {
        let writers = self.writers.unwrap_or(self.devices.div_ceil(10));
        if self.truncated > self.devices || writers > self.devices {
            return Err("--truncated and --writers: at most as many as --devices".to_owned());
        }
        let (devices, missed, truncated) = (self.devices, self.missed, self.truncated);
        let cast = Cast { devices, writers, missed, truncated, window: self.window, in_flight: self.in_flight };
        Ok(Settings { cast, payload_bytes: self.payload, run, stop })
    }

    pub(crate) fn run(&self) -> Result<Report, String> {
        let mut run = [0; 8];
        getrandom::fill(&mut run).map_err(|error| format!("no randomness: {error}"))?;
        let settings = self.settings(u64::from_le_bytes(run), stop_on_signals()?)?;
        run::run(&settings, &self.target.open(&[])?)
    }
}
