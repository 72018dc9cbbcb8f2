//! Hard limits of the protocol, which no configuration raises, and their relations. Configured limits are below them.

/// Version that `Hello` and `Welcome` carry.
pub const PROTOCOL_VERSION: u16 = 1;
/// Version of the link between gateway and storage-writer.
pub const LINK_VERSION: u16 = 1;
/// WebSocket subprotocol of the binary encoding.
pub const SUBPROTOCOL_RKYV: &str = "parley.v1.rkyv";
/// WebSocket subprotocol of the text encoding.
pub const SUBPROTOCOL_JSON: &str = "parley.v1.json";

/// Payload of a message at the most, bytes, whatever the configuration.
pub const PAYLOAD_BYTES_MAX: usize = 256 * 1024;
/// A client frame at the most, bytes, whatever the configuration. Room for a payload in base64 and its envelope.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Members of a group at the most, whatever the configuration, as long as their list is one frame.
pub const GROUP_MEMBERS_MAX: usize = 10_000;
/// Members of a channel at the most, whatever the configuration. No frame, record or row lists them.
pub const CHANNEL_MEMBERS_MAX: usize = 100_000;
/// How often somebody may come into one channel by itself: each time is an interval in the row of the membership.
pub const CHANNEL_JOINS_MAX: usize = 256;
/// A chat title, bytes of UTF-8.
pub const TITLE_BYTES_MAX: usize = 256;
/// A user name, bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 64;
/// A content type, bytes.
pub const CONTENT_TYPE_BYTES_MAX: usize = 127;
/// Mentions in one message.
pub const MENTIONS_MAX: usize = 64;
/// Attachments of one message.
pub const ATTACHMENTS_MAX: usize = 16;
/// Tagged extensions of one message.
pub const EXTENSIONS_MAX: usize = 16;
/// One extension's value, or one attachment's reference and name, bytes.
pub const EXTENSION_BYTES_MAX: usize = 4096;
/// A reaction, bytes of UTF-8: one emoji with its modifiers, or a short code.
pub const REACTION_BYTES_MAX: usize = 64;
/// Users named by one frame that adds or removes members.
pub const MEMBER_CHANGES_MAX: usize = 1024;
/// Names or ids resolved by one frame.
pub const RESOLVE_MAX: usize = 128;
/// Events of one history page.
pub const HISTORY_PAGE_MAX: u32 = 200;
/// Chats of one page of the chat list.
pub const CHATS_PAGE_MAX: u32 = 100;
/// Members of one page of a member list.
pub const MEMBERS_PAGE_MAX: u32 = 500;
/// Entries of one page of an inbox.
pub const INBOX_PAGE_MAX: u32 = 1024;
/// Kinds that a `Hello` may list.
pub const KINDS_KNOWN_MAX: usize = 64;
/// A token, bytes.
pub const TOKEN_BYTES_MAX: usize = 4096;
/// The client's own description in `Hello`, bytes of UTF-8.
pub const CLIENT_BYTES_MAX: usize = 128;
/// The largest number that a client may have stored and shown to others: what a JavaScript number holds exactly.
pub const NUMBER_MAX: u64 = (1 << 53) - 1;
/// A record on a link at the most, bytes: an inbox page of large messages.
pub const LINK_RECORD_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of events that a page stops at (it always holds at least one event).
pub const PAGE_BYTES_MAX: usize = 256 * 1024;

const _: () = assert!(PAYLOAD_BYTES_MAX * 4 / 3 + 64 * 1024 < FRAME_BYTES_MAX, "a payload in base64 fits a frame");
const _: () = assert!(PAGE_BYTES_MAX + FRAME_BYTES_MAX + INBOX_PAGE_MAX as usize * 64 < LINK_RECORD_BYTES_MAX);
const _: () = assert!(GROUP_MEMBERS_MAX * 64 < LINK_RECORD_BYTES_MAX, "the members of a loaded chat fit a record");
