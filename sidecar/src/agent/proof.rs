//! What proves a workload's identity to the control plane, and by what the
//! control plane proves itself while the workload has no certificate: a join
//! token outside a cluster, the pod's service account token inside.
//!
//! Files are read anew each time: the kubelet replaces a token long before it
//! ends, and the roots when one is rotated.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use heddle_api::discovery::v1::sign_request::Proof;
use heddle_api::join_token::JoinToken;
use heddle_api::spiffe::{SpiffeId, TrustDomain};
use heddle_api::tls::Credentials;
use heddle_api::x509::{SeveralTrustDomains, common_trust_domain};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::token::{NoToken, TokenSource};
use crate::settings::{InvalidSettings, SidecarArgs, Workload};

/// Where the proof comes from.
#[derive(Debug, Clone)]
pub(crate) enum ProofSource {
    /// Outside a cluster.
    JoinToken(TokenSource),
    /// In a pod.
    ServiceAccount(ServiceAccount),
}

/// A pod's projected token, and the roots by which it knows its control plane.
#[derive(Debug, Clone)]
pub(crate) struct ServiceAccount {
    token: PathBuf,
    roots: PathBuf,
    namespace: String,
    account: String,
}

/// What a workload without a certificate says, and to whom.
pub(crate) struct Introduction {
    pub(crate) proof: Proof,
    /// Whom the certificate has to be for.
    pub(crate) expected: Expected,
    /// Accepts the control plane and nobody else.
    pub(crate) tls: ClientConfig,
}

/// The identity that a certificate has to be for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected {
    /// `None`: that of the control plane, whose roots name none.
    domain: Option<TrustDomain>,
    namespace: String,
    account: String,
}

/// Why there is nothing to prove the identity by.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoProof {
    #[error(transparent)]
    Token(#[from] NoToken),
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("{} is no service account token: {reason}", path.display())]
    NotToken { path: PathBuf, reason: &'static str },
    #[error("{}: {reason}", path.display())]
    Roots { path: PathBuf, reason: String },
}

/// Far more than any API server signs.
const MAX_TOKEN: u64 = 64 * 1024;

/// Room for hundreds of roots.
const MAX_ROOTS: u64 = 1024 * 1024;

impl ProofSource {
    /// The source that the settings name.
    ///
    /// # Errors
    /// If they name half of one, or two.
    pub(crate) fn new(settings: &SidecarArgs, workload: &Workload) -> Result<Self, InvalidSettings> {
        match (&settings.service_account_token, &settings.ca_cert, &settings.join_token) {
            (None, None, file) => {
                Ok(Self::JoinToken(TokenSource::new(file.clone(), settings.control_plane(), workload)))
            }
            (Some(token), Some(roots), None) => Ok(Self::ServiceAccount(ServiceAccount {
                token: token.clone(),
                roots: roots.clone(),
                namespace: workload.service.namespace().to_owned(),
                account: workload.account.clone(),
            })),
            (Some(_), _, Some(_)) => Err(InvalidSettings::TwoProofs),
            (Some(_), None, None) | (None, Some(_), _) => Err(InvalidSettings::HalfProof),
        }
    }

    /// How the workload introduces itself.
    pub(crate) fn introduce(&self) -> Result<Introduction, NoProof> {
        match self {
            Self::JoinToken(source) => {
                let (text, token) = source.token()?;
                Ok(by_join_token(text, &token))
            }
            Self::ServiceAccount(account) => account.introduce(),
        }
    }

    /// What a renewal needs besides the present certificate. A pod's certificate alone would be
    /// good for ever, even after the pod is gone.
    pub(crate) fn renewal(&self) -> Result<Option<Proof>, NoProof> {
        match self {
            Self::JoinToken(_) => Ok(None),
            Self::ServiceAccount(account) => account.proof().map(Some),
        }
    }

    /// Whether an [introduction](Self::introduce) is worth trying where a connection by the present
    /// certificate failed: the roots in the file may be newer than those that were streamed last.
    pub(crate) fn knows_newer_roots(&self) -> bool {
        matches!(self, Self::ServiceAccount(_))
    }
}

impl NoProof {
    /// Whether it may pass by itself: what a volume holds is written by the kubelet, in its own time.
    pub(crate) fn may_pass(&self) -> bool {
        !matches!(self, Self::Token(_))
    }
}

fn by_join_token(text: String, token: &JoinToken) -> Introduction {
    let expected = Expected::exactly(&token.identity);
    let domain = expected.domain.clone().expect("a whole identity has a trust domain");
    let control_plane = SpiffeId::control_plane(&domain);
    let tls = Credentials::pinned_client_config(control_plane, token.roots.clone(), &[b"h2"]);
    Introduction { proof: Proof::JoinToken(text), expected, tls }
}

impl ServiceAccount {
    fn introduce(&self) -> Result<Introduction, NoProof> {
        let roots = self.read_roots()?;
        let several = |error: SeveralTrustDomains| self.bad_roots(error.to_string());
        let domain = common_trust_domain(&roots).map_err(several)?;
        let expected = Expected {
            domain: domain.clone(),
            namespace: self.namespace.clone(),
            account: self.account.clone(),
        };
        let tls = Credentials::rooted_client_config(domain, roots, &[b"h2"]);
        Ok(Introduction { proof: self.proof()?, expected, tls })
    }

    fn proof(&self) -> Result<Proof, NoProof> {
        let text = read(&self.token, MAX_TOKEN)?;
        let token = text.trim();
        let reason = match token {
            "" => "it is empty",
            // A token travels as the text it is; RFC 7519, section 3.
            _ if !token.bytes().all(|b| b.is_ascii_graphic()) => "it has characters that no token has",
            _ => return Ok(Proof::ServiceAccountToken(token.to_owned())),
        };
        Err(NoProof::NotToken { path: self.token.clone(), reason })
    }

    fn read_roots(&self) -> Result<Vec<CertificateDer<'static>>, NoProof> {
        let text = read(&self.roots, MAX_ROOTS)?;
        let roots: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| self.bad_roots(error.to_string()))?;
        if roots.is_empty() {
            return Err(self.bad_roots("it holds no certificate".into()));
        }
        Ok(roots)
    }

    fn bad_roots(&self, reason: String) -> NoProof {
        NoProof::Roots { path: self.roots.clone(), reason }
    }
}

impl Expected {
    /// Nobody but `id`.
    pub(crate) fn exactly(id: &SpiffeId) -> Self {
        let domain = id.trust_domain().parse().expect("an identity's trust domain is one");
        Self { domain: Some(domain), namespace: id.namespace().into(), account: id.account().into() }
    }

    /// Whether `id` is it.
    pub(crate) fn is(&self, id: &SpiffeId) -> bool {
        self.domain.as_ref().is_none_or(|domain| domain.as_str() == id.trust_domain())
            && self.namespace == id.namespace()
            && self.account == id.account()
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.domain {
            Some(domain) => write!(f, "spiffe://{domain}/ns/{}/sa/{}", self.namespace, self.account),
            None => write!(f, "service account {} of namespace {}", self.account, self.namespace),
        }
    }
}

fn read(path: &Path, limit: u64) -> Result<String, NoProof> {
    let failed = |error| NoProof::File { path: path.into(), error };
    let file = fs::File::open(path).map_err(failed)?;
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, limit + 1), &mut text).map_err(failed)?;
    if text.len() as u64 > limit {
        return Err(failed(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it is longer than {limit} bytes"),
        )));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Volume(tempfile::TempDir);

    impl Volume {
        fn new(token: &str, roots: &str) -> Self {
            let volume = Self(tempfile::tempdir().unwrap());
            fs::write(volume.0.path().join("token"), token).unwrap();
            fs::write(volume.0.path().join("roots.pem"), roots).unwrap();
            volume
        }

        fn source(&self) -> ServiceAccount {
            ServiceAccount {
                token: self.0.path().join("token"),
                roots: self.0.path().join("roots.pem"),
                namespace: "shop".into(),
                account: "users".into(),
            }
        }
    }

    fn root(names: &[&str]) -> String {
        let mut params = rcgen::CertificateParams::default();
        let uri = |name: &&str| rcgen::SanType::URI((*name).try_into().unwrap());
        params.subject_alt_names = names.iter().map(uri).collect();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn a_pod_proves_itself_by_the_token_as_it_is_now() {
        let volume = Volume::new("first\n", &root(&["spiffe://mesh.example"]));
        let source = volume.source();
        let introduction = source.introduce().unwrap();
        assert_eq!(introduction.proof, Proof::ServiceAccountToken("first".into()));
        let id = |text: &str| text.parse::<SpiffeId>().unwrap();
        assert!(introduction.expected.is(&id("spiffe://mesh.example/ns/shop/sa/users")));
        assert!(!introduction.expected.is(&id("spiffe://other.example/ns/shop/sa/users")));
        assert!(!introduction.expected.is(&id("spiffe://mesh.example/ns/shop/sa/orders")));
        fs::write(&source.token, "second").unwrap();
        assert_eq!(source.proof().unwrap(), Proof::ServiceAccountToken("second".into()));
    }

    #[test]
    fn roots_that_name_no_trust_domain_leave_it_to_the_control_plane() {
        let volume = Volume::new("token", &root(&[]));
        let expected = volume.source().introduce().unwrap().expected;
        assert!(expected.is(&"spiffe://any.example/ns/shop/sa/users".parse().unwrap()));
        assert!(!expected.is(&"spiffe://any.example/ns/other/sa/users".parse().unwrap()));
    }

    #[test]
    fn volumes_that_are_not_ready_are_refused_and_may_pass() {
        let good = root(&["spiffe://mesh.example"]);
        let two = format!("{good}{}", root(&["spiffe://other.example"]));
        for (token, roots, part) in [
            ("", good.as_str(), "it is empty"),
            ("two words", &good, "characters"),
            ("token", "", "no certificate"),
            ("token", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n", "roots.pem"),
            ("token", &two, "two trust domains"),
        ] {
            let refused = Volume::new(token, roots).source().introduce().err().unwrap();
            assert!(refused.to_string().contains(part), "{refused}");
            assert!(refused.may_pass());
        }
        let volume = Volume::new("token", &good);
        fs::remove_file(volume.source().token).unwrap();
        assert!(volume.source().introduce().err().unwrap().may_pass());
    }
}
