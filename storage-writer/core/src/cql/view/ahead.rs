//! What is wanted next, fetched at once: as few rounds to the cluster as the order of reads allows. What is fetched here
//! changes no answer: everything is asked for again, in the same order, and found.

use super::chat::{event_rows, first_bucket, ghost_asks, is_direct, newest_event, one_event, states_of};
use super::{Bounds, CqlView, Rows};
use crate::cql::rows::{Partition, Read, Row, seq_bucket};
use crate::store::Want;
use hashbrown::HashSet;
use parley_protocol::{ChatId, UserId};
use std::collections::{BTreeMap, BTreeSet};

/// Marks in one read.
const MARKS_MAX: usize = 100;

impl<R: Rows, B: Bounds> CqlView<R, B> {
    /// Reads all that are not there yet. An error is kept too, so that nobody waits for it twice.
    pub(super) fn fetch_many(&self, reads: impl IntoIterator<Item = Read>) {
        let mut seen = HashSet::new();
        let new = |read: &Read| !self.fetched.borrow().contains_key(read) && seen.insert(read.clone());
        let missing: Vec<Read> = reads.into_iter().filter(new).collect();
        if missing.len() < 2 {
            return;
        }
        let results = self.rows.read_many(&missing);
        self.fetched.borrow_mut().extend(missing.into_iter().zip(results));
    }

    /// Shows rows that were fetched and leaves them there.
    fn peek<T>(&self, read: &Read, look: impl FnOnce(&[Row]) -> Option<T>) -> Option<T> {
        self.fetched.borrow().get(read).and_then(|result| result.as_ref().ok()).and_then(|rows| look(rows))
    }

    pub(super) fn fetch_ahead(&self, wants: &[Want]) {
        let mut events: BTreeSet<(ChatId, u64)> = BTreeSet::new();
        let mut marks: BTreeMap<ChatId, BTreeSet<UserId>> = BTreeMap::new();
        let mut chats: Vec<(ChatId, UserId)> = Vec::new();
        let mut others: Vec<Read> = Vec::new();
        for want in wants {
            match want {
                Want::Event { chat_id, seq } => _ = events.insert((*chat_id, *seq)),
                Want::Chat { chat_id, user_id } => chats.push((*chat_id, *user_id)),
                Want::Marks { chat_id, user_id } => _ = marks.entry(*chat_id).or_default().insert(*user_id),
                Want::Profile(user_id) => others.push(Read::All(Partition::User { user_id: *user_id })),
                Want::Unique(key) => others.push(Read::All(Partition::Unique { key: key.clone() })),
            }
        }
        self.fetch_many(others);
        self.fetch_events(&events);
        self.fetch_marks(&marks);
        self.fetch_chats(&chats);
    }

    /// Events that follow one another are one read.
    fn fetch_events(&self, events: &BTreeSet<(ChatId, u64)>) {
        let mut runs: Vec<(ChatId, u64, u64)> = Vec::new();
        for (chat_id, seq) in events.iter().copied() {
            match runs.last_mut() {
                Some((chat, _, to)) if *chat == chat_id && *to + 1 == seq && seq_bucket(*to) == seq_bucket(seq) => {
                    *to = seq;
                }
                _ => runs.push((chat_id, seq, seq)),
            }
        }
        let reads: Vec<Read> = runs
            .iter()
            .map(|(chat_id, from, to)| Read::Events {
                chat_id: *chat_id,
                bucket: seq_bucket(*from),
                from: *from,
                to: *to,
                limit: (to - from + 1) as u32,
                newest_first: false,
            })
            .collect();
        if reads.is_empty() {
            return;
        }
        let results = self.rows.read_many(&reads);
        let mut fetched = self.fetched.borrow_mut();
        for ((chat_id, from, to), result) in runs.into_iter().zip(results) {
            let mut of: BTreeMap<u64, Row> = BTreeMap::new();
            let failed = match result {
                Ok(rows) => {
                    of.extend(event_rows(rows).map(|row| (row.event.seq, Row::Event(row))));
                    None
                }
                Err(error) => Some(error),
            };
            for seq in from..=to {
                let one = failed.clone().map_or_else(|| Ok(of.remove(&seq).into_iter().collect()), Err);
                fetched.insert(one_event(chat_id, seq), one);
            }
        }
    }

    /// Marks of one chat share reads.
    fn fetch_marks(&self, marks: &BTreeMap<ChatId, BTreeSet<UserId>>) {
        let mut reads: Vec<Read> = Vec::new();
        for (chat_id, users) in marks {
            let users: Vec<UserId> = users.iter().copied().collect();
            let chunks = users.chunks(MARKS_MAX);
            reads.extend(chunks.map(|users| Read::Marks { chat_id: *chat_id, users: users.to_vec() }));
        }
        if reads.is_empty() {
            return;
        }
        let results = self.rows.read_many(&reads);
        let mut fetched = self.fetched.borrow_mut();
        for (read, result) in reads.into_iter().zip(results) {
            let Read::Marks { chat_id, users } = read else { continue };
            for user_id in users {
                let of = |row: &&Row| matches!(row, Row::Mark { user_id: of, .. } if *of == user_id);
                let one = result.as_ref().map(|rows| rows.iter().filter(of).cloned().collect()).map_err(Clone::clone);
                fetched.insert(Read::Marks { chat_id, users: vec![user_id] }, one);
            }
        }
    }

    /// Checkpoints, then heads, then what tells ghosts, then everything that is read after a head.
    fn fetch_chats(&self, chats: &[(ChatId, UserId)]) {
        let state = |chat_id: ChatId| Read::All(Partition::ChatState { chat_id });
        let new = |chat_id: &ChatId| !self.chats.borrow().contains_key(chat_id);
        let unseen: Vec<ChatId> = chats.iter().map(|(chat_id, _)| *chat_id).filter(new).collect();
        self.fetch_many(unseen.iter().copied().map(state));
        let bucket = |chat_id| self.peek(&state(chat_id), |rows| Some(first_bucket(&states_of(rows))));
        let newest = |chat_id| bucket(chat_id).map(|bucket| newest_event(chat_id, bucket));
        self.fetch_many(unseen.iter().copied().filter_map(newest));
        let asks = |chat_id| {
            let states = self.peek(&state(chat_id), |rows| Some(states_of(rows)))?;
            self.peek(&newest(chat_id)?, |rows| {
                let Some(Row::Event(top)) = rows.first() else { return None };
                let seq = ghost_asks(top, &states, self.bounds.epoch()).filter(|seq| *seq != top.event.seq)?;
                Some(one_event(chat_id, seq))
            })
        };
        self.fetch_many(unseen.iter().copied().filter_map(asks));
        let mut reads: Vec<Read> = Vec::new();
        for (chat_id, user_id) in chats.iter().copied() {
            // What fails here fails again for who asks.
            let Ok(Some(range)) = self.with_chat(chat_id, |sight| sight.above_checkpoint()) else { continue };
            let buckets = seq_bucket(*range.start())..=seq_bucket(*range.end());
            if !range.is_empty() && !is_direct(chat_id) && buckets.start() == buckets.end() {
                let (from, to) = range.into_inner();
                reads.push(Read::Senders { chat_id, bucket: seq_bucket(from), from, to });
            }
            reads.push(Read::Member { chat_id, user_id });
            reads.push(Read::Marks { chat_id, users: vec![user_id] });
        }
        self.fetch_many(reads);
        let mut last: BTreeSet<(ChatId, u64)> = BTreeSet::new();
        for (chat_id, user_id) in chats.iter().copied() {
            let left = self.peek(&Read::Member { chat_id, user_id }, |rows| {
                let Some(Row::Member { row, .. }) = rows.first() else { return None };
                row.intervals.last().and_then(|interval| interval.left_seq)
            });
            let head = self.chats.borrow().get(&chat_id).map_or(0, super::chat::ChatSight::head_seq);
            last.extend(left.filter(|left| *left < head).map(|left| (chat_id, left)));
        }
        self.fetch_events(&last);
    }
}
