//! What the fields of a route say about single requests, where the Gateway API's own suite does not
//! look: places to go to, paths, conditions, copies, limits of time, tries, and who is meant.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use heddle_tests::mesh::installed;
use heddle_tests::shop::{Shop, by, status};
use heddle_tests::{Process, eventually, exchange, response};

/// The value of a header of an answer.
fn field<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next()?;
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// The first line of the request that reached an application, as the application tells it.
fn seen(answer: &str) -> &str {
    answer.split("\r\n\r\n").nth(1).and_then(|body| body.lines().nth(1)).unwrap_or_default()
}

const PLACES: &str = "
  - matches: [{path: {type: PathPrefix, value: /same}}]
    filters: [{type: RequestRedirect, requestRedirect: {statusCode: 307}}]
  - matches: [{path: {type: PathPrefix, value: /secure}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 308}}]
  - matches: [{path: {type: PathPrefix, value: /port}}]
    filters: [{type: RequestRedirect, requestRedirect: {port: 8443, hostname: shop.example}}]
  - matches: [{path: {type: PathPrefix, value: /eighty}}]
    filters: [{type: RequestRedirect, requestRedirect: {port: 80}}]
  - matches: [{path: {type: PathPrefix, value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new/}, statusCode: 303}}]
  - matches: [{path: {type: PathPrefix, value: /gone}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: ''}, statusCode: 301}}]";

#[test]
fn a_redirect_changes_what_it_names_and_nothing_else() {
    let shop = Shop::start();
    shop.route(PLACES);
    let expected = [
        ("/same/a?b=c", "307", "http://users:8080/same/a?b=c"),
        ("/secure/a", "308", "https://users/secure/a"),
        ("/port", "302", "http://shop.example:8443/port"),
        ("/eighty", "302", "http://users/eighty"),
        ("/old/a?b", "303", "http://users:8080/new/a?b"),
        ("/old", "303", "http://users:8080/new"),
        ("/old/", "303", "http://users:8080/new/"),
        ("/gone/a", "301", "http://users:8080/a"),
        ("/gone", "301", "http://users:8080/"),
    ];
    for (target, code, location) in expected {
        let answer = shop.get(target);
        assert_eq!((status(&answer), field(&answer, "location")), (code, Some(location)), "{target}");
    }
    // The same over HTTP/2.
    let Some(curl) = installed("curl", &["--http2-prior-knowledge", "--version"]) else { return };
    for (target, code, location) in expected {
        let url = format!("http://users:8080{target}");
        let at = format!("users:8080:{}", shop.at());
        let output = Command::new(&curl)
            .args(["-s", "--http2-prior-knowledge", "-o", "/dev/null", "--connect-to", &at])
            .args(["-w", "%{http_version} %{http_code} %header{location}", &url])
            .output()
            .expect("curl runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("2 {code} {location}"), "{target}");
    }
}

#[test]
fn a_prefix_is_replaced_by_whole_elements() {
    let shop = Shop::start();
    shop.route(
        "
  - matches: [{path: {type: PathPrefix, value: /root/}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: users, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /in}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /a/b/}}}]
    backendRefs: [{name: users, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /whole}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /one}}}]
    backendRefs: [{name: users, port: 8080}]
  - backendRefs: [{name: other, port: 8080}]",
    );
    for (target, expected) in [
        ("/root", "/"),
        ("/root/", "/"),
        ("/root/a", "/a"),
        ("/root/a?b=/root", "/a?b=/root"),
        ("/in", "/a/b"),
        ("/in/", "/a/b/"),
        ("/in/c/", "/a/b/c/"),
        ("/whole/a/b?c", "/one?c"),
    ] {
        let answer = shop.get(target);
        assert_eq!((by(&answer), seen(&answer)), ("users", &*format!("GET {expected} HTTP/1.1")), "{target}");
    }
    for target in ["/rooted", "/inn", "/ROOT/a"] {
        assert_eq!(by(&shop.get(target)), "other", "{target}");
    }
}

#[test]
fn conditions_hold_for_what_the_request_says_as_a_whole() {
    let shop = Shop::start();
    shop.route(
        "
  - matches:
    - headers: [{type: RegularExpression, name: X-Version, value: 'v[0-9]+'}]
    - headers: [{name: x-list, value: 'a,b'}]
    - headers: [{name: cookie, value: 'a=1; b=2'}]
    - queryParams: [{type: RegularExpression, name: page, value: '[0-9]+'}]
    - queryParams: [{name: Case, value: 'a b'}]
    - method: PATCH
    - headers: [{name: x-first, value: 'yes'}, {name: X-FIRST, value: 'no'}]
    backendRefs: [{name: users-v2, port: 8080}]
  - backendRefs: [{name: users, port: 8080}]",
    );
    for (method, target, fields, matches) in [
        ("GET", "/", &["x-VERSION: v12"][..], true),
        ("GET", "/", &["x-version: v12x"], false),
        ("GET", "/", &["x-version: V12"], false),
        ("GET", "/", &["x-list: a", "x-list: b"], true),
        ("GET", "/", &["x-list: b", "x-list: a"], false),
        ("GET", "/", &["cookie: a=1", "cookie: b=2"], true),
        ("GET", "/?page=12", &[], true),
        ("GET", "/?page=12&page=x", &[], true),
        ("GET", "/?page=x&page=12", &[], false),
        ("GET", "/?Page=12", &[], false),
        ("GET", "/?Case=a%20b", &[], true),
        ("GET", "/?Case=A+b", &[], false),
        ("PATCH", "/", &["content-length: 0"], true),
        ("POST", "/", &["content-length: 0"], false),
        ("GET", "/", &["x-first: yes"], true),
        ("GET", "/", &["x-first: no"], false),
    ] {
        let expected = if matches { "users-v2" } else { "users" };
        let answer = shop.ask(method, target, fields);
        assert_eq!(by(&answer), expected, "{method} {target} {fields:?}: {answer}");
    }
}

#[test]
fn answers_of_the_rule_itself_pass_its_filters_for_responses() {
    let shop = Shop::start();
    shop.route(
        "
  - matches: [{path: {type: PathPrefix, value: /moved}}]
    filters:
    - type: CORS
      cors: {allowOrigins: ['https://a.example'], allowMethods: ['*'], exposeHeaders: ['*'], allowCredentials: true}
    - {type: RequestRedirect, requestRedirect: {hostname: there, statusCode: 301}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-by, value: mesh}]}}
  - matches: [{path: {type: PathPrefix, value: /}}]
    filters:
    - type: CORS
      cors: {allowOrigins: ['https://a.example'], exposeHeaders: ['*'], allowCredentials: true}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Total, value: '7'}]}}
    backendRefs: [{name: users, port: 8080}]",
    );
    let moved = shop.ask("GET", "/moved", &["origin: https://a.example"]);
    assert_eq!((status(&moved), field(&moved, "location")), ("301", Some("http://there:8080/moved")));
    assert_eq!(field(&moved, "access-control-allow-origin"), Some("https://a.example"), "{moved}");
    assert_eq!(field(&moved, "x-by"), Some("mesh"));
    let asking = ["origin: https://a.example", "access-control-request-method: PUT"];
    let preflight = shop.ask("OPTIONS", "/moved", &asking);
    assert_eq!((status(&preflight), field(&preflight, "x-by")), ("204", Some("mesh")), "{preflight}");
    assert_eq!(field(&preflight, "access-control-allow-methods"), Some("PUT"));
    assert_eq!(field(&preflight, "access-control-expose-headers"), None);
    // Where browsers take a `*` for a name, the names are listed.
    let answer = shop.ask("GET", "/", &["origin: https://a.example"]);
    let exposed = field(&answer, "access-control-expose-headers").unwrap_or_default();
    assert!(exposed.split(", ").any(|name| name == "content-length") && !exposed.contains('*'), "{answer}");
}

#[test]
fn each_mirror_has_its_own_share_and_one_that_leads_nowhere_is_dropped() {
    let copies: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
    let noted = copies.clone();
    let shop = Shop::with(move |name, request| {
        if request.contains(" /mirrored") && name != "users" {
            noted.lock().unwrap().push((name.to_owned(), request.to_owned()));
        }
        response(name)
    });
    let mirror = |name: &str, share: &str| {
        format!(
            "    - {{type: RequestMirror, requestMirror: {{backendRef: {{name: {name}, port: 8080}}{share}}}}}\n"
        )
    };
    let mirrors = [
        mirror("other", ""),
        mirror("nowhere", ""),
        mirror("users-v2", ", fraction: {numerator: 1, denominator: 4}"),
        mirror("users-v2", ", percent: 0"),
    ]
    .concat();
    shop.route(&format!(
        "
  - matches: [{{path: {{type: PathPrefix, value: /mirrored}}}}]
    filters:
{mirrors}    - {{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: X-Rule, value: all}}]}}}}
    backendRefs:
    - name: users
      port: 8080
      filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: X-Backend, value: own}}]}}}}]"
    ));
    let count = 200;
    for n in 0..count {
        assert_eq!(by(&shop.get(&format!("/mirrored/{n}"))), "users");
    }
    let of = |name: &str| copies.lock().unwrap().iter().filter(|(to, _)| to == name).count();
    eventually("each request was copied once", || (of("other") == count).then_some(()));
    // Five standard deviations around a quarter.
    assert!((20..=81).contains(&of("users-v2")), "{}", of("users-v2"));
    let copies = copies.lock().unwrap();
    let (_, copy) = copies.iter().find(|(to, _)| to == "other").unwrap();
    let copy = copy.to_ascii_lowercase();
    assert!(copy.contains("host: users:8080\n") && copy.contains("x-rule: all\n"), "{copy}");
    assert!(!copy.contains("x-backend"), "what is for the backend alone is not for copies: {copy}");
}

#[test]
fn a_try_has_its_own_limit_and_the_next_waits_for_its_pause() {
    const LIMIT: Duration = Duration::from_secs(2);
    const PAUSE: Duration = Duration::from_millis(400);
    let tries: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let noted = tries.clone();
    let shop = Shop::with(move |_, request| {
        if request.contains(" /slow") {
            let mut tries = noted.lock().unwrap();
            tries.push(Instant::now());
            let first = tries.len() % 2 == 1;
            drop(tries);
            if first {
                // No answer in anybody's time. The next one has as much as the first.
                std::thread::sleep(Duration::from_secs(3600));
            }
        }
        response("well")
    });
    shop.route(
        "
  - matches: [{path: {type: PathPrefix, value: /slow/once}}]
    timeouts: {request: 10s, backendRequest: 2s}
    backendRefs: [{name: users, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /slow/twice}}]
    timeouts: {request: 10s, backendRequest: 2s}
    retry: {attempts: 1, backoff: 400ms}
    backendRefs: [{name: users, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /slow/capped}}]
    timeouts: {request: 500ms, backendRequest: 300ms}
    retry: {attempts: 5, backoff: 1m}
    backendRefs: [{name: users, port: 8080}]",
    );
    let answer = shop.get("/slow/once");
    assert_eq!((status(&answer), field(&answer, "heddle-error")), ("504", Some("per_try_timeout")));
    tries.lock().unwrap().clear();
    assert_eq!(by(&shop.get("/slow/twice")), "well", "a try that was too slow is repeated without codes");
    {
        let tries = tries.lock().unwrap();
        assert!(tries.len() == 2 && tries[1] - tries[0] >= LIMIT + PAUSE, "{tries:?}");
    }
    tries.lock().unwrap().clear();
    let begun = Instant::now();
    assert_eq!(status(&shop.get("/slow/capped")), "504");
    assert!(begun.elapsed() < Duration::from_secs(30), "a pause that is too long is not waited for");
    assert_eq!(tries.lock().unwrap().len(), 1);
}

#[test]
fn what_may_have_been_done_is_repeated_for_the_methods_of_the_policy() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let shop = Shop::with(move |_, request| {
        if request.contains(" /flaky") {
            counted.fetch_add(1, Ordering::SeqCst);
            return "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_owned();
        }
        response("well")
    });
    shop.route(
        "
  - name: flaky
    matches: [{path: {type: PathPrefix, value: /flaky}}]
    retry: {codes: [503], attempts: 2, backoff: 1ms}
    backendRefs: [{name: users, port: 8080}]",
    );
    let tried = |method: &str| {
        calls.store(0, Ordering::SeqCst);
        assert_eq!(status(&shop.ask(method, "/flaky", &["content-length: 0"])), "503", "the last code");
        calls.load(Ordering::SeqCst)
    };
    assert_eq!((tried("GET"), tried("POST")), (3, 1));
    let rule = "group: gateway.networking.k8s.io, kind: HTTPRoute, name: users, sectionName: flaky";
    shop.policies(&[(rule, "retry: {methods: [POST]}")]);
    eventually("the policy is in force", || (tried("POST") == 3).then_some(()));
    assert_eq!(tried("GET"), 1);
}

#[test]
fn a_session_in_a_header_outlives_its_backends_share() {
    let shop = Shop::start();
    let rules = |users: u32, marker: &str| {
        format!(
            "
  - name: sticky
    matches: [{{path: {{type: PathPrefix, value: /}}}}]
    sessionPersistence: {{sessionName: X-Session, type: Header, absoluteTimeout: 1h, idleTimeout: 10m}}
    backendRefs: [{{name: users, port: 8080, weight: {users}}}, {{name: users-v2, port: 8080, weight: 1}}]
  - matches: [{{path: {{type: Exact, value: {marker}}}}}]
    filters: [{{type: RequestRedirect, requestRedirect: {{hostname: there, statusCode: 302}}}}]"
        )
    };
    shop.route(&rules(1_000_000, "/.one"));
    let first = shop.get("/");
    assert_eq!(by(&first), "users");
    let token = format!("x-session: {}", field(&first, "x-session").expect("a new session has a token"));
    shop.route(&rules(0, "/.two"));
    eventually("the share is gone", || (status(&shop.get("/.two")) == "302").then_some(()));
    for _ in 0..20 {
        assert_eq!(by(&shop.ask("GET", "/", &[&token])), "users");
        assert_eq!(by(&shop.get("/")), "users-v2");
    }
    let forged = shop.ask("GET", "/", &["x-session: 0123456789"]);
    assert_eq!(by(&forged), "users-v2");
    assert!(field(&forged, "x-session").is_some(), "who brings none that is valid gets a new one");
}

/// A Service without anybody behind it, and one whose port is no HTTP.
const MORE: &str = "
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: default}
spec: {ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: ledger, namespace: default}
spec: {ports: [{name: tcp, port: 8080}]}
";

#[test]
fn backends_that_cannot_answer_say_what_they_are() {
    let shop = Shop::start();
    shop.control_plane.apply("more.yaml", MORE);
    shop.route(
        "
  - matches: [{path: {type: PathPrefix, value: /empty}}]
    backendRefs: [{name: empty, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /half}}]
    backendRefs: [{name: users, port: 8080}, {name: empty, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /wrong}}]
    backendRefs: [{name: ledger, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /no-port}}]
    backendRefs: [{name: users, port: 81}]
  - matches: [{path: {type: PathPrefix, value: /kind}}]
    backendRefs: [{group: example.org, kind: Bucket, name: users}]
  - matches: [{path: {type: PathPrefix, value: /nothing}}]",
    );
    let empty = shop.get("/empty");
    assert_eq!((status(&empty), field(&empty, "heddle-error")), ("503", Some("no_healthy_endpoint")));
    let half: Vec<String> = (0..100).map(|_| status(&shop.get("/half")).to_owned()).collect();
    let refused = half.iter().filter(|status| *status == "503").count();
    assert!((25..=75).contains(&refused) && half.iter().all(|s| s == "503" || s == "200"), "{half:?}");
    for target in ["/wrong", "/no-port", "/kind", "/nothing"] {
        let answer = shop.get(target);
        assert_eq!(
            (status(&answer), field(&answer, "heddle-error")),
            ("500", Some("no_backend")),
            "{target}"
        );
    }
    let statuses = shop.control_plane.shows("/statuses");
    let route = &statuses["routes"][0]["parents"][0]["conditions"];
    let conditions: Vec<_> = route.as_array().unwrap().iter().map(|c| (&c["type"], &c["status"])).collect();
    assert_eq!(conditions, [(&"Accepted".into(), &"True".into()), (&"ResolvedRefs".into(), &"False".into())]);
}

#[test]
fn consumers_with_routes_of_their_own_have_no_others() {
    let shop = Shop::start();
    let [guest, stranger] = ["guests", "strangers"].map(|namespace| {
        let client = shop.control_plane.sidecar("guest", ["--namespace", namespace]);
        client.said("the sidecar is ready");
        client
    });
    let ask = |client: &Process, path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: users.default:8080\r\nconnection: close\r\n\r\n");
        exchange(client.listening("outbound"), &request).unwrap_or_default()
    };
    // The producer's route does not lead on from the backend of the consumer's.
    shop.route(
        "
  - matches: [{path: {type: PathPrefix, value: /}}]
    backendRefs: [{name: users-v2, port: 8080}]",
    );
    for client in [&guest, &stranger] {
        eventually("all meet the producer's", || (by(&ask(client, "/b")) == "users-v2").then_some(()));
    }
    shop.control_plane.apply(
        "consumer.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: own, namespace: guests}\nspec:\n  parentRefs: [{group: '', kind: Service, namespace: default, name: users, sectionName: http}]\n  rules:\n  - matches: [{path: {type: PathPrefix, value: /a}}]\n    backendRefs: [{namespace: default, name: users, port: 8080}]\n",
    );
    eventually("the guests have a route", || (by(&ask(&guest, "/a")) == "users").then_some(()));
    assert_eq!(status(&ask(&guest, "/b")), "404", "what matches none of them falls to no one else's");
    assert_eq!(by(&ask(&stranger, "/a")), "users-v2");
    assert_eq!(by(&shop.get("/a")), "users-v2");
    std::fs::remove_file(shop.control_plane.manifests().join("consumer.yaml")).unwrap();
    eventually("the guests meet the producer's again", || {
        (by(&ask(&guest, "/b")) == "users-v2").then_some(())
    });
}
