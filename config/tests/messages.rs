//! What a person reads when a configuration is wrong, and what `parley check` prints: as snapshots.

use parley_config::{Driver, Machine, Severity, Sources, check, load_gateway, load_storage_writer};
use std::path::Path;

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// A directory with these two files; an empty text stands for no file.
fn dir(gateway: &str, writer: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("gateway.toml", gateway), ("storage-writer.toml", writer)] {
        if !text.is_empty() {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
    }
    dir
}

/// Without the directory, which differs from run to run.
fn masked(text: &str, dir: &Path) -> String {
    text.replace(&dir.display().to_string(), "DIR")
}

fn gateway_error(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> String {
    let dir = dir(file, "");
    let (env, flags) = (pairs(env), pairs(flags));
    let error = load_gateway(Sources { dir: Some(dir.path()), env: &env, flags: &flags }).unwrap_err();
    masked(&error.to_string(), dir.path())
}

fn machine() -> Machine {
    Machine {
        cores: 2,
        memory_bytes: 24 << 30,
        nofile: 20_000,
        memlock_bytes: Some(8 << 20),
        uring: true,
        unreadable: Vec::new(),
    }
}

#[test]
fn the_shipped_files_alone_are_valid() {
    let gateway = load_gateway(Sources::default()).unwrap().config;
    assert_eq!((gateway.listen.port(), gateway.driver, gateway.session.devices_max), (7_400, Driver::Auto, 16));
    let writer = load_storage_writer(Sources::default()).unwrap().config;
    assert_eq!((writer.admin.port(), writer.worker), (7_403, 0));
}

#[test]
fn flags_lie_over_environment_over_file_over_defaults() {
    let dir = dir("shards = 3\n[session]\ndevices_max = 3\nhole_wait_ms = 3\n", "");
    let env = pairs(&[("PARLEY_GATEWAY__SESSION__DEVICES_MAX", "4"), ("PARLEY_GATEWAY__SESSION__HOLE_WAIT_MS", "4")]);
    let flags = pairs(&[("session.hole_wait_ms", "5")]);
    let config = load_gateway(Sources { dir: Some(dir.path()), env: &env, flags: &flags }).unwrap().config;
    let session = &config.session;
    assert_eq!((config.shards, session.devices_max, session.hole_wait_ms, session.held_items_max), (3, 4, 5, 64));
}

#[test]
fn texts_of_the_environment_become_values_of_the_keys_type() {
    let env = pairs(&[
        ("PARLEY_GATEWAY__LOBBY__ORIGINS", "https://a.example, https://b.example"),
        ("PARLEY_GATEWAY__PIN", "false"),
        ("PARLEY_GATEWAY__IDENTITY__ISSUER", "12"),
        ("PARLEY_URL", "of another program"),
    ]);
    let config = load_gateway(Sources { dir: None, env: &env, flags: &[] }).unwrap().config;
    assert_eq!(config.lobby.origins, ["https://a.example", "https://b.example"]);
    assert_eq!((config.pin, config.identity.issuer.as_str()), (false, "12"));
}

#[test]
fn a_file_may_leave_out_everything_and_may_be_absent() {
    for (gateway, writer) in [("[session]\n# devices_max = 4\n", ""), ("# empty\n", "# empty\n")] {
        let dir = dir(gateway, writer);
        let sources = Sources { dir: Some(dir.path()), env: &[], flags: &[] };
        assert!(load_gateway(sources).is_ok());
        assert!(load_storage_writer(sources).is_ok());
    }
}

#[test]
fn unknown_keys() {
    insta::assert_snapshot!(gateway_error(
        "lisen = \"127.0.0.1:1\"\n\n[session]\ndevice_max = 3\n\n[chat]\noutbox_bytes_max = 1\n[weather]\n",
        &[
            ("PARLEY_GATEWAY__SESION__DEVICES_MAX", "4"),
            ("PARLEY_GATEWAY_SHARDS", "4"),
            ("PARLEY_GATEWAY__FLUX_CAPACITOR", "1"),
        ],
        &[("shard", "2")],
    ));
}

#[test]
fn wrong_types() {
    insta::assert_snapshot!(gateway_error(
        "shards = \"two\"\npin = 1\nconnections_max = 99999999999999999999\n[lobby]\norigins = \"*\"\n",
        &[("PARLEY_GATEWAY__DRAIN_TIMEOUT_MS", "10s")],
        &[("pin", "yes")],
    ));
}

#[test]
fn values_that_are_not_allowed() {
    insta::assert_snapshot!(gateway_error(
        "listen = \"localhost:7400\"\npath = \"ws\"\ndriver = \"kqueue\"\n[lobby]\norigins = [\"https://a.example/\"]\n",
        &[("PARLEY_GATEWAY__CHAT__INBOX_FANOUT_MEMBERS_MAX", "1001")],
        &[("shards", "-1")],
    ));
}

/// What no configuration raises: the last value that is taken, and what is said of the next one.
#[test]
fn ranges_end_where_the_protocol_does() {
    let gateway = |payload: u64, frame: u64| {
        format!(
            "[message]\npayload_bytes_max = {payload}\nframe_bytes_max = {frame}\n\
             [session]\noutbox_bytes_max = 4194304\n"
        )
    };
    let writer = |payload: u64| format!("[limits]\npayload_bytes_max = {payload}\ngroup_members_max = 10000\n");
    let fits = dir(&gateway(262_144, 1_048_576), &writer(262_144));
    let sources = Sources { dir: Some(fits.path()), env: &[], flags: &[] };
    let message = load_gateway(sources).unwrap().config.message;
    assert_eq!((message.payload_bytes_max, message.frame_bytes_max), (262_144, 1_048_576));
    let limits = load_storage_writer(sources).unwrap().config.limits;
    assert_eq!((limits.payload_bytes_max, limits.group_members_max), (262_144, 10_000));
    assert_eq!(
        gateway_error("[chat]\ngroup_members_max = 10001\n", &[], &[]),
        "DIR/gateway.toml:2: `chat.group_members_max` is 10001; allowed: 2 to 10000: the protocol knows no larger group"
    );
    assert_eq!(
        gateway_error(&gateway(262_145, 1_048_577), &[], &[]),
        "DIR/gateway.toml:2: `message.payload_bytes_max` is 262145; allowed: 1 to 262144: the protocol knows no \
         larger payload\n\
         DIR/gateway.toml:3: `message.frame_bytes_max` is 1048577; allowed: 1024 to 1048576: the protocol decodes no \
         larger frame"
    );
    let above = dir("", &writer(262_145));
    let error = load_storage_writer(Sources { dir: Some(above.path()), env: &[], flags: &[] }).unwrap_err();
    assert_eq!(
        masked(&error.to_string(), above.path()),
        "DIR/storage-writer.toml:2: `limits.payload_bytes_max` is 262145; allowed: 1 to 262144: the protocol knows no \
         larger payload"
    );
}

#[test]
fn keys_that_contradict_each_other() {
    insta::assert_snapshot!(gateway_error(
        "[message]\npayload_bytes_max = 60000\n[session]\noutbox_bytes_max = 8192\nheartbeat_timeout_ms = 25000\n",
        &[("PARLEY_GATEWAY__RECONNECT_SPREAD_MS", "20000")],
        &[],
    ));
}

#[test]
fn a_file_that_is_not_toml() {
    insta::assert_snapshot!(gateway_error("shards = 2\nlisten = 127.0.0.1:7400\n", &[], &[]));
}

#[test]
fn a_directory_that_is_not_there() {
    let dir = dir("", "");
    let gone = dir.path().join("gone");
    let error = load_gateway(Sources { dir: Some(&gone), env: &[], flags: &[] }).unwrap_err();
    insta::assert_snapshot!(masked(&error.to_string(), dir.path()));
}

#[test]
fn check_of_the_shipped_files() {
    let gateway = load_gateway(Sources::default()).unwrap();
    let writer = load_storage_writer(Sources::default()).unwrap();
    let report = check(&gateway, &writer, &machine());
    assert!(report.is_ok());
    insta::assert_snapshot!(report.text);
}

#[test]
fn check_explains_every_conflict() {
    let dir = dir(
        "shards = 8\ndriver = \"uring\"\n[chat]\ngroup_members_max = 1000\n[session]\noutbox_bytes_max = 1000000\n",
        "[limits]\n",
    );
    let env = pairs(&[
        ("PARLEY_STORAGE_WRITER__ADMIN", "127.0.0.1:7401"),
        ("PARLEY_STORAGE_WRITER__SOCKET", "w.sock"),
        ("PARLEY_STORAGE_WRITER__READERS__THREADS", "4"),
    ]);
    let flags = pairs(&[("message.payload_bytes_max", "1000")]);
    let gateway = load_gateway(Sources { dir: Some(dir.path()), env: &env, flags: &flags }).unwrap();
    let writer = load_storage_writer(Sources { dir: Some(dir.path()), env: &env, flags: &[] }).unwrap();
    let small = Machine {
        cores: 2,
        memory_bytes: 512 << 20,
        nofile: 4_096,
        memlock_bytes: Some(64 << 10),
        uring: true,
        unreadable: Vec::new(),
    };
    let report = check(&gateway, &writer, &small);
    assert!(!report.is_ok());
    let findings: Vec<String> =
        report.findings.iter().map(|finding| format!("{:?}: {}", finding.severity, finding.text)).collect();
    insta::assert_snapshot!(findings.join("\n"));
    let overridden: Vec<&str> =
        report.text.lines().filter(|line| line.contains(" # ") && !line.ends_with("default")).collect();
    insta::assert_snapshot!("origins", masked(&overridden.join("\n"), dir.path()));
}

#[test]
fn a_gateway_of_several_writers_does_not_know_where_each_has_its_socket() {
    let is_ok = |sockets: &str, socket: &str| {
        let dir = dir(&format!("[writer]\nsockets = {sockets}\n"), &format!("socket = \"{socket}\"\n"));
        let sources = Sources { dir: Some(dir.path()), env: &[], flags: &[] };
        check(&load_gateway(sources).unwrap(), &load_storage_writer(sources).unwrap(), &machine()).is_ok()
    };
    let both = "[\"a.sock\", \"b.sock\"]";
    assert!(is_ok(both, "") && is_ok(both, "b.sock"));
    assert!(!is_ok(both, "c.sock") && !is_ok("[\"a.sock\"]", ""));
}

#[test]
fn auto_without_io_uring_is_a_note_and_shares_the_files() {
    let gateway = load_gateway(Sources::default()).unwrap();
    let writer = load_storage_writer(Sources::default()).unwrap();
    let machine = Machine { uring: false, ..machine() };
    let report = check(&gateway, &writer, &machine);
    assert!(report.is_ok());
    assert!(report.findings.iter().any(|finding| finding.severity == Severity::Note));
    assert_eq!(gateway.config.connections_per_shard(&machine, false), (20_000 - 1_024) / 2);
    assert_eq!(gateway.config.connections_per_shard(&machine, true), 1_000_000);
}

#[test]
fn a_slip_in_the_first_part_of_a_name_is_not_passed_over() {
    let error = gateway_error("", &[("PARLEY_GATWAY__PIN", "false")], &[]);
    assert_eq!(
        error,
        "environment PARLEY_GATWAY__PIN: no key `PARLEY_GATWAY__PIN`; did you mean `PARLEY_GATEWAY__PIN`?"
    );
    let env = pairs(&[("PARLEY_STORAGE_WRITER__WORKER", "1"), ("PARLEY_TEST_DRIVER", "epoll")]);
    assert!(load_gateway(Sources { dir: None, env: &env, flags: &[] }).is_ok(), "the other's, and no key at all");
}

#[test]
fn a_cluster_is_configured_whole() {
    let check_on = |writer: &str, machine: &Machine| {
        let dir = dir("", writer);
        let sources = Sources { dir: Some(dir.path()), env: &[], flags: &[] };
        let (gateway, writer) = (load_gateway(sources).unwrap(), load_storage_writer(sources).unwrap());
        check(&gateway, &writer, machine)
    };
    let check_of = |writer: &str| check_on(writer, &machine());
    let good = "store = \"scylla\"\n[readers]\nthreads = 16\n[scylla]\ncontact_points = [\"a:1\", \"b:2\"]\n";
    let report = check_of(good);
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    let report = check_of("store = \"scylla\"\n[scylla]\nuser = \"parley\"\n");
    assert!(!report.is_ok());
    let report = check_of("store = \"scylla\"\n[scylla]\nuser = \"parley\"\npassword_file = \"p\"\n");
    assert!(report.is_ok());
    let findings: Vec<&str> = report.findings.iter().map(|finding| finding.text.as_str()).collect();
    insta::assert_snapshot!(findings.join("\n"));
    let unreadable = vec![("ca.pem".into(), "Permission denied (os error 13)".to_owned())];
    let report = check_on("store = \"scylla\"\n[scylla]\ntls_ca = \"ca.pem\"\n", &Machine { unreadable, ..machine() });
    assert!(!report.is_ok());
    insta::assert_snapshot!("a_file_that_cannot_be_read", report.findings[0].text);
    let bad = dir(
        "",
        "store = \"cassandra\"\n[scylla]\ncontact_points = []\nkeyspace = \"a;b\"\nlease_ms = 1\n\
         tablets = \"yes\"\nreplication = \"3\"\ntable_options = [\"x\"]\n",
    );
    let error = load_storage_writer(Sources { dir: Some(bad.path()), env: &[], flags: &[] }).unwrap_err();
    insta::assert_snapshot!("values_of_a_cluster", masked(&error.to_string(), bad.path()));
    let flags = pairs(&[("scylla.in_flight_min", "100"), ("scylla.in_flight_max", "50")]);
    let error = load_storage_writer(Sources { dir: None, env: &[], flags: &flags }).unwrap_err();
    assert!(error.to_string().contains("must be at most 50: scylla.in_flight_max"), "{error}");
}
