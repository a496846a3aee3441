//! `RateLimitPolicy`: how many requests a service admits, and from whom.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rule::Rule;
use super::{
    Attachment, GatewayDuration, HeaderName, Kind, Metadata, Positive, RequestMatch, TARGET_COLUMNS,
    TargetRef, Violation, is_claim, request_match,
};

/// Limits on the rate of requests, enforced by the sidecar of each replica of a
/// service for itself, for all its clients together. Every limit of every policy that is about a
/// request has to admit it; what is not admitted is answered 429, in gRPC `RESOURCE_EXHAUSTED`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitPolicySpec {
    /// Services of the policy's own namespace, or ports of them by `sectionName`; HTTPRoutes and
    /// GRPCRoutes, or rules of them by `sectionName`, whose requests are limited at their backends.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-validations" = [Rule::distinct()]))]
    pub target_refs: Vec<TargetRef>,
    /// The limits.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-validations" = [Rule::new(
        "self.all(limit, !has(limit.name) || \
            self.exists_one(other, has(other.name) && other.name == limit.name))",
        "two limits have one name",
    )]))]
    pub limits: Vec<RateLimit>,
}

/// A token bucket, or one for each value of its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new(
        "duration(self.per) > duration('0s') && duration(self.per) <= duration('24h')",
        "has to be longer than 0s and at most 24h",
    )
    .at("per"),
]))]
pub struct RateLimit {
    /// What responses and metrics call it, unique in the policy. Default: `limit-` and its place
    /// in the list, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: Option<String>,
    /// Requests that agree in all of this share a bucket. Default: all requests share one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_KEY_PARTS), extend("x-kubernetes-validations" = [Rule::distinct()]))]
    pub key: Vec<RateLimitKey>,
    /// How many requests are admitted in each `per`.
    pub requests: Positive,
    /// The time in which an empty bucket gains `requests` tokens.
    pub per: GatewayDuration,
    /// How many requests are admitted at once after a pause. Default: `requests`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<Positive>,
    /// The requests that it is about, as they reach the service: those that any item matches.
    /// Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub r#match: Vec<RequestMatch>,
}

/// A part of a bucket's key; exactly one field.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::exactly_one(&["identity", "sourceAddress", "header", "route", "claim"])]))]
pub struct RateLimitKey {
    /// The identity that the client proved. Clients without one share a bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = [true]))]
    pub identity: Option<bool>,
    /// The client's IP address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = [true]))]
    pub source_address: Option<bool>,
    /// The values of a header. Requests without it share a bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderName>,
    /// The rule of a route that led the request here. Requests without one share a bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = [true]))]
    pub route: Option<bool>,
    /// A claim of a verified token, such as `sub`, or by its path, such as `tenant.id`. Requests without it share a
    /// bucket, as do those that no JwtPolicy is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub claim: Option<String>,
}

impl RateLimit {
    /// What it is called that is at this place of the list.
    pub fn name(&self, place: usize) -> String {
        self.name.clone().unwrap_or_else(|| format!("limit-{place}"))
    }

    /// How many requests are admitted at once after a pause.
    pub fn burst(&self) -> u32 {
        self.burst.unwrap_or(self.requests).get()
    }

    fn validate(&self, path: &str, violations: &mut Vec<Violation>) {
        let mut add = |field: &str, message: String| {
            violations.push(Violation::new(format!("{path}.{field}"), message));
        };
        if let Some(name) = self.name.as_ref().filter(|name| !is_label(name)) {
            add(
                "name",
                format!("{name:?} is no name: lower-case letters, digits and inner hyphens, at most 63"),
            );
        }
        if self.key.len() > MAX_KEY_PARTS {
            add("key", format!("has more than {MAX_KEY_PARTS} items"));
        }
        for (index, part) in self.key.iter().enumerate() {
            let given = [
                (part.identity.is_some(), "identity"),
                (part.source_address.is_some(), "sourceAddress"),
                (part.header.is_some(), "header"),
                (part.route.is_some(), "route"),
                (part.claim.is_some(), "claim"),
            ];
            let item = format!("key[{index}]");
            if given.iter().filter(|(given, _)| *given).count() != 1 {
                let message = "needs exactly one of identity, sourceAddress, header, route and claim";
                add(&item, message.into());
                continue;
            }
            for (value, field) in
                [(part.identity, "identity"), (part.source_address, "sourceAddress"), (part.route, "route")]
            {
                if value == Some(false) {
                    add(&format!("{item}.{field}"), "has to be true; leave the item out instead".into());
                }
            }
            if part.claim.as_ref().is_some_and(|claim| !is_claim(claim)) {
                add(&format!("{item}.claim"), "is no claim's path".into());
            }
            if self.key[..index].contains(part) {
                add(&item, "is named twice".into());
            }
        }
        let per = self.per.get();
        if per.is_zero() || per > MAX_PERIOD {
            add("per", "has to be longer than 0s and at most 24h".into());
        } else if u128::from(self.requests.get()) * NANOS_OF_A_TOKEN > per.as_nanos() {
            add("requests", "has to be at most a million per second".into());
        }
        let refill = per.as_nanos() * u128::from(self.burst()) / u128::from(self.requests.get());
        if refill > MAX_REFILL.as_nanos() {
            add("burst", "takes longer than a year to come together again".into());
        }
        request_match::validate(&format!("{path}.match"), &self.r#match, violations);
    }
}

/// Each is looked up for each request.
const MAX_KEY_PARTS: usize = 4;

/// What is counted in days is a quota, which has to outlive a process.
const MAX_PERIOD: Duration = Duration::from_secs(24 * 3600);

/// Sidecars count time in nanoseconds: at a million requests per second they err by a thousandth.
const NANOS_OF_A_TOKEN: u128 = 1000;

/// How long an empty bucket may take to be full: what sidecars compute with has room for it.
const MAX_REFILL: Duration = Duration::from_secs(365 * 24 * 3600);

/// Whether it is a DNS label (RFC 1123), as which all names of this kind are written.
pub(super) fn is_label(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

impl Kind for RateLimitPolicySpec {
    const KIND: &'static str = "RateLimitPolicy";
    const PLURAL: &'static str = "ratelimitpolicies";
    const NAMESPACED: bool = true;
    const SHORT_NAMES: &'static [&'static str] = &["rlpol"];
    const ATTACHMENT: Option<Attachment> = Some(Attachment::Direct);
    const COLUMNS: &'static [(&'static str, &'static str)] = TARGET_COLUMNS;

    fn validate(&self, metadata: &Metadata) -> Vec<Violation> {
        let mut violations = Vec::new();
        TargetRef::validate_all(&self.target_refs, metadata, &mut violations);
        if self.limits.is_empty() || self.limits.len() > 16 {
            violations.push(Violation::new("spec.limits", "has to hold between 1 and 16 limits"));
        }
        for (index, limit) in self.limits.iter().enumerate() {
            let path = format!("spec.limits[{index}]");
            let named = |(place, other): (usize, &RateLimit)| other.name(place) == limit.name(index);
            if self.limits[..index].iter().enumerate().any(named) {
                let message = format!("{:?} is the name of an earlier limit", limit.name(index));
                violations.push(Violation::new(format!("{path}.name"), message));
            }
            limit.validate(&path, &mut violations);
        }
        violations
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(limit: Value) -> Result<RateLimitPolicySpec, serde_json::Error> {
        let target = json!({"group": "", "kind": "Service", "name": "users"});
        serde_json::from_value(json!({"targetRefs": [target], "limits": [limit]}))
    }

    fn paths(spec: &RateLimitPolicySpec) -> Vec<String> {
        let metadata = Metadata { name: "limits".into(), ..Metadata::default() };
        spec.validate(&metadata).into_iter().map(|violation| violation.path).collect()
    }

    #[test]
    fn the_whole_kind_parses_and_writes_back() {
        let full = json!({
            "name": "per-user", "requests": 10, "per": "1m", "burst": 20,
            "key": [{"identity": true}, {"sourceAddress": true}, {"header": "X-User"}, {"route": true}],
            "match": [{"method": "GET", "pathPrefix": "/v1", "headers": [{"name": "a", "value": "b"}]}],
        });
        let parsed = spec(full).unwrap();
        assert_eq!(paths(&parsed), [] as [&str; 0]);
        let written = serde_json::to_value(&parsed).unwrap();
        assert_eq!(serde_json::from_value::<RateLimitPolicySpec>(written).unwrap(), parsed);
        let least = &spec(json!({"requests": 10, "per": "1s"})).unwrap().limits[0];
        assert_eq!((least.name(3).as_str(), least.burst()), ("limit-3", 10));
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_path() {
        for (field, value, path) in [
            ("name", json!("Per User"), "spec.limits[0].name"),
            ("per", json!("0s"), "spec.limits[0].per"),
            ("per", json!("25h"), "spec.limits[0].per"),
            ("requests", json!(2_000_000), "spec.limits[0].requests"),
            ("burst", json!(400_000_000), "spec.limits[0].burst"),
            ("key", json!([{}]), "spec.limits[0].key[0]"),
            ("key", json!([{"identity": true, "route": true}]), "spec.limits[0].key[0]"),
            ("key", json!([{"claim": "a..b"}]), "spec.limits[0].key[0].claim"),
            ("key", json!([{"identity": false}]), "spec.limits[0].key[0].identity"),
            ("key", json!([{"route": true}, {"route": true}]), "spec.limits[0].key[1]"),
            ("match", json!([{}]), "spec.limits[0].match[0]"),
            ("match", json!([{"pathPrefix": "v1"}]), "spec.limits[0].match[0].pathPrefix"),
        ] {
            let mut limit = json!({"requests": 10, "per": "1s", "burst": 10});
            limit[field] = value.clone();
            assert_eq!(paths(&spec(limit).unwrap()), [path], "{field}: {value}");
        }
        let mut twice = spec(json!({"name": "limit-1", "requests": 1, "per": "1s"})).unwrap();
        twice.limits.push(RateLimit { name: None, ..twice.limits[0].clone() });
        assert_eq!(paths(&twice), ["spec.limits[1].name"]);
        twice.limits.clear();
        assert_eq!(paths(&twice), ["spec.limits"]);
    }

    #[test]
    fn what_is_no_field_or_no_number_does_not_parse() {
        for limit in [
            json!({"per": "1s"}),
            json!({"requests": 1}),
            json!({"requests": 0, "per": "1s"}),
            json!({"requests": 1, "per": "1s", "burst": 0}),
            json!({"requests": 1, "per": "1 second"}),
            json!({"requests": 1, "per": "1s", "key": ["identity"]}),
            json!({"requests": 1, "per": "1s", "key": [{"header": "a b"}]}),
            json!({"requests": 1, "per": "1s", "unit": "second"}),
        ] {
            assert!(spec(limit.clone()).is_err(), "{limit}");
        }
    }
}
