//! The stable side of `scripts/fuzz`: lists targets, replays files, generates inputs, and hands seeds and dictionaries to
//! the coverage-guided fuzzer.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use fuzz::mutate::{Random, generate};
use fuzz::{TARGETS, Target, corpus};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "fuzz", about = "Replays and generates inputs for the fuzz targets; scripts/fuzz says more")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The targets, one a line.
    List,
    /// Runs inputs, one file each; stops at the first that breaks an invariant.
    Replay {
        /// The target.
        target: String,
        /// The inputs.
        files: Vec<PathBuf>,
    },
    /// Replays the corpus and generates inputs; an input that breaks an invariant is left in a file.
    Generated {
        /// The target.
        target: String,
        /// How many inputs.
        count: u64,
        /// The number of the first; each number is one input.
        #[arg(long, default_value_t = 0)]
        first: u64,
        /// Where an input that breaks an invariant is left.
        #[arg(long, default_value = ".")]
        crashes: PathBuf,
    },
    /// Writes every seed of a target into a folder.
    Seeds {
        /// The target.
        target: String,
        /// The folder, made if it is not there.
        folder: PathBuf,
    },
    /// Prints a target's dictionary as libFuzzer reads it.
    Dictionary {
        /// The target.
        target: String,
    },
}

fn named(name: &str) -> Result<&'static Target, String> {
    let names = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
    fuzz::target(name).ok_or_else(|| format!("no target `{name}`; there are: {}", names()))
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fuzz: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), String> {
    match command {
        Command::List => TARGETS.iter().for_each(|target| println!("{:<20} {}", target.name, target.about)),
        Command::Replay { target, files } => {
            let target = named(&target)?;
            for file in files {
                let bytes = std::fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
                println!("{}: {:?}", file.display(), (target.run)(&bytes));
            }
        }
        Command::Generated { target, count, first, crashes } => generated(named(&target)?, count, first, &crashes)?,
        Command::Seeds { target, folder } => {
            let target = named(&target)?;
            std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
            for (number, seed) in seeds(target)?.iter().enumerate() {
                let path = folder.join(format!("seed-{number:04}"));
                std::fs::write(&path, seed).map_err(|error| format!("{}: {error}", path.display()))?;
            }
        }
        Command::Dictionary { target } => {
            for word in named(&target)?.dictionary {
                let hex: String = word.iter().map(|byte| format!("\\x{byte:02x}")).collect();
                println!("\"{hex}\"");
            }
        }
    }
    Ok(())
}

fn seeds(target: &Target) -> Result<Vec<Vec<u8>>, String> {
    let seeds = corpus::seeds(target).map_err(|error| format!("the corpus of {}: {error}", target.name))?;
    Ok(seeds.into_iter().map(|seed| seed.bytes).collect())
}

fn generated(target: &Target, count: u64, first: u64, crashes: &std::path::Path) -> Result<(), String> {
    let seeds = seeds(target)?;
    let seeds: Vec<&[u8]> = seeds.iter().map(Vec::as_slice).collect();
    for seed in &seeds {
        (target.run)(seed);
    }
    let started = std::time::Instant::now();
    let mut taken = 0;
    for number in first..first.saturating_add(count) {
        let input = generate(&mut Random::new(number), &seeds, target.dictionary, target.input_bytes_max);
        match std::panic::catch_unwind(|| (target.run)(&input)) {
            Ok(verdict) => taken += u64::from(verdict == fuzz::Verdict::Taken),
            Err(_) => {
                let path = crashes.join(format!("crash-{}-{number}", target.name));
                std::fs::write(&path, &input).map_err(|error| format!("{}: {error}", path.display()))?;
                return Err(format!("input {number} of {} breaks an invariant: {}", target.name, path.display()));
            }
        }
    }
    let per_s = count as f64 / started.elapsed().as_secs_f64().max(1e-9);
    println!("{}: {} seeds, {count} generated inputs, {taken} taken, {per_s:.0} a second", target.name, seeds.len());
    Ok(())
}
