//! The runtime directory, in which programs of one user find each other's
//! control planes: `$XDG_RUNTIME_DIR/heddle` or `/tmp/heddle-UID`.
//!
//! Since anyone can make a directory in `/tmp`, one that is not this user's
//! alone is not used.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use heddle_api::runtime_file::RuntimeFile;

use crate::ca::store::replace;

/// The file that tells of this process, removed when dropped.
#[derive(Debug)]
pub(crate) struct Announced {
    path: PathBuf,
    content: RuntimeFile,
}

impl Announced {
    /// Writes the file for a control plane whose discovery listens on `discovery`.
    pub(crate) fn write(discovery: SocketAddr, admin: SocketAddr, data_dir: &Path) -> io::Result<Self> {
        let content = RuntimeFile {
            addr: discovery.to_string(),
            admin: admin.to_string(),
            data_dir: data_dir.display().to_string(),
            pid: std::process::id(),
        };
        let path = directory()?.join(RuntimeFile::name(discovery.port()));
        replace(&path, &serde_json::to_vec(&content)?)?;
        Ok(Self { path, content })
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        // Another control plane may have taken the port, and with it the name.
        let there = fs::read(&self.path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        if there.as_ref() == Some(&self.content) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn directory() -> io::Result<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let base = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|base| base.is_absolute());
    let path = base.map_or_else(|| PathBuf::from(format!("/tmp/heddle-{user}")), |base| base.join("heddle"));
    match fs::DirBuilder::new().mode(0o700).create(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    }
    let metadata = fs::symlink_metadata(&path)?;
    if !metadata.is_dir() || metadata.uid() != user || metadata.mode() & 0o077 != 0 {
        let problem = format!("{} is not a directory of this user's alone (mode 0700)", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
    }
    Ok(path)
}
