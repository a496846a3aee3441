//! What TrafficPolicies attach to, and which of them wins for each field.
//!
//! The most specific attachment wins field by field: rule, route, port,
//! service, namespace, mesh; on a tie the oldest object. The policies stay as
//! they are, so that [`Attachments::origins`] can say of each value whose it is.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use heddle_api::crd::{Canary, HeaderCondition, TargetRef, TrafficPolicy, TrafficPolicySpec, Violation};
use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;
use serde_json::Value;

use super::Merged;
use crate::compile::policies::{Policies, oldest_first};
use crate::source::{ObjectName, Sourced};

/// Policies in force by what they attach to, the oldest first.
#[derive(Debug, Default, Clone)]
pub(crate) struct Attachments(BTreeMap<Target, Vec<Arc<Sourced<TrafficPolicy>>>>);

/// What a policy attaches to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::compile) enum Target {
    Mesh,
    Namespace(String),
    Service(ServiceName),
    /// A port by its name.
    Port(ServiceName, String),
    /// A route by its kind and name.
    Route(String, ObjectName),
    Rule(String, ObjectName, String),
}

/// How specific an attachment is; the more specific comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// One rule of a route.
    Rule,
    /// A route.
    Route,
    /// One port of a Service.
    Port,
    /// A Service.
    Service,
    /// A namespace.
    Namespace,
    /// The mesh.
    Mesh,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rule => "rule",
            Self::Route => "route",
            Self::Port => "port",
            Self::Service => "service",
            Self::Namespace => "namespace",
            Self::Mesh => "mesh",
        })
    }
}

/// A rule of a route.
#[derive(Debug, Clone, Copy)]
pub struct RuleRef<'a> {
    /// `HTTPRoute` or `GRPCRoute`.
    pub kind: &'a str,
    /// The route.
    pub route: &'a ObjectName,
    /// The rule's name, if it has one.
    pub rule: Option<&'a str>,
}

/// A port of a service.
#[derive(Debug, Clone, Copy)]
pub struct PortRef<'a> {
    /// The service.
    pub service: &'a ServiceName,
    /// The port's name, empty if it has none.
    pub port: &'a str,
}

/// A field of a merged policy and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldOrigin {
    /// The field, such as `retry.attempts`.
    pub path: String,
    /// Its value, as manifests write it.
    pub value: Value,
    /// The TrafficPolicy that says so.
    pub object: ObjectName,
    /// What it is attached to.
    pub level: Level,
}

impl Attachments {
    pub(in crate::compile) fn new(policies: &Policies<TrafficPolicySpec>) -> Self {
        let mut attached: BTreeMap<Target, Vec<_>> = BTreeMap::new();
        for policy in oldest_first(policies) {
            for target in &policy.value.spec.target_refs {
                if let Some(target) = Target::of(target, &policy.name.namespace) {
                    attached.entry(target).or_default().push(policy.clone());
                }
            }
        }
        Self(attached)
    }

    /// What applies to a service as a whole.
    pub(crate) fn service(&self, service: &ServiceName) -> Option<v1::TrafficPolicy> {
        compiled(self.chain(Some((service, None)), None))
    }

    /// What applies to a port, if policies attach to it itself.
    pub(in crate::compile) fn port(&self, service: &ServiceName, port: &str) -> Option<v1::TrafficPolicy> {
        self.0.get(&Target::Port(service.clone(), port.into()))?;
        compiled(self.chain(Some((service, Some(port))), None))
    }

    /// What applies to a rule at a port, if policies attach to it or its route.
    pub(in crate::compile) fn rule(
        &self,
        service: &ServiceName,
        port: &str,
        rule: RuleRef<'_>,
    ) -> Option<v1::TrafficPolicy> {
        if self.chain(None, Some(rule)).is_empty() {
            return None;
        }
        compiled(self.chain(Some((service, Some(port))), Some(rule)))
    }

    /// How users are told apart at a rule.
    pub(in crate::compile) fn canary(&self, rule: RuleRef<'_>) -> Option<&Canary> {
        self.chain(None, Some(rule)).into_iter().find_map(|(_, policy)| policy.value.spec.canary.as_ref())
    }

    /// The conditions that narrow a rule.
    pub(in crate::compile) fn when(&self, rule: RuleRef<'_>) -> &[HeaderCondition] {
        let chain = self.chain(None, Some(rule));
        chain.into_iter().find_map(|(_, policy)| policy.value.spec.when.as_deref()).unwrap_or_default()
    }

    /// Where each field comes from that applies there.
    pub(crate) fn origins(
        &self,
        service: &ServiceName,
        port: Option<&str>,
        rule: Option<RuleRef<'_>>,
    ) -> Vec<FieldOrigin> {
        let mut origins = BTreeMap::new();
        add_origins(&mut origins, self.chain(Some((service, port)), rule), |_| true);
        origins.into_values().collect()
    }

    /// Where each field comes from that a request meets which dialled `front`
    /// and goes to `backend`. Where policies attach to its rule or the route,
    /// they and those of `front` say all but what concerns endpoints.
    pub(crate) fn origins_of_request(
        &self,
        front: PortRef<'_>,
        rule: Option<RuleRef<'_>>,
        backend: PortRef<'_>,
    ) -> Vec<FieldOrigin> {
        let at = |PortRef { service, port }| Some((service, Some(port)));
        let backend = self.chain(at(backend), None);
        let mut origins = BTreeMap::new();
        if rule.is_some_and(|_| !self.chain(None, rule).is_empty()) {
            add_origins(&mut origins, self.chain(at(front), rule), |of_endpoints| !of_endpoints);
            add_origins(&mut origins, backend, |of_endpoints| of_endpoints);
        } else {
            add_origins(&mut origins, backend, |_| true);
        }
        origins.into_values().collect()
    }

    /// The policies from the one that wins to the one that loses.
    fn chain(
        &self,
        service: Option<(&ServiceName, Option<&str>)>,
        rule: Option<RuleRef<'_>>,
    ) -> Vec<(Level, &Sourced<TrafficPolicy>)> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let mut targets = Vec::with_capacity(6);
        if let Some(RuleRef { kind, route, rule }) = rule {
            if let Some(rule) = rule {
                targets.push((Level::Rule, Target::Rule(kind.into(), route.clone(), rule.into())));
            }
            targets.push((Level::Route, Target::Route(kind.into(), route.clone())));
        }
        if let Some((service, port)) = service {
            if let Some(port) = port {
                targets.push((Level::Port, Target::Port(service.clone(), port.into())));
            }
            targets.push((Level::Service, Target::Service(service.clone())));
            targets.push((Level::Namespace, Target::Namespace(service.namespace().into())));
            targets.push((Level::Mesh, Target::Mesh));
        }
        let attached = targets.into_iter().flat_map(|(level, target)| {
            let policies = self.0.get(&target).map(Vec::as_slice).unwrap_or_default();
            policies.iter().map(move |policy| (level, &**policy))
        });
        attached.collect()
    }
}

/// Adds the fields that nobody before said; `wanted` is told of each whether it concerns endpoints.
fn add_origins(
    origins: &mut BTreeMap<String, FieldOrigin>,
    chain: Vec<(Level, &Sourced<TrafficPolicy>)>,
    wanted: impl Fn(bool) -> bool,
) {
    for (level, policy) in chain {
        let spec = &policy.value.spec;
        let of_endpoints = said_of_endpoints(spec);
        let is_of_endpoints = |path: &str| {
            let mut outer = of_endpoints.iter().filter_map(|outer| path.strip_prefix(outer));
            outer.any(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        for (path, value) in fields(spec).into_iter().filter(|(path, _)| wanted(is_of_endpoints(path))) {
            let object = policy.name.clone();
            origins.entry(path.clone()).or_insert_with(|| FieldOrigin { path, value, object, level });
        }
    }
}

fn compiled(chain: Vec<(Level, &Sourced<TrafficPolicy>)>) -> Option<v1::TrafficPolicy> {
    let policies: Vec<_> = chain.into_iter().map(|(_, policy)| policy).collect();
    (!policies.is_empty()).then(|| Merged(policies).compiled())
}

impl Target {
    /// The target of a policy in `namespace`; `None` if nothing can have that name.
    pub(in crate::compile) fn of(target: &TargetRef, namespace: &str) -> Option<Self> {
        let section = target.section_name.clone().filter(|section| !section.is_empty());
        if target.is_route() {
            let route = ObjectName { namespace: namespace.into(), name: target.name.clone() };
            return Some(match section {
                Some(rule) => Self::Rule(target.kind.clone(), route, rule),
                None => Self::Route(target.kind.clone(), route),
            });
        }
        match target.kind.as_str() {
            "Service" | "ExternalService" => {
                let service = ServiceName::new(namespace, &target.name).ok()?;
                Some(match section {
                    Some(port) => Self::Port(service, port),
                    None => Self::Service(service),
                })
            }
            "Namespace" => Some(Self::Namespace(namespace.into())),
            // Nothing else is accepted.
            _ => Some(Self::Mesh),
        }
    }
}

/// The fields that `spec` gives, at the depth at which policies are merged: a
/// field of a section, and of `retry.budget` each of its own.
fn fields(spec: &TrafficPolicySpec) -> Vec<(String, Value)> {
    let Ok(Value::Object(sections)) = serde_json::to_value(spec) else { return Vec::new() };
    let mut fields = Vec::new();
    for (section, value) in sections.into_iter().filter(|(section, _)| section != "targetRefs") {
        let Value::Object(entries) = value else {
            fields.push((section, value));
            continue;
        };
        for (name, value) in entries {
            match value {
                Value::Object(parts) if (section.as_str(), name.as_str()) == ("retry", "budget") => {
                    let parts = parts.into_iter();
                    fields.extend(parts.map(|(part, value)| (format!("retry.budget.{part}"), value)));
                }
                value => fields.push((format!("{section}.{name}"), value)),
            }
        }
    }
    fields
}

/// What a policy on a route cannot say: connections, endpoints and budgets are
/// shared by all routes that lead to a Service, so it is said of the Service.
pub(super) fn not_on_routes(spec: &TrafficPolicySpec) -> Vec<Violation> {
    if !spec.target_refs.iter().any(TargetRef::is_route) {
        return Vec::new();
    }
    let message = "concerns the endpoints of a Service; a policy on a route cannot say it";
    let said = said_of_endpoints(spec).into_iter();
    said.map(|field| Violation { path: format!("spec.{field}"), message: message.into() }).collect()
}

/// The sections and fields given that concern connections, endpoints and budgets.
fn said_of_endpoints(spec: &TrafficPolicySpec) -> Vec<&'static str> {
    let connect = spec.timeouts.as_ref().is_some_and(|timeouts| timeouts.connect.is_some());
    let idle = spec.timeouts.as_ref().is_some_and(|timeouts| timeouts.idle.is_some());
    let budget = spec.retry.as_ref().is_some_and(|retry| retry.budget.is_some());
    let given = [
        (spec.load_balancer.is_some(), "loadBalancer"),
        (spec.circuit_breaker.is_some(), "circuitBreaker"),
        (spec.limits.is_some(), "limits"),
        (spec.concurrency.is_some(), "concurrency"),
        (spec.health_check.is_some(), "healthCheck"),
        (connect, "timeouts.connect"),
        (idle, "timeouts.idle"),
        (budget, "retry.budget"),
    ];
    given.into_iter().filter(|(given, _)| *given).map(|(_, field)| field).collect()
}

#[cfg(test)]
mod tests;
