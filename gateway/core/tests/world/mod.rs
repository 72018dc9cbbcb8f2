//! Shards, a writer and a store in memory on one thread, with time that the test moves: the shipping cores, wired as the
//! shells wire them, without a socket. Messages on the mesh and the link can be held back, lost or cut by a test.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

mod client;

pub use client::{Client, client_frame};

use client::server_frame;
use gateway_core::authority::{Authority, Identity, Ticket};
use gateway_core::brain::{Brain, MeshClass, MeshMessage};
use gateway_core::mesh::Mesh;
use gateway_core::options::Options;
use gateway_core::output::{ConnId, HaltReason, Output};
use gateway_core::shard::{Out, Seat, Shard};
use gateway_core::time::Now;
use parley_protocol::frame::{Hello, ServerFrame};
use parley_protocol::link::{Answer, Reply, Request, ToGateway, ToWriter};
use parley_protocol::wire::{self, Encoding};
use parley_protocol::{Body, ChatId, ClientFrame, ClientMsgId, DeviceId, MessageBody, UserId, frame, limits};
use std::collections::{BTreeMap, VecDeque};
use storage_core::model::Model;
use storage_core::reads::{self, ReadOptions};
use storage_core::store::{OpId, Store, StoreRequest};
use storage_core::{Action, Writer};

/// Tokens are `NAME`, or `service:NAME`; tickets are their own text.
struct Names;

impl Authority for Names {
    fn verify_token(&self, token: &str, _: Now, _: bool) -> Result<Identity, String> {
        let (service, name) = token.strip_prefix("service:").map_or((false, token), |name| (true, name));
        if name.is_empty() {
            return Err("an empty token".to_owned());
        }
        Ok(Identity {
            issuer: "test".to_owned(),
            subject: name.to_owned(),
            name: name.to_owned(),
            expires_at_ms: u64::MAX / 2,
            service,
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

/// A gateway's shards.
pub struct Gateway {
    pub shards: Vec<Shard>,
    links: Vec<Option<u64>>,
    pub halted: Option<HaltReason>,
    /// A stopped process: nothing happens in it, and what reaches it waits.
    pub stopped: bool,
    slots: Vec<u32>,
    /// Fan-out messages that fit a queue in one turn; more come back.
    pub fanout_room: usize,
    mesh: VecDeque<(u16, u16, Mesh)>,
    seats: VecDeque<(u16, u64, Seat)>,
    to_shards: VecDeque<(u16, u64, Vec<u8>)>,
}

pub struct World {
    pub now: Now,
    pub gateways: Vec<Gateway>,
    pub clients: BTreeMap<u64, (usize, Client)>,
    next_client: u64,
    next_link: u64,
    pub writer: Writer,
    pub model: Model,
    writer_options: storage_core::Options,
    link_inputs: BTreeMap<u64, (usize, u16, Vec<u8>)>,
    pub writer_stopped: bool,
    /// No link comes up.
    pub writer_away: bool,
    /// Commits wait for the store, in order; the writer goes on and reads are answered without them.
    pub store_stopped: bool,
    commits_waiting: VecDeque<(OpId, StoreRequest)>,
    /// Sees every request that reaches the writer, and may answer in its place.
    pub answers_for_the_writer: Option<AnswersForTheWriter>,
    next_msg: u128,
}

/// See [`World::answers_for_the_writer`].
pub type AnswersForTheWriter = Box<dyn FnMut(&Request) -> Option<Reply>>;

pub fn options(shards: u16) -> Options {
    Options { shards, ..Options::default() }
}

impl World {
    pub fn new(options: &Options, writer_options: storage_core::Options) -> Self {
        let mut world = Self {
            now: Now { mono_ms: 1_000, unix_ms: 1_800_000_000_000 },
            gateways: Vec::new(),
            clients: BTreeMap::new(),
            next_client: 1,
            next_link: 1,
            writer: Writer::new(writer_options.clone()),
            model: Model::default(),
            writer_options,
            link_inputs: BTreeMap::new(),
            writer_stopped: false,
            writer_away: false,
            store_stopped: false,
            commits_waiting: VecDeque::new(),
            answers_for_the_writer: None,
            next_msg: 1,
        };
        world.add_gateway(options);
        world.sleep(50);
        world
    }

    pub fn add_gateway(&mut self, options: &Options) -> usize {
        let number = self.gateways.len();
        let shards = (0..options.shards).map(|shard| {
            let options = Options { shard, gateway: number as u128 + 1, ..options.clone() };
            Shard::new(options, Box::new(Names), self.now)
        });
        self.gateways.push(Gateway {
            shards: shards.collect(),
            links: vec![None; options.shards as usize],
            halted: None,
            stopped: false,
            slots: vec![0; options.shards as usize],
            fanout_room: usize::MAX,
            mesh: VecDeque::new(),
            seats: VecDeque::new(),
            to_shards: VecDeque::new(),
        });
        number
    }

    /// The writer process dies and starts again on what the store has.
    pub fn restart_writer(&mut self) {
        self.writer = Writer::new(self.writer_options.clone());
        self.model = Model::open(std::mem::take(&mut self.model.state));
        self.commits_waiting.clear();
        for (_, (gateway, shard, _)) in std::mem::take(&mut self.link_inputs) {
            self.gateways[gateway].links[shard as usize] = None;
            self.brain(gateway, shard, |shard, now, out| shard.handle_link_down(now, out));
        }
    }

    /// Cuts a shard's link; both ends notice.
    pub fn cut_link(&mut self, gateway: usize, shard: u16) {
        if let Some(link) = self.gateways[gateway].links[shard as usize].take() {
            self.link_inputs.remove(&link);
            self.writer.handle_link_down(link);
            self.brain(gateway, shard, |shard, now, out| shard.handle_link_down(now, out));
        }
    }

    /// Moves time and lets everything happen that is due.
    pub fn sleep(&mut self, ms: u64) {
        let end = self.now.mono_ms + ms;
        loop {
            self.settle();
            let due = self.gateways.iter().filter(|gateway| !gateway.stopped && gateway.halted.is_none());
            let due = due.flat_map(|gateway| gateway.shards.iter().filter_map(Brain::next_timer)).min();
            let next = due.into_iter().chain(self.writer.next_timer()).min().unwrap_or(u64::MAX);
            let to = next.max(self.now.mono_ms + 1).min(end);
            self.now.unix_ms += to - self.now.mono_ms;
            self.now.mono_ms = to;
            if to == end {
                break;
            }
        }
        self.settle();
    }

    /// Lets everything happen that can happen now.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if !self.step() {
                return;
            }
        }
        panic!("the world does not come to rest");
    }

    fn step(&mut self) -> bool {
        let mut moved = false;
        for gateway in 0..self.gateways.len() {
            if !self.gateways[gateway].stopped && self.gateways[gateway].halted.is_none() {
                moved |= self.step_gateway(gateway);
            }
        }
        if !self.writer_stopped {
            moved |= self.step_writer();
        }
        moved
    }

    fn step_gateway(&mut self, gateway: usize) -> bool {
        let mut moved = false;
        let shards = self.gateways[gateway].shards.len() as u16;
        for shard in 0..shards {
            let due = self.gateways[gateway].shards[shard as usize].next_timer();
            if due.is_some_and(|due| due <= self.now.mono_ms) {
                self.brain(gateway, shard, |shard, now, out| shard.handle_timer(now, out));
                moved = true;
            }
        }
        while let Some((from, to, message)) = self.gateways[gateway].mesh.pop_front() {
            self.brain(gateway, to, |shard, now, out| shard.handle_mesh(now, from, message, out));
            moved = true;
        }
        while let Some((shard, client, seat)) = self.gateways[gateway].seats.pop_front() {
            let conn = self.new_conn(gateway, shard);
            if let Some((_, client)) = self.clients.get_mut(&client) {
                client.shard = shard;
                client.conn = Some(conn);
                self.brain(gateway, shard, |shard, now, out| shard.handle_seated(now, conn, seat, out));
            }
            moved = true;
        }
        while let Some((shard, link, mut bytes)) = self.gateways[gateway].to_shards.pop_front() {
            if self.gateways[gateway].links[shard as usize] == Some(link) {
                self.brain(gateway, shard, |shard, now, out| shard.handle_link_data(now, &mut bytes, out));
            }
            moved = true;
        }
        moved
    }

    fn new_conn(&mut self, gateway: usize, shard: u16) -> ConnId {
        let slot = &mut self.gateways[gateway].slots[shard as usize];
        *slot += 1;
        ConnId { slot: *slot - 1, generation: 1 }
    }

    /// Calls a shard and carries its outputs out.
    fn brain(&mut self, gateway: usize, shard: u16, call: impl FnOnce(&mut Shard, Now, &mut Out)) {
        let mut out = Out::default();
        call(&mut self.gateways[gateway].shards[shard as usize], self.now, &mut out);
        self.carry_out(gateway, shard, out);
    }

    fn carry_out(&mut self, gateway: usize, shard: u16, mut out: Out) {
        let mut room = self.gateways[gateway].fanout_room;
        let mut refused = Vec::new();
        let mut sent = Vec::new();
        for item in out.items.drain(..) {
            match item {
                Output::Send { conn, bytes } => {
                    let bytes = out.arena[bytes].to_vec();
                    sent.push((conn, bytes.len()));
                    self.receive(gateway, shard, conn, &bytes);
                }
                Output::SendShared { conn, bytes } => {
                    sent.push((conn, bytes.len()));
                    self.receive(gateway, shard, conn, &bytes);
                }
                Output::Close(conn) => {
                    if let Some(client) = self.client_at(gateway, shard, conn) {
                        client.gone = true;
                    }
                    self.brain(gateway, shard, |shard, now, out| shard.handle_closed(now, conn, out));
                }
                Output::Abort(conn) => {
                    if let Some(client) = self.client_at(gateway, shard, conn) {
                        client.gone = true;
                    }
                }
                Output::Pause(_) | Output::Resume(_) | Output::Promote(_) => {}
                Output::Seat { conn, shard: target, seat } => {
                    let id = self.clients.iter().find_map(|(id, (at, client))| {
                        let here = *at == gateway && client.shard == shard && client.conn == Some(conn);
                        here.then_some(*id)
                    });
                    self.gateways[gateway].seats.push_back((target, id.expect("a client sits there"), seat));
                }
                Output::Mesh { shard: target, message } => {
                    if message.class() == MeshClass::Fanout && room == 0 {
                        refused.push((target, message));
                    } else {
                        room -= usize::from(message.class() == MeshClass::Fanout);
                        self.gateways[gateway].mesh.push_back((shard, target, message));
                    }
                }
                Output::LinkConnect { .. } => self.connect_link(gateway, shard),
                Output::LinkSend(bytes) => {
                    if let Some(link) = self.gateways[gateway].links[shard as usize]
                        && let Some((.., input)) = self.link_inputs.get_mut(&link)
                    {
                        input.extend_from_slice(&out.arena[bytes]);
                    }
                }
                Output::LinkClose => self.cut_link(gateway, shard),
                Output::Halt(reason) => self.gateways[gateway].halted = Some(reason),
            }
        }
        for (target, message) in refused {
            self.brain(gateway, shard, |shard, now, out| shard.handle_mesh_full(now, target, message, out));
        }
        for (conn, bytes) in sent {
            if self.client_at(gateway, shard, conn).is_some_and(|client| !client.gone && !client.deaf) {
                self.brain(gateway, shard, |shard, now, out| shard.handle_sent(now, conn, bytes, 0, out));
            }
        }
    }

    /// All links of a gateway break, and none comes up until `writer_away` says otherwise.
    pub fn lose_the_writer(&mut self, gateway: usize) {
        self.writer_away = true;
        (0..self.gateways[gateway].shards.len() as u16).for_each(|shard| self.cut_link(gateway, shard));
        self.settle();
    }

    fn connect_link(&mut self, gateway: usize, shard: u16) {
        if self.writer_away {
            return self.brain(gateway, shard, |shard, now, out| shard.handle_link_down(now, out));
        }
        let link = self.next_link;
        self.next_link += 1;
        self.gateways[gateway].links[shard as usize] = Some(link);
        self.link_inputs.insert(link, (gateway, shard, Vec::new()));
        self.brain(gateway, shard, |shard, now, out| shard.handle_link_up(now, out));
    }

    fn client_at(&mut self, gateway: usize, shard: u16, conn: ConnId) -> Option<&mut Client> {
        self.clients.values_mut().find_map(|(at, client)| {
            (*at == gateway && client.shard == shard && client.conn == Some(conn)).then_some(client)
        })
    }

    /// The client's side: the upgrade's answer, then frames.
    fn receive(&mut self, gateway: usize, shard: u16, conn: ConnId, bytes: &[u8]) {
        let Some(client) = self.client_at(gateway, shard, conn) else { return };
        client.input.extend_from_slice(bytes);
        if !client.upgraded {
            let Some(end) = client.input.windows(4).position(|window| window == b"\r\n\r\n") else { return };
            let head = String::from_utf8_lossy(&client.input[..end]).into_owned();
            client.status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
            client.upgraded = client.status == Some(101);
            client.input.drain(..end + 4);
        }
        while let Some((opcode, payload, len)) = server_frame(&client.input) {
            match opcode {
                2 => client.frames.push(wire::decode_server_frame(Encoding::Rkyv, &payload).expect("a frame")),
                8 => client.closed = Some(u16::from_be_bytes([payload[0], payload[1]])),
                _ => {}
            }
            client.input.drain(..len);
        }
    }

    fn step_writer(&mut self) -> bool {
        let now = storage_core::Now { mono_ms: self.now.mono_ms, unix_ms: self.now.unix_ms };
        let mut moved = false;
        let links: Vec<u64> = self.link_inputs.keys().copied().collect();
        for link in links {
            while let Some(record) = self.next_record(link) {
                moved = true;
                match record {
                    ToWriter::Hello(hello) => self.writer.handle_hello(now, link, hello),
                    ToWriter::Request(request) => {
                        let reply = self.answers_for_the_writer.as_mut().and_then(|answers| answers(&request));
                        match reply {
                            Some(reply) => {
                                self.answer_gateway(link, &ToGateway::Answer(Answer { no: request.no, reply }))
                            }
                            None => self.writer.handle_request(now, link, request),
                        }
                    }
                }
            }
        }
        if self.writer.next_timer().is_some_and(|due| due <= now.mono_ms) {
            self.writer.handle_timer(now);
            moved = true;
        }
        while let Some((op, request)) = self.commits_waiting.pop_front_if(|_| !self.store_stopped) {
            self.model.submit(op, request);
        }
        let mut done = Vec::new();
        self.model.completions(&mut done);
        for (op, result) in done {
            self.writer.handle_completion(now, op, result);
            moved = true;
        }
        self.writer.flush(now);
        while let Some(action) = self.writer.poll_action() {
            moved = true;
            self.writer_action(action);
        }
        moved
    }

    fn next_record(&mut self, link: u64) -> Option<ToWriter> {
        let (.., input) = self.link_inputs.get_mut(&link)?;
        let (record, len) = wire::split_record(input).expect("whole records").map(|(r, len)| (r.to_vec(), len))?;
        input.drain(..len);
        Some(rkyv::from_bytes::<ToWriter, rkyv::rancor::Error>(&record).expect("a record"))
    }

    fn writer_action(&mut self, action: Action) {
        match action {
            Action::Store(op, request @ StoreRequest::Commit(_)) if self.store_stopped => {
                self.commits_waiting.push_back((op, request));
            }
            Action::Store(op, request) => self.model.submit(op, request),
            Action::Send { link, record } => self.answer_gateway(link, &record),
            Action::Read { link, no, ask } => {
                let options = ReadOptions::from(&self.writer_options);
                let reply = reads::answer(&self.model.state, &options, &ask);
                self.answer_gateway(link, &ToGateway::Answer(Answer { no, reply }));
            }
            Action::Close { link } => {
                if let Some((gateway, shard, _)) = self.link_inputs.remove(&link) {
                    self.writer.handle_link_down(link);
                    // What was sent before is read first.
                    if !self.gateways[gateway].stopped {
                        self.step_gateway(gateway);
                    }
                    if self.gateways[gateway].links[shard as usize] == Some(link) && !self.gateways[gateway].stopped {
                        self.gateways[gateway].links[shard as usize] = None;
                        self.brain(gateway, shard, |shard, now, out| shard.handle_link_down(now, out));
                    }
                }
            }
            Action::Halt(reason) => panic!("the writer halts: {reason:?}"),
        }
    }

    fn answer_gateway(&mut self, link: u64, record: &ToGateway) {
        let Some((gateway, shard, _)) = self.link_inputs.get(&link) else { return };
        let (gateway, shard) = (*gateway, *shard);
        let mut bytes = Vec::new();
        wire::encode_record(record, &mut bytes);
        self.gateways[gateway].to_shards.push_back((shard, link, bytes));
    }

    // --- what a test does as a client

    /// Opens a connection to a shard of a gateway and upgrades it.
    pub fn open(&mut self, gateway: usize, shard: u16) -> u64 {
        let id = self.next_client;
        self.next_client += 1;
        let conn = self.new_conn(gateway, shard);
        self.clients.insert(id, (gateway, Client { shard, conn: Some(conn), ..Client::default() }));
        let peer = "127.0.0.1:50000".parse().expect("an address");
        self.brain(gateway, shard, |shard, now, out| shard.handle_accept(now, conn, peer, out));
        let head = format!(
            "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: \
             13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {}\r\n\r\n",
            limits::SUBPROTOCOL_RKYV
        );
        self.data(id, head.as_bytes());
        id
    }

    /// Opens and says hello as a user's device.
    pub fn connect(&mut self, name: &str, device: u128, mark: Option<u64>) -> u64 {
        self.connect_to(0, name, device, mark)
    }

    pub fn connect_to(&mut self, gateway: usize, name: &str, device: u128, mark: Option<u64>) -> u64 {
        let shards = self.gateways[gateway].shards.len() as u16;
        let id = self.open(gateway, (self.next_client % u64::from(shards)) as u16);
        let hello = Hello {
            version: limits::PROTOCOL_VERSION,
            device_id: DeviceId(device),
            token: Some(name.to_owned()),
            resume: None,
            mark,
            kinds_known: Vec::new(),
            client: "test".to_owned(),
            act_for: None,
        };
        self.say(id, ClientFrame::Hello(hello));
        id
    }

    /// Sends a frame and lets everything happen.
    pub fn say(&mut self, client: u64, frame: ClientFrame) {
        self.say_quietly(client, frame);
        self.settle();
    }

    /// Sends a frame; the test decides when what follows happens.
    pub fn say_quietly(&mut self, client: u64, frame: ClientFrame) {
        let mut payload = Vec::new();
        wire::encode_client_frame(Encoding::Rkyv, &frame, &mut payload);
        self.data(client, &client_frame(2, &payload));
    }

    /// Sends a frame whose effect becomes durable, while the answer is lost with the links.
    pub fn say_and_lose_the_answer(&mut self, client: u64, frame: ClientFrame) {
        self.say_quietly(client, frame);
        self.step_gateway(0);
        while self.step_writer() {}
        (0..self.gateways[0].shards.len() as u16).for_each(|shard| self.cut_link(0, shard));
    }

    /// Sends a frame over links that break before the writer, which stands still, reads them. It reads the new ones
    /// first: the frame becomes durable when everybody has looked since, and the answer to the second sending names no
    /// entries, because the one to the first, which nobody gets, did.
    pub fn say_and_make_durable_late(&mut self, client: u64, frame: ClientFrame) {
        self.writer_stopped = true;
        self.say(client, frame);
        // Marks leave with a timer.
        self.sleep(50);
        let unread = std::mem::take(&mut self.link_inputs);
        let old: Vec<u64> = unread.keys().copied().collect();
        for &(gateway, shard, _) in unread.values() {
            self.gateways[gateway].links[shard as usize] = None;
            self.brain(gateway, shard, |shard, now, out| shard.handle_link_down(now, out));
        }
        self.sleep(1_000);
        while self.step_writer() {}
        self.store_stopped = true;
        self.link_inputs.extend(unread);
        while self.step_writer() {}
        for link in old {
            self.link_inputs.remove(&link);
            self.writer.handle_link_down(link);
        }
        self.writer_stopped = false;
        self.sleep(1_000);
        self.store_stopped = false;
        self.settle();
    }

    /// Raw bytes from a client.
    pub fn data(&mut self, client: u64, bytes: &[u8]) {
        let Some((gateway, state)) = self.clients.get(&client) else { return };
        let (gateway, shard, conn) = (*gateway, state.shard, state.conn.expect("connected"));
        if !state.gone {
            let mut bytes = bytes.to_vec();
            self.brain(gateway, shard, |shard, now, out| shard.handle_data(now, conn, &mut bytes, out));
        }
    }

    /// The kernel took bytes for a deaf client; so many are left that the shell knew before this turn's outputs.
    pub fn took(&mut self, client: u64, bytes: usize, queued: usize) {
        let (gateway, state) = &self.clients[&client];
        let (gateway, shard, conn) = (*gateway, state.shard, state.conn.expect("connected"));
        self.brain(gateway, shard, |shard, now, out| shard.handle_sent(now, conn, bytes, queued, out));
    }

    /// The client is gone without a word.
    pub fn drop_client(&mut self, client: u64) {
        let Some((gateway, state)) = self.clients.get_mut(&client) else { return };
        state.gone = true;
        let (gateway, shard, conn) = (*gateway, state.shard, state.conn.take().expect("connected"));
        self.brain(gateway, shard, |shard, now, out| shard.handle_closed(now, conn, out));
        self.settle();
    }

    pub fn client(&mut self, client: u64) -> &mut Client {
        &mut self.clients.get_mut(&client).expect("a client").1
    }

    pub fn user(&mut self, client: u64) -> UserId {
        let welcome = self.client(client).frames.iter().find_map(|frame| match frame {
            ServerFrame::Welcome(welcome) => Some(welcome.user_id),
            _ => None,
        });
        welcome.expect("welcomed")
    }

    pub fn direct(&mut self, a: u64, b: u64) -> ChatId {
        let (a, b) = (self.user(a), self.user(b));
        ChatId::direct(a, b).expect("two users")
    }

    pub fn msg_id(&mut self) -> ClientMsgId {
        self.next_msg += 1;
        ClientMsgId(self.next_msg)
    }

    pub fn text(&mut self, chat_id: ChatId, text: &str) -> ClientFrame {
        let body = MessageBody {
            content_type: "text/plain".to_owned(),
            payload: text.as_bytes().to_vec(),
            ..MessageBody::default()
        };
        let client_msg_id = self.msg_id();
        ClientFrame::Send(frame::Send { chat_id, client_msg_id, envelope: Body::Message(body).to_envelope() })
    }

    /// Texts of the messages that a client received, in order.
    pub fn texts(&mut self, client: u64) -> Vec<String> {
        self.client(client).texts()
    }
}
