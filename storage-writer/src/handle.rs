//! Starting a storage-writer, and what its owner holds while it runs.

use crate::links::listen;
use crate::metrics::{Counter, Gauge, StoreMetrics, show_counter, show_gauge};
use crate::options::{Error, Options};
use crate::readers::{ReadMetrics, Readers};
use crate::shell::Shell;
use crate::store::embedded::{EmbeddedStore, Waker};
use crate::store::scylla::{ClusterMetrics, PlannerMetrics, ScyllaOptions, ScyllaStore};
use crate::tier::{Sight, Tier};
use crate::wake::{PanicEndsProcess, Wake};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use storage_core::Status;
use storage_core::reads::ReadOptions;

/// Why a running storage-writer ended by itself. The process must end, and not with success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Another writer holds a higher epoch.
    Fenced,
    /// A write or sync failed; the text names the file. What is durable shows at the next start.
    Broken(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Fenced => f.write_str("another storage-writer holds this store under a higher epoch"),
            Failure::Broken(what) => write!(f, "the store failed and nothing more is acknowledged: {what}"),
        }
    }
}

impl std::error::Error for Failure {}

/// What the shell counts besides the store.
#[derive(Debug, Default)]
pub(crate) struct ShellMetrics {
    pub(crate) bytes_in: Counter,
    pub(crate) bytes_out: Counter,
    pub(crate) reads_outstanding: Gauge,
    /// 1 while this process may act for the store.
    pub(crate) active: Gauge,
    /// The lease's epoch while it is active.
    pub(crate) epoch: Gauge,
}

/// What the owner and the writer thread share.
pub(crate) struct Shared {
    pub(crate) wake: Arc<Wake>,
    /// Finish what was taken, then end.
    pub(crate) stop: AtomicBool,
    /// End at once.
    pub(crate) abandon: AtomicBool,
    pub(crate) status: Mutex<Status>,
    pub(crate) metrics: ShellMetrics,
    ended: Mutex<Option<Result<(), Failure>>>,
    ending: Condvar,
}

/// A running storage-writer. Dropping it ends it at once, as a crash would; [`Handle::stop`] lets it finish.
pub struct Handle {
    shared: Arc<Shared>,
    show: Show,
    read_metrics: Arc<ReadMetrics>,
    thread: Option<JoinHandle<()>>,
}

/// Opens the store, listens, and serves links until it is stopped or must end.
pub fn run(options: Options) -> Result<Handle, Error> {
    options.writer.check().map_err(Error::Options)?;
    if options.reader_threads == 0 || options.reads_max == 0 || options.links_max == 0 {
        return Err(Error::Options("reader threads, reads and links are at least 1".to_owned()));
    }
    let data_dir = options.data_dir.clone();
    let io = |action: &'static str| move |source| Error::Io { action, path: data_dir, source };
    let wake = Arc::new(Wake::new().map_err(io.clone()("make an eventfd for"))?);
    let read_metrics = Arc::new(ReadMetrics::default());
    let shared = Arc::new(Shared {
        wake: wake.clone(),
        stop: AtomicBool::new(false),
        abandon: AtomicBool::new(false),
        status: Mutex::new(Status { reason: Some("starting".to_owned()), ..Status::default() }),
        metrics: ShellMetrics::default(),
        ended: Mutex::new(None),
        ending: Condvar::new(),
    });
    let waker: Waker = {
        let wake = wake.clone();
        Arc::new(move || wake.wake())
    };
    let Opened { store, sight, show } = match &options.scylla {
        None => Opened::embedded(&options, waker)?,
        Some(scylla) => Opened::scylla(&options, scylla, waker)?,
    };
    let listener = listen(&options.socket)?;
    let read_options = ReadOptions::from(&options.writer);
    let (threads, reads_max) = (options.reader_threads, options.reads_max);
    let readers = Readers::start(threads, reads_max, read_options, &sight, wake, read_metrics.clone())
        .map_err(io.clone()("start reader threads for"))?;
    let shell =
        Shell::new(options, shared.clone(), store, readers, listener).map_err(io.clone()("make an epoll for"))?;
    let theirs = shared.clone();
    let thread = std::thread::Builder::new().name("writer".to_owned()).spawn(move || {
        let _guard = PanicEndsProcess("writer");
        let ended = shell.run();
        if let Err(failure) = &ended {
            tracing::error!("{failure}");
        }
        *theirs.ended.lock().expect("no holder of the outcome panics") = Some(ended);
        theirs.ending.notify_all();
    });
    let thread = Some(thread.map_err(io("start the writer thread for"))?);
    Ok(Handle { shared, show, read_metrics, thread })
}

/// Appends what a store counts, in Prometheus' text form.
type Show = Arc<dyn Fn(&mut String) + Send + Sync>;

/// A store that is open.
struct Opened {
    store: Box<dyn Tier>,
    sight: Arc<dyn Sight>,
    show: Show,
}

impl Opened {
    fn embedded(options: &Options, waker: Waker) -> Result<Self, Error> {
        let metrics = Arc::new(StoreMetrics::default());
        let store = EmbeddedStore::open(&options.data_dir, &options.embedded, metrics.clone(), waker);
        let store = store.map_err(Error::Store)?;
        let sight = Arc::new(store.views());
        Ok(Self { store: Box::new(store), sight, show: Arc::new(move |out| metrics.show(out)) })
    }

    fn scylla(options: &Options, scylla: &ScyllaOptions, waker: Waker) -> Result<Self, Error> {
        let (cluster, planner) = (Arc::new(ClusterMetrics::default()), Arc::new(PlannerMetrics::default()));
        let address = std::path::absolute(&options.socket).unwrap_or_else(|_| options.socket.clone());
        let address = address.to_string_lossy().into_owned();
        let metrics = (cluster.clone(), planner.clone());
        let store = ScyllaStore::open(scylla.clone(), options.writer.worker, address, metrics, waker);
        let mut store = store.map_err(Error::Cluster)?;
        store.lock_directory(&options.data_dir).map_err(Error::Store)?;
        let sight = Arc::new(store.sight());
        let show = Arc::new(move |out: &mut String| {
            cluster.show(out);
            planner.show(out);
        });
        Ok(Self { store: Box::new(store), sight, show })
    }
}

impl Handle {
    /// How the writer is, at most a fraction of a second ago. Once damaged data was met it is not ready until it is
    /// started again, though commands that do not touch the damage are taken.
    pub fn status(&self) -> Status {
        if let Some(failure) = self.failure() {
            return Status { ready: false, reason: Some(failure.to_string()), ..Status::default() };
        }
        self.shared.status.lock().expect("no holder of the status panics").clone()
    }

    /// Why it ended by itself, if it did.
    pub fn failure(&self) -> Option<Failure> {
        let ended = self.shared.ended.lock().expect("no holder of the outcome panics");
        ended.as_ref().and_then(|ended| ended.clone().err())
    }

    /// Begins a stop and does not wait: what was taken is committed and answered, nothing more is taken.
    pub fn request_stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake.wake();
    }

    /// Waits until it ended, after a stop or by itself.
    pub fn wait(&self) -> Result<(), Failure> {
        let mut ended = self.shared.ended.lock().expect("no holder of the outcome panics");
        loop {
            if let Some(ended) = &*ended {
                return ended.clone();
            }
            ended = self.shared.ending.wait(ended).expect("no holder of the outcome panics");
        }
    }

    /// Stops: what was taken is committed and answered, then the store is closed.
    pub fn stop(mut self) -> Result<(), Failure> {
        self.request_stop();
        let ended = self.wait();
        self.join();
        ended
    }

    /// Everything it counts, in Prometheus' text form.
    pub fn metrics(&self) -> String {
        let mut out = String::with_capacity(8 * 1024);
        let status = self.status();
        let (shell, reads) = (&self.shared.metrics, &self.read_metrics);
        let gauges = [
            ("parley_writer_ready", "Whether commands are taken and no damaged data was met.", u64::from(status.ready)),
            ("parley_writer_links", "Open links.", status.links as u64),
            ("parley_writer_groups_in_flight", "Groups that the store works on.", status.groups_in_flight as u64),
            ("parley_writer_gathered_commands", "Commands that gather.", status.gathered_commands as u64),
            ("parley_writer_parked_requests", "Requests that wait.", status.parked as u64),
            ("parley_writer_chats_cached", "Chats in memory.", status.chats_cached as u64),
            ("parley_writer_users_cached", "Users in memory.", status.users_cached as u64),
            ("parley_writer_active", "1: this process is the sequencer; 0: it stands by.", shell.active.get()),
            ("parley_writer_epoch", "The lease's epoch while active; 0 without a lease.", shell.epoch.get()),
            ("parley_writer_reads_outstanding", "Reads without an answer yet.", shell.reads_outstanding.get()),
        ];
        for (name, help, value) in gauges {
            show_gauge(name, help, value, &mut out);
        }
        let counters = [
            ("parley_writer_commands_total", "Commands made durable.", status.commands_durable),
            ("parley_writer_reads_total", "Reads asked for.", reads.reads.get()),
            ("parley_writer_reads_coalesced_total", "Reads that joined a waiting one.", reads.coalesced.get()),
            ("parley_writer_reads_refused_total", "Reads refused.", reads.refused.get()),
            ("parley_writer_reads_damaged_total", "Reads that met damaged data.", reads.damaged.get()),
            ("parley_writer_link_bytes_in_total", "Bytes from gateways.", shell.bytes_in.get()),
            ("parley_writer_link_bytes_out_total", "Bytes to gateways.", shell.bytes_out.get()),
        ];
        for (name, help, value) in counters {
            show_counter(name, help, value, &mut out);
        }
        (self.show)(&mut out);
        out
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic of the writer thread has ended the process.
            let _ = thread.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.abandon.store(true, Ordering::Release);
        self.shared.wake.wake();
        self.join();
    }
}
