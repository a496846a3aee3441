//! Which policies and routes are accepted, and which version of each is in force.

use std::collections::BTreeMap;
use std::sync::Arc;

use heddle_api::crd::{
    ExternalServiceSpec, FaultPolicySpec, GrpcRoute, HttpRoute, JwtPolicySpec, Kind, MeshConfigSpec,
    Metadata, Object, RateLimitPolicySpec, Route, RouteSpec, TcpRoute, TelemetryPolicySpec,
    TrafficPolicySpec, Violation,
};

use crate::model::{InForce, PolicyStatus, Refusal};
use crate::source::{ObjectName, Sourced};

/// An object that is judged as a whole.
pub(super) trait Judged {
    /// Its kind, such as `TrafficPolicy`.
    const KIND: &'static str;

    fn metadata(&self) -> &Metadata;
}

impl<S: Kind> Judged for Object<S> {
    const KIND: &'static str = S::KIND;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

impl<S: RouteSpec> Judged for Route<S> {
    const KIND: &'static str = S::KIND;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

/// Objects of one kind by name.
pub(super) type Versions<T> = BTreeMap<ObjectName, Arc<Sourced<T>>>;

/// Policies of one kind by name.
pub(super) type Policies<S> = Versions<Object<S>>;

/// The version of each policy and route that is in force.
#[derive(Debug, Default, Clone)]
pub(crate) struct Accepted {
    pub(super) traffic: Policies<TrafficPolicySpec>,
    pub(super) faults: Policies<FaultPolicySpec>,
    pub(super) rate_limits: Policies<RateLimitPolicySpec>,
    pub(super) jwt: Policies<JwtPolicySpec>,
    pub(super) telemetry: Policies<TelemetryPolicySpec>,
    pub(super) mesh: Policies<MeshConfigSpec>,
    pub(super) external: Policies<ExternalServiceSpec>,
    pub(super) http_routes: Versions<HttpRoute>,
    pub(super) grpc_routes: Versions<GrpcRoute>,
    pub(super) tcp_routes: Versions<TcpRoute>,
}

impl Accepted {
    /// Whether a rule of the route has that name.
    pub(crate) fn has_rule(&self, kind: &str, route: &ObjectName, rule: &str) -> bool {
        fn named<S: RouteSpec>(routes: &Versions<Route<S>>, route: &ObjectName, rule: &str) -> bool {
            routes
                .get(route)
                .is_some_and(|route| route.value.spec.rule_names().any(|name| name == Some(rule)))
        }
        match kind {
            "HTTPRoute" => named(&self.http_routes, route, rule),
            "GRPCRoute" => named(&self.grpc_routes, route, rule),
            _ => named(&self.tcp_routes, route, rule),
        }
    }
}

/// The versions in force of `objects`, of which `refuse` says what is wrong
/// and `unresolved` which targets do not exist.
pub(super) fn judge<T: Judged>(
    objects: &Versions<T>,
    previous: &Versions<T>,
    statuses: &mut Vec<PolicyStatus>,
    refuse: impl Fn(&T) -> Vec<Violation>,
    unresolved: impl Fn(&Sourced<T>) -> Vec<String>,
) -> Versions<T> {
    let mut accepted = Versions::new();
    for (name, object) in objects {
        let refusals: Vec<Refusal> = refuse(&object.value)
            .into_iter()
            .map(|violation| Refusal {
                location: Some(object.origin.locate(&violation.path)),
                path: violation.path,
                message: violation.message,
            })
            .collect();
        let (in_force, version) = match (refusals.is_empty(), previous.get(name)) {
            (true, _) => (InForce::Current, Some(object)),
            (false, Some(last_good)) => (InForce::LastGood, Some(last_good)),
            (false, None) => (InForce::Nothing, None),
        };
        if let Some(version) = version {
            accepted.insert(name.clone(), version.clone());
        }
        statuses.push(PolicyStatus {
            kind: T::KIND,
            object: name.clone(),
            generation: object.value.metadata().generation,
            refusals,
            in_force,
            unresolved: unresolved(object),
            parents: Vec::new(),
        });
    }
    accepted
}

/// The objects from the oldest to the youngest, as ties are decided: by
/// creation, then by namespace and name. Files know no creation; what comes
/// from them counts as older than what does.
pub(super) fn oldest_first<T: Judged>(objects: &Versions<T>) -> Vec<&Arc<Sourced<T>>> {
    let mut sorted: Vec<_> = objects.values().collect();
    sorted.sort_by(|a, b| {
        let (older, younger) = (a.value.metadata(), b.value.metadata());
        let by_age = older.creation_timestamp.cmp(&younger.creation_timestamp);
        by_age.then_with(|| a.name.cmp(&b.name))
    });
    sorted
}
