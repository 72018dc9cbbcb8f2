//! Lays files, environment and flags over the shipped defaults, keeping for each value where it comes from, and makes
//! the runtime types of the result. Every problem is reported, not only the first.

use crate::error::{ConfigError, Origin, Problem};
use crate::rules::{self, Rule};
use crate::{GATEWAY_TOML, Gateway, STORAGE_WRITER_TOML, StorageWriter};
use serde::de::DeserializeOwned;
use std::path::Path;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

/// What lies over the shipped defaults, lowest first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sources<'a> {
    /// A directory that may hold `gateway.toml` and `storage-writer.toml`.
    pub dir: Option<&'a Path>,
    /// The environment: names and values. Names of the other configuration are ignored, and so are those without a
    /// double underscore; what begins with `PARLEY_`, has one and belongs to neither is a slip.
    pub env: &'a [(String, String)],
    /// Dotted keys and their values as text, such as (`session.devices_max`, `4`); for a list, commas between.
    pub flags: &'a [(String, String)],
}

/// One key, its value and where that was set.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Dotted.
    pub key: String,
    /// In effect.
    pub value: Value,
    /// Of the value.
    pub origin: Origin,
}

/// A valid configuration and where each of its values comes from.
#[derive(Clone, Debug)]
pub struct Loaded<T> {
    /// The runtime type.
    pub config: T,
    /// Every key, in the order of the shipped file.
    pub entries: Vec<Entry>,
}

/// One of the two configurations.
struct Kind {
    shipped: &'static str,
    file_name: &'static str,
    env_prefix: &'static str,
    rules: &'static [(&'static str, Rule)],
}

static GATEWAY: Kind =
    Kind { shipped: GATEWAY_TOML, file_name: "gateway.toml", env_prefix: "PARLEY_GATEWAY_", rules: rules::GATEWAY };
static WRITER: Kind = Kind {
    shipped: STORAGE_WRITER_TOML,
    file_name: "storage-writer.toml",
    env_prefix: "PARLEY_STORAGE_WRITER_",
    rules: rules::STORAGE_WRITER,
};
static KINDS: [&Kind; 2] = [&GATEWAY, &WRITER];

/// Loads the gateway's configuration: shipped < `dir`/gateway.toml < `PARLEY_GATEWAY__...` < flags.
pub fn load_gateway(sources: Sources<'_>) -> Result<Loaded<Gateway>, ConfigError> {
    load(&GATEWAY, sources, gateway_relations)
}

/// Loads the storage-writer's: shipped < `dir`/storage-writer.toml < `PARLEY_STORAGE_WRITER__...` < flags.
pub fn load_storage_writer(sources: Sources<'_>) -> Result<Loaded<StorageWriter>, ConfigError> {
    load(&WRITER, sources, writer_relations)
}

/// The gateway's configuration from the text of a file alone, as if it lay at `path`: for fuzzing, which reads no disk.
#[doc(hidden)]
pub fn load_gateway_text(path: &Path, text: &str) -> Result<Loaded<Gateway>, ConfigError> {
    load_text(&GATEWAY, path, text, gateway_relations)
}

/// The same for the storage-writer's.
#[doc(hidden)]
pub fn load_storage_writer_text(path: &Path, text: &str) -> Result<Loaded<StorageWriter>, ConfigError> {
    load_text(&WRITER, path, text, writer_relations)
}

/// Relations between the keys of one file: (first key, "at most" or "at least", bound, what the bound is).
type Relations<T> = fn(&T) -> Vec<(&'static str, Relation, u64, &'static str)>;

#[derive(Clone, Copy)]
enum Relation {
    AtMost,
    AtLeast,
    Above,
}

fn gateway_relations(config: &Gateway) -> Vec<(&'static str, Relation, u64, &'static str)> {
    use Relation::{Above, AtLeast, AtMost};
    let frame_bytes_min = (config.message.payload_bytes_max.div_ceil(3) * 4 + 8_192) as u64;
    let (writer, session, chat) = (&config.writer, &config.session, &config.chat);
    vec![
        ("reconnect_spread_ms", AtMost, config.drain_timeout_ms, "drain_timeout_ms"),
        ("writer.link_retry_max_ms", AtLeast, writer.link_retry_min_ms, "writer.link_retry_min_ms"),
        (
            "session.heartbeat_timeout_ms",
            Above,
            session.heartbeat_interval_ms,
            "session.heartbeat_interval_ms, or clients are dropped between two pings",
        ),
        (
            "session.outbox_bytes_max",
            AtLeast,
            config.message.frame_bytes_max as u64,
            "message.frame_bytes_max, or a large message never fits",
        ),
        ("chat.rate_burst", AtLeast, chat.rate_per_s.into(), "chat.rate_per_s"),
        ("chat.channel_rate_burst", AtLeast, chat.channel_rate_per_s.into(), "chat.channel_rate_per_s"),
        (
            "message.frame_bytes_max",
            AtLeast,
            frame_bytes_min,
            "4/3 of message.payload_bytes_max (base64 in JSON) and 8192 more",
        ),
    ]
}

fn writer_relations(config: &StorageWriter) -> Vec<(&'static str, Relation, u64, &'static str)> {
    vec![
        (
            "commit.batch_bytes_max",
            Relation::AtLeast,
            4 * config.limits.payload_bytes_max as u64,
            "4 * limits.payload_bytes_max",
        ),
        ("scylla.in_flight_min", Relation::AtMost, config.scylla.in_flight_max as u64, "scylla.in_flight_max"),
    ]
}

fn load<T: DeserializeOwned>(
    kind: &Kind,
    sources: Sources<'_>,
    relations: Relations<T>,
) -> Result<Loaded<T>, ConfigError> {
    let mut entries = shipped_entries(kind.shipped);
    let mut problems = Vec::new();
    lay_file(kind, sources.dir, &mut entries, &mut problems);
    lay_env(kind, sources.env, &mut entries, &mut problems);
    problems.extend(foreign_env(sources.env));
    for (key, text) in sources.flags {
        let origin = Origin::Flag(key.clone());
        let value = entry_of(&entries, key).map(|entry| parse_text(text, &entry.value));
        lay(&mut entries, &mut problems, key, value, origin);
    }
    judge(kind, entries, problems, relations)
}

fn load_text<T: DeserializeOwned>(
    kind: &Kind,
    path: &Path,
    text: &str,
    relations: Relations<T>,
) -> Result<Loaded<T>, ConfigError> {
    let mut entries = shipped_entries(kind.shipped);
    let mut problems = Vec::new();
    lay_text(path, text, &mut entries, &mut problems);
    judge(kind, entries, problems, relations)
}

/// Holds every value against its rule and against the others, and makes the runtime type.
fn judge<T: DeserializeOwned>(
    kind: &Kind,
    entries: Vec<Entry>,
    mut problems: Vec<Problem>,
    relations: Relations<T>,
) -> Result<Loaded<T>, ConfigError> {
    for (entry, (key, rule)) in entries.iter().zip(kind.rules) {
        assert_eq!(entry.key, *key, "the rules stand in the order of the shipped file");
        problems.extend(rule.check(entry));
    }
    if !problems.is_empty() {
        return Err(ConfigError { problems });
    }
    let config: T = nest(&entries).try_into().map_err(|error| ConfigError {
        problems: vec![Problem::Syntax { origin: Origin::Default, reason: error.to_string() }],
    })?;
    for (key, relation, bound, what) in relations(&config) {
        problems.extend(broken(&entries, key, relation, bound, what));
    }
    if problems.is_empty() { Ok(Loaded { config, entries }) } else { Err(ConfigError { problems }) }
}

fn broken(entries: &[Entry], key: &str, relation: Relation, bound: u64, what: &str) -> Option<Problem> {
    let entry = entry_of(entries, key)?;
    let value = u64::try_from(entry.value.as_integer()?).ok()?;
    let (holds, word) = match relation {
        Relation::AtMost => (value <= bound, "at most"),
        Relation::AtLeast => (value >= bound, "at least"),
        Relation::Above => (value > bound, "above"),
    };
    (!holds).then(|| Problem::Conflict {
        origin: entry.origin.clone(),
        key: key.to_owned(),
        value: value.to_string(),
        must: format!("{word} {bound}: {what}"),
    })
}

fn entry_of<'a>(entries: &'a [Entry], key: &str) -> Option<&'a Entry> {
    entries.iter().find(|entry| entry.key == key)
}

/// The keys of a shipped file, in its order.
pub(crate) fn shipped_entries(shipped: &str) -> Vec<Entry> {
    let found = flatten(shipped).expect("the shipped file is TOML, a test sees to it");
    found.into_iter().map(|(key, value, _)| Entry { key, value, origin: Origin::Default }).collect()
}

fn lay_file(kind: &Kind, dir: Option<&Path>, entries: &mut [Entry], problems: &mut Vec<Problem>) {
    let Some(dir) = dir else { return };
    let path = dir.join(kind.file_name);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        // A directory may name one of the two; a directory that is not there is a mistake.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && dir.is_dir() => return,
        Err(error) => return problems.push(Problem::Unreadable { path, reason: error.to_string() }),
    };
    lay_text(&path, &text, entries, problems);
}

fn lay_text(path: &Path, text: &str, entries: &mut [Entry], problems: &mut Vec<Problem>) {
    let line_of = |offset: usize| 1 + text[..offset.min(text.len())].matches('\n').count();
    match flatten(text) {
        Err(error) => {
            let line = line_of(error.span().map_or(0, |span| span.start));
            let reason = error.message().to_owned();
            problems.push(Problem::Syntax { origin: Origin::File { path: path.to_owned(), line }, reason });
        }
        Ok(found) => {
            for (key, value, offset) in found {
                let origin = Origin::File { path: path.to_owned(), line: line_of(offset) };
                lay(entries, problems, &key, Some(value), origin);
            }
        }
    }
}

/// `PREFIX` + `_` + table + `__` + key, in capitals. A single underscore after the prefix is a slip, and said so.
fn lay_env(kind: &Kind, env: &[(String, String)], entries: &mut [Entry], problems: &mut Vec<Problem>) {
    let mut named: Vec<_> = env.iter().filter(|(name, _)| name.starts_with(kind.env_prefix)).collect();
    named.sort();
    for (name, text) in named {
        let key = name[kind.env_prefix.len()..].strip_prefix('_').map(|rest| rest.to_lowercase().replace("__", "."));
        let origin = Origin::Env(name.clone());
        match key.as_deref().and_then(|key| entry_of(entries, key)) {
            Some(entry) => {
                let (key, value) = (entry.key.clone(), parse_text(text, &entry.value));
                lay(entries, problems, &key, Some(value), origin);
            }
            None => {
                let nearest = nearest(name, entries.iter().map(|entry| env_name(kind, &entry.key)));
                problems.push(Problem::UnknownKey { origin, key: name.clone(), nearest });
            }
        }
    }
}

/// Names that begin as nobody's keys do: a slip in the first part, which would set nothing and say nothing.
fn foreign_env(env: &[(String, String)]) -> Vec<Problem> {
    let mut named: Vec<&String> = env.iter().map(|(name, _)| name).collect();
    named.retain(|name| name.starts_with("PARLEY_") && name.contains("__"));
    named.retain(|name| KINDS.iter().all(|kind| !name.starts_with(kind.env_prefix)));
    named.sort();
    let known = || {
        let names =
            |kind: &'static Kind| shipped_entries(kind.shipped).into_iter().map(|entry| env_name(kind, &entry.key));
        KINDS.into_iter().flat_map(names)
    };
    let problem = |name: &String| Problem::UnknownKey {
        origin: Origin::Env(name.clone()),
        key: name.clone(),
        nearest: nearest(name, known()),
    };
    named.into_iter().map(problem).collect()
}

fn env_name(kind: &Kind, key: &str) -> String {
    format!("{}_{}", kind.env_prefix, key.to_uppercase().replace('.', "__"))
}

/// Sets one key, if it exists and the value has its type. `None` stands for a value of an unknown key.
fn lay(entries: &mut [Entry], problems: &mut Vec<Problem>, key: &str, value: Option<Value>, origin: Origin) {
    let Some(index) = entries.iter().position(|entry| entry.key == key) else {
        let is_table = entries.iter().any(|entry| entry.key.split_once('.').is_some_and(|(table, _)| table == key));
        if is_table && matches!(&value, Some(Value::Table(_))) {
            return; // a table of which every key is left out
        }
        let nearest = nearest(key, entries.iter().map(|entry| entry.key.clone()));
        return problems.push(Problem::UnknownKey { origin, key: key.to_owned(), nearest });
    };
    let entry = &mut entries[index];
    match value {
        Some(value) if value.same_type(&entry.value) => {
            entry.value = value;
            entry.origin = origin;
        }
        value => problems.push(Problem::WrongType {
            origin,
            key: key.to_owned(),
            value: value.map_or_else(String::new, |value| value.to_string()),
            wanted: wanted(&entry.value),
        }),
    }
}

fn wanted(value: &Value) -> &'static str {
    match value {
        Value::Integer(_) => "a whole number",
        Value::Boolean(_) => "true or false",
        Value::Array(_) => "a list of texts",
        _ => "a text",
    }
}

/// A value of the environment or a flag, read as the type that the key has; what cannot be read so stays text.
fn parse_text(text: &str, like: &Value) -> Value {
    let trimmed = text.trim();
    let read = match like {
        Value::Integer(_) => trimmed.replace('_', "").parse().ok().map(Value::Integer),
        Value::Boolean(_) => trimmed.parse().ok().map(Value::Boolean),
        Value::Array(_) => {
            let items = trimmed.split(',').map(str::trim).filter(|item| !item.is_empty());
            Some(Value::Array(items.map(Value::from).collect()))
        }
        _ => None,
    };
    read.unwrap_or_else(|| Value::from(text))
}

/// The name that was probably meant: the same last part in another table, or a few letters away.
fn nearest(key: &str, names: impl Iterator<Item = String>) -> Option<String> {
    const SIMILARITY_MIN: f64 = 0.7;
    let last = |name: &str| name.rsplit('.').next().map(str::to_owned);
    let score = |name: &str| {
        let same_last = last(name) == last(key);
        strsim::normalized_damerau_levenshtein(key, name) + if same_last { 1.0 } else { 0.0 }
    };
    let scored = names.map(|name| (score(&name), name));
    let (best, name) = scored.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (best >= SIMILARITY_MIN).then_some(name)
}

/// The leaves of a TOML text as (dotted key, value, byte offset of the key), in the order of the text.
fn flatten(text: &str) -> Result<Vec<(String, Value, usize)>, toml::de::Error> {
    let table = DeTable::parse(text)?;
    let mut leaves = Vec::new();
    flatten_table("", table.get_ref(), &mut leaves);
    leaves.sort_by_key(|(_, _, offset)| *offset);
    Ok(leaves)
}

fn flatten_table(prefix: &str, table: &DeTable<'_>, leaves: &mut Vec<(String, Value, usize)>) {
    for (name, value) in table.iter() {
        let key = if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
        match value.get_ref() {
            DeValue::Table(inner) if !inner.is_empty() => flatten_table(&key, inner, leaves),
            leaf => leaves.push((key, owned(leaf), name.span().start)),
        }
    }
}

/// Plain values only; what no key can hold (a date, a table in a list) becomes a float or an empty table, which fails
/// the check of types.
fn owned(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            // Beyond 63 bits: kept as text, so the message shows it as it was written.
            Err(_) => Value::String(number.as_str().to_owned()),
        },
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Datetime(time) => Value::Datetime(*time),
        DeValue::Array(items) => Value::Array(items.iter().map(Spanned::get_ref).map(owned).collect()),
        DeValue::Table(_) => Value::Table(Table::new()),
    }
}

/// The dotted keys as tables in tables.
fn nest(entries: &[Entry]) -> Table {
    let mut root = Table::new();
    for entry in entries {
        match entry.key.split_once('.') {
            None => {
                root.insert(entry.key.clone(), entry.value.clone());
            }
            Some((table, key)) => {
                let inner = root.entry(table).or_insert_with(|| Value::Table(Table::new()));
                if let Value::Table(inner) = inner {
                    inner.insert(key.to_owned(), entry.value.clone());
                }
            }
        }
    }
    root
}
