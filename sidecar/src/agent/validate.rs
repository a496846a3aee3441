//! From the wire to [`crate::config`]: every field is checked, defaults are
//! filled in, and nothing behind has to doubt a value again. What is refused
//! is named by its path. Pure functions.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;
use heddle_api::spiffe::{SpiffeId, TrustDomain};
use heddle_api::tls::TrustBundle;

use crate::config::{
    AppProtocol, DnsEndpoint, Endpoint, EndpointHealth, Mesh, MeshPeer, Port, Service, Workload,
};

mod alert;
mod balancing;
mod external;
mod fault;
mod jwt;
mod metric_labels;
mod policy;
mod rate_limit;
mod route;

pub(crate) use route::for_clients_of;

/// A resource that this version cannot put into force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub(crate) struct Invalid {
    path: String,
    reason: String,
}

impl Invalid {
    fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { path: path.into(), reason: reason.into() }
    }

    /// The same, seen from further outside.
    fn within(mut self, outer: &str) -> Self {
        self.path = if self.path.starts_with('[') {
            format!("{outer}{}", self.path)
        } else {
            format!("{outer}.{}", self.path)
        };
        self
    }
}

/// A service as it was told.
#[derive(Debug)]
pub(crate) struct ToldService {
    /// Without the endpoints that only DNS knows.
    pub(crate) service: Service,
    /// The addresses that are its own.
    pub(crate) addresses: Vec<IpAddr>,
    /// The names whose addresses are endpoints.
    pub(crate) dns: Vec<DnsEndpoint>,
}

/// A service. From `before`, its former state, is kept what
/// did not change, so that nobody has to compile it or get used to it again.
pub(crate) fn service(
    name: &ServiceName,
    message: v1::Service,
    before: Option<&Service>,
) -> Result<ToldService, Invalid> {
    named(name, &message.namespace, &message.name)?;
    let mut ports = Vec::with_capacity(message.ports.len());
    for (index, port) in message.ports.iter().enumerate() {
        let valid = service_port(port, &ports, before.map_or(&[], |before| &before.ports));
        ports.push(valid.map_err(|e| e.within(&format!("ports[{index}]")))?);
    }
    let mut ids = HashSet::new();
    let mut endpoints = Vec::with_capacity(message.endpoints.len());
    for (index, wire) in message.endpoints.into_iter().enumerate() {
        let within = |e: Invalid| e.within(&format!("endpoints[{index}]"));
        let valid = endpoint(wire, &ports).map_err(within)?;
        if !ids.insert(valid.id.clone()) {
            return Err(within(Invalid::new("id", format!("{:?} is not unique", valid.id))));
        }
        endpoints.push(valid);
    }
    let mut addresses = Vec::with_capacity(message.addresses.len());
    for (index, text) in message.addresses.iter().enumerate() {
        addresses.push(ip(&format!("addresses[{index}]"), text)?);
    }
    let policy =
        policy::traffic_policy(message.policy.unwrap_or_default()).map_err(|e| e.within("policy"))?;
    let policy = match before {
        Some(before) if *before.policy == policy => before.policy.clone(),
        _ => Arc::new(policy),
    };
    for port in &mut ports {
        let same = before.and_then(|before| before.ports.iter().find(|old| old.number == port.number));
        if let Some(old) = same.filter(|old| old.policy == port.policy) {
            port.policy.clone_from(&old.policy);
        }
    }
    let routes = route::routes(message.routes, &ports, before.map_or(&[], |before| &before.routes))?;
    // The time of last use and what is kept outlive the version.
    let (usage, stale) =
        before.map(|before| (before.usage.clone(), before.stale.clone())).unwrap_or_default();
    let faults = fault::faults(message.faults, &ports)?.into();
    let (mut dns, mut names) = (Vec::new(), HashSet::new());
    for (index, wire) in message.external.unwrap_or_default().dns.into_iter().enumerate() {
        let within = |e: Invalid| e.within(&format!("external.dns[{index}]"));
        let valid = external::dns_endpoint(wire, &ports).map_err(within)?;
        if !names.insert(valid.name.clone()) {
            return Err(within(Invalid::new("name", format!("{:?} is not unique", valid.name))));
        }
        dns.push(valid);
    }
    let service = Service { name: name.clone(), ports, endpoints, policy, routes, faults, usage, stale };
    Ok(ToldService { service, addresses, dns })
}

/// The service that an address belongs to, and the workload that it is, if it is one's own. From
/// `before` is kept what did not change.
pub(crate) fn address(
    address: IpAddr,
    message: v1::Address,
    before: Option<&Service>,
) -> Result<(ServiceName, Option<Service>), Invalid> {
    let name = ServiceName::new(&message.namespace, &message.name);
    let name = name.map_err(|e| Invalid::new("name", e.to_string()))?;
    let Some(workload) = message.workload else { return Ok((name, None)) };
    let before = before.filter(|before| before.name == name);
    let told = service(&name, workload, before).map_err(|e| e.within("workload"))?;
    let workload = told.service;
    match workload.endpoints.as_slice() {
        [only] if only.address == address && told.dns.is_empty() => Ok((name, Some(workload))),
        // Others must not take what is meant for it.
        _ => Err(Invalid::new("workload.endpoints", format!("they are not the one at {address}"))),
    }
}

/// The workload's own side. What `before` has counted goes on to count.
pub(crate) fn workload(message: &v1::Workload, before: Option<&Workload>) -> Result<Workload, Invalid> {
    let service = ServiceName::new(&message.namespace, &message.service)
        .map_err(|e| Invalid::new("service", e.to_string()))?;
    let mut ports = Vec::with_capacity(message.ports.len());
    for (index, port) in message.ports.iter().enumerate() {
        ports.push(service_port(port, &ports, &[]).map_err(|e| e.within(&format!("ports[{index}]")))?);
    }
    let telemetry = message.telemetry.clone().unwrap_or_default();
    if !(0.0..=1.0).contains(&telemetry.sampling) {
        return Err(Invalid::new(
            "telemetry.sampling",
            format!("{} is not between 0 and 1", telemetry.sampling),
        ));
    }
    Ok(Workload {
        service,
        ports,
        zone: message.zone.as_str().into(),
        hosts: external::hosts(&message.hosts)?,
        access_log: telemetry.access_log,
        sampling: telemetry.sampling,
        alerts: alert::alerts(telemetry.alerts).map_err(|e| e.within("telemetry"))?,
        metric_labels: metric_labels::metric_labels(
            telemetry.metric_labels.as_ref(),
            before.map(|before| &before.metric_labels),
        )
        .map_err(|e| e.within("telemetry.metric_labels"))?,
        rate_limits: rate_limit::rate_limits(&message.rate_limits, before)?,
        gates: jwt::gates(&message.jwt_policies, before)?,
    })
}

/// The settings of the mesh.
pub(crate) fn mesh(message: &v1::Mesh, domain: &TrustDomain) -> Result<Mesh, Invalid> {
    if message.trust_domain != domain.as_str() {
        let reason = format!("{:?} is not {domain}, the trust domain of our identity", message.trust_domain);
        return Err(Invalid::new("trust_domain", reason));
    }
    let cluster_domain = message.cluster_domain.trim_end_matches('.').to_ascii_lowercase();
    let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-');
    if cluster_domain.is_empty() || cluster_domain.len() > 253 || !cluster_domain.bytes().all(valid) {
        let reason = format!("{:?} is no DNS domain", message.cluster_domain);
        return Err(Invalid::new("cluster_domain", reason));
    }
    let allow_any_egress = match v1::EgressMode::try_from(message.egress) {
        Ok(v1::EgressMode::AllowAny) => true,
        Ok(v1::EgressMode::RegistryOnly) => false,
        Err(_) => return Err(unknown("egress", message.egress)),
    };
    Ok(Mesh { trust_domain: message.trust_domain.clone(), cluster_domain, allow_any_egress })
}

/// The roots of `domain`. An empty bundle would cut every connection, so it is refused.
pub(crate) fn trust_bundle(message: v1::TrustBundle, domain: &TrustDomain) -> Result<TrustBundle, Invalid> {
    if message.trust_domain != domain.as_str() {
        let reason = format!("{:?} is not {domain}", message.trust_domain);
        return Err(Invalid::new("trust_domain", reason));
    }
    if message.roots.is_empty() {
        return Err(Invalid::new("roots", "there is none"));
    }
    let roots = message.roots.into_iter().map(Into::into).collect();
    TrustBundle::new(domain.clone(), roots).map_err(|e| Invalid::new("roots", e.to_string()))
}

fn named(expected: &ServiceName, namespace: &str, name: &str) -> Result<(), Invalid> {
    match ServiceName::new(namespace, name) {
        Ok(found) if found == *expected => Ok(()),
        Ok(found) => Err(Invalid::new("name", format!("it is {found} under the resource name {expected}"))),
        Err(error) => Err(Invalid::new("name", error.to_string())),
    }
}

/// A port besides `others`. From `former`, those of the version before, is kept what did not change.
fn service_port(wire: &v1::ServicePort, others: &[Port], former: &[Port]) -> Result<Port, Invalid> {
    let number = port("port", wire.port)?;
    if others.iter().any(|p| p.number == number) {
        return Err(Invalid::new("port", format!("{number} is not unique")));
    }
    let protocol = match v1::AppProtocol::try_from(wire.protocol) {
        Ok(v1::AppProtocol::Unspecified) => AppProtocol::Detect,
        Ok(v1::AppProtocol::Http) => AppProtocol::Http,
        Ok(v1::AppProtocol::Http2 | v1::AppProtocol::Grpc) => AppProtocol::Http2,
        Ok(v1::AppProtocol::Tcp) => AppProtocol::Tcp,
        Ok(v1::AppProtocol::Tls) => AppProtocol::Tls,
        Err(_) => return Err(unknown("protocol", wire.protocol)),
    };
    let policy = wire.policy.clone().map(policy::traffic_policy).transpose();
    let former = former.iter().find(|port| port.number == number).and_then(|port| port.tls.as_ref());
    let tls = wire.tls.as_ref().map(|tls| external::origination(tls, former)).transpose();
    Ok(Port {
        number,
        protocol,
        policy: policy.map_err(|e| e.within("policy"))?.map(Arc::new),
        tls: tls.map_err(|e| e.within("tls"))?,
    })
}

/// The most ranges of ports that a pod's rules leave alone.
const MOST_LEFT_ALONE: usize = 64;

fn left_alone(wire: &v1::Endpoint) -> Result<Box<[RangeInclusive<u16>]>, Invalid> {
    if !wire.intercepted && !wire.left_alone.is_empty() {
        return Err(Invalid::new("left_alone", "it is no pod with a sidecar"));
    }
    if wire.left_alone.len() > MOST_LEFT_ALONE {
        let reason =
            format!("these are {} ranges; at most {MOST_LEFT_ALONE} are understood", wire.left_alone.len());
        return Err(Invalid::new("left_alone", reason));
    }
    let range = |(index, range): (usize, &v1::PortRange)| {
        let at = |end| format!("left_alone[{index}].{end}");
        let (first, last) = (port(&at("first"), range.first)?, port(&at("last"), range.last)?);
        if first > last { Err(Invalid::new(at("last"), "it is before the first")) } else { Ok(first..=last) }
    };
    wire.left_alone.iter().enumerate().map(range).collect()
}

fn endpoint(wire: v1::Endpoint, ports: &[Port]) -> Result<Endpoint, Invalid> {
    if wire.id.is_empty() {
        return Err(Invalid::new("id", "it is empty"));
    }
    let address = ip("address", &wire.address)?;
    let bindings = bindings(&wire.bindings, ports)?;
    let left_alone = left_alone(&wire)?;
    let mesh = match (wire.identity.as_str(), wire.mesh_port, wire.intercepted) {
        ("", 0, false) => None,
        ("", ..) => return Err(Invalid::new("identity", "it is empty, but there is a sidecar")),
        (identity, inbound, intercepted) => Some(MeshPeer {
            inbound: match intercepted {
                true => None,
                false => Some(SocketAddr::new(address, port("mesh_port", inbound)?)),
            },
            identity: identity.parse::<SpiffeId>().map_err(|e| Invalid::new("identity", e.to_string()))?,
            left_alone,
        }),
    };
    if let Some(position) = wire.for_zones.iter().position(String::is_empty) {
        return Err(Invalid::new(format!("for_zones[{position}]"), "it is empty"));
    }
    let health = match v1::EndpointHealth::try_from(wire.health) {
        Ok(v1::EndpointHealth::Healthy) => EndpointHealth::Healthy,
        Ok(v1::EndpointHealth::Unhealthy) => EndpointHealth::Unhealthy,
        Ok(v1::EndpointHealth::Draining) => EndpointHealth::Draining,
        Err(_) => return Err(unknown("health", wire.health)),
    };
    let score = match wire.score {
        0 => 100,
        score @ 1..=100 => score,
        score => return Err(Invalid::new("score", format!("{score} is more than 100"))),
    };
    Ok(Endpoint {
        id: wire.id,
        address,
        bindings,
        mesh,
        zone: wire.zone,
        for_zones: wire.for_zones,
        weight: wire.weight.max(1),
        score,
        priority: wire.priority,
        health,
    })
}

/// Where each port of the service leads at an endpoint.
fn bindings(wire: &[v1::PortBinding], ports: &[Port]) -> Result<Vec<(u16, u16)>, Invalid> {
    let mut bindings: Vec<(u16, u16)> = Vec::with_capacity(wire.len());
    for (index, binding) in wire.iter().enumerate() {
        let path = |field: &str| format!("bindings[{index}].{field}");
        let from = port(&path("service_port"), binding.service_port)?;
        let to = port(&path("target_port"), binding.target_port)?;
        if !ports.iter().any(|p| p.number == from) {
            return Err(Invalid::new(path("service_port"), format!("the service has no port {from}")));
        }
        if bindings.iter().any(|(other, _)| *other == from) {
            return Err(Invalid::new(path("service_port"), format!("{from} is bound twice")));
        }
        bindings.push((from, to));
    }
    Ok(bindings)
}

fn ip(path: &str, text: &str) -> Result<IpAddr, Invalid> {
    let address: IpAddr =
        text.parse().map_err(|_| Invalid::new(path, format!("{text:?} is no IP address")))?;
    let address = address.to_canonical();
    if address.is_unspecified() || address.is_multicast() {
        return Err(Invalid::new(path, format!("{address} is no address of one host")));
    }
    Ok(address)
}

fn port(path: &str, number: u32) -> Result<u16, Invalid> {
    match u16::try_from(number) {
        Ok(number) if number != 0 => Ok(number),
        _ => Err(Invalid::new(path, format!("{number} is no port between 1 and 65535"))),
    }
}

/// A value that a newer control plane knows and this sidecar cannot enforce.
fn unknown(path: &str, value: i32) -> Invalid {
    Invalid::new(path, format!("this sidecar does not know the value {value}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn name() -> ServiceName {
        "shop/users".parse().unwrap()
    }

    fn wire() -> v1::Service {
        v1::Service {
            namespace: "shop".into(),
            name: "users".into(),
            ports: vec![v1::ServicePort {
                port: 80,
                name: "http".into(),
                protocol: 1,
                ..v1::ServicePort::default()
            }],
            endpoints: vec![v1::Endpoint {
                id: "users-1".into(),
                address: "10.0.0.7".into(),
                bindings: vec![v1::PortBinding { service_port: 80, target_port: 8080 }],
                identity: "spiffe://mesh.local/ns/shop/sa/users".into(),
                mesh_port: 7102,
                ..v1::Endpoint::default()
            }],
            addresses: vec!["10.96.0.7".into()],
            ..v1::Service::default()
        }
    }

    fn check(change: impl FnOnce(&mut v1::Service)) -> Result<(Service, Vec<IpAddr>), String> {
        let mut message = wire();
        change(&mut message);
        let told = service(&name(), message, None).map_err(|e| e.to_string())?;
        Ok((told.service, told.addresses))
    }

    #[test]
    fn a_valid_service_gets_the_documented_defaults() {
        let (service, addresses) = check(|_| {}).unwrap();
        assert_eq!(addresses, ["10.96.0.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(
            service.ports,
            [Port { number: 80, protocol: AppProtocol::Http, policy: None, tls: None }]
        );
        let endpoint = &service.endpoints[0];
        assert_eq!((endpoint.weight, endpoint.health), (1, EndpointHealth::Healthy));
        assert_eq!(endpoint.mesh.as_ref().unwrap().inbound, "10.0.0.7:7102".parse().ok());
        assert_eq!(service.policy.connect_timeout, Duration::from_secs(1));
        assert_eq!(service.policy.request_timeout, None);
        assert_eq!(service.policy.limits.requests, 1024);
    }

    #[test]
    fn every_refusal_names_the_field() {
        let refused = |change: fn(&mut v1::Service)| check(change).unwrap_err();
        for (change, path) in [
            ((|s| s.name = "orders".into()) as fn(&mut v1::Service), "name: "),
            (|s| s.ports[0].port = 0, "ports[0].port: "),
            (|s| s.ports[0].protocol = 99, "ports[0].protocol: "),
            (|s| s.ports.push(s.ports[0].clone()), "ports[1].port: "),
            (|s| s.endpoints[0].id.clear(), "endpoints[0].id: "),
            (|s| s.endpoints.push(s.endpoints[0].clone()), "endpoints[1].id: "),
            (|s| s.endpoints[0].address = "users.local".into(), "endpoints[0].address: "),
            (|s| s.endpoints[0].address = "0.0.0.0".into(), "endpoints[0].address: "),
            (|s| s.endpoints[0].bindings[0].service_port = 81, "endpoints[0].bindings[0].service_port: "),
            (|s| s.endpoints[0].bindings[0].target_port = 65536, "endpoints[0].bindings[0].target_port: "),
            (|s| s.endpoints[0].identity = "users".into(), "endpoints[0].identity: "),
            (|s| s.endpoints[0].identity.clear(), "endpoints[0].identity: "),
            (|s| s.endpoints[0].mesh_port = 0, "endpoints[0].mesh_port: "),
            (
                |s| (s.endpoints[0].identity, s.endpoints[0].intercepted) = (String::new(), true),
                "endpoints[0].identity: ",
            ),
            (|s| s.endpoints[0].for_zones.push(String::new()), "endpoints[0].for_zones[0]: "),
            (|s| s.endpoints[0].left_alone.push(range(1, 2)), "endpoints[0].left_alone: "),
            (
                |s| {
                    let pod = &mut s.endpoints[0];
                    (pod.mesh_port, pod.intercepted) = (0, true);
                    pod.left_alone = vec![range(1, 2), range(80, 70)];
                },
                "endpoints[0].left_alone[1].last: ",
            ),
            (
                |s| {
                    let pod = &mut s.endpoints[0];
                    (pod.mesh_port, pod.intercepted) = (0, true);
                    pod.left_alone = vec![range(1, 2); 65];
                },
                "endpoints[0].left_alone: ",
            ),
            (|s| s.endpoints[0].health = 9, "endpoints[0].health: "),
            (|s| s.endpoints[0].score = 101, "endpoints[0].score: "),
            (|s| s.ports[0].tls = Some(v1::TlsOrigination::default()), "ports[0].tls.server_name: "),
            (
                |s| s.external = Some(v1::External { dns: vec![v1::DnsEndpoint::default()] }),
                "external.dns[0].name: ",
            ),
            (
                |s| {
                    let named = v1::DnsEndpoint { name: "a.example".into(), ..Default::default() };
                    s.external = Some(v1::External { dns: vec![named.clone(), named] });
                },
                "external.dns[1].name: ",
            ),
            (|s| s.addresses.push("x".into()), "addresses[1]: "),
        ] {
            let error = refused(change);
            assert!(error.starts_with(path), "{error} should begin with {path}");
        }
    }

    #[test]
    fn a_pod_is_dialled_at_the_applications_port() {
        let (service, _) = check(|s| {
            s.endpoints[0].mesh_port = 0;
            s.endpoints[0].intercepted = true;
        })
        .unwrap();
        let target = crate::upstream::Target::of(&service.endpoints[0], &service.ports[0]).unwrap();
        assert_eq!(target.address(), "10.0.0.7:8080".parse().ok());
        assert!(matches!(target, crate::upstream::Target::Mesh { port: 8080, .. }));
    }

    fn range(first: u32, last: u32) -> v1::PortRange {
        v1::PortRange { first, last }
    }

    /// What a pod's rules leave alone was dialled with TLS, which the application itself then met.
    #[test]
    fn a_pod_is_outside_the_mesh_at_the_ports_that_its_rules_leave_alone() {
        let target_at = |target_port: u32, left_alone: Vec<v1::PortRange>| {
            let (service, _) = check(|s| {
                let pod = &mut s.endpoints[0];
                (pod.mesh_port, pod.intercepted) = (0, true);
                pod.bindings[0].target_port = target_port;
                pod.left_alone = left_alone;
            })
            .unwrap();
            crate::upstream::Target::of(&service.endpoints[0], &service.ports[0]).unwrap()
        };
        use crate::upstream::Target::{Mesh, Plain};
        let skipped = || vec![range(22, 22), range(9000, 9001)];
        for port in [22, 9000, 9001, 7190] {
            assert!(
                matches!(target_at(port, skipped()), Plain(to) if u32::from(to.port()) == port),
                "{port}"
            );
        }
        for port in [21, 8080, 9002, 7102] {
            assert!(matches!(target_at(port, skipped()), Mesh { .. }), "{port}");
        }
        assert!(matches!(target_at(9000, Vec::new()), Mesh { .. }));
    }

    #[test]
    fn a_workloads_address_is_that_of_its_only_endpoint() {
        let ip: IpAddr = "10.0.0.7".parse().unwrap();
        let message = |change: fn(&mut v1::Service)| {
            let mut workload = wire();
            change(&mut workload);
            let (namespace, name) = ("shop".into(), "users".into());
            address(ip, v1::Address { namespace, name, workload: Some(workload) }, None)
        };
        let (_, workload) = message(|_| {}).unwrap();
        let at = workload.unwrap().at(9999);
        assert_eq!((at.ports[0].number, at.endpoints[0].bindings.as_slice()), (9999, &[(9999, 9999)][..]));
        for wrong in [
            (|s| s.endpoints[0].address = "10.0.0.8".into()) as fn(&mut v1::Service),
            |s| s.endpoints.clear(),
            |s| s.endpoints.push(v1::Endpoint { id: "2".into(), ..s.endpoints[0].clone() }),
        ] {
            let error = message(wrong).unwrap_err().to_string();
            assert!(error.starts_with("workload.endpoints: "), "{error}");
        }
        assert!(
            message(|s| s.name = "orders".into()).unwrap_err().to_string().starts_with("workload.name: ")
        );
    }

    #[test]
    fn the_policy_of_a_port_stands_for_the_services() {
        let limited = |requests| v1::TrafficPolicy {
            limits: Some(v1::Limits { requests: Some(requests), ..v1::Limits::default() }),
            ..v1::TrafficPolicy::default()
        };
        let (service, _) = check(|s| {
            s.policy = Some(limited(7));
            let own = v1::ServicePort { port: 81, policy: Some(limited(8)), ..s.ports[0].clone() };
            s.ports.push(own);
        })
        .unwrap();
        assert_eq!([80, 81].map(|port| service.policy(port).limits.requests), [7, 8]);
    }

    #[test]
    fn what_did_not_change_is_kept() {
        let (before, _) = check(|_| {}).unwrap();
        let moved = |requests: Option<u32>| {
            let mut message = wire();
            message.endpoints[0].address = "10.0.0.8".into();
            let limits = requests.map(|_| v1::Limits { requests, ..v1::Limits::default() });
            message.policy = Some(v1::TrafficPolicy { limits, ..v1::TrafficPolicy::default() });
            service(&name(), message, Some(&before)).unwrap().service
        };
        let after = moved(None);
        assert_ne!(after.endpoints, before.endpoints);
        assert!(Arc::ptr_eq(&after.usage, &before.usage) && Arc::ptr_eq(&after.policy, &before.policy));
        assert!(Arc::ptr_eq(&after.stale, &before.stale));
        assert_eq!(moved(Some(7)).policy.limits.requests, 7);
    }

    #[test]
    fn unhealthy_and_draining_endpoints_get_nothing_new() {
        for health in [v1::EndpointHealth::Unhealthy, v1::EndpointHealth::Draining] {
            let (service, _) = check(|s| s.endpoints[0].health = health.into()).unwrap();
            assert_ne!(service.endpoints[0].health, EndpointHealth::Healthy);
        }
    }

    #[test]
    fn a_mesh_of_another_domain_and_an_empty_bundle_are_refused() {
        let domain: TrustDomain = "mesh.local".parse().unwrap();
        let settings = |trust_domain: &str, cluster_domain: &str| v1::Mesh {
            trust_domain: trust_domain.into(),
            egress: 0,
            cluster_domain: cluster_domain.into(),
        };
        assert!(mesh(&settings("mesh.local", "cluster.local."), &domain).unwrap().allow_any_egress);
        assert!(mesh(&settings("other", "cluster.local"), &domain).is_err());
        assert!(mesh(&settings("mesh.local", ""), &domain).is_err());
        let bundle = v1::TrustBundle { trust_domain: "mesh.local".into(), roots: Vec::new() };
        assert!(trust_bundle(bundle, &domain).is_err());
    }

    #[test]
    fn sampling_is_a_share() {
        let message = |sampling| v1::Workload {
            namespace: "shop".into(),
            service: "users".into(),
            ports: Vec::new(),
            telemetry: Some(v1::Telemetry { access_log: true, sampling, ..v1::Telemetry::default() }),
            ..v1::Workload::default()
        };
        assert!(workload(&message(1.0), None).unwrap().access_log);
        for bad in [-0.1, 1.1, f64::NAN] {
            assert!(workload(&message(bad), None).unwrap_err().to_string().starts_with("telemetry.sampling"));
        }
    }
}
