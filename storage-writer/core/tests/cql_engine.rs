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
