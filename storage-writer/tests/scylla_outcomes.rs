//! A node that is silent, killed and back: what was sent has an unknown outcome, and can be sent again unchanged. The
//! node is always this test's own.

mod scylla_common;

use scylla_common::{Bench, start};
use std::time::Duration;
use storage_core::cql::lease::{LeaseAnswer, LeaseAsk};
use storage_core::cql::rows::*;
use storage_writer::store::scylla::ClusterOptions;

/// Repetitions until a node that is back is connected again, at the most.
const TRIES: u32 = 60;

fn put(value: u128, timestamp: i64) -> Statement {
    let partition = Partition::Unique { key: "k".to_owned() };
    Statement::Write(Write { partition, change: Change::Put(vec![Row::Unique { value }]), timestamp })
}

fn read() -> Statement {
    Statement::Read(Read::All(Partition::Unique { key: "k".to_owned() }))
}

fn unknown(bench: &Bench, when: &str) {
    for result in bench.run(vec![put(2, 2), read()]) {
        assert!(matches!(&result, Err(StatementError::Unknown(_))), "{when}: {result:?}");
    }
    let answer = bench.executor.ask_and_wait(0, &LeaseAsk::Read);
    assert!(matches!(&answer, Ok(LeaseAnswer::Unknown(_))), "{when}: {answer:?}");
}

fn recovers(bench: &Bench, when: &str) {
    for _ in 0..TRIES {
        if bench.run(vec![put(2, 2)]) == [Ok(Vec::new())] {
            assert_eq!(bench.run(vec![read()]), [Ok(vec![Row::Unique { value: 2 }])]);
            return;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    panic!("{when}: it does not come back by itself");
}

#[test]
fn outcomes_are_unknown_while_the_node_is_away_and_known_when_it_is_back() {
    let cluster = start(&[]);
    let request_timeout = Duration::from_secs(3);
    let bench = Bench::with(ClusterOptions { request_timeout, ..cluster.options("outcomes") });
    cluster.node("pause");
    unknown(&bench, "paused");
    cluster.node("resume");
    recovers(&bench, "resumed");
    cluster.node("kill");
    unknown(&bench, "killed");
    cluster.node("restart");
    recovers(&bench, "restarted");
    assert!(bench.metrics.unknown.get() >= 6);
    assert_eq!((bench.metrics.refused.get(), bench.metrics.damaged.get()), (0, 0));
}
