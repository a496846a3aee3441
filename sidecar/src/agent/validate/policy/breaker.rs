//! Circuit breakers and concurrency limits.

use std::time::Duration;

use heddle_api::discovery::v1;

use super::{Invalid, duration, unknown};
use crate::policy::breaker::{BreakerPolicy, Faults, Growth, HalfOpen, Opening, SlowCall, SlowShare};
use crate::policy::concurrency::ConcurrencyPolicy;

/// A half-open breaker that lets more through is as good as closed.
const MAX_PROBES: u32 = 1000;

/// The breaker of each endpoint, and that of the service if the policy's scope is the service.
pub(super) fn breakers(wire: v1::CircuitBreaker) -> Result<(BreakerPolicy, Option<BreakerPolicy>), Invalid> {
    let scope = v1::BreakerScope::try_from(wire.scope).map_err(|_| unknown("scope", wire.scope))?;
    let policy = breaker(wire)?;
    Ok(match scope {
        v1::BreakerScope::Endpoint => (policy, None),
        v1::BreakerScope::Service => (policy.refusals_only(), Some(policy)),
    })
}

fn breaker(wire: v1::CircuitBreaker) -> Result<BreakerPolicy, Invalid> {
    let default = BreakerPolicy::default();
    let rate = wire.failure_rate.unwrap_or_default();
    let failure_percent = match wire.failure_rate {
        Some(rate) => Some(percent("failure_rate.percent", rate.percent)?),
        None => None,
    };
    let base = time("base", wire.base, default.opening.base)?;
    let max = time("max", wire.max, default.opening.max.max(base))?;
    if max < base {
        return Err(Invalid::new("max", "it is less than base"));
    }
    let growth = match v1::Growth::try_from(wire.growth) {
        Ok(v1::Growth::Exponential) => Growth::Exponential,
        Ok(v1::Growth::Linear) => Growth::Linear,
        Ok(v1::Growth::Fixed) => Growth::Fixed,
        Err(_) => return Err(unknown("growth", wire.growth)),
    };
    let max_ejected_percent = wire.max_ejected_percent.unwrap_or(default.max_ejected_percent);
    if max_ejected_percent > 100 {
        return Err(Invalid::new("max_ejected_percent", format!("{max_ejected_percent} is more than 100")));
    }
    Ok(BreakerPolicy {
        faults: Faults::Server,
        consecutive_failures: wire.consecutive_failures.unwrap_or(default.consecutive_failures),
        failure_percent,
        slow_call: wire.slow_call.map(slow_call).transpose().map_err(|e| e.within("slow_call"))?,
        min_requests: rate.min_requests.unwrap_or(default.min_requests),
        window: time("failure_rate.window", rate.window, default.window)?,
        opening: Opening { base, max, growth },
        half_open: wire
            .half_open
            .map_or(Ok(default.half_open), half_open)
            .map_err(|e| e.within("half_open"))?,
        max_ejected_percent,
    })
}

fn slow_call(wire: v1::SlowCall) -> Result<SlowCall, Invalid> {
    use v1::slow_call::Share;
    let duration = match wire.duration.map(|value| duration("duration", value)).transpose()? {
        None | Some(Duration::ZERO) => return Err(Invalid::new("duration", "every call is longer")),
        Some(some) => some,
    };
    let share = match wire.share {
        Some(Share::Percent(value)) => SlowShare::Percent(percent("percent", value)?),
        Some(Share::Percentile(value @ 1..=99)) => SlowShare::Percentile(value),
        Some(Share::Percentile(value)) => {
            return Err(Invalid::new("percentile", format!("{value} is not between 1 and 99")));
        }
        None => return Err(Invalid::new("percent", "no share is given")),
    };
    Ok(SlowCall { duration, share })
}

fn half_open(wire: v1::HalfOpen) -> Result<HalfOpen, Invalid> {
    if !(1..=MAX_PROBES).contains(&wire.requests) {
        return Err(Invalid::new("requests", format!("{} is not between 1 and {MAX_PROBES}", wire.requests)));
    }
    let success_percent = percent("success_percent", wire.success_percent)?;
    Ok(HalfOpen { requests: wire.requests, success_percent })
}

pub(super) fn concurrency(wire: v1::Concurrency) -> Result<ConcurrencyPolicy, Invalid> {
    let default = ConcurrencyPolicy::default();
    let target = match wire.target_latency.map(|value| duration("target_latency", value)).transpose()? {
        Some(Duration::ZERO) => return Err(Invalid::new("target_latency", "nothing takes no time")),
        target => target,
    };
    let (min, max) = (wire.min.unwrap_or(default.min), wire.max);
    if min == 0 {
        return Err(Invalid::new("min", "0 would let nothing through"));
    }
    // A default gives way where only the other bound is said.
    let max = max.unwrap_or(default.max.max(min));
    let min = if wire.min.is_none() { min.min(max.max(1)) } else { min };
    if max < min {
        return Err(Invalid::new("max", "it is less than min"));
    }
    Ok(ConcurrencyPolicy { target, min, max })
}

pub(super) fn time(
    field: &str,
    value: Option<prost_types::Duration>,
    default: Duration,
) -> Result<Duration, Invalid> {
    match value {
        None => Ok(default),
        Some(value) => match duration(field, value)? {
            Duration::ZERO => Err(Invalid::new(field, "no time is none at all")),
            some => Ok(some),
        },
    }
}

/// A threshold: 0 would be reached by anything.
fn percent(field: &str, value: u32) -> Result<u32, Invalid> {
    if (1..=100).contains(&value) {
        return Ok(value);
    }
    Err(Invalid::new(field, format!("{value} is not between 1 and 100")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let (endpoint, service) = breakers(v1::CircuitBreaker::default()).unwrap();
        assert_eq!(endpoint, BreakerPolicy { faults: Faults::Server, ..BreakerPolicy::default() });
        assert_eq!(service, None);
        assert_eq!(concurrency(v1::Concurrency::default()).unwrap(), ConcurrencyPolicy::default());
    }

    #[test]
    fn a_breaker_of_the_service_leaves_refusals_to_its_endpoints() {
        let scope = v1::BreakerScope::Service.into();
        let wire = v1::CircuitBreaker { scope, consecutive_failures: Some(3), ..Default::default() };
        let (endpoint, service) = breakers(wire).unwrap();
        assert_eq!((endpoint.consecutive_failures, service.unwrap().consecutive_failures), (0, 3));
    }

    #[test]
    fn all_fields_are_taken_over() {
        let wire = v1::CircuitBreaker {
            consecutive_failures: Some(7),
            failure_rate: Some(v1::FailureRate { percent: 40, min_requests: Some(5), window: seconds(3) }),
            slow_call: Some(v1::SlowCall {
                duration: seconds(2),
                share: Some(v1::slow_call::Share::Percentile(95)),
            }),
            base: seconds(1),
            max: seconds(9),
            growth: v1::Growth::Linear.into(),
            half_open: Some(v1::HalfOpen { requests: 5, success_percent: 60 }),
            max_ejected_percent: Some(100),
            ..Default::default()
        };
        let second = Duration::from_secs(1);
        let expected = BreakerPolicy {
            faults: Faults::Server,
            consecutive_failures: 7,
            failure_percent: Some(40),
            slow_call: Some(SlowCall { duration: 2 * second, share: SlowShare::Percentile(95) }),
            min_requests: 5,
            window: 3 * second,
            opening: Opening { base: second, max: 9 * second, growth: Growth::Linear },
            half_open: HalfOpen { requests: 5, success_percent: 60 },
            max_ejected_percent: 100,
        };
        assert_eq!(breakers(wire).unwrap(), (expected, None));
    }

    #[test]
    fn impossible_values_are_refused_by_path() {
        let breaker = v1::CircuitBreaker::default;
        let rate = v1::FailureRate::default;
        let slow = v1::SlowCall { duration: seconds(1), share: None };
        let share = |share| Some(v1::SlowCall { share: Some(share), ..slow });
        use v1::slow_call::Share::{Percent, Percentile};
        for (wire, path) in [
            (v1::CircuitBreaker { scope: 9, ..breaker() }, "scope: "),
            (v1::CircuitBreaker { growth: 9, ..breaker() }, "growth: "),
            (v1::CircuitBreaker { base: seconds(0), ..breaker() }, "base: "),
            (v1::CircuitBreaker { base: seconds(9), max: seconds(1), ..breaker() }, "max: "),
            (v1::CircuitBreaker { max_ejected_percent: Some(101), ..breaker() }, "max_ejected_percent: "),
            (v1::CircuitBreaker { failure_rate: Some(rate()), ..breaker() }, "failure_rate.percent: "),
            (
                v1::CircuitBreaker {
                    failure_rate: Some(v1::FailureRate { percent: 1, window: seconds(-1), ..rate() }),
                    ..breaker()
                },
                "failure_rate.window: ",
            ),
            (v1::CircuitBreaker { slow_call: Some(slow), ..breaker() }, "slow_call.percent: "),
            (v1::CircuitBreaker { slow_call: share(Percent(101)), ..breaker() }, "slow_call.percent: "),
            (v1::CircuitBreaker { slow_call: share(Percentile(100)), ..breaker() }, "slow_call.percentile: "),
            (
                v1::CircuitBreaker { half_open: Some(v1::HalfOpen::default()), ..breaker() },
                "half_open.requests: ",
            ),
        ] {
            let error = breakers(wire).unwrap_err().to_string();
            assert!(error.starts_with(path), "{error} should begin with {path}");
        }
        let concurrency = |wire| concurrency(wire).map_err(|error| error.to_string());
        let wire = v1::Concurrency { min: Some(5), max: Some(4), ..Default::default() };
        assert!(concurrency(wire).unwrap_err().starts_with("max: "));
        let wire = v1::Concurrency { target_latency: seconds(0), ..Default::default() };
        assert!(concurrency(wire).unwrap_err().starts_with("target_latency: "));
        let wire = v1::Concurrency { min: Some(2000), ..Default::default() };
        assert_eq!(concurrency(wire).unwrap().max, 2000, "a default gives way");
    }
}
