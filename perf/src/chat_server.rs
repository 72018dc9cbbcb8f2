//! A small chat server on tungstenite for tests of whole runs: faithful, or with one planted fault.

use parley_protocol::frame::{Change, ChatRef, GroupChange, GroupCreate, Head, HistoryPage, Pong, Sent, Welcome};
use parley_protocol::wire::{Encoding, decode_client_frame, encode_server_frame};
use parley_protocol::{ChatId, ClientFrame, ClientMsgId, Event, MessageId, ServerFrame, UserId};
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tungstenite::handshake::server::{Request, Response};
use tungstenite::protocol::Role;
use tungstenite::{Message, WebSocket};

/// What the server does wrong, with one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    LosesAnEvent,
    DoublesAnEvent,
    ForgetsInHistory,
    /// One receiver never gets it, and the history does not have it.
    LosesForGood,
    /// One receiver gets other bytes than the others.
    AltersAnEvent,
    HangsUp,
}

/// The message that a fault befalls.
const FAULTY: u64 = 137;

/// The server's state.
pub(crate) struct Chats {
    fault: Fault,
    encoding: Encoding,
    messages: u64,
    pub(crate) marks: u64,
    logs: HashMap<ChatId, Vec<Event>>,
    /// Of groups, in the order in which they came in; all of them look at it.
    members: HashMap<ChatId, Vec<UserId>>,
    /// The sending sides of all connections.
    sessions: HashMap<UserId, WebSocket<TcpStream>>,
}

/// A server that runs.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) chats: Arc<Mutex<Chats>>,
    thread: JoinHandle<()>,
}

impl Running {
    /// Waits until all its connections have ended.
    pub(crate) fn join(self) {
        self.thread.join().expect("the server saw only valid frames");
    }
}

impl Chats {
    /// Serves so many connections.
    pub(crate) fn serve(fault: Fault, encoding: Encoding, connections: usize) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (logs, members, sessions) = (HashMap::new(), HashMap::new(), HashMap::new());
        let chats = Chats { fault, encoding, messages: 0, marks: 0, logs, members, sessions };
        let chats = Arc::new(Mutex::new(chats));
        let serving = chats.clone();
        let thread = std::thread::spawn(move || {
            let session = |stream| {
                let chats = serving.clone();
                std::thread::spawn(move || serve(stream, &chats))
            };
            let sessions: Vec<_> =
                listener.incoming().take(connections).map(|stream| session(stream.unwrap())).collect();
            sessions.into_iter().for_each(|session| session.join().expect("the server saw only valid frames"));
        });
        Running { address, chats, thread }
    }

    fn tell(&mut self, user: UserId, frame: &ServerFrame) {
        let mut bytes = Vec::new();
        encode_server_frame(self.encoding, frame, &mut bytes);
        let message = match self.encoding {
            Encoding::Rkyv => Message::binary(bytes),
            Encoding::Json => Message::text(String::from_utf8(bytes).unwrap()),
        };
        // A client that is gone already needs nothing.
        let _ = self.sessions.get_mut(&user).map(|session| session.send(message));
    }

    fn send(&mut self, sender: UserId, send: parley_protocol::frame::Send) {
        self.messages += 1;
        let faulty = self.messages == FAULTY;
        let log = self.logs.entry(send.chat_id).or_default();
        let (seq, message_id) = (log.len() as u64 + 1, MessageId(self.messages));
        let (chat_id, client_msg_id) = (send.chat_id, send.client_msg_id);
        let event = Event {
            chat_id,
            seq,
            ordinal: seq,
            message_id,
            sender,
            sender_sent: 1,
            client_msg_id,
            envelope: send.envelope,
        };
        log.push(event.clone());
        self.tell(sender, &ServerFrame::Sent(Sent { chat_id, client_msg_id, message_id, seq }));
        if let Some(members) = self.members.get(&chat_id).cloned() {
            return self.spread(&event, &members, faulty);
        }
        let peer = send.chat_id.peer_of(sender).expect("the generator writes in its own chats");
        self.tell(sender, &ServerFrame::Event(event.clone()));
        if faulty && self.fault == Fault::LosesAnEvent {
            return;
        }
        if faulty && self.fault == Fault::HangsUp {
            let session = self.sessions.get_mut(&peer).unwrap();
            session.get_ref().shutdown(std::net::Shutdown::Both).unwrap();
        }
        if faulty && self.fault == Fault::DoublesAnEvent {
            self.tell(peer, &ServerFrame::Event(event.clone()));
        }
        self.tell(peer, &ServerFrame::Event(event));
    }

    /// An event of a group to all of them; the fault befalls the last one.
    fn spread(&mut self, event: &Event, members: &[UserId], faulty: bool) {
        for (number, member) in members.iter().enumerate() {
            let mut event = event.clone();
            let fault = if faulty && number + 1 == members.len() { self.fault } else { Fault::None };
            match fault {
                Fault::LosesAnEvent | Fault::LosesForGood => continue,
                Fault::DoublesAnEvent => self.tell(*member, &ServerFrame::Event(event.clone())),
                Fault::AltersAnEvent => *event.envelope.body.last_mut().unwrap() ^= 1,
                Fault::HangsUp => {
                    self.sessions[member].get_ref().shutdown(std::net::Shutdown::Both).unwrap();
                }
                Fault::None | Fault::ForgetsInHistory => {}
            }
            self.tell(*member, &ServerFrame::Event(event));
        }
    }

    /// Users come into a group; the event of that is not kept in full.
    fn admit(&mut self, by: UserId, chat_id: ChatId, client_msg_id: ClientMsgId, users: &[UserId]) {
        self.members.entry(chat_id).or_default().extend_from_slice(users);
        let seq = self.logs.get(&chat_id).map_or(0, Vec::len) as u64;
        self.tell(by, &ServerFrame::Sent(Sent { chat_id, client_msg_id, message_id: MessageId(1), seq }));
    }

    fn frame(&mut self, user: UserId, frame: ClientFrame) {
        match frame {
            ClientFrame::Send(send) => self.send(user, send),
            ClientFrame::Delivered(mark) => {
                assert!(self.logs[&mark.chat_id].len() as u64 >= mark.seq);
                self.marks += 1;
            }
            ClientFrame::History(ask) => {
                let log = self.logs.get(&ask.chat_id).into_iter().flatten();
                let forgets = matches!(self.fault, Fault::ForgetsInHistory | Fault::LosesForGood);
                let forgotten = forgets.then_some(MessageId(FAULTY));
                let after = ask.after.unwrap();
                let mut events: Vec<Event> =
                    log.filter(|it| it.seq > after && Some(it.message_id) != forgotten).cloned().collect();
                // Smaller pages than asked for, so that there are several.
                let more = events.len() > 20;
                events.truncate(20);
                let page = HistoryPage { request_id: ask.request_id, chat_id: ask.chat_id, events, more };
                self.tell(user, &ServerFrame::HistoryPage(page));
            }
            ClientFrame::GroupCreate(GroupCreate { client_msg_id, members, .. }) => {
                self.admit(user, ChatId::group(9), client_msg_id, &[&[user], &members[..]].concat());
            }
            ClientFrame::GroupChange(GroupChange { chat_id, client_msg_id, change: Change::Add { users } }) => {
                self.admit(user, chat_id, client_msg_id, &users);
            }
            ClientFrame::Subscribe(ChatRef { chat_id }) => {
                assert!(self.members[&chat_id].contains(&user));
                let seq = self.logs.get(&chat_id).map_or(0, Vec::len) as u64;
                self.tell(user, &ServerFrame::Head(Head { chat_id, seq, ordinal: seq }));
            }
            ClientFrame::Ping(ping) => self.tell(user, &ServerFrame::Pong(Pong { nonce: ping.nonce })),
            other => panic!("a frame that this test does not expect: {other:?}"),
        }
    }
}

fn serve(stream: TcpStream, chats: &Mutex<Chats>) {
    let encoding = chats.lock().unwrap().encoding;
    #[expect(clippy::result_large_err, reason = "tungstenite's signature")]
    let accept = |request: &Request, mut response: Response| {
        assert_eq!(request.headers()["sec-websocket-protocol"], encoding.subprotocol());
        response.headers_mut().insert("sec-websocket-protocol", encoding.subprotocol().parse().unwrap());
        Ok(response)
    };
    let write_half = stream.try_clone().unwrap();
    let mut session = tungstenite::accept_hdr(stream, accept).unwrap();
    let mut user = None;
    while let Ok(message) = session.read() {
        if message.is_close() {
            // The writing half is a clone of this socket, and would keep it open.
            let _ = session.get_ref().shutdown(std::net::Shutdown::Both);
            return;
        }
        let frame = decode_client_frame(encoding, &message.into_data()).expect("the generator's frames decode");
        let mut chats = chats.lock().unwrap();
        match (frame, user) {
            (ClientFrame::Hello(hello), None) => {
                assert_eq!(hello.token.unwrap().split('.').count(), 3);
                let user_id = UserId((hello.device_id.0 as u64 & 0xffff_ffff) + 1);
                let writer = WebSocket::from_raw_socket(write_half.try_clone().unwrap(), Role::Server, None);
                chats.sessions.insert(user_id, writer);
                chats.tell(user_id, &ServerFrame::Welcome(welcome(user_id)));
                user = Some(user_id);
            }
            (frame, Some(user)) => chats.frame(user, frame),
            (frame, None) => panic!("before Hello: {frame:?}"),
        }
    }
}

/// An answer to `Hello`.
pub(crate) fn welcome(user_id: UserId) -> Welcome {
    Welcome {
        user_id,
        name: String::new(),
        resume: String::new(),
        resume_expires_at_ms: 0,
        server_time_ms: 0,
        heartbeat_interval_ms: 25_000,
        payload_bytes_max: 16_384,
        frame_bytes_max: 65_536,
        requests_in_flight_max: 64,
    }
}
