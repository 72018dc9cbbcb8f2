//! What the last event of an append carries: the append without its events, so that a taker derives the rest again.
//! Stored: the layout is frozen by the golden bytes below, a change of it is a new version byte.

use crate::store::{Checkpoint, CommandName, CommandRow, MarkRow, MarkWrite, MemberRow};
use parley_protocol::partition::split_mix_64;
use parley_protocol::wire::to_rkyv;
use parley_protocol::{ChatId, Event, MessageId, UserId};
use rkyv::rancor::Error as RkyvError;
use rkyv::{Archive, Deserialize, Serialize};

/// The first byte.
const VERSION: u8 = 1;

/// An append without its events.
#[derive(Clone, Debug, Default, PartialEq, Archive, Serialize, Deserialize)]
pub struct Redo {
    /// [`events_hash`] of its events: rows of another append at the same numbers do not belong to it.
    pub events: u64,
    /// Inbox entries of its events.
    pub entries: Vec<RedoEntry>,
    /// Its commands.
    pub commands: Vec<RedoCommand>,
    /// Members whose role or intervals changed.
    pub members: Vec<RedoMember>,
    /// The checkpoint, if there is one.
    pub checkpoint: Option<Checkpoint>,
    /// Members after it.
    pub present: u32,
    /// Marks of those in `members`, with the entries for their own devices.
    pub joined: Vec<RedoMark>,
}

/// Names the events of an append, in their order. Message ids are given once.
pub fn events_hash(ids: impl IntoIterator<Item = MessageId>) -> u64 {
    ids.into_iter().fold(0, |hash, id| split_mix_64(hash ^ split_mix_64(id.0)))
}

/// An inbox entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RedoEntry {
    /// Whose inbox.
    pub user_id: UserId,
    /// Its number.
    pub inbox_seq: u64,
    /// The event.
    pub seq: u64,
}

/// A command: its name is the event's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RedoCommand {
    /// Its first event.
    pub seq: u64,
    /// Named under its sender, not under the chat.
    pub creation: bool,
}

/// A membership.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RedoMember {
    /// Who.
    pub user_id: UserId,
    /// Role and intervals.
    pub row: MemberRow,
}

/// Marks of one who joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct RedoMark {
    /// Who.
    pub user_id: UserId,
    /// All of them.
    pub row: MarkRow,
    /// The entry for the own devices.
    pub inbox_seq: Option<u64>,
}

impl RedoCommand {
    /// What is stored under the name, given the event.
    pub fn row(&self, event: &Event) -> CommandRow {
        let chat_id = if self.creation { ChatId(0) } else { event.chat_id };
        let name = CommandName { chat_id, sender: event.sender, client_msg_id: event.client_msg_id };
        CommandRow { name, chat_id: event.chat_id, message_id: event.message_id, seq: event.seq }
    }
}

impl RedoMark {
    /// As a group has it.
    pub fn write(&self, chat_id: ChatId) -> MarkWrite {
        MarkWrite { chat_id, user_id: self.user_id, row: self.row, inbox_seq: self.inbox_seq }
    }
}

impl Redo {
    /// Every inbox entry that it names, as recorded.
    pub fn inboxes(&self) -> impl Iterator<Item = (UserId, u64)> {
        let entries = self.entries.iter().map(|entry| (entry.user_id, entry.inbox_seq));
        entries.chain(self.joined.iter().filter_map(|mark| Some((mark.user_id, mark.inbox_seq?))))
    }

    /// The bytes of the column.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&to_rkyv(self));
        bytes
    }

    /// From the bytes of the column; the text says what is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Redo, String> {
        match bytes.split_first() {
            Some((&VERSION, body)) => {
                rkyv::from_bytes::<Redo, RkyvError>(body).map_err(|error| format!("redo does not decode: {error}"))
            }
            Some((version, _)) => Err(format!("redo of version {version}, known is {VERSION}")),
            None => Err("an append without its redo".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parley_protocol::Role;
    use parley_protocol::frame::Interval;

    fn example() -> Redo {
        let interval = Interval { joined_seq: 1, left_seq: None, history_from: 1 };
        Redo {
            events: events_hash([MessageId(98), MessageId(99)]),
            entries: vec![RedoEntry { user_id: UserId(5), inbox_seq: 7, seq: 2 }],
            commands: vec![RedoCommand { seq: 2, creation: true }],
            members: vec![RedoMember {
                user_id: UserId(5),
                row: MemberRow { role: Some(Role::Owner), intervals: vec![interval] },
            }],
            checkpoint: Some(Checkpoint {
                seq: 2,
                ordinal: 1,
                message_id: 99,
                title: "a title that is long".to_owned(),
                sent: vec![(UserId(5), 1)],
            }),
            present: 1,
            joined: vec![RedoMark {
                user_id: UserId(5),
                row: MarkRow { read_seq: 1, ..MarkRow::default() },
                inbox_seq: Some(8),
            }],
        }
    }

    #[test]
    fn decodes_what_it_encodes() {
        for redo in [Redo::default(), example()] {
            assert_eq!(Redo::decode(&redo.encode()), Ok(redo));
        }
    }

    #[test]
    fn events_are_told_apart_by_their_ids_and_their_order() {
        let hash = |ids: &[u64]| events_hash(ids.iter().map(|id| MessageId(*id)));
        let all = [hash(&[]), hash(&[0]), hash(&[0, 0]), hash(&[1, 2]), hash(&[2, 1]), hash(&[1]), hash(&[1, 2, 3])];
        for (at, one) in all.iter().enumerate() {
            assert!(all.iter().skip(at + 1).all(|other| one != other), "{at}");
        }
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert!(Redo::decode(&[]).is_err());
        assert!(Redo::decode(&[VERSION]).is_err());
        assert!(Redo::decode(&[VERSION + 1, 0, 0]).is_err());
        let bytes = example().encode();
        for end in 0..bytes.len() {
            assert!(Redo::decode(&bytes[..end]).is_err() || end == bytes.len());
        }
    }

    #[test]
    fn the_stored_bytes_stay_as_they_are() {
        let hex: String = example().encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, GOLDEN);
        let bytes: Vec<u8> =
            (0..GOLDEN.len()).step_by(2).map(|at| u8::from_str_radix(&GOLDEN[at..at + 2], 16).expect("hex")).collect();
        assert_eq!(Redo::decode(&bytes), Ok(example()));
    }

    const GOLDEN: &str = concat!(
        "01050000000000000007000000000000000200000000000000020000000000000001010000000000000000000000000000",
        "0000010000000000000005000000000000000103ddffffff0100000061207469746c652074686174206973206c6f6e6705",
        "00000000000000010000000000000005000000000000000000000000000000010000000000000000000000000000000000",
        "00000000000000000000000000000108000000000000009072ede095ac61d34fffffff010000005fffffff0100000079ff",
        "ffff0100000001020000000000000001000000000000006300000000000000940000006affffff76ffffff010000000100",
        "00007affffff01000000",
    );
}
