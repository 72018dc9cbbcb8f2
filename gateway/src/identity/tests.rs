//! Tokens and tickets that must be refused, beside those that must not.

use super::keys::to_base64url;
use super::*;
use ed25519_dalek::{Signer, SigningKey};
use hmac::{Hmac, KeyInit, Mac};
use parley_protocol::{DeviceId, UserId};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;

const NOW_S: u64 = 1_800_000_000;

struct Issuer {
    key: SigningKey,
    dir: tempfile::TempDir,
}

impl Issuer {
    fn new() -> Self {
        let key = SigningKey::from_bytes(&[7; 32]);
        let dir = tempfile::tempdir().expect("a directory");
        let issuer = Self { key, dir };
        issuer.write_jwks("k1");
        issuer
    }

    fn jwks_file(&self) -> PathBuf {
        self.dir.path().join("jwks.json")
    }

    fn write_jwks(&self, kid: &str) {
        let x = to_base64url(self.key.verifying_key().as_bytes());
        let keys = json!({"keys": [
            {"kty": "RSA", "kid": "other", "n": "AQAB", "e": "AQAB"},
            {"kty": "OKP", "crv": "Ed25519", "kid": kid, "use": "sig", "alg": "EdDSA", "x": x},
        ]});
        std::fs::write(self.jwks_file(), keys.to_string()).expect("written");
    }

    fn verifier(&self) -> Verifier {
        Verifier::new(VerifierOptions {
            jwks_file: Some(self.jwks_file()),
            issuer: "https://issuer.example".to_owned(),
            audience: "parley".to_owned(),
            leeway_s: 5,
            dev_key: Some(DevKey::load_or_create(self.dir.path()).expect("a key")),
        })
        .expect("keys")
    }

    fn claims(&self) -> Value {
        json!({"iss": "https://issuer.example", "aud": "parley", "sub": "u-1", "exp": NOW_S + 60})
    }

    fn sign(&self, header: Value, claims: Value) -> String {
        let message = message(&header, &claims);
        let signature = self.key.sign(message.as_bytes());
        format!("{message}.{}", to_base64url(&signature.to_bytes()))
    }

    fn token(&self, claims: Value) -> String {
        self.sign(json!({"alg": "EdDSA", "typ": "JWT", "kid": "k1"}), claims)
    }

    fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        self.verifier().verify(token, NOW_S, false)
    }

    fn with(&self, field: &str, value: Value) -> Result<Claims, TokenError> {
        let mut claims = self.claims();
        claims[field] = value;
        self.verify(&self.token(claims))
    }
}

fn message(header: &Value, claims: &Value) -> String {
    format!("{}.{}", to_base64url(header.to_string().as_bytes()), to_base64url(claims.to_string().as_bytes()))
}

#[test]
fn a_good_token_says_who() {
    let issuer = Issuer::new();
    let claims = issuer.verify(&issuer.token(issuer.claims())).expect("taken");
    assert_eq!(claims.issuer, "https://issuer.example");
    assert_eq!((claims.subject.as_str(), claims.name.as_str()), ("u-1", "u-1"));
    assert_eq!(claims.expires_at_ms, (NOW_S + 60) * 1000);
    assert!(!claims.service && !claims.development);
    assert_eq!(issuer.with("aud", json!(["else", "parley"])).map(|claims| claims.service), Ok(false));
    assert_eq!(issuer.with("role", json!("service")).map(|claims| claims.service), Ok(true));
    assert_eq!(issuer.with("role", json!(["service"])).map(|claims| claims.service), Ok(false));
    assert_eq!(issuer.with("preferred_username", json!("alice")).expect("taken").name, "alice");
    assert_eq!(issuer.with("name", json!("bob")).expect("taken").name, "bob");
    assert_eq!(issuer.with("name", json!(" bob")).expect("taken").name, "u-1", "not a name: the next one counts");
}

#[test]
fn the_algorithm_is_pinned() {
    let issuer = Issuer::new();
    let none = message(&json!({"alg": "none", "kid": "k1"}), &issuer.claims());
    assert_eq!(issuer.verify(&format!("{none}.")), Err(TokenError::Algorithm));
    let hs = message(&json!({"alg": "HS256", "kid": "k1"}), &issuer.claims());
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(issuer.key.verifying_key().as_bytes()).expect("a key");
    mac.update(hs.as_bytes());
    let forged = format!("{hs}.{}", to_base64url(&mac.finalize().into_bytes()));
    assert_eq!(issuer.verify(&forged), Err(TokenError::Algorithm));
    let crit = json!({"alg": "EdDSA", "kid": "k1", "crit": ["b64"], "b64": false});
    assert_eq!(issuer.verify(&issuer.sign(crit, issuer.claims())), Err(TokenError::Algorithm));
}

#[test]
fn a_key_is_found_by_its_kid_and_by_nothing_else() {
    let issuer = Issuer::new();
    for kid in ["../../etc/passwd", "/dev/null", "other", "k2", ""] {
        let token = issuer.sign(json!({"alg": "EdDSA", "kid": kid}), issuer.claims());
        assert_eq!(issuer.verify(&token), Err(TokenError::UnknownKey), "{kid}");
    }
    let own_key = json!({"kty": "OKP", "crv": "Ed25519", "x": to_base64url(&[1; 32])});
    for header in [json!({"alg": "EdDSA"}), json!({"alg": "EdDSA", "jwk": own_key, "jku": "https://evil.example"})] {
        assert_eq!(issuer.verify(&issuer.sign(header, issuer.claims())), Err(TokenError::UnknownKey));
    }
}

#[test]
fn who_for_whom_and_when_are_checked() {
    let issuer = Issuer::new();
    assert_eq!(issuer.with("iss", json!("https://other.example")), Err(TokenError::Issuer));
    assert_eq!(issuer.with("iss", json!(DEV_ISSUER)), Err(TokenError::Issuer));
    assert_eq!(issuer.with("aud", json!("else")), Err(TokenError::Audience));
    assert_eq!(issuer.with("aud", json!([])), Err(TokenError::Audience));
    assert_eq!(issuer.with("exp", json!(NOW_S - 5)), Err(TokenError::Expired));
    assert!(issuer.with("exp", json!(NOW_S - 4)).is_ok(), "within the leeway");
    assert!(issuer.with("exp", json!(NOW_S as f64 + 10.5)).is_ok(), "a fraction is a NumericDate");
    assert_eq!(issuer.with("nbf", json!(NOW_S + 6)), Err(TokenError::NotYet));
    for (field, value) in [
        ("exp", json!("soon")),
        ("exp", json!(-1)),
        ("exp", json!(1e300)),
        ("sub", json!("")),
        ("sub", json!(7)),
        ("sub", json!("a\0b")),
        ("sub", json!("x".repeat(256))),
        ("aud", json!(null)),
        ("iss", json!(null)),
    ] {
        assert_eq!(issuer.with(field, value.clone()), Err(TokenError::Malformed), "{field} {value}");
    }
}

#[test]
fn a_changed_token_is_not_a_token() {
    let issuer = Issuer::new();
    let token = issuer.token(issuer.claims());
    let mut parts: Vec<&str> = token.split('.').collect();
    let mut claims = issuer.claims();
    claims["sub"] = json!("u-2");
    let other = to_base64url(claims.to_string().as_bytes());
    parts[1] = &other;
    assert_eq!(issuer.verify(&parts.join(".")), Err(TokenError::Signature));
    let stranger = Issuer { key: SigningKey::from_bytes(&[8; 32]), dir: tempfile::tempdir().expect("a directory") };
    assert_eq!(issuer.verify(&stranger.token(issuer.claims())), Err(TokenError::Signature));
    for text in ["", ".", "..", "...", "a.b.c", "!!.!!.!!", &token[..token.len() / 2], &"x".repeat(10_000)] {
        assert_eq!(issuer.verify(text), Err(TokenError::Malformed), "{text:.20}");
    }
    let twice = format!("{token}.{token}");
    assert!(issuer.verify(&twice).is_err());
}

#[test]
fn development_tokens_are_taken_on_loopback_only() {
    let issuer = Issuer::new();
    let verifier = issuer.verifier();
    let key = DevKey::load(issuer.dir.path()).expect("made by the verifier's");
    let (token, claims) = key.sign("alice", NOW_S, 60, false).expect("signed");
    assert_eq!(verifier.verify(&token, NOW_S, true), Ok(claims.clone()));
    assert!(claims.development && claims.name == "alice" && claims.issuer == DEV_ISSUER);
    assert_eq!(verifier.verify(&token, NOW_S, false), Err(TokenError::NotLoopback));
    assert_eq!(verifier.verify(&token, NOW_S + 65, true), Err(TokenError::Expired));
    let (service, _) = key.sign("robot", NOW_S, 60, true).expect("signed");
    assert!(verifier.verify(&service, NOW_S, true).expect("taken").service);
    assert_eq!(key.sign("", NOW_S, 60, false), Err(TokenError::Malformed));
    let without = Verifier::new(VerifierOptions::default()).expect("no keys");
    assert_eq!(without.verify(&token, NOW_S, true), Err(TokenError::UnknownKey));
}

#[test]
fn the_development_key_is_secret_and_stays() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = DevKey::load_or_create(dir.path()).expect("made");
    assert_eq!(DevKey::load_or_create(dir.path()).expect("read").kid(), first.kid());
    let path = dir.path().join("dev-key.json");
    let mode = std::fs::metadata(&path).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("changed");
    assert!(DevKey::load(dir.path()).expect_err("refused").to_string().contains("chmod 600"));
    assert!(!format!("{first:?}").contains("seed"));
}

#[test]
fn a_changed_jwks_file_is_read_again_and_a_broken_one_changes_nothing() {
    let issuer = Issuer::new();
    let verifier = issuer.verifier();
    let token = issuer.token(issuer.claims());
    assert_eq!(verifier.refresh(), Ok(false));
    std::fs::write(issuer.jwks_file(), "{").expect("written");
    assert!(verifier.refresh().is_err());
    assert!(verifier.verify(&token, NOW_S, false).is_ok(), "the old keys serve on");
    issuer.write_jwks("k2-after-rotation");
    assert_eq!(verifier.refresh(), Ok(true));
    assert_eq!(verifier.verify(&token, NOW_S, false), Err(TokenError::UnknownKey));
    let rotated = issuer.sign(json!({"alg": "EdDSA", "kid": "k2-after-rotation"}), issuer.claims());
    assert!(verifier.verify(&rotated, NOW_S, false).is_ok());
}

#[test]
fn a_jwks_file_that_cannot_serve_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("jwks.json");
    let open = |text: &str| {
        std::fs::write(&path, text).expect("written");
        let options = VerifierOptions { jwks_file: Some(path.clone()), ..VerifierOptions::default() };
        Verifier::new(options).map(|_| ()).map_err(|error| error.to_string())
    };
    let weak = to_base64url(&[0; 32]);
    for (text, says) in [
        ("nonsense".to_owned(), "not a JWKS"),
        (r#"{"keys":[]}"#.to_owned(), "no Ed25519 key"),
        (json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": weak}]}).to_string(), "no kid"),
        (json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "w", "x": weak}]}).to_string(), "not a point"),
    ] {
        let error = open(&text).expect_err("refused");
        assert!(error.contains(says) && error.contains("jwks.json"), "{error}");
    }
}

fn ticket() -> Ticket {
    Ticket {
        user_id: UserId(42),
        device_id: DeviceId(7 << 100),
        name: "älice".to_owned(),
        expires_at_ms: NOW_S * 1000,
        loopback_only: false,
    }
}

#[test]
fn a_ticket_comes_back_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    let tickets = Tickets::load_or_create(dir.path()).expect("a key");
    let text = tickets.issue(&ticket());
    let again = Tickets::load_or_create(dir.path()).expect("the same key");
    assert_eq!(again.verify(&text, DeviceId(7 << 100), NOW_S * 1000 - 1, false), Ok(ticket()));
    let mode = std::fs::metadata(dir.path().join("ticket.key")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let longest = Ticket { name: "x".repeat(limits::NAME_BYTES_MAX), ..ticket() };
    assert_eq!(tickets.verify(&tickets.issue(&longest), longest.device_id, 0, false), Ok(longest));
}

#[test]
fn a_ticket_of_another_device_time_place_or_key_is_refused() {
    let tickets = Tickets::new(&[1; 32]);
    let text = tickets.issue(&ticket());
    let device = DeviceId(7 << 100);
    assert_eq!(tickets.verify(&text, DeviceId(8), 0, false), Err(TicketError::Device));
    assert_eq!(tickets.verify(&text, device, NOW_S * 1000, false), Err(TicketError::Expired));
    assert_eq!(Tickets::new(&[2; 32]).verify(&text, device, 0, false), Err(TicketError::Forged));
    let local = tickets.issue(&Ticket { loopback_only: true, ..ticket() });
    assert_eq!(tickets.verify(&local, device, 0, false), Err(TicketError::NotLoopback));
    assert!(tickets.verify(&local, device, 0, true).is_ok());
}

#[test]
fn no_changed_byte_of_a_ticket_passes() {
    let tickets = Tickets::new(&[1; 32]);
    let bytes = super::keys::base64url(&tickets.issue(&ticket())).expect("base64");
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let text = to_base64url(&changed);
        assert_eq!(tickets.verify(&text, DeviceId(7 << 100), 0, true), Err(TicketError::Forged), "byte {at}");
    }
    for text in ["", "x", "!", &"A".repeat(5_000)] {
        assert_eq!(tickets.verify(text, DeviceId(7 << 100), 0, true), Err(TicketError::Forged));
    }
}
