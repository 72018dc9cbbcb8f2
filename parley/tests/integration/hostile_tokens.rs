//! Rows of hostile input: tokens and tickets that must not open a session (RFC 7519, 7515, 8725), and a `Hello` that is
//! none.

use crate::common::raw::{Raw, message, upgrade};
use crate::common::{Device, JSON, RKYV, Server, Settings, Target, new_dir, random, unix_s};
use crate::hostile::{Answer, MALLORY, Opening, Row, TICKETS, TOKENS, Table, decoded, open};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer, SigningKey};
use gateway::identity::{DEV_ISSUER, DevKey, Ticket, Tickets};
use hmac::{Hmac, KeyInit, Mac};
use parley_protocol::frame::{Hello, Renew};
use parley_protocol::{ClientFrame, DeviceId, ErrorCode, ServerFrame, UserId};
use serde_json::{Value, json};
use sha2::Sha256;
use std::path::Path;

const ISSUER: &str = "https://issuer.example";
const KID: &str = "k1";
/// Of the server and of its issuer, seconds.
const LEEWAY_S: u64 = 30;

/// The issuer that the server trusts, beside its development key.
struct Issuer(SigningKey);

impl Issuer {
    fn new(dir: &Path) -> Self {
        let key = SigningKey::from_bytes(&[7; 32]);
        let x = URL_SAFE_NO_PAD.encode(key.verifying_key().as_bytes());
        let jwks =
            json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": KID, "use": "sig", "alg": "EdDSA", "x": x}]});
        std::fs::write(dir.join("jwks.json"), jwks.to_string()).expect("written");
        Self(key)
    }

    fn settings(dir: &Path) -> Settings {
        let file = dir.join("jwks.json");
        let file = file.to_str().expect("a UTF-8 path");
        // Beside an issuer the development key is taken only where it is named.
        let dev_key = dir.join("dev-key.json");
        Settings::new()
            .gateway("identity.jwks_file", file)
            .gateway("session.devices_max", 64)
            .gateway("identity.issuer", ISSUER)
            .gateway("identity.dev_key_file", dev_key.to_str().expect("a UTF-8 path"))
    }

    fn sign(&self, header: Value, claims: Value) -> String {
        let signed = unsigned(&header, &claims);
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(signed.as_bytes()).to_bytes());
        format!("{signed}.{signature}")
    }

    fn with_header(&self, header: Value) -> String {
        self.sign(header, claims())
    }

    fn with_claim(&self, name: &str, value: Value) -> String {
        let mut claims = claims();
        claims[name] = value;
        self.sign(header(), claims)
    }
}

fn header() -> Value {
    json!({"alg": "EdDSA", "typ": "JWT", "kid": KID})
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": "parley", "sub": MALLORY, "exp": unix_s() + 3_600})
}

fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

/// HS256 under whatever the attacker knows.
fn hmac_signed(kid: &str, secret: &[u8]) -> String {
    let signed = unsigned(&json!({"alg": "HS256", "typ": "JWT", "kid": kid}), &claims());
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

/// Name, token, and what is wrong with it.
fn bad_tokens(issuer: &Issuer, server: &Server) -> Vec<(String, String, &'static str)> {
    let public = issuer.0.verifying_key();
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(public.as_bytes())});
    let stranger = Issuer(SigningKey::from_bytes(&[8; 32]));
    let own =
        json!({"kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(stranger.0.verifying_key().as_bytes())});
    let (good, dev) = (issuer.with_header(header()), DevKey::load(server.data()).expect("the server's key"));
    let mut parts: Vec<&str> = good.split('.').collect();
    let service = URL_SAFE_NO_PAD.encode({
        let mut claims = claims();
        claims["role"] = json!("service");
        claims.to_string()
    });
    parts[1] = &service;
    let promoted = parts.join(".");
    let (past, soon) = (unix_s() - 2 * LEEWAY_S, unix_s() + 20 * LEEWAY_S);
    let kid = |kid: &str| issuer.with_header(json!({"alg": "EdDSA", "kid": kid}));
    let mut rows = vec![
        ("words".to_owned(), "let me in".to_owned(), "malformed"),
        ("alg: none".to_owned(), format!("{}.", unsigned(&json!({"alg": "none"}), &claims())), "algorithm"),
        ("alg: nOnE with a kid".to_owned(), stranger.with_header(json!({"alg": "nOnE", "kid": KID})), "algorithm"),
        ("the public key's bytes as HMAC secret".to_owned(), hmac_signed(KID, public.as_bytes()), "algorithm"),
        ("the public key's JWK as HMAC secret".to_owned(), hmac_signed(KID, jwk.to_string().as_bytes()), "algorithm"),
        ("the development key's kid and HMAC".to_owned(), hmac_signed(dev.kid(), dev.kid().as_bytes()), "algorithm"),
        (
            "a critical extension".to_owned(),
            issuer.with_header(json!({"alg": "EdDSA", "kid": KID, "crit": ["b64"]})),
            "algorithm",
        ),
        (
            "no kid, and a key of its own".to_owned(),
            stranger.with_header(json!({"alg": "EdDSA", "jwk": own})),
            "unknown_key",
        ),
        (
            "a URL of keys".to_owned(),
            stranger.with_header(json!({"alg": "EdDSA", "jku": "https://evil.example"})),
            "unknown_key",
        ),
        (
            "another issuer's, under the trusted key".to_owned(),
            issuer.with_claim("iss", json!("https://other.example")),
            "issuer",
        ),
        (
            "the development issuer's name under the trusted key".to_owned(),
            issuer.with_claim("iss", json!(DEV_ISSUER)),
            "issuer",
        ),
        (
            "another issuer's, under its own key".to_owned(),
            stranger.with_header(json!({"alg": "EdDSA", "kid": "other"})),
            "unknown_key",
        ),
        ("a stranger's key under the trusted kid".to_owned(), stranger.with_header(header()), "signature"),
        (
            "a stranger's key under the development kid".to_owned(),
            stranger.with_header(json!({"alg": "EdDSA", "kid": dev.kid()})),
            "signature",
        ),
        ("a role that was put in later".to_owned(), promoted, "signature"),
        ("for another audience".to_owned(), issuer.with_claim("aud", json!("elsewhere")), "audience"),
        ("expired".to_owned(), issuer.with_claim("exp", json!(past)), "expired"),
        ("not valid yet".to_owned(), issuer.with_claim("nbf", json!(soon)), "not_yet"),
        ("without an expiry".to_owned(), issuer.with_claim("exp", Value::Null), "malformed"),
        ("a subject with NUL".to_owned(), issuer.with_claim("sub", json!("alice\0mallory")), "malformed"),
    ];
    for path in ["../../../../dev/null", "/dev/null", "../dev-key.json", "dev-key.json", "k1\0.json", "' OR 1=1 --"] {
        rows.push((format!("{path:?} as kid"), kid(path), "unknown_key"));
    }
    rows.push(("/dev/null as kid, and the empty HMAC secret".to_owned(), hmac_signed("/dev/null", b""), "algorithm"));
    rows
}

fn hello_with(target: &Target, token: Option<String>, resume: Option<String>) -> Hello {
    Device::new(target, MALLORY, JSON).hello(token, resume)
}

fn send_hello(raw: &mut Raw, hello: Hello) {
    raw.send(&message(JSON, &ClientFrame::Hello(hello)));
}

#[test]
fn bad_tokens_are_4010() {
    let dir = new_dir();
    let issuer = Issuer::new(dir.path());
    let mut table = Table::with(Server::apart_on(dir.path(), Issuer::settings(dir.path())));
    table.warm_up();
    let target = table.server.target();
    // A token of this issuer's is good, so what is refused below is refused for what is wrong with it.
    let mut raw = open(&target, Opening::Upgraded(JSON));
    send_hello(&mut raw, hello_with(&target, Some(issuer.with_header(header())), None));
    let welcome = raw.receive().expect("welcome");
    assert!(matches!(decoded(JSON, &welcome.payload), ServerFrame::Welcome(_)), "{welcome:?}");
    drop(raw);

    let tokens = bad_tokens(&issuer, &table.server);
    let mut rows: Vec<Row<'_>> = Vec::new();
    for (name, token, wrong) in &tokens {
        let attack = |raw: &mut Raw| send_hello(raw, hello_with(&target, Some(token.clone()), None));
        let row = Row::new(format!("a token: {name}"), Opening::Upgraded(JSON), attack, Answer::Close(4010), "token");
        rows.push(row.also(TOKENS, wrong));
    }
    let (name, token, wrong) = &tokens[1];
    let of_target = &target;
    let in_the_head = move |raw: &mut Raw| {
        let head = upgrade(JSON).replace("\r\n\r\n", &format!("\r\nAuthorization: Bearer {token}\r\n\r\n"));
        raw.send(head.as_bytes());
        assert_eq!(raw.http_answer().0, 101);
        send_hello(raw, hello_with(of_target, None, None));
    };
    let name = format!("Authorization: {name}");
    rows.push(Row::new(name, Opening::Connected, in_the_head, Answer::Close(4010), "token").also(TOKENS, wrong));
    let renew = move |raw: &mut Raw| {
        raw.send(&message(RKYV, &ClientFrame::Renew(Renew { token: token.clone() })));
    };
    let answer = Answer::Errors(ErrorCode::BadToken, 1);
    rows.push(Row::new("a bad token to renew with", Opening::Seated(RKYV), renew, answer, "token").also(TOKENS, wrong));
    table.run(&rows);
    table.ends_well();
}

#[test]
fn a_session_ends_with_its_token() {
    const LIFE_S: u64 = 4;
    let settings = Settings::new().gateway("identity.expiry_grace_s", 0).gateway("identity.leeway_s", 0);
    let mut table = Table::new(settings);
    let target = table.server.target();
    let attack = |raw: &mut Raw| {
        send_hello(raw, hello_with(&target, Some(target.token(MALLORY, LIFE_S, false)), None));
        let welcome = raw.receive().expect("welcome");
        assert!(matches!(decoded(JSON, &welcome.payload), ServerFrame::Welcome(_)), "{welcome:?}");
    };
    let answer = Answer::Close(4011);
    let row = Row::new("a token that expires mid-session", Opening::Upgraded(JSON), attack, answer, "token_expired");
    table.run(&[row.once()]);
    table.ends_well();
}

#[test]
fn bad_tickets_are_4010() {
    let mut table = Table::new(Settings::new());
    let target = table.server.target();
    let (ours, theirs) = (Tickets::load_or_create(table.server.data()).expect("the key"), Tickets::new(&[9; 32]));
    let device_id = DeviceId(random());
    let now_ms = unix_s() * 1_000;
    let ticket = |user_id, expires_at_ms| Ticket {
        user_id,
        device_id,
        name: "alice".to_owned(),
        expires_at_ms,
        loopback_only: true,
    };
    let good = ours.issue(&ticket(table.alice.user_id, now_ms + 3_600_000));
    let changed = |at: usize| {
        let mut bytes = URL_SAFE_NO_PAD.decode(&good).expect("base64");
        bytes[at] ^= 1;
        URL_SAFE_NO_PAD.encode(bytes)
    };
    let of_device = |resume: &str, device_id| Hello { device_id, ..hello_with(&target, None, Some(resume.to_owned())) };
    // As it is, the ticket opens a session.
    let mut raw = open(&target, Opening::Upgraded(JSON));
    send_hello(&mut raw, of_device(&good, device_id));
    let welcome = raw.receive().expect("welcome");
    assert!(matches!(decoded(JSON, &welcome.payload), ServerFrame::Welcome(_)), "{welcome:?}");
    drop(raw);

    let nobody = UserId(1 << 60);
    let tickets = [
        ("a ticket that is none", "AAAA".to_owned(), device_id, "forged"),
        (
            "a forged ticket: another key",
            theirs.issue(&ticket(table.alice.user_id, now_ms + 3_600_000)),
            device_id,
            "forged",
        ),
        (
            "a forged ticket: another key, for nobody",
            theirs.issue(&ticket(nobody, now_ms + 3_600_000)),
            device_id,
            "forged",
        ),
        ("a forged ticket: another user", changed(2), device_id, "forged"),
        ("a forged ticket: a later expiry", changed(2 + 8 + 16 + 6), device_id, "forged"),
        ("a forged ticket: not for loopback only", changed(1), device_id, "forged"),
        ("an expired ticket", ours.issue(&ticket(table.alice.user_id, now_ms - 1_000)), device_id, "expired"),
        ("another device's ticket", good.clone(), DeviceId(device_id.0 ^ 1), "device"),
    ];
    let rows: Vec<Row<'_>> = tickets
        .iter()
        .map(|(name, resume, device_id, wrong)| {
            let attack = |raw: &mut Raw| send_hello(raw, of_device(resume, *device_id));
            let row = Row::new(*name, Opening::Upgraded(JSON), attack, Answer::Close(4010), "ticket");
            row.also(TICKETS, wrong)
        })
        .collect();
    table.run(&rows);
    table.ends_well();
}

#[test]
fn a_bad_hello_is_closed() {
    let mut table = Table::new(Settings::new());
    let target = table.server.target();
    let good = || hello_with(&target, Some(target.token(MALLORY, 3_600, false)), None);
    let alice = table.alice.user_id;
    type Change = Box<dyn Fn(&mut Hello) + Sync>;
    let hellos: Vec<(&str, Change, u16, &'static str)> = vec![
        ("no token at all", Box::new(|hello| hello.token = None), 4010, "no_credentials"),
        ("an empty token", Box::new(|hello| hello.token = Some(String::new())), 1008, "hello_bounds"),
        ("a token of 4,097 bytes", Box::new(|hello| hello.token = Some("t".repeat(4_097))), 1008, "hello_bounds"),
        ("a ticket of 4,097 bytes", Box::new(|hello| hello.resume = Some("t".repeat(4_097))), 1008, "hello_bounds"),
        ("a client's name that is too long", Box::new(|hello| hello.client = "c".repeat(129)), 1008, "hello_bounds"),
        ("too many kinds", Box::new(|hello| hello.kinds_known = vec![900; 65]), 1008, "hello_bounds"),
        ("another version", Box::new(|hello| hello.version = 2), 4024, "protocol_version"),
        ("act_for somebody who exists", Box::new(move |hello| hello.act_for = Some(alice)), 4023, "forbidden"),
        ("act_for nobody", Box::new(|hello| hello.act_for = Some(UserId(1 << 60))), 4023, "forbidden"),
    ];
    let mut rows = Vec::new();
    for (name, change, code, reason) in &hellos {
        for encoding in [JSON, RKYV] {
            let attack = move |raw: &mut Raw| {
                let mut hello = good();
                change(&mut hello);
                raw.send(&message(encoding, &ClientFrame::Hello(hello)));
            };
            let name = format!("{name}, {encoding:?}");
            rows.push(Row::new(name, Opening::Upgraded(encoding), attack, Answer::Close(*code), reason));
        }
    }
    table.run(&rows);
    table.ends_well();
}
