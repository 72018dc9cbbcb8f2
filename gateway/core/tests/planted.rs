//! A sample of the planted bugs: each scenario holds without its bug and does not hold with it, so the hooks take
//! effect. That each of them is caught is the simulator's to show.

mod world;

use gateway_core::options::Options;
use gateway_core::planted::{Bug, plant};
use gateway_core::shard::Shard;
use parley_protocol::ChatId;
use parley_protocol::frame::{Change, ChatRef, ClientFrame, GroupChange, GroupCreate, Position, ServerFrame};
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::{World, options};

/// Long enough for everything but the slow sweep.
const QUIET_MS: u64 = 20_000;

fn takes_effect(bug: Bug, holds: fn() -> bool) {
    plant(None);
    assert!(holds(), "{bug:?} is not planted");
    plant(Some(bug));
    let held = catch_unwind(AssertUnwindSafe(holds)).unwrap_or(false);
    plant(None);
    assert!(!held, "{bug:?} is planted and nothing shows");
}

fn two(options: &Options) -> (World, u64, u64, ChatId) {
    let mut world = World::new(options, storage_core::Options::default());
    let alice = world.connect("alice", 1, None);
    let bob = world.connect("bob", 2, None);
    let chat = world.direct(alice, bob);
    (world, alice, bob, chat)
}

fn say(world: &mut World, client: u64, chat: ChatId, text: &str) {
    let frame = world.text(chat, text);
    world.say(client, frame);
}

fn numbered(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{name}{n}")).collect()
}

/// What was asked before a cut is done after it, in order.
fn a_cut_loses_nothing() -> bool {
    let (mut world, alice, bob, chat) = two(&options(2));
    say(&mut world, alice, chat, "first");
    world.writer_stopped = true;
    for text in numbered("m", 3) {
        say(&mut world, alice, chat, &text);
    }
    (0..2).for_each(|shard| world.cut_link(0, shard));
    world.writer_stopped = false;
    world.sleep(QUIET_MS);
    world.texts(bob)[1..] == numbered("m", 3) && world.client(alice).sent().len() == 4
}

/// An answer that is lost with its link is made good: once, and at the receiver too.
fn a_lost_answer_is_made_good() -> bool {
    let (mut world, alice, bob, chat) = two(&options(2));
    say(&mut world, alice, chat, "first");
    let frame = world.text(chat, "lost answer");
    world.say_and_lose_the_answer(alice, frame);
    world.sleep(QUIET_MS);
    world.texts(bob) == ["first", "lost answer"]
}

/// Fan-out reaches members on every shard, also what found no room at first.
fn fan_out_reaches_everybody() -> bool {
    let mut world = World::new(&options(3), storage_core::Options::default());
    let clients: Vec<u64> = (0..9).map(|n| world.connect(&format!("user{n}"), n + 1, None)).collect();
    let members = clients[1..].iter().map(|client| world.user(*client)).collect();
    let client_msg_id = world.msg_id();
    world.say(clients[0], ClientFrame::GroupCreate(GroupCreate { client_msg_id, title: String::new(), members }));
    let chat = world.client(clients[0]).sent()[0].chat_id;
    say(&mut world, clients[0], chat, "with room");
    world.gateways[0].fanout_room = 0;
    say(&mut world, clients[0], chat, "without room");
    world.gateways[0].fanout_room = usize::MAX;
    world.sleep(QUIET_MS);
    clients.iter().all(|client| world.texts(*client) == ["with room", "without room"])
}

/// A device that comes back gets what it missed, page by page, and a mark that says so.
fn a_device_comes_back() -> bool {
    let (mut world, alice, bob, chat) = two(&Options { inbox_reads_max: 1, ..options(2) });
    say(&mut world, alice, chat, "before");
    world.sleep(2_100);
    let mark = world.client(bob).mark();
    world.drop_client(bob);
    for text in numbered("away", 600) {
        say(&mut world, alice, chat, &text);
    }
    let back = world.connect("bob", 2, mark);
    world.sleep(QUIET_MS);
    world.texts(back) == numbered("away", 600) && world.client(back).mark() == Some(601)
}

/// A backlog that is too long is told to be truncated.
fn a_long_backlog_is_truncated() -> bool {
    let (mut world, alice, bob, chat) = two(&Options { sync_backlog_max: 10, ..options(2) });
    world.drop_client(bob);
    for text in numbered("away", 20) {
        say(&mut world, alice, chat, &text);
    }
    let back = world.connect("bob", 2, Some(0));
    world.sleep(QUIET_MS);
    world.client(back).frames.iter().any(|frame| matches!(frame, ServerFrame::Truncated(it) if it.mark == 20))
}

/// Narrow queues park a sender, and let it go on.
fn narrow_queues_lose_nothing() -> bool {
    // Chats with several users have homes on several shards.
    let narrow = Options { mesh_requests_max: 2, requests_in_flight_max: 4, ..options(3) };
    let mut world = World::new(&narrow, storage_core::Options::default());
    let alice = world.connect("alice", 1, None);
    let peers: Vec<u64> = (0..6).map(|n| world.connect(&format!("user{n}"), n + 2, None)).collect();
    world.writer_stopped = true;
    for text in numbered("m", 10) {
        for peer in &peers {
            let chat = world.direct(alice, *peer);
            let frame = world.text(chat, &text);
            world.say_quietly(alice, frame);
        }
    }
    world.settle();
    world.writer_stopped = false;
    world.sleep(QUIET_MS);
    world.client(alice).sent().len() == 60
}

/// A gateway that was replaced ends and closes its sessions.
fn who_is_replaced_ends() -> bool {
    let (mut world, alice, _, chat) = two(&options(2));
    say(&mut world, alice, chat, "first");
    world.gateways[0].stopped = true;
    world.add_gateway(&options(2));
    world.sleep(500);
    world.gateways[0].stopped = false;
    world.sleep(5_000);
    world.gateways[0].halted.is_some() && world.client(alice).closed == Some(4003)
}

/// Who is no member is not subscribed.
fn a_stranger_is_refused() -> bool {
    let (mut world, alice, _, chat) = two(&options(3));
    let carol = world.connect("carol", 4, None);
    say(&mut world, alice, chat, "first");
    world.say(carol, ClientFrame::Subscribe(ChatRef { chat_id: chat }));
    say(&mut world, alice, chat, "not for carol");
    world.sleep(1_000);
    world.texts(carol).is_empty()
}

/// A group of `members` users beside the first, with an inbox limit.
fn group(options: &Options, members: u128, limit: usize) -> (World, ChatId, Vec<u64>) {
    let writer = storage_core::Options { inbox_fanout_members_max: limit, ..storage_core::Options::default() };
    let mut world = World::new(options, writer);
    let clients: Vec<u64> = (0..=members).map(|n| world.connect(&format!("user{n}"), n + 1, None)).collect();
    let members = clients[1..].iter().map(|client| world.user(*client)).collect();
    let client_msg_id = world.msg_id();
    world.say(clients[0], ClientFrame::GroupCreate(GroupCreate { client_msg_id, title: String::new(), members }));
    let chat_id = world.client(clients[0]).sent()[0].chat_id;
    (world, chat_id, clients)
}

/// A subscriber of a large chat gets each event once.
fn a_subscriber_is_told_once() -> bool {
    let (mut world, chat_id, clients) = group(&options(3), 6, 4);
    world.say(clients[1], ClientFrame::Subscribe(ChatRef { chat_id }));
    say(&mut world, clients[0], chat_id, "once");
    world.sleep(1_000);
    world.texts(clients[1]) == ["once"]
}

/// Receipts go to those who are members, and to nobody else.
fn receipts_are_for_members() -> bool {
    let (mut world, chat_id, clients) = group(&options(3), 3, 100);
    let users = vec![world.user(clients[1])];
    let client_msg_id = world.msg_id();
    let remove = GroupChange { chat_id, client_msg_id, change: Change::Remove { users } };
    world.say(clients[0], ClientFrame::GroupChange(remove));
    say(&mut world, clients[0], chat_id, "read me");
    world.say(clients[2], ClientFrame::Read(Position { chat_id, seq: 3 }));
    world.sleep(3_000);
    let mut receipts = |client: u64| {
        world.client(client).frames.iter().filter(|frame| matches!(frame, ServerFrame::Receipt(_))).count()
    };
    (receipts(clients[1]), receipts(clients[3])) == (0, 1)
}

/// Without room to hold it, what is ahead of a hole is dropped, and read later.
fn no_more_is_held_than_may_be() -> bool {
    let (mut world, chat_id, clients) = group(&Options { held_items_max: 0, ..options(3) }, 6, 100);
    world.gateways[0].fanout_room = 0;
    say(&mut world, clients[0], chat_id, "without room");
    world.gateways[0].fanout_room = usize::MAX;
    say(&mut world, clients[0], chat_id, "ahead");
    world.sleep(QUIET_MS);
    let count = |of: fn(&Shard) -> u64| world.gateways[0].shards.iter().map(of).sum::<u64>();
    let held = count(|shard| shard.stats.entries_held_total);
    let dropped = count(|shard| shard.stats.entries_dropped_total);
    clients.iter().all(|client| world.texts(*client) == ["without room", "ahead"]) && held == 0 && dropped > 0
}

/// A device that missed little goes on where it was.
fn a_short_backlog_is_sent() -> bool {
    let (mut world, alice, bob, chat) = two(&options(2));
    say(&mut world, alice, chat, "before");
    world.sleep(2_100);
    let mark = world.client(bob).mark();
    world.drop_client(bob);
    say(&mut world, alice, chat, "away");
    let back = world.connect("bob", 2, mark);
    world.sleep(QUIET_MS);
    world.texts(back) == ["away"]
}

/// A mark that says that a device has caught up has the head of its inbox.
fn a_mark_knows_the_head() -> bool {
    let (mut world, alice, bob, chat) = two(&options(2));
    say(&mut world, alice, chat, "one");
    world.sleep(QUIET_MS);
    let mut marks = world.client(bob).frames.iter().filter_map(|frame| match frame {
        ServerFrame::Mark(mark) => Some((mark.inbox_seq, mark.head)),
        _ => None,
    });
    marks.next_back() == Some((1, 1))
}

/// A change that was asked for before a cut is done after it, and nobody says that it is refused.
fn a_cut_refuses_no_change() -> bool {
    let (mut world, chat_id, clients) = group(&options(2), 2, 100);
    // So that the chat's home is loaded.
    say(&mut world, clients[0], chat_id, "first");
    let client_msg_id = world.msg_id();
    world.writer_stopped = true;
    let change = Change::Rename { title: "kept".to_owned() };
    world.say(clients[0], ClientFrame::GroupChange(GroupChange { chat_id, client_msg_id, change }));
    (0..2).for_each(|shard| world.cut_link(0, shard));
    world.writer_stopped = false;
    world.sleep(QUIET_MS);
    world.client(clients[0]).sent().len() == 3
}

#[test]
fn bugs_of_links_take_effect() {
    takes_effect(Bug::ChangeGuessed, a_cut_refuses_no_change);
    for bug in [Bug::NotResent, Bug::ResentOutOfOrder, Bug::OutcomeGuessed, Bug::ResentBare] {
        takes_effect(bug, a_cut_loses_nothing);
    }
    for bug in [Bug::ResentChanged, Bug::NoNudgeAtAll] {
        takes_effect(bug, a_lost_answer_is_made_good);
    }
    takes_effect(Bug::FencedLivesOn, who_is_replaced_ends);
}

#[test]
fn bugs_of_fan_out_take_effect() {
    for bug in [Bug::OverflowUntold, Bug::FanOutSkipsAShard, Bug::NoNudgeAtAll] {
        takes_effect(bug, fan_out_reaches_everybody);
    }
    takes_effect(Bug::StrangersSubscribe, a_stranger_is_refused);
    takes_effect(Bug::LiveTwice, a_subscriber_is_told_once);
    takes_effect(Bug::ReceiptsToFormerMembers, receipts_are_for_members);
}

#[test]
fn bugs_of_streams_take_effect() {
    for bug in [Bug::StartsAtTheHead, Bug::AttachUnread, Bug::PageMovesToTheHead, Bug::NoMarks, Bug::ReadSlotLeaked] {
        takes_effect(bug, a_device_comes_back);
    }
    takes_effect(Bug::TruncationUntold, a_long_backlog_is_truncated);
    takes_effect(Bug::HeldUnbounded, no_more_is_held_than_may_be);
    takes_effect(Bug::HeadIsNextNumber, a_mark_knows_the_head);
    takes_effect(Bug::TruncatesNeedlessly, a_short_backlog_is_sent);
}

#[test]
fn bugs_of_queues_take_effect() {
    for bug in [Bug::CreditNotReturned, Bug::ParkedNeverResumed] {
        takes_effect(bug, narrow_queues_lose_nothing);
    }
}
