//! Records of the link between gateway and storage-writer, in both directions: found one by one in a stream cut
//! anywhere, and the same after their own encoding. The first byte of an input says what the rest is: bit 0 the direction
//! (0: to the writer, 1: to the gateway), bit 1 whether it is one bare record or a stream of records with lengths.

use crate::{Target, Verdict};
use parley_protocol::limits::LINK_RECORD_BYTES_MAX;
use parley_protocol::wire::{DecodeError, Rkyv, decode_to_gateway, decode_to_writer, encode_record, split_record};
use std::fmt::Debug;

/// See [`crate::TARGETS`].
pub const TARGET: Target = Target {
    name: "link_record",
    about: "records of the link, both directions",
    run,
    input_bytes_max: 4_096,
    dictionary: &[
        b"\0\0\0\0",
        b"\x04\0\0\0",
        b"\x00\x00\x80\x00",
        b"\x01\x00\x80\x00",
        b"\xff\xff\xff\xff",
        b"\xf8\xff\xff\xff",
        b"\x01\0\0\0\0\0\0\0",
        b"https://id.example",
    ],
    golden: &[("to_writer", "hex", b"\0"), ("to_gateway", "hex", b"\x01")],
};

const TO_GATEWAY: u8 = 1;
const STREAM: u8 = 2;

fn run(data: &[u8]) -> Verdict {
    let Some((how, bytes)) = data.split_first() else { return Verdict::Refused };
    let one = |record: &[u8]| match how & TO_GATEWAY {
        0 => check_record(record, decode_to_writer),
        _ => check_record(record, decode_to_gateway),
    };
    if how & STREAM == 0 {
        return one(bytes).into();
    }
    check_stream(bytes, one).into()
}

/// The records of a stream, and whether one of them decodes.
fn check_stream(stream: &[u8], mut one: impl FnMut(&[u8]) -> bool) -> bool {
    let (mut rest, mut taken) = (stream, false);
    loop {
        let found = split_record(rest);
        // The head of a record decides alone; what lies behind a record changes nothing.
        for cut in [0, 3, 4, 5, rest.len() / 2, rest.len().saturating_sub(1)] {
            let cut = cut.min(rest.len());
            match (split_record(&rest[..cut]), &found) {
                (Ok(None), _) => {}
                (short, whole) => assert_eq!(short, *whole, "cut at {cut}"),
            }
        }
        match found {
            Err(DecodeError(reason)) => {
                let declared = rest.first_chunk().map_or(0, |head| u32::from_le_bytes(*head) as usize);
                assert!(declared > LINK_RECORD_BYTES_MAX, "{reason}");
                return taken;
            }
            Ok(None) => {
                let declared = rest.first_chunk().map_or(0, |head| u32::from_le_bytes(*head) as usize);
                assert!(declared <= LINK_RECORD_BYTES_MAX, "waits for more than it will take");
                return taken;
            }
            Ok(Some((record, used))) => {
                assert!(used == record.len() + 4 && record == &rest[4..used]);
                // A record that does not decode ends a link.
                if !one(record) {
                    return taken;
                }
                (rest, taken) = (&rest[used..], true);
            }
        }
    }
}

fn check_record<T>(bytes: &[u8], decode: impl Fn(&[u8]) -> Result<T, DecodeError>) -> bool
where
    T: Debug + PartialEq + for<'a> rkyv::Serialize<Rkyv<'a>>,
{
    let Ok(record) = decode(bytes) else { return false };
    let mut framed = Vec::new();
    encode_record(&record, &mut framed);
    let (again, used) = split_record(&framed).expect("a record's length").expect("a whole record");
    assert_eq!(used, framed.len());
    // No byte counts twice: a record costs no more than what came.
    assert!(again.len() <= bytes.len(), "{} bytes became {}", bytes.len(), again.len());
    assert_eq!(decode(again).as_ref(), Ok(&record), "through its own encoding");
    // Nothing is read beyond the record: the same bytes at another address say the same.
    let moved = [&[0xa5][..], bytes].concat();
    assert_eq!(decode(&moved[1..]).as_ref(), Ok(&record), "at another address");
    true
}
