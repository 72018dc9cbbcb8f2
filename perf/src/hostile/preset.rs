//! The configuration of a gateway that `--spawn` starts: the shipped one, with times so short that the refusals that
//! come in time come within the measurement. It refuses more often than the default would, never less.

use std::path::Path;
use std::time::Duration;

/// The one Origin that is allowed.
pub(crate) const ORIGIN: &str = "https://chat.example.com";
const TIMEOUT_MS: u64 = 1_000;

/// Writes it into a directory of configuration files.
pub(crate) fn write(dir: &Path) -> Result<(), String> {
    let text = format!(
        "[lobby]\nhandshake_timeout_ms = {TIMEOUT_MS}\nhello_timeout_ms = {TIMEOUT_MS}\norigins = [\"{ORIGIN}\"]\n\
         [session]\nstalled_reader_ms = {TIMEOUT_MS}\n[identity]\nleeway_s = 0\nexpiry_grace_s = 0\n"
    );
    let path = dir.join("gateway.toml");
    std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// How long attackers wait for a gateway under this preset: a stalled reader has to be flooded first.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// And under the shipped configuration: 30 s for a stalled reader, and as much leeway and grace for a token.
pub(crate) const PATIENCE_SHIPPED: Duration = Duration::from_secs(75);
