//! FaultPolicies through real sidecars: what clients meet, and that nothing else changes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use heddle_tests::backend::{call, runtime};
use heddle_tests::{App, ControlPlane, Process, eventually, exchange, get, response};

const SERVICE: &str = "{group: '', kind: Service, name: users}";

/// A client, and a service that counts the requests that reach it.
struct Shop {
    control_plane: ControlPlane,
    client: Process,
    reached: Arc<AtomicUsize>,
    _server: (App, Process),
}

impl Shop {
    fn start() -> Self {
        let control_plane = ControlPlane::start();
        let reached = Arc::new(AtomicUsize::new(0));
        let counter = reached.clone();
        let app = App::answering(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
            response("here")
        });
        let address = format!("127.0.0.1:{}", app.port());
        let server = control_plane.sidecar("users", ["--port", "http:80:http", "--app", &address]);
        server.said("the sidecar is ready");
        let client = control_plane.sidecar("client", [] as [&str; 0]);
        client.said("the sidecar is ready");
        control_plane.workloads("users", 1);
        let shop = Self { control_plane, client, reached, _server: (app, server) };
        eventually("the service answers", || {
            exchange(shop.at(), &shop.request("GET", "/", ""))
                .filter(|answer| answer.starts_with("HTTP/1.1 200"))
        });
        shop
    }

    fn at(&self) -> SocketAddr {
        self.client.listening("outbound")
    }

    fn request(&self, method: &str, target: &str, fields: &str) -> String {
        format!("{method} {target} HTTP/1.1\r\nhost: users\r\nconnection: close\r\n{fields}\r\n")
    }

    fn ask(&self, target: &str, fields: &str) -> String {
        exchange(self.at(), &self.request("GET", target, fields)).expect("there is an answer")
    }

    /// Puts faults into force; those of the sentinel's path show that they are.
    fn meets(&self, spec: &str) {
        self.meets_all(&[("faults", SERVICE, spec)]);
    }

    /// Puts policies into force: the name, the target and the rest of each.
    fn meets_all(&self, policies: &[(&str, &str, &str)]) {
        let sentinel = format!("/.sentinel-{}", self.reached.load(Ordering::Relaxed));
        let spec = format!("  abort: {{status: 599, percent: 100}}\n  match: [{{pathPrefix: {sentinel}}}]");
        let all = [("a-sentinel", SERVICE, spec.as_str())].into_iter().chain(policies.iter().copied());
        let text: String = all.map(|(name, target, spec)| policy(name, target, spec)).collect();
        self.control_plane.apply("faults.yaml", &text);
        eventually("the faults are in force", || {
            self.ask(&sentinel, "").starts_with("HTTP/1.1 599").then_some(())
        });
    }
}

fn policy(name: &str, target: &str, spec: &str) -> String {
    format!(
        "apiVersion: heddle.dev/v1alpha1\nkind: FaultPolicy\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  targetRefs: [{target}]\n{spec}\n---\n"
    )
}

#[test]
fn an_abort_is_answered_by_the_clients_side_as_the_policy_says() {
    let shop = Shop::start();
    shop.meets(
        "  abort: {status: 418, grpcStatus: 8, percent: 100}\n  match: [{headers: [{name: X-Fault, value: 'yes'}]}]",
    );
    let before = shop.reached.load(Ordering::Relaxed);
    let answer = shop.ask("/", "x-fault: yes\r\naccept: application/json\r\n");
    assert!(answer.starts_with("HTTP/1.1 418 "), "{answer}");
    assert!(answer.contains("heddle-error: fault_injected\r\n"), "{answer}");
    assert!(answer.contains("\"policy\":\"default/faults\""), "{answer}");
    let answer = shop.ask("/", "x-fault: yes\r\ncontent-type: application/grpc\r\n");
    assert!(answer.contains("grpc-status: 8\r\n"), "{answer}");
    assert_eq!(shop.reached.load(Ordering::Relaxed), before, "nothing was sent");
    assert!(shop.ask("/", "x-fault: no\r\n").starts_with("HTTP/1.1 200"));
    let (_, metrics) =
        get(shop.client.listening("admin"), "localhost", "/metrics").expect("there are metrics");
    assert!(metrics.contains("error=\"fault_injected\""), "{metrics}");
}

#[test]
fn a_delay_is_waited_out_and_counts_for_the_time_limit() {
    let shop = Shop::start();
    shop.meets("  delay: {fixed: 4s, percent: 100}\n  match: [{pathPrefix: /slow}]");
    let began = Instant::now();
    assert!(shop.ask("/slow/er", "").starts_with("HTTP/1.1 200"));
    assert!(began.elapsed() >= Duration::from_secs(4), "{:?}", began.elapsed());
    shop.control_plane.apply(
        "timeouts.yaml",
        "apiVersion: heddle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: timeouts, namespace: default}\nspec:\n  targetRefs: [{group: '', kind: Service, name: users}]\n  timeouts: {request: 2s}\n",
    );
    let answer = eventually("the limit is in force", || {
        Some(shop.ask("/slow", "")).filter(|answer| answer.starts_with("HTTP/1.1 504"))
    });
    assert!(answer.contains("heddle-error: timeout\r\n"), "{answer}");
    assert!(shop.ask("/slowly", "").starts_with("HTTP/1.1 200"));
}

#[test]
fn http2_and_grpc_meet_the_same_faults() {
    let shop = Shop::start();
    shop.meets("  delay: {fixed: 200ms, percent: 100}\n  abort: {status: 503, grpcStatus: 8, percent: 100}\n  match: [{pathPrefix: /a.A}]");
    let before = shop.reached.load(Ordering::Relaxed);
    runtime().block_on(async {
        let tcp = tokio::net::TcpStream::connect(shop.at()).await.expect("it listens");
        let (mut connection, driver) = h2::client::handshake(tcp).await.expect("it speaks HTTP/2");
        tokio::spawn(driver);
        let began = Instant::now();
        let (answer, _) = call(&mut connection, false).await;
        assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers()["heddle-error"], "fault_injected");
        let (answer, _) = call(&mut connection, true).await;
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["grpc-status"]),
            (200, &"8".parse().unwrap())
        );
        assert_eq!(answer.headers()["heddle-error"], "fault_injected");
    });
    assert_eq!(shop.reached.load(Ordering::Relaxed), before, "nothing was sent");
}

#[test]
fn the_most_specific_policy_decides_and_a_copy_waits_for_the_decision() {
    let shop = Shop::start();
    let copies: Arc<Mutex<Vec<(String, Instant)>>> = Arc::default();
    let seen = copies.clone();
    let app = App::answering(move |request| {
        let line = request.lines().next().unwrap_or_default().to_owned();
        seen.lock().expect("nobody panics with it").push((line, Instant::now()));
        response("copied")
    });
    let address = format!("127.0.0.1:{}", app.port());
    let sidecar = shop.control_plane.sidecar("copies", ["--port", "http:80:http", "--app", &address]);
    sidecar.said("the sidecar is ready");
    shop.control_plane.workloads("copies", 1);
    shop.control_plane.apply(
        "route.yaml",
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: users, namespace: default}
spec:
  parentRefs: [{group: '', kind: Service, name: users}]
  rules:
  - name: strict
    matches: [{path: {type: PathPrefix, value: /strict}}]
    backendRefs: [{name: users, port: 80}]
  - filters:
    - {type: RequestMirror, requestMirror: {backendRef: {name: copies, port: 80}}}
    - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}
    backendRefs: [{name: users, port: 80}]
",
    );
    let route = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: users}";
    let rule = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: users, sectionName: strict}";
    shop.meets_all(&[
        ("service", SERVICE, "  abort: {status: 501, percent: 100}\n  match: [{pathPrefix: /strict}, {pathPrefix: /other}]"),
        ("route", route, "  abort: {status: 502, percent: 100}\n  match: [{pathPrefix: /strict}, {headers: [{name: x-fault, value: 'yes'}]}]"),
        ("rule", rule, "  abort: {status: 503, percent: 100}"),
        ("slow", route, "  delay: {fixed: 300ms, percent: 100}\n  match: [{pathPrefix: /slow}]"),
    ]);
    let status = |target: &str, fields: &str| shop.ask(target, fields)[9..12].to_owned();
    eventually("the copies have a destination", || {
        status("/warm", "");
        copies
            .lock()
            .expect("nobody panics with it")
            .iter()
            .any(|(line, _)| line.contains("/warm"))
            .then_some(())
    });
    assert_eq!(status("/strict", ""), "503", "the rule's comes first");
    assert_eq!(status("/other", "x-fault: yes\r\n"), "502", "then the route's");
    assert_eq!(status("/other", ""), "501", "then the service's");
    let began = Instant::now();
    assert_eq!(status("/slow", ""), "200");
    assert_eq!(status("/last", ""), "200");
    let copied = eventually("all copies were sent", || {
        let copies = copies.lock().expect("nobody panics with it").clone();
        copies.iter().any(|(line, _)| line.contains("/last")).then_some(copies)
    });
    assert!(!copied.iter().any(|(line, _)| line.contains("/other")), "{copied:?}");
    let slow = copied.iter().find(|(line, _)| line.contains("/slow")).expect("what was delayed is copied");
    assert!(slow.1.duration_since(began) >= Duration::from_millis(300), "{copied:?}");
}

#[test]
fn a_share_of_the_requests_is_aborted() {
    let shop = Shop::start();
    shop.meets("  abort: {status: 503, percent: 50}\n  match: [{method: GET, pathPrefix: /half}]");
    let aborted = (0..60).filter(|_| shop.ask("/half", "").starts_with("HTTP/1.1 503")).count();
    // Two in a hundred billion runs are outside.
    assert!((5..=55).contains(&aborted), "{aborted} of 60");
    let put = exchange(shop.at(), &shop.request("PUT", "/half", "content-length: 0\r\n"));
    assert!(put.is_some_and(|answer| answer.starts_with("HTTP/1.1 200")), "another method");
}

#[test]
fn what_cannot_be_is_refused_with_its_path() {
    let control_plane = ControlPlane::start();
    let abort = "  abort: {status: 503, percent: 1}";
    let cases = [
        (SERVICE, "  match: [{method: GET}]", "spec"),
        (SERVICE, "  delay: {fixed: 0s, percent: 1}", "spec.delay.fixed"),
        (SERVICE, "  delay: {fixed: soon, percent: 1}", "spec.delay.fixed"),
        (SERVICE, "  delay: {fixed: 1s, percent: 101}", "spec.delay.percent"),
        (SERVICE, "  abort: {percent: 1}", "spec.abort"),
        (SERVICE, "  abort: {status: 600, percent: 1}", "spec.abort.status"),
        (SERVICE, "  abort: {grpcStatus: 17, percent: 1}", "spec.abort.grpcStatus"),
        (SERVICE, "  abort: {status: 503, percent: 101}", "spec.abort.percent"),
        (SERVICE, "  abort: {status: 503, percent: 1}\n  match: [{}]", "spec.match[0]"),
        (SERVICE, "  abort: {status: 503, percent: 1}\n  match: [{method: 'GE T'}]", "spec.match[0].method"),
        (
            SERVICE,
            "  abort: {status: 503, percent: 1}\n  match: [{pathPrefix: v1}]",
            "spec.match[0].pathPrefix",
        ),
        (
            SERVICE,
            "  abort: {status: 503, percent: 1}\n  match: [{headers: [{name: a, value: \"\\n\"}]}]",
            "spec.match[0].headers[0].value",
        ),
        ("{group: '', kind: ConfigMap, name: users}", abort, "spec.targetRefs[0].kind"),
    ];
    for (index, (target, spec, path)) in cases.iter().enumerate() {
        let name = format!("bad-{index}");
        control_plane.apply(&format!("{name}.yaml"), &policy(&name, target, spec));
        eventually(&format!("{spec} is refused at {path}"), || {
            let shown = [control_plane.shows("/errors"), control_plane.shows("/statuses")];
            let lists = [&shown[0]["errors"], &shown[1]["policies"]];
            let mut shown = lists.into_iter().filter_map(|list| list.as_array()).flatten();
            let names = |one: &serde_json::Value| {
                let text = one.to_string();
                text.contains(&name) && text.contains(path)
            };
            shown.any(names).then_some(())
        });
    }
}
