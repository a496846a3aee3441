//! From objects and registrations to the model: one pure function, without
//! I/O and without a clock.
//!
//! The model depends on what the inputs hold, not on their order. A policy
//! counts as a whole or not at all; where it is refused, the version that the
//! previous model accepted stays in force. Everything else is made anew each
//! time, and what came out equal keeps its bytes.

mod aliases;
mod carriers;
mod endpoints;
mod external;
mod faults;
mod jwt;
mod marks;
mod pods;
mod policies;
mod protocol;
mod rate_limits;
mod requests;
mod routes;
mod services;
mod telemetry;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use heddle_api::crd::{EgressMode, JwtPolicySpec, Kind, RouteSpec, TargetRef, TrafficPolicy, Violation};
use heddle_api::discovery::{MESH, ResourceType, v1};
use heddle_api::name::ServiceName;
use heddle_api::spiffe::TrustDomain;

use crate::keys::FoundKeys;
use crate::model::{Model, Registration, Resource, ResourceKey, Scores};
use crate::source::{ObjectName, Objects, Sourced};

pub(crate) use carriers::{Carrier, carriers};
pub(crate) use external::Hosts;
use faults::Faults;
pub(crate) use jwt::{Guarded, KnownSecrets, beyond_cluster};
use jwt::{Jwt, Sources};
pub(crate) use pods::{Pods, Shown as ShownPod};
pub(crate) use policies::Accepted;
pub(crate) use rate_limits::Limited;
use rate_limits::RateLimits;
pub(crate) use routes::{Measured, told};
pub(crate) use services::Declared;
pub(crate) use telemetry::{AlertRules, Rule as AlertRule, Target as AlertTarget, Telemetry};
pub(crate) use traffic::Attachments;
pub use traffic::{FieldOrigin, Level, PortRef, RuleRef};

/// What a model is made from.
#[derive(Debug, Clone)]
pub struct Inputs<'a> {
    /// What the sources say.
    pub objects: &'a Objects,
    /// The workloads that are registered now; in any order.
    pub registrations: &'a [Arc<Registration>],
    /// How much of their shares pods should get.
    pub scores: &'a Scores,
    /// The key sets of token issuers that were read from files and URLs.
    pub found_keys: &'a FoundKeys,
    /// What the control plane itself was started with.
    pub mesh: &'a MeshDefaults,
}

/// Settings of the mesh that come from the control plane's own start.
#[derive(Debug, Clone)]
pub struct MeshDefaults {
    /// The trust domain of the certificate authority.
    pub trust_domain: TrustDomain,
    /// The suffix of qualified service names.
    pub cluster_domain: String,
}

/// The model of `inputs`. `previous` is the model in force: policies that are
/// refused now stay as they were accepted there, and resources that did not
/// change keep its bytes. The first compilation takes `Model::default()`.
pub fn compile(inputs: &Inputs<'_>, previous: &Model) -> Model {
    let mut services = services::compile(inputs);
    let (mut accepted, mut statuses) = (Accepted::default(), Vec::new());
    accepted.mesh = policies::judge(
        &inputs.objects.mesh_configs,
        &previous.accepted.mesh,
        &mut statuses,
        |config| {
            let trust_domain = config.spec.trust_domain.as_deref();
            let other = trust_domain.filter(|name| *name != inputs.mesh.trust_domain.as_str());
            let violation = other.map(|name| Violation {
                path: "spec.trustDomain".into(),
                message: format!(
                    "{name:?} is not that of the mesh's authority, {}",
                    inputs.mesh.trust_domain
                ),
            });
            violation.into_iter().collect()
        },
        |_| Vec::new(),
    );
    accepted.telemetry = policies::judge(
        &inputs.objects.telemetry_policies,
        &previous.accepted.telemetry,
        &mut statuses,
        |_| Vec::new(),
        |policy| telemetry::missing_keys(&policy.name, &policy.value.spec.alerts, inputs.objects),
    );
    let claims =
        external::Claims::new(&inputs.objects.external_services, &services, &inputs.mesh.cluster_domain);
    accepted.external = policies::judge(
        &inputs.objects.external_services,
        &previous.accepted.external,
        &mut statuses,
        |object| claims.refuse(object),
        |object| claims.unresolved(object),
    );
    claims.withdraw(&mut accepted.external, &mut statuses);
    let mut hosts = claims.hosts(&accepted.external);
    external::add(&accepted.external, &mut services);
    aliases::add(inputs.objects, &services, &inputs.mesh.cluster_domain, &mut hosts);
    macro_rules! judge_routes {
        ($($routes:ident),*) => {$(
            accepted.$routes = policies::judge(
                &inputs.objects.$routes,
                &previous.accepted.$routes,
                &mut statuses,
                routes::unsupported,
                |route| routes::unresolved(route, &services),
            );
        )*};
    }
    judge_routes!(grpc_routes, http_routes, tcp_routes);
    accepted.jwt = policies::judge(
        &inputs.objects.jwt_policies,
        &previous.accepted.jwt,
        &mut statuses,
        |policy| requests::only_services_and_routes(&policy.spec.target_refs),
        |policy| unresolved_targets(&policy.name, &policy.value.spec.target_refs, &services, &accepted),
    );
    // What is refused and was never good still says whom it was to protect.
    let mut tokens = accepted.jwt.clone();
    let mut refused = BTreeSet::new();
    for (name, policy) in
        inputs.objects.jwt_policies.iter().filter(|(name, _)| !accepted.jwt.contains_key(name))
    {
        tokens.insert(name.clone(), policy.clone());
        refused.insert(name.clone());
    }
    let sources = Sources {
        objects: inputs.objects,
        found: inputs.found_keys,
        known: &previous.known_secrets,
        services: &services.resources,
        cluster_domain: &inputs.mesh.cluster_domain,
    };
    let jwt = Jwt::new(&tokens, &refused, sources);
    for status in statuses.iter_mut().filter(|status| status.kind == JwtPolicySpec::KIND) {
        status.unresolved.extend(jwt.missing(&status.object));
    }
    accepted.traffic = policies::judge(
        &inputs.objects.traffic_policies,
        &previous.accepted.traffic,
        &mut statuses,
        |policy| traffic::unsupported(&policy.spec),
        |policy| {
            let targets = &policy.value.spec.target_refs;
            let mut unresolved = unresolved_targets(&policy.name, targets, &services, &accepted);
            let exists = |service: &ServiceName| services.resources.contains_key(service);
            unresolved.extend(traffic::unresolved_steps(policy, exists));
            unresolved.extend(canaries_without_tokens(policy, &accepted, &jwt));
            unresolved
        },
    );
    accepted.faults = policies::judge(
        &inputs.objects.fault_policies,
        &previous.accepted.faults,
        &mut statuses,
        |policy| requests::only_services_and_routes(&policy.spec.target_refs),
        |policy| unresolved_targets(&policy.name, &policy.value.spec.target_refs, &services, &accepted),
    );
    accepted.rate_limits = policies::judge(
        &inputs.objects.rate_limit_policies,
        &previous.accepted.rate_limits,
        &mut statuses,
        |policy| requests::only_services_and_routes(&policy.spec.target_refs),
        |policy| {
            let targets = &policy.value.spec.target_refs;
            let mut unresolved = unresolved_targets(&policy.name, targets, &services, &accepted);
            unresolved.extend(rate_limits::without_tokens(policy, &jwt));
            unresolved
        },
    );
    let attachments = Attachments::new(&accepted.traffic);
    let faults = Faults::new(&accepted.faults);
    let rate_limits = RateLimits::new(&accepted.rate_limits);
    let mut bound = routes::bind(
        &accepted,
        &services,
        &routes::Policies { traffic: &attachments, faults: &faults, rate_limits: &rate_limits, jwt: &jwt },
        &previous.measured,
    );
    let limited = rate_limits.workloads(&services.resources, &bound.sets);
    let guarded = jwt.workloads(&services.resources, &bound.sets);
    let (wanted_keys, known_secrets) = jwt.into_wanted();
    routes::report(inputs.objects, &services, &bound, &mut statuses);
    statuses.sort_by(|a, b| (a.kind, &a.object).cmp(&(b.kind, &b.object)));
    let mut resources = Resources { previous, made: BTreeMap::new() };
    for (name, mut service) in services.resources {
        service.policy = attachments.service(&name);
        for port in &mut service.ports {
            port.policy = attachments.port(&name, &port.name);
        }
        if service.endpoints.iter().any(|endpoint| !endpoint.for_zones.is_empty()) {
            services::prefer_zones(&mut service);
        }
        service.routes = bound.sets.remove(&name).unwrap_or_default();
        service.faults = faults.service(&name, &service.ports);
        resources.add(name.as_str(), &service);
    }
    for (address, service) in services.addresses {
        let message = v1::Address {
            namespace: service.namespace().into(),
            name: service.name().into(),
            workload: None,
        };
        resources.add(&address.to_string(), &message);
    }
    let egress = match accepted.mesh.values().find_map(|config| config.value.spec.egress) {
        Some(EgressMode::RegistryOnly) => v1::EgressMode::RegistryOnly,
        Some(EgressMode::AllowAny) | None => v1::EgressMode::AllowAny,
    };
    let mesh = v1::Mesh {
        trust_domain: inputs.mesh.trust_domain.as_str().into(),
        egress: egress.into(),
        cluster_domain: inputs.mesh.cluster_domain.clone(),
    };
    resources.add(MESH, &mesh);
    let telemetry = Telemetry::new(&accepted.telemetry);
    Model {
        resources: resources.made,
        statuses,
        alert_rules: telemetry.alert_rules(inputs.objects),
        telemetry,
        declared: services.declared,
        pods: services.pods,
        attachments,
        hosts,
        limited,
        guarded,
        wanted_keys,
        known_secrets,
        measured: bound.measured,
        accepted,
    }
}

/// The targets of a policy that do not exist.
fn unresolved_targets(
    policy: &ObjectName,
    targets: &[TargetRef],
    services: &services::Services,
    accepted: &Accepted,
) -> Vec<String> {
    let namespace = &policy.namespace;
    let exists = |target: &TargetRef| {
        let section = target.section_name.as_deref().filter(|section| !section.is_empty());
        let among = |mut names: Box<dyn Iterator<Item = Option<&str>> + '_>| {
            section.is_none() || names.any(|name| name == section)
        };
        let object = ObjectName { namespace: namespace.clone(), name: target.name.clone() };
        match target.kind.as_str() {
            "Service" => {
                let name = ServiceName::new(namespace, &target.name).ok();
                let service = name.and_then(|name| services.resources.get(&name));
                service.is_some_and(|s| among(Box::new(s.ports.iter().map(|port| Some(port.name.as_str())))))
            }
            "ExternalService" => {
                let service = accepted.external.get(&object);
                service.is_some_and(|s| {
                    among(Box::new(s.value.spec.ports.iter().map(|port| Some(port.name.as_str()))))
                })
            }
            "HTTPRoute" => {
                let route = accepted.http_routes.get(&object);
                route.is_some_and(|route| among(Box::new(route.value.spec.rule_names())))
            }
            "GRPCRoute" => {
                let route = accepted.grpc_routes.get(&object);
                route.is_some_and(|route| among(Box::new(route.value.spec.rule_names())))
            }
            _ => true,
        }
    };
    let missing = targets.iter().filter(|target| !exists(target));
    let describe = |target: &TargetRef| {
        let section = target.section_name.iter().map(|section| format!(" {section}")).collect::<String>();
        format!("{} {namespace}/{}{section}", target.kind, target.name)
    };
    missing.map(describe).collect()
}

/// Where a canary goes by a claim and no client can verify a token.
fn canaries_without_tokens(
    policy: &Sourced<TrafficPolicy>,
    accepted: &Accepted,
    jwt: &Jwt<'_>,
) -> Vec<String> {
    let namespace = &policy.name.namespace;
    if policy.value.spec.canary.as_ref().is_none_or(|canary| canary.by.claim.is_none()) {
        return Vec::new();
    }
    let missing = policy.value.spec.target_refs.iter().filter(|target| {
        let route = ObjectName { namespace: namespace.clone(), name: target.name.clone() };
        let parents = match target.kind.as_str() {
            "HTTPRoute" => accepted.http_routes.get(&route).map(|route| route.value.spec.parent_refs()),
            _ => accepted.grpc_routes.get(&route).map(|route| route.value.spec.parent_refs()),
        };
        !jwt.is_for_clients(target, namespace, parents.unwrap_or_default())
    });
    missing.map(|target| format!("JwtPolicy for {} {namespace}/{}", target.kind, target.name)).collect()
}

/// Encodes resources, keeping the bytes of those that did not change.
struct Resources<'a> {
    previous: &'a Model,
    made: BTreeMap<ResourceKey, Arc<Resource>>,
}

impl Resources<'_> {
    fn add<T: ResourceType>(&mut self, name: &str, message: &T) {
        let key = ResourceKey { type_url: T::TYPE_URL, name: name.into() };
        let resource = Resource::encode(message);
        let resource = match self.previous.resources.get(&key) {
            Some(same) if **same == resource => same.clone(),
            _ => Arc::new(resource),
        };
        self.made.insert(key, resource);
    }
}

/// What differs between two models.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Changes {
    /// New or with other content.
    pub changed: Vec<ResourceKey>,
    /// No longer there.
    pub removed: Vec<ResourceKey>,
}

/// The changes that lead from `old` to `new`.
pub fn diff(old: &Model, new: &Model) -> Changes {
    let unchanged = |key: &ResourceKey, resource: &Arc<Resource>| {
        old.resources.get(key).is_some_and(|before| Arc::ptr_eq(before, resource) || before == resource)
    };
    let changed = new.resources.iter().filter(|(key, resource)| !unchanged(key, resource));
    let removed = old.resources.keys().filter(|key| !new.resources.contains_key(key));
    Changes { changed: changed.map(|(key, _)| key.clone()).collect(), removed: removed.cloned().collect() }
}

#[cfg(test)]
mod tests;
