//! The roots that the mesh trusts: the authority's own and those of
//! `roots.pem`, so that a root can be replaced while everything runs (first
//! trust the new one everywhere, then sign with it, then drop the old one).
//!
//! The file is looked at once a second; one that cannot be read changes
//! nothing, and the reason is reported once.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use heddle_api::discovery::v1;
use heddle_api::spiffe::TrustDomain;
use heddle_api::tls::TrustBundle;
use rustls::pki_types::CertificateDer;

use super::Authority;
use super::store::read_pem;

/// How often the file is looked at: a change takes effect about as fast as
/// one of the manifests (1 s), and one `stat` a second costs nothing.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Roots of one trust domain, from the authority and a file.
pub(crate) struct Roots {
    authority: Arc<Authority>,
    file: PathBuf,
    seen: Option<(SystemTime, u64)>,
    roots: Vec<CertificateDer<'static>>,
}

/// Why the file of roots was not taken over.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}; the roots read before stay in force", file.display())]
pub(crate) struct BadRoots {
    file: PathBuf,
    reason: String,
}

impl Roots {
    /// The authority's own root; the file is read by the first [`Self::look`].
    pub(crate) fn new(authority: Arc<Authority>, file: PathBuf) -> Self {
        let roots = vec![authority.root().clone()];
        Self { authority, file, seen: None, roots }
    }

    /// What is trusted now.
    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle::new(self.domain().clone(), self.roots.clone())
            .expect("each root was read as a certificate before it was taken over")
    }

    fn domain(&self) -> &TrustDomain {
        self.authority.domain()
    }

    /// Reads the file if it changed. Returns whether the roots did.
    pub(crate) fn look(&mut self) -> Result<bool, BadRoots> {
        let seen = match fs::metadata(&self.file) {
            Ok(metadata) => metadata.modified().ok().map(|modified| (modified, metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(self.bad(error.to_string())),
        };
        if seen == self.seen {
            return Ok(false);
        }
        self.seen = seen;
        let mut roots = vec![self.authority.root().clone()];
        if seen.is_some() {
            let pem = fs::read(&self.file).map_err(|error| self.bad(error.to_string()))?;
            let (certificates, _) = read_pem(&pem).map_err(|error| self.bad(error.to_string()))?;
            for certificate in certificates {
                if !roots.contains(&certificate) {
                    roots.push(certificate);
                }
            }
        }
        TrustBundle::new(self.domain().clone(), roots.clone()).map_err(|e| self.bad(e.to_string()))?;
        let changed = roots != self.roots;
        self.roots = roots;
        Ok(changed)
    }

    fn bad(&self, reason: String) -> BadRoots {
        BadRoots { file: self.file.clone(), reason }
    }
}

/// The bundle as a discovery resource.
pub(crate) fn message(bundle: &TrustBundle) -> v1::TrustBundle {
    v1::TrustBundle {
        trust_domain: bundle.domain().as_str().into(),
        roots: bundle.roots().iter().map(|root| root.to_vec()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::store::DataDir;

    #[test]
    fn roots_follow_the_file_and_survive_a_broken_one() {
        let scratch = tempfile::tempdir().unwrap();
        let data = DataDir::open(scratch.path()).unwrap();
        let domain: TrustDomain = "mesh.local".parse().unwrap();
        let now = SystemTime::now();
        let authority = Arc::new(data.authority(&domain, Duration::from_secs(60), now).unwrap());
        let mut roots = Roots::new(authority, data.roots());
        assert!(!roots.look().unwrap());

        let (next, _) = Authority::create_root(&domain, now).unwrap();
        fs::write(data.roots(), &next).unwrap();
        assert!(roots.look().unwrap());
        assert_eq!(roots.bundle().roots().len(), 2);
        assert!(!roots.look().unwrap(), "an unchanged file is not read again");

        fs::write(data.roots(), "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").unwrap();
        let error = roots.look().unwrap_err().to_string();
        assert!(error.contains("roots.pem"), "{error}");
        assert!(!roots.look().unwrap(), "a broken file is reported once");
        assert_eq!(roots.bundle().roots().len(), 2);

        fs::remove_file(data.roots()).unwrap();
        assert!(roots.look().unwrap());
        assert_eq!(roots.bundle().roots().len(), 1);
    }
}
