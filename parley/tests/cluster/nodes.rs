//! Nodes of the cluster are killed under load: with two of three everything goes on, with one nothing is acknowledged, and
//! what was promised is there afterwards.

use crate::common::device::text_frame;
use crate::common::keyspace::cluster;
use crate::common::load::under_load;
use crate::common::{Device, RKYV, poll, random};
use crate::fleet::Fleet;
use parley_protocol::frame::{History, Sent, ServerFrame};
use parley_protocol::{ChatId, ClientFrame, ClientMsgId, ErrorCode};

const LEASE_MS: u32 = 2_000;
const STEP: usize = 100;

#[test]
fn clients_do_not_notice_one_dead_node_and_with_two_nothing_is_acknowledged_until_they_are_back() {
    let fleet = Fleet::start(LEASE_MS);
    let mut erin = Device::new(&fleet.target(), "erin", RKYV).connected();
    let chat = erin.create_group("", &[]).expect("created").chat_id;
    let mut command = None;
    under_load(&fleet.target(), |progress| {
        progress.more(STEP);
        let before = (progress.unavailable(), progress.cut());
        cluster().node("kill", 2);
        progress.more(5 * STEP);
        assert_eq!((progress.unavailable(), progress.cut()), before, "errors and cut connections");
        cluster().node("kill", 3);
        poll("the writers to say so", || (0..2).all(|index| fleet.readyz(index).0 == 503));
        poll("the gateway to say so", || fleet.gateway_readyz().1.contains("2 of 2 shards have no link"));
        command = Some(is_told_to_come_back(&mut erin, chat));
        let acknowledged = progress.acknowledged();
        let mut newcomer = Device::new(&fleet.target(), "dave", RKYV);
        let hello = newcomer.hello(Some(fleet.target().token("dave", 3_600, false)), None);
        assert_eq!(newcomer.open(hello).expect_err("nobody can be let in"), 4003, "retry later");
        assert_eq!(progress.acknowledged(), acknowledged, "without a quorum");
        cluster().heal();
        progress.more(STEP);
    });
    poll("the gateway to be well", || fleet.gateway_readyz().0 == 200);
    // Right behind the event that made the group: what was refused did nothing, and sent again it is a first attempt.
    let command = command.expect("refused before");
    assert_eq!(sent_at_last(&mut erin, &command).seq, 2);
    assert_eq!(sent_at_last(&mut erin, &command).seq, 2, "as often as one likes");
    fleet.stop();
}

/// Commands and reads of a session that was there before. The command, for later.
fn is_told_to_come_back(device: &mut Device, chat_id: ChatId) -> ClientFrame {
    let command = text_frame(chat_id, ClientMsgId(random()), "not now");
    for _ in 0..3 {
        let error = device.command(&command).expect_err("nothing is acknowledged without a quorum");
        assert_eq!(error.code, ErrorCode::Unavailable, "{error:?}");
        assert!(error.retry_after_ms.is_some(), "{error:?}");
    }
    device.say(&ClientFrame::History(History { request_id: 77, chat_id, before: None, after: None, limit: 0 }));
    let code = device.wait_for("the answer to a read", |frame| match frame {
        ServerFrame::Error(error) if error.request_id == Some(77) => Some(error.code),
        _ => None,
    });
    assert_eq!(code, ErrorCode::Unavailable);
    command
}

/// Sends a command again for as long as that is what it is told.
fn sent_at_last(device: &mut Device, command: &ClientFrame) -> Sent {
    let mut sent = None;
    poll("a command to be taken", || {
        match device.command(command) {
            Ok(answer) => sent = Some(answer),
            Err(error) => assert_eq!(error.code, ErrorCode::Unavailable, "{error:?}"),
        }
        sent.is_some()
    });
    sent.expect("taken")
}

#[test]
fn a_node_and_the_active_writer_die_together() {
    let mut fleet = Fleet::start(LEASE_MS);
    under_load(&fleet.target(), |progress| {
        for node in [2, 3] {
            progress.more(STEP);
            let active = fleet.active();
            cluster().node("kill", node);
            fleet.kill_writer(active);
            assert_eq!(fleet.active(), 1 - active, "the other one takes over");
            progress.more(STEP);
            fleet.start_writer(active);
            cluster().heal();
        }
        progress.more(STEP);
    });
    fleet.stop();
}
