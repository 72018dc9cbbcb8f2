//! The last line of `group` and `broadcast`. Names and units are a contract: `docs/PERFORMANCE.md` explains them.

use super::Settings;
use super::ledger::Gaps;
use super::measured::{Measured, Spread};
use super::run::{load_of, server_us};
use crate::echo::{median, thousandths};
use crate::ledger::{Audit, Counts};
use crate::report::{Cost, percentile_ms};
use serde::Serialize;

/// CPU times of processes come in steps of this.
const CLOCK_US: u64 = 10_000;

/// One server in one round.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    measured: Measured,
    cost: Cost,
}

impl Side {
    pub(crate) fn new(measured: Measured, cost: Cost) -> Self {
        Self { measured, cost }
    }

    fn per_s(&self) -> f64 {
        self.measured.deliveries as f64 / self.measured.window.seconds()
    }

    /// Deliveries for a second of the CPU of the process that makes them.
    fn per_cpu_s(&self) -> Option<f64> {
        // What is too short for the clock of the processes must not look infinitely cheap.
        self.cost.gateway_us.map(|us| self.measured.deliveries as f64 / (us.max(CLOCK_US) as f64 / 1e6))
    }

    fn last_ms(&self) -> f64 {
        percentile_ms(&self.measured.spread.last, 50.0)
    }
}

/// Both servers, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    pub(crate) server: Side,
    pub(crate) baseline: Option<Side>,
}

impl Round {
    fn ratio(&self) -> Option<f64> {
        Some(self.server.per_cpu_s()? / self.baseline.as_ref()?.per_cpu_s()?)
    }

    fn last_ratio(&self) -> Option<f64> {
        let raw = self.baseline.as_ref()?.last_ms();
        (raw > 0.0).then(|| self.server.last_ms() / raw)
    }

    fn line(&self) -> RoundLine {
        let raw = self.baseline.as_ref();
        RoundLine {
            deliveries_per_s: self.server.per_s().round(),
            per_cpu_s: self.server.per_cpu_s().map(f64::round),
            server_cpu_us_per_delivery: each(server_us(&self.server.cost), self.server.measured.deliveries),
            last_ms_p50: self.server.last_ms(),
            baseline_per_s: raw.map(|raw| raw.per_s().round()),
            baseline_per_cpu_s: raw.and_then(Side::per_cpu_s).map(f64::round),
            baseline_last_ms_p50: raw.map(Side::last_ms),
            ratio: self.ratio().map(thousandths),
            last_ratio: self.last_ratio().map(thousandths),
        }
    }
}

impl std::fmt::Display for Round {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let line = self.line();
        write!(f, "{:8.0} deliveries/s  to the last {:.3} ms", line.deliveries_per_s, line.last_ms_p50)?;
        if let (Some(all), Some(per_cpu_s)) = (line.server_cpu_us_per_delivery, line.per_cpu_s) {
            write!(f, "  {all:.3} us each, {per_cpu_s:.0} per CPU second of the gateway")?;
        }
        if let (Some(per_s), Some(per_cpu_s), Some(last)) =
            (line.baseline_per_s, line.baseline_per_cpu_s, line.baseline_last_ms_p50)
        {
            write!(f, "   raw {per_s:.0}/s  to the last {last:.3} ms  {per_cpu_s:.0} per CPU second")?;
        }
        let (Some(ratio), Some(last_ratio)) = (line.ratio, line.last_ratio) else { return Ok(()) };
        write!(f, "   ratio {ratio:.3}, to the last {last_ratio:.2}")
    }
}

/// A round in the report.
#[derive(Clone, Copy, Debug, Serialize)]
struct RoundLine {
    deliveries_per_s: f64,
    per_cpu_s: Option<f64>,
    server_cpu_us_per_delivery: Option<f64>,
    last_ms_p50: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline_per_cpu_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline_last_ms_p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_ratio: Option<f64>,
}

/// What a run found out.
pub(crate) struct Findings<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) frame_bytes: usize,
    pub(crate) gather_seconds: f64,
    pub(crate) rounds: &'a [Round],
    pub(crate) counts: Counts,
    pub(crate) audit: Audit,
    pub(crate) gaps: Gaps,
    pub(crate) history_pages: u64,
    pub(crate) altered: u64,
    pub(crate) disconnected: u64,
}

/// The line.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    deliveries_per_s: f64,
    server_cpu_us_per_delivery: Option<f64>,
    gateway_cpu_us_per_delivery: Option<f64>,
    writer_cpu_us_per_delivery: Option<f64>,
    generator_cpu_us_per_delivery: Option<f64>,
    per_cpu_s: Option<f64>,
    #[serde(flatten)]
    baseline: Option<BaselineLine>,
    messages_per_s: f64,
    offered_per_s: f64,
    first_ms_p50: f64,
    first_ms_p99: f64,
    median_ms_p50: f64,
    median_ms_p99: f64,
    last_ms_p50: f64,
    last_ms_p99: f64,
    last_ms_p999: f64,
    last_ms_max: f64,
    ack_ms_p50: f64,
    ack_ms_p99: f64,
    generator_lag_ms_p99: f64,
    lost: u64,
    duplicated: u64,
    out_of_order: u64,
    gaps: u64,
    gap_deliveries: u64,
    filled: u64,
    history_pages: u64,
    wrong_seq: u64,
    altered: u64,
    misdirected: u64,
    answered_twice: u64,
    seq_collisions: u64,
    seq_holes: u64,
    sent: u64,
    acknowledged: u64,
    delivered: u64,
    refused: u64,
    unanswered: u64,
    disconnected: u64,
    members: u32,
    senders: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<u64>,
    payload: usize,
    frame_bytes: usize,
    driver: String,
    seconds: f64,
    gather_seconds: f64,
    gateway_cores: Option<f64>,
    writer_cores: Option<f64>,
    generator_cores: f64,
    rounds: Vec<RoundLine>,
}

/// What `--baseline` adds: medians of the rounds.
#[derive(Clone, Copy, Debug, Serialize)]
struct BaselineLine {
    baseline_per_cpu_s: f64,
    /// Of the rounds' own ratios, as the following three.
    ratio: f64,
    ratio_min: f64,
    ratio_max: f64,
    last_ratio: f64,
    baseline_per_s: f64,
    baseline_last_ms_p50: f64,
}

fn each(us: Option<u64>, deliveries: u64) -> Option<f64> {
    us.filter(|_| deliveries > 0).map(|us| thousandths(us as f64 / deliveries as f64))
}

impl BaselineLine {
    fn new(rounds: &[Round]) -> Option<Self> {
        let raw = || rounds.iter().filter_map(|round| round.baseline.as_ref());
        let ratios = || rounds.iter().filter_map(Round::ratio);
        Some(Self {
            baseline_per_cpu_s: median(raw().filter_map(Side::per_cpu_s))?.round(),
            ratio: thousandths(median(ratios())?),
            ratio_min: thousandths(ratios().reduce(f64::min)?),
            ratio_max: thousandths(ratios().reduce(f64::max)?),
            last_ratio: thousandths(median(rounds.iter().filter_map(Round::last_ratio))?),
            baseline_per_s: median(raw().map(Side::per_s))?.round(),
            baseline_last_ms_p50: thousandths(median(raw().map(Side::last_ms))?),
        })
    }
}

impl Report {
    pub(crate) fn new(found: Findings<'_>) -> Self {
        let Findings { settings, rounds, counts, audit, gaps, .. } = found;
        let mut spread = Spread::new();
        let (mut deliveries, mut messages, mut offered, mut seconds) = (0, 0, 0, 0.0);
        for Round { server: Side { measured, .. }, .. } in rounds {
            spread.add(&measured.spread);
            deliveries += measured.deliveries;
            messages += measured.messages;
            offered += measured.offered;
            seconds += measured.window.seconds();
        }
        let sum = |pick: &dyn Fn(&Cost) -> Option<u64>| -> Option<u64> {
            rounds.iter().map(|round| pick(&round.server.cost)).sum()
        };
        let (gateway_us, writer_us) = (sum(&|cost| cost.gateway_us), sum(&|cost| cost.writer_us));
        let generator_us = sum(&|cost| Some(cost.generator_us));
        let rate = |count: u64| thousandths(count as f64 / seconds);
        let cores = |us: u64| thousandths(us as f64 / 1e6 / seconds);
        let (window, open_rate) = load_of(settings);
        Self {
            deliveries_per_s: rate(deliveries),
            server_cpu_us_per_delivery: each(sum(&server_us), deliveries),
            gateway_cpu_us_per_delivery: each(gateway_us, deliveries),
            writer_cpu_us_per_delivery: each(writer_us, deliveries),
            generator_cpu_us_per_delivery: each(generator_us, deliveries),
            per_cpu_s: median(rounds.iter().filter_map(|round| round.server.per_cpu_s())).map(f64::round),
            baseline: BaselineLine::new(rounds),
            messages_per_s: rate(messages),
            offered_per_s: rate(offered),
            first_ms_p50: percentile_ms(&spread.first, 50.0),
            first_ms_p99: percentile_ms(&spread.first, 99.0),
            median_ms_p50: percentile_ms(&spread.median, 50.0),
            median_ms_p99: percentile_ms(&spread.median, 99.0),
            last_ms_p50: percentile_ms(&spread.last, 50.0),
            last_ms_p99: percentile_ms(&spread.last, 99.0),
            last_ms_p999: percentile_ms(&spread.last, 99.9),
            last_ms_max: thousandths(spread.last.max() as f64 / 1_000.0),
            ack_ms_p50: percentile_ms(&spread.ack, 50.0),
            ack_ms_p99: percentile_ms(&spread.ack, 99.0),
            generator_lag_ms_p99: percentile_ms(&spread.lag, 99.0),
            lost: audit.lost,
            duplicated: counts.duplicated,
            out_of_order: counts.out_of_order,
            gaps: gaps.gaps,
            gap_deliveries: gaps.events,
            filled: gaps.filled,
            history_pages: found.history_pages,
            wrong_seq: counts.wrong_seq,
            altered: found.altered,
            misdirected: counts.misdirected,
            answered_twice: counts.answered_twice,
            seq_collisions: audit.seq_collisions,
            seq_holes: audit.seq_holes,
            sent: counts.sent,
            acknowledged: counts.acked,
            delivered: counts.delivered,
            refused: counts.refused,
            unanswered: audit.unanswered,
            disconnected: found.disconnected,
            members: settings.members,
            senders: settings.senders,
            window,
            rate: open_rate,
            payload: settings.payload_bytes,
            frame_bytes: found.frame_bytes,
            driver: settings.driver.clone(),
            seconds: thousandths(seconds),
            gather_seconds: thousandths(found.gather_seconds),
            gateway_cores: gateway_us.map(cores),
            writer_cores: writer_us.map(cores),
            generator_cores: generator_us.map(cores).unwrap_or_default(),
            rounds: rounds.iter().map(Round::line).collect(),
        }
    }

    /// The broken promises, in words; empty when all were kept. Gaps that the history filled are none.
    pub(crate) fn broken(&self) -> Vec<String> {
        let counts = [
            ("deliveries of acknowledged messages lost", self.lost),
            ("events seen twice by a member", self.duplicated),
            ("events out of order", self.out_of_order),
            ("messages whose acknowledgement and events differ in seq", self.wrong_seq),
            ("events that are not what was sent", self.altered),
            ("frames at the wrong member", self.misdirected),
            ("commands answered twice", self.answered_twice),
            ("places given twice", self.seq_collisions),
            ("members disconnected by the server", self.disconnected),
        ];
        counts.iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{count} {what}")).collect()
    }
}
