//! The bytes of every key and value of the embedded store, but for the runs of `runs.rs`. Frozen since schema version 1:
//! a change needs a new schema version and a migration.
//!
//! Numbers in keys are big-endian, so that order of bytes is order of numbers. A key begins with its chat or user,
//! spread: ids of one time share their upper bytes, and the engine compares the first four bytes of two keys without
//! following a pointer. Spreading keeps what belongs to one chat or user together, in order, and can be undone.
//!
//! Values with text or lists are rkyv bytes behind their CRC-32C; short values are a version byte and plain numbers.

use parley_protocol::partition::split_mix_64;
use parley_protocol::wire::encode_rkyv;
use parley_protocol::{ChatId, MessageId, UserId};
use rkyv::rancor::Error as RkyvError;
use storage_core::store::{CommandName, CommandRow, EntryRow, MarkRow};

/// Version byte of the short values.
const VALUE_VERSION: u8 = 1;
/// Tags of command rows; they stand where the version byte stands.
const COMMAND_SAME_CHAT: u8 = 1;
const COMMAND_OTHER_CHAT: u8 = 2;

/// Bytes of the checksum before a checked value.
pub(crate) const CRC_BYTES: usize = 4;

/// A value that does not have the form that its table asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// The checksum does not match the bytes.
    Checksum,
    /// The bytes do not decode.
    Form,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Damage::Checksum => "its checksum does not match",
            Damage::Form => "its bytes do not decode",
        })
    }
}

/// Builds fixed-size keys and values from big-endian parts.
fn parts<const N: usize>(fields: &[&[u8]]) -> [u8; N] {
    let mut bytes = [0; N];
    let mut at = 0;
    for field in fields {
        bytes[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    }
    debug_assert_eq!(at, N);
    bytes
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn number_u64(bytes: &[u8], at: usize) -> Option<u64> {
    number(bytes, at).map(u64::from_be_bytes)
}

fn number_u128(bytes: &[u8], at: usize) -> Option<u128> {
    number(bytes, at).map(u128::from_be_bytes)
}

/// Fibonacci hashing's multiplier (Knuth, TAOCP 3, 6.4), and its inverse modulo 2^64.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
const GATHER: u64 = 0xf1de_83e1_9937_733d;
const _: () = assert!(SPREAD.wrapping_mul(GATHER) == 1);

/// Prefix of everything that is kept by chat.
pub(crate) fn chat_key(chat_id: ChatId) -> [u8; 16] {
    let (high, low) = ((chat_id.0 >> 64) as u64, chat_id.0 as u64);
    parts(&[&(high ^ split_mix_64(low)).to_be_bytes(), &low.to_be_bytes()])
}

fn parse_chat(key: &[u8]) -> Option<ChatId> {
    let (high, low) = (number_u64(key, 0)?, number_u64(key, 8)?);
    Some(ChatId(u128::from(high ^ split_mix_64(low)) << 64 | u128::from(low)))
}

/// Prefix of everything that is kept by user.
pub(crate) fn user_key(user_id: UserId) -> [u8; 8] {
    user_id.0.wrapping_mul(SPREAD).to_be_bytes()
}

fn parse_user(key: &[u8]) -> Option<UserId> {
    number_u64(key, 0).map(|number| UserId(number.wrapping_mul(GATHER)))
}

/// A key of `events`: the chat, then four bytes of `seq`; from 2^32 - 1 on they are 0xff, and eight bytes follow. So
/// nearly every key has 20 bytes, which the engine keeps without an allocation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EventKey {
    bytes: [u8; 28],
    len: usize,
}

impl EventKey {
    /// The order of the keys.
    pub(crate) fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self[..].cmp(&other[..])
    }
}

impl std::ops::Deref for EventKey {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// `events`.
pub(crate) fn event_key(chat_id: ChatId, seq: u64) -> EventKey {
    let short = u32::try_from(seq).unwrap_or(u32::MAX);
    let bytes = parts(&[&chat_key(chat_id), &short.to_be_bytes(), &seq.to_be_bytes()]);
    EventKey { bytes, len: if short == u32::MAX { 28 } else { 20 } }
}

pub(crate) fn parse_event_key(key: &[u8]) -> Option<(ChatId, u64)> {
    let short = number(key, 16).map(u32::from_be_bytes)?;
    let seq = match key.len() {
        20 if short != u32::MAX => u64::from(short),
        28 if short == u32::MAX => number_u64(key, 20)?,
        _ => return None,
    };
    Some((parse_chat(key)?, seq))
}

/// `inbox`.
pub(crate) fn inbox_key(user_id: UserId, inbox_seq: u64) -> [u8; 16] {
    parts(&[&user_key(user_id), &inbox_seq.to_be_bytes()])
}

/// Whether a key of `inbox` is the one right after another, of the same user.
pub(crate) fn follows(key: &[u8; 16], next: &[u8; 16]) -> bool {
    let number = u128::from_be_bytes(*key).checked_add(1);
    number == Some(u128::from_be_bytes(*next)) && key[..8] == next[..8]
}

pub(crate) fn parse_inbox_key(key: &[u8]) -> Option<(UserId, u64)> {
    (key.len() == 16).then_some((parse_user(key)?, number_u64(key, 8)?))
}

/// Appends the value of an inbox entry: an event's key in `events`, or a chat's for the own state in it.
/// Their lengths tell them apart (20 or 28, and 16 bytes), and nearly all are short enough to need no allocation.
pub(crate) fn put_entry(row: &EntryRow, out: &mut Vec<u8>) {
    match row {
        EntryRow::Event { chat_id, seq } => out.extend_from_slice(&event_key(*chat_id, *seq)),
        EntryRow::Own { chat_id } => out.extend_from_slice(&chat_key(*chat_id)),
    }
}

pub(crate) fn parse_entry(value: &[u8]) -> Result<EntryRow, Damage> {
    let entry = match parse_chat_key(value) {
        Some(chat_id) => Some(EntryRow::Own { chat_id }),
        None => parse_event_key(value).map(|(chat_id, seq)| EntryRow::Event { chat_id, seq }),
    };
    entry.ok_or(Damage::Form)
}

/// `commands`: nobody reads them in an order, so a checksum of the name comes first, and the name after it.
pub(crate) fn command_key(name: &CommandName) -> [u8; 44] {
    let name: [u8; 40] =
        parts(&[&name.chat_id.0.to_be_bytes(), &name.sender.0.to_be_bytes(), &name.client_msg_id.0.to_be_bytes()]);
    parts(&[&crc32c::crc32c(&name).to_be_bytes(), &name])
}

pub(crate) fn parse_command_key(key: &[u8]) -> Option<CommandName> {
    let name = CommandName {
        chat_id: ChatId(number_u128(key, 4)?),
        sender: UserId(number_u64(key, 20)?),
        client_msg_id: parley_protocol::ClientMsgId(number_u128(key, 28)?),
    };
    (command_key(&name) == key).then_some(name)
}

/// Appends the value of a command row; its chat stands there only where the key does not say it.
pub(crate) fn put_command(row: &CommandRow, out: &mut Vec<u8>) {
    let same = row.chat_id == row.name.chat_id;
    out.push(if same { COMMAND_SAME_CHAT } else { COMMAND_OTHER_CHAT });
    out.extend_from_slice(&row.message_id.0.to_be_bytes());
    out.extend_from_slice(&row.seq.to_be_bytes());
    if !same {
        out.extend_from_slice(&row.chat_id.0.to_be_bytes());
    }
}

pub(crate) fn parse_command(name: CommandName, value: &[u8]) -> Result<CommandRow, Damage> {
    let chat = match (value.first(), value.len()) {
        (Some(&COMMAND_SAME_CHAT), 17) => Some(name.chat_id),
        (Some(&COMMAND_OTHER_CHAT), 33) => number_u128(value, 17).map(ChatId),
        _ => None,
    };
    let row = chat.zip(number_u64(value, 1)).zip(number_u64(value, 9));
    row.map(|((chat_id, message_id), seq)| CommandRow { name, chat_id, message_id: MessageId(message_id), seq })
        .ok_or(Damage::Form)
}

/// `members` and `marks`.
pub(crate) fn member_key(chat_id: ChatId, user_id: UserId) -> [u8; 24] {
    parts(&[&chat_key(chat_id), &user_id.0.to_be_bytes()])
}

pub(crate) fn parse_member_key(key: &[u8]) -> Option<(ChatId, UserId)> {
    (key.len() == 24).then_some((parse_chat(key)?, UserId(number_u64(key, 16)?)))
}

/// `checkpoints`.
pub(crate) fn parse_chat_key(key: &[u8]) -> Option<ChatId> {
    if key.len() == 16 { parse_chat(key) } else { None }
}

/// `chats_of_user`: the chats in the order of their ids.
pub(crate) fn user_chat_key(user_id: UserId, chat_id: ChatId) -> [u8; 24] {
    parts(&[&user_key(user_id), &chat_id.0.to_be_bytes()])
}

pub(crate) fn parse_user_chat_key(key: &[u8]) -> Option<(UserId, ChatId)> {
    (key.len() == 24).then_some((parse_user(key)?, ChatId(number_u128(key, 8)?)))
}

/// The value of a row of `marks`.
pub(crate) fn marks_value(row: &MarkRow) -> [u8; 41] {
    parts(&[
        &[VALUE_VERSION],
        &row.delivered_seq.to_be_bytes(),
        &row.read_seq.to_be_bytes(),
        &row.read_ordinal.to_be_bytes(),
        &row.read_sent.to_be_bytes(),
        &row.muted_until_ms.to_be_bytes(),
    ])
}

pub(crate) fn parse_marks(value: &[u8]) -> Result<MarkRow, Damage> {
    if value.len() != 41 || value[0] != VALUE_VERSION {
        return Err(Damage::Form);
    }
    let field = |index: usize| number_u64(value, 1 + index * 8).ok_or(Damage::Form);
    Ok(MarkRow {
        delivered_seq: field(0)?,
        read_seq: field(1)?,
        read_ordinal: field(2)?,
        read_sent: field(3)?,
        muted_until_ms: field(4)?,
    })
}

/// A counter or an epoch.
pub(crate) fn u64_value(number: u64) -> [u8; 9] {
    parts(&[&[VALUE_VERSION], &number.to_be_bytes()])
}

pub(crate) fn parse_u64(value: &[u8]) -> Result<u64, Damage> {
    match (value.len(), value.first()) {
        (9, Some(&VALUE_VERSION)) => number_u64(value, 1).ok_or(Damage::Form),
        _ => Err(Damage::Form),
    }
}

/// The value of a unique key.
pub(crate) fn u128_value(number: u128) -> [u8; 17] {
    parts(&[&[VALUE_VERSION], &number.to_be_bytes()])
}

pub(crate) fn parse_u128(value: &[u8]) -> Result<u128, Damage> {
    match (value.len(), value.first()) {
        (17, Some(&VALUE_VERSION)) => number_u128(value, 1).ok_or(Damage::Form),
        _ => Err(Damage::Form),
    }
}

/// Replaces `out` by the CRC-32C of a value's rkyv bytes (little-endian) and those bytes.
pub(crate) fn checked<T>(value: &T, out: &mut Vec<u8>)
where
    T: for<'a> rkyv::Serialize<parley_protocol::wire::Rkyv<'a>>,
{
    out.clear();
    out.extend_from_slice(&[0; CRC_BYTES]);
    encode_rkyv(value, out);
    let crc = crc32c::crc32c(&out[CRC_BYTES..]);
    out[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
}

/// The rkyv bytes of a checked value, once the checksum was found to match.
pub(crate) fn verify(value: &[u8]) -> Result<&[u8], Damage> {
    let (crc, bytes) = value.split_first_chunk::<CRC_BYTES>().ok_or(Damage::Form)?;
    if crc32c::crc32c(bytes) == u32::from_le_bytes(*crc) { Ok(bytes) } else { Err(Damage::Checksum) }
}

/// Decodes a checked value.
pub(crate) fn parse_checked<T>(value: &[u8]) -> Result<T, Damage>
where
    T: rkyv::Archive,
    T::Archived: for<'a> rkyv::bytecheck::CheckBytes<rkyv::api::high::HighValidator<'a, RkyvError>>
        + rkyv::Deserialize<T, rkyv::api::high::HighDeserializer<RkyvError>>,
{
    rkyv::from_bytes::<T, RkyvError>(verify(value)?).map_err(|_| Damage::Form)
}

#[cfg(test)]
mod tests {
    use super::*;
    use parley_protocol::ClientMsgId;

    #[test]
    fn keys_sort_as_their_numbers_do() {
        let top = u64::from(u32::MAX);
        for pair in [0, 1, 255, 256, top - 1, top, top + 1, u64::MAX].windows(2) {
            assert!(event_key(ChatId(1), pair[0])[..] < event_key(ChatId(1), pair[1])[..]);
            assert!(inbox_key(UserId(1), pair[0]) < inbox_key(UserId(1), pair[1]));
            let chats = [pair[0], pair[1]].map(|chat| user_chat_key(UserId(1), ChatId(u128::from(chat) << 60)));
            assert!(chats[0] < chats[1]);
            assert!(member_key(ChatId(1), UserId(pair[0])) < member_key(ChatId(1), UserId(pair[1])));
        }
    }

    #[test]
    fn a_key_follows_another_within_an_inbox_only() {
        let key = |user, number| inbox_key(UserId(user), number);
        assert!(follows(&key(1, 0), &key(1, 1)) && follows(&key(1, u64::MAX - 1), &key(1, u64::MAX)));
        assert!(
            !follows(&key(1, 1), &key(1, 1)) && !follows(&key(1, 1), &key(1, 3)) && !follows(&key(1, 2), &key(1, 1))
        );
        assert!(!follows(&key(1, 1), &key(2, 2)));
        let (last, first) = (user_key(UserId(1)), u64::from_be_bytes(user_key(UserId(1))) + 1);
        let after: [u8; 16] = parts(&[&first.to_be_bytes(), &[0; 8]]);
        assert!(!follows(&parts(&[&last, &[0xff; 8]]), &after));
    }

    #[test]
    fn keys_and_values_come_back() {
        let (chat, user) = (ChatId(u128::MAX - 7), UserId(u64::MAX - 9));
        for seq in [0, 77, u64::from(u32::MAX) - 1, u64::from(u32::MAX), u64::MAX] {
            assert_eq!(parse_event_key(&event_key(chat, seq)), Some((chat, seq)));
        }
        assert_eq!(parse_chat_key(&chat_key(chat)), Some(chat));
        assert_eq!(parse_inbox_key(&inbox_key(user, 78)), Some((user, 78)));
        assert_eq!(parse_member_key(&member_key(chat, user)), Some((chat, user)));
        assert_eq!(parse_user_chat_key(&user_chat_key(user, chat)), Some((user, chat)));
        let name = CommandName { chat_id: chat, sender: user, client_msg_id: ClientMsgId(5) };
        assert_eq!(parse_command_key(&command_key(&name)), Some(name));
        for chat_id in [chat, ChatId(3)] {
            let row = CommandRow { name, chat_id, message_id: MessageId(8), seq: 9 };
            let mut value = Vec::new();
            put_command(&row, &mut value);
            assert_eq!(parse_command(name, &value), Ok(row));
            assert_eq!(parse_command(name, &value[1..]), Err(Damage::Form));
        }
        for row in [EntryRow::Event { chat_id: chat, seq: 4 }, EntryRow::Own { chat_id: chat }] {
            let mut value = Vec::new();
            put_entry(&row, &mut value);
            assert_eq!(parse_entry(&value), Ok(row));
            value.push(0);
            assert_eq!(parse_entry(&value), Err(Damage::Form));
        }
        let marks = MarkRow { delivered_seq: 1, read_seq: 2, read_ordinal: 3, read_sent: 4, muted_until_ms: u64::MAX };
        assert_eq!(parse_marks(&marks_value(&marks)), Ok(marks));
        assert_eq!(parse_u64(&u64_value(17)), Ok(17));
        assert_eq!(parse_u128(&u128_value(18)), Ok(18));
        assert_eq!(parse_u64(&u128_value(18)), Err(Damage::Form));
    }

    /// The layout is in stores: these bytes never change.
    #[test]
    fn keys_are_frozen() {
        let hex = |key: &[u8]| key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let (chat, user) = (ChatId(1 << 100 | 2), UserId(3));
        assert_eq!(hex(&event_key(chat, 4)), "975835ce1c9756ce000000000000000200000004");
        let name = CommandName { chat_id: chat, sender: user, client_msg_id: parley_protocol::ClientMsgId(6) };
        let named = "00000010000000000000000000000002000000000000000300000000000000000000000000000006";
        assert_eq!(hex(&command_key(&name)), format!("030b4e91{named}"));
        assert_eq!(hex(&inbox_key(user, 5)), "daa66d2c7ddf743f0000000000000005");
        assert_eq!(hex(&member_key(chat, user)), "975835ce1c9756ce00000000000000020000000000000003");
        assert_eq!(hex(&user_chat_key(user, chat)), "daa66d2c7ddf743f00000010000000000000000000000002");
    }

    #[test]
    fn every_flipped_bit_of_a_checked_value_is_found() {
        let checkpoint = storage_core::store::Checkpoint {
            seq: 3,
            ordinal: 2,
            message_id: 9,
            title: "a title".to_owned(),
            sent: vec![(UserId(4), 5)],
        };
        let mut value = Vec::new();
        checked(&checkpoint, &mut value);
        assert_eq!(parse_checked::<storage_core::store::Checkpoint>(&value), Ok(checkpoint));
        for bit in 0..value.len() * 8 {
            let mut damaged = value.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(verify(&damaged), Err(Damage::Checksum));
        }
    }
}
