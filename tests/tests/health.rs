//! What `spec.healthCheck` says is what endpoints see and what callers meet:
//! each field by a test that fails without it.

use std::net::TcpListener;
use std::sync::atomic::{AtomicI32, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use heddle_tests::backend::{Backend, Front, Http2Backend, Told, runtime};
use heddle_tests::ports::refusing;
use heddle_tests::{App, ControlPlane, Process, eventually, get, response};
use http::{HeaderMap, Response};
use serde_json::Value;

const MS: Duration = Duration::from_millis(1);

/// In turn, so that it is known how often each endpoint is asked; no breaker and no retry
/// may do what checks have to.
const IN_TURN: &str = "  loadBalancer: {algorithm: RoundRobin}
  circuitBreaker: {consecutiveFailures: 1000000}
  retry: {attempts: 0}\n";

fn checked(fields: &str) -> String {
    format!("{IN_TURN}  healthCheck: {{{fields}}}\n")
}

/// An application with a health of its own, which says nothing about its answers.
struct Patient {
    app: App,
    health: Arc<AtomicU16>,
    probes: Arc<Mutex<Vec<Instant>>>,
    requests: Arc<AtomicUsize>,
}

impl Patient {
    /// Answers 200 but on `/healthz`: there, what `health` says, and nothing in time for 0.
    fn start(health: u16) -> Self {
        let health = Arc::new(AtomicU16::new(health));
        let (probes, requests): (Arc<Mutex<Vec<Instant>>>, Arc<AtomicUsize>) = Default::default();
        let (told, probed, requested) = (health.clone(), probes.clone(), requests.clone());
        let app = App::answering(move |head| {
            if !head.starts_with("GET /healthz?full HTTP/1.1\n") {
                requested.fetch_add(1, Ordering::SeqCst);
                return response("ok");
            }
            assert!(head.contains("host: users.default\n"), "{head}");
            probed.lock().expect("nobody panics with it").push(Instant::now());
            match told.load(Ordering::SeqCst) {
                0 => {
                    thread::sleep(Duration::from_secs(3600));
                    response("late")
                }
                status => format!("HTTP/1.1 {status} Told\r\ncontent-length: 0\r\n\r\n"),
            }
        });
        Self { app, health, probes, requests }
    }

    fn becomes(&self, health: u16) {
        self.health.store(health, Ordering::SeqCst);
    }

    fn probes(&self) -> Vec<Instant> {
        self.probes.lock().expect("nobody panics with it").clone()
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// The check of the endpoint at this port.
fn check(front: &Front, port: u16) -> Value {
    let shown = front.shows("/endpoints");
    let endpoints = shown.as_array().expect("it is a list");
    let endpoint = endpoints.iter().find(|endpoint| endpoint["ports"][0]["app"] == port);
    endpoint.expect("it is known")["checks"][0].clone()
}

/// Waits until the endpoint at this port passes its checks, the last one included.
fn passes(front: &Front, port: u16) {
    eventually(&format!("{port} is healthy"), || {
        let check = check(front, port);
        (check["state"] == "healthy" && check["lastError"].is_null()).then_some(())
    });
}

/// Waits until the endpoint at this port fails its checks, the last one with this error.
fn fails(front: &Front, port: u16, error: &str) -> Value {
    eventually(&format!("{port} is unhealthy for {error}"), || {
        let told = |check: &Value| check["lastError"].as_str().is_some_and(|last| last.contains(error));
        Some(check(front, port)).filter(|check| check["state"] == "unhealthy" && told(check))
    })
}

/// The metric of the client's sidecar whose line contains all of `parts`.
fn metric(front: &Front, parts: &[&str]) -> f64 {
    let (_, metrics) = get(front.admin(), "localhost", "/metrics").expect("it answers");
    let lines = metrics.lines().filter(|line| parts.iter().all(|part| line.contains(part)));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[test]
fn an_endpoint_that_fails_its_checks_is_left_and_comes_back() {
    let (bad, good) = (Patient::start(200), Patient::start(204));
    let spec =
        checked("http: {path: /healthz?full}, interval: 1s, timeout: 1s, healthyAfter: 3, unhealthyAfter: 2");
    let mut front = Front::start(&spec, "http", &[bad.app.port(), good.app.port()]);
    assert!(bad.probes().is_empty(), "nobody has used the service");
    front.get("");
    passes(&front, bad.app.port());
    bad.becomes(500);
    let failing = bad.probes().len();
    let shown = fails(&front, bad.app.port(), "GET /healthz?full was answered with 500");
    assert!(bad.probes().len() > failing, "two in a row, one of which may have been under way");
    assert_eq!(shown["port"], 80);
    eventually("it is left", || {
        (metric(&front, &["heddle_endpoints{", "\"unhealthy\""]) == 1.0).then_some(())
    });
    let before = bad.requests();
    (0..20).for_each(|_| assert_eq!(front.get("").status, 200));
    assert_eq!(bad.requests(), before);
    assert!(
        metric(&front, &["heddle_health_checks_total{", "\"users\"", "\"default\"", "\"failure\""]) >= 2.0
    );
    assert!(metric(&front, &["heddle_health_checks_total{", "\"success\""]) >= 3.0);

    front.change("other", &spec);
    (0..20).for_each(|_| assert_eq!(front.get("").status, 200));
    assert_eq!(bad.requests(), before, "what is known survives a push");
    assert_eq!(check(&front, bad.app.port())["state"], "unhealthy");

    let well = bad.probes().len();
    bad.becomes(200);
    passes(&front, bad.app.port());
    assert!(bad.probes().len() >= well + 2, "three in a row, one of which may have been under way");
    eventually("it gets its share", || {
        let before = (bad.requests(), good.requests());
        (0..20).for_each(|_| drop(front.get("")));
        (bad.requests() - before.0 == 10 && good.requests() - before.1 == 10).then_some(())
    });
}

#[test]
fn no_endpoint_is_left_before_enough_checks_agree() {
    let bad = Patient::start(500);
    let spec = checked("http: {path: /healthz?full}, interval: 100ms, unhealthyAfter: 10000");
    let front = Front::start(&spec, "http", &[bad.app.port()]);
    front.get("");
    eventually("ten probes", || (bad.probes().len() >= 10).then_some(()));
    assert_eq!(check(&front, bad.app.port())["state"], "unknown");
    assert_eq!(front.get("").status, 200);
}

#[test]
fn the_first_check_is_at_once_and_others_keep_to_the_interval() {
    let patient = Patient::start(200);
    let spec = |interval: &str| checked(&format!("http: {{path: /healthz?full}}, interval: {interval}"));
    let mut front = Front::start(&spec("1h"), "http", &[patient.app.port()]);
    front.get("");
    eventually("the first", || (patient.probes().len() == 1).then_some(()));
    // Another interval holds from now on, not from the end of the last.
    front.change("quick", &spec("300ms"));
    front.get("");
    let probes = eventually("some", || Some(patient.probes()).filter(|probes| probes.len() >= 9));
    let mut waits: Vec<Duration> = probes[1..].windows(2).map(|pair| pair[1] - pair[0]).collect();
    waits.sort_unstable();
    // A sixth less than the interval. One that came late because the machine stood still has a
    // short wait after it, so some of them may be anything.
    assert!(waits[waits.len() / 2] >= 200 * MS, "{waits:?}");

    front.change("none", IN_TURN);
    eventually("nobody holds the check any more", || {
        (front.shows("/endpoints")[0]["checks"] == Value::Array(Vec::new())).then_some(())
    });
}

#[test]
fn a_check_that_takes_too_long_has_failed() {
    let patient = Patient::start(0);
    let spec = checked("http: {path: /healthz?full}, interval: 1s, timeout: 150ms, unhealthyAfter: 1");
    let front = Front::start(&spec, "http", &[patient.app.port()]);
    front.get("");
    fails(&front, patient.app.port(), "no answer within 150ms");
    assert!(metric(&front, &["heddle_health_checks_total{", "\"timeout\""]) >= 1.0);
    assert_eq!(front.get("").error.as_deref(), Some("no_healthy_endpoint"));
}

#[test]
fn below_the_panic_threshold_checks_are_ignored() {
    let patient = Patient::start(500);
    let spec = checked("http: {path: /healthz?full}, interval: 1s, unhealthyAfter: 1")
        .replace("RoundRobin", "RoundRobin, panicThreshold: 50");
    let front = Front::start(&spec, "http", &[patient.app.port()]);
    front.get("");
    fails(&front, patient.app.port(), "answered with 500");
    assert_eq!(front.get("").status, 200);
}

#[test]
fn tcp_checks_want_their_connection_accepted() {
    let closed = refusing();
    let good = Backend::always(200);
    let front = Front::start(
        &checked("tcp: {}, interval: 1s, unhealthyAfter: 2, healthyAfter: 1"),
        "http",
        &[closed, good.port()],
    );
    front.get("");
    fails(&front, closed, "refused");
    passes(&front, good.port());
    assert!(good.hits().len() <= 1, "a connection is no request");
    (0..10).for_each(|_| assert_eq!(front.get("").status, 200));
}

/// A server of `grpc.health.v1` that knows one service, with this status; HTTP status 200 for GETs.
fn grpc_server(service: &'static str, status: Arc<AtomicI32>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
    let port = listener.local_addr().expect("it is bound").port();
    thread::spawn(move || {
        runtime().block_on(async move {
            listener.set_nonblocking(true).expect("it can be");
            let listener = tokio::net::TcpListener::from_std(listener).expect("there is a runtime");
            while let Ok((tcp, _)) = listener.accept().await {
                let status = status.clone();
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(tcp).await.ok()?;
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(answer(request, respond, service, status.load(Ordering::SeqCst)));
                    }
                    Some(())
                });
            }
        });
    });
    port
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    service: &str,
    status: i32,
) -> Option<()> {
    let path = request.uri().path().to_owned();
    let mut asked = Vec::new();
    let mut body = request.into_body();
    while let Some(Ok(chunk)) = body.data().await {
        asked.extend_from_slice(&chunk);
    }
    // A frame's header, the field's tag and length, and the name.
    let known = path == "/grpc.health.v1.Health/Check" && asked.get(7..) == Some(service.as_bytes());
    let head = Response::builder().header("content-type", "application/grpc").body(()).ok()?;
    let mut send = respond.send_response(head, false).ok()?;
    if known {
        let status = u8::try_from(status).ok()?;
        send.send_data(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]), false).ok()?;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", if known { "0" } else { "5" }.parse().ok()?);
    send.send_trailers(trailers).ok()
}

#[test]
fn grpc_checks_ask_for_their_service() {
    let status = Arc::new(AtomicI32::new(1));
    let (known, other) =
        (grpc_server("shop.Users", status.clone()), grpc_server("shop.Other", status.clone()));
    let spec =
        checked("grpc: {service: shop.Users}, interval: 1s, timeout: 1s, unhealthyAfter: 1, healthyAfter: 1");
    let front = Front::start(&spec, "kubernetes.io/h2c", &[known, other]);
    runtime().block_on(async {
        let mut connection = front.http2().await;
        heddle_tests::backend::call(&mut connection, true).await;
    });
    passes(&front, known);
    fails(&front, other, "");
    // NOT_SERVING.
    status.store(2, Ordering::SeqCst);
    fails(&front, known, "grpc.health.v1.Health/Check says status 2");
}

#[test]
fn http_checks_speak_the_version_of_the_port() {
    let told =
        |status| Http2Backend::start(move |_| Told { status, time: Duration::ZERO, grpc_status: None });
    let (good, bad) = (told(200), told(503));
    let spec = checked("http: {path: /healthz}, interval: 1s, unhealthyAfter: 1, healthyAfter: 1");
    let front = Front::start(&spec, "kubernetes.io/h2c", &[good.port(), bad.port()]);
    runtime().block_on(async {
        let mut connection = front.http2().await;
        heddle_tests::backend::call(&mut connection, false).await;
    });
    passes(&front, good.port());
    fails(&front, bad.port(), "answered with 503");
}

/// The sidecar of a workload of `users` that answers 500 to its callers' checks alone.
fn meshed(control_plane: &ControlPlane, app: &App) -> Process {
    let address = format!("127.0.0.1:{}", app.port());
    control_plane.sidecar("users", ["--port", "http:8080:http", "--app", &address])
}

#[test]
fn endpoints_in_the_mesh_are_checked_as_requests_reach_them() {
    let status = Arc::new(AtomicU16::new(200));
    let told = status.clone();
    let app = App::answering(move |head| match head.starts_with("GET /healthz ") {
        true => format!("HTTP/1.1 {} Told\r\ncontent-length: 0\r\n\r\n", told.load(Ordering::SeqCst)),
        false => response("ok"),
    });
    let control_plane = ControlPlane::start();
    let policy = |probe: &str| {
        format!(
            "apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: told, namespace: default}}
spec:
  targetRefs: [{{group: '', kind: Service, name: users}}]
  healthCheck: {{{probe}, interval: 1s, unhealthyAfter: 1, healthyAfter: 1}}
"
        )
    };
    control_plane.apply("policy.yaml", &policy("http: {path: /healthz}"));
    let _users = meshed(&control_plane, &app);
    control_plane.workloads("users", 1);
    let client = control_plane.sidecar("client", ["--workers", "2"]);
    client.said("the sidecar is ready");
    let call = || get(client.listening("outbound"), "users:8080", "/").map(|(status, _)| status);
    eventually("it is reached", || (call() == Some(200)).then_some(()));
    let state = |wanted: &str, error: Value| {
        eventually(&format!("the endpoint is {wanted}: {error}"), || {
            let (_, shown) = get(client.listening("admin"), "localhost", "/endpoints")?;
            let endpoint = serde_json::from_str::<Value>(&shown).ok()?[0].clone();
            let check = &endpoint["checks"][0];
            (check["state"] == wanted && check["lastError"] == error && endpoint["health"] == wanted)
                .then_some(())
        });
    };
    state("healthy", Value::Null);
    status.store(500, Ordering::SeqCst);
    state("unhealthy", "GET /healthz was answered with 500".into());
    eventually("both workers left it", || (0..8).all(|_| call() == Some(503)).then_some(()));
    control_plane.apply("policy.yaml", &policy("tcp: {}"));
    state("healthy", Value::Null);
    eventually("both workers are back", || (0..8).all(|_| call() == Some(200)).then_some(()));
}

#[test]
fn impossible_checks_are_refused_by_their_path() {
    let control_plane = ControlPlane::start();
    for (fields, path) in [
        ("http: {path: /}, tcp: {}", "spec.healthCheck"),
        ("interval: 1s", "spec.healthCheck"),
        ("http: {path: healthz}", "spec.healthCheck.http.path"),
        ("http: {}", "spec.healthCheck.http"),
        ("tcp: {port: 1}", "spec.healthCheck.tcp.port"),
        ("grpc: {service: ''}", "spec.healthCheck.grpc.service"),
        ("tcp: {}, interval: 50ms", "spec.healthCheck.interval"),
        ("tcp: {}, timeout: 0s", "spec.healthCheck.timeout"),
        ("tcp: {}, interval: 1s, timeout: 2s", "spec.healthCheck.timeout"),
        ("tcp: {}, healthyAfter: 0", "spec.healthCheck.healthyAfter"),
        ("tcp: {}, unhealthyAfter: 0", "spec.healthCheck.unhealthyAfter"),
    ] {
        let text = format!(
            "apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: told, namespace: default}}
spec:
  targetRefs: [{{group: '', kind: Service, name: users}}]
  healthCheck: {{{fields}}}
"
        );
        control_plane.apply("policy.yaml", &text);
        let errors = eventually(&format!("{fields} is refused"), || {
            let errors = control_plane.shows("/errors")["errors"].clone();
            (!errors.as_array()?.is_empty()).then_some(errors)
        });
        assert_eq!(errors[0]["field"], path, "{fields}: {errors}");
        // Or the next one would be satisfied by this one's error.
        control_plane.apply("policy.yaml", "");
        eventually("nothing is wrong", || {
            control_plane.shows("/errors")["errors"].as_array()?.is_empty().then_some(())
        });
    }
    let route = "apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: told, namespace: default}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: users}]
  healthCheck: {tcp: {}}
";
    control_plane.apply("policy.yaml", route);
    eventually("a route has no endpoints", || {
        control_plane.shows("/statuses").to_string().contains("\"spec.healthCheck\"").then_some(())
    });
}
