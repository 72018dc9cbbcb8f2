//! What lies in the data directory outlives the server; two servers never share one; a stopped store proves itself.

use crate::common::device::{direct, text_of};
use crate::common::process::Process;
use crate::common::{JSON, Port, RKYV, Server, Settings, new_dir, run};

#[test]
fn a_second_start_finds_everything() {
    let data = new_dir();
    let mut server = Server::up_on(data.path(), Settings::new());
    let mut alice = server.device("alice", JSON);
    let mut bob = server.device("bob", RKYV);
    let chat = direct(&alice, &bob);
    let group = alice.create_group("ours", &[bob.user_id]).expect("created").chat_id;
    let texts: Vec<String> = (0..50).map(|index| format!("message {index}")).collect();
    alice.post_all(chat, texts.clone());
    bob.wait_event(chat, 50);
    bob.read(chat, 20);
    bob.wait_own(chat, |own| own.read_seq == 20);
    server.stop();
    server.check_store();
    drop(server);

    // Another address, another process shape, the same people and chats.
    let mut server = Server::apart_on(data.path(), Settings::new());
    let mut bob_again = server.device("bob", JSON);
    assert_eq!(bob_again.user_id, bob.user_id);
    let history = bob_again.history(chat, 0);
    assert_eq!(history.iter().map(text_of).collect::<Vec<_>>(), texts);
    let summary = bob_again.chat(chat);
    assert_eq!((summary.unread, summary.own.read_seq), (30, 20));
    assert_eq!(bob_again.chat(group).title, "ours");
    let sent = bob_again.post(chat, "goes on");
    assert_eq!(sent.seq, 51);
    assert!(sent.message_id > history[49].message_id);
    server.stop();
    server.check_store();
}

#[test]
fn a_directory_in_use_is_refused() {
    let server = Server::up();
    let data = server.data().to_str().expect("a UTF-8 path");
    let (listen, admin) = (Port::take().addr.to_string(), Port::take().addr.to_string());
    let up = ["up", "--data", data, "--listen", &listen, "--admin", &admin];
    let writer = ["storage-writer", "--data", data, "--admin", &admin];
    for args in [&up[..], &writer[..]] {
        let (status, output) = run(args);
        assert!(!status.success(), "{args:?} must not start");
        assert!(output.contains(data) && output.contains("use"), "it says what is in use:\n{output}");
        assert!(!output.contains("panicked") && !output.lines().any(|line| line.starts_with("ready")), "{output}");
    }
    // The one that runs is not disturbed.
    let mut alice = server.device("alice", JSON);
    let bob = server.device("bob", JSON);
    let chat = direct(&alice, &bob);
    alice.post(chat, "still here");
}

/// An address in use is said, and ends the start.
#[test]
fn an_address_in_use_is_refused() {
    let server = Server::up();
    let data = new_dir();
    let listen = server.listen.addr.to_string();
    let admin = Port::take().addr.to_string();
    let args = ["up", "--data", data.path().to_str().expect("a UTF-8 path"), "--listen", &listen, "--admin", &admin];
    let mut second = Process::spawn("second", &args, &[]);
    let status = second.wait_exit();
    assert!(!status.success());
    assert!(second.log().contains(&listen), "it names the address:\n{}", second.log());
}

/// Ctrl-C is SIGINT; it is as good as SIGTERM.
#[test]
fn ctrl_c_ends_with_0() {
    let mut server = Server::up();
    let _alice = server.device("alice", JSON);
    server.gateway().signal(rustix::process::Signal::INT);
    let status = server.gateway().wait_exit();
    assert!(status.success(), "{status}");
}
