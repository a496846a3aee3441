//! Routes, bound to the ports of Services (Gateway API for meshes, GEP-1294).
//!
//! A route in its Service's namespace is a producer route, for every client; one
//! of another namespace is a consumer route, for the clients of its own. Each
//! port has one set of rules per audience, all of one kind of route. What a
//! rule means is compiled once per route ([`rules`]); what it is worth against
//! others is decided in the sidecar, from the order that is kept here.

mod filters;
mod references;
mod rules;
mod status;

use std::collections::BTreeMap;

use heddle_api::crd::{ParentRef, TcpRoute, Violation};
use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;

use super::faults::Faults;
use super::jwt::Jwt;
use super::marks;
use super::policies::{Accepted, Judged, Versions, oldest_first};
use super::rate_limits::RateLimits;
use super::services::Services;
use super::traffic::{Attachments, RuleRef};
use crate::model::{Condition, PolicyStatus};
use crate::source::{ObjectName, Objects, Sourced};

pub(super) use filters::unsupported as unsupported_filters;
use references::{Problem, References};

/// What routes make of the services.
pub(super) struct Bound {
    /// The sets of each service, ordered by port and client namespace.
    pub(super) sets: BTreeMap<ServiceName, Vec<v1::RouteSet>>,
    outcomes: BTreeMap<RouteKey, Outcome>,
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
}

/// A kind of route that can be in a mesh. The first wins a port that several claim.
pub(super) trait RouteKind: Judged + Sized {
    /// Its rank among the kinds.
    const PRECEDENCE: u8;
    /// The kind as sidecars are told.
    const PROTOCOL: Protocol;

    fn parents(&self) -> &[ParentRef];

    fn rule_names(&self) -> Vec<Option<&str>>;

    /// Its rules without what belongs to a port.
    fn rules(&self, name: &ObjectName, references: &mut References<'_>, policies: &Attachments) -> Rules;

    /// The filters of each rule, with their paths.
    fn filters(&self) -> Vec<(String, &[heddle_api::crd::Filter])>;
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

/// The rules of one route, in its order.
#[derive(Debug, Clone)]
pub(super) enum Rules {
    Http(Vec<v1::HttpRule>),
    Grpc(Vec<v1::GrpcRule>),
    Tcp(v1::TcpRule),
}

/// A route that is in force.
struct Route<'a> {
    kind: &'static str,
    name: &'a ObjectName,
    protocol: Protocol,
    precedence: u8,
    parents: Vec<&'a ParentRef>,
    rule_names: Vec<Option<&'a str>>,
    rules: Rules,
    problems: Vec<Problem>,
}

/// Binds the routes in force to `services`.
pub(super) fn bind(accepted: &Accepted, services: &Services, policies: &Policies<'_>) -> Bound {
    let mut routes = Vec::new();
    collect(&accepted.grpc_routes, services, policies.traffic, &mut routes);
    collect(&accepted.http_routes, services, policies.traffic, &mut routes);
    collect(&accepted.tcp_routes, services, policies.traffic, &mut routes);
    let (mut audiences, mut refused) = (BTreeMap::new(), BTreeMap::new());
    for (route, parent, index) in each_parent(&routes) {
        match ports(&routes[route], parent, services) {
            Ok((service, ports)) => {
                let consumer = routes[route].name.namespace != service.namespace();
                let client = if consumer { routes[route].name.namespace.as_str() } else { "" };
                for port in ports {
                    let audience = (service.clone(), port.port, client);
                    audiences.entry(audience).or_insert_with(Vec::new).push((route, index));
                }
            }
            Err(condition) => {
                refused.insert((route, index), condition);
            }
        }
    }
    let (mut sets, mut won, mut lost) = (BTreeMap::<_, Vec<_>>::new(), Vec::new(), BTreeMap::new());
    for ((service, port, client), claims) in audiences {
        let Some(winner) = claims.iter().map(|(route, _)| &routes[*route]).min_by_key(|r| r.precedence)
        else {
            continue;
        };
        let mut members: Vec<&Route<'_>> = Vec::new();
        for (route, parent) in &claims {
            let candidate = &routes[*route];
            let alone = winner.protocol == Protocol::Tcp && !members.is_empty();
            if candidate.kind != winner.kind || alone {
                let message = format!("port {port} belongs to {} {}", winner.kind, winner.name);
                lost.insert((*route, *parent), status::accepted(false, "Conflicted", message));
                continue;
            }
            members.push(candidate);
            won.push((*route, *parent));
        }
        let name = services.resources.get(&service).and_then(|s| s.ports.iter().find(|p| p.port == port));
        let name = name.map_or("", |port| port.name.as_str());
        let rules = merged(&members, &service, name, policies);
        let set = v1::RouteSet { port, client_namespace: client.into(), rules: Some(rules) };
        sets.entry(service).or_default().push(set);
    }
    // One port is enough to be accepted.
    let won: std::collections::BTreeSet<(usize, usize)> = won.into_iter().collect();
    let outcome = |route: usize, parents: &[&ParentRef]| {
        let parents = parents.iter().enumerate().map(|(index, parent)| {
            let key = (route, index);
            let condition = if won.contains(&key) {
                status::accepted(true, "Accepted", "the route is in force".into())
            } else {
                let failed = lost.get(&key).or_else(|| refused.get(&key)).cloned();
                failed.unwrap_or_else(|| status::accepted(false, "NoMatchingParent", "no port".into()))
            };
            ((*parent).clone(), condition)
        });
        parents.collect()
    };
    let outcomes = routes.iter().enumerate().map(|(index, route)| {
        let parents = outcome(index, &route.parents);
        let resolved = status::resolved(&route.problems);
        ((route.kind, route.name.clone()), Outcome { parents, resolved })
    });
    let outcomes = outcomes.collect();
    Bound { sets, outcomes }
}

/// Each Service that a route attaches to, with its place among them.
fn each_parent<'a>(routes: &'a [Route<'_>]) -> impl Iterator<Item = (usize, &'a ParentRef, usize)> {
    routes.iter().enumerate().flat_map(|(route, value)| {
        value.parents.iter().enumerate().map(move |(index, parent)| (route, *parent, index))
    })
}

fn collect<'a, T: RouteKind>(
    versions: &'a Versions<T>,
    services: &Services,
    policies: &Attachments,
    routes: &mut Vec<Route<'a>>,
) {
    for route in oldest_first(versions) {
        let mut references = References::new(&route.name.namespace, T::PROTOCOL, services);
        let rules = route.value.rules(&route.name, &mut references, policies);
        routes.push(Route {
            kind: T::KIND,
            name: &route.name,
            protocol: T::PROTOCOL,
            precedence: T::PRECEDENCE,
            parents: service_parents(&route.value),
            rule_names: route.value.rule_names(),
            rules,
            problems: references.into_problems(),
        });
    }
}

fn service_parents<T: RouteKind>(route: &T) -> Vec<&ParentRef> {
    route.parents().iter().filter(|parent| parent.is_service()).collect()
}

/// The ports that `parent` means.
fn ports<'s>(
    route: &Route<'_>,
    parent: &ParentRef,
    services: &'s Services,
) -> Result<(ServiceName, Vec<&'s v1::ServicePort>), Condition> {
    let namespace = parent.namespace.as_ref().unwrap_or(&route.name.namespace);
    let refuse = |reason, message| Err(status::accepted(false, reason, message));
    let found = ServiceName::new(namespace, &parent.name).ok();
    let found = found.and_then(|name| Some((services.resources.get(&name)?, name)));
    let Some((service, name)) = found else {
        return refuse("NoMatchingParent", format!("Service {namespace}/{} does not exist", parent.name));
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

/// The rules of routes of one kind, each with its policies at that port.
fn merged(
    routes: &[&Route<'_>],
    service: &ServiceName,
    port: &str,
    policies: &Policies<'_>,
) -> v1::route_set::Rules {
    let (mut http, mut grpc, mut tcp) = (Vec::new(), Vec::new(), None);
    for route in routes {
        let place = |index: usize| {
            let rule = route.rule_names.get(index).copied().flatten();
            RuleRef { kind: route.kind, route: route.name, rule }
        };
        match &route.rules {
            Rules::Http(rules) => http.extend(rules.iter().enumerate().map(|(index, rule)| v1::HttpRule {
                policy: policies.traffic.rule(service, port, place(index)),
                faults: policies.faults.rule(place(index)),
                mark: policies.mark(place(index), index, &rule.backends),
                canary: policies.canary(rule.canary.as_ref(), service, port, place(index)),
                ..rule.clone()
            })),
            Rules::Grpc(rules) => grpc.extend(rules.iter().enumerate().map(|(index, rule)| v1::GrpcRule {
                policy: policies.traffic.rule(service, port, place(index)),
                faults: policies.faults.rule(place(index)),
                mark: policies.mark(place(index), index, &rule.backends),
                canary: policies.canary(rule.canary.as_ref(), service, port, place(index)),
                ..rule.clone()
            })),
            Rules::Tcp(rule) => tcp = Some(rule.clone()),
        }
    }
    match routes.first().map(|route| route.protocol) {
        Some(Protocol::Tcp) => v1::route_set::Rules::Tcp(v1::TcpRoutes { rule: tcp }),
        Some(Protocol::Grpc) => v1::route_set::Rules::Grpc(v1::GrpcRoutes { rules: grpc }),
        _ => v1::route_set::Rules::Http(v1::HttpRoutes { rules: http }),
    }
}

/// What the route asks for and this version would not do.
pub(super) fn unsupported<T: RouteKind>(route: &T) -> Vec<Violation> {
    route.filters().into_iter().flat_map(|(path, filters)| unsupported_filters(&path, filters)).collect()
}

/// The parents that do not exist or are none of the mesh's.
pub(super) fn unresolved<T: RouteKind>(route: &Sourced<T>, services: &Services) -> Vec<String> {
    let missing = route.value.parents().iter().filter_map(|parent| {
        let namespace = parent.namespace.as_ref().unwrap_or(&route.name.namespace);
        let name = ServiceName::new(namespace, &parent.name);
        let exists = parent.is_service() && name.is_ok_and(|name| services.resources.contains_key(&name));
        (!exists).then(|| format!("{} {namespace}/{}", parent.kind, parent.name))
    });
    missing.collect()
}

/// Writes into `statuses` what became of the routes at their parents.
pub(super) fn report(objects: &Objects, services: &Services, bound: &Bound, statuses: &mut [PolicyStatus]) {
    for status in statuses {
        let kind = status.kind;
        if let Some(route) = objects.http_routes.get(&status.object).filter(|_| kind == "HTTPRoute") {
            status::report(&**route, services, bound, status);
        } else if let Some(route) = objects.grpc_routes.get(&status.object).filter(|_| kind == "GRPCRoute") {
            status::report(&**route, services, bound, status);
        } else if let Some(route) = objects.tcp_routes.get(&status.object).filter(|_| kind == TcpRoute::KIND)
        {
            status::report(&**route, services, bound, status);
        }
    }
}

#[cfg(test)]
mod tests;
