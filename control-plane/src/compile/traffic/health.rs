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
