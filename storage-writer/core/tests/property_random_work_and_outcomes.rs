//! Random commands of random users, with random outcomes, crashes and cut links: at the end the store is whole, every
//! answer was true, and each command was done once.

mod common;
#[path = "common/work.rs"]
mod work;

use parley_protocol::body::kind;
use proptest::prelude::*;
use storage_core::model::State;
use storage_core::treacherous::{Faults, Treacherous};
use work::{Users, Work, work};

#[derive(Clone, Debug)]
enum Step {
    Work(Work),
    Run,
    Wait,
    Crash,
    CutLink,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        work::WEIGHT => work().prop_map(Step::Work),
        8 => Just(Step::Run),
        2 => Just(Step::Wait),
        1 => Just(Step::Crash),
        1 => Just(Step::CutLink),
    ]
}

struct Run {
    users: Users<Treacherous>,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut users = Users::new(Treacherous::open(State::default(), Faults::NONE, seed));
        users.world.store.faults = Faults::MANY;
        Run { users }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Work(work) => self.users.take(work),
            Step::Run => self.users.world.run(),
            Step::Wait => self.users.world.tick(700),
            Step::Crash => {
                let store = self.users.world.store.clone().crash();
                self.users.restart(store.clone(), store);
            }
            Step::CutLink => self.users.cut_link(),
        }
        self.users.judge_answers();
    }

    /// Everything comes to rest, all requests are answered, and the store holds what it should.
    fn finish(mut self) {
        self.users.world.store.faults = Faults::NONE;
        for _ in 0..200 {
            self.users.world.tick(100);
            if self.users.world.writer.status().ready && self.users.world.writer.status().parked == 0 {
                break;
            }
        }
        self.users.judge_rest();
        self.users.judge_state(self.users.world.store.view());
        self.check_unread();
    }

    fn check_unread(&self) {
        let state = self.users.world.store.view();
        for (chat_id, rows) in &state.chats {
            for (user_id, row) in rows.members.iter().filter(|(_, row)| row.role.is_some()) {
                let read = rows.marks.get(user_id).map_or(0, |marks| marks.read_seq);
                let from = row.intervals.last().unwrap().history_from;
                let theirs = rows.events.values().filter(|event| {
                    event.seq > read
                        && event.seq >= from
                        && event.sender != *user_id
                        && event.envelope.kind == kind::MESSAGE
                });
                assert_eq!(
                    self.users.world.unread(*chat_id, *user_id),
                    theirs.count() as u64,
                    "{chat_id:?} {user_id:?}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_is_whole_whatever_happens(seed in any::<u32>(), steps in prop::collection::vec(step(), 1..120)) {
        let mut run = Run::new(u64::from(seed));
        for step in &steps {
            run.take(step);
        }
        run.finish();
    }
}
