//! The sequencer: one owner of all that is numbered. `handle_*` puts in what happened, `flush` seals the gathered
//! group, `poll_action` gives what to do; after a start, first drain the actions.
//!
//! In memory is the state as of everything numbered, durable or not; nothing that depends on it leaves before it is
//! durable. A request waits until all that it needs is in memory (`jobs`, `loads`), is judged and numbered (`judge`,
//! `marks`, `login`), and its answer leaves with its group (`groups`). Links and epochs are in `links`.
//!
//! ```text
//!            LoadMeta          group 1 durable                 a group failed      all in flight answered
//!  Loading ------------> Probing ----------> Serving ------------------> Draining ----------> Waiting
//!                           ^                                                                    |
//!                           +--------------------------- timer ----------------------------------+
//!  any ---- fenced, broken ----> Halted
//! ```

mod api;
mod cache;
mod channels;
mod groups;
mod invariants;
mod jobs;
mod judge;
mod links;
mod loads;
mod login;
mod marks;
mod roles;

pub use api::{Action, HaltReason, LinkId, Now, Options, Status};
pub(crate) use login::check_identity;

use crate::planted::{self, Bug};
use crate::store::{CommandName, Meta, OpId, StoreRequest, StoreResult};
use cache::{Cache, Chat, Seats, User};
use groups::{Flight, Gathering};
use hashbrown::HashMap;
use jobs::{Job, JobKey, Queue};
use links::Link;
use loads::{LoadKey, Name, Op, Unique};
use parley_idgen::{Generator, Worker};
use parley_protocol::link::{LinkHello, Request, ToGateway};
use parley_protocol::{ChatId, PARTITIONS, UserId};
use slab::Slab;
use std::collections::VecDeque;

/// Where the writer is in its life; the diagram is above.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Loading,
    Probing,
    Serving,
    Draining,
    Waiting { retry_at: u64 },
    Halted,
}

/// The writer's brain.
#[derive(Debug)]
pub struct Writer {
    options: Options,
    now: Now,
    phase: Phase,
    /// Why the phase is not `Serving`.
    reason: Option<String>,
    /// The first group of this run is durable: the writer epoch holds.
    started: bool,
    actions: VecDeque<Action>,
    next_op: OpId,
    ops: HashMap<OpId, Op>,

    ids: Generator,
    /// A mark of the ids that is numbered and not yet durable.
    mark_pending: bool,
    /// Ids are waited for until then, on the clock that never steps.
    ids_at: Option<u64>,
    /// The clock is behind, or ids are used up.
    ids_reason: Option<String>,

    /// As numbered.
    meta: Meta,
    durable_meta: Meta,
    /// The epoch under which each partition was opened, as numbered.
    opened: Vec<u64>,
    chats: Cache<ChatId, Chat>,
    seats: Seats,
    users: Cache<UserId, User>,
    names: HashMap<CommandName, Name>,
    uniques: HashMap<String, Unique>,

    jobs: Slab<Job>,
    queues: HashMap<ChatId, Queue>,
    loads: HashMap<LoadKey, Vec<JobKey>>,
    /// Jobs that can be judged as soon as there is room in a group, or an id.
    stalled: VecDeque<JobKey>,
    /// Every job with its birth, oldest first; the dead leave when they come to the front.
    births: VecDeque<(JobKey, u64)>,
    tick: u64,

    gathering: Gathering,
    flights: VecDeque<Flight>,
    durable_no: u64,
    commands_durable: u64,

    links: HashMap<LinkId, Link>,
    /// What every open link was told last of why no commands are taken; none when they are.
    told: Option<String>,
    /// Hellos that wait for a grant; at most one a link.
    hellos: VecDeque<(LinkId, LinkHello)>,
    scratch: Vec<loads::Need>,
}

impl Writer {
    /// A writer that begins by loading what the store knows of itself. The options must hold [`Options::check`].
    pub fn new(options: Options) -> Writer {
        let worker = Worker::new(options.worker).expect("the options were checked");
        assert_eq!(options.check(), Ok(()), "the options were checked");
        let mut writer = Writer {
            now: Now::default(),
            phase: Phase::Loading,
            reason: Some("the store is being opened".to_owned()),
            started: false,
            actions: VecDeque::new(),
            next_op: 1,
            ops: HashMap::new(),
            ids: Generator::restore(worker, 0),
            mark_pending: false,
            ids_at: None,
            ids_reason: None,
            meta: Meta::default(),
            durable_meta: Meta::default(),
            opened: vec![0; PARTITIONS as usize],
            chats: Cache::new(options.chats_cached_max),
            seats: Cache::new(options.seats_cached_max),
            users: Cache::new(options.users_cached_max),
            names: HashMap::new(),
            uniques: HashMap::new(),
            jobs: Slab::new(),
            queues: HashMap::new(),
            loads: HashMap::new(),
            stalled: VecDeque::new(),
            births: VecDeque::new(),
            tick: 1,
            gathering: Gathering::new(1),
            flights: VecDeque::new(),
            durable_no: 0,
            commands_durable: 0,
            links: HashMap::new(),
            told: None,
            hellos: VecDeque::new(),
            scratch: Vec::new(),
            options,
        };
        writer.store(Op::Meta, StoreRequest::LoadMeta);
        writer
    }

    /// A link opens. Exactly one hello a link, before any request.
    pub fn handle_hello(&mut self, now: Now, link: LinkId, hello: LinkHello) {
        self.enter(now);
        if self.phase != Phase::Halted {
            self.hello(link, hello);
        }
    }

    /// A request came over an open link.
    pub fn handle_request(&mut self, now: Now, link: LinkId, request: Request) {
        self.enter(now);
        if self.phase != Phase::Halted {
            self.request(link, request);
        }
    }

    /// A link is gone: answers to it are dropped, what it asked for is done all the same.
    pub fn handle_link_down(&mut self, link: LinkId) {
        self.links.remove(&link);
        self.hellos.retain(|(waiting, _)| *waiting != link);
    }

    /// The store completed an operation. Unknown operations (of a state that fell) are ignored.
    pub fn handle_completion(&mut self, now: Now, op: OpId, result: StoreResult) {
        self.enter(now);
        if self.phase == Phase::Halted {
            return;
        }
        match (self.ops.remove(&op), result) {
            (None, _) => {}
            (Some(Op::Meta), StoreResult::Meta(meta)) => self.start(meta),
            (Some(Op::Meta), StoreResult::Damaged(what)) => self.halt(HaltReason::Broken(what)),
            (Some(Op::Commit), StoreResult::Committed(outcome)) => self.committed(op, outcome),
            (Some(Op::Meta | Op::Commit), _) => {
                self.halt(HaltReason::Broken("the store answered a commit with something else".to_owned()));
            }
            (Some(load), result) => self.loaded(load, result),
        }
    }

    /// The time of [`Writer::next_timer`] has come; earlier or later calls do no harm.
    pub fn handle_timer(&mut self, now: Now) {
        self.enter(now);
        if self.phase == Phase::Halted {
            return;
        }
        self.resubmit_unknown();
        if let Phase::Waiting { retry_at } = self.phase
            && now.mono_ms >= retry_at
            && !planted::has(Bug::NoProbeAfterFailure)
        {
            self.probe();
        }
        if self.ids_at.is_some_and(|at| now.mono_ms >= at) {
            self.ids_at = None;
            self.look_at_clock();
            self.run_stalled();
        }
    }

    /// When [`Writer::handle_timer`] wants to be called, in milliseconds of the clock that never steps.
    pub fn next_timer(&self) -> Option<u64> {
        let retry = match self.phase {
            Phase::Waiting { retry_at } if !planted::has(Bug::NoProbeAfterFailure) => Some(retry_at),
            Phase::Halted => return None,
            _ => None,
        };
        let unknown = self.flights.iter().filter_map(Flight::resubmit_at).min();
        [retry, unknown, self.ids_at].into_iter().flatten().min()
    }

    /// Ends a turn: seals the gathered group if the store has a slot free, lets answers go that wait for nothing, tells
    /// the links when readiness changed, makes room in the caches. Call it after intake and completions, then drain the actions.
    pub fn flush(&mut self, now: Now) {
        self.enter(now);
        if self.phase == Phase::Halted {
            return;
        }
        self.seal_if_possible();
        self.tell_readiness();
        self.evict();
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// How the writer is.
    pub fn status(&self) -> Status {
        let reason = self.unready();
        Status {
            ready: reason.is_none(),
            reason,
            links: self.links.len(),
            groups_in_flight: self.flights.len(),
            groups_durable: self.durable_no,
            commands_durable: self.commands_durable,
            gathered_commands: self.gathering.commands,
            parked: self.jobs.len() + self.hellos.len(),
            chats_cached: self.chats.len(),
            users_cached: self.users.len(),
        }
    }

    /// Why commands are not taken; none when they are.
    fn unready(&self) -> Option<String> {
        let reason = self.reason.clone().or_else(|| self.ids_reason.clone()).or_else(|| self.unknown_reason());
        debug_assert!(reason.is_some() || self.phase == Phase::Serving, "every other phase has its reason");
        reason
    }

    fn enter(&mut self, now: Now) {
        self.now = now;
        self.tick += 1;
    }

    fn store(&mut self, op: Op, request: StoreRequest) -> OpId {
        let id = self.next_op;
        self.next_op += 1;
        self.ops.insert(id, op);
        self.actions.push_back(Action::Store(id, request));
        id
    }

    fn send(&mut self, link: LinkId, record: ToGateway) {
        if self.links.contains_key(&link) {
            self.actions.push_back(Action::Send { link, record });
        }
    }

    fn close(&mut self, link: LinkId) {
        if self.links.remove(&link).is_some() {
            self.actions.push_back(Action::Close { link });
        }
    }

    fn start(&mut self, meta: Meta) {
        self.ids = Generator::restore(self.ids.worker(), meta.ids_reserved_until_ms);
        self.durable_meta = Meta { writer_epoch: meta.writer_epoch + 1, ..meta };
        self.meta = self.durable_meta.clone();
        self.probe();
    }

    /// Ends: nothing that waits is answered, because its outcome is not known.
    fn halt(&mut self, reason: HaltReason) {
        self.reason = Some(match &reason {
            HaltReason::Fenced => "another writer holds the store".to_owned(),
            HaltReason::Broken(what) => what.clone(),
        });
        self.phase = Phase::Halted;
        self.actions.push_back(Action::Halt(reason));
    }

    fn evict(&mut self) {
        let seats_fit = self.seats.len() <= self.options.seats_cached_max;
        let chats_fit = self.chats.len() <= self.options.chats_cached_max;
        if chats_fit && seats_fit && self.users.len() <= self.options.users_cached_max {
            return;
        }
        let needed_since = self.births.front().map_or(u64::MAX, |(_, born)| *born);
        self.chats.evict(self.durable_no, needed_since, self.tick);
        self.seats.evict(self.durable_no, needed_since, self.tick);
        self.users.evict(self.durable_no, needed_since, self.tick);
    }
}
