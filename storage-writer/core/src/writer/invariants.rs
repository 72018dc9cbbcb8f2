//! What always holds between two calls. Tests and the simulator run this pass after each event.

use super::loads::NameState;
use super::{Phase, Writer};
use std::collections::HashSet;

impl Writer {
    /// Panics when something that always holds does not. Costs a walk over everything in memory: for tests.
    pub fn check_invariants(&self) {
        self.chats.check_invariants();
        self.users.check_invariants();
        self.seats.check_invariants();
        assert!(self.flights.len() <= self.options.commits_in_flight_max);
        assert!(self.jobs.len() <= self.options.parked_max);
        assert!(self.hellos.len() <= self.links.len());
        self.check_numbers();
        self.check_queues();
        for (at, flight) in self.flights.iter().enumerate() {
            if !matches!(self.phase, Phase::Draining | Phase::Halted) {
                assert_eq!(flight.group().no, self.durable_no + 1 + at as u64, "groups are dense");
            }
        }
        if self.phase == Phase::Serving {
            assert_eq!(self.gathering.group.no, self.durable_no + 1 + self.flights.len() as u64);
        } else {
            assert!(self.gathering.group.is_empty() || self.phase == Phase::Halted, "nothing is numbered");
        }
    }

    fn check_numbers(&self) {
        for (chat_id, chat) in self.chats.iter() {
            assert!(chat.durable_seq <= chat.head_seq && chat.head_ordinal <= chat.head_seq, "{chat_id:?}");
            if chat.channel {
                assert!(chat.members.is_empty(), "members of a channel are known one by one");
                let known = self.seats.iter().filter(|((of, _), seat)| of == chat_id && seat.member.role.is_some());
                assert!(known.count() <= chat.present, "{chat_id:?}");
                continue;
            }
            assert_eq!(chat.present, chat.present_members().count());
            assert!(chat.members.is_sorted_by(|one, next| one.user_id < next.user_id));
            let sent: u64 = chat.members.iter().map(|member| member.sent).sum();
            assert_eq!(sent, chat.head_ordinal, "every message of {chat_id:?} has a sender");
            for member in &chat.members {
                let marks = &member.marks;
                assert!(marks.read_seq <= marks.delivered_seq && marks.delivered_seq <= chat.head_seq);
                assert!(
                    marks.read_sent <= member.sent && marks.read_sent <= marks.read_ordinal,
                    "{chat_id:?} {member:?}"
                );
                assert!(marks.read_ordinal <= chat.head_ordinal);
                let open = member.intervals.last().is_some_and(|interval| interval.left_seq.is_none());
                assert_eq!(member.role.is_some(), open, "a role goes with an open interval");
            }
        }
    }

    fn check_queues(&self) {
        let mut queued = HashSet::new();
        for queue in self.queues.values() {
            let mut at = Some(queue.first);
            while let Some(key) = at {
                assert!(queued.insert(key), "a job stands in one queue, once");
                at = self.jobs[key].next();
            }
        }
        let flying = self.names.values().filter(|name| matches!(name.state, NameState::Flight(_))).count();
        let rows =
            |group: &crate::store::Group| group.appends.iter().map(|append| append.commands.len()).sum::<usize>();
        if self.phase == Phase::Serving {
            let numbered = self.flights.iter().map(|flight| rows(flight.group())).sum::<usize>();
            assert_eq!(flying, numbered + rows(&self.gathering.group), "every command in flight has its name");
        }
    }
}
