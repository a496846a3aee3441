//! Alert rules: what about a workload's requests somebody wants to be told.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::crd::rule::Rule;
use crate::crd::{GatewayDuration, Violation};
use crate::name::{DEFAULT_CLUSTER_DOMAIN, ServiceName};

/// Rules of one policy: each is evaluated every second in every sidecar.
pub const MAX_ALERTS: usize = 16;

/// The reasons of the mesh's own answers (header `heddle-error`) that a rule may name.
pub const ALERT_REASONS: &[&str] = &[
    "bad_request",
    "header_too_large",
    "request_timeout",
    "unknown_service",
    "unknown_port",
    "no_route",
    "no_backend",
    "no_healthy_endpoint",
    "circuit_open",
    "connect_failure",
    "connect_timeout",
    "tls_refused",
    "refused_stream",
    "reset",
    "bad_response",
    "timeout",
    "per_try_timeout",
    "overloaded",
    "denied",
    "tls_required",
    "not_ready",
    "draining",
    "loop",
    "fault_injected",
    "rate_limited",
    "unauthenticated",
];

/// The classes of failed requests that a rule may name beside them.
const CLASSES: [&str; 3] = ["5xx", "4xx", "grpc"];

/// What `errorRate.class` may be.
fn classes() -> Vec<&'static str> {
    CLASSES.iter().chain(ALERT_REASONS).copied().collect()
}

/// Windows between these are long enough to count in and short enough to keep.
const WINDOWS: [std::time::Duration; 2] =
    [std::time::Duration::from_secs(1), std::time::Duration::from_secs(3600)];

/// Somebody who repeats more often than this is no better told.
const SHORTEST_REPEAT: std::time::Duration = std::time::Duration::from_secs(60);

/// Who is told when, about what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::between("window", "1s", "1h"),
    Rule::between("for", "0s", "1h"),
    Rule::new("!has(self.repeat) || duration(self.repeat) >= duration('1m')", "is shorter than 1m").at("repeat"),
    Rule::new(
        "!has(self.service) || (has(self.direction) && self.direction == 'Outbound')",
        "says something with direction Outbound only",
    )
    .at("service"),
]))]
pub struct Alert {
    /// Its name, a DNS label. A rule of the same name in a more specific policy replaces it.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: String,
    /// What has to hold.
    pub when: AlertCondition,
    /// Whose side of requests counts. Default: `Inbound`, those that the workload serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "Inbound"))]
    pub direction: Option<RequestDirection>,
    /// `Outbound` only: the one service that the requests go to, as `NAME` or
    /// `NAME.NAMESPACE`. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service: Option<String>,
    /// The time that is looked back on, `1s` to `1h`. Default: `1m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "1m"))]
    pub window: Option<GatewayDuration>,
    /// Fewer requests in the window say nothing about shares and latencies. Default: 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::crd::number::unsigned", extend("x-default" = 20))]
    pub min_requests: Option<u32>,
    /// How long the condition has to hold before the alert fires, and not to
    /// hold before it is resolved; at most `1h`. Default: `0s`.
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "0s"))]
    pub hold: Option<GatewayDuration>,
    /// How often a firing alert is told again, at least `1m`. Default: `4h`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "4h"))]
    pub repeat: Option<GatewayDuration>,
    /// Who is told. Absent: it shows in `heddle stat` alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
}

/// What has to hold; exactly one of the fields is given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::exactly_one(&["errorRate", "requestRate", "latency"])]))]
pub struct AlertCondition {
    /// Too many requests fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_rate: Option<ErrorRate>,
    /// There are too many requests, or too few.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_rate: Option<RequestRate>,
    /// Requests take too long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
}

/// Too many requests fail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ErrorRate {
    /// The share of requests from which on it fires, above 0 and up to 100.
    #[schemars(extend("minimum" = 0, "exclusiveMinimum" = true, "maximum" = 100))]
    pub percent: f64,
    /// Which requests count: `5xx`, `4xx`, `grpc` (a status that blames the
    /// server), or a reason of the mesh's own answers such as `circuit_open`.
    /// Default: `5xx` and `grpc` together.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = classes()))]
    pub class: Option<String>,
}

/// Too many requests, or too few; exactly one of the fields is given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::exactly_one(&["above", "below"])]))]
pub struct RequestRate {
    /// It fires above so many requests per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 0, "exclusiveMinimum" = true))]
    pub above: Option<f64>,
    /// It fires below so many requests per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 0, "exclusiveMinimum" = true))]
    pub below: Option<f64>,
}

/// Requests take too long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::between("above", "1ms", "60s")]))]
pub struct Latency {
    /// The percentile that is looked at, above 0 and below 100.
    #[schemars(extend("minimum" = 0, "exclusiveMinimum" = true, "maximum" = 100, "exclusiveMaximum" = true))]
    pub percentile: f64,
    /// It fires above this, `1ms` to `60s`.
    pub above: GatewayDuration,
}

/// Whose side of requests counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum RequestDirection {
    /// Requests that the workload serves.
    #[default]
    Inbound,
    /// Requests that it makes.
    Outbound,
}

/// Where alerts are posted, signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Webhook {
    /// `http://` or `https://`, without user and fragment.
    #[schemars(length(max = 2048), regex(pattern = "^https?://[^/?#@]+([/?][^#]*)?$"))]
    pub url: String,
    /// The key of the signature, in a Secret of the policy's namespace.
    pub secret_ref: SecretKeyRef,
}

/// A value of a Secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretKeyRef {
    /// The Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key in its `data`.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

impl Alert {
    /// The service that outbound requests go to, seen from a namespace.
    pub fn destination(&self, namespace: &str) -> Option<ServiceName> {
        ServiceName::from_host(self.service.as_deref()?, namespace, DEFAULT_CLUSTER_DOMAIN)
    }

    fn validate(&self, path: &str) -> Vec<Violation> {
        let mut found = self.when.validate(&format!("{path}.when"));
        let mut refuse = |wrong: bool, field: &str, message: String| {
            if wrong {
                found.push(Violation::new(format!("{path}.{field}"), message));
            }
        };
        // A service's name is a DNS label as this one is.
        let is_label = ServiceName::new("any", &self.name).is_ok_and(|name| name.name() == self.name);
        refuse(!is_label, "name", format!("{:?} is no DNS label in lower case", self.name));
        let time = |time: Option<GatewayDuration>| time.map(GatewayDuration::get);
        let out = |window: std::time::Duration| window < WINDOWS[0] || window > WINDOWS[1];
        refuse(time(self.window).is_some_and(out), "window", "is not between 1s and 1h".into());
        refuse(time(self.hold).is_some_and(|hold| hold > WINDOWS[1]), "for", "is longer than 1h".into());
        let short = time(self.repeat).is_some_and(|repeat| repeat < SHORTEST_REPEAT);
        refuse(short, "repeat", "is shorter than 1m".into());
        if let Some(service) = &self.service {
            let outbound = self.direction == Some(RequestDirection::Outbound);
            refuse(!outbound, "service", "says something with direction Outbound only".into());
            let unknown = self.destination("any").is_none();
            refuse(unknown, "service", format!("{service:?} is no NAME or NAME.NAMESPACE"));
        }
        if let Some(webhook) = &self.webhook {
            let message =
                "is no http or https URL of a host and a possible port, without user and fragment".to_owned();
            refuse(!is_url(&webhook.url), "webhook.url", message);
            let empty = |field: &str| (field.is_empty(), "is empty".to_owned());
            let (name, key) = (empty(&webhook.secret_ref.name), empty(&webhook.secret_ref.key));
            refuse(name.0, "webhook.secretRef.name", name.1);
            refuse(key.0, "webhook.secretRef.key", key.1);
        }
        found
    }
}

impl AlertCondition {
    fn validate(&self, path: &str) -> Vec<Violation> {
        let Self { error_rate, request_rate, latency } = self;
        let given = [error_rate.is_some(), request_rate.is_some(), latency.is_some()];
        if given.into_iter().filter(|given| *given).count() != 1 {
            return vec![Violation::new(path, "needs exactly one of errorRate, requestRate and latency")];
        }
        let mut found = Vec::new();
        let mut refuse = |wrong: bool, field: &str, message: &str| {
            if wrong {
                found.push(Violation::new(format!("{path}.{field}"), message));
            }
        };
        if let Some(ErrorRate { percent, class }) = error_rate {
            let share = *percent > 0.0 && *percent <= 100.0;
            refuse(!share, "errorRate.percent", "is not above 0 and up to 100");
            let known = |class: &str| CLASSES.contains(&class) || ALERT_REASONS.contains(&class);
            let unknown = class.as_deref().is_some_and(|class| !known(class));
            refuse(unknown, "errorRate.class", "is neither 5xx, 4xx, grpc nor a reason of docs/errors.md");
        }
        if let Some(RequestRate { above, below }) = request_rate {
            refuse(above.is_some() == below.is_some(), "requestRate", "needs exactly one of above and below");
            for (field, rate) in [("requestRate.above", above), ("requestRate.below", below)] {
                let impossible = rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0);
                refuse(impossible, field, "is no number above 0");
            }
        }
        if let Some(Latency { percentile, above }) = latency {
            let inside = *percentile > 0.0 && *percentile < 100.0;
            refuse(!inside, "latency.percentile", "is not above 0 and below 100");
            let shown = above.get() >= std::time::Duration::from_millis(1)
                && above.get() <= std::time::Duration::from_secs(60);
            refuse(!shown, "latency.above", "is not between 1ms and 60s");
        }
        found
    }
}

/// What is wrong with the rules of one policy.
pub(super) fn validate(alerts: &[Alert]) -> Vec<Violation> {
    let mut found = Vec::new();
    if alerts.len() > MAX_ALERTS {
        found.push(Violation::new(
            "spec.alerts",
            format!("are {}; at most {MAX_ALERTS} are accepted", alerts.len()),
        ));
    }
    let mut names = BTreeSet::new();
    for (index, alert) in alerts.iter().enumerate() {
        let path = format!("spec.alerts[{index}]");
        found.extend(alert.validate(&path));
        if !names.insert(&alert.name) {
            found.push(Violation::new(format!("{path}.name"), format!("{:?} is there twice", alert.name)));
        }
    }
    found
}

/// Whether a URL can be posted to: an IPv6 literal, a name or an address, a port, and a path.
pub(in crate::crd) fn is_url(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    let authority = uri.authority();
    matches!(uri.scheme_str(), Some("http" | "https"))
        && authority
            .is_some_and(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'))
        && authority.is_some_and(has_possible_port)
        && !url.contains('#')
}

/// Whether there is no port after the host or one that can be dialled: an
/// [`http::Uri`] takes others too, and then tells of none.
fn has_possible_port(authority: &http::uri::Authority) -> bool {
    let after = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    after.is_empty() || authority.port_u16().is_some_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(yaml: &str) -> Vec<String> {
        let alerts: Vec<Alert> = serde_saphyr::from_str(yaml).unwrap();
        validate(&alerts).into_iter().map(|violation| violation.path).collect()
    }

    #[test]
    fn sound_rules_are_accepted() {
        let sound = "
- {name: errors, when: {errorRate: {percent: 0.5, class: circuit_open}}, window: 10s, minRequests: 0, for: 1m}
- {name: rate, when: {requestRate: {below: 0.1}}, direction: Outbound, service: users.shop, repeat: 1m}
- name: slow
  when: {latency: {percentile: 99.9, above: 500ms}}
  webhook: {url: 'https://[::1]:8443/hook?x=1', secretRef: {name: s, key: k}}
";
        assert_eq!(violations(sound), [] as [&str; 0]);
    }

    #[test]
    fn ports_that_nobody_can_dial_are_refused() {
        for sound in ["http://a", "http://a:1/x", "https://[::1]:65535", "http://[::1]/"] {
            assert!(is_url(sound), "{sound}");
        }
        for wrong in ["http://a:0", "http://a:65536/x", "http://a:", "https://[::1]:99999", "http://[::1]:/"]
        {
            assert!(!is_url(wrong), "{wrong}");
        }
    }

    #[test]
    fn each_way_to_write_a_rule_wrong_is_refused_with_its_path() {
        let good = "errorRate: {percent: 5}";
        for (fields, path) in [
            ("name: Bad, when: {errorRate: {percent: 5}}".to_owned(), "name"),
            ("name: a, when: {}".to_owned(), "when"),
            ("name: a, when: {errorRate: {percent: 5}, requestRate: {above: 1}}".to_owned(), "when"),
            ("name: a, when: {errorRate: {percent: 0}}".to_owned(), "when.errorRate.percent"),
            ("name: a, when: {errorRate: {percent: 101}}".to_owned(), "when.errorRate.percent"),
            ("name: a, when: {errorRate: {percent: 5, class: bored}}".to_owned(), "when.errorRate.class"),
            ("name: a, when: {requestRate: {}}".to_owned(), "when.requestRate"),
            ("name: a, when: {requestRate: {above: 1, below: 1}}".to_owned(), "when.requestRate"),
            ("name: a, when: {requestRate: {above: -1}}".to_owned(), "when.requestRate.above"),
            ("name: a, when: {requestRate: {below: 0}}".to_owned(), "when.requestRate.below"),
            ("name: a, when: {latency: {percentile: 100, above: 1s}}".to_owned(), "when.latency.percentile"),
            ("name: a, when: {latency: {percentile: 9, above: 61s}}".to_owned(), "when.latency.above"),
            (format!("name: a, when: {{{good}}}, window: 0s"), "window"),
            (format!("name: a, when: {{{good}}}, window: 2h"), "window"),
            (format!("name: a, when: {{{good}}}, for: 2h"), "for"),
            (format!("name: a, when: {{{good}}}, repeat: 1s"), "repeat"),
            (format!("name: a, when: {{{good}}}, service: users"), "service"),
            (format!("name: a, when: {{{good}}}, direction: Outbound, service: 'a b'"), "service"),
            (
                format!(
                    "name: a, when: {{{good}}}, webhook: {{url: 'ftp://a', secretRef: {{name: s, key: k}}}}"
                ),
                "webhook.url",
            ),
            (
                format!(
                    "name: a, when: {{{good}}}, webhook: {{url: 'http://u@a/', secretRef: {{name: s, key: k}}}}"
                ),
                "webhook.url",
            ),
            (
                format!(
                    "name: a, when: {{{good}}}, webhook: {{url: 'http://a', secretRef: {{name: '', key: k}}}}"
                ),
                "webhook.secretRef.name",
            ),
            (
                format!(
                    "name: a, when: {{{good}}}, webhook: {{url: 'http://a', secretRef: {{name: s, key: ''}}}}"
                ),
                "webhook.secretRef.key",
            ),
        ] {
            assert_eq!(
                violations(&format!("- {{{fields}}}")),
                [format!("spec.alerts[0].{path}")],
                "{fields}"
            );
        }
        let twice = format!("- {{name: a, when: {{{good}}}}}\n").repeat(2);
        assert_eq!(violations(&twice), ["spec.alerts[1].name"]);
        let many: String = (0..17).map(|n| format!("- {{name: a{n}, when: {{{good}}}}}\n")).collect();
        assert_eq!(violations(&many), ["spec.alerts"]);
    }
}
