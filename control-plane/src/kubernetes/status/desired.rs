//! What the status of an object has to say, from what became of it and what
//! its status says now. Pure: the present moment comes in as text.
//!
//! Never touches what others say: in a route's `parents`, the entries of other
//! controllers; in `conditions`, types that are not ours.

use heddle_api::crd::{GATEWAY_GROUP, ParentRef};
use serde_json::{Value, json};

use super::conditions::{self, Said};
use super::enforcement::Count;
use crate::model::{InForce, ParentStatus, PolicyStatus};

/// How our entries in a route's status are signed (GEP-1364).
pub(crate) const CONTROLLER: &str = "heddle.dev/control-plane";

/// An object's status, and what is needed to change it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Present {
    /// Counts the changes of its spec.
    pub(super) generation: i64,
    /// Differs after each write.
    pub(super) version: String,
    pub(super) status: Value,
    /// `spec.parentRefs` of a route, as written.
    pub(super) parent_refs: Vec<Value>,
}

/// What is said about one parent of a route.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AtParent {
    parent: Value,
    said: Vec<Said>,
    /// The generation that `Accepted` is about, if it is not the judged one.
    last_good: Option<i64>,
}

/// The types of conditions that are ours in Heddle's kinds.
const OURS: [&str; 3] = ["Accepted", "ResolvedRefs", "Enforced"];

/// Those that are ours at the parents of routes.
const OURS_AT_PARENTS: [&str; 3] = ["Accepted", "ResolvedRefs", "PartiallyInvalid"];

/// The most entries that `status.parents` may have (Gateway API, `RouteStatus`).
const MAX_PARENTS: usize = 32;

/// What is said about a policy.
pub(super) fn of_policy(status: &PolicyStatus, count: Option<Count>) -> Vec<Said> {
    let mut said = vec![
        accepted(
            &status.refusals.iter().map(|r| format!("{}: {}", r.path, r.message)).collect::<Vec<_>>(),
            status.in_force,
        ),
        match status.unresolved.as_slice() {
            [] => Said {
                kind: "ResolvedRefs",
                status: "True",
                reason: "ResolvedRefs",
                message: "everything that it refers to exists".into(),
            },
            missing => Said {
                kind: "ResolvedRefs",
                status: "False",
                reason: "TargetNotFound",
                message: format!("there is no {}", missing.join(", no ")),
            },
        },
    ];
    said.push(enforced(status.in_force, count));
    said
}

/// What is said about a policy that the source could not take over.
pub(super) fn of_unreadable(reasons: &[String], last_good: bool) -> Vec<Said> {
    let in_force = if last_good { InForce::LastGood } else { InForce::Nothing };
    let mut said = vec![accepted(reasons, in_force)];
    said.push(enforced(in_force, None));
    said
}

fn accepted(reasons: &[String], in_force: InForce) -> Said {
    if reasons.is_empty() {
        let message = "it is in force".into();
        return Said { kind: "Accepted", status: "True", reason: "Accepted", message };
    }
    let instead = match in_force {
        InForce::LastGood => "; the last version that was accepted stays in force",
        InForce::Current | InForce::Nothing => "",
    };
    let message = format!("{}{instead}", reasons.join("; "));
    Said { kind: "Accepted", status: "False", reason: "Invalid", message }
}

/// `count` is `None` while nothing was counted of the version that is in force.
fn enforced(in_force: InForce, count: Option<Count>) -> Said {
    let said = |status, reason, message: String| Said { kind: "Enforced", status, reason, message };
    match in_force {
        InForce::Nothing => said("False", "NotAccepted", "no version of it is in force".into()),
        InForce::LastGood => {
            said("False", "NotAccepted", "the last version that was accepted is in force instead".into())
        }
        InForce::Current => {
            let Some(Count { sidecars, acknowledged, partly, refused, behind, silent }) = count else {
                return said("Unknown", "Pending", "sidecars are being told".into());
            };
            let of = format!("of {sidecars} sidecars that use it");
            match () {
                () if refused > 0 => said("False", "Refused", format!("{refused} {of} refused it")),
                () if acknowledged + partly < sidecars => {
                    said("False", "Pending", format!("{} {of} acknowledged it", acknowledged + partly))
                }
                () if behind > 0 => said(
                    "False",
                    "Pending",
                    format!("replicas of the control plane that have not taken it over yet: {behind}"),
                ),
                // It may be all that they know, or be what they do not.
                () if partly > 0 => said(
                    "Unknown",
                    "VersionSkew",
                    format!(
                        "{partly} {of} are of another version, and do not know all of what it came with; the \
                         control plane's log says what"
                    ),
                ),
                () if silent > 0 => said(
                    "Unknown",
                    "ReplicaSilent",
                    format!(
                        "{acknowledged} {of} acknowledged it; replicas of the control plane that do not say \
                         how theirs stand: {silent}"
                    ),
                ),
                () if sidecars == 0 => said("Unknown", "NotInUse", "no connected sidecar uses it now".into()),
                () => said("True", "Enforced", format!("{acknowledged} {of} acknowledged it")),
            }
        }
    }
}

/// What is said about a route at each of its parents.
pub(super) fn of_route(parents: &[ParentStatus]) -> Vec<AtParent> {
    let at = |status: &ParentStatus| AtParent {
        parent: reference(&status.parent),
        said: status
            .conditions
            .iter()
            .map(|condition| Said {
                kind: condition.kind,
                status: conditions::truth(condition.status),
                reason: condition.reason,
                message: condition.message.clone(),
            })
            .collect(),
        last_good: status.last_good,
    };
    parents.iter().map(at).collect()
}

/// What is said about a route that the source could not take over.
pub(super) fn of_unreadable_route(
    parent_refs: &[Value],
    reasons: &[String],
    last_good: bool,
) -> Vec<AtParent> {
    let in_force = if last_good { InForce::LastGood } else { InForce::Nothing };
    let said = Said { reason: "UnsupportedValue", ..accepted(reasons, in_force) };
    at_services(parent_refs, &said)
}

/// What is said about a route of a kind that is not served.
pub(super) fn of_unserved_route(kind: &str, parent_refs: &[Value]) -> Vec<AtParent> {
    let said = Said {
        kind: "Accepted",
        status: "False",
        reason: "UnsupportedValue",
        message: format!(
            "routes of kind {kind} do nothing in this mesh: what they are about passes as without them"
        ),
    };
    at_services(parent_refs, &said)
}

fn at_services(parent_refs: &[Value], said: &Said) -> Vec<AtParent> {
    let service = |parent: &&Value| {
        parent["kind"] == "Service" && parent["group"].as_str().is_some_and(heddle_api::crd::is_core_group)
    };
    let at = |parent: &Value| AtParent { parent: parent.clone(), said: vec![said.clone()], last_good: None };
    parent_refs.iter().filter(service).map(at).collect()
}

fn reference(parent: &ParentRef) -> Value {
    let mut value = json!({"group": parent.group, "kind": parent.kind, "name": parent.name});
    if let Some(namespace) = &parent.namespace {
        value["namespace"] = namespace.as_str().into();
    }
    if let Some(section) = &parent.section_name {
        value["sectionName"] = section.as_str().into();
    }
    if let Some(port) = parent.port {
        value["port"] = port.get().into();
    }
    value
}

/// `status.parents` of a route in `namespace`, if it has to change.
pub(super) fn parents(
    wanted: &[AtParent],
    namespace: &str,
    generation: i64,
    present: &Present,
    now: &str,
) -> Option<Vec<Value>> {
    let entries = present.status["parents"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut rest: Vec<&AtParent> = wanted.iter().collect();
    let mut result = Vec::with_capacity(entries.len().max(wanted.len()));
    for entry in entries {
        if entry["controllerName"] != CONTROLLER {
            result.push(entry.clone());
            continue;
        }
        // One of ours that is wanted no more is left out.
        let place = rest.iter().position(|at| same_parent(&at.parent, &entry["parentRef"], namespace));
        if let Some(place) = place {
            let at = rest.remove(place);
            let old = entry["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
            let mut entry = entry.clone();
            entry["conditions"] = at.conditions(old, generation, now).into();
            result.push(entry);
        }
    }
    for at in rest {
        result.push(json!({
            "parentRef": at.parent,
            "controllerName": CONTROLLER,
            "conditions": at.conditions(&[], generation, now),
        }));
    }
    // Nothing at all could be written otherwise, and the entries of others are not ours to leave out.
    while result.len() > MAX_PARENTS
        && let Some(last) = result.iter().rposition(|entry| entry["controllerName"] == CONTROLLER)
    {
        result.remove(last);
    }
    (result != entries).then_some(result)
}

impl AtParent {
    /// What an entry of ours has to say that says `old` now: our conditions in their places, and
    /// those that others put there.
    fn conditions(&self, old: &[Value], generation: i64, now: &str) -> Vec<Value> {
        let mut new = conditions::all(&self.said, old, generation, now);
        for accepted in new.iter_mut().filter(|condition| condition["type"] == "Accepted") {
            accepted["observedGeneration"] = self.last_good.unwrap_or(generation).into();
        }
        let mut result = Vec::with_capacity(old.len().max(new.len()));
        for condition in old {
            match new.iter().position(|new| new["type"] == condition["type"]) {
                Some(place) => result.push(new.remove(place)),
                None if OURS_AT_PARENTS.iter().any(|kind| condition["type"] == *kind) => {}
                None => result.push(condition.clone()),
            }
        }
        result.extend(new);
        result
    }
}

fn same_parent(a: &Value, b: &Value, namespace: &str) -> bool {
    fn parts<'a>(
        parent: &'a Value,
        namespace: &'a str,
    ) -> (&'a str, &'a str, &'a str, &'a str, Option<&'a str>, Option<u64>) {
        let text = |key: &str| parent[key].as_str();
        (
            text("group").unwrap_or(GATEWAY_GROUP),
            text("kind").unwrap_or("Gateway"),
            text("namespace").unwrap_or(namespace),
            text("name").unwrap_or_default(),
            text("sectionName"),
            parent["port"].as_u64(),
        )
    }
    parts(a, namespace) == parts(b, namespace)
}

/// Our conditions among `status.conditions`, if they have to change.
pub(super) fn own_conditions(
    said: &[Said],
    generation: i64,
    present: &Present,
    now: &str,
) -> Option<Vec<Value>> {
    let old = present.status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let new = conditions::all(said, old, generation, now);
    let ours = old.iter().filter(|condition| OURS.iter().any(|kind| condition["type"] == *kind));
    let same = ours.clone().count() == new.len() && ours.clone().all(|condition| new.contains(condition));
    (!same).then_some(new)
}

#[cfg(test)]
mod tests;
