//! A device that was away gets what it missed, joined with what happens meanwhile: no gap, no double. A new device and
//! one that was away too long start over from the chat list.

use crate::common::device::direct;
use crate::common::{Device, JSON, RKYV, Server, Settings};
use parley_protocol::ServerFrame;

#[test]
fn backlog_and_live_join_without_a_gap_or_a_double() {
    // Small pages and few held items make the rare paths common.
    let settings = Settings::new().gateway("session.sync_page_entries_max", 16).gateway("session.held_items_max", 8);
    let server = Server::up_with(settings);
    let mut alice = server.device("alice", RKYV);
    let mut bob = server.device_from_start("bob", JSON);
    let mut bob_phone = server.device_from_start("bob", RKYV);
    let chat = direct(&alice, &bob);
    let mut head = 0;
    for round in 0..4 {
        bob.cut();
        bob_phone.cut();
        alice.post_all(chat, (0..300).map(|index| format!("round {round}, message {index}")));
        // Half of the second burst comes while the devices come back.
        let target = server.target();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| alice.post_all(chat, (0..300).map(|index| format!("live {round} {index}"))));
            for device in [&mut bob, &mut bob_phone] {
                device.target = target.clone();
                device.reconnect();
            }
            writer.join().expect("alice writes on");
        });
        head += 600;
        for device in [&mut bob, &mut bob_phone] {
            device.wait_event(chat, head);
            assert_eq!(device.seqs(chat), (1..=head).collect::<Vec<u64>>(), "{} has everything", device.name);
            let arrived = device.arrived(chat);
            let first = *arrived.first().expect("something came");
            assert_eq!(arrived, (first..=head).collect::<Vec<u64>>(), "dense within a connection");
            device.sync();
            assert!(device.mark.is_some());
        }
    }
}

/// Two devices each, two senders, everybody drops in and out; at the end all four have the same.
#[test]
fn two_devices_each_end_with_the_same() {
    let server = Server::up();
    let mut devices: Vec<Device> = [("alice", JSON), ("alice", RKYV), ("bob", JSON), ("bob", RKYV)]
        .map(|(name, encoding)| server.device_from_start(name, encoding))
        .into();
    let chat = direct(&devices[0], &devices[2]);
    let mut written = 0;
    for round in 0..8 {
        let away = round % devices.len();
        devices[away].cut();
        for (index, device) in devices.iter_mut().enumerate().filter(|(index, _)| *index != away) {
            device.post_all(chat, (0..10).map(|number| format!("{round}/{index}/{number}")));
            written += 10;
        }
        devices[away].reconnect();
    }
    for device in &mut devices {
        device.wait_event(chat, written);
        assert_eq!(device.seqs(chat), (1..=written).collect::<Vec<u64>>());
    }
    let (first, others) = devices.split_first().expect("four devices");
    assert!(others.iter().all(|device| device.events == first.events), "the same events everywhere");
}

/// Own state (read marks, mute) is part of the stream: a device that was away learns of it.
#[test]
fn own_state_is_synced_too() {
    let server = Server::up();
    let mut alice = server.device("alice", JSON);
    let mut bob = server.device("bob", JSON);
    let mut bob_phone = server.device_from_start("bob", RKYV);
    let chat = direct(&alice, &bob);
    alice.post(chat, "one");
    bob_phone.wait_event(chat, 1);
    bob_phone.sync();
    bob_phone.cut();
    bob.wait_event(chat, 1);
    bob.read(chat, 1);
    bob.mute(chat, 1_900_000_000_000);
    bob.wait_own(chat, |own| own.muted_until_ms == 1_900_000_000_000);
    bob_phone.reconnect();
    bob_phone.wait_own(chat, |own| own.read_seq == 1 && own.muted_until_ms == 1_900_000_000_000);
}

#[test]
fn a_new_device_starts_over_from_chats_and_history() {
    let server = Server::up();
    let mut alice = server.device("alice", JSON);
    let bob = server.device("bob", JSON);
    let chat = direct(&alice, &bob);
    alice.post_all(chat, (0..450).map(|index| format!("message {index}")));
    drop(bob);
    let mut tablet = Device::new(&server.target(), "bob", RKYV).connected();
    assert!(
        tablet.queue.iter().any(|frame| matches!(frame, ServerFrame::Truncated(_))),
        "a new device gets no backlog"
    );
    assert!(tablet.events.is_empty());
    let summary = tablet.chat(chat);
    assert_eq!((summary.head_seq, summary.unread), (450, 450));
    let history = tablet.history(chat, 0);
    assert_eq!(history.iter().map(|event| event.seq).collect::<Vec<_>>(), (1..=450).collect::<Vec<u64>>());
    // From its mark on it is a device like any other.
    alice.post(chat, "after");
    tablet.wait_event(chat, 451);
    tablet.sync();
    tablet.cut();
    alice.post(chat, "while away");
    tablet.reconnect();
    assert_eq!(tablet.arrived(chat), [452]);
}

#[test]
fn a_long_backlog_is_truncated_and_history_fills_it() {
    let server = Server::up_with(Settings::new().gateway("session.sync_backlog_max", 20));
    let mut alice = server.device("alice", JSON);
    let mut bob = server.device_from_start("bob", RKYV);
    let chat = direct(&alice, &bob);
    alice.post(chat, "one");
    bob.wait_event(chat, 1);
    bob.sync();
    bob.cut();
    alice.post_all(chat, (0..20).map(|index| format!("message {index}")));
    bob.reconnect();
    assert_eq!(bob.arrived(chat), (2..=21).collect::<Vec<u64>>(), "as long as allowed: sent");
    bob.sync();
    bob.cut();
    alice.post_all(chat, (0..21).map(|index| format!("more {index}")));
    bob.reconnect();
    assert!(bob.queue.iter().any(|frame| matches!(frame, ServerFrame::Truncated(_))), "one more: truncated");
    assert!(bob.arrived(chat).is_empty());
    assert_eq!(bob.history(chat, 21).len(), 21);
    alice.post(chat, "live again");
    bob.wait_event(chat, 43);
    // A mark that no inbox ever had is answered with the truth.
    bob.mark = Some(1 << 40);
    bob.reconnect();
    assert!(bob.mark.is_some_and(|mark| mark < 1 << 40), "{:?}", bob.mark);
}

/// Pages before and after any point, to the ends of the log.
#[test]
fn history_is_paged_both_ways() {
    let server = Server::up();
    let mut alice = server.device("alice", JSON);
    let bob = server.device("bob", JSON);
    let chat = direct(&alice, &bob);
    alice.post_all(chat, (0..50).map(|index| format!("message {index}")));
    let mut seqs = |before, after, limit| {
        let (events, more) = alice.history_page(chat, before, after, limit).expect("a page");
        (events.iter().map(|event| event.seq).collect::<Vec<_>>(), more)
    };
    assert_eq!(seqs(None, None, 3), (vec![48, 49, 50], true));
    assert_eq!(seqs(Some(48), None, 3), (vec![45, 46, 47], true));
    assert_eq!(seqs(Some(3), None, 10), (vec![1, 2], false));
    assert_eq!(seqs(Some(1), None, 10), (vec![], false));
    assert_eq!(seqs(None, Some(0), 2), (vec![1, 2], true));
    assert_eq!(seqs(None, Some(48), 2), (vec![49, 50], false));
    assert_eq!(seqs(None, Some(50), 2), (vec![], false));
    assert_eq!(seqs(None, None, 0), ((1..=50).collect(), false));
}
