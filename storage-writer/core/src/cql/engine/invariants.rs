//! What always holds between two calls. Tests and the simulator run this pass after each event.

use super::chats::Stage;
use super::recover::Part;
use super::{Engine, Owner, Phase};
use crate::cql::rows::INBOX_ROWS_MAX;
use crate::planted;
use hashbrown::HashMap;

impl Engine {
    /// Panics when something that always holds does not. Costs a walk over everything in memory: for tests.
    pub fn check_invariants(&self) {
        self.requests.check_invariants();
        self.facts.check_invariants();
        self.known_names.check_invariants();
        self.work.check_invariants();
        if !matches!(self.phase, Phase::Recovering | Phase::Serving) {
            assert!(
                self.flights.is_empty() && self.requests.owners().next().is_none(),
                "nothing goes on after the end"
            );
            return;
        }
        assert!(self.complete.iter().all(|no| *no > self.complete_to));
        assert!(self.flights.keys().all(|no| *no == 0 || *no > self.complete_to && !self.complete.contains(no)));
        self.check_lanes();
        self.check_owners();
        if self.flights.is_empty() {
            assert!(
                self.chats.is_empty() && self.inboxes.is_empty() && self.marks.is_empty() && self.accounts.is_empty(),
                "lanes are of groups"
            );
            assert!(self.touched.is_empty() && self.shared().is_empty(), "only what is in flight is known to be");
        }
    }

    fn check_lanes(&self) {
        let mut left: HashMap<u64, usize> = HashMap::new();
        for (chat_id, lane) in &self.chats {
            assert!(!lane.jobs.is_empty(), "a lane without appends goes");
            for (at, job) in lane.jobs.iter().enumerate() {
                assert!(at == 0 || job.stage == Stage::Waiting, "one append of {chat_id:?} is in flight");
                assert!(job.left > 0 && self.flights.contains_key(&job.no));
                *left.entry(job.no).or_default() += 1;
            }
            assert!(lane.jobs.iter().is_sorted_by_key(|job| job.first_seq) || planted::any());
        }
        for (user_id, lane) in &self.inboxes {
            assert!(!lane.jobs.is_empty(), "a lane without entries goes");
            assert!(lane.sent <= INBOX_ROWS_MAX.min(lane.jobs.len()) && !(lane.sent > 0 && lane.state_sent));
            let dense = lane.jobs.iter().zip(lane.jobs.iter().skip(1));
            for (one, next) in dense {
                let rises = next.inbox_seq == one.inbox_seq + 1;
                assert!(rises || planted::any(), "inbox of {user_id}: {} after {}", next.inbox_seq, one.inbox_seq);
            }
        }
        for lane in self.marks.values() {
            assert!(!lane.jobs.is_empty() || !lane.sent.is_empty(), "a lane without marks goes");
            let waiting = lane.jobs.iter().map(|job| (job.no, job.joined));
            for (no, joined) in waiting.chain(lane.sent.iter().copied()) {
                *left.entry(no).or_default() += usize::from(!joined);
            }
        }
        for (no, flight) in &self.flights {
            assert!(
                flight.left > 0 && flight.left >= left.get(no).copied().unwrap_or(0),
                "group {no} waits for its parts"
            );
        }
    }

    /// What is under way in a lane has its statement, and only one.
    fn check_owners(&self) {
        let (mut inboxes, mut marks, mut events, mut names, mut tails) = (0, 0, 0, 0, 0);
        for owner in self.requests.owners() {
            match owner {
                Owner::Inbox(user_id) | Owner::InboxState(user_id) => {
                    inboxes += 1;
                    assert!(self.inboxes.contains_key(user_id));
                }
                Owner::Marks(_) => marks += 1,
                Owner::Account(user_id) => assert!(self.accounts.contains_key(user_id)),
                Owner::Events(_) => events += 1,
                Owner::Names(_) => names += 1,
                Owner::Recover(Part::Tail(_)) => tails += 1,
                _ => {}
            }
        }
        assert_eq!(inboxes, self.inboxes.values().filter(|lane| lane.sent > 0 || lane.state_sent).count());
        assert_eq!(marks, self.marks.values().filter(|lane| !lane.sent.is_empty()).count());
        let sent = self.chats.values().filter(|lane| lane.jobs.front().is_some_and(|job| job.stage == Stage::Events));
        assert_eq!(events, sent.count());
        assert_eq!(names, self.names.len());
        let read = self.recovery.as_ref().map_or(0, |recovery| recovery.tails());
        assert_eq!(tails, read, "of a log that is read only the last append is kept");
    }
}
