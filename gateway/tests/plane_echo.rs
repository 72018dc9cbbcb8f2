//! The echo brain over real sockets, with tungstenite as the client, on both drivers.

mod plane_support;

use plane_support::{connect, on_both_drivers};
use tungstenite::Message;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};

#[test]
fn messages_of_every_size_come_back() {
    on_both_drivers(1, |server| {
        let mut client = connect(server);
        for bytes in [0, 1, 125, 126, 4_000, 65_535, 65_536, 1 << 20, 16 << 20] {
            let payload: Vec<u8> = (0..bytes).map(|i: usize| (i % 251) as u8).collect();
            client.send(Message::binary(payload.clone())).expect("sends");
            assert_eq!(client.read().expect("an echo").into_data(), payload, "{bytes} bytes");
        }
        for text in ["", "ASCII", "grüße, 世界 🎉"] {
            client.send(Message::text(text)).expect("sends");
            assert_eq!(client.read().expect("an echo"), Message::text(text));
        }
    });
}

#[test]
fn fragments_come_back_as_one_message_around_a_ping() {
    on_both_drivers(1, |server| {
        let mut client = connect(server);
        let text = "grüße".as_bytes();
        let parts = [(&text[..3], OpCode::Data(Data::Text), false), (&text[3..], OpCode::Data(Data::Continue), true)];
        for (index, (part, opcode, last)) in parts.into_iter().enumerate() {
            client.send(Message::Frame(Frame::message(part.to_vec(), opcode, last))).expect("sends");
            if index == 0 {
                client.send(Message::Ping(b"now".to_vec().into())).expect("sends");
            }
        }
        assert_eq!(client.read().expect("a pong"), Message::Pong(b"now".to_vec().into()));
        assert_eq!(client.read().expect("an echo"), Message::text("grüße"));
    });
}

#[test]
fn pipelined_messages_keep_their_order() {
    on_both_drivers(1, |server| {
        let mut client = connect(server);
        const MESSAGES: u32 = 20_000;
        let mut expected = 0;
        for n in 0..MESSAGES {
            client.write(Message::binary(n.to_le_bytes().to_vec())).expect("writes");
            // Reads keep up, so that neither side's buffers fill for good.
            if n % 64 == 63 {
                client.flush().expect("flushes");
                while expected <= n {
                    assert_eq!(client.read().expect("an echo").into_data(), expected.to_le_bytes().to_vec());
                    expected += 1;
                }
            }
        }
        client.flush().expect("flushes");
        for n in expected..MESSAGES {
            assert_eq!(client.read().expect("an echo").into_data(), n.to_le_bytes().to_vec());
        }
    });
}

#[test]
fn a_close_is_answered_with_its_code() {
    use tungstenite::protocol::CloseFrame;
    use tungstenite::protocol::frame::coding::CloseCode;
    on_both_drivers(1, |server| {
        let mut client = connect(server);
        let frame = CloseFrame { code: CloseCode::Library(4005), reason: "bye".into() };
        client.close(Some(frame)).expect("sends");
        let Message::Close(Some(answer)) = client.read().expect("an answer") else { panic!("no close frame") };
        assert_eq!(answer.code, CloseCode::Library(4005));
        assert!(matches!(client.read(), Err(tungstenite::Error::ConnectionClosed)));
    });
}

#[test]
fn many_connections_are_served_on_several_shards() {
    on_both_drivers(2, |server| {
        let mut clients: Vec<_> = (0..300).map(|_| connect(server)).collect();
        for round in 0..3 {
            for (n, client) in clients.iter_mut().enumerate() {
                client.send(Message::text(format!("{round}/{n}"))).expect("sends");
            }
            for (n, client) in clients.iter_mut().enumerate() {
                assert_eq!(client.read().expect("an echo"), Message::text(format!("{round}/{n}")));
            }
        }
        let accepted: Vec<u64> = server.counters().iter().map(|shard| shard.accepted.get()).collect();
        assert_eq!(accepted.iter().sum::<u64>(), 300);
        assert!(accepted.iter().all(|n| *n > 0), "the kernel spreads them: {accepted:?}");
    });
}
