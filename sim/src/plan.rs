//! What a seed means: sizes, limits, what people do how often, and what breaks how often. A plan can be narrowed by hand
//! and by the shrinker; a narrowed plan is written as command-line options.

use crate::random::Rng;
use gateway_core::options::Options as GatewayOptions;
use std::fmt;
use storage_core::cql::engine::EngineOptions;
use storage_core::cql::limit::LimitOptions;
use storage_core::reads::ReadOptions;

/// How big queues, buffers and batches are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// Rooms that a small deployment would have.
    Default,
    /// Queues of 4, batches of 2, buffers of a few hundred bytes: every overflow path runs.
    Tiny,
}

/// Where writers keep everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// A disk, held by one writer at a time.
    Local,
    /// A CQL cluster of three replicas, with a lease that writers take turns with.
    Cluster,
}

macro_rules! names {
    ($(#[$meta:meta])* $enum:ident { $($(#[doc = $doc:literal])* $variant:ident = $name:literal, $level:expr;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $enum {
            $($(#[doc = $doc])* $variant,)*
        }

        impl $enum {
            /// All of them, in order.
            pub const ALL: &[$enum] = &[$($enum::$variant),*];
            /// What each is drawn up to, in order.
            const LEVELS: &[u32] = &[$($level),*];

            /// The name on the command line.
            pub fn name(self) -> &'static str {
                match self { $($enum::$variant => $name),* }
            }

            /// The one with this name.
            pub fn from_name(name: &str) -> Option<$enum> {
                $enum::ALL.iter().copied().find(|one| one.name() == name)
            }
        }

        impl fmt::Display for $enum {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

names! {
    /// What people do; each with a weight.
    Action {
        /// A device that is away comes online.
        Connect = "connect", 60;
        /// A device goes, and says so.
        Disconnect = "disconnect", 20;
        /// A device goes without a word: neither end hears of it.
        HalfOpen = "half-open", 8;
        /// A device loses what it stored after its last mark.
        DeviceCrash = "device-crash", 8;
        /// A user begins to use another device.
        NewDevice = "new-device", 6;
        /// A message to one other.
        SendDirect = "send-direct", 200;
        /// A message to a group.
        SendGroup = "send-group", 250;
        /// A command that has no answer yet is sent again.
        Retry = "retry", 20;
        /// A new group.
        Create = "create", 15;
        /// Members are added.
        Add = "add", 30;
        /// A member is removed.
        Remove = "remove", 25;
        /// Somebody gets another role.
        GiveRole = "give-role", 15;
        /// Another title.
        Rename = "rename", 10;
        /// Somebody leaves.
        Leave = "leave", 15;
        /// Events are confirmed.
        Delivered = "delivered", 50;
        /// Events are read.
        Read = "read", 80;
        /// A chat is muted.
        Mute = "mute", 10;
        /// A page of a log.
        History = "history", 30;
        /// One's chats.
        Chats = "chats", 20;
        /// A group's members.
        Members = "members", 10;
        /// Looks at a chat.
        Subscribe = "subscribe", 20;
        /// Looks away.
        Unsubscribe = "unsubscribe", 10;
        /// A sign of life.
        Ping = "ping", 20;
        /// Asks for what is other people's.
        Trespass = "trespass", 20;
        /// Presents a mark that it was never issued: above its inbox.
        ForgedMark = "forged-mark", 2;
        /// A new channel. From here on: in runs with channels only.
        CreateChannel = "create-channel", 12;
        /// Somebody comes into a channel.
        Join = "join", 60;
    }
}

names! {
    /// What breaks. Some strike now and then, by weight; some are the chance, in a thousand, of each step of their kind.
    Fault {
        /// Bytes of a connection take long. A chance.
        Delay = "delay", 60;
        /// Links run at their own pace, so that what they carry overtakes each other. A chance.
        Reorder = "reorder", 150;
        /// Writes arrive in pieces. A chance.
        Split = "split", 200;
        /// A command is sent twice in a row. A chance.
        Duplication = "duplication", 120;
        /// A device takes nothing for a while.
        SlowConsumer = "slow-consumer", 15;
        /// A client's connection breaks.
        CutConnection = "cut-connection", 20;
        /// A link breaks.
        CutLink = "cut-link", 15;
        /// A shard takes no turn for a while.
        StallShard = "stall-shard", 15;
        /// The queues between shards take no fan-out for a while.
        FullMesh = "full-mesh", 15;
        /// A gateway stops, longer than every timeout, and goes on.
        StopGateway = "stop-gateway", 5;
        /// A gateway dies, and another is started.
        CrashGateway = "crash-gateway", 6;
        /// A second gateway is started, and takes over while the first lives on.
        Takeover = "takeover", 6;
        /// A gateway is told to end.
        DrainGateway = "drain-gateway", 4;
        /// The writer stops for a while.
        StallWriter = "stall-writer", 8;
        /// The writer dies before its next commit reaches the disk.
        CrashBeforeCommit = "crash-before-commit", 4;
        /// The writer dies while the disk works on a commit.
        CrashDuringCommit = "crash-during-commit", 6;
        /// The writer dies when a commit is on the disk, before it hears so.
        CrashAfterCommit = "crash-after-commit", 4;
        /// What was not synced is lost with a crash, or the end of it. A chance, of each group.
        LostUnsynced = "lost-unsynced", 900;
        /// Another writer takes the store over while the first lives on.
        ReplaceWriter = "replace-writer", 5;
        /// A sync fails.
        SyncError = "sync-error", 4;
        /// The disk is full for a while.
        DiskFull = "disk-full", 5;
        /// A group fails. A chance.
        FailedCommit = "failed-commit", 30;
        /// The outcome of a group is not told; it is applied late. A chance.
        UnknownOutcome = "unknown-outcome", 60;
        /// The disk takes long. A chance.
        SlowDisk = "slow-disk", 60;
        /// The calendar of a process steps, forwards or backwards.
        ClockStep = "clock-step", 6;
        /// Calendars of processes are apart. A chance, of each start.
        ClockSkew = "clock-skew", 900;
        /// A replica of the cluster goes, and comes back. From here on: on a cluster only.
        ReplicaDown = "replica-down", 20;
        /// What replicas still have to get does not arrive for a while.
        LateWrites = "late-writes", 12;
        /// The active writer stops in order, and gives its lease back.
        GiveBack = "give-back", 4;
        /// An answer about the lease is lost, or the change takes effect later. A chance.
        LostLease = "lost-lease", 150;
        /// A write reaches a replica long after everybody gave it up. A chance.
        LateWrite = "late-write", 60;
        /// Boot-time clocks of writers run fast or slow, by a twentieth at the most. A chance, of each start.
        ClockRate = "clock-rate", 900;
    }
}

/// A plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where all randomness comes from.
    pub seed: u64,
    /// Events that happen before faults stop and everything has to come to rest.
    pub ticks: u64,
    /// How big things are.
    pub preset: Preset,
    /// Where writers keep everything.
    pub store: Store,
    /// People.
    pub users: u32,
    /// Shards of a gateway.
    pub shards: u16,
    /// Between two actions of anybody, microseconds.
    pub action_interval_us: u64,
    /// Between two strikes of faults, microseconds.
    pub fault_interval_us: u64,
    /// The slow comparison with the head runs; without it, nudges have to do it all.
    pub sweep: bool,
    /// Bytes of a message at the most.
    pub payload_bytes: u64,
    /// By [`Action`].
    pub actions: Vec<u32>,
    /// By [`Fault`].
    pub faults: Vec<u32>,
}

/// Faults from here on have to do with a cluster only; those before mean the same with every store.
const FAULTS_ON_ANY: usize = Fault::ReplicaDown as usize;
/// Actions from here on are of runs with channels; those before mean the same in every run.
const ACTIONS_OF_ALL: usize = Action::CreateChannel as usize;
/// In a thousand seeds: those with channels.
const WITH_CHANNELS: u32 = 300;
/// In a thousand seeds: those on a cluster.
const ON_A_CLUSTER: u32 = 400;

impl Plan {
    /// Events of a run, unless told otherwise.
    pub const TICKS: u64 = 12_000;

    /// What a seed means. Every run leaves out some actions and faults, so that others have room (Groce et al., Swarm
    /// Testing, 2012).
    pub fn new(seed: u64, ticks: u64, preset: Option<Preset>) -> Plan {
        let mut rng = Rng::new(seed, 0);
        // A stream of its own: what a seed means with one store does not depend on what others need.
        let mut cluster = Rng::new(seed, 6);
        let store = if cluster.chance(ON_A_CLUSTER) { Store::Cluster } else { Store::Local };
        let drawn = if rng.chance(400) { Preset::Tiny } else { Preset::Default };
        let quiet = rng.chance(100);
        let mut draw = |levels: &[u32], leave_out: u32| -> Vec<u32> {
            let one = |level: &u32| if rng.chance(leave_out) { 0 } else { 1 + rng.below(u64::from(*level)) as u32 };
            levels.iter().map(one).collect()
        };
        let mut actions = draw(&Action::LEVELS[..ACTIONS_OF_ALL], 250);
        let mut faults = draw(&Fault::LEVELS[..FAULTS_ON_ANY], if quiet { 1_000 } else { 500 });
        // Without these nothing at all would happen.
        for action in [Action::Connect, Action::SendDirect, Action::SendGroup, Action::Create] {
            actions[action as usize] = actions[action as usize].max(Action::LEVELS[action as usize] / 4);
        }
        let mut channels = Rng::new(seed, 7);
        let there = channels.chance(WITH_CHANNELS);
        for level in &Action::LEVELS[ACTIONS_OF_ALL..] {
            let drawn = level / 4 + channels.below(u64::from(*level)) as u32;
            actions.push(if there { drawn } else { 0 });
        }
        for level in &Fault::LEVELS[FAULTS_ON_ANY..] {
            let none = quiet || cluster.chance(400);
            let drawn = 1 + cluster.below(u64::from(*level)) as u32;
            faults.push(if none { 0 } else { drawn });
        }
        let users =
            [3, 6, 12, 30, 120, 300][rng.below(if preset.unwrap_or(drawn) == Preset::Tiny { 4 } else { 6 }) as usize];
        Plan {
            seed,
            ticks,
            preset: preset.unwrap_or(drawn),
            store,
            users: users + rng.below(u64::from(users)) as u32 / 2,
            shards: [1, 2, 2, 3, 4][rng.below(5) as usize],
            action_interval_us: [200, 1_000, 4_000][rng.below(3) as usize],
            fault_interval_us: [5_000, 20_000, 80_000, 400_000][rng.below(4) as usize],
            sweep: rng.chance(500),
            payload_bytes: [20, 20, 300, 2_000][rng.below(4) as usize],
            actions,
            faults,
        }
    }

    pub(crate) fn fault(&self, fault: Fault) -> u32 {
        self.faults[fault as usize]
    }

    /// Room for one fan-out, or any other class, between two shards.
    pub(crate) fn mesh_room(&self) -> usize {
        if self.is_tiny() { 4 } else { 256 }
    }

    /// Bytes that the kernel holds of one connection.
    pub(crate) fn socket_bytes(&self) -> usize {
        if self.is_tiny() { 300 } else { 16 * 1024 }
    }

    /// Bytes that a shell reads of a connection before its shard's answer is carried out, mostly.
    pub(crate) fn read_bytes(&self) -> usize {
        if self.is_tiny() { 256 } else { 64 * 1024 }
    }

    /// Events of one page of history that clients ask for.
    pub(crate) fn page(&self) -> u32 {
        if self.is_tiny() { 3 } else { 40 }
    }

    pub(crate) fn on_cluster(&self) -> bool {
        self.store == Store::Cluster
    }

    /// Processes that may write: on a cluster one of them is active.
    pub(crate) fn writers(&self) -> u16 {
        if self.on_cluster() { 2 + (self.seed % 2) as u16 } else { 1 }
    }

    /// How long a renewal of the lease holds, milliseconds.
    pub(crate) fn lease_ms(&self) -> u32 {
        [100, 150, 300][(self.seed / 2 % 3) as usize]
    }

    /// Options of the engine over a cluster.
    pub(crate) fn engine_options(&self) -> EngineOptions {
        let tiny = self.is_tiny();
        EngineOptions {
            set: 0,
            unknown_after_ms: 200,
            limit: LimitOptions { min: 4, initial: if tiny { 8 } else { 32 }, max: 128 },
            retry_first_ms: 2,
            retry_last_ms: 50,
            retries_free_a_second: 200,
            work_keys_max: if tiny { 4 } else { 64 },
            work_age_ms: if tiny { 50 } else { 500 },
            chats_known_max: if tiny { 3 } else { 60 },
            names_known_max: if tiny { 30 } else { 2_000 },
        }
    }

    pub(crate) fn is_tiny(&self) -> bool {
        self.preset == Preset::Tiny
    }

    /// Chats of more members leave no entries.
    pub fn inbox_fanout_members_max(&self) -> usize {
        if self.is_tiny() { 4 } else { 6 }
    }

    pub(crate) fn group_members_max(&self) -> usize {
        if self.is_tiny() { 7 } else { 12 }
    }

    pub(crate) fn channel_members_max(&self) -> usize {
        if self.is_tiny() { 5 } else { 40 }
    }

    /// Options of a gateway's shards. Seconds of a deployment are tenths here.
    pub(crate) fn gateway_options(&self, gateway: u128, shard: u16) -> GatewayOptions {
        let options = GatewayOptions {
            shard,
            shards: self.shards,
            gateway,
            handshake_timeout_ms: 1_000,
            hello_timeout_ms: 2_000,
            heartbeat_timeout_ms: 4_000,
            heartbeat_interval_ms: 1_500,
            stalled_reader_ms: 2_000,
            hole_wait_ms: 40,
            mark_interval_ms: 100,
            sync_backlog_max: 60,
            head_check_interval_ms: if self.sweep { 4_000 } else { 1_000_000_000 },
            receipt_interval_ms: 100,
            head_interval_ms: 200,
            link_retry_min_ms: 5,
            link_retry_max_ms: 200,
            link_idle_ms: 1_000,
            link_refuse_after_ms: 100,
            link_writers: self.writers(),
            link_hello_ms: if self.on_cluster() { 100 } else { 1_000 },
            reconnect_spread_ms: 200,
            drain_patience_ms: 700,
            devices_max: 64,
            chats_max: 40,
            ..GatewayOptions::default()
        };
        if !self.is_tiny() {
            return options;
        }
        GatewayOptions {
            outbox_bytes_max: 400,
            held_items_max: 4,
            sync_page_entries_max: 3,
            inbox_reads_max: 2,
            sync_backlog_max: 12,
            subscriptions_max: 2,
            requests_in_flight_max: 4,
            ahead_bytes_pause: 128,
            ahead_bytes_max: 700,
            beside_bytes_max: 100,
            owed_users_max: 1,
            nudge_step_sessions: 2,
            chats_max: 4,
            mesh_requests_max: 4,
            link_window: 4,
            lobby_connections_max: 32,
            rate_per_s: 50,
            rate_burst: 8,
            channel_rate_per_s: 30,
            channel_rate_burst: 6,
            ..options
        }
    }

    pub(crate) fn writer_options(&self) -> storage_core::Options {
        let options = storage_core::Options {
            group_members_max: self.group_members_max(),
            channel_members_max: self.channel_members_max(),
            inbox_fanout_members_max: self.inbox_fanout_members_max(),
            sync_backlog_max: self.gateway_options(1, 0).sync_backlog_max,
            chats_cached_max: 60,
            users_cached_max: 100,
            seats_cached_max: 20,
            commit_retry_interval_ms: 50,
            commits_in_flight_max: if self.on_cluster() {
                4
            } else {
                storage_core::Options::default().commits_in_flight_max
            },
            ..storage_core::Options::default()
        };
        if !self.is_tiny() {
            return options;
        }
        storage_core::Options {
            batch_commands_max: 2,
            batch_bytes_max: 600,
            chats_cached_max: 2,
            users_cached_max: 3,
            seats_cached_max: 2,
            parked_max: 6,
            ..options
        }
    }

    /// Options of a writer's readers.
    pub(crate) fn read_options(&self) -> ReadOptions {
        let options = ReadOptions::from(&self.writer_options());
        if self.is_tiny() { ReadOptions { page_bytes_max: 300, ..options } } else { options }
    }

    /// What was drawn, for a reader.
    pub fn describe(&self) -> String {
        let preset = if self.is_tiny() { "tiny" } else { "default" };
        let there = if self.on_cluster() { Fault::ALL } else { &Fault::ALL[..FAULTS_ON_ANY] };
        let faults: Vec<_> = there.iter().filter(|one| self.fault(**one) > 0).map(|one| one.name()).collect();
        let faults = if faults.is_empty() { "none".to_owned() } else { faults.join(", ") };
        let store = if self.on_cluster() { "a cluster" } else { "a local disk" };
        format!("preset {preset}, {store}, {} users, {} shards a gateway, faults: {faults}", self.users, self.shards)
    }

    /// The options that make this plan out of its seed.
    pub fn command_line(&self) -> String {
        let drawn = Plan::new(self.seed, self.ticks, None);
        let mut text = format!("--seed {} --ticks {}", self.seed, self.ticks);
        if self.preset != drawn.preset {
            text += if self.is_tiny() { " --preset tiny" } else { " --preset default" };
        }
        if self.store != drawn.store {
            text += if self.on_cluster() { " --store cluster" } else { " --store local" };
        }
        if self.users != drawn.users {
            text += &format!(" --users {}", self.users);
        }
        if self.shards != drawn.shards {
            text += &format!(" --shards {}", self.shards);
        }
        let off = |now: u32, then: u32| now == 0 && then != 0;
        let actions = Action::ALL.iter().filter(|one| off(self.actions[**one as usize], drawn.actions[**one as usize]));
        let faults = Fault::ALL.iter().filter(|one| off(self.faults[**one as usize], drawn.faults[**one as usize]));
        let names: Vec<_> = actions.map(|one| one.name()).chain(faults.map(|one| one.name())).collect();
        if !names.is_empty() {
            text += &format!(" --without {}", names.join(","));
        }
        text
    }

    /// Leaves an action or a fault out.
    pub fn leave_out(&mut self, name: &str) -> Result<(), String> {
        if let Some(action) = Action::from_name(name) {
            self.actions[action as usize] = 0;
        } else if let Some(fault) = Fault::from_name(name) {
            self.faults[fault as usize] = 0;
        } else {
            let known = Action::ALL.iter().map(|one| one.name()).chain(Fault::ALL.iter().map(|one| one.name()));
            return Err(format!("no action or fault `{name}`; there are {}", known.collect::<Vec<_>>().join(", ")));
        }
        Ok(())
    }
}
