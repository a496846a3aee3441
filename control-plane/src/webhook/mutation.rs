//! Pods that are about to be made.
//!
//! Which are asked about is chosen by the webhook's configuration, from the
//! labels of namespaces and pods. A pod that says no is left alone nevertheless,
//! and one that cannot be meshed as it asks is refused: running it outside
//! the mesh is what nobody would notice.

use serde_json::{Map, Value, json};

use super::review::{Request, Verdict};
use crate::injection::{Candidate, Injector, Outcome, Skip, workload};

/// Namespaces whose pods nothing may keep from starting, however they are labelled.
const NEVER: [&str; 4] = ["heddle-system", "kube-node-lease", "kube-public", "kube-system"];

/// What to do with the pod of `request`.
pub(super) fn inject(request: &Request, injector: &Injector) -> Verdict {
    if NEVER.contains(&request.namespace.as_str()) {
        return Verdict::ALLOWED;
    }
    let pod = &request.object;
    match injector.inject(Candidate { pod, owner: workload::owner(pod), wanted: true }) {
        Ok(Outcome::Injected { pod: injected, notes }) => {
            Verdict::Allowed { patch: patch(pod, &injected), warnings: notes }
        }
        Ok(Outcome::Skipped(skip)) => {
            let warnings = match skip {
                Skip::HostNetwork | Skip::Windows | Skip::Ends => {
                    vec![format!("the pod is not in the mesh: {skip}")]
                }
                Skip::NotWanted | Skip::Disabled | Skip::AlreadyInjected(_) | Skip::ControlPlane => {
                    Vec::new()
                }
            };
            Verdict::Allowed { patch: Vec::new(), warnings }
        }
        Err(violations) => Verdict::Refused(
            violations
                .into_iter()
                .map(|violation| format!("{}: {}", violation.path, violation.message))
                .collect(),
        ),
    }
}

/// What makes `after` of `before`: each field of `metadata` and `spec` that differs, as a whole. "add"
/// also replaces (RFC 6902, section 4.1).
fn patch(before: &Value, after: &Value) -> Vec<Value> {
    let none = Map::new();
    let mut patch = Vec::new();
    for part in ["metadata", "spec"] {
        if !before[part].is_object() {
            patch.push(json!({"op": "add", "path": format!("/{part}"), "value": after[part]}));
            continue;
        }
        for (field, value) in after[part].as_object().unwrap_or(&none) {
            if before[part].get(field) != Some(value) {
                patch.push(json!({"op": "add", "path": format!("/{part}/{field}"), "value": value}));
            }
        }
    }
    patch
}
