//! Mutual TLS as the mesh speaks it: TLS 1.3 only, X25519MLKEM768 preferred,
//! a certificate names exactly one SPIFFE ID, and a client accepts a server
//! only under the identity that discovery announced.
//!
//! Always holds: no fall-back to another version, no session resumption (it
//! would skip the verifier), no identity taken from anything but a verified
//! certificate. Sockets and renewal are left to the callers.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig,
    SignatureScheme,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::spiffe::{SpiffeId, TrustDomain};

mod introduction;

/// Why a peer's certificate was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerRefused {
    /// No chain to a root of the trust bundle.
    #[error("the certificate does not chain to a root of trust domain {0}")]
    UnknownIssuer(TrustDomain),
    /// Its validity has ended.
    #[error("the certificate has expired")]
    Expired,
    /// Its validity has not begun.
    #[error("the certificate is not valid yet")]
    NotYetValid,
    /// It names no SPIFFE ID, or one of another form.
    #[error("the certificate names no SPIFFE ID: {0}")]
    NoIdentity(String),
    /// It names more than one URI.
    #[error("the certificate names {0} URIs; a SPIFFE certificate names exactly one")]
    SeveralIdentities(usize),
    /// Its identity belongs elsewhere.
    #[error("the certificate's identity {found} is not of trust domain {expected}")]
    WrongTrustDomain {
        /// Our trust domain.
        expected: TrustDomain,
        /// The identity in the certificate.
        found: SpiffeId,
    },
    /// A valid identity, but not that of the endpoint.
    #[error("the certificate's identity is {found}, but discovery announced {expected}")]
    WrongIdentity {
        /// What discovery announced for the endpoint.
        expected: SpiffeId,
        /// The identity in the certificate.
        found: SpiffeId,
    },
    /// Everything else that X.509 path validation finds: usages, constraints, encoding.
    #[error("the certificate is not acceptable: {0}")]
    Unacceptable(String),
}

impl PeerRefused {
    /// The word for it in metrics and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownIssuer(_) => "unknown_issuer",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::NoIdentity(_) => "no_identity",
            Self::SeveralIdentities(_) => "several_identities",
            Self::WrongTrustDomain { .. } => "wrong_trust_domain",
            Self::WrongIdentity { .. } => "wrong_identity",
            Self::Unacceptable(_) => "unacceptable",
        }
    }

    /// The refusal inside a TLS error that one of our verifiers caused.
    pub fn of(error: &rustls::Error) -> Option<&Self> {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
                inner.downcast_ref()
            }
            _ => None,
        }
    }
}

impl From<PeerRefused> for rustls::Error {
    fn from(refused: PeerRefused) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refused))))
    }
}

/// The roots of a trust domain.
pub struct TrustBundle {
    domain: TrustDomain,
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

/// A root that is no X.509 certificate.
#[derive(Debug, thiserror::Error)]
#[error("root {index} of trust domain {domain} is no certificate: {error}")]
pub struct InvalidRoot {
    domain: TrustDomain,
    index: usize,
    error: webpki::Error,
}

impl TrustBundle {
    /// A bundle of DER certificates.
    ///
    /// # Errors
    /// If one cannot be read as a certificate.
    pub fn new(domain: TrustDomain, roots: Vec<CertificateDer<'static>>) -> Result<Self, InvalidRoot> {
        let mut anchors = Vec::with_capacity(roots.len());
        for (index, root) in roots.iter().enumerate() {
            match webpki::anchor_from_trusted_cert(root) {
                Ok(anchor) => anchors.push(anchor.to_owned()),
                Err(error) => return Err(InvalidRoot { domain, index, error }),
            }
        }
        Ok(Self { domain, roots, anchors })
    }

    /// The domain whose roots these are.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The root certificates.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The identity in `chain` (leaf first), if peers that trust these roots accept it at `now`, as a
    /// client's and as a server's. Whether its bearer has the key is not asked.
    ///
    /// # Errors
    /// If they refuse it.
    pub fn accepts(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<SpiffeId, PeerRefused> {
        let (leaf, intermediates) =
            chain.split_first().ok_or_else(|| PeerRefused::Unacceptable("there is none".into()))?;
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (now, algorithms) =
            (UnixTime::since_unix_epoch(since), provider().signature_verification_algorithms);
        self.verify(leaf, intermediates, now, webpki::KeyUsage::client_auth(), &algorithms)?;
        self.verify(leaf, intermediates, now, webpki::KeyUsage::server_auth(), &algorithms)
    }

    /// The identity in a chain that is valid at `now` for `usage`.
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: webpki::KeyUsage,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<SpiffeId, PeerRefused> {
        let unacceptable = |error: webpki::Error| match error {
            webpki::Error::UnknownIssuer => PeerRefused::UnknownIssuer(self.domain.clone()),
            webpki::Error::CertExpired { .. } => PeerRefused::Expired,
            webpki::Error::CertNotValidYet { .. } => PeerRefused::NotYetValid,
            other => PeerRefused::Unacceptable(other.to_string()),
        };
        let certificate = webpki::EndEntityCert::try_from(leaf).map_err(unacceptable)?;
        certificate
            .verify_for_usage(algorithms.all, &self.anchors, intermediates, now, usage, None, None)
            .map_err(unacceptable)?;
        let id = spiffe_id(leaf)?;
        if id.trust_domain() != self.domain.as_str() {
            return Err(PeerRefused::WrongTrustDomain { expected: self.domain.clone(), found: id });
        }
        Ok(id)
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustBundle({}, {} roots)", self.domain, self.roots.len())
    }
}

/// The one SPIFFE ID that a certificate names (X509-SVID, section 2). The
/// certificate is not verified here: call this on a verified peer's leaf.
///
/// # Errors
/// If it names none, several, or one of another form.
pub fn spiffe_id(leaf: &CertificateDer<'_>) -> Result<SpiffeId, PeerRefused> {
    let (_, certificate) =
        X509Certificate::from_der(leaf).map_err(|e| PeerRefused::Unacceptable(e.to_string()))?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|e| PeerRefused::Unacceptable(e.to_string()))?
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = uris.next().ok_or_else(|| PeerRefused::NoIdentity("no URI among its names".into()))?;
    match uris.count() {
        0 => uri.parse().map_err(|e: crate::spiffe::InvalidSpiffeId| PeerRefused::NoIdentity(e.to_string())),
        more => Err(PeerRefused::SeveralIdentities(more + 1)),
    }
}

/// The cryptography of every mesh connection.
pub fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites =
        vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    Arc::new(provider)
}

/// Everything a process needs to prove itself and to verify others. Both
/// parts can be replaced at any time; handshakes that begin afterwards use
/// the new ones.
pub struct Credentials {
    certificate: ArcSwapOption<CertifiedKey>,
    trust: ArcSwap<TrustBundle>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// Credentials without a certificate yet.
    pub fn new(trust: TrustBundle) -> Arc<Self> {
        Arc::new(Self {
            certificate: ArcSwapOption::empty(),
            trust: ArcSwap::from_pointee(trust),
            provider: provider(),
        })
    }

    /// Uses `certificate` from now on.
    pub fn set_certificate(&self, certificate: CertifiedKey) {
        self.certificate.store(Some(Arc::new(certificate)));
    }

    /// The certificate in use.
    pub fn certificate(&self) -> Option<Arc<CertifiedKey>> {
        self.certificate.load_full()
    }

    /// Trusts the roots of `trust` from now on.
    pub fn set_trust(&self, trust: TrustBundle) {
        self.trust.store(Arc::new(trust));
    }

    /// The roots in use.
    pub fn trust(&self) -> Arc<TrustBundle> {
        self.trust.load_full()
    }

    /// A client that accepts only a server that proves `expected`.
    pub fn client_config(self: &Arc<Self>, expected: SpiffeId, alpn: &[&[u8]]) -> ClientConfig {
        let verifier = ServerVerifier { credentials: self.clone(), expected };
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has TLS 1.3 cipher suites")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(Resolver(self.clone())));
        config.resumption = Resumption::disabled();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        config
    }

    /// A server. `anonymous` admits clients without a certificate (those that
    /// are about to ask for their first one); a certificate that is presented
    /// is verified in either case.
    pub fn server_config(self: &Arc<Self>, alpn: &[&[u8]], anonymous: bool) -> ServerConfig {
        let verifier = ClientVerifier { credentials: self.clone(), mandatory: !anonymous };
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has TLS 1.3 cipher suites")
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(Resolver(self.clone())));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        config
    }
}

#[derive(Debug)]
struct Resolver(Arc<Credentials>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.certificate()
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.certificate()
    }

    fn has_certs(&self) -> bool {
        self.0.certificate.load().is_some()
    }
}

#[derive(Debug)]
struct ServerVerifier {
    credentials: Arc<Credentials>,
    expected: SpiffeId,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let algorithms = &self.credentials.provider.signature_verification_algorithms;
        let usage = webpki::KeyUsage::server_auth();
        let found = self.credentials.trust.load().verify(leaf, intermediates, now, usage, algorithms)?;
        if found != self.expected {
            return Err(PeerRefused::WrongIdentity { expected: self.expected.clone(), found }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.credentials.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.credentials.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[derive(Debug)]
struct ClientVerifier {
    credentials: Arc<Credentials>,
    mandatory: bool,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let algorithms = &self.credentials.provider.signature_verification_algorithms;
        let usage = webpki::KeyUsage::client_auth();
        self.credentials.trust.load().verify(leaf, intermediates, now, usage, algorithms)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.credentials.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.credentials.provider.signature_verification_algorithms.supported_schemes()
    }
}
