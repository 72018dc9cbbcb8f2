//! Delivered and read marks only rise, carry what the log says at their `seq`, and tell one's own devices.

mod common;

use common::{Scripted, World, defaults};
use parley_protocol::link::{Ask, MarkUpdate, Reply};
use parley_protocol::{ChatId, ErrorCode, UserId};
use storage_core::model::Model;
use storage_core::store::{Outcome, StoreRequest};

fn direct() -> (World<Scripted>, Vec<UserId>, ChatId) {
    let mut world = defaults();
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    (world, users, chat)
}

#[test]
fn marks_only_rise_and_read_is_delivered() {
    let (mut world, users, chat) = direct();
    for _ in 0..5 {
        world.send(chat, users[0], "x");
    }
    let marked = world.mark(chat, users[1], 3, 0);
    assert_eq!((marked.delivered_seq, marked.own.read_seq, marked.inbox_seq), (3, 0, None));
    let marked = world.mark(chat, users[1], 0, 4);
    assert_eq!((marked.delivered_seq, marked.own.read_seq, marked.inbox_seq), (4, 4, Some(6)));
    let marked = world.mark(chat, users[1], 2, 1);
    assert_eq!((marked.delivered_seq, marked.own.read_seq, marked.inbox_seq), (4, 4, None));
    let marked = world.mark(chat, users[1], 99, 99);
    assert_eq!((marked.delivered_seq, marked.own.read_seq), (4, 4), "above the head is ignored");
    assert_eq!(world.unread(chat, users[1]), 1);
    assert_eq!(world.unread(chat, users[0]), 0, "one's own messages are not unread");
}

#[test]
fn a_mark_says_what_the_log_says_at_its_seq() {
    let (mut world, users, chat) = direct();
    for sender in [0, 1, 1, 0, 1] {
        world.send(chat, users[sender], "x");
    }
    let expected = [(1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 4, 2), (5, 5, 2)];
    for (seq, ordinal, sent) in expected {
        let own = world.mark(chat, users[0], 0, seq).own;
        assert_eq!((own.read_seq, own.read_ordinal, own.read_sent), (seq, ordinal, sent));
    }
}

#[test]
fn a_group_counts_over_the_shorter_side() {
    let mut world = defaults();
    let users = world.users(3);
    let group = world.group(users[0], &users[1..], "");
    for at in 0..40 {
        world.send(group, users[at % 3], "x");
    }
    for (read_seq, from, to) in [(5, 1, 5), (39, 40, 41)] {
        world.store.hold_loads = true;
        let marks = vec![MarkUpdate { user_id: users[1], delivered_seq: 0, read_seq }];
        let no = world.put(1, Ask::Marks { chat_id: group, marks });
        world.run();
        let count = StoreRequest::CountMessages { chat_id: group, sender: users[1], from, to };
        assert!(world.store.loads.iter().any(|(_, load)| *load == count), "{:?}", world.store.loads);
        world.store.release_loads();
        world.run();
        let Some(Reply::Marked(marked)) = world.reply(no) else { panic!() };
        let own = marked[0].own;
        let events = world.store.model.state.chats[&group].events.range(..=read_seq);
        let sent = events.filter(|(_, event)| event.sender == users[1]).count() as u64;
        assert_eq!((own.read_seq, own.read_ordinal, own.read_sent), (read_seq, read_seq - 1, sent));
    }
}

#[test]
fn nobody_has_read_what_is_not_durable() {
    let (mut world, users, chat) = direct();
    world.send(chat, users[0], "durable");
    world.store.manual = true;
    let ask = world.send_ask(chat, users[0], "in flight");
    world.put(1, ask);
    world.run();
    let marks = vec![MarkUpdate { user_id: users[1], delivered_seq: 2, read_seq: 2 }];
    let early = world.put(1, Ask::Marks { chat_id: chat, marks: marks.clone() });
    world.run();
    world.store.answer(Outcome::Durable);
    world.run();
    let Some(Reply::Marked(marked)) = world.reply(early) else { panic!() };
    assert_eq!((marked[0].delivered_seq, marked[0].own.read_seq), (0, 0));
    world.store.manual = false;
    assert_eq!(world.mark(chat, users[1], 2, 2).own.read_ordinal, 2);
}

#[test]
fn who_is_not_a_member_is_left_out() {
    let (mut world, users, chat) = direct();
    world.send(chat, users[0], "x");
    let mark = |user_id| MarkUpdate { user_id, delivered_seq: 1, read_seq: 1 };
    let Reply::Marked(marked) = world.ask(Ask::Marks { chat_id: chat, marks: vec![mark(UserId(9)), mark(users[1])] })
    else {
        panic!()
    };
    assert_eq!(marked.iter().map(|one| one.user_id).collect::<Vec<_>>(), vec![users[1]]);
}

#[test]
fn a_mute_tells_the_own_devices_and_lasts() {
    let (mut world, users, chat) = direct();
    let mute = |until_ms| Ask::Mute { chat_id: chat, user_id: users[0], until_ms };
    assert_eq!(world.ask(mute(7)), Reply::Refused(ErrorCode::NoSuchChat), "nobody wrote in it yet");
    world.send(chat, users[0], "x");
    let Reply::Marked(marked) = world.ask(mute(7)) else { panic!() };
    assert_eq!((marked[0].own.muted_until_ms, marked[0].inbox_seq), (7, Some(2)));
    let Reply::Marked(marked) = world.ask(mute(7)) else { panic!() };
    assert_eq!(marked[0].inbox_seq, None, "nothing changed");
    let (state, epoch) = (world.store.model.state.clone(), world.epoch);
    let mut world = world.restart(Scripted { model: Model::open(state), ..Scripted::default() });
    world.epoch = epoch;
    world.open_link(1);
    assert_eq!(world.mark(chat, users[0], 1, 1).own.muted_until_ms, 7);
    let stranger = Ask::Mute { chat_id: chat, user_id: UserId(5), until_ms: 7 };
    assert_eq!(world.ask(stranger), Reply::Refused(ErrorCode::NoSuchChat));
}

#[test]
fn delivered_marks_of_one_group_are_one_write() {
    let (mut world, users, chat) = direct();
    for _ in 0..3 {
        world.send(chat, users[0], "x");
    }
    world.store.manual = true;
    for delivered_seq in 1..=3 {
        let marks = vec![MarkUpdate { user_id: users[1], delivered_seq, read_seq: 0 }];
        world.put(1, Ask::Marks { chat_id: chat, marks });
    }
    world.run();
    let group = world.store.answer(Outcome::Durable);
    assert_eq!(group.marks.len(), 1);
    assert_eq!(group.marks[0].row.delivered_seq, 3);
}
