//! A sync or a write that fails ends the writer: nothing that it did not sync is acknowledged, `up` ends with an error
//! that names the file, a separate gateway stays red until the writer is back, and all that was acknowledged is there
//! after the next start. Writes that take less than was asked for go on.
//!
//! The faults come from `tests/faults/faults.c`, compiled by the tests and preloaded into the server: unlike tracing, it
//! needs no privilege, and only the calls that it means are touched.

use crate::common::device::{direct, text_frame, text_of};
use crate::common::http::try_get;
use crate::common::{Device, JSON, RKYV, Server, Settings, poll, random};
use parley_protocol::{ChatId, ClientFrame, ClientMsgId, ErrorCode, ServerFrame};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Faults that a server can be given while it runs.
struct Faults {
    dir: tempfile::TempDir,
}

impl Faults {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/faults.c");
        // The linker of Rust programs is there too.
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .arg(dir.path().join("faults.so"))
            .arg(source)
            .arg("-ldl")
            .status();
        assert!(compiled.expect("cc runs").success(), "faults.c compiles");
        Self { dir }
    }

    fn settings(&self) -> Settings {
        let path = |path: PathBuf| path.to_str().expect("a UTF-8 path").to_owned();
        let settings = Settings::new().env("LD_PRELOAD", path(self.dir.path().join("faults.so")));
        settings.env("FAULTS_DIR", path(self.dir.path().to_owned()))
    }

    fn arm(&self, fault: &str) {
        std::fs::write(self.dir.path().join(fault), "").expect("armed");
    }

    fn disarm(&self, fault: &str) {
        std::fs::remove_file(self.dir.path().join(fault)).expect("disarmed");
    }
}

/// Messages that are acknowledged before something fails.
const BEFORE: usize = 30;

fn post_before(device: &mut Device, chat: ChatId) -> Vec<String> {
    let texts: Vec<String> = (0..BEFORE).map(|index| format!("synced {index}")).collect();
    device.post_all(chat, texts.clone());
    texts
}

/// Keeps asking until it is stored.
fn persist(device: &mut Device, frame: &ClientFrame) -> u64 {
    let mut seq = None;
    poll("a command to be stored", || {
        match device.command(frame) {
            Ok(sent) => seq = Some(sent.seq),
            Err(error) => assert_eq!(error.code, ErrorCode::Unavailable, "{error:?}"),
        }
        seq.is_some()
    });
    seq.expect("stored")
}

/// `up` ends when its store cannot be written; what was acknowledged is there after the next start.
fn up_ends(fault: &str) {
    let faults = Faults::new();
    let mut server = Server::up_with(faults.settings());
    let mut alice = server.device("alice", JSON);
    let bob = server.device("bob", RKYV);
    let chat = direct(&alice, &bob);
    let mut texts = post_before(&mut alice, chat);
    faults.arm(fault);
    let frame = text_frame(chat, ClientMsgId(random()), "not synced");
    alice.drain();
    alice.queue.clear();
    alice.say(&frame);
    let status = server.gateway().wait_exit();
    assert!(!status.success(), "{status}");
    let log = server.gateway().log();
    assert!(log.contains(server.data().to_str().expect("a UTF-8 path")), "it names the file:\n{log}");
    assert!(log.contains("Input/output error") && !log.contains("panicked"), "it says why, readably:\n{log}");
    alice.drain();
    let sent = alice.queue.iter().any(|frame| matches!(frame, ServerFrame::Sent(_)));
    assert!(!sent, "what was not synced is not acknowledged");
    faults.disarm(fault);

    server.gateway = None;
    server.start();
    alice.reconnect();
    // Whether it was written is open; it is there once, whatever it was.
    assert_eq!(alice.command(&frame).expect("taken").seq, BEFORE as u64 + 1);
    texts.push("not synced".to_owned());
    assert_eq!(alice.history(chat, 0).iter().map(text_of).collect::<Vec<_>>(), texts);
    server.stop();
    server.check_store();
}

#[test]
fn a_failed_sync_ends_up_and_names_the_file() {
    up_ends("sync");
}

/// Half of a group is in the journal then.
#[test]
fn a_failed_write_ends_up_and_names_the_file() {
    up_ends("write");
}

#[test]
fn short_writes_go_on() {
    let faults = Faults::new();
    let mut server = Server::up_with(faults.settings());
    faults.arm("short");
    let mut alice = server.device("alice", JSON);
    let bob = server.device("bob", RKYV);
    let chat = direct(&alice, &bob);
    let texts = post_before(&mut alice, chat);
    server.kill_gateway();
    faults.disarm("short");
    server.start();
    alice.reconnect();
    assert_eq!(alice.history(chat, 0).iter().map(text_of).collect::<Vec<_>>(), texts);
    server.stop();
    server.check_store();
}

#[test]
fn a_separate_gateway_is_red_until_the_writer_is_back() {
    let faults = Faults::new();
    let mut server = Server::apart_with(faults.settings());
    let mut alice = server.device("alice", RKYV);
    let bob = server.device("bob", JSON);
    let chat = direct(&alice, &bob);
    let mut texts = post_before(&mut alice, chat);
    faults.arm("sync");
    let frame = text_frame(chat, ClientMsgId(random()), "not synced");
    alice.say(&frame);
    let status = server.writer().wait_exit();
    assert!(!status.success(), "{status}");
    faults.disarm("sync");
    server.writer = None;
    let admin = server.admin.addr;
    let ready = || try_get(admin, "/readyz").map(|(status, _)| status);
    poll("the gateway to be red", || ready() == Some(503));
    server.start();
    poll("the gateway to be green", || ready() == Some(200));
    assert_eq!(persist(&mut alice, &frame), BEFORE as u64 + 1);
    texts.push("not synced".to_owned());
    assert_eq!(alice.history(chat, 0).iter().map(text_of).collect::<Vec<_>>(), texts);
}
