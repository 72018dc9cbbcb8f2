//! The development key: made by `parley up` in its data directory, so that a newcomer needs no issuer. A gateway takes
//! its tokens on loopback only.

use super::keys::{KeyError, base64url, to_base64url};
use super::{Claims, TokenError, is_name, provider};
use ed25519_dalek::{SigningKey, VerifyingKey};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// `iss` of development tokens.
pub const DEV_ISSUER: &str = "parley-dev";
/// `aud` of development tokens.
pub const DEV_AUDIENCE: &str = "parley";

const KEY_FILE: &str = "dev-key.json";
const JWKS_FILE: &str = "dev-jwks.json";

/// An Ed25519 key pair and its `kid`.
#[derive(Clone)]
pub struct DevKey {
    kid: String,
    seed: [u8; 32],
    public: VerifyingKey,
}

impl std::fmt::Debug for DevKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DevKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct PrivateJwk {
    kty: String,
    crv: String,
    kid: String,
    x: String,
    d: String,
}

#[derive(serde::Serialize)]
struct DevClaims<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: &'a str,
    preferred_username: &'a str,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'a str>,
}

impl DevKey {
    /// Reads `dev-key.json` of a data directory.
    pub fn load(dir: &Path) -> Result<Self, KeyError> {
        Self::load_file(&dir.join(KEY_FILE))
    }

    /// Reads a key file.
    pub fn load_file(path: &Path) -> Result<Self, KeyError> {
        let bytes = read_secret(path)?;
        let not_a_key = || KeyError::new(path, "not a development key; remove it and `parley up` makes a new one");
        let jwk: PrivateJwk = serde_json::from_slice(&bytes).map_err(|_| not_a_key())?;
        let seed = base64url(&jwk.d).and_then(|seed| <[u8; 32]>::try_from(seed).ok()).ok_or_else(not_a_key)?;
        let public = SigningKey::from_bytes(&seed).verifying_key();
        if jwk.kty != "OKP" || jwk.crv != "Ed25519" || base64url(&jwk.x).as_deref() != Some(public.as_bytes()) {
            return Err(not_a_key());
        }
        Ok(Self { kid: jwk.kid, seed, public })
    }

    /// Reads the key of a data directory, or makes one: `dev-key.json` for the owner's eyes only, and its public part
    /// as a JWKS in `dev-jwks.json`.
    pub fn load_or_create(dir: &Path) -> Result<Self, KeyError> {
        Self::load_or_create_file(&dir.join(KEY_FILE))
    }

    /// The same for a key file anywhere; the JWKS lies beside it.
    pub fn load_or_create_file(path: &Path) -> Result<Self, KeyError> {
        if !path.exists() {
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).map_err(|error| KeyError::new(path, error))?;
            let public = SigningKey::from_bytes(&seed).verifying_key();
            let x = to_base64url(public.as_bytes());
            // The prefix keeps it apart from the keys of an issuer, in logs too.
            let kid = format!("parley-dev-{}", &x[..12]);
            let jwk = PrivateJwk {
                kty: "OKP".to_owned(),
                crv: "Ed25519".to_owned(),
                kid: kid.clone(),
                x: x.clone(),
                d: to_base64url(&seed),
            };
            let text = serde_json::to_vec_pretty(&jwk).expect("plain strings have a JSON form");
            create_secret(path, &text)?;
        }
        let key = Self::load_file(path)?;
        let jwks = path.with_file_name(JWKS_FILE);
        std::fs::write(&jwks, key.jwks()).map_err(|error| KeyError::new(&jwks, error))?;
        Ok(key)
    }

    /// Names the key in a token's header.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The public part as a JWKS text.
    pub fn jwks(&self) -> String {
        let x = to_base64url(self.public.as_bytes());
        let key = serde_json::json!({
            "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": self.kid, "x": x,
        });
        format!("{:#}\n", serde_json::json!({ "keys": [key] }))
    }

    pub(super) fn decoding_key(&self) -> DecodingKey {
        DecodingKey::from_ed_der(self.public.as_bytes())
    }

    /// An access token for a name, which is its subject too. `Malformed` when the text cannot be a name.
    pub fn sign(&self, name: &str, now_unix_s: u64, ttl_s: u64, service: bool) -> Result<(String, Claims), TokenError> {
        if !is_name(name) {
            return Err(TokenError::Malformed);
        }
        provider::install();
        let exp = now_unix_s.saturating_add(ttl_s).min(super::UNIX_S_MAX);
        let role = service.then_some("service");
        let claims = DevClaims {
            iss: DEV_ISSUER,
            aud: DEV_AUDIENCE,
            sub: name,
            preferred_username: name,
            iat: now_unix_s,
            exp,
            role,
        };
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.kid.clone());
        let token = jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_der(&self.seed))
            .map_err(|_| TokenError::Signature)?;
        let claims = Claims {
            issuer: DEV_ISSUER.to_owned(),
            subject: name.to_owned(),
            name: name.to_owned(),
            expires_at_ms: exp * 1000,
            service,
            development: true,
        };
        Ok((token, claims))
    }
}

/// Reads a file that only its owner may read.
pub(super) fn read_secret(path: &Path) -> Result<Vec<u8>, KeyError> {
    let metadata = std::fs::metadata(path).map_err(|error| KeyError::new(path, error))?;
    if metadata.mode() & 0o077 != 0 {
        return Err(KeyError::new(path, "others may read this secret; run `chmod 600` on it, or remove it"));
    }
    if metadata.len() > 64 * 1024 {
        return Err(KeyError::new(path, "too large for a key"));
    }
    std::fs::read(path).map_err(|error| KeyError::new(path, error))
}

/// Puts a secret under its name as a whole or not at all; one that is there already stays.
pub(super) fn create_secret(path: &Path, bytes: &[u8]) -> Result<(), KeyError> {
    let fail = |error: std::io::Error| KeyError::new(path, error);
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    // A remnant of a process that had this id and died here.
    let _ = std::fs::remove_file(&temporary);
    let written = (|| {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        match std::fs::hard_link(&temporary, path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    })();
    let _ = std::fs::remove_file(&temporary);
    written.map_err(fail)
}
