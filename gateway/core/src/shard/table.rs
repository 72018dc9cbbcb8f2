//! A shard's connections by slot, and its user homes: the sessions of each user, linked from entry to entry. Lookups
//! only; what happens to a session is next door.

use super::alarms::SLOTS_MAX;
use super::session::{Conn, Lobby, NOBODY, Session};
use crate::chunks::Chunks;
use crate::output::ConnId;
use hashbrown::{DefaultHashBuilder, HashTable};
use parley_protocol::UserId;
use std::hash::BuildHasher;

/// The connection table.
#[derive(Debug)]
pub(crate) struct Table {
    entries: Chunks<Conn>,
}

impl Table {
    pub(crate) const fn new() -> Self {
        Self { entries: Chunks::new() }
    }

    /// Every connection's slot is below this.
    pub(crate) fn len(&self) -> u32 {
        self.entries.len()
    }

    pub(crate) fn put(&mut self, conn: ConnId, entry: Conn) {
        assert!(conn.slot < SLOTS_MAX, "connections of a shard are fewer");
        *self.entries.entry(conn.slot) = entry;
    }

    /// Empties a slot; gives what was there.
    pub(crate) fn free(&mut self, slot: u32) -> Conn {
        self.entries.get_mut(slot).map(std::mem::take).unwrap_or_default()
    }

    pub(crate) fn at(&self, slot: u32) -> &Conn {
        self.entries.get(slot).unwrap_or(&Conn::Free)
    }

    pub(crate) fn lobby(&mut self, conn: ConnId) -> Option<&mut Lobby> {
        match self.entries.get_mut(conn.slot) {
            Some(Conn::Lobby(lobby)) if lobby.conn == conn => Some(lobby),
            _ => None,
        }
    }

    pub(crate) fn session(&mut self, conn: ConnId) -> Option<&mut Session> {
        self.session_at_mut(conn.slot).filter(|session| session.generation == conn.generation)
    }

    pub(crate) fn session_at(&self, slot: u32) -> Option<&Session> {
        match self.at(slot) {
            Conn::Session(session) => Some(session),
            _ => None,
        }
    }

    pub(crate) fn session_at_mut(&mut self, slot: u32) -> Option<&mut Session> {
        match self.entries.get_mut(slot) {
            Some(Conn::Session(session)) => Some(session),
            _ => None,
        }
    }

    /// The slots of the sessions that are linked from one on.
    pub(crate) fn linked_from(&self, first: u32) -> impl Iterator<Item = u32> {
        let some = |slot: u32| (slot != NOBODY).then_some(slot);
        std::iter::successors(some(first), move |slot| some(self.session_at(*slot)?.next))
    }

    /// The connection of the session in a slot.
    pub(crate) fn conn_at(&self, slot: u32) -> Option<ConnId> {
        self.session_at(slot).map(|session| ConnId { slot, generation: session.generation })
    }
}

/// User homes: the slot of each user's first session. The other ones follow from it, in the order of their seats; the
/// user's id is in the sessions only.
#[derive(Debug, Default)]
pub(crate) struct Users {
    first: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Users {
    /// Users with a session here.
    pub(crate) fn len(&self) -> usize {
        self.first.len()
    }

    fn is_of(conns: &Table, slot: u32, user_id: UserId) -> bool {
        conns.session_at(slot).is_some_and(|session| session.user_id == user_id)
    }

    /// The slot of a user's first session.
    pub(crate) fn first(&self, conns: &Table, user_id: UserId) -> Option<u32> {
        let hash = self.hasher.hash_one(user_id);
        self.first.find(hash, |slot| Self::is_of(conns, *slot, user_id)).copied()
    }

    /// The slots of a user's sessions.
    pub(crate) fn slots(&self, conns: &Table, user_id: UserId) -> impl Iterator<Item = u32> {
        conns.linked_from(self.first(conns, user_id).unwrap_or(NOBODY))
    }

    /// Puts the session in a slot behind its user's other ones.
    pub(crate) fn link(&mut self, conns: &mut Table, slot: u32, user_id: UserId) {
        let last = self.slots(conns, user_id).last();
        match last.and_then(|last| conns.session_at_mut(last)) {
            Some(last) => last.next = slot,
            None => {
                let hasher = &self.hasher;
                self.first.insert_unique(hasher.hash_one(user_id), slot, |slot| {
                    conns.session_at(*slot).map_or(0, |session| hasher.hash_one(session.user_id))
                });
            }
        }
    }

    /// Takes the session in a slot, which is still there, out of its user's home, if it is in it.
    pub(crate) fn unlink(&mut self, conns: &mut Table, slot: u32, user_id: UserId) {
        let next = conns.session_at(slot).map_or(NOBODY, |session| session.next);
        let Some(first) = self.first(conns, user_id) else { return };
        if first != slot {
            let before = self
                .slots(conns, user_id)
                .find(|other| conns.session_at(*other).is_some_and(|session| session.next == slot));
            if let Some(before) = before.and_then(|before| conns.session_at_mut(before)) {
                before.next = next;
            }
            return;
        }
        let hash = self.hasher.hash_one(user_id);
        if let Ok(mut entry) = self.first.find_entry(hash, |slot| Self::is_of(conns, *slot, user_id)) {
            if next == NOBODY {
                entry.remove();
            } else {
                *entry.get_mut() = next;
            }
        }
    }

    /// Panics when a home has no session, or another user's.
    pub(crate) fn check(&self, conns: &Table) {
        for slot in &self.first {
            let user_id = conns.session_at(*slot).expect("a user home has sessions").user_id;
            assert_eq!(self.first(conns, user_id), Some(*slot), "a user has one home");
            assert!(self.slots(conns, user_id).all(|slot| Self::is_of(conns, slot, user_id)), "a home is of one user");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::session::Seat;
    use super::*;
    use parley_protocol::DeviceId;
    use parley_protocol::wire::Encoding;

    fn seat(conns: &mut Table, users: &mut Users, slot: u32, user_id: u64) {
        let seat = Seat {
            user_id: UserId(user_id),
            name: String::new(),
            device_id: DeviceId(u128::MAX - u128::from(slot)),
            encoding: Encoding::Json,
            mark: None,
            acting: false,
            development: false,
            token_expires_at_ms: 0,
            loopback: false,
            rest: Vec::new(),
        };
        let conn = ConnId { slot, generation: 1 };
        let session = Session::new(conn, &seat, None, 0);
        assert_eq!(session.device_id(), seat.device_id);
        conns.put(conn, Conn::Session(session));
        users.link(conns, slot, seat.user_id);
    }

    fn end(conns: &mut Table, users: &mut Users, slot: u32) {
        let user_id = conns.session_at(slot).expect("a session").user_id;
        users.unlink(conns, slot, user_id);
        conns.free(slot);
    }

    fn slots(conns: &Table, users: &Users, user_id: u64) -> Vec<u32> {
        users.slots(conns, UserId(user_id)).collect()
    }

    #[test]
    fn sessions_of_a_user_stay_in_order_whichever_leaves() {
        let (mut conns, mut users) = (Table::new(), Users::default());
        for leaving in 0..3 {
            (0..3).for_each(|n| seat(&mut conns, &mut users, 10 * n + 300, 7));
            end(&mut conns, &mut users, 10 * leaving + 300);
            let left: Vec<u32> = (0..3).filter(|n| *n != leaving).map(|n| 10 * n + 300).collect();
            assert_eq!(slots(&conns, &users, 7), left);
            users.check(&conns);
            left.into_iter().for_each(|slot| end(&mut conns, &mut users, slot));
            assert_eq!((users.len(), slots(&conns, &users, 7)), (0, vec![]));
        }
    }

    #[test]
    fn who_was_never_let_in_leaves_nobody_behind() {
        let (mut conns, mut users) = (Table::new(), Users::default());
        seat(&mut conns, &mut users, 0, 7);
        seat(&mut conns, &mut users, 1, 7);
        // As one device too many: in the table, and in no home.
        seat(&mut conns, &mut users, 2, 8);
        end(&mut conns, &mut users, 2);
        seat(&mut conns, &mut users, 2, 9);
        users.unlink(&mut conns, 2, UserId(7));
        assert_eq!((slots(&conns, &users, 7), slots(&conns, &users, 9)), (vec![0, 1], vec![2]));
    }

    #[test]
    fn many_users_are_found_while_their_table_grows_and_shrinks() {
        let (mut conns, mut users) = (Table::new(), Users::default());
        (0..10_000).for_each(|slot| seat(&mut conns, &mut users, slot, u64::from(slot / 2) << 22 | 5));
        assert_eq!(users.len(), 5_000);
        assert!((0..5_000).all(|n| slots(&conns, &users, u64::from(n) << 22 | 5) == [2 * n, 2 * n + 1]));
        (0..10_000).filter(|slot| slot % 4 != 3).for_each(|slot| end(&mut conns, &mut users, slot));
        assert!((0..5_000_u64).all(|n| users.first(&conns, UserId(n << 22 | 5)).is_some() == (n % 2 == 1)));
        users.check(&conns);
    }
}
