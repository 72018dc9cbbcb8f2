//! What a shard keeps of one connection: in the lobby, and as a session. State only; what happens to it is next door.

use crate::mesh::Mesh;
use crate::output::{ConnId, Outputs};
use crate::ws::Decoder;
use parley_protocol::wire::Encoding;
use parley_protocol::{ChatId, ClientFrame, DeviceId, UserId};

use super::stream::Stream;

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
    Session(Box<Session>),
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

/// Why a session's input stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// For a credit of a shard.
    Credit(u16),
    /// For room in its own outbox.
    Outbox,
    /// For answers to its own requests.
    Answers,
}

/// A frame that could not be acted on yet, and what came after it.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) frame: ClientFrame,
    pub(crate) wait: Wait,
    pub(crate) stash: Vec<u8>,
    /// How much of the stash was acted on.
    pub(crate) at: usize,
    /// The socket is not read.
    pub(crate) paused: bool,
}

/// A device's live connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) conn: ConnId,
    pub(crate) encoding: Encoding,
    pub(crate) acting: bool,
    pub(crate) loopback: bool,
    pub(crate) development: bool,
    /// A close is under way: nothing more is read or sent.
    pub(crate) closing: bool,
    /// Told to reconnect; is closed when its requests are answered.
    pub(crate) draining: bool,
    pub(crate) mark_armed: bool,
    pub(crate) beside_armed: bool,
    pub(crate) waits_to_read: bool,
    pub(crate) requests: u16,
    pub(crate) user_id: UserId,
    pub(crate) device_id: DeviceId,
    pub(crate) decoder: Decoder,
    pub(crate) stream: Stream,
    /// Bytes given to the shell and not yet taken by the kernel.
    pub(crate) queued: usize,
    /// When the client last sent something.
    pub(crate) heard_ms: u64,
    /// When the last mark left by itself.
    pub(crate) marked_ms: u64,
    /// It took something since the last look.
    pub(crate) took: bool,
    /// Since when bytes wait and nothing is taken.
    pub(crate) stalled_since_ms: Option<u64>,
    pub(crate) token_expires_at_ms: u64,
    pub(crate) rate: Rate,
    pub(crate) parked: Option<Box<Parked>>,
    /// Whole frames that go out with the next one, or soon.
    pub(crate) beside: Vec<u8>,
    pub(crate) subscriptions: Vec<ChatId>,
    /// Asked for, not answered, and not taken back.
    pub(crate) subscribing: Vec<ChatId>,
}

/// A token bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// Thousandths of a command.
    level: u64,
    at_ms: u64,
}

impl Rate {
    pub(crate) fn new(now_ms: u64, burst: u32) -> Self {
        Self { level: u64::from(burst) * 1000, at_ms: now_ms }
    }

    /// Takes one, or says in how many milliseconds there is one.
    pub(crate) fn take(&mut self, now_ms: u64, per_s: u32, burst: u32) -> Result<(), u32> {
        let per_s = u64::from(per_s.max(1));
        let earned = now_ms.saturating_sub(self.at_ms).saturating_mul(per_s);
        self.level = self.level.saturating_add(earned).min(u64::from(burst.max(1)) * 1000);
        self.at_ms = now_ms;
        match self.level.checked_sub(1000) {
            Some(rest) => {
                self.level = rest;
                Ok(())
            }
            None => Err((1000 - self.level).div_ceil(per_s) as u32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_the_rest_is_paced() {
        let mut rate = Rate::new(0, 3);
        assert_eq!((0..4).map(|_| rate.take(0, 10, 3)).collect::<Vec<_>>(), [Ok(()), Ok(()), Ok(()), Err(100)]);
        assert_eq!(rate.take(99, 10, 3), Err(1));
        assert_eq!(rate.take(100, 10, 3), Ok(()));
    }
}
