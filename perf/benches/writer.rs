//! The commit path of the storage-writer without sockets: requests into the brain, one group, the embedded engine's
//! batch and sync, the high-water record, answers out. Direct messages of 128 bytes, uniform over 5,000 pairs.
//!
//! Beside it the same on the planner of the cluster tier, over a cluster that answers at once and keeps nothing: what the
//! writer thread costs there.
//!
//! `cargo bench -p perf --bench writer` first prints messages a second and CPU a message (all threads of the store, its
//! merges included) of runs of some seconds each, then criterion's times a group. `-- sustained 100` runs only the
//! former, and only for that group; `-- planner 100` the same over no cluster.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use parley_protocol::link::{Action as Act, Ask, Command, LinkHello, Reply, Request, ToGateway};
use parley_protocol::{Body, ChatId, ClientMsgId, MessageBody, PARTITIONS, UserId, limits};
use rustix::time::{ClockId, clock_gettime};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use storage_core::cql::engine::{Engine, EngineOptions};
use storage_core::store::{OpId, Store, StoreRequest, StoreResult};
use storage_core::{Action, Now, Options, Writer};
use storage_writer::metrics::StoreMetrics;
use storage_writer::store::embedded::{EmbeddedOptions, EmbeddedStore};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PAIRS: usize = 5_000;
const GROUPS: [usize; 4] = [1, 10, 100, 1_000];
const PAYLOAD_BYTES: usize = 128;
/// As `parley storage-writer` has it on a cluster.
const PLANNER_COMMITS_MAX: usize = 8;
const RUN: Duration = Duration::from_secs(5);

/// The planner of the cluster tier, over a cluster that answers at once, and nothing to every question.
struct NoCluster {
    engine: Engine,
    started: Instant,
}

impl NoCluster {
    fn new() -> Self {
        let mut engine = Engine::new(EngineOptions::default(), 1, 1);
        engine.set_lease(Some(u64::MAX));
        Self { engine, started: Instant::now() }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

impl Store for NoCluster {
    fn submit(&mut self, op: OpId, request: StoreRequest) {
        self.engine.submit(self.now_ms(), op, request);
    }

    fn completions(&mut self, done: &mut Vec<(OpId, StoreResult)>) {
        let now_ms = self.now_ms();
        while let Some((id, statement)) = self.engine.poll_statement(now_ms) {
            black_box(statement);
            self.engine.handle_result(now_ms, id, Ok(Vec::new()));
        }
        self.engine.handle_timer(now_ms);
        self.engine.completions(done);
    }
}

/// A writer over a store.
struct Rig {
    writer: Writer,
    store: Box<dyn Store>,
    woken: Receiver<()>,
    started: Instant,
    home_epoch: u64,
    request_no: u64,
    chats: Vec<(ChatId, UserId)>,
    logged_in: Vec<UserId>,
    answers: usize,
    done: Vec<(OpId, StoreResult)>,
    _dir: Option<tempfile::TempDir>,
}

impl Rig {
    /// On a store in a directory of its own.
    fn embedded() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (wake, woken) = channel();
        let waker = Arc::new(move || wake.send(()).unwrap_or(()));
        let metrics = Arc::new(StoreMetrics::default());
        let store = EmbeddedStore::open(dir.path(), &EmbeddedOptions::default(), metrics, waker).expect("a store");
        Self::new(Box::new(store), woken, Some(dir), Options::default())
    }

    /// On the planner alone.
    fn planner() -> Self {
        let options = Options { commits_in_flight_max: PLANNER_COMMITS_MAX, ..Options::default() };
        Self::new(Box::new(NoCluster::new()), channel().1, None, options)
    }

    fn new(store: Box<dyn Store>, woken: Receiver<()>, dir: Option<tempfile::TempDir>, options: Options) -> Self {
        let mut rig = Self {
            writer: Writer::new(options),
            store,
            woken,
            started: Instant::now(),
            home_epoch: 0,
            request_no: 0,
            chats: Vec::new(),
            logged_in: Vec::new(),
            answers: 0,
            done: Vec::new(),
            _dir: dir,
        };
        rig.until(|rig| rig.writer.status().ready);
        let hello = LinkHello { version: limits::LINK_VERSION, gateway: 1, shard: 0, shards: 1, home_epoch: 0 };
        rig.writer.handle_hello(rig.now(), 1, hello);
        rig.until(|rig| rig.home_epoch > 0);
        rig.ask_all((0..PARTITIONS).map(|partition| Ask::Open { partition }));
        rig.ask_all((0..2 * PAIRS).map(|user| Ask::Login {
            issuer: "bench".to_owned(),
            subject: user.to_string(),
            name: String::new(),
        }));
        let pairs = rig.logged_in.chunks_exact(2);
        rig.chats = pairs.map(|pair| (ChatId::direct(pair[0], pair[1]).expect("two users"), pair[0])).collect();
        assert_eq!(rig.chats.len(), PAIRS);
        // Every chat has its members, so that the groups hold messages and nothing else.
        for _ in 0..PAIRS / 500 {
            rig.messages(500);
        }
        rig
    }

    fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
        Now { mono_ms: self.started.elapsed().as_millis() as u64, unix_ms: unix.as_millis() as u64 }
    }

    fn request(&mut self, ask: Ask) {
        self.request_no += 1;
        let request = Request { no: self.request_no, home_epoch: self.home_epoch, ask };
        self.writer.handle_request(self.now(), 1, request);
    }

    fn ask_all(&mut self, asks: impl Iterator<Item = Ask>) {
        let answered = self.answers;
        let mut asked = 0;
        for ask in asks {
            self.request(ask);
            asked += 1;
        }
        self.until(|rig| rig.answers - answered == asked);
    }

    /// As the shell's turn, until `over`.
    fn until(&mut self, over: impl Fn(&Self) -> bool) {
        loop {
            let now = self.now();
            let mut done = std::mem::take(&mut self.done);
            self.store.completions(&mut done);
            let mut moved = !done.is_empty();
            for (op, result) in done.drain(..) {
                self.writer.handle_completion(now, op, result);
            }
            self.done = done;
            self.writer.flush(now);
            while let Some(action) = self.writer.poll_action() {
                moved = true;
                match action {
                    Action::Store(op, request) => self.store.submit(op, request),
                    Action::Send { record, .. } => self.take(record),
                    other => panic!("a bench does not expect {other:?}"),
                }
            }
            if over(self) {
                return;
            }
            if !moved {
                self.woken.recv_timeout(Duration::from_secs(60)).expect("the store answers");
            }
        }
    }

    fn take(&mut self, record: ToGateway) {
        match record {
            ToGateway::Welcome(welcome) => self.home_epoch = welcome.home_epoch,
            ToGateway::Status { .. } => {}
            ToGateway::Answer(answer) => {
                self.answers += 1;
                match answer.reply {
                    Reply::LoggedIn(user) => self.logged_in.push(user.user_id),
                    Reply::Opened => {}
                    Reply::Durable(committed) => drop(black_box(committed)),
                    other => panic!("a bench does not expect {other:?}"),
                }
            }
            other => panic!("a bench does not expect {other:?}"),
        }
    }

    /// One group of direct messages, until all are answered.
    fn messages(&mut self, count: usize) {
        let first = self.request_no as usize;
        let asks = (first..first + count).map(|number| {
            // A stride that is prime to the number of pairs: every chat in turn, never two neighbours.
            let (chat_id, sender) = self.chats[number * 1_619 % PAIRS];
            let payload = vec![b'x'; PAYLOAD_BYTES];
            let body = MessageBody { content_type: "text/plain".to_owned(), payload, ..MessageBody::default() };
            let action = Act::Send(Body::Message(body).to_envelope());
            // As random as a client's.
            let half = parley_protocol::partition::split_mix_64(number as u64);
            let client_msg_id = ClientMsgId(u128::from(half) << 64 | number as u128);
            Ask::Command(Command { chat_id: Some(chat_id), sender, client_msg_id, action })
        });
        let asks = asks.collect::<Vec<_>>();
        self.ask_all(asks.into_iter());
    }
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Sustained rates and CPU, which criterion does not show.
fn sustained(what: &str, make: fn() -> Rig, groups: &[usize]) {
    for &count in groups {
        let mut rig = make();
        let (started, cpu_before, mut messages) = (Instant::now(), cpu(), 0_u64);
        while started.elapsed() < RUN {
            rig.messages(count);
            messages += count as u64;
        }
        let (took, used) = (started.elapsed(), cpu() - cpu_before);
        println!(
            "{what}, groups of {count}: {:.0} messages/s, {:.2} us CPU/message, {:.3} ms/group",
            messages as f64 / took.as_secs_f64(),
            used.as_secs_f64() * 1e6 / messages as f64,
            took.as_secs_f64() * 1e3 * count as f64 / messages as f64,
        );
    }
}

fn groups(c: &mut Criterion) {
    let mut group = c.benchmark_group("writer");
    group.sample_size(20);
    for (name, make) in RIGS {
        for count in GROUPS {
            let mut rig = make();
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(BenchmarkId::new(format!("{name}_direct_messages"), count), |b| {
                b.iter(|| rig.messages(count));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, groups);

/// A word that chooses a rig, and how it is made.
type Named = (&'static str, fn() -> Rig);
const RIGS: [Named; 2] = [("sustained", Rig::embedded), ("planner", Rig::planner)];

fn main() {
    let arguments = std::env::args().collect::<Vec<_>>();
    for (name, make) in RIGS {
        if let Some(at) = arguments.iter().position(|argument| argument == name) {
            let count = arguments.get(at + 1).and_then(|count| count.parse().ok());
            return sustained(name, make, &[count.expect("the size of a group follows")]);
        }
    }
    // `cargo test --benches` runs it too, and wants to see only that it runs.
    if arguments.iter().any(|argument| argument == "--bench") {
        RIGS.iter().for_each(|(name, make)| sustained(name, *make, &GROUPS));
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
