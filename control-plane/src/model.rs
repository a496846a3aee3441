//! What the control plane knows and what sidecars may ask it for.
//!
//! A [`Model`] is immutable. Each resource was encoded once; every subscriber
//! shares its bytes, and a resource that did not change between two models is
//! the very same allocation in both, so that pointer equality says "unchanged".
//! Making a model is left to [`crate::compile`], sending it to the server.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use heddle_api::crd::ParentRef;
use heddle_api::discovery::{ResourceType, v1};
use heddle_api::name::ServiceName;
use heddle_api::spiffe::SpiffeId;

use crate::compile::{
    Accepted, AlertRules, Attachments, Declared, FieldOrigin, Guarded, Hosts, KnownSecrets, Limited,
    Measured, Pods, PortRef, RuleRef, Telemetry,
};
use crate::keys::WantedKeys;
use crate::source::{Location, ObjectName};

/// Everything that one compilation made.
#[derive(Debug, Default, Clone)]
pub struct Model {
    /// What sidecars can subscribe to, save their own [`v1::Workload`] and the trust bundle.
    pub resources: BTreeMap<ResourceKey, Arc<Resource>>,
    /// What became of each policy and route, ordered by kind, namespace and name.
    pub statuses: Vec<PolicyStatus>,
    pub(crate) accepted: Accepted,
    pub(crate) telemetry: Telemetry,
    pub(crate) alert_rules: AlertRules,
    pub(crate) declared: Declared,
    pub(crate) attachments: Attachments,
    pub(crate) hosts: Hosts,
    pub(crate) limited: Limited,
    pub(crate) pods: Pods,
    pub(crate) guarded: Guarded,
    pub(crate) wanted_keys: WantedKeys,
    pub(crate) known_secrets: KnownSecrets,
    pub(crate) measured: Measured,
}

impl Model {
    /// The resource of type `T` with that name.
    pub fn resource<T: ResourceType>(&self, name: &str) -> Option<&Arc<Resource>> {
        self.resources.get(&ResourceKey { type_url: T::TYPE_URL, name: name.into() })
    }

    /// The policies that are refused here and were not refused for the same reasons in `before`.
    pub fn refused_since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a PolicyStatus> {
        let known = |status: &PolicyStatus| {
            before.statuses.iter().any(|old| {
                (old.kind, &old.object, &old.refusals) == (status.kind, &status.object, &status.refusals)
            })
        };
        self.statuses.iter().filter(move |status| !status.refusals.is_empty() && !known(status))
    }

    /// Where each field of the traffic policy comes from that requests to
    /// `service` meet: at one of its ports by name, and by one rule of a route.
    pub fn traffic_origins(
        &self,
        service: &ServiceName,
        port: Option<&str>,
        rule: Option<RuleRef<'_>>,
    ) -> Vec<FieldOrigin> {
        self.attachments.origins(service, port, rule)
    }

    /// Where each field of the traffic policy comes from that a request meets
    /// which dialled `front` and goes to `backend`, by a rule or by none.
    pub fn origins_of_request(
        &self,
        front: PortRef<'_>,
        rule: Option<RuleRef<'_>>,
        backend: PortRef<'_>,
    ) -> Vec<FieldOrigin> {
        self.attachments.origins_of_request(front, rule, backend)
    }

    /// A rule by its name, or by its place in the route if it has none.
    pub(crate) fn rule<'a>(&self, kind: &'a str, route: &'a ObjectName, rule: &'a str) -> RuleRef<'a> {
        RuleRef { kind, route, rule: self.accepted.has_rule(kind, route, rule).then_some(rule) }
    }

    /// What the sidecar of `registration` needs for its own side, the resource "self".
    pub fn workload_for(&self, registration: &Registration) -> v1::Workload {
        let telemetry = self.telemetry.of(registration);
        let ports = registration.ports.iter().map(|port| self.declared.port(&registration.service, port));
        v1::Workload {
            namespace: registration.service.namespace().into(),
            service: registration.service.name().into(),
            ports: ports.collect(),
            telemetry: Some(telemetry),
            zone: registration.zone.clone(),
            hosts: self.hosts.of(registration.service.namespace()),
            rate_limits: self.limited.of(registration),
            jwt_policies: self.guarded.of(registration),
        }
    }

    /// The resource "self" of a pod's sidecar, which proved `identity` and names its pod by UID or
    /// name; `None` if that is no pod of the identity.
    pub(crate) fn workload_of_pod(&self, identity: &SpiffeId, instance: &str) -> Option<v1::Workload> {
        let mut workloads = self.pods.workload(identity, instance).into_iter();
        let mut workload = self.workload_for(&workloads.next()?);
        workload.hosts = self.hosts.of_pods(identity.namespace());
        // Clients may know it by any of its addresses.
        let others: Vec<_> = workloads.collect();
        for limit in others.iter().flat_map(|other| self.limited.of(other)) {
            let same = |known: &v1::RateLimit| (&known.source, &known.name) == (&limit.source, &limit.name);
            if !workload.rate_limits.iter().any(same) {
                workload.rate_limits.push(limit);
            }
        }
        for policy in others.iter().flat_map(|other| self.guarded.of(other)) {
            match workload.jwt_policies.iter_mut().find(|known| known.source == policy.source) {
                Some(known) => {
                    let more = policy.scopes.into_iter().filter(|scope| !known.scopes.contains(scope));
                    let more: Vec<_> = more.collect();
                    known.scopes.extend(more);
                }
                None => workload.jwt_policies.push(policy),
            }
        }
        Some(workload)
    }

    /// The resource of an address that is a pod's.
    pub(crate) fn address_of_pod(&self, address: IpAddr) -> Option<v1::Address> {
        let (mut service, headless) = self.pods.at(address)?;
        service.policy = headless.and_then(|headless| self.attachments.service(headless));
        let (namespace, name) = (service.namespace.clone(), service.name.clone());
        Some(v1::Address { namespace, name, workload: Some(service) })
    }
}

/// What identifies a resource to its subscribers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceKey {
    /// [`ResourceType::TYPE_URL`] of its message.
    pub type_url: &'static str,
    /// Its name: "namespace/name" of a service, the literal of an address, "mesh".
    pub name: String,
}

/// One encoded resource.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// A hash of the bytes, so that equal content has an equal version in every
    /// replica and over restarts of the control plane.
    pub version: String,
    /// The encoded message.
    pub bytes: Bytes,
}

impl Resource {
    /// Encodes `message`.
    pub fn encode(message: &impl ResourceType) -> Self {
        use std::fmt::Write;
        let bytes = Bytes::from(message.encode_to_vec());
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
        // 128 bits: no two contents of one name will ever meet, at half the size in each subscription.
        let version = digest.as_ref()[..16].iter().fold(String::with_capacity(32), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        Self { version, bytes }
    }
}

/// A workload outside Kubernetes, as its sidecar described it over its live stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Unique among the workloads of its service, stable over reconnects.
    pub instance: String,
    /// What its sidecar proved to be.
    pub identity: SpiffeId,
    /// The service that it belongs to, in the namespace of its identity.
    pub service: ServiceName,
    /// Where peers reach its inbound listener.
    pub address: IpAddr,
    /// The port of its inbound listener.
    pub inbound_port: u16,
    /// What the application listens on.
    pub ports: Vec<RegisteredPort>,
    /// What selectors match.
    pub labels: BTreeMap<String, String>,
    /// The zone that it runs in, empty if unknown.
    pub zone: String,
    /// Whether its own health check passes.
    pub ready: bool,
    /// Whether it is leaving: it finishes what it has and takes nothing new.
    pub draining: bool,
    /// How it is, as its own sidecar sees it.
    pub health: Health,
    /// Its sidecar's admin listener.
    pub admin: Option<SocketAddr>,
    /// The application's process, 0 if unknown.
    pub pid: u32,
    /// The application's own address where that was given explicitly; an
    /// endpoint of that address in an EndpointSlice is this workload.
    pub app_address: Option<SocketAddr>,
}

impl Registration {
    /// Whether compiling `other` in its place gives the same. The state's name and cause, the
    /// admin listener and the process are for people.
    pub fn compiles_like(&self, other: &Self) -> bool {
        let compiled = |it: &Self| {
            let health = Health { score: it.health.share(), ..Health::default() };
            Self { health, admin: None, pid: 0, ..it.clone() }
        };
        compiled(self) == compiled(other)
    }
}

/// How a workload fares.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// Its state.
    pub state: v1::WorkloadHealth,
    /// The percentage of its share of traffic that it should get, 1 to 100; 0: not known, all of it.
    pub score: u32,
    /// What keeps the score down, empty if nothing does.
    pub cause: String,
}

impl Health {
    /// The percentage of its share that it gets.
    pub fn share(&self) -> u32 {
        if self.score == 0 { 100 } else { self.score }
    }
}

/// The percentages of their shares of traffic that pods should get, by UID, where that is not all
/// of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scores(HashMap<String, (SpiffeId, u32)>);

impl Scores {
    /// That of the pod with this UID, if it proved to be `identity`; 0: all of it.
    pub fn of(&self, identity: &SpiffeId, uid: &str) -> u32 {
        let said = self.0.get(uid).filter(|(proved, _)| proved == identity);
        said.map_or(0, |(_, score)| *score)
    }
}

impl FromIterator<(String, (SpiffeId, u32))> for Scores {
    fn from_iter<I: IntoIterator<Item = (String, (SpiffeId, u32))>>(scores: I) -> Self {
        Self(scores.into_iter().collect())
    }
}

/// A port of a registered workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredPort {
    /// Empty if it has none.
    pub name: String,
    /// The application's port.
    pub port: u16,
    /// What was declared about its bytes.
    pub protocol: v1::AppProtocol,
}

/// What became of a policy or a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyStatus {
    /// Its kind, such as `TrafficPolicy`.
    pub kind: &'static str,
    /// Its namespace and name.
    pub object: ObjectName,
    /// The generation that was judged (Kubernetes), 0 if it has none.
    pub generation: i64,
    /// Why it was refused; empty if it was accepted.
    pub refusals: Vec<Refusal>,
    /// What applies now.
    pub in_force: InForce,
    /// Targets or parents that do not exist, as "Kind namespace/name".
    pub unresolved: Vec<String>,
    /// What became of a route at each Service that it attaches to; empty for policies.
    pub parents: Vec<ParentStatus>,
}

/// What became of a route at one of its parents (Gateway API, `RouteParentStatus`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentStatus {
    /// The parent, as the route names it.
    pub parent: ParentRef,
    /// `Accepted` and `ResolvedRefs`, and `PartiallyInvalid` where it is true.
    pub conditions: Vec<Condition>,
    /// The generation of the older version that is accepted in place of the judged one, if one is.
    pub last_good: Option<i64>,
}

/// A statement about a route (meta/v1 `Condition`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Its type, such as `Accepted`.
    pub kind: &'static str,
    /// Whether it is true.
    pub status: bool,
    /// Why, as one of the words of the Gateway API.
    pub reason: &'static str,
    /// Why, in a sentence.
    pub message: String,
}

/// Which version of a policy applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InForce {
    /// The one that was judged.
    Current,
    /// The one was refused; the last one that was accepted still applies.
    LastGood,
    /// None was ever accepted.
    Nothing,
}

/// One reason to refuse a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The field, such as `spec.retry.hedge`.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
    /// Where it is written, if that is known.
    pub location: Option<Location>,
}
