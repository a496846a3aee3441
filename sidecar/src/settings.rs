//! What a person can set: flags, environment variables and a YAML file from
//! one table, and the validated values that they become.
//!
//! Each setting is declared once, as a flag. Its environment variable is
//! `HEDDLE_` and the flag in capitals; its key in the file (`--config`) is the
//! flag in camelCase. A flag wins over the variable, that over the file, that
//! over the default. [`layers`] reads them; `cli` has the commands.

// Flags are documented as a terminal shows them.
#![allow(rustdoc::broken_intra_doc_links)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use heddle_api::crd::GatewayDuration;
use heddle_api::name::ServiceName;

use crate::config::AppProtocol;

pub mod layers;

/// Where a control plane listens unless told otherwise.
pub const DEFAULT_CONTROL_PLANE: &str = "127.0.0.1:7200";

/// Where a sidecar's admin listener is tried first.
pub const DEFAULT_ADMIN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7190);

/// Flags that describe the workload; the same for `proxy` and `run`.
#[derive(Debug, Clone, Default, Args)]
pub struct WorkloadArgs {
    /// The service that this workload belongs to
    #[arg(long, value_name = "NAME", env = "HEDDLE_SERVICE")]
    pub service: Option<String>,
    /// Its namespace
    #[arg(long, value_name = "NAME", env = "HEDDLE_NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// The service account that its identity names [default: the service's name]
    #[arg(long, value_name = "NAME", env = "HEDDLE_SERVICE_ACCOUNT")]
    pub service_account: Option<String>,
    /// A port on which the application listens: NAME:PORT[:PROTOCOL] or PORT; PROTOCOL is one of http, http2, grpc, tcp, tls
    #[arg(long, value_name = "NAME:PORT[:PROTOCOL]", env = "HEDDLE_PORT", value_delimiter = ',')]
    pub port: Vec<PortSpec>,
    /// A label of the workload
    #[arg(long, value_name = "KEY=VALUE", env = "HEDDLE_LABEL", value_delimiter = ',')]
    pub label: Vec<Label>,
    /// The zone it runs in
    #[arg(long, value_name = "ZONE", env = "HEDDLE_ZONE", default_value = "")]
    pub zone: String,
    /// How to see that the application is ready: http:/PATH[:PORT], tcp or grpc
    #[arg(long, value_name = "CHECK", env = "HEDDLE_HEALTH", default_value = "tcp")]
    pub health: HealthSpec,
}

/// Flags that say how the sidecar itself works; the same for `proxy` and `run`.
#[derive(Debug, Clone, Args)]
pub struct SidecarArgs {
    /// The control plane, as HOST:PORT [default: 127.0.0.1:7200]
    #[arg(long, value_name = "HOST:PORT", env = "HEDDLE_CONTROL_PLANE", value_parser = parse_host_port)]
    pub control_plane: Option<String>,
    /// A file with a join token [default: minted with the local control plane's key]
    #[arg(long, value_name = "FILE", env = "HEDDLE_JOIN_TOKEN")]
    pub join_token: Option<PathBuf>,
    /// A file with the pod's service account token, of audience heddle.dev: proves the identity in place of a join token
    #[arg(long, value_name = "FILE", env = "HEDDLE_SERVICE_ACCOUNT_TOKEN")]
    pub service_account_token: Option<PathBuf>,
    /// A PEM file with the roots of the mesh, by which the control plane proves itself to the bearer of that token
    #[arg(long, value_name = "FILE", env = "HEDDLE_CA_CERT")]
    pub ca_cert: Option<PathBuf>,
    /// Where the admin listener binds [default: 127.0.0.1:7190, or any free port where that is taken]
    #[arg(long, value_name = "IP:PORT", env = "HEDDLE_ADMIN")]
    pub admin: Option<SocketAddr>,
    /// Threads that forward traffic
    #[arg(long, value_name = "N", env = "HEDDLE_WORKERS", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,
    /// A DNS server to ask for names outside the mesh [default: those of /etc/resolv.conf]
    #[arg(long, value_name = "IP[:PORT]", env = "HEDDLE_RESOLVER", value_delimiter = ',', value_parser = parse_resolver)]
    pub resolver: Vec<SocketAddr>,
    /// What is logged: a level (error, warn, info, debug, trace) or a tracing filter
    #[arg(long, value_name = "FILTER", env = "HEDDLE_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    /// How long open connections may take to end when the sidecar stops [default: 30s; in a pod until the kubelet ends it]
    #[arg(long, value_name = "DURATION", env = "HEDDLE_DRAIN_TIMEOUT", value_parser = parse_duration)]
    pub drain_timeout: Option<Duration>,
    /// How long to go on serving when the sidecar stops, even when nothing is open
    #[arg(long, value_name = "DURATION", env = "HEDDLE_DRAIN_DELAY", default_value = "0s", value_parser = parse_duration)]
    pub drain_delay: Duration,
    /// A YAML file with settings: each flag's name in camelCase
    #[arg(long, value_name = "FILE", env = "HEDDLE_CONFIG")]
    pub config: Option<PathBuf>,
}

impl SidecarArgs {
    /// The control plane's address, as `HOST:PORT`.
    pub fn control_plane(&self) -> &str {
        self.control_plane.as_deref().unwrap_or(DEFAULT_CONTROL_PLANE)
    }
}

/// The workload beside the sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Its service.
    pub service: ServiceName,
    /// The service account of its identity.
    pub account: String,
    /// The ports on which it listens.
    pub ports: Vec<PortSpec>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its zone, empty if unknown.
    pub zone: String,
    /// How its readiness is seen.
    pub health: HealthSpec,
}

/// Settings that do not describe a workload one can run.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSettings {
    /// Without a service there is no identity.
    #[error("no service was named: give --service NAME (or HEDDLE_SERVICE)")]
    NoService,
    /// Names that are no DNS labels.
    #[error("--service, --namespace: {0}")]
    Name(#[from] heddle_api::name::InvalidServiceName),
    /// An account that no identity can carry.
    #[error("--service-account: {0:?} has characters outside a-z A-Z 0-9 . - _")]
    Account(String),
    /// Two ports with one number or one name.
    #[error("--port: {0} is given twice")]
    DuplicatePort(String),
    /// Two values for one label.
    #[error("--label: {0} is given twice")]
    DuplicateLabel(String),
    /// A check of a port that the workload does not have.
    #[error("--health: there is no port to check; give --port, or name one: http:/PATH:PORT")]
    NothingToCheck,
    /// Two ways to prove one identity.
    #[error("--join-token and --service-account-token: a workload proves its identity by one of them")]
    TwoProofs,
    /// A token without the roots, or roots without a token.
    #[error("--service-account-token and --ca-cert are given together or not at all")]
    HalfProof,
}

impl WorkloadArgs {
    /// The workload that the flags describe.
    ///
    /// # Errors
    /// If they contradict each other or lack what is needed.
    pub fn resolve(self) -> Result<Workload, InvalidSettings> {
        let service = self.service.as_deref().ok_or(InvalidSettings::NoService)?;
        let service = ServiceName::new(&self.namespace, service)?;
        let account = self.service_account.unwrap_or_else(|| service.name().to_owned());
        let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if account.is_empty() || !account.bytes().all(valid) {
            return Err(InvalidSettings::Account(account));
        }
        for (index, port) in self.port.iter().enumerate() {
            let earlier = &self.port[..index];
            if earlier.iter().any(|p| p.number == port.number) {
                return Err(InvalidSettings::DuplicatePort(port.number.to_string()));
            }
            if earlier.iter().any(|p| p.name == port.name) {
                return Err(InvalidSettings::DuplicatePort(port.name.clone()));
            }
        }
        let mut labels = BTreeMap::new();
        for Label { key, value } in self.label {
            if labels.insert(key.clone(), value).is_some() {
                return Err(InvalidSettings::DuplicateLabel(key));
            }
        }
        let needs_port = match &self.health {
            HealthSpec::Tcp => false,
            HealthSpec::Http { port, .. } => port.is_none(),
            HealthSpec::Grpc => true,
        };
        if needs_port && self.port.is_empty() {
            return Err(InvalidSettings::NothingToCheck);
        }
        Ok(Workload { service, account, ports: self.port, labels, zone: self.zone, health: self.health })
    }
}

/// A port of the application: `PORT`, `NAME:PORT` or `NAME:PORT:PROTOCOL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// Its name; the number where none was given.
    pub name: String,
    /// Its number, never 0.
    pub number: u16,
    /// What is declared about its bytes.
    pub protocol: AppProtocol,
    /// Whether `protocol` was declared as gRPC, for checks and displays.
    pub grpc: bool,
}

/// A text that describes no port, label or health check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidSpec(pub(crate) String);

impl FromStr for PortSpec {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        let mut parts = text.split(':');
        let (name, number, protocol) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(number), None, None, None) => (number, number, None),
            (Some(name), Some(number), protocol, None) => (name, number, protocol),
            _ => return Err(InvalidSpec(format!("{text:?} is not PORT, NAME:PORT or NAME:PORT:PROTOCOL"))),
        };
        let number = match number.parse() {
            Ok(0) | Err(_) => {
                return Err(InvalidSpec(format!("{number:?} is no port between 1 and 65535 (in {text:?})")));
            }
            Ok(number) => number,
        };
        if name.is_empty() {
            return Err(InvalidSpec(format!("the port's name is empty (in {text:?})")));
        }
        let protocol_word = protocol.map(str::to_ascii_lowercase);
        let protocol = match protocol_word.as_deref() {
            None => AppProtocol::Detect,
            Some("http" | "http1") => AppProtocol::Http,
            Some("http2" | "h2c" | "grpc") => AppProtocol::Http2,
            Some("tcp") => AppProtocol::Tcp,
            Some("tls") => AppProtocol::Tls,
            Some(other) => {
                return Err(InvalidSpec(format!(
                    "{other:?} is no protocol (in {text:?}): http, http2, grpc, tcp or tls"
                )));
            }
        };
        let grpc = protocol_word.as_deref() == Some("grpc");
        Ok(Self { name: name.to_owned(), number, protocol, grpc })
    }
}

/// A label: `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Its key, not empty.
    pub key: String,
    /// Its value.
    pub value: String,
}

impl FromStr for Label {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self { key: key.into(), value: value.into() }),
            _ => Err(InvalidSpec(format!("{text:?} is not KEY=VALUE"))),
        }
    }
}

/// How to see that the application is ready.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum HealthSpec {
    /// Each declared port accepts connections.
    #[default]
    Tcp,
    /// A GET is answered with a status below 400.
    Http {
        /// The path, beginning with `/`.
        path: String,
        /// The port; the first declared one if `None`.
        port: Option<u16>,
    },
    /// `grpc.health.v1.Health/Check` on the first declared port says SERVING.
    Grpc,
}

impl FromStr for HealthSpec {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        let fail = || InvalidSpec(format!("{text:?} is no health check: http:/PATH[:PORT], tcp or grpc"));
        match text {
            "tcp" => return Ok(Self::Tcp),
            "grpc" => return Ok(Self::Grpc),
            _ => {}
        }
        let rest = text.strip_prefix("http:").filter(|rest| rest.starts_with('/')).ok_or_else(fail)?;
        if !rest.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(fail());
        }
        let (path, port) = match rest.rsplit_once(':') {
            Some((path, port)) => match port.parse() {
                Ok(0) | Err(_) => return Err(fail()),
                Ok(port) => (path, Some(port)),
            },
            None => (rest, None),
        };
        Ok(Self::Http { path: path.to_owned(), port })
    }
}

/// A duration in the Gateway API's form (GEP-2257): `1h30m`, `10s`, `250ms`.
///
/// # Errors
/// If the text has another form.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidSpec> {
    text.parse::<GatewayDuration>()
        .map(GatewayDuration::get)
        .map_err(|_| InvalidSpec(format!("{text:?} is no duration such as 10s, 250ms or 1h30m")))
}

/// `HOST:PORT`, with an IPv6 address in brackets.
///
/// # Errors
/// If the text has another form.
pub fn parse_host_port(text: &str) -> Result<String, InvalidSpec> {
    let is_host = |host: &str| match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|address| address.contains(':')),
        None => !host.is_empty() && !host.contains(':'),
    };
    match text.rsplit_once(':').map(|(host, port)| (is_host(host), port.parse())) {
        Some((true, Ok(1..=u16::MAX))) => Ok(text.to_owned()),
        _ => Err(InvalidSpec(format!("{text:?} is not HOST:PORT, such as 127.0.0.1:7200 or [::1]:7200"))),
    }
}

/// The address of a DNS server, with its port where that is not 53.
///
/// # Errors
/// If the text has another form.
pub fn parse_resolver(text: &str) -> Result<SocketAddr, InvalidSpec> {
    let address = text.parse().ok().or_else(|| Some(SocketAddr::new(text.parse().ok()?, 53)));
    address.ok_or_else(|| InvalidSpec(format!("{text:?} is no IP address, alone or with a port")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_have_a_port_of_their_own_or_the_usual_one() {
        let read = |text: &str| parse_resolver(text).map(|address| address.to_string());
        assert_eq!(read("192.0.2.1"), Ok("192.0.2.1:53".into()));
        assert_eq!(read("[::1]:5353"), Ok("[::1]:5353".into()));
        assert_eq!(read("::1"), Ok("[::1]:53".into()));
        assert!(read("resolver.example").is_err());
    }

    #[test]
    fn ports_are_read_in_every_form() {
        let port = |text: &str| text.parse::<PortSpec>();
        assert_eq!(
            port("8080").unwrap(),
            PortSpec { name: "8080".into(), number: 8080, protocol: AppProtocol::Detect, grpc: false }
        );
        assert_eq!(port("web:80").unwrap().name, "web");
        assert_eq!(port("web:80:HTTP").unwrap().protocol, AppProtocol::Http);
        let grpc = port("api:9090:grpc").unwrap();
        assert!(grpc.grpc && grpc.protocol == AppProtocol::Http2);
        for bad in ["", "0", "65536", "web", "web:", ":80", "web:80:ftp", "web:80:tcp:x"] {
            assert!(port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn health_checks_are_read_in_every_form() {
        let health = |text: &str| text.parse::<HealthSpec>();
        assert_eq!(health("tcp").unwrap(), HealthSpec::Tcp);
        assert_eq!(health("grpc").unwrap(), HealthSpec::Grpc);
        assert_eq!(health("http:/live").unwrap(), HealthSpec::Http { path: "/live".into(), port: None });
        assert_eq!(
            health("http:/live?x=1:8081").unwrap(),
            HealthSpec::Http { path: "/live?x=1".into(), port: Some(8081) }
        );
        for bad in ["", "http", "http:", "http:live", "http:/a b", "http:/:0", "udp"] {
            assert!(health(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_those_of_the_gateway_api() {
        assert_eq!(parse_duration("1h30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(parse_duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(parse_duration("0s").unwrap(), Duration::ZERO);
        for bad in ["", "5", "s", "1.5s", "-1s", "1d", "123456s", "1 s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_workload_needs_a_service_and_distinct_ports() {
        let args = |service: Option<&str>, ports: &[&str]| WorkloadArgs {
            service: service.map(str::to_owned),
            namespace: "shop".into(),
            port: ports.iter().map(|p| p.parse().unwrap()).collect(),
            ..WorkloadArgs::default()
        };
        assert!(matches!(args(None, &[]).resolve(), Err(InvalidSettings::NoService)));
        assert!(matches!(
            args(Some("a"), &["x:80", "y:80"]).resolve(),
            Err(InvalidSettings::DuplicatePort(_))
        ));
        assert!(matches!(
            args(Some("a"), &["x:80", "x:81"]).resolve(),
            Err(InvalidSettings::DuplicatePort(_))
        ));
        assert!(matches!(args(Some("a_b"), &[]).resolve(), Err(InvalidSettings::Name(_))));
        let workload = args(Some("users"), &["80"]).resolve().unwrap();
        assert_eq!((workload.service.as_str(), workload.account.as_str()), ("shop/users", "users"));
    }
}
