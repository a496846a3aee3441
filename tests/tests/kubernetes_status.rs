//! What the control plane does in a cluster besides reading it: one authority
//! for all replicas, pods that prove themselves by their tokens, roots in every
//! namespace, statuses, and one replica at a time that writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use heddle_tests::cluster::Cluster;
use heddle_tests::{Process, binary, eventually};
use serde_json::{Value, json};

/// What a replica that is gone keeps the others waiting for, and their next look.
const TAKE_OVER: Duration = Duration::from_secs(15 + 15);

/// A replica of the control plane in the network of a cluster.
struct Replica<'a> {
    cluster: &'a Cluster,
    process: Process,
    /// The file that has its number in the cluster's processes.
    number: PathBuf,
    admin: String,
}

impl<'a> Replica<'a> {
    fn start(cluster: &'a Cluster, directory: &Path, index: u16) -> Self {
        let number = directory.join(format!("replica-{index}.pid"));
        let (listen, admin) = (format!("0.0.0.0:{}", 7200 + index), format!("127.0.0.1:{}", 7290 + index));
        let mut command = numbered(cluster, &number, &binary("heddle-control-plane"));
        command.args(["--source", "kubernetes", "--listen", &listen, "--admin", &admin]);
        command.args(["--webhook", "127.0.0.1:0"]);
        command.args(["--log-level", "info,heddle_control_plane=debug"]);
        command.env("HEDDLE_POD_NAME", format!("replica-{index}")).env("HOME", cluster.directory());
        Self { cluster, process: Process::start(&mut command), number, admin }
    }

    fn shown(&self, path: &str) -> Option<String> {
        let mut command: Command = self.cluster.command("curl");
        let output = command.args(["-sf", "-m", "5", &format!("http://{}{path}", self.admin)]).output();
        let output = output.expect("util-linux has nsenter");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn metric(&self, sample: &str) -> Option<u64> {
        let text = self.shown("/metrics")?;
        text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok())
    }

    fn leads(&self) -> bool {
        self.metric("heddle_leader") == Some(1)
    }

    fn signal(&self, signal: &str) {
        tell(self.cluster, &self.number, signal);
    }

    /// Ends it as a crash would.
    fn crash(mut self) {
        self.signal("KILL");
        self.process.ended();
    }
}

/// A command in the network of a cluster that writes its number there into a file: `nsenter`, whose
/// number is known outside, would be told alone.
fn numbered(cluster: &Cluster, number: &Path, program: &Path) -> Command {
    let mut command = cluster.command("sh");
    command.args(["-c", "echo $$ >\"$1\"; shift; exec \"$@\"", "sh"]).arg(number).arg(program);
    command
}

/// Sends a signal to a command that was [`numbered`].
fn tell(cluster: &Cluster, number: &Path, signal: &str) {
    let number = fs::read_to_string(number).expect("it has started");
    let told = cluster.command("kill").args(["-s", signal, number.trim()]).status();
    assert!(told.expect("util-linux has nsenter").success());
}

fn definitions() -> String {
    let output = Command::new(binary("heddle-control-plane")).arg("crds").output().expect("it starts");
    String::from_utf8(output.stdout).expect("it is YAML")
}

fn service(name: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec: {{ports: [{{name: http, port: 80}}]}}
---
"
    )
}

fn route(parents: &str, backend: &str) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: users, namespace: shop}}
spec:
  parentRefs: {parents}
  rules: [{{backendRefs: [{{name: {backend}, port: 80}}]}}]
"
    )
}

fn policy(name: &str, service: &str) -> String {
    format!(
        "
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: {name}, namespace: shop}}
spec:
  targetRefs: [{{group: '', kind: Service, name: {service}}}]
  limits: {{requests: 7}}
"
    )
}

/// `status/reason` of a condition.
fn condition(conditions: &Value, kind: &str) -> Option<String> {
    let found = conditions.as_array()?.iter().find(|condition| condition["type"] == kind)?;
    Some(format!("{}/{}", found["status"].as_str()?, found["reason"].as_str()?))
}

/// Waits until a condition of an object is so.
fn becomes(cluster: &Cluster, object: &str, kind: &str, expected: &str) -> Value {
    eventually(&format!("{object} is {kind}={expected}"), || {
        let object = cluster.get("shop", object)?;
        (condition(&object["status"]["conditions"], kind)? == expected).then_some(object)
    })
}

/// Our entry for a parent of the route.
fn at_parent<'a>(route: &'a Value, parent: &str) -> Option<&'a Value> {
    let ours = |entry: &&Value| {
        entry["parentRef"]["name"] == parent && entry["controllerName"] == "heddle.dev/control-plane"
    };
    route["status"]["parents"].as_array()?.iter().find(ours)
}

/// Waits until the route is told so about a parent.
fn told(cluster: &Cluster, parent: &str, kind: &str, expected: &str) -> Value {
    eventually(&format!("the route is {kind}={expected} at {parent}"), || {
        let route = cluster.get("shop", "httproute/users")?;
        let entry = at_parent(&route, parent)?;
        (condition(&entry["conditions"], kind)? == expected).then_some(route)
    })
}

fn roots(cluster: &Cluster, namespace: &str) -> Option<String> {
    let map = cluster.get(namespace, "configmap/heddle-trust-bundle")?;
    map["data"]["roots.pem"].as_str().map(str::to_owned)
}

/// An authority is made once, and all namespaces learn of it, and of what is added.
fn roots_are_everywhere(cluster: &Cluster) {
    let first = eventually("the namespace has the roots", || roots(cluster, "shop"));
    assert_eq!(first.matches("BEGIN CERTIFICATE").count(), 1);
    cluster.kubectl(&["delete", "-n", "shop", "configmap/heddle-trust-bundle"]);
    eventually("what was deleted is restored", || roots(cluster, "shop"));
    let edit = json!({"data": {"roots.pem": "mine"}}).to_string();
    cluster.kubectl(&["patch", "-n", "shop", "configmap/heddle-trust-bundle", "-p", &edit]);
    eventually("what was edited is restored", || (roots(cluster, "shop")? == first).then_some(()));
    let forged = json!({"immutable": true, "data": {"roots.pem": "mine for ever"}}).to_string();
    cluster.kubectl(&["patch", "-n", "shop", "configmap/heddle-trust-bundle", "-p", &forged]);
    eventually("one that was made immutable is made anew", || {
        (roots(cluster, "shop")? == first).then_some(())
    });
    cluster.kubectl(&["create", "namespace", "late"]);
    eventually("a new namespace has the roots", || (roots(cluster, "late")? == first).then_some(()));

    // A second root is trusted everywhere before anything is signed under it.
    let key = rcgen::KeyPair::generate().expect("there is randomness");
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let next = params.self_signed(&key).expect("it is a CA's").pem();
    let both = json!({"stringData": {"ca.crt": format!("{first}{next}")}}).to_string();
    cluster.kubectl(&["patch", "-n", "heddle-system", "secret/heddle-ca", "-p", &both]);
    eventually("all trust the second root", || {
        let found = roots(cluster, "late")?;
        (found.starts_with(&first) && found.matches("BEGIN CERTIFICATE").count() == 2).then_some(())
    });
}

/// Routes say what became of them at each parent, beside what others say.
fn routes_are_told(cluster: &Cluster) {
    let users = "{group: '', kind: Service, name: users}";
    let gone = "{group: '', kind: Service, name: gone}";
    cluster.apply(&service("users"));
    cluster.apply(&route(&format!("[{users}, {gone}]"), "nowhere"));
    told(cluster, "users", "Accepted", "True/Accepted");
    told(cluster, "users", "ResolvedRefs", "False/BackendNotFound");
    let route_now = told(cluster, "gone", "Accepted", "False/NoMatchingParent");

    // Another controller has its own opinion.
    let foreign = json!({
        "parentRef": {"group": "", "kind": "Service", "name": "users"},
        "controllerName": "example.com/other",
        "conditions": [{
            "type": "Accepted", "status": "False", "reason": "Other", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    });
    let mut entries = route_now["status"]["parents"].as_array().expect("there are some").clone();
    entries.insert(0, foreign);
    let patch = json!({"status": {"parents": entries}}).to_string();
    cluster.kubectl(&[
        "patch",
        "-n",
        "shop",
        "httproute/users",
        "--subresource=status",
        "--type=merge",
        "-p",
        &patch,
    ]);

    // The missing Service comes, and the backend is corrected.
    cluster.apply(&service("gone"));
    told(cluster, "gone", "Accepted", "True/Accepted");
    cluster.apply(&route(&format!("[{users}, {gone}]"), "users"));
    let healed = told(cluster, "users", "ResolvedRefs", "True/ResolvedRefs");
    let entry = at_parent(&healed, "users").expect("it is there");
    assert_eq!(entry["conditions"][0]["observedGeneration"], healed["metadata"]["generation"]);
    assert_eq!(healed["status"]["parents"][0]["controllerName"], "example.com/other");

    // A port that the Service does not have, and a parent that is left.
    let no_port = "{group: '', kind: Service, name: users, port: 81}";
    cluster.apply(&route(&format!("[{no_port}]"), "users"));
    let left = told(cluster, "users", "Accepted", "False/NoMatchingParent");
    assert!(at_parent(&left, "gone").is_none(), "{left}");
    assert_eq!(left["status"]["parents"][0]["controllerName"], "example.com/other");
}

/// Nobody is to believe that a route of a kind that is not served does something.
fn unserved_routes_are_told(cluster: &Cluster) {
    for kind in ["TLSRoute", "UDPRoute"] {
        let version = eventually(&format!("there are {kind}s"), || {
            let plural = format!("{}s.gateway.networking.k8s.io", kind.to_lowercase());
            let definition = cluster.get("default", &format!("crd/{plural}"))?;
            let served = definition["spec"]["versions"].as_array()?.iter().find(|v| v["served"] == true)?;
            Some(served["name"].as_str()?.to_owned())
        });
        let hostnames = if kind == "TLSRoute" { "hostnames: [a.example.com]" } else { "" };
        cluster.apply(&format!(
            "
apiVersion: gateway.networking.k8s.io/{version}
kind: {kind}
metadata: {{name: unserved, namespace: shop}}
spec:
  {hostnames}
  parentRefs: [{{group: '', kind: Service, name: users}}]
  rules: [{{backendRefs: [{{name: users, port: 80}}]}}]
"
        ));
        eventually(&format!("the {kind} is told that it does nothing"), || {
            let route = cluster.get("shop", &format!("{}/unserved", kind.to_lowercase()))?;
            let accepted = condition(&at_parent(&route, "users")?["conditions"], "Accepted")?;
            (accepted == "False/UnsupportedValue").then_some(())
        });
    }
}

fn policies_are_told(cluster: &Cluster) {
    cluster.apply(&policy("limits", "users"));
    becomes(cluster, "trafficpolicy/limits", "Accepted", "True/Accepted");
    becomes(cluster, "trafficpolicy/limits", "ResolvedRefs", "True/ResolvedRefs");
    let before = becomes(cluster, "trafficpolicy/limits", "Enforced", "Unknown/NotInUse");
    cluster.apply(&policy("lost", "nobody"));
    becomes(cluster, "trafficpolicy/lost", "ResolvedRefs", "False/TargetNotFound");
    cluster.apply(&service("nobody"));
    becomes(cluster, "trafficpolicy/lost", "ResolvedRefs", "True/ResolvedRefs");
    // Meanwhile there was nothing new to say about the other.
    let after = cluster.get("shop", "trafficpolicy/limits").expect("it is there");
    assert_eq!(after["metadata"]["resourceVersion"], before["metadata"]["resourceVersion"]);
    let mesh = eventually("the mesh is an object", || {
        let mesh = cluster.get("default", "xmesh/heddle")?;
        (condition(&mesh["status"]["conditions"], "Accepted")? == "True/Accepted").then_some(mesh)
    });
    let features = mesh["status"]["supportedFeatures"].as_array().expect("there are some");
    assert!(features.iter().any(|feature| feature["name"] == "MeshConsumerRoute"), "{mesh}");
}

const PODS: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: users, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: users-1, namespace: shop}
spec:
  serviceAccountName: users
  terminationGracePeriodSeconds: 1
  containers:
  - name: app
    image: gateway-api/echo-advanced:v1.5.1
    args: [--port=8080, --grpc=7070]
";

/// A sidecar that proves itself by the token in a file of its own.
fn sidecar(cluster: &Cluster, directory: &Path, name: &str, token: &str) -> Process {
    let file = directory.join(name);
    fs::write(&file, token).expect("there is room");
    let mut command = cluster.command(binary("heddle-sidecar"));
    command.args(["proxy", "--service", "users", "--namespace", "shop", "--service-account", "users"]);
    command.args(["--control-plane", "127.0.0.1:7200", "--admin", "127.0.0.1:0", "--port", "8080"]);
    command.args(["--outbound", "127.0.0.1:0", "--inbound", "127.0.0.1:0"]);
    command.arg("--service-account-token").arg(file);
    command.arg("--ca-cert").arg(directory.join("roots.pem"));
    Process::start(&mut command)
}

fn pods_prove_themselves(cluster: &Cluster, directory: &Path, replica: &Replica<'_>) {
    cluster.apply(PODS);
    let uid = eventually("the pod is there", || {
        Some(cluster.get("shop", "pod/users-1")?["metadata"]["uid"].as_str()?.to_owned())
    });
    let bound =
        ["--bound-object-kind=Pod", "--bound-object-name=users-1", &format!("--bound-object-uid={uid}")];
    let token = |audience: &str, bound: &[&str]| {
        let audience = format!("--audience={audience}");
        let args = [&["create", "token", "-n", "shop", "users", &audience][..], bound].concat();
        cluster.kubectl(&args).trim().to_owned()
    };
    let good = token("heddle.dev", &bound);
    fs::write(directory.join("roots.pem"), roots(cluster, "shop").expect("it is there"))
        .expect("there is room");
    let (head, signature) = good.rsplit_once('.').expect("a token has three parts");
    let forged = format!("{head}.{}", signature.chars().rev().collect::<String>());
    for (name, token, complaint) in [
        ("other-audience", token("https://kubernetes.default.svc", &bound), "audience"),
        ("unbound", token("heddle.dev", &[]), "not bound to a pod"),
        ("forged", forged, "refused"),
    ] {
        let refused = sidecar(cluster, directory, name, &token);
        let said = refused.said("no identity yet");
        assert!(said.contains("Unauthenticated") && said.contains(complaint), "{said}");
    }
    let accepted = sidecar(cluster, directory, "good", &good);
    let said = accepted.said("identity obtained");
    assert!(said.contains("spiffe://heddle.local/ns/shop/sa/users"), "{said}");
    assert_eq!(replica.metric("heddle_certificates_issued_total{proof=\"service_account_token\"}"), Some(1));
}

/// The replicas as the endpoints of their Service. They have one address, and a slice each.
fn replicas_are_known(cluster: &Cluster) {
    let node = cluster.get("default", "node/node-0").expect("there is one");
    let addresses = node["status"]["addresses"].as_array().expect("it has some");
    let address = addresses.iter().find(|address| address["type"] == "InternalIP").expect("it has one");
    let address = address["address"].as_str().expect("it is text");
    cluster.apply(
        "
apiVersion: v1
kind: Service
metadata: {name: heddle-control-plane, namespace: heddle-system}
spec: {ports: [{name: discovery, port: 7200}]}
",
    );
    for index in [0, 1] {
        cluster.apply(&format!(
            "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: replica-{index}
  namespace: heddle-system
  labels: {{kubernetes.io/service-name: heddle-control-plane}}
addressType: IPv4
endpoints: [{{addresses: ['{address}'], targetRef: {{kind: Pod, name: replica-{index}}}}}]
ports: [{{name: discovery, port: {}}}]
",
            7200 + index
        ));
    }
}

/// What a policy says of its sidecars stands on all replicas, and says so when one is silent.
fn silence_is_not_passed_over(cluster: &Cluster, replicas: [&Replica<'_>; 2]) {
    becomes(cluster, "trafficpolicy/limits", "Enforced", "Unknown/NotInUse");
    let follower = if replicas[0].leads() { replicas[1] } else { replicas[0] };
    follower.signal("STOP");
    becomes(cluster, "trafficpolicy/limits", "Enforced", "Unknown/ReplicaSilent");
    follower.signal("CONT");
    becomes(cluster, "trafficpolicy/limits", "Enforced", "Unknown/NotInUse");
}

#[test]
fn a_cluster_has_one_authority_one_writer_and_true_statuses() {
    let Some(cluster) = Cluster::start() else { return };
    let directory = tempfile::tempdir().expect("there is room");
    for namespace in ["heddle-system", "shop"] {
        cluster.kubectl(&["create", "namespace", namespace]);
    }
    cluster.apply(&definitions());
    cluster.install_gateway_api();
    replicas_are_known(&cluster);

    // Both start together, and there is one authority.
    let mut replicas = [0, 1].map(|index| Replica::start(&cluster, directory.path(), index)).into_iter();
    let (a, b) = (replicas.next().expect("two"), replicas.next().expect("two"));
    for replica in [&a, &b] {
        eventually("it is ready", || replica.shown("/ready"));
    }
    let made = [&a, &b].map(|replica| replica.process.log().matches("made a certificate authority").count());
    assert_eq!(made.iter().sum::<usize>(), 1, "{made:?}");
    eventually("one writes", || (a.leads() != b.leads()).then_some(()));

    roots_are_everywhere(&cluster);
    routes_are_told(&cluster);
    unserved_routes_are_told(&cluster);
    policies_are_told(&cluster);
    pods_prove_themselves(&cluster, directory.path(), &a);
    silence_is_not_passed_over(&cluster, [&a, &b]);

    // The writer crashes, and the other goes on where it stopped.
    let (leader, other) = if a.leads() { (a, b) } else { (b, a) };
    leader.crash();
    let begun = Instant::now();
    eventually("the other writes", || other.leads().then_some(()));
    assert!(begun.elapsed() < TAKE_OVER, "it took {:?}", begun.elapsed());
    cluster.apply(&policy("later", "users"));
    becomes(&cluster, "trafficpolicy/later", "Accepted", "True/Accepted");
    let lease = cluster.get("heddle-system", "lease/heddle-control-plane").expect("it is there");
    assert_eq!(lease["spec"]["leaseTransitions"], 1);
}
