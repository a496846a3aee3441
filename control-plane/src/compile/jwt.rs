//! JwtPolicies, written for the workloads that enforce them, and for the clients
//! whose canaries go by a claim.
//!
//! What cannot be compiled fails closed: a policy that was refused and has no
//! version that was good before lets nothing pass, and a provider whose keys
//! nobody has accepts nothing. A secret that an issuer shares with us goes to
//! the workloads of the policy alone, never to clients: who has it can issue tokens.

mod keys;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use heddle_api::crd::{
    ClaimHeader, JwtPolicy, JwtPolicySpec, JwtProvider, ParentRef, TargetRef, TokenLocation,
};
use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;

use self::keys::Keys;
pub(crate) use self::keys::{KnownSecrets, Sources, beyond_cluster};
use super::marks;
use super::policies::Policies;
use super::requests::{self, Attached};
use super::traffic::{RuleRef, duration};
use crate::keys::WantedKeys;
use crate::model::Registration;
use crate::source::{ObjectName, Sourced};

/// What a policy makes of requests, without which requests it is about.
struct Compiled {
    own: Arc<v1::JwtPolicy>,
    /// Its providers as clients may know them.
    public: Vec<v1::JwtProvider>,
    missing: Vec<String>,
}

/// The policies, in force or refused.
pub(super) struct Jwt<'a> {
    attached: Attached<'a, JwtPolicySpec>,
    compiled: BTreeMap<&'a ObjectName, Compiled>,
    selecting: Vec<&'a Sourced<JwtPolicy>>,
    wanted: WantedKeys,
    known: KnownSecrets,
}

impl<'a> Jwt<'a> {
    /// `all`: the versions in force, and beside them `refused` ones that stand for policies without
    /// any version that was ever good.
    pub(super) fn new(
        all: &'a Policies<JwtPolicySpec>,
        refused: &BTreeSet<ObjectName>,
        sources: Sources<'_>,
    ) -> Self {
        let mut keys = Keys::new(sources);
        let compiled = all.iter().map(|(name, policy)| {
            let compiled = match refused.contains(name) {
                true => {
                    let source = name.to_string();
                    let own = v1::JwtPolicy { source, required: true, ..v1::JwtPolicy::default() };
                    Compiled { own: Arc::new(own), public: Vec::new(), missing: Vec::new() }
                }
                false => compile(policy, &mut keys),
            };
            (name, compiled)
        });
        let compiled = compiled.collect();
        let (wanted, known) = keys.into_wanted();
        Self {
            attached: Attached::new(all, |spec| &spec.target_refs),
            compiled,
            selecting: all
                .values()
                .map(|policy| &**policy)
                .filter(|p| p.value.spec.selector.is_some())
                .collect(),
            wanted,
            known,
        }
    }

    /// The key sets that have to be read, and the secrets that were good.
    pub(super) fn into_wanted(self) -> (WantedKeys, KnownSecrets) {
        (self.wanted, self.known)
    }

    /// Where the keys are that a policy needs and nobody has.
    pub(super) fn missing(&self, policy: &ObjectName) -> Vec<String> {
        self.compiled.get(policy).map(|compiled| compiled.missing.clone()).unwrap_or_default()
    }

    /// Whether the requests of a rule have to be told apart at its backends.
    pub(super) fn asks(&self, rule: RuleRef<'_>) -> bool {
        !self.attached.rule(rule).is_empty()
    }

    /// Whether a claim has a meaning at a target of a policy in this namespace: some token is verified there.
    pub(super) fn is_about(&self, target: &TargetRef, namespace: &str) -> bool {
        let same = |policy: &&Sourced<JwtPolicy>| policy.name.namespace == namespace;
        self.selecting.iter().any(same) || self.attached.overlaps(target, namespace)
    }

    /// Whether a client can verify tokens for a rule of a route that attaches to these parents.
    pub(super) fn is_for_clients(&self, route: &TargetRef, namespace: &str, parents: &[ParentRef]) -> bool {
        let service = |parent: &ParentRef| {
            let target = TargetRef {
                group: String::new(),
                kind: "Service".into(),
                name: parent.name.clone(),
                section_name: None,
            };
            let namespace = parent.namespace.as_deref().unwrap_or(namespace);
            parent.is_service() && self.attached.overlaps(&target, namespace)
        };
        self.attached.overlaps(route, namespace) || parents.iter().any(service)
    }

    /// The providers that a client asks for the claim of a canary at this rule of a port of a service.
    pub(super) fn of_clients(
        &self,
        service: &ServiceName,
        port: &str,
        rule: RuleRef<'_>,
    ) -> Vec<v1::JwtProvider> {
        let mut policies = self.attached.rule(rule);
        policies.extend(self.attached.port(service, port));
        policies.extend(self.attached.service(service));
        let mut seen = BTreeSet::new();
        policies.retain(|policy| seen.insert(&policy.name));
        let compiled = policies.iter().filter_map(|policy| self.compiled.get(&policy.name));
        compiled.flat_map(|compiled| compiled.public.iter().cloned()).collect()
    }

    /// What each workload has to enforce, given the services and the rules in force.
    pub(super) fn workloads(
        &self,
        services: &BTreeMap<ServiceName, v1::Service>,
        sets: &BTreeMap<ServiceName, Vec<v1::RouteSet>>,
    ) -> Guarded {
        let mut guarded = Guarded::default();
        if self.compiled.is_empty() {
            return guarded;
        }
        for (name, service) in services {
            for policy in self.attached.service(name) {
                self.add(&mut guarded, policy, service, None, "");
            }
            for port in &service.ports {
                for policy in self.attached.port(name, &port.name) {
                    self.add(&mut guarded, policy, service, Some(port.port), "");
                }
            }
        }
        for (mark, rule, backend) in marks::each(sets) {
            let Some(service) = services.get(&backend.service) else { continue };
            for policy in self.attached.rule(rule.borrow()) {
                self.add(&mut guarded, policy, service, Some(backend.port), mark);
            }
        }
        for policy in &self.selecting {
            let labels = policy.value.spec.selector.iter().flat_map(|selector| &selector.match_labels);
            let selecting = Selecting {
                namespace: policy.name.namespace.clone(),
                labels: labels.map(|(key, value)| (key.clone(), value.clone())).collect(),
                policy: self.compiled[&policy.name].own.clone(),
            };
            guarded.selecting.push(Arc::new(selecting));
        }
        guarded
    }

    /// Adds a policy for the workloads behind a port of a service, or behind all of them, and
    /// requests with this mark, or all if it is empty.
    fn add(
        &self,
        guarded: &mut Guarded,
        policy: &Sourced<JwtPolicy>,
        service: &v1::Service,
        port: Option<u32>,
        mark: &str,
    ) {
        for (workload, ports) in requests::behind(service, port) {
            let policies = Arc::make_mut(guarded.attached.entry(workload).or_default());
            let entry = policies.entry(policy.name.clone());
            let (_, scopes) = entry.or_insert_with(|| (self.compiled[&policy.name].own.clone(), Vec::new()));
            for port in ports {
                let scope = v1::JwtScope { port, mark: mark.into() };
                if !scopes.contains(&scope) {
                    scopes.push(scope);
                }
            }
        }
    }
}

/// What each workload enforces.
#[derive(Debug, Default, Clone)]
pub(crate) struct Guarded {
    attached: BTreeMap<requests::Workload, Arc<BTreeMap<ObjectName, Scoped>>>,
    selecting: Vec<Arc<Selecting>>,
}

/// A policy and the requests that it is about.
type Scoped = (Arc<v1::JwtPolicy>, Vec<v1::JwtScope>);

/// A policy for workloads by their labels.
#[derive(Debug)]
struct Selecting {
    namespace: String,
    labels: BTreeMap<String, String>,
    policy: Arc<v1::JwtPolicy>,
}

impl Guarded {
    /// What the workload of a registration enforces.
    pub(crate) fn of(&self, registration: &Registration) -> Vec<v1::JwtPolicy> {
        let attached = self.attached.get(&requests::workload(registration));
        let attached = attached.into_iter().flat_map(|policies| policies.values());
        let attached = attached.map(|(policy, scopes)| with_scopes(policy, scopes.clone()));
        let every = || vec![v1::JwtScope::default()];
        attached.chain(self.selected(registration).map(|policy| with_scopes(policy, every()))).collect()
    }

    /// Those that mean a workload by its labels.
    fn selected(&self, registration: &Registration) -> impl Iterator<Item = &v1::JwtPolicy> {
        let selected = self.selecting.iter().filter(|selecting| {
            let carries = |(key, value): (&String, &String)| registration.labels.get(key) == Some(value);
            selecting.namespace == registration.service.namespace() && selecting.labels.iter().all(carries)
        });
        selected.map(|selecting| &*selecting.policy)
    }

    /// What the workloads behind a port of a service enforce there, each policy once, its scopes written
    /// for that port. This is for people: of a secret nothing is told but that there is one.
    pub(crate) fn behind(
        &self,
        service: &v1::Service,
        port: u32,
        workloads: impl Iterator<Item = Registration>,
    ) -> Vec<v1::JwtPolicy> {
        let labelled: BTreeMap<_, Registration> = match self.selecting.is_empty() {
            true => BTreeMap::new(),
            false => workloads.map(|workload| (requests::workload(&workload), workload)).collect(),
        };
        let mut found: BTreeMap<&str, v1::JwtPolicy> = BTreeMap::new();
        for (workload, targets) in requests::behind(service, Some(port)) {
            let targets: Vec<u32> = targets.collect();
            if targets.is_empty() {
                continue;
            }
            let attached = self.attached.get(&workload).into_iter().flat_map(|policies| policies.values());
            let attached = attached.flat_map(|(policy, scopes)| {
                let here = scopes.iter().filter(|scope| targets.contains(&scope.port));
                here.map(|scope| (&**policy, scope.mark.as_str()))
            });
            let selected = labelled.get(&workload).into_iter().flat_map(|workload| self.selected(workload));
            for (policy, mark) in attached.chain(selected.map(|policy| (policy, ""))) {
                let told = found.entry(&policy.source).or_insert_with(|| without_secrets(policy));
                let scope = v1::JwtScope { port, mark: mark.into() };
                if !told.scopes.contains(&scope) {
                    told.scopes.push(scope);
                }
            }
        }
        found.into_values().collect()
    }
}

fn without_secrets(policy: &v1::JwtPolicy) -> v1::JwtPolicy {
    let mut told = with_scopes(policy, Vec::new());
    for key in told.providers.iter_mut().flat_map(|provider| &mut provider.keys) {
        key.key = key.key.take().filter(|key| !matches!(key, v1::jwt_key::Key::Secret(_)));
    }
    told
}

fn with_scopes(policy: &v1::JwtPolicy, scopes: Vec<v1::JwtScope>) -> v1::JwtPolicy {
    v1::JwtPolicy { scopes, ..policy.clone() }
}

fn compile(policy: &Sourced<JwtPolicy>, keys: &mut Keys<'_>) -> Compiled {
    let spec = &policy.value.spec;
    let mut missing = Vec::new();
    let mut own = v1::JwtPolicy {
        source: policy.name.to_string(),
        required: spec.is_required(),
        ..v1::JwtPolicy::default()
    };
    for provider in &spec.providers {
        let keys = keys.of(policy, provider);
        missing.extend(keys.missing);
        own.providers.push(v1::JwtProvider {
            keys: keys.keys,
            keys_pending: keys.pending,
            keys_from: keys.from,
            ..wire(provider)
        });
    }
    let shared = |key: &v1::JwtKey| matches!(key.key, Some(v1::jwt_key::Key::Secret(_)));
    let public = own.providers.iter().filter(|provider| !provider.keys.iter().any(shared));
    Compiled { public: public.cloned().collect(), own: Arc::new(own), missing }
}

/// A provider without its keys.
fn wire(provider: &JwtProvider) -> v1::JwtProvider {
    let header = |ClaimHeader { claim, header }: &ClaimHeader| v1::ClaimHeader {
        claim: claim.clone(),
        name: header.to_string(),
    };
    v1::JwtProvider {
        name: provider.name.clone(),
        issuer: provider.issuer.clone(),
        audiences: provider.audiences.clone(),
        locations: provider.locations().iter().map(location).collect(),
        stripped: !provider.is_forwarded(),
        headers: provider.claims_to_headers.iter().map(header).collect(),
        clock_skew: Some(duration(provider.clock_skew())),
        ..v1::JwtProvider::default()
    }
}

fn location(location: &TokenLocation) -> v1::JwtLocation {
    use v1::jwt_location::Location;
    let TokenLocation { header, query, cookie } = location;
    let header = header.as_ref().map(|header| {
        Location::Header(v1::JwtHeader { name: header.name.to_string(), prefix: header.prefix().into() })
    });
    // Exactly one is given, or the object would have been refused.
    let location = header.or(query.clone().map(Location::Query)).or(cookie.clone().map(Location::Cookie));
    v1::JwtLocation { location }
}

#[cfg(test)]
mod tests;
