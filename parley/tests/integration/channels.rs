//! A channel: whoever knows its id comes in and goes by itself, those who look hear of everything, the others of nothing;
//! it has a limit and a rate of its own, and is whole after a kill of the server.

use crate::common::device::text_frame;
use crate::common::{Device, JSON, RKYV, Server, Settings, random};
use parley_protocol::frame::{Change, ChannelCreate, ChatRef};
use parley_protocol::{ChatId, ClientFrame, ClientMsgId, ErrorCode, Posting, ServerFrame};

fn create(owner: &mut Device, posting: Posting) -> ChatId {
    let client_msg_id = ClientMsgId(random());
    let create = ChannelCreate { client_msg_id, title: "news".to_owned(), posting };
    owner.command(&ClientFrame::ChannelCreate(create)).expect("a channel is made").chat_id
}

fn subscribe(device: &mut Device, chat_id: ChatId) -> u64 {
    device.say(&ClientFrame::Subscribe(ChatRef { chat_id }));
    device.wait_for("a head", |frame| match frame {
        ServerFrame::Head(head) if head.chat_id == chat_id => Some(head.seq),
        _ => None,
    })
}

#[test]
fn members_come_and_go_and_only_those_who_look_hear_of_it() {
    let server = Server::up_with(Settings::new().writer("limits.channel_members_max", 4));
    let mut owner = server.device("owner", JSON);
    let chat = create(&mut owner, Posting::Everybody);
    assert!(chat.is_channel());
    let mut looks = server.device("looks", RKYV);
    let mut idles = server.device("idles", JSON);
    let mut late = server.device("late", RKYV);
    let mut stranger = server.device("stranger", JSON);
    for device in [&mut looks, &mut idles, &mut late] {
        let sent = device.change(chat, Change::Join {}).expect("everybody may join");
        device.wait_event(chat, sent.seq);
    }
    assert_eq!(stranger.refused(chat, Change::Join {}), ErrorCode::GroupFull);
    assert_eq!(late.refused(chat, Change::Join {}), ErrorCode::NoChange);
    assert_eq!(subscribe(&mut looks, chat), 5);

    late.change(chat, Change::Leave {}).expect("a member leaves");
    stranger.change(chat, Change::Join {}).expect("there is room");
    looks.wait_event(chat, 7);
    let last = idles.post_all(chat, (0..20).map(|at| format!("{at}"))).last().expect("sent").seq;
    looks.wait_event(chat, last);
    assert_eq!(looks.seqs(chat), [vec![3], (6..=last).collect()].concat(), "its own join, then all of it");
    for device in [&mut idles, &mut late] {
        device.sync();
    }
    assert_eq!(idles.seqs(chat), [4], "who does not look has its own join");
    assert_eq!(late.seqs(chat), [5, 6], "who left has its times");
    assert_eq!(late.history(chat, 0).iter().map(|event| event.seq).collect::<Vec<_>>(), [5, 6]);

    let summary = idles.chat(chat);
    assert_eq!((summary.members, summary.large, summary.head_seq, summary.unread), (4, true, last, 20));
    idles.read(chat, last);
    idles.wait_own(chat, |own| own.read_seq == last);
    assert_eq!(idles.chat(chat).unread, 0);
    assert_eq!(idles.members(chat).expect("a member may ask").len(), 4);
    assert_eq!(late.members(chat).expect_err("who left may not").code, ErrorCode::NoSuchChat);
}

#[test]
fn it_has_a_rate_of_its_own_and_says_when_there_is_room() {
    let settings = Settings::new().gateway("chat.channel_rate_per_s", 1).gateway("chat.channel_rate_burst", 2);
    let server = Server::up_with(settings);
    let mut owner = server.device("owner", RKYV);
    let mut member = server.device("member", JSON);
    let chat = create(&mut owner, Posting::Everybody);
    member.change(chat, Change::Join {}).expect("joined");
    owner.post(chat, "one");
    member.post(chat, "two");
    let mut refused = None;
    for at in 0..30 {
        let command = text_frame(chat, ClientMsgId(random()), &format!("too many {at}"));
        if let Err(error) = member.command(&command) {
            refused = Some(error);
            break;
        }
    }
    let error = refused.expect("a refusal");
    assert_eq!((error.code, error.chat_id), (ErrorCode::RateLimited, Some(chat)));
    assert!(error.retry_after_ms.is_some_and(|ms| ms > 0 && ms <= 1_000), "{error:?}");
    // Others are not charged for it.
    let group = owner.create_group("", &[member.user_id]).expect("created").chat_id;
    owner.post_all(group, (0..10).map(|at| format!("{at}")));
}

#[test]
fn only_admins_write_in_some_and_all_is_there_after_a_kill() {
    let mut server = Server::apart();
    let mut owner = server.device("owner", JSON);
    let chat = create(&mut owner, Posting::Admins);
    let mut member = server.device("member", RKYV);
    member.change(chat, Change::Join {}).expect("joined");
    let command = text_frame(chat, ClientMsgId(random()), "not mine to say");
    let error = member.command(&command).expect_err("a member does not write here");
    assert_eq!(error.code, ErrorCode::Forbidden);
    owner.post(chat, "before");
    server.kill_writer();
    server.start_writer();
    owner.post(chat, "after");
    assert_eq!(member.refused(chat, Change::Join {}), ErrorCode::NoChange, "its membership is stored");
    assert_eq!(subscribe(&mut member, chat), 5);
    owner.post(chat, "live");
    member.wait_event(chat, 6);
    member.change(chat, Change::Leave {}).expect("left at 7");
    let last = owner.post(chat, "without it").seq;
    let mut looks = server.device("looks", JSON);
    looks.change(chat, Change::Join {}).expect("joined");
    assert_eq!(subscribe(&mut looks, chat), last + 1);
    member.sync();
    assert_eq!(member.seqs(chat), [3, 6, 7], "its join, what it looked at, its leave");
    assert_eq!(looks.chat(chat).members, 2);
    server.stop();
    server.check_store();
}
