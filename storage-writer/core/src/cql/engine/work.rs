//! The lists of chats and users with work in flight: four slots that take turns. A list is outlived when every group that
//! was submitted while it was current, or before, is complete; it is deleted before it is taken again.

use crate::cql::rows::{WORK_SLOTS, WorkKey};
use hashbrown::{HashMap, HashSet};
use parley_protocol::{ChatId, UserId};

/// Rows in one write of a list.
const LIST_ROWS_MAX: usize = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Current,
    /// No group after this one is in it.
    Retired {
        last_no: u64,
    },
    /// Nothing needs it any more. Its rows stand until a group has a request to spare: a taker that finds them looks at
    /// what needs nothing.
    Outlived,
    Deleting,
}

#[derive(Debug)]
struct Slot {
    state: State,
    /// Each key with the write that named it.
    keys: HashMap<WorkKey, u64>,
    /// When its first key came.
    since_ms: u64,
}

/// Who waits for a write of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiter {
    /// The first append of a chat.
    Chat(ChatId),
    /// Marks of a member, and the entries of own state that tell of them.
    Mark(ChatId, UserId),
    /// Rows of a user.
    User(UserId),
}

#[derive(Debug)]
pub(super) struct Work {
    slots: Vec<Slot>,
    current: u8,
    next_list: u64,
    /// Writes that are not acknowledged.
    open: HashMap<u64, Vec<Waiter>>,
    keys_max: usize,
    age_ms: u64,
}

/// A write of a list to be made.
pub(super) struct ListWrite {
    pub(super) list: u64,
    pub(super) slot: u8,
    pub(super) keys: Vec<WorkKey>,
}

impl Work {
    pub(super) fn new(keys_max: usize, age_ms: u64) -> Work {
        let free = || Slot { state: State::Free, keys: HashMap::new(), since_ms: 0 };
        let mut slots: Vec<_> = (0..WORK_SLOTS).map(|_| free()).collect();
        slots[0].state = State::Current;
        Work { slots, current: 0, next_list: 1, open: HashMap::new(), keys_max, age_ms }
    }

    /// Makes the next free list current, if it is time; `last_no` is the newest group that was submitted.
    pub(super) fn rotate_if_due(&mut self, now_ms: u64, last_no: u64) {
        let slot = &self.slots[usize::from(self.current)];
        // An old list is outlived and deleted before age makes one more. More than one is left only where lists were full
        // while groups of those before were under way; when these are complete all go but one, so at rest two hold
        // something at the most.
        let aged = now_ms >= slot.since_ms.saturating_add(self.age_ms);
        let rests = self.slots.iter().any(|slot| matches!(slot.state, State::Retired { .. } | State::Outlived));
        let due = slot.keys.len() >= self.keys_max || aged && !rests;
        if slot.keys.is_empty() || !due {
            return;
        }
        let next = (1..WORK_SLOTS).map(|step| (self.current + step) % WORK_SLOTS);
        let free = next.into_iter().find(|slot| self.slots[usize::from(*slot)].state == State::Free);
        if let Some(free) = free {
            self.slots[usize::from(self.current)].state = State::Retired { last_no };
            self.slots[usize::from(free)].state = State::Current;
            self.current = free;
        }
    }

    /// Puts keys that are not in the current list there. Gives for each key the write that its work waits for, if that
    /// is not acknowledged, and the writes to be made.
    pub(super) fn list(&mut self, now_ms: u64, keys: &[WorkKey]) -> (Vec<Option<u64>>, Vec<ListWrite>) {
        let slot = &mut self.slots[usize::from(self.current)];
        let mut writes: Vec<ListWrite> = Vec::new();
        let mut lists = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some(list) = slot.keys.get(key) {
                lists.push(self.open.contains_key(list).then_some(*list));
                continue;
            }
            if slot.keys.is_empty() {
                slot.since_ms = now_ms;
            }
            if writes.last().is_none_or(|write| write.keys.len() >= LIST_ROWS_MAX) {
                let list = self.next_list;
                self.next_list += 1;
                self.open.insert(list, Vec::new());
                writes.push(ListWrite { list, slot: self.current, keys: Vec::new() });
            }
            let write = writes.last_mut().expect("it was pushed");
            write.keys.push(*key);
            slot.keys.insert(*key, write.list);
            lists.push(Some(write.list));
        }
        (lists, writes)
    }

    pub(super) fn wait(&mut self, list: u64, waiter: Waiter) {
        self.open.get_mut(&list).expect("only an open write is waited for").push(waiter);
    }

    pub(super) fn is_open(&self, list: u64) -> bool {
        self.open.contains_key(&list)
    }

    /// A write stands: who waited for it.
    pub(super) fn stands(&mut self, list: u64) -> Vec<Waiter> {
        self.open.remove(&list).unwrap_or_default()
    }

    /// Gives up the lists that nothing needs any more, given the oldest group that is not complete.
    pub(super) fn outlive(&mut self, oldest_no: Option<u64>) {
        for slot in &mut self.slots {
            if let State::Retired { last_no } = slot.state
                && oldest_no.is_none_or(|oldest_no| oldest_no > last_no)
            {
                slot.state = State::Outlived;
                slot.keys = HashMap::new();
            }
        }
    }

    /// Lists that were given up and are to be deleted now. A group that put keys into a list has no request to spare,
    /// one that did not has one. When the current list is about to be full none waits.
    pub(super) fn take_outlived(&mut self, has_listed: bool) -> Vec<u8> {
        let fills = self.slots[usize::from(self.current)].keys.len() >= self.keys_max / 2;
        let lists_max = match (fills, has_listed) {
            (true, _) => self.slots.len(),
            (false, true) => 0,
            (false, false) => 1,
        };
        self.delete(lists_max)
    }

    /// All that were given up but one, which waits for a group with a request to spare.
    pub(super) fn take_surplus(&mut self) -> Vec<u8> {
        let outlived = self.slots.iter().filter(|slot| slot.state == State::Outlived).count();
        self.delete(outlived.saturating_sub(1))
    }

    fn delete(&mut self, lists_max: usize) -> Vec<u8> {
        let outlived = self.slots.iter_mut().enumerate().filter(|(_, slot)| slot.state == State::Outlived);
        let delete = |(at, slot): (usize, &mut Slot)| {
            slot.state = State::Deleting;
            at as u8
        };
        outlived.take(lists_max).map(delete).collect()
    }

    pub(super) fn deleted(&mut self, slot: u8) {
        let slot = &mut self.slots[usize::from(slot)];
        if slot.state == State::Deleting {
            slot.state = State::Free;
        }
    }

    pub(super) fn keys(&self) -> usize {
        self.slots.iter().map(|slot| slot.keys.len()).sum()
    }

    pub(super) fn check_invariants(&self) {
        let current: Vec<_> = self.slots.iter().map(|slot| slot.state == State::Current).collect();
        assert_eq!(current.iter().filter(|current| **current).count(), 1, "one list is current");
        assert!(current[usize::from(self.current)]);
        for slot in &self.slots {
            let empty = matches!(slot.state, State::Free | State::Outlived | State::Deleting);
            assert!(!empty || slot.keys.is_empty(), "a list that is given up has no keys");
        }
        let named: HashSet<_> = self.slots.iter().flat_map(|slot| slot.keys.values()).collect();
        assert!(self.open.keys().all(|list| named.contains(list)), "a write under way has its keys in a list");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(at: u64) -> WorkKey {
        WorkKey::User(UserId(at))
    }

    #[test]
    fn a_key_is_listed_once_and_waited_for_until_it_stands() {
        let mut work = Work::new(4_096, 30_000);
        let (lists, writes) = work.list(5, &[key(1), key(2)]);
        assert_eq!((lists, writes.len()), (vec![Some(1), Some(1)], 1));
        let (lists, writes) = work.list(6, &[key(2), key(3)]);
        assert_eq!((lists, writes[0].keys.clone()), (vec![Some(1), Some(2)], vec![key(3)]));
        work.stands(1);
        let (lists, writes) = work.list(7, &[key(1), key(3)]);
        assert_eq!((lists, writes.len()), (vec![None, Some(2)], 0));
        work.check_invariants();
    }

    #[test]
    fn long_lists_are_written_in_parts() {
        let mut work = Work::new(4_096, 30_000);
        let keys: Vec<_> = (0..2_500).map(key).collect();
        let (_, writes) = work.list(0, &keys);
        assert_eq!(writes.iter().map(|write| write.keys.len()).collect::<Vec<_>>(), [1_000, 1_000, 500]);
    }

    /// Groups 1 to 3 fill a list each, group 4 begins another; what they wrote stands.
    fn three_full_and_one_begun() -> Work {
        let mut work = Work::new(4, 30_000);
        for no in 1..=4 {
            work.rotate_if_due(no, no - 1);
            let keys: Vec<_> = (0..if no < 4 { 4 } else { 1 }).map(key).collect();
            let (_, writes) = work.list(no, &keys);
            assert_eq!((writes.len(), u64::from(writes[0].slot)), (1, no - 1));
            writes.iter().for_each(|write| drop(work.stands(write.list)));
            work.check_invariants();
        }
        work
    }

    #[test]
    fn lists_take_turns_and_go_when_everything_before_is_complete() {
        let mut work = three_full_and_one_begun();
        let outlived = |work: &mut Work, oldest_no| {
            work.outlive(oldest_no);
            work.check_invariants();
            [true, false, false, false].map(|has_listed| work.take_outlived(has_listed))
        };
        assert_eq!(outlived(&mut work, Some(1)), [[]; 4].map(|none: [u8; 0]| none.to_vec()));
        let two = [vec![], vec![0], vec![1], vec![]];
        assert_eq!(
            outlived(&mut work, Some(3)),
            two,
            "with those before it, each once, and where a request is to spare"
        );
        let (_, writes) = work.list(5, &[key(1), key(2), key(3)]);
        writes.iter().for_each(|write| drop(work.stands(write.list)));
        work.rotate_if_due(6, 6);
        assert_eq!(work.list(6, &[key(0)]).1.len(), 0, "a list is taken again when its deletion stands");
        work.deleted(1);
        work.rotate_if_due(6, 6);
        assert_eq!(work.list(6, &[key(0)]).1[0].slot, 1);
        assert_eq!(outlived(&mut work, None), [vec![], vec![2], vec![3], vec![]]);
        work.check_invariants();
    }

    #[test]
    fn at_rest_two_lists_hold_something_at_the_most() {
        let mut work = three_full_and_one_begun();
        work.outlive(Some(3));
        assert_eq!(work.take_surplus(), [0], "one waits for a group with a request to spare");
        work.outlive(None);
        assert_eq!(work.take_surplus(), [1], "beside the current one");
        assert_eq!(work.take_surplus(), [0u8; 0]);
        work.check_invariants();
    }

    #[test]
    fn age_makes_no_list_while_one_is_left_of_before() {
        let mut work = Work::new(4, 30_000);
        work.list(0, &[key(0)]);
        work.rotate_if_due(30_000, 1);
        assert_eq!(work.list(30_000, &[key(0)]).1[0].slot, 1, "it is old");
        work.rotate_if_due(60_000, 2);
        assert_eq!(work.list(60_000, &[key(0)]).1.len(), 0, "groups of the one before are under way");
        work.outlive(None);
        work.rotate_if_due(60_000, 2);
        assert_eq!(work.list(60_000, &[key(0)]).1.len(), 0, "its rows stand");
        assert_eq!(work.take_outlived(false), [0]);
        work.deleted(0);
        work.rotate_if_due(60_000, 2);
        assert_eq!(work.list(60_000, &[key(0)]).1[0].slot, 2);
    }

    #[test]
    fn no_deletion_waits_when_the_list_fills() {
        let mut work = three_full_and_one_begun();
        work.outlive(None);
        assert_eq!(work.take_outlived(true), [0u8; 0]);
        let (_, writes) = work.list(5, &[key(5)]);
        writes.iter().for_each(|write| drop(work.stands(write.list)));
        assert_eq!(work.take_outlived(true), [0, 1, 2]);
    }
}
