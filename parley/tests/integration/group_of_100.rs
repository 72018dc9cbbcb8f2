//! A group of a hundred: everybody connected gets every event, every change is an event in the log, and roles decide
//! who may do what. And one of a thousand, where that is configured.

use crate::common::{Device, JSON, RKYV, Server, Settings};
use parley_protocol::frame::Change;
use parley_protocol::{Body, ChatId, ErrorCode, Event, MemberAction, MemberChange, Role, UserId};

fn crowd(server: &Server, count: usize) -> Vec<Device> {
    (0..count).map(|index| server.device(&format!("user{index}"), if index % 2 == 0 { JSON } else { RKYV })).collect()
}

fn ids(devices: &[Device]) -> Vec<UserId> {
    devices.iter().map(|device| device.user_id).collect()
}

fn changes(event: &Event) -> Vec<MemberChange> {
    match event.envelope.to_body() {
        Ok(Body::Membership(body)) => body.changes,
        other => panic!("not a change of members: {other:?}"),
    }
}

fn title(event: &Event) -> String {
    match event.envelope.to_body() {
        Ok(Body::Title(body)) => body.title,
        other => panic!("not a title: {other:?}"),
    }
}

#[test]
fn a_hundred_connected_members_get_every_event() {
    let server = Server::up();
    let mut crowd = crowd(&server, 100);
    let outsider = server.device("outsider", JSON);
    let others = ids(&crowd[1..]);
    let created = crowd[0].create_group("Hundred", &others).expect("a hundred are allowed");
    let chat = created.chat_id;
    assert_eq!(created.seq, 1);
    for device in &mut crowd {
        assert_eq!(changes(&device.wait_event(chat, 1)).len(), 100);
        assert_eq!(title(&device.wait_event(chat, 2)), "Hundred");
    }
    assert_eq!(crowd[0].refused(chat, Change::Add { users: vec![outsider.user_id] }), ErrorCode::GroupFull);

    let mut head = 2;
    for writer in [0, 57, 99] {
        let sent = crowd[writer].post_all(chat, (0..10).map(|index| format!("{writer}: {index}")));
        head += 10;
        assert_eq!(sent.last().map(|sent| sent.seq), Some(head));
    }
    for device in &mut crowd {
        device.wait_event(chat, head);
        assert_eq!(device.arrived(chat), (1..=head).collect::<Vec<u64>>(), "{}", device.name);
    }
    // Receipts of many are coalesced and reach the sender.
    let reader = crowd[42].user_id;
    crowd[42].read(chat, head);
    crowd[99].wait_receipt(chat, reader, head, head);
    assert_eq!(crowd[1].members(chat).expect("a member may ask").len(), 100);
    assert_eq!(crowd[1].chat(chat).members, 100);
    assert!(!crowd[1].chat(chat).large, "a hundred are not above the inbox limit");
}

#[test]
fn every_change_is_an_event_and_roles_decide() {
    let server = Server::up();
    let mut owner = server.device("owner", JSON);
    let mut admin = server.device("admin", RKYV);
    let mut member = server.device("member", JSON);
    let mut late = server.device("late", RKYV);
    let created = owner.create_group("", &[admin.user_id, member.user_id]).expect("created");
    let chat = created.chat_id;
    let started = changes(&member.wait_event(chat, 1));
    assert_eq!(started[0], MemberChange { user_id: owner.user_id, action: MemberAction::Added, role: Role::Owner });
    assert_eq!(started.len(), 3);

    // A member may not; an admin may; the owner makes one of the other.
    let rename = |title: &str| Change::Rename { title: title.to_owned() };
    assert_eq!(member.refused(chat, rename("mine")), ErrorCode::Forbidden);
    assert_eq!(member.refused(chat, Change::Add { users: vec![late.user_id] }), ErrorCode::Forbidden);
    assert_eq!(member.refused(chat, Change::Remove { users: vec![admin.user_id] }), ErrorCode::Forbidden);
    let role = |user: UserId, role| Change::Role { user, role };
    assert_eq!(admin.refused(chat, role(admin.user_id, Role::Admin)), ErrorCode::Forbidden);
    owner.change(chat, role(admin.user_id, Role::Admin)).expect("the owner gives roles");
    let promoted = MemberChange { user_id: admin.user_id, action: MemberAction::RoleChanged, role: Role::Admin };
    assert_eq!(changes(&member.wait_event(chat, 2)), [promoted]);
    assert_eq!(owner.refused(chat, role(admin.user_id, Role::Admin)), ErrorCode::NoChange);
    admin.change(chat, rename("Ours")).expect("an admin renames");
    assert_eq!(title(&member.wait_event(chat, 3)), "Ours");
    assert_eq!(admin.refused(chat, rename("Ours")), ErrorCode::NoChange);
    assert_eq!(member.chat(chat).title, "Ours");

    // Members come and go.
    assert_eq!(late.refused(chat, Change::Leave {}), ErrorCode::NoSuchChat);
    assert_eq!(admin.refused(chat, Change::Add { users: vec![UserId(1 << 60)] }), ErrorCode::NoSuchUser);
    admin.change(chat, Change::Add { users: vec![late.user_id] }).expect("an admin adds");
    assert_eq!(changes(&late.wait_event(chat, 4))[0].action, MemberAction::Added);
    assert_eq!(admin.refused(chat, Change::Add { users: vec![late.user_id] }), ErrorCode::NoChange);
    assert_eq!(admin.refused(chat, Change::Remove { users: vec![owner.user_id] }), ErrorCode::Forbidden);
    late.change(chat, Change::Leave {}).expect("a member leaves");
    assert_eq!(changes(&late.wait_event(chat, 5))[0].action, MemberAction::Left);
    assert_eq!(admin.refused(chat, Change::Remove { users: vec![late.user_id] }), ErrorCode::NoChange);

    // The owner hands over before leaving.
    assert_eq!(owner.refused(chat, Change::Leave {}), ErrorCode::OwnerMustHandOver);
    owner.change(chat, role(member.user_id, Role::Owner)).expect("the owner hands over");
    let handed = changes(&admin.wait_event(chat, 6));
    assert!(handed.contains(&MemberChange {
        user_id: member.user_id,
        action: MemberAction::RoleChanged,
        role: Role::Owner
    }));
    assert!(handed.contains(&MemberChange {
        user_id: owner.user_id,
        action: MemberAction::RoleChanged,
        role: Role::Admin
    }));
    owner.change(chat, Change::Leave {}).expect("no longer the owner");
    member.wait_event(chat, 7);
    let roles: Vec<(UserId, Role)> =
        member.members(chat).expect("a member may ask").iter().map(|it| (it.user_id, it.role)).collect();
    let mut expected = vec![(admin.user_id, Role::Admin), (member.user_id, Role::Owner)];
    expected.sort();
    assert_eq!(roles, expected);
    assert_eq!(owner.chat(chat).role, None);
    assert_eq!(member.chat(chat).role, Some(Role::Owner));
}

#[test]
fn a_direct_chat_has_no_title_and_no_changes() {
    let server = Server::up();
    let mut alice = server.device("alice", JSON);
    let bob = server.device("bob", JSON);
    let chat = crate::common::device::direct(&alice, &bob);
    for change in [
        Change::Rename { title: "us".into() },
        Change::Leave {},
        Change::Add { users: vec![bob.user_id] },
        Change::Role { user: bob.user_id, role: Role::Admin },
    ] {
        assert_eq!(alice.refused(chat, change), ErrorCode::WrongChatKind);
    }
    let nobody = ChatId::direct(alice.user_id, UserId(1 << 60)).expect("two ids");
    assert_eq!(alice.refused(nobody, Change::Leave {}), ErrorCode::NoSuchChat);
}

/// A thousand members where the operator allows it: a large chat, whose joiners still learn of it by their inbox.
#[test]
fn a_group_of_a_thousand_where_configured() {
    let server = Server::up_with(Settings::new().both("chat", "group_members_max", 1_000));
    let mut owner = server.device("owner", RKYV);
    let mut members = Vec::with_capacity(999);
    for index in 0..999 {
        let mut device = Device::new(&server.target(), &format!("member{index}"), RKYV);
        device.mark = Some(0);
        device.log_in();
        device.cut();
        members.push(device);
    }
    let others = ids(&members);
    let created = owner.create_group("Thousand", &others).expect("a thousand are allowed");
    let chat = created.chat_id;
    owner.post(chat, "hello all");
    for index in [0, 500, 998] {
        let device = &mut members[index];
        device.reconnect();
        assert!(device.seqs(chat).contains(&1), "a join always reaches the joiner");
        let summary = device.chat(chat);
        assert_eq!((summary.members, summary.large, summary.head_seq), (1_000, true, 3));
        assert_eq!(device.history(chat, 1).len(), 2);
    }
    assert_eq!(owner.members(chat).expect("pages of members").len(), 1_000);
}
