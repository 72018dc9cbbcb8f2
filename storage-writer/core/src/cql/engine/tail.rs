//! Where a log and an inbox end: the newest rows, without the ghosts that dead writers left above the head. A taker judges
//! a log by whole appends; whoever reads it later finds the last append written by one epoch, which none below exceeds.

use crate::cql::redo::{Redo, events_hash};
use crate::cql::rows::{
    EventRow, INBOX_BUCKET, INBOX_ROWS_MAX, Partition, Read, Row, SEQ_BUCKET, inbox_bucket, seq_bucket,
};
use crate::planted::{self, Bug};
use crate::store::EntryRow;
use parley_protocol::{ChatId, UserId};

/// Events in one read.
const PAGE_ROWS: u32 = 256;
/// Entries that hold the head: the most that can lie above it, of one dead writer, and one.
const HEAD_ROWS: u32 = INBOX_ROWS_MAX as u32 + 1;

/// Reads the events of a chat from one to the end.
#[derive(Debug)]
pub(super) struct Tail {
    chat_id: ChatId,
    from: u64,
    next: u64,
    rows: Vec<EventRow>,
}

/// An append as a taker finds it.
#[derive(Debug, PartialEq)]
pub(super) struct LastAppend {
    pub(super) rows: Vec<EventRow>,
    pub(super) redo: Redo,
}

impl Tail {
    pub(super) fn new(chat_id: ChatId, from: u64) -> Tail {
        let from = from.max(1);
        Tail { chat_id, from, next: from, rows: Vec::new() }
    }

    pub(super) fn read(&self) -> Read {
        let bucket = seq_bucket(self.next);
        let to = (u64::from(bucket) + 1) * SEQ_BUCKET;
        Read::Events { chat_id: self.chat_id, bucket, from: self.next, to, limit: PAGE_ROWS, newest_first: false }
    }

    /// Takes the rows of a read; whether that was the last. An append lies within one bucket, so what is left of a dead
    /// one ends there too.
    pub(super) fn take(&mut self, rows: Vec<Row>) -> bool {
        let full = rows.len() >= PAGE_ROWS as usize;
        self.rows.extend(rows.into_iter().filter_map(|row| match row {
            Row::Event(row) => Some(row),
            _ => None,
        }));
        let last = self.rows.last().map_or(0, |row| row.event.seq);
        if last < self.next {
            return true;
        }
        self.next = last + 1;
        !full && !last.is_multiple_of(SEQ_BUCKET)
    }

    /// The last append of the log, as a taker finds it: the last that is whole and no ghost. Up to the append that holds
    /// `checkpoint_seq` everything is real: the checkpoint was written when its events stood. `before` is the epoch that
    /// stands for the append before the first.
    ///
    /// Reads repair rows, not appends: what a dead taker wrote again may be of its epoch in a few rows only, so an
    /// append is as new as its newest row. Rows with a hole below them, or that are not those that a `redo` was written
    /// with, were at no quorum. Nothing was derived from them, and they are left to be ghosts.
    pub(super) fn last_append(self, before: Option<u64>, checkpoint_seq: u64) -> Result<Option<LastAppend>, String> {
        let Tail { chat_id, from, mut rows, .. } = self;
        let dense = rows.iter().zip(from..).take_while(|(row, seq)| row.event.seq == *seq).count();
        rows.truncate(dense);
        // The rest of an append that began before: it lies below the checkpoint.
        let mut at = rows.iter().take_while(|row| row.derived_through + 1 < row.event.seq).count();
        let mut last = None;
        let mut epoch = before.unwrap_or(0);
        while at < rows.len() {
            let (first_seq, real) = (rows[at].event.seq, rows[at].event.seq <= checkpoint_seq);
            let Some(length) = append_length(&rows[at..]) else { break };
            let append = &rows[at..at + length];
            let newest = append.iter().map(|row| row.epoch).max().unwrap_or(0);
            if newest < epoch && !real && !planted::has(Bug::GhostsLoaded) {
                break;
            }
            let redo = match is_alone(&append[0]) {
                true => Redo::default(),
                false => {
                    let bytes = &append[length - 1].redo;
                    Redo::decode(bytes).map_err(|why| format!("chat {chat_id}: append {first_seq}: {why}"))?
                }
            };
            let whole =
                is_alone(&append[0]) || redo.events == events_hash(append.iter().map(|row| row.event.message_id));
            if !whole {
                break;
            }
            last = Some((at, length, redo));
            epoch = epoch.max(newest);
            at += length;
        }
        let head = last.as_ref().map_or(0, |(at, length, _)| rows[at + length - 1].event.seq);
        if head < checkpoint_seq {
            return Err(format!("chat {chat_id}: no whole append at its checkpoint {checkpoint_seq}"));
        }
        // Rows of its own: the place of the whole tail is given back.
        Ok(last.map(|(at, length, redo)| LastAppend { rows: rows.drain(at..at + length).collect(), redo }))
    }

    /// The rows up to the head, of a chat that no taker has to look at: its last append stands as one epoch wrote it, and
    /// no row below is newer. What lies above is older. `before` is the epoch that stands for the row before the first.
    pub(super) fn finish(self, before: Option<u64>) -> Result<Vec<EventRow>, String> {
        let mut rows = self.rows;
        if !planted::has(Bug::GhostsLoaded) {
            rows.truncate(log_without_ghosts(before, rows.iter().map(|row| row.epoch)));
        }
        match rows.windows(2).find(|pair| pair[1].event.seq != pair[0].event.seq + 1) {
            Some(pair) => {
                Err(format!("chat {}: event {} follows {}", self.chat_id, pair[1].event.seq, pair[0].event.seq))
            }
            None => Ok(rows),
        }
    }
}

/// How many rows of a log, from the first, are no ghosts: up to the last of the newest epoch.
pub(in crate::cql) fn log_without_ghosts(before: Option<u64>, epochs: impl Iterator<Item = u64>) -> usize {
    let (mut newest, mut rows) = (before.unwrap_or(0), 0);
    for (at, epoch) in epochs.enumerate() {
        if epoch >= newest {
            (newest, rows) = (epoch, at + 1);
        }
    }
    rows
}

/// Copied from another store, where everything was derived: it has no `redo` of its own.
fn is_alone(row: &EventRow) -> bool {
    row.epoch == 0 || row.derived_through >= row.event.seq
}

/// Rows of the append that the first row begins: up to one with `redo`.
fn append_length(rows: &[EventRow]) -> Option<usize> {
    let first = rows.first()?;
    if is_alone(first) {
        return Some(1);
    }
    let begins = first.derived_through + 1 == first.event.seq;
    let last = rows.iter().position(|row| !row.redo.is_empty()).filter(|_| begins)?;
    Some(last + 1)
}

/// An entry as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoredEntry {
    pub(super) inbox_seq: u64,
    pub(super) row: EntryRow,
    pub(super) epoch: u64,
}

impl StoredEntry {
    pub(super) fn to_row(self, epoch: u64) -> Row {
        Row::Entry { inbox_seq: self.inbox_seq, row: self.row, epoch }
    }

    pub(super) fn of(row: &Row) -> Option<StoredEntry> {
        match row {
            Row::Entry { inbox_seq, row, epoch } => {
                Some(StoredEntry { inbox_seq: *inbox_seq, row: *row, epoch: *epoch })
            }
            _ => None,
        }
    }
}

/// Reads the newest entries of an inbox.
#[derive(Debug)]
pub(super) struct Head {
    user_id: UserId,
    /// Bucket and epoch; asked for first.
    state: Option<Option<(u32, u64)>>,
    bucket: u32,
    /// The newest first.
    rows: Vec<StoredEntry>,
}

impl Head {
    pub(super) fn new(user_id: UserId) -> Head {
        Head { user_id, state: None, bucket: 0, rows: Vec::new() }
    }

    pub(super) fn read(&self) -> Read {
        let (user_id, bucket) = (self.user_id, self.bucket);
        if self.state.is_none() {
            return Read::All(Partition::InboxState { user_id });
        }
        let from = u64::from(bucket) * INBOX_BUCKET + 1;
        let limit = HEAD_ROWS - self.rows.len() as u32;
        Read::Entries { user_id, bucket, from, to: from + INBOX_BUCKET - 1, limit, newest_first: true }
    }

    /// Takes the rows of a read; whether that was the last.
    pub(super) fn take(&mut self, rows: &[Row]) -> bool {
        if self.state.is_none() {
            let state = rows.iter().find_map(|row| match row {
                Row::InboxState { bucket, epoch } => Some((*bucket, *epoch)),
                _ => None,
            });
            self.bucket = state.map_or(0, |(bucket, _)| bucket);
            self.state = Some(state);
            return false;
        }
        self.rows.extend(rows.iter().filter_map(StoredEntry::of).take(HEAD_ROWS as usize - self.rows.len()));
        let newest = self.state.flatten().map_or(0, |(bucket, _)| bucket);
        if self.rows.len() >= HEAD_ROWS as usize || self.bucket == 0 || self.bucket < newest {
            return true;
        }
        self.bucket -= 1;
        false
    }

    /// As [`Head::finish`], as a taker finds it: also up to the first hole. Reads may have repaired some rows of a write
    /// that was at no quorum; nobody was told of them, and they are left to be ghosts.
    pub(super) fn finish_dense(mut self) -> Result<Vec<StoredEntry>, String> {
        self.rows.reverse();
        let whole = self.rows.len() >= HEAD_ROWS as usize || self.bucket > 0;
        let hole = self.rows.windows(2).position(|pair| pair[1].inbox_seq != pair[0].inbox_seq + 1);
        self.rows.truncate(hole.map_or(self.rows.len(), |at| at + 1));
        if !whole && self.rows.first().is_some_and(|row| row.inbox_seq != 1) {
            self.rows.clear();
        }
        self.rows.reverse();
        self.finish()
    }

    /// The newest entries up to the head, in order; none when the inbox is empty.
    pub(super) fn finish(mut self) -> Result<Vec<StoredEntry>, String> {
        self.rows.reverse();
        // A taker that found nothing has said so: no entry is older.
        let before = self.state.flatten().filter(|(bucket, _)| *bucket == 0);
        let mut epoch = before.map_or(0, |(_, epoch)| epoch);
        let ghost = self.rows.iter().position(|row| row.epoch < std::mem::replace(&mut epoch, row.epoch));
        let ghost = ghost.filter(|_| !planted::has(Bug::GhostsLoaded));
        self.rows.truncate(ghost.unwrap_or(self.rows.len()));
        match self.rows.windows(2).find(|pair| pair[1].inbox_seq != pair[0].inbox_seq + 1) {
            Some(pair) => {
                let (next, last) = (pair[1].inbox_seq, pair[0].inbox_seq);
                Err(format!("inbox of {}: entry {next} follows {last}", self.user_id))
            }
            None => Ok(self.rows),
        }
    }
}

/// Reads that together give some entries of an inbox by their rising numbers; those that lie near each other share one.
pub(super) fn reads_of(user_id: UserId, numbers: &[u64]) -> Vec<Read> {
    const NEAR: u64 = 32;
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((from, to))
                if *number <= *to + NEAR
                    && number - *from < u64::from(PAGE_ROWS)
                    && inbox_bucket(*from) == inbox_bucket(*number) =>
            {
                *to = *number;
            }
            _ => ranges.push((*number, *number)),
        }
    }
    let read = |(from, to)| Read::Entries {
        user_id,
        bucket: inbox_bucket(from),
        from,
        to,
        limit: PAGE_ROWS,
        newest_first: false,
    };
    ranges.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use parley_protocol::body::Envelope;
    use parley_protocol::{ClientMsgId, Event, MessageId};
    use std::collections::BTreeMap;

    const CHAT: ChatId = ChatId(5);
    const USER: UserId = UserId(3);

    fn event(seq: u64, epoch: u64) -> Row {
        let envelope = Envelope { kind: 1, flags: 0, body: Vec::new() };
        let event = Event {
            chat_id: CHAT,
            seq,
            ordinal: seq,
            message_id: MessageId(seq),
            sender: USER,
            sender_sent: seq,
            client_msg_id: ClientMsgId(u128::from(seq)),
            envelope,
        };
        Row::Event(EventRow { event, epoch, derived_through: seq - 1, redo: Vec::new() })
    }

    /// Appends of some epoch and length, each of events with ids of its own.
    fn appends(appends: &[(u64, u64)]) -> Vec<Row> {
        let (mut rows, mut seq) = (Vec::new(), 0);
        for (at, (epoch, length)) in appends.iter().enumerate() {
            rows.extend(append(seq + 1, *length, *epoch, at as u64 * 1_000));
            seq += length;
        }
        rows
    }

    fn append(first: u64, length: u64, epoch: u64, ids: u64) -> Vec<Row> {
        let mut rows: Vec<_> = (first..first + length).map(|seq| event(seq, epoch)).collect();
        for row in &mut rows {
            let Row::Event(row) = row else { panic!("an event") };
            row.derived_through = first - 1;
            row.event.message_id = MessageId(ids + row.event.seq);
        }
        let events = events_hash((first..first + length).map(|seq| MessageId(ids + seq)));
        let Some(Row::Event(last)) = rows.last_mut() else { panic!("an event") };
        last.redo = Redo { events, ..Redo::default() }.encode();
        rows
    }

    /// First and last `seq` of the append that a taker finds.
    fn found(from: u64, rows: &[Row], before: Option<u64>, checkpoint_seq: u64) -> Option<(u64, u64)> {
        let mut tail = Tail::new(CHAT, from);
        tail.take(rows.iter().filter(|row| seq_of(row) >= from).cloned().collect());
        let last = tail.last_append(before, checkpoint_seq).expect("nothing is damaged")?;
        Some((last.rows.first()?.event.seq, last.rows.last()?.event.seq))
    }

    fn seq_of(row: &Row) -> u64 {
        let Row::Event(row) = row else { panic!("an event") };
        row.event.seq
    }

    /// Puts other rows in the place of those with their numbers.
    fn mixed(rows: &[Row], other: &[Row], numbers: &[u64]) -> Vec<Row> {
        let mut all: BTreeMap<u64, Row> = rows.iter().map(|row| (seq_of(row), row.clone())).collect();
        all.extend(other.iter().map(|row| (seq_of(row), row.clone())).filter(|(seq, _)| numbers.contains(seq)));
        all.into_values().collect()
    }

    #[test]
    fn a_taker_finds_the_last_whole_append() {
        let rows = appends(&[(5, 9), (5, 5)]);
        assert_eq!(found(1, &rows, None, 0), Some((10, 14)));
        assert_eq!(found(1, &rows[..13], None, 0), Some((1, 9)), "one without its end is none");
        assert_eq!(found(1, &mixed(&rows[..9], &rows, &[14]), None, 0), Some((1, 9)), "a row above a hole is none");
        assert_eq!(found(1, &rows[13..], None, 0), None, "nor without its first");
        assert_eq!(found(1, &[], None, 0), None);
        assert_eq!(found(1, &rows, Some(6), 0), None, "a taker found nothing");
        let ghosts = appends(&[(6, 9), (5, 5), (6, 1)]);
        assert_eq!(found(1, &ghosts, None, 0), Some((1, 9)), "and what lies above them");
    }

    #[test]
    fn an_append_that_is_written_again_in_part_is_whole() {
        let rows = appends(&[(5, 9), (5, 5)]);
        let again: Vec<_> = append(10, 5, 6, 1_000);
        for seq in 10..=14 {
            assert_eq!(found(1, &mixed(&rows, &again, &[seq]), None, 0), Some((10, 14)), "{seq} is newer");
        }
        let next = append(15, 2, 5, 2_000);
        let above = mixed(&mixed(&rows, &again, &[12]), &next, &[15, 16]);
        assert_eq!(found(1, &above, None, 0), Some((10, 14)), "an older one above it is a ghost");
        let above = mixed(&rows, &next, &[15, 16]);
        assert_eq!(found(1, &above, None, 0), Some((15, 16)));
    }

    #[test]
    fn rows_of_two_appends_are_none() {
        let rows = appends(&[(5, 9), (5, 5)]);
        for (other, numbers) in [(append(10, 2, 6, 7_000), &[10][..]), (append(10, 2, 6, 7_000), &[11])] {
            assert_eq!(found(1, &mixed(&rows, &other, numbers), None, 0), Some((1, 9)), "{numbers:?}");
        }
        let longer = append(10, 6, 6, 7_000);
        assert_eq!(found(1, &mixed(&rows, &longer, &[14, 15]), None, 0), Some((1, 9)));
        let whole = mixed(&rows, &append(10, 2, 6, 7_000), &[10, 11]);
        assert_eq!(
            found(1, &whole, None, 0),
            Some((10, 11)),
            "what is left above a shorter one does not go on from it"
        );
    }

    #[test]
    fn a_tail_from_the_middle_begins_at_the_first_border() {
        let rows = appends(&[(1, 9), (7, 5), (7, 3)]);
        for from in 1..=10 {
            assert_eq!(found(from, &rows, None, 10), Some((15, 17)), "from {from}");
        }
        assert_eq!(found(4, &rows[..14], None, 12), Some((10, 14)), "a checkpoint within it");
        let mut tail = Tail::new(CHAT, 4);
        tail.take(rows[3..11].to_vec());
        assert!(tail.last_append(None, 12).is_err(), "no append at its checkpoint");
        let copied: Vec<_> = (1..=20).map(|seq| event(seq, 0)).collect();
        assert_eq!(found(5, &copied, None, 12), Some((20, 20)), "each of those copied is alone");
    }

    #[test]
    fn a_redo_that_does_not_decode_is_damage() {
        let mut rows = appends(&[(5, 9), (5, 5)]);
        let Some(Row::Event(last)) = rows.last_mut() else { panic!("an event") };
        last.redo.truncate(3);
        let mut tail = Tail::new(CHAT, 1);
        tail.take(rows);
        assert!(tail.last_append(None, 0).is_err());
    }

    fn tail(from: u64, rows: Vec<Row>, before: Option<u64>) -> Result<Vec<u64>, String> {
        let mut tail = Tail::new(CHAT, from);
        tail.take(rows);
        tail.finish(before).map(|rows| rows.iter().map(|row| row.event.seq).collect())
    }

    #[test]
    fn a_log_ends_before_the_first_lower_epoch() {
        let rows = |epochs: &[u64]| epochs.iter().zip(4..).map(|(epoch, seq)| event(seq, *epoch)).collect::<Vec<_>>();
        assert_eq!(tail(4, rows(&[1, 1, 2]), None), Ok(vec![4, 5, 6]));
        assert_eq!(tail(4, rows(&[1, 2, 1, 1]), None), Ok(vec![4, 5]));
        assert_eq!(tail(4, rows(&[6, 5, 5, 7, 7, 5]), None), Ok(vec![4, 5, 6, 7, 8]), "a late write of a dead taker");
        assert_eq!(tail(4, rows(&[3, 1, 2]), None), Ok(vec![4]), "a higher epoch above a ghost is one too");
        assert_eq!(tail(1, vec![event(1, 1), event(2, 1)], Some(2)), Ok(vec![]), "a checkpoint of seq 0 stands before");
        assert_eq!(tail(1, vec![event(1, 2)], Some(2)), Ok(vec![1]));
        assert!(tail(4, vec![event(4, 1), event(6, 1)], None).is_err(), "a hole is damage");
    }

    #[test]
    fn a_log_is_read_across_buckets_and_no_further_than_its_end() {
        let mut tail = Tail::new(CHAT, SEQ_BUCKET - 1);
        assert!(!tail.take(vec![event(SEQ_BUCKET - 1, 1), event(SEQ_BUCKET, 1)]), "the bucket is full");
        let Read::Events { bucket, from, .. } = tail.read() else { panic!("it reads events") };
        assert_eq!((bucket, from), (1, SEQ_BUCKET + 1));
        assert!(tail.take(vec![event(SEQ_BUCKET + 1, 1)]));
        assert_eq!(tail.finish(None).map(|rows| rows.len()), Ok(3));
        let mut tail = Tail::new(CHAT, 1);
        assert!(!tail.take((1..=u64::from(PAGE_ROWS)).map(|seq| event(seq, 1)).collect()), "a full page");
        assert!(tail.take(Vec::new()));
    }

    fn entry(inbox_seq: u64, epoch: u64) -> Row {
        Row::Entry { inbox_seq, row: EntryRow::Own { chat_id: CHAT }, epoch }
    }

    fn head(state: Option<(u32, u64)>, pages: Vec<Vec<Row>>) -> Result<u64, String> {
        let mut head = Head::new(USER);
        let row = state.map(|(bucket, epoch)| Row::InboxState { bucket, epoch });
        assert!(!head.take(row.as_slice()));
        let pages_max = pages.len();
        for (at, page) in pages.into_iter().enumerate() {
            assert_eq!(head.take(&page), at + 1 == pages_max, "page {at}");
        }
        head.finish().map(|rows| rows.last().map_or(0, |row| row.inbox_seq))
    }

    #[test]
    fn an_inbox_ends_before_the_first_lower_epoch() {
        assert_eq!(head(None, vec![vec![]]), Ok(0));
        assert_eq!(head(None, vec![vec![entry(2, 1), entry(1, 1)]]), Ok(2));
        assert_eq!(head(None, vec![vec![entry(3, 1), entry(2, 1), entry(1, 2)]]), Ok(1));
        assert_eq!(head(Some((0, 2)), vec![vec![entry(2, 1), entry(1, 1)]]), Ok(0), "inbox_state stands before");
        assert_eq!(head(Some((0, 2)), vec![vec![entry(2, 2), entry(1, 2)]]), Ok(2));
        assert!(head(None, vec![vec![entry(3, 1), entry(1, 1)]]).is_err(), "a hole is damage");
        assert_eq!(head(Some((0, 2)), vec![vec![entry(3, 1)]]), Ok(0), "but not among ghosts");
        assert_eq!(head(None, vec![vec![entry(4, 1), entry(2, 2), entry(1, 1)]]), Ok(2));
    }

    #[test]
    fn a_taker_finds_an_inbox_up_to_its_first_hole() {
        let found = |state: Option<(u32, u64)>, numbers: &[u64]| {
            let mut head = Head::new(USER);
            head.take(state.map(|(bucket, epoch)| Row::InboxState { bucket, epoch }).as_slice());
            head.take(&numbers.iter().rev().map(|number| entry(*number, 3)).collect::<Vec<_>>());
            head.finish_dense().map(|rows| rows.last().map_or(0, |row| row.inbox_seq))
        };
        assert_eq!(found(None, &[1, 2, 3]), Ok(3));
        assert_eq!(found(None, &[1, 2, 4, 5]), Ok(2));
        assert_eq!(found(None, &[2, 3]), Ok(0));
        assert_eq!(found(Some((0, 4)), &[1, 2]), Ok(0));
        let newest: Vec<u64> = (70..103).collect();
        assert_eq!(found(None, &newest), Ok(102));
    }

    #[test]
    fn an_inbox_is_looked_at_across_the_border_of_its_newest_bucket() {
        let border = INBOX_BUCKET;
        let before: Vec<_> = (0..30).map(|at| entry(border - at, 2)).collect();
        let ghosts: Vec<_> = (1..=3).rev().map(|at| entry(border + at, 1)).collect();
        assert_eq!(head(Some((1, 1)), vec![ghosts, before.clone()]), Ok(border));
        assert_eq!(head(Some((1, 1)), vec![vec![], before]), Ok(border), "the bucket was announced only");
        let many: Vec<_> = (0..33).map(|at| entry(border + 40 - at, 1)).collect();
        assert_eq!(head(Some((1, 9)), vec![many]), Ok(border + 40));
    }

    #[test]
    fn numbers_that_lie_near_each_other_share_a_read() {
        let reads = reads_of(USER, &[1, 2, 30, 100, INBOX_BUCKET, INBOX_BUCKET + 1]);
        let ranges: Vec<_> = reads
            .iter()
            .map(|read| match read {
                Read::Entries { from, to, bucket, .. } => (*from, *to, *bucket),
                _ => panic!("it reads entries"),
            })
            .collect();
        let border = INBOX_BUCKET;
        assert_eq!(ranges, [(1, 30, 0), (100, 100, 0), (border, border, 0), (border + 1, border + 1, 1)]);
    }
}
