//! A cluster in memory that does whatever a real one may do with the statements of this module: replicas that apply a
//! write now, later or never, a coordinator that answers at quorum or does not know, reads that merge by timestamp and
//! repair. All of it from one seed, for tests and the simulator. Nothing here knows what the rows mean.

use super::rows::{
    Change, Partition, Read, Row, SenderRow, Statement, StatementError, StatementResult, WorkKey, Write,
};
use parley_protocol::partition::split_mix_64;
use parley_protocol::{ChatId, ClientMsgId, UserId};
use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Writes that replicas still have to get, at the most. Above it the oldest arrives, or is lost where a replica is down.
const LATE_MAX: usize = 65_536;

/// Where a row is within its partition. The order is that of the tables' clustering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key {
    One,
    Slot(u8),
    Number(u64),
    User(UserId),
    Chat(ChatId),
    Work(WorkKey),
    Name(UserId, ClientMsgId),
}

const USERS: RangeInclusive<Key> = Key::User(UserId(0))..=Key::User(UserId(u64::MAX));
const CHATS: RangeInclusive<Key> = Key::Chat(ChatId(0))..=Key::Chat(ChatId(u128::MAX));

/// The key of a row. Panics when the row belongs to another table: no caller may ask for that.
fn key_in(partition: &Partition, row: &Row) -> Key {
    match (partition, row) {
        (Partition::Meta { .. }, Row::Meta { .. })
        | (Partition::InboxState { .. }, Row::InboxState { .. })
        | (Partition::Unique { .. }, Row::Unique { .. }) => Key::One,
        (Partition::User { user_id }, Row::User(row)) if row.user_id == *user_id => Key::One,
        (Partition::Work { .. }, Row::Work(key)) => Key::Work(*key),
        (Partition::Events { chat_id, bucket }, Row::Event(row)) => {
            let at = (row.event.chat_id, super::rows::seq_bucket(row.event.seq));
            assert_eq!(at, (*chat_id, *bucket), "an event lies in its own partition");
            Key::Number(row.event.seq)
        }
        (Partition::ChatState { .. }, Row::ChatState(row)) => Key::Slot(row.slot),
        (Partition::Members { .. }, Row::Member { user_id, .. })
        | (Partition::Marks { .. }, Row::Mark { user_id, .. }) => Key::User(*user_id),
        (Partition::Commands { .. }, Row::Command(row)) => Key::Name(row.name.sender, row.name.client_msg_id),
        (Partition::Inbox { bucket, .. }, Row::Entry { inbox_seq, .. }) => {
            assert_eq!(super::rows::inbox_bucket(*inbox_seq), *bucket, "an entry lies in its own partition");
            Key::Number(*inbox_seq)
        }
        (Partition::Memberships { .. }, Row::Membership { chat_id, .. }) => Key::Chat(*chat_id),
        (partition, row) => panic!("{row:?} does not belong in {partition:?}"),
    }
}

/// Which rows of one partition a read wants.
struct Selection {
    partition: Partition,
    keys: Keys,
    limit: usize,
    newest_first: bool,
}

enum Keys {
    All,
    Range(RangeInclusive<Key>),
    After(Key, Key),
    List(Vec<Key>),
}

impl Selection {
    fn new(partition: Partition, keys: Keys) -> Selection {
        Selection { partition, keys, limit: usize::MAX, newest_first: false }
    }

    fn of(read: &Read) -> Selection {
        match read {
            Read::All(partition) => Selection::new(partition.clone(), Keys::All),
            Read::Events { chat_id, bucket, from, to, limit, newest_first } => Selection {
                limit: *limit as usize,
                newest_first: *newest_first,
                ..Selection::new(Partition::Events { chat_id: *chat_id, bucket: *bucket }, Keys::numbers(*from, *to))
            },
            Read::Senders { chat_id, bucket, from, to } => {
                Selection::new(Partition::Events { chat_id: *chat_id, bucket: *bucket }, Keys::numbers(*from, *to))
            }
            Read::Entries { user_id, bucket, from, to, limit, newest_first } => Selection {
                limit: *limit as usize,
                newest_first: *newest_first,
                ..Selection::new(Partition::Inbox { user_id: *user_id, bucket: *bucket }, Keys::numbers(*from, *to))
            },
            Read::Member { chat_id, user_id } => {
                Selection::new(Partition::Members { chat_id: *chat_id }, Keys::List(vec![Key::User(*user_id)]))
            }
            Read::Members { chat_id, after, limit } => Selection {
                limit: *limit as usize,
                ..Selection::new(Partition::Members { chat_id: *chat_id }, Keys::after(after.map(Key::User), USERS))
            },
            Read::Marks { chat_id, users } => {
                let keys = users.iter().map(|user_id| Key::User(*user_id)).collect();
                Selection::new(Partition::Marks { chat_id: *chat_id }, Keys::List(keys))
            }
            Read::Commands { scope, level, bucket, names } => {
                let keys = names.iter().map(|(sender, name)| Key::Name(*sender, *name)).collect();
                let partition = Partition::Commands { scope: *scope, level: *level, bucket: *bucket };
                Selection::new(partition, Keys::List(keys))
            }
            Read::Memberships { user_id, after, limit } => Selection {
                limit: *limit as usize,
                ..Selection::new(Partition::Memberships { user_id: *user_id }, Keys::after(after.map(Key::Chat), CHATS))
            },
        }
    }
}

impl Keys {
    fn numbers(from: u64, to: u64) -> Keys {
        if from > to { Keys::List(Vec::new()) } else { Keys::Range(Key::Number(from)..=Key::Number(to)) }
    }

    fn after(after: Option<Key>, all: RangeInclusive<Key>) -> Keys {
        match after {
            Some(after) => Keys::After(after, *all.end()),
            None => Keys::Range(all),
        }
    }
}

type Stamped = (i64, Row);

/// One partition as one replica has it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Part {
    /// Everything at or below this timestamp is gone, whenever it arrives.
    deleted: Option<i64>,
    rows: BTreeMap<Key, Stamped>,
}

/// Whether `new` takes the place of `old`. Two values of one timestamp are told apart by a fixed order.
fn wins(new: &Stamped, old: &Stamped) -> bool {
    new.0 > old.0 || (new.0 == old.0 && new.1 != old.1 && format!("{:?}", new.1) > format!("{:?}", old.1))
}

impl Part {
    fn put(&mut self, key: Key, new: &Stamped) {
        if self.deleted.is_some_and(|deleted| new.0 <= deleted) {
            return;
        }
        match self.rows.get_mut(&key) {
            Some(old) if wins(new, old) => *old = new.clone(),
            Some(_) => {}
            None => {
                self.rows.insert(key, new.clone());
            }
        }
    }

    fn delete(&mut self, timestamp: i64) {
        if self.deleted.is_none_or(|deleted| deleted < timestamp) {
            self.deleted = Some(timestamp);
            self.rows.retain(|_, row| row.0 > timestamp);
        }
    }

    /// Those selected, with their keys; each replica cuts at the limit by itself.
    fn select(&self, selection: &Selection) -> Vec<(Key, Stamped)> {
        use std::ops::Bound::{Excluded, Included};
        let owned = |(key, row): (&Key, &Stamped)| (*key, row.clone());
        let range = match &selection.keys {
            Keys::All => self.rows.range(..),
            Keys::Range(keys) => self.rows.range(keys.clone()),
            Keys::After(after, last) if after < last => self.rows.range((Excluded(*after), Included(*last))),
            Keys::After(..) => return Vec::new(),
            Keys::List(keys) => {
                let found: BTreeMap<_, _> = keys.iter().filter_map(|key| self.rows.get_key_value(key)).collect();
                return found.into_iter().map(owned).take(selection.limit).collect();
            }
        };
        if selection.newest_first {
            range.rev().take(selection.limit).map(owned).collect()
        } else {
            range.take(selection.limit).map(owned).collect()
        }
    }
}

#[derive(Clone, Debug)]
struct Replica {
    up: bool,
    parts: BTreeMap<Partition, Part>,
}

impl Replica {
    fn apply(&mut self, write: &Write) {
        let part = self.parts.entry(write.partition.clone()).or_default();
        match &write.change {
            Change::Delete => part.delete(write.timestamp),
            Change::Put(rows) => {
                for row in rows {
                    part.put(key_in(&write.partition, row), &(write.timestamp, row.clone()));
                }
            }
        }
    }

    fn select(&self, selection: &Selection) -> Sight {
        let part = self.parts.get(&selection.partition);
        Sight {
            deleted: part.and_then(|part| part.deleted),
            rows: part.map(|part| part.select(selection)).unwrap_or_default(),
        }
    }
}

/// What one replica answered to a read.
#[derive(Clone, Debug)]
struct Sight {
    deleted: Option<i64>,
    rows: Vec<(Key, Stamped)>,
}

/// How bad it is; each in a thousand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterFaults {
    /// Statements whose outcome is not told, whatever came of them.
    pub unknown_per_mille: u64,
    /// Replicas that never get a write, unless a read repairs them.
    pub partial_per_mille: u64,
    /// Replicas that get a write later.
    pub late_per_mille: u64,
    /// In a thousand statements: how often one late write, whichever, arrives first.
    pub arrive_per_mille: u64,
}

impl ClusterFaults {
    /// Every replica applies everything at once, and says so.
    pub const NONE: ClusterFaults =
        ClusterFaults { unknown_per_mille: 0, partial_per_mille: 0, late_per_mille: 0, arrive_per_mille: 0 };
    /// Rare paths are common.
    pub const MANY: ClusterFaults =
        ClusterFaults { unknown_per_mille: 100, partial_per_mille: 100, late_per_mille: 250, arrive_per_mille: 100 };
}

/// Names a write between [`Cluster::begin`] and [`Cluster::finish`].
pub type Ticket = u64;

#[derive(Clone, Debug)]
struct Begun {
    write: Arc<Write>,
    /// Replicas that have not applied it.
    waiting: Vec<usize>,
    applied: usize,
}

/// A read that one replica has answered.
#[derive(Debug)]
pub struct BegunRead {
    selection: Selection,
    bare: bool,
    replica: usize,
    sight: Sight,
}

impl std::fmt::Debug for Selection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.partition.fmt(f)
    }
}

/// The cluster. [`Cluster::execute`] is a statement from end to end; [`Cluster::begin`] and [`Cluster::begin_read`] let
/// other things happen in between.
#[derive(Clone, Debug)]
pub struct Cluster {
    replicas: Vec<Replica>,
    /// Sent and not applied: replica and write. Any of them may arrive any time later, after any crash.
    late: VecDeque<(usize, Arc<Write>)>,
    begun: BTreeMap<Ticket, Begun>,
    next_ticket: Ticket,
    seed: u64,
    /// How bad it is from now on.
    pub faults: ClusterFaults,
    /// Writes that were sent.
    pub writes: u64,
    /// Reads that were sent.
    pub reads: u64,
}

impl Cluster {
    /// Three replicas, without faults.
    pub fn new(seed: u64) -> Cluster {
        Cluster::with(3, ClusterFaults::NONE, seed)
    }

    /// A cluster of `replicas`, at least one.
    pub fn with(replicas: usize, faults: ClusterFaults, seed: u64) -> Cluster {
        assert!(replicas > 0, "a cluster has a replica");
        Cluster {
            replicas: vec![Replica { up: true, parts: BTreeMap::new() }; replicas],
            late: VecDeque::new(),
            begun: BTreeMap::new(),
            next_ticket: 1,
            seed,
            faults,
            writes: 0,
            reads: 0,
        }
    }

    /// How many replicas make a quorum.
    pub fn quorum(&self) -> usize {
        self.replicas.len() / 2 + 1
    }

    /// Takes a replica down or up. What was sent to it meanwhile is late.
    pub fn set_up(&mut self, replica: usize, up: bool) {
        self.replicas[replica].up = up;
    }

    /// Whether enough replicas are up for an answer.
    pub fn available(&self) -> bool {
        self.replicas.iter().filter(|replica| replica.up).count() >= self.quorum()
    }

    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(1);
        split_mix_64(self.seed)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.random() % bound as u64) as usize
    }

    fn chance(&mut self, per_mille: u64) -> bool {
        per_mille > 0 && self.random() % 1_000 < per_mille
    }

    /// A statement, from end to end.
    pub fn execute(&mut self, statement: &Statement) -> StatementResult {
        match statement {
            Statement::Write(write) => self.write(write),
            Statement::Read(read) => self.read(read),
        }
    }

    /// A write, from end to end: each replica gets it now, later or never.
    pub fn write(&mut self, write: &Write) -> StatementResult {
        self.arrive_some();
        let ticket = self.begin(write);
        for replica in 0..self.replicas.len() {
            if self.chance(self.faults.late_per_mille) {
                continue;
            }
            if self.chance(self.faults.partial_per_mille) {
                self.lose(ticket, replica);
            } else {
                self.deliver(ticket, replica);
            }
        }
        self.finish(ticket)
    }

    /// Sends a write: no replica has it yet.
    pub fn begin(&mut self, write: &Write) -> Ticket {
        if let Change::Put(rows) = &write.change {
            assert!(!rows.is_empty(), "a write puts something");
        }
        self.writes += 1;
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let waiting = (0..self.replicas.len()).collect();
        self.begun.insert(ticket, Begun { write: Arc::new(write.clone()), waiting, applied: 0 });
        ticket
    }

    /// The write reaches a replica; nothing happens if it did before, or if the replica is down.
    pub fn deliver(&mut self, ticket: Ticket, replica: usize) {
        let Some(begun) = self.begun.get_mut(&ticket).filter(|_| self.replicas[replica].up) else { return };
        if let Some(at) = begun.waiting.iter().position(|waiting| *waiting == replica) {
            begun.waiting.swap_remove(at);
            begun.applied += 1;
            self.replicas[replica].apply(&begun.write);
        }
    }

    /// Whether a quorum has a write that was begun.
    pub fn is_standing(&self, ticket: Ticket) -> bool {
        self.begun.get(&ticket).is_some_and(|begun| begun.applied >= self.quorum())
    }

    /// What every read at quorum finds at the least, of all replicas, whether they are up or not; nothing is repaired.
    /// For who checks the test. The limit of the read is not looked at.
    pub fn standing(&self, read: &Read) -> Vec<Row> {
        let selection = Selection { limit: usize::MAX, ..Selection::of(read) };
        let sights: Vec<Sight> = self.replicas.iter().map(|replica| replica.select(&selection)).collect();
        let mut deleted: Vec<Option<i64>> = sights.iter().map(|sight| sight.deleted).collect();
        deleted.sort_unstable();
        let deleted = deleted[self.replicas.len() - self.quorum()];
        let mut found: BTreeMap<Key, Vec<Stamped>> = BTreeMap::new();
        for (key, row) in sights.into_iter().flat_map(|sight| sight.rows) {
            found.entry(key).or_default().push(row);
        }
        let mut rows = Vec::new();
        for mut copies in found.into_values() {
            copies.sort_by_key(|row| std::cmp::Reverse(row.0));
            let stands = copies.into_iter().nth(self.quorum() - 1);
            rows.extend(stands.filter(|row| deleted.is_none_or(|deleted| row.0 > deleted)).map(|row| row.1));
        }
        rows
    }

    fn lose(&mut self, ticket: Ticket, replica: usize) {
        let begun = self.begun.get_mut(&ticket).expect("it was begun");
        begun.waiting.retain(|waiting| *waiting != replica);
    }

    /// The coordinator answers: durable when a quorum has it. Replicas that have not get it later, or never.
    pub fn finish(&mut self, ticket: Ticket) -> StatementResult {
        let Some(begun) = self.begun.remove(&ticket) else { return unknown("no such write") };
        for replica in begun.waiting {
            self.be_late(replica, begun.write.clone());
        }
        if begun.applied < self.quorum() {
            return unknown("too few replicas have it");
        }
        if self.chance(self.faults.unknown_per_mille) { unknown("the answer was lost") } else { Ok(Vec::new()) }
    }

    /// Applies a write on one replica, whether it is up or not: state that was there before.
    pub fn apply(&mut self, replica: usize, write: &Write) {
        self.replicas[replica].apply(write);
    }

    /// Applies a write on every replica: state that was there before.
    pub fn seed_with(&mut self, write: &Write) {
        self.replicas.iter_mut().for_each(|replica| replica.apply(write));
    }

    fn be_late(&mut self, replica: usize, write: Arc<Write>) {
        if self.late.len() >= LATE_MAX {
            let (replica, write) = self.late.pop_front().expect("it is full");
            if self.replicas[replica].up {
                self.replicas[replica].apply(&write);
            }
        }
        self.late.push_back((replica, write));
    }

    /// How many writes are late.
    pub fn late(&self) -> usize {
        self.late.len()
    }

    fn arrive_some(&mut self) {
        if self.chance(self.faults.arrive_per_mille) {
            self.arrive();
        }
    }

    /// One of the late writes arrives, whichever. False when there is none, or its replica is down.
    pub fn arrive(&mut self) -> bool {
        if self.late.is_empty() {
            return false;
        }
        let at = self.below(self.late.len());
        if !self.replicas[self.late[at].0].up {
            return false;
        }
        let (replica, write) = self.late.swap_remove_back(at).expect("it is one of them");
        self.replicas[replica].apply(&write);
        true
    }

    /// Every late write arrives where its replica is up.
    pub fn settle(&mut self) {
        for (replica, write) in std::mem::take(&mut self.late) {
            if self.replicas[replica].up {
                self.replicas[replica].apply(&write);
            } else {
                self.late.push_back((replica, write));
            }
        }
    }

    /// No late write ever arrives.
    pub fn forget_late(&mut self) {
        self.late.clear();
    }

    /// A read, from end to end, of a quorum chosen at random.
    pub fn read(&mut self, read: &Read) -> StatementResult {
        self.arrive_some();
        let begun = self.begin_read(read)?;
        self.finish_read(begun)
    }

    /// The first replica answers a read.
    pub fn begin_read(&mut self, read: &Read) -> Result<BegunRead, StatementError> {
        self.reads += 1;
        if !self.available() {
            return Err(StatementError::Unknown("too few replicas are up".to_owned()));
        }
        let up: Vec<usize> = (0..self.replicas.len()).filter(|replica| self.replicas[*replica].up).collect();
        let replica = up[self.below(up.len())];
        let selection = Selection::of(read);
        let sight = self.replicas[replica].select(&selection);
        Ok(BegunRead { selection, bare: matches!(read, Read::Senders { .. }), replica, sight })
    }

    /// The others of the quorum answer, what differs is repaired on all of them, and the coordinator answers.
    pub fn finish_read(&mut self, begun: BegunRead) -> StatementResult {
        let BegunRead { selection, bare, replica, sight } = begun;
        let mut others: Vec<usize> =
            (0..self.replicas.len()).filter(|other| *other != replica && self.replicas[*other].up).collect();
        let wanted = self.quorum() - 1;
        if others.len() < wanted {
            return unknown("a replica went down during a read");
        }
        let mut asked = vec![replica];
        let mut merged = Part::default();
        take_in(&mut merged, sight);
        for _ in 0..wanted {
            let other = others.swap_remove(self.below(others.len()));
            asked.push(other);
            take_in(&mut merged, self.replicas[other].select(&selection));
        }
        let rows = merged.select(&selection);
        for replica in asked.into_iter().filter(|replica| self.replicas[*replica].up).collect::<Vec<_>>() {
            if merged.deleted.is_none() && rows.is_empty() {
                continue;
            }
            let part = self.replicas[replica].parts.entry(selection.partition.clone()).or_default();
            if let Some(deleted) = merged.deleted {
                part.delete(deleted);
            }
            rows.iter().for_each(|(key, row)| part.put(*key, row));
        }
        if self.chance(self.faults.unknown_per_mille) {
            return unknown("the answer was lost");
        }
        Ok(rows.into_iter().map(|(_, (_, row))| if bare { without_body(row) } else { row }).collect())
    }
}

fn unknown(why: &str) -> StatementResult {
    Err(StatementError::Unknown(why.to_owned()))
}

fn take_in(merged: &mut Part, sight: Sight) {
    if let Some(deleted) = sight.deleted {
        merged.delete(deleted);
    }
    for (key, row) in sight.rows {
        merged.put(key, &row);
    }
}

fn without_body(row: Row) -> Row {
    match row {
        Row::Event(row) => {
            Row::Sender(SenderRow { seq: row.event.seq, sender: row.event.sender, kind: row.event.envelope.kind })
        }
        other => other,
    }
}

/// A row that changes by compare-and-set only. Its key tells any two of its states apart.
pub trait Keyed: Clone {
    /// What a change expects to find.
    type Key: Clone + PartialEq;
    /// Of this state.
    fn key(&self) -> Self::Key;
}

impl Keyed for super::lease::LeaseRow {
    type Key = super::lease::LeaseKey;

    fn key(&self) -> Self::Key {
        super::lease::LeaseRow::key(self)
    }
}

/// One row that changes by compare-and-set only, as a lightweight transaction does it: linearizable. One whose outcome
/// is not told may take effect any time later, if what it expects holds then.
#[derive(Clone, Debug)]
pub struct Register<L: Keyed> {
    value: Option<L>,
    /// Expected and new, of those that may still take effect.
    untold: Vec<(Option<L::Key>, L)>,
    seed: u64,
    /// In a thousand operations: those whose outcome is not told.
    pub unknown_per_mille: u64,
}

/// A lightweight transaction's outcome: applied, or what the row is instead.
pub type Cas<L> = Result<Result<(), Option<L>>, StatementError>;

impl<L: Keyed> Register<L> {
    /// Transactions whose outcome was not told and that may still take effect, at the most.
    const UNTOLD_MAX: usize = 16;

    /// A row that is not there yet.
    pub fn new(seed: u64) -> Register<L> {
        Register { value: None, untold: Vec::new(), seed, unknown_per_mille: 0 }
    }

    fn chance(&mut self, per_mille: u64) -> bool {
        self.seed = self.seed.wrapping_add(1);
        split_mix_64(self.seed) % 1_000 < per_mille
    }

    fn is(&self, expected: Option<&L::Key>) -> bool {
        self.value.as_ref().map(L::key).as_ref() == expected
    }

    /// Some of those whose outcome was not told take effect, or will never.
    fn catch_up(&mut self) {
        let mut at = 0;
        while at < self.untold.len() {
            if self.chance(500) || self.untold.len() > Self::UNTOLD_MAX {
                let (expected, new) = self.untold.remove(at);
                if self.is(expected.as_ref()) && self.chance(500) {
                    self.value = Some(new);
                }
            } else {
                at += 1;
            }
        }
    }

    /// Sets the row to `new` if it is `expected` (`None`: not there). `up`: whether enough replicas are.
    pub fn cas(&mut self, up: bool, expected: Option<&L::Key>, new: L) -> Cas<L> {
        self.catch_up();
        if !up || self.chance(self.unknown_per_mille) {
            self.untold.push((expected.cloned(), new));
            self.catch_up();
            return Err(StatementError::Unknown("a lightweight transaction timed out".to_owned()));
        }
        if !self.is(expected) {
            return Ok(Err(self.value.clone()));
        }
        self.value = Some(new);
        Ok(Ok(()))
    }

    /// The row, read serially.
    pub fn read(&mut self, up: bool) -> Result<Option<L>, StatementError> {
        self.catch_up();
        if !up || self.chance(self.unknown_per_mille) {
            return Err(StatementError::Unknown("a serial read timed out".to_owned()));
        }
        Ok(self.value.clone())
    }

    /// What it is now, without a look at what may still take effect: for who checks the test.
    pub fn peek(&self) -> Option<&L> {
        self.value.as_ref()
    }
}
