//! A sync that fails ends the writer: nothing that it did not sync is acknowledged, `up` ends with an error that names
//! the file, a separate gateway stays red until the writer is back. Needs strace, which lets a system call fail.

use crate::common::device::{direct, text_frame};
use crate::common::http::try_get;
use crate::common::process::Process;
use crate::common::{Device, JSON, RKYV, Server, poll, random};
use parley_protocol::{ClientFrame, ClientMsgId, ErrorCode};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Lets every sync of a process fail from now on.
struct Saboteur(Child);

impl Saboteur {
    /// `None` where strace is missing or not allowed.
    fn attach(victim: &Process) -> Option<Self> {
        let mut child = Command::new("strace")
            .args([
                "-f",
                "-p",
                &victim.pid().to_string(),
                "-o",
                "/dev/null",
                "-e",
                "trace=fsync,fdatasync,sync_file_range",
            ])
            .args(["-e", "inject=fsync,fdatasync,sync_file_range:error=EIO"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        // It says that it is attached, or why not.
        let stderr = child.stderr.take().expect("piped");
        let mut lines = BufReader::new(stderr).lines();
        let attached = lines.by_ref().map_while(Result::ok).any(|line| line.contains("attached"));
        // Read on, so that it never waits for its output.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let saboteur = Self(child);
        attached.then_some(saboteur)
    }
}

impl Drop for Saboteur {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn skipped() {
    eprintln!("SKIPPED sync_failure: strace is missing or may not trace here; apt-get install strace to test this");
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

#[test]
fn up_ends_and_names_the_file() {
    let mut server = Server::up();
    let mut alice = server.device("alice", JSON);
    let bob = server.device("bob", RKYV);
    let chat = direct(&alice, &bob);
    alice.post(chat, "synced");
    let Some(saboteur) = Saboteur::attach(server.gateway()) else { return skipped() };
    let frame = text_frame(chat, ClientMsgId(random()), "not synced");
    alice.say(&frame);
    let status = server.gateway().wait_exit();
    assert!(!status.success(), "{status}");
    let log = server.gateway().log();
    assert!(log.contains(server.data().to_str().expect("a UTF-8 path")), "it names the file:\n{log}");
    assert!(!log.contains("panicked"), "{log}");
    drop(saboteur);
    alice.drain();
    let sent = alice.queue.iter().any(|frame| matches!(frame, parley_protocol::ServerFrame::Sent(_)));
    assert!(!sent, "what was not synced is not acknowledged");

    server.gateway = None;
    server.start();
    alice.reconnect();
    // Whether it was written is open; it is there once, whatever it was.
    assert_eq!(alice.command(&frame).expect("taken").seq, 2);
    assert_eq!(alice.history(chat, 0).len(), 2);
    server.stop();
    server.check_store();
}

#[test]
fn a_separate_gateway_is_red_until_the_writer_is_back() {
    let mut server = Server::apart();
    let mut alice = server.device("alice", RKYV);
    let bob = server.device("bob", JSON);
    let chat = direct(&alice, &bob);
    alice.post(chat, "synced");
    let Some(saboteur) = Saboteur::attach(server.writer()) else { return skipped() };
    let frame = text_frame(chat, ClientMsgId(random()), "not synced");
    alice.say(&frame);
    let status = server.writer().wait_exit();
    assert!(!status.success(), "{status}");
    drop(saboteur);
    server.writer = None;
    let admin = server.admin.addr;
    let ready = || try_get(admin, "/readyz").map(|(status, _)| status);
    poll("the gateway to be red", || ready() == Some(503));
    server.start();
    poll("the gateway to be green", || ready() == Some(200));
    assert_eq!(persist(&mut alice, &frame), 2);
    assert_eq!(alice.history(chat, 0).len(), 2);
}
