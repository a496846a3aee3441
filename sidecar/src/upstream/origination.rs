//! TLS that we begin with servers outside the mesh, for applications that
//! speak plaintext.
//!
//! Always holds: TLS 1.3, and a server that proves one of the names that the
//! configuration gives, by a chain to the roots that it gives or else to those
//! of the operating system. Nothing can turn the verification off. What is
//! spoken inside is what the application speaks: one protocol is offered.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use heddle_api::tls::provider;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::connect::MeshProtocol;
use crate::io::{BufferedTcp, ReadBuffer};

/// Where operating systems keep the certificates that they trust: Debian and
/// Alpine, Fedora and Red Hat, openSUSE, macOS and the BSDs.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/usr/local/share/certs/ca-root-nss.crt",
];

/// Names another file in place of those, as OpenSSL has it.
const SYSTEM_ROOTS_VARIABLE: &str = "SSL_CERT_FILE";

/// A connection with TLS of which we are the client.
pub(crate) type Tls = TlsStream<BufferedTcp>;

/// How TLS is begun with the endpoints of a port.
pub struct Origination {
    terms: Terms,
    /// One per protocol, in the order of [`MeshProtocol::ALL`].
    configs: [Arc<ClientConfig>; 3],
}

/// What servers have to prove.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Terms {
    /// What they are asked for (SNI).
    pub server_name: ServerName<'static>,
    /// Names of which they have to prove one; empty: `server_name`.
    pub subject_names: Vec<ServerName<'static>>,
    /// Certificates that they have to chain to; empty: those of the operating system.
    pub roots: Vec<CertificateDer<'static>>,
}

impl Origination {
    /// TLS on these terms.
    ///
    /// # Errors
    /// If one of the roots is no certificate, or the operating system has none.
    pub fn new(terms: Terms) -> Result<Self, String> {
        let roots = match terms.roots.as_slice() {
            [] => system_roots()?,
            given => {
                let mut store = RootCertStore::empty();
                for (index, root) in given.iter().enumerate() {
                    store
                        .add(root.clone())
                        .map_err(|error| format!("root {index} is no certificate: {error}"))?;
                }
                Arc::new(store)
            }
        };
        let inner = WebPkiServerVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|error| error.to_string())?;
        let names = match terms.subject_names.as_slice() {
            [] => std::slice::from_ref(&terms.server_name),
            names => names,
        };
        let verifier = Arc::new(OneOf { names: names.into(), inner });
        let configs = MeshProtocol::ALL.map(|protocol| {
            let mut config = ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&rustls::version::TLS13])
                .expect("the provider has TLS 1.3 cipher suites")
                .dangerous()
                .with_custom_certificate_verifier(verifier.clone())
                .with_no_client_auth();
            config.alpn_protocols = alpn(protocol).into_iter().map(<[u8]>::to_vec).collect();
            Arc::new(config)
        });
        Ok(Self { terms, configs })
    }

    /// What servers have to prove.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Begins TLS on a new connection.
    ///
    /// # Errors
    /// Those of the connection, and a [`rustls::Error`] if the server does not prove what it
    /// has to, or does not agree to the protocol.
    pub(crate) async fn begin(&self, tcp: TcpStream, protocol: MeshProtocol) -> io::Result<Tls> {
        let connector = TlsConnector::from(self.configs[protocol as usize].clone());
        let tcp = BufferedTcp::new(tcp, ReadBuffer::default());
        let tls = connector.connect(self.terms.server_name.clone(), tcp).await?;
        if !agrees(protocol, tls.get_ref().1.alpn_protocol()) {
            return Err(io::Error::other(rustls::Error::NoApplicationProtocol));
        }
        Ok(tls)
    }
}

/// Equal terms are equal TLS.
impl PartialEq for Origination {
    fn eq(&self, other: &Self) -> bool {
        self.terms == other.terms
    }
}

impl Eq for Origination {}

impl Hash for Origination {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.terms.hash(state);
    }
}

impl fmt::Debug for Origination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Origination({:?})", self.terms.server_name)
    }
}

/// What is offered for a protocol of the application.
const fn alpn(protocol: MeshProtocol) -> Option<&'static [u8]> {
    match protocol {
        MeshProtocol::Http1 => Some(b"http/1.1"),
        MeshProtocol::Http2 => Some(b"h2"),
        MeshProtocol::Tcp => None,
    }
}

/// Whether a server that agreed to `agreed` speaks the protocol: HTTP/1 is what
/// servers speak that agree to nothing, HTTP/2 has to be agreed (RFC 9113, section 3.2).
fn agrees(protocol: MeshProtocol, agreed: Option<&[u8]>) -> bool {
    agreed == alpn(protocol) || (agreed.is_none() && protocol == MeshProtocol::Http1)
}

/// The word in metrics for why a handshake failed.
pub(super) fn refusal(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(error) => match error {
            CertificateError::UnknownIssuer => "unknown_issuer",
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "not_yet_valid",
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "wrong_name"
            }
            _ => "unacceptable",
        },
        _ => "protocol",
    }
}

/// Demands one of these names, whichever the server was asked for.
#[derive(Debug)]
struct OneOf {
    names: Box<[ServerName<'static>]>,
    inner: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for OneOf {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let mut refused = rustls::Error::InvalidCertificate(CertificateError::NotValidForName);
        for name in &self.names {
            match self.inner.verify_server_cert(leaf, intermediates, name, ocsp, now) {
                Ok(verified) => return Ok(verified),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The certificates that the operating system trusts, read once.
///
/// # Errors
/// If there is no file with any.
fn system_roots() -> Result<Arc<RootCertStore>, String> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    if let Some(roots) = ROOTS.get() {
        return Ok(roots.clone());
    }
    let named = std::env::var_os(SYSTEM_ROOTS_VARIABLE).filter(|path| !path.is_empty());
    // Whoever names a file means that one and no other, be it readable or not.
    let paths: Vec<PathBuf> = match named {
        Some(named) => vec![named.into()],
        None => SYSTEM_ROOTS.map(Into::into).into(),
    };
    let mut store = RootCertStore::empty();
    for path in &paths {
        // What cannot be read in such a file is no reason to trust nothing.
        let certificates = CertificateDer::pem_file_iter(path).into_iter().flatten().filter_map(Result::ok);
        if store.add_parsable_certificates(certificates).0 > 0 {
            return Ok(ROOTS.get_or_init(|| Arc::new(store)).clone());
        }
    }
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    Err(format!("the system trusts nobody: there are no certificates in {}", paths.join(", ")))
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;

    struct Authority(Issuer<'static, KeyPair>, CertificateDer<'static>);

    impl Authority {
        fn new(name: &str) -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            // Whose names are equal is told apart by the signature only, which is another error.
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&key).unwrap().der().clone();
            Self(Issuer::new(params, key), certificate)
        }

        fn certificate(&self, name: &str) -> CertificateDer<'static> {
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.signed_by(&KeyPair::generate().unwrap(), &self.0).unwrap().der().clone()
        }
    }

    fn name(text: &str) -> ServerName<'static> {
        ServerName::try_from(text.to_owned()).unwrap()
    }

    fn terms(subject_names: &[&str], authority: &Authority) -> Terms {
        Terms {
            server_name: name("lb.example"),
            subject_names: subject_names.iter().map(|text| name(text)).collect(),
            roots: vec![authority.1.clone()],
        }
    }

    #[test]
    fn equal_terms_are_equal_tls_and_others_are_not() {
        let (one, other) = (Authority::new("one"), Authority::new("other"));
        let made = |terms| Origination::new(terms).unwrap();
        assert_eq!(made(terms(&[], &one)), made(terms(&[], &one)));
        assert_ne!(made(terms(&[], &one)), made(terms(&[], &other)));
        assert_ne!(made(terms(&["a.example"], &one)), made(terms(&[], &one)));
        let bad = Terms { roots: vec![vec![1, 2, 3].into()], ..terms(&[], &one) };
        assert!(Origination::new(bad).unwrap_err().starts_with("root 0 is no certificate"));
    }

    #[test]
    fn one_of_the_subject_names_is_enough_and_the_servers_own_is_none_of_them() {
        let authority = Authority::new("one");
        let mut roots = RootCertStore::empty();
        roots.add(authority.1.clone()).unwrap();
        let inner = WebPkiServerVerifier::builder_with_provider(roots.into(), provider()).build().unwrap();
        let verifier = OneOf { names: [name("a.example"), name("b.example")].into(), inner };
        let verify = |leaf: CertificateDer<'static>| {
            verifier.verify_server_cert(&leaf, &[], &name("lb.example"), &[], UnixTime::now()).map(drop)
        };
        assert_eq!(verify(authority.certificate("b.example")), Ok(()));
        let refused = verify(authority.certificate("lb.example")).unwrap_err();
        assert_eq!(refusal(&refused), "wrong_name");
        let stranger = verify(Authority::new("other").certificate("a.example")).unwrap_err();
        assert_eq!(refusal(&stranger), "unknown_issuer");
    }

    #[test]
    fn one_protocol_is_offered_and_http_2_has_to_be_agreed() {
        let made = Origination::new(terms(&[], &Authority::new("one"))).unwrap();
        let offered =
            MeshProtocol::ALL.map(|protocol| made.configs[protocol as usize].alpn_protocols.clone());
        assert_eq!(offered, [vec![b"http/1.1".to_vec()], vec![b"h2".to_vec()], vec![]]);
        for (protocol, agreed, fine) in [
            (MeshProtocol::Http1, None, true),
            (MeshProtocol::Http1, Some(&b"http/1.1"[..]), true),
            (MeshProtocol::Http2, None, false),
            (MeshProtocol::Http2, Some(b"h2"), true),
            (MeshProtocol::Tcp, None, true),
        ] {
            assert_eq!(agrees(protocol, agreed), fine, "{protocol:?} {agreed:?}");
        }
    }
}
