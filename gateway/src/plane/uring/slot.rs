//! What the ring driver keeps of a connection, and the names by which its operations come back.

use crate::plane::conn::{Outgoing, State};
use gateway_core::output::ConnId;
use std::os::fd::OwnedFd;

/// A connection shuts its sending side down once, and its receive, its poll and its send are cancelled once.
const ASIDES_MAX: u8 = 4;

/// What an operation is, in the top byte of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Nobody waits for its outcome.
    Ignored = 0,
    Accept = 1,
    /// A receive that waits for bytes: one of them in the lobby, multishot in a live connection that is active.
    Receive = 2,
    Send = 3,
    /// Shutting down, or cancelling something for good: a connection waits only for its end.
    Aside = 4,
    /// Clearing a direct descriptor.
    Close = 5,
    Timeout = 6,
    /// Cancelling the receive of a connection that stays.
    CancelReceive = 7,
    /// A receive that takes what is there and does not wait.
    Take = 8,
    /// The poll of a live connection that is not active.
    Poll = 9,
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
        8 => Kind::Take,
        9 => Kind::Poll,
        _ => Kind::Ignored,
    };
    (kind, ConnId { slot: (user_data >> 32) as u32 & 0xff_ffff, generation: user_data as u32 })
}

/// Where a connection is beyond its [`State`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The brain, or its peer, still has to do with it.
    Alive,
    /// It goes to another shard when nothing is in flight any more, with what was received meanwhile.
    Leaving,
    /// It goes when nothing is in flight any more.
    Dying,
    /// Its direct descriptor is being cleared.
    Releasing,
}

/// Something that is or is not so about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flag(u16);

impl Flag {
    /// It is to become a direct descriptor.
    pub(super) const WANTS_LIVE: Self = Self(1 << 0);
    /// What the brain wants. Whether a receive is in flight follows it, with the next `flush` and with completions.
    pub(super) const PAUSED: Self = Self(1 << 1);
    /// It never goes back to polling: bytes are expected all the time.
    pub(super) const BUSY: Self = Self(1 << 2);
    /// It is active enough to have a multishot receive; else it has a poll.
    pub(super) const STREAMING: Self = Self(1 << 3);
    /// Bytes, or the end, wait to be taken: a poll told of them, or the last receive.
    pub(super) const READABLE: Self = Self(1 << 4);
    /// On the list of sends.
    pub(super) const DIRTY: Self = Self(1 << 5);
    /// On the list of connections whose receive may not be as it is wanted.
    pub(super) const REARMING: Self = Self(1 << 6);
    /// A receive that waits is in flight.
    pub(super) const RECEIVING: Self = Self(1 << 7);
    /// A receive that does not wait is in flight.
    pub(super) const TAKING: Self = Self(1 << 8);
    /// A poll is in flight.
    pub(super) const POLLING: Self = Self(1 << 9);
    /// A cancellation of the receive is in flight: there is never a second, and no new receive, beside it.
    pub(super) const CANCELLING: Self = Self(1 << 10);
    /// A send is in flight.
    pub(super) const SENDING: Self = Self(1 << 11);

    const IN_FLIGHT: Self =
        Self(Self::RECEIVING.0 | Self::TAKING.0 | Self::POLLING.0 | Self::CANCELLING.0 | Self::SENDING.0);
}

/// There are as many of these as there ever were connections at a time: each byte counts.
pub(super) struct Conn {
    pub(super) queue: Outgoing,
    /// The plain descriptor, while in the lobby.
    pub(super) fd: Option<OwnedFd>,
    /// The second in which it last received, of a count that wraps.
    pub(super) active_s: u16,
    flags: u16,
    /// Receives in that second.
    receives: u8,
    /// Other operations in flight.
    asides: u8,
    pub(super) state: State,
    pub(super) fate: Fate,
}

impl Conn {
    pub(super) fn new(fd: OwnedFd, queue: Outgoing) -> Self {
        Self {
            queue,
            fd: Some(fd),
            active_s: 0,
            flags: 0,
            receives: 0,
            asides: 0,
            state: State::Open,
            fate: Fate::Alive,
        }
    }

    /// True when any of them is so.
    pub(super) fn is(&self, flag: Flag) -> bool {
        self.flags & flag.0 != 0
    }

    pub(super) fn set(&mut self, flag: Flag, on: bool) {
        if on {
            self.flags |= flag.0;
        } else {
            self.flags &= !flag.0;
        }
    }

    /// Whether it is to be received from.
    pub(super) fn reads(&self) -> bool {
        self.state.reads(self.is(Flag::PAUSED))
    }

    /// Notes a receive, and says how many there were in this second.
    pub(super) fn received(&mut self, now_s: u16) -> u8 {
        self.receives = if self.active_s == now_s { self.receives.saturating_add(1) } else { 1 };
        self.active_s = now_s;
        self.receives
    }

    pub(super) fn is_busy(&self) -> bool {
        self.is(Flag::IN_FLIGHT) || self.asides > 0
    }

    pub(super) fn asides(&self) -> u8 {
        self.asides
    }

    pub(super) fn begin_aside(&mut self) {
        assert!(self.asides < ASIDES_MAX, "a connection ends once");
        self.asides += 1;
    }

    pub(super) fn end_aside(&mut self) {
        self.asides = self.asides.checked_sub(1).expect("no more completions than operations");
    }

    pub(super) fn is_alive(&self) -> bool {
        self.fate == Fate::Alive
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_takes_32_bytes() {
        assert_eq!(size_of::<Conn>(), 24);
        assert_eq!(crate::plane::table::slot_bytes::<Conn>(), 32);
    }

    #[test]
    fn receives_are_counted_within_a_second() {
        let fd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("an eventfd");
        let mut conn = Conn::new(fd, Outgoing::default());
        assert_eq!((conn.received(7), conn.received(7), conn.received(8), conn.received(8)), (1, 2, 1, 2));
        assert_eq!(conn.active_s, 8);
        assert!((0..300).all(|_| conn.received(8) >= 3), "and the count does not wrap");
    }

    #[test]
    fn names_are_told_apart() {
        let conn = ConnId { slot: 0xab_cdef, generation: 0x1234_5678 };
        for kind in [Kind::Accept, Kind::Receive, Kind::Send, Kind::Aside, Kind::Close, Kind::Timeout] {
            assert_eq!(unname(name(kind, conn)), (kind, conn));
        }
        for kind in [Kind::CancelReceive, Kind::Take, Kind::Poll, Kind::Ignored] {
            assert_eq!(unname(name(kind, conn)), (kind, conn));
        }
    }
}
