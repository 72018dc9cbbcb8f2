//! The cluster in memory keeps what a real one promises at quorum, and nothing more.

use parley_protocol::UserId;
use proptest::prelude::*;
use storage_core::cql::cluster::{Cluster, ClusterFaults, Keyed, Register};
use storage_core::cql::rows::{Change, Partition, Read, Row, StatementError, WorkKey, Write, timestamp};
use storage_core::store::EntryRow;

const USER: UserId = UserId(7);

fn inbox() -> Partition {
    Partition::Inbox { user_id: USER, bucket: 0 }
}

fn entry(inbox_seq: u64, epoch: u64) -> Row {
    let row = EntryRow::Own { chat_id: parley_protocol::ChatId::group(epoch) };
    Row::Entry { inbox_seq, row, epoch }
}

fn entries(numbers: impl IntoIterator<Item = u64>, epoch: u64, n: u64) -> Write {
    let rows = numbers.into_iter().map(|inbox_seq| entry(inbox_seq, epoch)).collect();
    Write { partition: inbox(), change: Change::Put(rows), timestamp: timestamp(epoch, n) }
}

fn all() -> Read {
    Read::Entries { user_id: USER, bucket: 0, from: 0, to: u64::MAX, limit: 1_000, newest_first: false }
}

#[test]
fn a_read_sees_what_was_acknowledged_whichever_replicas_it_asks() {
    for seed in 0..200 {
        let mut cluster = Cluster::with(3, ClusterFaults::MANY, seed);
        let mut durable = Vec::new();
        for number in 1..=20 {
            let write = entries([number], 1, number);
            if cluster.write(&write).is_ok() {
                durable.push(entry(number, 1));
            }
        }
        cluster.faults = ClusterFaults::NONE;
        cluster.set_up(seed as usize % 3, false);
        let seen = cluster.read(&all()).expect("two replicas are up");
        assert!(!durable.is_empty() && durable.len() < 20, "some writes are not known");
        for row in durable {
            assert!(seen.contains(&row), "seed {seed}: {row:?}");
        }
    }
}

#[test]
fn what_a_read_saw_every_later_read_sees() {
    for seed in 0..200 {
        let faults = ClusterFaults { late_per_mille: 700, ..ClusterFaults::NONE };
        let mut cluster = Cluster::with(3, faults, seed);
        for number in 1..=20 {
            let _unknown = cluster.write(&entries([number], 1, number));
        }
        assert!(cluster.late() > 0);
        cluster.forget_late();
        let first = cluster.read(&all()).expect("all replicas are up");
        for _ in 0..8 {
            let next = cluster.read(&all()).expect("all replicas are up");
            assert!(
                first.iter().all(|row| next.contains(row)),
                "seed {seed}: a read is repaired before it is answered"
            );
        }
    }
}

#[test]
fn a_straggler_of_a_dead_epoch_loses_whole_and_shows_where_nothing_is() {
    let mut cluster = Cluster::new(1);
    let dead = cluster.begin(&entries([3, 4, 5], 1, 9_999));
    assert!(cluster.finish(dead).is_err(), "no replica has it");
    cluster.write(&entries([3, 4], 2, 0)).expect("all replicas are up");
    assert_eq!(cluster.late(), 3);
    cluster.settle();
    let expected = vec![entry(3, 2), entry(4, 2), entry(5, 1)];
    assert_eq!(cluster.read(&all()), Ok(expected));
}

#[test]
fn a_deleted_partition_stays_deleted_for_what_was_written_before() {
    let partition = Partition::Work { set: 0, slot: 1 };
    let put = |n| Write {
        partition: partition.clone(),
        change: Change::Put(vec![Row::Work(WorkKey::User(UserId(n)))]),
        timestamp: timestamp(1, n),
    };
    let mut cluster = Cluster::new(1);
    cluster.write(&put(1)).expect("all replicas are up");
    let late = cluster.begin(&put(2));
    let delete = Write { partition: partition.clone(), change: Change::Delete, timestamp: timestamp(1, 3) };
    // A replica that is down does not hear of it, and is repaired.
    cluster.set_up(0, false);
    cluster.write(&delete).expect("two replicas are up");
    cluster.set_up(0, true);
    let _unknown = cluster.finish(late);
    cluster.forget_late();
    cluster.apply(1, &put(2));
    cluster.write(&put(4)).expect("all replicas are up");
    for _ in 0..10 {
        let rows = cluster.read(&Read::All(partition.clone()));
        assert_eq!(rows, Ok(vec![Row::Work(WorkKey::User(UserId(4)))]));
    }
}

#[test]
fn a_minority_answers_nothing() {
    let mut cluster = Cluster::new(1);
    cluster.set_up(0, false);
    cluster.write(&entries([1], 1, 1)).expect("a quorum is up");
    cluster.set_up(1, false);
    assert!(!cluster.available());
    assert!(matches!(cluster.write(&entries([2], 1, 2)), Err(StatementError::Unknown(_))));
    assert!(matches!(cluster.read(&all()), Err(StatementError::Unknown(_))));
    cluster.set_up(0, true);
    cluster.set_up(1, true);
    cluster.settle();
    assert_eq!(cluster.read(&all()), Ok(vec![entry(1, 1), entry(2, 1)]), "what was not known arrived after all");
}

#[test]
fn a_read_may_see_the_later_of_two_writes_alone() {
    // The first write is acknowledged between the answers of the two replicas that are asked: the reader has to know.
    let mut met = false;
    for seed in 0..50 {
        let mut cluster = Cluster::new(seed);
        let begun = cluster.begin_read(&all()).expect("all replicas are up");
        let first = cluster.begin(&entries([1], 1, 1));
        cluster.deliver(first, 0);
        cluster.deliver(first, 1);
        cluster.finish(first).expect("a quorum has it");
        cluster.write(&entries([2], 1, 2)).expect("all replicas are up");
        let rows = cluster.finish_read(begun).expect("all replicas are up");
        met |= rows == [entry(2, 1)];
    }
    assert!(met);
}

proptest! {
    #[test]
    fn replicas_agree_when_everything_arrived_in_whichever_order(
        writes in prop::collection::vec((1_u64..6, 1_u64..4, 0_u64..6, any::<bool>()), 1..20), seed: u64,
    ) {
        let mut clusters = [Cluster::with(3, ClusterFaults::MANY, seed), Cluster::new(seed)];
        // A timestamp names one write.
        let writes: std::collections::BTreeMap<_, _> =
            writes.into_iter().map(|(number, epoch, n, deletes)| ((epoch, n), (number, deletes))).collect();
        for ((epoch, n), (number, deletes)) in &writes {
            let mut write = entries(*number..=*number + 2, *epoch, *n);
            if *deletes {
                write.change = Change::Delete;
            }
            let _unknown = clusters[0].write(&write);
            for replica in 0..3 {
                clusters[0].apply(replica, &write);
            }
        }
        for ((epoch, n), (number, deletes)) in writes.iter().rev() {
            let mut write = entries(*number..=*number + 2, *epoch, *n);
            if *deletes {
                write.change = Change::Delete;
            }
            clusters[1].write(&write).expect("no faults");
        }
        clusters[0].settle();
        clusters[0].faults = ClusterFaults::NONE;
        let expected = clusters[1].read(&all());
        for _ in 0..6 {
            prop_assert_eq!(clusters[0].read(&all()), expected.clone());
        }
    }

    #[test]
    fn a_range_is_cut_at_its_ends_and_at_its_limit(from in 0_u64..12, to in 0_u64..12, limit in 0_u32..8, turned: bool) {
        let mut cluster = Cluster::with(3, ClusterFaults { late_per_mille: 300, ..ClusterFaults::NONE }, from * 31 + to);
        let durable: Vec<u64> =
            [2, 3, 5, 7, 8].into_iter().filter(|number| cluster.write(&entries([*number], 1, *number)).is_ok()).collect();
        cluster.settle();
        let read = Read::Entries { user_id: USER, bucket: 0, from, to, limit, newest_first: turned };
        let mut expected: Vec<u64> = vec![2, 3, 5, 7, 8].into_iter().filter(|at| (from..=to).contains(at)).collect();
        if turned {
            expected.reverse();
        }
        expected.truncate(limit as usize);
        let rows = cluster.read(&read).expect("all replicas are up");
        prop_assert_eq!(rows, expected.into_iter().map(|number| entry(number, 1)).collect::<Vec<_>>());
        prop_assert!(durable.len() <= 5);
    }
}

#[derive(Clone, Debug, PartialEq)]
struct At(u64);

impl Keyed for At {
    type Key = u64;

    fn key(&self) -> u64 {
        self.0
    }
}

#[test]
fn a_register_changes_only_from_what_is_expected() {
    let mut register = Register::new(1);
    assert_eq!(register.read(true), Ok(None));
    assert_eq!(register.cas(true, Some(&1), At(2)), Ok(Err(None)));
    assert_eq!(register.cas(true, None, At(1)), Ok(Ok(())));
    assert_eq!(register.cas(true, None, At(5)), Ok(Err(Some(At(1)))));
    assert_eq!(register.cas(true, Some(&1), At(2)), Ok(Ok(())));
    assert!(register.cas(false, Some(&2), At(3)).is_err(), "without a quorum nothing is told");
    assert!(register.read(false).is_err());
}

#[test]
fn an_untold_change_takes_effect_now_later_or_never_and_only_from_what_it_expects() {
    let mut seen = [false; 3];
    for seed in 0..400 {
        let mut register = Register::new(seed);
        assert_eq!(register.cas(true, None, At(1)), Ok(Ok(())));
        assert!(register.cas(false, Some(&1), At(2)).is_err());
        let first = register.read(true).expect("a quorum is up").expect("it was set");
        let later = (0..20).map(|_| register.read(true).expect("a quorum is up").expect("it was set"));
        match (first.0, later.last().expect("twenty").0) {
            (2, 2) => seen[0] = true,
            (1, 2) => seen[1] = true,
            (1, 1) => seen[2] = true,
            other => panic!("{other:?}"),
        }
        let mut register = Register::new(seed);
        assert_eq!(register.cas(true, None, At(1)), Ok(Ok(())));
        assert!(register.cas(false, Some(&1), At(2)).is_err());
        if register.cas(true, Some(&1), At(3)) == Ok(Ok(())) {
            for _ in 0..20 {
                assert_eq!(register.read(true), Ok(Some(At(3))), "what it expects is gone");
            }
        }
    }
    assert_eq!(seen, [true; 3]);
}
