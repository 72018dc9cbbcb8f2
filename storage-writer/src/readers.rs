//! The reader threads: a bounded queue of reads, identical ones that wait are one, answers encoded where they are made.
//!
//! A read joins another only until that one begins: it must see everything that was confirmed before it was asked.

use crate::metrics::Counter;
use crate::tier::Sight;
use crate::wake::{PanicEndsProcess, Wake};
use hashbrown::HashMap;
use parley_protocol::ErrorCode;
use parley_protocol::link::{Answer, Ask, Reply, ToGateway};
use parley_protocol::wire::{encode_record, to_rkyv};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use storage_core::LinkId;
use storage_core::reads::ReadOptions;

/// Encoded answers that wait for the writer thread, bytes; the readers pause above it.
const ANSWERS_BYTES_MAX: usize = 64 << 20;

/// Encoded answers for a link.
pub(crate) type Answers = Vec<(LinkId, Vec<u8>)>;

/// What the readers count.
#[derive(Debug, Default)]
pub(crate) struct ReadMetrics {
    /// Reads asked for.
    pub(crate) reads: Counter,
    /// Of them, those that joined one that waited.
    pub(crate) coalesced: Counter,
    /// Of them, those refused because too many waited.
    pub(crate) refused: Counter,
    /// Reads done that met damaged data; those that joined one are not counted.
    pub(crate) damaged: Counter,
}

type Key = Arc<[u8]>;

struct Waiting {
    ask: Ask,
    /// Whom to answer, and the request's number.
    asked: Vec<(LinkId, u64)>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Key>,
    waiting: HashMap<Key, Waiting>,
    answers: Answers,
    answers_bytes: usize,
    /// Requests between their arrival and the moment the writer thread takes their answer.
    outstanding: usize,
    stopped: bool,
}

struct Shared {
    state: Mutex<State>,
    /// Told when there is work, when answers were taken, and at the end.
    changed: Condvar,
    wake: Arc<Wake>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a panic of a reader ends the process")
    }
}

/// The writer thread's end.
pub(crate) struct Readers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    reads_max: usize,
    metrics: Arc<ReadMetrics>,
}

impl Readers {
    pub(crate) fn start(
        threads: usize,
        reads_max: usize,
        options: ReadOptions,
        sight: &Arc<dyn Sight>,
        wake: Arc<Wake>,
        metrics: Arc<ReadMetrics>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), wake });
        let mut readers = Self { shared, threads: Vec::new(), reads_max, metrics };
        for index in 0..threads {
            let (shared, options, sight) = (readers.shared.clone(), options.clone(), sight.clone());
            let metrics = readers.metrics.clone();
            let thread = std::thread::Builder::new().name(format!("reader-{index}"));
            readers.threads.push(thread.spawn(move || serve(&shared, &options, &*sight, &metrics))?);
        }
        Ok(readers)
    }

    /// Queues a read, or refuses it when too many are under way.
    pub(crate) fn ask(&self, link: LinkId, no: u64, ask: Ask) -> Result<(), ToGateway> {
        self.metrics.reads.add(1);
        let mut state = self.shared.lock();
        if state.outstanding >= self.reads_max {
            self.metrics.refused.add(1);
            let reply = Reply::Refused(ErrorCode::Unavailable);
            return Err(ToGateway::Answer(Answer { no, reply }));
        }
        state.outstanding += 1;
        let key: Key = to_rkyv(&ask).into();
        if let Some(waiting) = state.waiting.get_mut(&key) {
            self.metrics.coalesced.add(1);
            waiting.asked.push((link, no));
            return Ok(());
        }
        state.waiting.insert(key.clone(), Waiting { ask, asked: vec![(link, no)] });
        state.queue.push_back(key);
        drop(state);
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Takes the answers that are ready.
    pub(crate) fn answers(&self, taken: &mut Answers) {
        let mut state = self.shared.lock();
        if state.answers.is_empty() {
            return;
        }
        std::mem::swap(taken, &mut state.answers);
        state.outstanding -= taken.len();
        let paused = state.answers_bytes > ANSWERS_BYTES_MAX;
        state.answers_bytes = 0;
        drop(state);
        if paused {
            self.shared.changed.notify_all();
        }
    }

    /// Whether a read met damaged data since the start.
    pub(crate) fn met_damage(&self) -> bool {
        self.metrics.damaged.get() > 0
    }

    /// Requests without an answer yet.
    pub(crate) fn outstanding(&self) -> usize {
        self.shared.lock().outstanding
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A panic of a reader has ended the process.
            let _ = thread.join();
        }
    }
}

fn serve(shared: &Shared, options: &ReadOptions, sight: &dyn Sight, metrics: &ReadMetrics) {
    let _guard = PanicEndsProcess("reader");
    loop {
        let mut state = shared.lock();
        let read = loop {
            if state.stopped {
                return;
            }
            let next = if state.answers_bytes > ANSWERS_BYTES_MAX { None } else { state.queue.pop_front() };
            if let Some(key) = next {
                break state.waiting.remove(&key).expect("what is queued waits");
            }
            state = shared.changed.wait(state).expect("a panic of a reader ends the process");
        };
        drop(state);
        // Looked after the read left the queue: whoever joined it sees what was confirmed by then.
        let reply = sight.answer(options, &read.ask);
        if reply == Reply::Refused(ErrorCode::Damaged) {
            metrics.damaged.add(1);
        }
        let mut record = ToGateway::Answer(Answer { no: 0, reply });
        let mut answers = Vec::with_capacity(read.asked.len());
        for (link, number) in read.asked {
            if let ToGateway::Answer(answer) = &mut record {
                answer.no = number;
            }
            let mut bytes = Vec::new();
            encode_record(&record, &mut bytes);
            answers.push((link, bytes));
        }
        let mut state = shared.lock();
        state.answers_bytes += answers.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
        state.answers.append(&mut answers);
        drop(state);
        shared.wake.wake();
    }
}
