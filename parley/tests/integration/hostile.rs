//! The table of hostile input: what a row is, and what holds during each. A row is repeated by several clients at once;
//! each gets exactly its close code, status or error, the metrics count exactly these refusals under exactly this
//! reason, two other clients talk meanwhile and afterwards, and neither server grows beyond a bound or panics.
//! The rows are next door, by theme.

use crate::common::device::{direct, text_of};
use crate::common::raw::{Raw, frame, message};
use crate::common::{Device, JSON, Process, RKYV, Server, Settings, Target, http, poll};
use parley_protocol::wire::{self, Encoding};
use parley_protocol::{ClientFrame, ErrorCode, ServerFrame};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// What one server may grow by while a row is repeated, at its peak: room for what the allocator keeps, and far below
/// what the attackers send or announce.
const GROWTH_KIB_MAX: u64 = 16 << 10;
/// The same for a flood, of which some gigabytes may come: all receive buffers of a shard, what one session may send
/// ahead, and the queues of both.
pub(crate) const FLOOD_GROWTH_KIB_MAX: u64 = 40 << 10;
/// Rounds of a row, and clients in each round.
const ROUNDS: usize = 4;
const WIDTH: usize = 8;

/// The user behind every attacker that has a session.
pub(crate) const MALLORY: &str = "mallory";
/// What counts refusals.
const REJECTED: &str = "parley_gateway_rejected_total";
/// What counts the tokens and tickets among them.
pub(crate) const TOKENS: &str = "parley_gateway_tokens_refused_total";
pub(crate) const TICKETS: &str = "parley_gateway_tickets_refused_total";

/// How far the attacker comes before it attacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    Connected,
    Upgraded(Encoding),
    Seated(Encoding),
}

/// What the attacker gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// An HTTP status, and the end of the connection unless it is 101.
    Status(u16),
    /// A close code, and the end of the connection.
    Close(u16),
    /// So many errors which are all the same but for what they answer; the session goes on.
    Errors(ErrorCode, usize),
}

/// One kind of attack.
pub(crate) struct Row<'a> {
    pub(crate) name: String,
    pub(crate) opening: Opening,
    pub(crate) attack: Box<dyn Fn(&mut Raw) + Sync + 'a>,
    pub(crate) answer: Answer,
    /// The reason under which it is counted, once for each close or status and once for each error.
    pub(crate) reason: Option<&'static str>,
    /// A family of its own that counts it too, and the reason there.
    pub(crate) also: Option<(&'static str, &'static str)>,
    /// Honest messages are stored for it: what the storage-writer keeps of those in memory is not the attack's.
    pub(crate) stores: bool,
    pub(crate) growth_kib_max: u64,
    pub(crate) rounds: usize,
    pub(crate) width: usize,
}

impl<'a> Row<'a> {
    pub(crate) fn new(
        name: impl Into<String>,
        opening: Opening,
        attack: impl Fn(&mut Raw) + Sync + 'a,
        answer: Answer,
        reason: &'static str,
    ) -> Self {
        Self {
            name: name.into(),
            opening,
            attack: Box::new(attack),
            answer,
            reason: Some(reason),
            also: None,
            stores: false,
            growth_kib_max: GROWTH_KIB_MAX,
            rounds: ROUNDS,
            width: WIDTH,
        }
    }

    /// For what takes its time: every client once, all at once.
    pub(crate) fn once(self) -> Self {
        Self { rounds: 1, ..self }
    }

    /// For floods: one client at a time.
    pub(crate) fn alone(self) -> Self {
        Self { rounds: 2, width: 1, growth_kib_max: FLOOD_GROWTH_KIB_MAX, ..self }
    }

    pub(crate) fn also(self, family: &'static str, reason: &'static str) -> Self {
        Self { also: Some((family, reason)), ..self }
    }

    pub(crate) fn stores(self) -> Self {
        Self { stores: true, ..self }
    }

    /// For what is answered as it should be, and is no refusal.
    pub(crate) fn not_counted(self) -> Self {
        Self { reason: None, ..self }
    }
}

/// The attacked server and two clients who talk.
pub(crate) struct Table {
    pub(crate) server: Server,
    pub(crate) alice: Device,
    pub(crate) bob: Device,
    said: u64,
}

/// Counters by family and reason, summed over the shards; those that are 0 are left out.
type Counts = BTreeMap<(String, String), u64>;

fn refusals(admin: SocketAddr) -> Counts {
    let (status, text) = http::get(admin, "/metrics");
    assert_eq!(status, 200, "{text}");
    let mut counts = Counts::new();
    for sample in http::parse_metrics(&text).unwrap_or_else(|why| panic!("/metrics does not parse: {why}")) {
        let reason = sample.labels.split(',').find_map(|label| label.strip_prefix("reason=\"")?.strip_suffix('"'));
        if let Some(reason) = reason
            && sample.value > 0.0
        {
            *counts.entry((sample.name.clone(), reason.to_owned())).or_default() += sample.value as u64;
        }
    }
    counts
}

/// How often this reason was one.
pub(crate) fn rejected(admin: SocketAddr, reason: &str) -> u64 {
    refusals(admin).get(&(REJECTED.to_owned(), reason.to_owned())).copied().unwrap_or(0)
}

fn rise(before: &Counts, after: &Counts) -> Counts {
    let risen = |(key, value): (&(String, String), &u64)| {
        let rise = value - before.get(key).copied().unwrap_or(0);
        (rise > 0).then(|| (key.clone(), rise))
    };
    after.iter().filter_map(risen).collect()
}

/// Resident memory of a process, now and at its peak since `forget_peak`, KiB.
struct Memory {
    resident: u64,
    peak: u64,
}

fn memory(pid: u32) -> Memory {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let value = |name: &str| {
        let line =
            text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name} is not there"));
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of KiB")
    };
    Memory { resident: value("VmRSS:"), peak: value("VmHWM:") }
}

/// A process whose memory is watched.
pub(crate) struct Watch {
    name: &'static str,
    pid: u32,
    from: u64,
}

impl Watch {
    /// The peak counts from now on (proc(5), `clear_refs`), or above what it was, where the kernel cannot forget it.
    pub(crate) fn new(name: &'static str, process: &Process) -> Self {
        let pid = process.pid();
        let forgot = std::fs::write(format!("/proc/{pid}/clear_refs"), "5").is_ok();
        let Memory { resident, peak } = memory(pid);
        Self { name, pid, from: if forgot { resident } else { peak } }
    }

    /// By how much the process grew, at its peak.
    pub(crate) fn check(&self, during: &str, growth_kib_max: u64) {
        let growth = memory(self.pid).peak.saturating_sub(self.from);
        assert!(growth <= growth_kib_max, "{during}: the {} grew by {growth} KiB", self.name);
    }
}

impl Table {
    pub(crate) fn new(settings: Settings) -> Self {
        let mut table = Self::cold(settings);
        table.warm_up();
        table
    }

    /// For what is not about memory.
    pub(crate) fn cold(settings: Settings) -> Self {
        Self::with(Server::apart_with(settings.gateway("session.devices_max", 64)))
    }

    pub(crate) fn with(server: Server) -> Self {
        let (alice, bob) = (server.device("alice", JSON), server.device("bob", RKYV));
        Self { server, alice, bob, said: 0 }
    }

    /// What the first busy clients make a server allocate for good is nobody's attack: the receive buffers that all
    /// connections of a shard share are touched once, by pongs that nobody asked for and that mean nothing.
    pub(crate) fn warm_up(&mut self) {
        const PONGS: usize = 16 << 10;
        let target = self.server.target();
        std::thread::scope(|scope| {
            for encoding in [JSON, RKYV].into_iter().cycle().take(2 * WIDTH) {
                let target = &target;
                scope.spawn(move || {
                    let mut raw = open(target, Opening::Seated(encoding));
                    raw.send(&frame(0x8a, &[b'p'; 125]).repeat(PONGS));
                    raw.send(&frame(0x88, &1000_u16.to_be_bytes()));
                    assert_eq!(raw.close_code(), 1000);
                });
            }
            self.talk();
        });
    }

    /// A message there and a message back.
    pub(crate) fn talk(&mut self) {
        let chat = direct(&self.alice, &self.bob);
        let (mut from, mut to) = (&mut self.alice, &mut self.bob);
        for _ in 0..2 {
            self.said += 1;
            let text = format!("undisturbed {}", self.said);
            let sent = from.post(chat, &text);
            assert_eq!(text_of(&to.wait_event(chat, sent.seq)), text);
            std::mem::swap(&mut from, &mut to);
        }
    }

    /// Repeats every row and checks what must hold.
    pub(crate) fn run(&mut self, rows: &[Row<'_>]) {
        let names: std::collections::BTreeSet<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names.len(), rows.len(), "a row's name says which one it is");
        for row in rows {
            self.run_row(row);
        }
    }

    fn run_row(&mut self, row: &Row<'_>) {
        let target = self.server.target();
        let admin = self.server.admin.addr;
        let mut watches = vec![Watch::new("gateway", self.server.gateway())];
        if !row.stores {
            watches.push(Watch::new("storage-writer", self.server.writer()));
        }
        let before = refusals(admin);
        for _ in 0..row.rounds {
            std::thread::scope(|scope| {
                for _ in 0..row.width {
                    scope.spawn(|| {
                        let mut raw = open(&target, row.opening);
                        (row.attack)(&mut raw);
                        row.check(&mut raw);
                    });
                }
                self.talk();
            });
        }
        self.talk();
        let times = (row.rounds * row.width) as u64;
        let each = if let Answer::Errors(_, each) = row.answer { each as u64 } else { 1 };
        let key = |family: &str, reason: &str| (family.to_owned(), reason.to_owned());
        let mut expected = Counts::new();
        expected.extend(row.reason.map(|reason| (key(REJECTED, reason), times * each)));
        expected.extend(row.also.map(|(family, reason)| (key(family, reason), times)));
        // The counters are shown at the end of a shard's turn, a moment after the answer left.
        poll(&format!("{expected:?} of {:?}", row.name), || {
            let risen = rise(&before, &refusals(admin));
            let unexpected =
                |(key, count): (&(String, String), &u64)| expected.get(key).is_none_or(|most| count > most);
            assert!(!risen.iter().any(unexpected), "{}: {risen:?} instead of {expected:?}", row.name);
            risen == expected
        });
        watches.iter().for_each(|watch| watch.check(&row.name, row.growth_kib_max));
        assert!(self.server.gateway().is_running(), "{}: {}", row.name, self.server.gateway().log());
        assert!(self.server.writer().is_running(), "{}: {}", row.name, self.server.writer().log());
    }

    /// Nothing panicked, and both servers end as they should.
    pub(crate) fn ends_well(mut self) {
        self.talk();
        let ends = |process: &mut Process| {
            let status = process.terminate();
            assert!(status.success(), "{status}: {}", process.log());
            assert!(!process.log().contains("panicked"), "{}", process.log());
        };
        ends(self.server.gateway());
        ends(self.server.writer());
    }
}

/// A `hello` of mallory, on a device of its own.
pub(crate) fn hello(target: &Target) -> ClientFrame {
    let device = Device::new(target, MALLORY, JSON);
    ClientFrame::Hello(device.hello(Some(target.token(MALLORY, 3_600, false)), None))
}

pub(crate) fn decoded(encoding: Encoding, payload: &[u8]) -> ServerFrame {
    wire::decode_server_frame(encoding, payload).expect("a server's frame")
}

/// A connection that came as far as the row wants.
pub(crate) fn open(target: &Target, opening: Opening) -> Raw {
    match opening {
        Opening::Connected => Raw::connect(target.addr),
        Opening::Upgraded(encoding) => Raw::upgraded(target.addr, encoding),
        Opening::Seated(encoding) => {
            let mut raw = Raw::upgraded(target.addr, encoding);
            raw.send(&message(encoding, &hello(target)));
            let welcome = raw.receive().expect("welcome");
            assert!(matches!(decoded(encoding, &welcome.payload), ServerFrame::Welcome(_)), "{welcome:?}");
            raw
        }
    }
}

impl Row<'_> {
    fn check(&self, raw: &mut Raw) {
        match self.answer {
            Answer::Status(status) => {
                let (got, text) = raw.http_answer();
                assert_eq!(got, status, "{}: {text}", self.name);
                assert!(status == 101 || raw.is_ended());
            }
            Answer::Close(code) => {
                assert_eq!(raw.close_code(), code, "{}", self.name);
                assert!(raw.is_ended());
            }
            Answer::Errors(code, count) => self.check_errors(raw, code, count),
        }
    }

    fn check_errors(&self, raw: &mut Raw, code: ErrorCode, count: usize) {
        let (Opening::Seated(encoding) | Opening::Upgraded(encoding)) = self.opening else {
            panic!("{}: errors are for sessions", self.name)
        };
        let mut looks = Vec::new();
        while looks.len() < count {
            let received = raw.receive().unwrap_or_else(|| panic!("{}: closed after {looks:?}", self.name));
            assert_eq!(received.close_code(), None, "{}: after {looks:?}", self.name);
            if received.opcode > 2 {
                continue;
            }
            match decoded(encoding, &received.payload) {
                ServerFrame::Error(error) => looks.push((error.code, error.message, error.retry_after_ms)),
                ServerFrame::Mark(_) | ServerFrame::Truncated(_) => {}
                other => panic!("{}: {other:?}", self.name),
            }
        }
        assert!(looks.iter().all(|look| look.0 == code && *look == looks[0]), "{}: {looks:?}", self.name);
    }
}
