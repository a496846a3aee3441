//! A sidecar's workers with a listener that leads to one service, or two
//! sidecars in a row; clients and upstreams that speak bytes.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use heddle_api::name::ServiceName;
use heddle_api::spiffe::{SpiffeId, TrustDomain};
use heddle_api::tls::{Credentials, TrustBundle, provider};
use heddle_sidecar::config::{
    self, AppProtocol, Endpoint, EndpointHealth, Lookup, Mesh, MeshPeer, Port, PortLimits, Publisher,
    Service, Snapshot, TrafficPolicy, Workload,
};
use heddle_sidecar::listener::{AppDialer, Inbound, InboundKind, Outbound, OutboundKind, Plumbing};
use heddle_sidecar::telemetry::access_log::AccessLog;
use heddle_sidecar::telemetry::metrics::Registry;
use heddle_sidecar::telemetry::span::Tracing;
use heddle_sidecar::upstream::Checks;
use heddle_sidecar::worker::{self, Setup, Workers};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::sign::CertifiedKey;

/// Nothing in these tests takes longer, however loaded the machine is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// One sidecar.
pub(crate) struct Sidecar {
    pub(crate) registry: Registry,
    pub(crate) outbound: SocketAddr,
    pub(crate) inbound: SocketAddr,
    workers: Option<Workers>,
    _publisher: Publisher,
    _wants: tokio::sync::mpsc::Receiver<config::Want>,
}

impl Sidecar {
    /// A sidecar whose outbound listener leads to `endpoints` in plaintext.
    pub(crate) fn before(endpoints: &[SocketAddr]) -> Self {
        Self::with_policy(endpoints, TrafficPolicy::default())
    }

    pub(crate) fn with_policy(endpoints: &[SocketAddr], policy: TrafficPolicy) -> Self {
        let endpoints = endpoints.iter().map(|address| (*address, None)).collect();
        Self::start(Identities::new().issue("web"), endpoints, policy, Vec::new())
    }

    /// Two sidecars: the first one's outbound listener leads through the second to the application.
    pub(crate) fn pair(app: SocketAddr, policy: TrafficPolicy) -> (Self, Self) {
        Self::limited(app, policy, Vec::new())
    }

    /// The same where the second has rate limits.
    pub(crate) fn limited(app: SocketAddr, policy: TrafficPolicy, limits: Vec<PortLimits>) -> (Self, Self) {
        let identities = Identities::new();
        let server =
            Self::start(identities.issue("web"), vec![(app, None)], TrafficPolicy::default(), limits);
        let peer = MeshPeer {
            inbound: Some(server.inbound),
            identity: identities.id("web"),
            left_alone: Box::default(),
        };
        let client = Self::start(identities.issue("client"), vec![(app, Some(peer))], policy, Vec::new());
        (client, server)
    }

    fn start(
        credentials: Arc<Credentials>,
        endpoints: Vec<(SocketAddr, Option<MeshPeer>)>,
        policy: TrafficPolicy,
        rate_limits: Vec<PortLimits>,
    ) -> Self {
        let name = ServiceName::new("shop", "web").expect("a valid name");
        let port = |number| Port { number, protocol: AppProtocol::Http, policy: None, tls: None };
        let service = Service {
            name: name.clone(),
            ports: vec![port(80)],
            endpoints: endpoints
                .iter()
                .enumerate()
                .map(|(index, (address, mesh))| Endpoint {
                    id: index.to_string(),
                    address: address.ip(),
                    bindings: vec![(80, address.port())],
                    mesh: mesh.clone(),
                    zone: String::new(),
                    for_zones: Vec::new(),
                    weight: 1,
                    score: 100,
                    priority: 0,
                    health: EndpointHealth::Healthy,
                })
                .collect(),
            policy: Arc::new(policy),
            routes: Vec::new(),
            faults: Arc::default(),
            usage: Arc::default(),
            stale: Arc::default(),
        };
        let workload = Workload {
            service: name.clone(),
            ports: endpoints.iter().map(|(address, _)| port(address.port())).collect(),
            zone: "".into(),
            hosts: [].into(),
            access_log: false,
            sampling: 0.0,
            alerts: Vec::new(),
            metric_labels: config::MetricLabels::default(),
            rate_limits,
            gates: config::Gates::default(),
        };
        let mesh = Mesh {
            trust_domain: DOMAIN.into(),
            cluster_domain: "cluster.local".into(),
            allow_any_egress: false,
        };
        let (publisher, config, wants) = config::channel();
        publisher.publish(Snapshot {
            mesh: Some(Arc::new(mesh)),
            services: [(name.clone(), Lookup::Found(Arc::new(service)))].into(),
            addresses: Default::default(),
            workloads: Default::default(),
            workload: Some(Arc::new(workload)),
        });
        let registry = Registry::new();
        let (outbound, inbound) = (listen(), listen());
        let (outbound_address, inbound_address) =
            (outbound.local_addr().expect("bound"), inbound.local_addr().expect("bound"));
        let plumbing = Plumbing {
            outbound: vec![Outbound { listener: outbound, kind: OutboundKind::Fixed(name, 80) }],
            inbound: vec![Inbound { listener: inbound, kind: InboundKind::Mesh }],
            app: AppDialer::direct(None),
            advertise: IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        let setup = Setup {
            workers: 1,
            config,
            checks: Checks::default(),
            credentials,
            tracing: Tracing::off(),
            access_log: AccessLog::new(&registry),
            registry: registry.clone(),
            plumbing,
        };
        Self {
            registry,
            outbound: outbound_address,
            inbound: inbound_address,
            workers: Some(worker::start(setup).expect("workers start")),
            _publisher: publisher,
            _wants: wants,
        }
    }

    /// A client's connection.
    pub(crate) fn connect(&self) -> Peer {
        Peer::new(TcpStream::connect(self.outbound).expect("the listener accepts"))
    }

    pub(crate) fn leave(&self) {
        self.workers.as_ref().expect("running").drain();
    }

    /// Waits until the metrics say so.
    pub(crate) fn wait_for_metrics(&self, condition: impl Fn(&str) -> bool) {
        let start = std::time::Instant::now();
        loop {
            let text = self.registry.encode();
            if condition(&text) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "never so:\n{text}");
            std::thread::yield_now();
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

/// A socket that speaks bytes.
pub(crate) struct Peer {
    pub(crate) socket: TcpStream,
    read: Vec<u8>,
}

impl Peer {
    pub(crate) fn new(socket: TcpStream) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).expect("a valid timeout");
        socket.set_nodelay(true).expect("a TCP socket");
        Self { socket, read: Vec::new() }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.socket.write_all(bytes.as_ref()).expect("the other side reads");
    }

    /// Reads until `end` was seen; returns all up to and with it.
    pub(crate) fn until(&mut self, end: &str) -> String {
        loop {
            let found = self.read.windows(end.len()).position(|window| window == end.as_bytes());
            if let Some(at) = found {
                let taken: Vec<u8> = self.read.drain(..at + end.len()).collect();
                return String::from_utf8_lossy(&taken).into_owned();
            }
            let mut buffer = [0; 65536];
            match self.socket.read(&mut buffer) {
                Ok(0) => panic!("ended before {end:?}, after {:?}", String::from_utf8_lossy(&self.read)),
                Ok(count) => self.read.extend_from_slice(&buffer[..count]),
                Err(error) => {
                    panic!("{error} before {end:?}, after {:?}", String::from_utf8_lossy(&self.read))
                }
            }
        }
    }

    /// Reads a head.
    pub(crate) fn head(&mut self) -> String {
        self.until("\r\n\r\n")
    }

    /// Reads to the end: what came, and whether the end was a clean one.
    pub(crate) fn drain(&mut self) -> (Vec<u8>, bool) {
        let mut buffer = [0; 65536];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => return (std::mem::take(&mut self.read), true),
                Ok(count) => self.read.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return (std::mem::take(&mut self.read), false);
                }
                Err(error) => panic!("{error} after {} bytes", self.read.len()),
            }
        }
    }

    /// Sends a request and reads a response with a `content-length`.
    pub(crate) fn ask(&mut self, request: &str) -> (String, String) {
        self.send(request);
        self.response()
    }

    /// Reads a response with a `content-length`.
    pub(crate) fn response(&mut self) -> (String, String) {
        let head = self.head();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().expect("a number"));
        (head, self.exactly(length))
    }

    pub(crate) fn exactly(&mut self, count: usize) -> String {
        let mut buffer = [0; 65536];
        while self.read.len() < count {
            match self.socket.read(&mut buffer).expect("more comes") {
                0 => panic!("ended after {} of {count} bytes", self.read.len()),
                more => self.read.extend_from_slice(&buffer[..more]),
            }
        }
        let taken: Vec<u8> = self.read.drain(..count).collect();
        String::from_utf8_lossy(&taken).into_owned()
    }

    /// Ends with a reset.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).expect("a TCP socket");
    }
}

/// An upstream that the test plays itself.
pub(crate) struct Upstream {
    listener: TcpListener,
}

impl Upstream {
    pub(crate) fn new() -> Self {
        Self { listener: listen() }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("bound")
    }

    /// The next connection to it.
    pub(crate) fn accept(&self) -> Peer {
        Peer::new(self.listener.accept().expect("a connection comes").0)
    }

    /// Serves each connection in a thread, until the process ends.
    pub(crate) fn serve(self, serve: impl Fn(Peer) + Send + Sync + Clone + 'static) -> SocketAddr {
        let address = self.address();
        std::thread::spawn(move || {
            while let Ok((socket, _)) = self.listener.accept() {
                let serve = serve.clone();
                std::thread::spawn(move || serve(Peer::new(socket)));
            }
        });
        address
    }
}

fn listen() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports")
}

const DOMAIN: &str = "cluster.local";

/// A certificate authority.
struct Identities {
    root: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
    domain: TrustDomain,
}

impl Identities {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "tests");
        let root = params.self_signed(&key).expect("a certificate");
        Self { root, issuer: Issuer::new(params, key), domain: DOMAIN.parse().expect("a domain") }
    }

    fn id(&self, account: &str) -> SpiffeId {
        SpiffeId::new(&self.domain, "shop", account).expect("a valid identity")
    }

    fn issue(&self, account: &str) -> Arc<Credentials> {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        let uri = self.id(account).as_str().try_into().expect("ASCII");
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let trust = TrustBundle::new(self.domain.clone(), vec![self.root.der().clone()]).expect("a root");
        let credentials = Credentials::new(trust);
        let key = provider()
            .key_provider
            .load_private_key(rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .expect("a key");
        credentials.set_certificate(CertifiedKey::new(vec![certificate.der().clone()], key));
        credentials
    }
}
