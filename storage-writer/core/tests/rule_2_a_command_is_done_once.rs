//! Delivery rule 2: a command's name is looked up among the committed and those in flight; a duplicate of one in flight
//! is answered when that one is durable.

mod common;

use common::{defaults, one};
use parley_protocol::ChatId;
use parley_protocol::link::Reply;
use storage_core::store::Outcome;

#[test]
fn a_retry_gets_the_first_ids_also_after_a_restart() {
    let mut world = defaults();
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    let ask = world.send_ask(chat, users[0], "once");
    let first = one(world.ask(ask.clone())).event;
    world.send(chat, users[1], "between");
    let duplicate = Reply::Duplicate { chat_id: chat, message_id: first.message_id, seq: first.seq };
    assert_eq!(world.ask(ask.clone()), duplicate);
    let state = world.store.model.state.clone();
    let epoch = world.epoch;
    let mut world =
        world.restart(common::Scripted { model: storage_core::model::Model::open(state), ..Default::default() });
    world.epoch = epoch;
    world.open_link(1);
    assert_eq!(world.ask(ask), duplicate);
}

#[test]
fn a_duplicate_of_one_in_flight_waits_for_it() {
    let mut world = defaults();
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    world.store.manual = true;
    let ask = world.send_ask(chat, users[0], "once");
    let first = world.put(1, ask.clone());
    world.run();
    let second = world.put(1, ask.clone());
    world.run();
    assert_eq!((world.reply(first), world.reply(second)), (None, None));
    world.store.answer(Outcome::Durable);
    world.run();
    let event = one(world.reply(first).unwrap()).event;
    let duplicate = Reply::Duplicate { chat_id: chat, message_id: event.message_id, seq: event.seq };
    assert_eq!(world.reply(second), Some(duplicate));
    assert!(world.store.commits.is_empty(), "the duplicate wrote nothing");
}

#[test]
fn two_of_a_name_that_arrive_together_are_one() {
    let mut world = defaults();
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    let ask = world.send_ask(chat, users[0], "once");
    let numbers = [world.put(1, ask.clone()), world.put(1, ask.clone())];
    world.run();
    assert!(matches!(world.reply(numbers[0]), Some(Reply::Durable(_))));
    assert!(matches!(world.reply(numbers[1]), Some(Reply::Duplicate { seq: 1, .. })));
}

#[test]
fn a_look_up_from_before_the_first_commit_is_not_believed_after_it() {
    let mut world = defaults();
    let users = world.users(3);
    let group = world.group(users[0], &[users[1]], "");
    let ask = world.send_ask(group, users[0], "once");
    // The first one's look-up answers "new" for both; in between stands a command that waits for a load of its own.
    world.store.hold_loads = true;
    let first = world.put(1, ask.clone());
    let stranger = parley_protocol::UserId(424_242);
    let add = parley_protocol::frame::Change::Add { users: vec![stranger] };
    let add = world.command(Some(group), users[0], parley_protocol::link::Action::Change(add));
    let between = world.put(1, add);
    let second = world.put(1, ask);
    world.run();
    let held = std::mem::take(&mut world.store.loads);
    let (last, others): (Vec<_>, Vec<_>) =
        held.into_iter().partition(|(_, load)| *load == storage_core::store::StoreRequest::LoadUser(stranger));
    assert_eq!(last.len(), 1);
    world.store.loads = others;
    world.store.release_loads();
    world.run();
    assert!(matches!(world.reply(first), Some(Reply::Durable(_))), "durable while the others wait");
    assert_eq!(world.reply(second), None);
    world.store.loads = last;
    world.store.release_loads();
    world.run();
    assert!(matches!(world.reply(between), Some(Reply::Refused(_))));
    assert!(matches!(world.reply(second), Some(Reply::Duplicate { .. })));
}

#[test]
fn a_retry_over_a_new_link_is_answered_there() {
    let mut world = defaults();
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    world.store.manual = true;
    let ask = world.send_ask(chat, users[0], "once");
    world.put(1, ask.clone());
    world.run();
    world.writer.handle_link_down(1);
    world.writer.handle_hello(world.now, 2, common::hello(7, world.epoch));
    world.run();
    assert!(!world.sent.iter().any(|(link, _)| *link == 2), "the welcome depends on nothing, but waits in line");
    world.store.answer(Outcome::Durable);
    world.run();
    let again = world.put(2, ask);
    world.run();
    while !world.store.commits.is_empty() {
        world.store.answer(Outcome::Durable);
        world.run();
    }
    assert!(matches!(world.answers.get(&(2, again)), Some(Reply::Duplicate { seq: 1, .. })));
    assert!(!world.answers.iter().any(|((link, _), reply)| *link == 1 && matches!(reply, Reply::Durable(_))));
}

#[test]
fn the_same_name_of_another_sender_is_another_command() {
    let mut world = defaults();
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    let ask = world.send_ask(chat, users[0], "mine");
    let mut theirs = ask.clone();
    if let parley_protocol::link::Ask::Command(command) = &mut theirs {
        command.sender = users[1];
    }
    assert_eq!(one(world.ask(ask)).event.seq, 1);
    assert_eq!(one(world.ask(theirs)).event.seq, 2);
}
