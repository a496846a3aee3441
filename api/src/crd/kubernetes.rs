//! The Kubernetes objects that services are made of, reduced to what Heddle
//! reads. Fields that Heddle does not read are ignored.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use serde::{Deserialize, Deserializer, de};

use super::{Metadata, Violation};

/// A service (core/v1 `Service`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Service {
    /// Name and namespace.
    pub metadata: Metadata,
    /// Ports and addresses.
    pub spec: ServiceSpec,
}

/// Ports and addresses of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// `ExternalName` makes it an alias of a name outside.
    pub r#type: Option<String>,
    /// The name that it is an alias of, where it is one.
    pub external_name: Option<String>,
    /// What clients dial.
    #[serde(default)]
    pub ports: Vec<ServicePort>,
    /// The first of `cluster_ips`, or `None` as a text.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    /// Its own addresses, one per family.
    #[serde(default, rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// The families of its addresses and endpoints, the preferred one first.
    #[serde(default)]
    pub ip_families: Vec<AddressType>,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Its name; may be absent where it is the only one.
    #[serde(default)]
    pub name: String,
    /// `TCP` if absent.
    pub protocol: Option<String>,
    /// What the application speaks on it.
    pub app_protocol: Option<String>,
    /// What clients dial.
    pub port: u16,
    /// The application's port, by number or by name; absent: the same as `port`.
    pub target_port: Option<IntOrString>,
}

/// A port by number or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IntOrString {
    /// By number.
    Int(u16),
    /// By name.
    String(String),
}

impl<'de> Deserialize<'de> for IntOrString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = IntOrString;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port's number or name")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<IntOrString, E> {
                match u16::try_from(number) {
                    Ok(port) if port > 0 => Ok(IntOrString::Int(port)),
                    _ => Err(E::custom(format_args!("{number} is no port"))),
                }
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<IntOrString, E> {
                Ok(IntOrString::String(name.into()))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// Some endpoints of a service (discovery.k8s.io/v1 `EndpointSlice`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Its label `kubernetes.io/service-name` names the service.
    pub metadata: Metadata,
    /// What its addresses are.
    pub address_type: AddressType,
    /// Where they are.
    #[serde(default)]
    pub endpoints: Vec<SliceEndpoint>,
    /// The ports that all of them have.
    #[serde(default)]
    pub ports: Vec<EndpointPort>,
}

/// What the addresses of a slice are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum AddressType {
    /// IPv4 addresses.
    IPv4,
    /// IPv6 addresses.
    IPv6,
    /// Names; deprecated by Kubernetes.
    #[serde(rename = "FQDN")]
    Fqdn,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceEndpoint {
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Whether it may get traffic.
    #[serde(default)]
    pub conditions: EndpointConditions,
    /// The zone that it runs in.
    pub zone: Option<String>,
    /// The node that it runs on.
    pub node_name: Option<String>,
    /// Whom it is meant for.
    pub hints: Option<EndpointHints>,
    /// The object that it is, a Pod as a rule.
    pub target_ref: Option<EndpointTarget>,
}

/// Whom an endpoint is meant for (KEP-2433).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointHints {
    /// Clients of these zones.
    #[serde(default)]
    pub for_zones: Vec<ForZone>,
}

/// A zone whose clients an endpoint is meant for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ForZone {
    /// The zone.
    pub name: String,
}

/// The object that an endpoint is (core/v1 `ObjectReference`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct EndpointTarget {
    /// Its kind, such as `Pod`.
    #[serde(default)]
    pub kind: String,
    /// Absent: the slice's namespace.
    pub namespace: Option<String>,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Tells it from others of the same name, earlier or later.
    pub uid: Option<String>,
}

/// Whether an endpoint may get traffic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct EndpointConditions {
    /// It may; absent means that it may.
    pub ready: Option<bool>,
    /// It is able to serve, even while it terminates.
    pub serving: Option<bool>,
    /// It is about to end.
    pub terminating: Option<bool>,
}

/// A port of a slice's endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointPort {
    /// The name of the service's port; absent is the same as empty.
    #[serde(default)]
    pub name: String,
    /// `TCP` if absent.
    pub protocol: Option<String>,
    /// The number; absent means all ports, which Heddle cannot use.
    pub port: Option<u16>,
}

/// A pod (core/v1 `Pod`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Pod {
    /// Its label [`MESHED_LABEL`] says that it has a sidecar.
    pub metadata: Metadata,
    /// What it was made from.
    #[serde(default)]
    pub spec: PodSpec,
    /// Where it runs.
    #[serde(default)]
    pub status: PodStatus,
}

/// What a pod was made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "WrittenSpec")]
pub struct PodSpec {
    /// Who it is to the API server, and to the mesh; absent means `default`.
    pub service_account_name: Option<String>,
    /// It has its node's addresses, not its own.
    pub host_network: bool,
    /// The node that it runs on; absent until it was given one.
    pub node_name: Option<String>,
    /// The ports at which its rules leave connections alone, as whoever makes the rules is told.
    pub left_alone: Box<[RangeInclusive<u16>]>,
}

/// The init container that makes the rules of a pod with a sidecar, unless a CNI plugin does.
pub const INIT_CONTAINER: &str = "heddle-init";

/// The container of the sidecar.
pub const SIDECAR_CONTAINER: &str = "heddle-sidecar";

/// The argument of `heddle-init` that names ports of the pod to be left alone: PORT or FIRST-LAST, separated by
/// commas.
const SKIP_INBOUND_PORTS: &str = "--skip-inbound-ports=";

/// The variable of the sidecar that names them to a CNI plugin, in the same form.
pub const SKIP_INBOUND_PORTS_VARIABLE: &str = "HEDDLE_SKIP_INBOUND_PORTS";

/// What is written of a pod, as far as it is looked at; not kept as it is, since that is most of the pod.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenSpec {
    service_account_name: Option<String>,
    #[serde(default)]
    host_network: bool,
    node_name: Option<String>,
    init_containers: Option<Vec<WrittenContainer>>,
    containers: Option<Vec<WrittenContainer>>,
}

#[derive(Deserialize)]
struct WrittenContainer {
    name: String,
    args: Option<Vec<String>>,
    env: Option<Vec<WrittenVariable>>,
}

#[derive(Deserialize)]
struct WrittenVariable {
    name: String,
    value: Option<String>,
}

impl From<WrittenSpec> for PodSpec {
    fn from(written: WrittenSpec) -> Self {
        let left_alone = written.left_alone();
        let WrittenSpec { service_account_name, host_network, node_name, .. } = written;
        Self { service_account_name, host_network, node_name, left_alone }
    }
}

impl WrittenSpec {
    fn left_alone(&self) -> Box<[RangeInclusive<u16>]> {
        let containers = || self.init_containers.iter().chain(&self.containers).flatten();
        let named = |name: &str| containers().find(|container| container.name == name);
        let ports = match named(INIT_CONTAINER) {
            Some(init) => {
                init.args.iter().flatten().find_map(|argument| argument.strip_prefix(SKIP_INBOUND_PORTS))
            }
            None => named(SIDECAR_CONTAINER).and_then(|sidecar| {
                let mut variables = sidecar.env.iter().flatten();
                variables.find(|variable| variable.name == SKIP_INBOUND_PORTS_VARIABLE)?.value.as_deref()
            }),
        };
        // What is no range of ports keeps the pod from starting.
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let range = first.trim().parse().ok()?..=last.trim().parse().ok()?;
            Some(range).filter(|range| !range.is_empty() && !range.contains(&0))
        };
        ports.unwrap_or_default().split(',').filter_map(range).take(MOST_LEFT_ALONE).collect()
    }
}

/// As many ranges as the container takes.
const MOST_LEFT_ALONE: usize = 64;

/// Where a pod runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// `Succeeded` and `Failed` are the end: its addresses may be another's by now.
    pub phase: Option<String>,
    /// Its addresses, one per family, that of the cluster's preferred family first.
    #[serde(default, rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
}

/// An address of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PodIp {
    /// The address.
    pub ip: String,
}

/// The label that says in which zone an object is; newer API servers copy it from nodes to their pods (KEP-4742).
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// The label of pods that have a sidecar; the injector sets it to `true`.
pub const MESHED_LABEL: &str = "heddle.dev/meshed";

impl Pod {
    /// Whether it has a sidecar.
    pub fn is_meshed(&self) -> bool {
        self.metadata.labels.get(MESHED_LABEL).is_some_and(|value| value == "true") && !self.spec.host_network
    }

    /// Whether it has ended for good.
    pub fn is_over(&self) -> bool {
        matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// Its service account.
    pub fn service_account(&self) -> &str {
        self.spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default")
    }

    /// Its addresses, the preferred one first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.status
            .pod_ips
            .iter()
            .filter_map(|address| Some(address.ip.parse::<IpAddr>().ok()?.to_canonical()))
    }

    /// What no single field's type can say.
    pub fn validate(&self) -> Vec<Violation> {
        let addresses = self.status.pod_ips.iter().enumerate();
        let wrong = addresses.filter(|(_, address)| !address.ip.parse().is_ok_and(is_one_host));
        wrong
            .map(|(index, address)| {
                let message = format!("{:?} is no IP address of one host", address.ip);
                Violation::new(format!("status.podIPs[{index}].ip"), message)
            })
            .collect()
    }
}

/// The label of a workload, or of a slice for all of its endpoints, that says their
/// share of traffic relative to others of the service.
pub const WEIGHT_LABEL: &str = "heddle.dev/weight";

/// As large as a weight in the Gateway API.
const MAX_WEIGHT: u32 = 1_000_000;

/// The weight that labels ask for, if they do.
///
/// # Errors
/// Why it is no weight.
pub fn weight(labels: &BTreeMap<String, String>) -> Result<Option<u32>, String> {
    let Some(text) = labels.get(WEIGHT_LABEL) else { return Ok(None) };
    let weight = text.parse().ok().filter(|weight| (1..=MAX_WEIGHT).contains(weight));
    weight.map(Some).ok_or_else(|| format!("{text:?} is no whole number between 1 and {MAX_WEIGHT}"))
}

/// Whether an address can be dialled.
fn is_one_host(address: IpAddr) -> bool {
    !address.is_unspecified() && !address.is_multicast()
}

impl Service {
    /// The name of which it is an alias; it has then nothing else of a service.
    pub fn external_name(&self) -> Option<&str> {
        let is_alias = self.spec.r#type.as_deref() == Some("ExternalName");
        is_alias.then(|| self.spec.external_name.as_deref().unwrap_or_default())
    }

    /// What no single field's type can say.
    pub fn validate(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        let addresses = self.spec.cluster_ips.iter().enumerate();
        let addresses = addresses.map(|(index, address)| (format!("spec.clusterIPs[{index}]"), address));
        let single = self.spec.cluster_ip.iter().map(|address| ("spec.clusterIP".to_owned(), address));
        for (path, address) in addresses.chain(single) {
            if !matches!(address.as_str(), "" | "None") && !address.parse().is_ok_and(is_one_host) {
                violations.push(Violation::new(path, format!("{address:?} is no IP address of one host")));
            }
        }
        for (index, port) in self.spec.ports.iter().enumerate() {
            if port.port == 0 {
                violations.push(Violation::new(format!("spec.ports[{index}].port"), "0 is no port"));
            }
            if self.spec.ports.len() > 1 && port.name.is_empty() {
                let message = "is needed where a service has several ports";
                violations.push(Violation::new(format!("spec.ports[{index}].name"), message));
            }
            let same = |other: &ServicePort| other.port == port.port && other.protocol == port.protocol;
            if self.spec.ports[..index].iter().any(same) {
                let message = format!("{} is there twice", port.port);
                violations.push(Violation::new(format!("spec.ports[{index}].port"), message));
            }
            if self.spec.ports[..index].iter().any(|other| !port.name.is_empty() && other.name == port.name) {
                violations.push(Violation::new(
                    format!("spec.ports[{index}].name"),
                    format!("{:?} is there twice", port.name),
                ));
            }
        }
        violations
    }
}

impl EndpointSlice {
    /// What no single field's type can say.
    pub fn validate(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        if let Err(message) = weight(&self.metadata.labels) {
            violations.push(Violation::new(format!("metadata.labels[{WEIGHT_LABEL}]"), message));
        }
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            if endpoint.addresses.is_empty() {
                violations.push(Violation::new(format!("endpoints[{index}].addresses"), "is empty"));
            }
            for (position, address) in endpoint.addresses.iter().enumerate() {
                let (family, fits): (_, fn(&IpAddr) -> bool) = match self.address_type {
                    AddressType::IPv4 => ("IPv4", IpAddr::is_ipv4),
                    AddressType::IPv6 => ("IPv6", IpAddr::is_ipv6),
                    AddressType::Fqdn => continue,
                };
                if !address.parse().is_ok_and(|address| fits(&address) && is_one_host(address)) {
                    let path = format!("endpoints[{index}].addresses[{position}]");
                    let message = format!("{address:?} is no {family} address of one host");
                    violations.push(Violation::new(path, message));
                }
            }
        }
        for (index, port) in self.ports.iter().enumerate() {
            if port.port == Some(0) {
                violations.push(Violation::new(format!("ports[{index}].port"), "0 is no port"));
            }
        }
        violations
    }
}
