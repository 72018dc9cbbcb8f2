//! The row of the lease on a real node: one of two changes it, and both can tell which.

use super::scylla_common::Bench;
use std::sync::Arc;
use storage_core::cql::lease::{LeaseAnswer, LeaseAsk, LeaseKey, LeaseRow};
use storage_writer::store::scylla::{ClusterMetrics, Executor};

fn row(writer_epoch: u64, holder: u128, renewal: u64) -> LeaseRow {
    LeaseRow { writer_epoch, holder, renewal, worker: 1_023, lease_ms: u32::MAX, address: "/é/writer.sock".to_owned() }
}

fn cas(expected: Option<&LeaseRow>, new: &LeaseRow) -> LeaseAsk {
    LeaseAsk::Cas { expected: expected.map(LeaseRow::key), new: new.clone() }
}

#[test]
fn one_of_two_sessions_takes_the_lease() {
    let bench = Bench::new("lease");
    let ours = &bench.executor;
    let nobody = || Arc::new(|| {}) as Arc<dyn Fn() + Send + Sync>;
    let theirs = Executor::connect(&bench.keyspace.0, Arc::new(ClusterMetrics::default()), nobody()).expect("another");
    let first = LeaseRow { writer_epoch: 0, holder: 0, renewal: 0, worker: 0, lease_ms: 0, address: String::new() };
    assert_eq!(ours.ask_and_wait(0, &LeaseAsk::Read), Ok(LeaseAnswer::Row(Some(first.clone()))), "of schema apply");

    let (a, b) = (row(1, u128::MAX, u64::MAX), row(1, 2, 0));
    let answers = std::thread::scope(|scope| {
        let one = scope.spawn(|| ours.ask_and_wait(0, &cas(Some(&first), &a)).expect("an answer"));
        let other = scope.spawn(|| theirs.ask_and_wait(0, &cas(Some(&first), &b)).expect("an answer"));
        [one, other].map(|thread| thread.join().expect("no panic"))
    });
    let (winner, loser) = match answers {
        [LeaseAnswer::Applied, LeaseAnswer::NotApplied(Some(is))] => {
            assert_eq!(is, a);
            (a, b)
        }
        [LeaseAnswer::NotApplied(Some(is)), LeaseAnswer::Applied] => {
            assert_eq!(is, b);
            (b, a)
        }
        other => panic!("{other:?}"),
    };
    for executor in [ours, &theirs] {
        assert_eq!(executor.ask_and_wait(0, &LeaseAsk::Read), Ok(LeaseAnswer::Row(Some(winner.clone()))));
    }
    // What does not match in one of the three is not changed.
    let LeaseKey { writer_epoch, holder, renewal } = winner.key();
    for wrong in [
        LeaseKey { writer_epoch: writer_epoch + 1, holder, renewal },
        LeaseKey { writer_epoch, holder: holder ^ 1, renewal },
        LeaseKey { writer_epoch, holder, renewal: renewal ^ 1 },
    ] {
        let ask = LeaseAsk::Cas { expected: Some(wrong), new: loser.clone() };
        assert_eq!(theirs.ask_and_wait(0, &ask), Ok(LeaseAnswer::NotApplied(Some(winner.clone()))), "{wrong:?}");
    }
    let renewed = LeaseRow { renewal: 5, ..winner.clone() };
    let released = LeaseRow { renewal: 6, holder: 0, ..winner.clone() };
    assert_eq!(ours.ask_and_wait(0, &cas(Some(&winner), &renewed)), Ok(LeaseAnswer::Applied));
    assert_eq!(ours.ask_and_wait(0, &cas(Some(&renewed), &released)), Ok(LeaseAnswer::Applied));
    assert_eq!(theirs.ask_and_wait(0, &LeaseAsk::Read), Ok(LeaseAnswer::Row(Some(released))));
}

#[test]
fn a_set_without_a_row_gets_one_once_and_asks_do_not_block() {
    let bench = Bench::new("new_lease");
    let (set, new, other) = (u16::MAX, row(1, 3, 1), row(1, 4, 1));
    let asks = [LeaseAsk::Read, cas(Some(&other), &new), cas(None, &new), cas(None, &other)];
    let expected = [
        LeaseAnswer::Row(None),
        LeaseAnswer::NotApplied(None),
        LeaseAnswer::Applied,
        LeaseAnswer::NotApplied(Some(new.clone())),
    ];
    for (id, (ask, expected)) in asks.into_iter().zip(expected).enumerate() {
        bench.executor.ask(id as u64, set, ask);
        bench.wait();
        let mut answers = Vec::new();
        bench.executor.answers(&mut answers);
        let answers: Vec<_> = answers.into_iter().map(|(id, answer, _)| (id, answer)).collect();
        assert_eq!(answers, [(id as u64, Ok(expected))]);
    }
}
