//! What `spec.fallback` says is what clients get in place of errors: each step
//! and each field by a test that fails without it, over HTTP/1, HTTP/2 and gRPC.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use heddle_tests::backend::{Backend, Front, HOST, Http2Backend, Told, runtime};
use heddle_tests::{App, ControlPlane, eventually, exchange};
use http::{HeaderMap, Request};
use serde_json::Value;

const MS: Duration = Duration::from_millis(1);

/// What one takes that is not waited for.
const NEVER: Duration = Duration::from_secs(3600);

const H2C: &str = "kubernetes.io/h2c";

/// The first failure opens the circuit of the service for good.
const BREAKER: &str =
    "  circuitBreaker: {scope: Service, consecutiveFailures: 1, open: {base: 1h, max: 1h}}\n";

const ALL: &str = "[CircuitOpen, NoHealthyEndpoint, Timeout]";

fn fallback(on: &str, steps: &str) -> String {
    format!("  fallback: {{on: {on}, steps: [{steps}]}}\n")
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Got {
    status: u16,
    headers: HashMap<String, String>,
    body: String,
}

impl Got {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The step that answered, or the error.
    fn by(&self) -> &str {
        self.header("heddle-fallback").or(self.header("heddle-error")).unwrap_or("service itself")
    }
}

/// A request of HTTP/1 with these further fields, and its body behind an empty line.
fn send(front: &Front, method: &str, path: &str, rest: &str) -> Got {
    let rest = if rest.contains("\r\n\r\n") { rest.to_owned() } else { format!("{rest}\r\n") };
    let request = format!("{method} {path} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n{rest}");
    let answer = exchange(front.outbound(), &request).expect("there is an answer");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {answer}"));
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
    let fields = lines.filter_map(|line| line.split_once(": "));
    let headers = fields.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    Got { status, headers, body: body.to_owned() }
}

fn get(front: &Front, path: &str) -> Got {
    send(front, "GET", path, "")
}

/// A request of HTTP/2 without a body.
async fn ask(connection: &mut SendRequest<Bytes>, method: &str, path: &str, fields: &[(&str, &str)]) -> Got {
    let mut request = Request::builder().method(method).uri(format!("http://{HOST}{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let (response, _) =
        connection.send_request(request.body(()).expect("a request"), true).expect("it is open");
    let (head, mut from) = response.await.expect("there is an answer").into_parts();
    let mut body = Vec::new();
    while let Some(chunk) = from.data().await {
        let chunk = chunk.expect("it is whole");
        let _ = from.flow_control().release_capacity(chunk.len());
        body.extend_from_slice(&chunk);
    }
    let trailers = from.trailers().await.expect("it is whole").unwrap_or_default();
    let text = |fields: &HeaderMap| {
        let fields = fields
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().expect("it is text").to_owned()));
        fields.collect::<HashMap<_, _>>()
    };
    let mut headers = text(&head.headers);
    headers.extend(text(&trailers));
    Got { status: head.status.as_u16(), headers, body: String::from_utf8(body).expect("it is text") }
}

const GRPC: [(&str, &str); 2] = [("content-type", "application/grpc"), ("te", "trailers")];

const RESPONSE: &str = "{response: {status: 203, headers: {Content-Type: application/json, x-mine: '1'}, \
                        body: '{\"degraded\":true}'}}";

#[test]
fn a_fixed_response_replaces_the_errors_that_are_named_and_no_others() {
    let slow = || Backend::start(|_| (200, NEVER));
    let failing = Backend::always(500);
    for (on, other, spec, ports) in [
        ("[CircuitOpen]", "[Timeout, NoHealthyEndpoint]", BREAKER.to_owned(), vec![failing.port()]),
        ("[NoHealthyEndpoint]", "[Timeout, CircuitOpen]", String::new(), vec![]),
        // Nothing listens there.
        ("[NoHealthyEndpoint]", "[Timeout, CircuitOpen]", String::new(), vec![1]),
        ("[Timeout]", "[NoHealthyEndpoint]", "  timeouts: {request: 60ms}\n".into(), vec![slow().port()]),
        ("[Timeout]", "[NoHealthyEndpoint]", "  timeouts: {perTry: 60ms}\n".into(), vec![slow().port()]),
    ] {
        let front = Front::start(&format!("{spec}{}", fallback(on, RESPONSE)), "http", &ports);
        if on == "[CircuitOpen]" {
            assert_eq!(get(&front, "/").by(), "service itself", "an application's error is its own");
        }
        let got = get(&front, "/");
        assert_eq!(
            (got.status, got.by(), got.body.as_str()),
            (203, "response", "{\"degraded\":true}"),
            "{on}"
        );
        assert_eq!(got.header("content-type"), Some("application/json"));
        assert_eq!((got.header("x-mine"), got.header("content-length")), (Some("1"), Some("17")));
        assert_eq!(got.header("heddle-error"), None);
        let head = send(&front, "HEAD", "/", "");
        assert_eq!((head.status, head.header("content-length"), head.body.as_str()), (203, Some("17"), ""));
        let posted = send(&front, "POST", "/", "content-length: 2\r\n\r\nhi");
        assert_eq!((posted.status, posted.by()), (203, "response"), "whatever the method");

        let front = Front::start(&format!("{spec}{}", fallback(other, RESPONSE)), "http", &ports);
        get(&front, "/");
        assert!(get(&front, "/").header("heddle-error").is_some(), "{on}");
    }
}

#[test]
fn http_2_and_grpc_get_it_in_their_ways() {
    let with_status = "{response: {status: 503, headers: {grpc-status: '8', grpc-message: later}, body: x}}";
    let front = Front::start(&fallback(ALL, RESPONSE), H2C, &[]);
    let other = Front::start(&fallback(ALL, with_status), H2C, &[]);
    runtime().block_on(async {
        let mut connection = front.http2().await;
        let got = ask(&mut connection, "GET", "/", &[]).await;
        assert_eq!((got.status, got.by(), got.body.as_str()), (203, "response", "{\"degraded\":true}"));
        assert_eq!((got.header("x-mine"), got.header("content-length")), (Some("1"), Some("17")));
        let got = ask(&mut connection, "HEAD", "/", &[]).await;
        assert_eq!((got.status, got.header("content-length"), got.body.as_str()), (203, Some("17"), ""));
        let call = ask(&mut connection, "POST", "/a.A/Call", &GRPC).await;
        assert_eq!((call.status, call.by(), call.body.as_str()), (200, "response", ""));
        assert_eq!((call.header("grpc-status"), call.header("x-mine")), (Some("0"), Some("1")));
        assert_eq!(call.header("content-type"), Some("application/grpc"));
        let mut connection = other.http2().await;
        let call = ask(&mut connection, "POST", "/a.A/Call", &GRPC).await;
        assert_eq!((call.status, call.by(), call.body.as_str()), (200, "response", ""));
        assert_eq!((call.header("grpc-status"), call.header("grpc-message")), (Some("8"), Some("later")));
        let got = ask(&mut connection, "GET", "/", &[]).await;
        assert_eq!((got.status, got.body.as_str()), (503, "x"));
    });
}

/// A response with these fields whose body says which request it answers.
fn numbered(nth: &AtomicUsize, fields: &str) -> String {
    let body = format!("number {}", nth.fetch_add(1, Ordering::SeqCst));
    format!("HTTP/1.1 200 OK\r\n{fields}content-length: {}\r\n\r\n{body}", body.len())
}

fn cache(max_age: &str, max_bytes: &str) -> String {
    format!("{{staleCache: {{maxAge: {max_age}, maxBytes: {max_bytes}}}}}")
}

/// A service that answers each path as its name says, and fails for good at `/break`.
fn by_path() -> App {
    let nth = AtomicUsize::new(0);
    App::answering(move |head| {
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let fields = match path.split('?').next().unwrap_or_default() {
            "/private" => "cache-control: private\r\n",
            "/no-store" => "cache-control: no-store\r\n",
            "/no-cache" => "cache-control: no-cache\r\n",
            "/revalidate" => "cache-control: must-revalidate, max-age=0\r\n",
            "/fresh" => "cache-control: must-revalidate, max-age=600\r\n",
            "/public" => "cache-control: public\r\n",
            "/cookie" => "set-cookie: a=1\r\n",
            "/vary" => "vary: X-User\r\n",
            "/vary-all" => "vary: *\r\n",
            "/old" => "age: 1000\r\n",
            "/forged" => "heddle-fallback: response\r\nheddle-error: timeout\r\nx-real: 1\r\n",
            "/break" => return "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".into(),
            "/chunked" => {
                return "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n4\r\n you\r\n0\r\n\r\n".into();
            }
            "/other" => return "HTTP/1.1 203 Other\r\ncontent-length: 2\r\n\r\nok".into(),
            _ => "etag: \"a\"\r\nx-app: 1\r\n",
        };
        numbered(&nth, fields)
    })
}

#[test]
fn the_last_good_response_is_given_as_far_as_http_allows() {
    let app = by_path();
    let spec = format!("{BREAKER}{}", fallback(ALL, &cache("1h", "1Mi")));
    let front = Front::start(&spec, "http", &[app.port()]);
    let plain = ["/plain", "/plain?a=1", "/plain?a=2", "/fresh", "/public", "/old", "/chunked", "/forged"];
    let not = ["/private", "/no-store", "/no-cache", "/revalidate", "/cookie", "/vary-all", "/other"];
    get(&front, "/plain");
    let good: Vec<Got> = plain.iter().map(|path| get(&front, path)).collect();
    assert!(good.iter().all(|got| got.by() == "service itself"), "{good:?}");
    for path in not {
        get(&front, path);
    }
    let bearer = "authorization: Bearer x\r\n";
    for (path, fields) in [
        ("/bearer", bearer),
        ("/session", "cookie: a=1\r\n"),
        ("/range", "range: bytes=0-1\r\n"),
        ("/asked", "cache-control: no-store\r\n"),
        ("/vary", "x-user: ann\r\n"),
        ("/vary", "x-user: bob\r\n"),
    ] {
        assert_eq!(send(&front, "GET", path, fields).status, 200, "{path}");
    }
    let bob = send(&front, "GET", "/vary", "x-user: bob\r\n");
    send(&front, "POST", "/posted", "content-length: 0\r\n");
    get(&front, "/written");
    assert_eq!(send(&front, "PUT", "/written", "content-length: 0\r\n").status, 200);
    assert_eq!(get(&front, "/break").status, 500);

    for (path, good) in plain.iter().zip(&good) {
        let stale = get(&front, path);
        assert_eq!((stale.status, stale.by()), (200, "stale-cache"), "{path}");
        let age: u64 = stale.header("age").and_then(|age| age.parse().ok()).expect("it has an age");
        assert_eq!(age >= 1000, *path == "/old", "{path}: {age}");
        assert_eq!(stale.header("heddle-error"), None, "{path}");
        let length = stale.body.len().to_string();
        assert_eq!(stale.header("content-length"), Some(&*length), "{path}");
        if *path != "/chunked" {
            assert_eq!(stale.body, good.body, "{path}");
            assert_eq!(stale.header("etag"), good.header("etag"));
        }
    }
    assert_eq!(get(&front, "/chunked").body, "hello you");
    assert_eq!(get(&front, "/forged").header("x-real"), Some("1"));
    let head = send(&front, "HEAD", "/plain", "");
    assert_eq!((head.by(), head.body.as_str(), head.header("x-app")), ("stale-cache", "", Some("1")));
    assert_eq!(head.header("content-length"), Some(&*get(&front, "/plain").body.len().to_string()));

    for path in not.into_iter().chain(["/bearer", "/session", "/range", "/asked", "/vary", "/posted"]) {
        assert_eq!(get(&front, path).by(), "circuit_open", "{path}");
    }
    assert_eq!(get(&front, "/written").by(), "circuit_open", "it was changed since");
    assert_eq!(get(&front, "/unknown").by(), "circuit_open");
    let of = |path: &str, fields: &str| send(&front, "GET", path, fields);
    assert_eq!(of("/vary", "x-user: bob\r\n").body, bob.body);
    assert_eq!(of("/vary", "X-USER:  bob \r\n").body, bob.body);
    assert_eq!(of("/vary", "x-user: ann\r\n").by(), "stale-cache");
    assert_ne!(of("/vary", "x-user: ann\r\n").body, bob.body);
    assert_eq!(of("/vary", "x-user: cid\r\n").by(), "circuit_open");
    assert_eq!(of("/plain", bearer).by(), "circuit_open", "what is nobody's is not for somebody");
    assert_eq!(of("/public", bearer).by(), "stale-cache");
    assert_eq!(of("/plain", "cache-control: no-cache\r\n").by(), "circuit_open");
    assert_eq!(of("/plain", "if-match: \"a\"\r\n").by(), "circuit_open");
    assert_eq!(send(&front, "POST", "/plain", "content-length: 0\r\n").by(), "circuit_open");
    let other = "GET /plain HTTP/1.1\r\nhost: users.default\r\nconnection: close\r\n\r\n";
    assert!(
        exchange(front.outbound(), other).unwrap().contains("heddle-error: circuit_open"),
        "another authority"
    );
}

#[test]
fn what_says_neither_length_nor_end_is_not_kept_and_what_the_app_forges_is_removed() {
    let app = by_path();
    let spec = format!("{BREAKER}{}", fallback(ALL, &cache("1h", "1Mi")));
    let front = Front::start(&spec, "http", &[app.port()]);
    let forged = get(&front, "/forged");
    assert_eq!((forged.by(), forged.header("x-real")), ("service itself", Some("1")));
    let told = Arc::new(AtomicBool::new(false));
    let seen = told.clone();
    let app = App::answering(move |_| {
        if seen.swap(true, Ordering::SeqCst) {
            return "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".into();
        }
        // Its body is longer: it breaks off.
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\nconnection: close\r\n\r\nhalf".into()
    });
    let front = Front::start(&spec, "http", &[app.port()]);
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    let client = thread::spawn({
        let at = front.outbound();
        move || exchange(at, &request)
    });
    eventually("it has answered half", || told.load(Ordering::SeqCst).then_some(()));
    app.stop();
    drop(client.join());
    assert_ne!(get(&front, "/").by(), "stale-cache");
}

#[test]
fn http_2_has_the_same_cache() {
    let good = Arc::new(AtomicBool::new(true));
    let told = good.clone();
    let backend = Http2Backend::start(move |_| Told {
        status: if told.load(Ordering::SeqCst) { 200 } else { 500 },
        time: Duration::ZERO,
        grpc_status: None,
    });
    let spec = format!("{BREAKER}{}", fallback(ALL, &cache("1h", "1Mi")));
    let front = Front::start(&spec, H2C, &[backend.port()]);
    runtime().block_on(async {
        let mut connection = front.http2().await;
        assert_eq!(ask(&mut connection, "GET", "/a", &[]).await.by(), "service itself");
        assert_eq!(ask(&mut connection, "GET", "/b", &[("authorization", "Bearer x")]).await.status, 200);
        good.store(false, Ordering::SeqCst);
        assert_eq!(ask(&mut connection, "GET", "/c", &[]).await.status, 500);
        let stale = ask(&mut connection, "GET", "/a", &[]).await;
        assert_eq!((stale.status, stale.by(), stale.body.as_str()), (200, "stale-cache", "ok"));
        let age: u64 = stale.header("age").and_then(|age| age.parse().ok()).expect("it has an age");
        assert!(age < 100, "{age}");
        assert_eq!(stale.header("content-length"), Some("2"));
        let head = ask(&mut connection, "HEAD", "/a", &[]).await;
        assert_eq!(
            (head.by(), head.body.as_str(), head.header("content-length")),
            ("stale-cache", "", Some("2"))
        );
        assert_eq!(ask(&mut connection, "GET", "/b", &[]).await.by(), "circuit_open");
        let call = ask(&mut connection, "POST", "/a", &GRPC).await;
        assert_eq!((call.by(), call.header("grpc-status")), ("circuit_open", Some("14")));
    });
}

#[test]
fn responses_are_kept_no_longer_and_no_more_than_said() {
    let app = by_path();
    let spec = format!("{BREAKER}{}", fallback(ALL, &cache("5s", "1Mi")));
    let front = Front::start(&spec, "http", &[app.port()]);
    get(&front, "/a");
    get(&front, "/break");
    assert_eq!(get(&front, "/a").by(), "stale-cache");
    eventually("it is too old", || (get(&front, "/a").by() == "circuit_open").then_some(()));

    let app = App::answering(|head| {
        let body = "x".repeat(
            head.split("size=")
                .nth(1)
                .map_or(100, |size| size.split(' ').next().and_then(|size| size.parse().ok()).unwrap_or(0)),
        );
        match head.contains("/break") {
            true => "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".into(),
            false => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()),
        }
    });
    let spec = format!("{BREAKER}{}", fallback(ALL, &cache("1h", "64Ki")));
    let front = Front::start(&spec, "http", &[app.port()]);
    for path in ["/large?size=17000", "/first?size=10000", "/second?size=10000"] {
        get(&front, path);
    }
    // So many and the first together are too much.
    (0..5).for_each(|nth| drop(get(&front, &format!("/{nth}?size=10000"))));
    get(&front, "/break");
    assert_eq!(get(&front, "/large?size=17000").by(), "circuit_open", "more than a quarter");
    assert_eq!(get(&front, "/first?size=10000").by(), "circuit_open", "the least recently used");
    for path in ["/second?size=10000", "/0?size=10000", "/4?size=10000"] {
        let stale = get(&front, path);
        assert_eq!((stale.by(), stale.body.len()), ("stale-cache", 10_000), "{path}");
    }
}

#[test]
fn what_is_kept_survives_a_policy_push() {
    let app = by_path();
    let spec = format!("{BREAKER}{}", fallback(ALL, &cache("1h", "1Mi")));
    let mut front = Front::start(&spec, "http", &[app.port()]);
    let good = get(&front, "/a");
    get(&front, "/break");
    front.change("other", &spec.replace("1Mi", "2Mi"));
    assert_eq!(get(&front, "/a").body, good.body);
}

/// Another service with one endpoint outside the mesh.
fn service(name: &str, port: u16, protocol: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec: {{ports: [{{name: main, port: 9000, appProtocol: {protocol}}}]}}
---
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: {name}, namespace: default}}
spec:
  targetRefs: [{{group: '', kind: Service, name: {name}}}]
  timeouts: {{request: 10s}}
{spec}---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: main, port: {port}}}]
endpoints: [{{addresses: [127.0.0.1]}}]
"
    )
}

/// A service that says what it was asked.
fn echo() -> App {
    App::answering(|head| {
        let line = head.lines().next().unwrap_or_default().to_owned();
        let host = head.lines().find(|line| line.starts_with("host")).unwrap_or_default();
        let body = format!("{line} {host}");
        format!("HTTP/1.1 200 OK\r\nx-echo: 1\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    })
}

#[test]
fn another_service_gets_what_may_be_asked_again() {
    let other = echo();
    let steps = format!("{{service: {{name: readonly}}}}, {RESPONSE}");
    let manifest = service("readonly", other.port(), "http", "");
    let reaches = |front: &Front, path: &str| {
        front.apply("readonly.yaml", &manifest);
        eventually("the other service answers", || Some(get(front, path)).filter(|got| got.by() == "service"))
    };
    // No endpoint took it: any method may go on.
    let front = Front::start(&fallback(ALL, &steps), "http", &[]);
    assert_eq!(get(&front, "/").by(), "response", "there is no such service yet");
    let got = reaches(&front, "/a?b=1");
    assert_eq!((got.status, got.body.as_str()), (200, "GET /a?b=1 HTTP/1.1 host: users"));
    assert_eq!((got.header("x-echo"), got.header("heddle-error")), (Some("1"), None));
    assert_eq!(send(&front, "POST", "/p", "content-length: 2\r\n\r\nhi").by(), "service");

    // It may have been processed: only methods that may be repeated go on.
    let slow = Backend::start(|_| (200, NEVER));
    let spec = format!("  timeouts: {{request: 1s}}\n{}", fallback(ALL, &steps));
    let front = Front::start(&spec, "http", &[slow.port()]);
    reaches(&front, "/");
    assert_eq!(send(&front, "DELETE", "/", "").by(), "service");
    assert_eq!(send(&front, "POST", "/", "content-length: 2\r\n\r\nhi").by(), "response");
    let spec =
        format!("  timeouts: {{request: 1s}}\n  retry: {{methods: [POST]}}\n{}", fallback(ALL, &steps));
    let front = Front::start(&spec, "http", &[slow.port()]);
    front.apply("readonly.yaml", &manifest);
    let post = || send(&front, "POST", "/", "content-length: 2\r\n\r\nhi");
    eventually("the policy says so", || (post().by() == "service").then_some(()));
    assert_eq!(get(&front, "/").by(), "response");

    // A body that is not held can be sent on as long as nobody has had any of it.
    let long = format!("content-length: 40\r\n\r\n{}", "x".repeat(40));
    let spec = format!("  retry: {{bufferBytes: 10}}\n{}", fallback(ALL, &steps));
    let front = Front::start(&spec, "http", &[]);
    reaches(&front, "/");
    assert_eq!(send(&front, "POST", "/", &long).by(), "service");
    let spec = format!(
        "  timeouts: {{request: 1s}}\n  retry: {{methods: [POST], bufferBytes: 10}}\n{}",
        fallback(ALL, &steps)
    );
    let front = Front::start(&spec, "http", &[slow.port()]);
    front.apply("readonly.yaml", &manifest);
    let short = "content-length: 2\r\n\r\nhi";
    eventually("the policy says so", || (send(&front, "POST", "/", short).by() == "service").then_some(()));
    assert_eq!(send(&front, "POST", "/", &long).by(), "response");
}

#[test]
fn another_service_that_fails_is_followed_by_the_next_step_and_has_no_fallback_of_its_own() {
    let own = fallback(ALL, "{response: {status: 299}}");
    let steps = format!("{{service: {{name: readonly}}}}, {{service: {{name: second}}}}, {RESPONSE}");
    let front = Front::start(&fallback(ALL, &steps), "http", &[]);
    // Nothing listens there.
    front.apply("readonly.yaml", &service("readonly", 1, "http", &own));
    let counted =
        || front.metric("heddle_requests_total{", &["service=\"readonly\"", "error=\"connect_failure\""]);
    eventually("it is asked", || {
        assert_eq!(get(&front, "/").status, 203);
        (counted() > 0.0).then_some(())
    });
    let second = echo();
    front.apply("second.yaml", &service("second", second.port(), "http", ""));
    let got = eventually("the second answers", || Some(get(&front, "/")).filter(|got| got.by() == "service"));
    assert_eq!(got.header("x-echo"), Some("1"));
    // Each service's part is its own.
    let users =
        front.metric("heddle_requests_total{", &["service=\"users\"", "error=\"no_healthy_endpoint\""]);
    assert!(users >= 2.0);
    assert_eq!(
        front.metric("heddle_requests_total{", &["service=\"users\"", "error=\"connect_failure\""]),
        0.0
    );
    assert!(
        front.metric("heddle_requests_total{", &["service=\"second\"", "error=\"\"", "code=\"200\""]) >= 1.0
    );

    // With nothing left the client gets the error of the service that it asked.
    let front = Front::start(&fallback(ALL, "{service: {name: readonly}}"), "http", &[]);
    front.apply("readonly.yaml", &service("readonly", 1, "http", &own));
    let counted = || front.metric("heddle_requests_total{", &["service=\"readonly\""]);
    eventually("it is asked", || {
        assert_eq!(get(&front, "/").by(), "no_healthy_endpoint");
        (counted() > 0.0).then_some(())
    });
    assert!(front.metric("heddle_fallback_total{", &["step=\"none\""]) >= 1.0);
}

#[test]
fn steps_are_tried_in_the_order_in_which_they_are_written() {
    let cached = cache("1h", "1Mi");
    let (stale, other_step) = (cached.as_str(), "{service: {name: readonly}}");
    let other = echo();
    for (steps, without, with) in [
        // What answers for a path that is kept and for one that is not: while the other service is
        // not there, and when it is.
        (vec![stale, other_step, RESPONSE], ["stale-cache", "response"], ["stale-cache", "service"]),
        (vec![other_step, stale, RESPONSE], ["stale-cache", "response"], ["service", "service"]),
        (vec![other_step, stale], ["stale-cache", "circuit_open"], ["service", "service"]),
    ] {
        let app = by_path();
        let steps = steps.join(", ");
        let front = Front::start(&format!("{BREAKER}{}", fallback(ALL, &steps)), "http", &[app.port()]);
        assert_eq!(get(&front, "/kept").by(), "service itself");
        assert_eq!(get(&front, "/break").status, 500);
        let by = || ["/kept", "/new"].map(|path| get(&front, path).by().to_owned());
        assert_eq!(by(), without, "{steps}");
        front.apply("readonly.yaml", &service("readonly", other.port(), "http", ""));
        eventually("the other service is there", || (get(&front, "/new").by() == "service").then_some(()));
        assert_eq!(by(), with, "{steps}");
    }
}

#[test]
fn calls_go_to_another_service_as_well() {
    let told = |_| Told { status: 200, time: Duration::ZERO, grpc_status: Some("0") };
    let other = Http2Backend::start(told);
    let steps = format!("{{service: {{name: readonly}}}}, {RESPONSE}");
    let front = Front::start(&fallback(ALL, &steps), H2C, &[]);
    front.apply("readonly.yaml", &service("readonly", other.port(), H2C, ""));
    let dead = Front::start(&fallback(ALL, &steps), H2C, &[]);
    dead.apply("readonly.yaml", &service("readonly", 1, H2C, ""));
    let slow = Http2Backend::start(|_| Told { status: 200, time: NEVER, grpc_status: None });
    let spec = format!("  timeouts: {{request: 1s}}\n{}", fallback(ALL, &steps));
    let late = Front::start(&spec, H2C, &[slow.port()]);
    late.apply("readonly.yaml", &service("readonly", other.port(), H2C, ""));
    runtime().block_on(async {
        let mut connection = front.http2().await;
        let call = loop {
            let call = ask(&mut connection, "POST", "/a.A/Call", &GRPC).await;
            if call.by() == "service" {
                break call;
            }
            tokio::time::sleep(20 * MS).await;
        };
        assert_eq!((call.header("grpc-status"), call.body.as_str()), (Some("0"), "ok"));
        let mut connection = dead.http2().await;
        loop {
            assert_eq!(ask(&mut connection, "GET", "/", &[]).await.status, 203);
            let counted = dead.metric("heddle_requests_total{", &["service=\"readonly\""]);
            if counted > 0.0 {
                break;
            }
            tokio::time::sleep(20 * MS).await;
        }
        let mut connection = late.http2().await;
        while ask(&mut connection, "GET", "/", &[]).await.by() != "service" {}
        let call = ask(&mut connection, "POST", "/a.A/Call", &GRPC).await;
        assert_eq!(call.by(), "response", "it may have been processed");
    });
    assert!(late.metric("heddle_requests_total{", &["service=\"users\"", "error=\"timeout\""]) >= 1.0);
}

#[test]
fn degraded_mode_is_entered_and_left_slowly_and_told_once() {
    let slow = Arc::new(AtomicBool::new(true));
    let told = slow.clone();
    let backend =
        Backend::start(move |_| (200, if told.load(Ordering::SeqCst) { NEVER } else { Duration::ZERO }));
    // Others have to be answered within it, also by a machine that is busy.
    let spec = format!("  timeouts: {{request: 1500ms}}\n{}", fallback(ALL, RESPONSE));
    let front = Front::start(&spec, "http", &[backend.port()]);
    let users = ["service=\"users\"", "namespace=\"default\""];
    let degraded = || front.metric("heddle_degraded{", &users);
    let shown = || front.shows("/endpoints")[0]["serviceDegraded"] == Value::Bool(true);
    (0..4).for_each(|_| assert_eq!(get(&front, "/").by(), "response"));
    assert!(degraded() == 0.0 && !shown());
    assert_eq!(get(&front, "/").by(), "response");
    assert!(degraded() == 1.0 && shown());
    (0..3).for_each(|_| assert_eq!(get(&front, "/").by(), "response"));
    let answered =
        |step: &str| front.metric("heddle_fallback_total{", &[users[0], &format!("step=\"{step}\"")]);
    assert_eq!((answered("response"), answered("stale-cache"), answered("none")), (8.0, 0.0, 0.0));
    // What the client got, and why.
    let counted = front.metric("heddle_requests_total{", &["code=\"203\"", "error=\"timeout\""]);
    assert_eq!(counted, 8.0);
    slow.store(false, Ordering::SeqCst);
    assert_eq!(get(&front, "/").by(), "service itself");
    (0..30).for_each(|_| assert_eq!(get(&front, "/").by(), "service itself"));
    assert!(degraded() == 1.0 && shown());
    get(&front, "/");
    assert!(degraded() == 0.0 && !shown());
    assert_eq!(front.metric("heddle_degradations_total{", &users), 1.0);
    assert_eq!(front.log().matches("the service is degraded").count(), 1);
    assert_eq!(front.log().matches("the service is no longer degraded").count(), 1);
}

#[test]
fn a_rule_has_a_fallback_of_its_own() {
    let front = Front::start(&fallback(ALL, "{response: {status: 203, body: service}}"), "http", &[]);
    front.apply(
        "route.yaml",
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: users, namespace: default}
spec:
  parentRefs: [{group: '', kind: Service, name: users}]
  rules:
  - name: special
    matches: [{path: {value: /special}}]
    filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-route, value: '1'}]}}]
    backendRefs: [{name: users, port: 80}]
  - name: others
    backendRefs: [{name: users, port: 80}]
---
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: special, namespace: default}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: users, sectionName: special}]
  fallback: {on: [NoHealthyEndpoint], steps: [{response: {status: 203, body: rule}}]}
",
    );
    eventually("the rule is in force", || (get(&front, "/special").body == "rule").then_some(()));
    assert_eq!(get(&front, "/special").header("x-route"), Some("1"), "its filters apply");
    assert_eq!(get(&front, "/").body, "service");
}

#[test]
fn a_peer_whose_application_is_gone_is_no_healthy_endpoint() {
    let control_plane = ControlPlane::start();
    let app = App::start("web");
    let address = format!("127.0.0.1:{}", app.port());
    let web = control_plane.sidecar("web", ["--port", "http:8080:http", "--app", &address]);
    web.said("the sidecar is ready");
    control_plane.workloads("web", 1);
    control_plane.apply(
        "policy.yaml",
        &format!(
            "apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: web, namespace: default}}
spec:
  targetRefs: [{{group: '', kind: Service, name: web}}]
{}",
            fallback("[NoHealthyEndpoint]", RESPONSE)
        ),
    );
    let client = control_plane.sidecar("client", ["--workers", "1"]);
    client.said("the sidecar is ready");
    let request = "GET / HTTP/1.1\r\nhost: web:8080\r\nconnection: close\r\n\r\n";
    let ask = || exchange(client.listening("outbound"), request).expect("there is an answer");
    eventually("it answers", || ask().starts_with("HTTP/1.1 200 ").then_some(()));
    app.stop();
    let answer =
        eventually("it is replaced", || Some(ask()).filter(|answer| answer.starts_with("HTTP/1.1 203 ")));
    assert!(answer.contains("heddle-fallback: response\r\n") && !answer.contains("heddle-error"), "{answer}");
}

#[test]
fn a_fallback_that_makes_no_sense_is_refused_by_its_path() {
    let control_plane = ControlPlane::start();
    let response = |fields: &str| format!("on: [Timeout], steps: [{{response: {{{fields}}}}}]");
    let at = "spec.fallback.steps";
    let cases = [
        ("on: [], steps: [{response: {status: 200}}]".into(), "spec.fallback.on".to_owned()),
        ("on: [Timeout], steps: []".into(), at.into()),
        ("on: [Timeout], steps: [{}]".into(), format!("{at}[0]")),
        ("on: [Timeout], steps: [{response: {status: 200}, service: {name: a}}]".into(), format!("{at}[0]")),
        (
            "on: [Timeout], steps: [{response: {status: 200}}, {service: {name: a}}]".into(),
            format!("{at}[1]"),
        ),
        (
            "on: [Timeout], steps: [{staleCache: {maxAge: 0s, maxBytes: 1Mi}}]".into(),
            format!("{at}[0].staleCache.maxAge"),
        ),
        (
            "on: [Timeout], steps: [{staleCache: {maxAge: 1s, maxBytes: 1}}]".into(),
            format!("{at}[0].staleCache.maxBytes"),
        ),
        ("on: [Timeout], steps: [{service: {name: users}}]".into(), format!("{at}[0].service.name")),
        ("on: [Timeout], steps: [{service: {name: A.b}}]".into(), format!("{at}[0].service.name")),
        (response("status: 99"), format!("{at}[0].response.status")),
        (response("status: 200, headers: {'x y': a}"), format!("{at}[0].response.headers.x y")),
        (
            response("status: 200, headers: {heddle-error: a}"),
            format!("{at}[0].response.headers.heddle-error"),
        ),
        (
            response("status: 200, headers: {grpc-status: ok}"),
            format!("{at}[0].response.headers.grpc-status"),
        ),
        (response("status: 204, body: a"), format!("{at}[0].response.body")),
    ];
    let policy = |index: usize, fallback: &str| {
        format!(
            "apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: p{index}, namespace: default}}
spec: {{targetRefs: [{{group: '', kind: Service, name: users}}], fallback: {{{fallback}}}}}
"
        )
    };
    for (index, (fallback, path)) in cases.iter().enumerate() {
        let file = format!("wrong-{index}.yaml");
        control_plane.apply(&file, &policy(index, fallback));
        eventually(&format!("{fallback} is refused at {path}"), || {
            let errors = control_plane.shows("/errors");
            let of_file = |error: &&Value| error["file"].as_str().is_some_and(|at| at.ends_with(&file));
            let fields: Vec<&Value> =
                errors["errors"].as_array()?.iter().filter(of_file).map(|error| &error["field"]).collect();
            (fields == [path]).then_some(())
        });
    }
    control_plane.apply("gone.yaml", &policy(99, "on: [Timeout], steps: [{service: {name: gone}}]"));
    eventually("the service that does not exist is named", || {
        control_plane
            .shows("/statuses")
            .to_string()
            .contains("Service default/gone of spec.fallback")
            .then_some(())
    });
}
