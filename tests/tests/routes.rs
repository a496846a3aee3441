//! Routes on a service, and policies on routes, through real sidecars: what each
//! of their fields does to traffic.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use heddle_tests::shop::{Shop, by, status};
use heddle_tests::{Process, eventually, exchange, response};

#[test]
fn a_request_goes_where_the_most_specific_match_says() {
    let shop = Shop::start();
    shop.route(
        "
  - matches:
    - path: {type: PathPrefix, value: /v2}
    - headers: [{name: X-Version, value: two}]
    - queryParams: [{name: version, value: '2'}]
    - method: DELETE
      path: {type: RegularExpression, value: '/any/[0-9]+'}
    backendRefs: [{name: users-v2, port: 8080}]
  - matches: [{path: {type: Exact, value: /v2/exact}}]
    backendRefs: [{name: other, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /plain}}]
    backendRefs: [{name: users, port: 8080}]",
    );
    for (method, target, fields, expected) in [
        ("GET", "/v2", &[][..], "users-v2"),
        ("GET", "/v2/deeper", &[], "users-v2"),
        ("GET", "/v2/exact", &[], "other"),
        ("GET", "/plain", &[], "users"),
        ("GET", "/plain", &["x-version: two"], "users"),
        ("GET", "/", &["x-version: two"], "users-v2"),
        ("GET", "/?version=2", &[], "users-v2"),
        ("DELETE", "/any/17", &[], "users-v2"),
    ] {
        let answer = shop.ask(method, target, fields);
        assert_eq!(by(&answer), expected, "{method} {target} {fields:?}: {answer}");
    }
    for (method, target) in
        [("GET", "/v20"), ("GET", "/any/17"), ("DELETE", "/any/x"), ("GET", "/?version=3")]
    {
        let answer = shop.ask(method, target, &[]);
        assert_eq!(status(&answer), "404", "{method} {target}: {answer}");
        assert!(answer.contains("heddle-error: no_route\r\n"), "{answer}");
    }

    std::fs::remove_file(shop.control_plane.manifests().join("route.yaml")).unwrap();
    eventually("without routes everything passes", || (by(&shop.get("/v20")) == "users").then_some(()));
}

#[test]
fn filters_change_requests_and_responses() {
    let shop = Shop::start();
    shop.route(
        "
  - matches: [{path: {type: PathPrefix, value: /old}}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier:
        set: [{name: X-Set, value: new}]
        add: [{name: X-Add, value: two}]
        remove: [x-remove]
    - type: URLRewrite
      urlRewrite: {hostname: inside.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}
    - type: ResponseHeaderModifier
      responseHeaderModifier: {set: [{name: X-Answered, value: mesh}], remove: [content-type]}
    backendRefs:
    - name: users
      port: 8080
      filters:
      - type: RequestHeaderModifier
        requestHeaderModifier: {add: [{name: X-Backend, value: users}]}
  - matches: [{path: {type: PathPrefix, value: /blocked}}]
    backendRefs:
    - name: users
      port: 8080
      filters: [{type: ExtensionRef, extensionRef: {group: example.org, kind: Auth, name: strict}}]
  - matches: [{path: {type: PathPrefix, value: /moved}}]
    filters:
    - type: RequestRedirect
      requestRedirect: {scheme: https, hostname: shop.example, path: {type: ReplaceFullPath, replaceFullPath: /here}, statusCode: 301}
  - matches: [{path: {type: PathPrefix, value: /cross}}]
    filters:
    - type: CORS
      cors: {allowOrigins: ['https://*.shop.example'], allowMethods: [GET, PUT], allowCredentials: true, maxAge: 60}
    backendRefs: [{name: users, port: 8080}]",
    );
    let answer = shop.ask("GET", "/old/a?q=1", &["x-set: old", "x-add: one", "x-remove: me"]);
    let seen = answer.to_ascii_lowercase();
    for expected in [
        "get /new/a?q=1 http/1.1",
        "host: inside.example\n",
        "x-set: new",
        "x-add: one",
        "x-add: two",
        "x-backend: users",
        "x-answered: mesh",
    ] {
        assert!(seen.contains(expected), "{expected}: {answer}");
    }
    for gone in ["x-set: old", "x-remove"] {
        assert!(!seen.contains(gone), "{gone}: {answer}");
    }

    // A backend's filter that nobody can carry out is an error, too.
    let answer = shop.get("/blocked");
    assert_eq!(status(&answer), "500", "{answer}");

    let answer = shop.get("/moved/away?q=1");
    assert_eq!(status(&answer), "301");
    assert!(answer.contains("location: https://shop.example/here?q=1\r\n"), "{answer}");

    let asked = ["origin: https://www.shop.example", "access-control-request-method: PUT"];
    let answer = shop.ask("OPTIONS", "/cross", &asked);
    assert_eq!(status(&answer), "204", "{answer}");
    for expected in [
        "access-control-allow-origin: https://www.shop.example\r\n",
        "access-control-allow-credentials: true\r\n",
        "access-control-max-age: 60\r\n",
    ] {
        assert!(answer.contains(expected), "{expected}: {answer}");
    }
    let answer = shop.ask("GET", "/cross", &["origin: https://www.shop.example"]);
    assert_eq!(by(&answer), "users");
    assert!(answer.contains("access-control-allow-origin: https://www.shop.example\r\n"), "{answer}");
    let answer = shop.ask("GET", "/cross", &["origin: https://elsewhere.example"]);
    assert_eq!(by(&answer), "users");
    assert!(!answer.contains("access-control-allow-origin"), "{answer}");
}

#[test]
fn weights_are_shares_and_a_broken_backend_keeps_its_own() {
    let shop = Shop::start();
    shop.route(
        "
  - matches: [{path: {type: PathPrefix, value: /split}}]
    backendRefs: [{name: users, port: 8080, weight: 3}, {name: users-v2, port: 8080, weight: 1}, {name: other, port: 8080, weight: 0}]
  - matches: [{path: {type: PathPrefix, value: /broken}}]
    backendRefs: [{name: users, port: 8080}, {name: nowhere, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /none}}]
    backendRefs: [{name: users, port: 8080, weight: 0}]",
    );
    let answers: Vec<String> = (0..400).map(|_| shop.get("/split")).collect();
    let share = |name: &str| answers.iter().filter(|answer| by(answer) == name).count();
    assert_eq!(share("users") + share("users-v2"), 400);
    // Five standard deviations around a quarter of 400.
    assert!((57..=143).contains(&share("users-v2")), "{}", share("users-v2"));

    let answers: Vec<String> = (0..100).map(|_| shop.get("/broken")).collect();
    let refused = answers.iter().filter(|answer| status(answer) == "500").count();
    assert!((25..=75).contains(&refused), "{refused}");
    assert!(answers.iter().all(|answer| status(answer) == "500" || by(answer) == "users"));
    assert!(answers.iter().any(|answer| answer.contains("heddle-error: no_backend\r\n")));
    assert_eq!(status(&shop.get("/none")), "500");
}

#[test]
fn a_rules_timeouts_and_retries_come_before_the_services() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let shop = Shop::with(move |_, request| {
        if request.starts_with("GET /slow") {
            std::thread::sleep(Duration::from_millis(1500));
        }
        if request.starts_with("GET /flaky") && counted.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_owned()
        } else {
            response("well")
        }
    });
    shop.route(
        "
  - matches: [{path: {type: PathPrefix, value: /slow/request}}]
    timeouts: {request: 200ms}
    backendRefs: [{name: users, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /slow/none}}]
    timeouts: {request: 0s}
    backendRefs: [{name: users, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /flaky/retried}}]
    retry: {codes: [503], attempts: 2, backoff: 10ms}
    backendRefs: [{name: users, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /flaky}}]
    backendRefs: [{name: users, port: 8080}]",
    );
    let answer = shop.get("/slow/request");
    assert_eq!(status(&answer), "504", "{answer}");
    assert!(answer.contains("heddle-error: timeout\r\n"), "{answer}");
    assert_eq!(status(&shop.get("/slow/none")), "200");

    let plain: Vec<String> = (0..2).map(|_| status(&shop.get("/flaky")).to_owned()).collect();
    assert_eq!(plain, ["503", "200"]);
    for _ in 0..3 {
        assert_eq!(status(&shop.get("/flaky/retried")), "200");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 8, "each was tried twice");
}

#[test]
fn a_mirror_gets_a_copy_and_nobody_waits_for_it() {
    let copies = Arc::new(AtomicUsize::new(0));
    let counted = copies.clone();
    let shop = Shop::with(move |name, request| {
        if name == "other" && request.starts_with("GET /mirrored?q=1 ") {
            counted.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_secs(60));
        }
        response(name)
    });
    shop.route(
        "
  - matches: [{path: {type: PathPrefix, value: /mirrored}}]
    filters:
    - type: RequestMirror
      requestMirror: {backendRef: {name: other, port: 8080}}
    backendRefs: [{name: users, port: 8080}]",
    );
    let begun = std::time::Instant::now();
    let answers: Vec<String> = (0..5).map(|_| shop.get("/mirrored?q=1")).collect();
    assert!(begun.elapsed() < Duration::from_secs(50), "the copies delay nothing");
    assert!(answers.iter().all(|answer| by(answer) == "users"), "{answers:?}");
    eventually("all copies arrived", || (copies.load(Ordering::SeqCst) == 5).then_some(()));
}

#[test]
fn a_session_stays_with_its_backend() {
    let shop = Shop::start();
    shop.route(
        "
  - matches: [{path: {type: PathPrefix, value: /session}}]
    sessionPersistence: {sessionName: shop, type: Cookie}
    backendRefs: [{name: users, port: 8080}, {name: users-v2, port: 8080}]",
    );
    let first = shop.get("/session");
    let (home, cookie) =
        (by(&first).to_owned(), first.lines().find_map(|line| line.strip_prefix("set-cookie: ")));
    let cookie = cookie.expect("a new session has a cookie");
    assert!(cookie.starts_with("shop=") && cookie.contains("HttpOnly"), "{cookie}");
    let pair = format!("cookie: {}", cookie.split(';').next().unwrap_or_default());
    for _ in 0..20 {
        let answer = shop.ask("GET", "/session", &[&pair]);
        assert_eq!(by(&answer), home, "{answer}");
        assert!(!answer.contains("set-cookie"), "it goes on: {answer}");
    }
    let others: Vec<String> = (0..40).map(|_| shop.get("/session")).collect();
    assert!(others.iter().any(|answer| by(answer) != home), "without a session all get traffic");
}

const PORT: &str = "group: '', kind: Service, name: users, sectionName: http";
const ROUTE: &str = "group: gateway.networking.k8s.io, kind: HTTPRoute, name: users";

/// A rule of the route, by its name.
fn rule(name: &str) -> String {
    format!("{ROUTE}, sectionName: {name}")
}

#[test]
fn a_policy_on_a_rule_comes_before_the_routes_and_that_before_the_ports() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let shop = Shop::with(move |_, request| {
        if request.starts_with("GET /slow") {
            std::thread::sleep(Duration::from_millis(1500));
        }
        if request.starts_with("GET /flaky") && !counted.fetch_add(1, Ordering::SeqCst).is_multiple_of(3) {
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_owned()
        } else {
            response("well")
        }
    });
    shop.policies(&[(PORT, "timeouts: {request: 200ms}")]);
    eventually("the port's policy is in force", || (status(&shop.get("/slow")) == "504").then_some(()));

    shop.policies(&[
        (PORT, "timeouts: {request: 200ms}"),
        (ROUTE, "timeouts: {request: 20s}"),
        (&rule("quick"), "timeouts: {request: 300ms}"),
        (&rule("flaky"), "retry: {attempts: 2, on: ['503'], backoff: {base: 10ms}}"),
    ]);
    shop.route(
        "
  - name: quick
    matches: [{path: {type: PathPrefix, value: /slow/quick}}]
    backendRefs: [{name: users, port: 8080}]
  - name: flaky
    matches: [{path: {type: PathPrefix, value: /flaky}}]
    backendRefs: [{name: users, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /slow}}]
    backendRefs: [{name: users, port: 8080}]",
    );
    eventually("the route's policy is in force", || (status(&shop.get("/slow")) == "200").then_some(()));
    assert_eq!(status(&shop.get("/slow/quick")), "504");
    calls.store(1, Ordering::SeqCst);
    assert_eq!(status(&shop.get("/flaky")), "200");
    assert_eq!(calls.load(Ordering::SeqCst), 4, "two tries failed, the third did not");
}

#[test]
fn conditions_of_a_policy_narrow_a_rule() {
    let shop = Shop::start();
    shop.policies(&[(
        &rule("gold"),
        "when: [{header: X-Plan, in: [gold, silver]}, {header: X-Region, notIn: [eu]}]",
    )]);
    shop.route(
        "
  - name: gold
    matches: [{path: {type: PathPrefix, value: /}}]
    backendRefs: [{name: users-v2, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /}}]
    backendRefs: [{name: users, port: 8080}]",
    );
    eventually("the policy is in force", || (by(&shop.get("/")) == "users").then_some(()));
    for (fields, expected) in [
        (&["x-plan: gold"][..], "users-v2"),
        (&["x-plan: silver", "x-region: us"], "users-v2"),
        (&["x-plan: gold", "x-region: eu"], "users"),
        (&["x-plan: iron"], "users"),
        (&["x-region: us"], "users"),
    ] {
        assert_eq!(by(&shop.ask("GET", "/", fields)), expected, "{fields:?}");
    }
}

#[test]
fn a_canary_keeps_its_users_and_gains_more() {
    let shop = Shop::start();
    shop.policies(&[(ROUTE, "canary: {by: {header: X-User}}")]);
    let mut before: BTreeMap<usize, String> = BTreeMap::new();
    for (share, marker) in [(20, "/.one"), (60, "/.two")] {
        shop.route(&format!(
            "
  - matches: [{{path: {{type: Exact, value: {marker}}}}}]
    filters: [{{type: RequestRedirect, requestRedirect: {{hostname: there, statusCode: 302}}}}]
  - matches: [{{path: {{type: PathPrefix, value: /users}}}}]
    backendRefs: [{{name: users, port: 8080, weight: {}}}, {{name: users-v2, port: 8080, weight: {share}}}]",
            100 - share
        ));
        eventually("these shares are in force", || (status(&shop.get(marker)) == "302").then_some(()));
        let of = |user: usize| by(&shop.ask("GET", "/users", &[&format!("x-user: user-{user}")])).to_owned();
        let now: BTreeMap<usize, String> = (0..60).map(|user| (user, of(user))).collect();
        assert!((0..60).all(|user| now[&user] == of(user)), "each stays where it was");
        let canary =
            |homes: &BTreeMap<usize, String>| homes.values().filter(|home| *home == "users-v2").count();
        for (user, home) in &before {
            assert!(home == "users" || now[user] == "users-v2", "user {user} went back");
        }
        assert!(canary(&now) > canary(&before), "{now:?}");
        before = now;
    }
}

#[test]
fn a_route_of_another_namespace_is_for_its_clients_alone() {
    let shop = Shop::start();
    let guest = shop.control_plane.sidecar("guest", ["--namespace", "elsewhere"]);
    guest.said("the sidecar is ready");
    let ask = |client: &Process| {
        let request = "GET / HTTP/1.1\r\nhost: users.default:8080\r\nconnection: close\r\n\r\n";
        exchange(client.listening("outbound"), request).unwrap_or_default()
    };
    eventually("the guest is served", || (by(&ask(&guest)) == "users").then_some(()));
    shop.control_plane.apply(
        "consumer.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: users, namespace: elsewhere}\nspec:\n  parentRefs: [{group: '', kind: Service, namespace: default, name: users, port: 8080}]\n  rules: [{backendRefs: [{namespace: default, name: users-v2, port: 8080}]}]\n",
    );
    eventually("the guest has a route", || (by(&ask(&guest)) == "users-v2").then_some(()));
    assert_eq!(by(&ask(&shop.client)), "users");
}
