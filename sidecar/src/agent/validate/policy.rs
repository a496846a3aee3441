//! The traffic policy of a service, with the defaults of `TrafficPolicy`.

mod breaker;
mod fallback;
mod health_check;

use std::sync::Arc;
use std::time::Duration;

use heddle_api::crd::RetryReason;
use heddle_api::discovery::v1;

use crate::config::{Limits, TrafficPolicy};
use crate::policy::backoff::{Backoff, Growth};
use crate::policy::breaker::BreakerPolicy;
use crate::policy::budget::BudgetPolicy;
use crate::policy::retry::{Methods, RetryPolicy, RetryReasons, StatusSet};

use super::balancing::balancing;
use super::{Invalid, unknown};

/// The defaults of the design's "TrafficPolicy, in full"; those of retries and
/// breakers are with their policies.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
const LIMIT: usize = 1024;

/// What a request may keep of its body for a retry at most: larger ones would
/// let a few clients fill the memory.
const MAX_BUFFER: u64 = 16 * 1024 * 1024;

pub(super) fn traffic_policy(wire: v1::TrafficPolicy) -> Result<TrafficPolicy, Invalid> {
    let timeouts = wire.timeouts.unwrap_or_default();
    let timeout = |field: &str, value, default| limit(&format!("timeouts.{field}"), value, default);
    let connect_timeout = timeout("connect", timeouts.connect, Some(CONNECT_TIMEOUT))?
        .ok_or_else(|| Invalid::new("timeouts.connect", "a connection must be made in limited time"))?;
    let (breaker, service_breaker) = match wire.circuit_breaker {
        Some(wire) => breaker::breakers(wire).map_err(|e| e.within("circuit_breaker"))?,
        None => (BreakerPolicy::default(), None),
    };
    let concurrency = wire.concurrency.map(breaker::concurrency).transpose();
    let health_check = wire.health_check.map(health_check::health_check).transpose();
    let fallback = wire.fallback.map(fallback::fallback).transpose();
    Ok(TrafficPolicy {
        source: wire.source,
        connect_timeout,
        request_timeout: timeout("request", timeouts.request, None)?,
        per_try_timeout: timeout("per_try", timeouts.per_try, None)?,
        per_try_whole: false,
        idle_timeout: timeout("idle", timeouts.idle, Some(IDLE_TIMEOUT))?,
        retry: retry(wire.retry.unwrap_or_default()).map_err(|e| e.within("retry"))?,
        breaker,
        service_breaker,
        concurrency: concurrency.map_err(|e| e.within("concurrency"))?,
        health_check: health_check.map_err(|e| e.within("health_check"))?,
        limits: limits(wire.limits.unwrap_or_default()).map_err(|e| e.within("limits"))?,
        balancing: balancing(wire.load_balancer.unwrap_or_default())
            .map_err(|e| e.within("load_balancer"))?,
        fallback: fallback.map_err(|e| e.within("fallback"))?.map(Arc::new),
    })
}

fn retry(wire: v1::Retry) -> Result<RetryPolicy, Invalid> {
    let default = RetryPolicy::default();
    let mut reasons = Vec::with_capacity(wire.on.len());
    for (index, value) in wire.on.iter().enumerate() {
        reasons.push(RetryReason::from_wire(*value).ok_or_else(|| unknown(&format!("on[{index}]"), *value))?);
    }
    let mut statuses = StatusSet::default();
    for (index, value) in wire.statuses.iter().enumerate() {
        match u16::try_from(*value) {
            Ok(class @ 1..=5) => statuses.insert_class(u8::try_from(class).unwrap_or(5)),
            Ok(status @ 100..=599) => statuses.insert(status),
            _ => {
                let reason = format!("{value} is neither a status nor a class of them");
                return Err(Invalid::new(format!("statuses[{index}]"), reason));
            }
        }
    }
    for (index, method) in wire.methods.iter().enumerate() {
        if method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') {
            let reason = format!("{method:?} is no method in capitals");
            return Err(Invalid::new(format!("methods[{index}]"), reason));
        }
    }
    let buffer_bytes = match wire.buffer_bytes {
        None => default.buffer_bytes,
        Some(bytes) if bytes <= MAX_BUFFER => usize::try_from(bytes).unwrap_or(usize::MAX),
        Some(bytes) => {
            return Err(Invalid::new("buffer_bytes", format!("{bytes} is more than {MAX_BUFFER}")));
        }
    };
    let budget = wire.budget.unwrap_or_default();
    let percent = budget.percent.unwrap_or(default.budget.percent);
    if percent > 100 {
        return Err(Invalid::new("budget.percent", format!("{percent} is more than 100")));
    }
    Ok(RetryPolicy {
        attempts: wire.attempts.unwrap_or(default.attempts),
        on: if reasons.is_empty() { default.on } else { reasons.into_iter().collect::<RetryReasons>() },
        statuses,
        methods: if wire.methods.is_empty() {
            default.methods
        } else {
            wire.methods.iter().map(String::as_str).collect::<Methods>()
        },
        buffer_bytes,
        backoff: wire.backoff.map_or(Ok(default.backoff), backoff).map_err(|e| e.within("backoff"))?,
        max_elapsed: limit("max_elapsed", wire.max_elapsed, default.max_elapsed)?,
        max_elapsed_is_default: wire.max_elapsed.is_none(),
        max_retry_after: wire
            .max_retry_after
            .map_or(Ok(default.max_retry_after), |value| duration("max_retry_after", value))?,
        hedge: wire.hedge.map(hedge).transpose()?,
        budget: BudgetPolicy {
            percent,
            min_per_second: budget.min_per_second.unwrap_or(default.budget.min_per_second),
        },
    })
}

fn hedge(wire: v1::Hedge) -> Result<Duration, Invalid> {
    match wire.after.map(|after| duration("hedge.after", after)).transpose()? {
        Some(after) if !after.is_zero() => Ok(after),
        _ => Err(Invalid::new("hedge.after", "a second try needs a time at which it begins")),
    }
}

fn backoff(wire: v1::Backoff) -> Result<Backoff, Invalid> {
    let default = Backoff::default();
    let or = |field: &str, value: Option<_>, default| value.map_or(Ok(default), |v| duration(field, v));
    let base = or("base", wire.base, default.base)?;
    let growth = match v1::BackoffStrategy::try_from(wire.strategy) {
        // A number that proto3 leaves out reads as 0: the default.
        Ok(v1::BackoffStrategy::Exponential) if wire.multiplier == 0.0 => default.growth,
        Ok(v1::BackoffStrategy::Exponential) if wire.multiplier >= 1.0 && wire.multiplier <= 100.0 => {
            Growth::Exponential { multiplier: wire.multiplier }
        }
        Ok(v1::BackoffStrategy::Exponential) => {
            return Err(Invalid::new("multiplier", format!("{} is not between 1 and 100", wire.multiplier)));
        }
        Ok(v1::BackoffStrategy::Linear) => {
            Growth::Linear { increment: or("increment", wire.increment, base)? }
        }
        Ok(v1::BackoffStrategy::Fixed) => Growth::Fixed,
        Err(_) => return Err(unknown("strategy", wire.strategy)),
    };
    if !(0.0..=1.0).contains(&wire.jitter) {
        return Err(Invalid::new("jitter", format!("{} is not between 0 and 1", wire.jitter)));
    }
    Ok(Backoff { growth, base, max: or("max", wire.max, default.max.max(base))?, jitter: wire.jitter })
}

fn limits(wire: v1::Limits) -> Result<Limits, Invalid> {
    let limit = |field: &str, value: Option<u32>| match value {
        Some(0) => Err(Invalid::new(field, "0 would let nothing through")),
        Some(value) => Ok(value as usize),
        None => Ok(LIMIT),
    };
    Ok(Limits {
        connections: limit("connections", wire.connections)?,
        // 0 is possible here: whoever finds no free connection is refused at once.
        pending_requests: wire.pending_requests.map_or(LIMIT, |value| value as usize),
        requests: limit("requests", wire.requests)?,
        requests_per_connection: wire.requests_per_connection.filter(|n| *n != 0).map(u64::from),
    })
}

/// A time limit: absent means `default`, zero means none.
fn limit(
    path: &str,
    value: Option<prost_types::Duration>,
    default: Option<Duration>,
) -> Result<Option<Duration>, Invalid> {
    Ok(match value {
        None => default,
        Some(value) => Some(duration(path, value)?).filter(|limit| !limit.is_zero()),
    })
}

pub(super) fn duration(path: &str, value: prost_types::Duration) -> Result<Duration, Invalid> {
    let invalid = || Invalid::new(path, "it is negative or out of range");
    if !(0..1_000_000_000).contains(&value.nanos) {
        return Err(invalid());
    }
    let duration = Duration::try_from(value).ok();
    duration.filter(|duration| *duration <= LONGEST).ok_or_else(invalid)
}

/// The longest `maxAge` of CORS, in 32 bits of seconds; what can be written as a duration (GEP-2257) is
/// shorter. Whatever the clock says, it can be added to it.
const LONGEST: Duration = Duration::from_secs(u32::MAX as u64);

#[cfg(test)]
mod tests {
    use super::*;

    fn with_retry(retry: v1::Retry) -> Result<RetryPolicy, String> {
        let wire = v1::TrafficPolicy { retry: Some(retry), ..v1::TrafficPolicy::default() };
        traffic_policy(wire).map(|policy| policy.retry).map_err(|e| e.to_string())
    }

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    #[test]
    fn absent_fields_mean_the_documented_defaults() {
        let policy = traffic_policy(v1::TrafficPolicy::default()).unwrap();
        assert_eq!(policy.connect_timeout, Duration::from_secs(1));
        assert_eq!(policy.per_try_timeout, None);
        assert_eq!(policy.idle_timeout, Some(Duration::from_secs(3600)));
        assert_eq!(policy.retry, RetryPolicy::default());
        assert_eq!((policy.breaker, policy.service_breaker), (BreakerPolicy::default(), None));
        assert_eq!((policy.concurrency, policy.fallback), (None, None));
    }

    #[test]
    fn opted_in_reasons_and_statuses_are_taken_over() {
        let retry = with_retry(v1::Retry {
            attempts: Some(0),
            on: vec![v1::RetryReason::Reset.into()],
            statuses: vec![429, 5],
            methods: vec!["POST".into()],
            ..v1::Retry::default()
        })
        .unwrap();
        assert_eq!(retry.attempts, 0);
        assert!(retry.on.contains(RetryReason::Reset) && !retry.on.contains(RetryReason::ConnectFailure));
        assert!(
            retry.statuses.contains(429) && retry.statuses.contains(503) && !retry.statuses.contains(404)
        );
        assert!(retry.methods.permit(b"POST") && !retry.methods.permit(b"GET"));
    }

    #[test]
    fn a_zero_duration_lifts_a_limit_where_that_is_sound() {
        let timeouts = v1::Timeouts { request: seconds(0), ..v1::Timeouts::default() };
        let wire = v1::TrafficPolicy { timeouts: Some(timeouts), ..v1::TrafficPolicy::default() };
        assert_eq!(traffic_policy(wire).unwrap().request_timeout, None);
        let timeouts = v1::Timeouts { connect: seconds(0), ..v1::Timeouts::default() };
        let wire = v1::TrafficPolicy { timeouts: Some(timeouts), ..v1::TrafficPolicy::default() };
        assert!(traffic_policy(wire).unwrap_err().to_string().starts_with("timeouts.connect: "));
    }

    #[test]
    fn impossible_values_are_refused_by_path() {
        let retry = v1::Retry::default;
        for (wire, path) in [
            (v1::Retry { on: vec![0], ..retry() }, "retry.on[0]: "),
            (v1::Retry { on: vec![1, 99], ..retry() }, "retry.on[1]: "),
            (v1::Retry { statuses: vec![6], ..retry() }, "retry.statuses[0]: "),
            (v1::Retry { methods: vec!["get".into()], ..retry() }, "retry.methods[0]: "),
            (v1::Retry { buffer_bytes: Some(MAX_BUFFER + 1), ..retry() }, "retry.buffer_bytes: "),
            (v1::Retry { max_elapsed: seconds(-1), ..retry() }, "retry.max_elapsed: "),
            // Instants that are added to it have an end.
            (v1::Retry { max_elapsed: seconds(i64::MAX), ..retry() }, "retry.max_elapsed: "),
            (v1::Retry { hedge: Some(v1::Hedge { after: None }), ..retry() }, "retry.hedge.after: "),
            (v1::Retry { hedge: Some(v1::Hedge { after: seconds(0) }), ..retry() }, "retry.hedge.after: "),
            (v1::Retry { max_retry_after: seconds(-1), ..retry() }, "retry.max_retry_after: "),
            (
                v1::Retry { backoff: Some(v1::Backoff { jitter: 1.5, ..v1::Backoff::default() }), ..retry() },
                "retry.backoff.jitter: ",
            ),
        ] {
            let error = with_retry(wire).unwrap_err();
            assert!(error.starts_with(path), "{error} should begin with {path}");
        }
    }
}
