//! A client that reads slowly falls behind and reads on, missing nothing; one that takes nothing at all is closed with a
//! code that lets it resume. Others are not slowed down by either.

use crate::common::device::{direct, payload_frame};
use crate::common::{Device, JSON, RKYV, Server, Settings, poll, random};
use parley_protocol::{ChatId, ClientMsgId};
use std::collections::VecDeque;
use std::net::TcpStream;

/// More than the kernel keeps for a connection whose receive buffer is small.
const MESSAGES: u64 = 2_000;
const BYTES: usize = 4_096;

fn settings() -> Settings {
    Settings::new()
        .both("message", "payload_bytes_max", BYTES)
        .gateway("message.frame_bytes_max", 16_384)
        .gateway("session.outbox_bytes_max", 32_768)
}

/// A device whose kernel takes little before it reads.
fn narrow(server: &Server, name: &str) -> Device {
    let mut device = Device::new(&server.target(), name, RKYV);
    device.mark = Some(0);
    let stream = TcpStream::connect(server.listen.addr).expect("the gateway accepts");
    rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 128 * 1024).expect("a small buffer");
    device.dial_on(stream).expect("upgraded");
    let token = server.target().token(name, 3_600, false);
    let hello = device.hello(Some(token), None);
    device.greet(hello).expect("welcome");
    device.catch_up();
    device
}

/// Sends payloads as fast as they are acknowledged.
fn flood(device: &mut Device, chat: ChatId) {
    let payload = vec![b'.'; BYTES];
    let mut waiting = VecDeque::new();
    for _ in 0..MESSAGES {
        let id = ClientMsgId(random());
        device.say(&payload_frame(chat, id, &payload));
        waiting.push_back(id);
        if waiting.len() == 32 {
            let id = waiting.pop_front().expect("32 are there");
            device.answer(id).expect("taken");
        }
    }
    for id in waiting {
        device.answer(id).expect("taken");
    }
}

#[test]
fn a_slow_reader_falls_behind_and_misses_nothing() {
    let server = Server::up_with(settings());
    let mut alice = server.device("alice", RKYV);
    let mut slow = narrow(&server, "bob");
    let mut quick = server.device("bob", JSON);
    let chat = direct(&alice, &slow);
    flood(&mut alice, chat);
    quick.wait_event(chat, MESSAGES);
    assert!(server.metric("parley_gateway_entries_dropped_total") > 0, "nothing was dropped: this tests nothing");
    slow.wait_event(chat, MESSAGES);
    assert_eq!(slow.arrived(chat), (1..=MESSAGES).collect::<Vec<u64>>(), "in order, in one connection");
    assert_eq!(quick.arrived(chat), (1..=MESSAGES).collect::<Vec<u64>>());
    slow.sync();
}

#[test]
fn a_stalled_reader_is_closed_and_resumes() {
    let server = Server::up_with(settings().gateway("session.stalled_reader_ms", 1_000));
    let mut alice = server.device("alice", RKYV);
    let mut stalled = narrow(&server, "bob");
    let chat = direct(&alice, &stalled);
    flood(&mut alice, chat);
    poll("the stalled reader to be noticed", || server.metric("parley_gateway_closed_stalled_total") == 1);
    // It wakes up, reads what its kernel had, and finds the close behind it.
    assert_eq!(stalled.wait_closed(), 4001);
    assert!(stalled.seqs(chat).len() < MESSAGES as usize, "it was not stalled: this tests nothing");
    stalled.reconnect();
    stalled.wait_event(chat, MESSAGES);
    assert_eq!(stalled.seqs(chat), (1..=MESSAGES).collect::<Vec<u64>>());
    alice.post(chat, "and on");
    stalled.wait_event(chat, MESSAGES + 1);
}
