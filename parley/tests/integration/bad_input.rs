//! Bytes that come in any pieces, and bytes that mean nothing: others do not notice, and the server neither panics nor
//! hangs. What is answered how is next door, in `hostile`.

use crate::common::device::{direct, text_frame};
use crate::common::raw::{Raw, frame, message, upgrade};
use crate::common::{JSON, RKYV, Settings, random};
use crate::hostile::{Opening, Table, decoded, hello, open};
use parley_protocol::{ClientMsgId, ErrorCode, ServerFrame};

/// Opcodes with FIN set.
const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;

/// Hello and what follows it in one packet, or byte by byte: a session all the same.
#[test]
fn it_does_not_matter_how_bytes_are_cut() {
    let others = Table::cold(Settings::new());
    let chat = direct(&others.alice, &others.bob);
    let no_chat = text_frame(chat, ClientMsgId(random()), "not mine");
    for encoding in [JSON, RKYV] {
        let mut bytes = upgrade(encoding).into_bytes();
        bytes.extend(message(encoding, &hello(&others.server.target())));
        bytes.extend(message(encoding, &no_chat));
        for step in [bytes.len(), 1] {
            let mut raw = Raw::connect(others.server.listen.addr);
            for part in bytes.chunks(step) {
                raw.send(part);
            }
            assert_eq!(raw.http_answer().0, 101);
            assert!(matches!(decoded(encoding, &raw.receive().expect("welcome").payload), ServerFrame::Welcome(_)));
            loop {
                match decoded(encoding, &raw.receive().expect("an answer").payload) {
                    ServerFrame::Error(error) => break assert_eq!(error.code, ErrorCode::NoSuchChat),
                    ServerFrame::Truncated(_) | ServerFrame::Mark(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    others.ends_well();
}

/// Random bytes at every stage: no panic, no hang, no harm to others.
#[test]
fn noise_is_survived() {
    let mut others = Table::cold(Settings::new());
    let (addr, target) = (others.server.listen.addr, others.server.target());
    for round in 0..40 {
        let noise: Vec<u8> = (0..64).flat_map(|_| random().to_le_bytes()).collect();
        let mut raw = match round % 4 {
            0 => Raw::connect(addr),
            1 => Raw::upgraded(addr, JSON),
            2 => open(&target, Opening::Seated(JSON)),
            _ => open(&target, Opening::Seated(RKYV)),
        };
        raw.send(&noise);
        // A well-formed frame around noise goes further in.
        raw.send(&frame(if round % 4 == 3 { BINARY } else { TEXT }, &noise));
        drop(raw);
    }
    others.talk();
    others.ends_well();
}
