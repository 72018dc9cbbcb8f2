//! Resume tickets: what a gateway hands to a device so that it can come back without a token until that expires. An
//! HMAC over what the ticket says; never the service role.

use super::dev_key::{create_secret, read_secret};
use super::keys::{KeyError, base64url, to_base64url};
use hmac::{Hmac, KeyInit, Mac};
use parley_protocol::{DeviceId, UserId, limits};
use sha2::Sha256;
use std::path::Path;

const KEY_FILE: &str = "ticket.key";
const KEY_BYTES: usize = 32;
const MAC_BYTES: usize = 32;
const VERSION: u8 = 1;
const FLAG_LOOPBACK_ONLY: u8 = 1;
/// Version, flags, user, device, expiry.
const HEAD_BYTES: usize = 1 + 1 + 8 + 16 + 8;
/// In base64url, without padding.
const TEXT_BYTES_MAX: usize = (HEAD_BYTES + limits::NAME_BYTES_MAX + MAC_BYTES).div_ceil(3) * 4;
/// So that no other use of the key can yield a ticket.
const DOMAIN: &[u8] = b"parley resume ticket\0";

/// What a ticket says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Whose.
    pub user_id: UserId,
    /// For this device only.
    pub device_id: DeviceId,
    /// The user's name; may be empty.
    pub name: String,
    /// Unix milliseconds: when the token of the first login expires.
    pub expires_at_ms: u64,
    /// The token was a development token.
    pub loopback_only: bool,
}

/// Why a ticket is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TicketError {
    /// Not a ticket, or not one of this key's.
    Forged,
    /// Of another device.
    Device,
    /// The token behind it expired.
    Expired,
    /// Of a development token, from another machine.
    NotLoopback,
}

impl std::fmt::Display for TicketError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TicketError::Forged => "not a ticket of this deployment",
            TicketError::Device => "a ticket of another device",
            TicketError::Expired => "the ticket expired",
            TicketError::NotLoopback => "a development ticket, taken on loopback only",
        })
    }
}

impl std::error::Error for TicketError {}

/// Issues and verifies tickets under one key.
#[derive(Clone)]
pub struct Tickets {
    mac: Hmac<Sha256>,
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tickets")
    }
}

impl Tickets {
    /// Under this key.
    pub fn new(key: &[u8; 32]) -> Self {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
        mac.update(DOMAIN);
        Self { mac }
    }

    /// Under the key `ticket.key` of a data directory, which is made when it is missing, for the owner's eyes only.
    pub fn load_or_create(dir: &Path) -> Result<Self, KeyError> {
        Self::load_or_create_file(&dir.join(KEY_FILE))
    }

    /// Under the key in this file, which is made when it is missing. Gateways of one deployment share it.
    pub fn load_or_create_file(path: &Path) -> Result<Self, KeyError> {
        if !path.exists() {
            let mut key = [0; KEY_BYTES];
            getrandom::fill(&mut key).map_err(|error| KeyError::new(path, error))?;
            create_secret(path, &key)?;
        }
        match <[u8; KEY_BYTES]>::try_from(read_secret(path)?) {
            Ok(key) => Ok(Self::new(&key)),
            Err(_) => Err(KeyError::new(path, "not a ticket key of 32 bytes; remove it to make a new one")),
        }
    }

    /// The text of a ticket. A name above the limit is cut off whole: the ticket says who, the name is for show.
    pub fn issue(&self, ticket: &Ticket) -> String {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + ticket.name.len() + MAC_BYTES);
        bytes.push(VERSION);
        bytes.push(if ticket.loopback_only { FLAG_LOOPBACK_ONLY } else { 0 });
        bytes.extend_from_slice(&ticket.user_id.0.to_le_bytes());
        bytes.extend_from_slice(&ticket.device_id.0.to_le_bytes());
        bytes.extend_from_slice(&ticket.expires_at_ms.to_le_bytes());
        if ticket.name.len() <= limits::NAME_BYTES_MAX {
            bytes.extend_from_slice(ticket.name.as_bytes());
        }
        let mac = self.mac.clone().chain_update(&bytes).finalize().into_bytes();
        bytes.extend_from_slice(&mac);
        to_base64url(&bytes)
    }

    /// What a ticket says, if it is one of ours, of this device, and not expired.
    pub fn verify(
        &self,
        text: &str,
        device_id: DeviceId,
        now_unix_ms: u64,
        peer_is_loopback: bool,
    ) -> Result<Ticket, TicketError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(TicketError::Forged);
        }
        let bytes = base64url(text).ok_or(TicketError::Forged)?;
        let (said, mac) = bytes.split_last_chunk::<MAC_BYTES>().ok_or(TicketError::Forged)?;
        // Constant in time.
        self.mac.clone().chain_update(said).verify_slice(mac).map_err(|_| TicketError::Forged)?;
        let ticket = parse(said).ok_or(TicketError::Forged)?;
        if ticket.device_id != device_id {
            return Err(TicketError::Device);
        }
        if now_unix_ms >= ticket.expires_at_ms {
            return Err(TicketError::Expired);
        }
        if ticket.loopback_only && !peer_is_loopback {
            return Err(TicketError::NotLoopback);
        }
        Ok(ticket)
    }
}

fn parse(said: &[u8]) -> Option<Ticket> {
    let (head, name) = said.split_first_chunk::<HEAD_BYTES>()?;
    let (prefix, rest) = head.split_first_chunk::<2>()?;
    let (user, rest) = rest.split_first_chunk::<8>()?;
    let (device, expiry) = rest.split_first_chunk::<16>()?;
    let expiry: &[u8; 8] = expiry.try_into().ok()?;
    if prefix[0] != VERSION {
        return None;
    }
    Some(Ticket {
        user_id: UserId(u64::from_le_bytes(*user)),
        device_id: DeviceId(u128::from_le_bytes(*device)),
        name: std::str::from_utf8(name).ok()?.to_owned(),
        expires_at_ms: u64::from_le_bytes(*expiry),
        loopback_only: prefix[1] & FLAG_LOOPBACK_ONLY != 0,
    })
}
