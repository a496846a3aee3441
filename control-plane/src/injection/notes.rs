//! What may surprise whoever runs an injected pod, one sentence each.

use serde_json::{Map, Value};

use super::options::{Options, PREFIX};
use super::pod::{Container, List, Pod, field, object, text};
use super::quantity::nanos;

/// What there is to say about `pod` with this sidecar.
pub(super) fn of(pod: &Pod<'_>, options: &Options, sidecar: &Value) -> Vec<String> {
    let mut notes = Vec::new();
    let searches =
        || object(pod.spec, &["dnsConfig"]).and_then(|config| field(config, "searches")?.as_array());
    match text(pod.spec, "dnsPolicy") {
        Some("Default") => notes.push(
            "dnsPolicy: Default: the sidecar has to find the control plane by the node's name servers".into(),
        ),
        Some("None") if searches().is_none_or(Vec::is_empty) => notes.push(
            "dnsPolicy: None without dnsConfig.searches: the sidecar has to find the control plane by a name \
             that ends in .svc"
                .into(),
        ),
        _ => {}
    }
    let skipped = |port| options.skip_inbound_ports.as_ref().is_some_and(|ports| ports.contains(port));
    for container in &pod.containers {
        for (_, port) in container.objects("ports") {
            let number = field(port, "containerPort").and_then(Value::as_u64);
            let Some(number) = number.and_then(|number| u16::try_from(number).ok()) else { continue };
            if field(port, "hostPort").is_some() && !skipped(number) {
                notes.push(format!(
                    "hostPort of container {}: clients outside the mesh are refused under strict mTLS, unless \
                     {PREFIX}skip-inbound-ports has {number}",
                    container.name
                ));
            }
        }
    }
    if loses_guarantee(pod, sidecar) {
        notes.push(format!(
            "the pod's QoS class is no more Guaranteed: {PREFIX}sidecar-cpu-request, -cpu-limit, \
             -memory-request and -memory-limit keep it, if requests and limits are the same"
        ));
    }
    notes
}

/// Whether the pod is of class `Guaranteed` without `sidecar` and of another one with it
/// (`pkg/apis/core/v1/helper/qos` of Kubernetes).
fn loses_guarantee(pod: &Pod<'_>, sidecar: &Value) -> bool {
    let own = |container: &&Container<'_>| container.list != List::EphemeralContainers;
    object(pod.spec, &["resources"]).is_none()
        && pod.containers.iter().filter(own).all(|container| is_guaranteed(container.fields))
        && !sidecar.as_object().is_some_and(is_guaranteed)
}

/// Whether a container is limited in CPU and memory to what it requests. What it does not request, it
/// requests by its limit.
fn is_guaranteed(container: &Map<String, Value>) -> bool {
    // An amount may be written as a number.
    let amount = |kind: &str, what: &str| match object(container, &["resources", kind])?.get(what)? {
        Value::String(amount) => nanos(amount),
        Value::Number(amount) => nanos(&amount.to_string()),
        _ => None,
    };
    ["cpu", "memory"].into_iter().all(|what| {
        let limit = amount("limits", what);
        limit.is_some() && amount("requests", what).is_none_or(|request| Some(request) == limit)
    })
}
