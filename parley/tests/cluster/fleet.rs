//! Two storage-writers over one keyspace, and a gateway that knows both. What is done to them stands in the tests.

use crate::common::keyspace::{Keyspace, cluster};
use crate::common::process::Process;
use crate::common::{Port, Settings, Target, http, new_dir, poll};
use gateway::identity::DevKey;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

/// Whose turn it is with the cluster.
static TURN: Mutex<()> = Mutex::new(());

/// All processes of a deployment on one machine.
pub(crate) struct Fleet {
    // Fields drop in this order: processes end before their keyspace and directory go.
    gateway: Option<Process>,
    pub(crate) writers: [Option<Process>; 2],
    listen: Port,
    pub(crate) admin: Port,
    writer_admins: [Port; 2],
    settings: Settings,
    keyspace: Keyspace,
    data: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Fleet {
    /// Starts everything, and waits until it serves.
    pub(crate) fn start(lease_ms: u32) -> Self {
        Self::start_in(lease_ms, |_| {})
    }

    /// The same over rows that `prepare` puts into the empty tables first; it gets the flags that name them.
    pub(crate) fn start_in(lease_ms: u32, prepare: impl FnOnce(&[String])) -> Self {
        let turn = TURN.lock().unwrap_or_else(|poisoned| {
            // The test before may have left nodes dead.
            cluster().heal();
            TURN.clear_poison();
            poisoned.into_inner()
        });
        let data = new_dir();
        let settings = Settings::new()
            .writer("scylla.lease_ms", lease_ms)
            .gateway("pin", false)
            .gateway("chat.rate_per_s", 1_000_000)
            .gateway("chat.rate_burst", 1_000_000)
            // A stopped writer says nothing: for so long it is waited for.
            .gateway("writer.link_idle_ms", 1_500)
            .gateway("writer.link_hello_ms", 300)
            .gateway("writer.link_retry_max_ms", 500)
            .gateway("writer.refuse_after_ms", 500)
            // Nodes may take minutes to come back, and not every device of a test has something to say meanwhile.
            .gateway("session.heartbeat_timeout_ms", 600_000)
            .gateway("writer.sockets", [socket(data.path(), 0), socket(data.path(), 1)].join(","));
        let keyspace = Keyspace::of(data.path()).with_tables();
        prepare(&keyspace.flags());
        DevKey::load_or_create(data.path()).expect("a development key");
        let writer_admins = [Port::take(), Port::take()];
        let (listen, admin) = (Port::take(), Port::take());
        let mut fleet = Self {
            gateway: None,
            writers: [None, None],
            listen,
            admin,
            writer_admins,
            settings,
            keyspace,
            data,
            _turn: turn,
        };
        fleet.start_writer(0);
        poll("the first writer to be active", || fleet.readyz(0).0 == 200);
        fleet.start_writer(1);
        let driver = std::env::var("PARLEY_TEST_DRIVER").unwrap_or_else(|_| "auto".to_owned());
        let (listen, admin) = (fleet.listen.addr.to_string(), fleet.admin.addr.to_string());
        let data = fleet.data.path().to_str().expect("a UTF-8 path");
        let flags = ["--listen", &listen, "--admin", &admin, "--driver", &driver, "--shards", "2"];
        let args = [&["gateway", "--data", data], &flags[..]].concat();
        let mut gateway = Process::spawn("gateway", &args, &fleet.settings.0);
        gateway.wait_ready();
        fleet.gateway = Some(gateway);
        poll("the gateway to serve", || fleet.gateway_readyz().0 == 200);
        fleet
    }

    /// Where devices connect.
    pub(crate) fn target(&self) -> Target {
        Target { addr: self.listen.addr, data: self.data.path().to_owned() }
    }

    /// Starts a writer that does not run; it may stand by.
    pub(crate) fn start_writer(&mut self, index: usize) {
        let data = writer_dir(self.data.path(), index);
        let admin = self.writer_admins[index].addr.to_string();
        let mut args =
            ["storage-writer", "--data", &data.to_string_lossy(), "--admin", &admin].map(str::to_owned).to_vec();
        args.extend(self.keyspace.flags());
        let mut writer = Process::spawn(&format!("writer {index}"), &args, &self.settings.0);
        // Before `ready`, which a standby says late.
        poll("the writer's admin endpoint or its end", || {
            !writer.is_running() || writer.log().lines().any(|line| line.starts_with("ready"))
        });
        assert!(writer.is_running(), "{}", writer.log());
        self.writers[index] = Some(writer);
    }

    /// Status and words of a writer's `/readyz`; 0 while nobody answers.
    pub(crate) fn readyz(&self, index: usize) -> (u16, String) {
        http::try_get(self.writer_admins[index].addr, "/readyz").unwrap_or_default()
    }

    /// The same of the gateway.
    pub(crate) fn gateway_readyz(&self) -> (u16, String) {
        http::try_get(self.admin.addr, "/readyz").unwrap_or_default()
    }

    /// The writer that is active, once there is one. Asks running ones only.
    pub(crate) fn active(&self) -> usize {
        let mut active = None;
        poll("a writer to be active", || {
            active = (0..2).find(|index| self.writers[*index].is_some() && self.readyz(*index).0 == 200);
            active.is_some()
        });
        active.expect("found")
    }

    pub(crate) fn writer(&mut self, index: usize) -> &mut Process {
        self.writers[index].as_mut().expect("it runs")
    }

    /// kill -9.
    pub(crate) fn kill_writer(&mut self, index: usize) {
        self.writer(index).kill();
        self.writers[index] = None;
    }

    /// SIGTERM to all that run, the gateway first; each must end with 0.
    pub(crate) fn stop(mut self) {
        let writers = std::mem::take(&mut self.writers);
        for mut process in self.gateway.take().into_iter().chain(writers.into_iter().flatten()) {
            let status = process.terminate();
            assert!(status.success(), "SIGTERM ends with 0, not with {status}:\n{}", process.log());
        }
    }
}

fn writer_dir(data: &Path, index: usize) -> PathBuf {
    if index == 0 { data.to_owned() } else { data.join(format!("w{index}")) }
}

fn socket(data: &Path, index: usize) -> String {
    writer_dir(data, index).join("writer.sock").to_str().expect("a UTF-8 path").to_owned()
}
