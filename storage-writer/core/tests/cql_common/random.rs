//! Random steps of users over a writer and its engine, with crashes, and what must hold at the end.

use super::work::{self, Users, Work, work};
use super::{CqlStore, options};
use crate::common;
use proptest::prelude::*;
use storage_core::cql::cluster::{Cluster, ClusterFaults};
use storage_core::model::State;
use storage_core::store::{CommandName, StoreRequest, StoreResult};

impl common::Engine for CqlStore {
    fn shown(&self) -> &State {
        &self.shown
    }
}

#[derive(Clone, Debug)]
pub enum Step {
    Work(Work),
    /// The writer's turns, without waiting for rest.
    Turns(u8),
    Run,
    Wait,
    Crash,
}

pub fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        work::WEIGHT => work().prop_map(Step::Work),
        6 => (1..6u8).prop_map(Step::Turns),
        4 => Just(Step::Run),
        1 => Just(Step::Wait),
        3 => Just(Step::Crash),
    ]
}

pub struct Run {
    users: Users<CqlStore>,
}

impl Run {
    pub fn new(seed: u64) -> Run {
        let mut users = Users::new(CqlStore::new(Cluster::new(seed), options(), seed));
        let store = &mut users.world.store;
        store.cluster.faults = ClusterFaults::MANY;
        store.wait_per_mille = 500;
        store.zombie_per_mille = 60;
        Run { users }
    }

    pub fn take(&mut self, step: &Step) {
        match step {
            Step::Work(work) => self.users.take(work),
            Step::Turns(turns) => {
                for _ in 0..*turns {
                    self.turn_a_little();
                }
            }
            Step::Run => self.users.world.run(),
            Step::Wait => self.users.world.tick(700),
            Step::Crash => self.crash(),
        }
        self.users.judge_answers();
    }

    /// The store gets what the writer has for it and works for some milliseconds; nothing is waited for.
    fn turn_a_little(&mut self) {
        let world = &mut self.users.world;
        world.store.patience = 1;
        world.turn();
        world.writer.flush(world.now);
        world.store.patience = super::PATIENCE;
    }

    fn crash(&mut self) {
        let nobodys = || CqlStore::new(Cluster::new(0), options(), 0);
        // What the new one does first may be cut off as well.
        let mut store = std::mem::replace(&mut self.users.world.store, nobodys());
        store.crash();
        for _ in 0..store.random(3) {
            for _ in 0..store.random(30) {
                store.step();
            }
            store.crash();
        }
        self.users.restart(store, nobodys());
    }

    /// Everything comes to rest, all requests are answered, and the store holds what it should.
    pub fn finish(mut self) {
        let world = &mut self.users.world;
        world.store.cluster.faults = ClusterFaults::NONE;
        for _ in 0..200 {
            world.tick(100);
            let status = world.writer.status();
            if status.ready && status.parked == 0 && status.groups_in_flight == 0 {
                break;
            }
        }
        self.users.judge_rest();
        // What is left of the dead arrives now, and changes nothing.
        let store = &mut self.users.world.store;
        let before = store.dump();
        for write in std::mem::take(&mut store.stragglers) {
            let _ = store.cluster.write(&write);
        }
        store.cluster.settle();
        let state = store.dump();
        assert_eq!((&state.inboxes, &state.users), (&before.inboxes, &before.users), "stragglers change nothing");
        for (chat_id, rows) in &state.chats {
            assert_eq!(rows.events, before.chats[chat_id].events, "stragglers change nothing");
            assert_eq!(rows.members, before.chats[chat_id].members, "stragglers change nothing");
        }
        store.check_durable(&state);
        self.users.judge_state(&state);
        self.loads_say_the_same(&state);
    }

    /// A writer that starts now loads what is stored.
    fn loads_say_the_same(mut self, state: &State) {
        self.users.world.store.crash();
        let mut op = 0;
        let chats: Vec<_> = state.chats.keys().copied().collect();
        let users: Vec<_> = state.users.keys().copied().collect();
        let names: Vec<_> = self.users.placed.iter().map(|(name, place)| (*name, *place)).collect();
        for chat_id in chats {
            op += 1;
            let loaded = self.users.world.store.one(op, StoreRequest::LoadChat(chat_id));
            let mut expected = state.load_chat(chat_id).expect("it was written");
            expected.checkpoint.sent.sort_unstable();
            assert_eq!(loaded, StoreResult::Chat(Some(Box::new(expected))));
        }
        for user_id in users {
            op += 1;
            let loaded = self.users.world.store.one(op, StoreRequest::LoadUser(user_id));
            let head = state.inboxes.get(&user_id).map_or(0, |inbox| inbox.len() as u64);
            assert!(matches!(&loaded, StoreResult::User(Some(user)) if user.inbox_head == head), "{loaded:?} {head}");
        }
        for ((chat_id, sender, client_msg_id), (to, _, seq)) in names {
            op += 1;
            let name = CommandName { chat_id, sender, client_msg_id };
            let found = self.users.world.store.one(op, StoreRequest::FindCommand(name));
            let is = matches!(&found, StoreResult::Found(Some(row))
                if (row.chat_id, row.seq, row.name) == (to, seq, name));
            assert!(is, "{found:?}");
        }
    }
}
