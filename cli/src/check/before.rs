//! Whether a cluster can become a mesh.

use heddle_sidecar::check::Finding;
use serde_json::{Value, json};

use super::{some_of, unknown};
use crate::cluster::kinds::resource_of;
use crate::cluster::{Cluster, DEPLOYMENT, Failure, annotation, counted, items, label};
use crate::install::{self, Chosen};
use crate::upgrade::installed;

pub(super) async fn look(cluster: &Cluster) -> Vec<Finding> {
    let mut findings = vec![existing(cluster.find(DEPLOYMENT).await)];
    findings.push(match missing_permissions(cluster).await {
        Ok(missing) => permissions(&missing),
        Err(failure) => unknown(PERMISSIONS, &failure),
    });
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    findings.push(match cluster.list_metadata(definitions).await {
        Ok(definitions) => gateway_api(&definitions),
        Err(failure) => unknown(GATEWAY_API, &failure),
    });
    findings.push(match cluster.list("/api/v1/nodes").await {
        Ok(nodes) => kernels(&nodes),
        Err(failure) => unknown(KERNELS, &failure),
    });
    findings.push(match cluster.list_metadata("/api/v1/namespaces").await {
        Ok(namespaces) => pod_security(&namespaces),
        Err(failure) => unknown(POD_SECURITY, &failure),
    });
    findings
}

/// Whether something is installed.
fn existing(deployment: Result<Option<Value>, Failure>) -> Finding {
    const SUBJECT: &str = "control plane";
    match deployment {
        Ok(None) => Finding::good(SUBJECT, "none is installed"),
        Ok(Some(deployment)) => {
            let version =
                installed(&deployment).map_or_else(|_| "an unknown version".into(), |v| v.to_string());
            Finding::degraded(
                SUBJECT,
                format!("{version} is installed"),
                "heddle upgrade | kubectl apply --server-side -f -",
            )
        }
        Err(failure) => unknown(SUBJECT, &failure),
    }
}

const PERMISSIONS: &str = "permissions";

/// What an installation needs and whoever asks may not do.
async fn missing_permissions(cluster: &Cluster) -> Result<Vec<String>, Failure> {
    let objects = install::objects(&Chosen::default()).map_err(|error| Failure::Other(error.to_string()))?;
    let mut asked = Vec::new();
    for object in &objects {
        let (group, resource) = resource_of(object).map_err(|error| Failure::Other(error.to_string()))?;
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        let wanted = (group.to_owned(), resource, namespace.to_owned());
        if !asked.contains(&wanted) {
            asked.push(wanted);
        }
    }
    let mut missing = Vec::new();
    for (group, resource, namespace) in &asked {
        for verb in ["create", "patch"] {
            let review = json!({
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": { "resourceAttributes": {
                    "group": group, "resource": resource, "namespace": namespace, "verb": verb,
                }},
            });
            let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
            if cluster.post(path, &review).await?["status"]["allowed"] != true {
                missing.push(format!("{verb} {resource}"));
            }
        }
    }
    Ok(missing)
}

fn permissions(missing: &[String]) -> Finding {
    if missing.is_empty() {
        return Finding::good(PERMISSIONS, "you may install");
    }
    let remedy = "let somebody apply it who is cluster-admin";
    Finding::bad(PERMISSIONS, format!("you may not {}", some_of(missing)), remedy)
}

const GATEWAY_API: &str = "Gateway API";

/// The definitions of the Gateway API, whose bundle says its version.
fn gateway_api(definitions: &[Value]) -> Finding {
    let route = definitions
        .iter()
        .find(|definition| definition["metadata"]["name"] == "httproutes.gateway.networking.k8s.io");
    let Some(route) = route else {
        return Finding::degraded(
            GATEWAY_API,
            "its definitions are missing: there can be policies, but no routes",
            "apply standard-install.yaml of a release of kubernetes-sigs/gateway-api; they are picked up at once",
        );
    };
    let said =
        |what: &str| annotation(route, &format!("gateway.networking.k8s.io/{what}")).unwrap_or("unknown");
    Finding::good(GATEWAY_API, format!("{}, {} channel", said("bundle-version"), said("channel")))
}

const KERNELS: &str = "kernels";

/// From here on nftables can redirect IPv4 and IPv6 in one table.
const NFTABLES: (u32, u32) = (5, 2);

/// Whether the nodes' kernels can lead traffic through sidecars as it is done first.
fn kernels(nodes: &[Value]) -> Finding {
    let linux: Vec<&Value> =
        nodes.iter().filter(|node| label(node, "kubernetes.io/os").is_none_or(|os| os == "linux")).collect();
    let number = |node: &Value| {
        let text = node["status"]["nodeInfo"]["kernelVersion"].as_str()?;
        let mut numbers = text.split(['.', '-']).map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    let old: Vec<String> = linux
        .iter()
        .filter(|node| number(node).is_some_and(|version| version < NFTABLES))
        .map(|node| {
            let kernel = node["status"]["nodeInfo"]["kernelVersion"].as_str().unwrap_or_default();
            format!("{} ({kernel})", node["metadata"]["name"].as_str().unwrap_or_default())
        })
        .collect();
    if linux.is_empty() {
        return Finding::degraded(KERNELS, "there is no node with Linux", "add one");
    }
    if old.is_empty() {
        return Finding::good(KERNELS, format!("{} with nftables", counted(linux.len(), "node", "nodes")));
    }
    let (major, minor) = NFTABLES;
    Finding::degraded(
        KERNELS,
        format!("older than {major}.{minor}: {}", some_of(&old)),
        "nothing has to be done where iptables works there, which is used instead",
    )
}

const POD_SECURITY: &str = "pod security";

/// Namespaces whose pods are to be injected, but may not have the step that leads their traffic.
fn pod_security(namespaces: &[Value]) -> Finding {
    let strict = |namespace: &&Value| {
        label(namespace, "heddle.dev/inject") == Some("enabled")
            && matches!(
                label(namespace, "pod-security.kubernetes.io/enforce"),
                Some("baseline" | "restricted")
            )
    };
    let strict: Vec<String> = namespaces
        .iter()
        .filter(strict)
        .filter_map(|namespace| Some(namespace["metadata"]["name"].as_str()?.to_owned()))
        .collect();
    if strict.is_empty() {
        return Finding::good(POD_SECURITY, "no namespace of the mesh forbids what heddle-init needs");
    }
    Finding::bad(
        POD_SECURITY,
        format!("refused is heddle-init, which needs NET_ADMIN, in {}", some_of(&strict)),
        "use a CNI plugin that makes the rules (annotation heddle.dev/interception: cni), or set the namespaces' \
         label\npod-security.kubernetes.io/enforce to privileged",
    )
}

/// Whether a definition has been taken on by the API server.
pub(super) fn established(definition: &Value) -> bool {
    items(&definition["status"]["conditions"])
        .iter()
        .any(|condition| condition["type"] == "Established" && condition["status"] == "True")
}

#[cfg(test)]
mod tests {
    use heddle_sidecar::check::State;

    use super::*;

    #[test]
    fn what_one_may_not_do_is_named() {
        assert_eq!(permissions(&[]).state, State::Good);
        let finding = permissions(&["create clusterroles".into()]);
        assert_eq!((finding.state, finding.detail.as_str()), (State::Bad, "you may not create clusterroles"));
    }

    #[test]
    fn the_gateway_api_is_told_by_its_bundle() {
        assert_eq!(gateway_api(&[]).state, State::Degraded);
        let route = json!({"metadata": {"name": "httproutes.gateway.networking.k8s.io", "annotations": {
            "gateway.networking.k8s.io/bundle-version": "v1.6.0",
            "gateway.networking.k8s.io/channel": "standard",
        }}});
        assert_eq!(gateway_api(&[route]).detail, "v1.6.0, standard channel");
    }

    #[test]
    fn old_kernels_are_named() {
        let node = |name: &str, kernel: &str, os: &str| {
            json!({"metadata": {"name": name, "labels": {"kubernetes.io/os": os}},
                "status": {"nodeInfo": {"kernelVersion": kernel}}})
        };
        let new = node("a", "6.8.0-45-generic", "linux");
        assert_eq!(kernels(std::slice::from_ref(&new)).state, State::Good);
        let finding = kernels(&[new, node("b", "4.18.0", "linux"), node("w", "10.0.20348", "windows")]);
        assert_eq!((finding.state, finding.detail.as_str()), (State::Degraded, "older than 5.2: b (4.18.0)"));
        assert_eq!(kernels(&[]).state, State::Degraded);
    }

    #[test]
    fn namespaces_that_forbid_the_init_step_are_named() {
        let namespace = |inject: &str, enforce: &str| {
            json!({"metadata": {"name": "shop", "labels": {
                "heddle.dev/inject": inject, "pod-security.kubernetes.io/enforce": enforce,
            }}})
        };
        assert_eq!(pod_security(&[namespace("disabled", "restricted")]).state, State::Good);
        assert_eq!(pod_security(&[namespace("enabled", "privileged")]).state, State::Good);
        assert_eq!(pod_security(&[namespace("enabled", "baseline")]).state, State::Bad);
    }

    #[test]
    fn what_is_installed_is_told() {
        assert_eq!(existing(Ok(None)).state, State::Good);
        let deployment = json!({"metadata": {"labels": {"app.kubernetes.io/version": "0.1.0"}}});
        assert_eq!(existing(Ok(Some(deployment))).detail, "0.1.0 is installed");
        assert_eq!(existing(Err(Failure::Forbidden("no".into()))).state, State::Degraded);
    }
}
