//! What is typed, as what is meant: a message, or one of the commands that begin with a slash.

use parley_protocol::Role;

/// What a line means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Words {
    /// Say this in the open chat.
    Say(String),
    /// Open the chat with a user.
    Dm(String),
    /// Make a group.
    Group {
        /// Its title.
        title: String,
        /// Members besides oneself.
        names: Vec<String>,
    },
    /// Add members to the open group.
    Add(Vec<String>),
    /// Remove members from the open group.
    Remove(Vec<String>),
    /// Give a member of the open group a role.
    Role(String, Role),
    /// Give the open group another title.
    Rename(String),
    /// Leave the open group.
    Leave,
    /// Make the open chat silent for so many hours; 0 ends it.
    Mute(u64),
    /// Who is in the open chat.
    Members,
    /// Show the commands.
    Help,
    /// End.
    Quit,
}

/// Hours that `/mute` takes without a number: a year.
const MUTE_HOURS_DEFAULT: u64 = 8_760;
/// More is a slip of the finger.
const MUTE_HOURS_MAX: u64 = 876_000;

/// The commands, for `/help`.
pub(crate) const HELP: &[(&str, &str)] = &[
    ("/dm NAME", "chat with somebody"),
    ("/group TITLE NAME...", "new group; quote spaced titles"),
    ("/add NAME...", "add members to this group"),
    ("/remove NAME...", "remove members from this group"),
    ("/role NAME ROLE", "member, admin or owner"),
    ("/rename TITLE", "give this group another title"),
    ("/leave", "leave this group"),
    ("/members", "who is in this chat"),
    ("/mute [HOURS|off]", "make this chat silent"),
    ("/quit", "end (Ctrl-C too)"),
    ("Tab, Shift-Tab, Up, Down", "another chat"),
    ("PageUp, PageDown", "older and newer messages"),
    ("Esc", "the newest; closes this help"),
    ("Ctrl-U", "clears the line"),
    ("// at the start", "a message beginning with /"),
    ("times", "are UTC"),
];

/// What a line means, or what is wrong with it.
pub(crate) fn parse(line: &str) -> Result<Words, String> {
    let Some(command) = line.strip_prefix('/') else { return Ok(Words::Say(line.to_owned())) };
    if command.starts_with('/') {
        return Ok(Words::Say(command.to_owned()));
    }
    let words = split(command)?;
    let (name, rest) = words.split_first().ok_or("a slash begins a command: /help lists them")?;
    let usage = || {
        let line = HELP.iter().find(|(usage, _)| usage.split(' ').next() == Some(&format!("/{name}")));
        let usage = line.map_or("/help", |(usage, _)| usage);
        format!("usage: {usage}")
    };
    match (name.as_str(), rest) {
        ("dm", [who]) => Ok(Words::Dm(who.clone())),
        ("group", [title, names @ ..]) => Ok(Words::Group { title: title.clone(), names: names.to_vec() }),
        ("add", [_, ..]) => Ok(Words::Add(rest.to_vec())),
        ("remove", [_, ..]) => Ok(Words::Remove(rest.to_vec())),
        ("role", [who, role]) => Ok(Words::Role(who.clone(), parse_role(role).ok_or_else(usage)?)),
        // A title needs no quotes where it is the only thing.
        ("rename", [_, ..]) => Ok(Words::Rename(rest.join(" "))),
        ("leave", []) => Ok(Words::Leave),
        ("members", []) => Ok(Words::Members),
        ("mute", []) => Ok(Words::Mute(MUTE_HOURS_DEFAULT)),
        ("mute", [off]) if off == "off" => Ok(Words::Mute(0)),
        ("mute", [hours]) => {
            Ok(Words::Mute(hours.parse().ok().filter(|hours| (1..=MUTE_HOURS_MAX).contains(hours)).ok_or_else(usage)?))
        }
        ("help", []) => Ok(Words::Help),
        ("quit" | "exit", []) => Ok(Words::Quit),
        (known, _) if HELP.iter().any(|(usage, _)| usage.split(' ').next() == Some(&format!("/{known}"))) => {
            Err(usage())
        }
        _ => Err(format!("no command /{name}: /help lists them")),
    }
}

fn parse_role(text: &str) -> Option<Role> {
    match text {
        "member" => Some(Role::Member),
        "admin" => Some(Role::Admin),
        "owner" => Some(Role::Owner),
        _ => None,
    }
}

/// Words, where quotes hold spaces together.
fn split(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for character in text.chars() {
        match (quote, character) {
            (Some(open), character) if character == open => quote = None,
            (None, '"' | '\'') if word.is_none() => {
                quote = Some(character);
                word = Some(String::new());
            }
            (None, ' ') => words.extend(word.take()),
            (_, character) => word.get_or_insert_default().push(character),
        }
    }
    if let Some(open) = quote {
        return Err(format!("a quote {open} is not closed"));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_understood_or_explained() {
        assert_eq!(parse("hello /dm"), Ok(Words::Say("hello /dm".to_owned())));
        assert_eq!(parse("//etc"), Ok(Words::Say("/etc".to_owned())));
        let group = Words::Group { title: "the team".to_owned(), names: vec!["bob".to_owned(), "o'neil".to_owned()] };
        assert_eq!(parse("/group 'the team' bob  o'neil"), Ok(group));
        assert_eq!(parse("/rename a new  title"), Ok(Words::Rename("a new title".to_owned())));
        assert_eq!(parse("/role bob admin"), Ok(Words::Role("bob".to_owned(), Role::Admin)));
        assert_eq!(parse("/mute off"), Ok(Words::Mute(0)));
        assert_eq!(parse("/mute 3"), Ok(Words::Mute(3)));
        for (line, says) in [
            ("/", "a slash begins"),
            ("/dm", "usage: /dm NAME"),
            ("/role bob king", "usage: /role NAME ROLE"),
            ("/mute never", "usage: /mute"),
            ("/mute 99999999999999999999", "usage: /mute"),
            ("/dance", "no command /dance"),
            ("/group 'x", "not closed"),
        ] {
            assert!(parse(line).expect_err(line).contains(says), "{line}");
        }
    }
}
