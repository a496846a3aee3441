//! Metrics: a [`Registry`] that the whole process shares, one [`Shard`] per worker.
//!
//! A worker resolves a handle once per connection or destination and updates
//! it per request with plain loads and stores (see `cell`). The scrape sums the
//! shards. Label sets per family are bounded: what exceeds the bound is counted
//! under `other`. Series that no worker uses any more go after [`Shard::sweep`].
//!
//! The encoder is our own: prometheus-client's families lock on every
//! lookup and know no sums over shards, so that only its escaping would be left to use.

mod agent;
mod cell;
mod circuit;
mod encode;
mod fallback;
mod family;
mod hedge;
mod labeling;
mod labels;
mod process;
mod totals;

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::agent::{HandshakeSide, SharedCounter, SharedGauge};
pub use self::cell::Outcome;
pub use self::circuit::{Circuit, CircuitGauge};
pub use self::fallback::{FallbackMetrics, FallbackStep};
pub use self::hedge::{HedgeMetrics, HedgeOutcome};
pub use self::labeling::{
    AddedLabel, Admits, LabelValues, Labeler, Labeling, MAX_LABELS, MAX_VALUE, MAX_VALUES, Source, Vocabulary,
};
pub use self::labels::{
    Added, DestinationLabels, Direction, EndpointLabels, RequestLabels, ServiceLabels, TcpLabels, Tls,
    UNKNOWN_PEER,
};
pub use self::totals::{Durations, Side};

use self::agent::AgentFamilies;
use self::cell::{Cell, Cells, Histogram, OutcomeCells};
use self::circuit::CircuitCell;
use self::encode::Encoder;
use self::fallback::FallbackCells;
use self::family::{Family, Local};
use self::hedge::HedgeCells;
use self::labels::RouteLabels;
use crate::policy::score::Tally;
use crate::reason::Reason;

/// Label sets per family: a service with a hundred clients and twenty routes
/// fits, and the largest family stays near 2 MB of text and 1 MB of memory.
const SERIES_LIMIT: usize = 4096;

/// With a sweep per minute, a series outlives its last user by a quarter of an
/// hour: long enough for every scrape, and for a client that comes back.
const SWEEPS_UNUSED: u8 = 15;

/// Every metric of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Families>);

#[derive(Debug)]
struct Families {
    requests: Family<RequestLabels, OutcomeCells>,
    routes: Family<RouteLabels, RouteCells>,
    tcp: Family<TcpLabels, TcpCells>,
    retries: Family<DestinationLabels, RetryCells>,
    hedges: Family<ServiceLabels, HedgeCells>,
    circuits: Family<EndpointLabels, CircuitCell>,
    endpoints: Family<ServiceLabels, EndpointCells>,
    fallbacks: Family<ServiceLabels, FallbackCells>,
    agent: AgentFamilies,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// A registry with the process's own metrics in it.
    pub fn new() -> Self {
        Self::with_limit(SERIES_LIMIT)
    }

    fn with_limit(limit: usize) -> Self {
        let registry = Self(Arc::new(Families {
            requests: Family::new(limit),
            routes: Family::new(limit),
            tcp: Family::new(limit),
            retries: Family::new(limit),
            hedges: Family::new(limit),
            circuits: Family::new(limit),
            endpoints: Family::new(limit),
            fallbacks: Family::new(limit),
            agent: AgentFamilies::new(limit),
        }));
        let version = ("version", env!("CARGO_PKG_VERSION"));
        registry.gauge("heddle_build_info", "What this binary is; always 1.", &[version]).set(1.0);
        registry
    }

    /// The part that one worker writes; made in the worker's own thread.
    pub fn shard(&self) -> Shard {
        Shard {
            families: self.0.clone(),
            requests: Local::default(),
            routes: Local::default(),
            tcp: Local::default(),
            retries: Local::default(),
            hedges: Local::default(),
            endpoints: Local::default(),
            fallbacks: Local::default(),
        }
    }

    /// A counter outside the hot path; any thread may write it.
    ///
    /// Asking again with the same name and labels gives the same counter. The
    /// label names of one metric are always the same.
    pub fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> SharedCounter {
        self.0.agent.counter(name, help, labels)
    }

    /// A gauge outside the hot path; any thread may write it.
    pub fn gauge(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> SharedGauge {
        self.0.agent.gauge(name, help, labels)
    }

    /// Drops a series made by [`Self::counter`] or [`Self::gauge`].
    pub fn forget(&self, name: &'static str, labels: &[(&'static str, &str)]) {
        self.0.agent.forget(name, labels);
    }

    /// `heddle_config_updates_total`: a discovery response of one resource type, by what became of it.
    pub fn config_updates(&self, resource: &str, result: &str) -> SharedCounter {
        let labels = [("type", resource), ("result", result)];
        self.counter("heddle_config_updates_total", "Configuration updates received.", &labels)
    }

    /// `heddle_dns_resolutions_total`: questions about names that are endpoints outside the mesh,
    /// by what came of them: `found`, `none` or `failed`.
    pub fn dns_resolutions(&self, result: &'static str) -> SharedCounter {
        let help = "DNS questions about endpoints outside the mesh.";
        self.counter("heddle_dns_resolutions_total", help, &[("result", result)])
    }

    /// `heddle_certificate_expiry_timestamp_seconds`: when the workload's certificate ends.
    pub fn certificate_expiry(&self) -> SharedGauge {
        let help = "When the workload's certificate expires, in seconds since 1970.";
        self.gauge("heddle_certificate_expiry_timestamp_seconds", help, &[])
    }

    /// `heddle_tls_handshakes_total`: handshakes with mesh peers, and with servers outside the mesh
    /// that TLS is begun with. `refusal` is a word from
    /// a short list that says why a handshake failed; `None` counts those that succeeded.
    pub fn tls_handshakes(&self, side: HandshakeSide, refusal: Option<&'static str>) -> SharedCounter {
        let result = if refusal.is_some() { "refused" } else { "ok" };
        let labels = [("side", side.as_str()), ("result", result), ("reason", refusal.unwrap_or(""))];
        self.counter("heddle_tls_handshakes_total", "TLS handshakes made by the sidecar itself.", &labels)
    }

    /// `heddle_metric_label_overflow_total`: requests whose value for an added label was counted as `other`.
    pub fn label_overflows(&self, label: &str) -> SharedCounter {
        let help = "Requests whose value for an added label is not among those that it takes in.";
        self.counter("heddle_metric_label_overflow_total", help, &[("label", label)])
    }

    /// The circuits of all endpoints and services, those of services without an endpoint's name.
    pub fn circuits(&self, now: Instant) -> Vec<(EndpointLabels, Circuit)> {
        self.0.circuits.totals().into_iter().map(|(labels, cell)| (labels, cell.circuit(now))).collect()
    }

    /// Requests and connections to others that ended so far, and those that failed by the
    /// other side's or the mesh's fault.
    pub fn dependencies(&self) -> Tally {
        let mut tally = Tally::default();
        let mut count = |outcomes: &OutcomeCells| {
            outcomes.visit(|outcome, count| {
                tally.all = tally.all.wrapping_add(count);
                tally.failed = tally.failed.wrapping_add(if outcome.is_failure() { count } else { 0 });
            });
        };
        let is_outbound = |direction| direction == Direction::Outbound;
        self.0.requests.visit(|labels| is_outbound(labels.direction), &mut count);
        self.0.tcp.visit(|labels| is_outbound(labels.direction), |cells| count(&cells.connections));
        tally
    }

    /// The services that are degraded.
    pub fn degraded(&self) -> Vec<ServiceLabels> {
        let services = self.0.fallbacks.totals().into_iter();
        services.filter(|(_, cells)| cells.is_degraded()).map(|(labels, _)| labels).collect()
    }

    /// All metrics in the Prometheus text format, version 0.0.4.
    pub fn encode(&self) -> String {
        let mut encoder = Encoder::default();
        encode::families(&self.0, &mut encoder);
        self.0.agent.encode(&mut encoder);
        process::encode(&mut encoder);
        encoder.finish()
    }
}

/// One worker's metrics. Its handles belong to the worker's thread.
#[derive(Debug)]
pub struct Shard {
    families: Arc<Families>,
    requests: Local<RequestLabels, OutcomeCells, RequestMetrics>,
    routes: Local<RouteLabels, RouteCells, RouteMetrics>,
    tcp: Local<TcpLabels, TcpCells, TcpMetrics>,
    retries: Local<DestinationLabels, RetryCells, RetryMetrics>,
    hedges: Local<ServiceLabels, HedgeCells, HedgeMetrics>,
    endpoints: Local<ServiceLabels, EndpointCells, EndpointsGauge>,
    fallbacks: Local<ServiceLabels, FallbackCells, FallbackMetrics>,
}

impl Shard {
    /// The metrics of requests with these labels.
    pub fn requests(&self, labels: &RequestLabels) -> Rc<RequestMetrics> {
        self.requests.resolve(&self.families.requests, labels, |labels, cells| {
            let route = RouteLabels::of(labels);
            let route = self.routes.resolve(&self.families.routes, &route, |_, cells| RouteMetrics(cells));
            RequestMetrics {
                labels: Arc::new(labels.clone()),
                outcomes: cells,
                cells: route.0.clone(),
                _route: route,
            }
        })
    }

    /// The metrics of opaque connections with these labels.
    pub fn tcp(&self, labels: &TcpLabels) -> Rc<TcpMetrics> {
        self.tcp.resolve(&self.families.tcp, labels, |_, cells| TcpMetrics(cells))
    }

    /// The metrics of retries to a destination.
    pub fn retries(&self, labels: &DestinationLabels) -> Rc<RetryMetrics> {
        self.retries.resolve(&self.families.retries, labels, |_, cells| RetryMetrics(cells))
    }

    /// The state of an endpoint's circuit; with an empty endpoint, of the service's own.
    pub fn circuit(&self, labels: &EndpointLabels) -> CircuitGauge {
        CircuitGauge::new(&self.families, labels)
    }

    /// The numbers of a service's endpoints.
    pub fn endpoints(&self, labels: &ServiceLabels) -> Rc<EndpointsGauge> {
        self.endpoints.resolve(&self.families.endpoints, labels, |_, cells| EndpointsGauge(cells))
    }

    /// The metrics of a service's fallback.
    pub fn fallbacks(&self, labels: &ServiceLabels) -> Rc<FallbackMetrics> {
        self.fallbacks.resolve(&self.families.fallbacks, labels, |_, cells| FallbackMetrics::new(cells))
    }

    /// Drops series that nobody has used for a while; to be called once a minute.
    pub fn sweep(&self) {
        self.requests.sweep(&self.families.requests, SWEEPS_UNUSED);
        // After the requests, whose handles hold those of their routes.
        self.routes.sweep(&self.families.routes, SWEEPS_UNUSED);
        self.tcp.sweep(&self.families.tcp, SWEEPS_UNUSED);
        self.retries.sweep(&self.families.retries, SWEEPS_UNUSED);
        self.hedges.sweep(&self.families.hedges, SWEEPS_UNUSED);
        // A gauge without an owner says nothing true: its destination is gone.
        self.endpoints.sweep(&self.families.endpoints, 1);
        self.fallbacks.sweep(&self.families.fallbacks, SWEEPS_UNUSED);
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.requests.clear(&self.families.requests);
        self.routes.clear(&self.families.routes);
        self.tcp.clear(&self.families.tcp);
        self.retries.clear(&self.families.retries);
        self.hedges.clear(&self.families.hedges);
        self.endpoints.clear(&self.families.endpoints);
        self.fallbacks.clear(&self.families.fallbacks);
    }
}

/// The metrics of requests with one label set.
#[derive(Debug)]
pub struct RequestMetrics {
    labels: Arc<RequestLabels>,
    outcomes: Arc<OutcomeCells>,
    cells: Arc<RouteCells>,
    /// Keeps the route's series.
    _route: Rc<RouteMetrics>,
}

impl RequestMetrics {
    /// The labels that it counts under, for spans and the access log.
    pub fn labels(&self) -> &Arc<RequestLabels> {
        &self.labels
    }

    /// Counts a request as in flight until the guard goes.
    #[inline]
    pub fn begin(self: &Rc<Self>) -> InFlight {
        self.cells.in_flight.add(1);
        InFlight(self.clone())
    }
}

/// A request in flight. Dropped without [`Self::finish`] it leaves no other trace.
#[derive(Debug)]
pub struct InFlight(Rc<RequestMetrics>);

impl InFlight {
    /// Counts the request as ended so, after this time.
    #[inline]
    pub fn finish(self, outcome: Outcome, duration: Duration) {
        self.0.outcomes.count(outcome);
        self.0.cells.duration.observe(duration);
    }
}

impl Drop for InFlight {
    #[inline]
    fn drop(&mut self) {
        self.0.cells.in_flight.subtract(1);
    }
}

#[derive(Debug)]
struct RouteMetrics(Arc<RouteCells>);

#[derive(Default, Debug)]
struct RouteCells {
    in_flight: Cell,
    duration: Histogram,
}

impl Cells for RouteCells {
    fn absorb(&self, other: &Self) {
        self.in_flight.add(other.in_flight.get());
        self.duration.absorb(&other.duration);
    }
}

/// The metrics of opaque connections with one label set.
#[derive(Debug)]
pub struct TcpMetrics(Arc<TcpCells>);

#[derive(Default, Debug)]
struct TcpCells {
    connections: OutcomeCells,
    open: Cell,
    sent: Cell,
    received: Cell,
}

impl TcpMetrics {
    /// Counts a connection that reached the other side, open until the guard goes.
    pub fn open(self: &Rc<Self>) -> OpenConnection {
        self.0.connections.count(Outcome::default());
        self.0.open.add(1);
        OpenConnection(self.clone())
    }

    /// Counts a connection that was not carried.
    pub fn refused(&self, reason: Reason) {
        self.0.connections.count(Outcome { error: Some(reason), ..Outcome::default() });
    }
}

/// An open opaque connection.
#[derive(Debug)]
pub struct OpenConnection(Rc<TcpMetrics>);

impl OpenConnection {
    /// Counts bytes from the connection's client to its server.
    #[inline]
    pub fn sent(&self, bytes: u64) {
        self.0.0.sent.add(bytes);
    }

    /// Counts bytes from the connection's server to its client.
    #[inline]
    pub fn received(&self, bytes: u64) {
        self.0.0.received.add(bytes);
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.0.open.subtract(1);
    }
}

impl Cells for TcpCells {
    fn absorb(&self, other: &Self) {
        self.connections.absorb(&other.connections);
        self.open.add(other.open.get());
        self.sent.add(other.sent.get());
        self.received.add(other.received.get());
    }
}

/// How a retry ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RetryOutcome {
    /// Its answer went to the client as good.
    Succeeded,
    /// It failed as well.
    Failed,
}

/// The metrics of retries to one destination.
#[derive(Debug)]
pub struct RetryMetrics(Arc<RetryCells>);

#[derive(Default, Debug)]
struct RetryCells {
    succeeded: Cell,
    failed: Cell,
    exhausted: Cell,
}

impl RetryMetrics {
    /// Counts a retry that was made.
    pub fn retried(&self, outcome: RetryOutcome) {
        match outcome {
            RetryOutcome::Succeeded => self.0.succeeded.add(1),
            RetryOutcome::Failed => self.0.failed.add(1),
        }
    }

    /// Counts a retry that the policy allowed and the budget did not.
    pub fn budget_exhausted(&self) {
        self.0.exhausted.add(1);
    }
}

impl Cells for RetryCells {
    fn absorb(&self, other: &Self) {
        self.succeeded.add(other.succeeded.get());
        self.failed.add(other.failed.get());
        self.exhausted.add(other.exhausted.get());
    }
}

/// The numbers of a service's endpoints. Every worker sees all endpoints, so over
/// all workers each number is the largest that one of them shows.
#[derive(Debug)]
pub struct EndpointsGauge(Arc<EndpointCells>);

#[derive(Default, Debug)]
struct EndpointCells {
    healthy: Cell,
    unhealthy: Cell,
    ejected: Cell,
}

impl EndpointsGauge {
    /// Shows how many endpoints get traffic, fail their health checks, and are ejected.
    pub fn set(&self, healthy: usize, unhealthy: usize, ejected: usize) {
        self.0.healthy.set(healthy as u64);
        self.0.unhealthy.set(unhealthy as u64);
        self.0.ejected.set(ejected as u64);
    }
}

impl Cells for EndpointCells {
    fn absorb(&self, other: &Self) {
        let largest = |mine: &Cell, theirs: &Cell| mine.set(mine.get().max(theirs.get()));
        largest(&self.healthy, &other.healthy);
        largest(&self.unhealthy, &other.unhealthy);
        largest(&self.ejected, &other.ejected);
    }

    fn retire(&self, _: &Self) {}
}

#[cfg(test)]
mod tests;
