//! Health checks of endpoints.

use std::time::Duration;

use heddle_api::discovery::v1;

use super::breaker::time;
use super::{Invalid, duration};
use crate::policy::health_check::{HealthCheckPolicy, Probe};

/// More often, many callers would make a load of their probes.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

pub(super) fn health_check(wire: v1::HealthCheck) -> Result<HealthCheckPolicy, Invalid> {
    use v1::health_check::Probe as Wire;
    let probe = match wire.probe {
        Some(Wire::HttpPath(path)) => {
            let is_path = path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
            if !is_path {
                return Err(Invalid::new("http_path", format!("{path:?} is no path of a request")));
            }
            Probe::Http(path.into())
        }
        Some(Wire::Tcp(_)) => Probe::Tcp,
        Some(Wire::GrpcService(service)) => Probe::Grpc(service.into()),
        None => return Err(Invalid::new("probe", "this sidecar does not know what is asked for")),
    };
    let default = HealthCheckPolicy::new(probe);
    let interval = time("interval", wire.interval, default.interval)?;
    if interval < MIN_INTERVAL {
        return Err(Invalid::new("interval", format!("{interval:?} is shorter than {MIN_INTERVAL:?}")));
    }
    // A default gives way where only the interval is said.
    let timeout = match wire.timeout {
        None => default.timeout.min(interval),
        Some(value) => duration("timeout", value)?,
    };
    if timeout.is_zero() || timeout > interval {
        return Err(Invalid::new("timeout", format!("{timeout:?} is not between 0 and the interval")));
    }
    let count = |field, value: Option<u32>, default| match value {
        Some(0) => Err(Invalid::new(field, "nothing happens 0 times in a row")),
        value => Ok(value.unwrap_or(default)),
    };
    Ok(HealthCheckPolicy {
        interval,
        timeout,
        healthy_after: count("healthy_after", wire.healthy_after, default.healthy_after)?,
        unhealthy_after: count("unhealthy_after", wire.unhealthy_after, default.unhealthy_after)?,
        ..default
    })
}

#[cfg(test)]
mod tests {
    use v1::health_check::Probe as Wire;

    use super::*;

    fn tcp() -> v1::HealthCheck {
        v1::HealthCheck { probe: Some(Wire::Tcp(true)), ..Default::default() }
    }

    fn millis(millis: i32) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 })
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        assert_eq!(health_check(tcp()).unwrap(), HealthCheckPolicy::new(Probe::Tcp));
        let quick = health_check(v1::HealthCheck { interval: millis(200), ..tcp() }).unwrap();
        assert_eq!(quick.timeout, Duration::from_millis(200), "a default gives way");
    }

    #[test]
    fn all_fields_are_taken_over() {
        let wire = v1::HealthCheck {
            probe: Some(Wire::HttpPath("/healthz?full".into())),
            interval: millis(500),
            timeout: millis(300),
            healthy_after: Some(1),
            unhealthy_after: Some(7),
        };
        let expected = HealthCheckPolicy {
            probe: Probe::Http("/healthz?full".into()),
            interval: Duration::from_millis(500),
            timeout: Duration::from_millis(300),
            healthy_after: 1,
            unhealthy_after: 7,
        };
        assert_eq!(health_check(wire).unwrap(), expected);
        let wire = v1::HealthCheck { probe: Some(Wire::GrpcService("shop.Users".into())), ..tcp() };
        assert_eq!(health_check(wire).unwrap().probe, Probe::Grpc("shop.Users".into()));
    }

    #[test]
    fn impossible_values_are_refused_by_path() {
        let path = |path: &str| Some(Wire::HttpPath(path.into()));
        for (wire, field) in [
            (v1::HealthCheck::default(), "probe: "),
            (v1::HealthCheck { probe: path("healthz"), ..tcp() }, "http_path: "),
            (v1::HealthCheck { probe: path("/a b"), ..tcp() }, "http_path: "),
            (v1::HealthCheck { interval: millis(99), ..tcp() }, "interval: "),
            (v1::HealthCheck { interval: millis(200), timeout: millis(201), ..tcp() }, "timeout: "),
            (v1::HealthCheck { timeout: millis(0), ..tcp() }, "timeout: "),
            (v1::HealthCheck { healthy_after: Some(0), ..tcp() }, "healthy_after: "),
            (v1::HealthCheck { unhealthy_after: Some(0), ..tcp() }, "unhealthy_after: "),
        ] {
            let error = health_check(wire).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error} should begin with {field}");
        }
    }
}
