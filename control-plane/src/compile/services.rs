//! Services from Service objects, EndpointSlices and registered workloads.
//!
//! A Service object says which ports there are. Where there is none, the
//! registered workloads of that name make the service by themselves.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use heddle_api::crd::{self, ExternalServiceSpec, IntOrString, Kind};
use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;

use super::endpoints::{self, Workloads};
use super::pods::{Collector, Known, Pods};
use super::{Inputs, protocol};
use crate::model::{RegisteredPort, Registration};
use crate::source::Objects;

/// The label by which an EndpointSlice names its service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// What the inputs say about services; policies are not in it.
pub(super) struct Services {
    pub(super) resources: BTreeMap<ServiceName, v1::Service>,
    pub(super) addresses: BTreeMap<IpAddr, ServiceName>,
    pub(super) declared: Declared,
    /// Those without an address of their own, though they are declared.
    pub(super) headless: BTreeSet<ServiceName>,
    /// Those that an ExternalService is, or adds to, and whether there is a Service of that name, too.
    pub(super) external: BTreeMap<ServiceName, bool>,
    pub(super) pods: Pods,
}

impl Services {
    /// The service that an object of this kind and name is: a Service or an ExternalService.
    pub(super) fn declared_as(&self, kind: &str, name: &ServiceName) -> Option<&v1::Service> {
        let external = self.external.get(name);
        let declared = match kind {
            ExternalServiceSpec::KIND => external.is_some(),
            // Workloads that registered without a Service are one, too.
            _ => external.is_none_or(|also| *also),
        };
        self.resources.get(name).filter(|_| declared)
    }
}

/// A port of a service and where it leads.
#[derive(Debug, Clone)]
pub(super) struct Port {
    pub(super) number: u16,
    pub(super) name: String,
    protocol: v1::AppProtocol,
    target: IntOrString,
}

impl Port {
    /// The port of `workload` that this port leads to.
    pub(super) fn resolve(&self, workload: &Registration) -> Option<u16> {
        workload.ports.iter().find(|port| self.leads_to(port)).map(|port| port.port)
    }

    fn leads_to(&self, port: &RegisteredPort) -> bool {
        match &self.target {
            IntOrString::Int(number) => port.port == *number,
            IntOrString::String(name) => port.name == *name,
        }
    }
}

pub(super) fn compile(inputs: &Inputs<'_>) -> Services {
    let workloads = Workloads::new(inputs.registrations);
    let known_pods = Known::new(inputs.objects, &inputs.mesh.trust_domain, inputs.scores);
    let mut pods = Collector::new(&known_pods, &zones(inputs.objects));
    let mut slices: BTreeMap<ServiceName, Vec<&crd::EndpointSlice>> = BTreeMap::new();
    for (name, slice) in &inputs.objects.endpoint_slices {
        let service = slice.value.metadata.labels.get(SERVICE_LABEL);
        let service = service.and_then(|service| ServiceName::new(&name.namespace, service).ok());
        if let Some(service) = service {
            slices.entry(service).or_default().push(&slice.value);
        }
    }
    let objects: BTreeMap<ServiceName, &crd::Service> = inputs
        .objects
        .services
        .iter()
        // An alias is neither a parent nor a backend of routes (GEP-1294).
        .filter(|(_, object)| object.value.external_name().is_none())
        // The source lets no other names through.
        .filter_map(|(name, object)| {
            Some((ServiceName::new(&name.namespace, &name.name).ok()?, &object.value))
        })
        .collect();
    let mut services = Services {
        resources: BTreeMap::new(),
        addresses: BTreeMap::new(),
        declared: Declared::default(),
        headless: BTreeSet::new(),
        external: BTreeMap::new(),
        pods: Pods::default(),
    };
    let mut declared = BTreeMap::new();
    let names: BTreeSet<&ServiceName> = objects.keys().chain(workloads.services()).collect();
    for name in names {
        let (object, registered) = (objects.get(name), workloads.of(name));
        let mut ports = object.map_or_else(|| registered_ports(registered), |object| declared_ports(object));
        if object.is_some() {
            declared.insert(name.clone(), ports.clone());
        }
        let headless = object.is_some_and(|object| object.spec.cluster_ip.as_deref() == Some("None"));
        if headless {
            services.headless.insert(name.clone());
        }
        for port in ports.iter_mut().filter(|port| port.protocol == v1::AppProtocol::Unspecified) {
            port.protocol = unanimous_protocol(port, registered);
        }
        let slices = slices.get(name).map(Vec::as_slice).unwrap_or_default();
        let addresses = object.map_or_else(Vec::new, |object| cluster_ips(object));
        for address in &addresses {
            services.addresses.entry(*address).or_insert_with(|| name.clone());
        }
        let families = object.map_or(&[][..], |object| &object.spec.ip_families);
        let parts = endpoints::Parts { service: name, ports: &ports, families, slices };
        let (endpoints, selected) = endpoints::compile(&parts, &workloads, &known_pods);
        let ports: Vec<v1::ServicePort> = ports.into_iter().map(service_port).collect();
        for selected in selected {
            pods.add(name, headless, &ports, selected);
        }
        let resource = v1::Service {
            namespace: name.namespace().into(),
            name: name.name().into(),
            endpoints,
            ports,
            addresses: addresses.iter().map(ToString::to_string).collect(),
            ..v1::Service::default()
        };
        services.resources.insert(name.clone(), resource);
    }
    services.declared = Declared(Arc::new(declared));
    services.pods = pods.finish();
    services
}

/// The zones of nodes, as far as any endpoint runs there: nodes themselves are not watched.
fn zones(objects: &Objects) -> HashMap<&str, &str> {
    let endpoints = objects.endpoint_slices.values().flat_map(|slice| &slice.value.endpoints);
    endpoints
        .filter_map(|endpoint| Some((endpoint.node_name.as_deref()?, endpoint.zone.as_deref()?)))
        .collect()
}

fn declared_ports(service: &crd::Service) -> Vec<Port> {
    let tcp = service.spec.ports.iter().filter(|port| is_tcp(port.protocol.as_deref()));
    let mut ports: Vec<Port> = tcp
        .map(|port| Port {
            number: port.port,
            name: port.name.clone(),
            protocol: protocol::declared(port.app_protocol.as_deref(), &port.name),
            target: port.target_port.clone().unwrap_or(IntOrString::Int(port.port)),
        })
        .collect();
    ports.sort_by_key(|port| port.number);
    ports.dedup_by_key(|port| port.number);
    ports
}

/// Kubernetes' default protocol is TCP; others are outside the mesh.
pub(super) fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}

/// The ports of a service that exists by its workloads alone.
fn registered_ports(registered: &[&Registration]) -> Vec<Port> {
    let mut ports: BTreeMap<u16, Port> = BTreeMap::new();
    for port in registered.iter().flat_map(|workload| &workload.ports) {
        ports.entry(port.port).or_insert_with(|| Port {
            number: port.port,
            name: port.name.clone(),
            protocol: v1::AppProtocol::Unspecified,
            target: IntOrString::Int(port.port),
        });
    }
    ports.into_values().collect()
}

/// What the workloads say about a port of which the service says nothing; those
/// that contradict each other have said nothing either, and the bytes decide.
fn unanimous_protocol(port: &Port, registered: &[&Registration]) -> v1::AppProtocol {
    let said: Vec<v1::AppProtocol> = registered
        .iter()
        .flat_map(|workload| workload.ports.iter().find(|candidate| port.leads_to(candidate)))
        .map(|port| port.protocol)
        .filter(|protocol| *protocol != v1::AppProtocol::Unspecified)
        .collect();
    match said.split_first() {
        Some((first, others)) if others.iter().all(|other| other == first) => *first,
        _ => v1::AppProtocol::Unspecified,
    }
}

fn cluster_ips(service: &crd::Service) -> Vec<IpAddr> {
    let first = service.spec.cluster_ip.as_slice();
    let listed = if service.spec.cluster_ips.is_empty() { first } else { &service.spec.cluster_ips };
    // "None" marks a service without an address.
    let parsed = listed.iter().filter_map(|address| address.parse::<IpAddr>().ok());
    let mut addresses: Vec<IpAddr> = parsed.map(|address| address.to_canonical()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn service_port(port: Port) -> v1::ServicePort {
    v1::ServicePort {
        port: port.number.into(),
        name: port.name,
        protocol: port.protocol.into(),
        ..v1::ServicePort::default()
    }
}

/// Has clients keep to their zone, as hints ask them to, unless a policy says how they balance.
pub(super) fn prefer_zones(service: &mut v1::Service) {
    let prefer = |policy: &mut v1::TrafficPolicy| {
        let preferring = || v1::LoadBalancer { prefer_zone: true, ..v1::LoadBalancer::default() };
        policy.load_balancer.get_or_insert_with(preferring);
    };
    prefer(service.policy.get_or_insert_default());
    service.ports.iter_mut().filter_map(|port| port.policy.as_mut()).for_each(prefer);
}

/// What Service objects declare about the ports of their workloads.
#[derive(Debug, Default, Clone)]
pub(crate) struct Declared(Arc<BTreeMap<ServiceName, Vec<Port>>>);

impl Declared {
    /// A port of a workload of `service`, with the protocol that its sidecar is to expect there:
    /// what the workload said, or else what the Service says of the port that leads to it.
    pub(crate) fn port(&self, service: &ServiceName, port: &RegisteredPort) -> v1::ServicePort {
        let mut leading =
            self.0.get(service).into_iter().flatten().filter(|declared| declared.leads_to(port));
        let protocol = match port.protocol {
            v1::AppProtocol::Unspecified => {
                leading.next().map_or(v1::AppProtocol::Unspecified, |port| port.protocol)
            }
            said => said,
        };
        v1::ServicePort {
            port: port.port.into(),
            name: port.name.clone(),
            protocol: protocol.into(),
            ..v1::ServicePort::default()
        }
    }
}
