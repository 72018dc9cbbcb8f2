//! Who asks the history for what it missed: each member one page at a time, so many members at once.

use std::collections::VecDeque;

/// Pages under way in all.
const FILLS_MAX: u32 = 64;
/// A page that was refused is asked for again after this.
const RETRY_NS: u64 = 100_000_000;

/// The members that miss something.
#[derive(Debug, Default)]
pub(super) struct Fills {
    queue: VecDeque<u32>,
    retries: VecDeque<(u64, u32)>,
    /// By member: it waits, or a page of it is under way.
    known: Vec<bool>,
    under_way: u32,
    /// Pages that came.
    pub(super) pages: u64,
}

impl Fills {
    pub(super) fn new(members: u32) -> Self {
        Self { known: vec![false; members as usize], ..Self::default() }
    }

    /// A member misses something.
    pub(super) fn wanted(&mut self, member: u32) {
        if !std::mem::replace(&mut self.known[member as usize], true) {
            self.queue.push_back(member);
        }
    }

    /// Who may ask now.
    pub(super) fn next(&mut self, now_ns: u64) -> Option<u32> {
        while let Some((_, member)) = self.retries.front().copied().filter(|(due_ns, _)| *due_ns <= now_ns) {
            self.retries.pop_front();
            self.queue.push_back(member);
        }
        if self.under_way >= FILLS_MAX {
            return None;
        }
        let member = self.queue.pop_front()?;
        self.under_way += 1;
        Some(member)
    }

    /// A member's page came, or the member is gone. It may want another one.
    pub(super) fn done(&mut self, member: u32) {
        self.known[member as usize] = false;
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// A member's page was refused for now.
    pub(super) fn refused(&mut self, member: u32, now_ns: u64) {
        self.under_way = self.under_way.saturating_sub(1);
        self.retries.push_back((now_ns + RETRY_NS, member));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_asks_once_at_a_time_and_again_after_a_refusal() {
        let mut fills = Fills::new(200);
        (0..200).for_each(|member| fills.wanted(member));
        (0..200).for_each(|member| fills.wanted(member));
        let asking: Vec<u32> = std::iter::from_fn(|| fills.next(0)).collect();
        assert_eq!(asking, (0..FILLS_MAX).collect::<Vec<_>>());
        fills.done(3);
        fills.wanted(3);
        fills.refused(4, 0);
        assert_eq!((fills.next(0), fills.next(0), fills.next(0)), (Some(64), Some(65), None));
        // All others in turn; then who came back, and last who was refused.
        (5..64).for_each(|member| fills.done(member));
        let mut order = Vec::new();
        for _ in 0..200 {
            let Some(member) = fills.next(0) else { break };
            fills.done(member);
            order.push(member);
        }
        assert_eq!(order, (66..200).chain([3]).collect::<Vec<_>>());
        assert_eq!((fills.next(RETRY_NS - 1), fills.next(RETRY_NS), fills.next(RETRY_NS)), (None, Some(4), None));
    }
}
