//! Where a log and an inbox end: the newest rows, without the ghosts that dead writers left above the head. A ghost is a
//! row whose epoch is lower than that of the row before it.

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

/// How many rows, from the first, are no ghosts. `before` is the epoch that stands for the row before the first.
fn standing(before: Option<u64>, epochs: impl ExactSizeIterator<Item = u64>) -> usize {
    if planted::has(Bug::GhostsLoaded) {
        return epochs.len();
    }
    let mut last = before.unwrap_or(0);
    epochs.take_while(|epoch| std::mem::replace(&mut last, *epoch) <= *epoch).count()
}

/// Reads the events of a chat from one to the end.
#[derive(Debug)]
pub(super) struct Tail {
    chat_id: ChatId,
    next: u64,
    rows: Vec<EventRow>,
}

impl Tail {
    pub(super) fn new(chat_id: ChatId, from: u64) -> Tail {
        Tail { chat_id, next: from.max(1), rows: Vec::new() }
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

    /// As [`Tail::finish`], but ends before the first hole: above it lie parts of an append of a dead writer.
    pub(super) fn finish_dense(mut self, before: Option<u64>) -> Vec<EventRow> {
        self.rows.truncate(standing(before, self.rows.iter().map(|row| row.epoch)));
        let hole = self.rows.windows(2).position(|pair| pair[1].event.seq != pair[0].event.seq + 1);
        self.rows.truncate(hole.map_or(self.rows.len(), |at| at + 1));
        self.rows
    }

    /// The rows up to the head. `before` is the epoch that stands for the row before the first.
    pub(super) fn finish(self, before: Option<u64>) -> Result<Vec<EventRow>, String> {
        let mut rows = self.rows;
        rows.truncate(standing(before, rows.iter().map(|row| row.epoch)));
        match rows.windows(2).find(|pair| pair[1].event.seq != pair[0].event.seq + 1) {
            Some(pair) => {
                Err(format!("chat {}: event {} follows {}", self.chat_id, pair[1].event.seq, pair[0].event.seq))
            }
            None => Ok(rows),
        }
    }
}

/// An entry as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoredEntry {
    pub(super) inbox_seq: u64,
    pub(super) row: EntryRow,
    epoch: u64,
}

impl StoredEntry {
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

    /// The newest entries up to the head, in order; none when the inbox is empty.
    pub(super) fn finish(mut self) -> Result<Vec<StoredEntry>, String> {
        self.rows.reverse();
        let first = self.rows.first().is_some_and(|row| row.inbox_seq == 1);
        let before = self.state.flatten().filter(|(bucket, _)| first && *bucket == 0);
        let before = before.map(|(_, epoch)| epoch);
        self.rows.truncate(standing(before, self.rows.iter().map(|row| row.epoch)));
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
