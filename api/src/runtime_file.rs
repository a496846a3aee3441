//! The *runtime file*, by which `heddle run` finds a control plane of the same
//! user: `control-plane-PORT.json` in the runtime directory. Only its form is
//! fixed here; the control plane writes it when it listens and removes it when
//! it ends, and whoever reads it must expect one that was left by a crash.

use serde::{Deserialize, Serialize};

/// What a running control plane tells the other programs of its user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeFile {
    /// `IP:PORT` of discovery and identity.
    pub addr: String,
    /// `IP:PORT` of the admin listener.
    pub admin: String,
    /// The absolute path of the data directory, which holds the token key.
    pub data_dir: String,
    /// The control plane's process.
    pub pid: u32,
}

impl RuntimeFile {
    /// The file's name for a control plane whose discovery listens on `port`.
    pub fn name(port: u16) -> String {
        format!("control-plane-{port}.json")
    }
}
