//! Peers of the mesh that are no sidecars: clients and servers that show
//! whatever certificate a test wants.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, ServerConfig, ServerConnection, SignatureScheme,
    StreamOwned, SupportedProtocolVersion,
};

use crate::response;

/// No exchange may take longer, the mesh's own limit on handshakes included.
const PATIENCE: Duration = Duration::from_secs(15);

/// Signs certificates.
pub struct Authority(Issuer<'static, KeyPair>);

impl Authority {
    /// The mesh's own, given the file in which the control plane keeps it.
    ///
    /// # Panics
    /// If that holds no certificate and key.
    pub fn of_mesh(file: &Path) -> Self {
        let pem = std::fs::read_to_string(file).expect("the authority is kept");
        let (certificate, key) = pem.split_at(pem.find("-----BEGIN PRIVATE KEY").expect("a key follows"));
        let key = KeyPair::from_pem(key).expect("it is a key");
        Self(Issuer::from_ca_cert_pem(certificate, key).expect("it is a CA's certificate"))
    }

    /// One that nobody knows.
    ///
    /// # Panics
    /// If there is no randomness.
    pub fn unknown() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(Issuer::new(params, KeyPair::generate().expect("keys can be made")))
    }

    /// A certificate for `uris` that ends on the first day of `year`.
    ///
    /// # Panics
    /// If a URI is none.
    pub fn sign(&self, uris: &[&str], year: i32) -> Certificate {
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("a URI"))).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("keys can be made");
        let leaf = params.signed_by(&key, &self.0).expect("the authority signs").der().clone();
        Certificate { leaf, key: key.serialize_der() }
    }
}

/// A certificate with its key.
pub struct Certificate {
    leaf: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Certificate {
    fn parts(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (vec![self.leaf.clone()], PrivatePkcs8KeyDer::from(self.key.clone()).into())
    }
}

/// Sends a GET for `port` of the application to the inbound listener `at`, as
/// a sidecar with this certificate would: what comes back, or why nothing does.
///
/// # Errors
/// If no response comes back.
///
/// # Panics
/// If `at` cannot be connected to.
pub fn call(at: SocketAddr, port: u16, certificate: Option<&Certificate>) -> std::io::Result<String> {
    call_by(&TLS13, at, port, certificate)
}

/// The same by a version of TLS.
///
/// # Errors
/// If no response comes back.
///
/// # Panics
/// If `at` cannot be connected to.
pub fn call_by(
    version: &'static SupportedProtocolVersion,
    at: SocketAddr,
    port: u16,
    certificate: Option<&Certificate>,
) -> std::io::Result<String> {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .expect("the provider has all versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = match certificate.map(Certificate::parts) {
        Some((chain, key)) => config.with_client_auth_cert(chain, key).expect("the key is the certificate's"),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"heddle/h1".to_vec()];
    let name = ServerName::try_from(format!("p{port}.heddle.internal")).expect("a DNS name");
    let session = ClientConnection::new(Arc::new(config), name).expect("the configuration is complete");
    let socket = TcpStream::connect(at).expect("the sidecar listens");
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(session, socket);
    stream.write_all(b"GET / HTTP/1.1\r\nhost: forged\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.is_empty() { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(answer) }
}

/// Listens at `at` as a sidecar with this certificate would, and answers every request with `forged`.
///
/// # Panics
/// If it cannot listen.
pub fn serve(at: SocketAddr, certificate: &Certificate) {
    serve_by(&TLS13, "heddle/h1", at, certificate);
}

/// The same by a version of TLS and a protocol in it.
///
/// # Panics
/// If it cannot listen.
pub fn serve_by(
    version: &'static SupportedProtocolVersion,
    protocol: &str,
    at: SocketAddr,
    certificate: &Certificate,
) {
    let (chain, key) = certificate.parts();
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .expect("the provider has all versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("the key is the certificate's");
    config.alpn_protocols = vec![protocol.into()];
    let config = Arc::new(config);
    let listener = TcpListener::bind(at).expect("whoever listened there has ended");
    thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let session = ServerConnection::new(config.clone()).expect("the configuration is complete");
            thread::spawn(move || {
                let mut stream = StreamOwned::new(session, socket);
                let mut request = [0; 4096];
                // Requests of a test fit into one record.
                while stream.read(&mut request).is_ok_and(|length| length > 0) {
                    if stream.write_all(response("forged").as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// Believes every server: it is the server's belief that is tested.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
