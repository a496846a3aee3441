//! The roots that the mesh trusts: the authority's own and those of
//! `roots.pem`, so that a root can be replaced while everything runs (first
//! trust the new one everywhere, then sign with it, then drop the old one).
//!
//! The file is looked at once a second; one that cannot be read changes
//! nothing, and the reason is reported once. In a cluster the roots are those
//! of a Secret, which [`crate::kubernetes`] follows.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use heddle_api::discovery::v1;
use heddle_api::spiffe::TrustDomain;
use heddle_api::tls::TrustBundle;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use super::Authority;
use super::store::read_pem;

/// How often the file is looked at: a change takes effect about as fast as
/// one of the manifests (1 s), and one `stat` a second costs nothing.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Roots of one trust domain.
pub(crate) struct Roots {
    domain: TrustDomain,
    source: Source,
    roots: Vec<CertificateDer<'static>>,
}

enum Source {
    /// The authority's own, and those of a file.
    File { own: CertificateDer<'static>, file: PathBuf, seen: Option<(SystemTime, u64)> },
    /// Those that somebody else keeps, the authority's own among them.
    Kept(watch::Receiver<Vec<CertificateDer<'static>>>),
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
    pub(crate) fn in_file(authority: &Authority, file: PathBuf) -> Self {
        let own = authority.root().clone();
        let roots = vec![own.clone()];
        Self { domain: authority.domain().clone(), source: Source::File { own, file, seen: None }, roots }
    }

    /// Roots that were read as certificates before they were put there.
    pub(crate) fn kept(domain: TrustDomain, roots: watch::Receiver<Vec<CertificateDer<'static>>>) -> Self {
        let now = roots.borrow().clone();
        Self { domain, source: Source::Kept(roots), roots: now }
    }

    /// What is trusted now.
    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle::new(self.domain.clone(), self.roots.clone())
            .expect("each root was read as a certificate before it was taken over")
    }

    /// Takes over what changed. Returns whether the roots did.
    pub(crate) fn look(&mut self) -> Result<bool, BadRoots> {
        let roots = match &mut self.source {
            Source::Kept(kept) => kept.borrow_and_update().clone(),
            Source::File { own, file, seen } => {
                let bad = |reason: String| BadRoots { file: file.clone(), reason };
                let found = match fs::metadata(&*file) {
                    Ok(metadata) => metadata.modified().ok().map(|modified| (modified, metadata.len())),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    Err(error) => return Err(bad(error.to_string())),
                };
                if found == *seen {
                    return Ok(false);
                }
                *seen = found;
                let mut roots = vec![own.clone()];
                if found.is_some() {
                    let pem = fs::read(&*file).map_err(|error| bad(error.to_string()))?;
                    let (certificates, _) = read_pem(&pem).map_err(|error| bad(error.to_string()))?;
                    for certificate in certificates {
                        if !roots.contains(&certificate) {
                            roots.push(certificate);
                        }
                    }
                }
                TrustBundle::new(self.domain.clone(), roots.clone()).map_err(|e| bad(e.to_string()))?;
                roots
            }
        };
        let changed = roots != self.roots;
        self.roots = roots;
        Ok(changed)
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
        let authority = data.authority(&domain, Duration::from_secs(60), now).unwrap();
        let mut roots = Roots::in_file(&authority, data.roots());
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
