//! SPIFFE identities of the form that Heddle issues:
//! `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`
//! (SPIFFE-ID standard, section 2; the path layout is Istio's).

use std::fmt;
use std::str::FromStr;

/// A trust domain's name: lower-case letters, digits, dots, dashes and
/// underscores, at most 255 bytes (SPIFFE-ID, section 2.1).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TrustDomain(Box<str>);

impl TrustDomain {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, InvalidSpiffeId> {
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > 255 || !text.bytes().all(valid) {
            return Err(InvalidSpiffeId {
                id: text.into(),
                reason: "the trust domain is empty or has a character outside a-z 0-9 . - _",
            });
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A workload's identity. Cheap to compare, immutable.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Box<str>,
    /// Lengths of the trust domain and the namespace inside `uri`.
    domain: usize,
    namespace: usize,
}

/// Why a text is no identity that Heddle accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{id:?} is no SPIFFE ID of the form spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT: {reason}")]
pub struct InvalidSpiffeId {
    id: String,
    reason: &'static str,
}

const SCHEME: &str = "spiffe://";

impl SpiffeId {
    /// The identity of a service account.
    ///
    /// # Errors
    /// If a part is empty or has a character that SPIFFE path segments do not allow.
    pub fn new(domain: &TrustDomain, namespace: &str, account: &str) -> Result<Self, InvalidSpiffeId> {
        format!("{SCHEME}{domain}/ns/{namespace}/sa/{account}").parse()
    }

    /// The identity of the control plane of `domain`.
    pub fn control_plane(domain: &TrustDomain) -> Self {
        Self::new(domain, "heddle-system", "heddle-control-plane").expect("both names are path segments")
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The trust domain's name.
    pub fn trust_domain(&self) -> &str {
        &self.uri[SCHEME.len()..SCHEME.len() + self.domain]
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        let start = SCHEME.len() + self.domain + "/ns/".len();
        &self.uri[start..start + self.namespace]
    }

    /// The service account's name.
    pub fn account(&self) -> &str {
        &self.uri[SCHEME.len() + self.domain + "/ns/".len() + self.namespace + "/sa/".len()..]
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(uri: &str) -> Result<Self, InvalidSpiffeId> {
        let fail = |reason| InvalidSpiffeId { id: uri.into(), reason };
        if uri.len() > 2048 {
            return Err(fail("longer than 2048 bytes"));
        }
        let rest = uri.strip_prefix(SCHEME).ok_or_else(|| fail("the scheme is not spiffe"))?;
        let mut parts = rest.split('/');
        let domain: TrustDomain = parts.next().unwrap_or_default().parse()?;
        let valid = |s: &str| {
            !s.is_empty()
                && s != "."
                && s != ".."
                && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        };
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("ns"), Some(namespace), Some("sa"), Some(account), None)
                if valid(namespace) && valid(account) =>
            {
                Ok(Self { uri: uri.into(), domain: domain.0.len(), namespace: namespace.len() })
            }
            _ => Err(fail("the path is not /ns/NAMESPACE/sa/ACCOUNT")),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_those_of_the_uri() {
        let id: SpiffeId = "spiffe://mesh.example/ns/shop/sa/users".parse().unwrap();
        assert_eq!((id.trust_domain(), id.namespace(), id.account()), ("mesh.example", "shop", "users"));
        assert_eq!(SpiffeId::new(&"mesh.example".parse().unwrap(), "shop", "users").unwrap(), id);
    }

    #[test]
    fn other_shapes_are_refused() {
        for bad in [
            "",
            "https://d/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://D/ns/a/sa/b",
            "spiffe://d/ns//sa/b",
            "spiffe://d/ns/a/sa/b/",
            "spiffe://d/ns/a/sa/..",
            "spiffe://d/ns/a/sa/b?x",
            "spiffe://d/ns/a/sa/b%20",
            "spiffe://d/workload",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
    }
}
