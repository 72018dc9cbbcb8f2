//! A damaged block in a table of a running server: reads that meet it are answered by the typed error and never by less
//! than is there, all else goes on, `/readyz` turns red, and `check-store` names file and byte.

use crate::common::device::{direct, payload_frame};
use crate::common::http::get;
use crate::common::{JSON, RKYV, Server, Settings, new_dir, poll, random, run};
use parley_protocol::{ClientMsgId, ErrorCode};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The keyspace of events: the first that a store makes.
fn event_tables(data: &Path) -> Vec<PathBuf> {
    let tables = std::fs::read_dir(data.join("engine/keyspaces/1/tables")).expect("tables of events");
    tables.map(|entry| entry.expect("an entry").path()).collect()
}

/// Flips a bit inside the first block of a table.
fn damage(table: &Path) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(table).expect("a table");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 100).expect("a block");
    file.write_all_at(&[byte[0] ^ 0x10], 100).expect("written");
}

#[test]
fn a_damaged_block_is_said_and_found() {
    let data = new_dir();
    let settings = || Settings::new().writer("embedded.memtable_bytes", 1 << 20);
    let mut server = Server::up_on(data.path(), settings());
    let mut alice = server.device("alice", JSON);
    let bob = server.device("bob", RKYV);
    let chat = direct(&alice, &bob);
    let mut sent = 0;
    // More than stays in memory.
    while sent < 150 || event_tables(data.path()).is_empty() {
        assert!(sent < 3_000, "no table is written");
        let frame = payload_frame(chat, ClientMsgId(random()), &random().to_le_bytes().repeat(1_000));
        sent = alice.command(&frame).expect("stored").seq;
    }
    alice.wait_event(chat, sent);
    alice.sync();
    drop(bob);
    server.stop();
    server.check_store();
    let tables = event_tables(data.path());
    tables.iter().for_each(|table| damage(table));

    server.start();
    // Its mark is the newest: nothing is to be read for it.
    alice.reconnect();
    assert_eq!(get(server.admin.addr, "/readyz").0, 200, "nobody met it yet");
    let error = alice.history_page(chat, None, Some(0), 0).expect_err("it lies in the damaged block");
    assert_eq!(error.code, ErrorCode::Damaged, "{error:?}");
    poll("/readyz to be red", || get(server.admin.addr, "/readyz").0 == 503);
    let (_, reason) = get(server.admin.addr, "/readyz");
    assert!(reason.contains("check-store"), "it says what to do: {reason}");
    let log = server.gateway().log();
    assert!(log.contains("damaged data") && log.contains("table events"), "the log says where:\n{log}");
    // Another chat does not touch it, and is served.
    let carol = server.device("carol", JSON);
    let other = direct(&alice, &carol);
    alice.post(other, "goes on");
    assert_eq!(alice.history(other, 0).len(), 1);
    drop((alice, carol));
    server.stop();

    let (status, output) = run(&["check-store", "--data", data.path().to_str().expect("a UTF-8 path")]);
    assert!(!status.success(), "{output}");
    for table in tables {
        let named = format!("{}: the block at byte 0 is damaged", table.display());
        assert!(output.contains(&named), "{named} is not in\n{output}");
    }
}

/// A table without its end cannot be opened: the server refuses to start, and says which file.
#[test]
fn a_table_cut_short_refuses_to_start() {
    let data = new_dir();
    let mut server = Server::up_on(data.path(), Settings::new());
    let alice = server.device("alice", JSON);
    drop(alice);
    server.stop();
    drop(server);
    // The engine keeps the names of its keyspaces in a table that every store has.
    let tables = std::fs::read_dir(data.path().join("engine/keyspaces/0/tables")).expect("the engine's own tables");
    let table = tables.map(|entry| entry.expect("an entry").path()).max().expect("one");
    let whole = std::fs::read(&table).expect("read");
    std::fs::write(&table, &whole[..whole.len() / 2]).expect("written");
    let data_text = data.path().to_str().expect("a UTF-8 path");
    for args in [
        &["up", "--data", data_text, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"][..],
        &["check-store", "--data", data_text],
    ] {
        let (status, output) = run(args);
        assert!(!status.success() && !output.contains("panicked"), "{output}");
        assert!(output.contains(table.to_str().expect("a UTF-8 path")), "it names the file:\n{output}");
    }
    std::fs::write(&table, &whole).expect("written");
    Server::up_on(data.path(), Settings::new()).stop();
}
