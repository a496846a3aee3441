//! Heddle in a cluster, from manifests to packets: installed, labelled, deployed, spoken to.

use std::time::{Duration, Instant};

use anyhow::ensure;
use heddle_tests::cluster::Cluster;
use heddle_tests::eventually;
use heddle_tests::trials::one_of_three;
use serde_json::Value;

/// How soon a policy that was applied has to be in effect.
const SOON: Duration = Duration::from_secs(1);

/// Another name of a Service, for DNS and for nobody else.
const ALIAS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: tariffs, namespace: shop}
spec: {type: ExternalName, externalName: prices.shop.svc.cluster.local}
"#;

#[test]
fn plain_manifests_make_a_mesh() {
    let Some(cluster) = Cluster::meshed(1, &[]) else { return };
    for url in ["http://prices/", "http://prices.shop/", "grpc://prices:7070"] {
        eventually(url, || {
            let answer = cluster.ask(url).ok()?;
            (answer.contains("StatusCode=200") && answer.contains("Hostname=prices-")).then_some(())
        });
    }

    // An alias leads to the Service that it stands for, with all that holds there.
    cluster.apply(ALIAS);
    let alias = |status: &str| {
        eventually(&format!("the alias answers {status}"), || {
            let answer = cluster.ask("http://tariffs/").ok()?;
            answer.contains(&format!("StatusCode={status}")).then_some(answer)
        })
    };
    let answer = alias("200");
    assert!(answer.contains("Hostname=prices-"), "{answer}");

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
    one_of_three(|| {
        cluster.open_prices();
        let begun = Instant::now();
        cluster.ask("http://prices/").expect("it runs");
        // One request may have been on its way before, and the next one shows it.
        let asking = 2 * begun.elapsed();
        let after = cluster.close_prices();
        ensure!(after < SOON + asking, "after {after:?}, of which asking took {asking:?}");
        Ok(())
    });
    alias("418");
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
    let Some(cluster) = Cluster::meshed(2, &["--overlay", "ha"]) else { return };
    cluster.start_shopper("node-1");
    cluster.nothing_failed("something happened");
    cluster.kubectl(&["rollout", "restart", "-n", "shop", "deploy/prices"]);
    cluster.rolled_out("shop", "deploy/prices");
    cluster.nothing_failed("a rolling update was over");
    cluster.kubectl(&["scale", "-n", "shop", "deploy/prices", "--replicas=4"]);
    cluster.rolled_out("shop", "deploy/prices");
    cluster.kubectl(&["scale", "-n", "shop", "deploy/prices", "--replicas=2"]);
    cluster.nothing_failed("there were more replicas and fewer again");
    cluster.drain("node-0");
    cluster.rolled_out("shop", "deploy/prices");
    cluster.nothing_failed("a node was drained");
    cluster.kubectl(&["uncordon", "node-0"]);
    let control_plane = |verb: &[&str]| {
        cluster.kubectl(&[verb, &["-n", "heddle-system"]].concat());
    };
    control_plane(&["rollout", "restart", "deploy/heddle-control-plane"]);
    cluster.rolled_out("heddle-system", "deploy/heddle-control-plane");
    cluster.nothing_failed("the control plane was replaced");
    let lease = cluster.get("heddle-system", "lease/heddle-control-plane").expect("somebody leads");
    let holder = lease["spec"]["holderIdentity"].as_str().expect("it has a name").to_owned();
    let leader = holder.split('_').next().expect("a holder is named after its pod");
    control_plane(&["delete", "pod", leader, "--grace-period=0", "--force"]);
    eventually("another leads", || {
        let lease = cluster.get("heddle-system", "lease/heddle-control-plane")?;
        lease["spec"]["holderIdentity"].as_str().filter(|name| !name.is_empty() && *name != holder).map(drop)
    });
    cluster.nothing_failed("the leader was killed");
    control_plane(&["scale", "deploy/heddle-control-plane", "--replicas=0"]);
    cluster.rolled_out("heddle-system", "deploy/heddle-control-plane");
    cluster.nothing_failed("there was no control plane");
    control_plane(&["scale", "deploy/heddle-control-plane", "--replicas=3"]);
    cluster.rolled_out("heddle-system", "deploy/heddle-control-plane");
    cluster.nothing_failed("control planes were back");
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
    let Some(cluster) = Cluster::meshed(1, &["--set", "replicas=2"]) else { return };
    let mut numbers = env!("CARGO_PKG_VERSION").split('.').map(|n| n.parse::<u32>().expect("a number"));
    let (major, minor) = (numbers.next().expect("the first"), numbers.next().expect("the second"));
    let next = format!("{major}.{}.0", minor + 1);
    cluster.start_shopper("node-0");
    cluster.nothing_failed("something happened");

    let images_of = [
        format!("image=heddle/control-plane:{next}"),
        format!("sidecar.sidecar-image=heddle/sidecar:{next}"),
    ];
    let upgraded = cluster.heddle(&["upgrade", "--set", &images_of[0], "--set", &images_of[1]]);
    assert!(upgraded.status.success(), "{upgraded:?}");
    cluster.apply(&String::from_utf8_lossy(&upgraded.stdout));
    cluster.rolled_out("heddle-system", "deploy/heddle-control-plane");
    cluster.nothing_failed("the control plane was upgraded");

    cluster.kubectl(&["rollout", "restart", "-n", "shop", "deploy/prices"]);
    cluster.rolled_out("shop", "deploy/prices");
    cluster.nothing_failed("half of the sidecars were upgraded");
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
    cluster.nothing_failed("all was as it had been");

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
fn without_pods_requests_are_refused_and_no_other_is() {
    let Some(cluster) = Cluster::meshed(1, &[]) else { return };
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
    // The last pod may be gone before anybody was told so.
    let mut said = answers(&cluster);
    said.retain(|answer| answer != "503 connect_failure");
    assert_eq!(said, ["200", "503 no_healthy_endpoint", "200"]);
}
