//! What a device keeps between runs: its id, the last mark, and how far it has seen each chat. One small file each.

use super::ClientError;
use parley_protocol::{ChatId, DeviceId, UserId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A larger file is not one of ours.
const STATE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The state of one device of one user at one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeviceState {
    /// The server; a device does not move.
    pub(crate) url: String,
    /// Whose.
    pub(crate) user: String,
    /// Its own id.
    pub(crate) device_id: DeviceId,
    /// Who the server said this is. Ids are given at the first login: another one means that the server's store is
    /// another one, to which neither the mark nor the chats belong.
    #[serde(default)]
    pub(crate) user_id: Option<UserId>,
    /// What to present at the next `Hello`.
    pub(crate) mark: Option<u64>,
    /// Per chat: everything up to here was handed on.
    pub(crate) known: BTreeMap<ChatId, u64>,
}

/// Where the files lie by default: `$XDG_DATA_HOME/parley`, else `~/.local/share/parley`.
pub(crate) fn state_dir() -> Result<PathBuf, ClientError> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_DATA_HOME").or_else(|| set("HOME").map(|home| home.join(".local/share")));
    base.map(|base| base.join("parley"))
        .ok_or_else(|| ClientError::Asked("neither XDG_DATA_HOME nor HOME is set: say --state DIR".to_owned()))
}

/// The file of a device: readable, and unique by a hash of everything that tells devices apart. `device` is one that
/// somebody chose; each has a file of its own, beside that of the device without a choice.
pub(crate) fn state_path(dir: &Path, url: &str, user: &str, purpose: &str, device: Option<DeviceId>) -> PathBuf {
    let plain = |character: char| if character.is_ascii_alphanumeric() { character } else { '_' };
    let label: String = user.chars().map(plain).take(32).collect();
    let device = device.map_or_else(String::new, |device| format!("-{device}"));
    let hash = fnv1a(format!("{url}\0{user}\0{purpose}{device}").as_bytes());
    dir.join(format!("{label}-{purpose}{device}-{hash:016x}.json"))
}

/// FNV-1a, 64 bits: names a file, guards nothing.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

impl DeviceState {
    /// Reads the state of a device; `None` when there is none yet.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>, ClientError> {
        let fail = |what: String| ClientError::Local(format!("{}: {what}; remove it to start anew", path.display()));
        match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error.to_string())),
            Ok(metadata) if metadata.len() > STATE_BYTES_MAX => return Err(fail("too large".to_owned())),
            Ok(_) => {}
        }
        let bytes = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
        serde_json::from_slice(&bytes).map(Some).map_err(|error| fail(format!("not a device's state: {error}")))
    }

    /// Replaces the file as a whole.
    pub(crate) fn save(&self, path: &Path) -> Result<(), ClientError> {
        let fail = |error: std::io::Error| ClientError::Local(format!("{}: {error}", path.display()));
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(fail)?;
        }
        let text = serde_json::to_vec(self).expect("ids and numbers have a JSON form");
        let temporary = path.with_extension(format!("new-{}", std::process::id()));
        std::fs::write(&temporary, text).map_err(fail)?;
        std::fs::rename(&temporary, path).map_err(fail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back_and_files_do_not_collide() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = state_path(dir.path(), "ws://a/ws", "älice", "tail", None);
        assert_eq!(DeviceState::load(&path).expect("no file is no error"), None);
        let state = DeviceState {
            url: "ws://a/ws".to_owned(),
            user: "älice".to_owned(),
            device_id: DeviceId(9),
            user_id: Some(UserId(3)),
            mark: Some(7),
            known: BTreeMap::from([(ChatId::group(5), 3)]),
        };
        state.save(&path).expect("saved");
        assert_eq!(DeviceState::load(&path).expect("read"), Some(state));
        for other in [("ws://b/ws", "älice", "tail"), ("ws://a/ws", "ölice", "tail"), ("ws://a/ws", "älice", "chat")]
        {
            assert_ne!(state_path(dir.path(), other.0, other.1, other.2, None), path);
        }
        let chosen = |id| state_path(dir.path(), "ws://a/ws", "älice", "tail", Some(DeviceId(id)));
        assert!(chosen(1) != path && chosen(2) != path && chosen(1) != chosen(2), "one file a device");
        std::fs::write(&path, "{").expect("written");
        assert!(DeviceState::load(&path).expect_err("refused").to_string().contains("remove it"));
    }
}
