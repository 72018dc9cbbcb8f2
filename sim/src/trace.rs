//! What happened: a hash of everything, and, when a run is told again, its last events in words.

use parley_protocol::partition::split_mix_64;
use std::collections::VecDeque;

/// Words kept for a reader.
const LINES_MAX: usize = 100_000;

/// The trace of a run.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    hash: u64,
    lines: Option<VecDeque<String>>,
}

impl Trace {
    /// `tells`: keeps words as well.
    pub(crate) fn new(tells: bool) -> Trace {
        Trace { hash: 0, lines: tells.then(VecDeque::new) }
    }

    pub(crate) fn note(&mut self, word: u64) {
        self.hash = split_mix_64(self.hash.rotate_left(17) ^ word);
    }

    pub(crate) fn note_bytes(&mut self, bytes: &[u8]) {
        self.note(digest(bytes));
    }

    /// Says in words what happens; the words are made only if somebody reads them.
    pub(crate) fn tell(&mut self, now_us: u64, words: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            if lines.len() == LINES_MAX {
                lines.pop_front();
            }
            lines.push_back(format!("{:>6}.{:03} ms  {}", now_us / 1_000, now_us % 1_000, words()));
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default().into()
    }
}

/// A hash of bytes, the same in every run.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let mut hash = bytes.len() as u64;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let word = u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
        hash = (hash.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    for byte in chunks.remainder() {
        hash = (hash.rotate_left(23) ^ u64::from(*byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    split_mix_64(hash)
}
