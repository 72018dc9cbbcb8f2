//! What always holds between two events of a shard. Tests and the simulator run this pass now and then.

use super::Shard;
use super::session::Conn;

impl Shard {
    /// Panics when something that always holds does not. Costs a walk over all connections: for tests.
    pub fn check_invariants(&self) {
        let (mut sessions, mut lobby) = (0, 0);
        for conn in &self.conns {
            let session = match conn {
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
            assert!(session.stream.held() <= self.options.held_items_max, "items behind a hole are bounded");
            assert!(session.subscriptions.len() <= self.options.subscriptions_max, "subscriptions are bounded");
            assert!(session.subscribing.len() <= under_way, "subscriptions under way are bounded");
            assert!(session.requests <= self.options.requests_in_flight_max, "requests of a session are bounded");
        }
        assert_eq!((sessions, lobby), (self.stats.sessions, self.lobby_count), "connections are counted");
        assert!(self.lobby_count <= self.options.lobby_connections_max, "the lobby is bounded");
        assert!(self.reads_under_way <= self.options.inbox_reads_max, "inbox reads are bounded");
        for shard in 0..self.options.shards {
            let open = self.credits.open(shard);
            assert!(open <= self.options.mesh_requests_max.max(1), "requests to shard {shard} are bounded: {open}");
        }
        assert!(self.users.values().all(|home| !home.sessions.is_empty()), "a user home has sessions");
    }
}
