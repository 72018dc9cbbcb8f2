//! Latencies and counts of the measured window, and the one line of JSON at the end.

use crate::curve::{Point, latency_curve};
use crate::ledger::{Audit, Counts};
use crate::scrape::Requests;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;

/// A run longer than this per message counts as this long.
const LATENCY_US_MAX: u64 = 600_000_000;

pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("the bounds are valid")
}

/// The percentile in milliseconds; 0 of nothing.
pub(crate) fn percentile_ms(histogram: &Histogram<u64>, percentile: f64) -> f64 {
    round(histogram.value_at_percentile(percentile) as f64 / 1_000.0)
}

/// Three decimals: below a microsecond there is only noise.
fn round(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

/// The measured window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
}

impl Window {
    pub(crate) fn contains(&self, at_ns: u64) -> bool {
        (self.start_ns..self.end_ns).contains(&at_ns)
    }

    /// Which third a moment inside lies in.
    fn third(&self, at_ns: u64) -> usize {
        ((at_ns - self.start_ns) * 3 / (self.end_ns - self.start_ns)) as usize
    }

    pub(crate) fn seconds(&self) -> f64 {
        (self.end_ns - self.start_ns) as f64 / 1e9
    }
}

/// What is measured while the run goes on. A message belongs to the window by the time at which it was to be sent.
#[derive(Debug)]
pub(crate) struct Measures {
    pub(crate) window: Window,
    thirds: [Histogram<u64>; 3],
    ack: Histogram<u64>,
    /// How late the generator itself wrote.
    lag: Histogram<u64>,
    /// Messages to be sent within the window.
    pub(crate) offered: u64,
    /// Messages whose second half (acknowledgement or delivery) arrived within the window.
    pub(crate) completed: u64,
    /// Since the last progress line.
    pub(crate) recent: Histogram<u64>,
}

pub(crate) fn micros(from_ns: u64, to_ns: u64) -> u64 {
    (to_ns.saturating_sub(from_ns) / 1_000).max(1)
}

impl Measures {
    pub(crate) fn new(window: Window) -> Self {
        Self {
            window,
            thirds: [histogram(), histogram(), histogram()],
            ack: histogram(),
            lag: histogram(),
            offered: 0,
            completed: 0,
            recent: histogram(),
        }
    }

    pub(crate) fn sent(&mut self, scheduled_ns: u64, now_ns: u64) {
        if self.window.contains(scheduled_ns) {
            self.offered += 1;
            self.lag.saturating_record(micros(scheduled_ns, now_ns));
        }
    }

    pub(crate) fn acked(&mut self, scheduled_ns: u64, now_ns: u64) {
        if self.window.contains(scheduled_ns) {
            self.ack.saturating_record(micros(scheduled_ns, now_ns));
        }
    }

    pub(crate) fn delivered(&mut self, scheduled_ns: u64, now_ns: u64) {
        let latency = micros(scheduled_ns, now_ns);
        self.recent.saturating_record(latency);
        if self.window.contains(scheduled_ns) {
            self.thirds[self.window.third(scheduled_ns)].saturating_record(latency);
        }
    }

    pub(crate) fn complete(&mut self, now_ns: u64) {
        self.completed += u64::from(self.window.contains(now_ns));
    }

    /// From when a message was to be sent to its delivery.
    pub(crate) fn latency(&self) -> Histogram<u64> {
        let mut latency = histogram();
        for third in &self.thirds {
            latency.add(third).expect("the bounds are the same");
        }
        latency
    }

    /// From when a message was to be sent to its acknowledgement.
    pub(crate) fn ack(&self) -> &Histogram<u64> {
        &self.ack
    }

    /// How late the generator wrote.
    pub(crate) fn lag(&self) -> &Histogram<u64> {
        &self.lag
    }
}

/// CPU time of the window, microseconds, and its requests; `None` where it is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    pub(crate) gateway_us: Option<u64>,
    pub(crate) writer_us: Option<u64>,
    pub(crate) generator_us: u64,
    pub(crate) cql: Option<Requests>,
}

/// The last line. Names and units are a contract: `docs/SPECIFICATION.md` quotes them.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    offered_per_s: f64,
    messages_per_s: f64,
    latency_ms_p50: f64,
    latency_ms_p99: f64,
    latency_ms_p999: f64,
    ack_ms_p50: f64,
    ack_ms_p99: f64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    gateway_cpu_us_per_message: Option<f64>,
    writer_cpu_us_per_message: Option<f64>,
    generator_cpu_us_per_message: Option<f64>,
    driver: String,
    latency_ms_p99_first_third: f64,
    latency_ms_p99_last_third: f64,
    latency_ms_max: f64,
    /// How late the generator itself wrote: above a few milliseconds it is the bottleneck.
    generator_lag_ms_p99: f64,
    seconds: f64,
    connections: u32,
    sent: u64,
    acknowledged: u64,
    delivered: u64,
    refused: u64,
    unanswered: u64,
    pub(crate) out_of_order: u64,
    pub(crate) wrong_seq: u64,
    pub(crate) misdirected: u64,
    pub(crate) answered_twice: u64,
    pub(crate) seq_collisions: u64,
    pub(crate) seq_holes: u64,
    pub(crate) disconnected: u64,
    delivered_marks: u64,
    receipts: u64,
    /// Acknowledged messages that the history lacks or has elsewhere; absent without `--verify-history`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) history_missing: Option<u64>,
    /// Requests to the cluster but those for the lease, marks and all, per message; absent without a cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    cql_requests_per_message: Option<f64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    cql_requests_per_message_by_kind: BTreeMap<String, f64>,
    latency_curve: Vec<Point>,
    ack_curve: Vec<Point>,
}

/// Counts that are neither the ledger's nor latencies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extra {
    pub(crate) driver: String,
    pub(crate) connections: u32,
    pub(crate) disconnected: u64,
    pub(crate) delivered_marks: u64,
    pub(crate) receipts: u64,
    pub(crate) history_missing: Option<u64>,
}

impl Report {
    pub(crate) fn new(measures: &Measures, counts: Counts, audit: Audit, cost: Cost, extra: Extra) -> Self {
        let seconds = measures.window.seconds();
        let latency = measures.latency();
        let each = |sum: u64| (measures.completed > 0).then(|| round(sum as f64 / measures.completed as f64));
        let cql = cost.cql.unwrap_or_default();
        let by_kind = cql.iter().filter_map(|(kind, count)| Some((kind.clone(), each(*count)?)));
        Self {
            cql_requests_per_message: each(cql.values().sum()).filter(|_| !cql.is_empty()),
            cql_requests_per_message_by_kind: by_kind.collect(),
            latency_curve: latency_curve(&latency),
            ack_curve: latency_curve(&measures.ack),
            offered_per_s: round(measures.offered as f64 / seconds),
            messages_per_s: round(measures.completed as f64 / seconds),
            latency_ms_p50: percentile_ms(&latency, 50.0),
            latency_ms_p99: percentile_ms(&latency, 99.0),
            latency_ms_p999: percentile_ms(&latency, 99.9),
            ack_ms_p50: percentile_ms(&measures.ack, 50.0),
            ack_ms_p99: percentile_ms(&measures.ack, 99.0),
            lost: audit.lost,
            duplicated: counts.duplicated,
            gateway_cpu_us_per_message: cost.gateway_us.and_then(each),
            writer_cpu_us_per_message: cost.writer_us.and_then(each),
            generator_cpu_us_per_message: each(cost.generator_us),
            driver: extra.driver,
            latency_ms_p99_first_third: percentile_ms(&measures.thirds[0], 99.0),
            latency_ms_p99_last_third: percentile_ms(&measures.thirds[2], 99.0),
            latency_ms_max: round(latency.max() as f64 / 1_000.0),
            generator_lag_ms_p99: percentile_ms(&measures.lag, 99.0),
            seconds: round(seconds),
            connections: extra.connections,
            sent: counts.sent,
            acknowledged: counts.acked,
            delivered: counts.delivered,
            refused: counts.refused,
            unanswered: audit.unanswered,
            out_of_order: counts.out_of_order,
            wrong_seq: counts.wrong_seq,
            misdirected: counts.misdirected,
            answered_twice: counts.answered_twice,
            seq_collisions: audit.seq_collisions,
            seq_holes: audit.seq_holes,
            disconnected: extra.disconnected,
            delivered_marks: extra.delivered_marks,
            receipts: extra.receipts,
            history_missing: extra.history_missing,
        }
    }

    /// The broken promises, in words; empty when all were kept.
    pub(crate) fn broken(&self) -> Vec<String> {
        let counts = [
            ("acknowledged messages lost", self.lost),
            ("events seen twice by a device", self.duplicated),
            ("events out of order", self.out_of_order),
            ("messages whose acknowledgement and event differ in seq", self.wrong_seq),
            ("frames at the wrong device", self.misdirected),
            ("commands answered twice", self.answered_twice),
            ("places given twice", self.seq_collisions),
            ("connections ended by the server", self.disconnected),
            ("acknowledged messages missing in the history", self.history_missing.unwrap_or(0)),
        ];
        counts.iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{count} {what}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window { start_ns: 1_000_000_000, end_ns: 4_000_000_000 };

    #[test]
    fn the_window_takes_a_message_by_its_scheduled_time() {
        let mut measures = Measures::new(WINDOW);
        let ms = 1_000_000;
        // Scheduled in the warm-up, received in the window: no latency, but work that was done in it.
        measures.sent(999 * ms, 1_001 * ms);
        measures.delivered(999 * ms, 1_200 * ms);
        measures.complete(1_200 * ms);
        // One in each third; the last one arrives after the end.
        for (at, latency) in [(1_000, 10), (2_500, 20), (3_999, 30)] {
            measures.sent(at * ms, at * ms);
            measures.acked(at * ms, (at + 5) * ms);
            measures.delivered(at * ms, (at + latency) * ms);
            measures.complete((at + latency) * ms);
        }
        measures.sent(4_000 * ms, 4_000 * ms);
        let counts = Counts { sent: 5, ..Counts::default() };
        let cql = Some([("write_events".to_owned(), 3), ("read_commands".to_owned(), 6)].into());
        let cost = Cost { gateway_us: Some(30), writer_us: None, generator_us: 6, cql };
        let report = Report::new(&measures, counts, Audit::default(), cost, Extra::default());
        assert_eq!((report.offered_per_s, report.messages_per_s), (1.0, 1.0));
        assert_eq!((report.gateway_cpu_us_per_message, report.writer_cpu_us_per_message), (Some(10.0), None));
        assert_eq!(report.cql_requests_per_message, Some(3.0));
        assert_eq!(report.cql_requests_per_message_by_kind["read_commands"], 2.0);
        let near = |value: f64, expected: f64| (value - expected).abs() < 0.05;
        assert!(near(report.latency_ms_p99_first_third, 10.0) && near(report.latency_ms_p99_last_third, 30.0));
        assert!(near(report.latency_ms_p50, 20.0) && near(report.ack_ms_p50, 5.0));
        assert!(report.broken().is_empty());
    }

    #[test]
    fn the_line_has_every_promised_name() {
        let measures = Measures::new(WINDOW);
        let audit = Audit { lost: 2, ..Audit::default() };
        let report = Report::new(&measures, Counts::default(), audit, Cost::default(), Extra::default());
        let line = serde_json::to_string(&report).unwrap();
        assert!(!line.contains('\n'));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        for name in [
            "offered_per_s",
            "messages_per_s",
            "latency_ms_p50",
            "latency_ms_p99",
            "latency_ms_p999",
            "ack_ms_p50",
            "ack_ms_p99",
            "lost",
            "duplicated",
            "gateway_cpu_us_per_message",
            "writer_cpu_us_per_message",
            "generator_cpu_us_per_message",
            "driver",
        ] {
            assert!(value.get(name).is_some(), "{name}");
        }
        assert_eq!(report.broken(), ["2 acknowledged messages lost"]);
    }
}
