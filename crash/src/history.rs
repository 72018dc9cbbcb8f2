//! The file in which a client process writes down what happened to it, in the order in which it happened: compact
//! records behind a tag, appended through a buffer, read as a stream.

use parley_protocol::{ChatId, ClientMsgId, Envelope, UserId};
use std::collections::HashMap;
use std::io::{self, BufRead, Write};

/// An event of a chat, as far as the checker compares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The chat.
    pub chat: ChatId,
    /// Its place in the chat's log.
    pub seq: u64,
    /// The server's id.
    pub message_id: u64,
    /// The sender's name of the command.
    pub name: ClientMsgId,
    /// Who sent it.
    pub sender: UserId,
    /// [`content`] of its envelope.
    pub content: u64,
}

/// Something that happened. Devices have one number in all files of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// A device of this process, before anything else about it.
    Device {
        /// Its number.
        device: u32,
        /// Whose it is.
        user: UserId,
        /// It subscribes to large chats, whose live events then come beside its inbox.
        subscribes: bool,
    },
    /// A command is about to be sent for the first time.
    Offer {
        /// By which device.
        device: u32,
        /// Where to; 0 for a chat that does not exist yet.
        chat: ChatId,
        /// Its name.
        name: ClientMsgId,
        /// [`content`] of its envelope; 0 where the server makes the body.
        content: u64,
    },
    /// `sent` came.
    Ack {
        /// To which device.
        device: u32,
        /// The chat it names.
        chat: ChatId,
        /// The command.
        name: ClientMsgId,
        /// Its place.
        seq: u64,
        /// Its id.
        message_id: u64,
    },
    /// A final error came.
    Refused {
        /// To which device.
        device: u32,
        /// The command.
        name: ClientMsgId,
    },
    /// `welcome` came to a `hello` with this mark.
    Connect {
        /// To which device.
        device: u32,
        /// The mark that it presented.
        mark: u64,
    },
    /// `mark` came.
    Mark {
        /// To which device.
        device: u32,
        /// How far its stream has come.
        inbox_seq: u64,
    },
    /// `truncated` came.
    Truncated {
        /// To which device.
        device: u32,
    },
    /// `event` came.
    Event {
        /// To which device.
        device: u32,
        /// What came.
        seen: Seen,
    },
    /// An event that a device did not have came as part of a history page.
    Fetch {
        /// To which device.
        device: u32,
        /// What came.
        seen: Seen,
    },
    /// An event of the final log of a chat, read over the wire at the end, from 1 upwards.
    Stored {
        /// What is there.
        seen: Seen,
    },
    /// That event, the last one stored, let a user in or took one out.
    Member {
        /// The chat.
        chat: ChatId,
        /// The event.
        seq: u64,
        /// The user.
        user: UserId,
        /// Let in, or taken out.
        joined: bool,
    },
}

/// A fingerprint of what an event says: FNV-1a over kind, flags and body. Never 0.
pub fn content(envelope: &Envelope) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let head = [envelope.kind.to_le_bytes(), envelope.flags.to_le_bytes()];
    for byte in head.as_flattened().iter().chain(&envelope.body) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(PRIME);
    }
    hash.max(1)
}

/// Chats are written once, and named by their place in that list afterwards.
const TAG_CHAT: u8 = 0;

fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends records to a history.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    chats: HashMap<ChatId, u64>,
    scratch: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// A new history; `out` should be buffered.
    pub fn new(out: W) -> Self {
        Self { out, chats: HashMap::new(), scratch: Vec::with_capacity(128) }
    }

    fn chat(&mut self, chat: ChatId) {
        let next = self.chats.len() as u64;
        let number = *self.chats.entry(chat).or_insert(next);
        if number == next {
            // Before the record under way, whose tag is not written yet.
            let mut line = vec![TAG_CHAT];
            line.extend_from_slice(&chat.0.to_le_bytes());
            self.scratch.splice(0..0, line);
        }
        put_number(&mut self.scratch, number);
    }

    fn seen(&mut self, seen: Seen) {
        self.chat(seen.chat);
        self.numbers(&[seen.seq, seen.message_id, seen.sender.0]);
        self.scratch.extend_from_slice(&seen.content.to_le_bytes());
        self.scratch.extend_from_slice(&seen.name.0.to_le_bytes());
    }

    fn numbers(&mut self, numbers: &[u64]) {
        for number in numbers {
            put_number(&mut self.scratch, *number);
        }
    }

    /// Appends one record.
    pub fn write(&mut self, record: Record) -> io::Result<()> {
        self.scratch.clear();
        match record {
            Record::Device { device, user, subscribes } => {
                self.scratch.push(1);
                self.numbers(&[device.into(), user.0, subscribes.into()]);
            }
            Record::Offer { device, chat, name, content } => {
                self.scratch.push(2);
                self.numbers(&[device.into()]);
                self.chat(chat);
                self.scratch.extend_from_slice(&content.to_le_bytes());
                self.scratch.extend_from_slice(&name.0.to_le_bytes());
            }
            Record::Ack { device, chat, name, seq, message_id } => {
                self.scratch.push(3);
                self.numbers(&[device.into()]);
                self.chat(chat);
                self.numbers(&[seq, message_id]);
                self.scratch.extend_from_slice(&name.0.to_le_bytes());
            }
            Record::Refused { device, name } => {
                self.scratch.push(4);
                self.numbers(&[device.into()]);
                self.scratch.extend_from_slice(&name.0.to_le_bytes());
            }
            Record::Connect { device, mark } => {
                self.scratch.push(5);
                self.numbers(&[device.into(), mark]);
            }
            Record::Mark { device, inbox_seq } => {
                self.scratch.push(6);
                self.numbers(&[device.into(), inbox_seq]);
            }
            Record::Truncated { device } => {
                self.scratch.push(7);
                self.numbers(&[device.into()]);
            }
            Record::Event { device, seen } => {
                self.scratch.push(8);
                self.numbers(&[device.into()]);
                self.seen(seen);
            }
            Record::Fetch { device, seen } => {
                self.scratch.push(9);
                self.numbers(&[device.into()]);
                self.seen(seen);
            }
            Record::Stored { seen } => {
                self.scratch.push(10);
                self.seen(seen);
            }
            Record::Member { chat, seq, user, joined } => {
                self.scratch.push(11);
                self.chat(chat);
                self.numbers(&[seq, user.0, joined.into()]);
            }
        }
        self.out.write_all(&self.scratch)
    }

    /// Hands everything to the file.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Reads the records of a history.
#[derive(Debug)]
pub struct Reader<R: BufRead> {
    input: R,
    chats: Vec<ChatId>,
}

impl<R: BufRead> Reader<R> {
    /// Reads from the beginning of a history.
    pub fn new(input: R) -> Self {
        Self { input, chats: Vec::new() }
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.bytes()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(damaged("a number without an end"))
    }

    fn device(&mut self) -> io::Result<u32> {
        self.number()?.try_into().map_err(|_| damaged("a device above all bounds"))
    }

    fn chat(&mut self) -> io::Result<ChatId> {
        let number = self.number()?;
        self.chats.get(number as usize).copied().ok_or_else(|| damaged("a chat that was not introduced"))
    }

    fn name(&mut self) -> io::Result<ClientMsgId> {
        Ok(ClientMsgId(u128::from_le_bytes(self.bytes()?)))
    }

    fn seen(&mut self) -> io::Result<Seen> {
        let chat = self.chat()?;
        let (seq, message_id, sender) = (self.number()?, self.number()?, UserId(self.number()?));
        let content = u64::from_le_bytes(self.bytes()?);
        Ok(Seen { chat, seq, message_id, sender, content, name: self.name()? })
    }

    fn read(&mut self) -> io::Result<Option<Record>> {
        loop {
            if self.input.fill_buf()?.is_empty() {
                return Ok(None);
            }
            let [tag] = self.bytes()?;
            if tag != TAG_CHAT {
                return self.record(tag).map(Some);
            }
            let chat = ChatId(u128::from_le_bytes(self.bytes()?));
            self.chats.push(chat);
        }
    }

    fn record(&mut self, tag: u8) -> io::Result<Record> {
        Ok(match tag {
            1 => {
                Record::Device { device: self.device()?, user: UserId(self.number()?), subscribes: self.number()? != 0 }
            }
            2 => {
                let (device, chat) = (self.device()?, self.chat()?);
                let content = u64::from_le_bytes(self.bytes()?);
                Record::Offer { device, chat, content, name: self.name()? }
            }
            3 => {
                let (device, chat) = (self.device()?, self.chat()?);
                let (seq, message_id) = (self.number()?, self.number()?);
                Record::Ack { device, chat, seq, message_id, name: self.name()? }
            }
            4 => Record::Refused { device: self.device()?, name: self.name()? },
            5 => Record::Connect { device: self.device()?, mark: self.number()? },
            6 => Record::Mark { device: self.device()?, inbox_seq: self.number()? },
            7 => Record::Truncated { device: self.device()? },
            8 => Record::Event { device: self.device()?, seen: self.seen()? },
            9 => Record::Fetch { device: self.device()?, seen: self.seen()? },
            10 => Record::Stored { seen: self.seen()? },
            11 => Record::Member {
                chat: self.chat()?,
                seq: self.number()?,
                user: UserId(self.number()?),
                joined: self.number()? != 0,
            },
            _ => return Err(damaged("an unknown record")),
        })
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the history has {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_is_read_as_it_was_written() {
        let (chat, name, device) = (ChatId(u128::MAX), ClientMsgId(7 << 100), 300);
        let seen = Seen { chat, seq: 1 << 40, message_id: u64::MAX, name, sender: UserId(9), content: 12 };
        let records = [
            Record::Device { device, user: UserId(1 << 62), subscribes: true },
            Record::Offer { device, chat: ChatId(5), name, content: 3 },
            Record::Ack { device, chat, name, seq: 1, message_id: 128 },
            Record::Refused { device, name },
            Record::Connect { device, mark: 0 },
            Record::Mark { device, inbox_seq: 127 },
            Record::Truncated { device },
            Record::Event { device, seen },
            Record::Fetch { device, seen: Seen { chat: ChatId(5), ..seen } },
            Record::Stored { seen },
            Record::Member { chat, seq: 1, user: UserId(2), joined: false },
        ];
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        for record in records {
            writer.write(record).unwrap();
        }
        let read: Vec<Record> = Reader::new(&bytes[..]).map(Result::unwrap).collect();
        assert_eq!(read, records);
        bytes.pop();
        assert!(Reader::new(&bytes[..]).last().unwrap().is_err(), "half a record is an error");
    }

    #[test]
    fn the_fingerprint_sees_every_part() {
        let envelope = Envelope { kind: 1, flags: 0, body: vec![1, 2] };
        let others = [
            Envelope { kind: 2, ..envelope.clone() },
            Envelope { flags: 1, ..envelope.clone() },
            Envelope { body: vec![2, 1], ..envelope.clone() },
        ];
        assert!(others.iter().all(|other| content(other) != content(&envelope)));
    }
}
