//! The bounds of what a client sends, beyond what its types say: lengths, ranges, fields that exclude each other.
//! A session calls it on every decoded frame before it acts; nothing here looks at state or configuration.

use crate::body::check_message;
use crate::frame::{Change, ClientFrame, Error, GroupCreate, Hello, History, Resolve};
use crate::{ChatId, ClientMsgId, Envelope, ErrorCode, UserId, body, limits};

/// Why a frame is refused: the code for the program, the text for its author.
pub type Refusal = (ErrorCode, &'static str);

/// The text of [`ErrorCode::NoSuchChat`], one for all its causes, so that it tells nothing apart.
pub const NO_SUCH_CHAT: &str = "no such chat, or you are not in it";

const fn require(holds: bool, message: &'static str) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err((ErrorCode::BadFrame, message)) }
}

fn chat(chat_id: ChatId) -> Result<(), Refusal> {
    chat_id.kind().map(|_| ()).ok_or((ErrorCode::NoSuchChat, NO_SUCH_CHAT))
}

fn users(users: &[UserId], max: usize) -> Result<(), Refusal> {
    require(users.len() <= max, "too many users in one frame")?;
    require(users.iter().all(|user| user.is_valid()), "a user id is a number from 1 to 2^63 - 1")
}

fn some_users(list: &[UserId]) -> Result<(), Refusal> {
    require(!list.is_empty(), "users: at least one")?;
    users(list, limits::MEMBER_CHANGES_MAX)
}

fn title(text: &str) -> Result<(), Refusal> {
    require(text.len() <= limits::TITLE_BYTES_MAX, "title: at most 256 bytes")?;
    require(!text.chars().any(char::is_control), "title: no control characters")
}

/// Whether a text can be the name of a user: 1 to [`limits::NAME_BYTES_MAX`] bytes that a person can see, no blank at
/// either end, and not the text of a chat id, so that one argument can take either.
pub fn valid_name(name: &str) -> bool {
    let hidden = |c: char| {
        c.is_control()
            || (c.is_whitespace() && c != ' ')
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    (1..=limits::NAME_BYTES_MAX).contains(&name.len())
        && name.trim() == name
        && !name.chars().any(hidden)
        && name.parse::<ChatId>().is_err()
}

/// Checks the event that a client wants to append: no flags, a kind that clients send, and its body by
/// [`check_message`].
pub fn check_envelope(envelope: &Envelope, payload_bytes_max: usize) -> Result<(), Refusal> {
    require(envelope.flags == 0, "flags: 0 from clients")?;
    if envelope.kind != body::kind::MESSAGE {
        return Err((ErrorCode::UnsupportedKind, "clients send events of kind 1 (message)"));
    }
    check_message(&envelope.body, payload_bytes_max).map_err(|code| match code {
        ErrorCode::TooLarge => (code, "the payload is larger than payload_bytes_max of Welcome"),
        _ => (code, "the body is not a message, or one of its fields is out of its bounds"),
    })
}

fn hello(hello: &Hello) -> Result<(), Refusal> {
    let credential = |text: &Option<String>| {
        text.as_ref().is_none_or(|text| (1..=limits::TOKEN_BYTES_MAX).contains(&text.len()) && text.is_ascii())
    };
    require(credential(&hello.token), "token: 1 to 4096 bytes of ASCII")?;
    require(credential(&hello.resume), "resume: 1 to 4096 bytes of ASCII")?;
    require(hello.kinds_known.len() <= limits::KINDS_KNOWN_MAX, "kinds_known: at most 64")?;
    require(hello.client.len() <= limits::CLIENT_BYTES_MAX, "client: at most 128 bytes")?;
    require(!hello.client.chars().any(char::is_control), "client: no control characters")?;
    require(hello.act_for.is_none_or(UserId::is_valid), "act_for: a user id is a number from 1 to 2^63 - 1")
}

fn group_create(create: &GroupCreate) -> Result<(), Refusal> {
    title(&create.title)?;
    users(&create.members, limits::MEMBER_CHANGES_MAX)
}

fn change(change: &Change) -> Result<(), Refusal> {
    match change {
        Change::Add { users } | Change::Remove { users } => some_users(users),
        Change::Role { user, .. } => require(user.is_valid(), "user: a number from 1 to 2^63 - 1"),
        Change::Rename { title: text } => title(text),
        Change::Leave {} | Change::Join {} => Ok(()),
    }
}

fn history(history: &History) -> Result<(), Refusal> {
    chat(history.chat_id)?;
    require(history.before.is_none() || history.after.is_none(), "before and after exclude each other")?;
    require(history.limit <= limits::HISTORY_PAGE_MAX, "limit: at most 200")
}

fn resolve(resolve: &Resolve) -> Result<(), Refusal> {
    let fits = |name: &String| (1..=limits::NAME_BYTES_MAX).contains(&name.len());
    require(resolve.names.len() <= limits::RESOLVE_MAX, "names: at most 128")?;
    require(resolve.names.iter().all(fits), "names: 1 to 64 bytes each")
}

impl ClientFrame {
    /// Checks every field against the hard limits. The body of a `Send` is apart: [`check_envelope`] takes the
    /// configured size. A malformed chat id answers as a chat that does not exist.
    pub fn check(&self) -> Result<(), Refusal> {
        match self {
            ClientFrame::Hello(frame) => hello(frame),
            ClientFrame::Send(frame) => chat(frame.chat_id),
            ClientFrame::GroupCreate(frame) => group_create(frame),
            ClientFrame::ChannelCreate(frame) => title(&frame.title),
            ClientFrame::GroupChange(frame) => change(&frame.change).and_then(|()| chat(frame.chat_id)),
            ClientFrame::Delivered(frame) | ClientFrame::Read(frame) => chat(frame.chat_id),
            ClientFrame::Mute(frame) => {
                require(frame.until_ms <= limits::NUMBER_MAX, "until_ms: below 2^53")?;
                chat(frame.chat_id)
            }
            ClientFrame::Subscribe(frame) | ClientFrame::Unsubscribe(frame) => chat(frame.chat_id),
            ClientFrame::Chats(frame) => require(frame.limit <= limits::CHATS_PAGE_MAX, "limit: at most 100"),
            ClientFrame::History(frame) => history(frame),
            ClientFrame::Members(frame) => {
                require(frame.limit <= limits::MEMBERS_PAGE_MAX, "limit: at most 500")?;
                require(frame.after.is_none_or(UserId::is_valid), "after: a user id is a number from 1 to 2^63 - 1")?;
                chat(frame.chat_id)
            }
            ClientFrame::Resolve(frame) => resolve(frame),
            ClientFrame::Profiles(frame) => users(&frame.users, limits::RESOLVE_MAX),
            ClientFrame::Renew(frame) => require(
                (1..=limits::TOKEN_BYTES_MAX).contains(&frame.token.len()) && frame.token.is_ascii(),
                "token: 1 to 4096 bytes of ASCII",
            ),
            ClientFrame::Ping(_) | ClientFrame::DeviceEnd(_) => Ok(()),
        }
    }

    /// The command's name, of frames that carry one.
    pub fn client_msg_id(&self) -> Option<ClientMsgId> {
        match self {
            ClientFrame::Send(frame) => Some(frame.client_msg_id),
            ClientFrame::GroupCreate(frame) => Some(frame.client_msg_id),
            ClientFrame::ChannelCreate(frame) => Some(frame.client_msg_id),
            ClientFrame::GroupChange(frame) => Some(frame.client_msg_id),
            _ => None,
        }
    }

    /// The request's number, of frames that carry one.
    pub fn request_id(&self) -> Option<u32> {
        match self {
            ClientFrame::Chats(frame) => Some(frame.request_id),
            ClientFrame::History(frame) => Some(frame.request_id),
            ClientFrame::Members(frame) => Some(frame.request_id),
            ClientFrame::Resolve(frame) => Some(frame.request_id),
            ClientFrame::Profiles(frame) => Some(frame.request_id),
            _ => None,
        }
    }

    /// The chat that the frame is about, of frames that name one.
    pub fn chat_id(&self) -> Option<ChatId> {
        match self {
            ClientFrame::Send(frame) => Some(frame.chat_id),
            ClientFrame::GroupChange(frame) => Some(frame.chat_id),
            ClientFrame::Delivered(frame) | ClientFrame::Read(frame) => Some(frame.chat_id),
            ClientFrame::Mute(frame) => Some(frame.chat_id),
            ClientFrame::Subscribe(frame) | ClientFrame::Unsubscribe(frame) => Some(frame.chat_id),
            ClientFrame::History(frame) => Some(frame.chat_id),
            ClientFrame::Members(frame) => Some(frame.chat_id),
            _ => None,
        }
    }

    /// The `Error` frame that answers this one, with everything by which the client finds what it asked.
    pub fn error(&self, code: ErrorCode, message: impl Into<String>) -> Error {
        Error {
            code,
            message: message.into(),
            client_msg_id: self.client_msg_id(),
            request_id: self.request_id(),
            chat_id: self.chat_id(),
            retry_after_ms: None,
        }
    }
}
