//! The truth: every group that reached the disk, replayed by rules of its own, so that what the cores stored, numbered
//! and addressed can be judged against what they should have.

use crate::trace::digest;
use parley_protocol::body::kind;
use parley_protocol::frame::Change;
use parley_protocol::{
    Body, ChatId, ChatKind, ClientMsgId, ErrorCode, Event, MemberAction, MessageId, Posting, Role, UserId, partition,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use storage_core::store::{Append, EntryRow, Group, MarkRow};

/// What a device asked for, by the command's name.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// The chat; none for a creation.
    pub(crate) chat_id: Option<ChatId>,
    /// Of a message's body.
    pub(crate) digest: Option<u64>,
    /// What was acknowledged.
    pub(crate) sent: Option<(ChatId, MessageId, u64)>,
    /// It is a message; else it makes or changes a group.
    pub(crate) says: bool,
    /// When it was first sent.
    pub(crate) at: u64,
    /// The highest epoch under which a gateway asked the writer for it.
    pub(crate) epoch: u64,
    /// How often it was sent.
    pub(crate) copies: u32,
    /// The sender was told that it was not done, and never will be; and there is no other copy of it on its way.
    pub(crate) refused: bool,
}

/// An event of a log.
#[derive(Clone, Debug)]
pub(crate) struct Logged {
    pub(crate) message_id: MessageId,
    pub(crate) ordinal: u64,
    pub(crate) sender: UserId,
    pub(crate) sender_sent: u64,
    pub(crate) client_msg_id: ClientMsgId,
    pub(crate) kind: u16,
    pub(crate) digest: u64,
    /// The group that it came with, counted over all writers.
    pub(crate) group: u64,
    /// When it reached the disk.
    pub(crate) at: u64,
}

/// Somebody who is, or was, in a chat.
#[derive(Clone, Debug, Default)]
pub(crate) struct Member {
    pub(crate) present: bool,
    role: Option<Role>,
    /// When it got its role.
    role_since: u64,
    /// First and last `seq` that may be read; nothing for a last one while it is a member.
    pub(crate) spans: Vec<(u64, Option<u64>)>,
    sent: u64,
    pub(crate) marks: MarkRow,
}

impl Member {
    pub(crate) fn may_read(&self, seq: u64) -> bool {
        self.spans.iter().any(|(from, to)| *from <= seq && to.is_none_or(|to| seq <= to))
    }
}

/// A chat's log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chat {
    /// By `seq`, from 1.
    pub(crate) log: Vec<Logged>,
    pub(crate) members: BTreeMap<UserId, Member>,
    /// It had more members than leave entries, at some time.
    pub(crate) was_large: bool,
    titles: Vec<(u64, String)>,
    /// Own messages are not told from others'.
    channel: bool,
}

impl Chat {
    /// The title after an event.
    pub(crate) fn title_at(&self, seq: u64) -> &str {
        let title = self.titles.iter().rev().find(|(at, _)| *at <= seq);
        title.map_or("", |(_, title)| title)
    }

    /// Whether the user may have seen a title; no title is always one.
    pub(crate) fn may_know_title(&self, user: UserId, title: &str) -> bool {
        let member = self.members.get(&user);
        let mut seen = self.titles.iter().filter(|(seq, _)| member.is_some_and(|member| member.may_read(*seq)));
        title.is_empty() || seen.any(|(_, known)| known == title)
    }

    /// Whether the user was a member at some time in `from..`; `throughout`: all the time.
    pub(crate) fn was_member(&self, user: UserId, from: u64, throughout: bool) -> bool {
        let Some(member) = self.members.get(&user) else { return false };
        let time = |seq: u64| self.at(seq).map_or(u64::MAX, |logged| logged.at);
        member.spans.iter().any(|(joined, left)| {
            if throughout {
                time(*joined) <= from && left.is_none()
            } else {
                left.is_none_or(|left| time(left) >= from)
            }
        })
    }

    /// Whether a change that was first asked for at `since` must be done, by an owner who was it all the time, and may
    /// not be refused with `code`. Who gets which role, and who leaves, is not judged here.
    pub(crate) fn must_do(
        &self,
        user: UserId,
        change: &Change,
        since: u64,
        code: ErrorCode,
        members_max: usize,
    ) -> bool {
        let member = self.members.get(&user);
        if let Change::Join {} = change {
            // Whoever is not in a channel comes in, while there is room and somebody in it.
            let most = self.members.keys().filter(|user| self.was_member(**user, since, false)).count();
            let room = code != ErrorCode::GroupFull || most < members_max;
            let lives =
                code != ErrorCode::NoSuchChat || self.members.keys().any(|user| self.was_member(*user, since, true));
            return self.channel && !self.was_member(user, since, false) && room && lives;
        }
        if !member.is_some_and(|member| member.role == Some(Role::Owner) && member.role_since <= since) {
            return false;
        }
        let was_in = |user: &UserId| self.was_member(*user, since, false);
        match (change, code) {
            (Change::Rename { title }, ErrorCode::NoChange) => !self.had_title(title, since),
            (Change::Rename { .. }, _) => true,
            (Change::Add { users }, ErrorCode::NoChange) => !users.iter().all(was_in),
            (Change::Add { users }, ErrorCode::GroupFull) => {
                let most = self.members.keys().filter(|user| was_in(user)).count() + users.len();
                most <= members_max
            }
            (Change::Add { .. }, _) => true,
            (Change::Remove { users }, _) => {
                users.iter().all(|other| *other != user && self.was_member(*other, since, true))
            }
            (Change::Role { .. } | Change::Leave {} | Change::Join {}, _) => false,
        }
    }

    /// Whether the chat had a title at some time in `from..`.
    fn had_title(&self, title: &str, from: u64) -> bool {
        let ended = |at: usize| self.titles.get(at).and_then(|(seq, _)| self.at(*seq)).map(|logged| logged.at);
        let mut had = self.titles.iter().enumerate().filter(|(_, (_, known))| known == title);
        had.any(|(at, _)| ended(at + 1).is_none_or(|ended| ended >= from))
    }

    pub(crate) fn at(&self, seq: u64) -> Option<&Logged> {
        self.log.get(seq.checked_sub(1)? as usize)
    }

    pub(crate) fn head(&self) -> u64 {
        self.log.len() as u64
    }

    fn present(&self) -> BTreeSet<UserId> {
        self.members.iter().filter(|(_, member)| member.present).map(|(user, _)| *user).collect()
    }

    /// Messages of others above `read`, up to `head`, in what `user` may read.
    pub(crate) fn unread(&self, user: UserId, read: u64, head: u64) -> u64 {
        let of_others = |seq: &u64| {
            let event = self.at(*seq).expect("below the head");
            event.kind == kind::MESSAGE && (event.sender != user || self.channel)
        };
        (read + 1..=head.min(self.head())).filter(of_others).count() as u64
    }
}

/// A user's inbox.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inbox {
    /// By `inbox_seq`, from 1.
    pub(crate) rows: Vec<EntryRow>,
    of_event: HashMap<(ChatId, u64), u64>,
}

impl Inbox {
    pub(crate) fn head(&self) -> u64 {
        self.rows.len() as u64
    }

    /// The number of an event's entry.
    pub(crate) fn number(&self, chat_id: ChatId, seq: u64) -> Option<u64> {
        self.of_event.get(&(chat_id, seq)).copied()
    }

    /// The first event's entry in (after, before).
    pub(crate) fn event_between(&self, after: u64, before: u64) -> Option<(u64, ChatId, u64)> {
        (after + 1..before).find_map(|number| match self.rows.get(number as usize - 1)? {
            EntryRow::Event { chat_id, seq } => Some((number, *chat_id, *seq)),
            EntryRow::Own { .. } => None,
        })
    }
}

/// Everything that is durable.
#[derive(Default)]
pub(crate) struct Truth {
    pub(crate) chats: BTreeMap<ChatId, Chat>,
    pub(crate) inboxes: BTreeMap<UserId, Inbox>,
    /// Chats in which a user is or was.
    pub(crate) chats_of: BTreeMap<UserId, BTreeSet<ChatId>>,
    /// Groups in which nobody is left do not count.
    pub(crate) groups: Vec<ChatId>,
    pub(crate) asked: HashMap<(UserId, ClientMsgId), Asked>,
    named: HashMap<(ChatId, UserId, ClientMsgId), u64>,
    created: HashMap<(UserId, ClientMsgId), ChatId>,
    /// By partition: every epoch under which it was opened, with the group of that.
    opened: BTreeMap<u16, Vec<(u64, u64)>>,
    /// The highest epoch that was granted.
    granted: u64,
    group: u64,
    fanout_max: usize,
    /// On a cluster: the highest read marks that were ever sent there.
    pub(crate) expected: BTreeMap<(ChatId, UserId), u64>,
}

/// Names the oracle, then says what it saw.
pub(crate) type Verdict = Result<(), (&'static str, String)>;

fn ensure(holds: bool, oracle: &'static str, what: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err((oracle, what())) }
}

fn is_direct(chat_id: ChatId) -> bool {
    matches!(chat_id.kind(), Some(ChatKind::Direct(..)))
}

/// Whether an event says that its sender came in, and nothing else.
fn joins_alone(event: &Event) -> bool {
    let Ok(Body::Membership(body)) = event.envelope.to_body() else { return false };
    matches!(&body.changes[..], [one] if one.action == MemberAction::Added && one.user_id == event.sender && one.role == Role::Member)
}

impl Truth {
    pub(crate) fn new(fanout_max: usize) -> Truth {
        Truth { fanout_max, ..Truth::default() }
    }

    pub(crate) fn inbox_head(&self, user: UserId) -> u64 {
        self.inboxes.get(&user).map_or(0, Inbox::head)
    }

    /// Whether the user may see an event.
    pub(crate) fn may_read(&self, user: UserId, chat_id: ChatId, seq: u64) -> bool {
        let member = self.chats.get(&chat_id).and_then(|chat| chat.members.get(&user));
        member.is_some_and(|member| member.may_read(seq))
    }

    /// Whether the user is a member, and was one at `seq` in the same time: what it marks there is kept.
    pub(crate) fn keeps_marks(&self, user: UserId, chat_id: ChatId, seq: u64) -> bool {
        let member = self.chats.get(&chat_id).and_then(|chat| chat.members.get(&user));
        member.is_some_and(|member| member.present && member.spans.last().is_some_and(|(from, _)| *from <= seq))
    }

    pub(crate) fn is_member(&self, user: UserId, chat_id: ChatId) -> bool {
        let member = self.chats.get(&chat_id).and_then(|chat| chat.members.get(&user));
        member.is_some_and(|member| member.present)
    }

    /// A group reached the disk.
    pub(crate) fn take(&mut self, group: &Group, now: u64) -> Verdict {
        self.group += 1;
        let granted = self.granted;
        self.granted = granted.max(group.meta.as_ref().map_or(0, |meta| meta.home_epoch));
        for (partition, epoch) in &group.opened {
            let epochs = self.opened.entry(*partition).or_default();
            let risen = epochs.last().is_none_or(|(last, _)| last <= epoch);
            ensure(risen, "epochs", || {
                format!("partition {partition} is opened under epoch {epoch} after {epochs:?}")
            })?;
            epochs.push((*epoch, self.group));
        }
        let mut entries: BTreeMap<UserId, Vec<(u64, EntryRow)>> = BTreeMap::new();
        for append in &group.appends {
            self.take_append(append, now, granted)?;
            for entry in &append.entries {
                entries.entry(entry.user_id).or_default().push((entry.inbox_seq, entry.row));
            }
        }
        for write in &group.marks {
            let row = EntryRow::Own { chat_id: write.chat_id };
            if let Some(inbox_seq) = write.inbox_seq {
                entries.entry(write.user_id).or_default().push((inbox_seq, row));
            }
            self.take_marks(write.chat_id, write.user_id, write.row)?;
        }
        entries.into_iter().try_for_each(|(user, entries)| self.take_entries(user, entries))
    }

    /// An append stands by itself, on a cluster.
    pub(crate) fn take_one(&mut self, append: &Append, now: u64) -> Verdict {
        self.group += 1;
        let granted = self.granted;
        self.take_append(append, now, granted)
    }

    /// Entries of an inbox stand by themselves, on a cluster.
    pub(crate) fn take_inbox(&mut self, user: UserId, entries: Vec<(u64, EntryRow)>) -> Verdict {
        self.take_entries(user, entries)
    }

    /// Whether an event is in the log, as it is.
    pub(crate) fn is_logged(&self, event: &parley_protocol::Event) -> bool {
        let logged = self.chats.get(&event.chat_id).and_then(|chat| chat.at(event.seq));
        logged.is_some_and(|logged| {
            (logged.message_id, logged.sender, logged.client_msg_id, logged.kind, logged.digest)
                == (
                    event.message_id,
                    event.sender,
                    event.client_msg_id,
                    event.envelope.kind,
                    digest(&event.envelope.body),
                )
        })
    }

    fn take_entries(&mut self, user: UserId, mut entries: Vec<(u64, EntryRow)>) -> Verdict {
        let inbox = self.inboxes.entry(user).or_default();
        entries.sort_unstable_by_key(|(number, _)| *number);
        for (number, row) in entries {
            let next = inbox.head() + 1;
            ensure(number == next, "inboxes are dense", || format!("{user} gets entry {number} after {}", next - 1))?;
            if let EntryRow::Event { chat_id, seq } = row {
                let first = inbox.of_event.insert((chat_id, seq), number);
                ensure(first.is_none(), "once in an inbox", || format!("{user} gets {chat_id} {seq} twice"))?;
            }
            inbox.rows.push(row);
        }
        Ok(())
    }

    pub(crate) fn take_marks(&mut self, chat_id: ChatId, user: UserId, row: MarkRow) -> Verdict {
        let chat = self.chats.entry(chat_id).or_default();
        let marks = &mut chat.members.entry(user).or_default().marks;
        let rise = row.read_seq >= marks.read_seq && row.delivered_seq >= marks.delivered_seq;
        ensure(rise, "marks never fall", || format!("{user} in {chat_id}: {marks:?}, then {row:?}"))?;
        *marks = row;
        let head = chat.log.len() as u64;
        ensure(row.delivered_seq <= head, "marks", || format!("{user} in {chat_id}: {row:?} above the head {head}"))
    }

    fn take_append(&mut self, append: &Append, now: u64, granted: u64) -> Verdict {
        let chat_id = append.chat_id;
        let (group, fanout_max) = (self.group, self.fanout_max);
        if !self.chats.contains_key(&chat_id) && !is_direct(chat_id) {
            self.groups.push(chat_id);
        }
        let chat = self.chats.entry(chat_id).or_default();
        if let (Some(ChatKind::Direct(low, high)), 0) = (chat_id.kind(), chat.log.len()) {
            for user in [low, high] {
                let member = chat.members.entry(user).or_default();
                member.present = true;
                member.spans.push((1, None));
                self.chats_of.entry(user).or_default().insert(chat_id);
            }
        }
        for event in &append.events {
            let (seq, last) = (event.seq, chat.log.last());
            ensure(seq == chat.head() + 1, "seq is dense", || format!("{chat_id}: {seq} after {}", chat.head()))?;
            let is_message = event.envelope.kind == kind::MESSAGE;
            let ordinal = last.map_or(0, |last| last.ordinal) + u64::from(is_message);
            ensure(event.ordinal == ordinal, "ordinal is dense", || {
                format!("{chat_id} {seq}: ordinal {}, should be {ordinal}", event.ordinal)
            })?;
            let rises = last.is_none_or(|last| last.message_id < event.message_id);
            ensure(rises, "message_id rises", || format!("{chat_id} {seq}: {}", event.message_id))?;
            let before = chat.present();
            let founds = before.is_empty() && seq == 1;
            let joins = chat_id.is_channel() && joins_alone(event) && !before.is_empty();
            ensure(founds || joins || before.contains(&event.sender), "the log decides", || {
                format!("{chat_id} {seq}: {} is no member", event.sender)
            })?;
            let mut concerned = BTreeSet::new();
            let role = chat.members.get(&event.sender).and_then(|member| member.role);
            if let Ok(Body::Title(body)) = event.envelope.to_body() {
                ensure(role >= Some(Role::Admin), "the log decides", || {
                    format!("{chat_id} {seq}: {} renames as {role:?}", event.sender)
                })?;
                chat.titles.push((seq, body.title));
            }
            if let Ok(Body::Membership(body)) = event.envelope.to_body() {
                for change in body.changes {
                    let member = chat.members.entry(change.user_id).or_default();
                    let joins = change.action == MemberAction::Added;
                    let parts = matches!(change.action, MemberAction::Removed | MemberAction::Left);
                    ensure(if joins { !member.present } else { member.present }, "the log decides", || {
                        format!("{chat_id} {seq}: {change:?} does not fit the members")
                    })?;
                    let own = change.user_id == event.sender;
                    let may = match change.action {
                        MemberAction::Added => {
                            founds || role >= Some(Role::Admin) || (joins_alone(event) && own && chat_id.is_channel())
                        }
                        MemberAction::Removed => role >= Some(Role::Admin) && member.role < role && !own,
                        MemberAction::Left => own && (role < Some(Role::Owner) || before.len() == 1),
                        MemberAction::RoleChanged => role == Some(Role::Owner),
                    };
                    ensure(may, "the log decides", || {
                        format!("{chat_id} {seq}: {} as {role:?} does {change:?} to {member:?}", event.sender)
                    })?;
                    member.role = if parts { None } else { Some(change.role) };
                    member.role_since = now;
                    if joins {
                        member.present = true;
                        member.spans.push((seq, None));
                        self.chats_of.entry(change.user_id).or_default().insert(chat_id);
                    } else if parts {
                        member.present = false;
                        member.spans.last_mut().expect("it was present").1 = Some(seq);
                    }
                    if joins || parts {
                        concerned.insert(change.user_id);
                    }
                }
            }
            let after = chat.present();
            let channel = chat_id.is_channel();
            chat.channel = channel;
            chat.was_large |= channel || after.len() > fanout_max;
            let owners = chat.members.values().filter(|member| member.role == Some(Role::Owner)).count();
            let is_group = !is_direct(chat_id);
            ensure(!is_group || owners == usize::from(!after.is_empty()), "the log decides", || {
                format!("{chat_id} {seq}: {owners} owners of {} members", after.len())
            })?;
            // Rule 3: everybody before and after, unless the chat is large before and after.
            let large = channel || before.len() > fanout_max && after.len() > fanout_max;
            let mut expected = if large { BTreeSet::new() } else { after };
            expected.extend(concerned);
            let entries = append.entries.iter().filter(|entry| entry.row == EntryRow::Event { chat_id, seq });
            let targets: BTreeSet<UserId> = entries.map(|entry| entry.user_id).collect();
            ensure(targets == expected, "targets", || {
                format!("{chat_id} {seq}: entries for {targets:?}, should be {expected:?}")
            })?;
            let member = chat.members.entry(event.sender).or_default();
            // In a channel nobody's own messages are counted; who may write stands in its id.
            member.sent += u64::from(is_message && !channel);
            let admins_only = chat_id.kind().is_some_and(|kind| matches!(kind, ChatKind::Channel(_, Posting::Admins)));
            ensure(!is_message || !admins_only || role >= Some(Role::Admin), "the log decides", || {
                format!("{chat_id} {seq}: {} writes as {role:?}", event.sender)
            })?;
            let sent = member.sent;
            ensure(event.sender_sent == sent, "sent is counted", || {
                format!("{chat_id} {seq}: {} sent {sent}, the event says {}", event.sender, event.sender_sent)
            })?;
            let logged = Logged {
                message_id: event.message_id,
                ordinal,
                sender: event.sender,
                sender_sent: sent,
                client_msg_id: event.client_msg_id,
                kind: event.envelope.kind,
                digest: digest(&event.envelope.body),
                group,
                at: now,
            };
            let titles = seq == 2
                && event.envelope.kind == kind::TITLE
                && last.map(|last| last.client_msg_id) == Some(event.client_msg_id);
            let asked = self.asked.get(&(event.sender, event.client_msg_id));
            let Some(asked) = asked else {
                return Err(("nobody asked for it", format!("{chat_id} {seq} of {}", event.sender)));
            };
            let same = asked.digest.is_none_or(|digest| !is_message || digest == logged.digest);
            let there = asked.chat_id.is_none_or(|asked| asked == chat_id);
            ensure(same && there, "nobody asked for it", || format!("{chat_id} {seq} of {}", event.sender))?;
            let opened = self.opened.get(&partition::of_chat(chat_id));
            let opened = opened.into_iter().flatten().filter(|(_, at)| *at < group).map(|(epoch, _)| *epoch).max();
            let barrier = opened.unwrap_or(0).max(granted);
            ensure(asked.epoch >= barrier, "epochs", || {
                format!(
                    "{chat_id} {seq} was asked for under {} and committed after the barrier of {barrier}",
                    asked.epoch
                )
            })?;
            ensure(!asked.refused, "refused is refused", || {
                format!("{chat_id} {seq} of {}: the sender was told that it never will be", event.sender)
            })?;
            chat.log.push(logged);
            if titles {
                continue;
            }
            let key = (chat_id, event.sender, event.client_msg_id);
            let first = self.named.insert(key, seq);
            ensure(first.is_none(), "numbered once", || {
                format!("{chat_id}: {} of {} is {first:?} and {seq}", event.client_msg_id, event.sender)
            })?;
            if seq == 1 && !is_direct(chat_id) {
                let first = self.created.insert((event.sender, event.client_msg_id), chat_id);
                ensure(first.is_none(), "numbered once", || {
                    format!("{} creates {first:?} and {chat_id}", event.sender)
                })?;
            }
        }
        Ok(())
    }

    /// The epoch under which a partition was opened last; 0 for never.
    pub(crate) fn opened_under(&self, partition: u16) -> u64 {
        self.opened.get(&partition).and_then(|epochs| epochs.last()).map_or(0, |(epoch, _)| *epoch)
    }

    /// Rule 5: an event was committed for a gateway that ran under `epoch`.
    pub(crate) fn committed_under(&self, chat_id: ChatId, seq: u64, epoch: u64) -> Verdict {
        let Some(event) = self.chats.get(&chat_id).and_then(|chat| chat.at(seq)) else {
            return Err(("acknowledged is durable", format!("{chat_id} {seq} is answered and not on the disk")));
        };
        let opened = self.opened.get(&partition::of_chat(chat_id));
        let above = opened.into_iter().flatten().find(|(other, group)| *other > epoch && *group < event.group);
        ensure(above.is_none(), "epochs", || {
            format!("{chat_id} {seq} was committed under epoch {epoch} after the barrier of {above:?}")
        })
    }

    /// Where a command of a user is in the log, if it is.
    pub(crate) fn place(
        &self,
        sender: UserId,
        client_msg_id: ClientMsgId,
        asked: Option<ChatId>,
    ) -> Option<(ChatId, u64)> {
        match asked {
            Some(chat_id) => Some((chat_id, *self.named.get(&(chat_id, sender, client_msg_id))?)),
            None => self.created.get(&(sender, client_msg_id)).map(|chat_id| (*chat_id, 1)),
        }
    }

    /// A sender hears that its command is durable.
    pub(crate) fn acknowledged(&mut self, sender: UserId, sent: &parley_protocol::frame::Sent) -> Verdict {
        let heard = (sent.chat_id, sent.message_id, sent.seq);
        let Some(asked) = self.asked.get_mut(&(sender, sent.client_msg_id)) else {
            return Err(("nobody asked for it", format!("{sender} gets {sent:?}")));
        };
        let first = *asked.sent.get_or_insert(heard);
        ensure(first == heard, "one answer", || format!("{sender} got {first:?}, then {heard:?}"))?;
        let asked = asked.chat_id;
        let logged = self.chats.get(&sent.chat_id).and_then(|chat| chat.at(sent.seq));
        let matches = logged.is_some_and(|logged| {
            (logged.message_id, logged.sender, logged.client_msg_id) == (sent.message_id, sender, sent.client_msg_id)
        });
        let place = self.place(sender, sent.client_msg_id, asked);
        ensure(matches && place == Some((sent.chat_id, sent.seq)), "acknowledged is durable", || {
            format!("{sender} gets {sent:?}; the log has {logged:?}, the command's place is {place:?}")
        })
    }
}
