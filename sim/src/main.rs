//! `sim`: runs seeds, says what it saw, shrinks what fails.

use clap::Parser;
use sim::{Plan, Preset, Report, catch_panics, run, shrink};
use std::process::ExitCode;
use std::time::Instant;

/// Runs the shipping cores in a made-up world, from a seed. Prints a hash of everything that happened: the same seed
/// gives the same hash. Ends with 1 on a violation, after making it smaller and telling its last events.
#[derive(Parser)]
#[command(name = "sim", version)]
struct Arguments {
    /// Where all randomness comes from; the first one with --seeds.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds to run, one after the other.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Events before faults stop.
    #[arg(long, default_value_t = Plan::TICKS)]
    ticks: u64,
    /// Sizes of queues and buffers: default or tiny. Drawn from the seed unless given.
    #[arg(long)]
    preset: Option<String>,
    /// People. Drawn from the seed unless given.
    #[arg(long)]
    users: Option<u32>,
    /// Shards of a gateway. Drawn from the seed unless given.
    #[arg(long)]
    shards: Option<u16>,
    /// Actions and faults that do not happen, by name, with commas between.
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Lines of what happened last that are printed on a violation, or with --tell.
    #[arg(long, default_value_t = 60)]
    lines: usize,
    /// Tells what happened last also when nothing is wrong.
    #[arg(long)]
    tell: bool,
    /// Prints a violation as it is found, without making it smaller.
    #[arg(long)]
    no_shrink: bool,
    /// Goes on after a violation: prints the seeds that fail, one a line.
    #[arg(long)]
    keep_going: bool,
    /// Plants a bug in a core, by name. Needs the feature `planted`.
    #[cfg(feature = "planted")]
    #[arg(long)]
    plant: Option<String>,
}

impl Arguments {
    /// What a command needs so that the same bug is planted again.
    fn planted(&self) -> (&'static str, String) {
        #[cfg(feature = "planted")]
        if let Some(name) = &self.plant {
            return (" --features planted", format!(" --plant {name}"));
        }
        ("", String::new())
    }

    fn plan(&self, seed: u64) -> Result<Plan, String> {
        let preset = match self.preset.as_deref() {
            None => None,
            Some("default") => Some(Preset::Default),
            Some("tiny") => Some(Preset::Tiny),
            Some(other) => return Err(format!("no preset `{other}`; there are default and tiny")),
        };
        let mut plan = Plan::new(seed, self.ticks, preset);
        plan.users = self.users.unwrap_or(plan.users).max(1);
        plan.shards = self.shards.unwrap_or(plan.shards).clamp(1, 64);
        self.without.iter().try_for_each(|name| plan.leave_out(name))?;
        Ok(plan)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    catch_panics();
    #[cfg(feature = "planted")]
    if let Some(name) = &arguments.plant
        && let Err(error) = sim::plant(name)
    {
        eprintln!("sim: {error}");
        return ExitCode::from(2);
    }
    match all(&arguments) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sim: {error}");
            ExitCode::from(2)
        }
    }
}

/// How many seeds failed.
fn all(arguments: &Arguments) -> Result<u64, String> {
    let started = Instant::now();
    let (mut ticks, mut failed) = (0, 0);
    for seed in arguments.seed..arguments.seed.saturating_add(arguments.seeds) {
        let plan = arguments.plan(seed)?;
        let report = run(&plan, arguments.tell);
        ticks += report.ticks;
        if arguments.tell {
            tell(&report, arguments.lines);
        }
        if arguments.seeds == 1 {
            println!(
                "seed {seed}: hash {:016x}, {} events, {} ms of virtual time, {} events in logs",
                report.hash, report.ticks, report.ms, report.logged
            );
        }
        if report.violation.is_some() {
            failed += 1;
            explain(arguments, &plan, &report);
            if !arguments.keep_going {
                break;
            }
        }
        if arguments.seeds > 1 && (seed + 1 - arguments.seed).is_multiple_of(1_000) {
            eprintln!("{} seeds, {failed} failed", seed + 1 - arguments.seed);
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    if arguments.seeds > 1 {
        println!(
            "{} seeds from {}, {failed} failed, {ticks} events in {seconds:.1} s: {:.0} a second",
            arguments.seeds,
            arguments.seed,
            ticks as f64 / seconds
        );
    }
    Ok(failed)
}

fn explain(arguments: &Arguments, plan: &Plan, report: &Report) {
    let violation = report.violation.clone().expect("it failed");
    println!("seed {} violates `{}` after {} events: {}", plan.seed, violation.oracle, violation.tick, violation.what);
    if arguments.keep_going {
        return;
    }
    let (plan, violation) = if arguments.no_shrink {
        (plan.clone(), violation)
    } else {
        eprintln!("making it smaller ...");
        shrink(plan, &violation)
    };
    tell(&run(&plan, true), arguments.lines);
    println!("`{}` after {} events: {}", violation.oracle, violation.tick, violation.what);
    let (feature, plant) = arguments.planted();
    println!("again: cargo run --release -p sim{feature} -- {}{plant} --no-shrink", plan.command_line());
}

fn tell(report: &Report, lines: usize) {
    report.lines.iter().skip(report.lines.len().saturating_sub(lines)).for_each(|line| println!("{line}"));
}
