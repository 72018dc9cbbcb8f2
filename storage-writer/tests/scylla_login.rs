//! A cluster that asks for a login and speaks TLS only: who comes in, and what is said to others. The node is always
//! this test's own.

mod scylla_common;

use std::path::PathBuf;
use std::sync::Arc;
use storage_writer::store::scylla::schema::{self, SchemaOptions};
use storage_writer::store::scylla::{ClusterMetrics, ClusterOptions, Executor};

fn refusal(options: &ClusterOptions) -> String {
    match Executor::connect(options, Arc::new(ClusterMetrics::default()), Arc::new(|| {})) {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_login_over_tls() {
    let cluster = scylla_common::start(&["--auth", "--tls"]);
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let ca = cluster.ca.clone().expect("an authority");
    let good = ClusterOptions {
        user: Some("cassandra".to_owned()),
        password_file: Some(file("good", "cassandra\n")),
        tls_ca: Some(ca.clone()),
        ..cluster.options("login")
    };
    schema::apply(&good, &SchemaOptions::default(), &mut |_| {}).expect("tables");
    let opened = Executor::connect(&good, Arc::new(ClusterMetrics::default()), Arc::new(|| {}));
    assert!(opened.is_ok(), "{:?}", opened.err());

    let text = refusal(&ClusterOptions { password_file: Some(file("bad", "wrong")), ..good.clone() });
    assert!(text.contains("does not let in the user \"cassandra\""), "{text}");
    assert!(text.contains("scylla.password_file") && !text.contains("wrong"), "{text}");
    let text = refusal(&ClusterOptions { user: None, ..good.clone() });
    assert!(text.contains("asks for a login") && text.contains("scylla.user"), "{text}");
    let text = refusal(&ClusterOptions { password_file: Some(dir.path().join("gone")), ..good.clone() });
    assert!(text.contains("gone: "), "{text}");
    let text = refusal(&ClusterOptions { tls_ca: None, ..good.clone() });
    assert!(text.contains("does TLS fit"), "{text}");
    // Another authority did not sign the node's certificate.
    let stranger = scylla_common::stranger(dir.path());
    let text = refusal(&ClusterOptions { tls_ca: Some(stranger), ..good });
    assert!(text.contains("does TLS fit"), "{text}");
}
