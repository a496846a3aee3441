//! Several control planes that are one mesh: whose sidecars enforce a policy, and a certificate authority
//! that is replaced.

use std::time::{Duration, Instant};

use heddle_tests::cluster::Cluster;
use heddle_tests::eventually;
use serde_json::{Value, json};

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
    let Some(cluster) = Cluster::meshed(1, &["--overlay", "ha"]) else { return };
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
    cluster.nothing_failed(until);
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
    let Some(cluster) = Cluster::meshed(2, &["--overlay", "ha", "--set", "certificateLifetime=1m"]) else {
        return;
    };
    cluster.start_shopper("node-0");
    cluster.nothing_failed("something happened");

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

    // All at once; control planes are restarted that have not finished with it.
    let (certificate, key) = authority();
    change_authority(&cluster, json!({"tls.crt": certificate, "tls.key": key, "ca.crt": certificate}));
    eventually("the new root is trusted beside the old one", || {
        (roots(&cluster)?.matches("BEGIN CERTIFICATE").count() == 2).then_some(())
    });
    cluster.kubectl(&["rollout", "restart", "-n", "heddle-system", "deploy/heddle-control-plane"]);
    cluster.rolled_out("heddle-system", "deploy/heddle-control-plane");
    cluster.nothing_failed("the control plane was restarted in between");
    deployed_anew(&cluster, "everything was replaced at once");
    in_time("the old root goes", || roots(&cluster).is_some_and(|now| is_only(&now, &certificate)));
    deployed_anew(&cluster, "the old root was gone");
}
