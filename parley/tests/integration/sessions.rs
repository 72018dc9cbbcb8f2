//! Devices, tickets, tokens, the service role, drain and heartbeat: how sessions begin, go on and end.

use crate::common::device::{direct, text_frame};
use crate::common::raw::{Raw, message, upgrade};
use crate::common::{Device, JSON, RKYV, Server, Settings, poll, random};
use parley_protocol::frame::{DeviceEnd, Hello, Renew};
use parley_protocol::{ClientFrame, ClientMsgId, DeviceId, ErrorCode, ServerFrame};
use rustix::process::Signal;
use std::time::Duration;

#[test]
fn a_second_connection_of_a_device_replaces_the_first() {
    let server = Server::up();
    let mut first = server.device("alice", JSON);
    let bob = server.device("bob", JSON);
    let chat = direct(&first, &bob);
    let mut second = Device::new(&server.target(), "alice", RKYV);
    second.device_id = first.device_id;
    second.log_in();
    assert_eq!(first.wait_closed(), 4020);
    second.post(chat, "the second one works");
    second.wait_event(chat, 1);
}

#[test]
fn as_many_devices_as_allowed() {
    let server = Server::up_with(Settings::new().gateway("session.devices_max", 2));
    let first = server.device("alice", JSON);
    let mut second = server.device("alice", RKYV);
    let mut third = Device::new(&server.target(), "alice", JSON);
    let token = server.target().token("alice", 3_600, false);
    let hello = third.hello(Some(token), None);
    assert_eq!(third.open(hello.clone()).expect_err("one too many"), 4022);
    second.sync();
    // Others are not counted with them, and who leaves makes room.
    let _bob = server.device("bob", JSON);
    drop(first);
    poll("the server to notice that a device left", || match third.open(hello.clone()) {
        Ok(_) => true,
        Err(code) => {
            assert_eq!(code, 4022);
            false
        }
    });
}

#[test]
fn a_ticket_works_across_a_restart_and_without_a_token() {
    let mut server = Server::up();
    let mut alice = server.device("alice", JSON);
    let mut bob = server.device("bob", RKYV);
    let chat = direct(&alice, &bob);
    alice.post(chat, "before");
    bob.wait_event(chat, 1);
    bob.sync();
    server.stop();
    server.start();
    let welcome = {
        bob.cut();
        let hello = bob.hello(None, bob.resume.clone());
        bob.open(hello).expect("the ticket holds")
    };
    assert_eq!(welcome.user_id, bob.user_id);
    assert!(welcome.resume_expires_at_ms > welcome.server_time_ms);
    bob.catch_up();
    alice.reconnect();
    alice.post(chat, "after");
    bob.wait_event(chat, 2);

    // A ticket belongs to one device; a bad one beside a good token is no harm.
    let mut other = Device::new(&server.target(), "bob", JSON);
    let stolen = other.hello(None, bob.resume.clone());
    assert_eq!(other.open(stolen).expect_err("another device's ticket"), 4010);
    let mut garbled = bob.resume.clone().expect("a ticket");
    garbled.replace_range(garbled.len() / 2..=garbled.len() / 2, "_");
    let bad = other.hello(None, Some(garbled.clone()));
    assert_eq!(other.open(bad).expect_err("no ticket at all"), 4010);
    let token = server.target().token("bob", 3_600, false);
    let hello = other.hello(Some(token), Some(garbled));
    assert_eq!(other.open(hello).expect("the token counts").user_id, bob.user_id);
}

#[test]
fn a_token_in_the_upgrade_is_enough() {
    let server = Server::up();
    let token = server.target().token("alice", 3_600, false);
    let mut raw = Raw::connect(server.listen.addr);
    let head = upgrade(JSON).replace("\r\n\r\n", &format!("\r\nAuthorization: Bearer {token}\r\n\r\n"));
    raw.send(head.as_bytes());
    assert_eq!(raw.http_answer().0, 101);
    let hello = Device::new(&server.target(), "alice", JSON).hello(None, None);
    raw.send(&message(JSON, &ClientFrame::Hello(hello)));
    let welcome = raw.receive().expect("an answer");
    let text = String::from_utf8(welcome.payload).expect("JSON");
    assert!(text.contains(r#""type":"welcome""#) && text.contains(r#""name":"alice""#), "{text}");
}

#[test]
fn an_expired_token_closes_and_a_renewed_one_does_not() {
    let settings = Settings::new().gateway("identity.expiry_grace_s", 0).gateway("identity.leeway_s", 0);
    let server = Server::up_with(settings);
    let target = server.target();
    let log_in = |name: &str, ttl_s: u64| {
        let mut device = Device::new(&target, name, JSON);
        let hello = device.hello(Some(target.token(name, ttl_s, false)), None);
        let welcome = device.open(hello).expect("a fresh token");
        device.catch_up();
        (device, welcome)
    };
    // The one that is renewed would end before the one that is not.
    let (mut renewed, _) = log_in("alice", 3);
    let renew = |device: &mut Device, token: String| {
        device.say(&ClientFrame::Renew(Renew { token }));
        device.wait_for("the answer to renew", |frame| match frame {
            ServerFrame::Renewed(renewed) => Some(Ok(renewed.expires_at_ms)),
            ServerFrame::Error(error) => Some(Err(error.code)),
            _ => None,
        })
    };
    assert_eq!(renew(&mut renewed, "not.a.token".into()), Err(ErrorCode::BadToken));
    assert_eq!(renew(&mut renewed, target.token("bob", 3_600, false)), Err(ErrorCode::BadToken), "another user's");
    let expires = renew(&mut renewed, target.token("alice", 3_600, false)).expect("a good token");
    let (mut left, welcome) = log_in("bob", 4);
    assert!(expires > welcome.server_time_ms + 3_000_000);
    assert!(welcome.resume_expires_at_ms <= welcome.server_time_ms + 5_000, "a ticket does not outlive its token");
    assert_eq!(left.wait_closed(), 4011);
    let hello = left.hello(None, left.resume.clone());
    assert_eq!(left.open(hello).expect_err("the ticket is void"), 4010);
    renewed.sync();
    assert_eq!(renewed.closed, None);
}

#[test]
fn a_service_acts_for_a_user_and_ends_devices() {
    let server = Server::up();
    let target = server.target();
    let mut alice = server.device("alice", JSON);
    let mut alice_phone = server.device("alice", RKYV);
    let mut bob = server.device("bob", JSON);
    let chat = direct(&alice, &bob);
    let mut service = Device::new(&target, "backend", RKYV);
    let acting = |device: &Device, service: bool| Hello {
        act_for: Some(alice.user_id),
        ..device.hello(Some(target.token("backend", 3_600, service)), None)
    };
    let plain = acting(&service, false);
    assert_eq!(service.open(plain).expect_err("not a service"), 4023);
    let hello = acting(&service, true);
    let welcome = service.open(hello).expect("a service may act");
    assert_eq!(welcome.user_id, alice.user_id);
    let sent = service.command(&text_frame(chat, ClientMsgId(random()), "on behalf")).expect("as alice");
    for device in [&mut alice, &mut alice_phone, &mut bob] {
        assert_eq!(device.wait_event(chat, sent.seq).sender, welcome.user_id);
    }
    assert_eq!(service.history(chat, 0).len(), 1);
    service.sync();
    assert!(service.arrivals.is_empty() && service.mark.is_none(), "a service gets no stream");

    let end = |device_id: DeviceId| ClientFrame::DeviceEnd(DeviceEnd { device_id });
    bob.say(&end(alice.device_id));
    let refused = bob.wait_for("a refusal", |frame| match frame {
        ServerFrame::Error(error) => Some(error.code),
        _ => None,
    });
    assert_eq!(refused, ErrorCode::Forbidden);
    service.say(&end(bob.device_id));
    service.say(&end(alice.device_id));
    assert_eq!(alice.wait_closed(), 4021);
    alice_phone.sync();
    bob.sync();
    assert_eq!((alice_phone.closed, bob.closed), (None, None), "others stay, of other users too");
}

#[test]
fn mute_reaches_the_other_devices() {
    let server = Server::up();
    let mut alice = server.device("alice", JSON);
    let mut phone = server.device("alice", RKYV);
    let bob = server.device("bob", JSON);
    let chat = direct(&alice, &bob);
    alice.post(chat, "hello");
    const UNTIL_MS: u64 = 1_900_000_000_000;
    alice.mute(chat, UNTIL_MS);
    for device in [&mut alice, &mut phone] {
        device.wait_own(chat, |own| own.muted_until_ms == UNTIL_MS);
    }
    assert_eq!(phone.chat(chat).own.muted_until_ms, UNTIL_MS);
    phone.mute(chat, 0);
    alice.wait_own(chat, |own| own.muted_until_ms == 0);
}

#[test]
fn names_resolve_to_ids_from_the_first_login_on() {
    let server = Server::up();
    let mut alice = server.device("alice", JSON);
    assert_eq!(alice.resolve(&["alice", "bob"]), [(alice.user_id, "alice".to_owned())]);
    let bob = server.device("bob", RKYV);
    assert_eq!(alice.resolve(&["bob", "nobody"]), [(bob.user_id, "bob".to_owned())]);
}

#[test]
fn sigterm_sees_everybody_off_and_ends_with_0() {
    const SPREAD_MS: u32 = 1_500;
    let mut server = Server::up_with(Settings::new().gateway("reconnect_spread_ms", SPREAD_MS));
    let mut devices: Vec<Device> =
        (0..10).map(|index| server.device(&format!("user{index}"), if index % 2 == 0 { JSON } else { RKYV })).collect();
    let chat = direct(&devices[0], &devices[1]);
    let sent = devices[0].post(chat, "before the end");
    server.gateway().signal(Signal::TERM);
    for device in &mut devices {
        let delay_ms = device.wait_for("reconnect", |frame| match frame {
            ServerFrame::Reconnect(reconnect) => Some(reconnect.delay_ms),
            _ => None,
        });
        assert!(delay_ms <= SPREAD_MS);
        assert_eq!(device.wait_closed(), 4000);
    }
    let status = server.gateway().wait_exit();
    assert!(status.success(), "{status}");
    server.gateway = None;
    server.start();
    for device in &mut devices {
        device.reconnect();
    }
    assert_eq!(devices[1].history(chat, 0)[0].message_id, sent.message_id);
}

/// A gateway that drains while a command has no answer, because the storage-writer is stopped.
fn stuck_drain(drain_timeout_ms: u64) -> (Server, Device, Device) {
    let settings = Settings::new()
        .gateway("drain_timeout_ms", drain_timeout_ms)
        .gateway("reconnect_spread_ms", 0)
        .gateway("writer.link_idle_ms", 600_000);
    let mut server = Server::apart_with(settings);
    let mut waiting = server.device("alice", JSON);
    let mut idle = server.device("bob", RKYV);
    let chat = direct(&waiting, &idle);
    waiting.post(chat, "before");
    server.writer().signal(Signal::STOP);
    waiting.say(&text_frame(chat, ClientMsgId(random()), "without an answer"));
    // A pong stands behind what was said before it.
    waiting.sync();
    server.gateway().signal(Signal::TERM);
    assert_eq!(idle.wait_closed(), 4000);
    (server, waiting, idle)
}

#[test]
fn a_drain_ends_in_time_whatever_it_waits_for() {
    let (mut server, mut waiting, _idle) = stuck_drain(1_000);
    assert!(matches!(waiting.wait_closed(), 4000 | 1006));
    let status = server.gateway().wait_exit();
    assert!(status.success(), "{status}");
}

#[test]
fn a_second_signal_ends_at_once() {
    let (mut server, mut waiting, _idle) = stuck_drain(3_600_000);
    waiting.drain();
    assert_eq!(waiting.closed, None, "it waits for its answer");
    server.gateway().signal(Signal::INT);
    let status = server.gateway().wait_exit();
    assert_eq!(status.code(), Some(1), "{status}");
}

/// The preset of mobile networks that drop idle connections.
#[test]
fn silence_ends_a_session_and_pings_keep_it_at_5_s_and_30_s() {
    silence_ends_a_session(5_000, 30_000);
}

#[test]
fn silence_ends_a_session_and_pings_keep_it() {
    silence_ends_a_session(500, 3_000);
}

fn silence_ends_a_session(interval_ms: u32, timeout_ms: u64) {
    let settings = Settings::new()
        .gateway("session.heartbeat_interval_ms", interval_ms)
        .gateway("session.heartbeat_timeout_ms", timeout_ms);
    let server = Server::up_with(settings);
    let mut silent = server.device("alice", JSON);
    let mut frames = server.device("bob", RKYV);
    let mut pings = server.device("carol", JSON);
    let token = server.target().token("dave", 3_600, false);
    let mut told = Device::new(&server.target(), "dave", JSON);
    let hello = told.hello(Some(token), None);
    assert_eq!(told.open(hello).expect("welcome").heartbeat_interval_ms, interval_ms);
    while silent.closed.is_none() {
        silent.read_for(Duration::from_millis(u64::from(interval_ms) / 5));
        frames.sync();
        pings.ws_ping();
        pings.drain();
    }
    assert_eq!(silent.closed, Some(4002));
    assert_eq!(told.wait_closed(), 4002);
    frames.sync();
    pings.sync();
    assert_eq!((frames.closed, pings.closed), (None, None));
    assert_eq!(server.metric("parley_gateway_closed_silent_total"), 2);
}
