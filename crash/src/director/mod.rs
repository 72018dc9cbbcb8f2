//! The director of a run: starts everything, lets the faults happen, ends them, has everybody sync, and has the checker
//! judge.

mod clients;
mod faults;
mod servers;
mod setup;

use crate::plan::INBOX_LIMIT;
use clients::{Clients, history_path};
use crash::checker::{Verdict, check_files};
use crash::history::{Reader, Record};
use crash::random::Random;
use faults::{Counts, Fleet, choose, first_round, pause, weights};
use parley_protocol::ChatId;
pub(crate) use servers::Cluster;
use servers::{Place, two_addresses};
pub(crate) use setup::Size;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between the recovery from a fault and the next one: so much, and up to so much more.
const CALM_MS: u64 = 600;
const CALM_SPREAD_MS: u64 = 3_400;
/// After a fault, until acknowledgements come again.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(60);
/// After the last fault, until every command is answered.
const QUIET_PATIENCE: Duration = Duration::from_secs(120);
/// Then, while devices go on coming to the heads of their streams: for so long after the last one that did.
const SYNC_PATIENCE: Duration = Duration::from_secs(60);
const PROGRESS: Duration = Duration::from_secs(5);

/// What to run.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) minutes: f64,
    pub(crate) seed: u64,
    pub(crate) size: Size,
    pub(crate) parley: PathBuf,
    pub(crate) driver: String,
    /// Where rows are, if not in files.
    pub(crate) cluster: Option<Cluster>,
    /// Where data, logs and histories stay; else they go if all is well.
    pub(crate) keep: Option<PathBuf>,
}

/// The line at the end.
#[derive(Debug, serde::Serialize)]
struct Outcome {
    seed: u64,
    minutes: f64,
    #[serde(flatten)]
    counts: Counts,
    acknowledged: u64,
    delivered: u64,
    unknown: u64,
    refused: u64,
    lost: u64,
    duplicated: u64,
    reordered: u64,
    wrong: u64,
    /// Devices that did not come to the head of their streams in time.
    behind: u64,
}

/// The histories in a directory, in the order in which the checker wants them: devices are introduced first.
pub(crate) fn histories(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let clients = (0..).map(|process| history_path(dir, process)).take_while(|path| path.exists());
    let mut paths: Vec<PathBuf> = clients.collect();
    let setup = dir.join("setup.history");
    if paths.is_empty() || !setup.exists() {
        return Err(format!("{}: no client-0.history and setup.history here", dir.display()));
    }
    paths.push(setup);
    Ok(paths)
}

/// Judges the histories in a directory.
pub(crate) fn judge(dir: &Path) -> Result<Verdict, String> {
    check_files(&histories(dir)?, INBOX_LIMIT).map_err(|error| error.to_string())
}

/// Findings, for people.
pub(crate) fn print_findings(verdict: &Verdict) {
    verdict.findings.iter().for_each(|finding| eprintln!("{finding}"));
}

/// Prints the records of one device; of events those of one chat, if asked for.
pub(crate) fn show(dir: &Path, device: u32, only: Option<ChatId>) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    for path in histories(dir)? {
        let file = std::fs::File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        for record in Reader::new(std::io::BufReader::new(file)) {
            let record = record.map_err(|error| format!("{}: {error}", path.display()))?;
            let of = match record {
                Record::Stored { .. } => continue,
                // Who came and went concerns everybody in the chat.
                Record::Member { chat, .. } if only != Some(chat) => continue,
                Record::Member { .. } => device,
                Record::Offer { device, chat, .. } | Record::Ack { device, chat, .. } => {
                    if only.is_some_and(|only| only != chat) { continue } else { device }
                }
                Record::Event { device, seen } | Record::Fetch { device, seen } => {
                    if only.is_some_and(|only| only != seen.chat) { continue } else { device }
                }
                Record::Device { device, .. }
                | Record::Refused { device, .. }
                | Record::Connect { device, .. }
                | Record::Mark { device, .. }
                | Record::Truncated { device } => device,
            };
            // A reader that had enough is no error.
            if of == device && writeln!(out, "{record:?}").is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// A whole run. `Ok(false)`: promises were broken. `Err`: something went wrong before that could be said.
pub(crate) fn run(options: &Options) -> Result<bool, String> {
    let (dir, temporary) = match &options.keep {
        Some(dir) => {
            std::fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
            if dir.join("data").exists() {
                return Err(format!("{}: has the data of another run", dir.display()));
            }
            (dir.clone(), None)
        }
        None => {
            // Beside the program: on the disk, where the system's temporary directory may be memory.
            let beside = options.parley.parent().unwrap_or(Path::new("."));
            let directory = tempfile::Builder::new().prefix("crash-").tempdir_in(beside);
            let directory = directory.map_err(|error| format!("{}: {error}", beside.display()))?;
            (directory.path().to_owned(), Some(directory))
        }
    };
    let ended = direct(options, &dir).and_then(|(counts, behind)| {
        let verdict = judge(&dir)?;
        print_findings(&verdict);
        let Verdict { acknowledged, delivered, unknown, refused, lost, duplicated, reordered, wrong, .. } = verdict;
        let (seed, minutes) = (options.seed, options.minutes);
        let outcome = Outcome {
            seed,
            minutes,
            counts,
            acknowledged,
            delivered,
            unknown,
            refused,
            lost,
            duplicated,
            reordered,
            wrong,
            behind,
        };
        println!("{}", serde_json::to_string(&outcome).map_err(|error| error.to_string())?);
        Ok(verdict.is_clean() && behind == 0)
    });
    if ended != Ok(true) {
        let dir = temporary.map_or(dir, tempfile::TempDir::keep);
        eprintln!("data, logs and histories are in {}", dir.display());
        eprintln!("judge the histories again: crash check {}", dir.display());
        eprintln!("the same faults again: {}", replay(options));
    }
    ended
}

/// The command that repeats a run's faults and workload, with all that decides them: defaults may change.
fn replay(options: &Options) -> String {
    let Options { minutes, seed, size: Size { users, processes, rate }, driver, .. } = options;
    let store = if options.cluster.is_some() { " --store scylla" } else { "" };
    format!(
        "scripts/crash-test --minutes {minutes} --seed {seed} --users {users} --processes {processes} --rate {rate} \
         --driver {driver}{store}"
    )
}

/// The run itself, until everything is written down and the servers have ended: what was done, and how many devices did
/// not come to the heads of their streams.
fn direct(options: &Options, dir: &Path) -> Result<(Counts, u64), String> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(|error| error.to_string())?;
    }
    let Options { parley, driver, cluster, .. } = options;
    let place = Place { parley: parley.clone(), dir: dir.to_owned(), driver: driver.clone(), cluster: cluster.clone() };
    place.prepare()?;
    let weights = weights(&place);
    let addresses = two_addresses()?;
    let mut random = Random::new(options.seed, u64::MAX);
    let mut fleet = Fleet::new(place.clone(), addresses.clone());
    fleet.start(&mut random, &mut || stopped(&stop))?;
    let plan = setup::prepare(&place, addresses, options.seed, options.size, &dir.join("setup.history"))?;
    let plan_path = dir.join("plan.json");
    plan.save(&plan_path)?;
    let mut clients = Clients::start(dir, &plan_path, options.size.processes)?;
    let began = Instant::now();
    let mut progress = Progress { began, last: began };
    let end = began + Duration::from_secs_f64(options.minutes * 60.0);
    let mut round = first_round(&weights, &mut random);
    while Instant::now() < end {
        let counts = fleet.counts;
        let mut watch = || {
            progress.tell(&clients, counts);
            stopped(&stop)?;
            clients.watch()
        };
        pause(Duration::from_millis(CALM_MS + random.below(CALM_SPREAD_MS)), &mut watch)?;
        fleet.must_run()?;
        let fault = round.pop().unwrap_or_else(|| choose(&weights, &mut random));
        eprintln!("{:4} s  {fault:?}", began.elapsed().as_secs());
        fleet.suffer(fault, &mut random, &mut watch)?;
        let before = clients.sums().acknowledged;
        let deadline = Instant::now() + RECOVERY_PATIENCE;
        while clients.sums().acknowledged <= before {
            watch()?;
            fleet.must_run()?;
            if Instant::now() > deadline {
                return Err(stuck(
                    &mut clients,
                    &format!("nothing is acknowledged {RECOVERY_PATIENCE:?} after {fault:?}"),
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let counts = fleet.counts;
    let mut watch = |clients: &Clients, fleet: &mut Fleet| {
        progress.tell(clients, counts);
        std::thread::sleep(Duration::from_millis(20));
        stopped(&stop)?;
        clients.watch()?;
        fleet.must_run()
    };
    eprintln!("faults are over: every command gets its answer");
    clients.tell("quiet");
    let deadline = Instant::now() + QUIET_PATIENCE;
    while !clients.all_quiet() {
        watch(&clients, &mut fleet)?;
        if Instant::now() > deadline {
            return Err(stuck(&mut clients, "commands without an answer, or devices without a connection"));
        }
    }
    eprintln!("every device comes to the head of its stream, and the logs are read");
    clients.tell("sync");
    let (mut left, mut moved, mut behind) = (0, Instant::now(), 0);
    while !clients.all_done() {
        watch(&clients, &mut fleet)?;
        if clients.sums().left != left {
            (left, moved) = (clients.sums().left, Instant::now());
        }
        if behind == 0 && moved.elapsed() > SYNC_PATIENCE {
            // What they have is judged all the same: it tells what is missing.
            behind = left.max(1);
            eprintln!("{}", stuck(&mut clients, &format!("{left} devices are not at the head of their streams")));
            clients.tell("end");
        }
    }
    drop(clients);
    eprintln!("ending the servers, proving the store");
    let counts = fleet.end(&mut || stopped(&stop))?;
    eprintln!("judging");
    Ok((counts, behind))
}

fn stopped(stop: &AtomicBool) -> Result<(), String> {
    if stop.load(Ordering::Relaxed) { Err("stopped by a signal".to_owned()) } else { Ok(()) }
}

/// Asks the clients what they wait for.
fn stuck(clients: &mut Clients, what: &str) -> String {
    clients.tell("explain");
    std::thread::sleep(Duration::from_secs(1));
    format!("{what}:\n  {}", clients.notes().join("\n  "))
}

/// A line every few seconds.
struct Progress {
    began: Instant,
    last: Instant,
}

impl Progress {
    fn tell(&mut self, clients: &Clients, counts: Counts) {
        if self.last.elapsed() < PROGRESS {
            return;
        }
        self.last = Instant::now();
        let sums = clients.sums();
        eprintln!(
            "{:4} s  kills {}  stops {}  acknowledged {}  delivered {}  connected {}  unfinished {}",
            self.began.elapsed().as_secs(),
            counts.kills,
            counts.stops,
            sums.acknowledged,
            sums.delivered,
            sums.live,
            sums.left
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_that_repeats_a_run_names_all_that_decides_it() {
        let size = Size { users: 30, processes: 2, rate: 500 };
        let (parley, driver) = (PathBuf::from("parley"), "uring".to_owned());
        let mut options = Options { minutes: 0.5, seed: 7, size, parley, driver, cluster: None, keep: None };
        let expected = "scripts/crash-test --minutes 0.5 --seed 7 --users 30 --processes 2 --rate 500 --driver uring";
        assert_eq!(replay(&options), expected);
        let keyspace = "crash_7".to_owned();
        options.cluster = Some(Cluster { contact: "127.0.0.1:9042".to_owned(), keyspace, nodes: None });
        assert_eq!(replay(&options), format!("{expected} --store scylla"));
    }
}
