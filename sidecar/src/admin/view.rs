//! What the admin listener shows, as JSON.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use heddle_api::join_token::RootHash;
use heddle_api::name::ServiceName;
use heddle_api::tls::{Credentials, spiffe_id};
use heddle_api::x509;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use super::{Admin, Phase};
use crate::agent::timestamp;
use crate::config::{AppProtocol, EndpointHealth, Lookup, Port, Service, Workload};
use crate::policy::breaker::{Cause, CircuitState};
use crate::policy::health_check::Verdict;
use crate::policy::rate_limit::{Levels, RateLimit};
use crate::policy::score::Signal;
use crate::telemetry::metrics::{Circuit, Direction, EndpointLabels, Labeling};
use crate::upstream::Check;

/// `/config`: the state of the sidecar, and what it was told.
pub(super) fn config(admin: &Admin) -> Value {
    let snapshot = admin.config.load();
    let standing = *admin.standing.borrow();
    let mut services: Vec<_> = snapshot.services.iter().collect();
    services.sort_unstable_by_key(|(name, _)| *name);
    let mut addresses: Vec<_> = snapshot.addresses.iter().collect();
    addresses.sort_unstable_by_key(|(address, _)| **address);
    json!({
        "phase": match *admin.phase.borrow() {
            Phase::Starting => "starting",
            Phase::Bypassed => "bypassed",
            Phase::Serving => "serving",
            Phase::Draining => "draining",
        },
        "controlPlane": admin.control_plane,
        "registered": *admin.registered.borrow(),
        "appReady": *admin.app_ready.borrow(),
        "health": {
            "state": standing.state.as_str(),
            "score": standing.score,
            "cause": standing.cause.map(Signal::as_str),
        },
        "identity": admin.credentials.get().and_then(identity),
        "mesh": snapshot.mesh.as_ref().map(|mesh| json!({
            "trustDomain": mesh.trust_domain,
            "clusterDomain": mesh.cluster_domain,
            "egress": if mesh.allow_any_egress { "AllowAny" } else { "RegistryOnly" },
        })),
        "workload": snapshot.workload.as_ref().map(|workload| json!({
            "service": workload.service.as_str(),
            "ports": ports(&workload.ports),
            "zone": workload.zone,
            "hosts": workload.hosts.iter().map(|(name, service)| (&**name, service.as_str()))
                .collect::<BTreeMap<_, _>>(),
            "accessLog": workload.access_log,
            "sampling": workload.sampling,
            "metricLabels": Direction::ALL.into_iter().map(|direction| {
                (direction.as_str(), workload.metric_labels.of(direction).map(|told| labeling(told)))
            }).collect::<BTreeMap<_, _>>(),
            "rateLimits": rate_limits(workload),
        })),
        "services": services.into_iter().map(|(name, lookup)| match lookup {
            Lookup::Pending => json!({"name": name.as_str(), "state": "pending"}),
            Lookup::Absent => json!({"name": name.as_str(), "state": "absent"}),
            Lookup::Found(service) => found(service),
        }).collect::<Vec<_>>(),
        "addresses": addresses.into_iter().map(|(address, lookup)| json!({
            "address": address.to_string(),
            "service": match lookup {
                Lookup::Found(name) => Some(name.as_str()),
                Lookup::Pending | Lookup::Absent => None,
            },
            "workload": snapshot.workloads.get(address).and_then(|workload| workload.endpoints.first())
                .map(|endpoint| &*endpoint.id),
        })).collect::<Vec<_>>(),
    })
}

/// What is done to the labels of request metrics.
fn labeling(labeling: &Labeling) -> Value {
    let removed = [("peer", labeling.removes_peer), ("route", labeling.removes_route)];
    json!({
        "added": labeling.added.iter().map(|label| &*label.name).collect::<Vec<_>>(),
        "removed": removed.into_iter().filter(|(_, is)| *is).map(|(name, _)| name).collect::<Vec<_>>(),
    })
}

/// The limits on requests to the workload, and how their buckets stand.
fn rate_limits(workload: &Workload) -> Vec<Value> {
    let now = Instant::now();
    // A limit at several ports has the same buckets at each.
    let mut limits: BTreeMap<(&str, &str), (&RateLimit, Vec<u16>)> = BTreeMap::new();
    for (port, limit) in workload.rate_limits.iter().flat_map(|at| at.limits.iter().map(|l| (at.port, l))) {
        limits.entry((&limit.source, &limit.name)).or_insert((limit, Vec::new())).1.push(port);
    }
    let shown = limits.into_iter().map(|((policy, name), (limit, ports))| {
        let Levels { used, empty, least } = limit.levels(now);
        json!({
            "policy": policy,
            "limit": name,
            "ports": ports,
            "burst": limit.quota.burst(),
            "keyed": !limit.key.is_empty(),
            // The tokens of the only bucket, or of the emptiest of those that are not full.
            "remaining": least,
            "usedBuckets": used,
            "emptyBuckets": empty,
        })
    });
    shown.collect()
}

/// `/endpoints`: where each service is, which circuits are open, and which services are degraded.
pub(super) fn endpoints(admin: &Admin) -> Value {
    let snapshot = admin.config.load();
    let (now, time) = (Instant::now(), SystemTime::now());
    let circuits: HashMap<EndpointLabels, Circuit> = admin.metrics.circuits(now).into_iter().collect();
    let circuit = |service: &ServiceName, endpoint: &str| {
        let labels = EndpointLabels {
            service: service.name().into(),
            namespace: service.namespace().into(),
            endpoint: endpoint.into(),
        };
        // Nobody has used it: there is nothing to tell.
        let circuit = circuits.get(&labels)?;
        Some(json!({
            "state": match circuit.state {
                CircuitState::Closed => "closed",
                CircuitState::HalfOpen => "half-open",
                CircuitState::Open => "open",
            },
            "reason": circuit.cause.map(Cause::as_str),
            "until": circuit.until.map(|until| timestamp(time + until.saturating_duration_since(now))),
            "failures": circuit.failures,
        }))
    };
    let all = admin.checks.all();
    let mut by_endpoint: HashMap<(&ServiceName, &str), Vec<&Check>> = HashMap::new();
    for check in &all {
        by_endpoint.entry((&check.key.service, &check.key.endpoint)).or_default().push(check);
    }
    by_endpoint.values_mut().for_each(|checks| checks.sort_unstable_by_key(|check| check.key.port));
    let checked = |checks: &[&Check]| {
        let shown = checks.iter().map(|check| {
            json!({
                "port": check.key.port,
                "state": check.verdict().as_str(),
                "lastError": check.last_error(),
            })
        });
        shown.collect::<Vec<_>>()
    };
    let degraded = admin.metrics.degraded();
    let is_degraded = |service: &ServiceName| {
        degraded.iter().any(|d| *d.service == *service.name() && *d.namespace == *service.namespace())
    };
    let mut found: Vec<&Arc<Service>> = snapshot
        .services
        .values()
        .filter_map(|lookup| match lookup {
            Lookup::Found(service) => Some(service),
            Lookup::Pending | Lookup::Absent => None,
        })
        .collect();
    found.sort_unstable_by_key(|service| &service.name);
    let endpoints = found.into_iter().flat_map(|service| {
        let (circuit, by_endpoint, degraded) = (&circuit, &by_endpoint, is_degraded(&service.name));
        service.endpoints.iter().map(move |endpoint| {
            let checks = by_endpoint.get(&(&service.name, &*endpoint.id));
            let checks = checks.map(Vec::as_slice).unwrap_or_default();
            let health = health(endpoint.health, checks.iter().map(|check| check.verdict()));
            json!({
                "service": service.name.as_str(),
                "id": endpoint.id,
                "address": endpoint.address.to_string(),
                "ports": endpoint.bindings.iter().map(|(service, app)| json!({"service": service, "app": app}))
                    .collect::<Vec<_>>(),
                "inbound": endpoint.mesh.as_ref().and_then(|mesh| mesh.inbound).map(|inbound| inbound.to_string()),
                "identity": endpoint.mesh.as_ref().map(|mesh| mesh.identity.as_str()),
                "zone": endpoint.zone,
                "weight": endpoint.weight,
                "score": endpoint.score,
                "priority": endpoint.priority,
                "health": health,
                "checks": checked(checks),
                "circuit": circuit(&service.name, &endpoint.id),
                "serviceCircuit": circuit(&service.name, ""),
                "serviceDegraded": degraded,
            })
        })
    });
    endpoints.collect()
}

/// Whether an endpoint may get new requests: neither discovery nor checks, at any port, may be
/// against it. Circuits are told apart.
fn health(discovered: EndpointHealth, mut verdicts: impl Iterator<Item = Verdict>) -> &'static str {
    match discovered {
        EndpointHealth::Draining => "draining",
        EndpointHealth::Unhealthy => "unhealthy",
        EndpointHealth::Healthy if verdicts.any(|verdict| verdict == Verdict::Unhealthy) => "unhealthy",
        EndpointHealth::Healthy => "healthy",
    }
}

/// `/certs`: our certificate and the roots we trust. Keys are nowhere shown.
pub(super) fn certificates(credentials: Option<&Arc<Credentials>>) -> Value {
    let Some(credentials) = credentials else { return json!({"certificate": null, "trust": null}) };
    let trust = credentials.trust();
    json!({
        "certificate": credentials.certificate().and_then(|key| {
            let leaf = key.cert.first()?;
            let mut shown = certificate(leaf);
            shown["identity"] = identity(credentials).into();
            Some(shown)
        }),
        "trust": {
            "trustDomain": trust.domain().as_str(),
            "roots": trust.roots().iter().map(certificate).collect::<Vec<_>>(),
        },
    })
}

fn certificate(certificate: &CertificateDer<'_>) -> Value {
    let validity = x509::validity(certificate).ok();
    json!({
        "sha256": RootHash::of(certificate).to_string(),
        "notBefore": validity.map(|validity| timestamp(validity.not_before)),
        "notAfter": validity.map(|validity| timestamp(validity.not_after)),
    })
}

fn identity(credentials: &Arc<Credentials>) -> Option<String> {
    let certificate = credentials.certificate()?;
    spiffe_id(certificate.cert.first()?).ok().map(|id| id.as_str().to_owned())
}

fn found(service: &Service) -> Value {
    json!({
        "name": service.name.as_str(),
        "state": "found",
        "ports": ports(&service.ports),
        "endpoints": service.endpoints.len(),
        "healthyEndpoints": service.endpoints.iter().filter(|endpoint| endpoint.health == EndpointHealth::Healthy).count(),
        "policy": service.policy.source,
        "lastUsed": service.usage.last(),
    })
}

fn ports(ports: &[Port]) -> Vec<Value> {
    let shown = ports.iter().map(|port| {
        let protocol = match port.protocol {
            AppProtocol::Detect => "detect",
            AppProtocol::Http => "http",
            AppProtocol::Http2 => "http2",
            AppProtocol::Tcp => "tcp",
            AppProtocol::Tls => "tls",
        };
        let policy = port.policy.as_ref().map(|policy| policy.source.as_str());
        let tls = port.tls.as_ref().map(|tls| tls.terms().server_name.to_str());
        json!({"port": port.number, "protocol": protocol, "policy": policy, "originatesTlsAs": tls})
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Discovery's word was shown as if checks had no say, and draining as if it were illness.
    #[test]
    fn the_word_shown_is_that_of_discovery_and_checks_together() {
        use EndpointHealth::{Draining, Healthy, Unhealthy};
        for (discovered, verdicts, word) in [
            (Healthy, &[][..], "healthy"),
            (Healthy, &[Verdict::Unknown, Verdict::Healthy], "healthy"),
            (Healthy, &[Verdict::Healthy, Verdict::Unhealthy], "unhealthy"),
            (Unhealthy, &[Verdict::Healthy], "unhealthy"),
            (Draining, &[Verdict::Unhealthy], "draining"),
        ] {
            assert_eq!(health(discovered, verdicts.iter().copied()), word, "{discovered:?} {verdicts:?}");
        }
    }
}
