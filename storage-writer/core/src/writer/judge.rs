//! Judging and numbering: every decision against the state as numbered, every number in one place.

use super::Writer;
use super::cache::{Chat, Member, Seats, User};
use super::jobs::{Answered, JobKey, Judged};
use super::loads::{NameState, Need};
use super::roles::{Decision, Room, decide, distinct, title_fits};
use crate::planted::{self, Bug};
use crate::store::{CommandName, CommandRow, Entry, EntryRow, MarkRow, MarkWrite};
use parley_idgen::{EPOCH_UNIX_MS, NotYet, SEQUENCE_BITS, WORKER_BITS};
use parley_protocol::body::{Body, Envelope, MembershipBody, TitleBody, check_message, kind};
use parley_protocol::frame::Change;
use parley_protocol::link::{Action, Ask, ChatState, Command, Committed, Marked, MemberState, Reply, Target};
use parley_protocol::{
    ChatId, ChatKind, ErrorCode, Event, MemberAction, MemberChange, MessageId, Posting, Role, UserId, limits,
};

/// Refuses a command that names more than any state allows.
pub(super) fn check_command_shape(command: &Command) -> Result<(), ErrorCode> {
    match (&command.action, command.chat_id) {
        (Action::Create { members, .. }, None) if members.len() > limits::GROUP_MEMBERS_MAX => {
            Err(ErrorCode::GroupFull)
        }
        (Action::Create { title, .. } | Action::CreateChannel { title, .. }, None) if !title_fits(title) => {
            Err(ErrorCode::BadFrame)
        }
        (Action::Create { .. } | Action::CreateChannel { .. }, None) | (Action::Send(_), Some(_)) => Ok(()),
        (Action::Change(Change::Add { users } | Change::Remove { users }), Some(_))
            if users.len() > limits::MEMBER_CHANGES_MAX =>
        {
            Err(ErrorCode::BadFrame)
        }
        (Action::Change(_), Some(_)) => Ok(()),
        (Action::Create { .. } | Action::CreateChannel { .. }, Some(_)) | (_, None) => Err(ErrorCode::BadFrame),
    }
}

pub(super) fn membership(changes: &[MemberChange]) -> Envelope {
    Body::Membership(MembershipBody { changes: changes.to_vec() }).to_envelope()
}

fn title_event(title: &str) -> Envelope {
    Body::Title(TitleBody { title: title.to_owned() }).to_envelope()
}

pub(super) fn added(user_id: UserId, role: Role) -> MemberChange {
    MemberChange { user_id, action: MemberAction::Added, role }
}

impl Writer {
    pub(super) fn needs_of_create(&self, command: &Command, needs: &mut Vec<Need>) {
        needs.push(Need::User(command.sender));
        if let Action::Create { members, .. } = &command.action {
            needs.extend(members.iter().copied().map(Need::User));
        }
    }

    /// The inboxes that may get an entry: everybody's, unless the chat is large before and after.
    pub(super) fn needs_of_command(&self, chat_id: ChatId, chat: &Chat, command: &Command, needs: &mut Vec<Need>) {
        if chat.channel {
            return self.needs_of_channel(chat_id, chat, command, needs);
        }
        if !chat.may_send(chat.member(command.sender)) {
            return;
        }
        let max = self.options.inbox_fanout_members_max;
        let mut fewest = chat.present;
        match &command.action {
            Action::Change(Change::Add { users }) => needs.extend(users.iter().copied().map(Need::User)),
            Action::Change(Change::Remove { users }) => {
                let present = users.iter().copied().filter(|user| chat.role(*user).is_some());
                needs.extend(present.map(Need::User));
                fewest = fewest.saturating_sub(users.len());
            }
            Action::Change(Change::Leave {}) => {
                needs.push(Need::User(command.sender));
                fewest = fewest.saturating_sub(1);
            }
            _ => {}
        }
        if fewest <= max {
            needs.extend(chat.present_members().map(|member| Need::User(member.user_id)));
        }
    }

    /// Judges a job whose needs are in memory.
    pub(super) fn judge(&mut self, key: JobKey) -> Judged {
        let to = self.jobs[key].to;
        if self.is_dead(&to, &self.jobs[key].ask) && !planted::has(Bug::DeadEpochsJudged) {
            // A higher epoch was numbered while it waited.
            self.attach(to, Reply::Fenced);
            return Judged::Done;
        }
        // The request is taken out for as long as it is judged; a stalled one goes back.
        let mut ask = std::mem::replace(&mut self.jobs[key].ask, Ask::Open { partition: 0 });
        let judged = match &mut ask {
            Ask::LoadChat { chat_id } => self.judge_load(to, *chat_id),
            Ask::Among { chat_id, users } => self.judge_among(to, *chat_id, users),
            Ask::Command(command) => self.judge_command(to, command),
            Ask::Marks { chat_id, marks } => {
                let facts = std::mem::take(&mut self.jobs[key].facts);
                let judged = self.judge_marks(to, *chat_id, marks, &facts);
                self.jobs[key].facts = facts;
                judged
            }
            Ask::Mute { chat_id, user_id, until_ms } => self.judge_mute(to, *chat_id, *user_id, *until_ms),
            Ask::Login { issuer, subject, name } => self.judge_login(to, (issuer, subject, name)),
            _ => unreachable!("only these are parked"),
        };
        self.jobs[key].ask = ask;
        judged
    }

    /// A direct chat that nobody wrote in has its two members as soon as both users are known to exist.
    pub(super) fn greet(&mut self, chat_id: ChatId) {
        let Some(ChatKind::Direct(low, high)) = chat_id.kind() else { return };
        let chat = self.chats.get_mut(chat_id).expect("the job was prepared");
        let exists = |user: UserId| self.users.get(user).is_some_and(|user| user.exists);
        if chat.head_seq == 0 && chat.members.is_empty() && exists(low) && exists(high) {
            chat.join(low, Role::Member, 1);
            chat.join(high, Role::Member, 1);
        }
    }

    fn judge_load(&mut self, to: Answered, chat_id: ChatId) -> Judged {
        self.greet(chat_id);
        let chat = self.chats.get(chat_id).expect("the job was prepared");
        let written = if chat.channel { chat.head_seq > 0 } else { !chat.members.is_empty() };
        let reply = if !written {
            Reply::Refused(ErrorCode::NoSuchChat)
        } else {
            Reply::Chat(ChatState {
                head_seq: chat.head_seq,
                head_ordinal: chat.head_ordinal,
                large: chat.channel || chat.present > self.options.inbox_fanout_members_max,
                members: chat.present_members().filter_map(member_state).collect(),
            })
        };
        self.attach(to, reply);
        Judged::Done
    }

    fn judge_command(&mut self, to: Answered, command: &mut Command) -> Judged {
        let chat_id = command.chat_id.unwrap_or(ChatId(0));
        let name = CommandName { chat_id, sender: command.sender, client_msg_id: command.client_msg_id };
        let state = self.names.get(&name).expect("the job waits on it").state;
        let flies = matches!(state, NameState::Flight(_));
        if let NameState::Known(Some(row)) | NameState::Flight(row) = state
            && !(flies && planted::has(Bug::LooksUpOnlyDurable))
        {
            let reply = self.answer_to_retry(command, &row);
            if planted::has(Bug::DuplicateAnsweredAtOnce) {
                self.answer(to, reply);
            } else {
                self.attach(to, reply);
            }
            return Judged::Done;
        }
        if !self.has_room() || !self.append_has_room(chat_id) {
            return Judged::Stalled;
        }
        let numbered = match (&mut command.action, command.chat_id) {
            (Action::Send(envelope), Some(chat_id)) => self.judge_send(chat_id, &name, envelope),
            (Action::Change(change), Some(chat_id)) => self.judge_change(chat_id, &name, change),
            (Action::Create { title, members }, None) => self.judge_create(&name, title, members),
            (Action::CreateChannel { title, posting }, None) => self.judge_channel(&name, title, *posting),
            _ => Err(Refusal::Code(ErrorCode::BadFrame)),
        };
        match numbered {
            Ok(committed) => {
                self.gathering.commands += 1;
                self.attach(to, Reply::Durable(committed));
                Judged::Done
            }
            Err(Refusal::Code(code)) => {
                self.attach(to, Reply::Refused(code));
                Judged::Done
            }
            Err(Refusal::NoId(refusal)) => self.without_id(to, refusal),
        }
    }

    /// Rule 2: what a command was answered with first.
    fn answer_to_retry(&self, command: &Command, row: &CommandRow) -> Reply {
        let CommandRow { chat_id, message_id, seq, .. } = *row;
        let chat = self.chats.get(chat_id);
        let is_none =
            |chat: &Chat| chat.seat(chat_id, &self.seats, command.sender).is_none_or(|member| member.role.is_none());
        if planted::has(Bug::RetryJudgedFirst) && chat.is_some_and(is_none) {
            return Reply::Refused(ErrorCode::NoSuchChat);
        }
        match chat {
            Some(chat) if planted::has(Bug::RetryToldTheNewest) => {
                Reply::Duplicate { chat_id, message_id: MessageId(chat.last_message_id), seq: chat.head_seq }
            }
            _ => Reply::Duplicate { chat_id, message_id, seq },
        }
    }

    /// No id can be given: the job waits if that is soon over, else it fails.
    pub(super) fn without_id(&mut self, to: Answered, refusal: NotYet) -> Judged {
        match refusal {
            NotYet::Unreserved { .. } | NotYet::NotBefore { .. } => Judged::Stalled,
            NotYet::ClockBehind { .. } | NotYet::Exhausted => {
                self.attach(to, Reply::Failed);
                Judged::Done
            }
        }
    }

    fn judge_send(
        &mut self,
        chat_id: ChatId,
        name: &CommandName,
        envelope: &mut Envelope,
    ) -> Result<Vec<Committed>, Refusal> {
        self.greet(chat_id);
        let chat = self.chats.get(chat_id).expect("the job was prepared");
        let member = chat.seat(chat_id, &self.seats, name.sender);
        if !chat.may_send(member) {
            return Err(ErrorCode::NoSuchChat.into());
        }
        let admins_only = matches!(chat_id.kind(), Some(ChatKind::Channel(_, Posting::Admins)));
        if admins_only && member.and_then(|member| member.role) < Some(Role::Admin) {
            return Err(ErrorCode::Forbidden.into());
        }
        if envelope.kind != kind::MESSAGE {
            return Err(ErrorCode::UnsupportedKind.into());
        }
        if envelope.flags != 0 {
            return Err(ErrorCode::BadFrame.into());
        }
        check_message(&envelope.body, self.options.payload_bytes_max)?;
        if planted::has(Bug::WrongRefusals) && name.client_msg_id.0.is_multiple_of(3) {
            return Err(ErrorCode::NoSuchChat.into());
        }
        let id = self.next_id(chat.last_message_id)?;
        // It is numbered now: nobody needs the request's copy any more.
        let body = std::mem::take(&mut envelope.body);
        let envelope = Envelope { kind: envelope.kind, flags: envelope.flags, body };
        let committed = self.number(chat_id, name, id, envelope, &[]);
        self.name_command(name, &committed);
        Ok(vec![committed])
    }

    fn judge_change(
        &mut self,
        chat_id: ChatId,
        name: &CommandName,
        change: &Change,
    ) -> Result<Vec<Committed>, Refusal> {
        self.greet(chat_id);
        let chat = self.chats.get(chat_id).expect("the job was prepared");
        let room = Room { chat_id, chat, seats: &self.seats };
        if chat.channel && matches!(change, Change::Join {}) && room.role(name.sender).is_none() {
            return self.judge_join(chat_id, name);
        }
        let role = room.role(name.sender).ok_or(ErrorCode::NoSuchChat)?;
        let ignored = planted::has(Bug::RolesIgnored) && !matches!(change, Change::Leave {});
        let decision = decide(room, name.sender, if ignored { Role::Owner } else { role }, change)?;
        let above = chat.last_message_id;
        if let (Change::Add { .. }, Decision::Members(changes)) = (change, &decision) {
            if changes.iter().any(|change| !self.exists(change.user_id)) {
                return Err(ErrorCode::NoSuchUser.into());
            }
            let max = if chat.channel { self.options.channel_members_max } else { self.options.group_members_max };
            if chat.present + changes.len() > max {
                return Err(ErrorCode::GroupFull.into());
            }
        }
        let id = self.next_id(above)?;
        let committed = match decision {
            Decision::Members(changes) => self.number(chat_id, name, id, membership(&changes), &changes),
            Decision::Title(title) => {
                let committed = self.number(chat_id, name, id, title_event(&title), &[]);
                self.retitle(chat_id, title);
                committed
            }
        };
        self.name_command(name, &committed);
        Ok(vec![committed])
    }

    fn judge_create(&mut self, name: &CommandName, title: &str, members: &[UserId]) -> Result<Vec<Committed>, Refusal> {
        let owner = name.sender;
        let others: Vec<_> = distinct(members).into_iter().filter(|user| *user != owner).collect();
        if others.len() + 1 > self.options.group_members_max {
            return Err(ErrorCode::GroupFull.into());
        }
        if !self.exists(owner) || others.iter().any(|user| !self.exists(*user)) {
            return Err(ErrorCode::NoSuchUser.into());
        }
        let chat_id = ChatId::group(self.next_id(0)?);
        let first = self.next_id(0)?;
        let second = if title.is_empty() { None } else { Some(self.next_id(0)?) };
        let mut changes = vec![added(owner, Role::Owner)];
        changes.extend(others.into_iter().map(|user| added(user, Role::Member)));
        self.chats.insert(chat_id, Chat::default());
        self.begin(chat_id, name, title, &changes, (first, second))
    }

    /// The first events of a chat that was just made.
    pub(super) fn begin(
        &mut self,
        chat_id: ChatId,
        name: &CommandName,
        title: &str,
        changes: &[MemberChange],
        (first, second): (u64, Option<u64>),
    ) -> Result<Vec<Committed>, Refusal> {
        let mut committed = vec![self.number(chat_id, name, first, membership(changes), changes)];
        if let Some(id) = second {
            committed.push(self.number(chat_id, name, id, title_event(title), &[]));
            self.retitle(chat_id, title.to_owned());
        }
        self.name_command(name, &committed[0]);
        Ok(committed)
    }

    pub(super) fn exists(&self, user_id: UserId) -> bool {
        self.users.get(user_id).is_some_and(|user| user.exists)
    }

    /// The title, and a checkpoint that holds it.
    fn retitle(&mut self, chat_id: ChatId, title: String) {
        let chat = self.chats.get_mut(chat_id).expect("it was numbered in");
        chat.title = title;
        let append = Writer::append_of(&mut self.gathering.group, chat_id, &mut chat.append_at);
        chat.checkpoint_seq = chat.head_seq;
        append.checkpoint = Some(chat.checkpoint());
    }

    /// The command's row, and its name among those in flight. The event was the command's first.
    pub(super) fn name_command(&mut self, name: &CommandName, first: &Committed) {
        let event = &first.event;
        let row = CommandRow { name: *name, chat_id: event.chat_id, message_id: event.message_id, seq: event.seq };
        let chat = self.chats.get_mut(event.chat_id).expect("it was numbered in");
        Writer::append_of(&mut self.gathering.group, event.chat_id, &mut chat.append_at).commands.push(row);
        self.names.get_mut(name).expect("the job waits on it").state = NameState::Flight(row);
    }

    /// Numbers one event, with everything that follows from it: the members after it, the inbox entries, a checkpoint.
    pub(super) fn number(
        &mut self,
        chat_id: ChatId,
        name: &CommandName,
        id: u64,
        envelope: Envelope,
        changes: &[MemberChange],
    ) -> Committed {
        let Writer { chats, users, seats, gathering, options, now, .. } = self;
        let chat = chats.get_mut(chat_id).expect("the job was prepared");
        assert!(id > chat.last_message_id, "ids rise within a chat");
        let is_first = chat.head_seq == 0;
        let large_above = options.inbox_fanout_members_max;
        let large_before = chat.channel || chat.present > large_above;
        let is_message = envelope.kind == kind::MESSAGE || planted::has(Bug::OrdinalCountsAll);
        chat.head_seq += 1 + u64::from(planted::has(Bug::SeqWithHole) && chat.head_seq % 5 == 4);
        chat.head_ordinal += u64::from(is_message);
        chat.last_message_id = id;
        chat.usage.group_no = gathering.group.no;
        let seq = chat.head_seq;
        apply_changes(chat_id, chat, seats, changes, seq);
        let large_after = chat.channel || chat.present > large_above;
        let large = if planted::has(Bug::SizeBeforeEvent) { large_before } else { large_after };

        let counted = !chat.channel && (is_message || planted::has(Bug::SentCountsChanges));
        if let Some(sender) = chat.member_mut(name.sender) {
            sender.sent += u64::from(counted);
        }
        let event = Event {
            chat_id,
            seq,
            ordinal: chat.head_ordinal,
            message_id: MessageId(if planted::has(Bug::IdsFollowTheClock) { clock_id(now.unix_ms, id) } else { id }),
            sender: name.sender,
            sender_sent: chat.member(name.sender).map_or(0, |sender| sender.sent),
            client_msg_id: name.client_msg_id,
            envelope,
        };
        let append = Writer::append_of(&mut gathering.group, chat_id, &mut chat.append_at);
        let mut targets = Vec::new();
        let mut target = |user_id: UserId| {
            let user: &mut User = users.get_mut(user_id).expect("the job was prepared");
            user.inbox_head += 1;
            user.usage.group_no = chat.usage.group_no;
            let inbox_seq = user.inbox_head;
            targets.push(Target { user_id, inbox_seq: inbox_seq + u64::from(planted::has(Bug::TargetsOffByOne)) });
            append.entries.push(Entry { user_id, inbox_seq, row: EntryRow::Event { chat_id, seq } });
        };
        let stays_large = large && large_before;
        let everyone = !stays_large && !crossing_untold(large_before, large);
        if everyone {
            let told = |member: &&Member| member.role.is_some() && !untold(member, seq, chat.durable_seq);
            chat.members.iter().filter(told).for_each(|member| target(member.user_id));
        }
        for change in changes {
            let gone = matches!(change.action, MemberAction::Removed | MemberAction::Left);
            let joined = change.action == MemberAction::Added;
            let again = everyone && planted::has(Bug::EntryTwice);
            let is_told = !planted::has(if gone { Bug::LeaverUntold } else { Bug::JoinerUntoldInLargeChats });
            if is_told && (gone || (joined && (!everyone || again))) {
                target(change.user_id);
            }
        }
        if planted::has(Bug::TargetMissing) {
            targets.pop();
        }
        gathering.bytes += event.envelope.body.len() + 64 * (targets.len() + 2);
        append.events.push(event.clone());
        append.present = chat.present as u32;
        if is_first && chat.direct {
            append.members.extend(chat.members.iter().map(|member| (member.user_id, member.row())));
        }
        let parts = |change: &&MemberChange| matches!(change.action, MemberAction::Removed | MemberAction::Left);
        for change in changes.iter().filter(|change| !(parts(change) && planted::has(Bug::PartsNotStored))) {
            let member = chat.seat(chat_id, seats, change.user_id).expect("it was changed");
            append.members.retain(|(user_id, _)| *user_id != change.user_id);
            append.members.push((change.user_id, member.row()));
        }
        if let ([change], true) = (changes, planted::has(Bug::JoinRewritesAnother) && chat.channel) {
            let known = seats.iter().filter(|((of, user_id), _)| *of == chat_id && *user_id != change.user_id);
            let row = chat.seat(chat_id, seats, change.user_id).map(Member::row);
            append.members.extend(known.map(|((_, user_id), _)| *user_id).max().zip(row));
        }
        if !changes.is_empty() || chat.checkpoint_due() {
            chat.checkpoint_seq = seq;
            append.checkpoint = Some(chat.checkpoint());
        }
        let joined = self.mark_joiners(chat_id, changes);
        Committed { event, targets, large, joined }
    }

    /// Who comes in has read, so to say, what was before: it is not counted as unread. The own devices hear of it by an
    /// entry, as of any change of the own state, so that the counts that they derive are right.
    fn mark_joiners(&mut self, chat_id: ChatId, changes: &[MemberChange]) -> Vec<Marked> {
        let Writer { chats, users, seats, gathering, .. } = self;
        let no = gathering.group.no;
        let mut joined = Vec::new();
        let chat = chats.get_mut(chat_id).expect("it was numbered in");
        let (seq, ordinal) = (chat.head_seq, chat.head_ordinal);
        for change in changes.iter().filter(|change| change.action == MemberAction::Added) {
            let member = chat.seat_mut(chat_id, seats, change.user_id, no).expect("it came in");
            if ordinal == member.marks.read_ordinal {
                continue;
            }
            let marks = member.marks;
            member.marks = MarkRow {
                delivered_seq: seq,
                read_seq: seq,
                read_ordinal: ordinal,
                read_sent: member.sent,
                muted_until_ms: marks.muted_until_ms,
            };
            member.mark_at = (gathering.group.no, gathering.group.marks.len());
            let (user_id, row) = (change.user_id, member.marks);
            let user = users.get_mut(user_id).expect("the job was prepared");
            user.inbox_head += 1;
            user.usage.group_no = gathering.group.no;
            let inbox_seq = Some(user.inbox_head);
            gathering.group.marks.push(MarkWrite { chat_id, user_id, row, inbox_seq });
            joined.push(Marked { user_id, delivered_seq: seq, own: member.own(chat_id), inbox_seq });
        }
        joined
    }
}

pub(super) fn member_state(member: &Member) -> Option<MemberState> {
    let (user_id, marks) = (member.user_id, &member.marks);
    Some(MemberState { user_id, role: member.role?, delivered_seq: marks.delivered_seq, read_seq: marks.read_seq })
}

fn apply_changes(chat_id: ChatId, chat: &mut Chat, seats: &mut Seats, changes: &[MemberChange], seq: u64) {
    for change in changes {
        if chat.channel {
            let seat = seats.get_mut((chat_id, change.user_id)).expect("the job was prepared");
            seat.usage.group_no = seat.usage.group_no.max(chat.usage.group_no);
            match change.action {
                MemberAction::Added => chat.come_or_go(&mut seat.member, Some(change.role), seq),
                MemberAction::Removed | MemberAction::Left => chat.come_or_go(&mut seat.member, None, seq),
                MemberAction::RoleChanged => seat.member.role = Some(change.role),
            }
            continue;
        }
        match change.action {
            MemberAction::Added => chat.join(change.user_id, change.role, seq),
            MemberAction::Removed | MemberAction::Left => chat.part(change.user_id, seq),
            MemberAction::RoleChanged => {
                chat.member_mut(change.user_id).expect("it was judged").role = Some(change.role);
            }
        }
    }
}

/// Whether a planted bug leaves a member without an entry of the event `seq`.
fn untold(member: &Member, seq: u64, durable_seq: u64) -> bool {
    let joined_seq = member.intervals.last().map_or(0, |interval| interval.joined_seq);
    (planted::has(Bug::TargetsBeforeEvent) && joined_seq == seq)
        || (planted::has(Bug::TargetsBeforeBatch) && joined_seq > durable_seq)
}

/// Whether a planted bug leaves everybody without an entry of the event that carries the chat across the limit.
fn crossing_untold(large_before: bool, large: bool) -> bool {
    (planted::has(Bug::CrossingUpUntold) && large && !large_before)
        || (planted::has(Bug::CrossingDownUntold) && large_before && !large)
}

/// An id of this millisecond, whatever was given before: what a planted bug gives.
fn clock_id(unix_ms: u64, id: u64) -> u64 {
    let shift = WORKER_BITS + SEQUENCE_BITS;
    (unix_ms.saturating_sub(EPOCH_UNIX_MS) << shift) | (id & ((1 << shift) - 1))
}

/// Why nothing was numbered.
pub(super) enum Refusal {
    Code(ErrorCode),
    NoId(NotYet),
}

impl From<ErrorCode> for Refusal {
    fn from(code: ErrorCode) -> Refusal {
        Refusal::Code(code)
    }
}

impl From<NotYet> for Refusal {
    fn from(refusal: NotYet) -> Refusal {
        Refusal::NoId(refusal)
    }
}
