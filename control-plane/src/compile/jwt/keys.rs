//! The keys of providers: from the policy itself, from Secrets, or from where
//! they were read.
//!
//! Who writes policies into a cluster is not who runs the control plane: neither its files nor what
//! listens on its own loopback addresses are there for them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use heddle_api::crd::{JwtPolicy, JwtProvider, SecretKeyRef};
use heddle_api::discovery::v1;
use heddle_api::jwk::{Jwk, KeySet, MIN_SECRET, PublicKey};
use heddle_api::name::ServiceName;

use crate::keys::{FoundKeys, KeyPlace, Terms, WantedKeys};
use crate::source::{ObjectName, Objects, Sourced};

/// The sets of Secrets that were good, by Secret and entry: one that is broken now
/// stays in force as it was.
pub(crate) type KnownSecrets = BTreeMap<(ObjectName, String), Arc<[v1::JwtKey]>>;

/// Where keys are looked for.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    /// For Secrets.
    pub(crate) objects: &'a Objects,
    /// What was read from files and URLs.
    pub(crate) found: &'a FoundKeys,
    /// The Secrets that were good before.
    pub(crate) known: &'a KnownSecrets,
    /// The services of the mesh, which the control plane is not a part of.
    pub(crate) services: &'a BTreeMap<ServiceName, v1::Service>,
    /// Their names end so.
    pub(crate) cluster_domain: &'a str,
}

/// Looks keys up, and notes what has to be read.
pub(super) struct Keys<'a> {
    sources: Sources<'a>,
    wanted: WantedKeys,
    known: KnownSecrets,
}

/// The keys of a provider.
#[derive(Default)]
pub(super) struct ProviderKeys {
    pub(super) keys: Vec<v1::JwtKey>,
    /// Where they come from.
    pub(super) from: String,
    /// They were not read as yet.
    pub(super) pending: bool,
    /// What they should come from and do not.
    pub(super) missing: Option<String>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(sources: Sources<'a>) -> Self {
        Self { sources, wanted: WantedKeys::new(), known: KnownSecrets::new() }
    }

    pub(super) fn into_wanted(self) -> (WantedKeys, KnownSecrets) {
        (self.wanted, self.known)
    }

    /// The keys of a provider of `policy`.
    pub(super) fn of(&mut self, policy: &Sourced<JwtPolicy>, provider: &JwtProvider) -> ProviderKeys {
        let namespace = &policy.name.namespace;
        if let Some(secret) = &provider.hmac_secret_ref {
            return self.shared(namespace, secret);
        }
        // Validation lets none through without.
        let Some(jwks) = &provider.jwks else { return ProviderKeys::default() };
        if let Some(inline) = &jwks.inline {
            let keys = KeySet::parse(inline.as_bytes()).map(|set| set.keys).unwrap_or_default();
            let from = "the policy itself".into();
            return ProviderKeys { keys: keys.iter().map(wire).collect(), from, ..ProviderKeys::default() };
        }
        if let Some(secret) = &jwks.secret_ref {
            return self.set(namespace, secret);
        }
        let folder = policy.origin.folder();
        let place = match (&jwks.file, &jwks.url) {
            (Some(file), _) => KeyPlace::File(folder.map_or_else(|| file.into(), |folder| folder.join(file))),
            (None, url) => KeyPlace::Url(url.clone().unwrap_or_default()),
        };
        let from = place.to_string();
        let unreachable = beyond_cluster(jwks.file.as_deref(), jwks.url.as_deref());
        if let Some((_, why)) = unreachable.filter(|_| folder.is_none()) {
            return ProviderKeys { from, ..missing(format!("key set {place}: {why}")) };
        }
        let read = self.read(place, Terms { refresh: jwks.cache_duration(), timeout: jwks.timeout() });
        ProviderKeys { from, ..read }
    }

    fn read(&mut self, place: KeyPlace, terms: Terms) -> ProviderKeys {
        let found = self.sources.found.get(&place);
        let keys = found.and_then(|found| found.keys.as_ref());
        let missing = match (keys, found.and_then(|found| found.error.as_ref())) {
            (Some(_), _) => None,
            (None, Some(error)) => Some(format!("key set {place}: {error}{}", self.about_mesh(&place))),
            (None, None) => Some(format!("key set {place}: not read as yet")),
        };
        let keys = ProviderKeys {
            keys: keys.iter().flat_map(|keys| keys.iter().map(wire)).collect(),
            pending: keys.is_none(),
            missing,
            ..ProviderKeys::default()
        };
        let wanted = self.wanted.entry(place).or_insert(terms);
        wanted.refresh = wanted.refresh.min(terms.refresh);
        wanted.timeout = wanted.timeout.max(terms.timeout);
        keys
    }

    /// What else there is to say about a place that cannot be read if it is a service of the mesh.
    fn about_mesh(&self, place: &KeyPlace) -> String {
        let KeyPlace::Url(url) = place else { return String::new() };
        let uri: Option<http::Uri> = url.parse().ok();
        // Whose a name without a dot is depends on who asks.
        let host = uri.as_ref().and_then(http::Uri::host).filter(|host| host.contains('.'));
        let name = host.and_then(|host| ServiceName::from_host(host, "", self.sources.cluster_domain));
        let service = name.as_ref().and_then(|name| Some((name, self.sources.services.get(name)?)));
        let meshed = |service: &v1::Service| service.endpoints.iter().any(|e| !e.identity.is_empty());
        match service.filter(|(_, service)| meshed(service)) {
            Some((name, _)) => format!(
                " ({name} is in the mesh and the control plane is not, so that it is not let in: give the keys \
                 by inline or secretRef, or leave that port out of the mesh)"
            ),
            None => String::new(),
        }
    }

    /// A secret that an issuer shares with us.
    fn shared(&self, namespace: &str, secret: &SecretKeyRef) -> ProviderKeys {
        let (name, value) = self.value(namespace, secret);
        let from = format!("Secret {name} {}", secret.key);
        match value {
            Some(value) if value.len() >= MIN_SECRET => {
                // A key is at least as long as the hash (RFC 7518, section 3.2).
                let fits = [("HS256", 32), ("HS384", 48), ("HS512", 64)];
                let fits = fits.into_iter().filter(|(_, length)| value.len() >= *length);
                let algorithms = fits.map(|(name, _)| name.to_owned()).collect();
                let key =
                    v1::JwtKey { id: String::new(), algorithms, key: Some(v1::jwt_key::Key::Secret(value)) };
                ProviderKeys { keys: vec![key], from, ..ProviderKeys::default() }
            }
            Some(_) => {
                let why = format!("{from}: shorter than {MIN_SECRET} bytes");
                ProviderKeys { from, ..missing(why) }
            }
            None => ProviderKeys { from: from.clone(), ..missing(from) },
        }
    }

    /// The set that a Secret holds.
    fn set(&mut self, namespace: &str, secret: &SecretKeyRef) -> ProviderKeys {
        let (name, value) = self.value(namespace, secret);
        let from = format!("Secret {name} {}", secret.key);
        let Some(value) = value else { return ProviderKeys { from: from.clone(), ..missing(from) } };
        let place = (name, secret.key.clone());
        let (keys, missing) = match KeySet::parse(&value) {
            Ok(set) => (Some(set.keys.iter().map(wire).collect()), None),
            Err(error) => {
                let missing = Some(format!("{from}: {error}"));
                (self.sources.known.get(&place).cloned(), missing)
            }
        };
        let keys: Option<Arc<[v1::JwtKey]>> = keys;
        if let Some(keys) = &keys {
            self.known.insert(place, keys.clone());
        }
        let keys = keys.iter().flat_map(|keys| keys.to_vec()).collect();
        ProviderKeys { keys, from, pending: false, missing }
    }

    fn value(&self, namespace: &str, secret: &SecretKeyRef) -> (ObjectName, Option<Vec<u8>>) {
        let name = ObjectName { namespace: namespace.into(), name: secret.name.clone() };
        let value = self.sources.objects.secrets.get(&name).and_then(|found| found.value.value(&secret.key));
        (name, value)
    }
}

/// The field of a key set's place that means nothing where policies are a cluster's, and why.
pub(crate) fn beyond_cluster(file: Option<&str>, url: Option<&str>) -> Option<(&'static str, &'static str)> {
    if file.is_some() {
        return Some(("file", "a policy of a cluster has no files beside it"));
    }
    let url = url?;
    let uri: Option<http::Uri> = url.parse().ok();
    let host = uri.as_ref().and_then(http::Uri::host).unwrap_or_default();
    let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    if !url.starts_with("https://") {
        Some(("url", "for a policy of a cluster keys are fetched by https:// alone"))
    } else if host.eq_ignore_ascii_case("localhost") || address.is_some_and(|address| address.is_loopback()) {
        Some((
            "url",
            "the host is the control plane's own machine, where nothing is for policies of a cluster",
        ))
    } else {
        None
    }
}

fn missing(what: String) -> ProviderKeys {
    ProviderKeys { missing: Some(what), ..ProviderKeys::default() }
}

fn wire(key: &Jwk) -> v1::JwtKey {
    use v1::jwt_key::Key;
    let bytes = match &key.key {
        PublicKey::Rsa { modulus, exponent } => {
            Key::Rsa(v1::RsaKey { modulus: modulus.clone(), exponent: exponent.clone() })
        }
        PublicKey::Ec(point) => Key::Ec(point.clone()),
        PublicKey::Ed25519(bytes) => Key::Ed25519(bytes.clone()),
    };
    let algorithms = key.algorithms.iter().map(|name| (*name).to_owned()).collect();
    v1::JwtKey { id: key.id.clone(), algorithms, key: Some(bytes) }
}
