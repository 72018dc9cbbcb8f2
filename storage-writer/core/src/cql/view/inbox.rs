//! The head of an inbox, and the entries up to it.

use super::{Aside, Bounds, CqlView, Rows, without_ghosts};
use crate::cql::rows::{INBOX_BUCKET, INBOX_ROWS_MAX, Partition, Read, Row, inbox_bucket};
use crate::store::{EntryRow, ReadError};
use parley_protocol::UserId;

/// The most that dead writers can leave above a head, and the head.
const LOOKED_AT: u32 = INBOX_ROWS_MAX as u32 + 1;

fn ends_of(bucket: u32) -> (u64, u64) {
    let first = u64::from(bucket) * INBOX_BUCKET + 1;
    (first, first + INBOX_BUCKET - 1)
}

/// Number and epoch.
type Seen = (u64, u64);

impl<R: Rows, B: Bounds> CqlView<R, B> {
    pub(super) fn inbox_head(&self, user_id: UserId) -> Result<u64, ReadError> {
        if let Some(head) = self.inbox_heads.borrow().get(&user_id) {
            return Ok(*head);
        }
        let head = self.look(format_args!("the inbox of {user_id}"), || self.look_at_inbox(user_id))?;
        self.inbox_heads.borrow_mut().insert(user_id, head);
        Ok(head)
    }

    /// The newest entries of a bucket, rising.
    fn newest(&self, user_id: UserId, bucket: u32, limit: u32) -> Result<Vec<Seen>, ReadError> {
        let (from, to) = ends_of(bucket);
        let rows = self.fetch(&Read::Entries { user_id, bucket, from, to, limit, newest_first: true })?;
        let seen = |row| if let Row::Entry { inbox_seq, epoch, .. } = row { Some((inbox_seq, epoch)) } else { None };
        Ok(rows.into_iter().rev().filter_map(seen).collect())
    }

    /// Nothing when the rows do not fit each other.
    fn look_at_inbox(&self, user_id: UserId) -> Result<Option<u64>, ReadError> {
        if self.bounds.is_aside(Aside::Inbox(user_id)) {
            return Err(ReadError::Damaged(format!("the inbox of {user_id} is set aside")));
        }
        let state = self.fetch(&Read::All(Partition::InboxState { user_id }))?;
        let state = state.iter().find_map(|row| match row {
            Row::InboxState { bucket, epoch } => Some((*bucket, *epoch)),
            _ => None,
        });
        let mut bucket = state.map_or(0, |(bucket, _)| bucket);
        let mut rows = self.newest(user_id, bucket, LOOKED_AT)?;
        while rows.last().is_some_and(|(number, _)| *number == ends_of(bucket).1) {
            let next = self.newest(user_id, bucket + 1, LOOKED_AT)?;
            if next.is_empty() {
                break;
            }
            (rows, bucket) = (next, bucket + 1);
        }
        if rows.is_empty() && bucket == 0 {
            return Ok(Some(0));
        }
        // The state is written before the first entry of its bucket; ghosts may begin in the bucket before.
        let own = rows.last().is_some_and(|(_, epoch)| *epoch == self.bounds.epoch());
        let room = LOOKED_AT - rows.len() as u32;
        let starts = rows.first().is_none_or(|(number, _)| *number == ends_of(bucket).0);
        if bucket > 0 && !own && room > 0 && starts {
            let mut before = self.newest(user_id, bucket - 1, room)?;
            before.append(&mut rows);
            rows = before;
        }
        let Some(((first, _), (last, _))) = rows.first().copied().zip(rows.last().copied()) else { return Ok(None) };
        let whole = own || rows.len() == LOOKED_AT as usize || first == 1;
        // A taker that found the inbox empty has said so there; later buckets are written by who fills them.
        let before = state.filter(|(bucket, _)| *bucket == 0).map(|(_, epoch)| epoch);
        let stand = if own { rows.len() } else { without_ghosts(before, rows.iter().map(|(_, epoch)| *epoch)) };
        if stand == 0 {
            return Ok(before.map(|_| 0));
        }
        // Ghosts may have holes: reads repair rows. What is durable has none.
        let dense = rows[..stand].windows(2).all(|pair| pair[0].0 + 1 == pair[1].0);
        if !whole || !dense {
            return Ok(None);
        }
        let head = if own { last } else { first + stand as u64 - 1 };
        let in_flight = self.in_flight(|bounds| bounds.user(user_id));
        Ok(Some(in_flight.map_or(head, |number| head.min(number.saturating_sub(1)))))
    }

    pub(super) fn confirmed_entries(
        &self,
        user_id: UserId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<(u64, EntryRow)>, ReadError> {
        let head = self.inbox_head(user_id)?;
        let to = after.saturating_add(u64::from(limit)).min(head);
        let mut entries = Vec::new();
        if after >= to {
            return Ok(entries);
        }
        let mut named = self.named.borrow_mut();
        for bucket in inbox_bucket(after + 1)..=inbox_bucket(to) {
            let read = Read::Entries { user_id, bucket, from: after + 1, to, limit, newest_first: false };
            for row in self.fetch(&read)? {
                let Row::Entry { inbox_seq, row, .. } = row else { continue };
                if let EntryRow::Event { chat_id, seq } = row {
                    named.insert((chat_id, seq));
                }
                entries.push((inbox_seq, row));
            }
        }
        Ok(entries)
    }
}
