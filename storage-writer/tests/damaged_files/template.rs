//! A small store with everything in it: chats, users, marks, names, tables, sealed journals and an active one; and what
//! was acknowledged, as it reads back.

use crate::common::{ALICE, BOB, Opened};
use parley_protocol::frame::Interval;
use parley_protocol::{Body, ChatId, ClientMsgId, Event, MessageBody, MessageId, Role, UserId};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;
use storage_core::store::{
    Append, Checkpoint, CommandName, CommandRow, Entry, EntryRow, Group, MarkRow, MarkWrite, MemberRow, Meta, Outcome,
    ReadError, StoreRequest, StoreResult, UserRow, View, name_key,
};
use storage_writer::store::embedded::{EmbeddedOptions, EmbeddedView};

/// Groups of messages at the most, however slowly tables are written.
const GROUPS_MAX: u64 = 400;

/// How much is in the store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// A table's part in memory, bytes: so few that most groups are written out, and that tables are merged.
    memtable_bytes: u64,
    /// Groups of messages at the least.
    groups_min: u64,
    /// Tables at the least.
    pub(crate) tables_min: usize,
    /// Journals: all but the last are sealed.
    pub(crate) journals: usize,
    /// Messages of a group in each chat.
    messages: u64,
    /// Users.
    users: usize,
    /// Chats.
    chats: usize,
    /// Homes.
    partitions: u16,
    /// Messages that are asked for one by one.
    asked: &'static [u64],
}

/// Tables of several blocks and of several levels.
pub(crate) const SMALL: Scale = Scale {
    memtable_bytes: 4 << 10,
    groups_min: 24,
    tables_min: 7,
    journals: 1,
    messages: 3,
    users: 5,
    chats: 3,
    partitions: 20,
    asked: &[1, 2, 30, 31, 50, 72],
};

/// Every kind of file, and so few bytes that each of them can be tried.
pub(crate) const TINY: Scale = Scale {
    memtable_bytes: 512,
    groups_min: 5,
    tables_min: 5,
    journals: 2,
    messages: 1,
    users: 2,
    chats: 1,
    partitions: 2,
    asked: &[1, 2, 5],
};

impl Scale {
    pub(crate) fn options(&self) -> EmbeddedOptions {
        EmbeddedOptions {
            cache_bytes: 1 << 20,
            memtable_bytes: self.memtable_bytes,
            journal_bytes_max: 64 << 20,
            disk_reserve_bytes: 0,
            names_filter_bytes: 4 << 10,
            ..EmbeddedOptions::default()
        }
    }

    fn users(&self) -> Vec<UserId> {
        [ALICE, BOB, UserId(33), UserId(44), UserId(55)][..self.users].to_vec()
    }

    fn chats(&self) -> Vec<(ChatId, Vec<UserId>)> {
        let (direct, users) = (ChatId::direct(ALICE, BOB).unwrap(), self.users());
        let some = users.iter().copied().skip(1).take(3).collect();
        let mut chats = vec![(direct, vec![ALICE, BOB]), (ChatId::group(7), users), (ChatId::group(8), some)];
        chats.truncate(self.chats);
        chats
    }
}

/// Numbers events, entries and groups as the writer would.
pub(crate) struct Author {
    scale: Scale,
    group: u64,
    heads: HashMap<ChatId, u64>,
    sent: HashMap<(ChatId, UserId), u64>,
    inboxes: HashMap<UserId, u64>,
}

impl Author {
    fn new(scale: Scale) -> Self {
        let (heads, sent, inboxes) = Default::default();
        Self { scale, group: 0, heads, sent, inboxes }
    }

    fn group(&mut self) -> Group {
        self.group += 1;
        Group { no: self.group, writer_epoch: 1, ..Group::default() }
    }

    /// The store's records, users, names, memberships.
    fn first(&mut self) -> Group {
        let mut group = self.group();
        group.meta = Some(Meta { writer_epoch: 1, home_epoch: 3, gateway: 4, ids_reserved_until_ms: 5 });
        group.opened = (0..self.scale.partitions).map(|partition| (partition, 3)).collect();
        for user_id in self.scale.users() {
            let name = format!("user {user_id}");
            group.uniques.push((name_key(&name), u128::from(user_id.0)));
            let (issuer, subject) = ("issuer".to_owned(), format!("subject {user_id}"));
            group.users.push(UserRow { user_id, name, issuer, subject });
        }
        group
    }

    /// Messages in every chat, marks in one, a checkpoint now and then.
    fn messages(&mut self) -> Group {
        let mut group = self.group();
        for (chat_id, members) in self.scale.chats() {
            let mut append = Append {
                chat_id,
                events: Vec::new(),
                entries: Vec::new(),
                commands: Vec::new(),
                members: Vec::new(),
                checkpoint: None,
                present: 0,
            };
            for index in 0..self.scale.messages {
                let sender = members[((self.group + index) % members.len() as u64) as usize];
                let event = self.event(chat_id, sender);
                for user_id in &members {
                    let inbox_seq = bump(self.inboxes.entry(*user_id).or_default());
                    let row = EntryRow::Event { chat_id, seq: event.seq };
                    append.entries.push(Entry { user_id: *user_id, inbox_seq, row });
                }
                let name = CommandName { chat_id, sender, client_msg_id: event.client_msg_id };
                append.commands.push(CommandRow { name, chat_id, message_id: event.message_id, seq: event.seq });
                append.events.push(event);
            }
            let seq = self.heads[&chat_id];
            if self.group % 8 == 2 {
                let interval = Interval { joined_seq: 1, left_seq: None, history_from: 1 };
                let row =
                    MemberRow { role: Some(Role::Member), intervals: vec![interval; self.group as usize / 8 + 1] };
                append.members = members.iter().map(|user_id| (*user_id, row.clone())).collect();
                let title = format!("title {}", self.group);
                let message_id = append.events.last().unwrap().message_id.0;
                append.checkpoint = Some(Checkpoint { seq, ordinal: seq, message_id, title, sent: Vec::new() });
            }
            let row = MarkRow { delivered_seq: seq, read_seq: seq - 1, read_ordinal: seq - 1, ..MarkRow::default() };
            let user_id = members[1];
            let inbox_seq = Some(bump(self.inboxes.entry(user_id).or_default()));
            group.marks.push(MarkWrite { chat_id, user_id, row, inbox_seq });
            group.appends.push(append);
        }
        group
    }

    fn event(&mut self, chat_id: ChatId, sender: UserId) -> Event {
        let seq = bump(self.heads.entry(chat_id).or_default());
        let payload = format!("message {seq} of {sender} in {chat_id}").into_bytes();
        let body = MessageBody { content_type: "text/plain".to_owned(), payload, ..MessageBody::default() };
        Event {
            chat_id,
            seq,
            ordinal: seq,
            message_id: MessageId(1_000 + seq),
            sender,
            sender_sent: bump(self.sent.entry((chat_id, sender)).or_default()),
            client_msg_id: ClientMsgId(u128::from(seq)),
            envelope: Body::Message(body).to_envelope(),
        }
    }
}

fn bump(number: &mut u64) -> u64 {
    *number += 1;
    *number
}

/// Makes the store in a directory.
pub(crate) fn build(dir: &Path, scale: Scale) {
    let mut opened = Opened::open_with(dir, &scale.options()).unwrap();
    let mut author = Author::new(scale);
    assert_eq!(opened.commit(author.first()), Outcome::Durable);
    let mut no = 0;
    while no < scale.groups_min || tables(dir) < scale.tables_min {
        no += 1;
        assert!(no < GROUPS_MAX, "no tables are written");
        assert_eq!(opened.commit(author.messages()), Outcome::Durable);
        // The engine writes tables in the background.
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One more group, of another start of the writer: a name and marks that no other group wrote.
pub(crate) fn append(opened: &mut Opened) {
    let user_id = ALICE;
    let name = "renamed ".repeat(120);
    let row = UserRow { user_id, name, issuer: "issuer".to_owned(), subject: "subject".to_owned() };
    let group = Group { no: 1, writer_epoch: 1, users: vec![row], ..Group::default() };
    assert_eq!(opened.commit(group), Outcome::Durable);
}

/// How many tables a store has.
pub(crate) fn tables(dir: &Path) -> usize {
    let dirs = std::fs::read_dir(dir.join("engine/keyspaces")).unwrap();
    let dirs = dirs.map(|entry| entry.unwrap().path().join("tables"));
    dirs.filter_map(|dir| std::fs::read_dir(dir).ok()).map(Iterator::count).sum()
}

/// Everything that can be asked of the store, each with its answer.
pub(crate) fn read_back(opened: &mut Opened, scale: &Scale) -> BTreeMap<String, Result<String, String>> {
    let mut reads = BTreeMap::new();
    let view = opened.store.views().newest();
    let view: &EmbeddedView = &view;
    let mut note = |what: String, answer: Result<String, ReadError>| {
        assert!(reads.insert(what, answer.map_err(|error| error.to_string())).is_none());
    };
    for user in scale.users() {
        note(format!("user {user}"), view.user(user).map(|found| format!("{found:?}")));
        note(format!("inbox of {user}"), view.entries(user, 0, 10_000).map(|found| format!("{found:?}")));
        note(format!("chats of {user}"), view.chats(user, None, 100).map(|found| format!("{found:?}")));
        let name = name_key(&format!("user {user}"));
        note(format!("name of {user}"), view.unique(&name).map(|found| format!("{found:?}")));
    }
    for (chat, members) in scale.chats() {
        note(format!("head of {chat}"), view.head(chat).map(|found| format!("{found:?}")));
        note(format!("events of {chat}"), view.events(chat, 0, 10_000, 10_000, false).map(|all| format!("{all:?}")));
        note(format!("checkpoint of {chat}"), view.checkpoint(chat).map(|found| format!("{found:?}")));
        note(format!("members of {chat}"), view.members(chat, None, 100).map(|found| format!("{found:?}")));
        note(format!("size of {chat}"), view.member_count(chat).map(|found| format!("{found:?}")));
        for user in members {
            note(format!("member {user} of {chat}"), view.member(chat, user).map(|found| format!("{found:?}")));
            note(format!("marks of {user} in {chat}"), view.marks(chat, user).map(|found| format!("{found:?}")));
            let count = view.count_messages(chat, user, 5, 60);
            note(format!("messages of {user} in {chat}"), count.map(|found| format!("{found:?}")));
        }
        for seq in scale.asked.iter().copied() {
            note(format!("event {seq} of {chat}"), view.event(chat, seq).map(|found| format!("{found:?}")));
            for client_msg_id in [seq, seq + 10_000].map(|id| ClientMsgId(u128::from(id))) {
                for sender in scale.users() {
                    let name = CommandName { chat_id: chat, sender, client_msg_id };
                    note(format!("{name:?}"), found(opened.ask(StoreRequest::FindCommand(name))));
                }
            }
        }
        note(format!("load of {chat}"), found(opened.ask(StoreRequest::LoadChat(chat))));
    }
    note("records".to_owned(), found(opened.ask(StoreRequest::LoadMeta)));
    reads
}

fn found(result: StoreResult) -> Result<String, ReadError> {
    match result {
        StoreResult::Damaged(text) => Err(ReadError::Damaged(text)),
        other => Ok(format!("{other:?}")),
    }
}
