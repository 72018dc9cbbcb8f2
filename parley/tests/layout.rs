//! The invariants of the layout: which room may depend on what, and what its sources may name. Reads
//! `cargo metadata` and the sources; starts nothing else. A failure names the place and the rule.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The rooms without IO, their folder, and all that they may name in `[dependencies]`: encodings and containers.
const SANS_IO: &[(&str, &str, &[&str])] = &[
    ("parley-protocol", "protocol", &["rkyv", "serde", "serde_json", "base64", "bytes", "crc32c"]),
    ("parley-idgen", "idgen", &[]),
    (
        "gateway-core",
        "gateway/core",
        &["parley-protocol", "tungstenite", "httparse", "bytes", "slab", "hashbrown", "rkyv", "hmac", "sha2", "base64"],
    ),
    (
        "storage-core",
        "storage-writer/core",
        &["parley-protocol", "parley-idgen", "rkyv", "hashbrown", "slab", "bytes", "crc32c"],
    ),
];

/// What may not even be reached through others: runtimes, sockets, rings, threads, system calls, randomness.
const DENIED: &[&str] = &[
    "glommio",
    "tokio",
    "async-std",
    "smol",
    "mio",
    "polling",
    "io-uring",
    "rustix",
    "nix",
    "socket2",
    "crossbeam",
    "crossbeam-channel",
    "rayon",
    "getrandom",
    "rand",
    "fastrand",
    "chrono",
    "time",
    "jiff",
    "fjall",
    "tracing",
];

/// Exceptions to [`DENIED`]: (room, crate, the one crate that may pull it in, why).
const TOLERATED: &[(&str, &str, &str, &str)] = &[
    ("gateway-core", "rand", "tungstenite", "masks of tungstenite's client side, which the gateway never calls"),
    ("gateway-core", "getrandom", "rand_core", "seeds that rand"),
    ("gateway-core", "getrandom", "rand", "seeds that rand"),
];

/// Source text that a room without IO never has.
const FORBIDDEN_WORDS: &[&str] = &[
    "std::time::Instant",
    "std::time::SystemTime",
    "SystemTime::now",
    "Instant::now",
    "std::thread",
    "thread::spawn",
    "thread_local!",
    "std::net",
    "std::fs",
    "std::process",
    "std::env::",
    "std::sync::Mutex",
    "rand::",
    "getrandom",
];

/// Sources that may hold `unsafe`, each block with its SAFETY comment: the ring driver, the mesh, the one place where
/// glommio takes a descriptor as a number, and the rings of the load generator.
const UNSAFE_ALLOWED: &[&str] = &[
    "gateway/src/host/executor.rs",
    "gateway/src/plane/uring/",
    "gateway/src/plane/uring.rs",
    "gateway/src/mesh.rs",
    "gateway/src/mesh/",
    // The raw baseline of fan-outs is a ring as bare as can be.
    "perf/baseline/fanout.rs",
    "perf/src/rings/",
];

/// Files that may be longer than [`LINES_MAX`], each with a reason.
const LONG_ALLOWED: &[(&str, &str)] = &[];
const LINES_MAX: usize = 900;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("parley/ lies in the workspace").to_owned()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Fails with all findings, one a line, under the rule that they break.
#[track_caller]
fn none(rule: &str, found: Vec<String>) {
    assert!(found.is_empty(), "\n\n{rule}\n  {}\n", found.join("\n  "));
}

/// Every Rust source below `dir`, as paths from the root of the workspace, sorted.
fn sources(dir: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![root().join(dir)];
    while let Some(dir) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries {
            let path = entry.expect("the folder can be read").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && !["target", "node_modules", "data"].contains(&name.as_str()) {
                open.push(path);
            } else if name.ends_with(".rs") {
                let from_root = path.strip_prefix(root()).expect("below the root");
                found.push(from_root.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

/// The lines of a source outside comments and before its unit tests, with their numbers.
fn code_lines(path: &str) -> Vec<(usize, String)> {
    let text = read(&root().join(path));
    let before_tests = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
    let lines = before_tests.lines().enumerate();
    lines.map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default().to_owned())).collect()
}

fn is_word(text: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        let ends_in_name = word.chars().next_back().is_some_and(is_name);
        let goes_on = ends_in_name && after.is_some_and(is_name);
        !before.is_some_and(is_name) && !goes_on
    })
}

fn cargo(arguments: &[&str]) -> Vec<u8> {
    let output =
        Command::new(env!("CARGO")).args(arguments).args(["--locked", "--offline"]).current_dir(root()).output();
    let output = output.expect("cargo starts");
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Workspace package name -> names in its `[dependencies]`.
fn direct_dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let metadata: Value =
        serde_json::from_slice(&cargo(&["metadata", "--format-version", "1", "--no-deps"])).expect("metadata is JSON");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let packages = list(&metadata["packages"]).into_iter().map(|package| {
        let normal = list(&package["dependencies"]).into_iter().filter(|of| of["kind"] != "dev");
        (text(&package["name"]), normal.map(|of| text(&of["name"])).collect())
    });
    packages.collect()
}

/// (dependent, dependency) by name, for all that is built into `package`. `cargo tree` knows which optional parts of a
/// crate are switched on; `cargo metadata` lists them all.
fn reached(package: &str) -> BTreeSet<(String, String)> {
    let tree = cargo(&["tree", "-p", package, "-e", "normal", "--prefix", "depth", "--format", " {p}", "--no-dedupe"]);
    let mut path: Vec<String> = Vec::new();
    let mut pairs = BTreeSet::new();
    for line in String::from_utf8(tree).expect("a text").lines() {
        let mut words = line.split_whitespace();
        let depth: usize = words.next().and_then(|depth| depth.parse().ok()).expect("a depth");
        let name = words.next().expect("a name").to_owned();
        path.truncate(depth);
        if let Some(by) = path.last() {
            pairs.insert((by.clone(), name.clone()));
        }
        path.push(name);
    }
    assert!(!path.is_empty(), "no package {package}");
    pairs
}

#[test]
fn rooms_without_io_name_only_what_is_allowed() {
    let direct = direct_dependencies();
    let mut found = Vec::new();
    for (package, folder, allowed) in SANS_IO {
        for name in &direct[*package] {
            if !allowed.contains(&name.as_str()) {
                found.push(format!("{folder}/Cargo.toml names {name}"));
            }
        }
    }
    none("A room without IO may name only encodings and containers (SANS_IO in this file):", found);
}

#[test]
fn rooms_without_io_reach_no_runtime_socket_thread_or_randomness() {
    let mut found = Vec::new();
    for (package, ..) in SANS_IO {
        for (by, name) in reached(package) {
            let tolerated =
                TOLERATED.iter().any(|(room, krate, through, _)| room == package && *krate == name && *through == by);
            if DENIED.contains(&name.as_str()) && !tolerated {
                found.push(format!("{package} reaches {name} through {by}"));
            }
        }
    }
    none("A room without IO reaches no runtime, socket, thread or random source, not even through others:", found);
}

#[test]
fn rooms_without_io_forbid_unsafe() {
    let mut found = Vec::new();
    for (_, folder, _) in SANS_IO {
        let path = format!("{folder}/src/lib.rs");
        if !code_lines(&path).iter().any(|(_, line)| line.trim() == "#![forbid(unsafe_code)]") {
            found.push(path);
        }
    }
    none("A room without IO says #![forbid(unsafe_code)] in its lib.rs:", found);
}

#[test]
fn rooms_without_io_name_no_clock_thread_socket_or_randomness() {
    let mut found = Vec::new();
    for (_, folder, _) in SANS_IO {
        for path in sources(&format!("{folder}/src")) {
            for (number, line) in code_lines(&path) {
                // A bug that a test plants is its own thread's; the feature `planted` is never in a release.
                let planted = |word: &str| path.ends_with("/src/planted.rs") && word == "thread_local!";
                for word in FORBIDDEN_WORDS.iter().filter(|word| is_word(&line, word) && !planted(word)) {
                    found.push(format!("{path}:{number}: {word}"));
                }
                // `use std::time::{Duration, Instant}` and the like.
                let imports = line.contains("use std::") && ["Instant", "SystemTime"].iter().any(|w| is_word(&line, w));
                if imports {
                    found.push(format!("{path}:{number}: {}", line.trim()));
                }
            }
        }
    }
    none("Time and randomness are arguments; a room without IO names no clock, thread, socket or file:", found);
}

/// Features of packages that are built together are united: one package that asks for the planted bugs would put them
/// into every binary of the same build.
#[test]
fn bugs_are_planted_in_no_build_that_does_not_ask_for_them() {
    let tree = cargo(&["tree", "--workspace", "--prefix", "none", "--format", "{p} has {f}", "--no-dedupe"]);
    let tree = String::from_utf8(tree).expect("a text");
    let found = tree.lines().filter(|line| is_word(line, "planted")).map(str::to_owned).collect::<BTreeSet<_>>();
    assert!(tree.contains("gateway-core "), "the tree names the cores");
    none("The feature `planted` is off in the workspace as it is built for a release:", found.into_iter().collect());
}

#[test]
fn unsafe_lives_in_named_modules() {
    let mut found = Vec::new();
    for path in sources("") {
        let allowed = UNSAFE_ALLOWED.iter().any(|prefix| path.starts_with(prefix));
        // This file has the word in its texts.
        if allowed || path == "parley/tests/layout.rs" {
            continue;
        }
        for (number, line) in code_lines(&path) {
            if is_word(&line, "unsafe") {
                found.push(format!("{path}:{number}: {}", line.trim()));
            }
        }
    }
    none("`unsafe` lives in a few named modules only (UNSAFE_ALLOWED):", found);
}

#[test]
fn the_crash_harness_knows_no_server() {
    let of_this_house =
        ["parley", "gateway", "gateway-core", "storage-writer", "storage-core", "parley-config", "perf"];
    let direct = &direct_dependencies()["crash"];
    let found = of_this_house.iter().filter(|name| direct.contains(**name)).map(|name| format!("crash names {name}"));
    none("Who judges the servers from outside shares only the protocol's types with them:", found.collect());
}

#[test]
fn the_simulator_drives_the_rooms_without_io_and_nothing_else() {
    let direct = direct_dependencies();
    let rooms: Vec<&str> = SANS_IO.iter().map(|(package, ..)| *package).collect();
    let beside = ["clap"];
    let named = direct["sim"].iter().filter(|name| !rooms.contains(&name.as_str()) && !beside.contains(&name.as_str()));
    let mut found: Vec<String> = named.map(|name| format!("sim/Cargo.toml names {name}")).collect();
    for core in ["gateway-core", "storage-core"] {
        if !direct["sim"].contains(core) {
            found.push(format!("sim/Cargo.toml does not name {core}"));
        }
    }
    none("The simulator drives the code that ships, by itself: the rooms without IO and its command line:", found);
}

/// Whatever is not drawn from the seed makes a run that cannot be repeated.
#[test]
fn the_simulator_names_no_clock_thread_or_randomness() {
    // The program around it measures its rate; panics of a run are kept by its thread.
    let allowed = |path: &str, word: &str| match path {
        "sim/src/main.rs" => {
            word == "Instant" || word.ends_with("::Instant") || word.starts_with("Instant::") || word == "std::process"
        }
        "sim/src/lib.rs" => word == "thread_local!",
        _ => false,
    };
    let words = FORBIDDEN_WORDS.iter().chain(&["Instant", "SystemTime", "RandomState"]);
    let mut found = Vec::new();
    for path in sources("sim/src") {
        for (number, line) in code_lines(&path) {
            for word in words.clone().filter(|word| is_word(&line, word) && !allowed(&path, word)) {
                found.push(format!("{path}:{number}: {word}"));
            }
        }
    }
    none("All that a run depends on comes from its seed; no clock, thread or random source in sim/src:", found);
}

#[test]
fn only_binaries_choose_the_allocator() {
    let direct = direct_dependencies();
    let binaries = ["parley", "perf"];
    let mut found = Vec::new();
    for (package, direct) in &direct {
        if direct.contains("mimalloc") && !binaries.contains(&package.as_str()) {
            found.push(format!("{package} names mimalloc"));
        }
    }
    for path in sources("") {
        let mut of_binary = vec!["parley/src/main.rs", "perf/src/main.rs", "perf/src/bin/", "perf/benches/"];
        // A test that counts what lives on the heap; in a binary of its own.
        of_binary.push("gateway/core/tests/density.rs");
        let allowed = of_binary.iter().any(|prefix| path.starts_with(prefix)) || path == "parley/tests/layout.rs";
        for (number, line) in code_lines(&path) {
            if !allowed && line.contains("global_allocator") {
                found.push(format!("{path}:{number}"));
            }
        }
    }
    none("Only binaries choose the allocator:", found);
}

#[test]
fn every_file_says_first_what_lives_there_and_fits_a_head() {
    let (mut headless, mut long) = (Vec::new(), Vec::new());
    for path in sources("") {
        let text = read(&root().join(&path));
        let first = text.lines().next().unwrap_or_default();
        if !first.starts_with("//! ") || first.len() < 20 {
            headless.push(format!("{path}:1: {first:?}"));
        }
        let lines = text.lines().count();
        if lines > LINES_MAX && !LONG_ALLOWED.iter().any(|(allowed, _)| *allowed == path) {
            long.push(format!("{path}: {lines} lines"));
        }
    }
    none("A source begins with `//! ` and what lives there:", headless);
    none("A file is a room: split it, or list it in LONG_ALLOWED with a reason:", long);
}

#[test]
fn every_workspace_dependency_says_why() {
    let text = read(&root().join("Cargo.toml"));
    let table =
        text.split("[workspace.dependencies]").nth(1).expect("the table").split("\n[").next().unwrap_or_default();
    let entries = table.lines().filter(|line| line.contains(" = ") && !line.starts_with('#'));
    let rooms_aside = entries.filter(|line| !line.contains("path = "));
    let silent = rooms_aside.filter(|line| line.split_once(" # ").is_none_or(|(_, why)| why.trim().len() < 8));
    none("Each dependency has a word on why it is here:", silent.map(str::to_owned).collect());
}

#[test]
fn versions_stand_once() {
    let mut found = Vec::new();
    for folder in [
        "protocol",
        "idgen",
        "config",
        "gateway",
        "gateway/core",
        "storage-writer",
        "storage-writer/core",
        "parley",
        "perf",
        "sim",
        "fuzz",
        "crash",
    ] {
        let path = format!("{folder}/Cargo.toml");
        let text = read(&root().join(&path));
        let mut in_dependencies = false;
        for (index, line) in text.lines().enumerate() {
            if line.starts_with('[') {
                in_dependencies = line.contains("dependencies");
            } else if in_dependencies
                && line.contains('=')
                && !line.starts_with('#')
                && !line.contains("workspace = true")
            {
                found.push(format!("{path}:{}: {line}", index + 1));
            }
        }
    }
    none("Versions stand once, in the workspace table:", found);
}
