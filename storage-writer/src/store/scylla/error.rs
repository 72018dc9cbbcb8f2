//! Why a cluster cannot be used, each with what an operator can do about it, and what an error of the driver means.

use scylla::errors::{
    BadQuery, ConnectionError, ConnectionPoolError, ConnectionSetupRequestErrorKind, DbError, ExecutionError,
    MetadataError, NewSessionError, PrepareError, RequestAttemptError,
};
use std::path::PathBuf;
use storage_core::cql::rows::StatementError;

/// Why a cluster cannot be used.
#[derive(Debug)]
pub enum OpenError {
    /// No node was reached.
    Unreachable {
        /// Where nodes were looked for.
        contact: String,
        /// Why not.
        what: String,
    },
    /// The cluster does not take the login.
    Login {
        /// As whom; nothing without a user.
        user: Option<String>,
        /// What it says.
        what: String,
    },
    /// There are no tables.
    NoSchema {
        /// Where.
        contact: String,
        /// Of which keyspace.
        keyspace: String,
    },
    /// The tables are of an older version.
    Older {
        /// Where.
        contact: String,
        /// Of which keyspace.
        keyspace: String,
        /// Their version.
        found: u32,
        /// What is needed.
        known: u32,
    },
    /// The tables are of a newer version.
    Newer {
        /// Of which keyspace.
        keyspace: String,
        /// Their version.
        found: u32,
        /// The newest version that is known here.
        known: u32,
    },
    /// Too few nodes answer.
    NoQuorum {
        /// For which keyspace.
        keyspace: String,
        /// What the driver says.
        what: String,
    },
    /// Another process is changing the schema and does not come to an end.
    Busy {
        /// Of which keyspace.
        keyspace: String,
    },
    /// An option that cannot be.
    Option {
        /// Which.
        name: &'static str,
        /// What is wrong.
        what: String,
    },
    /// A file that the options name.
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A copy into the keyspace did not come to its end.
    Unfinished {
        /// Which.
        keyspace: String,
    },
    /// The cluster refused or did not answer something.
    Cluster {
        /// What was tried.
        action: String,
        /// Why not.
        what: String,
    },
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenError::Unreachable { contact, what } => write!(
                f,
                "no node of the cluster answers at {contact}: {what}; are the contact points right, and does TLS fit \
                 (scylla.tls_ca)?"
            ),
            OpenError::Login { user: Some(user), what } => write!(
                f,
                "the cluster does not let in the user {user:?}: {what}; see scylla.user and scylla.password_file"
            ),
            OpenError::Login { user: None, what } => {
                write!(f, "the cluster asks for a login: {what}; set scylla.user and scylla.password_file")
            }
            OpenError::NoSchema { contact, keyspace } => write!(
                f,
                "the keyspace {keyspace} has no tables of Parley; make them with \
                 `parley schema apply --contact {contact} --keyspace {keyspace}`"
            ),
            OpenError::Older { contact, keyspace, found, known } => write!(
                f,
                "the tables in the keyspace {keyspace} have version {found}, and {known} is needed; bring them up to \
                 date with `parley schema apply --contact {contact} --keyspace {keyspace}`"
            ),
            OpenError::Newer { keyspace, found, known } => write!(
                f,
                "the tables in the keyspace {keyspace} have version {found}, and this is a parley that knows versions \
                 up to {known}; use a newer parley"
            ),
            OpenError::Busy { keyspace } => write!(
                f,
                "another process is changing the schema of {keyspace}; its lock falls by itself, try again in a minute"
            ),
            OpenError::Option { name, what } => write!(f, "scylla.{name}: {what}"),
            OpenError::File { path, what } => write!(f, "{}: {what}", path.display()),
            OpenError::Unfinished { keyspace } => write!(
                f,
                "a copy into the keyspace {keyspace} is not finished: give the same `parley store copy` again, and it \
                 goes on where it was; or drop the keyspace and begin anew"
            ),
            OpenError::NoQuorum { keyspace, what } => write!(
                f,
                "too few nodes answer for the keyspace {keyspace} ({what}): bring nodes back; nothing can be read or \
                 written without a quorum"
            ),
            OpenError::Cluster { action, what } => write!(f, "{action}: {what}"),
        }
    }
}

impl std::error::Error for OpenError {}

/// What an error at the start of a session means.
pub(super) fn not_connected(error: &NewSessionError, contact: String, user: Option<&str>) -> OpenError {
    if let NewSessionError::MetadataError(MetadataError::ConnectionPoolError(ConnectionPoolError::Broken {
        last_connection_error: ConnectionError::ConnectionSetupRequestError(setup),
    })) = error
    {
        let user = user.map(str::to_owned);
        match &setup.error {
            ConnectionSetupRequestErrorKind::DbError(DbError::AuthenticationError | DbError::Unauthorized, what) => {
                return OpenError::Login { user, what: what.clone() };
            }
            ConnectionSetupRequestErrorKind::MissingAuthentication => {
                return OpenError::Login { user: None, what: "none is configured".to_owned() };
            }
            _ => {}
        }
    }
    OpenError::Unreachable { contact, what: error.to_string() }
}

/// What a failed statement means. In doubt `Unknown`: repeating is harmless, giving up is not.
pub(super) fn classify(error: &ExecutionError) -> StatementError {
    let text = error.to_string();
    match error {
        ExecutionError::BadQuery(BadQuery::ValuesTooLongForKey(..)) => StatementError::Refused(text),
        ExecutionError::BadQuery(_) => StatementError::Refused(text),
        ExecutionError::PrepareError(error) => classify_prepare(error),
        ExecutionError::LastAttemptError(attempt) if is_refusal(attempt) => StatementError::Refused(text),
        _ => StatementError::Unknown(text),
    }
}

pub(super) fn classify_prepare(error: &PrepareError) -> StatementError {
    let text = error.to_string();
    match error {
        PrepareError::AllAttemptsFailed { first_attempt } if is_refusal(first_attempt) => StatementError::Refused(text),
        _ => StatementError::Unknown(text),
    }
}

/// Whether the same request would be answered the same way for ever, and was not done.
fn is_refusal(attempt: &RequestAttemptError) -> bool {
    match attempt {
        RequestAttemptError::DbError(error, text) => match error {
            // So says Cassandra when the replicas that keep the permissions are away.
            DbError::Unauthorized => !text.contains("Unable to perform authorization"),
            DbError::SyntaxError
            | DbError::Invalid
            | DbError::AlreadyExists { .. }
            | DbError::FunctionFailure { .. }
            | DbError::AuthenticationError
            | DbError::ConfigError
            | DbError::ProtocolError => true,
            _ => false,
        },
        RequestAttemptError::SerializationError(_)
        | RequestAttemptError::CqlRequestSerialization(_)
        | RequestAttemptError::RepreparedIdChanged { .. }
        | RequestAttemptError::RepreparedIdMissingInBatch
        | RequestAttemptError::NonfinishedPagingState => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scylla::errors::WriteType;
    use scylla::statement::Consistency;

    fn of(error: DbError, text: &str) -> StatementError {
        classify(&ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, text.to_owned())))
    }

    #[test]
    fn what_may_have_happened_is_unknown_and_what_never_will_is_refused() {
        let consistency = Consistency::Quorum;
        let late =
            DbError::WriteTimeout { consistency, received: 1, required: 2, write_type: WriteType::UnloggedBatch };
        let few = DbError::Unavailable { consistency, required: 2, alive: 1 };
        for unknown in [late, few, DbError::Overloaded, DbError::ServerError, DbError::IsBootstrapping] {
            assert!(matches!(of(unknown.clone(), ""), StatementError::Unknown(_)), "{unknown}");
        }
        for refused in [DbError::Invalid, DbError::SyntaxError, DbError::Unauthorized, DbError::ConfigError] {
            assert!(matches!(of(refused.clone(), "no"), StatementError::Refused(_)), "{refused}");
        }
        let away = "Unable to perform authorization of permissions: Cannot achieve consistency level LOCAL_ONE";
        assert!(matches!(of(DbError::Unauthorized, away), StatementError::Unknown(_)));
        let timeout = ExecutionError::RequestTimeout(std::time::Duration::from_millis(5));
        assert!(matches!(classify(&timeout), StatementError::Unknown(_)));
        let pool = ExecutionError::ConnectionPoolError(ConnectionPoolError::Initializing);
        assert!(matches!(classify(&pool), StatementError::Unknown(_)));
        assert!(matches!(classify(&ExecutionError::EmptyPlan), StatementError::Unknown(_)));
    }
}
