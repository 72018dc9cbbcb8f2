//! As whom the client logs in: a name signed with the development key, or a token that somebody gave.

use super::ClientError;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gateway::identity::DevKey;
use std::path::PathBuf;

/// Seconds that a token of the client's own lives; it renews them itself.
const TTL_S: u64 = 3600;

/// As whom.
#[derive(Clone)]
pub(crate) enum Who {
    /// `--as`.
    Name {
        /// The development key.
        key: Box<DevKey>,
        /// The data directory that it is from.
        data: PathBuf,
        /// The name.
        name: String,
    },
    /// `--token`.
    Token(String),
}

impl Who {
    /// A token, and when it expires where that is known (Unix milliseconds).
    pub(crate) fn token(&self, now_unix_ms: u64) -> Result<(String, Option<u64>), ClientError> {
        match self {
            Who::Name { key, name, .. } => match key.sign(name, now_unix_ms / 1000, TTL_S, false) {
                Ok((token, claims)) => Ok((token, Some(claims.expires_at_ms))),
                Err(_) => Err(ClientError::Usage(format!(
                    "{name:?} cannot be a name: 1 to 64 bytes, no control characters, no space at its ends"
                ))),
            },
            Who::Token(token) => Ok((token.clone(), None)),
        }
    }

    /// Reads the development key again: the server makes a new one when its data directory was emptied. `true`: it is
    /// another one now.
    pub(crate) fn reload(&mut self) -> bool {
        let Who::Name { key, name, data } = self else { return false };
        let Ok(found) = DevKey::load(data) else { return false };
        // Signatures are deterministic: equal keys sign equally.
        let sign = |key: &DevKey| key.sign(name, 0, TTL_S, false).ok().map(|(token, _)| token);
        let another = sign(&found) != sign(key);
        **key = found;
        another
    }

    /// What can be done when the server does not take the tokens that this makes.
    pub(crate) fn advice(&self) -> String {
        match self {
            Who::Name { data, .. } => {
                format!("--data {} is not the running server's directory", data.display())
            }
            Who::Token(_) => "get a new token".to_owned(),
        }
    }

    /// Whether it can make a new token by itself.
    pub(crate) fn signs(&self) -> bool {
        matches!(self, Who::Name { .. })
    }

    /// A stable text for the names of state files: the name, or the subject of the token.
    pub(crate) fn label(&self) -> String {
        match self {
            Who::Name { name, .. } => name.clone(),
            // Not verified: it only tells files apart.
            Who::Token(token) => subject(token).unwrap_or_else(|| "token".to_owned()),
        }
    }
}

fn subject(token: &str) -> Option<String> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    Some(format!("{}/{}", claims.get("iss")?.as_str()?, claims.get("sub")?.as_str()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_again_and_told_from_the_one_before() {
        let dir = tempfile::tempdir().expect("a directory");
        let key = || Box::new(DevKey::load_or_create(dir.path()).expect("a key"));
        let mut who = Who::Name { key: key(), name: "alice".to_owned(), data: dir.path().to_owned() };
        assert!(!who.reload(), "the same key");
        std::fs::remove_file(dir.path().join("dev-key.json")).expect("removed");
        assert!(!who.reload(), "no key is no other key");
        key();
        assert!(who.reload());
        assert!(!who.reload());
        assert!(!Who::Token("a.b.c".to_owned()).reload());
    }
}
