//! The scenario `hostile`: an honest open loop that runs all the time, measured alone and beside each attack in turn,
//! so that a table says what one client can do to the others. The attacks are next door.

pub(crate) mod args;
mod attacks;
mod cast;
mod client;
mod preset;
mod table;

use crate::cpu::Probe;
use crate::direct::{self, Stretch, Watch};
use crate::report::percentile_ms;
use crate::tokens::Tokens;
use attacks::{Attack, prove};
use cast::{Cast, Strength};
use serde::Serialize;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;
use table::Row;

/// From the start of an attack to its half, and from its end to the next half.
const SETTLE: Duration = Duration::from_millis(250);
/// How long the messages of a half may take to arrive after its end.
const LATE_NS: u64 = 15_000_000_000;
const LOOK: Duration = Duration::from_millis(5);

/// What is compared.
#[derive(Clone)]
pub(crate) struct Settings {
    /// The honest load.
    pub(crate) honest: direct::Settings,
    /// Its messages a second.
    pub(crate) rate: u64,
    /// Length of a half.
    pub(crate) half_ns: u64,
    pub(crate) rows: Vec<&'static Row>,
    pub(crate) strength: Strength,
    /// Longer than the server's times for those that it refuses in time.
    pub(crate) patience: Duration,
    /// Where it counts what it refuses.
    pub(crate) admin: SocketAddr,
    /// How often the whole round of attacks is repeated.
    pub(crate) rounds: u32,
}

/// One attack in one round.
#[derive(Clone, Copy, Debug)]
struct Sample {
    alone_p99_ms: f64,
    beside_p99_ms: f64,
    /// Attacks a second that were carried out, in the attack's own unit.
    attacks_per_s: f64,
    /// Resident memory of the gateway after it.
    gateway_mib: Option<f64>,
}

/// An attack, medians over the rounds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    attack: &'static str,
    unit: &'static str,
    attacks_per_s: f64,
    alone_p99_ms: f64,
    beside_p99_ms: f64,
    /// The median of the rounds' ratios, not the ratio of the medians above: what drifts between rounds drops out.
    ratio: f64,
    /// The largest of the rounds' ratios.
    ratio_max: f64,
    gateway_mib: Option<f64>,
}

/// What came out. The last line on stdout.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    rate: u64,
    connections: u32,
    /// Of a half.
    seconds: f64,
    /// Honest messages of a half.
    samples: u64,
    rounds: u32,
    driver: String,
    lines: Vec<Line>,
    #[serde(skip)]
    pub(crate) broken: Vec<String>,
}

/// The honest load in a thread of its own.
struct Honest {
    watch: Arc<Watch>,
    thread: JoinHandle<Result<direct::Report, String>>,
}

/// Runs all of it.
pub(crate) fn run(settings: &Settings, tokens: &Tokens) -> Result<Report, String> {
    // As a set: an attack that goes wrong does so in every round.
    let mut broken = BTreeSet::new();
    eprintln!("each attack once, until it is refused");
    let cast = Arc::new(Cast::new(settings, tokens)?);
    broken.extend(prove_all(&settings.rows, &cast));
    let honest = Honest::start(settings, tokens)?;
    std::thread::sleep(Duration::from_nanos(settings.honest.warmup_ns));
    let measured = rounds(settings, &cast, &honest, &mut broken);
    // In this order: a run that ended by itself says why.
    let report = honest.end()?;
    let samples = measured?;
    broken.extend(report.broken().into_iter().map(|what| format!("honest clients: {what}")));
    Ok(Report {
        rate: settings.rate,
        connections: settings.honest.users,
        seconds: settings.half_ns as f64 / 1e9,
        samples: settings.expected(),
        rounds: settings.rounds,
        driver: settings.honest.driver.clone(),
        lines: settings.rows.iter().zip(&samples).map(|(row, samples)| line(row, samples)).collect(),
        broken: broken.into_iter().collect(),
    })
}

/// What was not refused as it should.
fn prove_all(rows: &[&'static Row], cast: &Arc<Cast>) -> Vec<String> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = rows.iter().map(|&row| (row, scope.spawn(move || prove(row, cast)))).collect();
        let outcome = |(row, thread): (&Row, std::thread::ScopedJoinHandle<'_, Result<(), String>>)| {
            let outcome = thread.join().unwrap_or_else(|_| Err("the attacker panicked".to_owned()));
            outcome.err().map(|error| told(row, &error))
        };
        threads.into_iter().filter_map(outcome).collect()
    })
}

fn told(row: &Row, error: &str) -> String {
    let broken = format!("{} ({}): {error}", row.name, row.what);
    eprintln!("broken: {broken}");
    broken
}

fn rounds(
    settings: &Settings,
    cast: &Arc<Cast>,
    honest: &Honest,
    broken: &mut BTreeSet<String>,
) -> Result<Vec<Vec<Sample>>, String> {
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); settings.rows.len()];
    for round in 1..=settings.rounds {
        for (row, samples) in settings.rows.iter().zip(&mut samples) {
            let alone_p99_ms = honest.half(settings)?;
            let attack = Attack::start(row, cast)?;
            std::thread::sleep(SETTLE);
            let beside = honest.half(settings);
            let (attacks_per_s, ended) = attack.stop();
            if let Err(error) = ended {
                broken.insert(told(row, &error));
            }
            let gateway_mib = settings.honest.probes.gateway.and_then(resident_mib);
            let sample = Sample { alone_p99_ms, beside_p99_ms: beside?, attacks_per_s, gateway_mib };
            eprintln!(
                "round {round} of {}: {:<19} {:>6.0} {}/s, p99 alone {:.2} ms, beside {:.2} ms, ratio {:.2}",
                settings.rounds,
                row.name,
                attacks_per_s,
                row.unit.name(),
                alone_p99_ms,
                sample.beside_p99_ms,
                sample.ratio(),
            );
            samples.push(sample);
            std::thread::sleep(SETTLE);
        }
    }
    Ok(samples)
}

impl Settings {
    /// Honest messages of a half, or one more.
    fn expected(&self) -> u64 {
        (u128::from(self.half_ns) * u128::from(self.rate) / 1_000_000_000) as u64
    }
}

impl Honest {
    fn start(settings: &Settings, tokens: &Tokens) -> Result<Self, String> {
        let mut number = [0; 8];
        getrandom::fill(&mut number).map_err(|error| format!("no randomness: {error}"))?;
        let watch = Arc::new(Watch::new());
        let run = u64::from_le_bytes(number);
        let run = direct::Settings { run, watch: Some(watch.clone()), ..settings.honest.clone() };
        let tokens = tokens.clone();
        let thread = std::thread::Builder::new()
            .name("honest".to_owned())
            .spawn(move || direct::run(&run, &tokens))
            .map_err(|error| format!("no thread for the honest load: {error}"))?;
        let honest = Self { watch, thread };
        // Until it talks.
        honest.watch.begin(LATE_NS * 4);
        while honest.watch.look().latency.is_empty() && !honest.thread.is_finished() {
            std::thread::sleep(LOOK);
        }
        Ok(honest)
    }

    /// The p99 of a half from now on, once all of it has arrived. What does not arrive in time counts as if it had
    /// taken that long: percentiles over survivors only would flatter an overloaded server.
    fn half(&self, settings: &Settings) -> Result<f64, String> {
        let until_ns = self.watch.begin(settings.half_ns);
        loop {
            std::thread::sleep(LOOK);
            if self.thread.is_finished() || settings.honest.stop.load(Ordering::Relaxed) {
                return Err("the honest load ended".to_owned());
            }
            let now_ns = self.watch.clock.now_ns();
            if now_ns < until_ns {
                continue;
            }
            let Stretch { offered, mut latency, .. } = self.watch.look();
            let missing = offered.max(settings.expected()).saturating_sub(latency.len());
            if missing == 0 || now_ns > until_ns + LATE_NS {
                latency.saturating_record_n(LATE_NS / 1_000, missing);
                return Ok(percentile_ms(&latency, 99.0));
            }
        }
    }

    fn end(self) -> Result<direct::Report, String> {
        self.watch.end();
        self.thread.join().unwrap_or_else(|_| Err("the honest load panicked".to_owned()))
    }
}

fn resident_mib(probe: Probe) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", probe.pid)).ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
    Some((kib.parse::<f64>().ok()? / 102.4).round() / 10.0)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        len if len % 2 == 1 => values[len / 2],
        len => (values[len / 2 - 1] + values[len / 2]) / 2.0,
    }
}

impl Sample {
    fn ratio(&self) -> f64 {
        if self.alone_p99_ms > 0.0 { self.beside_p99_ms / self.alone_p99_ms } else { 0.0 }
    }
}

fn line(row: &Row, samples: &[Sample]) -> Line {
    let of = |pick: &dyn Fn(&Sample) -> f64| median(samples.iter().map(pick).collect());
    let two = |value: f64| (value * 100.0).round() / 100.0;
    Line {
        attack: row.name,
        unit: row.unit.name(),
        attacks_per_s: of(&|sample| sample.attacks_per_s).round(),
        alone_p99_ms: two(of(&|sample| sample.alone_p99_ms)),
        beside_p99_ms: two(of(&|sample| sample.beside_p99_ms)),
        ratio: two(of(&Sample::ratio)),
        ratio_max: two(samples.iter().map(Sample::ratio).fold(0.0, f64::max)),
        gateway_mib: samples.iter().filter_map(|sample| sample.gateway_mib).reduce(f64::max),
    }
}

impl Report {
    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "honest p99 beside attacks: {} users, {} messages/s, halves of {} s and {} messages, {} rounds, driver {}\n\
             {:<19} {:>9} {:<12} {:>10} {:>10} {:>6} {:>6} {:>12}\n",
            self.connections,
            self.rate,
            self.seconds,
            self.samples,
            self.rounds,
            self.driver,
            "attack",
            "a second",
            "",
            "alone ms",
            "beside ms",
            "ratio",
            "max",
            "gateway MiB",
        );
        for line in &self.lines {
            let memory = line.gateway_mib.map_or_else(|| "-".to_owned(), |mib| format!("{mib:.1}"));
            text.push_str(&format!(
                "{:<19} {:>9} {:<12} {:>10.2} {:>10.2} {:>6.2} {:>6.2} {:>12}\n",
                line.attack,
                line.attacks_per_s,
                line.unit,
                line.alone_p99_ms,
                line.beside_p99_ms,
                line.ratio,
                line.ratio_max,
                memory,
            ));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(alone_p99_ms: f64, beside_p99_ms: f64) -> Sample {
        Sample { alone_p99_ms, beside_p99_ms, attacks_per_s: 10.0, gateway_mib: Some(beside_p99_ms) }
    }

    #[test]
    fn a_line_has_the_median_of_ratios_so_one_bad_round_does_not_count() {
        let samples = [sample(2.0, 3.0), sample(2.0, 90.0), sample(4.0, 5.0)];
        let line = line(&table::ROWS[0], &samples);
        assert_eq!((line.alone_p99_ms, line.beside_p99_ms), (2.0, 5.0));
        assert_eq!((line.ratio, line.ratio_max), (1.5, 45.0));
        assert_eq!((line.attacks_per_s, line.gateway_mib), (10.0, Some(90.0)));
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
    }

    #[test]
    fn the_table_has_a_row_for_each_attack() {
        let report = Report {
            rate: 2_000,
            connections: 200,
            seconds: 1.2,
            samples: 2_400,
            rounds: 3,
            driver: "epoll".to_owned(),
            lines: table::ROWS.iter().map(|row| line(row, &[sample(1.0, 1.5)])).collect(),
            broken: Vec::new(),
        };
        let table = report.table();
        assert_eq!(table.lines().count(), 2 + table::ROWS.len());
        assert!(table::ROWS.iter().all(|row| table.contains(row.name)), "{table}");
        assert!(table.contains("1.50"), "{table}");
    }
}
