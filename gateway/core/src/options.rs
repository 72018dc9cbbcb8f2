//! What a shard is told at its start: its place, and every bound. The shell fills it from the configuration.

/// Bounds and intervals of one shard. Durations in milliseconds, sizes in bytes.
#[derive(Clone, Debug)]
pub struct Options {
    /// This shard's number.
    pub shard: u16,
    /// How many shards the gateway has.
    pub shards: u16,
    /// A random number of this gateway process.
    pub gateway: u128,
    /// The one path that is served.
    pub path: String,
    /// Origins that browsers may come from; `*` allows all. Requests without an Origin come from tools and pass.
    pub origins: Vec<String>,
    /// Connections that have no session yet.
    pub lobby_connections_max: usize,
    /// The head of an upgrade.
    pub head_bytes_max: usize,
    /// From accept to the end of the upgrade.
    pub handshake_timeout_ms: u64,
    /// From the upgrade to the session.
    pub hello_timeout_ms: u64,
    /// Silence after which a client is dead.
    pub heartbeat_timeout_ms: u64,
    /// What clients are told to keep to.
    pub heartbeat_interval_ms: u32,
    /// Bytes queued for one client before live entries are dropped.
    pub outbox_bytes_max: usize,
    /// A client that takes nothing for so long while bytes wait is closed.
    pub stalled_reader_ms: u64,
    /// Devices of one user at a time.
    pub devices_max: usize,
    /// How long a hole in a stream may be filled by items that are on their way.
    pub hole_wait_ms: u64,
    /// Items that a session holds behind a hole.
    pub held_items_max: usize,
    /// Marks are sent at most so often.
    pub mark_interval_ms: u64,
    /// A longer backlog is truncated.
    pub sync_backlog_max: u64,
    /// Entries of one page of an inbox.
    pub sync_page_entries_max: u32,
    /// Inbox reads under way at a time.
    pub inbox_reads_max: usize,
    /// Every session compares its position with the head so often.
    pub head_check_interval_ms: u64,
    /// A resume ticket holds so long.
    pub resume_ttl_ms: u64,
    /// A token may be renewed so long after its expiry.
    pub expiry_grace_ms: u64,
    /// Chats that a session looks at.
    pub subscriptions_max: usize,
    /// Requests of one session without an answer.
    pub requests_in_flight_max: u16,
    /// What a session whose frame waits may send ahead before its socket is not read any more. Waiting is short and most
    /// clients send little: stopping to read, and starting again, costs more than keeping a few frames.
    pub ahead_bytes_pause: usize,
    /// What it may send ahead at the most: the shell had read more already when it heard of the pause. A client that
    /// sends more than this beyond its `requests_in_flight_max` is closed.
    pub ahead_bytes_max: usize,
    /// Commands a second of one session, in the long run.
    pub rate_per_s: u32,
    /// Commands of one session at once.
    pub rate_burst: u32,
    /// Messages a second of one channel, of all its members together, in the long run.
    pub channel_rate_per_s: u32,
    /// Messages of one channel at once.
    pub channel_rate_burst: u32,
    /// Chat homes kept in memory.
    pub chats_max: usize,
    /// Marks of a chat are stored and shown at most so often.
    pub receipt_interval_ms: u64,
    /// Receipts are sent in chats up to this size.
    pub receipt_members_max: usize,
    /// Heads of large chats are told at most so often.
    pub head_interval_ms: u64,
    /// Payload of a message.
    pub payload_bytes_max: usize,
    /// A frame from a client.
    pub frame_bytes_max: usize,
    /// Whole frames that wait beside a stream for one to travel with: above so many bytes they are dropped.
    pub beside_bytes_max: usize,
    /// Users to nudge that are remembered one by one, per shard that had no room; above it, everybody is nudged.
    pub owed_users_max: usize,
    /// Sessions looked at in one step of a nudge to everybody.
    pub nudge_step_sessions: u32,
    /// Open requests from this shard to each home shard.
    pub mesh_requests_max: u32,
    /// Writers to link to, one of which is active; tried in turn.
    pub link_writers: u16,
    /// With several writers: a hello without an answer for so long means that the next one is tried.
    pub link_hello_ms: u64,
    /// Requests sent on the link without an answer.
    pub link_window: usize,
    /// First and longest pause before the link is connected again.
    pub link_retry_min_ms: u64,
    /// See `link_retry_min_ms`.
    pub link_retry_max_ms: u64,
    /// Silence of a link with open requests after which it is taken for dead.
    pub link_idle_ms: u64,
    /// Reconnects of a drain are spread over this.
    pub reconnect_spread_ms: u64,
    /// A link that is away for so long: what was never sent on it is refused, to be sent again later, and does not wait.
    pub link_refuse_after_ms: u64,
    /// Sessions are closed this long after a drain began, answered or not.
    pub drain_patience_ms: u64,
}

impl Default for Options {
    /// The shipped configuration on one shard.
    fn default() -> Self {
        Self {
            shard: 0,
            shards: 1,
            gateway: 1,
            path: "/ws".to_owned(),
            origins: Vec::new(),
            lobby_connections_max: 1024,
            head_bytes_max: 8192,
            handshake_timeout_ms: 10_000,
            hello_timeout_ms: 10_000,
            heartbeat_timeout_ms: 60_000,
            heartbeat_interval_ms: 25_000,
            outbox_bytes_max: 256 * 1024,
            stalled_reader_ms: 30_000,
            devices_max: 16,
            hole_wait_ms: 200,
            held_items_max: 64,
            mark_interval_ms: 1_000,
            sync_backlog_max: 10_000,
            sync_page_entries_max: 256,
            inbox_reads_max: 256,
            head_check_interval_ms: 300_000,
            resume_ttl_ms: 86_400_000,
            expiry_grace_ms: 30_000,
            subscriptions_max: 64,
            requests_in_flight_max: 256,
            ahead_bytes_pause: 8 << 10,
            ahead_bytes_max: 1 << 20,
            rate_per_s: 1_000,
            rate_burst: 2_000,
            channel_rate_per_s: 100,
            channel_rate_burst: 200,
            chats_max: 200_000,
            receipt_interval_ms: 1_000,
            receipt_members_max: 100,
            head_interval_ms: 2_000,
            payload_bytes_max: 16 * 1024,
            frame_bytes_max: 64 * 1024,
            beside_bytes_max: 16 << 10,
            owed_users_max: 10_000,
            nudge_step_sessions: 256,
            mesh_requests_max: 4096,
            link_writers: 1,
            link_hello_ms: 1_000,
            link_window: 16_384,
            link_retry_min_ms: 50,
            link_retry_max_ms: 2_000,
            link_idle_ms: 10_000,
            link_refuse_after_ms: 2_000,
            reconnect_spread_ms: 2_000,
            drain_patience_ms: 7_000,
        }
    }
}
