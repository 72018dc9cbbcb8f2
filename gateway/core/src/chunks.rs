//! A table by small integers that grows a piece at a time: growing copies nothing and leaves no doubled vector behind.
//! What an entry means is not known here.

/// Entries of one piece.
const CHUNK: usize = 256;

/// Entries by number, from 0 on.
#[derive(Debug)]
pub(crate) struct Chunks<T> {
    chunks: Vec<Box<[T; CHUNK]>>,
}

impl<T: Default> Chunks<T> {
    pub(crate) const fn new() -> Self {
        Self { chunks: Vec::new() }
    }

    /// All numbers below this have an entry.
    pub(crate) fn len(&self) -> u32 {
        (self.chunks.len() * CHUNK) as u32
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        let chunk = self.chunks.get(index as usize / CHUNK)?;
        Some(&chunk[index as usize % CHUNK])
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        let chunk = self.chunks.get_mut(index as usize / CHUNK)?;
        Some(&mut chunk[index as usize % CHUNK])
    }

    /// The entry of a number, made with all before it if there is none.
    pub(crate) fn entry(&mut self, index: u32) -> &mut T {
        while self.len() <= index {
            let chunk: Vec<T> = std::iter::repeat_with(T::default).take(CHUNK).collect();
            let Ok(chunk) = chunk.into_boxed_slice().try_into() else { unreachable!("so many were made") };
            self.chunks.push(chunk);
        }
        &mut self.chunks[index as usize / CHUNK][index as usize % CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_stays_where_it_is_while_the_table_grows() {
        let mut table = Chunks::<u64>::new();
        assert_eq!((table.len(), table.get(0)), (0, None));
        *table.entry(300) = 7;
        let place: *const u64 = table.entry(300);
        *table.entry(10_000) = 8;
        assert!(std::ptr::eq(place, table.entry(300)), "growing copies nothing");
        assert_eq!((table.get(300), table.get(10_000), table.get(301)), (Some(&7), Some(&8), Some(&0)));
        assert!(table.len() > 10_000 && table.get_mut(table.len()).is_none());
    }
}
