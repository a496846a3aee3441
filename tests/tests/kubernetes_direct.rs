//! Pods that are dialled by their own addresses, in the mesh and at ports that are outside it, whoever makes
//! their rules.

use std::fs;

use heddle_tests::cluster::Cluster;
use heddle_tests::{Process, binary, eventually};

/// A StatefulSet behind a headless Service, and pods that leave their port out of the mesh.
const DIRECT: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: ledger, namespace: shop}
spec:
  clusterIP: None
  selector: {app: ledger}
  ports: [{name: http, port: 8080}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: ledger, namespace: shop}
spec:
  serviceName: ledger
  replicas: 2
  selector: {matchLabels: {app: ledger}}
  template:
    metadata: {labels: {app: ledger}}
    spec:
      terminationGracePeriodSeconds: 5
      containers: [{name: app, image: "gateway-api/echo-advanced:v1.5.1", args: [--port=8080]}]
---
apiVersion: v1
kind: Service
metadata: {name: open, namespace: shop}
spec:
  selector: {app: open}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: open, namespace: shop, labels: {app: open}, annotations: {heddle.dev/skip-inbound-ports: "8080"}}
spec:
  terminationGracePeriodSeconds: 5
  containers: [{name: app, image: "gateway-api/echo-advanced:v1.5.1", args: [--port=8080]}]
---
apiVersion: v1
kind: Pod
metadata:
  name: plugged
  namespace: shop
  annotations: {heddle.dev/interception: cni, heddle.dev/skip-inbound-ports: "8080"}
spec:
  terminationGracePeriodSeconds: 5
  containers: [{name: app, image: "gateway-api/echo-advanced:v1.5.1", args: [--port=8080]}]
---
{apiVersion: v1, kind: Namespace, metadata: {name: outside}}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: outside}
spec:
  containers: [{name: app, image: "gateway-api/echo-advanced:v1.5.1", args: [--port=8080]}]
"#;

#[test]
fn pods_that_are_dialled_directly_are_met_by_mutual_tls() {
    let Some(cluster) = Cluster::meshed(1, &[]) else { return };
    cluster.apply(DIRECT);
    cluster.rolled_out("shop", "statefulset/ledger");
    cluster.wait("shop", "pod/open", "condition=Ready");
    cluster.wait("outside", "pod/stranger", "condition=Ready");
    // Nobody has made the rules of this one yet, and it says so.
    eventually("the sidecar complains", || {
        let said = cluster.try_kubectl(&["logs", "-n", "shop", "plugged", "-c", "heddle-sidecar"]).ok()?;
        said.contains("are not brought to the sidecar").then_some(())
    });
    let pod = cluster.get("shop", "pod/plugged").expect("it was made");
    assert_eq!(pod["status"]["phase"], "Pending", "its application waits");
    plug(&cluster, "plugged");
    cluster.wait("shop", "pod/plugged", "condition=Ready");
    let address = |pod: &str| {
        let pod = cluster.get("shop", &format!("pod/{pod}")).expect("it runs");
        pod["status"]["podIP"].as_str().expect("it has an address").to_owned()
    };
    let (first, second, open) = (address("ledger-0"), address("ledger-1"), address("open"));
    let plugged = address("plugged");

    // What is between the pods, as the machine that they are on sees it.
    let capture = cluster.directory().join("capture.pcap");
    let mut command = cluster.command("tcpdump");
    command.args(["-i", "any", "-U", "--immediate-mode", "-Z", "root", "-w"]).arg(&capture);
    let tcpdump = Process::start(command.args(["tcp", "port", "8080", "and", "host", &second]));
    tcpdump.said("listening on any");
    let marker = "a-secret-of-the-request";
    for url in [
        format!("http://{second}:8080/{marker}"),
        format!("http://ledger-1.ledger:8080/{marker}"),
        format!("http://ledger-1.ledger.shop.svc.cluster.local:8080/{marker}"),
    ] {
        eventually(&url, || {
            let answer = cluster.ask(&url).ok()?;
            (answer.contains("StatusCode=200") && answer.contains("Hostname=ledger-1")).then_some(())
        });
    }
    let has = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    let captured = || fs::read(cluster.outside(&capture)).unwrap_or_default();
    eventually("application data was captured", || has(&captured(), &[0x17, 0x03, 0x03]).then_some(()));
    let bytes = captured();
    assert!(has(&bytes, b"p8080.heddle.internal"), "the handshake names the port");
    for plain in [marker, "HTTP/1.1", "Hostname", "ledger-1"] {
        assert!(!has(&bytes, plain.as_bytes()), "{plain:?} was sent in the clear");
    }
    drop(tcpdump);
    let metrics = metrics(&cluster, &second);
    let of_cart = ["heddle_requests_total", "direction=\"inbound\"", "tls=\"mutual\"", "code=\"200\""];
    let count = |parts: &[&str]| -> f64 {
        let lines = metrics.lines().filter(|line| parts.iter().all(|part| line.contains(part)));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    assert_eq!(count(&of_cart), 3.0, "{metrics}");
    assert_eq!(count(&["heddle_requests_total", "direction=\"inbound\"", "tls=\"none\""]), 0.0, "{metrics}");

    // One pod is not another: each name leads to its own.
    let answer = cluster.ask(&format!("http://{first}:8080/")).expect("it is answered");
    assert!(answer.contains("Hostname=ledger-0"), "{answer}");

    // Who has no identity is not served by the direct way either.
    let stranger = |url: &str| cluster.exec("outside", "stranger", "app", &["client", url]);
    for host in [second.as_str(), "ledger-1.ledger.shop"] {
        let refused = stranger(&format!("http://{host}:8080/"));
        assert!(refused.as_ref().is_ok_and(|answer| answer.contains("StatusCode=403")), "{refused:?}");
        assert!(!refused.as_ref().is_ok_and(|answer| answer.contains("Hostname=")), "{refused:?}");
    }

    // A port that its pod leaves out of the mesh is open to all, those in the mesh among them; so
    // are the metrics of a sidecar.
    for (url, name) in [
        (format!("http://{open}:8080/"), "open"),
        ("http://open.shop/".into(), "open"),
        (format!("http://{plugged}:8080/"), "plugged"),
    ] {
        for answer in [stranger(&url), cluster.ask(&url)] {
            let said = format!("Hostname={name}");
            assert!(answer.as_ref().is_ok_and(|answer| answer.contains(&said)), "{url}: {answer:?}");
        }
    }
    // Elsewhere nobody gets around the sidecar of either.
    for pod in [&open, &plugged] {
        let answer = stranger(&format!("http://{pod}:8081/"));
        assert!(answer.as_ref().is_ok_and(|answer| answer.contains("StatusCode=403")), "{pod}: {answer:?}");
    }
    let scraped = cluster.ask(&format!("http://{open}:7190/metrics"));
    assert!(scraped.as_ref().is_ok_and(|answer| answer.contains("heddle_build_info")), "{scraped:?}");
}

/// The metrics of the sidecar in the pod at this address, as they are scraped from outside the mesh.
fn metrics(cluster: &Cluster, pod: &str) -> String {
    let mut curl = cluster.command("curl");
    let output = curl.args(["-sS", &format!("http://{pod}:7190/metrics")]).output().expect("curl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a CNI plugin does: `heddle-sidecar init` in the pod's network, with what the variables of its sidecar say.
fn plug(cluster: &Cluster, pod: &str) {
    let script = r#"
for process in /proc/[0-9]*; do
    tr '\0' '\n' <"$process/environ" 2>/dev/null | grep -qx "HEDDLE_POD_NAME=$1" || continue
    exec nsenter --net="$process/ns/net" env $(tr '\0' '\n' <"$process/environ" | grep '^HEDDLE_SKIP_') "$0" init
done
exit 1"#;
    let mut command = cluster.command("bash");
    let output = command.args(["-c", script]).arg(binary("heddle-sidecar")).arg(pod).output();
    let output = output.expect("every machine has bash");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
