//! `parley token`: a token of the development key.

use super::talk::print_line;
use crate::cli::TokenArgs;
use crate::client::{ClientError, unix_ms};
use gateway::identity::DevKey;

pub(super) fn run(args: &TokenArgs) -> Result<(), ClientError> {
    let key = DevKey::load(&args.data).map_err(|error| {
        ClientError::Asked(format!(
            "no development key: {error}\nstart `parley up` here first, or name its data directory with --data"
        ))
    })?;
    let (token, claims) = key.sign(&args.user, unix_ms() / 1000, args.ttl, args.service).map_err(|_| {
        let limits = "1 to 64 bytes, no control characters, no space at its ends";
        ClientError::Usage(format!("{:?} cannot be a name: {limits}", args.user))
    })?;
    if args.json {
        let expires_at_ms = claims.expires_at_ms;
        return print_line(&serde_json::json!({ "token": token, "expires_at_ms": expires_at_ms }).to_string());
    }
    print_line(&token)
}
