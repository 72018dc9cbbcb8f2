//! Delivery rule 5: an epoch is granted and stored before it is answered, a barrier answers only when nothing older can
//! still commit, and who runs under a dead epoch is told so.

mod common;

use common::{Scripted, World, defaults, hello, one};
use parley_protocol::ChatId;
use parley_protocol::link::{Ask, LinkHello, Reply, Request, ToGateway};
use storage_core::model::Model;
use storage_core::store::Outcome;

fn heard(world: &World<Scripted>, link: u64) -> Vec<&ToGateway> {
    world.sent.iter().filter(|(to, _)| *to == link).map(|(_, record)| record).collect()
}

fn welcome_of(world: &World<Scripted>, link: u64) -> Option<u64> {
    heard(world, link).iter().find_map(|record| match record {
        ToGateway::Welcome(welcome) => Some(welcome.home_epoch),
        _ => None,
    })
}

#[test]
fn a_grant_is_stored_before_it_is_answered() {
    let mut world = defaults();
    world.store.manual = true;
    world.writer.handle_hello(world.now, 2, hello(8, 0));
    world.run();
    assert_eq!(welcome_of(&world, 2), None);
    let group = world.store.answer(Outcome::Durable);
    assert_eq!(group.meta.map(|meta| (meta.home_epoch, meta.gateway)), Some((2, 8)));
    world.run();
    assert_eq!(welcome_of(&world, 2), Some(2));
}

#[test]
fn the_shards_of_a_gateway_share_a_grant() {
    let mut world = defaults();
    world.writer.handle_hello(world.now, 2, LinkHello { shard: 1, ..hello(7, 0) });
    world.run();
    assert_eq!((welcome_of(&world, 1), welcome_of(&world, 2)), (Some(1), Some(1)));
    assert!(world.closed.is_empty());
}

#[test]
fn who_is_replaced_is_fenced_and_can_do_nothing_more() {
    let mut world = defaults();
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    world.store.manual = true;
    let ask = world.send_ask(chat, users[0], "numbered before");
    let before = world.put(1, ask);
    world.run();
    world.writer.handle_hello(world.now, 2, hello(8, 0));
    let late = world.send_ask(chat, users[0], "too late");
    let late = world.put(1, late);
    world.run();
    assert_eq!(world.reply(late), None, "fencing too depends on a grant that is not durable");
    while !world.store.commits.is_empty() {
        world.store.answer(Outcome::Durable);
        world.run();
    }
    assert!(matches!(world.reply(before), Some(Reply::Durable(_))), "what was numbered before still commits");
    assert_eq!(world.reply(late), Some(Reply::Fenced));
    assert!(heard(&world, 1).contains(&&ToGateway::Fenced));
    assert_eq!(world.closed, vec![1]);
    // Woken again, it presents its epoch.
    world.writer.handle_hello(world.now, 3, hello(7, 1));
    world.run();
    assert_eq!((heard(&world, 3), world.closed.clone()), (vec![&ToGateway::Fenced], vec![1, 3]));
    assert_eq!(world.store.model.state.chats[&chat].events.len(), 1);
}

#[test]
fn what_was_parked_under_a_dead_epoch_is_fenced_too() {
    let mut world = defaults();
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    world.store.hold_loads = true;
    let ask = world.send_ask(chat, users[0], "waits for a look-up");
    let parked = world.put(1, ask);
    world.run();
    world.store.manual = true;
    world.writer.handle_hello(world.now, 2, hello(8, 0));
    world.run();
    world.store.release_loads();
    world.run();
    world.store.answer(Outcome::Durable);
    world.run();
    assert_eq!(world.reply(parked), Some(Reply::Fenced));
    assert!(world.store.commits.is_empty() && !world.store.model.state.chats.contains_key(&chat));
}

#[test]
fn the_barrier_answers_after_everything_older() {
    let mut world = defaults();
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    world.store.manual = true;
    let ask = world.send_ask(chat, users[0], "older");
    let older = world.put(1, ask);
    world.run();
    world.writer.handle_hello(world.now, 2, hello(8, 0));
    world.run();
    assert_eq!(world.store.commits.len(), 2);
    world.store.answer(Outcome::Durable);
    world.run();
    assert!(matches!(world.reply(older), Some(Reply::Durable(_))));
    world.store.answer(Outcome::Durable);
    world.run();
    let partition = parley_protocol::partition::of_chat(chat);
    world.epoch = 2;
    let open = world.put(2, Ask::Open { partition });
    world.run();
    assert_eq!(world.answers.get(&(2, open)), None);
    let group = world.store.answer(Outcome::Durable);
    assert_eq!(group.opened, vec![(partition, 2)]);
    world.run();
    assert_eq!(world.answers.get(&(2, open)), Some(&Reply::Opened));
    world.store.manual = false;
    let again = world.put(2, Ask::Open { partition });
    world.run();
    assert_eq!(world.answers.get(&(2, again)), Some(&Reply::Opened), "an equal epoch opens again, without a write");
}

#[test]
fn an_epoch_holds_across_a_restart_of_the_writer() {
    let world = defaults();
    let state = world.store.model.state.clone();
    let epoch = world.epoch;
    let mut world = world.restart(Scripted { model: Model::open(state), ..Scripted::default() });
    world.writer.handle_hello(world.now, 2, hello(7, epoch));
    world.writer.handle_hello(world.now, 3, hello(7, epoch + 1));
    world.writer.handle_hello(world.now, 4, hello(9, epoch));
    world.run();
    assert_eq!(welcome_of(&world, 2), Some(epoch));
    assert_eq!(heard(&world, 3), vec![&ToGateway::Fenced], "an epoch that nobody granted");
    assert_eq!(heard(&world, 4), vec![&ToGateway::Fenced], "another's epoch");
    world.writer.handle_hello(world.now, 5, hello(9, 0));
    world.run();
    assert_eq!(welcome_of(&world, 5), Some(epoch + 1));
}

#[test]
fn a_link_of_another_version_is_rejected() {
    let mut world = defaults();
    world.writer.handle_hello(world.now, 2, LinkHello { version: 9, ..hello(7, 0) });
    world.run();
    assert!(matches!(heard(&world, 2)[..], [ToGateway::Rejected { .. }]));
    assert_eq!(world.closed, vec![2]);
}

#[test]
fn a_link_that_breaks_the_order_is_closed() {
    let mut world = defaults();
    world.writer.handle_hello(world.now, 1, hello(7, 1));
    world.run();
    assert_eq!(world.closed, vec![1], "a second hello");
    let mut world = defaults();
    let request = Request { no: 1, home_epoch: 99, ask: Ask::Profiles { users: Vec::new() } };
    world.writer.handle_request(world.now, 1, request);
    world.run();
    assert_eq!(world.closed, vec![1], "an epoch from the future");
}

#[test]
fn a_failed_grant_is_tried_again_for_the_same_link() {
    let mut world = defaults();
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    world.store.manual = true;
    world.writer.handle_hello(world.now, 2, hello(8, 0));
    world.run();
    world.store.answer(Outcome::Failed("no room".to_owned()));
    world.run();
    world.store.manual = false;
    world.tick(1_000);
    assert_eq!(welcome_of(&world, 2), Some(2));
    world.epoch = 2;
    let ask = world.send_ask(chat, users[0], "through the new one");
    let no = world.put(2, ask);
    world.run();
    one(world.answers[&(2, no)].clone());
}
