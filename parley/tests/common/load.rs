//! Load with a ledger: devices of three people write to each other directly and in a group while a test does its worst,
//! and whatever was acknowledged is in the history once, in order, and reaches every device.

#![allow(dead_code, reason = "each test binary uses a part")]

use super::device::{Target, text_frame};
use super::ledger::Ledger;
use super::{Device, JSON, RKYV, poll, random};
use parley_protocol::frame::Sent;
use parley_protocol::{ChatId, ClientFrame, ClientMsgId, ErrorCode, ServerFrame};
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Commands of one device on the way at once.
const WINDOW: usize = 16;
/// How long a device goes without any answer before it gives up.
const ANSWER_PATIENCE: Duration = Duration::from_secs(120);

#[derive(Default)]
struct Shared {
    ledger: Mutex<Ledger>,
    stop: AtomicBool,
    /// The test has failed: nobody waits for anything any more.
    failed: AtomicBool,
    unavailable: AtomicUsize,
    cut: AtomicUsize,
}

/// How the load goes, for the test that disturbs it.
pub(crate) struct Progress<'a>(&'a Shared);

impl Progress<'_> {
    /// Messages acknowledged so far.
    pub(crate) fn acknowledged(&self) -> usize {
        self.0.ledger.lock().expect("no holder panics").len()
    }

    /// Errors so far: "unavailable, come again" is the only one that a device accepts.
    pub(crate) fn unavailable(&self) -> usize {
        self.0.unavailable.load(Ordering::Relaxed)
    }

    /// Connections that ended so far.
    pub(crate) fn cut(&self) -> usize {
        self.0.cut.load(Ordering::Relaxed)
    }

    /// Waits until so many more are acknowledged.
    pub(crate) fn more(&self, count: usize) {
        let goal = self.acknowledged() + count;
        poll("the writers to make progress", || {
            assert!(!self.0.failed.load(Ordering::Relaxed), "a writing device failed");
            self.acknowledged() >= goal
        });
    }

    /// From here on nothing new is written: no later event may show that one got lost.
    pub(crate) fn end_writing(&self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// Ends all devices when one of them or the test panics.
struct Alarm<'a>(&'a Shared);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::Relaxed);
        }
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
    answered_at: Instant,
    shared: &'a Shared,
}

impl Writer<'_> {
    /// Writes until told to stop, and ends when nothing is without an answer.
    fn run(mut self) -> Device {
        let _alarm = Alarm(self.shared);
        while !(self.shared.stop.load(Ordering::Relaxed) && self.kept.is_empty()) {
            assert!(!self.shared.failed.load(Ordering::Relaxed), "another one failed");
            let waits = self.answered_at.elapsed();
            assert!(waits < ANSWER_PATIENCE, "{}: no answer for {ANSWER_PATIENCE:?}", self.device.name);
            if self.device.closed.is_some() {
                self.shared.cut.fetch_add(1, Ordering::Relaxed);
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
                    self.shared.unavailable.fetch_add(1, Ordering::Relaxed);
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
        self.answered_at = Instant::now();
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

/// Devices of three people, two each, write to each other directly and in a group, while `disturb` does its worst.
/// Checks every promise afterwards; how many there were.
pub(crate) fn under_load(target: &Target, disturb: impl FnOnce(&Progress<'_>)) -> usize {
    let names = [("alice", JSON), ("alice", RKYV), ("bob", JSON), ("bob", RKYV), ("carol", RKYV), ("carol", JSON)];
    let from_start = |(name, encoding): &(&str, _)| {
        let mut device = Device::new(target, name, *encoding);
        device.mark = Some(0);
        device.connected()
    };
    let mut devices: Vec<Device> = names.iter().map(from_start).collect();
    let users = [devices[0].user_id, devices[2].user_id, devices[4].user_id];
    let group = devices[0].create_group("", &users[1..]).expect("created").chat_id;
    let pair = |a: usize, b: usize| ChatId::direct(users[a], users[b]).expect("two users");
    // The chats of each user; every pair of indices is two devices of one user.
    let chats =
        [vec![pair(0, 1), group, pair(0, 2)], vec![pair(0, 1), group, pair(1, 2)], vec![pair(0, 2), group, pair(1, 2)]];
    let shared = Shared::default();
    let mut devices: Vec<Device> = std::thread::scope(|scope| {
        let start = |(index, device): (usize, Device)| {
            let (kept, answered_at, shared) = (VecDeque::new(), Instant::now(), &shared);
            let writer = Writer { device, chats: chats[index / 2].clone(), kept, written: 0, answered_at, shared };
            scope.spawn(move || writer.run())
        };
        let writers: Vec<_> = devices.into_iter().enumerate().map(start).collect();
        let alarm = Alarm(&shared);
        let progress = Progress(&shared);
        disturb(&progress);
        progress.end_writing();
        drop(alarm);
        writers.into_iter().map(|writer| writer.join().expect("a writing device fails")).collect()
    });
    let ledger = shared.ledger.into_inner().expect("no holder panics");
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
    ledger.len()
}
