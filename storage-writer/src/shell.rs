//! The writer thread: waits for sockets and wakes, hands what came to the writer's brain, does what it says.
//!
//! A turn is: intake from every readable link; completions, flush and actions until nothing moves; output. The embedded
//! engine commits a group on this thread, so while it syncs the next one gathers in the sockets.
//!
//! An engine that shares its store may act for it only at times (`tier.rs`). It is asked before anything leaves: when it
//! may not, every link is cut, what was to leave is dropped, and hellos are answered `NotActive`.

use crate::handle::{Failure, Shared};
use crate::links::{Link, LinkEnd};
use crate::options::Options;
use crate::readers::{Answers, Readers};
use crate::tier::{Standing, Tier, boot_ms};
use hashbrown::HashMap;
use parley_protocol::link::{Answer, Ask, Reply, ToGateway, ToWriter};
use parley_protocol::{ErrorCode, limits};
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};
use storage_core::store::{OpId, StoreRequest, StoreResult};
use storage_core::{Action, HaltReason, LinkId, Now, Writer};

/// Tokens of what is not a link; links count from 0.
const LISTENER: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;
/// Events taken with one wait.
const EVENTS_MAX: usize = 256;
/// Links accepted in one turn.
const ACCEPTS_MAX: usize = 64;
/// A link that the brain closes has this long to take its last records, milliseconds.
const CLOSE_TIMEOUT_MS: u64 = 1_000;
/// No link is accepted for this long after the system refused one (for want of descriptors, say), milliseconds.
const ACCEPT_PAUSE_MS: u64 = 1_000;
/// Status and gauges are written at the most this often, milliseconds; and at once when readiness changes.
const STATUS_INTERVAL_MS: u64 = 100;

/// The log says where, unless rows contradict each other: then only a check of the whole store can.
const DAMAGE_MET: &str = "damaged data was met: run parley check-store";

pub(crate) struct Shell {
    pub(crate) options: Options,
    pub(crate) shared: Arc<Shared>,
    pub(crate) store: Box<dyn Tier>,
    pub(crate) readers: Readers,
    pub(crate) listener: Option<UnixListener>,
    epoll: OwnedFd,
    writer: Writer,
    standing: Standing,
    /// The time of being active that `writer` belongs to.
    term: Option<u64>,
    links: HashMap<LinkId, Link>,
    link_next: LinkId,
    /// Links with output that was not offered to the kernel yet.
    dirty: Vec<LinkId>,
    halted: Option<HaltReason>,
    /// Since when it stops, and until when it may take.
    stop_at: Option<u64>,
    /// No status is written before.
    status_at: u64,
    /// The status that is shown is not the newest.
    status_old: bool,
    /// A request was answered `damaged`, here or by a reader: it stays so until somebody looks and starts it again.
    damage_met: bool,
    /// Nothing is accepted before.
    accept_at: Option<u64>,
    done: Vec<(OpId, StoreResult)>,
    answers: Answers,
}

impl Shell {
    pub(crate) fn new(
        options: Options,
        shared: Arc<Shared>,
        store: Box<dyn Tier>,
        readers: Readers,
        listener: UnixListener,
    ) -> std::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        epoll::add(&epoll, &*shared.wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        Ok(Self {
            writer: Writer::new(options.writer.clone()),
            standing: Standing::Standby { active: String::new(), trouble: String::new() },
            term: None,
            options,
            shared,
            store,
            readers,
            listener: Some(listener),
            epoll,
            links: HashMap::new(),
            link_next: 0,
            dirty: Vec::new(),
            halted: None,
            stop_at: None,
            status_at: 0,
            status_old: false,
            damage_met: false,
            accept_at: None,
            done: Vec::new(),
            answers: Vec::new(),
        })
    }

    /// Runs until it is stopped or must end.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            self.settle();
            self.write_links();
            self.show_status();
            self.resume_accepting();
            if let Some(reason) = self.halted.take() {
                return Err(match reason {
                    HaltReason::Fenced => Failure::Fenced,
                    HaltReason::Broken(what) => Failure::Broken(what),
                });
            }
            if self.shared.abandon.load(Ordering::Acquire) {
                return Ok(());
            }
            if self.shared.stop.load(Ordering::Acquire) && self.is_stopped() {
                self.store.give_back();
                return Ok(());
            }
            self.wait(&mut events);
            for event in &events {
                let flags = event.flags;
                match event.data.u64() {
                    WAKE => self.shared.wake.clear(),
                    LISTENER => self.accept(),
                    link => self.link_event(link, flags),
                }
            }
        }
    }

    fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono_ms: self.mono_ms(), unix_ms: unix.as_millis() as u64 }
    }

    fn mono_ms(&self) -> u64 {
        boot_ms()
    }

    /// Sees whether this process may still act for the store, and follows: a new time of being active has a writer that
    /// knows nothing of the one before, and whatever was to leave without it is dropped with its link.
    fn look_at_standing(&mut self) {
        if let Some(what) = self.store.broken() {
            self.halted.get_or_insert(HaltReason::Broken(what));
        }
        let standing = self.store.standing(boot_ms());
        if standing == self.standing {
            return;
        }
        let worker = match &standing {
            Standing::Active { term, .. } if self.term == Some(*term) => None,
            Standing::Active { term, worker, .. } => {
                self.term = Some(*term);
                Some(worker.unwrap_or(self.options.writer.worker))
            }
            Standing::Suspended { .. } => None,
            Standing::Standby { .. } => {
                self.term = None;
                Some(self.options.writer.worker)
            }
        };
        let replaced = worker.is_some();
        if let Some(worker) = worker {
            self.options.writer.worker = worker;
            self.writer = Writer::new(self.options.writer.clone());
        }
        match &standing {
            Standing::Active { epoch, .. } if *epoch > 0 => tracing::info!(epoch, "this writer is active"),
            Standing::Active { .. } => {}
            Standing::Suspended { reason } => tracing::warn!("the links are cut: {reason}"),
            Standing::Standby { active, trouble } => tracing::info!(active, trouble, "this writer stands by"),
        }
        let epoch = if let Standing::Active { epoch, .. } = &standing { Some(*epoch) } else { None };
        self.shared.metrics.active.set(u64::from(epoch.is_some()));
        self.shared.metrics.epoch.set(epoch.unwrap_or(0));
        // A writer that is new knows no link, even where nothing was seen between two times of being active.
        if replaced || epoch.is_none() {
            for id in self.links.keys().copied().collect::<Vec<_>>() {
                self.end_link(id, &LinkEnd::NotActive);
            }
        }
        self.standing = standing;
    }

    fn wait(&mut self, events: &mut Vec<epoll::Event>) {
        events.clear();
        let closing = self.links.values().filter_map(|link| link.closing_at).min();
        let status = self.status_old.then_some(self.status_at);
        let writer = self.writer.next_timer().filter(|_| self.term.is_some());
        let timers = [writer, self.store.next_timer(), closing, self.stop_at, self.accept_at, status];
        let timer = timers.into_iter().flatten().min();
        let timeout = timer.map(|at| at.saturating_sub(self.mono_ms()));
        let timeout = timeout.map(|ms| Timespec {
            tv_sec: (ms / 1000) as i64,
            // A millisecond more than asked, so that the time has come when it wakes.
            tv_nsec: ((ms % 1000) * 1_000_000 + 999_999) as i64,
        });
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("epoll does not wait: {error}"),
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_MAX {
            let Some(listener) = &self.listener else { return };
            let socket = match listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!(%error, "a link was not accepted");
                    // It would be offered again at once, and refused again.
                    self.accept_at = Some(self.mono_ms() + ACCEPT_PAUSE_MS);
                    self.watch_listener(EventFlags::empty());
                    return;
                }
            };
            if self.links.len() >= self.options.links_max {
                tracing::warn!(links_max = self.options.links_max, "a link more than allowed was closed");
                continue;
            }
            let id = self.link_next;
            let link = Link::new(socket, self.options.link_output_bytes_max).and_then(|link| {
                epoll::add(&self.epoll, &link.socket, EventData::new_u64(id), link.interest)?;
                Ok(link)
            });
            match link {
                Ok(link) => {
                    self.link_next += 1;
                    self.links.insert(id, link);
                }
                Err(error) => tracing::warn!(%error, "a link was not taken"),
            }
        }
    }

    fn resume_accepting(&mut self) {
        if self.accept_at.is_some_and(|at| at <= self.mono_ms()) {
            self.accept_at = None;
            self.watch_listener(EventFlags::IN);
        }
    }

    fn watch_listener(&self, interest: EventFlags) {
        if let Some(listener) = &self.listener
            && let Err(error) = epoll::modify(&self.epoll, listener, EventData::new_u64(LISTENER), interest)
        {
            tracing::error!(%error, "the listener is not watched any more");
        }
    }

    fn link_event(&mut self, id: LinkId, flags: EventFlags) {
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            self.read_link(id);
        }
        if flags.contains(EventFlags::OUT)
            && let Some(link) = self.links.get_mut(&id)
            && !link.dirty
        {
            link.dirty = true;
            self.dirty.push(id);
        }
    }

    fn read_link(&mut self, id: LinkId) {
        let now = self.now();
        let Some(link) = self.links.get_mut(&id) else { return };
        if link.closing_at.is_some() || self.stop_at.is_some() {
            // Its requests are not taken any more; it goes when its last answers are out.
            if link.pending() == 0 {
                self.end_link(id, &LinkEnd::Closed);
            }
            return;
        }
        let mut greeted = link.greeted;
        let writer = &mut self.writer;
        let active = matches!(self.standing, Standing::Active { .. });
        let read = link.read(|record| {
            match record {
                ToWriter::Hello(_) if greeted => return Err("a second hello".to_owned()),
                ToWriter::Hello(_) if !active => greeted = true,
                _ if !active => {}
                ToWriter::Hello(hello) => {
                    greeted = true;
                    writer.handle_hello(now, id, hello);
                }
                ToWriter::Request(_) if !greeted => return Err("a request before the hello".to_owned()),
                ToWriter::Request(request) => {
                    check(&request.ask)?;
                    writer.handle_request(now, id, request);
                }
            }
            Ok(())
        });
        let refused = greeted && !active && !link.greeted;
        link.greeted = greeted;
        if refused && read.is_ok() {
            self.send_elsewhere(id);
        }
        match read {
            Ok(bytes) => self.shared.metrics.bytes_in.add(bytes as u64),
            Err(end) => self.end_link(id, &end),
        }
    }

    /// Tells a gateway that this writer is not the one, and closes the link.
    fn send_elsewhere(&mut self, id: LinkId) {
        let active = match &self.standing {
            Standing::Standby { active, .. } => active.clone(),
            _ => String::new(),
        };
        self.send(id, &ToGateway::NotActive { active });
        self.act(Action::Close { link: id });
    }

    fn end_link(&mut self, id: LinkId, end: &LinkEnd) {
        if let Some(link) = self.links.remove(&id) {
            match end {
                LinkEnd::Closed | LinkEnd::NotActive => tracing::debug!(link = id, "a link ended: {end}"),
                _ => tracing::warn!(link = id, "a link ended: {end}"),
            }
            // Dropping the socket takes it off epoll.
            drop(link);
            self.writer.handle_link_down(id);
        }
    }

    /// Completions, flush and actions until nothing moves.
    fn settle(&mut self) {
        self.look_at_standing();
        if self.term.is_some() && self.writer.next_timer().is_some_and(|at| at <= self.mono_ms()) {
            let now = self.now();
            self.writer.handle_timer(now);
        }
        loop {
            let now = self.now();
            let mut done = std::mem::take(&mut self.done);
            self.store.completions(&mut done);
            self.look_at_standing();
            if self.term.is_none() {
                // Nothing of an earlier time of being active is of use any more.
                done.clear();
                self.done = done;
                self.take_answers();
                return;
            }
            let mut moved = !done.is_empty();
            for (op, result) in done.drain(..) {
                self.writer.handle_completion(now, op, result);
            }
            self.done = done;
            self.take_answers();
            self.writer.flush(now);
            while let Some(action) = self.writer.poll_action() {
                moved = true;
                self.act(action);
            }
            if !moved || self.halted.is_some() {
                return;
            }
        }
    }

    fn take_answers(&mut self) {
        let mut answers = std::mem::take(&mut self.answers);
        self.readers.answers(&mut answers);
        for (id, bytes) in answers.drain(..) {
            if let Some(link) = self.links.get_mut(&id) {
                link.push_bytes(&bytes);
                mark_dirty(link, id, &mut self.dirty);
            }
        }
        self.answers = answers;
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Store(op, request) => {
                if matches!(request, StoreRequest::Commit(_)) {
                    // What is durable already does not wait for the next sync.
                    self.write_links();
                }
                self.store.submit(op, request);
            }
            Action::Send { link: id, record } => {
                if let ToGateway::Answer(Answer { reply: Reply::Refused(ErrorCode::Damaged), .. }) = &record {
                    self.damage_met = true;
                }
                self.send(id, &record);
            }
            Action::Read { link: id, no, ask } => {
                if let Err(refusal) = self.readers.ask(id, no, ask) {
                    self.send(id, &refusal);
                }
            }
            Action::Close { link: id } => {
                let at = self.mono_ms() + CLOSE_TIMEOUT_MS;
                if let Some(link) = self.links.get_mut(&id) {
                    link.closing_at.get_or_insert(at);
                    mark_dirty(link, id, &mut self.dirty);
                }
            }
            Action::Halt(reason) => {
                self.halted.get_or_insert(reason);
            }
        }
    }

    fn send(&mut self, id: LinkId, record: &ToGateway) {
        if let Some(link) = self.links.get_mut(&id) {
            link.push(record);
            mark_dirty(link, id, &mut self.dirty);
        }
    }

    /// Offers every link's output to the kernel.
    fn write_links(&mut self) {
        // Asked after the answers were made: what is decided outside of the lease may be undone by another.
        self.look_at_standing();
        let mono_ms = self.mono_ms();
        for id in
            self.links.iter().filter_map(|(id, link)| link.closing_at.is_some().then_some(*id)).collect::<Vec<_>>()
        {
            let link = &self.links[&id];
            if !link.dirty && link.closing_at.is_some_and(|at| at <= mono_ms) {
                self.end_link(id, &LinkEnd::Stalled);
            }
        }
        while let Some(id) = self.dirty.pop() {
            let Some(link) = self.links.get_mut(&id) else { continue };
            link.dirty = false;
            let before = link.pending();
            let written = link.write();
            self.shared.metrics.bytes_out.add((before - link.pending()) as u64);
            match written {
                Err(end) => self.end_link(id, &end),
                Ok(()) if link.pending() == 0 && link.closing_at.is_some() => self.end_link(id, &LinkEnd::Closed),
                Ok(()) => self.watch(id),
            }
        }
    }

    /// Watches a link for what it can do next: one that is far behind is not asked for more.
    fn watch(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let mut interest = EventFlags::empty();
        if link.pending() > 0 {
            interest |= EventFlags::OUT;
        }
        if !link.is_behind() && link.closing_at.is_none() && self.stop_at.is_none() {
            interest |= EventFlags::IN;
        }
        if interest != link.interest {
            link.interest = interest;
            if let Err(error) = epoll::modify(&self.epoll, &link.socket, EventData::new_u64(id), interest) {
                self.end_link(id, &LinkEnd::Io(error.into()));
            }
        }
    }

    /// Begins a stop, and says whether all that was taken is answered, or the time for it is over.
    fn is_stopped(&mut self) -> bool {
        if self.stop_at.is_none() {
            self.stop_at = Some(self.mono_ms() + self.options.stop_timeout_ms);
            self.listener = None;
            for id in self.links.keys().copied().collect::<Vec<_>>() {
                self.watch(id);
            }
        }
        let status = self.writer.status();
        let waiting = status.groups_in_flight + status.gathered_commands + status.parked + self.readers.outstanding();
        let unsent = self.links.values().map(Link::pending).sum::<usize>();
        if waiting == 0 && unsent == 0 {
            return true;
        }
        let late = self.stop_at.is_some_and(|at| at <= self.mono_ms());
        if late {
            tracing::warn!(waiting, unsent, "stopped before everything taken was answered");
        }
        late
    }

    fn show_status(&mut self) {
        let mono_ms = self.mono_ms();
        let mut shown = self.shared.status.lock().expect("no holder of the status panics");
        let mut status = self.writer.status();
        match &self.standing {
            Standing::Active { .. } => {}
            Standing::Suspended { reason } => (status.ready, status.reason) = (false, Some(reason.clone())),
            Standing::Standby { active, trouble } => {
                let words = match (active.as_str(), trouble.as_str()) {
                    ("", "") => "standing by: the lease is being taken, or waited out".to_owned(),
                    (active, "") => format!("standing by: {active} is active"),
                    (_, trouble) => format!("standing by: the cluster does not answer for the lease: {trouble}"),
                };
                (status.ready, status.reason) = (false, Some(words));
            }
        }
        self.damage_met |= self.readers.met_damage();
        if status.ready && self.damage_met {
            status.ready = false;
            status.reason = Some(DAMAGE_MET.to_owned());
        }
        if mono_ms < self.status_at && status.ready == shown.ready && status.reason == shown.reason {
            self.status_old = status != *shown;
            return;
        }
        if status.ready != shown.ready || status.reason != shown.reason {
            match &status.reason {
                // Every start begins with this.
                Some(reason) if reason == "the store is being opened" => {
                    tracing::info!("the writer is not ready: {reason}");
                }
                Some(reason) => tracing::warn!("the writer is not ready: {reason}"),
                None => tracing::info!(ready = status.ready, "the writer's state changed"),
            }
        }
        *shown = status;
        drop(shown);
        self.status_old = false;
        self.status_at = mono_ms + STATUS_INTERVAL_MS;
        self.shared.metrics.reads_outstanding.set(self.readers.outstanding() as u64);
    }
}

fn mark_dirty(link: &mut Link, id: LinkId, dirty: &mut Vec<LinkId>) {
    if !link.dirty {
        link.dirty = true;
        dirty.push(id);
    }
}

/// Bounds that decoding does not give: texts that become keys of the store.
fn check(ask: &Ask) -> Result<(), String> {
    match ask {
        Ask::Login { issuer, subject, name }
            if issuer.len() + subject.len() > limits::TOKEN_BYTES_MAX || name.len() > limits::TOKEN_BYTES_MAX =>
        {
            Err("an identity is longer than any token".to_owned())
        }
        Ask::LookUp { issuer, subject } if issuer.len() + subject.len() > limits::TOKEN_BYTES_MAX => {
            Err("an identity is longer than any token".to_owned())
        }
        Ask::Resolve { names } if names.iter().any(|name| name.len() > limits::TOKEN_BYTES_MAX) => {
            Err("a name is longer than any token".to_owned())
        }
        _ => Ok(()),
    }
}
