//! Random numbers from a seed: SplitMix64 (Steele, Lea, Flood 2014). One stream a concern, so that what is drawn for one
//! does not move what is drawn for another.

use parley_protocol::partition::split_mix_64;

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// The stream of a seed and a concern.
    pub(crate) fn new(seed: u64, concern: u64) -> Rng {
        Rng(split_mix_64(seed ^ split_mix_64(concern)))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        split_mix_64(self.0)
    }

    /// Below `end`; 0 if there is nothing below.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// True in so many of a thousand cases.
    pub(crate) fn chance(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.below(1_000) < u64::from(per_mille)
    }

    /// About exponentially distributed around `mean`: mostly short, now and then long; at most eight times the mean.
    pub(crate) fn around(&mut self, mean: u64) -> u64 {
        let halvings = (self.next().trailing_zeros().min(3) + 1) as u64;
        self.below(mean.saturating_mul(halvings).max(1))
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let at = self.below(from.len() as u64) as usize;
        from.get(at)
    }

    /// An index, each as likely as its weight says.
    pub(crate) fn weighted(&mut self, weights: &[u32]) -> Option<usize> {
        let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        let mut at = if sum == 0 { return None } else { self.below(sum) };
        weights.iter().position(|weight| match at.checked_sub(u64::from(*weight)) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        })
    }
}
