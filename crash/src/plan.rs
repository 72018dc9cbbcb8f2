//! What the director decides before a run and every client process reads: who there is, which chats there are, and
//! which process plays which device.

use parley_protocol::{ChatId, UserId};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::Path;

/// Members up to which chats of a run go through inboxes: low, so that a small group can cross it.
pub(crate) const INBOX_LIMIT: usize = 12;
/// Devices of one user at most; the numbers of a user's devices are next to each other.
pub(crate) const DEVICES_MAX: u32 = 3;
/// Whom a user writes to directly: the users so many places further.
const PEERS: [usize; 3] = [1, 2, 5];

/// The whole run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Where a gateway may be.
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) processes: u32,
    /// Messages a second of one process at most.
    pub(crate) rate: u32,
    pub(crate) users: Vec<User>,
    pub(crate) groups: Vec<Group>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) token: String,
    pub(crate) user_id: UserId,
    pub(crate) devices: u32,
}

/// A group; its first member owns it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Group {
    pub(crate) chat_id: ChatId,
    /// Members from the beginning to the end, as places in the list of users.
    pub(crate) members: Vec<usize>,
    /// Those whom the owner lets in and takes out all the time. With them the group may cross [`INBOX_LIMIT`].
    pub(crate) guests: Vec<usize>,
}

impl Group {
    /// Whether the guests carry it over the limit.
    pub(crate) fn crosses(&self) -> bool {
        self.members.len() + self.guests.len() > INBOX_LIMIT
    }
}

impl Plan {
    pub(crate) fn load(path: &Path) -> Result<Self, String> {
        let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    pub(crate) fn save(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_vec(self).map_err(|error| error.to_string())?;
        std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// The devices that a process plays: (number, place of its user). Devices of one user are in different processes.
    pub(crate) fn devices_of(&self, process: u32) -> impl Iterator<Item = (u32, usize)> + '_ {
        self.users.iter().enumerate().flat_map(move |(user, of)| {
            let mine = (0..of.devices).filter(move |index| (user as u32 + index) % self.processes == process);
            mine.map(move |index| (user as u32 * DEVICES_MAX + index, user))
        })
    }

    /// The direct chats that a user began, and those that others began with the user.
    pub(crate) fn directs_of(&self, user: usize) -> (Vec<ChatId>, Vec<ChatId>) {
        let count = self.users.len();
        let id = |place: usize| self.users[place % count].user_id;
        let with = |other: usize| ChatId::direct(id(user), id(other));
        let begun = PEERS.iter().filter_map(|ahead| with(user + ahead)).collect();
        let others = PEERS.iter().filter_map(|ahead| with(user + count - ahead)).collect();
        (begun, others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_is_played_once_and_those_of_a_user_by_different_processes() {
        let user = |number: u64| User {
            name: number.to_string(),
            token: String::new(),
            user_id: UserId(number + 1),
            devices: 2 + (number % 2) as u32,
        };
        let users: Vec<User> = (0..20).map(user).collect();
        let plan = Plan { seed: 1, addresses: Vec::new(), processes: 3, rate: 1, users, groups: Vec::new() };
        let mut all: Vec<(u32, u32)> =
            (0..3).flat_map(|process| plan.devices_of(process).map(move |(number, _)| (number, process))).collect();
        all.sort_unstable();
        let expected: u32 = plan.users.iter().map(|user| user.devices).sum();
        assert_eq!(all.len() as u32, expected);
        let same = |pair: &&[(u32, u32)]| pair[0].0 / DEVICES_MAX == pair[1].0 / DEVICES_MAX;
        assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(all.windows(2).filter(same).all(|pair| pair[0].1 != pair[1].1));
    }

    #[test]
    fn a_direct_chat_is_begun_by_one_side_and_known_to_both() {
        let users = (0..20_u64)
            .map(|number| User {
                name: number.to_string(),
                token: String::new(),
                user_id: UserId(number + 1),
                devices: 2,
            })
            .collect();
        let plan = Plan { seed: 1, addresses: Vec::new(), processes: 3, rate: 1, users, groups: Vec::new() };
        let mut begun: Vec<ChatId> = (0..20).flat_map(|user| plan.directs_of(user).0).collect();
        let mut known: Vec<ChatId> = (0..20).flat_map(|user| plan.directs_of(user).1).collect();
        begun.sort_unstable();
        known.sort_unstable();
        assert_eq!(begun.len(), 20 * PEERS.len());
        assert!(begun.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(begun, known);
    }
}
