//! Lines for people: times, texts without control characters, events in words.

use parley_protocol::body::{MemberAction, MembershipBody, MessageBody};
use parley_protocol::{Body, Event, MessageId, Role, UserId};

/// When a message was committed, Unix milliseconds.
pub(crate) fn time_ms(id: MessageId) -> u64 {
    parley_idgen::unix_ms_of(id.0)
}

/// `2026-11-21 12:34:56`, UTC.
pub(crate) fn date_time(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// The date of a day since 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

/// A text of a stranger for a terminal: control characters and direction overrides become visible.
pub(crate) fn plain(text: &str) -> String {
    let hidden = |character: char| {
        character.is_control() || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|character| match character {
            '\n' | '\t' => ' ',
            character if hidden(character) => '\u{fffd}',
            character => character,
        })
        .collect()
}

/// The users that an event's words name.
pub(crate) fn users_of(event: &Event) -> Vec<UserId> {
    let mut users = vec![event.sender];
    match event.envelope.to_body() {
        Ok(Body::Membership(body)) => users.extend(body.changes.iter().map(|change| change.user_id)),
        Ok(Body::Message(body)) => users.extend(&body.mentions),
        Ok(Body::Edit(body)) => users.extend(&body.message.mentions),
        _ => {}
    }
    users
}

/// Whether clients no longer show it: its time is over.
pub(crate) fn is_expired(event: &Event, now_unix_ms: u64) -> bool {
    let expires_at_ms = match event.envelope.to_body() {
        Ok(Body::Message(body)) => body.expires_at_ms,
        Ok(Body::Edit(body)) => body.message.expires_at_ms,
        _ => None,
    };
    expires_at_ms.is_some_and(|at_ms| at_ms <= now_unix_ms)
}

/// A message's text with what it answers and whom it mentions.
fn message(body: &MessageBody, name: &dyn Fn(UserId) -> String) -> String {
    let text = match std::str::from_utf8(&body.payload) {
        Ok(text) if body.content_type.starts_with("text/") => plain(text),
        _ => format!("[{} of {} bytes]", plain(&body.content_type), body.payload.len()),
    };
    let reply = body.reply_to.map_or_else(String::new, |seq| format!("(reply to {seq}) "));
    let mentioned: Vec<String> = body.mentions.iter().map(|user| format!("@{}", name(*user))).collect();
    let mentions = if mentioned.is_empty() { String::new() } else { format!(" (to {})", mentioned.join(", ")) };
    format!("{reply}{text}{mentions}")
}

/// What an event says, without who said it.
pub(crate) fn words(event: &Event, name: &dyn Fn(UserId) -> String) -> String {
    match event.envelope.to_body() {
        Ok(Body::Message(body)) => message(&body, name),
        Ok(Body::Edit(body)) => format!("[changes {} to] {}", body.target_seq, message(&body.message, name)),
        Ok(Body::Delete(body)) => format!("[takes {} back]", body.target_seq),
        Ok(Body::Reaction(body)) => format!("[{} on {}]", plain(&body.reaction), body.target_seq),
        Ok(Body::Membership(body)) => membership(&body, event.sender, name),
        Ok(Body::Title(body)) => format!("[names the group {:?}]", plain(&body.title)),
        Ok(Body::Unknown { kind, .. }) => format!("[an event of kind {kind}]"),
        Err(_) => "[an unreadable event]".to_owned(),
    }
}

/// A role's name.
pub(crate) fn role(role: Role) -> &'static str {
    match role {
        Role::Member => "member",
        Role::Admin => "admin",
        Role::Owner => "owner",
    }
}

fn membership(body: &MembershipBody, sender: UserId, name: &dyn Fn(UserId) -> String) -> String {
    let mut parts = Vec::new();
    for change in &body.changes {
        let who = name(change.user_id);
        parts.push(match change.action {
            // Only a group's first event adds the one who sends it.
            MemberAction::Added if change.user_id == sender => "creates the group".to_owned(),
            MemberAction::Added => format!("adds {who}"),
            MemberAction::Removed => format!("removes {who}"),
            MemberAction::Left => "leaves".to_owned(),
            MemberAction::RoleChanged => format!("makes {who} {}", role(change.role)),
        });
    }
    format!("[{}]", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        assert_eq!(date_time(0), "1970-01-01 00:00:00");
        assert_eq!(date_time(parley_idgen::EPOCH_UNIX_MS), "2024-01-01 00:00:00");
        assert_eq!(date_time(1_709_210_096_000), "2024-02-29 12:34:56");
        assert_eq!(date_time(4_102_444_799_000), "2099-12-31 23:59:59");
        assert_eq!(time_ms(MessageId(5 << 22 | 9)), parley_idgen::EPOCH_UNIX_MS + 5);
    }

    #[test]
    fn a_stranger_cannot_drive_the_terminal() {
        assert_eq!(plain("a\x1b[2Jb\rc\u{202e}d\ne"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}d e");
        assert_eq!(plain("größe 👍🏽"), "größe 👍🏽");
    }
}
