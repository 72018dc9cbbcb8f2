//! Which command names may be stored: a blocked Bloom filter over all of them (Putze, Sanders, Singler, "Cache-, Hash-
//! and Space-Efficient Bloom Filters", WEA 2007). Almost every command is new, and asking the engine for a name that is
//! not there is a search through its memory; the filter answers with one cache line. It only ever says "certainly not"
//! or "look": what it cannot know, the engine is asked.

use super::layout;
use super::view::EmbeddedView;
use parley_protocol::partition::split_mix_64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use storage_core::store::{CommandName, ReadError};

/// A block is a cache line.
const BLOCK_WORDS: usize = 8;
const BLOCK_BITS: u64 = 64 * BLOCK_WORDS as u64;
/// Bits set for a name. With 12 bits of filter a name, one answer in 200 is a needless "look".
const PROBES: u32 = 6;
const _: () = assert!(BLOCK_BITS.is_power_of_two() && PROBES * BLOCK_BITS.trailing_zeros() <= u64::BITS);
/// Names scanned between two looks at whether the store is closed.
const SCAN_STEP: usize = 1024;

struct Filter {
    words: Box<[AtomicU64]>,
    /// Names from before this start are all in.
    whole: AtomicBool,
    stop: AtomicBool,
}

impl Filter {
    /// The first word of the name's block, and its bits.
    fn place(&self, name: &CommandName) -> (usize, u64) {
        let halves = |value: u128| [(value >> 64) as u64, value as u64];
        let words = halves(name.chat_id.0).into_iter().chain([name.sender.0]).chain(halves(name.client_msg_id.0));
        let hash = words.fold(0, |hash, word| split_mix_64(hash ^ word));
        let blocks = self.words.len() / BLOCK_WORDS;
        let block = ((u128::from(hash) * blocks as u128) >> 64) as usize;
        (block * BLOCK_WORDS, split_mix_64(hash))
    }

    fn probes(bits: u64) -> impl Iterator<Item = (usize, u64)> {
        let width = BLOCK_BITS.trailing_zeros();
        (0..PROBES).map(move |probe| {
            let bit = bits >> (probe * width) & (BLOCK_BITS - 1);
            ((bit / 64) as usize, 1 << (bit % 64))
        })
    }

    fn insert(&self, name: &CommandName) {
        let (block, bits) = self.place(name);
        for (word, mask) in Self::probes(bits) {
            self.words[block + word].fetch_or(mask, Ordering::Relaxed);
        }
    }

    /// Puts in every name whose key `scan` visits. A key that names no command belongs to one that nobody knows now: the
    /// filter would deny it, so it is not whole then.
    fn fill(
        &self,
        scan: impl FnOnce(&mut dyn FnMut(&[u8]) -> bool) -> Result<bool, ReadError>,
    ) -> Result<(), ReadError> {
        let (mut left, mut damaged) = (SCAN_STEP, 0_u64);
        let finished = scan(&mut |key| {
            match layout::parse_command_key(key) {
                Some(name) => self.insert(&name),
                None => damaged += 1,
            }
            left = left.checked_sub(1).unwrap_or(SCAN_STEP);
            left != SCAN_STEP || !self.stop.load(Ordering::Relaxed)
        })?;
        if damaged > 0 {
            return Err(ReadError::Damaged(format!("{damaged} keys of commands are damaged")));
        }
        if finished {
            self.whole.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn may_hold(&self, name: &CommandName) -> bool {
        let (block, bits) = self.place(name);
        Self::probes(bits).all(|(word, mask)| self.words[block + word].load(Ordering::Relaxed) & mask != 0)
    }
}

/// The filter of an open store, and the thread that fills in what was stored before.
pub(super) struct Names {
    filter: Arc<Filter>,
    scan: Option<JoinHandle<()>>,
}

impl Names {
    /// A filter of about `bytes`, which knows nothing yet.
    fn new(bytes: usize) -> Self {
        let words = (bytes / 8).next_multiple_of(BLOCK_WORDS).max(BLOCK_WORDS);
        let words = (0..words).map(|_| AtomicU64::new(0)).collect();
        let filter = Filter { words, whole: AtomicBool::new(false), stop: AtomicBool::new(false) };
        Self { filter: Arc::new(filter), scan: None }
    }

    /// The filter of a store whose names up to now are those of `view`. They are read by a thread of its own; until it is
    /// done, every question is "look".
    pub(super) fn of(bytes: usize, view: EmbeddedView) -> Self {
        let mut names = Self::new(bytes);
        let filter = names.filter.clone();
        let scan = std::thread::Builder::new().name("names".to_owned()).spawn(move || {
            if let Err(error) = filter.fill(|visit| view.for_each_command_key(visit)) {
                tracing::warn!("every new command costs a search until the next start: {error}");
            }
        });
        match scan {
            Ok(scan) => names.scan = Some(scan),
            Err(error) => tracing::warn!(%error, "every new command costs a search until the next start"),
        }
        names
    }

    /// Whether the names from before this start are all in: until then, every question is "look".
    pub(super) fn are_whole(&self) -> bool {
        self.filter.whole.load(Ordering::Acquire)
    }

    /// A name is about to be stored.
    pub(super) fn insert(&self, name: &CommandName) {
        self.filter.insert(name);
    }

    /// False: the name is certainly not stored.
    pub(super) fn may_hold(&self, name: &CommandName) -> bool {
        !self.are_whole() || self.filter.may_hold(name)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.filter.stop.store(true, Ordering::Relaxed);
        if let Some(scan) = self.scan.take() {
            // A panic of the scan has left the filter incomplete, which it says.
            let _ = scan.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parley_protocol::{ChatId, ClientMsgId, UserId};

    fn name(n: u64) -> CommandName {
        CommandName {
            chat_id: ChatId::group(n % 50 + 1),
            sender: UserId(n % 7 + 1),
            client_msg_id: ClientMsgId(u128::from(n)),
        }
    }

    #[test]
    fn what_was_put_in_is_always_found_and_little_else() {
        let names = Names::new(12 * 10_000 / 8);
        names.filter.whole.store(true, Ordering::Release);
        (0..10_000).for_each(|n| names.insert(&name(n)));
        assert!((0..10_000).all(|n| names.may_hold(&name(n))));
        let wrong = (10_000..30_000).filter(|n| names.may_hold(&name(*n))).count();
        assert!(wrong < 400, "{wrong} of 20,000 are looked up for nothing");
    }

    #[test]
    fn a_filter_that_missed_a_name_denies_none() {
        let keys: Vec<Vec<u8>> = (0..10).map(|n| layout::command_key(&name(n)).to_vec()).collect();
        let fill = |keys: &[Vec<u8>], end: Result<bool, ReadError>| {
            let names = Names::new(1 << 10);
            let filled = names.filter.fill(|visit| {
                assert!(keys.iter().all(|key| visit(key)));
                end
            });
            (names, filled.is_ok())
        };
        let (names, whole) = fill(&keys, Ok(true));
        assert!(whole && names.are_whole() && (0..10).all(|n| names.may_hold(&name(n))));
        assert!(!(10..1_000).all(|n| names.may_hold(&name(n))));
        let mut damaged = keys.clone();
        damaged[4][3] ^= 1;
        let failed = Err(ReadError::Damaged("block 7".to_owned()));
        for (keys, end, ok) in [(&damaged, Ok(true), false), (&keys, failed, false), (&keys, Ok(false), true)] {
            let (names, filled) = fill(keys, end);
            assert_eq!((names.are_whole(), filled), (false, ok));
            assert!((0..1_000).all(|n| names.may_hold(&name(n))));
        }
    }

    #[test]
    fn before_the_scan_is_done_everything_is_looked_up() {
        assert!(Names::new(64).may_hold(&name(1)));
    }
}
