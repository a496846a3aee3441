//! The traffic policy of a service: the defaults of `TrafficPolicy` are here.

use std::time::Duration;

use heddle_api::discovery::v1;

use crate::config::{Limits, TrafficPolicy};
use crate::policy::ejection::EjectionPolicy;
use crate::policy::retry::RetryPolicy;

use super::Invalid;

/// The defaults of design, "TrafficPolicy, in full".
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
const LIMIT: usize = 1024;

pub(super) fn traffic_policy(wire: v1::TrafficPolicy) -> Result<TrafficPolicy, Invalid> {
    let timeouts = wire.timeouts.unwrap_or_default();
    let timeout = |field: &str, value, default| limit_of(&format!("timeouts.{field}"), value, default);
    let connect_timeout = timeout("connect", timeouts.connect, Some(CONNECT_TIMEOUT))?
        .ok_or_else(|| Invalid::new("timeouts.connect", "a connection must be made in limited time"))?;
    Ok(TrafficPolicy {
        source: wire.source,
        connect_timeout,
        request_timeout: timeout("request", timeouts.request, Some(REQUEST_TIMEOUT))?,
        per_try_timeout: timeout("per_try", timeouts.per_try, None)?,
        idle_timeout: timeout("idle", timeouts.idle, Some(IDLE_TIMEOUT))?,
        retry: RetryPolicy::default(),
        ejection: EjectionPolicy::default(),
        limits: limits(wire.limits.unwrap_or_default())?,
    })
}

fn limits(wire: v1::Limits) -> Result<Limits, Invalid> {
    let limit = |field: &str, value: Option<u32>| match value {
        Some(0) => Err(Invalid::new(format!("limits.{field}"), "0 would let nothing through")),
        Some(value) => Ok(value as usize),
        None => Ok(LIMIT),
    };
    Ok(Limits {
        connections: limit("connections", wire.connections)?,
        // None may wait: whoever finds no free connection is refused at once.
        pending_requests: wire.pending_requests.map_or(LIMIT, |value| value as usize),
        requests: limit("requests", wire.requests)?,
        requests_per_connection: wire.requests_per_connection.filter(|n| *n != 0).map(u64::from),
    })
}

/// A time limit: absent means `default`, zero means none.
fn limit_of(
    path: &str,
    value: Option<prost_types::Duration>,
    default: Option<Duration>,
) -> Result<Option<Duration>, Invalid> {
    Ok(match value {
        None => default,
        Some(value) => Some(duration(path, value)?).filter(|limit| !limit.is_zero()),
    })
}

fn duration(path: &str, value: prost_types::Duration) -> Result<Duration, Invalid> {
    let invalid = || Invalid::new(path, "it is negative or out of range");
    if value.nanos < 0 || value.nanos > 999_999_999 {
        return Err(invalid());
    }
    Duration::try_from(value).map_err(|_| invalid())
}
