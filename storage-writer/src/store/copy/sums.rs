//! Checksums that do not depend on the order of rows, and the table of them that is printed.

use std::fmt::{Display, Formatter};
use xxhash_rust::xxh3::Xxh3Default;

/// Rows and their checksum: the sum of the hashes of all rows, so that order is no matter and a row that is there twice
/// counts twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// How many.
    pub rows: u64,
    /// Their hashes (XXH3, 128 bits), added up.
    pub checksum: u128,
}

impl Sum {
    /// Adds a row.
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) {
        let mut hash = Xxh3Default::new();
        // Without the length, bytes could move from the key to the value.
        hash.update(&(key.len() as u64).to_le_bytes());
        hash.update(key);
        hash.update(value);
        self.rows += 1;
        self.checksum = self.checksum.wrapping_add(hash.digest128());
    }

    /// Adds what another has.
    pub(super) fn add_all(&mut self, other: Sum) {
        self.rows += other.rows;
        self.checksum = self.checksum.wrapping_add(other.checksum);
    }
}

/// What was read of one table on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSums {
    /// Of the target.
    pub table: &'static str,
    /// What the target should hold, from the source as it is now.
    pub source: Sum,
    /// What was read back from the target.
    pub target: Sum,
    /// The first place where they differ.
    pub differs: Option<String>,
}

impl TableSums {
    pub(super) fn new(table: &'static str) -> Self {
        Self { table, source: Sum::default(), target: Sum::default(), differs: None }
    }

    /// Adds neighbouring rows of both sides; `place` names them where they differ.
    pub(super) fn add(&mut self, source: Sum, target: Sum, place: impl FnOnce() -> String) {
        self.source.add_all(source);
        self.target.add_all(target);
        if source != target && self.differs.is_none() {
            self.differs = Some(place());
        }
    }

    /// Nothing differs.
    pub fn are_equal(&self) -> bool {
        self.source == self.target && self.differs.is_none()
    }
}

/// What was copied and compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// By table of the target.
    pub tables: Vec<TableSums>,
}

impl Report {
    /// Nothing differs.
    pub fn is_equal(&self) -> bool {
        self.tables.iter().all(TableSums::are_equal)
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{:<14} {:>12}  {:<32}", "table", "rows", "checksum")?;
        for sums in &self.tables {
            let TableSums { table, source, target, differs } = sums;
            writeln!(f, "{table:<14} {:>12}  {:032x}  source", source.rows, source.checksum)?;
            writeln!(f, "{:<14} {:>12}  {:032x}  target", "", target.rows, target.checksum)?;
            if let Some(place) = differs {
                writeln!(f, "  DIFFERENT, first at {place}")?;
            }
        }
        let rows: u64 = self.tables.iter().map(|sums| sums.target.rows).sum();
        if self.is_equal() {
            write!(f, "copied: {rows} rows, read back and equal")
        } else {
            f.write_str("NOT EQUAL: the target is not what the source is, and stays marked as unfinished")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_knows_its_rows_and_not_their_order() {
        let of = |rows: &[(&str, &str)]| {
            let mut sum = Sum::default();
            rows.iter().for_each(|(key, value)| sum.add(key.as_bytes(), value.as_bytes()));
            sum
        };
        assert_eq!(of(&[("a", "1"), ("b", "2")]), of(&[("b", "2"), ("a", "1")]));
        assert_ne!(of(&[("a", "1")]), of(&[("a1", "")]));
        assert_ne!(of(&[("a", "1"), ("b", "2")]), of(&[("a", "2"), ("b", "1")]));
        assert_ne!(of(&[("a", "1"), ("a", "1")]), of(&[("b", "2"), ("b", "2")]));
        assert_ne!(of(&[("a", "1"), ("a", "1")]).checksum, 0);
    }

    #[test]
    fn rows_that_make_up_for_each_other_are_still_different() {
        let mut sums = TableSums::new("events");
        let (mut one, mut other) = (Sum::default(), Sum::default());
        one.add(b"a", b"1");
        other.add(b"b", b"2");
        sums.add(one, other, || "here".to_owned());
        sums.add(other, one, || "there".to_owned());
        assert_eq!(sums.source, sums.target);
        assert!(!sums.are_equal());
        let report = Report { tables: vec![sums] };
        assert!(!report.is_equal() && report.to_string().contains("first at here"), "{report}");
    }
}
