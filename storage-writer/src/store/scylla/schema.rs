//! Creates and migrates the tables. Everything can be repeated, and two can run at once: statements that change the
//! schema go to one node, which does them one after the other, and a lock (a lightweight transaction that expires by
//! itself) keeps all but the first of them to one process.

use super::connect::{ClusterOptions, connect, keyspace_name};
use super::error::{OpenError, classify};
use super::lease::applied;
pub use super::tables::TableOption;
use super::tables::{LEASES, SCHEMA_VERSION, TABLES};
use scylla::client::session::Session;
use scylla::cluster::metadata::Keyspace;
use scylla::policies::load_balancing::{NodeIdentifier, SingleTargetLoadBalancingPolicy};
use scylla::response::query_result::QueryResult;
use scylla::statement::Consistency;
use scylla::statement::unprepared::Statement;
use scylla::value::CqlValue;
use std::time::{Duration, Instant};
use storage_core::cql::rows::StatementError;

/// Version of the tables that this code knows.
pub const SCHEMA_VERSION_KNOWN: u32 = 1;
/// The partition set that there is.
const SET: i16 = 0;
/// Row of the version, and of the lock.
const ROW_VERSION: &str = "schema";
const ROW_LOCK: &str = "lock";
/// Seconds after which a lock falls whose holder is gone.
const LOCK_S: u64 = 60;
/// How long another holder of the lock is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(2 * LOCK_S);
const LOCK_LOOK: Duration = Duration::from_millis(200);
/// How often a change is sent again whose outcome is not known. Each has `IF NOT EXISTS` or says a whole state.
const TRIES: u32 = 3;
/// For one change: nodes make directories and talk to each other.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Copies of everything, where there are as many nodes.
const COPIES: usize = 3;

/// How tables are made.
#[derive(Clone, Debug, Default)]
pub struct SchemaOptions {
    /// The keyspace's replication in CQL. Nothing: three copies, or one where there are fewer than three nodes.
    pub replication: Option<String>,
    /// ScyllaDB's tablets; nothing leaves it to the cluster. Cassandra does not know the word.
    pub tablets: Option<bool>,
    /// Instead of the tables' own options.
    pub table_options: Vec<TableOption>,
}

/// What `parley schema apply` would run on an empty cluster, in order, as CQL for people.
pub fn show(keyspace: &str, schema: &SchemaOptions) -> String {
    let replication = schema.replication.clone().unwrap_or_else(|| replication(COPIES));
    let mut statements = vec![create_keyspace(keyspace, &replication, schema.tablets)];
    statements.push(SCHEMA_VERSION.create(keyspace, &schema.table_options));
    statements.extend(create_tables(keyspace, &schema.table_options));
    statements.push(first_lease(keyspace));
    statements.push(format!(
        "INSERT INTO {keyspace}.schema_version (name, version) VALUES ('{ROW_VERSION}', {SCHEMA_VERSION_KNOWN}) \
         IF NOT EXISTS"
    ));
    statements.into_iter().map(|text| format!("{text};\n\n")).collect::<String>().trim_end().to_owned() + "\n"
}

fn replication(copies: usize) -> String {
    format!("{{'class': 'NetworkTopologyStrategy', 'replication_factor': {copies}}}")
}

fn create_keyspace(keyspace: &str, replication: &str, tablets: Option<bool>) -> String {
    let tablets = tablets.map_or(String::new(), |on| format!("\n  AND tablets = {{'enabled': {on}}}"));
    format!("CREATE KEYSPACE IF NOT EXISTS {keyspace}\n  WITH replication = {replication}{tablets}")
}

fn create_tables(keyspace: &str, overrides: &[TableOption]) -> impl Iterator<Item = String> {
    TABLES.iter().chain([&LEASES]).map(move |table| table.create(keyspace, overrides))
}

/// The row that every taker changes: nobody holds it, and no epoch was given yet.
fn first_lease(keyspace: &str) -> String {
    format!(
        "INSERT INTO {keyspace}.leases (set_id, writer_epoch, holder, renewal, worker, lease_ms, address)\n  \
         VALUES ({SET}, 0, 0x{:032x}, 0, 0, 0, '') IF NOT EXISTS",
        0
    )
}

/// Creates or migrates the tables, and says what it does. Returns the version that they have then.
pub fn apply(options: &ClusterOptions, schema: &SchemaOptions, say: &mut dyn FnMut(&str)) -> Result<u32, OpenError> {
    let failed = |error: std::io::Error| OpenError::Cluster {
        action: "starting the CQL driver".to_owned(),
        what: error.to_string(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let session = connect(options).await?;
        let change = Change { keyspace: keyspace_name(options)?, session, holder: random_holder()?, say };
        change.run(schema).await
    })
}

fn random_holder() -> Result<[u8; 16], OpenError> {
    let mut holder = [0; 16];
    getrandom::fill(&mut holder).map_err(|error| OpenError::Cluster {
        action: "drawing a random number".to_owned(),
        what: error.to_string(),
    })?;
    Ok(holder)
}

/// Deletes a keyspace with everything in it: for tests, which each have their own.
pub fn drop_keyspace(options: &ClusterOptions) -> Result<(), OpenError> {
    let failed = |error: std::io::Error| OpenError::Cluster {
        action: "starting the CQL driver".to_owned(),
        what: error.to_string(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let (session, keyspace) = (connect(options).await?, keyspace_name(options)?);
        let mut change = Change { keyspace, session, holder: [0; 16], say: &mut |_| {} };
        change.ddl(&format!("DROP KEYSPACE IF EXISTS {keyspace}"), "dropping the keyspace").await
    })
}

/// A change of the schema.
struct Change<'a> {
    keyspace: &'a str,
    session: Session,
    holder: [u8; 16],
    say: &'a mut dyn FnMut(&str),
}

impl Change<'_> {
    async fn run(mut self, schema: &SchemaOptions) -> Result<u32, OpenError> {
        let keyspace = self.keyspace;
        self.keyspace(schema).await?;
        if schema.table_options.is_empty() && self.is_current().await? {
            (self.say)(&format!("schema version {SCHEMA_VERSION_KNOWN}: nothing to migrate"));
            return Ok(SCHEMA_VERSION_KNOWN);
        }
        self.ddl(&SCHEMA_VERSION.create(keyspace, &schema.table_options), "creating the table schema_version").await?;
        // Who finds it made by another is not told by the driver that some nodes do not know it yet.
        self.agree().await?;
        self.lock().await?;
        let done = self.tables(schema).await;
        // One that is not given back falls by itself.
        let unlocked = self.unlock().await;
        done.and_then(|version| unlocked.map(|()| version))
    }

    async fn keyspace(&mut self, schema: &SchemaOptions) -> Result<(), OpenError> {
        let keyspace = self.keyspace;
        if self.session.get_cluster_state().get_keyspace(keyspace).is_some() {
            (self.say)(&format!("keyspace {keyspace}: it is there, its replication is left as it is"));
            return Ok(());
        }
        let nodes = self.session.get_cluster_state().get_nodes_info().len();
        let copies = if nodes < COPIES { 1 } else { COPIES };
        let replication = schema.replication.clone().unwrap_or_else(|| replication(copies));
        let noun = if nodes == 1 { "node" } else { "nodes" };
        (self.say)(&format!("keyspace {keyspace}: creating it on {nodes} {noun} with {replication}"));
        if schema.replication.is_none() && copies < COPIES {
            (self.say)(
                "warning: with fewer than three nodes there is one copy of everything: a lost disk loses messages",
            );
        }
        self.ddl(&create_keyspace(keyspace, &replication, schema.tablets), "creating the keyspace").await
    }

    async fn tables(&mut self, schema: &SchemaOptions) -> Result<u32, OpenError> {
        let keyspace = self.keyspace;
        let found = stored_version(&self.session, keyspace).await?.unwrap_or(0);
        if found > SCHEMA_VERSION_KNOWN {
            let (keyspace, known) = (keyspace.to_owned(), SCHEMA_VERSION_KNOWN);
            return Err(OpenError::Newer { keyspace, found, known });
        }
        if found == SCHEMA_VERSION_KNOWN {
            for option in &schema.table_options {
                let TableOption { table, name, value } = option;
                (self.say)(&format!("table {table}: setting {name} to {value}"));
                self.ddl(&format!("ALTER TABLE {keyspace}.{table} WITH {name} = {value}"), "altering a table").await?;
            }
            (self.say)(&format!("schema version {found}: nothing to migrate"));
            return Ok(found);
        }
        // From 0: all of it. What an earlier try had made already stays.
        for table in TABLES.iter().chain([&LEASES]) {
            (self.say)(&format!("table {}: creating it where it is not there", table.name));
            self.ddl(&table.create(keyspace, &schema.table_options), "creating a table").await?;
        }
        self.agree().await?;
        self.transaction(&first_lease(keyspace), &[]).await?;
        let version = CqlValue::Int(SCHEMA_VERSION_KNOWN as i32);
        let text = format!("INSERT INTO {keyspace}.schema_version (name, version) VALUES (?, ?) IF NOT EXISTS");
        self.transaction(&text, &[CqlValue::Text(ROW_VERSION.to_owned()), version]).await?;
        (self.say)(&format!("schema version {SCHEMA_VERSION_KNOWN}: done"));
        Ok(SCHEMA_VERSION_KNOWN)
    }

    /// Whether all is there. The version is written last, when all nodes have the tables: who starts again waits for no
    /// agreement, which takes long while others change schemas of their own.
    async fn is_current(&self) -> Result<bool, OpenError> {
        let state = self.session.get_cluster_state();
        let has_version = |keyspace: &Keyspace| keyspace.tables.contains_key(SCHEMA_VERSION.name);
        Ok(state.get_keyspace(self.keyspace).is_some_and(has_version)
            && stored_version(&self.session, self.keyspace).await? == Some(SCHEMA_VERSION_KNOWN))
    }

    async fn agree(&self) -> Result<(), OpenError> {
        let agreed = self.session.await_schema_agreement().await;
        agreed.map(drop).map_err(|error| self.failed("waiting until all nodes have the tables", error.to_string()))
    }

    /// Waits until nobody else changes the schema.
    async fn lock(&mut self) -> Result<(), OpenError> {
        let keyspace = self.keyspace;
        let begun = Instant::now();
        let text = format!(
            "INSERT INTO {keyspace}.schema_version (name, holder) VALUES (?, ?) IF NOT EXISTS USING TTL {LOCK_S}"
        );
        let values = [CqlValue::Text(ROW_LOCK.to_owned()), CqlValue::Blob(self.holder.to_vec())];
        let mut said = false;
        loop {
            if self.transaction(&text, &values).await? || self.holds_lock().await? {
                return Ok(());
            }
            if begun.elapsed() > LOCK_PATIENCE {
                return Err(OpenError::Busy { keyspace: keyspace.to_owned() });
            }
            if !said {
                (self.say)("another process is changing the schema: waiting for it");
                said = true;
            }
            tokio::time::sleep(LOCK_LOOK).await;
        }
    }

    /// Whether an outcome that was not known was a success.
    async fn holds_lock(&self) -> Result<bool, OpenError> {
        let text = format!("SELECT holder FROM {}.schema_version WHERE name = ?", self.keyspace);
        let page = self.ask(&text, &[CqlValue::Text(ROW_LOCK.to_owned())]).await?;
        let row = page.into_rows_result().ok().and_then(|page| page.maybe_first_row::<(Option<Vec<u8>>,)>().ok()?);
        Ok(row.is_some_and(|(holder,)| holder.as_deref() == Some(&self.holder)))
    }

    async fn unlock(&self) -> Result<(), OpenError> {
        let text = format!("DELETE FROM {}.schema_version WHERE name = ? IF holder = ?", self.keyspace);
        let values = [CqlValue::Text(ROW_LOCK.to_owned()), CqlValue::Blob(self.holder.to_vec())];
        self.transaction(&text, &values).await.map(drop)
    }

    /// Changes the schema, on the one node that does all changes: nodes of Cassandra that create a table at the same
    /// time make two of it.
    async fn ddl(&mut self, text: &str, action: &str) -> Result<(), OpenError> {
        let state = self.session.get_cluster_state();
        let first = state.get_nodes_info().iter().filter(|node| node.is_connected()).map(|node| node.host_id).min();
        let mut tries = 0;
        loop {
            tries += 1;
            let mut statement = Statement::new(text);
            statement.set_request_timeout(Some(CHANGE_TIMEOUT));
            statement.set_is_idempotent(true);
            if let Some(host_id) = first {
                let policy = SingleTargetLoadBalancingPolicy::new(NodeIdentifier::HostId(host_id), None);
                statement.set_load_balancing_policy(Some(policy));
            }
            let Err(error) = self.session.query_unpaged(statement, ()).await else { return Ok(()) };
            match classify(&error) {
                StatementError::Unknown(text) if tries < TRIES => (self.say)(&format!("{action}: {text}; again")),
                _ => {
                    let no_tablets = error.to_string().contains("Unknown property 'tablets'");
                    let hint = if no_tablets { "; only ScyllaDB has tablets, leave --tablets away" } else { "" };
                    return Err(self.failed(action, format!("{error}{hint}")));
                }
            }
        }
    }

    /// Whether it was applied. An unknown outcome is asked for again: the statements here are true then, too.
    async fn transaction(&self, text: &str, values: &[CqlValue]) -> Result<bool, OpenError> {
        let page = self.ask(text, values).await?;
        let page =
            page.into_rows_result().map_err(|error| self.failed("a lightweight transaction", error.to_string()))?;
        applied(&page).map_err(|error| self.failed("a lightweight transaction", format!("{error:?}")))
    }

    async fn ask(&self, text: &str, values: &[CqlValue]) -> Result<QueryResult, OpenError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let mut statement = Statement::new(text);
            if text.starts_with("SELECT") {
                statement.set_consistency(Consistency::Serial);
            }
            match self.session.query_unpaged(statement, values).await {
                Ok(page) => return Ok(page),
                Err(error) if tries < TRIES && matches!(classify(&error), StatementError::Unknown(_)) => {}
                Err(error) => {
                    let text = error.to_string();
                    let hint = if text.contains("tablets") {
                        "; this ScyllaDB has no lightweight transactions with tablets: drop the keyspace and apply \
                         with --tablets off"
                    } else {
                        ""
                    };
                    return Err(self.failed("a lightweight transaction", format!("{text}{hint}")));
                }
            }
        }
    }

    fn failed(&self, action: &str, what: String) -> OpenError {
        OpenError::Cluster { action: format!("{action} in {}", self.keyspace), what }
    }
}

/// The version of the tables; nothing where there are none.
async fn stored_version(session: &Session, keyspace: &str) -> Result<Option<u32>, OpenError> {
    let failed =
        |what: String| OpenError::Cluster { action: format!("reading the schema's version in {keyspace}"), what };
    let mut statement = Statement::new(format!("SELECT version FROM {keyspace}.schema_version WHERE name = ?"));
    statement.set_consistency(Consistency::Serial);
    let page = session.query_unpaged(statement, (ROW_VERSION,)).await.map_err(|error| match classify(&error) {
        StatementError::Unknown(what) => OpenError::NoQuorum { keyspace: keyspace.to_owned(), what },
        _ => failed(error.to_string()),
    })?;
    let page = page.into_rows_result().map_err(|error| failed(error.to_string()))?;
    let row = page.maybe_first_row::<(Option<i32>,)>().map_err(|error| failed(error.to_string()))?;
    Ok(row.and_then(|(version,)| version).and_then(|version| u32::try_from(version).ok()))
}

/// Fails unless the tables have the version that this code knows.
pub(super) async fn expect_current(session: &Session, options: &ClusterOptions) -> Result<(), OpenError> {
    let keyspace = keyspace_name(options)?;
    let missing = || OpenError::NoSchema { contact: options.contact(), keyspace: keyspace.to_owned() };
    let state = session.get_cluster_state();
    let tables = &state.get_keyspace(keyspace).ok_or_else(missing)?.tables;
    if !tables.contains_key(SCHEMA_VERSION.name) {
        return Err(missing());
    }
    let known = SCHEMA_VERSION_KNOWN;
    match stored_version(session, keyspace).await?.ok_or_else(missing)? {
        found if found == known => Ok(()),
        found if found > known => Err(OpenError::Newer { keyspace: keyspace.to_owned(), found, known }),
        found => Err(OpenError::Older { contact: options.contact(), keyspace: keyspace.to_owned(), found, known }),
    }
}
