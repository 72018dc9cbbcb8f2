//! Requests that wait, and the loads that they wait for. A job is judged when all that it needs is in memory and, for
//! the jobs of one chat, in the order of their arrival.

use super::api::{Action, LinkId};
use super::cache::Chat;
use super::loads::Need;
use super::marks::Fact;
use super::{Phase, Writer};
use crate::planted::{self, Bug};
use crate::store::CommandName;
use parley_protocol::link::{Ask, Reply, Request};
use parley_protocol::{ChatId, ChatKind, ErrorCode, UserId, limits, partition};

/// Index of a job.
pub(super) type JobKey = usize;

/// Who is answered, under which epoch it asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answered {
    pub(super) link: LinkId,
    pub(super) no: u64,
    pub(super) epoch: u64,
}

/// A request that waits.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) to: Answered,
    pub(super) ask: Ask,
    /// The tick of its arrival: what it needs stays in memory from then on.
    pub(super) born: u64,
    /// Loads that are not answered yet.
    pub(super) missing: u32,
    pub(super) damaged: bool,
    /// What a log says of the marks that are asked for.
    pub(super) facts: Vec<Fact>,
    /// Counted as waiting in the table of command names.
    named: bool,
    /// Counted as waiting under these unique keys.
    pub(super) unique_keys: Vec<String>,
    /// The queue of its chat.
    queue: Option<ChatId>,
    next: Option<JobKey>,
    stalled: bool,
}

impl Job {
    pub(super) fn next(&self) -> Option<JobKey> {
        self.next
    }
}

/// The jobs of one chat, linked in order of arrival.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queue {
    pub(super) first: JobKey,
    pub(super) last: JobKey,
}

/// What came of judging a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// It is over.
    Done,
    /// No room in the group, or no id now: it stays at the head of its queue.
    Stalled,
}

impl Writer {
    /// Takes a request of a welcomed link.
    pub(super) fn request(&mut self, link_id: LinkId, request: Request) {
        let Some(link) = self.links.get(&link_id) else { return };
        if !link.welcome || request.home_epoch > self.meta.home_epoch.max(link.home_epoch) {
            return self.close(link_id);
        }
        let to = Answered { link: link_id, no: request.no, epoch: request.home_epoch };
        if self.is_dead(&to, &request.ask) {
            return self.attach(to, Reply::Fenced);
        }
        match request.ask {
            ask @ (Ask::Inbox { .. }
            | Ask::History { .. }
            | Ask::Chats { .. }
            | Ask::Members { .. }
            | Ask::Resolve { .. }
            | Ask::Profiles { .. }
            | Ask::LookUp { .. }) => self.actions.push_back(Action::Read { link: link_id, no: to.no, ask }),
            Ask::Open { partition } => self.open(to, partition),
            ask @ (Ask::LoadChat { .. } | Ask::Among { .. } | Ask::Login { .. }) if self.phase != Phase::Draining => {
                self.park(to, ask)
            }
            ask if self.phase == Phase::Serving => self.park(to, ask),
            _ => self.answer(to, Reply::Failed),
        }
    }

    /// Whether a higher epoch was granted, or opened the partition that is asked of.
    pub(super) fn is_dead(&self, to: &Answered, ask: &Ask) -> bool {
        let partition = match ask {
            Ask::LoadChat { chat_id }
            | Ask::Among { chat_id, .. }
            | Ask::Marks { chat_id, .. }
            | Ask::Mute { chat_id, .. } => Some(partition::of_chat(*chat_id)),
            Ask::Command(command) => command.chat_id.map(partition::of_chat),
            _ => None,
        };
        if planted::has(Bug::OlderEpochsTaken) {
            return false;
        }
        let creates = partition.is_none() && matches!(ask, Ask::Command(_));
        let granted = to.epoch < self.meta.home_epoch && (creates || !planted::has(Bug::GrantIsNoBarrier));
        granted || partition.is_some_and(|at| to.epoch < self.opened[at as usize])
    }

    /// Takes again the hellos that wait for the store to be well again.
    pub(super) fn run_hellos(&mut self) {
        for _ in 0..self.hellos.len() {
            let Some((link, hello)) = self.hellos.pop_front() else { break };
            self.judge_hello(link, hello);
        }
    }

    /// Refuses at once what no state could allow; everything else waits for what it needs.
    fn park(&mut self, to: Answered, ask: Ask) {
        if let Err(code) = check_shape(&ask) {
            return self.answer(to, Reply::Refused(code));
        }
        if self.jobs.len() >= self.options.parked_max && !planted::has(Bug::ParkedUnbounded) {
            return self.answer(to, Reply::Failed);
        }
        let queue = match &ask {
            Ask::LoadChat { chat_id }
            | Ask::Among { chat_id, .. }
            | Ask::Marks { chat_id, .. }
            | Ask::Mute { chat_id, .. } => Some(*chat_id),
            Ask::Command(command) => command.chat_id,
            _ => None,
        };
        let job = Job {
            to,
            ask,
            born: self.tick,
            missing: 0,
            damaged: false,
            facts: Vec::new(),
            named: false,
            unique_keys: Vec::new(),
            queue,
            next: None,
            stalled: false,
        };
        let key = self.jobs.insert(job);
        self.births.push_back((key, self.tick));
        if let Some(chat_id) = queue {
            match self.queues.entry(chat_id) {
                hashbrown::hash_map::Entry::Vacant(vacant) => {
                    vacant.insert(Queue { first: key, last: key });
                }
                hashbrown::hash_map::Entry::Occupied(mut queue) => {
                    let last = std::mem::replace(&mut queue.get_mut().last, key);
                    self.jobs[last].next = Some(key);
                }
            }
        }
        self.prepare(key);
        self.run(key);
    }

    /// Starts every load that the job needs, as far as can be known now.
    fn prepare(&mut self, key: JobKey) {
        let job = &mut self.jobs[key];
        debug_assert!(job.missing == 0);
        if let Ask::Command(command) = &job.ask
            && !job.named
        {
            job.named = true;
            let chat_id = command.chat_id.unwrap_or(ChatId(0));
            let name = CommandName { chat_id, sender: command.sender, client_msg_id: command.client_msg_id };
            self.need_name(key, name);
        }
        let mut needs = std::mem::take(&mut self.scratch);
        self.needs_of(&self.jobs[key], &mut needs);
        for need in needs.drain(..) {
            self.need(key, need);
        }
        self.scratch = needs;
    }

    fn needs_of(&self, job: &Job, needs: &mut Vec<Need>) {
        match &job.ask {
            Ask::LoadChat { chat_id } => {
                self.need_chat(*chat_id, needs);
            }
            Ask::Among { chat_id, users } => {
                if self.need_chat(*chat_id, needs).is_some() {
                    needs.extend(users.iter().map(|user_id| Need::Member(*chat_id, *user_id)));
                }
            }
            Ask::Command(command) => match command.chat_id {
                None => self.needs_of_create(command, needs),
                Some(chat_id) => {
                    if let Some(chat) = self.need_chat(chat_id, needs) {
                        self.needs_of_command(chat_id, chat, command, needs);
                    }
                }
            },
            Ask::Marks { chat_id, marks } => {
                if let Some(chat) = self.need_chat(*chat_id, needs) {
                    self.needs_of_marks(*chat_id, chat, marks, &job.facts, needs);
                }
            }
            Ask::Mute { chat_id, user_id, .. } => {
                if let Some(chat) = self.need_chat(*chat_id, needs) {
                    if chat.channel {
                        needs.push(Need::Member(*chat_id, *user_id));
                    }
                    if chat.seat(*chat_id, &self.seats, *user_id).is_some_and(|member| member.role.is_some()) {
                        needs.push(Need::User(*user_id));
                    }
                }
            }
            Ask::Login { issuer, subject, name } => self.needs_of_login(job, (issuer, subject, name), needs),
            _ => unreachable!("only these are parked"),
        }
    }

    /// The chat, if it is in memory; a direct one that was never written needs its two users.
    fn need_chat(&self, chat_id: ChatId, needs: &mut Vec<Need>) -> Option<&Chat> {
        needs.push(Need::Chat(chat_id));
        let chat = self.chats.get(chat_id)?;
        if chat.head_seq == 0
            && let Some(ChatKind::Direct(low, high)) = chat_id.kind()
        {
            needs.push(Need::User(low));
            needs.push(Need::User(high));
        }
        Some(chat)
    }

    /// Judges a job if its turn has come, and then those behind it.
    pub(super) fn run(&mut self, key: JobKey) {
        match self.jobs[key].queue {
            None => {
                self.run_one(key);
            }
            Some(chat_id) => {
                while let Some(first) = self.queues.get(&chat_id).map(|queue| queue.first) {
                    if !self.run_one(first) {
                        return;
                    }
                }
            }
        }
    }

    /// Whether the job is over.
    fn run_one(&mut self, key: JobKey) -> bool {
        let job = &self.jobs[key];
        if job.missing > 0 || job.stalled {
            return false;
        }
        if !job.damaged {
            self.prepare(key);
        }
        let job = &self.jobs[key];
        if job.damaged {
            let to = job.to;
            self.attach(to, Reply::Refused(ErrorCode::Damaged));
        } else if job.missing > 0 {
            return false;
        } else if self.judge(key) == Judged::Stalled {
            self.jobs[key].stalled = true;
            self.stalled.push_back(key);
            return false;
        }
        self.finish(key);
        true
    }

    /// Runs again what waited for room, or for an id.
    pub(super) fn run_stalled(&mut self) {
        if planted::has(Bug::StalledForgotten) {
            return;
        }
        for _ in 0..self.stalled.len() {
            if self.phase != Phase::Serving || !self.has_room() {
                return;
            }
            let Some(key) = self.stalled.pop_front() else { return };
            self.jobs[key].stalled = false;
            self.run(key);
            if self.jobs.get(key).is_some_and(|job| job.stalled) {
                // What stopped it stops the others too: it keeps its place before them.
                self.stalled.pop_back();
                self.stalled.push_front(key);
                return;
            }
        }
    }

    fn finish(&mut self, key: JobKey) {
        let job = self.jobs.remove(key);
        if let Some(chat_id) = job.queue {
            match job.next {
                Some(next) => {
                    self.queues.get_mut(&chat_id).expect("a queued job has its queue").first = next;
                }
                None => {
                    self.queues.remove(&chat_id);
                }
            }
        }
        if job.named
            && let Ask::Command(command) = &job.ask
        {
            let chat_id = command.chat_id.unwrap_or(ChatId(0));
            let name = CommandName { chat_id, sender: command.sender, client_msg_id: command.client_msg_id };
            self.leave_name(name);
        }
        for unique in &job.unique_keys {
            self.leave_unique(unique);
        }
        while let Some((key, born)) = self.births.front() {
            if self.jobs.get(*key).is_some_and(|job| job.born == *born) {
                break;
            }
            self.births.pop_front();
        }
    }
}

/// What is wrong with a request, whatever is stored.
fn check_shape(ask: &Ask) -> Result<(), ErrorCode> {
    match ask {
        Ask::Command(command) => {
            if let Some(chat_id) = command.chat_id {
                is_in(chat_id, command.sender)?;
            }
            super::judge::check_command_shape(command)
        }
        Ask::LoadChat { chat_id } => chat_id.kind().map(|_| ()).ok_or(ErrorCode::NoSuchChat),
        Ask::Among { users, .. } if users.len() > limits::MEMBER_CHANGES_MAX => Err(ErrorCode::BadFrame),
        Ask::Among { chat_id, .. } if !chat_id.is_channel() => Err(ErrorCode::NoSuchChat),
        Ask::Mute { chat_id, user_id, .. } => is_in(*chat_id, *user_id),
        Ask::Marks { chat_id, .. } if chat_id.kind().is_none() => Err(ErrorCode::NoSuchChat),
        Ask::Marks { marks, .. } if marks.len() > limits::GROUP_MEMBERS_MAX => Err(ErrorCode::BadFrame),
        Ask::Login { issuer, subject, .. } => super::login::check_identity(issuer, subject),
        _ => Ok(()),
    }
}

/// Refuses malformed ids, and a third party in a direct chat.
fn is_in(chat_id: ChatId, user_id: UserId) -> Result<(), ErrorCode> {
    match chat_id.kind() {
        Some(ChatKind::Group(_) | ChatKind::Channel(..)) => Ok(()),
        Some(ChatKind::Direct(low, high)) if user_id == low || user_id == high => Ok(()),
        _ => Err(ErrorCode::NoSuchChat),
    }
}
