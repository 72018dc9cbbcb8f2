//! The commands for scripts, as a newcomer types them: what they print, what they end with, and that a position kept
//! by `tail` shows every message once.

use crate::common::{Server, run};
use parley_protocol::{ErrorCode, ServerFrame};

/// A newcomer's terminal: where the server is, and where devices are kept.
struct Terminal<'a> {
    server: &'a Server,
    url: String,
    state: tempfile::TempDir,
}

impl<'a> Terminal<'a> {
    fn at(server: &'a Server) -> Self {
        let url = format!("ws://{}/ws", server.listen.addr);
        Self { server, url, state: tempfile::tempdir().expect("a directory") }
    }

    /// Exit code and output of `parley ARGS`, with the options that say where.
    fn run(&self, args: &[&str]) -> (i32, String) {
        let mut line = args.to_vec();
        let data = self.server.data().to_str().expect("a UTF-8 path");
        let state = self.state.path().to_str().expect("a UTF-8 path");
        line.extend(["--url", &self.url, "--data", data, "--state", state]);
        let (status, output) = run(&line);
        (status.code().expect("no signal ended it"), output)
    }

    fn done(&self, args: &[&str]) -> String {
        let (code, output) = self.run(args);
        assert_eq!(code, 0, "{args:?}:\n{output}");
        output
    }

    fn fails(&self, code: i32, args: &[&str]) -> String {
        let (found, output) = self.run(args);
        assert_eq!(found, code, "{args:?}:\n{output}");
        output
    }

    /// A first login.
    fn log_in(&self, name: &str) {
        self.done(&["tail", "--as", name, "--once"]);
    }
}

fn frames(output: &str) -> Vec<ServerFrame> {
    output.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn texts(output: &str) -> Vec<&str> {
    output.lines().filter_map(|line| line.split_once(": ").map(|(_, text)| text)).collect()
}

#[test]
fn two_people_talk_by_scripts() {
    let server = Server::up();
    let terminal = Terminal::at(&server);
    let nobody = terminal.fails(1, &["send", "--as", "alice", "--to", "bob", "hello"]);
    assert!(nobody.contains("no user is called \"bob\": they have to log in once"), "{nobody}");
    terminal.log_in("bob");
    let name = "000000000000000000000000000000aa";
    let send = ["send", "--as", "alice", "--to", "bob", "hello bob", "--json", "--client-msg-id", name];
    let [ServerFrame::Sent(first)] = frames(&terminal.done(&send))[..] else { panic!("one frame") };
    let [ServerFrame::Sent(again)] = frames(&terminal.done(&send))[..] else { panic!("one frame") };
    assert_eq!(first, again, "a repeated command gets the ids of the first");
    terminal.done(&["send", "--as", "alice", "--to", "bob", "and this", "--json-wire"]);

    let tailed = terminal.done(&["tail", "--as", "bob", "--count", "1", "--timeout-ms", "20000"]);
    assert_eq!(texts(&tailed), ["hello bob"]);
    let tailed = terminal.done(&["tail", "--as", "bob", "--count", "1", "--timeout-ms", "20000"]);
    assert_eq!(texts(&tailed), ["and this"], "the second tail goes on where the first ended");
    assert_eq!(terminal.done(&["tail", "--as", "bob", "--once"]), "");

    let chats = terminal.done(&["chats", "--as", "bob"]);
    assert!(chats.contains("alice") && chats.contains("2 unread"), "{chats}");
    let read = frames(&terminal.done(&["read", "--as", "bob", "--with", "alice", "--json"]));
    assert!(matches!(&read[..], [ServerFrame::Own(own)] if own.read_seq == 2), "{read:?}");
    assert!(!terminal.done(&["chats", "--as", "bob"]).contains("unread"));

    let chat_id = first.chat_id.to_string();
    for with in ["alice", &chat_id] {
        let history = terminal.done(&["history", "--as", "bob", "--with", with]);
        assert_eq!(texts(&history), ["hello bob", "and this"]);
    }
    let page = terminal.done(&["history", "--as", "bob", "--with", "alice", "--after", "1", "--limit", "1", "--json"]);
    let [ServerFrame::HistoryPage(page)] = &frames(&page)[..] else { panic!("one frame") };
    assert_eq!(page.events.iter().map(|event| event.seq).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_group_is_run_by_scripts() {
    let server = Server::up();
    let terminal = Terminal::at(&server);
    ["bob", "carol"].iter().for_each(|name| terminal.log_in(name));
    let output = terminal.done(&["group", "create", "--as", "alice", "climbing", "bob"]);
    let group = output.trim();
    terminal.fails(1, &["group", "rename", "--as", "bob", "--group", group, "bob's"]);
    terminal.done(&["group", "role", "--as", "alice", "--group", group, "bob", "admin"]);
    terminal.done(&["group", "rename", "--as", "bob", "--group", group, "bouldering"]);
    terminal.done(&["group", "add", "--as", "bob", "--group", group, "carol"]);
    terminal.done(&["send", "--as", "carol", "--to", group, "hi all"]);
    let chats = terminal.done(&["chats", "--as", "alice"]);
    assert!(chats.contains("#bouldering") && chats.contains("carol: hi all"), "{chats}");
    let owner = terminal.fails(1, &["group", "leave", "--as", "alice", "--group", group, "--json"]);
    let refusal = frames(owner.lines().find(|line| line.starts_with('{')).expect("a frame"));
    assert!(matches!(&refusal[..], [ServerFrame::Error(error)] if error.code == ErrorCode::OwnerMustHandOver));
    terminal.done(&["group", "role", "--as", "alice", "--group", group, "bob", "owner"]);
    terminal.done(&["group", "leave", "--as", "alice", "--group", group]);
    terminal.done(&["group", "remove", "--as", "bob", "--group", group, "carol"]);
    terminal.fails(1, &["send", "--as", "carol", "--to", group, "still here?"]);
}

#[test]
fn exit_codes_tell_what_went_wrong() {
    let server = Server::up();
    let terminal = Terminal::at(&server);
    terminal.log_in("alice");
    let (code, _) = terminal.run(&["send", "--as", "alice"]);
    assert_eq!(code, 2, "usage");
    terminal.fails(4, &["chats", "--token", "x.y.z"]);
    terminal.fails(1, &["send", "--as", "alice", "--to", "alice", "me"]);
    for (wrong, says) in [
        (&["send", "--as", "alice", "--to", "", "hi"][..], "--to"),
        (&["send", "--as", "alice", "--to", "bob", ""], "<TEXT>"),
        (&["send", "--as", "alice", "--to", "bob", "-"], "nothing to send"),
        (&["chats", "--as", " alice"], "cannot be a name"),
        (&["group", "add", "--as", "alice", "--group", "nothex", "bob"], "not a chat id (32 hex digits)"),
    ] {
        let output = terminal.fails(2, wrong);
        assert!(output.contains(says), "{output}");
    }
    let nobody = terminal.fails(2, &["chats"]);
    assert!(nobody.contains("--as NAME"), "{nobody}");
    terminal.fails(1, &["history", "--as", "alice", "--with", "80000000000000000000000000000001"]);
    let nowhere = ["chats", "--as", "alice", "--timeout-ms", "300", "--url", "ws://127.0.0.1:1/ws", "--data"];
    let data = server.data().to_str().expect("a UTF-8 path");
    let (status, output) = run(&[&nowhere[..], &[data]].concat());
    assert_eq!(status.code(), Some(3), "{output}");
    assert!(output.contains("cannot reach ws://127.0.0.1:1/ws"), "{output}");
    let elsewhere = format!("ws://{}/elsewhere", server.listen.addr);
    for (wrong, code, says) in [
        (&["chats", "--as", "alice", "--data", data, "--url", &elsewhere][..], 1, "404"),
        (&["chats", "--as", "alice", "--data", data, "--url", "http://x"], 2, "expected ws://"),
        (&["token", "--user", "", "--data", data], 2, "cannot be a name"),
        (&["up", "--shards", "9999"], 2, "`shards` is 9999"),
        (&["check-store", "--data", "no/such/directory"], 2, "no such directory"),
    ] {
        let (status, output) = run(wrong);
        assert_eq!(status.code(), Some(code), "{wrong:?}: {output}");
        assert!(output.contains(says), "{output}");
    }
    let away = ["chats", "--as", "alice", "--url", "ws://192.0.2.1:7400/ws", "--data", data];
    let (status, output) = run(&away);
    assert_eq!(status.code(), Some(1), "the development key is for this machine only: {output}");
}

#[test]
fn a_token_in_place_of_a_name() {
    let server = Server::up();
    let terminal = Terminal::at(&server);
    terminal.log_in("bob");
    let data = server.data().to_str().expect("a UTF-8 path");
    let (status, token) = run(&["token", "--user", "alice", "--data", data]);
    assert!(status.success());
    terminal.done(&["send", "--token", token.trim(), "--to", "bob", "by token"]);
    let tailed = terminal.done(&["tail", "--as", "bob", "--count", "1", "--timeout-ms", "20000"]);
    assert_eq!(texts(&tailed), ["by token"]);
}

#[test]
fn every_device_keeps_a_position_of_its_own() {
    let server = Server::up();
    let terminal = Terminal::at(&server);
    let (one, two) = ("0000000000000000000000000000d001", "0000000000000000000000000000d002");
    let tail = ["tail", "--as", "bob", "--once"];
    let on = |device: &str| terminal.done(&[&tail[..], &["--device", device]].concat());
    for first in [terminal.done(&tail), on(one), on(two)] {
        assert!(first.contains("first time on this device: beginning now"), "{first}");
    }
    terminal.done(&["send", "--as", "alice", "--to", "bob", "to all devices"]);
    for next in [on(one), terminal.done(&tail), on(two)] {
        assert_eq!(texts(&next), ["to all devices"]);
    }
    for done in [on(one), on(two), terminal.done(&tail)] {
        assert_eq!(done, "");
    }
    let all = terminal.done(&["tail", "--as", "bob", "--once", "--from-start"]);
    assert_eq!(texts(&all), ["to all devices"]);
}

#[test]
fn a_device_begins_anew_where_the_server_lost_its_history() {
    let mut server = Server::up();
    {
        let terminal = Terminal::at(&server);
        terminal.log_in("bob");
    }
    let state = tempfile::tempdir().expect("a directory");
    let url = format!("ws://{}/ws", server.listen.addr);
    let parley = |server: &Server, args: &[&str]| {
        let data = server.data().to_str().expect("a UTF-8 path");
        let state = state.path().to_str().expect("a UTF-8 path");
        let (status, output) = run(&[args, &["--url", &url, "--data", data, "--state", state]].concat());
        assert!(status.success(), "{args:?}:\n{output}");
        output
    };
    let tail = ["tail", "--as", "bob", "--once", "--from-start"];
    for text in ["one", "two", "three"] {
        parley(&server, &["send", "--as", "alice", "--to", "bob", text]);
    }
    assert_eq!(texts(&parley(&server, &tail)), ["one", "two", "three"]);

    server.stop();
    for entry in std::fs::read_dir(server.data()).expect("a directory") {
        let path = entry.expect("an entry").path();
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.expect("removed");
    }
    server.start();
    // A command without a position tells nothing to the device that has one.
    parley(&server, &["chats", "--as", "bob"]);
    // More than there were before: the old mark would hide three of them and look right.
    let new = ["four", "five", "six", "seven"];
    for text in new {
        parley(&server, &["send", "--as", "alice", "--to", "bob", text]);
    }
    let found = parley(&server, &tail[..4]);
    assert!(found.contains("this server has a new history: beginning at its start"), "{found}");
    let printed: Vec<&str> = found.lines().filter(|line| !line.starts_with("parley:")).collect();
    assert_eq!(texts(&printed.join("\n")), new);
    assert_eq!(parley(&server, &tail[..4]), "");
}

#[test]
fn what_is_shown_for_people_says_more_and_hides_what_expired() {
    let server = Server::up();
    let terminal = Terminal::at(&server);
    ["alice", "bob"].iter().for_each(|name| terminal.log_in(name));
    let output = terminal.done(&["group", "create", "--as", "alice", "climbing", "bob"]);
    let group = output.trim();
    let to = ["send", "--as", "alice", "--to", group];
    terminal.done(&[&to[..], &["gone already", "--expires-at-ms", "1000"]].concat());
    terminal.done(&[&to[..], &["look", "--reply-to", "1", "--mention", "bob"]].concat());
    for shown in
        [terminal.done(&["tail", "--as", "bob", "--once"]), terminal.done(&["history", "--as", "bob", "--with", group])]
    {
        assert!(shown.contains("alice: (reply to 1) look (to @bob)"), "{shown}");
        assert!(!shown.contains("gone already"), "{shown}");
    }
    let json = terminal.done(&["history", "--as", "bob", "--with", group, "--json"]);
    assert!(json.contains("gone already"), "frames are printed as they are: {json}");
    terminal.done(&[&to[..], &["by title"]].concat());
    let tailed = terminal.done(&["tail", "--as", "bob", "--once"]);
    assert!(tailed.contains(" #climbing alice: by title"), "{tailed}");
    let members = terminal.done(&["group", "members", "--as", "bob", "--group", group]);
    let names: Vec<&str> = members.lines().map(|line| line.split_whitespace().nth(1).expect("a name")).collect();
    assert_eq!((names.len(), names.contains(&"alice"), names.contains(&"bob")), (2, true, true), "{members}");
    assert!(members.contains("owner") && members.contains("delivered"), "{members}");
}
