//! Copies of a template store, each with one file damaged, and the verdict on what the store makes of it.

use crate::common::Opened;
use crate::template::{self, Scale, read_back};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use storage_writer::store::embedded::check::check_store;
use tempfile::TempDir;

/// What is done to a file.
#[derive(Clone)]
pub(crate) enum Damage {
    /// Cut to this length.
    Cut(u64),
    /// One bit of one byte is flipped.
    Flip { at: u64, bit: u8 },
    /// Gone.
    Deleted,
    /// Replaced by other bytes.
    Replaced(Vec<u8>),
}

impl std::fmt::Debug for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Damage::Cut(len) => write!(f, "cut to {len} bytes"),
            Damage::Flip { at, bit } => write!(f, "bit {bit} of byte {at} flipped"),
            Damage::Deleted => f.write_str("deleted"),
            Damage::Replaced(bytes) => write!(f, "replaced by {} bytes", bytes.len()),
        }
    }
}

/// What a file is to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Locks: their content means nothing.
    Lock,
    /// The high-water record.
    HighWater,
    /// `schema`, `version`, pointers and manifests.
    Small,
    /// Journals.
    Journal,
    /// Tables.
    Table,
    /// Manifests that no pointer names any more.
    Old,
}

/// What became of a damaged copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It opened, and everything read back.
    Whole,
    /// It was refused with this text.
    Refused(String),
    /// It opened; this many reads were answered by the typed error.
    Typed(usize),
}

/// A file of the template.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) name: PathBuf,
    pub(crate) kind: Kind,
    pub(crate) bytes: Vec<u8>,
    /// The length; `bytes` stops where only zeros follow.
    pub(crate) len: u64,
}

/// Questions and answers.
pub(crate) type Reads = BTreeMap<String, Result<String, String>>;

/// The template and what it holds.
pub(crate) struct Workshop {
    scale: Scale,
    room: TempDir,
    parts: Vec<Part>,
    expected: Reads,
    stride: u64,
    /// A copy that was refused and made whole again. Making a copy costs more than most refusals.
    spare: RefCell<Option<TempDir>>,
}

/// Random bits from one number.
pub(crate) struct Bits(u64);

impl Bits {
    pub(crate) fn seeded() -> Self {
        Self(setting("PARLEY_DAMAGE_SEED", 1))
    }

    pub(crate) fn next(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 61) as u8
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

impl Workshop {
    /// Builds the template, in memory if the system has such a place.
    pub(crate) fn new() -> Self {
        Self::of(template::SMALL, setting("PARLEY_DAMAGE_STRIDE", 307))
    }

    /// The tiny one, with a sealed journal and an active one.
    pub(crate) fn tiny() -> Self {
        Self::of(template::TINY, setting("PARLEY_DAMAGE_STRIDE", 13))
    }

    fn of(scale: Scale, stride: u64) -> Self {
        let memory = Path::new("/dev/shm");
        let room = tempfile::Builder::new().prefix("parley-damage-").tempdir_in(memory);
        let room = room.or_else(|_| tempfile::tempdir()).unwrap();
        let built = room.path().join("built");
        let mut expected = Reads::new();
        // How often the engine merges tables is up to the machine: seldom there are too few left.
        for attempt in 0.. {
            template::build(&built, scale);
            // Opened once: what a start leaves to be merged is merged.
            expected = read_back(&mut Opened::open_with(&built, &scale.options()).unwrap(), &scale);
            if template::tables(&built) >= scale.tables_min {
                break;
            }
            assert!(attempt < 9, "the engine keeps too few tables");
            std::fs::remove_dir_all(&built).unwrap();
        }
        assert!(expected.values().all(Result::is_ok));
        if scale.journals > 1 {
            seal(&built.join("engine"));
        }
        let parts = take_apart(&built);
        let count = |kind| parts.iter().filter(|part| part.kind == kind).count();
        assert!(count(Kind::Journal) == scale.journals && count(Kind::Small) >= 26);
        Self { scale, room, parts, expected, stride, spare: RefCell::default() }
    }

    pub(crate) fn files(&self) -> &[Part] {
        &self.parts
    }

    /// Where a file is damaged, unless it is everywhere.
    pub(crate) fn offsets(&self, file: &Part) -> Vec<u64> {
        let bytes = file.bytes.len() as u64;
        // Manifests of keyspaces without tables are all the same.
        let same = |part: &&Part| part.kind == file.kind && part.bytes == file.bytes;
        let repeated = self.parts.iter().find(same).is_some_and(|first| first.name != file.name);
        let stride = if file.kind == Kind::HighWater || repeated { self.stride } else { 1 };
        let is_tiny_journal = file.kind == Kind::Journal && self.scale.journals > 1;
        if is_tiny_journal || !matches!(file.kind, Kind::Table | Kind::Journal) {
            // Between its records the high-water record is zeros that mean nothing.
            let in_slot = |at: u64| file.kind == Kind::HighWater && at % 4096 < 64;
            return (0..bytes).filter(|at| in_slot(*at) || at % stride == 0).collect();
        }
        let mark: &[u8] = if file.kind == Kind::Journal { b"FJL\x03" } else { b"LSM\x03" };
        let marks = file.bytes.windows(4).enumerate().filter(|(_, window)| *window == mark).map(|(at, _)| at as u64);
        let near: Vec<u64> = marks.chain([0, bytes]).collect();
        let is_near = |at: u64| near.iter().any(|mark| at.abs_diff(*mark) <= 5);
        (0..bytes).filter(|at| at % self.stride == 0 || *at < 64 || *at + 64 >= bytes || is_near(*at)).collect()
    }

    /// Tries each damage on a file; says all that is wrong at once.
    pub(crate) fn try_all(&self, file: &Part, damages: Vec<Damage>) {
        let (mut wrong, mut fates, started) = (Vec::new(), [0; 3], std::time::Instant::now());
        for damage in &damages {
            let judged = catch_unwind(AssertUnwindSafe(|| self.try_one(file, damage)));
            match judged.unwrap_or_else(|_| Err("it panicked".to_owned())) {
                Ok(Fate::Whole) => fates[0] += 1,
                Ok(Fate::Refused(_)) => fates[1] += 1,
                Ok(Fate::Typed(_)) => fates[2] += 1,
                Err(what) => wrong.push(format!("{}, {damage:?}: {what}", file.name.display())),
            }
        }
        self.judge_spare();
        let [whole, refused, typed] = fates;
        println!(
            "{}: {} cases, {whole} whole, {refused} refused, {typed} with typed errors, {:?}",
            file.name.display(),
            damages.len(),
            started.elapsed()
        );
        let named = wrong.iter().take(20).map(String::as_str).collect::<Vec<_>>().join("\n");
        assert!(wrong.is_empty(), "{} of {} cases:\n{named}", wrong.len(), damages.len());
    }

    /// Damages a file of a copy, opens it and judges what comes of it.
    pub(crate) fn try_one(&self, file: &Part, damage: &Damage) -> Result<Fate, String> {
        let copy = self.spare.take().unwrap_or_else(|| self.copy(&[]));
        self.put(copy.path(), file, Some(damage));
        let fate = self.fate(copy.path())?;
        let harmless = match damage {
            Damage::Cut(len) => *len >= file.bytes.len() as u64,
            _ => false,
        };
        match (&fate, file.kind) {
            (Fate::Whole, Kind::Lock | Kind::Old) => {}
            // The other slot is as good, or the byte lies in neither.
            (Fate::Whole, Kind::HighWater) if matches!(damage, Damage::Flip { .. }) => {}
            (Fate::Whole, _) if harmless => {}
            // A byte that means nothing: the end of the line in `schema`.
            (Fate::Whole, Kind::Small) if file.name.ends_with("schema") => {}
            (Fate::Whole, Kind::Journal) if is_low_number(file, damage) => {}
            // Nothing is wrong with what is left of the journal; the high-water record knows that there was more.
            (Fate::Refused(text), Kind::Journal) if text.contains("/engine holds ") => {}
            (Fate::Refused(text), Kind::Small) if text.contains("its schema version is missing") => {}
            (Fate::Refused(text), _) if !harmless && !text.contains(copy.path().join(&file.name).to_str().unwrap()) => {
                return Err(format!("the file is not named: {text}"));
            }
            (Fate::Refused(_), _) if !harmless => {}
            // Damage in what no read touched is found all the same.
            (Fate::Whole | Fate::Typed(_), Kind::Table) => self.check_finds(file, damage)?,
            _ => return Err(format!("{fate:?} should not be")),
        }
        // Only the engine, once it has opened, writes: what old journals hold, into tables.
        if matches!(&fate, Fate::Refused(text) if !text.contains("/engine holds ")) {
            self.put(copy.path(), file, None);
            *self.spare.borrow_mut() = Some(copy);
        }
        Ok(fate)
    }

    /// `check-store` names the file of a damaged copy.
    pub(crate) fn check_finds(&self, file: &Part, damage: &Damage) -> Result<(), String> {
        let copy = self.copy(&[(file, damage)]);
        let found = match check_store(copy.path(), &mut |_| ()) {
            Ok(report) if report.is_whole() => return Err("check-store finds nothing".to_owned()),
            Ok(report) => report.to_string(),
            Err(error) => error.to_string(),
        };
        let named = found.contains(copy.path().join(&file.name).to_str().unwrap());
        if named { Ok(()) } else { Err(format!("check-store does not name the file: {found}")) }
    }

    /// A part by the end of its name.
    pub(crate) fn file(&self, name: &str) -> &Part {
        self.parts.iter().find(|part| part.name.ends_with(name)).unwrap()
    }

    /// What was acknowledged.
    pub(crate) fn expected(&self) -> &Reads {
        &self.expected
    }

    /// What becomes of a store.
    pub(crate) fn fate(&self, dir: &Path) -> Result<Fate, String> {
        let mut opened = match Opened::open_with(dir, &self.scale.options()) {
            Ok(opened) => opened,
            Err(error) => return Ok(Fate::Refused(error.to_string())),
        };
        let found = read_back(&mut opened, &self.scale);
        let mut typed = 0;
        for (what, expected) in &self.expected {
            match &found[what] {
                Err(_) => typed += 1,
                found if found == expected => {}
                found => return Err(format!("SILENTLY WRONG: {what} is {found:?}, and was {expected:?}")),
            }
        }
        Ok(if typed == 0 { Fate::Whole } else { Fate::Typed(typed) })
    }

    /// A copy of the template with some files damaged.
    pub(crate) fn copy(&self, damages: &[(&Part, &Damage)]) -> TempDir {
        let dir = tempfile::tempdir_in(self.room.path()).unwrap();
        for part in &self.parts {
            let to = dir.path().join(&part.name);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            let damage = damages.iter().find(|(damaged, _)| damaged.name == part.name).map(|(_, damage)| *damage);
            self.put(dir.path(), part, damage);
        }
        dir
    }

    /// Makes one file of a copy what the template's is, or damages it.
    fn put(&self, dir: &Path, part: &Part, damage: Option<&Damage>) {
        let to = dir.join(&part.name);
        let _ = std::fs::remove_file(&to);
        let (mut bytes, mut len) = (part.bytes.clone(), part.len);
        match damage {
            // The store replaces these, it never writes into them.
            None if matches!(part.kind, Kind::Table | Kind::Small | Kind::Old) => {
                return std::fs::hard_link(self.room.path().join("built").join(&part.name), &to).unwrap();
            }
            None => {}
            Some(Damage::Deleted) => return,
            Some(Damage::Cut(cut)) => {
                bytes.truncate(*cut as usize);
                len = *cut;
            }
            Some(Damage::Flip { at, bit }) => bytes[*at as usize] ^= 1 << bit,
            Some(Damage::Replaced(other)) => {
                bytes = other.clone();
                len = bytes.len() as u64;
            }
        }
        let file = File::create(&to).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        file.set_len(len).unwrap();
    }

    /// A refusal changed nothing: the copy is the template but for the lock, which names who held it last.
    fn judge_spare(&self) {
        let Some(spare) = self.spare.take() else { return };
        let found = take_apart(spare.path());
        let names = |parts: &[Part]| parts.iter().map(|part| part.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&found), names(&self.parts));
        for (before, after) in self.parts.iter().zip(&found).filter(|(part, _)| part.kind != Kind::Lock) {
            assert!(before.bytes == after.bytes, "a refusal changed {}", before.name.display());
        }
    }

    /// The template is what it was: no copy wrote through a link.
    pub(crate) fn judge_template(&self) {
        for (before, after) in self.parts.iter().zip(take_apart(&self.room.path().join("built"))) {
            assert_eq!((&before.name, before.bytes == after.bytes), (&after.name, true));
        }
    }
}

/// Whether a flip lies in the lowest two bytes of a group's sequence number: where the engine left numbers out, another
/// one between the neighbours' is as good.
fn is_low_number(journal: &Part, damage: &Damage) -> bool {
    let Damage::Flip { at, .. } = damage else { return false };
    [5, 6]
        .iter()
        .filter_map(|back| at.checked_sub(*back))
        .any(|start| start == 0 || start >= 4 && journal.bytes[start as usize - 4..].starts_with(b"FJL\x03"))
}

/// Makes two journals of one, between two groups, as the engine does when one is full.
fn seal(engine: &Path) {
    let whole = std::fs::read(engine.join("0.jnl")).unwrap();
    let ends = whole.windows(4).enumerate().filter(|(_, window)| *window == b"FJL\x03").map(|(at, _)| at + 4);
    let ends: Vec<usize> = ends.collect();
    let (sealed, active) = whole.split_at(ends[ends.len() / 2]);
    std::fs::write(engine.join("0.jnl"), sealed).unwrap();
    std::fs::write(engine.join("1.jnl"), active).unwrap();
}

/// Every file below a directory.
pub(crate) fn take_apart(dir: &Path) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
                continue;
            }
            let mut bytes = std::fs::read(&path).unwrap();
            let (len, name) = (bytes.len() as u64, path.strip_prefix(dir).unwrap().to_owned());
            let kind = kind(&path, &name);
            if kind == Kind::Journal {
                bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1));
            }
            parts.push(Part { name, kind, bytes, len });
        }
    }
    parts.sort_by(|a, b| a.name.cmp(&b.name));
    parts
}

fn kind(path: &Path, name: &Path) -> Kind {
    let text = name.file_name().unwrap().to_str().unwrap();
    match text {
        "LOCK" | "lock" => Kind::Lock,
        "high-water" => Kind::HighWater,
        _ if text.ends_with(".jnl") => Kind::Journal,
        _ if name.parent().unwrap().ends_with("tables") => Kind::Table,
        _ if text.starts_with('v') && text != "version" => {
            let current = std::fs::read(path.with_file_name("current")).unwrap();
            let newest = u64::from_le_bytes(*current.first_chunk().unwrap());
            if text == format!("v{newest}") { Kind::Small } else { Kind::Old }
        }
        _ => Kind::Small,
    }
}
