//! Taking over, move by move: writes reach the replicas that the test chooses, takers die between any two of theirs, and
//! readers whose writer is dead read what they should not. Nothing that was acknowledged is lost, nothing is there twice.

use parley_protocol::body::{Envelope, kind};
use parley_protocol::{ChatId, ClientMsgId, Event, MessageId, UserId};
use std::collections::{BTreeMap, BTreeSet};
use storage_core::cql::cluster::Cluster;
use storage_core::cql::engine::{Engine, EngineOptions, StatementId};
use storage_core::cql::rows::{
    Change, INBOX_BUCKET, Partition, Read, Row, Statement, StatementError, StatementResult, WORK_ASIDE, WORK_SLOTS,
    Write,
};
use storage_core::store::{
    Append, Checkpoint, Entry, EntryRow, Group, MarkRow, MarkWrite, MemberRow, OpId, Outcome, StoreRequest,
    StoreResult, UserRow, identity_key, name_key,
};

const NOW_MS: u64 = 1_000;
const ALICE: UserId = UserId(1);
const BOB: UserId = UserId(2);

fn chat() -> ChatId {
    ChatId::direct(ALICE, BOB).expect("two users")
}

fn event(seq: u64, message_id: u64) -> Event {
    Event {
        chat_id: chat(),
        seq,
        ordinal: seq,
        message_id: MessageId(message_id),
        sender: ALICE,
        sender_sent: seq,
        client_msg_id: ClientMsgId(u128::from(message_id)),
        envelope: Envelope { kind: kind::MESSAGE, flags: 0, body: vec![1] },
    }
}

/// An append of Alice, with an entry for Bob for each event; the first of a chat has a checkpoint.
fn group(no: u64, epoch: u64, seqs: std::ops::RangeInclusive<u64>, first_entry: u64) -> Group {
    let first = *seqs.start();
    let events: Vec<_> = seqs.map(|seq| event(seq, epoch * 10_000 + seq)).collect();
    let row = |seq| EntryRow::Event { chat_id: chat(), seq };
    let entry = |event: &Event| Entry { user_id: BOB, inbox_seq: first_entry + event.seq - first, row: row(event.seq) };
    let checkpoint = Checkpoint { seq: 1, ordinal: 1, message_id: epoch * 10_000 + 1, ..Checkpoint::default() };
    let append = Append {
        chat_id: chat(),
        entries: events.iter().map(entry).collect(),
        events,
        commands: Vec::new(),
        members: if first == 1 { vec![(BOB, MemberRow { role: None, intervals: Vec::new() })] } else { Vec::new() },
        checkpoint: (first == 1).then_some(checkpoint),
        present: 2,
    };
    Group { no, writer_epoch: epoch, appends: vec![append], ..Group::default() }
}

/// A writer's engine over a cluster.
struct Writer {
    engine: Engine,
    /// Given out and not answered.
    open: Vec<(StatementId, Write)>,
    op: OpId,
}

impl Writer {
    fn new(epoch: u64) -> Writer {
        let mut engine = Engine::new(EngineOptions::default(), epoch, epoch);
        engine.set_lease(Some(u64::MAX));
        Writer { engine, open: Vec::new(), op: 0 }
    }

    /// Answers reads until only writes are open, or nothing is.
    fn read_on(&mut self, cluster: &mut Cluster) {
        self.read_with(&mut |read| cluster.read(read));
    }

    fn read_with(&mut self, answer: &mut dyn FnMut(&Read) -> StatementResult) {
        while let Some((id, statement)) = self.engine.poll_statement(NOW_MS) {
            match statement {
                Statement::Read(read) => {
                    let result = answer(&read);
                    self.engine.handle_result(NOW_MS, id, result);
                    self.engine.check_invariants();
                }
                Statement::Write(write) => self.open.push((id, write)),
            }
        }
    }

    /// The next write reaches every replica that is up, and is answered. None when nothing is to be written.
    fn write_one(&mut self, cluster: &mut Cluster) -> Option<Write> {
        self.read_on(cluster);
        if self.open.is_empty() {
            return None;
        }
        let (id, write) = self.open.remove(0);
        let result = cluster.write(&write);
        self.engine.handle_result(NOW_MS, id, result);
        self.engine.check_invariants();
        Some(write)
    }

    /// Everything is written, but what `stop` wants to keep open.
    fn run(&mut self, cluster: &mut Cluster, stop: impl Fn(&Write) -> bool) {
        for _ in 0..10_000 {
            self.read_on(cluster);
            let Some(at) = self.open.iter().position(|(_, write)| !stop(write)) else { return };
            let one = self.open.remove(at);
            self.open.insert(0, one);
            self.write_one(cluster);
        }
        panic!("it goes on and on: {:?}", self.engine.status());
    }

    /// One operation to its end.
    fn ask(&mut self, cluster: &mut Cluster, request: StoreRequest) -> StoreResult {
        self.op += 1;
        self.engine.submit(NOW_MS, self.op, request);
        self.run(cluster, |_| false);
        let mut done = Vec::new();
        self.engine.completions(&mut done);
        done.pop().unwrap_or_else(|| panic!("no answer: {:?}", self.engine.status())).1
    }

    fn commit(&mut self, cluster: &mut Cluster, group: Group) {
        let result = self.ask(cluster, StoreRequest::Commit(group));
        assert_eq!(result, StoreResult::Committed(Outcome::Durable));
    }
}

fn taker(epoch: u64, cluster: &mut Cluster) -> Writer {
    let mut writer = Writer::new(epoch);
    writer.run(cluster, |_| false);
    assert!(writer.engine.status().recovered, "{:?}", writer.engine.status());
    writer
}

fn without(cluster: &mut Cluster, down: usize) {
    (0..3).for_each(|replica| cluster.set_up(replica, replica != down));
}

fn all_up(cluster: &mut Cluster) {
    cluster.settle();
    (0..3).for_each(|replica| cluster.set_up(replica, true));
}

fn is_events(write: &Write) -> bool {
    matches!(write.partition, Partition::Events { .. })
}

fn is_inbox(write: &Write) -> bool {
    matches!(write.partition, Partition::Inbox { .. } | Partition::InboxState { .. })
}

fn events(from: u64, to: u64) -> Read {
    Read::Events { chat_id: chat(), bucket: 0, from, to, limit: 999, newest_first: false }
}

fn entries(from: u64, to: u64) -> Read {
    Read::Entries { user_id: BOB, bucket: 0, from, to, limit: 999, newest_first: false }
}

fn head(writer: &mut Writer, cluster: &mut Cluster) -> u64 {
    match writer.ask(cluster, StoreRequest::LoadChat(chat())) {
        StoreResult::Chat(Some(chat)) => chat.tail.last().map_or(chat.checkpoint.seq, |event| event.seq),
        other => panic!("{other:?}"),
    }
}

fn inbox_head(writer: &mut Writer, cluster: &mut Cluster) -> u64 {
    match writer.ask(cluster, StoreRequest::LoadUser(BOB)) {
        StoreResult::User(Some(user)) => user.inbox_head,
        other => panic!("{other:?}"),
    }
}

/// Up to the head that the writer loads, Bob's inbox names each event once.
fn check_inbox(writer: &mut Writer, cluster: &mut Cluster, events: u64, what: &str) {
    let head = inbox_head(writer, cluster);
    let rows = cluster.read(&entries(1, head.min(INBOX_BUCKET))).expect("it reads");
    let mut named: BTreeMap<u64, u64> = BTreeMap::new();
    for (row, number) in rows.iter().zip(1..) {
        let Row::Entry { inbox_seq, row, .. } = row else { panic!("an entry") };
        assert_eq!(*inbox_seq, number, "dense: {what}");
        if let EntryRow::Event { seq, .. } = row {
            *named.entry(*seq).or_default() += 1;
        }
    }
    assert_eq!(rows.len() as u64, head, "{what}");
    assert!(named.keys().copied().eq(1..=events), "none is lost: {named:?}, {what}");
    assert!(named.values().all(|times| *times == 1), "none is there twice: {named:?}, {what}");
}

fn bob() -> Group {
    let user = UserRow { user_id: BOB, name: "bob".into(), issuer: "test".into(), subject: "bob".into() };
    Group { no: 1, writer_epoch: 5, users: vec![user], ..Group::default() }
}

/// Writer 5 wrote two appends, all of them durable.
fn begun(cluster: &mut Cluster) -> Writer {
    let mut writer = taker(5, cluster);
    writer.commit(cluster, bob());
    writer.commit(cluster, group(2, 5, 1..=9, 1));
    writer.commit(cluster, group(3, 5, 10..=14, 10));
    writer
}

#[test]
fn a_last_append_of_which_one_row_was_repaired_is_not_cut() {
    for repaired in 10..=14 {
        let mut cluster = Cluster::new(repaired);
        begun(&mut cluster);
        let mut six = Writer::new(6);
        six.run(&mut cluster, is_events);
        let write =
            six.open.iter().map(|(_, write)| write).find(|write| is_events(write)).expect("it writes them again");
        cluster.apply(2, write);
        without(&mut cluster, 1);
        cluster.read(&events(repaired, repaired)).expect("a reader of writer 5 wakes");
        without(&mut cluster, 2);
        let mut seven = taker(7, &mut cluster);
        all_up(&mut cluster);
        assert_eq!(head(&mut seven, &mut cluster), 14, "row {repaired}");
        seven.commit(&mut cluster, group(1, 7, 15..=16, 15));
        check_inbox(&mut seven, &mut cluster, 16, "and it goes on");
    }
}

#[test]
fn an_inbox_of_which_some_rows_were_repaired_is_not_cut() {
    for moves in 0..4 {
        for from in [1, 6, 14] {
            let mut cluster = Cluster::new(from);
            begun(&mut cluster);
            let mut six = Writer::new(6);
            six.read_on(&mut cluster);
            for _ in 0..moves {
                six.write_one(&mut cluster);
            }
            six.run(&mut cluster, |write| is_inbox(write) || is_events(write));
            six.open.iter().filter(|(_, write)| is_inbox(write)).for_each(|(_, write)| cluster.apply(2, write));
            without(&mut cluster, 1);
            cluster.read(&entries(from, from + 3)).expect("a reader of writer 5 wakes");
            without(&mut cluster, 2);
            let mut seven = taker(7, &mut cluster);
            all_up(&mut cluster);
            check_inbox(&mut seven, &mut cluster, 14, &format!("{moves} writes, entries from {from}"));
        }
    }
}

#[test]
fn rows_of_an_append_that_nobody_heard_of_stop_no_taker() {
    for alone in [15, 16, 18] {
        let mut cluster = Cluster::new(alone);
        let mut five = begun(&mut cluster);
        five.engine.submit(NOW_MS, 99, StoreRequest::Commit(group(4, 5, 15..=18, 15)));
        five.run(&mut cluster, is_events);
        cluster.apply(2, &five.open[0].1);
        without(&mut cluster, 1);
        cluster.read(&events(alone, alone)).expect("it reads");
        without(&mut cluster, 2);
        let mut six = taker(6, &mut cluster);
        all_up(&mut cluster);
        assert_eq!(head(&mut six, &mut cluster), 14, "{alone}");
        check_inbox(&mut six, &mut cluster, 14, "nothing was derived");
        six.commit(&mut cluster, group(1, 6, 15..=16, 15));
        assert_eq!(head(&mut six, &mut cluster), 16);
    }
}

/// Events of writer 5 stand, its entries reached one replica. Every taker dies after any number of writes, the last of
/// them on one replica only; who follows reads other replicas; what was on its way arrives at the end.
fn takers_die(first: bool) {
    for late_on in 0..3 {
        let mut cluster = Cluster::new(1);
        let mut five = taker(5, &mut cluster);
        five.commit(&mut cluster, bob());
        let (append, count) = if first { (group(2, 5, 1..=3, 1), 3) } else { (group(3, 5, 10..=12, 10), 12) };
        if !first {
            five.commit(&mut cluster, group(2, 5, 1..=9, 1));
        }
        five.engine.submit(NOW_MS, 99, StoreRequest::Commit(append));
        five.run(&mut cluster, is_inbox);
        five.open.iter().for_each(|(_, write)| cluster.apply(late_on, write));
        for case in 0..3 * 3 * 16 {
            let (down_six, down_seven, writes) = (case % 3, case / 3 % 3, case / 9);
            let mut cluster = cluster.clone();
            without(&mut cluster, down_six);
            let mut six = Writer::new(6);
            let made = (0..writes).filter(|_| six.write_one(&mut cluster).is_some()).count();
            six.read_on(&mut cluster);
            all_up(&mut cluster);
            six.open.iter().for_each(|(_, write)| cluster.apply((down_six + 1) % 3, write));
            without(&mut cluster, down_seven);
            let mut seven = taker(7, &mut cluster);
            all_up(&mut cluster);
            for (_, write) in six.open.iter().chain(&five.open) {
                cluster.seed_with(write);
            }
            let what = format!("late on {late_on}, {down_six} and {down_seven} down, {made} writes");
            check_inbox(&mut seven, &mut cluster, count, &what);
            assert_eq!(head(&mut seven, &mut cluster), count, "{what}");
        }
    }
}

#[test]
fn entries_are_numbered_when_the_heads_are_fenced() {
    takers_die(false);
}

#[test]
fn an_empty_inbox_is_fenced_as_well() {
    takers_die(true);
}

fn marks(cluster: &mut Cluster) -> MarkRow {
    let rows = cluster.read(&Read::Marks { chat_id: chat(), users: vec![BOB] }).expect("it reads");
    match rows.first() {
        Some(Row::Mark { row, .. }) => *row,
        _ => MarkRow::default(),
    }
}

fn mute(no: u64, muted_until_ms: u64, entry: u64) -> Group {
    let row = MarkRow { muted_until_ms, ..MarkRow::default() };
    let write = MarkWrite { chat_id: chat(), user_id: BOB, row, inbox_seq: Some(entry) };
    Group { no, writer_epoch: 5, marks: vec![write], ..Group::default() }
}

#[test]
fn a_mark_of_a_dead_writer_arrives_too_late() {
    let mut cluster = Cluster::new(1);
    let mut five = begun(&mut cluster);
    five.commit(&mut cluster, mute(4, 50, 15));
    // Another mute is on its way, and nobody hears of it.
    five.engine.submit(NOW_MS, 99, StoreRequest::Commit(mute(5, 70, 16)));
    five.run(&mut cluster, |write| matches!(write.partition, Partition::Marks { .. }));
    assert_eq!(five.open.len(), 1);
    let mut six = taker(6, &mut cluster);
    assert_eq!(marks(&mut cluster).muted_until_ms, 50);
    cluster.seed_with(&five.open[0].1);
    assert_eq!(marks(&mut cluster).muted_until_ms, 50, "what the taker found stays");
    assert_eq!(inbox_head(&mut six, &mut cluster), 16, "the entry stands, and tells of what is there");
}

#[test]
fn entries_of_a_dead_writer_fill_no_empty_inbox() {
    let mut cluster = Cluster::new(1);
    let mut five = taker(5, &mut cluster);
    five.commit(&mut cluster, bob());
    five.engine.submit(NOW_MS, 99, StoreRequest::Commit(mute(2, 70, 1)));
    five.run(&mut cluster, is_inbox);
    let mut six = taker(6, &mut cluster);
    five.open.iter().for_each(|(_, write)| cluster.seed_with(write));
    assert_eq!(inbox_head(&mut six, &mut cluster), 0);
}

#[test]
fn lists_go_when_everything_stands() {
    let mut cluster = Cluster::new(1);
    let mut five = begun(&mut cluster);
    five.engine.submit(NOW_MS, 99, StoreRequest::Commit(group(4, 5, 15..=18, 15)));
    five.run(&mut cluster, is_inbox);
    let mut six = Writer::new(6);
    let mut deleted = false;
    while let Some(write) = six.write_one(&mut cluster) {
        assert!(!deleted || matches!(write.change, Change::Delete), "nothing is written after the lists: {write:?}");
        if let (Change::Delete, false) = (&write.change, deleted) {
            deleted = true;
            let rows = cluster.read(&entries(15, 18)).expect("it reads");
            assert_eq!(rows.len(), 4, "the entries stand");
            let Some(Row::Event(row)) = cluster.standing(&events(18, 18)).pop() else { panic!("an event") };
            assert_eq!(row.epoch, 6);
        }
    }
    assert!(deleted && six.engine.status().recovered);
}

#[test]
fn what_a_dead_writer_lists_too_late_is_not_listed() {
    for slot in 0..WORK_SLOTS {
        let mut cluster = Cluster::new(1);
        let mut five = begun(&mut cluster);
        // The list's first write is on its way when the writer dies: whoever takes over finds nothing there.
        five.engine.submit(NOW_MS, 99, StoreRequest::Commit(mute(4, 50, 15)));
        five.run(&mut cluster, |write| matches!(write.partition, Partition::Work { .. }));
        let (_, write) = five.open.pop().expect("it is listed before it is written");
        let late = Write { partition: Partition::Work { set: 0, slot }, ..write };
        taker(6, &mut cluster);
        cluster.seed_with(&late);
        assert_eq!(cluster.standing(&Read::All(late.partition)), [], "list {slot}");
    }
}

fn account(no: u64, epoch: u64, user_id: UserId, name: &str) -> Group {
    let user = UserRow { user_id, name: name.into(), issuer: "test".into(), subject: format!("{}", user_id.0) };
    let value = u128::from(user_id.0);
    let uniques = vec![(identity_key("test", &user.subject), value), (name_key(name), value)];
    Group { no, writer_epoch: epoch, users: vec![user], uniques, ..Group::default() }
}

fn named(cluster: &mut Cluster, user_id: UserId) -> Option<String> {
    match cluster.read(&Read::All(Partition::User { user_id })).expect("it reads").pop() {
        Some(Row::User(row)) => Some(row.name),
        _ => None,
    }
}

/// The way of a login, as the writer goes it: who holds the identity, and who the name.
fn login(writer: &mut Writer, cluster: &mut Cluster, epoch: u64, fresh: UserId, subject: u64) -> UserId {
    let key = identity_key("test", &subject.to_string());
    let known = match writer.ask(cluster, StoreRequest::FindUnique(key)) {
        StoreResult::Unique(value) => value.map(|value| UserId(value as u64)),
        other => panic!("{other:?}"),
    };
    let user_id = known.unwrap_or(fresh);
    let StoreResult::Unique(holder) = writer.ask(cluster, StoreRequest::FindUnique(name_key("ann"))) else {
        panic!("a value")
    };
    let taken = holder
        .map(|value| UserId(value as u64))
        .filter(|holder| *holder != user_id && named(cluster, *holder).is_some_and(|name| name == "ann"));
    if taken.is_none() {
        let mut group = account(1 + user_id.0, epoch, user_id, "ann");
        let subject = subject.to_string();
        group.uniques[0].0 = identity_key("test", &subject);
        group.users[0].subject = subject;
        writer.commit(cluster, group);
    }
    user_id
}

#[test]
fn a_name_is_never_of_two_nor_lost() {
    for writes in 0..=4 {
        for again in [3, 4] {
            let mut cluster = Cluster::new(1);
            let mut five = taker(5, &mut cluster);
            five.engine.submit(NOW_MS, 99, StoreRequest::Commit(account(1, 5, UserId(3), "ann")));
            for _ in 0..writes {
                five.write_one(&mut cluster);
            }
            five.read_on(&mut cluster);
            let mut six = taker(6, &mut cluster);
            let first = login(&mut six, &mut cluster, 6, UserId(10), again);
            // What writer 5 had on its way arrives.
            five.open.iter().for_each(|(_, write)| cluster.seed_with(write));
            let mut ids = BTreeSet::from([UserId(3), UserId(10), first]);
            ids.insert(login(&mut six, &mut cluster, 6, UserId(11), 7 - again));
            ids.insert(UserId(11));
            let holders: Vec<_> =
                ids.iter().filter(|user_id| named(&mut cluster, **user_id).is_some_and(|name| name == "ann")).collect();
            assert_eq!(holders.len(), 1, "after {writes} writes, {again} logs in: {holders:?}");
        }
    }
}

/// Takes over while the rows of some partitions do not decode.
fn taker_over_damage(epoch: u64, cluster: &mut Cluster, damaged: impl Fn(&Read) -> bool) -> Writer {
    let mut writer = Writer::new(epoch);
    loop {
        let mut answer = |read: &Read| match damaged(read) {
            true => Err(StatementError::Damaged("a row does not decode".into())),
            false => cluster.read(read),
        };
        writer.read_with(&mut answer);
        if writer.write_one(cluster).is_none() {
            return writer;
        }
    }
}

fn aside(cluster: &Cluster) -> usize {
    cluster.standing(&Read::All(Partition::Work { set: 0, slot: WORK_ASIDE })).len()
}

#[test]
fn a_damaged_chat_is_set_aside_and_looked_at_again() {
    let mut cluster = Cluster::new(1);
    let mut five = begun(&mut cluster);
    five.engine.submit(NOW_MS, 99, StoreRequest::Commit(group(4, 5, 15..=18, 15)));
    five.run(&mut cluster, is_inbox);
    for epoch in 6..9 {
        let mut six = taker_over_damage(epoch, &mut cluster, |read| matches!(read, Read::Events { .. }));
        let status = six.engine.status();
        assert!(status.recovered && status.set_aside == 1, "{status:?}");
        assert!(matches!(six.ask(&mut cluster, StoreRequest::LoadChat(chat())), StoreResult::Damaged(_)));
        let event = StoreRequest::LoadEvent { chat_id: chat(), seq: 3 };
        assert!(matches!(six.ask(&mut cluster, event), StoreResult::Damaged(_)));
        assert_eq!(inbox_head(&mut six, &mut cluster), 14, "others are served");
        assert!(aside(&cluster) > 0, "it is listed for the next");
    }
    let mut nine = taker(9, &mut cluster);
    assert_eq!((nine.engine.status().set_aside, aside(&cluster)), (0, 0));
    assert_eq!(head(&mut nine, &mut cluster), 18);
    check_inbox(&mut nine, &mut cluster, 18, "what was left is derived");
}

#[test]
fn a_damaged_inbox_is_set_aside_and_its_entries_are_not_lost() {
    let mut cluster = Cluster::new(1);
    let mut five = begun(&mut cluster);
    five.engine.submit(NOW_MS, 99, StoreRequest::Commit(group(4, 5, 15..=18, 15)));
    five.run(&mut cluster, is_inbox);
    let mut six = taker_over_damage(6, &mut cluster, |read| matches!(read, Read::Entries { .. }));
    assert_eq!(six.engine.status().set_aside, 1);
    assert!(matches!(six.ask(&mut cluster, StoreRequest::LoadUser(BOB)), StoreResult::Damaged(_)));
    assert_eq!(head(&mut six, &mut cluster), 18, "the chat is served");
    assert_eq!(cluster.standing(&entries(15, 18)), [], "nobody writes where nobody knows the head");
    let mut seven = taker(7, &mut cluster);
    check_inbox(&mut seven, &mut cluster, 18, "the next one enters them");
    assert_eq!((seven.engine.status().set_aside, aside(&cluster)), (0, 0));
}

#[test]
fn damaged_records_and_lists_end_the_process() {
    let damaged: [fn(&Read) -> bool; 2] = [
        |read| matches!(read, Read::All(Partition::Meta { .. })),
        |read| matches!(read, Read::All(Partition::Work { .. })),
    ];
    for damaged in damaged {
        let mut cluster = Cluster::new(1);
        begun(&mut cluster);
        let mut six = taker_over_damage(6, &mut cluster, damaged);
        six.engine.submit(NOW_MS, 99, StoreRequest::Commit(group(1, 6, 15..=15, 15)));
        let mut done = Vec::new();
        six.engine.completions(&mut done);
        assert!(matches!(&done[..], [(99, StoreResult::Committed(Outcome::Broken(_)))]), "{done:?}");
    }
}
