//! Every kind of row is written to a real node and read back.

use super::scylla_common::Bench;
use parley_protocol::frame::Interval;
use parley_protocol::{ChatId, ClientMsgId, Envelope, Event, MessageId, Role, UserId};
use storage_core::cql::rows::*;
use storage_core::store::{Checkpoint, CommandName, CommandRow, EntryRow, MarkRow, MemberRow, UserRow};

/// The largest number in a key.
const TOP: u64 = i64::MAX as u64;

fn event(chat_id: ChatId, seq: u64, body: usize) -> Event {
    let envelope = Envelope { kind: u16::MAX - (seq % 3) as u16, flags: 3, body: vec![seq as u8; body] };
    Event {
        chat_id,
        seq,
        ordinal: seq,
        message_id: MessageId(u64::MAX - seq),
        sender: UserId(seq % 7),
        sender_sent: seq,
        client_msg_id: ClientMsgId(u128::MAX - u128::from(seq)),
        envelope,
    }
}

fn event_row(chat_id: ChatId, seq: u64, body: usize, redo: usize) -> Row {
    let event = event(chat_id, seq, body);
    Row::Event(EventRow { event, epoch: seq + 1, derived_through: seq.saturating_sub(1), redo: vec![9; redo] })
}

fn member(joined: u64) -> MemberRow {
    let interval = Interval { joined_seq: joined, left_seq: Some(u64::MAX), history_from: 0 };
    MemberRow { role: Some(Role::Admin), intervals: vec![interval, interval] }
}

fn chat_state(slot: u8, title: &str) -> Row {
    let sent = vec![(UserId(u64::MAX), u64::MAX), (UserId(0), 0)];
    let checkpoint = Checkpoint { seq: TOP, ordinal: u64::MAX, message_id: u64::MAX, title: title.to_owned(), sent };
    Row::ChatState(ChatStateRow { slot, epoch: u64::MAX, checkpoint, present: u32::MAX })
}

fn command(name: CommandName, chat_id: ChatId) -> Row {
    Row::Command(CommandRow { name, chat_id, message_id: MessageId(u64::MAX), seq: TOP })
}

fn name(chat_id: ChatId, sender: u64, id: u128) -> CommandName {
    CommandName { chat_id, sender: UserId(sender), client_msg_id: ClientMsgId(id) }
}

fn mark(n: u64) -> MarkRow {
    MarkRow { delivered_seq: n, read_seq: n / 2, read_ordinal: n / 3, read_sent: 0, muted_until_ms: u64::MAX }
}

/// Partitions with all their rows, in the order of their keys.
fn everything(chat_id: ChatId, user_id: UserId) -> Vec<(Partition, Vec<Row>)> {
    let set = 0;
    let meta = |home_epoch| Row::Meta { home_epoch, gateway: u128::MAX, ids_reserved_until_ms: u64::MAX };
    let user = |name: &str| {
        let (name, issuer, subject) = (name.to_owned(), "https://é.example".to_owned(), String::new());
        Row::User(UserRow { user_id, name, issuer, subject })
    };
    let creation = Partition::Commands { scope: user_id.0.into(), level: LEVEL_CREATIONS, bucket: 0 };
    let named = Partition::Commands { scope: chat_id.0, level: 50, bucket: u32::MAX };
    let entry = |inbox_seq, row| Row::Entry { inbox_seq, row, epoch: u64::MAX };
    let work = |id: u128| [Row::Work(WorkKey::Chat(ChatId(id))), Row::Work(WorkKey::Chat(ChatId(id + 1)))];
    vec![
        (Partition::Meta { set }, vec![meta(u64::MAX)]),
        (
            Partition::Work { set: u16::MAX, slot: WORK_SLOTS - 1 },
            work(u128::MAX - 1)
                .into_iter()
                .chain([0, 1, TOP, u64::MAX].map(|id| Row::Work(WorkKey::User(UserId(id)))))
                .collect(),
        ),
        // The most that an append has, with and without bodies.
        (
            Partition::Events { chat_id, bucket: 0 },
            (1..=64).map(|seq| event_row(chat_id, seq, seq as usize % 5 * 1_000, seq as usize / 64 * 3_000)).collect(),
        ),
        (Partition::Events { chat_id, bucket: u32::MAX }, vec![event_row(chat_id, TOP, 262_144, 0)]),
        (Partition::ChatState { chat_id }, vec![chat_state(0, ""), chat_state(1, "ü\0'title'")]),
        (
            Partition::Members { chat_id },
            [0, 1, 1 << 62, TOP].map(|id| Row::Member { user_id: UserId(id), row: member(id) }).into(),
        ),
        (Partition::Marks { chat_id }, [0, 7, TOP].map(|id| Row::Mark { user_id: UserId(id), row: mark(id) }).into()),
        (
            named,
            [name(chat_id, 0, 0), name(chat_id, 0, u128::MAX), name(chat_id, u64::MAX, 1)]
                .map(|name| command(name, chat_id))
                .into(),
        ),
        (creation, vec![command(name(ChatId(0), user_id.0, 5), chat_id)]),
        (Partition::User { user_id }, vec![user("na me")]),
        (Partition::InboxState { user_id }, vec![Row::InboxState { bucket: u32::MAX, epoch: u64::MAX }]),
        (
            Partition::Inbox { user_id, bucket: 0 },
            vec![
                entry(1, EntryRow::Event { chat_id, seq: u64::MAX }),
                entry(2, EntryRow::Event { chat_id, seq: 1 }),
                entry(8_192, EntryRow::Own { chat_id }),
            ],
        ),
        (
            Partition::Memberships { user_id },
            [0, 1 << 100, u128::MAX].map(|id| Row::Membership { chat_id: ChatId(id), row: member(3) }).into(),
        ),
        (Partition::Unique { key: "i\0https://é\0sub".to_owned() }, vec![Row::Unique { value: u128::MAX }]),
    ]
}

#[test]
fn every_kind_of_row_comes_back_as_it_was() {
    let bench = Bench::new("rows");
    for (chat_id, user_id) in [(ChatId(u128::MAX), UserId(TOP)), (ChatId(0), UserId(0))] {
        let all = everything(chat_id, user_id);
        let writes = all.iter().map(|(partition, rows)| {
            let change = Change::Put(rows.clone());
            Statement::Write(Write { partition: partition.clone(), change, timestamp: timestamp(1, 1) })
        });
        let results = bench.run(writes.collect());
        assert!(results.iter().all(|result| *result == Ok(Vec::new())), "{results:?}");
        for (partition, rows) in &all {
            assert_eq!(bench.read(Read::All(partition.clone())), *rows, "{partition:?}");
        }
        // Side by side as readers do, in the order of the reads.
        let reads: Vec<Read> = all.iter().cycle().take(90).map(|(partition, _)| Read::All(partition.clone())).collect();
        let results = bench.executor.reader().read_many(&reads);
        for (result, (_, rows)) in results.into_iter().zip(all.iter().cycle()) {
            assert_eq!(result.as_ref(), Ok(rows));
        }
    }
    let mut text = String::new();
    bench.metrics.show(&mut text);
    assert!(text.contains("parley_cql_requests_total{kind=\"write_events\"} 4\n"), "{text}");
    assert!(text.contains("parley_cql_errors_total{kind=\"unknown\"} 0\n"), "{text}");
    assert!(text.contains("parley_cql_in_flight 0\n"), "{text}");
}

/// Whatever comes first: several rows in a batch, and one alone.
#[test]
fn the_higher_timestamp_wins_whole() {
    let bench = Bench::new("stamps");
    let (chat_id, bucket) = (ChatId(5), 0);
    let partition = || Partition::Events { chat_id, bucket };
    let rows = |redo: usize| (1..=3).map(|seq| event_row(chat_id, seq, 10, redo)).collect::<Vec<_>>();
    bench.put(partition(), rows(5), timestamp(2, 0));
    bench.put(partition(), rows(7), timestamp(1, (1 << 40) - 1));
    bench.put(partition(), rows(9)[..1].to_vec(), timestamp(1, 3));
    assert_eq!(bench.read(Read::All(partition())), rows(5));
    bench.put(partition(), rows(0), timestamp(2, 1));
    assert_eq!(bench.read(Read::All(partition())), rows(0), "an empty column takes the place of a full one");
    // Far beyond today as microseconds.
    bench.put(partition(), rows(6), timestamp((1 << 23) - 1, (1 << 40) - 1));
    assert_eq!(bench.read(Read::All(partition())), rows(6));
}

#[test]
fn a_deleted_partition_takes_what_is_older_with_it() {
    let bench = Bench::new("deleted");
    let partition = || Partition::Work { set: 0, slot: 1 };
    let rows = |ids: &[u128]| ids.iter().map(|id| Row::Work(WorkKey::Chat(ChatId(*id)))).collect::<Vec<_>>();
    bench.put(partition(), rows(&[1, 2]), timestamp(1, 1));
    bench.put(Partition::Work { set: 0, slot: 2 }, rows(&[3]), timestamp(1, 1));
    bench.delete(partition(), timestamp(1, 5));
    assert_eq!(bench.read(Read::All(partition())), []);
    bench.put(partition(), rows(&[4]), timestamp(1, 4));
    assert_eq!(bench.read(Read::All(partition())), [], "a straggler");
    bench.put(partition(), rows(&[5]), timestamp(1, 6));
    assert_eq!(bench.read(Read::All(partition())), rows(&[5]));
    assert_eq!(bench.read(Read::All(Partition::Work { set: 0, slot: 2 })), rows(&[3]), "its neighbour stays");
}

/// More than a page, in both directions, with limits.
#[test]
fn ranges_go_both_ways_over_pages() {
    let bench = Bench::new("ranges");
    let (chat_id, user_id) = (ChatId(1 << 90), UserId(77));
    let events: Vec<Row> = (1..=300).map(|seq| event_row(chat_id, seq, 20, 0)).collect();
    for append in events.chunks(APPEND_EVENTS_MAX) {
        bench.put(Partition::Events { chat_id, bucket: 0 }, append.to_vec(), timestamp(1, 1));
    }
    let read =
        |from, to, limit, newest_first| bench.read(Read::Events { chat_id, bucket: 0, from, to, limit, newest_first });
    assert_eq!(read(1, u64::MAX, 1_000, false), events);
    assert_eq!(read(0, 300, 1_000, true), events.iter().rev().cloned().collect::<Vec<_>>());
    assert_eq!(read(10, 20, 5, false), events[9..14]);
    assert_eq!(read(10, 20, 5, true), events[15..20].iter().rev().cloned().collect::<Vec<_>>());
    assert_eq!(read(300, 300, 1, true), events[299..]);
    assert_eq!(read(301, 400, 1, true), []);

    let senders = bench.read(Read::Senders { chat_id, bucket: 0, from: 2, to: 299 });
    let expected = events[1..299].iter().map(|row| match row {
        Row::Event(row) => {
            let (seq, sender, kind) = (row.event.seq, row.event.sender, row.event.envelope.kind);
            Row::Sender(SenderRow { seq, sender, kind })
        }
        _ => unreachable!("events"),
    });
    assert_eq!(senders, expected.collect::<Vec<_>>());

    let row = |inbox_seq| EntryRow::Event { chat_id, seq: inbox_seq };
    let entries: Vec<Row> = (1..=96).map(|n| Row::Entry { inbox_seq: n, row: row(n), epoch: 1 }).collect();
    for rows in entries.chunks(INBOX_ROWS_MAX) {
        bench.put(Partition::Inbox { user_id, bucket: 0 }, rows.to_vec(), timestamp(1, 1));
    }
    let read =
        |from, to, limit, newest_first| bench.read(Read::Entries { user_id, bucket: 0, from, to, limit, newest_first });
    assert_eq!(read(1, u64::MAX, 500, false), entries);
    assert_eq!(read(1, u64::MAX, 1, true), entries[95..]);
    assert_eq!(read(33, 64, 500, false), entries[32..64]);
}

#[test]
fn looks_up_some_rows_of_a_partition_by_their_keys() {
    let bench = Bench::new("look_ups");
    let (chat_id, user_id) = (ChatId(8), UserId(9));
    let members: Vec<Row> = (0..10).map(|id| Row::Member { user_id: UserId(id), row: member(id) }).collect();
    bench.put(Partition::Members { chat_id }, members.clone(), timestamp(1, 1));
    assert_eq!(bench.read(Read::Member { chat_id, user_id: UserId(4) }), members[4..5]);
    assert_eq!(bench.read(Read::Member { chat_id, user_id: UserId(10) }), []);
    let after = |after: Option<u64>, limit| bench.read(Read::Members { chat_id, after: after.map(UserId), limit });
    assert_eq!(after(None, 3), members[..3]);
    assert_eq!(after(Some(0), 3), members[1..4]);
    assert_eq!(after(Some(9), 3), []);

    let marks: Vec<Row> = (0..100).map(|id| Row::Mark { user_id: UserId(id), row: mark(id) }).collect();
    bench.put(Partition::Marks { chat_id }, marks.clone(), timestamp(1, 1));
    let users = (0..100).rev().map(|id| UserId(id * 2)).collect();
    let even: Vec<Row> = marks.iter().step_by(2).cloned().collect();
    assert_eq!(bench.read(Read::Marks { chat_id, users }), even);

    let (scope, level, bucket) = (chat_id.0, 0, 0);
    let names: Vec<CommandName> = (0..100_u64).map(|id| name(chat_id, id % 3, u128::from(id) << 70)).collect();
    let rows = names.iter().step_by(2).map(|name| command(*name, chat_id)).collect();
    bench.put(Partition::Commands { scope, level, bucket }, rows, timestamp(1, 1));
    let asked = names.iter().map(|name| (name.sender, name.client_msg_id)).collect();
    let mut found: Vec<CommandName> = bench
        .read(Read::Commands { scope, level, bucket, names: asked })
        .into_iter()
        .map(|row| if let Row::Command(row) = row { row.name } else { unreachable!("commands") })
        .collect();
    assert!(found.is_sorted_by_key(|name| (name.sender, name.client_msg_id)));
    let mut expected: Vec<CommandName> = names.iter().step_by(2).copied().collect();
    for names in [&mut found, &mut expected] {
        names.sort_by_key(|name| name.client_msg_id);
    }
    assert_eq!(found, expected);

    let chats = [0, 1 << 64, u128::MAX].map(|id| Row::Membership { chat_id: ChatId(id), row: member(1) });
    bench.put(Partition::Memberships { user_id }, chats.to_vec(), timestamp(1, 1));
    let after = |after: Option<u128>, limit| bench.read(Read::Memberships { user_id, after: after.map(ChatId), limit });
    assert_eq!(after(None, 2), chats[..2]);
    assert_eq!(after(Some(0), 2), chats[1..]);
    assert_eq!(after(Some(u128::MAX), 2), []);
}

/// What a client may name, and no row can have: an empty answer, not a refusal that ends the process.
#[test]
fn reads_that_no_row_answers_are_empty_and_writes_that_no_table_takes_are_refused() {
    let bench = Bench::new("empty");
    let (chat_id, users) = (ChatId(1), Vec::new());
    bench.put(Partition::Members { chat_id }, vec![Row::Member { user_id: UserId(1), row: member(1) }], 1);
    let (beyond, limit, newest_first, bucket) = (UserId(u64::MAX), 5, false, 0);
    for read in [
        Read::All(Partition::User { user_id: beyond }),
        Read::All(Partition::Unique { key: String::new() }),
        Read::All(Partition::Unique { key: "k".repeat(70_000) }),
        Read::All(Partition::User { user_id: UserId(3) }),
        Read::Member { chat_id, user_id: beyond },
        Read::Members { chat_id, after: Some(UserId(1 << 63)), limit },
        Read::Members { chat_id, after: None, limit: 0 },
        Read::Marks { chat_id, users: vec![beyond] },
        Read::Marks { chat_id, users },
        Read::Commands { scope: 1, level: 0, bucket, names: Vec::new() },
        Read::Events { chat_id, bucket, from: 2, to: 1, limit, newest_first },
        Read::Events { chat_id, bucket, from: u64::MAX, to: u64::MAX, limit, newest_first },
        Read::Entries { user_id: beyond, bucket, from: 1, to: 9, limit, newest_first },
    ] {
        assert_eq!(bench.read(read.clone()), [], "{read:?}");
    }
    let change = Change::Put(vec![Row::Member { user_id: beyond, row: member(1) }]);
    let write = Write { partition: Partition::Members { chat_id }, change, timestamp: 1 };
    let result = bench.run(vec![Statement::Write(write)]).remove(0);
    assert!(matches!(&result, Err(StatementError::Refused(text)) if text.contains("2^63")), "{result:?}");
}

#[test]
fn rows_that_do_not_decode_are_damaged_and_others_are_not() {
    let bench = Bench::new("damaged");
    let (chat_id, user_id) = (ChatId(1), UserId(5));
    bench.put(Partition::Events { chat_id, bucket: 0 }, vec![event_row(chat_id, 1, 9, 0)], 1);
    let chat = format!("0x{:032x}", 1);
    for (text, read) in [
        (
            format!("UPDATE KS.events SET sender = 99 WHERE chat_id = {chat} AND bucket = 0 AND seq = 1"),
            Read::All(Partition::Events { chat_id, bucket: 0 }),
        ),
        (
            format!("INSERT INTO KS.members (chat_id, user_id, member) VALUES ({chat}, 5, 0x00112233445566)"),
            Read::Member { chat_id, user_id },
        ),
        (
            format!("INSERT INTO KS.marks (chat_id, user_id) VALUES ({chat}, 5)"),
            Read::Marks { chat_id, users: vec![user_id] },
        ),
        ("INSERT INTO KS.users (user_id, account) VALUES (5, 0x)".to_owned(), Read::All(Partition::User { user_id })),
    ] {
        bench.cql(&text);
        let result = bench.executor.reader().read(&read);
        assert!(matches!(&result, Err(StatementError::Damaged(_))), "{text}: {result:?}");
    }
    assert_eq!(bench.read(Read::All(Partition::Members { chat_id: ChatId(2) })), []);
    bench.cql("DROP TABLE KS.unique_keys");
    let result = bench.executor.reader().read(&Read::All(Partition::Unique { key: "k".to_owned() }));
    assert!(matches!(&result, Err(StatementError::Refused(_))), "{result:?}");
}
