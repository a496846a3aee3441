//! Health checks.

use heddle_api::crd::{GatewayDuration, HealthCheck, TrafficPolicySpec};
use heddle_api::discovery::v1;
use heddle_api::discovery::v1::health_check::Probe;

use super::{Merged, duration};

impl Merged<'_> {
    /// Where a `timeout` of one object is longer than the `interval` of another, it gives way.
    pub(super) fn health_check(&self) -> v1::HealthCheck {
        fn section(spec: &TrafficPolicySpec) -> Option<&HealthCheck> {
            spec.health_check.as_ref()
        }
        let interval = self.first(section, |check| check.interval).map(GatewayDuration::get);
        let timeout = self.first(section, |check| check.timeout).map(GatewayDuration::get);
        let timeout = timeout.map(|timeout| interval.map_or(timeout, |interval| timeout.min(interval)));
        v1::HealthCheck {
            // Exactly one is given, or the object would have been refused.
            probe: self.first(section, probe),
            interval: interval.map(duration),
            timeout: timeout.map(duration),
            healthy_after: self.first(section, |check| check.healthy_after).map(|n| n.get()),
            unhealthy_after: self.first(section, |check| check.unhealthy_after).map(|n| n.get()),
        }
    }
}

fn probe(check: &HealthCheck) -> Option<Probe> {
    let http = check.http.as_ref().map(|http| Probe::HttpPath(http.path.clone()));
    let tcp = check.tcp.as_ref().map(|_| Probe::Tcp(true));
    let grpc =
        || check.grpc.as_ref().map(|grpc| Probe::GrpcService(grpc.service.clone().unwrap_or_default()));
    http.or(tcp).or_else(grpc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::tests::{USERS, model, policy, service};

    #[test]
    fn checks_are_merged_field_by_field_and_a_timeout_gives_way() {
        let text = USERS.to_owned()
            + &policy("own", "  healthCheck: {http: {path: /live}, interval: 2s, healthyAfter: 4}")
            + &policy("all", "  healthCheck: {tcp: {}, interval: 20s, timeout: 5s, unhealthyAfter: 6}")
                .replace("kind: Service, name: users", "kind: Namespace, name: shop");
        let compiled = service(&model(&text, &[]), "shop/users").policy.unwrap().health_check.unwrap();
        let two = Some(prost_types::Duration { seconds: 2, nanos: 0 });
        let expected = v1::HealthCheck {
            probe: Some(Probe::HttpPath("/live".into())),
            interval: two,
            timeout: two,
            healthy_after: Some(4),
            unhealthy_after: Some(6),
        };
        assert_eq!(compiled, expected);
        let probe = |fields: &str| {
            let text = USERS.to_owned() + &policy("p", &format!("  healthCheck: {{{fields}}}"));
            service(&model(&text, &[]), "shop/users").policy.unwrap().health_check.unwrap().probe
        };
        assert_eq!(probe("tcp: {}"), Some(Probe::Tcp(true)));
        assert_eq!(probe("grpc: {}"), Some(Probe::GrpcService(String::new())));
        assert_eq!(probe("grpc: {service: a.B}"), Some(Probe::GrpcService("a.B".into())));
    }
}
