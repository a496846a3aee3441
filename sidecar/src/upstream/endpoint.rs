//! One instance of a destination: its load, its breaker and its connections.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use heddle_api::spiffe::SpiffeId;

use super::checks::Check;
use super::pool::Idle;
use super::{Connections, DEFAULT_ROUTE, Destination, DestinationKey, Origination};
use crate::config::{self, EndpointHealth};
use crate::http2::upstream::Links;
use crate::policy::balance::{Candidate, Health, Member};
use crate::policy::breaker::Breaker;
use crate::policy::ewma::PeakEwma;
use crate::policy::hash_key;
use crate::policy::health_check::Verdict;
use crate::route::EndpointTag;
use crate::telemetry::metrics::{
    Circuit, CircuitGauge, Direction, EndpointLabels, RequestLabels, RequestMetrics, Shard, TcpLabels,
    TcpMetrics, Tls, UNKNOWN_PEER,
};

/// How an endpoint is reached.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Target {
    /// The application beside us.
    App(u16),
    /// Outside the mesh, in plaintext.
    Plain(SocketAddr),
    /// Outside the mesh, with TLS that we begin.
    Tls {
        /// Where it is.
        address: SocketAddr,
        /// What it must prove.
        origination: Arc<Origination>,
    },
    /// Through its sidecar.
    Mesh {
        /// The sidecar's inbound listener, or the application's port that leads there.
        inbound: SocketAddr,
        /// What it must prove.
        identity: SpiffeId,
        /// The application's port behind it.
        port: u16,
    },
}

impl Target {
    /// How a port of the service is reached at an endpoint; `None` if it has no such port.
    pub fn of(endpoint: &config::Endpoint, declared: &config::Port) -> Option<Self> {
        let port = endpoint.bindings.iter().find(|(service, _)| *service == declared.number)?.1;
        let address = SocketAddr::new(endpoint.address, port);
        let peer = endpoint.mesh.as_ref().filter(|peer| peer.takes(port));
        Some(match (peer, &declared.tls) {
            (Some(peer), _) => {
                let inbound = peer.inbound.unwrap_or(address);
                Self::Mesh { inbound, identity: peer.identity.clone(), port }
            }
            // Never in plaintext, wherever the endpoint comes from.
            (None, Some(tls)) => Self::Tls { address, origination: tls.clone() },
            (None, None) => Self::Plain(address),
        })
    }
}

impl Target {
    /// The address that is dialled, if it is known before.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::App(_) => None,
            Self::Plain(address) | Self::Tls { address, .. } | Self::Mesh { inbound: address, .. } => {
                Some(*address)
            }
        }
    }
}

/// An instance as one worker sees it.
pub struct Endpoint {
    /// Stable over updates.
    pub id: Arc<str>,
    /// What sessions call it.
    pub tag: EndpointTag,
    /// How it is reached.
    pub target: Target,
    /// What it proves, [`UNKNOWN_PEER`] outside the mesh.
    pub peer: Arc<str>,
    /// Latency and requests in flight.
    pub load: PeakEwma,
    /// Whether it is left out.
    pub breaker: Breaker,
    /// Metrics of requests to it.
    pub requests: Rc<RequestMetrics>,
    /// Metrics of opaque connections to it.
    pub tcp: Rc<TcpMetrics>,
    /// Its HTTP/2 connections.
    pub(crate) http2: Links,
    pub(super) idle: [RefCell<Vec<Idle>>; 2],
    pub(super) connections: Rc<Connections>,
    member: Cell<Member>,
    /// What discovery says.
    told: Cell<EndpointHealth>,
    /// What that and health checks amount to.
    health: Cell<EndpointHealth>,
    check: RefCell<Option<Arc<Check>>>,
    retired: Cell<bool>,
    circuit: CircuitGauge,
}

impl Endpoint {
    pub(super) fn new(id: Arc<str>, target: Target, destination: &Destination, metrics: &Shard) -> Rc<Self> {
        let (service, namespace) = (destination.service.clone(), destination.namespace.clone());
        let (peer, tls): (Arc<str>, Tls) = match &target {
            Target::Mesh { identity, .. } => (identity.as_str().into(), Tls::Mutual),
            Target::Tls { .. } => (UNKNOWN_PEER.into(), Tls::Originated),
            Target::App(_) | Target::Plain(_) => (UNKNOWN_PEER.into(), Tls::None),
        };
        let direction = match destination.key {
            DestinationKey::App(_) => Direction::Inbound,
            DestinationKey::Service(..) | DestinationKey::Workload(_) | DestinationKey::Direct(_) => {
                Direction::Outbound
            }
        };
        let requests = metrics.requests(&RequestLabels {
            direction,
            service: service.clone(),
            namespace: namespace.clone(),
            route: DEFAULT_ROUTE.into(),
            peer: peer.clone(),
            tls,
            added: None,
        });
        let tcp = metrics.tcp(&TcpLabels {
            direction,
            service: service.clone(),
            namespace: namespace.clone(),
            peer: peer.clone(),
            tls,
        });
        let circuit = metrics.circuit(&EndpointLabels { service, namespace, endpoint: id.clone() });
        let member =
            Member { id: hash_key::hash(id.as_bytes()), weight: 1, priority: 0, local: false, since: None };
        Rc::new(Self {
            tag: EndpointTag::of(&id),
            id,
            target,
            peer,
            load: PeakEwma::default(),
            breaker: Breaker::default(),
            requests,
            tcp,
            http2: Links::new(destination.connections.line.clone()),
            idle: Default::default(),
            connections: destination.connections.clone(),
            member: Cell::new(member),
            told: Cell::new(EndpointHealth::Healthy),
            health: Cell::new(EndpointHealth::Healthy),
            check: RefCell::default(),
            retired: Cell::new(false),
            circuit,
        })
    }

    /// Takes over what discovery says about it. `zone` is ours; `since`: from when on it
    /// can serve, if it could not before.
    pub(super) fn update(&self, new: &config::Endpoint, zone: &str, since: Option<Instant>) {
        let known = self.member.get();
        self.member.set(Member {
            // In hundredths: only shares of each other are looked at.
            weight: new.weight.saturating_mul(new.score),
            priority: new.priority,
            local: new.is_for(zone),
            since: if new.health == EndpointHealth::Healthy { since } else { known.since },
            ..known
        });
        self.told.set(new.health);
        self.health.set(self.judge());
    }

    /// Has it probed, or not any more. `since`: as for [`Self::update`].
    pub(super) fn follow_check(&self, check: Option<Arc<Check>>, since: Option<Instant>) {
        self.check.replace(check);
        self.follow_verdict(since);
    }

    /// Takes over what probes have found; whether that made a difference. `since`: as for
    /// [`Self::update`].
    pub(super) fn follow_verdict(&self, since: Option<Instant>) -> bool {
        let health = self.judge();
        let changed = self.health.replace(health) != health;
        if changed && health == EndpointHealth::Healthy {
            self.member.set(Member { since, ..self.member.get() });
        }
        changed
    }

    /// Discovery and probes may each take it out, neither may put it back.
    fn judge(&self) -> EndpointHealth {
        let fails = || self.check.borrow().as_ref().is_some_and(|c| c.verdict() == Verdict::Unhealthy);
        match self.told.get() {
            EndpointHealth::Healthy if fails() => EndpointHealth::Unhealthy,
            told => told,
        }
    }

    /// Since when it can serve, as far as that was seen.
    pub(super) fn since(&self) -> Option<Instant> {
        self.member.get().since
    }

    /// What the balancer is made from.
    pub(super) fn member(&self) -> Member {
        self.member.get()
    }

    /// It is gone from its destination: idle connections end, others when they are done.
    pub(super) fn retire(&self) {
        self.retired.set(true);
        self.check.take();
        self.http2.retire();
        for pool in &self.idle {
            self.connections.closed(pool.take().len());
        }
    }

    /// Whether it is gone from its destination.
    pub fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// Whether it may get new traffic, by discovery and health checks.
    pub fn is_healthy(&self) -> bool {
        self.health.get() == EndpointHealth::Healthy
    }

    /// Whether discovery says that it may get new traffic.
    pub(super) fn is_told_healthy(&self) -> bool {
        self.told.get() == EndpointHealth::Healthy
    }

    /// Whether it is reached with mutual TLS.
    pub fn is_mesh(&self) -> bool {
        matches!(self.target, Target::Mesh { .. })
    }

    /// How connections to it are protected.
    pub fn tls(&self) -> Tls {
        match self.target {
            Target::Mesh { .. } => Tls::Mutual,
            Target::Tls { .. } => Tls::Originated,
            Target::App(_) | Target::Plain(_) => Tls::None,
        }
    }

    pub(super) fn show(&self, now: Instant) {
        self.circuit.set(Circuit::of(&self.breaker, now));
    }
}

impl Candidate for Rc<Endpoint> {
    #[inline]
    fn load(&self) -> &PeakEwma {
        &self.load
    }

    #[inline]
    fn health(&self) -> Health {
        match self.health.get() {
            EndpointHealth::Healthy if self.breaker.is_out() => Health::Ejected,
            EndpointHealth::Healthy => Health::Well,
            EndpointHealth::Unhealthy => Health::Unhealthy,
            EndpointHealth::Draining => Health::Draining,
        }
    }

    #[inline]
    fn admits(&self, now: Instant) -> bool {
        self.is_healthy() && self.breaker.admits(now)
    }
}
