//! Access tokens for made-up users, signed with the development key that a data directory holds.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer, SigningKey};
use serde_json::{Value, json};
use std::path::Path;

/// What the gateway takes on loopback under the development key.
const ISSUER: &str = "parley-dev";
const AUDIENCE: &str = "parley";
/// Longer than any run.
const TTL_S: u64 = 24 * 3_600;

/// The development key of a data directory.
#[derive(Clone)]
pub(crate) struct Tokens {
    key: SigningKey,
    header: Value,
}

/// What a token for a name says.
pub(crate) fn claims(name: &str, expires_unix_s: u64) -> Value {
    json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": name, "preferred_username": name, "exp": expires_unix_s,
    })
}

/// The first two parts of a token, over which the third one goes.
pub(crate) fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

#[derive(serde::Deserialize)]
struct Jwk {
    kid: String,
    d: String,
}

impl Tokens {
    /// Reads `dev-key.json`.
    pub(crate) fn load(data: &Path) -> Result<Self, String> {
        let path = data.join("dev-key.json");
        let text = std::fs::read(&path).map_err(|error| {
            format!(
                "{}: {error}; --data is the directory of the server, which makes its development key",
                path.display()
            )
        })?;
        let broken = |what: &str| format!("{}: {what}", path.display());
        let jwk: Jwk = serde_json::from_slice(&text).map_err(|error| broken(&error.to_string()))?;
        let seed = URL_SAFE_NO_PAD.decode(&jwk.d).map_err(|_| broken("`d` is not base64url"))?;
        let seed = <[u8; 32]>::try_from(seed).map_err(|_| broken("`d` is not 32 bytes"))?;
        Ok(Self::new(&seed, &jwk.kid))
    }

    pub(crate) fn new(seed: &[u8; 32], kid: &str) -> Self {
        let header = json!({ "typ": "JWT", "alg": "EdDSA", "kid": kid });
        Self { key: SigningKey::from_bytes(seed), header }
    }

    /// A token for a name (RFC 7519, RFC 8037).
    pub(crate) fn sign(&self, name: &str, now_unix_s: u64) -> String {
        self.signed(&self.header, &claims(name, now_unix_s + TTL_S))
    }

    /// A token of any contents, under the development key.
    pub(crate) fn signed(&self, header: &Value, claims: &Value) -> String {
        let signed = unsigned(header, claims);
        let signature = self.key.sign(signed.as_bytes()).to_bytes();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// The header of a good token.
    pub(crate) fn header(&self) -> &Value {
        &self.header
    }

    /// The half of the key that anybody may know.
    pub(crate) fn public(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }
}

/// The third part of a token.
pub(crate) fn signature(part: &str) -> Option<[u8; 64]> {
    URL_SAFE_NO_PAD.decode(part).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signature, Verifier};

    #[test]
    fn a_token_has_three_parts_and_a_signature_over_two() {
        let tokens = Tokens::new(&[7; 32], "k1");
        let token = tokens.sign("perf-1", 1_000);
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let signature = Signature::from_slice(&URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
        tokens.key.verifying_key().verify(signed.as_bytes(), &signature).unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        let json = |part: &str| -> serde_json::Value {
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
        };
        assert_eq!((json(header)["kid"].as_str(), json(claims)["sub"].as_str()), (Some("k1"), Some("perf-1")));
        assert_eq!(json(claims)["exp"], 1_000 + TTL_S);
    }

    #[test]
    fn a_directory_without_a_key_is_a_clear_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = Tokens::load(dir.path()).err().unwrap();
        assert!(error.contains("dev-key.json") && error.contains("--data"), "{error}");
    }
}
