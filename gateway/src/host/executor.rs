//! The glommio host: a pinned executor per shard, whose one task turns the ring driver's loop and sleeps on the
//! shard's eventfd. The ring signals it, and so do other shards.
//!
//! `unsafe`: glommio takes descriptors only as numbers.
#![allow(unsafe_code)]

use super::Started;
use crate::plane::ShardSetup;
use crate::plane::shard::{Next, Shard};
use crate::plane::uring::Uring;
use gateway_core::brain::Brain;
use glommio::io::BufferedFile;
use glommio::{LocalExecutorBuilder, Placement};
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

/// glommio registers memory for file reads; a shard reads eight bytes at a time.
const IO_MEMORY_BYTES: usize = 64 << 10;
/// Entries of each of glommio's own rings.
const RING_DEPTH: usize = 16;

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
    let placement = cpu.map_or(Placement::Unbound, Placement::Fixed);
    let executor = LocalExecutorBuilder::new(placement).io_memory(IO_MEMORY_BYTES).ring_depth(RING_DEPTH).make();
    let executor = match executor {
        Ok(executor) => executor,
        Err(error) => {
            let help = "glommio needs 512 KiB of locked memory a shard: raise `ulimit -l` or LimitMEMLOCK";
            started.report(Err(io::Error::other(format!("{error} ({help})"))));
            return Ok(());
        }
    };
    executor.run(async move {
        let ShardSetup { shard: me, options, listener, shared } = setup;
        let eventfd = shared.mesh.waker(me).eventfd();
        let prepared = eventfd
            .try_clone()
            .and_then(|wake| Ok((wake, Uring::new(listener, eventfd, &options, shared.counters.clone())?)));
        let (wake, driver) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                started.report(Err(error));
                return Ok(());
            }
        };
        let shard = Shard::new(me, make_brain(me), driver, shared);
        started.report(Ok(()));
        turn(shard, wake).await
    })
}

async fn turn<B: Brain>(mut shard: Shard<B, Uring>, wake: OwnedFd) -> io::Result<()> {
    // SAFETY: the descriptor is ours and open; the file owns it from here on.
    let wake = unsafe { BufferedFile::from_raw_fd(wake.into_raw_fd()) };
    loop {
        match shard.turn(None)? {
            Next::Again => glommio::yield_if_needed().await,
            Next::Done => break,
            Next::Sleep(deadline) => {
                let now_ms = shard.now_ms();
                if !shard.driver.park(now_ms, deadline)? {
                    continue;
                }
                if shard.arm() {
                    match wake.read_at(0, 8).await.map_err(io::Error::from) {
                        Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                        _ => {}
                    }
                    shard.disarm();
                }
                shard.driver.unpark();
            }
        }
    }
    Ok(wake.close().await?)
}
