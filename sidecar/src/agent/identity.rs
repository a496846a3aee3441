//! The workload's certificate: the first one by a [proof](super::proof), each
//! later one by the one before, in a pod by a fresh proof besides.
//!
//! Always holds: the key is made in this process for each certificate and
//! never leaves it; a certificate is used only if it names the identity that
//! was asked for and belongs to our key; a failed renewal keeps the valid one.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use heddle_api::discovery::v1;
use heddle_api::discovery::v1::identity_client::IdentityClient;
use heddle_api::discovery::v1::sign_request::Proof;
use heddle_api::spiffe::{SpiffeId, TrustDomain};
use heddle_api::tls::{Credentials, TrustBundle, provider, spiffe_id};
use heddle_api::x509::{self, Validity};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use tonic::transport::Channel;

use crate::policy::rng::Rng;
use crate::telemetry::metrics::SharedGauge;

use super::control_plane::{ControlPlane, Unreachable, describe};
use super::proof::{Expected, Introduction, NoProof, ProofSource};
use super::reconnect::{Reconnect, seeded};
use super::validate;

/// The part of a certificate's lifetime in which it is renewed. Early enough
/// that a control plane may be away for hours, spread so that certificates
/// issued together are not renewed together.
const RENEW_FROM: f64 = 0.5;
const RENEW_TO: f64 = 0.8;

/// Timers stand still while a laptop sleeps: the wall clock is looked at this often.
const LOOK: Duration = Duration::from_secs(30);

/// Limit on one signing call.
const SIGN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no (new) certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoCertificate {
    #[error(transparent)]
    Proof(#[from] NoProof),
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    #[error("the control plane did not sign the certificate: {0}")]
    Refused(String),
    #[error("the control plane's answer is not acceptable: {0}")]
    Unacceptable(String),
    #[error("no key could be made: {0}")]
    Key(rcgen::Error),
}

/// Obtains certificates and keeps them valid.
pub(crate) struct Identity {
    id: SpiffeId,
    credentials: Arc<Credentials>,
    control_plane: ControlPlane,
    proofs: ProofSource,
    validity: Validity,
    expiry: SharedGauge,
}

impl Identity {
    /// The first certificate.
    pub(crate) async fn obtain(
        control_plane: ControlPlane,
        proofs: ProofSource,
        expiry: SharedGauge,
    ) -> Result<Self, NoCertificate> {
        let issued = introduced(&control_plane, proofs.introduce()?).await?;
        let credentials = Credentials::new(issued.trust);
        credentials.set_certificate(issued.certificate);
        show(&expiry, issued.validity);
        let id = issued.id;
        tracing::info!(%id, until = %timestamp(issued.validity.not_after), "identity obtained");
        Ok(Self { id, credentials, control_plane, proofs, validity: issued.validity, expiry })
    }

    /// What proves the identity to others.
    pub(crate) fn credentials(&self) -> &Arc<Credentials> {
        &self.credentials
    }

    /// The identity's trust domain.
    pub(crate) fn trust_domain(&self) -> TrustDomain {
        self.credentials.trust().domain().clone()
    }

    /// Renews for ever.
    pub(crate) async fn keep(mut self) {
        let rng = seeded();
        loop {
            sleep_until(renewal_time(self.validity, &rng)).await;
            let mut reconnect = Reconnect::new();
            while let Err(error) = self.renew().await {
                let left = self.validity.not_after.duration_since(SystemTime::now()).unwrap_or_default();
                tracing::warn!(%error, valid_for_seconds = left.as_secs(), "the certificate could not be renewed");
                tokio::time::sleep(reconnect.next()).await;
            }
        }
    }

    async fn renewed(&self) -> Result<Issued, NoCertificate> {
        let expected = Expected::exactly(&self.id);
        // An expired certificate proves nothing any more.
        if SystemTime::now() < self.validity.not_after {
            let proof = self.proofs.renewal()?;
            match self.control_plane.connect_as(&self.credentials).await {
                Ok(channel) => return sign(channel, proof, &expected).await,
                Err(unreachable) if !self.proofs.knows_newer_roots() => return Err(unreachable.into()),
                Err(_) => {}
            }
        }
        let introduction = self.proofs.introduce()?;
        if !introduction.expected.is(&self.id) {
            return Err(NoCertificate::Unacceptable(format!(
                "the proof is for {}, but this process is {}",
                introduction.expected, self.id
            )));
        }
        introduced(&self.control_plane, Introduction { expected, ..introduction }).await
    }

    async fn renew(&mut self) -> Result<(), NoCertificate> {
        let issued = self.renewed().await?;
        self.credentials.set_trust(issued.trust);
        self.credentials.set_certificate(issued.certificate);
        self.validity = issued.validity;
        show(&self.expiry, issued.validity);
        tracing::info!(id = %self.id, until = %timestamp(issued.validity.not_after), "certificate renewed");
        Ok(())
    }
}

struct Issued {
    id: SpiffeId,
    certificate: CertifiedKey,
    trust: TrustBundle,
    validity: Validity,
}

async fn introduced(
    control_plane: &ControlPlane,
    introduction: Introduction,
) -> Result<Issued, NoCertificate> {
    let Introduction { proof, expected, tls } = introduction;
    sign(control_plane.connect(tls).await?, Some(proof), &expected).await
}

async fn sign(channel: Channel, proof: Option<Proof>, expected: &Expected) -> Result<Issued, NoCertificate> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(NoCertificate::Key)?;
    // Everything but the key comes from the proof, so the request names nothing.
    let csr = rcgen::CertificateParams::default().serialize_request(&key).map_err(NoCertificate::Key)?;
    let mut request = tonic::Request::new(v1::SignRequest { csr: csr.der().to_vec(), proof });
    request.set_timeout(SIGN_TIMEOUT);
    let response = tokio::time::timeout(SIGN_TIMEOUT, IdentityClient::new(channel).sign(request))
        .await
        .map_err(|_| NoCertificate::Refused(format!("no answer within {SIGN_TIMEOUT:?}")))?
        .map_err(|status| NoCertificate::Refused(describe(&status)))?
        .into_inner();
    accept(response, &key, expected).map_err(NoCertificate::Unacceptable)
}

/// Takes over what was signed, if it is what was asked for.
fn accept(response: v1::SignResponse, key: &rcgen::KeyPair, expected: &Expected) -> Result<Issued, String> {
    let chain: Vec<CertificateDer<'static>> = response.chain.into_iter().map(Into::into).collect();
    let leaf = chain.first().ok_or("there is no certificate in it")?;
    let id = spiffe_id(leaf).map_err(|error| error.to_string())?;
    if !expected.is(&id) {
        return Err(format!("the certificate is for {id} instead of {expected}"));
    }
    let validity = x509::validity(leaf).map_err(|error| error.to_string())?;
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let private = provider().key_provider.load_private_key(private).map_err(|error| error.to_string())?;
    let certificate = CertifiedKey::new(chain, private);
    certificate.keys_match().map_err(|_| "the certificate is not for our key")?;
    let domain: TrustDomain = id.trust_domain().parse().expect("an identity's trust domain is one");
    let bundle = response.bundle.ok_or("there is no trust bundle in it")?;
    let trust = validate::trust_bundle(bundle, &domain).map_err(|error| format!("bundle.{error}"))?;
    Ok(Issued { id, certificate, trust, validity })
}

/// A random moment in the renewal part of the lifetime.
fn renewal_time(validity: Validity, rng: &Rng) -> SystemTime {
    let lifetime = validity.not_after.duration_since(validity.not_before).unwrap_or_default();
    validity.not_before + lifetime.mul_f64(RENEW_FROM + (RENEW_TO - RENEW_FROM) * rng.unit())
}

async fn sleep_until(moment: SystemTime) {
    while let Ok(left) = moment.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK)).await;
    }
}

fn show(expiry: &SharedGauge, validity: Validity) {
    let since = validity.not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
    expiry.set(since.as_secs_f64());
}

/// A time as RFC 3339 writes it.
pub(crate) fn timestamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "beyond all time".into(), |t| t.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "spiffe://mesh.local/ns/shop/sa/users";

    fn signed(uri: &str, key: &rcgen::KeyPair) -> v1::SignResponse {
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
        let certificate = params.self_signed(key).unwrap().der().to_vec();
        let bundle = v1::TrustBundle { trust_domain: "mesh.local".into(), roots: vec![certificate.clone()] };
        v1::SignResponse { chain: vec![certificate], bundle: Some(bundle) }
    }

    #[test]
    fn only_a_certificate_for_our_identity_and_key_is_accepted() {
        let id = Expected::exactly(&ID.parse().unwrap());
        let key = rcgen::KeyPair::generate().unwrap();
        let other = rcgen::KeyPair::generate().unwrap();
        assert!(accept(signed(ID, &key), &key, &id).is_ok());
        let refused = |response| accept(response, &key, &id).err().unwrap();
        assert!(refused(signed(ID, &other)).contains("not for our key"));
        assert!(refused(signed("spiffe://mesh.local/ns/shop/sa/admin", &key)).contains("instead of"));
        assert!(refused(v1::SignResponse { bundle: None, ..signed(ID, &key) }).contains("no trust bundle"));
        assert!(refused(v1::SignResponse::default()).contains("no certificate"));
    }

    #[test]
    fn renewal_falls_between_half_and_four_fifths_of_the_lifetime() {
        let validity = Validity { not_before: UNIX_EPOCH, not_after: UNIX_EPOCH + Duration::from_secs(1000) };
        let rng = Rng::new(7);
        for _ in 0..100 {
            let at = renewal_time(validity, &rng).duration_since(UNIX_EPOCH).unwrap().as_secs();
            assert!((500..=800).contains(&at), "{at}");
        }
    }
}
