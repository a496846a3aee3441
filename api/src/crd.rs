//! The objects that people write: Heddle's custom resources, one source for
//! the Rust types, their YAML and their CRD manifests, and the few Kubernetes
//! objects that are read beside them.
//!
//! A value that parsed is possible: ranges and forms live in the types, what
//! relates two fields is in `validate`. Unknown fields are refused in Heddle's
//! own kinds and ignored in Kubernetes' kinds, which grow without us. Whether
//! a version of Heddle enforces a field is not known here.

mod duration;
mod external_service;
mod fault_policy;
mod gateway;
mod jwt_policy;
mod kubernetes;
mod manifest;
mod mesh_config;
mod number;
mod rate_limit_policy;
#[cfg(test)]
mod reference;
mod request_match;
mod rule;
mod secret;
mod size;
mod telemetry_policy;
mod traffic_policy;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use gateway::{header_value, is_token};
use jwt_policy::is_claim;
use rate_limit_policy::is_label;
use rule::Rule;
use telemetry_policy::is_url;

pub use duration::{GatewayDuration, InvalidDuration};
pub use external_service::{
    DnsName, ExternalEndpoint, ExternalPort, ExternalProtocol, ExternalServiceSpec, InvalidDnsName,
    RegistryService, TlsOrigination,
};
pub use fault_policy::{FaultAbort, FaultDelay, FaultPolicySpec};
pub use gateway::{
    BackendObject, BackendRef, Cors, Filter, Fraction, GATEWAY_GROUP, GrantFrom, GrantTo, GrpcMatch,
    GrpcRoute, GrpcRouteSpec, GrpcRule, Header, HeaderMatch, HeaderModifier, HeaderName, HttpMatch,
    HttpRoute, HttpRouteSpec, HttpRule, InvalidHeaderName, LocalObject, MethodMatch, Mirror, ParentRef,
    PathMatch, PathModifier, QueryMatch, Redirect, ReferenceGrant, ReferenceGrantSpec, Route, RouteSpec,
    RuleRetry, RuleTimeouts, SessionCarrier, SessionPersistence, TcpRoute, TcpRouteSpec, TcpRule, TextMatch,
    UrlRewrite, is_core_group,
};
pub use jwt_policy::{ClaimHeader, Jwks, JwtPolicySpec, JwtProvider, TokenHeader, TokenLocation};
pub use kubernetes::{
    AddressType, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, EndpointTarget, ForZone,
    INIT_CONTAINER, IntOrString, MESHED_LABEL, Pod, PodIp, PodSpec, PodStatus, SIDECAR_CONTAINER,
    SKIP_INBOUND_PORTS_VARIABLE, Service, ServicePort, ServiceSpec, SliceEndpoint, WEIGHT_LABEL, ZONE_LABEL,
    weight,
};
pub use manifest::{field_paths_of_traffic_policy, manifests, render};
pub use mesh_config::{EgressMode, MESH_NAME, MeshConfigSpec};
pub use number::{
    EndpointWeight, LabelBound, Multiplier, Percent, PortNumber, Positive, Priority, Ratio, Weight,
};
pub use rate_limit_policy::{RateLimit, RateLimitKey, RateLimitPolicySpec};
pub use request_match::{HeaderEquals, RequestMatch};
pub use secret::Secret;
pub use size::{ByteSize, InvalidSize};
pub use telemetry_policy::{
    ALERT_REASONS, AccessLog, Alert, AlertCondition, ErrorRate, HeaderLabel, Latency, MAX_ALERTS,
    MESH_POLICY_NAMESPACE, MetricLabel, MetricLabels, RESERVED_LABELS, RequestDirection, RequestRate,
    SecretKeyRef, Selector, StandardLabel, TelemetryPolicySpec, Webhook,
};
pub use traffic_policy::{
    Algorithm, Backoff, BackoffStrategy, Canary, CanaryBy, CircuitBreaker, Concurrency, ConcurrencyMode,
    ConsistentHash, Cookie, FailureRate, Fallback, FallbackReason, FallbackResponse, FallbackStep, Growth,
    GrpcHealthCheck, HalfOpen, HeaderCondition, HealthCheck, Hedge, HttpHealthCheck, InvalidRetryOn, Limits,
    LoadBalancer, Locality, Method, OpenState, Retry, RetryBudget, RetryOn, RetryReason, Scope, ServiceRef,
    SlowCall, SlowStart, StaleCache, TcpHealthCheck, Timeouts, TrafficPolicySpec,
};

/// The API group of Heddle's kinds.
pub const GROUP: &str = "heddle.dev";

/// The version that is served and stored.
pub const VERSION: &str = "v1alpha1";

/// A `TrafficPolicy` object.
pub type TrafficPolicy = Object<TrafficPolicySpec>;

/// A `FaultPolicy` object.
pub type FaultPolicy = Object<FaultPolicySpec>;

/// A `RateLimitPolicy` object.
pub type RateLimitPolicy = Object<RateLimitPolicySpec>;

/// A `JwtPolicy` object.
pub type JwtPolicy = Object<JwtPolicySpec>;

/// A `TelemetryPolicy` object.
pub type TelemetryPolicy = Object<TelemetryPolicySpec>;

/// An `ExternalService` object.
pub type ExternalService = Object<ExternalServiceSpec>;

/// A `MeshConfig` object.
pub type MeshConfig = Object<MeshConfigSpec>;

/// The `spec` of one of Heddle's kinds.
pub trait Kind: JsonSchema + for<'de> Deserialize<'de> {
    /// The kind's name, such as `TrafficPolicy`.
    const KIND: &'static str;
    /// The name of its collection in URLs.
    const PLURAL: &'static str;
    /// Whether its objects live in namespaces or belong to the whole cluster.
    const NAMESPACED: bool;
    /// What `kubectl` takes in place of the name.
    const SHORT_NAMES: &'static [&'static str];
    /// What a policy's attachment means (GEP-713); `None`: it is no policy.
    const ATTACHMENT: Option<Attachment>;
    /// What `kubectl get` shows of `spec`: the titles of columns, and where their values are.
    const COLUMNS: &'static [(&'static str, &'static str)];

    /// What names of its objects have to be beyond those of any object, as a schema.
    fn name_schema() -> Option<schemars::Schema> {
        None
    }

    /// What no single field's type can say, in the object of that namespace and name.
    fn validate(&self, metadata: &Metadata) -> Vec<Violation>;
}

/// What a policy's attachment to an object means (GEP-713).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attachment {
    /// It is about that object alone.
    Direct,
    /// It is merged with those of the objects above.
    Inherited,
}

/// The columns of policies that attach by `targetRefs`.
const TARGET_COLUMNS: &[(&str, &str)] =
    &[("Target Kind", ".spec.targetRefs[0].kind"), ("Target", ".spec.targetRefs[0].name")];

/// A value that is impossible together with others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The field, such as `spec.retry.backoff.max`.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

impl Violation {
    pub(crate) fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

/// An object of one of Heddle's kinds.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Object<S> {
    /// Group and version.
    pub api_version: String,
    /// The kind.
    pub kind: String,
    /// Name, labels and age.
    pub metadata: Metadata,
    /// What it says.
    pub spec: S,
    /// Written by the control plane; manifests exported from a cluster carry it.
    #[serde(default)]
    status: Option<serde::de::IgnoredAny>,
}

/// What every object is known by (meta/v1 `ObjectMeta`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Its name.
    pub name: String,
    /// Its namespace; absent means `default`.
    pub namespace: Option<String>,
    /// What selectors match.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// RFC 3339 in UTC with seconds, so that text order is time order. Absent in files.
    pub creation_timestamp: Option<String>,
    /// Counts the changes of `spec`; 0 in files.
    #[serde(default)]
    pub generation: i64,
    /// Tells it from others of the same name, earlier or later. Absent in files, and where nothing
    /// reads it.
    pub uid: Option<String>,
}

impl Metadata {
    /// The namespace that it is in.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }
}

/// What a policy attaches to, in the policy's own namespace (Gateway API,
/// `LocalPolicyTargetReferenceWithSectionName`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new(
        "self.group != 'heddle.dev' || self.kind != 'MeshConfig' || self.name == 'mesh'",
        "the mesh's one MeshConfig is named mesh",
    )
    .at("name"),
    Rule::new(
        "!has(self.sectionName) || !(self.group == '' && self.kind == 'Namespace') \
            && !(self.group == 'heddle.dev' && self.kind == 'MeshConfig')",
        "a namespace and the mesh have no sections",
    )
    .at("sectionName"),
]))]
pub struct TargetRef {
    /// The API group; empty for Kubernetes' core.
    #[schemars(length(max = 253))]
    pub group: String,
    /// The kind, such as `Service`.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// The object's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// A part of it: a port of a Service, a rule of a route.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
}

impl TargetRef {
    /// Whether it is a route, or a rule of one.
    pub fn is_route(&self) -> bool {
        self.group == GATEWAY_GROUP && matches!(self.kind.as_str(), "HTTPRoute" | "GRPCRoute")
    }

    /// What is wrong with the targets of a policy of that namespace and name.
    fn validate_all(targets: &[Self], metadata: &Metadata, violations: &mut Vec<Violation>) {
        if targets.is_empty() || targets.len() > 16 {
            violations.push(Violation::new("spec.targetRefs", "has to name between 1 and 16 targets"));
        }
        for (index, target) in targets.iter().enumerate() {
            let path = format!("spec.targetRefs[{index}]");
            if targets[..index].contains(target) {
                violations.push(Violation::new(&path, "is named twice"));
            }
            violations.extend(target.misplaced(&path, metadata));
        }
    }

    /// What is wrong with a target at `path` that is a namespace or the mesh, in
    /// a policy of that namespace and name.
    fn misplaced(&self, path: &str, metadata: &Metadata) -> Option<Violation> {
        let namespace = metadata.namespace();
        let violation =
            |field: &str, message: String| Some(Violation::new(format!("{path}{field}"), message));
        match (self.group.as_str(), self.kind.as_str()) {
            ("", "Namespace") if self.name != namespace => violation(
                ".name",
                format!("{:?} is not the policy's own namespace, {namespace:?}", self.name),
            ),
            (GROUP, "MeshConfig") if self.name != MESH_NAME => violation(
                ".name",
                format!("{:?}: the mesh's one MeshConfig is named {MESH_NAME:?}", self.name),
            ),
            (GROUP, "MeshConfig") if namespace != MESH_POLICY_NAMESPACE => violation(
                "",
                format!("only a policy in namespace {MESH_POLICY_NAMESPACE} may target the whole mesh"),
            ),
            ("", "Namespace") | (GROUP, "MeshConfig") if self.section_name.is_some() => {
                violation(".sectionName", "a namespace and the mesh have no sections".into())
            }
            _ => None,
        }
    }
}
