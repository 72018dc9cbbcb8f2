//! The CQL cluster of a run: one that is named, or one node that `scripts/cql-cluster` starts and that ends with it.
//! Every run works in a keyspace of its own, which goes at its end. What is sent to it is not decided here.

use clap::{Args, ValueEnum};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use storage_writer::store::scylla::{ClusterOptions, schema};

/// A node that shares its cores with the load may be slow.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Where rows are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StoreArg {
    /// The engine inside the storage-writer.
    Embedded,
    /// A cluster of ScyllaDB or Cassandra.
    Scylla,
}

/// Which store, as flags.
#[derive(Args)]
pub(crate) struct StoreArgs {
    /// Where the spawned servers keep their rows.
    #[arg(long, value_enum, default_value = "embedded")]
    pub(crate) store: StoreArg,
    /// Nodes of a cluster that runs [default: one Cassandra node of its own, started for the run].
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',')]
    pub(crate) contact: Vec<String>,
}

impl StoreArgs {
    /// The cluster, if one is asked for.
    pub(crate) fn cluster(&self, spawn: bool) -> Result<Option<Cluster>, String> {
        if self.store == StoreArg::Embedded {
            let what = "--contact is of use with --store scylla only".to_owned();
            return if self.contact.is_empty() { Ok(None) } else { Err(what) };
        }
        if !spawn {
            return Err("--store is of the servers that are started: it needs --spawn".to_owned());
        }
        Cluster::open(&self.contact).map(Some)
    }
}

/// A cluster that runs. Dropping it ends what was started here.
#[derive(Debug)]
pub(crate) struct Cluster {
    contact_points: Vec<String>,
    /// Where it lies, if it was started here. It goes after the node has ended.
    directory: Option<tempfile::TempDir>,
}

impl Cluster {
    /// The one that runs there, or a node of its own.
    pub(crate) fn open(contact: &[String]) -> Result<Self, String> {
        if !contact.is_empty() {
            return Ok(Self { contact_points: contact.to_vec(), directory: None });
        }
        // Beside the program: on the disk, where the system's temporary directory may be memory.
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let beside = program.parent().unwrap_or(Path::new("."));
        let directory = tempfile::Builder::new().prefix("perf-cql-").tempdir_in(beside);
        let directory = directory.map_err(|error| format!("{}: {error}", beside.display()))?;
        let mut cluster = Self { contact_points: Vec::new(), directory: Some(directory) };
        eprintln!("starting a Cassandra node");
        let dir = cluster.directory.as_ref().expect("it was just made").path();
        let port = free_port()?.to_string();
        let start = Command::new(script())
            .args(["start", "--nodes", "1", "--fast", "--port", &port, "--dir"])
            .arg(dir)
            .args(["--owner", &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output();
        let output = start.map_err(|error| format!("{}: {error}", script().display()))?;
        if !output.status.success() {
            return Err("the Cassandra node did not start".to_owned());
        }
        let said = String::from_utf8_lossy(&output.stdout);
        let contact = said.lines().last().ok_or("scripts/cql-cluster named no contact points")?;
        cluster.contact_points = contact.split(',').map(str::to_owned).collect();
        Ok(cluster)
    }

    /// Tables in a keyspace that nobody else uses.
    pub(crate) fn keyspace(&self) -> Result<Keyspace, String> {
        let mut random = [0; 6];
        getrandom::fill(&mut random).map_err(|error| format!("no randomness: {error}"))?;
        let name = random.iter().fold("perf_".to_owned(), |name, byte| format!("{name}{byte:02x}"));
        let keyspace = Keyspace(ClusterOptions {
            contact_points: self.contact_points.clone(),
            keyspace: name,
            request_timeout: REQUEST_TIMEOUT,
            ..ClusterOptions::default()
        });
        schema::apply(&keyspace.0, &schema::SchemaOptions::default(), &mut |_| {})
            .map_err(|error| error.to_string())?;
        eprintln!("tables are in the keyspace {}", keyspace.0.keyspace);
        Ok(keyspace)
    }

    /// The process of the node that was started here.
    pub(crate) fn node_pid(&self) -> Option<u32> {
        let pid = self.directory.as_ref()?.path().join("node1/pid");
        std::fs::read_to_string(pid).ok()?.trim().parse().ok()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Some(directory) = &self.directory else { return };
        let mut stop = Command::new(script());
        stop.args(["stop", "--dir"]).arg(directory.path()).stdin(Stdio::null()).stdout(Stdio::null());
        if !stop.status().is_ok_and(|status| status.success()) {
            eprintln!("the Cassandra node in {} did not stop", directory.path().display());
        }
    }
}

/// A keyspace with tables. Dropping it deletes it.
#[derive(Debug)]
pub(crate) struct Keyspace(pub(crate) ClusterOptions);

impl Drop for Keyspace {
    fn drop(&mut self) {
        // A snapshot of each table, at the end of a long load, can take a node longer than a request.
        let options = ClusterOptions { request_timeout: 6 * REQUEST_TIMEOUT, ..self.0.clone() };
        if let Err(error) = schema::drop_keyspace(&options) {
            eprintln!("the keyspace {} is left behind: {error}", self.0.keyspace);
        }
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/cql-cluster")
}

/// The first of five ports that nobody listens on, below those that the system gives to clients.
fn free_port() -> Result<u16, String> {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let from = 20_000 + (std::process::id() % 1_000) as u16 * 10;
    let mut bases = (from..from + 2_000).step_by(10);
    bases.find(|base| (*base..*base + 5).all(is_free)).ok_or_else(|| "no five free ports in a row".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_nobody_would_use_is_refused() {
        let args = |store, contact: &[&str]| StoreArgs {
            store,
            contact: contact.iter().map(|contact| (*contact).to_owned()).collect(),
        };
        assert!(args(StoreArg::Embedded, &[]).cluster(false).is_ok_and(|cluster| cluster.is_none()));
        assert!(args(StoreArg::Embedded, &["a:1"]).cluster(true).unwrap_err().contains("--store scylla"));
        assert!(args(StoreArg::Scylla, &["a:1"]).cluster(false).unwrap_err().contains("--spawn"));
        let cluster = args(StoreArg::Scylla, &["a:1"]).cluster(true).unwrap().expect("a cluster");
        assert_eq!((cluster.contact_points.clone(), cluster.node_pid()), (vec!["a:1".to_owned()], None));
    }
}
