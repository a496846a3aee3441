//! How a process that has no certificate yet can tell its control plane from
//! another: by hashes of its roots, which a join token brings, or by the roots
//! themselves, which a pod finds in a file.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

use super::{Credentials, PeerRefused, TrustBundle, provider, spiffe_id};
use crate::join_token::RootHash;
use crate::spiffe::{SpiffeId, TrustDomain};

impl Credentials {
    /// A client without credentials that accepts only a server that proves
    /// `expected` by a chain which includes one of `roots`. This is how the
    /// bearer of a join token meets its control plane for the first time.
    pub fn pinned_client_config(expected: SpiffeId, roots: Vec<RootHash>, alpn: &[&[u8]]) -> ClientConfig {
        Self::introduced_client_config(Pins::Hashes { expected, roots }, alpn)
    }

    /// A client without credentials that accepts only a control plane, by a
    /// chain to one of `roots`; where `domain` is not known beforehand, of
    /// whichever trust domain the certificate names. This is how a pod meets
    /// its control plane for the first time.
    pub fn rooted_client_config(
        domain: Option<TrustDomain>,
        roots: Vec<CertificateDer<'static>>,
        alpn: &[&[u8]],
    ) -> ClientConfig {
        Self::introduced_client_config(Pins::Roots { domain, roots }, alpn)
    }

    fn introduced_client_config(pins: Pins, alpn: &[&[u8]]) -> ClientConfig {
        let provider = provider();
        let algorithms = provider.signature_verification_algorithms;
        let verifier = PinnedVerifier { pins, algorithms };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has TLS 1.3 cipher suites")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        config
    }
}

/// What a process without a certificate knows of its control plane.
#[derive(Debug)]
enum Pins {
    Hashes { expected: SpiffeId, roots: Vec<RootHash> },
    Roots { domain: Option<TrustDomain>, roots: Vec<CertificateDer<'static>> },
}

#[derive(Debug)]
struct PinnedVerifier {
    pins: Pins,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pins {
    /// The one identity that the server may prove, and the roots for it.
    fn expect(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(SpiffeId, Vec<CertificateDer<'static>>), PeerRefused> {
        match self {
            Self::Hashes { expected, roots } => {
                let pinned = intermediates.iter().filter(|c| roots.contains(&RootHash::of(c)));
                Ok((expected.clone(), pinned.map(|c| c.clone().into_owned()).collect()))
            }
            Self::Roots { domain, roots } => {
                let domain = match domain {
                    Some(domain) => domain.clone(),
                    None => domain_of(&spiffe_id(leaf)?),
                };
                Ok((SpiffeId::control_plane(&domain), roots.clone()))
            }
        }
    }
}

fn domain_of(id: &SpiffeId) -> TrustDomain {
    id.trust_domain().parse().expect("an identity's trust domain is one")
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (expected, roots) = self.pins.expect(leaf, intermediates)?;
        let trust = TrustBundle::new(domain_of(&expected), roots)
            .map_err(|e| PeerRefused::Unacceptable(e.to_string()))?;
        let usage = webpki::KeyUsage::server_auth();
        let found = trust.verify(leaf, intermediates, now, usage, &self.algorithms)?;
        if found != expected {
            return Err(PeerRefused::WrongIdentity { expected, found }.into());
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
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
