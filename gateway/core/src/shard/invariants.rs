//! What always holds between two events of a shard. Tests and the simulator run this pass now and then.

use super::Shard;
use super::session::{Conn, Flag};

impl Shard {
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
