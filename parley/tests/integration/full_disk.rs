//! A full disk stops acknowledgements, turns `/readyz` red with the reason, and is over by itself when there is room.
//! Needs root, for a small file system of its own: skipped without, but not where `CI` is `true`.

use crate::common::device::{direct, payload_frame};
use crate::common::http::get;
use crate::common::{Device, JSON, Server, Settings, new_dir, poll, random};
use parley_protocol::{ClientFrame, ClientMsgId, ErrorCode};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system in memory, unmounted when the test ends.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// `None` where the tester may not mount.
    fn mount() -> Option<Self> {
        let dir = new_dir();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=768m,mode=0700", "parley-test"])
            .arg(dir.path())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self { dir })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Takes all the room that is left.
    fn fill(&self) -> PathBuf {
        let path = self.path().join("ballast");
        let mut file = File::create(&path).expect("a file");
        let chunk = vec![0; 64 * 1024];
        while file.write_all(&chunk).is_ok() {}
        while file.write_all(&[0; 512]).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

fn command(device: &Device, other: &Device) -> ClientFrame {
    payload_frame(direct(device, other), ClientMsgId(random()), &[b'x'; 16_384])
}

#[test]
fn a_full_disk_stops_acknowledgements_and_recovers() {
    let Some(disk) = SmallDisk::mount() else {
        let promised = std::env::var("CI").is_ok_and(|ci| ci == "true") && !rustix::process::geteuid().is_root();
        assert!(!promised, "CI has to hold this promise, and a tester who is not root may not mount: run it as root");
        eprintln!("SKIPPED full_disk: mounting a tmpfs is not allowed here; run as root to test this");
        return;
    };
    let mut server = Server::up_on(disk.path(), Settings::new());
    let mut alice = server.device("alice", JSON);
    let mut bob = server.device("bob", JSON);
    let chat = direct(&alice, &bob);
    alice.post(chat, "there is room");
    let ballast = disk.fill();
    let mut acknowledged = 1;
    // What was allocated before may still take some.
    let refused = loop {
        let frame = command(&alice, &bob);
        match alice.command(&frame) {
            Ok(_) => acknowledged += 1,
            Err(error) => {
                assert_eq!(error.code, ErrorCode::Unavailable, "{error:?}");
                assert!(error.retry_after_ms.is_some());
                break frame;
            }
        }
        assert!(acknowledged < 20_000, "the disk never fills");
    };
    poll("/readyz to be red", || get(server.admin.addr, "/readyz").0 == 503);
    let (_, reason) = get(server.admin.addr, "/readyz");
    assert!(reason.contains("space") || reason.contains("full"), "it says why: {reason}");
    assert_eq!(alice.command(&refused).expect_err("still full").code, ErrorCode::Unavailable);
    assert_eq!(bob.history(chat, 0).len(), acknowledged, "reads go on, and show what was acknowledged");

    std::fs::remove_file(ballast).expect("room again");
    poll("the store to recover by itself", || match alice.command(&refused) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.code, ErrorCode::Unavailable, "{error:?}");
            std::thread::sleep(std::time::Duration::from_millis(100));
            false
        }
    });
    acknowledged += 1;
    poll("/readyz to be green", || get(server.admin.addr, "/readyz").0 == 200);
    alice.post(chat, "room again");
    acknowledged += 1;
    bob.wait_event(chat, acknowledged as u64);
    assert_eq!(bob.arrived(chat), (1..=acknowledged as u64).collect::<Vec<u64>>());
    assert_eq!(bob.history(chat, 0).len(), acknowledged);
    drop((alice, bob));
    server.stop();
    server.check_store();
}
