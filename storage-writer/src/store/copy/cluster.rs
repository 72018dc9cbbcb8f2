//! A cluster as the target: its tables are there and empty, its lease was never taken. Writes go side by side, as many
//! as [`IN_FLIGHT_MAX`]; one whose outcome is not known is repeated unchanged.

use super::cluster_rows::{self, Rows, SET};
use super::journey::Mark;
use super::source::{Chunk, Source, Table};
use super::{CopyError, Found, Report, TableSums, Target};
use crate::store::scylla::{ClusterOptions, ClusterReader, Executor};
use hashbrown::HashMap;
use std::sync::Arc;
use std::time::Duration;
use storage_core::cql::lease::{LeaseAnswer, LeaseAsk};
use storage_core::cql::rows::{Row, Statement, StatementError, Write};

/// Writes without a result. More does not make a node faster, and takes memory on both sides.
const IN_FLIGHT_MAX: usize = 128;
/// How often a statement is sent before the copy gives up: a few minutes with the pauses between.
const TRIES: u32 = 12;
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A look at the results, should a wake-up be missed.
const LOOK: Duration = Duration::from_secs(1);
/// A node that is given as much as it takes answers late.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// The target's keyspace.
pub(super) struct Cluster {
    options: ClusterOptions,
    executor: Executor,
    reader: ClusterReader,
    mark: Option<Mark>,
    statement_next: u64,
}

/// A write that is sent, and how often it was.
struct Sent {
    write: Write,
    tries: u32,
}

impl Cluster {
    pub(super) fn connect(options: &ClusterOptions) -> Result<Self, CopyError> {
        let request_timeout = options.request_timeout.max(REQUEST_TIMEOUT);
        let options = ClusterOptions { request_timeout, in_flight_max: IN_FLIGHT_MAX, ..options.clone() };
        let copier = std::thread::current();
        let executor = Executor::connect_to_copy(&options, Arc::new(move || copier.unpark()));
        let executor = executor.map_err(CopyError::Cluster)?;
        let reader = executor.reader();
        Ok(Self { options, executor, reader, mark: None, statement_next: 0 })
    }

    fn failed(&self, what: &str) -> CopyError {
        CopyError::Target(format!("the cluster at {} did not take or give rows: {what}", self.options.contact()))
    }

    /// Sends all, waits until each is acknowledged.
    fn write_all(&mut self, writes: impl Iterator<Item = Write>) -> Result<(), CopyError> {
        let mut waiting = writes.map(|write| Sent { write, tries: 0 });
        let mut sent: HashMap<u64, Sent> = HashMap::new();
        let mut results = Vec::new();
        let mut tries_most = 0;
        let mut again: Vec<Sent> = Vec::new();
        loop {
            // While some are repeated no new ones are sent: the cluster has enough to do.
            while self.executor.room() > 0 && (again.is_empty() || tries_most == 0) {
                let Some(next) = waiting.next() else { break };
                self.send(next, &mut sent);
            }
            if sent.is_empty() {
                if again.is_empty() {
                    return Ok(());
                }
                std::thread::sleep(pause(tries_most));
                again.drain(..).for_each(|next| self.send(next, &mut sent));
                tries_most = 0;
            }
            std::thread::park_timeout(LOOK);
            self.executor.results(&mut results);
            for (id, result, _) in results.drain(..) {
                let mut done = sent.remove(&id).expect("one result for each that was sent");
                match result {
                    Ok(_) => {}
                    Err(StatementError::Unknown(_)) if done.tries + 1 < TRIES => {
                        done.tries += 1;
                        tries_most = tries_most.max(done.tries);
                        again.push(done);
                    }
                    Err(
                        StatementError::Unknown(what) | StatementError::Refused(what) | StatementError::Damaged(what),
                    ) => {
                        return Err(self.failed(&what));
                    }
                }
            }
        }
    }

    /// What a storage-writer that has ever had the lease keeps there, in words.
    fn served(&self) -> Result<Option<String>, CopyError> {
        match self.executor.ask_and_wait(SET, &LeaseAsk::Read) {
            Ok(LeaseAnswer::Row(row)) => Ok(row.filter(|row| row.writer_epoch > 0).map(|row| {
                format!("what a storage-writer keeps there: it has served under epoch {}", row.writer_epoch)
            })),
            other => Err(self.failed(&format!("the lease: {other:?}"))),
        }
    }

    fn send(&mut self, next: Sent, sent: &mut HashMap<u64, Sent>) {
        let id = self.statement_next;
        self.statement_next += 1;
        self.executor.execute(id, Statement::Write(next.write.clone()));
        sent.insert(id, next);
    }

    /// Reads back, one answer for each.
    fn read_all(&self, rows: &[Rows]) -> Result<Vec<Vec<Row>>, CopyError> {
        let reads: Vec<_> = rows.iter().map(Rows::read).collect();
        let mut answers = self.reader.read_many(&reads);
        for (read, answer) in reads.iter().zip(&mut answers) {
            for tries in 1..TRIES {
                if !matches!(answer, Err(StatementError::Unknown(_))) {
                    break;
                }
                std::thread::sleep(pause(tries));
                *answer = self.reader.read(read);
            }
        }
        let answers = answers.into_iter().map(|answer| {
            answer.map_err(|error| match error {
                StatementError::Unknown(what) | StatementError::Refused(what) => self.failed(&what),
                StatementError::Damaged(what) => self.failed(&format!("a row does not decode: {what}")),
            })
        });
        answers.collect()
    }
}

/// Before a statement is sent for the `tries`-th time again.
fn pause(tries: u32) -> Duration {
    (PAUSE_FIRST * (1 << tries.saturating_sub(1).min(10))).min(PAUSE_MAX)
}

impl Target for Cluster {
    fn name(&self) -> String {
        format!("the keyspace {} at {}", self.options.keyspace, self.options.contact())
    }

    fn found(&mut self) -> Result<Found, CopyError> {
        let mark = self.executor.copy_mark(&self.options).map_err(CopyError::Cluster)?;
        if let Some(mark) = mark {
            self.mark = String::from_utf8(mark).ok().and_then(|text| Mark::from_text(&text));
            return Ok(Found::Unfinished(self.mark));
        }
        if let Some(what) = self.served()? {
            return Ok(Found::Other(what));
        }
        let table = self.executor.table_with_rows(&self.options).map_err(CopyError::Cluster)?;
        Ok(table.map_or(Found::Nothing, |table| Found::Other(format!("rows already, in the table {table}"))))
    }

    fn begin(&mut self, mark: Mark) -> Result<(), CopyError> {
        let marked = self.executor.set_copy_mark(&self.options, mark.to_text().as_bytes());
        if !marked.map_err(CopyError::Cluster)? {
            return Err(self.failed("another copy has just begun"));
        }
        self.mark = Some(mark);
        // A writer that looked for a mark before there was one looks again once it has the lease: of these two looks at
        // least one finds the other.
        let Some(what) = self.served()? else { return Ok(()) };
        self.finish()?;
        Err(CopyError::Foreign { target: self.name(), what })
    }

    fn resume(&mut self, _rows: u64) -> Result<(), CopyError> {
        match self.served()? {
            None => Ok(()),
            Some(what) => Err(CopyError::Foreign { target: self.name(), what }),
        }
    }

    fn put(&mut self, source: &Source, table: Table, chunk: &Chunk) -> Result<(), CopyError> {
        let rows = cluster_rows::rows_of(source, table, chunk)?;
        self.write_all(rows.iter().map(Rows::write))
    }

    /// What a quorum has acknowledged is durable.
    fn sync(&mut self) -> Result<(), CopyError> {
        Ok(())
    }

    fn verify(&mut self, source: &Source, step: &mut dyn FnMut(Table, &Chunk)) -> Result<Report, CopyError> {
        let mut report = Report { tables: cluster_rows::TABLES.map(TableSums::new).to_vec() };
        for table in Table::ALL {
            let mut after: Option<Vec<u8>> = None;
            loop {
                let chunk = source.chunk(table, after.as_deref())?;
                let expected = cluster_rows::rows_of(source, table, &chunk)?;
                for (rows, read) in expected.iter().zip(self.read_all(&expected)?) {
                    let place = || format!("{:?}", rows.partition);
                    report.tables[rows.table()].add(rows.sum(&rows.rows), rows.sum(&read), place);
                }
                step(table, &chunk);
                if chunk.last {
                    break;
                }
                after = chunk.last_key().map(<[u8]>::to_vec);
            }
        }
        Ok(report)
    }

    fn finish(&mut self) -> Result<(), CopyError> {
        let mark = self.mark.expect("rows follow `begin` or `resume`").to_text();
        self.executor.clear_copy_mark(&self.options, mark.as_bytes()).map_err(CopyError::Cluster)
    }
}
