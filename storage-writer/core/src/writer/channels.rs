//! Judging what is done in channels. Only those whom it concerns are needed in memory: nothing in here looks at all
//! members, nor does anything cost more with more of them.

use super::Writer;
use super::cache::{Chat, Seat};
use super::jobs::{Answered, Judged};
use super::judge::{Refusal, added, member_state, membership};
use super::loads::Need;
use crate::store::CommandName;
use parley_protocol::frame::Change;
use parley_protocol::link::{Action, ChatState, Command, Committed, Reply};
use parley_protocol::{ChatId, ErrorCode, Posting, Role, UserId, limits};

impl Writer {
    /// Those who are concerned, and nobody else.
    pub(super) fn needs_of_channel(&self, chat_id: ChatId, chat: &Chat, command: &Command, needs: &mut Vec<Need>) {
        let sender = command.sender;
        let known = |user_id| chat.seat(chat_id, &self.seats, user_id);
        needs.push(Need::Member(chat_id, sender));
        let joins = matches!(command.action, Action::Change(Change::Join {}));
        if known(sender).is_none_or(|member| member.role.is_none() && !joins) {
            return;
        }
        let mut others = |users: &[UserId]| needs.extend(users.iter().map(|user| Need::Member(chat_id, *user)));
        match &command.action {
            Action::Change(Change::Add { users }) => {
                others(users);
                needs.extend(users.iter().copied().map(Need::User));
            }
            Action::Change(Change::Remove { users }) => {
                others(users);
                let present = users.iter().copied().filter(|user| known(*user).is_some_and(|it| it.role.is_some()));
                needs.extend(present.map(Need::User));
            }
            Action::Change(Change::Role { user, .. }) => others(&[*user]),
            Action::Change(Change::Leave {} | Change::Join {}) => needs.push(Need::User(sender)),
            _ => {}
        }
    }

    /// Says who of some users is in a channel, and where its head is.
    pub(super) fn judge_among(&mut self, to: Answered, chat_id: ChatId, users: &[UserId]) -> Judged {
        let chat = self.chats.get(chat_id).expect("the job was prepared");
        let reply = if chat.head_seq == 0 {
            Reply::Refused(ErrorCode::NoSuchChat)
        } else {
            let member = |user_id: &UserId| chat.seat(chat_id, &self.seats, *user_id).and_then(member_state);
            Reply::Chat(ChatState {
                head_seq: chat.head_seq,
                head_ordinal: chat.head_ordinal,
                large: true,
                members: users.iter().filter_map(member).collect(),
            })
        };
        self.attach(to, reply);
        Judged::Done
    }

    /// Somebody comes into a channel by itself.
    pub(super) fn judge_join(&mut self, chat_id: ChatId, name: &CommandName) -> Result<Vec<Committed>, Refusal> {
        let chat = self.chats.get(chat_id).expect("the job was prepared");
        let member = chat.seat(chat_id, &self.seats, name.sender);
        // One that everybody left, its owner last, is over.
        if chat.present == 0 {
            return Err(ErrorCode::NoSuchChat.into());
        }
        // Each time is an interval in the row of the membership.
        if member.is_some_and(|member| member.intervals.len() >= limits::CHANNEL_JOINS_MAX) {
            return Err(ErrorCode::Forbidden.into());
        }
        if chat.present >= self.options.channel_members_max {
            return Err(ErrorCode::GroupFull.into());
        }
        if !self.exists(name.sender) {
            return Err(ErrorCode::NoSuchUser.into());
        }
        let id = self.next_id(chat.last_message_id)?;
        let changes = [added(name.sender, Role::Member)];
        let committed = self.number(chat_id, name, id, membership(&changes), &changes);
        self.name_command(name, &committed);
        Ok(vec![committed])
    }

    pub(super) fn judge_channel(
        &mut self,
        name: &CommandName,
        title: &str,
        posting: Posting,
    ) -> Result<Vec<Committed>, Refusal> {
        let owner = name.sender;
        if !self.exists(owner) {
            return Err(ErrorCode::NoSuchUser.into());
        }
        let chat_id = ChatId::channel(self.next_id(0)?, posting);
        let first = self.next_id(0)?;
        let second = if title.is_empty() { None } else { Some(self.next_id(0)?) };
        let changes = [added(owner, Role::Owner)];
        self.chats.insert(chat_id, Chat { channel: true, ..Chat::default() });
        self.seats.insert((chat_id, owner), Seat::load(owner, None));
        self.begin(chat_id, name, title, &changes, (first, second))
    }
}
