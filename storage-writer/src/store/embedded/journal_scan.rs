//! Reads the engine's journals before the engine does, and judges them as the engine does not.
//!
//! The engine cuts a journal off at the first byte that it does not understand, goes on with the next one, and takes a
//! batch's sequence number unchecked. Here each batch's checksum is verified, each group's number must follow the one
//! before, over all journals, and sequence numbers must lie where the batches themselves say. What was acknowledged
//! must be whole; what follows it is a torn tail and dropped.
//!
//! A journal of fjall 3: batches `1, items u32, seqno u64 | items | 3, xxh3 of the items u64, "FJL\x03"`, an item being
//! `2, kind u8, compression u8, keyspace u64, key bytes u16, value bytes u32, stored bytes u32, key, value`; all
//! little-endian. Zeros follow, for a journal is made at its full length.

use super::error::OpenError;
use super::layout;
use super::tables::{META_FLOOR, META_GROUPS, META_KEYSPACE};
use rustix::fs::SeekFrom;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use xxhash_rust::xxh3::Xxh3Default;

const BUFFER_BYTES: usize = 256 * 1024;
const TAG_START: u8 = 1;
const TAG_ITEM: u8 = 2;
const TAG_END: u8 = 3;
const TRAILER: [u8; 4] = *b"FJL\x03";
/// The longest item: its key's and value's lengths are far below in every store. More is damage, not memory to take.
const ITEM_BYTES_MAX: u64 = 256 << 20;
/// Sequence numbers that the engine may draw for itself between the floor that a group names and the group's own.
const SEQNO_SLACK: u64 = 1 << 10;

/// What of a journal is to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// The file's name.
    pub(crate) name: String,
    /// Whole groups end here; what follows is zeros or a torn tail.
    pub(crate) bytes: u64,
    /// What follows is a torn tail: why it cannot be read, and where.
    pub(crate) torn: Option<String>,
}

/// The first group that the journals hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct First {
    /// Its number.
    pub(crate) group: u64,
    /// Its sequence number.
    pub(crate) seqno: u64,
}

/// What the journals of a store hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// The journals, oldest first.
    pub(crate) kept: Vec<Kept>,
    /// None: they hold no group.
    pub(crate) first: Option<First>,
}

/// Why a journal cannot be followed any further, and where.
struct Fault {
    at: u64,
    what: String,
}

/// One whole batch.
struct Batch {
    end: u64,
    seqno: u64,
    group: u64,
    /// The engine's counter right before the group; groups of older programs do not name it.
    floor: Option<u64>,
}

/// Judges the journals `names` of a directory, oldest first. `acknowledged`: the high-water record's groups.
pub(crate) fn scan(dir: &Path, names: &[String], acknowledged: u64) -> Result<Scanned, OpenError> {
    let mut kept = Vec::with_capacity(names.len());
    let mut first = None;
    let mut last: Option<Batch> = None;
    let mut number_before: Option<u64> = None;
    for (index, name) in names.iter().enumerate() {
        let path = dir.join(name);
        let damaged =
            |at: u64, what: &str| OpenError::Damaged { file: path.clone(), what: format!("at byte {at}: {what}") };
        let number = name.strip_suffix(".jnl").and_then(|number| number.parse::<u64>().ok());
        let number = number.ok_or_else(|| damaged(0, "its name is not a journal's"))?;
        if let Some(before) = number_before.filter(|before| before + 1 != number) {
            let file = dir.join(format!("{}.jnl", before + 1));
            return Err(OpenError::Damaged { file, what: "the journal is missing".to_owned() });
        }
        number_before = Some(number);
        let active = index + 1 == names.len();
        let (bytes, fault) = follow(&path, &mut first, &mut last).map_err(OpenError::io("read", &path))?;
        let groups = last.as_ref().map_or(0, |batch| batch.group);
        let torn = match fault {
            // A sealed journal was synced whole before the next one was made, and is never empty.
            Some(fault) if !active || last.is_some() && groups < acknowledged => {
                // Cut off right behind a group, the journal before looks whole.
                let before = (index > 0 && fault.at == 0).then(|| dir.join(&names[index - 1]));
                let before = before.map_or(String::new(), |path| format!(", or {} ends too early", path.display()));
                let what = format!("{}{before}; it is whole up to group {groups}", fault.what);
                return Err(damaged(fault.at, &what));
            }
            None if !active && bytes == 0 => return Err(damaged(0, "it holds no group")),
            Some(fault) => Some(format!("at byte {}: {}", fault.at, fault.what)),
            None => None,
        };
        kept.push(Kept { name: name.clone(), bytes, torn });
    }
    Ok(Scanned { kept, first })
}

/// Follows one journal. The end of its whole groups, and what stands there if it is not the end.
fn follow(path: &Path, first: &mut Option<First>, last: &mut Option<Batch>) -> std::io::Result<(u64, Option<Fault>)> {
    let mut input = Input::open(path)?;
    let mut whole = 0;
    loop {
        let mut tag = [0];
        let fault = match input.take(&mut tag) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok((whole, None)),
            Err(error) => return Err(error),
            Ok(()) if tag[0] == 0 => match data_after(path, whole)? {
                None => return Ok((whole, None)),
                Some(at) => Fault { at, what: "there is data behind the end of the groups".to_owned() },
            },
            Ok(()) => match batch(&mut input, tag[0]) {
                Ok(batch) => match misplaced(&batch, last.as_ref()) {
                    None => {
                        whole = batch.end;
                        first.get_or_insert(First { group: batch.group, seqno: batch.seqno });
                        *last = Some(batch);
                        continue;
                    }
                    Some(what) => Fault { at: whole, what },
                },
                Err(Failure::Io(error)) => return Err(error),
                Err(Failure::Form(what)) => {
                    Fault { at: input.at, what: format!("{what}, in the group from byte {whole}") }
                }
            },
        };
        return Ok((whole, Some(fault)));
    }
}

/// Whether a batch cannot follow the one before.
fn misplaced(batch: &Batch, last: Option<&Batch>) -> Option<String> {
    let expected = last.map_or(batch.group, |last| last.group + 1);
    let above = last.map_or(0, |last| last.seqno + 1);
    let floor = batch.floor.unwrap_or(batch.seqno);
    if batch.group != expected {
        Some(format!("group {} where {expected} should be", batch.group))
    } else if floor < above || batch.seqno < floor || batch.seqno - floor > SEQNO_SLACK {
        Some(format!("sequence number {} where one from {} on should be", batch.seqno, floor.max(above)))
    } else {
        None
    }
}

enum Failure {
    Io(std::io::Error),
    Form(&'static str),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::UnexpectedEof => Failure::Form("the file ends"),
            _ => Failure::Io(error),
        }
    }
}

/// Reads the batch whose first byte is `tag`.
fn batch(input: &mut Input, tag: u8) -> Result<Batch, Failure> {
    if tag != TAG_START {
        return Err(Failure::Form("no group begins here"));
    }
    let items = u32::from_le_bytes(input.array()?);
    let seqno = u64::from_le_bytes(input.array()?);
    let (mut group, mut floor) = (None, None);
    let mut sum = Xxh3Default::new();
    for _ in 0..items {
        let head: [u8; 21] = input.array()?;
        let [tag, kind, compression, ..] = head;
        let keyspace = u64::from_le_bytes(*head[3..].first_chunk().expect("21 bytes"));
        let key_bytes = u64::from(u16::from_le_bytes(*head[11..].first_chunk().expect("21 bytes")));
        let value_bytes = u32::from_le_bytes(*head[13..].first_chunk().expect("21 bytes"));
        let stored_bytes = u32::from_le_bytes(*head[17..].first_chunk().expect("21 bytes"));
        let bytes = key_bytes + u64::from(stored_bytes);
        // Rows are only ever inserted, and journals are not compressed.
        if tag != TAG_ITEM || kind != 0 || compression != 0 || value_bytes != stored_bytes || bytes > ITEM_BYTES_MAX {
            return Err(Failure::Form("a row's head is damaged"));
        }
        sum.update(&head);
        let body = input.body(bytes)?;
        sum.update(body);
        if keyspace == META_KEYSPACE {
            let (key, value) = body.split_at(key_bytes as usize);
            match key {
                META_GROUPS => group = layout::parse_u64(value).ok(),
                META_FLOOR => floor = layout::parse_u64(value).ok(),
                _ => {}
            }
        }
    }
    let [tag, checksum @ .., t0, t1, t2, t3]: [u8; 13] = input.array()?;
    if tag != TAG_END || [t0, t1, t2, t3] != TRAILER {
        return Err(Failure::Form("the group's end is damaged"));
    }
    if u64::from_le_bytes(checksum) != sum.digest() {
        return Err(Failure::Form("the group's checksum does not match"));
    }
    let group = group.ok_or(Failure::Form("the group has no number"))?;
    Ok(Batch { end: input.at, seqno, group, floor })
}

/// Where the first byte that is not zero lies at or behind `from`. Holes are skipped.
fn data_after(path: &Path, from: u64) -> std::io::Result<Option<u64>> {
    let file = File::open(path)?;
    let mut chunk = vec![0; BUFFER_BYTES];
    let mut at = from;
    loop {
        at = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let got = file.read_at(&mut chunk, at)?;
        if got == 0 {
            return Ok(None);
        }
        if let Some(index) = chunk[..got].iter().position(|byte| *byte != 0) {
            return Ok(Some(at + index as u64));
        }
        at += got as u64;
    }
}

/// A journal that is read from its beginning.
struct Input {
    file: BufReader<File>,
    /// Bytes taken so far.
    at: u64,
    left: u64,
    body: Vec<u8>,
}

impl Input {
    fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        let left = file.metadata()?.len();
        Ok(Self { file: BufReader::with_capacity(BUFFER_BYTES, file), at: 0, left, body: Vec::new() })
    }

    fn take(&mut self, bytes: &mut [u8]) -> std::io::Result<()> {
        if self.left < bytes.len() as u64 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.file.read_exact(bytes)?;
        self.at += bytes.len() as u64;
        self.left -= bytes.len() as u64;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> std::io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.take(&mut bytes)?;
        Ok(bytes)
    }

    /// The next bytes; a length that the file does not have takes no memory.
    fn body(&mut self, bytes: u64) -> std::io::Result<&[u8]> {
        if self.left < bytes {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let mut body = std::mem::take(&mut self.body);
        body.resize(bytes as usize, 0);
        self.take(&mut body)?;
        self.body = body;
        Ok(&self.body)
    }
}
