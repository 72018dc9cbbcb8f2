//! What the engine says of a group: durable when all of it stands, unknown when it takes long, fenced, broken; and that
//! nothing leaves outside the lease.

mod common;
mod cql_common;

use cql_common::{CqlStore, options};
use storage_core::cql::cluster::Cluster;
use storage_core::cql::rows::{Statement, StatementError};
use storage_core::store::{Group, Meta, OpId, Outcome, Store, StoreRequest, StoreResult};

fn store() -> CqlStore {
    let mut store = CqlStore::new(Cluster::new(1), options(), 1);
    assert_eq!(store.one(1, StoreRequest::LoadMeta), StoreResult::Meta(Meta::default()));
    store
}

fn group(no: u64) -> Group {
    Group { no, writer_epoch: 1, uniques: vec![(format!("x\0{no}"), u128::from(no))], ..Group::default() }
}

fn commit(store: &mut CqlStore, op: OpId, group: &Group) {
    store.engine.submit(store.now_ms, op, StoreRequest::Commit(group.clone()));
    store.engine.check_invariants();
}

fn told(store: &mut CqlStore) -> Vec<(OpId, Outcome)> {
    let mut done = Vec::new();
    store.engine.completions(&mut done);
    let outcome = |(op, result)| match result {
        StoreResult::Committed(outcome) => (op, outcome),
        other => panic!("{other:?}"),
    };
    done.into_iter().map(outcome).collect()
}

#[test]
fn nothing_leaves_outside_the_lease() {
    let mut store = store();
    let now_ms = store.now_ms;
    store.engine.set_lease(None);
    commit(&mut store, 2, &group(1));
    assert_eq!(store.engine.poll_statement(now_ms), None);
    store.engine.submit(now_ms, 3, StoreRequest::FindUnique("y".to_owned()));
    assert_eq!(store.engine.poll_statement(now_ms), None, "a read repairs rows, which may be another's by now");
    store.engine.set_lease(Some(now_ms));
    assert_eq!(store.engine.poll_statement(now_ms), None, "it is over at that very moment");
    store.engine.set_lease(Some(now_ms + 1));
    assert!(matches!(store.engine.poll_statement(now_ms), Some((_, Statement::Write(_)))));
    assert_eq!(store.engine.poll_statement(now_ms + 1), None);
    assert!(matches!(store.engine.poll_statement(now_ms), Some((_, Statement::Read(_)))));
}

#[test]
fn what_takes_long_is_unknown_once_and_goes_on() {
    let mut store = store();
    commit(&mut store, 2, &group(1));
    let (id, first) = store.engine.poll_statement(store.now_ms).expect("a write");
    store.engine.handle_result(store.now_ms, id, Err(StatementError::Unknown("late".to_owned())));
    store.now_ms += options().unknown_after_ms;
    store.engine.handle_timer(store.now_ms);
    assert_eq!(told(&mut store), [(2, Outcome::Unknown)]);
    store.engine.handle_timer(store.now_ms + 10_000);
    assert_eq!(told(&mut store), [], "once");
    let (id, again) = store.engine.poll_statement(store.now_ms).expect("it is repeated");
    assert_eq!(again, first, "unchanged");
    commit(&mut store, 3, &group(1));
    assert_eq!(store.engine.poll_statement(store.now_ms), None, "it goes on where it was");
    store.engine.handle_result(store.now_ms, id, Ok(Vec::new()));
    assert_eq!(told(&mut store), [(3, Outcome::Durable)]);
    commit(&mut store, 4, &group(1));
    assert_eq!(told(&mut store), [(4, Outcome::Durable)], "it is durable for ever");
}

#[test]
fn a_lower_epoch_and_a_lost_lease_are_fenced() {
    let mut store = store();
    commit(&mut store, 2, &Group { writer_epoch: 0, ..group(1) });
    assert_eq!(told(&mut store), [(2, Outcome::Fenced)]);
    commit(&mut store, 3, &group(1));
    store.engine.fence();
    store.engine.check_invariants();
    commit(&mut store, 4, &group(2));
    assert_eq!(told(&mut store), [(3, Outcome::Fenced), (4, Outcome::Fenced)]);
    assert_eq!(store.engine.poll_statement(store.now_ms), None);
}

#[test]
fn a_refused_statement_ends_everything() {
    let mut store = store();
    commit(&mut store, 2, &group(1));
    commit(&mut store, 3, &group(2));
    let (id, _) = store.engine.poll_statement(store.now_ms).expect("a write");
    store.engine.handle_result(store.now_ms, id, Err(StatementError::Refused("no such table".to_owned())));
    store.engine.check_invariants();
    let broken = Outcome::Broken("no such table".to_owned());
    assert_eq!(told(&mut store), [(2, broken.clone()), (3, broken.clone())]);
    commit(&mut store, 4, &group(3));
    assert_eq!(told(&mut store), [(4, broken)]);
}

#[test]
fn a_cluster_that_comes_back_is_used_again_by_itself() {
    let mut store = store();
    (0..2).for_each(|replica| store.cluster.set_up(replica, false));
    for no in 1..=200 {
        store.submit(no + 1, StoreRequest::Commit(group(no)));
    }
    for _ in 0..200 {
        store.step();
    }
    let mut done = Vec::new();
    store.engine.completions(&mut done);
    assert!(!done.is_empty() && done.iter().all(|(_, result)| *result == StoreResult::Committed(Outcome::Unknown)));
    (0..2).for_each(|replica| store.cluster.set_up(replica, true));
    for _ in 0..2_000 {
        store.step();
    }
    let status = store.engine.status();
    assert_eq!((status.groups, status.waiting, status.in_flight), (0, 0, 0), "{status:?}");
}
