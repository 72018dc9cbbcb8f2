//! What is in flight, as readers and loads must know it.

use super::EngineOptions;
use crate::store::CommandName;
use hashbrown::{HashMap, HashSet};
use parley_protocol::{ChatId, UserId};
use std::collections::VecDeque;

/// The first numbers that are not known to be durable: what a reader finds at or above them is not shown. To be asked
/// after the rows were read.
#[derive(Debug, Default)]
pub struct InFlight {
    /// Group and first `seq`, in the order of their submission.
    chats: HashMap<ChatId, Vec<(u64, u64)>>,
    /// Group and first number.
    users: HashMap<UserId, Vec<(u64, u64)>>,
    aside: HashSet<Aside>,
}

/// What a taker set aside for its damaged rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Aside {
    /// A chat.
    Chat(ChatId),
    /// The inbox of a user.
    Inbox(UserId),
}

impl InFlight {
    /// The lowest `seq` of a chat that is in flight.
    pub fn chat(&self, chat_id: ChatId) -> Option<u64> {
        self.chats.get(&chat_id)?.iter().map(|(_, first)| *first).min()
    }

    /// The lowest number of an inbox that is in flight.
    pub fn user(&self, user_id: UserId) -> Option<u64> {
        self.users.get(&user_id)?.iter().map(|(_, first)| *first).min()
    }

    /// Whether a chat or an inbox is set aside.
    pub fn is_aside(&self, aside: Aside) -> bool {
        self.aside.contains(&aside)
    }

    pub(super) fn set_aside(&mut self, aside: Aside) {
        self.aside.insert(aside);
    }

    /// Nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.chats.is_empty() && self.users.is_empty()
    }

    pub(super) fn enter_chat(&mut self, no: u64, chat_id: ChatId, seq: u64) {
        self.chats.entry(chat_id).or_default().push((no, seq));
    }

    /// Several of one group are one, if they come together; the first is the lowest.
    pub(super) fn enter_user(&mut self, no: u64, user_id: UserId, inbox_seq: u64) {
        let entries = self.users.entry(user_id).or_default();
        if entries.last().is_none_or(|(last, _)| *last != no) {
            entries.push((no, inbox_seq));
        }
    }

    pub(super) fn leave_chat(&mut self, no: u64, chat_id: ChatId) {
        if let Some(entries) = self.chats.get_mut(&chat_id) {
            entries.retain(|(of, _)| *of != no);
            if entries.is_empty() {
                self.chats.remove(&chat_id);
            }
        }
    }

    pub(super) fn leave_user(&mut self, no: u64, user_id: UserId) {
        if let Some(entries) = self.users.get_mut(&user_id) {
            entries.retain(|(of, _)| *of != no);
            if entries.is_empty() {
                self.users.remove(&user_id);
            }
        }
    }
}

/// The newest group that touches each key: a load of the key waits for it.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) chats: HashMap<ChatId, u64>,
    /// Those with a row of their own in the group: the load of a member of a busy channel waits for no other.
    pub(super) members: HashMap<(ChatId, UserId), u64>,
    pub(super) users: HashMap<UserId, u64>,
    pub(super) names: HashMap<CommandName, u64>,
    pub(super) uniques: HashMap<String, u64>,
}

/// The keys of one group.
#[derive(Debug, Default)]
pub(super) struct Keys {
    pub(super) chats: Vec<ChatId>,
    pub(super) members: Vec<(ChatId, UserId)>,
    pub(super) users: Vec<UserId>,
    pub(super) names: Vec<CommandName>,
    pub(super) uniques: Vec<String>,
}

fn leave<K: Eq + std::hash::Hash>(map: &mut HashMap<K, u64>, keys: &[K], no: u64) {
    for key in keys {
        if map.get(key) == Some(&no) {
            map.remove(key);
        }
    }
}

impl Touched {
    pub(super) fn is_empty(&self) -> bool {
        let chats = self.chats.is_empty() && self.members.is_empty();
        chats && self.users.is_empty() && self.names.is_empty() && self.uniques.is_empty()
    }

    pub(super) fn enter(&mut self, no: u64, keys: &Keys) {
        self.chats.extend(keys.chats.iter().map(|key| (*key, no)));
        self.members.extend(keys.members.iter().map(|key| (*key, no)));
        self.users.extend(keys.users.iter().map(|key| (*key, no)));
        self.names.extend(keys.names.iter().map(|key| (*key, no)));
        self.uniques.extend(keys.uniques.iter().map(|key| (key.clone(), no)));
    }

    pub(super) fn leave(&mut self, no: u64, keys: &Keys) {
        leave(&mut self.chats, &keys.chats, no);
        leave(&mut self.members, &keys.members, no);
        leave(&mut self.users, &keys.users, no);
        leave(&mut self.names, &keys.names, no);
        leave(&mut self.uniques, &keys.uniques, no);
    }
}

/// What is known of a chat, so that it need not be read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fact {
    /// The newest `seq` that was submitted.
    pub(super) head: Option<u64>,
    /// The `seq` of the checkpoint in each slot.
    pub(super) slots: Option<[Option<u64>; 2]>,
    used: bool,
}

/// Facts of chats, bounded; those go first that were not used since they were last passed by.
#[derive(Debug)]
pub(super) struct Facts {
    map: HashMap<ChatId, Fact>,
    clock: VecDeque<ChatId>,
    chats_max: usize,
}

impl Facts {
    pub(super) fn new(options: &EngineOptions) -> Facts {
        Facts { map: HashMap::new(), clock: VecDeque::new(), chats_max: options.chats_known_max.max(1) }
    }

    pub(super) fn head(&mut self, chat_id: ChatId) -> Option<u64> {
        let fact = self.map.get_mut(&chat_id)?;
        fact.used = true;
        fact.head
    }

    /// What is known of a chat, to be changed.
    pub(super) fn of(&mut self, chat_id: ChatId) -> &mut Fact {
        let known = self.map.contains_key(&chat_id);
        if !known {
            self.make_room();
            self.clock.push_back(chat_id);
        }
        let fact = self.map.entry(chat_id).or_default();
        fact.used = true;
        fact
    }

    /// Before one more is remembered.
    fn make_room(&mut self) {
        if self.map.len() < self.chats_max {
            return;
        }
        // Two rounds at the most: the first clears what the second finds.
        for _ in 0..self.clock.len() * 2 {
            if self.map.len() < self.chats_max {
                return;
            }
            let Some(chat_id) = self.clock.pop_front() else { return };
            let fact = self.map.get_mut(&chat_id).expect("the clock holds what the map holds");
            if std::mem::take(&mut fact.used) {
                self.clock.push_back(chat_id);
            } else {
                self.map.remove(&chat_id);
            }
        }
    }

    pub(super) fn check_invariants(&self) {
        assert_eq!(self.map.len(), self.clock.len());
        assert!(self.map.len() <= self.chats_max);
    }
}
