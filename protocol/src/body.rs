//! The envelope of an event and every body of the first version. All of it is frozen: it is in logs.
//!
//! A body is stored and sent as the rkyv bytes of its type, behind a kind and a length, so that an unknown kind can be
//! carried and skipped. JSON shows known bodies as objects.

use crate::wire::to_rkyv;
use crate::{UserId, limits};
use rkyv::{Archive, Deserialize, Serialize};

/// Kind numbers of events.
pub mod kind {
    /// [`super::MessageBody`].
    pub const MESSAGE: u16 = 1;
    /// [`super::EditBody`].
    pub const EDIT: u16 = 2;
    /// [`super::DeleteBody`].
    pub const DELETE: u16 = 3;
    /// [`super::ReactionBody`].
    pub const REACTION: u16 = 4;
    /// [`super::MembershipBody`].
    pub const MEMBERSHIP: u16 = 5;
    /// [`super::TitleBody`].
    pub const TITLE: u16 = 6;
}

/// Flag bits of an envelope.
pub mod flag {
    /// The content was taken out in place; the `seq` stays.
    pub const REDACTED: u16 = 1;
}

/// Kind, flags and the bytes of a body.
#[derive(Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Envelope {
    /// One of [`kind`], or one that this version does not know.
    pub kind: u16,
    /// Bits of [`flag`].
    pub flags: u16,
    /// The rkyv bytes of the body of that kind.
    pub body: Vec<u8>,
}

/// What a person or a program says.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize,
)]
#[serde(deny_unknown_fields)]
pub struct MessageBody {
    /// MIME type of the payload; `text/plain` for text.
    #[serde(default = "crate::json::text_plain")]
    pub content_type: String,
    /// Opaque to the server. In JSON `{"text": ...}` or `{"base64": ...}`.
    #[serde(with = "crate::json::payload")]
    pub payload: Vec<u8>,
    /// The `seq` of the event that this answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<u64>,
    /// Users whose attention is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mentions: Vec<UserId>,
    /// Unix milliseconds after which clients no longer show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
    /// References to media.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    /// What later versions and applications add.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extensions: Vec<Extension>,
}

/// A reference to a piece of media.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// Where the media is: an id or an address that the application understands.
    pub reference: String,
    /// MIME type.
    pub content_type: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// File name to show; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// A tagged value.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extension {
    /// Below 32,768: Parley's; from there: the application's.
    pub tag: u16,
    /// Opaque; base64 in JSON.
    #[serde(with = "crate::json::base64_bytes")]
    pub value: Vec<u8>,
}

/// A new content for an earlier message of the same sender.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EditBody {
    /// The message's `seq`.
    pub target_seq: u64,
    /// What stands there now.
    pub message: MessageBody,
}

/// Takes an earlier message back.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteBody {
    /// The message's `seq`.
    pub target_seq: u64,
}

/// Sets or takes back a reaction to a message.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReactionBody {
    /// The message's `seq`.
    pub target_seq: u64,
    /// An emoji or a short code.
    pub reaction: String,
    /// False takes it back.
    pub set: bool,
}

/// Changes of who is in a chat. The first event of a group is one that adds everybody it starts with.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MembershipBody {
    /// In the order in which they took effect.
    pub changes: Vec<MemberChange>,
}

/// One change of one member.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberChange {
    /// Whom it concerns.
    pub user_id: UserId,
    /// What happened.
    pub action: MemberAction,
    /// The role afterwards; of those who left, the last one.
    pub role: Role,
}

/// What happened to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[rkyv(derive(Clone, Copy, Debug))]
#[repr(u8)]
pub enum MemberAction {
    /// Came in.
    Added = 1,
    /// Was taken out by another.
    Removed = 2,
    /// Went by itself.
    Left = 3,
    /// Has another role.
    RoleChanged = 4,
}

/// What a member may do; each may do what the ones before it may.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[rkyv(derive(Clone, Copy, Debug))]
#[repr(u8)]
pub enum Role {
    /// Reads and writes, and leaves.
    Member = 1,
    /// Renames, adds and removes members.
    Admin = 2,
    /// Gives roles, removes admins, hands over. One a group.
    Owner = 3,
}

/// A new title.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TitleBody {
    /// UTF-8, at most [`limits::TITLE_BYTES_MAX`] bytes.
    pub title: String,
}

/// A body by its kind.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Body {
    /// [`kind::MESSAGE`].
    Message(MessageBody),
    /// [`kind::EDIT`].
    Edit(EditBody),
    /// [`kind::DELETE`].
    Delete(DeleteBody),
    /// [`kind::REACTION`].
    Reaction(ReactionBody),
    /// [`kind::MEMBERSHIP`].
    Membership(MembershipBody),
    /// [`kind::TITLE`].
    Title(TitleBody),
    /// A kind that this version does not know; carried as it is.
    Unknown {
        /// Its number.
        kind: u16,
        /// Its bytes.
        #[serde(with = "crate::json::base64_bytes")]
        base64: Vec<u8>,
    },
}

impl Body {
    /// The envelope of this body.
    pub fn to_envelope(&self) -> Envelope {
        let (kind, body) = match self {
            Body::Message(body) => (kind::MESSAGE, to_rkyv(body)),
            Body::Edit(body) => (kind::EDIT, to_rkyv(body)),
            Body::Delete(body) => (kind::DELETE, to_rkyv(body)),
            Body::Reaction(body) => (kind::REACTION, to_rkyv(body)),
            Body::Membership(body) => (kind::MEMBERSHIP, to_rkyv(body)),
            Body::Title(body) => (kind::TITLE, to_rkyv(body)),
            Body::Unknown { kind, base64 } => (*kind, base64.clone()),
        };
        Envelope { kind, flags: 0, body }
    }
}

/// The bytes are not a body of their kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyError;

impl std::fmt::Display for BodyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the bytes are not a body of their kind")
    }
}

impl std::error::Error for BodyError {}

impl Envelope {
    /// Decodes the body by its kind; redacted content and unknown kinds come as [`Body::Unknown`].
    pub fn to_body(&self) -> Result<Body, BodyError> {
        type E = rkyv::rancor::Error;
        if self.flags & flag::REDACTED != 0 {
            return Ok(Body::Unknown { kind: self.kind, base64: self.body.clone() });
        }
        let bytes = &self.body[..];
        let body = match self.kind {
            kind::MESSAGE => rkyv::from_bytes::<_, E>(bytes).map(Body::Message),
            kind::EDIT => rkyv::from_bytes::<_, E>(bytes).map(Body::Edit),
            kind::DELETE => rkyv::from_bytes::<_, E>(bytes).map(Body::Delete),
            kind::REACTION => rkyv::from_bytes::<_, E>(bytes).map(Body::Reaction),
            kind::MEMBERSHIP => rkyv::from_bytes::<_, E>(bytes).map(Body::Membership),
            kind::TITLE => rkyv::from_bytes::<_, E>(bytes).map(Body::Title),
            kind => return Ok(Body::Unknown { kind, base64: self.body.clone() }),
        };
        body.map_err(|_| BodyError)
    }
}

/// Checks what a client sends as a message, in place: bytes that decode, every list and text within its limit, the
/// payload within `payload_bytes_max`. The size is judged apart, because it has an error code of its own.
pub fn check_message(bytes: &[u8], payload_bytes_max: usize) -> Result<(), crate::ErrorCode> {
    let body =
        rkyv::access::<ArchivedMessageBody, rkyv::rancor::Error>(bytes).map_err(|_| crate::ErrorCode::BadFrame)?;
    if body.payload.len() > payload_bytes_max {
        return Err(crate::ErrorCode::TooLarge);
    }
    let shown = |number: u64| number <= limits::NUMBER_MAX;
    let extension_fits = |value: usize| value <= limits::EXTENSION_BYTES_MAX;
    let fits = !body.content_type.is_empty()
        && body.content_type.len() <= limits::CONTENT_TYPE_BYTES_MAX
        && body.reply_to.as_ref().is_none_or(|seq| shown(seq.to_native()))
        && body.expires_at_ms.as_ref().is_none_or(|at| shown(at.to_native()))
        && body.mentions.len() <= limits::MENTIONS_MAX
        && body.mentions.iter().all(|user| UserId::from(user).is_valid())
        && body.attachments.len() <= limits::ATTACHMENTS_MAX
        && body.extensions.len() <= limits::EXTENSIONS_MAX
        && body.extensions.iter().all(|extension| extension_fits(extension.value.len()))
        && body.attachments.iter().all(|attachment| {
            attachment.content_type.len() <= limits::CONTENT_TYPE_BYTES_MAX
                && shown(attachment.size_bytes.to_native())
                && extension_fits(attachment.reference.len())
                && extension_fits(attachment.name.len())
        });
    if fits { Ok(()) } else { Err(crate::ErrorCode::BadFrame) }
}
