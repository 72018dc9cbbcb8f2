//! What crosses a wire in Parley: ids, client and server frames in two encodings, link records, limits.
//! No IO, no clock, no random source: bytes in, values out, and back.
#![forbid(unsafe_code)]

pub mod body;
pub mod check;
pub mod close;
mod discreet;
pub mod error;
pub mod event;
pub mod frame;
pub mod id;
pub mod json;
pub mod limits;
pub mod link;
pub mod partition;
pub mod wire;

pub use body::{Attachment, Body, Envelope, Extension, MemberAction, MemberChange, MessageBody, Role};
pub use error::ErrorCode;
pub use event::{Event, OwnState};
pub use frame::{ClientFrame, ServerFrame};
pub use id::{ChatId, ChatKind, ClientMsgId, DeviceId, MessageId, Posting, UserId};
pub use partition::{PARTITIONS, Partition};
