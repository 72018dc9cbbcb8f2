//! The world of a run: processes, connections and people, on one thread, in virtual time. One event after the other, each
//! at its microsecond; what happens at the same one happens in an order that the seed chooses.

use crate::cluster::{Shared, Step};
use crate::device::Device;
use crate::disk::Disk;
use crate::gateway::Gateway;
use crate::network::Pipe;
use crate::overflows::Overflows;
use crate::plan::{Fault, Plan};
use crate::random::Rng;
use crate::trace::Trace;
use crate::truth::{Truth, Verdict};
use crate::writer::WriterProcess;
use gateway_core::output::ConnId;
use gateway_core::shard::Out;
use parley_protocol::UserId;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// The calendar at the beginning, Unix milliseconds.
pub(crate) const EPOCH_MS: u64 = 1_800_000_000_000;
/// How long everything may take to come to rest when nothing breaks any more, microseconds of virtual time.
const REST_US: u64 = 60_000_000;
/// And in events.
const REST_TICKS: u64 = 600_000;
/// The oracles over the whole state look this often, in events.
const WHOLE_EVERY: u64 = 1_000;

/// Something that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// A shard's turn.
    Shard { gateway: u32, shard: u16 },
    /// The writer's turn.
    Writer { writer: u32 },
    /// A reader thread answers.
    Reader { writer: u32 },
    /// Bytes arrive at the gateway's end of a connection.
    Up { conn: u32 },
    /// Bytes arrive at the client's end.
    Down { conn: u32 },
    /// Bytes arrive at the writer's end of a link.
    LinkUp { link: u32 },
    /// Bytes arrive at the gateway's end.
    LinkDown { link: u32 },
    /// A device looks at its clock.
    Device { device: u32 },
    /// Somebody does something.
    Act,
    /// Something breaks.
    Strike,
    /// Every link breaks.
    CutLinks,
    /// A process is started.
    StartGateway,
    /// A process is started.
    StartWriter,
    /// A process ends.
    EndGateway { gateway: u32 },
    /// A process ends.
    EndWriter { writer: u32 },
    /// A statement to the cluster goes on.
    Statement { flight: u64, step: Step },
    /// What a dead process sent reaches a replica.
    Straggler { flight: u64, replica: u8 },
    /// An ask for the lease goes on.
    Lease { ask: u64 },
    /// Some of what replicas still have to get arrives.
    Late,
    /// A replica is back.
    ReplicaUp { replica: u8 },
    /// A read of a reader thread goes on.
    Reading { writer: u32, read: u64 },
}

/// A connection between a device and a gateway.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) device: u32,
    pub(crate) gateway: u32,
    pub(crate) shard: u16,
    /// The gateway's name of it, while a shard has it.
    pub(crate) id: Option<ConnId>,
    pub(crate) up: Pipe,
    pub(crate) down: Pipe,
    /// The gateway still has it.
    pub(crate) server_open: bool,
    /// The device still has it.
    pub(crate) client_open: bool,
    /// Nothing gets through any more, either way.
    pub(crate) half_open: bool,
    /// The gateway does not read.
    pub(crate) paused: bool,
    /// The gateway closes it once its queue is out, or at this time.
    pub(crate) closing_at: Option<u64>,
    /// Queued in the gateway.
    pub(crate) queue: Vec<u8>,
    /// In the kernels, and not yet read by the device.
    pub(crate) kernel: usize,
    /// What the device has not understood yet.
    pub(crate) input: Vec<u8>,
    pub(crate) upgraded: bool,
    pub(crate) opened_at: u64,
    /// The round of its shard in which it was read last.
    pub(crate) read_in: u64,
    /// Answers to requests that were charged to its session's rate.
    pub(crate) answers: u64,
    pub(crate) seen: Seen,
}

/// What the oracle of streams knows of a connection.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Everything up to this number came, or was there before.
    pub(crate) position: Option<u64>,
    /// The last mark.
    pub(crate) mark: u64,
    /// Events that came beside the stream, of large chats.
    pub(crate) live: BTreeSet<(parley_protocol::ChatId, u64)>,
    /// By chat: the own states that came, as the number of the newest entry that each can stand for.
    pub(crate) owns: BTreeMap<parley_protocol::ChatId, u64>,
}

/// A link between a shard and a writer.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) gateway: u32,
    pub(crate) shard: u16,
    pub(crate) writer: u32,
    pub(crate) up: Pipe,
    pub(crate) down: Pipe,
    /// What the writer has not understood yet.
    pub(crate) input: Vec<u8>,
    pub(crate) shard_has_it: bool,
    pub(crate) writer_has_it: bool,
    /// The number of the last request.
    pub(crate) last_no: u64,
    /// Requests without an answer, by number.
    pub(crate) asked: BTreeMap<u64, LinkAsked>,
}

/// What the oracles want to know of a request on a link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkAsked {
    /// The epoch under which it was asked.
    pub(crate) epoch: u64,
    /// The partition, of an `Open`.
    pub(crate) opens: Option<u16>,
}

/// Every oracle, by the name that a violation carries. A name that is not listed here cannot be told.
pub const ORACLES: [&str; 45] = [
    "a backlog is sent",
    "a barrier stands when it is answered",
    "a home loads behind its barrier",
    "a mark covers what came before it",
    "a retry gets the first answer",
    "a stream begins with its mark",
    "a stream has no doubles",
    "a stream has no holes",
    "acknowledged is durable",
    "an entry stands behind its event",
    "clients are served",
    "comes to rest",
    "cores do not panic",
    "epochs",
    "every chat converges on every device",
    "frames are understood",
    "history inside an interval is served",
    "inboxes are dense",
    "links are understood",
    "marks",
    "marks are below the head",
    "marks never fall",
    "message_id rises",
    "nobody asked for it",
    "nobody receives what they may not",
    "numbered once",
    "once in an inbox",
    "one answer",
    "one user",
    "one writer acts",
    "ordinal is dense",
    "own state converges on every device",
    "queues are bounded",
    "read marks are stored",
    "refused is refused",
    "requests are resent in order",
    "sent is counted",
    "seq is dense",
    "sessions keep to their rate",
    "targets",
    "the log decides",
    "the store is what the log says",
    "unread is right",
    "what is received is what is stored",
    "what was dropped is owed",
];

/// What was violated, when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which oracle saw it.
    pub oracle: String,
    /// What it saw.
    pub what: String,
    /// How many events had happened.
    pub tick: u64,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// People act, things break.
    Storm,
    /// Nothing breaks any more; everything comes to rest.
    Calm,
    /// Every device looks at its chats once more.
    Refresh,
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) now: u64,
    pub(crate) tick: u64,
    pub(crate) phase: Phase,
    due: BinaryHeap<Reverse<(u64, u64, Event)>>,
    order: Rng,
    pub(crate) net: Rng,
    pub(crate) people: Rng,
    pub(crate) faults: Rng,
    pub(crate) trace: Trace,
    pub(crate) truth: Truth,
    pub(crate) violation: Option<Violation>,
    pub(crate) overflows: Overflows,

    pub(crate) disk: Disk,
    /// The cluster; nobody uses it where the store is local.
    pub(crate) shared: Shared,
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) writers: Vec<WriterProcess>,
    pub(crate) conns: Vec<Conn>,
    pub(crate) links: Vec<Link>,
    pub(crate) devices: Vec<Device>,
    /// By name.
    pub(crate) users: Vec<Option<UserId>>,
    pub(crate) next_msg: u128,
    /// The writer dies at this point of its next commit.
    pub(crate) crash_at: Option<Fault>,
    /// Queues between shards take no fan-out until then.
    pub(crate) mesh_full_until: u64,
    /// Counts how often shards looked at their connections.
    pub(crate) round: u64,
    /// Lent out for a turn.
    pub(crate) out: Out,
    pub(crate) applying: Out,
}

impl World {
    pub(crate) fn new(plan: Plan, tells: bool) -> World {
        let seed = plan.seed;
        let users = plan.users as usize;
        let mut world = World {
            now: 0,
            tick: 0,
            phase: Phase::Storm,
            due: BinaryHeap::new(),
            order: Rng::new(seed, 1),
            net: Rng::new(seed, 2),
            people: Rng::new(seed, 3),
            faults: Rng::new(seed, 4),
            trace: Trace::new(tells),
            truth: Truth::new(plan.inbox_fanout_members_max()),
            violation: None,
            overflows: Overflows::default(),
            disk: Disk::default(),
            shared: Shared::new(seed),
            gateways: Vec::new(),
            writers: Vec::new(),
            conns: Vec::new(),
            links: Vec::new(),
            devices: Vec::new(),
            users: vec![None; users],
            next_msg: 1,
            crash_at: None,
            mesh_full_until: 0,
            round: 0,
            out: Out::default(),
            applying: Out::default(),
            plan,
        };
        (0..world.plan.writers()).for_each(|_| _ = world.start_writer());
        world.start_gateway();
        world.first_devices();
        world.at(0, Event::Act);
        world.at(10_000, Event::Strike);
        if world.plan.on_cluster() {
            world.at(0, Event::Late);
        }
        world
    }

    /// Puts an event on the agenda.
    pub(crate) fn at(&mut self, at: u64, event: Event) {
        let at = at.max(self.now);
        let order = self.order.next();
        self.due.push(Reverse((at, order, event)));
    }

    /// A violation; the first one counts.
    pub(crate) fn fail(&mut self, oracle: &str, what: String) {
        assert!(ORACLES.contains(&oracle), "`{oracle}` is not among the oracles");
        let tick = self.tick;
        self.trace.tell(self.now, || format!("VIOLATION of `{oracle}`: {what}"));
        self.violation.get_or_insert_with(|| Violation { oracle: oracle.to_owned(), what, tick });
    }

    pub(crate) fn judge(&mut self, verdict: Verdict) {
        if let Err((oracle, what)) = verdict {
            self.fail(oracle, what);
        }
    }

    pub(crate) fn ensure(&mut self, holds: bool, oracle: &str, what: impl FnOnce() -> String) {
        if !holds {
            self.fail(oracle, what());
        }
    }

    /// The clock of a process: milliseconds that never step, and a calendar that may.
    pub(crate) fn unix_ms(&self, offset_ms: i64) -> u64 {
        (EPOCH_MS + self.now / 1_000).saturating_add_signed(offset_ms)
    }

    /// Runs to the end, or to the first violation.
    pub(crate) fn run(&mut self) {
        while self.violation.is_none() && self.tick < self.plan.ticks {
            self.step();
        }
        for phase in [Phase::Calm, Phase::Refresh] {
            if self.violation.is_none() {
                self.trace.tell(self.now, || format!("--- {phase:?}"));
                self.phase = phase;
                self.begin_phase();
                self.come_to_rest();
            }
        }
    }

    fn come_to_rest(&mut self) {
        let (until, ticks) = (self.now + REST_US, self.tick + REST_TICKS);
        let mut looked = None;
        while self.violation.is_none() {
            // Looking at everybody is dear: not after every event.
            if self.tick.is_multiple_of(64) && looked != Some(self.tick) && self.is_at_rest() {
                return self.look_at_the_whole(true);
            }
            looked = Some(self.tick);
            if self.now > until || self.tick > ticks {
                let what = self.what_moves();
                return self.fail("comes to rest", what);
            }
            self.step();
        }
    }

    fn step(&mut self) {
        let Some(Reverse((at, _, event))) = self.due.pop() else {
            return self.fail("comes to rest", "nothing is due".to_owned());
        };
        self.now = at;
        let acted = match event {
            Event::Shard { gateway, shard } => self.shard_turn(gateway, shard),
            Event::Writer { writer } => self.writer_turn(writer),
            Event::Reader { writer } => self.read(writer),
            Event::Up { conn } => self.arrived_up(conn),
            Event::Down { conn } => self.arrived_down(conn),
            Event::LinkUp { link } => self.arrived_at_writer(link),
            Event::LinkDown { link } => self.arrived_at_shard(link),
            Event::Device { device } => self.device_wakes(device),
            Event::Act => self.act(),
            Event::Strike => self.strike(),
            Event::CutLinks => self.cut_links(),
            Event::StartGateway => self.start_gateway(),
            Event::StartWriter => self.start_writer(),
            Event::EndGateway { gateway } => self.end_gateway(gateway),
            Event::EndWriter { writer } => self.end_writer(writer),
            Event::Statement { flight, step } => self.statement_goes_on(flight, step),
            Event::Straggler { flight, replica } => self.straggler_arrives(flight, replica),
            Event::Lease { ask } => self.lease_goes_on(ask),
            Event::Late => self.late_arrives(),
            Event::ReplicaUp { replica } => self.replica_is_up(replica),
            Event::Reading { writer, read } => self.reading_goes_on(writer, read),
        };
        if !acted {
            return;
        }
        self.tick += 1;
        self.trace.note(at);
        self.trace.note(event.word());
        self.look_at_groups();
        if self.tick.is_multiple_of(WHOLE_EVERY) {
            self.look_at_the_whole(false);
        }
    }

    /// The oracles of the log, on every group that reached the disk.
    pub(crate) fn look_at_groups(&mut self) {
        for group in std::mem::take(&mut self.disk.written) {
            self.trace.tell(self.now, || tell_group(&group));
            let verdict = self.truth.take(&group, self.now);
            self.judge(verdict);
        }
    }
}

fn tell_group(group: &storage_core::store::Group) -> String {
    let mut text = format!("disk: group {} of writer epoch {}", group.no, group.writer_epoch);
    for append in &group.appends {
        let (first, last) = (append.events.first(), append.events.last());
        let seqs = first.zip(last).map_or((0, 0), |(first, last)| (first.seq, last.seq));
        let entries: Vec<_> = append.entries.iter().map(|entry| (entry.user_id.0, entry.inbox_seq)).collect();
        text += &format!("; {} seq {}..={} entries {entries:?}", short(append.chat_id), seqs.0, seqs.1);
    }
    for write in &group.marks {
        text += &format!("; marks of {} in {}: {:?}", write.user_id, short(write.chat_id), write.row);
        text += &format!(" entry {:?}", write.inbox_seq);
    }
    if !group.opened.is_empty() {
        text += &format!("; opened {:?}", group.opened);
    }
    text
}

/// The last digits of a chat's id, for a reader.
pub(crate) fn short(chat_id: parley_protocol::ChatId) -> String {
    match chat_id.kind() {
        Some(parley_protocol::ChatKind::Direct(low, high)) => {
            format!("direct {}-{}", low.0 % 100_000, high.0 % 100_000)
        }
        _ => format!("group {}", chat_id.0 % 100_000_000),
    }
}

impl Event {
    fn word(self) -> u64 {
        let (kind, number) = match self {
            Event::Shard { gateway, shard } => (1, u64::from(gateway) << 16 | u64::from(shard)),
            Event::Writer { writer } => (2, u64::from(writer)),
            Event::Reader { writer } => (3, u64::from(writer)),
            Event::Up { conn } => (4, u64::from(conn)),
            Event::Down { conn } => (5, u64::from(conn)),
            Event::LinkUp { link } => (6, u64::from(link)),
            Event::LinkDown { link } => (7, u64::from(link)),
            Event::Device { device } => (8, u64::from(device)),
            Event::Act => (9, 0),
            Event::Strike => (10, 0),
            Event::CutLinks => (15, 0),
            Event::StartGateway => (11, 0),
            Event::StartWriter => (12, 0),
            Event::EndGateway { gateway } => (13, u64::from(gateway)),
            Event::EndWriter { writer } => (14, u64::from(writer)),
            Event::Statement { flight, .. } => (16, flight),
            Event::Straggler { flight, .. } => (21, flight),
            Event::Lease { ask } => (17, ask),
            Event::Late => (18, 0),
            Event::ReplicaUp { replica } => (19, u64::from(replica)),
            Event::Reading { read, .. } => (20, read),
        };
        kind << 48 | number
    }
}
