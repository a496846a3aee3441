//! `heddle uninstall`: the objects of an installation in the order in which they
//! can be deleted, for `kubectl delete`, and a warning about the workloads that
//! still have a sidecar.

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use crate::cluster::{Cluster, ClusterArgs, DEPLOYMENT, annotation, named};
use crate::install::{self, CHOSEN};

/// Prints what has to go for a cluster to be no mesh any more, for `kubectl delete -f -`
#[derive(Args, Debug)]
pub(crate) struct UninstallArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Deletes the definitions as well, and with them every policy in the cluster
    #[arg(long)]
    crds: bool,
}

/// How many workloads are named in a warning.
const SHOWN: usize = 20;

/// Kinds from first to last. While the webhooks are there and what serves them is not, no pod of
/// the mesh can start; the namespace takes with it what is left in it.
const ORDER: [&str; 15] = [
    "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration",
    "ServiceMonitor",
    "PodMonitor",
    "PodDisruptionBudget",
    "Deployment",
    "Service",
    "NetworkPolicy",
    "RoleBinding",
    "Role",
    "ClusterRoleBinding",
    "ClusterRole",
    "ServiceAccount",
    "PriorityClass",
    "ConfigMap",
];

/// Runs `heddle uninstall`.
///
/// # Errors
/// If the cluster cannot be asked what is in it.
#[allow(clippy::print_stderr)]
pub(crate) async fn run(args: &UninstallArgs) -> anyhow::Result<()> {
    let cluster = Cluster::connect(&args.cluster).await?;
    let deployment = cluster.find(DEPLOYMENT).await.context("cannot look at the control plane")?;
    let noted = deployment.as_ref().and_then(|deployment| annotation(deployment, CHOSEN));
    let mut objects = install::objects(&install::chosen(noted).unwrap_or_default())?;
    let bundles = "/api/v1/configmaps?fieldSelector=metadata.name%3Dheddle-trust-bundle";
    for bundle in cluster.list_metadata(bundles).await.context("cannot list the trust bundles")? {
        objects.push(json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": bundle["metadata"]["name"], "namespace": bundle["metadata"]["namespace"] },
        }));
    }
    let meshed = "/api/v1/pods?labelSelector=heddle.dev%2Fmeshed%3Dtrue";
    let meshed = cluster.list_metadata(meshed).await.context("cannot list the pods of the mesh")?;
    if let Some(warning) = warning(&meshed) {
        eprintln!("{warning}");
    }
    if args.crds {
        eprintln!("with the definitions goes every policy in this cluster");
    }
    install::print(&ordered(objects, args.crds))
}

/// What is to be deleted, from first to last, each by its name alone.
fn ordered(objects: Vec<Value>, definitions: bool) -> Vec<Value> {
    let last = ORDER.len();
    let rank = |object: &Value| match object["kind"].as_str() {
        Some("CustomResourceDefinition") => definitions.then_some(last),
        Some("Namespace") => Some(last + 1),
        kind => Some(ORDER.iter().position(|known| Some(*known) == kind).unwrap_or(last)),
    };
    let mut ranked: Vec<(usize, Value)> =
        objects.into_iter().filter_map(|object| Some((rank(&object)?, object))).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let bare = |object: Value| {
        let mut metadata = json!({ "name": object["metadata"]["name"] });
        if let Some(namespace) = object["metadata"].get("namespace") {
            metadata["namespace"] = namespace.clone();
        }
        json!({ "apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": metadata })
    };
    ranked.into_iter().map(|(_, object)| bare(object)).collect()
}

/// What to say about pods that still have a sidecar.
fn warning(meshed: &[Value]) -> Option<String> {
    if meshed.is_empty() {
        return None;
    }
    let mut text = format!(
        "{} pods have a sidecar. They go on working, but renew no certificate: within a day they reach \
         each other no more.\nRemove label heddle.dev/inject from their namespaces, and restart them first:\n",
        meshed.len()
    );
    for pod in meshed.iter().take(SHOWN) {
        text.push_str(&format!("  {}\n", named(pod)));
    }
    if meshed.len() > SHOWN {
        text.push_str(&format!("  and {} more\n", meshed.len() - SHOWN));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn webhooks_go_first_and_the_namespace_last() {
        let chosen =
            install::Chosen { overlay: install::Overlay::Ha, set: vec!["serviceMonitor=true".into()] };
        let all = install::objects(&chosen).unwrap();
        let kinds = |definitions| -> Vec<String> {
            let objects = ordered(all.clone(), definitions);
            objects.iter().map(|object| object["kind"].as_str().unwrap().to_owned()).collect()
        };
        let with = kinds(true);
        assert_eq!(with.len(), all.len());
        assert_eq!(with[0], "MutatingWebhookConfiguration");
        assert_eq!(with.last().unwrap(), "Namespace");
        assert!(!kinds(false).contains(&"CustomResourceDefinition".to_owned()));
        let known = |kind: &String| {
            ORDER.contains(&kind.as_str())
                || ["CustomResourceDefinition", "Namespace"].contains(&kind.as_str())
        };
        assert!(with.iter().all(known), "{with:?}");
    }

    #[test]
    fn workloads_that_are_left_are_named() {
        assert_eq!(warning(&[]), None);
        let pod = |n: usize| json!({"metadata": {"name": format!("p{n}"), "namespace": "shop"}});
        let pods: Vec<Value> = (0..25).map(pod).collect();
        let text = warning(&pods).unwrap();
        assert!(text.starts_with("25 pods have a sidecar") && text.contains("  shop/p0\n"), "{text}");
        assert!(text.ends_with("and 5 more\n"), "{text}");
    }
}
