//! Whether an endpoint is well, by what probes of it gave.
//!
//! `healthy_after` successes in a row make it healthy, `unhealthy_after`
//! failures in a row unhealthy; anything in between leaves it as it was. Until
//! probes have agreed for the first time they have said nothing, and the
//! endpoint counts as discovery says.

use std::time::Duration;

use crate::policy::rng::Rng;

/// How the endpoints of a service are probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheckPolicy {
    /// What a probe is.
    pub probe: Probe,
    /// Between two probes.
    pub interval: Duration,
    /// On one probe.
    pub timeout: Duration,
    /// Successes in a row that make an endpoint healthy.
    pub healthy_after: u32,
    /// Failures in a row that make it unhealthy.
    pub unhealthy_after: u32,
}

/// What a probe of an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A GET of this path that is answered with 2xx.
    Http(Box<str>),
    /// A connection that is accepted.
    Tcp,
    /// `grpc.health.v1.Health/Check` for this service that says SERVING; empty: the server.
    Grpc(Box<str>),
}

impl HealthCheckPolicy {
    /// How probes are made where nothing else is said.
    pub fn new(probe: Probe) -> Self {
        Self {
            probe,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            healthy_after: 2,
            unhealthy_after: 3,
        }
    }

    /// The wait until the next probe: the interval and up to a sixth of it more or less, so
    /// that many callers that began together do not stay together.
    pub fn wait(&self, rng: &Rng) -> Duration {
        self.interval.mul_f64((5.0 + 2.0 * rng.unit()) / 6.0)
    }
}

/// What probes have said about an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verdict {
    /// Nothing yet.
    #[default]
    Unknown,
    /// It is well.
    Healthy,
    /// It is not.
    Unhealthy,
}

impl Verdict {
    /// The word in what people see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// The probes of one endpoint.
#[derive(Debug, Default)]
pub struct HealthCheck {
    verdict: Verdict,
    /// The last results, all alike: what they were and how many.
    streak: (bool, u32),
}

impl HealthCheck {
    /// Notes a result. Returns the verdict if it changed.
    pub fn observe(&mut self, success: bool, policy: &HealthCheckPolicy) -> Option<Verdict> {
        let (last, count) = self.streak;
        self.streak = (success, if last == success { count.saturating_add(1) } else { 1 });
        let (needed, verdict) = match success {
            true => (policy.healthy_after, Verdict::Healthy),
            false => (policy.unhealthy_after, Verdict::Unhealthy),
        };
        let changed = self.streak.1 >= needed && self.verdict != verdict;
        changed.then(|| {
            self.verdict = verdict;
            verdict
        })
    }

    /// The policy changed: earlier results do not count towards another verdict.
    pub fn restart(&mut self) {
        self.streak = (false, 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::rng::Rng;

    #[test]
    fn waits_differ_by_up_to_a_sixth() {
        let (policy, rng) = (HealthCheckPolicy::new(Probe::Tcp), Rng::new(7));
        let waits: Vec<f64> = (0..1000).map(|_| policy.wait(&rng).as_secs_f64()).collect();
        assert!(waits.iter().all(|wait| (8.33..11.67).contains(wait)));
        assert!(waits.iter().any(|wait| *wait < 8.7) && waits.iter().any(|wait| *wait > 11.3));
    }

    proptest! {
        /// Equals the rule applied to the whole history: the latest run of results that was
        /// long enough decides, looked for from the end.
        #[test]
        fn equals_the_rule(
            (healthy_after, unhealthy_after) in (1_u32..5, 1_u32..5),
            results in prop::collection::vec(prop::option::weighted(0.95, any::<bool>()), 0..60),
        ) {
            let policy = HealthCheckPolicy {
                healthy_after,
                unhealthy_after,
                ..HealthCheckPolicy::new(Probe::Tcp)
            };
            let mut check = HealthCheck::default();
            let mut shown = Verdict::Unknown;
            for (index, result) in results.iter().enumerate() {
                let changed = match result {
                    Some(success) => check.observe(*success, &policy),
                    None => {
                        check.restart();
                        None
                    }
                };
                let expected = (0..=index).rev().find_map(|end| {
                    let last = results[end]?;
                    let run = results[..=end].iter().rev().take_while(|result| **result == Some(last)).count();
                    let needed = if last { healthy_after } else { unhealthy_after };
                    let verdict = if last { Verdict::Healthy } else { Verdict::Unhealthy };
                    (run >= needed as usize).then_some(verdict)
                });
                let expected = expected.unwrap_or_default();
                prop_assert_eq!(changed, (expected != shown).then_some(expected));
                shown = expected;
            }
        }
    }
}
