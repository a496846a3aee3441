//! What keeps a failing service from failing its clients: circuit breaking,
//! concurrency limits and health checks.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Violations;
use crate::crd::rule::Rule;
use crate::crd::{GatewayDuration, Percent, Positive};

/// When an endpoint or the service is left alone for a while. A failure is a
/// connection that cannot be made or breaks, a timeout, a status from 500 on (but
/// not 501 and 505), and in gRPC `UNKNOWN`, `DEADLINE_EXCEEDED`, `INTERNAL`,
/// `UNAVAILABLE` and `DATA_LOSS`; what a client gives up is none. Each worker of a
/// caller's sidecar counts for itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::new(
    "!has(self.maxEjectedPercent) || !has(self.scope) || self.scope != 'Service'",
    "has a meaning only with scope Endpoint",
)
.at("maxEjectedPercent")]))]
pub struct CircuitBreaker {
    /// What is left alone. Default: `Endpoint`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// Opens after this many failures in a row. Default: 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<Positive>,
    /// Opens when too many of the recent requests failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_rate: Option<FailureRate>,
    /// Opens when too many of the recent requests were slow; how far back and from
    /// how many on is said by `failureRate`, or else 10s and 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_call: Option<SlowCall>,
    /// How long it stays open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open: Option<OpenState>,
    /// What is let through to find out whether it may close. Default: one request,
    /// which has to succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub half_open: Option<HalfOpen>,
    /// At most this share of a service's endpoints is ejected at once, but always
    /// one may be. Only 100 lets the last one go: then requests fail fast. Default: 50.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ejected_percent: Option<Percent>,
}

/// What a circuit breaker leaves alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Scope {
    /// The endpoint that fails is ejected.
    Endpoint,
    /// Requests to the whole service fail fast.
    Service,
}

/// A share of failed requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::positive("window")]))]
pub struct FailureRate {
    /// The share that is too much.
    #[schemars(range(min = 1))]
    pub percent: Percent,
    /// Fewer requests than this in the window say nothing. Default: 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_requests: Option<Positive>,
    /// How far back requests count. Default: 10s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<GatewayDuration>,
}

/// Slow requests: exactly one of `percent` and `percentile`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::positive("duration"), Rule::exactly_one(&["percent", "percentile"])]))]
pub struct SlowCall {
    /// A request whose response takes longer to begin is slow.
    pub duration: GatewayDuration,
    /// The share of slow requests that is too much.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub percent: Option<Percent>,
    /// The percentile of latency that must not be slow.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 99))]
    pub percentile: Option<Percent>,
}

/// How long a circuit stays open.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = Rule::growing()))]
pub struct OpenState {
    /// The first time. Default: 30s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<GatewayDuration>,
    /// At most. Default: 5m.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<GatewayDuration>,
    /// How it grows when it opens again and again. Default: `Exponential`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub growth: Option<Growth>,
}

/// How a time grows from one occasion to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Growth {
    /// It doubles.
    Exponential,
    /// By its first length.
    Linear,
    /// Not at all.
    Fixed,
}

/// What a half-open circuit lets through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HalfOpen {
    /// How many requests.
    #[schemars(range(max = MAX_PROBES))]
    pub requests: Positive,
    /// The share of them that has to succeed.
    #[schemars(range(min = 1))]
    pub success_percent: Percent,
}

/// A bound on requests in flight that follows the measured latency: while a
/// service answers slower than it should, fewer are let through, and what is
/// above the bound is answered 503 with `retry-after`, the least urgent first
/// (header `priority`, RFC 9218). Kept by each worker of a caller's sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::positive("targetLatency"),
    Rule::new("!has(self.min) || !has(self.max) || self.min <= self.max", "is less than min").at("max"),
]))]
pub struct Concurrency {
    /// How the bound is found.
    pub mode: ConcurrencyMode,
    /// The median latency to keep, until a response begins. Default: 1.5 times
    /// the least that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_latency: Option<GatewayDuration>,
    /// The bound is never less. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<Positive>,
    /// The bound is never more. Default: 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<Positive>,
}

/// How a concurrency bound is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConcurrencyMode {
    /// By the gradient of latency.
    Adaptive,
}

/// Probes of each endpoint, by exactly one of `http`, `tcp` and `grpc`. A caller's
/// sidecar makes them for as long as it uses the service: in mutual TLS to endpoints
/// inside the mesh, else in plaintext. An endpoint counts as discovery says until
/// probes have said otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::exactly_one(&["http", "tcp", "grpc"]),
    Rule::new("!has(self.interval) || duration(self.interval) >= duration('100ms')", "is shorter than 100ms")
        .at("interval"),
    Rule::positive("timeout"),
    Rule::not_longer("timeout", "interval"),
]))]
pub struct HealthCheck {
    /// A GET that has to be answered with 2xx.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpHealthCheck>,
    /// A connection that has to be accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpHealthCheck>,
    /// The gRPC health checking protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcHealthCheck>,
    /// Between two probes; a sixth of it, more or less, is chance. Default: 10s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<GatewayDuration>,
    /// On one probe; at most `interval`. Default: 1s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<GatewayDuration>,
    /// Successes in a row that make an endpoint healthy. Default: 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy_after: Option<Positive>,
    /// Failures in a row that make it unhealthy. Default: 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unhealthy_after: Option<Positive>,
}

/// A probe by HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpHealthCheck {
    /// What is asked for.
    #[schemars(length(max = MAX_PATH), regex(pattern = r#"^/[!"$-~]*$"#))]
    pub path: String,
}

/// A probe by connecting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpHealthCheck {}

/// A probe by gRPC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcHealthCheck {
    /// The gRPC service asked for; absent: the whole server.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_GRPC_SERVICE))]
    pub service: Option<String>,
}

/// As long as a path in a Gateway API match may be.
const MAX_PATH: usize = 1024;

/// As long as a full DNS name, after which packages are named.
const MAX_GRPC_SERVICE: usize = 253;

/// More often, many callers would make a load of their probes.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// More probes than this are no probes any more.
const MAX_PROBES: u32 = 1000;

impl CircuitBreaker {
    pub(super) fn validate(&self, violations: &mut Violations) {
        if let Some(open) = &self.open {
            violations.growing("spec.circuitBreaker.open", open.base, open.max);
        }
        if let Some(rate) = &self.failure_rate {
            violations.positive("spec.circuitBreaker.failureRate.window", rate.window);
            violations.some("spec.circuitBreaker.failureRate.percent", Some(rate.percent), "every request");
        }
        if let Some(slow) = &self.slow_call {
            let path = "spec.circuitBreaker.slowCall";
            violations.positive(&format!("{path}.duration"), Some(slow.duration));
            let given = [slow.percent.is_some(), slow.percentile.is_some()];
            violations.exactly_one(path, &given, "percent and percentile");
            violations.some(&format!("{path}.percent"), slow.percent, "every request");
            if slow.percentile.is_some_and(|percentile| !(1..=99).contains(&percentile.get())) {
                violations.add(format!("{path}.percentile"), "has to be between 1 and 99");
            }
        }
        if let Some(half_open) = &self.half_open {
            let path = "spec.circuitBreaker.halfOpen";
            violations.some(&format!("{path}.successPercent"), Some(half_open.success_percent), "a failure");
            if half_open.requests.get() > MAX_PROBES {
                let message = format!("{} is more than {MAX_PROBES}", half_open.requests.get());
                violations.add(format!("{path}.requests"), message);
            }
        }
        if self.scope == Some(Scope::Service) && self.max_ejected_percent.is_some() {
            let message = "has a meaning only with scope Endpoint";
            violations.add("spec.circuitBreaker.maxEjectedPercent", message);
        }
    }
}

impl Concurrency {
    pub(super) fn validate(&self, violations: &mut Violations) {
        violations.positive("spec.concurrency.targetLatency", self.target_latency);
        if let (Some(min), Some(max)) = (self.min, self.max)
            && min > max
        {
            violations.add("spec.concurrency.max", format!("{} is less than min, {}", max.get(), min.get()));
        }
    }
}

impl HealthCheck {
    pub(super) fn validate(&self, violations: &mut Violations) {
        let given = [self.http.is_some(), self.tcp.is_some(), self.grpc.is_some()];
        violations.exactly_one("spec.healthCheck", &given, "http, tcp and grpc");
        if let Some(HttpHealthCheck { path }) = &self.http {
            let field = "spec.healthCheck.http.path";
            if !path.starts_with('/') {
                violations.add(field, "has to begin with /");
            } else if path.len() > MAX_PATH || !path.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
                violations.add(field, format!("is no path of a request of at most {MAX_PATH} bytes"));
            }
        }
        let service = self.grpc.as_ref().and_then(|grpc| grpc.service.as_deref());
        if service.is_some_and(|name| name.is_empty() || name.len() > MAX_GRPC_SERVICE) {
            let message = format!("has to have between 1 and {MAX_GRPC_SERVICE} bytes");
            violations.add("spec.healthCheck.grpc.service", message);
        }
        if self.interval.is_some_and(|interval| interval.get() < MIN_INTERVAL) {
            violations.add("spec.healthCheck.interval", format!("is shorter than {MIN_INTERVAL:?}"));
        }
        violations.positive("spec.healthCheck.timeout", self.timeout);
        if let (Some(interval), Some(timeout)) = (self.interval, self.timeout)
            && timeout > interval
        {
            let message = format!("{timeout} is longer than interval, {interval}");
            violations.add("spec.healthCheck.timeout", message);
        }
    }
}
