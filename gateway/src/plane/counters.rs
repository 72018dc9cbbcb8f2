//! What a shard's socket plane did, for /metrics: written by the shard, read by anyone.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one shard. They only rise, except levels: see [`Counters::is_level`].
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        impl Counters {
            /// Every counter with its name, for an exporter.
            pub fn each(&self, mut f: impl FnMut(&'static str, u64)) {
                $(f(stringify!($name), self.$name.get());)*
            }
        }
    };
}

impl Counters {
    /// Whether a name is a level, which falls too.
    pub fn is_level(name: &str) -> bool {
        ["connections", "live", "streaming", "rings", "ring_files"].contains(&name)
    }
}

counters! {
    /// Connections of this shard now, in the lobby and live.
    connections,
    /// With the ring driver: of these, those that are live, and direct descriptors of a ring.
    live,
    /// With the ring driver: of these, those that are active, with a multishot receive; the others are polled.
    streaming,
    /// With the ring driver: rings of this shard.
    rings,
    /// With the ring driver: direct descriptors that these rings have room for.
    ring_files,
    /// Connections accepted.
    accepted,
    /// Connections accepted and dropped at once, because the table was full, or no further ring could be made. (The ring
    /// driver accepts what waits in one go; with epoll they wait in the backlog.)
    refused,
    /// Connections that came from another shard, or from this one's lobby.
    seated,
    /// Seats refused because the table was full, or no further ring could be made.
    seats_refused,
    /// Connections that left the table, for whatever reason.
    closed,
    /// Times that accepting stopped because the table was full or descriptors ran out.
    accept_pauses,
    /// Bytes received.
    bytes_in,
    /// Bytes that the kernel took to send.
    bytes_out,
    /// Receives that brought bytes.
    recvs,
    /// Sends that the kernel took, whole or in part.
    sends,
    /// Receives that found no buffer in the shared ring and were armed again.
    enobufs,
    /// With the ring driver: connections that became active, and got a multishot receive.
    promotions,
    /// With the ring driver: connections that had been idle for long, and went back to a poll.
    demotions,
    /// Fan-out messages that found no room.
    mesh_full,
    /// Turns of the shard's loop.
    turns,
}

/// One number with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Only the shard's own thread writes, so no read-modify-write is needed.
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }
}
