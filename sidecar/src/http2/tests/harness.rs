//! Real sidecars between a real HTTP/2 client and real HTTP/2 applications,
//! all over loopback.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use heddle_api::name::ServiceName;
use heddle_api::spiffe::{SpiffeId, TrustDomain};
use heddle_api::tls::{Credentials, TrustBundle, provider};
use http::{HeaderMap, Request, Response};
use tokio::net::TcpStream;

use crate::config::{
    self, AppProtocol, Endpoint, EndpointHealth, Lookup, MeshPeer, Port, Publisher, Service, Snapshot,
    TrafficPolicy, Workload,
};
use crate::listener::{AppDialer, Inbound, InboundKind, Outbound, OutboundKind, Plumbing};
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::Registry;
use crate::telemetry::span::Tracing;
use crate::upstream::Checks;
use crate::worker::{self, Setup, Workers};

/// One sidecar with one worker.
pub(super) struct Sidecar {
    workers: Option<Workers>,
    /// Configuration lasts for as long as its publisher.
    _publisher: Publisher,
    pub(super) registry: Registry,
    pub(super) outbound: SocketAddr,
    inbound: SocketAddr,
}

impl Sidecar {
    fn start(account: &str, authority: &Authority, snapshot: Snapshot) -> Self {
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (outbound, inbound) = (listen(), listen());
        let (publisher, config, wants) = config::channel();
        publisher.publish(snapshot);
        // What is asked for is never answered: all that exists is there already.
        std::mem::forget(wants);
        let registry = Registry::new();
        let mut sidecar = Self {
            workers: None,
            _publisher: publisher,
            registry: registry.clone(),
            outbound: outbound.local_addr().unwrap(),
            inbound: inbound.local_addr().unwrap(),
        };
        let setup = Setup {
            workers: 1,
            config,
            checks: Checks::default(),
            credentials: authority.credentials(account),
            access_log: AccessLog::new(&registry),
            registry,
            tracing: Tracing::off(),
            plumbing: Plumbing {
                outbound: vec![Outbound { listener: outbound, kind: OutboundKind::ByAuthority }],
                inbound: vec![Inbound { listener: inbound, kind: InboundKind::Mesh }],
                app: AppDialer::direct(None),
                advertise: Ipv4Addr::LOCALHOST.into(),
            },
        };
        // Workers have runtimes of their own, which must not be made within the test's.
        let started = std::thread::spawn(|| worker::start(setup)).join().unwrap();
        sidecar.workers = Some(started.unwrap());
        sidecar
    }

    pub(super) fn drain(&self) {
        self.workers.as_ref().unwrap().drain();
    }

    /// Waits until the metrics have a line that begins so; the rest of it.
    pub(super) async fn metric(&self, start: &str) -> String {
        loop {
            let text = self.registry.encode();
            if let Some(line) = text.lines().find_map(|line| line.strip_prefix(start)) {
                return line.trim().to_owned();
            }
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if let Some(workers) = self.workers.take() {
            workers.stop();
        }
    }
}

/// The service that every test calls.
pub(super) const SERVICE: &str = "http://app";

/// The application's sidecar, absent where it is called in plaintext, and the client's.
pub(super) struct Mesh {
    pub(super) client: Sidecar,
    pub(super) server: Option<Sidecar>,
}

impl Mesh {
    /// A client's sidecar and an application's, with mutual TLS between them.
    pub(super) fn pair(app: SocketAddr, policy: TrafficPolicy) -> Self {
        let authority = Authority::new();
        let server = Sidecar::start("app", &authority, snapshot("app", &[app], None, policy.clone()));
        let peer = MeshPeer {
            inbound: Some(server.inbound),
            identity: authority.identity("app"),
            left_alone: Box::default(),
        };
        let client = Sidecar::start("web", &authority, snapshot("web", &[app], Some(peer), policy));
        Self { client, server: Some(server) }
    }

    /// A client's sidecar that calls applications in plaintext.
    pub(super) fn plain(apps: &[SocketAddr], policy: TrafficPolicy) -> Self {
        let client = Sidecar::start("web", &Authority::new(), snapshot("web", apps, None, policy));
        Self { client, server: None }
    }

    pub(super) async fn connect(&self) -> SendRequest<Bytes> {
        connect(self.client.outbound, h2::client::Builder::new().enable_push(false)).await
    }

    /// Sends a request without a body.
    pub(super) async fn get(&self, path: &str) -> (Response<()>, Vec<u8>, Option<HeaderMap>) {
        let request = Request::get(format!("{SERVICE}{path}")).body(()).unwrap();
        let (response, _) = self.connect().await.send_request(request, true).unwrap();
        collect(response.await.unwrap()).await
    }
}

pub(super) async fn connect(to: SocketAddr, builder: &h2::client::Builder) -> SendRequest<Bytes> {
    let tcp = TcpStream::connect(to).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let (send, connection) = builder.handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    send
}

fn snapshot(account: &str, apps: &[SocketAddr], mesh: Option<MeshPeer>, policy: TrafficPolicy) -> Snapshot {
    let name = ServiceName::new("default", "app").unwrap();
    let endpoints = apps.iter().enumerate().map(|(index, app)| Endpoint {
        id: format!("app-{index}"),
        address: app.ip(),
        bindings: vec![(80, app.port())],
        mesh: mesh.clone(),
        zone: String::new(),
        for_zones: Vec::new(),
        weight: 1,
        score: 100,
        priority: 0,
        health: EndpointHealth::Healthy,
    });
    let service = Service {
        name: name.clone(),
        ports: vec![Port { number: 80, protocol: AppProtocol::Http2, policy: None, tls: None }],
        endpoints: endpoints.collect(),
        policy: Arc::new(policy),
        routes: Vec::new(),
        faults: Arc::default(),
        usage: Arc::default(),
        stale: Arc::default(),
    };
    let ports = apps.iter().map(|app| Port {
        number: app.port(),
        protocol: AppProtocol::Http2,
        policy: None,
        tls: None,
    });
    Snapshot {
        services: [(name, Lookup::Found(Arc::new(service)))].into(),
        workload: Some(Arc::new(Workload {
            service: ServiceName::new("default", account).unwrap(),
            ports: ports.collect(),
            zone: "".into(),
            hosts: [].into(),
            access_log: false,
            metric_labels: config::MetricLabels::default(),
            sampling: 0.0,
            alerts: Vec::new(),
            rate_limits: Vec::new(),
            gates: config::Gates::default(),
        })),
        ..Snapshot::default()
    }
}

/// The mesh's certificate authority.
struct Authority {
    domain: TrustDomain,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    root: rcgen::Certificate,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap();
        Self { domain: "mesh.test".parse().unwrap(), issuer: rcgen::Issuer::new(params, key), root }
    }

    fn identity(&self, account: &str) -> SpiffeId {
        SpiffeId::new(&self.domain, "default", account).unwrap()
    }

    fn credentials(&self, account: &str) -> Arc<Credentials> {
        let bundle = TrustBundle::new(self.domain.clone(), vec![self.root.der().clone()]).unwrap();
        let credentials = Credentials::new(bundle);
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        let uri = self.identity(account).as_str().to_owned();
        params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let certified =
            rustls::sign::CertifiedKey::from_der(vec![leaf.der().clone()], key, &provider()).unwrap();
        credentials.set_certificate(certified);
        credentials
    }
}

/// An application that answers each stream with `handler`, given the number of
/// the connection it came on.
pub(super) async fn app<F, Answer>(handler: F) -> SocketAddr
where
    F: Fn(usize, Request<RecvStream>, SendResponse<Bytes>) -> Answer + Clone + Send + 'static,
    Answer: Future<Output = ()> + Send + 'static,
{
    let mut builder = h2::server::Builder::new();
    builder.enable_connect_protocol();
    app_with(builder, handler).await
}

pub(super) async fn app_with<F, Answer>(builder: h2::server::Builder, handler: F) -> SocketAddr
where
    F: Fn(usize, Request<RecvStream>, SendResponse<Bytes>) -> Answer + Clone + Send + 'static,
    Answer: Future<Output = ()> + Send + 'static,
{
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for index in 0.. {
            let (tcp, _) = listener.accept().await.unwrap();
            tcp.set_nodelay(true).unwrap();
            let (handler, builder) = (handler.clone(), builder.clone());
            tokio::spawn(async move {
                let mut connection = builder.handshake::<_, Bytes>(tcp).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(handler(index, request, respond));
                }
            });
        }
    });
    address
}

/// An address where nothing listens.
pub(super) fn nowhere() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// Sends all of `data`, as fast as the other side takes it.
pub(super) async fn send_all(to: &mut SendStream<Bytes>, mut data: Bytes) {
    while !data.is_empty() {
        to.reserve_capacity(data.len());
        let capacity = std::future::poll_fn(|cx| to.poll_capacity(cx)).await.unwrap().unwrap();
        to.send_data(data.split_to(capacity.min(data.len())), false).unwrap();
    }
}

/// The next chunk, its capacity given back.
pub(super) async fn next(from: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let chunk = from.data().await;
    if let Some(Ok(chunk)) = &chunk {
        from.flow_control().release_capacity(chunk.len()).unwrap();
    }
    chunk
}

/// A whole body and its trailers.
pub(super) async fn drink(mut from: RecvStream) -> (Vec<u8>, Option<HeaderMap>) {
    let mut body = Vec::new();
    while let Some(chunk) = next(&mut from).await {
        body.extend_from_slice(&chunk.unwrap());
    }
    (body, from.trailers().await.unwrap())
}

pub(super) async fn collect(response: Response<RecvStream>) -> (Response<()>, Vec<u8>, Option<HeaderMap>) {
    let (head, body) = response.into_parts();
    let (body, trailers) = drink(body).await;
    (Response::from_parts(head, ()), body, trailers)
}

/// A policy without delays between tries.
pub(super) fn policy() -> TrafficPolicy {
    TrafficPolicy { connect_timeout: Duration::from_secs(10), ..TrafficPolicy::default() }
}

pub(super) fn trailers(status: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        http::HeaderValue::from_static(status),
    )])
}
