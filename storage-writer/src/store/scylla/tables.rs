//! The tables as data: what is created, prepared and documented comes from here. What the columns hold says `values.rs`.

/// A table.
#[derive(Debug)]
pub(crate) struct Table {
    /// Its name.
    pub(crate) name: &'static str,
    /// Columns of the partition key, with their types.
    pub(crate) partition: &'static [Column],
    /// Columns of the clustering key.
    pub(crate) clustering: &'static [Column],
    /// All others.
    pub(crate) regular: &'static [Column],
    /// Options with their values, in the words that ScyllaDB and Cassandra both know.
    pub(crate) options: &'static [(&'static str, &'static str)],
    /// What it is for, and why it is compacted as it is. Stands in the table's comment.
    pub(crate) why: &'static str,
}

/// Name and type.
pub(crate) type Column = (&'static str, &'static str);

const APPENDED: (&str, &str) = ("compaction", "{'class': 'SizeTieredCompactionStrategy'}");
const LOOKED_UP: (&str, &str) = ("compaction", "{'class': 'LeveledCompactionStrategy'}");

/// Which table; the number of it in [`TABLES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TableId {
    Meta,
    Work,
    Events,
    ChatState,
    Members,
    Marks,
    Commands,
    Users,
    InboxState,
    Inbox,
    Memberships,
    UniqueKeys,
}

impl TableId {
    pub(crate) const ALL: [TableId; 12] = [
        TableId::Meta,
        TableId::Work,
        TableId::Events,
        TableId::ChatState,
        TableId::Members,
        TableId::Marks,
        TableId::Commands,
        TableId::Users,
        TableId::InboxState,
        TableId::Inbox,
        TableId::Memberships,
        TableId::UniqueKeys,
    ];

    pub(crate) fn table(self) -> &'static Table {
        &TABLES[self as usize]
    }
}

/// The tables of rows, schema version 1. A change of one is a new version.
pub(crate) const TABLES: &[Table; 12] = &[
    Table {
        name: "meta",
        partition: &[("set_id", "smallint")],
        clustering: &[],
        regular: &[("home_epoch", "bigint"), ("gateway", "blob"), ("ids_reserved_until_ms", "bigint")],
        options: &[LOOKED_UP],
        why: "Records of a partition set. One row, overwritten every few seconds.",
    },
    Table {
        name: "work",
        partition: &[("set_id", "smallint"), ("slot", "tinyint")],
        clustering: &[("kind", "tinyint"), ("id", "blob")],
        regular: &[],
        options: &[APPENDED, ("gc_grace_seconds", "3600")],
        why: "Chats and users with writes in flight. Written and deleted all the time, read at a takeover only. \
              Tombstones go after an hour: a row that comes back makes a taker look at a chat that needs nothing.",
    },
    Table {
        name: "events",
        partition: &[("chat_id", "blob"), ("bucket", "int")],
        clustering: &[("seq", "bigint")],
        regular: &[
            ("epoch", "bigint"),
            ("derived_through", "bigint"),
            ("sender", "bigint"),
            ("kind", "int"),
            ("event", "blob"),
            ("redo", "blob"),
        ],
        options: &[APPENDED],
        why: "The truth: events of a chat, at most 2048 in a partition. Written once and read mostly at the end, so \
              size-tiered: least written again. No time windows: write timestamps are no times.",
    },
    Table {
        name: "chat_state",
        partition: &[("chat_id", "blob")],
        clustering: &[("slot", "tinyint")],
        regular: &[("epoch", "bigint"), ("checkpoint", "blob"), ("present", "int")],
        options: &[LOOKED_UP],
        why: "The newest two checkpoints of a chat. Overwritten, read whole: leveled keeps one copy.",
    },
    Table {
        name: "members",
        partition: &[("chat_id", "blob")],
        clustering: &[("user_id", "bigint")],
        regular: &[("member", "blob")],
        options: &[LOOKED_UP],
        why: "Present and past members of a chat. Overwritten, read more than written: leveled.",
    },
    Table {
        name: "marks",
        partition: &[("chat_id", "blob")],
        clustering: &[("user_id", "bigint")],
        regular: &[("marks", "blob")],
        options: &[LOOKED_UP],
        why: "How far each member received and read. The most overwritten table: leveled drops what is overwritten.",
    },
    Table {
        name: "commands",
        partition: &[("scope", "blob"), ("tier", "smallint"), ("bucket", "int")],
        clustering: &[("name", "blob")],
        regular: &[("command", "blob")],
        options: &[LOOKED_UP],
        why: "Names of commands, about 16384 in a partition. Each new command is searched for and not found, among \
              names of all times: leveled, so that few files are asked.",
    },
    Table {
        name: "users",
        partition: &[("user_id", "bigint")],
        clustering: &[],
        regular: &[("account", "blob")],
        options: &[LOOKED_UP],
        why: "A user: name, issuer, subject. Written once, looked up: leveled.",
    },
    Table {
        name: "inbox_state",
        partition: &[("user_id", "bigint")],
        clustering: &[],
        regular: &[("bucket", "int"), ("epoch", "bigint")],
        options: &[LOOKED_UP],
        why: "Where the newest part of an inbox lies. Overwritten every 8192 entries, looked up: leveled.",
    },
    Table {
        name: "inbox",
        partition: &[("user_id", "bigint"), ("bucket", "int")],
        clustering: &[("inbox_seq", "bigint")],
        regular: &[("epoch", "bigint"), ("entry", "blob")],
        options: &[APPENDED],
        why: "Entries of an inbox, at most 8192 in a partition. Written once, read at the end: size-tiered, as events.",
    },
    Table {
        name: "memberships",
        partition: &[("user_id", "bigint")],
        clustering: &[("chat_id", "blob")],
        regular: &[("member", "blob")],
        options: &[LOOKED_UP],
        why: "The chats of a user, present and past. Overwritten, read more than written: leveled.",
    },
    Table {
        name: "unique_keys",
        partition: &[("name", "text")],
        clustering: &[],
        regular: &[("value", "blob")],
        options: &[LOOKED_UP],
        why: "Identities and names of users. Written once, looked up: leveled.",
    },
];

/// Changed by lightweight transactions only.
pub(crate) const LEASES: Table = Table {
    name: "leases",
    partition: &[("set_id", "smallint")],
    clustering: &[],
    regular: &[
        ("writer_epoch", "bigint"),
        ("holder", "blob"),
        ("renewal", "bigint"),
        ("worker", "int"),
        ("lease_ms", "int"),
        ("address", "text"),
    ],
    // A node that was killed is called down by the others after ten seconds and more: a read that waited for its answer
    // would outlast the lease.
    options: &[LOOKED_UP, ("speculative_retry", "'ALWAYS'")],
    why: "Who writes a partition set. One row, changed by lightweight transactions only.",
};

/// The version of the tables, and the lock of whoever changes them. Changed by lightweight transactions only.
pub(crate) const SCHEMA_VERSION: Table = Table {
    name: "schema_version",
    partition: &[("name", "text")],
    clustering: &[],
    regular: &[("version", "int"), ("holder", "blob")],
    options: &[],
    why: "Rows: schema (the version of these tables) and, while it is changed, lock (expires by itself).",
};

impl Table {
    /// Columns that a read gives: all but those that it names.
    pub(crate) fn read_columns(&self) -> String {
        let names: Vec<&str> = self.clustering.iter().chain(self.regular).map(|column| column.0).collect();
        names.join(", ")
    }

    /// Where one partition is.
    fn in_partition(&self) -> String {
        self.partition.iter().map(|column| format!("{} = ?", column.0)).collect::<Vec<_>>().join(" AND ")
    }

    /// Writes a row, all its columns: partition key, clustering key, the others.
    pub(crate) fn insert(&self, keyspace: &str) -> String {
        let names: Vec<&str> =
            self.partition.iter().chain(self.clustering).chain(self.regular).map(|column| column.0).collect();
        let marks = vec!["?"; names.len()].join(", ");
        format!("INSERT INTO {keyspace}.{} ({}) VALUES ({marks})", self.name, names.join(", "))
    }

    /// Deletes a partition.
    pub(crate) fn delete(&self, keyspace: &str) -> String {
        format!("DELETE FROM {keyspace}.{} WHERE {}", self.name, self.in_partition())
    }

    /// Reads rows of a partition.
    pub(crate) fn select(&self, keyspace: &str, columns: &str, rest: &str) -> String {
        format!("SELECT {columns} FROM {keyspace}.{} WHERE {}{rest}", self.name, self.in_partition())
    }

    /// Creates it, with options that take the place of its own.
    pub(crate) fn create(&self, keyspace: &str, overrides: &[TableOption]) -> String {
        let columns = self.partition.iter().chain(self.clustering).chain(self.regular);
        let mut text = format!("CREATE TABLE IF NOT EXISTS {keyspace}.{} (\n", self.name);
        for (name, kind) in columns {
            text.push_str(&format!("  {name} {kind},\n"));
        }
        let join = |columns: &[Column]| columns.iter().map(|column| column.0).collect::<Vec<_>>().join(", ");
        let clustering = self.clustering.iter().map(|column| format!(", {}", column.0)).collect::<String>();
        text.push_str(&format!("  PRIMARY KEY (({}){clustering})\n) WITH", join(self.partition)));
        let mine: Vec<&TableOption> = overrides.iter().filter(|option| option.table == self.name).collect();
        let own = self.options.iter().filter(|(name, _)| mine.iter().all(|option| option.name != *name));
        for (name, value) in own.copied().chain(mine.iter().map(|option| (&*option.name, &*option.value))) {
            text.push_str(&format!(" {name} = {value}\n  AND"));
        }
        text.push_str(&format!(" comment = '{}'", self.why.replace('\'', "''")));
        text
    }
}

/// A table's option from the configuration: `events.compaction = {'class': 'UnifiedCompactionStrategy'}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableOption {
    /// The table.
    pub table: String,
    /// The option.
    pub name: String,
    /// Its value in CQL.
    pub value: String,
}

impl std::str::FromStr for TableOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').and_then(|(left, value)| Some((left.trim().split_once('.')?, value.trim())));
        let Some(((table, name), value)) = parts else {
            return Err(format!("{text:?} is not of the form `table.option = value`"));
        };
        if TABLES.iter().chain([&LEASES, &SCHEMA_VERSION]).all(|known| known.name != table) {
            let names: Vec<&str> = TABLES.iter().map(|table| table.name).collect();
            return Err(format!("no table {table:?}; there are {}", names.join(", ")));
        }
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
            return Err(format!("{name:?} is no option of a table"));
        }
        // The value goes into a statement as it is: it must not end it.
        if value.is_empty() || value.contains(';') {
            return Err(format!("{value:?} is no value of an option"));
        }
        Ok(TableOption { table: table.to_owned(), name: name.to_owned(), value: value.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_table_has_its_number_and_a_name_of_its_own() {
        let names = ["meta", "work", "events", "chat_state", "members", "marks", "commands", "users", "inbox_state"];
        let names: Vec<&str> = names.into_iter().chain(["inbox", "memberships", "unique_keys"]).collect();
        assert_eq!(TableId::ALL.map(|id| id.table().name)[..], names[..]);
        assert!(TableId::ALL.iter().enumerate().all(|(index, id)| *id as usize == index));
    }

    #[test]
    fn options_take_the_place_of_the_tables_own() {
        let option: TableOption = "events.compaction = {'class': 'X', 'a': '1'}".parse().expect("an option");
        let other: TableOption = "events.gc_grace_seconds=60".parse().expect("an option");
        let text = TableId::Events.table().create("k", &[option, other]);
        assert!(
            text.contains("WITH compaction = {'class': 'X', 'a': '1'}\n  AND gc_grace_seconds = 60\n  AND comment")
        );
        assert!(!text.contains("SizeTiered"), "{text}");
        for bad in ["events", "events.compaction", "evets.compaction = {}", "events.x = 1; DROP", "events.Y = 1"] {
            assert!(bad.parse::<TableOption>().is_err(), "{bad}");
        }
    }
}
