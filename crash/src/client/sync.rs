//! The end of a run, for one device: it learns the heads of its chats, waits until its stream has brought all of them,
//! fills chats that were large from history, reads the logs that it was chosen to read, and comes back once more with
//! its mark, so that its stream is surely at its end.

use super::device::{Device, State, seen};
use super::{Context, Gone};
use crash::history::Record;
use parley_protocol::frame::{ChatList, Chats, Error, History, HistoryPage};
use parley_protocol::{Body, ChatId, ClientFrame, ErrorCode, MemberAction};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// An answer that does not come is asked for again.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    /// The heads, page by page.
    Heads { after: Option<ChatId> },
    /// What a stream may leave out of a chat that was large.
    Fill { chat: ChatId, after: u64 },
    /// The final log, for the checker.
    Read { chat: ChatId, after: u64 },
}

/// What is left to do.
#[derive(Debug)]
pub(crate) struct Sync {
    jobs: VecDeque<Job>,
    /// Chats whose head was not reached yet.
    heads: Vec<(ChatId, u64)>,
    asked: Option<Instant>,
    request_id: u32,
    came_back: bool,
    pub(crate) done: bool,
}

impl Sync {
    /// `crossing`: to fill; `logs`: to read.
    pub(crate) fn new(crossing: &[ChatId], logs: &[ChatId]) -> Self {
        let mut jobs = VecDeque::from([Job::Heads { after: None }]);
        jobs.extend(crossing.iter().map(|chat| Job::Fill { chat: *chat, after: 0 }));
        jobs.extend(logs.iter().map(|chat| Job::Read { chat: *chat, after: 0 }));
        Self { jobs, heads: Vec::new(), asked: None, request_id: 0, came_back: false, done: false }
    }

    pub(crate) fn interrupted(&mut self) {
        self.asked = None;
    }

    /// What it waits for, for people.
    pub(crate) fn waits_for(&self) -> String {
        match self.jobs.front() {
            Some(job) => format!("an answer for {job:?}"),
            None if self.heads.is_empty() => "the end of its stream".to_owned(),
            None => format!("{} chats, first {:?}", self.heads.len(), self.heads[0]),
        }
    }
}

impl Device {
    pub(crate) fn drive_sync(&mut self, context: &mut Context) -> Result<(), Gone> {
        let now = context.now;
        if !self.is_live() {
            return Ok(());
        }
        let Some(sync) = self.sync.as_mut().filter(|sync| !sync.done) else { return Ok(()) };
        if let Some(job) = sync.jobs.front() {
            if sync.asked.is_none_or(|asked| now - asked > PATIENCE) {
                sync.asked = Some(now);
                sync.request_id += 1;
                let request_id = sync.request_id;
                let frame = match *job {
                    Job::Heads { after } => ClientFrame::Chats(Chats { request_id, after, limit: 0 }),
                    Job::Fill { chat, after } | Job::Read { chat, after } => {
                        let (chat_id, after) = (chat, Some(after));
                        ClientFrame::History(History { request_id, chat_id, before: None, after, limit: 0 })
                    }
                };
                self.say(context, &frame);
            }
            return Ok(());
        }
        let newest = &self.newest;
        sync.heads.retain(|(chat, head)| newest.get(chat).is_none_or(|newest| newest < head));
        if !sync.heads.is_empty() {
            return Ok(());
        }
        if !sync.came_back {
            sync.came_back = true;
            self.cut(now);
        } else if self.caught_up {
            sync.done = true;
        }
        Ok(())
    }

    fn answered(&mut self, request_id: u32) -> Option<Job> {
        let sync = self.sync.as_mut().filter(|sync| sync.request_id == request_id && sync.asked.is_some())?;
        sync.asked = None;
        sync.jobs.pop_front()
    }

    fn next_page(&mut self, job: Job) {
        if let Some(sync) = &mut self.sync {
            sync.jobs.push_front(job);
        }
    }

    pub(crate) fn synced_chats(&mut self, list: ChatList) {
        if self.answered(list.request_id).is_none() {
            return;
        }
        let last = list.chats.last().map(|chat| chat.chat_id);
        let heads = list.chats.iter().filter(|chat| !self.crossing.contains_key(&chat.chat_id));
        let heads: Vec<_> = heads.map(|chat| (chat.chat_id, chat.head_seq)).collect();
        if let Some(sync) = &mut self.sync {
            sync.heads.extend(heads);
        }
        if list.more {
            self.next_page(Job::Heads { after: last });
        }
    }

    pub(crate) fn synced_page(&mut self, context: &mut Context, page: HistoryPage) -> Result<(), Gone> {
        let Some(job) = self.answered(page.request_id) else { return Ok(()) };
        let device = self.number;
        let last = page.events.last().map_or(0, |event| event.seq);
        for event in &page.events {
            match job {
                Job::Heads { .. } => return Err(Gone(format!("device {device}: a page that nobody asked for"))),
                Job::Fill { chat, .. } => {
                    if self.crossing.entry(chat).or_default().insert(event.seq) {
                        context.write(Record::Fetch { device, seen: seen(event) })?;
                    }
                }
                Job::Read { chat, .. } => {
                    context.write(Record::Stored { seen: seen(event) })?;
                    if let Ok(Body::Membership(membership)) = event.envelope.to_body() {
                        for change in membership.changes.iter().filter(|it| it.action != MemberAction::RoleChanged) {
                            let (user, joined) = (change.user_id, change.action == MemberAction::Added);
                            context.write(Record::Member { chat, seq: event.seq, user, joined })?;
                        }
                    }
                }
            }
        }
        match job {
            _ if !page.more => {}
            Job::Heads { .. } => {}
            Job::Fill { chat, .. } => self.next_page(Job::Fill { chat, after: last }),
            Job::Read { chat, .. } => self.next_page(Job::Read { chat, after: last }),
        }
        Ok(())
    }

    /// An error without a command: of a request, or of a subscription or mark, which may come too late.
    pub(crate) fn synced_error(&mut self, _context: &mut Context, error: &Error) -> Result<(), Gone> {
        let Some(request_id) = error.request_id else {
            let harmless = matches!(error.code, ErrorCode::NoSuchChat | ErrorCode::Unavailable | ErrorCode::TooMany);
            return if harmless { Ok(()) } else { Err(Gone(format!("device {}: {error:?}", self.number))) };
        };
        let Some(job) = self.answered(request_id) else { return Ok(()) };
        match error.code {
            // A direct chat without a message, or a group that a guest was never let into.
            ErrorCode::NoSuchChat => Ok(()),
            ErrorCode::Unavailable | ErrorCode::RateLimited | ErrorCode::TooMany => {
                self.next_page(job);
                Ok(())
            }
            _ => Err(Gone(format!("device {}: {job:?} was refused: {error:?}", self.number))),
        }
    }

    /// For people: why it is not done.
    pub(crate) fn explain(&self) -> String {
        let state = match &self.state {
            State::Away { .. } => "away",
            State::Dialling(_) => "dialling",
            State::Greeting(_) => "greeting",
            State::Live(_) => "live",
        };
        let waits = self.sync.as_ref().map_or_else(|| "its commands".to_owned(), Sync::waits_for);
        let kept = self.kept.len();
        format!("device {} of user {} is {state}, keeps {kept}, waits for {waits}", self.number, self.user_id)
    }
}
