//! A writer process over a cluster, as the shell of `storage-writer` has it: what it may do is asked before anything
//! leaves; each time of being active has a sequencer that knows nothing of the one before; reads take their time.

use crate::cluster::From;
use crate::plan::Fault;
use crate::tier::Standing;
use crate::world::{Event, World};
use parley_protocol::link::{Answer, Ask, ToGateway};
use parley_protocol::{ChatId, UserId};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use storage_core::cql::engine::InFlight;
use storage_core::cql::rows::{Read, Statement, StatementError, StatementResult};
use storage_core::cql::view::{Bounds, CqlView, Rows};
use storage_core::reads;
use storage_core::store::{Outcome, StoreResult};
use storage_core::{Now, Writer};

/// Rounds of one turn, at the most; the rest waits for the next.
const ROUNDS_MAX: usize = 8;

/// What a read has seen so far, so that it can be run again up to where it has to wait: the cluster changes between the
/// reads of one answer, and none of them is asked twice.
struct Memo {
    in_flight: Arc<Mutex<InFlight>>,
    epoch: u64,
    reads: RefCell<HashMap<Read, Replayed<StatementResult>>>,
    chats: RefCell<HashMap<ChatId, Replayed<Option<u64>>>>,
    users: RefCell<HashMap<UserId, Replayed<Option<u64>>>>,
    /// What has to be read before it can go on.
    missing: RefCell<Vec<Read>>,
    /// Something was missing before: what follows from that is not real.
    blocked: Cell<bool>,
}

/// Answers to one question, in the order in which it was asked, and how many of them this run has used.
struct Replayed<T>(Vec<T>, usize);

impl<T> Default for Replayed<T> {
    fn default() -> Self {
        Replayed(Vec::new(), 0)
    }
}

impl<T: Clone> Replayed<T> {
    fn next(&mut self) -> Option<T> {
        let next = self.0.get(self.1).cloned();
        self.1 += usize::from(next.is_some());
        next
    }

    fn next_or(&mut self, new: impl FnOnce() -> T) -> T {
        if self.1 == self.0.len() {
            self.0.push(new());
        }
        self.next().expect("it was put there")
    }
}

impl Memo {
    fn rewind(&mut self) {
        self.reads.get_mut().values_mut().for_each(|replayed| replayed.1 = 0);
        self.chats.get_mut().values_mut().for_each(|replayed| replayed.1 = 0);
        self.users.get_mut().values_mut().for_each(|replayed| replayed.1 = 0);
        self.missing.get_mut().clear();
        self.blocked.set(false);
    }

    fn one(&self, read: &Read) -> StatementResult {
        let not_yet = || Err(StatementError::Unknown("it is not read yet".to_owned()));
        if self.blocked.get() {
            return not_yet();
        }
        let known = self.reads.borrow_mut().entry(read.clone()).or_default().next();
        known.unwrap_or_else(|| {
            self.missing.borrow_mut().push(read.clone());
            not_yet()
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, InFlight> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rows for Memo {
    fn read(&self, read: &Read) -> StatementResult {
        let result = self.one(read);
        self.blocked.set(!self.missing.borrow().is_empty());
        result
    }

    fn read_many(&self, reads: &[Read]) -> Vec<StatementResult> {
        let results = reads.iter().map(|read| self.one(read)).collect();
        self.blocked.set(!self.missing.borrow().is_empty());
        results
    }
}

impl Bounds for &Memo {
    fn chat(&self, chat_id: ChatId) -> Option<u64> {
        if self.blocked.get() {
            return None;
        }
        self.chats.borrow_mut().entry(chat_id).or_default().next_or(|| self.lock().chat(chat_id))
    }

    fn user(&self, user_id: UserId) -> Option<u64> {
        if self.blocked.get() {
            return None;
        }
        self.users.borrow_mut().entry(user_id).or_default().next_or(|| self.lock().user(user_id))
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }
}

/// A read of a reader thread.
pub(crate) struct Reading {
    number: u64,
    link: u32,
    no: u64,
    ask: Ask,
    /// Statements that it waits for.
    waits: usize,
    memo: Memo,
}

impl World {
    /// A turn of the writer's thread, over a cluster.
    pub(crate) fn shell_turn(&mut self, writer: u32) -> bool {
        let mut acted = false;
        for _ in 0..ROUNDS_MAX {
            self.drive(writer);
            self.look_at_standing(writer);
            let process = &mut self.writers[writer as usize];
            let over = process.tier.as_ref().is_some_and(|tier| tier.is_over());
            if over {
                return self.end_writer(writer);
            }
            let now = self.shell_now(writer);
            let mut moved = self.take_records(now, writer);
            let process = &mut self.writers[writer as usize];
            if process.term.is_some() {
                if process.core.next_timer().is_some_and(|due| due <= now.mono_ms) {
                    process.core.handle_timer(now);
                    moved = true;
                }
                let mut done = Vec::new();
                self.completions_of_cluster(writer, &mut done);
                let durable = done.iter().any(|(_, result)| *result == StoreResult::Committed(Outcome::Durable));
                if durable && self.crashes_at(Fault::CrashAfterCommit) {
                    return self.end_writer(writer);
                }
                let process = &mut self.writers[writer as usize];
                for (op, result) in done {
                    process.core.handle_completion(now, op, result);
                    moved = true;
                }
                process.core.flush(now);
            }
            while let Some(action) = self.writers[writer as usize].core.poll_action() {
                moved = true;
                if !self.writer_acts(writer, action) {
                    return true;
                }
            }
            if self.tick.is_multiple_of(16) {
                self.writers[writer as usize].tier.iter().for_each(|tier| tier.check_invariants());
            }
            acted |= moved;
            if !moved {
                break;
            }
        }
        let process = &self.writers[writer as usize];
        let Some(tier) = &process.tier else { return acted };
        let timer = process.core.next_timer().filter(|_| process.term.is_some()).map(|due| tier.timer_us(due));
        let next = [timer, tier.next_due(self.now)].into_iter().flatten().min();
        if let Some(next) = next {
            self.wake_writer(writer, next.max(self.now + 1));
        }
        acted
    }

    /// The process's clocks.
    fn shell_now(&self, writer: u32) -> Now {
        let process = &self.writers[writer as usize];
        let mono_ms = process.tier.as_ref().map_or(0, |tier| tier.boot_ms(self.now));
        Now { mono_ms, unix_ms: self.unix_ms(process.offset_ms) }
    }

    pub(crate) fn is_active(&self, writer: u32) -> bool {
        matches!(self.writers[writer as usize].standing, Standing::Active { .. })
    }

    /// Sees whether the process may still act, and follows: as `Shell::look_at_standing` does.
    fn look_at_standing(&mut self, writer: u32) {
        let process = &mut self.writers[writer as usize];
        let Some(tier) = &process.tier else { return };
        let standing = tier.standing(self.now);
        if standing == process.standing {
            return;
        }
        let worker = match standing {
            Standing::Active { term, .. } if process.term == Some(term) => None,
            Standing::Active { term, worker } => {
                process.term = Some(term);
                Some(worker)
            }
            Standing::Suspended => None,
            Standing::Standby => {
                process.term = None;
                Some(0)
            }
        };
        if let Some(worker) = worker {
            process.core = Writer::new(storage_core::Options { worker, ..self.plan.writer_options() });
        }
        process.standing = standing;
        self.trace.tell(self.now, || format!("writer {writer} is {standing:?}"));
        if !matches!(standing, Standing::Active { .. }) {
            for link in std::mem::take(&mut self.writers[writer as usize].links) {
                self.writers[writer as usize].core.handle_link_down(u64::from(link));
                self.writer_ends_link(link);
            }
        }
    }

    /// Something leaves: asked now, after it was made, whether it may.
    pub(crate) fn may_leave(&mut self, writer: u32, link: u32) -> bool {
        if self.writers[writer as usize].tier.is_none() {
            return true;
        }
        self.look_at_standing(writer);
        if !self.is_active(writer) || !self.links[link as usize].writer_has_it {
            return false;
        }
        let tier = self.writers[writer as usize].tier.as_ref();
        let epoch = tier.and_then(|tier| tier.term.as_ref()).map_or(0, |term| term.epoch);
        let newest = self.shared.acted.max(epoch);
        self.shared.acted = newest;
        self.ensure(epoch == newest, "one writer acts", || {
            format!("writer {writer} answers under epoch {epoch}, another has under {newest}")
        });
        true
    }

    /// A process that is not the one says so.
    pub(crate) fn send_elsewhere(&mut self, writer: u32, link: u32) {
        self.send_to_shard(link, &ToGateway::NotActive { active: String::new() });
        self.writers[writer as usize].links.retain(|open| *open != link);
        self.writer_ends_link(link);
    }

    /// A reader thread takes a read.
    pub(crate) fn begin_reading(&mut self, writer: u32, link: u32, no: u64, ask: Ask) {
        let number = self.shared.name();
        let tier = self.writers[writer as usize].tier.as_ref();
        let Some(term) = tier.and_then(|tier| tier.term.as_ref()) else { return };
        let memo = Memo {
            in_flight: term.engine.in_flight(),
            epoch: term.epoch,
            reads: RefCell::default(),
            chats: RefCell::default(),
            users: RefCell::default(),
            missing: RefCell::default(),
            blocked: Cell::new(false),
        };
        self.writers[writer as usize].readings.push(Reading { number, link, no, ask, waits: 0, memo });
        let at = self.now + self.net.around(30);
        self.at(at, Event::Reading { writer, read: number });
    }

    pub(crate) fn hand_to_reader(&mut self, writer: u32, read: u64, asked: Read, result: StatementResult) {
        let now = self.now;
        let readings = &mut self.writers[writer as usize].readings;
        let Some(reading) = readings.iter_mut().find(|reading| reading.number == read) else { return };
        reading.memo.reads.get_mut().entry(asked).or_default().0.push(result);
        reading.waits -= 1;
        if reading.waits == 0 {
            self.at(now, Event::Reading { writer, read });
        }
    }

    /// A read goes on, from its beginning, up to what it does not know yet.
    pub(crate) fn reading_goes_on(&mut self, writer: u32, read: u64) -> bool {
        let process = &mut self.writers[writer as usize];
        if !process.alive {
            process.readings.clear();
            return false;
        }
        if process.stopped_until > self.now {
            let until = process.stopped_until;
            self.at(until, Event::Reading { writer, read });
            return false;
        }
        let options = self.plan.read_options();
        let Some(at) = process.readings.iter().position(|reading| reading.number == read) else { return false };
        let mut reading = process.readings.swap_remove(at);
        reading.memo.rewind();
        let reply = reads::answer(&CqlView::new(&reading.memo, &reading.memo), &options, &reading.ask);
        let missing = std::mem::take(reading.memo.missing.get_mut());
        if !missing.is_empty() {
            reading.waits = missing.len();
            self.writers[writer as usize].readings.push(reading);
            for read_next in missing {
                self.execute(From::Reader { writer, read }, Statement::Read(read_next));
            }
            return false;
        }
        self.look_at_page(&reading.ask, &reply);
        let (link, no) = (reading.link, reading.no);
        if !self.may_leave(writer, link) {
            return true;
        }
        self.trace.tell(self.now, || format!("link {link} reads {no}: {reply:?}"));
        self.links[link as usize].asked.remove(&no);
        self.send_to_shard(link, &ToGateway::Answer(Answer { no, reply }));
        true
    }
}
