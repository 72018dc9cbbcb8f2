//! What the ring driver keeps of a connection, and the names by which its operations come back.

use crate::plane::conn::{Outgoing, State};
use gateway_core::output::ConnId;
use std::os::fd::OwnedFd;

/// A connection shuts its sending side down once and is cancelled once.
const ASIDES_MAX: u32 = 2;

/// What an operation is, in the top byte of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Nobody waits for its outcome.
    Ignored = 0,
    Accept = 1,
    Receive = 2,
    Send = 3,
    /// Shutting down or cancelling everything: a connection waits only for its end.
    Aside = 4,
    /// Clearing a direct descriptor.
    Close = 5,
    Timeout = 6,
    /// Cancelling the receive of a connection that is paused.
    CancelReceive = 7,
}

pub(super) fn name(kind: Kind, conn: ConnId) -> u64 {
    (kind as u64) << 56 | u64::from(conn.slot) << 32 | u64::from(conn.generation)
}

pub(super) const NOBODY: ConnId = ConnId { slot: 0, generation: 0 };

pub(super) fn unname(user_data: u64) -> (Kind, ConnId) {
    let kind = match user_data >> 56 {
        1 => Kind::Accept,
        2 => Kind::Receive,
        3 => Kind::Send,
        4 => Kind::Aside,
        5 => Kind::Close,
        6 => Kind::Timeout,
        7 => Kind::CancelReceive,
        _ => Kind::Ignored,
    };
    (kind, ConnId { slot: (user_data >> 32) as u32 & 0xff_ffff, generation: user_data as u32 })
}

/// Where a connection is beyond its [`State`].
#[derive(Debug)]
pub(super) enum Fate {
    /// The brain, or its peer, still has to do with it.
    Alive,
    /// It goes to another shard when nothing is in flight any more, with what was received meanwhile.
    Leaving(Vec<u8>),
    /// It goes when nothing is in flight any more.
    Dying,
    /// Its direct descriptor is being cleared.
    Releasing,
}

pub(super) struct Conn {
    /// The plain descriptor, while in the lobby.
    pub(super) fd: Option<OwnedFd>,
    pub(super) wants_live: bool,
    pub(super) queue: Outgoing,
    pub(super) state: State,
    pub(super) fate: Fate,
    /// What the brain wants. Whether a receive is in flight follows it, with the next `flush` and with completions.
    pub(super) paused: bool,
    /// A receive is in flight.
    pub(super) receiving: bool,
    /// A cancellation of the receive is in flight: there is never a second, and no new receive, beside it.
    pub(super) cancelling: bool,
    /// A send is in flight.
    pub(super) sending: bool,
    /// Other operations in flight.
    asides: u32,
    /// On the list of sends.
    pub(super) dirty: bool,
    /// On the list of connections whose receive may not be as it is wanted.
    pub(super) rearming: bool,
}

impl Conn {
    pub(super) fn new(fd: OwnedFd, wants_live: bool, queue: Outgoing) -> Self {
        Self {
            fd: Some(fd),
            wants_live,
            queue,
            state: State::Open,
            fate: Fate::Alive,
            paused: false,
            receiving: false,
            cancelling: false,
            sending: false,
            asides: 0,
            dirty: false,
            rearming: false,
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.receiving || self.cancelling || self.sending || self.asides > 0
    }

    pub(super) fn begin_aside(&mut self) {
        assert!(self.asides < ASIDES_MAX, "a connection ends once");
        self.asides += 1;
    }

    pub(super) fn end_aside(&mut self) {
        self.asides = self.asides.checked_sub(1).expect("no more completions than operations");
    }

    pub(super) fn is_alive(&self) -> bool {
        matches!(self.fate, Fate::Alive)
    }
}
