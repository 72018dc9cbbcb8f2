//! A client process: many devices on one thread, over one epoll, writing at a bounded rate; its history goes to a file.
//! The director tells it over its standard input when to stop writing and when to sync; it reports on its standard
//! output, one line a time.

mod device;
mod sync;
mod wire;

use crate::plan::Plan;
use crash::history::{Record, Writer};
use crash::random::Random;
use device::Device;
use parley_protocol::frame::{Change, GroupChange, Send};
use parley_protocol::{Body, ChatId, ClientFrame, ClientMsgId, MessageBody, UserId};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use sync::Sync;

/// Commands of one device without an answer at most.
const WINDOW: usize = 12;
/// Between two looks at every device.
const TICK: Duration = Duration::from_millis(20);
const REPORT: Duration = Duration::from_millis(500);
/// A device goes away by itself about so often.
const CUT_EVERY: Duration = Duration::from_secs(25);
/// The owner of a group with guests changes it so often.
const CHANGE_EVERY: Duration = Duration::from_millis(700);

/// Why a process gives up.
#[derive(Debug)]
pub(crate) struct Gone(pub(crate) String);

impl From<io::Error> for Gone {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// What all devices of the process share.
pub(crate) struct Context {
    pub(crate) plan: Plan,
    pub(crate) now: Instant,
    pub(crate) random: Random,
    pub(crate) acknowledged: u64,
    pub(crate) delivered: u64,
    /// Devices with something to flush.
    pub(crate) dirty: HashSet<u32>,
    /// Devices misbehave too: until the director says that it is enough.
    pub(crate) faults: bool,
    history: Writer<BufWriter<File>>,
    epoll: OwnedFd,
    /// Names of commands: the process above, a count below.
    name: u128,
}

impl Context {
    pub(crate) fn write(&mut self, record: Record) -> Result<(), Gone> {
        self.history.write(record).map_err(|error| Gone(format!("the history: {error}")))
    }

    pub(crate) fn register(&self, socket: &OwnedFd, device: u32) -> io::Result<()> {
        let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(device.into()), interest)?)
    }

    fn next_name(&mut self) -> ClientMsgId {
        self.name += 1;
        ClientMsgId(self.name)
    }
}

/// What the owner of a group with guests does: lets the next one in, takes the next one out.
struct Host {
    device: usize,
    chat: ChatId,
    guests: Vec<UserId>,
    inside: usize,
    entering: bool,
    next: Instant,
}

/// What the director asks for.
const RUN: u8 = 0;
const QUIET: u8 = 1;
const SYNC: u8 = 2;
const EXPLAIN: u8 = 3;
const END: u8 = 4;

struct Client {
    context: Context,
    devices: Vec<Device>,
    /// Number of a device -> its place.
    places: HashMap<u32, usize>,
    hosts: Vec<Host>,
    /// Place of the device that reads a log at the end.
    logs: HashMap<usize, Vec<ChatId>>,
    budget: f64,
    phase: u8,
    reported: bool,
}

/// Plays the devices of one process until the director is content, or gone.
pub(crate) fn run(plan: &Path, process: u32, history: &Path) -> Result<(), String> {
    let order = Arc::new(AtomicU8::new(RUN));
    let heard = Arc::clone(&order);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            match line.as_deref() {
                Ok("quiet") => heard.store(QUIET, Ordering::Relaxed),
                Ok("sync") => heard.store(SYNC, Ordering::Relaxed),
                Ok("end") => heard.store(END, Ordering::Relaxed),
                Ok("explain") => heard.store(EXPLAIN, Ordering::Relaxed),
                _ => break,
            }
        }
        // Without a director there is nobody to play for.
        std::process::exit(3);
    });
    let mut client = Client::new(Plan::load(plan)?, process, history).map_err(|gone| gone.0)?;
    let end = client.play(&order);
    client.context.history.flush().map_err(|error| format!("{}: {error}", history.display()))?;
    match end {
        Ok(()) => say("done"),
        Err(Gone(why)) => {
            say(&format!("fatal {why}"));
            return Err(why);
        }
    }
    Ok(())
}

fn say(line: &str) {
    // A director that is gone ends this process by itself.
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

impl Client {
    fn new(plan: Plan, process: u32, history: &Path) -> Result<Self, Gone> {
        let now = Instant::now();
        let file = File::create(history).map_err(|error| Gone(format!("{}: {error}", history.display())))?;
        let random = Random::new(plan.seed, u64::from(process) + 1);
        let mut context = Context {
            now,
            random,
            acknowledged: 0,
            delivered: 0,
            dirty: HashSet::new(),
            faults: true,
            history: Writer::new(BufWriter::with_capacity(1 << 20, file)),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|error| Gone(error.to_string()))?,
            name: u128::from(plan.seed) << 64 | u128::from(process + 1) << 48,
            plan,
        };
        let (mut devices, mut places) = (Vec::new(), HashMap::new());
        let mut logs: HashMap<usize, Vec<ChatId>> = HashMap::new();
        let mut hosts = Vec::new();
        for (number, user) in context.plan.devices_of(process).collect::<Vec<_>>() {
            let place = devices.len();
            places.insert(number, place);
            let of = &context.plan.users[user];
            let mut device = Device::new(number, of.user_id, of.token.clone(), now);
            let (begun, others) = context.plan.directs_of(user);
            let first = number % crate::plan::DEVICES_MAX == 0;
            if first {
                logs.entry(place).or_default().extend(&begun);
            }
            device.chats = begun.into_iter().chain(others).collect();
            let mut subscribes = false;
            for group in &context.plan.groups {
                let guest = group.guests.contains(&user);
                if !guest && !group.members.contains(&user) {
                    continue;
                }
                device.chats.push(group.chat_id);
                if guest {
                    device.guest_of.insert(group.chat_id);
                }
                if group.crosses() {
                    device.crossing.insert(group.chat_id, Default::default());
                    subscribes = true;
                }
                if first && group.members[0] == user {
                    logs.entry(place).or_default().push(group.chat_id);
                    let guests: Vec<_> = group.guests.iter().map(|guest| context.plan.users[*guest].user_id).collect();
                    let (device, chat, next) = (place, group.chat_id, now);
                    if !guests.is_empty() {
                        hosts.push(Host { device, chat, guests, inside: 0, entering: true, next });
                    }
                }
            }
            device.subscribes &= subscribes;
            let (user, subscribes) = (device.user_id, device.subscribes);
            context.write(Record::Device { device: number, user, subscribes })?;
            devices.push(device);
        }
        Ok(Self { context, devices, places, hosts, logs, budget: 0.0, phase: RUN, reported: false })
    }

    fn play(&mut self, order: &AtomicU8) -> Result<(), Gone> {
        let (mut ticked, mut reported) = (Instant::now(), Instant::now());
        let mut ready = Vec::with_capacity(256);
        loop {
            ready.clear();
            let wait = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
            match epoll::wait(&self.context.epoll, spare_capacity(&mut ready), Some(&wait)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Gone(error.to_string())),
            }
            self.context.now = Instant::now();
            for event in &ready {
                if let Some(place) = self.places.get(&(event.data.u64() as u32)) {
                    self.devices[*place].ready(&mut self.context)?;
                }
            }
            if self.context.now - ticked >= TICK {
                self.tick(self.context.now - ticked)?;
                ticked = self.context.now;
            }
            self.flush();
            self.obey(order);
            if self.context.now - reported >= REPORT {
                reported = self.context.now;
                self.report();
            }
            if self.phase == END {
                return Ok(());
            }
            if self.phase == SYNC && self.devices.iter().all(|device| device.sync.as_ref().is_some_and(|it| it.done)) {
                return Ok(());
            }
        }
    }

    fn flush(&mut self) {
        let dirty: Vec<u32> = self.context.dirty.drain().collect();
        for number in dirty {
            if let Some(place) = self.places.get(&number) {
                self.devices[*place].flush(&mut self.context);
            }
        }
    }

    fn tick(&mut self, passed: Duration) -> Result<(), Gone> {
        for device in &mut self.devices {
            device.tick(&mut self.context)?;
            let odds = CUT_EVERY.as_millis() / passed.as_millis().max(1);
            if self.phase == RUN && device.is_live() && self.context.random.one_in(odds.max(1) as u64) {
                // Mostly short; sometimes long enough that a backlog gathers.
                let longest = if self.context.random.one_in(5) { 8_000 } else { 1_000 };
                let away = Duration::from_millis(self.context.random.below(longest));
                device.cut(self.context.now + away);
            }
        }
        if self.phase != RUN {
            return Ok(());
        }
        self.host()?;
        let rate = f64::from(self.context.plan.rate);
        // What could not be sent while the servers were away is made up for, a second of it at most.
        self.budget = (self.budget + rate * passed.as_secs_f64()).min(rate);
        let mut misses = 0;
        while self.budget >= 1.0 && misses < self.devices.len() {
            let place = self.context.random.below(self.devices.len() as u64) as usize;
            let device = &mut self.devices[place];
            if !device.is_live() || device.kept.len() >= WINDOW {
                misses += 1;
                continue;
            }
            self.budget -= 1.0;
            let chat = *self.context.random.pick(&device.chats);
            let name = self.context.next_name();
            let text = format!("{name} {}", "x".repeat(self.context.random.below(120) as usize));
            let body = MessageBody { content_type: "text/plain".into(), payload: text.into(), ..Default::default() };
            let envelope = Body::Message(body).to_envelope();
            let frame = ClientFrame::Send(Send { chat_id: chat, client_msg_id: name, envelope });
            device.command(&mut self.context, chat, &frame)?;
        }
        Ok(())
    }

    /// Guests come and go, one change at a time.
    fn host(&mut self) -> Result<(), Gone> {
        for host in &mut self.hosts {
            let device = &mut self.devices[host.device];
            let busy = device.kept.iter().any(|kept| kept.change);
            if busy || !device.is_live() || self.context.now < host.next {
                continue;
            }
            host.next = self.context.now + CHANGE_EVERY;
            host.entering = (host.entering && host.inside < host.guests.len()) || host.inside == 0;
            let change = if host.entering {
                host.inside += 1;
                Change::Add { users: vec![host.guests[host.inside - 1]] }
            } else {
                host.inside -= 1;
                Change::Remove { users: vec![host.guests[host.inside]] }
            };
            let (chat_id, client_msg_id) = (host.chat, self.context.next_name());
            let frame = ClientFrame::GroupChange(GroupChange { chat_id, client_msg_id, change });
            device.command(&mut self.context, chat_id, &frame)?;
        }
        Ok(())
    }

    fn obey(&mut self, order: &AtomicU8) {
        match order.load(Ordering::Relaxed) {
            QUIET if self.phase == RUN => {
                self.phase = QUIET;
                self.context.faults = false;
            }
            SYNC if self.phase != SYNC => {
                self.phase = SYNC;
                for (place, device) in self.devices.iter_mut().enumerate() {
                    let crossing: Vec<ChatId> = device.crossing.keys().copied().collect();
                    let logs = self.logs.get(&place).map_or(&[][..], |logs| logs);
                    device.sync = Some(Sync::new(&crossing, logs));
                }
            }
            END => self.phase = END,
            EXPLAIN => {
                order.store(self.phase, Ordering::Relaxed);
                for device in self.devices.iter().filter(|device| !self.is_content(device)).take(5) {
                    say(&format!("stuck {}", device.explain()));
                }
            }
            _ => {}
        }
    }

    /// A device that did what its phase asks for.
    fn is_content(&self, device: &Device) -> bool {
        match self.phase {
            SYNC => device.sync.as_ref().is_some_and(|sync| sync.done),
            _ => device.kept.is_empty() && device.is_live(),
        }
    }

    fn report(&mut self) {
        let live = self.devices.iter().filter(|device| device.is_live()).count();
        let left = self.devices.iter().filter(|device| !self.is_content(device)).count();
        let Context { acknowledged, delivered, .. } = self.context;
        say(&format!("progress {acknowledged} {delivered} {live} {left}"));
        if self.phase == QUIET && left == 0 && !self.reported {
            self.reported = true;
            say("quiet");
        }
    }
}
