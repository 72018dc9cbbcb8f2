//! Builds the server, starts gateway and storage-writer as processes of their own on a data directory that goes with
//! the run, and ends them by their pids.

use crate::cpu::{Probe, Probes};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use storage_writer::store::scylla::ClusterOptions;

/// A server says that it is ready within this.
const READY_PATIENCE: Duration = Duration::from_secs(60);
/// Between SIGTERM and SIGKILL.
const END_PATIENCE: Duration = Duration::from_secs(20);
/// Lines of a log that are shown when a server fails.
const TAIL_LINES: usize = 20;

/// What to start.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) driver: String,
    /// 0 leaves it to the gateway: one per core.
    pub(crate) shards: u16,
    /// Kept after the run if given; else a directory that is removed.
    pub(crate) data: Option<PathBuf>,
    pub(crate) config: Option<PathBuf>,
    /// Rows go there instead of the data directory.
    pub(crate) keyspace: Option<ClusterOptions>,
}

/// The running servers. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Servers {
    // In the order in which they end: the gateway first, the directory last.
    gateway: Server,
    writer: Server,
    pub(crate) data: PathBuf,
    pub(crate) url: String,
    /// The gateway's own word on its driver, or what was asked for.
    pub(crate) driver: String,
    /// The storage-writer's admin endpoint, if it is asked for its requests.
    cluster: Option<SocketAddr>,
    /// The gateway's admin endpoint.
    pub(crate) gateway_admin: SocketAddr,
    /// How the gateway was started: program, arguments, environment.
    again: (PathBuf, Vec<OsString>, Vec<(String, String)>),
    _directory: Option<tempfile::TempDir>,
}

impl Servers {
    pub(crate) fn probes(&self) -> Probes {
        Probes { gateway: Some(self.gateway.probe()), writer: Some(self.writer.probe()), cluster: self.cluster }
    }

    /// Builds and starts both.
    pub(crate) fn start(options: &Options) -> Result<Self, String> {
        Self::start_program(&build()?, options, &[])
    }

    /// Starts both from a program that is there, with variables in their environment.
    pub(crate) fn start_program(
        program: &Path,
        options: &Options,
        environment: &[(String, String)],
    ) -> Result<Self, String> {
        let (data, directory) = match &options.data {
            Some(data) => {
                std::fs::create_dir_all(data).map_err(|error| format!("{}: {error}", data.display()))?;
                (data.clone(), None)
            }
            None => {
                // Beside the program: on the disk, where the system's temporary directory may be memory.
                let beside = program.parent().unwrap_or(Path::new("."));
                let directory = tempfile::Builder::new().prefix("perf-data-").tempdir_in(beside);
                let directory = directory.map_err(|error| format!("{}: {error}", beside.display()))?;
                (directory.path().to_owned(), Some(directory))
            }
        };
        let mut common: Vec<OsString> = vec!["--data".into(), data.clone().into(), "--admin".into()];
        common.push("127.0.0.1:0".into());
        if let Some(config) = &options.config {
            common.extend(["--config".into(), config.into()]);
        }
        let mut writer_args = vec![OsString::from("storage-writer")];
        writer_args.extend(common.iter().cloned());
        if let Some(keyspace) = &options.keyspace {
            let contact = keyspace.contact();
            let flags = ["--store", "scylla", "--contact", &contact, "--keyspace", &keyspace.keyspace];
            writer_args.extend(flags.iter().map(OsString::from));
        }
        let (writer, writer_said) = Server::start(program, "storage-writer", &writer_args, environment, &data)?;
        let admin = find_admin(&writer_said).ok_or("the storage-writer did not say where its metrics are");
        let cluster = options.keyspace.as_ref().map(|_| admin).transpose()?;
        let mut gateway_args = vec![OsString::from("gateway")];
        gateway_args.extend(common);
        for arg in ["--listen", "127.0.0.1:0", "--driver", &options.driver] {
            gateway_args.push(arg.into());
        }
        if options.shards > 0 {
            gateway_args.extend(["--shards".into(), options.shards.to_string().into()]);
        }
        let (gateway, said) = Server::start(program, "gateway", &gateway_args, environment, &data)?;
        let url = find_url(&said).ok_or_else(|| format!("the gateway's ready line has no ws:// address: {said:?}"))?;
        let gateway_admin = find_admin(&said).ok_or("the gateway did not say where its metrics are")?;
        let driver = find_driver(&said).unwrap_or(&options.driver).to_owned();
        let again = (program.to_owned(), gateway_args, environment.to_vec());
        Ok(Self { gateway, writer, data, url, driver, cluster, gateway_admin, again, _directory: directory })
    }

    /// Ends the gateway, with patience or at once, and starts another one at its address. Returns when that is ready.
    pub(crate) fn replace_gateway(&mut self, kill: bool) -> Result<(), String> {
        if kill {
            self.gateway.kill();
        }
        self.gateway.end();
        let (program, args, environment) = &mut self.again;
        let address = self.url.trim_start_matches("ws://").split('/').next().unwrap_or_default();
        if let Some(at) = args.iter().position(|arg| arg == "--listen") {
            args[at + 1] = address.into();
        }
        let (gateway, said) = Server::start(program, "gateway", args, environment, &self.data)?;
        self.gateway = gateway;
        self.gateway_admin = find_admin(&said).ok_or("the gateway did not say where its metrics are")?;
        match find_url(&said) {
            Some(url) if url == self.url => Ok(()),
            other => Err(format!("the gateway came back at {other:?} and not at {}", self.url)),
        }
    }
}

/// `cargo build --release -p parley`; the path of the program.
pub(crate) fn build() -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    eprintln!("building parley");
    let mut build = Command::new(&cargo);
    build.args(["build", "--release", "-p", "parley", "--message-format", "json-render-diagnostics"]);
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = build.stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("{}: {error}", cargo.display()))?;
    if !output.status.success() {
        return Err(format!("building parley failed: {}", output.status));
    }
    let artifacts = output.stdout.split(|byte| *byte == b'\n');
    let executable =
        artifacts.filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok()).find_map(|it| {
            (it["target"]["name"] == "parley").then(|| it["executable"].as_str().map(PathBuf::from)).flatten()
        });
    executable.ok_or_else(|| "the build made no program named parley".to_owned())
}

/// The address in a ready line.
pub(crate) fn find_url(said: &[String]) -> Option<String> {
    let word = |line: &String| line.split_ascii_whitespace().find(|word| word.starts_with("ws://")).map(str::to_owned);
    said.iter().rev().find_map(word)
}

/// The address of the admin endpoint, in its line.
fn find_admin(said: &[String]) -> Option<SocketAddr> {
    let line = said.iter().find(|line| line.starts_with("admin"))?;
    line.split_once("http://")?.1.split_once('/')?.0.parse().ok()
}

/// What follows the word `driver` in what the gateway said.
pub(crate) fn find_driver(said: &[String]) -> Option<&'static str> {
    said.iter().find_map(|line| {
        let mut words = line.split(|byte: char| !byte.is_ascii_alphanumeric());
        words.find(|word| *word == "driver")?;
        words.find_map(|word| ["uring", "epoll"].into_iter().find(|driver| *driver == word))
    })
}

/// One process.
#[derive(Debug)]
pub(crate) struct Server {
    name: &'static str,
    child: Child,
}

impl Server {
    /// Starts it and waits for its line that begins with `ready`; all lines up to it come back.
    pub(crate) fn start(
        program: &Path,
        name: &'static str,
        args: &[OsString],
        environment: &[(String, String)],
        data: &Path,
    ) -> Result<(Self, Vec<String>), String> {
        let log_path = data.join(format!("{name}.log"));
        let log = File::create(&log_path).map_err(|error| format!("{}: {error}", log_path.display()))?;
        let log_too = log.try_clone().map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.args(args).envs(environment.iter().cloned()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", program.display()))?;
        eprintln!("started {name}, pid {}", child.id());
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut server = Self { name, child };
        let (lines, said) = mpsc::sync_channel::<String>(256);
        // Reads to the end, so that the server never waits for its output; the thread ends with the server.
        std::thread::spawn(move || forward(stdout, log_too, &lines));
        let deadline = Instant::now() + READY_PATIENCE;
        let mut all = Vec::new();
        loop {
            match said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let ready = line.starts_with("ready");
                    all.push(line);
                    if ready {
                        return Ok((server, all));
                    }
                }
                Err(why) => {
                    let ended = match why {
                        RecvTimeoutError::Timeout => format!("did not say ready within {READY_PATIENCE:?}"),
                        RecvTimeoutError::Disconnected => "ended before it was ready".to_owned(),
                    };
                    server.end();
                    return Err(format!("{name} {ended}\n{}", tail(&log_path)));
                }
            }
        }
    }

    /// Where its cost is read.
    pub(crate) fn probe(&self) -> Probe {
        Probe { pid: self.child.id() }
    }

    /// SIGTERM, patience, SIGKILL.
    fn end(&mut self) {
        let gone = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
        if gone(&mut self.child) {
            return;
        }
        // Not waited for yet, so the pid is still this child's.
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid
            && kill_process(pid, Signal::TERM).is_ok()
        {
            let deadline = Instant::now() + END_PATIENCE;
            while Instant::now() < deadline {
                if gone(&mut self.child) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            eprintln!("{} did not end within {END_PATIENCE:?} of SIGTERM", self.name);
        }
        self.kill();
    }

    /// SIGKILL.
    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

fn forward(stdout: std::process::ChildStdout, mut log: File, lines: &mpsc::SyncSender<String>) {
    for line in BufReader::new(stdout).lines() {
        let Ok(line) = line else { return };
        // A full disk must not stop the server; nobody listens any more after `ready`.
        let _ = writeln!(log, "{line}");
        let _ = lines.try_send(line);
    }
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, data: &Path) -> Result<(Server, Vec<String>), String> {
        Server::start(Path::new("/bin/sh"), "sh", &["-c".into(), script.into()], &[("GIVEN".into(), "so".into())], data)
    }

    #[test]
    fn a_server_is_waited_for_until_it_is_ready_and_ended_by_its_pid() {
        let data = tempfile::tempdir().unwrap();
        let script = "echo 'driver = epoll'; echo 'admin    http://127.0.0.1:8/metrics  /readyz'; \
                      echo 'ready ws://127.0.0.1:7/ws'; exec sleep 600";
        let (mut server, said) = sh(script, data.path()).unwrap();
        assert_eq!(find_url(&said).as_deref(), Some("ws://127.0.0.1:7/ws"));
        assert_eq!(find_driver(&said), Some("epoll"));
        assert_eq!(find_admin(&said), Some("127.0.0.1:8".parse().unwrap()));
        assert!(matches!(server.child.try_wait(), Ok(None)));
        server.end();
        assert!(matches!(server.child.try_wait(), Ok(Some(_))));
    }

    #[test]
    fn a_server_that_ends_early_is_an_error_with_its_log() {
        let data = tempfile::tempdir().unwrap();
        let error = sh("echo \"the disk is full, $GIVEN\" >&2; exit 3", data.path()).unwrap_err();
        assert!(error.contains("ended before it was ready") && error.contains("the disk is full, so"), "{error}");
    }
}
