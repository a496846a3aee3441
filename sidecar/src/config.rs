//! What a sidecar knows about the mesh, validated and ready for lookups.
//!
//! A [`Snapshot`] is immutable; the agent publishes a new one for each change
//! and workers read the current one with one atomic load. Unchanged services
//! are shared between snapshots, so pointer equality says "unchanged".

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use heddle_api::name::ServiceName;
use heddle_api::spiffe::SpiffeId;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::pod;
use crate::policy::alert::AlertRule;
use crate::policy::balance::Balancing;
use crate::policy::breaker::BreakerPolicy;
use crate::policy::concurrency::ConcurrencyPolicy;
use crate::policy::fallback::FallbackPolicy;
use crate::policy::fault::Fault;
use crate::policy::health_check::HealthCheckPolicy;
use crate::policy::jwt::{Gate, Policy};
use crate::policy::rate_limit::{Probes, RateLimit};
use crate::policy::retry::RetryPolicy;
use crate::policy::stale::Cache;
use crate::reason::Reason;
use crate::routing::Table;
use crate::telemetry::metrics::{AddedLabel, Direction, Labeling};
use crate::upstream::{Home, Origination};

/// Everything known at one moment.
#[derive(Default, Debug)]
pub struct Snapshot {
    /// Settings of the whole mesh; `None` until the first were received.
    pub mesh: Option<Arc<Mesh>>,
    /// The services that were asked for.
    pub services: HashMap<ServiceName, Lookup<Arc<Service>>>,
    /// Addresses that belong to services: cluster IPs that were asked for and
    /// the synthetic ones that our DNS hands out.
    pub addresses: HashMap<IpAddr, Lookup<ServiceName>>,
    /// Those of `addresses` that are one workload's, each as a service of which it is the only
    /// endpoint: whoever dials one means that very workload.
    pub workloads: HashMap<IpAddr, Arc<Service>>,
    /// The workload's own side; `None` until received: nothing is admitted.
    pub workload: Option<Arc<Workload>>,
}

impl Snapshot {
    /// Where we are; unknown until our own side was received.
    pub fn home(&self) -> Home<'_> {
        let workload = self.workload.as_deref();
        Home {
            zone: workload.map_or("", |workload| &workload.zone),
            namespace: workload.map_or("", |workload| workload.service.namespace()),
        }
    }
}

/// The answer of discovery to a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Lookup<T> {
    /// Asked for, not answered yet.
    Pending,
    /// Discovery said that it does not exist (it may appear later).
    Absent,
    /// It exists.
    Found(T),
}

/// Settings of the whole mesh.
#[derive(Debug, Clone)]
pub struct Mesh {
    /// The trust domain's name.
    pub trust_domain: String,
    /// The suffix of qualified service names.
    pub cluster_domain: String,
    /// Whether destinations outside the registry are passed through.
    pub allow_any_egress: bool,
}

/// A destination.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Its ports, by number.
    pub ports: Vec<Port>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// How to treat its traffic, where a port has no policy of its own.
    pub policy: Arc<TrafficPolicy>,
    /// The routes that requests to its ports meet.
    pub routes: Vec<PortRoutes>,
    /// Faults that requests to it meet; the first that is about one decides.
    pub faults: Arc<[Fault]>,
    /// When a worker last used it, for the idle expiry of subscriptions.
    pub usage: Arc<Usage>,
    /// Its good responses that are kept for bad times, by all workers together: an answer that one
    /// of them has is not missing at another. Locked only for requests whose fallback asks for it.
    pub stale: Arc<Mutex<Cache>>,
}

impl Service {
    /// How traffic to a port is treated.
    pub fn policy(&self, port: u16) -> &Arc<TrafficPolicy> {
        let declared = self.ports.iter().find(|declared| declared.number == port);
        declared.and_then(|port| port.policy.as_ref()).unwrap_or(&self.policy)
    }

    /// The rules that clients of a namespace meet at a port: those for the namespace alone, if
    /// there are any, else those for everyone.
    pub fn table(&self, port: u16, namespace: &str) -> Option<&Arc<Table>> {
        let of = |clients: Option<&str>| {
            let mut routes = self.routes.iter();
            routes.find(|routes| routes.port == port && routes.client_namespace.as_deref() == clients)
        };
        of(Some(namespace)).or_else(|| of(None)).map(|routes| &routes.table)
    }
}

impl Service {
    /// The same with this port alone, as it is at its endpoints. Of a workload that is addressed
    /// directly, where every port means itself.
    pub fn at(&self, port: u16) -> Self {
        let declared = self.ports.iter().find(|declared| declared.number == port).cloned();
        let undeclared = || Port { number: port, protocol: AppProtocol::Detect, policy: None, tls: None };
        let endpoint = |endpoint: &Endpoint| Endpoint { bindings: vec![(port, port)], ..endpoint.clone() };
        Self {
            ports: vec![declared.unwrap_or_else(undeclared)],
            endpoints: self.endpoints.iter().map(endpoint).collect(),
            ..self.clone()
        }
    }
}

/// The routes of one port.
#[derive(Debug, Clone)]
pub struct PortRoutes {
    /// The port that clients dial.
    pub port: u16,
    /// Whose clients meet them; `None`: everyone whose namespace has none of its own.
    pub client_namespace: Option<String>,
    /// As discovery sent them: what is equal need not be compiled again.
    pub encoded: Box<[u8]>,
    /// The rules.
    pub table: Arc<Table>,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Port {
    /// The number that clients dial.
    pub number: u16,
    /// What was declared about its bytes.
    pub protocol: AppProtocol,
    /// How to treat its traffic; `None`: as all of the service's.
    pub policy: Option<Arc<TrafficPolicy>>,
    /// TLS that we begin with endpoints that have no sidecar.
    pub tls: Option<Arc<Origination>>,
}

/// What a port's declaration says about the bytes on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AppProtocol {
    /// Nothing: detect.
    #[default]
    Detect,
    /// HTTP, the version as the client begins.
    Http,
    /// HTTP/2 with prior knowledge; gRPC too.
    Http2,
    /// Opaque bytes.
    Tcp,
    /// The application's own TLS.
    Tls,
}

/// One instance of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// Stable over updates of the same instance.
    pub id: String,
    /// Where it is.
    pub address: IpAddr,
    /// Service port to application port.
    pub bindings: Vec<(u16, u16)>,
    /// How it is reached inside the mesh; `None`: outside, plaintext.
    pub mesh: Option<MeshPeer>,
    /// The zone it runs in, empty if unknown.
    pub zone: String,
    /// The zones whose clients it is meant for; empty: those of its own.
    pub for_zones: Vec<String>,
    /// Relative share of traffic, at least 1.
    pub weight: u32,
    /// The percentage of it that the instance's own health lets it carry, 1 to 100.
    pub score: u32,
    /// Its level: those of a higher number are used where lower ones cannot take everything.
    pub priority: u32,
    /// What discovery says about it.
    pub health: EndpointHealth,
}

impl Endpoint {
    /// Whether clients in a zone are those that it is meant for.
    pub fn is_for(&self, zone: &str) -> bool {
        match self.for_zones.as_slice() {
            _ if zone.is_empty() => false,
            [] => self.zone == zone,
            zones => zones.iter().any(|other| other == zone),
        }
    }
}

/// Endpoints at the addresses of a name.
#[derive(Debug, Clone, PartialEq)]
pub struct DnsEndpoint {
    /// The name, in lower case and without a final dot.
    pub name: Box<str>,
    /// Service port to their port.
    pub bindings: Vec<(u16, u16)>,
    /// The zone they are in, empty if unknown.
    pub zone: String,
    /// Relative share of traffic of each, at least 1.
    pub weight: u32,
    /// Their level.
    pub priority: u32,
}

impl DnsEndpoint {
    /// The endpoint at one of the addresses.
    pub fn at(&self, address: IpAddr) -> Endpoint {
        Endpoint {
            id: format!("{}/{address}", self.name),
            address,
            bindings: self.bindings.clone(),
            mesh: None,
            zone: self.zone.clone(),
            for_zones: Vec::new(),
            weight: self.weight,
            score: 100,
            priority: self.priority,
            health: EndpointHealth::Healthy,
        }
    }
}

/// Whether an endpoint may get new traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointHealth {
    /// It may.
    Healthy,
    /// Only where a policy says that health is to be ignored.
    Unhealthy,
    /// It is leaving: it finishes what it has and takes nothing new.
    Draining,
}

/// The sidecar in front of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshPeer {
    /// Its inbound listener; `None`: it meets what is sent to the application's own ports.
    pub inbound: Option<SocketAddr>,
    /// What it must prove.
    pub identity: SpiffeId,
    /// Ports of the application that it does not stand before: those that its pod's rules leave alone.
    pub left_alone: Box<[RangeInclusive<u16>]>,
}

impl MeshPeer {
    /// Whether what is sent to this port of the application meets it. In a pod nothing stands
    /// before the port of the admin listener either.
    pub fn takes(&self, port: u16) -> bool {
        self.inbound.is_some()
            || (port != pod::ADMIN_PORT && !self.left_alone.iter().any(|range| range.contains(&port)))
    }
}

/// How traffic to one service, or one of its ports, is treated, defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct TrafficPolicy {
    /// `namespace/name` of the object it comes from, empty for the defaults.
    pub source: String,
    /// Limit on making one connection, TLS handshake included.
    pub connect_timeout: Duration,
    /// Limit on the whole exchange with its retries.
    pub request_timeout: Option<Duration>,
    /// Limit on one try.
    pub per_try_timeout: Option<Duration>,
    /// Whether that covers the response to its end, as a route's limit does (GEP-1742), and
    /// not only to the end of its head.
    pub per_try_whole: bool,
    /// Limit on silence of an open connection or stream.
    pub idle_timeout: Option<Duration>,
    /// When to try again.
    pub retry: RetryPolicy,
    /// When to stop using an endpoint for a while.
    pub breaker: BreakerPolicy,
    /// When to leave the whole service alone for a while.
    pub service_breaker: Option<BreakerPolicy>,
    /// How the limit on requests in flight follows their latency; `None`: it does not.
    pub concurrency: Option<ConcurrencyPolicy>,
    /// How endpoints are probed; `None`: they are not.
    pub health_check: Option<HealthCheckPolicy>,
    /// Limits per destination and worker.
    pub limits: Limits,
    /// How an endpoint is chosen.
    pub balancing: Balancing,
    /// What is answered in place of an error; `None`: the error is.
    pub fallback: Option<Arc<FallbackPolicy>>,
}

impl Default for TrafficPolicy {
    fn default() -> Self {
        Self {
            source: String::new(),
            connect_timeout: Duration::from_secs(1),
            // Nobody knows how long a download or a stream may take but who sets a limit.
            request_timeout: None,
            per_try_timeout: None,
            per_try_whole: false,
            idle_timeout: Some(Duration::from_secs(3600)),
            retry: RetryPolicy::default(),
            breaker: BreakerPolicy::default(),
            service_breaker: None,
            concurrency: None,
            health_check: None,
            limits: Limits::default(),
            balancing: Balancing::default(),
            fallback: None,
        }
    }
}

impl TrafficPolicy {
    /// How the application beside us is treated: how long a request may take,
    /// and whether it is tried elsewhere, is the caller's side to decide. Only
    /// what was lost to a connection that had been closed while idle is repeated here.
    pub fn inbound() -> Self {
        let limits = Limits {
            connections: INBOUND_LIMIT,
            pending_requests: 1024,
            requests: INBOUND_LIMIT,
            ..Limits::default()
        };
        let retry = RetryPolicy { attempts: 0, ..RetryPolicy::default() };
        Self { retry, limits, ..Self::default() }
    }
}

/// Requests, and connections, that the application may have at once through one
/// worker: far beyond what one process serves, but not what memory could not hold.
const INBOUND_LIMIT: usize = 16 * 1024;

/// Bounds on what one destination may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Open connections.
    pub connections: usize,
    /// Requests that wait for a connection.
    pub pending_requests: usize,
    /// Requests in flight.
    pub requests: usize,
    /// Requests that a connection serves before it is replaced.
    pub requests_per_connection: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 1024, pending_requests: 1024, requests: 1024, requests_per_connection: None }
    }
}

/// The workload's own side.
#[derive(Debug)]
pub struct Workload {
    /// The service's name.
    pub service: ServiceName,
    /// Ports that peers may ask for.
    pub ports: Vec<Port>,
    /// The zone it runs in, empty if unknown.
    pub zone: Box<str>,
    /// Names of no service's form that lead to services all the same, in lower case.
    pub hosts: HashMap<Box<str>, ServiceName>,
    /// Whether requests are written to the access log.
    pub access_log: bool,
    /// Share of new traces that are sampled, 0 to 1.
    pub sampling: f64,
    /// What its requests are watched for.
    pub alerts: Vec<WatchedAlert>,
    /// What is done to the labels of its requests' metrics.
    pub metric_labels: MetricLabels,
    /// The limits on requests to each port that has any.
    pub rate_limits: Vec<PortLimits>,
    /// Which tokens requests to it bring.
    pub gates: Gates,
}

impl Workload {
    /// The limits on requests to a port.
    pub fn rate_limits(&self, port: u16) -> Option<&PortLimits> {
        self.rate_limits.iter().find(|limits| limits.port == port)
    }
}

/// What is done to the labels of request metrics, by direction; `None`: nothing.
#[derive(Debug, Default, Clone)]
pub struct MetricLabels {
    /// Of requests to the application.
    pub inbound: Option<Arc<Labeling>>,
    /// Of the application's own.
    pub outbound: Option<Arc<Labeling>>,
}

impl MetricLabels {
    /// Those of requests of this direction.
    pub fn of(&self, direction: Direction) -> Option<&Arc<Labeling>> {
        match direction {
            Direction::Inbound => self.inbound.as_ref(),
            Direction::Outbound => self.outbound.as_ref(),
        }
    }

    /// The added labels; those of both directions come twice.
    pub fn labels(&self) -> impl Iterator<Item = &AddedLabel> {
        self.inbound.iter().chain(&self.outbound).flat_map(|labeling| &labeling.added)
    }
}

/// Which tokens requests bring, by the application's ports.
#[derive(Debug, Default, Clone)]
pub struct Gates {
    /// Of the policies as they were sent; `None`: there are none.
    pub fingerprint: Option<[u8; 32]>,
    /// Of the ports that policies name.
    pub ports: HashMap<u16, Arc<Gate>>,
    /// Of all others.
    pub every: Option<Arc<Gate>>,
}

impl Gates {
    /// The gate of a port.
    pub fn at(&self, port: u16) -> Option<&Arc<Gate>> {
        self.ports.get(&port).or(self.every.as_ref())
    }

    /// All policies, some perhaps several times.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.ports.values().chain(&self.every).flat_map(|gate| gate.policies()).map(|policy| &policy.policy)
    }
}

/// The limits on requests to one port.
#[derive(Debug)]
pub struct PortLimits {
    /// The application's port.
    pub port: u16,
    /// All of those that are about a request have to admit it.
    pub limits: Arc<[RateLimit]>,
    /// What callers' health checks may do beside them.
    pub probes: Arc<Probes>,
}

impl Workload {
    /// The service that a name, in any case and with or without a final dot, leads to besides the
    /// services' own names.
    pub fn host(&self, name: &str) -> Option<&ServiceName> {
        if self.hosts.is_empty() {
            return None;
        }
        self.hosts.get(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase().as_str())
    }
}

/// An alert rule and the requests that it is about.
#[derive(Debug, Clone, PartialEq)]
pub struct WatchedAlert {
    /// `namespace/policy/name`.
    pub id: String,
    /// When it fires.
    pub rule: AlertRule,
    /// Which requests count against it.
    pub against: Against,
    /// The side of the requests.
    pub direction: Direction,
    /// The one service that they go to; `None`: any.
    pub service: Option<ServiceName>,
}

/// Which requests count against an alert rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Against {
    /// None: all are counted alike.
    None,
    /// Status 5xx, or a gRPC status that blames the server.
    ServerErrors,
    /// Status 5xx.
    Status5xx,
    /// Status 4xx.
    Status4xx,
    /// A gRPC status that blames the server.
    Grpc,
    /// The mesh's own answers for this reason.
    Reason(Reason),
    /// Those that took longer.
    SlowerThan(Duration),
}

/// A coarse time of last use, in seconds of [`uptime`]; 0 if there was none.
#[derive(Default, Debug)]
pub struct Usage(AtomicU64);

impl Usage {
    /// Notes a use. Writes only when the second changed, so that workers do not
    /// fight over the cache line.
    pub fn touch(&self, uptime_seconds: u64) {
        if self.0.load(Ordering::Relaxed) != uptime_seconds {
            self.0.store(uptime_seconds, Ordering::Relaxed);
        }
    }

    /// When it was last used.
    pub fn last(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The uptime at `now` for [`Usage`], in seconds, counted from the first call on
/// and never 0, which stands for "not used".
pub fn uptime(now: Instant) -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    now.saturating_duration_since(*START.get_or_init(|| now)).as_secs() + 1
}

/// What a worker or the DNS responder asks the agent for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Want {
    /// A service by name.
    Service(ServiceName),
    /// The service that an address belongs to.
    Address(IpAddr),
}

/// A reader's end of the configuration: cheap to clone, usable in any thread.
#[derive(Clone, Debug)]
pub struct ConfigHandle {
    current: Arc<ArcSwap<Snapshot>>,
    changes: watch::Receiver<u64>,
    wanted: mpsc::Sender<Want>,
}

impl ConfigHandle {
    /// The current snapshot.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// Waits for a snapshot newer than the one last waited for.
    pub async fn changed(&mut self) {
        // The publisher lives as long as the process.
        let _ = self.changes.changed().await;
    }

    /// Asks for something; the answer appears in a later snapshot. Asking
    /// again is harmless. `false` if too much is being asked for at once.
    pub fn want(&self, want: Want) -> bool {
        self.wanted.try_send(want).is_ok()
    }
}

/// The agent's end of the configuration.
#[derive(Debug)]
pub struct Publisher {
    current: Arc<ArcSwap<Snapshot>>,
    changes: watch::Sender<u64>,
}

impl Publisher {
    /// Replaces the snapshot and wakes the readers.
    pub fn publish(&self, snapshot: Snapshot) {
        self.current.store(Arc::new(snapshot));
        self.changes.send_modify(|version| *version += 1);
    }

    /// The current snapshot.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }
}

/// How many wants may wait for the agent: more at once is an application that scans names.
const WANTED_QUEUE: usize = 1024;

/// An empty configuration: the agent's end, the readers' end, and the wants.
pub fn channel() -> (Publisher, ConfigHandle, mpsc::Receiver<Want>) {
    let current = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
    let (changes, receiver) = watch::channel(0);
    let (wanted, wants) = mpsc::channel(WANTED_QUEUE);
    let handle = ConfigHandle { current: current.clone(), changes: receiver, wanted };
    (Publisher { current, changes }, handle, wants)
}
