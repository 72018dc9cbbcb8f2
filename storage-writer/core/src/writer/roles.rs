//! Who may do what to a group: pure decisions over the members as they are. Nothing is changed here.

use super::cache::Chat;
use parley_protocol::frame::Change;
use parley_protocol::{ErrorCode, MemberAction, MemberChange, Role, UserId, limits};

/// What a change comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Changes of members, in order.
    Members(Vec<MemberChange>),
    /// A new title.
    Title(String),
}

/// Judges a change of a group by someone who is a member with `role`.
pub(super) fn decide(chat: &Chat, sender: UserId, role: Role, change: &Change) -> Result<Decision, ErrorCode> {
    if chat.direct {
        return Err(ErrorCode::WrongChatKind);
    }
    match change {
        Change::Add { users } => add(chat, role, users),
        Change::Remove { users } => remove(chat, sender, role, users),
        Change::Role { user, role: to } => give_role(chat, sender, role, *user, *to),
        Change::Rename { title } => rename(chat, role, title),
        Change::Leave {} if role == Role::Owner && chat.present > 1 => Err(ErrorCode::OwnerMustHandOver),
        Change::Leave {} => {
            Ok(Decision::Members(vec![MemberChange { user_id: sender, action: MemberAction::Left, role }]))
        }
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

fn add(chat: &Chat, role: Role, users: &[UserId]) -> Result<Decision, ErrorCode> {
    if role < Role::Admin {
        return Err(ErrorCode::Forbidden);
    }
    let new = distinct(users).into_iter().filter(|user| chat.role(*user).is_none());
    some(new.map(|user_id| MemberChange { user_id, action: MemberAction::Added, role: Role::Member }).collect())
}

fn remove(chat: &Chat, sender: UserId, role: Role, users: &[UserId]) -> Result<Decision, ErrorCode> {
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

fn give_role(chat: &Chat, sender: UserId, role: Role, user: UserId, to: Role) -> Result<Decision, ErrorCode> {
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
