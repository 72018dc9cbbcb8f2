//! One real process of the `parley` binary: started, watched, signalled by its pid, ended when the test ends. What it
//! prints is kept and shown when the test fails.

use super::{PATIENCE, poll};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Lines kept of one process.
const LINES_MAX: usize = 4_000;

/// Everything that a process printed, newest last.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<VecDeque<String>>>);

impl Log {
    fn push(&self, line: String) {
        let mut lines = self.0.lock().expect("no writer panics");
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// All lines as one text.
    pub(crate) fn text(&self) -> String {
        self.0.lock().expect("no writer panics").iter().map(|line| format!("{line}\n")).collect()
    }
}

/// A running or ended process.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: Log,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts `parley ARGS` with these additions to the environment.
    pub(crate) fn spawn<A: AsRef<OsStr>>(name: &str, args: &[A], env: &[(String, String)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_parley"));
        // The tester's own settings must not change what is tested.
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("PARLEY_")) {
            command.env_remove(key);
        }
        command.args(args).envs(env.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary under test starts");
        let log = Log::default();
        let readers = vec![
            follow(child.stdout.take().expect("piped"), log.clone()),
            follow(child.stderr.take().expect("piped"), log.clone()),
        ];
        Self { name: name.to_owned(), child, log, readers }
    }

    /// Waits for the line that begins with `ready`.
    pub(crate) fn wait_ready(&mut self) {
        let log = self.log.clone();
        poll(&format!("{} to be ready", self.name), || {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                panic!("{} ended with {status} before it was ready:\n{}", self.name, log.text());
            }
            log.text().lines().any(|line| line.starts_with("ready"))
        });
    }

    /// What it printed so far; all of it once [`Process::wait_exit`] came back.
    pub(crate) fn log(&self) -> String {
        self.log.text()
    }

    /// The process's id, for as long as it is not waited for.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        // Not waited for yet, so the pid is still this child's.
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("a child can be signalled");
        if signal == Signal::STOP {
            poll(&format!("{} to stand still", self.name), || self.stands_still());
        }
    }

    /// Whether every thread is stopped: SIGSTOP takes effect when some thread comes to handle it, not at once.
    fn stands_still(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("a child has tasks");
        tasks.flatten().all(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            // The state follows the name, which stands in parentheses and may hold any character: proc(5).
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
        })
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends it without a chance to tidy up, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end and the end of its output.
    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        let mut status = None;
        poll(&format!("{} to end", self.name), || {
            status = self.child.try_wait().expect("a child can be waited for");
            status.is_some()
        });
        for reader in self.readers.drain(..) {
            reader.join().expect("readers of output do not panic");
        }
        status.expect("it ended")
    }

    /// SIGTERM, then its end.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_exit()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL ends a stopped process too.
        self.kill();
        if std::thread::panicking() {
            let text = self.log.text();
            let lines: Vec<&str> = text.lines().collect();
            let tail = &lines[lines.len().saturating_sub(60)..];
            eprintln!("--- the last lines of {} (patience {PATIENCE:?}):\n{}\n---", self.name, tail.join("\n"));
        }
    }
}

fn follow(source: impl Read + Send + 'static, log: Log) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(source).split(b'\n') {
            let Ok(line) = line else { return };
            log.push(String::from_utf8_lossy(&line).into_owned());
        }
    })
}
