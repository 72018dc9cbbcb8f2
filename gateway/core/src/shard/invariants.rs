//! What always holds between two events of a shard. Tests and the simulator run this pass now and then.

use super::Shard;
use super::session::{Conn, Flag};
use crate::output::ConnId;
use parley_protocol::UserId;

impl Shard {
    /// For the simulator: bytes of a connection's input that wait because a frame before them waits; none if no frame does.
    pub fn sent_ahead(&self, conn: ConnId) -> Option<usize> {
        let session = self.conns.session_at(conn.slot).filter(|_| self.conns.conn_at(conn.slot) == Some(conn))?;
        session.busy()?.parked.as_ref().map(|parked| parked.waits())
    }

    /// For the simulator: the most bytes that wait beside the stream of a session. Walks over all connections.
    pub fn beside_most(&self) -> usize {
        let sessions = (0..self.conns.len()).filter_map(|slot| self.conns.session_at(slot));
        sessions.filter_map(|session| Some(session.busy()?.beside.len())).max().unwrap_or(0)
    }

    /// For the simulator: a nudge to everybody is under way, and past its first step.
    pub fn nudges_on(&self) -> bool {
        self.nudge_walk.is_some_and(|slot| slot > 0)
    }

    /// For the simulator: whether a user of a shard that had no room is owed a nudge, one by one or with everybody.
    pub fn owes(&self, shard: u16, user_id: UserId) -> bool {
        self.owed.get(shard as usize).is_some_and(|owed| owed.nudge_all || owed.nudges.contains(&user_id))
    }

    /// For the simulator: the users that are owed a nudge one by one because a shard had no room, and whether everybody
    /// there is.
    pub fn owed_to(&self, shard: u16) -> (usize, bool) {
        self.owed.get(shard as usize).map_or((0, false), |owed| (owed.nudges.len(), owed.nudge_all))
    }

    /// Panics when something that always holds does not. Costs a walk over all connections: for tests.
    pub fn check_invariants(&self) {
        let (mut sessions, mut lobby) = (0, 0);
        for slot in 0..self.conns.len() {
            let session = match self.conns.at(slot) {
                Conn::Free => continue,
                Conn::Lobby(_) => {
                    lobby += 1;
                    continue;
                }
                Conn::Session(session) => session,
            };
            sessions += 1;
            // Who asks again for what it has is under way as well.
            let under_way = self.options.subscriptions_max + usize::from(self.options.requests_in_flight_max);
            assert!(!session.is(Flag::Touched), "an event ends with a look at who was busy in it");
            let Some(busy) = session.busy() else { continue };
            assert!(busy.held.len() <= self.options.held_items_max, "items behind a hole are bounded");
            assert!(busy.subscriptions.len() <= self.options.subscriptions_max, "subscriptions are bounded");
            assert!(busy.subscribing.len() <= under_way, "subscriptions under way are bounded");
            assert!(busy.requests <= self.options.requests_in_flight_max, "requests of a session are bounded");
        }
        assert_eq!((sessions, lobby), (self.stats.sessions, self.lobby_count), "connections are counted");
        assert!(self.lobby_count <= self.options.lobby_connections_max, "the lobby is bounded");
        assert!(self.reads_under_way <= self.options.inbox_reads_max, "inbox reads are bounded");
        for shard in 0..self.options.shards {
            let open = self.credits.open(shard);
            assert!(open <= self.options.mesh_requests_max.max(1), "requests to shard {shard} are bounded: {open}");
        }
        self.users.check(&self.conns);
    }
}
