//! Configuration files: a refusal names the place and the key of every problem, and what is taken is said again by
//! `parley check` in words that are taken with the same meaning. An input is the text of a file behind a first line that
//! says which: `gateway`, or anything else for the storage-writer.

use crate::{Target, Verdict};
use parley_config::{
    ConfigError, Gateway, Loaded, Machine, Origin, Problem, Sources, StorageWriter, check, load_gateway,
    load_gateway_text, load_storage_writer, load_storage_writer_text,
};
use std::path::Path;
use std::sync::LazyLock;

/// See [`crate::TARGETS`].
pub const TARGET: Target = Target {
    name: "config",
    about: "gateway.toml and storage-writer.toml",
    run,
    input_bytes_max: 4_096,
    dictionary: &[
        b"gateway\n",
        b"\n[session]\n",
        b"\n[lobby]\n",
        b"\n[[lobby]]\n",
        b"session.devices_max = ",
        b"origins = [\"*\"]",
        b"shards = 0x10",
        b"pin = true",
        b"1979-05-27T07:32:00Z",
        b"'''",
        b"\"\"\"",
        b"\\u0000",
        b"inf",
        b"nan",
        b"0o7",
        b"99999999999999999999",
        b"-1",
        b"1_000",
        b"{ a = 1 }",
        b"[::1]:80",
    ],
    golden: &[],
};

const FILE: &str = "fuzz.toml";

fn run(data: &[u8]) -> Verdict {
    // A file that is not UTF-8 is refused before it is looked at.
    let Ok(input) = std::str::from_utf8(data) else { return Verdict::Refused };
    let (which, text) = input.split_once('\n').unwrap_or(("", input));
    let taken = match which {
        "gateway" => match load_gateway_text(Path::new(FILE), text) {
            Ok(loaded) => gateway_said_again(&loaded),
            Err(error) => problems_are_named(&error, text),
        },
        _ => match load_storage_writer_text(Path::new(FILE), text) {
            Ok(loaded) => writer_said_again(&loaded),
            Err(error) => problems_are_named(&error, text),
        },
    };
    taken.into()
}

fn problems_are_named(error: &ConfigError, text: &str) -> bool {
    assert!(!error.problems.is_empty(), "a refusal has a reason");
    let lines = 1 + text.matches('\n').count();
    for problem in &error.problems {
        let shown = problem.to_string();
        let (origin, key) = match problem {
            Problem::Unreadable { .. } => panic!("nothing was read: {shown}"),
            Problem::Syntax { origin, reason } => {
                assert!(!reason.is_empty());
                (origin, "not valid TOML")
            }
            Problem::UnknownKey { origin, key, .. }
            | Problem::WrongType { origin, key, .. }
            | Problem::NotAllowed { origin, key, .. }
            | Problem::Conflict { origin, key, .. } => (origin, key.as_str()),
        };
        assert!(shown.contains(key), "{shown}");
        match origin {
            Origin::File { path, line } => {
                assert!(path == Path::new(FILE) && (1..=lines).contains(line), "line {line} of {lines}: {shown}");
                assert!(shown.starts_with(&format!("{FILE}:{line}: ")), "{shown}");
            }
            // Two values contradict each other, and the one that is named is the shipped one.
            Origin::Default => assert!(matches!(problem, Problem::Conflict { .. }), "{shown}"),
            Origin::Env(_) | Origin::Flag(_) => panic!("neither was given: {shown}"),
        }
    }
    false
}

static SHIPPED: LazyLock<(Loaded<Gateway>, Loaded<StorageWriter>)> = LazyLock::new(|| {
    let gateway = load_gateway(Sources::default()).expect("the shipped file is valid");
    (gateway, load_storage_writer(Sources::default()).expect("the shipped file is valid"))
});

const MACHINE: Machine = Machine {
    cores: 2,
    memory_bytes: 24 << 30,
    nofile: 20_000,
    memlock_bytes: Some(8 << 20),
    uring: true,
    unreadable: Vec::new(),
};

/// The two files as `parley check` prints them.
fn printed(gateway: &Loaded<Gateway>, writer: &Loaded<StorageWriter>) -> (String, String) {
    let text = check(gateway, writer, &MACHINE).text;
    let (gateway, writer) = text.split_once("# ---- storage-writer.toml\n").expect("both files");
    (gateway.to_owned(), writer.to_owned())
}

fn gateway_said_again(loaded: &Loaded<Gateway>) -> bool {
    let (text, _) = printed(loaded, &SHIPPED.1);
    let again = load_gateway_text(Path::new(FILE), &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(again.config, loaded.config);
    true
}

fn writer_said_again(loaded: &Loaded<StorageWriter>) -> bool {
    let (_, text) = printed(&SHIPPED.0, loaded);
    let again = load_storage_writer_text(Path::new(FILE), &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(again.config, loaded.config);
    true
}
