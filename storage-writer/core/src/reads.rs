//! Answers to reads: pure functions over a [`View`], used by reader threads and the simulator. They stop at what is
//! confirmed, because the view does.
//!
//! A view may be of several moments. So the order is: a head first, then what must not be older than it: memberships,
//! then marks. What turns out to be newer than the head is cut back to it, or is true before its event is told.

use crate::planted::{self, Bug};
use crate::store::{EntryRow, MarkRow, MemberRow, ReadError, View, Want};
use crate::writer::{Options, check_identity};
use parley_protocol::event::unread;
use parley_protocol::frame::{ChatSummary, Interval, Member, UserName};
use parley_protocol::limits;
use parley_protocol::link::{Ask, InboxEntry, InboxPage, Reply};
use parley_protocol::{ChatId, ErrorCode, Event, OwnState, UserId};

/// What an operator may set of reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// As the writer's.
    pub inbox_fanout_members_max: usize,
    /// As the writer's.
    pub sync_backlog_max: u64,
    /// Bytes of events in one page; the first event always fits. At most [`limits::PAGE_BYTES_MAX`], which is what links
    /// have room for.
    pub page_bytes_max: usize,
}

impl From<&Options> for ReadOptions {
    /// What goes with a writer's options: pages as large as they may be.
    fn from(options: &Options) -> ReadOptions {
        ReadOptions {
            inbox_fanout_members_max: options.inbox_fanout_members_max,
            sync_backlog_max: options.sync_backlog_max,
            page_bytes_max: limits::PAGE_BYTES_MAX,
        }
    }
}

/// Answers a read. Damage comes as `Refused(Damaged)`, what may be asked again as `Refused(Unavailable)`; a request that
/// is no read as `Refused(BadFrame)`.
pub fn answer(view: &(impl View + ?Sized), options: &ReadOptions, ask: &Ask) -> Reply {
    let reply = match ask {
        Ask::Inbox { user_id, after, limit } => inbox(view, options, *user_id, *after, *limit),
        Ask::History { user_id, chat_id, before, after, limit } => {
            history(view, options, *user_id, *chat_id, (*before, *after), *limit)
        }
        Ask::Chats { user_id, after, limit } => chats(view, options, *user_id, *after, *limit),
        Ask::Members { user_id, chat_id, after, limit } => members(view, *user_id, *chat_id, *after, *limit),
        Ask::Resolve { names } => resolve(view, names),
        Ask::Profiles { users } => profiles(view, users),
        Ask::LookUp { issuer, subject } => look_up(view, issuer, subject),
        _ => Ok(Reply::Refused(ErrorCode::BadFrame)),
    };
    reply.unwrap_or_else(|error| {
        Reply::Refused(match error {
            ReadError::Damaged(_) => ErrorCode::Damaged,
            ReadError::Unavailable(_) => ErrorCode::Unavailable,
        })
    })
}

fn missing(what: impl std::fmt::Display) -> ReadError {
    ReadError::Damaged(format!("{what} is missing"))
}

/// Entries whose events are asked for at once: a page may end soon.
const ENTRIES_AHEAD: usize = 64;

/// Takes events while they fit a page; the first always does.
struct Page {
    bytes: usize,
    bytes_max: usize,
    any: bool,
}

impl Page {
    fn new(options: &ReadOptions) -> Page {
        let bytes_max = if planted::has(Bug::PageUnbounded) { usize::MAX } else { options.page_bytes_max };
        Page { bytes: 0, bytes_max, any: false }
    }

    fn takes(&mut self, event: &Event) -> bool {
        // An event's own fields, besides its body.
        const EVENT_BYTES: usize = 96;
        self.bytes += event.envelope.body.len() + EVENT_BYTES;
        let takes = !self.any || self.bytes <= self.bytes_max;
        self.any = true;
        takes
    }
}

fn limit_of(asked: u32, max: u32) -> usize {
    if asked == 0 { max as usize } else { asked.min(max) as usize }
}

/// A page of an inbox: the head first, then the entries above `after`. A backlog above `sync_backlog_max`, or an
/// `after` above the head, has no entries: the session judges it from `after` and `head`.
fn inbox(
    view: &(impl View + ?Sized),
    options: &ReadOptions,
    user_id: UserId,
    after: u64,
    limit: u32,
) -> Result<Reply, ReadError> {
    let head = view.user(user_id)?.map_or(0, |user| user.inbox_head);
    let mut page = InboxPage { after, to: after, head, entries: Vec::new() };
    if limit == 0 || after >= head || head - after > options.sync_backlog_max {
        return Ok(Reply::Inbox(page));
    }
    let limit = u64::from(limit.min(limits::INBOX_PAGE_MAX)).min(head - after) as u32;
    let mut size = Page::new(options);
    let mut owns: Vec<(usize, ChatId)> = Vec::new();
    let entries = view.entries(user_id, after, limit)?;
    for (at, (inbox_seq, row)) in entries.iter().copied().enumerate() {
        if at % ENTRIES_AHEAD == 0 {
            view.ahead(&events_of(&entries[at..entries.len().min(at + ENTRIES_AHEAD)]));
        }
        if inbox_seq != page.to + 1 {
            return Err(missing(format_args!("entry {} of the inbox of {user_id}", page.to + 1)));
        }
        if inbox_seq > head {
            break;
        }
        let entry = match row {
            EntryRow::Event { chat_id, seq } => {
                let event = view.event(chat_id, seq)?;
                let event = event.ok_or_else(|| missing(format_args!("event {seq} of chat {chat_id}")))?;
                if !size.takes(&event) {
                    break;
                }
                InboxEntry::Event(event)
            }
            EntryRow::Own { chat_id } => {
                size.any = true;
                owns.push((page.entries.len(), chat_id));
                InboxEntry::Empty
            }
        };
        page.to = inbox_seq;
        page.entries.push(entry);
    }
    if page.to == after {
        return Err(missing(format_args!("entry {} of the inbox of {user_id}", after + 1)));
    }
    let marks = owns.iter().map(|(_, chat_id)| Want::Marks { chat_id: *chat_id, user_id });
    view.ahead(&marks.collect::<Vec<_>>());
    // The last of a chat's entries in the page carries the newest value, the ones before it are superseded.
    let mut told = hashbrown::HashSet::new();
    for (at, chat_id) in owns.into_iter().rev() {
        if told.insert(chat_id) {
            page.entries[at] = InboxEntry::Own(own_state(chat_id, &view.marks(chat_id, user_id)?));
        }
    }
    if planted::has(Bug::SupersededOmitted) {
        page.entries.retain(|entry| *entry != InboxEntry::Empty);
        page.to = after + page.entries.len() as u64;
    }
    if planted::has(Bug::PageMovesTooFar) {
        page.to = head;
    }
    Ok(Reply::Inbox(page))
}

fn events_of(entries: &[(u64, EntryRow)]) -> Vec<Want> {
    let event = |(_, row): &(u64, EntryRow)| match *row {
        EntryRow::Event { chat_id, seq } => Some(Want::Event { chat_id, seq }),
        EntryRow::Own { .. } => None,
    };
    entries.iter().filter_map(event).collect()
}

fn own_state(chat_id: ChatId, marks: &MarkRow) -> OwnState {
    OwnState {
        chat_id,
        read_seq: marks.read_seq,
        read_ordinal: marks.read_ordinal,
        read_sent: marks.read_sent,
        muted_until_ms: if planted::has(Bug::MuteForgotten) { 0 } else { marks.muted_until_ms },
    }
}

/// Whether the user may look at the chat: its membership, or none yet in a direct chat that nobody wrote in.
enum Access {
    Member(MemberRow),
    Unwritten,
    None,
}

fn access(view: &(impl View + ?Sized), chat_id: ChatId, user_id: UserId) -> Result<Access, ReadError> {
    if let Some(row) = view.member(chat_id, user_id)? {
        return Ok(Access::Member(row));
    }
    let Some(peer) = chat_id.peer_of(user_id) else { return Ok(Access::None) };
    let both = view.profile(peer)?.is_some() && view.profile(user_id)?.is_some();
    Ok(if both { Access::Unwritten } else { Access::None })
}

/// The ranges of `seq` within `low..=high` that the intervals allow, rising, without overlap.
fn ranges(intervals: &[Interval], low: u64, high: u64) -> Vec<(u64, u64)> {
    if planted::has(Bug::HistoryOutsideIntervals) && low <= high {
        return vec![(low, high)];
    }
    let unserved = u64::from(planted::has(Bug::RemovalNotServed));
    let last_of = |interval: &Interval| interval.left_seq.map_or(high, |left_seq| left_seq - unserved);
    let mut ranges: Vec<(u64, u64)> = intervals
        .iter()
        .map(|interval| (interval.history_from.max(low), last_of(interval).min(high)))
        .filter(|(from, to)| from <= to)
        .collect();
    ranges.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
    for (from, to) in ranges {
        match merged.last_mut() {
            Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(to),
            _ => merged.push((from, to)),
        }
    }
    merged
}

fn history(
    view: &(impl View + ?Sized),
    options: &ReadOptions,
    user_id: UserId,
    chat_id: ChatId,
    (before, after): (Option<u64>, Option<u64>),
    limit: u32,
) -> Result<Reply, ReadError> {
    // Before the membership: nothing above it is served, so a removal that lands in between hides nothing from view.
    let head = view.head(chat_id)?.map_or(0, |event| event.seq);
    let row = match access(view, chat_id, user_id)? {
        Access::Member(row) if row.role.is_some() || !planted::has(Bug::FormerMembersRefused) => row,
        Access::Unwritten => return Ok(Reply::History { events: Vec::new(), more: false }),
        Access::Member(_) | Access::None => return Ok(Reply::Refused(ErrorCode::NoSuchChat)),
    };
    if before.is_some() && after.is_some() {
        return Ok(Reply::Refused(ErrorCode::BadFrame));
    }
    let low = after.map_or(1, |after| after.saturating_add(1));
    let high = before.map_or(head, |before| before.saturating_sub(1).min(head));
    let newest_first = after.is_none();
    let mut ranges = ranges(&row.intervals, low, high);
    if newest_first {
        ranges.reverse();
    }
    let limit = limit_of(limit, limits::HISTORY_PAGE_MAX);
    let mut size = Page::new(options);
    let mut events: Vec<Event> = Vec::new();
    let mut more = false;
    'ranges: for (from, to) in ranges {
        let room = limit - events.len();
        if room == 0 {
            more = true;
            break;
        }
        let found = view.events(chat_id, from, to, room as u32, newest_first)?;
        if found.len() as u64 != (to - from + 1).min(room as u64) {
            return Err(missing(format_args!("an event of chat {chat_id} in {from}..={to}")));
        }
        more = (to - from + 1) > room as u64;
        for event in found {
            if !size.takes(&event) {
                more = !planted::has(Bug::PageCutUntold);
                break 'ranges;
            }
            events.push(event);
        }
        if more {
            break;
        }
    }
    if newest_first {
        events.reverse();
    }
    Ok(Reply::History { events, more })
}

fn chats(
    view: &(impl View + ?Sized),
    options: &ReadOptions,
    user_id: UserId,
    after: Option<ChatId>,
    limit: u32,
) -> Result<Reply, ReadError> {
    let limit = limit_of(limit, limits::CHATS_PAGE_MAX);
    let mut rows = view.chats(user_id, after, limit as u32 + 1)?;
    let mut more = rows.len() > limit;
    rows.truncate(limit);
    rows.retain(|(_, row)| row.role.is_some() || !planted::has(Bug::LeftChatsOmitted));
    let wants = rows.iter().map(|(chat_id, _)| Want::Chat { chat_id: *chat_id, user_id });
    view.ahead(&wants.collect::<Vec<_>>());
    let mut size = Page::new(options);
    let mut chats = Vec::with_capacity(rows.len());
    for (chat_id, row) in rows {
        let Some(summary) = summary(view, options, user_id, chat_id, row)? else { continue };
        if let Some(last) = &summary.last
            && !size.takes(last)
        {
            more = !planted::has(Bug::PageCutUntold);
            break;
        }
        chats.push(summary);
    }
    Ok(Reply::Chats { chats, more })
}

/// The membership as of the head, or nothing when it began later. A removal above the head stays: it will be told.
fn as_of(mut row: MemberRow, head_seq: u64) -> Option<MemberRow> {
    let joined = row.intervals.len();
    row.intervals.retain(|interval| interval.joined_seq <= head_seq);
    if row.intervals.len() < joined {
        row.role = None;
    }
    (!row.intervals.is_empty()).then_some(row)
}

/// A chat as one of its members, or a former one, sees it; nothing to who joined above the head.
fn summary(
    view: &(impl View + ?Sized),
    options: &ReadOptions,
    user_id: UserId,
    chat_id: ChatId,
    row: MemberRow,
) -> Result<Option<ChatSummary>, ReadError> {
    let head = view.head(chat_id)?.ok_or_else(|| missing(format_args!("the head of chat {chat_id}")))?;
    let checkpoint = view.checkpoint(chat_id)?;
    let row = if view.is_snapshot() {
        row
    } else {
        // The one that led here may be older than the head, and so not know of a removal below it.
        let newer = view.member(chat_id, user_id)?.unwrap_or(row);
        let Some(row) = as_of(newer, head.seq) else { return Ok(None) };
        row
    };
    let direct = chat_id.peer_of(user_id).is_some();
    // Nobody sends after leaving: what was sent up to the head was sent up to what one may see.
    let channel = chat_id.is_channel();
    let sent = if channel {
        // Own messages are not counted.
        0
    } else if direct && head.sender == user_id {
        head.sender_sent
    } else if direct {
        head.ordinal.saturating_sub(head.sender_sent)
    } else {
        let until = checkpoint.sent.iter().find(|(sender, _)| *sender == user_id).map_or(0, |(_, sent)| *sent);
        until + view.count_messages(chat_id, user_id, checkpoint.seq + 1, head.seq)?
    };
    let present = channel.then(|| checkpoint.channel_members() as u32);
    let wrong = planted::has(Bug::TitleWrong) && !direct;
    let title = if wrong { "wrong".to_owned() } else { title(view, chat_id, checkpoint, &row, direct)? };
    let visible_seq = row.intervals.last().and_then(|interval| interval.left_seq).unwrap_or(head.seq).min(head.seq);
    let last = if visible_seq == head.seq {
        head
    } else {
        let event = view.event(chat_id, visible_seq)?;
        event.ok_or_else(|| missing(format_args!("event {visible_seq} of chat {chat_id}")))?
    };
    let marks = view.marks(chat_id, user_id)?;
    let (read_seq, read_ordinal) = (last.seq, last.ordinal);
    let marks = if marks.read_seq > read_seq && !view.is_snapshot() {
        crate::store::MarkRow { read_seq, read_ordinal, read_sent: sent, ..marks }
    } else {
        marks
    };
    let delivered_seq = marks.delivered_seq.min(if view.is_snapshot() { u64::MAX } else { last.seq });
    let marks = match () {
        () if planted::has(Bug::ListReadsAll) => {
            crate::store::MarkRow { read_seq, read_ordinal, read_sent: sent, ..marks }
        }
        () => marks,
    };
    let sent = if planted::has(Bug::OwnMessagesUnread) { marks.read_sent } else { sent };
    let members = match present {
        Some(present) => present,
        None => view.member_count(chat_id)?,
    };
    Ok(Some(ChatSummary {
        chat_id,
        title,
        members,
        role: row.role,
        head_seq: last.seq,
        head_ordinal: last.ordinal,
        delivered_seq,
        own: own_state(chat_id, &marks),
        unread: unread(last.ordinal, sent, marks.read_ordinal, marks.read_sent),
        intervals: row.intervals,
        large: channel || members as usize > options.inbox_fanout_members_max,
        last: Some(last),
    }))
}

/// The title: the checkpoint's, which is written with every change of it. Who left does not learn of a later one.
fn title(
    view: &(impl View + ?Sized),
    chat_id: ChatId,
    checkpoint: crate::store::Checkpoint,
    row: &MemberRow,
    direct: bool,
) -> Result<String, ReadError> {
    let left = row.intervals.last().and_then(|interval| interval.left_seq);
    let Some(left) = left.filter(|left| !direct && *left < checkpoint.seq) else { return Ok(checkpoint.title) };
    // Looked for among the newest events that one may see, then given up: a title is a courtesy to those who left.
    const LOOKED_AT_MAX: u32 = 64;
    for (from, to) in ranges(&row.intervals, 1, left).into_iter().rev().take(4) {
        for event in view.events(chat_id, from, to, LOOKED_AT_MAX, true)? {
            if let Ok(parley_protocol::Body::Title(title)) = event.envelope.to_body() {
                return Ok(title.title);
            }
        }
    }
    Ok(String::new())
}

fn members(
    view: &(impl View + ?Sized),
    asker: UserId,
    chat_id: ChatId,
    after: Option<UserId>,
    limit: u32,
) -> Result<Reply, ReadError> {
    match access(view, chat_id, asker)? {
        Access::Member(row) if row.role.is_some() => {}
        Access::Unwritten => return Ok(unwritten_members(chat_id, asker, after)),
        _ => return Ok(Reply::Refused(ErrorCode::NoSuchChat)),
    }
    let limit = limit_of(limit, limits::MEMBERS_PAGE_MAX);
    let mut members = Vec::new();
    let mut at = after;
    // Former members are skipped, in bounded steps of a page.
    loop {
        let rows = view.members(chat_id, at, limit as u32 + 1)?;
        let whole = rows.len() <= limit;
        let wants = rows.iter().take(limit).map(|(user_id, _)| Want::Marks { chat_id, user_id: *user_id });
        view.ahead(&wants.collect::<Vec<_>>());
        for (user_id, row) in rows {
            at = Some(user_id);
            let former = planted::has(Bug::FormerMembersListed).then_some(parley_protocol::Role::Member);
            let Some(role) = row.role.or(former) else { continue };
            if members.len() == limit {
                return listed(view, chat_id, asker, members, true);
            }
            let marks = view.marks(chat_id, user_id)?;
            members.push(Member { user_id, role, delivered_seq: marks.delivered_seq, read_seq: marks.read_seq });
        }
        if whole {
            return listed(view, chat_id, asker, members, false);
        }
    }
}

/// A list of members, unless who asked was removed while it was read.
fn listed(
    view: &(impl View + ?Sized),
    chat_id: ChatId,
    asker: UserId,
    members: Vec<Member>,
    more: bool,
) -> Result<Reply, ReadError> {
    if !view.is_snapshot() && view.member(chat_id, asker)?.is_none_or(|row| row.role.is_none()) {
        return Ok(Reply::Refused(ErrorCode::NoSuchChat));
    }
    Ok(Reply::Members { members, more })
}

fn unwritten_members(chat_id: ChatId, user_id: UserId, after: Option<UserId>) -> Reply {
    let mut users: Vec<UserId> = chat_id.peer_of(user_id).into_iter().chain([user_id]).collect();
    users.sort_unstable();
    users.retain(|user| after.is_none_or(|after| *user > after));
    let member = |user_id| Member { user_id, role: parley_protocol::Role::Member, delivered_seq: 0, read_seq: 0 };
    Reply::Members { members: users.into_iter().map(member).collect(), more: false }
}

fn resolve(view: &(impl View + ?Sized), names: &[String]) -> Result<Reply, ReadError> {
    let mut users = Vec::new();
    let wants = names.iter().take(limits::RESOLVE_MAX).map(|name| Want::Unique(crate::store::name_key(name)));
    view.ahead(&wants.collect::<Vec<_>>());
    for name in names.iter().take(limits::RESOLVE_MAX) {
        if let Some(value) = view.unique(&crate::store::name_key(name))? {
            users.push(UserName { user_id: UserId(value as u64), name: name.clone() });
        }
    }
    Ok(Reply::Users(users))
}

fn profiles(view: &(impl View + ?Sized), asked: &[UserId]) -> Result<Reply, ReadError> {
    let mut users = Vec::new();
    view.ahead(&asked.iter().take(limits::RESOLVE_MAX).copied().map(Want::Profile).collect::<Vec<_>>());
    for user_id in asked.iter().take(limits::RESOLVE_MAX) {
        if let Some(row) = view.profile(*user_id)? {
            users.push(UserName { user_id: *user_id, name: row.name });
        }
    }
    Ok(Reply::Users(users))
}

/// The user of an identity; an identity that no token can carry has none.
fn look_up(view: &(impl View + ?Sized), issuer: &str, subject: &str) -> Result<Reply, ReadError> {
    let found = match check_identity(issuer, subject) {
        Ok(()) => view.unique(&crate::store::identity_key(issuer, subject))?,
        Err(_) => None,
    };
    let Some(value) = found else { return Ok(Reply::Refused(ErrorCode::NoSuchUser)) };
    let user_id = UserId(value as u64);
    let row = view.profile(user_id)?.ok_or_else(|| missing(format_args!("user {user_id} of an identity")))?;
    Ok(Reply::LoggedIn(UserName { user_id, name: row.name }))
}
