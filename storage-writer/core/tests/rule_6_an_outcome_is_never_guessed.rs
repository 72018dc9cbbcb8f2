//! Delivery rule 6, the writer's side: answers leave when their group is durable, in order; what is not known is
//! repeated unchanged; a writer that is fenced or broken ends without an answer.

mod common;

use common::{defaults, one};
use parley_protocol::ChatId;
use parley_protocol::link::{Ask, Reply, ToGateway};
use storage_core::HaltReason;
use storage_core::store::Outcome;

#[test]
fn an_unknown_group_is_repeated_unchanged_until_it_is_known() {
    let mut world = defaults();
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    world.store.manual = true;
    let ask = world.send_ask(chat, users[0], "perhaps");
    let no = world.put(1, ask);
    world.run();
    let first = world.store.answer(Outcome::Unknown);
    world.run();
    for attempt in 1..5 {
        assert!(world.store.commits.is_empty(), "not before its time");
        assert_eq!(world.writer.status().ready, attempt < 3, "stuck is not ready");
        let at = world.writer.next_timer().expect("it will be repeated");
        world.tick(at - world.now.mono_ms);
        assert_eq!(world.store.answer(Outcome::Unknown), first);
        world.run();
        assert_eq!(world.reply(no), None);
    }
    world.tick(1_000);
    world.store.answer(Outcome::Durable);
    world.run();
    one(world.reply(no).unwrap());
    assert!(world.writer.status().ready);
}

#[test]
fn what_is_durable_waits_for_the_unknown_before_it() {
    let mut world = defaults();
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    world.store.manual = true;
    let mut numbers = Vec::new();
    for text in ["first", "second"] {
        let ask = world.send_ask(chat, users[0], text);
        numbers.push(world.put(1, ask));
        world.run();
    }
    // The engine did apply the first; only its answer was lost.
    let (op, group) = world.store.commits.remove(0);
    assert_eq!(world.store.model.commit(&group), Outcome::Durable);
    world.store.done.push((op, storage_core::store::StoreResult::Committed(Outcome::Unknown)));
    world.store.answer(Outcome::Durable);
    world.run();
    assert_eq!((world.reply(numbers[0]), world.reply(numbers[1])), (None, None));
    world.tick(10);
    world.store.answer(Outcome::Durable);
    world.run();
    assert_eq!(one(world.reply(numbers[0]).unwrap()).event.seq, 1);
    assert_eq!(one(world.reply(numbers[1]).unwrap()).event.seq, 2);
    let order: Vec<_> = world.sent.iter().rev().take(2).collect();
    assert!(format!("{:?}", order[1]).contains(&format!("no: {}", numbers[0])), "answers leave in seq order");
}

#[test]
fn a_writer_that_is_fenced_or_broken_ends_and_answers_nothing() {
    let ends = [
        (Outcome::Fenced, HaltReason::Fenced),
        (Outcome::Broken("journal 7: sync".to_owned()), HaltReason::Broken("journal 7: sync".to_owned())),
    ];
    for (outcome, reason) in ends {
        let mut world = defaults();
        let users = world.users(2);
        let chat = ChatId::direct(users[0], users[1]).unwrap();
        world.store.manual = true;
        let ask = world.send_ask(chat, users[0], "lost");
        let no = world.put(1, ask.clone());
        world.run();
        world.store.answer(outcome);
        world.run();
        assert_eq!(world.halted, Some(reason));
        let late = world.put(1, ask);
        world.run();
        assert_eq!((world.reply(no), world.reply(late)), (None, None));
        assert!(!world.writer.status().ready && world.writer.next_timer().is_none());
    }
}

#[test]
fn a_store_that_applies_on_top_of_a_failed_group_ends_the_writer() {
    let mut world = defaults();
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    world.store.manual = true;
    for text in ["first", "second"] {
        let ask = world.send_ask(chat, users[0], text);
        world.put(1, ask);
        world.run();
    }
    world.store.answer(Outcome::Failed("no room".to_owned()));
    world.run();
    let (op, _) = world.store.commits.remove(0);
    world.store.done.push((op, storage_core::store::StoreResult::Committed(Outcome::Durable)));
    world.run();
    assert!(matches!(world.halted, Some(HaltReason::Broken(_))));
}

#[test]
fn a_full_disk_is_probed_until_there_is_room() {
    let mut world = defaults();
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    world.send(chat, users[0], "before");
    world.store.manual = true;
    let ask = world.send_ask(chat, users[0], "no room");
    let no = world.put(1, ask.clone());
    world.run();
    world.store.answer(Outcome::Failed("No space left on device".to_owned()));
    world.run();
    assert_eq!(world.reply(no), Some(Reply::Failed));
    for _ in 0..3 {
        assert_eq!(world.writer.status().reason.as_deref(), Some("No space left on device"));
        assert_eq!(world.load(chat).head_seq, 1, "reads go on");
        world.tick(1_000);
        world.store.answer(Outcome::Failed("No space left on device".to_owned()));
        world.run();
    }
    world.tick(1_000);
    world.store.answer(Outcome::Durable);
    world.store.manual = false;
    world.run();
    assert!(world.writer.status().ready);
    assert_eq!(one(world.ask(ask)).event.seq, 2);
}

#[test]
fn a_load_of_a_chat_whose_state_fell_fails_with_it() {
    let mut world = defaults();
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    world.store.manual = true;
    let ask = world.send_ask(chat, users[0], "falls");
    world.put(1, ask);
    let load = world.put(1, Ask::LoadChat { chat_id: chat });
    world.run();
    assert_eq!(world.reply(load), None, "it shows a head that is not durable");
    world.store.answer(Outcome::Failed("no room".to_owned()));
    world.run();
    assert_eq!(world.reply(load), Some(Reply::Failed));
    assert_eq!(world.load(chat).head_seq, 0);
}

#[test]
fn while_the_disk_is_full_nobody_waits_for_a_barrier() {
    let mut world = defaults();
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    let partition = parley_protocol::partition::of_chat(chat);
    world.store.manual = true;
    // One that is in the group that falls, beside a group before it that is answered later.
    let opens = [partition, partition + 1].map(|partition| {
        let no = world.put(1, Ask::Open { partition });
        world.run();
        no
    });
    assert_eq!(world.store.commits.len(), 2);
    world.store.answer(Outcome::Failed("no room".to_owned()));
    world.run();
    let draining = [Ask::Open { partition: 9 }, Ask::LoadChat { chat_id: chat }].map(|ask| world.put(1, ask));
    world.run();
    assert!(opens.iter().chain(&draining).all(|no| world.reply(*no) == Some(Reply::Failed)));
    world.store.answer(Outcome::Failed("the group before it failed".to_owned()));
    world.run();
    for _ in 0..2 {
        assert_eq!(world.ask(Ask::Open { partition }), Reply::Failed);
        assert_eq!(world.load(chat).head_seq, 0, "what needs no write is answered");
        world.tick(1_000);
        assert_eq!(world.ask(Ask::Open { partition }), Reply::Failed, "while it tries, too");
        world.store.answer(Outcome::Failed("no room".to_owned()));
        world.run();
    }
    world.tick(1_000);
    world.store.answer(Outcome::Durable);
    world.run();
    world.store.manual = false;
    assert_eq!(world.ask(Ask::Open { partition }), Reply::Opened);
    assert_eq!(world.store.model.state.opened[&partition], 1);
}

#[test]
fn every_link_is_told_whether_commands_are_taken() {
    let mut world = defaults();
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    let told = |world: &common::World<common::Scripted>, link: u64| -> Vec<(bool, String)> {
        let of_link = world.sent.iter().filter(|(to, _)| *to == link);
        of_link
            .filter_map(|(_, record)| match record {
                ToGateway::Status { ready, reason } => Some((*ready, reason.clone())),
                _ => None,
            })
            .collect()
    };
    let (ready, full) = ((true, String::new()), (false, "no room".to_owned()));
    assert_eq!(told(&world, 1), vec![ready.clone()], "after the welcome");
    world.store.manual = true;
    let ask = world.send_ask(chat, users[0], "no room");
    world.put(1, ask);
    world.run();
    world.store.answer(Outcome::Failed("no room".to_owned()));
    world.run();
    // Another shard of the same gateway comes while the disk is full.
    world.open_link(2);
    let welcome = world.sent.iter().position(|(to, record)| *to == 2 && matches!(record, ToGateway::Welcome(_)));
    assert_eq!(world.sent[welcome.unwrap() + 1], (2, ToGateway::Status { ready: false, reason: "no room".to_owned() }));
    world.tick(1_000);
    world.store.answer(Outcome::Failed("no room".to_owned()));
    world.run();
    assert_eq!(told(&world, 1), [ready.clone(), full.clone()], "what did not change is not told again");
    world.tick(1_000);
    world.store.answer(Outcome::Durable);
    world.run();
    assert_eq!(told(&world, 1), [ready.clone(), full.clone(), ready.clone()]);
    assert_eq!(told(&world, 2), [full, ready]);
}
