//! The embedded engine over real files: what it keeps over a restart, and what it refuses.

mod common;

use common::{ALICE, BOB, Opened, chat, event, messages, records};
use std::path::{Path, PathBuf};
use storage_core::store::{EntryRow, Group, MarkRow, MarkWrite, MemberRow, Outcome, StoreRequest, StoreResult, View};
use storage_writer::store::embedded::OpenError;
use storage_writer::store::embedded::check::check_store;

fn journal(dir: &Path) -> PathBuf {
    let files = std::fs::read_dir(dir.join("engine")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|ext| ext == "jnl")).max().unwrap()
}

#[test]
fn a_restart_keeps_everything_and_readers_see_what_is_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = Opened::open(dir.path()).unwrap();
    assert_eq!(opened.commit(records(1, 1)), Outcome::Durable);
    assert_eq!(opened.commit(messages(2, 1, 10)), Outcome::Durable);
    let views = opened.store.views();
    assert_eq!(views.newest().head(chat()).unwrap(), Some(event(10)));
    assert_eq!(opened.commit(messages(3, 11, 12)), Outcome::Durable);
    drop((opened, views));

    let mut opened = Opened::open(dir.path()).unwrap();
    let view = opened.store.views().newest();
    assert_eq!(view.head(chat()).unwrap(), Some(event(12)));
    assert_eq!(view.events(chat(), 2, 11, 3, true).unwrap(), [event(11), event(10), event(9)]);
    let entries = view.entries(BOB, 10, 9).unwrap();
    assert_eq!(entries, [11, 12].map(|seq| (seq, EntryRow::Event { chat_id: chat(), seq })));
    assert_eq!(view.count_messages(chat(), ALICE, 3, 7).unwrap(), 5);
    assert_eq!(view.count_messages(chat(), BOB, 3, 7).unwrap(), 0);
    let StoreResult::Meta(meta) = opened.ask(StoreRequest::LoadMeta) else { panic!() };
    assert_eq!(meta.writer_epoch, 1);
    let name = messages(1, 5, 5).appends[0].commands[0].name;
    let found = opened.ask(StoreRequest::FindCommand(name));
    assert!(matches!(found, StoreResult::Found(Some(row)) if row.seq == 5));
    // Numbers of groups begin anew; the next start accepts no group of the dead epoch.
    assert_eq!(opened.commit(records(1, 2)), Outcome::Durable);
    assert_eq!(opened.commit(messages(2, 13, 13)), Outcome::Fenced);
    drop((opened, view));
    let report = check_store(dir.path(), &mut |_| ()).unwrap();
    assert!(report.is_whole(), "{report}");
    assert_eq!((report.chats, report.events, report.entries, report.commands), (1, 12, 24, 12));
}

#[test]
fn pages_begin_and_end_anywhere_in_what_one_group_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = Opened::open(dir.path()).unwrap();
    // Runs of one, of several, and one that is longer than a row holds.
    let groups = [(1, 1), (2, 3), (4, 4), (5, 604), (605, 700)];
    for (no, (from, to)) in (1..).zip(groups) {
        assert_eq!(opened.commit(messages(no, from, to)), Outcome::Durable);
    }
    let view = opened.store.views().newest();
    let entry = |seq| (seq, EntryRow::Event { chat_id: chat(), seq });
    for after in (0..=702).chain([u64::MAX - 1, u64::MAX]) {
        for limit in [0, 1, 2, 255, 256, 257, 1_000] {
            let page: Vec<_> =
                (1..=700).filter(|seq| *seq > after && seq - after <= u64::from(limit)).map(entry).collect();
            assert_eq!(view.entries(BOB, after, limit).unwrap(), page, "after {after}, {limit} at the most");
        }
    }
    for user in [ALICE, BOB] {
        assert_eq!(view.entries(user, 0, 701).unwrap().len(), 700);
    }
    drop((opened, view));
    let report = check_store(dir.path(), &mut |_| ()).unwrap();
    assert!(report.is_whole(), "{report}");
    assert_eq!((report.inboxes, report.entries), (2, 1_400));
}

#[test]
fn a_store_of_version_1_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = Opened::open(dir.path()).unwrap();
    // Groups of one message write what version 1 wrote.
    for seq in 1..=3 {
        assert_eq!(opened.commit(messages(seq, seq, seq)), Outcome::Durable);
    }
    drop(opened);
    let schema = dir.path().join("schema");
    let version = |number| format!("parley embedded store, schema {number}\n");
    assert_eq!(std::fs::read_to_string(&schema).unwrap(), version(2));
    std::fs::write(&schema, version(1)).unwrap();
    let mut opened = Opened::open(dir.path()).unwrap();
    assert_eq!(std::fs::read_to_string(&schema).unwrap(), version(2));
    assert_eq!(opened.commit(messages(1, 4, 9)), Outcome::Durable);
    assert_eq!(opened.store.views().newest().entries(BOB, 1, 7).unwrap().len(), 7);
    drop(opened);
    let report = check_store(dir.path(), &mut |_| ()).unwrap();
    assert!(report.is_whole() && report.entries == 18, "{report}");
}

#[test]
fn commands_from_before_a_start_are_known_after_its_scan() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = Opened::open(dir.path()).unwrap();
    for no in 1..=4 {
        assert_eq!(opened.commit(messages(no, no * 1_000 - 999, no * 1_000)), Outcome::Durable);
    }
    drop(opened);
    let mut opened = Opened::open(dir.path()).unwrap();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !opened.store.names_are_whole() {
        assert!(std::time::Instant::now() < until, "the scan does not end");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    for seq in 1..=4_010 {
        let name = messages(1, seq, seq).appends[0].commands[0].name;
        let StoreResult::Found(found) = opened.ask(StoreRequest::FindCommand(name)) else { panic!() };
        assert_eq!(found.map(|row| row.seq), (seq <= 4_000).then_some(seq));
    }
    // One that is stored after the scan is known too.
    assert_eq!(opened.commit(messages(1, 4_001, 4_001)), Outcome::Durable);
    let name = messages(1, 4_001, 4_001).appends[0].commands[0].name;
    assert!(matches!(opened.ask(StoreRequest::FindCommand(name)), StoreResult::Found(Some(_))));
}

#[test]
fn a_group_waits_for_the_one_before_it_and_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = Opened::open(dir.path()).unwrap();
    assert!(matches!(opened.commit(messages(2, 1, 1)), Outcome::Failed(_)));
    assert_eq!(opened.commit(messages(1, 1, 1)), Outcome::Durable);
    assert_eq!(opened.commit(messages(1, 1, 1)), Outcome::Durable);
    assert_eq!(opened.commit(messages(2, 2, 2)), Outcome::Durable);
    drop(opened);
    assert!(check_store(dir.path(), &mut |_| ()).unwrap().is_whole());
}

#[test]
fn a_full_disk_fails_groups_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = Opened::open(dir.path()).unwrap();
    opened.store.set_disk_reserve(u64::MAX);
    let Outcome::Failed(reason) = opened.commit(messages(1, 1, 1)) else { panic!("it must fail") };
    assert!(reason.starts_with("disk full: "), "{reason}");
    assert!(matches!(opened.commit(messages(2, 2, 2)), Outcome::Failed(_)));
    assert_eq!(opened.store.views().newest().head(chat()).unwrap(), None);
    opened.store.set_disk_reserve(0);
    assert_eq!(opened.commit(messages(1, 1, 1)), Outcome::Durable);
    assert_eq!(opened.commit(messages(2, 2, 2)), Outcome::Durable);
}

#[test]
fn marks_only_rise() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = Opened::open(dir.path()).unwrap();
    let mark = |no, row, inbox_seq| Group {
        no,
        writer_epoch: 1,
        marks: vec![MarkWrite { chat_id: chat(), user_id: BOB, row, inbox_seq }],
        ..Group::default()
    };
    let high = MarkRow { delivered_seq: 5, read_seq: 4, read_ordinal: 3, read_sent: 1, muted_until_ms: 9 };
    let low = MarkRow { delivered_seq: 6, read_seq: 2, read_ordinal: 2, read_sent: 2, muted_until_ms: 0 };
    assert_eq!(opened.commit(mark(1, high, Some(1))), Outcome::Durable);
    assert_eq!(opened.commit(mark(2, low, None)), Outcome::Durable);
    let view = opened.store.views().newest();
    assert_eq!(view.marks(chat(), BOB).unwrap(), MarkRow { delivered_seq: 6, muted_until_ms: 0, ..high });
    assert_eq!(view.entries(BOB, 0, 9).unwrap(), [(1, EntryRow::Own { chat_id: chat() })]);
}

#[test]
fn a_directory_in_use_is_refused_and_the_holder_named() {
    let dir = tempfile::tempdir().unwrap();
    let _opened = Opened::open(dir.path()).unwrap();
    let error = Opened::open(dir.path()).err().expect("it must be refused");
    assert!(matches!(error, OpenError::InUse { .. }));
    let text = error.to_string();
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
}

#[test]
fn a_journal_that_lost_acknowledged_groups_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = Opened::open(dir.path()).unwrap();
    assert_eq!(opened.commit(messages(1, 1, 1)), Outcome::Durable);
    assert_eq!(opened.commit(messages(2, 2, 2)), Outcome::Durable);
    drop(opened);
    let journal = journal(dir.path());
    let whole = std::fs::read(&journal).unwrap();
    // A marker damaged in the middle: what follows is whole, and the engine would drop it without a word.
    let mut marker = whole.clone();
    let first = whole.windows(9).position(|window| window == b"message 1").unwrap();
    let end = first + whole[first..].windows(4).position(|window| window == b"FJL\x03").unwrap();
    marker[end] ^= 0x40;
    // A damaged row; a tail lost inside a group; one lost between two groups, in which nothing is wrong.
    let mut row = whole.clone();
    row[first] ^= 0x40;
    let second = first + whole[first..].windows(4).position(|window| window == b"FJL\x03").unwrap() + 4;
    let tails = [("torn", whole[..first].to_vec()), ("tail", whole[..second].to_vec())];
    for (what, bytes) in [("marker", marker), ("row", row)].into_iter().chain(tails) {
        for _ in 0..2 {
            std::fs::write(&journal, &bytes).unwrap();
            let error = Opened::open(dir.path()).err().expect("it must be refused");
            match &error {
                OpenError::Behind { engine_groups: 2, high_water_groups: 3, .. } if what == "tail" => {
                    let text = error.to_string();
                    assert!(text.contains("engine holds 2 groups") && text.contains("high-water"), "{text}");
                }
                OpenError::Damaged { file, what: at } if what != "tail" => {
                    assert_eq!(file, &journal);
                    assert!(at.starts_with("at byte ") && at.ends_with("it is whole up to group 1"), "{at}");
                }
                other => panic!("{what}: {other:?}"),
            }
            assert!(std::fs::read(&journal).unwrap() == bytes, "{what}: the evidence is still there");
        }
    }
    std::fs::write(&journal, &whole).unwrap();
    assert!(Opened::open(dir.path()).is_ok(), "nothing else was changed");
}

#[test]
fn a_store_without_its_high_water_record_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(Opened::open(dir.path()).unwrap());
    let file = dir.path().join("high-water");
    let kept = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(Opened::open(dir.path()).err().unwrap(), OpenError::Mixed { .. }));
    // Another store's record does not help.
    let other = tempfile::tempdir().unwrap();
    drop(Opened::open(other.path()).unwrap());
    std::fs::copy(other.path().join("high-water"), &file).unwrap();
    assert!(matches!(Opened::open(dir.path()).err().unwrap(), OpenError::Mixed { .. }));
    std::fs::write(&file, kept).unwrap();
    assert!(Opened::open(dir.path()).is_ok());
}

#[test]
fn a_half_made_store_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    drop(Opened::open(dir.path()).unwrap());
    std::fs::remove_file(dir.path().join("schema")).unwrap();
    assert!(Opened::open(dir.path()).is_ok());
    let mut opened = Opened::open(dir.path()).unwrap();
    assert_eq!(opened.commit(messages(1, 1, 1)), Outcome::Durable);
    drop(opened);
    std::fs::remove_file(dir.path().join("schema")).unwrap();
    assert!(matches!(Opened::open(dir.path()).err().unwrap(), OpenError::Mixed { .. }), "it has data");
}

#[test]
fn check_store_finds_holes_wrong_counts_and_dangling_rows() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = Opened::open(dir.path()).unwrap();
    let mut group = messages(1, 1, 3);
    let append = &mut group.appends[0];
    append.events[1].ordinal = 7;
    append.entries[5].row = EntryRow::Event { chat_id: chat(), seq: 9 };
    append.commands[2].seq = 1;
    append.members.push((BOB, MemberRow { role: None, intervals: Vec::new() }));
    group.uniques.push(("n\0carol".to_owned(), 77));
    assert_eq!(opened.commit(group), Outcome::Durable);
    assert_eq!(opened.commit(messages(2, 5, 5)), Outcome::Durable);
    drop(opened);
    let report = check_store(dir.path(), &mut |_| ()).unwrap();
    let text = report.to_string();
    for expected in [
        "seq 5 where 4 should be",
        "ordinal 7 where 2 should be",
        "ordinal 3 where 8 should be",
        "no event 9 in chat",
        "number 5 where 4 should be",
        "its event is another's",
        "user 77 does not exist",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    assert!(!report.is_whole());
}
