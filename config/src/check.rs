//! What `parley check` says: the configuration in effect, where each value comes from, and what does not fit together
//! on this machine. Judges and renders; reads nothing.

use crate::layers::{Entry, Loaded};
use crate::{Driver, Engine, Gateway, StorageWriter};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Descriptors that are not client sockets: links, the store's files, logs, standard streams.
const FILES_RESERVED: u64 = 1_024;
/// glommio refuses to start an executor with less.
const MEMLOCK_BYTES_MIN: u64 = 512 << 10;
/// What a connection without traffic costs: nearly all of it is the kernel's, for the socket.
const CONNECTION_BYTES: u64 = 5_000;
/// So many of the clients may be slow at a time without the outboxes taking more than there is.
const SLOW_ONE_IN: u64 = 100;
/// Memtables of the embedded engine that can be full at once: the hot keyspaces.
const MEMTABLES_HOT: u64 = 4;

/// The machine that the servers would run on; an argument, so that every machine can be judged on any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Cores that the process may use.
    pub cores: usize,
    /// Physical memory, or the container's limit.
    pub memory_bytes: u64,
    /// The hard limit of open files (`ulimit -Hn`): servers raise the soft one to it.
    pub nofile: u64,
    /// The limit of locked memory (`ulimit -l`); `None` = unlimited.
    pub memlock_bytes: Option<u64>,
    /// Whether io_uring works here.
    pub uring: bool,
    /// Of [`StorageWriter::files`], those that cannot be read here, and why. Empty where nobody tried: a gateway has no
    /// business with the storage-writer's secrets.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// For information.
    Note,
    /// It starts, but will disappoint under load.
    Warning,
    /// It must not start like this.
    Error,
}

/// One thing that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// What, with keys and values, and what to do.
    pub text: String,
}

/// What a check found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The effective configuration of both servers as TOML, each value with its origin, and the findings.
    pub text: String,
    /// The findings, worst first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing forbids to start.
    pub fn is_ok(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity < Severity::Error)
    }
}

impl StorageWriter {
    /// The files that it reads when it starts, with the keys that name them.
    pub fn files(&self) -> Vec<(&'static str, &Path)> {
        if self.store != Engine::Scylla {
            return Vec::new();
        }
        let named = [("scylla.password_file", &self.scylla.password_file), ("scylla.tls_ca", &self.scylla.tls_ca)];
        named.into_iter().filter(|(_, path)| has(path)).map(|(key, path)| (key, path.as_path())).collect()
    }
}

/// Whether a key that may be empty names a file.
fn has(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

impl Gateway {
    /// Shards to start: the configured number, or one per core.
    pub fn shards_on(&self, machine: &Machine) -> u16 {
        let per_core = u16::try_from(machine.cores).unwrap_or(u16::MAX).clamp(1, 1_024);
        if self.shards == 0 { per_core } else { self.shards }
    }

    /// Connections that one shard may hold here: `connections_max`. Under epoll all shards share the process's file
    /// table, and the limit of open files lowers it; rings have tables of their own, as many as it takes.
    pub fn connections_per_shard(&self, machine: &Machine, uring: bool) -> u32 {
        if uring {
            return self.connections_max;
        }
        let room = machine.nofile.saturating_sub(FILES_RESERVED) / u64::from(self.shards_on(machine));
        self.connections_max.min(u32::try_from(room).unwrap_or(u32::MAX))
    }

    fn uses_uring(&self, machine: &Machine) -> bool {
        match self.driver {
            Driver::Epoll => false,
            Driver::Uring => true,
            Driver::Auto => machine.uring && machine.memlock_bytes.is_none_or(|bytes| bytes >= MEMLOCK_BYTES_MIN),
        }
    }
}

/// Judges both configurations together, as `parley up` would run them on `machine`.
pub fn check(gateway: &Loaded<Gateway>, writer: &Loaded<StorageWriter>, machine: &Machine) -> Report {
    let mut findings = Vec::new();
    cores(&gateway.config, &writer.config, machine, &mut findings);
    files(&gateway.config, machine, &mut findings);
    memory(&gateway.config, &writer.config, machine, &mut findings);
    driver(&gateway.config, machine, &mut findings);
    agreement(&gateway.config, &writer.config, &mut findings);
    cluster(&writer.config, machine, &mut findings);
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));

    let mut text = String::new();
    render("gateway.toml", &gateway.entries, &mut text);
    render("storage-writer.toml", &writer.entries, &mut text);
    let memlock = machine.memlock_bytes.map_or("unlimited".to_owned(), |bytes| format!("{} KiB", bytes >> 10));
    let _ = writeln!(
        text,
        "# machine: {} cores, {} MiB of memory, {} open files, {memlock} of locked memory, io_uring {}",
        machine.cores,
        machine.memory_bytes >> 20,
        machine.nofile,
        if machine.uring { "works" } else { "does not work" },
    );
    for finding in &findings {
        let word = match finding.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        let _ = writeln!(text, "# {word}: {}", finding.text);
    }
    if findings.is_empty() {
        text.push_str("# nothing to object to\n");
    }
    Report { text, findings }
}

fn render(name: &str, entries: &[Entry], text: &mut String) {
    let _ = writeln!(text, "# ---- {name}");
    let mut table = "";
    for entry in entries {
        let (entry_table, key) = entry.key.split_once('.').unwrap_or(("", &entry.key));
        if entry_table != table {
            let _ = writeln!(text, "\n[{entry_table}]");
            table = entry_table;
        }
        let line = format!("{key} = {}", entry.value);
        let _ = writeln!(text, "{line:<40} # {}", entry.origin);
    }
    text.push('\n');
}

fn cores(gateway: &Gateway, writer: &StorageWriter, machine: &Machine, findings: &mut Vec<Finding>) {
    let shards = usize::from(gateway.shards_on(machine));
    let readers = usize::from(writer.readers.threads);
    if shards > machine.cores {
        let text = format!(
            "shards = {shards}, but there are {} cores: shards that share a core wait for each other; \
             set shards = 0 for one per core",
            machine.cores
        );
        findings.push(Finding { severity: Severity::Warning, text });
    }
    if gateway.pin && shards > machine.cores {
        let text = "pin = true with more shards than cores pins two shards to one core: set pin = false".to_owned();
        findings.push(Finding { severity: Severity::Warning, text });
    }
    if readers > machine.cores && writer.store == Engine::Embedded {
        let text = format!("readers.threads = {readers}, but there are {} cores", machine.cores);
        findings.push(Finding { severity: Severity::Warning, text });
    }
}

fn files(gateway: &Gateway, machine: &Machine, findings: &mut Vec<Finding>) {
    let shards = u64::from(gateway.shards_on(machine));
    let uring = gateway.uses_uring(machine);
    let room = gateway.connections_per_shard(machine, uring);
    // Sockets of the lobby are plain descriptors under both drivers.
    let plain = shards * u64::from(gateway.lobby.connections_max) + FILES_RESERVED;
    if plain > machine.nofile {
        let text = format!(
            "{shards} shards with lobby.connections_max = {} need {plain} open files with {FILES_RESERVED} for all \
             else, but the limit is {}: raise the limit or lower lobby.connections_max",
            gateway.lobby.connections_max, machine.nofile
        );
        findings.push(Finding { severity: Severity::Error, text });
    }
    if room < gateway.connections_max {
        let text = format!(
            "connections_max = {} is lowered to {room} a shard, {} in all: the limit of open files is {} and all shards \
             share it under epoll",
            gateway.connections_max,
            u64::from(room) * shards,
            machine.nofile
        );
        findings.push(Finding { severity: Severity::Note, text });
    }
}

fn memory(gateway: &Gateway, writer: &StorageWriter, machine: &Machine, findings: &mut Vec<Finding>) {
    let uring = gateway.uses_uring(machine);
    let connections = u64::from(gateway.connections_per_shard(machine, uring)) * u64::from(gateway.shards_on(machine));
    let fit = machine.memory_bytes / CONNECTION_BYTES;
    if connections > fit {
        let text = format!(
            "connections_max allows {connections} connections in all, but {} MiB of memory hold about {fit}",
            machine.memory_bytes >> 20
        );
        findings.push(Finding { severity: Severity::Note, text });
    }
    let connections = connections.min(fit);
    let outboxes = (connections / SLOW_ONE_IN).saturating_mul(gateway.session.outbox_bytes_max as u64);
    if outboxes > machine.memory_bytes {
        let text = format!(
            "if one in {SLOW_ONE_IN} of {connections} clients is slow, outboxes take {} MiB of {} MiB: \
             lower session.outbox_bytes_max or connections_max",
            outboxes >> 20,
            machine.memory_bytes >> 20
        );
        findings.push(Finding { severity: Severity::Warning, text });
    }
    if writer.store != Engine::Embedded {
        return;
    }
    let store = &writer.embedded;
    let engine = (store.cache_bytes as u64).saturating_add(MEMTABLES_HOT * store.memtable_bytes as u64);
    if engine > machine.memory_bytes / 2 {
        let text = format!(
            "embedded.cache_bytes and {MEMTABLES_HOT} * embedded.memtable_bytes take {} MiB, \
             more than half of {} MiB",
            engine >> 20,
            machine.memory_bytes >> 20
        );
        findings.push(Finding { severity: Severity::Warning, text });
    }
}

fn driver(gateway: &Gateway, machine: &Machine, findings: &mut Vec<Finding>) {
    let locked_too_little = machine.memlock_bytes.filter(|bytes| *bytes < MEMLOCK_BYTES_MIN);
    let reason = match (machine.uring, locked_too_little) {
        (false, _) => "io_uring does not work here".to_owned(),
        (true, Some(bytes)) => {
            format!(
                "the limit of locked memory is {} KiB, below the {} KiB needed",
                bytes >> 10,
                MEMLOCK_BYTES_MIN >> 10
            )
        }
        (true, None) => return,
    };
    match gateway.driver {
        Driver::Uring => findings.push(Finding {
            severity: Severity::Error,
            text: format!("driver = \"uring\", but {reason}: set driver = \"auto\" or \"epoll\""),
        }),
        Driver::Auto => {
            findings.push(Finding { severity: Severity::Note, text: format!("{reason}: the epoll driver will serve") });
        }
        Driver::Epoll => {}
    }
}

fn agreement(gateway: &Gateway, writer: &StorageWriter, findings: &mut Vec<Finding>) {
    let limits = &writer.limits;
    let members = |count: u32| count as usize;
    let pairs = [
        (
            "chat.inbox_fanout_members_max",
            members(gateway.chat.inbox_fanout_members_max),
            "limits.inbox_fanout_members_max",
            members(limits.inbox_fanout_members_max),
        ),
        (
            "chat.group_members_max",
            members(gateway.chat.group_members_max),
            "limits.group_members_max",
            members(limits.group_members_max),
        ),
        (
            "message.payload_bytes_max",
            gateway.message.payload_bytes_max,
            "limits.payload_bytes_max",
            limits.payload_bytes_max,
        ),
    ];
    for (ours, our_value, theirs, their_value) in pairs {
        if our_value != their_value {
            let text = format!(
                "{ours} = {our_value} in gateway.toml, but {theirs} = {their_value} in storage-writer.toml: \
                 set both alike"
            );
            findings.push(Finding { severity: Severity::Error, text });
        }
    }
    let sockets = &gateway.writer.sockets;
    let both_default = sockets.is_empty() && writer.socket.as_os_str().is_empty();
    // Of several storage-writers each has settings of its own: one that says nothing has its socket where it is told to.
    let one_of_several = sockets.len() > 1 && writer.socket.as_os_str().is_empty();
    if !both_default && !one_of_several && !sockets.contains(&writer.socket) {
        let text = format!(
            "writer.sockets = {sockets:?} in gateway.toml, but socket = {:?} in storage-writer.toml: they would not meet",
            writer.socket
        );
        findings.push(Finding { severity: Severity::Error, text });
    }
    let addresses =
        [("listen", gateway.listen), ("admin", gateway.admin), ("the storage-writer's admin", writer.admin)];
    for (index, (name, address)) in addresses.iter().enumerate() {
        for (other, taken) in &addresses[index + 1..] {
            if address.port() != 0 && address == taken {
                let text = format!("{name} and {other} are both {address}: give each a port of its own");
                findings.push(Finding { severity: Severity::Error, text });
            }
        }
    }
}

fn cluster(writer: &StorageWriter, machine: &Machine, findings: &mut Vec<Finding>) {
    if writer.store != Engine::Scylla {
        return;
    }
    let options = &writer.scylla;
    let mut find = |severity, text: String| findings.push(Finding { severity, text });
    if has(&options.password_file) == options.user.is_empty() {
        let text = "scylla.user and scylla.password_file are of use together only: set both or none".to_owned();
        find(Severity::Error, text);
    }
    if has(&options.password_file) && !has(&options.tls_ca) {
        let text = "the password of scylla.user goes over the network as it is: set scylla.tls_ca".to_owned();
        find(Severity::Warning, text);
    }
    for (key, path) in writer.files() {
        for (_, why) in machine.unreadable.iter().filter(|(unreadable, _)| unreadable == path) {
            let text = format!(
                "{key} = {path:?} cannot be read: {why}; the storage-writer reads it when it starts: make it readable \
                 for who starts it, or correct the path"
            );
            find(Severity::Error, text);
        }
    }
}
