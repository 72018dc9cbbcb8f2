//! What a session knows of the bytes that wait for its client: nothing that is queued is forgotten, so a reader that takes
//! nothing is noticed and what is kept for it stays bounded.

mod world;

use world::{World, client_frame, options};

const PINGS: usize = 100;
const PONG_BYTES: usize = 2 + 125;

fn deaf(world: &mut World) -> u64 {
    let client = world.connect("alice", 1, None);
    world.settle();
    world.client(client).deaf = true;
    client
}

/// Longer than any patience with a stalled reader, with a sign of life a second that asks for no answer.
fn live_on(world: &mut World, client: u64) {
    for _ in 0..120 {
        world.data(client, &client_frame(10, b""));
        world.sleep(1_000);
    }
}

/// A driver may tell of what the kernel took after it handed in what the client sent in the same turn: the answers to
/// that are not in the shell's queue yet, and not in its count.
#[test]
fn a_completed_send_does_not_hide_what_was_queued_behind_it() {
    let mut world = World::new(&options(1), storage_core::Options::default());
    let client = deaf(&mut world);
    world.data(client, &client_frame(9, &[7; 125]));
    world.data(client, &client_frame(9, &[7; 125]).repeat(PINGS));
    world.took(client, PONG_BYTES, 0);
    live_on(&mut world, client);
    assert_eq!(world.client(client).closed, Some(4001));
}

#[test]
fn a_reader_that_took_everything_is_not_stalled() {
    let mut world = World::new(&options(1), storage_core::Options::default());
    let client = deaf(&mut world);
    world.data(client, &client_frame(9, &[7; 125]).repeat(PINGS));
    world.took(client, PINGS * PONG_BYTES, 0);
    live_on(&mut world, client);
    assert_eq!(world.client(client).closed, None);
}
