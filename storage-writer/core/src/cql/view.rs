//! What readers see of the rows of a cluster: the heads of chats and inboxes without ghosts and without what is in
//! flight, and everything else up to them. One [`CqlView`] is for one answer: what it said of a head it goes on to say.
//!
//! The order is what makes it right. A head is looked for, then the writer is asked what is in flight: what it does not
//! name is durable. Checkpoints are of two moments, before and, if need be, after the head, so that one of them fits it.
//! Rows of members and marks are read when they are asked for, and may be newer than the head.

mod ahead;
mod chat;
mod inbox;

use super::engine::{Aside, InFlight};
use super::rows::{Partition, Read, Row, StatementError, StatementResult, seq_bucket};
use crate::planted::{self, Bug};
use crate::store::{Checkpoint, EntryRow, MarkRow, MemberRow, ReadError, SEQ_BUCKET, StoredUser, UserRow, View, Want};
use chat::ChatSight;
use hashbrown::{HashMap, HashSet};
use parley_protocol::body::kind;
use parley_protocol::{ChatId, Event, UserId};
use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Looks at a head, at the most: rows that do not fit each other may be of two moments. Then they are damage.
const LOOKS_MAX: usize = 4;

/// Reads at quorum.
pub trait Rows {
    /// One, answered.
    fn read(&self, read: &Read) -> StatementResult;
    /// Several at once, answered in their order.
    fn read_many(&self, reads: &[Read]) -> Vec<StatementResult> {
        reads.iter().map(|read| self.read(read)).collect()
    }
}

impl Rows for RefCell<super::cluster::Cluster> {
    fn read(&self, read: &Read) -> StatementResult {
        self.borrow_mut().read(read)
    }
}

impl<R: Rows + ?Sized> Rows for &R {
    fn read(&self, read: &Read) -> StatementResult {
        (**self).read(read)
    }

    fn read_many(&self, reads: &[Read]) -> Vec<StatementResult> {
        (**self).read_many(reads)
    }
}

impl<R: Rows + ?Sized> Rows for std::rc::Rc<R> {
    fn read(&self, read: &Read) -> StatementResult {
        (**self).read(read)
    }

    fn read_many(&self, reads: &[Read]) -> Vec<StatementResult> {
        (**self).read_many(reads)
    }
}

impl<R: Rows + ?Sized> Rows for Arc<R> {
    fn read(&self, read: &Read) -> StatementResult {
        (**self).read(read)
    }

    fn read_many(&self, reads: &[Read]) -> Vec<StatementResult> {
        (**self).read_many(reads)
    }
}

/// What the writer knows. Asked after rows were read: what is not in flight then, and was read, is durable.
pub trait Bounds {
    /// The first `seq` of a chat that is in flight.
    fn chat(&self, chat_id: ChatId) -> Option<u64>;
    /// The first number of an inbox that is in flight.
    fn user(&self, user_id: UserId) -> Option<u64>;
    /// Whether it is set aside: its rows are damaged, and nobody took over what a dead writer left there.
    fn is_aside(&self, _: Aside) -> bool {
        false
    }
    /// The writer's epoch: its own rows are no ghosts. 0 when there is no writer.
    fn epoch(&self) -> u64;
}

/// Nothing is in flight: there is no writer.
#[derive(Clone, Copy, Debug)]
pub struct Settled;

impl Bounds for Settled {
    fn chat(&self, _: ChatId) -> Option<u64> {
        None
    }

    fn user(&self, _: UserId) -> Option<u64> {
        None
    }

    fn epoch(&self) -> u64 {
        0
    }
}

/// What a writer of this process has in flight.
#[derive(Clone, Debug)]
pub struct WriterBounds {
    /// The engine's.
    pub in_flight: Arc<Mutex<InFlight>>,
    /// The engine's.
    pub epoch: u64,
}

impl WriterBounds {
    fn lock(&self) -> MutexGuard<'_, InFlight> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bounds for WriterBounds {
    fn chat(&self, chat_id: ChatId) -> Option<u64> {
        self.lock().chat(chat_id)
    }

    fn user(&self, user_id: UserId) -> Option<u64> {
        self.lock().user(user_id)
    }

    fn is_aside(&self, aside: Aside) -> bool {
        self.lock().is_aside(aside)
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }
}

/// A view for one answer.
pub struct CqlView<R, B> {
    rows: R,
    bounds: B,
    /// Answers that were fetched ahead, each for the first who asks.
    fetched: RefCell<HashMap<Read, StatementResult>>,
    chats: RefCell<HashMap<ChatId, ChatSight>>,
    inbox_heads: RefCell<HashMap<UserId, u64>>,
    /// Events that durable inbox entries name: they are durable, whatever else of their chats is in flight.
    named: RefCell<HashSet<(ChatId, u64)>>,
}

impl<R: Rows, B: Bounds> CqlView<R, B> {
    /// A view that has read nothing.
    pub fn new(rows: R, bounds: B) -> CqlView<R, B> {
        CqlView {
            rows,
            bounds,
            fetched: RefCell::default(),
            chats: RefCell::default(),
            inbox_heads: RefCell::default(),
            named: RefCell::default(),
        }
    }

    fn fetch(&self, read: &Read) -> Result<Vec<Row>, ReadError> {
        let fetched = self.fetched.borrow_mut().remove(read);
        fetched.unwrap_or_else(|| self.rows.read(read)).map_err(|error| match error {
            StatementError::Unknown(text) | StatementError::Refused(text) => ReadError::Unavailable(text),
            StatementError::Damaged(text) => ReadError::Damaged(text),
        })
    }

    /// The first number in flight, unless it is a planted bug that nobody asks.
    fn in_flight(&self, ask: impl FnOnce(&B) -> Option<u64>) -> Option<u64> {
        if planted::has(Bug::ReaderPastHead) { None } else { ask(&self.bounds) }
    }

    /// Runs a look until the rows that it met fit each other.
    fn look<T>(
        &self,
        what: impl std::fmt::Display,
        look: impl Fn() -> Result<Option<T>, ReadError>,
    ) -> Result<T, ReadError> {
        for _ in 0..LOOKS_MAX {
            if let Some(seen) = look()? {
                return Ok(seen);
            }
        }
        Err(ReadError::Damaged(format!("{what}: rows are missing")))
    }
}

/// How many rows, from the first, are no ghosts: up to one whose epoch is lower than that of the row before it.
fn without_ghosts(before: Option<u64>, epochs: impl IntoIterator<Item = u64>) -> usize {
    let mut last = before.unwrap_or(0);
    epochs.into_iter().take_while(|epoch| std::mem::replace(&mut last, *epoch) <= *epoch).count()
}

impl<R: Rows, B: Bounds> View for CqlView<R, B> {
    fn is_snapshot(&self) -> bool {
        false
    }

    fn ahead(&self, wants: &[Want]) {
        self.fetch_ahead(wants);
    }

    fn user(&self, user_id: UserId) -> Result<Option<StoredUser>, ReadError> {
        self.fetch_many([Read::All(Partition::User { user_id }), Read::All(Partition::InboxState { user_id })]);
        let Some(row) = self.profile(user_id)? else { return Ok(None) };
        Ok(Some(StoredUser { row, inbox_head: self.inbox_head(user_id)? }))
    }

    fn profile(&self, user_id: UserId) -> Result<Option<UserRow>, ReadError> {
        let rows = self.fetch(&Read::All(Partition::User { user_id }))?;
        Ok(rows.into_iter().find_map(|row| if let Row::User(row) = row { Some(row) } else { None }))
    }

    fn unique(&self, key: &str) -> Result<Option<u128>, ReadError> {
        let rows = self.fetch(&Read::All(Partition::Unique { key: key.to_owned() }))?;
        Ok(rows.into_iter().find_map(|row| if let Row::Unique { value } = row { Some(value) } else { None }))
    }

    fn entries(&self, user_id: UserId, after: u64, limit: u32) -> Result<Vec<(u64, EntryRow)>, ReadError> {
        self.confirmed_entries(user_id, after, limit)
    }

    fn event(&self, chat_id: ChatId, seq: u64) -> Result<Option<Event>, ReadError> {
        let named = self.named.borrow().contains(&(chat_id, seq));
        if !named && (seq == 0 || seq > self.head_seq(chat_id)?) {
            return Ok(None);
        }
        Ok(self.event_row(chat_id, seq)?.map(|row| row.event))
    }

    fn head(&self, chat_id: ChatId) -> Result<Option<Event>, ReadError> {
        self.with_chat(chat_id, |sight| sight.head.clone())
    }

    fn events(
        &self,
        chat_id: ChatId,
        from: u64,
        to: u64,
        limit: u32,
        newest_first: bool,
    ) -> Result<Vec<Event>, ReadError> {
        let (from, to) = (from.max(1), to.min(self.head_seq(chat_id)?));
        let mut events: Vec<Event> = Vec::new();
        if from > to {
            return Ok(events);
        }
        let (first, last) = (seq_bucket(from), seq_bucket(to));
        for at in 0..=last - first {
            let bucket = if newest_first { last - at } else { first + at };
            let limit = limit - events.len() as u32;
            if limit == 0 {
                break;
            }
            let read = Read::Events { chat_id, bucket, from, to, limit, newest_first };
            let rows = self.fetch(&read)?;
            events.extend(rows.into_iter().filter_map(|row| match row {
                Row::Event(row) => Some(row.event),
                _ => None,
            }));
        }
        Ok(events)
    }

    fn count_messages(&self, chat_id: ChatId, sender: UserId, from: u64, to: u64) -> Result<u64, ReadError> {
        let (from, to) = (from.max(1), to.min(self.head_seq(chat_id)?));
        let rows = self.senders(chat_id, from, to)?;
        let own = rows.iter().filter(|row| (from..=to).contains(&row.seq));
        Ok(own.filter(|row| row.sender == sender && row.kind == kind::MESSAGE).count() as u64)
    }

    fn checkpoint(&self, chat_id: ChatId) -> Result<Checkpoint, ReadError> {
        Ok(self.fitting(chat_id)?.map(|row| row.checkpoint).unwrap_or_default())
    }

    fn member(&self, chat_id: ChatId, user_id: UserId) -> Result<Option<MemberRow>, ReadError> {
        let rows = self.fetch(&Read::Member { chat_id, user_id })?;
        Ok(rows.into_iter().find_map(|row| if let Row::Member { row, .. } = row { Some(row) } else { None }))
    }

    fn marks(&self, chat_id: ChatId, user_id: UserId) -> Result<MarkRow, ReadError> {
        let rows = self.fetch(&Read::Marks { chat_id, users: vec![user_id] })?;
        let found = rows.into_iter().find_map(|row| if let Row::Mark { row, .. } = row { Some(row) } else { None });
        Ok(found.unwrap_or_default())
    }

    fn members(
        &self,
        chat_id: ChatId,
        after: Option<UserId>,
        limit: u32,
    ) -> Result<Vec<(UserId, MemberRow)>, ReadError> {
        let rows = self.fetch(&Read::Members { chat_id, after, limit })?;
        let member = |row| if let Row::Member { user_id, row } = row { Some((user_id, row)) } else { None };
        Ok(rows.into_iter().filter_map(member).collect())
    }

    fn member_count(&self, chat_id: ChatId) -> Result<u32, ReadError> {
        Ok(self.fitting(chat_id)?.map_or(0, |row| row.present))
    }

    /// Without chats of which nothing is durable yet.
    fn chats(&self, user_id: UserId, after: Option<ChatId>, limit: u32) -> Result<Vec<(ChatId, MemberRow)>, ReadError> {
        let mut chats: Vec<(ChatId, MemberRow)> = Vec::new();
        let mut after = after;
        loop {
            let limit = limit - chats.len() as u32;
            let rows = self.fetch(&Read::Memberships { user_id, after, limit })?;
            let whole = rows.len() < limit as usize;
            for row in rows {
                let Row::Membership { chat_id, row } = row else { continue };
                after = Some(chat_id);
                if self.in_flight(|bounds| bounds.chat(chat_id)) != Some(1) {
                    chats.push((chat_id, row));
                }
            }
            if whole || chats.len() >= limit as usize {
                return Ok(chats);
            }
        }
    }
}

/// First and last `seq` of a bucket.
fn ends_of(bucket: u32) -> (u64, u64) {
    let first = u64::from(bucket) * SEQ_BUCKET + 1;
    (first, first + SEQ_BUCKET - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ghosts_begin_where_the_epoch_falls() {
        assert_eq!(without_ghosts(None, [1, 1, 2, 2]), 4);
        assert_eq!(without_ghosts(None, [2, 2, 1, 1]), 2);
        assert_eq!(without_ghosts(None, [3, 2, 2, 1, 3]), 1);
        assert_eq!(without_ghosts(Some(2), [1, 1]), 0);
        assert_eq!(without_ghosts(Some(1), [1, 2, 1]), 2);
        assert_eq!(without_ghosts(None, []), 0);
    }

    #[test]
    fn a_bucket_has_its_ends() {
        assert_eq!(ends_of(0), (1, SEQ_BUCKET));
        assert_eq!(ends_of(1), (SEQ_BUCKET + 1, 2 * SEQ_BUCKET));
    }
}
