//! What in a pod stands in the way of a sidecar that works.

use heddle_api::crd::Violation;
use serde_json::{Map, Value};

use super::pod::{Container, List, Pod, field, object, text};
use super::{
    ADMIN_PORT_NAME, IDENTITY, INIT, INJECTED, MESHED, OUR_DEFAULT_CONTAINER, SIDECAR, SIDECAR_ID,
    SIDECAR_PORTS,
};

/// Init containers of other meshes, by which they lead the pod's traffic to sidecars of their own, or
/// wait for a CNI plugin that does.
const OTHER_MESHES: [(&str, &str); 6] = [
    ("istio-init", "Istio"),
    ("istio-validation", "Istio"),
    ("linkerd-init", "Linkerd"),
    ("linkerd-network-validator", "Linkerd"),
    ("kuma-init", "Kuma"),
    ("consul-connect-inject-init", "Consul"),
];

/// Finds everything that stands against a sidecar in `pod`.
pub(super) fn find(pod: &Pod<'_>, native: bool, violations: &mut Vec<Violation>) {
    of_other_meshes(pod, violations);
    let mut wrong = |path: String, message: String| violations.push(Violation { path, message });
    if pod.annotation(INJECTED).is_some() {
        let message = format!("is set by injection, but there is no container {SIDECAR}: remove it");
        wrong(format!("metadata.annotations[{INJECTED}]"), message);
    }
    if pod.annotation(OUR_DEFAULT_CONTAINER).is_some() {
        wrong(
            format!("metadata.annotations[{OUR_DEFAULT_CONTAINER}]"),
            "is set by injection: remove it".into(),
        );
    }
    if pod.label(MESHED).is_some() {
        wrong(format!("metadata.labels[{MESHED}]"), "is set by injection: remove it".into());
    }
    for container in &pod.containers {
        if [INIT, SIDECAR].contains(&container.name) {
            let message = format!("{:?} is the name of what injection adds", container.name);
            wrong(format!("{}.name", container.path), message);
        }
        if !native && container.is_native_sidecar() {
            let message = "is a native sidecar, which needs the network before a classic sidecar gives it; \
                           let Heddle's be a native one, too";
            wrong(container.path.clone(), message.into());
        }
        if let Some(path) = runs_as_sidecar(pod, container) {
            let message = format!(
                "{SIDECAR_ID} is the sidecar's user, whose traffic is not intercepted: run {:?} as another",
                container.name
            );
            wrong(path, message);
        }
        for (index, port) in container.objects("ports") {
            let path = format!("{}.ports[{index}]", container.path);
            if let Some((number, role)) = taken_port(port) {
                let message = format!("{number} is the sidecar's own port ({role}): choose another");
                wrong(format!("{path}.containerPort"), message);
            }
            // A Service that means the application's port would find the sidecar's.
            if text(port, "name") == Some(ADMIN_PORT_NAME) {
                let message = format!("{ADMIN_PORT_NAME:?} is the name of a port that injection adds");
                wrong(format!("{path}.name"), message);
            }
        }
    }
    let volumes = field(pod.spec, "volumes").and_then(Value::as_array);
    for (index, volume) in volumes.into_iter().flatten().enumerate() {
        if volume["name"] == IDENTITY {
            let message = format!("{IDENTITY:?} is the name of what injection adds");
            wrong(format!("spec.volumes[{index}].name"), message);
        }
    }
}

/// Finds what leads the pod's traffic to sidecars of other meshes: each connection would be sent from
/// one to the other and back.
pub(super) fn of_other_meshes(pod: &Pod<'_>, violations: &mut Vec<Violation>) {
    for container in pod.containers.iter().filter(|container| container.list == List::InitContainers) {
        let Some((_, mesh)) = OTHER_MESHES.iter().find(|(name, _)| *name == container.name) else { continue };
        let message = format!(
            "leads the pod's traffic to a sidecar of {mesh}, and a pod can be in one mesh only: keep it out of \
             that one, or out of this by {}: disabled",
            super::INJECT
        );
        violations.push(Violation { path: container.path.clone(), message });
    }
}

/// Where it is written that the container runs as the sidecar's user, if so.
fn runs_as_sidecar(pod: &Pod<'_>, container: &Container<'_>) -> Option<String> {
    let user = |of: &Map<String, Value>| field(object(of, &["securityContext"])?, "runAsUser")?.as_u64();
    let (path, user) = match user(container.fields) {
        Some(user) => (container.path.as_str(), user),
        None => ("spec", user(pod.spec)?),
    };
    (user == u64::from(SIDECAR_ID)).then(|| format!("{path}.securityContext.runAsUser"))
}

/// The sidecar's port that `port` would also be.
fn taken_port(port: &Map<String, Value>) -> Option<(u16, &'static str)> {
    let number = field(port, "containerPort")?.as_u64()?;
    let (own, role) = SIDECAR_PORTS.into_iter().find(|(own, _)| u64::from(*own) == number)?;
    match text(port, "protocol") {
        None | Some("TCP") => Some((own, role)),
        Some("UDP") if role == "DNS" => Some((own, role)),
        _ => None,
    }
}
