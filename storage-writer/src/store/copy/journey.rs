//! How far a copy is: a small file in the source, durable, so that the same command goes on where it was. Its name is
//! the copy's id, which the target carries too.

use super::source::{Source, Table};
use super::{CopyError, source_io};
use crate::store::embedded::files::{sync_directory, write_whole};
use std::path::{Path, PathBuf};

/// Directory in the source with a file for each copy that is under way.
const DIR: &str = "copies";
const FORM: &str = "parley store copy, form 1";

/// Names a copy in the target: which it is, and of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Drawn when the copy began.
    pub(super) id: u128,
    /// The source's own id.
    pub(super) store: u128,
}

impl Mark {
    /// A new one.
    pub(super) fn draw(source: &Source) -> Result<Self, CopyError> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| CopyError::Target(format!("no random number: {error}")))?;
        Ok(Self { id: u128::from_le_bytes(id), store: source.store })
    }

    /// As text for the target.
    pub(super) fn to_text(self) -> String {
        format!("{:032x} {:032x}", self.id, self.store)
    }

    /// From the target's text.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace().map(|word| u128::from_str_radix(word, 16).ok());
        let mark = Self { id: words.next()??, store: words.next()?? };
        words.next().is_none().then_some(mark)
    }
}

/// Where a copy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Journey {
    path: PathBuf,
    /// The target in words, escaped.
    to: String,
    /// The source's groups when it began.
    groups: u64,
    /// Index of the table that is being copied; [`Table::ALL`]'s length when all are.
    pub(super) table: usize,
    /// The last key of it that is durable in the target.
    pub(super) after: Option<Vec<u8>>,
    /// Rows of the source that are durable in the target.
    pub(super) rows: u64,
}

impl Journey {
    /// Begins a copy: after this the target may be marked. Files of earlier copies to the same target, which is empty,
    /// go.
    pub(super) fn begin(source: &Source, mark: Mark, to: String) -> Result<Self, CopyError> {
        // A path may hold an end of line. It is only compared, so it is never undone.
        let to = to.escape_debug().to_string();
        let dir = source.data_dir.join(DIR);
        std::fs::create_dir_all(&dir).map_err(source_io("make", &dir))?;
        for entry in std::fs::read_dir(&dir).map_err(source_io("read", &dir))?.flatten() {
            let path = entry.path();
            if read(&path).is_some_and(|old| old.to == to) {
                std::fs::remove_file(&path).map_err(source_io("remove", &path))?;
            }
        }
        let path = path(&source.data_dir, mark);
        let journey = Self { path, to, groups: source.groups, table: 0, after: None, rows: 0 };
        journey.save()?;
        sync_directory(&source.data_dir).map_err(CopyError::Open)?;
        Ok(journey)
    }

    /// Goes on with the copy that a target is marked with.
    pub(super) fn resume(source: &Source, mark: Mark, to: &str) -> Result<Self, CopyError> {
        if mark.store != source.store {
            return Err(CopyError::Foreign {
                target: to.to_owned(),
                what: format!("an unfinished copy of another store than {}", source.data_dir.display()),
            });
        }
        let foreign = |what: String| CopyError::Foreign { target: to.to_owned(), what };
        let path = path(&source.data_dir, mark);
        let journey = read(&path).ok_or_else(|| {
            foreign(format!("an unfinished copy that {} knows nothing of", source.data_dir.display()))
        })?;
        if journey.groups != source.groups {
            let what = format!(
                "an unfinished copy of {} as it was before it was started again; it has changed since",
                source.data_dir.display()
            );
            return Err(foreign(what));
        }
        Ok(journey)
    }

    /// Makes it durable, whole or not at all.
    pub(super) fn save(&self) -> Result<(), CopyError> {
        write_whole(&self.path, self.to_text().as_bytes()).map_err(CopyError::Open)?;
        sync_directory(self.path.parent().expect("it lies in a directory")).map_err(CopyError::Open)
    }

    /// The target is complete.
    pub(super) fn remove(&self) -> Result<(), CopyError> {
        std::fs::remove_file(&self.path).map_err(source_io("remove", &self.path))?;
        let dir = self.path.parent().expect("it lies in a directory");
        // Others may be under way.
        let _ = std::fs::remove_dir(dir);
        Ok(())
    }

    fn to_text(&self) -> String {
        let after =
            self.after.as_deref().map_or("-".to_owned(), |key| key.iter().map(|byte| format!("{byte:02x}")).collect());
        let table = Table::ALL.get(self.table).map_or("end", |table| table.name());
        let Self { to, groups, rows, .. } = self;
        format!("{FORM}\nto {to}\ngroups {groups}\ntable {table}\nafter {after}\nrows {rows}\n")
    }
}

fn path(data_dir: &Path, mark: Mark) -> PathBuf {
    data_dir.join(DIR).join(format!("{:032x}", mark.id))
}

/// Reads a file; one that is not whole is none.
fn read(path: &Path) -> Option<Journey> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut lines = text.lines();
    let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned);
    if field("parley")? != FORM.strip_prefix("parley ")? {
        return None;
    }
    let to = field("to")?;
    let groups = field("groups")?.parse().ok()?;
    let name = field("table")?;
    let table = match Table::ALL.iter().position(|table| table.name() == name) {
        None if name == "end" => Table::ALL.len(),
        found => found?,
    };
    let after = match field("after")?.as_str() {
        "-" => None,
        hex => Some(bytes(hex)?),
    };
    let rows = field("rows")?.parse().ok()?;
    Some(Journey { path: path.to_owned(), to, groups, table, after, rows })
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let pairs = hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journey_comes_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x");
        for (table, after) in [(0, None), (2, Some(vec![0, 255, 16])), (Table::ALL.len(), None)] {
            let to = "embedded in /a b".to_owned();
            let journey = Journey { path: path.clone(), to, groups: 7, table, after, rows: 9 };
            journey.save().expect("saved");
            assert_eq!(read(&path), Some(journey));
        }
        let text = std::fs::read_to_string(&path).expect("read");
        for cut in 0..text.len() - 1 {
            std::fs::write(&path, &text[..cut]).expect("written");
            let whole = read(&path).is_some_and(|journey| journey.rows == 9);
            assert!(!whole, "cut at {cut}");
        }
    }

    #[test]
    fn a_mark_comes_back() {
        let mark = Mark { id: 5, store: u128::MAX };
        assert_eq!(Mark::from_text(&mark.to_text()), Some(mark));
        for other in ["", "5", "5 x", "5 6 7"] {
            assert_eq!(Mark::from_text(other), None, "{other}");
        }
    }
}
