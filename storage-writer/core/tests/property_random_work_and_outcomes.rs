//! Random commands of random users, with random outcomes, crashes and cut links: at the end the store is whole, every
//! answer was true, and each command was done once.

mod common;

use common::{World, message};
use parley_protocol::body::kind;
use parley_protocol::frame::Change;
use parley_protocol::link::{Action as Act, Ask, Command, MarkUpdate, Reply};
use parley_protocol::{ChatId, ClientMsgId, Role, UserId};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap, HashSet};
use storage_core::Options;
use storage_core::model::State;
use storage_core::store::EntryRow;
use storage_core::treacherous::{Faults, Treacherous};

#[derive(Clone, Debug)]
enum Step {
    Send {
        chat: usize,
        user: usize,
    },
    Create {
        user: usize,
        members: usize,
        titled: bool,
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
    Load {
        chat: usize,
    },
    Login {
        user: usize,
    },
    Open {
        partition: u16,
    },
    /// Resends a command that was asked before.
    Again {
        which: usize,
    },
    Run,
    Wait,
    Crash,
    CutLink,
}

fn step() -> impl Strategy<Value = Step> {
    let (chat, user) = (0..12usize, 0..6usize);
    prop_oneof![
        12 => (chat.clone(), user.clone()).prop_map(|(chat, user)| Step::Send { chat, user }),
        1 => (user.clone(), 0..6usize, any::<bool>())
            .prop_map(|(user, members, titled)| Step::Create { user, members, titled }),
        5 => (chat.clone(), user.clone(), 0..7u8, user.clone())
            .prop_map(|(chat, user, what, whom)| Step::Change { chat, user, what, whom }),
        5 => (chat.clone(), user.clone(), 0..20u64).prop_map(|(chat, user, seq)| Step::Mark { chat, user, seq }),
        1 => (chat.clone(), user.clone(), 0..3u64)
            .prop_map(|(chat, user, until_ms)| Step::Mute { chat, user, until_ms }),
        1 => chat.prop_map(|chat| Step::Load { chat }),
        1 => user.prop_map(|user| Step::Login { user }),
        1 => (0..8u16).prop_map(|partition| Step::Open { partition }),
        3 => (0..64usize).prop_map(|which| Step::Again { which }),
        8 => Just(Step::Run),
        2 => Just(Step::Wait),
        1 => Just(Step::Crash),
        1 => Just(Step::CutLink),
    ]
}

struct Run {
    world: World<Treacherous>,
    users: Vec<UserId>,
    chats: Vec<ChatId>,
    commands: Vec<Command>,
    /// Where each answered command went: for ever.
    placed: HashMap<(ChatId, UserId, ClientMsgId), (ChatId, u64, u64)>,
    done: HashSet<(ChatId, UserId, ClientMsgId)>,
    asked: HashMap<(u64, u64), Option<Command>>,
    link: u64,
}

impl Run {
    fn new(seed: u64) -> Run {
        let options = Options {
            batch_commands_max: 3,
            group_members_max: 5,
            inbox_fanout_members_max: 3,
            chats_cached_max: 2,
            users_cached_max: 2,
            parked_max: 12,
            ..Options::default()
        };
        let mut world = World::new(options, Treacherous::open(State::default(), Faults::NONE, seed));
        world.run();
        world.open_link(1);
        let users = world.users(6);
        let mut chats: Vec<_> = users.windows(2).filter_map(|pair| ChatId::direct(pair[0], pair[1])).collect();
        chats.push(world.group(users[0], &users[1..4], "first"));
        world.answers.clear();
        world.store.faults = Faults::MANY;
        Run {
            world,
            users,
            chats,
            commands: Vec::new(),
            placed: HashMap::new(),
            done: HashSet::new(),
            asked: HashMap::new(),
            link: 1,
        }
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

    fn take(&mut self, step: &Step) {
        let chat_of = |run: &Run, chat: usize| run.chats[chat % run.chats.len()];
        match *step {
            Step::Send { chat, user } => {
                self.command(Some(chat_of(self, chat)), self.users[user], Act::Send(message("text")));
            }
            Step::Create { user, members, titled } => {
                let title = if titled { "titled".to_owned() } else { String::new() };
                let members = self.users[..members].to_vec();
                self.command(None, self.users[user], Act::Create { title, members });
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
            Step::Load { chat } => self.put(Ask::LoadChat { chat_id: chat_of(self, chat) }),
            Step::Login { user } => {
                let subject = format!("later{user}");
                self.put(Ask::Login { issuer: "test".to_owned(), name: subject.clone(), subject });
            }
            Step::Open { partition } => self.put(Ask::Open { partition }),
            Step::Again { which } => {
                if let Some(command) = self.commands.iter().rev().nth(which).cloned() {
                    self.put(Ask::Command(command));
                }
            }
            Step::Run => self.world.run(),
            Step::Wait => self.world.tick(700),
            Step::Crash => self.crash(),
            Step::CutLink => {
                self.world.writer.handle_link_down(self.link);
                self.asked.retain(|(link, _), _| *link != self.link);
                self.connect();
            }
        }
        self.judge_answers();
    }

    fn connect(&mut self) {
        self.link += 1;
        let hello = common::hello(7, self.world.epoch);
        self.world.writer.handle_hello(self.world.now, self.link, hello);
        // The welcome waits for what is under way, which may fail.
        for _ in 0..1_000 {
            self.world.run();
            let welcome = |(link, record): &(u64, parley_protocol::link::ToGateway)| {
                *link == self.link && matches!(record, parley_protocol::link::ToGateway::Welcome(_))
            };
            if self.world.sent.iter().any(welcome) {
                return;
            }
            self.world.tick(100);
        }
        panic!("no welcome: {:?}", self.world.writer.status());
    }

    fn crash(&mut self) {
        let store = self.world.store.clone().crash();
        let epoch = self.world.epoch;
        let fresh = World::new(self.world.options.clone(), store.clone());
        let world = std::mem::replace(&mut self.world, fresh);
        self.world = world.restart(store);
        self.world.epoch = epoch;
        self.asked.clear();
        self.connect();
    }

    /// What was answered holds for ever.
    fn judge_answers(&mut self) {
        let answers: Vec<_> = self.world.answers.drain().collect();
        for (at, reply) in answers {
            let Some(asked) = self.asked.remove(&at) else { continue };
            let Some(command) = asked else { continue };
            let name = (command.chat_id.unwrap_or(ChatId(0)), command.sender, command.client_msg_id);
            let place = match &reply {
                Reply::Durable(made) => {
                    let first = &made[0].event;
                    assert!(self.done.insert(name), "a command is done once");
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
    fn finish(mut self) {
        self.world.store.faults = Faults::NONE;
        for _ in 0..200 {
            self.world.tick(100);
            if self.world.writer.status().ready && self.world.writer.status().parked == 0 {
                break;
            }
        }
        let status = self.world.writer.status();
        assert!(status.ready && status.parked == 0 && status.groups_in_flight == 0, "{status:?}");
        let unanswered: Vec<_> = self.asked.keys().filter(|at| !self.world.answers.contains_key(at)).collect();
        assert!(unanswered.is_empty(), "no answer to {unanswered:?}");
        self.judge_answers();
        assert_eq!(self.world.halted, None);
        let state = self.world.store.view();
        for ((_, sender, client_msg_id), (chat_id, message_id, seq)) in &self.placed {
            let event = &state.chats[chat_id].events[seq];
            assert_eq!((event.sender, event.client_msg_id), (*sender, *client_msg_id), "what was answered is stored");
            assert_eq!(event.message_id.0, *message_id);
        }
        check_logs(state);
        check_inboxes(state, 3);
        self.check_unread();
    }

    fn check_unread(&self) {
        let state = self.world.store.view();
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
                assert_eq!(self.world.unread(*chat_id, *user_id), theirs.count() as u64, "{chat_id:?} {user_id:?}");
            }
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
