//! `sim`: runs seeds, says what it saw, shrinks what fails.

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use sim::{Action, Fault, Overflow, Plan, Preset, Report, Store, catch_panics, run, shrink};
use std::process::ExitCode;
use std::time::Instant;

/// Runs the shipping cores in a made-up world, from a seed. Prints a hash of everything that happened: the same seed
/// gives the same hash. On a violation it makes the plan smaller and tells its last events.
#[derive(Debug, Parser)]
#[command(name = "sim", version, after_help = after_help())]
struct Arguments {
    /// Where all randomness comes from; the first one with --seeds.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds to run, one after the other.
    #[arg(long, default_value_t = 1, value_parser = from_one::<u64>())]
    seeds: u64,
    /// Events before faults stop.
    #[arg(long, default_value_t = Plan::TICKS, value_parser = from_one::<u64>())]
    ticks: u64,
    /// Sizes of queues and buffers: default or tiny. Drawn from the seed unless given.
    #[arg(long)]
    preset: Option<String>,
    /// Where writers keep everything: local or cluster. Drawn from the seed unless given.
    #[arg(long)]
    store: Option<String>,
    /// People. Drawn from the seed unless given.
    #[arg(long, value_parser = from_one::<u32>())]
    users: Option<u32>,
    /// Shards of a gateway, 64 at the most. Drawn from the seed unless given.
    #[arg(long, value_parser = from_one::<u16>().range(1..=64))]
    shards: Option<u16>,
    /// Actions and faults that do not happen, by name (below), with commas between.
    #[arg(long, value_delimiter = ',', value_name = "NAME,NAME...")]
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
    /// Prints which bounds were reached, in how many seeds, and how often.
    #[arg(long)]
    overflows: bool,
    /// Plants a bug in a core, by name. Needs the feature `planted`.
    #[cfg(feature = "planted")]
    #[arg(long)]
    plant: Option<String>,
}

/// A number that is not 0: a run of nothing would look like one in which every promise was kept.
fn from_one<T: TryFrom<u64>>() -> RangedU64ValueParser<T> {
    RangedU64ValueParser::new().range(1..)
}

fn after_help() -> String {
    let actions: Vec<_> = Action::ALL.iter().map(|one| one.name()).collect();
    let faults: Vec<_> = Fault::ALL.iter().map(|one| one.name()).collect();
    format!(
        "What --without takes:\n  actions: {}\n  faults:  {}\n\n\
         Exit code 0: every promise was kept; 1: a violation; 2: wrong usage.",
        wrapped(&actions),
        wrapped(&faults)
    )
}

/// Names with commas between, in lines that a terminal shows whole, behind a label.
fn wrapped(names: &[&str]) -> String {
    const LINE_BYTES_MAX: usize = 88;
    let mut text = String::new();
    let mut line = 0;
    for (at, name) in names.iter().enumerate() {
        if at > 0 {
            text.push(',');
            let fits = line + name.len() + 2 <= LINE_BYTES_MAX;
            text.push_str(if fits { " " } else { "\n           " });
            line = if fits { line + 2 } else { 0 };
        }
        text.push_str(name);
        line += name.len();
    }
    text
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
        plan.store = match self.store.as_deref() {
            None => plan.store,
            Some("local") => Store::Local,
            Some("cluster") => Store::Cluster,
            Some(other) => return Err(format!("no store `{other}`; there are local and cluster")),
        };
        plan.users = self.users.unwrap_or(plan.users);
        plan.shards = self.shards.unwrap_or(plan.shards);
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
    let mut reached = [(0, 0); Overflow::ALL.len()];
    let last = arguments.seed.checked_add(arguments.seeds - 1).ok_or("there are not so many seeds above --seed")?;
    for seed in arguments.seed..=last {
        let plan = arguments.plan(seed)?;
        let report = run(&plan, arguments.tell);
        ticks += report.ticks;
        for (overflow, (seeds, times)) in Overflow::ALL.into_iter().zip(&mut reached) {
            let of_this = report.overflows.of(overflow);
            (*seeds, *times) = (*seeds + u64::from(of_this > 0), *times + of_this);
        }
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
        let done = seed - arguments.seed + 1;
        if arguments.seeds > 1 && done.is_multiple_of(1_000) {
            eprintln!("{done} seeds, {failed} failed");
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
    if arguments.overflows {
        for (overflow, (seeds, times)) in Overflow::ALL.into_iter().zip(reached) {
            println!("{:<16} {seeds:>6} seeds {times:>9} times", overflow.name());
        }
    }
    Ok(failed)
}

fn explain(arguments: &Arguments, plan: &Plan, report: &Report) {
    let violation = report.violation.clone().expect("it failed");
    println!("seed {} violates `{}` after {} events: {}", plan.seed, violation.oracle, violation.tick, violation.what);
    if arguments.keep_going {
        return;
    }
    println!("its plan: {}", plan.describe());
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parsed(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(std::iter::once("sim").chain(line.split_whitespace()))
    }

    #[test]
    fn runs_of_nothing_are_refused() {
        for line in ["--seeds 0", "--users 0", "--shards 0", "--shards 65", "--ticks 0", "--seeds -1"] {
            assert_eq!(parsed(line).expect_err(line).exit_code(), 2, "{line}");
        }
        let least = parsed("--seeds 1 --users 1 --shards 1 --ticks 1").expect("all are taken");
        assert_eq!((least.seeds, least.users, least.shards, least.ticks), (1, Some(1), Some(1), 1));
        assert_eq!(parsed("--shards 64").expect("taken").shards, Some(64));
    }

    #[test]
    fn seeds_end_where_numbers_end() {
        assert!(all(&parsed(&format!("--seed {} --seeds 2", u64::MAX)).expect("numbers")).is_err());
        assert_eq!(all(&parsed(&format!("--seed {} --ticks 10", u64::MAX)).expect("numbers")), Ok(0));
    }

    #[test]
    fn help_names_the_exit_codes_and_what_can_be_left_out() {
        let help = Arguments::command().render_help().to_string();
        assert!(help.contains("Exit code 0: every promise was kept; 1: a violation; 2: wrong usage."), "{help}");
        let names = Action::ALL.iter().map(|one| one.name()).chain(Fault::ALL.iter().map(|one| one.name()));
        let words: Vec<&str> = help.split([' ', ',', '\n']).collect();
        for name in names {
            assert!(words.contains(&name), "{name}: {help}");
            let mut plan = Plan::new(1, 1, None);
            assert_eq!(plan.leave_out(name), Ok(()));
        }
        assert!(after_help().lines().all(|line| line.len() <= 100), "{help}");
    }
}
