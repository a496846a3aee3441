//! A cluster of many pods, which nobody runs: what the control plane needs for
//! each, how soon it is ready, and how soon a change reaches a sidecar.
//!
//! `HEDDLE_PODS=5000 cargo test -p heddle-tests --test kubernetes_scale -- --nocapture`

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::ensure;
use heddle_tests::cluster::{ApiRequest, Cluster};
use heddle_tests::trials::one_of_three;
use heddle_tests::{Process, binary, eventually};
use serde_json::{Value, json};

/// How many pods there are; five thousand take some minutes to make.
const PODS: &str = "HEDDLE_PODS";

/// How many there are unless that says otherwise.
const PODS_OF_THE_TEST: usize = 1000;

/// Pods of each of its services.
const PODS_OF_A_SERVICE: usize = 10;

/// How many pods a node has.
const PODS_OF_A_NODE: usize = 50;

/// Pods that nobody runs, as their nodes would tell of them, with all that pods have.
fn pod(number: usize) -> (ApiRequest, ApiRequest) {
    let service = number / PODS_OF_A_SERVICE;
    let variable = |number: usize| json!({"name": format!("SETTING_{number}"), "value": "https://settings.example/some/value"});
    let variables: Vec<Value> = (0..10).map(variable).collect();
    let container = |name: &str| {
        json!({
            "name": name, "image": format!("registry.example/shop/{name}:1.2.3"), "env": variables,
            "ports": [{"name": "http", "containerPort": 8080}],
            "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 5},
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
        })
    };
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("app-{service}-{number}"), "namespace": "shop",
            "labels": {
                "app.kubernetes.io/name": format!("app-{service}"), "app.kubernetes.io/part-of": "shop",
                "pod-template-hash": "5c7d6f9b8", "heddle.dev/meshed": "true",
            },
            "annotations": {"heddle.dev/injected": "1.0.0", "example.com/owner": "the people of the shop"},
        },
        "spec": {
            "serviceAccountName": format!("app-{service}"),
            // No scheduler and no node looks after them.
            "schedulerName": "nobody",
            "containers": [container("app"), container("heddle-sidecar")],
        },
    });
    let status = json!({"status": {
        "phase": "Running", "podIP": address(number), "podIPs": [{"ip": address(number)}],
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}],
    }});
    let path = format!("/api/v1/namespaces/shop/pods/app-{service}-{number}/status");
    (ApiRequest::create("/api/v1/namespaces/shop/pods", pod), ApiRequest::merge(&path, status))
}

fn address(number: usize) -> String {
    format!("10.200.{}.{}", number / 250, number % 250 + 1)
}

/// The slice of a service of [`pod`]s.
fn slice(service: usize, uids: &BTreeMap<String, String>) -> ApiRequest {
    let endpoint = |number: usize| {
        let name = format!("app-{service}-{number}");
        json!({
            "addresses": [address(number)],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("node-{}", number / PODS_OF_A_NODE), "zone": "zone-a",
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": name, "uid": uids[&name]},
        })
    };
    let first = service * PODS_OF_A_SERVICE;
    let endpoints: Vec<Value> = (first..first + PODS_OF_A_SERVICE).map(endpoint).collect();
    let labels =
        json!({"kubernetes.io/service-name": format!("app-{service}"), "app.kubernetes.io/part-of": "shop"});
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("app-{service}-abcde"), "namespace": "shop", "labels": labels},
        "ports": [{"name": "http", "port": 8080}, {"name": "grpc", "port": 9090}],
        "endpoints": endpoints,
    });
    ApiRequest::create("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices", slice)
}

/// Fills the cluster with services of so many pods in all.
fn fill(cluster: &Cluster, pods: usize) {
    let services = || 0..pods / PODS_OF_A_SERVICE;
    let account = |service| {
        let account = json!({"metadata": {"name": format!("app-{service}")}});
        ApiRequest::create("/api/v1/namespaces/shop/serviceaccounts", account)
    };
    cluster.request_all(&services().map(account).collect::<Vec<_>>());
    let service = |service| {
        let ports = json!([{"name": "http", "port": 80, "targetPort": 8080}, {"name": "grpc", "port": 9090}]);
        let service = json!({"metadata": {"name": format!("app-{service}")}, "spec": {"ports": ports}});
        ApiRequest::create("/api/v1/namespaces/shop/services", service)
    };
    cluster.request_all(&services().map(service).collect::<Vec<_>>());
    let (made, said): (Vec<_>, Vec<_>) = (0..pods).map(pod).unzip();
    cluster.request_all(&made);
    cluster.request_all(&said);
    let output = "jsonpath={range .items[*]}{.metadata.name} {.metadata.uid}{'\\n'}{end}";
    let uids = cluster.kubectl(&["get", "pods", "-n", "shop", "-o", output]);
    let uids = uids.lines().filter_map(|line| line.split_once(' '));
    let uids = uids.map(|(name, uid)| (name.to_owned(), uid.to_owned())).collect();
    cluster.request_all(&services().map(|service| slice(service, &uids)).collect::<Vec<_>>());
}

/// A control plane in the cluster's network.
struct ControlPlane<'a> {
    cluster: &'a Cluster,
    /// The last digit of its ports.
    number: u16,
    _process: Process,
}

/// What an admin listener in the cluster's network answers, if that is a success.
fn shown(cluster: &Cluster, port: u16, path: &str) -> Option<String> {
    let url = format!("http://127.0.0.1:{port}{path}");
    let output = cluster.command("curl").args(["-sf", "-m", "30", &url]).output();
    let output = output.expect("util-linux has nsenter");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

impl<'a> ControlPlane<'a> {
    /// Starts it and waits until it knows the cluster.
    fn start(cluster: &'a Cluster, number: u16) -> Self {
        let directory = cluster.directory();
        let mut command = cluster.command(binary("heddle-control-plane"));
        command.env("HOME", directory).env("XDG_RUNTIME_DIR", directory);
        command.args(["--source", "kubernetes", "--listen", &format!("127.0.0.1:720{number}"), "--admin"]);
        command.arg(format!("127.0.0.1:729{number}")).arg("--webhook").arg(format!("127.0.0.1:721{number}"));
        command.arg("--data-dir").arg(directory.join("heddle"));
        let plane = Self { cluster, number, _process: Process::start(&mut command) };
        eventually("it knows the cluster", || plane.shown("/ready"));
        plane
    }

    fn shown(&self, path: &str) -> Option<String> {
        shown(self.cluster, 7290 + self.number, path)
    }

    fn metric(&self, name: &str) -> f64 {
        let metrics = self.shown("/metrics").expect("it answers");
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in\n{metrics}"))
    }

    fn resident(&self) -> f64 {
        self.metric("process_resident_memory_bytes")
    }

    /// Waits until a service, as sidecars get it, has this text in it.
    fn has(&self, service: &str, text: &str) {
        eventually(&format!("{service} has {text:?}"), || {
            self.shown(&format!("/service?name={service}")).filter(|service| service.contains(text))
        });
    }
}

/// The sidecar of the first pod, which asks the first control plane.
fn start_sidecar(cluster: &Cluster) -> Process {
    let pod = cluster.get("shop", "pod/app-0-0").expect("it was made");
    let roots = eventually("the roots are in the namespace", || {
        let roots = cluster.get("shop", "configmap/heddle-trust-bundle")?;
        roots["data"]["roots.pem"].as_str().map(str::to_owned)
    });
    let token = cluster.kubectl(&[
        "create",
        "token",
        "app-0",
        "--namespace=shop",
        "--audience=heddle.dev",
        "--bound-object-kind=Pod",
        "--bound-object-name=app-0-0",
    ]);
    let save = |name: &str, text: &str| {
        let path = cluster.directory().join(name);
        fs::write(cluster.outside(&path), text).expect("there is room");
        path
    };
    let mut command = cluster.command(binary("heddle-sidecar"));
    let uid = pod["metadata"]["uid"].as_str().expect("every object has one");
    command.env("HEDDLE_POD_NAME", "app-0-0").env("HEDDLE_POD_UID", uid);
    command.env("HEDDLE_POD_IPS", address(0)).args(["proxy", "--intercept", "--namespace", "shop"]);
    command.args(["--service", "app-0", "--service-account", "app-0", "--control-plane", "127.0.0.1:7200"]);
    command.arg("--service-account-token").arg(save("token", token.trim()));
    command.arg("--ca-cert").arg(save("roots.pem", &roots));
    let process = Process::start(&mut command);
    eventually("the sidecar knows a service", || {
        // Whoever asks for the address of a name has the sidecar learn about it.
        let asked = cluster.command("bash").args(["-c", ASK_FOR_APP_7]).status();
        assert!(asked.is_ok(), "util-linux has nsenter");
        shown(cluster, 7190, "/endpoints").filter(|endpoints| endpoints.contains(&address(70)))
    });
    process
}

/// A query for the address of `app-7.shop`, to the sidecar's DNS.
const ASK_FOR_APP_7: &str = r"printf '\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05app-7\x04shop\x00\x00\x01\x00\x01' > /dev/udp/127.0.0.1/7153";

/// What a pod and its part of a service may take in the control plane.
const BYTES_OF_A_POD: f64 = 16.0 * 1024.0;

/// How soon a change has to be known to a sidecar.
const SOON: Duration = Duration::from_secs(1);

#[test]
fn a_large_cluster_costs_little() {
    let pods = std::env::var(PODS).map_or(PODS_OF_THE_TEST, |number| number.parse().expect("a number"));
    let Some(cluster) = Cluster::start() else { return };
    for namespace in ["heddle-system", "shop"] {
        cluster.kubectl(&["create", "namespace", namespace]);
    }
    let plane = ControlPlane::start(&cluster, 0);
    let empty = plane.resident();
    let begun = Instant::now();
    fill(&cluster, pods);
    let made = begun.elapsed();
    let last = format!("shop/app-{}", pods / PODS_OF_A_SERVICE - 1);
    plane.has(&last, &address(pods - 1));
    let each = |plane: &ControlPlane<'_>| (plane.resident() - empty) / pods as f64;
    println!(
        "{pods} pods, made in {made:?}: {:.0} bytes each over {empty:.0}; {} compilations in {:.2} s",
        each(&plane),
        plane.metric("heddle_compilations_total"),
        plane.metric("heddle_compile_seconds_total"),
    );

    // One that starts when all of them are there.
    let begun = Instant::now();
    let second = ControlPlane::start(&cluster, 1);
    let ready = begun.elapsed();
    let compiled = second.metric("heddle_compile_seconds_total") / second.metric("heddle_compilations_total");
    println!("ready after {ready:?}: {:.0} bytes each; a compilation took {compiled:.3} s", each(&second));

    // One service has another port.
    let _sidecar = start_sidecar(&cluster);
    let slice = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/app-7-abcde";
    let move_to = |port: u16| {
        cluster.request_all(&[ApiRequest::merge(slice, json!({"ports": [{"name": "http", "port": port}]}))]);
    };
    let is_known = |port: &str| {
        eventually("the sidecar knows it", || {
            shown(&cluster, 7190, "/endpoints").filter(|endpoints| endpoints.contains(port))
        });
    };
    let mut port = 8081;
    one_of_three(|| {
        port += 1;
        let work = || plane.metric("process_cpu_seconds_total");
        let begun = Instant::now();
        let worked = work();
        // What it takes to ask for anything, which the machine may make long.
        let asking = begun.elapsed();
        move_to(port);
        let begun = Instant::now();
        is_known(&port.to_string());
        let (reached, worked) = (begun.elapsed(), Duration::from_secs_f64(work() - worked));
        let told = format!(
            "a change reached a sidecar after {reached:?}, {worked:?} of it the control plane's work, \
             where asking took {asking:?}"
        );
        println!("{told}");
        // More pods than those of the test are there to be measured.
        let soon = worked < SOON / 2 && reached < SOON + 4 * asking;
        ensure!(pods > PODS_OF_THE_TEST || soon, "{told}");
        Ok(())
    });

    // What nodes tell of their pods from time to time is nothing new.
    let compilations = || plane.metric("heddle_compilations_total");
    let before = compilations();
    let heartbeat = |number: usize| {
        let path = format!("/api/v1/namespaces/shop/pods/app-{}-{number}/status", number / PODS_OF_A_SERVICE);
        let moment = json!({"type": "Ready", "status": "True", "lastProbeTime": "2026-01-01T00:00:00Z"});
        ApiRequest::merge(&path, json!({"status": {"conditions": [moment]}}))
    };
    cluster.request_all(&(0..100).map(heartbeat).collect::<Vec<_>>());
    move_to(8081);
    is_known("8081");
    let compiled = compilations() - before;
    assert!(compiled <= 2.0, "{compiled} compilations for one change");

    assert!(each(&plane) < BYTES_OF_A_POD && each(&second) < BYTES_OF_A_POD);
    assert!(ready < Duration::from_secs(20), "it took {ready:?}");
}
