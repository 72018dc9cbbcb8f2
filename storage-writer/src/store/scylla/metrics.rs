//! What is counted of the requests to a cluster.

use super::tables::TableId;
use crate::metrics::{Counter, Durations, Gauge, header, show_counter, show_gauge};
use std::fmt::Write;
use std::time::Duration;
use storage_core::cql::engine::EngineStatus;
use storage_core::cql::rows::StatementError;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Does {
    Write,
    Read,
}

/// Requests to a cluster.
#[derive(Debug, Default)]
pub struct ClusterMetrics {
    writes: [Counter; TableId::ALL.len()],
    reads: [Counter; TableId::ALL.len()],
    lease: Counter,
    /// Rows in writes.
    pub rows_written: Counter,
    /// How long writes took.
    pub write: Durations,
    /// How long reads took, all pages together.
    pub read: Durations,
    /// How long serial reads and changes of the lease took.
    pub lease_took: Durations,
    /// Outcomes that are not known.
    pub unknown: Counter,
    /// What the cluster will not do.
    pub refused: Counter,
    /// Rows that do not decode.
    pub damaged: Counter,
    /// Statements without a result, and results that were not taken.
    pub in_flight: Gauge,
}

impl ClusterMetrics {
    /// Requests of all kinds but those for the lease.
    pub fn requests(&self) -> u64 {
        self.writes.iter().chain(&self.reads).map(Counter::get).sum()
    }

    pub(super) fn begun(&self, does: Does, table: TableId) {
        let counters = if does == Does::Write { &self.writes } else { &self.reads };
        counters[table as usize].add(1);
    }

    pub(super) fn ended(&self, does: Does, took: Duration, error: Option<&StatementError>) {
        let durations = if does == Does::Write { &self.write } else { &self.read };
        durations.record(took);
        self.failed(error);
    }

    pub(super) fn lease(&self, took: Duration, error: Option<&StatementError>) {
        self.lease.add(1);
        self.lease_took.record(took);
        self.failed(error);
    }

    fn failed(&self, error: Option<&StatementError>) {
        match error {
            None => {}
            Some(StatementError::Unknown(_)) => self.unknown.add(1),
            Some(StatementError::Refused(_)) => self.refused.add(1),
            Some(StatementError::Damaged(_)) => self.damaged.add(1),
        }
    }

    /// Appends the text form.
    pub fn show(&self, out: &mut String) {
        // Writing to a string cannot fail.
        header("parley_cql_requests_total", "Requests to the cluster by kind.", "counter", out);
        for (word, counters) in [("write", &self.writes), ("read", &self.reads)] {
            for (id, counter) in TableId::ALL.iter().zip(counters) {
                let kind = format!("{word}_{}", id.table().name);
                let _ = writeln!(out, "parley_cql_requests_total{{kind=\"{kind}\"}} {}", counter.get());
            }
        }
        let _ = writeln!(out, "parley_cql_requests_total{{kind=\"lease\"}} {}", self.lease.get());
        show_counter("parley_cql_rows_written_total", "Rows in writes.", self.rows_written.get(), out);
        self.write.show("parley_cql_write_seconds", "From a write to its result.", out);
        self.read.show("parley_cql_read_seconds", "From a read to its last page.", out);
        self.lease_took.show("parley_cql_lease_seconds", "From a request for the lease to its result.", out);
        header("parley_cql_errors_total", "Requests without a result, by what is known.", "counter", out);
        let kinds = [("unknown", &self.unknown), ("refused", &self.refused), ("damaged", &self.damaged)];
        for (kind, counter) in kinds {
            let _ = writeln!(out, "parley_cql_errors_total{{kind=\"{kind}\"}} {}", counter.get());
        }
        let help = "Statements without a result, and results that were not taken.";
        show_gauge("parley_cql_in_flight", help, self.in_flight.get(), out);
    }
}

/// How the planner is, for `/metrics`.
#[derive(Debug, Default)]
pub struct PlannerMetrics {
    under_way: Gauge,
    limit: Gauge,
    waiting: Gauge,
    groups: Gauge,
    work_keys: Gauge,
    recovered_appends: Gauge,
    recovered_entries: Gauge,
    set_aside: Gauge,
}

impl PlannerMetrics {
    /// Takes the planner's own numbers over.
    pub(super) fn set(&self, status: &EngineStatus) {
        self.under_way.set(status.in_flight as u64);
        self.limit.set(status.limit as u64);
        self.waiting.set(status.waiting as u64);
        self.groups.set(status.groups as u64);
        self.work_keys.set(status.work_keys as u64);
        self.recovered_appends.set(status.recovered_appends);
        self.recovered_entries.set(status.recovered_entries);
        self.set_aside.set(status.set_aside as u64);
    }

    /// Appends the text form.
    pub fn show(&self, out: &mut String) {
        let gauges = [
            ("parley_cql_under_way", "Statements that the planner waits for.", &self.under_way),
            ("parley_cql_limit", "How many may be under way: it follows the measured latency.", &self.limit),
            ("parley_cql_waiting", "Statements that wait for the limit, the lease, or a repetition.", &self.waiting),
            ("parley_cql_groups", "Groups that are not complete.", &self.groups),
            ("parley_cql_work_keys", "Chats and users in the lists of work in flight.", &self.work_keys),
            ("parley_cql_recovered_appends", "Appends derived again at the take-over.", &self.recovered_appends),
            ("parley_cql_recovered_entries", "Of their entries, those numbered again.", &self.recovered_entries),
            (
                "parley_cql_set_aside",
                "Chats and inboxes with damaged rows, set aside until the next start.",
                &self.set_aside,
            ),
        ];
        for (name, help, gauge) in gauges {
            show_gauge(name, help, gauge.get(), out);
        }
    }
}
