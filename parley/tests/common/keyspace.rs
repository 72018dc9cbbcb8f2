//! The cluster that tests keep their rows in, where PARLEY_TEST_STORE or the test itself says so, and keyspaces there:
//! each server's own, dropped at its end.
//!
//! PARLEY_CQL_DIR names a cluster that `scripts/cql-cluster` runs; otherwise it starts one of three nodes, which ends
//! with this process.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use storage_writer::store::scylla::{ClusterOptions, schema};

/// A cluster that runs.
pub(crate) struct Cluster {
    pub(crate) contact: String,
    dir: PathBuf,
}

/// The cluster of this process.
pub(crate) fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| match std::env::var_os("PARLEY_CQL_DIR") {
        // Started again, it says where its nodes are.
        Some(dir) => start(dir.into(), &[]),
        None => {
            let dir = std::env::temp_dir().join(format!("parley-cql-{}", std::process::id()));
            clean_up_after(&dir);
            let port = (12_000..27_000).step_by(10).skip((std::process::id() % 1_500) as usize).find(is_free);
            let port = port.expect("five free ports").to_string();
            start(dir, &["--nodes", "3", "--port", &port, "--owner", &std::process::id().to_string()])
        }
    })
}

fn is_free(port: &u16) -> bool {
    (*port..*port + 5).all(|port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok())
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/cql-cluster")
}

fn start(dir: PathBuf, flags: &[&str]) -> Cluster {
    let output =
        Command::new(script()).args(["start", "--dir"]).arg(&dir).args(flags).stderr(Stdio::inherit()).output();
    let output = output.expect("scripts/cql-cluster runs");
    assert!(output.status.success(), "the cluster does not start");
    let text = String::from_utf8(output.stdout).expect("text");
    Cluster { contact: text.lines().last().expect("contact points").to_owned(), dir }
}

/// Stops the cluster and removes its directory when this process is gone: tests have no end of their own.
#[expect(clippy::zombie_processes, reason = "what cleans up outlives this process")]
fn clean_up_after(dir: &Path) {
    let ends = "while [ -e /proc/$0 ]; do sleep 1; done; \"$1\" stop --dir \"$2\"; rm -rf \"$2\"";
    let mut watch = Command::new("sh");
    watch.args(["-c", ends, &std::process::id().to_string()]).arg(script()).arg(dir);
    watch.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sh runs");
}

impl Cluster {
    /// `kill`, `restart`, `pause` or `resume` of a node, 1 to 3.
    pub(crate) fn node(&self, action: &str, node: u32) {
        let mut command = Command::new(script());
        command.args([action, "--node", &node.to_string(), "--dir"]).arg(&self.dir);
        assert!(command.status().expect("scripts/cql-cluster runs").success(), "{action} of node {node}");
    }

    /// All nodes run and see each other.
    pub(crate) fn heal(&self) {
        start(self.dir.clone(), &[]);
    }
}

/// A keyspace, dropped at its end.
pub(crate) struct Keyspace {
    pub(crate) name: String,
}

impl Keyspace {
    /// For the server of a data directory; the tables are not made yet.
    pub(crate) fn of(data: &Path) -> Self {
        let dir = data.file_name().unwrap_or_default().to_string_lossy();
        let word: String = dir.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
        Self { name: format!("t_{word}_{}", std::process::id()) }
    }

    /// Makes the tables.
    pub(crate) fn with_tables(self) -> Self {
        schema::apply(&self.options(), &schema::SchemaOptions::default(), &mut |_| {}).expect("tables");
        self
    }

    /// Flags of every command that uses the store.
    pub(crate) fn flags(&self) -> Vec<String> {
        ["--store", "scylla", "--contact", &cluster().contact, "--keyspace", &self.name].map(str::to_owned).to_vec()
    }

    fn options(&self) -> ClusterOptions {
        let contact_points = cluster().contact.split(',').map(str::to_owned).collect();
        ClusterOptions { contact_points, keyspace: self.name.clone(), ..ClusterOptions::default() }
    }
}

impl Drop for Keyspace {
    fn drop(&mut self) {
        if let Err(error) = schema::drop_keyspace(&self.options()) {
            eprintln!("{}: {error}", self.name);
        }
    }
}
