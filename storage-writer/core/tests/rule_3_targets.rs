//! Delivery rule 3: who gets an inbox entry of an event. The limit is 3 here.

mod common;

use common::{Scripted, World, one, targets};
use parley_protocol::frame::Change;
use parley_protocol::link::{Committed, Reply};
use parley_protocol::{ChatId, Role, UserId};
use storage_core::Options;

fn small() -> World<Scripted> {
    common::world(Options { inbox_fanout_members_max: 3, ..Options::default() })
}

fn who(committed: &Committed) -> Vec<UserId> {
    targets(committed).into_iter().map(|(user, _)| user).collect()
}

fn add(users: &[UserId]) -> Change {
    Change::Add { users: users.to_vec() }
}

fn remove(user: UserId) -> Change {
    Change::Remove { users: vec![user] }
}

#[test]
fn everybody_in_a_small_chat_has_one_the_sender_included() {
    let mut world = small();
    let users = world.users(3);
    let group = world.group(users[0], &users[1..], "");
    let said = world.send(group, users[1], "hello");
    assert_eq!(who(&said), users);
    assert!(!said.large);
}

#[test]
fn a_removed_member_has_the_removal_and_nothing_after_it() {
    let mut world = small();
    let users = world.users(3);
    let group = world.group(users[0], &users[1..], "");
    let removal = one(world.change(group, users[0], remove(users[2])));
    assert_eq!(who(&removal), users);
    assert_eq!(who(&world.send(group, users[0], "gone?")), users[..2]);
    let left = one(world.change(group, users[1], Change::Leave {}));
    assert_eq!(who(&left), users[..2]);
}

#[test]
fn crossing_the_limit_reaches_every_member_either_way() {
    let mut world = small();
    let users = world.users(5);
    let group = world.group(users[0], &users[1..3], "");
    let up = one(world.change(group, users[0], add(&users[3..4])));
    assert!(up.large);
    assert_eq!(who(&up), users[..4], "the event that makes it large reaches all");
    let said = world.send(group, users[0], "into the crowd");
    assert!(said.large && said.targets.is_empty());
    let joined = one(world.change(group, users[0], add(&users[4..5])));
    assert_eq!(who(&joined), users[4..5], "in a large chat the joiner");
    let gone = one(world.change(group, users[0], remove(users[4])));
    assert_eq!(who(&gone), users[4..5], "in a large chat the removed");
    let role = one(world.change(group, users[0], Change::Role { user: users[1], role: Role::Admin }));
    assert!(role.targets.is_empty());
    let down = one(world.change(group, users[0], remove(users[3])));
    assert!(!down.large);
    assert_eq!(who(&down), users[..4], "the event that makes it small reaches all, the removed included");
    assert_eq!(who(&world.send(group, users[0], "small again")), users[..3]);
}

#[test]
fn a_group_that_is_created_large_tells_everybody_once() {
    let mut world = small();
    let users = world.users(4);
    let create = parley_protocol::link::Action::Create { title: "crowd".to_owned(), members: users[1..].to_vec() };
    let ask = world.command(None, users[0], create);
    let Reply::Durable(made) = world.ask(ask) else { panic!() };
    assert_eq!(who(&made[0]), users);
    assert!(made[1].targets.is_empty(), "the title is found in the log");
}

#[test]
fn each_inbox_is_dense_over_chats_and_own_state() {
    let mut world = small();
    let users = world.users(3);
    let one_chat = ChatId::direct(users[0], users[1]).unwrap();
    let other_chat = ChatId::direct(users[0], users[2]).unwrap();
    assert_eq!(targets(&world.send(one_chat, users[1], "1")), vec![(users[0], 1), (users[1], 1)]);
    assert_eq!(targets(&world.send(other_chat, users[2], "2")), vec![(users[0], 2), (users[2], 1)]);
    assert_eq!(world.mark(one_chat, users[0], 0, 1).inbox_seq, Some(3));
    assert_eq!(targets(&world.send(one_chat, users[0], "3")), vec![(users[0], 4), (users[1], 2)]);
}

#[test]
fn who_comes_back_has_a_second_interval() {
    let mut world = small();
    let users = world.users(2);
    let group = world.group(users[0], &users[1..], "");
    one(world.change(group, users[0], remove(users[1])));
    world.send(group, users[0], "unheard");
    one(world.change(group, users[0], add(&users[1..])));
    let row = &world.store.model.state.chats[&group].members[&users[1]];
    let intervals: Vec<_> = row.intervals.iter().map(|one| (one.joined_seq, one.left_seq, one.history_from)).collect();
    assert_eq!(intervals, vec![(1, Some(2), 1), (4, None, 4)]);
    assert_eq!(world.unread(group, users[1]), 0, "what was said before is not unread");
    world.send(group, users[0], "heard");
    assert_eq!(world.unread(group, users[1]), 1);
}
