//! Who a client is, without signatures: a token is a name, a ticket is its own text. Signatures have tests of their own.

use gateway_core::authority::{Authority, Identity, Ticket};
use gateway_core::time::Now;
use parley_protocol::DeviceId;

/// Believes every name.
pub(crate) struct Names;

impl Authority for Names {
    fn verify_token(&self, token: &str, _: Now, _: bool) -> Result<Identity, String> {
        if token.is_empty() {
            return Err("an empty token".to_owned());
        }
        Ok(Identity {
            issuer: "sim".to_owned(),
            subject: token.to_owned(),
            name: token.to_owned(),
            expires_at_ms: u64::MAX / 2,
            service: false,
            development: true,
        })
    }

    fn issue_ticket(&self, ticket: &Ticket) -> String {
        format!("{}/{}/{}", ticket.user_id, ticket.device_id, ticket.expires_at_ms)
    }

    fn verify_ticket(&self, text: &str, device_id: DeviceId, now: Now, _: bool) -> Option<Ticket> {
        let mut parts = text.split('/');
        let ticket = Ticket {
            user_id: parts.next()?.parse().ok()?,
            device_id: parts.next()?.parse().ok()?,
            expires_at_ms: parts.next()?.parse().ok()?,
            name: String::new(),
            development: true,
        };
        (ticket.device_id == device_id && now.unix_ms < ticket.expires_at_ms).then_some(ticket)
    }
}
