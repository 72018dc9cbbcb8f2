//! What a brain wants done to the world, as data: the shell drains an [`Outputs`] after every turn of its loop.
//! No IO here, and nothing that knows a session or a chat.

use bytes::Bytes;
use std::ops::Range;

/// A connection of one shard. The shell hands slots out densely from 0 and uses them again; the generation tells the
/// uses of a slot apart, so an output or event for a connection that is gone is recognised and ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId {
    /// Index into the shard's connection table.
    pub slot: u32,
    /// Counts the uses of the slot, from 1.
    pub generation: u32,
}

/// One thing to do. `M` is the message type of the mesh, `S` what travels with a connection to another shard.
#[derive(Debug)]
pub enum Output<M, S> {
    /// Queue bytes of [`Outputs::arena`] for a connection.
    Send {
        /// The receiver.
        conn: ConnId,
        /// Where the bytes are in the arena.
        bytes: Range<usize>,
    },
    /// Queue bytes that many connections share.
    SendShared {
        /// The receiver.
        conn: ConnId,
        /// Whole frames, ready for the wire.
        bytes: Bytes,
    },
    /// Stop reading: a queue that this connection feeds is full. Bytes that were already read still arrive.
    Pause(ConnId),
    /// Read again.
    Resume(ConnId),
    /// Send what is queued, shut the sending side down, wait at most the shell's linger time for the peer, close.
    Close(ConnId),
    /// Close at once; what is queued is dropped.
    Abort(ConnId),
    /// The connection stays on this shard for good, without a seat: move it out of the lobby into live mode.
    Promote(ConnId),
    /// Take the connection out of this shard and give its descriptor to another (or this) shard, with `seat`, which
    /// holds any bytes already read. The connection ends here without a close event. Only from the lobby: one that
    /// was promoted or seated is aborted instead.
    Seat {
        /// The connection that leaves.
        conn: ConnId,
        /// The shard that owns its user.
        shard: u16,
        /// What the new shard needs to know of it.
        seat: S,
    },
    /// Put a message on the queue to another shard.
    Mesh {
        /// The target.
        shard: u16,
        /// Its kind says which of the queues it takes.
        message: M,
    },
    /// (Re)connect this shard's link to a storage-writer; answered by a link event, success or not.
    LinkConnect {
        /// Which of those that are configured.
        writer: u16,
    },
    /// Queue bytes of the arena on the link.
    LinkSend(Range<usize>),
    /// Close the link; answered by a link-down event.
    LinkClose,
    /// End the whole process, because it must not go on (fenced).
    Halt(HaltReason),
}

/// Why a gateway ends itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HaltReason {
    /// Another gateway took the partitions over under a higher `home_epoch`.
    Fenced,
    /// The writer speaks another version of the link protocol.
    LinkVersion,
}

/// The outputs of one turn, in order, with one arena for their bytes: no allocation a message once both are warm.
#[derive(Debug)]
pub struct Outputs<M, S> {
    /// In the order in which they are to be done.
    pub items: Vec<Output<M, S>>,
    /// Bytes that `Send` and `LinkSend` point into.
    pub arena: Vec<u8>,
}

impl<M, S> Default for Outputs<M, S> {
    fn default() -> Self {
        Self { items: Vec::new(), arena: Vec::new() }
    }
}

impl<M, S> Outputs<M, S> {
    /// Lets `write` append bytes to the arena and queues what it appended for `conn`.
    pub fn send_with(&mut self, conn: ConnId, write: impl FnOnce(&mut Vec<u8>)) -> usize {
        let start = self.arena.len();
        write(&mut self.arena);
        let bytes = start..self.arena.len();
        let len = bytes.len();
        // Bytes that follow the last output to the same connection extend it: one send a turn, not one a frame.
        match self.items.last_mut() {
            Some(Output::Send { conn: last, bytes: range }) if *last == conn && range.end == start => {
                range.end = bytes.end;
            }
            _ => self.items.push(Output::Send { conn, bytes }),
        }
        len
    }

    /// Like [`Outputs::send_with`], for the link.
    pub fn link_send_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.arena.len();
        write(&mut self.arena);
        let end = self.arena.len();
        match self.items.last_mut() {
            Some(Output::LinkSend(range)) if range.end == start => range.end = end,
            _ => self.items.push(Output::LinkSend(start..end)),
        }
    }

    /// Queues one output.
    pub fn push(&mut self, output: Output<M, S>) {
        self.items.push(output);
    }

    /// True when there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Forgets everything, keeping the allocations up to a bound.
    pub fn clear(&mut self) {
        const ARENA_KEPT_BYTES_MAX: usize = 1 << 20;
        self.items.clear();
        self.arena.clear();
        self.arena.shrink_to(ARENA_KEPT_BYTES_MAX);
    }
}
