//! What the servers share: configuration and its check on this machine, logs, limits, keys, signals, the end.

use crate::admin;
use crate::cli::{DriverArg, GatewayFlags};
use gateway::identity::{DevKey, Tickets};
use gateway::plane::{DriverChoice, Exit, Probe, StartError, probe};
use gateway_core::output::HaltReason;
use parley_config::{
    ConfigError, Engine, Gateway, Loaded, LogFormat, Machine, Origin, Severity, Sources, StorageWriter,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::error::Error;
use std::fmt::Display;
use std::fs::DirBuilder;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};
use storage_writer::Handle as Writer;
use storage_writer::store::scylla::OpenError;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How often a server looks whether its parts still run.
const LOOK: Duration = Duration::from_millis(20);
/// How long a start waits for a part before it says `ready` without it.
const READY_PATIENCE: Duration = Duration::from_secs(5);
/// Groups that a cluster works on at a time: statements of different chats do not wait for each other, nor their groups.
const CLUSTER_COMMITS_MAX: usize = 8;
/// Threads that answer reads from a cluster, at least: each waits for its own read, most of the time.
const CLUSTER_READERS_MIN: usize = 16;
/// Between two attempts to reach a cluster at the start.
const CLUSTER_RETRY: Duration = Duration::from_secs(2);
/// Name of the storage-writer's socket in the data directory.
const SOCKET_FILE: &str = "writer.sock";

/// A flag of the command line as the configuration takes it.
pub(super) type Flag = (String, String);

/// Why a server does not start or ended: words for the operator, and the exit code.
#[derive(Debug)]
pub(super) struct Failure {
    what: String,
    code: u8,
}

impl Failure {
    /// Something does not work.
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), code: 1 }
    }

    /// Something on the command line cannot be.
    pub(super) fn usage(what: impl Into<String>) -> Self {
        Self { what: what.into(), code: 2 }
    }

    /// An error with what caused it.
    pub(super) fn of(error: &dyn Error) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        Self::new(text)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let flags = error.problems.iter().any(|problem| matches!(problem.origin(), Some(Origin::Flag(_))));
        let failure = if flags { Self::usage } else { Self::new };
        failure(format!("the configuration is not valid:\n{error}"))
    }
}

/// The exit code, and the words for a failure.
pub(super) fn finish(done: Result<(), Failure>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { what, code }) => {
            eprintln!("parley: {what}");
            ExitCode::from(code)
        }
    }
}

/// Gateway flags by their keys.
pub(super) fn gateway_flags(args: &GatewayFlags) -> Vec<Flag> {
    let driver = args.driver.map(|driver| match driver {
        DriverArg::Auto => "auto",
        DriverArg::Uring => "uring",
        DriverArg::Epoll => "epoll",
    });
    [
        ("listen", args.listen.map(|address| address.to_string())),
        ("admin", args.admin.map(|address| address.to_string())),
        ("shards", args.shards.map(|shards| shards.to_string())),
        ("driver", driver.map(str::to_owned)),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key.to_owned(), value?)))
    .collect()
}

/// A path as a flag.
pub(super) fn path_flag(key: &str, path: Option<&Path>) -> Vec<Flag> {
    path.map(|path| (key.to_owned(), path.to_string_lossy().into_owned())).into_iter().collect()
}

/// Both configurations, loaded.
pub(super) struct Configuration {
    pub(super) gateway: Loaded<Gateway>,
    pub(super) writer: Loaded<StorageWriter>,
    pub(super) machine: Machine,
}

impl Configuration {
    /// Files of `dir`, then the environment, then flags.
    pub(super) fn load(dir: Option<&Path>, gateway: &[Flag], writer: &[Flag]) -> Result<Self, ConfigError> {
        // A name or value that is no text can be neither a key nor a value.
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let env: Vec<(String, String)> = std::env::vars_os().filter_map(text).collect();
        Ok(Self {
            gateway: parley_config::load_gateway(Sources { dir, env: &env, flags: gateway })?,
            writer: parley_config::load_storage_writer(Sources { dir, env: &env, flags: writer })?,
            machine: machine(),
        })
    }

    /// Logs what does not fit; an error forbids to start.
    pub(super) fn judge(&self) -> Result<(), Failure> {
        let report = parley_config::check(&self.gateway, &self.writer, &self.machine);
        for finding in &report.findings {
            match finding.severity {
                Severity::Note => tracing::info!("{}", finding.text),
                Severity::Warning => tracing::warn!("{}", finding.text),
                // What ends the process is said once, by its end.
                Severity::Error => {}
            }
        }
        if report.is_ok() {
            return Ok(());
        }
        let errors = report.findings.iter().filter(|finding| finding.severity == Severity::Error);
        let texts: Vec<&str> = errors.map(|finding| finding.text.as_str()).collect();
        Err(Failure::new(format!("the configuration does not fit together:\n{}", texts.join("\n"))))
    }
}

/// The machine that this runs on.
fn machine() -> Machine {
    let bytes = |text: &str| text.trim().parse::<u64>().ok();
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let physical = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim_end_matches("kB").to_owned();
        bytes(&line).map(|kib| kib << 10)
    });
    let container = read("/sys/fs/cgroup/memory.max").as_deref().and_then(bytes);
    let memory_bytes = [physical, container].into_iter().flatten().min().unwrap_or(u64::MAX);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let nofile = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let memlock_bytes = getrlimit(Resource::Memlock).current;
    let uring = matches!(probe(DriverChoice::Uring), Probe::Use(_));
    Machine { cores, memory_bytes, nofile, memlock_bytes, uring, unreadable: Vec::new() }
}

/// Logs to the standard error.
pub(super) fn log(config: &parley_config::Log) {
    let level: LevelFilter = config.level.as_str().parse().unwrap_or(LevelFilter::INFO);
    // The engine tells at `info` what interests its own developers only.
    let engine = if level > LevelFilter::INFO { level } else { level.min(LevelFilter::WARN) };
    let targets = Targets::new().with_default(level).with_target("fjall", engine).with_target("lsm_tree", engine);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let registry = tracing_subscriber::registry().with(targets);
    // A second call in one process changes nothing.
    let _ = match config.format {
        LogFormat::Text => registry.with(lines.with_ansi(false)).try_init(),
        LogFormat::Json => registry.with(lines.json()).try_init(),
    };
}

/// Raises the soft limit of open files to the hard one: every connection is a file.
pub(super) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the limit of open files stays at {:?}", limit.current);
        }
    }
}

/// Makes the data directory, for the owner's eyes only.
pub(super) fn make_data_dir(dir: &Path) -> Result<(), Failure> {
    if dir.exists() && !dir.is_dir() {
        return Err(Failure::usage(format!("{} is not a directory", dir.display())));
    }
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| Failure::new(format!("cannot make the data directory {}: {error}", dir.display())))
}

/// Stands in the directory of a store that was moved into a cluster.
const MOVED_FILE: &str = "MOVED";

/// Says in a directory that its rows live elsewhere now.
pub(super) fn mark_moved(dir: &Path, to: &str) -> Result<(), Failure> {
    let path = dir.join(MOVED_FILE);
    std::fs::write(&path, format!("{to}\n"))
        .map_err(|error| Failure::new(format!("the copy is whole, but {} was not written: {error}", path.display())))
}

/// A store that was moved is not served again by mistake: it would go on from where it was, apart from the cluster.
fn refuse_moved(dir: &Path) -> Result<(), Failure> {
    let path = dir.join(MOVED_FILE);
    let Ok(to) = std::fs::read_to_string(&path) else { return Ok(()) };
    Err(Failure::new(format!(
        "{} says that this store was moved to {}: start with --store scylla; to serve this directory again, apart from \
         the cluster, remove that file",
        path.display(),
        to.trim()
    )))
}

/// The storage-writer's socket: the configured path, or the one in the data directory.
pub(super) fn writer_socket(configured: &Path, data: &Path) -> PathBuf {
    if configured.as_os_str().is_empty() { data.join(SOCKET_FILE) } else { configured.to_owned() }
}

/// What the gateway is started with.
pub(super) fn gateway_options(configuration: &Configuration, data: &Path) -> Result<gateway::Options, Failure> {
    let mut config = configuration.gateway.config.clone();
    let key = |error: gateway::identity::KeyError| Failure::of(&error);
    let file = |configured: &Path| Some(configured.to_owned()).filter(|path| !path.as_os_str().is_empty());
    let tickets = match file(&config.identity.ticket_key_file) {
        Some(path) => Tickets::load_or_create_file(&path).map_err(key)?,
        None => Tickets::load_or_create(data).map_err(key)?,
    };
    // With an issuer of the operator's there is no key that anyone on this machine could sign with, unless it is asked
    // for: a proxy in front of the gateway makes every client look local.
    let dev_key = match file(&config.identity.dev_key_file) {
        Some(path) => Some(DevKey::load_or_create_file(&path).map_err(key)?),
        None if config.identity.issuer.is_empty() => Some(DevKey::load_or_create(data).map_err(key)?),
        None => None,
    };
    let uring = configuration.machine.uring && config.driver != parley_config::Driver::Epoll;
    config.connections_max = config.connections_per_shard(&configuration.machine, uring);
    let mut writer_sockets = config.writer.sockets.clone();
    if writer_sockets.is_empty() {
        writer_sockets.push(data.join(SOCKET_FILE));
    }
    Ok(gateway::Options { config, writer_sockets, dev_key, tickets })
}

/// Starts the gateway, with the reason if it cannot.
pub(super) fn start_gateway(options: gateway::Options) -> Result<gateway::Handle, Failure> {
    gateway::serve(options).map_err(|error| {
        let in_use = match &error {
            gateway::Error::Start(StartError::Listen(_, error)) => is_in_use(error),
            _ => false,
        };
        let mut failure = Failure::of(&error);
        if in_use {
            failure.what.push_str(&another_address("--listen"));
        }
        failure
    })
}

fn is_in_use(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::AddrInUse
}

fn another_address(flag: &str) -> String {
    format!("; stop the other process or choose another address with {flag}")
}

/// Where rows are kept, for people.
pub(super) fn store_name(config: &StorageWriter) -> String {
    match config.store {
        Engine::Embedded => config.data.display().to_string(),
        Engine::Scylla => format!("keyspace {} at {}", config.scylla.keyspace, config.scylla.contact_points.join(",")),
    }
}

/// Starts the storage-writer under its configuration. [`await_writer`] waits until it takes commands.
pub(super) fn start_writer(configuration: &Configuration, signals: &Signals) -> Result<Arc<Writer>, Failure> {
    let config = &configuration.writer.config;
    if config.store == Engine::Embedded {
        refuse_moved(&config.data)?;
    }
    let mut options = storage_writer::Options::new(&config.data);
    options.socket = writer_socket(&config.socket, &config.data);
    options.reader_threads = usize::from(config.readers.threads);
    options.reads_max = config.readers.queue_max as usize;
    options.stop_timeout_ms = configuration.gateway.config.drain_timeout_ms;
    options.embedded.cache_bytes = config.embedded.cache_bytes as u64;
    options.embedded.memtable_bytes = config.embedded.memtable_bytes as u64;
    options.embedded.journal_bytes_max = config.embedded.journal_bytes_max as u64;
    options.embedded.disk_reserve_bytes = config.embedded.disk_reserve_bytes;
    if config.store == Engine::Scylla {
        options.scylla = Some(super::schema::scylla_options(&config.scylla));
        options.reader_threads = usize::from(config.readers.threads).max(CLUSTER_READERS_MIN);
        options.writer.commits_in_flight_max = CLUSTER_COMMITS_MAX;
    }
    let writer = &mut options.writer;
    writer.worker = config.worker;
    writer.group_members_max = config.limits.group_members_max as usize;
    writer.channel_members_max = config.limits.channel_members_max as usize;
    writer.seats_cached_max = config.limits.channel_members_cached_max as usize;
    writer.inbox_fanout_members_max = config.limits.inbox_fanout_members_max as usize;
    writer.payload_bytes_max = config.limits.payload_bytes_max;
    writer.batch_commands_max = config.commit.batch_commands_max as usize;
    writer.batch_bytes_max = config.commit.batch_bytes_max;
    writer.chats_cached_max = config.limits.chats_cached_max as usize;
    writer.users_cached_max = config.limits.users_cached_max as usize;
    writer.sync_backlog_max = configuration.gateway.config.session.sync_backlog_max;
    Ok(Arc::new(run_writer(&options, signals)?))
}

/// Waits until the storage-writer takes commands, or for a while: a standby does not.
pub(super) fn await_writer(writer: &Writer, signals: &Signals) -> Result<(), Failure> {
    // A full disk is no reason to end: it recovers when there is room, and says so until then.
    let until = Instant::now() + READY_PATIENCE;
    let starting = || writer.failure().is_none() && !writer.status().ready && Instant::now() < until;
    if signals.wait_while(starting) {
        return Err(Failure::new("a signal came during the start".to_owned()));
    }
    match writer.failure() {
        Some(failure) => Err(Failure::new(failure.to_string())),
        None => {
            if let Some(reason) = writer.status().reason {
                tracing::warn!("the storage-writer takes no commands yet: {reason}");
            }
            Ok(())
        }
    }
}

/// Starts the storage-writer. A cluster that is away comes back: it is waited for, and the log says so.
fn run_writer(options: &storage_writer::Options, signals: &Signals) -> Result<Writer, Failure> {
    loop {
        match storage_writer::run(options.clone()) {
            Err(error @ storage_writer::Error::Cluster(OpenError::Unreachable { .. } | OpenError::NoQuorum { .. })) => {
                let why = Failure::of(&error).what;
                tracing::warn!("{why}; trying again in {} s", CLUSTER_RETRY.as_secs());
                let until = Instant::now() + CLUSTER_RETRY;
                if signals.wait_while(|| Instant::now() < until) {
                    return Err(Failure::new("a signal came during the start".to_owned()));
                }
            }
            started => return started.map_err(|error| Failure::of(&error)),
        }
    }
}

/// Waits until the gateway can serve, or for a while: without a storage-writer it listens and says that it cannot.
pub(super) fn await_gateway(handle: &gateway::Handle, signals: &Signals) -> Result<(), Failure> {
    let until = Instant::now() + READY_PATIENCE;
    let starting = || handle.is_running() && handle.status() != gateway::Status::Ready && Instant::now() < until;
    if signals.wait_while(starting) {
        return Err(Failure::new("a signal came during the start".to_owned()));
    }
    if let gateway::Status::NotReady(reason) = handle.status() {
        tracing::warn!("the gateway cannot serve yet: {reason}");
    }
    Ok(())
}

/// What the admin endpoint of a process shows: the parts that run in it.
pub(super) struct Parts {
    pub(super) gateway: Option<gateway::Monitor>,
    pub(super) writer: Option<Arc<Writer>>,
}

impl admin::Source for Parts {
    fn not_ready(&self) -> Option<String> {
        let writer = self.writer.as_ref().map(|writer| writer.status()).filter(|status| !status.ready);
        let storage =
            writer.map(|status| status.reason.unwrap_or_else(|| "the storage-writer is not ready".to_owned()));
        storage.or_else(|| match self.gateway.as_ref()?.status() {
            gateway::Status::Ready => None,
            gateway::Status::NotReady(reason) => Some(reason),
        })
    }

    fn metrics(&self) -> String {
        let gateway = self.gateway.as_ref().map(gateway::Monitor::metrics);
        let writer = self.writer.as_ref().map(|writer| writer.metrics());
        [gateway, writer].into_iter().flatten().collect()
    }
}

/// Starts the admin endpoint.
pub(super) fn start_admin(address: SocketAddr, parts: Parts) -> Result<SocketAddr, Failure> {
    admin::serve(address, parts).map_err(|error| {
        let advice = if is_in_use(&error) { another_address("--admin") } else { String::new() };
        Failure::new(format!("cannot listen on {address} for the admin endpoint: {error}{advice}"))
    })
}

/// Stops a storage-writer: what was taken is committed and answered.
pub(super) fn stop_writer(writer: &Writer) -> Result<(), Failure> {
    writer.request_stop();
    writer.wait().map_err(|failure| Failure::new(failure.to_string()))
}

/// The address that clients on this machine use.
pub(super) fn client_url(addr: SocketAddr, path: &str) -> String {
    let ip = match addr.ip() {
        ip if !ip.is_unspecified() => ip,
        std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    format!("ws://{}{path}", SocketAddr::new(ip, addr.port()))
}

/// The first SIGTERM or SIGINT.
pub(super) struct Signals(Receiver<()>);

impl Signals {
    /// From here on the first signal is for the server to see, and the second ends the process at once.
    pub(super) fn install() -> Result<Self, Failure> {
        let fail = |error: &dyn Display| Failure::new(format!("cannot handle signals: {error}"));
        let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT]).map_err(|error| fail(&error))?;
        let (first, seen) = sync_channel(1);
        let watch = move || {
            for (index, _) in signals.forever().enumerate() {
                if index > 0 {
                    eprintln!("parley: a second signal: ending at once");
                    std::process::exit(1);
                }
                // Nobody listens any more: the process is about to end by itself.
                let _ = first.send(());
            }
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(watch).map_err(|error| fail(&error))?;
        Ok(Self(seen))
    }

    /// Waits for the signal, or until something that must run does not. `true`: it was the signal.
    pub(super) fn wait_while(&self, mut runs: impl FnMut() -> bool) -> bool {
        loop {
            match self.0.recv_timeout(LOOK) {
                Ok(()) => return true,
                Err(RecvTimeoutError::Timeout) if runs() => {}
                Err(_) => return false,
            }
        }
    }
}

/// What the end of the shards means for the process.
pub(super) fn judge_exit(exit: Exit) -> Result<(), Failure> {
    match exit {
        Exit::Drained => Ok(()),
        Exit::DeadlinePassed => {
            tracing::warn!("some clients did not leave in time and were cut off");
            Ok(())
        }
        Exit::Halted(HaltReason::Fenced) => {
            Err(Failure::new("another gateway took over; this one served nothing any more and ended".to_owned()))
        }
        Exit::Halted(HaltReason::LinkVersion) => Err(Failure::new(
            "gateway and storage-writer are of different versions: start both from one build".to_owned(),
        )),
        Exit::Failed => Err(Failure::new("a shard failed; the log says why".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_was_moved_is_refused_until_somebody_means_it() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(refuse_moved(dir.path()).is_ok());
        mark_moved(dir.path(), "keyspace k at a:1").expect("it is written");
        let refused = refuse_moved(dir.path()).expect_err("it lives elsewhere").what;
        assert!(refused.contains("keyspace k at a:1") && refused.contains("--store scylla"), "{refused}");
        std::fs::remove_file(dir.path().join(MOVED_FILE)).expect("it is there");
        assert!(refuse_moved(dir.path()).is_ok());
    }
}
