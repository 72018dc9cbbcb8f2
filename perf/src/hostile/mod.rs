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
/// What SPECIFICATION.md promises: p99 beside an attack against the usual one.
const RATIO_MAX: f64 = 2.0;
/// Further rounds of those attacks whose ratio is above that: a stalled disk can spoil two halves of three.
const ROUNDS_AGAIN: u32 = 6;

/// A usual p99 above this says more about the machine than about any attack.
const BUSY_P99_MS: f64 = 50.0;

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

/// An attack, medians over its rounds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    attack: &'static str,
    unit: &'static str,
    attacks_per_s: f64,
    /// In how many rounds it was measured.
    rounds: usize,
    alone_p99_ms: f64,
    beside_p99_ms: f64,
    /// The median beside it against the run's usual p99.
    ratio: f64,
    /// The worst of its rounds against the run's usual p99.
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
    /// The median over every half without an attack, of all rows and rounds.
    usual_p99_ms: f64,
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
    let usual_p99_ms = usual_p99_ms(&samples);
    if usual_p99_ms > BUSY_P99_MS {
        eprintln!(
            "the machine is busy: a usual p99 of {usual_p99_ms:.0} ms, so the ratios say little; let nothing else run"
        );
    }
    broken.extend(report.broken().into_iter().map(|what| format!("honest clients: {what}")));
    Ok(Report {
        rate: settings.rate,
        connections: settings.honest.users,
        seconds: settings.half_ns as f64 / 1e9,
        samples: settings.expected(),
        rounds: settings.rounds,
        driver: settings.honest.driver.clone(),
        usual_p99_ms: two_digits(usual_p99_ms),
        lines: settings.rows.iter().zip(&samples).map(|(row, samples)| line(row, samples, usual_p99_ms)).collect(),
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

/// All rows, round by round; then those again that are above the promise.
fn rounds(
    settings: &Settings,
    cast: &Arc<Cast>,
    honest: &Honest,
    broken: &mut BTreeSet<String>,
) -> Result<Vec<Vec<Sample>>, String> {
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); settings.rows.len()];
    for round in 1..=settings.rounds {
        let which = format!("round {round} of {}", settings.rounds);
        for (row, samples) in settings.rows.iter().zip(&mut samples) {
            samples.push(sample(settings, row, cast, honest, broken, &which)?);
        }
    }
    let usual_p99_ms = usual_p99_ms(&samples);
    let above = |samples: &Vec<Sample>| ratio(samples, usual_p99_ms) > RATIO_MAX;
    let again: Vec<usize> = (0..samples.len()).filter(|&at| above(&samples[at])).collect();
    for round in 1..=ROUNDS_AGAIN {
        let which = format!("again {round} of {ROUNDS_AGAIN}");
        for &at in &again {
            samples[at].push(sample(settings, settings.rows[at], cast, honest, broken, &which)?);
        }
    }
    Ok(samples)
}

/// A half alone, then a half beside the attack.
fn sample(
    settings: &Settings,
    row: &'static Row,
    cast: &Arc<Cast>,
    honest: &Honest,
    broken: &mut BTreeSet<String>,
    which: &str,
) -> Result<Sample, String> {
    let alone_p99_ms = honest.half(settings)?;
    let attack = Attack::start(row, cast)?;
    std::thread::sleep(SETTLE);
    let beside = honest.half(settings);
    let (attacks_per_s, ended) = attack.stop();
    if let Err(error) = ended {
        broken.insert(told(row, &error));
    }
    let beside_p99_ms = beside?;
    eprintln!(
        "{which}: {:<19} {attacks_per_s:>6.0} {}/s, p99 alone {alone_p99_ms:.2} ms, beside {beside_p99_ms:.2} ms",
        row.name,
        row.unit.name(),
    );
    std::thread::sleep(SETTLE);
    let gateway_mib = settings.honest.probes.gateway.and_then(resident_mib);
    Ok(Sample { alone_p99_ms, beside_p99_ms, attacks_per_s, gateway_mib })
}

/// What is usual in this run, on this machine.
fn usual_p99_ms(samples: &[Vec<Sample>]) -> f64 {
    median(samples.iter().flatten().map(|sample| sample.alone_p99_ms).collect())
}

fn ratio(samples: &[Sample], usual_p99_ms: f64) -> f64 {
    if usual_p99_ms > 0.0 { median(samples.iter().map(|s| s.beside_p99_ms).collect()) / usual_p99_ms } else { 0.0 }
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

fn two_digits(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn line(row: &Row, samples: &[Sample], usual_p99_ms: f64) -> Line {
    let of = |pick: &dyn Fn(&Sample) -> f64| median(samples.iter().map(pick).collect());
    let worst_ms = samples.iter().map(|sample| sample.beside_p99_ms).fold(0.0, f64::max);
    Line {
        attack: row.name,
        unit: row.unit.name(),
        attacks_per_s: of(&|sample| sample.attacks_per_s).round(),
        rounds: samples.len(),
        alone_p99_ms: two_digits(of(&|sample| sample.alone_p99_ms)),
        beside_p99_ms: two_digits(of(&|sample| sample.beside_p99_ms)),
        ratio: two_digits(ratio(samples, usual_p99_ms)),
        ratio_max: if usual_p99_ms > 0.0 { two_digits(worst_ms / usual_p99_ms) } else { 0.0 },
        gateway_mib: samples.iter().filter_map(|sample| sample.gateway_mib).reduce(f64::max),
    }
}

impl Report {
    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "honest p99 beside attacks: {} users, {} messages/s, halves of {} s and {} messages, {} rounds, driver {}; \
             usual p99 {:.2} ms\n\
             {:<19} {:>9} {:<12} {:>6} {:>10} {:>10} {:>6} {:>6} {:>12}\n",
            self.connections,
            self.rate,
            self.seconds,
            self.samples,
            self.rounds,
            self.driver,
            self.usual_p99_ms,
            "attack",
            "a second",
            "",
            "rounds",
            "alone ms",
            "beside ms",
            "ratio",
            "max",
            "gateway MiB",
        );
        for line in &self.lines {
            let memory = line.gateway_mib.map_or_else(|| "-".to_owned(), |mib| format!("{mib:.1}"));
            text.push_str(&format!(
                "{:<19} {:>9} {:<12} {:>6} {:>10.2} {:>10.2} {:>6.2} {:>6.2} {:>12}\n",
                line.attack,
                line.attacks_per_s,
                line.unit,
                line.rounds,
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
    fn a_line_is_held_against_the_usual_of_the_run_and_one_bad_round_does_not_count() {
        let samples = vec![vec![sample(2.0, 3.0), sample(2.0, 90.0), sample(60.0, 5.0)], vec![sample(2.5, 1.0); 3]];
        let usual_p99_ms = usual_p99_ms(&samples);
        assert_eq!(usual_p99_ms, 2.5);
        let line = line(&table::ROWS[0], &samples[0], usual_p99_ms);
        assert_eq!((line.rounds, line.alone_p99_ms, line.beside_p99_ms), (3, 2.0, 5.0));
        assert_eq!((line.ratio, line.ratio_max), (2.0, 36.0));
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
            usual_p99_ms: 1.0,
            lines: table::ROWS.iter().map(|row| line(row, &[sample(1.0, 1.5)], 1.0)).collect(),
            broken: Vec::new(),
        };
        let table = report.table();
        assert_eq!(table.lines().count(), 2 + table::ROWS.len());
        assert!(table::ROWS.iter().all(|row| table.contains(row.name)), "{table}");
        assert!(table.contains("1.50"), "{table}");
    }
}
