//! Live connections between poll and multishot receive, in the ring driver: a heartbeat stays polled, who is active
//! gets a multishot receive, who was idle for long goes back, and no byte is lost on the way.

mod plane_support;

use gateway::echo;
use gateway::plane::{BufferOptions, Counters, DriverChoice, Exit, Handle, Options, RingOptions};
use plane_support::{RINGS, connect, options};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};
use tungstenite::{Message, WebSocket};

/// Longer than the second within which receives are counted.
const BEAT: Duration = Duration::from_millis(1_100);
/// What takes this long has hung.
const HUNG: Duration = Duration::from_secs(20);

fn start(poll_after_ms: u64) -> Handle {
    let rings = RingOptions { poll_after_ms, ..RINGS };
    // One size of buffers, whichever ring it is.
    let buffers = BufferOptions { count: 16, bytes: 1024 };
    echo::serve(Options { rings, buffers, ..options(DriverChoice::Uring, 1) }).expect("starts")
}

fn end(server: Handle) {
    server.drain(HUNG);
    assert_eq!(server.join(), Exit::Drained);
}

fn echoes(client: &mut WebSocket<TcpStream>, bytes: usize) {
    let message = Message::binary((0..bytes).map(|n| (n % 251) as u8).collect::<Vec<u8>>());
    client.send(message.clone()).expect("sends");
    assert_eq!(client.read().expect("an echo"), message, "{bytes} bytes");
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < HUNG, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn shard(server: &Handle) -> &Counters {
    &server.counters()[0]
}

#[test]
fn a_heartbeat_is_polled_and_comes_whole() {
    let server = start(1_000);
    let mut client = connect(&server);
    // With the header: less than a buffer, exactly one, one and a bit, exactly two.
    for bytes in [1, 1024 - 8, 1024, 2 * 1024 - 8] {
        std::thread::sleep(BEAT);
        echoes(&mut client, bytes);
    }
    assert_eq!((shard(&server).live.get(), shard(&server).streaming.get()), (1, 0));
    assert_eq!(shard(&server).promotions.get(), 0);
    // It learns of the end as well.
    client.get_ref().shutdown(Shutdown::Both).expect("a socket");
    until("the end is seen", || shard(&server).connections.get() == 0);
    assert_eq!(shard(&server).live.get(), 0);
    end(server);
}

#[test]
fn who_is_active_streams_and_goes_back_when_idle() {
    let server = start(1_000);
    let mut idle = connect(&server);
    let mut client = connect(&server);
    for round in 1..=3 {
        until("an active connection streams", || {
            echoes(&mut client, 100);
            shard(&server).promotions.get() == round
        });
        assert_eq!(shard(&server).streaming.get(), 1);
        echoes(&mut client, 100_000);
        until("an idle one goes back", || shard(&server).demotions.get() == round);
        assert_eq!(shard(&server).streaming.get(), 0);
    }
    echoes(&mut idle, 10);
    // One that streams leaves.
    until("it streams again", || {
        echoes(&mut client, 100);
        shard(&server).streaming.get() == 1
    });
    drop(client);
    until("its end is seen", || shard(&server).connections.get() == 1);
    assert_eq!((shard(&server).live.get(), shard(&server).streaming.get()), (1, 0));
    drop(idle);
    end(server);
}

#[test]
fn without_a_time_all_stream_for_ever() {
    let server = start(0);
    let mut clients: Vec<_> = (0..40).map(|_| connect(&server)).collect();
    std::thread::sleep(BEAT);
    clients.iter_mut().for_each(|client| echoes(client, 5_000));
    assert_eq!((shard(&server).live.get(), shard(&server).streaming.get()), (40, 40));
    assert_eq!((shard(&server).promotions.get(), shard(&server).demotions.get()), (0, 0));
    drop(clients);
    end(server);
}

#[test]
fn nothing_is_lost_between_the_two() {
    const CLIENTS: u64 = 48;
    const BURSTS: u64 = 6;
    let server = start(1_000);
    std::thread::scope(|scope| {
        for n in 0..CLIENTS {
            let mut client = connect(&server);
            scope.spawn(move || {
                for burst in 0..BURSTS {
                    // About when it goes back, a little earlier or later each time.
                    std::thread::sleep(Duration::from_millis(900 + (n * 37 + burst * 61) % 1_300));
                    // Sent ahead: bytes wait whenever the server changes its way of receiving.
                    let messages: Vec<_> =
                        (0..6).map(|m| Message::binary(vec![(n + burst + m) as u8; 700 * m as usize])).collect();
                    messages.iter().for_each(|message| client.send(message.clone()).expect("sends"));
                    for message in messages {
                        assert_eq!(client.read().expect("an echo"), message, "client {n}, burst {burst}");
                    }
                }
            });
        }
    });
    assert!(shard(&server).promotions.get() > CLIENTS, "{} promotions", shard(&server).promotions.get());
    assert!(shard(&server).demotions.get() > CLIENTS, "{} demotions", shard(&server).demotions.get());
    end(server);
}
