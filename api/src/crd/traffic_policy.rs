//! `TrafficPolicy`: how clients treat the traffic to a service. All of the
//! kind is here; which fields this version enforces is decided where policies
//! are compiled, and the others are refused there by name.

mod fallback;
mod resilience;
mod retry;
mod routing;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rule::Rule;
use super::{
    Attachment, GatewayDuration, Kind, Metadata, Percent, Positive, TARGET_COLUMNS, TargetRef, Violation,
};

pub use fallback::{Fallback, FallbackReason, FallbackResponse, FallbackStep, ServiceRef, StaleCache};
pub use resilience::{
    CircuitBreaker, Concurrency, ConcurrencyMode, FailureRate, Growth, GrpcHealthCheck, HalfOpen,
    HealthCheck, HttpHealthCheck, OpenState, Scope, SlowCall, TcpHealthCheck,
};
pub use retry::{
    Backoff, BackoffStrategy, Hedge, InvalidRetryOn, Method, Retry, RetryBudget, RetryOn, RetryReason,
};
pub use routing::{Canary, CanaryBy, HeaderCondition};

/// How clients treat the traffic to a service. The most specific attachment
/// wins field by field; on a tie the oldest object. What nobody says has the
/// default that is noted here.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new(format!("!has(self.canary) || {ON_ROUTES}"), "has a meaning only on routes").at("canary"),
    Rule::new(format!("!has(self.when) || {ON_ROUTES}"), "has a meaning only on routes").at("when"),
    Rule::new(
        "!has(self.fallback) || self.fallback.steps.all(step, !has(step.service) || \
            !self.targetRefs.exists(target, target.kind == 'Service' && target.name == step.service.name))",
        "leads to a service that the fallback is for",
    )
    .at("fallback.steps"),
]))]
pub struct TrafficPolicySpec {
    /// What it attaches to, in its own namespace: Services or one of their ports, HTTPRoutes and
    /// GRPCRoutes or one of their rules (by `sectionName`), the Namespace as a whole; from
    /// `heddle-system` also the mesh (MeshConfig `mesh`). On routes it can say what concerns
    /// requests (timeouts.request, timeouts.perTry, retry without its budget, fallback); what concerns
    /// endpoints is said of the Service that the route leads to.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-validations" = [Rule::distinct()]))]
    pub target_refs: Vec<TargetRef>,
    /// How endpoints are chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// Limits on time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// When and how a failed try is repeated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// When an endpoint or the service is left alone for a while.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    /// Bounds on what the service may take from one client workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// An adaptive bound on requests in flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// Probes of each endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// What is answered in place of an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// Only on routes: weights of backends are shares of users, not of requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// Only on routes: conditions that narrow every match of the rules, each counting as a
    /// header match where precedence is decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub when: Option<Vec<HeaderCondition>>,
}

/// A condition of rules: all targets are routes.
const ON_ROUTES: &str = "self.targetRefs.all(target, target.group == 'gateway.networking.k8s.io' && \
    target.kind in ['HTTPRoute', 'GRPCRoute'])";

/// How endpoints are chosen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new(
        "!has(self.algorithm) || self.algorithm != 'ConsistentHash' || has(self.consistentHash)",
        "is needed by algorithm ConsistentHash",
    )
    .at("consistentHash"),
    Rule::new(
        "!has(self.consistentHash) || (has(self.algorithm) && self.algorithm == 'ConsistentHash')",
        "has a meaning only with algorithm ConsistentHash",
    )
    .at("consistentHash"),
]))]
pub struct LoadBalancer {
    /// Default: `PeakEwma`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<Algorithm>,
    /// What `ConsistentHash` hashes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consistent_hash: Option<ConsistentHash>,
    /// New endpoints ramp up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<SlowStart>,
    /// Whether endpoints of the client's zone come first. Default: `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<Locality>,
    /// Below this percentage of healthy endpoints, health is ignored; 0: never. Default:
    /// ejected endpoints are used where no other is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub panic_threshold: Option<Percent>,
}

/// How one endpoint is chosen among many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// The better of two, by recent peak latency and load.
    PeakEwma,
    /// The less loaded of two.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The same for equal keys.
    ConsistentHash,
}

/// The key of `ConsistentHash`: exactly one field.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::new(
    "[has(self.header), has(self.cookie), has(self.sourceIp) && self.sourceIp, has(self.query)]\
        .filter(given, given).size() == 1",
    "exactly one of header, cookie, sourceIp and query is needed",
)]))]
pub struct ConsistentHash {
    /// A request header.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"))]
    pub header: Option<String>,
    /// A cookie, set where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie: Option<Cookie>,
    /// The client's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_ip: Option<bool>,
    /// A query parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub query: Option<String>,
}

/// A cookie that binds a client to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::positive("ttl")]))]
pub struct Cookie {
    /// Its name.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"))]
    pub name: String,
    /// How long it lives; absent: the browser's session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<GatewayDuration>,
    /// Its path; absent: as the browser derives it from the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = "^/[ -:<-~]*$"))]
    pub path: Option<String>,
}

/// How new endpoints ramp up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::positive("window")]))]
pub struct SlowStart {
    /// The time until an endpoint gets its full share.
    pub window: GatewayDuration,
}

/// Whether endpoints of the client's zone come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Locality {
    /// They do, and traffic spills over when the zone runs hot or short.
    PreferZone,
    /// Zones are ignored.
    None,
}

/// Limits on time. `0s` means no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::positive("connect"),
    Rule::new(
        "!has(self.request) || !has(self.perTry) || duration(self.request) == duration('0s') \
            || duration(self.perTry) <= duration(self.request)",
        "is longer than request",
    )
    .at("perTry"),
]))]
pub struct Timeouts {
    /// On making one connection, TLS handshake included. Default: 1s; cannot be without limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect: Option<GatewayDuration>,
    /// On the whole exchange with its retries and until the end of its body, streams included;
    /// what follows an upgrade or CONNECT is not part of it. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<GatewayDuration>,
    /// On one try. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try: Option<GatewayDuration>,
    /// On the silence of an open connection or stream. Default: 1h.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<GatewayDuration>,
}

/// Bounds on what the service may take from one client workload: from each of its
/// sidecar's workers (one, unless it was told to have more). What is above them
/// is answered 503 with `retry-after`; a TCP connection is reset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Open connections. Default: 1024.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<Positive>,
    /// Requests that wait for a connection. Default: 1024; with 0 none waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::number::unsigned")]
    pub pending_requests: Option<u32>,
    /// Requests in flight, of HTTP. Default: 1024.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Positive>,
    /// Requests that a connection serves before it is replaced; 0 (the default): no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::number::unsigned")]
    pub requests_per_connection: Option<u32>,
}

impl Kind for TrafficPolicySpec {
    const KIND: &'static str = "TrafficPolicy";
    const PLURAL: &'static str = "trafficpolicies";
    const NAMESPACED: bool = true;
    const SHORT_NAMES: &'static [&'static str] = &["tpol"];
    const ATTACHMENT: Option<Attachment> = Some(Attachment::Inherited);
    const COLUMNS: &'static [(&'static str, &'static str)] = TARGET_COLUMNS;

    fn validate(&self, metadata: &Metadata) -> Vec<Violation> {
        let mut violations = Violations::default();
        TargetRef::validate_all(&self.target_refs, metadata, &mut violations.0);
        if let Some(load_balancer) = &self.load_balancer {
            load_balancer.validate(&mut violations);
        }
        if let Some(timeouts) = &self.timeouts {
            timeouts.validate(&mut violations);
        }
        if let Some(retry) = &self.retry {
            retry.validate(&mut violations);
        }
        if let Some(breaker) = &self.circuit_breaker {
            breaker.validate(&mut violations);
        }
        if let Some(concurrency) = &self.concurrency {
            concurrency.validate(&mut violations);
        }
        if let Some(check) = &self.health_check {
            check.validate(&mut violations);
        }
        if let Some(fallback) = &self.fallback {
            fallback.validate(&self.target_refs, &mut violations);
        }
        self.validate_routing(&mut violations);
        violations.0
    }
}

impl LoadBalancer {
    fn validate(&self, violations: &mut Violations) {
        let path = "spec.loadBalancer.consistentHash";
        match (&self.consistent_hash, self.algorithm == Some(Algorithm::ConsistentHash)) {
            (None, true) => violations.add(path, "is needed by algorithm ConsistentHash"),
            (Some(_), false) => violations.add(path, "has a meaning only with algorithm ConsistentHash"),
            _ => {}
        }
        if let Some(hash) = &self.consistent_hash {
            let given = [
                hash.header.is_some(),
                hash.cookie.is_some(),
                hash.source_ip == Some(true),
                hash.query.is_some(),
            ];
            violations.exactly_one(path, &given, "header, cookie, sourceIp and query");
            hash.validate(path, violations);
        }
        if let Some(slow_start) = &self.slow_start {
            violations.positive("spec.loadBalancer.slowStart.window", Some(slow_start.window));
        }
    }
}

impl ConsistentHash {
    fn validate(&self, path: &str, violations: &mut Violations) {
        if let Some(header) = self.header.as_ref().filter(|name| !is_token(name)) {
            violations.add(format!("{path}.header"), format!("{header:?} is no name of a header"));
        }
        if self.query.as_ref().is_some_and(String::is_empty) {
            violations.add(format!("{path}.query"), "is empty");
        }
        let Some(Cookie { name, ttl, path: cookie_path }) = &self.cookie else { return };
        if !is_token(name) {
            violations.add(format!("{path}.cookie.name"), format!("{name:?} is no name of a cookie"));
        }
        violations.positive(&format!("{path}.cookie.ttl"), *ttl);
        let valid =
            |path: &str| path.starts_with('/') && path.bytes().all(|b| matches!(b, b' '..=b'~') && b != b';');
        if let Some(cookie_path) = cookie_path.as_ref().filter(|path| !valid(path)) {
            violations.add(format!("{path}.cookie.path"), format!("{cookie_path:?} is no path of a cookie"));
        }
    }
}

/// Whether it can be the name of a header or a cookie (RFC 9110, 5.6.2).
fn is_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

impl Timeouts {
    fn validate(&self, violations: &mut Violations) {
        violations.positive("spec.timeouts.connect", self.connect);
        if let (Some(request), Some(per_try)) = (self.request, self.per_try)
            && !request.is_zero()
            && per_try > request
        {
            violations.add("spec.timeouts.perTry", format!("{per_try} is longer than request, {request}"));
        }
    }
}

/// Collects what is wrong, with the paths.
#[derive(Default)]
struct Violations(Vec<Violation>);

impl Violations {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(Violation::new(path, message));
    }

    fn positive(&mut self, path: &str, duration: Option<GatewayDuration>) {
        if duration.is_some_and(GatewayDuration::is_zero) {
            self.add(path, "has to be longer than 0s");
        }
    }

    /// `base` has to be positive and at most `max`.
    fn growing(&mut self, path: &str, base: Option<GatewayDuration>, max: Option<GatewayDuration>) {
        self.positive(&format!("{path}.base"), base);
        self.positive(&format!("{path}.max"), max);
        if let (Some(base), Some(max)) = (base, max)
            && base > max
        {
            self.add(format!("{path}.max"), format!("{max} is shorter than base, {base}"));
        }
    }

    /// A threshold of 0 is passed by anything.
    fn some(&mut self, path: &str, percent: Option<Percent>, what: &str) {
        if percent.is_some_and(|percent| percent.get() == 0) {
            self.add(path, format!("has to be more than 0, which {what} reaches"));
        }
    }

    fn exactly_one(&mut self, path: &str, given: &[bool], names: &str) {
        let count = given.iter().filter(|given| **given).count();
        if count != 1 {
            self.add(path, format!("has {count} of {names}; exactly one is needed"));
        }
    }
}

#[cfg(test)]
mod tests;
