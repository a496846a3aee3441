//! The admission webhooks of an installed mesh, asked by a real API server.

use std::io::Write;
use std::process::{Command, Stdio};

use heddle_tests::cluster::{Cluster, Settings, of_heddle};
use heddle_tests::{binary, eventually};
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

/// A pod of this namespace has `HEDDLE_PORT=tcp://…` in its environment then, which is the name of a setting, too.
#[test]
fn a_service_called_heddle_does_not_keep_sidecars_from_starting() {
    let Some(cluster) = mesh() else { return };
    cluster.apply(
        r#"
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/inject: enabled}}}
---
apiVersion: v1
kind: Service
metadata: {name: heddle, namespace: shop}
spec: {selector: {app: heddle}, ports: [{name: http, port: 80}]}
"#,
    );
    eventually("pods can be made", || cluster.get("shop", "serviceaccount/default"));
    for native in ["enabled", "disabled"] {
        let annotations = json!({"heddle.dev/native-sidecar": native});
        cluster.apply(
            &pod("shop", json!({}), annotations, json!({"terminationGracePeriodSeconds": 1})).to_string(),
        );
        cluster.wait("shop", "pod/web", "condition=Ready");
        let environment = cluster.exec("shop", "web", "web", &["env"]).expect("it runs");
        assert!(environment.contains("HEDDLE_PORT=tcp://"), "{environment}");
        cluster.kubectl(&["delete", "-n", "shop", "pod/web"]);
    }
}

/// What `heddle inject` makes of a manifest.
fn injected(args: &[&str], manifest: &str) -> String {
    let mut command = Command::new(binary("heddle"));
    command.arg("inject").args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("it was built");
    child.stdin.take().expect("it is piped").write_all(manifest.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it was started");
    assert!(output.status.success(), "{manifest}");
    String::from_utf8(output.stdout).expect("YAML is text")
}

/// An application beside a sidecar that is an ordinary container: its very first call is served, and so is
/// one that it makes after it was told to end, without any connection meanwhile that it could be seen by.
#[test]
fn a_classic_sidecar_is_there_before_the_application_and_until_after_it() {
    let Some(cluster) = mesh() else { return };
    cluster.apply(
        r#"
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/inject: enabled}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: late}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: prices, namespace: shop}
spec:
  selector: {matchLabels: {app: prices}}
  template:
    metadata: {labels: {app: prices}}
    spec:
      containers: [{name: app, image: "gateway-api/echo-advanced:v1.5.1", args: [--port=8080]}]
---
apiVersion: v1
kind: Service
metadata: {name: prices, namespace: shop}
spec: {selector: {app: prices}, ports: [{name: http, port: 80, targetPort: 8080}]}
"#,
    );
    cluster.rolled_out("shop", "deploy/prices");
    eventually("pods of the mesh can be made", || cluster.get("late", "configmap/heddle-trust-bundle"));
    let scale = |replicas: &str| {
        cluster.kubectl(&["scale", "-n", "heddle-system", "deploy/heddle-control-plane", replicas]);
        cluster.rolled_out("heddle-system", "deploy/heddle-control-plane");
    };
    scale("--replicas=0");
    eventually("no control plane is there", || {
        let pods = cluster.kubectl(&["get", "pods", "-n", "heddle-system", "-o", "name"]);
        pods.trim().is_empty().then_some(())
    });

    let said = cluster.directory().join("clerk");
    let manifest = format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: clerk, namespace: late}}
spec:
  terminationGracePeriodSeconds: 20
  volumes: [{{name: said, hostPath: {{path: {said}, type: DirectoryOrCreate}}}}]
  containers:
    - name: clerk
      image: machine
      volumeMounts: [{{name: said, mountPath: /said}}]
      command:
        - sh
        - -c
        - |
          ask() {{ curl --silent --show-error --fail --max-time 10 -o /dev/null http://prices.shop/ 2>>/said/log && echo "$1" >>/said/log; }}
          trap 'sleep 2; ask farewell; exit 0' TERM
          ask hello
          while :; do sleep 0.1; done
"#,
        said = said.display()
    );
    cluster.apply(&injected(&["--no-native-sidecar"], &manifest));
    eventually("the sidecar has no control plane", || {
        let log = cluster.try_kubectl(&["logs", "-n", "late", "clerk", "-c", "heddle-sidecar"]).ok()?;
        (log.matches("no identity yet").count() > 1).then_some(())
    });
    let clerk = cluster.get("late", "pod/clerk").expect("it was made");
    let statuses = clerk["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    let app = statuses.iter().find(|status| status["name"] == "clerk").expect("it has two containers");
    assert!(app["state"]["running"].is_null(), "the application was not held: {app}");
    let log = cluster.outside(&said).join("log");
    assert!(!log.exists());

    scale("--replicas=1");
    cluster.wait("late", "pod/clerk", "condition=Ready");
    let log = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually("the application said something", || (!log().is_empty()).then_some(()));
    assert_eq!(log(), "hello\n");
    cluster.kubectl(&["delete", "-n", "late", "pod/clerk"]);
    assert_eq!(log(), "hello\nfarewell\n");
}
