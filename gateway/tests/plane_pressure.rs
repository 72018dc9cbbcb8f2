//! Clients that do not read, shards that are full, clients that vanish: nobody else notices.

mod plane_support;

use gateway::echo;
use gateway::plane::{BufferOptions, DriverChoice, Exit, Options};
use plane_support::{DRIVERS, connect, on_both_drivers, options, tcp};
use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;
use tungstenite::Message;
use tungstenite::WebSocket;

/// Writes echoes that it does not read until the server stops reading too, and says how many bytes that took.
fn stuff(client: &mut WebSocket<TcpStream>, message: &Message) -> usize {
    client.get_ref().set_nonblocking(true).expect("a socket");
    let mut sent = 0;
    loop {
        match client.send(message.clone()) {
            Ok(()) => sent += message.len(),
            Err(tungstenite::Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                // Full for the moment, or for good: for good when nothing moves for a while.
                std::thread::sleep(Duration::from_millis(200));
                if client.flush().is_err() {
                    return sent + message.len();
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_client_that_does_not_read_stops_nobody_and_loses_nothing() {
    on_both_drivers(1, |server| {
        let mut slow = connect(server);
        let message = Message::binary(vec![5; 100_000]);
        let stuffed = stuff(&mut slow, &message);
        let mut other = connect(server);
        for n in 0..100 {
            other.send(Message::text(format!("{n}"))).expect("sends");
            assert_eq!(other.read().expect("an echo"), Message::text(format!("{n}")));
        }
        // The server holds a bounded part of it: the rest is in the sockets' buffers, or was never taken.
        let counters = &server.counters()[0];
        let held = counters.bytes_in.get() - counters.bytes_out.get();
        assert!(held < 4 << 20, "{held} bytes are held for a client that does not read");
        // It reads on, and all is there.
        let mut waits = 0;
        let mut echoed = 0;
        while echoed < stuffed {
            // Its own last message may be stuck as well.
            let _ = slow.flush();
            match slow.read() {
                Ok(echo) => {
                    assert_eq!(echo, message);
                    echoed += echo.len();
                }
                Err(tungstenite::Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(1));
                    waits += 1;
                    assert!(waits < 20_000, "{echoed} of {stuffed} bytes are back");
                }
                Err(error) => panic!("{error}"),
            }
        }
    });
}

#[test]
fn a_full_shard_takes_the_next_when_one_leaves() {
    for driver in DRIVERS {
        let server = echo::serve(Options { connections_max: 3, ..options(driver, 1) }).expect("starts");
        let mut clients: Vec<_> = (0..3).map(|_| connect(&server)).collect();
        // It waits in the backlog, or was dropped by a shard that could not refuse it in time.
        let waiting = tcp(&server);
        clients[0].close(None).expect("sends");
        while clients[0].read().is_ok() {}
        drop(waiting);
        let mut next = loop {
            let url = format!("ws://{}/ws", server.addr());
            if let Ok((client, _)) = tungstenite::client(url, tcp(&server)) {
                break client;
            }
        };
        next.send(Message::text("in")).expect("sends");
        assert_eq!(next.read().expect("an echo"), Message::text("in"));
        assert!(server.counters()[0].accept_pauses.get() > 0);
        drop((clients, next));
        server.drain(Duration::from_secs(20));
        assert_eq!(server.join(), Exit::Drained, "{driver:?}");
    }
}

#[test]
fn more_data_than_receive_buffers_waits_for_its_turn() {
    for driver in DRIVERS {
        let buffers = BufferOptions { count: 2, bytes: 1024 };
        let server = echo::serve(Options { buffers, ..options(driver, 1) }).expect("starts");
        let mut clients: Vec<_> = (0..30).map(|_| connect(&server)).collect();
        let message = |n: usize| Message::binary(vec![n as u8; 20_000]);
        for round in 0..3 {
            for (n, client) in clients.iter_mut().enumerate() {
                client.send(message(n + round)).expect("sends");
            }
            for (n, client) in clients.iter_mut().enumerate() {
                assert_eq!(client.read().expect("an echo"), message(n + round));
            }
        }
        let starved = server.counters()[0].enobufs.get();
        assert_eq!(starved > 0, driver == DriverChoice::Uring, "only the ring driver shares buffers");
        drop(clients);
        server.drain(Duration::from_secs(20));
        assert_eq!(server.join(), Exit::Drained, "{driver:?}");
    }
}

#[test]
fn slots_are_used_again_by_those_who_come_and_go() {
    on_both_drivers(1, |server| {
        for round in 0..300 {
            let mut client = connect(server);
            client.send(Message::text(format!("{round}"))).expect("sends");
            if round % 3 == 0 {
                // Vanishes with an echo on its way.
                continue;
            }
            assert_eq!(client.read().expect("an echo"), Message::text(format!("{round}")));
            if round % 3 == 1 {
                client.close(None).expect("sends");
                while client.read().is_ok() {}
            }
        }
        assert_eq!(server.counters()[0].accepted.get(), 300);
    });
}

#[test]
fn a_drain_says_goodbye() {
    for driver in DRIVERS {
        let server = echo::serve(options(driver, 2)).expect("starts");
        let mut clients: Vec<_> = (0..10).map(|_| connect(&server)).collect();
        server.drain(Duration::from_secs(20));
        for client in &mut clients {
            let Ok(Message::Close(Some(close))) = client.read() else { panic!("no goodbye") };
            assert_eq!(u16::from(close.code), 1001);
            while client.read().is_ok() {}
        }
        assert_eq!(server.join(), Exit::Drained, "{driver:?}");
    }
}

#[test]
fn a_drain_ends_at_its_deadline_though_a_client_stays() {
    for driver in DRIVERS {
        let server = echo::serve(Options { linger_ms: 60_000, ..options(driver, 2) }).expect("starts");
        let mut stays = connect(&server);
        let addr = server.addr();
        server.drain(Duration::from_millis(50));
        assert_eq!(server.join(), Exit::DeadlinePassed, "{driver:?}");
        assert!(TcpStream::connect(addr).is_err(), "nobody listens any more");
        // Its socket is closed, though it never answered.
        let _ = stays.get_mut().read_to_end(&mut Vec::new());
    }
}

#[test]
fn who_comes_during_a_drain_is_refused() {
    for driver in DRIVERS {
        let server = echo::serve(Options { linger_ms: 60_000, ..options(driver, 2) }).expect("starts");
        let mut stays = connect(&server);
        server.drain(Duration::from_secs(20));
        let Ok(Message::Close(_)) = stays.read() else { panic!("no goodbye") };
        // The listeners of both shards close at the beginning of the drain, which this client still holds up.
        while TcpStream::connect(server.addr()).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(server.is_running());
        drop(stays);
        assert_eq!(server.join(), Exit::Drained, "{driver:?}");
    }
}
