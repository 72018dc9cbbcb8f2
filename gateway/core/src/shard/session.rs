//! What a shard keeps of one connection: in the lobby, and as a session. An idle session is its entry of the table and
//! nothing else; what it has beside that while it is busy is next door, in `active`. State only.

use crate::mesh::Mesh;
use crate::output::{ConnId, Outputs};
use crate::ws::Decoder;
use parley_protocol::wire::Encoding;
use parley_protocol::{DeviceId, UserId};

use super::active::{Active, Actives};
use super::stream::Stream;

/// No session.
pub(super) const NOBODY: u32 = u32::MAX;

/// What a shard emits.
pub type Out = Outputs<Mesh, Seat>;

/// What travels with a connection from the lobby to the shard that owns its user.
#[derive(Debug)]
pub struct Seat {
    /// Who.
    pub user_id: UserId,
    /// The name; empty without one, or where a ticket did not say it.
    pub name: String,
    /// Which device.
    pub device_id: DeviceId,
    /// The encoding.
    pub encoding: Encoding,
    /// The mark that the device presented.
    pub mark: Option<u64>,
    /// The session acts for the user under the service role: no stream, may end devices.
    pub acting: bool,
    /// Logged in under the development key.
    pub development: bool,
    /// When the token expires, Unix milliseconds.
    pub token_expires_at_ms: u64,
    /// The peer is on this machine.
    pub loopback: bool,
    /// What followed `Hello` in the same read.
    pub rest: Vec<u8>,
}

/// An entry of the shard's connection table.
#[derive(Debug, Default)]
pub(crate) enum Conn {
    #[default]
    Free,
    Lobby(Box<Lobby>),
    Session(Session),
}

/// A connection without a session.
#[derive(Debug)]
pub(crate) struct Lobby {
    pub(crate) conn: ConnId,
    pub(crate) loopback: bool,
    pub(crate) stage: Stage,
    /// When this stage must be over.
    pub(crate) deadline_ms: u64,
    /// Pings that were answered.
    pub(crate) pings: u8,
    /// Bytes of an incomplete head.
    pub(crate) input: Vec<u8>,
    /// `Authorization`, for `Hello`.
    pub(crate) bearer: Option<String>,
    pub(crate) encoding: Encoding,
    pub(crate) decoder: Decoder,
}

/// How far a connection of the lobby has come.
#[derive(Debug)]
pub(crate) enum Stage {
    /// Reads the head.
    Head,
    /// Waits for `Hello`.
    Hello,
    /// Asks who the user is; what the client sends meanwhile waits.
    Login { seat: Box<Seat> },
    /// Is being closed.
    Closing,
}

/// A device's live connection. There may be a million that do nothing: each byte here counts, and what only a busy one
/// needs is in its [`Active`].
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) generation: u32,
    /// The slot of the user's next session, or [`NOBODY`]; the first one is in the user's home.
    pub(crate) next: u32,
    pub(crate) user_id: UserId,
    /// In halves, since a whole one would be aligned to its size.
    device_id: [u64; 2],
    pub(crate) token_expires_at_ms: u64,
    active: Option<Box<Active>>,
    /// When the client last sent something.
    pub(crate) heard: Moment,
    /// When the last mark left by itself.
    pub(crate) marked: Moment,
    /// Bytes given to the shell and not yet taken by the kernel. An outbox is far below its four gigabytes.
    pub(crate) queued: u32,
    flags: u16,
    pub(crate) encoding: Encoding,
    pub(crate) stream: Stream,
}

/// What is true of a session or not.
#[derive(Clone, Copy, Debug)]
#[repr(u16)]
pub(crate) enum Flag {
    /// See [`Seat::acting`].
    Acting = 1,
    /// See [`Seat::loopback`].
    Loopback = 1 << 1,
    /// See [`Seat::development`].
    Development = 1 << 2,
    /// A close is under way: nothing more is read or sent.
    Closing = 1 << 3,
    /// Told to reconnect; is closed when its requests are answered.
    Draining = 1 << 4,
    MarkArmed = 1 << 5,
    BesideArmed = 1 << 6,
    WaitsToRead = 1 << 7,
    /// It took something since the last look.
    Took = 1 << 8,
    /// Its busy part was used in this event.
    Touched = 1 << 9,
}

impl Session {
    pub(crate) fn new(conn: ConnId, seat: &Seat, mark: Option<u64>, now_ms: u64) -> Self {
        let device_id = seat.device_id.0;
        let mut session = Self {
            generation: conn.generation,
            next: NOBODY,
            user_id: seat.user_id,
            device_id: [(device_id >> 64) as u64, device_id as u64],
            token_expires_at_ms: seat.token_expires_at_ms,
            active: None,
            heard: Moment::new(now_ms),
            marked: Moment::new(now_ms),
            queued: 0,
            flags: 0,
            encoding: seat.encoding,
            stream: Stream::new(mark),
        };
        session.replace(Flag::Acting, seat.acting);
        session.replace(Flag::Loopback, seat.loopback);
        session.replace(Flag::Development, seat.development);
        session
    }

    pub(crate) fn device_id(&self) -> DeviceId {
        let [high, low] = self.device_id;
        DeviceId(u128::from(high) << 64 | u128::from(low))
    }

    pub(crate) fn is(&self, flag: Flag) -> bool {
        self.flags & flag as u16 != 0
    }

    /// Sets a flag; gives what it was.
    pub(crate) fn replace(&mut self, flag: Flag, on: bool) -> bool {
        let was = self.is(flag);
        self.flags = if on { self.flags | flag as u16 } else { self.flags & !(flag as u16) };
        was
    }

    /// Bytes were given to the shell.
    pub(crate) fn queue(&mut self, bytes: usize) {
        self.queued = self.queued.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// The highest entry of its user's inbox that it knows of.
    pub(crate) fn known(&self) -> u64 {
        self.stream.known().max(self.active.as_ref().map_or(0, |active| active.head))
    }

    /// What it has beside its entry, if it is busy.
    pub(crate) fn busy(&self) -> Option<&Active> {
        self.active.as_deref()
    }

    /// The same, to change it.
    pub(crate) fn busy_mut(&mut self, slot: u32, actives: &mut Actives) -> Option<&mut Active> {
        if self.active.is_some() {
            actives.touch(slot, self);
        }
        self.active.as_deref_mut()
    }

    /// What it has beside its entry; made, if it was idle.
    pub(crate) fn active(&mut self, slot: u32, actives: &mut Actives) -> &mut Active {
        actives.touch(slot, self);
        self.active.get_or_insert_with(|| actives.make())
    }

    /// The busy part with the stream, for entries that are held.
    pub(crate) fn stream_and_active(&mut self, slot: u32, actives: &mut Actives) -> (&mut Stream, &mut Active) {
        actives.touch(slot, self);
        (&mut self.stream, self.active.get_or_insert_with(|| actives.make()))
    }

    /// Ends an event in which the busy part was used: it goes when it says nothing.
    pub(crate) fn rest(&mut self, now_ms: u64, rate_per_s: u32, actives: &mut Actives) {
        self.replace(Flag::Touched, false);
        let known = self.stream.known();
        let nothing = self.busy().is_some_and(|active| active.says_nothing(known, now_ms, rate_per_s));
        if nothing && let Some(active) = self.active.take() {
            actives.give_back(active);
        }
    }

    /// The session ends: what it had.
    pub(crate) fn into_active(self) -> Option<Box<Active>> {
        self.active
    }
}

/// A millisecond of the last 24 days; what lies farther back counts as just now. Exact within that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment(u32);

impl Moment {
    pub(crate) fn new(now_ms: u64) -> Self {
        Self(now_ms as u32)
    }

    /// How long ago it was, milliseconds.
    pub(crate) fn ago_ms(self, now_ms: u64) -> u64 {
        let ago = (now_ms as u32).wrapping_sub(self.0);
        u64::from(if ago > i32::MAX as u32 { 0 } else { ago })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_session_is_its_entry() {
        assert_eq!(size_of::<Conn>(), 72);
        assert_eq!(size_of::<Session>(), 72, "an entry says what it is in a byte that a session has anyway");
    }

    #[test]
    fn a_moment_is_exact_for_days_and_across_the_wrap() {
        const DAY_MS: u64 = 86_400_000;
        for at in [0, 5, u64::from(u32::MAX) - 7, u64::from(u32::MAX), 1 << 40] {
            for ago in [0, 1, 60_000, DAY_MS, 24 * DAY_MS] {
                assert_eq!(Moment::new(at).ago_ms(at + ago), ago);
            }
            assert_eq!(Moment::new(at).ago_ms(at + 25 * DAY_MS), 0);
        }
    }
}
