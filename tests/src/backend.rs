//! Endpoints outside the mesh that do as they are told and count what reaches
//! them, and a client's sidecar in front of them under one policy.

use std::io::BufRead;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use serde_json::Value;

use crate::{App, ControlPlane, Process, eventually, exchange, get};

/// The service that is called, as clients name it.
pub const HOST: &str = "users";

/// Serves each connection to a free port in a thread of its own, until the test ends. Returns the port.
///
/// # Panics
/// If there is no port.
pub fn serve_each(serve: impl Fn(TcpStream) -> Option<()> + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a port");
    let port = listener.local_addr().expect("it is bound").port();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    port
}

/// Reads an HTTP/1 request with a body of known length, if any, and returns that; `None` at the end.
pub fn read_request(from: &mut impl BufRead) -> Option<Vec<u8>> {
    let (mut line, mut length) = (String::new(), 0);
    while line != "\r\n" {
        line.clear();
        if from.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).ok()?;
    Some(body)
}

/// An HTTP/1 server.
pub struct Backend {
    app: App,
    hits: Arc<Mutex<Vec<Instant>>>,
}

impl Backend {
    /// Starts one that gives the n-th request this status after this time.
    ///
    /// # Panics
    /// If there is no port.
    pub fn start(answer: impl Fn(usize) -> (u16, Duration) + Send + Sync + 'static) -> Self {
        let hits: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let seen = hits.clone();
        let app = App::answering(move |_| {
            let nth = {
                let mut hits = seen.lock().expect("nobody panics with it");
                hits.push(Instant::now());
                hits.len() - 1
            };
            let (status, time) = answer(nth);
            thread::sleep(time);
            format!("HTTP/1.1 {status} Told\r\ncontent-length: 2\r\n\r\nok")
        });
        Self { app, hits }
    }

    /// Starts one that always answers so.
    pub fn always(status: u16) -> Self {
        Self::start(move |_| (status, Duration::ZERO))
    }

    /// Starts one that keeps all who ask waiting until the gate is opened.
    pub fn behind(gate: &Gate) -> Self {
        let gate = gate.clone();
        Self::start(move |_| {
            gate.pass();
            (200, Duration::ZERO)
        })
    }

    /// When each request came.
    ///
    /// # Panics
    /// If its lock is poisoned.
    pub fn hits(&self) -> Vec<Instant> {
        self.hits.lock().expect("nobody panics with it").clone()
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.app.port()
    }
}

/// Holds back whom it is asked about until it is opened.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// Whoever waits may go on, and whoever comes later, too.
    ///
    /// # Panics
    /// If somebody has panicked with it.
    pub fn open(&self) {
        *self.0.0.lock().expect("nobody panics with it") = true;
        self.0.1.notify_all();
    }

    /// Waits until it is open.
    ///
    /// # Panics
    /// If somebody has panicked with it.
    pub fn pass(&self) {
        let shut = self.0.0.lock().expect("nobody panics with it");
        drop(self.0.1.wait_while(shut, |open| !*open).expect("nobody panics with it"));
    }
}

/// An HTTP/2 server.
pub struct Http2Backend {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<HeaderMap>>>,
}

/// What an [`Http2Backend`] does with a request: its status, after this time, and then trailers.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// The HTTP status.
    pub status: u16,
    /// Before the response.
    pub time: Duration,
    /// The gRPC status in the trailers.
    pub grpc_status: Option<&'static str>,
}

impl Http2Backend {
    /// Starts one that gives every request what `told` says at that time.
    ///
    /// # Panics
    /// If there is no port.
    pub fn start(told: impl Fn(usize) -> Told + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        let (connections, heads) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<Vec<HeaderMap>>>::default());
        let backend = Self { address, connections: connections.clone(), heads: heads.clone() };
        let told = Arc::new(told);
        thread::spawn(move || {
            runtime().block_on(async move {
                listener.set_nonblocking(true).expect("it can be");
                let listener = tokio::net::TcpListener::from_std(listener).expect("there is a runtime");
                while let Ok((tcp, _)) = listener.accept().await {
                    connections.fetch_add(1, Ordering::SeqCst);
                    let (told, heads) = (told.clone(), heads.clone());
                    tokio::spawn(async move {
                        let mut connection = h2::server::handshake(tcp).await.ok()?;
                        while let Some(Ok((request, respond))) = connection.accept().await {
                            let nth = {
                                let mut heads = heads.lock().ok()?;
                                heads.push(request.headers().clone());
                                heads.len() - 1
                            };
                            tokio::spawn(answer(respond, told(nth)));
                        }
                        Some(())
                    });
                }
            });
        });
        backend
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Connections made to it so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Requests that reached it so far.
    ///
    /// # Panics
    /// If their lock is poisoned.
    pub fn streams(&self) -> usize {
        self.heads().len()
    }

    /// Their fields.
    ///
    /// # Panics
    /// If their lock is poisoned.
    pub fn heads(&self) -> Vec<HeaderMap> {
        self.heads.lock().expect("nobody panics with it").clone()
    }
}

async fn answer(mut respond: h2::server::SendResponse<Bytes>, told: Told) -> Option<()> {
    tokio::time::sleep(told.time).await;
    let mut head = Response::builder().status(told.status);
    if told.grpc_status.is_some() {
        head = head.header("content-type", "application/grpc");
    }
    let mut body = respond.send_response(head.body(()).ok()?, false).ok()?;
    body.send_data(Bytes::from_static(b"ok"), told.grpc_status.is_none()).ok()?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", told.grpc_status?.parse().ok()?);
    body.send_trailers(trailers).ok()
}

/// A runtime for one test.
///
/// # Panics
/// If there can be none.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made")
}

/// What came back for one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The mesh's reason, if it is the mesh's answer.
    pub error: Option<String>,
    /// The field `retry-after`.
    pub retry_after: Option<u64>,
}

/// A client's sidecar that knows one service, `users`, of endpoints outside the mesh.
pub struct Front {
    control_plane: ControlPlane,
    client: Process,
    ports: Vec<u16>,
    protocol: &'static str,
    /// The policy's.
    name: &'static str,
}

impl Front {
    /// Starts it with a `TrafficPolicy` of these lines, for endpoints at these ports.
    pub fn start(spec: &str, protocol: &'static str, ports: &[u16]) -> Self {
        let control_plane = ControlPlane::start();
        let ports = ports.to_vec();
        control_plane.apply("mesh.yaml", &manifests("told", spec, protocol, &ports));
        eventually("the policy is in force", || {
            control_plane.shows("/statuses").to_string().contains("told").then_some(())
        });
        let client = control_plane.sidecar("client", ["--workers", "1", "--upstream", "users:80"]);
        client.said("the sidecar is ready");
        let front = Self { control_plane, client, ports, protocol, name: "told" };
        // Asks for the service without reaching an endpoint of it.
        eventually("the service is known", || {
            get(front.outbound(), "users:81", "/").filter(|(status, _)| *status == 404)
        });
        front.knows();
        front
    }

    /// Gives it another policy, by the name of `name`, and waits until the client has it.
    pub fn change(&mut self, name: &'static str, spec: &str) {
        self.name = name;
        self.control_plane.apply("mesh.yaml", &manifests(name, spec, self.protocol, &self.ports));
        self.knows();
    }

    fn knows(&self) {
        eventually("the client knows all endpoints and the policy", || {
            let config = self.shows("/config");
            let users = config["services"].as_array()?.iter().find(|s| s["name"] == "default/users")?.clone();
            (users["endpoints"] == self.ports.len() && users["policy"] == format!("default/{}", self.name))
                .then_some(())
        });
    }

    /// Where the client's application connects to.
    pub fn outbound(&self) -> SocketAddr {
        self.client.listening("outbound")
    }

    /// Where it connects to for nothing but the service.
    pub fn upstream(&self) -> SocketAddr {
        self.client.listening("upstream")
    }

    /// Where its admin listener is.
    pub fn admin(&self) -> SocketAddr {
        self.client.listening("admin")
    }

    /// What `path` of the client's admin listener shows.
    ///
    /// # Panics
    /// If it shows no JSON.
    pub fn shows(&self, path: &str) -> Value {
        let (status, body) = get(self.admin(), "localhost", path).expect("it answers");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("it is JSON")
    }

    /// Puts another file beside the manifests of the service.
    pub fn apply(&self, file: &str, text: &str) {
        self.control_plane.apply(file, text);
    }

    /// What the client's sidecar has written to its log.
    pub fn log(&self) -> String {
        self.client.log()
    }

    /// The sum of the client's metrics whose line begins so and contains all of `parts`.
    ///
    /// # Panics
    /// If the sidecar shows no metrics.
    pub fn metric(&self, name: &str, parts: &[&str]) -> f64 {
        let (_, metrics) = get(self.client.listening("admin"), "localhost", "/metrics").expect("it answers");
        let lines = metrics.lines().filter(|line| line.starts_with(name));
        let lines = lines.filter(|line| parts.iter().all(|part| line.contains(part)));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// The circuits of all endpoints, in the order of the endpoints' ports.
    ///
    /// # Panics
    /// If the sidecar shows no list.
    pub fn circuits(&self) -> Vec<Value> {
        let shown = self.shows("/endpoints");
        let endpoints = shown.as_array().expect("it is a list");
        let of = |port: &u16| {
            let is = |endpoint: &&Value| endpoint["ports"][0]["app"] == *port;
            endpoints.iter().find(is).map_or(Value::Null, |endpoint| endpoint["circuit"].clone())
        };
        self.ports.iter().map(of).collect()
    }

    /// The values of `heddle_circuit_state`, those of endpoints or the one of the service.
    ///
    /// # Panics
    /// If the sidecar shows no metrics.
    pub fn states(&self, of_service: bool) -> Vec<u8> {
        let (_, metrics) = get(self.admin(), "localhost", "/metrics").expect("it answers");
        let lines = metrics.lines().filter(|line| line.starts_with("heddle_circuit_state{"));
        let lines = lines.filter(|line| line.contains("service=\"users\""));
        let lines = lines.filter(|line| line.contains("endpoint=\"\"") == of_service);
        let mut states: Vec<u8> = lines.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
        states.sort_unstable();
        states
    }

    /// What a GET gives, with these further fields.
    ///
    /// # Panics
    /// If there is no answer.
    pub fn get(&self, fields: &str) -> Answer {
        let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n{fields}\r\n");
        let answer = exchange(self.outbound(), &request).expect("there is an answer");
        let field = |name: &str| {
            answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
        };
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        Answer {
            status: status.unwrap_or_else(|| panic!("no status: {answer}")),
            error: field("heddle-error"),
            retry_after: field("retry-after").and_then(|seconds| seconds.parse().ok()),
        }
    }

    /// The status, and all that comes back, for a request of this method with a body of so many bytes.
    ///
    /// # Panics
    /// If there is no answer.
    pub fn send(&self, method: &str, body: usize) -> (u16, String) {
        let length = if body > 0 { format!("content-length: {body}\r\n") } else { String::new() };
        let body = "x".repeat(body);
        let request =
            format!("{method} / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n{length}\r\n{body}");
        let answer = exchange(self.outbound(), &request).expect("there is an answer");
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.expect("there is a status"), answer)
    }

    /// What so many GETs at once give, those with status 200 first.
    ///
    /// # Panics
    /// If one of them has no answer.
    pub fn get_at_once(&self, count: usize) -> Vec<Answer> {
        let mut answers: Vec<Answer> = thread::scope(|scope| {
            let calls: Vec<_> = (0..count).map(|_| scope.spawn(|| self.get(""))).collect();
            calls.into_iter().map(|call| call.join().expect("a caller does not panic")).collect()
        });
        answers.sort_by_key(|answer| answer.status);
        answers
    }

    /// An HTTP/2 connection to the client's sidecar.
    ///
    /// # Panics
    /// If there is none.
    pub async fn http2(&self) -> SendRequest<Bytes> {
        let tcp = tokio::net::TcpStream::connect(self.outbound()).await.expect("it listens");
        let (send, connection) = h2::client::handshake(tcp).await.expect("it speaks HTTP/2");
        tokio::spawn(connection);
        send
    }
}

/// A GET, or a gRPC call, over HTTP/2: the head and the trailers of what came back.
///
/// # Panics
/// If there is no answer.
pub async fn call(connection: &mut SendRequest<Bytes>, is_grpc: bool) -> (Response<()>, HeaderMap) {
    let mut request = Request::builder().method(if is_grpc { "POST" } else { "GET" });
    if is_grpc {
        request = request.header("content-type", "application/grpc").header("te", "trailers");
    }
    let request = request.uri(format!("http://{HOST}/a.A/Call")).body(()).expect("it is a request");
    let (response, _) = connection.send_request(request, true).expect("the connection is open");
    let (head, mut body) = response.await.expect("there is an answer").into_parts();
    while let Some(chunk) = body.data().await {
        let _ = body.flow_control().release_capacity(chunk.expect("it is whole").len());
    }
    let trailers = body.trailers().await.expect("it is whole").unwrap_or_default();
    (Response::from_parts(head, ()), trailers)
}

fn manifests(name: &str, spec: &str, protocol: &str, ports: &[u16]) -> String {
    let service = format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: users, namespace: default}}
spec: {{ports: [{{name: main, port: 80, appProtocol: {protocol}}}]}}
---
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: {name}, namespace: default}}
spec:
  targetRefs: [{{group: '', kind: Service, name: users}}]
{spec}
"
    );
    let slices = ports.iter().map(|port| {
        format!(
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: users-{port}, namespace: default, labels: {{kubernetes.io/service-name: users}}}}
addressType: IPv4
ports: [{{name: main, port: {port}}}]
endpoints: [{{addresses: [127.0.0.1]}}]
"
        )
    });
    service + &slices.collect::<String>()
}
