//! Where requests go: destinations with their endpoints, balanced and pooled,
//! as one worker sees them.
//!
//! A [`Destination`] is one port of a service (or of the application beside
//! us). It follows the configuration: endpoints that stay keep their load
//! history, breaker and pooled connections; those that go finish what they
//! have. Nothing here is shared between workers.

mod admission;
mod attempt;
mod checks;
mod connect;
mod endpoint;
mod fallback;
mod follow;
mod line;
mod origination;
mod pool;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use heddle_api::name::ServiceName;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::config::{self, AppProtocol, Service, TrafficPolicy, Usage};
use crate::fallback::Watch;
use crate::guard::Guards;
use crate::policy::balance::{Algorithm, Balancer, Balancing, Candidate, Key};
use crate::policy::breaker::Breaker;
use crate::policy::budget::RetryBudget;
use crate::policy::concurrency::Limiter;
use crate::policy::fault::{self, Injected};
use crate::policy::hash_key::Affinity;
use crate::policy::rng::Rng;
use crate::policy::stale::Cache;
use crate::reason::Reason;
use crate::route::{EndpointTag, Head};
use crate::routing::Routing;
use crate::telemetry::metrics::{
    CircuitGauge, DestinationLabels, EndpointsGauge, RetryMetrics, ServiceLabels, Shard,
};

pub use self::admission::Admitted;
pub use self::attempt::InFlight;
pub use self::checks::{Check, CheckKey, Checks};
pub(crate) use self::connect::{ClientConfigs, server_name};
pub use self::connect::{ConnectError, MeshProtocol, broken, port_of_server_name};
pub use self::endpoint::{Endpoint, Target};
#[cfg(test)]
pub(crate) use self::line::Waiting;
pub(crate) use self::line::{Leaving, Line};
pub use self::origination::{Origination, Terms};
pub use self::pool::Lease;

/// The name of the route that requests take where no route was declared.
pub const DEFAULT_ROUTE: &str = "default";

/// What a destination is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum DestinationKey {
    /// A port of a service.
    Service(ServiceName, u16),
    /// A port of one workload, by its own address.
    Workload(SocketAddr),
    /// A port of the application beside us.
    App(u16),
    /// An address outside the registry.
    Direct(SocketAddr),
}

impl fmt::Display for DestinationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name, port) => write!(f, "service {name} port {port}"),
            Self::Workload(address) => write!(f, "workload {address}"),
            Self::App(port) => write!(f, "application port {port}"),
            Self::Direct(address) => write!(f, "address {address}"),
        }
    }
}

/// What earlier connections taught about a destination whose protocol is not declared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Learned {
    /// No connection yet.
    Nothing,
    /// Clients speak first, and it is HTTP or TLS.
    ClientFirst,
    /// The server speaks first.
    ServerFirst,
}

/// A place that requests and connections go to.
pub struct Destination {
    /// What it is.
    pub key: DestinationKey,
    /// Labels for metrics and errors.
    pub service: Arc<str>,
    /// Labels for metrics and errors.
    pub namespace: Arc<str>,
    /// What was declared about its bytes.
    pub protocol: AppProtocol,
    /// Retries made to it.
    pub retries: Rc<RetryMetrics>,
    /// The retry budget of all requests to it.
    pub budget: RefCell<RetryBudget>,
    /// What earlier connections taught.
    pub learned: Cell<Learned>,
    policy: RefCell<Arc<TrafficPolicy>>,
    endpoints: RefCell<Rc<[Rc<Endpoint>]>>,
    balancer: RefCell<Balancer>,
    /// When the balancer has to be looked after, if anything is about to change with time.
    due: Cell<Option<Instant>>,
    /// Tries, at all endpoints.
    in_flight: Cell<u32>,
    /// Where turns begin, for nothing else.
    chance: Rng,
    gauge: Rc<EndpointsGauge>,
    usage: Arc<Usage>,
    /// Whether it was picked from since the last sweep.
    used: Cell<bool>,
    requests: Cell<usize>,
    limiter: RefCell<Option<Box<Limiter>>>,
    /// Of the service as a whole, where its policy asks for that.
    breaker: Breaker,
    circuit: RefCell<Option<CircuitGauge>>,
    connections: Rc<Connections>,
    retired: Cell<bool>,
    /// The routes that requests to it meet, if it has any.
    routing: RefCell<Option<Rc<Routing>>>,
    /// The faults that requests to it meet, for any of its service's ports.
    faults: RefCell<Arc<[fault::Fault]>>,
    /// The good responses of its service.
    stale: Arc<Mutex<Cache>>,
    /// How often its requests need a fallback, once there was one that could.
    watch: RefCell<Option<Rc<Watch>>>,
    /// What stands before the application's port, if anything does.
    guards: RefCell<Option<Rc<Guards>>>,
}

/// What binds a request to an endpoint.
#[derive(Clone, Copy, Default, Debug)]
pub struct Bound {
    /// What the policy ties it to an endpoint by.
    pub key: Option<u64>,
    /// The endpoint of its session.
    pub session: Option<EndpointTag>,
}

/// Where we are: what a service looks like depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Home<'a> {
    /// Our zone, empty if unknown.
    pub zone: &'a str,
    /// Our namespace: routes may be for its clients alone.
    pub namespace: &'a str,
}

/// Open connections of a destination, and who waits for one to end.
#[derive(Default)]
struct Connections {
    open: Cell<usize>,
    line: Rc<Line>,
    freed: Notify,
}

impl Connections {
    fn opened(&self) {
        self.open.set(self.open.get() + 1);
    }

    fn closed(&self, count: usize) {
        self.open.set(self.open.get().saturating_sub(count));
        for _ in 0..count {
            self.free();
        }
    }

    /// There may be more of them than before: all who wait may look again.
    fn grown(&self) {
        for _ in 0..self.line.waiting() {
            self.free();
        }
    }

    /// One who waits may look again.
    fn free(&self) {
        self.line.tell();
        self.freed.notify_one();
    }
}

impl Destination {
    /// One port of a service; `None` if the service has no such port.
    pub fn of_service(
        service: &Service,
        port: u16,
        home: Home<'_>,
        checks: &Checks,
        metrics: &Shard,
    ) -> Option<Rc<Self>> {
        let key = DestinationKey::Service(service.name.clone(), port);
        Self::of_port(key, service, port, home, checks, metrics)
    }

    /// A port of one workload, whatever services it belongs to.
    pub fn of_workload(
        workload: &Service,
        address: SocketAddr,
        home: Home<'_>,
        checks: &Checks,
        metrics: &Shard,
    ) -> Option<Rc<Self>> {
        let port = address.port();
        Self::of_port(DestinationKey::Workload(address), &workload.at(port), port, home, checks, metrics)
    }

    fn of_port(
        key: DestinationKey,
        service: &Service,
        port: u16,
        home: Home<'_>,
        checks: &Checks,
        metrics: &Shard,
    ) -> Option<Rc<Self>> {
        let declared = service.ports.iter().find(|p| p.number == port)?;
        let name = (service.name.name().into(), service.name.namespace().into());
        let policy = service.policy(port).clone();
        let shared = (service.usage.clone(), service.stale.clone());
        let destination = Self::new(key, name, declared.protocol, policy, shared, metrics);
        destination.take_over(service, port, home, None, checks, metrics);
        Some(destination)
    }

    /// A port of the application beside us, which belongs to `service`.
    pub fn of_app(
        service: &ServiceName,
        port: u16,
        protocol: AppProtocol,
        policy: Arc<TrafficPolicy>,
        metrics: &Shard,
    ) -> Rc<Self> {
        let name = (service.name().into(), service.namespace().into());
        let destination =
            Self::new(DestinationKey::App(port), name, protocol, policy, Default::default(), metrics);
        destination.set_single(Target::App(port), metrics);
        destination
    }

    /// An address that is no service's: bytes are passed through untouched.
    pub fn of_address(address: SocketAddr, policy: Arc<TrafficPolicy>, metrics: &Shard) -> Rc<Self> {
        let name = (PASSTHROUGH.into(), "".into());
        let key = DestinationKey::Direct(address);
        let destination = Self::new(key, name, AppProtocol::Tcp, policy, Default::default(), metrics);
        destination.set_single(Target::Plain(address), metrics);
        destination
    }

    fn new(
        key: DestinationKey,
        (service, namespace): (Arc<str>, Arc<str>),
        protocol: AppProtocol,
        policy: Arc<TrafficPolicy>,
        (usage, stale): (Arc<Usage>, Arc<Mutex<Cache>>),
        metrics: &Shard,
    ) -> Rc<Self> {
        let labels = DestinationLabels {
            service: service.clone(),
            namespace: namespace.clone(),
            route: DEFAULT_ROUTE.into(),
        };
        let retries = metrics.retries(&labels);
        let gauge =
            metrics.endpoints(&ServiceLabels { service: service.clone(), namespace: namespace.clone() });
        Rc::new(Self {
            key,
            service,
            namespace,
            protocol,
            retries,
            budget: RefCell::new(RetryBudget::new(Instant::now())),
            learned: Cell::new(Learned::Nothing),
            policy: RefCell::new(policy),
            endpoints: RefCell::new(Rc::new([])),
            balancer: RefCell::new(Balancer::default()),
            due: Cell::new(None),
            in_flight: Cell::new(0),
            chance: Rng::new(RandomState::new().hash_one(0_u8)),
            gauge,
            usage,
            used: Cell::new(false),
            requests: Cell::new(0),
            limiter: RefCell::default(),
            breaker: Breaker::default(),
            circuit: RefCell::default(),
            connections: Rc::default(),
            retired: Cell::new(false),
            routing: RefCell::default(),
            faults: RefCell::default(),
            stale,
            watch: RefCell::default(),
            guards: RefCell::default(),
        })
    }

    fn set_single(&self, target: Target, metrics: &Shard) {
        let endpoint = Endpoint::new("self".into(), target, self, metrics);
        *self.endpoints.borrow_mut() = Rc::new([endpoint]);
        self.rebalance(&Balancing::default(), Instant::now());
    }

    /// The routes that requests to it meet, at this moment.
    #[inline]
    pub(crate) fn routing(&self) -> Option<Rc<Routing>> {
        let routing = self.routing.borrow().clone();
        if routing.is_some() {
            // Though the request may go to another.
            self.used.set(true);
        }
        routing
    }

    /// The port that clients dial.
    pub fn port(&self) -> u16 {
        match &self.key {
            DestinationKey::Service(_, port) | DestinationKey::App(port) => *port,
            DestinationKey::Workload(address) => address.port(),
            DestinationKey::Direct(address) => address.port(),
        }
    }

    /// Whether it is this port of this service.
    pub fn is(&self, name: &ServiceName, port: u16) -> bool {
        matches!(&self.key, DestinationKey::Service(own, number) if own == name && *number == port)
    }

    /// It is no longer used: the service or its port is gone, or nobody asked for it.
    pub fn retire(&self) {
        self.retired.set(true);
        // Its ways may lead back here.
        self.routing.take();
        for endpoint in self.endpoints().iter() {
            endpoint.retire();
        }
    }

    /// Whether whoever holds it should look it up again.
    #[inline]
    pub fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// How its traffic is treated, at this moment.
    #[inline]
    pub fn policy(&self) -> Arc<TrafficPolicy> {
        self.policy.borrow().clone()
    }

    /// What requests meet before they reach it.
    #[inline]
    pub(crate) fn guards(&self) -> Option<Rc<Guards>> {
        self.guards.borrow().clone()
    }

    /// Why it takes no opaque connection, if it takes none.
    pub(crate) fn refuses_bytes(&self) -> Option<Reason> {
        let declared = matches!(self.protocol, AppProtocol::Tcp | AppProtocol::Tls);
        let guards = self.guards.borrow();
        let refuses = guards.as_ref().is_some_and(|guards| guards.refuses_bytes(declared));
        refuses.then_some(Reason::Unauthenticated)
    }

    /// Whether it takes nothing but HTTP: it is declared to speak that, and has guards, which opaque
    /// bytes that the application takes for requests would go around.
    pub(crate) fn takes_requests_only(&self) -> bool {
        matches!(self.protocol, AppProtocol::Http | AppProtocol::Http2) && self.guards.borrow().is_some()
    }

    /// Whether any request to it may meet a fault, so that its head is worth a look.
    #[inline]
    pub fn has_faults(&self) -> bool {
        !self.faults.borrow().is_empty()
    }

    /// The fault that a request to it meets, if it meets one; those of its rule are asked first.
    pub fn inject<H: Head>(
        &self,
        rule: &[fault::Fault],
        head: &H,
        grpc: bool,
        rng: &Rng,
    ) -> Option<Injected> {
        fault::inject(rule.iter().chain(&**self.faults.borrow()), self.port(), head, grpc, rng)
    }

    /// Its endpoints, at this moment.
    pub fn endpoints(&self) -> Rc<[Rc<Endpoint>]> {
        self.endpoints.borrow().clone()
    }

    /// Notes that it is in use, `uptime` seconds after the start.
    #[inline]
    pub fn touch(&self, uptime: u64) {
        self.usage.touch(uptime);
    }

    /// Whether anything may tie a request to an endpoint, so that its head is worth a look.
    #[inline]
    pub fn has_affinity(&self) -> bool {
        matches!(self.policy.borrow().balancing.algorithm, Algorithm::ConsistentHash(_))
    }

    /// What ties a request to an endpoint, where the policy says that something does. That
    /// of a route says nothing about it.
    #[inline]
    pub fn affinity(&self, head: &impl Head, client: Option<IpAddr>, rng: &Rng) -> Affinity {
        self.policy.borrow().balancing.affinity(head, client, rng)
    }

    /// The endpoint for the next try: another than the one that just failed, if there is one.
    ///
    /// # Errors
    /// [`Reason::NoHealthyEndpoint`] if none may be used, [`Reason::CircuitOpen`] if
    /// that is for the breakers' sake and the policy lets them take all.
    pub fn pick(
        &self,
        bound: Bound,
        avoid: Option<&Rc<Endpoint>>,
        rng: &Rng,
        now: Instant,
    ) -> Result<Rc<Endpoint>, Reason> {
        if self.due.get().is_some_and(|due| now >= due) {
            self.attend(now);
        }
        let endpoints = self.endpoints.borrow();
        let avoid = avoid.and_then(|avoid| endpoints.iter().position(|e| Rc::ptr_eq(e, avoid)));
        if self.is_open(now) {
            return Err(Reason::CircuitOpen);
        }
        let kept = bound.session.filter(|_| avoid.is_none());
        if let Some(kept) = kept.and_then(|tag| {
            endpoints.iter().find(|e| e.tag == tag && e.is_healthy() && e.breaker.admits(now))
        }) {
            self.used.set(true);
            return Ok(kept.clone());
        }
        let key = bound.key.map(|hash| Key { hash, in_flight: self.in_flight.get() });
        let balancer = self.balancer.borrow();
        let pick = |avoid| balancer.pick(&endpoints, key, avoid, rng, now);
        let picked = match pick(avoid) {
            // It has just come back: others get most of its share as yet.
            Some(back) if avoid.is_none() && endpoints[back].breaker.declines(rng, now) => pick(Some(back)),
            picked => picked,
        };
        if picked.is_none_or(|index| !endpoints[index].admits(now)) && self.lets_all_go() {
            return Err(Reason::CircuitOpen);
        }
        let endpoint = &endpoints[picked.ok_or(Reason::NoHealthyEndpoint)?];
        self.used.set(true);
        Ok(endpoint.clone())
    }

    /// Closes pooled connections that have been idle for too long or that the
    /// peer has closed, refreshes the gauges, and tells that it is in use if
    /// anything was or is going on: a long stream counts as much as many requests.
    pub fn sweep(&self, now: Instant) {
        let busy = self.requests.get() > 0 || self.endpoints().iter().any(|e| e.load.in_flight() > 0);
        if self.used.replace(false) || busy {
            self.touch(config::uptime(now));
        }
        if let Some(routing) = &*self.routing.borrow() {
            routing.sweep();
        }
        for endpoint in self.endpoints().iter() {
            endpoint.sweep(now);
            endpoint.show(now);
        }
        self.survey(now);
        self.show_circuit(now);
        self.sweep_fallback(now);
        self.show();
    }

    fn show(&self) {
        let endpoints = self.endpoints.borrow();
        let healthy = endpoints.iter().filter(|e| e.is_healthy()).count();
        let ejected = endpoints.iter().filter(|e| e.is_healthy() && e.breaker.is_out()).count();
        self.gauge.set(healthy - ejected, endpoints.len() - healthy, ejected);
    }
}

/// The `service` label of what goes outside the registry.
pub const PASSTHROUGH: &str = "passthrough";
