//! Who a client is, as the shard asks it. The shell brings the keys; signatures and tickets are checked there.

use crate::time::Now;
use parley_protocol::{DeviceId, UserId};

/// Checks tokens and tickets. Pure: the same question has the same answer at the same time.
pub trait Authority {
    /// Checks an access token.
    fn verify_token(&self, token: &str, now: Now, peer_is_loopback: bool) -> Result<Identity, String>;
    /// Makes a resume ticket.
    fn issue_ticket(&self, ticket: &Ticket) -> String;
    /// Checks a resume ticket, its device and its expiry.
    fn verify_ticket(&self, text: &str, device_id: DeviceId, now: Now, peer_is_loopback: bool) -> Option<Ticket>;
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `iss`.
    pub issuer: String,
    /// `sub`.
    pub subject: String,
    /// The name asked for; empty for none.
    pub name: String,
    /// `exp`, Unix milliseconds.
    pub expires_at_ms: u64,
    /// The service role.
    pub service: bool,
    /// Under the development key.
    pub development: bool,
}

/// What a ticket says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Whose session it resumes.
    pub user_id: UserId,
    /// On which device.
    pub device_id: DeviceId,
    /// The user's name, for show; may be empty.
    pub name: String,
    /// When the ticket, and a session that it resumed, expires, Unix milliseconds; never after the token behind it.
    pub expires_at_ms: u64,
    /// The token behind it was under the development key.
    pub development: bool,
}
