//! The label sets. Their strings are shared, so that a clone costs no allocation.

use std::sync::Arc;

use super::family::Labels;

/// The value of `peer` when the other side proved no identity.
pub const UNKNOWN_PEER: &str = "unknown";

/// The value that stands for everything beyond a family's bound.
pub(super) const OTHER: &str = "other";

/// Which of a workload's two sides a request passes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Direction {
    /// From the mesh to the application.
    Inbound,
    /// From the application to the mesh.
    Outbound,
}

impl Direction {
    /// Both, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Inbound, Self::Outbound];

    /// The word in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// How the connection between the two sides is secured.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Tls {
    /// Mutual TLS of the mesh.
    Mutual,
    /// Plaintext.
    None,
    /// The application's own TLS, passed through.
    Passthrough,
    /// TLS that the sidecar began with a server outside the mesh.
    Originated,
}

impl Tls {
    /// The word in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mutual => "mutual",
            Self::None => "none",
            Self::Passthrough => "passthrough",
            Self::Originated => "originated",
        }
    }
}

/// The labels of `heddle_requests_total` but for the outcome.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RequestLabels {
    /// The side.
    pub direction: Direction,
    /// The destination's name; inbound, the workload's own.
    pub service: Arc<str>,
    /// The destination's namespace.
    pub namespace: Arc<str>,
    /// The route's name, never a path; empty for none.
    pub route: Arc<str>,
    /// The other side's SPIFFE ID, or [`UNKNOWN_PEER`].
    pub peer: Arc<str>,
    /// How the connection to the other side is secured.
    pub tls: Tls,
    /// Labels that a policy adds; `None` where there is none.
    pub added: Option<Added>,
}

/// The names of labels that a policy adds, each with its value.
pub type Added = Arc<[(Arc<str>, Arc<str>)]>;

/// The same labels with no value of their own.
fn coarse(added: &Added) -> Added {
    let other: Arc<str> = OTHER.into();
    added.iter().map(|(name, _)| (name.clone(), other.clone())).collect()
}

impl Labels for RequestLabels {
    fn overflow(&self) -> Self {
        let other: Arc<str> = OTHER.into();
        let (service, namespace, route) = (other.clone(), other.clone(), other.clone());
        Self { direction: self.direction, service, namespace, route, peer: other, tls: self.tls, added: None }
    }

    fn coarser(&self) -> Option<Self> {
        self.added.as_ref().map(|added| Self { added: Some(coarse(added)), ..self.clone() })
    }

    /// By service, as alert rules pick them.
    fn gone(&self) -> Option<Self> {
        let Self { direction, service, namespace, .. } = self.clone();
        let (route, peer) = ("".into(), "".into());
        Some(Self { direction, service, namespace, route, peer, tls: Tls::None, added: None })
    }
}

/// The labels of request durations.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct RouteLabels {
    pub(super) direction: Direction,
    pub(super) service: Arc<str>,
    pub(super) namespace: Arc<str>,
    pub(super) route: Arc<str>,
    pub(super) added: Option<Added>,
}

impl RouteLabels {
    pub(super) fn of(labels: &RequestLabels) -> Self {
        let RequestLabels { direction, service, namespace, route, added, .. } = labels.clone();
        Self { direction, service, namespace, route, added }
    }
}

impl Labels for RouteLabels {
    fn overflow(&self) -> Self {
        let other: Arc<str> = OTHER.into();
        let (service, namespace) = (other.clone(), other.clone());
        Self { direction: self.direction, service, namespace, route: other, added: None }
    }

    fn coarser(&self) -> Option<Self> {
        self.added.as_ref().map(|added| Self { added: Some(coarse(added)), ..self.clone() })
    }

    /// By service, as alert rules pick them.
    fn gone(&self) -> Option<Self> {
        Some(Self { route: "".into(), added: None, ..self.clone() })
    }
}

/// The labels of opaque connections.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TcpLabels {
    /// The side.
    pub direction: Direction,
    /// The destination's name; inbound, the workload's own.
    pub service: Arc<str>,
    /// The destination's namespace.
    pub namespace: Arc<str>,
    /// The other side's SPIFFE ID, or [`UNKNOWN_PEER`].
    pub peer: Arc<str>,
    /// How the connection to the other side is secured.
    pub tls: Tls,
}

impl Labels for TcpLabels {
    fn overflow(&self) -> Self {
        let other: Arc<str> = OTHER.into();
        let (service, namespace) = (other.clone(), other.clone());
        Self { direction: self.direction, service, namespace, peer: other, tls: self.tls }
    }

    /// By direction, for the workload's score.
    fn gone(&self) -> Option<Self> {
        let none: Arc<str> = "".into();
        let (service, namespace) = (none.clone(), none.clone());
        Some(Self { direction: self.direction, service, namespace, peer: none, tls: Tls::None })
    }
}

/// The labels of what concerns a destination and route.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct DestinationLabels {
    /// The destination's name.
    pub service: Arc<str>,
    /// The destination's namespace.
    pub namespace: Arc<str>,
    /// The route's name; empty for none.
    pub route: Arc<str>,
}

impl Labels for DestinationLabels {
    fn overflow(&self) -> Self {
        let other: Arc<str> = OTHER.into();
        Self { service: other.clone(), namespace: other.clone(), route: other }
    }
}

/// The labels of what concerns a service.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ServiceLabels {
    /// The service's name.
    pub service: Arc<str>,
    /// The service's namespace.
    pub namespace: Arc<str>,
}

impl Labels for ServiceLabels {
    fn overflow(&self) -> Self {
        let other: Arc<str> = OTHER.into();
        Self { service: other.clone(), namespace: other }
    }
}

/// The labels of what concerns one endpoint.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct EndpointLabels {
    /// The service's name.
    pub service: Arc<str>,
    /// The service's namespace.
    pub namespace: Arc<str>,
    /// The endpoint's identifier.
    pub endpoint: Arc<str>,
}

impl Labels for EndpointLabels {
    fn overflow(&self) -> Self {
        let other: Arc<str> = OTHER.into();
        Self { service: other.clone(), namespace: other.clone(), endpoint: other }
    }
}
