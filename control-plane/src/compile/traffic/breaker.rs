//! Circuit breakers and concurrency limits.

use std::time::Duration;

use heddle_api::crd::{
    CircuitBreaker, Concurrency, FailureRate, Growth, OpenState, Scope, SlowCall, TrafficPolicySpec,
};
use heddle_api::discovery::v1;

use super::{Merged, bounds, duration};

impl Merged<'_> {
    pub(super) fn circuit_breaker(&self) -> v1::CircuitBreaker {
        fn section(spec: &TrafficPolicySpec) -> Option<&CircuitBreaker> {
            spec.circuit_breaker.as_ref()
        }
        let scope = match self.first(section, |breaker| breaker.scope) {
            Some(Scope::Service) => v1::BreakerScope::Service,
            Some(Scope::Endpoint) | None => v1::BreakerScope::Endpoint,
        };
        let open = self.first(section, |breaker| breaker.open.as_ref().map(open));
        v1::CircuitBreaker {
            scope: scope.into(),
            consecutive_failures: self
                .first(section, |breaker| breaker.consecutive_failures)
                .map(|n| n.get()),
            failure_rate: self.first(section, |breaker| breaker.failure_rate.as_ref().map(failure_rate)),
            slow_call: self.first(section, |breaker| breaker.slow_call.as_ref().map(slow_call)),
            base: open.map(|(base, ..)| duration(base)),
            max: open.map(|(_, max, _)| duration(max)),
            growth: open.map_or(v1::Growth::Exponential, |(.., growth)| growth).into(),
            half_open: self.first(section, |breaker| {
                breaker.half_open.as_ref().map(|half_open| v1::HalfOpen {
                    requests: half_open.requests.get(),
                    success_percent: half_open.success_percent.get().into(),
                })
            }),
            max_ejected_percent: self
                .first(section, |breaker| breaker.max_ejected_percent)
                .map(|n| n.get().into()),
        }
    }

    /// Where a `min` of one object and a `max` of another do not go together, `max` gives way.
    pub(super) fn concurrency(&self) -> v1::Concurrency {
        fn section(spec: &TrafficPolicySpec) -> Option<&Concurrency> {
            spec.concurrency.as_ref()
        }
        let min = self.first(section, |concurrency| concurrency.min).map(|n| n.get());
        let max = self.first(section, |concurrency| concurrency.max).map(|n| n.get());
        v1::Concurrency {
            target_latency: self
                .first(section, |concurrency| concurrency.target_latency)
                .map(|time| duration(time.get())),
            min,
            max: max.map(|max| max.max(min.unwrap_or(1))),
        }
    }
}

fn failure_rate(rate: &FailureRate) -> v1::FailureRate {
    v1::FailureRate {
        percent: rate.percent.get().into(),
        min_requests: rate.min_requests.map(|n| n.get()),
        window: rate.window.map(|time| duration(time.get())),
    }
}

fn slow_call(slow: &SlowCall) -> v1::SlowCall {
    use v1::slow_call::Share;
    let percent = slow.percent.map(|percent| Share::Percent(percent.get().into()));
    let percentile = slow.percentile.map(|percentile| Share::Percentile(percentile.get().into()));
    v1::SlowCall { duration: Some(duration(slow.duration.get())), share: percent.or(percentile) }
}

/// One field: its parts have a meaning only together.
fn open(open: &OpenState) -> (Duration, Duration, v1::Growth) {
    let growth = match open.growth {
        Some(Growth::Linear) => v1::Growth::Linear,
        Some(Growth::Fixed) => v1::Growth::Fixed,
        Some(Growth::Exponential) | None => v1::Growth::Exponential,
    };
    let (base, max) = bounds(open.base, open.max, Duration::from_secs(30), Duration::from_secs(300));
    (base, max, growth)
}
