//! The chat gateway: shards with the chat brain on the socket plane, and what an operator sees of them.

use crate::identity::{DevKey, KeyError, Ticket, Tickets, Verifier, VerifierOptions};
use crate::mesh::Capacities;
use crate::plane::{self, Brain, BufferOptions, Counters, DriverChoice, DriverKind, Exit, RingOptions, StartError};
use crate::refusals::{self, Refused};
use gateway_core::authority::{Authority, Identity, Ticket as CoreTicket};
use gateway_core::mesh::Mesh;
use gateway_core::options::Options as ShardOptions;
use gateway_core::output::{ConnId, Outputs};
use gateway_core::shard::{Seat, Shard};
use gateway_core::stats::{Reason, Stats};
use gateway_core::time::Now;
use parley_config::Gateway as Config;
use parley_protocol::DeviceId;
use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How to serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration; `shards` 0 means one per core.
    pub config: Config,
    /// The storage-writers' Unix sockets: one of them is active. At least one.
    pub writer_sockets: Vec<PathBuf>,
    /// The development key, if one is taken.
    pub dev_key: Option<DevKey>,
    /// What signs resume tickets.
    pub tickets: Tickets,
}

/// Why the gateway does not start.
#[derive(Debug)]
pub enum Error {
    /// The socket plane says why.
    Start(StartError),
    /// A key could not be read.
    Key(KeyError),
    /// The system gave no random bytes.
    Random(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Start(_) => f.write_str("the gateway cannot start"),
            Error::Key(_) => f.write_str("the gateway cannot read a key"),
            Error::Random(why) => write!(f, "the system gives no random bytes: {why}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Start(error) => Some(error),
            Error::Key(error) => Some(error),
            Error::Random(_) => None,
        }
    }
}

/// Whether the gateway can serve, for `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Every shard has its link.
    Ready,
    /// It cannot make anything durable now; the text says why.
    NotReady(String),
}

/// The values of one shard's [`Stats`], for other threads.
#[derive(Debug)]
struct Published {
    values: [AtomicU64; Stats::LEN],
    /// In the order of [`Reason::ALL`].
    rejected: [AtomicU64; Reason::ALL.len()],
    /// All of those: what tells that there is something new.
    rejected_total: AtomicU64,
}

impl Default for Published {
    fn default() -> Self {
        let zero = |_| AtomicU64::new(0);
        Self {
            values: std::array::from_fn(zero),
            rejected: std::array::from_fn(zero),
            rejected_total: AtomicU64::new(0),
        }
    }
}

/// A running gateway.
#[derive(Debug)]
pub struct Handle {
    plane: plane::Handle,
    monitor: Monitor,
}

/// What an operator sees of a gateway, from any thread, for as long as anybody looks.
#[derive(Clone, Debug)]
pub struct Monitor {
    driver: DriverKind,
    stats: Vec<Arc<Published>>,
    counters: Vec<Arc<Counters>>,
    draining: Arc<AtomicBool>,
    storage_reason: Arc<Mutex<String>>,
    writer_sockets: Arc<[PathBuf]>,
    refused: Arc<Refused>,
}

/// Starts the shards.
pub fn serve(options: Options) -> Result<Handle, Error> {
    let config = &options.config;
    let shards = match config.shards {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(1024) as u16),
        shards => shards,
    };
    let verifier = Verifier::new(VerifierOptions {
        jwks_file: Some(config.identity.jwks_file.clone()).filter(|path| !path.as_os_str().is_empty()),
        issuer: config.identity.issuer.clone(),
        audience: config.identity.audience.clone(),
        leeway_s: config.identity.leeway_s,
        dev_key: options.dev_key.clone(),
    })
    .map_err(Error::Key)?;
    let mut gateway = [0; 16];
    getrandom::fill(&mut gateway).map_err(|error| Error::Random(error.to_string()))?;
    let gateway = u128::from_le_bytes(gateway);
    watch_keys(verifier.clone(), config);
    let stats: Vec<Arc<Published>> = (0..shards).map(|_| Arc::default()).collect();
    let refused = Arc::new(Refused::default());
    let counted = refused.clone();
    let published = stats.clone();
    let storage_reason = Arc::new(Mutex::new(String::new()));
    let reason = storage_reason.clone();
    let template = shard_options(&options, shards, gateway);
    let writer_sockets: Arc<[PathBuf]> = options.writer_sockets.clone().into();
    let sockets = writer_sockets.clone();
    let tickets = options.tickets.clone();
    let plane = plane::run(plane_options(&options, shards), move |shard| ChatBrain {
        shard: Shard::new(
            ShardOptions { shard, ..template.clone() },
            Box::new(Keys { verifier: verifier.clone(), tickets: tickets.clone(), refused: counted.clone() }),
            Now::default(),
        ),
        number: shard,
        stats: published[shard as usize].clone(),
        storage_reason: reason.clone(),
        writer_sockets: sockets.clone(),
    })
    .map_err(Error::Start)?;
    let (driver, counters) = (plane.driver(), plane.counters().to_vec());
    let draining = Arc::new(AtomicBool::new(false));
    let monitor = Monitor { driver, stats, counters, draining, storage_reason, writer_sockets, refused };
    Ok(Handle { plane, monitor })
}

/// Reads the issuer's keys again when their file changes.
fn watch_keys(verifier: Verifier, config: &Config) {
    const LOOK: Duration = Duration::from_secs(5);
    if config.identity.jwks_file.as_os_str().is_empty() {
        return;
    }
    let look = move || {
        loop {
            std::thread::sleep(LOOK);
            match verifier.refresh() {
                Ok(true) => tracing::info!("read the issuer's keys again"),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "the issuer's keys stay as they were"),
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("jwks".to_owned()).spawn(look) {
        tracing::warn!(%error, "the issuer's keys are not read again");
    }
}

fn plane_options(options: &Options, shards: u16) -> plane::Options {
    let config = &options.config;
    let sockets = &config.sockets;
    let requests = config.mesh.requests_max.max(1) as usize;
    plane::Options {
        name: "gateway".to_owned(),
        listen: config.listen,
        driver: match config.driver {
            parley_config::Driver::Auto => DriverChoice::Auto,
            parley_config::Driver::Uring => DriverChoice::Uring,
            parley_config::Driver::Epoll => DriverChoice::Epoll,
        },
        shards,
        connections_max: config.connections_max,
        link_paths: options.writer_sockets.clone(),
        mesh: Capacities {
            request: requests,
            answer: requests,
            fanout: config.mesh.fanout_max.max(1) as usize,
            ..Capacities::default()
        },
        pin: config.pin,
        buffers: BufferOptions { count: sockets.buffers.next_power_of_two(), bytes: sockets.buffer_bytes },
        rings: RingOptions {
            connections_max: sockets.ring_connections_max,
            buffers: BufferOptions {
                count: sockets.more_buffers.next_power_of_two(),
                bytes: sockets.more_buffer_bytes,
            },
            poll_after_ms: sockets.poll_after_ms,
            ..RingOptions::default()
        },
        ..plane::Options::default()
    }
}

fn shard_options(options: &Options, shards: u16, gateway: u128) -> ShardOptions {
    let config = &options.config;
    let Config { lobby, session, chat, message, mesh, writer, identity, .. } = config;
    ShardOptions {
        shard: 0,
        shards,
        gateway,
        path: config.path.clone(),
        origins: lobby.origins.clone(),
        lobby_connections_max: lobby.connections_max as usize,
        head_bytes_max: lobby.head_bytes_max,
        handshake_timeout_ms: lobby.handshake_timeout_ms,
        hello_timeout_ms: lobby.hello_timeout_ms,
        heartbeat_timeout_ms: session.heartbeat_timeout_ms,
        heartbeat_interval_ms: session.heartbeat_interval_ms as u32,
        outbox_bytes_max: session.outbox_bytes_max,
        stalled_reader_ms: session.stalled_reader_ms,
        devices_max: session.devices_max as usize,
        hole_wait_ms: session.hole_wait_ms,
        held_items_max: session.held_items_max as usize,
        mark_interval_ms: session.mark_interval_ms,
        sync_backlog_max: session.sync_backlog_max,
        sync_page_entries_max: session.sync_page_entries_max,
        inbox_reads_max: session.inbox_reads_max as usize,
        head_check_interval_ms: session.head_check_interval_ms,
        resume_ttl_ms: session.resume_ttl_s.saturating_mul(1_000),
        expiry_grace_ms: identity.expiry_grace_s.saturating_mul(1_000),
        subscriptions_max: session.subscriptions_max as usize,
        requests_in_flight_max: session.commands_in_flight_max.min(u32::from(u16::MAX)) as u16,
        rate_per_s: chat.rate_per_s,
        rate_burst: chat.rate_burst,
        channel_rate_per_s: chat.channel_rate_per_s,
        channel_rate_burst: chat.channel_rate_burst,
        chats_max: chat.chats_max as usize,
        receipt_interval_ms: chat.receipt_interval_ms,
        receipt_members_max: chat.receipt_members_max as usize,
        head_interval_ms: chat.head_interval_ms,
        payload_bytes_max: message.payload_bytes_max,
        frame_bytes_max: message.frame_bytes_max,
        mesh_requests_max: mesh.requests_max,
        link_writers: options.writer_sockets.len() as u16,
        link_hello_ms: writer.link_hello_ms,
        link_window: writer.link_window_requests as usize,
        link_retry_min_ms: writer.link_retry_min_ms,
        link_retry_max_ms: writer.link_retry_max_ms,
        link_idle_ms: writer.link_idle_ms,
        link_refuse_after_ms: writer.refuse_after_ms,
        reconnect_spread_ms: config.reconnect_spread_ms,
        drain_patience_ms: config.drain_timeout_ms * 7 / 10,
        ..ShardOptions::default()
    }
}

impl Handle {
    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.plane.addr()
    }

    /// The driver that runs.
    pub fn driver(&self) -> DriverKind {
        self.plane.driver()
    }

    /// How many shards run.
    pub fn shards(&self) -> usize {
        self.monitor.stats.len()
    }

    /// What an operator sees of it.
    pub fn monitor(&self) -> Monitor {
        self.monitor.clone()
    }

    /// Whether it can serve.
    pub fn status(&self) -> Status {
        self.monitor.status()
    }

    /// Accept nobody, see everybody off, end after `timeout` at the latest. Does not wait.
    pub fn drain(&self, timeout: Duration) {
        self.monitor.draining.store(true, Ordering::Relaxed);
        self.plane.drain(timeout);
    }

    /// True until all shards have ended.
    pub fn is_running(&self) -> bool {
        self.plane.is_running()
    }

    /// Waits for the end of all shards.
    pub fn wait(self) -> Exit {
        self.plane.join()
    }
}

impl Monitor {
    /// Whether it can serve.
    pub fn status(&self) -> Status {
        const LINK_UP: usize = position("link_up");
        const STORAGE_READY: usize = position("storage_ready");
        if self.draining.load(Ordering::Relaxed) {
            return Status::NotReady("draining".to_owned());
        }
        let down = self.stats.iter().filter(|stats| stats.values[LINK_UP].load(Ordering::Relaxed) == 0).count();
        let refused = self.stats.iter().any(|stats| stats.values[STORAGE_READY].load(Ordering::Relaxed) == 0);
        match down {
            0 if refused => {
                let reason = self.storage_reason.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                Status::NotReady(format!("the storage-writer takes no commands: {reason}"))
            }
            0 => Status::Ready,
            down => {
                let sockets: Vec<_> = self.writer_sockets.iter().map(|socket| socket.display().to_string()).collect();
                let whom = if sockets.len() == 1 { "the storage-writer" } else { "an active storage-writer" };
                Status::NotReady(format!(
                    "{down} of {} shards have no link to {whom} at {}",
                    self.stats.len(),
                    sockets.join(" or ")
                ))
            }
        }
    }

    /// Everything that is counted, in the text format of Prometheus.
    pub fn metrics(&self) -> String {
        let mut text = String::with_capacity(8 << 10);
        let _ = writeln!(text, "# HELP parley_gateway_driver The socket driver that runs.");
        let _ = writeln!(text, "# TYPE parley_gateway_driver gauge");
        let _ = writeln!(text, "parley_gateway_driver{{driver=\"{}\"}} 1", self.driver);
        for (index, (name, kind, help)) in Stats::TABLE.iter().enumerate() {
            let _ = writeln!(text, "# HELP parley_gateway_{name}{help}");
            let _ = writeln!(text, "# TYPE parley_gateway_{name} {kind}");
            for (shard, stats) in self.stats.iter().enumerate() {
                let value = stats.values[index].load(Ordering::Relaxed);
                let _ = writeln!(text, "parley_gateway_{name}{{shard=\"{shard}\"}} {value}");
            }
        }
        refusals::write_rejected(&mut text, self.stats.iter().map(|stats| &stats.rejected));
        self.refused.write(&mut text);
        let planes: Vec<Vec<(&'static str, u64)>> = self
            .counters
            .iter()
            .map(|counters| {
                let mut values = Vec::new();
                counters.each(|name, value| values.push((name, value)));
                values
            })
            .collect();
        let names = planes.first().map(Vec::as_slice).unwrap_or_default();
        for (index, (name, _)) in names.iter().enumerate() {
            let kind = if Counters::is_level(name) { "gauge" } else { "counter" };
            let _ = writeln!(text, "# HELP parley_gateway_plane_{name} Socket plane: {}.", name.replace('_', " "));
            let _ = writeln!(text, "# TYPE parley_gateway_plane_{name} {kind}");
            for (shard, values) in planes.iter().enumerate() {
                let _ = writeln!(text, "parley_gateway_plane_{name}{{shard=\"{shard}\"}} {}", values[index].1);
            }
        }
        text
    }
}

/// The place of a value in [`Stats::TABLE`].
const fn position(name: &str) -> usize {
    let mut index = 0;
    while index < Stats::LEN {
        let (candidate, name) = (Stats::TABLE[index].0.as_bytes(), name.as_bytes());
        let mut byte = 0;
        while byte < name.len() && byte < candidate.len() && candidate[byte] == name[byte] {
            byte += 1;
        }
        if byte == name.len() && byte == candidate.len() {
            return index;
        }
        index += 1;
    }
    panic!("no such value")
}

/// The keys behind tokens and tickets, as the brain asks them.
struct Keys {
    verifier: Verifier,
    tickets: Tickets,
    refused: Arc<Refused>,
}

impl Authority for Keys {
    fn verify_token(&self, token: &str, now: Now, peer_is_loopback: bool) -> Result<Identity, String> {
        let claims = self.verifier.verify(token, now.unix_ms / 1_000, peer_is_loopback).map_err(|error| {
            self.refused.token(error);
            format!("the token is not accepted: {error}")
        })?;
        Ok(Identity {
            issuer: claims.issuer,
            subject: claims.subject,
            name: claims.name,
            expires_at_ms: claims.expires_at_ms,
            service: claims.service,
            development: claims.development,
        })
    }

    fn issue_ticket(&self, ticket: &CoreTicket) -> String {
        self.tickets.issue(&Ticket {
            user_id: ticket.user_id,
            device_id: ticket.device_id,
            name: ticket.name.clone(),
            expires_at_ms: ticket.expires_at_ms,
            loopback_only: ticket.development,
        })
    }

    fn verify_ticket(&self, text: &str, device_id: DeviceId, now: Now, peer_is_loopback: bool) -> Option<CoreTicket> {
        let ticket = self.tickets.verify(text, device_id, now.unix_ms, peer_is_loopback);
        let ticket = ticket.inspect_err(|error| self.refused.ticket(*error)).ok()?;
        Some(CoreTicket {
            user_id: ticket.user_id,
            device_id: ticket.device_id,
            name: ticket.name,
            expires_at_ms: ticket.expires_at_ms,
            development: ticket.loopback_only,
        })
    }
}

/// The shard's brain, with its numbers shown to other threads after every turn and its link in the log.
struct ChatBrain {
    shard: Shard,
    number: u16,
    stats: Arc<Published>,
    storage_reason: Arc<Mutex<String>>,
    writer_sockets: Arc<[PathBuf]>,
}

impl ChatBrain {
    fn writer_socket(&self) -> String {
        let socket = self.writer_sockets.get(usize::from(self.shard.link_writer()));
        socket.map(|socket| socket.display().to_string()).unwrap_or_default()
    }
}

type Out = Outputs<Mesh, Seat>;

impl Brain for ChatBrain {
    type Mesh = Mesh;
    type Seat = Seat;

    fn handle_accept(&mut self, now: Now, conn: ConnId, peer: SocketAddr, out: &mut Out) {
        self.shard.handle_accept(now, conn, peer, out);
    }

    fn handle_data(&mut self, now: Now, conn: ConnId, data: &mut [u8], out: &mut Out) {
        self.shard.handle_data(now, conn, data, out);
    }

    fn handle_sent(&mut self, now: Now, conn: ConnId, bytes: usize, queued: usize, out: &mut Out) {
        self.shard.handle_sent(now, conn, bytes, queued, out);
    }

    fn handle_closed(&mut self, now: Now, conn: ConnId, out: &mut Out) {
        self.shard.handle_closed(now, conn, out);
    }

    fn handle_seated(&mut self, now: Now, conn: ConnId, seat: Seat, out: &mut Out) {
        self.shard.handle_seated(now, conn, seat, out);
    }

    fn handle_mesh(&mut self, now: Now, from: u16, message: Mesh, out: &mut Out) {
        self.shard.handle_mesh(now, from, message, out);
    }

    fn handle_mesh_full(&mut self, now: Now, shard: u16, message: Mesh, out: &mut Out) {
        self.shard.handle_mesh_full(now, shard, message, out);
    }

    fn handle_link_up(&mut self, now: Now, out: &mut Out) {
        self.shard.handle_link_up(now, out);
    }

    fn handle_link_data(&mut self, now: Now, data: &mut [u8], out: &mut Out) {
        let was_ready = self.shard.is_ready();
        let could_store = self.shard.stats.storage_ready;
        self.shard.handle_link_data(now, data, out);
        if could_store != self.shard.stats.storage_ready {
            let reason = self.shard.storage_reason();
            reason.clone_into(&mut self.storage_reason.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
            if !reason.is_empty() {
                tracing::warn!(shard = self.number, "the storage-writer takes no commands: {reason}");
            }
        }
        if !was_ready && self.shard.is_ready() {
            tracing::info!(shard = self.number, "the link to the storage-writer at {} is open", self.writer_socket());
        }
    }

    fn handle_link_down(&mut self, now: Now, out: &mut Out) {
        if self.shard.is_ready() {
            let socket = self.writer_socket();
            tracing::warn!(shard = self.number, "the link to the storage-writer at {socket} is down; trying again");
        }
        self.shard.handle_link_down(now, out);
    }

    fn handle_timer(&mut self, now: Now, out: &mut Out) {
        let was_ready = self.shard.is_ready();
        self.shard.handle_timer(now, out);
        if was_ready && !self.shard.is_ready() {
            let socket = self.writer_socket();
            tracing::warn!(shard = self.number, "the storage-writer at {socket} says nothing; its link is given up");
        }
    }

    fn next_timer(&self) -> Option<u64> {
        for (slot, value) in self.stats.values.iter().zip(self.shard.stats.values()) {
            slot.store(value, Ordering::Relaxed);
        }
        let rejected = &self.shard.stats.rejected;
        if self.stats.rejected_total.load(Ordering::Relaxed) != rejected.total() {
            self.stats.rejected_total.store(rejected.total(), Ordering::Relaxed);
            for (slot, value) in self.stats.rejected.iter().zip(rejected.values()) {
                slot.store(*value, Ordering::Relaxed);
            }
        }
        self.shard.next_timer()
    }

    fn handle_drain(&mut self, now: Now, out: &mut Out) {
        self.shard.handle_drain(now, out);
    }

    fn is_drained(&self) -> bool {
        self.shard.is_drained()
    }
}
