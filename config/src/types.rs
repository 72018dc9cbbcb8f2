//! The runtime types of both configurations: valid by construction, since only `layers` makes them. Units are in the
//! names; the words on each field are those of the shipped files.

use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Which socket driver serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// uring where it works, else epoll.
    Auto,
    /// io_uring.
    Uring,
    /// epoll.
    Epoll,
}

/// Which engine stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// On the local disk.
    Embedded,
    /// On a cluster of ScyllaDB or Cassandra.
    Scylla,
}

/// ScyllaDB's tablets of a keyspace that is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tablets {
    /// The cluster's choice; the only one that Cassandra understands.
    Default,
    /// With.
    On,
    /// Without: needed where lightweight transactions do not work with them.
    Off,
}

/// How a line of log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// From which level on lines are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// What needs someone.
    Error,
    /// What may need someone soon.
    Warn,
    /// What an operator wants to know.
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

impl Level {
    /// As the configuration spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
            Level::Trace => "trace",
        }
    }
}

/// The gateway's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// Address of the WebSocket endpoint. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// HTTP path of the WebSocket endpoint.
    pub path: String,
    /// Address of /healthz, /readyz and /metrics. Never expose it: it asks for no token.
    pub admin: SocketAddr,
    /// Socket driver: "uring" (Linux 6.12 or newer), "epoll", or "auto" (uring where it works, else epoll).
    pub driver: Driver,
    /// Shards, each a thread with its own connections. 0 = one per core.
    pub shards: u16,
    /// Pin each shard to a core.
    pub pin: bool,
    /// Connections of one shard, with or without a session. With epoll the limit of open files lowers it.
    pub connections_max: u32,
    /// Milliseconds from SIGTERM to the end, at most.
    pub drain_timeout_ms: u64,
    /// Milliseconds over which a drain spreads the reconnects of its clients. At most drain_timeout_ms.
    pub reconnect_spread_ms: u64,
    /// `[writer]`
    pub writer: WriterLink,
    /// `[lobby]`
    pub lobby: Lobby,
    /// `[sockets]`
    pub sockets: Sockets,
    /// `[session]`
    pub session: Session,
    /// `[chat]`
    pub chat: Chat,
    /// `[message]`
    pub message: Message,
    /// `[mesh]`
    pub mesh: Mesh,
    /// `[identity]`
    pub identity: Identity,
    /// `[log]`
    pub log: Log,
}

/// The link to the active storage-writer, one per shard.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriterLink {
    /// Paths of the storage-writers' Unix sockets; one of them is active. [] = writer.sock in the data directory.
    pub sockets: Vec<PathBuf>,
    /// Milliseconds that one of several storage-writers may take to answer a new link, at first.
    pub link_hello_ms: u64,
    /// Requests of one link without an answer.
    pub link_window_requests: u32,
    /// Milliseconds before a lost link is first tried again.
    pub link_retry_min_ms: u64,
    /// Milliseconds between later tries, at most.
    pub link_retry_max_ms: u64,
    /// Milliseconds of silence after which a link with requests in flight is taken for dead.
    pub link_idle_ms: u64,
    /// Milliseconds that a lost link may be away before what was not sent on it yet is refused.
    pub refuse_after_ms: u64,
}

/// Connections that have no session yet.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lobby {
    /// Connections of one shard's lobby; more are refused.
    pub connections_max: u32,
    /// Bytes of the HTTP head of an upgrade.
    pub head_bytes_max: usize,
    /// Milliseconds from accept to the end of the upgrade.
    pub handshake_timeout_ms: u64,
    /// Milliseconds from the upgrade to an accepted Hello.
    pub hello_timeout_ms: u64,
    /// Origins that browsers may come from, such as `https://chat.example.com`. None given: no browser; `*`: all.
    /// Requests without an Origin header come from tools and pass.
    pub origins: Vec<String>,
}

/// The rings of the uring driver.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sockets {
    /// Connections of one ring. Lowered to a power of two and to the limit of open files.
    pub ring_connections_max: u32,
    /// Receive buffers of a shard's first ring. Raised to a power of two.
    pub buffers: u16,
    /// Bytes of each of them.
    pub buffer_bytes: u32,
    /// Receive buffers of each further ring. Raised to a power of two.
    pub more_buffers: u16,
    /// Bytes of each of them.
    pub more_buffer_bytes: u32,
    /// Milliseconds without a byte after which an active connection is polled again. 0 = never.
    pub poll_after_ms: u64,
}

/// A seated device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// Milliseconds without a byte after which a client is dead. Above heartbeat_interval_ms.
    pub heartbeat_timeout_ms: u64,
    /// Milliseconds of own silence after which a client is told to ping.
    pub heartbeat_interval_ms: u64,
    /// Bytes queued for one client; above, live entries are dropped and read again later. At least message.frame_bytes_max.
    pub outbox_bytes_max: usize,
    /// Milliseconds after which a client that takes nothing is closed, resumably.
    pub stalled_reader_ms: u64,
    /// Devices of one user at a time.
    pub devices_max: u32,
    /// Milliseconds that a hole in a stream may take to fill before it is read from the inbox.
    pub hole_wait_ms: u64,
    /// Entries held behind a hole.
    pub held_items_max: u32,
    /// Milliseconds between two marks of a stream, at least.
    pub mark_interval_ms: u64,
    /// Inbox entries behind which a device is told to start over (truncated).
    pub sync_backlog_max: u64,
    /// Inbox entries of one page.
    pub sync_page_entries_max: u32,
    /// Inbox reads of one shard at a time.
    pub inbox_reads_max: u32,
    /// Milliseconds between comparisons of each stream with its inbox's head.
    pub head_check_interval_ms: u64,
    /// Seconds that a resume ticket holds.
    pub resume_ttl_s: u64,
    /// Chats that one session watches at a time.
    pub subscriptions_max: u32,
    /// Commands of one session without an answer.
    pub commands_in_flight_max: u32,
}

/// Chats.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chat {
    /// Members up to which every event goes to every member's inbox. The same in storage-writer.toml.
    pub inbox_fanout_members_max: u32,
    /// Members of a group. The same in storage-writer.toml.
    pub group_members_max: u32,
    /// Milliseconds between two rounds of receipts of one chat, at least.
    pub receipt_interval_ms: u64,
    /// Members above which receipts are counted on demand only.
    pub receipt_members_max: u32,
    /// Milliseconds between two head notices of a chat above inbox_fanout_members_max, at least.
    pub head_interval_ms: u64,
    /// Chats that one shard keeps in memory.
    pub chats_max: u32,
    /// Commands a second of one session, in the long run.
    pub rate_per_s: u32,
    /// Commands of one session at once. At least rate_per_s.
    pub rate_burst: u32,
    /// Messages a second of one channel, of all its members together, in the long run.
    pub channel_rate_per_s: u32,
    /// Messages of one channel at once. At least channel_rate_per_s.
    pub channel_rate_burst: u32,
}

/// Messages and frames.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Bytes of a message's payload, at most 262144. The same in storage-writer.toml.
    pub payload_bytes_max: usize,
    /// Bytes of a frame from a client. At least 4/3 of payload_bytes_max (base64 in JSON) and 8192 more; at most
    /// 1048576, because the protocol decodes no larger frame.
    pub frame_bytes_max: usize,
}

/// Between the shards.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mesh {
    /// Requests from one shard to another without an answer.
    pub requests_max: u32,
    /// Fan-out messages from one shard to another that wait.
    pub fanout_max: u32,
}

/// Who may log in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// "iss" that a token must name. "" = none but the development key.
    pub issuer: String,
    /// "aud" that a token must name.
    pub audience: String,
    /// Path of the JWKS with the issuer's EdDSA keys. "" = none but the development key.
    pub jwks_file: PathBuf,
    /// Seconds that clocks may differ.
    pub leeway_s: u64,
    /// Seconds from a token's expiry until its connection is closed.
    pub expiry_grace_s: u64,
    /// Path of the development key, accepted on loopback only. "" = dev-key.json in the data directory.
    pub dev_key_file: PathBuf,
    /// Path of the key that signs resume tickets. "" = ticket.key in the data directory.
    pub ticket_key_file: PathBuf,
}

/// Logs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// "text" or "json".
    pub format: LogFormat,
    /// "error", "warn", "info", "debug" or "trace".
    pub level: Level,
}

/// The storage-writer's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageWriter {
    /// Directory of everything that lasts.
    pub data: PathBuf,
    /// Path of the Unix socket for gateways. "" = writer.sock in the data directory.
    pub socket: PathBuf,
    /// Address of /healthz, /readyz and /metrics. Never expose it: it asks for no token.
    pub admin: SocketAddr,
    /// Engine: "embedded" (this machine's disk) or "scylla" (a cluster of ScyllaDB or Cassandra).
    pub store: Engine,
    /// Number of this writer in its ids, 0 to 1023. Writers of one cluster that take over from each other may share it:
    /// one is active, and ids begin above what the one before had reserved. Writers of different stores may not.
    pub worker: u16,
    /// `[commit]`
    pub commit: Commit,
    /// `[readers]`
    pub readers: Readers,
    /// `[embedded]`
    pub embedded: Embedded,
    /// `[scylla]`
    pub scylla: Scylla,
    /// `[limits]`
    pub limits: Limits,
    /// `[log]`
    pub log: Log,
}

/// Group commit: what waits is committed together.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    /// Commands of one batch.
    pub batch_commands_max: u32,
    /// Bytes of one batch. At least 4 * limits.payload_bytes_max.
    pub batch_bytes_max: usize,
}

/// Reads: sync, history, heads.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Readers {
    /// Threads. With store = "scylla" at least 16: each waits for the cluster most of its time.
    pub threads: u16,
    /// Reads that wait; more are refused.
    pub queue_max: u32,
}

/// The embedded engine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embedded {
    /// Bytes of the block cache.
    pub cache_bytes: usize,
    /// Bytes of one keyspace's memtable before it is written out.
    pub memtable_bytes: usize,
    /// Bytes of journal on disk before memtables are written out. A start reads, copies and syncs as much.
    pub journal_bytes_max: usize,
    /// Bytes that must stay free on the disk: below, nothing is acknowledged until there is room again.
    pub disk_reserve_bytes: u64,
}

/// The cluster, with store = "scylla".
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scylla {
    /// Nodes that are asked first, host:port; the others are learned from them.
    pub contact_points: Vec<String>,
    /// Keyspace of the tables.
    pub keyspace: String,
    /// User that logs in. "" = none.
    pub user: String,
    /// Path of the file with the user's password.
    pub password_file: PathBuf,
    /// Path of the certificates (PEM) of who signs the nodes' certificates. "" = connections are not encrypted.
    pub tls_ca: PathBuf,
    /// Datacenter whose nodes are asked first. "" = any. Quorums are always those of the whole cluster.
    pub datacenter: String,
    /// Replication of a keyspace that is created, in CQL. "" = three copies, or one where there are fewer than three
    /// nodes.
    pub replication: String,
    /// Tablets of a keyspace that is created. ScyllaDB only.
    pub tablets: Tablets,
    /// Options of tables instead of their own, such as "events.compaction = {'class': 'UnifiedCompactionStrategy'}".
    pub table_options: Vec<String>,
    /// Milliseconds that a renewal of the lease holds: who takes over from a dead writer waits for two of them.
    pub lease_ms: u32,
    /// Milliseconds until the outcome of a request is called unknown and the request is repeated.
    pub request_timeout_ms: u64,
    /// Statements in flight below which the limit does not fall, however slow the cluster is. At most in_flight_max.
    pub in_flight_min: usize,
    /// Statements in flight above which the limit does not rise.
    pub in_flight_max: usize,
}

/// What the log enforces, and what it keeps in memory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Members of a group. The same in gateway.toml.
    pub group_members_max: u32,
    /// Members of a channel, at most 100000.
    pub channel_members_max: u32,
    /// Members up to which every event goes to every member's inbox. The same in gateway.toml.
    pub inbox_fanout_members_max: u32,
    /// Bytes of a message's payload, at most 262144. The same in gateway.toml.
    pub payload_bytes_max: usize,
    /// Chats kept in memory.
    pub chats_cached_max: u32,
    /// Users kept in memory.
    pub users_cached_max: u32,
    /// Members of channels kept in memory, of all channels together: about 300 bytes each.
    pub channel_members_cached_max: u32,
}
