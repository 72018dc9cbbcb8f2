//! A writer and an engine on one thread, driven to rest call by call, with the writer's invariants checked after each.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use parley_protocol::body::{Body, MessageBody};
use parley_protocol::frame::Change;
use parley_protocol::link::{
    Action as Act, Ask, ChatState, Command, Committed, LinkHello, MarkUpdate, Marked, Reply, Request, ToGateway,
};
use parley_protocol::{ChatId, ClientMsgId, ErrorCode, UserId, limits};
use std::collections::HashMap;
use storage_core::model::{Model, State};
use storage_core::reads::{ReadOptions, answer};
use storage_core::store::{Group, OpId, Outcome, Store, StoreRequest, StoreResult};
use storage_core::treacherous::Treacherous;
use storage_core::{Action, HaltReason, LinkId, Now, Options, Writer};

pub const START_UNIX_MS: u64 = 1_800_000_000_000;

pub trait Engine: Store {
    fn shown(&self) -> &State;
}

impl Engine for Model {
    fn shown(&self) -> &State {
        &self.state
    }
}

impl Engine for Treacherous {
    fn shown(&self) -> &State {
        self.view()
    }
}

/// An engine over the model that answers commits only as a test says.
#[derive(Default)]
pub struct Scripted {
    pub model: Model,
    /// Commits are kept until they are answered by hand.
    pub manual: bool,
    pub commits: Vec<(OpId, Group)>,
    pub done: Vec<(OpId, StoreResult)>,
    /// Loads that are kept back.
    pub hold_loads: bool,
    pub loads: Vec<(OpId, StoreRequest)>,
    pub load_count: usize,
    pub damaged: bool,
}

impl Engine for Scripted {
    fn shown(&self) -> &State {
        &self.model.state
    }
}

impl Store for Scripted {
    fn submit(&mut self, op: OpId, request: StoreRequest) {
        match request {
            StoreRequest::Commit(group) if self.manual => self.commits.push((op, group)),
            StoreRequest::Commit(group) => {
                let outcome = self.model.commit(&group);
                self.done.push((op, StoreResult::Committed(outcome)));
            }
            load => {
                self.load_count += 1;
                if self.hold_loads {
                    self.loads.push((op, load));
                } else if self.damaged {
                    self.done.push((op, StoreResult::Damaged("block 7".to_owned())));
                } else {
                    self.done.push((op, self.model.state.load(&load).unwrap()));
                }
            }
        }
    }

    fn completions(&mut self, done: &mut Vec<(OpId, StoreResult)>) {
        done.append(&mut self.done);
    }
}

impl Scripted {
    /// One that was just opened over what is stored.
    pub fn over(state: State) -> Scripted {
        Scripted { model: Model::open(state), ..Scripted::default() }
    }

    /// Answers the oldest commit that waits; a durable one is applied.
    pub fn answer(&mut self, outcome: Outcome) -> Group {
        let (op, group) = self.commits.remove(0);
        if outcome == Outcome::Durable {
            assert_eq!(self.model.commit(&group), Outcome::Durable);
        }
        self.done.push((op, StoreResult::Committed(outcome)));
        group
    }

    pub fn release_loads(&mut self) {
        self.hold_loads = false;
        for (op, load) in std::mem::take(&mut self.loads) {
            self.done.push((op, self.model.state.load(&load).unwrap()));
        }
    }
}

pub struct World<S> {
    pub writer: Writer,
    pub store: S,
    pub now: Now,
    pub sent: Vec<(LinkId, ToGateway)>,
    pub closed: Vec<LinkId>,
    pub halted: Option<HaltReason>,
    pub answers: HashMap<(LinkId, u64), Reply>,
    pub epoch: u64,
    next_no: u64,
    next_name: u128,
    pub options: Options,
}

pub fn hello(gateway: u128, home_epoch: u64) -> LinkHello {
    LinkHello { version: limits::LINK_VERSION, gateway, shard: 0, shards: 1, home_epoch }
}

pub fn world(options: Options) -> World<Scripted> {
    let mut world = World::new(options, Scripted::default());
    world.run();
    world.open_link(1);
    world
}

pub fn defaults() -> World<Scripted> {
    world(Options::default())
}

impl<S: Engine> World<S> {
    pub fn new(options: Options, store: S) -> World<S> {
        World {
            writer: Writer::new(options.clone()),
            store,
            now: Now { mono_ms: 1_000, unix_ms: START_UNIX_MS },
            sent: Vec::new(),
            closed: Vec::new(),
            halted: None,
            answers: HashMap::new(),
            epoch: 0,
            next_no: 1,
            next_name: 1,
            options,
        }
    }

    /// The writer's process starts again over the same store.
    pub fn restart(self, store: S) -> World<S> {
        let now = Now { mono_ms: self.now.mono_ms + 10, unix_ms: self.now.unix_ms + 10 };
        let (next_no, next_name) = (self.next_no, self.next_name);
        let mut world = World { now, next_no, next_name, ..World::new(self.options, store) };
        world.run();
        world
    }

    pub fn open_link(&mut self, link: LinkId) {
        self.writer.handle_hello(self.now, link, hello(7, self.epoch));
        self.run();
        let welcome = self.sent.iter().rev().find_map(|(to, record)| match record {
            ToGateway::Welcome(welcome) if *to == link => Some(welcome.home_epoch),
            _ => None,
        });
        self.epoch = welcome.expect("the link is welcome");
    }

    pub fn advance(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.unix_ms += ms;
    }

    /// Puts a request in, without letting the writer work.
    pub fn put(&mut self, link: LinkId, ask: Ask) -> u64 {
        let no = self.next_no;
        self.next_no += 1;
        let request = Request { no, home_epoch: self.epoch, ask };
        self.writer.handle_request(self.now, link, request);
        self.writer.check_invariants();
        no
    }

    /// One round of the shell; whether anything moved.
    pub fn turn(&mut self) -> bool {
        let mut moved = false;
        while let Some(action) = self.writer.poll_action() {
            moved = true;
            match action {
                Action::Store(op, request) => self.store.submit(op, request),
                Action::Send { link, record } => {
                    if let ToGateway::Answer(answer) = &record {
                        let earlier = self.answers.insert((link, answer.no), answer.reply.clone());
                        assert_eq!(earlier, None, "one answer a request");
                    }
                    self.sent.push((link, record));
                }
                Action::Read { link, no, ask } => {
                    let reply = self.read(&ask);
                    assert_eq!(self.answers.insert((link, no), reply), None);
                }
                Action::Close { link } => self.closed.push(link),
                Action::Halt(reason) => self.halted = Some(reason),
            }
        }
        let mut done = Vec::new();
        self.store.completions(&mut done);
        for (op, result) in done {
            moved = true;
            self.writer.handle_completion(self.now, op, result);
            self.writer.check_invariants();
        }
        moved
    }

    /// Until nothing moves any more, without time passing.
    pub fn run(&mut self) {
        let mut idle = 0;
        for _ in 0..100_000 {
            let moved = self.turn();
            self.writer.flush(self.now);
            self.writer.check_invariants();
            idle = if moved { 0 } else { idle + 1 };
            // A treacherous engine may need some polls before it answers.
            if idle > 16 {
                return;
            }
        }
        panic!("the writer does not come to rest");
    }

    pub fn tick(&mut self, ms: u64) {
        self.advance(ms);
        self.writer.handle_timer(self.now);
        self.writer.check_invariants();
        self.run();
    }

    pub fn reply(&mut self, no: u64) -> Option<Reply> {
        self.answers.get(&(1, no)).cloned()
    }

    /// Asks over link 1 and runs to the answer.
    pub fn ask(&mut self, ask: Ask) -> Reply {
        let no = self.put(1, ask);
        self.run();
        self.reply(no).unwrap_or_else(|| panic!("no answer to {no}: {:?}", self.writer.status()))
    }

    pub fn read(&self, ask: &Ask) -> Reply {
        let options = ReadOptions::from(&self.options);
        answer(self.store.shown(), &options, ask)
    }

    pub fn name(&mut self) -> ClientMsgId {
        self.next_name += 1;
        ClientMsgId(self.next_name)
    }

    pub fn login(&mut self, name: &str) -> UserId {
        let ask = Ask::Login { issuer: "test".to_owned(), subject: name.to_owned(), name: name.to_owned() };
        match self.ask(ask) {
            Reply::LoggedIn(user) => {
                assert_eq!(user.name, name);
                user.user_id
            }
            other => panic!("login: {other:?}"),
        }
    }

    pub fn users(&mut self, count: usize) -> Vec<UserId> {
        (0..count).map(|at| self.login(&format!("user{at}"))).collect()
    }

    pub fn command(&mut self, chat_id: Option<ChatId>, sender: UserId, action: Act) -> Ask {
        let client_msg_id = self.name();
        Ask::Command(Command { chat_id, sender, client_msg_id, action })
    }

    pub fn send_ask(&mut self, chat_id: ChatId, sender: UserId, text: &str) -> Ask {
        self.command(Some(chat_id), sender, Act::Send(message(text)))
    }

    pub fn send(&mut self, chat_id: ChatId, sender: UserId, text: &str) -> Committed {
        let ask = self.send_ask(chat_id, sender, text);
        one(self.ask(ask))
    }

    pub fn change(&mut self, chat_id: ChatId, sender: UserId, change: Change) -> Reply {
        let ask = self.command(Some(chat_id), sender, Act::Change(change));
        self.ask(ask)
    }

    pub fn group(&mut self, owner: UserId, members: &[UserId], title: &str) -> ChatId {
        let create = Act::Create { title: title.to_owned(), members: members.to_vec() };
        let ask = self.command(None, owner, create);
        match self.ask(ask) {
            Reply::Durable(committed) => committed[0].event.chat_id,
            other => panic!("create: {other:?}"),
        }
    }

    pub fn load(&mut self, chat_id: ChatId) -> ChatState {
        match self.ask(Ask::LoadChat { chat_id }) {
            Reply::Chat(state) => state,
            other => panic!("load: {other:?}"),
        }
    }

    pub fn mark(&mut self, chat_id: ChatId, user_id: UserId, delivered_seq: u64, read_seq: u64) -> Marked {
        let marks = vec![MarkUpdate { user_id, delivered_seq, read_seq }];
        match self.ask(Ask::Marks { chat_id, marks }) {
            Reply::Marked(marked) => marked[0],
            other => panic!("marks: {other:?}"),
        }
    }

    pub fn unread(&self, chat_id: ChatId, user_id: UserId) -> u64 {
        match self.read(&Ask::Chats { user_id, after: None, limit: 0 }) {
            Reply::Chats { chats, .. } => {
                chats.into_iter().find(|chat| chat.chat_id == chat_id).expect("the chat is listed").unread
            }
            other => panic!("chats: {other:?}"),
        }
    }
}

pub fn message(text: &str) -> parley_protocol::Envelope {
    let body = MessageBody {
        content_type: "text/plain".to_owned(),
        payload: text.as_bytes().to_vec(),
        ..MessageBody::default()
    };
    Body::Message(body).to_envelope()
}

pub fn one(reply: Reply) -> Committed {
    match reply {
        Reply::Durable(committed) if committed.len() == 1 => committed.into_iter().next().unwrap(),
        other => panic!("not one event: {other:?}"),
    }
}

pub fn targets(committed: &Committed) -> Vec<(UserId, u64)> {
    let mut targets: Vec<_> = committed.targets.iter().map(|target| (target.user_id, target.inbox_seq)).collect();
    targets.sort_unstable();
    targets
}

pub fn refused(code: ErrorCode) -> Reply {
    Reply::Refused(code)
}
