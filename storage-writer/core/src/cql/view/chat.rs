//! The head of a chat, and the checkpoint that fits it.

use super::{Aside, Bounds, CqlView, Rows, ends_of};
use crate::cql::engine::log_without_ghosts;
use crate::cql::rows::{APPEND_EVENTS_MAX, ChatStateRow, EventRow, Partition, Read, Row, SenderRow, seq_bucket};
use crate::store::ReadError;
use parley_protocol::body::kind;
use parley_protocol::{ChatId, ChatKind, Event};

/// What was seen of a chat.
#[derive(Debug)]
pub(super) struct ChatSight {
    /// The newest event that is durable.
    pub(super) head: Option<Event>,
    /// Checkpoints as they were before the head was looked for.
    states: Vec<ChatStateRow>,
    /// The checkpoint at or below the head, with nothing but messages in between; once it was asked for.
    fitting: Option<Option<ChatStateRow>>,
    /// Senders from a `seq` to the head, once they were read.
    senders: Option<(u64, Vec<SenderRow>)>,
}

impl ChatSight {
    pub(super) fn head_seq(&self) -> u64 {
        self.head.as_ref().map_or(0, |head| head.seq)
    }

    /// From above the checkpoint that may fit to the head; nothing when there is no head.
    pub(super) fn above_checkpoint(&mut self) -> Option<std::ops::RangeInclusive<u64>> {
        let head = self.head.as_ref()?.seq;
        Some(at_or_below(&self.states, head).map_or(0, |row| row.checkpoint.seq) + 1..=head)
    }
}

pub(super) fn newest_event(chat_id: ChatId, bucket: u32) -> Read {
    let (from, to) = ends_of(bucket);
    Read::Events { chat_id, bucket, from, to, limit: 1, newest_first: true }
}

pub(super) fn one_event(chat_id: ChatId, seq: u64) -> Read {
    Read::Events { chat_id, bucket: seq_bucket(seq), from: seq, to: seq, limit: 1, newest_first: false }
}

pub(super) fn event_rows(rows: Vec<Row>) -> impl Iterator<Item = EventRow> {
    rows.into_iter().filter_map(|row| if let Row::Event(row) = row { Some(row) } else { None })
}

pub(super) fn states_of(rows: &[Row]) -> Vec<ChatStateRow> {
    let mut states: Vec<ChatStateRow> =
        rows.iter().filter_map(|row| if let Row::ChatState(row) = row { Some(row.clone()) } else { None }).collect();
    states.sort_unstable_by_key(|row| (row.checkpoint.seq, row.epoch));
    states
}

/// The bucket in which the newest event is looked for first: the event of the newest checkpoint stands.
pub(super) fn first_bucket(states: &[ChatStateRow]) -> u32 {
    seq_bucket(states.last().map_or(0, |row| row.checkpoint.seq))
}

/// The epoch of a taker that found no event.
fn found_empty(states: &[ChatStateRow]) -> Option<u64> {
    states.iter().filter(|row| row.checkpoint.seq == 0).map(|row| row.epoch).max()
}

pub(super) fn is_direct(chat_id: ChatId) -> bool {
    matches!(chat_id.kind(), Some(ChatKind::Direct(..)))
}

fn at_or_below(states: &[ChatStateRow], seq: u64) -> Option<ChatStateRow> {
    states.iter().rev().find(|row| (1..=seq).contains(&row.checkpoint.seq)).cloned()
}

/// What tells whether `top` is a ghost, besides the checkpoints: the `seq` of a row before its append, or nothing when
/// it is none for sure. Before the first append it is the first row, which is either of the same append or newer.
pub(super) fn ghost_asks(top: &EventRow, states: &[ChatStateRow], epoch: u64) -> Option<u64> {
    let stands = states.last().is_some_and(|row| row.checkpoint.seq >= top.event.seq);
    (!stands && top.epoch != epoch).then_some(top.derived_through.max(1))
}

impl<R: Rows, B: Bounds> CqlView<R, B> {
    pub(super) fn with_chat<T>(&self, chat_id: ChatId, give: impl FnOnce(&mut ChatSight) -> T) -> Result<T, ReadError> {
        if let Some(sight) = self.chats.borrow_mut().get_mut(&chat_id) {
            return Ok(give(sight));
        }
        let sight = self.look(format_args!("chat {chat_id}"), || self.look_at_chat(chat_id))?;
        Ok(give(self.chats.borrow_mut().entry(chat_id).or_insert(sight)))
    }

    pub(super) fn head_seq(&self, chat_id: ChatId) -> Result<u64, ReadError> {
        self.with_chat(chat_id, |sight| sight.head_seq())
    }

    pub(super) fn event_row(&self, chat_id: ChatId, seq: u64) -> Result<Option<EventRow>, ReadError> {
        Ok(event_rows(self.fetch(&one_event(chat_id, seq))?).next())
    }

    fn states(&self, chat_id: ChatId) -> Result<Vec<ChatStateRow>, ReadError> {
        Ok(states_of(&self.fetch(&Read::All(Partition::ChatState { chat_id }))?))
    }

    /// Nothing when the rows do not fit each other.
    fn look_at_chat(&self, chat_id: ChatId) -> Result<Option<ChatSight>, ReadError> {
        if self.bounds.is_aside(Aside::Chat(chat_id)) {
            return Err(ReadError::Damaged(format!("chat {chat_id} is set aside")));
        }
        let states = self.states(chat_id)?;
        let mut bucket = first_bucket(&states);
        let mut top = event_rows(self.fetch(&newest_event(chat_id, bucket))?).next();
        while top.as_ref().is_some_and(|row| row.event.seq == ends_of(bucket).1) {
            let Some(next) = event_rows(self.fetch(&newest_event(chat_id, bucket + 1))?).next() else { break };
            (top, bucket) = (Some(next), bucket + 1);
        }
        let Some(top) = top else {
            let empty = states.last().is_none_or(|row| row.checkpoint.seq == 0);
            return Ok(empty.then_some(ChatSight { head: None, states, fitting: None, senders: None }));
        };
        let Some(head) = self.without_ghosts_at(chat_id, top, &states)? else { return Ok(None) };
        let first = self.in_flight(|bounds| bounds.chat(chat_id));
        let head = match (head, first) {
            (Some(head), Some(first)) if first <= head.seq => match first.saturating_sub(1) {
                0 => None,
                seq => match self.event_row(chat_id, seq)? {
                    Some(row) => Some(row.event),
                    None => return Ok(None),
                },
            },
            (head, _) => head,
        };
        Ok(Some(ChatSight { head, states, fitting: None, senders: None }))
    }

    /// The newest event at or below `top` that is no ghost.
    fn without_ghosts_at(
        &self,
        chat_id: ChatId,
        top: EventRow,
        states: &[ChatStateRow],
    ) -> Result<Option<Option<Event>>, ReadError> {
        let Some(before) = ghost_asks(&top, states, self.bounds.epoch()) else { return Ok(Some(Some(top.event))) };
        let mut newest = if top.derived_through == 0 { found_empty(states).unwrap_or(0) } else { 0 };
        if newest <= top.epoch && before != top.event.seq {
            let Some(row) = self.event_row(chat_id, before)? else { return Ok(None) };
            newest = newest.max(row.epoch);
        }
        if newest <= top.epoch {
            return Ok(Some(Some(top.event)));
        }
        // The most that dead writers can leave above the head, and the head.
        let rows = self.tail(chat_id, top.event.seq)?;
        let first = top.event.seq.saturating_sub(APPEND_EVENTS_MAX as u64).max(1);
        let before = if first == 1 { found_empty(states) } else { None };
        let stand = log_without_ghosts(before, rows.iter().map(|row| row.epoch));
        if stand == 0 && first > 1 {
            return Ok(None);
        }
        // Ghosts may have holes: reads repair rows. What is durable has none.
        let dense = rows.iter().zip(first..).take(stand).all(|(row, seq)| row.event.seq == seq);
        if !dense {
            return Ok(None);
        }
        Ok(Some(rows.into_iter().take(stand).next_back().map(|row| row.event)))
    }

    /// The rows that end at `to`, rising: one more than an append has.
    fn tail(&self, chat_id: ChatId, to: u64) -> Result<Vec<EventRow>, ReadError> {
        let from = to.saturating_sub(APPEND_EVENTS_MAX as u64).max(1);
        let mut rows = Vec::new();
        for bucket in seq_bucket(from)..=seq_bucket(to) {
            let limit = APPEND_EVENTS_MAX as u32 + 1;
            let read = Read::Events { chat_id, bucket, from, to, limit, newest_first: false };
            rows.extend(event_rows(self.fetch(&read)?));
        }
        Ok(rows)
    }

    /// The checkpoint that says of title and members what is true at the head: every change of them is in one.
    pub(super) fn fitting(&self, chat_id: ChatId) -> Result<Option<ChatStateRow>, ReadError> {
        let seen = self.with_chat(chat_id, |sight| {
            let head = sight.head_seq();
            (head, at_or_below(&sight.states, head), sight.fitting.clone())
        })?;
        let (head, before, fitting) = seen;
        if let Some(fitting) = fitting {
            return Ok(fitting);
        }
        let fits = match &before {
            _ if head == 0 => true,
            // Its title and its members never change.
            Some(_) if is_direct(chat_id) => true,
            Some(row) => {
                let above = self.senders(chat_id, row.checkpoint.seq + 1, head)?;
                above.iter().all(|row| row.kind == kind::MESSAGE)
            }
            None => false,
        };
        let fitting = if fits {
            before
        } else {
            // Something changed after they were read. Read again after the head, they hold every change up to it.
            let after = at_or_below(&self.states(chat_id)?, head);
            let moved = || ReadError::Unavailable(format!("chat {chat_id} changes faster than it is read"));
            Some(after.ok_or_else(moved)?)
        };
        self.with_chat(chat_id, |sight| sight.fitting = Some(fitting.clone()))?;
        Ok(fitting)
    }

    /// At least the senders in `from..=to`, which is not above the head.
    pub(super) fn senders(&self, chat_id: ChatId, from: u64, to: u64) -> Result<Vec<SenderRow>, ReadError> {
        if from > to {
            return Ok(Vec::new());
        }
        let seen = self.with_chat(chat_id, |sight| {
            let seen = sight.senders.as_ref().filter(|(seen, _)| *seen <= from);
            (sight.head_seq(), seen.map(|(_, rows)| rows.clone()))
        })?;
        if let (_, Some(rows)) = seen {
            return Ok(rows);
        }
        let mut rows: Vec<SenderRow> = Vec::new();
        for bucket in seq_bucket(from)..=seq_bucket(to) {
            let (first, last) = ends_of(bucket);
            let read = Read::Senders { chat_id, bucket, from: from.max(first), to: to.min(last) };
            rows.extend(self.fetch(&read)?.into_iter().filter_map(|row| match row {
                Row::Sender(row) => Some(row),
                _ => None,
            }));
        }
        if to == seen.0 {
            self.with_chat(chat_id, |sight| sight.senders = Some((from, rows.clone())))?;
        }
        Ok(rows)
    }
}
