//! The active storage-writer is killed, stopped and ended in order under load: the other one takes over, and nothing that
//! was acknowledged is lost or doubled.

use crate::common::keyspace::Keyspace;
use crate::common::load::under_load;
use crate::common::process::Process;
use crate::common::{new_dir, poll};
use crate::fleet::Fleet;
use rustix::process::Signal;

const LEASE_MS: u32 = 1_000;
/// Acknowledged between two disturbances.
const STEP: usize = 100;

#[test]
fn a_killed_writer_is_taken_over() {
    let mut fleet = Fleet::start(LEASE_MS);
    under_load(&fleet.target(), |progress| {
        for round in 0..3 {
            progress.more(STEP);
            if round == 2 {
                progress.end_writing();
            }
            let active = fleet.active();
            fleet.kill_writer(active);
            assert_eq!(fleet.active(), 1 - active, "the other one takes over");
            fleet.start_writer(active);
        }
    });
    fleet.stop();
}

#[test]
fn a_stopped_writer_is_taken_over_and_stands_by_when_it_wakes() {
    let mut fleet = Fleet::start(LEASE_MS);
    under_load(&fleet.target(), |progress| {
        for _ in 0..2 {
            progress.more(STEP);
            let stopped = fleet.active();
            fleet.writer(stopped).signal(Signal::STOP);
            // Acknowledged by the other one: this one stands still.
            progress.more(STEP);
            fleet.writer(stopped).signal(Signal::CONT);
            poll("the woken writer to stand by", || {
                let (status, words) = fleet.readyz(stopped);
                status == 503 && words.contains("standing by")
            });
            assert_eq!(fleet.active(), 1 - stopped, "what woke is not active again by itself");
        }
        progress.more(STEP);
    });
    fleet.stop();
}

/// The lease is longer than the patience of a test: who waited for it would fail.
#[test]
fn a_writer_that_ends_in_order_hands_over_at_once() {
    let mut fleet = Fleet::start(60_000);
    under_load(&fleet.target(), |progress| {
        for _ in 0..2 {
            progress.more(STEP);
            let active = fleet.active();
            let mut writer = fleet.writers[active].take().expect("it runs");
            let status = writer.terminate();
            assert!(status.success(), "{status}:\n{}", writer.log());
            progress.more(STEP);
            fleet.start_writer(active);
        }
    });
    fleet.stop();
}

#[test]
fn both_writers_are_killed_and_come_back() {
    let mut fleet = Fleet::start(LEASE_MS);
    under_load(&fleet.target(), |progress| {
        for _ in 0..2 {
            progress.more(STEP);
            fleet.kill_writer(0);
            fleet.kill_writer(1);
            fleet.start_writer(1);
            fleet.start_writer(0);
        }
        progress.more(STEP);
    });
    fleet.stop();
}

#[test]
fn a_writer_without_tables_refuses_and_names_the_command_that_makes_them() {
    let data = new_dir();
    let keyspace = Keyspace::of(data.path());
    let mut args = ["storage-writer", "--data", &data.path().to_string_lossy()].map(str::to_owned).to_vec();
    args.extend(keyspace.flags());
    let mut writer = Process::spawn("storage-writer", &args, &[]);
    let status = writer.wait_exit();
    assert_eq!(status.code(), Some(1), "{}", writer.log());
    let named = format!("--keyspace {}", keyspace.name);
    let said = writer.log();
    assert!(said.contains("`parley schema apply --contact ") && said.contains(&named), "{said}");
}
