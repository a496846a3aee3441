//! The kinds of objects that an installation is made of, and where a cluster keeps them.

use anyhow::Context;
use serde_json::{Value, json};

use super::{Cluster, Failure, NAMESPACE};

/// One kind.
struct Kind {
    name: &'static str,
    version: &'static str,
    plural: &'static str,
    /// Whether its objects are in our namespace.
    namespaced: bool,
}

const fn of_namespace(name: &'static str, version: &'static str, plural: &'static str) -> Kind {
    Kind { name, version, plural, namespaced: true }
}

const fn of_cluster(name: &'static str, version: &'static str, plural: &'static str) -> Kind {
    Kind { name, version, plural, namespaced: false }
}

const RBAC: &str = "rbac.authorization.k8s.io/v1";
const ADMISSION: &str = "admissionregistration.k8s.io/v1";
const MONITORING: &str = "monitoring.coreos.com/v1";

const KINDS: &[Kind] = &[
    of_cluster("ClusterRole", RBAC, "clusterroles"),
    of_cluster("ClusterRoleBinding", RBAC, "clusterrolebindings"),
    of_cluster("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions"),
    of_namespace("Deployment", "apps/v1", "deployments"),
    of_cluster("MutatingWebhookConfiguration", ADMISSION, "mutatingwebhookconfigurations"),
    of_cluster("Namespace", "v1", "namespaces"),
    of_namespace("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies"),
    of_namespace("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets"),
    of_namespace("PodMonitor", MONITORING, "podmonitors"),
    of_cluster("PriorityClass", "scheduling.k8s.io/v1", "priorityclasses"),
    of_namespace("Role", RBAC, "roles"),
    of_namespace("RoleBinding", RBAC, "rolebindings"),
    of_namespace("Service", "v1", "services"),
    of_namespace("ServiceAccount", "v1", "serviceaccounts"),
    of_namespace("ServiceMonitor", MONITORING, "servicemonitors"),
    of_cluster("ValidatingWebhookConfiguration", ADMISSION, "validatingwebhookconfigurations"),
];

/// What all objects of an installation are labelled with.
const OURS: &str = "labelSelector=app.kubernetes.io%2Fpart-of%3Dheddle";

/// The API group of an object and its collection.
pub(crate) fn resource_of(object: &Value) -> anyhow::Result<(&str, &'static str)> {
    let kind = object["kind"].as_str().unwrap_or_default();
    let found = KINDS.iter().find(|known| known.name == kind);
    let found = found.with_context(|| format!("{kind} has no known collection"))?;
    let version = object["apiVersion"].as_str().unwrap_or_default();
    Ok((version.rsplit_once('/').map_or("", |(group, _)| group), found.plural))
}

/// Where an object is found at the API server.
pub(crate) fn path_of(object: &Value) -> anyhow::Result<String> {
    let (_, plural) = resource_of(object)?;
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    Ok(format!("{}/{name}", collection(version, object["metadata"]["namespace"].as_str(), plural)))
}

fn collection(version: &str, namespace: Option<&str>, plural: &str) -> String {
    let root = if version.contains('/') { "apis" } else { "api" };
    match namespace {
        Some(namespace) => format!("/{root}/{version}/namespaces/{namespace}/{plural}"),
        None => format!("/{root}/{version}/{plural}"),
    }
}

/// Everything in a cluster that is labelled as a part of Heddle, by name and labels alone,
/// whichever version and settings it came from.
pub(crate) async fn labelled(cluster: &Cluster) -> Result<Vec<Value>, Failure> {
    let mut objects = Vec::new();
    for kind in KINDS {
        let path = collection(kind.version, kind.namespaced.then_some(NAMESPACE), kind.plural);
        match cluster.list_metadata(&format!("{path}?{OURS}")).await {
            Ok(found) => objects.extend(found.iter().map(|object| {
                let mut metadata = json!({ "name": object["metadata"]["name"] });
                if kind.namespaced {
                    metadata["namespace"] = NAMESPACE.into();
                }
                json!({ "apiVersion": kind.version, "kind": kind.name, "metadata": metadata })
            })),
            // Not every cluster has every kind.
            Err(Failure::NotFound) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(objects)
}

/// Whether two objects are the same one.
pub(crate) fn is_same(one: &Value, other: &Value) -> bool {
    let metadata = |object: &Value, field: &str| object["metadata"][field].as_str().map(str::to_owned);
    one["kind"] == other["kind"]
        && ["name", "namespace"].iter().all(|field| metadata(one, field) == metadata(other, field))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cluster::DEPLOYMENT;
    use crate::install::{self, Chosen, Overlay};

    #[test]
    fn every_installed_object_has_a_path_and_the_label() {
        let chosen = Chosen { overlay: Overlay::Ha, set: vec!["serviceMonitor=true".into()] };
        let objects = install::objects(&chosen).unwrap();
        let paths: BTreeSet<String> = objects.iter().map(|object| path_of(object).unwrap()).collect();
        assert_eq!(paths.len(), objects.len());
        assert!(paths.contains(DEPLOYMENT));
        assert!(paths.contains("/api/v1/namespaces/heddle-system"));
        assert!(paths.contains("/apis/rbac.authorization.k8s.io/v1/clusterroles/heddle-control-plane"));
        for object in &objects {
            assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/part-of"], "heddle", "{object}");
            let kind = KINDS.iter().find(|kind| object["kind"] == kind.name).unwrap();
            assert_eq!(object["apiVersion"], kind.version);
            let namespace = object["metadata"]["namespace"].as_str();
            assert_eq!(namespace, kind.namespaced.then_some(NAMESPACE), "{object}");
        }
    }

    #[test]
    fn objects_are_the_same_by_kind_and_name() {
        let object = |kind: &str, name: &str, labels: bool| {
            let labels = if labels { json!({"a": "b"}) } else { json!({}) };
            json!({"kind": kind, "metadata": {"name": name, "namespace": "a", "labels": labels}})
        };
        assert!(is_same(&object("Role", "x", true), &object("Role", "x", false)));
        assert!(!is_same(&object("Role", "x", true), &object("Role", "y", true)));
        assert!(!is_same(&object("Role", "x", true), &object("Service", "x", true)));
    }
}
