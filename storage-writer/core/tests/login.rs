//! An identity becomes a user at its first login; a name belongs to one user.

mod common;

use common::{Scripted, World, defaults};
use parley_protocol::frame::UserName;
use parley_protocol::link::{Ask, Reply};
use parley_protocol::{ChatId, ErrorCode, UserId};
use storage_core::model::Model;
use storage_core::store::Outcome;

fn ask(subject: &str, name: &str) -> Ask {
    Ask::Login { issuer: "https://issuer".to_owned(), subject: subject.to_owned(), name: name.to_owned() }
}

fn login(world: &mut World<Scripted>, subject: &str, name: &str) -> UserName {
    match world.ask(ask(subject, name)) {
        Reply::LoggedIn(user) => user,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_identity_keeps_its_user_and_its_name() {
    let mut world = defaults();
    let alice = login(&mut world, "a", "alice");
    assert_eq!(alice.name, "alice");
    assert_eq!(login(&mut world, "a", "other"), alice);
    let state = world.store.model.state.clone();
    let mut world = world.restart(Scripted { model: Model::open(state), ..Scripted::default() });
    world.epoch = 1;
    world.open_link(1);
    assert_eq!(login(&mut world, "a", ""), alice);
    let Reply::Users(found) = world.read(&Ask::Resolve { names: vec!["alice".to_owned(), "nobody".to_owned()] }) else {
        panic!()
    };
    assert_eq!(found, vec![alice.clone()]);
    let asked = Ask::Profiles { users: vec![UserId(3), alice.user_id] };
    assert_eq!(world.read(&asked), Reply::Users(vec![alice]));
}

#[test]
fn a_taken_or_bad_name_leaves_one_without() {
    let mut world = defaults();
    login(&mut world, "a", "alice");
    for (at, name) in
        ["alice", "", "tab\tname", " blank", "\u{200b}hidden", &ChatId::group(7).to_string(), &"x".repeat(65)]
            .into_iter()
            .enumerate()
    {
        assert_eq!(login(&mut world, &format!("{at}"), name).name, "", "{name:?}");
    }
    assert_eq!(login(&mut world, "long", &"x".repeat(64)).name.len(), 64);
}

#[test]
fn first_logins_in_flight_are_one() {
    let mut world = defaults();
    world.store.manual = true;
    let numbers = [world.put(1, ask("a", "alice")), world.put(1, ask("a", "alice")), world.put(1, ask("b", "alice"))];
    world.run();
    let late = world.put(1, ask("a", ""));
    world.run();
    assert!(numbers.iter().all(|no| !world.answers.contains_key(&(1, *no))), "not before it is durable");
    world.store.answer(Outcome::Durable);
    world.run();
    let user = |no| match &world.answers[&(1, no)] {
        Reply::LoggedIn(user) => user.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!((user(numbers[0]), user(late)), (user(numbers[1]), user(numbers[0])));
    assert_ne!(user(numbers[0]).user_id, user(numbers[2]).user_id);
    assert_eq!((user(numbers[0]).name.as_str(), user(numbers[2]).name.as_str()), ("alice", ""));
}

#[test]
fn an_identity_that_no_token_has_is_refused() {
    let mut world = defaults();
    assert_eq!(world.ask(ask("", "x")), Reply::Refused(ErrorCode::BadFrame));
    assert_eq!(world.ask(ask(&"s".repeat(5_000), "x")), Reply::Refused(ErrorCode::BadFrame));
    let ambiguous = Ask::Login { issuer: "a\0b".to_owned(), subject: "c".to_owned(), name: String::new() };
    assert_eq!(world.ask(ambiguous), Reply::Refused(ErrorCode::BadFrame));
}

#[test]
fn who_is_known_logs_in_while_the_disk_is_full() {
    let mut world = defaults();
    let alice = login(&mut world, "a", "alice");
    world.store.manual = true;
    let new = world.put(1, ask("b", "bob"));
    world.run();
    world.store.answer(Outcome::Failed("no room".to_owned()));
    world.run();
    assert_eq!(world.reply(new), Some(Reply::Failed));
    assert_eq!(login(&mut world, "a", ""), alice);
    assert_eq!(world.ask(ask("b", "bob")), Reply::Failed);
}

#[test]
fn looking_an_identity_up_makes_no_user() {
    let mut world = defaults();
    let look_up = |issuer: &str, subject: &str| Ask::LookUp { issuer: issuer.to_owned(), subject: subject.to_owned() };
    let nobody = Reply::Refused(ErrorCode::NoSuchUser);
    let before = world.store.model.state.clone();
    assert_eq!(world.ask(look_up("https://issuer", "a")), nobody);
    assert_eq!(world.ask(look_up("https://issuer", "a")), nobody, "the first question made none");
    assert_eq!(world.store.model.state, before);
    let alice = login(&mut world, "a", "alice");
    assert_eq!(world.ask(look_up("https://issuer", "a")), Reply::LoggedIn(alice));
    assert_eq!(world.ask(look_up("https://other", "a")), nobody);
    // Texts that no token has, one of which would make the key of another identity.
    for (issuer, subject) in [("", ""), ("a\0b", "c"), ("https://issuer", &"s".repeat(70_000))] {
        assert_eq!(world.ask(look_up(issuer, subject)), nobody);
    }
}

#[test]
fn who_has_no_name_gets_a_free_one_later() {
    let mut world = defaults();
    let alice = login(&mut world, "a", "alice");
    let bob = login(&mut world, "b", "alice");
    assert_eq!(bob.name, "");
    for name in ["alice", "", " bob"] {
        assert_eq!(login(&mut world, "b", name), bob, "{name:?}");
    }
    // Two at once for one name, twice: one gets it, and is answered only when that is durable.
    let carol = login(&mut world, "c", "");
    world.store.manual = true;
    let numbers = ["b", "c", "b"].map(|subject| world.put(1, ask(subject, "bob")));
    world.run();
    assert!(numbers.iter().all(|no| world.reply(*no).is_none()));
    let group = world.store.answer(Outcome::Durable);
    assert_eq!((group.users.len(), group.uniques.len()), (1, 1));
    world.run();
    let named = UserName { name: "bob".to_owned(), ..bob };
    let expected = [&named, &carol, &named].map(|user| Some(Reply::LoggedIn(user.clone())));
    assert_eq!(numbers.map(|no| world.reply(no)), expected);
    world.store.manual = false;
    // It holds over a restart, with the inbox that was there before.
    let chat = ChatId::direct(alice.user_id, named.user_id).unwrap();
    world.send(chat, alice.user_id, "hi");
    assert_eq!(login(&mut world, "c", "carol").name, "carol");
    let state = world.store.model.state.clone();
    let mut world = world.restart(Scripted { model: Model::open(state), ..Scripted::default() });
    world.epoch = 1;
    world.open_link(1);
    assert_eq!(login(&mut world, "b", "other"), named, "a name is for good");
    let names = ["bob", "carol", "other"].map(str::to_owned).to_vec();
    let carol = UserName { name: "carol".to_owned(), ..carol };
    assert_eq!(world.read(&Ask::Resolve { names }), Reply::Users(vec![named, carol.clone()]));
    let Reply::Inbox(page) = world.ask(Ask::Inbox { user_id: carol.user_id, after: 0, limit: 9 }) else { panic!() };
    assert_eq!(page.head, 0);
    assert_eq!(world.send(chat, alice.user_id, "again").targets.len(), 2);
}

#[test]
fn a_name_that_fell_with_its_group_is_free_again() {
    let mut world = defaults();
    let bob = login(&mut world, "b", "");
    world.store.manual = true;
    let no = world.put(1, ask("b", "bob"));
    world.run();
    world.store.answer(Outcome::Failed("no room".to_owned()));
    world.run();
    assert_eq!(world.reply(no), Some(Reply::Failed));
    assert_eq!(login(&mut world, "b", "bob"), bob, "who is known logs in, without a name that cannot be stored");
    world.tick(1_000);
    world.store.answer(Outcome::Durable);
    world.store.manual = false;
    world.run();
    assert_eq!(login(&mut world, "b", "bob").name, "bob");
}

/// A cluster writes a name's key before the user's row: who died in between left a key that names a nameless user.
#[test]
fn a_name_that_was_being_given_is_given_at_the_next_login_to_the_same_user_only() {
    let mut world = defaults();
    let alice = login(&mut world, "a", "");
    let mut state = world.store.model.state.clone();
    state.uniques.insert("n\0alice".to_owned(), u128::from(alice.user_id.0));
    let mut world = world.restart(Scripted { model: Model::open(state), ..Scripted::default() });
    world.epoch = 1;
    world.open_link(1);
    assert_eq!(login(&mut world, "b", "alice").name, "", "it is another's");
    assert_eq!(login(&mut world, "a", "alice"), UserName { name: "alice".to_owned(), ..alice.clone() });
    assert_eq!(world.store.model.state.users[&alice.user_id].name, "alice");
}
