//! Random steps of users over a writer and its engine, with crashes, and what must hold at the end.

use super::{CqlStore, options};
use crate::common::{self, World, message};
use parley_protocol::body::kind;
use parley_protocol::frame::Change;
use parley_protocol::link::{Action as Act, Ask, Command, MarkUpdate, Reply, ToGateway};
use parley_protocol::{ChatId, ClientMsgId, Role, UserId};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap, HashSet};
use storage_core::Options;
use storage_core::cql::cluster::{Cluster, ClusterFaults};
use storage_core::model::State;
use storage_core::store::{CommandName, EntryRow, StoreRequest, StoreResult};

impl common::Engine for CqlStore {
    fn shown(&self) -> &State {
        &self.shown
    }
}

#[derive(Clone, Debug)]
pub enum Step {
    Send {
        chat: usize,
        user: usize,
    },
    Create {
        user: usize,
        members: usize,
    },
    Change {
        chat: usize,
        user: usize,
        what: u8,
        whom: usize,
    },
    Mark {
        chat: usize,
        user: usize,
        seq: u64,
    },
    Mute {
        chat: usize,
        user: usize,
        until_ms: u64,
    },
    Login {
        user: usize,
    },
    /// Resends a command that was asked before.
    Again {
        which: usize,
    },
    /// The writer's turns, without waiting for rest.
    Turns(u8),
    Run,
    Wait,
    Crash,
}

pub fn step() -> impl Strategy<Value = Step> {
    let (chat, user) = (0..12usize, 0..6usize);
    prop_oneof![
        12 => (chat.clone(), user.clone()).prop_map(|(chat, user)| Step::Send { chat, user }),
        1 => (user.clone(), 0..6usize).prop_map(|(user, members)| Step::Create { user, members }),
        5 => (chat.clone(), user.clone(), 0..7u8, user.clone())
            .prop_map(|(chat, user, what, whom)| Step::Change { chat, user, what, whom }),
        4 => (chat.clone(), user.clone(), 0..20u64).prop_map(|(chat, user, seq)| Step::Mark { chat, user, seq }),
        1 => (chat.clone(), user.clone(), 0..3u64)
            .prop_map(|(chat, user, until_ms)| Step::Mute { chat, user, until_ms }),
        1 => user.prop_map(|user| Step::Login { user }),
        3 => (0..64usize).prop_map(|which| Step::Again { which }),
        6 => (1..6u8).prop_map(Step::Turns),
        4 => Just(Step::Run),
        1 => Just(Step::Wait),
        3 => Just(Step::Crash),
    ]
}

type Name = (ChatId, UserId, ClientMsgId);

pub struct Run {
    world: World<CqlStore>,
    users: Vec<UserId>,
    chats: Vec<ChatId>,
    commands: Vec<Command>,
    /// Where each answered command went: for ever.
    placed: HashMap<Name, (ChatId, u64, u64)>,
    asked: HashMap<(u64, u64), Option<Command>>,
    link: u64,
}

impl Run {
    pub fn new(seed: u64) -> Run {
        let options = Options {
            batch_commands_max: 3,
            group_members_max: 5,
            inbox_fanout_members_max: 3,
            chats_cached_max: 2,
            users_cached_max: 2,
            parked_max: 12,
            ..Options::default()
        };
        let store = CqlStore::new(Cluster::new(seed), super::options(), seed);
        let mut world = World::new(options, store);
        world.run();
        world.open_link(1);
        let users = world.users(6);
        let mut chats: Vec<_> = users.windows(2).filter_map(|pair| ChatId::direct(pair[0], pair[1])).collect();
        chats.push(world.group(users[0], &users[1..4], "first"));
        world.answers.clear();
        world.store.cluster.faults = ClusterFaults::MANY;
        world.store.wait_per_mille = 500;
        world.store.zombie_per_mille = 60;
        Run { world, users, chats, commands: vec![], placed: HashMap::new(), asked: HashMap::new(), link: 1 }
    }

    fn put(&mut self, ask: Ask) {
        let command = match &ask {
            Ask::Command(command) => Some(command.clone()),
            _ => None,
        };
        let no = self.world.put(self.link, ask);
        self.asked.insert((self.link, no), command);
    }

    fn command(&mut self, chat_id: Option<ChatId>, sender: UserId, action: Act) {
        let ask = self.world.command(chat_id, sender, action);
        if let Ask::Command(command) = &ask {
            self.commands.push(command.clone());
        }
        self.put(ask);
    }

    pub fn take(&mut self, step: &Step) {
        let chat_of = |run: &Run, chat: usize| run.chats[chat % run.chats.len()];
        match *step {
            Step::Send { chat, user } => {
                self.command(Some(chat_of(self, chat)), self.users[user], Act::Send(message("text")));
            }
            Step::Create { user, members } => {
                let members = self.users[..members].to_vec();
                self.command(None, self.users[user], Act::Create { title: "titled".to_owned(), members });
            }
            Step::Change { chat, user, what, whom } => {
                let whom = self.users[whom];
                let change = match what {
                    0 | 1 => Change::Add { users: vec![whom, self.users[user]] },
                    2 => Change::Remove { users: vec![whom] },
                    3 => Change::Role { user: whom, role: Role::Admin },
                    4 => Change::Role { user: whom, role: Role::Owner },
                    5 => Change::Rename { title: format!("title {whom}") },
                    _ => Change::Leave {},
                };
                self.command(Some(chat_of(self, chat)), self.users[user], Act::Change(change));
            }
            Step::Mark { chat, user, seq } => {
                let (first, second) = (self.users[user], self.users[(user + 1) % 6]);
                let mark = |user_id, read_seq| MarkUpdate { user_id, delivered_seq: seq + 2, read_seq };
                let marks = vec![mark(first, seq), mark(second, seq / 2)];
                self.put(Ask::Marks { chat_id: chat_of(self, chat), marks });
            }
            Step::Mute { chat, user, until_ms } => {
                self.put(Ask::Mute { chat_id: chat_of(self, chat), user_id: self.users[user], until_ms });
            }
            Step::Login { user } => {
                let subject = format!("later{user}");
                self.put(Ask::Login { issuer: "test".to_owned(), name: subject.clone(), subject });
            }
            Step::Again { which } => {
                if let Some(command) = self.commands.iter().rev().nth(which).cloned() {
                    self.put(Ask::Command(command));
                }
            }
            Step::Turns(turns) => {
                for _ in 0..turns {
                    self.turn_a_little();
                }
            }
            Step::Run => self.world.run(),
            Step::Wait => self.world.tick(700),
            Step::Crash => self.crash(),
        }
        self.judge_answers();
    }

    /// The store gets what the writer has for it and works for some milliseconds; nothing is waited for.
    fn turn_a_little(&mut self) {
        self.world.store.patience = 1;
        self.world.turn();
        self.world.writer.flush(self.world.now);
        self.world.store.patience = super::PATIENCE;
    }

    fn crash(&mut self) {
        // What the new one does first may be cut off as well.
        let mut store = std::mem::replace(&mut self.world.store, CqlStore::new(Cluster::new(0), options(), 0));
        store.crash();
        for _ in 0..store.random(3) {
            for _ in 0..store.random(30) {
                store.step();
            }
            store.crash();
        }
        let epoch = self.world.epoch;
        let fresh = World::new(self.world.options.clone(), CqlStore::new(Cluster::new(0), options(), 0));
        let world = std::mem::replace(&mut self.world, fresh);
        self.world = world.restart(store);
        self.world.epoch = epoch;
        self.asked.clear();
        self.connect();
    }

    fn connect(&mut self) {
        self.link += 1;
        let hello = common::hello(7, self.world.epoch);
        self.world.writer.handle_hello(self.world.now, self.link, hello);
        for _ in 0..1_000 {
            self.world.run();
            let welcome =
                |(link, record): &(u64, ToGateway)| *link == self.link && matches!(record, ToGateway::Welcome(_));
            if self.world.sent.iter().any(welcome) {
                return;
            }
            self.world.tick(100);
        }
        panic!("no welcome: {:?} {:?}", self.world.writer.status(), self.world.store.engine.status());
    }

    /// What was answered holds for ever.
    fn judge_answers(&mut self) {
        for (at, reply) in self.world.answers.drain().collect::<Vec<_>>() {
            let Some(Some(command)) = self.asked.remove(&at) else { continue };
            let name = (command.chat_id.unwrap_or(ChatId(0)), command.sender, command.client_msg_id);
            let place = match &reply {
                Reply::Durable(made) => {
                    let first = &made[0].event;
                    if command.chat_id.is_none() {
                        self.chats.push(first.chat_id);
                    }
                    (first.chat_id, first.message_id.0, first.seq)
                }
                Reply::Duplicate { chat_id, message_id, seq } => (*chat_id, message_id.0, *seq),
                Reply::Refused(_) | Reply::Failed => continue,
                other => panic!("a command is not answered with {other:?}"),
            };
            assert_eq!(*self.placed.entry(name).or_insert(place), place, "the first ids are the only ones");
        }
    }

    /// Everything comes to rest, all requests are answered, and the store holds what it should.
    pub fn finish(mut self) {
        self.world.store.cluster.faults = ClusterFaults::NONE;
        for _ in 0..200 {
            self.world.tick(100);
            let status = self.world.writer.status();
            if status.ready && status.parked == 0 && status.groups_in_flight == 0 {
                break;
            }
        }
        let status = self.world.writer.status();
        let engine = self.world.store.engine.status();
        assert!(status.ready && status.parked == 0 && status.groups_in_flight == 0, "{status:?} {engine:?}");
        self.judge_answers();
        assert!(self.asked.is_empty(), "no answer to {:?}", self.asked.keys());
        assert_eq!(self.world.halted, None);
        // What is left of the dead arrives now, and changes nothing.
        let before = self.world.store.dump();
        for write in std::mem::take(&mut self.world.store.stragglers) {
            let _ = self.world.store.cluster.write(&write);
        }
        self.world.store.cluster.settle();
        let state = self.world.store.dump();
        assert_eq!((&state.inboxes, &state.users), (&before.inboxes, &before.users), "stragglers change nothing");
        for (chat_id, rows) in &state.chats {
            assert_eq!(rows.events, before.chats[chat_id].events, "stragglers change nothing");
            assert_eq!(rows.members, before.chats[chat_id].members, "stragglers change nothing");
        }
        self.world.store.check_durable(&state);
        for ((_, sender, client_msg_id), (chat_id, message_id, seq)) in &self.placed {
            let event = &state.chats[chat_id].events[seq];
            assert_eq!((event.sender, event.client_msg_id), (*sender, *client_msg_id), "what was answered is stored");
            assert_eq!(event.message_id.0, *message_id);
        }
        check_logs(&state);
        check_inboxes(&state, 3);
        self.loads_say_the_same(&state);
    }

    /// A writer that starts now loads what is stored.
    fn loads_say_the_same(mut self, state: &State) {
        self.world.store.crash();
        let mut op = 0;
        let chats: Vec<_> = state.chats.keys().copied().collect();
        let users: Vec<_> = state.users.keys().copied().collect();
        let names: Vec<_> = self.placed.iter().map(|(name, place)| (*name, *place)).collect();
        for chat_id in chats {
            op += 1;
            let loaded = self.world.store.one(op, StoreRequest::LoadChat(chat_id));
            let mut expected = state.load_chat(chat_id).expect("it was written");
            expected.checkpoint.sent.sort_unstable();
            assert_eq!(loaded, StoreResult::Chat(Some(Box::new(expected))));
        }
        for user_id in users {
            op += 1;
            let loaded = self.world.store.one(op, StoreRequest::LoadUser(user_id));
            let head = state.inboxes.get(&user_id).map_or(0, |inbox| inbox.len() as u64);
            assert!(matches!(&loaded, StoreResult::User(Some(user)) if user.inbox_head == head), "{loaded:?} {head}");
        }
        for ((chat_id, sender, client_msg_id), (to, _, seq)) in names {
            op += 1;
            let name = CommandName { chat_id, sender, client_msg_id };
            let found = self.world.store.one(op, StoreRequest::FindCommand(name));
            let is = matches!(&found, StoreResult::Found(Some(row))
                if (row.chat_id, row.seq, row.name) == (to, seq, name));
            assert!(is, "{found:?}");
        }
    }
}

fn check_logs(state: &State) {
    for rows in state.chats.values() {
        let mut names = HashSet::new();
        let mut sent: BTreeMap<UserId, u64> = BTreeMap::new();
        let (mut ordinal, mut last_id) = (0, 0);
        for (at, (seq, event)) in rows.events.iter().enumerate() {
            assert_eq!((*seq, event.seq), (at as u64 + 1, at as u64 + 1), "the log is dense");
            let is_message = u64::from(event.envelope.kind == kind::MESSAGE);
            ordinal += is_message;
            *sent.entry(event.sender).or_default() += is_message;
            assert_eq!((event.ordinal, event.sender_sent), (ordinal, sent[&event.sender]));
            assert!(event.message_id.0 > last_id);
            last_id = event.message_id.0;
            let second_of_creation = event.seq == 2 && event.envelope.kind == kind::TITLE;
            assert!(names.insert((event.sender, event.client_msg_id)) || second_of_creation, "once");
        }
    }
}

/// Every inbox is dense, its entries of a chat rise, and nothing that a member of a small chat must hear is missing.
fn check_inboxes(state: &State, fanout_max: usize) {
    for (user_id, inbox) in &state.inboxes {
        assert!(inbox.keys().copied().eq(1..=inbox.len() as u64), "the inbox of {user_id:?} is dense");
        let mut last: BTreeMap<ChatId, u64> = BTreeMap::new();
        for row in inbox.values() {
            if let EntryRow::Event { chat_id, seq } = row {
                assert!(last.insert(*chat_id, *seq).is_none_or(|last| last < *seq), "entries of a chat rise");
                assert!(state.chats[chat_id].events.contains_key(seq), "an entry names an event");
            }
        }
    }
    for (chat_id, rows) in &state.chats {
        for seq in rows.events.keys() {
            let within = |at: u64| {
                rows.members.values().filter(move |row| {
                    row.intervals.iter().any(|one| one.joined_seq <= at && one.left_seq.is_none_or(|left| at < left))
                })
            };
            let large = within(*seq).count() > fanout_max;
            let crossed = large != (*seq > 1 && within(*seq - 1).count() > fanout_max);
            for (user_id, row) in &rows.members {
                let has = state.inboxes.get(user_id).is_some_and(|inbox| {
                    inbox.values().any(|entry| *entry == EntryRow::Event { chat_id: *chat_id, seq: *seq })
                });
                let inside = row
                    .intervals
                    .iter()
                    .any(|one| one.joined_seq <= *seq && one.left_seq.is_none_or(|left| *seq <= left));
                let turn = row.intervals.iter().any(|one| one.joined_seq == *seq || one.left_seq == Some(*seq));
                assert_eq!(has, inside && (!large || crossed || turn), "{chat_id:?} {seq} {user_id:?}");
            }
        }
    }
}
