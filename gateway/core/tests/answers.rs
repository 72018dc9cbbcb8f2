//! What a chat home makes of answers that leave it in doubt: a command that failed after it was resent, and marks that the
//! log did not take. The test answers in the writer's place where the writer would need a bad day for it.

mod world;

use parley_protocol::frame::{Change, ChatRef, ClientFrame, GroupChange, GroupCreate, Mute, Position, ServerFrame};
use parley_protocol::link::{Ask, Marked, Reply, Request};
use parley_protocol::{ChatId, ErrorCode, event};
use std::cell::RefCell;
use std::rc::Rc;
use world::{World, options};

/// The requests that reached the writer, of one kind.
#[derive(Clone, Default)]
struct Seen(Rc<RefCell<Vec<Ask>>>);

impl Seen {
    fn count(&self, kind: fn(&Ask) -> bool) -> usize {
        self.0.borrow().iter().filter(|ask| kind(ask)).count()
    }
}

/// Watches what reaches the writer; a request that `answer` has a reply for gets that one and never arrives.
fn watch(world: &mut World, mut answer: impl FnMut(&Ask) -> Option<Reply> + 'static) -> Seen {
    let seen = Seen::default();
    let noted = seen.clone();
    world.answers_for_the_writer = Some(Box::new(move |request: &Request| {
        noted.0.borrow_mut().push(request.ask.clone());
        answer(&request.ask)
    }));
    seen
}

/// Only the first request that `answer` has a reply for gets one.
fn once(answer: fn(&Ask) -> Option<Reply>) -> impl FnMut(&Ask) -> Option<Reply> {
    let mut answered = false;
    move |ask| {
        let reply = if answered { None } else { answer(ask) };
        answered |= reply.is_some();
        reply
    }
}

fn is_load(ask: &Ask) -> bool {
    matches!(ask, Ask::LoadChat { .. })
}

fn is_marks(ask: &Ask) -> bool {
    matches!(ask, Ask::Marks { .. })
}

/// What a writer answers that does not know the events of a mark durable yet: marks as they were.
fn not_taken(ask: &Ask) -> Option<Reply> {
    let Ask::Marks { chat_id, marks } = ask else { return None };
    let own = event::OwnState { chat_id: *chat_id, read_seq: 0, read_ordinal: 0, read_sent: 0, muted_until_ms: 0 };
    let marked = |user_id| Marked { user_id, delivered_seq: 0, own, inbox_seq: None };
    Some(Reply::Marked(marks.iter().map(|mark| marked(mark.user_id)).collect()))
}

fn two() -> (World, u64, u64, ChatId) {
    let mut world = World::new(&options(2), storage_core::Options::default());
    let alice = world.connect("alice", 1, None);
    let bob = world.connect("bob", 2, None);
    let chat = world.direct(alice, bob);
    let frame = world.text(chat, "read me");
    world.say(alice, frame);
    (world, alice, bob, chat)
}

/// What the receipts that reached a client say: delivered and read.
fn receipts(world: &mut World, client: u64) -> Vec<(u64, u64)> {
    let receipt = |frame: &ServerFrame| match frame {
        ServerFrame::Receipt(receipt) => Some((receipt.delivered_seq, receipt.read_seq)),
        _ => None,
    };
    world.client(client).frames.iter().filter_map(receipt).collect()
}

fn own_read(world: &mut World, client: u64, seq: u64) -> bool {
    world.client(client).frames.iter().any(|frame| matches!(frame, ServerFrame::Own(own) if own.read_seq == seq))
}

#[test]
fn a_mark_that_came_before_the_log_knew_its_event_is_asked_for_again() {
    for frame in [ClientFrame::Read, ClientFrame::Delivered] {
        let (mut world, alice, bob, chat_id) = two();
        let seen = watch(&mut world, once(not_taken));
        world.say(bob, frame(Position { chat_id, seq: 1 }));
        world.sleep(10_000);
        assert_eq!(seen.count(is_marks), 2, "not taken, then taken, and no more");
        let read_seq = u64::from(matches!(frame(Position { chat_id, seq: 1 }), ClientFrame::Read(_)));
        assert_eq!(receipts(&mut world, alice), [(1, read_seq)]);
        assert_eq!(own_read(&mut world, bob, 1), read_seq == 1);
        assert!(world.client(bob).errors().is_empty());
    }
}

#[test]
fn a_mark_above_the_head_is_not_asked_for_again() {
    let (mut world, alice, bob, chat_id) = two();
    let seen = watch(&mut world, |_| None);
    // While a command is under way a client may know more than the home, so the log judges.
    world.writer_stopped = true;
    let frame = world.text(chat_id, "under way");
    world.say(alice, frame);
    world.say(bob, ClientFrame::Read(Position { chat_id, seq: 99 }));
    world.writer_stopped = false;
    world.sleep(10_000);
    assert_eq!(world.texts(bob), ["read me", "under way"]);
    assert_eq!(seen.count(is_marks), 1);
    assert!(!own_read(&mut world, bob, 99));
    // And what is right is taken still.
    world.say(bob, ClientFrame::Read(Position { chat_id, seq: 2 }));
    world.sleep(10_000);
    assert!(own_read(&mut world, bob, 2));
    assert_eq!(seen.count(is_marks), 2);
}

#[test]
fn a_mark_that_is_answered_while_its_home_is_loaded_again_is_asked_for_again() {
    for frame in [ClientFrame::Read, ClientFrame::Delivered] {
        let (mut world, alice, bob, chat_id) = two();
        let second = world.text(chat_id, "and me");
        world.say_and_lose_the_answer(alice, second);
        // The second message is durable, which the home does not know; both requests leave with the next link.
        world.writer_stopped = true;
        world.say(bob, frame(Position { chat_id, seq: 2 }));
        // A writer that knows nothing of it: the home is loaded again when the answer to the mark comes.
        let (mut command, mut marks) = (once(failed), once(not_taken));
        let seen = watch(&mut world, move |ask| command(ask).or_else(|| marks(ask)));
        world.writer_stopped = false;
        world.sleep(10_000);
        let of_the_chat = |ask: &&Ask| is_command(ask) || is_load(ask) || is_marks(ask);
        let order: Vec<bool> = seen.0.borrow().iter().filter(of_the_chat).map(is_marks).collect();
        assert_eq!(order, [false, true, false, true], "the command, the mark, the load, the mark again");
        assert_eq!(seen.count(is_load), 1);
        let read_seq = if matches!(frame(Position { chat_id, seq: 2 }), ClientFrame::Read(_)) { 2 } else { 0 };
        assert_eq!(receipts(&mut world, alice), [(2, read_seq)]);
        assert_eq!(own_read(&mut world, bob, 2), read_seq == 2);
        assert!(world.client(bob).errors().is_empty());
    }
}

/// Time for whoever is nudged to read, far below the sweep, which would find it too.
const SOON_MS: u64 = 5_000;

fn is_mute(ask: &Ask) -> bool {
    matches!(ask, Ask::Mute { .. })
}

fn is_command(ask: &Ask) -> bool {
    matches!(ask, Ask::Command(_))
}

#[test]
fn the_answer_to_a_resent_mark_nudges_the_other_devices() {
    let (mut world, _, bob, chat_id) = two();
    let tablet = world.connect("bob", 3, None);
    let seen = watch(&mut world, |_| None);
    world.say_and_make_durable_late(bob, ClientFrame::Read(Position { chat_id, seq: 1 }));
    world.sleep(SOON_MS);
    assert_eq!(seen.count(is_marks), 2, "sent on both links");
    assert!(own_read(&mut world, tablet, 1));
    assert!(own_read(&mut world, bob, 1));
}

#[test]
fn the_answer_to_a_resent_mute_nudges_the_other_devices() {
    let (mut world, _, bob, chat_id) = two();
    let tablet = world.connect("bob", 3, None);
    let seen = watch(&mut world, |_| None);
    let until_ms = 1_900_000_000_000;
    world.say_and_make_durable_late(bob, ClientFrame::Mute(Mute { chat_id, until_ms }));
    world.sleep(SOON_MS);
    assert_eq!(seen.count(is_mute), 2, "sent on both links");
    let muted = |frame: &ServerFrame| matches!(frame, ServerFrame::Own(own) if own.muted_until_ms == until_ms);
    assert!(world.client(tablet).frames.iter().any(muted));
}

/// The own states that reached a client: read up to, muted until.
fn owns(world: &mut World, client: u64) -> Vec<(u64, u64)> {
    let own = |frame: &ServerFrame| match frame {
        ServerFrame::Own(own) => Some((own.read_seq, own.muted_until_ms)),
        _ => None,
    };
    world.client(client).frames.iter().filter_map(own).collect()
}

#[test]
fn a_mute_that_changes_nothing_says_nothing_beside_the_stream() {
    let (mut world, _, bob, chat_id) = two();
    let until_ms = 1_900_000_000_000;
    let mute = |until_ms| ClientFrame::Mute(Mute { chat_id, until_ms });
    world.say(bob, mute(until_ms));
    world.sleep(SOON_MS);
    assert_eq!(owns(&mut world, bob), [(0, until_ms)]);
    world.say(bob, mute(0));
    world.sleep(SOON_MS);
    // A writer that judged a second mute before that, when it changed nothing; its answer comes only now.
    let own = event::OwnState { chat_id, read_seq: 0, read_ordinal: 0, read_sent: 0, muted_until_ms: until_ms };
    let user_id = world.user(bob);
    let old = move |ask: &Ask| {
        let marked = Marked { user_id, delivered_seq: 0, own, inbox_seq: None };
        is_mute(ask).then(|| Reply::Marked(vec![marked]))
    };
    let seen = watch(&mut world, old);
    world.say(bob, mute(until_ms));
    world.sleep(SOON_MS);
    assert_eq!(seen.count(is_mute), 1);
    assert_eq!(owns(&mut world, bob), [(0, until_ms), (0, 0)], "the newest is the last");
    assert!(world.client(bob).errors().is_empty());
    // Nothing is owed: the next request is served.
    world.answers_for_the_writer = None;
    world.say(bob, mute(1));
    world.sleep(SOON_MS);
    assert_eq!(owns(&mut world, bob).last(), Some(&(0, 1)));
}

#[test]
fn the_answer_to_a_resent_creation_nudges_its_members() {
    let (mut world, alice, bob, _) = two();
    let seen = watch(&mut world, |_| None);
    let (client_msg_id, members) = (world.msg_id(), vec![world.user(bob)]);
    let create = GroupCreate { client_msg_id, title: "ours".to_owned(), members };
    world.say_and_make_durable_late(alice, ClientFrame::GroupCreate(create));
    world.sleep(SOON_MS);
    assert_eq!(seen.count(is_command), 2, "sent on both links");
    let sent = world.client(alice).sent();
    let group = sent.last().expect("told").chat_id;
    for member in [alice, bob] {
        let of_it = |frame: &ServerFrame| matches!(frame, ServerFrame::Event(event) if event.chat_id == group);
        assert!(world.client(member).frames.iter().any(of_it));
    }
}

/// A group above the inbox limit; somebody looks at it.
fn large_group() -> (World, ChatId, Vec<u64>) {
    let writer = storage_core::Options { inbox_fanout_members_max: 4, ..storage_core::Options::default() };
    let mut world = World::new(&options(3), writer);
    let clients: Vec<u64> = (0..7).map(|n| world.connect(&format!("user{n}"), n + 1, None)).collect();
    let members = clients[1..].iter().map(|client| world.user(*client)).collect();
    let client_msg_id = world.msg_id();
    world.say(clients[0], ClientFrame::GroupCreate(GroupCreate { client_msg_id, title: String::new(), members }));
    let chat_id = world.client(clients[0]).sent()[0].chat_id;
    world.say(clients[1], ClientFrame::Subscribe(ChatRef { chat_id }));
    (world, chat_id, clients)
}

fn removal(world: &mut World, chat_id: ChatId, client: u64) -> ClientFrame {
    let users = vec![world.user(client)];
    let client_msg_id = world.msg_id();
    ClientFrame::GroupChange(GroupChange { chat_id, client_msg_id, change: Change::Remove { users } })
}

fn failed(ask: &Ask) -> Option<Reply> {
    is_command(ask).then_some(Reply::Failed)
}

#[test]
fn a_command_that_failed_after_a_resend_may_have_been_done() {
    let (mut world, chat_id, clients) = large_group();
    let frame = removal(&mut world, chat_id, clients[1]);
    world.say_and_lose_the_answer(clients[0], frame);
    // The writer takes nothing now, and answers without having looked whether the first one was done.
    let seen = watch(&mut world, once(failed));
    world.sleep(5_000);
    assert_eq!(world.client(clients[0]).errors(), [ErrorCode::Unavailable]);
    assert_eq!(seen.count(is_load), 1, "the home looks who its members are");
    let secret = world.text(chat_id, "secret");
    world.say(clients[0], secret);
    world.sleep(3_000);
    assert!(world.texts(clients[1]).is_empty(), "who was removed hears nothing more");
    world.say(clients[1], ClientFrame::Subscribe(ChatRef { chat_id }));
    assert_eq!(world.client(clients[1]).errors(), [ErrorCode::NoSuchChat]);
}

#[test]
fn a_command_that_failed_at_once_was_not_done() {
    let (mut world, chat_id, clients) = large_group();
    let seen = watch(&mut world, once(failed));
    let frame = removal(&mut world, chat_id, clients[1]);
    world.say(clients[0], frame);
    world.sleep(5_000);
    assert_eq!(world.client(clients[0]).errors(), [ErrorCode::Unavailable]);
    assert_eq!(seen.count(is_load), 0, "nothing is in doubt");
    let still = world.text(chat_id, "still together");
    world.say(clients[0], still);
    assert_eq!(world.texts(clients[1]), ["still together"]);
}
