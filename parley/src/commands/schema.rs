//! `parley schema`: the tables of a cluster. Also turns `[scylla]` of the configuration into what the engine takes.

use super::server::{Configuration, Failure, Flag, finish, path_flag};
use crate::cli::{ClusterFlags, SchemaArgs, SchemaCommand, StoreFlags, StoreKind, TableFlags, TabletsArg};
use parley_config::{Engine, Scylla, StorageWriter, Tablets};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use storage_writer::store::scylla::schema::{self, SchemaOptions, TableOption};
use storage_writer::store::scylla::{ClusterOptions, ScyllaOptions};

pub(super) fn run(args: &SchemaArgs) -> ExitCode {
    finish(match &args.command {
        SchemaCommand::Apply { cluster, tables, config } => apply(cluster, tables, config.as_deref()),
        SchemaCommand::Show { keyspace, tables, config } => show(keyspace.as_deref(), tables, config.as_deref()),
    })
}

fn apply(cluster: &ClusterFlags, tables: &TableFlags, config: Option<&Path>) -> Result<(), Failure> {
    let flags = [cluster_flags(cluster), table_flags(tables)].concat();
    let configured = Configuration::load(config, &[], &flags)?.writer.config.scylla;
    if configured.user.is_empty() != configured.password_file.as_os_str().is_empty() {
        return Err(Failure::usage("--user and --password-file are of use together only"));
    }
    let (options, schema) = (cluster_options(&configured), schema_options(&configured)?);
    let mut say = |line: &str| println!("{line}");
    schema::apply(&options, &schema, &mut say).map_err(|error| Failure::of(&error))?;
    Ok(())
}

fn show(keyspace: Option<&str>, tables: &TableFlags, config: Option<&Path>) -> Result<(), Failure> {
    let flags = [text_flag("scylla.keyspace", keyspace), table_flags(tables)].concat();
    let configured = Configuration::load(config, &[], &flags)?.writer.config.scylla;
    let text = schema::show(&configured.keyspace, &schema_options(&configured)?);
    // A reader that had enough (`| head`) is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

fn text_flag(key: &str, text: Option<&str>) -> Vec<Flag> {
    text.map(|text| (key.to_owned(), text.to_owned())).into_iter().collect()
}

/// Flags as the configuration takes them.
pub(super) fn cluster_flags(flags: &ClusterFlags) -> Vec<Flag> {
    [
        text_flag("scylla.contact_points", flags.contact.as_deref()),
        text_flag("scylla.keyspace", flags.keyspace.as_deref()),
        text_flag("scylla.user", flags.user.as_deref()),
        path_flag("scylla.password_file", flags.password_file.as_deref()),
        path_flag("scylla.tls_ca", flags.tls_ca.as_deref()),
        text_flag("scylla.datacenter", flags.datacenter.as_deref()),
    ]
    .concat()
}

/// Which store, and where its cluster is.
pub(super) fn store_flags(flags: &StoreFlags) -> Vec<Flag> {
    let store = flags.store.map(|store| match store {
        StoreKind::Embedded => "embedded",
        StoreKind::Scylla => "scylla",
    });
    [text_flag("store", store), cluster_flags(&flags.cluster)].concat()
}

/// Whether flags name a cluster.
pub(super) fn names_cluster(flags: &StoreFlags) -> bool {
    !cluster_flags(&flags.cluster).is_empty()
}

/// A cluster that is named and not used would be a deployment that forks by a forgotten word.
pub(super) fn refuse_unused(names_cluster: bool, config: &StorageWriter) -> Result<(), Failure> {
    if names_cluster && config.store == Engine::Embedded {
        let what =
            "--contact and what belongs to it are of use with --store scylla only: give that too, or none of them";
        return Err(Failure::usage(what));
    }
    Ok(())
}

/// `parley up` makes the tables that it needs.
pub(super) fn apply_for_up(configuration: &Configuration) -> Result<(), Failure> {
    let config = &configuration.writer.config;
    if config.store != Engine::Scylla {
        return Ok(());
    }
    let mut say = |line: &str| tracing::info!("{line}");
    schema::apply(&cluster_options(&config.scylla), &schema_options(&config.scylla)?, &mut say)
        .map_err(|error| Failure::of(&error))?;
    Ok(())
}

fn table_flags(flags: &TableFlags) -> Vec<Flag> {
    let tablets = flags.tablets.map(|tablets| match tablets {
        TabletsArg::On => "on",
        TabletsArg::Off => "off",
        TabletsArg::Default => "default",
    });
    [text_flag("scylla.replication", flags.replication.as_deref()), text_flag("scylla.tablets", tablets)].concat()
}

/// How the engine reaches the cluster.
pub(super) fn cluster_options(configured: &Scylla) -> ClusterOptions {
    let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let path = |path: &PathBuf| Some(path.clone()).filter(|path| !path.as_os_str().is_empty());
    ClusterOptions {
        contact_points: configured.contact_points.clone(),
        keyspace: configured.keyspace.clone(),
        user: text(&configured.user),
        password_file: path(&configured.password_file),
        tls_ca: path(&configured.tls_ca),
        datacenter: text(&configured.datacenter),
        request_timeout: Duration::from_millis(configured.request_timeout_ms),
        in_flight_max: configured.in_flight_max,
    }
}

/// How the storage-writer uses the cluster.
pub(super) fn scylla_options(configured: &Scylla) -> ScyllaOptions {
    let mut options = ScyllaOptions {
        cluster: cluster_options(configured),
        lease_ms: configured.lease_ms,
        ..ScyllaOptions::default()
    };
    let limit = &mut options.engine.limit;
    limit.min = configured.in_flight_min;
    limit.max = configured.in_flight_max;
    limit.initial = limit.initial.clamp(limit.min, limit.max);
    options
}

/// How tables are made.
pub(super) fn schema_options(configured: &Scylla) -> Result<SchemaOptions, Failure> {
    let options = configured.table_options.iter().map(|text| text.parse::<TableOption>());
    let table_options = options
        .collect::<Result<_, _>>()
        .map_err(|what| Failure::new(format!("the configuration is not valid:\nscylla.table_options: {what}")))?;
    let replication = Some(configured.replication.clone()).filter(|text| !text.is_empty());
    let tablets = match configured.tablets {
        Tablets::Default => None,
        Tablets::On => Some(true),
        Tablets::Off => Some(false),
    };
    Ok(SchemaOptions { replication, tablets, table_options })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_is_named_is_used_or_refused() {
        let config = |store: &str| {
            let flags = [("store".to_owned(), store.to_owned())];
            Configuration::load(None, &[], &flags).expect("valid").writer.config
        };
        assert!(refuse_unused(true, &config("embedded")).is_err());
        assert!(refuse_unused(false, &config("embedded")).is_ok());
        assert!(refuse_unused(true, &config("scylla")).is_ok());
    }

    #[test]
    fn show_prints_the_whole_schema() {
        insta::assert_snapshot!(schema::show("parley", &SchemaOptions::default()));
    }

    #[test]
    fn what_is_configured_reaches_the_statements() {
        let flags = [
            ("scylla.replication", "{'class': 'SimpleStrategy', 'replication_factor': 2}"),
            ("scylla.tablets", "off"),
            ("scylla.table_options", "events.gc_grace_seconds = 5"),
            ("scylla.user", "u"),
            ("scylla.contact_points", "a:1,b:2"),
        ];
        let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let configured = Configuration::load(None, &[], &flags).expect("valid").writer.config.scylla;
        let text = schema::show("k", &schema_options(&configured).expect("valid"));
        assert!(text.contains("'replication_factor': 2}\n  AND tablets = {'enabled': false};"), "{text}");
        assert!(text.contains("gc_grace_seconds = 5"), "{text}");
        let options = cluster_options(&configured);
        assert_eq!((options.contact(), options.user, options.tls_ca), ("a:1,b:2".to_owned(), Some("u".into()), None));
        let unknown = Scylla { table_options: vec!["evnts.x = 1".to_owned()], ..configured };
        assert!(schema_options(&unknown).is_err());
    }
}
