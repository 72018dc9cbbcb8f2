//! The crash harness's program: `crash run` directs a run, `crash client` is one of its client processes, and
//! `crash check` judges kept histories again. The library's header tells how it all works.

mod client;
mod director;
mod plan;

use clap::{Parser, Subcommand};
use director::{Cluster, Options, Size};
use parley_protocol::ChatId;
use std::path::PathBuf;
use std::process::ExitCode;

/// Kills and stops real servers under load, and proves that nothing acknowledged is lost, doubled or reordered.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 every promise was kept; 1 a violation, or a run that could not be finished \
                          (standard error says which); 2 wrong usage.";

#[derive(Subcommand)]
enum Command {
    /// Do a run; one JSON line on the standard output at the end
    #[command(after_help = EXIT_CODES)]
    Run {
        /// How long faults happen, in minutes
        #[arg(long, default_value_t = 1.0, value_parser = minutes)]
        minutes: f64,
        /// Decides faults and workload [default: one from the clock, printed]
        #[arg(long)]
        seed: Option<u64>,
        /// Users, each with two or three devices
        #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u32).range(20..=5_000))]
        users: u32,
        /// Client processes
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=16))]
        processes: u32,
        /// Messages a second at most
        #[arg(long, default_value_t = 4_000, value_parser = clap::value_parser!(u32).range(100..=100_000))]
        rate: u32,
        /// The program under test
        #[arg(long, value_name = "PATH")]
        parley: PathBuf,
        /// The gateway's socket driver [default: the seed decides between auto and epoll]
        #[arg(long, value_parser = ["auto", "uring", "epoll"])]
        driver: Option<String>,
        /// Nodes of a CQL cluster that keeps the rows, with two storage-writers; host:port, separated by commas
        #[arg(long, value_name = "HOST:PORT")]
        contact: Option<String>,
        /// The directory of that cluster, which `scripts/cql-cluster` runs: its nodes are killed and paused as well
        #[arg(long, value_name = "DIR", requires_all = ["contact", "cluster_script"])]
        cluster: Option<PathBuf>,
        /// The path of `scripts/cql-cluster`
        #[arg(long, value_name = "PATH")]
        cluster_script: Option<PathBuf>,
        /// Keep data, logs and histories in this directory, whatever comes
        #[arg(long, value_name = "DIR")]
        keep: Option<PathBuf>,
    },
    /// Judge the histories in a directory that a run has kept
    Check {
        /// The directory
        dir: PathBuf,
    },
    /// Print what kept histories have of one device, in order
    Show {
        /// The directory
        dir: PathBuf,
        /// Its number, as the findings name it
        #[arg(long)]
        device: u32,
        /// Only events of this chat
        #[arg(long)]
        chat: Option<ChatId>,
    },
    /// One of a run's client processes
    #[command(hide = true)]
    Client {
        #[arg(long)]
        plan: PathBuf,
        #[arg(long)]
        process: u32,
        #[arg(long)]
        history: PathBuf,
    },
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(minutes) if minutes > 0.0 && minutes <= 10_000.0 => Ok(minutes),
        _ => Err("expected minutes above 0, such as 0.5 or 10".to_owned()),
    }
}

fn main() -> ExitCode {
    let kept = match Arguments::parse().command {
        Command::Run {
            minutes,
            seed,
            users,
            processes,
            rate,
            parley,
            driver,
            contact,
            cluster,
            cluster_script,
            keep,
        } => {
            let clock =
                || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |it| it.as_secs());
            let seed = seed.unwrap_or_else(clock);
            let driver = driver.unwrap_or_else(|| if seed % 2 == 0 { "auto" } else { "epoll" }.to_owned());
            eprintln!("seed {seed}, driver {driver}");
            let size = Size { users: users as usize, processes, rate };
            // Two runs of one seed may share a cluster.
            let keyspace = format!("crash_{seed}_{}", std::process::id());
            let nodes = cluster_script.zip(cluster);
            let cluster = contact.map(|contact| Cluster { contact, keyspace, nodes });
            director::run(&Options { minutes, seed, size, parley, driver, cluster, keep })
        }
        Command::Check { dir } => director::judge(&dir).map(|verdict| {
            director::print_findings(&verdict);
            println!("{verdict:?}");
            verdict.is_clean()
        }),
        Command::Show { dir, device, chat } => director::show(&dir, device, chat).map(|()| true),
        Command::Client { plan, process, history } => client::run(&plan, process, &history).map(|()| true),
    };
    match kept {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("promises were broken");
            ExitCode::FAILURE
        }
        Err(why) => {
            eprintln!("crash: {why}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_does_not_exist_is_wrong_usage() {
        let parse = |driver| Arguments::try_parse_from(["crash", "run", "--parley", "parley", "--driver", driver]);
        for driver in ["auto", "uring", "epoll"] {
            assert!(parse(driver).is_ok(), "{driver}");
        }
        for driver in ["foo", "", "Auto"] {
            assert_eq!(parse(driver).err().map(|error| error.exit_code()), Some(2), "{driver}");
        }
    }
}
