//! The proof that a stopped store is whole: what `parley check-store` runs. It reads every row once and changes none.

use super::error::OpenError;
use super::layout::{self, Damage};
use super::open::hold;
use super::runs::Run;
use super::{EmbeddedOptions, EmbeddedView};
use fjall::Keyspace;
use hashbrown::HashMap;
use parley_protocol::body::kind;
use parley_protocol::{ChatId, Event, UserId};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use storage_core::store::{Checkpoint, EntryRow, MemberRow, UserRow, View};

/// Problems that a report names one by one; it counts the others.
pub const PROBLEMS_NAMED_MAX: usize = 100;
/// Rows between two lines of progress.
const PROGRESS_ROWS: u64 = 1_000_000;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Groups over the life of the store.
    pub groups: u64,
    /// Chats with events.
    pub chats: u64,
    /// Events.
    pub events: u64,
    /// Inboxes with entries.
    pub inboxes: u64,
    /// Inbox entries.
    pub entries: u64,
    /// Commands.
    pub commands: u64,
    /// Memberships.
    pub members: u64,
    /// Users.
    pub users: u64,
    /// What is wrong, the first [`PROBLEMS_NAMED_MAX`].
    pub problems: Vec<String>,
    /// How much is wrong.
    pub problems_total: u64,
    /// What is wrong beside damaged tables, the first [`PROBLEMS_NAMED_MAX`]: it may only follow from them.
    pub doubts: Vec<String>,
    /// How much that is.
    pub doubts_total: u64,
}

impl Report {
    /// Nothing is wrong.
    pub fn is_whole(&self) -> bool {
        self.problems_total == 0
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for problem in &self.problems {
            writeln!(f, "problem: {problem}")?;
        }
        let named = self.problems.len() as u64;
        if self.problems_total > named {
            writeln!(f, "and {} more", self.problems_total - named)?;
        }
        for doubt in &self.doubts {
            writeln!(f, "doubtful: {doubt}")?;
        }
        let named = self.doubts.len() as u64;
        if self.doubts_total > named {
            writeln!(f, "and {} more that are doubtful", self.doubts_total - named)?;
        }
        if self.doubts_total > 0 {
            writeln!(
                f,
                "what is doubtful may be wrong by itself, or only look so, as rows in damaged tables are not found: \
                 restore the damaged files and check again"
            )?;
        }
        write!(
            f,
            "{}: {} groups, {} chats with {} events, {} inboxes with {} entries, {} commands, {} memberships, {} users",
            if self.is_whole() { "whole" } else { "damaged" },
            self.groups,
            self.chats,
            self.events,
            self.inboxes,
            self.entries,
            self.commands,
            self.members,
            self.users
        )
    }
}

/// Checks the store of a data directory that no process uses. `progress` gets a line now and then.
///
/// Proven: every checksum, of whole tables too; `seq` dense from 1 and `ordinal`, `sender_sent` and ids as they follow
/// from the events of each chat; inbox numbers dense from 1, each entry naming an event that exists; every command row
/// matching its event; both sides of a membership equal; checkpoints and marks within their chats; names and identities
/// of existing users.
pub fn check_store(data_dir: &Path, progress: &mut dyn FnMut(&str)) -> Result<Report, OpenError> {
    progress(&format!("opening {}", data_dir.display()));
    let held = hold(data_dir, &EmbeddedOptions::default())?;
    let mut check = Check {
        view: &held.view,
        heads: HashMap::new(),
        report: Report::default(),
        rows: 0,
        table: "",
        damage: false,
        progress,
    };
    held.damaged_tables.iter().for_each(|text| check.problem(text.clone()));
    check.damage = !held.damaged_tables.is_empty();
    match check.view.groups() {
        Ok(groups) => check.report.groups = groups.unwrap_or(0),
        Err(error) => check.problem(error.to_string()),
    }
    check.events();
    check.inboxes();
    check.commands();
    check.members();
    check.rest();
    Ok(check.report)
}

struct Check<'a> {
    view: &'a EmbeddedView,
    /// Newest `seq` of every chat.
    heads: HashMap<ChatId, u64>,
    report: Report,
    rows: u64,
    table: &'static str,
    /// Tables are damaged: what does not fit may follow from that.
    damage: bool,
    progress: &'a mut dyn FnMut(&str),
}

/// Where the walk through a chat's events stands.
#[derive(Default)]
struct ChatWalk {
    chat_id: Option<ChatId>,
    seq: u64,
    ordinal: u64,
    message_id: u64,
    sent: HashMap<UserId, u64>,
}

impl Check<'_> {
    fn problem(&mut self, text: String) {
        let Report { problems, problems_total, doubts, doubts_total, .. } = &mut self.report;
        let (list, total) = if self.damage { (doubts, doubts_total) } else { (problems, problems_total) };
        *total += 1;
        if list.len() < PROBLEMS_NAMED_MAX {
            list.push(text);
        }
    }

    /// Hands every row of a table to `visit`; a text that it returns is a problem.
    fn walk(
        &mut self,
        table: &'static str,
        keyspace: &Keyspace,
        mut visit: impl FnMut(&mut Self, &[u8], &[u8]) -> Result<(), String>,
    ) {
        self.table = table;
        (self.progress)(&format!("checking {table}"));
        let view = self.view;
        // Above every key: numbers are at most 40 bytes, and text holds no 0xff.
        let high = [0xff; 48];
        let walked = view.scan(keyspace, &[][..]..=&high[..], false, |key, value| {
            self.rows += 1;
            if self.rows.is_multiple_of(PROGRESS_ROWS) {
                (self.progress)(&format!("{} rows, {table}", self.rows));
            }
            if let Err(text) = visit(self, key, value) {
                self.problem(format!("{table}: {text}"));
            }
            Ok(ControlFlow::Continue(()))
        });
        if let Err(error) = walked {
            self.problem(error.to_string());
        }
    }

    fn events(&mut self) {
        let mut at = ChatWalk::default();
        let table = self.view.tables().events.clone();
        self.walk("events", &table, |check, key, value| {
            let (chat_id, seq) = layout::parse_event_key(key).ok_or("a key is not an event's")?;
            check.report.events += 1;
            if at.chat_id != Some(chat_id) {
                at = ChatWalk { chat_id: Some(chat_id), ..ChatWalk::default() };
                check.report.chats += 1;
            }
            let expected = at.seq + 1;
            at.seq = seq;
            check.heads.insert(chat_id, seq);
            if seq != expected {
                check.problem(format!("events: chat {chat_id}: seq {seq} where {expected} should be"));
            }
            let event = layout::parse_checked::<Event>(value)
                .map_err(|damage| format!("chat {chat_id}, seq {seq}: {damage}"))?;
            follow(&mut at, &event, seq != expected).map_err(|text| format!("chat {chat_id}, seq {seq}: {text}"))
        });
    }

    fn inboxes(&mut self) {
        let mut at = (UserId(0), 0);
        let table = self.view.tables().inbox.clone();
        self.walk("inbox", &table, |check, key, value| {
            let (user_id, first) = layout::parse_inbox_key(key).ok_or("a key is not an entry's")?;
            if at.0 != user_id {
                at = (user_id, 0);
                check.report.inboxes += 1;
            }
            let expected = at.1 + 1;
            at.1 = first;
            if first != expected {
                check.problem(format!("inbox: user {user_id}: number {first} where {expected} should be"));
            }
            let place = |number: u64, text: String| format!("user {user_id}, number {number}: {text}");
            let run = Run::parse(value).map_err(|damage| place(first, damage.to_string()))?;
            at.1 = run.last(first).map_err(|damage| place(first, damage.to_string()))?;
            check.report.entries += run.entries;
            for (number, row) in (first..).zip(run.rows()) {
                if let EntryRow::Event { chat_id, seq } = row
                    && (seq == 0 || check.head(chat_id) < seq)
                {
                    check.problem(format!("inbox: {}", place(number, format!("no event {seq} in chat {chat_id}"))));
                }
            }
            Ok(())
        });
    }

    fn commands(&mut self) {
        let table = self.view.tables().commands.clone();
        self.walk("commands", &table, |check, key, value| {
            let name = layout::parse_command_key(key).ok_or("a key is not a command's")?;
            check.report.commands += 1;
            let place = |text: &str| {
                let (chat_id, sender, id) = (name.chat_id, name.sender, name.client_msg_id);
                format!("chat {chat_id}, sender {sender}, command {id}: {text}")
            };
            let row = layout::parse_command(name, value).map_err(|damage| place(&damage.to_string()))?;
            let event = check.view.event(row.chat_id, row.seq).map_err(|error| place(&error.to_string()))?;
            let event = event.ok_or_else(|| place("its event does not exist"))?;
            let matches = event.message_id == row.message_id
                && event.sender == name.sender
                && event.client_msg_id == name.client_msg_id;
            if matches { Ok(()) } else { Err(place("its event is another's")) }
        });
    }

    fn members(&mut self) {
        let tables = Arc::clone(self.view.tables());
        self.walk("members", &tables.members, |check, key, value| {
            let (chat_id, user_id) = layout::parse_member_key(key).ok_or("a key is not a membership's")?;
            check.report.members += 1;
            let place = |text: String| format!("chat {chat_id}, user {user_id}: {text}");
            layout::parse_checked::<MemberRow>(value).map_err(|damage| place(damage.to_string()))?;
            let other = tables.chats_of_user.get(layout::user_chat_key(user_id, chat_id));
            match other.map_err(|error| place(error.to_string()))? {
                Some(other) if *other == *value => Ok(()),
                _ => Err(place("the user's side differs".to_owned())),
            }
        });
        self.walk("chats_of_user", &tables.chats_of_user, |_, key, _| {
            let (user_id, chat_id) = layout::parse_user_chat_key(key).ok_or("a key is not a membership's")?;
            match tables.members.contains_key(layout::member_key(chat_id, user_id)) {
                Ok(true) => Ok(()),
                Ok(false) => Err(format!("user {user_id}, chat {chat_id}: the chat's side is missing")),
                Err(error) => Err(format!("user {user_id}, chat {chat_id}: {error}")),
            }
        });
        self.walk("marks", &tables.marks, |check, key, value| {
            let (chat_id, user_id) = layout::parse_member_key(key).ok_or("a key is not a member's")?;
            let place = |text: &str| format!("chat {chat_id}, user {user_id}: {text}");
            let row = layout::parse_marks(value).map_err(|damage| place(&damage.to_string()))?;
            let within = row.delivered_seq.max(row.read_seq) <= check.head(chat_id);
            if within { Ok(()) } else { Err(place("marks above the chat's head")) }
        });
    }

    fn rest(&mut self) {
        let tables = Arc::clone(self.view.tables());
        self.walk("checkpoints", &tables.checkpoints, |check, key, value| {
            let chat_id = layout::parse_chat_key(key).ok_or("a key is not a chat's")?;
            let checkpoint = layout::parse_checked::<Checkpoint>(value);
            let checkpoint = checkpoint.map_err(|damage| format!("chat {chat_id}: {damage}"))?;
            let within = checkpoint.seq <= check.head(chat_id);
            if within { Ok(()) } else { Err(format!("chat {chat_id}: a checkpoint above the chat's head")) }
        });
        self.walk("users", &tables.users, |check, key, value| {
            check.report.users += 1;
            let row = layout::parse_checked::<UserRow>(value).map_err(|damage: Damage| damage.to_string())?;
            let place = |text: String| format!("user {}: {text}", row.user_id);
            if layout::user_key(row.user_id) == key {
                Ok(())
            } else {
                Err(place("it stands under another id".to_owned()))
            }
        });
        self.walk("uniques", &tables.uniques, |_, key, value| {
            let text = || String::from_utf8_lossy(key).replace('\0', " ");
            let value = layout::parse_u128(value).map_err(|damage| format!("{}: {damage}", text()))?;
            let user = u64::try_from(value).map(UserId).map_err(|_| format!("{}: {value} is no user", text()))?;
            match tables.users.contains_key(layout::user_key(user)) {
                Ok(true) => Ok(()),
                Ok(false) => Err(format!("{}: user {user} does not exist", text())),
                Err(error) => Err(format!("{}: {error}", text())),
            }
        });
        self.walk("partitions", &tables.partitions, |_, key, value| {
            layout::parse_u64(value).map(|_| ()).map_err(|damage| format!("key {key:?}: {damage}"))
        });
        if let Err(error) = self.view.records() {
            self.problem(error.to_string());
        }
    }

    fn head(&self, chat_id: ChatId) -> u64 {
        self.heads.get(&chat_id).copied().unwrap_or(0)
    }
}

/// Checks an event against the ones before it. After a hole the counts start anew from what the event says.
fn follow(at: &mut ChatWalk, event: &Event, hole: bool) -> Result<(), String> {
    let own = u64::from(event.envelope.kind == kind::MESSAGE);
    // In a channel nobody's own messages are counted.
    let counted = if event.chat_id.is_channel() { 0 } else { own };
    let sent = at.sent.get(&event.sender).copied().unwrap_or(0) + counted;
    let before = (at.message_id, at.ordinal);
    at.message_id = event.message_id.0;
    at.ordinal = event.ordinal;
    at.sent.insert(event.sender, event.sender_sent);
    if event.chat_id.0 != at.chat_id.map_or(0, |chat| chat.0) || event.seq != at.seq {
        return Err("the event says another place".to_owned());
    }
    if hole {
        return Ok(());
    }
    if event.message_id.0 <= before.0 {
        return Err(format!("id {} does not rise", event.message_id));
    }
    if event.ordinal != before.1 + own {
        return Err(format!("ordinal {} where {} should be", event.ordinal, before.1 + own));
    }
    if event.sender_sent != sent {
        return Err(format!("sender_sent {} where {sent} should be", event.sender_sent));
    }
    Ok(())
}
