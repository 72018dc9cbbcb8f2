//! Counters of the storage-writer, written without locks and shown in Prometheus' text form.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A number that only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    /// What it is now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes both ways.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// What it is now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of the buckets of durations, microseconds.
const BUCKETS_US: [u64; 14] =
    [50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 51_200, 102_400, 409_600, 1_638_400];

/// Durations in buckets.
#[derive(Debug, Default)]
pub struct Durations {
    buckets: [AtomicU64; BUCKETS_US.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Durations {
    /// Adds one.
    pub fn record(&self, took: Duration) {
        let us = took.as_micros().min(u128::from(u64::MAX)) as u64;
        if let Some(bucket) = BUCKETS_US.iter().position(|bound| us <= *bound) {
            self.buckets[bucket].fetch_add(1, Relaxed);
        }
        self.count.fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    pub(crate) fn show(&self, name: &str, help: &str, out: &mut String) {
        header(name, help, "histogram", out);
        let mut below = 0;
        for (bucket, bound) in self.buckets.iter().zip(BUCKETS_US) {
            below += bucket.load(Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {below}", bound as f64 / 1e6);
        }
        let count = self.count.load(Relaxed);
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum {}", self.sum_us.load(Relaxed) as f64 / 1e6);
        let _ = writeln!(out, "{name}_count {count}");
    }
}

pub(crate) fn header(name: &str, help: &str, kind: &str, out: &mut String) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

pub(crate) fn show_counter(name: &str, help: &str, value: u64, out: &mut String) {
    header(name, help, "counter", out);
    let _ = writeln!(out, "{name} {value}");
}

pub(crate) fn show_gauge(name: &str, help: &str, value: u64, out: &mut String) {
    header(name, help, "gauge", out);
    let _ = writeln!(out, "{name} {value}");
}

/// What the embedded store counts.
#[derive(Debug, Default)]
pub struct StoreMetrics {
    /// Groups committed since the start.
    pub groups: Counter,
    /// Rows written.
    pub rows: Counter,
    /// Loads answered.
    pub loads: Counter,
    /// From the first row of a group to the end of its journal sync.
    pub commit: Durations,
    /// Writing and syncing the high-water record.
    pub high_water: Durations,
    /// Free at the last group.
    pub disk_free_bytes: Gauge,
    /// Ids are given below this millisecond (Unix).
    pub ids_reserved_until_ms: Gauge,
}

impl StoreMetrics {
    /// Appends the text form.
    pub fn show(&self, out: &mut String) {
        show_counter("parley_writer_groups_total", "Groups committed.", self.groups.get(), out);
        show_counter("parley_writer_rows_total", "Rows written by groups.", self.rows.get(), out);
        show_counter("parley_writer_loads_total", "Loads that the writer asked of the store.", self.loads.get(), out);
        self.commit.show("parley_writer_commit_seconds", "Writing a group and syncing the journal.", out);
        self.high_water.show("parley_writer_sync_seconds", "Writing and syncing the high-water record.", out);
        show_gauge("parley_writer_disk_free_bytes", "Free at the last group.", self.disk_free_bytes.get(), out);
        let (name, help) = ("parley_writer_ids_reserved_until_ms", "Ids are given below this millisecond (Unix).");
        show_gauge(name, help, self.ids_reserved_until_ms.get(), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_shown_as_a_cumulative_histogram() {
        let durations = Durations::default();
        for us in [40, 60, 60, 10_000_000] {
            durations.record(Duration::from_micros(us));
        }
        let mut text = String::new();
        durations.show("x_seconds", "Help.", &mut text);
        assert!(text.contains("x_seconds_bucket{le=\"0.00005\"} 1\n"), "{text}");
        assert!(text.contains("x_seconds_bucket{le=\"0.0001\"} 3\n"), "{text}");
        assert!(text.contains("x_seconds_bucket{le=\"+Inf\"} 4\n"), "{text}");
        assert!(text.contains("x_seconds_sum 10.00016\n"), "{text}");
    }
}
