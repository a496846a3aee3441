//! Which resources carry a policy to the sidecars that enforce it, so that it
//! can be said how many have taken it over.

use std::collections::{BTreeMap, BTreeSet};

use heddle_api::crd::{Kind, Object, ParentRef, RouteSpec, TargetRef};
use heddle_api::name::ServiceName;

use super::policies::{Judged, Policies, Versions};
use super::traffic::Target;
use crate::model::Model;
use crate::source::{ObjectName, Sourced};

/// Where a policy travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// With each of these services, to their clients.
    Services(BTreeSet<ServiceName>),
    /// With every service of a namespace, or of all.
    ServicesOf(Option<String>),
    /// In the workloads' own resources, to those whose resource names it.
    Limits,
    /// The same, for policies about tokens.
    Tokens,
    /// In the workloads' own resources, of a namespace or of all.
    WorkloadsOf(Option<String>),
    /// With the settings of the whole mesh, to all.
    Mesh,
}

/// The carriers of each policy in force, by its kind and name.
pub(crate) fn carriers(model: &Model) -> BTreeMap<(&'static str, ObjectName), Vec<Carrier>> {
    let accepted = &model.accepted;
    let parents = Parents::new(model);
    let mut found = BTreeMap::new();
    by_targets(&accepted.traffic, |spec| &spec.target_refs, &parents, &mut found);
    by_targets(&accepted.faults, |spec| &spec.target_refs, &parents, &mut found);
    let mut add = |kind, name: &ObjectName, carrier| found.insert((kind, name.clone()), vec![carrier]);
    for name in accepted.rate_limits.keys() {
        add("RateLimitPolicy", name, Carrier::Limits);
    }
    for name in accepted.jwt.keys() {
        add("JwtPolicy", name, Carrier::Tokens);
    }
    for (name, policy) in &accepted.telemetry {
        let mesh = policy.value.spec.target_refs.iter().any(|target| target.kind != "Namespace");
        add("TelemetryPolicy", name, Carrier::WorkloadsOf((!mesh).then(|| name.namespace.clone())));
    }
    for name in accepted.external.keys() {
        let service = ServiceName::new(&name.namespace, &name.name).ok();
        add("ExternalService", name, Carrier::Services(service.into_iter().collect()));
    }
    for name in accepted.mesh.keys() {
        add("MeshConfig", name, Carrier::Mesh);
    }
    found
}

fn by_targets<S: Kind>(
    policies: &Policies<S>,
    targets: impl Fn(&S) -> &[TargetRef],
    parents: &Parents,
    found: &mut BTreeMap<(&'static str, ObjectName), Vec<Carrier>>,
) {
    for (name, policy) in policies {
        let carriers = targets(&policy.value.spec).iter().filter_map(|target| {
            Some(match Target::of(target, &name.namespace)? {
                Target::Mesh => Carrier::ServicesOf(None),
                Target::Namespace(namespace) => Carrier::ServicesOf(Some(namespace)),
                Target::Service(service) | Target::Port(service, _) => {
                    Carrier::Services(BTreeSet::from([service]))
                }
                Target::Route(kind, route) | Target::Rule(kind, route, _) => {
                    Carrier::Services(parents.of(&kind, &route))
                }
            })
        });
        found.insert((<Object<S> as Judged>::KIND, name.clone()), carriers.collect());
    }
}

/// The services that routes are attached to.
struct Parents(BTreeMap<(&'static str, ObjectName), BTreeSet<ServiceName>>);

impl Parents {
    fn new(model: &Model) -> Self {
        let mut parents = Self(BTreeMap::new());
        parents.add(&model.accepted.http_routes, |route| route.spec.parent_refs());
        parents.add(&model.accepted.grpc_routes, |route| route.spec.parent_refs());
        parents
    }

    fn add<T: Judged>(&mut self, routes: &Versions<T>, refs: impl Fn(&T) -> &[ParentRef]) {
        for (name, route) in routes {
            self.0.insert((T::KIND, name.clone()), services(route, refs(&route.value)));
        }
    }

    fn of(&self, kind: &str, route: &ObjectName) -> BTreeSet<ServiceName> {
        let kind = ["HTTPRoute", "GRPCRoute"].into_iter().find(|known| *known == kind);
        kind.and_then(|kind| self.0.get(&(kind, route.clone()))).cloned().unwrap_or_default()
    }
}

fn services<T>(route: &Sourced<T>, parents: &[ParentRef]) -> BTreeSet<ServiceName> {
    let service = |parent: &ParentRef| {
        let namespace = parent.namespace.as_deref().unwrap_or(&route.name.namespace);
        ServiceName::new(namespace, &parent.name).ok()
    };
    parents.iter().filter(|parent| parent.is_service()).filter_map(service).collect()
}
