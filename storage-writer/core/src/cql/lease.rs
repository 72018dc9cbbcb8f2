//! The lease of the partition set: who may serve, from when, and for how long. A machine over one row that is changed
//! by lightweight transactions only; no IO, no clock, no random source: the shell asks what it says and tells what came.
//!
//! ```text
//!              a whole lease             applied, or read back        waited the old lease out
//!   Watching -- without a change --> Taking --------------> WaitingOut -----------------------> Held
//!      ^  ^                           |  |                      |                               |  ^
//!      |  `--- another was faster ----'  `--- the old one was given back, or none ever was ---->|  |
//!      `----------------------- another took it meanwhile ------'          not renewed in time  v  | renewed: still
//!                                                                                            Expired   its own row
//!   Lost <----- another took it, or it was given back: from Held and Expired; `release` from anywhere
//! ```
//!
//! Why two cannot serve at once: a renewal that succeeded was sent before the taker's change of the row was applied,
//! and that before it was answered. The holder counts its lease from the sending, less a tenth; the taker counts a whole
//! one from the answer. Watching the row first is for the holder's sake, nobody takes from who is alive; it would be
//! enough by itself, as a renewal that the taker did not see makes its change fail. The two stand for each other.

use parley_protocol::partition::split_mix_64;

/// The shortest lease, milliseconds: below, its parts are no times that a cluster answers in.
pub const LEASE_MS_MIN: u32 = 100;
/// Asks of a release, at the most: then the lease ends by itself.
const RELEASE_ASKS_MAX: u32 = 8;
/// For rounding: the clock is read in whole milliseconds.
const ROUNDING_MS: u64 = 1;

/// The row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRow {
    /// One more with each taking.
    pub writer_epoch: u64,
    /// Who holds it: a random number of one [`Lease`]. 0: given back.
    pub holder: u128,
    /// One more with each renewal.
    pub renewal: u64,
    /// The holder's Snowflake worker.
    pub worker: u16,
    /// How long the holder counts on a renewal.
    pub lease_ms: u32,
    /// Where gateways find the holder.
    pub address: String,
}

/// What a change of the row expects to find: no two states of the row have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseKey {
    /// As in [`LeaseRow`].
    pub writer_epoch: u64,
    /// As in [`LeaseRow`].
    pub holder: u128,
    /// As in [`LeaseRow`].
    pub renewal: u64,
}

impl LeaseRow {
    /// What a change of this row expects to find.
    pub fn key(&self) -> LeaseKey {
        LeaseKey { writer_epoch: self.writer_epoch, holder: self.holder, renewal: self.renewal }
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct LeaseOptions {
    /// How long a renewal holds; at least [`LEASE_MS_MIN`]. Standbys may have another one.
    pub lease_ms: u32,
    /// Random, of this [`Lease`] alone, not 0: a process that lost a lease and stands by again takes a new one.
    pub holder: u128,
    /// The Snowflake worker.
    pub worker: u16,
    /// Where gateways find this writer.
    pub address: String,
}

/// Names an ask.
pub type AskId = u64;

/// What is asked of the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseAsk {
    /// A serial read. Answer: `Row` or `Unknown`.
    Read,
    /// A lightweight transaction, never repeated by the driver. Answer: `Applied`, `NotApplied` or `Unknown`.
    Cas {
        /// `IF writer_epoch = ? AND holder = ? AND renewal = ?`; none: `IF NOT EXISTS`.
        expected: Option<LeaseKey>,
        /// All columns.
        new: LeaseRow,
    },
}

/// What came of an ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseAnswer {
    /// What a read found.
    Row(Option<LeaseRow>),
    /// The row is as asked.
    Applied,
    /// The row is this one and was not changed.
    NotApplied(Option<LeaseRow>),
    /// A timeout, too few replicas, a broken connection: a change may be applied, now or later, or never.
    Unknown(String),
}

/// Where the machine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Another one holds it, or nobody, or that is not known yet.
    Watching {
        /// Where the holder is; empty when that is not known.
        holder: String,
    },
    /// Raises the epoch, or asks whether it did.
    Taking,
    /// The row is its own; the old holder may still count on its lease. Nothing may be served.
    WaitingOut {
        /// Until then.
        until: u64,
    },
    /// It may serve.
    Held {
        /// The writer's epoch.
        epoch: u64,
        /// The Snowflake worker.
        worker: u16,
        /// And only before this.
        valid_until: u64,
    },
    /// It was not renewed in time: nothing may be served, until it is `Held` again under the same epoch or `Lost`.
    Expired {
        /// The writer's epoch.
        epoch: u64,
    },
    /// Another one took it, or it was given back. For good: a new one stands by.
    Lost,
}

/// What can be left out, so that the property test can show that it would see it.
#[cfg(feature = "planted")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseBug {
    /// The old lease is not waited out.
    NotWaitedOut,
    /// The row is taken at the first sight, not after a whole lease without a change.
    NotWatched,
    /// The lease counts from the answer to a renewal.
    CountedFromAnswer,
    /// A change of unknown outcome is taken for applied.
    UnknownTakenAsApplied,
}

#[derive(Debug)]
struct Seen {
    row: Option<LeaseRow>,
    /// When it was first seen as it is, and the last time.
    since: u64,
    last: u64,
}

#[derive(Debug)]
struct Own {
    row: LeaseRow,
    /// A renewal without a good answer: its number and when it was first sent.
    attempt: Option<(u64, u64)>,
    wait_until: u64,
    valid_until: u64,
}

#[derive(Debug)]
enum Phase {
    Watching(Option<Seen>),
    /// `old` is the row that the change expects.
    Taking {
        old: Option<LeaseRow>,
        new: LeaseRow,
    },
    Own(Own),
    /// Gives back its row.
    Releasing {
        row: LeaseRow,
    },
    Lost,
}

#[derive(Debug)]
struct Flight {
    id: AskId,
    ask: LeaseAsk,
    sent_at: u64,
}

/// One try at one epoch. The order of calls: [`Lease::poll`] until it has nothing, do what it asked, [`Lease::handle`]
/// with what came; again at [`Lease::next_timer`]. `now_ms` is the boot-time clock (it counts while the machine sleeps)
/// and never falls.
#[derive(Debug)]
pub struct Lease {
    options: LeaseOptions,
    phase: Phase,
    flight: Option<Flight>,
    /// The outcome of the last change is not known: the row is read before anything else.
    unsure: bool,
    /// The next ask leaves then.
    due: u64,
    ask_next: AskId,
    /// Asks since one had a result.
    failures: u32,
    /// Asks since `release`.
    release_asks: u32,
    random: u64,
    /// The highest that was seen: an epoch never falls, whatever becomes of the row.
    epoch_max: u64,
    last_error: String,
    /// Where the holder is, when it is another one and known.
    active: String,
    #[cfg(feature = "planted")]
    planted: Vec<LeaseBug>,
}

impl Lease {
    /// Watches from now on. `seed`: of the jitter; random.
    pub fn new(options: LeaseOptions, seed: u64, now_ms: u64) -> Self {
        assert!(options.holder != 0, "0 is nobody");
        let lease_ms = options.lease_ms.max(LEASE_MS_MIN);
        Self {
            options: LeaseOptions { lease_ms, ..options },
            phase: Phase::Watching(None),
            flight: None,
            unsure: false,
            due: now_ms,
            ask_next: 1,
            failures: 0,
            release_asks: 0,
            random: seed,
            epoch_max: 0,
            last_error: String::new(),
            active: String::new(),
            #[cfg(feature = "planted")]
            planted: Vec::new(),
        }
    }

    /// Plants a bug in this one.
    #[cfg(feature = "planted")]
    pub fn plant(&mut self, bug: LeaseBug) {
        self.planted.push(bug);
    }

    #[cfg(feature = "planted")]
    fn has(&self, bug: LeaseBug) -> bool {
        self.planted.contains(&bug)
    }

    /// Where it is at this time.
    pub fn state(&self, now_ms: u64) -> LeaseState {
        match &self.phase {
            Phase::Watching(_) => LeaseState::Watching { holder: self.active.clone() },
            Phase::Taking { .. } => LeaseState::Taking,
            Phase::Own(own) if now_ms < own.wait_until => LeaseState::WaitingOut { until: own.wait_until },
            Phase::Own(own) if now_ms < own.valid_until => {
                LeaseState::Held { epoch: own.row.writer_epoch, worker: own.row.worker, valid_until: own.valid_until }
            }
            Phase::Own(own) => LeaseState::Expired { epoch: own.row.writer_epoch },
            Phase::Releasing { .. } | Phase::Lost => LeaseState::Lost,
        }
    }

    /// Until when it may serve, if it may now. Asked after an answer was made and before it leaves.
    pub fn valid_until(&self, now_ms: u64) -> Option<u64> {
        match &self.phase {
            Phase::Own(own) if now_ms >= own.wait_until && now_ms < own.valid_until => Some(own.valid_until),
            _ => None,
        }
    }

    /// Where the holder is, if it is another one and known; else empty.
    pub fn active(&self) -> &str {
        &self.active
    }

    /// Why the last ask had no result, for people; empty when it had one.
    pub fn last_error(&self) -> &str {
        &self.last_error
    }

    /// Gives the lease back, if it has been held, so that nobody waits for its end. From now on nothing is served: it is `Lost`. The shell
    /// goes on polling until [`Lease::is_over`].
    pub fn release(&mut self, now_ms: u64) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Lost) {
            // While it waits out, the one before may still serve: what is given back then would be taken at once.
            Phase::Own(own) if now_ms >= own.wait_until => Phase::Releasing { row: own.row },
            releasing @ Phase::Releasing { .. } => releasing,
            Phase::Watching(_) | Phase::Taking { .. } | Phase::Own(_) | Phase::Lost => Phase::Lost,
        };
        self.due = self.due.min(now_ms);
    }

    /// Nothing more will be asked.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Lost)
    }

    /// When [`Lease::poll`] has something, or [`Lease::state`] changes by itself.
    pub fn next_timer(&self, now_ms: u64) -> Option<u64> {
        let ask = match &self.flight {
            _ if self.is_over() => None,
            Some(flight) => Some(flight.sent_at + self.patience_ms()),
            None => Some(self.due),
        };
        let change = match &self.phase {
            Phase::Own(own) => [own.wait_until, own.valid_until].into_iter().filter(|at| *at > now_ms).min(),
            _ => None,
        };
        [ask, change].into_iter().flatten().min()
    }

    /// What to ask now. One ask is in flight at a time; one that is not answered for half a lease is taken for unknown,
    /// and its answer is ignored when it comes.
    pub fn poll(&mut self, now_ms: u64) -> Option<(AskId, LeaseAsk)> {
        if let Some(flight) = &self.flight {
            if now_ms < flight.sent_at + self.patience_ms() {
                return None;
            }
            let id = flight.id;
            self.handle(now_ms, id, LeaseAnswer::Unknown("it was not answered in time".to_owned()));
        }
        if self.is_over() || now_ms < self.due {
            return None;
        }
        let ask = self.ask(now_ms)?;
        let id = self.ask_next;
        self.ask_next += 1;
        self.flight = Some(Flight { id, ask: ask.clone(), sent_at: now_ms });
        Some((id, ask))
    }

    fn ask(&mut self, now_ms: u64) -> Option<LeaseAsk> {
        if matches!(self.phase, Phase::Releasing { .. }) {
            self.release_asks += 1;
            if self.release_asks > RELEASE_ASKS_MAX {
                self.phase = Phase::Lost;
                return None;
            }
        }
        if self.unsure {
            return Some(LeaseAsk::Read);
        }
        Some(match &mut self.phase {
            Phase::Watching(_) | Phase::Lost => LeaseAsk::Read,
            Phase::Taking { old, new } => LeaseAsk::Cas { expected: old.as_ref().map(LeaseRow::key), new: new.clone() },
            Phase::Own(own) => {
                let new = LeaseRow { renewal: own.row.renewal.saturating_add(1), ..own.row.clone() };
                if own.attempt.is_none_or(|(renewal, _)| renewal != new.renewal) {
                    own.attempt = Some((new.renewal, now_ms));
                }
                LeaseAsk::Cas { expected: Some(own.row.key()), new }
            }
            Phase::Releasing { row } => {
                let new = LeaseRow { holder: 0, renewal: row.renewal.saturating_add(1), ..row.clone() };
                LeaseAsk::Cas { expected: Some(row.key()), new }
            }
        })
    }

    /// What came of an ask. Answers to asks that are not in flight any more are ignored.
    pub fn handle(&mut self, now_ms: u64, id: AskId, answer: LeaseAnswer) {
        let Some(flight) = self.flight.take_if(|flight| flight.id == id) else { return };
        #[cfg(feature = "planted")]
        let answer = match answer {
            LeaseAnswer::Unknown(_)
                if self.has(LeaseBug::UnknownTakenAsApplied) && matches!(flight.ask, LeaseAsk::Cas { .. }) =>
            {
                LeaseAnswer::Applied
            }
            answer => answer,
        };
        match (answer, flight.ask) {
            (LeaseAnswer::Unknown(error), ask) => self.handle_unknown(now_ms, error, &ask),
            // Nothing that a cluster should say; repeated, but not as fast as it says so.
            (LeaseAnswer::NotApplied(row), ref ask @ LeaseAsk::Cas { expected, .. })
                if row.as_ref().map(LeaseRow::key) == expected =>
            {
                self.handle_unknown(now_ms, "not applied, though the row is as expected".to_owned(), ask);
            }
            (LeaseAnswer::Row(row) | LeaseAnswer::NotApplied(row), _) => {
                self.has_result();
                self.handle_row(now_ms, row);
            }
            (LeaseAnswer::Applied, LeaseAsk::Cas { new, .. }) => {
                self.has_result();
                self.handle_applied(now_ms, flight.sent_at, new);
            }
            (LeaseAnswer::Applied, ask @ LeaseAsk::Read) => {
                debug_assert!(false, "a read is not applied");
                self.handle_unknown(now_ms, "a read was answered as a change".to_owned(), &ask);
            }
        }
    }

    fn has_result(&mut self) {
        self.failures = 0;
        self.unsure = false;
        self.last_error.clear();
    }

    fn handle_unknown(&mut self, now_ms: u64, error: String, ask: &LeaseAsk) {
        self.last_error = error;
        self.unsure |= matches!(ask, LeaseAsk::Cas { .. });
        self.failures = self.failures.saturating_add(1);
        let most = self.options.lease_ms as u64 / 4;
        let pause = (self.options.lease_ms as u64 / 64).max(1) << self.failures.min(16).saturating_sub(1);
        self.due = now_ms + self.jittered(pause.min(most));
    }

    fn handle_applied(&mut self, now_ms: u64, sent_at: u64, new: LeaseRow) {
        match &mut self.phase {
            Phase::Taking { .. } => self.take(now_ms, Some(sent_at), new),
            Phase::Own(_) => self.renewed(now_ms, sent_at, new),
            // A renewal that was in flight when it was released.
            Phase::Releasing { row } if new.holder != 0 => {
                *row = new;
                self.due = now_ms;
            }
            Phase::Releasing { .. } | Phase::Watching(_) | Phase::Lost => self.phase = Phase::Lost,
        }
    }

    /// What the row was at some moment since the ask was sent.
    fn handle_row(&mut self, now_ms: u64, found: Option<LeaseRow>) {
        let holder = self.options.holder;
        match &mut self.phase {
            Phase::Watching(_) => self.watched(now_ms, found),
            Phase::Taking { old, new } => {
                let same = found.as_ref().map(LeaseRow::key) == old.as_ref().map(LeaseRow::key);
                match found {
                    // It was applied after all. When it was sent first is not kept: it counts on its first renewal.
                    Some(row) if row.key() == new.key() => self.take(now_ms, None, row),
                    // It was not applied, and may still be: repeated, it can be applied once only.
                    _ if same => self.due = now_ms,
                    row => self.watched(now_ms, row),
                }
            }
            Phase::Own(own) => match found {
                Some(row) if row.writer_epoch == own.row.writer_epoch && row.holder == holder => match own.attempt {
                    Some((renewal, sent_at)) if renewal == row.renewal => self.renewed(now_ms, sent_at, row),
                    _ => {
                        own.row = row;
                        self.due = now_ms;
                    }
                },
                row if now_ms < own.wait_until => self.watched(now_ms, row),
                row => {
                    self.active = address_of(row.as_ref());
                    self.phase = Phase::Lost;
                }
            },
            Phase::Releasing { row } => match found {
                Some(found) if found.holder == holder => {
                    *row = found;
                    self.due = now_ms;
                }
                found => {
                    self.active = address_of(found.as_ref());
                    self.phase = Phase::Lost;
                }
            },
            Phase::Lost => {}
        }
    }

    /// The row as somebody else left it: takes it if nobody changed it for a whole lease.
    fn watched(&mut self, now_ms: u64, found: Option<LeaseRow>) {
        self.active = address_of(found.as_ref());
        self.epoch_max = self.epoch_max.max(found.as_ref().map_or(0, |row| row.writer_epoch));
        let lease_ms = self.whole_ms(found.as_ref());
        let mut since = now_ms;
        if let Phase::Watching(Some(seen)) = &self.phase
            && seen.row.as_ref().map(LeaseRow::key) == found.as_ref().map(LeaseRow::key)
            // Who saw nothing for a whole lease did not watch: the cluster was away, perhaps for the holder too.
            && now_ms.saturating_sub(seen.last) < lease_ms
        {
            since = seen.since;
        }
        let nobody = found.as_ref().is_none_or(|row| row.holder == 0);
        #[cfg(feature = "planted")]
        let nobody = nobody || self.has(LeaseBug::NotWatched);
        if nobody || now_ms.saturating_sub(since) >= lease_ms {
            let new = LeaseRow {
                writer_epoch: self.epoch_max.saturating_add(1),
                holder: self.options.holder,
                renewal: found.as_ref().map_or(0, |row| row.renewal).saturating_add(1),
                worker: self.options.worker,
                lease_ms: self.options.lease_ms,
                address: self.options.address.clone(),
            };
            self.phase = Phase::Taking { old: found, new };
            self.due = now_ms;
            return;
        }
        let pause = self.jittered(self.options.lease_ms as u64 / 4);
        // Several standbys do not ask at the same moment when the time has come.
        self.due = now_ms + pause;
        self.phase = Phase::Watching(Some(Seen { row: found, since, last: now_ms }));
    }

    /// The row is its own. `sent_at`: of the change that made it so, if that is known.
    fn take(&mut self, now_ms: u64, sent_at: Option<u64>, row: LeaseRow) {
        let Phase::Taking { old, .. } = &self.phase else { return };
        let nobody = old.as_ref().is_none_or(|row| row.holder == 0);
        let wait_until = if nobody { 0 } else { now_ms + self.whole_ms(old.as_ref()) + ROUNDING_MS };
        #[cfg(feature = "planted")]
        let wait_until = if self.has(LeaseBug::NotWaitedOut) { 0 } else { wait_until };
        self.active.clear();
        self.epoch_max = self.epoch_max.max(row.writer_epoch);
        self.phase = Phase::Own(Own { row: row.clone(), attempt: None, wait_until, valid_until: 0 });
        match sent_at {
            Some(sent_at) => self.renewed(now_ms, sent_at, row),
            None => self.due = now_ms,
        }
    }

    fn renewed(&mut self, now_ms: u64, sent_at: u64, row: LeaseRow) {
        let lease_ms = self.options.lease_ms as u64;
        #[cfg(feature = "planted")]
        let sent_at = if self.has(LeaseBug::CountedFromAnswer) { now_ms } else { sent_at };
        if let Phase::Own(own) = &mut self.phase {
            own.row = row;
            own.attempt = None;
            own.valid_until = own.valid_until.max(sent_at + lease_ms - lease_ms / 10);
        }
        // Counted from the sending, so that slow answers do not stretch it; never twice at once.
        self.due = now_ms.max(sent_at + self.jittered(lease_ms / 4));
    }

    /// How long whoever wrote this row counts on it, at the most.
    fn whole_ms(&self, row: Option<&LeaseRow>) -> u64 {
        row.map_or(0, |row| row.lease_ms).max(self.options.lease_ms) as u64
    }

    /// How long an ask may take.
    fn patience_ms(&self) -> u64 {
        self.options.lease_ms as u64 / 2
    }

    /// Three quarters to the whole of it, at least 1.
    fn jittered(&mut self, ms: u64) -> u64 {
        self.random = split_mix_64(self.random);
        (ms - self.random % (ms / 4 + 1)).max(1)
    }
}

fn address_of(row: Option<&LeaseRow>) -> String {
    row.filter(|row| row.holder != 0).map(|row| row.address.clone()).unwrap_or_default()
}
