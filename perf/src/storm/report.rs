//! The last line of a run of `storm`. Names and units are a contract: `docs/PERFORMANCE.md` explains them.

use super::Settings;
use super::fleet::Fleet;
use crate::curve::{Point, latency_curve};
use crate::echo::thousandths;
use crate::ledger::{Audit, Counts};
use crate::report::percentile_ms;
use serde::Serialize;
use std::collections::BTreeMap;

/// A moment of the run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// Since the storm began; negative before.
    pub(crate) s: f64,
    pub(crate) sessions: u32,
    pub(crate) gateway_rss_mb: Option<f64>,
}

/// CPU of the servers, microseconds, from the storm's begin until all were back.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Spent {
    /// Of the gateway that was there when it began.
    pub(crate) old_gateway_us: Option<u64>,
    /// Of the one that took its place, its start included.
    pub(crate) new_gateway_us: Option<u64>,
    pub(crate) writer_us: Option<u64>,
    pub(crate) generator_us: u64,
}

/// What a run found out beside what its fleet counted.
#[derive(Debug)]
pub(crate) struct Findings {
    pub(crate) driver: String,
    pub(crate) login_seconds: f64,
    /// From the storm to the last `Welcome`.
    pub(crate) seated_after_s: f64,
    /// The least that were seated at a time.
    pub(crate) seated_least: u32,
    /// From the storm to the line `ready` of the new gateway.
    pub(crate) replaced_after_s: Option<f64>,
    pub(crate) spent: Spent,
    pub(crate) curve: Vec<Sample>,
}

/// The line.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    sessions: u32,
    how: &'static str,
    seated_after_s: f64,
    replaced_after_s: Option<f64>,
    seated_least: u32,
    away_ms_p50: f64,
    away_ms_p99: f64,
    away_ms_max: f64,
    returned: u64,
    attempts: u64,
    refused_attempts: u64,
    refused_by: BTreeMap<String, u64>,
    ended: BTreeMap<String, u64>,
    delay_ms_p50: f64,
    delay_ms_max: f64,
    gateway_cpu_us_per_return: Option<f64>,
    writer_cpu_us_per_return: Option<f64>,
    generator_cpu_us_per_return: f64,
    old_gateway_cpu_s: Option<f64>,
    new_gateway_cpu_s: Option<f64>,
    login_seconds: f64,
    driver: String,
    rate: u32,
    sent: u64,
    acknowledged: u64,
    delivered: u64,
    resent: u64,
    refused: u64,
    redelivered: u64,
    latency_ms_p50: f64,
    latency_ms_p99: f64,
    latency_ms_max: f64,
    lost: u64,
    holes: u64,
    unanswered: u64,
    duplicated: u64,
    out_of_order: u64,
    wrong_seq: u64,
    misdirected: u64,
    answered_twice: u64,
    seq_collisions: u64,
    away_curve: Vec<Point>,
    latency_curve: Vec<Point>,
    curve: Vec<Sample>,
}

impl Report {
    pub(crate) fn new(settings: &Settings, fleet: &Fleet<'_>, found: Findings) -> Self {
        let (tally, flow) = (&fleet.tally, &fleet.flow);
        let Counts { sent, acked, delivered, duplicated, out_of_order, .. } = flow.ledger.counts();
        let Counts { wrong_seq, misdirected, answered_twice, .. } = flow.ledger.counts();
        let Audit { lost, unanswered, seq_collisions, .. } = flow.ledger.audit();
        let Spent { old_gateway_us, new_gateway_us, writer_us, generator_us } = found.spent;
        let returned = tally.away_us.len();
        let per_return = |us: u64| thousandths(us as f64 / returned.max(1) as f64);
        let seconds = |us: u64| thousandths(us as f64 / 1e6);
        let gateway_us = old_gateway_us.map(|old| old + new_gateway_us.unwrap_or_default());
        Self {
            sessions: settings.sessions,
            how: settings.how.name(),
            seated_after_s: thousandths(found.seated_after_s),
            replaced_after_s: found.replaced_after_s.map(thousandths),
            seated_least: found.seated_least,
            away_ms_p50: percentile_ms(&tally.away_us, 50.0),
            away_ms_p99: percentile_ms(&tally.away_us, 99.0),
            away_ms_max: percentile_ms(&tally.away_us, 100.0),
            returned,
            attempts: tally.attempts,
            refused_attempts: tally.refused.values().sum(),
            refused_by: tally.refused.clone(),
            ended: tally.ended.clone(),
            delay_ms_p50: percentile_ms(&tally.delay_us, 50.0),
            delay_ms_max: percentile_ms(&tally.delay_us, 100.0),
            gateway_cpu_us_per_return: gateway_us.map(per_return),
            writer_cpu_us_per_return: writer_us.map(per_return),
            generator_cpu_us_per_return: per_return(generator_us),
            old_gateway_cpu_s: old_gateway_us.map(seconds),
            new_gateway_cpu_s: new_gateway_us.map(seconds),
            login_seconds: thousandths(found.login_seconds),
            driver: found.driver,
            rate: settings.rate,
            sent,
            acknowledged: acked,
            delivered,
            resent: flow.resent,
            refused: flow.refusals.values().sum(),
            redelivered: flow.redelivered,
            latency_ms_p50: percentile_ms(&flow.latency_us, 50.0),
            latency_ms_p99: percentile_ms(&flow.latency_us, 99.0),
            latency_ms_max: percentile_ms(&flow.latency_us, 100.0),
            lost,
            holes: flow.holes,
            unanswered,
            duplicated,
            out_of_order,
            wrong_seq,
            misdirected,
            answered_twice,
            seq_collisions,
            away_curve: latency_curve(&tally.away_us),
            latency_curve: latency_curve(&flow.latency_us),
            curve: found.curve,
        }
    }

    /// Broken promises; empty when all were kept.
    pub(crate) fn broken(&self) -> Vec<String> {
        let counts = [
            (self.lost, "acknowledged messages lost"),
            (self.holes, "events are missing before later ones"),
            (self.unanswered, "messages were never answered"),
            (self.duplicated, "events came twice in one stream"),
            (self.out_of_order, "events out of order"),
            (self.wrong_seq, "places of messages disagree"),
            (self.misdirected, "events or answers for somebody else"),
            (self.answered_twice, "commands answered twice"),
            (self.seq_collisions, "messages share a place"),
        ];
        let broken = counts.into_iter().filter(|(count, _)| *count > 0);
        broken.map(|(count, what)| format!("{count} {what}")).collect()
    }
}
