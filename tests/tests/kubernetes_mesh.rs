//! Heddle in a cluster, from manifests to packets: installed, labelled, deployed, spoken to.

use std::time::{Duration, Instant};

use heddle_tests::cluster::{Cluster, Settings, of_heddle};
use heddle_tests::eventually;
use serde_json::{Value, json};

/// How soon a policy that was applied has to be in effect.
const SOON: Duration = Duration::from_secs(1);

/// A policy by which nobody is served.
const CLOSED: &str = r#"
apiVersion: heddle.dev/v1alpha1
kind: FaultPolicy
metadata: {name: closed, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: prices}]
  abort: {status: 418, percent: 100}
"#;

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

/// A cluster of so many nodes with Heddle and the apps.
fn meshed(nodes: usize, install: &[&str]) -> Option<Cluster> {
    meshed_with(&Settings { nodes, images: of_heddle(), ..Settings::default() }, install)
}

fn meshed_with(settings: &Settings, install: &[&str]) -> Option<Cluster> {
    let cluster = Cluster::start_with(settings)?;
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
    cluster.apply(CLOSED);
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

/// A client that never stops, and writes down what it got and what failed.
fn shopper(cluster: &Cluster, node: &str) {
    cluster.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: shopper, namespace: shop}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
    - name: app
      image: machine
      command: [sh, -c, "while :; do curl --silent --show-error --fail --max-time 10 -o /dev/null http://prices/ 2>>/tmp/failed && echo >>/tmp/served; done"]
"#
    ));
    cluster.wait("shop", "pod/shopper", "condition=Ready");
}

/// How many requests of the client were answered.
fn served(cluster: &Cluster) -> usize {
    let command = ["sh", "-c", "touch /tmp/served; wc -l < /tmp/served"];
    let count = cluster.exec("shop", "shopper", "app", &command).expect("the client runs");
    count.trim().parse().expect("it is a number")
}

/// Waits until the client was served again, and looks whether anything failed.
fn nothing_failed(cluster: &Cluster, until: &str) {
    let before = served(cluster);
    eventually("requests go on", || (served(cluster) > before + 20).then_some(()));
    let failed = cluster.exec("shop", "shopper", "app", &["cat", "/tmp/failed"]);
    assert_eq!(failed.as_deref(), Ok(""), "until {until}");
}

#[test]
fn nothing_fails_while_pods_nodes_and_control_planes_come_and_go() {
    let Some(cluster) = meshed(2, &["--overlay", "ha"]) else { return };
    shopper(&cluster, "node-1");
    nothing_failed(&cluster, "something happened");
    cluster.kubectl(&["rollout", "restart", "-n", "shop", "deploy/prices"]);
    cluster.rolled_out("shop", "deploy/prices");
    nothing_failed(&cluster, "a rolling update was over");
    cluster.kubectl(&["scale", "-n", "shop", "deploy/prices", "--replicas=4"]);
    cluster.rolled_out("shop", "deploy/prices");
    cluster.kubectl(&["scale", "-n", "shop", "deploy/prices", "--replicas=2"]);
    nothing_failed(&cluster, "there were more replicas and fewer again");
    cluster.drain("node-0");
    cluster.rolled_out("shop", "deploy/prices");
    nothing_failed(&cluster, "a node was drained");
    cluster.kubectl(&["uncordon", "node-0"]);
    let control_plane = |verb: &[&str]| {
        cluster.kubectl(&[verb, &["-n", "heddle-system"]].concat());
    };
    control_plane(&["rollout", "restart", "deploy/heddle-control-plane"]);
    cluster.rolled_out("heddle-system", "deploy/heddle-control-plane");
    nothing_failed(&cluster, "the control plane was replaced");
    let lease = cluster.get("heddle-system", "lease/heddle-control-plane").expect("somebody leads");
    let holder = lease["spec"]["holderIdentity"].as_str().expect("it has a name").to_owned();
    let leader = holder.split('_').next().expect("a holder is named after its pod");
    control_plane(&["delete", "pod", leader, "--grace-period=0", "--force"]);
    eventually("another leads", || {
        let lease = cluster.get("heddle-system", "lease/heddle-control-plane")?;
        lease["spec"]["holderIdentity"].as_str().filter(|name| !name.is_empty() && *name != holder).map(drop)
    });
    nothing_failed(&cluster, "the leader was killed");
    control_plane(&["scale", "deploy/heddle-control-plane", "--replicas=0"]);
    cluster.rolled_out("heddle-system", "deploy/heddle-control-plane");
    nothing_failed(&cluster, "there was no control plane");
    control_plane(&["scale", "deploy/heddle-control-plane", "--replicas=3"]);
    cluster.rolled_out("heddle-system", "deploy/heddle-control-plane");
    nothing_failed(&cluster, "control planes were back");
}

/// What `heddle check --cluster` says about a subject: its state and its words.
fn checked(cluster: &Cluster, subject: &str) -> (String, String) {
    let output = cluster.heddle(&["check", "--cluster", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    let findings = report["findings"].as_array().cloned().unwrap_or_default();
    let finding = findings.iter().find(|finding| finding["subject"] == subject).expect("it is looked at");
    let text = |field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    (text("state"), text("detail"))
}

/// The images of all containers of the shop's pods.
fn images(cluster: &Cluster) -> String {
    let path = "jsonpath={.items[*].spec['initContainers','containers'][*].image}";
    cluster.kubectl(&["get", "pods", "-n", "shop", "-o", path])
}

/// The test bed runs the same programs under every tag. What another version says on the wire is played to
/// each program by its own tests (`heddle-sidecar`, `agent::discovery`; `heddle-control-plane`, `serve`).
#[test]
fn an_upgrade_stops_nothing_and_sidecars_of_both_versions_speak_with_each_other() {
    let Some(cluster) = meshed(1, &["--set", "replicas=2"]) else { return };
    let mut numbers = env!("CARGO_PKG_VERSION").split('.').map(|n| n.parse::<u32>().expect("a number"));
    let (major, minor) = (numbers.next().expect("the first"), numbers.next().expect("the second"));
    let next = format!("{major}.{}.0", minor + 1);
    shopper(&cluster, "node-0");
    nothing_failed(&cluster, "something happened");

    let images_of = [
        format!("image=heddle/control-plane:{next}"),
        format!("sidecar.sidecar-image=heddle/sidecar:{next}"),
    ];
    let upgraded = cluster.heddle(&["upgrade", "--set", &images_of[0], "--set", &images_of[1]]);
    assert!(upgraded.status.success(), "{upgraded:?}");
    cluster.apply(&String::from_utf8_lossy(&upgraded.stdout));
    cluster.rolled_out("heddle-system", "deploy/heddle-control-plane");
    nothing_failed(&cluster, "the control plane was upgraded");

    cluster.kubectl(&["rollout", "restart", "-n", "shop", "deploy/prices"]);
    cluster.rolled_out("shop", "deploy/prices");
    nothing_failed(&cluster, "half of the sidecars were upgraded");
    let running = images(&cluster);
    let own = concat!("heddle/sidecar:", env!("CARGO_PKG_VERSION"));
    assert!(running.contains(own) && running.contains(&format!("heddle/sidecar:{next}")), "{running}");
    eventually("the new speak to the old", || {
        let answer = cluster.exec("shop", "deploy/prices", "app", &["client", "http://cart/"]).ok()?;
        (answer.contains("StatusCode=200") && answer.contains("Hostname=cart-")).then_some(())
    });
    assert_eq!(checked(&cluster, "version skew").0, "good");

    // Back again, which is an upgrade like any other.
    let back = cluster.heddle(&["upgrade", "--unset", "image", "--unset", "sidecar.sidecar-image"]);
    assert!(back.status.success(), "{back:?}");
    cluster.apply(&String::from_utf8_lossy(&back.stdout));
    cluster.rolled_out("heddle-system", "deploy/heddle-control-plane");
    cluster.kubectl(&["rollout", "restart", "-n", "shop", "deploy/prices"]);
    cluster.rolled_out("shop", "deploy/prices");
    nothing_failed(&cluster, "all was as it had been");

    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop, annotations: {heddle.dev/sidecar-image: "heddle/sidecar:99.0.0"}}
spec: {containers: [{name: app, image: machine, command: [sleep, "3600"]}]}
"#,
    );
    let (state, detail) = checked(&cluster, "version skew");
    assert!(state == "bad" && detail.ends_with("shop/far (99.0.0)"), "{state}: {detail}");
}

/// What a client that never stops was answered, each answer that differs from the one before.
fn answers(cluster: &Cluster) -> Vec<String> {
    let said = cluster.exec("shop", "caller", "app", &["uniq", "/tmp/said"]).expect("the client runs");
    said.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn without_pods_requests_are_refused_with_the_reason_and_no_other_is() {
    let Some(cluster) = meshed(1, &[]) else { return };
    cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: caller, namespace: shop}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: app
      image: machine
      command: [sh, -c, "while :; do curl --silent --max-time 10 -o /dev/null -w '%{http_code} %header{heddle-error}\n' http://prices/ >>/tmp/said; done"]
"#,
    );
    cluster.wait("shop", "pod/caller", "condition=Ready");
    let until = |last: &str| {
        eventually(last, || answers(&cluster).last().is_some_and(|said| said == last).then_some(()));
    };
    until("200");
    let scale = |replicas: &str| {
        cluster.kubectl(&["scale", "-n", "shop", "deploy/prices", "--replicas", replicas]);
        cluster.rolled_out("shop", "deploy/prices");
    };
    scale("0");
    until("503 no_healthy_endpoint");
    scale("2");
    until("200");
    assert_eq!(answers(&cluster), ["200", "503 no_healthy_endpoint", "200"]);
}

/// How long the API server is away, in seconds.
const OUTAGE: &str = "HEDDLE_OUTAGE";

#[test]
fn an_api_server_that_is_away_stops_nothing_and_is_followed_when_it_is_back() {
    let Some(mut cluster) = meshed(1, &[]) else { return };
    let length = std::env::var(OUTAGE).map_or(10, |seconds| seconds.parse().expect("whole seconds"));
    shopper(&cluster, "node-0");
    nothing_failed(&cluster, "something happened");
    let before = served(&cluster);
    cluster.kill_api_server();
    std::thread::sleep(Duration::from_secs(length));
    cluster.start_api_server();
    nothing_failed(&cluster, "the API server was back");
    let during = served(&cluster) - before;
    println!("{during} requests while the API server was away for {length} s, none failed");
    assert!(during as u64 > length * 5, "{during} requests in {length} s");
    cluster.apply(CLOSED);
    let applied = Instant::now();
    eventually("a policy is in effect", || {
        ask(&cluster, "http://prices/").ok().filter(|answer| answer.contains("StatusCode=418"))
    });
    assert!(applied.elapsed() < Duration::from_secs(10), "after {:?}", applied.elapsed());
}

/// A policy that leaves everybody in peace.
fn limits(requests: u32) -> String {
    format!(
        r#"
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: prices, namespace: shop}}
spec:
  targetRefs: [{{group: "", kind: Service, name: prices}}]
  limits: {{requests: {requests}}}
"#
    )
}

/// Waits until the policy says so of the sidecars that enforce it, about the version that is there.
fn enforced(cluster: &Cluster, status: &str, message: &str) {
    eventually(&format!("Enforced={status}: {message}"), || {
        let policy = cluster.get("shop", "trafficpolicy/prices")?;
        let mut conditions = policy["status"]["conditions"].as_array()?.iter();
        let said = conditions.find(|condition| condition["type"] == "Enforced")?;
        let current = said["observedGeneration"] == policy["metadata"]["generation"];
        (current && said["status"] == status && said["message"].as_str()?.contains(message)).then_some(())
    });
}

/// The number of a sidecar's process among those of the cluster, by its pod.
fn sidecar_of(cluster: &Cluster, pod: &str) -> String {
    let script = format!(
        "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline | grep -q '^/heddle-sidecar proxy' && \
         tr '\\0' '\\n' < $p/environ | grep -qx HEDDLE_POD_NAME={pod} && echo ${{p#/proc/}}; done; true"
    );
    let found = cluster.command("sh").args(["-c", &script]).output().expect("util-linux has nsenter");
    let found = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    assert!(found.parse::<u32>().is_ok(), "the sidecar of {pod} is not one process: {found:?}");
    found
}

/// Sidecars are connected to one of three control planes, and one of these writes statuses.
#[test]
fn a_policy_is_enforced_when_the_sidecars_of_all_control_planes_say_so() {
    let Some(cluster) = meshed(1, &["--overlay", "ha"]) else { return };
    cluster.kubectl(&["scale", "-n", "shop", "deploy/cart", "--replicas=6"]);
    cluster.rolled_out("shop", "deploy/cart");
    let pods = cluster.kubectl(&["get", "pods", "-n", "shop", "-l", "app=cart", "-o", "name"]);
    let pods: Vec<&str> = pods.lines().filter_map(|pod| pod.strip_prefix("pod/")).collect();
    assert_eq!(pods.len(), 6);
    for pod in &pods {
        // A sidecar has the policies of the Services that it was asked for.
        let asked = cluster.exec("shop", pod, "app", &["client", "http://prices/"]);
        assert!(asked.as_ref().is_ok_and(|answer| answer.contains("StatusCode=200")), "{asked:?}");
    }
    cluster.apply(&limits(700));
    enforced(&cluster, "True", "6 of 6 sidecars");

    let sidecar = sidecar_of(&cluster, pods[0]);
    let tell = |signal: &str| {
        let told = cluster.command("kill").args(["-s", signal, &sidecar]).status();
        assert!(told.expect("util-linux has nsenter").success());
    };
    tell("STOP");
    cluster.apply(&limits(800));
    enforced(&cluster, "False", "5 of 6 sidecars");
    tell("CONT");
    enforced(&cluster, "True", "6 of 6 sidecars");
}

/// How long certificates last while authorities are replaced: the shortest that can be set.
const LIFETIME: Duration = Duration::from_secs(60);

/// Certificate and key of an authority of our own.
fn authority() -> (String, String) {
    let key = rcgen::KeyPair::generate().expect("there is randomness");
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).expect("it is a CA's");
    (certificate.pem(), key.serialize_pem())
}

/// Changes parts of the Secret of the mesh's authority.
fn change_authority(cluster: &Cluster, parts: Value) {
    let patch = json!({"stringData": parts}).to_string();
    cluster.kubectl(&["patch", "-n", "heddle-system", "secret/heddle-ca", "-p", &patch]);
}

/// The roots that new pods trust, in PEM.
fn roots(cluster: &Cluster) -> Option<String> {
    let map = cluster.get("shop", "configmap/heddle-trust-bundle")?;
    map["data"]["roots.pem"].as_str().map(str::to_owned)
}

/// The same roots, whichever way their lines are broken.
fn is_only(roots: &str, certificate: &str) -> bool {
    let letters = |text: &str| text.split_whitespace().collect::<String>();
    letters(roots) == letters(certificate)
}

/// How many roots the client's sidecar trusts.
fn trusted(cluster: &Cluster) -> Option<usize> {
    let shown =
        cluster.exec("shop", "shopper", "app", &["curl", "-sf", "http://127.0.0.1:7190/certs"]).ok()?;
    let shown: Value = serde_json::from_str(&shown).ok()?;
    Some(shown["trust"]["roots"].as_array()?.len())
}

/// New pods have certificates of whoever signs now, and everybody who speaks to them makes new connections.
fn deployed_anew(cluster: &Cluster, until: &str) {
    cluster.kubectl(&["rollout", "restart", "-n", "shop", "deploy/prices"]);
    cluster.rolled_out("shop", "deploy/prices");
    nothing_failed(cluster, until);
}

/// Waits for what takes as long as certificates last, and a little longer.
fn in_time(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < LIFETIME * 3, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn nothing_fails_while_the_certificate_authority_is_replaced() {
    let Some(cluster) = meshed(2, &["--overlay", "ha", "--set", "certificateLifetime=1m"]) else { return };
    shopper(&cluster, "node-0");
    nothing_failed(&cluster, "something happened");

    // Step by step.
    let before = roots(&cluster).expect("they are there");
    let (certificate_now, key) = authority();
    change_authority(&cluster, json!({"ca.crt": format!("{before}{certificate_now}")}));
    eventually("the sidecar trusts both roots", || (trusted(&cluster)? == 2).then_some(()));
    change_authority(&cluster, json!({"tls.crt": certificate_now, "tls.key": key}));
    let changed = Instant::now();
    deployed_anew(&cluster, "another authority signed");
    in_time("the certificates of before have ended", || changed.elapsed() > LIFETIME);
    change_authority(&cluster, json!({"ca.crt": certificate_now}));
    eventually("the first root is out", || is_only(&roots(&cluster)?, &certificate_now).then_some(()));
    deployed_anew(&cluster, "the first root was out");

    // All at once; the second time control planes are restarted that have not finished with it.
    for restart in [false, true] {
        let (certificate, key) = authority();
        change_authority(&cluster, json!({"tls.crt": certificate, "tls.key": key, "ca.crt": certificate}));
        eventually("the new root is trusted beside the old one", || {
            (roots(&cluster)?.matches("BEGIN CERTIFICATE").count() == 2).then_some(())
        });
        if restart {
            cluster.kubectl(&["rollout", "restart", "-n", "heddle-system", "deploy/heddle-control-plane"]);
            cluster.rolled_out("heddle-system", "deploy/heddle-control-plane");
            nothing_failed(&cluster, "the control plane was restarted in between");
        }
        deployed_anew(&cluster, "everything was replaced at once");
        in_time("the old root goes", || roots(&cluster).is_some_and(|now| is_only(&now, &certificate)));
        deployed_anew(&cluster, "the old root was gone");
    }
}

/// How soon changes that were made while the API server was away have to be in effect when it is back.
const SOON_AFTER: Duration = Duration::from_secs(10);

/// What is changed meanwhile: a policy for a service that the client does not use, and a new service.
const MEANWHILE: &str = r#"
apiVersion: heddle.dev/v1alpha1
kind: FaultPolicy
metadata: {name: closed, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: cart}]
  abort: {status: 418, percent: 100}
---
apiVersion: v1
kind: Service
metadata: {name: costs, namespace: shop}
spec:
  selector: {app: prices}
  ports: [{name: http, port: 80, targetPort: 8080}]
"#;

/// The pods of `prices` of which a field, if it is there, is not empty.
fn prices(cluster: &Cluster, field: &str) -> Vec<String> {
    let output = format!("jsonpath={{range .items[?({field})]}}{{.metadata.name}} {{end}}");
    let names = cluster.kubectl(&["get", "pods", "-n", "shop", "-l", "app=prices", "-o", &output]);
    names.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn changes_made_while_the_api_server_was_away_arrive_when_it_is_back() {
    let settings = Settings { images: of_heddle(), second_api_server: true, ..Settings::default() };
    let Some(mut cluster) = meshed_with(&settings, &[]) else { return };
    shopper(&cluster, "node-0");
    nothing_failed(&cluster, "something happened");

    // The control plane has lost the cluster, and life goes on.
    cluster.kill_api_server();
    let first = prices(&cluster, "@.status.podIP");
    cluster.apply(MEANWHILE);
    cluster.kubectl(&["scale", "-n", "shop", "deploy/prices", "--replicas=4"]);
    cluster.kubectl(&["delete", "-n", "shop", "pod", &first[0], "--wait=false"]);
    eventually("there are more pods", || {
        let now = prices(&cluster, "@.status.podIP");
        (now.len() == 4 && !now.contains(&first[0])).then_some(())
    });
    nothing_failed(&cluster, "pods came and went without the control plane");
    let cart = ask(&cluster, "http://cart/").expect("it runs");
    assert!(cart.contains("StatusCode=200"), "nobody has told of the policy: {cart}");

    cluster.start_api_server();
    let back = Instant::now();
    eventually("the policy is in effect", || {
        ask(&cluster, "http://cart/").ok().filter(|answer| answer.contains("StatusCode=418"))
    });
    eventually("the new service is served", || {
        let answer = ask(&cluster, "http://costs/").ok()?;
        (answer.contains("StatusCode=200") && answer.contains("Hostname=prices-")).then_some(())
    });
    assert!(back.elapsed() < SOON_AFTER, "after {:?}", back.elapsed());
    println!("a policy and a service were in effect {:?} after the API server was back", back.elapsed());
    // New pods could not prove to anybody who they are; now they can.
    cluster.rolled_out("shop", "deploy/prices");
    println!("new pods were ready after {:?}", back.elapsed());
    eventually("new pods are asked", || {
        let answer = ask(&cluster, "http://prices/").ok()?;
        (answer.contains("Hostname=prices-") && first.iter().all(|name| !answer.contains(name))).then_some(())
    });
    nothing_failed(&cluster, "the API server was back");
}
