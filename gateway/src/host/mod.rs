//! Hosts: what a shard's loop runs on. One pinned thread per shard, with a glommio executor for the ring driver and
//! without one for epoll. Only this module names glommio.

mod executor;
mod thread;

use crate::plane::{Drainer, DriverKind, ShardSetup, StartError};
use gateway_core::brain::Brain;
use rustix::thread::{CpuSet, sched_getaffinity};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};

/// Tells the starter that the shard has set up.
pub(crate) struct Started(Sender<(u16, io::Result<()>)>, u16);

impl Started {
    fn report(self, result: io::Result<()>) {
        // Nobody listens only when another shard failed to start.
        let _ = self.0.send((self.1, result));
    }
}

/// Ends all shards when one of them ends in a way that it should not.
struct EndOthers {
    drainer: Drainer,
    expected: bool,
}

impl Drop for EndOthers {
    fn drop(&mut self) {
        if !self.expected {
            self.drainer.end();
        }
    }
}

/// Starts a thread per shard and waits until all have set up.
pub(crate) fn start<B, F>(
    kind: DriverKind,
    setups: impl Iterator<Item = ShardSetup<B>>,
    make_brain: Arc<F>,
    drainer: &Drainer,
) -> Result<Vec<JoinHandle<io::Result<()>>>, StartError>
where
    B: Brain + 'static,
    F: Fn(u16) -> B + Send + Sync + 'static,
{
    let cpus = allowed_cpus();
    let (sender, receiver) = channel();
    let mut threads = Vec::new();
    let mut failed = None;
    for setup in setups {
        let shard = setup.shard;
        let cpu = setup.options.pin.then(|| cpus.get(usize::from(shard) % cpus.len().max(1)).copied()).flatten();
        let (make_brain, started) = (make_brain.clone(), Started(sender.clone(), shard));
        let others = EndOthers { drainer: drainer.clone(), expected: false };
        let thread = Builder::new().name(format!("{}-{shard}", setup.options.name)).spawn(move || {
            // Taken whole: dropped, when the shard panics, by this thread.
            let mut others = others;
            let result = match kind {
                DriverKind::Uring => executor::run(setup, cpu, make_brain, started),
                DriverKind::Epoll => thread::run(setup, cpu, make_brain, started),
            };
            others.expected = result.is_ok();
            result
        });
        match thread {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                failed = Some((shard, error));
                break;
            }
        }
    }
    drop(sender);
    let mut up = 0;
    while failed.is_none() && up < threads.len() {
        match receiver.recv() {
            Ok((_, Ok(()))) => up += 1,
            Ok((shard, Err(error))) => failed = Some((shard, error)),
            Err(_) => failed = Some((0, io::Error::other("a shard panicked while it set up"))),
        }
    }
    let Some((shard, error)) = failed else { return Ok(threads) };
    drainer.end();
    for thread in threads {
        // Its error is the one that is returned, or a consequence of it.
        let _ = thread.join();
    }
    Err(StartError::Shard(shard, error))
}

/// The cores that this process may use, in order.
fn allowed_cpus() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
        Err(error) => {
            tracing::warn!(%error, "cannot tell the cores; shards are not pinned");
            Vec::new()
        }
    }
}
