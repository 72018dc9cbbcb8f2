//! What is done in a channel costs the same whatever its members number: the same loads, and the same rows of those whom
//! it concerns and of nobody else. And what a channel refuses.

mod common;

use common::{Scripted, World, message, one, refused, world};
use parley_protocol::frame::{Change, Interval};
use parley_protocol::link::{Action, Ask, Reply};
use parley_protocol::{ChatId, ErrorCode, Posting, Role, UserId, limits};
use proptest::prelude::*;
use storage_core::Options;
use storage_core::store::{Checkpoint, Group, MemberRow, Outcome};

/// Members whom nobody logs in: rows in the store.
const STRANGER: u64 = 1 << 40;

fn options() -> Options {
    Options { seats_cached_max: 64, users_cached_max: 64, ..Options::default() }
}

/// A channel of `members`, of which the first few users are, over a writer that has just started.
fn channel(members: u64, posting: Posting) -> (World<Scripted>, ChatId, Vec<UserId>) {
    let mut world = world(options());
    let users = world.users(4);
    let create = world.command(None, users[0], Action::CreateChannel { title: String::new(), posting });
    let chat_id = one(world.ask(create)).event.chat_id;
    one(world.change(chat_id, users[1], Change::Join {}));
    let mut store = world.store.model.state.clone();
    let rows = store.chats.get_mut(&chat_id).expect("it was made");
    let interval = Interval { joined_seq: 1, left_seq: None, history_from: 1 };
    for stranger in 2..members {
        let row = MemberRow { role: Some(Role::Member), intervals: vec![interval] };
        rows.members.insert(UserId(STRANGER + stranger), row);
    }
    let Checkpoint { seq, ordinal, message_id, title, .. } = rows.checkpoint.clone();
    rows.checkpoint = Checkpoint::of_channel(seq, ordinal, message_id, title, members);
    let mut world = world.restart(Scripted::over(store));
    world.epoch = 0;
    world.open_link(1);
    (world, chat_id, users)
}

/// Loads, and the one group, that a command comes to.
fn cost(world: &mut World<Scripted>, ask: Ask) -> (usize, Group) {
    let loads = world.store.load_count;
    world.store.manual = true;
    let no = world.put(1, ask);
    world.run();
    let group = world.store.answer(Outcome::Durable);
    world.run();
    world.store.manual = false;
    assert!(matches!(world.reply(no), Some(Reply::Durable(_))), "{:?}", world.reply(no));
    (world.store.load_count - loads, group)
}

/// Events, entries, members, marks, and the length of the checkpoint's list.
type Shape = [usize; 5];

fn shape(group: &Group) -> Shape {
    let append = &group.appends[0];
    let counts = append.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.sent.len());
    [append.events.len(), append.entries.len(), append.members.len(), group.marks.len(), counts]
}

/// A join, a message, a removal, a leave: loads and rows of each.
fn costs(members: u64) -> Vec<(usize, Shape)> {
    let (mut world, chat_id, users) = channel(members, Posting::Everybody);
    let say = |text: &str| Action::Send(message(text));
    let commands = [
        (users[0], say("first")),
        (users[2], Action::Change(Change::Join {})),
        (users[3], Action::Change(Change::Join {})),
        (users[1], say("second")),
        (users[0], Action::Change(Change::Remove { users: vec![users[3]] })),
        (users[2], Action::Change(Change::Leave {})),
    ];
    commands
        .into_iter()
        .map(|(sender, action)| {
            let ask = world.command(Some(chat_id), sender, action);
            let (loads, group) = cost(&mut world, ask);
            (loads, shape(&group))
        })
        .collect()
}

#[test]
fn what_is_done_costs_the_same_with_a_hundred_thousand_members() {
    let few = costs(10);
    assert_eq!(few, costs(99_990));
    assert!(few.iter().all(|(loads, [events, entries, members, marks, counts])| {
        *loads <= 4 && *events == 1 && *entries <= 1 && *members <= 1 && *marks <= 1 && *counts <= 1
    }));
}

#[test]
fn it_is_full_at_its_limit_and_counts_its_members() {
    let (mut world, chat_id, users) = channel(limits::CHANNEL_MEMBERS_MAX as u64 - 1, Posting::Everybody);
    one(world.change(chat_id, users[2], Change::Join {}));
    assert_eq!(world.change(chat_id, users[3], Change::Join {}), refused(ErrorCode::GroupFull));
    assert_eq!(
        world.change(chat_id, users[0], Change::Add { users: vec![users[3]] }),
        refused(ErrorCode::GroupFull),
        "an admin adds nobody above it either"
    );
    one(world.change(chat_id, users[1], Change::Leave {}));
    one(world.change(chat_id, users[3], Change::Join {}));
    let Reply::Chats { chats, .. } = world.read(&Ask::Chats { user_id: users[3], after: None, limit: 0 }) else {
        panic!("a list of chats");
    };
    assert_eq!((chats[0].members as usize, chats[0].large), (limits::CHANNEL_MEMBERS_MAX, true));
    let state = world.load(chat_id);
    assert!(state.large && state.members.is_empty(), "a home is told of nobody");
    let among = world.ask(Ask::Among { chat_id, users: vec![users[0], users[1], UserId(STRANGER + 5), UserId(77)] });
    let Reply::Chat(state) = among else { panic!("{among:?}") };
    let there: Vec<UserId> = state.members.iter().map(|member| member.user_id).collect();
    assert_eq!(there, [users[0], UserId(STRANGER + 5)]);
}

#[test]
fn who_may_do_what() {
    let (mut world, chat_id, users) = channel(5, Posting::Admins);
    let ask = world.send_ask(chat_id, users[1], "no");
    assert_eq!(world.ask(ask), refused(ErrorCode::Forbidden));
    let ask = world.send_ask(chat_id, users[2], "a stranger");
    assert_eq!(world.ask(ask), refused(ErrorCode::NoSuchChat));
    assert_eq!(world.send(chat_id, users[0], "yes").event.sender_sent, 0, "own messages are not counted");
    assert_eq!(world.change(chat_id, users[1], Change::Join {}), refused(ErrorCode::NoChange));
    let group = world.group(users[0], &users[1..2], "");
    assert_eq!(world.change(group, users[2], Change::Join {}), refused(ErrorCode::NoSuchChat), "a group is not joined");
    assert_eq!(world.change(group, users[1], Change::Join {}), refused(ErrorCode::WrongChatKind));
    let nothing = ChatId::channel(4_711, Posting::Everybody);
    assert_eq!(world.change(nothing, users[1], Change::Join {}), refused(ErrorCode::NoSuchChat));
    let leave = Change::Leave {};
    assert_eq!(world.change(chat_id, users[0], leave), refused(ErrorCode::OwnerMustHandOver));
}

#[test]
fn an_empty_channel_is_over() {
    let mut world = world(options());
    let users = world.users(2);
    let posting = Posting::Everybody;
    let create = world.command(None, users[0], Action::CreateChannel { title: "t".to_owned(), posting });
    let Reply::Durable(made) = world.ask(create) else { panic!("a channel is made") };
    let chat_id = made[0].event.chat_id;
    one(world.change(chat_id, users[0], Change::Leave {}));
    assert_eq!(world.change(chat_id, users[1], Change::Join {}), refused(ErrorCode::NoSuchChat));
}

#[test]
fn nobody_comes_in_without_end() {
    let (mut world, chat_id, users) = channel(3, Posting::Everybody);
    for _ in 0..limits::CHANNEL_JOINS_MAX {
        one(world.change(chat_id, users[2], Change::Join {}));
        one(world.change(chat_id, users[2], Change::Leave {}));
    }
    assert_eq!(world.change(chat_id, users[2], Change::Join {}), refused(ErrorCode::Forbidden));
    one(world.change(chat_id, users[3], Change::Join {}));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Whoever comes and goes, in a cache with less room than there are users: rows, count and answers are those of a
    /// plain set.
    #[test]
    fn members_are_those_who_came_and_did_not_go(moves in prop::collection::vec((1_usize..12, any::<bool>()), 1..60)) {
        let mut world = world(Options { seats_cached_max: 3, users_cached_max: 4, ..options() });
        let users = world.users(12);
        let posting = Posting::Everybody;
        let create = world.command(None, users[0], Action::CreateChannel { title: String::new(), posting });
        let chat_id = one(world.ask(create)).event.chat_id;
        let mut there = std::collections::BTreeSet::from([users[0]]);
        for (who, comes) in moves {
            let (change, does) = match comes {
                true => (Change::Join {}, !there.contains(&users[who])),
                false => (Change::Leave {}, there.contains(&users[who])),
            };
            let reply = world.change(chat_id, users[who], change);
            prop_assert_eq!(matches!(reply, Reply::Durable(_)), does, "{:?}", reply);
            if comes { there.insert(users[who]) } else { there.remove(&users[who]) };
        }
        let rows = &world.store.model.state.chats[&chat_id];
        let stored = rows.members.iter().filter(|(_, row)| row.role.is_some()).map(|(user, _)| *user);
        prop_assert_eq!(stored.collect::<std::collections::BTreeSet<_>>(), there.clone());
        prop_assert_eq!(rows.checkpoint.channel_members() as usize, there.len());
    }
}
