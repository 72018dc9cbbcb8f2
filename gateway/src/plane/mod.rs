//! The socket plane: shards that serve sockets to a [`Brain`], over io_uring or epoll.
//!
//! [`run`] opens the listeners, starts one pinned thread per shard through `host`, and gives back a [`Handle`]. What
//! happens to a connection is decided by the brain alone (`gateway_core::brain`); this module knows no frame.

mod clock;
mod conn;
pub(crate) mod control;
mod counters;
mod driver;
pub(crate) mod epoll;
mod listen;
mod probe;
pub(crate) mod shard;
mod table;
pub(crate) mod uring;

pub use counters::{Counter, Counters};
pub use gateway_core::brain::{Brain, MeshClass, MeshMessage};
pub use probe::{Probe, probe};

use crate::host;
use crate::mesh::{Capacities, Mesh, Waker};
use clock::Clock;
use control::Control;
use gateway_core::output::HaltReason;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Which driver is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriverChoice {
    /// The ring driver where it works, epoll elsewhere; the reason is logged.
    #[default]
    Auto,
    /// The ring driver, or an error that says what it lacks.
    Uring,
    /// The epoll driver.
    Epoll,
}

impl FromStr for DriverChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "epoll" => Ok(Self::Epoll),
            other => Err(format!("driver `{other}` is none of auto, uring, epoll")),
        }
    }
}

/// Which driver runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverKind {
    /// io_uring inside a glommio executor.
    Uring,
    /// epoll on a plain thread.
    Epoll,
}

impl fmt::Display for DriverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        })
    }
}

/// Receive buffers that all connections of a ring share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferOptions {
    /// How many: a power of two, at most 32,768. They bound the receives that one ring can take in in a turn.
    pub count: u16,
    /// Bytes of each.
    pub bytes: u32,
}

impl Default for BufferOptions {
    fn default() -> Self {
        Self { count: 1024, bytes: 8 << 10 }
    }
}

/// The rings of the ring driver. A shard has as many as its live connections need; the first one accepts, too, and is
/// larger than the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingOptions {
    /// Connections of one ring, in the lobby and live. Lowered to a power of two, and to the limit of open files.
    pub connections_max: u32,
    /// Receive buffers of each ring after the first.
    pub buffers: BufferOptions,
    /// Entries of the submission queue of each ring after the first.
    pub submissions: u32,
    /// Entries of the completion queue of each ring after the first. The kernel finds operations that are cancelled the
    /// faster the more there are.
    pub completions: u32,
    /// Milliseconds without a byte after which an active connection is polled again, which costs the kernel a third of
    /// the memory. In steps of a second. 0 = connections are never polled.
    pub poll_after_ms: u64,
}

impl Default for RingOptions {
    fn default() -> Self {
        Self {
            connections_max: 16_384,
            buffers: BufferOptions { count: 32, bytes: 2 << 10 },
            submissions: 128,
            completions: 2048,
            poll_after_ms: 60_000,
        }
    }
}

/// How to run shards.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the threads, with the shard's number behind it; at most 12 bytes are seen.
    pub name: String,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The driver.
    pub driver: DriverChoice,
    /// How many shards.
    pub shards: u16,
    /// Connections of each shard, in the lobby and live. The limit of open files bounds those of the lobby; with epoll,
    /// all.
    pub connections_max: u32,
    /// How long a closed connection waits for what is queued to leave and for the peer to close, in milliseconds.
    pub linger_ms: u64,
    /// The Unix sockets of the storage-writers, if the brain links to any.
    pub link_paths: Vec<PathBuf>,
    /// Room of the queues between shards.
    pub mesh: Capacities,
    /// Receive buffers of the ring driver's first ring.
    pub buffers: BufferOptions,
    /// The ring driver's rings.
    pub rings: RingOptions,
    /// Pin each shard to a core of its own, as far as there are some.
    pub pin: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "shard".to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            driver: DriverChoice::Auto,
            shards: 1,
            connections_max: 1_000_000,
            linger_ms: 1_000,
            link_paths: Vec::new(),
            mesh: Capacities::default(),
            buffers: BufferOptions::default(),
            rings: RingOptions::default(),
            pin: true,
        }
    }
}

/// Why shards do not start.
#[derive(Debug)]
pub enum StartError {
    /// An option makes no sense; says which.
    Options(String),
    /// The address cannot be listened on.
    Listen(SocketAddr, io::Error),
    /// The driver that was asked for does not work here; says what to do.
    Driver(String),
    /// A shard could not set up; says what.
    Shard(u16, io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Options(what) => f.write_str(what),
            Self::Listen(addr, _) => write!(f, "cannot listen on {addr}"),
            Self::Driver(why) => write!(f, "the uring driver does not work here: {why}"),
            Self::Shard(shard, _) => write!(f, "shard {shard} cannot start"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Listen(_, error) | Self::Shard(_, error) => Some(error),
            Self::Options(_) | Self::Driver(_) => None,
        }
    }
}

/// How the shards ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Every brain saw its connections off.
    Drained,
    /// The deadline of the drain came first; what was left was cut.
    DeadlinePassed,
    /// A brain ended the process.
    Halted(HaltReason),
    /// A shard panicked or its driver failed; the log says why.
    Failed,
}

/// Starts the end of all shards, from any thread.
#[derive(Clone, Debug)]
pub struct Drainer {
    control: Arc<Control>,
    wakers: Arc<[Waker]>,
    clock: Clock,
}

impl Drainer {
    /// Accept nobody, let the brains see everybody off, end after `timeout` at the latest. Does not wait. Calling again
    /// can only bring the end nearer.
    pub fn drain(&self, timeout: Duration) {
        self.control.drain(self.clock.now().mono_ms + timeout.as_millis() as u64);
        self.wakers.iter().for_each(Waker::wake);
    }
}

/// Running shards. Dropping it leaves them running, with nobody to wait for them.
#[derive(Debug)]
pub struct Handle {
    addr: SocketAddr,
    driver: DriverKind,
    counters: Vec<Arc<Counters>>,
    drainer: Drainer,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Handle {
    /// The address that clients connect to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The driver that runs.
    pub fn driver(&self) -> DriverKind {
        self.driver
    }

    /// Counters, by shard.
    pub fn counters(&self) -> &[Arc<Counters>] {
        &self.counters
    }

    /// What drains these shards, for another thread.
    pub fn drainer(&self) -> Drainer {
        self.drainer.clone()
    }

    /// See [`Drainer::drain`].
    pub fn drain(&self, timeout: Duration) {
        self.drainer.drain(timeout);
    }

    /// True until all shards have ended.
    pub fn is_running(&self) -> bool {
        self.threads.iter().any(|thread| !thread.is_finished())
    }

    /// Waits for the end of all shards, which a drain, a halt or a failure brings.
    pub fn join(self) -> Exit {
        let mut failed = false;
        for (shard, thread) in self.threads.into_iter().enumerate() {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::error!(shard, %error, "the driver failed");
                    failed = true;
                }
                Err(_) => {
                    tracing::error!(shard, "the shard panicked");
                    failed = true;
                }
            }
        }
        let control = &self.drainer.control;
        match control.halted() {
            Some(reason) => Exit::Halted(reason),
            None if failed => Exit::Failed,
            None if control.all_drained() => Exit::Drained,
            None => Exit::DeadlinePassed,
        }
    }
}

/// What one shard's thread is given.
pub(crate) struct ShardSetup<B: Brain> {
    pub(crate) shard: u16,
    pub(crate) options: Options,
    pub(crate) listener: std::os::fd::OwnedFd,
    pub(crate) shared: shard::Shared<B>,
}

/// Starts the shards; each makes its brain on its own thread.
pub fn run<B, F>(options: Options, make_brain: F) -> Result<Handle, StartError>
where
    B: Brain + 'static,
    F: Fn(u16) -> B + Send + Sync + 'static,
{
    check(&options)?;
    let kind = match probe(options.driver) {
        Probe::Use(kind) => kind,
        Probe::FellBack(why) => {
            tracing::warn!(%why, "the uring driver does not work here; using epoll");
            DriverKind::Epoll
        }
        Probe::Unusable(why) => return Err(StartError::Driver(why)),
    };
    let (listeners, addr) =
        listen::listeners(options.listen, options.shards).map_err(|error| StartError::Listen(options.listen, error))?;
    let mesh: Arc<shard::ShardMesh<B>> =
        Arc::new(Mesh::new(options.shards, options.mesh).map_err(|error| StartError::Shard(0, error))?);
    let control = Arc::new(Control::new(options.shards));
    let clock = Clock::start();
    let drainer = Drainer { control: control.clone(), wakers: mesh.wakers(), clock };
    let counters: Vec<_> = (0..options.shards).map(|_| Arc::new(Counters::default())).collect();
    let link_paths: Arc<[PathBuf]> = options.link_paths.clone().into();
    let setups = listeners.into_iter().zip(&counters).enumerate().map(|(shard, (listener, counters))| ShardSetup {
        shard: shard as u16,
        options: options.clone(),
        listener,
        shared: shard::Shared {
            mesh: mesh.clone(),
            control: control.clone(),
            counters: counters.clone(),
            clock,
            link_paths: link_paths.clone(),
        },
    });
    let threads = host::start(kind, setups, Arc::new(make_brain), &drainer)?;
    tracing::info!(%addr, driver = %kind, shards = options.shards, "listening");
    Ok(Handle { addr, driver: kind, counters, drainer, threads })
}

impl Drainer {
    /// Ends all shards at once: one of them failed.
    pub(crate) fn end(&self) {
        self.control.end();
        self.wakers.iter().for_each(Waker::wake);
    }
}

fn check(options: &Options) -> Result<(), StartError> {
    let bad = |what: &str| Err(StartError::Options(what.to_owned()));
    if options.shards == 0 {
        return bad("there must be at least one shard");
    }
    if options.connections_max == 0 || options.connections_max >= uring::CONNECTIONS_MAX {
        return bad("connections_max must be between 1 and 16,777,214 per shard");
    }
    for buffers in [options.buffers, options.rings.buffers] {
        if !buffers.count.is_power_of_two() || buffers.count > 1 << 15 || !(1..=1 << 20).contains(&buffers.bytes) {
            return bad("receive buffers: their count is a power of two up to 32,768, each of at most 1 MiB");
        }
    }
    let rings = options.rings;
    if rings.connections_max == 0 || rings.submissions == 0 || rings.completions < rings.submissions {
        return bad("rings need connections and submissions, and at least as many completions as submissions");
    }
    let mesh = options.mesh;
    if mesh.request == 0 || mesh.fanout == 0 || mesh.seat == 0 || mesh.answer < mesh.request {
        return bad("mesh queues need room, and as much for answers as for requests");
    }
    Ok(())
}
