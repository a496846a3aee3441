//! Service names as applications write them: `users`, `users.shop`,
//! `users.shop.svc`, `users.shop.svc.cluster.local`, in any case, with or
//! without a final dot.

use std::fmt;

/// The cluster domain of every Kubernetes cluster that was not told otherwise.
pub const DEFAULT_CLUSTER_DOMAIN: &str = "cluster.local";

/// A service in its namespace: `namespace/name`, lower-case.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// `namespace/name`.
    key: Box<str>,
    namespace: usize,
}

/// A text that is no `namespace/name` of DNS labels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no service name (namespace/name, each a DNS label)")]
pub struct InvalidServiceName(String);

impl ServiceName {
    /// A name from its parts, which become lower-case.
    ///
    /// # Errors
    /// If a part is no DNS label (RFC 1123).
    pub fn new(namespace: &str, name: &str) -> Result<Self, InvalidServiceName> {
        if !is_label(namespace) || !is_label(name) {
            return Err(InvalidServiceName(format!("{namespace}/{name}")));
        }
        let key = format!("{namespace}/{name}").to_ascii_lowercase().into_boxed_str();
        Ok(Self { key, namespace: namespace.len() })
    }

    /// The service that `host` (without port) means to a caller in `namespace`;
    /// `None` if it cannot be a service's name. Whether the service exists is
    /// not known here: `example.com` reads as service `example` of namespace `com`.
    pub fn from_host(host: &str, namespace: &str, cluster_domain: &str) -> Option<Self> {
        let host = host.strip_suffix('.').unwrap_or(host);
        if host.len() > 253 {
            return None;
        }
        let host = strip_suffix_ignore_case(host, cluster_domain)
            .and_then(|h| h.strip_suffix('.'))
            .map_or((host, false), |h| (h, true));
        let (host, qualified) = host;
        let mut labels = host.split('.');
        match (labels.next(), labels.next(), labels.next(), labels.next()) {
            (Some(name), None, None, None) if !qualified => Self::new(namespace, name).ok(),
            (Some(name), Some(namespace), None, None) if !qualified => Self::new(namespace, name).ok(),
            (Some(name), Some(namespace), Some(svc), None) if svc.eq_ignore_ascii_case("svc") => {
                Self::new(namespace, name).ok()
            }
            _ => None,
        }
    }

    /// `namespace/name`, the name of the discovery resource.
    pub fn as_str(&self) -> &str {
        &self.key
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.key[..self.namespace]
    }

    /// The name inside the namespace.
    pub fn name(&self) -> &str {
        &self.key[self.namespace + 1..]
    }
}

impl std::str::FromStr for ServiceName {
    type Err = InvalidServiceName;

    fn from_str(key: &str) -> Result<Self, InvalidServiceName> {
        let (namespace, name) = key.split_once('/').ok_or_else(|| InvalidServiceName(key.into()))?;
        Self::new(namespace, name)
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)
    }
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= 63
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-'
}

fn strip_suffix_ignore_case<'a>(text: &'a str, suffix: &str) -> Option<&'a str> {
    let at = text.len().checked_sub(suffix.len())?;
    (text.is_char_boundary(at) && text[at..].eq_ignore_ascii_case(suffix)).then(|| &text[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Option<String> {
        ServiceName::from_host(text, "shop", DEFAULT_CLUSTER_DOMAIN).map(|n| n.as_str().to_owned())
    }

    #[test]
    fn every_spelling_means_the_same_service() {
        for text in [
            "users",
            "Users.",
            "users.shop",
            "users.shop.svc",
            "USERS.shop.SVC.cluster.Local",
            "users.shop.svc.cluster.local.",
        ] {
            assert_eq!(host(text).as_deref(), Some("shop/users"), "{text}");
        }
        assert_eq!(host("users.other").as_deref(), Some("other/users"));
    }

    #[test]
    fn what_cannot_be_a_service_is_none() {
        for text in
            ["", ".", "a..b", "www.example.com", "10.0.0.1", "users.cluster.local", "-a", "a_b", "[::1]"]
        {
            assert_eq!(host(text), None, "{text}");
        }
    }
}
