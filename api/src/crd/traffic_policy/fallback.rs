//! What is answered in place of an error.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Violations;
use crate::crd::gateway::{HEADER_VALUE, HeaderName, header_value};
use crate::crd::rule::Rule;
use crate::crd::{ByteSize, GatewayDuration, TargetRef};
use crate::name::ServiceName;

/// What is answered in place of an error of the mesh, before any byte of a response went to the
/// client: the first step that can. The answer names the step in the header `heddle-fallback`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fallback {
    /// The errors that are replaced.
    #[serde(alias = "true")]
    #[schemars(length(min = 1, max = 8))]
    pub on: Vec<FallbackReason>,
    /// What is tried, in order. What stands behind a `response` would never be.
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-validations" = [
        Rule::new(
            "self.filter(step, has(step.response)).size() == 0 || \
                (self.filter(step, has(step.response)).size() == 1 && has(self[self.size() - 1].response))",
            "steps behind a response, which always answers, are never reached",
        ),
        Rule::new("self.filter(step, has(step.staleCache)).size() < 2", "staleCache is there twice"),
    ]))]
    pub steps: Vec<FallbackStep>,
}

/// An error that a fallback replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FallbackReason {
    /// The circuit breaker is open.
    CircuitOpen,
    /// No endpoint may be used, or the last one that was tried did not take the request:
    /// it could not be connected to, is not ready or is leaving.
    NoHealthyEndpoint,
    /// The request, or its last try, took too long.
    Timeout,
}

/// One thing to try: exactly one field.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::exactly_one(&["staleCache", "service", "response"])]))]
pub struct FallbackStep {
    /// The last good response to the same GET.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_cache: Option<StaleCache>,
    /// Another service of the policy's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceRef>,
    /// A fixed response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<FallbackResponse>,
}

/// Good responses that are kept for bad times, as HTTP's rules for shared caches allow it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::positive("maxAge"),
]))]
pub struct StaleCache {
    /// Older ones are not used.
    pub max_age: GatewayDuration,
    /// What all responses of a service may take in one sidecar; one alone at most a quarter.
    /// Between 4Ki and 1Gi.
    pub max_bytes: ByteSize,
}

/// A service of the policy's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceRef {
    /// Its name.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: String,
}

/// A fixed response. A gRPC call gets only headers: with the status of the header
/// `grpc-status`, or else with the one that `status` stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::new(
    "!(self.status in [204, 205, 304]) || !has(self.body) || self.body.size() == 0",
    "a response with this status has none",
)
.at("body")]))]
pub struct FallbackResponse {
    /// Its status.
    #[schemars(schema_with = "status_schema")]
    pub status: u16,
    /// Its headers. The mesh sets `content-length` itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = MAX_HEADERS, "additionalProperties" = {
        "type": "string", "minLength": 1, "maxLength": 4096, "pattern": HEADER_VALUE,
    }))]
    pub headers: BTreeMap<String, String>,
    /// Its body.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = MAX_BODY))]
    pub body: String,
}

/// As many as other lists of headers in the Gateway API.
const MAX_HEADERS: usize = 16;

/// A policy is configuration, not a file server.
const MAX_BODY: usize = 64 << 10;

/// More reasons or steps than this say nothing more.
const MAX_ENTRIES: usize = 8;

/// A quarter of it, what one response may take, is a head and no body.
const MIN_CACHE: u64 = 4 << 10;

/// A sidecar is no store.
const MAX_CACHE: u64 = 1 << 30;

fn status_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "integer", "minimum": 200, "maximum": 599 })
}

impl Fallback {
    pub(super) fn validate(&self, targets: &[TargetRef], violations: &mut Violations) {
        for (path, count) in [("spec.fallback.on", self.on.len()), ("spec.fallback.steps", self.steps.len())]
        {
            if !(1..=MAX_ENTRIES).contains(&count) {
                violations.add(path, format!("has {count} entries; between 1 and {MAX_ENTRIES} are needed"));
            }
        }
        let mut last = None;
        let mut caches = false;
        for (index, step) in self.steps.iter().enumerate() {
            let path = format!("spec.fallback.steps[{index}]");
            let given = [step.stale_cache.is_some(), step.service.is_some(), step.response.is_some()];
            violations.exactly_one(&path, &given, "staleCache, service and response");
            if let Some(last) = last {
                let message = format!("is never reached: steps[{last}] is a response, which always answers");
                violations.add(&path, message);
            }
            if let Some(cache) = &step.stale_cache {
                cache.validate(&format!("{path}.staleCache"), violations);
                if std::mem::replace(&mut caches, true) {
                    violations.add(format!("{path}.staleCache"), "is there twice");
                }
            }
            if let Some(service) = &step.service {
                service.validate(&format!("{path}.service"), targets, violations);
            }
            if let Some(response) = &step.response {
                response.validate(&format!("{path}.response"), violations);
                last = last.or(Some(index));
            }
        }
    }
}

impl StaleCache {
    fn validate(&self, path: &str, violations: &mut Violations) {
        violations.positive(&format!("{path}.maxAge"), Some(self.max_age));
        if !(MIN_CACHE..=MAX_CACHE).contains(&self.max_bytes.get()) {
            let message = format!("{} is not between 4Ki and 1Gi", self.max_bytes);
            violations.add(format!("{path}.maxBytes"), message);
        }
    }
}

impl ServiceRef {
    fn validate(&self, path: &str, targets: &[TargetRef], violations: &mut Violations) {
        let name = ServiceName::new("default", &self.name);
        if !name.is_ok_and(|name| name.name() == self.name) {
            violations.add(format!("{path}.name"), format!("{:?} is no name of a Service", self.name));
        }
        let is_target = |target: &TargetRef| target.kind == "Service" && target.name == self.name;
        if targets.iter().any(is_target) {
            let message = format!("{} is what the fallback is for", self.name);
            violations.add(format!("{path}.name"), message);
        }
    }
}

impl FallbackResponse {
    fn validate(&self, path: &str, violations: &mut Violations) {
        if !(200..=599).contains(&self.status) {
            let message = format!("{} is not between 200 and 599", self.status);
            violations.add(format!("{path}.status"), message);
        }
        if self.headers.len() > MAX_HEADERS {
            let message = format!("has {} entries; at most {MAX_HEADERS} may be", self.headers.len());
            violations.add(format!("{path}.headers"), message);
        }
        let mut names: Vec<HeaderName> = Vec::new();
        for (name, value) in &self.headers {
            let path = format!("{path}.headers.{name}");
            header_value(&path, value, &mut violations.0);
            let Ok(name) = name.parse::<HeaderName>() else {
                violations.add(path, format!("{name:?} is no header's name"));
                continue;
            };
            if name.is_reserved() {
                violations.add(&path, "is the proxy's own: framing, hop-by-hop, identity or heddle-*");
            }
            if name.as_str() == "grpc-status" && !is_grpc_status(value) {
                violations.add(&path, format!("{value:?} is no status of gRPC, 0 to 16"));
            }
            if names.contains(&name) {
                violations.add(path, format!("{name} is there twice"));
            }
            names.push(name);
        }
        if self.body.len() > MAX_BODY {
            violations.add(format!("{path}.body"), format!("is longer than {MAX_BODY} bytes"));
        }
        if !self.body.is_empty() && matches!(self.status, 204 | 205 | 304) {
            let message = format!("a response with status {} has none", self.status);
            violations.add(format!("{path}.body"), message);
        }
    }
}

fn is_grpc_status(value: &str) -> bool {
    value.parse::<u8>().is_ok_and(|status| status <= 16 && status.to_string() == value)
}
