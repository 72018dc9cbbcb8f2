//! The last line of a run of `sync`. Names and units are a contract: `docs/PERFORMANCE.md` explains them.

use super::fleet::{Cast, Tally};
use crate::curve::{Point, latency_curve};
use crate::echo::thousandths;
use crate::report::{Cost, percentile_ms};
use serde::Serialize;
use std::collections::BTreeMap;

/// A moment of the return.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Sample {
    pub(crate) s: f64,
    /// Devices that have caught up.
    pub(crate) caught_up: u32,
    pub(crate) entries_per_s: f64,
    pub(crate) gateway_rss_mb: Option<f64>,
}

/// The line.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    entries_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_cpu_us_per_entry: Option<f64>,
    gateway_cpu_us_per_entry: Option<f64>,
    writer_cpu_us_per_entry: Option<f64>,
    generator_cpu_us_per_entry: f64,
    caught_up_ms_p50: f64,
    caught_up_ms_p99: f64,
    caught_up_ms_max: f64,
    seconds: f64,
    devices: u32,
    missed: u32,
    window: u32,
    writers: u32,
    truncated: u32,
    streamed: u64,
    filled: u64,
    lost: u64,
    holes: u64,
    doubled: u64,
    refused: u64,
    refused_by: BTreeMap<String, u64>,
    written_per_s: f64,
    driver: String,
    caught_up_curve: Vec<Point>,
    curve: Vec<Sample>,
}

/// What a run found out beside its tally.
#[derive(Debug)]
pub(crate) struct Findings {
    pub(crate) driver: String,
    /// Of the return.
    pub(crate) seconds: f64,
    pub(crate) cost: Cost,
    /// Of the writing.
    pub(crate) written_per_s: f64,
    pub(crate) curve: Vec<Sample>,
}

impl Report {
    pub(crate) fn new(cast: Cast, tally: &Tally, found: Findings) -> Self {
        let entries = tally.streamed + tally.filled;
        let each = |us: u64| thousandths(us as f64 / entries.max(1) as f64);
        let Cost { gateway_us, writer_us, generator_us, .. } = found.cost;
        Self {
            entries_per_s: (entries as f64 / found.seconds).round(),
            server_cpu_us_per_entry: gateway_us.map(|us| each(us + writer_us.unwrap_or_default())),
            gateway_cpu_us_per_entry: gateway_us.map(each),
            writer_cpu_us_per_entry: writer_us.map(each),
            generator_cpu_us_per_entry: each(generator_us),
            caught_up_ms_p50: percentile_ms(&tally.caught_up_us, 50.0),
            caught_up_ms_p99: percentile_ms(&tally.caught_up_us, 99.0),
            caught_up_ms_max: percentile_ms(&tally.caught_up_us, 100.0),
            seconds: thousandths(found.seconds),
            devices: cast.devices,
            missed: cast.missed,
            window: cast.window,
            writers: cast.writers,
            truncated: tally.truncated,
            streamed: tally.streamed,
            filled: tally.filled,
            lost: tally.lost,
            holes: tally.holes,
            doubled: tally.doubled,
            refused: tally.refused.values().sum(),
            refused_by: tally.refused.clone(),
            written_per_s: found.written_per_s.round(),
            driver: found.driver,
            caught_up_curve: latency_curve(&tally.caught_up_us),
            curve: found.curve,
        }
    }

    /// Broken promises; empty when all were kept.
    pub(crate) fn broken(&self) -> Vec<String> {
        let counts = [
            (self.lost, "entries had not come when the server said that all had"),
            (self.holes, "entries are missing before later ones"),
            (self.doubled, "entries came twice"),
        ];
        let broken = counts.into_iter().filter(|(count, _)| *count > 0);
        broken.map(|(count, what)| format!("{count} {what}")).collect()
    }
}
