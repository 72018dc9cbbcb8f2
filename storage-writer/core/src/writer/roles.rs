//! Who may do what to a group: pure decisions over the members as they are. Nothing is changed here.

use super::cache::{Chat, Seats};
use parley_protocol::frame::Change;
use parley_protocol::{ChatId, ErrorCode, MemberAction, MemberChange, Role, UserId, limits};

/// What a change comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Changes of members, in order.
    Members(Vec<MemberChange>),
    /// A new title.
    Title(String),
}

/// A chat with its members, wherever they are kept. Of a channel: those that the change is about.
#[derive(Clone, Copy)]
pub(super) struct Room<'a> {
    pub(super) chat_id: ChatId,
    pub(super) chat: &'a Chat,
    pub(super) seats: &'a Seats,
}

impl Room<'_> {
    /// The role of someone who is a member now.
    pub(super) fn role(&self, user_id: UserId) -> Option<Role> {
        self.chat.seat(self.chat_id, self.seats, user_id).and_then(|member| member.role)
    }
}

/// Judges a change of a group by someone who is a member with `role`.
pub(super) fn decide(room: Room<'_>, sender: UserId, role: Role, change: &Change) -> Result<Decision, ErrorCode> {
    let chat = room.chat;
    if chat.direct {
        return Err(ErrorCode::WrongChatKind);
    }
    match change {
        Change::Add { users } => add(room, role, users),
        Change::Remove { users } => remove(room, sender, role, users),
        Change::Role { user, role: to } => give_role(room, sender, role, *user, *to),
        Change::Rename { title } => rename(chat, role, title),
        Change::Leave {} if role == Role::Owner && chat.present > 1 => Err(ErrorCode::OwnerMustHandOver),
        Change::Leave {} => {
            Ok(Decision::Members(vec![MemberChange { user_id: sender, action: MemberAction::Left, role }]))
        }
        Change::Join {} if chat.channel => Err(ErrorCode::NoChange),
        Change::Join {} => Err(ErrorCode::WrongChatKind),
    }
}

/// Whether a text can be a title.
pub(super) fn title_fits(title: &str) -> bool {
    title.len() <= limits::TITLE_BYTES_MAX && !title.chars().any(char::is_control)
}

/// The users of a list, each once, in order.
pub(super) fn distinct(users: &[UserId]) -> Vec<UserId> {
    let mut seen = hashbrown::HashSet::with_capacity(users.len());
    users.iter().copied().filter(|user| seen.insert(*user)).collect()
}

fn some(changes: Vec<MemberChange>) -> Result<Decision, ErrorCode> {
    if changes.is_empty() { Err(ErrorCode::NoChange) } else { Ok(Decision::Members(changes)) }
}

fn add(chat: Room<'_>, role: Role, users: &[UserId]) -> Result<Decision, ErrorCode> {
    if role < Role::Admin {
        return Err(ErrorCode::Forbidden);
    }
    let new = distinct(users).into_iter().filter(|user| chat.role(*user).is_none());
    some(new.map(|user_id| MemberChange { user_id, action: MemberAction::Added, role: Role::Member }).collect())
}

fn remove(chat: Room<'_>, sender: UserId, role: Role, users: &[UserId]) -> Result<Decision, ErrorCode> {
    if role < Role::Admin {
        return Err(ErrorCode::Forbidden);
    }
    let mut changes = Vec::with_capacity(users.len());
    for user_id in distinct(users) {
        let Some(theirs) = chat.role(user_id) else { continue };
        if user_id == sender || theirs >= role {
            return Err(ErrorCode::Forbidden);
        }
        changes.push(MemberChange { user_id, action: MemberAction::Removed, role: theirs });
    }
    some(changes)
}

fn give_role(chat: Room<'_>, sender: UserId, role: Role, user: UserId, to: Role) -> Result<Decision, ErrorCode> {
    if role < Role::Owner {
        return Err(ErrorCode::Forbidden);
    }
    let Some(has) = chat.role(user) else { return Err(ErrorCode::NoChange) };
    if has == to {
        return Err(ErrorCode::NoChange);
    }
    if user == sender {
        return Err(ErrorCode::OwnerMustHandOver);
    }
    let change = |user_id, role| MemberChange { user_id, action: MemberAction::RoleChanged, role };
    let mut changes = vec![change(user, to)];
    if to == Role::Owner {
        changes.push(change(sender, Role::Admin));
    }
    Ok(Decision::Members(changes))
}

fn rename(chat: &Chat, role: Role, title: &str) -> Result<Decision, ErrorCode> {
    if role < Role::Admin {
        return Err(ErrorCode::Forbidden);
    }
    if !title_fits(title) {
        return Err(ErrorCode::BadFrame);
    }
    if title == chat.title {
        return Err(ErrorCode::NoChange);
    }
    Ok(Decision::Title(title.to_owned()))
}
