//! What waits is bounded, caches are bounded, and damage, clocks and full groups stop only what they must.

mod common;

use common::{Scripted, World, defaults, one};
use parley_protocol::link::{Action as Act, Ask, Reply, ToGateway};
use parley_protocol::{ChatId, ErrorCode, UserId};
use storage_core::model::Model;
use storage_core::store::{APPEND_BYTES_MAX, APPEND_EVENTS_MAX, Outcome, SEQ_BUCKET};
use storage_core::{HaltReason, Options};

fn pairs(world: &mut World<Scripted>, count: usize) -> (Vec<UserId>, Vec<ChatId>) {
    let users = world.users(count + 1);
    let chats = users.windows(2).map(|pair| ChatId::direct(pair[0], pair[1]).unwrap()).collect();
    (users, chats)
}

#[test]
fn too_many_that_wait_are_answered_failed_at_once() {
    let mut world = common::world(Options { parked_max: 3, ..Options::default() });
    let (users, chats) = pairs(&mut world, 1);
    world.store.hold_loads = true;
    let mut numbers = Vec::new();
    for _ in 0..5 {
        let ask = world.send_ask(chats[0], users[0], "x");
        numbers.push(world.put(1, ask));
    }
    world.run();
    assert_eq!(world.writer.status().parked, 3);
    assert_eq!(numbers.iter().filter(|no| world.reply(**no) == Some(Reply::Failed)).count(), 2);
    world.store.release_loads();
    world.run();
    assert_eq!(world.store.model.state.chats[&chats[0]].events.len(), 3);
}

/// A chat that is said more in than an append takes goes on in the next group; no append crosses a bucket's border.
#[test]
fn an_append_ends_where_it_is_full_and_at_the_border_of_a_bucket() {
    let mut world = common::world(Options { commits_in_flight_max: 1, ..Options::default() });
    let (users, chats) = pairs(&mut world, 1);
    let mut appends: Vec<(u64, usize)> = Vec::new();
    let mut asked = 0;
    while asked < SEQ_BUCKET + 150 {
        world.store.manual = true;
        let numbers: Vec<u64> = (0..150)
            .map(|at| {
                let ask = world.send_ask(chats[0], users[0], &format!("{}", asked + at));
                world.put(1, ask)
            })
            .collect();
        asked += 150;
        world.run();
        while !world.store.commits.is_empty() {
            let group = world.store.answer(Outcome::Durable);
            appends.extend(group.appends.iter().map(|append| (append.events[0].seq, append.events.len())));
            world.run();
        }
        for (at, no) in numbers.into_iter().enumerate() {
            assert_eq!(one(world.reply(no).unwrap()).event.seq, asked - 150 + at as u64 + 1);
        }
    }
    assert!(appends.iter().any(|(_, len)| *len == APPEND_EVENTS_MAX), "{appends:?}");
    let bucket = |seq: u64| (seq - 1) / SEQ_BUCKET;
    for (first, len) in &appends {
        assert!(*len <= APPEND_EVENTS_MAX, "{appends:?}");
        assert_eq!(bucket(*first), bucket(first + *len as u64 - 1), "{appends:?}");
    }
    assert!(appends.iter().any(|(first, _)| *first == SEQ_BUCKET + 1), "the border was met: {appends:?}");
}

/// Large messages fill an append by their bytes.
#[test]
fn an_append_ends_where_its_bytes_are_many() {
    let payload = 200 * 1024;
    let options = Options { commits_in_flight_max: 1, payload_bytes_max: payload, ..Options::default() };
    let mut world = common::world(options);
    let (users, chats) = pairs(&mut world, 1);
    world.store.manual = true;
    for _ in 0..20 {
        let ask = world.send_ask(chats[0], users[0], &"x".repeat(payload));
        world.put(1, ask);
    }
    world.run();
    let mut lens = Vec::new();
    while !world.store.commits.is_empty() {
        let group = world.store.answer(Outcome::Durable);
        lens.extend(group.appends.iter().map(|append| append.events.len()));
        world.run();
    }
    // The first group has one: it is sealed as soon as the store has a slot free.
    assert_eq!(lens.iter().sum::<usize>(), 20, "{lens:?}");
    assert_eq!(lens.iter().max(), Some(&APPEND_BYTES_MAX.div_ceil(payload)), "{lens:?}");
}

#[test]
fn a_full_group_makes_the_rest_wait_in_order() {
    let mut world = common::world(Options { batch_commands_max: 2, ..Options::default() });
    let (users, chats) = pairs(&mut world, 1);
    world.store.manual = true;
    let mut numbers = Vec::new();
    for at in 0..9 {
        let ask = world.send_ask(chats[0], users[0], &format!("{at}"));
        numbers.push(world.put(1, ask));
    }
    world.run();
    let mut sizes = Vec::new();
    while !world.store.commits.is_empty() {
        assert!(world.store.commits.len() <= 2);
        let group = world.store.answer(Outcome::Durable);
        sizes.push(group.appends.iter().map(|append| append.events.len()).sum::<usize>());
        world.run();
    }
    assert!(sizes.iter().all(|size| *size <= 2), "{sizes:?}");
    for (at, no) in numbers.into_iter().enumerate() {
        assert_eq!(one(world.reply(no).unwrap()).event.seq, at as u64 + 1);
    }
}

#[test]
fn caches_stay_within_their_bounds_and_what_left_is_loaded_again() {
    let mut world = common::world(Options { chats_cached_max: 3, users_cached_max: 4, ..Options::default() });
    let (users, chats) = pairs(&mut world, 20);
    for round in 1..4 {
        for (at, chat) in chats.iter().enumerate() {
            let said = world.send(*chat, users[at], "x");
            assert_eq!((said.event.seq, said.event.sender_sent), (round, round));
            let status = world.writer.status();
            assert!(status.chats_cached <= 3 && status.users_cached <= 4, "{status:?}");
        }
    }
}

#[test]
fn what_is_in_memory_needs_one_look_up_a_message() {
    let mut world = defaults();
    let (users, chats) = pairs(&mut world, 1);
    world.send(chats[0], users[0], "x");
    let before = world.store.load_count;
    for _ in 0..10 {
        world.send(chats[0], users[1], "x");
    }
    assert_eq!(world.store.load_count - before, 10);
}

#[test]
fn damage_refuses_what_it_concerns_and_is_asked_again() {
    let mut world = defaults();
    let (users, chats) = pairs(&mut world, 1);
    world.store.damaged = true;
    let ask = world.send_ask(chats[0], users[0], "x");
    assert_eq!(world.ask(ask.clone()), Reply::Refused(ErrorCode::Damaged));
    assert_eq!(world.ask(Ask::LoadChat { chat_id: ChatId::group(4) }), Reply::Refused(ErrorCode::Damaged));
    let login = Ask::Login { issuer: "i".to_owned(), subject: "s".to_owned(), name: "n".to_owned() };
    assert_eq!(world.ask(login.clone()), Reply::Refused(ErrorCode::Damaged));
    world.store.damaged = false;
    assert_eq!(one(world.ask(ask)).event.seq, 1);
    assert!(matches!(world.ask(login), Reply::LoggedIn(_)));
    assert_eq!(world.halted, None);
}

#[test]
fn a_log_with_a_hole_is_damaged() {
    let mut world = defaults();
    let (users, chats) = pairs(&mut world, 1);
    for _ in 0..4 {
        world.send(chats[0], users[0], "x");
    }
    let mut state = world.store.model.state.clone();
    state.chats.get_mut(&chats[0]).unwrap().events.remove(&3);
    let epoch = world.epoch;
    let mut world = world.restart(Scripted { model: Model::open(state), ..Scripted::default() });
    world.epoch = epoch;
    world.open_link(1);
    let ask = world.send_ask(chats[0], users[0], "x");
    assert_eq!(world.ask(ask), Reply::Refused(ErrorCode::Damaged));
}

#[test]
fn a_store_that_cannot_say_what_it_is_ends_the_writer() {
    let mut world = World::new(Options::default(), Scripted { damaged: true, ..Scripted::default() });
    world.run();
    assert_eq!(world.halted, Some(HaltReason::Broken("block 7".to_owned())));
}

#[test]
fn a_clock_that_fell_behind_fails_commands_and_recovers() {
    let mut world = defaults();
    let (users, chats) = pairs(&mut world, 1);
    let last = world.send(chats[0], users[0], "x").event.message_id;
    world.now.unix_ms -= 3_600_000;
    let ask = world.send_ask(chats[0], users[0], "late");
    assert_eq!(world.ask(ask.clone()), Reply::Failed);
    let status = world.writer.status();
    assert!(!status.ready && status.reason.unwrap().contains("clock"));
    world.now.unix_ms += 3_600_000;
    world.tick(500);
    assert!(world.writer.status().ready);
    assert!(one(world.ask(ask)).event.message_id > last);
}

#[test]
fn ids_that_are_not_reserved_wait_for_one_commit() {
    let mut world = defaults();
    let (users, chats) = pairs(&mut world, 1);
    world.send(chats[0], users[0], "x");
    world.advance(60_000);
    world.store.manual = true;
    let ask = world.send_ask(chats[0], users[0], "after a long silence");
    let no = world.put(1, ask);
    world.run();
    let reservation = world.store.answer(Outcome::Durable);
    assert!(reservation.appends.is_empty() && reservation.meta.is_some());
    world.run();
    world.store.answer(Outcome::Durable);
    world.run();
    let event = one(world.reply(no).unwrap()).event;
    assert!(parley_idgen::unix_ms_of(event.message_id.0) >= world.now.unix_ms);
}

#[test]
fn ids_of_a_burst_wait_for_the_next_millisecond() {
    let mut world = common::world(Options { batch_commands_max: 100_000, ..Options::default() });
    let (users, chats) = pairs(&mut world, 1);
    // More than the run-ahead bound holds would take minutes here: a stored mark at the bound stands for it.
    let mut state = world.store.model.state.clone();
    state.meta.ids_reserved_until_ms = world.now.unix_ms + 10 + parley_idgen::RUN_AHEAD_MS_MAX;
    let epoch = world.epoch;
    let mut world = world.restart(Scripted { model: Model::open(state), ..Scripted::default() });
    world.epoch = epoch;
    world.open_link(1);
    let mut numbers = Vec::new();
    for _ in 0..5_000 {
        let ask = world.send_ask(chats[0], users[0], "x");
        numbers.push(world.put(1, ask));
    }
    world.run();
    let answered = |world: &World<Scripted>| numbers.iter().filter(|no| world.answers.contains_key(&(1, **no))).count();
    assert_eq!(answered(&world), 4_096, "a millisecond holds so many");
    world.tick(1);
    assert_eq!(answered(&world), 5_000);
}

#[test]
fn requests_of_nonsense_are_refused_without_a_load() {
    let mut world = defaults();
    let (users, _) = pairs(&mut world, 1);
    let before = world.store.load_count;
    let crowd = Act::Create { title: String::new(), members: vec![users[0]; 10_001] };
    let ask = world.command(None, users[0], crowd);
    assert_eq!(world.ask(ask), Reply::Refused(ErrorCode::GroupFull));
    let title = Act::Create { title: "a\nb".to_owned(), members: Vec::new() };
    let ask = world.command(None, users[0], title);
    assert_eq!(world.ask(ask), Reply::Refused(ErrorCode::BadFrame));
    let ask = world.command(None, users[0], Act::Send(common::message("to nobody")));
    assert_eq!(world.ask(ask), Reply::Refused(ErrorCode::BadFrame));
    assert_eq!(world.store.load_count, before);
}

#[test]
fn a_start_on_a_full_disk_waits_for_room() {
    let mut world = World::new(Options::default(), Scripted { manual: true, ..Scripted::default() });
    world.writer.handle_hello(world.now, 1, common::hello(7, 0));
    world.run();
    world.store.answer(Outcome::Failed("no room".to_owned()));
    world.run();
    assert_eq!(world.writer.status().reason.as_deref(), Some("no room"));
    assert!(world.sent.is_empty(), "nobody is welcome before the writer's epoch is stored");
    world.store.manual = false;
    world.tick(1_000);
    let [(1, ToGateway::Welcome(_)), (1, ToGateway::Status { ready: true, .. })] = &world.sent[..] else {
        panic!("{:?}", world.sent)
    };
    assert!(world.writer.status().ready);
    assert_eq!((world.store.model.state.meta.writer_epoch, world.store.model.state.meta.home_epoch), (1, 1));
}

#[test]
fn a_load_of_a_guessed_id_does_not_undo_the_creation() {
    let mut world = defaults();
    let (users, _) = pairs(&mut world, 1);
    let made = world.group(users[0], &[], "").0 as u64;
    // Ids of one millisecond follow each other: the group took two.
    let guess = ChatId::group((made & (u64::MAX >> 1)) + 2);
    world.store.hold_loads = true;
    let load = world.put(1, Ask::LoadChat { chat_id: guess });
    world.turn();
    let held = std::mem::take(&mut world.store.loads);
    world.store.hold_loads = false;
    assert_eq!(world.group(users[0], &[users[1]], ""), guess);
    world.store.loads = held;
    let answers: Vec<_> = world.store.loads.drain(..).map(|(op, _)| op).collect();
    for op in answers {
        // As it was when it was asked.
        world.store.done.push((op, storage_core::store::StoreResult::Chat(None)));
    }
    world.run();
    assert!(matches!(world.reply(load), Some(Reply::Chat(state)) if state.members.len() == 2));
    assert_eq!(world.send(guess, users[1], "still here").event.seq, 2);
}
