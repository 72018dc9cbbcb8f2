//! The client processes as the director sees them: this program again, told what to do over its standard input, heard
//! over its standard output.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};

/// Lines of explanation that are kept.
const NOTES_MAX: usize = 40;

/// What a process reported last.
#[derive(Clone, Debug, Default)]
struct Report {
    acknowledged: u64,
    delivered: u64,
    live: u64,
    /// Devices that have not done what the phase asks for.
    left: u64,
    quiet: bool,
    done: bool,
    fatal: Option<String>,
    notes: Vec<String>,
}

struct Process {
    child: Child,
    orders: ChildStdin,
    report: Arc<Mutex<Report>>,
}

/// All of them. Dropping it ends them.
pub(crate) struct Clients(Vec<Process>);

/// The sums over all processes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sums {
    pub(crate) acknowledged: u64,
    pub(crate) delivered: u64,
    pub(crate) live: u64,
    pub(crate) left: u64,
}

/// The history of a process.
pub(crate) fn history_path(dir: &Path, process: u32) -> PathBuf {
    dir.join(format!("client-{process}.history"))
}

fn lock(report: &Mutex<Report>) -> MutexGuard<'_, Report> {
    report.lock().expect("no holder panics")
}

impl Clients {
    pub(crate) fn start(dir: &Path, plan: &Path, processes: u32) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut clients = Self(Vec::new());
        for process in 0..processes {
            let mut command = Command::new(&program);
            command.arg("client").arg("--plan").arg(plan);
            command.args(["--process", &process.to_string()]).arg("--history").arg(history_path(dir, process));
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().map_err(|error| format!("{}: {error}", program.display()))?;
            let (Some(orders), Some(out)) = (child.stdin.take(), child.stdout.take()) else {
                return Err("a client process without pipes".to_owned());
            };
            let report = Arc::new(Mutex::new(Report::default()));
            let heard = Arc::clone(&report);
            std::thread::spawn(move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    take_line(&mut lock(&heard), &line);
                }
                let mut report = lock(&heard);
                if !report.done && report.fatal.is_none() {
                    report.fatal = Some("it ended without a word".to_owned());
                }
            });
            clients.0.push(Process { child, orders, report });
        }
        Ok(clients)
    }

    /// Tells all of them.
    pub(crate) fn tell(&mut self, order: &str) {
        for process in &mut self.0 {
            // One that is gone shows in `watch`.
            let _ = writeln!(process.orders, "{order}").and_then(|()| process.orders.flush());
        }
    }

    /// An error if one of them gave up.
    pub(crate) fn watch(&self) -> Result<(), String> {
        for (number, process) in self.0.iter().enumerate() {
            if let Some(why) = &lock(&process.report).fatal {
                return Err(format!("client process {number}: {why}"));
            }
        }
        Ok(())
    }

    pub(crate) fn sums(&self) -> Sums {
        self.0.iter().fold(Sums::default(), |sums, process| {
            let report = lock(&process.report);
            Sums {
                acknowledged: sums.acknowledged + report.acknowledged,
                delivered: sums.delivered + report.delivered,
                live: sums.live + report.live,
                left: sums.left + report.left,
            }
        })
    }

    pub(crate) fn all_quiet(&self) -> bool {
        self.0.iter().all(|process| lock(&process.report).quiet)
    }

    pub(crate) fn all_done(&self) -> bool {
        self.0.iter().all(|process| lock(&process.report).done)
    }

    /// What they said about devices that are stuck.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.0.iter().flat_map(|process| lock(&process.report).notes.clone()).collect()
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        for process in &mut self.0 {
            if !lock(&process.report).done {
                let _ = process.child.kill();
            }
            let _ = process.child.wait();
        }
    }
}

fn take_line(report: &mut Report, line: &str) {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "progress" => {
            let mut numbers = rest.split(' ').map(|number| number.parse().unwrap_or(0));
            let mut next = || numbers.next().unwrap_or(0);
            (report.acknowledged, report.delivered, report.live, report.left) = (next(), next(), next(), next());
        }
        "quiet" => report.quiet = true,
        "done" => report.done = true,
        "fatal" => report.fatal = Some(rest.to_owned()),
        _ if report.notes.len() < NOTES_MAX => report.notes.push(rest.to_owned()),
        _ => {}
    }
}
