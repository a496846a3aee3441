//! The certificate authority: who a certificate says its bearer is, for how
//! long, and by which chain others can tell.
//!
//! Always holds: from a request to sign only the public key is taken, after
//! the requester showed that it has the private one; names, lifetime and usages
//! are decided here. A certificate never outlives the one that signed it.
//! Whether the caller has proved the identity is left to the identity
//! service, keeping the key to [`store`].

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use heddle_api::spiffe::{SpiffeId, TrustDomain};
use heddle_api::tls::{PeerRefused, TrustBundle};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use tokio::sync::watch;
use x509_parser::oid_registry::OID_X509_SERIALNUMBER;
use x509_parser::prelude::{FromDer, X509Certificate, X509CertificationRequest};

pub(crate) mod bundle;
pub(crate) mod store;

/// Signs certificates for identities of one trust domain.
pub(crate) struct Authority {
    domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    /// From the issuing certificate to the root.
    chain: Vec<CertificateDer<'static>>,
    not_after: OffsetDateTime,
    lifetime: Duration,
}

/// What a certificate says about its bearer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) identity: SpiffeId,
    /// The one service that the bearer may register, in its namespace; it
    /// travels as the certificate's common name, so that a renewal and a
    /// restarted control plane know it without keeping any state. `None`:
    /// only the service that is called like the service account.
    pub(crate) service: Option<String>,
    /// The UID of the pod whose token was the proof: its bearer can speak for this pod alone. It
    /// travels as the serial number of the certificate's subject (X.520, 6.2.9).
    pub(crate) pod: Option<String>,
}

/// A request to sign that cannot be granted; the requester's fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadRequest {
    #[error("the CSR is no PKCS#10 request in DER: {0}")]
    Unreadable(String),
    #[error("the CSR's signature does not verify: the requester does not have the private key")]
    Signature,
    #[error("the CSR's key is not of a kind that is accepted (ECDSA P-256 or P-384, Ed25519)")]
    Key,
}

/// A request that failed on our side.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignError {
    #[error(transparent)]
    Request(#[from] BadRequest),
    #[error("the certificate authority's own certificate has expired")]
    AuthorityExpired,
    #[error("cannot sign: {0}")]
    Signing(#[from] rcgen::Error),
}

/// A certificate and key that cannot be an authority; the operator's fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadAuthority {
    #[error("the CA certificate cannot be read: {0}")]
    Certificate(String),
    #[error("the first certificate is not a CA's (basic constraints without CA:TRUE)")]
    NotCa,
    #[error("the CA certificate, or one of its chain, has expired")]
    Expired,
    #[error("the private key is not that of the first certificate")]
    OtherKey,
    #[error("the private key cannot be read: {0}")]
    Key(rcgen::Error),
    #[error("it cannot sign: {0}")]
    Sign(#[from] SignError),
    #[error("what it signs would be refused by everybody: {0}")]
    Useless(#[from] PeerRefused),
}

/// A root lives for ten years: long enough that nobody is surprised by its
/// end in a mesh on a laptop, and a rotation is a file away.
const ROOT_LIFETIME: time::Duration = time::Duration::days(3650);

/// How far back a certificate's validity begins, for peers whose clock is
/// behind ours; five minutes is what Kerberos made customary. A short-lived
/// certificate gets a tenth of its lifetime, or renewal at a share of the
/// validity would come too early.
const BACKDATE: Duration = Duration::from_secs(300);

/// The attribute `serialNumber` of a name (X.520, 6.2.9).
const SERIAL_NUMBER: &[u64] = &[2, 5, 4, 5];

/// No honest request is a tenth as long.
const MAX_CSR: usize = 16 * 1024;

impl Authority {
    /// A new root: its certificate and private key, both PEM.
    pub(crate) fn create_root(
        domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<(String, String), rcgen::Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let now = OffsetDateTime::from(now);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Heddle");
        params.distinguished_name.push(DnType::CommonName, format!("root of {domain}"));
        // SPIFFE X509-SVID, section 3.1: a signing certificate may name its trust domain.
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{domain}").try_into()?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(random_serial());
        params.not_before = now - BACKDATE;
        params.not_after = now + ROOT_LIFETIME;
        Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
    }

    /// The authority of `chain` (issuing certificate first, root last) and the
    /// key of the first.
    pub(crate) fn new(
        domain: TrustDomain,
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'_>,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, BadAuthority> {
        let key = KeyPair::try_from(key).map_err(BadAuthority::Key)?;
        let first = chain.first().ok_or_else(|| BadAuthority::Certificate("there is none".into()))?;
        let (_, certificate) =
            X509Certificate::from_der(first).map_err(|e| BadAuthority::Certificate(e.to_string()))?;
        if !certificate.is_ca() {
            return Err(BadAuthority::NotCa);
        }
        if certificate.public_key().raw != key.subject_public_key_info() {
            return Err(BadAuthority::OtherKey);
        }
        let mut not_after = certificate.validity().not_after.to_datetime();
        // What one of them vouches for ends with it. Of the root only name and key count.
        for intermediate in chain.iter().take(chain.len() - 1).skip(1) {
            let (_, intermediate) = X509Certificate::from_der(intermediate)
                .map_err(|e| BadAuthority::Certificate(e.to_string()))?;
            not_after = not_after.min(intermediate.validity().not_after.to_datetime());
        }
        if not_after <= OffsetDateTime::from(now) {
            return Err(BadAuthority::Expired);
        }
        let issuer =
            Issuer::from_ca_cert_der(first, key).map_err(|e| BadAuthority::Certificate(e.to_string()))?;
        let authority = Self { domain, issuer, chain, not_after, lifetime };
        authority.try_out(now)?;
        Ok(authority)
    }

    /// Whether others accept what it signs: a chain in the wrong order, or one that may not sign,
    /// would take the mesh down certificate by certificate.
    fn try_out(&self, now: SystemTime) -> Result<(), BadAuthority> {
        let trust = TrustBundle::new(self.domain.clone(), vec![self.root().clone()])
            .map_err(|error| BadAuthority::Certificate(error.to_string()))?;
        let signed = self.own_certificate(now)?;
        let (_, without_root) = signed.cert.split_last().unwrap_or((self.root(), &[]));
        trust.accepts(without_root, now)?;
        Ok(())
    }

    pub(crate) fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// When the first of the certificates ends by which it signs; from then on it signs nothing.
    pub(crate) fn ends(&self) -> SystemTime {
        self.not_after.into()
    }

    /// The certificate whose key signs.
    pub(crate) fn issuing(&self) -> &CertificateDer<'static> {
        self.chain.first().expect("a chain has at least the issuing certificate")
    }

    /// The certificate that others must trust to trust ours.
    pub(crate) fn root(&self) -> &CertificateDer<'static> {
        self.chain.last().expect("a chain has at least the issuing certificate")
    }

    /// A certificate for the key of `csr`, leaf first, without the root.
    pub(crate) fn sign(
        &self,
        csr: &[u8],
        subject: &Subject,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        let key = requested_key(csr)?;
        let mut chain = vec![self.leaf(&key, subject, now)?];
        chain.extend_from_slice(&self.chain[..self.chain.len() - 1]);
        Ok(chain)
    }

    /// A certificate of the control plane's own. Its chain includes the root:
    /// the bearer of a join token knows that only by its hash.
    pub(crate) fn own_certificate(&self, now: SystemTime) -> Result<CertifiedKey, SignError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let identity = SpiffeId::control_plane(&self.domain);
        let subject = Subject { identity, service: None, pod: None };
        let mut chain = vec![self.leaf(&key, &subject, now)?];
        chain.extend_from_slice(&self.chain);
        Ok(certified(chain, &key))
    }

    /// A certificate for a server of the control plane's that others than sidecars call by these DNS
    /// names. It has no identity in the mesh. Its chain is without the root.
    pub(crate) fn serving_certificate(
        &self,
        names: &[String],
        now: SystemTime,
    ) -> Result<CertifiedKey, SignError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = self.end_entity(now)?;
        for name in names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let mut chain = vec![params.signed_by(&key, &self.issuer)?.der().clone()];
        chain.extend_from_slice(&self.chain[..self.chain.len() - 1]);
        Ok(certified(chain, &key))
    }

    fn leaf(
        &self,
        key: &impl PublicKeyData,
        subject: &Subject,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, SignError> {
        let mut params = self.end_entity(now)?;
        if let Some(service) = &subject.service {
            params.distinguished_name.push(DnType::CommonName, service.as_str());
        }
        if let Some(pod) = &subject.pod {
            params.distinguished_name.push(DnType::CustomDnType(SERIAL_NUMBER.into()), pod.as_str());
        }
        params.subject_alt_names = vec![SanType::URI(subject.identity.as_str().try_into()?)];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }

    /// What all certificates for bearers have in common.
    fn end_entity(&self, now: SystemTime) -> Result<CertificateParams, SignError> {
        let now = OffsetDateTime::from(now);
        if now >= self.not_after {
            return Err(SignError::AuthorityExpired);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(random_serial());
        params.not_before = now - BACKDATE.min(self.lifetime / 10);
        params.not_after = (now + self.lifetime).min(self.not_after);
        Ok(params)
    }
}

/// A chain with the key of its first certificate.
fn certified(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> CertifiedKey {
    let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = heddle_api::tls::provider()
        .key_provider
        .load_private_key(der)
        .expect("the key that was just made is of a supported kind");
    CertifiedKey::new(chain, key)
}

/// The service that a verified certificate allows its bearer to register.
pub(crate) fn registrable_service(leaf: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let name = certificate.subject().iter_common_name().next()?;
    name.as_str().ok().map(str::to_owned)
}

/// The UID of the pod that a verified certificate was made for.
pub(crate) fn pod(leaf: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let number = certificate.subject().iter_by_oid(&OID_X509_SERIALNUMBER).next()?;
    number.as_str().ok().map(str::to_owned)
}

/// When a certificate ends.
pub(crate) fn not_after(leaf: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    Some(certificate.validity().not_after.to_datetime().into())
}

/// The public key in `csr`, whose private part the requester has.
pub(crate) fn requested_key(csr: &[u8]) -> Result<SubjectPublicKeyInfo, BadRequest> {
    if csr.len() > MAX_CSR {
        return Err(BadRequest::Unreadable(format!("it is longer than {MAX_CSR} bytes")));
    }
    let (rest, request) =
        X509CertificationRequest::from_der(csr).map_err(|e| BadRequest::Unreadable(e.to_string()))?;
    if !rest.is_empty() {
        return Err(BadRequest::Unreadable("bytes follow the request".into()));
    }
    request.verify_signature().map_err(|_| BadRequest::Signature)?;
    let key = request.certification_request_info.subject_pki.raw;
    let key = SubjectPublicKeyInfo::from_der(key).map_err(|_| BadRequest::Key)?;
    let accepted = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
    if accepted.contains(&key.algorithm()) { Ok(key) } else { Err(BadRequest::Key) }
}

/// 20 bytes at most, positive and never zero (RFC 5280, section 4.1.2.2).
fn random_serial() -> SerialNumber {
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).expect("the system has random numbers");
    serial[0] = serial[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&serial)
}

/// Whether `issuer` signed `certificate`; validity and usages are not looked at.
pub(crate) fn issued(issuer: &CertificateDer<'_>, certificate: &CertificateDer<'_>) -> bool {
    let (Ok((_, issuer)), Ok((_, certificate))) =
        (X509Certificate::from_der(issuer), X509Certificate::from_der(certificate))
    else {
        return false;
    };
    issuer.subject() == certificate.issuer()
        && certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

/// The authority that everyone shares; it may be replaced while they use it.
#[derive(Clone)]
pub(crate) struct SharedAuthority(Arc<watch::Sender<Arc<Authority>>>);

impl SharedAuthority {
    pub(crate) fn new(authority: Authority) -> Self {
        Self(Arc::new(watch::Sender::new(Arc::new(authority))))
    }

    /// The one in force.
    pub(crate) fn current(&self) -> Arc<Authority> {
        self.0.borrow().clone()
    }

    /// Puts another one in force, of the same trust domain.
    pub(crate) fn replace(&self, authority: Authority) {
        self.0.send_replace(Arc::new(authority));
    }

    /// Tells of each replacement.
    pub(crate) fn replacements(&self) -> watch::Receiver<Arc<Authority>> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::store::read_pem;

    fn authority(lifetime: Duration) -> Authority {
        let domain: TrustDomain = "mesh.local".parse().unwrap();
        let (certificate, key) = Authority::create_root(&domain, SystemTime::now()).unwrap();
        let (chain, key) = read_pem(format!("{certificate}{key}").as_bytes()).unwrap();
        Authority::new(domain, chain, &key.unwrap(), lifetime, SystemTime::now()).unwrap()
    }

    fn subject() -> Subject {
        Subject {
            identity: "spiffe://mesh.local/ns/shop/sa/users".parse().unwrap(),
            service: Some("users-v2".into()),
            pod: Some("0a1b-2c3d".into()),
        }
    }

    fn csr_of(key: &KeyPair, params: &CertificateParams) -> Vec<u8> {
        params.serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn nothing_but_the_key_is_taken_from_a_request() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["evil.example".into()]).unwrap();
        params
            .subject_alt_names
            .push(SanType::URI("spiffe://mesh.local/ns/shop/sa/admin".try_into().unwrap()));
        params.distinguished_name.push(DnType::CommonName, "admin");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let now = SystemTime::now();
        let chain =
            authority(Duration::from_secs(3600)).sign(&csr_of(&key, &params), &subject(), now).unwrap();
        assert_eq!(chain.len(), 1, "the root is not sent");
        assert_eq!(heddle_api::tls::spiffe_id(&chain[0]).unwrap(), subject().identity);
        assert_eq!(registrable_service(&chain[0]).as_deref(), Some("users-v2"));
        assert_eq!(pod(&chain[0]).as_deref(), Some("0a1b-2c3d"));
        let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
        assert!(!leaf.is_ca());
        assert_eq!(leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
        assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
        let usage = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && usage.client_auth && !usage.any);
    }

    #[test]
    fn a_request_signed_by_another_key_is_refused() {
        let mut csr = csr_of(&KeyPair::generate().unwrap(), &CertificateParams::default());
        let end = csr.len() - 1;
        csr[end] ^= 1;
        let result = authority(Duration::from_secs(60)).sign(&csr, &subject(), SystemTime::now());
        assert!(matches!(result, Err(SignError::Request(BadRequest::Signature | BadRequest::Unreadable(_)))));
    }

    /// The API server knows the webhook by a name; a sidecar must never take it for a workload.
    #[test]
    fn a_serving_certificate_is_no_identity() {
        let authority = authority(Duration::from_secs(60));
        let names = ["heddle-control-plane.heddle-system.svc".to_owned()];
        let certificate = authority.serving_certificate(&names, SystemTime::now()).unwrap();
        assert_eq!(certificate.cert.len(), 1, "the root is not sent");
        assert!(heddle_api::tls::spiffe_id(&certificate.cert[0]).is_err());
        let (_, leaf) = X509Certificate::from_der(&certificate.cert[0]).unwrap();
        let usage = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && !usage.client_auth && !leaf.is_ca());
        assert!(not_after(&certificate.cert[0]).is_some());
    }

    #[test]
    fn garbage_is_refused() {
        let authority = authority(Duration::from_secs(60));
        for csr in [&b""[..], b"\x30\x80", &[0xff; 100], &[0; 20_000]] {
            let result = authority.sign(csr, &subject(), SystemTime::now());
            assert!(matches!(result, Err(SignError::Request(BadRequest::Unreadable(_)))));
        }
    }

    #[test]
    fn a_certificate_never_outlives_its_issuer() {
        let authority = authority(Duration::from_secs(60 * 86400 * 365));
        let csr = csr_of(&KeyPair::generate().unwrap(), &CertificateParams::default());
        let chain = authority.sign(&csr, &subject(), SystemTime::now()).unwrap();
        assert_eq!(not_after(&chain[0]), not_after(authority.root()));
    }

    #[test]
    fn a_short_lifetime_is_backdated_by_a_tenth() {
        let csr = csr_of(&KeyPair::generate().unwrap(), &CertificateParams::default());
        let now = SystemTime::now();
        let chain = authority(Duration::from_secs(60)).sign(&csr, &subject(), now).unwrap();
        let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
        let validity = leaf.validity();
        assert_eq!(validity.not_after.timestamp() - validity.not_before.timestamp(), 66);
    }

    #[test]
    fn an_authority_needs_the_key_of_its_certificate() {
        let domain: TrustDomain = "mesh.local".parse().unwrap();
        let now = SystemTime::now();
        let (certificate, _) = Authority::create_root(&domain, now).unwrap();
        let (_, other) = Authority::create_root(&domain, now).unwrap();
        let (chain, key) = read_pem(format!("{certificate}{other}").as_bytes()).unwrap();
        let result = Authority::new(domain, chain, &key.unwrap(), Duration::from_secs(60), now);
        assert!(matches!(result, Err(BadAuthority::OtherKey)));
    }
}
