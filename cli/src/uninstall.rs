//! `heddle uninstall`: the objects of an installation that are there, in the order
//! in which they can be deleted, for `kubectl delete`, and warnings about what
//! goes with them and about workloads that still have a sidecar. What was written
//! into the statuses of others' objects is taken away afterwards (`--statuses`),
//! when nobody writes it again.

mod statuses;

use anyhow::Context;
use clap::Args;
use heddle_sidecar::output;
use serde_json::{Value, json};

use crate::cluster::kinds::{is_same, labelled, path_of};
use crate::cluster::{Cluster, ClusterArgs, DEPLOYMENT, Failure, NAMESPACE, annotation, counted, named};
use crate::install::{self, CHOSEN};

/// Prints what has to go for a cluster to be no mesh any more, for `kubectl delete -f -`
#[derive(Args, Debug)]
pub(crate) struct UninstallArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Deletes the definitions as well, and with them every policy in the cluster
    #[arg(long)]
    crds: bool,
    /// Deletes nothing: takes what the control plane wrote out of the statuses of routes and policies,
    /// once it is gone
    #[arg(long, conflicts_with = "crds")]
    statuses: bool,
}

/// How many objects are named in a warning.
const SHOWN: usize = 20;

/// Where the Gateway API has objects that stand for meshes; the one that the control plane makes, by
/// its name and whose it says it is.
const MESHES: &str = "gateway.networking.x-k8s.io/v1alpha1";
const OUR_MESH: &str = "heddle";
const CONTROLLER: &str = "heddle.dev/control-plane";

/// Kinds from first to last. While the webhooks are there and what serves them is not, no pod of
/// the mesh can start; the namespace takes with it what is left in it.
const ORDER: [&str; 16] = [
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
    "XMesh",
];

/// Runs `heddle uninstall`.
///
/// # Errors
/// If the cluster cannot be asked what is in it.
pub(crate) async fn run(args: &UninstallArgs) -> anyhow::Result<()> {
    let cluster = Cluster::connect(&args.cluster).await?;
    let deployment = cluster.find(DEPLOYMENT).await.context("cannot look at the control plane")?;
    if args.statuses {
        anyhow::ensure!(
            deployment.is_none(),
            "the control plane is there and would write them again; first: heddle uninstall | kubectl delete -f -"
        );
        let told = statuses::find(&cluster).await?;
        let count = told.len();
        for one in told {
            statuses::remove(&cluster, one).await?;
        }
        output::complain(&format!(
            "{count} routes and policies say nothing of the mesh in their status any more"
        ));
        return Ok(());
    }
    let noted = deployment.as_ref().and_then(|deployment| annotation(deployment, CHOSEN));
    // Older versions and other settings may have left more than this one makes.
    let mut objects = labelled(&cluster).await.context("cannot list what is installed")?;
    for object in install::objects(&install::chosen(noted).unwrap_or_default())? {
        if objects.iter().all(|known| !is_same(known, &object))
            && cluster.find(&path_of(&object)?).await.context("cannot look at what is installed")?.is_some()
        {
            objects.push(object);
        }
    }
    let meshes = optional(cluster.list(&format!("/apis/{MESHES}/xmeshes")).await);
    let ours =
        |mesh: &&Value| mesh["spec"]["controllerName"] == CONTROLLER && mesh["metadata"]["name"] == OUR_MESH;
    for mesh in meshes.context("cannot list the mesh's own object")?.iter().filter(ours) {
        objects.push(json!({
            "apiVersion": MESHES, "kind": "XMesh", "metadata": { "name": mesh["metadata"]["name"] },
        }));
    }
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
        output::complain(&warning);
    }
    let mut kinds = Vec::new();
    for definition in objects.iter().filter(|object| object["kind"] == "CustomResourceDefinition") {
        let name = definition["metadata"]["name"].as_str().unwrap_or_default();
        let plural = name.split('.').next().unwrap_or_default();
        let path = format!("/apis/heddle.dev/v1alpha1/{plural}");
        kinds.extend(optional(cluster.list(&path).await).with_context(|| format!("cannot list {plural}"))?);
    }
    if let Some(warning) = going(&kinds, args.crds) {
        output::complain(&warning);
    }
    let secret = format!("/api/v1/namespaces/{NAMESPACE}/secrets/heddle-ca");
    if !matches!(cluster.find(&secret).await, Ok(None)) {
        output::complain(&format!(
            "With namespace {NAMESPACE} goes the mesh's authority, Secret heddle-ca: a mesh that is installed \
             later has another,\nunless you keep a copy: kubectl -n {NAMESPACE} get secret heddle-ca -o yaml\n"
        ));
    }
    let told = statuses::find(&cluster).await?;
    // Policies go with their definitions.
    let told = told.iter().filter(|told| told.is_route() || !args.crds).count();
    if told > 0 {
        output::complain(&format!(
            "{told} routes and policies say in their status what became of them in the mesh. When the control \
             plane is gone,\ntake that away: heddle uninstall --statuses\n"
        ));
    }
    let found = objects.len();
    let going = ordered(objects, args.crds);
    if going.is_empty() {
        let but = if found == 0 { "" } else { " but its definitions, which --crds deletes" };
        output::complain(&format!("There is nothing of Heddle in this cluster{but}."));
    }
    install::print(&going)
}

/// What there is of a kind that the cluster may not have.
fn optional(found: Result<Vec<Value>, Failure>) -> Result<Vec<Value>, Failure> {
    match found {
        Err(Failure::NotFound) => Ok(Vec::new()),
        found => found,
    }
}

/// The objects that people made and that go with what is deleted: with the definitions all, else those
/// of our namespace, which are the policies of the whole mesh.
fn going(policies: &[Value], definitions: bool) -> Option<String> {
    let with = if definitions { "the definitions" } else { "namespace heddle-system" };
    let named: Vec<String> = policies
        .iter()
        .filter(|policy| definitions || policy["metadata"]["namespace"] == NAMESPACE)
        .map(|policy| format!("{} {}", policy["kind"].as_str().unwrap_or_default(), named(policy)))
        .collect();
    if named.is_empty() {
        return None;
    }
    let policies = counted(named.len(), "policy", "policies");
    let mut text = format!("Gone with {with} will be {policies} that somebody made:\n");
    named.iter().take(SHOWN).for_each(|name| text.push_str(&format!("  {name}\n")));
    if named.len() > SHOWN {
        text.push_str(&format!("  and {} more\n", named.len() - SHOWN));
    }
    Some(text)
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
        "Still with a sidecar: {}. They go on working, but renew no certificate: within a day they reach \
         each other no more.\nRemove label heddle.dev/inject from their namespaces, and restart them first:\n",
        counted(meshed.len(), "pod", "pods")
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
    fn policies_that_go_are_named() {
        let policy = |namespace: &str| json!({"kind": "TrafficPolicy", "metadata": {"name": "a", "namespace": namespace}});
        let mesh = json!({"kind": "MeshConfig", "metadata": {"name": "mesh"}});
        assert_eq!(going(&[policy("shop"), mesh.clone()], false), None);
        let text = going(&[policy("shop"), policy(NAMESPACE)], false).unwrap();
        assert!(
            text.contains(" will be 1 policy that") && text.contains("  TrafficPolicy heddle-system/a\n"),
            "{text}"
        );
        assert!(going(&[policy("shop"), mesh], true).unwrap().contains(" will be 2 policies that"));
    }

    #[test]
    fn workloads_that_are_left_are_named() {
        assert_eq!(warning(&[]), None);
        let pod = |n: usize| json!({"metadata": {"name": format!("p{n}"), "namespace": "shop"}});
        let pods: Vec<Value> = (0..25).map(pod).collect();
        let text = warning(&pods).unwrap();
        assert!(text.starts_with("Still with a sidecar: 25 pods.") && text.contains("  shop/p0\n"), "{text}");
        assert!(text.ends_with("and 5 more\n"), "{text}");
    }
}
