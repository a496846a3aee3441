//! Routes of the Gateway API (`gateway.networking.k8s.io`), standard and
//! experimental fields, reduced to what a mesh reads.
//!
//! Heddle does not own these kinds, but a field that it does not know could
//! change what a rule means, so unknown fields of a `spec` are refused. Limits
//! and forms are those of the CRDs, so that a file means the same in a folder
//! and in a cluster; what a version of Heddle does not do is not known here.

mod backend;
mod cors;
mod filter;
mod grpc_route;
mod http_route;
mod matching;
mod reference_grant;
mod session;
pub(super) mod text;

use serde::Deserialize;

use super::{Metadata, PortNumber, Violation};

pub use backend::{BackendObject, BackendRef};
pub use cors::Cors;
pub use filter::{
    Filter, Fraction, Header, HeaderModifier, LocalObject, Mirror, PathModifier, Redirect, UrlRewrite,
};
pub use grpc_route::{GrpcMatch, GrpcRouteSpec, GrpcRule, MethodMatch};
pub use http_route::{HttpMatch, HttpRouteSpec, HttpRule, RuleRetry, RuleTimeouts};
pub use matching::{HeaderMatch, PathMatch, QueryMatch, TextMatch};
pub use reference_grant::{GrantFrom, GrantTo, ReferenceGrant, ReferenceGrantSpec};
pub use session::{SessionCarrier, SessionPersistence};
pub(super) use text::{HEADER_VALUE, header_value, is_section_name, is_token};
pub use text::{HeaderName, InvalidHeaderName};

/// The API group of the routes.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// An `HTTPRoute` object.
pub type HttpRoute = Route<HttpRouteSpec>;

/// A `GRPCRoute` object.
pub type GrpcRoute = Route<GrpcRouteSpec>;

/// A `TCPRoute` object.
pub type TcpRoute = Route<TcpRouteSpec>;

/// A route of any kind.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Route<S> {
    /// Name, namespace and age.
    pub metadata: Metadata,
    /// What it says.
    pub spec: S,
}

/// The `spec` of a kind of route.
pub trait RouteSpec: for<'de> Deserialize<'de> {
    /// The kind's name, such as `HTTPRoute`.
    const KIND: &'static str;

    /// What it attaches to.
    fn parent_refs(&self) -> &[ParentRef];

    /// The names of its rules, in their order.
    fn rule_names(&self) -> impl Iterator<Item = Option<&str>>;

    /// The host names that it is meant for; a mesh ignores them.
    fn hostnames(&self) -> &[String];

    /// What no single field's type can say.
    fn validate(&self) -> Vec<Violation>;
}

/// What a route attaches to (`ParentReference`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParentRef {
    /// The API group; empty for a Service.
    #[serde(default = "gateway_group")]
    pub group: String,
    /// The kind.
    #[serde(default = "gateway_kind")]
    pub kind: String,
    /// Absent: that of the route.
    pub namespace: Option<String>,
    /// The object's name.
    pub name: String,
    /// The name of a port of a Service. Absent: all ports.
    pub section_name: Option<String>,
    /// A port of a Service. Absent: all ports.
    pub port: Option<PortNumber>,
}

/// Whether a reference's group is that of Services: it has no name, and examples
/// all over the Gateway API's own documentation call it `core`.
pub fn is_core_group(group: &str) -> bool {
    matches!(group, "" | "core")
}

fn gateway_group() -> String {
    GATEWAY_GROUP.into()
}

fn gateway_kind() -> String {
    "Gateway".into()
}

impl ParentRef {
    /// Whether it is a Service, which makes it a matter of the mesh (GAMMA).
    pub fn is_service(&self) -> bool {
        is_core_group(&self.group) && self.kind == "Service"
    }

    fn selects_same_object(&self, other: &Self) -> bool {
        (&self.group, &self.kind, &self.namespace, &self.name)
            == (&other.group, &other.kind, &other.namespace, &other.name)
    }
}

/// What a `TCPRoute` says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRouteSpec {
    /// What it attaches to.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// Concerns gateways only.
    pub use_default_gateways: Option<String>,
    /// Exactly one: connections have nothing to tell them apart by.
    pub rules: Vec<TcpRule>,
}

/// Where connections go.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpRule {
    /// Its name.
    pub name: Option<String>,
    /// Where to, by weight.
    pub backend_refs: Vec<BackendRef>,
}

impl RouteSpec for TcpRouteSpec {
    const KIND: &'static str = "TCPRoute";

    fn parent_refs(&self) -> &[ParentRef] {
        &self.parent_refs
    }

    fn rule_names(&self) -> impl Iterator<Item = Option<&str>> {
        self.rules.iter().map(|rule| rule.name.as_deref())
    }

    fn hostnames(&self) -> &[String] {
        &[]
    }

    fn validate(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        common(self, &mut violations);
        if self.rules.len() > 1 {
            let message = "is one too many: connections have nothing to tell them apart by";
            violations.push(Violation::new("spec.rules[1]", message));
        }
        for (path, rule) in self.rules.iter().enumerate().map(|(i, rule)| (format!("spec.rules[{i}]"), rule))
        {
            if rule.backend_refs.is_empty() {
                violations.push(Violation::new(format!("{path}.backendRefs"), "is empty"));
            }
            backend::validate(&path, &rule.backend_refs, &mut violations, |path, _, violations| {
                violations.push(Violation::new(path, "has a meaning only for requests, not for connections"));
            });
        }
        violations
    }
}

/// The most rules of one route, matches of one route, and entries of one list of a rule (CRDs).
const MAX_RULES: usize = 16;
const MAX_MATCHES: usize = 128;
const MAX_ENTRIES: usize = 16;

/// What all kinds of routes have to keep to.
fn common(spec: &impl RouteSpec, violations: &mut Vec<Violation>) {
    let parents = spec.parent_refs();
    at_most(32, "spec.parentRefs", parents.len(), violations);
    for (index, parent) in parents.iter().enumerate() {
        let path = format!("spec.parentRefs[{index}]");
        for other in parents[..index].iter().filter(|other| other.selects_same_object(parent)) {
            let parts = |parent: &ParentRef| (parent.section_name.clone(), parent.port);
            let given = |parent: &ParentRef| (parent.section_name.is_some(), parent.port.is_some());
            if parts(parent) == parts(other) || given(parent) != given(other) {
                let message = "is not distinct: of one object each has to name another sectionName or port";
                violations.push(Violation::new(&path, message));
                break;
            }
        }
        required(&format!("{path}.name"), &parent.name, violations);
    }
    let names: Vec<_> = spec.rule_names().collect();
    if names.is_empty() {
        violations.push(Violation::new("spec.rules", "is empty"));
    }
    at_most(MAX_RULES, "spec.rules", names.len(), violations);
    for (index, name) in names.iter().enumerate() {
        let Some(name) = *name else { continue };
        let path = format!("spec.rules[{index}].name");
        if !is_section_name(name) {
            violations.push(Violation::new(&path, format!("{name:?} is no name (lower-case RFC 1123)")));
        }
        if names[..index].contains(&Some(name)) {
            violations.push(Violation::new(path, format!("{name:?} is there twice")));
        }
    }
}

fn at_most(limit: usize, path: &str, count: usize, violations: &mut Vec<Violation>) {
    if count > limit {
        violations.push(Violation::new(path, format!("has {count} entries; {limit} at most are allowed")));
    }
}

fn required(path: &str, text: &str, violations: &mut Vec<Violation>) {
    if text.is_empty() {
        violations.push(Violation::new(path, "is empty"));
    }
}

#[cfg(test)]
mod tests;
