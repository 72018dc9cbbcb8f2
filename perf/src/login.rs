//! Connects and logs in many users: a bounded number of handshakes at a time, a bounded rate, clear errors.

use crate::frames::{Encoder, Incoming, read};
use crate::net::{Closed, Handler, Net, Wires};
use crate::tokens::Tokens;
use parley_protocol::frame::Hello;
use parley_protocol::limits::PROTOCOL_VERSION;
use parley_protocol::wire::Encoding;
use parley_protocol::{ClientFrame, DeviceId, UserId, close};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How to log in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) users: u32,
    /// Connections between their connect and their `Welcome` at most.
    pub(crate) handshakes_max: u32,
    /// Connects a second at most.
    pub(crate) rate: u32,
    /// High bits of the device ids: a run has devices of its own.
    pub(crate) run: u64,
    pub(crate) encoding: Encoding,
}

/// Without any `Welcome` for this long the run is given up.
const PATIENCE: Duration = Duration::from_secs(30);
const PROGRESS_NS: u64 = 1_000_000_000;

struct Login<'a> {
    options: Options,
    tokens: &'a Tokens,
    encoder: &'a Encoder,
    now_unix_s: u64,
    users: Vec<Option<UserId>>,
    welcomed: u32,
    failure: Option<String>,
}

impl Handler for Login<'_> {
    fn opened(&mut self, conn: u32, wires: &mut Wires) {
        let token = self.tokens.sign(&format!("perf-{conn}"), self.now_unix_s);
        let hello = Hello {
            version: PROTOCOL_VERSION,
            device_id: DeviceId(u128::from(self.options.run) << 64 | u128::from(conn)),
            token: Some(token),
            resume: None,
            mark: None,
            kinds_known: Vec::new(),
            client: concat!("parley-perf/", env!("CARGO_PKG_VERSION")).to_owned(),
            act_for: None,
        };
        if let Some(out) = wires.out(conn) {
            self.encoder.frame(&ClientFrame::Hello(hello), out);
        }
    }

    fn message(&mut self, conn: u32, payload: &[u8], _now_ns: u64, _wires: &mut Wires) {
        match read(self.options.encoding, payload) {
            Ok(Incoming::Welcome { user_id }) => {
                self.welcomed += u32::from(self.users[conn as usize].replace(user_id).is_none());
            }
            Ok(Incoming::Error { code, message, .. }) => {
                self.failure.get_or_insert(format!("the login of user {conn} was refused: {code:?}: {message}"));
            }
            Ok(_) => {}
            Err(error) => {
                self.failure.get_or_insert(format!("user {conn} got a frame that does not decode: {error}"));
            }
        }
    }

    fn closed(&mut self, conn: u32, why: Closed) {
        let hint = match &why {
            Closed::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                "; nothing listens there: start a server, or let --spawn do it"
            }
            Closed::Close { code: close::UNAUTHENTICATED, .. } => "; is --data the data directory of this server?",
            _ => "",
        };
        self.failure.get_or_insert(format!("user {conn} could not log in: {why}{hint}"));
    }
}

/// Logs `options.users` users in, on connections 0 to users - 1; their ids in that order.
pub(crate) fn login(
    net: &mut Net,
    options: Options,
    tokens: &Tokens,
    encoder: &Encoder,
) -> Result<Vec<UserId>, String> {
    let now_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let users = vec![None; options.users as usize];
    let mut login = Login { options, tokens, encoder, now_unix_s, users, welcomed: 0, failure: None };
    let began_ns = net.clock.now_ns();
    let (mut started, mut last_welcomed, mut moved_ns, mut progress_ns) = (0, 0, began_ns, began_ns);
    while login.welcomed < options.users {
        let now_ns = net.clock.now_ns();
        let allowed = ((now_ns - began_ns) as u128 * u128::from(options.rate) / 1_000_000_000) as u64 + 1;
        while started < options.users
            && u64::from(started) < allowed
            && started - login.welcomed < options.handshakes_max
        {
            net.connect().map_err(|error| format!("connection {started}: {error}"))?;
            started += 1;
        }
        let ready = net.turn(&mut login).map_err(|error| error.to_string())?;
        if let Some(failure) = login.failure {
            return Err(failure);
        }
        if login.welcomed != last_welcomed {
            (last_welcomed, moved_ns) = (login.welcomed, now_ns);
        } else if now_ns - moved_ns > PATIENCE.as_nanos() as u64 {
            let waiting = started - login.welcomed;
            return Err(format!("{waiting} connections wait for their Welcome, and none came for {PATIENCE:?}"));
        }
        if now_ns - progress_ns >= PROGRESS_NS {
            progress_ns = now_ns;
            eprintln!("login: {} of {} users", login.welcomed, options.users);
        }
        if ready == 0 {
            net.wait(Duration::from_micros(500)).map_err(|error| format!("poll: {error}"))?;
        }
    }
    Ok(login.users.into_iter().flatten().collect())
}
