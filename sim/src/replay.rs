//! The truth on a cluster: what stands there, as soon as a writer that is the newest hears so, and what a taker found. An
//! append is true when its events stand, an entry of an inbox when it does, marks when they do.

use crate::truth::{Truth, Verdict};
use crate::world::{World, short};
use parley_protocol::{ChatId, UserId};
use std::collections::BTreeMap;
use storage_core::cql::redo::Redo;
use storage_core::cql::rows::{
    Change, EventRow, INBOX_BUCKET, Partition, Read, Row, SEQ_BUCKET, Statement, Write, inbox_bucket, seq_bucket,
};
use storage_core::store::{Append, Entry, EntryRow, MarkRow};

/// A statement in words.
pub(crate) fn tell(statement: &Statement) -> String {
    let write = match statement {
        Statement::Read(read) => return format!("{read:?}"),
        Statement::Write(write) => write,
    };
    let Change::Put(rows) = &write.change else { return format!("deletes {:?}", write.partition) };
    let epoch = write.timestamp >> 40;
    match (&write.partition, rows.first(), rows.last()) {
        (Partition::Events { chat_id, .. }, Some(Row::Event(first)), Some(Row::Event(last))) => {
            format!("epoch {epoch}: events {}..={} of {}", first.event.seq, last.event.seq, short(*chat_id))
        }
        (partition, ..) => format!("epoch {epoch}: {rows:?} in {partition:?}"),
    }
}

fn events(chat_id: ChatId, bucket: u32, from: u64, to: u64) -> Read {
    Read::Events { chat_id, bucket, from, to, limit: u32::MAX, newest_first: false }
}

fn entries(user_id: UserId, bucket: u32, from: u64, to: u64) -> Read {
    Read::Entries { user_id, bucket, from, to, limit: u32::MAX, newest_first: false }
}

impl Truth {
    /// A write is sent: a reader may see its marks before it stands.
    pub(crate) fn expect(&mut self, write: &Write) {
        let (Partition::Marks { chat_id }, Change::Put(rows)) = (&write.partition, &write.change) else { return };
        for row in rows {
            let Row::Mark { user_id, row } = row else { continue };
            let expected = self.expected.entry((*chat_id, *user_id)).or_default();
            *expected = (*expected).max(row.read_seq);
        }
    }

    /// Events stand. Those that are known already are the same.
    fn events_stand(&mut self, chat_id: ChatId, rows: &[EventRow], now: u64) -> Verdict {
        let head = self.chats.get(&chat_id).map_or(0, |chat| chat.head());
        for row in rows.iter().filter(|row| row.event.seq <= head) {
            let same = self.is_logged(&row.event);
            if !same {
                let what = format!("{} {} of epoch {} is another event", short(chat_id), row.event.seq, row.epoch);
                return Err(("seq is dense", what));
            }
        }
        let new: Vec<_> = rows.iter().map(|row| row.event.clone()).filter(|event| event.seq > head).collect();
        let Some(last) = rows.last().filter(|_| !new.is_empty()) else { return Ok(()) };
        let redo = match Redo::decode(&last.redo) {
            Ok(redo) => redo,
            Err(error) => return Err(("the store is what the log says", format!("{}: {error:?}", short(chat_id)))),
        };
        let entry = |entry: &storage_core::cql::redo::RedoEntry| Entry {
            user_id: entry.user_id,
            inbox_seq: entry.inbox_seq,
            row: EntryRow::Event { chat_id, seq: entry.seq },
        };
        let append = Append {
            chat_id,
            events: new,
            entries: redo.entries.iter().map(entry).collect(),
            commands: Vec::new(),
            members: Vec::new(),
            checkpoint: None,
            present: redo.present,
        };
        self.take_one(&append, now)
    }

    /// Entries of an inbox stand. Those that are known already are the same.
    fn entries_stand(&mut self, user: UserId, rows: &[(u64, EntryRow)]) -> Verdict {
        let head = self.inbox_head(user);
        for (number, row) in rows.iter().filter(|(number, _)| *number <= head) {
            let known = self.inboxes.get(&user).and_then(|inbox| inbox.rows.get(*number as usize - 1)).copied();
            if known != Some(*row) {
                let what = format!("entry {number} of {user} was {known:?} and is {row:?}");
                return Err(("inboxes are dense", what));
            }
        }
        let new: Vec<_> = rows.iter().copied().filter(|(number, _)| *number > head).collect();
        if let Some((number, row)) = new.iter().find(|(_, row)| match row {
            EntryRow::Event { chat_id, seq } => self.chats.get(chat_id).is_none_or(|chat| chat.head() < *seq),
            EntryRow::Own { .. } => false,
        }) {
            return Err(("an entry stands behind its event", format!("entry {number} of {user} is {row:?}")));
        }
        self.take_inbox(user, new)
    }
}

impl World {
    /// The newest writer hears that a write stands.
    pub(crate) fn write_stands(&mut self, write: &Write) {
        let Change::Put(rows) = &write.change else { return };
        let verdict = match &write.partition {
            Partition::Events { chat_id, .. } => {
                let rows: Vec<_> = rows.iter().filter_map(event_row).collect();
                self.truth.events_stand(*chat_id, &rows, self.now)
            }
            Partition::Inbox { user_id, bucket } => {
                let mut rows: Vec<_> = rows.iter().filter_map(entry_row).collect();
                let (head, first) = (self.truth.inbox_head(*user_id), rows.first().map_or(0, |(number, _)| *number));
                if first > head + 1 {
                    // Whoever took over found more than anybody had heard of, and wrote the last of it again.
                    let read = entries(*user_id, *bucket, head + 1, first - 1);
                    let mut found: Vec<_> = self.standing(&read).iter().filter_map(entry_row).collect();
                    found.append(&mut rows);
                    rows = found;
                }
                self.truth.entries_stand(*user_id, &rows)
            }
            Partition::Marks { chat_id } => {
                let mut marks = rows.iter().filter_map(mark_row);
                marks.try_for_each(|(user, row)| self.truth.take_marks(*chat_id, user, row))
            }
            _ => Ok(()),
        };
        self.trace.note(write.timestamp as u64);
        self.judge(verdict);
    }

    /// Marks have no order that a taker would write again: they are what it finds.
    pub(crate) fn learn_marks(&mut self) {
        for chat_id in self.truth.chats.keys().copied().collect::<Vec<_>>() {
            let rows = self.standing(&Read::All(Partition::Marks { chat_id }));
            for (user, row) in rows.iter().filter_map(mark_row) {
                let chat = self.truth.chats.get_mut(&chat_id).expect("it is listed");
                chat.members.entry(user).or_default().marks = row;
            }
        }
    }

    /// What the cluster holds is what the log says; at rest, when everything that was late has arrived.
    pub(crate) fn look_at_cluster(&mut self) {
        self.settle_cluster();
        self.learn_marks();
        let wrong = self.wrong_chat().or_else(|| self.wrong_inbox()).or_else(|| {
            let lists = self.lists_of_work();
            (lists > 2).then(|| format!("{lists} lists of work hold something"))
        });
        if let Some(what) = wrong {
            self.fail("the store is what the log says", what);
        }
    }

    fn wrong_chat(&self) -> Option<String> {
        for (chat_id, chat) in &self.truth.chats {
            let name = short(*chat_id);
            let mut before = 0;
            for row in self.standing(&Read::All(Partition::ChatState { chat_id: *chat_id })) {
                let Row::ChatState(row) = row else { continue };
                before = if row.checkpoint.seq == 0 { row.epoch.max(before) } else { before };
            }
            let mut seq = 0;
            'log: for bucket in 0..=seq_bucket(chat.head() + 1) {
                let first = u64::from(bucket) * SEQ_BUCKET + 1;
                for row in self.standing(&events(*chat_id, bucket, first, first + SEQ_BUCKET - 1)) {
                    let Row::Event(row) = row else { continue };
                    if row.epoch < before {
                        break 'log;
                    }
                    before = row.epoch;
                    seq += 1;
                    if row.event.seq != seq || !self.truth.is_logged(&row.event) {
                        return Some(format!("{name}: event {} is not event {seq} of its log", row.event.seq));
                    }
                }
            }
            if seq != chat.head() {
                return Some(format!("{name}: {seq} events of {}", chat.head()));
            }
            let rows = self.standing(&Read::All(Partition::Members { chat_id: *chat_id }));
            let mut members = BTreeMap::new();
            for row in rows {
                let Row::Member { user_id, row } = row else { continue };
                members.insert(user_id, row);
            }
            for (user, member) in chat.members.iter().filter(|(_, member)| !member.spans.is_empty()) {
                let row = members.get(user);
                let stored = row.map(|row| row.intervals.iter().map(|one| (one.history_from, one.left_seq)).collect());
                if stored.as_ref() != Some(&member.spans) {
                    return Some(format!("{name} of {user}: {row:?}, should be {member:?}"));
                }
                let read = Read::Memberships { user_id: *user, after: None, limit: u32::MAX };
                let twin = self.standing(&read).into_iter().find_map(|twin| match twin {
                    Row::Membership { chat_id: of, row } if of == *chat_id => Some(row),
                    _ => None,
                });
                if twin.as_ref() != row {
                    return Some(format!("{name} of {user}: by chat {row:?}, by user {twin:?}"));
                }
            }
        }
        None
    }

    fn wrong_inbox(&self) -> Option<String> {
        for (user, inbox) in &self.truth.inboxes {
            let mut before = 0;
            for row in self.standing(&Read::All(Partition::InboxState { user_id: *user })) {
                let Row::InboxState { bucket, epoch } = row else { continue };
                before = if bucket == 0 { epoch } else { 0 };
            }
            let mut found = Vec::new();
            'inbox: for bucket in 0..=inbox_bucket(inbox.head() + 1) {
                let first = u64::from(bucket) * INBOX_BUCKET + 1;
                for row in self.standing(&entries(*user, bucket, first, first + INBOX_BUCKET - 1)) {
                    let Row::Entry { inbox_seq, row, epoch } = row else { continue };
                    if epoch < before {
                        break 'inbox;
                    }
                    before = epoch;
                    found.push((inbox_seq, row));
                }
            }
            let expected = (1..).zip(inbox.rows.iter().copied());
            if !expected.eq(found.iter().copied()) {
                let (is, should) = (found.len(), inbox.head());
                return Some(format!("the inbox of {user} is not its entries: {is} of {should}"));
            }
        }
        None
    }
}

fn event_row(row: &Row) -> Option<EventRow> {
    if let Row::Event(row) = row { Some(row.clone()) } else { None }
}

fn entry_row(row: &Row) -> Option<(u64, EntryRow)> {
    if let Row::Entry { inbox_seq, row, .. } = row { Some((*inbox_seq, *row)) } else { None }
}

fn mark_row(row: &Row) -> Option<(UserId, MarkRow)> {
    if let Row::Mark { user_id, row } = row { Some((*user_id, *row)) } else { None }
}
