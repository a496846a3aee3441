//! What the mesh's control plane wrote into the statuses of routes and policies,
//! and takes away when it goes: our entries among a route's `parents`, our
//! conditions in Heddle's own kinds. What others wrote there stays as it is.

use anyhow::Context;
use serde_json::{Value, json};

use super::{CONTROLLER, optional};
use crate::cluster::{Cluster, Failure, named};

/// The groups whose objects have statuses of ours.
const GROUPS: [&str; 2] = ["gateway.networking.k8s.io", "heddle.dev"];

/// The conditions that are ours in Heddle's kinds.
const OURS: [&str; 3] = ["Accepted", "ResolvedRefs", "Enforced"];

/// Somebody else may write a status at the same time.
const TRIES: usize = 4;

/// An object whose status says something of ours.
pub(super) struct Told {
    /// Where it is.
    path: String,
    object: Value,
}

impl Told {
    pub(super) fn is_route(&self) -> bool {
        is_route(&self.object)
    }
}

/// All objects that say something of ours.
///
/// # Errors
/// If the cluster cannot be asked.
pub(super) async fn find(cluster: &Cluster) -> anyhow::Result<Vec<Told>> {
    let mut found = Vec::new();
    for (version, plural) in collections(cluster).await? {
        let objects = optional(cluster.list(&format!("/apis/{version}/{plural}")).await);
        for object in objects.with_context(|| format!("cannot list {plural}"))? {
            if without_ours(&object).is_some() {
                let metadata = &object["metadata"];
                let name = metadata["name"].as_str().unwrap_or_default();
                let path = match metadata["namespace"].as_str() {
                    Some(namespace) => format!("/apis/{version}/namespaces/{namespace}/{plural}/{name}"),
                    None => format!("/apis/{version}/{plural}/{name}"),
                };
                found.push(Told { path, object });
            }
        }
    }
    Ok(found)
}

/// Takes away what is ours.
///
/// # Errors
/// If an object cannot be written.
pub(super) async fn remove(cluster: &Cluster, told: Told) -> anyhow::Result<()> {
    let Told { path, mut object } = told;
    let what = format!("{path} ({})", named(&object));
    for _ in 0..TRIES {
        let Some(patch) = without_ours(&object) else { return Ok(()) };
        match cluster.patch(&format!("{path}/status"), &patch).await {
            Ok(_) | Err(Failure::NotFound) => return Ok(()),
            Err(Failure::Conflict) => {}
            Err(failure) => {
                return Err(failure).with_context(|| format!("cannot write the status of {what}"));
            }
        }
        match cluster.find(&path).await.with_context(|| format!("cannot read {what}"))? {
            Some(now) => object = now,
            None => return Ok(()),
        }
    }
    anyhow::bail!("somebody else keeps writing the status of {what}")
}

/// The kinds with statuses, `GROUP/VERSION` and the name of the collection, each once and as the API
/// server would have them read.
async fn collections(cluster: &Cluster) -> anyhow::Result<Vec<(String, String)>> {
    let mut found: Vec<(String, String)> = Vec::new();
    for group in GROUPS {
        let about = cluster.find(&format!("/apis/{group}")).await;
        let Some(about) = about.with_context(|| format!("cannot ask for group {group}"))? else { continue };
        let preferred = about["preferredVersion"]["groupVersion"].as_str();
        let versions = about["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let versions = versions.iter().filter_map(|version| version["groupVersion"].as_str());
        for version in preferred.into_iter().chain(versions) {
            let resources = cluster.find(&format!("/apis/{version}")).await;
            let resources =
                resources.with_context(|| format!("cannot ask for {version}"))?.unwrap_or_default();
            for plural in plurals(&resources) {
                let known = |(of, name): &(String, String)| of.starts_with(group) && name == plural;
                if !found.iter().any(known) {
                    found.push((version.to_owned(), plural.to_owned()));
                }
            }
        }
    }
    Ok(found)
}

/// The collections of a version whose objects have a status of ours: routes, and all of our own group.
fn plurals(resources: &Value) -> impl Iterator<Item = &str> {
    let group = resources["groupVersion"].as_str().unwrap_or_default();
    let is_own = group.starts_with("heddle.dev/");
    let resources = resources["resources"].as_array().map(Vec::as_slice).unwrap_or_default();
    resources.iter().filter_map(move |resource| {
        let plural = resource["name"].as_str()?.strip_suffix("/status")?;
        (is_own || plural.ends_with("routes")).then_some(plural)
    })
}

/// The change of an object's status after which nothing in it is ours, `None`: nothing is. It holds for
/// the version that was read alone.
fn without_ours(object: &Value) -> Option<Value> {
    let (list, ours): (_, fn(&Value) -> bool) = if is_route(object) {
        ("parents", |entry| entry["controllerName"] == CONTROLLER)
    } else {
        ("conditions", |condition| OURS.iter().any(|ours| condition["type"] == *ours))
    };
    let entries = object["status"][list].as_array()?;
    let left: Vec<&Value> = entries.iter().filter(|entry| !ours(entry)).collect();
    (left.len() < entries.len()).then(|| {
        json!({
            "metadata": { "resourceVersion": object["metadata"]["resourceVersion"] },
            "status": { list: left },
        })
    })
}

fn is_route(object: &Value) -> bool {
    object["kind"].as_str().is_some_and(|kind| kind.ends_with("Route"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_route_our_entries_go_and_no_others() {
        let entry = |controller: &str| json!({"controllerName": controller, "parentRef": {"name": "users"}});
        let route = |entries: &[Value]| {
            json!({
                "kind": "HTTPRoute",
                "metadata": {"name": "r", "resourceVersion": "7"},
                "status": {"parents": entries},
            })
        };
        let patch = without_ours(&route(&[entry("example.com/other"), entry(CONTROLLER)])).unwrap();
        assert_eq!(patch["status"]["parents"], json!([entry("example.com/other")]));
        assert_eq!(patch["metadata"], json!({"resourceVersion": "7"}), "nobody's later word is lost");
        assert_eq!(without_ours(&route(&[entry("example.com/other")])), None);
        assert_eq!(without_ours(&route(&[])), None);
        assert_eq!(without_ours(&json!({"kind": "TCPRoute"})), None);
        // The definitions want the list to be there.
        assert_eq!(without_ours(&route(&[entry(CONTROLLER)])).unwrap()["status"]["parents"], json!([]));
    }

    #[test]
    fn of_a_policy_our_conditions_go_and_no_others() {
        let conditions = json!([{"type": "Accepted"}, {"type": "Reviewed"}, {"type": "Enforced"}]);
        let policy = json!({"kind": "TrafficPolicy", "metadata": {}, "status": {"conditions": conditions}});
        let patch = without_ours(&policy).unwrap();
        assert_eq!(patch["status"]["conditions"], json!([{"type": "Reviewed"}]));
    }

    #[test]
    fn routes_and_our_own_kinds_have_statuses_of_ours() {
        let of = |version: &str| {
            let names = ["httproutes", "httproutes/status", "gateways/status", "trafficpolicies/status"];
            let resources: Vec<Value> = names.iter().map(|name| json!({ "name": name })).collect();
            let resources = json!({"groupVersion": version, "resources": resources});
            plurals(&resources).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(of("gateway.networking.k8s.io/v1"), ["httproutes"]);
        assert_eq!(of("heddle.dev/v1alpha1").len(), 3);
    }
}
