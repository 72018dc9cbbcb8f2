//! The last line of a run of `idle`. Names and units are a contract: `docs/PERFORMANCE.md` explains them.

use super::fleet::Tally;
use super::memory::{Kernel, KernelMb, Sample, megabytes};
use crate::curve::{Point, latency_curve};
use crate::ledger::{Audit, Counts};
use crate::report::{Cost, Measures, percentile_ms};
use serde::Serialize;
use std::collections::BTreeMap;

/// What a run found out.
#[derive(Debug)]
pub(crate) struct Findings<'a> {
    pub(crate) connections: u32,
    pub(crate) tally: &'a Tally,
    /// Seated when the hold ended.
    pub(crate) sessions: u32,
    pub(crate) logins_refused: u64,
    pub(crate) login_seconds: f64,
    pub(crate) login_cost: Cost,
    pub(crate) hold_seconds: f64,
    pub(crate) hold_cost: Cost,
    pub(crate) measures: &'a Measures,
    pub(crate) counts: Counts,
    pub(crate) audit: Audit,
    pub(crate) delivered_marks: u64,
    pub(crate) memory: Memory,
    pub(crate) driver: String,
}

/// Bytes, at the moments that count.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    /// Before the first connect.
    pub(crate) gateway_start: Option<u64>,
    /// The most while all sessions were held.
    pub(crate) gateway_most: Option<u64>,
    pub(crate) writer_most: Option<u64>,
    pub(crate) generator_most: u64,
    /// At the end of the hold, above what it was before the first connect.
    pub(crate) kernel: Kernel,
    pub(crate) curve: Vec<Sample>,
}

/// The line.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    sessions: u32,
    gateway_rss_mb: Option<f64>,
    kernel_mb: f64,
    heartbeat_timeouts: u64,
    logins_per_s: f64,
    messages_per_s: f64,
    latency_ms_p50: f64,
    latency_ms_p99: f64,
    lost: u64,
    connections: u32,
    driver: String,
    seconds: f64,
    disconnected: u64,
    ended: BTreeMap<String, u64>,
    gateway_rss_mb_start: Option<f64>,
    gateway_bytes_per_session: Option<f64>,
    writer_rss_mb: Option<f64>,
    generator_rss_mb: f64,
    kernel_parts_mb: KernelMb,
    kernel_bytes_per_session: f64,
    login_seconds: f64,
    logins_refused: u64,
    gateway_cpu_us_per_login: Option<f64>,
    writer_cpu_us_per_login: Option<f64>,
    generator_cpu_us_per_login: f64,
    gateway_cores: Option<f64>,
    writer_cores: Option<f64>,
    generator_cores: f64,
    heartbeats: u64,
    heartbeats_unanswered: u64,
    heartbeat_ms_p50: f64,
    heartbeat_ms_p99: f64,
    offered_per_s: f64,
    latency_ms_p999: f64,
    latency_ms_max: f64,
    ack_ms_p50: f64,
    ack_ms_p99: f64,
    generator_lag_ms_p99: f64,
    sent: u64,
    acknowledged: u64,
    delivered: u64,
    refused: u64,
    unanswered: u64,
    duplicated: u64,
    out_of_order: u64,
    wrong_seq: u64,
    misdirected: u64,
    answered_twice: u64,
    seq_collisions: u64,
    delivered_marks: u64,
    latency_curve: Vec<Point>,
    heartbeat_curve: Vec<Point>,
    curve: Vec<Sample>,
}

/// Three decimals.
fn round(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

/// A share of something that may not have happened.
fn per(value: f64, count: f64) -> f64 {
    if count > 0.0 { round(value / count) } else { 0.0 }
}

impl Report {
    pub(crate) fn new(found: Findings<'_>) -> Self {
        let Findings { tally, measures, counts, audit, memory, .. } = found;
        let latency = measures.latency();
        let sessions = f64::from(found.sessions);
        let logins = tally.logins as f64;
        let cores = |us: u64| round(us as f64 / 1e6 / found.hold_seconds);
        let mb = |bytes: Option<u64>| bytes.map(|bytes| megabytes(bytes as i64));
        let grown = memory.gateway_most.zip(memory.gateway_start).map(|(most, start)| most as f64 - start as f64);
        Self {
            sessions: found.sessions,
            gateway_rss_mb: mb(memory.gateway_most),
            kernel_mb: megabytes(memory.kernel.total()),
            heartbeat_timeouts: tally.heartbeat_timeouts(),
            logins_per_s: per(logins, found.login_seconds),
            messages_per_s: round(measures.completed as f64 / measures.window.seconds()),
            latency_ms_p50: percentile_ms(&latency, 50.0),
            latency_ms_p99: percentile_ms(&latency, 99.0),
            lost: audit.lost,
            connections: found.connections,
            driver: found.driver,
            seconds: round(found.hold_seconds),
            disconnected: tally.disconnected(),
            ended: tally.ended.clone(),
            gateway_rss_mb_start: mb(memory.gateway_start),
            gateway_bytes_per_session: grown.map(|bytes| per(bytes, sessions)),
            writer_rss_mb: mb(memory.writer_most),
            generator_rss_mb: megabytes(memory.generator_most as i64),
            kernel_parts_mb: memory.kernel.mb(),
            kernel_bytes_per_session: per(memory.kernel.total() as f64, sessions),
            login_seconds: round(found.login_seconds),
            logins_refused: found.logins_refused,
            gateway_cpu_us_per_login: found.login_cost.gateway_us.map(|us| per(us as f64, logins)),
            writer_cpu_us_per_login: found.login_cost.writer_us.map(|us| per(us as f64, logins)),
            generator_cpu_us_per_login: per(found.login_cost.generator_us as f64, logins),
            gateway_cores: found.hold_cost.gateway_us.map(cores),
            writer_cores: found.hold_cost.writer_us.map(cores),
            generator_cores: cores(found.hold_cost.generator_us),
            heartbeats: tally.heartbeats,
            heartbeats_unanswered: tally.heartbeats_unanswered,
            heartbeat_ms_p50: percentile_ms(&tally.heartbeat_us, 50.0),
            heartbeat_ms_p99: percentile_ms(&tally.heartbeat_us, 99.0),
            offered_per_s: round(measures.offered as f64 / measures.window.seconds()),
            latency_ms_p999: percentile_ms(&latency, 99.9),
            latency_ms_max: round(latency.max() as f64 / 1_000.0),
            ack_ms_p50: percentile_ms(measures.ack(), 50.0),
            ack_ms_p99: percentile_ms(measures.ack(), 99.0),
            generator_lag_ms_p99: percentile_ms(measures.lag(), 99.0),
            sent: counts.sent,
            acknowledged: counts.acked,
            delivered: counts.delivered,
            refused: counts.refused,
            unanswered: audit.unanswered,
            duplicated: counts.duplicated,
            out_of_order: counts.out_of_order,
            wrong_seq: counts.wrong_seq,
            misdirected: counts.misdirected,
            answered_twice: counts.answered_twice,
            seq_collisions: audit.seq_collisions,
            delivered_marks: found.delivered_marks,
            latency_curve: latency_curve(&latency),
            heartbeat_curve: latency_curve(&tally.heartbeat_us),
            curve: memory.curve,
        }
    }

    /// The broken promises, in words; empty when all were kept.
    pub(crate) fn broken(&self) -> Vec<String> {
        let counts = [
            ("sessions taken for dead although their hearts beat", self.heartbeat_timeouts),
            ("sessions ended by the server", self.disconnected),
            ("acknowledged messages lost", self.lost),
            ("events seen twice by a device", self.duplicated),
            ("events out of order", self.out_of_order),
            ("messages whose acknowledgement and event differ in seq", self.wrong_seq),
            ("frames at the wrong device", self.misdirected),
            ("commands answered twice", self.answered_twice),
            ("places given twice", self.seq_collisions),
        ];
        counts.iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{count} {what}")).collect()
    }
}
