//! A store that the real writer grew, copied into a real cluster: a reader of the cluster is answered as one of the store,
//! a killed copy goes on, and nobody serves from an unfinished one.

mod common;
#[path = "copy/grown.rs"]
mod grown;
#[path = "scylla_copy/race.rs"]
mod race;
mod scylla_common;

use common::Opened;
use grown::{Grown, LARGE, SMALL, compare, grow};
use scylla_common::{Keyspace, cluster};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use storage_core::cql::redo::Redo;
use storage_core::cql::rows::{Change, Partition, Read, Row, Statement, Write, inbox_bucket, seq_bucket, timestamp};
use storage_core::cql::view::{CqlView, Settled};
use storage_core::store::View;
use storage_writer::store::copy::{CopyError, CopyTarget, Report, copy};
use storage_writer::store::scylla::{ClusterMetrics, ClusterOptions, Executor, OpenError, schema};

/// A keyspace with tables and nothing in them.
fn keyspace(name: &str) -> Keyspace {
    let keyspace = Keyspace(cluster().options(name));
    schema::apply(&keyspace.0, &schema::SchemaOptions::default(), &mut |_| {}).expect("tables");
    keyspace
}

fn to(keyspace: &Keyspace) -> CopyTarget {
    CopyTarget::Scylla(Box::new(keyspace.0.clone()))
}

fn connect(keyspace: &Keyspace) -> Result<Executor, OpenError> {
    Executor::connect(&keyspace.0, Arc::new(ClusterMetrics::default()), Arc::new(|| {}))
}

fn copied(from: &Path, target: &CopyTarget) -> Report {
    let report = copy(from, target, &mut |line| println!("{line}")).unwrap_or_else(|error| panic!("{error}"));
    println!("{report}");
    report
}

fn refused(from: &Path, target: &CopyTarget) -> CopyError {
    copy(from, target, &mut |_| {}).expect_err("it must be refused")
}

/// The store is opened, and so changed, by this.
fn are_the_same(grown: &Grown, from: &Path, keyspace: &Keyspace) {
    let executor = connect(keyspace).expect("a finished copy is served from");
    let opened = Opened::open(from).expect("it opens");
    compare(grown, &*opened.store.views().newest(), &CqlView::new(executor.reader(), Settled));
}

#[test]
fn readers_of_the_cluster_are_answered_as_those_of_the_store() {
    let from = tempfile::tempdir().unwrap();
    let grown = grow(from.path(), &LARGE);
    let keyspace = keyspace("copy");
    let report = copied(from.path(), &to(&keyspace));
    let rows = |table: &str| report.tables.iter().find(|sums| sums.table == table).expect("a table").target.rows;
    assert!(rows("events") > 15_000 && rows("inbox") > 30_000 && rows("inbox_state") > 0, "{report}");
    assert!(rows("meta") == 1 && rows("members") == rows("memberships"), "{report}");
    are_the_same(&grown, from.path(), &keyspace);
    // What no reader asks for, but the writer and a taker.
    let executor = connect(&keyspace).unwrap();
    let opened = Opened::open(from.path()).unwrap();
    let view = opened.store.views().newest();
    for chat_id in &grown.chats {
        let Some(head) = view.head(*chat_id).unwrap() else { continue };
        let bucket = seq_bucket(head.seq);
        let read = Read::Events { chat_id: *chat_id, bucket, from: 1, to: u64::MAX, limit: 2, newest_first: true };
        for (row, newest) in executor.reader().read(&read).unwrap().iter().zip([true, false]) {
            let Row::Event(row) = row else { panic!("{row:?}") };
            assert_eq!((row.epoch, row.derived_through), (0, row.event.seq - 1));
            let redo = if newest { Redo::decode(&row.redo) } else { Redo::decode(&row.redo).or(Ok(Redo::default())) };
            assert_eq!(redo, Ok(Redo::default()), "a taker of this append derives nothing");
        }
    }
    for user_id in &grown.users {
        let head = view.user(*user_id).unwrap().map_or(0, |user| user.inbox_head);
        let state = executor.reader().read(&Read::All(Partition::InboxState { user_id: *user_id })).unwrap();
        let bucket = inbox_bucket(head);
        let expected = if bucket > 0 { vec![Row::InboxState { bucket, epoch: 0 }] } else { Vec::new() };
        assert_eq!(state, expected);
    }
    drop((executor, view, opened));
    // Not twice into one keyspace.
    let error = refused(from.path(), &to(&keyspace)).to_string();
    assert!(error.contains("rows already") && error.contains("empty target"), "{error}");
}

/// Runs in a process of its own, so that it can be killed.
#[test]
#[ignore = "started by the test of interrupted copies"]
fn child_copies() {
    let env = |name: &str| std::env::var(name).unwrap();
    let options = ClusterOptions {
        contact_points: vec![env("PARLEY_TEST_CONTACT")],
        keyspace: env("PARLEY_TEST_KEYSPACE"),
        ..ClusterOptions::default()
    };
    copy(&PathBuf::from(env("PARLEY_TEST_FROM")), &CopyTarget::Scylla(Box::new(options)), &mut |_| {}).unwrap();
}

/// Rows that are recorded as copied; nothing where no copy is under way.
fn recorded(from: &Path) -> Option<u64> {
    let file = std::fs::read_dir(from.join("copies")).ok()?.flatten().next()?;
    let text = std::fs::read_to_string(file.path()).ok()?;
    text.lines().find_map(|line| line.strip_prefix("rows ")?.parse().ok())
}

/// Kills a copy with SIGKILL once it has recorded more than `rows`.
fn kill_after(from: &Path, keyspace: &Keyspace, rows: u64) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "child_copies"]);
    command.env("PARLEY_TEST_FROM", from).env("PARLEY_TEST_KEYSPACE", &keyspace.0.keyspace);
    command.env("PARLEY_TEST_CONTACT", &keyspace.0.contact_points[0]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while recorded(from).is_none_or(|recorded| recorded <= rows) {
        assert!(child.try_wait().unwrap().is_none(), "the copy ended before it had copied {rows} rows");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_copy_that_is_killed_goes_on_and_is_not_served_from_before() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [from, other] = dirs.each_ref().map(tempfile::TempDir::path);
    let grown = grow(from, &LARGE);
    grow(other, &SMALL);
    let keyspace = keyspace("killed");
    for _ in 0..3 {
        kill_after(from, &keyspace, recorded(from).unwrap_or(0));
        let error = connect(&keyspace).err().expect("an unfinished copy is not served from");
        assert!(matches!(error, OpenError::Unfinished { .. }), "{error}");
        assert!(error.to_string().contains("the same `parley store copy` again"), "{error}");
    }
    let error = refused(other, &to(&keyspace)).to_string();
    assert!(error.contains("unfinished copy of another store"), "{error}");
    let mut lines = Vec::new();
    copy(from, &to(&keyspace), &mut |line| lines.push(line.to_owned())).unwrap();
    assert!(lines.iter().any(|line| line.starts_with("going on after")), "{lines:?}");
    are_the_same(&grown, from, &keyspace);
}

#[test]
fn what_is_not_there_after_the_copy_is_named() {
    let from = tempfile::tempdir().unwrap();
    let grown = grow(from.path(), &SMALL);
    let keyspace = keyspace("differs");
    // Somebody else writes into the target while it is unfinished: a row above the copy's timestamp.
    let executor = connect(&keyspace).unwrap();
    let user_id = grown.users[3];
    let partition = Partition::User { user_id };
    let foreign = Write { partition: partition.clone(), change: Change::Delete, timestamp: timestamp(1, 1) };
    executor.execute(1, Statement::Write(foreign));
    let mut results = Vec::new();
    while results.is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(5));
        executor.results(&mut results);
    }
    assert_eq!(results[0].1, Ok(Vec::new()));
    let error = refused(from.path(), &to(&keyspace));
    let CopyError::Differs(report) = &error else { panic!("{error}") };
    let users = report.tables.iter().find(|sums| sums.table == "users").unwrap();
    assert_eq!((users.source.rows, users.target.rows), (40, 39));
    let text = error.to_string();
    assert!(text.contains("NOT EQUAL") && text.contains(&format!("{partition:?}")), "{text}");
    assert!(matches!(connect(&keyspace).err(), Some(OpenError::Unfinished { .. })), "it stays unfinished");
}

#[test]
fn a_keyspace_without_tables_names_the_command_that_makes_them() {
    let from = tempfile::tempdir().unwrap();
    grow(from.path(), &SMALL);
    let options = cluster().options("none");
    let error = refused(from.path(), &CopyTarget::Scylla(Box::new(options))).to_string();
    assert!(error.contains("parley schema apply"), "{error}");
}
