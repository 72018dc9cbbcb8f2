//! The storage-writer's process: links in, the sequencer, an engine on the disk, reader threads, links out.

use crate::disk::Engine;
use crate::overflows::Overflow;
use crate::plan::Fault;
use crate::shell::Reading;
use crate::tier::{Standing, Tier};
use crate::world::{Event, LinkAsked, World};
use parley_protocol::link::{Answer, Ask, Reply, Request, ToGateway, ToWriter};
use parley_protocol::{partition, wire};
use std::collections::VecDeque;
use storage_core::reads;
use storage_core::store::{Outcome, StoreRequest, StoreResult};
use storage_core::{Action, Now, Writer};

/// Rounds of one turn, at the most; the rest waits for the next.
const ROUNDS_MAX: usize = 8;

/// A writer.
pub(crate) struct WriterProcess {
    pub(crate) alive: bool,
    pub(crate) stopped_until: u64,
    pub(crate) offset_ms: i64,
    pub(crate) core: Writer,
    /// Where the store is local.
    pub(crate) engine: Option<Engine>,
    /// Where it is a cluster.
    pub(crate) tier: Option<Tier>,
    /// Which of the addresses that gateways know it listens at.
    slot: u16,
    /// What it may do, and the time of being active that `core` belongs to; on a cluster.
    pub(crate) standing: Standing,
    pub(crate) term: Option<u64>,
    pub(crate) links: Vec<u32>,
    pub(crate) readings: Vec<Reading>,
    /// Reads that wait for a reader thread.
    reads: VecDeque<(u32, u64, Ask)>,
    wake: Option<u64>,
}

impl World {
    pub(crate) fn start_writer(&mut self) -> bool {
        if self.plan.on_cluster() {
            let free = (0..self.plan.writers()).find(|slot| self.listening_writer(*slot).is_none());
            let Some(slot) = free else { return false };
            let worker = self.writers.len() as u16 % 1_024;
            let tier = self.new_tier(worker);
            return self.add_writer(slot, None, Some(tier));
        }
        if self.phase != crate::world::Phase::Storm && self.writers.iter().any(|writer| writer.alive) {
            // Planned in the storm; to take the store from a writer that lives is a fault, and faults have ended.
            return false;
        }
        for engine in self.writers.iter_mut().filter_map(|writer| writer.engine.as_mut()) {
            // The disk is taken from whoever had it: what was on its way arrives now or never.
            engine.tear(&mut self.disk);
        }
        let mut engine = Engine::open(&mut self.disk, &self.plan, self.plan.seed);
        if self.phase != crate::world::Phase::Storm {
            engine.behave();
        }
        self.add_writer(0, Some(engine), None)
    }

    fn add_writer(&mut self, slot: u16, engine: Option<Engine>, tier: Option<Tier>) -> bool {
        let number = self.writers.len() as u32;
        let process = WriterProcess {
            alive: true,
            stopped_until: 0,
            offset_ms: self.skew(),
            core: Writer::new(self.plan.writer_options()),
            engine,
            tier,
            slot,
            standing: Standing::Standby,
            term: None,
            links: Vec::new(),
            readings: Vec::new(),
            reads: VecDeque::new(),
            wake: None,
        };
        self.writers.push(process);
        self.trace.tell(self.now, || format!("writer {number} starts"));
        self.wake_writer(number, self.now);
        true
    }

    /// The process is gone, as after kill -9. What it sent arrives.
    pub(crate) fn end_writer(&mut self, writer: u32) -> bool {
        let process = &mut self.writers[writer as usize];
        if !process.alive {
            return false;
        }
        process.alive = false;
        process.engine.iter_mut().for_each(|engine| engine.tear(&mut self.disk));
        // What it sent to a cluster goes on by itself.
        process.tier = None;
        process.readings.clear();
        let links = std::mem::take(&mut process.links);
        self.leave_stragglers(writer);
        self.trace.tell(self.now, || format!("writer {writer} ends"));
        links.into_iter().for_each(|link| self.writer_ends_link(link));
        if self.plan.on_cluster() || !self.writers.iter().any(|writer| writer.alive) {
            let again = self.now + 5_000 + self.faults.around(100_000);
            self.at(again, Event::StartWriter);
        }
        true
    }

    /// The one that a gateway's connection to an address reaches.
    pub(crate) fn listening_writer(&self, slot: u16) -> Option<u32> {
        self.writers.iter().rposition(|writer| writer.alive && writer.slot == slot).map(|at| at as u32)
    }

    /// Where the store is local.
    fn engine(&mut self, writer: u32) -> &mut Engine {
        self.writers[writer as usize].engine.as_mut().expect("the store is local")
    }

    pub(crate) fn wake_writer(&mut self, writer: u32, at: u64) {
        let process = &mut self.writers[writer as usize];
        let at = at.max(self.now).max(process.stopped_until);
        if process.alive && process.wake.is_none_or(|wake| at < wake) {
            process.wake = Some(at);
            self.at(at, Event::Writer { writer });
        }
    }

    pub(crate) fn writer_ends_link(&mut self, link: u32) {
        let soon = self.now + self.net.around(200);
        let state = &mut self.links[link as usize];
        state.writer_has_it = false;
        let at = state.down.end(soon);
        self.at(at, Event::LinkDown { link });
    }

    /// A shard sends.
    pub(crate) fn send_to_writer(&mut self, link: u32, mut bytes: Vec<u8>) {
        while !bytes.is_empty() {
            let rest = bytes.split_off(self.piece(bytes.len()));
            let at = self.now + self.latency(Fault::Reorder, 80);
            let at = self.links[link as usize].up.push(at, bytes);
            self.at(at, Event::LinkUp { link });
            bytes = rest;
        }
    }

    pub(crate) fn send_to_shard(&mut self, link: u32, record: &ToGateway) {
        let mut bytes = Vec::new();
        wire::encode_record(record, &mut bytes);
        while !bytes.is_empty() {
            let rest = bytes.split_off(self.piece(bytes.len()));
            let at = self.now + self.latency(Fault::Reorder, 80);
            let at = self.links[link as usize].down.push(at, bytes);
            self.at(at, Event::LinkDown { link });
            bytes = rest;
        }
    }

    pub(crate) fn arrived_at_writer(&mut self, link: u32) -> bool {
        let state = &self.links[link as usize];
        let (writer, has_it) = (state.writer, state.writer_has_it);
        let alive = self.writers[writer as usize].alive;
        if alive && has_it {
            if !self.writers[writer as usize].links.contains(&link) {
                self.writers[writer as usize].links.push(link);
            }
            self.wake_writer(writer, self.now);
        }
        alive && has_it
    }

    fn writer_now(&self, writer: u32) -> Now {
        let offset_ms = self.writers[writer as usize].offset_ms;
        Now { mono_ms: self.now / 1_000, unix_ms: self.unix_ms(offset_ms) }
    }

    /// A turn of the writer's thread.
    pub(crate) fn writer_turn(&mut self, writer: u32) -> bool {
        let process = &mut self.writers[writer as usize];
        if !process.alive || process.wake != Some(self.now) {
            return false;
        }
        process.wake = None;
        if process.stopped_until > self.now {
            let until = process.stopped_until;
            self.wake_writer(writer, until);
            return false;
        }
        if self.plan.on_cluster() {
            let acted = self.shell_turn(writer);
            self.look_at_parked(writer);
            return acted;
        }
        let now = self.writer_now(writer);
        for _ in 0..ROUNDS_MAX {
            let mut moved = self.take_records(now, writer);
            let process = &mut self.writers[writer as usize];
            if process.core.next_timer().is_some_and(|due| due <= now.mono_ms) {
                process.core.handle_timer(now);
                moved = true;
            }
            let mut done = Vec::new();
            let engine = process.engine.as_mut().expect("the store is local");
            engine.completions(self.now, &mut self.disk, &mut done);
            let durable = done.iter().any(|(_, result)| *result == StoreResult::Committed(Outcome::Durable));
            if durable && self.crashes_at(Fault::CrashAfterCommit) {
                return self.end_writer(writer);
            }
            let process = &mut self.writers[writer as usize];
            for (op, result) in done {
                process.core.handle_completion(now, op, result);
                moved = true;
            }
            // What is on the disk is known to the oracles before anybody hears of it.
            self.look_at_groups();
            let process = &mut self.writers[writer as usize];
            process.core.flush(now);
            while let Some(action) = self.writers[writer as usize].core.poll_action() {
                moved = true;
                if !self.writer_acts(writer, action) {
                    return true;
                }
            }
            if !moved {
                break;
            }
        }
        self.look_at_parked(writer);
        let timer = self.writers[writer as usize].core.next_timer().map(|due| due * 1_000);
        let next = [timer, self.engine(writer).next_due()].into_iter().flatten().min();
        if let Some(next) = next {
            self.wake_writer(writer, next);
        }
        true
    }

    pub(crate) fn crashes_at(&mut self, point: Fault) -> bool {
        self.crash_at.take_if(|at| *at == point).is_some()
    }

    pub(crate) fn take_records(&mut self, now: Now, writer: u32) -> bool {
        let mut moved = false;
        for link in self.writers[writer as usize].links.clone() {
            let state = &mut self.links[link as usize];
            state.up.take(self.now, &mut state.input);
            let over = state.up.is_over(self.now);
            let input = std::mem::take(&mut state.input);
            let mut at = 0;
            while self.links[link as usize].writer_has_it {
                let Ok(Some((record, len))) = wire::split_record(&input[at..]) else { break };
                at += len;
                moved = true;
                self.take_record(now, writer, link, record);
            }
            self.links[link as usize].input = input[at..].to_vec();
            if over && self.links[link as usize].writer_has_it {
                moved = true;
                self.links[link as usize].writer_has_it = false;
                self.writers[writer as usize].links.retain(|open| *open != link);
                self.writers[writer as usize].core.handle_link_down(u64::from(link));
            }
        }
        moved
    }

    fn take_record(&mut self, now: Now, writer: u32, link: u32, record: &[u8]) {
        let standby = self.plan.on_cluster() && !self.is_active(writer);
        let core = &mut self.writers[writer as usize].core;
        match wire::decode_to_writer(record) {
            Ok(ToWriter::Hello(_)) if standby => self.send_elsewhere(writer, link),
            Ok(ToWriter::Request(_)) if standby => {}
            Ok(ToWriter::Hello(hello)) => core.handle_hello(now, u64::from(link), hello),
            Ok(ToWriter::Request(request)) => {
                self.trace.tell(self.now, || {
                    format!("link {link} asks {} ({}): {:?}", request.no, request.home_epoch, request.ask)
                });
                core.handle_request(now, u64::from(link), request.clone());
                self.look_at_request(link, &request);
            }
            Err(error) => self.fail("links are understood", error.to_string()),
        }
    }

    /// Does what the sequencer says; false when the process ends.
    pub(crate) fn writer_acts(&mut self, writer: u32, action: Action) -> bool {
        let holds = self.writers[writer as usize].engine.as_ref().is_none_or(|engine| engine.holds(&self.disk));
        match action {
            Action::Store(op, request) => {
                let commits = matches!(request, StoreRequest::Commit(_));
                if let StoreRequest::Commit(group) = &request {
                    self.look_at_size(group);
                }
                if commits && self.crashes_at(Fault::CrashBeforeCommit) {
                    self.end_writer(writer);
                    return false;
                }
                let (now, process) = (self.now, &mut self.writers[writer as usize]);
                match &mut process.engine {
                    Some(engine) => engine.submit(now, &mut self.disk, op, request),
                    None => self.submit_to_cluster(writer, op, request),
                }
                if commits && self.crashes_at(Fault::CrashDuringCommit) {
                    self.end_writer(writer);
                    return false;
                }
            }
            // The store is held by one process: who lost it answers nothing, not even a refusal out of its memory, and ends.
            Action::Send { .. } if !holds => {
                self.end_writer(writer);
                return false;
            }
            Action::Send { link, .. } if !self.may_leave(writer, link as u32) => {}
            Action::Send { link, record } => {
                self.look_at_answer(link as u32, &record);
                self.trace.tell(self.now, || format!("link {link} answers {record:?}"));
                self.send_to_shard(link as u32, &record);
            }
            Action::Read { link, no, ask } if self.plan.on_cluster() => {
                self.begin_reading(writer, link as u32, no, ask);
            }
            Action::Read { link, no, ask } => {
                self.writers[writer as usize].reads.push_back((link as u32, no, ask));
                let at = self.now + self.latency(Fault::SlowDisk, 100);
                self.at(at, Event::Reader { writer });
            }
            Action::Close { link } => {
                self.writers[writer as usize].links.retain(|open| u64::from(*open) != link);
                self.writer_ends_link(link as u32);
            }
            Action::Halt(reason) => {
                self.trace.tell(self.now, || format!("writer {writer} halts: {reason:?}"));
                self.end_writer(writer);
                return false;
            }
        }
        true
    }

    /// Oracles: the window of a link is kept, and its order (rule 6); a home loads no chat before the barrier of its
    /// partition stands (rule 5).
    fn look_at_request(&mut self, link: u32, request: &Request) {
        let opens = if let Ask::Open { partition } = request.ask { Some(partition) } else { None };
        let asked = LinkAsked { epoch: request.home_epoch, opens };
        let last = self.links[link as usize].last_no.max(request.no);
        let last = std::mem::replace(&mut self.links[link as usize].last_no, last);
        self.ensure(request.no > last, "requests are resent in order", || format!("{} after {last}", request.no));
        self.links[link as usize].asked.insert(request.no, asked);
        let (open, most) = (self.links[link as usize].asked.len(), self.plan.gateway_options(1, 0).link_window);
        self.overflows.add_if(open == most, Overflow::LinkWindow);
        self.ensure(open <= most, "queues are bounded", || format!("{open} requests of link {link} wait"));
        if let Ask::Command(command) = &request.ask {
            let asked = self.truth.asked.entry((command.sender, command.client_msg_id));
            asked.and_modify(|asked| asked.epoch = asked.epoch.max(request.home_epoch));
        }
        if let Ask::LoadChat { chat_id } | Ask::Among { chat_id, .. } = request.ask {
            let stands = self.truth.opened_under(partition::of_chat(chat_id)) >= request.home_epoch;
            self.ensure(stands, "a home loads behind its barrier", || format!("link {link}: {request:?}"));
        }
    }

    /// Oracles: what is answered as durable is, and under an epoch that held; a barrier that is said to stand does.
    fn look_at_answer(&mut self, link: u32, record: &ToGateway) {
        let ToGateway::Answer(Answer { no, reply }) = record else { return };
        let Some(LinkAsked { epoch, opens }) = self.links[link as usize].asked.remove(no) else { return };
        match reply {
            Reply::Durable(committed) => {
                for event in committed.iter().map(|committed| &committed.event) {
                    let verdict = self.truth.committed_under(event.chat_id, event.seq, epoch);
                    self.judge(verdict);
                }
            }
            Reply::Duplicate { chat_id, seq, .. } => {
                let verdict = self.truth.committed_under(*chat_id, *seq, u64::MAX);
                self.judge(verdict);
            }
            Reply::Opened => {
                let stands = opens.is_some_and(|partition| self.truth.opened_under(partition) >= epoch);
                self.ensure(stands, "a barrier stands when it is answered", || {
                    format!("link {link}: {opens:?} under {epoch}")
                });
            }
            _ => {}
        }
    }

    /// A reader thread answers one of the reads that wait, whichever.
    pub(crate) fn read(&mut self, writer: u32) -> bool {
        let options = self.plan.read_options();
        let process = &mut self.writers[writer as usize];
        if !process.alive || process.reads.is_empty() {
            return false;
        }
        if process.stopped_until > self.now {
            let until = process.stopped_until;
            self.at(until, Event::Reader { writer });
            return false;
        }
        let which = self.net.below(process.reads.len() as u64) as usize;
        let Some((link, no, ask)) = process.reads.remove(which) else { return false };
        // The store is held by one process: who lost it answers nothing from it, and ends.
        if !process.engine.as_ref().is_some_and(|engine| engine.holds(&self.disk)) {
            return self.end_writer(writer);
        }
        if !self.links[link as usize].writer_has_it {
            return true;
        }
        let reply = reads::answer(self.engine(writer).look(), &options, &ask);
        self.look_at_page(&ask, &reply);
        self.trace.tell(self.now, || format!("link {link} reads {no}: {reply:?}"));
        self.links[link as usize].asked.remove(&no);
        self.send_to_shard(link, &ToGateway::Answer(Answer { no, reply }));
        true
    }
}
