//! Whether the workloads of a cluster are in the mesh as they should be, and
//! which policies and routes are refused.

use std::collections::BTreeSet;

use heddle_api::version::{Skew, Version};
use heddle_sidecar::check::Finding;
use serde_json::Value;

use super::{some_of, unknown};
use crate::cluster::{
    Cluster, DEPLOYMENT, Failure, annotation, counted, items, label, named, version_of_image,
};
use crate::upgrade::installed;

pub(super) async fn look(cluster: &Cluster) -> Vec<Finding> {
    let namespaces = cluster.list_metadata("/api/v1/namespaces").await;
    let pods = cluster.list_metadata(&format!("/api/v1/pods?fieldSelector={ALIVE}")).await;
    let mut findings = Vec::new();
    match (&namespaces, &pods) {
        (Ok(namespaces), Ok(pods)) => {
            findings.push(injected(namespaces, pods));
            let version = cluster.find(DEPLOYMENT).await.ok().flatten();
            let version = version.and_then(|deployment| installed(&deployment).ok());
            let meshed =
                format!("/api/v1/pods?fieldSelector={ALIVE}&labelSelector=heddle.dev%2Fmeshed%3Dtrue");
            findings.push(match cluster.list(&meshed).await {
                Ok(meshed) => skew(&meshed, version.unwrap_or_else(Version::own)),
                Err(failure) => unknown(SKEW, &failure),
            });
            let bundles = "/api/v1/configmaps?fieldSelector=metadata.name%3Dheddle-trust-bundle";
            findings.push(match cluster.list_metadata(bundles).await {
                Ok(bundles) => trust(namespaces, pods, &bundles),
                Err(failure) => unknown(TRUST, &failure),
            });
        }
        (Err(failure), _) | (_, Err(failure)) => findings.push(unknown(SIDECARS, failure)),
    }
    findings.extend(refusals(cluster).await);
    findings
}

/// Pods that have not ended: `status.phase!=Succeeded,status.phase!=Failed`.
const ALIVE: &str = "status.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed";

const INJECT: &str = "heddle.dev/inject";
const MESHED: &str = "heddle.dev/meshed";
const INJECTED: &str = "heddle.dev/injected";

fn is_meshed(pod: &&Value) -> bool {
    label(pod, MESHED) == Some("true")
}

fn namespace_of(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or_default()
}

/// The namespaces whose pods are asked for.
fn asking(namespaces: &[Value]) -> BTreeSet<&str> {
    let asking = namespaces.iter().filter(|namespace| label(namespace, INJECT) == Some("enabled"));
    asking.filter_map(|namespace| namespace["metadata"]["name"].as_str()).collect()
}

const SIDECARS: &str = "sidecars";

/// Pods that should have a sidecar and have none: they are older than the label.
fn injected(namespaces: &[Value], pods: &[Value]) -> Finding {
    let asking = asking(namespaces);
    let wanted = |pod: &&Value| {
        let own = label(pod, INJECT).or_else(|| annotation(pod, INJECT));
        match own {
            Some(own) => own == "enabled",
            None => asking.contains(namespace_of(pod)),
        }
    };
    let without: Vec<String> = pods.iter().filter(wanted).filter(|pod| !is_meshed(pod)).map(named).collect();
    let meshed = pods.iter().filter(is_meshed).count();
    if without.is_empty() && meshed == 0 {
        return Finding::good(
            SIDECARS,
            "no pod has one or asks for one; namespaces do by the label heddle.dev/inject=enabled",
        );
    }
    let meshed = counted(meshed, "pod has one", "pods have one");
    if without.is_empty() {
        return Finding::good(SIDECARS, format!("{meshed}, and no other is asked for"));
    }
    Finding::degraded(
        SIDECARS,
        format!("{meshed}; asked for and without: {}", some_of(&without)),
        "kubectl rollout restart their deployments; kubectl describe tells what was skipped, and why",
    )
}

const SKEW: &str = "version skew";

/// Pods whose sidecar is too far from the control plane's version.
fn skew(pods: &[Value], control_plane: Version) -> Finding {
    let (mut behind, mut ahead, mut untold) = (Vec::new(), Vec::new(), Vec::new());
    for pod in pods.iter().filter(is_meshed) {
        let version = sidecar_of(pod);
        let told = |version: Version| format!("{} ({version})", named(pod));
        match version.map(|version| (version, version.skew(control_plane))) {
            Some((_, Skew::Within)) => {}
            Some((version, Skew::TooOld)) => behind.push(told(version)),
            Some((version, Skew::TooNew)) => ahead.push(told(version)),
            None => untold.push(named(pod)),
        }
    }
    let reference = format!("the control plane is {control_plane}");
    if !ahead.is_empty() {
        let detail = format!("{reference}; more than a minor version ahead: {}", some_of(&ahead));
        return Finding::bad(SKEW, detail, "upgrade the control plane before its sidecars");
    }
    if !behind.is_empty() {
        let detail = format!("{reference}; more than a minor version behind: {}", some_of(&behind));
        return Finding::bad(SKEW, detail, "kubectl rollout restart their deployments");
    }
    if !untold.is_empty() {
        let detail = format!("{reference}; of sidecars of no known version: {}", some_of(&untold));
        let remedy = "heddle_sidecars of the control plane's metrics counts them by what they say themselves";
        return Finding::degraded(SKEW, detail, remedy);
    }
    Finding::good(SKEW, format!("every sidecar is within one minor version of {control_plane}"))
}

/// The version of a pod's sidecar: that of its image, or else of whoever put it there.
fn sidecar_of(pod: &Value) -> Option<Version> {
    let spec = &pod["spec"];
    let containers = items(&spec["initContainers"]).iter().chain(items(&spec["containers"]));
    let image = containers.filter(|c| c["name"] == "heddle-sidecar").find_map(|c| c["image"].as_str());
    image.and_then(version_of_image).or_else(|| annotation(pod, INJECTED)?.parse().ok())
}

const TRUST: &str = "trust bundles";

/// A pod without the roots cannot start its sidecar.
fn trust(namespaces: &[Value], pods: &[Value], bundles: &[Value]) -> Finding {
    let mut needing = asking(namespaces);
    needing.extend(pods.iter().filter(is_meshed).map(namespace_of));
    let having: BTreeSet<&str> = bundles.iter().map(namespace_of).collect();
    let without: Vec<String> = needing.difference(&having).map(|name| (*name).to_owned()).collect();
    if needing.is_empty() {
        return Finding::good(TRUST, "no namespace needs one");
    }
    if without.is_empty() {
        let needing = counted(needing.len(), "namespace that needs one", "namespaces that need one");
        return Finding::good(TRUST, format!("in all of {needing}"));
    }
    Finding::bad(
        TRUST,
        format!("missing in {}: pods there cannot start", some_of(&without)),
        "see the log of the control plane's leader, which writes config map heddle-trust-bundle",
    )
}

const POLICIES: &str = "policies and routes";

/// What attaches to something, by its collection.
const ATTACHING: [&str; 10] = [
    "heddle.dev/v1alpha1/externalservices",
    "heddle.dev/v1alpha1/faultpolicies",
    "heddle.dev/v1alpha1/jwtpolicies",
    "heddle.dev/v1alpha1/meshconfigs",
    "heddle.dev/v1alpha1/ratelimitpolicies",
    "heddle.dev/v1alpha1/telemetrypolicies",
    "heddle.dev/v1alpha1/trafficpolicies",
    "gateway.networking.k8s.io/v1/grpcroutes",
    "gateway.networking.k8s.io/v1/httproutes",
    "gateway.networking.k8s.io/v1alpha2/tcproutes",
];

/// Refused objects that are told one by one.
const SHOWN: usize = 20;

async fn refusals(cluster: &Cluster) -> Vec<Finding> {
    let mut refused = Vec::new();
    for collection in ATTACHING {
        match cluster.list(&format!("/apis/{collection}")).await {
            Ok(objects) => refused.extend(objects.iter().flat_map(refusals_of)),
            // Not installed, or an older version's.
            Err(Failure::NotFound) => {}
            Err(failure) => return vec![unknown(POLICIES, &failure)],
        }
    }
    if refused.is_empty() {
        return vec![Finding::good(POLICIES, "none is refused")];
    }
    let more = refused.len().saturating_sub(SHOWN);
    refused.truncate(SHOWN);
    let remedy = "correct it; until then its last good version is in force, if there was one";
    let mut findings: Vec<Finding> =
        refused.into_iter().map(|what| Finding::degraded(POLICIES, what, remedy)).collect();
    if more > 0 {
        findings.push(Finding::degraded(POLICIES, format!("{more} more"), "kubectl get heddle -A shows all"));
    }
    findings
}

/// What our control plane's conditions say against an object.
fn refusals_of(object: &Value) -> Vec<String> {
    let status = &object["status"];
    let ours = |entry: &&Value| entry["controllerName"] == "heddle.dev/control-plane";
    let parents = items(&status["parents"]).iter().chain(items(&status["ancestors"])).filter(ours);
    let conditions = parents.flat_map(|parent| items(&parent["conditions"]));
    let conditions = conditions.chain(items(&status["conditions"]));
    let failed = conditions.filter(|condition| {
        condition["status"] == "False"
            && matches!(condition["type"].as_str(), Some("Accepted" | "ResolvedRefs"))
    });
    let kind = object["kind"].as_str().unwrap_or("object");
    let lines: BTreeSet<String> = failed
        .map(|condition| {
            let text = |field: &str| condition[field].as_str().unwrap_or_default();
            format!("{kind} {}: {}: {}", named(object), text("reason"), text("message"))
        })
        .collect();
    lines.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use heddle_sidecar::check::State;
    use serde_json::json;

    use super::*;

    fn namespace(name: &str, inject: &str) -> Value {
        json!({"metadata": {"name": name, "labels": {INJECT: inject}}})
    }

    fn pod(namespace: &str, name: &str, version: Option<&str>) -> Value {
        let mut pod = json!({"metadata": {"name": name, "namespace": namespace}});
        if let Some(version) = version {
            pod["metadata"]["labels"] = json!({MESHED: "true"});
            pod["metadata"]["annotations"] = json!({INJECTED: version});
        }
        pod
    }

    #[test]
    fn pods_that_missed_their_sidecar_are_named() {
        let namespaces = [namespace("shop", "enabled"), namespace("other", "disabled")];
        let meshed = pod("shop", "a", Some("0.1.0"));
        assert_eq!(injected(&namespaces, &[meshed.clone(), pod("other", "b", None)]).state, State::Good);
        let finding = injected(&namespaces, &[meshed, pod("shop", "old", None)]);
        assert_eq!(finding.state, State::Degraded);
        assert!(finding.detail.ends_with("without: shop/old"), "{}", finding.detail);
        let mut asked_not = pod("shop", "c", None);
        asked_not["metadata"]["annotations"] = json!({INJECT: "disabled"});
        assert_eq!(injected(&namespaces, &[asked_not]).state, State::Good);
        let mut asked = pod("other", "d", None);
        asked["metadata"]["labels"] = json!({INJECT: "enabled"});
        assert_eq!(injected(&namespaces, &[asked]).state, State::Degraded);
    }

    #[test]
    fn sidecars_too_far_away_are_named() {
        let control_plane = "1.5.0".parse().unwrap();
        let of = |version: &str| skew(&[pod("shop", "a", Some(version))], control_plane).state;
        assert_eq!(of("1.4.0"), State::Good);
        assert_eq!(of("1.6.9"), State::Good);
        assert_eq!(of("1.3.0"), State::Bad);
        assert_eq!(of("1.7.0"), State::Bad);
        assert_eq!(of("unknown"), State::Degraded);
        assert_eq!(skew(&[pod("shop", "a", None)], control_plane).state, State::Good);
    }

    /// A pod may choose its sidecar's image, whoever injects it.
    #[test]
    fn the_image_says_the_version() {
        let with = |image: &str, list: &str| {
            let mut pod = pod("shop", "a", Some("1.5.0"));
            pod["spec"][list] =
                json!([{"name": "app", "image": "app:9.9.9"}, {"name": "heddle-sidecar", "image": image}]);
            skew(&[pod], "1.5.0".parse().unwrap())
        };
        for list in ["initContainers", "containers"] {
            assert_eq!(with("registry:5000/heddle/sidecar:1.4.2", list).state, State::Good);
            let finding = with("registry:5000/heddle/sidecar:1.9.0@sha256:0123", list);
            assert_eq!(finding.state, State::Bad);
            assert!(finding.detail.ends_with("ahead: shop/a (1.9.0)"), "{}", finding.detail);
            assert_eq!(with("heddle/sidecar@sha256:0123", list).state, State::Good, "as it was injected");
        }
    }

    #[test]
    fn namespaces_without_roots_are_named() {
        let namespaces = [namespace("shop", "enabled"), namespace("other", "disabled")];
        let bundle = |namespace: &str| pod(namespace, "heddle-trust-bundle", None);
        assert_eq!(trust(&namespaces, &[], &[bundle("shop")]).state, State::Good);
        let finding = trust(&namespaces, &[pod("bank", "a", Some("0.1.0"))], &[bundle("shop")]);
        assert_eq!((finding.state, finding.detail.contains("missing in bank:")), (State::Bad, true));
    }

    #[test]
    fn only_our_refusals_count() {
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "Invalid", "message": "spec.timeouts"});
        let object = |status: Value| json!({"kind": "HTTPRoute", "metadata": {"name": "a", "namespace": "shop"}, "status": status});
        let parent = |controller: &str| json!({"controllerName": controller, "conditions": [condition("Accepted", "False")]});
        assert_eq!(
            refusals_of(&object(json!({"parents": [parent("heddle.dev/control-plane"), parent("other")]}))),
            ["HTTPRoute shop/a: Invalid: spec.timeouts"]
        );
        assert!(refusals_of(&object(json!({"parents": [parent("other")]}))).is_empty());
        assert!(refusals_of(&object(json!({"conditions": [condition("Accepted", "True")]}))).is_empty());
        assert!(refusals_of(&object(json!({"conditions": [condition("Enforced", "False")]}))).is_empty());
        assert_eq!(refusals_of(&object(json!({"conditions": [condition("Accepted", "False")]}))).len(), 1);
    }
}
