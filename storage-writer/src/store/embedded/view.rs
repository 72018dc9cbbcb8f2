//! Reads of the embedded store over one snapshot of the engine: the writer's loads, and what reader threads see.

use super::layout::{self, Damage};
use super::runs::{RUN_ENTRIES_MAX, Run};
use super::tables::Tables;
use fjall::{Database, Keyspace, Readable, Snapshot};
use parley_protocol::body::kind;
use parley_protocol::event::ArchivedEvent;
use parley_protocol::{ChatId, Event, UserId};
use rkyv::rancor::Error as RkyvError;
use std::ops::ControlFlow;
use std::sync::Arc;
use storage_core::store::{
    Checkpoint, CommandName, CommandRow, EntryRow, MarkRow, MemberRow, Meta, ReadError, StoredChat, StoredMember,
    StoredUser, UserRow, View,
};

/// One consistent sight of the store.
#[derive(Clone)]
pub struct EmbeddedView {
    snapshot: Snapshot,
    tables: Arc<Tables>,
}

type Read<T> = Result<T, ReadError>;

/// Names a damaged row: its table, its key in hex, what is wrong.
fn damaged(table: &Keyspace, key: &[u8], damage: Damage) -> ReadError {
    let mut text = format!("embedded store, {}, table {}, key ", table.path().display(), &**table.name());
    for byte in key {
        text.push_str(&format!("{byte:02x}"));
    }
    told(format!("{text}: {damage}"))
}

/// Operators hear of damage where it is met; who asked hears only that it is there.
fn told(text: String) -> ReadError {
    tracing::error!("damaged data: {text}");
    ReadError::Damaged(text)
}

/// Names an unreadable table.
fn unreadable(table: &Keyspace, error: &fjall::Error) -> ReadError {
    told(format!("embedded store, {}, table {}: {error}", table.path().display(), &**table.name()))
}

impl EmbeddedView {
    /// What is in the store now.
    pub(crate) fn take(database: &Database, tables: &Arc<Tables>) -> Self {
        Self { snapshot: database.snapshot(), tables: tables.clone() }
    }

    pub(crate) fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// A row by its key, decoded.
    fn get<T>(&self, table: &Keyspace, key: &[u8], parse: impl FnOnce(&[u8]) -> Result<T, Damage>) -> Read<Option<T>> {
        match self.snapshot.get(table, key) {
            Ok(Some(value)) => parse(&value).map(Some).map_err(|damage| damaged(table, key, damage)),
            Ok(None) => Ok(None),
            Err(error) => Err(unreadable(table, &error)),
        }
    }

    /// Every row of a range, in order or against it, until the visitor breaks.
    pub(crate) fn scan(
        &self,
        table: &Keyspace,
        range: std::ops::RangeInclusive<&[u8]>,
        backwards: bool,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, Damage>,
    ) -> Read<()> {
        let mut rows = self.snapshot.range(table, range);
        while let Some(row) = if backwards { rows.next_back() } else { rows.next() } {
            let (key, value) = row.into_inner().map_err(|error| unreadable(table, &error))?;
            match visit(&key, &value) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => break,
                Err(damage) => return Err(damaged(table, &key, damage)),
            }
        }
        Ok(())
    }

    /// The store's own records.
    pub(crate) fn records(&self) -> Read<Option<Meta>> {
        self.get(&self.tables.meta, super::tables::META_RECORDS, layout::parse_checked)
    }

    /// How many groups were committed over the life of the store.
    pub(crate) fn groups(&self) -> Read<Option<u64>> {
        self.get(&self.tables.meta, super::tables::META_GROUPS, layout::parse_u64)
    }

    /// The store's own id.
    pub(crate) fn store_id(&self) -> Read<Option<u128>> {
        self.get(&self.tables.meta, super::tables::META_STORE, layout::parse_u128)
    }

    /// Shows the keys of all commands until `visit` has had enough; whether it saw them all.
    pub(crate) fn for_each_command_key(&self, mut visit: impl FnMut(&[u8]) -> bool) -> Read<bool> {
        // Above every key: they are 44 bytes.
        let high = [0xff; 48];
        let mut whole = true;
        self.scan(&self.tables.commands, &[][..]..=&high[..], false, |key, _| {
            whole = visit(key);
            Ok(if whole { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        Ok(whole)
    }

    /// What a command did first.
    pub(crate) fn command(&self, name: &CommandName) -> Read<Option<CommandRow>> {
        let key = layout::command_key(name);
        self.get(&self.tables.commands, &key, |value| layout::parse_command(*name, value))
    }

    /// A chat as the writer loads it: nothing when no row names it.
    pub(crate) fn chat(&self, chat_id: ChatId) -> Read<Option<StoredChat>> {
        let checkpoint = self.checkpoint(chat_id)?;
        let tail = self.events(chat_id, checkpoint.seq + 1, u64::MAX, u32::MAX, false)?;
        let mut members = Vec::new();
        if !chat_id.is_channel() {
            for (user_id, row) in self.members(chat_id, None, u32::MAX)? {
                members.push(StoredMember { user_id, row, marks: self.marks(chat_id, user_id)? });
            }
        }
        let written = checkpoint.seq > 0 || !tail.is_empty() || !members.is_empty();
        Ok(written.then_some(StoredChat { checkpoint, tail, members }))
    }

    /// One member as the writer loads it: nothing when it never was one.
    pub(crate) fn stored_member(&self, chat_id: ChatId, user_id: UserId) -> Read<Option<StoredMember>> {
        let Some(row) = self.member(chat_id, user_id)? else { return Ok(None) };
        Ok(Some(StoredMember { user_id, row, marks: self.marks(chat_id, user_id)? }))
    }

    /// Number of the last entry of an inbox; 0 when it is empty.
    fn inbox_head(&self, user_id: UserId) -> Read<u64> {
        let (low, high) = (layout::inbox_key(user_id, 0), layout::inbox_key(user_id, u64::MAX));
        let mut head = 0;
        self.scan(&self.tables.inbox, &low..=&high, true, |key, value| {
            let (_, first) = layout::parse_inbox_key(key).ok_or(Damage::Form)?;
            head = Run::parse(value)?.last(first)?;
            Ok(ControlFlow::Break(()))
        })?;
        Ok(head)
    }

    /// The number under which an entry's row stands, if there is such an entry: that of the first one of its run.
    fn run_of(&self, user_id: UserId, inbox_seq: u64) -> Read<u64> {
        let least = inbox_seq.saturating_sub(RUN_ENTRIES_MAX as u64 - 1);
        let (low, high) = (layout::inbox_key(user_id, least), layout::inbox_key(user_id, inbox_seq));
        let mut found = inbox_seq;
        self.scan(&self.tables.inbox, &low..=&high, true, |key, _| {
            found = layout::parse_inbox_key(key).ok_or(Damage::Form)?.1;
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }
}

/// The event of a value, in place, its checksum verified.
fn access_event(value: &[u8]) -> Result<&ArchivedEvent, Damage> {
    rkyv::access::<ArchivedEvent, RkyvError>(layout::verify(value)?).map_err(|_| Damage::Form)
}

impl View for EmbeddedView {
    fn user(&self, user_id: UserId) -> Read<Option<StoredUser>> {
        let row = self.get(&self.tables.users, &layout::user_key(user_id), layout::parse_checked::<UserRow>)?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(StoredUser { row, inbox_head: self.inbox_head(user_id)? }))
    }

    fn unique(&self, key: &str) -> Read<Option<u128>> {
        self.get(&self.tables.uniques, key.as_bytes(), layout::parse_u128)
    }

    fn entries(&self, user_id: UserId, after: u64, limit: u32) -> Read<Vec<(u64, EntryRow)>> {
        let Some(from) = after.checked_add(1) else { return Ok(Vec::new()) };
        let to = after.saturating_add(u64::from(limit));
        if to < from {
            return Ok(Vec::new());
        }
        let first = self.run_of(user_id, from)?;
        let (low, high) = (layout::inbox_key(user_id, first), layout::inbox_key(user_id, to));
        let mut entries = Vec::new();
        self.scan(&self.tables.inbox, &low..=&high, false, |key, value| {
            let (_, first) = layout::parse_inbox_key(key).ok_or(Damage::Form)?;
            let run = Run::parse(value)?;
            let numbers = first..=run.last(first)?;
            entries.extend(numbers.zip(run.rows()).filter(|(number, _)| (from..=to).contains(number)));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(entries)
    }

    fn event(&self, chat_id: ChatId, seq: u64) -> Read<Option<Event>> {
        self.get(&self.tables.events, &layout::event_key(chat_id, seq), layout::parse_checked)
    }

    fn head(&self, chat_id: ChatId) -> Read<Option<Event>> {
        Ok(self.events(chat_id, 0, u64::MAX, 1, true)?.pop())
    }

    fn events(&self, chat_id: ChatId, from: u64, to: u64, limit: u32, newest_first: bool) -> Read<Vec<Event>> {
        let mut events = Vec::new();
        if from > to || limit == 0 {
            return Ok(events);
        }
        let (low, high) = (layout::event_key(chat_id, from), layout::event_key(chat_id, to));
        self.scan(&self.tables.events, &*low..=&*high, newest_first, |_, value| {
            events.push(layout::parse_checked(value)?);
            Ok(if events.len() < limit as usize { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        Ok(events)
    }

    /// Every event carries its sender's count so far, so the newest and the oldest of the sender in the range suffice.
    fn count_messages(&self, chat_id: ChatId, sender: UserId, from: u64, to: u64) -> Read<u64> {
        if from > to {
            return Ok(0);
        }
        let (low, high) = (layout::event_key(chat_id, from), layout::event_key(chat_id, to));
        let mut bounds = [0; 2];
        for (bound, backwards) in bounds.iter_mut().zip([true, false]) {
            let mut found = None;
            self.scan(&self.tables.events, &*low..=&*high, backwards, |_, value| {
                let event = access_event(value)?;
                if event.sender.0.to_native() != sender.0 {
                    return Ok(ControlFlow::Continue(()));
                }
                let own = u64::from(!backwards && event.envelope.kind.to_native() == kind::MESSAGE);
                found = Some(event.sender_sent.to_native().saturating_sub(own));
                Ok(ControlFlow::Break(()))
            })?;
            let Some(found) = found else { return Ok(0) };
            *bound = found;
        }
        Ok(bounds[0].saturating_sub(bounds[1]))
    }

    fn checkpoint(&self, chat_id: ChatId) -> Read<Checkpoint> {
        let found = self.get(&self.tables.checkpoints, &layout::chat_key(chat_id), layout::parse_checked)?;
        Ok(found.unwrap_or_default())
    }

    fn member(&self, chat_id: ChatId, user_id: UserId) -> Read<Option<MemberRow>> {
        self.get(&self.tables.members, &layout::member_key(chat_id, user_id), layout::parse_checked)
    }

    fn marks(&self, chat_id: ChatId, user_id: UserId) -> Read<MarkRow> {
        let found = self.get(&self.tables.marks, &layout::member_key(chat_id, user_id), layout::parse_marks)?;
        Ok(found.unwrap_or_default())
    }

    fn members(&self, chat_id: ChatId, after: Option<UserId>, limit: u32) -> Read<Vec<(UserId, MemberRow)>> {
        let mut members = Vec::new();
        let Some(from) = after.map_or(Some(0), |user| user.0.checked_add(1)) else { return Ok(members) };
        if limit == 0 {
            return Ok(members);
        }
        let (low, high) = (layout::member_key(chat_id, UserId(from)), layout::member_key(chat_id, UserId(u64::MAX)));
        self.scan(&self.tables.members, &low..=&high, false, |key, value| {
            let (_, user_id) = layout::parse_member_key(key).ok_or(Damage::Form)?;
            members.push((user_id, layout::parse_checked(value)?));
            Ok(if members.len() < limit as usize { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        Ok(members)
    }

    fn member_count(&self, chat_id: ChatId) -> Read<u32> {
        let (low, high) = (layout::member_key(chat_id, UserId(0)), layout::member_key(chat_id, UserId(u64::MAX)));
        let mut count = 0;
        self.scan(&self.tables.members, &low..=&high, false, |_, value| {
            let row = rkyv::access::<<MemberRow as rkyv::Archive>::Archived, RkyvError>(layout::verify(value)?)
                .map_err(|_| Damage::Form)?;
            count += u32::from(row.role.is_some());
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(count)
    }

    fn chats(&self, user_id: UserId, after: Option<ChatId>, limit: u32) -> Read<Vec<(ChatId, MemberRow)>> {
        let mut chats = Vec::new();
        let Some(from) = after.map_or(Some(0), |chat| chat.0.checked_add(1)) else { return Ok(chats) };
        if limit == 0 {
            return Ok(chats);
        }
        let low = layout::user_chat_key(user_id, ChatId(from));
        let high = layout::user_chat_key(user_id, ChatId(u128::MAX));
        self.scan(&self.tables.chats_of_user, &low..=&high, false, |key, value| {
            let (_, chat_id) = layout::parse_user_chat_key(key).ok_or(Damage::Form)?;
            chats.push((chat_id, layout::parse_checked(value)?));
            Ok(if chats.len() < limit as usize { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        Ok(chats)
    }
}
