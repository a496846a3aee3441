//! `GRPCRoute`.

use serde::Deserialize;

use super::filter::{self, Filter};
use super::matching::{self, HeaderMatch, TextMatch, TextType};
use super::{BackendRef, MAX_MATCHES, ParentRef, RouteSpec, SessionPersistence, backend, text};
use crate::crd::Violation;

/// What a `GRPCRoute` says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRouteSpec {
    /// What it attaches to.
    #[serde(default)]
    pub parent_refs: Vec<ParentRef>,
    /// Concerns gateways only.
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// Concerns gateways only.
    pub use_default_gateways: Option<String>,
    /// Where calls go. Absent: one rule for all, without a backend.
    #[serde(default = "one_rule")]
    pub rules: Vec<GrpcRule>,
}

fn one_rule() -> Vec<GrpcRule> {
    vec![GrpcRule::default()]
}

/// What is done with some calls.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcRule {
    /// Its name, by which policies attach to it.
    pub name: Option<String>,
    /// Which calls; one of them has to apply. Empty: all.
    #[serde(default)]
    pub matches: Vec<GrpcMatch>,
    /// What is done to them, in this order; no redirect, rewrite or CORS.
    #[serde(default)]
    pub filters: Vec<Filter>,
    /// Where they go, by weight.
    #[serde(default)]
    pub backend_refs: Vec<BackendRef>,
    /// Binds clients to endpoints.
    pub session_persistence: Option<SessionPersistence>,
}

/// Conditions on a call, all of which have to apply (`GRPCRouteMatch`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcMatch {
    /// What is called. Absent: anything.
    pub method: Option<MethodMatch>,
    /// Its metadata.
    #[serde(default)]
    pub headers: Vec<HeaderMatch>,
}

/// What is called (`GRPCMethodMatch`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "WireMethod")]
pub struct MethodMatch {
    /// The service with its package. Absent: any.
    pub service: Option<TextMatch>,
    /// The method. Absent: any.
    pub method: Option<TextMatch>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireMethod {
    #[serde(default)]
    r#type: TextType,
    service: Option<String>,
    method: Option<String>,
}

impl From<WireMethod> for MethodMatch {
    fn from(wire: WireMethod) -> Self {
        // Empty is absent, says the specification.
        let text = |text: Option<String>| {
            text.filter(|text| !text.is_empty()).map(|text| TextMatch::new(wire.r#type, text))
        };
        Self { service: text(wire.service), method: text(wire.method) }
    }
}

impl RouteSpec for GrpcRouteSpec {
    const KIND: &'static str = "GRPCRoute";

    fn parent_refs(&self) -> &[ParentRef] {
        &self.parent_refs
    }

    fn rule_names(&self) -> impl Iterator<Item = Option<&str>> {
        self.rules.iter().map(|rule| rule.name.as_deref())
    }

    fn hostnames(&self) -> &[String] {
        &self.hostnames
    }

    fn validate(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        super::common(self, &mut violations);
        let matches = self.rules.iter().map(|rule| rule.matches.len()).sum();
        super::at_most(MAX_MATCHES, "spec.rules[*].matches", matches, &mut violations);
        for (index, rule) in self.rules.iter().enumerate() {
            rule.validate(&format!("spec.rules[{index}]"), &mut violations);
        }
        let matches = self.rules.iter().flat_map(|rule| &rule.matches);
        text::expressions(matches.flat_map(GrpcMatch::expressions), &mut violations);
        violations
    }
}

impl GrpcMatch {
    fn expressions(&self) -> impl Iterator<Item = &str> {
        let method = self.method.iter().flat_map(|method| [&method.service, &method.method]).flatten();
        let headers = self.headers.iter().map(|header| &header.value);
        method.chain(headers).filter_map(TextMatch::expression)
    }
}

impl GrpcRule {
    fn validate(&self, path: &str, violations: &mut Vec<Violation>) {
        super::at_most(64, &format!("{path}.matches"), self.matches.len(), violations);
        for (index, condition) in self.matches.iter().enumerate() {
            let path = format!("{path}.matches[{index}]");
            if let Some(method) = &condition.method {
                method.validate(&format!("{path}.method"), violations);
            }
            matching::headers(&path, &condition.headers, violations);
        }
        filter::validate_grpc(&format!("{path}.filters"), &self.filters, violations);
        backend::validate(path, &self.backend_refs, violations, filter::validate_grpc);
        if let Some(session) = &self.session_persistence {
            session.validate(&format!("{path}.sessionPersistence"), violations);
        }
    }
}

impl MethodMatch {
    fn validate(&self, path: &str, violations: &mut Vec<Violation>) {
        if self.service.is_none() && self.method.is_none() {
            violations.push(Violation::new(path, "names neither service nor method; one is needed"));
        }
        let identifier = |text: &str| {
            let mut bytes = text.bytes();
            let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
            bytes.next().is_some_and(letter) && bytes.all(|byte| letter(byte) || byte.is_ascii_digit())
        };
        let package = |text: &str| text.strip_prefix('.').unwrap_or(text).split('.').all(identifier);
        let mut judge = |field: &str, text: &Option<TextMatch>, valid: &dyn Fn(&str) -> bool| {
            let path = format!("{path}.{field}");
            match text {
                Some(TextMatch::Exact(name)) if name.len() > 1024 || !valid(name) => {
                    violations.push(Violation::new(path, format!("{name:?} is no name in gRPC")));
                }
                Some(TextMatch::Regex(expression)) => text::expression(&path, expression, 1024, violations),
                _ => {}
            }
        };
        judge("service", &self.service, &package);
        judge("method", &self.method, &identifier);
    }
}
