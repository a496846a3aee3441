//! What may go to a destination at all: within its limits, and not while its
//! circuit breaker is open.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Destination;
use crate::policy::breaker::BreakerPolicy;
use crate::policy::concurrency::{Limiter, Urgency};
use crate::reason::Reason;
use crate::telemetry::metrics::{Circuit, EndpointLabels, Shard};

impl Destination {
    /// Counts a request against the limits until the guard goes.
    ///
    /// # Errors
    /// [`Reason::Overloaded`] if too many are in flight.
    #[inline]
    pub fn admit(self: &Rc<Self>, urgency: Urgency) -> Result<Admitted, Reason> {
        let in_flight = self.requests.get();
        let limited = in_flight >= self.policy.borrow().limits.requests
            || self.limiter.borrow().as_ref().is_some_and(|limiter| !limiter.admits(in_flight, urgency));
        if limited {
            return Err(Reason::Overloaded);
        }
        self.requests.set(in_flight + 1);
        Ok(Admitted(self.clone()))
    }

    /// After how many seconds a request refused for `reason` may be sent again,
    /// if that can be said.
    pub fn retry_after(&self, reason: Reason, now: Instant) -> Option<u32> {
        if reason != Reason::CircuitOpen {
            return reason.retry_after();
        }
        let until = match self.breaker.until() {
            Some(until) if self.policy.borrow().service_breaker.is_some() => Some(until),
            _ => self.endpoints.borrow().iter().filter_map(|endpoint| endpoint.breaker.until()).min(),
        };
        let left = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let whole = left.as_secs() + u64::from(left.subsec_nanos() > 0);
        Some(u32::try_from(whole).unwrap_or(u32::MAX).max(1))
    }

    /// Whether the service's own breaker, if it has one, lets a try begin.
    #[inline]
    pub(super) fn is_open(&self, now: Instant) -> bool {
        self.policy.borrow().service_breaker.is_some() && !self.breaker.admits(now)
    }

    /// Whether endpoints stay ejected even if none is left: the policy allows all
    /// of them to be, and asks for no panic.
    pub(super) fn lets_all_go(&self) -> bool {
        let policy = self.policy.borrow();
        policy.breaker.max_ejected_percent >= 100
            && policy.balancing.panic_threshold.is_none_or(|threshold| threshold == 0)
            && self.endpoints.borrow().iter().any(|endpoint| endpoint.is_healthy())
    }

    /// The rules by which tries are judged.
    #[inline]
    pub(super) fn rules<T>(&self, read: impl FnOnce(&BreakerPolicy) -> T) -> T {
        let policy = self.policy.borrow();
        read(policy.service_breaker.as_ref().unwrap_or(&policy.breaker))
    }

    /// A try took so long until its response began, or until it was given up.
    #[inline]
    pub(super) fn sampled(&self, latency: Duration, now: Instant) {
        if let Some(limiter) = &mut *self.limiter.borrow_mut() {
            limiter.sampled(latency, self.requests.get(), now);
        }
    }

    /// Takes over what a changed policy says about limits and breakers, and keeps
    /// what was learned.
    pub(super) fn follow_policy(&self, metrics: &Shard) {
        let policy = self.policy.borrow();
        let mut limiter = self.limiter.borrow_mut();
        match (&policy.concurrency, &mut *limiter) {
            (Some(rules), Some(limiter)) => limiter.follow(*rules),
            (Some(rules), none) => *none = Some(Box::new(Limiter::new(*rules))),
            (None, some) => *some = None,
        }
        let mut circuit = self.circuit.borrow_mut();
        if policy.service_breaker.is_none() {
            *circuit = None;
        } else if circuit.is_none() {
            let (service, namespace) = (self.service.clone(), self.namespace.clone());
            *circuit = Some(metrics.circuit(&EndpointLabels { service, namespace, endpoint: "".into() }));
        }
    }

    /// Shows the state of the service's own breaker, if it has one.
    pub(super) fn show_circuit(&self, now: Instant) {
        if let Some(circuit) = &*self.circuit.borrow() {
            circuit.set(Circuit::of(&self.breaker, now));
        }
    }
}

/// A request that counts against the limits of its destination.
pub struct Admitted(Rc<Destination>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.requests.set(self.0.requests.get() - 1);
    }
}
