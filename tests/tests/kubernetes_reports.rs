//! What pods report about themselves, in a cluster with two control planes: an ailing one gets less, an
//! alert is told once, and people see both from outside.

use std::collections::BTreeMap;

use heddle_tests::cluster::{Cluster, Settings, of_heddle};
use heddle_tests::trials::one_of_three;
use heddle_tests::{binary, eventually};
use serde_json::Value;

/// Answers with its name, with 500 to `/bad` or where it is to be ill, and writes down what is posted.
/// What is called `orders-0` needs `sick` all the time, `orders-1` needs `well`.
const PROGRAM: &str = r#"
import http.server, os, socket, threading, time, urllib.request
name = socket.gethostname()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, status):
        body = name.encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        ill = name.startswith("sick") and not os.path.exists("/tmp/well")
        self.answer(500 if ill or self.path.startswith("/bad") else 200)
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        with open("/tmp/told", "ab") as told:
            told.write(body + b"\n")
        self.answer(200)
    def log_message(self, *_):
        pass
def depend(on):
    while True:
        try:
            urllib.request.urlopen("http://" + on + "/", timeout=5).read()
        except Exception:
            pass
        time.sleep(0.1)
if name.startswith("orders-"):
    needs = "sick" if name == "orders-0" else "well"
    threading.Thread(target=depend, args=(needs,), daemon=True).start()
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"#;

/// An app with a Service, with or without a sidecar.
fn app(kind: &str, name: &str, replicas: usize, mesh: &str) -> String {
    let program = serde_json::json!(["python3", "-u", "-c", PROGRAM]);
    let service = if kind == "StatefulSet" { format!("serviceName: {name}") } else { String::new() };
    // A test cuts one off by rules.
    let security = if kind == "StatefulSet" { "{capabilities: {add: [NET_ADMIN]}}" } else { "{}" };
    format!(
        r#"
---
apiVersion: apps/v1
kind: {kind}
metadata: {{name: {name}, namespace: shop}}
spec:
  replicas: {replicas}
  {service}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}, heddle.dev/inject: {mesh}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: app
          image: machine
          command: {program}
          securityContext: {security}
          readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
"#
    )
}

/// A policy by which pods take turns; and who is told of errors, at `hook`.
fn policies(hook: &str) -> String {
    format!(
        r#"
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: orders, namespace: shop}}
spec:
  targetRefs: [{{group: "", kind: Service, name: orders}}]
  loadBalancer: {{algorithm: RoundRobin}}
---
apiVersion: v1
kind: Secret
metadata: {{name: hooks, namespace: shop}}
stringData: {{key: hush}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: heddle-alerts, namespace: shop}}
rules:
- {{apiGroups: [""], resources: [secrets], resourceNames: [hooks], verbs: [get, list, watch]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: heddle-alerts, namespace: shop}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: heddle-alerts}}
subjects: [{{kind: ServiceAccount, name: heddle-control-plane, namespace: heddle-system}}]
---
apiVersion: heddle.dev/v1alpha1
kind: TelemetryPolicy
metadata: {{name: watch, namespace: shop}}
spec:
  targetRefs: [{{group: "", kind: Namespace, name: shop}}]
  alerts:
  - name: errors
    when: {{errorRate: {{percent: 50}}}}
    window: 10s
    minRequests: 5
    webhook: {{url: "http://{hook}/hook", secretRef: {{name: hooks, key: key}}}}
"#
    )
}

struct Shop {
    cluster: Cluster,
    clients: Vec<String>,
}

impl Shop {
    fn open() -> Option<Self> {
        let cluster = Cluster::start_with(&Settings { images: of_heddle(), ..Settings::default() })?;
        cluster.install_heddle(&[]);
        cluster.kubectl(&["-n", "heddle-system", "scale", "deploy/heddle-control-plane", "--replicas=2"]);
        cluster.rolled_out("heddle-system", "deploy/heddle-control-plane");
        let namespace =
            "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {heddle.dev/inject: enabled}}}";
        let apps = [
            app("Deployment", "sick", 1, "disabled"),
            app("Deployment", "well", 1, "disabled"),
            app("Deployment", "hook", 1, "disabled"),
            app("StatefulSet", "orders", 2, "enabled"),
            app("Deployment", "client", 3, "enabled"),
        ];
        cluster.apply(&format!("{namespace}\n{}", apps.concat()));
        for app in ["deploy/sick", "deploy/well", "deploy/hook", "sts/orders", "deploy/client"] {
            cluster.rolled_out("shop", app);
        }
        let hook = cluster.kubectl(&["get", "-n", "shop", "svc/hook", "-o", "jsonpath={.spec.clusterIP}"]);
        cluster.apply(&policies(&hook));
        let clients = cluster.kubectl(&["get", "pods", "-n", "shop", "-l", "app=client", "-o", "name"]);
        let clients = clients.lines().map(str::to_owned).collect();
        Some(Self { cluster, clients })
    }

    /// What `heddle` prints to somebody who has a kubeconfig and nothing else.
    fn heddle(&self, args: &[&str]) -> String {
        let output = self.cluster.command(binary("heddle")).args(args).args(["--context", "test"]).output();
        let output = output.expect("it was built");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.heddle(args)).expect("it is JSON")
    }

    /// How many of seventy requests of a client each pod answers.
    fn shares(&self, client: &str) -> BTreeMap<String, usize> {
        let command = r"curl -s -w '\n' 'http://orders/?[1-70]'";
        let answers = self.cluster.exec("shop", client, "app", &["sh", "-c", command]).unwrap_or_default();
        let mut shares = BTreeMap::new();
        for pod in answers.lines() {
            *shares.entry(pod.to_owned()).or_default() += 1;
        }
        shares
    }

    /// Waits until each client sends `orders-0` that many of seventy requests, give or take a few.
    fn shared(&self, what: &str, wanted: usize) {
        for client in &self.clients {
            eventually(&format!("{what}, to {client}"), || {
                let got = self.shares(client).get("orders-0").copied()?;
                (wanted.abs_diff(got) <= 3).then_some(())
            });
        }
    }

    /// The control planes.
    fn replicas(&self) -> Vec<String> {
        let label = "app.kubernetes.io/name=heddle-control-plane";
        let pods = self.cluster.kubectl(&[
            "get",
            "pods",
            "-n",
            "heddle-system",
            "-l",
            label,
            "--field-selector=status.phase=Running",
            "-o",
            "jsonpath={.items[*].metadata.name}",
        ]);
        pods.split_whitespace().map(str::to_owned).collect()
    }

    /// Ends all control planes at once, as crashes would, and waits until others are there.
    fn replace_control_planes(&self) {
        let label = "app.kubernetes.io/name=heddle-control-plane";
        let now = ["--grace-period=0", "--force"];
        self.cluster.kubectl(&[&["-n", "heddle-system", "delete", "pods", "-l", label][..], &now].concat());
        self.cluster.rolled_out("heddle-system", "deploy/heddle-control-plane");
    }

    /// What one of them shows.
    fn shows(&self, replica: &str, path: &str) -> Option<Value> {
        let path = format!("/api/v1/namespaces/heddle-system/pods/{replica}:7290/proxy{path}");
        serde_json::from_str(&self.cluster.try_kubectl(&["get", "--raw", &path]).ok()?).ok()
    }

    /// Of how many pods one of them knows how they are.
    fn known(&self, replica: &str) -> Option<usize> {
        let shown = self.shows(replica, "/workloads")?;
        let known = shown["workloads"].as_array()?.iter();
        Some(known.filter(|pod| pod["health"] != "unknown").count())
    }

    /// A rule in the network of `orders-0`.
    fn nft(&self, command: &str) {
        let changed = self.cluster.exec("shop", "orders-0", "app", &["nft", command]);
        changed.unwrap_or_else(|complaint| panic!("nft {command}: {complaint}"));
    }

    /// Waits until one of them knows how every pod is.
    fn knows_all(&self, replica: &str) {
        eventually("each control plane knows of every pod", || {
            let shown = self.shows(replica, "/workloads")?;
            let workloads = shown["workloads"].as_array()?.clone();
            let is = |name: &str, health: &str| {
                workloads.iter().any(|pod| pod["instance"] == name && pod["health"] == health)
            };
            let is_known = is("orders-0", "warning") && is("orders-1", "healthy");
            (is_known && self.known(replica)? == 5).then_some(())
        });
    }

    /// How often somebody was told this.
    fn told(&self, status: &str) -> usize {
        let told = self.cluster.exec("shop", "deploy/hook", "app", &["cat", "/tmp/told"]).unwrap_or_default();
        told.lines().filter(|line| line.contains(&format!("\"status\":\"{status}\""))).count()
    }

    /// Has the first client fail at `orders` until the end of what is done.
    fn while_failing<T>(&self, act: impl FnOnce() -> T) -> T {
        let client = &self.clients[0];
        let go =
            "touch /tmp/go; while [ -e /tmp/go ]; do curl -s 'http://orders/bad?[1-20]'; done >/dev/null";
        std::thread::scope(|scope| {
            let calls = scope.spawn(|| self.cluster.exec("shop", client, "app", &["sh", "-c", go]));
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
            let _ = self.cluster.exec("shop", client, "app", &["rm", "-f", "/tmp/go"]);
            let _ = calls.join();
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

#[test]
fn pods_report_how_they_fare_and_what_fires_whichever_control_plane_hears_them() {
    let Some(shop) = Shop::open() else { return };

    // Of seven shares the ailing pod gets two, its twin five.
    let workload = |name: &str| shop.json(&["stat", "--json", name])["workloads"][0].clone();
    eventually("orders-0 is not well", || (workload("orders-0")["health"] == "warning").then_some(()));
    let shown = workload("orders-0");
    assert_eq!((&shown["score"], &shown["healthCause"]), (&40.into(), &"dependencies".into()), "{shown}");
    assert_eq!((&shown["owner"], &shown["service"]), (&"orders".into(), &"orders".into()), "{shown}");
    shop.shared("the ailing pod gets two of seven", 20);
    shop.replicas().iter().for_each(|replica| shop.knows_all(replica));

    // Control planes that start when none is left know of it, too, though its sidecar cannot tell them yet.
    one_of_three(|| {
        eventually("it is kept", || {
            let kept = shop.cluster.get("heddle-system", "configmap/heddle-scores")?;
            kept["data"]["scores.json"].as_str()?.contains("\"score\":40").then_some(())
        });
        shop.nft("add table inet cut");
        shop.nft("add chain inet cut out { type filter hook output priority 0; }");
        shop.nft("add rule inet cut out tcp dport 7200 reject with tcp reset");
        shop.replace_control_planes();
        let replicas = shop.replicas();
        for replica in &replicas {
            eventually("every other pod is back", || (shop.known(replica)? >= 4).then_some(()));
        }
        let shares = shop.clients.iter().map(|client| shop.shares(client).get("orders-0").copied());
        let shares: Vec<_> = shares.map(Option::unwrap_or_default).collect();
        shop.nft("delete table inet cut");
        replicas.iter().for_each(|replica| shop.knows_all(replica));
        // What is kept of a pod that does not come back is forgotten, on a machine that is slow enough.
        anyhow::ensure!(
            shares.iter().all(|share| (10..=25).contains(share)),
            "of seventy the ailing pod gets {shares:?}, where twenty is its part and 35 would be its whole one"
        );
        Ok(())
    });

    // Found by the deployment and by the pod, with what their sidecars count.
    let clients = shop.json(&["stat", "--json", "shop/client"]);
    assert_eq!(clients["workloads"].as_array().map(Vec::len), Some(3), "{clients}");
    let table = shop.heddle(&["stat", "--once", "--by", "owner", "-n", "shop"]);
    let line = table.lines().find(|line| line.starts_with("shop/orders ")).unwrap_or_default();
    assert!(line.contains(" warning ") && line.contains(" 2/2 "), "{table}");
    let table = shop.while_failing(|| {
        shop.heddle(&["stat", "--once", "--by", "workload", "orders-1", "--interval", "3"])
    });
    let line = table.lines().find(|line| line.starts_with("shop/orders-1 ")).unwrap_or_default();
    assert!(line.contains(" 100%") && !line.contains(" 0.0 "), "{table}");
    let explained = shop.heddle(&["policy", "explain", "orders.shop"]);
    assert!(explained.contains("TrafficPolicy shop/orders"), "{explained}");
    assert!(explained.contains("seen by shop/") && explained.contains("client-"), "{explained}");
    assert!(shop.heddle(&["routes"]).starts_with("KIND"));

    // It recovers.
    shop.cluster.exec("shop", "deploy/sick", "app", &["touch", "/tmp/well"]).expect("it runs");
    shop.shared("the pod has its whole share again", 35);
}

#[test]
fn an_alert_is_told_once_by_two_control_planes_also_when_the_one_that_tells_goes() {
    let Some(shop) = Shop::open() else { return };
    shop.while_failing(|| {
        eventually("somebody is told", || (shop.told("firing") == 1).then_some(()));
        for replica in shop.replicas() {
            eventually("both pods fire, for each control plane", || {
                let shown = shop.shows(&replica, "/alerts")?;
                (shown["alerts"][0]["instances"] == 2).then_some(())
            });
        }
        let table = shop.heddle(&["stat", "--once", "orders"]);
        assert!(table.lines().any(|line| line.contains("errors") && line.contains("at 2 since")), "{table}");

        let lease = || {
            let lease = shop.cluster.get("heddle-system", "lease/heddle-control-plane")?;
            lease["spec"]["holderIdentity"].as_str().filter(|name| !name.is_empty()).map(str::to_owned)
        };
        let holder = lease().expect("somebody leads");
        let leader = holder.split('_').next().expect("a holder is named after its pod");
        shop.cluster.kubectl(&[
            "-n",
            "heddle-system",
            "delete",
            "pod",
            leader,
            "--grace-period=0",
            "--force",
        ]);
        eventually("another leads", || lease().filter(|name| *name != holder));
        eventually("both pods fire still", || {
            let shown = shop.json(&["stat", "--json"]);
            (shown["alerts"][0]["instances"] == 2).then_some(())
        });
        assert_eq!((shop.told("firing"), shop.told("resolved")), (1, 0));

        // When nobody is left to hear it from, too.
        let holder = lease().expect("somebody leads");
        shop.replace_control_planes();
        eventually("one that was not there before leads", || lease().filter(|name| *name != holder));
        for replica in shop.replicas() {
            eventually("both pods fire, for each control plane that is new", || {
                let shown = shop.shows(&replica, "/alerts")?;
                (shop.known(&replica)? == 5 && shown["alerts"][0]["instances"] == 2).then_some(())
            });
        }
        assert_eq!((shop.told("firing"), shop.told("resolved")), (1, 0));
    });
    eventually("somebody is told that it is over", || (shop.told("resolved") == 1).then_some(()));
    eventually("nothing fires", || {
        shop.json(&["stat", "--json"])["alerts"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
    assert_eq!((shop.told("firing"), shop.told("resolved")), (1, 1));
}
