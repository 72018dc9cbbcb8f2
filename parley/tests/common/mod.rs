//! The harness of the tests with real processes: servers on ports and directories of their own, devices that speak the
//! protocol from `docs/PROTOCOL.md`, raw sockets, and a ledger of what was promised. No test of its own lives here.
//!
//! `PARLEY_TEST_DRIVER` (auto, epoll, uring) chooses the socket driver of every server, `PARLEY_TEST_STORE` (embedded,
//! scylla) where its rows are.

pub(crate) mod device;
pub(crate) mod http;
pub(crate) mod keyspace;
pub(crate) mod ledger;
pub(crate) mod load;
pub(crate) mod process;
pub(crate) mod raw;

pub(crate) use device::{Device, Target};
pub(crate) use process::Process;

use gateway::identity::DevKey;
use keyspace::Keyspace;
use parley_protocol::wire::Encoding;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take before a test gives up. A fail-safe only: no test judges by the clock.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const JSON: Encoding = Encoding::Json;
pub(crate) const RKYV: Encoding = Encoding::Rkyv;

/// Waits until `done`, looking often; panics with `what` when patience runs out.
pub(crate) fn poll(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A number that no other test run has.
pub(crate) fn random() -> u128 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let half = || u128::from(RandomState::new().build_hasher().finish());
    half() << 64 | half()
}

/// Seconds since 1970.
pub(crate) fn unix_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock after 1970").as_secs()
}

/// A TCP port that stays ours for the test, also while no server holds it: restarts keep their address.
pub(crate) struct Port {
    pub(crate) addr: SocketAddr,
    /// The UDP port of the same number is the lock by which tests of all processes keep apart.
    _lock: UdpSocket,
}

impl Port {
    pub(crate) fn take() -> Self {
        // Below the range that the kernel gives to outgoing connections.
        const LOW: u16 = 11_000;
        const SPAN: u16 = 20_000;
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let start = (std::process::id() % u32::from(SPAN)) as u16;
        for _ in 0..SPAN {
            let port = LOW + start.wrapping_add(NEXT.fetch_add(7, Ordering::Relaxed)) % SPAN;
            let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let Ok(lock) = UdpSocket::bind(addr) else { continue };
            if TcpListener::bind(addr).is_ok() {
                return Self { addr, _lock: lock };
            }
        }
        panic!("no free port");
    }
}

/// Settings of a test over the shipped defaults, as environment variables.
#[derive(Clone, Default)]
pub(crate) struct Settings(pub(crate) Vec<(String, String)>);

impl Settings {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A key of `gateway.toml`, dotted.
    pub(crate) fn gateway(self, key: &str, value: impl ToString) -> Self {
        self.set("PARLEY_GATEWAY__", key, value)
    }

    /// A key of `storage-writer.toml`, dotted.
    pub(crate) fn writer(self, key: &str, value: impl ToString) -> Self {
        self.set("PARLEY_STORAGE_WRITER__", key, value)
    }

    /// A key that both files have, under their own tables.
    pub(crate) fn both(self, gateway_table: &str, key: &str, value: impl ToString) -> Self {
        let value = value.to_string();
        self.gateway(&format!("{gateway_table}.{key}"), &value).writer(&format!("limits.{key}"), &value)
    }

    /// Any other variable of the processes' environment.
    pub(crate) fn env(mut self, name: &str, value: String) -> Self {
        self.0.push((name.to_owned(), value));
        self
    }

    fn set(mut self, prefix: &str, key: &str, value: impl ToString) -> Self {
        self.0.push((format!("{prefix}{}", key.to_uppercase().replace('.', "__")), value.to_string()));
        self
    }
}

/// Which processes a server consists of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// `parley up`: all in one.
    Up,
    /// `parley storage-writer` and `parley gateway`.
    Apart,
}

/// A Parley of its own: data directory, ports, processes.
pub(crate) struct Server {
    // Fields drop in this order: processes end before their directory goes.
    pub(crate) gateway: Option<Process>,
    pub(crate) writer: Option<Process>,
    pub(crate) listen: Port,
    pub(crate) admin: Port,
    pub(crate) writer_admin: Port,
    shape: Shape,
    settings: Settings,
    /// Where its rows are, if not in the directory.
    keyspace: Option<Keyspace>,
    data: Directory,
}

enum Directory {
    Own(tempfile::TempDir),
    Given(PathBuf),
}

impl Server {
    /// `parley up` with the shipped defaults.
    pub(crate) fn up() -> Self {
        Self::up_with(Settings::new())
    }

    pub(crate) fn up_with(settings: Settings) -> Self {
        let mut server = Self::prepare(Shape::Up, settings, None);
        server.start();
        server
    }

    /// `parley up` on a directory that outlives the server.
    pub(crate) fn up_on(data: &Path, settings: Settings) -> Self {
        let mut server = Self::prepare(Shape::Up, settings, Some(data));
        server.start();
        server
    }

    /// Gateway and storage-writer as processes of their own.
    pub(crate) fn apart() -> Self {
        Self::apart_with(Settings::new())
    }

    pub(crate) fn apart_with(settings: Settings) -> Self {
        let mut server = Self::prepare(Shape::Apart, settings, None);
        server.start();
        server
    }

    /// The same on a directory that outlives the server.
    pub(crate) fn apart_on(data: &Path, settings: Settings) -> Self {
        let mut server = Self::prepare(Shape::Apart, settings, Some(data));
        server.start();
        server
    }

    fn prepare(shape: Shape, settings: Settings, data: Option<&Path>) -> Self {
        let data = match data {
            Some(data) => Directory::Given(data.to_owned()),
            None => Directory::Own(new_dir()),
        };
        let (listen, admin, writer_admin) = (Port::take(), Port::take(), Port::take());
        let mut server =
            Self { gateway: None, writer: None, listen, admin, writer_admin, shape, settings, keyspace: None, data };
        match std::env::var("PARLEY_TEST_STORE").as_deref() {
            Err(_) | Ok("embedded") => {}
            Ok("scylla") => {
                // Made before anybody waits for a server: that takes the nodes seconds, and longer for several at a time.
                server.keyspace = Some(Keyspace::of(server.data()).with_tables());
            }
            Ok(other) => panic!("PARLEY_TEST_STORE is embedded or scylla, not {other}"),
        }
        server
    }

    /// Flags that choose the store.
    fn store_flags(&self) -> Vec<String> {
        self.keyspace.as_ref().map(Keyspace::flags).unwrap_or_default()
    }

    /// Over a cluster `ready` may be said while the lease of the process before is waited out.
    fn wait_serving(&self, admin: SocketAddr) {
        if self.keyspace.is_some() {
            poll("/readyz", || http::try_get(admin, "/readyz").is_some_and(|(status, _)| status == 200));
        }
    }

    pub(crate) fn data(&self) -> &Path {
        match &self.data {
            Directory::Own(dir) => dir.path(),
            Directory::Given(path) => path,
        }
    }

    /// Where devices connect, and whose keys sign their tokens.
    pub(crate) fn target(&self) -> Target {
        Target { addr: self.listen.addr, data: self.data().to_owned() }
    }

    /// Starts everything that does not run.
    pub(crate) fn start(&mut self) {
        if self.shape == Shape::Apart && self.writer.is_none() {
            self.start_writer();
        }
        if self.gateway.is_none() {
            self.start_gateway();
        }
    }

    /// Starts the storage-writer and waits for it.
    pub(crate) fn start_writer(&mut self) {
        assert!(self.shape == Shape::Apart, "`up` has its writer inside");
        self.writer = None;
        let admin = self.writer_admin.addr;
        let mut args =
            ["storage-writer", "--data", self.data_text(), "--admin", &admin.to_string()].map(str::to_owned).to_vec();
        args.extend(self.store_flags());
        let mut writer = Process::spawn("storage-writer", &args, &self.settings.0);
        writer.wait_ready();
        self.wait_serving(admin);
        self.writer = Some(writer);
    }

    /// Starts the gateway (or `up`) on the server's own address and waits for it.
    pub(crate) fn start_gateway(&mut self) {
        self.gateway = None;
        let (listen, admin) = (self.listen.addr, self.admin.addr);
        let mut gateway = self.spawn_gateway("gateway", listen, admin);
        gateway.wait_ready();
        self.wait_serving(admin);
        self.gateway = Some(gateway);
    }

    /// Another gateway of the same storage-writer, on other ports; not waited for.
    pub(crate) fn spawn_gateway(&self, name: &str, listen: SocketAddr, admin: SocketAddr) -> Process {
        let command = match self.shape {
            Shape::Up => "up",
            Shape::Apart => {
                // `up` makes the key by itself; tests of the two alone need one too.
                DevKey::load_or_create(self.data()).expect("a development key");
                "gateway"
            }
        };
        let driver = std::env::var("PARLEY_TEST_DRIVER").unwrap_or_else(|_| "auto".to_owned());
        let (listen, admin) = (listen.to_string(), admin.to_string());
        let mut args = vec![command, "--data", self.data_text(), "--listen", &listen, "--admin", &admin];
        args.extend(["--driver", &driver, "--shards", "2"]);
        let store = if self.shape == Shape::Up { self.store_flags() } else { Vec::new() };
        args.extend(store.iter().map(String::as_str));
        // Pinned threads of many servers would all share the first cores; and most tests are not about rates.
        let mut settings = Settings::new().gateway("pin", false);
        settings = settings.gateway("chat.rate_per_s", 1_000_000).gateway("chat.rate_burst", 1_000_000);
        settings.0.extend(self.settings.0.iter().cloned());
        Process::spawn(name, &args, &settings.0)
    }

    fn data_text(&self) -> &str {
        self.data().to_str().expect("a UTF-8 path")
    }

    pub(crate) fn gateway(&mut self) -> &mut Process {
        self.gateway.as_mut().expect("the gateway was started")
    }

    pub(crate) fn writer(&mut self) -> &mut Process {
        self.writer.as_mut().expect("the storage-writer was started")
    }

    /// kill -9 of the gateway (or of `up`).
    pub(crate) fn kill_gateway(&mut self) {
        self.gateway().kill();
        self.gateway = None;
    }

    /// kill -9 of the storage-writer.
    pub(crate) fn kill_writer(&mut self) {
        self.writer().kill();
        self.writer = None;
    }

    /// SIGTERM to all, the gateway first; both must end with 0.
    pub(crate) fn stop(&mut self) {
        for process in [self.gateway.take(), self.writer.take()] {
            let Some(mut process) = process else { continue };
            let status = process.terminate();
            assert!(status.success(), "SIGTERM ends with 0, not with {status}:\n{}", process.log());
        }
    }

    /// The store of a stopped server proves itself. A cluster has nothing that could be asked to.
    pub(crate) fn check_store(&self) {
        if self.keyspace.is_some() {
            return;
        }
        let (status, output) = run(&["check-store", "--data", self.data_text()]);
        assert!(status.success(), "`check-store` found fault with the store:\n{output}");
    }

    /// A new device with a first login: nothing of what was before is sent to it.
    pub(crate) fn device(&self, name: &str, encoding: Encoding) -> Device {
        Device::new(&self.target(), name, encoding).connected()
    }

    /// A device that asks for the whole inbox.
    pub(crate) fn device_from_start(&self, name: &str, encoding: Encoding) -> Device {
        let mut device = Device::new(&self.target(), name, encoding);
        device.mark = Some(0);
        device.connected()
    }

    /// A value of `/metrics` summed over the shards; 0 where it is absent.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        http::metric(self.admin.addr, name)
    }
}

/// Runs `parley ARGS` to its end: status and all output.
pub(crate) fn run(args: &[&str]) -> (ExitStatus, String) {
    let mut process = Process::spawn(args[0], args, &[]);
    let status = process.wait_exit();
    (status, process.log())
}

/// A directory beside the test's binary: on the disk, where the system's own may be memory. Unix sockets need short
/// paths.
pub(crate) fn new_dir() -> tempfile::TempDir {
    const SOCKET_PATH_BYTES_MAX: usize = 107;
    let beside = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let fits = beside.as_os_str().len() + "/parley-XXXXXX/writer.sock".len() <= SOCKET_PATH_BYTES_MAX;
    let builder = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix("parley-");
        builder
    };
    let dir = if fits { builder().tempdir_in(beside) } else { builder().tempdir() };
    dir.expect("a directory for the test")
}
