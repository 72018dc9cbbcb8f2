//! Who comes into a group with messages has read, so to say, what was there before: the own devices hear of it by an entry
//! of the inbox, right behind the one of the event, so that the counts that they derive are those of the log (ADR 9).

mod common;

use common::{defaults, one};
use parley_protocol::event::OwnState;
use parley_protocol::frame::Change;
use parley_protocol::link::{Action as Act, Ask, InboxEntry, Reply};
use parley_protocol::{ChatId, UserId};
use storage_core::store::EntryRow;

fn add(user: UserId) -> Change {
    Change::Add { users: vec![user] }
}

fn own(chat_id: ChatId, read_seq: u64, read_ordinal: u64, read_sent: u64) -> OwnState {
    OwnState { chat_id, read_seq, read_ordinal, read_sent, muted_until_ms: 0 }
}

#[test]
fn who_is_added_to_a_group_with_messages_hears_of_the_own_state() {
    let mut world = defaults();
    let users = world.users(3);
    let other = ChatId::direct(users[0], users[2]).unwrap();
    world.send(other, users[2], "so that the inbox does not begin here");
    let group = world.group(users[0], &users[1..2], "");
    for sender in [0, 1, 1] {
        world.send(group, users[sender], "before");
    }
    let made = one(world.change(group, users[0], add(users[2])));
    let seq = made.event.seq;
    assert_eq!(made.targets.iter().find(|target| target.user_id == users[2]).map(|target| target.inbox_seq), Some(2));
    assert_eq!(made.joined.len(), 1, "only who came in: {:?}", made.joined);
    let joined = made.joined[0];
    assert_eq!((joined.user_id, joined.delivered_seq, joined.inbox_seq), (users[2], seq, Some(3)));
    assert_eq!(joined.own, own(group, seq, 3, 0), "read up to the joining, three messages, none of the own ones");
    assert_eq!(world.store.model.state.inboxes[&users[2]][&3], EntryRow::Own { chat_id: group });
    let page = world.read(&Ask::Inbox { user_id: users[2], after: 1, limit: 10 });
    let Reply::Inbox(page) = page else { panic!("{page:?}") };
    assert_eq!(page.entries.len(), 2);
    assert_eq!(page.entries[1], InboxEntry::Own(joined.own), "as who was away reads it");
    assert_eq!(world.unread(group, users[2]), 0);
    world.send(group, users[0], "after");
    assert_eq!(world.unread(group, users[2]), 1);
    assert_eq!(world.store.model.state.inboxes[&users[2]].keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4]);
}

#[test]
fn who_comes_back_has_its_own_messages_counted_in() {
    let mut world = defaults();
    let users = world.users(2);
    let group = world.group(users[0], &users[1..], "");
    world.send(group, users[1], "mine");
    world.send(group, users[1], "mine too");
    one(world.change(group, users[0], Change::Remove { users: vec![users[1]] }));
    world.send(group, users[0], "unheard");
    let made = one(world.change(group, users[0], add(users[1])));
    assert_eq!(made.joined[0].own, own(group, made.event.seq, 3, 2));
    assert_eq!(world.unread(group, users[1]), 0);
    world.send(group, users[1], "mine again");
    assert_eq!(world.unread(group, users[1]), 0);
}

#[test]
fn where_there_are_no_messages_there_is_nothing_to_tell() {
    let mut world = defaults();
    let users = world.users(3);
    let create = Act::Create { title: "empty".to_owned(), members: vec![users[1]] };
    let ask = world.command(None, users[0], create);
    let Reply::Durable(made) = world.ask(ask) else { panic!() };
    let group = made[0].event.chat_id;
    assert!(made.iter().all(|committed| committed.joined.is_empty()), "{made:?}");
    let added = one(world.change(group, users[0], add(users[2])));
    assert!(added.joined.is_empty());
    for user in &users {
        let entries = world.store.model.state.inboxes[user].values();
        assert!(entries.clone().count() > 0);
        assert!(entries.clone().all(|row| matches!(row, EntryRow::Event { .. })), "{user}");
        assert_eq!(world.unread(group, *user), 0);
    }
}
