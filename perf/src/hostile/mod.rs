//! The scenario `hostile`: an honest open loop, measured alone and beside each attack in turn, so that a table says what
//! one client can do to the others. Every attack stands between two runs without one, and is compared with those.

pub(crate) mod args;
mod attacks;
mod client;

pub(crate) use attacks::{Kind, Strength};

use crate::cpu::Probe;
use crate::direct;
use crate::net::Url;
use crate::tokens::Tokens;
use attacks::Attack;
use serde::Serialize;

/// What is compared.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The honest load; every run of it gets a number of its own.
    pub(crate) honest: direct::Settings,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) strength: Strength,
    /// How often the whole round of attacks is repeated.
    pub(crate) rounds: u32,
}

/// One run.
#[derive(Clone, Copy, Debug, Serialize)]
struct Sample {
    p50_ms: f64,
    p99_ms: f64,
    /// Attacks a second that were carried out, in the attack's own unit.
    attacks_per_s: f64,
    /// Resident memory of the gateway after it.
    gateway_mib: Option<f64>,
}

/// An attack beside the runs around it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    attack: Kind,
    unit: &'static str,
    attacks_per_s: f64,
    alone_p99_ms: f64,
    beside_p99_ms: f64,
    /// Of the medians above.
    ratio: f64,
    gateway_mib: Option<f64>,
}

/// What came out. The last line on stdout.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    rate: u64,
    connections: u32,
    seconds: f64,
    rounds: u32,
    driver: String,
    lines: Vec<Line>,
    #[serde(skip)]
    pub(crate) broken: Vec<String>,
}

/// Runs all of it.
pub(crate) fn run(settings: &Settings, tokens: &Tokens) -> Result<Report, String> {
    let mut broken = Vec::new();
    let mut samples: Vec<Vec<(Sample, Sample)>> = vec![Vec::new(); settings.kinds.len()];
    let mut before = measure(settings, tokens, None, &mut broken)?;
    for round in 1..=settings.rounds {
        for (kind, samples) in settings.kinds.iter().zip(&mut samples) {
            eprintln!("round {round} of {}: beside {}", settings.rounds, kind.what());
            let beside = measure(settings, tokens, Some(*kind), &mut broken)?;
            eprintln!("round {round} of {}: alone", settings.rounds);
            let after = measure(settings, tokens, None, &mut broken)?;
            let p99_ms = (before.p99_ms + after.p99_ms) / 2.0;
            samples.push((Sample { p99_ms, ..after }, beside));
            before = after;
        }
    }
    let lines = settings.kinds.iter().zip(&samples).map(|(kind, samples)| line(*kind, samples)).collect();
    Ok(Report {
        rate: settings.strength.honest_rate,
        connections: settings.honest.users,
        seconds: settings.honest.measured_ns as f64 / 1e9,
        rounds: settings.rounds,
        driver: settings.honest.driver.clone(),
        lines,
        broken,
    })
}

/// One run of the honest load, with an attack around all of it or without.
fn measure(
    settings: &Settings,
    tokens: &Tokens,
    kind: Option<Kind>,
    broken: &mut Vec<String>,
) -> Result<Sample, String> {
    let mut number = [0; 8];
    getrandom::fill(&mut number).map_err(|error| format!("no randomness: {error}"))?;
    let honest = direct::Settings { run: u64::from_le_bytes(number), ..settings.honest.clone() };
    let url: &Url = &honest.url;
    let attack = kind.map(|kind| Attack::start(kind, settings.strength, url, tokens)).transpose()?;
    let report = direct::run(&honest, tokens)?;
    let attacks_per_s = attack.map(Attack::stop).transpose()?.unwrap_or(0.0);
    let during = kind.map_or("alone", Kind::what);
    broken.extend(report.broken().into_iter().map(|what| format!("{during}: {what}")));
    let (p50_ms, p99_ms) = report.latency_ms();
    let gateway_mib = honest.probes.gateway.and_then(resident_mib);
    Ok(Sample { p50_ms, p99_ms, attacks_per_s, gateway_mib })
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

fn line(kind: Kind, samples: &[(Sample, Sample)]) -> Line {
    let of = |pick: &dyn Fn(&(Sample, Sample)) -> f64| median(samples.iter().map(pick).collect());
    let (alone, beside) = (of(&|pair| pair.0.p99_ms), of(&|pair| pair.1.p99_ms));
    let two = |value: f64| (value * 100.0).round() / 100.0;
    Line {
        attack: kind,
        unit: kind.unit(),
        attacks_per_s: of(&|pair| pair.1.attacks_per_s).round(),
        alone_p99_ms: two(alone),
        beside_p99_ms: two(beside),
        ratio: if alone > 0.0 { two(beside / alone) } else { 0.0 },
        gateway_mib: samples.iter().filter_map(|pair| pair.1.gateway_mib).reduce(f64::max),
    }
}

impl Report {
    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "honest p99 beside attacks: {} users, {} messages/s, {} s each, {} rounds, driver {}\n\
             {:<16} {:>9} {:<14} {:>12} {:>12} {:>6} {:>12}\n",
            self.connections,
            self.rate,
            self.seconds,
            self.rounds,
            self.driver,
            "attack",
            "a second",
            "",
            "alone ms",
            "beside ms",
            "ratio",
            "gateway MiB",
        );
        for line in &self.lines {
            let memory = line.gateway_mib.map_or_else(|| "-".to_owned(), |mib| format!("{mib:.1}"));
            text.push_str(&format!(
                "{:<16} {:>9} {:<14} {:>12.2} {:>12.2} {:>6.2} {:>12}\n",
                line.attack.name(),
                line.attacks_per_s,
                line.unit,
                line.alone_p99_ms,
                line.beside_p99_ms,
                line.ratio,
                memory,
            ));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(p99_ms: f64) -> Sample {
        Sample { p50_ms: 1.0, p99_ms, attacks_per_s: 10.0, gateway_mib: Some(p99_ms) }
    }

    #[test]
    fn a_line_compares_medians_so_one_bad_round_does_not_count() {
        let samples = [(sample(2.0), sample(3.0)), (sample(2.0), sample(90.0)), (sample(2.0), sample(4.0))];
        let line = line(Kind::Pings, &samples);
        assert_eq!((line.alone_p99_ms, line.beside_p99_ms, line.ratio), (2.0, 4.0, 2.0));
        assert_eq!((line.attacks_per_s, line.gateway_mib), (10.0, Some(90.0)));
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
    }

    #[test]
    fn the_table_has_a_row_for_each_attack() {
        let lines: Vec<Line> = Kind::ALL.iter().map(|kind| line(*kind, &[(sample(1.0), sample(1.5))])).collect();
        let report = Report {
            rate: 1_000,
            connections: 200,
            seconds: 10.0,
            rounds: 3,
            driver: "epoll".to_owned(),
            lines,
            broken: Vec::new(),
        };
        let table = report.table();
        assert_eq!(table.lines().count(), 2 + Kind::ALL.len());
        assert!(Kind::ALL.iter().all(|kind| table.contains(kind.name())), "{table}");
        assert!(table.contains("1.50"), "{table}");
    }
}
