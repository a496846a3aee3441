//! ExternalServices: names outside the mesh become services like those of the
//! registry, with endpoints of both kinds at their levels.
//!
//! The registry comes first: an ExternalService takes neither the name of a
//! Service that it does not lead to nor a host that is a Service's own name.
//! References are followed within the registry alone, so that none leads in a
//! circle. Names of the DNS are left to the sidecars.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use heddle_api::crd::{
    ExternalEndpoint, ExternalPort, ExternalProtocol, ExternalService, ExternalServiceSpec, Kind,
    MESH_POLICY_NAMESPACE, PortNumber, RegistryService, TlsOrigination, Violation,
};
use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;

use super::policies::{Policies, oldest_first};
use super::services::Services;
use crate::model::{InForce, PolicyStatus};
use crate::source::{ObjectName, Sourced};

type Versions = Policies<ExternalServiceSpec>;

/// What the names of all objects say about one of them.
pub(super) struct Claims<'a> {
    services: &'a Services,
    cluster_domain: &'a str,
    /// Who was the first to name a host, by namespace and host.
    hosts: BTreeMap<(&'a str, &'a str), &'a ObjectName>,
}

impl<'a> Claims<'a> {
    pub(super) fn new(objects: &'a Versions, services: &'a Services, cluster_domain: &'a str) -> Self {
        let mut hosts = BTreeMap::new();
        for object in oldest_first(objects) {
            for host in &object.value.spec.hosts {
                hosts.entry((object.name.namespace.as_str(), host.as_str())).or_insert(&object.name);
            }
        }
        Self { services, cluster_domain, hosts }
    }

    /// What an object claims that is another's.
    pub(super) fn refuse(&self, object: &ExternalService) -> Vec<Violation> {
        let namespace = object.metadata.namespace();
        let mut found = Vec::new();
        let mut refuse = |path: String, message: String| found.push(Violation { path, message });
        if let Some(service) = self.hidden(object) {
            let message = format!(
                "is that of Service {service}, which would be hidden; name it among the endpoints to add to it"
            );
            refuse("metadata.name".into(), message);
        }
        for (index, host) in object.spec.hosts.iter().enumerate() {
            let (path, host) = (format!("spec.hosts[{index}]"), host.as_str());
            let domain = self.cluster_domain;
            if host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')) {
                refuse(path, format!("{host:?} is in the cluster's domain, {domain}"));
                continue;
            }
            if let Some(service) = self.named(host, namespace) {
                refuse(path, format!("{host:?} is the name of Service {service}"));
                continue;
            }
            let first = self.hosts.get(&(namespace, host));
            if let Some(first) = first.filter(|first| first.name != object.metadata.name) {
                refuse(path, format!("{host:?} is a host of ExternalService {first}"));
            }
        }
        found
    }

    /// The Service whose name a host is, as clients in `namespace` write it.
    fn named(&self, host: &str, namespace: &str) -> Option<ServiceName> {
        let service = ServiceName::from_host(host, namespace, self.cluster_domain)?;
        self.services.resources.contains_key(&service).then_some(service)
    }

    /// The hosts of the objects in force, without those that have become the name of a Service since.
    pub(super) fn hosts(&self, accepted: &Versions) -> Hosts {
        Hosts::new(accepted, |host, namespace| self.named(host, namespace).is_none())
    }

    /// The Service of the object's own name, if it does not lead there.
    fn hidden(&self, object: &ExternalService) -> Option<ServiceName> {
        let name = ServiceName::new(object.metadata.namespace(), &object.metadata.name).ok()?;
        let leads =
            object.spec.endpoints.iter().any(|endpoint| target(endpoint, &name).as_ref() == Some(&name));
        (self.services.resources.contains_key(&name) && !leads).then_some(name)
    }

    /// Services that an object leads to and that do not exist.
    pub(super) fn unresolved(&self, object: &Sourced<ExternalService>) -> Vec<String> {
        let Some(own) = service_name(&object.name) else { return Vec::new() };
        let targets = object.value.spec.endpoints.iter().filter_map(|endpoint| target(endpoint, &own));
        let missing = targets.filter(|name| !self.services.resources.contains_key(name));
        missing.map(|name| format!("Service {name}")).collect()
    }

    /// Takes out of force what was accepted before there was a Service of its name.
    pub(super) fn withdraw(&self, accepted: &mut Versions, statuses: &mut [PolicyStatus]) {
        accepted.retain(|_, object| self.hidden(&object.value).is_none());
        let judged = statuses.iter_mut().filter(|status| status.kind == ExternalServiceSpec::KIND);
        for status in judged.filter(|status| !accepted.contains_key(&status.object)) {
            status.in_force = InForce::Nothing;
        }
    }
}

/// The service that an object becomes.
fn service_name(object: &ObjectName) -> Option<ServiceName> {
    // The source lets no other names through.
    ServiceName::new(&object.namespace, &object.name).ok()
}

/// The service of the registry that an endpoint of `own` stands for.
fn target(endpoint: &ExternalEndpoint, own: &ServiceName) -> Option<ServiceName> {
    let RegistryService { name, namespace } = endpoint.service.as_ref()?;
    ServiceName::new(namespace.as_deref().unwrap_or(own.namespace()), name).ok()
}

/// Adds the services that the objects in force are to those of the registry.
pub(super) fn add(accepted: &Versions, services: &mut Services) {
    let made: Vec<_> = accepted
        .values()
        .filter_map(|object| {
            let name = service_name(&object.name)?;
            let service = service(&name, &object.value.spec, services)?;
            Some((name, service))
        })
        .collect();
    for (name, service) in made {
        let before = services.resources.insert(name.clone(), service);
        services.external.insert(name, before.is_some());
    }
}

/// `None` if the roots of a port cannot be read, which its validation has excluded: without them
/// others would be trusted.
fn service(name: &ServiceName, spec: &ExternalServiceSpec, registry: &Services) -> Option<v1::Service> {
    let mut made = v1::Service {
        namespace: name.namespace().into(),
        name: name.name().into(),
        ports: spec.ports.iter().map(|said| port(said, spec)).collect::<Option<_>>()?,
        ..v1::Service::default()
    };
    if let Some(hybrid) = registry.resources.get(name) {
        // What it was before, it still is.
        made.addresses.clone_from(&hybrid.addresses);
        let others = hybrid.ports.iter().filter(|port| made.ports.iter().all(|own| own.port != port.port));
        let others: Vec<_> = others.cloned().collect();
        made.ports.extend(others);
    }
    let mut dns = Vec::new();
    for (host, endpoint) in spec.dns() {
        let said = endpoint.cloned().unwrap_or_default();
        dns.push(v1::DnsEndpoint {
            name: host.as_str().into(),
            bindings: bindings(spec, said.port),
            weight: said.weight.map_or(0, |weight| weight.get()),
            priority: said.priority.map_or(0, |priority| priority.get().into()),
            zone: said.zone.unwrap_or_default(),
        });
    }
    for endpoint in &spec.endpoints {
        if let Some(address) = endpoint.address.as_ref().and_then(|text| text.parse::<IpAddr>().ok()) {
            made.endpoints.push(fixed(address.to_canonical(), endpoint, spec));
        }
        let Some(target) = target(endpoint, name) else { continue };
        let Some(referred) = registry.resources.get(&target) else { continue };
        let priority = endpoint.priority.map_or(0, |priority| priority.get().into());
        made.endpoints.extend(referred.endpoints.iter().map(|member| {
            let id = if target == *name { member.id.clone() } else { format!("{target}/{}", member.id) };
            let bindings = rebound(&made.ports, referred, member);
            v1::Endpoint { id, priority, bindings, ..member.clone() }
        }));
    }
    // What a Service of the same name has as well is the endpoint that is said first.
    let mut ids = HashSet::new();
    made.endpoints.retain(|endpoint| ids.insert(endpoint.id.clone()));
    if !dns.is_empty() {
        made.external = Some(v1::External { dns });
    }
    Some(made)
}

/// An endpoint at an address that does not change.
fn fixed(address: IpAddr, said: &ExternalEndpoint, spec: &ExternalServiceSpec) -> v1::Endpoint {
    let id = match said.port {
        Some(port) => std::net::SocketAddr::new(address, port.get()).to_string(),
        None => address.to_string(),
    };
    v1::Endpoint {
        id,
        address: address.to_string(),
        bindings: bindings(spec, said.port),
        zone: said.zone.clone().unwrap_or_default(),
        weight: said.weight.map_or(0, |weight| weight.get()),
        priority: said.priority.map_or(0, |priority| priority.get().into()),
        ..v1::Endpoint::default()
    }
}

/// Where the ports lead at an endpoint outside the registry.
fn bindings(spec: &ExternalServiceSpec, own: Option<PortNumber>) -> Vec<v1::PortBinding> {
    let binding = |port: &ExternalPort| v1::PortBinding {
        service_port: port.port.get().into(),
        target_port: own.or(port.target_port).unwrap_or(port.port).get().into(),
    };
    spec.ports.iter().map(binding).collect()
}

/// Where `ports` lead at an endpoint of a service of the registry.
fn rebound(
    ports: &[v1::ServicePort],
    service: &v1::Service,
    endpoint: &v1::Endpoint,
) -> Vec<v1::PortBinding> {
    let bound = ports.iter().filter_map(|port| {
        let by_number = service.ports.iter().find(|other| other.port == port.port);
        let by_name = || service.ports.iter().find(|other| other.name == port.name);
        let only = || Some(&service.ports).filter(|ports| ports.len() == 1)?.first();
        let theirs = by_number.or_else(by_name).or_else(only)?;
        let binding = endpoint.bindings.iter().find(|binding| binding.service_port == theirs.port)?;
        Some(v1::PortBinding { service_port: port.port, target_port: binding.target_port })
    });
    bound.collect()
}

fn port(port: &ExternalPort, spec: &ExternalServiceSpec) -> Option<v1::ServicePort> {
    let protocol = match port.protocol {
        None => v1::AppProtocol::Unspecified,
        Some(ExternalProtocol::Http) => v1::AppProtocol::Http,
        Some(ExternalProtocol::Http2) => v1::AppProtocol::Http2,
        Some(ExternalProtocol::Grpc) => v1::AppProtocol::Grpc,
        Some(ExternalProtocol::Tcp) => v1::AppProtocol::Tcp,
        Some(ExternalProtocol::Tls) => v1::AppProtocol::Tls,
    };
    let tls = match &port.tls {
        Some(tls) => Some(origination(tls, spec)?),
        None => None,
    };
    Some(v1::ServicePort {
        port: port.port.get().into(),
        name: port.name.clone(),
        protocol: protocol.into(),
        tls,
        ..v1::ServicePort::default()
    })
}

fn origination(tls: &TlsOrigination, spec: &ExternalServiceSpec) -> Option<v1::TlsOrigination> {
    // Without a server's name there is one host, or the object would have been refused.
    let server_name = tls.server_name.as_ref().or(spec.hosts.first())?;
    Some(v1::TlsOrigination {
        server_name: server_name.as_str().into(),
        subject_names: tls.subject_alt_names.iter().map(|name| name.as_str().into()).collect(),
        roots: tls.roots().ok()?.iter().map(|root| root.to_vec()).collect(),
    })
}

/// The hosts of each namespace, and where they lead.
#[derive(Debug, Default, Clone)]
pub(crate) struct Hosts {
    known: Arc<ByNamespace>,
    /// Those that a cluster's DNS knows.
    aliases: Arc<ByNamespace>,
}

impl Hosts {
    fn new(accepted: &Versions, is_free: impl Fn(&str, &str) -> bool) -> Self {
        let mut hosts = ByNamespace::new();
        for object in oldest_first(accepted) {
            let Some(name) = service_name(&object.name) else { continue };
            let namespace = &object.name.namespace;
            let known = hosts.entry(namespace.clone()).or_default();
            for host in object.value.spec.hosts.iter().filter(|host| is_free(host.as_str(), namespace)) {
                known.entry(host.as_str().into()).or_insert_with(|| name.clone());
            }
        }
        Self { known: Arc::new(hosts), aliases: Arc::default() }
    }

    /// Adds a host of a namespace that nothing else has said.
    pub(super) fn add(&mut self, namespace: &str, host: String, service: ServiceName) {
        insert(&mut self.known, namespace, host, service);
    }

    /// Adds one that a cluster's DNS knows.
    pub(super) fn add_alias(&mut self, namespace: &str, host: String, service: ServiceName) {
        insert(&mut self.aliases, namespace, host, service);
    }

    /// Where a host leads that clients in a namespace ask for.
    pub(super) fn lookup(&self, namespace: &str, host: &str) -> Option<ServiceName> {
        let of = |namespace: &str| self.known.get(namespace)?.get(host).cloned();
        of(namespace).or_else(|| of(MESH_POLICY_NAMESPACE))
    }

    /// What clients in a namespace know for whom no cluster's DNS answers.
    pub(crate) fn of(&self, namespace: &str) -> Vec<v1::Host> {
        wire([self.known.get(MESH_POLICY_NAMESPACE), self.aliases.get(namespace), self.known.get(namespace)])
    }

    /// What pods in a namespace know: its own hosts, and those of the mesh that it says nothing about.
    pub(crate) fn of_pods(&self, namespace: &str) -> Vec<v1::Host> {
        wire([self.known.get(MESH_POLICY_NAMESPACE), None, self.known.get(namespace)])
    }
}

type ByNamespace = BTreeMap<String, BTreeMap<String, ServiceName>>;

fn insert(hosts: &mut Arc<ByNamespace>, namespace: &str, host: String, service: ServiceName) {
    let known = Arc::make_mut(hosts).entry(namespace.into()).or_default();
    known.entry(host).or_insert(service);
}

/// All of these hosts; of one that is there twice the last counts.
fn wire(hosts: [Option<&BTreeMap<String, ServiceName>>; 3]) -> Vec<v1::Host> {
    let mut known = BTreeMap::new();
    for (name, service) in hosts.into_iter().flatten().flatten() {
        known.insert(name, service);
    }
    let host = |(name, service): (&String, &ServiceName)| v1::Host {
        name: name.clone(),
        namespace: service.namespace().into(),
        service: service.name().into(),
    };
    known.into_iter().map(host).collect()
}

#[cfg(test)]
mod tests;
