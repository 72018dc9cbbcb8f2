//! The contract between a shard's brain and its shell: events in as calls, outputs out as data, time as an argument.
//! The shell (sockets, mesh, clocks) lives elsewhere; nothing here knows a session or a chat.
//!
//! # Order of calls
//!
//! A connection begins with [`Brain::handle_accept`] (it is in the lobby of the shard that accepted it) or with
//! [`Brain::handle_seated`] (another shard, or this one, gave it away). Then any number of `handle_data` and
//! `handle_sent`. It ends in exactly one of these ways:
//!
//! - the brain emitted [`Output::Close`](crate::output::Output::Close), or the peer left, or the socket failed: one
//!   [`Brain::handle_closed`];
//! - the brain emitted `Abort` or `Seat`: no further call at all, from the next turn on.
//!
//! The outputs of a turn are carried out at its end, so in the turn in which a brain emits `Close`, `Abort`, `Seat` or
//! `Pause`, data that was already read may still arrive for that connection, and in the turn of a `Seat` its end: a
//! brain ignores them (after a `Pause` it takes them). Bytes that arrive after the turn of a `Seat` follow the
//! connection and are given to `handle_data` after `handle_seated`. A seat for which the target shard has no room is
//! dropped with its connection; the target's brain never hears of it.
//!
//! A connection in the lobby is received from in single steps; `Promote` takes it live on its shard, `handle_seated`
//! is live from the start. Only a connection in the lobby can be given away by `Seat`.

use crate::output::{ConnId, Outputs};
use crate::time::Now;
use core::net::SocketAddr;

/// Which queue a message takes between two shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MeshClass {
    /// Asks for an answer. The sender counts its open requests per target and never has more than the queue holds, so
    /// the queue is never full.
    Request,
    /// Answers a request, in the room that the request reserved: never full either.
    Answer,
    /// May be dropped when there is no room; the sender hears of it by [`Brain::handle_mesh_full`].
    Fanout,
}

/// A message between shards.
pub trait MeshMessage: Send {
    /// The queue that it takes.
    fn class(&self) -> MeshClass;
}

/// The decisions of one shard. It lives on one thread and is never shared.
pub trait Brain {
    /// What travels between shards.
    type Mesh: MeshMessage + 'static;
    /// What travels with a connection to the shard that owns its user.
    type Seat: Send + 'static;

    /// A connection was accepted into this shard's lobby.
    fn handle_accept(&mut self, now: Now, conn: ConnId, peer: SocketAddr, out: &mut Outputs<Self::Mesh, Self::Seat>);

    /// Bytes arrived. They are in the shell's buffer and may be changed in place (unmasking); nothing outlives the call.
    fn handle_data(&mut self, now: Now, conn: ConnId, data: &mut [u8], out: &mut Outputs<Self::Mesh, Self::Seat>);

    /// The kernel took `bytes` of what was queued for the connection; `queued` bytes are left, without those that the
    /// outputs of this turn will add. A brain that keeps an account subtracts `bytes`.
    fn handle_sent(
        &mut self,
        now: Now,
        conn: ConnId,
        bytes: usize,
        queued: usize,
        out: &mut Outputs<Self::Mesh, Self::Seat>,
    );

    /// The connection ended: the peer left, the socket failed, or this brain's `Close` is complete.
    fn handle_closed(&mut self, now: Now, conn: ConnId, out: &mut Outputs<Self::Mesh, Self::Seat>);

    /// A connection was given to this shard by `Output::Seat`.
    fn handle_seated(&mut self, now: Now, conn: ConnId, seat: Self::Seat, out: &mut Outputs<Self::Mesh, Self::Seat>);

    /// A message of shard `from` (which may be this shard).
    fn handle_mesh(&mut self, now: Now, from: u16, message: Self::Mesh, out: &mut Outputs<Self::Mesh, Self::Seat>);

    /// A fan-out message to `shard` found no room and comes back. So do all later ones to that shard in the same turn,
    /// though there may be room by then: nothing overtakes what was refused.
    fn handle_mesh_full(
        &mut self,
        now: Now,
        shard: u16,
        message: Self::Mesh,
        out: &mut Outputs<Self::Mesh, Self::Seat>,
    );

    /// The link to the storage-writer is connected: the answer to `LinkConnect`.
    fn handle_link_up(&mut self, now: Now, out: &mut Outputs<Self::Mesh, Self::Seat>);

    /// Bytes arrived on the link.
    fn handle_link_data(&mut self, now: Now, data: &mut [u8], out: &mut Outputs<Self::Mesh, Self::Seat>);

    /// The link is down: `LinkConnect` failed, the link broke, or `LinkClose` was carried out.
    fn handle_link_down(&mut self, now: Now, out: &mut Outputs<Self::Mesh, Self::Seat>);

    /// The time that [`Brain::next_timer`] named has come.
    fn handle_timer(&mut self, now: Now, out: &mut Outputs<Self::Mesh, Self::Seat>);

    /// When `handle_timer` is next due, in `Now::mono_ms`; asked after every turn.
    fn next_timer(&self) -> Option<u64>;

    /// The process is to end: no more connections will be accepted; see the present ones off.
    fn handle_drain(&mut self, now: Now, out: &mut Outputs<Self::Mesh, Self::Seat>);

    /// True when nothing is left to see off; asked after every turn of a drain.
    fn is_drained(&self) -> bool;
}
