//! What a client may send without waiting for answers, before `welcome` and after it: the last byte that is kept, and the
//! first that is not. After `welcome` no real socket comes that far, because it is not read any more long before.

mod world;

use gateway_core::stats::Reason;
use parley_protocol::ClientFrame;
use parley_protocol::frame::{Hello, Ping, ServerFrame};
use parley_protocol::wire::{self, Encoding};
use parley_protocol::{DeviceId, limits};
use world::{World, client_frame, options};

/// What is kept before `welcome`: the default of `frame_bytes_max`.
const BEFORE_WELCOME_BYTES: usize = 64 << 10;
/// What is kept of a session whose requests have no answer.
const UNANSWERED_BYTES: usize = 1 << 20;
const REQUESTS_MAX: u16 = 4;

fn encoded(frame: &ClientFrame) -> Vec<u8> {
    let mut payload = Vec::new();
    wire::encode_client_frame(Encoding::Rkyv, frame, &mut payload);
    client_frame(2, &payload)
}

/// Exactly so many bytes of frames that mean nothing, then a ping.
fn ahead(bytes: usize) -> Vec<u8> {
    const LEAST: usize = 6;
    const MOST: usize = LEAST + 125;
    let ping = encoded(&ClientFrame::Ping(Ping { nonce: 7 }));
    let mut left = bytes - ping.len();
    let mut out = Vec::new();
    while left > 0 {
        let take = if left > MOST { MOST.min(left - LEAST) } else { left };
        out.extend(client_frame(10, &vec![0; take - LEAST]));
        left -= take;
    }
    out.extend(ping);
    assert_eq!(out.len(), bytes);
    out
}

/// The ping at the end was acted on.
fn was_kept(world: &mut World, client: u64) -> bool {
    let pong = |frame: &ServerFrame| matches!(frame, ServerFrame::Pong(pong) if pong.nonce == 7);
    world.client(client).frames.iter().any(pong)
}

fn refused(world: &World) -> u64 {
    let shards = world.gateways[0].shards.iter();
    shards.map(|shard| shard.stats.rejected.values()[Reason::SentAhead as usize]).sum()
}

#[test]
fn before_welcome_it_is_a_frame() {
    for above in [0, 1] {
        let mut world = World::new(&options(2), storage_core::Options::default());
        world.writer_stopped = true;
        let client = world.open(0, 0);
        let hello = Hello {
            version: limits::PROTOCOL_VERSION,
            device_id: DeviceId(1),
            token: Some("alice".to_owned()),
            resume: None,
            mark: None,
            kinds_known: Vec::new(),
            client: String::new(),
            act_for: None,
        };
        world.say(client, ClientFrame::Hello(hello));
        ahead(BEFORE_WELCOME_BYTES + above).chunks(1_000).for_each(|chunk| world.data(client, chunk));
        world.writer_stopped = false;
        world.sleep(1_000);
        assert_eq!(world.client(client).closed, (above == 1).then_some(1008));
        assert_eq!((was_kept(&mut world, client), refused(&world)), (above == 0, above as u64));
    }
}

#[test]
fn with_requests_unanswered_it_is_a_mebibyte() {
    for above in [0, 1] {
        let options = gateway_core::options::Options { requests_in_flight_max: REQUESTS_MAX, ..options(2) };
        let mut world = World::new(&options, storage_core::Options::default());
        let alice = world.connect("alice", 1, None);
        let bob = world.connect("bob", 2, None);
        let chat = world.direct(alice, bob);
        world.writer_stopped = true;
        for number in 0..=REQUESTS_MAX {
            let frame = world.text(chat, &number.to_string());
            world.say(alice, frame);
        }
        ahead(UNANSWERED_BYTES + above).chunks(1_000).for_each(|chunk| world.data(alice, chunk));
        world.writer_stopped = false;
        world.sleep(1_000);
        assert_eq!(world.client(alice).closed, (above == 1).then_some(4001));
        assert_eq!((was_kept(&mut world, alice), refused(&world)), (above == 0, above as u64));
        // What was asked before has its answer: the last one waited with what is not kept.
        let asked = usize::from(REQUESTS_MAX) + 1 - above;
        assert_eq!(world.texts(bob).len(), asked);
    }
}
