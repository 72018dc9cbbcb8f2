//! The bare driver: the requests of a writer again, in a keyspace of their own, by a loop that knows nothing but them.
//! Values are ready before the clock starts; nothing waits for anything but a free place.

use super::mix::{Key, Request, partition_values, table};
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::errors::{ExecutionError, PrepareError};
use scylla::statement::Consistency;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use scylla::value::{CqlValue, Row};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use storage_core::cql::rows::Partition;
use storage_writer::store::scylla::ClusterOptions;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// A request that is ready to go.
pub(super) enum Job {
    One(PreparedStatement, Vec<CqlValue>),
    Many(Arc<Batch>, Vec<Vec<CqlValue>>),
}

/// How one table is written.
struct Table {
    insert: PreparedStatement,
    /// Values of the columns that are no key, as the writer wrote them once.
    sample: Vec<CqlValue>,
    /// Which of those is `redo`.
    redo: Option<usize>,
    batches: HashMap<usize, Arc<Batch>>,
}

/// A session of the driver on the twin of a writer's keyspace.
pub(super) struct Bare {
    runtime: Runtime,
    session: Arc<Session>,
    keyspace: String,
    twin: String,
    tables: HashMap<&'static str, Table>,
    delete_work: PreparedStatement,
    names: PreparedStatement,
}

fn failed(error: impl std::fmt::Display) -> String {
    format!("the bare driver: {error}")
}

impl Bare {
    /// Connects; the tables of both keyspaces are there.
    pub(super) fn connect(writer: &ClusterOptions, twin: &ClusterOptions) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let profile = ExecutionProfile::builder()
            .consistency(Consistency::Quorum)
            .request_timeout(Some(writer.request_timeout))
            .build();
        let builder = SessionBuilder::new()
            .known_nodes(&writer.contact_points)
            .default_execution_profile_handle(profile.into_handle());
        let (keyspace, twin) = (writer.keyspace.clone(), twin.keyspace.clone());
        let (session, delete_work, names) = runtime.block_on(async {
            let session = builder.build().await.map_err(failed)?;
            let delete = format!("DELETE FROM {twin}.work WHERE set_id = ? AND slot = ?");
            let names = format!(
                "SELECT name, command FROM {twin}.commands WHERE scope = ? AND tier = ? AND bucket = ? AND name IN ?"
            );
            let delete = session.prepare(delete).await.map_err(failed)?;
            let names = session.prepare(names).await.map_err(failed)?;
            Ok::<_, String>((session, delete, names))
        })?;
        let session = Arc::new(session);
        Ok(Self { runtime, session, keyspace, twin, tables: HashMap::new(), delete_work, names })
    }

    /// Sends all of it, `at_once` at a time; how long that took.
    pub(super) fn replay(&self, jobs: Vec<Job>, at_once: usize) -> Result<Duration, String> {
        let (session, next) = (self.session.clone(), Arc::new(AtomicUsize::new(0)));
        let jobs = Arc::new(jobs);
        self.runtime.block_on(async {
            let mut tasks = JoinSet::new();
            let begun = Instant::now();
            for _ in 0..at_once.max(1) {
                let (session, jobs, next) = (session.clone(), jobs.clone(), next.clone());
                tasks.spawn(async move {
                    while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        send(&session, job).await?;
                    }
                    Ok::<_, ExecutionError>(())
                });
            }
            while let Some(done) = tasks.join_next().await {
                done.map_err(failed)?.map_err(failed)?;
            }
            Ok(begun.elapsed())
        })
    }

    /// Makes requests ready; `reads`: the look-ups of names, too.
    pub(super) fn jobs(&mut self, requests: &[Request], reads: bool) -> Result<Vec<Job>, String> {
        let mut jobs = Vec::with_capacity(requests.len());
        for request in requests {
            match request {
                Request::Put(partition, keys) => {
                    let table = self.table(partition)?;
                    let mut rows: Vec<_> = keys.iter().map(|key| table.row(partition, *key)).collect();
                    jobs.push(match rows.len() {
                        1 => Job::One(table.insert.clone(), rows.remove(0)),
                        _ => Job::Many(table.batch(rows.len()), rows),
                    });
                }
                Request::Delete(partition @ Partition::Work { .. }) => {
                    jobs.push(Job::One(self.delete_work.clone(), partition_values(partition)));
                }
                Request::Delete(partition) => return Err(format!("a writer does not delete {partition:?}")),
                Request::Names(partition, keys) if reads => {
                    let names = keys.iter().flat_map(|key| key.values()).collect();
                    let values = [partition_values(partition), vec![CqlValue::List(names)]].concat();
                    jobs.push(Job::One(self.names.clone(), values));
                }
                Request::Names(..) | Request::Other => {}
            }
        }
        Ok(jobs)
    }

    /// Its statement and a row of the writer's to copy, found at the first use.
    fn table(&mut self, partition: &Partition) -> Result<&mut Table, String> {
        let name = table(partition);
        if !self.tables.contains_key(name) {
            let made = self.runtime.block_on(make(&self.session, &self.keyspace, &self.twin, name))?;
            self.tables.insert(name, made);
        }
        Ok(self.tables.get_mut(name).expect("it is there"))
    }
}

async fn make(session: &Session, keyspace: &str, twin: &str, name: &str) -> Result<Table, String> {
    let state = session.get_cluster_state();
    let of_keyspace = state.get_keyspace(keyspace).ok_or_else(|| failed(format!("no keyspace {keyspace}")))?;
    let known = of_keyspace.tables.get(name).ok_or_else(|| failed(format!("no table {name}")))?;
    let keys = || known.partition_key.iter().chain(&known.clustering_key);
    let mut others: Vec<&String> = known.columns.keys().filter(|column| !keys().any(|key| key == *column)).collect();
    others.sort();
    let columns: Vec<&str> = keys().chain(others.iter().copied()).map(String::as_str).collect();
    let marks = vec!["?"; columns.len()].join(", ");
    let insert = format!("INSERT INTO {twin}.{name} ({}) VALUES ({marks})", columns.join(", "));
    let insert = session.prepare(insert).await.map_err(|error: PrepareError| failed(error))?;
    let mut sample = Vec::new();
    if !others.is_empty() {
        let select = others.iter().map(|column| column.as_str()).collect::<Vec<_>>().join(", ");
        let text = format!("SELECT {select} FROM {keyspace}.{name} LIMIT 1");
        let page = session.query_unpaged(text, ()).await.map_err(failed)?.into_rows_result().map_err(failed)?;
        let row = page.first_row::<Row>().map_err(|error| failed(format!("{name}: {error}")))?;
        sample = row.columns.into_iter().collect::<Option<_>>().ok_or_else(|| failed(format!("a null in {name}")))?;
    }
    let redo = others.iter().position(|column| *column == "redo");
    Ok(Table { insert, sample, redo, batches: HashMap::new() })
}

impl Table {
    fn row(&self, partition: &Partition, key: Key) -> Vec<CqlValue> {
        let mut values = partition_values(partition);
        values.extend(key.values());
        let keys = values.len();
        values.extend_from_slice(&self.sample);
        if let (Some(redo), Key::Event(_, bytes)) = (self.redo, key) {
            values[keys + redo] = CqlValue::Blob(vec![b'x'; bytes]);
        }
        values
    }

    fn batch(&mut self, rows: usize) -> Arc<Batch> {
        let insert = &self.insert;
        let made = self.batches.entry(rows).or_insert_with(|| {
            let mut batch = Batch::new(BatchType::Unlogged);
            (0..rows).for_each(|_| batch.append_statement(insert.clone()));
            Arc::new(batch)
        });
        made.clone()
    }
}

async fn send(session: &Session, job: &Job) -> Result<(), ExecutionError> {
    match job {
        Job::One(statement, values) => session.execute_unpaged(statement, values).await.map(drop),
        Job::Many(batch, rows) => session.batch(batch, rows).await.map(drop),
    }
}
