//! The table of connections that both drivers keep. It grows in chunks that never move: a million entries are not
//! copied to make room for one more, and what is not used yet takes no memory.

use gateway_core::output::ConnId;

/// Entries of a chunk.
const CHUNK_LEN: u32 = 1 << CHUNK_BITS;
const CHUNK_BITS: u32 = 10;
/// Ends the list of free slots.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
enum Entry<T> {
    /// Free, and the next one that is.
    Free(u32),
    Taken(T),
}

#[derive(Debug)]
struct Slot<T> {
    /// Counts the slot's uses, so an id of a former use finds nothing.
    generation: u32,
    entry: Entry<T>,
}

/// Connections by slot.
#[derive(Debug)]
pub(crate) struct Table<T> {
    chunks: Vec<Box<[Slot<T>]>>,
    /// Slots that were ever used: from 0 to here.
    used: u32,
    /// The slot that was freed last.
    free: u32,
    len: usize,
    len_max: usize,
}

impl<T> Table<T> {
    pub(crate) fn new(len_max: usize) -> Self {
        Self { chunks: Vec::new(), used: 0, free: NONE, len: 0, len_max }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Slots that were ever used, all below this number.
    pub(crate) fn used(&self) -> u32 {
        self.used
    }

    /// The slot that `insert` takes next; `None` when the table is full.
    pub(crate) fn next_slot(&self) -> Option<u32> {
        (self.len < self.len_max).then_some(if self.free == NONE { self.used } else { self.free })
    }

    pub(crate) fn insert(&mut self, value: T) -> Option<ConnId> {
        let slot = self.next_slot()?;
        if slot == self.used {
            if slot & (CHUNK_LEN - 1) == 0 {
                let chunk = (0..CHUNK_LEN).map(|_| Slot { generation: 0, entry: Entry::Free(NONE) });
                self.chunks.push(chunk.collect());
            }
            self.used += 1;
        }
        let entry = self.slot_mut(slot).expect("a slot that was used or made above");
        entry.generation = entry.generation.wrapping_add(1).max(1);
        let generation = entry.generation;
        let Entry::Free(next) = std::mem::replace(&mut entry.entry, Entry::Taken(value)) else {
            unreachable!("the next slot is free");
        };
        self.free = next;
        self.len += 1;
        Some(ConnId { slot, generation })
    }

    fn slot_mut(&mut self, slot: u32) -> Option<&mut Slot<T>> {
        self.chunks.get_mut((slot >> CHUNK_BITS) as usize)?.get_mut((slot & (CHUNK_LEN - 1)) as usize)
    }

    pub(crate) fn get_mut(&mut self, conn: ConnId) -> Option<&mut T> {
        match self.slot_mut(conn.slot) {
            Some(Slot { generation, entry: Entry::Taken(value) }) if *generation == conn.generation => Some(value),
            _ => None,
        }
    }

    /// The connection that uses a slot now.
    pub(crate) fn at_mut(&mut self, slot: u32) -> Option<(ConnId, &mut T)> {
        match self.slot_mut(slot) {
            Some(Slot { generation, entry: Entry::Taken(value) }) => {
                Some((ConnId { slot, generation: *generation }, value))
            }
            _ => None,
        }
    }

    pub(crate) fn remove(&mut self, conn: ConnId) -> Option<T> {
        self.get_mut(conn)?;
        let free = self.free;
        let slot = self.slot_mut(conn.slot).expect("it was found above");
        let Entry::Taken(value) = std::mem::replace(&mut slot.entry, Entry::Free(free)) else { return None };
        self.free = conn.slot;
        self.len -= 1;
        Some(value)
    }
}

/// Bytes that a connection takes in a table, used or not.
#[cfg(test)]
pub(crate) const fn slot_bytes<T>() -> usize {
    size_of::<Slot<T>>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_a_former_use_finds_nothing() {
        let mut table = Table::new(1);
        let first = table.insert('a').expect("room");
        assert_eq!(table.insert('b'), None);
        assert_eq!(table.remove(first), Some('a'));
        assert_eq!((table.remove(first), table.len()), (None, 0));
        let second = table.insert('c').expect("room");
        assert_eq!(second.slot, first.slot);
        assert_eq!(table.get_mut(first), None);
        assert_eq!(table.get_mut(second), Some(&mut 'c'));
    }

    #[test]
    fn slots_are_dense_and_the_one_freed_last_is_used_first() {
        let count = CHUNK_LEN as usize * 2 + 7;
        let mut table = Table::new(count);
        let ids: Vec<ConnId> = (0..count).map(|n| table.insert(n).expect("room")).collect();
        assert!(ids.iter().enumerate().all(|(n, id)| id.slot as usize == n && id.generation == 1));
        assert_eq!((table.next_slot(), table.used() as usize), (None, count));
        for slot in [3, 2000, 1023, 1024] {
            assert_eq!(table.remove(ids[slot]), Some(slot));
        }
        for slot in [1024, 1023, 2000, 3] {
            assert_eq!(table.next_slot(), Some(slot));
            assert_eq!(table.insert(0), Some(ConnId { slot, generation: 2 }));
        }
        assert_eq!(table.insert(0), None);
        let (id, value) = table.at_mut(2000).expect("taken");
        assert_eq!((id.generation, *value), (2, 0));
    }
}
