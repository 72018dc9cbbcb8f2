//! A running storage-writer over its Unix socket, as gateways use it.

mod common;

use common::client::{Client, say};
use parley_protocol::link::{Ask, InboxEntry, Reply, ToGateway};
use parley_protocol::{ChatId, ErrorCode};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use storage_core::store::{EntryRow, Outcome, UserRow};
use storage_writer::store::embedded::OpenError;
use storage_writer::store::embedded::check::check_store;
use storage_writer::{Error, Handle, Options, run};

fn options(dir: &Path) -> Options {
    let embedded = common::options();
    Options { embedded, ..Options::new(dir) }
}

fn start(dir: &Path) -> Handle {
    run(options(dir)).unwrap()
}

fn socket(dir: &Path) -> std::path::PathBuf {
    options(dir).socket
}

#[test]
fn messages_reach_both_inboxes_and_stay_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let handle = start(dir.path());
    let mut client = Client::open(&socket(dir.path()), 7);
    assert_eq!(client.home_epoch, 1);
    let (alice, bob) = (client.login("alice"), client.login("bob"));
    let chat = ChatId::direct(alice, bob).unwrap();
    client.open_chat(chat);
    let first = client.say(chat, alice, 1, "hello");
    let second = client.say(chat, bob, 2, "hi");
    assert_eq!((first.event.seq, second.event.seq), (1, 2));
    assert_eq!(first.targets.len(), 2);
    assert_eq!(client.status, Some((true, String::new())), "the link was told");
    let look_up = |subject: &str| Ask::LookUp { issuer: "test".to_owned(), subject: subject.to_owned() };
    assert!(matches!(client.ask(look_up("bob")), Reply::LoggedIn(user) if user.user_id == bob));
    assert_eq!(client.ask(look_up("carol")), Reply::Refused(ErrorCode::NoSuchUser));
    let status = handle.status();
    assert!(status.ready, "{status:?}");
    handle.stop().unwrap();

    let handle = start(dir.path());
    let mut client = Client::open(&socket(dir.path()), 8);
    assert_eq!(client.home_epoch, 2, "another gateway gets a higher epoch");
    assert_eq!(client.login("alice"), alice);
    client.open_chat(chat);
    let Reply::Inbox(page) = client.ask(Ask::Inbox { user_id: bob, after: 0, limit: 10 }) else { panic!() };
    assert_eq!((page.after, page.to, page.head), (0, 2, 2));
    assert_eq!(page.entries, [InboxEntry::Event(first.event.clone()), InboxEntry::Event(second.event.clone())]);
    let history = Ask::History { user_id: alice, chat_id: chat, before: None, after: None, limit: 10 };
    let Reply::History { events, more } = client.ask(history) else { panic!() };
    assert_eq!((events, more), (vec![first.event.clone(), second.event], false));
    // The same command again is answered by its first ids, and changes nothing.
    let again = client.ask(say(chat, alice, 1, "hello"));
    let Reply::Duplicate { message_id, seq, .. } = again else { panic!("{again:?}") };
    assert_eq!((message_id, seq), (first.event.message_id, 1));
    let metrics = handle.metrics();
    assert!(metrics.contains("\nparley_writer_ready 1\n"), "{metrics}");
    assert!(metrics.contains("\nparley_writer_reads_total 2\n"), "{metrics}");
    handle.stop().unwrap();
    let report = check_store(dir.path(), &mut |_| ()).unwrap();
    assert!(report.is_whole(), "{report}");
    assert_eq!((report.events, report.entries, report.users), (2, 4, 2));
}

#[test]
fn a_stop_answers_what_was_taken() {
    let dir = tempfile::tempdir().unwrap();
    let handle = start(dir.path());
    let mut client = Client::open(&socket(dir.path()), 7);
    let (alice, bob) = (client.login("alice"), client.login("bob"));
    let chat = ChatId::direct(alice, bob).unwrap();
    client.open_chat(chat);
    for number in 0..500 {
        client.send(say(chat, alice, number, "x"));
    }
    // One answer proves that the first of them were taken; the rest may be on their way.
    assert!(matches!(client.read(), Some(ToGateway::Answer(_))));
    handle.stop().unwrap();
    let mut durable = 1;
    while let Some(record) = client.read() {
        let ToGateway::Answer(answer) = record else { panic!("{record:?}") };
        assert!(matches!(answer.reply, Reply::Durable(_)), "{answer:?}");
        durable += 1;
    }
    let report = check_store(dir.path(), &mut |_| ()).unwrap();
    assert!(report.is_whole(), "{report}");
    assert_eq!(report.events, durable, "everything durable was answered");
}

#[test]
fn a_malformed_record_ends_its_link_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let _handle = start(dir.path());
    let socket = socket(dir.path());
    let mut good = Client::open(&socket, 7);
    let alice = good.login("alice");

    let mut garbage = Client::open(&socket, 7);
    garbage.socket.write_all(&[5, 0, 0, 0, 1, 2, 3, 4, 5]).unwrap();
    assert_eq!(garbage.read(), None);
    let mut huge = Client::open(&socket, 7);
    huge.socket.write_all(&u32::MAX.to_le_bytes()).unwrap();
    assert_eq!(huge.read(), None);
    let mut twice = Client::open(&socket, 7);
    twice.send_hello(7);
    assert_eq!(twice.read(), None);
    let mut early = Client::connect(&socket);
    early.send(Ask::Profiles { users: vec![alice] });
    assert_eq!(early.read(), None);
    let mut long = Client::open(&socket, 7);
    long.send(Ask::Login { issuer: "x".repeat(70_000), subject: String::new(), name: String::new() });
    assert_eq!(long.read(), None);

    assert!(matches!(good.ask(Ask::Profiles { users: vec![alice] }), Reply::Users(users) if users.len() == 1));
}

#[test]
fn identical_reads_all_get_their_answers() {
    let dir = tempfile::tempdir().unwrap();
    let _handle = start(dir.path());
    let mut client = Client::open(&socket(dir.path()), 7);
    let alice = client.login("alice");
    let numbers = (0..200).map(|_| client.send(Ask::Inbox { user_id: alice, after: 0, limit: 0 })).collect::<Vec<_>>();
    let mut answered = Vec::new();
    while answered.len() < numbers.len() {
        let Some(ToGateway::Answer(answer)) = client.read() else { panic!() };
        assert!(matches!(&answer.reply, Reply::Inbox(page) if page.head == 0), "{answer:?}");
        answered.push(answer.no);
    }
    answered.sort_unstable();
    assert_eq!(answered, numbers);
}

#[test]
fn more_reads_than_allowed_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let handle = run(Options { reads_max: 1, ..options(dir.path()) }).unwrap();
    let mut client = Client::open(&socket(dir.path()), 7);
    let alice = client.login("alice");
    // Written with one call, so that they are taken in one turn.
    let mut bytes = Vec::new();
    for no in 100..300 {
        let ask = Ask::Inbox { user_id: alice, after: no, limit: 1 };
        let request = parley_protocol::link::Request { no, home_epoch: client.home_epoch, ask };
        parley_protocol::wire::encode_record(&parley_protocol::link::ToWriter::Request(request), &mut bytes);
    }
    client.socket.write_all(&bytes).unwrap();
    let mut refused = 0;
    for _ in 0..200 {
        let Some(ToGateway::Answer(answer)) = client.read() else { panic!() };
        refused += usize::from(answer.reply == Reply::Refused(ErrorCode::Unavailable));
    }
    assert!((1..200).contains(&refused), "{refused} of 200 were refused");
    handle.stop().unwrap();
}

#[test]
fn a_second_writer_on_the_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _handle = start(dir.path());
    assert!(matches!(run(options(dir.path())), Err(Error::Store(OpenError::InUse { .. }))));
    let other = tempfile::tempdir().unwrap();
    let same_socket = Options { socket: socket(dir.path()), ..options(other.path()) };
    assert!(matches!(run(same_socket), Err(Error::SocketInUse(_))));
}

#[test]
fn a_full_disk_makes_it_unready_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let mut full = options(dir.path());
    full.embedded.disk_reserve_bytes = u64::MAX;
    let handle = run(full).unwrap();
    let status = loop {
        let status = handle.status();
        if status.reason.as_ref().is_some_and(|reason| reason.contains("disk full")) {
            break status;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    assert!(!status.ready);
    assert_eq!(handle.failure(), None, "it waits for room");
    handle.stop().unwrap();
}

/// The server of the kill test, in a process of its own.
#[test]
#[ignore = "the child of another test"]
fn child_serves_until_it_is_killed() {
    let dir = std::env::var("PARLEY_TEST_DATA_DIR").expect("the parent names the directory");
    let handle = start(Path::new(&dir));
    println!("serving");
    if let Err(failure) = handle.wait() {
        panic!("{failure}");
    }
}

/// A writer in a process of its own. `before` is shell that runs in it first.
fn spawn_child(dir: &Path, before: &str) -> Child {
    let mut child = Command::new("sh")
        .args(["-c", &format!("{before} exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child_serves_until_it_is_killed", "--nocapture"])
        .env("PARLEY_TEST_DATA_DIR", dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("serving")), "the child did not start");
    child
}

#[test]
fn a_failed_write_ends_the_writer_names_the_file_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // Made without the limit: the engine makes its first journal at full length, and cuts it at the next start.
    start(dir.path()).stop().unwrap();
    start(dir.path()).stop().unwrap();
    // From here on a file cannot grow past 100 KiB: a write to the journal fails in the middle of a group.
    let mut child = spawn_child(dir.path(), "trap '' XFSZ; ulimit -f 200;");
    let mut client = Client::open(&socket(dir.path()), 7);
    let (alice, bob) = (client.login("alice"), client.login("bob"));
    let chat = ChatId::direct(alice, bob).unwrap();
    client.open_chat(chat);
    let mut acknowledged = 0;
    for number in 0..1_000 {
        client.send(say(chat, alice, number, &"x".repeat(1_000)));
        let Some(ToGateway::Answer(answer)) = client.read() else { break };
        assert!(matches!(answer.reply, Reply::Durable(_)), "{answer:?}");
        acknowledged += 1;
    }
    assert!((1..1_000).contains(&acknowledged), "{acknowledged}");
    assert!(!child.wait().unwrap().success());
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("nothing more is acknowledged") && text.contains("engine"), "{text}");
    let report = check_store(dir.path(), &mut |_| ()).unwrap();
    assert!(report.is_whole() && report.events >= acknowledged, "{report}");
}

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    let mut sent = 0;
    for round in 0..3_u64 {
        let mut child = spawn_child(dir.path(), "");
        let mut client = Client::open(&socket(dir.path()), u128::from(round) + 1);
        let (alice, bob) = (client.login("alice"), client.login("bob"));
        let chat = ChatId::direct(alice, bob).unwrap();
        client.open_chat(chat);
        for _ in 0..300 {
            sent += 1;
            client.send(say(chat, alice, sent, &format!("message {sent}")));
        }
        // Killed while it works, after some answers.
        for _ in 0..40 {
            let Some(ToGateway::Answer(answer)) = client.read() else { panic!() };
            let Reply::Durable(committed) = answer.reply else { panic!("{answer:?}") };
            acknowledged.push(committed[0].event.clone());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        while let Some(ToGateway::Answer(answer)) = client.read() {
            let Reply::Durable(committed) = answer.reply else { panic!("{answer:?}") };
            acknowledged.push(committed[0].event.clone());
        }
    }
    let report = check_store(dir.path(), &mut |_| ()).unwrap();
    assert!(report.is_whole(), "{report}");

    let handle = start(dir.path());
    let mut client = Client::open(&socket(dir.path()), 99);
    let alice = client.login("alice");
    let chat = acknowledged[0].chat_id;
    client.open_chat(chat);
    let mut kept = Vec::new();
    loop {
        let after = Some(kept.len() as u64);
        let page = client.ask(Ask::History { user_id: alice, chat_id: chat, before: None, after, limit: 200 });
        let Reply::History { events, more } = page else { panic!("{page:?}") };
        kept.extend(events);
        if !more {
            break;
        }
    }
    assert!(acknowledged.len() >= 120);
    for event in &acknowledged {
        assert_eq!(kept.get(event.seq as usize - 1), Some(event));
    }
    handle.stop().unwrap();
}

/// A store in which Bob's third entry names no event, and the log of the chat has a hole at 4.
fn damage(dir: &Path) {
    let mut opened = common::Opened::open(dir).unwrap();
    let mut group = common::messages(1, 1, 3);
    group.appends[0].entries[5].row = EntryRow::Event { chat_id: common::chat(), seq: 9 };
    let user = |user_id, name: &str| {
        let (issuer, subject) = ("test".to_owned(), name.to_owned());
        UserRow { user_id, name: name.to_owned(), issuer, subject }
    };
    group.users = vec![user(common::ALICE, "alice"), user(common::BOB, "bob")];
    assert_eq!(opened.commit(group), Outcome::Durable);
    assert_eq!(opened.commit(common::messages(2, 5, 5)), Outcome::Durable);
}

#[test]
fn damage_that_a_reader_or_a_load_met_is_shown_until_the_next_start_and_commands_go_on() {
    let dir = tempfile::tempdir().unwrap();
    damage(dir.path());
    let asks = [Ask::Inbox { user_id: common::BOB, after: 0, limit: 9 }, Ask::LoadChat { chat_id: common::chat() }];
    for (round, ask) in (1..).zip(asks) {
        let handle = start(dir.path());
        let mut client = Client::open(&socket(dir.path()), 7);
        let carol = client.login("carol");
        client.open_chat(common::chat());
        let before = handle.status();
        assert_eq!((before.ready, before.reason), (true, None), "nobody met it yet");
        assert_eq!(client.ask(ask), Reply::Refused(ErrorCode::Damaged));
        // Shown before the answer to whatever is asked next.
        let chat = ChatId::direct(carol, client.login("dave")).unwrap();
        client.open_chat(chat);
        client.say(chat, carol, round, "still taken");
        let after = handle.status();
        assert!(!after.ready && after.reason.as_deref().unwrap().contains("check-store"), "{after:?}");
        assert_eq!(client.status, Some((true, String::new())), "gateways go on");
        handle.stop().unwrap();
    }
}
