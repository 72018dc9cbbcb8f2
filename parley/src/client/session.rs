//! A session as a command of the client uses it: one thread, blocking with a deadline. Connects, logs in, beats,
//! renews, reconnects and resends by itself; hands on what the caller wants to see.

use super::backoff::Backoff;
use super::connection::{ConnectError, Connection, Heard};
use super::follow::{Follow, Outcome};
use super::queue::{Answered, Queue};
use super::state::{DeviceState, state_path};
use super::{Address, ClientError, Who, unix_ms};
use parley_protocol::close::{self, ClientAction};
use parley_protocol::frame::{self, Welcome};
use parley_protocol::wire::Encoding;
use parley_protocol::{ChatId, ClientFrame, DeviceId, ServerFrame, UserId, limits};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Between two attempts to renew a token.
const RENEW_RETRY_MS: u64 = 30_000;
/// Requests of the session's own, so that their answers are told from the caller's.
const OWN_REQUESTS: u32 = 1 << 31;
/// Updates that wait for the caller at the most; beyond that nothing more is read.
const READY_MAX: usize = 16_384;
/// A gateway that takes longer to answer `Hello` is not there.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// No byte for this long after a sign of life was asked for: the connection is dead.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection that stood this long resets the delays.
const STOOD: Duration = Duration::from_secs(5);
/// Logins refused in a row before giving up.
const REFUSED_LOGINS_MAX: u32 = 3;
/// How long a hole's history is given before it is asked again.
const FILL_AGAIN: Duration = Duration::from_millis(200);
/// Large chats that a session subscribes to at the most.
const SUBSCRIPTIONS_MAX: usize = 32;

/// What the session does with the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// One request and gone: no mark, no state, the stream is not looked at.
    Quiet,
    /// Every event once and in order; the position is kept in a file.
    Follow {
        /// Begins with everything there is, whatever the position.
        from_start: bool,
    },
    /// Every event once and in order, from now on; nothing is kept.
    Live,
}

/// How to open a session.
pub(crate) struct SessionOptions {
    /// Where.
    pub(crate) address: Address,
    /// As whom.
    pub(crate) who: Who,
    /// Which encoding.
    pub(crate) encoding: Encoding,
    /// What to do with the stream.
    pub(crate) mode: Mode,
    /// A device id that somebody chose.
    pub(crate) device_id: Option<DeviceId>,
    /// Where devices are kept.
    pub(crate) state_dir: PathBuf,
    /// Tells the devices of one user on one machine apart.
    pub(crate) purpose: &'static str,
}

/// What the caller gets to see.
#[derive(Debug)]
pub(crate) enum Update {
    /// A session is open.
    Connected(Box<Welcome>),
    /// It is not, for now.
    Disconnected {
        /// Why.
        why: String,
        /// When the next attempt is.
        retry_in: Duration,
    },
    /// A frame: events of the stream once and in order, everything else as it came.
    Frame(Box<ServerFrame>),
    /// The stream has come to its end.
    CaughtUp,
    /// The server's store is not the one that this device knows: its position was forgotten, and begins at the start.
    NewHistory,
    /// The deadline is over.
    Idle,
    /// Somebody wrote to the wake descriptor.
    Woken,
}

struct Open {
    connection: Connection,
    opened: Instant,
    welcome: Option<Box<Welcome>>,
    said: Instant,
    heard: Instant,
    renew_at_ms: Option<u64>,
    caught_up: bool,
}

struct Ticket {
    text: String,
    expires_at_ms: u64,
}

/// See the head of this file.
pub(crate) struct Session {
    options: SessionOptions,
    state: DeviceState,
    state_path: Option<PathBuf>,
    follow: Follow,
    queue: Queue,
    open: Option<Open>,
    retry_at: Instant,
    backoff: Backoff,
    ticket: Option<Ticket>,
    refused_logins: u32,
    /// Of the token of the last `Hello` that had one, where it is known.
    token_expires_at_ms: Option<u64>,
    reconnect_delay: Option<Duration>,
    ready: VecDeque<Update>,
    wake: Option<UnixStream>,
    next_request: u32,
    next_own_request: u32,
    fills: HashMap<u32, ChatId>,
    /// The page of the list that is being read; answers to older ones do not count.
    listing: Option<u32>,
    fills_later: Vec<(Instant, ChatId, u64)>,
    marks: Marks,
    subscribed: Vec<ChatId>,
    me: Option<UserId>,
    /// The last attempt found a gateway.
    reached: bool,
}

/// Delivered and read marks: without an answer, so they are sent again on a new connection.
#[derive(Default)]
struct Marks {
    delivered: BTreeMap<ChatId, u64>,
    delivered_sent: BTreeMap<ChatId, u64>,
    read: BTreeMap<ChatId, u64>,
    read_sent: BTreeMap<ChatId, u64>,
}

fn raise(marks: &mut BTreeMap<ChatId, u64>, chat_id: ChatId, seq: u64) {
    let mark = marks.entry(chat_id).or_insert(0);
    *mark = (*mark).max(seq);
}

/// A random number of the operating system.
pub(crate) fn random_u128() -> u128 {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the operating system has random numbers");
    u128::from_le_bytes(bytes)
}

fn random_u64() -> u64 {
    random_u128() as u64
}

impl Session {
    /// Reads the device's state; the first call of `next` connects.
    pub(crate) fn new(options: SessionOptions) -> Result<Self, ClientError> {
        let keeps = matches!(options.mode, Mode::Follow { .. } | Mode::Live);
        let label = options.who.label();
        let url = options.address.text().to_owned();
        let path = state_path(&options.state_dir, &url, &label, options.purpose, options.device_id);
        let stored = if keeps { DeviceState::load(&path)? } else { None };
        let mut state = stored.unwrap_or_else(|| {
            let device_id = options.device_id.unwrap_or_else(|| DeviceId(random_u128()));
            DeviceState { url, user: label, device_id, user_id: None, mark: None, known: BTreeMap::new() }
        });
        if options.mode == (Mode::Follow { from_start: true }) {
            (state.mark, state.known) = (Some(0), BTreeMap::new());
        }
        let (mark, known) = match options.mode {
            Mode::Follow { .. } => (state.mark, state.known.clone()),
            Mode::Live | Mode::Quiet => (None, BTreeMap::new()),
        };
        if keeps {
            state.save(&path)?;
        }
        Ok(Self {
            state,
            state_path: matches!(options.mode, Mode::Follow { .. }).then_some(path),
            follow: Follow::new(mark, known),
            queue: Queue::default(),
            open: None,
            retry_at: Instant::now(),
            backoff: Backoff::default(),
            ticket: None,
            refused_logins: 0,
            token_expires_at_ms: None,
            reconnect_delay: None,
            ready: VecDeque::new(),
            wake: None,
            next_request: 1,
            next_own_request: OWN_REQUESTS,
            fills: HashMap::new(),
            listing: None,
            fills_later: Vec::new(),
            marks: Marks::default(),
            subscribed: Vec::new(),
            me: None,
            reached: false,
            options,
        })
    }

    /// Bytes on this stream end a wait with `Update::Woken`.
    pub(crate) fn wake_by(&mut self, wake: UnixStream) -> Result<(), ClientError> {
        wake.set_nonblocking(true).map_err(|error| ClientError::Local(error.to_string()))?;
        self.wake = Some(wake);
        Ok(())
    }

    /// Who one is, once a session was open.
    pub(crate) fn me(&self) -> Option<UserId> {
        self.me
    }

    /// Whether this device has a position already, from which it goes on.
    pub(crate) fn has_position(&self) -> bool {
        self.follow.mark().is_some()
    }

    /// Whether a gateway answered the last attempt to connect.
    pub(crate) fn reached(&self) -> bool {
        self.reached
    }

    /// A fresh number for a request of the caller's.
    pub(crate) fn request_id(&mut self) -> u32 {
        let id = self.next_request;
        self.next_request = (self.next_request + 1) % OWN_REQUESTS;
        id
    }

    /// Takes a request over: sent now or when there is a connection, and again until it is answered.
    pub(crate) fn submit(&mut self, frame: ClientFrame) -> Result<(), ClientError> {
        if self.queue.push(frame) {
            return Ok(());
        }
        Err(ClientError::Asked("too many requests wait for an answer already".to_owned()))
    }

    /// Sends a frame that has no answer. `false`: there is no session now.
    pub(crate) fn fire(&mut self, frame: &ClientFrame) -> bool {
        let Some(open) = self.open.as_mut().filter(|open| open.welcome.is_some()) else { return false };
        open.said = Instant::now();
        open.connection.say(frame).is_ok()
    }

    /// Marks a chat as read up to `seq`, now or when there is a session.
    pub(crate) fn read(&mut self, chat_id: ChatId, seq: u64) {
        raise(&mut self.marks.read, chat_id, seq);
    }

    /// Live events of a large chat, on this connection and the ones after it.
    pub(crate) fn subscribe(&mut self, chat_id: ChatId) {
        if !self.subscribed.contains(&chat_id) && self.subscribed.len() < SUBSCRIPTIONS_MAX {
            self.subscribed.push(chat_id);
            self.fire(&ClientFrame::Subscribe(frame::ChatRef { chat_id }));
        }
    }

    /// Ends that.
    pub(crate) fn unsubscribe(&mut self, chat_id: ChatId) {
        if let Some(at) = self.subscribed.iter().position(|subscribed| *subscribed == chat_id) {
            self.subscribed.remove(at);
            self.fire(&ClientFrame::Unsubscribe(frame::ChatRef { chat_id }));
        }
    }

    /// Puts updates back, to be seen again in this order before anything new.
    pub(crate) fn put_back(&mut self, updates: Vec<Update>) {
        for update in updates.into_iter().rev() {
            self.ready.push_front(update);
        }
    }

    /// The next update, or `Idle` at the deadline. An error is the end of the session.
    pub(crate) fn next(&mut self, deadline: Option<Instant>) -> Result<Update, ClientError> {
        loop {
            if let Some(update) = self.ready.pop_front() {
                return Ok(update);
            }
            let now = Instant::now();
            if self.open.is_none() && self.retry_at <= now {
                self.connect(deadline)?;
            }
            if self.open.is_some() {
                self.turn()?;
            }
            if !self.ready.is_empty() {
                continue;
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| deadline <= now) {
                return Ok(Update::Idle);
            }
            let until = [deadline, Some(self.next_timer(now))].into_iter().flatten().min().unwrap_or(now);
            let connection = self.open.as_ref().map(|open| &open.connection);
            let wake = self.wake.as_ref().map(|wake| wake.as_fd());
            Connection::wait(connection, wake, until.saturating_duration_since(now));
            if self.woken() {
                return Ok(Update::Woken);
            }
        }
    }

    /// Stores the position and says goodbye.
    pub(crate) fn close(mut self) -> Result<(), ClientError> {
        let saved = self.save_handed_on();
        if let Some(mut open) = self.open.take() {
            self.say_marks(&mut open);
            open.connection.close();
        }
        saved
    }

    fn woken(&mut self) -> bool {
        let Some(wake) = &mut self.wake else { return false };
        let mut bytes = [0; 64];
        matches!(wake.read(&mut bytes), Ok(read) if read > 0)
    }

    fn connect(&mut self, deadline: Option<Instant>) -> Result<(), ClientError> {
        let left = deadline.map_or(WELCOME_TIMEOUT, |deadline| deadline.saturating_duration_since(Instant::now()));
        let mut connection = match Connection::open(&self.options.address, self.options.encoding, left) {
            Ok(connection) => connection,
            Err(ConnectError::Final(why)) => return Err(ClientError::Asked(why)),
            Err(ConnectError::Unreachable(why)) => {
                self.reached = false;
                let why = format!("cannot reach {}: {why}", self.options.address.text());
                self.down(why, false);
                return Ok(());
            }
            Err(ConnectError::Refused(why)) => {
                self.reached = false;
                self.down(format!("{} is not a Parley gateway: {why}", self.options.address.text()), true);
                return Ok(());
            }
        };
        self.reached = true;
        let hello = self.hello()?;
        let now = Instant::now();
        if let Err(why) = connection.say(&hello) {
            self.down(why, false);
            return Ok(());
        }
        self.open = Some(Open {
            connection,
            opened: now,
            welcome: None,
            said: now,
            heard: now,
            renew_at_ms: None,
            caught_up: false,
        });
        Ok(())
    }

    fn hello(&mut self) -> Result<ClientFrame, ClientError> {
        let now_ms = unix_ms();
        self.ticket = self.ticket.take().filter(|ticket| ticket.expires_at_ms > now_ms);
        let (token, resume) = match &self.ticket {
            Some(ticket) => (None, Some(ticket.text.clone())),
            None => {
                let (token, expires_at_ms) = self.options.who.token(now_ms)?;
                self.token_expires_at_ms = expires_at_ms;
                (Some(token), None)
            }
        };
        Ok(ClientFrame::Hello(frame::Hello {
            version: limits::PROTOCOL_VERSION,
            device_id: self.state.device_id,
            token,
            resume,
            mark: self.follow.mark(),
            kinds_known: Vec::new(),
            client: concat!("parley-cli/", env!("CARGO_PKG_VERSION")).to_owned(),
            act_for: None,
        }))
    }

    fn down(&mut self, why: String, patient: bool) {
        self.open = None;
        let delay = match self.reconnect_delay.take() {
            Some(delay) => delay,
            None => self.backoff.next(patient, random_u64()),
        };
        self.retry_at = Instant::now() + delay;
        self.ready.push_back(Update::Disconnected { why, retry_in: delay });
    }

    fn closed(&mut self, code: u16, reason: String) -> Result<(), ClientError> {
        let stood = self.open.as_ref().is_some_and(|open| open.welcome.is_some() && open.opened.elapsed() > STOOD);
        if stood {
            self.backoff.reset();
        }
        let what = if reason.is_empty() { format!("connection closed ({code})") } else { format!("{reason} ({code})") };
        match close::client_action(code) {
            ClientAction::RetryNow => self.down(what, false),
            ClientAction::RetryLater => self.down(what, true),
            ClientAction::Reauthenticate => {
                let had_ticket = self.ticket.take().is_some();
                let signs = self.options.who.signs();
                if self.options.who.reload() {
                    // A new key is worth an attempt at once.
                    self.refused_logins = 0;
                    self.reconnect_delay = Some(Duration::ZERO);
                }
                self.refused_logins += 1;
                if self.refused_logins < REFUSED_LOGINS_MAX && (had_ticket || signs) {
                    self.down(what, false);
                } else if signs && self.options.mode == Mode::Live && self.me.is_some() {
                    // Somebody looks at it and has something open: it waits for the key to be right again.
                    self.down(format!("{}: {what}", self.options.who.advice()), true);
                } else {
                    return Err(ClientError::Unauthenticated(reason));
                }
            }
            ClientAction::Stop => return Err(ClientError::Stopped { code, reason }),
        }
        Ok(())
    }

    /// Hears what came, sends what is due.
    fn turn(&mut self) -> Result<(), ClientError> {
        while self.ready.len() < READY_MAX {
            let Some(open) = &mut self.open else { return Ok(()) };
            match open.connection.hear() {
                Heard::Nothing => break,
                Heard::Alive => open.heard = Instant::now(),
                Heard::Frame(frame) => {
                    open.heard = Instant::now();
                    self.hear(*frame)?;
                }
                Heard::Closed { code, reason } => return self.closed(code, reason),
            }
        }
        let Some(mut open) = self.open.take() else { return Ok(()) };
        match self.say_due(&mut open) {
            Ok(()) => self.open = Some(open),
            Err(why) => self.down(why, false),
        }
        Ok(())
    }

    fn say_due(&mut self, open: &mut Open) -> Result<(), String> {
        let now = Instant::now();
        if open.connection.unsent() {
            open.connection.flush()?;
        }
        let Some(welcome) = &open.welcome else {
            let late = now.duration_since(open.opened) > WELCOME_TIMEOUT;
            return if late { Err("no answer to Hello".to_owned()) } else { Ok(()) };
        };
        let heartbeat = Duration::from_millis(u64::from(welcome.heartbeat_interval_ms.max(100)));
        let in_flight_max = (welcome.requests_in_flight_max.max(1)) as usize;
        if now.duration_since(open.heard) > heartbeat + SILENCE_TIMEOUT {
            return Err("the server went silent".to_owned());
        }
        let due: Vec<(ChatId, u64)> = take_due(&mut self.fills_later, now);
        for (chat_id, after) in due {
            self.fetch(chat_id, after);
        }
        let now_ms = unix_ms();
        while let Some(frame) = self.queue.next_to_send(now_ms, in_flight_max) {
            open.connection.say(&frame)?;
            open.said = now;
        }
        self.say_marks(open);
        if open.renew_at_ms.is_some_and(|at_ms| at_ms <= now_ms) {
            // Tried again, should it be refused for now; what `Renewed` says comes in place of this.
            open.renew_at_ms = Some(now_ms + RENEW_RETRY_MS);
            if let Ok((token, _)) = self.options.who.token(now_ms) {
                open.connection.say(&ClientFrame::Renew(frame::Renew { token }))?;
                open.said = now;
            }
        }
        if now.duration_since(open.said) >= heartbeat {
            open.connection.say(&ClientFrame::Ping(frame::Ping { nonce: 0 }))?;
            open.said = now;
        }
        Ok(())
    }

    /// Marks that rose since the last time, one frame a chat.
    fn say_marks(&mut self, open: &mut Open) {
        if open.welcome.is_none() {
            return;
        }
        for (chat_id, seq) in self.follow.take_delivered() {
            raise(&mut self.marks.delivered, chat_id, seq);
        }
        while let Some((chat_id, seq)) = self.marks.delivered.pop_first() {
            raise(&mut self.marks.delivered_sent, chat_id, seq);
            let _ = open.connection.say(&ClientFrame::Delivered(frame::Position { chat_id, seq }));
            open.said = Instant::now();
        }
        while let Some((chat_id, seq)) = self.marks.read.pop_first() {
            raise(&mut self.marks.read_sent, chat_id, seq);
            let _ = open.connection.say(&ClientFrame::Read(frame::Position { chat_id, seq }));
            open.said = Instant::now();
        }
    }

    fn next_timer(&self, now: Instant) -> Instant {
        let Some(open) = &self.open else { return self.retry_at };
        let Some(welcome) = &open.welcome else { return open.opened + WELCOME_TIMEOUT };
        let heartbeat = Duration::from_millis(u64::from(welcome.heartbeat_interval_ms.max(100)));
        let now_ms = unix_ms();
        let wall = |at_ms: u64| now + Duration::from_millis(at_ms.saturating_sub(now_ms));
        let timers = [
            Some(open.said + heartbeat),
            Some(open.heard + heartbeat + SILENCE_TIMEOUT),
            self.queue.next_due_ms().map(wall),
            open.renew_at_ms.map(wall),
            self.fills_later.iter().map(|(at, ..)| *at).min(),
        ];
        timers.into_iter().flatten().min().unwrap_or(now)
    }

    fn hear(&mut self, frame: ServerFrame) -> Result<(), ClientError> {
        let spread_ms = random_u64() % 100;
        if self.queue.hear(&frame, unix_ms(), spread_ms) == Answered::Retrying {
            return Ok(());
        }
        match frame {
            ServerFrame::Welcome(welcome) if self.state.user_id.is_some_and(|known| known != welcome.user_id) => {
                return self.begin_anew(welcome.user_id);
            }
            ServerFrame::Welcome(welcome) => self.welcomed(welcome)?,
            ServerFrame::Reconnect(reconnect) => {
                self.reconnect_delay = Some(Duration::from_millis(u64::from(reconnect.delay_ms.min(60_000))));
                self.ticket = Some(Ticket { text: reconnect.resume, expires_at_ms: reconnect.resume_expires_at_ms });
            }
            ServerFrame::Renewed(renewed) => {
                self.token_expires_at_ms = Some(renewed.expires_at_ms);
                self.set_renewal(renewed.expires_at_ms);
            }
            ServerFrame::Pong(_) => {}
            frame if self.options.mode == Mode::Quiet => self.ready.push_back(Update::Frame(Box::new(frame))),
            ServerFrame::Event(event) => {
                let outcome = self.follow.event(event);
                self.apply(outcome)?;
            }
            ServerFrame::Mark(mark) => {
                let outcome = self.follow.marked(mark);
                self.apply(outcome)?;
            }
            ServerFrame::Truncated(truncated) => {
                let outcome = self.follow.truncated(truncated.mark);
                self.apply(outcome)?;
            }
            ServerFrame::Head(head) => {
                let outcome = self.follow.head(head.chat_id, head.seq);
                self.ready.push_back(Update::Frame(Box::new(ServerFrame::Head(head))));
                if matches!(self.options.mode, Mode::Follow { .. }) {
                    self.subscribe(head.chat_id);
                }
                self.apply(outcome)?;
            }
            ServerFrame::ChatList(list) if list.request_id >= OWN_REQUESTS => {
                if self.listing != Some(list.request_id) {
                    return Ok(());
                }
                let outcome = self.follow.listed(&list.chats, list.more);
                if list.more {
                    self.list(list.chats.last().map(|chat| chat.chat_id));
                }
                self.ready.push_back(Update::Frame(Box::new(ServerFrame::ChatList(list))));
                self.apply(outcome)?;
            }
            ServerFrame::HistoryPage(page) if page.request_id >= OWN_REQUESTS => {
                self.fills.remove(&page.request_id);
                let outcome = self.follow.filled(page);
                self.apply(outcome)?;
            }
            ServerFrame::Error(error) if error.request_id.is_some_and(|id| id >= OWN_REQUESTS) => {
                match error.request_id.and_then(|id| self.fills.remove(&id)) {
                    Some(chat_id) => {
                        let outcome = self.follow.fill_refused(chat_id);
                        self.apply(outcome)?;
                    }
                    None if error.request_id == self.listing => self.follow.list_refused(),
                    None => {}
                }
            }
            ServerFrame::Own(own) => {
                if self.marks.read_sent.get(&own.chat_id).is_some_and(|sent| *sent <= own.read_seq) {
                    self.marks.read_sent.remove(&own.chat_id);
                }
                self.ready.push_back(Update::Frame(Box::new(ServerFrame::Own(own))));
            }
            frame => self.ready.push_back(Update::Frame(Box::new(frame))),
        }
        if self.follow.is_caught_up()
            && let Some(open) = &mut self.open
            && !open.caught_up
        {
            open.caught_up = true;
            self.ready.push_back(Update::CaughtUp);
        }
        Ok(())
    }

    /// The server's store is another one. What is known of the old one would hide messages of the new one, and the mark
    /// was presented before the server could say who one is: so once more, from the start.
    fn begin_anew(&mut self, user_id: UserId) -> Result<(), ClientError> {
        let mark = matches!(self.options.mode, Mode::Follow { .. }).then_some(0);
        self.state = DeviceState { user_id: Some(user_id), mark, known: BTreeMap::new(), ..self.state.clone() };
        self.follow = Follow::new(mark, BTreeMap::new());
        self.queue.forget_requests(OWN_REQUESTS);
        self.fills.clear();
        self.fills_later.clear();
        self.listing = None;
        self.marks = Marks::default();
        self.subscribed.clear();
        self.ticket = None;
        self.me = None;
        if let Some(open) = self.open.take() {
            open.connection.close();
        }
        self.retry_at = Instant::now();
        self.ready.push_back(Update::NewHistory);
        self.save_identity()
    }

    fn save_identity(&self) -> Result<(), ClientError> {
        self.state_path.as_ref().map_or(Ok(()), |path| self.state.save(path))
    }

    fn welcomed(&mut self, welcome: Welcome) -> Result<(), ClientError> {
        if self.state.user_id.replace(welcome.user_id).is_none() {
            self.save_identity()?;
        }
        self.me = Some(welcome.user_id);
        self.refused_logins = 0;
        self.ticket = Some(Ticket { text: welcome.resume.clone(), expires_at_ms: welcome.resume_expires_at_ms });
        // Whichever ends first: a ticket may be given for another time than the token has.
        let expires_at_ms = self.token_expires_at_ms.unwrap_or(u64::MAX).min(welcome.resume_expires_at_ms);
        self.set_renewal(expires_at_ms);
        self.follow.connected(welcome.user_id);
        self.listing = None;
        self.queue.connection_opened();
        for (chat_id, seq) in std::mem::take(&mut self.marks.delivered_sent) {
            raise(&mut self.marks.delivered, chat_id, seq);
        }
        for (chat_id, seq) in std::mem::take(&mut self.marks.read_sent) {
            raise(&mut self.marks.read, chat_id, seq);
        }
        if let Some(open) = &mut self.open {
            open.welcome = Some(Box::new(welcome.clone()));
        }
        for chat_id in self.subscribed.clone() {
            self.fire(&ClientFrame::Subscribe(frame::ChatRef { chat_id }));
        }
        self.ready.push_back(Update::Connected(Box::new(welcome)));
        Ok(())
    }

    /// A client that signs by itself renews when four fifths of the token's time are over.
    fn set_renewal(&mut self, expires_at_ms: u64) {
        let now_ms = unix_ms();
        let left_ms = expires_at_ms.saturating_sub(now_ms);
        if self.options.who.signs()
            && let Some(open) = &mut self.open
        {
            open.renew_at_ms = Some(now_ms + left_ms / 5 * 4);
        }
    }

    fn apply(&mut self, outcome: Outcome) -> Result<(), ClientError> {
        for event in outcome.events {
            self.ready.push_back(Update::Frame(Box::new(ServerFrame::Event(event))));
        }
        for (chat_id, after) in outcome.fetch {
            self.fetch(chat_id, after);
        }
        let later = Instant::now() + FILL_AGAIN;
        self.fills_later.extend(outcome.fetch_later.into_iter().map(|(chat_id, after)| (later, chat_id, after)));
        if outcome.list {
            self.list(None);
        }
        Ok(())
    }

    /// Stores the position, if it changed and nothing that it stands for still waits for the caller.
    pub(crate) fn save(&mut self) -> Result<(), ClientError> {
        if self.ready.iter().any(is_event) { Ok(()) } else { self.save_handed_on() }
    }

    /// Stores the position of what was handed on. What waits in `ready` comes again.
    fn save_handed_on(&mut self) -> Result<(), ClientError> {
        let Some(path) = &self.state_path else { return Ok(()) };
        let Some((mark, known)) = self.follow.take_changed() else { return Ok(()) };
        let mut known = known.clone();
        let mut all = true;
        for update in &self.ready {
            if let Update::Frame(frame) = update
                && let ServerFrame::Event(event) = &**frame
            {
                all = false;
                let before = event.seq.saturating_sub(1);
                known.entry(event.chat_id).and_modify(|known| *known = (*known).min(before));
            }
        }
        if all {
            self.state.mark = mark;
        }
        self.state.known = known;
        self.state.save(path)
    }

    fn own_request(&mut self) -> u32 {
        let id = self.next_own_request;
        self.next_own_request = OWN_REQUESTS | (self.next_own_request + 1) & (OWN_REQUESTS - 1);
        id
    }

    fn fetch(&mut self, chat_id: ChatId, after: u64) {
        let request_id = self.own_request();
        let ask = frame::History { request_id, chat_id, before: None, after: Some(after), limit: 0 };
        if self.queue.push(ClientFrame::History(ask)) {
            self.fills.insert(request_id, chat_id);
        } else {
            self.fills_later.push((Instant::now() + FILL_AGAIN, chat_id, after));
        }
    }

    fn list(&mut self, after: Option<ChatId>) {
        let request_id = self.own_request();
        self.listing = Some(request_id);
        if !self.queue.push(ClientFrame::Chats(frame::Chats { request_id, after, limit: 0 })) {
            self.follow.list_refused();
        }
    }
}

fn is_event(update: &Update) -> bool {
    matches!(update, Update::Frame(frame) if matches!(&**frame, ServerFrame::Event(_)))
}

fn take_due(later: &mut Vec<(Instant, ChatId, u64)>, now: Instant) -> Vec<(ChatId, u64)> {
    let (due, rest): (Vec<_>, Vec<_>) = later.drain(..).partition(|(at, ..)| *at <= now);
    *later = rest;
    due.into_iter().map(|(_, chat_id, after)| (chat_id, after)).collect()
}
