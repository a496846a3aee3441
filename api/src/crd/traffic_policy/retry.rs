//! When and how a failed try is repeated.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Violations;
use crate::crd::rule::Rule;
use crate::crd::{GatewayDuration, Multiplier, Percent, Ratio};
use crate::discovery::v1;

/// When and how a failed try is repeated.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::new(
    "!has(self.hedge) || !has(self.attempts) || self.attempts > 0",
    "is one of the attempts, of which there are 0",
)
.at("hedge")]))]
pub struct Retry {
    /// Retries after the first try; 0 disables them. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::crd::number::unsigned")]
    pub attempts: Option<u32>,
    /// What is retried beside `ConnectFailure` and `RefusedStream`, which provably reached no
    /// application and are always among them.
    #[serde(alias = "true", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub on: Option<Vec<RetryOn>>,
    /// The methods for which opted-in reasons count. Default: GET, HEAD, OPTIONS, PUT and DELETE.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub methods: Option<Vec<Method>>,
    /// The pause before a retry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// No retry begins later than this after the first try; `0s`: no limit but the request's.
    /// Default: 10s, save for retries that a route itself asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_elapsed: Option<GatewayDuration>,
    /// The longest pause that an answer may ask for, by `retry-after` or gRPC's pushback: one that
    /// asks for more is passed on instead of retried. `0s`: no pause at all. Default: 1s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retry_after: Option<GatewayDuration>,
    /// The share of traffic that retries may add.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<RetryBudget>,
    /// Request bodies up to this size are kept for a retry; larger ones are streamed and not
    /// retried after they began. Where `Reset` is retried, responses up to this size that say
    /// their `content-length` are held back until they are whole, though no longer than 100 ms,
    /// so that one that breaks off can be retried, too. Default: 65536.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = MAX_BUFFER_BYTES))]
    pub buffer_bytes: Option<u64>,
    /// Races a second try where the first is slow to answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Hedge>,
}

/// More than this per request in flight would make a burst of requests a matter of gigabytes.
const MAX_BUFFER_BYTES: u64 = 16 << 20;

/// The pause before a retry.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::positive("base"),
    Rule::positive("max"),
    Rule::new(
        "!has(self.base) || !has(self.max) || duration(self.base) <= duration(self.max)",
        "is shorter than base",
    )
    .at("max"),
    Rule::new(
        "!has(self.multiplier) || !has(self.strategy) || self.strategy == 'Exponential'",
        "has a meaning only with strategy Exponential",
    )
    .at("multiplier"),
    Rule::new(
        "!has(self.increment) || (has(self.strategy) && self.strategy == 'Linear')",
        "has a meaning only with strategy Linear",
    )
    .at("increment"),
]))]
pub struct Backoff {
    /// How it grows. Default: `Exponential`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<BackoffStrategy>,
    /// Before the first retry. Default: 25ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<GatewayDuration>,
    /// At most. Default: 1s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<GatewayDuration>,
    /// The factor of `Exponential`. Default: 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multiplier: Option<Multiplier>,
    /// The step of `Linear`. Default: `base`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub increment: Option<GatewayDuration>,
    /// The share of the pause that is random. Default: 0.25.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Ratio>,
}

/// How a pause grows from try to try.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BackoffStrategy {
    /// By a factor.
    #[default]
    Exponential,
    /// By a step.
    Linear,
    /// Not at all.
    Fixed,
}

/// The share of traffic that retries may add.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryBudget {
    /// Retries per hundred requests. Default: 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<Percent>,
    /// Retries that are always allowed, per second. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::crd::number::unsigned")]
    pub min_per_second: Option<u32>,
}

/// Races a second try, at another endpoint: the first good response head wins. Only for `methods`,
/// bodies within `bufferBytes` and requests with a retry left, and charged to the budget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::positive("after")]))]
pub struct Hedge {
    /// When the first one has not answered after this time.
    pub after: GatewayDuration,
}

impl Retry {
    pub(super) fn validate(&self, violations: &mut Violations) {
        let path = "spec.retry";
        if self.on.as_ref().is_some_and(Vec::is_empty) {
            violations.add(format!("{path}.on"), "is empty; attempts: 0 disables retries");
        }
        if self.methods.as_ref().is_some_and(Vec::is_empty) {
            violations.add(format!("{path}.methods"), "is empty; attempts: 0 disables retries");
        }
        if let Some(bytes) = self.buffer_bytes.filter(|bytes| *bytes > MAX_BUFFER_BYTES) {
            violations.add(format!("{path}.bufferBytes"), format!("{bytes} is more than {MAX_BUFFER_BYTES}"));
        }
        if let Some(hedge) = &self.hedge {
            violations.positive("spec.retry.hedge.after", Some(hedge.after));
            if self.attempts == Some(0) {
                violations.add(format!("{path}.hedge"), "is one of the attempts, of which there are 0");
            }
        }
        if let Some(backoff) = &self.backoff {
            let path = "spec.retry.backoff";
            violations.growing(path, backoff.base, backoff.max);
            let strategy = backoff.strategy.unwrap_or_default();
            if backoff.multiplier.is_some() && strategy != BackoffStrategy::Exponential {
                violations.add(format!("{path}.multiplier"), "has a meaning only with strategy Exponential");
            }
            if backoff.increment.is_some() && strategy != BackoffStrategy::Linear {
                violations.add(format!("{path}.increment"), "has a meaning only with strategy Linear");
            }
        }
    }
}

/// One thing that is retried: a reason by name, a status (`"503"`) or a class of statuses (`"5xx"`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RetryOn {
    /// How the try failed.
    Reason(RetryReason),
    /// An HTTP status from 400 to 599.
    Status(u16),
    /// The hundreds of a class of statuses, 4 or 5.
    Class(u8),
}

/// How a try failed: the same in manifests, on the wire and where sidecars decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RetryReason {
    /// No connection could be made.
    ConnectFailure,
    /// The upstream refused the stream before processing it.
    RefusedStream,
    /// The upstream broke off before it answered.
    Reset,
    /// It answered 502, 503 or 504.
    GatewayError,
    /// It took longer than `timeouts.perTry`.
    PerTryTimeout,
    /// gRPC status 1.
    GrpcCancelled,
    /// gRPC status 4.
    GrpcDeadlineExceeded,
    /// gRPC status 8.
    GrpcResourceExhausted,
    /// gRPC status 14.
    GrpcUnavailable,
}

/// Each with its name in manifests and its value on the wire, in the order of the type.
const REASONS: [(RetryReason, &str, v1::RetryReason); 9] = [
    (RetryReason::ConnectFailure, "ConnectFailure", v1::RetryReason::ConnectFailure),
    (RetryReason::RefusedStream, "RefusedStream", v1::RetryReason::RefusedStream),
    (RetryReason::Reset, "Reset", v1::RetryReason::Reset),
    (RetryReason::GatewayError, "GatewayError", v1::RetryReason::GatewayError),
    (RetryReason::PerTryTimeout, "PerTryTimeout", v1::RetryReason::PerTryTimeout),
    (RetryReason::GrpcCancelled, "GrpcCancelled", v1::RetryReason::GrpcCancelled),
    (RetryReason::GrpcDeadlineExceeded, "GrpcDeadlineExceeded", v1::RetryReason::GrpcDeadlineExceeded),
    (RetryReason::GrpcResourceExhausted, "GrpcResourceExhausted", v1::RetryReason::GrpcResourceExhausted),
    (RetryReason::GrpcUnavailable, "GrpcUnavailable", v1::RetryReason::GrpcUnavailable),
];

impl RetryReason {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        REASONS.into_iter().map(|(reason, ..)| reason)
    }

    /// Its name in manifests.
    pub const fn name(self) -> &'static str {
        REASONS[self as usize].1
    }

    /// Its value on the wire.
    pub const fn wire(self) -> v1::RetryReason {
        REASONS[self as usize].2
    }

    /// The one with this value on the wire; `None` if there is none in this version.
    pub fn from_wire(value: i32) -> Option<Self> {
        Self::all().find(|reason| reason.wire() as i32 == value)
    }
}

/// A text that names nothing that can be retried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is nothing that can be retried: a status such as \"503\", a class (\"4xx\", \"5xx\"), ConnectFailure, \
     RefusedStream, Reset, GatewayError, PerTryTimeout, GrpcCancelled, GrpcDeadlineExceeded, \
     GrpcResourceExhausted or GrpcUnavailable"
)]
pub struct InvalidRetryOn(String);

impl FromStr for RetryOn {
    type Err = InvalidRetryOn;

    fn from_str(text: &str) -> Result<Self, InvalidRetryOn> {
        if let Some(reason) = RetryReason::all().find(|reason| reason.name() == text) {
            return Ok(Self::Reason(reason));
        }
        match text.as_bytes() {
            [class @ (b'4' | b'5'), b'x', b'x'] => Ok(Self::Class(class - b'0')),
            [b'4' | b'5', b'0'..=b'9', b'0'..=b'9'] => {
                text.parse().map(Self::Status).map_err(|_| InvalidRetryOn(text.into()))
            }
            _ => Err(InvalidRetryOn(text.into())),
        }
    }
}

impl fmt::Display for RetryOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reason(reason) => f.write_str(reason.name()),
            Self::Status(status) => write!(f, "{status}"),
            Self::Class(class) => write!(f, "{class}xx"),
        }
    }
}

impl Serialize for RetryOn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RetryOn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for RetryOn {
    fn schema_name() -> Cow<'static, str> {
        "RetryOn".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<&str> = RetryReason::all().map(RetryReason::name).collect();
        let pattern = format!("^({}|[45]xx|[45][0-9]{{2}})$", names.join("|"));
        json_schema!({ "type": "string", "pattern": pattern })
    }
}

/// An HTTP method: a token in capitals.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Method(String);

impl Method {
    /// The method as it stands in a request.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Method {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let token = |byte: u8| byte.is_ascii_uppercase() || byte == b'-';
        if text.is_empty() || text.len() > 32 || !text.bytes().all(token) {
            return Err(de::Error::custom(format_args!("{text:?} is no method (such as GET or PUT)")));
        }
        Ok(Self(text))
    }
}

impl JsonSchema for Method {
    fn schema_name() -> Cow<'static, str> {
        "Method".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[A-Z-]{1,32}$" })
    }
}
