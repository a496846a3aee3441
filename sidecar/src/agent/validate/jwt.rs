//! Which tokens requests to the workload bring.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use heddle_api::discovery::v1;
use heddle_api::jwk::MAX_KEYS;
use http::HeaderName;
use prost::Message;

use super::policy::duration;
use super::route::unknown_kind;
use super::{Invalid, port};
use crate::config::{Gates, PortRoutes, Workload};
use crate::policy::jwt::{Gate, Key, Location, Material, Policy, PortPolicy, Provider, lookalikes};
use crate::sanitize::headers::{Known, is_valid_name};

/// The gates of the workload's ports. What `before` had stays where nothing changed, and so does
/// what is known there about tokens.
pub(super) fn gates(wire: &[v1::JwtPolicy], before: Option<&Workload>) -> Result<Gates, Invalid> {
    let before = before.map(|before| &before.gates);
    let digest = fingerprint(wire);
    if let Some(same) = before.filter(|before| before.fingerprint == digest) {
        return Ok(same.clone());
    }
    let mut sources = BTreeSet::new();
    // By port, and at 0 for all ports.
    let mut ports: BTreeMap<u16, Vec<PortPolicy>> = BTreeMap::new();
    for (index, wire) in wire.iter().enumerate() {
        let within = |e: Invalid| e.within(&format!("jwt_policies[{index}]"));
        if !sources.insert(&wire.source) {
            return Err(within(Invalid::new("source", format!("{:?} is not unique", wire.source))));
        }
        let policy = Arc::new(policy(wire, before).map_err(within)?);
        for (number, marks) in scopes(&wire.scopes).map_err(within)? {
            ports.entry(number).or_default().push(PortPolicy { policy: policy.clone(), marks });
        }
    }
    let every = ports.remove(&0).unwrap_or_default();
    let ports = ports.into_iter().map(|(number, policies)| {
        let policies = policies.into_iter().chain(every.iter().cloned());
        (number, Arc::new(Gate::new(policies)))
    });
    let ports = ports.collect();
    let every = (!every.is_empty()).then(|| Arc::new(Gate::new(every)));
    Ok(Gates { fingerprint: digest, ports, every })
}

/// A hash of the policies as they were sent: what is equal need not be compiled again.
fn fingerprint(wire: &[v1::JwtPolicy]) -> Option<[u8; 32]> {
    if wire.is_empty() {
        return None;
    }
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for policy in wire {
        context.update(&policy.encode_length_delimited_to_vec());
    }
    context.finish().as_ref().try_into().ok()
}

/// The ports, each with the marks that it is about; `None`: it is about every request.
type Scopes = BTreeMap<u16, Option<Arc<[Box<[u8]>]>>>;

fn scopes(wire: &[v1::JwtScope]) -> Result<Scopes, Invalid> {
    let mut ports: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    for (index, scope) in wire.iter().enumerate() {
        let number = if scope.port == 0 { 0 } else { port(&format!("scopes[{index}].port"), scope.port)? };
        ports.entry(number).or_default().push(&scope.mark);
    }
    let marks = |marks: Vec<&str>| {
        let all = marks.contains(&"");
        (!all).then(|| marks.iter().map(|mark| mark.as_bytes().into()).collect())
    };
    Ok(ports.into_iter().map(|(number, scope)| (number, marks(scope))).collect())
}

fn policy(wire: &v1::JwtPolicy, before: Option<&Gates>) -> Result<Policy, Invalid> {
    // It is written into answers and labels.
    if wire.source.is_empty() || !wire.source.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Invalid::new("source", format!("{:?} is no name", wire.source)));
    }
    let known = |provider: &v1::JwtProvider| {
        let policies = before.into_iter().flat_map(Gates::policies);
        let mut providers =
            policies.filter(|policy| *policy.source == *wire.source).flat_map(|policy| &policy.providers);
        // Keys of another place are not what is waited for: it may be for them that the place was changed.
        // Older control planes did not tell it.
        let same_place = |known: &Provider| [&provider.keys_from, ""].contains(&&*known.keys_from);
        providers.find(|known| {
            *known.name == *provider.name && *known.issuer == *provider.issuer && same_place(known)
        })
    };
    let providers = providers(&wire.providers, |provider| known(provider).map(|known| known.keys.clone()));
    Ok(Policy { source: wire.source.as_str().into(), required: wire.required, providers: providers? })
}

/// Providers. `known` tells the keys that one had before, for one whose keys are not read as yet.
pub(super) fn providers(
    wire: &[v1::JwtProvider],
    known: impl Fn(&v1::JwtProvider) -> Option<Arc<[Key]>>,
) -> Result<Box<[Provider]>, Invalid> {
    let provider = |(index, wire): (usize, &v1::JwtProvider)| {
        provider(wire, &known).map_err(|e| e.within(&format!("providers[{index}]")))
    };
    wire.iter().enumerate().map(provider).collect()
}

/// Gives the providers of canaries whose keys are not read as yet those that they had before: their
/// users stay where they are while a control plane starts.
pub(super) fn keep_keys(wire: &mut v1::RouteSet, before: &[PortRoutes]) {
    let pending = |claim: &mut v1::ClaimCanary| claim.providers.iter().any(|provider| provider.keys_pending);
    if !canaries(wire).any(pending) {
        return;
    }
    let mut known = BTreeMap::new();
    for before in before {
        // It was encoded here.
        let Ok(mut set) = v1::RouteSet::decode(&*before.encoded) else { continue };
        for provider in canaries(&mut set).flat_map(|claim| &claim.providers) {
            if !provider.keys.is_empty() {
                known.insert(identity(provider), provider.keys.clone());
            }
        }
    }
    for provider in canaries(wire).flat_map(|claim| &mut claim.providers) {
        let unsaid = v1::JwtProvider { keys_from: String::new(), ..provider.clone() };
        let keys = known.get(&identity(provider)).or_else(|| known.get(&identity(&unsaid)));
        if let Some(keys) = keys.filter(|_| provider.keys_pending) {
            (provider.keys, provider.keys_pending) = (keys.clone(), false);
        }
    }
}

/// What has to be the same of a provider for its keys to be.
fn identity(provider: &v1::JwtProvider) -> (String, String, String) {
    (provider.name.clone(), provider.issuer.clone(), provider.keys_from.clone())
}

/// The canaries of a set that go by a claim.
fn canaries(set: &mut v1::RouteSet) -> impl Iterator<Item = &mut v1::ClaimCanary> {
    let all: Vec<&mut v1::Canary> = match &mut set.rules {
        Some(v1::route_set::Rules::Http(routes)) => {
            routes.rules.iter_mut().filter_map(|rule| rule.canary.as_mut()).collect()
        }
        Some(v1::route_set::Rules::Grpc(routes)) => {
            routes.rules.iter_mut().filter_map(|rule| rule.canary.as_mut()).collect()
        }
        Some(v1::route_set::Rules::Tcp(_)) | None => Vec::new(),
    };
    all.into_iter().filter_map(|canary| match &mut canary.by {
        Some(v1::canary::By::Claim(claim)) => Some(claim),
        _ => None,
    })
}

fn provider(
    wire: &v1::JwtProvider,
    known: impl Fn(&v1::JwtProvider) -> Option<Arc<[Key]>>,
) -> Result<Provider, Invalid> {
    for (field, text) in [("name", &wire.name), ("issuer", &wire.issuer)] {
        if text.is_empty() {
            return Err(Invalid::new(field, "it is empty"));
        }
    }
    if wire.keys.len() > MAX_KEYS {
        return Err(Invalid::new("keys", format!("there are more than {MAX_KEYS}")));
    }
    let keys = wire.keys.iter().enumerate();
    let keys = keys.map(|(index, wire)| key(wire).map_err(|e| e.within(&format!("keys[{index}]"))));
    let mut keys: Arc<[Key]> = keys.collect::<Result<_, Invalid>>()?;
    if wire.keys_pending {
        keys = known(wire).unwrap_or(keys);
    }
    if wire.locations.is_empty() {
        return Err(Invalid::new("locations", "there is none"));
    }
    let locations = wire.locations.iter().enumerate();
    let locations =
        locations.map(|(index, wire)| location(wire).map_err(|e| e.within(&format!("locations[{index}]"))));
    let headers = wire.headers.iter().enumerate().map(|(index, wire)| {
        let path = |field: &str| format!("headers[{index}].{field}");
        if wire.claim.is_empty() {
            return Err(Invalid::new(path("claim"), "it is empty"));
        }
        Ok((wire.claim.as_str().into(), header(&path("name"), &wire.name)?))
    });
    let headers: Box<[(Box<str>, HeaderName)]> = headers.collect::<Result<_, Invalid>>()?;
    Ok(Provider {
        lookalikes: headers.iter().flat_map(|(_, name)| lookalikes(name)).collect(),
        headers,
        name: wire.name.as_str().into(),
        issuer: wire.issuer.as_str().into(),
        audiences: wire.audiences.iter().map(|audience| audience.as_str().into()).collect(),
        keys,
        keys_from: wire.keys_from.as_str().into(),
        locations: locations.collect::<Result<_, Invalid>>()?,
        stripped: wire.stripped,
        skew: match wire.clock_skew {
            Some(skew) => duration("clock_skew", skew)?,
            None => Duration::ZERO,
        },
    })
}

fn key(wire: &v1::JwtKey) -> Result<Key, Invalid> {
    use v1::jwt_key::Key as Wire;
    let material = match &wire.key {
        Some(Wire::Rsa(rsa)) => Material::Rsa { modulus: &rsa.modulus, exponent: &rsa.exponent },
        Some(Wire::Ec(point)) => Material::Ec(point),
        Some(Wire::Ed25519(bytes)) => Material::Ed25519(bytes),
        Some(Wire::Secret(secret)) => Material::Secret(secret),
        None => return Err(unknown_kind("key")),
    };
    Key::new(&wire.id, wire.algorithms.iter().map(String::as_str), material)
        .map_err(|e| Invalid::new("key", e.to_string()))
}

fn location(wire: &v1::JwtLocation) -> Result<Location, Invalid> {
    use v1::jwt_location::Location as Wire;
    match &wire.location {
        Some(Wire::Header(wire)) => Ok(Location::Header {
            name: header("header.name", &wire.name)?,
            prefix: wire.prefix.as_str().into(),
        }),
        Some(Wire::Query(name)) if !name.is_empty() => Ok(Location::Query(name.as_str().into())),
        Some(Wire::Query(_)) => Err(Invalid::new("query", "it is empty")),
        Some(Wire::Cookie(name)) if is_valid_name(name.as_bytes()) => {
            Ok(Location::Cookie(name.as_str().into()))
        }
        Some(Wire::Cookie(name)) => Err(Invalid::new("cookie", format!("{name:?} is no cookie's name"))),
        None => Err(unknown_kind("location")),
    }
}

/// The name of a header that is not the proxy's own.
fn header(path: &str, name: &str) -> Result<HeaderName, Invalid> {
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) if Known::of(name.as_str().as_bytes()).is_none() => Ok(name),
        Ok(_) => Err(Invalid::new(path, format!("{name} belongs to the proxy"))),
        Err(_) => Err(Invalid::new(path, format!("{name:?} is no header's name"))),
    }
}

#[cfg(test)]
mod tests;
