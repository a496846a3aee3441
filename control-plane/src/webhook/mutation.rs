//! Pods that are about to be made.
//!
//! Which are asked about is chosen by the webhook's configuration, from the
//! labels of namespaces and pods. A pod that says no is left alone nevertheless,
//! and one that cannot be meshed as it asks is refused: running it outside
//! the mesh is what nobody would notice.

use serde_json::{Map, Value, json};

use super::review::{Request, Rules, Verdict};
use crate::injection::{Candidate, Outcome, Skip, workload};

/// Namespaces whose pods nothing may keep from starting, however they are labelled; the control plane's own is
/// one more.
const NEVER: [&str; 3] = ["kube-node-lease", "kube-public", "kube-system"];

/// What to do with the pod of `request`.
pub(super) fn inject(request: &Request, rules: &Rules) -> Verdict {
    let pod = &request.object;
    // Containers of a pod that runs cannot be changed, and nothing but a pod has any.
    let is_new_pod = matches!(request.operation.as_str(), "CREATE" | "")
        && request.sub_resource.is_empty()
        && pod["kind"].as_str().is_none_or(|kind| kind == "Pod");
    let namespace = request.namespace.as_str();
    if !is_new_pod || NEVER.contains(&namespace) || namespace == rules.namespace {
        return Verdict::ALLOWED;
    }
    match rules.injector.inject(Candidate {
        pod,
        owner: workload::owner(pod),
        wanted: true,
        nonce: &request.uid,
    }) {
        Ok(Outcome::Injected { pod: injected, notes }) => {
            Verdict::Allowed { patch: patch(pod, &injected), warnings: notes }
        }
        Ok(Outcome::Skipped(skip)) => {
            let warnings = match skip {
                Skip::HostNetwork | Skip::Windows | Skip::Ends => {
                    vec![format!("the pod is not in the mesh: {skip}")]
                }
                Skip::NotWanted
                | Skip::Disabled
                | Skip::AlreadyInjected(_)
                | Skip::ControlPlane
                | Skip::Static => Vec::new(),
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
