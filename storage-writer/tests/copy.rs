//! Copies of stores that the real writer grew: equal, gone on with after kill -9, and refused where they would lie.

mod common;
#[path = "copy/grown.rs"]
mod grown;

use common::Opened;
use common::client::Client;
use grown::{Grown, LARGE, SMALL, compare, grow};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use storage_writer::Options;
use storage_writer::store::copy::{CopyError, CopyTarget, Report, copy};
use storage_writer::store::embedded::OpenError;
use storage_writer::store::embedded::check::check_store;

fn to(dir: &Path) -> CopyTarget {
    CopyTarget::Embedded(dir.to_owned())
}

fn copied(from: &Path, target: &CopyTarget) -> Report {
    copy(from, target, &mut |line| println!("{line}")).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(from: &Path, target: &CopyTarget) -> CopyError {
    copy(from, target, &mut |_| {}).expect_err("it must be refused")
}

/// Both stores prove themselves and answer the same. They are opened, and so changed, by this.
fn are_the_same(grown: &Grown, from: &Path, to: &Path) {
    let whole = [from, to].map(|dir| {
        let report = check_store(dir, &mut |_| {}).expect("it opens");
        assert!(report.is_whole(), "{report}");
        (report.events, report.entries, report.commands, report.members, report.users)
    });
    assert!(whole[0].1 > 30_000, "{whole:?}");
    assert_eq!(whole[0], whole[1]);
    let stores = [from, to].map(|dir| Opened::open(dir).expect("it opens"));
    let views = stores.each_ref().map(|opened| opened.store.views().newest());
    compare(grown, &*views[0], &*views[1]);
}

#[test]
fn a_copy_answers_as_the_store_does_and_goes_on_by_itself() {
    let (from, parent) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let grown = grow(from.path(), &LARGE);
    let target = parent.path().join("deep/backup");
    let report = copied(from.path(), &to(&target));
    println!("{report}");
    let rows = |table: &str| report.tables.iter().find(|sums| sums.table == table).expect("a table").target.rows;
    assert!(rows("events") > 15_000 && rows("inbox") > 5_000 && rows("marks") > 100, "{report}");
    assert!(rows("records") == 1 && rows("partitions") > 100 && rows("checkpoints") > 100, "{report}");
    assert!(!from.path().join("copies").exists(), "nothing is left in the source");
    assert!(!target.join("COPYING").exists());
    let mode = std::fs::metadata(&target).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "all messages are in it");
    are_the_same(&grown, from.path(), &target);
    // It is a deployment: the same people, commands that were given are known, and numbers go on.
    let settings = Options { embedded: common::options(), ..Options::new(&target) };
    let handle = storage_writer::run(settings.clone()).unwrap();
    let mut client = Client::open(&settings.socket, 8);
    assert_eq!(client.home_epoch, 2, "the epoch of the source's gateway is dead");
    assert_eq!(client.login("user0"), grown.users[0]);
    let chat = parley_protocol::ChatId::direct(grown.users[0], grown.users[1]).unwrap();
    client.open_chat(chat);
    let said = client.say(chat, grown.users[0], 1, "goes on");
    assert!(said.event.seq > LARGE.long_chat, "{said:?}");
    handle.stop().unwrap();
    // A backup of a backup, and not twice into one directory.
    let again = parent.path().join("again");
    copied(&target, &to(&again));
    let error = refused(&target, &to(&again)).to_string();
    assert!(error.contains("a store already") && error.contains("empty target"), "{error}");
}

#[test]
fn an_empty_store_can_be_copied() {
    let (from, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drop(Opened::open(from.path()).unwrap());
    let report = copied(from.path(), &to(target.path()));
    assert!(report.is_equal() && report.tables.iter().all(|sums| sums.target.rows == 0), "{report}");
    drop(Opened::open(target.path()).unwrap());
}

/// Runs in a process of its own, so that it can be killed.
#[test]
#[ignore = "started by the tests of interrupted copies"]
fn child_copies() {
    let [from, target] =
        ["PARLEY_TEST_FROM", "PARLEY_TEST_TO"].map(|name| PathBuf::from(std::env::var_os(name).unwrap()));
    let mut say = |line: &str| println!("{line}");
    match copy(&from, &to(&target), &mut say) {
        Ok(_) => println!("complete"),
        Err(error) => println!("failed: {error}"),
    }
}

fn spawn_copy(from: &Path, target: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "child_copies", "--nocapture"]);
    command.env("PARLEY_TEST_FROM", from).env("PARLEY_TEST_TO", target);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Rows that are recorded as copied; nothing where no copy is under way.
fn recorded(from: &Path) -> Option<u64> {
    let file = std::fs::read_dir(from.join("copies")).ok()?.flatten().next()?;
    let text = std::fs::read_to_string(file.path()).ok()?;
    text.lines().find_map(|line| line.strip_prefix("rows ")?.parse().ok())
}

/// Kills a copy with SIGKILL once it has recorded more than `rows`. False: it was complete before that.
fn kill_after(from: &Path, target: &Path, rows: Option<u64>) -> bool {
    let mut child = spawn_copy(from, target);
    let ended = loop {
        let enough = match rows {
            Some(rows) => recorded(from).is_some_and(|recorded| recorded > rows),
            None => target.join("COPYING").exists(),
        };
        if enough {
            break false;
        }
        if child.try_wait().unwrap().is_some() {
            break true;
        }
    };
    child.kill().unwrap();
    child.wait().unwrap();
    !ended && target.join("COPYING").exists()
}

#[test]
fn a_copy_that_is_killed_goes_on_where_it_was() {
    let (from, parent) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let grown = grow(from.path(), &LARGE);
    let target = parent.path().join("backup");
    // As soon as the target is marked, and then whenever more is recorded.
    assert!(kill_after(from.path(), &target, None), "it was killed at its beginning");
    let mut killed = 0;
    while let mut before = recorded(from.path()).unwrap_or(0)
        && kill_after(from.path(), &target, Some(std::mem::take(&mut before)))
    {
        killed += 1;
        assert!(killed < 100, "it never gets on");
        let error = Opened::open(&target).err().expect("an unfinished copy is no store");
        assert!(matches!(error, OpenError::Unfinished { .. }), "{error}");
        assert!(error.to_string().contains("the same `parley store copy` again"), "{error}");
        assert!(matches!(check_store(&target, &mut |_| {}), Err(OpenError::Unfinished { .. })));
    }
    assert!(killed >= 2, "it was interrupted in the middle: {killed}");
    if target.join("COPYING").exists() {
        let mut lines = Vec::new();
        copy(from.path(), &to(&target), &mut |line| lines.push(line.to_owned())).unwrap();
        assert!(lines.iter().any(|line| line.starts_with("going on after")), "{lines:?}");
    }
    assert!(!from.path().join("copies").exists());
    are_the_same(&grown, from.path(), &target);
}

/// An unfinished copy of `from` in `target`.
fn interrupt(from: &Path, target: &Path) {
    assert!(kill_after(from, target, None), "it was killed at its beginning");
}

#[test]
fn only_the_same_copy_of_the_same_source_goes_on() {
    let dirs = [(); 4].map(|()| tempfile::tempdir().unwrap());
    let [from, other, target, moved] = dirs.each_ref().map(tempfile::TempDir::path);
    grow(from, &SMALL);
    grow(other, &SMALL);
    interrupt(from, target);
    let error = refused(other, &to(target)).to_string();
    assert!(error.contains("unfinished copy of another store"), "{error}");
    assert!(target.join("COPYING").exists(), "nothing was changed");
    // The source as it was restored from elsewhere does not know of the copy.
    let copies = from.join("copies");
    std::fs::rename(&copies, moved.join("copies")).unwrap();
    let error = refused(from, &to(target)).to_string();
    assert!(error.contains("knows nothing of"), "{error}");
    std::fs::rename(moved.join("copies"), &copies).unwrap();
    // The source was used in between.
    drop(Opened::open(from).unwrap());
    let error = refused(from, &to(target)).to_string();
    assert!(error.contains("it has changed since"), "{error}");
    // A mark that is cut off belongs to nobody.
    std::fs::write(target.join("COPYING"), "0123").unwrap();
    let error = refused(from, &to(target)).to_string();
    assert!(error.contains("a mark that cannot be read"), "{error}");
}

#[test]
fn what_cannot_be_copied_is_refused_and_nothing_is_changed() {
    let (from, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    grow(from.path(), &SMALL);
    let error = refused(&from.path().join("gone"), &to(target.path()));
    assert!(matches!(&error, CopyError::Wrong(what) if what.contains("no such directory")), "{error}");
    let error = refused(target.path(), &to(&from.path().join("x")));
    assert!(matches!(&error, CopyError::Wrong(what) if what.contains("no store")), "{error}");
    assert!(!target.path().join("LOCK").exists(), "nothing is made where nothing is");
    for inside in [from.path().to_owned(), from.path().join("x"), from.path().join("x/y")] {
        let error = refused(from.path(), &to(&inside));
        assert!(matches!(&error, CopyError::Wrong(what) if what.contains("lies in the source")), "{error}");
    }
    std::fs::write(target.path().join("letter.txt"), "dear").unwrap();
    let error = refused(from.path(), &to(target.path())).to_string();
    assert!(error.contains("letter.txt") && error.contains("must be empty"), "{error}");
    std::fs::remove_file(target.path().join("letter.txt")).unwrap();
    let running = Opened::open(from.path()).unwrap();
    let error = refused(from.path(), &to(target.path())).to_string();
    assert!(error.contains("only a stopped deployment") && error.contains("process"), "{error}");
    drop(running);
    let busy = Opened::open(target.path()).unwrap();
    let error = refused(from.path(), &to(target.path())).to_string();
    assert!(error.contains("a running store"), "{error}");
    drop(busy);
    assert!(!from.path().join("copies").exists());
}

#[test]
fn damage_is_named_and_not_copied() {
    let (from, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    grow(from.path(), &LARGE);
    let tables = std::fs::read_dir(from.path().join("engine/keyspaces/1/tables")).unwrap();
    let table = tables.map(|entry| entry.unwrap().path()).max().expect("events on the disk");
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&table).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 100).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], 100).unwrap();
    let error = refused(from.path(), &to(target.path()));
    assert!(matches!(error, CopyError::Damaged { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(table.to_str().unwrap()) && text.contains("check-store"), "{text}");
    assert!(!target.path().join("COPYING").exists(), "the target was not begun");
    file.write_all_at(&byte, 100).unwrap();
    copied(from.path(), &to(target.path()));
}
