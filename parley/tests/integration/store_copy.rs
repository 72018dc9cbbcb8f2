//! `parley store copy`: a backup of a stopped deployment serves in its place; a running one, an unfinished copy and a
//! wrong command are refused in words that say what to do.

use crate::common::device::{direct, text_of};
use crate::common::process::Process;
use crate::common::{JSON, Port, RKYV, Server, Settings, new_dir, run};
use std::path::Path;

fn copy_args<'a>(from: &'a str, to: &'a str) -> [&'a str; 10] {
    ["store", "copy", "--from", "embedded", "--from-data", from, "--to", "embedded", "--to-data", to]
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

#[test]
fn a_backup_serves_in_place_of_the_store() {
    let (data, parent) = (new_dir(), new_dir());
    let backup = parent.path().join("backup");
    let mut server = Server::up_on(data.path(), Settings::new());
    let mut alice = server.device("alice", JSON);
    let mut bob = server.device("bob", RKYV);
    let chat = direct(&alice, &bob);
    let group = alice.create_group("ours", &[bob.user_id]).expect("created").chat_id;
    let texts: Vec<String> = (0..3_000).map(|index| format!("message {index}")).collect();
    alice.post_all(chat, texts.clone());
    bob.wait_event(chat, 3_000);
    bob.read(chat, 20);
    bob.wait_own(chat, |own| own.read_seq == 20);

    let (status, output) = run(&copy_args(text(data.path()), text(&backup)));
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("only a stopped deployment can be copied"), "{output}");
    assert!(output.contains(&format!("process {}", server.gateway().pid())), "it says who holds it:\n{output}");
    assert!(!backup.exists(), "nothing was begun");
    server.stop();
    drop(server);

    let (status, output) = run(&copy_args(text(data.path()), text(&backup)));
    assert!(status.success(), "{output}");
    assert!(output.contains("rows, read back and equal"), "{output}");
    for file in ["dev-key.json", "ticket.key"] {
        assert!(!backup.join(file).exists(), "keys are not copied");
        std::fs::copy(data.path().join(file), backup.join(file)).expect("copied by hand, as the manual says");
    }
    let mut server = Server::up_on(&backup, Settings::new());
    let mut bob_again = server.device("bob", JSON);
    assert_eq!(bob_again.user_id, bob.user_id);
    assert_eq!(bob_again.history(chat, 0).iter().map(text_of).collect::<Vec<_>>(), texts);
    let summary = bob_again.chat(chat);
    assert_eq!((summary.unread, summary.own.read_seq), (2_980, 20));
    assert_eq!(bob_again.chat(group).title, "ours");
    assert_eq!(bob_again.post(chat, "goes on").seq, 3_001);
    // A device goes on where it was before the move.
    let before = alice.events.len();
    let mut alice_again = server.device_from_start("alice", RKYV);
    alice_again.wait_event(chat, 3_001);
    assert!(alice_again.events.len() > before, "the inbox has everything, and more");
    server.stop();
    server.check_store();
    drop(server);

    let (status, output) = run(&copy_args(text(data.path()), text(&backup)));
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("holds a store already; nothing in it was changed"), "{output}");
}

/// Killed at its first sight, a copy is nothing that starts; the same command makes it whole.
#[test]
fn an_unfinished_backup_does_not_start_and_the_same_command_finishes_it() {
    let (data, parent) = (new_dir(), new_dir());
    let backup = parent.path().join("backup");
    let mut server = Server::up_on(data.path(), Settings::new());
    let mut alice = server.device("alice", JSON);
    let bob = server.device("bob", RKYV);
    let chat = direct(&alice, &bob);
    alice.post_all(chat, (0..2_000).map(|index| format!("message {index}")));
    drop((alice, bob));
    server.stop();
    drop(server);
    let args = copy_args(text(data.path()), text(&backup));
    let mut copy = Process::spawn("store copy", &args, &[]);
    let marker = backup.join("COPYING");
    while !marker.exists() {
        assert!(copy.is_running(), "it ended before it had begun:\n{}", copy.log());
    }
    copy.kill();
    let (listen, admin) = (Port::take().addr.to_string(), Port::take().addr.to_string());
    for command in [
        &["up", "--data", text(&backup), "--listen", &listen, "--admin", &admin][..],
        &["check-store", "--data", text(&backup)],
    ] {
        let (status, output) = run(command);
        assert!(!status.success(), "{command:?}:\n{output}");
        assert!(output.contains("is not finished: give the same `parley store copy` again"), "{output}");
    }
    let (status, output) = run(&args);
    assert!(status.success() && output.contains("going on after"), "{output}");
    let (status, output) = run(&["check-store", "--data", text(&backup)]);
    assert!(status.success(), "{output}");
}

#[test]
fn a_wrong_command_says_what_is_missing() {
    let data = new_dir();
    let (from, base) = (text(data.path()), ["store", "copy", "--from", "embedded", "--from-data"]);
    let with = |rest: &[&'static str]| [&base[..], &[from], rest].concat();
    for (args, says) in [
        (with(&["--to", "embedded"]), "--to embedded needs --to-data DIR"),
        (with(&["--to", "scylla", "--to-data", "x"]), "--to scylla takes --contact"),
        (with(&["--to", "embedded", "--to-data", "x", "--contact", "127.0.0.1:1"]), "go with --to scylla"),
        (with(&["--to", "embedded", "--to-data", "x"]), "there is no store in it"),
        (
            vec!["store", "copy", "--from", "scylla", "--from-data", "x", "--to", "embedded"],
            "backed up with its own tools",
        ),
    ] {
        let (status, output) = run(&args);
        assert_eq!(status.code(), Some(2), "{args:?}:\n{output}");
        assert!(output.contains(says), "{args:?}:\n{output}");
    }
    assert!(!Path::new("x").exists(), "nothing is made by a wrong command");
}
