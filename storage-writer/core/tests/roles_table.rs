//! Who may do what to a group, as a table: every role against every change of every role. An accidental edge shows in
//! the diff of the snapshot.

mod common;

use common::{defaults, one};
use parley_protocol::body::Body;
use parley_protocol::frame::Change;
use parley_protocol::link::Reply;
use parley_protocol::{ChatId, ErrorCode, Role, UserId};

const SENDERS: [&str; 4] = ["owner", "admin", "member", "outsider"];
const WHOM: [&str; 6] = ["self", "owner", "admin", "member", "outsider", "nobody"];

/// One change by one sender in a fresh group of an owner, two admins, two members; users 5 and 6 are outside.
fn cell(sender: &str, whom: &str, change: impl Fn(UserId) -> Change) -> String {
    let mut world = defaults();
    let users = world.users(7);
    let group = world.group(users[0], &users[1..5], "title");
    for admin in [users[1], users[2]] {
        one(world.change(group, users[0], Change::Role { user: admin, role: Role::Admin }));
    }
    let pick = |name: &str, nth: usize| match name {
        "owner" => users[0],
        "admin" => users[1 + nth],
        "member" => users[3 + nth],
        "outsider" => users[5 + nth],
        _ => UserId(12_345),
    };
    let from = pick(sender, 0);
    let to = if whom == "self" { from } else { pick(whom, 1) };
    match world.change(group, from, change(to)) {
        Reply::Durable(made) => match made[0].event.envelope.to_body().unwrap() {
            Body::Membership(body) => {
                let change = |change: &parley_protocol::MemberChange| format!("{:?} {:?}", change.action, change.role);
                body.changes.iter().map(change).collect::<Vec<_>>().join(", ")
            }
            other => format!("{other:?}"),
        },
        Reply::Refused(code) => format!("- {code:?}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_may_do_what() {
    type Make = fn(UserId) -> Change;
    let aimed: [(&str, Make); 5] = [
        ("add", |user| Change::Add { users: vec![user] }),
        ("remove", |user| Change::Remove { users: vec![user] }),
        ("make owner", |user| Change::Role { user, role: Role::Owner }),
        ("make admin", |user| Change::Role { user, role: Role::Admin }),
        ("make member", |user| Change::Role { user, role: Role::Member }),
    ];
    let mut table = String::new();
    for sender in SENDERS {
        for (name, change) in aimed {
            for whom in WHOM {
                let line = format!("{sender:9} {name:12} {whom:9} {}", cell(sender, whom, change));
                table.push_str(line.trim_end());
                table.push('\n');
            }
        }
        let plain: [(&str, Make); 5] = [
            ("rename", |_| Change::Rename { title: "new".to_owned() }),
            ("same title", |_| Change::Rename { title: "title".to_owned() }),
            ("long title", |_| Change::Rename { title: "x".repeat(257) }),
            ("add nobody", |_| Change::Add { users: Vec::new() }),
            ("leave", |_| Change::Leave {}),
        ];
        for (name, change) in plain {
            table.push_str(&format!("{sender:9} {name:22} {}\n", cell(sender, "self", change)));
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn the_last_member_may_leave_as_owner() {
    let mut world = defaults();
    let users = world.users(2);
    let group = world.group(users[0], &[users[1]], "");
    assert_eq!(world.change(group, users[0], Change::Leave {}), Reply::Refused(ErrorCode::OwnerMustHandOver));
    one(world.change(group, users[1], Change::Leave {}));
    one(world.change(group, users[0], Change::Leave {}));
    let ask = world.send_ask(group, users[0], "echo");
    assert_eq!(world.ask(ask), Reply::Refused(ErrorCode::NoSuchChat));
}

#[test]
fn a_direct_chat_has_no_members_to_change() {
    let mut world = defaults();
    let users = world.users(3);
    let direct = ChatId::direct(users[0], users[1]).unwrap();
    let changes = [Change::Add { users: vec![users[2]] }, Change::Rename { title: "x".to_owned() }, Change::Leave {}];
    for change in changes {
        assert_eq!(world.change(direct, users[0], change), Reply::Refused(ErrorCode::WrongChatKind));
    }
}

#[test]
fn a_group_is_full_at_its_limit() {
    let mut world = common::world(storage_core::Options { group_members_max: 3, ..Default::default() });
    let users = world.users(4);
    let group = world.group(users[0], &[users[1]], "");
    let add = |users: &[UserId]| Change::Add { users: users.to_vec() };
    assert_eq!(world.change(group, users[0], add(&users[2..4])), Reply::Refused(ErrorCode::GroupFull));
    assert_eq!(world.change(group, users[0], add(&[UserId(9)])), Reply::Refused(ErrorCode::NoSuchUser));
    one(world.change(group, users[0], add(&users[1..3])));
    assert_eq!(world.change(group, users[0], add(&users[3..4])), Reply::Refused(ErrorCode::GroupFull));
}
