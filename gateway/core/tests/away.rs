//! No storage-writer is active for longer than clients are made to wait: what no writer heard of is refused, to be sent
//! again, what one may have heard of waits for its outcome, and all of it goes on by itself.

mod world;

use gateway_core::options::Options;
use parley_protocol::frame::{self, ClientFrame, Error, Position, ServerFrame};
use parley_protocol::{ChatId, ClientMsgId, ErrorCode, close};
use world::{World, options};

const REFUSE_AFTER_MS: u64 = 2_000;

fn two(options: &Options) -> (World, u64, u64, ChatId) {
    let mut world = World::new(options, storage_core::Options::default());
    let alice = world.connect("alice", 1, None);
    let bob = world.connect("bob", 2, None);
    let chat = world.direct(alice, bob);
    say(&mut world, alice, chat, "first");
    assert_eq!(world.client(alice).sent().len(), 1);
    // What was armed at the start is over.
    world.sleep(2 * REFUSE_AFTER_MS);
    (world, alice, bob, chat)
}

/// Says something, and gives what was said for a retry.
fn say(world: &mut World, client: u64, chat: ChatId, text: &str) -> ClientFrame {
    let frame = world.text(chat, text);
    world.say(client, frame.clone());
    frame
}

fn name(frame: &ClientFrame) -> ClientMsgId {
    let ClientFrame::Send(send) = frame else { panic!("a message") };
    send.client_msg_id
}

fn errors(world: &mut World, client: u64) -> Vec<Error> {
    let error = |frame: &ServerFrame| match frame {
        ServerFrame::Error(error) => Some(error.clone()),
        _ => None,
    };
    world.client(client).frames.iter().filter_map(error).collect()
}

/// The commands that a client was told to send again, in this order.
fn refused(world: &mut World, client: u64) -> Vec<ClientMsgId> {
    let errors = errors(world, client);
    assert!(errors.iter().all(|error| error.code == ErrorCode::Unavailable && error.retry_after_ms.is_some()));
    errors.into_iter().filter_map(|error| error.client_msg_id).collect()
}

fn is_back(world: &mut World) {
    world.writer_away = false;
    world.writer_stopped = false;
    world.sleep(5_000);
}

#[test]
fn what_was_sent_waits_and_what_was_not_is_refused_and_sent_again() {
    for shards in [1, 2] {
        let (mut world, alice, bob, chat) = two(&options(shards));
        world.writer_stopped = true;
        say(&mut world, alice, chat, "sent before");
        world.lose_the_writer(0);
        let queued = say(&mut world, alice, chat, "queued");
        world.sleep(REFUSE_AFTER_MS - 100);
        assert_eq!(refused(&mut world, alice), [], "a short absence is not told");
        world.sleep(200);
        assert_eq!(refused(&mut world, alice), [name(&queued)], "what was sent has an outcome that nobody knows");
        let later = say(&mut world, alice, chat, "later");
        assert_eq!(refused(&mut world, alice), [name(&queued), name(&later)], "at once");
        is_back(&mut world);
        assert_eq!(world.texts(bob), ["first", "sent before"], "what is refused never takes effect");
        assert_eq!(world.client(alice).sent().len(), 2);
        world.say(alice, queued);
        world.say(alice, later);
        assert_eq!(world.texts(bob), ["first", "sent before", "queued", "later"]);
        assert_eq!(world.client(alice).sent().iter().map(|sent| sent.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(errors(&mut world, alice).len(), 2);
    }
}

#[test]
fn what_the_window_held_back_was_not_sent() {
    let (mut world, alice, bob, chat) = two(&Options { link_window: 1, ..options(1) });
    world.writer_stopped = true;
    say(&mut world, alice, chat, "in the window");
    let held = say(&mut world, alice, chat, "behind it");
    world.lose_the_writer(0);
    world.sleep(REFUSE_AFTER_MS + 100);
    assert_eq!(refused(&mut world, alice), [name(&held)]);
    is_back(&mut world);
    assert_eq!(world.texts(bob), ["first", "in the window"]);
}

/// The home of the chat waits for its members, which were asked for; the command was not.
#[test]
fn what_waits_for_a_chat_home_was_not_sent() {
    let (mut world, alice, _, _) = two(&options(2));
    let carol = world.connect("carol", 3, None);
    let chat = world.direct(alice, carol);
    world.writer_stopped = true;
    let waiting = say(&mut world, alice, chat, "waiting");
    world.lose_the_writer(0);
    world.sleep(REFUSE_AFTER_MS + 100);
    assert_eq!(refused(&mut world, alice), [name(&waiting)]);
    let later = say(&mut world, alice, chat, "later");
    assert_eq!(refused(&mut world, alice), [name(&waiting), name(&later)]);
    is_back(&mut world);
    assert_eq!(world.texts(carol), [""; 0]);
    world.say(alice, waiting);
    assert_eq!(world.texts(carol), ["waiting"]);
}

#[test]
fn reads_and_logins_are_told_to_come_back_and_marks_wait() {
    let (mut world, alice, bob, chat) = two(&options(2));
    world.lose_the_writer(0);
    world.sleep(REFUSE_AFTER_MS + 100);
    let history = frame::History { request_id: 7, chat_id: chat, before: None, after: None, limit: 0 };
    world.say(alice, ClientFrame::History(history));
    let errors = errors(&mut world, alice);
    assert_eq!(
        errors.iter().map(|error| (error.code, error.request_id)).collect::<Vec<_>>(),
        [(ErrorCode::Unavailable, Some(7))]
    );
    let carol = world.connect("carol", 3, None);
    assert_eq!(world.client(carol).closed, Some(close::RETRY_LATER));
    world.say(bob, ClientFrame::Read(Position { chat_id: chat, seq: 1 }));
    is_back(&mut world);
    assert_eq!(world.client(bob).errors(), []);
    let is_read = |frame: &ServerFrame| matches!(frame, ServerFrame::Own(own) if own.read_seq == 1);
    assert!(world.client(bob).frames.iter().any(is_read), "marks that a home has are not lost");
    world.say(alice, ClientFrame::History(history));
    let is_page = |frame: &ServerFrame| matches!(frame, ServerFrame::HistoryPage(page) if page.events.len() == 1);
    assert!(world.client(alice).frames.iter().any(is_page));
    let carol = world.connect("carol", 3, None);
    world.user(carol);
}

/// Each absence is counted from its own beginning.
#[test]
fn short_absences_do_not_add_up() {
    let (mut world, alice, bob, chat) = two(&options(1));
    for _ in 0..4 {
        world.lose_the_writer(0);
        world.sleep(REFUSE_AFTER_MS * 2 / 3);
        say(&mut world, alice, chat, "again");
        world.writer_away = false;
        world.sleep(1_000);
    }
    assert_eq!(refused(&mut world, alice), []);
    assert_eq!(world.texts(bob).len(), 5);
}
