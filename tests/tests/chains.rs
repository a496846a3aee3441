//! Retries along a chain of services: the tries of one hop are not multiplied
//! by those of the hop before.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use heddle_tests::backend::{Backend, Http2Backend, Told, runtime};
use heddle_tests::{App, ControlPlane, Process, eventually, exchange, get};
use http::{HeaderMap, Request, Response};

const TRACE: &str = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\r\n";

/// A client that calls the first of some services, whose applications each call the next; the last
/// one always answers 503.
struct Chain {
    last: Backend,
    hops: Vec<Hop>,
    client: Process,
    _control_plane: ControlPlane,
}

/// A service in the middle.
struct Hop {
    /// The heads of the requests that came to its application.
    seen: Arc<Mutex<Vec<String>>>,
    sidecar: Process,
}

impl Hop {
    /// Starts it; its application answers as many requests with 500 by itself.
    fn start(
        control_plane: &ControlPlane,
        environment: &[(&str, &str)],
        (name, next): (&str, &'static str),
        refusals: usize,
    ) -> Self {
        let outbound = Arc::<OnceLock<SocketAddr>>::default();
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let (out, kept, count) = (outbound.clone(), seen.clone(), AtomicUsize::new(0));
        let app = App::answering(move |head| {
            if head.starts_with("GET /ready") {
                return "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into();
            }
            kept.lock().expect("nobody panics with it").push(head.to_owned());
            if count.fetch_add(1, Ordering::SeqCst) < refusals {
                return "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".into();
            }
            // Forwards the trace, as an application should, if it got one.
            let trace = head.lines().find(|line| line.starts_with("traceparent: "));
            let trace = trace.map(|line| format!("{line}\r\n")).filter(|_| !head.contains("x-forget: "));
            let trace = trace.unwrap_or_default();
            let request = format!("GET / HTTP/1.1\r\nhost: {next}\r\nconnection: close\r\n{trace}\r\n");
            let outbound = out.get().expect("the sidecar is there before requests come");
            let answer = exchange(*outbound, &request).expect("there is an answer");
            let status = answer.split(' ').nth(1).expect("there is a status");
            format!("HTTP/1.1 {status} Told\r\ncontent-length: 0\r\n\r\n")
        });
        let address = format!("127.0.0.1:{}", app.port());
        let sidecar =
            control_plane.sidecar_with(environment, name, ["--port", "http:8080:http", "--app", &address]);
        outbound.set(sidecar.listening("outbound")).expect("it is set once");
        control_plane.workloads(name, 1);
        Self { seen, sidecar }
    }
}

impl Chain {
    /// One with `middle` in the middle, whose application answers as many requests with 500 by itself.
    fn start(environment: &[(&str, &str)], refusals: usize) -> Self {
        Self::of(&[("middle", "last")], environment, refusals)
    }

    /// One of these hops, each with the host that it calls.
    fn of(hops: &[(&str, &'static str)], environment: &[(&str, &str)], refusals: usize) -> Self {
        Self::before(Backend::always(503), ("", ""), hops, environment, refusals)
    }

    /// One before this service, in whose policy the one stands in place of the other.
    fn before(
        last: Backend,
        (text, other): (&str, &str),
        hops: &[(&str, &'static str)],
        environment: &[(&str, &str)],
        refusals: usize,
    ) -> Self {
        let control_plane = ControlPlane::start();
        let names: Vec<&str> = hops.iter().map(|(name, _)| *name).collect();
        let mesh = manifests(last.port(), &names);
        control_plane.apply("mesh.yaml", &with_last_policy(&mesh, text, other));
        let started = hops.iter().map(|hop| Hop::start(&control_plane, environment, *hop, refusals));
        let started: Vec<Hop> = started.collect();
        let client = control_plane.sidecar_with(environment, "client", ["--workers", "1"]);
        client.said("the sidecar is ready");
        let callers = [&client].into_iter().chain(started.iter().map(|hop| &hop.sidecar));
        for (caller, name) in callers.clone().zip(&names) {
            let ready = || {
                let host = format!("{name}:8080");
                get(caller.listening("outbound"), &host, "/ready").filter(|(status, _)| *status == 200)
            };
            eventually("the next one is reached", ready);
            eventually("its policy is known", || {
                let (_, config) = get(caller.listening("admin"), "localhost", "/config")?;
                config.contains(&format!("\"default/{name}\"")).then_some(())
            });
        }
        // Asks for the last service without reaching an endpoint of it.
        let caller = callers.last().expect("the client is one");
        eventually("the last is known", || {
            get(caller.listening("outbound"), "last:81", "/").filter(|(status, _)| *status == 404)
        });
        Self { last, hops: started, client, _control_plane: control_plane }
    }

    /// The answer to a request of the client's with these fields, and how often the first hop and
    /// the last service were asked for it.
    fn call(&self, fields: &str) -> (String, usize, usize) {
        let before = (self.asked(0).len(), self.last.hits().len());
        let request = format!("GET / HTTP/1.1\r\nhost: middle:8080\r\nconnection: close\r\n{fields}\r\n");
        let answer = exchange(self.client.listening("outbound"), &request).expect("there is an answer");
        (answer, self.asked(0).len() - before.0, self.last.hits().len() - before.1)
    }

    /// The heads of the requests that came to a hop.
    fn asked(&self, hop: usize) -> Vec<String> {
        self.hops[hop].seen.lock().expect("nobody panics with it").clone()
    }
}

/// A server of HTTP/2 that asks `last` for each request, with its trace, and answers with the status
/// of that; it counts the requests.
fn http2_middle(outbound: &Arc<OnceLock<SocketAddr>>, seen: &Arc<AtomicUsize>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
    let port = listener.local_addr().expect("it is bound").port();
    listener.set_nonblocking(true).expect("it can be");
    let (outbound, seen) = (outbound.clone(), seen.clone());
    let serve = async move {
        let listener = tokio::net::TcpListener::from_std(listener).expect("there is a runtime");
        while let Ok((tcp, _)) = listener.accept().await {
            let (outbound, seen) = (outbound.clone(), seen.clone());
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(tcp).await.ok()?;
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let (outbound, seen) = (outbound.clone(), seen.clone());
                    tokio::spawn(async move {
                        let trace =
                            request.headers().get("traceparent").and_then(|value| value.to_str().ok());
                        let status = if request.uri().path() == "/ready" {
                            200
                        } else {
                            seen.fetch_add(1, Ordering::SeqCst);
                            let is_grpc = request.headers().contains_key("content-type");
                            http2_ask(*outbound.get()?, "http://last/", trace?, is_grpc).await?
                        };
                        let response = Response::builder().status(status).body(()).ok()?;
                        respond.send_response(response, true).ok()
                    });
                }
                Some(())
            });
        }
    };
    thread::spawn(|| runtime().block_on(serve));
    port
}

/// What came back for a call: its status, where that stood, and all fields.
#[derive(Debug)]
struct Called {
    status: Option<String>,
    in_trailers: bool,
    fields: HeaderMap,
}

/// Makes a call of gRPC.
async fn grpc_ask(at: SocketAddr, target: &str, trace: &str) -> Option<Called> {
    let tcp = tokio::net::TcpStream::connect(at).await.ok()?;
    let (mut connection, driver) = h2::client::handshake(tcp).await.ok()?;
    tokio::spawn(driver);
    let request = Request::post(target).header("content-type", "application/grpc").header("te", "trailers");
    let request = request.header("traceparent", trace).body(()).ok()?;
    let (response, _) = connection.send_request(request, true).ok()?;
    let (head, mut body) = response.await.ok()?.into_parts();
    while let Some(chunk) = body.data().await {
        body.flow_control().release_capacity(chunk.ok()?.len()).ok()?;
    }
    let trailers = body.trailers().await.ok()?;
    let in_trailers = trailers.is_some();
    let mut fields = head.headers;
    fields.extend(trailers.unwrap_or_default());
    let status = fields.get("grpc-status").and_then(|status| status.to_str().ok()).map(str::to_owned);
    Some(Called { status, in_trailers, fields })
}

/// A service of gRPC in the middle.
struct GrpcHop {
    /// What came back for each call that its application made; nothing: it failed by itself.
    calls: Arc<Mutex<Vec<Option<Called>>>>,
    sidecar: Process,
}

impl GrpcHop {
    /// Starts one whose application calls `next` for each call and fails with `UNAVAILABLE`: in the head
    /// of its response, or `late` in trailers. Calls of `/forge` the late one fails by itself.
    fn start(control_plane: &ControlPlane, name: &str, next: &'static str, late: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
        let address = listener.local_addr().expect("it is bound").to_string();
        listener.set_nonblocking(true).expect("it can be");
        let (outbound, calls) =
            (Arc::<OnceLock<SocketAddr>>::default(), Arc::<Mutex<Vec<Option<Called>>>>::default());
        let (out, kept) = (outbound.clone(), calls.clone());
        let serve = async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("there is a runtime");
            while let Ok((tcp, _)) = listener.accept().await {
                let (out, kept) = (out.clone(), kept.clone());
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(tcp).await.ok()?;
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        tokio::spawn(Self::answer(request, respond, out.clone(), kept.clone(), next, late));
                    }
                    Some(())
                });
            }
        };
        thread::spawn(|| runtime().block_on(serve));
        let sidecar = control_plane.sidecar(name, ["--port", "http:8080:http2", "--app", &address]);
        outbound.set(sidecar.listening("outbound")).expect("it is set once");
        control_plane.workloads(name, 1);
        Self { calls, sidecar }
    }

    async fn answer(
        request: Request<h2::RecvStream>,
        mut respond: h2::server::SendResponse<Bytes>,
        out: Arc<OnceLock<SocketAddr>>,
        kept: Arc<Mutex<Vec<Option<Called>>>>,
        next: &str,
        late: bool,
    ) -> Option<()> {
        let path = request.uri().path().to_owned();
        let head = || Response::builder().header("content-type", "application/grpc");
        if path == "/ready" {
            let response = head().header("grpc-status", "0").body(()).ok()?;
            return respond.send_response(response, true).ok().map(|_| ());
        }
        let trace = request.headers().get("traceparent")?.to_str().ok()?;
        let forged = late && path == "/forge";
        let called = match forged {
            true => None,
            false => grpc_ask(*out.get()?, &format!("http://{next}{path}"), trace).await,
        };
        kept.lock().expect("nobody panics with it").push(called);
        if !late {
            let response = head().header("grpc-status", "14").body(()).ok()?;
            return respond.send_response(response, true).ok().map(|_| ());
        }
        let mut body = respond.send_response(head().body(()).ok()?, false).ok()?;
        body.send_data(Bytes::from_static(b"some"), false).ok()?;
        let mut trailers = HeaderMap::from_iter([("grpc-status".parse().ok()?, "14".parse().ok()?)]);
        if forged {
            trailers.insert("heddle-retry", "no".parse().ok()?);
        }
        body.send_trailers(trailers).ok()
    }

    fn asked(&self) -> usize {
        self.calls.lock().expect("nobody panics with it").len()
    }
}

/// The status of a request over HTTP/2.
async fn http2_ask(at: SocketAddr, target: &str, trace: &str, is_grpc: bool) -> Option<u16> {
    let tcp = tokio::net::TcpStream::connect(at).await.ok()?;
    let (mut connection, driver) = h2::client::handshake(tcp).await.ok()?;
    tokio::spawn(driver);
    let mut request = Request::builder().method(if is_grpc { "POST" } else { "GET" });
    if is_grpc {
        request = request.header("content-type", "application/grpc").header("te", "trailers");
    }
    let request = request.uri(target).header("traceparent", trace).body(()).ok()?;
    let (response, _) = connection.send_request(request, true).ok()?;
    Some(response.await.ok()?.status().as_u16())
}

/// The same, with something in the last policy, which is the last service's, in place of something else.
fn with_last_policy(mesh: &str, text: &str, other: &str) -> String {
    let (others, policy) = mesh.rsplit_once("---").expect("there are several");
    format!("{others}---{}", policy.replace(text, other))
}

fn manifests(port: u16, hops: &[&str]) -> String {
    let policy = |service: &str| {
        format!(
            "---
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: {service}}}
spec:
  targetRefs: [{{group: '', kind: Service, name: {service}}}]
  circuitBreaker: {{consecutiveFailures: 1000, maxEjectedPercent: 0}}
  retry: {{on: [5xx], attempts: 3, budget: {{percent: 100, minPerSecond: 100}}, backoff: {{base: 1ms, max: 1ms}}}}
"
        )
    };
    let service = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: last}}
spec: {{ports: [{{name: main, port: 80, appProtocol: http}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: last-1, labels: {{kubernetes.io/service-name: last}}}}
addressType: IPv4
ports: [{{name: main, port: {port}}}]
endpoints: [{{addresses: [127.0.0.1]}}]
"
    );
    let policies = hops.iter().chain([&"last"]).map(|service| policy(service));
    service + &policies.collect::<String>()
}

#[test]
fn a_hop_does_not_multiply_the_tries_of_the_next() {
    let chain = Chain::start(&[], 0);
    let (answer, middle, last) = chain.call(TRACE);
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!((middle, last), (1, 4), "the last hop's sidecar has tried");
    assert!(!answer.to_ascii_lowercase().contains("heddle-retry"), "{answer}");
    // What cannot be known is not guarded against: this is what would happen to all.
    let (_, middle, last) = chain.call(&format!("x-forget: yes\r\n{}", TRACE.replace("4bf9", "5bf9")));
    assert_eq!((middle, last), (4, 16));
}

#[test]
fn http2_and_grpc_do_not_multiply_tries_either() {
    let control_plane = ControlPlane::start();
    // So many are answered at once, those after them not at all.
    let answered = Arc::new(AtomicUsize::new(usize::MAX));
    let left = answered.clone();
    let last = Http2Backend::start(move |_| {
        let is_answered =
            left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        let time = if is_answered { Duration::ZERO } else { Duration::from_secs(60) };
        Told { status: 503, time, grpc_status: None }
    });
    let mesh =
        manifests(last.port(), &["middle"]).replace("appProtocol: http}", "appProtocol: kubernetes.io/h2c}");
    let mesh = mesh.replace("on: [5xx]", "on: [5xx], methods: [GET, POST]");
    let mesh = with_last_policy(&mesh, "  retry:", "  timeouts: {request: 5s}\n  retry:");
    control_plane.apply("mesh.yaml", &mesh);
    let (outbound, seen) = (Arc::<OnceLock<SocketAddr>>::default(), Arc::<AtomicUsize>::default());
    let address = format!("127.0.0.1:{}", http2_middle(&outbound, &seen));
    let middle = control_plane.sidecar("middle", ["--port", "main:8080:http2", "--app", &address]);
    outbound.set(middle.listening("outbound")).expect("it is set once");
    let client = control_plane.sidecar("client", ["--workers", "1"]);
    client.said("the sidecar is ready");
    control_plane.workloads("middle", 1);
    let ask = |path: &str, trace: &str, is_grpc| {
        let target = format!("http://middle:8080{path}");
        runtime().block_on(http2_ask(client.listening("outbound"), &target, trace, is_grpc))
    };
    let trace = |n: u8| format!("00-{n:x}bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00");
    eventually("the middle is reached", || ask("/ready", &trace(1), false).filter(|status| *status == 200));
    eventually("its policy is known", || {
        let (_, config) = get(client.listening("admin"), "localhost", "/config")?;
        config.contains("\"default/middle\"").then_some(())
    });
    eventually("the last is known", || {
        get(middle.listening("outbound"), "last:81", "/").filter(|(status, _)| *status == 404)
    });
    for (nth, is_grpc) in [(2, false), (3, true)] {
        let before = (seen.load(Ordering::SeqCst), last.streams());
        assert_eq!(ask("/", &trace(nth), is_grpc), Some(503), "gRPC: {is_grpc}");
        let asked = (seen.load(Ordering::SeqCst) - before.0, last.streams() - before.1);
        assert_eq!(asked, (1, 4), "gRPC: {is_grpc}");
    }
    // One that ran out of time has tried, too.
    answered.store(1, Ordering::SeqCst);
    let before = (seen.load(Ordering::SeqCst), last.streams());
    assert_eq!(ask("/", &trace(4), false), Some(504));
    assert_eq!((seen.load(Ordering::SeqCst) - before.0, last.streams() - before.1), (1, 2));
}

/// The second hop tells its failure in trailers, after which the first can try no more, but tells its own in the
/// head: the client's sidecar once tried that again, and so all that the last hop's had tried.
#[test]
fn a_failure_in_trailers_says_that_it_was_tried_again() {
    let control_plane = ControlPlane::start();
    let last = Http2Backend::start(|_| Told { status: 503, time: Duration::ZERO, grpc_status: None });
    let mesh = manifests(last.port(), &["middle", "further"])
        .replace("appProtocol: http}", "appProtocol: kubernetes.io/h2c}")
        .replace("on: [5xx]", "on: [5xx, GrpcUnavailable], methods: [POST]");
    control_plane.apply("mesh.yaml", &mesh);
    let middle = GrpcHop::start(&control_plane, "middle", "further:8080", false);
    let further = GrpcHop::start(&control_plane, "further", "last", true);
    let client = control_plane.sidecar("client", ["--workers", "1"]);
    client.said("the sidecar is ready");
    let ask = |from: &Process, host: &str, path: &str, nth: u8| {
        let trace = format!("00-{nth:x}bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00");
        let target = format!("http://{host}{path}");
        runtime().block_on(grpc_ask(from.listening("outbound"), &target, &trace))
    };
    for (from, host, name) in
        [(&client, "middle:8080", "middle"), (&middle.sidecar, "further:8080", "further")]
    {
        eventually("it is reached", || {
            ask(from, host, "/ready", 1).filter(|called| called.status.as_deref() == Some("0"))
        });
        eventually("its policy is known", || {
            let (_, config) = get(from.listening("admin"), "localhost", "/config")?;
            config.contains(&format!("\"default/{name}\"")).then_some(())
        });
    }
    eventually("the last is known", || {
        get(further.sidecar.listening("outbound"), "last:81", "/").filter(|(status, _)| *status == 404)
    });
    let count = || (middle.asked(), further.asked(), last.streams());
    let tried = |path: &str, nth| {
        let before = count();
        let called = ask(&client, "middle:8080", path, nth).expect("there is an answer");
        assert_eq!(called.status.as_deref(), Some("14"), "{called:?}");
        let after = count();
        (after.0 - before.0, after.1 - before.1, after.2 - before.2)
    };
    assert_eq!(tried("/", 2), (1, 1, 4), "only the last hop's sidecar has tried");
    // An application is not believed: what it fails with of itself is tried again as if it had said nothing.
    assert_eq!(tried("/forge", 3), (4, 4, 0));
    let calls = middle.calls.lock().expect("nobody panics with it");
    let answers: Vec<&Called> = calls.iter().flatten().collect();
    assert_eq!(answers.len(), 5);
    for called in answers {
        assert!(called.in_trailers && called.status.as_deref() == Some("14"), "{called:?}");
        assert!(!called.fields.contains_key("heddle-retry"), "no application sees it: {called:?}");
    }
}

/// With three retries at each of three hops, sixty-four requests would come of one.
#[test]
fn tries_stay_those_of_the_last_hop_however_long_the_chain_is() {
    let chain = Chain::of(&[("middle", "further:8080"), ("further", "last")], &[], 0);
    let (answer, middle, last) = chain.call(TRACE);
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!((middle, chain.asked(1).len(), last), (1, 1, 4));
    assert!(!answer.to_ascii_lowercase().contains("heddle-retry"), "{answer}");
    let heads = [chain.asked(0), chain.asked(1)].concat().join("\n").to_ascii_lowercase();
    assert!(!heads.contains("heddle-"), "no application sees anything of it: {heads}");
}

/// What the first hop asks for again reaches the end once for each of its tries.
#[test]
fn a_retry_is_one_request_to_all_hops_behind_it() {
    let chain = Chain::of(&[("middle", "further:8080"), ("further", "last")], &[], 1);
    // The first application refuses the first try by itself, the second one the second try.
    let (answer, middle, last) = chain.call(TRACE);
    assert!(answer.starts_with("HTTP/1.1 5"), "{answer}");
    assert_eq!((middle, chain.asked(1).len(), last), (2, 1, 0));
}

/// A request whose time was over, or that found nowhere to go, once was no failure to be told of, though it had
/// been tried again.
#[test]
fn a_hop_that_ran_out_of_time_or_endpoints_has_tried_too() {
    let hangs = |nth| (503, if nth == 0 { Duration::ZERO } else { Duration::from_secs(60) });
    let timeout = ("  retry:", "  timeouts: {request: 5s}\n  retry:");
    let ejects =
        ("consecutiveFailures: 1000, maxEjectedPercent: 0", "consecutiveFailures: 2, maxEjectedPercent: 100");
    for (last, change) in [(Backend::start(hangs), timeout), (Backend::always(503), ejects)] {
        let chain = Chain::before(last, change, &[("middle", "last")], &[], 0);
        let (answer, middle, last) = chain.call(TRACE);
        assert!(answer.starts_with("HTTP/1.1 50"), "{answer}");
        assert_eq!((middle, last), (1, 2), "{change:?}");
    }
}

#[test]
fn what_is_done_for_a_retry_is_not_retried() {
    let chain = Chain::start(&[], 1);
    let (answer, middle, last) = chain.call(TRACE);
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!((middle, last), (2, 1));
    let heads = chain.asked(0).join("\n").to_ascii_lowercase();
    assert!(!heads.contains("heddle-attempt"), "the application sees nothing of it: {heads}");
}

#[test]
fn nobody_outside_the_mesh_may_forbid_or_number_retries() {
    let chain = Chain::start(&[], 1);
    // A client's own header is no sidecar's: the chain behind tries as for any request.
    let (_, middle, last) =
        chain.call(&format!("heddle-attempt: 1\r\nheddle-retry: no\r\nx-forget: yes\r\n{TRACE}"));
    assert_eq!((middle, last), (4, 12));
}
