//! Who takes part: the attackers' names, devices and credentials, and two honest people whose chat is none of theirs.

use super::Settings;
use super::client::{Client, hello, now_unix_ms, now_unix_s};
use crate::frames::Encoder;
use crate::net::Url;
use crate::tokens::{Tokens, claims};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parley_protocol::frame::Welcome;
use parley_protocol::wire::Encoding;
use parley_protocol::{ChatId, ClientMsgId, DeviceId, ServerFrame};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub(crate) const MASK: [u8; 4] = [0x55, 0x1f, 0x83, 0xc6];
/// Bytes of a message to those who never read.
const SPOKEN_BYTES: usize = 4 << 10;
/// Who asks for what belongs to others.
pub(crate) const MALLORY: &str = "hostile-mallory";

/// How hard: so many a second, over all connections of an attack.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strength {
    /// Connections that are refused, most of them at once.
    pub(crate) connects_per_s: u64,
    /// Sessions that are opened and refused.
    pub(crate) logins_per_s: u64,
    /// What is large by itself: heads of 1 MB, endless fragments.
    pub(crate) heavy_per_s: u64,
    /// Requests that are refused.
    pub(crate) requests_per_s: u64,
    pub(crate) pings_per_s: u64,
    /// Messages to those who never read.
    pub(crate) spoken_per_s: u64,
    /// Connections held at a time by those that wait for the end of their time.
    pub(crate) held: usize,
}

/// Tickets that open nothing, and the device that they are shown by.
pub(crate) struct Tickets {
    pub(crate) device: DeviceId,
    pub(crate) forged: String,
    pub(crate) expired: String,
}

/// Everything that attackers share.
pub(crate) struct Cast {
    pub(crate) url: Url,
    pub(crate) tokens: Tokens,
    pub(crate) encoder: Encoder,
    pub(crate) strength: Strength,
    /// Longer than the server's times for those that it refuses in time.
    pub(crate) patience: Duration,
    /// Where the server counts what it refuses.
    pub(crate) admin: SocketAddr,
    /// Held by whoever waits for the count of stalled readers to rise.
    pub(crate) stalling: Mutex<()>,
    /// A chat of two others, with a message in it.
    pub(crate) chat: ChatId,
    /// A device of one of them.
    pub(crate) device_of_others: DeviceId,
    pub(crate) tickets: Tickets,
    /// High bits of the attackers' device ids.
    run: u64,
    /// Devices given so far.
    devices: AtomicU64,
}

impl Cast {
    /// Logs in whoever must be there before the first attack. Takes a moment: a ticket has to expire.
    pub(crate) fn new(settings: &Settings, tokens: &Tokens) -> Result<Self, String> {
        let url = &settings.honest.url;
        let mut run = [0; 8];
        getrandom::fill(&mut run).map_err(|error| format!("no randomness: {error}"))?;
        let none = Tickets { device: DeviceId(0), forged: String::new(), expired: String::new() };
        let mut cast = Self {
            url: url.clone(),
            tokens: tokens.clone(),
            encoder: Encoder::new(Encoding::Rkyv, SPOKEN_BYTES, MASK),
            strength: settings.strength,
            patience: settings.patience,
            admin: settings.admin,
            stalling: Mutex::new(()),
            chat: ChatId(0),
            device_of_others: DeviceId(0),
            tickets: none,
            run: u64::from_le_bytes(run),
            devices: AtomicU64::new(0),
        };
        cast.tickets = cast.bad_tickets()?;
        cast.device_of_others = cast.new_device();
        let hello = hello(&cast.encoder, Some(cast.token("hostile-other-1")), None, cast.device_of_others);
        let (_one, welcome) = Client::seated(url, &hello)?;
        let (mut speaker, other) = cast.seated("hostile-other-2")?;
        cast.chat = ChatId::direct(welcome.user_id, other.user_id).ok_or("two users have one id")?;
        let mut message = Vec::new();
        cast.encoder.send(cast.chat, ClientMsgId(u128::from(cast.run)), &mut message);
        speaker.send(&message)?;
        while !matches!(speaker.next()?, ServerFrame::Sent(_)) {}
        Ok(cast)
    }

    /// A ticket ends with the token that it was issued for.
    fn bad_tickets(&self) -> Result<Tickets, String> {
        let device = self.new_device();
        let ticket = |token| -> Result<Welcome, String> {
            let hello = hello(&self.encoder, Some(token), None, device);
            Ok(Client::seated(&self.url, &hello)?.1)
        };
        let name = "hostile-ticket";
        let good = ticket(self.token(name))?.resume;
        let short = ticket(self.tokens.signed(self.tokens.header(), &claims(name, now_unix_s() + 2)))?;
        while now_unix_ms() <= short.resume_expires_at_ms {
            let left = short.resume_expires_at_ms.saturating_sub(now_unix_ms());
            if left > 10_000 {
                return Err(format!("a token of 2 s gave a ticket that holds for {left} ms more"));
            }
            std::thread::sleep(Duration::from_millis(left + 50));
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(&good).map_err(|_| "a ticket is not base64url")?;
        // The user that it is for: behind the version and the flags.
        *bytes.get_mut(2).ok_or("a ticket is empty")? ^= 1;
        Ok(Tickets { device, forged: URL_SAFE_NO_PAD.encode(bytes), expired: short.resume })
    }

    /// A device that nobody has.
    pub(crate) fn new_device(&self) -> DeviceId {
        DeviceId(u128::from(self.run) << 64 | u128::from(self.devices.fetch_add(1, Ordering::Relaxed)))
    }

    pub(crate) fn token(&self, name: &str) -> String {
        self.tokens.sign(name, now_unix_s())
    }

    /// A framed `Hello` with this token.
    pub(crate) fn hello_with(&self, token: String) -> Vec<u8> {
        hello(&self.encoder, Some(token), None, self.new_device())
    }

    /// A framed `Hello` with this ticket.
    pub(crate) fn hello_again(&self, ticket: &str) -> Vec<u8> {
        hello(&self.encoder, None, Some(ticket.to_owned()), self.tickets.device)
    }

    /// A session, on a device of its own.
    pub(crate) fn seated(&self, name: &str) -> Result<(Client, Welcome), String> {
        Client::seated(&self.url, &self.hello_with(self.token(name))).map_err(|error| format!("{name}: {error}"))
    }
}
