//! Routes, bound to the ports of Services (Gateway API for meshes, GEP-1294).
//!
//! A route in its Service's namespace is a producer route, for every client; one
//! of another namespace is a consumer route, for the clients of its own. Each
//! port has one set of rules per audience, all of one kind of route. What a
//! rule means is compiled once per route ([`rules`]); what it is worth against
//! others is decided in the sidecar, from the order that is kept here.

mod binding;
mod filters;
mod matches;
mod references;
mod room;
mod rules;
mod status;
pub(crate) mod told;

use std::collections::BTreeMap;

use heddle_api::crd::{
    Filter, GrpcRouteSpec, HttpRouteSpec, ParentRef, Route, RouteSpec, TcpRouteSpec, Violation,
};
use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;

use super::faults::Faults;
use super::jwt::Jwt;
use super::marks;
use super::policies::{Accepted, Versions, oldest_first};
use super::rate_limits::RateLimits;
use super::services::Services;
use super::traffic::{Attachments, RuleRef};
use crate::model::{Condition, PolicyStatus};
use crate::source::{ObjectName, Objects, Sourced};

use binding::{Audiences, Binder};
pub(super) use filters::unsupported as unsupported_filters;
use references::{Problem, References};
pub(crate) use room::Measured;
use rules::Rules;

/// What routes make of the services.
pub(super) struct Bound {
    /// The sets of each service, ordered by port and client namespace.
    pub(super) sets: BTreeMap<ServiceName, Vec<v1::RouteSet>>,
    outcomes: BTreeMap<RouteKey, Outcome>,
    pub(super) measured: Measured,
}

/// Policies that attach to routes and their rules.
pub(super) struct Policies<'a> {
    pub(super) traffic: &'a Attachments,
    pub(super) faults: &'a Faults<'a>,
    pub(super) rate_limits: &'a RateLimits<'a>,
    pub(super) jwt: &'a Jwt<'a>,
}

impl Policies<'_> {
    /// The mark of a rule at this place of its route; empty if no policy asks for it.
    fn mark(&self, rule: RuleRef<'_>, place: usize, backends: &[v1::Backend]) -> String {
        let asked = self.rate_limits.asks(rule, backends) || self.jwt.asks(rule);
        if asked { marks::mark(rule, place) } else { String::new() }
    }

    /// A canary, with the providers that verify the claim that it goes by, if it does.
    fn canary(
        &self,
        canary: Option<&v1::Canary>,
        service: &ServiceName,
        port: &str,
        rule: RuleRef<'_>,
    ) -> Option<v1::Canary> {
        let mut canary = canary?.clone();
        if let Some(v1::canary::By::Claim(claim)) = &mut canary.by {
            claim.providers = self.jwt.of_clients(service, port, rule);
        }
        Some(canary)
    }
}

/// A route by its kind and name.
type RouteKey = (&'static str, ObjectName);

/// What became of a route that is in force.
struct Outcome {
    /// For each of its parents that is a Service, whether it is accepted there.
    parents: Vec<(ParentRef, Condition)>,
    resolved: Condition,
    /// That of the version in force.
    generation: i64,
}

/// What a kind of route says, as far as a mesh reads it. The first kind wins a port that several claim.
pub(super) trait MeshSpec: RouteSpec {
    /// Its rank among the kinds (GEP-1294).
    const PRECEDENCE: u8;
    /// The kind as sidecars are told.
    const PROTOCOL: Protocol;

    /// Its rules without what belongs to a port.
    fn rules(&self, name: &ObjectName, references: &mut References<'_>, policies: &Attachments) -> Rules;

    /// The filters of each rule, with their paths.
    fn filters(&self) -> Vec<(String, &[Filter])>;
}

/// What a route speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    Grpc,
    Tcp,
}

impl Protocol {
    /// Whether a port with that declaration can carry it.
    fn fits(self, port: &v1::ServicePort) -> bool {
        let opaque = matches!(port.protocol(), v1::AppProtocol::Tcp | v1::AppProtocol::Tls);
        self == Self::Tcp || !opaque
    }
}

/// A route that is in force.
struct Member<'a> {
    kind: &'static str,
    name: &'a ObjectName,
    /// Nothing, which is older than anything, where that is not known.
    created: Option<&'a str>,
    generation: i64,
    protocol: Protocol,
    precedence: u8,
    parents: Vec<&'a ParentRef>,
    rule_names: Vec<Option<&'a str>>,
    rules: Rules,
    problems: Vec<Problem>,
}

/// A route, and one of its parents that are Services, by their places.
type Claim = (usize, usize);

/// What came of a claim, over all ports that it means.
#[derive(Default)]
struct Verdict {
    won: bool,
    /// Who has it instead, at some of the ports or at all of them.
    lost: Vec<String>,
    /// Where sidecars have no room for it.
    no_room: Vec<String>,
}

/// Binds the routes in force to `services`. `measured`: what was measured the last time.
pub(super) fn bind(
    accepted: &Accepted,
    services: &Services,
    policies: &Policies<'_>,
    measured: &Measured,
) -> Bound {
    let mut routes = Vec::new();
    collect(&accepted.grpc_routes, services, policies.traffic, &mut routes);
    collect(&accepted.http_routes, services, policies.traffic, &mut routes);
    collect(&accepted.tcp_routes, services, policies.traffic, &mut routes);
    let (mut wanted, mut refused) = (BTreeMap::<_, Audiences<'_>>::new(), BTreeMap::new());
    for (claim, route, parent) in each_parent(&routes) {
        match ports(route, parent, services) {
            Ok((service, ports)) => {
                let consumer = route.name.namespace != service.namespace();
                let client = if consumer { route.name.namespace.as_str() } else { "" };
                let audiences = wanted.entry(service).or_default();
                for port in ports {
                    audiences.entry((port.port, client)).or_default().push(claim);
                }
            }
            Err(condition) => {
                refused.insert(claim, condition);
            }
        }
    }
    let mut binder = Binder::new(&routes, services, policies, measured);
    let mut sets = BTreeMap::new();
    for (service, audiences) in wanted {
        let bound = binder.bind(&service, audiences);
        sets.insert(service, bound);
    }
    let (mut verdicts, measured) = binder.into_verdicts();
    let mut outcome = |(index, route): (usize, &Member<'_>)| {
        let parents = route.parents.iter().enumerate().map(|(place, parent)| {
            let claim = (index, place);
            let condition = match refused.get(&claim) {
                Some(condition) => condition.clone(),
                None => status::at_ports(&verdicts.remove(&claim).unwrap_or_default()),
            };
            ((*parent).clone(), condition)
        });
        let parents = parents.collect();
        let resolved = status::resolved(&route.problems);
        ((route.kind, route.name.clone()), Outcome { parents, resolved, generation: route.generation })
    };
    let outcomes = routes.iter().enumerate().map(&mut outcome).collect();
    Bound { sets, outcomes, measured }
}

/// Each Service that a route attaches to.
fn each_parent<'r, 'a>(
    routes: &'r [Member<'a>],
) -> impl Iterator<Item = (Claim, &'r Member<'a>, &'a ParentRef)> {
    routes.iter().enumerate().flat_map(|(index, route)| {
        route.parents.iter().enumerate().map(move |(place, parent)| ((index, place), route, *parent))
    })
}

fn collect<'a, S: MeshSpec>(
    versions: &'a Versions<Route<S>>,
    services: &Services,
    policies: &Attachments,
    routes: &mut Vec<Member<'a>>,
) {
    for route in oldest_first(versions) {
        let Route { metadata, spec } = &route.value;
        let mut references = References::new(&route.name.namespace, S::PROTOCOL, services);
        let rules = spec.rules(&route.name, &mut references, policies);
        routes.push(Member {
            kind: S::KIND,
            name: &route.name,
            created: metadata.creation_timestamp.as_deref(),
            generation: metadata.generation,
            protocol: S::PROTOCOL,
            precedence: S::PRECEDENCE,
            parents: service_parents(spec),
            rule_names: spec.rule_names().collect(),
            rules,
            problems: references.into_problems(),
        });
    }
}

fn service_parents(spec: &impl RouteSpec) -> Vec<&ParentRef> {
    spec.parent_refs().iter().filter(|parent| parent.is_service()).collect()
}

/// The ports that `parent` means.
fn ports<'s>(
    route: &Member<'_>,
    parent: &ParentRef,
    services: &'s Services,
) -> Result<(ServiceName, Vec<&'s v1::ServicePort>), Condition> {
    let namespace = parent.namespace.as_ref().unwrap_or(&route.name.namespace);
    let refuse = |reason, message| Err(status::accepted(false, reason, message));
    let found = ServiceName::new(namespace, &parent.name).ok();
    let found = found.and_then(|name| Some((services.declared_as("Service", &name)?, name)));
    let Some((service, name)) = found else {
        let message = format!("there is no Service {namespace}/{}, or it is an ExternalName", parent.name);
        return refuse("NoMatchingParent", message);
    };
    if services.headless.contains(&name) {
        let message = format!("Service {name} is headless: clients speak to its endpoints, not to it");
        return refuse("UnsupportedValue", message);
    }
    let meant = |port: &&v1::ServicePort| {
        parent.port.is_none_or(|number| port.port == u32::from(number.get()))
            && parent.section_name.as_ref().is_none_or(|name| port.name == *name)
    };
    let meant: Vec<_> = service.ports.iter().filter(meant).collect();
    if meant.is_empty() {
        return refuse("NoMatchingParent", format!("Service {name} has no such port"));
    }
    let fitting: Vec<_> = meant.into_iter().filter(|port| route.protocol.fits(port)).collect();
    if fitting.is_empty() {
        let message = format!("the ports of Service {name} are declared as TCP or TLS");
        return refuse("NoMatchingParent", message);
    }
    Ok((name, fitting))
}

/// What the route asks for and this version would not do.
pub(super) fn unsupported<S: MeshSpec>(route: &Route<S>) -> Vec<Violation> {
    route.spec.filters().into_iter().flat_map(|(path, filters)| unsupported_filters(&path, filters)).collect()
}

/// The parents that do not exist or are none of the mesh's.
pub(super) fn unresolved<S: RouteSpec>(route: &Sourced<Route<S>>, services: &Services) -> Vec<String> {
    let missing = route.value.spec.parent_refs().iter().filter_map(|parent| {
        let namespace = parent.namespace.as_ref().unwrap_or(&route.name.namespace);
        let name = ServiceName::new(namespace, &parent.name);
        let exists =
            parent.is_service() && name.is_ok_and(|name| services.declared_as("Service", &name).is_some());
        (!exists).then(|| format!("{} {namespace}/{}", parent.kind, parent.name))
    });
    missing.collect()
}

/// Writes into `statuses` what became of the routes at their parents.
pub(super) fn report(objects: &Objects, services: &Services, bound: &Bound, statuses: &mut [PolicyStatus]) {
    fn one<S: MeshSpec>(
        routes: &Versions<Route<S>>,
        services: &Services,
        bound: &Bound,
        status: &mut PolicyStatus,
    ) {
        if let Some(route) = routes.get(&status.object) {
            status::report(route, services, bound, status);
        }
    }
    for status in statuses {
        match status.kind {
            HttpRouteSpec::KIND => one(&objects.http_routes, services, bound, status),
            GrpcRouteSpec::KIND => one(&objects.grpc_routes, services, bound, status),
            TcpRouteSpec::KIND => one(&objects.tcp_routes, services, bound, status),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
