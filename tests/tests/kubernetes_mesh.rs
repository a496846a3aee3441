//! Heddle in a cluster, from manifests to packets: installed, labelled, deployed, spoken to.

use std::time::{Duration, Instant};

use heddle_tests::cluster::{Cluster, Settings, of_heddle};
use heddle_tests::eventually;

/// How soon a policy that was applied has to be in effect.
const SOON: Duration = Duration::from_secs(1);

/// Two plain apps in a namespace that is labelled, each with a Service.
fn apps() -> String {
    let app = |name: &str| {
        format!(
            r#"
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: shop}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
        - name: app
          image: gateway-api/echo-advanced:v1.5.1
          args: [--port=8080, --grpc=7070]
          readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: grpc, port: 7070}}]
"#
        )
    };
    let namespace =
        "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/inject: enabled}}}";
    format!("{namespace}\n{}{}", app("cart"), app("prices"))
}

/// A cluster with Heddle and the apps.
fn meshed(nodes: usize, install: &[&str]) -> Option<Cluster> {
    let cluster = Cluster::start_with(&Settings { nodes, images: of_heddle() })?;
    cluster.install_gateway_api();
    cluster.install_heddle(install);
    cluster.apply(&apps());
    cluster.rolled_out("shop", "deploy/cart");
    cluster.rolled_out("shop", "deploy/prices");
    Some(cluster)
}

/// What a request from a pod of `cart` says.
fn ask(cluster: &Cluster, url: &str) -> Result<String, String> {
    cluster.exec("shop", "deploy/cart", "app", &["client", url])
}

#[test]
fn plain_manifests_make_a_mesh() {
    let Some(cluster) = meshed(1, &[]) else { return };
    for url in ["http://prices/", "http://prices.shop/", "grpc://prices:7070"] {
        eventually(url, || {
            let answer = ask(&cluster, url).ok()?;
            (answer.contains("StatusCode=200") && answer.contains("Hostname=prices-")).then_some(())
        });
    }

    // Who has no identity is not served.
    cluster.apply(
        r#"
{apiVersion: v1, kind: Namespace, metadata: {name: outside}}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: outside}
spec:
  containers: [{name: app, image: "gateway-api/echo-advanced:v1.5.1", args: [--port=8080]}]
"#,
    );
    cluster.wait("outside", "pod/stranger", "condition=Ready");
    let refused = cluster.exec("outside", "stranger", "app", &["client", "http://prices.shop/"]);
    assert!(!refused.as_ref().is_ok_and(|answer| answer.contains("Hostname=")), "{refused:?}");

    // A policy is in effect within a second, and says so.
    cluster.apply(
        r#"
apiVersion: heddle.dev/v1alpha1
kind: FaultPolicy
metadata: {name: closed, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: prices}]
  abort: {status: 418, percent: 100}
"#,
    );
    let applied = Instant::now();
    eventually("the policy is in effect", || {
        ask(&cluster, "http://prices/").ok().filter(|answer| answer.contains("StatusCode=418"))
    });
    assert!(applied.elapsed() < SOON, "after {:?}", applied.elapsed());
    cluster.wait("shop", "faultpolicy/closed", "condition=Accepted");
    cluster.kubectl(&["delete", "-n", "shop", "faultpolicy/closed"]);

    // A wrong one is refused where it is written.
    let wrong = cluster.try_apply(
        r#"
apiVersion: heddle.dev/v1alpha1
kind: FaultPolicy
metadata: {name: wrong, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: prices}]
  abort: {status: 4180, percent: 100}
"#,
    );
    let complaint = wrong.expect_err("there is no such status");
    assert!(complaint.contains("spec.abort.status"), "{complaint}");

    // A Job completes although its sidecar would go on.
    cluster.apply(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {name: ask, namespace: shop}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers:
        - name: app
          image: gateway-api/echo-advanced:v1.5.1
          command: [client, "http://prices/"]
"#,
    );
    cluster.wait("shop", "job/ask", "condition=Complete");
    let said = cluster.logs("shop", "job/ask", "app");
    assert!(said.contains("StatusCode=200") && said.contains("Hostname=prices-"), "{said}");
}

#[test]
fn nothing_fails_while_pods_nodes_and_control_planes_come_and_go() {
    let Some(mut cluster) = meshed(2, &["--overlay", "ha"]) else { return };
    // A client that never stops, and writes down what fails.
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: shopper, namespace: shop}
spec:
  nodeName: node-1
  terminationGracePeriodSeconds: 1
  containers:
    - name: app
      image: machine
      command: [sh, -c, "while :; do curl --silent --show-error --fail --max-time 10 -o /dev/null http://prices/ 2>>/tmp/failed && echo >>/tmp/served; done"]
"#,
    );
    cluster.wait("shop", "pod/shopper", "condition=Ready");
    let count = |cluster: &Cluster, file: &str| -> usize {
        let command = format!("touch /tmp/{file}; wc -l < /tmp/{file}");
        let count = cluster.exec("shop", "shopper", "app", &["sh", "-c", &command]).expect("the client runs");
        count.trim().parse().expect("it is a number")
    };
    let more = |cluster: &Cluster, after: &str| {
        let before = count(cluster, "served");
        eventually("requests go on", || (count(cluster, "served") > before + 20).then_some(()));
        let failed = cluster.exec("shop", "shopper", "app", &["cat", "/tmp/failed"]);
        assert_eq!(failed.as_deref(), Ok(""), "after {after}");
    };
    more(&cluster, "nothing");
    cluster.kubectl(&["rollout", "restart", "-n", "shop", "deploy/prices"]);
    cluster.rolled_out("shop", "deploy/prices");
    more(&cluster, "a rolling update");
    cluster.kubectl(&["scale", "-n", "shop", "deploy/prices", "--replicas=4"]);
    cluster.rolled_out("shop", "deploy/prices");
    cluster.kubectl(&["scale", "-n", "shop", "deploy/prices", "--replicas=2"]);
    more(&cluster, "more replicas and fewer");
    cluster.drain("node-0");
    cluster.rolled_out("shop", "deploy/prices");
    more(&cluster, "a node was drained");
    cluster.kubectl(&["uncordon", "node-0"]);
    cluster.kubectl(&["rollout", "restart", "-n", "heddle-system", "deploy/heddle-control-plane"]);
    cluster.rolled_out("heddle-system", "deploy/heddle-control-plane");
    more(&cluster, "the control plane was replaced");
    cluster.kill_api_server();
    std::thread::sleep(Duration::from_secs(1));
    cluster.start_api_server();
    more(&cluster, "the API server was killed");
}
