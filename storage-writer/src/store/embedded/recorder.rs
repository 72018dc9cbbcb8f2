//! The thread that writes the high-water record, so that its sync overlaps the next group's. A group's answer appears
//! here, after that sync, and readers see the group from then on.

use super::high_water::HighWater;
use super::{EmbeddedView, Views, Waker};
use crate::metrics::StoreMetrics;
use crate::wake::PanicEndsProcess;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;
use storage_core::store::{OpId, Outcome, StoreResult};

/// Groups between their journal sync and their answer. The writer keeps fewer in flight; a fuller queue makes it wait.
const JOBS_MAX: usize = 16;

/// A group whose journal is synced.
pub(crate) struct Job {
    /// Whose answer it is.
    pub(crate) op: OpId,
    /// Groups over the life of the store, this one included.
    pub(crate) groups: u64,
    /// The store right after this group.
    pub(crate) view: EmbeddedView,
}

type Answers = Arc<Mutex<Vec<(OpId, StoreResult)>>>;

/// The writer thread's end.
pub(crate) struct Recorder {
    jobs: Option<SyncSender<Job>>,
    answers: Answers,
    thread: Option<JoinHandle<()>>,
}

impl Recorder {
    pub(crate) fn start(high_water: HighWater, views: Views, waker: Waker, metrics: Arc<StoreMetrics>) -> Self {
        let (jobs, queue) = sync_channel(JOBS_MAX);
        let answers = Answers::default();
        let theirs = answers.clone();
        let work = move || {
            let _guard = PanicEndsProcess("high-water");
            record(high_water, &queue, &views, &theirs, &waker, &metrics);
        };
        let thread = std::thread::Builder::new()
            .name("high-water".to_owned())
            .spawn(work)
            .expect("a thread can be started while the store opens");
        Self { jobs: Some(jobs), answers, thread: Some(thread) }
    }

    pub(crate) fn submit(&mut self, job: Job) {
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(job));
        assert!(matches!(sent, Some(Ok(()))), "the high-water thread lives as long as the store");
    }

    pub(crate) fn completions(&mut self, done: &mut Vec<(OpId, StoreResult)>) {
        done.append(&mut self.answers.lock().expect("no holder of the answers panics"));
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic of that thread has ended the process.
            let _ = thread.join();
        }
    }
}

fn record(
    mut high_water: HighWater,
    queue: &Receiver<Job>,
    views: &Views,
    answers: &Answers,
    waker: &Waker,
    metrics: &StoreMetrics,
) {
    let mut broken: Option<String> = None;
    let mut ready = Vec::with_capacity(JOBS_MAX);
    while let Ok(first) = queue.recv() {
        // One record answers everything that waits.
        let mut newest = (first.groups, first.view);
        ready.push(first.op);
        while ready.len() < JOBS_MAX {
            let Ok(job) = queue.try_recv() else { break };
            newest = (job.groups, job.view);
            ready.push(job.op);
        }
        let (groups, view) = newest;
        if broken.is_none() {
            let started = Instant::now();
            match high_water.raise(groups) {
                Ok(()) => {
                    metrics.high_water.record(started.elapsed());
                    views.publish(view);
                }
                Err(error) => broken = Some(format!("{}: {error}", high_water.path().display())),
            }
        }
        let outcome = broken.clone().map_or(Outcome::Durable, Outcome::Broken);
        let results = ready.drain(..).map(|op| (op, StoreResult::Committed(outcome.clone())));
        answers.lock().expect("no holder of the answers panics").extend(results);
        waker();
    }
}
