//! Typed objects, each with the place where it is written.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use heddle_api::crd;

use super::tree::Position;
use super::{Location, SourceError};

/// Typed objects by namespace and name.
#[derive(Debug, Default, Clone)]
pub struct Objects {
    /// core/v1 `Service`.
    pub services: BTreeMap<ObjectName, Arc<Sourced<crd::Service>>>,
    /// discovery.k8s.io/v1 `EndpointSlice`.
    pub endpoint_slices: BTreeMap<ObjectName, Arc<Sourced<crd::EndpointSlice>>>,
    /// core/v1 `Pod`: those that have a sidecar.
    pub pods: BTreeMap<ObjectName, Arc<Sourced<crd::Pod>>>,
    /// core/v1 `Secret`, for the keys that policies refer to.
    pub secrets: BTreeMap<ObjectName, Arc<Sourced<crd::Secret>>>,
    /// `HTTPRoute`.
    pub http_routes: BTreeMap<ObjectName, Arc<Sourced<crd::HttpRoute>>>,
    /// `GRPCRoute`.
    pub grpc_routes: BTreeMap<ObjectName, Arc<Sourced<crd::GrpcRoute>>>,
    /// `TCPRoute`.
    pub tcp_routes: BTreeMap<ObjectName, Arc<Sourced<crd::TcpRoute>>>,
    /// `TrafficPolicy`.
    pub traffic_policies: BTreeMap<ObjectName, Arc<Sourced<crd::TrafficPolicy>>>,
    /// `FaultPolicy`.
    pub fault_policies: BTreeMap<ObjectName, Arc<Sourced<crd::FaultPolicy>>>,
    /// `RateLimitPolicy`.
    pub rate_limit_policies: BTreeMap<ObjectName, Arc<Sourced<crd::RateLimitPolicy>>>,
    /// `JwtPolicy`.
    pub jwt_policies: BTreeMap<ObjectName, Arc<Sourced<crd::JwtPolicy>>>,
    /// `TelemetryPolicy`.
    pub telemetry_policies: BTreeMap<ObjectName, Arc<Sourced<crd::TelemetryPolicy>>>,
    /// `ExternalService`.
    pub external_services: BTreeMap<ObjectName, Arc<Sourced<crd::ExternalService>>>,
    /// `MeshConfig`: one at most, by validation of its name.
    pub mesh_configs: BTreeMap<ObjectName, Arc<Sourced<crd::MeshConfig>>>,
}

impl Objects {
    /// Adds an object. Of two with the same kind and name the first stays.
    pub(super) fn insert(&mut self, object: &Object) -> Result<(), SourceError> {
        match object {
            Object::Service(object) => insert(&mut self.services, "Service", object),
            Object::EndpointSlice(object) => insert(&mut self.endpoint_slices, "EndpointSlice", object),
            Object::Pod(object) => insert(&mut self.pods, "Pod", object),
            Object::Secret(object) => insert(&mut self.secrets, "Secret", object),
            Object::HttpRoute(object) => insert(&mut self.http_routes, "HTTPRoute", object),
            Object::GrpcRoute(object) => insert(&mut self.grpc_routes, "GRPCRoute", object),
            Object::TcpRoute(object) => insert(&mut self.tcp_routes, "TCPRoute", object),
            Object::TrafficPolicy(object) => insert(&mut self.traffic_policies, "TrafficPolicy", object),
            Object::FaultPolicy(object) => insert(&mut self.fault_policies, "FaultPolicy", object),
            Object::RateLimitPolicy(object) => {
                insert(&mut self.rate_limit_policies, "RateLimitPolicy", object)
            }
            Object::JwtPolicy(object) => insert(&mut self.jwt_policies, "JwtPolicy", object),
            Object::TelemetryPolicy(object) => {
                insert(&mut self.telemetry_policies, "TelemetryPolicy", object)
            }
            Object::ExternalService(object) => insert(&mut self.external_services, "ExternalService", object),
            Object::MeshConfig(object) => insert(&mut self.mesh_configs, "MeshConfig", object),
        }
    }
}

fn insert<T>(
    map: &mut BTreeMap<ObjectName, Arc<Sourced<T>>>,
    kind: &str,
    object: &Arc<Sourced<T>>,
) -> Result<(), SourceError> {
    match map.entry(object.name.clone()) {
        Entry::Vacant(entry) => {
            entry.insert(object.clone());
            Ok(())
        }
        Entry::Occupied(first) => {
            let other = first.get().origin.locate("");
            let message = format!("{kind} {} is there twice; the one of {other} is in force", object.name);
            Err(SourceError::new(object.origin.locate(""), String::new(), message))
        }
    }
}

/// An object of any kind that Heddle reads.
#[derive(Debug, Clone)]
pub(super) enum Object {
    Service(Arc<Sourced<crd::Service>>),
    EndpointSlice(Arc<Sourced<crd::EndpointSlice>>),
    Pod(Arc<Sourced<crd::Pod>>),
    Secret(Arc<Sourced<crd::Secret>>),
    HttpRoute(Arc<Sourced<crd::HttpRoute>>),
    GrpcRoute(Arc<Sourced<crd::GrpcRoute>>),
    TcpRoute(Arc<Sourced<crd::TcpRoute>>),
    TrafficPolicy(Arc<Sourced<crd::TrafficPolicy>>),
    FaultPolicy(Arc<Sourced<crd::FaultPolicy>>),
    RateLimitPolicy(Arc<Sourced<crd::RateLimitPolicy>>),
    JwtPolicy(Arc<Sourced<crd::JwtPolicy>>),
    TelemetryPolicy(Arc<Sourced<crd::TelemetryPolicy>>),
    ExternalService(Arc<Sourced<crd::ExternalService>>),
    MeshConfig(Arc<Sourced<crd::MeshConfig>>),
}

impl Object {
    /// Whether it says what another says that had its place before. What nothing reads is in neither.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        fn same<T: PartialEq>(one: &Sourced<T>, other: &Sourced<T>) -> bool {
            one.name == other.name && one.value == other.value
        }
        match (self, other) {
            (Self::Service(one), Self::Service(other)) => same(one, other),
            (Self::EndpointSlice(one), Self::EndpointSlice(other)) => same(one, other),
            (Self::Pod(one), Self::Pod(other)) => same(one, other),
            (Self::Secret(one), Self::Secret(other)) => same(one, other),
            (Self::HttpRoute(one), Self::HttpRoute(other)) => same(one, other),
            (Self::GrpcRoute(one), Self::GrpcRoute(other)) => same(one, other),
            (Self::TcpRoute(one), Self::TcpRoute(other)) => same(one, other),
            (Self::TrafficPolicy(one), Self::TrafficPolicy(other)) => same(one, other),
            (Self::FaultPolicy(one), Self::FaultPolicy(other)) => same(one, other),
            (Self::RateLimitPolicy(one), Self::RateLimitPolicy(other)) => same(one, other),
            (Self::JwtPolicy(one), Self::JwtPolicy(other)) => same(one, other),
            (Self::TelemetryPolicy(one), Self::TelemetryPolicy(other)) => same(one, other),
            (Self::ExternalService(one), Self::ExternalService(other)) => same(one, other),
            (Self::MeshConfig(one), Self::MeshConfig(other)) => same(one, other),
            _ => false,
        }
    }

    /// The Secrets that it refers to.
    pub(super) fn secrets(&self) -> BTreeSet<ObjectName> {
        let (object, names): (&ObjectName, Vec<&String>) = match self {
            Self::TelemetryPolicy(policy) => {
                let webhooks = policy.value.spec.alerts.iter().filter_map(|alert| alert.webhook.as_ref());
                (&policy.name, webhooks.map(|webhook| &webhook.secret_ref.name).collect())
            }
            Self::JwtPolicy(policy) => {
                let providers = policy.value.spec.providers.iter();
                let secrets = providers.flat_map(crd::JwtProvider::secrets);
                (&policy.name, secrets.map(|secret| &secret.name).collect())
            }
            _ => return BTreeSet::new(),
        };
        let named = |name: &String| ObjectName { namespace: object.namespace.clone(), name: name.clone() };
        names.into_iter().map(named).collect()
    }
}

/// An object and where it comes from.
#[derive(Debug)]
pub struct Sourced<T> {
    /// Its namespace and name.
    pub name: ObjectName,
    /// What it says.
    pub value: T,
    /// Where it is written.
    pub origin: Origin,
}

/// Where an object is written: a place in a file, or in a cluster its name.
#[derive(Debug)]
pub struct Origin {
    file: Arc<Path>,
    positions: BTreeMap<String, Position>,
}

impl Origin {
    pub(super) fn new(file: Arc<Path>, positions: BTreeMap<String, Position>) -> Self {
        Self { file, positions }
    }

    /// That of a cluster's object.
    #[cfg(test)]
    pub(crate) fn of_cluster() -> Self {
        Self::new(Path::new("kubernetes").into(), BTreeMap::new())
    }

    /// The folder of the file; `None`: it is an object of a cluster, which has no positions.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.file.parent().filter(|_| !self.positions.is_empty())
    }

    /// Where a field is written, or else the nearest that contains it. The
    /// empty path is the object itself.
    pub fn locate(&self, field: &str) -> Location {
        let mut path = field;
        let position = loop {
            if let Some(position) = self.positions.get(path) {
                break *position;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None if path.is_empty() => break Position::default(),
                None => path = "",
            }
        };
        Location { file: self.file.clone(), line: position.line, column: position.column }
    }
}

/// An object's namespace and name; the namespace is empty for kinds of the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}
