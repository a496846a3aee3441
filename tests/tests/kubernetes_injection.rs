//! The admission webhooks of an installed mesh, asked by a real API server.

use heddle_tests::cluster::{Cluster, Settings, of_heddle};
use heddle_tests::eventually;
use serde_json::{Value, json};

/// A cluster with Heddle, as `heddle install` makes it, whose webhooks are trusted.
fn mesh() -> Option<Cluster> {
    let cluster = Cluster::start_with(&Settings { images: of_heddle(), ..Settings::default() })?;
    cluster.install_gateway_api();
    cluster.install_heddle(&[]);
    eventually("the API server trusts the webhooks", || trusted(&cluster).then_some(()));
    Some(cluster)
}

/// Whether every webhook of Heddle has roots to be trusted by.
fn trusted(cluster: &Cluster) -> bool {
    let configurations =
        ["mutatingwebhookconfiguration/heddle-injector", "validatingwebhookconfiguration/heddle-validator"];
    configurations.iter().all(|name| {
        let configuration = cluster.get("default", name).unwrap_or_default();
        let webhooks = configuration["webhooks"].as_array().cloned().unwrap_or_default();
        let has_roots = |webhook: &Value| webhook["clientConfig"]["caBundle"].is_string();
        !webhooks.is_empty() && webhooks.iter().all(has_roots)
    })
}

fn pod(namespace: &str, labels: Value, annotations: Value, spec: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": namespace, "labels": labels, "annotations": annotations},
        "spec": {"containers": [{"name": "web", "image": "machine", "command": ["sleep", "3600"]}]},
    });
    for (field, value) in spec.as_object().cloned().unwrap_or_default() {
        pod["spec"][field] = value;
    }
    pod
}

/// The pod as the API server would keep it, or what is said against it.
fn admitted(cluster: &Cluster, pod: &Value) -> Result<Value, String> {
    let made =
        cluster.kubectl_with(&["create", "--dry-run=server", "-o", "json", "-f", "-"], &pod.to_string())?;
    Ok(serde_json::from_str(&made).expect("kubectl prints JSON"))
}

fn is_meshed(pod: &Value) -> bool {
    let init = pod["spec"]["initContainers"].as_array().cloned().unwrap_or_default();
    let names: Vec<_> = init.iter().filter_map(|container| container["name"].as_str()).collect();
    let whole = names == ["heddle-init", "heddle-sidecar"]
        && pod["metadata"]["labels"]["heddle.dev/meshed"] == "true";
    assert_eq!(whole, !names.is_empty(), "by half: {pod}");
    whole
}

#[test]
fn pods_of_a_labelled_namespace_get_their_sidecar_and_wrong_ones_are_refused() {
    let Some(cluster) = mesh() else { return };
    cluster.apply(
        "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/inject: enabled}}}\n---\n\
         {apiVersion: v1, kind: Namespace, metadata: {name: outside}}\n",
    );
    eventually("pods can be made", || {
        let accounts = ["shop", "outside"].map(|namespace| cluster.get(namespace, "serviceaccount/default"));
        accounts.iter().all(Option::is_some).then_some(())
    });
    let none = || json!({});
    let label = |value: &str| json!({"heddle.dev/inject": value});
    for (pod, meshed) in [
        (pod("shop", none(), none(), none()), true),
        (pod("shop", label("disabled"), none(), none()), false),
        (pod("shop", none(), label("disabled"), none()), false),
        (pod("shop", none(), none(), json!({"hostNetwork": true})), false),
        (pod("shop", none(), none(), json!({"restartPolicy": "Never"})), true),
        (pod("outside", none(), none(), none()), false),
        (pod("outside", label("enabled"), none(), none()), true),
        (pod("kube-system", label("enabled"), none(), none()), false),
    ] {
        let made = admitted(&cluster, &pod).unwrap_or_else(|complaint| panic!("{pod}: {complaint}"));
        assert_eq!(is_meshed(&made), meshed, "{pod}");
        // What was injected is a pod that another API server would take as it is, and no second time.
        if meshed {
            let mut again = made.clone();
            again["metadata"] = json!({
                "name": "again", "namespace": made["metadata"]["namespace"],
                "labels": made["metadata"]["labels"], "annotations": made["metadata"]["annotations"],
            });
            let again = admitted(&cluster, &again).expect("it is a pod");
            assert_eq!(again["spec"]["initContainers"], made["spec"]["initContainers"]);
        }
    }
    for (wrong, path) in [
        (pod("shop", none(), json!({"heddle.dev/skip-inbound-prots": "25"}), none()), "skip-inbound-prots"),
        (
            pod("shop", none(), none(), json!({"securityContext": {"runAsUser": 7100}})),
            "spec.securityContext.runAsUser",
        ),
    ] {
        let complaint = admitted(&cluster, &wrong).expect_err("it is refused");
        assert!(complaint.contains("heddle.dev") && complaint.contains(path), "{complaint}");
    }

    // A route is judged by the same code that reads it afterwards.
    let route = |pattern: &str| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "users", "namespace": "shop"},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": "users"}],
                "rules": [{"matches": [{"path": {"type": "RegularExpression", "value": pattern}}]}],
            },
        })
    };
    admitted(&cluster, &route("/users/[0-9]+")).expect("it is a route");
    let complaint = admitted(&cluster, &route("/users/[0-9")).expect_err("it is refused");
    assert!(complaint.contains("spec.rules[0].matches[0].path.value"), "{complaint}");

    // Whoever takes the roots away gets them back.
    let remove = r#"[{"op":"remove","path":"/webhooks/0/clientConfig/caBundle"}]"#;
    for name in
        ["mutatingwebhookconfiguration/heddle-injector", "validatingwebhookconfiguration/heddle-validator"]
    {
        cluster.kubectl(&["patch", name, "--type=json", "-p", remove]);
        eventually("the roots are put back", || trusted(&cluster).then_some(()));
    }
}
