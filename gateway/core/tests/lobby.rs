//! Connections without a session: what they send costs little, and nothing of it is lost on the way to the seat.

mod world;

use parley_protocol::frame::{Hello, Ping, ServerFrame};
use parley_protocol::wire::{self, Encoding};
use parley_protocol::{ClientFrame, DeviceId, limits};
use world::{World, client_frame, options};

fn encoded(frame: &ClientFrame) -> Vec<u8> {
    let mut payload = Vec::new();
    wire::encode_client_frame(Encoding::Rkyv, frame, &mut payload);
    client_frame(2, &payload)
}

fn hello(name: &str) -> ClientFrame {
    ClientFrame::Hello(Hello {
        version: limits::PROTOCOL_VERSION,
        device_id: DeviceId(1),
        token: Some(name.to_owned()),
        resume: None,
        mark: None,
        kinds_known: Vec::new(),
        client: String::new(),
        act_for: None,
    })
}

#[test]
fn pings_before_hello_are_few() {
    let mut world = World::new(&options(1), storage_core::Options::default());
    let stranger = world.open(0, 0);
    for _ in 0..1_000 {
        world.data(stranger, &client_frame(9, &[7; 125]));
    }
    assert_eq!(world.client(stranger).closed, Some(1008));
}

#[test]
fn what_follows_hello_reaches_the_session_wherever_it_is_cut() {
    for shards in [1, 3] {
        let all = [encoded(&hello("alice")), encoded(&ClientFrame::Ping(Ping { nonce: 1 }))].concat();
        let tail = encoded(&ClientFrame::Ping(Ping { nonce: 2 }));
        for cut in 1..all.len() {
            let mut world = World::new(&options(shards), storage_core::Options::default());
            let client = world.open(0, 0);
            world.data(client, &all[..cut]);
            if cut % 2 == 0 {
                world.settle();
            }
            world.data(client, &all[cut..]);
            world.data(client, &tail);
            world.settle();
            let pongs = world.client(client).frames.iter().filter(|frame| matches!(frame, ServerFrame::Pong(_)));
            assert_eq!(pongs.count(), 2, "cut at {cut}");
        }
    }
}
