//! What Heddle reads from certificates besides identities: validity, and the
//! trust domain of a root.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::spiffe::TrustDomain;

/// A text that is no certificate as expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the certificate cannot be read: {0}")]
pub struct Unreadable(String);

/// From when to when a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: SystemTime,
    /// The last second.
    pub not_after: SystemTime,
}

/// The validity of a certificate, which is not verified here.
///
/// # Errors
/// If it cannot be parsed, or holds at no time after 1970.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<Validity, Unreadable> {
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|e| Unreadable(e.to_string()))?;
    let time = |seconds: i64| {
        let seconds = u64::try_from(seconds).map_err(|_| Unreadable("it is from before 1970".into()))?;
        Ok(UNIX_EPOCH + Duration::from_secs(seconds))
    };
    let validity = certificate.validity();
    Ok(Validity {
        not_before: time(validity.not_before.timestamp())?,
        not_after: time(validity.not_after.timestamp())?,
    })
}

/// The trust domain that a signing certificate names (SPIFFE X509-SVID,
/// section 3.1: a URI without a path), if it does.
pub fn trust_domain(root: &CertificateDer<'_>) -> Option<TrustDomain> {
    let (_, root) = X509Certificate::from_der(root).ok()?;
    let names = &root.subject_alternative_name().ok()??.value.general_names;
    names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("spiffe://")?.parse().ok(),
        _ => None,
    })
}

/// The one trust domain that signing certificates name, if any of them does.
///
/// # Errors
/// If they name several.
pub fn common_trust_domain(roots: &[CertificateDer<'_>]) -> Result<Option<TrustDomain>, SeveralTrustDomains> {
    let mut named = roots.iter().filter_map(trust_domain);
    let Some(first) = named.next() else { return Ok(None) };
    match named.find(|other| *other != first) {
        Some(other) => Err(SeveralTrustDomains(first, other)),
        None => Ok(Some(first)),
    }
}

/// Roots of more than one trust domain in one place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the roots name two trust domains, {0} and {1}")]
pub struct SeveralTrustDomains(TrustDomain, TrustDomain);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roots_trust_domain_and_validity_are_read() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI("spiffe://mesh.local".try_into().unwrap())];
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 1, 2);
        let root = params.self_signed(&key).unwrap();
        assert_eq!(trust_domain(root.der()), Some("mesh.local".parse().unwrap()));
        let validity = validity(root.der()).unwrap();
        let day = Duration::from_secs(86_400);
        assert_eq!(validity.not_after, validity.not_before + day);
        assert!(super::validity(&CertificateDer::from(vec![1, 2, 3])).is_err());
    }

    #[test]
    fn roots_agree_on_one_trust_domain_or_are_refused() {
        let root = |domain: Option<&str>| {
            let mut params = rcgen::CertificateParams::default();
            let names = domain.map(|name| rcgen::SanType::URI(name.try_into().unwrap()));
            params.subject_alt_names = names.into_iter().collect();
            params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().clone()
        };
        let (plain, one, two) = (root(None), root(Some("spiffe://one")), root(Some("spiffe://two")));
        assert_eq!(common_trust_domain(std::slice::from_ref(&plain)), Ok(None));
        assert_eq!(common_trust_domain(&[plain, one.clone()]), Ok(Some("one".parse().unwrap())));
        assert!(common_trust_domain(&[one, two]).is_err());
    }
}
