//! The engine's own files, looked at before the engine opens them, and blamed when it stumbles.
//!
//! The engine trusts its small files: a keyspace whose pointer is missing is removed with all its tables, and a
//! manifest with a damaged list of tables makes it delete what it does not find there. So each of them is verified
//! first. Tables are verified by their blocks' checksums when they are read, and as a whole by `check-store`.
//!
//! fjall 3: `version` is "FJL\x03". `keyspaces/N/current` names the manifest `vM` and its xxh3 (M u64, xxh3 u128, 0).
//! A manifest is an archive whose section `tables` lists every table with its xxh3. A table is a row of blocks, each
//! with a header `"LSM\x03", type u8, xxh3 of the data u128, data bytes u32, uncompressed bytes u32, low half of the
//! header's xxh3 u32`, and the archive's table of contents. All little-endian.

use super::error::OpenError;
use super::tables::KEYSPACES;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_128};

const VERSION: &[u8] = b"FJL\x03";
const CURRENT_BYTES: usize = 25;
const TRAILER_BYTES: usize = 38;
const BLOCK_MAGIC: [u8; 4] = *b"LSM\x03";
const BLOCK_HEADER_BYTES: usize = 33;
/// A manifest lists tables, 33 bytes each; more than a million of them is damage.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;
/// A table has a handful of sections.
const CONTENTS_BYTES_MAX: u64 = 64 << 10;
const CHUNK_BYTES: usize = 256 * 1024;

/// A table as its manifest lists it.
struct Listed {
    path: PathBuf,
    checksum: u128,
}

fn damaged(file: &Path, what: impl Into<String>) -> OpenError {
    OpenError::Damaged { file: file.to_owned(), what: what.into() }
}

/// Refuses an engine with a small file or a table that is missing, a small file or a table's contents that are damaged.
/// Changes nothing.
pub(crate) fn verify(engine_dir: &Path) -> Result<(), OpenError> {
    let version = engine_dir.join("version");
    if read(&version)? != VERSION {
        return Err(damaged(&version, "it does not hold the engine's version"));
    }
    // Empty, and what is missing with it was not copied either.
    read(&engine_dir.join("lock"))?;
    for table in listed(engine_dir)? {
        if !table.path.try_exists().map_err(OpenError::io("look for", &table.path))? {
            return Err(damaged(&table.path, "the table is missing"));
        }
        if !contents_are_sound(&table.path).map_err(OpenError::io("read", &table.path))? {
            return Err(damaged(&table.path, "its table of contents is damaged"));
        }
    }
    Ok(())
}

/// Whether the contents of a table are what its trailer says. The engine believes the number of sections, and takes
/// memory for so many, before it looks at the checksum: a flipped bit would end the process.
fn contents_are_sound(path: &Path) -> std::io::Result<bool> {
    let file = File::open(path)?;
    let Some(trailer_at) = file.metadata()?.len().checked_sub(TRAILER_BYTES as u64) else { return Ok(false) };
    let mut trailer = [0; TRAILER_BYTES];
    file.read_exact_at(&mut trailer, trailer_at)?;
    let (head, fields) = trailer.split_at(6);
    let checksum = u128::from_le_bytes(*fields.first_chunk().expect("32 bytes"));
    let contents_at = u64::from_le_bytes(*fields[16..].first_chunk().expect("32 bytes"));
    let bytes = trailer_at.checked_sub(contents_at).filter(|bytes| *bytes <= CONTENTS_BYTES_MAX);
    let (b"SFA!\x01\x00", Some(bytes)) = (head, bytes) else { return Ok(false) };
    let mut contents = vec![0; bytes as usize];
    file.read_exact_at(&mut contents, contents_at)?;
    Ok(xxh3_128(&contents) == checksum)
}

/// Whether a keyspace has tables.
pub(crate) fn has_tables(engine_dir: &Path, keyspace: u64) -> Result<bool, OpenError> {
    listed_of(engine_dir, keyspace).map(|tables| !tables.is_empty())
}

/// Reads every table from end to end. What is damaged, file by file, with the first byte of the first damaged block.
pub(crate) fn damaged_tables(engine_dir: &Path) -> Result<Vec<String>, OpenError> {
    let mut found = Vec::new();
    for table in listed(engine_dir)? {
        if let Some(what) = table_damage(&table).map_err(OpenError::io("read", &table.path))? {
            found.push(format!("{}: {what}", table.path.display()));
        }
    }
    Ok(found)
}

/// Why the engine does not open: the damaged tables if there are any, the engine's own words if not.
pub(crate) fn blame(engine_dir: &Path, error: OpenError) -> OpenError {
    let words = match &error {
        OpenError::Engine { source, .. } => source.to_string(),
        OpenError::Damaged { what, .. } => what.clone(),
        _ => return error,
    };
    let Ok(tables) = listed(engine_dir) else { return error };
    for table in tables {
        if let Ok(Some(what)) = table_damage(&table) {
            return damaged(&table.path, format!("{what} (the engine says: {words})"));
        }
    }
    error
}

/// Every table of every keyspace.
fn listed(engine_dir: &Path) -> Result<Vec<Listed>, OpenError> {
    let keyspaces = (0..=KEYSPACES).map(|keyspace| listed_of(engine_dir, keyspace));
    Ok(keyspaces.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

/// Every table of one keyspace.
fn listed_of(engine_dir: &Path, keyspace: u64) -> Result<Vec<Listed>, OpenError> {
    let dir = engine_dir.join("keyspaces").join(keyspace.to_string());
    let current = dir.join("current");
    let bytes = read(&current)?;
    let bytes = <[u8; CURRENT_BYTES]>::try_from(bytes)
        .map_err(|bytes| damaged(&current, format!("it has {} bytes and not {CURRENT_BYTES}", bytes.len())))?;
    let number = u64::from_le_bytes(*bytes.first_chunk().expect("25 bytes"));
    let checksum = u128::from_le_bytes(*bytes[8..].first_chunk().expect("25 bytes"));
    let manifest = dir.join(format!("v{number}"));
    if !manifest.try_exists().map_err(OpenError::io("look for", &manifest))? {
        return Err(damaged(&current, format!("it names {}, which does not exist", manifest.display())));
    }
    let content = read(&manifest)?;
    if bytes[24] != 0 || xxh3_128(&content) != checksum {
        let what = format!("its checksum is not the one that {} names", current.display());
        return Err(damaged(&manifest, what));
    }
    let found = parse_tables(&content).ok_or_else(|| damaged(&manifest, "its list of tables does not decode"))?;
    let listed =
        |(number, checksum): (u64, u128)| Listed { path: dir.join("tables").join(number.to_string()), checksum };
    Ok(found.into_iter().map(listed).collect())
}

/// A small file. One that is missing is damage: the engine would take it for a store that was never finished.
fn read(path: &Path) -> Result<Vec<u8>, OpenError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(damaged(path, "the file is missing")),
        Err(error) => return Err(OpenError::io("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(MANIFEST_BYTES_MAX).read_to_end(&mut bytes).map_err(OpenError::io("read", path))?;
    Ok(bytes)
}

/// Takes fields off the front of bytes.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }
}

/// Number and checksum of every table in a manifest.
fn parse_tables(manifest: &[u8]) -> Option<Vec<(u64, u128)>> {
    let mut levels = Fields(section(manifest, b"tables")?);
    let mut tables = Vec::new();
    for _ in 0..u8::from_le_bytes(levels.array()?) {
        for _ in 0..u8::from_le_bytes(levels.array()?) {
            for _ in 0..u32::from_le_bytes(levels.array()?) {
                let number = u64::from_le_bytes(levels.array()?);
                if levels.array()? != [0_u8] {
                    return None;
                }
                let checksum = u128::from_le_bytes(levels.array()?);
                // The global sequence number.
                levels.array::<8>()?;
                tables.push((number, checksum));
            }
        }
    }
    levels.0.is_empty().then_some(tables)
}

/// A section of an archive, by the table of contents that its trailer points to.
fn section<'a>(archive: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let trailer_at = archive.len().checked_sub(TRAILER_BYTES)?;
    let mut trailer = Fields(&archive[trailer_at..]);
    if trailer.bytes(6)? != b"SFA!\x01\x00" {
        return None;
    }
    trailer.array::<16>()?;
    let contents_at = usize::try_from(u64::from_le_bytes(trailer.array()?)).ok()?;
    let mut contents = Fields(archive.get(contents_at..trailer_at)?);
    if contents.bytes(4)? != b"TOC!" {
        return None;
    }
    for _ in 0..u32::from_le_bytes(contents.array()?) {
        let at = usize::try_from(u64::from_le_bytes(contents.array()?)).ok()?;
        let bytes = usize::try_from(u64::from_le_bytes(contents.array()?)).ok()?;
        let name_bytes = u16::from_le_bytes(contents.array()?);
        if contents.bytes(usize::from(name_bytes))? == name {
            return archive.get(at..at.checked_add(bytes)?);
        }
    }
    None
}

/// What is wrong with a table, if anything is.
fn table_damage(table: &Listed) -> std::io::Result<Option<String>> {
    let mut file = match File::open(&table.path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Some("the table is missing".to_owned()));
        }
        Err(error) => return Err(error),
    };
    let mut sum = Xxh3Default::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            got => sum.update(&chunk[..got]),
        }
    }
    if sum.digest128() == table.checksum {
        return Ok(None);
    }
    let block = first_damaged_block(&table.path)?;
    Ok(Some(match block {
        Some(at) => format!("the block at byte {at} is damaged"),
        None => "its checksum is not the one that its manifest names, though its blocks are whole".to_owned(),
    }))
}

/// Where the first block with a wrong checksum begins.
fn first_damaged_block(path: &Path) -> std::io::Result<Option<u64>> {
    let mut file = std::io::BufReader::with_capacity(CHUNK_BYTES, File::open(path)?);
    let bytes = file.get_ref().metadata()?.len();
    let mut at = 0;
    let mut data = Vec::new();
    while at + BLOCK_HEADER_BYTES as u64 <= bytes {
        let mut header = [0; BLOCK_HEADER_BYTES];
        file.read_exact(&mut header)?;
        if header.starts_with(b"TOC!") {
            // The contents and the trailer are one thing here: the engine reads them at every start.
            return Ok(None);
        }
        let (fields, sum) = header.split_at(BLOCK_HEADER_BYTES - 4);
        let data_bytes = u32::from_le_bytes(*fields[21..].first_chunk().expect("29 bytes"));
        let sound = fields.starts_with(&BLOCK_MAGIC) && (xxh3_128(fields) as u32).to_le_bytes() == sum;
        if !sound || at + BLOCK_HEADER_BYTES as u64 + u64::from(data_bytes) > bytes {
            return Ok(Some(at));
        }
        data.resize(data_bytes as usize, 0);
        file.read_exact(&mut data)?;
        if xxh3_128(&data).to_le_bytes() != fields[5..21] {
            return Ok(Some(at));
        }
        at += BLOCK_HEADER_BYTES as u64 + u64::from(data_bytes);
    }
    Ok(Some(at))
}
