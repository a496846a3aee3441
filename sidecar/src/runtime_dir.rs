//! The directory in which programs of one user find each other's control
//! planes, and where sidecars of `run` log: `$XDG_RUNTIME_DIR/heddle`, or
//! `/tmp/heddle-UID`.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::sys;

/// The directory of runtime files, made if it is missing, ours alone.
pub(crate) fn make() -> anyhow::Result<PathBuf> {
    let directory = path();
    let created = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    created.with_context(|| format!("the runtime directory {}", directory.display()))?;
    // Anyone can make a directory, or a link to one, in /tmp.
    let found = std::fs::symlink_metadata(&directory)?;
    let (user, _) = sys::effective_ids();
    if !found.is_dir() || found.uid() != user || found.mode() & 0o077 != 0 {
        bail!(
            "the runtime directory {} is not a directory of this user's alone (mode 0700)",
            directory.display()
        );
    }
    Ok(directory)
}

/// `$XDG_RUNTIME_DIR/heddle`, or `/tmp/heddle-UID`.
pub fn path() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|base| base.is_absolute()) {
        Some(base) => base.join("heddle"),
        None => PathBuf::from(format!("/tmp/heddle-{}", sys::effective_ids().0)),
    }
}
