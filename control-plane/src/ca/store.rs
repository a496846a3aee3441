//! The data directory: the authority's key, the key of join tokens, the
//! trusted roots.
//!
//! Always holds: what is secret has mode 0600 in a directory of mode 0700 and
//! is refused otherwise; a file appears whole or not at all, and two
//! control planes that start at once in one directory agree on one authority.
//! Key and certificate of a self-made root are one file, so that no crash can
//! leave one without the other.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use heddle_api::join_token::TokenKey;
use heddle_api::spiffe::TrustDomain;
use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{Authority, BadAuthority};

/// The directory in which a control plane keeps what must survive it.
#[derive(Debug, Clone)]
pub(crate) struct DataDir(PathBuf);

/// Why the data directory cannot be used; the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("--data-dir: there is no home directory to keep keys in; name a directory")]
    Nowhere,
    #[error("cannot {action} {}: {error}", path.display())]
    Io { action: &'static str, path: PathBuf, error: io::Error },
    #[error(
        "{} can be read by others (mode {mode:04o}); a key must be its owner's alone: chmod 600 {}",
        path.display(),
        path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{} holds no {what}", path.display())]
    Missing { path: PathBuf, what: &'static str },
    #[error("{}: {error}", path.display())]
    Authority { path: PathBuf, error: BadAuthority },
    #[error("cannot make a certificate authority: {0}")]
    Create(#[from] rcgen::Error),
}

/// An authority that the operator gave instead of a self-made one.
#[derive(Debug, Clone)]
pub(crate) struct GivenAuthority {
    /// PEM, the issuing certificate first, the root last.
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl DataDir {
    /// The directory at `path`, made if it is not there.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| StoreError::Io {
            action: "create",
            path: path.into(),
            error,
        })?;
        let path = path.canonicalize().map_err(|error| StoreError::Io {
            action: "resolve",
            path: path.into(),
            error,
        })?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Roots that are trusted besides the authority's own: PEM, may be missing.
    pub(crate) fn roots(&self) -> PathBuf {
        self.0.join("roots.pem")
    }

    /// What was registered last with the control plane that listens on `port`.
    pub(crate) fn registrations(&self, port: u16) -> PathBuf {
        self.0.join(format!("registrations-{port}.json"))
    }

    /// What people were told of last by the control plane that listens on `port`.
    pub(crate) fn alerts(&self, port: u16) -> PathBuf {
        self.0.join(format!("alerts-{port}.json"))
    }

    /// The authority kept here, made at the first call.
    pub(crate) fn authority(
        &self,
        domain: &TrustDomain,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Authority, StoreError> {
        let path = self.0.join("ca.pem");
        let pem = self.secret(&path, || {
            let (certificate, key) = Authority::create_root(domain, now)?;
            Ok(format!("{certificate}{key}").into_bytes())
        })?;
        let (chain, key) =
            read_pem(&pem).map_err(|error| StoreError::Io { action: "read", path: path.clone(), error })?;
        let key = key.ok_or_else(|| StoreError::Missing { path: path.clone(), what: "private key" })?;
        Authority::new(domain.clone(), chain, &key, lifetime, now)
            .map_err(|error| StoreError::Authority { path, error })
    }

    /// The key that signs join tokens, made at the first call.
    pub(crate) fn token_key(&self) -> Result<TokenKey, StoreError> {
        let path = self.0.join("token.key");
        let bytes = self.secret(&path, || {
            let mut secret = vec![0; TokenKey::LENGTH];
            aws_lc_rs::rand::fill(&mut secret).expect("the system has random numbers");
            Ok(secret)
        })?;
        let secret: &[u8; TokenKey::LENGTH] = bytes
            .as_slice()
            .try_into()
            .map_err(|_| StoreError::Missing { path, what: "token key of 32 bytes" })?;
        Ok(TokenKey::new(secret))
    }

    /// The secret file at `path`, with what `make` returns if there is none yet.
    fn secret(
        &self,
        path: &Path,
        make: impl FnOnce() -> Result<Vec<u8>, StoreError>,
    ) -> Result<Vec<u8>, StoreError> {
        if let Some(secret) = read_secret(path)? {
            return Ok(secret);
        }
        let temporary = write_temporary(path, &make()?).map_err(|error| StoreError::Io {
            action: "write",
            path: path.into(),
            error,
        })?;
        // A link fails where a rename would replace: whoever comes second takes what is there.
        let linked = fs::hard_link(&temporary, path);
        let _ = fs::remove_file(&temporary);
        match linked {
            Ok(()) => sync_directory(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
        .map_err(|error| StoreError::Io { action: "create", path: path.into(), error })?;
        read_secret(path)?.ok_or_else(|| StoreError::Missing { path: path.into(), what: "content" })
    }
}

impl GivenAuthority {
    /// Reads the authority.
    pub(crate) fn load(
        &self,
        domain: &TrustDomain,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Authority, StoreError> {
        let read_error = |path: &Path, error| StoreError::Io { action: "read", path: path.into(), error };
        let missing = |path: &Path, what| StoreError::Missing { path: path.into(), what };
        let pem = fs::read(&self.certificate).map_err(|e| read_error(&self.certificate, e))?;
        let (chain, _) = read_pem(&pem).map_err(|e| read_error(&self.certificate, e))?;
        let pem = read_secret(&self.key)?.ok_or_else(|| missing(&self.key, "private key"))?;
        let (_, key) = read_pem(&pem).map_err(|e| read_error(&self.key, e))?;
        let key = key.ok_or_else(|| missing(&self.key, "private key"))?;
        Authority::new(domain.clone(), chain, &key, lifetime, now)
            .map_err(|error| StoreError::Authority { path: self.certificate.clone(), error })
    }
}

/// Certificates and the first private key of a PEM text; other sections are skipped.
pub(crate) fn read_pem(
    pem: &[u8],
) -> io::Result<(Vec<CertificateDer<'static>>, Option<PrivateKeyDer<'static>>)> {
    let (mut certificates, mut key) = (Vec::new(), None);
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
        let (kind, der) = section
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("no PEM: {error}")))?;
        match kind {
            SectionKind::Certificate => certificates.push(CertificateDer::from(der)),
            SectionKind::PrivateKey if key.is_none() => key = Some(PrivateKeyDer::Pkcs8(der.into())),
            SectionKind::EcPrivateKey if key.is_none() => key = Some(PrivateKeyDer::Sec1(der.into())),
            SectionKind::RsaPrivateKey if key.is_none() => key = Some(PrivateKeyDer::Pkcs1(der.into())),
            _ => {}
        }
    }
    Ok((certificates, key))
}

/// Replaces the file at `path` as a whole, readable by its owner only.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = write_temporary(path, content)?;
    fs::rename(&temporary, path).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

fn read_secret(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let failed = |error| StoreError::Io { action: "read", path: path.into(), error };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    // Of the open file, not of the name: the one that is checked is the one that is read.
    let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(StoreError::Exposed { path: path.into(), mode });
    }
    let mut content = Vec::new();
    io::Read::read_to_end(&mut file, &mut content).map_err(failed)?;
    Ok(Some(content))
}

/// A new file beside `path` with `content` safely on the disk.
fn write_temporary(path: &Path, content: &[u8]) -> io::Result<PathBuf> {
    let mut nonce = [0; 8];
    aws_lc_rs::rand::fill(&mut nonce).expect("the system has random numbers");
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{:016x}.tmp", u64::from_ne_bytes(nonce)));
    let temporary = PathBuf::from(name);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()));
    match written {
        Ok(()) => Ok(temporary),
        Err(error) => {
            let _ = fs::remove_file(&temporary);
            Err(error)
        }
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn domain() -> TrustDomain {
        "mesh.local".parse().unwrap()
    }

    #[test]
    fn the_authority_outlives_the_process() {
        let scratch = tempfile::tempdir().unwrap();
        let data = DataDir::open(&scratch.path().join("a/b")).unwrap();
        let first = data.authority(&domain(), HOUR, SystemTime::now()).unwrap();
        let again = data.authority(&domain(), HOUR, SystemTime::now()).unwrap();
        assert_eq!(first.root(), again.root());
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&data.path().join("ca.pem")), 0o600);
        assert_eq!(mode(data.path()), 0o700);
        assert_eq!(fs::read_dir(data.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn an_exposed_key_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let data = DataDir::open(scratch.path()).unwrap();
        data.token_key().unwrap();
        let path = scratch.path().join("token.key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = data.token_key().unwrap_err();
        assert!(matches!(error, StoreError::Exposed { mode: 0o644, .. }), "{error}");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn control_planes_that_start_at_once_agree_on_one_authority() {
        let scratch = tempfile::tempdir().unwrap();
        let roots: Vec<_> = std::thread::scope(|scope| {
            let start = || {
                let data = DataDir::open(scratch.path()).unwrap();
                data.authority(&domain(), HOUR, SystemTime::now()).unwrap().root().clone()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(roots.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
