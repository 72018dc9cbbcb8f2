//! A gateway's end of a link, blocking, for tests.

use parley_protocol::link::{
    Action, Answer, Ask, Command, Committed, LinkHello, LinkWelcome, Reply, Request, ToGateway, ToWriter,
};
use parley_protocol::wire::{encode_record, split_record};
use parley_protocol::{Body, ChatId, ClientMsgId, MessageBody, UserId, limits, partition};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// A link.
pub(crate) struct Client {
    pub(crate) socket: UnixStream,
    input: Vec<u8>,
    no: u64,
    pub(crate) home_epoch: u64,
    /// What the writer said last of whether it takes commands.
    pub(crate) status: Option<(bool, String)>,
}

impl Client {
    /// Connects, without a hello; waits until somebody listens.
    pub(crate) fn connect(socket: &Path) -> Self {
        let until = Instant::now() + Duration::from_secs(60);
        let socket = loop {
            match UnixStream::connect(socket) {
                Ok(socket) => break socket,
                Err(error) => assert!(Instant::now() < until, "nobody listens: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { socket, input: Vec::new(), no: 0, home_epoch: 0, status: None }
    }

    /// Connects as a gateway process of one shard, and is granted an epoch.
    pub(crate) fn open(socket: &Path, gateway: u128) -> Self {
        let mut client = Self::connect(socket);
        let welcome = client.hello(gateway).expect("the link is opened");
        client.home_epoch = welcome.home_epoch;
        client
    }

    pub(crate) fn hello(&mut self, gateway: u128) -> Result<LinkWelcome, ToGateway> {
        self.send_hello(gateway);
        match self.read().expect("an answer") {
            ToGateway::Welcome(welcome) => Ok(welcome),
            other => Err(other),
        }
    }

    pub(crate) fn send_hello(&mut self, gateway: u128) {
        let hello = LinkHello { version: limits::LINK_VERSION, gateway, shard: 0, shards: 1, home_epoch: 0 };
        self.write(&ToWriter::Hello(hello));
    }

    pub(crate) fn write(&mut self, record: &ToWriter) {
        let mut bytes = Vec::new();
        encode_record(record, &mut bytes);
        self.socket.write_all(&bytes).unwrap();
    }

    /// The next record that is not a status, which is kept aside; nothing when the link was closed.
    pub(crate) fn read(&mut self) -> Option<ToGateway> {
        loop {
            match self.read_any()? {
                ToGateway::Status { ready, reason } => self.status = Some((ready, reason)),
                record => return Some(record),
            }
        }
    }

    /// The next record.
    pub(crate) fn read_any(&mut self) -> Option<ToGateway> {
        loop {
            if let Some((record, bytes)) = split_record(&self.input).unwrap() {
                let record = rkyv::from_bytes::<ToGateway, rkyv::rancor::Error>(record).unwrap();
                self.input.drain(..bytes);
                return Some(record);
            }
            let mut chunk = [0; 4096];
            match self.socket.read(&mut chunk) {
                Ok(0) => return None,
                Ok(got) => self.input.extend_from_slice(&chunk[..got]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("the writer does not answer: {error}"),
            }
        }
    }

    /// Sends a request and does not wait. Its number.
    pub(crate) fn send(&mut self, ask: Ask) -> u64 {
        self.no += 1;
        self.write(&ToWriter::Request(Request { no: self.no, home_epoch: self.home_epoch, ask }));
        self.no
    }

    /// Sends a request and waits for its answer.
    pub(crate) fn ask(&mut self, ask: Ask) -> Reply {
        let no = self.send(ask);
        match self.read().expect("an answer") {
            ToGateway::Answer(Answer { no: answered, reply }) if answered == no => reply,
            other => panic!("request {no} was answered by {other:?}"),
        }
    }

    /// Opens the partition of a chat.
    pub(crate) fn open_chat(&mut self, chat_id: ChatId) {
        assert_eq!(self.ask(Ask::Open { partition: partition::of_chat(chat_id) }), Reply::Opened);
    }

    /// Logs a name in.
    pub(crate) fn login(&mut self, name: &str) -> UserId {
        let ask = Ask::Login { issuer: "test".to_owned(), subject: name.to_owned(), name: name.to_owned() };
        match self.ask(ask) {
            Reply::LoggedIn(user) => user.user_id,
            other => panic!("a login was answered by {other:?}"),
        }
    }

    /// Sends a text and waits until it is durable.
    pub(crate) fn say(&mut self, chat_id: ChatId, sender: UserId, client_msg_id: u128, text: &str) -> Committed {
        match self.ask(say(chat_id, sender, client_msg_id, text)) {
            Reply::Durable(mut committed) if committed.len() == 1 => committed.remove(0),
            other => panic!("a message was answered by {other:?}"),
        }
    }
}

/// The command of a text.
pub(crate) fn say(chat_id: ChatId, sender: UserId, client_msg_id: u128, text: &str) -> Ask {
    let content_type = "text/plain".to_owned();
    let body = MessageBody { content_type, payload: text.as_bytes().to_vec(), ..MessageBody::default() };
    let action = Action::Send(Body::Message(body).to_envelope());
    Ask::Command(Command { chat_id: Some(chat_id), sender, client_msg_id: ClientMsgId(client_msg_id), action })
}
