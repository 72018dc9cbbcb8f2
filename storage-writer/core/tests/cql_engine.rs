//! The engine over a cluster without faults: what a writer asks for is there, at the price that was promised.

mod common;
mod cql_common;

use common::World;
use cql_common::{CqlStore, options};
use parley_protocol::ChatId;
use parley_protocol::link::Reply;
use storage_core::Options;
use storage_core::cql::cluster::Cluster;
use storage_core::cql::engine::EngineOptions;

fn world(options: EngineOptions) -> World<CqlStore> {
    let mut world = World::new(Options::default(), CqlStore::new(Cluster::new(1), options, 1));
    world.run();
    world.open_link(1);
    world
}

/// The cluster holds what the model holds after the same groups.
fn check(world: &mut World<CqlStore>) {
    world.store.cluster.settle();
    let state = world.store.dump();
    let shown = &world.store.shown;
    assert_eq!(state.chats, shown.chats);
    assert_eq!(state.inboxes, shown.inboxes);
    assert_eq!((&state.users, &state.uniques), (&shown.users, &shown.uniques));
    world.store.check_durable(&state);
}

#[test]
fn what_is_durable_is_in_the_cluster() {
    let mut world = world(options());
    let users = world.users(5);
    let group = world.group(users[0], &users[1..4], "a group");
    let direct = ChatId::direct(users[0], users[4]).expect("two users");
    for round in 0..80 {
        world.send(group, users[round % 4], "text");
        world.send(direct, users[0], "text");
        if round % 9 == 0 {
            world.mark(group, users[1], round as u64, round as u64);
        }
    }
    let add = parley_protocol::frame::Change::Add { users: vec![users[4]] };
    assert!(matches!(world.change(group, users[0], add), Reply::Durable(_)));
    check(&mut world);
}

#[test]
fn a_taker_finds_everything() {
    let mut world = world(options());
    let users = world.users(4);
    let group = world.group(users[0], &users[1..4], "a group");
    for _ in 0..70 {
        world.send(group, users[1], "text");
    }
    let before = world.store.dump();
    let mut store = CqlStore::new(Cluster::new(2), options(), 2);
    std::mem::swap(&mut store, &mut world.store);
    store.crash();
    let mut world = world.restart(store);
    world.open_link(2);
    assert_eq!(world.store.dump().chats, before.chats);
    assert_eq!(world.store.dump().inboxes, before.inboxes);
    let status = world.store.engine.status();
    assert!(status.recovered && status.recovered_appends == 1 && status.recovered_entries == 0, "{status:?}");
}

/// A writer with one commit in flight, over an engine as it ships, and two users who talked before.
fn steady() -> (World<CqlStore>, ChatId, parley_protocol::UserId) {
    let options = Options { commits_in_flight_max: 1, ..Options::default() };
    let mut world = World::new(options, CqlStore::new(Cluster::new(1), EngineOptions::default(), 1));
    world.run();
    world.open_link(1);
    let users = world.users(2);
    let direct = ChatId::direct(users[0], users[1]).expect("two users");
    for _ in 0..3 {
        world.send(direct, users[0], "text");
    }
    (world, direct, users[0])
}

#[test]
fn a_lone_direct_message_costs_six_requests_at_the_most() {
    let (mut world, direct, user) = steady();
    // As rarely as there is a new list of work, the chat is put there. A list is deleted with a group that is not.
    let mut cost = |quiet_ms| {
        world.store.now_ms += quiet_ms;
        let before = world.store.engine.status().statements;
        world.send(direct, user, "text");
        let after = world.store.engine.status().statements;
        let work = after.work - before.work;
        assert_eq!(after.total() - before.total() - work, 4, "events, two inboxes, name; all names are known");
        4 + work
    };
    let costs: Vec<_> = (0..20).map(|_| cost(0)).collect();
    assert_eq!((costs.iter().min(), costs.iter().max()), (Some(&4), Some(&5)), "{costs:?}");
    let costs: Vec<_> = (0..20).map(|_| cost(31_000)).collect();
    assert!(costs.iter().all(|cost| *cost == 5), "{costs:?}");
    let status = world.store.engine.status();
    assert_eq!((status.statements.retries, status.work_keys), (0, 1));
}

/// Reads that a message costs in a chat of `length`, by how many came before since a writer knows nothing of it.
fn reads_of_names(length: usize, names_known_max: usize) -> Vec<u64> {
    let small = EngineOptions { names_known_max, ..EngineOptions::default() };
    let mut world = World::new(Options::default(), CqlStore::new(Cluster::new(1), small, 1));
    world.run();
    world.open_link(1);
    let users = world.users(2);
    let direct = ChatId::direct(users[0], users[1]).expect("two users");
    (0..length).for_each(|_| drop(world.send(direct, users[0], "text")));
    let mut store = CqlStore::new(Cluster::new(2), small, 2);
    std::mem::swap(&mut store, &mut world.store);
    store.crash();
    let mut world = world.restart(store);
    world.open_link(1);
    let loading = world.store.engine.status().statements.reads;
    world.send(direct, users[0], "loads the chat");
    assert!(world.store.engine.status().statements.reads > loading);
    let mut read = |_| {
        let before = world.store.engine.status().statements.reads;
        world.send(direct, users[0], "text");
        world.store.engine.status().statements.reads - before
    };
    (0..8).map(&mut read).collect()
}

#[test]
fn names_of_a_chat_are_read_once_when_it_is_asked_for_often() {
    assert_eq!(reads_of_names(3, 1_000), [0; 8], "the first look-up read them all");
    assert_eq!(reads_of_names(70, 1_000), [1, 1, 1, 1, 0, 0, 0, 0], "16 names a look-up");
    assert_eq!(reads_of_names(3, 3), [1; 8], "without room nothing is known");
}

#[test]
fn sixteen_messages_in_an_append_cost_six_tenths_of_a_request_each() {
    let (mut world, direct, user) = steady();
    let before = world.store.engine.status().statements;
    for _ in 0..16 {
        let ask = world.send_ask(direct, user, "text");
        world.put(1, ask);
    }
    world.run();
    let after = world.store.engine.status().statements;
    let append = world.store.durable.last().map(|group| group.appends[0].events.len());
    assert_eq!((append, after.events - before.events), (Some(16), 1));
    let each = (after.total() - before.total()) as f64 / 16.0;
    assert!(each <= 0.6, "{each}: {before:?} {after:?}");
}
