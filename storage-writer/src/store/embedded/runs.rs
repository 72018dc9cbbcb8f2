//! Runs: what one group adds to one inbox is one row, under the number of its first entry. Under load a group holds
//! several entries of most inboxes it touches, and a row costs the engine the same whether it holds one or a hundred.
//!
//! A run of one entry is the row of schema version 1, which knew no others. A longer one begins with a version byte and
//! is a list of segments: consecutive events of one chat, or the own state in a chat.

use super::layout::{self, Damage};
use parley_protocol::ChatId;
use storage_core::store::EntryRow;

/// Entries of a run: who looks for an entry looks at so many numbers below it.
pub(crate) const RUN_ENTRIES_MAX: usize = 256;
/// The first byte of a run of several.
const RUN_VERSION: u8 = 2;
/// Rows of version 1 are at most this long, runs of several are longer.
const SINGLE_BYTES_MAX: usize = 28;
/// Tags of segments.
const EVENTS: u8 = 1;
const OWN: u8 = 2;
const EVENTS_BYTES: usize = 1 + 16 + 8 + 4;
const OWN_BYTES: usize = 1 + 16;
const _: () = assert!(1 + EVENTS_BYTES > SINGLE_BYTES_MAX && 1 + 2 * OWN_BYTES > SINGLE_BYTES_MAX);

/// One or more entries that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Segment {
    Events { chat_id: ChatId, first: u64, count: u32 },
    Own { chat_id: ChatId },
}

impl Segment {
    fn of(row: EntryRow) -> Self {
        match row {
            EntryRow::Event { chat_id, seq } => Self::Events { chat_id, first: seq, count: 1 },
            EntryRow::Own { chat_id } => Self::Own { chat_id },
        }
    }

    /// Takes an entry in that follows; false when it belongs to another segment.
    fn extend(&mut self, row: EntryRow) -> bool {
        match (self, row) {
            (Self::Events { chat_id, first, count }, EntryRow::Event { chat_id: of, seq })
                if *chat_id == of && first.checked_add(u64::from(*count)) == Some(seq) =>
            {
                *count += 1;
                true
            }
            _ => false,
        }
    }

    fn put(self, out: &mut Vec<u8>) {
        match self {
            Self::Events { chat_id, first, count } => {
                out.push(EVENTS);
                out.extend_from_slice(&layout::chat_key(chat_id));
                out.extend_from_slice(&first.to_be_bytes());
                out.extend_from_slice(&count.to_be_bytes());
            }
            Self::Own { chat_id } => {
                out.push(OWN);
                out.extend_from_slice(&layout::chat_key(chat_id));
            }
        }
    }

    /// The segment that bytes begin with, and what follows it.
    fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let length = match *bytes.first()? {
            EVENTS => EVENTS_BYTES,
            OWN => OWN_BYTES,
            _ => return None,
        };
        let (segment, rest) = bytes.split_at_checked(length)?;
        let chat_id = layout::parse_chat_key(&segment[1..17])?;
        if segment[0] == OWN {
            return Some((Self::Own { chat_id }, rest));
        }
        let first = u64::from_be_bytes(segment[17..25].try_into().ok()?);
        let count = u32::from_be_bytes(segment[25..29].try_into().ok()?);
        first.checked_add(u64::from(count))?;
        Some((Self::Events { chat_id, first, count }, rest))
    }
}

/// Appends the value of a run of 1 to [`RUN_ENTRIES_MAX`] entries.
pub(crate) fn put_run(mut rows: impl ExactSizeIterator<Item = EntryRow>, out: &mut Vec<u8>) {
    let count = rows.len();
    debug_assert!((1..=RUN_ENTRIES_MAX).contains(&count));
    let Some(first) = rows.next() else { return };
    if count == 1 {
        return layout::put_entry(&first, out);
    }
    out.push(RUN_VERSION);
    let mut segment = Segment::of(first);
    for row in rows {
        if !segment.extend(row) {
            segment.put(out);
            segment = Segment::of(row);
        }
    }
    segment.put(out);
}

/// The entries of a run, in order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'a> {
    single: Option<EntryRow>,
    segments: &'a [u8],
    /// How many entries it has, at least one.
    pub(crate) entries: u64,
}

impl<'a> Run<'a> {
    /// Reads the value of a row; all of it is checked here.
    pub(crate) fn parse(value: &'a [u8]) -> Result<Self, Damage> {
        if value.len() <= SINGLE_BYTES_MAX {
            return Ok(Self { single: Some(layout::parse_entry(value)?), segments: &[], entries: 1 });
        }
        let segments = value.strip_prefix(&[RUN_VERSION]).ok_or(Damage::Form)?;
        let (mut entries, mut rest) = (0_u64, segments);
        while !rest.is_empty() {
            let (segment, after) = Segment::parse(rest).ok_or(Damage::Form)?;
            entries += match segment {
                Segment::Events { count, .. } => u64::from(count),
                Segment::Own { .. } => 1,
            };
            rest = after;
        }
        let fits = (2..=RUN_ENTRIES_MAX as u64).contains(&entries);
        if fits { Ok(Self { single: None, segments, entries }) } else { Err(Damage::Form) }
    }

    /// The number of its last entry, where `first` is that of its first.
    pub(crate) fn last(&self, first: u64) -> Result<u64, Damage> {
        first.checked_add(self.entries - 1).ok_or(Damage::Form)
    }

    /// What it names, in order.
    pub(crate) fn rows(self) -> impl Iterator<Item = EntryRow> + 'a {
        let Self { single, mut segments, .. } = self;
        let segments = std::iter::from_fn(move || {
            let (segment, rest) = Segment::parse(segments)?;
            segments = rest;
            Some(segment)
        });
        let several = segments.flat_map(|segment| {
            let (own, chat, range) = match segment {
                Segment::Events { chat_id, first, count } => (None, chat_id, first..first + u64::from(count)),
                Segment::Own { chat_id } => (Some(EntryRow::Own { chat_id }), chat_id, 0..0),
            };
            own.into_iter().chain(range.map(move |seq| EntryRow::Event { chat_id: chat, seq }))
        });
        single.into_iter().chain(several)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(chat: u128, seq: u64) -> EntryRow {
        EntryRow::Event { chat_id: ChatId(chat), seq }
    }

    fn own(chat: u128) -> EntryRow {
        EntryRow::Own { chat_id: ChatId(chat) }
    }

    fn value(rows: &[EntryRow]) -> Vec<u8> {
        let mut value = Vec::new();
        put_run(rows.iter().copied(), &mut value);
        value
    }

    #[test]
    fn runs_come_back() {
        let long = u64::from(u32::MAX);
        let every: Vec<Vec<EntryRow>> = vec![
            vec![event(1, 5)],
            vec![event(1, long + 7)],
            vec![own(1)],
            vec![own(1), own(1)],
            vec![event(1, 5), event(1, 6)],
            vec![event(1, long - 1), event(1, long), event(1, long + 1)],
            vec![event(1, 5), event(2, 6), event(1, 6), own(1), event(1, 7), event(1, 8), event(1, 10)],
            (0..RUN_ENTRIES_MAX as u64).map(|n| event(u128::from(n % 3), n)).collect(),
            (0..RUN_ENTRIES_MAX as u64).map(|n| event(9, n)).collect(),
        ];
        for rows in every {
            let value = value(&rows);
            let run = Run::parse(&value).unwrap();
            assert_eq!(run.rows().collect::<Vec<_>>(), rows);
            assert_eq!((run.entries, run.last(7)), (rows.len() as u64, Ok(6 + rows.len() as u64)));
            for cut in SINGLE_BYTES_MAX + 1..value.len() {
                assert!(Run::parse(&value[..cut]).map_or(true, |cut| cut.entries < run.entries));
            }
            assert!(Run::parse(&[&value[..], &[0]].concat()).is_err());
        }
    }

    #[test]
    fn what_no_writer_writes_is_damage() {
        let mut too_many = value(&[event(1, 5), event(1, 6)]);
        let end = too_many.len();
        for (count, good) in [(0_u32, false), (1, false), (2, true), (256, true), (257, false), (u32::MAX, false)] {
            too_many[end - 4..].copy_from_slice(&count.to_be_bytes());
            assert_eq!(Run::parse(&too_many).is_ok(), good, "{count}");
        }
        let mut past_the_end = value(&[event(1, u64::MAX - 1), event(1, u64::MAX)]);
        assert!(Run::parse(&past_the_end).is_err(), "no event has the last number");
        past_the_end[0] = 1;
        assert!(Run::parse(&past_the_end).is_err());
        let one = value(&[event(1, 5)]);
        assert_eq!(Run::parse(&one).unwrap().last(u64::MAX), Ok(u64::MAX));
        let two = value(&[event(1, 5), event(1, 6)]);
        assert_eq!(Run::parse(&two).unwrap().last(u64::MAX), Err(Damage::Form));
    }

    /// The layout is in stores: these bytes never change. A run of one is what version 1 wrote.
    #[test]
    fn runs_are_frozen() {
        let hex = |rows: &[EntryRow]| value(rows).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let chat = 1 << 100 | 2;
        assert_eq!(hex(&[event(chat, 4)]), "975835ce1c9756ce000000000000000200000004");
        assert_eq!(
            hex(&[event(chat, 4), event(chat, 5), own(chat)]),
            "02\
             01975835ce1c9756ce0000000000000002000000000000000400000002\
             02975835ce1c9756ce0000000000000002"
        );
    }
}
