//! When an endpoint is left out for a while: one small circuit breaker per
//! endpoint and worker.
//!
//! Closed, it counts failures in a row. Opened, the endpoint gets nothing until
//! a time is over; then one request goes first and decides (half-open). Each
//! opening lasts twice as long as the last, and good behaviour is rewarded by
//! halving again. An endpoint that refuses connections is out at once: nothing
//! is lost by leaving it, and a short time suffices.
//!
//! What holds for a set of endpoints: the last usable one is never ejected; no
//! more than `max_ejected_percent` are out for failing (refusing connections
//! does not count: such an endpoint is of no use to anyone). Should all be out
//! nevertheless, because the set changed, the caller uses all of them
//! ("panic"): a bad endpoint is better than none.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::policy::retry::Failure;
use crate::reason::Reason;

/// The ejection part of a traffic policy, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EjectionPolicy {
    /// Failures in a row that eject an endpoint; 0: only refused connections do.
    pub consecutive_failures: u32,
    /// How long the first ejection lasts.
    pub base: Duration,
    /// How long one lasts at most.
    pub max: Duration,
    /// The share of a service's endpoints that may be out for failing.
    pub max_ejected_percent: u32,
}

impl Default for EjectionPolicy {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            base: Duration::from_secs(30),
            max: Duration::from_secs(300),
            max_ejected_percent: 50,
        }
    }
}

/// How long the first ejection for a refused connection lasts; it doubles up to
/// the policy's `base`. A restarting process is back within a second or two,
/// and one request per second that has to go elsewhere costs little.
const REFUSED_BASE: Duration = Duration::from_secs(1);

/// A probe that reported nothing for so long is given up (its client may have
/// gone away), and another request may probe.
const PROBE_LEASE: Duration = Duration::from_secs(10);

/// The states as the metric `heddle_circuit_state` shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum CircuitState {
    /// In use.
    Closed = 0,
    /// Its time is over; one request goes first.
    HalfOpen = 1,
    /// Left out.
    Open = 2,
}

/// What went wrong at an endpoint, as far as ejection cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// It takes no requests: connection refused, handshake failed, not ready, draining.
    Refused,
    /// It took one and failed: gateway error, reset, timeout.
    Failed,
}

impl Fault {
    /// The endpoint's fault in a failed try; `None` if it has none.
    pub const fn of(failure: Failure) -> Option<Self> {
        match failure {
            Failure::Mesh(reason) => match reason {
                Reason::ConnectFailure
                | Reason::ConnectTimeout
                | Reason::TlsRefused
                | Reason::NotReady
                | Reason::Draining => Some(Self::Refused),
                Reason::Reset
                | Reason::BadResponse
                | Reason::Timeout
                | Reason::PerTryTimeout
                | Reason::Overloaded => Some(Self::Failed),
                // The request's fault, the mesh's own, or a mere "not now".
                _ => None,
            },
            Failure::Status(502..=504) | Failure::Grpc(4 | 14) => Some(Self::Failed),
            Failure::StaleConnection | Failure::Status(_) | Failure::Grpc(_) => None,
        }
    }

    /// How long the first and the longest ejection last.
    fn times(self, policy: &EjectionPolicy) -> (Duration, Duration) {
        match self {
            Self::Refused => (REFUSED_BASE.min(policy.base), policy.base),
            Self::Failed => (policy.base, policy.max.max(policy.base)),
        }
    }
}

/// How many endpoints a service has, and how many of them are out already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    /// All of them.
    pub total: usize,
    /// Ejected (open or half-open) or unhealthy.
    pub out: usize,
}

impl Census {
    /// Counts endpoints by whether each is out.
    pub fn of(out: impl IntoIterator<Item = bool>) -> Self {
        out.into_iter().fold(Self { total: 0, out: 0 }, |census, out| Self {
            total: census.total + 1,
            out: census.out + usize::from(out),
        })
    }

    /// Whether one more may be ejected.
    fn allows(self, fault: Fault, policy: &EjectionPolicy) -> bool {
        let out = self.out + 1;
        let percent = policy.max_ejected_percent as usize;
        // One is always allowed, or a small service would have no breaker at all.
        let enough = fault == Fault::Refused || (percent > 0 && out <= (self.total * percent / 100).max(1));
        enough && out < self.total
    }
}

/// The breaker of one endpoint in one worker.
#[derive(Debug, Default)]
pub struct Breaker {
    phase: Cell<Phase>,
    /// Ejections so far for refusing and for failing, less what good behaviour
    /// took off: the exponents.
    ejections: [Cell<u32>; 2],
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// `since`: when it was last let in again.
    Closed {
        failures: u32,
        since: Option<Instant>,
    },
    Open {
        until: Instant,
    },
    HalfOpen {
        probe: Instant,
    },
}

impl Default for Phase {
    fn default() -> Self {
        Self::Closed { failures: 0, since: None }
    }
}

impl Breaker {
    /// Whether a request may go here: closed, or due for a probe.
    #[inline]
    pub fn admits(&self, now: Instant) -> bool {
        match self.phase.get() {
            Phase::Closed { .. } => true,
            Phase::Open { until } => now >= until,
            Phase::HalfOpen { probe } => now.saturating_duration_since(probe) >= PROBE_LEASE,
        }
    }

    /// A request goes here: if one is due, it becomes the probe.
    #[inline]
    pub fn begin(&self, now: Instant) {
        if !matches!(self.phase.get(), Phase::Closed { .. }) && self.admits(now) {
            self.phase.set(Phase::HalfOpen { probe: now });
        }
    }

    /// An answer came that is no [`Fault`]. `true` if this let the endpoint in again.
    #[inline]
    pub fn succeeded(&self, now: Instant) -> bool {
        match self.phase.get() {
            Phase::Closed { failures: 0, .. } => false,
            Phase::Closed { since, .. } => {
                self.phase.set(Phase::Closed { failures: 0, since });
                false
            }
            // Answers to what was sent before the ejection prove nothing new.
            Phase::Open { until } if now < until => false,
            Phase::Open { .. } | Phase::HalfOpen { .. } => {
                self.phase.set(Phase::Closed { failures: 0, since: Some(now) });
                true
            }
        }
    }

    /// A try failed by the endpoint's fault. `census` is asked only if this
    /// would eject it. The time it is out for, if this ejected it.
    pub fn failed(
        &self,
        fault: Fault,
        policy: &EjectionPolicy,
        census: impl FnOnce() -> Census,
        now: Instant,
    ) -> Option<Duration> {
        match self.phase.get() {
            Phase::Closed { failures, since } => {
                let failures = failures.saturating_add(1);
                let limit = policy.consecutive_failures;
                let decisive = fault == Fault::Refused || (limit > 0 && failures >= limit);
                if !decisive || !census().allows(fault, policy) {
                    self.phase.set(Phase::Closed { failures, since });
                    return None;
                }
                self.forgive(since, policy, now);
                Some(self.eject(fault, policy, now))
            }
            // What was sent before the ejection does not make it longer.
            Phase::Open { until } if now < until => None,
            Phase::Open { .. } | Phase::HalfOpen { .. } => Some(self.eject(fault, policy, now)),
        }
    }

    /// The state for metrics. A time that is over shows as half-open.
    pub fn state(&self, now: Instant) -> CircuitState {
        match self.phase.get() {
            Phase::Closed { .. } => CircuitState::Closed,
            Phase::Open { until } if now < until => CircuitState::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => CircuitState::HalfOpen,
        }
    }

    /// Whether it is left out, half-open included: what [`Census`] counts.
    pub fn is_out(&self) -> bool {
        !matches!(self.phase.get(), Phase::Closed { .. })
    }

    /// Takes ejections off for time spent closed: one for each first period of
    /// its kind, so that a restart is forgotten in seconds.
    fn forgive(&self, since: Option<Instant>, policy: &EjectionPolicy, now: Instant) {
        let good = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        for fault in [Fault::Refused, Fault::Failed] {
            let periods = good.as_nanos() / fault.times(policy).0.as_nanos().max(1);
            let ejections = &self.ejections[fault as usize];
            ejections.set(ejections.get().saturating_sub(u32::try_from(periods).unwrap_or(u32::MAX)));
        }
    }

    fn eject(&self, fault: Fault, policy: &EjectionPolicy, now: Instant) -> Duration {
        let (base, max) = fault.times(policy);
        let ejections = &self.ejections[fault as usize];
        let factor = 1_u32.checked_shl(ejections.get()).unwrap_or(u32::MAX);
        let time = base.saturating_mul(factor).min(max);
        ejections.set(ejections.get().saturating_add(1));
        self.phase.set(Phase::Open { until: now + time });
        time
    }
}

#[cfg(test)]
mod tests;
