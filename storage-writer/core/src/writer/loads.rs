//! What jobs wait for: loads of chats and users, look-ups of names and unique keys, facts of a log. Each is asked once,
//! however many wait for it.

use super::Writer;
use super::cache::{Chat, Seat, User};
use super::jobs::JobKey;
use super::marks::Fact;
use crate::planted::{self, Bug};
use crate::store::{CommandName, CommandRow, StoreRequest, StoreResult};
use hashbrown::hash_map::Entry;
use parley_protocol::{ChatId, UserId};

/// What an operation in the store is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Meta,
    Commit,
    Chat(ChatId),
    Member(ChatId, UserId),
    User(UserId),
    Name(CommandName),
    Unique(String),
    /// The ordinal of a fact of a job.
    FactEvent(JobKey, usize),
    /// The count of a fact of a job.
    FactCount(JobKey, usize),
}

/// What several jobs may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum LoadKey {
    Chat(ChatId),
    Member(ChatId, UserId),
    User(UserId),
}

/// The name of a command that somebody waits on, or that is numbered and not yet durable.
#[derive(Debug)]
pub(super) struct Name {
    /// Jobs of this name.
    pub(super) waiting: u32,
    pub(super) state: NameState,
    /// The job that waits for the look-up, and others.
    waiter: Option<JobKey>,
    waiters: Vec<JobKey>,
}

/// What is known of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameState {
    Asked,
    Known(Option<CommandRow>),
    /// The store could not say.
    Damaged,
    /// Numbered, and not yet durable.
    Flight(CommandRow),
}

/// A unique key that somebody waits on, or that is in a group.
#[derive(Debug)]
pub(super) struct Unique {
    pub(super) waiting: u32,
    pub(super) state: UniqueState,
    waiters: Vec<JobKey>,
}

/// What is known of a unique key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UniqueState {
    Asked,
    Known(Option<u128>),
    /// The store could not say.
    Damaged,
    /// In a group that is not yet durable.
    Flight(u128),
}

/// Something that must be in memory before a job is judged.
#[derive(Clone, Debug)]
pub(super) enum Need {
    Chat(ChatId),
    /// Of a channel.
    Member(ChatId, UserId),
    User(UserId),
    Unique(String),
    Fact(Fact),
}

impl Writer {
    pub(super) fn need(&mut self, key: JobKey, need: Need) {
        let tick = self.tick;
        let (load, op, request) = match need {
            Need::Chat(chat_id) => {
                if let Some(chat) = self.chats.get_mut(chat_id) {
                    chat.usage.touched = tick;
                    return;
                }
                (LoadKey::Chat(chat_id), Op::Chat(chat_id), StoreRequest::LoadChat(chat_id))
            }
            Need::Member(chat_id, user_id) => {
                if let Some(seat) = self.seats.get_mut((chat_id, user_id)) {
                    seat.usage.touched = tick;
                    return;
                }
                let request = StoreRequest::LoadMember { chat_id, user_id };
                (LoadKey::Member(chat_id, user_id), Op::Member(chat_id, user_id), request)
            }
            Need::User(user_id) => {
                if let Some(user) = self.users.get_mut(user_id) {
                    user.usage.touched = tick;
                    return;
                }
                (LoadKey::User(user_id), Op::User(user_id), StoreRequest::LoadUser(user_id))
            }
            Need::Unique(unique) => return self.need_unique(key, unique),
            Need::Fact(fact) => return self.need_fact(key, fact),
        };
        self.jobs[key].missing += 1;
        let waiters = self.loads.entry(load).or_default();
        waiters.push(key);
        if waiters.len() == 1 {
            self.store(op, request);
        }
    }

    pub(super) fn need_name(&mut self, key: JobKey, row: CommandName) {
        let asks = !planted::has(Bug::LooksUpOnlyInFlight);
        let name = self.names.entry(row).or_insert(Name {
            waiting: 0,
            state: if asks { NameState::Asked } else { NameState::Known(None) },
            waiter: None,
            waiters: Vec::new(),
        });
        name.waiting += 1;
        if name.state != NameState::Asked {
            self.jobs[key].damaged |= name.state == NameState::Damaged;
            return;
        }
        self.jobs[key].missing += 1;
        if name.waiter.is_some() {
            name.waiters.push(key);
        } else {
            name.waiter = Some(key);
            self.store(Op::Name(row), StoreRequest::FindCommand(row));
        }
    }

    fn need_unique(&mut self, key: JobKey, text: String) {
        let unique = self.uniques.entry(text.clone()).or_insert(Unique {
            waiting: 0,
            state: UniqueState::Asked,
            waiters: Vec::new(),
        });
        unique.waiting += 1;
        let job = &mut self.jobs[key];
        job.unique_keys.push(text.clone());
        job.damaged |= unique.state == UniqueState::Damaged;
        if unique.state == UniqueState::Asked {
            job.missing += 1;
            unique.waiters.push(key);
            if unique.waiters.len() == 1 {
                self.store(Op::Unique(text.clone()), StoreRequest::FindUnique(text));
            }
        }
    }

    fn need_fact(&mut self, key: JobKey, fact: Fact) {
        let at = self.jobs[key].facts.len();
        let requests = fact.requests();
        self.jobs[key].facts.push(fact);
        for (request, is_event) in requests.into_iter().flatten() {
            self.jobs[key].missing += 1;
            let op = if is_event { Op::FactEvent(key, at) } else { Op::FactCount(key, at) };
            self.store(op, request);
        }
    }

    /// A load is answered: memory takes it, and who waited for it goes on.
    pub(super) fn loaded(&mut self, op: Op, result: StoreResult) {
        match (op, result) {
            (Op::Chat(chat_id), result) => self.chat_loaded(chat_id, result),
            (Op::Member(chat_id, user_id), result) => self.member_loaded(chat_id, user_id, result),
            (Op::User(user_id), result) => self.user_loaded(user_id, result),
            (Op::Name(row), result) => self.name_found(row, result),
            (Op::Unique(key), result) => self.unique_found(&key, result),
            (Op::FactEvent(key, at), StoreResult::Event(Some(event))) => {
                self.jobs[key].facts[at].take_event(&event);
                self.wake(key, false);
            }
            (Op::FactCount(key, at), StoreResult::Count(count)) => {
                self.jobs[key].facts[at].take_count(count);
                self.wake(key, false);
            }
            (Op::FactEvent(key, _) | Op::FactCount(key, _), _) => self.wake(key, true),
            (Op::Meta | Op::Commit, _) => unreachable!("dispatched before"),
        }
    }

    fn chat_loaded(&mut self, chat_id: ChatId, result: StoreResult) {
        let loaded = match result {
            StoreResult::Chat(stored) => Chat::load(chat_id, stored).ok(),
            _ => None,
        };
        let damaged = loaded.is_none();
        // One that was created meanwhile, under an id that somebody guessed, is newer than what the store said.
        if let Some(mut chat) = loaded.filter(|_| self.chats.get(chat_id).is_none()) {
            chat.usage.touched = self.tick;
            self.chats.insert(chat_id, chat);
        }
        self.wake_all(LoadKey::Chat(chat_id), damaged);
    }

    fn member_loaded(&mut self, chat_id: ChatId, user_id: UserId, result: StoreResult) {
        let loaded = match result {
            StoreResult::Member(stored) => Some(Seat::load(user_id, stored)),
            _ => None,
        };
        let damaged = loaded.is_none();
        if let Some(mut seat) = loaded.filter(|_| self.seats.get((chat_id, user_id)).is_none()) {
            seat.usage.touched = self.tick;
            self.seats.insert((chat_id, user_id), seat);
        }
        self.wake_all(LoadKey::Member(chat_id, user_id), damaged);
    }

    fn user_loaded(&mut self, user_id: UserId, result: StoreResult) {
        let loaded = match result {
            StoreResult::User(stored) => Some(User::load(stored)),
            _ => None,
        };
        let damaged = loaded.is_none();
        if let Some(mut user) = loaded.filter(|_| self.users.get(user_id).is_none()) {
            user.usage.touched = self.tick;
            self.users.insert(user_id, user);
        }
        self.wake_all(LoadKey::User(user_id), damaged);
    }

    fn name_found(&mut self, row: CommandName, result: StoreResult) {
        let found = match result {
            StoreResult::Found(found) => Some(found),
            _ => None,
        };
        let Some(name) = self.names.get_mut(&row) else { return };
        name.state = found.map_or(NameState::Damaged, NameState::Known);
        let first = name.waiter.take();
        let others = std::mem::take(&mut name.waiters);
        for key in first.into_iter().chain(others) {
            self.wake(key, found.is_none());
        }
    }

    fn unique_found(&mut self, key: &str, result: StoreResult) {
        let found = match result {
            StoreResult::Unique(found) => Some(found),
            _ => None,
        };
        let Some(unique) = self.uniques.get_mut(key) else { return };
        unique.state = found.map_or(UniqueState::Damaged, UniqueState::Known);
        for key in std::mem::take(&mut unique.waiters) {
            self.wake(key, found.is_none());
        }
    }

    fn wake_all(&mut self, load: LoadKey, damaged: bool) {
        for key in self.loads.remove(&load).unwrap_or_default() {
            self.wake(key, damaged);
        }
    }

    fn wake(&mut self, key: JobKey, damaged: bool) {
        let job = &mut self.jobs[key];
        job.missing -= 1;
        job.damaged |= damaged;
        if job.missing == 0 {
            self.run(key);
        }
    }

    pub(super) fn leave_name(&mut self, name: CommandName) {
        let Entry::Occupied(mut entry) = self.names.entry(name) else { unreachable!("whoever waits has its entry") };
        entry.get_mut().waiting -= 1;
        if entry.get().waiting == 0 && !matches!(entry.get().state, NameState::Flight(_)) {
            entry.remove();
        }
    }

    pub(super) fn leave_unique(&mut self, key: &str) {
        let entry = self.uniques.get_mut(key).expect("whoever waits has its entry");
        entry.waiting -= 1;
        if entry.waiting == 0 && !matches!(entry.state, UniqueState::Flight(_)) {
            self.uniques.remove(key);
        }
    }

    pub(super) fn name_durable(&mut self, row: &CommandRow) {
        if let Entry::Occupied(mut name) = self.names.entry(row.name) {
            if name.get().waiting == 0 {
                name.remove();
            } else {
                name.get_mut().state = NameState::Known(Some(*row));
            }
        }
    }

    pub(super) fn unique_durable(&mut self, key: &str, value: u128) {
        if let Some(unique) = self.uniques.get_mut(key) {
            if unique.waiting == 0 {
                self.uniques.remove(key);
            } else {
                unique.state = UniqueState::Known(Some(value));
            }
        }
    }
}
