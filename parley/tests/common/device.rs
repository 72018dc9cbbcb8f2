//! A blocking client on tungstenite, in either encoding, written from `docs/PROTOCOL.md`: it keeps what a device keeps
//! (events by chat and seq, the last mark, the ticket) and checks on arrival what the protocol promises of a stream.

use super::{PATIENCE, random, unix_s};
use gateway::identity::DevKey;
use parley_protocol::frame::{
    Change, ChatRef, ChatSummary, Chats, Error, GroupChange, GroupCreate, Hello, History, Member, Members, Mute, Ping,
    Position, Resolve, Send, Sent, Welcome,
};
use parley_protocol::wire::{self, Encoding};
use parley_protocol::{
    Body, ChatId, ClientFrame, ClientMsgId, DeviceId, ErrorCode, Event, MessageBody, OwnState, ServerFrame, UserId,
};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tungstenite::client::{ClientRequestBuilder, client};
use tungstenite::{Message, WebSocket};

/// Where to connect, and the directory whose development key signs tokens.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) addr: SocketAddr,
    pub(crate) data: PathBuf,
}

impl Target {
    /// A token for a name.
    pub(crate) fn token(&self, name: &str, ttl_s: u64, service: bool) -> String {
        let key = DevKey::load(&self.data).expect("the server made a development key");
        key.sign(name, unix_s(), ttl_s, service).expect("a name").0
    }
}

/// The text of a message.
pub(crate) fn text_of(event: &Event) -> String {
    match event.envelope.to_body() {
        Ok(Body::Message(message)) => String::from_utf8(message.payload).expect("texts are UTF-8"),
        other => panic!("not a message: {other:?}"),
    }
}

/// A command that appends a text.
pub(crate) fn text_frame(chat_id: ChatId, client_msg_id: ClientMsgId, text: &str) -> ClientFrame {
    payload_frame(chat_id, client_msg_id, text.as_bytes())
}

pub(crate) fn payload_frame(chat_id: ChatId, client_msg_id: ClientMsgId, payload: &[u8]) -> ClientFrame {
    let body = MessageBody { content_type: "text/plain".into(), payload: payload.to_vec(), ..Default::default() };
    ClientFrame::Send(Send { chat_id, client_msg_id, envelope: Body::Message(body).to_envelope() })
}

/// A device of a user.
pub(crate) struct Device {
    pub(crate) target: Target,
    pub(crate) name: String,
    pub(crate) encoding: Encoding,
    pub(crate) device_id: DeviceId,
    /// Known after the first welcome.
    pub(crate) user_id: UserId,
    /// The last mark received, as it would lie on the device's disk.
    pub(crate) mark: Option<u64>,
    /// The last ticket.
    pub(crate) resume: Option<String>,
    /// Every event that ever came by the stream, once.
    pub(crate) events: BTreeMap<(ChatId, u64), Event>,
    /// The events of this connection in the order in which they came.
    pub(crate) arrivals: Vec<(ChatId, u64)>,
    /// How this connection ended: the close code; 1006 without one.
    pub(crate) closed: Option<u16>,
    /// Everything but events that nobody asked for yet.
    pub(crate) queue: VecDeque<ServerFrame>,
    /// This connection's newest event of each chat, and its last mark.
    newest: HashMap<ChatId, u64>,
    marked: Option<u64>,
    caught_up: bool,
    requests: u32,
    socket: Option<WebSocket<TcpStream>>,
}

impl Device {
    /// A new device, not connected.
    pub(crate) fn new(target: &Target, name: &str, encoding: Encoding) -> Self {
        Self {
            target: target.clone(),
            name: name.to_owned(),
            encoding,
            device_id: DeviceId(random()),
            user_id: UserId(0),
            mark: None,
            resume: None,
            events: BTreeMap::new(),
            arrivals: Vec::new(),
            closed: None,
            queue: VecDeque::new(),
            newest: HashMap::new(),
            marked: None,
            caught_up: false,
            requests: 0,
            socket: None,
        }
    }

    /// Logs in with a token and waits until it has caught up.
    pub(crate) fn connected(mut self) -> Self {
        self.log_in();
        self
    }

    /// Connects with a token and waits until the stream has caught up.
    pub(crate) fn log_in(&mut self) -> Welcome {
        let token = self.target.token(&self.name, 3_600, false);
        let hello = self.hello(Some(token), None);
        let welcome = self.open(hello).unwrap_or_else(|code| panic!("{}: closed with {code}", self.name));
        self.catch_up();
        welcome
    }

    /// Drops the connection and comes back with ticket and mark.
    pub(crate) fn reconnect(&mut self) {
        self.cut();
        let hello = self.hello(None, self.resume.clone());
        if let Err(code) = self.open(hello) {
            panic!("{}: the ticket was answered with {code}", self.name);
        }
        self.catch_up();
    }

    /// The `hello` of this device.
    pub(crate) fn hello(&self, token: Option<String>, resume: Option<String>) -> Hello {
        Hello {
            version: 1,
            device_id: self.device_id,
            token,
            resume,
            mark: self.mark,
            kinds_known: Vec::new(),
            client: "parley integration test".to_owned(),
            act_for: None,
        }
    }

    /// Ends the connection without a word, as a crash of the client would.
    pub(crate) fn cut(&mut self) {
        self.socket = None;
    }

    /// Upgrades; nothing is said yet. `Err`: the gateway is not there, or refuses.
    pub(crate) fn dial(&mut self) -> Result<(), String> {
        let stream = TcpStream::connect(self.target.addr).map_err(|error| error.to_string())?;
        self.dial_on(stream)
    }

    /// The same on a socket that the test has prepared.
    pub(crate) fn dial_on(&mut self, stream: TcpStream) -> Result<(), String> {
        stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let uri = format!("ws://{}/ws", self.target.addr).parse().expect("an address makes a URL");
        let request = ClientRequestBuilder::new(uri).with_sub_protocol(self.encoding.subprotocol());
        let (socket, response) = client(request, stream).map_err(|error| error.to_string())?;
        let chosen = response.headers().get("sec-websocket-protocol").map(|value| value.as_bytes());
        assert_eq!(chosen, Some(self.encoding.subprotocol().as_bytes()), "the subprotocol that was offered");
        self.socket = Some(socket);
        self.closed = None;
        self.queue.clear();
        self.arrivals.clear();
        self.newest.clear();
        self.marked = None;
        self.caught_up = false;
        Ok(())
    }

    /// Connects and says hello: the welcome, or the close code.
    pub(crate) fn open(&mut self, hello: Hello) -> Result<Welcome, u16> {
        if let Err(why) = self.dial() {
            panic!("{}: cannot connect: {why}", self.name);
        }
        self.greet(hello)
    }

    /// Says hello on a dialled connection.
    pub(crate) fn greet(&mut self, hello: Hello) -> Result<Welcome, u16> {
        self.say(&ClientFrame::Hello(hello));
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(ServerFrame::Welcome(welcome)) = self.queue.front() {
                let welcome = welcome.clone();
                self.queue.pop_front();
                assert!(welcome.user_id.is_valid());
                self.user_id = welcome.user_id;
                if !welcome.resume.is_empty() {
                    self.resume = Some(welcome.resume.clone());
                }
                return Ok(welcome);
            }
            if let Some(code) = self.closed {
                return Err(code);
            }
            assert!(self.queue.is_empty(), "{}: before welcome came {:?}", self.name, self.queue);
            self.read_until(deadline, "welcome or a close");
        }
    }

    /// Waits until a mark says that the stream has caught up, or that it starts anew.
    pub(crate) fn catch_up(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.caught_up {
            self.stay_open("catching up");
            self.read_until(deadline, "the stream to catch up");
        }
    }

    /// Sends a frame. A connection that broke meanwhile shows when it is read.
    pub(crate) fn say(&mut self, frame: &ClientFrame) {
        let mut bytes = Vec::new();
        wire::encode_client_frame(self.encoding, frame, &mut bytes);
        let message = match self.encoding {
            Encoding::Json => Message::text(String::from_utf8(bytes).expect("JSON is UTF-8")),
            Encoding::Rkyv => Message::binary(bytes),
        };
        let socket = self.socket.as_mut().unwrap_or_else(|| panic!("{}: not connected", self.name));
        let _ = socket.send(message);
    }

    /// Sends a WebSocket ping.
    pub(crate) fn ws_ping(&mut self) {
        let socket = self.socket.as_mut().unwrap_or_else(|| panic!("{}: not connected", self.name));
        let _ = socket.send(Message::Ping(Default::default()));
    }

    /// Takes what comes within `wait`; false when nothing did.
    pub(crate) fn read_for(&mut self, wait: Duration) -> bool {
        if self.closed.is_some() {
            return false;
        }
        let Some(socket) = self.socket.as_mut() else { panic!("{}: not connected", self.name) };
        let timeout = wait.max(Duration::from_millis(1));
        socket.get_ref().set_read_timeout(Some(timeout)).expect("a timeout");
        match socket.read() {
            Ok(Message::Text(text)) if self.encoding == Encoding::Json => self.take(text.as_bytes()),
            Ok(Message::Binary(bytes)) if self.encoding == Encoding::Rkyv => self.take(&bytes),
            Ok(Message::Ping(_) | Message::Pong(_)) => {}
            Ok(Message::Close(frame)) => self.closed = Some(frame.map_or(1005, |frame| frame.code.into())),
            Ok(other) => panic!("{}: a message of the wrong kind: {other:?}", self.name),
            Err(tungstenite::Error::Io(error))
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) =>
            {
                return false;
            }
            Err(_) => self.closed = Some(1006),
        }
        true
    }

    fn read_until(&mut self, deadline: Instant, what: &str) {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "{}: waited {PATIENCE:?} in vain for {what}; unread: {:?}", self.name, self.queue);
        self.read_for(left);
    }

    /// Takes everything that has come already.
    pub(crate) fn drain(&mut self) {
        while self.read_for(Duration::from_millis(1)) {}
    }

    fn stay_open(&self, while_doing: &str) {
        if let Some(code) = self.closed {
            panic!("{}: closed with {code} while {while_doing}", self.name);
        }
    }

    /// Acts on a frame as the protocol asks, and checks its promises.
    fn take(&mut self, bytes: &[u8]) {
        let frame = match wire::decode_server_frame(self.encoding, bytes) {
            Ok(frame) => frame,
            Err(error) => panic!("{}: {error}: {:?}", self.name, String::from_utf8_lossy(bytes)),
        };
        match &frame {
            ServerFrame::Event(event) => {
                let at = (event.chat_id, event.seq);
                let newest = self.newest.insert(event.chat_id, event.seq);
                assert!(
                    newest.is_none_or(|newest| newest < event.seq),
                    "{}: within one connection {at:?} came after {newest:?}",
                    self.name
                );
                if let Some(first) = self.events.get(&at) {
                    assert_eq!(first, event, "{}: an event changed", self.name);
                }
                self.arrivals.push(at);
                self.events.insert(at, event.clone());
                return;
            }
            ServerFrame::Mark(mark) => {
                assert!(mark.inbox_seq <= mark.head, "{}: {mark:?}", self.name);
                assert!(self.marked.is_none_or(|last| last < mark.inbox_seq), "{}: marks rise: {mark:?}", self.name);
                self.marked = Some(mark.inbox_seq);
                self.mark = Some(mark.inbox_seq);
                self.caught_up |= mark.inbox_seq == mark.head;
            }
            ServerFrame::Truncated(truncated) => {
                self.marked = Some(truncated.mark);
                self.mark = Some(truncated.mark);
                self.caught_up = true;
            }
            ServerFrame::Reconnect(reconnect) if !reconnect.resume.is_empty() => {
                self.resume = Some(reconnect.resume.clone());
            }
            _ => {}
        }
        self.queue.push_back(frame);
    }

    /// Waits for a frame (no event) and takes it out; the others stay for later.
    pub(crate) fn wait_for<T>(&mut self, what: &str, mut pick: impl FnMut(&ServerFrame) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = 0;
        loop {
            while seen < self.queue.len() {
                if let Some(found) = pick(&self.queue[seen]) {
                    self.queue.remove(seen);
                    return found;
                }
                seen += 1;
            }
            self.stay_open(what);
            self.read_until(deadline, what);
        }
    }

    /// Waits for an event of a chat.
    pub(crate) fn wait_event(&mut self, chat_id: ChatId, seq: u64) -> Event {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(event) = self.events.get(&(chat_id, seq)) {
                return event.clone();
            }
            self.stay_open(&format!("waiting for event {seq}"));
            self.read_until(deadline, &format!("event {seq} of {chat_id}"));
        }
    }

    /// Waits for the end of the connection: its close code.
    pub(crate) fn wait_closed(&mut self) -> u16 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(code) = self.closed {
                return code;
            }
            self.read_until(deadline, "the end of the connection");
        }
    }

    /// A round trip: everything that the server sent before is here.
    pub(crate) fn sync(&mut self) {
        self.requests += 1;
        let nonce = self.requests;
        self.say(&ClientFrame::Ping(Ping { nonce }));
        self.wait_for("a pong", |frame| matches!(frame, ServerFrame::Pong(pong) if pong.nonce == nonce).then_some(()));
    }

    /// Sends a command and waits for its answer.
    pub(crate) fn command(&mut self, frame: &ClientFrame) -> Result<Sent, Error> {
        self.say(frame);
        self.answer(frame.client_msg_id().expect("a command"))
    }

    /// The answer to a command sent before.
    pub(crate) fn answer(&mut self, id: ClientMsgId) -> Result<Sent, Error> {
        self.wait_for("the answer to a command", |frame| match frame {
            ServerFrame::Sent(sent) if sent.client_msg_id == id => Some(Ok(*sent)),
            ServerFrame::Error(error) if error.client_msg_id == Some(id) => Some(Err(error.clone())),
            _ => None,
        })
    }

    /// Appends a text; durable when it comes back.
    pub(crate) fn post(&mut self, chat_id: ChatId, text: &str) -> Sent {
        let frame = text_frame(chat_id, ClientMsgId(random()), text);
        self.command(&frame).unwrap_or_else(|error| panic!("{}: {error:?}", self.name))
    }

    /// Appends many texts, all on the way at once; in order.
    pub(crate) fn post_all(&mut self, chat_id: ChatId, texts: impl IntoIterator<Item = String>) -> Vec<Sent> {
        /// Below `requests_in_flight_max`, so that the server never stops reading.
        const WINDOW: usize = 128;
        let mut texts = texts.into_iter();
        let mut waiting = VecDeque::new();
        let mut sent = Vec::new();
        loop {
            while waiting.len() < WINDOW {
                let Some(text) = texts.next() else { break };
                let frame = text_frame(chat_id, ClientMsgId(random()), &text);
                waiting.push_back(frame.client_msg_id().expect("a command"));
                self.say(&frame);
            }
            let Some(id) = waiting.pop_front() else { return sent };
            sent.push(self.answer(id).unwrap_or_else(|error| panic!("{}: {error:?}", self.name)));
        }
    }

    pub(crate) fn create_group(&mut self, title: &str, members: &[UserId]) -> Result<Sent, Error> {
        let (title, members) = (title.to_owned(), members.to_vec());
        self.command(&ClientFrame::GroupCreate(GroupCreate { client_msg_id: ClientMsgId(random()), title, members }))
    }

    pub(crate) fn change(&mut self, chat_id: ChatId, change: Change) -> Result<Sent, Error> {
        self.command(&ClientFrame::GroupChange(GroupChange { chat_id, client_msg_id: ClientMsgId(random()), change }))
    }

    /// The error code of a change that must be refused.
    pub(crate) fn refused(&mut self, chat_id: ChatId, change: Change) -> ErrorCode {
        match self.change(chat_id, change) {
            Ok(sent) => panic!("{}: taken as {sent:?}", self.name),
            Err(error) => error.code,
        }
    }

    /// Sends a request and waits for its answer or its error.
    pub(crate) fn ask<T>(
        &mut self,
        make: impl FnOnce(u32) -> ClientFrame,
        mut pick: impl FnMut(&ServerFrame, u32) -> Option<T>,
    ) -> Result<T, Error> {
        self.requests += 1;
        let request_id = self.requests;
        self.say(&make(request_id));
        self.wait_for("the answer to a request", |frame| match frame {
            ServerFrame::Error(error) if error.request_id == Some(request_id) => Some(Err(error.clone())),
            frame => pick(frame, request_id).map(Ok),
        })
    }

    /// One page of a chat's history.
    pub(crate) fn history_page(
        &mut self,
        chat_id: ChatId,
        before: Option<u64>,
        after: Option<u64>,
        limit: u32,
    ) -> Result<(Vec<Event>, bool), Error> {
        self.ask(
            |request_id| ClientFrame::History(History { request_id, chat_id, before, after, limit }),
            |frame, id| match frame {
                ServerFrame::HistoryPage(page) if page.request_id == id => {
                    assert_eq!(page.chat_id, chat_id);
                    assert!(page.events.windows(2).all(|pair| pair[0].seq < pair[1].seq), "a page rises by seq");
                    Some((page.events.clone(), page.more))
                }
                _ => None,
            },
        )
    }

    /// Everything of a chat above `after`, page by page.
    pub(crate) fn history(&mut self, chat_id: ChatId, after: u64) -> Vec<Event> {
        let mut events: Vec<Event> = Vec::new();
        loop {
            let from = events.last().map_or(after, |event| event.seq);
            let (page, more) = self
                .history_page(chat_id, None, Some(from), 0)
                .unwrap_or_else(|error| panic!("{}: {error:?}", self.name));
            assert!(page.iter().all(|event| event.seq > from) && (!more || !page.is_empty()));
            events.extend(page);
            if !more {
                return events;
            }
        }
    }

    /// All chats of the user.
    pub(crate) fn chats(&mut self) -> Vec<ChatSummary> {
        let mut all: Vec<ChatSummary> = Vec::new();
        loop {
            let after = all.last().map(|chat| chat.chat_id);
            let page = self.ask(
                |request_id| ClientFrame::Chats(Chats { request_id, after, limit: 0 }),
                |frame, id| match frame {
                    ServerFrame::ChatList(list) if list.request_id == id => Some((list.chats.clone(), list.more)),
                    _ => None,
                },
            );
            let (chats, more) = page.unwrap_or_else(|error| panic!("{}: {error:?}", self.name));
            all.extend(chats);
            assert!(all.windows(2).all(|pair| pair[0].chat_id < pair[1].chat_id), "chats rise by id");
            if !more {
                return all;
            }
        }
    }

    /// One chat of the list.
    pub(crate) fn chat(&mut self, chat_id: ChatId) -> ChatSummary {
        let chats = self.chats();
        let found = chats.into_iter().find(|chat| chat.chat_id == chat_id);
        found.unwrap_or_else(|| panic!("{}: {chat_id} is not in the list of chats", self.name))
    }

    pub(crate) fn members(&mut self, chat_id: ChatId) -> Result<Vec<Member>, Error> {
        let mut all: Vec<Member> = Vec::new();
        loop {
            let after = all.last().map(|member| member.user_id);
            let (page, more) = self.ask(
                |request_id| ClientFrame::Members(Members { request_id, chat_id, after, limit: 0 }),
                |frame, id| match frame {
                    ServerFrame::MemberPage(page) if page.request_id == id => Some((page.members.clone(), page.more)),
                    _ => None,
                },
            )?;
            all.extend(page);
            if !more {
                return Ok(all);
            }
        }
    }

    /// The ids of names, without those that nobody has.
    pub(crate) fn resolve(&mut self, names: &[&str]) -> Vec<(UserId, String)> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let users = self.ask(
            |request_id| ClientFrame::Resolve(Resolve { request_id, names }),
            |frame, id| match frame {
                ServerFrame::Users(users) if users.request_id == id => Some(users.users.clone()),
                _ => None,
            },
        );
        let users = users.unwrap_or_else(|error| panic!("{}: {error:?}", self.name));
        users.into_iter().map(|user| (user.user_id, user.name)).collect()
    }

    pub(crate) fn delivered(&mut self, chat_id: ChatId, seq: u64) {
        self.say(&ClientFrame::Delivered(Position { chat_id, seq }));
    }

    pub(crate) fn read(&mut self, chat_id: ChatId, seq: u64) {
        self.say(&ClientFrame::Read(Position { chat_id, seq }));
    }

    pub(crate) fn mute(&mut self, chat_id: ChatId, until_ms: u64) {
        self.say(&ClientFrame::Mute(Mute { chat_id, until_ms }));
    }

    pub(crate) fn subscribe(&mut self, chat_id: ChatId) {
        self.say(&ClientFrame::Subscribe(ChatRef { chat_id }));
    }

    /// Waits for an own state of a chat that is as it should be.
    pub(crate) fn wait_own(&mut self, chat_id: ChatId, mut fits: impl FnMut(&OwnState) -> bool) -> OwnState {
        self.wait_for("own state", |frame| match frame {
            ServerFrame::Own(own) if own.chat_id == chat_id && fits(own) => Some(*own),
            _ => None,
        })
    }

    /// Waits for another member's marks at or above these.
    pub(crate) fn wait_receipt(&mut self, chat_id: ChatId, user_id: UserId, delivered_seq: u64, read_seq: u64) {
        self.wait_for("a receipt", |frame| match frame {
            ServerFrame::Receipt(receipt)
                if receipt.chat_id == chat_id
                    && receipt.user_id == user_id
                    && receipt.delivered_seq >= delivered_seq
                    && receipt.read_seq >= read_seq =>
            {
                Some(())
            }
            _ => None,
        });
    }

    /// The `seq`s of a chat that this device has.
    pub(crate) fn seqs(&self, chat_id: ChatId) -> Vec<u64> {
        self.events.range((chat_id, 0)..=(chat_id, u64::MAX)).map(|((_, seq), _)| *seq).collect()
    }

    /// The `seq`s of a chat that came in this connection, in order.
    pub(crate) fn arrived(&self, chat_id: ChatId) -> Vec<u64> {
        self.arrivals.iter().filter(|(chat, _)| *chat == chat_id).map(|(_, seq)| *seq).collect()
    }
}

/// The chat of two devices' users.
pub(crate) fn direct(a: &Device, b: &Device) -> ChatId {
    ChatId::direct(a.user_id, b.user_id).expect("two different users")
}
