//! A real CQL cluster for a test: the one that PARLEY_CQL_CONTACT names, or one that `scripts/cql-cluster` starts in a
//! temporary directory and that ends with this process. Each test works in a keyspace of its own.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;
use storage_core::cql::rows::{Change, Partition, Read, Row, Statement, StatementResult, Write};
use storage_writer::store::scylla::{ClusterMetrics, ClusterOptions, Executor, schema};

/// How long a test waits for a result before it says that there is none.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster that runs.
pub struct Cluster {
    pub contact_points: Vec<String>,
    /// With `--tls`.
    pub ca: Option<PathBuf>,
    /// Where it lies, if it was started here.
    dir: Option<PathBuf>,
}

/// The cluster of this process.
pub fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| match std::env::var("PARLEY_CQL_CONTACT") {
        Ok(contact) => Cluster { contact_points: contact.split(',').map(str::to_owned).collect(), ca: None, dir: None },
        Err(_) => start(&[]),
    })
}

/// Starts a node with these flags. It ends with this process, and its directory goes then, too: tests have no end of
/// their own at which something could be done.
#[expect(clippy::zombie_processes, reason = "what cleans up outlives this process")]
pub fn start(flags: &[&str]) -> Cluster {
    let script = script();
    let dir = std::env::temp_dir().join(format!("parley-cql-{}-{}", std::process::id(), flags.len()));
    let ends = "while [ -e /proc/$0 ]; do sleep 1; done; \"$1\" stop --dir \"$2\"; rm -rf \"$2\"";
    let mut watch = Command::new("sh");
    watch.args(["-c", ends, &std::process::id().to_string()]).arg(&script).arg(&dir);
    watch.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sh runs");
    let output = Command::new(script)
        .args(["start", "--nodes", "1", "--port", &free_port().to_string()])
        .args(["--owner", &std::process::id().to_string(), "--dir"])
        .arg(&dir)
        .args(flags)
        .stderr(Stdio::inherit())
        .output()
        .expect("scripts/cql-cluster runs");
    assert!(output.status.success(), "the cluster does not start");
    let text = String::from_utf8(output.stdout).expect("text");
    let ca = text.lines().find_map(|line| line.strip_prefix("ca ")).map(PathBuf::from);
    let contact = text.lines().last().expect("contact points");
    Cluster { contact_points: contact.split(',').map(str::to_owned).collect(), ca, dir: Some(dir) }
}

/// The first of five ports that nobody listens on, below those that the system gives to clients.
fn free_port() -> u16 {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let from = 12_000 + (std::process::id() % 1_500) as u16 * 10;
    (from..from + 5_000).step_by(10).find(|base| (*base..*base + 5).all(is_free)).expect("five free ports")
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/cql-cluster")
}

impl Cluster {
    /// `kill`, `restart`, `pause` or `resume` of the first node, which was started here.
    pub fn node(&self, action: &str) {
        let dir = self.dir.as_ref().expect("a cluster of this test's own");
        let done = Command::new(script()).args([action, "--node", "1", "--dir"]).arg(dir).status();
        assert!(done.expect("scripts/cql-cluster runs").success(), "{action}");
    }

    /// Options for a keyspace that nobody else uses.
    pub fn options(&self, name: &str) -> ClusterOptions {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let keyspace = format!("t_{name}_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // A node that shares its cores with a build may be slow.
        let request_timeout = Duration::from_secs(20);
        let contact_points = self.contact_points.clone();
        ClusterOptions { contact_points, keyspace, request_timeout, ..ClusterOptions::default() }
    }
}

/// Drops the keyspace at its end.
pub struct Keyspace(pub ClusterOptions);

impl Drop for Keyspace {
    fn drop(&mut self) {
        if let Err(error) = schema::drop_keyspace(&self.0) {
            eprintln!("{}: {error}", self.0.keyspace);
        }
    }
}

/// A keyspace with tables, and an executor on it.
pub struct Bench {
    pub executor: Executor,
    pub keyspace: Keyspace,
    pub metrics: Arc<ClusterMetrics>,
    woken: Arc<(Mutex<bool>, Condvar)>,
}

impl Bench {
    pub fn new(name: &str) -> Bench {
        Bench::with(cluster().options(name))
    }

    pub fn with(options: ClusterOptions) -> Bench {
        let keyspace = Keyspace(options);
        schema::apply(&keyspace.0, &schema::SchemaOptions::default(), &mut |_| {}).expect("tables");
        let woken = Arc::new((Mutex::new(false), Condvar::new()));
        let (metrics, waker) = (Arc::new(ClusterMetrics::default()), woken.clone());
        let wake = move || {
            *waker.0.lock().expect("no holder panics") = true;
            waker.1.notify_all();
        };
        let executor = Executor::connect(&keyspace.0, metrics.clone(), Arc::new(wake)).expect("an executor");
        Bench { executor, keyspace, metrics, woken }
    }

    /// Waits for the waker.
    pub fn wait(&self) {
        let (lock, signal) = &*self.woken;
        let guard = lock.lock().expect("no holder panics");
        let (mut guard, late) = signal.wait_timeout_while(guard, PATIENCE, |woken| !*woken).expect("no holder panics");
        assert!(!late.timed_out(), "no result");
        *guard = false;
    }

    /// Executes all at once; results are in the order of the statements.
    pub fn run(&self, statements: Vec<Statement>) -> Vec<StatementResult> {
        let count = statements.len();
        let mut results: Vec<Option<StatementResult>> = vec![None; count];
        for (id, statement) in statements.into_iter().enumerate() {
            self.executor.execute(id as u64, statement);
        }
        let mut came = Vec::new();
        while results.iter().any(Option::is_none) {
            self.wait();
            self.executor.results(&mut came);
            for (id, result, _) in came.drain(..) {
                assert!(results[id as usize].replace(result).is_none(), "one result each");
            }
        }
        results.into_iter().flatten().collect()
    }

    pub fn put(&self, partition: Partition, rows: Vec<Row>, timestamp: i64) {
        let write = Write { partition, change: Change::Put(rows), timestamp };
        assert_eq!(self.run(vec![Statement::Write(write)]), [Ok(Vec::new())]);
    }

    pub fn delete(&self, partition: Partition, timestamp: i64) {
        let write = Write { partition, change: Change::Delete, timestamp };
        assert_eq!(self.run(vec![Statement::Write(write)]), [Ok(Vec::new())]);
    }

    /// Reads as the writer does and as a reader does: both see the same.
    pub fn read(&self, read: Read) -> Vec<Row> {
        let by_reader = self.executor.reader().read(&read);
        let by_writer = self.run(vec![Statement::Read(read)]).remove(0);
        assert_eq!(by_reader, by_writer);
        by_writer.expect("a read")
    }

    /// Runs CQL of its own, past the executor.
    pub fn cql(&self, text: &str) {
        cql(&self.keyspace, text);
    }
}

/// Runs CQL; `KS.` stands for the keyspace.
pub fn cql(keyspace: &Keyspace, text: &str) {
    let text = text.replace("KS.", &format!("{}.", keyspace.0.keyspace));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let builder = scylla::client::session_builder::SessionBuilder::new();
        let session = builder.known_nodes(&keyspace.0.contact_points).build().await.expect("a session");
        session.query_unpaged(text.as_str(), ()).await.expect("a statement");
    });
}

/// Certificate of an authority that signed nothing here.
pub fn stranger(dir: &Path) -> PathBuf {
    let path = dir.join("stranger.pem");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-subj", "/CN=stranger", "-keyout"])
        .arg(dir.join("stranger.key"))
        .arg("-out")
        .arg(&path)
        .stderr(Stdio::null())
        .status();
    assert!(made.expect("openssl runs").success(), "openssl makes a certificate");
    path
}
