//! What can be wrong with a configuration: which key, which value, where it was set, and what is allowed.

use std::fmt;
use std::path::PathBuf;

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The shipped file.
    Default,
    /// A file of `--config`.
    File {
        /// Its path.
        path: PathBuf,
        /// Counts from 1.
        line: usize,
    },
    /// An environment variable, by its name.
    Env(String),
    /// A flag, by the key that it sets.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Env(name) => write!(f, "environment {name}"),
            Origin::Flag(key) => write!(f, "flag for {key}"),
        }
    }
}

/// One thing that is wrong, at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A file cannot be read: mend its path or its permissions.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// A file is not TOML.
    Syntax {
        /// Where.
        origin: Origin,
        /// What the parser says.
        reason: String,
    },
    /// No such key.
    UnknownKey {
        /// Where.
        origin: Origin,
        /// As it was written.
        key: String,
        /// The key that was probably meant, spelled as this origin spells it.
        nearest: Option<String>,
    },
    /// A value of another type.
    WrongType {
        /// Where.
        origin: Origin,
        /// Dotted.
        key: String,
        /// As it was written.
        value: String,
        /// What it must be.
        wanted: &'static str,
    },
    /// A value out of range.
    NotAllowed {
        /// Where.
        origin: Origin,
        /// Dotted.
        key: String,
        /// As it was written.
        value: String,
        /// What may stand there.
        allowed: String,
    },
    /// Two keys that contradict each other.
    Conflict {
        /// Where the first one was set.
        origin: Origin,
        /// The first one, dotted.
        key: String,
        /// Its value.
        value: String,
        /// What it must be, naming the other one and its value.
        must: String,
    },
}

impl Problem {
    /// Where the value was set; none where a file as a whole is the problem.
    pub fn origin(&self) -> Option<&Origin> {
        match self {
            Problem::Unreadable { .. } => None,
            Problem::Syntax { origin, .. }
            | Problem::UnknownKey { origin, .. }
            | Problem::WrongType { origin, .. }
            | Problem::NotAllowed { origin, .. }
            | Problem::Conflict { origin, .. } => Some(origin),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Unreadable { path, reason } => write!(f, "{}: cannot be read: {reason}", path.display()),
            Problem::Syntax { origin, reason } => write!(f, "{origin}: not valid TOML: {reason}"),
            Problem::UnknownKey { origin, key, nearest: Some(nearest) } => {
                write!(f, "{origin}: no key `{key}`; did you mean `{nearest}`?")
            }
            Problem::UnknownKey { origin, key, nearest: None } => write!(f, "{origin}: no key `{key}`"),
            Problem::WrongType { origin, key, value, wanted } => {
                write!(f, "{origin}: `{key}` is {value}, but must be {wanted}")
            }
            Problem::NotAllowed { origin, key, value, allowed } => {
                write!(f, "{origin}: `{key}` is {value}; allowed: {allowed}")
            }
            Problem::Conflict { origin, key, value, must } => {
                write!(f, "{origin}: `{key}` is {value}, but must be {must}")
            }
        }
    }
}

/// Everything that is wrong with a configuration, at least one problem, in the order of its layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// What is wrong.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
