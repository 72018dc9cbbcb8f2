//! A gateway that was stopped, replaced by another and woken again commits nothing, acknowledges nothing, sends its
//! clients away to come again, and ends with an error.

use crate::common::device::{direct, text_frame, text_of};
use crate::common::{Device, JSON, Port, RKYV, Server, random};
use parley_protocol::{ClientMsgId, ServerFrame, close};
use rustix::process::Signal;

/// 4003 from the shard that hears of it, 4000 from the others, which see their clients off.
fn assert_retry(code: u16) {
    assert!([close::RETRY_LATER, close::DRAINING].contains(&code), "{code} is no code to come again with");
}

#[test]
fn a_woken_gateway_commits_and_acknowledges_nothing() {
    let mut server = Server::apart();
    let mut alice = server.device("alice", JSON);
    let mut alice_phone = server.device("alice", RKYV);
    let mut bob = server.device_from_start("bob", RKYV);
    let chat = direct(&alice, &bob);
    // Its homes are loaded: nothing but the epoch can hold it back.
    alice.post(chat, "by the first gateway");
    bob.wait_event(chat, 1);
    bob.sync();

    server.gateway().signal(Signal::STOP);
    // Said to the stopped one: the bytes wait in its sockets.
    let late: Vec<_> = (0..50).map(|index| text_frame(chat, ClientMsgId(random()), &format!("late {index}"))).collect();
    for frame in &late {
        alice.say(frame);
    }
    let (listen, admin) = (Port::take(), Port::take());
    let mut second = server.spawn_gateway("second gateway", listen.addr, admin.addr);
    second.wait_ready();
    bob.cut();
    bob.target.addr = listen.addr;
    bob.reconnect();
    assert_eq!(bob.post(chat, "by the second gateway").seq, 2);

    server.gateway().signal(Signal::CONT);
    for device in [&mut alice, &mut alice_phone] {
        assert_retry(device.wait_closed());
        let acknowledged = device.queue.iter().find(|frame| matches!(frame, ServerFrame::Sent(_)));
        assert_eq!(acknowledged, None, "nothing is acknowledged");
    }
    let status = server.gateway().wait_exit();
    assert!(!status.success(), "a fenced gateway ends with an error, not with {status}");
    assert_eq!(bob.history(chat, 0).len(), 2, "nothing is committed");

    // What was never acknowledged is sent again, to the one that serves.
    let mut moved = Device::new(&server.target(), "alice", JSON);
    moved.target.addr = listen.addr;
    moved.device_id = alice.device_id;
    moved.mark = alice.mark;
    moved.log_in();
    for (index, frame) in late.iter().enumerate() {
        assert_eq!(moved.command(frame).expect("taken").seq, 3 + index as u64);
    }
    bob.wait_event(chat, 52);
    assert_eq!(bob.seqs(chat), (1..=52).collect::<Vec<u64>>());
    assert_eq!(text_of(&bob.events[&(chat, 52)]), "late 49");
    assert!(second.terminate().success());
}

/// Also while the stopped one had commands under way in the storage tier.
#[test]
fn commands_under_way_are_settled_by_the_retry() {
    let mut server = Server::apart();
    let mut alice = server.device("alice", RKYV);
    let bob = server.device("bob", JSON);
    let chat = direct(&alice, &bob);
    alice.post(chat, "first");
    let frames: Vec<_> =
        (0..100).map(|index| text_frame(chat, ClientMsgId(random()), &format!("under way {index}"))).collect();
    for frame in &frames {
        alice.say(frame);
    }
    // Some are committed and some are not, some of those are answered: whatever they are, the retry finds out.
    server.gateway().signal(Signal::STOP);
    let (listen, admin) = (Port::take(), Port::take());
    let mut second = server.spawn_gateway("second gateway", listen.addr, admin.addr);
    second.wait_ready();
    let mut moved = Device::new(&server.target(), "alice", JSON);
    moved.target.addr = listen.addr;
    moved.log_in();
    // Its answer stands behind the barrier: nothing older can still commit.
    moved.post(chat, "by the second gateway");
    let before = moved.history(chat, 0).len();
    server.gateway().signal(Signal::CONT);
    assert_retry(alice.wait_closed());
    assert!(!server.gateway().wait_exit().success());
    assert_eq!(moved.history(chat, 0).len(), before, "the woken one committed nothing more");
    let answered: Vec<_> = alice
        .queue
        .iter()
        .filter_map(|frame| match frame {
            ServerFrame::Sent(sent) => Some(*sent),
            _ => None,
        })
        .collect();
    for frame in &frames {
        let sent = moved.command(frame).expect("settled");
        let first = answered.iter().find(|first| first.client_msg_id == sent.client_msg_id);
        assert!(first.is_none_or(|first| *first == sent), "{first:?} was promised, and now {sent:?}");
    }
    assert_eq!(moved.history(chat, 0).len(), 102);
    assert!(second.terminate().success());
}
