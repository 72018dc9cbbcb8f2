//! A copy and a storage-writer that start at the same time: each looked for the other before the other was there. At
//! least one of them gives way, and none serves from rows of both.

use super::grown::{SMALL, grow};
use super::{connect, keyspace, to};
use std::sync::Arc;
use std::time::Duration;
use storage_core::cql::lease::{LeaseAnswer, LeaseAsk, LeaseRow};
use storage_core::cql::rows::{Partition, Read};
use storage_core::store::Store;
use storage_writer::store::copy::{CopyError, copy};
use storage_writer::store::scylla::{Executor, ScyllaOptions, ScyllaStore};

/// Looks of the test at a store before it gives up.
const LOOKS_MAX: u32 = 6_000;
/// Of the writer.
const LEASE_MS: u32 = 300;

fn lease(executor: &Executor) -> LeaseRow {
    match executor.ask_and_wait(0, &LeaseAsk::Read) {
        Ok(LeaseAnswer::Row(Some(row))) => row,
        other => panic!("{other:?}"),
    }
}

/// It takes the lease when the copy has found none, and has not marked the keyspace yet.
#[test]
fn a_copy_gives_way_to_a_writer_that_takes_the_lease_meanwhile() {
    let from = tempfile::tempdir().unwrap();
    grow(from.path(), &SMALL);
    let keyspace = keyspace("race");
    let writer = connect(&keyspace).unwrap();
    let before = lease(&writer);
    let taken = LeaseRow { writer_epoch: 1, holder: 7, renewal: 1, lease_ms: 1_000, ..before.clone() };
    let mut marking = 0;
    let copied = copy(from.path(), &to(&keyspace), &mut |line| {
        if line.starts_with("marking ") {
            marking += 1;
            let take = LeaseAsk::Cas { expected: Some(before.key()), new: taken.clone() };
            assert_eq!(writer.ask_and_wait(0, &take), Ok(LeaseAnswer::Applied));
        }
    });
    let error = copied.expect_err("somebody has the lease");
    assert!(matches!(error, CopyError::Foreign { .. }), "{error}");
    assert!(error.to_string().contains("has served under epoch 1"), "{error}");
    assert_eq!(marking, 1);
    // Nothing of the copy is left: the writer goes on.
    assert_eq!(writer.reader().read(&Read::All(Partition::Meta { set: 0 })), Ok(Vec::new()));
    connect(&keyspace).expect("there is no mark");
}

/// It looked for a mark, then the copy marked the keyspace, then it took the lease.
#[test]
fn a_writer_that_has_the_lease_gives_way_to_a_mark() {
    let keyspace = keyspace("mark");
    let other = connect(&keyspace).unwrap();
    let options = ScyllaOptions { cluster: keyspace.0.clone(), lease_ms: LEASE_MS, ..ScyllaOptions::default() };
    let store = ScyllaStore::open(options, 1, "here".to_owned(), Default::default(), Arc::new(|| {}));
    let mut store = store.expect("there is no mark yet");
    super::scylla_common::cql(
        &keyspace,
        "INSERT INTO KS.schema_version (name, holder) VALUES ('copy', 0x00) IF NOT EXISTS",
    );
    let mut looks = 0;
    let mut look = |store: &mut ScyllaStore| {
        looks += 1;
        assert!(looks < LOOKS_MAX, "the lease is not taken");
        store.completions(&mut Vec::new());
        assert!(store.view().is_none(), "it serves from an unfinished copy");
        std::thread::sleep(Duration::from_millis(10));
    };
    while lease(&other).writer_epoch == 0 {
        look(&mut store);
    }
    for _ in 0..50 {
        look(&mut store);
    }
}
