//! `TelemetryPolicy`: what is recorded about requests, for the mesh, a
//! namespace, or workloads by label.

mod alert;
mod metric_labels;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(super) use self::alert::is_url;
pub use self::alert::{
    ALERT_REASONS, Alert, AlertCondition, ErrorRate, Latency, MAX_ALERTS, RequestDirection, RequestRate,
    SecretKeyRef, Webhook,
};
pub use self::metric_labels::{HeaderLabel, MetricLabel, MetricLabels, RESERVED_LABELS, StandardLabel};
use super::rule::Rule;
use super::{Attachment, GROUP, Kind, Metadata, Ratio, TARGET_COLUMNS, TargetRef, Violation};

/// Where policies for the whole mesh live, so that nobody sets them by the
/// right to write policies of another namespace.
pub const MESH_POLICY_NAMESPACE: &str = "heddle-system";

/// What is recorded about requests. Exactly one of `targetRefs` and `selector`
/// says for whom.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::new(
    "(has(self.targetRefs) && self.targetRefs.size() > 0) != has(self.selector)",
    "exactly one of targetRefs and selector is needed",
)]))]
pub struct TelemetryPolicySpec {
    /// The policy's own namespace (kind `Namespace`), or from `heddle-system`
    /// the whole mesh (group `heddle.dev`, kind `MeshConfig`, name `mesh`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-validations" = [Rule::new(
        "self.all(target, (target.group == '' && target.kind == 'Namespace') \
            || (target.group == 'heddle.dev' && target.kind == 'MeshConfig'))",
        "only a Namespace and the MeshConfig of heddle.dev can be targets",
    )]))]
    pub target_refs: Vec<TargetRef>,
    /// Workloads of the policy's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// Access logs. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
    /// The share of new traces that are sampled. Default: 1; a caller's decision is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Ratio>,
    /// The labels of request metrics, besides the standard ones and without some of those. A
    /// policy's replace all that less specific ones say; `{}` leaves the standard ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric_labels: Option<MetricLabels>,
    /// What about requests somebody wants to be told. The rules of all policies
    /// for a workload hold; of two with the same name the more specific policy's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_ALERTS), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub alerts: Vec<Alert>,
}

/// Workloads by their labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// Labels that a workload must carry, all of them.
    #[schemars(extend("minProperties" = 1))]
    pub match_labels: BTreeMap<String, String>,
}

impl Selector {
    /// Whether a policy says for whom it is, by either targets or a selector. `instead` says what to
    /// do in place of a selector without labels.
    pub(super) fn validate(
        selector: Option<&Self>,
        targets: &[TargetRef],
        instead: &str,
        violations: &mut Vec<Violation>,
    ) {
        match (selector, targets.is_empty()) {
            (None, true) => violations.push(Violation::new(
                "spec",
                "says for whom by neither targetRefs nor selector; one is needed",
            )),
            (Some(_), false) => violations.push(Violation::new(
                "spec.selector",
                "stands beside targetRefs; only one of them may be given",
            )),
            (Some(selector), true) if selector.match_labels.is_empty() => {
                violations.push(Violation::new("spec.selector.matchLabels", format!("is empty; {instead}")))
            }
            _ => {}
        }
    }
}

/// Access logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessLog {
    /// Whether each request is written as a line of JSON.
    pub enabled: bool,
}

impl Kind for TelemetryPolicySpec {
    const KIND: &'static str = "TelemetryPolicy";
    const PLURAL: &'static str = "telemetrypolicies";
    const NAMESPACED: bool = true;
    const SHORT_NAMES: &'static [&'static str] = &["telpol"];
    const ATTACHMENT: Option<Attachment> = Some(Attachment::Inherited);
    const COLUMNS: &'static [(&'static str, &'static str)] = TARGET_COLUMNS;

    fn validate(&self, metadata: &Metadata) -> Vec<Violation> {
        let mut violations = Vec::new();
        let for_all = "for all workloads target the Namespace";
        Selector::validate(self.selector.as_ref(), &self.target_refs, for_all, &mut violations);
        for (index, target) in self.target_refs.iter().enumerate() {
            let path = format!("spec.targetRefs[{index}]");
            let (group, kind) = (target.group.as_str(), target.kind.as_str());
            if !matches!((group, kind), ("", "Namespace") | (GROUP, "MeshConfig")) {
                violations.push(Violation::new(
                    format!("{path}.kind"),
                    format!("{kind:?} of group {group:?} is no target; Namespace and {GROUP} MeshConfig are"),
                ));
            }
            violations.extend(target.misplaced(&path, metadata));
        }
        if let Some(labels) = &self.metric_labels {
            labels.validate("spec.metricLabels", &mut violations);
        }
        violations.extend(alert::validate(&self.alerts));
        violations
    }
}
