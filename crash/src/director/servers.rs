//! The servers under test as processes of their own: started, signalled by their pids, and never left behind.

use rustix::process::{Pid, Signal, kill_process};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::plan::INBOX_LIMIT;

/// From the start to the line that says `ready`: a recovery of the store lies in between.
const READY_PATIENCE: Duration = Duration::from_secs(90);
/// From a signal to the end.
const END_PATIENCE: Duration = Duration::from_secs(60);
/// Lines of a log that are shown with an error.
const TAIL_LINES: usize = 15;

/// Where everything of a run is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The program under test.
    pub(crate) parley: PathBuf,
    /// Histories and logs.
    pub(crate) dir: PathBuf,
    pub(crate) driver: String,
    /// Where rows are, if not in the data directory.
    pub(crate) cluster: Option<Cluster>,
}

/// A cluster that keeps the rows, in a keyspace of this run's own.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) contact: String,
    pub(crate) keyspace: String,
    /// `scripts/cql-cluster` and the directory of its nodes, if they are to suffer as well.
    pub(crate) nodes: Option<(PathBuf, PathBuf)>,
}

impl Place {
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// How many storage-writers there are.
    pub(crate) fn writers(&self) -> usize {
        if self.cluster.is_some() { 2 } else { 1 }
    }

    /// The directory of a storage-writer's own.
    fn writer_data(&self, index: usize) -> PathBuf {
        if index == 0 { self.data() } else { self.data().join(format!("writer-{index}")) }
    }

    /// Before anything starts: the directory, and the tables of a cluster.
    pub(crate) fn prepare(&self) -> Result<(), String> {
        let data = self.data();
        std::fs::create_dir_all(&data).map_err(|error| format!("{}: {error}", data.display()))?;
        let Some(Cluster { contact, keyspace, .. }) = &self.cluster else { return Ok(()) };
        self.output(&["schema", "apply", "--contact", contact, "--keyspace", keyspace]).map(|_| ())
    }

    /// Starts an action on a node of the cluster.
    pub(crate) fn node(&self, action: &str, node: u64) -> Result<Child, String> {
        let nodes = self.cluster.as_ref().and_then(|cluster| cluster.nodes.as_ref());
        let (script, dir) = nodes.ok_or("there are no nodes to do that to")?;
        let mut command = Command::new(script);
        command.args([action, "--node", &node.to_string(), "--dir"]).arg(dir).stdin(Stdio::null());
        // What it says goes where its log is, not among the lines of this run.
        let log = OpenOptions::new().create(true).append(true).open(self.dir.join("nodes.log"));
        let log = log.map_err(|error| error.to_string())?;
        command.stdout(log.try_clone().map_err(|error| error.to_string())?).stderr(log);
        command.spawn().map_err(|error| format!("{}: {error}", script.display()))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.parley);
        // The tester's own settings must not change what is tested.
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("PARLEY_")) {
            command.env_remove(key);
        }
        command.stdin(Stdio::null());
        command
    }

    /// Runs `parley ARGS` to its end; what it printed.
    pub(crate) fn output(&self, args: &[&str]) -> Result<String, String> {
        let output = self.command().args(args).output();
        let output = output.map_err(|error| format!("{}: {error}", self.parley.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        Err(format!("parley {}: {}\n{text}{}", args[0], output.status, String::from_utf8_lossy(&output.stderr)))
    }
}

/// Two addresses that nothing listens on, below the range that the kernel gives to outgoing connections.
pub(crate) fn two_addresses() -> Result<Vec<SocketAddr>, String> {
    let start = std::process::id() % 18_000;
    let candidates = (0..18_000).map(|step| 12_000 + ((start + step * 11) % 18_000) as u16);
    let free = candidates.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let found: Vec<_> = free.filter(|address| TcpListener::bind(address).is_ok()).take(2).collect();
    if found.len() == 2 { Ok(found) } else { Err("no two ports are free".to_owned()) }
}

/// The settings of a run: timeouts that a stop of some seconds exceeds, and the limit that a small group crosses.
fn settings(place: &Place) -> Vec<(String, String)> {
    let gateway = [
        ("SESSION__HEARTBEAT_TIMEOUT_MS", 3_000),
        ("SESSION__HEARTBEAT_INTERVAL_MS", 1_000),
        ("SESSION__STALLED_READER_MS", 3_000),
        // Nobody is away for long enough to be told to start over.
        ("SESSION__SYNC_BACKLOG_MAX", 1_000_000),
        ("WRITER__LINK_IDLE_MS", 1_000),
        ("WRITER__LINK_RETRY_MAX_MS", 500),
        ("CHAT__INBOX_FANOUT_MEMBERS_MAX", INBOX_LIMIT),
        ("CHAT__HEAD_INTERVAL_MS", 500),
        ("CHAT__RATE_PER_S", 1_000_000),
        ("CHAT__RATE_BURST", 1_000_000),
        ("DRAIN_TIMEOUT_MS", 3_000),
        ("RECONNECT_SPREAD_MS", 500),
    ];
    let named = gateway.iter().map(|(key, value)| (format!("PARLEY_GATEWAY__{key}"), value.to_string()));
    let others = [
        // Pinned threads would share cores with the clients'.
        ("PARLEY_GATEWAY__PIN".to_owned(), "false".to_owned()),
        ("PARLEY_STORAGE_WRITER__LIMITS__INBOX_FANOUT_MEMBERS_MAX".to_owned(), INBOX_LIMIT.to_string()),
        // As small as they may be: kills meet memtables being written out, tables being merged, journals that are dropped.
        ("PARLEY_STORAGE_WRITER__EMBEDDED__MEMTABLE_BYTES".to_owned(), (1 << 20).to_string()),
        ("PARLEY_STORAGE_WRITER__EMBEDDED__JOURNAL_BYTES_MAX".to_owned(), (64 << 20).to_string()),
    ];
    named.chain(others).chain(cluster_settings(place)).collect()
}

/// Where the rows are, and where the writers.
fn cluster_settings(place: &Place) -> Vec<(String, String)> {
    let Some(Cluster { contact, keyspace, .. }) = &place.cluster else { return Vec::new() };
    let sockets = (0..place.writers()).map(|index| place.writer_data(index).join("writer.sock").display().to_string());
    let sockets = sockets.collect::<Vec<_>>().join(",");
    [
        ("GATEWAY__WRITER__SOCKETS", sockets),
        ("GATEWAY__WRITER__LINK_HELLO_MS", "300".to_owned()),
        ("STORAGE_WRITER__STORE", "scylla".to_owned()),
        ("STORAGE_WRITER__SCYLLA__CONTACT_POINTS", contact.clone()),
        ("STORAGE_WRITER__SCYLLA__KEYSPACE", keyspace.clone()),
        // A stop outlasts the two leases that a take-over waits.
        ("STORAGE_WRITER__SCYLLA__LEASE_MS", "1000".to_owned()),
    ]
    .map(|(key, value)| (format!("PARLEY_{key}"), value))
    .to_vec()
}

/// One process. Dropping it kills it, stopped or not.
#[derive(Debug)]
pub(crate) struct Server {
    name: String,
    child: Child,
    log: PathBuf,
    /// Where this process's output begins.
    from: u64,
}

impl Server {
    /// Starts a storage-writer.
    pub(crate) fn writer(place: &Place, index: usize) -> Result<Self, String> {
        let data = place.writer_data(index);
        let name = if index == 0 { "storage-writer".to_owned() } else { format!("storage-writer-{index}") };
        let args = ["--data", text(&data)?, "--admin", "127.0.0.1:0"];
        Self::start(place, &name, "storage-writer", &args)
    }

    /// Starts a gateway at an address.
    pub(crate) fn gateway(place: &Place, listen: SocketAddr) -> Result<Self, String> {
        let (data, listen) = (place.data(), listen.to_string());
        let common = ["--data", text(&data)?, "--admin", "127.0.0.1:0", "--listen", &listen];
        let rest = ["--shards", "2", "--driver", &place.driver];
        Self::start(place, "gateway", "gateway", &[&common[..], &rest[..]].concat())
    }

    fn start(place: &Place, name: &str, command: &str, args: &[&str]) -> Result<Self, String> {
        let log = place.dir.join(format!("{name}.log"));
        let named = |error: std::io::Error| format!("{}: {error}", log.display());
        let out = OpenOptions::new().create(true).append(true).open(&log).map_err(named)?;
        let from = out.metadata().map_err(named)?.len();
        let mut process = place.command();
        process.arg(command).args(args).envs(settings(place));
        process.stdout(out.try_clone().map_err(named)?).stderr(out);
        let child = process.spawn().map_err(|error| format!("{}: {error}", place.parley.display()))?;
        Ok(Self { name: format!("{name} (pid {})", child.id()), child, log, from })
    }

    /// What it printed so far. Two gateways share a log: the later one's lines may stand among these.
    fn said(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(&self.log)
            && file.seek(SeekFrom::Start(self.from)).is_ok()
        {
            let _ = file.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// An error with the end of its log.
    fn complain(&self, what: &str) -> String {
        let said = self.said();
        let lines: Vec<&str> = said.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        format!("{} {what}; the end of {}:\n{tail}", self.name, self.log.display())
    }

    /// Waits until it says that it is ready. `watch` may end the waiting.
    pub(crate) fn wait_ready(&mut self, mut watch: impl FnMut() -> Result<(), String>) -> Result<(), String> {
        let deadline = Instant::now() + READY_PATIENCE;
        loop {
            if self.said().lines().any(|line| line.starts_with("ready")) {
                return Ok(());
            }
            self.must_run("before it was ready")?;
            if Instant::now() > deadline {
                return Err(self.complain(&format!("is not ready after {READY_PATIENCE:?}")));
            }
            watch()?;
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// An error if it ended although nobody ended it.
    pub(crate) fn must_run(&mut self, when: &str) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.complain(&format!("ended with {status} {when}"))),
            Err(error) => Err(error.to_string()),
        }
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<(), String> {
        // Not waited for yet, so the pid is still this child's.
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).ok_or("a pid above all bounds")?;
        kill_process(pid, signal).map_err(|error| format!("{}: {error}", self.name))
    }

    /// kill -9, and the end of it.
    pub(crate) fn kill(mut self) -> Result<(), String> {
        self.child.kill().and_then(|()| self.child.wait()).map_err(|error| format!("{}: {error}", self.name))?;
        Ok(())
    }

    /// Waits for its end.
    pub(crate) fn wait_end(
        &mut self,
        why: &str,
        mut watch: impl FnMut() -> Result<(), String>,
    ) -> Result<ExitStatus, String> {
        let deadline = Instant::now() + END_PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().map_err(|error| error.to_string())? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(self.complain(&format!("did not end within {END_PATIENCE:?} of {why}")));
            }
            watch()?;
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGTERM, and the exit code 0 that it must end with.
    pub(crate) fn terminate(mut self, watch: impl FnMut() -> Result<(), String>) -> Result<(), String> {
        self.signal(Signal::TERM)?;
        let status = self.wait_end("SIGTERM", watch)?;
        if status.success() { Ok(()) } else { Err(self.complain(&format!("ended with {status} after SIGTERM"))) }
    }

    /// Another gateway took over: it must end, and not as if all were well.
    pub(crate) fn end_fenced(mut self, watch: impl FnMut() -> Result<(), String>) -> Result<(), String> {
        let status = self.wait_end("another gateway's taking over", watch)?;
        if status.success() { Err(self.complain("was replaced and ended with 0")) } else { Ok(()) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn text(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or_else(|| format!("{}: not a UTF-8 path", path.display()))
}
