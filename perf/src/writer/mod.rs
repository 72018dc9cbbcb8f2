//! The scenario `writer`: a storage-writer without a gateway on one cluster; beside it, in turns, a bare loop over the
//! driver that asks for the same; and what a message costs the cluster in requests.

mod bare;
mod mix;
mod rig;

use crate::cluster::{Cluster, StoreArg};
use crate::cpu::{Probe, own_us};
use crate::stop_on_signals;
use bare::Bare;
use clap::Args;
use mix::{Request, Share, shares};
use rig::{People, Rig, Round};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub(crate) const EXAMPLES: &str = "\
Examples:
  On a Cassandra node that is started for the run
    cargo run --release -p perf -- writer --store scylla
  On a cluster that runs
    cargo run --release -p perf -- writer --store scylla --contact 127.0.0.1:9042 --rounds 5

A round is the writer, then its writes again by the bare loop, then those and its look-ups of names; the first one
is for warming up. The last line on stdout is one JSON object; the exit code is 0 when the writer's rows a second are at least
0.8 of the bare loop's, and a message costs at most 6 requests alone, and 0.6 when its append carries 16.";

/// Rows a second of the writer, of those of the bare loop that repeats its writes.
const RATIO_MIN: f64 = 0.8;
/// Requests for a lone direct message.
const LONE_MAX: f64 = 6.0;
/// Requests a message where an append carries 16.
const SIXTEEN_MAX: f64 = 0.6;
const SIXTEEN: usize = 16;
/// Appends that are counted for those two.
const COUNTED: usize = 256;

#[derive(Args)]
pub(crate) struct WriterArgs {
    /// Where the rows go; the embedded store has a benchmark of its own (`cargo bench -p perf --bench writer`).
    #[arg(long, value_enum, default_value = "scylla")]
    store: StoreArg,
    /// Nodes of a cluster that runs [default: one Cassandra node of its own, started for the run].
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',')]
    contact: Vec<String>,
    /// Direct chats.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Groups.
    #[arg(long, default_value_t = 50)]
    groups: u32,
    /// Members of a group.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=100))]
    members: u32,
    /// Messages without an answer, in all chats together.
    #[arg(long, default_value_t = 4_096, value_parser = clap::value_parser!(u32).range(1..))]
    window: u32,
    /// Bytes of text in a message.
    #[arg(long, default_value_t = 128, value_name = "BYTES")]
    payload: usize,
    /// Seconds of the writer in one round.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Rounds that count.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Counts requests a message, and measures nothing.
    #[arg(long)]
    requests_only: bool,
}

/// CPU time a row, microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct PerRow {
    rows_per_s: f64,
    cpu_us_per_row: f64,
    /// Of the node, where it was started here.
    #[serde(skip_serializing_if = "Option::is_none")]
    node_cpu_us_per_row: Option<f64>,
}

/// One round.
#[derive(Clone, Debug, Serialize)]
struct Line {
    messages_per_s: f64,
    writer: PerRow,
    bare: PerRow,
    bare_with_reads: PerRow,
    /// Rows a second of the writer, of those of the bare loop that repeats its writes.
    ratio: f64,
    /// Of those of the one that repeats its look-ups, too.
    ratio_with_reads: f64,
    /// Statements under way, on average; so many the bare loops have, too.
    in_flight: f64,
    limit: usize,
}

/// What came out. The last line on stdout.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Report {
    /// Medians over the rounds.
    ratio: f64,
    ratio_with_reads: f64,
    requests_per_lone_message: f64,
    requests_per_message_of_16: f64,
    lone_by_kind: BTreeMap<&'static str, f64>,
    of_16_by_kind: BTreeMap<&'static str, f64>,
    mix: BTreeMap<String, Share>,
    rounds: Vec<Line>,
    #[serde(skip)]
    pub(crate) broken: Vec<String>,
}

impl WriterArgs {
    pub(crate) fn run(&self) -> Result<Report, String> {
        if self.store == StoreArg::Embedded {
            return Err("the embedded store has a benchmark of its own: cargo bench -p perf --bench writer".to_owned());
        }
        let stop = stop_on_signals()?;
        let cluster = Cluster::open(&self.contact)?;
        // Dropped in the reverse order: sessions, keyspaces, cluster.
        let (keyspace, twin) = (cluster.keyspace()?, cluster.keyspace()?);
        let people = People {
            pairs: self.pairs as usize,
            groups: self.groups as usize,
            members: self.members as usize,
            payload_bytes: self.payload,
        };
        let mut rig = Rig::new(&keyspace.0, people, stop.clone())?;
        let mut report = Report::default();
        let lone = count(&mut rig, 1)?;
        let sixteen = count_sixteen(&mut rig)?;
        (report.requests_per_lone_message, report.lone_by_kind) = each(lone, COUNTED);
        (report.requests_per_message_of_16, report.of_16_by_kind) = each(sixteen, COUNTED * SIXTEEN);
        let (lone, sixteen) = (report.requests_per_lone_message, report.requests_per_message_of_16);
        eprintln!("requests: {lone} for a lone direct message, {sixteen} a message where an append carries {SIXTEEN}");
        if !self.requests_only {
            let mut bare = Bare::connect(&keyspace.0, &twin.0)?;
            let node = cluster.node_pid().map(|pid| Probe { pid });
            for round in 0..=self.rounds {
                if stop.load(Ordering::Relaxed) {
                    return Err("it was stopped".to_owned());
                }
                let (line, requests) = self.round(&mut rig, &mut bare, node)?;
                eprintln!("round {round} of {}: {}", self.rounds, line.words());
                // The first one found neither a compiler nor caches warm.
                if round > 0 {
                    report.mix = shares(&requests);
                    report.rounds.push(line);
                }
            }
            report.ratio = median(report.rounds.iter().map(|line| line.ratio));
            report.ratio_with_reads = median(report.rounds.iter().map(|line| line.ratio_with_reads));
            eprint!("{}", report.table());
        }
        report.broken = report.judge(!self.requests_only);
        Ok(report)
    }

    fn round(&self, rig: &mut Rig, bare: &mut Bare, node: Option<Probe>) -> Result<(Line, Vec<Request>), String> {
        let mut meter = Meter::start(node)?;
        let done = rig.round(Duration::from_secs(u64::from(self.seconds)), u64::from(self.window))?;
        let Round { messages, took, requests, in_flight, limit } = done;
        let rows: usize = requests.iter().map(Request::rows).sum();
        let writer = meter.per_row(took, rows)?;
        let at_once = in_flight.round() as usize;
        let mut again = |reads| {
            // What is made ready before the first request costs CPU that is not the loop's.
            let jobs = bare.jobs(&requests, reads)?;
            let mut meter = Meter::start(node)?;
            let took = bare.replay(jobs, at_once)?;
            meter.per_row(took, rows)
        };
        let (bare, bare_with_reads) = (again(false)?, again(true)?);
        let line = Line {
            messages_per_s: round(messages as f64 / took.as_secs_f64()),
            writer,
            bare,
            bare_with_reads,
            ratio: round(writer.rows_per_s / bare.rows_per_s),
            ratio_with_reads: round(writer.rows_per_s / bare_with_reads.rows_per_s),
            in_flight: round(in_flight),
            limit,
        };
        Ok((line, requests))
    }
}

/// CPU time since a moment.
struct Meter {
    own_us: u64,
    node: Option<(Probe, u64)>,
}

impl Meter {
    fn start(node: Option<Probe>) -> Result<Self, String> {
        let node = node.map(|probe| Ok::<_, String>((probe, probe.cpu_us()?))).transpose()?;
        Ok(Self { own_us: own_us(), node })
    }

    fn per_row(&mut self, took: Duration, rows: usize) -> Result<PerRow, String> {
        let each = |us: u64| round(us as f64 / rows.max(1) as f64);
        let cpu_us_per_row = each(own_us() - self.own_us);
        let node = self.node.map(|(probe, before)| Ok::<_, String>(each(probe.cpu_us()?.saturating_sub(before))));
        let rows_per_s = (rows as f64 / took.as_secs_f64()).round();
        Ok(PerRow { rows_per_s, cpu_us_per_row, node_cpu_us_per_row: node.transpose()? })
    }
}

/// Requests by kind.
type Kinds = [(&'static str, u64); 5];

/// What [`COUNTED`] chats ask for, to each of which, when it is quiet, `at_once` messages come.
fn count(rig: &mut Rig, at_once: usize) -> Result<Kinds, String> {
    let before = rig.status().statements;
    for chat in 0..COUNTED {
        rig.at_once(chat, at_once)?;
    }
    let after = rig.status().statements;
    Ok([
        ("events", after.events - before.events),
        ("inbox", after.inbox - before.inbox),
        ("derived", after.derived - before.derived),
        ("work", after.work - before.work),
        ("reads", after.reads - before.reads),
    ])
}

/// The same for 16 that come together, which are one append.
fn count_sixteen(rig: &mut Rig) -> Result<Kinds, String> {
    let kinds = count(rig, SIXTEEN)?;
    if kinds[0].1 != COUNTED as u64 {
        return Err(format!("{COUNTED} times {SIXTEEN} messages made {} appends", kinds[0].1));
    }
    Ok(kinds)
}

/// Requests a message, and of each kind.
fn each(kinds: Kinds, messages: usize) -> (f64, BTreeMap<&'static str, f64>) {
    let each = |count: u64| round(count as f64 / messages as f64);
    let total = kinds.iter().map(|(_, count)| count).sum();
    (each(total), kinds.map(|(kind, count)| (kind, each(count))).into())
}

fn round(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[count / 2],
        count => round((values[count / 2 - 1] + values[count / 2]) / 2.0),
    }
}

impl Line {
    fn words(&self) -> String {
        let side = |side: &PerRow| {
            let node = side.node_cpu_us_per_row.map(|us| format!(" + node {us}")).unwrap_or_default();
            format!("{} rows/s ({} us{node})", side.rows_per_s, side.cpu_us_per_row)
        };
        format!(
            "writer {}, bare {}, with reads {}: {} and {}; {} messages/s, {} under way (limit {})",
            side(&self.writer),
            side(&self.bare),
            side(&self.bare_with_reads),
            self.ratio,
            self.ratio_with_reads,
            self.messages_per_s,
            self.in_flight,
            self.limit
        )
    }
}

impl Report {
    /// The mix of the last round.
    fn table(&self) -> String {
        let mut text = format!("{:20} {:>9} {:>9} {:>9}\n", "mix", "requests", "rows", "each");
        for (kind, Share { requests, rows }) in &self.mix {
            let each = *rows as f64 / *requests as f64;
            text.push_str(&format!("{kind:20} {requests:>9} {rows:>9} {each:>9.2}\n"));
        }
        text
    }

    fn judge(&self, measured: bool) -> Vec<String> {
        let held = [
            (self.requests_per_lone_message <= LONE_MAX, "a lone direct message costs more than 6 requests"),
            (
                self.requests_per_message_of_16 <= SIXTEEN_MAX,
                "a message of an append of 16 costs more than 0.6 requests",
            ),
            (!measured || self.ratio >= RATIO_MIN, "the writer's rows a second are below 0.8 of the bare loop's"),
        ];
        held.iter().filter(|(held, _)| !held).map(|(_, what)| (*what).to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_held_is_named() {
        let good =
            Report { ratio: 0.8, requests_per_lone_message: 6.0, requests_per_message_of_16: 0.6, ..Report::default() };
        assert!(good.judge(true).is_empty());
        let slow = Report { ratio: 0.79, ..good.clone() };
        assert!(slow.judge(true)[0].contains("0.8") && slow.judge(false).is_empty());
        assert_eq!(Report { requests_per_lone_message: 6.1, ..good.clone() }.judge(true).len(), 1);
        assert_eq!(Report { requests_per_message_of_16: 0.61, ..good }.judge(true).len(), 1);
    }

    #[test]
    fn a_median_is_the_middle_one_or_between_the_two() {
        assert_eq!([3.0, 1.0, 2.0, 10.0, 0.5].map(|value| median([value].into_iter())), [3.0, 1.0, 2.0, 10.0, 0.5]);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([3.0, 1.0, 2.0, 9.0].into_iter()), 2.5);
    }
}
