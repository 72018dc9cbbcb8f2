//! Every file of a small store cut short at every length and with a bit flipped in every byte: the store opens and
//! reads back everything that was acknowledged; or refuses and names the file; or answers reads with the typed error.
//! Never a wrong answer, never less than what was acknowledged.
//!
//! Two stores are damaged. The tiny one has each kind of file (a sealed journal and the active one, tables, manifests,
//! pointers, the high-water record's two slots, `schema`, `version`) in so few bytes that every file is cut to every
//! length; a bit is flipped in every byte of journals and small files, and in tables as below with every 13th byte.
//!
//! The small one has tables of several blocks and levels. Its small files are taken at every byte; its tables and
//! journals at every byte of their first and last 64, within 5 of the end of each group or begin of each block, and at
//! every 307th between. Bits are drawn from a fixed seed, one a byte.
//! `PARLEY_DAMAGE_STRIDE=1` takes every byte of every file of both (half an hour); `PARLEY_DAMAGE_SEED=N` draws other
//! bits.

mod common;
#[path = "damaged_files/template.rs"]
mod template;
#[path = "damaged_files/workshop.rs"]
mod workshop;

use common::Opened;
use storage_writer::store::embedded::check::{PROBLEMS_NAMED_MAX, check_store};
use template::read_back;
use workshop::{Damage, Fate, Kind, Workshop, take_apart};

#[test]
fn files_cut_short() {
    let workshop = Workshop::new();
    for file in workshop.files() {
        let lengths = workshop.offsets(file).into_iter().map(Damage::Cut);
        workshop.try_all(file, lengths.collect());
    }
    workshop.judge_template();
}

#[test]
fn flipped_bits() {
    flip(&Workshop::new());
}

fn flip(workshop: &Workshop) {
    for file in workshop.files() {
        let mut bits = workshop::Bits::seeded();
        let flips = workshop.offsets(file).into_iter().map(|at| Damage::Flip { at, bit: bits.next() });
        workshop.try_all(file, flips.collect());
    }
    workshop.judge_template();
}

/// Each file of the tiny store is cut to every length that is shorter than its own.
#[test]
fn every_length() {
    let workshop = Workshop::tiny();
    for file in workshop.files() {
        workshop.try_all(file, (0..file.bytes.len() as u64).map(Damage::Cut).collect());
    }
    workshop.judge_template();
}

/// The tiny store again: both journals and the small files are flipped at every byte.
#[test]
fn every_byte() {
    flip(&Workshop::tiny());
}

/// The engine took memory for as many sections as a table's contents announce, 80 GiB, and the process ended.
#[test]
fn contents_with_billions_of_sections() {
    let workshop = Workshop::new();
    for file in workshop.files().iter().filter(|file| file.kind == Kind::Table) {
        let contents = file.bytes.windows(4).rposition(|window| window == b"TOC!").unwrap() as u64;
        let flips: Vec<_> = (0..8).map(|bit| Damage::Flip { at: contents + 7, bit }).collect();
        workshop.try_all(file, flips);
    }
    workshop.judge_template();
}

/// Rows that a damaged table hides look as if they were missing: `check-store` says what is sure apart from what is not.
#[test]
fn what_may_follow_from_damage_is_listed_as_doubtful() {
    let workshop = Workshop::new();
    let mut listed = 0;
    for file in workshop.files().iter().filter(|file| file.kind == Kind::Table) {
        let copy = workshop.copy(&[(file, &Damage::Flip { at: 20, bit: 0 })]);
        let Ok(report) = check_store(copy.path(), &mut |_| ()) else { continue };
        let named = |problem: &String| problem.contains(file.name.to_str().unwrap());
        assert!(!report.is_whole() && report.problems.iter().all(named), "{:?}", report.problems);
        let text = report.to_string();
        let doubts = text.lines().filter(|line| line.starts_with("doubtful: ")).count();
        assert_eq!(doubts, PROBLEMS_NAMED_MAX.min(report.doubts_total as usize));
        assert_eq!(text.contains("what is doubtful may"), doubts > 0);
        listed += doubts;
    }
    assert!(listed > 0);
    workshop.judge_template();
}

#[test]
fn deleted_files() {
    let workshop = Workshop::new();
    for file in workshop.files() {
        workshop.try_all(file, vec![Damage::Deleted]);
    }
    workshop.judge_template();
}

/// Files of another store, and neighbours of one kind in each other's place. A whole table in another's place is not
/// seen at a start, for its blocks are sound and the manifest knows only the checksum of all of it: `check-store` sees it.
#[test]
fn swapped_files() {
    let (workshop, other) = (Workshop::new(), Workshop::new());
    for file in workshop.files().iter().filter(|file| matches!(file.kind, Kind::Small | Kind::Table)) {
        let foreign = other.files().iter().filter(|part| part.name == file.name);
        let neighbours = workshop
            .files()
            .iter()
            .filter(|part| part.name.file_name() == file.name.file_name() || part.name.parent() == file.name.parent());
        let differs = |part: &&workshop::Part| part.kind == file.kind && part.bytes != file.bytes;
        let others = foreign.chain(neighbours).filter(differs).map(|part| Damage::Replaced(part.bytes.clone()));
        if file.kind == Kind::Table {
            others.for_each(|damage| workshop.check_finds(file, &damage).unwrap());
        } else {
            workshop.try_all(file, others.collect());
        }
    }
    workshop.judge_template();
}

/// Groups that were written but never acknowledged may be torn in any way: they are dropped, and nothing else is.
#[test]
fn a_torn_tail_is_dropped() {
    let workshop = Workshop::new();
    let journal = workshop.file("0.jnl");
    // What another start appends, as if its high-water record had never been written.
    let later = workshop.copy(&[]);
    let mut opened = Opened::open_with(later.path(), &template::SMALL.options()).unwrap();
    template::append(&mut opened);
    let with_tail = read_back(&mut opened, &template::SMALL);
    drop(opened);
    let longer = take_apart(later.path()).into_iter().find(|part| part.name == journal.name).unwrap();
    let (from, to) = (journal.bytes.len(), longer.bytes.len());
    assert!(longer.bytes.starts_with(&journal.bytes) && to > from + 1_000);
    let last = from + longer.bytes[from..].windows(4).position(|window| window == b"FJL\x03").unwrap() + 4;
    assert!(last < to - 500, "the start's own group and one of messages");

    let open = |bytes: Vec<u8>| {
        let copy = workshop.copy(&[(journal, &Damage::Replaced(bytes))]);
        let mut opened = Opened::open_with(copy.path(), &template::SMALL.options()).unwrap();
        let reads = read_back(&mut opened, &template::SMALL);
        // It goes on from there.
        template::append(&mut opened);
        reads
    };
    for cut in (from..to).filter(|cut| cut % 29 == 0 || cut.abs_diff(last) < 16 || cut + 16 > to || *cut < from + 16) {
        assert!(open(longer.bytes[..cut].to_vec()) == *workshop.expected(), "cut at {cut}");
        // The length reached the disk, and the pages behind did not; or one page in the middle did not.
        let mut holed = longer.bytes.clone();
        holed[cut..].fill(0);
        assert!(open(holed) == *workshop.expected(), "zeros from {cut}");
        let mut holed = longer.bytes.clone();
        let hole = cut.max(last + 13)..(cut.max(last + 13) + 64).min(to);
        holed[hole.clone()].fill(0);
        if holed != longer.bytes {
            assert!(open(holed) == *workshop.expected(), "zeros in {hole:?}");
        }
    }
    assert!(open(longer.bytes.clone()) == with_tail, "a whole group is not dropped");
    assert!(with_tail != *workshop.expected());
    workshop.judge_template();
}

/// The engine would go on with the next journal and lose what stood between.
#[test]
fn sealed_journals() {
    let workshop = Workshop::new();
    let whole = workshop.file("0.jnl").bytes.clone();
    let ends = whole.windows(4).enumerate().filter(|(_, window)| *window == b"FJL\x03").map(|(at, _)| at + 4);
    let ends: Vec<usize> = ends.collect();
    let (first, second) = (ends[ends.len() / 3], ends[ends.len() * 2 / 3]);
    let parts = [&whole[..first], &whole[first..second], &whole[second..]];
    let fate = |parts: &[Option<&[u8]>]| {
        let copy = workshop.copy(&[(workshop.file("0.jnl"), &Damage::Deleted)]);
        for (number, bytes) in parts.iter().enumerate().filter_map(|(number, bytes)| Some((number, (*bytes)?))) {
            std::fs::write(copy.path().join(format!("engine/{number}.jnl")), bytes).unwrap();
        }
        workshop.fate(copy.path()).unwrap()
    };
    assert_eq!(fate(&parts.map(Some)), Fate::Whole);
    for (number, part) in parts.iter().enumerate() {
        let mut damaged = parts.map(Some);
        damaged[number] = None;
        assert!(matches!(fate(&damaged), Fate::Refused(_)), "{number}.jnl is missing");
        for cut in (0..part.len()).step_by(211).chain(ends.iter().filter_map(|end| end.checked_sub(part.len()))) {
            let mut damaged = parts.map(Some);
            damaged[number] = Some(&part[..cut.min(part.len() - 1)]);
            let Fate::Refused(text) = fate(&damaged) else { panic!("{number}.jnl cut at {cut}") };
            assert!(text.contains(".jnl") || text.contains("/engine holds "), "{text}");
        }
    }
    let mut swapped = parts.map(Some);
    swapped.swap(0, 1);
    assert!(matches!(fate(&swapped), Fate::Refused(_)));
    workshop.judge_template();
}
