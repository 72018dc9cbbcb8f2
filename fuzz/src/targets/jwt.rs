//! Access tokens against a second reading of RFC 7515 and RFC 7519: what is taken is signed by the key that its `kid`
//! names, with EdDSA, for this issuer and audience and this moment, and says what was read from it; a changed token is
//! never taken; whoever cannot sign learns nothing about claims.
//!
//! An input's first line says how the token is made of the rest: `raw` (the rest is the token), or the words
//! `issuer | dev | stranger | empty | foreign` (whose signature), `loopback` (where the client is) and `xor POSITION VALUE`
//! (a change afterwards), in any order; then a line with the header, then the claims.

use crate::{Target, Verdict};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signature, Signer, SigningKey};
use gateway::identity::{Claims, DEV_AUDIENCE, DEV_ISSUER, DevKey, TokenError, Verifier, VerifierOptions, is_name};
use serde_json::{Value, json};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::LazyLock;

/// See [`crate::TARGETS`].
pub const TARGET: Target = Target {
    name: "jwt",
    about: "access tokens",
    run,
    input_bytes_max: 4_096,
    dictionary: &[
        b"raw\n",
        b"issuer",
        b"dev loopback",
        b"stranger",
        b"foreign",
        b" xor 1 1",
        b"{\"alg\":\"EdDSA\",\"kid\":\"k1\"}\n",
        b"{\"alg\":\"EdDSA\",\"kid\":\"parley-dev-fuzz\"}\n",
        b"\"alg\":\"none\"",
        b"\"alg\":\"HS256\"",
        b"\"crit\":[\"b64\"]",
        b"\"jwk\":{}",
        b"\"aud\":[\"parley\"]",
        b"\"aud\":\"parley\"",
        b"\"iss\":\"https://issuer.example\"",
        b"\"iss\":\"parley-dev\"",
        b"\"exp\":1800000000",
        b"\"exp\":1.8e9",
        b"\"nbf\":1800000005",
        b"\"sub\":\"u-1\"",
        b"\"role\":\"service\"",
        b"\"name\":null",
        b"\\u0000",
        b".",
        b"=",
        b"=.",
    ],
    golden: &[],
};

const NOW_S: u64 = 1_800_000_000;
const LEEWAY_S: u64 = 5;
const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "parley";
const ISSUER_KID: &str = "k1";
const DEV_KID: &str = "parley-dev-fuzz";
/// The last second of the year 9999.
const UNIX_S_MAX: f64 = 253_402_300_799.0;

struct World {
    verifier: Verifier,
    issuer: SigningKey,
    dev: SigningKey,
    stranger: SigningKey,
}

/// Keys that never change, so that an input means the same for ever.
static WORLD: LazyLock<World> = LazyLock::new(|| {
    let [issuer, dev, stranger] = [7, 5, 9].map(|byte| SigningKey::from_bytes(&[byte; 32]));
    let x = |key: &SigningKey| URL_SAFE_NO_PAD.encode(key.verifying_key().as_bytes());
    let dir = tempfile::tempdir().expect("a directory for the key files");
    let jwks = dir.path().join("jwks.json");
    let keys = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": ISSUER_KID, "x": x(&issuer)}]});
    std::fs::write(&jwks, keys.to_string()).expect("a JWKS");
    let dev_file = dir.path().join("dev-key.json");
    let d = URL_SAFE_NO_PAD.encode(dev.as_bytes());
    let key = json!({"kty": "OKP", "crv": "Ed25519", "kid": DEV_KID, "x": x(&dev), "d": d});
    let secret = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&dev_file);
    std::io::Write::write_all(&mut secret.expect("a key file"), key.to_string().as_bytes()).expect("a key");
    let verifier = Verifier::new(VerifierOptions {
        jwks_file: Some(jwks),
        issuer: ISSUER.to_owned(),
        audience: AUDIENCE.to_owned(),
        leeway_s: LEEWAY_S,
        dev_key: Some(DevKey::load_file(&dev_file).expect("the key")),
    });
    World { verifier: verifier.expect("keys"), issuer, dev, stranger }
});

/// A token as an input describes it.
struct Made {
    token: Vec<u8>,
    loopback: bool,
    /// A byte was changed after it was signed.
    changed: bool,
}

fn run(data: &[u8]) -> Verdict {
    let Some(made) = make(data) else { return Verdict::Refused };
    let Ok(token) = std::str::from_utf8(&made.token) else { return Verdict::Refused };
    let verdict = WORLD.verifier.verify(token, NOW_S, made.loopback);
    let signed = signed_parts(token);
    match &verdict {
        Ok(claims) => {
            assert!(!made.changed, "a token that was changed after signing is taken: {token}");
            let (header, payload, development) = signed.unwrap_or_else(|| panic!("nobody signed {token}"));
            assert_eq!(header["alg"], "EdDSA");
            assert!(["crit", "b64", "enc", "zip"].iter().all(|field| header.get(field).is_none()), "{header}");
            assert!(made.loopback || !development, "a development token from another machine");
            let read = payload.map(|payload| (read_claims(&payload, development), payload));
            assert!(read.as_ref().is_none_or(|(read, _)| read.as_ref() == Some(claims)), "{claims:?} of {read:?}");
        }
        Err(error) => {
            // What a token claims matters, and is told, only when its signature is good.
            use TokenError::*;
            let about_claims = matches!(error, Issuer | Audience | Expired | NotYet | NotLoopback);
            assert!(!about_claims || signed.is_some(), "{error} of a token that nobody signed: {token}");
            if let Some((header, Some(payload), development)) = signed {
                let refusable = (development && !made.loopback) || token.len() > 4_096;
                let good = read_claims(&payload, development).is_some() && plain(token, &header, &payload);
                assert!(refusable || !good, "{error}: {header} {payload}");
            }
        }
    }
    verdict.is_ok().into()
}

fn make(data: &[u8]) -> Option<Made> {
    let (how, rest) = split_line(data)?;
    let words: Vec<&[u8]> = how.split(|byte| *byte == b' ').collect();
    let loopback = words.contains(&&b"loopback"[..]);
    if words.contains(&&b"raw"[..]) {
        return Some(Made { token: rest.to_vec(), loopback, changed: false });
    }
    let (header, claims) = split_line(rest)?;
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let sign = |key: &SigningKey, message: &str| key.sign(message.as_bytes()).to_bytes().to_vec();
    let signature = words.iter().find_map(|word| match *word {
        b"issuer" => Some(sign(&WORLD.issuer, &message)),
        b"dev" => Some(sign(&WORLD.dev, &message)),
        b"stranger" => Some(sign(&WORLD.stranger, &message)),
        // A good signature of another message.
        b"foreign" => Some(sign(&WORLD.issuer, &format!("{message}A"))),
        b"empty" => Some(Vec::new()),
        _ => None,
    })?;
    let mut token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)).into_bytes();
    let number = |word: Option<&&[u8]>| std::str::from_utf8(word?).ok()?.parse::<usize>().ok();
    let mut changed = false;
    if let Some(at) = words.iter().position(|word| *word == b"xor") {
        let (place, value) = (number(words.get(at + 1))? % token.len(), number(words.get(at + 2))? as u8);
        token[place] ^= value;
        changed = value != 0;
    }
    Some(Made { token, loopback, changed })
}

fn split_line(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = data.iter().position(|byte| *byte == b'\n')?;
    Some((&data[..end], &data[end + 1..]))
}

/// Header and claims of a token that the key of its `kid` signed, and whether that is the development key. Claims that
/// are deeper than this reader goes come as `None`; those that nobody reads may have any depth, and bytes that are no
/// text.
fn signed_parts(token: &str) -> Option<(Value, Option<Value>, bool)> {
    let (message, signature) = token.rsplit_once('.')?;
    let (header, claims) = message.split_once('.')?;
    let json = |part: &str| serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
    let header = json(header)?;
    let (key, development) = match header.get("kid")?.as_str()? {
        ISSUER_KID => (&WORLD.issuer, false),
        DEV_KID => (&WORLD.dev, true),
        _ => return None,
    };
    let signature = Signature::from_slice(&URL_SAFE_NO_PAD.decode(signature).ok()?).ok()?;
    key.verifying_key().verify_strict(message.as_bytes(), &signature).ok()?;
    let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
    Some((header, serde_json::from_str(&String::from_utf8_lossy(&claims)).ok(), development))
}

/// What good claims say; `None` for claims that must be refused.
fn read_claims(claims: &Value, development: bool) -> Option<Claims> {
    let (issuer, audience) = if development { (DEV_ISSUER, DEV_AUDIENCE) } else { (ISSUER, AUDIENCE) };
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    let seconds = |value: &Value| value.as_f64().map(f64::trunc).filter(|s| (0.0..=UNIX_S_MAX).contains(s));
    if text("iss")? != issuer {
        return None;
    }
    let for_us = match claims.get("aud")? {
        Value::Array(many) => many.iter().any(|one| one == audience),
        one => one == audience,
    };
    let expires_s = seconds(claims.get("exp")?)?;
    let not_before_s = match claims.get("nbf") {
        None | Some(Value::Null) => 0.0,
        Some(value) => seconds(value)?,
    };
    let subject = text("sub").filter(|sub| (1..=255).contains(&sub.len()) && !sub.contains('\0'))?;
    let (now_s, leeway_s) = (NOW_S as f64, LEEWAY_S as f64);
    if !for_us || now_s >= expires_s + leeway_s || not_before_s > now_s + leeway_s {
        return None;
    }
    let names = [text("preferred_username"), text("name"), Some(subject)];
    Some(Claims {
        issuer: issuer.to_owned(),
        subject: subject.to_owned(),
        name: names.into_iter().flatten().find(|name| is_name(name)).unwrap_or_default().to_owned(),
        expires_at_ms: expires_s as u64 * 1000,
        service: text("role") == Some("service"),
        development,
    })
}

/// Whether header and claims hold nothing but the fields that are read, with the types that RFC 7519 gives them, each
/// once: then there is no reason left to refuse. Fields stand in their alphabetical order, which shows that none came
/// twice.
fn plain(token: &str, header: &Value, claims: &Value) -> bool {
    let mut parts = token.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let mut once = |value: &Value| parts.next().flatten() == serde_json::to_vec(value).ok();
    let only = |value: &Value, texts: &[&str], others: &[&str]| {
        value.as_object().is_some_and(|fields| {
            fields.iter().all(|(name, value)| {
                (texts.contains(&name.as_str()) && value.is_string()) || others.contains(&name.as_str())
            })
        })
    };
    let audiences_are_texts = match &claims["aud"] {
        Value::Array(many) => many.iter().all(Value::is_string),
        one => one.is_string(),
    };
    once(header)
        && once(claims)
        && header["alg"] == "EdDSA"
        && only(header, &["alg", "kid", "typ"], &[])
        && only(claims, &["iss", "name", "preferred_username", "sub"], &["aud", "exp", "nbf", "role"])
        && audiences_are_texts
}
