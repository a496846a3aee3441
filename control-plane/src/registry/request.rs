//! Reads what a sidecar says about its workload. Nothing of it is believed
//! that its certificate does not allow, and everything has a bound.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use heddle_api::crd;
use heddle_api::discovery::v1;
use heddle_api::name::ServiceName;

use crate::alerts::Reported;
use crate::ca::Subject;
use crate::model::{Health, RegisteredPort, Registration};
use crate::reports::Report;

/// Why a registration was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// The bearer of this certificate may not register that service.
    #[error(
        "{identity} may register the service {allowed:?}, not {asked:?}: a join token names the one service \
         that its bearer may register"
    )]
    Service { identity: String, allowed: String, asked: String },
    /// A field has an impossible value.
    #[error("{field}: {reason}")]
    Field { field: &'static str, reason: String },
}

/// Bounds on what one workload may put into everyone's memory; each is several
/// times what a Kubernetes object of the same kind holds in practice.
const MAX_PORTS: usize = 64;
const MAX_LABELS: usize = 64;
const MAX_TEXT: usize = 253;

/// As many as a sidecar watches for, and the longest `namespace/policy/name`.
const MAX_ALERTS: usize = 256;
const MAX_ALERT_ID: usize = 63 + 1 + 253 + 1 + 63;

/// The registration that `request` asks for on behalf of `subject`.
pub(crate) fn read(request: v1::RegisterRequest, subject: &Subject) -> Result<Registration, Refused> {
    let field = |field, reason: String| Refused::Field { field, reason };
    let identity = subject.identity.clone();
    let allowed = subject.service.as_deref().unwrap_or_else(|| identity.account());
    if request.service != allowed {
        return Err(Refused::Service {
            identity: identity.as_str().into(),
            allowed: allowed.into(),
            asked: request.service,
        });
    }
    let service = ServiceName::new(identity.namespace(), &request.service)
        .map_err(|error| field("service", error.to_string()))?;
    if request.instance.is_empty() {
        return Err(field("instance", "is empty".into()));
    }
    text("instance", &request.instance)?;
    text("zone", &request.zone)?;
    let health = health(request.health(), request.score, request.health_cause.clone())?;
    let address: IpAddr = request
        .address
        .parse()
        .map_err(|_| field("address", format!("{:?} is no IP address", request.address)))?;
    if address.is_unspecified() || address.is_multicast() {
        return Err(field("address", format!("{address} cannot be dialled")));
    }
    if request.ports.len() > MAX_PORTS {
        return Err(field("ports", format!("are {}; at most {MAX_PORTS} are accepted", request.ports.len())));
    }
    let mut ports: Vec<RegisteredPort> = Vec::with_capacity(request.ports.len());
    for given in request.ports {
        text("ports.name", &given.name)?;
        let protocol = given.protocol();
        let port = port("ports.port", given.port)?;
        if ports.iter().any(|p| p.port == port) {
            return Err(field("ports.port", format!("{port} is given twice")));
        }
        ports.push(RegisteredPort { name: given.name, port, protocol });
    }
    if request.labels.len() > MAX_LABELS {
        return Err(field(
            "labels",
            format!("are {}; at most {MAX_LABELS} are accepted", request.labels.len()),
        ));
    }
    for (key, value) in &request.labels {
        text("labels", key)?;
        text("labels", value)?;
    }
    let labels: BTreeMap<String, String> = request.labels.into_iter().collect();
    crd::weight(&labels).map_err(|reason| field("labels[heddle.dev/weight]", reason))?;
    Ok(Registration {
        instance: request.instance,
        identity,
        service,
        address,
        inbound_port: port("inbound_port", request.inbound_port)?,
        ports,
        labels,
        zone: request.zone,
        ready: request.ready,
        draining: request.draining,
        health,
        admin: socket("admin", &request.admin)?,
        pid: request.pid,
        app_address: socket("app_address", &request.app_address)?,
    })
}

/// The alerts that a workload reports. Whether they are its to report is for the rules to say.
pub(crate) fn alerts(reported: Vec<v1::FiringAlert>) -> Result<Vec<Reported>, Refused> {
    let refused = |reason: String| Refused::Field { field: "alerts", reason };
    if reported.len() > MAX_ALERTS {
        return Err(refused(format!("are {}; at most {MAX_ALERTS} are accepted", reported.len())));
    }
    let mut ids = BTreeSet::new();
    let read = |v1::FiringAlert { id, value, requests }| {
        if id.len() > MAX_ALERT_ID || !value.is_finite() {
            return Err(refused("have an id that is too long, or a value that is no number".into()));
        }
        if !ids.insert(id.clone()) {
            return Err(refused(format!("name {id:?} twice")));
        }
        Ok(Reported { rule: id, value, requests })
    };
    reported.into_iter().map(read).collect()
}

/// What a pod reports about itself.
pub(crate) fn report(request: v1::ReportRequest) -> Result<Report, Refused> {
    // A state that only newer sidecars know is none.
    let state = request.health();
    let health = health(state, request.score, request.health_cause)?;
    Ok(Report { health, alerts: alerts(request.alerts)? })
}

fn health(state: v1::WorkloadHealth, score: u32, cause: String) -> Result<Health, Refused> {
    text("health_cause", &cause)?;
    if score > 100 {
        return Err(Refused::Field { field: "score", reason: format!("{score} is more than 100") });
    }
    Ok(Health { state, score, cause })
}

fn text(field: &'static str, text: &str) -> Result<(), Refused> {
    if text.len() > MAX_TEXT || text.chars().any(char::is_control) {
        let reason = format!("is longer than {MAX_TEXT} bytes or has control characters");
        return Err(Refused::Field { field, reason });
    }
    Ok(())
}

fn port(field: &'static str, number: u32) -> Result<u16, Refused> {
    u16::try_from(number)
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| Refused::Field { field, reason: format!("{number} is no port") })
}

fn socket<T: std::str::FromStr>(field: &'static str, text: &str) -> Result<Option<T>, Refused> {
    if text.is_empty() {
        return Ok(None);
    }
    let reason = || Refused::Field { field, reason: format!("{text:?} is not IP:PORT") };
    text.parse().map(Some).map_err(|_| reason())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(service: Option<&str>) -> Subject {
        Subject {
            identity: "spiffe://mesh.local/ns/shop/sa/users".parse().unwrap(),
            service: service.map(Into::into),
            pod: None,
        }
    }

    fn request() -> v1::RegisterRequest {
        v1::RegisterRequest {
            instance: "users-1".into(),
            service: "users".into(),
            address: "127.0.0.1".into(),
            inbound_port: 7102,
            ..Default::default()
        }
    }

    #[test]
    fn the_service_is_the_account_unless_the_certificate_says_another() {
        let registration = read(request(), &subject(None)).unwrap();
        assert_eq!(registration.service.as_str(), "shop/users");
        assert!(matches!(read(request(), &subject(Some("orders"))), Err(Refused::Service { .. })));
        let orders = v1::RegisterRequest { service: "orders".into(), ..request() };
        assert!(read(orders.clone(), &subject(Some("orders"))).is_ok());
        assert!(matches!(read(orders, &subject(None)), Err(Refused::Service { .. })));
    }

    #[test]
    fn reported_alerts_have_bounds() {
        let alert = |id: String, value| v1::FiringAlert { id, value, requests: 1 };
        assert_eq!(alerts(vec![alert("a/b/c".into(), 1.5)]).unwrap()[0].rule, "a/b/c");
        for wrong in [
            vec![alert("x".repeat(382), 1.0)],
            vec![alert("a".into(), f64::NAN)],
            vec![alert("a".into(), 1.0), alert("a".into(), 2.0)],
            (0..257).map(|n| alert(n.to_string(), 1.0)).collect(),
        ] {
            assert!(matches!(alerts(wrong), Err(Refused::Field { field: "alerts", .. })));
        }
    }

    #[test]
    fn impossible_values_are_refused_with_their_field() {
        let weight = |weight: &str| [(crd::WEIGHT_LABEL.to_owned(), weight.to_owned())].into();
        let port = |port| v1::RegisteredPort { port, ..Default::default() };
        let cases = [
            ("instance", v1::RegisterRequest { instance: String::new(), ..request() }),
            ("address", v1::RegisterRequest { address: "users".into(), ..request() }),
            ("address", v1::RegisterRequest { address: "0.0.0.0".into(), ..request() }),
            ("inbound_port", v1::RegisterRequest { inbound_port: 0, ..request() }),
            ("inbound_port", v1::RegisterRequest { inbound_port: 65536, ..request() }),
            ("ports.port", v1::RegisterRequest { ports: vec![port(80), port(80)], ..request() }),
            ("ports", v1::RegisterRequest { ports: (1..100).map(port).collect(), ..request() }),
            ("admin", v1::RegisterRequest { admin: "localhost:1".into(), ..request() }),
            ("zone", v1::RegisterRequest { zone: "a\nb".into(), ..request() }),
            ("score", v1::RegisterRequest { score: 101, ..request() }),
            ("health_cause", v1::RegisterRequest { health_cause: "a\nb".into(), ..request() }),
            ("labels[heddle.dev/weight]", v1::RegisterRequest { labels: weight("heavy"), ..request() }),
            ("labels[heddle.dev/weight]", v1::RegisterRequest { labels: weight("0"), ..request() }),
        ];
        for (expected, request) in cases {
            match read(request, &subject(None)) {
                Err(Refused::Field { field, .. }) => assert_eq!(field, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }
}
