//! What it costs to verify an EdDSA signature, and a whole token, here and now: the same crate and the same call as in
//! the gateway, in this process, by the CPU clock of this thread.

use crate::tokens::Tokens;
use ed25519_dalek::{Signature, VerifyingKey};
use gateway::identity::{DevKey, Verifier, VerifierOptions};
use rustix::time::{ClockId, clock_gettime};
use std::hint::black_box;
use std::path::Path;

/// Between two looks at the clock.
const BATCH: u32 = 32;
/// Measured for this long.
const MEASURED_NS: u64 = 100_000_000;

/// Microseconds of CPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cost {
    /// A strict verification of a token's signature under a key that is there.
    pub(crate) eddsa_us: f64,
    /// All that the gateway's verifier does: header, key, signature, claims.
    pub(crate) token_us: f64,
}

fn thread_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Microseconds of one call.
fn measure(mut call: impl FnMut()) -> f64 {
    (0..BATCH).for_each(|_| call());
    let (begun_ns, mut calls) = (thread_ns(), 0);
    loop {
        (0..BATCH).for_each(|_| call());
        calls += BATCH;
        let spent_ns = thread_ns() - begun_ns;
        if spent_ns >= MEASURED_NS {
            return spent_ns as f64 / f64::from(calls) / 1_000.0;
        }
    }
}

/// Measures both, with a token of the run. `data` holds the development key.
pub(crate) fn cost(tokens: &Tokens, token: &str, data: &Path, now_unix_s: u64) -> Result<Cost, String> {
    let malformed = || "a token of our own is malformed".to_owned();
    let (signed, signature) = token.rsplit_once('.').ok_or_else(malformed)?;
    let signature = crate::tokens::signature(signature).ok_or_else(malformed)?;
    let signature = Signature::from_bytes(&signature);
    let key = VerifyingKey::from_bytes(&tokens.public()).map_err(|error| error.to_string())?;
    let dev_key = DevKey::load(data).map_err(|error| error.to_string())?;
    let options = VerifierOptions { dev_key: Some(dev_key), leeway_s: 30, ..VerifierOptions::default() };
    let verifier = Verifier::new(options).map_err(|error| error.to_string())?;
    key.verify_strict(signed.as_bytes(), &signature).map_err(|_| malformed())?;
    verifier.verify(token, now_unix_s, true).map_err(|error| error.to_string())?;
    Ok(Cost {
        eddsa_us: measure(|| {
            black_box(key.verify_strict(black_box(signed.as_bytes()), &signature)).expect("it was valid before");
        }),
        token_us: measure(|| {
            black_box(verifier.verify(black_box(token), now_unix_s, true)).expect("it was valid before");
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_costs_at_least_its_signature_and_a_forged_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let key = DevKey::load_or_create(dir.path()).unwrap();
        let tokens = Tokens::load(dir.path()).unwrap();
        let token = tokens.sign("perf-1", 1_000);
        let Cost { eddsa_us, token_us } = cost(&tokens, &token, dir.path(), 1_000).unwrap();
        assert!(eddsa_us > 0.0 && token_us > 0.0);
        let (forged, _) = key.sign("perf-1", 1_000, 60, false).unwrap();
        let (signed, _) = token.rsplit_once('.').unwrap();
        let (_, signature) = forged.rsplit_once('.').unwrap();
        assert!(cost(&tokens, &format!("{signed}.{signature}"), dir.path(), 1_000).is_err());
    }
}
