//! What is recorded about a workload's requests.

mod alerts;
mod metric_labels;

use std::collections::BTreeMap;
use std::sync::Arc;

use heddle_api::crd::{Object, TelemetryPolicy, TelemetryPolicySpec};
use heddle_api::discovery::v1;

pub(super) use self::alerts::missing_keys;
pub(crate) use self::alerts::{AlertRules, Rule, Target};
use super::policies::{Policies, oldest_first};
use crate::model::Registration;
use crate::source::{Objects, Sourced};

/// New traces are sampled unless someone says otherwise, as OpenTelemetry's
/// default sampler (`parentbased_always_on`) does; without an exporter they cost nothing.
const DEFAULT_SAMPLING: f64 = 1.0;

/// The telemetry policies in force, the most specific first, then the oldest.
#[derive(Debug, Default, Clone)]
pub(crate) struct Telemetry(Vec<(Scope, Arc<Sourced<TelemetryPolicy>>)>);

/// Whom a policy is for; the more specific comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Workloads,
    Namespace,
    Mesh,
}

impl Telemetry {
    pub(super) fn new(policies: &Policies<TelemetryPolicySpec>) -> Self {
        let mut scoped: Vec<_> = oldest_first(policies)
            .into_iter()
            .flat_map(|policy| scopes(&policy.value).into_iter().map(|scope| (scope, policy.clone())))
            .collect();
        scoped.sort_by_key(|(scope, _)| *scope);
        Self(scoped)
    }

    /// What the control plane has to know of the alert rules in force.
    pub(super) fn alert_rules(&self, objects: &Objects) -> AlertRules {
        let policies = self.0.iter().map(|(_, policy)| policy);
        let rules = policies.flat_map(|policy| {
            let rule = |alert| Arc::new(alerts::rule(&policy.name, alert, objects));
            policy.value.spec.alerts.iter().map(move |alert| (alerts::id(&policy.name, alert), rule(alert)))
        });
        rules.collect()
    }

    /// What applies to one workload.
    pub(crate) fn of(&self, workload: &Registration) -> v1::Telemetry {
        let applying: Vec<_> = self
            .0
            .iter()
            .filter(|(scope, policy)| applies(*scope, policy, workload))
            .map(|(_, policy)| policy)
            .collect();
        // By name: the most specific policy that has it.
        let mut alerts: BTreeMap<&str, v1::Alert> = BTreeMap::new();
        for policy in &applying {
            for alert in &policy.value.spec.alerts {
                alerts.entry(&alert.name).or_insert_with(|| alerts::wire(&policy.name, alert));
            }
        }
        let applying: Vec<_> = applying.iter().map(|policy| &policy.value.spec).collect();
        let access_log = applying.iter().find_map(|spec| spec.access_log);
        let sampling = applying.iter().find_map(|spec| spec.sampling);
        // As a whole: two lists of labels together could be more than a policy may ask for.
        let metric_labels = applying.iter().find_map(|spec| spec.metric_labels.as_ref());
        v1::Telemetry {
            access_log: access_log.is_some_and(|log| log.enabled),
            sampling: sampling.map_or(DEFAULT_SAMPLING, |share| share.get()),
            alerts: alerts.into_values().collect(),
            metric_labels: metric_labels.and_then(metric_labels::wire),
        }
    }
}

fn scopes(policy: &Object<TelemetryPolicySpec>) -> Vec<Scope> {
    let targets = policy.spec.target_refs.iter().map(|target| match target.kind.as_str() {
        "Namespace" => Scope::Namespace,
        // Validation lets no other kind through.
        _ => Scope::Mesh,
    });
    targets.chain(policy.spec.selector.iter().map(|_| Scope::Workloads)).collect()
}

fn applies(scope: Scope, policy: &Sourced<TelemetryPolicy>, workload: &Registration) -> bool {
    let same_namespace = policy.name.namespace == workload.service.namespace();
    match scope {
        Scope::Mesh => true,
        Scope::Namespace => same_namespace,
        Scope::Workloads => {
            let selector = policy.value.spec.selector.as_ref();
            same_namespace
                && selector.is_some_and(|selector| {
                    selector.match_labels.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
                })
        }
    }
}
