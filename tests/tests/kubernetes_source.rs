//! The control plane's source `kubernetes` against a real API server: what is
//! there is in force soon, what goes away goes, and an API server that is lost
//! changes nothing.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::ensure;
use heddle_tests::cluster::Cluster;
use heddle_tests::trials::one_of_three;
use heddle_tests::{Process, binary, eventually};
use serde_json::Value;

/// How long it may take until a change is in force.
const SOON: Duration = Duration::from_secs(1);

/// What the control plane in a cluster's network tells.
struct ControlPlane<'a>(&'a Cluster);

/// Addresses in a cluster are its own.
const ADMIN: &str = "127.0.0.1:7290";

fn start_control_plane(cluster: &Cluster) -> Process {
    let mut command = cluster.command(binary("heddle-control-plane"));
    command.env("HOME", cluster.directory()).env("XDG_RUNTIME_DIR", cluster.directory());
    let data = cluster.directory().join("heddle");
    command.args(["--source", "kubernetes", "--listen", "127.0.0.1:7200", "--admin", ADMIN, "--data-dir"]);
    command.arg(data).args(["--log-level", "info,heddle_control_plane=debug"]);
    let process = Process::start(&mut command);
    process.listening("admin");
    process
}

/// What the admin listener answers, if that is a success.
fn shown(cluster: &Cluster, path: &str) -> Option<String> {
    let mut command: Command = cluster.command("curl");
    let output = command.args(["-sf", "-m", "30", &format!("http://{ADMIN}{path}")]).output();
    let output = output.expect("util-linux has nsenter");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

impl ControlPlane<'_> {
    fn json(&self, path: &str) -> Value {
        serde_json::from_str(&shown(self.0, path).expect("it answers")).expect("it is JSON")
    }

    /// Waits until the service, as sidecars get it, has this text in it, and not that.
    fn has(&self, service: &str, text: &str, not: &str) {
        eventually(&format!("{service} has {text:?} and not {not:?}"), || {
            let service = shown(self.0, &format!("/service?name={service}"))?;
            (service.contains(text) && (not.is_empty() || !service.contains(not))).then_some(())
        });
    }

    /// Gives a service, which is at `before` if it is anywhere, addresses of this network until one
    /// is known soon. Returns that.
    fn moves_soon(&self, name: &str, before: &str, network: &str) -> String {
        let (mut at, mut number) = (before.to_owned(), 0);
        one_of_three(|| {
            number += 1;
            let next = format!("{network}.{number}");
            self.0.apply(&service(name, &next));
            let begun = Instant::now();
            self.has(&format!("shop/{name}"), &next, &at);
            at = next;
            ensure!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
            Ok(())
        });
        at
    }

    /// Whether the policy is accepted; `None`: it is not known.
    fn accepted(&self, name: &str) -> Option<bool> {
        let statuses = self.json("/statuses");
        let all = statuses["policies"].as_array()?.iter().chain(statuses["routes"].as_array()?);
        all.clone().find(|status| status["name"] == name)?["accepted"].as_bool()
    }

    fn errors(&self) -> Vec<String> {
        let errors = self.json("/errors");
        let errors = errors["errors"].as_array().expect("a list").iter();
        errors.map(|error| format!("{}: {}", error["file"], error["message"])).collect()
    }

    fn watches(&self, state: &str) -> u32 {
        let metrics = shown(self.0, "/metrics").expect("it answers");
        let name = format!("heddle_source_watches{{state=\"{state}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).expect("it is there")
    }
}

/// A service whose endpoints somebody else looks after.
fn service(name: &str, address: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{ports: [{{name: http, port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints: [{{addresses: [{address}]}}]
---
"
    )
}

const MESHED: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: cart, namespace: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: cart, namespace: shop}
spec:
  replicas: 1
  selector: {matchLabels: {app: cart}}
  template:
    metadata: {labels: {app: cart, heddle.dev/meshed: 'true'}}
    spec:
      serviceAccountName: cart
      terminationGracePeriodSeconds: 1
      containers:
      - name: app
        image: gateway-api/echo-advanced:v1.5.1
        args: [--port=8080, --grpc=7070]
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  selector: {app: cart}
  ports: [{name: http, port: 80, targetPort: 8080}]
";

fn policy(name: &str, service: &str) -> String {
    format!(
        "
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: {name}, namespace: shop}}
spec:
  targetRefs: [{{group: '', kind: Service, name: {service}}}]
  limits: {{requests: 7}}
---
"
    )
}

fn definitions() -> String {
    let output = Command::new(binary("heddle-control-plane")).arg("crds").output().expect("it starts");
    String::from_utf8(output.stdout).expect("it is YAML")
}

/// Drops all that etcd remembers of the past, as it does every few minutes in a cluster that is used.
fn compact(cluster: &Cluster) {
    let version = cluster.kubectl(&["get", "--raw", "/api/v1/namespaces/shop"]);
    let version: Value = serde_json::from_str(&version).expect("it is JSON");
    let list = cluster.kubectl(&["get", "--raw", "/api/v1/services?limit=1"]);
    let list: Value = serde_json::from_str(&list).expect("it is JSON");
    let revision = list["metadata"]["resourceVersion"].as_str().expect("lists have one");
    assert_ne!(version["metadata"]["resourceVersion"], revision);
    let body = format!("{{\"revision\": {revision}, \"physical\": true}}");
    let mut command = cluster.command("curl");
    let status = command
        .args(["-sf", "-o", "/dev/null", "-d", &body, "http://127.0.0.1:2379/v3/kv/compaction"])
        .status()
        .expect("util-linux has nsenter");
    assert!(status.success());
}

#[test]
fn a_cluster_is_followed_through_good_and_bad_times() {
    let Some(mut cluster) = Cluster::start() else { return };
    // The control plane keeps its authority in its own namespace.
    cluster.kubectl(&["create", "namespace", "heddle-system"]);
    cluster.kubectl(&["create", "namespace", "shop"]);
    cluster.apply(&service("users", "10.1.0.1"));

    // There are neither routes nor policies in this cluster yet.
    let process = start_control_plane(&cluster);
    eventually("it knows the cluster", || shown(&cluster, "/ready"));
    let plane = ControlPlane(&cluster);
    plane.has("shop/users", "10.1.0.1", "spiffe://");
    eventually("three kinds are watched", || {
        (plane.watches("absent") > 6 && plane.watches("live") == 3).then_some(())
    });

    // Changes are in force within a second.
    let users = plane.moves_soon("users", "10.1.0.1", "10.1.1");
    plane.moves_soon("orders", "", "10.1.2");
    cluster.kubectl(&["delete", "-n", "shop", "service/orders"]);
    eventually("the service is gone", || {
        shown(&cluster, "/service?name=shop/orders").is_none().then_some(())
    });

    // A pod with a sidecar is spoken to as what it is.
    cluster.apply(MESHED);
    plane.has("shop/cart", "spiffe://heddle.local/ns/shop/sa/cart", "");

    // Kinds are picked up when their definitions appear, and given up when they go.
    cluster.apply(&definitions());
    cluster.kubectl(&[
        "wait",
        "--for=condition=Established",
        "--timeout=60s",
        "crd",
        "trafficpolicies.heddle.dev",
    ]);
    let begun = Instant::now();
    eventually("the kinds are watched", || (plane.watches("absent") == 3).then_some(()));
    assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
    one_of_three(|| {
        cluster.kubectl(&["delete", "-n", "shop", "tpol/limits", "--ignore-not-found"]);
        eventually("there is no policy", || plane.accepted("limits").is_none().then_some(()));
        cluster.apply(&policy("limits", "users"));
        let begun = Instant::now();
        eventually("the policy is in force", || plane.accepted("limits"));
        ensure!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
        Ok(())
    });
    plane.has("shop/users", "shop/limits", "");
    cluster.kubectl(&["delete", "crd", "faultpolicies.heddle.dev"]);
    eventually("the kind is given up", || (plane.watches("absent") == 4).then_some(()));
    assert!(plane.errors().is_empty(), "{:?}", plane.errors());

    // The API server is lost: all stays as it is, and is said once.
    cluster.kill_api_server();
    let plane = ControlPlane(&cluster);
    let said = eventually("the loss is shown", || plane.errors().pop());
    assert!(said.contains("the API server cannot be reached"), "{said}");
    plane.has("shop/users", "shop/limits", "");
    plane.has("shop/cart", "spiffe://heddle.local/ns/shop/sa/cart", "");
    // It is back, without a memory of the past; what changes is in force within seconds.
    cluster.start_api_server();
    let begun = Instant::now();
    cluster.apply(&service("users", "10.1.0.4"));
    let plane = ControlPlane(&cluster);
    plane.has("shop/users", "10.1.0.4", &users);
    assert!(begun.elapsed() < Duration::from_secs(30), "it took {:?}", begun.elapsed());
    eventually("all is well again", || plane.errors().is_empty().then_some(()));
    let losses = process.log().lines().filter(|line| line.contains("cannot be reached")).count();
    assert_eq!(losses, 1, "{}", process.log());

    // The past is forgotten while the watches run, and everything goes on.
    compact(&cluster);
    plane.moves_soon("users", "10.1.0.4", "10.1.3");
    assert_eq!(plane.accepted("limits"), Some(true));
}
