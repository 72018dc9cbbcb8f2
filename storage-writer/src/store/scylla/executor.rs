//! Executes statements on a cluster: each on its own, none repeated, every one with exactly one result. Which are sent
//! when, and what an unknown outcome means, is the planner's (`storage_core::cql`).

use super::connect::{ClusterOptions, connect, keyspace_name};
use super::copying;
use super::error::{OpenError, classify, classify_prepare};
use super::metrics::{ClusterMetrics, Does};
use super::schema;
use super::statements::Prepared;
use super::tables::TableId;
use super::values::{decode, partition_key, partition_of, row_values, table_of};
use crate::store::embedded::Waker;
use crate::wake::PanicEndsProcess;
use scylla::client::session::Session;
use scylla::response::{PagingState, PagingStateResponse};
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use scylla::value::CqlValue;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Acquire};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use storage_core::cql::lease::{AskId, LeaseAnswer, LeaseAsk};
use storage_core::cql::rows::{Change, Read, Statement, StatementError, StatementResult, Write};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

/// Reads of one `read_many` that are under way at once.
const READS_AT_ONCE: usize = 32;
/// Asks of the lease without an answer, and answers that were not taken: the lease asks one at a time.
const ASKS_MAX: usize = 64;

/// Statements that the driver's thread starts before it looks at answers again.
const DISPATCHED_AT_ONCE: usize = 256;
/// Statements of one shape that are kept for the next use.
const SPARE_MAX: usize = 32;

/// A result with how long it took.
pub type Timed<T> = (u64, T, Duration);

/// What came of an ask. An error is never `Unknown`: that is an answer.
pub type AskResult = Result<LeaseAnswer, StatementError>;

/// Statements that were sent and are sent again under another timestamp: the timestamp is a field of the statement,
/// and a copy of a batch is one of each of its statements.
#[derive(Default)]
struct Spare(Mutex<SpareParts>);

#[derive(Default)]
struct SpareParts {
    inserts: HashMap<TableId, Vec<PreparedStatement>>,
    /// By table and number of rows.
    batches: HashMap<(TableId, usize), Vec<Batch>>,
}

impl Spare {
    fn parts(&self) -> MutexGuard<'_, SpareParts> {
        self.0.lock().expect("no holder panics")
    }

    fn insert(&self, table: TableId) -> Option<PreparedStatement> {
        self.parts().inserts.get_mut(&table)?.pop()
    }

    fn put_insert(&self, table: TableId, statement: PreparedStatement) {
        keep(self.parts().inserts.entry(table).or_default(), statement);
    }

    fn batch(&self, table: TableId, rows: usize) -> Option<Batch> {
        self.parts().batches.get_mut(&(table, rows))?.pop()
    }

    fn put_batch(&self, table: TableId, rows: usize, batch: Batch) {
        keep(self.parts().batches.entry((table, rows)).or_default(), batch);
    }
}

fn keep<T>(spare: &mut Vec<T>, one: T) {
    if spare.len() < SPARE_MAX {
        spare.push(one);
    }
}

/// What tasks share.
pub(super) struct Shared {
    pub(super) session: Session,
    pub(super) prepared: Prepared,
    pub(super) metrics: Arc<ClusterMetrics>,
    waker: Waker,
    results: Mutex<Vec<Timed<StatementResult>>>,
    answers: Mutex<Vec<Timed<AskResult>>>,
    /// Statements without a result, and results that were not taken.
    statements: AtomicUsize,
    /// Statements as the driver keeps them, that nobody uses now.
    spare: Spare,
    asks: AtomicUsize,
    in_flight_max: usize,
}

/// A cluster, as the writer thread and the reader threads use it.
pub struct Executor {
    shared: Arc<Shared>,
    handle: Handle,
    /// To the driver's thread, which is woken once for all that it finds there. Bounded by [`Executor::room`].
    statements: UnboundedSender<(u64, Statement)>,
    /// Dropped, it ends the thread.
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Executor {
    /// Connects, looks at the schema's version and prepares every statement. `waker` is called when a result appears.
    pub fn connect(
        options: &ClusterOptions,
        metrics: Arc<ClusterMetrics>,
        waker: Waker,
    ) -> Result<Executor, OpenError> {
        Self::start(options, metrics, waker, Unfinished::Refused)
    }

    /// The same for who copies a store into the keyspace: a copy that is not finished is no reason to refuse.
    pub(crate) fn connect_to_copy(options: &ClusterOptions, waker: Waker) -> Result<Executor, OpenError> {
        Self::start(options, Arc::default(), waker, Unfinished::Taken)
    }

    fn start(
        options: &ClusterOptions,
        metrics: Arc<ClusterMetrics>,
        waker: Waker,
        unfinished: Unfinished,
    ) -> Result<Executor, OpenError> {
        assert!(options.in_flight_max > 0, "at least one statement at a time");
        let action = "starting the thread of the CQL driver".to_owned();
        let failed = |error: std::io::Error| OpenError::Cluster { action: action.clone(), what: error.to_string() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (session, prepared) = runtime.block_on(open(options, unfinished))?;
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("cql".to_owned())
            .spawn(move || {
                let _guard = PanicEndsProcess("cql");
                // An error says that the sender is gone, which is the way to stop it.
                let _ = runtime.block_on(stopped);
                // Statements under way have no result any more: whoever asked is gone.
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        let shared = Arc::new(Shared {
            session,
            prepared,
            metrics,
            waker,
            results: Mutex::default(),
            answers: Mutex::default(),
            statements: AtomicUsize::new(0),
            spare: Spare::default(),
            asks: AtomicUsize::new(0),
            in_flight_max: options.in_flight_max,
        });
        let (statements, received) = unbounded_channel();
        handle.spawn(dispatch(shared.clone(), received));
        Ok(Executor { shared, handle, statements, stop: Some(stop), thread: Some(thread) })
    }

    /// Statements that [`Executor::execute`] takes now.
    pub fn room(&self) -> usize {
        self.shared.in_flight_max - self.shared.statements.load(Acquire)
    }

    /// Sends a statement. Its result, under this `id`, is among the [`Executor::results`] later. Never blocks. There
    /// must be [`Executor::room`].
    pub fn execute(&self, id: u64, statement: Statement) {
        let before = self.shared.statements.fetch_add(1, AcqRel);
        assert!(before < self.shared.in_flight_max, "a statement was sent without room for its result");
        self.shared.metrics.in_flight.set(before as u64 + 1);
        // Its receiver ends with the driver's thread, and that with this executor.
        let _ = self.statements.send((id, statement));
    }

    /// Appends the results that came since the last call. Never blocks.
    pub fn results(&self, results: &mut Vec<Timed<StatementResult>>) {
        let mut came = self.shared.results.lock().expect("no holder panics");
        let left = self.shared.statements.fetch_sub(came.len(), AcqRel) - came.len();
        results.append(&mut came);
        self.shared.metrics.in_flight.set(left as u64);
    }

    /// Asks of the row of the lease of a set. The answer, under this `id`, is among the [`Executor::answers`] later.
    pub fn ask(&self, id: AskId, set: u16, ask: LeaseAsk) {
        let shared = self.shared.clone();
        if self.shared.asks.fetch_add(1, AcqRel) >= ASKS_MAX {
            let answer = LeaseAnswer::Unknown("too many requests for the lease have no answer".to_owned());
            shared.answers.lock().expect("no holder panics").push((id, Ok(answer), Duration::ZERO));
            return (shared.waker)();
        }
        self.handle.spawn(async move {
            let _guard = PanicEndsProcess("cql");
            let sent = Instant::now();
            let result = shared.ask(set, &ask).await;
            shared.answers.lock().expect("no holder panics").push((id, result, sent.elapsed()));
            (shared.waker)();
        });
    }

    /// Appends the answers that came since the last call. Never blocks.
    pub fn answers(&self, answers: &mut Vec<Timed<AskResult>>) {
        let mut came = self.shared.answers.lock().expect("no holder panics");
        self.shared.asks.fetch_sub(came.len(), AcqRel);
        answers.append(&mut came);
    }

    /// Asks of the row of the lease, and waits.
    pub fn ask_and_wait(&self, set: u16, ask: &LeaseAsk) -> AskResult {
        self.handle.block_on(self.shared.ask(set, ask))
    }

    /// Runs on the driver's session, and waits.
    pub(super) fn wait_for<T>(&self, work: impl AsyncFnOnce(&Shared) -> T) -> T {
        self.handle.block_on(work(&self.shared))
    }

    /// For reader threads.
    pub fn reader(&self) -> ClusterReader {
        ClusterReader { shared: self.shared.clone(), handle: self.handle.clone() }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Its panic has ended the process already.
            let _ = thread.join();
        }
    }
}

/// Starts what comes. A task of each statement's own is woken by its own answer alone.
async fn dispatch(shared: Arc<Shared>, mut statements: UnboundedReceiver<(u64, Statement)>) {
    // Without it nothing would be started any more, and nobody would hear of it.
    let _guard = PanicEndsProcess("cql");
    let mut came = Vec::new();
    while statements.recv_many(&mut came, DISPATCHED_AT_ONCE).await > 0 {
        for (id, statement) in came.drain(..) {
            let shared = shared.clone();
            tokio::spawn(async move {
                let _guard = PanicEndsProcess("cql");
                let sent = Instant::now();
                let result = match &statement {
                    Statement::Write(write) => shared.write(write).await,
                    Statement::Read(read) => shared.read(read).await,
                };
                shared.tell((id, result, sent.elapsed()));
            });
        }
    }
}

/// What is done with a keyspace into which a store is being copied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unfinished {
    Refused,
    Taken,
}

/// Connects and prepares.
async fn open(options: &ClusterOptions, unfinished: Unfinished) -> Result<(Session, Prepared), OpenError> {
    let session = connect(options).await?;
    schema::expect_current(&session, options).await?;
    if unfinished == Unfinished::Refused {
        copying::refuse(&session, options).await?;
    }
    let keyspace = keyspace_name(options)?;
    let prepared = Prepared::new(&session, keyspace).await.map_err(|error| {
        let what = match classify_prepare(&error) {
            StatementError::Refused(text) => format!("{text}; were the tables changed by hand?"),
            StatementError::Unknown(text) | StatementError::Damaged(text) => text,
        };
        OpenError::Cluster { action: format!("preparing statements in the keyspace {keyspace}"), what }
    })?;
    Ok((session, prepared))
}

/// A cluster, as a reader thread uses it: it waits for its own reads. Dropped before the [`Executor`], or unusable.
#[derive(Clone)]
pub struct ClusterReader {
    shared: Arc<Shared>,
    handle: Handle,
}

impl ClusterReader {
    /// Reads, and waits.
    pub fn read(&self, read: &Read) -> StatementResult {
        let (shared, read) = (self.shared.clone(), read.clone());
        // On the driver's own thread: its timers end with it, and whoever waited for one of them would panic.
        let task = self.handle.spawn(async move { shared.read(&read).await });
        self.handle.block_on(task).unwrap_or_else(|_| gone())
    }

    /// Reads side by side, and waits for all; results are in the order of the reads.
    pub fn read_many(&self, reads: &[Read]) -> Vec<StatementResult> {
        let mut results: Vec<StatementResult> = reads.iter().map(|_| gone()).collect();
        self.handle.block_on(async {
            let mut tasks = JoinSet::new();
            let mut waiting = reads.iter().enumerate();
            loop {
                while tasks.len() < READS_AT_ONCE
                    && let Some((index, read)) = waiting.next()
                {
                    let (shared, read) = (self.shared.clone(), read.clone());
                    tasks.spawn_on(async move { (index, shared.read(&read).await) }, &self.handle);
                }
                match tasks.join_next().await {
                    Some(Ok((index, result))) => results[index] = result,
                    // Cancelled by the end of the executor.
                    Some(Err(_)) => {}
                    None => break,
                }
            }
        });
        results
    }
}

/// The executor was dropped meanwhile.
fn gone() -> StatementResult {
    Err(StatementError::Unknown("the driver has ended".to_owned()))
}

impl Shared {
    /// Hands a result over. The first that nobody took yet wakes the writer thread, which takes all.
    fn tell(&self, result: Timed<StatementResult>) {
        let mut results = self.results.lock().expect("no holder panics");
        results.push(result);
        let first = results.len() == 1;
        drop(results);
        if first {
            (self.waker)();
        }
    }

    async fn write(&self, write: &Write) -> StatementResult {
        let begun = Instant::now();
        self.metrics.begun(Does::Write, table_of(&write.partition));
        let result = self.send_write(write).await;
        self.metrics.ended(Does::Write, begun.elapsed(), result.as_ref().err());
        result.map(|()| Vec::new())
    }

    /// The timestamp goes in the frame, not in the statement: ScyllaDB refuses a `USING TIMESTAMP` of more than three
    /// days ahead, which epoch-major ones are after some 1,600 epochs, and takes the frame's as it is.
    async fn send_write(&self, write: &Write) -> Result<(), StatementError> {
        let table = table_of(&write.partition);
        let sent = match &write.change {
            Change::Delete => {
                let values = partition_key(&write.partition)?;
                let mut statement = self.prepared.table(table).delete.clone();
                statement.set_timestamp(Some(write.timestamp));
                self.session.execute_unpaged(&statement, values).await
            }
            Change::Put(rows) if rows.len() == 1 => {
                self.metrics.rows_written.add(1);
                let values = row_values(&write.partition, &rows[0])?;
                let mut statement =
                    self.spare.insert(table).unwrap_or_else(|| self.prepared.table(table).insert.clone());
                statement.set_timestamp(Some(write.timestamp));
                let sent = self.session.execute_unpaged(&statement, values).await;
                self.spare.put_insert(table, statement);
                sent
            }
            Change::Put(rows) => {
                assert!(!rows.is_empty(), "a write has rows");
                self.metrics.rows_written.add(rows.len() as u64);
                let values = rows.iter().map(|row| row_values(&write.partition, row));
                let values: Vec<Vec<CqlValue>> = values.collect::<Result<_, _>>()?;
                let mut batch = self.spare.batch(table, rows.len()).unwrap_or_else(|| {
                    let mut batch = Batch::new(BatchType::Unlogged);
                    let insert = &self.prepared.table(table).insert;
                    rows.iter().for_each(|_| batch.append_statement(insert.clone()));
                    batch.set_is_idempotent(true);
                    batch
                });
                batch.set_timestamp(Some(write.timestamp));
                let sent = self.session.batch(&batch, values).await;
                self.spare.put_batch(table, rows.len(), batch);
                sent
            }
        };
        sent.map(drop).map_err(|error| classify(&error))
    }

    async fn read(&self, read: &Read) -> StatementResult {
        let begun = Instant::now();
        let table: TableId = table_of(&partition_of(read));
        let Some((statement, values)) = self.prepared.select(read) else { return Ok(Vec::new()) };
        self.metrics.begun(Does::Read, table);
        let result = self.send_read(read, statement, &values).await;
        self.metrics.ended(Does::Read, begun.elapsed(), result.as_ref().err());
        result
    }

    /// All pages. A partition is bounded, so their number is.
    async fn send_read(&self, read: &Read, statement: &PreparedStatement, values: &[CqlValue]) -> StatementResult {
        let mut rows = Vec::new();
        let mut page_from = PagingState::start();
        loop {
            let page = self.session.execute_single_page(statement, values, page_from).await;
            let (page, next) = page.map_err(|error| classify(&error))?;
            let page = page.into_rows_result().map_err(|error| StatementError::Refused(error.to_string()))?;
            decode(read, &page, &mut rows)?;
            match next {
                PagingStateResponse::HasMorePages { state } => page_from = state,
                PagingStateResponse::NoMorePages => return Ok(rows),
            }
        }
    }
}
