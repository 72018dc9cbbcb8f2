//! The store in memory: the oracle that engines are compared with, and the ground of the simulator. It asserts what a
//! writer promises an engine. Rows are put by key, so putting one twice changes nothing.

use crate::planted::{self, Bug};
use crate::store::{
    APPEND_EVENTS_MAX, Append, Checkpoint, CommandName, CommandRow, EntryRow, Group, MarkRow, MemberRow, Meta, OpId,
    Outcome, ReadError, SEQ_BUCKET, Store, StoreRequest, StoreResult, StoredChat, StoredMember, StoredUser, UserRow,
    View,
};
use parley_protocol::body::kind;
use parley_protocol::{ChatId, Event, UserId};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

/// The rows of a chat.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatRows {
    /// By `seq`.
    pub events: BTreeMap<u64, Event>,
    /// The newest.
    pub checkpoint: Checkpoint,
    /// Present and past.
    pub members: BTreeMap<UserId, MemberRow>,
    /// Of those who ever had one.
    pub marks: BTreeMap<UserId, MarkRow>,
}

/// Every row of a store, and a view of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Records of the store itself.
    pub meta: Meta,
    /// Partitions with the epoch under which they were opened.
    pub opened: BTreeMap<u16, u64>,
    /// Chats by id.
    pub chats: BTreeMap<ChatId, ChatRows>,
    /// Users by id.
    pub users: BTreeMap<UserId, UserRow>,
    /// Entries by number, per user.
    pub inboxes: BTreeMap<UserId, BTreeMap<u64, EntryRow>>,
    /// Commands by chat (0 for creations), sender and the sender's name.
    pub commands: BTreeMap<(ChatId, UserId, u128), CommandRow>,
    /// Unique keys.
    pub uniques: BTreeMap<String, u128>,
}

fn key_of(name: &CommandName) -> (ChatId, UserId, u128) {
    (name.chat_id, name.sender, name.client_msg_id.0)
}

impl State {
    /// Puts every row of a group.
    pub fn put(&mut self, group: &Group) {
        if let Some(meta) = &group.meta {
            self.meta = meta.clone();
        }
        for (partition, epoch) in &group.opened {
            let stored = self.opened.entry(*partition).or_default();
            *stored = (*epoch).max(*stored);
        }
        for user in &group.users {
            self.users.insert(user.user_id, user.clone());
        }
        for (key, value) in &group.uniques {
            self.uniques.insert(key.clone(), *value);
        }
        for append in &group.appends {
            self.put_events(append);
            self.put_derived(append);
        }
        self.put_marks(group);
    }

    /// Puts the events of an append: the truth.
    pub fn put_events(&mut self, append: &Append) {
        let rows = self.chats.entry(append.chat_id).or_default();
        rows.events.extend(append.events.iter().map(|event| (event.seq, event.clone())));
    }

    /// Puts the rows of an append that follow from its events.
    pub fn put_derived(&mut self, append: &Append) {
        for entry in &append.entries {
            self.inboxes.entry(entry.user_id).or_default().insert(entry.inbox_seq, entry.row);
        }
        for row in &append.commands {
            self.commands.insert(key_of(&row.name), *row);
        }
        let rows = self.chats.entry(append.chat_id).or_default();
        rows.members.extend(append.members.iter().cloned());
        if let Some(checkpoint) = &append.checkpoint {
            rows.checkpoint = checkpoint.clone();
        }
    }

    fn put_marks(&mut self, group: &Group) {
        for write in &group.marks {
            let marks = self.chats.entry(write.chat_id).or_default().marks.entry(write.user_id).or_default();
            if write.row.read_seq >= marks.read_seq || planted::has(Bug::ReadMarkFalls) {
                (marks.read_seq, marks.read_ordinal, marks.read_sent) =
                    (write.row.read_seq, write.row.read_ordinal, write.row.read_sent);
            }
            marks.delivered_seq = marks.delivered_seq.max(write.row.delivered_seq);
            marks.muted_until_ms = write.row.muted_until_ms;
            if let Some(inbox_seq) = write.inbox_seq {
                let row = EntryRow::Own { chat_id: write.chat_id };
                self.inboxes.entry(write.user_id).or_default().insert(inbox_seq, row);
            }
        }
    }

    /// Panics unless `group` goes on from this state as a writer promises.
    pub fn check_group(&self, group: &Group) {
        let mut heads: BTreeMap<UserId, Vec<(u64, EntryRow)>> = BTreeMap::new();
        let mut chats = std::collections::BTreeSet::new();
        for append in &group.appends {
            assert!(chats.insert(append.chat_id), "one append a chat");
            self.check_append(append);
            for entry in &append.entries {
                heads.entry(entry.user_id).or_default().push((entry.inbox_seq, entry.row));
            }
        }
        for write in &group.marks {
            let row = EntryRow::Own { chat_id: write.chat_id };
            heads.entry(write.user_id).or_default().extend(write.inbox_seq.map(|inbox_seq| (inbox_seq, row)));
        }
        for (user_id, mut entries) in heads {
            let inbox = self.inboxes.get(&user_id);
            let head = inbox.and_then(|inbox| inbox.last_key_value()).map_or(0, |(inbox_seq, _)| *inbox_seq);
            entries.sort_unstable_by_key(|(inbox_seq, _)| *inbox_seq);
            for (at, (inbox_seq, row)) in entries.iter().enumerate() {
                assert_eq!(*inbox_seq, head + 1 + at as u64, "the inbox of {user_id:?} is dense");
                let EntryRow::Event { chat_id, seq } = row else { continue };
                let earlier = entries[..at].iter().map(|(_, row)| row);
                let stored = inbox.into_iter().flat_map(|inbox| inbox.values());
                let last = stored.chain(earlier).filter_map(|row| match row {
                    EntryRow::Event { chat_id: of, seq } if of == chat_id => Some(*seq),
                    _ => None,
                });
                assert!(last.max().is_none_or(|last| last < *seq), "entries of one chat rise in an inbox");
            }
        }
        for (key, value) in &group.uniques {
            assert!(self.uniques.get(key).is_none_or(|stored| stored == value), "unique keys are looked up before");
        }
        for user in &group.users {
            if let Some(stored) = self.users.get(&user.user_id) {
                let same = (&stored.issuer, &stored.subject) == (&user.issuer, &user.subject);
                assert!(same && stored.name.is_empty(), "user ids are never given twice; a name is given once");
            }
        }
    }

    fn check_append(&self, append: &Append) {
        let head = self.chats.get(&append.chat_id).and_then(|rows| rows.events.last_key_value()).map(|(_, head)| head);
        let (mut seq, mut ordinal) = head.map_or((0, 0), |head| (head.seq, head.ordinal));
        let mut message_id = head.map_or(0, |head| head.message_id.0);
        assert!(!append.events.is_empty(), "an append has events");
        assert!(append.events.len() <= APPEND_EVENTS_MAX, "an append is bounded");
        let border = (seq + 1).next_multiple_of(SEQ_BUCKET);
        assert!(seq + append.events.len() as u64 <= border, "an append lies within one bucket");
        for event in &append.events {
            ordinal += u64::from(event.envelope.kind == kind::MESSAGE);
            assert_eq!(
                (event.chat_id, event.seq, event.ordinal),
                (append.chat_id, seq + 1, ordinal),
                "the log is dense"
            );
            assert!(event.message_id.0 > message_id, "ids rise");
            (seq, message_id) = (event.seq, event.message_id.0);
        }
        for row in &append.commands {
            assert!(!self.commands.contains_key(&key_of(&row.name)), "a command is numbered once");
        }
    }

    /// A chat as the writer loads it.
    pub fn load_chat(&self, chat_id: ChatId) -> Option<StoredChat> {
        let rows = self.chats.get(&chat_id).filter(|rows| !rows.events.is_empty())?;
        let member = |(user_id, row): (&UserId, &MemberRow)| StoredMember {
            user_id: *user_id,
            row: row.clone(),
            marks: rows.marks.get(user_id).copied().unwrap_or_default(),
        };
        Some(StoredChat {
            checkpoint: rows.checkpoint.clone(),
            tail: rows.events.range(rows.checkpoint.seq + 1..).map(|(_, event)| event.clone()).collect(),
            members: if chat_id.is_channel() { Vec::new() } else { rows.members.iter().map(member).collect() },
        })
    }

    /// One member as the writer loads it.
    pub fn load_member(&self, chat_id: ChatId, user_id: UserId) -> Option<StoredMember> {
        let rows = self.chats.get(&chat_id)?;
        let row = rows.members.get(&user_id)?.clone();
        Some(StoredMember { user_id, row, marks: rows.marks.get(&user_id).copied().unwrap_or_default() })
    }

    fn user_of(&self, user_id: UserId) -> Option<StoredUser> {
        let row = self.users.get(&user_id)?.clone();
        let inbox = self.inboxes.get(&user_id).and_then(|inbox| inbox.last_key_value());
        Some(StoredUser { row, inbox_head: inbox.map_or(0, |(inbox_seq, _)| *inbox_seq) })
    }

    fn count(&self, chat_id: ChatId, sender: UserId, from: u64, to: u64) -> u64 {
        let Some(rows) = self.chats.get(&chat_id).filter(|_| from <= to) else { return 0 };
        let own = |event: &&Event| event.sender == sender && event.envelope.kind == kind::MESSAGE;
        rows.events.range(from..=to).map(|(_, event)| event).filter(own).count() as u64
    }

    /// What a load answers; `None` for a commit.
    pub fn load(&self, request: &StoreRequest) -> Option<StoreResult> {
        Some(match request {
            StoreRequest::LoadMeta => StoreResult::Meta(self.meta.clone()),
            StoreRequest::LoadChat(chat_id) => StoreResult::Chat(self.load_chat(*chat_id).map(Box::new)),
            StoreRequest::LoadMember { chat_id, user_id } => StoreResult::Member(self.load_member(*chat_id, *user_id)),
            StoreRequest::LoadUser(user_id) => StoreResult::User(self.user_of(*user_id)),
            StoreRequest::FindCommand(name) => StoreResult::Found(self.commands.get(&key_of(name)).copied()),
            StoreRequest::FindUnique(key) => StoreResult::Unique(self.uniques.get(key).copied()),
            StoreRequest::CountMessages { chat_id, sender, from, to } => {
                StoreResult::Count(self.count(*chat_id, *sender, *from, *to))
            }
            StoreRequest::LoadEvent { chat_id, seq } => {
                let event = self.chats.get(chat_id).and_then(|rows| rows.events.get(seq)).cloned();
                StoreResult::Event(event.map(Box::new))
            }
            StoreRequest::Commit(_) => return None,
        })
    }
}

impl View for State {
    fn user(&self, user_id: UserId) -> Result<Option<StoredUser>, ReadError> {
        Ok(self.user_of(user_id))
    }

    fn unique(&self, key: &str) -> Result<Option<u128>, ReadError> {
        Ok(self.uniques.get(key).copied())
    }

    fn entries(&self, user_id: UserId, after: u64, limit: u32) -> Result<Vec<(u64, EntryRow)>, ReadError> {
        let Some(inbox) = self.inboxes.get(&user_id) else { return Ok(Vec::new()) };
        let above = inbox.range((Bound::Excluded(after), Bound::Included(after.saturating_add(u64::from(limit)))));
        Ok(above.map(|(inbox_seq, row)| (*inbox_seq, *row)).collect())
    }

    fn event(&self, chat_id: ChatId, seq: u64) -> Result<Option<Event>, ReadError> {
        Ok(self.chats.get(&chat_id).and_then(|rows| rows.events.get(&seq)).cloned())
    }

    fn head(&self, chat_id: ChatId) -> Result<Option<Event>, ReadError> {
        let rows = self.chats.get(&chat_id);
        Ok(rows.and_then(|rows| rows.events.last_key_value()).map(|(_, event)| event.clone()))
    }

    fn events(
        &self,
        chat_id: ChatId,
        from: u64,
        to: u64,
        limit: u32,
        newest_first: bool,
    ) -> Result<Vec<Event>, ReadError> {
        let Some(rows) = self.chats.get(&chat_id).filter(|_| from <= to) else { return Ok(Vec::new()) };
        let events = rows.events.range(from..=to).map(|(_, event)| event);
        let limit = limit as usize;
        Ok(if newest_first {
            events.rev().take(limit).cloned().collect()
        } else {
            events.take(limit).cloned().collect()
        })
    }

    fn count_messages(&self, chat_id: ChatId, sender: UserId, from: u64, to: u64) -> Result<u64, ReadError> {
        Ok(self.count(chat_id, sender, from, to))
    }

    fn checkpoint(&self, chat_id: ChatId) -> Result<Checkpoint, ReadError> {
        Ok(self.chats.get(&chat_id).map(|rows| rows.checkpoint.clone()).unwrap_or_default())
    }

    fn member(&self, chat_id: ChatId, user_id: UserId) -> Result<Option<MemberRow>, ReadError> {
        Ok(self.chats.get(&chat_id).and_then(|rows| rows.members.get(&user_id)).cloned())
    }

    fn marks(&self, chat_id: ChatId, user_id: UserId) -> Result<MarkRow, ReadError> {
        let rows = self.chats.get(&chat_id);
        Ok(rows.and_then(|rows| rows.marks.get(&user_id)).copied().unwrap_or_default())
    }

    fn members(
        &self,
        chat_id: ChatId,
        after: Option<UserId>,
        limit: u32,
    ) -> Result<Vec<(UserId, MemberRow)>, ReadError> {
        let Some(rows) = self.chats.get(&chat_id) else { return Ok(Vec::new()) };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let members = rows.members.range((from, Bound::Unbounded)).take(limit as usize);
        Ok(members.map(|(user_id, row)| (*user_id, row.clone())).collect())
    }

    fn member_count(&self, chat_id: ChatId) -> Result<u32, ReadError> {
        let Some(rows) = self.chats.get(&chat_id) else { return Ok(0) };
        Ok(rows.members.values().filter(|row| row.role.is_some()).count() as u32)
    }

    fn chats(&self, user_id: UserId, after: Option<ChatId>, limit: u32) -> Result<Vec<(ChatId, MemberRow)>, ReadError> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let chats = self.chats.range((from, Bound::Unbounded));
        let own = chats.filter_map(|(chat_id, rows)| Some((*chat_id, rows.members.get(&user_id)?.clone())));
        Ok(own.take(limit as usize).collect())
    }
}

/// A well-behaved engine in memory: every operation completes at once.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// What is stored.
    pub state: State,
    /// The last group that was applied since the start.
    pub group_no: u64,
    done: VecDeque<(OpId, StoreResult)>,
}

impl Model {
    /// The engine after a start with what is stored.
    pub fn open(state: State) -> Model {
        Model { state, ..Model::default() }
    }

    /// Applies a group that goes on from the last one, or was applied before.
    pub fn commit(&mut self, group: &Group) -> Outcome {
        if group.writer_epoch < self.state.meta.writer_epoch && !planted::has(Bug::WriterNotFenced) {
            return Outcome::Fenced;
        }
        if group.no > self.group_no {
            assert_eq!(group.no, self.group_no + 1, "groups are dense");
            if !planted::any() {
                self.state.check_group(group);
            }
            self.state.put(group);
            self.group_no = group.no;
        }
        Outcome::Durable
    }
}

impl Store for Model {
    fn submit(&mut self, op: OpId, request: StoreRequest) {
        let result = match &request {
            StoreRequest::Commit(group) => StoreResult::Committed(self.commit(group)),
            load => self.state.load(load).expect("everything but a commit is a load"),
        };
        self.done.push_back((op, result));
    }

    fn completions(&mut self, done: &mut Vec<(OpId, StoreResult)>) {
        done.extend(self.done.drain(..));
    }
}
