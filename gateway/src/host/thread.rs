//! The plain host: a shard on the epoll driver, which waits by itself.

use super::Started;
use crate::plane::ShardSetup;
use crate::plane::epoll::Epoll;
use crate::plane::shard::{Next, Shard};
use gateway_core::brain::Brain;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::io;
use std::sync::Arc;
use std::time::Duration;

pub(super) fn run<B, F>(
    setup: ShardSetup<B>,
    cpu: Option<usize>,
    make_brain: Arc<F>,
    started: Started,
) -> io::Result<()>
where
    B: Brain,
    F: Fn(u16) -> B,
{
    if let Some(cpu) = cpu {
        let mut set = CpuSet::new();
        set.set(cpu);
        if let Err(error) = sched_setaffinity(None, &set) {
            tracing::warn!(%error, cpu, "cannot pin a shard");
        }
    }
    let ShardSetup { shard: me, options, listener, shared } = setup;
    let driver = Epoll::new(
        listener,
        shared.mesh.waker(me).eventfd(),
        options.connections_max as usize,
        options.linger_ms,
        shared.counters.clone(),
    );
    let driver = match driver {
        Ok(driver) => driver,
        Err(error) => {
            started.report(Err(error));
            return Ok(());
        }
    };
    let mut shard = Shard::new(me, make_brain(me), driver, shared);
    started.report(Ok(()));
    let mut timeout = Some(Duration::ZERO);
    loop {
        let next = shard.turn(timeout)?;
        shard.disarm();
        timeout = match next {
            Next::Again => Some(Duration::ZERO),
            Next::Sleep(deadline) if shard.arm() => shard.until(deadline),
            Next::Sleep(_) => Some(Duration::ZERO),
            Next::Done => return Ok(()),
        };
    }
}
