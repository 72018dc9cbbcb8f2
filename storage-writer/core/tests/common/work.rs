//! Random work of users on a writer: what they ask for, that answers hold for ever, and what a store holds at the end.
//! What happens meanwhile (crashes, cut links, outcomes of the store) is each test's own.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use crate::common::{Engine, World, hello, message};
use parley_protocol::body::kind;
use parley_protocol::frame::Change;
use parley_protocol::link::{Action as Act, Ask, Command, MarkUpdate, Reply, ToGateway};
use parley_protocol::{ChatId, ClientMsgId, Role, UserId};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap, HashSet};
use storage_core::Options;
use storage_core::model::State;
use storage_core::store::EntryRow;

/// Users of every run.
const USERS: usize = 6;
/// Members of a chat whose messages still leave inbox entries.
const INBOX_FANOUT_MAX: usize = 3;

/// One request. Users and chats are named by their numbers; chats from the first on again beyond the last one.
#[derive(Clone, Debug)]
pub enum Work {
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
}

/// Of [`work`], for who mixes it with other steps.
pub const WEIGHT: u32 = 30;

pub fn work() -> impl Strategy<Value = Work> {
    let (chat, user) = (0..12usize, 0..USERS);
    prop_oneof![
        12 => (chat.clone(), user.clone()).prop_map(|(chat, user)| Work::Send { chat, user }),
        1 => (user.clone(), 0..USERS, any::<bool>())
            .prop_map(|(user, members, titled)| Work::Create { user, members, titled }),
        5 => (chat.clone(), user.clone(), 0..7u8, user.clone())
            .prop_map(|(chat, user, what, whom)| Work::Change { chat, user, what, whom }),
        5 => (chat.clone(), user.clone(), 0..20u64).prop_map(|(chat, user, seq)| Work::Mark { chat, user, seq }),
        1 => (chat.clone(), user.clone(), 0..3u64)
            .prop_map(|(chat, user, until_ms)| Work::Mute { chat, user, until_ms }),
        1 => chat.prop_map(|chat| Work::Load { chat }),
        1 => user.prop_map(|user| Work::Login { user }),
        1 => (0..8u16).prop_map(|partition| Work::Open { partition }),
        3 => (0..64usize).prop_map(|which| Work::Again { which }),
    ]
}

type Name = (ChatId, UserId, ClientMsgId);

/// Users with their chats, on a link to a writer, and what they were told.
pub struct Users<S> {
    pub world: World<S>,
    users: Vec<UserId>,
    chats: Vec<ChatId>,
    commands: Vec<Command>,
    /// Where each answered command went: for ever.
    pub placed: HashMap<Name, (ChatId, u64, u64)>,
    /// Commands that were answered as done, and not as done before.
    done: HashSet<Name>,
    asked: HashMap<(u64, u64), Option<Command>>,
    link: u64,
}

impl<S: Engine> Users<S> {
    /// Users who know each other, on a writer with small caches, batches and groups: all borders are crossed soon.
    pub fn new(store: S) -> Users<S> {
        let options = Options {
            batch_commands_max: 3,
            group_members_max: 5,
            inbox_fanout_members_max: INBOX_FANOUT_MAX,
            chats_cached_max: 2,
            users_cached_max: 2,
            parked_max: 12,
            ..Options::default()
        };
        let mut world = World::new(options, store);
        world.run();
        world.open_link(1);
        let users = world.users(USERS);
        let mut chats: Vec<_> = users.windows(2).filter_map(|pair| ChatId::direct(pair[0], pair[1])).collect();
        chats.push(world.group(users[0], &users[1..4], "first"));
        world.answers.clear();
        let (placed, done, asked) = (HashMap::new(), HashSet::new(), HashMap::new());
        Users { world, users, chats, commands: Vec::new(), placed, done, asked, link: 1 }
    }

    fn chat(&self, chat: usize) -> ChatId {
        self.chats[chat % self.chats.len()]
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

    /// Asks; [`Users::judge_answers`] looks at the answer.
    pub fn take(&mut self, work: &Work) {
        match *work {
            Work::Send { chat, user } => {
                self.command(Some(self.chat(chat)), self.users[user], Act::Send(message("text")));
            }
            Work::Create { user, members, titled } => {
                let title = if titled { "titled".to_owned() } else { String::new() };
                let members = self.users[..members].to_vec();
                self.command(None, self.users[user], Act::Create { title, members });
            }
            Work::Change { chat, user, what, whom } => {
                let whom = self.users[whom];
                let change = match what {
                    0 | 1 => Change::Add { users: vec![whom, self.users[user]] },
                    2 => Change::Remove { users: vec![whom] },
                    3 => Change::Role { user: whom, role: Role::Admin },
                    4 => Change::Role { user: whom, role: Role::Owner },
                    5 => Change::Rename { title: format!("title {whom}") },
                    _ => Change::Leave {},
                };
                self.command(Some(self.chat(chat)), self.users[user], Act::Change(change));
            }
            Work::Mark { chat, user, seq } => {
                let (first, second) = (self.users[user], self.users[(user + 1) % 6]);
                let mark = |user_id, read_seq| MarkUpdate { user_id, delivered_seq: seq + 2, read_seq };
                let marks = vec![mark(first, seq), mark(second, seq / 2)];
                self.put(Ask::Marks { chat_id: self.chat(chat), marks });
            }
            Work::Mute { chat, user, until_ms } => {
                self.put(Ask::Mute { chat_id: self.chat(chat), user_id: self.users[user], until_ms });
            }
            Work::Load { chat } => self.put(Ask::LoadChat { chat_id: self.chat(chat) }),
            Work::Login { user } => {
                let subject = format!("later{user}");
                self.put(Ask::Login { issuer: "test".to_owned(), name: subject.clone(), subject });
            }
            Work::Open { partition } => self.put(Ask::Open { partition }),
            Work::Again { which } => {
                if let Some(command) = self.commands.iter().rev().nth(which).cloned() {
                    self.put(Ask::Command(command));
                }
            }
        }
    }

    /// The writer's process ends and starts again over what is left of its store. `nobodys` is thrown away.
    pub fn restart(&mut self, store: S, nobodys: S) {
        let epoch = self.world.epoch;
        let fresh = World::new(self.world.options.clone(), nobodys);
        let world = std::mem::replace(&mut self.world, fresh);
        self.world = world.restart(store);
        self.world.epoch = epoch;
        self.asked.clear();
        self.connect();
    }

    /// The link ends, and another one is opened: nobody waits for the answers any more.
    pub fn cut_link(&mut self) {
        self.world.writer.handle_link_down(self.link);
        self.asked.retain(|(link, _), _| *link != self.link);
        self.connect();
    }

    fn connect(&mut self) {
        self.link += 1;
        let hello = hello(7, self.world.epoch);
        self.world.writer.handle_hello(self.world.now, self.link, hello);
        // The welcome waits for what is under way, which may fail.
        for _ in 0..1_000 {
            self.world.run();
            let welcome =
                |(link, record): &(u64, ToGateway)| *link == self.link && matches!(record, ToGateway::Welcome(_));
            if self.world.sent.iter().any(welcome) {
                return;
            }
            self.world.tick(100);
        }
        panic!("no welcome: {:?}", self.world.writer.status());
    }

    /// What was answered holds for ever.
    pub fn judge_answers(&mut self) {
        for (at, reply) in self.world.answers.drain().collect::<Vec<_>>() {
            let Some(Some(command)) = self.asked.remove(&at) else { continue };
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

    /// Everything came to rest: all requests are answered, and nothing went wrong in the writer.
    pub fn judge_rest(&mut self) {
        let status = self.world.writer.status();
        assert!(status.ready && status.parked == 0 && status.groups_in_flight == 0, "{status:?}");
        self.judge_answers();
        assert!(self.asked.is_empty(), "no answer to {:?}", self.asked.keys());
        assert_eq!(self.world.halted, None);
    }

    /// The store holds what was answered, and is whole.
    pub fn judge_state(&self, state: &State) {
        for ((_, sender, client_msg_id), (chat_id, message_id, seq)) in &self.placed {
            let event = &state.chats[chat_id].events[seq];
            assert_eq!((event.sender, event.client_msg_id), (*sender, *client_msg_id), "what was answered is stored");
            assert_eq!(event.message_id.0, *message_id);
        }
        check_logs(state);
        check_inboxes(state);
    }
}

/// Every log is dense, its counters and ids rise, and each command is in it once.
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
fn check_inboxes(state: &State) {
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
            let large = within(*seq).count() > INBOX_FANOUT_MAX;
            let crossed = large != (*seq > 1 && within(*seq - 1).count() > INBOX_FANOUT_MAX);
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
