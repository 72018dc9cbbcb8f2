//! Where io_uring is refused, as in default container profiles, `auto` serves over epoll and `uring` says what to do.
//! The filter is on a child process: this test binary, run again for the one test in it.

use gateway::echo;
use gateway::plane::{DriverChoice, DriverKind, Exit, Options, StartError};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::process::Command;
use std::time::Duration;
use tungstenite::Message;

const CHILD: &str = "PARLEY_TEST_WITHOUT_IO_URING";

/// Refuses `io_uring_setup` to this process, as seccomp profiles do: with EPERM.
fn refuse_io_uring() {
    let rules = [(libc::SYS_io_uring_setup, Vec::new())].into_iter().collect();
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let arch = std::env::consts::ARCH.try_into().expect("an architecture that seccompiler knows");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).expect("a filter");
    let program: BpfProgram = filter.try_into().expect("a program");
    seccompiler::apply_filter_all_threads(&program).expect("filters need no privilege");
}

#[test]
fn auto_falls_back_where_io_uring_is_refused() {
    if std::env::var_os(CHILD).is_none() {
        let status = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "auto_falls_back_where_io_uring_is_refused", "--nocapture"])
            .env(CHILD, "1")
            .status()
            .expect("runs again");
        assert!(status.success(), "the child says why");
        return;
    }
    refuse_io_uring();
    let server = echo::serve(Options { shards: 2, ..Options::default() }).expect("starts on epoll");
    assert_eq!(server.driver(), DriverKind::Epoll);
    let (mut client, _) = tungstenite::connect(format!("ws://{}/ws", server.addr())).expect("connects");
    client.send(Message::text("still here")).expect("sends");
    assert_eq!(client.read().expect("an echo"), Message::text("still here"));
    drop(client);
    server.drain(Duration::from_secs(20));
    assert_eq!(server.join(), Exit::Drained);

    let error = echo::serve(Options { driver: DriverChoice::Uring, ..Options::default() }).expect_err("is refused");
    let StartError::Driver(why) = error else { panic!("{error}") };
    assert!(why.contains("seccomp") && why.contains("io_uring_disabled"), "{why}");
}

#[test]
fn auto_takes_io_uring_where_it_works() {
    let server = echo::serve(Options::default()).expect("starts");
    assert_eq!(server.driver(), DriverKind::Uring);
    server.drain(Duration::from_secs(20));
    assert_eq!(server.join(), Exit::Drained);
}
