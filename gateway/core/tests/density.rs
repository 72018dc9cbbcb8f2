//! What an idle session costs: every byte and every object that a shard keeps on the heap, counted by the allocator of
//! this test binary, over ten thousand sessions that heartbeat. Nothing else may run in this binary.

use gateway_core::authority::{Authority, Identity, Ticket};
use gateway_core::brain::Brain;
use gateway_core::fan::Fan;
use gateway_core::mesh::{Fanout, HomeAsk, HomeReply, Mesh};
use gateway_core::options::Options;
use gateway_core::output::{ConnId, Output};
use gateway_core::shard::{Out, Seat, Shard};
use gateway_core::time::Now;
use parley_protocol::frame::{self, Head, Pong, Receipt, Sent, ServerFrame};
use parley_protocol::link::{Answer, Ask, InboxPage, LinkWelcome, Reply, Target, ToGateway, ToWriter};
use parley_protocol::wire::{self, Encoding};
use parley_protocol::{Body, ChatId, ClientFrame, ClientMsgId, DeviceId, MessageBody, MessageId, UserId};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const SESSIONS: u32 = 10_000;
/// Sessions that do something at the same moment.
const BATCH: u32 = 100;
const BATCHES: u32 = SESSIONS / BATCH;
const HEARTBEAT_MS: u64 = 25_000;
/// Where every inbox stands when its device comes.
const MARK: u64 = 5;

/// All that is kept for an idle session: its entry of the connection table, its place in its user's home, its timers, and
/// its share of what the shard keeps however many there are.
const BYTES_MAX: f64 = 140.0;
/// No object of its own: only its share of the chunks that it lies in, and of what is kept for those who get busy.
const OBJECTS_MAX: f64 = 0.1;

struct Nobody;

impl Authority for Nobody {
    fn verify_token(&self, _: &str, _: Now, _: bool) -> Result<Identity, String> {
        Err("nobody".to_owned())
    }

    fn issue_ticket(&self, _: &Ticket) -> String {
        String::new()
    }

    fn verify_ticket(&self, _: &str, _: DeviceId, _: Now, _: bool) -> Option<Ticket> {
        None
    }
}

/// Bytes and objects that live on the heap.
fn live() -> (usize, usize) {
    let stats = ALLOCATOR.stats();
    (stats.bytes_allocated - stats.bytes_deallocated, stats.allocations - stats.deallocations)
}

/// The first of two shards. The other one, which owns all chats that are asked for here, the storage tier and the
/// clients' sockets are played by hand: they keep nothing.
struct Rig {
    shard: Shard,
    now: Now,
    sent_total: u64,
    pages_total: u64,
}

impl Rig {
    fn new() -> Self {
        let now = Now { mono_ms: 1_000, unix_ms: 1_800_000_000_000 };
        let options = Options { shards: 2, ..Options::default() };
        let mut rig = Self { shard: Shard::new(options, Box::new(Nobody), now), now, sent_total: 0, pages_total: 0 };
        rig.call(|shard, now, out| shard.handle_timer(now, out));
        rig
    }

    /// Calls the shard and does what it wants done.
    fn call(&mut self, call: impl FnOnce(&mut Shard, Now, &mut Out)) {
        let mut out = Out::default();
        call(&mut self.shard, self.now, &mut out);
        self.carry_out(out);
    }

    fn carry_out(&mut self, out: Out) {
        for item in out.items {
            match item {
                Output::Send { conn, bytes } => self.took(conn, bytes.len()),
                Output::SendShared { conn, bytes } => self.took(conn, bytes.len()),
                Output::LinkConnect { .. } => {
                    self.call(|shard, now, out| shard.handle_link_up(now, out));
                    self.writer_says(&ToGateway::Welcome(LinkWelcome { home_epoch: 1, writer_epoch: 1 }));
                }
                Output::LinkSend(bytes) => self.writer_hears(&out.arena[bytes]),
                Output::Mesh { shard: 1, message: Mesh::Ask { origin, ask } } => self.other_shard(origin, &ask),
                Output::Mesh { .. } => {}
                other => panic!("nothing ends here: {other:?}"),
            }
        }
    }

    /// The kernel took what was queued.
    fn took(&mut self, conn: ConnId, bytes: usize) {
        self.sent_total += 1;
        self.call(|shard, now, out| shard.handle_sent(now, conn, bytes, 0, out));
    }

    fn writer_says(&mut self, record: &ToGateway) {
        let mut bytes = Vec::new();
        wire::encode_record(record, &mut bytes);
        self.call(|shard, now, out| shard.handle_link_data(now, &mut bytes, out));
    }

    fn writer_hears(&mut self, mut bytes: &[u8]) {
        while let Some((record, len)) = wire::split_record(bytes).expect("whole records") {
            if let ToWriter::Request(request) = wire::decode_to_writer(record).expect("a record") {
                let reply = match request.ask {
                    Ask::Inbox { after, .. } => {
                        Reply::Inbox(InboxPage { after, to: after, head: after, entries: Vec::new() })
                    }
                    Ask::Chats { .. } => Reply::Chats { chats: Vec::new(), more: false },
                    ask => panic!("nobody asks for {ask:?}"),
                };
                self.pages_total += 1;
                self.writer_says(&ToGateway::Answer(Answer { no: request.no, reply }));
            }
            bytes = &bytes[len..];
        }
    }

    fn other_shard(&mut self, origin: gateway_core::mesh::Origin, ask: &HomeAsk) {
        let chat_id = ask.chat_id();
        let reply = match ask {
            HomeAsk::Command(command) => {
                let client_msg_id = command.client_msg_id;
                HomeReply::Sent(Sent { chat_id, client_msg_id, message_id: MessageId(1), seq: 1 })
            }
            HomeAsk::Subscribe { .. } => {
                let head = Head { chat_id, seq: 1, ordinal: 1 };
                self.fan_out(Fanout::Subscribed { conn: origin.conn, head, generation: 1 });
                HomeReply::Taken
            }
            HomeAsk::Marks { .. } => HomeReply::Taken,
        };
        self.call(|shard, now, out| shard.handle_mesh(now, 1, Mesh::Reply { origin, reply }, out));
    }

    fn fan_out(&mut self, fanout: Fanout) {
        self.call(|shard, now, out| shard.handle_mesh(now, 1, Mesh::Fanout(fanout), out));
    }

    fn seat(&mut self, slot: u32) {
        let seat = Seat {
            user_id: user_of(slot),
            name: "somebody".to_owned(),
            device_id: DeviceId(u128::from(slot) << 64 | 7),
            encoding: encoding_of(slot),
            mark: Some(MARK),
            acting: false,
            development: false,
            token_expires_at_ms: self.now.unix_ms + 86_400_000,
            loopback: false,
            rest: Vec::new(),
        };
        self.call(|shard, now, out| shard.handle_seated(now, conn_of(slot), seat, out));
    }

    fn hears(&mut self, slot: u32, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        self.call(|shard, now, out| shard.handle_data(now, conn_of(slot), &mut bytes, out));
    }

    fn says(&mut self, slot: u32, frame: &ClientFrame) {
        let bytes = masked(slot, frame);
        self.hears(slot, &bytes);
    }

    /// Moves time; whatever is due happens.
    fn sleep(&mut self, ms: u64) {
        let end = self.now.mono_ms + ms;
        while self.now.mono_ms < end {
            let next = self.shard.next_timer().unwrap_or(u64::MAX).clamp(self.now.mono_ms, end);
            self.now = Now { mono_ms: next, unix_ms: self.now.unix_ms + next - self.now.mono_ms };
            self.call(|shard, now, out| shard.handle_timer(now, out));
            if next == self.now.mono_ms && self.shard.next_timer().is_none_or(|due| due > end) {
                self.now = Now { mono_ms: end, unix_ms: self.now.unix_ms + end - next };
            }
        }
    }

    /// Everybody does nothing but heartbeat for so many intervals, each at a moment of its own.
    fn idle(&mut self, intervals: u32) {
        for _ in 0..intervals {
            for batch in 0..BATCHES {
                for slot in batch * BATCH..(batch + 1) * BATCH {
                    self.hears(slot, &[0x89, 0x80, 1, 2, 3, 4]);
                }
                self.sleep(HEARTBEAT_MS / u64::from(BATCHES));
            }
        }
    }
}

fn conn_of(slot: u32) -> ConnId {
    ConnId { slot, generation: 1 + slot % 3 }
}

/// As the storage tier gives them out: a time, and a little below it.
fn user_of(slot: u32) -> UserId {
    UserId((1_000_000 + u64::from(slot) * 37) << 22 | 5)
}

fn encoding_of(slot: u32) -> Encoding {
    [Encoding::Rkyv, Encoding::Json][slot as usize % 2]
}

/// A group whose home is the other shard.
fn chat() -> ChatId {
    let elsewhere = |chat: &ChatId| {
        let partition = parley_protocol::partition::of_chat(*chat);
        parley_protocol::partition::shard(partition, 2) == 1
    };
    (1..).map(ChatId::group).find(elsewhere).expect("one of them")
}

fn masked(slot: u32, frame: &ClientFrame) -> Vec<u8> {
    let encoding = encoding_of(slot);
    let mut payload = Vec::new();
    wire::encode_client_frame(encoding, frame, &mut payload);
    let opcode = if encoding == Encoding::Rkyv { 2 } else { 1 };
    let mut bytes = vec![0x80 | opcode, 0x80 | 126];
    if payload.len() < 126 {
        bytes = vec![0x80 | opcode, 0x80 | payload.len() as u8];
    } else {
        bytes.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    }
    // A mask of zeros leaves every byte as it is.
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&payload);
    bytes
}

/// All that makes a session busy, once: requests, a subscription and a live event, a frame in two pieces, entries in and
/// out of order, something beside the stream.
fn active(rig: &mut Rig, slot: u32) {
    let chat_id = chat();
    let payload = vec![b'x'; 128];
    let body = MessageBody { content_type: "text/plain".to_owned(), payload, ..MessageBody::default() };
    let envelope = Body::Message(body).to_envelope();
    let client_msg_id = ClientMsgId(u128::from(slot));
    rig.says(slot, &ClientFrame::Send(frame::Send { chat_id, client_msg_id, envelope }));
    rig.says(slot, &ClientFrame::Read(frame::Position { chat_id, seq: 1 }));
    rig.says(slot, &ClientFrame::Chats(frame::Chats { request_id: 1, after: None, limit: 0 }));
    rig.says(slot, &ClientFrame::Subscribe(frame::ChatRef { chat_id }));
    let fan = Arc::new(Fan::new(ServerFrame::Pong(Pong { nonce: 1 })));
    let except: Arc<[Target]> = Arc::new([]);
    rig.fan_out(Fanout::Live { chat_id, fan: fan.clone(), except, generation: 1 });
    let unsubscribe = masked(slot, &ClientFrame::Unsubscribe(frame::ChatRef { chat_id }));
    let (first, second) = unsubscribe.split_at(unsubscribe.len() / 2);
    rig.hears(slot, first);
    let user_id = user_of(slot);
    let receipt = ServerFrame::Receipt(Receipt { chat_id, user_id, delivered_seq: 1, read_seq: 1 });
    rig.fan_out(Fanout::Beside { fan: Arc::new(Fan::new(receipt)), users: vec![user_id] });
    for inbox_seq in [MARK + 1, MARK + 3, MARK + 2] {
        let targets = vec![Target { user_id, inbox_seq }];
        rig.fan_out(Fanout::Deliver { fan: fan.clone(), targets });
    }
    rig.hears(slot, second);
}

#[test]
fn an_idle_session_costs_little_and_no_object() {
    let (bytes_before, objects_before) = live();
    let mut rig = Rig::new();
    for batch in 0..BATCHES {
        (batch * BATCH..(batch + 1) * BATCH).for_each(|slot| rig.seat(slot));
        rig.sleep(HEARTBEAT_MS / u64::from(BATCHES));
    }
    let check = |rig: &Rig, when: &str| {
        let (bytes, objects) = live();
        let of_each = |now: usize, before: usize| (now - before) as f64 / f64::from(SESSIONS);
        let (bytes, objects) = (of_each(bytes, bytes_before), of_each(objects, objects_before));
        println!("{when}: {bytes:.1} bytes and {objects:.4} objects a session");
        rig.shard.check_invariants();
        assert_eq!(rig.shard.stats.sessions, u64::from(SESSIONS));
        assert!(bytes <= BYTES_MAX, "{when}: {bytes:.1} bytes a session");
        assert!(objects <= OBJECTS_MAX, "{when}: {objects:.4} objects a session");
    };
    rig.idle(4);
    check(&rig, "idle since its seat");
    let (sent, pages) = (rig.sent_total, rig.pages_total);
    for batch in 0..BATCHES {
        (batch * BATCH..(batch + 1) * BATCH).for_each(|slot| active(&mut rig, slot));
        rig.sleep(HEARTBEAT_MS / u64::from(BATCHES));
    }
    let stats = &rig.shard.stats;
    assert_eq!((stats.errors_total, stats.entries_total), (0, 3 * u64::from(SESSIONS)));
    assert!(rig.sent_total - sent >= 6 * u64::from(SESSIONS), "everybody was answered and got entries");
    assert!(rig.pages_total - pages >= u64::from(SESSIONS), "everybody read a page");
    rig.idle(4);
    check(&rig, "idle again");
}
