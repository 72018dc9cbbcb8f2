//! Reads over what is confirmed: inbox pages, history inside one's intervals, the chat list, members, and damage.

mod common;

use common::{Scripted, World, defaults, one};
use parley_protocol::frame::{Change, ChatSummary};
use parley_protocol::link::{Ask, InboxEntry, InboxPage, Reply};
use parley_protocol::{ChatId, ErrorCode, Role, UserId, limits};
use storage_core::Options;

fn inbox(world: &World<Scripted>, user_id: UserId, after: u64, limit: u32) -> InboxPage {
    match world.read(&Ask::Inbox { user_id, after, limit }) {
        Reply::Inbox(page) => page,
        other => panic!("{other:?}"),
    }
}

fn history(
    world: &World<Scripted>,
    user_id: UserId,
    chat_id: ChatId,
    (before, after): (Option<u64>, Option<u64>),
    limit: u32,
) -> (Vec<u64>, bool) {
    match world.read(&Ask::History { user_id, chat_id, before, after, limit }) {
        Reply::History { events, more } => (events.iter().map(|event| event.seq).collect(), more),
        other => panic!("{other:?}"),
    }
}

fn chats(world: &World<Scripted>, user_id: UserId, after: Option<ChatId>, limit: u32) -> (Vec<ChatSummary>, bool) {
    match world.read(&Ask::Chats { user_id, after, limit }) {
        Reply::Chats { chats, more } => (chats, more),
        other => panic!("{other:?}"),
    }
}

fn talk(count: usize) -> (World<Scripted>, Vec<UserId>, ChatId) {
    let mut world = defaults();
    let users = world.users(3);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    for at in 0..count {
        world.send(chat, users[at % 2], &format!("{at}"));
    }
    (world, users, chat)
}

#[test]
fn a_page_begins_where_it_is_asked_to_and_covers_every_number() {
    let (world, users, _) = talk(10);
    let page = inbox(&world, users[0], 3, 4);
    assert_eq!((page.after, page.to, page.head, page.entries.len()), (3, 7, 10, 4));
    assert!(matches!(&page.entries[0], InboxEntry::Event(event) if event.seq == 4));
    let page = inbox(&world, users[0], 7, 100);
    assert_eq!((page.to, page.entries.len()), (10, 3));
    for (after, limit) in [(10, 5), (11, 5), (2, 0), (u64::MAX, 9)] {
        let page = inbox(&world, users[0], after, limit);
        assert_eq!((page.after, page.to, page.head, page.entries.len()), (after, after, 10, 0));
    }
    let page = inbox(&world, UserId(5), 0, 10);
    assert_eq!((page.to, page.head), (0, 0), "nobody has an empty inbox");
}

#[test]
fn a_backlog_above_the_limit_gives_the_head_only() {
    let mut world = common::world(Options { sync_backlog_max: 5, ..Options::default() });
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    for _ in 0..6 {
        world.send(chat, users[0], "x");
    }
    let page = inbox(&world, users[0], 0, 10);
    assert_eq!((page.to, page.head, page.entries.len()), (0, 6, 0));
    assert_eq!(inbox(&world, users[0], 1, 10).entries.len(), 5);
}

#[test]
fn superseded_own_state_comes_as_an_empty_entry() {
    let (mut world, users, chat) = talk(3);
    world.mark(chat, users[0], 0, 1);
    world.mark(chat, users[0], 0, 2);
    world.ask(Ask::Mute { chat_id: chat, user_id: users[0], until_ms: 9 });
    let page = inbox(&world, users[0], 3, 10);
    assert_eq!(page.entries[..2], [InboxEntry::Empty, InboxEntry::Empty]);
    let InboxEntry::Own(own) = page.entries[2] else { panic!("{page:?}") };
    assert_eq!((own.chat_id, own.read_seq, own.read_sent, own.muted_until_ms), (chat, 2, 1, 9));
    assert!(matches!(inbox(&world, users[0], 3, 1).entries[..], [InboxEntry::Own(own)] if own.read_seq == 2));
}

#[test]
fn a_page_stops_at_its_bytes_and_holds_at_least_one() {
    let mut world = common::world(Options { payload_bytes_max: limits::PAYLOAD_BYTES_MAX, ..Options::default() });
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    for bytes in [limits::PAYLOAD_BYTES_MAX, 100_000, 100_000, 100_000] {
        world.send(chat, users[0], &"x".repeat(bytes));
    }
    assert_eq!(inbox(&world, users[1], 0, 10).to, 1);
    assert_eq!(inbox(&world, users[1], 1, 10).to, 3);
    assert_eq!(history(&world, users[1], chat, (None, Some(0)), 10), (vec![1], true));
    assert_eq!(history(&world, users[1], chat, (None, None), 10), (vec![3, 4], true));
    assert_eq!(history(&world, users[1], chat, (Some(3), None), 10), (vec![2], true));
}

#[test]
fn history_pages_both_ways_and_says_whether_there_is_more() {
    let (world, users, chat) = talk(10);
    let read = |range, limit| history(&world, users[0], chat, range, limit);
    assert_eq!(read((None, None), 3), (vec![8, 9, 10], true));
    assert_eq!(read((Some(8), None), 3), (vec![5, 6, 7], true));
    assert_eq!(read((Some(4), None), 3), (vec![1, 2, 3], false));
    assert_eq!(read((None, Some(0)), 3), (vec![1, 2, 3], true));
    assert_eq!(read((None, Some(7)), 3), (vec![8, 9, 10], false));
    assert_eq!(read((None, Some(10)), 3), (vec![], false));
    assert_eq!(read((Some(1), None), 3), (vec![], false));
    assert_eq!(read((Some(u64::MAX), None), 0), ((1..=10).collect(), false));
    let both = Ask::History { user_id: users[0], chat_id: chat, before: Some(3), after: Some(1), limit: 1 };
    assert_eq!(world.read(&both), Reply::Refused(ErrorCode::BadFrame));
}

#[test]
fn history_is_for_those_who_are_in_it() {
    let (world, users, chat) = talk(2);
    let ask = |user_id, chat_id| Ask::History { user_id, chat_id, before: None, after: None, limit: 0 };
    let refused = Reply::Refused(ErrorCode::NoSuchChat);
    assert_eq!(world.read(&ask(users[2], chat)), refused);
    assert_eq!(world.read(&ask(users[2], ChatId::group(7))), refused);
    let nobody = ChatId::direct(users[0], UserId(5)).unwrap();
    assert_eq!(world.read(&ask(users[0], nobody)), refused);
    let unwritten = ChatId::direct(users[0], users[2]).unwrap();
    assert_eq!(world.read(&ask(users[0], unwritten)), Reply::History { events: Vec::new(), more: false });
    assert_eq!(world.read(&ask(users[1], unwritten)), refused);
}

#[test]
fn history_spans_the_intervals_and_nothing_between_them() {
    let mut world = defaults();
    let users = world.users(2);
    let group = world.group(users[0], &users[1..], "one");
    world.send(group, users[0], "3");
    one(world.change(group, users[0], Change::Remove { users: vec![users[1]] }));
    for _ in 5..8 {
        world.send(group, users[0], "unheard");
    }
    one(world.change(group, users[0], Change::Rename { title: "two".to_owned() }));
    let gone = &chats(&world, users[1], None, 0).0[0];
    assert_eq!((gone.role, gone.head_seq, gone.title.as_str(), gone.unread), (None, 4, "one", 1));
    assert_eq!(gone.last.as_ref().map(|event| event.seq), Some(4));
    one(world.change(group, users[0], Change::Add { users: vec![users[1]] }));
    world.send(group, users[0], "10");
    let read = |range, limit| history(&world, users[1], group, range, limit);
    assert_eq!(read((None, None), 0), (vec![1, 2, 3, 4, 9, 10], false));
    assert_eq!(read((None, None), 3), (vec![4, 9, 10], true));
    assert_eq!(read((None, Some(3)), 2), (vec![4, 9], true));
    assert_eq!(read((None, Some(4)), 2), (vec![9, 10], false));
    assert_eq!(read((Some(9), None), 4), (vec![1, 2, 3, 4], false));
    let back = &chats(&world, users[1], None, 0).0[0];
    assert_eq!((back.role, back.head_seq, back.title.as_str(), back.unread), (Some(Role::Member), 10, "two", 1));
    assert_eq!(back.intervals.len(), 2);
}

#[test]
fn the_chat_list_is_paged_and_complete() {
    let mut world = defaults();
    let users = world.users(6);
    for other in &users[1..] {
        let chat = ChatId::direct(users[0], *other).unwrap();
        world.send(chat, *other, "hello");
        world.send(chat, users[0], "hello back");
    }
    let group = world.group(users[0], &users[1..], "all of us");
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let (page, more) = chats(&world, users[0], after, 4);
        after = page.last().map(|chat| chat.chat_id);
        seen.extend(page);
        if !more {
            break;
        }
    }
    assert_eq!(seen.len(), 6);
    assert!(seen.is_sorted_by(|one, next| one.chat_id < next.chat_id));
    let direct = &seen[0];
    assert_eq!((direct.members, direct.unread, direct.head_seq, direct.title.as_str()), (2, 1, 2, ""));
    let last = seen.last().unwrap();
    assert_eq!((last.chat_id, last.title.as_str(), last.members, last.large), (group, "all of us", 6, false));
    assert_eq!((last.role, last.unread), (Some(Role::Owner), 0));
}

#[test]
fn members_are_those_who_are_in_it_now() {
    let mut world = defaults();
    let users = world.users(6);
    let group = world.group(users[0], &users[1..], "");
    one(world.change(group, users[0], Change::Remove { users: vec![users[2], users[3]] }));
    let page = |user_id, after, limit| match world.read(&Ask::Members { user_id, chat_id: group, after, limit }) {
        Reply::Members { members, more } => Ok((members.iter().map(|one| one.user_id).collect::<Vec<_>>(), more)),
        Reply::Refused(code) => Err(code),
        other => panic!("{other:?}"),
    };
    assert_eq!(page(users[0], None, 0), Ok((vec![users[0], users[1], users[4], users[5]], false)));
    assert_eq!(page(users[0], None, 2), Ok((vec![users[0], users[1]], true)));
    assert_eq!(page(users[0], Some(users[1]), 2), Ok((vec![users[4], users[5]], false)));
    assert_eq!(page(users[2], None, 0), Err(ErrorCode::NoSuchChat));
    let unwritten =
        Ask::Members { user_id: users[0], chat_id: ChatId::direct(users[0], users[1]).unwrap(), after: None, limit: 0 };
    assert!(matches!(world.read(&unwritten), Reply::Members { members, more: false } if members.len() == 2));
}

#[test]
fn what_is_missing_is_damage_and_never_a_gap() {
    let (mut world, users, chat) = talk(5);
    world.store.model.state.chats.get_mut(&chat).unwrap().events.remove(&3);
    let damaged = Reply::Refused(ErrorCode::Damaged);
    assert_eq!(world.read(&Ask::Inbox { user_id: users[0], after: 0, limit: 9 }), damaged);
    assert_eq!(inbox(&world, users[0], 0, 2).to, 2, "what lies before it is served");
    let ask = Ask::History { user_id: users[0], chat_id: chat, before: None, after: None, limit: 0 };
    assert_eq!(world.read(&ask), damaged);
    world.store.model.state.inboxes.get_mut(&users[1]).unwrap().remove(&2);
    assert_eq!(world.read(&Ask::Inbox { user_id: users[1], after: 0, limit: 9 }), damaged);
}

#[test]
fn the_writer_hands_reads_on_and_refuses_dead_epochs() {
    let (mut world, users, _) = talk(1);
    let Reply::Inbox(page) = world.ask(Ask::Inbox { user_id: users[0], after: 0, limit: 5 }) else { panic!() };
    assert_eq!(page.to, 1);
    world.writer.handle_hello(world.now, 2, common::hello(8, 0));
    let no = world.put(1, Ask::Inbox { user_id: users[0], after: 0, limit: 5 });
    world.run();
    assert_eq!(world.reply(no), Some(Reply::Fenced));
}
