//! Names of commands in chats that are looked up often: what was read of them once, and everything that was submitted
//! since, so that a name which was never used needs no request. Fingerprints only: one that is found here is asked for.
//!
//! A set is whole when its scan has answered. A quorum read sees the names of all appends that were complete before it;
//! those of appends in flight, and of later ones, are entered as they are submitted. No other writer adds any: what
//! a dead one left to be derived was derived before this one served.

use crate::planted::{self, Bug};
use crate::store::CommandName;
use hashbrown::{HashMap, HashSet};
use parley_protocol::partition::split_mix_64;
use parley_protocol::{ChatId, ClientMsgId, UserId};
use std::collections::VecDeque;

/// A chat longer than this is not scanned.
const SCAN_NAMES_MAX: u64 = 4_096;
/// Names that a scan may read for each look-up which was made of that chat: so scans cost a bounded part of them.
const SCAN_NAMES_A_LOOK_UP: u64 = 16;

/// Counts scans: a chat may be forgotten and scanned again while the first scan is under way, which then knows nothing
/// of what was submitted between.
pub(super) type ScanId = u64;

#[derive(Debug, Default)]
struct Known {
    look_ups: u64,
    /// None until it pays to scan.
    names: Option<HashSet<u64>>,
    /// The scan under way; none when it has answered.
    scan: Option<ScanId>,
    /// Some name does not decode: those that do are asked for one by one.
    damaged: bool,
    used: bool,
}

/// Chats with the fingerprints of their names, bounded; those go first that were not used since they were passed by.
#[derive(Debug)]
pub(super) struct KnownNames {
    chats: HashMap<ChatId, Known>,
    clock: VecDeque<ChatId>,
    scans: ScanId,
    /// Chats and fingerprints.
    len: usize,
    len_max: usize,
}

fn fingerprint(sender: UserId, client_msg_id: ClientMsgId) -> u64 {
    let (high, low) = ((client_msg_id.0 >> 64) as u64, client_msg_id.0 as u64);
    split_mix_64(split_mix_64(split_mix_64(sender.0) ^ high) ^ low)
}

impl KnownNames {
    pub(super) fn new(len_max: usize) -> KnownNames {
        KnownNames { chats: HashMap::new(), clock: VecDeque::new(), scans: 0, len: 0, len_max }
    }

    /// The name was never used.
    pub(super) fn is_unused(&mut self, name: &CommandName) -> bool {
        let Some(known) = self.chats.get_mut(&name.chat_id) else { return false };
        known.used = true;
        let print = fingerprint(name.sender, name.client_msg_id);
        known.scan.is_none() && known.names.as_ref().is_some_and(|names| !names.contains(&print))
    }

    /// A name of a chat that is `head` long is looked up: whether all of them are to be read instead. Then
    /// [`KnownNames::enter`] wants those in flight, and [`KnownNames::scanned`] or [`KnownNames::give_up`] follows.
    pub(super) fn begin_scan(&mut self, chat_id: ChatId, head: u64) -> Option<ScanId> {
        if !self.chats.contains_key(&chat_id) {
            self.make_room(1);
            if self.len >= self.len_max {
                return None;
            }
            self.len += 1;
            self.clock.push_back(chat_id);
        }
        let known = self.chats.entry(chat_id).or_default();
        known.used = true;
        known.look_ups += 1;
        let pays = head <= SCAN_NAMES_MAX && head <= known.look_ups.saturating_mul(SCAN_NAMES_A_LOOK_UP);
        if !pays || known.names.is_some() || known.damaged {
            return None;
        }
        self.scans += 1;
        (known.names, known.scan) = (Some(HashSet::new()), Some(self.scans));
        known.scan
    }

    /// A command of this name is submitted, or in flight when a scan begins.
    pub(super) fn enter(&mut self, name: &CommandName) {
        if planted::has(Bug::KnownNamesMissed) {
            return;
        }
        let Some(names) = self.chats.get_mut(&name.chat_id).and_then(|known| known.names.as_mut()) else { return };
        if names.insert(fingerprint(name.sender, name.client_msg_id)) {
            self.len += 1;
            self.make_room(0);
        }
    }

    /// A scan answered.
    pub(super) fn scanned<'a>(&mut self, chat_id: ChatId, scan: ScanId, found: impl Iterator<Item = &'a CommandName>) {
        let Some(known) = self.chats.get_mut(&chat_id).filter(|known| known.scan == Some(scan)) else { return };
        let Some(names) = &mut known.names else { return };
        let before = names.len();
        names.extend(found.map(|name| fingerprint(name.sender, name.client_msg_id)));
        known.scan = None;
        self.len += names.len() - before;
        self.make_room(0);
    }

    /// A scan met a name that does not decode: there is no other while the chat is remembered.
    pub(super) fn give_up(&mut self, chat_id: ChatId) {
        if let Some(known) = self.chats.get_mut(&chat_id) {
            self.len -= known.names.take().map_or(0, |names| names.len());
            (known.scan, known.damaged) = (None, true);
        }
    }

    /// Forgets chats until `more` fit.
    fn make_room(&mut self, more: usize) {
        // Two rounds at the most: the first clears what the second finds.
        for _ in 0..self.clock.len() * 2 {
            if self.len + more <= self.len_max {
                return;
            }
            let Some(chat_id) = self.clock.pop_front() else { return };
            let known = self.chats.get_mut(&chat_id).expect("the clock holds what the map holds");
            if std::mem::take(&mut known.used) {
                self.clock.push_back(chat_id);
            } else if let Some(known) = self.chats.remove(&chat_id) {
                self.len -= 1 + known.names.map_or(0, |names| names.len());
            }
        }
    }

    pub(super) fn check_invariants(&self) {
        assert_eq!(self.chats.len(), self.clock.len());
        let names: usize = self.chats.values().filter_map(|known| known.names.as_ref()).map(HashSet::len).sum();
        assert_eq!(self.len, self.chats.len() + names);
        assert!(self.len <= self.len_max, "{} of {}", self.len, self.len_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: ChatId = ChatId(7);

    fn name(number: u128) -> CommandName {
        CommandName { chat_id: CHAT, sender: UserId(1), client_msg_id: ClientMsgId(number) }
    }

    #[test]
    fn a_scan_knows_what_stood_what_flew_and_what_came() {
        let mut known = KnownNames::new(100);
        let scan = known.begin_scan(CHAT, 16).expect("it pays at once");
        assert_eq!(known.begin_scan(CHAT, 16), None, "one at a time");
        known.enter(&name(1));
        assert!(!known.is_unused(&name(9)), "nothing is known before it has answered");
        known.scanned(CHAT, scan, [name(2)].iter());
        known.enter(&name(3));
        known.check_invariants();
        let unused: Vec<bool> = (1..=4).map(|number| known.is_unused(&name(number))).collect();
        assert_eq!(unused, [false, false, false, true]);
        let other = CommandName { sender: UserId(2), ..name(3) };
        assert!(known.is_unused(&other));
        assert!(!known.is_unused(&CommandName { chat_id: ChatId(8), ..name(4) }));
    }

    #[test]
    fn a_long_chat_is_scanned_when_it_was_asked_often_and_never_above_a_length() {
        let mut known = KnownNames::new(100);
        let asked = (1..).find(|_| known.begin_scan(CHAT, 100).is_some());
        assert_eq!(asked, Some(7), "16 names a look-up");
        let long = SCAN_NAMES_MAX + 1;
        assert!((0..long).all(|_| known.begin_scan(ChatId(8), long).is_none()));
    }

    #[test]
    fn a_scan_of_before_a_chat_was_forgotten_makes_nothing_whole() {
        let mut known = KnownNames::new(100);
        let first = known.begin_scan(CHAT, 1).expect("it pays");
        known.chats.get_mut(&CHAT).expect("known").used = false;
        known.len_max = 1;
        known.make_room(1);
        known.len_max = 100;
        assert!(known.chats.is_empty());
        // Submitted and complete here: neither in the first scan nor in flight at the second.
        let second = known.begin_scan(CHAT, 1).expect("it pays");
        known.scanned(CHAT, first, [].iter());
        assert!(!known.is_unused(&name(1)));
        known.scanned(CHAT, second, [name(1)].iter());
        assert!(!known.is_unused(&name(1)) && known.is_unused(&name(2)));
    }

    #[test]
    fn the_bound_forgets_whom_nobody_asks_for() {
        let mut known = KnownNames::new(8);
        for chat in 0..50 {
            let name = |number| CommandName { chat_id: ChatId(chat), ..name(number) };
            if let Some(scan) = known.begin_scan(ChatId(chat), 1) {
                known.enter(&name(0));
                known.scanned(ChatId(chat), scan, [name(1), name(2)].iter());
            }
            known.check_invariants();
        }
        let scan = known.begin_scan(CHAT, 1);
        if let Some(scan) = scan {
            // More than there is room for: all goes.
            let names: Vec<_> = (0..20).map(name).collect();
            known.scanned(CHAT, scan, names.iter());
        }
        known.check_invariants();
        assert!(!known.is_unused(&name(99)));
    }
}
