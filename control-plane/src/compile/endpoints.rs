//! The endpoints of one service: its registered workloads, and what its
//! EndpointSlices add to them.
//!
//! An address and port that belong to a registered workload of the same
//! namespace *are* that workload and are spoken to under its identity. (What a
//! workload says about its addresses is not proven, so it may not attract
//! what another namespace lists.) A pod with a sidecar is spoken to as what it
//! is ([`super::pods`]). Everything else in a slice is outside the mesh. No
//! (address, port) appears twice, and a pod is one endpoint, however many
//! addresses it has.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use heddle_api::crd::{self, AddressType, EndpointConditions, EndpointSlice, SliceEndpoint};
use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;

use super::pods::{Found, Known, Meshed, Selected};
use super::services::{Port, is_tcp};
use crate::model::Registration;
use crate::source::ObjectName;

/// The registered workloads, by service and by address.
pub(super) struct Workloads<'a> {
    by_service: BTreeMap<&'a ServiceName, Vec<&'a Registration>>,
    by_address: HashMap<(&'a str, SocketAddr), &'a Registration>,
}

impl<'a> Workloads<'a> {
    pub(super) fn new(registrations: &'a [Arc<Registration>]) -> Self {
        let mut by_service: BTreeMap<_, Vec<&Registration>> = BTreeMap::new();
        for workload in registrations {
            by_service.entry(&workload.service).or_default().push(workload);
        }
        let mut by_address = HashMap::new();
        for workloads in by_service.values_mut() {
            workloads.sort_by(|a, b| {
                let order =
                    |w: &Registration| (w.instance.clone(), w.identity.clone(), w.address, w.inbound_port);
                order(a).cmp(&order(b))
            });
            workloads.dedup_by(|a, b| a.instance == b.instance);
            for workload in workloads.iter() {
                let inbound = SocketAddr::new(workload.address, workload.inbound_port);
                by_address.entry((workload.service.namespace(), inbound)).or_insert(*workload);
                if let Some(address) = workload.app_address {
                    by_address.entry((workload.service.namespace(), address)).or_insert(*workload);
                }
            }
        }
        Self { by_service, by_address }
    }

    /// The services that have workloads.
    pub(super) fn services(&self) -> impl Iterator<Item = &'a ServiceName> {
        self.by_service.keys().copied()
    }

    /// The workloads of a service, by instance.
    pub(super) fn of(&self, service: &ServiceName) -> &[&'a Registration] {
        self.by_service.get(service).map(Vec::as_slice).unwrap_or_default()
    }
}

/// What a service is made of.
pub(super) struct Parts<'a> {
    pub(super) service: &'a ServiceName,
    pub(super) ports: &'a [Port],
    /// The families of its addresses, the preferred one first.
    pub(super) families: &'a [AddressType],
    pub(super) slices: &'a [&'a EndpointSlice],
}

/// The endpoints of a service, and which pods with a sidecar it selects, some perhaps twice.
pub(super) fn compile(
    parts: &Parts<'_>,
    workloads: &Workloads<'_>,
    pods: &Known<'_>,
) -> (Vec<v1::Endpoint>, Vec<Selected>) {
    let Parts { service, ports, .. } = *parts;
    let mut endpoints = Endpoints {
        service,
        ports,
        made: BTreeMap::new(),
        plain: HashMap::new(),
        without_ports: BTreeMap::new(),
    };
    for workload in workloads.of(service) {
        let bindings = ports.iter().filter_map(|port| Some((port.number, port.resolve(workload)?)));
        endpoints.join(workload, bindings.collect(), Health::of(workload), &Hints::default());
    }
    for slice in parts.slices {
        endpoints.add_slice(slice, workloads, pods);
    }
    endpoints.serve_while_leaving();
    endpoints.keep_complete_zones();
    let selected = |draft: &Draft| {
        Some(Selected {
            pod: draft.pod.clone()?,
            zone: draft.endpoint.zone.clone(),
            ready: Some(draft.health == Health::Healthy),
            bindings: draft.bindings.iter().map(|(from, to)| (*from, *to)).collect(),
        })
    };
    let mut selected: Vec<Selected> = endpoints.made.values().filter_map(selected).collect();
    let without_ports = endpoints.without_ports.into_iter();
    selected.extend(without_ports.map(|(pod, zone)| Selected {
        pod,
        zone,
        ready: None,
        bindings: Vec::new(),
    }));
    (endpoints.made.into_values().map(|draft| draft.finish(parts.families)).collect(), selected)
}

struct Endpoints<'a> {
    service: &'a ServiceName,
    ports: &'a [Port],
    /// By id, in which order they are sent.
    made: BTreeMap<String, Draft>,
    /// The id of the endpoint outside the mesh that a service port reaches at (address, port).
    plain: HashMap<(u16, SocketAddr), String>,
    /// Pods with a sidecar, and their zones, that the service selects without a port of its own.
    without_ports: BTreeMap<ObjectName, String>,
}

#[derive(Default)]
struct Draft {
    endpoint: v1::Endpoint,
    bindings: BTreeMap<u16, u16>,
    health: Health,
    /// It is leaving, but still able to serve.
    serves_while_leaving: bool,
    /// Of a pod: where slices say that it is. One of them will do.
    addresses: Vec<IpAddr>,
    /// The pod with a sidecar that it is.
    pod: Option<ObjectName>,
}

impl Draft {
    fn finish(self, families: &[AddressType]) -> v1::Endpoint {
        let binding = |(service_port, target_port): (u16, u16)| v1::PortBinding {
            service_port: service_port.into(),
            target_port: target_port.into(),
        };
        let rank = |address: &IpAddr| {
            let family = if address.is_ipv4() { AddressType::IPv4 } else { AddressType::IPv6 };
            let preference = families.iter().position(|other| *other == family);
            (preference.unwrap_or(families.len()), *address)
        };
        let address = self.addresses.iter().min_by_key(|address| rank(address)).map(ToString::to_string);
        v1::Endpoint {
            address: address.unwrap_or(self.endpoint.address),
            bindings: self.bindings.into_iter().map(binding).collect(),
            health: self.health.on_the_wire().into(),
            ..self.endpoint
        }
    }
}

impl Endpoints<'_> {
    fn add_slice(&mut self, slice: &EndpointSlice, workloads: &Workloads<'_>, pods: &Known<'_>) {
        let targets = self.targets(slice);
        // The source has refused what is no weight.
        let weight = crd::weight(&slice.metadata.labels).ok().flatten();
        let namespace = self.service.namespace();
        for endpoint in &slice.endpoints {
            let health = Health::in_slice(endpoint.conditions);
            let hints = Hints::of(endpoint, weight);
            // The source has refused what is no address.
            for address in endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok()) {
                let address = address.to_canonical();
                let mut others = Vec::new();
                for (port, target) in &targets {
                    let target = SocketAddr::new(address, *target);
                    match workloads.by_address.get(&(namespace, target)) {
                        Some(workload) => {
                            let binding =
                                meshed_port(port, target, workload).map(|target| (port.number, target));
                            self.join(workload, binding.into_iter().collect(), health, &hints);
                        }
                        None => others.push((port.number, target)),
                    }
                }
                let leaving = serves_while_leaving(endpoint.conditions);
                let target = endpoint.target_ref.as_ref();
                match pods.find(namespace, target, address) {
                    Found::Meshed(pod) if targets.is_empty() => {
                        // Headless services need none: their clients dial any port of the pod.
                        self.without_ports.insert(pod.name.clone(), hints.zone.into());
                    }
                    Found::Meshed(pod) => {
                        let id = self.id_of_pod(pod.name);
                        self.add_pod(id, Some(pod), &others, health, leaving, &hints);
                    }
                    Found::Another => {}
                    Found::Stranger => match target.filter(|target| target.kind == "Pod") {
                        Some(pod) => {
                            let pod = ObjectName {
                                namespace: pod.namespace.clone().unwrap_or_else(|| namespace.into()),
                                name: pod.name.clone(),
                            };
                            let id = self.id_of_pod(&pod);
                            self.add_pod(id, None, &others, health, leaving, &hints);
                        }
                        None => self.add_plain(others, health, leaving, &hints),
                    },
                }
            }
        }
    }

    fn id_of_pod(&self, pod: &ObjectName) -> String {
        if pod.namespace == self.service.namespace() { pod.name.clone() } else { pod.to_string() }
    }

    /// Adds a pod, or what another slice knows about it.
    fn add_pod(
        &mut self,
        id: String,
        meshed: Option<&Meshed<'_>>,
        bindings: &[(u16, SocketAddr)],
        health: Health,
        leaving: bool,
        hints: &Hints<'_>,
    ) {
        if bindings.is_empty() {
            return;
        }
        let fresh = !self.made.contains_key(&id);
        let draft = self.made.entry(id.clone()).or_insert_with(|| Draft {
            endpoint: v1::Endpoint {
                id,
                identity: meshed.map_or_else(String::new, |pod| pod.identity.as_str().into()),
                intercepted: meshed.is_some(),
                score: meshed.map_or(0, |pod| pod.score),
                left_alone: meshed.map(Meshed::left_alone).unwrap_or_default(),
                ..v1::Endpoint::default()
            },
            health,
            pod: meshed.map(|pod| pod.name.clone()),
            ..Draft::default()
        });
        if !fresh && draft.addresses.is_empty() {
            // A registered workload of that name.
            return;
        }
        // It is in a slice of each family, and in two while slices are replaced: it serves if any says so.
        draft.health = draft.health.min(health);
        draft.serves_while_leaving |= leaving;
        hints.fill(&mut draft.endpoint);
        for (port, target) in bindings {
            if !draft.addresses.contains(&target.ip()) {
                draft.addresses.push(target.ip());
            }
            draft.bindings.entry(*port).or_insert(target.port());
        }
    }

    /// Where every endpoint is leaving, those that still serve are better than none (KEP-1669).
    fn serve_while_leaving(&mut self) {
        if self.made.values().any(|draft| draft.health == Health::Healthy) {
            return;
        }
        for draft in self.made.values_mut() {
            if draft.health == Health::Draining && draft.serves_while_leaving {
                draft.health = Health::Healthy;
            }
        }
    }

    /// Zones that not all endpoints are meant for would leave some of them without clients: then
    /// none are (KEP-2433).
    fn keep_complete_zones(&mut self) {
        let mut in_use = self.made.values().filter(|draft| draft.health == Health::Healthy);
        if in_use.any(|draft| draft.endpoint.for_zones.is_empty()) {
            for draft in self.made.values_mut() {
                draft.endpoint.for_zones.clear();
            }
        }
    }

    /// The ports of a slice, each with the service's port that leads there: the one of the same name.
    fn targets(&self, slice: &EndpointSlice) -> Vec<(Port, u16)> {
        let mut targets = Vec::new();
        for port in self.ports {
            let namesakes = self.ports.iter().filter(|other| other.name == port.name).count();
            let target = slice.ports.iter().filter(|candidate| is_tcp(candidate.protocol.as_deref())).find(
                |candidate| {
                    // Workloads without a Service object may have several ports without a name.
                    candidate.name == port.name && (namesakes == 1 || candidate.port == Some(port.number))
                },
            );
            if let Some(target) = target.and_then(|target| target.port) {
                targets.push((port.clone(), target));
            }
        }
        targets
    }

    /// Adds a workload, or what another source knows about it.
    fn join(
        &mut self,
        workload: &Registration,
        bindings: BTreeMap<u16, u16>,
        health: Health,
        hints: &Hints<'_>,
    ) {
        if bindings.is_empty() {
            return;
        }
        let id = if workload.service == *self.service {
            workload.instance.clone()
        } else {
            // Instances are told apart only within their own service.
            format!("{}/{}", workload.service, workload.instance)
        };
        // The registry has refused what is no weight.
        let weight = crd::weight(&workload.labels).ok().flatten();
        let draft = self.made.entry(id.clone()).or_insert_with(|| Draft {
            endpoint: v1::Endpoint {
                id,
                address: workload.address.to_string(),
                identity: workload.identity.as_str().into(),
                mesh_port: workload.inbound_port.into(),
                zone: if workload.zone.is_empty() { hints.zone.into() } else { workload.zone.clone() },
                weight: weight.or(hints.weight).unwrap_or_default(),
                score: if workload.health.score < 100 { workload.health.score } else { 0 },
                ..v1::Endpoint::default()
            },
            health: Health::of(workload),
            ..Draft::default()
        });
        // Each of the two may take the workload out, neither may put it back.
        draft.health = draft.health.max(health);
        // What it does not say itself, a slice may.
        hints.fill(&mut draft.endpoint);
        for (port, target) in bindings {
            draft.bindings.entry(port).or_insert(target);
        }
    }

    /// Adds an address outside the mesh, or what another slice knows about it.
    fn add_plain(
        &mut self,
        bindings: Vec<(u16, SocketAddr)>,
        health: Health,
        leaving: bool,
        hints: &Hints<'_>,
    ) {
        let known = bindings.iter().find_map(|binding| self.plain.get(binding)).cloned();
        let Some((port, first)) = bindings.first() else { return };
        let id = known.unwrap_or_else(|| match first.to_string() {
            // Another port of the service leads there already, as a part of another instance.
            taken if self.made.contains_key(&taken) => format!("{taken}@{port}"),
            free => free,
        });
        let draft = match self.made.get_mut(&id) {
            Some(draft) => {
                // While slices are replaced, one endpoint is in two of them: it serves if either says so.
                draft.health = draft.health.min(health);
                draft.serves_while_leaving |= leaving;
                draft
            }
            None => self.made.entry(id.clone()).or_insert(Draft {
                endpoint: v1::Endpoint {
                    id: id.clone(),
                    address: first.ip().to_string(),
                    zone: hints.zone.into(),
                    weight: hints.weight.unwrap_or_default(),
                    for_zones: hints.for_zones.clone(),
                    ..v1::Endpoint::default()
                },
                health,
                serves_while_leaving: leaving,
                ..Draft::default()
            }),
        };
        let mut others = Vec::new();
        for (port, target) in bindings {
            // One that another instance has would be reached twice.
            if self.plain.get(&(port, target)).is_some_and(|other| *other != id) {
                continue;
            }
            let bound = *draft.bindings.entry(port).or_insert(target.port());
            if bound == target.port() {
                self.plain.insert((port, target), id.clone());
            } else {
                others.push((port, target));
            }
        }
        // The same host, but another instance on it.
        self.add_plain(others, health, leaving, hints);
    }
}

/// What a slice says about an endpoint besides where it is.
#[derive(Debug, Default)]
struct Hints<'a> {
    /// Empty if it does not say.
    zone: &'a str,
    weight: Option<u32>,
    /// The zones whose clients it is meant for.
    for_zones: Vec<String>,
}

impl<'a> Hints<'a> {
    fn of(endpoint: &'a SliceEndpoint, weight: Option<u32>) -> Self {
        let zones = endpoint.hints.iter().flat_map(|hints| &hints.for_zones);
        Self {
            zone: endpoint.zone.as_deref().unwrap_or_default(),
            weight,
            for_zones: zones.map(|zone| zone.name.clone()).collect(),
        }
    }

    /// Says what nobody has said yet.
    fn fill(&self, endpoint: &mut v1::Endpoint) {
        if endpoint.zone.is_empty() {
            endpoint.zone = self.zone.into();
        }
        if endpoint.weight == 0 {
            endpoint.weight = self.weight.unwrap_or_default();
        }
        if endpoint.for_zones.is_empty() {
            endpoint.for_zones.clone_from(&self.for_zones);
        }
    }
}

/// Whether an endpoint that is leaving could be used if there were no other; absent conditions
/// follow readiness (discovery/v1, `EndpointConditions`).
fn serves_while_leaving(conditions: EndpointConditions) -> bool {
    // Where a service publishes addresses that are not ready, these are to be used to the end.
    let published = conditions.ready == Some(true);
    conditions.terminating == Some(true)
        && (published || conditions.serving.or(conditions.ready).unwrap_or(true))
}

/// The application port that a service's port means at a workload that a slice listed by `target`.
fn meshed_port(port: &Port, target: SocketAddr, workload: &Registration) -> Option<u16> {
    port.resolve(workload)
        .or_else(|| workload.ports.iter().map(|port| port.port).find(|number| *number == target.port()))
        .or(match workload.ports.as_slice() {
            [only] => Some(only.port),
            _ => None,
        })
}

/// Whether an endpoint may get traffic; the greater is the worse.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    #[default]
    Healthy,
    Unhealthy,
    Draining,
}

impl Health {
    fn of(workload: &Registration) -> Self {
        match (workload.draining, workload.ready) {
            (true, _) => Self::Draining,
            (false, true) => Self::Healthy,
            (false, false) => Self::Unhealthy,
        }
    }

    /// Absent conditions are good news (discovery/v1, `EndpointConditions`).
    fn in_slice(conditions: EndpointConditions) -> Self {
        match (conditions.terminating.unwrap_or(false), conditions.ready.unwrap_or(true)) {
            (true, _) => Self::Draining,
            (false, true) => Self::Healthy,
            (false, false) => Self::Unhealthy,
        }
    }

    fn on_the_wire(self) -> v1::EndpointHealth {
        match self {
            Self::Healthy => v1::EndpointHealth::Healthy,
            Self::Unhealthy => v1::EndpointHealth::Unhealthy,
            Self::Draining => v1::EndpointHealth::Draining,
        }
    }
}
