//! A storage-writer without its sockets: the brain, the planner and the driver of the cluster, as the writer thread has
//! them, and chats in which people talk as fast as a window lets them. The lease is left out: the keyspace is this
//! run's own.

use super::mix::Request as Noted;
use crate::net::Stop;
use parley_protocol::link::{Action as Act, Ask, Command, LinkHello, Reply, Request, ToGateway};
use parley_protocol::partition::split_mix_64;
use parley_protocol::{Body, ChatId, ClientMsgId, MessageBody, PARTITIONS, UserId, limits};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use storage_core::cql::engine::{Engine, EngineOptions, EngineStatus};
use storage_core::cql::rows::StatementResult;
use storage_core::store::{OpId, StoreResult};
use storage_core::{Action, Now, Options, Writer};
use storage_writer::store::scylla::{ClusterMetrics, ClusterOptions, Executor, Timed};

/// Groups of commands that the planner works on at a time, as `parley storage-writer` has it on a cluster.
const COMMITS_MAX: usize = 8;
/// Set-up requests that are asked for at a time.
const ASKS_AT_ONCE: usize = 500;
/// A cluster that says nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// The lease's epoch.
const EPOCH: u64 = 1;

/// Who talks.
#[derive(Clone, Copy, Debug)]
pub(super) struct People {
    pub(super) pairs: usize,
    pub(super) groups: usize,
    pub(super) members: usize,
    pub(super) payload_bytes: usize,
}

#[derive(Default)]
struct Woken {
    flag: Mutex<bool>,
    bell: Condvar,
}

/// What a round did.
pub(super) struct Round {
    pub(super) messages: u64,
    pub(super) took: Duration,
    pub(super) requests: Vec<Noted>,
    /// Statements under way, on average over time.
    pub(super) in_flight: f64,
    pub(super) limit: usize,
}

/// A writer on a cluster.
pub(super) struct Rig {
    writer: Writer,
    engine: Engine,
    executor: Executor,
    woken: Arc<Woken>,
    started: Instant,
    stop: Stop,
    people: People,
    home_epoch: u64,
    request_no: u64,
    /// Each with someone who may write in it; groups stand behind direct chats.
    chats: Vec<(ChatId, UserId)>,
    users: Vec<UserId>,
    created: Vec<(ChatId, UserId)>,
    answers: u64,
    /// Not `Durable`, in words.
    refused: Option<String>,
    noted: Option<Vec<Noted>>,
    results: Vec<Timed<StatementResult>>,
    done: Vec<(OpId, StoreResult)>,
}

impl Rig {
    /// Connects, logs everybody in, makes the groups, and has something said in every chat.
    pub(super) fn new(cluster: &ClusterOptions, people: People, stop: Stop) -> Result<Self, String> {
        let woken = Arc::new(Woken::default());
        let rung = woken.clone();
        let waker = Arc::new(move || {
            *rung.flag.lock().expect("no holder panics") = true;
            rung.bell.notify_one();
        });
        let metrics = Arc::new(ClusterMetrics::default());
        let executor = Executor::connect(cluster, metrics, waker).map_err(|error| error.to_string())?;
        let mut options = EngineOptions::default();
        options.limit.max = options.limit.max.min(cluster.in_flight_max);
        let mut rig = Self {
            writer: Writer::new(Options { commits_in_flight_max: COMMITS_MAX, ..Options::default() }),
            engine: Engine::new(options, EPOCH, 1),
            executor,
            woken,
            started: Instant::now(),
            stop,
            people,
            home_epoch: 0,
            request_no: 0,
            chats: Vec::new(),
            users: Vec::new(),
            created: Vec::new(),
            answers: 0,
            refused: None,
            noted: None,
            results: Vec::new(),
            done: Vec::new(),
        };
        rig.engine.set_lease(Some(u64::MAX));
        rig.until(|rig| rig.writer.status().ready)?;
        let hello = LinkHello { version: limits::LINK_VERSION, gateway: 1, shard: 0, shards: 1, home_epoch: 0 };
        rig.writer.handle_hello(rig.now(), 1, hello);
        rig.until(|rig| rig.home_epoch > 0)?;
        rig.ask_all((0..PARTITIONS).map(|partition| Ask::Open { partition }).collect())?;
        rig.gather()?;
        Ok(rig)
    }

    fn gather(&mut self) -> Result<(), String> {
        let People { pairs, groups, members, .. } = self.people;
        let login =
            |user: usize| Ask::Login { issuer: "perf".to_owned(), subject: user.to_string(), name: String::new() };
        self.ask_all((0..2 * pairs + groups * members).map(login).collect())?;
        let (paired, grouped) = self.users.split_at(2 * pairs);
        for pair in paired.chunks_exact(2) {
            self.chats.push((ChatId::direct(pair[0], pair[1]).expect("two users"), pair[0]));
        }
        let creations = grouped.chunks_exact(members.max(1)).take(groups).enumerate().map(|(number, members)| {
            let action = Act::Create { title: format!("group {number}"), members: members[1..].to_vec() };
            let client_msg_id = ClientMsgId(u128::from(u64::MAX) << 64 | number as u128);
            Ask::Command(Command { chat_id: None, sender: members[0], client_msg_id, action })
        });
        self.ask_all(creations.collect())?;
        let mut created = std::mem::take(&mut self.created);
        self.chats.append(&mut created);
        let first = (0..self.chats.len()).map(|chat| self.message(chat, chat as u64)).collect();
        self.ask_all(first)
    }

    pub(super) fn status(&self) -> EngineStatus {
        self.engine.status()
    }

    fn mono_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono_ms: self.mono_ms(), unix_ms: unix.as_millis() as u64 }
    }

    /// A message in a chat.
    fn message(&self, chat: usize, number: u64) -> Ask {
        let (chat_id, sender) = self.chats[chat];
        let payload = vec![b'x'; self.people.payload_bytes];
        let body = MessageBody { content_type: "text/plain".to_owned(), payload, ..MessageBody::default() };
        let action = Act::Send(Body::Message(body).to_envelope());
        // As random as a client's.
        let client_msg_id = ClientMsgId(u128::from(split_mix_64(number)) << 64 | u128::from(number));
        Ask::Command(Command { chat_id: Some(chat_id), sender, client_msg_id, action })
    }

    fn request(&mut self, ask: Ask) {
        self.request_no += 1;
        let request = Request { no: self.request_no, home_epoch: self.home_epoch, ask };
        self.writer.handle_request(self.now(), 1, request);
    }

    fn ask_all(&mut self, asks: Vec<Ask>) -> Result<(), String> {
        let mut asks = asks.into_iter().peekable();
        while asks.peek().is_some() {
            let answered = self.answers;
            let mut asked = 0;
            for ask in asks.by_ref().take(ASKS_AT_ONCE) {
                self.request(ask);
                asked += 1;
            }
            self.until(|rig| rig.answers - answered == asked)?;
        }
        Ok(())
    }

    /// `count` messages in one direct chat, all in one turn, until all are durable.
    pub(super) fn at_once(&mut self, chat: usize, count: usize) -> Result<(), String> {
        let first = self.request_no;
        let chat = chat % self.people.pairs;
        self.ask_all((0..count as u64).map(|nth| self.message(chat, first + nth + (1 << 40))).collect())
    }

    /// Everybody talks, with `window` messages without an answer, for so long; then all are waited for.
    pub(super) fn round(&mut self, lasts: Duration, window: u64) -> Result<Round, String> {
        let (answered, mut asked) = (self.answers, 0);
        self.noted = Some(Vec::with_capacity(1 << 18));
        let begun = Instant::now();
        let (mut looked, mut busy) = (begun, 0.0);
        loop {
            let now = Instant::now();
            if now < begun + lasts && !self.stop.load(Ordering::Relaxed) {
                while asked - (self.answers - answered) < window {
                    let number = self.request_no + (1 << 41);
                    let chat = split_mix_64(number) as usize % self.chats.len();
                    let ask = self.message(chat, number);
                    self.request(ask);
                    asked += 1;
                }
            } else if self.answers - answered == asked {
                break;
            }
            let in_flight = self.engine.status().in_flight;
            let moved = self.turn()?;
            if !moved {
                self.wait()?;
            }
            let now = Instant::now();
            busy += in_flight as f64 * (now - looked).as_secs_f64();
            looked = now;
        }
        let took = begun.elapsed();
        let requests = self.noted.take().unwrap_or_default();
        let in_flight = busy / took.as_secs_f64();
        Ok(Round { messages: asked, took, requests, in_flight, limit: self.engine.status().limit })
    }

    fn until(&mut self, over: impl Fn(&Self) -> bool) -> Result<(), String> {
        while !over(self) {
            if !self.turn()? && !over(self) {
                self.wait()?;
            }
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<(), String> {
        let flag = self.woken.flag.lock().expect("no holder panics");
        let now_ms = self.mono_ms();
        let timer = [self.engine.next_timer(), self.writer.next_timer()].into_iter().flatten().min();
        let timer = timer.map(|at| Duration::from_millis(at.saturating_sub(now_ms) + 1));
        let patience = timer.unwrap_or(PATIENCE).min(PATIENCE);
        let (mut flag, late) =
            self.woken.bell.wait_timeout_while(flag, patience, |rung| !*rung).expect("no holder panics");
        *flag = false;
        if late.timed_out() && patience == PATIENCE {
            return Err(format!("the cluster says nothing any more: {:?}", self.engine.status()));
        }
        Ok(())
    }

    /// As the writer thread's turn; whether anything happened.
    fn turn(&mut self) -> Result<bool, String> {
        let now = self.now();
        let mut moved = false;
        let mut results = std::mem::take(&mut self.results);
        self.executor.results(&mut results);
        for (id, result, _) in results.drain(..) {
            moved = true;
            self.engine.handle_result(now.mono_ms, id, result);
        }
        self.results = results;
        self.engine.handle_timer(now.mono_ms);
        if self.writer.next_timer().is_some_and(|at| at <= now.mono_ms) {
            self.writer.handle_timer(now);
        }
        self.engine.completions(&mut self.done);
        let mut done = std::mem::take(&mut self.done);
        for (op, result) in done.drain(..) {
            moved = true;
            self.writer.handle_completion(now, op, result);
        }
        self.done = done;
        self.writer.flush(now);
        while let Some(action) = self.writer.poll_action() {
            moved = true;
            match action {
                Action::Store(op, request) => self.engine.submit(now.mono_ms, op, request),
                Action::Send { record, .. } => self.take(record),
                other => return Err(format!("the writer asks for {other:?}")),
            }
        }
        while self.executor.room() > 0
            && let Some((id, statement)) = self.engine.poll_statement(now.mono_ms)
        {
            if let Some(noted) = &mut self.noted {
                noted.push(Noted::of(&statement));
            }
            self.executor.execute(id, statement);
        }
        match self.refused.take() {
            Some(refused) => Err(refused),
            None => Ok(moved),
        }
    }

    fn take(&mut self, record: ToGateway) {
        match record {
            ToGateway::Welcome(welcome) => self.home_epoch = welcome.home_epoch,
            ToGateway::Status { .. } => {}
            ToGateway::Answer(answer) => {
                self.answers += 1;
                match answer.reply {
                    Reply::LoggedIn(user) => self.users.push(user.user_id),
                    Reply::Opened => {}
                    // A creation is the only command with members that come in.
                    Reply::Durable(committed) if self.chats.len() < self.people.pairs + self.people.groups => {
                        self.created.extend(committed.first().map(|first| (first.event.chat_id, first.event.sender)));
                    }
                    Reply::Durable(committed) => drop(std::hint::black_box(committed)),
                    other => self.refused = Some(format!("the writer answers {other:?}")),
                }
            }
            other => self.refused = Some(format!("the writer says {other:?}")),
        }
    }
}
