//! What is known about a client's connection before its first request: who it
//! is, which side of us it came in at, and how its destination is found.

pub(crate) mod record;

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use heddle_api::name::ServiceName;

use crate::reason::Reason;
use crate::routing::Way;
use crate::telemetry::metrics::{
    Direction, InFlight, LabelValues, Labeler, RequestLabels, RequestMetrics, TcpLabels, TcpMetrics, Tls,
    UNKNOWN_PEER,
};
use crate::upstream::{DEFAULT_ROUTE, Destination, Endpoint};
use crate::worker::Worker;

pub(crate) use self::record::Exchange;

/// A client's connection.
pub(crate) struct Session {
    /// The worker that serves it.
    pub(crate) worker: Rc<Worker>,
    /// The application's own calls are outbound, calls to it inbound.
    pub(crate) direction: Direction,
    /// The client's address.
    pub(crate) client: Option<SocketAddr>,
    /// The client's SPIFFE ID, [`UNKNOWN_PEER`] if it proved none.
    pub(crate) peer: Arc<str>,
    /// How the client's connection is protected.
    pub(crate) tls: Tls,
    routing: Routing,
    /// The destination found last and, for [`Routing::ByAuthority`], the authority it was found by.
    found: RefCell<Option<Found>>,
}

/// How a connection's destination is found.
#[derive(Clone, Debug)]
pub(crate) enum Routing {
    /// By each request's authority.
    ByAuthority,
    /// By the address that the application connected to.
    Address(SocketAddr),
    /// It is one port of one service.
    Service(ServiceName, u16),
    /// It is a port of the application beside us.
    App(u16),
    /// It is this port of the host's loopback.
    HostLoopback(SocketAddr),
    /// It has none, for this reason.
    Nowhere(Reason),
}

/// A destination and the authority it was found by.
type Found = (Box<[u8]>, Rc<Destination>);

impl Session {
    /// The session of one of the application's own connections.
    pub(crate) fn outbound(worker: Rc<Worker>, client: Option<SocketAddr>, routing: Routing) -> Self {
        Self {
            worker,
            direction: Direction::Outbound,
            client,
            peer: UNKNOWN_PEER.into(),
            tls: Tls::None,
            routing,
            found: RefCell::default(),
        }
    }

    /// The session of a connection to the application's `port`, from a peer
    /// that proved to be `peer`, or from an unknown client in plaintext.
    pub(crate) fn inbound(
        worker: Rc<Worker>,
        client: Option<SocketAddr>,
        peer: Option<&str>,
        port: u16,
    ) -> Self {
        Self {
            worker,
            direction: Direction::Inbound,
            client,
            peer: peer.unwrap_or(UNKNOWN_PEER).into(),
            tls: if peer.is_some() { Tls::Mutual } else { Tls::None },
            routing: Routing::App(port),
            found: RefCell::default(),
        }
    }

    /// The session of an unknown client that may not reach the application.
    pub(crate) fn refused(worker: Rc<Worker>, client: Option<SocketAddr>, reason: Reason) -> Self {
        Self { routing: Routing::Nowhere(reason), ..Self::inbound(worker, client, None, 0) }
    }

    /// Whether the client is a sidecar: its mesh headers can be believed.
    pub(crate) fn is_from_mesh(&self) -> bool {
        self.tls == Tls::Mutual
    }

    /// Whether a policy tells the application by headers who asks. Trailers of their names would
    /// tell it something else where they are merged into the head.
    pub(crate) fn tells_claims(&self) -> bool {
        let Routing::App(port) = self.routing else { return false };
        let snapshot = self.worker.config.load();
        let gate = snapshot.workload.as_ref().and_then(|workload| workload.gates.at(port));
        gate.is_some_and(|gate| gate.tells_claims())
    }

    /// Where the client is, if that is known.
    pub(crate) fn client_address(&self) -> Option<IpAddr> {
        self.client.map(|client| client.ip())
    }

    /// Whether requests say where they go (and not the connection).
    pub(crate) fn is_by_authority(&self) -> bool {
        matches!(self.routing, Routing::ByAuthority)
    }

    /// The destination of a request with this authority, if it is the same as
    /// last time: no look-up, no waiting.
    #[inline]
    pub(crate) fn same_destination(&self, authority: &[u8]) -> Option<Rc<Destination>> {
        match &*self.found.borrow() {
            Some((known, destination))
                if !destination.is_retired() && (!self.is_by_authority() || **known == *authority) =>
            {
                Some(destination.clone())
            }
            _ => None,
        }
    }

    /// The destination of a request with this authority.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn destination(&self, authority: &[u8]) -> Result<Rc<Destination>, Reason> {
        if let Some(destination) = self.same_destination(authority) {
            return Ok(destination);
        }
        let destination = match &self.routing {
            Routing::ByAuthority => self.worker.by_authority(authority).await?,
            Routing::Address(address) => self.worker.by_address(*address).await?,
            Routing::Service(name, port) => self.worker.service(name, Some(*port), *port).await?,
            Routing::App(port) => self.worker.app_port(*port)?,
            Routing::HostLoopback(address) => self.worker.host_loopback(*address),
            Routing::Nowhere(reason) => return Err(*reason),
        };
        let key = if self.is_by_authority() { authority.into() } else { Box::default() };
        *self.found.borrow_mut() = Some((key, destination.clone()));
        Ok(destination)
    }

    /// The metrics of a request to this endpoint (`None`: it came to none).
    pub(crate) fn requests(
        &self,
        destination: Option<&Destination>,
        endpoint: Option<&Endpoint>,
    ) -> Rc<RequestMetrics> {
        match (self.direction, endpoint) {
            (Direction::Outbound, Some(endpoint)) => endpoint.requests.clone(),
            _ => self.worker.metrics.requests(&self.request_labels(destination, None)),
        }
    }

    /// The metrics of a request that a route sent to a backend and that came to no endpoint.
    pub(crate) fn requests_of(&self, way: &Way) -> Rc<RequestMetrics> {
        let labels = self.request_labels(Some(&way.destination), None);
        self.worker.metrics.requests(&RequestLabels { route: way.label.clone(), ..labels })
    }

    /// What reads the labels that a policy adds to requests' metrics, if one adds or removes any.
    #[inline]
    pub(crate) fn labeler(&self) -> Option<Rc<Labeler>> {
        self.worker.labeler(self.direction)
    }

    /// Counts a request as in flight, under its labels if a policy has any.
    #[inline]
    pub(crate) fn begin(&self, metrics: &Rc<RequestMetrics>, labels: Option<&LabelValues>) -> InFlight {
        match labels {
            None => metrics.begin(),
            Some(labels) => labels.metrics(metrics, &self.worker.metrics).begin(),
        }
    }

    /// The metrics of an opaque connection to this endpoint (`None`: it came to none).
    pub(crate) fn tcp(
        &self,
        destination: Option<&Destination>,
        endpoint: Option<&Endpoint>,
    ) -> Rc<TcpMetrics> {
        match (self.direction, endpoint) {
            (Direction::Outbound, Some(endpoint)) => endpoint.tcp.clone(),
            _ => {
                let (service, namespace) = self.labels(destination);
                self.worker.metrics.tcp(&TcpLabels {
                    direction: self.direction,
                    service,
                    namespace,
                    peer: self.peer.clone(),
                    tls: self.tls,
                })
            }
        }
    }

    fn request_labels(
        &self,
        destination: Option<&Destination>,
        endpoint: Option<&Endpoint>,
    ) -> RequestLabels {
        let (service, namespace) = self.labels(destination);
        let (peer, tls) = match (self.direction, endpoint) {
            (Direction::Outbound, Some(endpoint)) => (endpoint.peer.clone(), endpoint.tls()),
            _ => (self.peer.clone(), self.tls),
        };
        RequestLabels {
            direction: self.direction,
            service,
            namespace,
            route: DEFAULT_ROUTE.into(),
            peer,
            tls,
            added: None,
        }
    }

    fn labels(&self, destination: Option<&Destination>) -> (Arc<str>, Arc<str>) {
        match destination {
            Some(destination) => (destination.service.clone(), destination.namespace.clone()),
            // What the client wrote is no label: it is unbounded.
            None => ("unknown".into(), "unknown".into()),
        }
    }
}
