//! What routes are told of themselves (Gateway API, `RouteStatus`).

use super::references::{Problem, References};
use super::{Bound, RouteKind, service_parents};
use crate::compile::services::Services;
use crate::compile::traffic::Attachments;
use crate::model::{Condition, InForce, ParentStatus, PolicyStatus};
use crate::source::Sourced;

pub(super) fn accepted(status: bool, reason: &'static str, message: String) -> Condition {
    Condition { kind: "Accepted", status, reason, message }
}

pub(super) fn resolved(problems: &[Problem]) -> Condition {
    let Some(first) = problems.first() else {
        let message = "all references lead to something".into();
        return Condition { kind: "ResolvedRefs", status: true, reason: "ResolvedRefs", message };
    };
    let mut messages: Vec<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
    messages.dedup();
    let message = messages.join("; ");
    Condition { kind: "ResolvedRefs", status: false, reason: first.reason, message }
}

/// Writes into `status` what became of `route`, its newest version, at its parents.
///
/// Where the newest version is refused and the last good one is in force, a parent
/// that both name has accepted the route in part: it fell back.
pub(super) fn report<T: RouteKind>(
    route: &Sourced<T>,
    services: &Services,
    bound: &Bound,
    status: &mut PolicyStatus,
) {
    let in_force = bound.outcomes.get(&(T::KIND, route.name.clone()));
    let mut references = References::new(&route.name.namespace, T::PROTOCOL, services);
    route.value.rules(&route.name, &mut references, &Attachments::default());
    let current = resolved(&references.into_problems());
    let refusals: Vec<String> =
        status.refusals.iter().map(|refusal| format!("{}: {}", refusal.path, refusal.message)).collect();
    let refusals = refusals.join("; ");
    let fell_back = status.in_force == InForce::LastGood && !all_rules_refused(&route.value, status);
    status.parents = service_parents(&route.value)
        .into_iter()
        .map(|parent| {
            let outcome = in_force.and_then(|outcome| {
                let (_, accepted) = outcome.parents.iter().find(|(other, _)| other == parent)?;
                Some((accepted.clone(), outcome.resolved.clone()))
            });
            let conditions = match (status.in_force, outcome) {
                (InForce::Current, Some((accepted, resolved))) => vec![accepted, resolved],
                (InForce::LastGood, Some((accepted, resolved))) if fell_back && accepted.status => {
                    let message = format!("Fall Back to the last version that was accepted: {refusals}");
                    let partially = Condition {
                        kind: "PartiallyInvalid",
                        status: true,
                        reason: "UnsupportedValue",
                        message,
                    };
                    vec![accepted, resolved, partially]
                }
                _ => vec![accepted(false, "UnsupportedValue", refusals.clone()), current.clone()],
            };
            ParentStatus { parent: parent.clone(), conditions }
        })
        .collect();
}

/// Whether no rule is without something that is refused.
fn all_rules_refused<T: RouteKind>(route: &T, status: &PolicyStatus) -> bool {
    (0..route.rule_names().len()).all(|index| {
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
