//! `docs/PROTOCOL.md` tells the truth: every JSON block is the frame that it claims to be, every frame, field, body,
//! error code, close code and limit is there.

mod common;

use parley_protocol::close::{self, ClientAction, client_action};
use parley_protocol::wire::{Encoding, decode_client_frame, decode_server_frame, encode_client_frame};
use parley_protocol::{ClientFrame, Envelope, check, limits};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const DOCUMENT: &str = include_str!("../../docs/PROTOCOL.md");

/// The blocks fenced as `json KIND`; any other JSON block fails.
fn blocks(kind: &str) -> Vec<Value> {
    let mut found = Vec::new();
    let mut rest = DOCUMENT;
    while let Some((_, after)) = rest.split_once("```json") {
        let (info, after) = after.split_once('\n').expect("a fence ends its line");
        let (block, after) = after.split_once("\n```").expect("a block ends");
        assert!(["client", "server", "body"].contains(&info.trim()), "a block of no kind: ```json{info}");
        if info.trim() == kind {
            found.push(serde_json::from_str(block).unwrap_or_else(|error| panic!("{error} in:\n{block}")));
        }
        rest = after;
    }
    found
}

/// Names of all fields of all objects below, as paths; list items share one path.
fn paths(value: &Value, at: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let path = format!("{at}.{name}");
                paths(field, &path, into);
                into.insert(path);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| paths(item, at, into)),
        _ => {}
    }
}

/// Everything that the example says is in what the frame says; what it leaves out is null, empty or zero there.
fn includes(full: &Value, example: &Value, at: &str) {
    match (full, example) {
        (Value::Object(full), Value::Object(example)) => {
            for name in full.keys().chain(example.keys()) {
                match (full.get(name), example.get(name)) {
                    (Some(value), Some(shown)) => includes(value, shown, &format!("{at}.{name}")),
                    (None, Some(shown)) => assert!(shown.is_null(), "{at}.{name} is lost"),
                    (value, None) => {
                        let left_out = [Value::Null, Value::from(0), Value::from(""), Value::Array(vec![])];
                        let value = value.unwrap_or(&Value::Null);
                        // The kind of a `send` follows from its body.
                        assert!(
                            left_out.contains(value) || name == "kind",
                            "{at}.{name} is {value}, which the text leaves out"
                        );
                    }
                }
            }
        }
        (full, example) => assert_eq!(full, example, "{at}"),
    }
}

fn type_of(frame: &Value) -> String {
    frame["type"].as_str().expect("a frame has a type").to_owned()
}

/// The fields of each type of frame.
fn fields<'a>(frames: impl Iterator<Item = &'a Value>) -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for frame in frames {
        paths(frame, "", all.entry(type_of(frame)).or_default());
    }
    all
}

fn heading(name: &str) -> bool {
    DOCUMENT.lines().any(|line| line == format!("### `{name}`"))
}

#[test]
fn client_examples_are_client_frames_and_all_are_there() {
    let examples = blocks("client");
    for example in &examples {
        let frame = decode_client_frame(Encoding::Json, example.to_string().as_bytes())
            .unwrap_or_else(|error| panic!("{error}: {example}"));
        assert_eq!(frame.check(), Ok(()), "{example}");
        if let ClientFrame::Send(send) = &frame {
            assert_eq!(check::check_envelope(&send.envelope, 16 * 1024), Ok(()));
        }
        let mut again = Vec::new();
        encode_client_frame(Encoding::Json, &frame, &mut again);
        includes(&serde_json::from_slice(&again).unwrap(), example, &type_of(example));
        assert!(heading(&type_of(example)), "{}", type_of(example));
    }
    let samples: Vec<Value> =
        common::client_frames().iter().map(|frame| serde_json::to_value(frame).unwrap()).collect();
    assert_fields(fields(examples.iter()), fields(samples.iter()));
}

#[test]
fn server_examples_are_server_frames_and_all_are_there() {
    let examples = blocks("server");
    for example in &examples {
        let frame = decode_server_frame(Encoding::Json, example.to_string().as_bytes())
            .unwrap_or_else(|error| panic!("{error}: {example}"));
        assert_eq!(&serde_json::to_value(&frame).unwrap(), example, "sent as shown");
        assert!(heading(&type_of(example)), "{}", type_of(example));
    }
    let samples: Vec<Value> =
        common::server_frames().iter().map(|frame| serde_json::to_value(frame).unwrap()).collect();
    assert_fields(fields(examples.iter()), fields(samples.iter()));
}

/// Every type, and every field of it outside of bodies, which have blocks of their own.
fn assert_fields(shown: BTreeMap<String, BTreeSet<String>>, all: BTreeMap<String, BTreeSet<String>>) {
    assert_eq!(shown.keys().collect::<Vec<_>>(), all.keys().collect::<Vec<_>>(), "types of frames");
    for (name, fields) in all {
        let missing: Vec<_> =
            fields.difference(&shown[&name]).filter(|path| name == "send" || !path.contains(".body.")).collect();
        assert!(missing.is_empty(), "{name}: no example shows {missing:?}");
    }
}

#[test]
fn body_examples_are_bodies_and_all_are_there() {
    let mut shown = BTreeSet::new();
    for example in blocks("body") {
        let envelope: Envelope = serde_json::from_value(example.clone()).unwrap();
        assert_eq!(serde_json::to_value(&envelope).unwrap(), example, "sent as shown");
        shown.insert(common::body_name(&envelope.to_body().unwrap()));
    }
    assert_eq!(shown, common::BODY_NAMES.iter().copied().collect());
}

/// The cells of the row of a table that begins with `first`.
fn row(first: &str) -> Vec<&'static str> {
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>();
    let rows: Vec<_> = DOCUMENT.lines().filter(|line| line.starts_with('|')).map(cells).collect();
    let mut found = rows.into_iter().filter(|cells| cells[0] == first);
    let cells = found.next().unwrap_or_else(|| panic!("no row for {first}"));
    assert!(found.next().is_none(), "two rows for {first}");
    cells
}

#[test]
fn every_error_code_has_a_row() {
    for code in common::ERRORS {
        let name = serde_json::to_value(code).unwrap();
        let cells = row(&format!("`{}`", name.as_str().unwrap()));
        assert!(cells.len() == 3 && cells.iter().all(|cell| !cell.is_empty()), "{cells:?}");
    }
}

#[test]
fn every_close_code_has_a_row_with_the_action_of_the_code() {
    let standard = [1000, 1001, 1002, 1003, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013];
    for code in standard.into_iter().chain(close::ALL.iter().map(|(code, ..)| *code)) {
        let action = match client_action(code) {
            ClientAction::RetryNow => "retry now",
            ClientAction::RetryLater => "retry later",
            ClientAction::Reauthenticate => "re-authenticate",
            ClientAction::Stop => "stop",
        };
        assert_eq!(row(&code.to_string())[2], action, "{code}");
    }
    assert_eq!(client_action(4999), ClientAction::RetryLater);
    let rows = DOCUMENT.lines().filter(|line| line.starts_with("| 4") || line.starts_with("| 1")).count();
    assert_eq!(rows, standard.len() + close::ALL.len(), "rows of codes that do not exist");
}

#[test]
fn the_limits_are_the_code_s() {
    for (what, limit) in [
        ("payload of a message", limits::PAYLOAD_BYTES_MAX),
        ("a frame to the server", limits::FRAME_BYTES_MAX),
        ("members of a group", limits::GROUP_MEMBERS_MAX),
        ("members of a channel", limits::CHANNEL_MEMBERS_MAX),
        ("times that a user joins one channel by itself", limits::CHANNEL_JOINS_MAX),
        ("a chat title (no control characters)", limits::TITLE_BYTES_MAX),
        ("a user name", limits::NAME_BYTES_MAX),
        ("a content type (not empty)", limits::CONTENT_TYPE_BYTES_MAX),
        ("mentions in one message", limits::MENTIONS_MAX),
        ("attachments of one message", limits::ATTACHMENTS_MAX),
        ("extensions of one message", limits::EXTENSIONS_MAX),
        ("an extension's value, an attachment's reference, an attachment's name", limits::EXTENSION_BYTES_MAX),
        ("a reaction", limits::REACTION_BYTES_MAX),
        ("users in one `group_create`, `add` or `remove` (the last two: at least 1)", limits::MEMBER_CHANGES_MAX),
        ("names or ids in one `resolve` or `profiles`", limits::RESOLVE_MAX),
        ("events of a `history_page`", limits::HISTORY_PAGE_MAX as usize),
        ("chats of a `chat_list`", limits::CHATS_PAGE_MAX as usize),
        ("members of a `member_page`", limits::MEMBERS_PAGE_MAX as usize),
        ("`kinds_known`", limits::KINDS_KNOWN_MAX),
        ("`client`", limits::CLIENT_BYTES_MAX),
        ("a token or ticket (ASCII, not empty)", limits::TOKEN_BYTES_MAX),
        ("`until_ms`, `expires_at_ms`, `reply_to`, `size_bytes`", limits::NUMBER_MAX as usize),
    ] {
        let shown = row(what)[1].trim_end_matches(" bytes");
        assert_eq!(shown, limit.to_string(), "{what}");
    }
    assert!(DOCUMENT.contains(limits::SUBPROTOCOL_JSON) && DOCUMENT.contains(limits::SUBPROTOCOL_RKYV));
}

#[test]
fn the_computed_chat_id_is_right() {
    assert!(DOCUMENT.contains(&common::direct().to_string()), "the example for the users 1001 and 1002");
}
