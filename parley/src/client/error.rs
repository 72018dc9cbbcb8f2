//! Why a command of the client could not do what it was asked, in words that say what to do, and as an exit code.

use parley_protocol::frame;
use std::fmt;

/// What the process ends with. Documented in `parley --help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    /// Asked for something that the server refuses, or that cannot be.
    Refused = 1,
    /// Something on the command line cannot be: nothing was tried.
    Usage = 2,
    /// No answer in time: whether it was done is not known.
    Unreachable = 3,
    /// The token was not taken.
    Unauthenticated = 4,
}

/// Why a session or a request ended.
#[derive(Clone, Debug)]
pub(crate) enum ClientError {
    /// Something on the command line that no server could make right.
    Usage(String),
    /// Something about what was asked, before or without the server.
    Asked(String),
    /// The server refused the request.
    Refused(Box<frame::Error>),
    /// The time was over. The text says what was waited for.
    TimedOut(String),
    /// The server took neither token nor ticket.
    Unauthenticated(String),
    /// The server ended the session and it must not come back by itself.
    Stopped {
        /// Close code.
        code: u16,
        /// Its reason.
        reason: String,
    },
    /// A file or the terminal.
    Local(String),
}

impl ClientError {
    /// The exit code of this error.
    pub(crate) fn status(&self) -> ExitStatus {
        match self {
            ClientError::Usage(_) => ExitStatus::Usage,
            ClientError::TimedOut(_) => ExitStatus::Unreachable,
            ClientError::Unauthenticated(_) => ExitStatus::Unauthenticated,
            _ => ExitStatus::Refused,
        }
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::Usage(what) | ClientError::Asked(what) | ClientError::Local(what) => f.write_str(what),
            ClientError::Refused(error) => {
                let code = serde_json::to_value(error.code).unwrap_or_default();
                write!(f, "the server refused: {} ({})", error.message, code.as_str().unwrap_or("error"))
            }
            ClientError::TimedOut(what) => f.write_str(what),
            ClientError::Unauthenticated(reason) => write!(
                f,
                "the server did not take the token ({reason}); with --as, check that --data names the directory of the \
                 running `parley up`; with --token, get a new one"
            ),
            ClientError::Stopped { code: 4020, .. } => {
                f.write_str("the same device connected elsewhere; use another --device for a second one")
            }
            ClientError::Stopped { code: 4022, .. } => {
                f.write_str("too many devices of this user are connected; end one first")
            }
            ClientError::Stopped { code, reason } => write!(f, "the server ended the session: {reason} ({code})"),
        }
    }
}

impl std::error::Error for ClientError {}
