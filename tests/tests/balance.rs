//! What `spec.loadBalancer` says is what callers see: each field by a test that fails without it.

use std::collections::HashMap;
use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use heddle_tests::backend::{read_request, serve_each};
use heddle_tests::load::Load;
use heddle_tests::trials::one_of_three;
use heddle_tests::{App, ControlPlane, Process, eventually, exchange, get, response};

/// The service that is called, as clients name it.
const HOST: &str = "users";

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: users, namespace: default}
spec: {ports: [{name: http, port: 80, appProtocol: APP_PROTOCOL}]}
";

/// A policy for the service with these fields of its load balancer.
fn policy(load_balancer: &str) -> String {
    format!(
        "
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: balance, namespace: default}}
spec:
  targetRefs: [{{group: '', kind: Service, name: users}}]
  loadBalancer: {{{load_balancer}}}
"
    )
}

/// An endpoint outside the mesh: the parts of its slice that differ.
#[derive(Clone, Copy)]
struct Place {
    zone: &'static str,
    ready: bool,
    weight: u32,
}

const HERE: Place = Place { zone: "", ready: true, weight: 1 };

fn slice(port: u16, place: Place) -> String {
    let Place { zone, ready, weight } = place;
    format!(
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: users-{port}
  namespace: default
  labels: {{kubernetes.io/service-name: users, heddle.dev/weight: '{weight}'}}
addressType: IPv4
ports: [{{name: http, port: {port}}}]
endpoints: [{{addresses: [127.0.0.1], zone: '{zone}', conditions: {{ready: {ready}}}}}]
"
    )
}

/// A service of endpoints outside the mesh, a policy, and the sidecar of a client.
struct Mesh {
    control_plane: ControlPlane,
    client: Process,
}

impl Mesh {
    fn start(load_balancer: &str, protocol: &str, endpoints: &[(u16, Place)]) -> Self {
        let control_plane = ControlPlane::start();
        let mut documents = vec![SERVICE.replace("APP_PROTOCOL", protocol), policy(load_balancer)];
        documents.extend(endpoints.iter().map(|(port, place)| slice(*port, *place)));
        control_plane.apply("mesh.yaml", &documents.join("---"));
        eventually("the policy is in force", || {
            control_plane.shows("/statuses").to_string().contains("balance").then_some(())
        });
        let client = control_plane.sidecar("client", ["--zone", "east", "--workers", "1"]);
        client.said("the sidecar is ready");
        let mesh = Self { control_plane, client };
        // Nothing is known but what was asked for.
        eventually("the service answers", || get(mesh.outbound(), HOST, "/"));
        mesh.knows(endpoints.len());
        mesh
    }

    /// Waits until the client knows this many endpoints and the policy.
    fn knows(&self, count: usize) {
        let admin = self.client.listening("admin");
        eventually("the client knows all endpoints", || {
            let (_, body) = get(admin, "localhost", "/config")?;
            let config: serde_json::Value = serde_json::from_str(&body).ok()?;
            let users =
                config["services"].as_array()?.iter().find(|service| service["name"] == "default/users")?;
            (users["endpoints"] == count && users["policy"] == "default/balance").then_some(())
        });
    }

    fn outbound(&self) -> SocketAddr {
        self.client.listening("outbound")
    }

    /// Who answers a GET with these further fields.
    fn asks(&self, target: &str, fields: &str) -> (String, String) {
        let request = format!("GET {target} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n{fields}\r\n");
        let answer = exchange(self.outbound(), &request).expect("there is an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("it is complete");
        assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
        (head.to_owned(), body.to_owned())
    }

    fn who(&self, target: &str, fields: &str) -> String {
        self.asks(target, fields).1
    }

    /// How often each answers so many requests, one after the other.
    fn counts(&self, requests: usize) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for _ in 0..requests {
            *counts.entry(self.who("/", "")).or_default() += 1;
        }
        counts
    }
}

/// Applications that answer with their names, after a time.
fn apps(names: &[(&'static str, u64)]) -> Vec<App> {
    let app = |(name, millis): &(&'static str, u64)| {
        let (name, time) = (*name, Duration::from_millis(*millis));
        App::answering(move |_| {
            thread::sleep(time);
            response(name)
        })
    };
    names.iter().map(app).collect()
}

fn alike(names: &[&'static str]) -> Vec<App> {
    apps(&names.iter().map(|name| (*name, 0)).collect::<Vec<_>>())
}

fn ports(apps: &[App]) -> Vec<(u16, Place)> {
    apps.iter().map(|app| (app.port(), HERE)).collect()
}

const KEYS: usize = 30;

/// Each of many keys goes to one endpoint, and all of them together to more than one.
fn ties(mut who: impl FnMut(usize) -> String) {
    let homes: Vec<String> = (0..KEYS).map(&mut who).collect();
    for _ in 0..2 {
        assert_eq!((0..KEYS).map(&mut who).collect::<Vec<_>>(), homes, "equal keys stay together");
    }
    // That all of 30 keys fall to one of three by chance happens once in 10^14.
    assert!(homes.iter().any(|home| *home != homes[0]), "{homes:?}");
}

#[test]
fn round_robin_alternates_strictly() {
    let apps = alike(&["a", "b", "c"]);
    let mesh = Mesh::start("algorithm: RoundRobin", "http", &ports(&apps));
    let order: Vec<String> = (0..30).map(|_| mesh.who("/", "")).collect();
    assert!(order.windows(4).all(|turns| turns[0] == turns[3] && turns[0] != turns[1]), "{order:?}");
    assert!(order[0] != order[2] && order[1] != order[2], "{order:?}");
}

#[test]
fn weights_are_shares() {
    let apps = alike(&["light", "heavy"]);
    let endpoints = [(apps[0].port(), HERE), (apps[1].port(), Place { weight: 4, ..HERE })];
    let mesh = Mesh::start("algorithm: RoundRobin", "http", &endpoints);
    let counts = mesh.counts(50);
    assert!(counts["heavy"].abs_diff(40) <= 1, "{counts:?}");
}

#[test]
fn a_slow_endpoint_is_avoided_by_peak_ewma_and_by_no_other() {
    // Far slower where that counts than the fast one may be when the machine lets it wait.
    for (algorithm, time, least, most) in [
        ("PeakEwma", 2000, 0, 8),
        ("LeastRequest", 25, 15, 45),
        ("Random", 25, 15, 45),
        ("RoundRobin", 25, 30, 30),
    ] {
        let apps = apps(&[("slow", time), ("fast", 0)]);
        let mesh = Mesh::start(&format!("algorithm: {algorithm}"), "http", &ports(&apps));
        let slow = mesh.counts(60).get("slow").copied().unwrap_or_default();
        assert!((least..=most).contains(&slow), "{algorithm}: {slow} of 60");
    }
}

/// A server that takes requests and never answers, and how many it has taken.
fn stalled() -> (u16, Arc<AtomicUsize>) {
    let taken = Arc::<AtomicUsize>::default();
    let counter = taken.clone();
    let port = serve_each(move |stream| {
        let mut reader = BufReader::new(stream);
        read_request(&mut reader)?;
        counter.fetch_add(1, Ordering::SeqCst);
        // Keeps the connection until the other side ends it.
        read_request(&mut reader).map(drop)
    });
    (port, taken)
}

#[test]
fn a_busy_endpoint_is_avoided_by_least_request_and_not_by_chance() {
    for (algorithm, avoids) in [("LeastRequest", true), ("Random", false)] {
        let apps = alike(&["free"]);
        let (stalled, taken) = stalled();
        let mesh = Mesh::start(&format!("algorithm: {algorithm}"), "http", &[(apps[0].port(), HERE)]);
        let endpoints = slice(apps[0].port(), HERE) + "---" + &slice(stalled, HERE);
        let documents = [SERVICE.replace("APP_PROTOCOL", "http"), policy(&format!("algorithm: {algorithm}"))];
        mesh.control_plane.apply("mesh.yaml", &(documents.join("---") + "---" + &endpoints));
        mesh.knows(2);
        let outbound = mesh.outbound();
        let mut waiting = Vec::new();
        for _ in 0..40 {
            let mut stream = TcpStream::connect(outbound).expect("the sidecar listens");
            stream.set_nonblocking(true).expect("it is a socket");
            stream.write_all(b"GET / HTTP/1.1\r\nhost: users\r\n\r\n").expect("it is open");
            let is_stalled = eventually("one of them has it", || {
                let answered = stream.read(&mut [0; 1024]).is_ok_and(|length| length > 0);
                (answered || taken.load(Ordering::SeqCst) > waiting.len()).then_some(!answered)
            });
            if is_stalled {
                waiting.push(stream);
                if waiting.len() > 4 {
                    break;
                }
            }
        }
        if avoids {
            assert!(waiting.len() <= 2, "{} wait", waiting.len());
        } else {
            assert!(waiting.len() > 4, "only {} wait", waiting.len());
        }
    }
}

#[test]
fn equal_headers_and_equal_parameters_go_to_the_same_endpoint() {
    let apps = alike(&["a", "b", "c"]);
    let key = "algorithm: ConsistentHash, consistentHash: {header: X-User}";
    let mesh = Mesh::start(key, "http", &ports(&apps));
    ties(|user| mesh.who(&format!("/{user}"), &format!("x-user: {user}\r\n")));
    let key = "algorithm: ConsistentHash, consistentHash: {query: user}";
    let mesh = Mesh::start(key, "http", &ports(&apps));
    ties(|user| mesh.who(&format!("/?a=b&user={user}"), ""));
}

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: users, namespace: default}
spec:
  parentRefs: [{group: '', kind: Service, name: users}]
  rules:
  - filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-routed, value: 'yes'}]}}]
    backendRefs: [{name: users, port: 80}]
---
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: route, namespace: default}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: users}]
  timeouts: {request: 10s}
";

#[test]
fn a_route_with_a_policy_of_its_own_keeps_equal_keys_together() {
    let apps = alike(&["a", "b", "c"]);
    let key = "algorithm: ConsistentHash, consistentHash: {header: x-user}";
    let mesh = Mesh::start(key, "http", &ports(&apps));
    mesh.control_plane.apply("route.yaml", ROUTE);
    eventually("the route is in force", || mesh.asks("/", "").0.contains("x-routed: yes").then_some(()));
    ties(|user| mesh.who("/", &format!("x-user: {user}\r\n")));
}

#[test]
fn a_cookie_is_set_once_and_honoured() {
    let apps = alike(&["a", "b", "c"]);
    let key = "algorithm: ConsistentHash, consistentHash: {cookie: {name: tie, ttl: 90s, path: /shop}}";
    let mesh = Mesh::start(key, "http", &ports(&apps));
    let mut cookies = Vec::new();
    ties(|client| {
        if let Some((cookie, home)) = cookies.get(client) {
            let (head, who) = mesh.asks("/shop", &format!("cookie: other=1; {cookie}\r\n"));
            assert!(!head.contains("set-cookie"), "{head}");
            assert_eq!(who, *home, "the endpoint that set it");
            return who;
        }
        let (head, who) = mesh.asks("/shop", "cookie: other=1\r\n");
        let set = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("it is set");
        let cookie = set.strip_suffix("; Max-Age=90; Path=/shop; HttpOnly").expect("as the policy says");
        assert!(cookie.starts_with("tie="), "{cookie}");
        cookies.push((cookie.to_owned(), who.clone()));
        who
    });
    cookies.sort();
    cookies.dedup();
    assert_eq!(cookies.len(), KEYS, "each client has its own");
}

/// A connection from another address of the loopback.
fn from(client: u8, to: SocketAddr) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("there is room");
    runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().expect("there is room");
        let address = SocketAddr::from((Ipv4Addr::new(127, 0, 1, client), 0));
        socket.bind(address).expect("all of 127/8 is the loopback");
        let stream = socket.connect(to).await.expect("the sidecar listens").into_std().expect("it is idle");
        stream.set_nonblocking(false).expect("it is a socket");
        stream
    })
}

#[test]
fn clients_are_told_apart_by_their_address() {
    let apps = alike(&["a", "b", "c"]);
    let key = "algorithm: ConsistentHash, consistentHash: {sourceIp: true}";
    let mesh = Mesh::start(key, "http", &ports(&apps));
    let outbound = mesh.outbound();
    ties(|client| {
        let mut stream = from(u8::try_from(client).expect("few"), outbound);
        stream.write_all(b"GET / HTTP/1.1\r\nhost: users\r\nconnection: close\r\n\r\n").expect("it is open");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("there is an answer");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        answer
    });
}

#[test]
fn the_own_zone_comes_first_and_others_help_out() {
    let apps = alike(&["a", "b", "c", "far"]);
    let place = |zone, ready| Place { zone, ready, ..HERE };
    let endpoints = |ready: [bool; 3]| {
        let near = apps.iter().zip(ready).map(|(app, ready)| (app.port(), place("east", ready)));
        near.chain([(apps[3].port(), place("west", true))]).collect::<Vec<_>>()
    };
    let mesh = Mesh::start("locality: PreferZone", "http", &endpoints([true; 3]));
    let counts = mesh.counts(40);
    assert!(!counts.contains_key("far"), "{counts:?}");
    let change = |endpoints: &[(u16, Place)]| {
        let mut documents = vec![SERVICE.replace("APP_PROTOCOL", "http"), policy("locality: PreferZone")];
        documents.extend(endpoints.iter().map(|(port, place)| slice(*port, *place)));
        mesh.control_plane.apply("mesh.yaml", &documents.join("---"));
    };
    // A third of ours and half of all are well: a third goes elsewhere.
    change(&endpoints([true, false, false]));
    eventually("it spills over", || {
        let counts = mesh.counts(60);
        let far = counts.get("far").copied().unwrap_or_default();
        ((10..=32).contains(&far) && counts.get("a") == Some(&(60 - far))).then_some(())
    });
    change(&endpoints([false; 3]));
    eventually("all go elsewhere", || (mesh.counts(10).get("far") == Some(&10)).then_some(()));
}

#[test]
fn below_the_panic_threshold_health_is_ignored() {
    let apps = alike(&["a", "b", "c"]);
    let mut endpoints = ports(&apps);
    endpoints[1].1.ready = false;
    endpoints[2].1.ready = false;
    let mesh = Mesh::start("algorithm: RoundRobin, panicThreshold: 50", "http", &endpoints);
    let counts = mesh.counts(30);
    assert!(["a", "b", "c"].iter().all(|name| counts.get(*name) == Some(&10)), "{counts:?}");
    let mesh = Mesh::start("algorithm: RoundRobin, panicThreshold: 30", "http", &endpoints);
    assert_eq!(mesh.counts(30), HashMap::from([("a".to_owned(), 30)]));
}

#[test]
fn a_new_endpoint_ramps_up() {
    one_of_three(ramp);
}

fn ramp() -> anyhow::Result<()> {
    const WINDOW: Duration = Duration::from_secs(5);
    let replica = |control_plane: &ControlPlane, app: &App| {
        let address = format!("127.0.0.1:{}", app.port());
        control_plane.sidecar("users", ["--port", "http:80:http", "--app", &address])
    };
    let apps = alike(&["a", "b", "new"]);
    let control_plane = ControlPlane::start();
    control_plane.apply("policy.yaml", &policy("algorithm: Random, slowStart: {window: 5s}"));
    let _old = [replica(&control_plane, &apps[0]), replica(&control_plane, &apps[1])];
    control_plane.workloads("users", 2);
    let client = control_plane.sidecar("client", ["--workers", "1"]);
    client.said("the sidecar is ready");
    let outbound = client.listening("outbound");
    for name in ["a", "b"] {
        eventually("the old ones answer", || get(outbound, HOST, "/").filter(|(_, body)| body == name));
    }
    let load = Load::start(outbound, HOST);
    load.goes_on(50);
    let _new = replica(&control_plane, &apps[2]);
    control_plane.workloads("users", 3);
    let known = Instant::now();
    eventually("the ramp is over", || (known.elapsed() > WINDOW + Duration::from_secs(1)).then_some(()));
    let calls = load.stop();
    let share = |from: Duration, until: Duration| {
        let during = calls.iter().filter(|call| (known + from..known + until).contains(&call.begun));
        let answers: Vec<&str> = during.filter_map(|call| call.outcome.as_deref().ok()).collect();
        ensure!(answers.len() > 50, "the load does not go on: {}", answers.len());
        #[expect(clippy::cast_precision_loss, reason = "some hundreds")]
        let share = answers.iter().filter(|name| **name == "new").count() as f64 / answers.len() as f64;
        Ok(share)
    };
    let (first, half, last) = (
        share(Duration::ZERO, WINDOW / 5)?,
        share(WINDOW * 2 / 5, WINDOW * 3 / 5)?,
        share(WINDOW, WINDOW + Duration::from_secs(1))?,
    );
    // By its weight a tenth of the others', half of it, and all: 5, 20 and 33 %.
    ensure!(first < 0.12 && (0.1..0.3).contains(&half) && last > 0.23, "{first} {half} {last}");
    Ok(())
}

#[test]
fn impossible_load_balancing_is_refused_by_its_path() {
    let control_plane = ControlPlane::start();
    let wrong = [
        ("algorithm: Best", "spec.loadBalancer.algorithm"),
        ("algorithm: ConsistentHash", "spec.loadBalancer.consistentHash"),
        ("algorithm: Random, consistentHash: {sourceIp: true}", "spec.loadBalancer.consistentHash"),
        (
            "algorithm: ConsistentHash, consistentHash: {header: 'a b'}",
            "spec.loadBalancer.consistentHash.header",
        ),
        (
            "algorithm: ConsistentHash, consistentHash: {cookie: {name: a, path: b}}",
            "spec.loadBalancer.consistentHash.cookie.path",
        ),
        ("slowStart: {window: 0s}", "spec.loadBalancer.slowStart.window"),
        ("locality: Nearest", "spec.loadBalancer.locality"),
        ("panicThreshold: 101", "spec.loadBalancer.panicThreshold"),
    ];
    for (index, (load_balancer, path)) in wrong.into_iter().enumerate() {
        control_plane.apply(&format!("{index}.yaml"), &policy(load_balancer));
        eventually(path, || control_plane.shows("/errors").to_string().contains(path).then_some(()));
    }
}
