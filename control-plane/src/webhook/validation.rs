//! Policies and routes that are about to be taken: what no schema can say about
//! them, by the very code that reads them afterwards.

use heddle_api::crd::{JwtPolicySpec, Kind, Violation};
use serde_json::Value;

use super::review::{Request, Verdict};
use crate::compile;
use crate::source;

/// What to say about the object of `request`.
pub(super) fn validate(request: &Request) -> Verdict {
    let (new, old) = (&request.object, &request.old_object);
    // What is deleted is not judged, nor a status, which is no word of a person.
    if matches!(request.operation.as_str(), "DELETE" | "CONNECT") || !request.sub_resource.is_empty() {
        return Verdict::ALLOWED;
    }
    // What is on its way out, or was let in before, must not be kept from losing a finalizer or a label.
    if !new["metadata"]["deletionTimestamp"].is_null() || (old.is_object() && new["spec"] == old["spec"]) {
        return Verdict::ALLOWED;
    }
    let ours =
        |parent: &Value| parent["kind"] == "Service" && parent["group"].as_str().is_some_and(str::is_empty);
    let is_route = new["kind"].as_str().is_some_and(|kind| kind.ends_with("Route"));
    let parents = new["spec"]["parentRefs"].as_array().map_or(&[][..], Vec::as_slice);
    if is_route && !parents.iter().any(ours) {
        return Verdict::ALLOWED;
    }
    let mut object = new.clone();
    if object["metadata"]["namespace"].is_null() && !request.namespace.is_empty() {
        object["metadata"]["namespace"] = request.namespace.as_str().into();
    }
    let mut violations = source::violations(object);
    violations.extend(beyond_cluster(new));
    let texts = violations.into_iter().map(|violation| match violation.path.as_str() {
        "" => violation.message,
        path => format!("{path}: {}", violation.message),
    });
    let texts: Vec<String> = texts.collect();
    if texts.is_empty() {
        Verdict::ALLOWED
    } else if is_route && !parents.iter().all(ours) {
        // Others read this route, too, and may know what we do not; ours says the same in its status.
        Verdict::Allowed { patch: Vec::new(), warnings: texts }
    } else {
        Verdict::Refused(texts)
    }
}

/// What a folder's manifests may say and a cluster's may not: where a key set is that only the control plane's
/// own machine has.
fn beyond_cluster(object: &Value) -> Vec<Violation> {
    if object["kind"] != JwtPolicySpec::KIND {
        return Vec::new();
    }
    let providers = object["spec"]["providers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let violation = |(index, provider): (usize, &Value)| {
        let jwks = &provider["jwks"];
        let (field, why) = compile::beyond_cluster(jwks["file"].as_str(), jwks["url"].as_str())?;
        Some(Violation { path: format!("spec.providers[{index}].jwks.{field}"), message: why.into() })
    };
    providers.iter().enumerate().filter_map(violation).collect()
}
