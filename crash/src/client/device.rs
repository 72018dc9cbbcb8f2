//! A device as `docs/PROTOCOL.md` asks: it keeps commands until they are answered, comes back by itself with its last
//! mark, sends what it kept again, and writes down everything.

use super::sync::Sync;
use super::wire::{self, Came, Wire};
use super::{Context, Gone};
use crash::history::{Record, Seen, content};
use parley_protocol::close::{ClientAction, client_action};
use parley_protocol::frame::{ChatRef, Error, Hello, Ping, Position, Sent};
use parley_protocol::wire::{Encoding, decode_server_frame, encode_client_frame};
use parley_protocol::{ChatId, ClientFrame, ClientMsgId, DeviceId, ErrorCode, Event, ServerFrame, UserId};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// A pinged connection without a sign of the server for so long is given up: two heartbeat intervals and more.
const SILENCE: Duration = Duration::from_millis(2_300);
const PING_AFTER: Duration = Duration::from_millis(900);
/// From the connect to the welcome.
const GREETING: Duration = Duration::from_millis(2_500);
/// The protocol's delays between attempts, with a ceiling that suits servers that are away for seconds.
const DELAY_MAX_MS: u64 = 800;
/// A kept command that is asked again although its answer came: one in so many.
const ASK_AGAIN: u64 = 200;
/// At one of so many reconnects kept commands are forgotten, as by a wiped device: their outcome stays unknown.
const FORGET: u64 = 12;
/// Delivered marks that one mark of the stream sets off.
const DELIVERED_MAX: usize = 8;

/// Where the connection stands.
pub(crate) enum State {
    Away { until: Instant },
    Dialling(Wire),
    Greeting(Wire),
    Live(Wire),
}

/// A command without an answer.
pub(crate) struct Kept {
    pub(crate) name: ClientMsgId,
    pub(crate) bytes: Vec<u8>,
    /// To be sent again then, after an error that asks for patience.
    retry: Option<Instant>,
    /// A change of a group, which the owner must know the outcome of.
    pub(crate) change: bool,
}

pub(crate) struct Device {
    pub(crate) number: u32,
    pub(crate) user_id: UserId,
    token: String,
    pub(crate) encoding: Encoding,
    pub(crate) state: State,
    pub(crate) kept: VecDeque<Kept>,
    /// Direct chats and groups to write to.
    pub(crate) chats: Vec<ChatId>,
    /// Groups that cross the inbox limit with the events that this device has.
    pub(crate) crossing: HashMap<ChatId, BTreeSet<u64>>,
    /// The newest event of each other chat.
    pub(crate) newest: HashMap<ChatId, u64>,
    /// Chats of which it is no wonder to be refused: those that the user is let in and taken out of.
    pub(crate) guest_of: HashSet<ChatId>,
    pub(crate) subscribes: bool,
    moved: HashSet<ChatId>,
    mark: u64,
    /// The last mark said that everything came.
    pub(crate) caught_up: bool,
    resume: Option<String>,
    address: usize,
    failures: u32,
    dialled: Instant,
    said: Instant,
    heard: Instant,
    pub(crate) sync: Option<Sync>,
}

impl Device {
    pub(crate) fn new(number: u32, user_id: UserId, token: String, now: Instant) -> Self {
        Self {
            number,
            user_id,
            token,
            encoding: if number % 7 == 3 { Encoding::Json } else { Encoding::Rkyv },
            state: State::Away { until: now },
            kept: VecDeque::new(),
            chats: Vec::new(),
            crossing: HashMap::new(),
            newest: HashMap::new(),
            guest_of: HashSet::new(),
            subscribes: number % 2 == 1,
            moved: HashSet::new(),
            mark: 0,
            caught_up: false,
            resume: None,
            address: 0,
            failures: 0,
            dialled: now,
            said: now,
            heard: now,
            sync: None,
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        matches!(self.state, State::Live(_))
    }

    /// Ends the connection without a word and stays away.
    pub(crate) fn cut(&mut self, until: Instant) {
        self.state = State::Away { until };
        self.caught_up = false;
        if let Some(sync) = &mut self.sync {
            sync.interrupted();
        }
    }

    fn failed(&mut self, context: &mut Context, at_least: Duration) {
        self.failures += 1;
        self.address += 1;
        let most = (50 << self.failures.min(5)).min(DELAY_MAX_MS);
        let delay = Duration::from_millis(context.random.below(most)).max(at_least);
        self.cut(context.now + delay);
    }

    /// What time brings: connecting, pinging, giving up, sending again.
    pub(crate) fn tick(&mut self, context: &mut Context) -> Result<(), Gone> {
        let now = context.now;
        match &self.state {
            State::Away { until } if *until <= now => self.dial(context),
            State::Away { .. } => {}
            State::Dialling(_) | State::Greeting(_) => {
                if now - self.dialled > GREETING {
                    self.failed(context, Duration::ZERO);
                }
            }
            State::Live(_) if now - self.heard > SILENCE => self.failed(context, Duration::ZERO),
            State::Live(_) => {
                if now - self.said > PING_AFTER {
                    self.say(context, &ClientFrame::Ping(Ping { nonce: 0 }));
                }
                for index in 0..self.kept.len() {
                    if self.kept[index].retry.is_some_and(|at| at <= now) {
                        self.kept[index].retry = None;
                        self.resend(context, index);
                    }
                }
            }
        }
        self.drive_sync(context)
    }

    fn dial(&mut self, context: &mut Context) {
        self.dialled = context.now;
        let address = context.plan.addresses[self.address % context.plan.addresses.len()];
        match wire::dial(address, self.encoding, |socket| context.register(socket, self.number)) {
            Ok(Some(wire)) => self.state = State::Dialling(wire),
            Ok(None) | Err(_) => self.failed(context, Duration::ZERO),
        }
    }

    /// The socket has something, or room.
    pub(crate) fn ready(&mut self, context: &mut Context) -> Result<(), Gone> {
        loop {
            let away = State::Away { until: context.now };
            let (wire, state): (Wire, fn(Wire) -> State) = match std::mem::replace(&mut self.state, away) {
                State::Away { until } => {
                    self.state = State::Away { until };
                    return Ok(());
                }
                State::Dialling(wire) => (wire, State::Dialling),
                State::Greeting(wire) => (wire, State::Greeting),
                State::Live(wire) => (wire, State::Live),
            };
            let (wire, came) = wire::take(wire);
            if let Some(wire) = wire {
                self.state = state(wire);
            }
            match came {
                Came::Opened => self.greet(context),
                Came::Nothing => {
                    self.flush(context);
                    return Ok(());
                }
                Came::Frame(bytes) => {
                    if self.is_live() {
                        self.heard = context.now;
                    }
                    self.take(context, &bytes)?;
                }
                Came::Closed(code) => return self.closed(context, code),
            }
        }
    }

    fn closed(&mut self, context: &mut Context, code: u16) -> Result<(), Gone> {
        match client_action(code) {
            ClientAction::Stop => {
                return Err(Gone(format!("device {} was told to stop: closed with {code}", self.number)));
            }
            ClientAction::Reauthenticate if self.resume.take().is_none() => {
                return Err(Gone(format!("device {}: its token is not taken: closed with {code}", self.number)));
            }
            _ => self.failed(context, Duration::ZERO),
        }
        Ok(())
    }

    fn greet(&mut self, context: &mut Context) {
        let away = State::Away { until: context.now };
        if let State::Dialling(wire) = std::mem::replace(&mut self.state, away) {
            self.state = State::Greeting(wire);
        }
        let token = self.resume.is_none().then(|| self.token.clone());
        let hello = Hello {
            version: 1,
            device_id: DeviceId((u128::from(context.plan.seed) << 64) | (u128::from(self.number) + 1)),
            token,
            resume: self.resume.clone(),
            mark: Some(self.mark),
            kinds_known: Vec::new(),
            client: "parley crash harness".to_owned(),
            act_for: None,
        };
        self.say(context, &ClientFrame::Hello(hello));
    }

    /// Sends a frame. A connection that broke meanwhile shows when it is read.
    pub(crate) fn say(&mut self, context: &mut Context, frame: &ClientFrame) {
        let mut bytes = Vec::new();
        encode_client_frame(self.encoding, frame, &mut bytes);
        self.say_bytes(context, &bytes);
    }

    fn say_bytes(&mut self, context: &mut Context, bytes: &[u8]) {
        let (State::Live(wire) | State::Greeting(wire)) = &mut self.state else { return };
        self.said = context.now;
        if wire.say(self.encoding, bytes) {
            context.dirty.insert(self.number);
        } else {
            self.failed(context, Duration::ZERO);
        }
    }

    pub(crate) fn flush(&mut self, context: &mut Context) {
        if let State::Live(wire) | State::Greeting(wire) = &mut self.state
            && !wire.flush()
        {
            self.failed(context, Duration::ZERO);
        }
    }

    /// Sends a command for the first time and keeps it.
    pub(crate) fn command(&mut self, context: &mut Context, chat: ChatId, frame: &ClientFrame) -> Result<(), Gone> {
        let name = frame.client_msg_id().expect("a command has a name");
        let (content, change) = match frame {
            ClientFrame::Send(send) => (content(&send.envelope), false),
            _ => (0, true),
        };
        context.write(Record::Offer { device: self.number, chat, name, content })?;
        let mut bytes = Vec::new();
        encode_client_frame(self.encoding, frame, &mut bytes);
        self.kept.push_back(Kept { name, bytes, retry: None, change });
        self.resend(context, self.kept.len() - 1);
        Ok(())
    }

    fn resend(&mut self, context: &mut Context, index: usize) {
        let bytes = std::mem::take(&mut self.kept[index].bytes);
        self.say_bytes(context, &bytes);
        self.kept[index].bytes = bytes;
    }

    fn take(&mut self, context: &mut Context, bytes: &[u8]) -> Result<(), Gone> {
        let device = self.number;
        let frame =
            decode_server_frame(self.encoding, bytes).map_err(|error| Gone(format!("device {device}: {error}")))?;
        match frame {
            ServerFrame::Welcome(welcome) => {
                if welcome.user_id != self.user_id {
                    return Err(Gone(format!("device {device} is {} now, not {}", welcome.user_id, self.user_id)));
                }
                if !welcome.resume.is_empty() {
                    self.resume = Some(welcome.resume);
                }
                self.welcomed(context)
            }
            ServerFrame::Event(event) => self.event(context, &event),
            ServerFrame::Sent(sent) => self.sent(context, sent),
            ServerFrame::Error(error) => self.error(context, error),
            ServerFrame::Mark(mark) => {
                self.mark = mark.inbox_seq;
                self.caught_up = mark.inbox_seq == mark.head;
                context.write(Record::Mark { device, inbox_seq: mark.inbox_seq })?;
                let moved: Vec<ChatId> = self.moved.iter().copied().take(DELIVERED_MAX).collect();
                for chat_id in moved {
                    self.moved.remove(&chat_id);
                    let seq = self.newest[&chat_id];
                    self.say(context, &ClientFrame::Delivered(Position { chat_id, seq }));
                }
                Ok(())
            }
            ServerFrame::Truncated(truncated) => {
                self.mark = truncated.mark;
                context.write(Record::Truncated { device })
            }
            ServerFrame::Reconnect(reconnect) => {
                if !reconnect.resume.is_empty() {
                    self.resume = Some(reconnect.resume);
                }
                self.failed(context, Duration::from_millis(reconnect.delay_ms.into()));
                Ok(())
            }
            ServerFrame::HistoryPage(page) => self.synced_page(context, page),
            ServerFrame::ChatList(list) => {
                self.synced_chats(list);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn welcomed(&mut self, context: &mut Context) -> Result<(), Gone> {
        let away = State::Away { until: context.now };
        let State::Greeting(wire) = std::mem::replace(&mut self.state, away) else {
            return Err(Gone(format!("device {}: a welcome that nobody waits for", self.number)));
        };
        self.state = State::Live(wire);
        self.failures = 0;
        self.heard = context.now;
        context.write(Record::Connect { device: self.number, mark: self.mark })?;
        if context.faults && context.random.one_in(FORGET) {
            self.kept.retain(|kept| kept.change);
        }
        for index in 0..self.kept.len() {
            self.kept[index].retry = None;
            self.resend(context, index);
        }
        if self.subscribes {
            let chats: Vec<ChatId> = self.crossing.keys().copied().collect();
            for chat_id in chats {
                self.say(context, &ClientFrame::Subscribe(ChatRef { chat_id }));
            }
        }
        Ok(())
    }

    fn event(&mut self, context: &mut Context, event: &Event) -> Result<(), Gone> {
        context.delivered += 1;
        let (chat, seq) = (event.chat_id, event.seq);
        context.write(Record::Event { device: self.number, seen: seen(event) })?;
        if let Some(has) = self.crossing.get_mut(&chat) {
            has.insert(seq);
        } else {
            let newest = self.newest.entry(chat).or_default();
            *newest = seq.max(*newest);
            self.moved.insert(chat);
        }
        Ok(())
    }

    fn sent(&mut self, context: &mut Context, sent: Sent) -> Result<(), Gone> {
        let Sent { chat_id: chat, client_msg_id: name, message_id, seq } = sent;
        context.write(Record::Ack { device: self.number, chat, name, seq, message_id: message_id.0 })?;
        let Some(at) = self.kept.iter().position(|kept| kept.name == name) else { return Ok(()) };
        if context.faults && context.random.one_in(ASK_AGAIN) {
            // As if the answer had got lost: the same has to come.
            let delay = Duration::from_millis(context.random.below(3_000));
            self.kept[at].retry = Some(context.now + delay);
            return Ok(());
        }
        context.acknowledged += 1;
        self.kept.remove(at);
        Ok(())
    }

    fn error(&mut self, context: &mut Context, error: Error) -> Result<(), Gone> {
        let Some(name) = error.client_msg_id else {
            return self.synced_error(context, &error);
        };
        let Some(at) = self.kept.iter().position(|kept| kept.name == name) else { return Ok(()) };
        match error.code {
            ErrorCode::RateLimited | ErrorCode::Unavailable | ErrorCode::TooMany => {
                let wait = error.retry_after_ms.unwrap_or(100).min(1_000);
                self.kept[at].retry = Some(context.now + Duration::from_millis(wait.into()));
                Ok(())
            }
            ErrorCode::NoSuchChat if error.chat_id.is_some_and(|chat| self.guest_of.contains(&chat)) => {
                self.kept.remove(at);
                context.write(Record::Refused { device: self.number, name })
            }
            code => Err(Gone(format!("device {}: {name} was refused with {code:?}: {}", self.number, error.message))),
        }
    }
}

/// What the checker compares of an event.
pub(crate) fn seen(event: &Event) -> Seen {
    Seen {
        chat: event.chat_id,
        seq: event.seq,
        message_id: event.message_id.0,
        name: event.client_msg_id,
        sender: event.sender,
        content: content(&event.envelope),
    }
}
