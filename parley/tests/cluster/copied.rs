//! A deployment that moved from its embedded store into the cluster: take-overs there lose nothing of what was written
//! before the move, and nothing of what comes after it.

use crate::common::device::{direct, text_of};
use crate::common::load::under_load;
use crate::common::{Device, JSON, RKYV, Server, Settings, new_dir, run};
use crate::fleet::Fleet;
use parley_protocol::ChatId;

const LEASE_MS: u32 = 1_000;
/// Acknowledged between two disturbances.
const STEP: usize = 100;
/// Written into each chat before the move.
const BEFORE: usize = 120;

/// What a chat held when the deployment stopped: places, ids, texts.
type Log = (ChatId, Vec<(u64, u64, String)>);

fn log(device: &mut Device, chat_id: ChatId) -> Log {
    let history = device.history(chat_id, 0);
    (chat_id, history.iter().take(BEFORE).map(|event| (event.seq, event.message_id.0, text_of(event))).collect())
}

/// The people of `under_load` talk over an embedded store, which is stopped then. What they wrote.
fn embedded(data: &std::path::Path) -> Vec<Log> {
    let mut server = Server::up_on(data, Settings::new());
    let [mut alice, mut bob, mut carol] = ["alice", "bob", "carol"].map(|name| server.device(name, RKYV));
    let chats = [direct(&alice, &bob), direct(&alice, &carol)];
    for chat_id in chats {
        alice.post_all(chat_id, (0..BEFORE).map(|index| format!("before {index}")));
    }
    bob.wait_event(chats[0], BEFORE as u64);
    carol.wait_event(chats[1], BEFORE as u64);
    bob.read(chats[0], 20);
    bob.wait_own(chats[0], |own| own.read_seq == 20);
    let logs = chats.map(|chat_id| log(&mut alice, chat_id)).to_vec();
    server.stop();
    logs
}

#[test]
fn a_killed_writer_is_taken_over_where_a_store_was_copied() {
    let from = new_dir();
    let logs = embedded(from.path());
    let mut fleet = Fleet::start_in(LEASE_MS, |keyspace| {
        let mut args = vec!["store", "copy", "--from", "embedded", "--from-data", from.path().to_str().expect("UTF-8")];
        args.push("--to");
        // Of `--store scylla` the command has its own word.
        args.extend(keyspace.iter().skip(1).map(String::as_str));
        let (status, output) = run(&args);
        assert!(status.success() && output.contains("rows, read back and equal"), "{output}");
    });
    under_load(&fleet.target(), |progress| {
        for _ in 0..3 {
            progress.more(STEP);
            let active = fleet.active();
            fleet.kill_writer(active);
            assert_eq!(fleet.active(), 1 - active, "the other one takes over");
            fleet.start_writer(active);
        }
        progress.more(STEP);
    });
    let mut alice = Device::new(&fleet.target(), "alice", JSON).connected();
    for (chat_id, before) in &logs {
        assert_eq!(log(&mut alice, *chat_id), (*chat_id, before.clone()), "from before the move");
        assert_eq!(before.len(), BEFORE);
    }
    let mut bob = Device::new(&fleet.target(), "bob", JSON).connected();
    assert_eq!(bob.chat(logs[0].0).own.read_seq, 20, "his mark moved, too");
    fleet.stop();
}
