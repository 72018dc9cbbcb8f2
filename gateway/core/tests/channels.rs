//! Channels: who comes in and goes without the others, subscriptions that the log judges, heads for those who look, the
//! rate of all members together, slow readers.

mod world;

use parley_protocol::frame::{
    Change, ChannelCreate, ChatRef, Chats, ClientFrame, GroupChange, Members, Position, ServerFrame,
};
use parley_protocol::{ChatId, ErrorCode, Event, Posting};
use world::{World, options};

/// A channel of the first of `users` users, in which the others but the last one are; everybody's connection.
fn channel(users: usize, posting: Posting) -> (World, ChatId, Vec<u64>) {
    channel_with(options(3), users, posting)
}

fn channel_with(options: gateway_core::options::Options, users: usize, posting: Posting) -> (World, ChatId, Vec<u64>) {
    let mut world = World::new(&options, storage_core::Options::default());
    let clients: Vec<u64> = (0..users).map(|n| world.connect(&format!("user{n}"), n as u128 + 1, None)).collect();
    let client_msg_id = world.msg_id();
    world.say(clients[0], ClientFrame::ChannelCreate(ChannelCreate { client_msg_id, title: "news".into(), posting }));
    let chat_id = world.client(clients[0]).sent()[0].chat_id;
    for client in &clients[1..users - 1] {
        change(&mut world, *client, chat_id, Change::Join {});
    }
    (world, chat_id, clients)
}

fn change(world: &mut World, by: u64, chat_id: ChatId, change: Change) {
    let client_msg_id = world.msg_id();
    world.say(by, ClientFrame::GroupChange(GroupChange { chat_id, client_msg_id, change }));
}

fn subscribe(world: &mut World, client: u64, chat_id: ChatId) {
    world.say(client, ClientFrame::Subscribe(ChatRef { chat_id }));
}

fn say(world: &mut World, client: u64, chat_id: ChatId, text: &str) {
    let frame = world.text(chat_id, text);
    world.say(client, frame);
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

fn codes(world: &mut World, client: u64) -> Vec<ErrorCode> {
    world.client(client).errors()
}

#[test]
fn who_joins_and_leaves_is_known_to_itself_and_to_those_who_look() {
    let (mut world, chat_id, clients) = channel(5, Posting::Everybody);
    subscribe(&mut world, clients[1], chat_id);
    let looked = events(&mut world, clients[1]).len();
    let before = events(&mut world, clients[2]).len();
    change(&mut world, clients[4], chat_id, Change::Join {});
    assert_eq!(events(&mut world, clients[4]).last().map(|event| event.seq), Some(6), "the joiner hears of it");
    change(&mut world, clients[4], chat_id, Change::Leave {});
    assert_eq!(events(&mut world, clients[4]).last().map(|event| event.seq), Some(7), "and of its end");
    assert_eq!(events(&mut world, clients[1]).len(), looked + 2, "who looks sees both");
    world.sleep(5_000);
    assert_eq!(events(&mut world, clients[2]).len(), before, "the others hear nothing");
    assert!(heads(&mut world, clients[2]).is_empty(), "no head either");
    assert_eq!(heads(&mut world, clients[1]), [5, 7], "who looks gets heads");
    change(&mut world, clients[4], chat_id, Change::Leave {});
    change(&mut world, clients[1], chat_id, Change::Join {});
    assert_eq!(codes(&mut world, clients[4]), [ErrorCode::NoSuchChat]);
    assert_eq!(codes(&mut world, clients[1]), [ErrorCode::NoChange]);
}

#[test]
fn only_members_subscribe_and_who_goes_hears_nothing_more() {
    let (mut world, chat_id, clients) = channel(5, Posting::Everybody);
    subscribe(&mut world, clients[4], chat_id);
    assert_eq!(codes(&mut world, clients[4]), [ErrorCode::NoSuchChat]);
    for client in &clients[1..4] {
        subscribe(&mut world, *client, chat_id);
    }
    let users = vec![world.user(clients[2])];
    change(&mut world, clients[1], chat_id, Change::Leave {});
    change(&mut world, clients[0], chat_id, Change::Remove { users });
    say(&mut world, clients[0], chat_id, "secret");
    world.sleep(3_000);
    for client in [clients[1], clients[2], clients[4]] {
        assert!(world.texts(client).is_empty());
    }
    assert_eq!(world.texts(clients[3]), ["secret"]);
    assert_eq!(heads(&mut world, clients[1]).last(), Some(&5), "no head after the end");
}

#[test]
fn a_leave_whose_answer_was_lost_still_ends_the_subscription() {
    let (mut world, chat_id, clients) = channel(5, Posting::Everybody);
    subscribe(&mut world, clients[1], chat_id);
    subscribe(&mut world, clients[2], chat_id);
    let client_msg_id = world.msg_id();
    let leave = GroupChange { chat_id, client_msg_id, change: Change::Leave {} };
    world.say_and_lose_the_answer(clients[1], ClientFrame::GroupChange(leave));
    let frame = world.text(chat_id, "secret");
    world.say_quietly(clients[0], frame);
    world.sleep(5_000);
    say(&mut world, clients[0], chat_id, "after");
    assert!(world.texts(clients[1]).is_empty());
    assert_eq!(events(&mut world, clients[1]).last().map(|event| event.seq), Some(6), "its own leave arrives");
    assert_eq!(world.texts(clients[2]).last().map(String::as_str), Some("after"), "who stayed is subscribed still");
    assert_eq!(world.client(clients[1]).sent().len(), 2, "answered after the resend");
}

#[test]
fn a_join_whose_answer_was_lost_leaves_the_subscriber_subscribed() {
    let (mut world, chat_id, clients) = channel(5, Posting::Everybody);
    subscribe(&mut world, clients[1], chat_id);
    let client_msg_id = world.msg_id();
    let join = GroupChange { chat_id, client_msg_id, change: Change::Join {} };
    world.say_and_lose_the_answer(clients[4], ClientFrame::GroupChange(join));
    world.sleep(5_000);
    assert_eq!(events(&mut world, clients[4]).last().map(|event| event.seq), Some(6), "told without a head check");
    subscribe(&mut world, clients[4], chat_id);
    say(&mut world, clients[0], chat_id, "hello");
    assert_eq!(world.texts(clients[4]), ["hello"]);
    assert_eq!(world.texts(clients[1]), ["hello"]);
}

#[test]
fn who_may_write_stands_in_the_id() {
    let (mut world, chat_id, clients) = channel(4, Posting::Admins);
    say(&mut world, clients[1], chat_id, "no");
    assert_eq!(codes(&mut world, clients[1]), [ErrorCode::Forbidden]);
    let user = world.user(clients[1]);
    change(&mut world, clients[0], chat_id, Change::Role { user, role: parley_protocol::Role::Admin });
    say(&mut world, clients[1], chat_id, "yes");
    assert_eq!(world.client(clients[1]).sent().len(), 2, "the join and the message");
    say(&mut world, clients[3], chat_id, "a stranger");
    assert_eq!(codes(&mut world, clients[3]), [ErrorCode::NoSuchChat]);
}

#[test]
fn the_rate_is_of_all_members_together() {
    let options = gateway_core::options::Options { channel_rate_per_s: 2, channel_rate_burst: 3, ..options(2) };
    let (mut world, chat_id, clients) = channel_with(options, 4, Posting::Everybody);
    for n in 0..5 {
        say(&mut world, clients[n % 3], chat_id, "m");
    }
    let error = |frame: &ServerFrame| match frame {
        ServerFrame::Error(error) => Some(error.clone()),
        _ => None,
    };
    let frames = clients[..3].iter().flat_map(|client| world.client(*client).frames.clone());
    let refused: Vec<_> = frames.filter_map(|frame| error(&frame)).collect();
    assert_eq!(refused.len(), 2);
    for error in &refused {
        assert_eq!((error.code, error.chat_id), (ErrorCode::RateLimited, Some(chat_id)));
        assert!(error.client_msg_id.is_some() && error.retry_after_ms.is_some_and(|ms| (1..=1_000).contains(&ms)));
    }
    change(&mut world, clients[3], chat_id, Change::Join {});
    assert!(codes(&mut world, clients[3]).is_empty(), "who comes and goes is not charged to the channel");
    world.sleep(1_000);
    say(&mut world, clients[3], chat_id, "again");
    assert!(codes(&mut world, clients[3]).is_empty());
}

#[test]
fn a_count_and_pages_instead_of_a_list() {
    let (mut world, chat_id, clients) = channel(6, Posting::Everybody);
    world.say(clients[1], ClientFrame::Chats(Chats { request_id: 1, after: None, limit: 0 }));
    world.say(clients[1], ClientFrame::Members(Members { request_id: 2, chat_id, after: None, limit: 3 }));
    let last = world.user(clients[2]);
    world.say(clients[1], ClientFrame::Members(Members { request_id: 3, chat_id, after: Some(last), limit: 3 }));
    let frames = world.client(clients[1]).frames.clone();
    let summary = frames.iter().find_map(|frame| match frame {
        ServerFrame::ChatList(list) => list.chats.first().cloned(),
        _ => None,
    });
    let summary = summary.expect("the channel is listed");
    assert_eq!((summary.members, summary.large, summary.title.as_str()), (5, true, "news"));
    let pages: Vec<_> = frames
        .iter()
        .filter_map(|frame| match frame {
            ServerFrame::MemberPage(page) => Some((page.members.len(), page.more)),
            _ => None,
        })
        .collect();
    assert_eq!(pages, [(3, true), (2, false)]);
}

#[test]
fn a_read_mark_is_kept_and_own_messages_are_not_counted() {
    let (mut world, chat_id, clients) = channel(4, Posting::Everybody);
    for text in ["a", "b", "c"] {
        say(&mut world, clients[1], chat_id, text);
    }
    let unread = |world: &mut World| {
        world.say(clients[1], ClientFrame::Chats(Chats { request_id: 1, after: None, limit: 0 }));
        let list = world.client(clients[1]).frames.iter().rev().find_map(|frame| match frame {
            ServerFrame::ChatList(list) => list.chats.first().cloned(),
            _ => None,
        });
        let summary = list.expect("a list");
        (summary.unread, summary.own.read_seq, summary.own.read_sent)
    };
    assert_eq!(unread(&mut world), (3, 0, 0));
    world.say(clients[1], ClientFrame::Delivered(Position { chat_id, seq: 6 }));
    world.say(clients[1], ClientFrame::Read(Position { chat_id, seq: 5 }));
    world.sleep(2_000);
    assert_eq!(unread(&mut world), (2, 5, 0));
    let strange = Position { chat_id, seq: 2 };
    world.say(clients[3], ClientFrame::Read(strange));
    world.sleep(2_000);
    assert_eq!(codes(&mut world, clients[3]), [], "a stranger's mark is left out");
}

#[test]
fn a_slow_reader_skips_forward_and_holds_nobody() {
    let options = gateway_core::options::Options { outbox_bytes_max: 2_000, ..options(1) };
    let (mut world, chat_id, clients) = channel_with(options, 4, Posting::Everybody);
    subscribe(&mut world, clients[1], chat_id);
    subscribe(&mut world, clients[2], chat_id);
    world.client(clients[1]).deaf = true;
    let text = "x".repeat(400);
    for _ in 0..20 {
        say(&mut world, clients[0], chat_id, &text);
    }
    assert_eq!(world.texts(clients[2]).len(), 20, "the others get everything at once");
    let got = world.texts(clients[1]).len();
    assert!((1..10).contains(&got), "what found no room was dropped: {got} came");
    world.client(clients[1]).deaf = false;
    world.took(clients[1], 1 << 20, 0);
    world.sleep(3_000);
    assert_eq!(heads(&mut world, clients[1]).last(), Some(&24), "the head shows the gap");
    assert_eq!(world.texts(clients[1]).len(), got, "which history fills, and nothing else");
    say(&mut world, clients[0], chat_id, "on");
    assert_eq!(world.texts(clients[1]).last().map(String::as_str), Some("on"));
    assert!(world.client(clients[1]).closed.is_none());
}
