//! Rules of routes, as sidecars read them.

use std::borrow::Cow;

use heddle_api::crd::{
    BackendRef, Canary, CanaryBy, Filter, GatewayDuration, GrpcRouteSpec, GrpcRule, HeaderCondition,
    HttpRouteSpec, HttpRule, RouteSpec, RuleRetry, RuleTimeouts, SessionCarrier, SessionPersistence,
    TcpRouteSpec,
};
use heddle_api::discovery::v1;

use super::references::References;
use super::{MeshSpec, Protocol, filters, matches};
use crate::compile::traffic::{Attachments, RuleRef, duration};
use crate::source::ObjectName;

/// The rules of one route, in its order.
#[derive(Debug, Clone)]
pub(in crate::compile) enum Rules {
    /// About requests.
    Requests(Vec<RequestRule>),
    /// About connections.
    Tcp(v1::TcpRule),
}

/// A rule about requests: what those of HTTPRoutes and of GRPCRoutes have in
/// common, as sidecars read it, and what one of them has alone.
#[derive(Debug, Clone)]
pub(in crate::compile) struct RequestRule {
    route: String,
    name: String,
    filters: Vec<v1::HttpFilter>,
    pub(super) backends: Vec<v1::Backend>,
    session: Option<v1::SessionPersistence>,
    pub(super) canary: Option<v1::Canary>,
    own: Own,
}

/// What a rule has that depends on its kind.
#[derive(Debug, Clone)]
enum Own {
    Http { matches: Vec<v1::HttpMatch>, timeouts: Option<v1::RouteTimeouts>, retry: Option<v1::RouteRetry> },
    Grpc { matches: Vec<v1::GrpcMatch> },
}

/// What a rule gets from the policies at a port.
pub(super) struct AtPort {
    pub(super) policy: Option<v1::TrafficPolicy>,
    pub(super) faults: Vec<v1::Fault>,
    pub(super) mark: String,
    pub(super) canary: Option<v1::Canary>,
}

/// A rule as it goes to sidecars.
pub(super) enum WireRule {
    Http(v1::HttpRule),
    Grpc(v1::GrpcRule),
    Tcp(v1::TcpRule),
}

impl RequestRule {
    /// The rule as it is at a port.
    pub(super) fn at(self, port: AtPort) -> WireRule {
        let Self { route, name, filters, backends, session, canary: _, own } = self;
        let AtPort { policy, faults, mark, canary } = port;
        match own {
            Own::Http { matches, timeouts, retry } => WireRule::Http(v1::HttpRule {
                route,
                name,
                matches,
                filters,
                backends,
                timeouts,
                retry,
                session,
                canary,
                policy,
                faults,
                mark,
            }),
            Own::Grpc { matches } => WireRule::Grpc(v1::GrpcRule {
                route,
                name,
                matches,
                filters,
                backends,
                session,
                canary,
                policy,
                faults,
                mark,
            }),
        }
    }
}

/// A rule about requests, as manifests have it.
trait Requests {
    fn common(&self) -> Common<'_>;

    /// What depends on its kind; `when`: conditions of its policy on headers.
    fn own(&self, when: &[HeaderCondition]) -> Own;
}

/// What manifests say in rules of both kinds.
struct Common<'a> {
    name: Option<&'a str>,
    filters: &'a [Filter],
    backends: &'a [BackendRef],
    session: Option<&'a SessionPersistence>,
}

impl Requests for HttpRule {
    fn common(&self) -> Common<'_> {
        Common {
            name: self.name.as_deref(),
            filters: &self.filters,
            backends: &self.backend_refs,
            session: self.session_persistence.as_ref(),
        }
    }

    fn own(&self, when: &[HeaderCondition]) -> Own {
        Own::Http {
            matches: one_at_least(&self.matches).iter().map(|wanted| matches::http(wanted, when)).collect(),
            timeouts: self.timeouts.map(timeouts),
            retry: self.retry.as_ref().map(retry),
        }
    }
}

impl Requests for GrpcRule {
    fn common(&self) -> Common<'_> {
        Common {
            name: self.name.as_deref(),
            filters: &self.filters,
            backends: &self.backend_refs,
            session: self.session_persistence.as_ref(),
        }
    }

    fn own(&self, when: &[HeaderCondition]) -> Own {
        let matches = one_at_least(&self.matches);
        Own::Grpc { matches: matches.iter().map(|wanted| matches::grpc(wanted, when)).collect() }
    }
}

/// A rule without a match is for everything.
fn one_at_least<M: Clone + Default>(matches: &[M]) -> Cow<'_, [M]> {
    if matches.is_empty() { Cow::Owned(vec![M::default()]) } else { Cow::Borrowed(matches) }
}

/// The rules of a route of `kind`.
fn requests<R: Requests>(
    kind: &str,
    rules: &[R],
    route: &ObjectName,
    references: &mut References<'_>,
    policies: &Attachments,
) -> Rules {
    let rules = rules.iter().enumerate().map(|(index, rule)| {
        let common = rule.common();
        let place = RuleRef { kind, route, rule: common.name };
        RequestRule {
            route: route.to_string(),
            name: rule_name(common.name, index),
            filters: filters::compile(common.filters, references),
            backends: backends(common.backends, references),
            session: common.session.map(session),
            canary: policies.canary(place).map(canary),
            own: rule.own(policies.when(place)),
        }
    });
    Rules::Requests(rules.collect())
}

impl MeshSpec for HttpRouteSpec {
    const PRECEDENCE: u8 = 1;
    const PROTOCOL: Protocol = Protocol::Http;

    fn rules(&self, name: &ObjectName, references: &mut References<'_>, policies: &Attachments) -> Rules {
        requests(Self::KIND, &self.rules, name, references, policies)
    }

    fn filters(&self) -> Vec<(String, &[Filter])> {
        with_paths(&self.rules)
    }
}

impl MeshSpec for GrpcRouteSpec {
    const PRECEDENCE: u8 = 0;
    const PROTOCOL: Protocol = Protocol::Grpc;

    fn rules(&self, name: &ObjectName, references: &mut References<'_>, policies: &Attachments) -> Rules {
        requests(Self::KIND, &self.rules, name, references, policies)
    }

    fn filters(&self) -> Vec<(String, &[Filter])> {
        with_paths(&self.rules)
    }
}

impl MeshSpec for TcpRouteSpec {
    const PRECEDENCE: u8 = 2;
    const PROTOCOL: Protocol = Protocol::Tcp;

    fn rules(&self, name: &ObjectName, references: &mut References<'_>, _: &Attachments) -> Rules {
        // Validation lets exactly one through.
        let rule = self.rules.first();
        Rules::Tcp(v1::TcpRule {
            route: name.to_string(),
            name: rule_name(rule.and_then(|rule| rule.name.as_deref()), 0),
            backends: rule.map(|rule| backends(&rule.backend_refs, references)).unwrap_or_default(),
        })
    }

    fn filters(&self) -> Vec<(String, &[Filter])> {
        Vec::new()
    }
}

fn rule_name(name: Option<&str>, index: usize) -> String {
    name.map_or_else(|| index.to_string(), str::to_owned)
}

/// The filters of rules and of their backends.
fn with_paths<R: Requests>(rules: &[R]) -> Vec<(String, &[Filter])> {
    let mut found = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        let Common { filters, backends, .. } = rule.common();
        found.push((format!("spec.rules[{index}].filters"), filters));
        for (place, backend) in backends.iter().enumerate() {
            let path = format!("spec.rules[{index}].backendRefs[{place}].filters");
            found.push((path, backend.filters.as_slice()));
        }
    }
    found
}

fn backends(backends: &[BackendRef], references: &mut References<'_>) -> Vec<v1::Backend> {
    let backends = backends.iter().map(|backend| {
        let compiled = references.backend(&backend.object, backend.weight.get());
        v1::Backend { filters: filters::compile(&backend.filters, references), ..compiled }
    });
    backends.collect()
}

fn wire(time: Option<GatewayDuration>) -> Option<prost_types::Duration> {
    time.map(|time| duration(time.get()))
}

fn timeouts(timeouts: RuleTimeouts) -> v1::RouteTimeouts {
    let RuleTimeouts { request, backend_request } = timeouts;
    v1::RouteTimeouts { request: wire(request), backend_request: wire(backend_request) }
}

fn retry(retry: &RuleRetry) -> v1::RouteRetry {
    v1::RouteRetry {
        attempts: retry.attempts,
        codes: retry.codes.iter().map(|code| u32::from(*code)).collect(),
        backoff: wire(retry.backoff),
    }
}

fn session(session: &SessionPersistence) -> v1::SessionPersistence {
    use v1::session_persistence::Carrier;
    let carrier = match &session.carrier {
        SessionCarrier::Cookie { name, permanent } => {
            let name = name.clone().unwrap_or_default();
            Carrier::Cookie(v1::SessionCookie { name, permanent: *permanent })
        }
        SessionCarrier::Header { name } => {
            let name = name.as_deref().unwrap_or_default().to_ascii_lowercase();
            Carrier::Header(v1::SessionHeader { name })
        }
    };
    v1::SessionPersistence {
        carrier: Some(carrier),
        absolute_timeout: wire(session.absolute_timeout),
        idle_timeout: wire(session.idle_timeout),
    }
}

fn canary(canary: &Canary) -> v1::Canary {
    use v1::canary::By;
    let CanaryBy { header, cookie, claim } = &canary.by;
    let by = match (header, claim, cookie) {
        (Some(header), ..) => By::Header(header.to_string()),
        // Who verifies it depends on the port, too.
        (None, Some(claim), _) => By::Claim(v1::ClaimCanary { claim: claim.clone(), providers: Vec::new() }),
        (None, None, cookie) => By::Cookie(cookie.clone().unwrap_or_default()),
    };
    v1::Canary { by: Some(by) }
}
