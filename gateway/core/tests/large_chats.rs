//! Chats around and above the inbox limit: crossing it both ways while a device is away, subscriptions, heads, removal.

mod world;

use parley_protocol::frame::{Change, ChatRef, ClientFrame, GroupChange, GroupCreate, History, ServerFrame};
use parley_protocol::{ChatId, Event};
use std::collections::BTreeSet;
use world::{World, options};

/// A group of `members` users beside alice, with an inbox limit of `limit`, and everybody's connection; alice's first.
fn group(members: usize, limit: usize) -> (World, ChatId, Vec<u64>) {
    let writer = storage_core::Options { inbox_fanout_members_max: limit, ..storage_core::Options::default() };
    let mut world = World::new(&options(3), writer);
    let clients: Vec<u64> = (0..=members).map(|n| world.connect(&format!("user{n}"), n as u128 + 1, None)).collect();
    let users = clients[1..].iter().map(|client| world.user(*client)).collect();
    let client_msg_id = world.msg_id();
    world.say(clients[0], ClientFrame::GroupCreate(GroupCreate { client_msg_id, title: "g".into(), members: users }));
    let chat_id = world.client(clients[0]).sent()[0].chat_id;
    (world, chat_id, clients)
}

fn change(world: &mut World, by: u64, chat_id: ChatId, change: Change) {
    let client_msg_id = world.msg_id();
    world.say(by, ClientFrame::GroupChange(GroupChange { chat_id, client_msg_id, change }));
}

fn events(world: &mut World, client: u64) -> Vec<Event> {
    let event = |frame: &ServerFrame| match frame {
        ServerFrame::Event(event) => Some(event.clone()),
        _ => None,
    };
    world.client(client).frames.iter().filter_map(event).collect()
}

fn heads(world: &mut World, client: u64) -> Vec<u64> {
    let head = |frame: &ServerFrame| match frame {
        ServerFrame::Head(head) => Some(head.seq),
        _ => None,
    };
    world.client(client).frames.iter().filter_map(head).collect()
}

#[test]
fn above_the_limit_subscribers_get_every_event_and_others_the_head() {
    let (mut world, chat_id, clients) = group(6, 4);
    world.say(clients[1], ClientFrame::Subscribe(ChatRef { chat_id }));
    for n in 0..5 {
        let frame = world.text(chat_id, &format!("m{n}"));
        world.say(clients[0], frame);
    }
    let expected: Vec<String> = (0..5).map(|n| format!("m{n}")).collect();
    assert_eq!(world.texts(clients[1]), expected);
    assert!(world.texts(clients[2]).is_empty());
    world.sleep(2_500);
    assert_eq!(heads(&mut world, clients[2]), [7], "told once, coalesced");
    world.say(clients[1], ClientFrame::Unsubscribe(ChatRef { chat_id }));
    let after = world.text(chat_id, "after");
    world.say(clients[0], after);
    assert_eq!(world.texts(clients[1]), expected);
}

#[test]
fn a_removed_subscriber_hears_nothing_more() {
    let (mut world, chat_id, clients) = group(6, 4);
    world.say(clients[1], ClientFrame::Subscribe(ChatRef { chat_id }));
    let users = vec![world.user(clients[1])];
    change(&mut world, clients[0], chat_id, Change::Remove { users });
    let frame = world.text(chat_id, "secret");
    world.say(clients[0], frame);
    world.sleep(3_000);
    assert!(world.texts(clients[1]).is_empty());
    let last = events(&mut world, clients[1]).last().map(|event| event.seq);
    assert_eq!(last, Some(3), "the removal itself arrives");
    world.say(clients[1], ClientFrame::Subscribe(ChatRef { chat_id }));
    assert_eq!(world.client(clients[1]).errors().len(), 1);
}

#[test]
fn a_group_crosses_the_limit_both_ways_while_a_device_is_away() {
    let (mut world, chat_id, clients) = group(3, 4);
    let extra: Vec<u64> = (10..13).map(|n| world.connect(&format!("user{n}"), n, None)).collect();
    let first = world.text(chat_id, "small");
    world.say(clients[0], first);
    world.sleep(2_100);
    let mark = world.client(clients[1]).mark();
    let mut seen: BTreeSet<u64> = events(&mut world, clients[1]).iter().map(|event| event.seq).collect();
    world.drop_client(clients[1]);
    let users: Vec<_> = extra.iter().map(|client| world.user(*client)).collect();
    change(&mut world, clients[0], chat_id, Change::Add { users: users.clone() });
    for n in 0..10 {
        let frame = world.text(chat_id, &format!("large{n}"));
        world.say(clients[0], frame);
    }
    change(&mut world, clients[0], chat_id, Change::Remove { users });
    let last = world.text(chat_id, "small again");
    world.say(clients[0], last);
    let back = world.connect("user1", 2, mark);
    seen.extend(events(&mut world, back).iter().map(|event| event.seq));
    let head = *seen.last().expect("something was seen");
    assert_eq!(head, 16, "two of the creation, one, the addition, ten, the removal, the last");
    // What lies between shows as a gap of seq, and history fills it.
    let missing: Vec<u64> = (1..=head).filter(|seq| !seen.contains(seq)).collect();
    assert_eq!(missing, (5..=14).collect::<Vec<_>>(), "exactly what was said while it was large");
    let ask = History { request_id: 1, chat_id, before: None, after: Some(missing[0] - 1), limit: 0 };
    world.say(back, ClientFrame::History(ask));
    let page = world.client(back).frames.iter().rev().find_map(|frame| match frame {
        ServerFrame::HistoryPage(page) => Some(page.clone()),
        _ => None,
    });
    seen.extend(page.expect("a page").events.iter().map(|event| event.seq));
    assert_eq!(seen, (1..=head).collect());
}

#[test]
fn a_removal_whose_answer_was_lost_still_ends_the_subscription() {
    let (mut world, chat_id, clients) = group(6, 4);
    world.say(clients[1], ClientFrame::Subscribe(ChatRef { chat_id }));
    let users = vec![world.user(clients[1])];
    let client_msg_id = world.msg_id();
    let remove = GroupChange { chat_id, client_msg_id, change: Change::Remove { users } };
    world.say_and_lose_the_answer(clients[0], ClientFrame::GroupChange(remove));
    world.sleep(5_000);
    assert_eq!(world.client(clients[0]).sent().len(), 2, "answered after the resend");
    let frame = world.text(chat_id, "secret");
    world.say(clients[0], frame);
    world.sleep(3_000);
    assert!(world.texts(clients[1]).is_empty());
    assert_eq!(events(&mut world, clients[1]).last().map(|event| event.seq), Some(3), "the removal itself arrives");
    world.say(clients[1], ClientFrame::Subscribe(ChatRef { chat_id }));
    assert_eq!(world.client(clients[1]).errors().len(), 1);
}

#[test]
fn nothing_live_leaves_between_a_lost_answer_and_the_members_as_they_are() {
    let (mut world, chat_id, clients) = group(6, 4);
    world.say(clients[1], ClientFrame::Subscribe(ChatRef { chat_id }));
    world.say(clients[2], ClientFrame::Subscribe(ChatRef { chat_id }));
    let users = vec![world.user(clients[1])];
    let client_msg_id = world.msg_id();
    let remove = GroupChange { chat_id, client_msg_id, change: Change::Remove { users } };
    world.say_and_lose_the_answer(clients[0], ClientFrame::GroupChange(remove));
    // Said while the link is away, so committed right behind the removal's resend and answered before the reload.
    let frame = world.text(chat_id, "secret");
    world.say_quietly(clients[0], frame);
    world.sleep(5_000);
    assert_eq!(world.client(clients[0]).sent().len(), 3, "both answered after the resend");
    assert!(world.texts(clients[1]).is_empty(), "who was removed gets nothing that came after");
    assert_eq!(heads(&mut world, clients[2]).last(), Some(&4), "who stayed hears of what was dropped");
    let after = world.text(chat_id, "after");
    world.say(clients[0], after);
    assert_eq!(world.texts(clients[2]), ["after"], "and is subscribed still");
    assert!(world.texts(clients[1]).is_empty());
}

#[test]
fn an_addition_whose_answer_was_lost_is_known_to_the_home() {
    let (mut world, chat_id, clients) = group(6, 4);
    let late = world.connect("late", 99, None);
    let first = world.text(chat_id, "first");
    world.say(clients[0], first);
    let users = vec![world.user(late)];
    let client_msg_id = world.msg_id();
    let add = GroupChange { chat_id, client_msg_id, change: Change::Add { users } };
    world.say_and_lose_the_answer(clients[0], ClientFrame::GroupChange(add));
    world.sleep(5_000);
    assert_eq!(
        events(&mut world, late).last().map(|event| event.seq),
        Some(4),
        "told without waiting for a head check"
    );
    world.say(late, ClientFrame::Subscribe(ChatRef { chat_id }));
    assert!(world.client(late).errors().is_empty());
}

#[test]
fn a_subscription_that_is_taken_back_at_once_does_not_begin() {
    let (mut world, chat_id, clients) = group(6, 4);
    world.say_quietly(clients[1], ClientFrame::Subscribe(ChatRef { chat_id }));
    world.say_quietly(clients[1], ClientFrame::Unsubscribe(ChatRef { chat_id }));
    world.settle();
    let frame = world.text(chat_id, "nobody looks");
    world.say(clients[0], frame);
    assert!(world.texts(clients[1]).is_empty());
    world.say(clients[1], ClientFrame::Subscribe(ChatRef { chat_id }));
    let frame = world.text(chat_id, "now one does");
    world.say(clients[0], frame);
    assert_eq!(world.texts(clients[1]), ["now one does"]);
}
