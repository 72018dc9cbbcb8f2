//! What every engine must do: named cases, each over a store of its own, with the in-memory model as the oracle. Groups
//! are made by the writer itself, so they are what engines meet.

use crate::model::{Model, State};
use crate::reads::{ReadOptions, answer};
use crate::store::{CommandName, Group, Meta, OpId, Outcome, StoreRequest, StoreResult, View};
use crate::writer::{Action, Now, Options, Writer};
use parley_protocol::body::{Body, MessageBody};
use parley_protocol::frame::Change;
use parley_protocol::link::{Action as Act, Ask, Command, LinkHello, MarkUpdate, Reply, Request, ToGateway};
use parley_protocol::partition::split_mix_64;
use parley_protocol::{ChatId, ClientMsgId, Posting, Role, UserId, limits};
use std::collections::HashMap;

/// An engine under test.
pub trait Harness {
    /// What readers of this engine use.
    type View: View;
    /// As [`crate::store::Store::submit`].
    fn submit(&mut self, op: OpId, request: StoreRequest);
    /// As [`crate::store::Store::completions`], but waits until something completes. Called only while something is
    /// under way.
    fn poll(&mut self, done: &mut Vec<(OpId, StoreResult)>);
    /// What is confirmed now.
    fn view(&self) -> Self::View;
    /// Ends the engine without a farewell and opens its data again. Nothing is under way.
    fn reopen(self) -> Self;
    /// Has the next commit fail, as a full disk would; false if this engine cannot be made to.
    fn fail_next(&mut self) -> bool {
        false
    }
}

type Case<H> = (&'static str, fn(H));

/// Runs every case; each gets a new, empty store. Panics at the first that does not hold, after printing its name.
pub fn run<H: Harness>(mut new_store: impl FnMut() -> H) {
    let cases: [Case<H>; 10] = [
        ("an empty store knows nothing", an_empty_store_knows_nothing),
        ("what is durable survives a restart", what_is_durable_survives_a_restart),
        ("a group applied twice changes nothing", a_group_applied_twice_changes_nothing),
        ("a lower writer epoch is fenced", a_lower_writer_epoch_is_fenced),
        ("a failed group takes those on top of it along", a_failed_group_takes_those_on_top_of_it_along),
        ("a chat is loaded from its checkpoint and what follows", a_chat_is_loaded_from_its_checkpoint),
        ("loads see what is submitted", loads_see_what_is_submitted),
        ("ranges have their ends", ranges_have_their_ends),
        ("a channel is loaded without its members", a_channel_is_loaded_without_its_members),
        ("random work reads like the model", random_work_reads_like_the_model),
    ];
    for (name, case) in cases {
        println!("conformance: {name}");
        case(new_store());
    }
}

const START: Now = Now { mono_ms: 0, unix_ms: 1_800_000_000_000 };

/// A writer over the engine, and the model that gets the same groups.
struct Rig<H> {
    harness: H,
    model: Model,
    writer: Writer,
    now: Now,
    epoch: u64,
    next_no: u64,
    next_name: u128,
    replies: HashMap<u64, Reply>,
    expected: HashMap<OpId, StoreResult>,
    groups: Vec<Group>,
    under_way: usize,
    seed: u64,
}

impl<H: Harness> Rig<H> {
    fn new(harness: H, state: State, now: Now) -> Rig<H> {
        // Small batches: many groups.
        let options =
            Options { batch_commands_max: 8, group_members_max: 12, channel_members_max: 8, ..Rig::<H>::options() };
        let mut rig = Rig {
            harness,
            model: Model::open(state),
            writer: Writer::new(options),
            now,
            epoch: 0,
            next_no: 1,
            next_name: 1,
            replies: HashMap::new(),
            expected: HashMap::new(),
            groups: Vec::new(),
            under_way: 0,
            seed: 1,
        };
        rig.run();
        let hello = LinkHello { version: limits::LINK_VERSION, gateway: 1, shard: 0, shards: 1, home_epoch: 0 };
        rig.writer.handle_hello(rig.now, 1, hello);
        rig.run();
        rig
    }

    fn options() -> Options {
        Options {
            inbox_fanout_members_max: 5,
            chats_cached_max: 3,
            users_cached_max: 4,
            seats_cached_max: 4,
            ..Options::default()
        }
    }

    fn random(&mut self, below: usize) -> usize {
        self.seed += 1;
        (split_mix_64(self.seed) % below as u64) as usize
    }

    fn submit(&mut self, op: OpId, request: StoreRequest) {
        let expected = match &request {
            StoreRequest::Commit(group) => {
                self.groups.push(group.clone());
                StoreResult::Committed(self.model.commit(group))
            }
            load => self.model.state.load(load).expect("everything but a commit is a load"),
        };
        self.expected.insert(op, expected);
        self.under_way += 1;
        self.harness.submit(op, request);
    }

    fn run(&mut self) {
        loop {
            while let Some(action) = self.writer.poll_action() {
                match action {
                    Action::Store(op, request) => self.submit(op, request),
                    Action::Send { record: ToGateway::Answer(answer), .. } => {
                        self.replies.insert(answer.no, answer.reply);
                    }
                    Action::Send { record: ToGateway::Welcome(welcome), .. } => self.epoch = welcome.home_epoch,
                    Action::Halt(reason) => panic!("the writer ended: {reason:?}"),
                    _ => {}
                }
            }
            if self.under_way == 0 {
                self.writer.flush(self.now);
                match self.writer.poll_action() {
                    None => return,
                    Some(Action::Store(op, request)) => self.submit(op, request),
                    Some(Action::Send { record: ToGateway::Answer(answer), .. }) => {
                        self.replies.insert(answer.no, answer.reply);
                    }
                    Some(Action::Send { record: ToGateway::Welcome(welcome), .. }) => self.epoch = welcome.home_epoch,
                    Some(_) => {}
                }
                continue;
            }
            let mut done = Vec::new();
            self.harness.poll(&mut done);
            for (op, result) in done {
                self.under_way -= 1;
                let expected = self.expected.remove(&op).expect("every operation completes once");
                assert_eq!(sorted(result.clone()), sorted(expected), "the engine differs from the model");
                self.writer.handle_completion(self.now, op, result);
            }
            self.writer.flush(self.now);
        }
    }

    fn put(&mut self, ask: Ask) -> u64 {
        let no = self.next_no;
        self.next_no += 1;
        let request = Request { no, home_epoch: self.epoch, ask };
        self.writer.handle_request(self.now, 1, request);
        no
    }

    fn ask(&mut self, ask: Ask) -> Reply {
        let no = self.put(ask);
        self.run();
        self.replies.remove(&no).expect("at rest, every request is answered")
    }

    fn users(&mut self, count: usize) -> Vec<UserId> {
        let login = |at| Ask::Login { issuer: "i".to_owned(), subject: format!("{at}"), name: format!("name{at}") };
        let user = |reply| match reply {
            Reply::LoggedIn(user) => user.user_id,
            other => panic!("login: {other:?}"),
        };
        (0..count).map(|at| user(self.ask(login(at)))).collect()
    }

    fn command(&mut self, chat_id: Option<ChatId>, sender: UserId, action: Act) -> Ask {
        self.next_name += 1;
        Ask::Command(Command { chat_id, sender, client_msg_id: ClientMsgId(self.next_name), action })
    }

    fn say(&mut self, chat_id: ChatId, sender: UserId, bytes: usize) -> Ask {
        let body =
            MessageBody { content_type: "text/plain".to_owned(), payload: vec![b'x'; bytes], ..MessageBody::default() };
        self.command(Some(chat_id), sender, Act::Send(Body::Message(body).to_envelope()))
    }

    /// Ends the engine and opens it again under a new writer.
    fn reopen(self) -> Rig<H> {
        // No start takes less than some milliseconds; the ids count on it.
        let now = Now { mono_ms: self.now.mono_ms + 10, unix_ms: self.now.unix_ms + 10 };
        let (next_no, next_name, seed) = (self.next_no, self.next_name, self.seed);
        let rig = Rig::new(self.harness.reopen(), self.model.state, now);
        Rig { next_no, next_name, seed, ..rig }
    }

    fn compare(&self) {
        compare(&self.harness.view(), &self.model.state);
    }
}

fn sorted(mut result: StoreResult) -> StoreResult {
    if let StoreResult::Chat(Some(chat)) = &mut result {
        chat.members.sort_unstable_by_key(|member| member.user_id);
        chat.checkpoint.sent.sort_unstable();
    }
    result
}

/// Every read of a view against the model.
pub fn compare(view: &impl View, state: &State) {
    for user_id in state.users.keys().copied().chain([UserId(1)]) {
        assert_eq!(view.user(user_id), state.user(user_id));
        assert_eq!(view.chats(user_id, None, 100), state.chats(user_id, None, 100));
        let head = state.inboxes.get(&user_id).and_then(|inbox| inbox.last_key_value()).map_or(0, |(head, _)| *head);
        for (after, limit) in [(0, 1_000), (0, 2), (head / 2, 3), (head.saturating_sub(1), 5), (head, 5), (u64::MAX, 1)]
        {
            assert_eq!(view.entries(user_id, after, limit), state.entries(user_id, after, limit));
        }
        let options = ReadOptions {
            inbox_fanout_members_max: 5,
            sync_backlog_max: 1_000,
            page_bytes_max: limits::PAGE_BYTES_MAX,
        };
        let asks = [Ask::Inbox { user_id, after: 0, limit: 1_000 }, Ask::Chats { user_id, after: None, limit: 0 }];
        for ask in asks {
            assert_eq!(answer(view, &options, &ask), answer(state, &options, &ask), "{ask:?}");
        }
    }
    for key in state.uniques.keys().map(String::as_str).chain(["n\0nobody", ""]) {
        assert_eq!(view.unique(key), state.unique(key));
    }
    for chat_id in state.chats.keys().copied().chain([ChatId::group(1)]) {
        compare_chat(view, state, chat_id);
    }
}

fn compare_chat(view: &impl View, state: &State, chat_id: ChatId) {
    let newest = state.head(chat_id).expect("the model reads");
    let head = newest.as_ref().map_or(0, |event| event.seq);
    assert_eq!(view.head(chat_id), Ok(newest));
    assert_eq!(view.member_count(chat_id), state.member_count(chat_id));
    let checkpoint = view.checkpoint(chat_id).map(|mut checkpoint| {
        checkpoint.sent.sort_unstable();
        checkpoint
    });
    assert_eq!(checkpoint, state.checkpoint(chat_id));
    for seq in [0, 1, head, head + 1, u64::MAX] {
        assert_eq!(view.event(chat_id, seq), state.event(chat_id, seq));
    }
    for (from, to) in [(1, head), (1, 1), (head / 2, head), (2, head + 9), (head + 1, head + 2), (3, 2), (0, u64::MAX)]
    {
        for (limit, newest_first) in [(1_000, false), (1_000, true), (2, false), (2, true)] {
            let expected = state.events(chat_id, from, to, limit, newest_first);
            assert_eq!(view.events(chat_id, from, to, limit, newest_first), expected, "{from}..={to}");
        }
        // Own messages are not counted in channels.
        for user_id in state.users.keys().filter(|_| !chat_id.is_channel()) {
            let expected = state.count_messages(chat_id, *user_id, from, to);
            assert_eq!(view.count_messages(chat_id, *user_id, from, to), expected);
        }
    }
    for user_id in state.users.keys().copied() {
        assert_eq!(view.member(chat_id, user_id), state.member(chat_id, user_id));
        assert_eq!(view.marks(chat_id, user_id), state.marks(chat_id, user_id));
        for limit in [1, 100] {
            let expected = state.members(chat_id, Some(user_id), limit);
            assert_eq!(view.members(chat_id, Some(user_id), limit), expected);
            assert_eq!(view.chats(user_id, Some(chat_id), limit), state.chats(user_id, Some(chat_id), limit));
        }
    }
    assert_eq!(view.members(chat_id, None, 3), state.members(chat_id, None, 3));
}

fn one<H: Harness>(harness: &mut H, op: OpId, request: StoreRequest) -> StoreResult {
    harness.submit(op, request);
    let mut done = Vec::new();
    while done.is_empty() {
        harness.poll(&mut done);
    }
    assert_eq!((done.len(), done[0].0), (1, op));
    done.remove(0).1
}

fn an_empty_store_knows_nothing<H: Harness>(mut harness: H) {
    let chat_id = ChatId::group(5);
    let name = CommandName { chat_id, sender: UserId(1), client_msg_id: ClientMsgId(1) };
    let asked = [
        (StoreRequest::LoadMeta, StoreResult::Meta(Meta::default())),
        (StoreRequest::LoadChat(chat_id), StoreResult::Chat(None)),
        (StoreRequest::LoadUser(UserId(1)), StoreResult::User(None)),
        (StoreRequest::LoadMember { chat_id, user_id: UserId(1) }, StoreResult::Member(None)),
        (StoreRequest::FindCommand(name), StoreResult::Found(None)),
        (StoreRequest::FindUnique("n\0a".to_owned()), StoreResult::Unique(None)),
        (StoreRequest::LoadEvent { chat_id, seq: 1 }, StoreResult::Event(None)),
        (StoreRequest::CountMessages { chat_id, sender: UserId(1), from: 1, to: 9 }, StoreResult::Count(0)),
    ];
    for (op, (request, result)) in asked.into_iter().enumerate() {
        assert_eq!(one(&mut harness, op as OpId, request), result);
    }
    compare(&harness.view(), &State::default());
}

fn what_is_durable_survives_a_restart<H: Harness>(harness: H) {
    let mut rig = Rig::new(harness, State::default(), START);
    let users = rig.users(3);
    let direct = ChatId::direct(users[0], users[1]).expect("different users");
    let ask = rig.say(direct, users[0], 10);
    let Reply::Durable(first) = rig.ask(ask.clone()) else { panic!("the message is durable") };
    rig.compare();
    let mut rig = rig.reopen();
    rig.compare();
    let first = &first[0].event;
    let again = Reply::Duplicate { chat_id: direct, message_id: first.message_id, seq: first.seq };
    assert_eq!(rig.ask(ask), again, "a command is found after a restart");
    assert_eq!(rig.users(3), users, "identities are found after a restart");
    let next = rig.say(direct, users[1], 10);
    assert!(matches!(rig.ask(next), Reply::Durable(next) if next[0].event.seq == 2));
    rig.compare();
}

fn a_group_applied_twice_changes_nothing<H: Harness>(harness: H) {
    let mut rig = Rig::new(harness, State::default(), START);
    let users = rig.users(2);
    let direct = ChatId::direct(users[0], users[1]).expect("different users");
    for _ in 0..3 {
        let ask = rig.say(direct, users[0], 10);
        rig.ask(ask);
    }
    rig.ask(Ask::Mute { chat_id: direct, user_id: users[1], until_ms: 77 });
    let newest = rig.groups.last().cloned().expect("groups were made");
    for repeat in 0..2 {
        let result = one(&mut rig.harness, 1_000_000 + repeat, StoreRequest::Commit(newest.clone()));
        assert_eq!(result, StoreResult::Committed(Outcome::Durable));
        rig.compare();
    }
    let ask = rig.say(direct, users[1], 10);
    assert!(matches!(rig.ask(ask), Reply::Durable(next) if next[0].event.seq == 4));
    rig.reopen().compare();
}

fn a_lower_writer_epoch_is_fenced<H: Harness>(harness: H) {
    let rig = Rig::new(harness, State::default(), START);
    let mut rig = rig.reopen();
    rig.users(1);
    let newest = rig.groups.last().cloned().expect("groups were made");
    let stale =
        Group { no: newest.no + 1, writer_epoch: newest.writer_epoch - 1, opened: vec![(3, 9)], ..Group::default() };
    let result = one(&mut rig.harness, 1_000_000, StoreRequest::Commit(stale));
    assert_eq!(result, StoreResult::Committed(Outcome::Fenced));
    rig.compare();
}

fn a_failed_group_takes_those_on_top_of_it_along<H: Harness>(harness: H) {
    let mut rig = Rig::new(harness, State::default(), START);
    rig.users(2);
    if !rig.harness.fail_next() {
        println!("conformance: this engine cannot be made to fail");
        return;
    }
    let newest = rig.groups.last().cloned().expect("groups were made");
    let group = |no: u64, key: &str| Group {
        no,
        writer_epoch: newest.writer_epoch,
        uniques: vec![(format!("x\0{key}"), u128::from(no))],
        ..Group::default()
    };
    let commit = |rig: &mut Rig<H>, op: OpId, group: Group| match one(&mut rig.harness, op, StoreRequest::Commit(group))
    {
        StoreResult::Committed(outcome) => outcome,
        other => panic!("{other:?}"),
    };
    let no = newest.no + 1;
    assert!(matches!(commit(&mut rig, 1_000_000, group(no, "failed")), Outcome::Failed(_)));
    assert!(matches!(commit(&mut rig, 1_000_001, group(no + 1, "on top")), Outcome::Failed(_)));
    rig.compare();
    let again = group(no, "again");
    assert_eq!(rig.model.commit(&again), Outcome::Durable);
    assert_eq!(commit(&mut rig, 1_000_002, again), Outcome::Durable);
    rig.compare();
    assert_eq!(rig.harness.view().unique("x\0failed"), Ok(None));
    assert_eq!(rig.harness.view().unique("x\0on top"), Ok(None));
    rig.reopen().compare();
}

fn a_chat_is_loaded_from_its_checkpoint<H: Harness>(harness: H) {
    let mut rig = Rig::new(harness, State::default(), START);
    let users = rig.users(2);
    let direct = ChatId::direct(users[0], users[1]).expect("different users");
    for at in 0..150 {
        let ask = rig.say(direct, users[at % 2], at);
        rig.put(ask);
        if at % 7 == 0 {
            rig.run();
        }
    }
    rig.run();
    let stored = rig.model.state.load_chat(direct).expect("it was written");
    assert!(stored.checkpoint.seq > 64 && stored.tail.len() < 64, "the writer makes checkpoints");
    let mut rig = rig.reopen();
    let ask = rig.say(direct, users[0], 1);
    assert!(
        matches!(rig.ask(ask), Reply::Durable(next) if next[0].event.seq == 151 && next[0].event.sender_sent == 76)
    );
    rig.compare();
}

fn loads_see_what_is_submitted<H: Harness>(harness: H) {
    let mut rig = Rig::new(harness, State::default(), START);
    let users = rig.users(2);
    let newest = rig.groups.last().cloned().expect("groups were made");
    let key = "x\0seen".to_owned();
    let group = Group {
        no: newest.no + 1,
        writer_epoch: newest.writer_epoch,
        uniques: vec![(key.clone(), 5)],
        ..Group::default()
    };
    rig.harness.submit(1_000_000, StoreRequest::Commit(group.clone()));
    rig.harness.submit(1_000_001, StoreRequest::FindUnique(key));
    rig.harness.submit(1_000_002, StoreRequest::LoadUser(users[0]));
    let mut done = Vec::new();
    while done.len() < 3 {
        rig.harness.poll(&mut done);
    }
    done.sort_unstable_by_key(|(op, _)| *op);
    assert_eq!(done[0].1, StoreResult::Committed(Outcome::Durable));
    assert_eq!(done[1].1, StoreResult::Unique(Some(5)));
    assert!(matches!(&done[2].1, StoreResult::User(Some(user)) if user.row.user_id == users[0]));
    rig.model.commit(&group);
    rig.compare();
}

fn ranges_have_their_ends<H: Harness>(harness: H) {
    let mut rig = Rig::new(harness, State::default(), START);
    let users = rig.users(8);
    // Chats of neighbouring ids, so that a range that runs over its end shows a neighbour.
    for pair in users.windows(2) {
        let direct = ChatId::direct(pair[0], pair[1]).expect("different users");
        for bytes in [1, 300, 2] {
            let ask = rig.say(direct, pair[bytes % 2], bytes);
            rig.ask(ask);
        }
    }
    for at in 0..3 {
        let create = Act::Create { title: format!("group {at}"), members: users[at..at + 4].to_vec() };
        let ask = rig.command(None, users[at], create);
        rig.ask(ask);
    }
    rig.compare();
    rig.reopen().compare();
}

fn a_channel_is_loaded_without_its_members<H: Harness>(harness: H) {
    let mut rig = Rig::new(harness, State::default(), START);
    let users = rig.users(6);
    let create = Act::CreateChannel { title: "news".to_owned(), posting: Posting::Everybody };
    let ask = rig.command(None, users[0], create);
    let Reply::Durable(made) = rig.ask(ask) else { panic!("a channel is made") };
    let chat_id = made[0].event.chat_id;
    for user_id in &users[1..] {
        let ask = rig.command(Some(chat_id), *user_id, Act::Change(Change::Join {}));
        assert!(matches!(rig.ask(ask), Reply::Durable(_)));
    }
    for at in 0..90 {
        let ask = rig.say(chat_id, users[at % 6], at);
        rig.put(ask);
    }
    rig.run();
    let read = Ask::Marks { chat_id, marks: vec![MarkUpdate { user_id: users[1], delivered_seq: 20, read_seq: 20 }] };
    assert!(matches!(rig.ask(read), Reply::Marked(marks) if marks[0].own.read_sent == 0));
    let ask = rig.command(Some(chat_id), users[2], Act::Change(Change::Leave {}));
    rig.ask(ask);
    let mut rig = rig.reopen();
    let op = 1_000_000;
    let StoreResult::Chat(Some(stored)) = one(&mut rig.harness, op, StoreRequest::LoadChat(chat_id)) else {
        panic!("it was written");
    };
    assert!(stored.members.is_empty() && stored.checkpoint.channel_members() == 5);
    for (at, user_id) in users.iter().copied().chain([UserId(1)]).enumerate() {
        let expected = StoreResult::Member(rig.model.state.load_member(chat_id, user_id));
        let request = StoreRequest::LoadMember { chat_id, user_id };
        assert_eq!(one(&mut rig.harness, op + 1 + at as u64, request), expected);
    }
    let ask = rig.command(Some(chat_id), users[2], Act::Change(Change::Join {}));
    assert!(matches!(rig.ask(ask), Reply::Durable(next) if next[0].targets.len() == 1));
    rig.compare();
    rig.reopen().compare();
}

fn random_work_reads_like_the_model<H: Harness>(harness: H) {
    let mut rig = Rig::new(harness, State::default(), START);
    let users = rig.users(9);
    let mut chats: Vec<ChatId> = users.windows(2).filter_map(|pair| ChatId::direct(pair[0], pair[1])).collect();
    for round in 0..400 {
        let chat_id = chats[rig.random(chats.len())];
        let user_id = users[rig.random(users.len())];
        let other = users[rig.random(users.len())];
        let seq = rig.random(30) as u64;
        let change = |change| Act::Change(change);
        let ask = match rig.random(15) {
            12 => {
                let posting = if rig.random(3) == 0 { Posting::Admins } else { Posting::Everybody };
                rig.command(None, user_id, Act::CreateChannel { title: format!("{round}"), posting })
            }
            13 | 14 => {
                let channels: Vec<ChatId> = chats.iter().copied().filter(|chat_id| chat_id.is_channel()).collect();
                let channel = channels.get(rig.random(channels.len().max(1))).copied().unwrap_or(chat_id);
                rig.command(Some(channel), user_id, change(Change::Join {}))
            }
            0 => {
                let members = users[..rig.random(users.len())].to_vec();
                rig.command(None, user_id, Act::Create { title: format!("{round}"), members })
            }
            1 => rig.command(Some(chat_id), user_id, change(Change::Add { users: vec![other] })),
            2 => rig.command(Some(chat_id), user_id, change(Change::Remove { users: vec![other] })),
            3 => rig.command(Some(chat_id), user_id, change(Change::Role { user: other, role: Role::Owner })),
            4 => rig.command(Some(chat_id), user_id, change(Change::Leave {})),
            5 => Ask::Mute { chat_id, user_id, until_ms: seq },
            6 | 7 => Ask::Marks { chat_id, marks: vec![MarkUpdate { user_id, delivered_seq: seq + 1, read_seq: seq }] },
            _ => {
                let bytes = rig.random(600);
                rig.say(chat_id, user_id, bytes)
            }
        };
        rig.put(ask);
        if rig.random(5) == 0 {
            rig.run();
            chats.extend(rig.replies.drain().filter_map(|(_, reply)| match reply {
                Reply::Durable(made) if made[0].event.seq == 1 => Some(made[0].event.chat_id),
                _ => None,
            }));
            chats.sort_unstable();
            chats.dedup();
        }
        if round % 97 == 96 {
            rig.run();
            rig.compare();
            rig = rig.reopen();
        }
    }
    rig.run();
    rig.compare();
    rig.reopen().compare();
}
