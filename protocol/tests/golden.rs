//! The bytes on the wire and in the stores do not change by accident: every frame, body and link record against the
//! files under `golden/`. After an intended change (a new version of the protocol, never a change of this one):
//! `PARLEY_BLESS=1 cargo test -p parley-protocol --test golden`.

mod common;

use common::*;
use parley_protocol::Envelope;
use parley_protocol::wire::{Encoding, decode_to_gateway, decode_to_writer, encode_client_frame, encode_server_frame};
use parley_protocol::wire::{decode_client_frame, decode_server_frame, to_rkyv};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Files of one folder: name to content.
type Files = BTreeMap<String, String>;

fn hex(bytes: &[u8]) -> String {
    let line = |chunk: &[u8]| chunk.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    bytes.chunks(32).map(line).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// Compares a folder with what the code makes, both ways, or writes it.
fn compare(folder: &str, made: &Files) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder);
    if std::env::var_os("PARLEY_BLESS").is_some() {
        std::fs::remove_dir_all(&path).ok();
        std::fs::create_dir_all(&path).unwrap();
        for (name, content) in made {
            std::fs::write(path.join(name), content).unwrap();
        }
    }
    let mut kept = Files::new();
    for entry in std::fs::read_dir(&path).expect("the golden files are there") {
        let entry = entry.unwrap();
        kept.insert(entry.file_name().into_string().unwrap(), std::fs::read_to_string(entry.path()).unwrap());
    }
    let names = |files: &Files| files.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&kept), names(made), "golden/{folder}: other files than samples");
    for (name, content) in made {
        assert_eq!(
            &kept[name], content,
            "golden/{folder}/{name} changed. Frozen for version 1; if it is intended: PARLEY_BLESS=1"
        );
    }
}

/// Stems of the samples: the variant's name, numbered where it has several; every variant must be there.
fn stems<T>(samples: &[T], name: fn(&T) -> &'static str, all: &[&'static str]) -> Vec<String> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut stem = |sample| {
        let count = seen.entry(name(sample)).or_default();
        *count += 1;
        file_stem(name(sample), *count - 1)
    };
    let stems = samples.iter().map(&mut stem).collect();
    assert_eq!(seen.keys().copied().collect::<BTreeSet<_>>(), all.iter().copied().collect(), "variants without sample");
    stems
}

fn json(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap() + "\n"
}

#[test]
fn client_frames_keep_their_bytes() {
    let samples = client_frames();
    let mut files = Files::new();
    for (stem, frame) in stems(&samples, client_name, CLIENT_NAMES).into_iter().zip(&samples) {
        let (mut binary, mut text) = (Vec::new(), Vec::new());
        encode_client_frame(Encoding::Rkyv, frame, &mut binary);
        encode_client_frame(Encoding::Json, frame, &mut text);
        files.insert(format!("{stem}.hex"), hex(&binary));
        files.insert(format!("{stem}.json"), json(text));
    }
    compare("client", &files);
    for (name, content) in &files {
        let frame = match name.ends_with(".hex") {
            true => decode_client_frame(Encoding::Rkyv, &unhex(content)),
            false => decode_client_frame(Encoding::Json, content.as_bytes()),
        };
        assert!(samples.contains(&frame.unwrap()), "{name}");
    }
}

#[test]
fn server_frames_keep_their_bytes() {
    let samples = server_frames();
    let mut files = Files::new();
    for (stem, frame) in stems(&samples, server_name, SERVER_NAMES).into_iter().zip(&samples) {
        let (mut binary, mut text) = (Vec::new(), Vec::new());
        encode_server_frame(Encoding::Rkyv, frame, &mut binary);
        encode_server_frame(Encoding::Json, frame, &mut text);
        files.insert(format!("{stem}.hex"), hex(&binary));
        files.insert(format!("{stem}.json"), json(text));
    }
    compare("server", &files);
    for (name, content) in &files {
        let frame = match name.ends_with(".hex") {
            true => decode_server_frame(Encoding::Rkyv, &unhex(content)),
            false => decode_server_frame(Encoding::Json, content.as_bytes()),
        };
        assert!(samples.contains(&frame.unwrap()), "{name}");
    }
}

#[test]
fn bodies_keep_their_bytes() {
    let samples = bodies();
    let mut files = Files::new();
    for (stem, body) in stems(&samples, body_name, BODY_NAMES).into_iter().zip(&samples) {
        let envelope = body.to_envelope();
        assert_eq!(&envelope.to_body().unwrap(), body);
        files.insert(format!("{stem}.hex"), hex(&envelope.body));
        files.insert(format!("{stem}.json"), serde_json::to_string_pretty(&envelope).unwrap() + "\n");
    }
    compare("body", &files);
    for (_, content) in files.iter().filter(|(name, _)| name.ends_with(".json")) {
        let envelope: Envelope = serde_json::from_str(content).unwrap();
        assert!(samples.contains(&envelope.to_body().unwrap()));
    }
}

#[test]
fn records_to_the_writer_keep_their_bytes() {
    fn name(record: &parley_protocol::link::ToWriter) -> &'static str {
        use parley_protocol::link::{Ask, ToWriter};
        match record {
            ToWriter::Request(request) => match &request.ask {
                Ask::Command(command) => action_name(&command.action),
                ask => ask_name(ask),
            },
            other => to_writer_name(other),
        }
    }
    let mut all: Vec<_> = [ASK_NAMES, ACTION_NAMES, TO_WRITER_NAMES].concat();
    all.retain(|name| !["Command", "Request"].contains(name));
    let samples = to_writer();
    let mut files = Files::new();
    for (stem, record) in stems(&samples, name, &all).into_iter().zip(&samples) {
        let bytes = to_rkyv(record);
        assert_eq!(&decode_to_writer(&bytes).unwrap(), record);
        files.insert(format!("{stem}.hex"), hex(&bytes));
    }
    compare("to_writer", &files);
}

#[test]
fn records_to_the_gateway_keep_their_bytes() {
    fn name(record: &parley_protocol::link::ToGateway) -> &'static str {
        match record {
            parley_protocol::link::ToGateway::Answer(answer) => reply_name(&answer.reply),
            other => to_gateway_name(other),
        }
    }
    let mut all: Vec<_> = [REPLY_NAMES, TO_GATEWAY_NAMES].concat();
    all.retain(|name| *name != "Answer");
    let samples = to_gateway();
    let mut files = Files::new();
    for (stem, record) in stems(&samples, name, &all).into_iter().zip(&samples) {
        let bytes = to_rkyv(record);
        assert_eq!(&decode_to_gateway(&bytes).unwrap(), record);
        files.insert(format!("{stem}.hex"), hex(&bytes));
    }
    compare("to_gateway", &files);
}

#[test]
fn every_change_of_a_group_has_a_sample() {
    let changes: BTreeSet<_> = client_frames()
        .iter()
        .filter_map(|frame| match frame {
            parley_protocol::ClientFrame::GroupChange(change) => Some(change_name(&change.change)),
            _ => None,
        })
        .collect();
    assert_eq!(changes, CHANGE_NAMES.iter().copied().collect());
    assert_eq!(ERRORS.iter().map(error_name).collect::<Vec<_>>(), ERROR_NAMES);
}

/// The sizes of what stores keep, and of the frames: a change of layout does not compile.
mod layout {
    use parley_protocol::{body, event, frame, id};
    const _: () = assert!(size_of::<id::ArchivedUserId>() == 8 && size_of::<id::ArchivedChatId>() == 16);
    const _: () = assert!(size_of::<body::ArchivedMessageBody>() == 58);
    const _: () = assert!(size_of::<body::ArchivedEnvelope>() == 12);
    const _: () = assert!(size_of::<event::ArchivedEvent>() == 84);
    const _: () = assert!(size_of::<event::ArchivedOwnState>() == 48);
    const _: () = assert!(size_of::<frame::ArchivedMember>() == 25);
    const _: () = assert!(align_of::<event::ArchivedEvent>() == 1 && align_of::<body::ArchivedMessageBody>() == 1);
}
