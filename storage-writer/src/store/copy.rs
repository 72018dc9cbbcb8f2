//! `parley store copy`: a stopped deployment moved out of the embedded store, into another directory (the backup) or
//! into a cluster. Rows go over in the order of the source's keys, in chunks of bounded size; how far it is stands in
//! the source, durable, so that the same command goes on after any interruption. Rows are written with values and
//! timestamps that depend on nothing but the row: writing one again changes nothing.
//!
//! ```text
//! empty -- begin --> marked -- put, sync, put ... --> marked -- verify: read back, equal --> finish --> complete
//!                      ^  the same command again  |
//!                      +------- interrupted ------+          marked targets are refused by whoever serves
//! ```

mod cluster;
mod cluster_rows;
mod embedded;
mod journey;
mod source;
mod sums;

pub use sums::{Report, Sum, TableSums};

use crate::store::embedded::OpenError;
use crate::store::scylla::{self, ClusterOptions};
use journey::{Journey, Mark};
use source::{Chunk, Source, Table};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two durable records of how far it is, and between two lines of progress.
const RECORD_EVERY: Duration = Duration::from_secs(1);

/// Where rows go.
#[derive(Clone, Debug)]
pub enum CopyTarget {
    /// An embedded store in this directory, which must be new.
    Embedded(PathBuf),
    /// The tables of a cluster, which must be empty.
    Scylla(Box<ClusterOptions>),
}

/// Why a copy did not come to its end.
#[derive(Debug)]
pub enum CopyError {
    /// The command asks for something that cannot be.
    Wrong(String),
    /// A process uses the source.
    Running {
        /// The source's lock.
        lock: PathBuf,
        /// Who holds it.
        holder: String,
    },
    /// The source is damaged.
    Damaged {
        /// Which.
        data_dir: PathBuf,
        /// What and where.
        what: String,
    },
    /// A store does not open.
    Open(OpenError),
    /// The cluster cannot be used.
    Cluster(scylla::OpenError),
    /// The target has something in it that is not this copy.
    Foreign {
        /// Which.
        target: String,
        /// What it is.
        what: String,
    },
    /// The target did not take or give rows.
    Target(String),
    /// The operating system refused something.
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// What was read back is not what was written.
    Differs(Report),
}

impl std::fmt::Display for CopyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CopyError::Wrong(what) => f.write_str(what),
            CopyError::Running { lock, holder } => write!(
                f,
                "the source is in use: {} is locked by {holder}; only a stopped deployment can be copied: stop it with \
                 SIGTERM and give the command again",
                lock.display()
            ),
            CopyError::Damaged { data_dir, what } => write!(
                f,
                "the source is damaged, and damage is not copied: {what}\n`parley check-store --data {}` names all of \
                 it; restore a backup",
                data_dir.display()
            ),
            CopyError::Open(error) => error.fmt(f),
            CopyError::Cluster(error) => error.fmt(f),
            CopyError::Foreign { target, what } => write!(
                f,
                "{target} holds {what}; nothing in it was changed: choose an empty target, or empty this one yourself \
                 if nobody needs it"
            ),
            CopyError::Target(what) => {
                write!(f, "{what}\nwhat was copied stays: give the same command again, and it goes on where it was")
            }
            CopyError::Io { action, path, .. } => write!(f, "cannot {action} {}", path.display()),
            CopyError::Differs(report) => {
                write!(f, "{report}\nempty the target and copy again; if it happens again, check memory and disks")
            }
        }
    }
}

impl std::error::Error for CopyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CopyError::Open(error) => error.source(),
            CopyError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

fn source_io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> CopyError {
    move |source| CopyError::Io { action, path: path.to_owned(), source }
}

/// What a target holds before the copy.
enum Found {
    /// Nothing.
    Nothing,
    /// An unfinished copy; its mark, where it can be read.
    Unfinished(Option<Mark>),
    /// Something else, in words.
    Other(String),
}

/// A target. `found` first, then `begin` or `resume`, then rows, then `verify` and `finish`.
trait Target {
    /// In words; the same for the same target.
    fn name(&self) -> String;
    /// What is there.
    fn found(&mut self) -> Result<Found, CopyError>;
    /// Marks the empty target; from here on nobody serves from it.
    fn begin(&mut self, mark: Mark) -> Result<(), CopyError>;
    /// Goes on; `rows` have been recorded as durable.
    fn resume(&mut self, rows: u64) -> Result<(), CopyError>;
    /// Writes rows.
    fn put(&mut self, source: &Source, table: Table, chunk: &Chunk) -> Result<(), CopyError>;
    /// Everything that was put is durable.
    fn sync(&mut self) -> Result<(), CopyError>;
    /// Reads everything back and compares; calls `step` with every chunk of the source.
    fn verify(&mut self, source: &Source, step: &mut dyn FnMut(Table, &Chunk)) -> Result<Report, CopyError>;
    /// Takes the mark away: the target is complete.
    fn finish(&mut self) -> Result<(), CopyError>;
}

/// Copies the embedded store in `from`, which no process may use. `say` gets a line of progress about every second.
pub fn copy(from: &Path, to: &CopyTarget, say: &mut dyn FnMut(&str)) -> Result<Report, CopyError> {
    match to {
        CopyTarget::Embedded(to) => {
            embedded::refuse_same(from, to)?;
            say(&format!("opening {}", from.display()));
            let source = Source::open(from)?;
            run(&source, &mut embedded::Directory::take(to)?, say)
        }
        CopyTarget::Scylla(options) => {
            say(&format!("opening {}", from.display()));
            let source = Source::open(from)?;
            say(&format!("connecting to {}", options.contact()));
            run(&source, &mut cluster::Cluster::connect(options)?, say)
        }
    }
}

fn run(source: &Source, target: &mut dyn Target, say: &mut dyn FnMut(&str)) -> Result<Report, CopyError> {
    let name = target.name();
    let mut journey = match target.found()? {
        Found::Nothing => {
            say(&format!("marking {name}"));
            let mark = Mark::draw(source)?;
            let journey = Journey::begin(source, mark, name)?;
            target.begin(mark)?;
            journey
        }
        Found::Unfinished(Some(mark)) => {
            let journey = Journey::resume(source, mark, &name)?;
            target.resume(journey.rows)?;
            say(&format!("going on after {} rows", journey.rows));
            journey
        }
        Found::Unfinished(None) => {
            return Err(CopyError::Foreign { target: name, what: "a mark that cannot be read".to_owned() });
        }
        Found::Other(what) => return Err(CopyError::Foreign { target: name, what }),
    };
    put_all(source, target, &mut journey, say)?;
    let mut progress = Progress::new("comparing", 0);
    let report = target.verify(source, &mut |table, chunk| {
        progress.rows += chunk.rows.len() as u64;
        progress.tell(table, source.share(table, chunk.last_key()), say);
    })?;
    if !report.is_equal() {
        return Err(CopyError::Differs(report));
    }
    target.finish()?;
    journey.remove()?;
    Ok(report)
}

fn put_all(
    source: &Source,
    target: &mut dyn Target,
    journey: &mut Journey,
    say: &mut dyn FnMut(&str),
) -> Result<(), CopyError> {
    let mut progress = Progress::new("copying", journey.rows);
    progress.share_first = Table::ALL.get(journey.table).map(|table| source.share(*table, journey.after.as_deref()));
    let mut recorded = Instant::now();
    while let Some(table) = Table::ALL.get(journey.table).copied() {
        let chunk = source.chunk(table, journey.after.as_deref())?;
        target.put(source, table, &chunk)?;
        journey.rows += chunk.rows.len() as u64;
        progress.rows = journey.rows;
        let share = source.share(table, chunk.last_key());
        if chunk.last {
            (journey.table, journey.after) = (journey.table + 1, None);
        } else {
            journey.after = chunk.last_key().map(<[u8]>::to_vec);
        }
        progress.tell(table, share, say);
        if recorded.elapsed() >= RECORD_EVERY || chunk.last {
            target.sync()?;
            journey.save()?;
            recorded = Instant::now();
        }
    }
    Ok(())
}

/// What is said about every second.
struct Progress {
    what: &'static str,
    rows: u64,
    rows_first: u64,
    share_first: Option<f64>,
    began: Instant,
    told: Instant,
}

impl Progress {
    fn new(what: &'static str, rows: u64) -> Self {
        let now = Instant::now();
        Self { what, rows, rows_first: rows, share_first: None, began: now, told: now }
    }

    fn tell(&mut self, table: Table, share: f64, say: &mut dyn FnMut(&str)) {
        let now = Instant::now();
        if now - self.told < RECORD_EVERY {
            return;
        }
        self.told = now;
        let seconds = (now - self.began).as_secs_f64().max(0.001);
        let rate = (self.rows - self.rows_first) as f64 / seconds;
        let done = share - self.share_first.unwrap_or(0.0);
        let left = if done > 0.0 { format!(", {:.0} s left", seconds * (1.0 - share) / done) } else { String::new() };
        let (what, rows, percent) = (self.what, self.rows, share * 100.0);
        say(&format!("{what} {}: {rows} rows, {rate:.0} rows/s, {percent:.0} %{left}", table.name()));
    }
}
