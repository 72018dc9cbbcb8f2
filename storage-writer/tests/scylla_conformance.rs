//! The conformance suite of `storage-core` over a real cluster: lease, planner, driver and what readers see. Tables are
//! emptied between the cases. A reopened engine is a new holder that takes the lease from one that said no farewell.

mod scylla_common;

use scylla_common::{Keyspace, cluster};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use storage_core::conformance::{Harness, run};
use storage_core::cql::engine::EngineOptions;
use storage_core::cql::view::{CqlView, WriterBounds};
use storage_core::store::{OpId, Store, StoreRequest, StoreResult};
use storage_writer::store::scylla::{ClusterReader, ScyllaOptions, ScyllaStore, schema};

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Small: each taking over waits for two of them.
const LEASE_MS: u32 = 300;

struct Cql {
    store: ScyllaStore,
    woken: Receiver<()>,
    keyspace: Rc<Keyspace>,
}

fn options(keyspace: &Keyspace) -> ScyllaOptions {
    let engine = EngineOptions {
        // Nobody waits so long here: the suite takes an unknown outcome for a wrong one.
        unknown_after_ms: 1_000_000_000,
        // Small: lists change and chats are forgotten in the middle of a case.
        work_keys_max: 6,
        work_age_ms: 300,
        chats_known_max: 3,
        ..EngineOptions::default()
    };
    ScyllaOptions { cluster: keyspace.0.clone(), lease_ms: LEASE_MS, engine }
}

impl Cql {
    /// Connects and waits for the lease.
    fn open(keyspace: Rc<Keyspace>) -> Cql {
        let (wake, woken) = channel();
        let waker = Arc::new(move || wake.send(()).unwrap_or(()));
        let store = ScyllaStore::open(options(&keyspace), 1, "here".to_owned(), Default::default(), waker);
        let mut cql = Cql { store: store.expect("the cluster answers"), woken, keyspace };
        let deadline = Instant::now() + PATIENCE;
        let mut done = Vec::new();
        while cql.store.view().is_none() {
            assert!(Instant::now() < deadline, "the lease is not taken");
            cql.store.completions(&mut done);
            assert_eq!(done, [], "nothing was asked for");
            cql.wait();
        }
        cql
    }

    /// Until the store wants to be looked at.
    fn wait(&self) {
        let ms = self.store.timer_in_ms().unwrap_or(100).min(100);
        if self.woken.recv_timeout(Duration::from_millis(ms)).is_ok() {
            while self.woken.try_recv().is_ok() {}
        }
    }
}

impl Harness for Cql {
    type View = CqlView<ClusterReader, WriterBounds>;

    fn submit(&mut self, op: OpId, request: StoreRequest) {
        self.store.submit(op, request);
    }

    fn poll(&mut self, done: &mut Vec<(OpId, StoreResult)>) {
        let (had, deadline) = (done.len(), Instant::now() + PATIENCE);
        loop {
            self.store.completions(done);
            if done.len() > had {
                return;
            }
            assert!(Instant::now() < deadline, "nothing completes");
            self.wait();
        }
    }

    fn view(&self) -> Self::View {
        self.store.view().expect("nobody else takes the lease")
    }

    fn reopen(self) -> Cql {
        let Cql { store, keyspace, .. } = self;
        drop(store);
        Cql::open(keyspace)
    }
}

/// Empties every table but the one that says which tables there are: making new ones takes several times as long.
fn empty(keyspace: &Keyspace) {
    let shown = schema::show(&keyspace.0.keyspace, &schema::SchemaOptions::default());
    let names = shown.lines().filter_map(|line| line.strip_prefix("CREATE TABLE IF NOT EXISTS ")?.strip_suffix(" ("));
    let names: Vec<String> = names.filter(|name| !name.ends_with(".schema_version")).map(str::to_owned).collect();
    assert!(names.len() > 10, "{shown}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let builder = scylla::client::session_builder::SessionBuilder::new().known_nodes(&keyspace.0.contact_points);
        let session = Arc::new(builder.build().await.expect("a session"));
        let empties = names.into_iter().map(|name| {
            let session = session.clone();
            tokio::spawn(async move { session.query_unpaged(format!("TRUNCATE {name}"), ()).await.map(|_| ()) })
        });
        for done in empties.collect::<Vec<_>>() {
            done.await.expect("no panic").expect("an empty table");
        }
    });
}

#[test]
fn the_cluster_conforms() {
    let keyspace = Rc::new(Keyspace(cluster().options("conformance")));
    schema::apply(&keyspace.0, &schema::SchemaOptions::default(), &mut |_| {}).expect("tables");
    run(|| {
        empty(&keyspace);
        Cql::open(keyspace.clone())
    });
}
