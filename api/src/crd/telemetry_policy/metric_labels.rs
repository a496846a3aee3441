//! Metric labels: what a policy adds to the labels of request metrics, and takes away.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::RequestDirection;
use crate::crd::rule::Rule;
use crate::crd::{HeaderName, LabelBound, Violation};

/// Labels that one policy may add: series multiply with each.
const MAX_LABELS: usize = 8;

/// Characters of a label's name: what fits the table of a dashboard.
const MAX_NAME: usize = 64;

/// Bytes of a value: a UUID, a SPIFFE ID's end, a host. Longer ones are texts.
const MAX_VALUE: usize = 128;

/// Names that added labels cannot have: the standard labels of request metrics, those that
/// Prometheus gives a meaning in histograms and summaries, and those that its scrapes set.
pub const RESERVED_LABELS: &[&str] = &[
    "direction",
    "service",
    "namespace",
    "route",
    "code",
    "grpc_status",
    "error",
    "peer",
    "tls",
    "le",
    "quantile",
    "job",
    "instance",
];

/// Headers whose values open doors. Metrics are for more eyes than they.
const SECRET_HEADERS: [&str; 3] = ["authorization", "proxy-authorization", "cookie"];

/// The labels of `heddle_requests_total` and `heddle_request_duration_seconds`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MetricLabels {
    /// Labels besides the standard ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_LABELS), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub add: Vec<MetricLabel>,
    /// Standard labels whose values are left empty, which to Prometheus is as if they were not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2), extend("x-kubernetes-list-type" = "set"))]
    pub remove: Vec<StandardLabel>,
}

/// A standard label that can be left out: one that neither alert rules nor `heddle stat` read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum StandardLabel {
    /// The other side's identity.
    Peer,
    /// The rule of a route that the request fell to.
    Route,
}

/// A label and where its values come from; exactly one of `header`, `route` and `value`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::exactly_one(&["header", "route", "value"]),
    Rule::new(
        format!("!(self.name in {RESERVED_LABELS:?}) && !self.name.startsWith('__')"),
        "is a standard label's or reserved by Prometheus",
    )
    .at("name"),
]))]
pub struct MetricLabel {
    /// Its name, as Prometheus wants it; not that of a standard label, nor beginning with `__`.
    #[schemars(length(min = 1, max = MAX_NAME), regex(pattern = "^[a-zA-Z_][a-zA-Z0-9_]*$"))]
    pub name: String,
    /// A request header, in gRPC an entry of the metadata.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderLabel>,
    /// The rule of a route that the request fell to, as in the standard label `route`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = [true]))]
    pub route: Option<bool>,
    /// Always this.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_VALUE))]
    pub value: Option<String>,
    /// The side of requests that get it. Default: both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<RequestDirection>,
}

/// Values from a request header. Those beyond the bound are counted together as `other`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::at_most_one("values", "maxValues"),
    Rule::new(
        "!self.name.matches('(?i)^(authorization|proxy-authorization|cookie|heddle-.*)$')",
        "holds secrets, or is the mesh's own",
    )
    .at("name"),
]))]
pub struct HeaderLabel {
    /// The header, of which the first value counts.
    #[schemars(length(max = 256))]
    pub name: HeaderName,
    /// What requests without it have. Default: `unknown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_VALUE), extend("x-default" = "unknown"))]
    pub absent: Option<String>,
    /// How many values a sidecar takes in, 1 to 200, those that come first. Default: 50.
    // The API server is not to write it down: beside `values` it would be wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_values: Option<LabelBound>,
    /// The only values that are taken in, in place of a bound: clients cannot make up others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200), inner(length(min = 1, max = MAX_VALUE)), extend("x-kubernetes-list-type" = "set"))]
    pub values: Vec<String>,
}

impl MetricLabels {
    pub(super) fn validate(&self, path: &str, violations: &mut Vec<Violation>) {
        if self.add.len() > MAX_LABELS {
            let message = format!("are {}; at most {MAX_LABELS} are accepted", self.add.len());
            violations.push(Violation::new(format!("{path}.add"), message));
        }
        for (index, label) in self.add.iter().enumerate() {
            let path = format!("{path}.add[{index}]");
            if self.add[..index].iter().any(|other| other.name == label.name) {
                let message = format!("{:?} is the name of an earlier label", label.name);
                violations.push(Violation::new(format!("{path}.name"), message));
            }
            label.validate(&path, violations);
        }
        for (index, label) in self.remove.iter().enumerate() {
            if self.remove[..index].contains(label) {
                violations.push(Violation::new(format!("{path}.remove[{index}]"), "is named twice"));
            }
        }
    }
}

impl MetricLabel {
    fn validate(&self, path: &str, violations: &mut Vec<Violation>) {
        let mut refuse = |field: &str, message: String| {
            violations.push(Violation::new(format!("{path}{field}"), message));
        };
        if let Some(message) = wrong_name(&self.name) {
            refuse(".name", message);
        }
        let given = [self.header.is_some(), self.route.is_some(), self.value.is_some()];
        if given.into_iter().filter(|given| *given).count() != 1 {
            return refuse("", "needs exactly one of header, route and value".into());
        }
        if self.route == Some(false) {
            refuse(".route", "has to be true; leave the label out instead".into());
        }
        if let Some(message) = self.value.as_deref().and_then(wrong_value) {
            refuse(".value", message);
        }
        let Some(header) = &self.header else { return };
        let name = header.name.as_str();
        if SECRET_HEADERS.contains(&name) {
            refuse(".header.name", format!("{name} holds secrets, which are not for metrics"));
        }
        if name.starts_with("heddle-") {
            refuse(".header.name", format!("{name} is the mesh's own"));
        }
        if let Some(message) = header.absent.as_deref().and_then(wrong_value) {
            refuse(".header.absent", message);
        }
        if header.max_values.is_some() && !header.values.is_empty() {
            refuse(".header", "only one of values and maxValues may be given".into());
        }
        if header.values.len() > 200 {
            refuse(".header.values", format!("are {}; at most 200 are accepted", header.values.len()));
        }
        for (index, value) in header.values.iter().enumerate() {
            if let Some(message) = wrong_value(value) {
                refuse(&format!(".header.values[{index}]"), message);
            }
            if header.values[..index].contains(value) {
                refuse(&format!(".header.values[{index}]"), "is named twice".into());
            }
        }
    }
}

/// Why it cannot be an added label's name (Prometheus' data model).
fn wrong_name(name: &str) -> Option<String> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if name.is_empty() || name.len() > MAX_NAME {
        Some(format!("has to have between 1 and {MAX_NAME} characters"))
    } else if !name.bytes().all(inner) || name.as_bytes()[0].is_ascii_digit() {
        Some(format!("{name:?} is no label name: letters, digits and underscores, no digit first"))
    } else if name.starts_with("__") || RESERVED_LABELS.contains(&name) {
        Some(format!("{name:?} is a standard label's or reserved by Prometheus"))
    } else {
        None
    }
}

/// Why it cannot be a label's value here.
fn wrong_value(value: &str) -> Option<String> {
    if value.is_empty() || value.len() > MAX_VALUE {
        Some(format!("has to have between 1 and {MAX_VALUE} bytes"))
    } else if value.chars().any(char::is_control) {
        Some(format!("{value:?} has control characters"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(yaml: &str) -> Vec<String> {
        let labels: MetricLabels = serde_saphyr::from_str(yaml).unwrap();
        let mut violations = Vec::new();
        labels.validate("labels", &mut violations);
        violations.into_iter().map(|violation| violation.path).collect()
    }

    #[test]
    fn sound_labels_are_accepted() {
        let sound = "
add:
- {name: tenant, header: {name: X-Tenant, absent: nobody, maxValues: 200}}
- {name: plan, header: {name: x-plan, values: [free, 'paid by the year']}, direction: Inbound}
- {name: http_route, route: true, direction: Outbound}
- {name: _cell2, value: eu-1}
remove: [peer, route]
";
        assert_eq!(violations(sound), [] as [&str; 0]);
        assert_eq!(violations("{}"), [] as [&str; 0]);
    }

    #[test]
    fn each_way_to_write_a_label_wrong_is_refused_with_its_path() {
        let long = "x".repeat(129);
        for (label, path) in [
            ("name: a".to_owned(), ""),
            ("name: a, value: b, route: true".to_owned(), ""),
            ("name: a, route: false".to_owned(), ".route"),
            ("name: a, value: ''".to_owned(), ".value"),
            (format!("name: a, value: {long}"), ".value"),
            ("name: a, value: \"b\\nc\"".to_owned(), ".value"),
            ("name: '', value: b".to_owned(), ".name"),
            ("name: 1a, value: b".to_owned(), ".name"),
            ("name: a-b, value: b".to_owned(), ".name"),
            ("name: __a, value: b".to_owned(), ".name"),
            (format!("name: {long}, value: b"), ".name"),
            ("name: a, header: {name: Authorization}".to_owned(), ".header.name"),
            ("name: a, header: {name: cookie}".to_owned(), ".header.name"),
            ("name: a, header: {name: heddle-route}".to_owned(), ".header.name"),
            ("name: a, header: {name: b, absent: ''}".to_owned(), ".header.absent"),
            ("name: a, header: {name: b, maxValues: 2, values: [c]}".to_owned(), ".header"),
            ("name: a, header: {name: b, values: [c, c]}".to_owned(), ".header.values[1]"),
            ("name: a, header: {name: b, values: ['']}".to_owned(), ".header.values[0]"),
        ] {
            assert_eq!(
                violations(&format!("add: [{{{label}}}]")),
                [format!("labels.add[0]{path}")],
                "{label}"
            );
        }
        for name in RESERVED_LABELS {
            assert_eq!(violations(&format!("add: [{{name: {name}, value: b}}]")), ["labels.add[0].name"]);
        }
        assert_eq!(violations("add: [{name: a, value: b}, {name: a, value: c}]"), ["labels.add[1].name"]);
        let many: String = (0..9).map(|n| format!("- {{name: a{n}, value: b}}\n")).collect();
        assert_eq!(violations(&format!("add:\n{many}")), ["labels.add"]);
        assert_eq!(violations("remove: [peer, peer]"), ["labels.remove[1]"]);
    }

    #[test]
    fn only_labels_that_nothing_reads_can_be_removed() {
        for wrong in ["remove: [service]", "remove: [code]", "remove: [tenant]"] {
            let error = serde_saphyr::from_str::<MetricLabels>(wrong).unwrap_err().to_string();
            assert!(error.contains("peer") && error.contains("route"), "{error}");
        }
        assert!(
            serde_saphyr::from_str::<MetricLabels>("add: [{name: a, header: {name: b, maxValues: 201}}]")
                .is_err()
        );
    }
}
