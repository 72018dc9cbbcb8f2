//! Which bits of an id mean what. Frozen: ids are stored for ever.

use std::fmt;

/// 2024-01-01T00:00:00Z, from which the milliseconds of an id count.
pub const EPOCH_UNIX_MS: u64 = 1_704_067_200_000;
/// Milliseconds since [`EPOCH_UNIX_MS`]: until the year 2093.
pub const MS_BITS: u32 = 41;
/// Writers that number at the same time.
pub const WORKER_BITS: u32 = 10;
/// Ids of one writer in one millisecond: 4,096.
pub const SEQUENCE_BITS: u32 = 12;

pub(crate) const MS_SHIFT: u32 = WORKER_BITS + SEQUENCE_BITS;
pub(crate) const SEQUENCE_MAX: u64 = (1 << SEQUENCE_BITS) - 1;
const WORKER_MAX: u16 = (1 << WORKER_BITS) - 1;
const MS_MAX: u64 = (1 << MS_BITS) - 1;

/// The highest id that the format holds; the sign bit of a 64-bit integer stays zero.
pub const ID_MAX: u64 = (1 << (MS_BITS + WORKER_BITS + SEQUENCE_BITS)) - 1;
/// The last millisecond that an id can name.
pub const UNIX_MS_MAX: u64 = EPOCH_UNIX_MS + MS_MAX;

// 63 bits exactly: an id is a positive i64 in every language and every column type.
const _: () = assert!(MS_BITS + WORKER_BITS + SEQUENCE_BITS == 63);
const _: () = assert!(ID_MAX == i64::MAX as u64);
const _: () = assert!(SEQUENCE_MAX + 1 == 4_096);
const _: () = assert!(WORKER_MAX as u64 + 1 == 1_024);
// 19,723 days lie between 1970-01-01 and 2024-01-01: 54 years, 13 of them leap years.
const _: () = assert!(EPOCH_UNIX_MS == (54 * 365 + 13) * 86_400_000);
const _: () = assert!(MS_MAX / 86_400_000 / 366 >= 69);

/// The number of a writer, unique among the writers that run at the same time: 10 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Worker(u16);

impl Worker {
    /// The highest worker number.
    pub const MAX: Worker = Worker(WORKER_MAX);

    /// `None` above [`Worker::MAX`].
    pub const fn new(number: u16) -> Option<Worker> {
        if number <= WORKER_MAX { Some(Worker(number)) } else { None }
    }

    /// The number, 0 to 1,023.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// An id that a generator gave. Orders by time first, then by worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub(crate) u64);

impl Id {
    /// The 63 bits.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The id's three fields.
    pub const fn parts(self) -> Parts {
        parts(self.0)
    }

    /// The millisecond that the id names, since 1970.
    pub const fn unix_ms(self) -> u64 {
        unix_ms_of(self.0)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An id taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Milliseconds since 1970; up to [`crate::RUN_AHEAD_MS_MAX`] ahead of the clock that was handed in.
    pub unix_ms: u64,
    /// Who numbered, 0 to 1,023.
    pub worker: u16,
    /// Counts from 0 within a millisecond of a worker.
    pub sequence: u16,
}

/// Takes an id apart. Total: of 64 bits the sign bit is ignored, as no id has it.
pub const fn parts(id: u64) -> Parts {
    let id = id & ID_MAX;
    Parts {
        unix_ms: EPOCH_UNIX_MS + (id >> MS_SHIFT),
        worker: (id >> SEQUENCE_BITS) as u16 & WORKER_MAX,
        sequence: (id & SEQUENCE_MAX) as u16,
    }
}

/// The millisecond that an id names, since 1970.
pub const fn unix_ms_of(id: u64) -> u64 {
    EPOCH_UNIX_MS + ((id & ID_MAX) >> MS_SHIFT)
}

/// The first id of `worker` in a millisecond within the format's range.
pub(crate) const fn first_of_ms(unix_ms: u64, worker: Worker) -> u64 {
    debug_assert!(unix_ms >= EPOCH_UNIX_MS && unix_ms <= UNIX_MS_MAX + 1);
    ((unix_ms - EPOCH_UNIX_MS) << MS_SHIFT) | ((worker.0 as u64) << SEQUENCE_BITS)
}

/// The id of `worker` that follows `id`, one of its own. Past the last one it leaves the 63 bits: above [`ID_MAX`].
pub(crate) const fn successor(id: u64, worker: Worker) -> u64 {
    if id & SEQUENCE_MAX < SEQUENCE_MAX {
        id + 1
    } else {
        (((id >> MS_SHIFT) + 1) << MS_SHIFT) | ((worker.0 as u64) << SEQUENCE_BITS)
    }
}

/// The lowest id of `worker` above `above`, an id of any worker and at most [`ID_MAX`].
pub(crate) const fn first_above(above: u64, worker: Worker) -> u64 {
    let ms = above >> MS_SHIFT;
    let theirs = (above >> SEQUENCE_BITS) as u16 & WORKER_MAX;
    if theirs < worker.0 {
        (ms << MS_SHIFT) | ((worker.0 as u64) << SEQUENCE_BITS)
    } else if theirs > worker.0 {
        ((ms + 1) << MS_SHIFT) | ((worker.0 as u64) << SEQUENCE_BITS)
    } else {
        successor(above, worker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const W5: Worker = Worker::new(5).unwrap();

    fn id(ms: u64, worker: u64, sequence: u64) -> u64 {
        (ms << 22) | (worker << 12) | sequence
    }

    #[test]
    fn the_fields_stand_where_the_format_says() {
        assert_eq!(parts(0), Parts { unix_ms: EPOCH_UNIX_MS, worker: 0, sequence: 0 });
        assert_eq!(parts(ID_MAX), Parts { unix_ms: UNIX_MS_MAX, worker: 1_023, sequence: 4_095 });
        assert_eq!(parts(id(9, 5, 77)), Parts { unix_ms: EPOCH_UNIX_MS + 9, worker: 5, sequence: 77 });
        assert_eq!(parts(u64::MAX), parts(ID_MAX));
        assert_eq!(unix_ms_of(id(9, 5, 77)), EPOCH_UNIX_MS + 9);
        assert_eq!(first_of_ms(EPOCH_UNIX_MS + 9, W5), id(9, 5, 0));
    }

    #[test]
    fn a_golden_id() {
        // 2026-11-21T12:00:00.123Z, worker 513, sequence 2,049: computed apart from this code, never to change.
        let golden: u64 = ((1_795_262_400_123 - 1_704_067_200_000) << 22) + 513 * 4_096 + 2_049;
        assert_eq!(golden, 382_500_392_658_802_689);
        assert_eq!(parts(golden), Parts { unix_ms: 1_795_262_400_123, worker: 513, sequence: 2_049 });
    }

    #[test]
    fn a_worker_has_ten_bits() {
        assert_eq!(Worker::new(1_023), Some(Worker::MAX));
        assert_eq!(Worker::new(1_024), None);
    }

    #[test]
    fn a_successor_stays_with_its_worker() {
        assert_eq!(successor(id(9, 5, 0), W5), id(9, 5, 1));
        assert_eq!(successor(id(9, 5, 4_095), W5), id(10, 5, 0));
        assert!(successor(ID_MAX, Worker::MAX) > ID_MAX);
    }

    #[test]
    fn above_another_workers_id() {
        assert_eq!(first_above(id(9, 4, 4_095), W5), id(9, 5, 0));
        assert_eq!(first_above(id(9, 6, 0), W5), id(10, 5, 0));
        assert_eq!(first_above(id(9, 5, 17), W5), id(9, 5, 18));
        assert_eq!(first_above(id(9, 5, 4_095), W5), id(10, 5, 0));
        assert_eq!(first_above(0, Worker::new(0).unwrap()), 1);
        assert!(first_above(ID_MAX, W5) > ID_MAX);
    }
}
