//! What each key may hold. A test sees that every key of the shipped files has a rule and keeps to it.

use crate::error::Problem;
use crate::layers::Entry;
use toml::Value;

/// What may stand for a key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rule {
    /// An integer in this range, bounds included.
    Range(i64, i64),
    /// An integer in this range, which ends where it does for this reason.
    Bounded(i64, i64, &'static str),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// An IP address and a port.
    Address,
    /// An absolute HTTP path without a query.
    HttpPath,
    /// `true` or `false`.
    Bool,
    /// Any text, the empty one included.
    Text,
    /// A text that is not empty.
    NonEmpty,
    /// The path of a Unix socket, or nothing.
    Socket,
    /// A list of paths of Unix sockets.
    Sockets,
    /// A list of origins.
    Origins,
    /// A list of hosts with ports, at least one.
    Nodes,
    /// A name that needs no quotes in CQL.
    Keyspace,
    /// A map in CQL, or nothing.
    CqlMap,
    /// A list of options of tables.
    TableOptions,
}

/// `sun_path` holds 108 bytes, the last a zero: unix(7).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Storage-writers that a gateway tries in turn.
const SOCKETS_MAX: usize = 16;
const DAY_MS: i64 = 86_400_000;
const GIB: i64 = 1 << 30;

/// Each event of such a chat is as many entries of inboxes; more would not fit one batch.
const INBOX_MEMBERS: Rule = Rule::Range(2, 1_000);
const LEVELS: Rule = Rule::OneOf(&["error", "warn", "info", "debug", "trace"]);
const FORMATS: Rule = Rule::OneOf(&["text", "json"]);
/// Limits of the protocol, which no configuration raises; a test holds them against `parley-protocol`.
const PAYLOAD_BYTES_MAX: i64 = 256 << 10;
const FRAME_BYTES_MAX: i64 = 1 << 20;
const GROUP_MEMBERS_MAX: i64 = 10_000;
const PAYLOAD: Rule = Rule::Bounded(1, PAYLOAD_BYTES_MAX, "the protocol knows no larger payload");
const FRAME: Rule = Rule::Bounded(1_024, FRAME_BYTES_MAX, "the protocol decodes no larger frame");
const GROUP_MEMBERS: Rule = Rule::Bounded(2, GROUP_MEMBERS_MAX, "the protocol knows no larger group");

pub(crate) const GATEWAY: &[(&str, Rule)] = &[
    ("listen", Rule::Address),
    ("path", Rule::HttpPath),
    ("admin", Rule::Address),
    ("driver", Rule::OneOf(&["auto", "uring", "epoll"])),
    ("shards", Rule::Range(0, 1_024)),
    ("pin", Rule::Bool),
    ("connections_max", Rule::Range(1, (1 << 24) - 2)),
    ("drain_timeout_ms", Rule::Range(1, 3_600_000)),
    ("reconnect_spread_ms", Rule::Range(0, 3_600_000)),
    ("writer.sockets", Rule::Sockets),
    ("writer.link_hello_ms", Rule::Range(10, 60_000)),
    ("writer.link_window_requests", Rule::Range(1, 1 << 20)),
    ("writer.link_retry_min_ms", Rule::Range(1, 60_000)),
    ("writer.link_retry_max_ms", Rule::Range(1, 60_000)),
    ("writer.link_idle_ms", Rule::Range(100, 600_000)),
    ("writer.refuse_after_ms", Rule::Range(0, 600_000)),
    ("lobby.connections_max", Rule::Range(1, 1 << 16)),
    ("lobby.head_bytes_max", Rule::Range(512, 65_536)),
    ("lobby.handshake_timeout_ms", Rule::Range(10, 600_000)),
    ("lobby.hello_timeout_ms", Rule::Range(10, 600_000)),
    ("lobby.origins", Rule::Origins),
    ("sockets.ring_connections_max", Rule::Range(1, 1 << 20)),
    ("sockets.buffers", Rule::Range(1, 1 << 15)),
    ("sockets.buffer_bytes", Rule::Range(64, 1 << 20)),
    ("sockets.more_buffers", Rule::Range(1, 1 << 15)),
    ("sockets.more_buffer_bytes", Rule::Range(64, 1 << 20)),
    // Idle time is counted in 16 bits of seconds.
    ("sockets.poll_after_ms", Rule::Range(0, 3_600_000)),
    ("session.heartbeat_timeout_ms", Rule::Range(100, DAY_MS)),
    ("session.heartbeat_interval_ms", Rule::Range(50, DAY_MS)),
    ("session.outbox_bytes_max", Rule::Range(4_096, GIB)),
    ("session.stalled_reader_ms", Rule::Range(100, DAY_MS)),
    ("session.devices_max", Rule::Range(1, 1_024)),
    ("session.hole_wait_ms", Rule::Range(0, 60_000)),
    ("session.held_items_max", Rule::Range(0, 65_536)),
    ("session.mark_interval_ms", Rule::Range(10, 60_000)),
    ("session.sync_backlog_max", Rule::Range(1, 10_000_000)),
    ("session.sync_page_entries_max", Rule::Range(1, 4_096)),
    ("session.inbox_reads_max", Rule::Range(1, 65_536)),
    ("session.head_check_interval_ms", Rule::Range(100, DAY_MS)),
    ("session.resume_ttl_s", Rule::Range(1, 30 * 86_400)),
    ("session.subscriptions_max", Rule::Range(1, 4_096)),
    ("session.commands_in_flight_max", Rule::Range(1, 65_535)),
    ("chat.inbox_fanout_members_max", INBOX_MEMBERS),
    ("chat.group_members_max", GROUP_MEMBERS),
    ("chat.receipt_interval_ms", Rule::Range(1, 600_000)),
    ("chat.receipt_members_max", Rule::Range(0, 1_000)),
    ("chat.head_interval_ms", Rule::Range(1, 600_000)),
    ("chat.chats_max", Rule::Range(1, 100_000_000)),
    ("chat.rate_per_s", Rule::Range(1, 10_000_000)),
    ("chat.rate_burst", Rule::Range(1, 10_000_000)),
    ("chat.channel_rate_per_s", Rule::Range(1, 10_000_000)),
    ("chat.channel_rate_burst", Rule::Range(1, 10_000_000)),
    ("message.payload_bytes_max", PAYLOAD),
    ("message.frame_bytes_max", FRAME),
    ("mesh.requests_max", Rule::Range(1, 1 << 20)),
    ("mesh.fanout_max", Rule::Range(1, 1 << 20)),
    ("identity.issuer", Rule::Text),
    ("identity.audience", Rule::NonEmpty),
    ("identity.jwks_file", Rule::Text),
    ("identity.leeway_s", Rule::Range(0, 3_600)),
    ("identity.expiry_grace_s", Rule::Range(0, 86_400)),
    ("identity.dev_key_file", Rule::Text),
    ("identity.ticket_key_file", Rule::Text),
    ("log.format", FORMATS),
    ("log.level", LEVELS),
];

pub(crate) const STORAGE_WRITER: &[(&str, Rule)] = &[
    ("data", Rule::NonEmpty),
    ("socket", Rule::Socket),
    ("admin", Rule::Address),
    ("store", Rule::OneOf(&["embedded", "scylla"])),
    ("worker", Rule::Range(0, 1_023)),
    ("commit.batch_commands_max", Rule::Range(1, 1 << 20)),
    ("commit.batch_bytes_max", Rule::Range(4_096, GIB)),
    ("readers.threads", Rule::Range(1, 256)),
    ("readers.queue_max", Rule::Range(1, 1 << 20)),
    ("embedded.cache_bytes", Rule::Range(1 << 20, 1 << 42)),
    ("embedded.memtable_bytes", Rule::Range(1 << 20, 4 * GIB)),
    // fjall refuses less than 64 MiB.
    ("embedded.journal_bytes_max", Rule::Range(64 << 20, 1 << 42)),
    ("embedded.disk_reserve_bytes", Rule::Range(1 << 20, 1 << 42)),
    ("scylla.contact_points", Rule::Nodes),
    ("scylla.keyspace", Rule::Keyspace),
    ("scylla.user", Rule::Text),
    ("scylla.password_file", Rule::Text),
    ("scylla.tls_ca", Rule::Text),
    ("scylla.datacenter", Rule::Text),
    ("scylla.replication", Rule::CqlMap),
    ("scylla.tablets", Rule::OneOf(&["default", "on", "off"])),
    ("scylla.table_options", Rule::TableOptions),
    // Below, a slow answer ends the lease; above, nobody takes over for minutes.
    ("scylla.lease_ms", Rule::Range(500, 60_000)),
    ("scylla.request_timeout_ms", Rule::Range(100, 60_000)),
    ("scylla.in_flight_min", Rule::Range(1, 32_768)),
    // The driver has as many requests on one connection.
    ("scylla.in_flight_max", Rule::Range(1, 32_768)),
    ("limits.group_members_max", GROUP_MEMBERS),
    ("limits.channel_members_max", Rule::Range(2, 100_000)),
    ("limits.inbox_fanout_members_max", INBOX_MEMBERS),
    ("limits.payload_bytes_max", PAYLOAD),
    ("limits.chats_cached_max", Rule::Range(1, 100_000_000)),
    ("limits.users_cached_max", Rule::Range(1, 100_000_000)),
    ("limits.channel_members_cached_max", Rule::Range(1, 100_000_000)),
    ("log.format", FORMATS),
    ("log.level", LEVELS),
];

impl Rule {
    /// What may stand there, for a person.
    fn allowed(self) -> String {
        match self {
            Rule::Range(low, high) => format!("{low} to {high}"),
            Rule::Bounded(low, high, why) => format!("{low} to {high}: {why}"),
            Rule::OneOf(words) => words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", "),
            Rule::Address => "an IP address and a port, such as \"127.0.0.1:7400\"".to_owned(),
            Rule::HttpPath => "a path such as \"/ws\", without `?`, `#` and blanks".to_owned(),
            Rule::Bool => "true or false".to_owned(),
            Rule::Text => "any text".to_owned(),
            Rule::NonEmpty => "a text that is not empty".to_owned(),
            Rule::Socket => format!("a path of at most {SOCKET_PATH_BYTES_MAX} bytes"),
            Rule::Sockets => {
                format!("at most {SOCKETS_MAX} different paths, each of at most {SOCKET_PATH_BYTES_MAX} bytes")
            }
            Rule::Origins => "\"*\", or origins such as \"https://chat.example.com\"".to_owned(),
            Rule::Nodes => "hosts with ports such as \"127.0.0.1:9042\", at least one".to_owned(),
            Rule::Keyspace => "a to z, 0 to 9 and _, a letter first, at most 48 of them".to_owned(),
            Rule::CqlMap => {
                "a map in CQL such as \"{'class': 'NetworkTopologyStrategy', 'dc1': 3}\", or nothing".to_owned()
            }
            Rule::TableOptions => "options such as \"events.gc_grace_seconds = 86400\"".to_owned(),
        }
    }

    fn admits(self, value: &Value) -> bool {
        match (self, value) {
            (Rule::Range(low, high) | Rule::Bounded(low, high, _), Value::Integer(number)) => {
                (low..=high).contains(number)
            }
            (Rule::OneOf(words), Value::String(text)) => words.contains(&text.as_str()),
            (Rule::Address, Value::String(text)) => text.parse::<std::net::SocketAddr>().is_ok(),
            (Rule::HttpPath, Value::String(text)) => {
                text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#')
            }
            (Rule::Bool, Value::Boolean(_)) | (Rule::Text, Value::String(_)) => true,
            (Rule::NonEmpty, Value::String(text)) => !text.is_empty(),
            (Rule::Socket, Value::String(text)) => text.len() <= SOCKET_PATH_BYTES_MAX,
            (Rule::Sockets, Value::Array(items)) => {
                let is_path = |item: &Value| {
                    item.as_str().is_some_and(|path| !path.is_empty() && path.len() <= SOCKET_PATH_BYTES_MAX)
                };
                let different = (1..items.len()).all(|at| !items[..at].contains(&items[at]));
                items.len() <= SOCKETS_MAX && different && items.iter().all(is_path)
            }
            (Rule::Origins, Value::Array(items)) => items.iter().all(is_origin),
            (Rule::Nodes, Value::Array(items)) => !items.is_empty() && items.iter().all(is_node),
            (Rule::Keyspace, Value::String(text)) => is_keyspace(text),
            (Rule::CqlMap, Value::String(text)) => {
                text.is_empty() || (text.starts_with('{') && text.ends_with('}') && !text.contains(';'))
            }
            (Rule::TableOptions, Value::Array(items)) => items.iter().all(is_table_option),
            _ => false,
        }
    }

    /// Checks one value, whose type is right.
    pub(crate) fn check(self, entry: &Entry) -> Option<Problem> {
        (!self.admits(&entry.value)).then(|| Problem::NotAllowed {
            origin: entry.origin.clone(),
            key: entry.key.clone(),
            value: entry.value.to_string(),
            allowed: self.allowed(),
        })
    }
}

/// RFC 6454, section 6.1: a scheme and a host, no path, so no slash at the end.
fn is_origin(value: &Value) -> bool {
    let Some(text) = value.as_str() else { return false };
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    text == "*" || host.is_some_and(|host| !host.is_empty() && !host.contains(['/', ' ', '*', '?', '#']))
}

fn is_node(value: &Value) -> bool {
    let Some((host, port)) = value.as_str().and_then(|text| text.rsplit_once(':')) else { return false };
    !host.is_empty() && !host.contains([' ', ',', '/']) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

fn is_keyspace(text: &str) -> bool {
    let inner = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    text.starts_with(|first: char| first.is_ascii_lowercase()) && inner && text.len() <= 48
}

/// `table.option = value`; which tables there are is known where they are made.
fn is_table_option(value: &Value) -> bool {
    let is_word = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let parts = value.as_str().and_then(|text| text.split_once('='));
    parts.is_some_and(|(name, value)| {
        let named = name.trim().split_once('.').is_some_and(|(table, option)| is_word(table) && is_word(option));
        named && !value.trim().is_empty() && !value.contains(';')
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::shipped_entries;
    use parley_protocol::limits;

    #[test]
    fn ranges_end_at_the_limits_of_the_protocol() {
        assert_eq!(PAYLOAD_BYTES_MAX, limits::PAYLOAD_BYTES_MAX as i64);
        assert_eq!(FRAME_BYTES_MAX, limits::FRAME_BYTES_MAX as i64);
        assert_eq!(GROUP_MEMBERS_MAX, limits::GROUP_MEMBERS_MAX as i64);
    }

    #[test]
    fn every_shipped_key_has_one_rule_and_keeps_to_it() {
        for (shipped, rules) in [(crate::GATEWAY_TOML, GATEWAY), (crate::STORAGE_WRITER_TOML, STORAGE_WRITER)] {
            let entries = shipped_entries(shipped);
            let keys: Vec<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
            let ruled: Vec<&str> = rules.iter().map(|(key, _)| *key).collect();
            assert_eq!(keys, ruled, "the rules stand in the order of the shipped file");
            for (entry, (_, rule)) in entries.iter().zip(rules) {
                assert_eq!(rule.check(entry), None);
            }
        }
    }

    #[test]
    fn every_shipped_key_has_a_comment_over_it() {
        for shipped in [crate::GATEWAY_TOML, crate::STORAGE_WRITER_TOML] {
            let lines: Vec<&str> = shipped.lines().collect();
            for (index, line) in lines.iter().enumerate() {
                let is_key = line.contains(" = ") && !line.starts_with('#');
                assert!(!is_key || lines[index - 1].starts_with("# "), "no comment over `{line}`");
                assert!(line.chars().count() <= 120, "a long line: `{line}`");
            }
        }
    }

    #[test]
    fn origins_are_origins() {
        for good in ["*", "https://chat.example.com", "http://localhost:8080"] {
            assert!(is_origin(&Value::from(good)), "{good}");
        }
        for bad in ["", "chat.example.com", "https://", "https://a/", "https://*.example.com", "null"] {
            assert!(!is_origin(&Value::from(bad)), "{bad}");
        }
    }

    #[test]
    fn what_goes_into_cql_is_checked() {
        let admits = |rule: Rule, texts: &[&str]| {
            rule.admits(&Value::Array(texts.iter().map(|text| Value::from(*text)).collect()))
        };
        assert!(admits(Rule::Nodes, &["127.0.0.1:9042", "node-2.example:9042", "[::1]:9042"]));
        for bad in ["", "127.0.0.1", ":9042", "a:0", "a:70000", "a:1,b:2"] {
            assert!(!admits(Rule::Nodes, &[bad]), "{bad}");
        }
        assert!(!admits(Rule::Nodes, &[]));
        assert!(admits(Rule::TableOptions, &["inbox.compaction = {'class': 'X'}", "events.gc_grace_seconds=1"]));
        for bad in ["events", "events.compaction", "compaction = {}", "events.x =", "events.x = 1; DROP TABLE y"] {
            assert!(!admits(Rule::TableOptions, &[bad]), "{bad}");
        }
        for (rule, good, bad) in [
            (Rule::Keyspace, "parley_2", "Parley"),
            (Rule::Keyspace, "p", "2p"),
            (Rule::CqlMap, "", "SimpleStrategy"),
            (Rule::CqlMap, "{'class': 'SimpleStrategy', 'replication_factor': 1}", "{'a': 1}; DROP {}"),
        ] {
            assert!(rule.admits(&Value::from(good)), "{good}");
            assert!(!rule.admits(&Value::from(bad)), "{bad}");
        }
    }
}
