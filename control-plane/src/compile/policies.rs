//! Which policies are accepted, and which version of each is in force.

use std::collections::BTreeMap;
use std::sync::Arc;

use heddle_api::crd::{Kind, MeshConfigSpec, Object, TelemetryPolicySpec, TrafficPolicySpec, Violation};

use crate::model::{InForce, PolicyStatus, Refusal};
use crate::source::{ObjectName, Sourced};

/// Policies of one kind by name.
pub(super) type Policies<S> = BTreeMap<ObjectName, Arc<Sourced<Object<S>>>>;

/// The version of each policy that is in force.
#[derive(Debug, Default, Clone)]
pub(crate) struct Accepted {
    pub(super) traffic: Policies<TrafficPolicySpec>,
    pub(super) telemetry: Policies<TelemetryPolicySpec>,
    pub(super) mesh: Policies<MeshConfigSpec>,
}

/// The versions in force of `objects`, of which `refuse` says what is wrong
/// and `unresolved` which targets do not exist.
pub(super) fn judge<S: Kind>(
    objects: &Policies<S>,
    previous: &Policies<S>,
    statuses: &mut Vec<PolicyStatus>,
    refuse: impl Fn(&Object<S>) -> Vec<Violation>,
    unresolved: impl Fn(&Sourced<Object<S>>) -> Vec<String>,
) -> Policies<S> {
    let mut accepted = Policies::new();
    for (name, object) in objects {
        let refusals: Vec<Refusal> = refuse(&object.value)
            .into_iter()
            .map(|violation| Refusal {
                location: Some(object.origin.locate(&violation.path)),
                path: violation.path,
                message: violation.message,
            })
            .collect();
        let (in_force, version) = match (refusals.is_empty(), previous.get(name)) {
            (true, _) => (InForce::Current, Some(object)),
            (false, Some(last_good)) => (InForce::LastGood, Some(last_good)),
            (false, None) => (InForce::Nothing, None),
        };
        if let Some(version) = version {
            accepted.insert(name.clone(), version.clone());
        }
        statuses.push(PolicyStatus {
            kind: S::KIND,
            object: name.clone(),
            generation: object.value.metadata.generation,
            refusals,
            in_force,
            unresolved: unresolved(object),
        });
    }
    accepted
}

/// The policies from the oldest to the youngest, as ties are decided: by
/// creation, then by namespace and name. Files know no creation; what comes
/// from them counts as older than what does.
pub(super) fn oldest_first<S>(policies: &Policies<S>) -> Vec<&Arc<Sourced<Object<S>>>> {
    let mut sorted: Vec<_> = policies.values().collect();
    sorted.sort_by(|a, b| {
        let age = |policy: &Sourced<Object<S>>| policy.value.metadata.creation_timestamp.clone();
        age(a).cmp(&age(b)).then_with(|| a.name.cmp(&b.name))
    });
    sorted
}
