//! What routes are told of themselves (Gateway API, `RouteStatus`).

use std::collections::BTreeSet;

use heddle_api::crd::{ParentRef, Route, RouteSpec};

use super::references::{Problem, References};
use super::{Bound, MeshSpec, Verdict, service_parents};
use crate::compile::services::Services;
use crate::compile::traffic::Attachments;
use crate::model::{Condition, InForce, ParentStatus, PolicyStatus};
use crate::source::Sourced;

pub(super) fn accepted(status: bool, reason: &'static str, message: String) -> Condition {
    Condition { kind: "Accepted", status, reason, message }
}

/// Whether the route is accepted at a parent that it may attach to: one port is enough.
pub(super) fn at_ports(verdict: &Verdict) -> Condition {
    let lost: Vec<&str> = verdict.lost.iter().chain(&verdict.no_room).map(String::as_str).collect();
    let lost = lost.join("; ");
    match (verdict.won, verdict.lost.is_empty()) {
        (true, true) => accepted(true, "Accepted", "the route is in force".into()),
        (true, false) => accepted(true, "Accepted", format!("the route is in force at other ports: {lost}")),
        (false, _) if verdict.lost.is_empty() && !verdict.no_room.is_empty() => {
            accepted(false, "UnsupportedValue", lost)
        }
        // Not a constant of the Gateway API as yet, but its word (GEP-1294).
        (false, _) => accepted(false, "Conflicted", lost),
    }
}

pub(super) fn resolved(problems: &[Problem]) -> Condition {
    let Some(first) = problems.first() else {
        let message = "all references lead to something".into();
        return Condition { kind: "ResolvedRefs", status: true, reason: "ResolvedRefs", message };
    };
    let mut told = BTreeSet::new();
    let messages = problems.iter().map(|problem| problem.message.as_str());
    let messages: Vec<&str> = messages.filter(|message| told.insert(*message)).collect();
    let message = messages.join("; ");
    Condition { kind: "ResolvedRefs", status: false, reason: first.reason, message }
}

/// Writes into `status` what became of `route`, its newest version, at its parents.
///
/// Where the newest version is refused and the last good one is in force, a parent
/// that both name has accepted the route in part: it fell back.
pub(super) fn report<S: MeshSpec>(
    route: &Sourced<Route<S>>,
    services: &Services,
    bound: &Bound,
    status: &mut PolicyStatus,
) {
    let spec = &route.value.spec;
    let in_force = bound.outcomes.get(&(S::KIND, route.name.clone()));
    let refusals: Vec<String> =
        status.refusals.iter().map(|refusal| format!("{}: {}", refusal.path, refusal.message)).collect();
    let refusals = refusals.join("; ");
    let fell_back = status.in_force == InForce::LastGood && !all_rules_refused(spec, status);
    // What is not in force was not compiled either.
    let judged = (status.in_force != InForce::Current).then(|| {
        let mut references = References::new(&route.name.namespace, S::PROTOCOL, services);
        spec.rules(&route.name, &mut references, &Attachments::default());
        resolved(&references.into_problems())
    });
    let at = |parent: &ParentRef| {
        let outcome = in_force.and_then(|outcome| {
            let (_, accepted) = outcome.parents.iter().find(|(other, _)| other == parent)?;
            Some((accepted.clone(), outcome.resolved.clone(), outcome.generation))
        });
        let (conditions, last_good) = match (&judged, outcome) {
            (None, Some((accepted, resolved, _))) => (vec![accepted, resolved], None),
            (Some(_), Some((accepted, resolved, generation))) if fell_back && accepted.status => {
                let message = format!("Fall Back to the last version that was accepted: {refusals}");
                let partially =
                    Condition { kind: "PartiallyInvalid", status: true, reason: "UnsupportedValue", message };
                (vec![accepted, resolved, partially], Some(generation))
            }
            (_, outcome) => {
                let instead = match outcome {
                    Some((accepted, ..)) if accepted.status => {
                        "; the last version that was accepted stays in force"
                    }
                    _ => "",
                };
                let refused = accepted(false, "UnsupportedValue", format!("{refusals}{instead}"));
                (std::iter::once(refused).chain(judged.clone()).collect(), None)
            }
        };
        ParentStatus { parent: parent.clone(), conditions, last_good }
    };
    status.parents = service_parents(spec).into_iter().map(at).collect();
}

/// Whether no rule is without something that is refused.
fn all_rules_refused(spec: &impl RouteSpec, status: &PolicyStatus) -> bool {
    (0..spec.rule_names().count()).all(|index| {
        let rule = format!("spec.rules[{index}]");
        status.refusals.iter().any(|refusal| {
            refusal
                .path
                .strip_prefix(rule.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
                || !refusal.path.starts_with("spec.rules[")
        })
    })
}
