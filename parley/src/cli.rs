//! The command line: names, options, and the help that teaches them.

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use parley_protocol::{ChatId, ClientMsgId, DeviceId, Role};
use std::net::SocketAddr;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Try it, in four terminals:
  parley up                                      # gateway and storage, data in ./data
  parley chat --as alice                         # a terminal client
  parley chat --as bob                           # another one: /dm alice
  parley send --as alice --to bob 'hello bob'    # for scripts

Exit codes: 0 done; 1 refused or impossible; 2 wrong usage; 3 no answer in time (whether it was done is not known:
repeat with the same --client-msg-id); 4 the token was not taken.";

/// A chat backend: a thread-per-core gateway, durable storage, and clients.
#[derive(Debug, Parser)]
#[command(name = "parley", version, about, after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start gateway and storage-writer in one process.
    Up(UpArgs),
    /// Start a gateway; it needs a storage-writer.
    Gateway(GatewayArgs),
    /// Start a storage-writer.
    StorageWriter(StorageWriterArgs),
    /// Serve WebSocket echoes on the gateway's own data plane.
    Echo(EchoArgs),
    /// Print the effective configuration, and what in it does not fit together or on this machine.
    Check(CheckArgs),
    /// Prove that a stopped storage-writer's data is whole.
    CheckStore(CheckStoreArgs),
    /// Copy a stopped store: a backup, or the move into a cluster.
    Store(StoreArgs),
    /// Create and migrate the tables of a cluster.
    Schema(SchemaArgs),
    /// Print a development token.
    Token(TokenArgs),
    /// A terminal client.
    Chat(ChatArgs),
    /// Send a message; done when it is durable.
    Send(SendArgs),
    /// Print messages as they come.
    Tail(TailArgs),
    /// Print a chat's messages.
    History(HistoryArgs),
    /// List one's chats with their unread messages.
    Chats(ChatsArgs),
    /// Mark a chat as read.
    Read(ReadArgs),
    /// Create and change groups.
    Group(GroupArgs),
}

/// `parley up`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  parley up
  parley up --data /var/lib/parley --listen 0.0.0.0:7400 --shards 4
  parley up --store scylla --contact 10.0.0.1:9042,10.0.0.2:9042   # rows in a cluster; makes its tables

SIGTERM or Ctrl-C sees the clients off and ends; a second one ends at once.")]
pub(crate) struct UpArgs {
    /// The directory of everything that lasts [default: `data` of storage-writer.toml, ./data].
    #[arg(long, env = "PARLEY_DATA", hide_env_values = true, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) gateway: GatewayFlags,
    #[command(flatten)]
    pub(crate) store: StoreFlags,
    /// A directory with a gateway.toml or a storage-writer.toml of your own.
    #[arg(long, value_name = "DIR")]
    pub(crate) config: Option<PathBuf>,
}

/// Flags that say where rows are kept.
#[derive(Debug, Args)]
pub(crate) struct StoreFlags {
    /// Where rows are kept [default: embedded, in the data directory].
    #[arg(long, value_name = "STORE")]
    pub(crate) store: Option<StoreKind>,
    #[command(flatten)]
    pub(crate) cluster: ClusterFlags,
}

/// Flags that lie over gateway.toml.
#[derive(Debug, Args)]
pub(crate) struct GatewayFlags {
    /// Where clients connect [default: 127.0.0.1:7400].
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    /// Where /healthz, /readyz and /metrics are [default: 127.0.0.1:7401].
    #[arg(long, value_name = "ADDR")]
    pub(crate) admin: Option<SocketAddr>,
    /// Threads with connections of their own; 0: one per core.
    #[arg(long, value_name = "N")]
    pub(crate) shards: Option<u16>,
    /// The socket driver.
    #[arg(long)]
    pub(crate) driver: Option<DriverArg>,
}

/// `parley gateway`
#[derive(Debug, Args)]
#[command(after_help = "Example:
  parley storage-writer --data ./data &
  parley gateway --data ./data")]
pub(crate) struct GatewayArgs {
    /// Where the storage-writer's socket and the keys are.
    #[arg(long, env = "PARLEY_DATA", hide_env_values = true, default_value = "data", value_name = "DIR")]
    pub(crate) data: PathBuf,
    #[command(flatten)]
    pub(crate) gateway: GatewayFlags,
    /// A directory with a gateway.toml of your own.
    #[arg(long, value_name = "DIR")]
    pub(crate) config: Option<PathBuf>,
}

/// `parley storage-writer`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  parley storage-writer --data ./data
  parley schema apply --contact 10.0.0.1:9042
  parley storage-writer --data ./a --store scylla --contact 10.0.0.1:9042 &
  parley storage-writer --data ./b --store scylla --contact 10.0.0.1:9042 --admin 127.0.0.1:7404   # stands by

Of several on one cluster one is active; another takes over within seconds when it ends. Gateways find the active one
among the `writer.sockets` of gateway.toml.")]
pub(crate) struct StorageWriterArgs {
    /// The directory of everything that lasts [default: `data` of storage-writer.toml, ./data].
    #[arg(long, env = "PARLEY_DATA", hide_env_values = true, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Where /healthz, /readyz and /metrics are [default: 127.0.0.1:7403].
    #[arg(long, value_name = "ADDR")]
    pub(crate) admin: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) store: StoreFlags,
    /// A directory with a storage-writer.toml of your own.
    #[arg(long, value_name = "DIR")]
    pub(crate) config: Option<PathBuf>,
}

/// `parley echo`
#[derive(Debug, Args)]
pub(crate) struct EchoArgs {
    /// Where clients connect.
    #[arg(long, default_value = "127.0.0.1:7400", value_name = "ADDR")]
    pub(crate) listen: SocketAddr,
    /// The socket driver.
    #[arg(long, default_value = "auto")]
    pub(crate) driver: DriverArg,
    /// Threads with connections of their own; 0: one per core.
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u16).range(..=1024))]
    pub(crate) shards: u16,
    /// The largest message that is echoed; a larger one is refused with 1009.
    #[arg(long, default_value_t = gateway::echo::MESSAGE_BYTES_MAX, value_name = "BYTES")]
    pub(crate) message_bytes_max: u32,
}

/// `parley check`
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// A directory with a gateway.toml or a storage-writer.toml of your own.
    #[arg(long, value_name = "DIR")]
    pub(crate) config: Option<PathBuf>,
}

/// `parley check-store`
#[derive(Debug, Args)]
pub(crate) struct CheckStoreArgs {
    /// The data directory.
    #[arg(long, env = "PARLEY_DATA", hide_env_values = true, default_value = "data", value_name = "DIR")]
    pub(crate) data: PathBuf,
}

/// `parley store`
#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: StoreCommand,
}

/// What to do with a store.
#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Copy a stopped store, row by row, and prove that the copy is the same.
    Copy(StoreCopyArgs),
}

/// `parley store copy`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  # a backup; started with `parley up --data`, it is the same deployment
  parley store copy --from embedded --from-data data --to embedded --to-data backup
  # the move into a cluster, whose tables `parley schema apply` has made
  parley store copy --from embedded --from-data data --to scylla --contact 10.0.0.1:9042,10.0.0.2:9042

Stop the storage-writer (or `parley up`) first: a store that runs is refused. The target must be empty. Every row is
written, read back and compared, by counts and checksums that are printed; only then the target can be started.

Interrupted, by whatever: give the same command again, and it goes on where it was. The source is not changed, but for
a small file in its directory `copies` while a copy is under way. If the source was started in between, the copy
cannot go on: empty the target and begin anew. Keys (dev-key.json, ticket.key) are not copied.

Exit codes: 0 copied and proven; 1 it failed, and what to do is said; 2 wrong usage.")]
pub(crate) struct StoreCopyArgs {
    /// What is copied: embedded.
    #[arg(long, value_name = "STORE")]
    pub(crate) from: StoreKind,
    /// The data directory that is copied.
    #[arg(long, value_name = "DIR")]
    pub(crate) from_data: PathBuf,
    /// What the copy is.
    #[arg(long, value_name = "STORE")]
    pub(crate) to: StoreKind,
    /// With --to embedded: the directory of the copy, which must be new or empty.
    #[arg(long, value_name = "DIR")]
    pub(crate) to_data: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) cluster: ClusterFlags,
    /// A directory with a storage-writer.toml of your own, whose `[scylla]` the flags lie over.
    #[arg(long, value_name = "DIR")]
    pub(crate) config: Option<PathBuf>,
}

/// Where rows are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StoreKind {
    /// A data directory.
    Embedded,
    /// A cluster of ScyllaDB or Cassandra.
    Scylla,
}

/// `parley schema`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  parley schema show                               # the CQL, to read or to run by other means
  parley schema apply --contact 10.0.0.1:9042,10.0.0.2:9042
  parley schema apply --contact 10.0.0.1:9042 --replication \"{'class': 'NetworkTopologyStrategy', 'dc1': 3}\"")]
pub(crate) struct SchemaArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: SchemaCommand,
}

/// What to do with the tables of a cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum SchemaCommand {
    /// Create the keyspace and its tables, or bring them up to date. Can be repeated; two at once do no harm.
    Apply {
        #[command(flatten)]
        cluster: ClusterFlags,
        #[command(flatten)]
        tables: TableFlags,
        /// A directory with a storage-writer.toml of your own; flags lie over it.
        #[arg(long, value_name = "DIR")]
        config: Option<PathBuf>,
    },
    /// Print the CQL that `apply` runs on an empty cluster; asks no cluster.
    Show {
        /// The keyspace [default: parley].
        #[arg(long, value_name = "NAME")]
        keyspace: Option<String>,
        #[command(flatten)]
        tables: TableFlags,
        /// A directory with a storage-writer.toml of your own; flags lie over it.
        #[arg(long, value_name = "DIR")]
        config: Option<PathBuf>,
    },
}

/// How a cluster is reached: flags that lie over `[scylla]` of storage-writer.toml.
#[derive(Debug, Args)]
pub(crate) struct ClusterFlags {
    /// Nodes of the cluster, separated by commas; the others are learned from them [default: 127.0.0.1:9042].
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) contact: Option<String>,
    /// The keyspace [default: parley].
    #[arg(long, value_name = "NAME")]
    pub(crate) keyspace: Option<String>,
    /// Who logs in.
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// The file with the user's password.
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Certificates (PEM) of who signs the nodes' certificates; encrypts the connections.
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// The datacenter whose nodes are asked first.
    #[arg(long, value_name = "NAME")]
    pub(crate) datacenter: Option<String>,
}

/// How a keyspace is created: flags that lie over `[scylla]` of storage-writer.toml.
#[derive(Debug, Args)]
pub(crate) struct TableFlags {
    /// The replication in CQL [default: three copies, or one where there are fewer than three nodes].
    #[arg(long, value_name = "MAP")]
    pub(crate) replication: Option<String>,
    /// ScyllaDB's tablets [default: the cluster's choice]. `off` where it refuses lightweight transactions with them.
    #[arg(long)]
    pub(crate) tablets: Option<TabletsArg>,
}

/// ScyllaDB's tablets.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TabletsArg {
    /// With.
    On,
    /// Without.
    Off,
    /// The cluster's choice; the only one that Cassandra understands.
    Default,
}

/// A socket driver by its name.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DriverArg {
    /// uring where it works, else epoll.
    Auto,
    /// io_uring.
    Uring,
    /// epoll.
    Epoll,
}

/// How a client reaches the gateway and logs in.
#[derive(Debug, Args)]
pub(crate) struct ClientArgs {
    /// The gateway's WebSocket address.
    #[arg(long, env = "PARLEY_URL", hide_env_values = true, default_value = "ws://127.0.0.1:7400/ws")]
    pub(crate) url: String,
    /// Log in under this name with the development key of --data (loopback only); a first use creates the user.
    #[arg(long = "as", value_name = "NAME", conflicts_with = "token")]
    pub(crate) name: Option<String>,
    /// Log in with this access token [env: PARLEY_TOKEN, where --as is not given].
    #[arg(long)]
    pub(crate) token: Option<String>,
    /// The data directory of `parley up`, where the development key is.
    #[arg(long, env = "PARLEY_DATA", hide_env_values = true, default_value = "data", value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Where devices keep their position [default: $XDG_DATA_HOME/parley or ~/.local/share/parley].
    #[arg(long, env = "PARLEY_STATE", hide_env_values = true, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// The device's id, 32 hex digits [default: one of its own for `tail` and for `chat`, else a new one].
    #[arg(long, value_name = "HEX")]
    pub(crate) device: Option<DeviceId>,
    /// Speak parley.v1.json to the gateway instead of the binary encoding.
    #[arg(long)]
    pub(crate) json_wire: bool,
}

/// How a command for scripts answers.
#[derive(Debug, Args)]
pub(crate) struct ScriptArgs {
    #[command(flatten)]
    pub(crate) client: ClientArgs,
    /// Print the server's frames, one JSON object a line.
    #[arg(long)]
    pub(crate) json: bool,
    /// Give up after this time.
    #[arg(long, default_value_t = 10_000, value_name = "MS")]
    pub(crate) timeout_ms: u64,
}

/// `parley token`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  curl -H \"Authorization: Bearer $(parley token --user alice)\" ...")]
pub(crate) struct TokenArgs {
    /// Whose.
    #[arg(long, value_name = "NAME")]
    pub(crate) user: String,
    /// Seconds until it expires.
    #[arg(long, default_value_t = 3600, value_name = "S")]
    pub(crate) ttl: u64,
    /// With the service role, which may act for users.
    #[arg(long)]
    pub(crate) service: bool,
    /// The data directory of `parley up`, where the development key is.
    #[arg(long, env = "PARLEY_DATA", hide_env_values = true, default_value = "data", value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Print a JSON object with the time at which it expires.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `parley chat`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  parley chat --as alice\n\nInside: /help lists the commands, Tab changes the chat.")]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// `parley send`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  parley send --as alice --to bob 'hello bob'
  date | parley send --as alice --to 80000000000000000001a2b3c4d5e6f7 -")]
pub(crate) struct SendArgs {
    #[command(flatten)]
    pub(crate) script: ScriptArgs,
    /// A user's name, or a chat id (32 hex digits).
    #[arg(long, value_name = "NAME|CHAT", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) to: String,
    /// The text; `-` reads it from the standard input.
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) text: String,
    /// The MIME type of what is sent.
    #[arg(long, default_value = "text/plain", value_name = "TYPE")]
    pub(crate) content_type: String,
    /// The `seq` of the message that this answers.
    #[arg(long, value_name = "SEQ")]
    pub(crate) reply_to: Option<u64>,
    /// A user whose attention is asked for; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub(crate) mention: Vec<String>,
    /// Unix milliseconds after which clients no longer show it.
    #[arg(long, value_name = "MS")]
    pub(crate) expires_at_ms: Option<u64>,
    /// The name of this command, 32 hex digits: repeating it with the same one never sends twice [default: random].
    #[arg(long, value_name = "HEX")]
    pub(crate) client_msg_id: Option<ClientMsgId>,
}

/// `parley tail`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  parley tail --as bob                  # from where the last tail ended; the first one begins now
  parley tail --as bob --from-start
  parley tail --as bob --json --count 1 --timeout-ms 5000")]
pub(crate) struct TailArgs {
    #[command(flatten)]
    pub(crate) client: ClientArgs,
    /// Print the server's frames, one JSON object a line.
    #[arg(long)]
    pub(crate) json: bool,
    /// Begin with everything there is, also where this device has a position already.
    #[arg(long)]
    pub(crate) from_start: bool,
    /// End after this many messages.
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// End after this time: with code 0 without --count, else with 3.
    #[arg(long, value_name = "MS")]
    pub(crate) timeout_ms: Option<u64>,
    /// End when everything that was waiting has been printed.
    #[arg(long)]
    pub(crate) once: bool,
    /// Print others' delivered and read marks and one's own state, too.
    #[arg(long)]
    pub(crate) receipts: bool,
}

/// `parley history`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  parley history --as bob --with alice               # the newest 50
  parley history --as bob --with alice --after 0 --limit 1000
  parley history --as bob --with alice --before 120")]
pub(crate) struct HistoryArgs {
    #[command(flatten)]
    pub(crate) script: ScriptArgs,
    /// A user's name, or a chat id (32 hex digits).
    #[arg(long, value_name = "NAME|CHAT", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) with: String,
    /// Events below this `seq`.
    #[arg(long, value_name = "SEQ", conflicts_with = "after")]
    pub(crate) before: Option<u64>,
    /// Events above this `seq`.
    #[arg(long, value_name = "SEQ")]
    pub(crate) after: Option<u64>,
    /// How many at the most.
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: u64,
}

/// `parley chats`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  parley chats --as bob")]
pub(crate) struct ChatsArgs {
    #[command(flatten)]
    pub(crate) script: ScriptArgs,
}

/// `parley read`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  parley read --as bob --with alice")]
pub(crate) struct ReadArgs {
    #[command(flatten)]
    pub(crate) script: ScriptArgs,
    /// A user's name, or a chat id (32 hex digits).
    #[arg(long, value_name = "NAME|CHAT", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) with: String,
    /// Up to this `seq` [default: everything].
    #[arg(long, value_name = "SEQ")]
    pub(crate) seq: Option<u64>,
}

/// `parley group`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  parley group create --as alice 'the team' bob carol     # prints the chat id
  parley group add    --as alice --group CHAT dave
  parley group role   --as alice --group CHAT bob admin
  parley group members --as alice --group CHAT
  parley group leave  --as bob   --group CHAT")]
pub(crate) struct GroupArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: GroupCommand,
}

/// What to do with a group.
#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// Create a group; you become its owner.
    Create {
        #[command(flatten)]
        script: ScriptArgs,
        /// The title; may be empty.
        title: String,
        /// The members besides you.
        #[arg(value_name = "NAME")]
        members: Vec<String>,
        /// The name of this command, 32 hex digits [default: random].
        #[arg(long, value_name = "HEX")]
        client_msg_id: Option<ClientMsgId>,
    },
    /// Add members.
    Add {
        #[command(flatten)]
        target: GroupTarget,
        /// Whom.
        #[arg(value_name = "NAME", required = true)]
        members: Vec<String>,
    },
    /// Remove members.
    Remove {
        #[command(flatten)]
        target: GroupTarget,
        /// Whom.
        #[arg(value_name = "NAME", required = true)]
        members: Vec<String>,
    },
    /// Give a member a role; `owner` hands the group over.
    Role {
        #[command(flatten)]
        target: GroupTarget,
        /// Whom.
        #[arg(value_name = "NAME")]
        member: String,
        /// The role.
        role: RoleArg,
    },
    /// Give the group another title.
    Rename {
        #[command(flatten)]
        target: GroupTarget,
        /// The title.
        title: String,
    },
    /// Create a channel: a chat for very many members, which anybody who knows its id can join.
    CreateChannel {
        #[command(flatten)]
        script: ScriptArgs,
        /// The title; may be empty.
        title: String,
        /// Every member may write, not only you and your admins; settled for ever.
        #[arg(long)]
        everybody: bool,
        /// The name of this command, 32 hex digits [default: random].
        #[arg(long, value_name = "HEX")]
        client_msg_id: Option<ClientMsgId>,
    },
    /// Join a channel.
    Join {
        #[command(flatten)]
        target: GroupTarget,
    },
    /// Leave the group or channel; an owner hands over first.
    Leave {
        #[command(flatten)]
        target: GroupTarget,
    },
    /// List the members: ids, names, roles, and how far each has received and read.
    Members {
        #[command(flatten)]
        script: ScriptArgs,
        /// The group's chat id (32 hex digits); `parley chats` lists them.
        #[arg(long, visible_alias = "with", value_name = "CHAT", value_parser = chat_id)]
        group: ChatId,
    },
}

/// A chat's id in words for people where it is none.
fn chat_id(text: &str) -> Result<ChatId, &'static str> {
    let chat_id = text.parse::<ChatId>().ok().filter(|chat_id| chat_id.kind().is_some());
    chat_id.ok_or("not a chat id (32 hex digits)")
}

/// Which group.
#[derive(Debug, Args)]
pub(crate) struct GroupTarget {
    #[command(flatten)]
    pub(crate) script: ScriptArgs,
    /// The group's chat id (32 hex digits); `parley chats` lists them.
    #[arg(long, visible_alias = "with", value_name = "CHAT", value_parser = chat_id)]
    pub(crate) group: ChatId,
    /// The name of this command, 32 hex digits [default: random].
    #[arg(long, value_name = "HEX")]
    pub(crate) client_msg_id: Option<ClientMsgId>,
}

/// A role by its name.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RoleArg {
    /// Reads, writes, leaves.
    Member,
    /// Renames, adds and removes members.
    Admin,
    /// Gives roles; one a group.
    Owner,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Member => Role::Member,
            RoleArg::Admin => Role::Admin,
            RoleArg::Owner => Role::Owner,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_help_of_every_command_teaches() {
        let mut text = String::new();
        let mut root = Cli::command();
        root.build();
        let mut waiting = vec![root];
        while let Some(mut command) = waiting.pop() {
            let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
            text.push_str(&format!("==== {name}\n{}\n", command.render_help()));
            let inner = command.get_subcommands().filter(|inner| inner.get_name() != "help");
            waiting.extend(inner.cloned().collect::<Vec<_>>().into_iter().rev());
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn arguments_are_checked() {
        Cli::command().debug_assert();
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map_err(|error| error.to_string());
        for line in [
            "parley send --as alice --to bob hi",
            "parley send --token t --to 42a778f670800000054ef1ecef800000 - --json",
            "parley group role --as a --with 42a778f670800000054ef1ecef800000 bob admin",
            "parley group create --as alice climbing bob carol",
            "parley tail --as bob --count 1 --timeout-ms 5 --device 000000000000000000000000000000ff",
            "parley up --data d --listen 127.0.0.1:0 --admin 127.0.0.1:0 --shards 2 --driver epoll --config c",
            "parley echo --listen 127.0.0.1:0 --driver uring --shards 1",
            "parley schema apply --contact a:1,b:2 --keyspace k --user u --password-file f --tls-ca g --tablets off",
            "parley schema show --replication {} --config c",
            "parley store copy --from embedded --from-data d --to embedded --to-data e",
            "parley store copy --from embedded --from-data d --to scylla --contact 127.0.0.1:9042 --keyspace k",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err());
        }
        for (line, says) in [
            ("parley", "Usage"),
            ("parley sned", "similar subcommand"),
            ("parley send --as alice --token t --to bob hi", "cannot be used with"),
            ("parley send --as alice hi", "--to"),
            ("parley tail --as bob --device xyz", "32 lower-case hex digits"),
            ("parley group role --as a --group 42a778f670800000054ef1ecef800000 bob king", "member, admin, owner"),
            ("parley group add --as a --group nothex bob", "not a chat id (32 hex digits)"),
            ("parley history --as a --with b --limit 0", "not in 1.."),
            ("parley echo --shards 9999", "not in 0..=1024"),
            ("parley history --as a --with b --before 1 --after 2", "cannot be used with"),
            ("parley up --driver kqueue", "auto, uring, epoll"),
            ("parley schema apply --tablets yes", "on, off, default"),
            ("parley store copy --from embedded --from-data d --to-data e", "--to <STORE>"),
            ("parley store copy --from embedded --from-data d --to disk --to-data e", "embedded, scylla"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(says), "{line}: {error}");
        }
        for empty in [["--to", "", "hi"], ["--to", "bob", ""]] {
            let line = [&["parley", "send", "--as", "alice"][..], &empty].concat();
            assert!(Cli::try_parse_from(&line).is_err(), "{line:?}");
        }
    }
}
