//! The programs that a cluster is made of.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the programs are.
#[derive(Debug, Clone)]
pub(super) struct Assets(PathBuf);

impl Assets {
    /// The folder of `KUBEBUILDER_ASSETS`, or the one that `tests/kubernetes/build` made of these sources.
    /// The error says how to have it.
    pub(super) fn find() -> Result<Self, String> {
        if let Some(folder) = env::var_os("KUBEBUILDER_ASSETS") {
            let folder = PathBuf::from(folder);
            if folder.join("node").exists() {
                return Ok(Self(folder));
            }
            return Err(format!(
                "the programs of tests/kubernetes: {} has no `node`, so it was not made by tests/kubernetes/build",
                folder.display()
            ));
        }
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes/build");
        let output = Command::new(build).arg("--find").output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            return Err(format!("the programs of a Kubernetes cluster: {}", complaint.trim()));
        }
        Ok(Self(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())))
    }

    /// One of them.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}
