//! RateLimitPolicies through real sidecars: each field by a test that fails
//! without it, for both versions of HTTP and for gRPC.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use heddle_tests::backend::{call, runtime};
use heddle_tests::{App, ControlPlane, Process, eventually, exchange, get, response};
use serde_json::Value;

const SERVICE: &str = "{group: '', kind: Service, name: users}";

/// A service of one replica that notes the requests that reach it, and its clients.
struct Shop {
    control_plane: ControlPlane,
    client: Process,
    other: Process,
    server: Process,
    reached: Arc<Mutex<Vec<String>>>,
    versions: AtomicUsize,
    _app: App,
}

impl Shop {
    fn start() -> Self {
        let control_plane = ControlPlane::start();
        let reached = Arc::<Mutex<Vec<String>>>::default();
        let seen = reached.clone();
        let app = App::answering(move |head| {
            seen.lock().expect("nobody panics with it").push(head.to_owned());
            response("here")
        });
        let address = format!("127.0.0.1:{}", app.port());
        let ports =
            ["--port", "http:80:http", "--port", "admin:81:http", "--workers", "2", "--app", &address];
        let server = control_plane.sidecar("users", ports);
        server.said("the sidecar is ready");
        let client = control_plane.sidecar("client", [] as [&str; 0]);
        let other = control_plane.sidecar("other", [] as [&str; 0]);
        control_plane.workloads("users", 1);
        for sidecar in [&client, &other] {
            sidecar.said("the sidecar is ready");
            eventually("the service answers", || {
                get(sidecar.listening("outbound"), "users", "/").filter(|(status, _)| *status == 200)
            });
        }
        Self { control_plane, client, other, server, reached, versions: AtomicUsize::default(), _app: app }
    }

    fn at(&self) -> SocketAddr {
        self.client.listening("outbound")
    }

    /// What a GET gives, with these further fields.
    fn ask_at(&self, at: SocketAddr, host: &str, target: &str, fields: &str) -> String {
        let request = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{fields}\r\n");
        exchange(at, &request).expect("there is an answer")
    }

    fn ask(&self, target: &str, fields: &str) -> String {
        self.ask_at(self.at(), "users", target, fields)
    }

    /// How many of so many GETs are admitted.
    fn admitted(&self, count: usize, target: &str, fields: &str) -> usize {
        (0..count).filter(|_| is_admitted(&self.ask(target, fields))).count()
    }

    /// Puts policies into force: the name, the target and the limits of each. A limit on a path that
    /// nobody asks for shows that they are.
    fn limits(&self, policies: &[(&str, &str, &str)]) {
        let version = self.versions.fetch_add(1, Ordering::Relaxed);
        let sentinel =
            format!("{{name: v{version}, requests: 1, per: 24h, match: [{{pathPrefix: /.v{version}}}]}}");
        let all = [("sentinel", SERVICE, sentinel.as_str())].into_iter().chain(policies.iter().copied());
        let text: String = all.map(|(name, target, limits)| policy(name, target, limits)).collect();
        self.control_plane.apply("limits.yaml", &text);
        eventually("the limits are in force", || {
            self.ask(&format!("/.v{version}"), "").contains("ratelimit: ").then_some(())
        });
    }
}

fn policy(name: &str, target: &str, limits: &str) -> String {
    format!(
        "apiVersion: heddle.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  targetRefs: [{target}]\n  limits: [{limits}]\n---\n"
    )
}

fn is_admitted(answer: &str) -> bool {
    match answer.split(' ').nth(1) {
        Some("200") => true,
        Some("429") => false,
        _ => panic!("{answer}"),
    }
}

/// The value of a field.
fn field<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[test]
fn a_limit_admits_so_many_and_says_what_is_left() {
    let shop = Shop::start();
    shop.limits(&[("limits", SERVICE, "{name: all, requests: 3, per: 1h, match: [{pathPrefix: /v1}]}")]);
    for left in ["2", "1", "0"] {
        let answer = shop.ask("/v1", "");
        assert!(is_admitted(&answer), "{answer}");
        assert_eq!(field(&answer, "ratelimit-policy"), Some("\"all\";q=3;w=3600"));
        let state = field(&answer, "ratelimit").expect("there is one");
        assert!(state.starts_with(&format!("\"all\";r={left};t=")), "{state}");
    }
    let reached = shop.reached.lock().expect("nobody panics with it").len();
    let answer = shop.ask("/v1", "accept: application/json\r\n");
    assert!(answer.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{answer}");
    assert_eq!(field(&answer, "heddle-error"), Some("rate_limited"));
    assert!(answer.contains("\"policy\":\"default/limits\""), "{answer}");
    let wait: u64 = field(&answer, "retry-after").expect("it says when").parse().expect("it is a number");
    assert!((1100..=1200).contains(&wait), "{wait}");
    assert_eq!(field(&answer, "ratelimit").map(str::to_owned), Some(format!("\"all\";r=0;t={wait}")));
    assert_eq!(shop.reached.lock().expect("nobody panics with it").len(), reached, "nothing was sent");
    let answer = shop.ask("/v2", "");
    assert!(is_admitted(&answer) && field(&answer, "ratelimit").is_none(), "{answer}");
    let (_, metrics) = get(shop.server.listening("admin"), "localhost", "/metrics").expect("it answers");
    let labels = "{service=\"users\",namespace=\"default\",policy=\"default/limits\",limit=\"all\"} 1";
    assert!(metrics.contains(&format!("heddle_rate_limited_total{labels}")), "{metrics}");
    assert!(metrics.contains("error=\"rate_limited\""), "{metrics}");
}

#[test]
fn http2_and_grpc_meet_the_same_limits() {
    let shop = Shop::start();
    shop.limits(&[("limits", SERVICE, "{requests: 2, per: 1h, match: [{pathPrefix: /a.A}]}")]);
    assert_eq!(shop.admitted(2, "/a.A/Call", ""), 2);
    runtime().block_on(async {
        let tcp = tokio::net::TcpStream::connect(shop.at()).await.expect("it listens");
        let (mut connection, driver) = h2::client::handshake(tcp).await.expect("it speaks HTTP/2");
        tokio::spawn(driver);
        let (answer, _) = call(&mut connection, false).await;
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["heddle-error"]),
            (429, &value("rate_limited"))
        );
        assert_eq!(answer.headers()["ratelimit-policy"], "\"limit-0\";q=2;w=3600");
        assert!(answer.headers().contains_key("retry-after"));
        let (answer, _) = call(&mut connection, true).await;
        assert_eq!((answer.status().as_u16(), &answer.headers()["grpc-status"]), (200, &value("8")));
        assert!(answer.headers().contains_key("grpc-retry-pushback-ms"), "{answer:?}");
    });
}

fn value(text: &str) -> http::HeaderValue {
    text.parse().expect("it is one")
}

#[test]
fn tokens_come_back_and_a_burst_is_more_than_the_rate() {
    let shop = Shop::start();
    shop.limits(&[("limits", SERVICE, "{requests: 2, per: 1s, burst: 5, match: [{pathPrefix: /v1}]}, {requests: 1, per: 1h, burst: 4, match: [{pathPrefix: /v2}]}")]);
    assert_eq!(shop.admitted(6, "/v2", ""), 4, "burst");
    eventually("it is empty", || (!is_admitted(&shop.ask("/v1", ""))).then_some(()));
    eventually("a token came back", || is_admitted(&shop.ask("/v1", "")).then_some(()));
}

#[test]
fn each_key_has_a_bucket_of_its_own() {
    let shop = Shop::start();
    shop.limits(&[("limits", SERVICE, "{requests: 1, per: 1h, key: [{identity: true}], match: [{pathPrefix: /identity}]}, {requests: 1, per: 1h, key: [{header: X-User}], match: [{pathPrefix: /header}]}, {requests: 1, per: 1h, key: [{sourceAddress: true}], match: [{pathPrefix: /address}]}")]);
    assert_eq!(shop.admitted(2, "/identity", ""), 1);
    let other = shop.other.listening("outbound");
    assert!(is_admitted(&shop.ask_at(other, "users", "/identity", "")), "another identity");
    assert_eq!(shop.admitted(2, "/header", "x-user: a\r\n"), 1);
    assert_eq!(shop.admitted(2, "/header", "x-user: b\r\n"), 1);
    assert_eq!(shop.admitted(2, "/header", ""), 1, "those without it share one");
    assert_eq!(shop.admitted(2, "/address", ""), 1);
    assert!(!is_admitted(&shop.ask_at(other, "users", "/address", "")), "the same address");
}

#[test]
fn all_limits_have_to_admit_and_a_refusal_costs_the_others_nothing() {
    let shop = Shop::start();
    shop.limits(&[
        ("all", SERVICE, "{name: wide, requests: 3, per: 1h, match: [{pathPrefix: /v1}]}"),
        ("narrow", SERVICE, "{requests: 1, per: 1h, key: [{header: x-user}], match: [{pathPrefix: /v1}]}"),
    ]);
    assert_eq!(shop.admitted(3, "/v1", "x-user: a\r\n"), 1);
    let answer = shop.ask("/v1", "x-user: b\r\n");
    assert!(is_admitted(&answer), "{answer}");
    assert!(
        field(&answer, "ratelimit").is_some_and(|state| state.starts_with("\"limit-0\";r=0;")),
        "{answer}"
    );
    assert_eq!(shop.admitted(1, "/v1", "x-user: c\r\n"), 1, "two refusals took nothing of the wide limit");
    assert_eq!(shop.admitted(1, "/v1", "x-user: d\r\n"), 0);
}

#[test]
fn a_port_is_limited_by_itself_and_workers_share_the_buckets() {
    let shop = Shop::start();
    let port = "{group: '', kind: Service, name: users, sectionName: admin}";
    shop.limits(&[("limits", port, "{requests: 5, per: 1h, match: [{pathPrefix: /v1}]}")]);
    assert_eq!(shop.admitted(8, "/v1", ""), 8, "another port");
    let clients = [shop.at(), shop.other.listening("outbound")];
    // Each connection may be another worker's.
    let admitted =
        (0..12).filter(|n| is_admitted(&shop.ask_at(clients[n % 2], "users:81", "/v1", ""))).count();
    assert_eq!(admitted, 5);
}

#[test]
fn a_rule_is_limited_at_its_backends_and_nobody_else_can_speak_for_it() {
    let shop = Shop::start();
    shop.control_plane.apply(
        "route.yaml",
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: users, namespace: default}
spec:
  parentRefs: [{group: '', kind: Service, name: users, port: 80}]
  rules:
  - name: strict
    matches: [{path: {type: PathPrefix, value: /strict}}]
    backendRefs: [{name: users, port: 81}]
  - backendRefs: [{name: users, port: 80}]
",
    );
    let rule = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: users, sectionName: strict}";
    let route = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: users}";
    shop.limits(&[
        ("rule", rule, "{requests: 2, per: 1h}"),
        ("route", route, "{requests: 1, per: 1h, match: [{pathPrefix: /both}]}"),
        ("keyed", SERVICE, "{requests: 1, per: 1h, key: [{route: true}], match: [{headers: [{name: x-keyed, value: 'yes'}]}]}"),
    ]);
    eventually("the route is in force", || {
        let shown = shop.control_plane.shows("/statuses").to_string();
        shown.contains("\"HTTPRoute\"").then_some(())
    });
    eventually("the rule's requests are limited", || {
        field(&shop.ask("/strict/first", ""), "ratelimit").map(|_| ())
    });
    assert!(shop.admitted(3, "/strict", "") <= 1, "the rule's requests have a limit");
    assert!(
        is_admitted(&shop.ask("/", "heddle-route: HTTPRoute/default/users/strict\r\n")),
        "an application's word"
    );
    assert!(is_admitted(&shop.ask_at(shop.at(), "users:81", "/strict", "")), "not by the rule");
    assert_eq!(shop.admitted(2, "/both", ""), 1, "the route's");
    let keyed = "x-keyed: yes\r\n";
    assert_eq!(shop.admitted(2, "/any", keyed), 1, "by one rule");
    assert!(is_admitted(&shop.ask_at(shop.at(), "users:81", "/any", keyed)), "by none");
    let reached = shop.reached.lock().expect("nobody panics with it").join("\n");
    assert!(!reached.contains("heddle-route"), "{reached}");
}

#[test]
fn what_was_taken_outlives_a_push_and_callers_do_not_retry() {
    let shop = Shop::start();
    shop.control_plane.apply(
        "retries.yaml",
        "apiVersion: heddle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: retries, namespace: default}\nspec:\n  targetRefs: [{group: '', kind: Service, name: users}]\n  retry: {attempts: 3, on: [\"5xx\", Reset]}\n",
    );
    let limits = |requests: u32| {
        format!("{{name: kept, requests: {requests}, per: 1h, match: [{{pathPrefix: /v1}}]}}")
    };
    shop.limits(&[("limits", SERVICE, &limits(2))]);
    assert_eq!(shop.admitted(3, "/v1", ""), 2);
    shop.limits(&[("limits", SERVICE, &limits(2))]);
    assert_eq!(shop.admitted(2, "/v1", ""), 0, "the same limit after a push");
    shop.limits(&[("limits", SERVICE, &limits(4))]);
    assert_eq!(
        shop.admitted(4, "/v1", ""),
        0,
        "what was taken counts by time: the bucket is as empty as it was"
    );
    let (_, metrics) = get(shop.server.listening("admin"), "localhost", "/metrics").expect("it answers");
    let refused =
        metrics.lines().find(|line| line.starts_with("heddle_rate_limited_total") && line.contains("kept"));
    assert!(refused.is_some_and(|line| line.ends_with(" 7")), "each was sent once: {refused:?}");
    shop.limits(&[]);
    let answer = shop.ask("/v1", "");
    assert!(is_admitted(&answer) && field(&answer, "ratelimit").is_none(), "{answer}");
}

/// Limits on a service were used up by those who only looked whether it is well.
#[test]
fn health_checks_take_no_tokens_and_one_that_is_refused_proves_nothing() {
    let shop = Shop::start();
    let checks = |times: &str| {
        let check = format!("healthCheck: {{http: {{path: /healthz}}, unhealthyAfter: 1, {times}}}");
        shop.control_plane.apply(
            "checks.yaml",
            &format!(
                "apiVersion: heddle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: checks, namespace: default}}\nspec:\n  targetRefs: [{SERVICE}]\n  {check}\n"
            ),
        );
    };
    let count = |result: &str| {
        let (_, metrics) = get(shop.client.listening("admin"), "localhost", "/metrics").expect("it answers");
        let result = format!("result=\"{result}\"");
        let line = metrics.lines().find(|line| {
            line.starts_with("heddle_health_checks_total{service=\"users\"") && line.contains(&result)
        });
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    };
    shop.limits(&[("limits", SERVICE, "{requests: 1, per: 24h, match: [{pathPrefix: /healthz}]}")]);
    checks("interval: 1s");
    eventually("it is checked", || (count("success") >= 3.0).then_some(()));
    assert_eq!(shop.admitted(3, "/healthz", ""), 1, "the token was still there");
    // More often than anybody needs to look.
    checks("interval: 200ms, timeout: 200ms");
    eventually("checks are refused", || (count("limited") >= 3.0).then_some(()));
    assert_eq!(count("failure"), 0.0);
    let reached = shop.reached.lock().expect("nobody panics with it").join("\n");
    assert!(reached.contains("GET /healthz") && !reached.contains("#probe"), "{reached}");
}

#[test]
fn what_cannot_be_is_refused_with_its_path() {
    let control_plane = ControlPlane::start();
    let cases = [
        (SERVICE, "", "spec.limits"),
        (SERVICE, "{name: 'A b', requests: 1, per: 1s}", "spec.limits[0].name"),
        (SERVICE, "{requests: 0, per: 1s}", "spec.limits[0].requests"),
        (SERVICE, "{requests: 2000000, per: 1s}", "spec.limits[0].requests"),
        (SERVICE, "{requests: 1, per: 0s}", "spec.limits[0].per"),
        (SERVICE, "{requests: 1, per: 25h}", "spec.limits[0].per"),
        (SERVICE, "{requests: 1, per: soon}", "spec.limits[0].per"),
        (SERVICE, "{requests: 1, per: 1s, burst: 0}", "spec.limits[0].burst"),
        (SERVICE, "{requests: 1, per: 24h, burst: 1000}", "spec.limits[0].burst"),
        (SERVICE, "{requests: 1, per: 1s, key: [{}]}", "spec.limits[0].key[0]"),
        (SERVICE, "{requests: 1, per: 1s, key: [{identity: false}]}", "spec.limits[0].key[0].identity"),
        (SERVICE, "{requests: 1, per: 1s, key: [{header: 'a b'}]}", "spec.limits[0].key[0].header"),
        (SERVICE, "{requests: 1, per: 1s, key: [{claim: a..b}]}", "spec.limits[0].key[0].claim"),
        (SERVICE, "{requests: 1, per: 1s, match: [{pathPrefix: v1}]}", "spec.limits[0].match[0].pathPrefix"),
        (
            "{group: gateway.networking.k8s.io, kind: Gateway, name: edge}",
            "{requests: 1, per: 1s}",
            "spec.targetRefs[0].kind",
        ),
    ];
    for (index, (target, limits, path)) in cases.iter().enumerate() {
        let name = format!("bad-{index}-");
        control_plane.apply(&format!("{name}.yaml"), &policy(&format!("{name}x"), target, limits));
        eventually(&format!("{limits} is refused at {path}"), || {
            let shown = [control_plane.shows("/errors"), control_plane.shows("/statuses")];
            let lists = [&shown[0]["errors"], &shown[1]["policies"]];
            let mut shown = lists.into_iter().filter_map(|list: &Value| list.as_array()).flatten();
            shown
                .any(|one| {
                    let text = one.to_string();
                    text.contains(&name) && text.contains(path)
                })
                .then_some(())
        });
    }
}
