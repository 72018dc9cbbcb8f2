//! Real processes, real sockets: what Parley promises to those who use it, one file for each behaviour. One program, so
//! that it is linked once and tests that wait do so side by side.
//!
//! `PARLEY_TEST_DRIVER=epoll cargo test -p parley --test integration direct_live` runs one file's tests on one driver.

#[path = "../common/mod.rs"]
mod common;

mod admin_endpoint;
mod bad_input;
mod channels;
mod check_reads_files;
mod commands_for_scripts;
mod crash_ledger;
mod damaged_store;
mod data_directory;
mod direct_live;
mod full_disk;
mod group_of_100;
mod hostile;
mod hostile_floods;
mod hostile_frames;
mod hostile_handshake;
mod hostile_sessions;
mod hostile_tokens;
mod inbox_limit_crossing;
mod offline_sync;
mod refusals;
mod removed_member;
mod retry_same_command;
mod sessions;
mod slow_reader;
mod stopped_gateway_is_fenced;
mod store_copy;
mod sync_failure;
