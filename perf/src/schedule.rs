//! When an open loop sends and who: fixed before the run, whatever the server does. A late message keeps its time.

/// SplitMix64: one seed, one run.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Uniform below `bound` (Lemire's multiplication; the bias is below 2^-32 for what is used here).
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u32
    }
}

/// A constant rate from a start on, senders uniform over all connections (so over all pairs, in both directions).
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    start_ns: u64,
    end_ns: u64,
    rate: u64,
    senders: u32,
    sent: u64,
    random: Random,
}

impl Schedule {
    /// `rate` messages a second by `senders`, over `start_ns..end_ns`.
    pub(crate) fn new(start_ns: u64, end_ns: u64, rate: u64, senders: u32, seed: u64) -> Self {
        assert!(rate > 0 && senders > 0);
        Self { start_ns, end_ns, rate, senders, sent: 0, random: Random::new(seed) }
    }

    /// The time of the next message; `None` at the end.
    pub(crate) fn next_at_ns(&self) -> Option<u64> {
        // From the count, not by adding up: no drift at any rate.
        let offset = u128::from(self.sent) * 1_000_000_000 / u128::from(self.rate);
        let at = self.start_ns + offset as u64;
        (at < self.end_ns).then_some(at)
    }

    /// The next message that is due: its sender, and the time that it should have been sent at.
    pub(crate) fn due(&mut self, now_ns: u64) -> Option<(u32, u64)> {
        let at = self.next_at_ns().filter(|at| *at <= now_ns)?;
        self.sent += 1;
        Some((self.random.below(self.senders), at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_due(schedule: &mut Schedule, now_ns: u64) -> Vec<(u32, u64)> {
        std::iter::from_fn(|| schedule.due(now_ns)).collect()
    }

    #[test]
    fn every_message_of_the_rate_is_due_once_even_when_asked_late() {
        let mut prompt = Schedule::new(5_000, 2_000_005_000, 30_000, 10, 7);
        let mut late = prompt.clone();
        let mut one_by_one = Vec::new();
        for now in (0..2_100_000_000).step_by(1_000_000) {
            one_by_one.extend(all_due(&mut prompt, now));
        }
        assert_eq!(one_by_one.len(), 60_000);
        // A generator that slept through it all still owes the same messages, at the same scheduled times.
        assert_eq!(all_due(&mut late, u64::MAX), one_by_one);
        assert_eq!((late.next_at_ns(), one_by_one[0].1, one_by_one[30_000].1), (None, 5_000, 1_000_005_000));
        assert!(one_by_one.is_sorted_by_key(|(_, at)| *at));
    }

    #[test]
    fn nothing_is_due_before_its_time() {
        let mut schedule = Schedule::new(1_000, u64::MAX, 1_000, 2, 1);
        assert_eq!(schedule.due(999), None);
        assert_eq!(schedule.due(1_000).map(|(_, at)| at), Some(1_000));
        assert_eq!(schedule.due(1_000_999), None);
        assert_eq!(schedule.next_at_ns(), Some(1_001_000));
    }

    #[test]
    fn senders_are_uniform_and_repeat_with_the_seed() {
        let mut counts = [0_u32; 10];
        for (sender, _) in all_due(&mut Schedule::new(0, 1_000_000_000, 100_000, 10, 42), u64::MAX) {
            counts[sender as usize] += 1;
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
        let again = |seed| all_due(&mut Schedule::new(0, 1_000_000, 100_000, 10, seed), u64::MAX);
        assert_eq!(again(1), again(1));
        assert_ne!(again(1), again(2));
    }
}
