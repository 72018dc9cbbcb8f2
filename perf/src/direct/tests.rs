//! Whole runs against a small chat server on tungstenite, faithful or with one planted fault: the report must tell.

use super::MarkOptions;
use super::run::{Loop, Settings, run};
use crate::cpu::Probes;
use crate::net::{Stop, Url};
use crate::report::Report;
use crate::tokens::Tokens;
use parley_protocol::frame::{HistoryPage, Sent, Welcome};
use parley_protocol::wire::{Encoding, decode_client_frame, encode_server_frame};
use parley_protocol::{ChatId, ClientFrame, Event, MessageId, ServerFrame, UserId};
use serde_json::Value;
use std::collections::HashMap;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use tungstenite::handshake::server::{Request, Response};
use tungstenite::protocol::Role;
use tungstenite::{Message, WebSocket};

/// What the server does wrong, with one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    LosesAnEvent,
    DoublesAnEvent,
    ForgetsInHistory,
    HangsUp,
}

/// The message that a fault befalls.
const FAULTY: u64 = 137;

struct Chats {
    fault: Fault,
    encoding: Encoding,
    messages: u64,
    marks: u64,
    logs: HashMap<ChatId, Vec<Event>>,
    /// The sending sides of all connections.
    sessions: HashMap<UserId, WebSocket<TcpStream>>,
}

impl Chats {
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
        let peer = send.chat_id.peer_of(sender).expect("the generator writes in its own chats");
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

    fn frame(&mut self, user: UserId, frame: ClientFrame) {
        match frame {
            ClientFrame::Send(send) => self.send(user, send),
            ClientFrame::Delivered(mark) => {
                assert!(self.logs[&mark.chat_id].len() as u64 >= mark.seq);
                self.marks += 1;
            }
            ClientFrame::History(ask) => {
                let log = self.logs.get(&ask.chat_id).into_iter().flatten();
                let forgotten = (self.fault == Fault::ForgetsInHistory).then_some(MessageId(FAULTY));
                let after = ask.after.unwrap();
                let mut events: Vec<Event> =
                    log.filter(|it| it.seq > after && Some(it.message_id) != forgotten).cloned().collect();
                // Smaller pages than asked for, so that there are several.
                let more = events.len() > 20;
                events.truncate(20);
                let page = HistoryPage { request_id: ask.request_id, chat_id: ask.chat_id, events, more };
                self.tell(user, &ServerFrame::HistoryPage(page));
            }
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

fn welcome(user_id: UserId) -> Welcome {
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

fn settings(address: std::net::SocketAddr, load: Loop, encoding: Encoding) -> Settings {
    Settings {
        url: Url::parse(&format!("ws://{address}/ws")).unwrap(),
        users: 6,
        load,
        warmup_ns: 50_000_000,
        measured_ns: 250_000_000,
        drain_ns: 30_000_000_000,
        payload_bytes: 128,
        marks: MarkOptions { interval_ns: 20_000_000, messages_max: 8 },
        encoding,
        seed: 1,
        run: 0x1234_5678_0000_0000,
        connect_rate: 1_000,
        handshakes_max: 2,
        turn_ns: 0,
        verify_history: true,
        driver: "none".to_owned(),
        probes: Probes::default(),
        stop: Stop::default(),
    }
}

/// A run against a server with the fault: the report, also as JSON, and how many marks the server got.
fn report(fault: Fault, load: Loop, encoding: Encoding) -> (Report, Value, u64) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut settings = settings(listener.local_addr().unwrap(), load, encoding);
    if matches!(fault, Fault::LosesAnEvent | Fault::HangsUp) {
        // Nothing ends these drains but their time.
        settings.drain_ns = 2_000_000_000;
    }
    let chats = Chats { fault, encoding, messages: 0, marks: 0, logs: HashMap::new(), sessions: HashMap::new() };
    let chats = Arc::new(Mutex::new(chats));
    let serving = chats.clone();
    let server = std::thread::spawn(move || {
        let session = |stream| {
            let chats = serving.clone();
            std::thread::spawn(move || serve(stream, &chats))
        };
        let sessions: Vec<_> = listener.incoming().take(6).map(|stream| session(stream.unwrap())).collect();
        sessions.into_iter().for_each(|session| session.join().expect("the server saw only valid frames"));
    });
    let report = run(&settings, &Tokens::new(&[1; 32], "test")).unwrap();
    server.join().unwrap();
    let marks = chats.lock().unwrap().marks;
    let json = serde_json::to_value(&report).unwrap();
    (report, json, marks)
}

const OPEN: Loop = Loop::Open { rate: 1_000 };
const CLOSED: Loop = Loop::Closed { window: 4 };

#[test]
fn an_open_loop_on_a_faithful_server_offers_its_rate_and_keeps_every_promise() {
    for encoding in [Encoding::Rkyv, Encoding::Json] {
        let (report, json, marks) = report(Fault::None, OPEN, encoding);
        assert_eq!(report.broken(), [""; 0], "{encoding:?}");
        assert_eq!((json["sent"].as_u64(), json["delivered"].as_u64()), (Some(300), Some(300)));
        assert_eq!(json["offered_per_s"], 1_000.0);
        assert_eq!((json["unanswered"].as_u64(), json["seq_holes"].as_u64()), (Some(0), Some(0)));
        // Every pair talked, so every pair marked; and marks are coalesced.
        assert!((3..300).contains(&marks), "{marks} marks");
        assert_eq!(json["delivered_marks"], marks);
    }
}

#[test]
fn a_closed_loop_on_a_faithful_server_keeps_every_promise() {
    let (report, json, _) = report(Fault::None, CLOSED, Encoding::Rkyv);
    assert_eq!(report.broken(), [""; 0]);
    // More than the first fill: slots freed and were used again.
    assert!(json["sent"].as_u64().unwrap() > 6 * 4);
    assert_eq!((&json["sent"], &json["sent"]), (&json["acknowledged"], &json["delivered"]));
}

#[test]
fn a_lost_event_is_reported_and_is_not_missing_in_the_history() {
    let (report, json, _) = report(Fault::LosesAnEvent, OPEN, Encoding::Rkyv);
    assert_eq!(report.broken(), ["1 acknowledged messages lost"]);
    assert_eq!((json["sent"].as_u64(), json["delivered"].as_u64()), (Some(300), Some(299)));
    // What never came is the slowest: it counts with the whole drain.
    assert!(json["latency_ms_max"].as_f64().unwrap() >= 2_000.0);
}

#[test]
fn a_doubled_event_is_reported() {
    let (report, ..) = report(Fault::DoublesAnEvent, OPEN, Encoding::Rkyv);
    assert_eq!(report.broken(), ["1 events seen twice by a device"]);
}

#[test]
fn a_message_that_the_history_lacks_is_reported() {
    let (report, ..) = report(Fault::ForgetsInHistory, OPEN, Encoding::Rkyv);
    assert_eq!(report.broken(), ["1 acknowledged messages missing in the history"]);
}

#[test]
fn a_dropped_connection_is_reported_with_what_it_lost() {
    let (report, ..) = report(Fault::HangsUp, OPEN, Encoding::Rkyv);
    assert_eq!(report.disconnected, 1);
    assert!(report.lost >= 1 && report.history_missing == Some(0));
}

#[test]
fn a_run_that_is_stopped_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = settings(listener.local_addr().unwrap(), OPEN, Encoding::Rkyv);
    settings.stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let error = run(&settings, &Tokens::new(&[1; 32], "test")).unwrap_err();
    assert!(error.contains("stopped"), "{error}");
}

#[test]
fn a_server_that_is_not_there_is_a_clear_error() {
    // Bound and closed again: nothing listens there.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = run(&settings(address, OPEN, Encoding::Rkyv), &Tokens::new(&[1; 32], "test")).unwrap_err();
    assert!(error.contains("nothing listens there"), "{error}");
}
