//! Who a client is: access tokens (JWT, EdDSA, keys from a JWKS file), the development key, and resume tickets.
//! Reads key files; knows no socket and no clock. Nothing here ever logs a token.

mod dev_key;
mod keys;
mod provider;
mod tickets;

pub use dev_key::{DEV_AUDIENCE, DEV_ISSUER, DevKey};
pub use keys::KeyError;
pub use tickets::{Ticket, TicketError, Tickets};

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use keys::JwksFile;
use parley_protocol::limits;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};

/// What a verified token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// `iss`.
    pub issuer: String,
    /// `sub`.
    pub subject: String,
    /// The unique name that the user wants: `preferred_username`, else `name`, else `sub`; empty when none of them can
    /// be a name.
    pub name: String,
    /// `exp`, Unix milliseconds.
    pub expires_at_ms: u64,
    /// `role` is `service`: may act for users.
    pub service: bool,
    /// Signed with the development key: a ticket made from it holds on loopback only.
    pub development: bool,
}

/// Why a token is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// Not a JWT with the claims that are needed.
    Malformed,
    /// Signed by another algorithm than EdDSA, or with header fields that change what a signature means.
    Algorithm,
    /// No key has this `kid`.
    UnknownKey,
    /// The signature is not the key's.
    Signature,
    /// Another issuer.
    Issuer,
    /// For another audience.
    Audience,
    /// `exp` has passed.
    Expired,
    /// `nbf` has not come yet.
    NotYet,
    /// A development token from another machine.
    NotLoopback,
}

impl std::fmt::Display for TokenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TokenError::Malformed => "not a JWT with exp, iss, aud and sub",
            TokenError::Algorithm => "the algorithm is not EdDSA",
            TokenError::UnknownKey => "no key has this kid",
            TokenError::Signature => "the signature is not valid",
            TokenError::Issuer => "another issuer",
            TokenError::Audience => "another audience",
            TokenError::Expired => "expired",
            TokenError::NotYet => "not valid yet",
            TokenError::NotLoopback => "development tokens are taken on loopback only",
        })
    }
}

impl std::error::Error for TokenError {}

/// Whose tokens are taken.
#[derive(Clone, Debug, Default)]
pub struct VerifierOptions {
    /// Public keys of the issuer; without it only development tokens are taken.
    pub jwks_file: Option<PathBuf>,
    /// `iss` of tokens under those keys.
    pub issuer: String,
    /// `aud` of tokens under those keys.
    pub audience: String,
    /// How far clocks may be apart, seconds.
    pub leeway_s: u64,
    /// The development key; none in production.
    pub dev_key: Option<DevKey>,
}

/// Verifies access tokens. Clones share their keys.
#[derive(Clone)]
pub struct Verifier {
    shared: Arc<Shared>,
}

struct Shared {
    options: VerifierOptions,
    dev: Option<(String, DecodingKey)>,
    jwks: RwLock<JwksFile>,
}

#[derive(serde::Deserialize)]
struct RawClaims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: serde_json::Number,
    #[serde(default)]
    nbf: Option<serde_json::Number>,
    #[serde(default)]
    preferred_username: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    role: Option<serde_json::Value>,
}

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// The end of the year 9999, where a NumericDate is certainly a mistake.
const UNIX_S_MAX: u64 = 253_402_300_799;
/// A subject longer than this is no subject.
const SUBJECT_BYTES_MAX: usize = 255;

impl Verifier {
    /// Reads the keys.
    pub fn new(options: VerifierOptions) -> Result<Self, KeyError> {
        provider::install();
        if options.jwks_file.is_some() && options.issuer == DEV_ISSUER {
            return Err(KeyError::reserved_issuer());
        }
        let jwks = JwksFile::load(options.jwks_file.as_deref())?;
        let dev = options.dev_key.as_ref().map(|key| (key.kid().to_owned(), key.decoding_key()));
        Ok(Self { shared: Arc::new(Shared { options, dev, jwks: RwLock::new(jwks) }) })
    }

    /// Reads the JWKS file again if it changed; whether it did. On an error the keys stay as they were.
    pub fn refresh(&self) -> Result<bool, KeyError> {
        let unchanged = {
            let jwks = self.shared.jwks.read().unwrap_or_else(|poisoned| poisoned.into_inner());
            jwks.is_current(self.shared.options.jwks_file.as_deref())
        };
        if unchanged {
            return Ok(false);
        }
        let fresh = JwksFile::load(self.shared.options.jwks_file.as_deref())?;
        *self.shared.jwks.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = fresh;
        Ok(true)
    }

    /// Checks everything that a token must have. `now_unix_s` is the wall clock's.
    pub fn verify(&self, token: &str, now_unix_s: u64, peer_is_loopback: bool) -> Result<Claims, TokenError> {
        if token.len() > limits::TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        let header = read_header(token)?;
        let kid = header.kid.as_deref().ok_or(TokenError::UnknownKey)?;
        let options = &self.shared.options;
        let (key, issuer, audience, development) = match &self.shared.dev {
            Some((dev_kid, key)) if dev_kid == kid => (key.clone(), DEV_ISSUER, DEV_AUDIENCE, true),
            _ => {
                let jwks = self.shared.jwks.read().unwrap_or_else(|poisoned| poisoned.into_inner());
                let key = jwks.find(kid).ok_or(TokenError::UnknownKey)?.clone();
                (key, options.issuer.as_str(), options.audience.as_str(), false)
            }
        };
        // Times and names are checked below, with the clock that is handed in; the library does the signature.
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        let raw = jsonwebtoken::decode::<RawClaims>(token, &key, &validation).map_err(token_error)?.claims;
        let claims = check_claims(raw, issuer, audience, now_unix_s, options.leeway_s, development)?;
        if development && !peer_is_loopback {
            return Err(TokenError::NotLoopback);
        }
        Ok(claims)
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

/// The header, with the algorithm pinned and nothing in it that would have to be understood.
fn read_header(token: &str) -> Result<jsonwebtoken::Header, TokenError> {
    let encoded = token.split('.').next().unwrap_or_default();
    let bytes = keys::base64url(encoded).ok_or(TokenError::Malformed)?;
    // The library's type knows no `none`; read as plain JSON first so that a wrong algorithm is told from a broken text.
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed)?;
    let alg = value.get("alg").and_then(|alg| alg.as_str()).ok_or(TokenError::Malformed)?;
    let redefined = ["crit", "b64", "enc", "zip"].iter().any(|field| value.get(field).is_some());
    if alg != "EdDSA" || redefined {
        return Err(TokenError::Algorithm);
    }
    serde_json::from_value(value).map_err(|_| TokenError::Malformed)
}

fn token_error(error: jsonwebtoken::errors::Error) -> TokenError {
    use jsonwebtoken::errors::ErrorKind;
    match error.kind() {
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => TokenError::Algorithm,
        _ => TokenError::Malformed,
    }
}

fn unix_s(number: &serde_json::Number) -> Option<u64> {
    // RFC 7519 section 2: a NumericDate may have a fraction.
    let value = number.as_u64().or_else(|| number.as_f64().filter(|value| *value >= 0.0).map(|value| value as u64))?;
    (value <= UNIX_S_MAX).then_some(value)
}

fn check_claims(
    raw: RawClaims,
    issuer: &str,
    audience: &str,
    now_unix_s: u64,
    leeway_s: u64,
    development: bool,
) -> Result<Claims, TokenError> {
    if raw.iss != issuer {
        return Err(TokenError::Issuer);
    }
    let for_us = match &raw.aud {
        Audience::One(one) => one == audience,
        Audience::Many(many) => many.iter().any(|one| one == audience),
    };
    if !for_us {
        return Err(TokenError::Audience);
    }
    let expires_s = unix_s(&raw.exp).ok_or(TokenError::Malformed)?;
    if now_unix_s >= expires_s.saturating_add(leeway_s) {
        return Err(TokenError::Expired);
    }
    if let Some(not_before) = &raw.nbf {
        let not_before_s = unix_s(not_before).ok_or(TokenError::Malformed)?;
        if not_before_s > now_unix_s.saturating_add(leeway_s) {
            return Err(TokenError::NotYet);
        }
    }
    // NUL separates the parts of the unique keys that identities become in the store.
    if raw.sub.is_empty() || raw.sub.len() > SUBJECT_BYTES_MAX || raw.sub.contains('\0') {
        return Err(TokenError::Malformed);
    }
    let wanted = [raw.preferred_username.as_deref(), raw.name.as_deref(), Some(raw.sub.as_str())];
    let name = wanted.into_iter().flatten().find(|name| is_name(name)).unwrap_or_default().to_owned();
    let service = raw.role.as_ref().and_then(|role| role.as_str()) == Some("service");
    let expires_at_ms = expires_s * 1000;
    Ok(Claims { issuer: raw.iss, subject: raw.sub, name, expires_at_ms, service, development })
}

/// Whether a text can be the name of a user.
pub fn is_name(name: &str) -> bool {
    parley_protocol::check::valid_name(name)
}

#[cfg(test)]
mod tests;
