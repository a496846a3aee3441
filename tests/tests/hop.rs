//! What a try tells the sidecar of the next hop, and nobody else: a service with
//! one endpoint in the mesh and one outside, whose requests fall to a marked rule.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use heddle_tests::backend::{Http2Backend, Told, call, runtime};
use heddle_tests::{App, ControlPlane, Process, eventually, exchange, get};

type Heads = Arc<Mutex<Vec<String>>>;

fn count(heads: &Heads) -> usize {
    heads.lock().expect("nobody panics with it").len()
}

/// An HTTP/1 server that notes the heads that reach it.
fn noting(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> (App, Heads) {
    let heads = Heads::default();
    let seen = heads.clone();
    let app = App::answering(move |head| {
        seen.lock().expect("nobody panics with it").push(head.to_ascii_lowercase());
        answer(head)
    });
    (app, heads)
}

/// The client of a service in whose turns both endpoints come.
struct Mixed {
    client: Process,
    _server: Process,
    _control_plane: ControlPlane,
}

impl Mixed {
    /// The applications' ports, inside the mesh and outside.
    fn start(protocol: &str, retry: &str, inside: u16, outside: u16) -> Self {
        let control_plane = ControlPlane::start();
        control_plane.apply("mesh.yaml", &manifests(protocol, retry, outside));
        let (port, app) = (format!("main:80:{protocol}"), format!("127.0.0.1:{inside}"));
        let server = control_plane.sidecar("users", ["--port", &port, "--app", &app]);
        server.said("the sidecar is ready");
        control_plane.workloads("users", 1);
        let client = control_plane.sidecar("client", ["--workers", "1"]);
        client.said("the sidecar is ready");
        let mixed = Self { client, _server: server, _control_plane: control_plane };
        // Asks for the service without reaching an endpoint of it.
        eventually("the service is known", || {
            get(mixed.outbound(), "users:81", "/").filter(|(status, _)| *status == 404)
        });
        eventually("the client knows both endpoints, the policy and the route", || {
            let (_, config) = get(mixed.client.listening("admin"), "localhost", "/config")?;
            let config: serde_json::Value = serde_json::from_str(&config).ok()?;
            let users = config["services"].as_array()?.iter().find(|s| s["name"] == "default/users")?.clone();
            (users["endpoints"] == 2 && users["policy"] == "default/users").then_some(())
        });
        mixed
    }

    fn outbound(&self) -> SocketAddr {
        self.client.listening("outbound")
    }

    fn send(&self, method: &str, fields: &str) -> String {
        let length = if method == "POST" { "content-length: 0\r\n" } else { "" };
        let request =
            format!("{method} / HTTP/1.1\r\nhost: users\r\nconnection: close\r\n{length}{fields}\r\n");
        exchange(self.outbound(), &request).expect("there is an answer")
    }
}

fn manifests(protocol: &str, retry: &str, outside: u16) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: users, namespace: default}}
spec: {{ports: [{{name: main, port: 80, appProtocol: {protocol}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: users-1, namespace: default, labels: {{kubernetes.io/service-name: users}}}}
addressType: IPv4
ports: [{{name: main, port: {outside}}}]
endpoints: [{{addresses: [127.0.0.1]}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: users, namespace: default}}
spec:
  parentRefs: [{{group: '', kind: Service, name: users, port: 80}}]
  rules: [{{name: all, backendRefs: [{{name: users, port: 80}}]}}]
---
apiVersion: heddle.dev/v1alpha1
kind: RateLimitPolicy
metadata: {{name: users, namespace: default}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: users}}]
  limits: [{{requests: 1000, per: 1h}}]
---
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: users, namespace: default}}
spec:
  targetRefs: [{{group: '', kind: Service, name: users}}]
  loadBalancer: {{algorithm: RoundRobin}}
  circuitBreaker: {{consecutiveFailures: 1000, maxEjectedPercent: 0}}
  retry: {{attempts: 1, budget: {{percent: 100, minPerSecond: 100}}, {retry}}}
"
    )
}

/// Whether each of the two was the last one that was tried.
fn both(last_inside: &[bool]) -> bool {
    last_inside.contains(&true) && last_inside.contains(&false)
}

const RETRY: &str = "on: [5xx], backoff: {base: 1ms, max: 1ms}";

/// What the two of a service know in the end.
fn nothing_of_the_mesh(heads: &Heads) {
    let heads = heads.lock().expect("nobody panics with it").join("\n");
    assert!(!heads.contains("heddle-"), "{heads}");
}

#[test]
fn a_retry_outside_the_mesh_tells_nothing_that_the_try_before_told() {
    let failing = |_: &str| "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n".into();
    let ((inside, seen_inside), (outside, seen_outside)) = (noting(failing), noting(failing));
    let mixed = Mixed::start("http", RETRY, inside.port(), outside.port());
    let mut last_inside = Vec::new();
    // Whose turn it is first follows from their shares, of which a busy workload has less.
    while last_inside.len() < 100 && !both(&last_inside) {
        let before = (count(&seen_inside), count(&seen_outside));
        let answer = mixed.send("GET", "");
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert_eq!((count(&seen_inside), count(&seen_outside)), (before.0 + 1, before.1 + 1), "one try each");
        // Only with the mark is it one of the requests that are limited.
        last_inside.push(answer.contains("ratelimit: "));
        // Those that are not retried change whose turn it is, by another number each time.
        (0..last_inside.len() % 5).for_each(|_| drop(mixed.send("POST", "")));
    }
    assert!(both(&last_inside), "{last_inside:?}");
    nothing_of_the_mesh(&seen_outside);
    nothing_of_the_mesh(&seen_inside);
}

#[test]
fn the_same_holds_for_http2() {
    let failing = |_| Told { status: 503, time: Duration::ZERO, grpc_status: None };
    let (inside, outside) = (Http2Backend::start(failing), Http2Backend::start(failing));
    let mixed = Mixed::start("http2", RETRY, inside.port(), outside.port());
    let mut last_inside = Vec::new();
    runtime().block_on(async {
        let tcp = tokio::net::TcpStream::connect(mixed.outbound()).await.expect("it listens");
        let (mut connection, driver) = h2::client::handshake(tcp).await.expect("it speaks HTTP/2");
        tokio::spawn(driver);
        while last_inside.len() < 100 && !both(&last_inside) {
            let before = (inside.streams(), outside.streams());
            let (answer, _) = call(&mut connection, false).await;
            assert_eq!(answer.status(), 503);
            assert_eq!((inside.streams(), outside.streams()), (before.0 + 1, before.1 + 1), "one try each");
            last_inside.push(answer.headers().contains_key("ratelimit"));
            for _ in 0..last_inside.len() % 5 {
                let request = http::Request::post("http://users/").body(()).expect("it is a request");
                let (answer, _) = connection.send_request(request, true).expect("the connection is open");
                answer.await.expect("there is an answer");
            }
        }
    });
    assert!(both(&last_inside), "{last_inside:?}");
    for head in inside.heads().into_iter().chain(outside.heads()) {
        assert!(head.keys().all(|name| !name.as_str().starts_with("heddle-")), "{head:?}");
    }
}

#[test]
fn each_of_two_tries_at_once_is_told_what_is_its_own() {
    let slow = |name: &'static str| {
        move |head: &str| {
            if head.contains(&format!("x-slow: {name}")) {
                thread::sleep(Duration::from_secs(3600));
            }
            format!("HTTP/1.1 200 OK\r\nx-by: {name}\r\ncontent-length: 0\r\n\r\n")
        }
    };
    let ((inside, _), (outside, seen_outside)) = (noting(slow("inside")), noting(slow("outside")));
    let mixed = Mixed::start("http", "hedge: {after: 40ms}", inside.port(), outside.port());
    for fast in ["outside", "inside"] {
        let slow = if fast == "inside" { "outside" } else { "inside" };
        for _ in 0..4 {
            let answer = mixed.send("GET", &format!("x-slow: {slow}\r\n"));
            assert!(answer.contains(&format!("x-by: {fast}")), "{answer}");
            assert_eq!(answer.contains("ratelimit: "), fast == "inside", "{answer}");
            mixed.send("POST", "");
        }
    }
    nothing_of_the_mesh(&seen_outside);
}
