//! A store that the real writer grew: people, direct chats, groups that cross the inbox limit both ways, members who
//! leave, marks, mutes, titles, a log and inboxes that are longer than one partition of a cluster; and a comparison of
//! all that two stores answer.

use super::common::client::{Client, say};
use super::common::options;
use parley_protocol::frame::Change;
use parley_protocol::link::{Action, Answer, Ask, Command, MarkUpdate, Reply, ToGateway};
use parley_protocol::partition::split_mix_64;
use parley_protocol::{ChatId, ClientMsgId, Role, UserId};
use std::collections::BTreeSet;
use std::path::Path;
use storage_core::store::{View, identity_key, name_key};
use storage_writer::{Options, run};

/// Requests without an answer, at the most.
const UNANSWERED_MAX: usize = 256;
/// Members of a group whose messages still leave inbox entries.
const INBOX_FANOUT: usize = 12;

/// How much there is.
pub(crate) struct Size {
    pub(crate) users: usize,
    pub(crate) groups: usize,
    /// Messages and changes in chats of all kinds.
    pub(crate) steps: u64,
    /// Messages of the longest chat.
    pub(crate) long_chat: u64,
}

/// A quick one.
pub(crate) const SMALL: Size = Size { users: 40, groups: 6, steps: 600, long_chat: 50 };
/// One that crosses every border: 2,048 events of a chat, 8,192 entries of an inbox.
pub(crate) const LARGE: Size = Size { users: 400, groups: 40, steps: 12_000, long_chat: 9_000 };

/// Who and what is in the store.
pub(crate) struct Grown {
    pub(crate) users: Vec<UserId>,
    pub(crate) chats: Vec<ChatId>,
}

struct Load {
    client: Client,
    unanswered: usize,
    name: u128,
    seed: u64,
    /// Chats with who was in them at first.
    chats: Vec<(ChatId, Vec<UserId>)>,
}

/// Lets a writer grow a store and stops it.
pub(crate) fn grow(dir: &Path, size: &Size) -> Grown {
    let mut settings = Options { embedded: options(), ..Options::new(dir) };
    // Tables of their own on the disk, besides what is in the journal.
    settings.embedded.memtable_bytes = 1 << 20;
    settings.writer.inbox_fanout_members_max = INBOX_FANOUT;
    let handle = run(settings.clone()).expect("the writer starts");
    let client = Client::open(&settings.socket, 7);
    let mut load = Load { client, unanswered: 0, name: 0, seed: 1, chats: Vec::new() };
    let users: Vec<UserId> = (0..size.users).map(|at| load.client.login(&format!("user{at}"))).collect();
    for at in 0..size.groups {
        // From two members to three times the limit.
        let count = 1 + load.below(3 * INBOX_FANOUT);
        let members: BTreeSet<UserId> = (0..count).map(|_| load.pick(&users)).collect();
        let members: Vec<UserId> = members.into_iter().collect();
        let founder = users[at % 7];
        let title = format!("group {at} \u{263a}");
        let command = load.command(None, founder, Action::Create { title, members: members.clone() });
        let Reply::Durable(made) = load.client.ask(command) else { panic!("a group is made") };
        load.chats.push((made[0].event.chat_id, [vec![founder], members].concat()));
    }
    for _ in 0..size.users {
        let (one, other) = (load.pick(&users), load.pick(&users));
        load.chats.extend(ChatId::direct(one, other).map(|chat_id| (chat_id, vec![one, other])));
    }
    // The first user is in both long chats: more entries than one bucket holds.
    let long: Vec<ChatId> = users[1..3].iter().filter_map(|other| ChatId::direct(users[0], *other)).collect();
    let mut chats: Vec<ChatId> = load.chats.iter().map(|(chat_id, _)| *chat_id).chain(long.iter().copied()).collect();
    chats.sort_unstable();
    chats.dedup();
    chats.iter().for_each(|chat_id| load.client.open_chat(*chat_id));
    for no in 0..size.long_chat {
        load.say(long[0], users[(no % 2) as usize], no as usize % 300);
        if no % 3 == 0 {
            load.say(long[1], users[0], 10);
        }
    }
    for _ in 0..size.steps {
        load.step(&users);
    }
    load.drain();
    handle.stop().expect("the writer stops");
    Grown { users, chats }
}

impl Load {
    fn below(&mut self, end: usize) -> usize {
        self.seed += 1;
        (split_mix_64(self.seed) % end as u64) as usize
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn command(&mut self, chat_id: Option<ChatId>, sender: UserId, action: Action) -> Ask {
        self.name += 1;
        // Names of real clients are random.
        let name = u128::from(split_mix_64(self.name as u64)) << 64 | self.name;
        Ask::Command(Command { chat_id, sender, client_msg_id: ClientMsgId(name), action })
    }

    fn say(&mut self, chat_id: ChatId, sender: UserId, bytes: usize) {
        self.name += 1;
        self.ask(say(
            chat_id,
            sender,
            u128::from(split_mix_64(self.name as u64)) << 64 | self.name,
            &"x".repeat(bytes),
        ));
    }

    /// Someone does something in a chat; what is not allowed (any more) is refused.
    fn step(&mut self, users: &[UserId]) {
        let at = self.below(self.chats.len());
        let (chat_id, first, members) = (self.chats[at].0, self.chats[at].1[0], self.chats[at].1.clone());
        let (someone, other) = (self.pick(&members), self.pick(users));
        let change = |change| Action::Change(change);
        let ask = match self.below(24) {
            0..3 => self.command(Some(chat_id), first, change(Change::Add { users: vec![other] })),
            3 => self.command(Some(chat_id), first, change(Change::Remove { users: vec![someone] })),
            4 => {
                let title = format!("title {}", self.name);
                self.command(Some(chat_id), first, change(Change::Rename { title }))
            }
            5 => self.command(Some(chat_id), first, change(Change::Role { user: someone, role: Role::Admin })),
            6 => self.command(Some(chat_id), someone, change(Change::Leave {})),
            7 | 8 => Ask::Mute { chat_id, user_id: someone, until_ms: self.seed },
            9..13 => {
                let (delivered_seq, read_seq) = (self.below(30) as u64 + 2, self.below(30) as u64 + 1);
                Ask::Marks { chat_id, marks: vec![MarkUpdate { user_id: someone, delivered_seq, read_seq }] }
            }
            _ => {
                let bytes = self.below(400);
                return self.say(chat_id, someone, bytes);
            }
        };
        self.ask(ask);
    }

    fn ask(&mut self, ask: Ask) {
        self.client.send(ask);
        self.unanswered += 1;
        if self.unanswered == UNANSWERED_MAX {
            self.take();
        }
    }

    fn take(&mut self) {
        match self.client.read().expect("an answer") {
            ToGateway::Answer(Answer { reply: Reply::Failed | Reply::Fenced, .. }) => panic!("the writer fails"),
            ToGateway::Answer(_) => {}
            other => panic!("{other:?}"),
        }
        self.unanswered -= 1;
    }

    fn drain(&mut self) {
        while self.unanswered > 0 {
            self.take();
        }
    }
}

/// Compares everything that readers may ask of two stores.
pub(crate) fn compare(grown: &Grown, one: &impl View, other: &impl View) {
    let Grown { users, chats } = grown;
    for (at, user_id) in users.iter().copied().enumerate() {
        let user = one.user(user_id);
        assert!(matches!(user, Ok(Some(_))), "{user:?}");
        assert_eq!(user, other.user(user_id));
        for key in [identity_key("test", &format!("user{at}")), name_key(&format!("user{at}")), "n\0nobody".to_owned()]
        {
            assert_eq!(one.unique(&key), other.unique(&key));
        }
        let mut after = 0;
        loop {
            let entries = one.entries(user_id, after, 1_000).expect("read");
            assert_eq!(Ok(&entries), other.entries(user_id, after, 1_000).as_ref(), "inbox of {user_id}");
            match entries.last() {
                Some((last, _)) => after = *last,
                None => break,
            }
        }
        assert_eq!(one.chats(user_id, None, 10_000), other.chats(user_id, None, 10_000));
    }
    for chat_id in chats.iter().copied() {
        compare_chat(users, chat_id, one, other);
    }
}

fn compare_chat(users: &[UserId], chat_id: ChatId, one: &impl View, other: &impl View) {
    let head = one.head(chat_id).expect("read");
    assert_eq!(Ok(&head), other.head(chat_id).as_ref());
    let head = head.map_or(0, |event| event.seq);
    assert_eq!(one.checkpoint(chat_id), other.checkpoint(chat_id));
    assert_eq!(one.member_count(chat_id), other.member_count(chat_id));
    let members = one.members(chat_id, None, 10_000).expect("read");
    assert_eq!(Ok(&members), other.members(chat_id, None, 10_000).as_ref());
    for (user_id, _) in members {
        assert_eq!(one.marks(chat_id, user_id), other.marks(chat_id, user_id));
        let counted = one.count_messages(chat_id, user_id, 2, head);
        assert_eq!(counted, other.count_messages(chat_id, user_id, 2, head));
    }
    assert_eq!(one.member(chat_id, users[0]), other.member(chat_id, users[0]));
    for from in (1..=head + 1).step_by(1_000) {
        let events = one.events(chat_id, from, u64::MAX, 1_000, false);
        assert_eq!(events, other.events(chat_id, from, u64::MAX, 1_000, false));
    }
    assert_eq!(one.events(chat_id, 1, head, 70, true), other.events(chat_id, 1, head, 70, true));
}
