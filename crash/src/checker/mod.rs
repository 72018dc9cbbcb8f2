//! The judge: reads the histories of all client processes twice, first what was sent, acknowledged and finally stored,
//! then what each device received, and finds every promise that was broken. It needs about 200 bytes for each message,
//! however many devices received it.

mod log;
mod verdict;

pub use verdict::{Kind, Verdict};

use crate::history::{Reader, Record, Seen};
use log::{Entry, Log};
use parley_protocol::{ChatId, ClientMsgId, UserId};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

/// What is known of a command.
#[derive(Clone, Copy, Debug)]
struct Command {
    chat: ChatId,
    sender: UserId,
    content: u64,
    /// `seq` and `message_id`.
    acknowledged: Option<(u64, u64)>,
    refused: bool,
}

/// How far a device has come in a chat.
#[derive(Debug, Default)]
struct Place {
    /// The newest event that the stream brought.
    reached: u64,
    /// That at the last mark: where the stream goes on after a reconnect.
    marked: u64,
    /// Events that the stream left out.
    missing: BTreeSet<u64>,
}

#[derive(Debug)]
struct Device {
    user: UserId,
    subscribes: bool,
    /// The last mark issued.
    mark: u64,
    /// Entries of the inbox that came, and that one at the last mark. Own state is not in the histories: an entry that
    /// another with own state may follow counts as both.
    came: u64,
    came_marked: u64,
    /// By how much a mark was ahead of what came: each entry that is missing is found once.
    ahead: u64,
    /// Of a subscriber: live events that came on this connection.
    live: HashSet<(ChatId, u64)>,
    places: HashMap<ChatId, Place>,
    /// Chats in which something came since the last mark.
    moved: HashSet<ChatId>,
    /// Of chats that were large at some time: all that this device has, by stream or from history.
    has: HashMap<ChatId, BTreeSet<u64>>,
}

/// The judge. [`check_files`] drives it; the order of calls is learn, settle, follow, finish.
#[derive(Debug)]
pub struct Checker {
    inbox_limit: usize,
    commands: HashMap<ClientMsgId, Command>,
    logs: HashMap<ChatId, Log>,
    devices: BTreeMap<u32, Device>,
    verdict: Verdict,
}

/// Judges the histories of a run on a server that fans out to inboxes up to `inbox_limit` members. Histories that
/// introduce devices stand before others that name them.
pub fn check_files(paths: &[PathBuf], inbox_limit: usize) -> io::Result<Verdict> {
    let mut checker = Checker::new(inbox_limit);
    for path in paths {
        for record in open(path)? {
            checker.learn(record?);
        }
    }
    checker.settle();
    for path in paths {
        for record in open(path)? {
            checker.follow(record?);
        }
    }
    Ok(checker.finish())
}

/// The records of a file; errors name it.
fn open(path: &Path) -> io::Result<impl Iterator<Item = io::Result<Record>> + '_> {
    let named = move |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let file = File::open(path).map_err(named)?;
    Ok(Reader::new(BufReader::with_capacity(1 << 20, file)).map(move |read| read.map_err(named)))
}

impl Checker {
    /// Nothing learned yet.
    pub fn new(inbox_limit: usize) -> Self {
        Self {
            inbox_limit,
            commands: HashMap::new(),
            logs: HashMap::new(),
            devices: BTreeMap::new(),
            verdict: Verdict::default(),
        }
    }

    /// First reading, every record of every history: commands, answers and final logs. An answer stands behind its
    /// command in the same history.
    pub fn learn(&mut self, record: Record) {
        match record {
            Record::Device { device, user, subscribes } => {
                let (places, moved, has, live) = Default::default();
                let (mark, came, came_marked, ahead) = Default::default();
                let new = Device { user, subscribes, mark, came, came_marked, ahead, live, places, moved, has };
                if self.devices.insert(device, new).is_some() {
                    self.verdict.find(Kind::Wrong, || format!("device {device} is in two histories"));
                }
            }
            Record::Offer { device, chat, name, content } => {
                let Some(sender) = self.devices.get(&device).map(|device| device.user) else { return };
                let new = Command { chat, sender, content, acknowledged: None, refused: false };
                if self.commands.insert(name, new).is_some() {
                    self.verdict.find(Kind::Wrong, || format!("{name}: two commands have one name"));
                }
            }
            Record::Ack { device, chat, name, seq, message_id } => {
                self.learn_ack(device, chat, name, (seq, message_id))
            }
            Record::Refused { device, name } => match self.commands.get_mut(&name) {
                Some(command) => command.refused = true,
                None => {
                    self.verdict.find(Kind::Wrong, || format!("device {device}: {name} was refused but never sent"))
                }
            },
            Record::Stored { seen } => self.learn_stored(seen),
            Record::Member { chat, seq, user, joined } => self.logs.entry(chat).or_default().change(seq, user, joined),
            _ => {}
        }
    }

    fn learn_ack(&mut self, device: u32, chat: ChatId, name: ClientMsgId, ids: (u64, u64)) {
        let Some(command) = self.commands.get_mut(&name) else {
            return self
                .verdict
                .find(Kind::Wrong, || format!("device {device}: {name} was acknowledged but never sent"));
        };
        if command.chat.0 == 0 {
            command.chat = chat;
        }
        let former = command.acknowledged.replace(ids);
        if command.chat != chat || former.is_some_and(|former| former != ids) {
            let first = command.chat;
            self.verdict.find(Kind::Duplicated, || {
                format!("{name} in {first} was acknowledged as {former:?}, and again in {chat} as {ids:?}")
            });
        }
    }

    fn learn_stored(&mut self, seen: Seen) {
        let log = self.logs.entry(seen.chat).or_default();
        let expected = log.head() + 1;
        let last = log.entries.last().map_or(0, |entry| entry.message_id);
        if seen.seq != expected {
            let kind = if seen.seq > expected { Kind::Lost } else { Kind::Duplicated };
            self.verdict.find(kind, || format!("{}: the log has {} where {expected} belongs", seen.chat, seen.seq));
            return;
        }
        if seen.message_id <= last {
            self.verdict.find(Kind::Reordered, || {
                format!("{} {}: message id {} comes after {last}", seen.chat, seen.seq, seen.message_id)
            });
        }
        log.entries.push(seen.into());
    }

    /// Between the readings: commands and logs are held against each other.
    pub fn settle(&mut self) {
        for (chat, log) in &mut self.logs {
            log.derive(*chat, self.inbox_limit);
            let mut names: HashMap<(UserId, ClientMsgId), u64> = HashMap::with_capacity(log.entries.len());
            for (entry, seq) in log.entries.iter().zip(1..) {
                if let Some(first) = names.insert((entry.sender, entry.name), seq) {
                    let what = || format!("{chat}: {} took effect as {first} and as {seq}", entry.name);
                    self.verdict.find(Kind::Duplicated, what);
                }
                let command = self.commands.get(&entry.name);
                let fits = |command: &&Command| {
                    // Creating a group names no chat before its answer; a lost answer leaves it unnamed.
                    (command.chat == *chat || command.chat.0 == 0)
                        && command.sender == entry.sender
                        && (command.content == 0 || command.content == entry.content)
                };
                match command.filter(fits) {
                    None => self.verdict.find(Kind::Wrong, || format!("{chat} {seq}: nobody sent {entry:?}")),
                    Some(command) if command.refused => {
                        self.verdict.find(Kind::Wrong, || format!("{chat} {seq}: {} was refused", entry.name));
                    }
                    Some(_) => {}
                }
            }
        }
        for (name, command) in &self.commands {
            let Some((seq, message_id)) = command.acknowledged else {
                self.verdict.refused += u64::from(command.refused);
                self.verdict.unknown += u64::from(!command.refused);
                continue;
            };
            self.verdict.acknowledged += 1;
            let log = self.logs.get(&command.chat);
            let there = log.and_then(|log| log.at(seq));
            if there.is_some_and(|entry| entry.name == *name && entry.message_id == message_id) {
                continue;
            }
            let elsewhere = log.is_some_and(|log| log.entries.iter().any(|entry| entry.name == *name));
            let kind = if elsewhere { Kind::Reordered } else { Kind::Lost };
            self.verdict.find(kind, || {
                let chat = command.chat;
                format!("{name} was acknowledged as {chat} {seq} with id {message_id}; there is {there:?}")
            });
        }
    }

    /// Second reading, every record of every history again: what the devices received.
    pub fn follow(&mut self, record: Record) {
        match record {
            Record::Connect { device, mark } => self.follow_connect(device, mark),
            Record::Mark { device, inbox_seq } => self.follow_mark(device, inbox_seq),
            Record::Truncated { device } => self.verdict.find(Kind::Wrong, || {
                format!("device {device} was told to start over, though its mark was issued to it and not old")
            }),
            Record::Event { device, seen } => {
                self.verdict.delivered += 1;
                if self.is_as_stored(device, seen) {
                    self.follow_stream(device, seen);
                }
            }
            Record::Fetch { device, seen } => {
                if self.is_as_stored(device, seen)
                    && let Some(state) = self.devices.get_mut(&device)
                {
                    state.has.entry(seen.chat).or_default().insert(seen.seq);
                }
            }
            _ => {}
        }
    }

    fn follow_connect(&mut self, device: u32, mark: u64) {
        let Some(state) = self.devices.get_mut(&device) else { return };
        if mark != state.mark {
            let last = state.mark;
            self.verdict.find(Kind::Wrong, || format!("device {device} presents {mark}, its mark is {last}"));
        }
        state.live.clear();
        // What came above the mark comes again.
        state.came = state.came_marked;
        for chat in state.moved.drain() {
            let place = state.places.entry(chat).or_default();
            let open = place.missing.split_off(&(place.marked + 1));
            place.reached = place.marked;
            if let Some(seq) = open.first() {
                let what = || format!("device {device}: {chat} {seq} was left out of a stream");
                self.verdict.find(Kind::Reordered, what);
            }
        }
    }

    /// An inbox is numbered densely from 1 and devices begin at 0, so the mark says how many entries came. Which one has
    /// which number is not in the histories, so one that is missing under a mark is found by the count.
    fn follow_mark(&mut self, device: u32, inbox_seq: u64) {
        let Some(state) = self.devices.get_mut(&device) else { return };
        if inbox_seq < state.mark {
            let last = state.mark;
            self.verdict.find(Kind::Wrong, || format!("device {device}: mark {inbox_seq} after {last}"));
        }
        let (came, ahead) = (state.came, inbox_seq.saturating_sub(state.came));
        if ahead > state.ahead {
            state.ahead = ahead;
            self.verdict.find(Kind::Wrong, || {
                format!("device {device}: mark {inbox_seq}, but at most {came} entries of its inbox came before it")
            });
        }
        (state.mark, state.came_marked) = (inbox_seq, came);
        for chat in state.moved.drain() {
            let place = state.places.entry(chat).or_default();
            place.marked = place.reached;
        }
    }

    /// What a device got is what the log has there, and the device's user was a member then.
    fn is_as_stored(&mut self, device: u32, seen: Seen) -> bool {
        let (chat, seq) = (seen.chat, seen.seq);
        let Some(log) = self.logs.get(&chat) else {
            self.verdict.find(Kind::Wrong, || format!("device {device}: an event of the unknown chat {chat}"));
            return false;
        };
        let stored = log.at(seq);
        if stored != Some(&Entry::from(seen)) {
            let elsewhere = log.entries.iter().position(|entry| *entry == Entry::from(seen));
            let kind = if elsewhere.is_some() { Kind::Reordered } else { Kind::Wrong };
            self.verdict.find(kind, || format!("device {device}: got {seen:?}, the log has {stored:?}"));
            return false;
        }
        let user = self.devices.get(&device).map(|device| device.user);
        let share = user.and_then(|user| log.shares.get(&user));
        if !share.is_some_and(|share| share.inside.contains(seq)) {
            self.verdict.find(Kind::Wrong, || format!("device {device}: {chat} {seq} is not for its user"));
            return false;
        }
        true
    }

    fn follow_stream(&mut self, device: u32, seen: Seen) {
        let (chat, seq) = (seen.chat, seen.seq);
        let (Some(log), Some(state)) = (self.logs.get(&chat), self.devices.get_mut(&device)) else { return };
        let Some(share) = log.shares.get(&state.user) else { return };
        if log.was_large {
            state.has.entry(chat).or_default().insert(seq);
            if state.subscribes && !share.inbox.contains(seq) {
                // Live events and inbox entries overtake each other, and live ones may be dropped. Whose inbox has an
                // event does not get it live, so for all others it comes at most once.
                if !state.live.insert((chat, seq)) {
                    let what = || format!("device {device}: {chat} {seq} came live twice on one connection");
                    self.verdict.find(Kind::Duplicated, what);
                }
                return;
            }
        }
        let entries = u64::from(share.inbox.contains(seq)) + u64::from(share.own.contains(seq));
        state.moved.insert(chat);
        let place = state.places.entry(chat).or_default();
        let due = share.inbox.successors(place.reached).next();
        if seq <= place.reached {
            let late = place.missing.remove(&seq);
            state.came += if late { entries } else { 0 };
            state.came_marked += if late && seq <= place.marked { entries } else { 0 };
            let kind = if late { Kind::Reordered } else { Kind::Duplicated };
            let reached = place.reached;
            return self.verdict.find(kind, || format!("device {device}: {chat} {seq} came after {reached}"));
        }
        let left_out = share.inbox.successors(place.reached).take_while(|due| *due < seq);
        place.missing.extend(left_out);
        place.reached = seq;
        state.came += entries;
        if !share.inbox.contains(seq) {
            self.verdict.find(Kind::Wrong, || {
                format!("device {device}: {chat} {seq} came by the stream of a chat above the limit; due was {due:?}")
            });
        }
    }

    /// What never came, and the judgement.
    pub fn finish(mut self) -> Verdict {
        for (number, device) in &self.devices {
            for (chat, log) in &self.logs {
                let Some(share) = log.shares.get(&device.user) else { continue };
                let no_place = Place::default();
                let place = device.places.get(chat).unwrap_or(&no_place);
                let (mut lost, mut first) = (0, None);
                let mut lose = |seq: u64| {
                    lost += 1;
                    first.get_or_insert(seq);
                };
                if log.was_large {
                    let has = device.has.get(chat);
                    let missing = share.inside.iter().filter(|seq| has.is_none_or(|has| !has.contains(seq)));
                    missing.for_each(&mut lose);
                }
                let behind = share.inbox.successors(place.reached);
                place.missing.iter().copied().chain(behind).for_each(&mut lose);
                if let Some(first) = first {
                    let what = || format!("device {number} never got {lost} events of {chat}; the first is {first}");
                    self.verdict.find_many(Kind::Lost, lost, what);
                }
            }
        }
        self.verdict
    }
}
