//! What a run of `echo` found out. Names and units are a contract: `docs/PERFORMANCE.md` explains them.

use super::Load;
use crate::report::percentile_ms;
use hdrhistogram::Histogram;
use serde::Serialize;

/// CPU times of processes come in steps of this.
const CLOCK_US: u64 = 10_000;
/// A server under load that got less of a core than this was kept from it by others.
const CORES_MIN: f64 = 0.05;

/// One server in one round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Side {
    per_s: f64,
    per_cpu_s: f64,
    cpu_us_each: f64,
    ms_p50: f64,
    ms_p99: f64,
    /// CPU by time.
    server_cores: f64,
}

impl Side {
    pub(crate) fn new(echoes: u64, elapsed_ns: u64, cpu_us: u64, latency_us: &Histogram<u64>) -> Self {
        let server_cores = thousandths(cpu_us as f64 * 1_000.0 / elapsed_ns as f64);
        // What is too short for the clock of the processes must not look infinitely cheap.
        let cpu_us = cpu_us.max(CLOCK_US) as f64;
        Self {
            per_s: (echoes as f64 / (elapsed_ns as f64 / 1e9)).round(),
            per_cpu_s: (echoes as f64 / (cpu_us / 1e6)).round(),
            cpu_us_each: (cpu_us / echoes.max(1) as f64 * 1_000.0).round() / 1_000.0,
            ms_p50: percentile_ms(latency_us, 50.0),
            ms_p99: percentile_ms(latency_us, 99.0),
            server_cores,
        }
    }
}

/// Both servers, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Round {
    pub(crate) server: Side,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) baseline: Option<Side>,
}

impl Round {
    fn ratio(&self) -> Option<f64> {
        self.baseline.map(|baseline| self.server.per_cpu_s / baseline.per_cpu_s)
    }
}

impl std::fmt::Display for Round {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Side { per_s, per_cpu_s, cpu_us_each, .. } = self.server;
        write!(f, "{per_s:8.0}/s  {per_cpu_s:8.0} per CPU second ({cpu_us_each:.3} us each)")?;
        let (Some(baseline), Some(ratio)) = (self.baseline, self.ratio()) else { return Ok(()) };
        write!(f, "   raw {:8.0}/s  {:8.0} per CPU second   ratio {ratio:.3}", baseline.per_s, baseline.per_cpu_s)
    }
}

/// The last line.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    per_cpu_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline_per_cpu_s: Option<f64>,
    /// The median of the rounds' own ratios.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio_min: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio_max: Option<f64>,
    per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline_per_s: Option<f64>,
    driver: String,
    connections: u32,
    payload: usize,
    seconds: f64,
    rounds: Vec<Round>,
}

/// The middle one; of two the mean.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// Three decimals.
pub(crate) fn thousandths(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

impl Report {
    pub(crate) fn new(load: Load, driver: String, rounds: &[Round]) -> Self {
        let ratios = || rounds.iter().filter_map(Round::ratio);
        let raw = || rounds.iter().filter_map(|round| round.baseline);
        let servers = || rounds.iter().map(|round| round.server);
        Self {
            per_cpu_s: median(servers().map(|side| side.per_cpu_s)).unwrap_or_default(),
            baseline_per_cpu_s: median(raw().map(|side| side.per_cpu_s)),
            ratio: median(ratios()).map(thousandths),
            ratio_min: ratios().reduce(f64::min).map(thousandths),
            ratio_max: ratios().reduce(f64::max).map(thousandths),
            per_s: median(servers().map(|side| side.per_s)).unwrap_or_default(),
            baseline_per_s: median(raw().map(|side| side.per_s)),
            driver,
            connections: load.connections,
            payload: load.payload_bytes,
            seconds: load.measured_ns as f64 / 1e9,
            rounds: rounds.to_vec(),
        }
    }

    /// Why the figures mean nothing; empty when they mean something.
    pub(crate) fn broken(&self) -> Vec<String> {
        let sides = |round: &Round| [Some(round.server), round.baseline];
        let starved = self.rounds.iter().flat_map(sides).flatten().filter(|side| side.server_cores < CORES_MIN).count();
        let what = format!("{starved} measurements in which the server got hardly any CPU: the machine is not quiet");
        if starved > 0 { vec![what] } else { Vec::new() }
    }
}
