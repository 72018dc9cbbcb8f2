//! The high-water record: how many groups were ever acknowledged, in a small file outside the engine's journal.
//!
//! A damaged byte in the middle of the engine's journal makes it drop everything behind it without a word. The same
//! count lies in each group's own batch; at the next start a store that counts less than this file is refused.
//!
//! Two slots in two blocks, written in turn, so that a torn write leaves the one before. A record is synced after its
//! group's journal and before its group's answer.

use super::error::OpenError;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The file's name in the data directory.
pub(crate) const HIGH_WATER_FILE: &str = "high-water";

const MAGIC: [u8; 8] = *b"PARLEYHW";
const VERSION: u32 = 1;
/// One block of every common disk, so that the two never share one.
const SLOT_BYTES: usize = 4096;
/// magic 8, version 4, zero 4, store 16, groups 8, crc 4.
const RECORD_BYTES: usize = 44;

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Drawn when the store was made; the engine holds it too.
    pub(crate) store: u128,
    /// Groups that may have been acknowledged, over the life of the store.
    pub(crate) groups: u64,
}

impl Record {
    fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.store.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.groups.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..40]);
        bytes[40..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(slot: &[u8]) -> Option<Self> {
        let bytes = slot.first_chunk::<RECORD_BYTES>()?;
        let store = u128::from_le_bytes(*bytes[16..].first_chunk()?);
        let groups = u64::from_le_bytes(*bytes[32..].first_chunk()?);
        let record = Self { store, groups };
        (record.encode() == *bytes).then_some(record)
    }
}

/// The open file.
#[derive(Debug)]
pub(crate) struct HighWater {
    file: File,
    path: PathBuf,
    record: Record,
    /// Where the next record goes: never over the newest.
    slot_next: u64,
}

impl HighWater {
    /// Makes the file, both blocks written, synced. The directory is synced by the caller.
    pub(crate) fn create(dir: &Path, store: u128) -> Result<(), OpenError> {
        let mut bytes = vec![0; 2 * SLOT_BYTES];
        bytes[..RECORD_BYTES].copy_from_slice(&Record { store, groups: 0 }.encode());
        super::files::write_whole(&dir.join(HIGH_WATER_FILE), &bytes)
    }

    /// Opens the file; none when there is none.
    pub(crate) fn open(dir: &Path) -> Result<Option<Self>, OpenError> {
        let path = dir.join(HIGH_WATER_FILE);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(OpenError::io("open", &path)(error)),
        };
        let mut bytes = vec![0; 2 * SLOT_BYTES];
        if let Err(error) = file.read_exact_at(&mut bytes, 0) {
            let what = format!("its two slots cannot be read ({error})");
            return Err(OpenError::Damaged { file: path, what });
        }
        let slots = [Record::decode(&bytes[..SLOT_BYTES]), Record::decode(&bytes[SLOT_BYTES..])];
        let (record, slot_next) = match slots {
            [Some(first), Some(second)] if first.store != second.store => {
                return Err(OpenError::Mixed { file: path, what: "its two slots are of two stores".to_owned() });
            }
            [Some(first), Some(second)] if second.groups > first.groups => (second, 0),
            [Some(first), _] => (first, 1),
            [None, Some(second)] => (second, 0),
            [None, None] => {
                return Err(OpenError::Damaged { file: path, what: "neither of its slots holds a record".to_owned() });
            }
        };
        Ok(Some(Self { file, path, record, slot_next }))
    }

    /// The newest record.
    pub(crate) fn record(&self) -> Record {
        self.record
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Raises the count, durably. After an error nothing is known of the file; the caller must end.
    pub(crate) fn raise(&mut self, groups: u64) -> std::io::Result<()> {
        if groups <= self.record.groups {
            return Ok(());
        }
        let record = Record { groups, ..self.record };
        self.file.write_all_at(&record.encode(), self.slot_next * SLOT_BYTES as u64)?;
        self.file.sync_data()?;
        self.record = record;
        self.slot_next ^= 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_slot(dir: &Path, slot: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(dir.join(HIGH_WATER_FILE)).unwrap();
        file.write_all_at(bytes, slot * SLOT_BYTES as u64).unwrap();
    }

    #[test]
    fn a_torn_record_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        assert!(HighWater::open(dir.path()).unwrap().is_none());
        HighWater::create(dir.path(), 42).unwrap();
        let mut high_water = HighWater::open(dir.path()).unwrap().unwrap();
        assert_eq!(high_water.record(), Record { store: 42, groups: 0 });
        for groups in [1, 2, 5] {
            high_water.raise(groups).unwrap();
        }
        // Records 0, 1, 2, 5 went to slots 0, 1, 0, 1.
        drop(high_water);
        assert_eq!(HighWater::open(dir.path()).unwrap().unwrap().record().groups, 5);
        write_slot(dir.path(), 1, &[0xff; 20]);
        let mut high_water = HighWater::open(dir.path()).unwrap().unwrap();
        assert_eq!(high_water.record().groups, 2);
        high_water.raise(6).unwrap();
        drop(high_water);
        write_slot(dir.path(), 0, &[0xff; 20]);
        assert_eq!(HighWater::open(dir.path()).unwrap().unwrap().record().groups, 6);
        write_slot(dir.path(), 1, &[0xff; 20]);
        assert!(matches!(HighWater::open(dir.path()), Err(OpenError::Damaged { .. })));
    }

    #[test]
    fn slots_of_two_stores_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        HighWater::create(dir.path(), 42).unwrap();
        write_slot(dir.path(), 1, &Record { store: 43, groups: 9 }.encode());
        assert!(matches!(HighWater::open(dir.path()), Err(OpenError::Mixed { .. })));
    }
}
