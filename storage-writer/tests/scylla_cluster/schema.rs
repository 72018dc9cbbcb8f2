//! The tables are made and looked at on a real node; what does not fit is said with what to do.

use super::scylla_common::{Bench, Keyspace, cluster};
use std::sync::Arc;
use storage_writer::store::scylla::schema::{self, SCHEMA_VERSION_KNOWN, SchemaOptions, TableOption};
use storage_writer::store::scylla::{ClusterMetrics, ClusterOptions, Executor};

/// The words of the refusal.
fn refusal(options: &ClusterOptions) -> String {
    match Executor::connect(options, Arc::new(ClusterMetrics::default()), Arc::new(|| {})) {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    }
}

fn apply(options: &ClusterOptions, schema: &SchemaOptions) -> (u32, String) {
    let mut said = String::new();
    let version = schema::apply(options, schema, &mut |line| said.push_str(&format!("{line}\n"))).expect("applied");
    (version, said)
}

#[test]
fn two_at_once_make_one_schema_and_a_third_changes_nothing() {
    let keyspace = Keyspace(cluster().options("twice"));
    let options = &keyspace.0;
    let text = refusal(options);
    let command = format!("parley schema apply --contact {} --keyspace {}", options.contact(), options.keyspace);
    assert!(text.contains(&command), "{text}");

    let schema = SchemaOptions::default();
    let both = std::thread::scope(|scope| {
        let threads = [(); 2].map(|()| scope.spawn(|| apply(options, &schema)));
        threads.map(|thread| thread.join().expect("no panic"))
    });
    assert!(both.iter().all(|(version, _)| *version == SCHEMA_VERSION_KNOWN), "{both:?}");
    let made = both.iter().filter(|(_, said)| said.contains("schema version 1: done")).count();
    assert_eq!(made, 1, "{both:?}");
    assert!(Executor::connect(options, Arc::new(ClusterMetrics::default()), Arc::new(|| {})).is_ok());

    let (_, said) = apply(options, &schema);
    assert!(said.contains("nothing to migrate") && !said.contains("creating"), "{said}");
    let option: TableOption = "events.gc_grace_seconds = 777".parse().expect("an option");
    let (_, said) = apply(options, &SchemaOptions { table_options: vec![option], ..schema });
    assert!(said.contains("table events: setting gc_grace_seconds to 777"), "{said}");
}

#[test]
fn another_version_is_refused_with_what_to_do() {
    let bench = Bench::new("versions");
    let options = &bench.keyspace.0;
    bench.cql("UPDATE KS.schema_version SET version = 2 WHERE name = 'schema'");
    let text = refusal(options);
    assert!(text.contains("have version 2") && text.contains("use a newer parley"), "{text}");
    let error = schema::apply(options, &SchemaOptions::default(), &mut |_| {}).expect_err("a newer schema");
    assert!(error.to_string().contains("use a newer parley"), "{error}");
    bench.cql("UPDATE KS.schema_version SET version = 0 WHERE name = 'schema'");
    let text = refusal(options);
    assert!(text.contains("have version 0") && text.contains("parley schema apply --contact"), "{text}");
}

#[test]
fn nobody_at_the_contact_point_is_said() {
    let contact_points = vec!["127.0.0.1:9".to_owned()];
    let text = refusal(&ClusterOptions { contact_points, ..ClusterOptions::default() });
    assert!(text.contains("no node of the cluster answers at 127.0.0.1:9"), "{text}");
    let text = refusal(&ClusterOptions::default());
    assert!(text.contains("scylla.contact_points"), "{text}");
}

#[test]
fn cassandra_is_not_asked_for_tablets_in_vain() {
    let keyspace = Keyspace(cluster().options("tablets"));
    let schema = SchemaOptions { tablets: Some(false), ..SchemaOptions::default() };
    if let Err(error) = schema::apply(&keyspace.0, &schema, &mut |_| {}) {
        assert!(error.to_string().contains("leave --tablets away"), "{error}");
    }
}

#[test]
fn a_datacenter_that_no_node_is_in_is_said() {
    let bench = Bench::new("datacenter");
    let of = |name: &str| ClusterOptions { datacenter: Some(name.to_owned()), ..bench.keyspace.0.clone() };
    let text = refusal(&of("moon"));
    assert!(text.contains("no node is in \"moon\"; there are nodes in datacenter1"), "{text}");
    assert!(Executor::connect(&of("datacenter1"), Arc::new(ClusterMetrics::default()), Arc::new(|| {})).is_ok());
}

/// What `parley schema show` prints is what the node takes.
#[test]
fn what_is_shown_runs() {
    let bench = Bench::new("shown");
    let keyspace = Keyspace(cluster().options("shown"));
    let options = SchemaOptions {
        replication: Some("{'class': 'SimpleStrategy', 'replication_factor': 1}".to_owned()),
        ..SchemaOptions::default()
    };
    for statement in schema::show(&keyspace.0.keyspace, &options).split(";\n") {
        if !statement.trim().is_empty() {
            bench.cql(statement.trim());
        }
    }
    assert!(Executor::connect(&keyspace.0, Arc::new(ClusterMetrics::default()), Arc::new(|| {})).is_ok());
}
