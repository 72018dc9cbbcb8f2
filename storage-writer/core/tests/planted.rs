//! A sample of the planted bugs: each scenario holds without its bug and does not hold with it, so the hooks take
//! effect. That each of them is caught is the simulator's to show.

mod common;

use common::{Scripted, World, defaults, hello, one, targets, world};
use parley_protocol::frame::Change;
use parley_protocol::link::{Ask, Reply};
use parley_protocol::{ChatId, Role, UserId};
use std::panic::{AssertUnwindSafe, catch_unwind};
use storage_core::Options;
use storage_core::model::Model;
use storage_core::planted::{Bug, plant};
use storage_core::store::Outcome;
use storage_core::treacherous::{Faults, Treacherous};

/// A bug takes effect when the scenario does not hold any more, or an invariant of the writer does not.
fn takes_effect(bug: Bug, holds: fn() -> bool) {
    plant(None);
    assert!(holds(), "{bug:?} is not planted");
    plant(Some(bug));
    let held = catch_unwind(AssertUnwindSafe(holds)).unwrap_or(false);
    plant(None);
    assert!(!held, "{bug:?} is planted and nothing shows");
}

fn chat_of_two() -> (World<Scripted>, Vec<UserId>, ChatId) {
    let mut world = defaults();
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    (world, users, chat)
}

/// Nothing is answered while the store works on it.
fn nothing_is_answered_early() -> bool {
    let (mut world, users, chat) = chat_of_two();
    world.store.manual = true;
    let ask = world.send_ask(chat, users[0], "once");
    let (first, second) = (world.put(1, ask.clone()), world.put(1, ask));
    world.run();
    world.reply(first).is_none() && world.reply(second).is_none()
}

/// A retry is a duplicate, during the commit and after it.
fn a_retry_is_a_duplicate() -> bool {
    let (mut world, users, chat) = chat_of_two();
    let ask = world.send_ask(chat, users[0], "once");
    let together = [world.put(1, ask.clone()), world.put(1, ask.clone())];
    world.run();
    let later = world.ask(ask);
    matches!(world.reply(together[1]), Some(Reply::Duplicate { .. })) && matches!(later, Reply::Duplicate { .. })
}

/// A retry has the first answer, also when the chat went on, and when its sender has left meanwhile.
fn a_retry_has_the_first_answer() -> bool {
    let mut world = defaults();
    let users = world.users(2);
    let group = world.group(users[0], &users[1..], "");
    let ask = world.send_ask(group, users[1], "once");
    let first = one(world.ask(ask.clone())).event;
    world.send(group, users[0], "newer");
    world.change(group, users[1], Change::Leave {});
    world.ask(ask) == Reply::Duplicate { chat_id: group, message_id: first.message_id, seq: first.seq }
}

/// An identity is one user, at each login.
fn an_identity_is_one_user() -> bool {
    let mut world = defaults();
    world.login("again") == world.login("again")
}

/// A group that fails takes along what is on top of it; what is numbered after it goes on from what is durable.
fn a_fall_leaves_nothing() -> bool {
    let (mut world, users, chat) = chat_of_two();
    world.send(chat, users[0], "before");
    world.store.manual = true;
    let ask = world.send_ask(chat, users[0], "falls");
    let falls = world.put(1, ask);
    world.run();
    let ask = world.send_ask(chat, users[1], "on top");
    let on_top = world.put(1, ask);
    world.run();
    world.store.answer(Outcome::Failed("no room".to_owned()));
    world.run();
    if !world.store.commits.is_empty() {
        world.store.answer(Outcome::Failed("a group before it failed".to_owned()));
    }
    world.run();
    let failed = [world.reply(falls), world.reply(on_top)] == [Some(Reply::Failed), Some(Reply::Failed)];
    world.store.manual = false;
    (0..10).for_each(|_| world.tick(1_000));
    let after = world.send(chat, users[0], "after");
    failed && after.event.seq == 2 && targets(&after).iter().all(|(_, inbox_seq)| *inbox_seq == 2)
}

/// Members before and after a change have an entry of it, once.
fn a_change_reaches_whom_it_concerns() -> bool {
    let mut world = world(Options { inbox_fanout_members_max: 3, ..Options::default() });
    let users = world.users(4);
    let group = world.group(users[0], &users[1..2], "");
    let told = |reply: Reply| {
        let mut users: Vec<UserId> = targets(&one(reply)).into_iter().map(|(user_id, _)| user_id).collect();
        users.sort_unstable();
        users
    };
    let mut sorted = users.clone();
    sorted.sort_unstable();
    let without = |gone: &[UserId]| sorted.iter().copied().filter(|user| !gone.contains(user)).collect::<Vec<_>>();
    let add = |user: UserId| Change::Add { users: vec![user] };
    let joined = told(world.change(group, users[0], add(users[2]))) == without(&users[3..]);
    let crossed_up = told(world.change(group, users[0], add(users[3]))) == sorted;
    let crossed_down = told(world.change(group, users[3], Change::Leave {})) == sorted;
    let left = told(world.change(group, users[2], Change::Leave {})) == without(&users[3..]);
    joined && crossed_up && crossed_down && left
}

/// History is what the intervals allow: all of it, and no more, also after leaving.
fn history_is_of_the_intervals() -> bool {
    let mut world = defaults();
    let users = world.users(3);
    let group = world.group(users[0], &users[1..2], "");
    world.send(group, users[0], "before");
    world.change(group, users[0], Change::Add { users: vec![users[2]] });
    world.change(group, users[2], Change::Leave {});
    world.send(group, users[0], "after");
    let ask = Ask::History { user_id: users[2], chat_id: group, before: None, after: None, limit: 0 };
    let Reply::History { events, .. } = world.read(&ask) else { return false };
    let Reply::Chats { chats, .. } = world.read(&Ask::Chats { user_id: users[2], after: None, limit: 0 }) else {
        return false;
    };
    events.iter().map(|event| event.seq).collect::<Vec<_>>() == [3, 4] && chats.len() == 1
}

/// Marks rise, and own messages are not unread.
fn marks_rise() -> bool {
    let (mut world, users, chat) = chat_of_two();
    (0..3).for_each(|_| drop(world.send(chat, users[0], "theirs")));
    world.mark(chat, users[1], 3, 1);
    let read = world.mark(chat, users[1], 0, 2);
    let delivered = world.mark(chat, users[1], 3, 0);
    world.send(chat, users[1], "own");
    // Above the head, as nothing is there: not taken.
    let above = world.mark(chat, users[0], 9, 0);
    let counts = world.unread(chat, users[1]) == 1;
    (read.delivered_seq, delivered.own.read_seq, above.delivered_seq, counts) == (3, 2, 0, true)
}

/// Who is no more than a member changes nothing, and may leave.
fn roles_are_asked() -> bool {
    let mut world = defaults();
    let users = world.users(3);
    let group = world.group(users[0], &users[1..], "");
    let removed = world.change(group, users[1], Change::Remove { users: vec![users[2]] });
    let promoted = world.change(group, users[1], Change::Role { user: users[1], role: Role::Owner });
    let left = world.change(group, users[1], Change::Leave {});
    matches!((removed, promoted, left), (Reply::Refused(_), Reply::Refused(_), Reply::Durable(_)))
}

/// What waited while another gateway was granted is fenced.
fn what_waited_is_fenced() -> bool {
    let (mut world, users, chat) = chat_of_two();
    world.store.hold_loads = true;
    let ask = world.send_ask(chat, users[0], "waits for a look-up");
    let waits = world.put(1, ask);
    world.run();
    world.store.manual = true;
    world.writer.handle_hello(world.now, 2, hello(8, 0));
    world.run();
    world.store.release_loads();
    world.run();
    while !world.store.commits.is_empty() {
        world.store.answer(Outcome::Durable);
        world.run();
    }
    world.reply(waits) == Some(Reply::Fenced) && !world.store.model.state.chats.contains_key(&chat)
}

/// Whatever its client calls a good message, it is taken.
fn good_messages_are_taken() -> bool {
    let (mut world, users, chat) = chat_of_two();
    (0..3).all(|_| {
        let ask = world.send_ask(chat, users[0], "good");
        matches!(world.ask(ask), Reply::Durable(_))
    })
}

/// A list of chats has the title and the mute, a list of members those who are in, with what was delivered to them.
fn lists_tell_what_is() -> bool {
    let mut world = defaults();
    let users = world.users(3);
    let group = world.group(users[0], &users[1..], "title");
    world.change(group, users[2], Change::Leave {});
    world.ask(Ask::Mute { chat_id: group, user_id: users[0], until_ms: 7 });
    world.mark(group, users[1], 2, 0);
    let Reply::Chats { chats, .. } = world.read(&Ask::Chats { user_id: users[0], after: None, limit: 0 }) else {
        return false;
    };
    let ask = Ask::Members { user_id: users[0], chat_id: group, after: None, limit: 0 };
    let Reply::Members { members, .. } = world.read(&ask) else { return false };
    let delivered = members.iter().find(|member| member.user_id == users[1]).map(|member| member.delivered_seq);
    let own = chats[0].own;
    let is_stored = |user: UserId| world.store.model.state.chats[&group].members[&user].role.is_some();
    if is_stored(users[2]) || !is_stored(users[1]) {
        return false;
    }
    (chats[0].title.as_str(), own.muted_until_ms, own.read_seq) == ("title", 7, 0)
        && members.len() == 2
        && delivered == Some(2)
}

/// Numbers are dense, ordinals count messages, ids rise although the clock steps back.
fn numbers_are_dense() -> bool {
    let mut world = defaults();
    let users = world.users(2);
    let group = world.group(users[0], &users[1..], "");
    let mut last = (1, 0, 0);
    (0..8).all(|n| {
        world.now.unix_ms -= if n == 4 { 2_000 } else { 0 };
        let event = world.send(group, users[0], "one").event;
        let next = (last.0 + 1, last.1 + 1, event.message_id.0);
        let counted = (event.seq, event.ordinal, event.sender_sent) == (next.0, next.1, next.1);
        let dense = counted && next.2 > last.2;
        last = next;
        dense
    })
}

/// What was answered is there after a crash, and so is its name.
fn a_crash_loses_nothing() -> bool {
    let mut world = World::new(Options::default(), Treacherous::open(Model::default().state, Faults::NONE, 1));
    world.run();
    world.open_link(1);
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    let ask = world.send_ask(chat, users[0], "kept");
    let first = one(world.ask(ask.clone())).event;
    let (epoch, store) = (world.epoch, world.store.clone().crash());
    let mut world = world.restart(store);
    world.epoch = epoch;
    world.open_link(1);
    let duplicate = Reply::Duplicate { chat_id: chat, message_id: first.message_id, seq: first.seq };
    world.ask(ask) == duplicate
}

#[test]
fn bugs_of_answers_and_names_take_effect() {
    takes_effect(Bug::AnswersBeforeCommit, nothing_is_answered_early);
    takes_effect(Bug::DuplicateAnsweredAtOnce, nothing_is_answered_early);
    takes_effect(Bug::LooksUpOnlyInFlight, a_retry_is_a_duplicate);
    takes_effect(Bug::LooksUpOnlyDurable, a_retry_is_a_duplicate);
    takes_effect(Bug::RetryToldTheNewest, a_retry_has_the_first_answer);
    takes_effect(Bug::RetryJudgedFirst, a_retry_has_the_first_answer);
    takes_effect(Bug::IdentitiesForgotten, an_identity_is_one_user);
}

#[test]
fn bugs_of_falls_take_effect() {
    takes_effect(Bug::FallTakesNotAll, a_fall_leaves_nothing);
    takes_effect(Bug::FallenInboxesKept, a_fall_leaves_nothing);
    takes_effect(Bug::FallenChatsKept, a_fall_leaves_nothing);
    takes_effect(Bug::NoProbeAfterFailure, a_fall_leaves_nothing);
}

#[test]
fn bugs_of_targets_take_effect() {
    for bug in [Bug::TargetsBeforeEvent, Bug::LeaverUntold, Bug::CrossingUpUntold, Bug::CrossingDownUntold] {
        takes_effect(bug, a_change_reaches_whom_it_concerns);
    }
    for bug in [Bug::SizeBeforeEvent, Bug::EntryTwice, Bug::TargetMissing] {
        takes_effect(bug, a_change_reaches_whom_it_concerns);
    }
}

#[test]
fn bugs_of_reads_take_effect() {
    for bug in [Bug::FormerMembersRefused, Bug::RemovalNotServed, Bug::HistoryOutsideIntervals, Bug::LeftChatsOmitted] {
        takes_effect(bug, history_is_of_the_intervals);
    }
}

#[test]
fn bugs_of_marks_and_numbers_take_effect() {
    for bug in [Bug::OwnMessagesUnread, Bug::ReadMarkFalls, Bug::DeliveredMarkFalls, Bug::MarksAboveTheHead] {
        takes_effect(bug, marks_rise);
    }
    for bug in [Bug::SeqWithHole, Bug::OrdinalCountsAll, Bug::SentCountsChanges, Bug::IdsFollowTheClock] {
        takes_effect(bug, numbers_are_dense);
    }
}

#[test]
fn bugs_of_judging_take_effect() {
    takes_effect(Bug::RolesIgnored, roles_are_asked);
    takes_effect(Bug::DeadEpochsJudged, what_waited_is_fenced);
    takes_effect(Bug::WrongRefusals, good_messages_are_taken);
}

#[test]
fn bugs_of_lists_take_effect() {
    for bug in [Bug::MuteForgotten, Bug::TitleWrong, Bug::FormerMembersListed, Bug::DeliveredNotStored] {
        takes_effect(bug, lists_tell_what_is);
    }
    for bug in [Bug::ListReadsAll, Bug::PartsNotStored] {
        takes_effect(bug, lists_tell_what_is);
    }
}

#[test]
fn bugs_of_crashes_take_effect() {
    for bug in [Bug::DedupeForgottenInCrash, Bug::DurableWithoutSync] {
        takes_effect(bug, a_crash_loses_nothing);
    }
}
