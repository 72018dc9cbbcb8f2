//! The two encodings of the frames, and the framing of link records. Decoding never trusts a length or a byte.

use crate::frame::{ArchivedClientFrame, ArchivedServerFrame, ClientFrame, ServerFrame};
use crate::limits;
use crate::link::{ArchivedToGateway, ArchivedToWriter, ToGateway, ToWriter};
use rkyv::rancor::Error as RkyvError;
use rkyv::ser::{Serializer, sharing::Unshare};

/// Which encoding a connection speaks, by its WebSocket subprotocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// `parley.v1.rkyv`, binary messages.
    Rkyv,
    /// `parley.v1.json`, text messages.
    Json,
}

impl Encoding {
    /// The WebSocket subprotocol of the encoding.
    pub const fn subprotocol(self) -> &'static str {
        match self {
            Encoding::Rkyv => limits::SUBPROTOCOL_RKYV,
            Encoding::Json => limits::SUBPROTOCOL_JSON,
        }
    }
}

/// Bytes that are not what they should be. The text says what was expected, for the one who sent them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeError(
    /// For people.
    pub String,
);

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DecodeError {}

// Frames and records are read where they lie: behind a WebSocket header or a length, at any address.
const _: () = assert!(align_of::<ArchivedClientFrame>() == 1 && align_of::<ArchivedServerFrame>() == 1);
const _: () = assert!(align_of::<ArchivedToWriter>() == 1 && align_of::<ArchivedToGateway>() == 1);
const _: () = assert!(align_of::<crate::event::ArchivedEvent>() == 1);

fn not_rkyv<T>(_: RkyvError) -> Result<T, DecodeError> {
    Err(DecodeError("the bytes are not a frame of parley.v1.rkyv".to_owned()))
}

/// Reads a binary client frame in place.
pub fn access_client_frame(bytes: &[u8]) -> Result<&ArchivedClientFrame, DecodeError> {
    rkyv::access::<ArchivedClientFrame, RkyvError>(bytes).or_else(not_rkyv)
}

/// Decodes a client frame. Its size is bounded by [`limits::FRAME_BYTES_MAX`] and its depth by the JSON
/// parser's 128; the bounds of single fields are [`ClientFrame::check`]'s.
pub fn decode_client_frame(encoding: Encoding, bytes: &[u8]) -> Result<ClientFrame, DecodeError> {
    if bytes.len() > limits::FRAME_BYTES_MAX {
        return Err(DecodeError(format!("a frame of {} bytes is above the limit", bytes.len())));
    }
    match encoding {
        Encoding::Rkyv => rkyv::from_bytes::<ClientFrame, RkyvError>(bytes).or_else(not_rkyv),
        // serde would also read an array of a frame's fields in their order; the protocol has objects only.
        Encoding::Json if bytes.trim_ascii_start().first() != Some(&b'{') => {
            Err(DecodeError("a frame of parley.v1.json is an object".to_owned()))
        }
        Encoding::Json => serde_json::from_slice(bytes).map_err(|error| DecodeError(error.to_string())),
    }
}

/// Decodes a server frame.
pub fn decode_server_frame(encoding: Encoding, bytes: &[u8]) -> Result<ServerFrame, DecodeError> {
    match encoding {
        Encoding::Rkyv => rkyv::from_bytes::<ServerFrame, RkyvError>(bytes).or_else(not_rkyv),
        Encoding::Json => serde_json::from_slice(bytes).map_err(|error| DecodeError(error.to_string())),
    }
}

/// Appends the encoded frame to `out`.
pub fn encode_client_frame(encoding: Encoding, frame: &ClientFrame, out: &mut Vec<u8>) {
    match encoding {
        Encoding::Rkyv => encode_rkyv(frame, out),
        Encoding::Json => encode_json(frame, out),
    }
}

/// Appends the encoded frame to `out`.
pub fn encode_server_frame(encoding: Encoding, frame: &ServerFrame, out: &mut Vec<u8>) {
    match encoding {
        Encoding::Rkyv => encode_rkyv(frame, out),
        Encoding::Json => encode_json(frame, out),
    }
}

fn encode_json<T: serde::Serialize>(value: &T, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value).expect("the model's values have a JSON form");
}

/// The serialiser that every rkyv encoding here uses: straight into a buffer, nothing shared.
pub type Rkyv<'a> =
    rkyv::rancor::Strategy<Serializer<Tail<'a>, rkyv::ser::allocator::ArenaHandle<'a>, Unshare>, RkyvError>;

/// Writes behind what a buffer holds already. Positions count from where it began, so that the archive stands alone.
#[derive(Debug)]
pub struct Tail<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl rkyv::ser::Positional for Tail<'_> {
    fn pos(&self) -> usize {
        self.out.len() - self.start
    }
}

impl rkyv::ser::Writer<RkyvError> for Tail<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), RkyvError> {
        self.out.extend_from_slice(bytes);
        Ok(())
    }
}

/// Appends the rkyv bytes of a value to `out`.
pub fn encode_rkyv<T>(value: &T, out: &mut Vec<u8>)
where
    T: for<'a> rkyv::Serialize<Rkyv<'a>>,
{
    rkyv::util::with_arena(|arena| {
        let start = out.len();
        let mut serializer = Serializer::new(Tail { out, start }, arena.acquire(), Unshare);
        // The writer cannot fail and the arena grows: only an allocation failure ends here.
        rkyv::api::serialize_using::<_, RkyvError>(value, &mut serializer)
            .map(|_| ())
            .expect("in-memory serialisation");
    });
}

/// The rkyv bytes of a value in a buffer of their own.
pub fn to_rkyv<T>(value: &T) -> Vec<u8>
where
    T: for<'a> rkyv::Serialize<Rkyv<'a>>,
{
    let mut out = Vec::with_capacity(256);
    encode_rkyv(value, &mut out);
    out
}

/// Appends a record for a link: its length as four little-endian bytes, then its rkyv bytes.
pub fn encode_record<T>(record: &T, out: &mut Vec<u8>)
where
    T: for<'a> rkyv::Serialize<Rkyv<'a>>,
{
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    encode_rkyv(record, out);
    let len = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
}

/// Decodes the bytes of one record, as [`split_record`] gives them.
pub fn decode_to_writer(record: &[u8]) -> Result<ToWriter, DecodeError> {
    rkyv::from_bytes::<ToWriter, RkyvError>(record).map_err(|_| not_a_record())
}

/// Decodes the bytes of one record, as [`split_record`] gives them.
pub fn decode_to_gateway(record: &[u8]) -> Result<ToGateway, DecodeError> {
    rkyv::from_bytes::<ToGateway, RkyvError>(record).map_err(|_| not_a_record())
}

fn not_a_record() -> DecodeError {
    DecodeError("the bytes are not a record of this link version".to_owned())
}

/// Takes the first record off a buffer: `Ok(None)` while it is not whole; else its bytes and all that it takes up.
pub fn split_record(buffer: &[u8]) -> Result<Option<(&[u8], usize)>, DecodeError> {
    let Some(head) = buffer.first_chunk::<4>() else { return Ok(None) };
    let len = u32::from_le_bytes(*head) as usize;
    if len > limits::LINK_RECORD_BYTES_MAX {
        return Err(DecodeError(format!("a link record of {len} bytes is above the limit")));
    }
    Ok(buffer.get(4..4 + len).map(|record| (record, 4 + len)))
}
