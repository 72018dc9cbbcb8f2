//! The public keys of an issuer, from a JWKS file, and the error of every key file.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::VerifyingKey;
use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use std::collections::HashMap;
use std::path::Path;
use std::time::SystemTime;

/// A JWKS file larger than this is not one.
const JWKS_BYTES_MAX: u64 = 1024 * 1024;

/// A key file that cannot serve. The text names the file and says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyError(String);

impl KeyError {
    pub(super) fn new(path: &Path, what: impl std::fmt::Display) -> Self {
        Self(format!("{}: {what}", path.display()))
    }

    pub(super) fn reserved_issuer() -> Self {
        Self(format!("the issuer {:?} is reserved for the development key; name another", super::DEV_ISSUER))
    }
}

impl std::fmt::Display for KeyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for KeyError {}

/// Decodes base64url without padding.
pub(super) fn base64url(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// Encodes base64url without padding.
pub(super) fn to_base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// What a file looked like when it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stamp(Option<(SystemTime, u64)>);

impl Stamp {
    fn of(path: Option<&Path>) -> Self {
        let metadata = path.and_then(|path| std::fs::metadata(path).ok());
        Self(metadata.and_then(|metadata| Some((metadata.modified().ok()?, metadata.len()))))
    }
}

/// The Ed25519 keys of a JWKS file by their `kid`.
#[derive(Default)]
pub(super) struct JwksFile {
    keys: HashMap<String, DecodingKey>,
    stamp: Stamp,
}

impl JwksFile {
    /// Reads a file; no file: no keys.
    pub(super) fn load(path: Option<&Path>) -> Result<Self, KeyError> {
        let Some(path) = path else { return Ok(Self::default()) };
        // Taken before reading: a change in between shows at the next look.
        let stamp = Stamp::of(Some(path));
        let len = std::fs::metadata(path).map_err(|error| KeyError::new(path, error))?.len();
        if len > JWKS_BYTES_MAX {
            return Err(KeyError::new(path, "too large for a JWKS file"));
        }
        let text = std::fs::read(path).map_err(|error| KeyError::new(path, error))?;
        let set: JwkSet =
            serde_json::from_slice(&text).map_err(|error| KeyError::new(path, format!("not a JWKS: {error}")))?;
        let mut keys = HashMap::new();
        for jwk in &set.keys {
            let Some((kid, key)) = ed25519(jwk).map_err(|what| KeyError::new(path, what))? else { continue };
            if keys.insert(kid.clone(), key).is_some() {
                return Err(KeyError::new(path, format!("two keys have the kid {kid:?}")));
            }
        }
        if keys.is_empty() {
            return Err(KeyError::new(path, "holds no Ed25519 key (kty OKP, crv Ed25519) with a kid"));
        }
        Ok(Self { keys, stamp })
    }

    /// Whether the file looks as it did when it was read.
    pub(super) fn is_current(&self, path: Option<&Path>) -> bool {
        self.stamp == Stamp::of(path)
    }

    pub(super) fn find(&self, kid: &str) -> Option<&DecodingKey> {
        self.keys.get(kid)
    }
}

/// A key that can verify EdDSA; `None` for keys of other kinds, which an issuer may publish beside.
fn ed25519(jwk: &Jwk) -> Result<Option<(String, DecodingKey)>, String> {
    let AlgorithmParameters::OctetKeyPair(pair) = &jwk.algorithm else { return Ok(None) };
    let other_use = jwk.common.public_key_use.as_ref().is_some_and(|used| *used != PublicKeyUse::Signature);
    let other_algorithm = jwk.common.key_algorithm.is_some_and(|algorithm| algorithm != KeyAlgorithm::EdDSA);
    if pair.curve != EllipticCurve::Ed25519 || other_use || other_algorithm {
        return Ok(None);
    }
    let Some(kid) = jwk.common.key_id.clone() else { return Err("an Ed25519 key has no kid".to_owned()) };
    let bytes = base64url(&pair.x).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let point = bytes.and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok()).filter(|key| !key.is_weak());
    match point {
        Some(point) => Ok(Some((kid, DecodingKey::from_ed_der(point.as_bytes())))),
        None => Err(format!("the key {kid:?} is not a point of Ed25519")),
    }
}
