//! Starts control planes and plays sidecars.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use heddle_api::discovery::v1::identity_client::IdentityClient;
use heddle_api::discovery::v1::registry_client::RegistryClient;
use heddle_api::discovery::v1::sign_request::Proof;
use heddle_api::discovery::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use heddle_api::discovery::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use heddle_api::discovery::{self, Node, ResourceType, v1};
use heddle_api::join_token::JoinToken;
use heddle_api::spiffe::SpiffeId;
use heddle_api::tls::{Credentials, TrustBundle};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::ClientConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::CertifiedKey;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

/// Longer than anything takes on a machine that is busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

const BINARY: &str = env!("CARGO_BIN_EXE_heddle-control-plane");

/// Directories that outlive a control plane, so that another can follow it.
pub(crate) struct Home {
    pub(crate) directory: TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("manifests")).unwrap();
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(BINARY);
        command.env_clear().env("XDG_RUNTIME_DIR", self.directory.path());
        command
    }

    /// What `token` prints, or its complaint.
    pub(crate) fn token(&self, args: &[&str]) -> Result<String, String> {
        let data = self.path("data");
        let output = self.command().arg("token").arg("--data-dir").arg(data).args(args).output().unwrap();
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned())
        } else {
            Err(String::from_utf8(output.stderr).unwrap())
        }
    }

    /// A control plane on any port with this home's folder as its source.
    pub(crate) fn start(&self, args: &[&str]) -> Plane {
        self.start_on("127.0.0.1:0", args)
    }

    pub(crate) fn start_on(&self, listen: &str, args: &[&str]) -> Plane {
        let source = format!("dir:{}", self.path("manifests").display());
        let mut child = self
            .command()
            .args(["--listen", listen, "--admin", "127.0.0.1:0", "--log-level", "debug"])
            .args(["--source", &source])
            .arg("--data-dir")
            .arg(self.path("data"))
            .args(args)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (mut lines, kept) = (BufReader::new(child.stderr.take().unwrap()), log.clone());
        std::thread::spawn(move || {
            let mut line = String::new();
            while matches!(lines.read_line(&mut line), Ok(1..)) {
                kept.lock().unwrap().push_str(&line);
                line.clear();
            }
        });
        let mut plane = Plane { child, log, discovery: UNKNOWN, admin: UNKNOWN };
        plane.discovery = plane.bound("discovery");
        plane.admin = plane.bound("admin");
        while !plane.get("/ready").starts_with("ready") {
            std::thread::sleep(Duration::from_millis(5));
        }
        plane
    }
}

const UNKNOWN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

/// A running control plane; killed when dropped.
pub(crate) struct Plane {
    child: Child,
    log: Arc<Mutex<String>>,
    pub(crate) discovery: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl Plane {
    pub(crate) fn bound(&mut self, role: &str) -> SocketAddr {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = self.log();
            let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            for line in lines {
                if line["event"] == "listening" && line["role"] == role {
                    return line["addr"].as_str().unwrap().parse().unwrap();
                }
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "no {role} listener ({ended:?}):\n{log}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The body that the admin listener answers.
    pub(crate) fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").unwrap_or_default().1.to_owned()
    }

    pub(crate) fn json(&self, path: &str) -> Value {
        let body = self.get(path);
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
    }

    /// The value of a metric's sample, 0 if there is none.
    pub(crate) fn metric(&self, sample: &str) -> f64 {
        let text = self.get("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    pub(crate) fn terminate(&self) {
        let pid = i32::try_from(self.pid()).unwrap();
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(pid).unwrap(),
            rustix::process::Signal::TERM,
        )
        .unwrap();
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn is_running(&self) -> bool {
        let pid = i32::try_from(self.pid()).unwrap();
        // A zombie waits for us to look, and runs no more.
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    }

    /// Waits for its end; returns whether it succeeded.
    pub(crate) async fn wait(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the control plane\n{}", self.log());
        }
    }
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it never came to pass that {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An address that nobody gets but who listens there on purpose, as long as the socket is there.
pub(crate) fn reserved() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// A gRPC channel over TLS.
pub(crate) async fn connect(
    address: SocketAddr,
    tls: ClientConfig,
) -> Result<Channel, tonic::transport::Error> {
    connect_to(Endpoint::from_static("http://control-plane"), address, tls).await
}

async fn connect_to(
    endpoint: Endpoint,
    address: SocketAddr,
    tls: ClientConfig,
) -> Result<Channel, tonic::transport::Error> {
    let tls = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let connector = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move {
            let stream = tokio::net::TcpStream::connect(address).await?;
            let name = ServerName::try_from("control-plane.heddle.internal").unwrap();
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, stream).await?))
        }
    });
    endpoint.connect_with_connector(connector).await
}

/// A channel of someone without a certificate, who knows the roots from `token`.
pub(crate) async fn connect_by_token(plane: &Plane, token: &str) -> Result<Channel, tonic::transport::Error> {
    let token = JoinToken::read(token).unwrap();
    let expected = SpiffeId::control_plane(&token.identity.trust_domain().parse().unwrap());
    connect(plane.discovery, Credentials::pinned_client_config(expected, token.roots, &[b"h2"])).await
}

pub(crate) fn csr(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

pub(crate) async fn sign(
    channel: Channel,
    csr: Vec<u8>,
    token: Option<&str>,
) -> Result<v1::SignResponse, Status> {
    let proof = token.map(|token| Proof::JoinToken(token.into()));
    let answer = IdentityClient::new(channel).sign(v1::SignRequest { csr, proof }).await?;
    Ok(answer.into_inner())
}

/// A sidecar that has joined.
pub(crate) struct Sidecar {
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) channel: Channel,
    service: String,
}

impl Sidecar {
    /// Joins with a new token for `service` in namespace `shop`.
    pub(crate) async fn join(home: &Home, plane: &Plane, service: &str) -> Self {
        let token = home.token(&["--service", service, "--namespace", "shop"]).unwrap();
        Self::join_with(plane, service, &token).await
    }

    pub(crate) async fn join_with(plane: &Plane, service: &str, token: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let channel = connect_by_token(plane, token).await.unwrap();
        let signed = sign(channel, csr(&key), Some(token)).await.unwrap();
        let bundle = signed.bundle.unwrap();
        let domain = bundle.trust_domain.parse().unwrap();
        let roots = bundle.roots.into_iter().map(Into::into).collect();
        let credentials = Credentials::new(TrustBundle::new(domain, roots).unwrap());
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let private = heddle_api::tls::provider().key_provider.load_private_key(private).unwrap();
        let chain = signed.chain.into_iter().map(Into::into).collect();
        credentials.set_certificate(CertifiedKey::new(chain, private));
        let channel = Self::connect(&credentials, plane).await;
        Self { credentials, channel, service: service.into() }
    }

    async fn connect(credentials: &Arc<Credentials>, plane: &Plane) -> Channel {
        let expected = SpiffeId::control_plane(credentials.trust().domain());
        connect(plane.discovery, credentials.client_config(expected, &[b"h2"])).await.unwrap()
    }

    /// Connects again, maybe to a control plane that was restarted.
    pub(crate) async fn reconnect(&mut self, plane: &Plane) {
        self.channel = Self::connect(&self.credentials, plane).await;
    }

    pub(crate) fn registration(&self, instance: &str) -> v1::RegisterRequest {
        v1::RegisterRequest {
            instance: instance.into(),
            service: self.service.clone(),
            address: "127.0.0.1".into(),
            inbound_port: 7102,
            ports: vec![v1::RegisteredPort { name: "http".into(), port: 8080, protocol: 1 }],
            ready: true,
            admin: "127.0.0.1:7190".into(),
            pid: 4711,
            ..Default::default()
        }
    }

    pub(crate) async fn register(&self, request: v1::RegisterRequest) -> Registered {
        let (requests, receiver) = mpsc::channel(8);
        requests.send(request).await.unwrap();
        let responses = RegistryClient::new(self.channel.clone())
            .register(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        Registered { requests, responses }
    }

    /// Connects once more with no more than `window` bytes of each response in flight.
    pub(crate) async fn narrow(&mut self, plane: &Plane, window: u32) {
        let expected = SpiffeId::control_plane(self.credentials.trust().domain());
        let tls = self.credentials.client_config(expected, &[b"h2"]);
        let endpoint = Endpoint::from_static("http://control-plane").initial_stream_window_size(window);
        self.channel = connect_to(endpoint, plane.discovery, tls).await.unwrap();
    }

    pub(crate) async fn discover(&self, instance: &str) -> Discovery {
        self.discover_as(Node { id: instance.into(), ..Default::default() }).await
    }

    pub(crate) async fn discover_as(&self, node: Node) -> Discovery {
        let (requests, receiver) = mpsc::channel(8);
        // The client waits for the response's headers, which a server may send only after the first request.
        let first = DeltaDiscoveryRequest { node: Some(node), ..Default::default() };
        requests.send(first).await.unwrap();
        let responses = AggregatedDiscoveryServiceClient::new(self.channel.clone())
            .delta_aggregated_resources(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        Discovery { requests, responses }
    }
}

/// A registry stream.
pub(crate) struct Registered {
    pub(crate) requests: mpsc::Sender<v1::RegisterRequest>,
    pub(crate) responses: Streaming<v1::RegisterResponse>,
}

impl Registered {
    pub(crate) async fn answer(&mut self) -> Result<(), Status> {
        let answer =
            tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("an answer comes")?;
        answer.map(|_| ()).ok_or_else(|| Status::unknown("the stream ended"))
    }
}

/// A discovery stream.
pub(crate) struct Discovery {
    pub(crate) requests: mpsc::Sender<DeltaDiscoveryRequest>,
    pub(crate) responses: Streaming<DeltaDiscoveryResponse>,
}

impl Discovery {
    pub(crate) async fn subscribe<T: ResourceType>(&self, names: &[&str]) {
        self.subscribe_holding::<T>(names, &[]).await;
    }

    pub(crate) async fn subscribe_holding<T: ResourceType>(&self, names: &[&str], held: &[(&str, &str)]) {
        let request = DeltaDiscoveryRequest {
            type_url: T::TYPE_URL.into(),
            resource_names_subscribe: names.iter().map(|n| (*n).into()).collect(),
            initial_resource_versions: held.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// Says what is wrong with a response, by a code of gRPC.
    pub(crate) async fn complain(&self, about: DeltaDiscoveryResponse, code: i32, message: &str) {
        let detail = discovery::Status { code, message: message.into(), ..Default::default() };
        let request = DeltaDiscoveryRequest {
            type_url: about.type_url,
            response_nonce: about.nonce,
            error_detail: Some(detail),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let response =
            tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("a response comes")?;
        let response = response.ok_or_else(|| Status::unknown("the stream ended"))?;
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        };
        let _ = self.requests.send(ack).await;
        Ok(response)
    }

    /// Takes responses until `done` says that a state is reached; nothing else may come between.
    pub(crate) async fn until<T: ResourceType>(&mut self, name: &str, done: impl Fn(Option<&T>) -> bool) {
        loop {
            let response = self.next().await.unwrap();
            let resource = response.resources.iter().find(|r| r.name == name);
            let found: Option<T> = resource.map(decode);
            if (found.is_some() || response.removed_resources.iter().any(|r| r == name))
                && done(found.as_ref())
            {
                return;
            }
        }
    }
}

pub(crate) fn decode<T: ResourceType>(resource: &discovery::xds::Resource) -> T {
    T::decode(resource.resource.as_ref().unwrap().value.as_slice()).unwrap()
}

/// Writes a manifest into the folder source as an editor does: as a whole.
pub(crate) fn write_manifest(home: &Home, name: &str, yaml: &str) {
    let temporary = home.path("manifest.tmp");
    std::fs::write(&temporary, yaml).unwrap();
    std::fs::rename(&temporary, home.path("manifests").join(name)).unwrap();
}

/// A Service and an EndpointSlice with one endpoint.
pub(crate) fn service_yaml(name: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         ports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: [{address}]}}]\n"
    )
}

pub(crate) fn exists(path: &Path) -> bool {
    path.try_exists().unwrap()
}
