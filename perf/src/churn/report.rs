//! What a run of `churn` found out. Names and units are a contract: `docs/PERFORMANCE.md` explains them.

use super::client::{Pace, Way};
use crate::baseline_handshake::Steps;
use crate::curve::{Point, latency_curve};
use crate::echo::{median, thousandths};
use crate::report::{Cost, histogram, percentile_ms};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;

/// CPU times of processes come in steps of this.
const CLOCK_US: u64 = 10_000;
/// A server under load that got less of a core than this was kept from it by others.
const CORES_MIN: f64 = 0.05;

/// What was counted of one server in one round.
#[derive(Debug)]
pub(crate) struct Count {
    pub(crate) way: Way,
    pub(crate) done: u64,
    pub(crate) elapsed_ns: u64,
    /// The server that is measured is the gateway of it.
    pub(crate) cost: Cost,
    pub(crate) latency_us: Histogram<u64>,
    pub(crate) refused: BTreeMap<String, u64>,
    pub(crate) steps: Steps,
}

/// One server in one round, as it is told.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Side {
    way: &'static str,
    per_s: f64,
    per_cpu_s: f64,
    cpu_us_each: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    writer_cpu_us_each: Option<f64>,
    generator_cpu_us_each: f64,
    ms_p50: f64,
    ms_p99: f64,
    server_cores: f64,
    refused: u64,
}

impl Side {
    fn new(count: &Count) -> Self {
        let seconds = count.elapsed_ns as f64 / 1e9;
        let done = count.done.max(1) as f64;
        // What is too short for the clock of the processes must not look infinitely cheap.
        let spent_us = count.cost.gateway_us.unwrap_or_default();
        let cpu_us = spent_us.max(CLOCK_US) as f64;
        let each = |us: u64| thousandths(us as f64 / done);
        Self {
            way: match count.way {
                Way::Resume => "resume",
                Way::Fresh => "fresh",
                Way::Raw(_) => "raw",
            },
            per_s: (count.done as f64 / seconds).round(),
            per_cpu_s: (count.done as f64 / (cpu_us / 1e6)).round(),
            cpu_us_each: thousandths(cpu_us / done),
            writer_cpu_us_each: count.cost.writer_us.map(each),
            generator_cpu_us_each: each(count.cost.generator_us),
            ms_p50: percentile_ms(&count.latency_us, 50.0),
            ms_p99: percentile_ms(&count.latency_us, 99.0),
            server_cores: thousandths(spent_us as f64 / 1e6 / seconds),
            refused: count.refused.values().sum(),
        }
    }
}

/// What the gateway is compared with.
#[derive(Debug)]
pub(crate) enum Baseline {
    /// Accept, two reads, two writes, close.
    Raw(Count),
    /// Resumes of the same gateway, and the EdDSA verification that a fresh token costs on top.
    Resume { count: Count, verify: super::verify::Cost },
}

/// All of one round.
#[derive(Debug)]
pub(crate) struct Counted {
    pub(crate) server: Count,
    pub(crate) baseline: Option<Baseline>,
}

/// One round, as it is told.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Round {
    server: Side,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<Side>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eddsa_cpu_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_cpu_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline_per_cpu_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
}

impl Round {
    pub(crate) fn new(counted: &Counted) -> Self {
        let server = Side::new(&counted.server);
        let (baseline, verify) = match &counted.baseline {
            None => (None, None),
            Some(Baseline::Raw(count)) => (Some(Side::new(count)), None),
            Some(Baseline::Resume { count, verify }) => (Some(Side::new(count)), Some(*verify)),
        };
        let on_top_us = verify.map_or(0.0, |cost| cost.eddsa_us);
        let baseline_per_cpu_s = baseline.as_ref().map(|side| (1e6 / (side.cpu_us_each + on_top_us)).round());
        Self {
            ratio: baseline_per_cpu_s.map(|baseline| thousandths(server.per_cpu_s / baseline)),
            server,
            baseline,
            eddsa_cpu_us: verify.map(|cost| thousandths(cost.eddsa_us)),
            token_cpu_us: verify.map(|cost| thousandths(cost.token_us)),
            baseline_per_cpu_s,
        }
    }
}

impl std::fmt::Display for Round {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Side { way, per_s, cpu_us_each, .. } = &self.server;
        write!(f, "{way} {per_s:7.0}/s, {cpu_us_each:.1} us of CPU each")?;
        if let Some(Side { way, per_s, cpu_us_each, .. }) = &self.baseline {
            write!(f, "   {way} {per_s:7.0}/s, {cpu_us_each:.1} us")?;
        }
        self.eddsa_cpu_us.map_or(Ok(()), |us| write!(f, ", EdDSA {us:.1} us"))?;
        self.ratio.map_or(Ok(()), |ratio| write!(f, "   ratio {ratio:.3}"))
    }
}

/// The last line.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    way: &'static str,
    per_s: f64,
    per_cpu_s: f64,
    gateway_cpu_us_each: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    writer_cpu_us_each: Option<f64>,
    generator_cpu_us_each: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline_per_cpu_s: Option<f64>,
    /// The median of the rounds' own ratios.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio_min: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio_max: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resume_cpu_us_each: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eddsa_cpu_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_cpu_us: Option<f64>,
    latency_ms_p50: f64,
    latency_ms_p99: f64,
    latency_ms_p999: f64,
    latency_ms_max: f64,
    refused: u64,
    refused_by: BTreeMap<String, u64>,
    connections: u64,
    driver: String,
    devices: u32,
    window: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<u32>,
    seconds: f64,
    bytes_asked: [usize; 2],
    bytes_answered: [usize; 2],
    latency_curve: Vec<Point>,
    rounds: Vec<Round>,
}

impl Report {
    pub(crate) fn new(counted: &[Counted], pace: Pace, driver: String, seconds: f64) -> Self {
        let rounds: Vec<Round> = counted.iter().map(Round::new).collect();
        let of = |value: fn(&Round) -> Option<f64>| median(rounds.iter().filter_map(value));
        let ratios = || rounds.iter().filter_map(|round| round.ratio);
        let (mut latency, mut refused_by) = (histogram(), BTreeMap::<String, u64>::new());
        for Counted { server, .. } in counted {
            latency.add(&server.latency_us).expect("the bounds are the same");
            for (why, count) in &server.refused {
                *refused_by.entry(why.clone()).or_default() += count;
            }
        }
        let fresh = rounds.iter().any(|round| round.eddsa_cpu_us.is_some());
        let steps = counted.last().map_or(Steps { asks: [0; 2], answers: [0; 2] }, |last| last.server.steps);
        Self {
            way: rounds.last().map_or("", |round| round.server.way),
            per_s: of(|round| Some(round.server.per_s)).unwrap_or_default(),
            per_cpu_s: of(|round| Some(round.server.per_cpu_s)).unwrap_or_default(),
            gateway_cpu_us_each: of(|round| Some(round.server.cpu_us_each)).unwrap_or_default(),
            writer_cpu_us_each: of(|round| round.server.writer_cpu_us_each),
            generator_cpu_us_each: of(|round| Some(round.server.generator_cpu_us_each)).unwrap_or_default(),
            baseline_per_cpu_s: of(|round| round.baseline_per_cpu_s),
            ratio: median(ratios()).map(thousandths),
            ratio_min: ratios().reduce(f64::min),
            ratio_max: ratios().reduce(f64::max),
            baseline_per_s: of(|round| Some(round.baseline.as_ref()?.per_s)),
            resume_cpu_us_each: of(|round| Some(round.baseline.as_ref()?.cpu_us_each)).filter(|_| fresh),
            eddsa_cpu_us: of(|round| round.eddsa_cpu_us),
            token_cpu_us: of(|round| round.token_cpu_us),
            latency_ms_p50: percentile_ms(&latency, 50.0),
            latency_ms_p99: percentile_ms(&latency, 99.0),
            latency_ms_p999: percentile_ms(&latency, 99.9),
            latency_ms_max: percentile_ms(&latency, 100.0),
            refused: refused_by.values().sum(),
            refused_by,
            connections: counted.iter().map(|it| it.server.done).sum(),
            driver,
            devices: pace.devices,
            window: pace.window,
            rate: pace.rate,
            seconds,
            bytes_asked: steps.asks,
            bytes_answered: steps.answers,
            latency_curve: latency_curve(&latency),
            rounds,
        }
    }

    /// Broken promises, and why the figures mean nothing; empty when all is well.
    pub(crate) fn broken(&self) -> Vec<String> {
        let sides = self.rounds.iter().flat_map(|round| [Some(&round.server), round.baseline.as_ref()]).flatten();
        let starved = sides.filter(|side| side.server_cores < CORES_MIN).count();
        let mut broken = Vec::new();
        // At a low rate a server needs no more.
        if starved > 0 && self.rate.is_none() {
            let what = "measurements in which the server got hardly any CPU: the machine is not quiet";
            broken.push(format!("{starved} {what}"));
        }
        if self.refused > 0 {
            broken.push(format!("{} attempts were refused: {:?}", self.refused, self.refused_by));
        }
        broken
    }
}
