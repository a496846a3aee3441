//! `ExternalService`: names outside the mesh, where they lead, and how the way
//! there is protected.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::gateway::is_section_name;
use super::rule::Rule;
use super::{Attachment, EndpointWeight, Kind, Metadata, PortNumber, Priority, Violation};
use crate::name::ServiceName;

/// Names outside the mesh and where they lead: to fixed addresses, to what DNS says, to
/// services of the registry, in the order of their priorities. Clients reach it as they reach a
/// Service, by its name and namespace, and TrafficPolicies attach to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new(
        format!("(has(self.endpoints) && self.endpoints.size() > 0) || {ONE_HOST}"),
        "is needed unless there is one host, which then leads somewhere by itself",
    )
    .at("endpoints"),
    Rule::new(
        "self.ports.size() == 1 || !has(self.endpoints) || !self.endpoints.exists(endpoint, has(endpoint.port))",
        "say a port, which stands for one port, but there are several",
    )
    .at("endpoints"),
    Rule::new(
        format!("self.ports.all(port, !has(port.tls) || has(port.tls.serverName) || {ONE_HOST})"),
        "tls.serverName is needed unless there is one host",
    )
    .at("ports"),
]))]
pub struct ExternalServiceSpec {
    /// Further names under which clients of this namespace reach it, in full: such as
    /// `api.payments.example`. From `heddle-system` they are for clients of every namespace
    /// whose own says nothing about them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "set", "x-kubernetes-validations" = [
        Rule::new("self.all(host, host.contains('.'))", "names without a dot are those of services"),
        Rule::new(
            "!self.exists(host, host.endsWith('.svc') || host.endsWith('.localhost'))",
            "names under svc and localhost cannot be outside the mesh",
        ),
    ]))]
    pub hosts: Vec<DnsName>,
    /// The ports that clients dial.
    #[schemars(length(min = 1, max = 32), extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["name"],
        "x-kubernetes-validations" = [Rule::new(
            "self.all(port, self.exists_one(other, other.port == port.port))",
            "two ports have one number",
        )],
    ))]
    pub ports: Vec<ExternalPort>,
    /// Where it leads. Default: to the addresses that DNS knows for the one host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub endpoints: Vec<ExternalEndpoint>,
}

/// A condition of rules: there is one host.
const ONE_HOST: &str = "(has(self.hosts) && self.hosts.size() == 1)";

/// A condition of rules: an endpoint is no service.
const NO_SERVICE: &str = "!has(self.service)";

/// What an endpoint that is a service does not say.
const OF_A_SERVICE: &str = "cannot be said of a service, whose endpoints have their own";

/// A port that clients dial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [Rule::new(
    "!has(self.tls) || !has(self.protocol) || self.protocol != 'TLS'",
    "has no meaning with protocol TLS, where applications begin TLS themselves",
)
.at("tls")]))]
pub struct ExternalPort {
    /// Its name, for `sectionName` of policies.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: String,
    /// Its number.
    pub port: PortNumber,
    /// The port of the endpoints. Default: the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<PortNumber>,
    /// What clients speak. Default: as their first bytes say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<ExternalProtocol>,
    /// Sidecars wrap what clients send into TLS, and verify the server. Absent: bytes go as
    /// clients send them, which may be TLS of their own. Endpoints that have a sidecar are
    /// reached by mutual TLS all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsOrigination>,
}

/// What clients speak on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum ExternalProtocol {
    /// HTTP/1 or HTTP/2, whichever the client starts with.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC.
    Grpc,
    /// Opaque bytes.
    Tcp,
    /// TLS of the application's own.
    Tls,
}

/// TLS that sidecars begin. The server has to prove its name; nothing turns that off.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsOrigination {
    /// The name that the server is asked for (SNI) and has to prove. Default: the one host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<DnsName>,
    /// Names of which the server has to prove one, in place of `serverName`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub subject_alt_names: Vec<DnsName>,
    /// The certificates, as PEM, one of which the server's has to lead to. Default: those that
    /// the sidecar's operating system trusts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 262_144))]
    pub ca_certificates: Option<String>,
}

/// Where an external service leads: exactly one of `address`, `dns` and `service`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::exactly_one(&["address", "dns", "service"]),
    Rule::new(format!("{NO_SERVICE} || !has(self.port)"), OF_A_SERVICE).at("port"),
    Rule::new(format!("{NO_SERVICE} || !has(self.weight)"), OF_A_SERVICE).at("weight"),
    Rule::new(format!("{NO_SERVICE} || !has(self.zone)"), OF_A_SERVICE).at("zone"),
]))]
pub struct ExternalEndpoint {
    /// An IP address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 45))]
    pub address: Option<String>,
    /// A name that sidecars ask DNS for, again and again; each of its addresses is an endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsName>,
    /// A service of the registry; each of its endpoints is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<RegistryService>,
    /// The port of this endpoint in place of `targetPort`, where there is one port only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<PortNumber>,
    /// Its level. Endpoints of a higher number are used where those of lower ones cannot take
    /// everything. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = 0))]
    pub priority: Option<Priority>,
    /// The share of traffic of each of its addresses, relative to others of its level. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<EndpointWeight>,
    /// The zone it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub zone: Option<String>,
}

/// A service of the registry. A port of the external service leads to its port of the same
/// number, or else of the same name, or else to the only one that it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegistryService {
    /// Its name. The external service may have the same.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub name: String,
    /// Its namespace. Default: that of the external service.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub namespace: Option<String>,
}

/// A name of the DNS in lower case, such as `api.payments.example`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DnsName(String);

/// A text that is no DNS name in lower case.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no DNS name in lower case")]
pub struct InvalidDnsName(String);

impl DnsName {
    /// The name, without a final dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DnsName {
    type Err = InvalidDnsName;

    fn from_str(text: &str) -> Result<Self, InvalidDnsName> {
        // No top-level domain is a number (RFC 3696, section 2), but the end of an address is.
        let number = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        let lengths = text.split('.').all(|label| label.len() <= 63);
        if is_section_name(text) && lengths && !number {
            Ok(Self(text.into()))
        } else {
            Err(InvalidDnsName(text.into()))
        }
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for DnsName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for DnsName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for DnsName {
    fn schema_name() -> Cow<'static, str> {
        "DnsName".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        const LABEL: &str = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?";
        json_schema!({
            "type": "string",
            "maxLength": 253,
            "pattern": format!(r"^{LABEL}(\.{LABEL})*$"),
            "x-kubernetes-validations": [Rule::new(
                r"!self.matches('(^|\\.)[0-9]+$')",
                "is no name of the DNS, no last label of which is a number",
            )],
        })
    }
}

impl TlsOrigination {
    /// The certificates of `caCertificates`; none without it.
    ///
    /// # Errors
    /// Why they cannot be trusted in: no PEM, no certificate in it, or one that cannot be read.
    pub fn roots(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let Some(pem) = &self.ca_certificates else { return Ok(Vec::new()) };
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let roots = roots.map_err(|error| format!("is no PEM: {error}"))?;
        if roots.is_empty() {
            return Err("has no certificate in it".into());
        }
        for (index, root) in roots.iter().enumerate() {
            if let Err(error) = webpki::anchor_from_trusted_cert(root) {
                return Err(format!("has a certificate, number {}, that cannot be read: {error}", index + 1));
            }
        }
        Ok(roots)
    }

    fn validate(&self, path: &str, hosts: &[DnsName], violations: &mut Vec<Violation>) {
        if self.server_name.is_none() && hosts.len() != 1 {
            let message = format!("is needed: there are {} hosts, none of which is meant alone", hosts.len());
            violations.push(Violation::new(format!("{path}.serverName"), message));
        }
        if self.subject_alt_names.len() > 16 {
            violations.push(Violation::new(format!("{path}.subjectAltNames"), "has more than 16 names"));
        }
        if let Err(message) = self.roots() {
            violations.push(Violation::new(format!("{path}.caCertificates"), message));
        }
    }
}

impl ExternalServiceSpec {
    /// The names that DNS is asked for, with the endpoint that says so; `None`: the one host.
    pub fn dns(&self) -> impl Iterator<Item = (&DnsName, Option<&ExternalEndpoint>)> {
        let host = self.hosts.iter().filter(|_| self.endpoints.is_empty()).map(|host| (host, None));
        let named =
            self.endpoints.iter().filter_map(|endpoint| Some((endpoint.dns.as_ref()?, Some(endpoint))));
        host.chain(named)
    }

    fn validate_ports(&self, violations: &mut Vec<Violation>) {
        if self.ports.is_empty() || self.ports.len() > 32 {
            violations.push(Violation::new("spec.ports", "has to name between 1 and 32 ports"));
        }
        for (index, port) in self.ports.iter().enumerate() {
            let (path, earlier) = (format!("spec.ports[{index}]"), &self.ports[..index]);
            if !is_section_name(&port.name) || port.name.contains('.') || port.name.len() > 63 {
                let message = format!("{:?} is no name of a port", port.name);
                violations.push(Violation::new(format!("{path}.name"), message));
            }
            if earlier.iter().any(|other| other.name == port.name) {
                violations.push(Violation::new(format!("{path}.name"), "is named twice"));
            }
            if earlier.iter().any(|other| other.port == port.port) {
                violations.push(Violation::new(format!("{path}.port"), "is named twice"));
            }
            let Some(tls) = &port.tls else { continue };
            if port.protocol == Some(ExternalProtocol::Tls) {
                let message = "has no meaning with protocol TLS, where applications begin TLS themselves";
                violations.push(Violation::new(format!("{path}.tls"), message));
            }
            tls.validate(&format!("{path}.tls"), &self.hosts, violations);
        }
    }

    fn validate_hosts(&self, violations: &mut Vec<Violation>) {
        if self.hosts.len() > 32 {
            violations.push(Violation::new("spec.hosts", "has more than 32 names"));
        }
        for (index, host) in self.hosts.iter().enumerate() {
            let (path, name) = (format!("spec.hosts[{index}]"), host.as_str());
            if self.hosts[..index].contains(host) {
                violations.push(Violation::new(&path, "is named twice"));
            }
            let under = |domain: &str| name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
            if !name.contains('.') {
                let message = format!("{name:?} is no full name: names without a dot are those of services");
                violations.push(Violation::new(path, message));
            } else if under("svc") || under("localhost") {
                let message = format!("{name:?} cannot be outside the mesh");
                violations.push(Violation::new(path, message));
            }
        }
    }

    fn validate_endpoints(&self, namespace: &str, violations: &mut Vec<Violation>) {
        if self.endpoints.len() > 64 {
            violations.push(Violation::new("spec.endpoints", "has more than 64 endpoints"));
        }
        if self.endpoints.is_empty() && self.hosts.len() != 1 {
            let message = format!(
                "is needed: there are {} hosts, and only one by itself leads somewhere",
                self.hosts.len()
            );
            violations.push(Violation::new("spec.endpoints", message));
        }
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let path = format!("spec.endpoints[{index}]");
            endpoint.validate(&path, self.ports.len(), violations);
            let place = endpoint.place(namespace);
            if place.is_some() && self.endpoints[..index].iter().any(|other| other.place(namespace) == place)
            {
                violations.push(Violation::new(path, "is named twice"));
            }
        }
    }
}

/// What no two endpoints of a service share, however they are written.
#[derive(PartialEq)]
enum Place<'a> {
    Address(IpAddr, Option<PortNumber>),
    Dns(&'a DnsName),
    Service { namespace: &'a str, name: &'a str },
}

impl ExternalEndpoint {
    /// Where it leads from `namespace`; `None` if that cannot be read.
    fn place<'a>(&'a self, namespace: &'a str) -> Option<Place<'a>> {
        if let Some(address) = &self.address {
            return Some(Place::Address(address.parse::<IpAddr>().ok()?.to_canonical(), self.port));
        }
        if let Some(name) = &self.dns {
            return Some(Place::Dns(name));
        }
        let service = self.service.as_ref()?;
        let namespace = service.namespace.as_deref().unwrap_or(namespace);
        Some(Place::Service { namespace, name: &service.name })
    }

    fn validate(&self, path: &str, ports: usize, violations: &mut Vec<Violation>) {
        let mut add = |field: &str, message: String| {
            violations.push(Violation::new(format!("{path}{field}"), message));
        };
        let given = [self.address.is_some(), self.dns.is_some(), self.service.is_some()];
        let count = given.into_iter().filter(|given| *given).count();
        if count != 1 {
            add("", format!("has {count} of address, dns and service; exactly one is needed"));
        }
        let is_one_host = |address: IpAddr| {
            !address.to_canonical().is_unspecified() && !address.to_canonical().is_multicast()
        };
        if let Some(address) = self.address.as_ref().filter(|text| !text.parse().is_ok_and(is_one_host)) {
            add(".address", format!("{address:?} is no IP address of one host"));
        }
        if self.port.is_some() && ports > 1 {
            add(".port", format!("stands for one port, but there are {ports}"));
        }
        if self.zone.as_ref().is_some_and(|zone| zone.is_empty() || zone.len() > 63) {
            add(".zone", "has to have between 1 and 63 characters".into());
        }
        let Some(RegistryService { name, namespace }) = &self.service else { return };
        if let Err(error) = ServiceName::new(namespace.as_deref().unwrap_or("default"), name) {
            add(".service", error.to_string());
        }
        let own = [
            (self.port.is_some(), ".port", "ports"),
            (self.weight.is_some(), ".weight", "weights"),
            (self.zone.is_some(), ".zone", "zones"),
        ];
        for (_, field, what) in own.into_iter().filter(|(given, ..)| *given) {
            add(field, format!("cannot be said of a service, whose endpoints have {what} of their own"));
        }
    }
}

impl Kind for ExternalServiceSpec {
    const KIND: &'static str = "ExternalService";
    const PLURAL: &'static str = "externalservices";
    const NAMESPACED: bool = true;
    const SHORT_NAMES: &'static [&'static str] = &["extsvc"];
    const ATTACHMENT: Option<Attachment> = None;
    const COLUMNS: &'static [(&'static str, &'static str)] = &[("Hosts", ".spec.hosts")];

    fn name_schema() -> Option<Schema> {
        Some(json_schema!({ "maxLength": 63, "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$" }))
    }

    fn validate(&self, metadata: &Metadata) -> Vec<Violation> {
        let mut violations = Vec::new();
        if let Err(error) = ServiceName::new(metadata.namespace(), &metadata.name) {
            violations.push(Violation::new("metadata.name", error.to_string()));
        }
        self.validate_hosts(&mut violations);
        self.validate_ports(&mut violations);
        self.validate_endpoints(metadata.namespace(), &mut violations);
        violations
    }
}

#[cfg(test)]
mod tests;
