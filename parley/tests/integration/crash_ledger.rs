//! kill -9 under load, with a ledger: every message that was acknowledged is in the history once, in order, and reaches
//! every device, whatever was killed meanwhile.

use crate::common::device::text_frame;
use crate::common::ledger::Ledger;
use crate::common::{Device, JSON, RKYV, Server, poll, random};
use parley_protocol::frame::Sent;
use parley_protocol::{ChatId, ClientFrame, ClientMsgId, ErrorCode, ServerFrame};
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Commands of one device on the way at once.
const WINDOW: usize = 16;
/// Messages acknowledged between two kills.
const STEP: usize = 150;

struct Shared {
    ledger: Mutex<Ledger>,
    stop: AtomicBool,
}

impl Shared {
    fn acknowledged(&self) -> usize {
        self.ledger.lock().expect("no holder panics").len()
    }
}

/// A device that writes into its chats as `docs/PROTOCOL.md` asks: it keeps what has no answer, comes back by itself,
/// and sends what it kept again, oldest first.
struct Writer<'a> {
    device: Device,
    chats: Vec<ChatId>,
    /// Kept commands: name, chat, text.
    kept: VecDeque<(ClientMsgId, ChatId, String)>,
    written: usize,
    shared: &'a Shared,
}

impl Writer<'_> {
    /// Writes until told to stop, and ends when nothing is without an answer.
    fn run(mut self) -> Device {
        while !(self.shared.stop.load(Ordering::Relaxed) && self.kept.is_empty()) {
            if self.device.closed.is_some() {
                self.come_back();
            }
            if !self.shared.stop.load(Ordering::Relaxed) {
                self.write_more();
            }
            self.device.read_for(Duration::from_millis(20));
            self.take_answers();
        }
        self.device
    }

    fn write_more(&mut self) {
        while self.kept.len() < WINDOW {
            let chat = self.chats[self.written % self.chats.len()];
            let text = format!("{} {}", self.device.device_id, self.written);
            self.written += 1;
            self.kept.push_back((ClientMsgId(random()), chat, text));
            self.resend(self.kept.len() - 1);
        }
    }

    fn resend(&mut self, index: usize) {
        let (id, chat, text) = &self.kept[index];
        let frame: ClientFrame = text_frame(*chat, *id, text);
        self.device.say(&frame);
    }

    fn come_back(&mut self) {
        come_back(&mut self.device);
        for index in 0..self.kept.len() {
            self.resend(index);
        }
    }

    fn take_answers(&mut self) {
        for frame in std::mem::take(&mut self.device.queue) {
            match frame {
                ServerFrame::Sent(sent) => self.acknowledged(sent),
                ServerFrame::Error(error) if error.code == ErrorCode::Unavailable => {
                    let wait = error.retry_after_ms.expect("unavailable says when to come again");
                    std::thread::sleep(Duration::from_millis(wait.min(100).into()));
                    let kept = self.kept.iter().position(|(id, ..)| Some(*id) == error.client_msg_id);
                    if let Some(index) = kept {
                        self.resend(index);
                    }
                }
                ServerFrame::Error(error) => panic!("{}: {error:?}", self.device.name),
                _ => {}
            }
        }
    }

    fn acknowledged(&mut self, sent: Sent) {
        let kept = self.kept.iter().position(|(id, ..)| *id == sent.client_msg_id);
        // A second answer to a command that was sent twice.
        let Some((_, chat, text)) = kept.and_then(|index| self.kept.remove(index)) else { return };
        assert_eq!(chat, sent.chat_id);
        self.shared.ledger.lock().expect("no holder panics").note(sent, &text);
    }
}

/// Connects again, with ticket and mark, for as long as it takes.
fn come_back(device: &mut Device) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        assert!(Instant::now() < deadline, "{}: cannot come back", device.name);
        if device.dial().is_ok() {
            let hello = device.hello(None, device.resume.clone());
            match device.greet(hello) {
                Ok(_) => return,
                Err(4003 | 4000 | 1006) => {}
                Err(code) => panic!("{}: coming back was answered with {code}", device.name),
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Devices of three people, two each, write to each other directly and in a group, while `crash` does its worst.
fn survive(mut server: Server, rounds: usize, mut crash: impl FnMut(&mut Server, usize)) {
    let names = [("alice", JSON), ("alice", RKYV), ("bob", JSON), ("bob", RKYV), ("carol", RKYV), ("carol", JSON)];
    let mut devices: Vec<Device> =
        names.iter().map(|(name, encoding)| server.device_from_start(name, *encoding)).collect();
    let users = [devices[0].user_id, devices[2].user_id, devices[4].user_id];
    let group = devices[0].create_group("", &users[1..]).expect("created").chat_id;
    let pair = |a: usize, b: usize| ChatId::direct(users[a], users[b]).expect("two users");
    // The chats of each user; every pair of indices is two devices of one user.
    let chats =
        [vec![pair(0, 1), group, pair(0, 2)], vec![pair(0, 1), group, pair(1, 2)], vec![pair(0, 2), group, pair(1, 2)]];
    let shared = Shared { ledger: Mutex::new(Ledger::default()), stop: AtomicBool::new(false) };
    let mut devices: Vec<Device> = std::thread::scope(|scope| {
        let writers: Vec<_> = devices
            .into_iter()
            .enumerate()
            .map(|(index, device)| {
                let chats = chats[index / 2].clone();
                let writer = Writer { device, chats, kept: VecDeque::new(), written: 0, shared: &shared };
                scope.spawn(move || writer.run())
            })
            .collect();
        for round in 0..rounds {
            let goal = shared.acknowledged() + STEP;
            let failed = || writers.iter().any(|writer| writer.is_finished());
            poll("the writers to make progress", || shared.acknowledged() >= goal || failed());
            if failed() {
                break;
            }
            // After the last crash nothing new is written: no later event may show that one got lost.
            shared.stop.store(round + 1 == rounds, Ordering::Relaxed);
            crash(&mut server, round);
        }
        shared.stop.store(true, Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().expect("a writing device fails")).collect()
    });
    let ledger = shared.ledger.into_inner().expect("no holder panics");
    assert!(ledger.len() >= rounds * STEP);
    for (index, device) in devices.iter_mut().enumerate() {
        // Who had no answer to wait for may not have noticed the last crash.
        device.drain();
        if device.closed.is_some() {
            come_back(device);
        }
        for chat in &chats[index / 2] {
            let history = device.history(*chat, 0);
            let head = history.len() as u64;
            device.wait_event(*chat, head);
            // The group's first event is no message.
            ledger.check_history(*chat, &history);
            ledger.check_device(*chat, device);
            assert_eq!(device.seqs(*chat), (1..=head).collect::<Vec<u64>>(), "{} has the whole chat", device.name);
        }
    }
    drop(devices);
    server.stop();
    server.check_store();
}

#[test]
fn kill_9_of_writer_and_gateway_in_turn() {
    survive(Server::apart(), 8, |server, round| {
        match round % 4 {
            0 => server.kill_gateway(),
            2 => {
                server.kill_writer();
                server.kill_gateway();
            }
            // The last one too: the sessions live on, and nothing but the gateway can know what they miss.
            _ => server.kill_writer(),
        }
        server.start();
    });
}

#[test]
fn kill_9_of_everything_in_one_process() {
    survive(Server::up(), 4, |server, _| {
        server.kill_gateway();
        server.start();
    });
}
