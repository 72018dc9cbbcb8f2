//! How the cluster is reached: options, login, TLS, and what every request has in common.

use super::error::{OpenError, not_connected};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::policies::load_balancing::DefaultPolicy;
use scylla::policies::retry::FallthroughRetryPolicy;
use scylla::statement::{Consistency, SerialConsistency};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How the cluster is reached.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Nodes that are asked first, `host:port`; the others are learned from them.
    pub contact_points: Vec<String>,
    /// Of the tables.
    pub keyspace: String,
    /// Who logs in; nobody where the cluster asks for no login.
    pub user: Option<String>,
    /// The file with the password; an end of line at its end is no part of it.
    pub password_file: Option<PathBuf>,
    /// Certificates (PEM) of who signs the nodes' certificates; with it the connections are encrypted.
    pub tls_ca: Option<PathBuf>,
    /// The nodes of this datacenter are asked first. Quorums stay those of the whole cluster: a writer that counted
    /// those of its own datacenter only could hold a lease that another datacenter does not know of.
    pub datacenter: Option<String>,
    /// A request that has no answer by then has an unknown outcome.
    pub request_timeout: Duration,
    /// Statements without a result, and results that were not taken, together.
    pub in_flight_max: usize,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            contact_points: Vec::new(),
            keyspace: "parley".to_owned(),
            user: None,
            password_file: None,
            tls_ca: None,
            datacenter: None,
            request_timeout: Duration::from_secs(3),
            in_flight_max: 4_096,
        }
    }
}

impl ClusterOptions {
    /// The contact points as an operator writes them.
    pub fn contact(&self) -> String {
        self.contact_points.join(",")
    }
}

/// How long the set-up of one connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the nodes may take to agree on a change of the schema.
const AGREEMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// How often they are asked whether they do: once a table, when tables are made.
const AGREEMENT_LOOK: Duration = Duration::from_millis(40);
/// A connection without an answer to a keep-alive for this long is broken: requests on it end with an unknown outcome.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// The keyspace's name, where it can stand in CQL without quotes: words of the options go into statements.
pub(super) fn keyspace_name(options: &ClusterOptions) -> Result<&str, OpenError> {
    let name = options.keyspace.as_str();
    let starts = name.starts_with(|first: char| first.is_ascii_lowercase());
    let goes_on = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if starts && goes_on && name.len() <= KEYSPACE_BYTES_MAX {
        return Ok(name);
    }
    let what = format!("{name:?} is no keyspace name; allowed: a to z, 0 to 9 and _, a letter first, up to 48 of them");
    Err(OpenError::Option { name: "keyspace", what })
}

/// So say ScyllaDB and Cassandra.
const KEYSPACE_BYTES_MAX: usize = 48;

/// Connects. Quorum both ways, serial over all datacenters, no retry and no speculative request: what was sent when is
/// the planner's knowledge, and a repetition that it does not know of would be a straggler.
pub(super) async fn connect(options: &ClusterOptions) -> Result<Session, OpenError> {
    if options.contact_points.is_empty() {
        let what = "none; name at least one node, such as 127.0.0.1:9042".to_owned();
        return Err(OpenError::Option { name: "contact_points", what });
    }
    let mut policy = DefaultPolicy::builder().token_aware(true).permit_dc_failover(true);
    if let Some(datacenter) = &options.datacenter {
        policy = policy.prefer_datacenter(datacenter.clone());
    }
    let profile = ExecutionProfile::builder()
        .consistency(Consistency::Quorum)
        .serial_consistency(Some(SerialConsistency::Serial))
        .retry_policy(Arc::new(FallthroughRetryPolicy::new()))
        .speculative_execution_policy(None)
        .request_timeout(Some(options.request_timeout))
        .load_balancing_policy(policy.build())
        .build();
    let mut builder = SessionBuilder::new()
        .known_nodes(&options.contact_points)
        .default_execution_profile_handle(profile.into_handle())
        .keyspaces_to_fetch([keyspace_name(options)?])
        .fetch_full_schema_metadata(false)
        .tcp_nodelay(true)
        .connection_timeout(CONNECT_TIMEOUT)
        .keepalive_interval(KEEPALIVE)
        .keepalive_timeout(KEEPALIVE)
        .schema_agreement_interval(AGREEMENT_LOOK)
        .schema_agreement_timeout(AGREEMENT_TIMEOUT)
        .tls_context(options.tls_ca.as_deref().map(tls).transpose()?);
    if let Some(user) = &options.user {
        let password = options.password_file.as_deref().map(password).transpose()?.unwrap_or_default();
        builder = builder.user(user, password);
    }
    let built = builder.build().await;
    let session = built.map_err(|error| not_connected(&error, options.contact(), options.user.as_deref()))?;
    expect_datacenter(&session, options)?;
    Ok(session)
}

/// A name that no node has would be taken for an order that never matters.
fn expect_datacenter(session: &Session, options: &ClusterOptions) -> Result<(), OpenError> {
    let Some(wanted) = &options.datacenter else { return Ok(()) };
    let state = session.get_cluster_state();
    let there: BTreeSet<&str> = state.get_nodes_info().iter().filter_map(|node| node.datacenter.as_deref()).collect();
    if there.contains(wanted.as_str()) {
        return Ok(());
    }
    let there = there.into_iter().collect::<Vec<_>>().join(", ");
    Err(OpenError::Option { name: "datacenter", what: format!("no node is in {wanted:?}; there are nodes in {there}") })
}

fn password(path: &Path) -> Result<String, OpenError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| OpenError::File { path: path.to_owned(), what: error.to_string() })?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

/// Trusts who signed with these certificates, and nobody else.
fn tls(path: &Path) -> Result<Arc<rustls::ClientConfig>, OpenError> {
    let damaged = |what: String| OpenError::File { path: path.to_owned(), what };
    let mut roots = rustls::RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| damaged(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| damaged(error.to_string()))?;
        roots.add(certificate).map_err(|error| damaged(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(damaged("it has no certificate (PEM)".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| damaged(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_need_quotes_are_no_keyspaces() {
        let named = |name: &str| ClusterOptions { keyspace: name.to_owned(), ..ClusterOptions::default() };
        for good in ["parley", "p", "parley_2", &"k".repeat(48)] {
            assert!(keyspace_name(&named(good)).is_ok(), "{good}");
        }
        for bad in ["", "Parley", "2p", "_p", "a b", "a;drop", "a\"", &"k".repeat(49)] {
            assert!(keyspace_name(&named(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_without_certificates_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, "no certificate\n").expect("written");
        let error = tls(&path).expect_err("no certificate").to_string();
        assert!(error.contains("ca.pem"), "{error}");
        assert!(tls(&dir.path().join("gone.pem")).is_err());
    }
}
