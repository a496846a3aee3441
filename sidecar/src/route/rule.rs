//! What a rule asks for once a request fell to it.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderValue;

use crate::config::TrafficPolicy;
use crate::policy::backoff::Backoff;
use crate::policy::fault::Fault;
use crate::policy::jwt::Cache;
use crate::policy::retry::{RetryPolicy, RetryReason, StatusSet};
use crate::policy::rng::Rng;
use crate::route::backend::{Backend, Backends, NoBackend, UserKey};
use crate::route::filter::Filters;
use crate::route::hash::stable;
use crate::route::head::Head;
use crate::route::session::Session;

/// A rule of a route, apart from its matches.
#[derive(Debug, Default)]
pub struct Rule {
    /// The route, `namespace/name`.
    pub route: Box<str>,
    /// The rule for metrics, logs and error bodies: the route, and the rule's
    /// name or place. One of as many values as there are rules.
    pub label: Box<str>,
    /// What is done to every request and response, in this order.
    pub filters: Filters,
    /// Where requests go.
    pub backends: Backends,
    /// How requests are treated; `None`: as the port's or the service's policy says.
    pub policy: Option<Arc<TrafficPolicy>>,
    /// Faults that its requests meet, before those of the service they go to.
    pub faults: Box<[Fault]>,
    /// What its requests carry to the sidecars of its backends, for their rate limits.
    pub mark: Option<HeaderValue>,
    /// How long requests may take, before what the policy says.
    pub timeouts: Timeouts,
    /// When to try again, before what the policy says.
    pub retry: Option<RuleRetry>,
    /// How a client stays with an endpoint.
    pub session: Option<Session>,
    /// If set, weights are shares of users.
    pub user: Option<UserKey>,
}

impl Rule {
    /// The backend for a request without a session. Requests that do not say
    /// whose they are go by chance. `tokens` remembers those that say so by a token.
    ///
    /// # Errors
    /// If the request is to be answered with an error.
    pub fn backend<H: Head>(
        &self,
        head: &H,
        rng: &Rng,
        tokens: &RefCell<Cache>,
    ) -> Result<&Backend, NoBackend<'_>> {
        // By the route: its rules agree about a user, and not every route's
        // canary has the same users for its first.
        let hash = |user: &[u8]| stable(stable(0, self.route.as_bytes()), user);
        let user = self.user.as_ref();
        match user.and_then(|key| key.of(head, &mut tokens.borrow_mut(), SystemTime::now(), hash)) {
            Some(user) => self.backends.pick_by(user),
            None => self.backends.pick(rng),
        }
    }

    /// The place of one of its backends in their list.
    pub fn place(&self, backend: &Backend) -> Option<usize> {
        self.backends.list().iter().position(|own| std::ptr::eq(own, backend))
    }
}

/// The time limits of a rule (GEP-1742).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timeouts {
    /// On the whole exchange with its retries.
    pub request: Limit,
    /// On one try until its full response.
    pub backend_request: Limit,
}

/// A time limit that may also be left to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Limit {
    /// Nothing is said: the service's policy decides.
    #[default]
    Unset,
    /// There is none.
    Disabled,
    /// This long.
    After(Duration),
}

impl Limit {
    /// The limit, given that of the service's policy.
    pub fn over(self, policy: Option<Duration>) -> Option<Duration> {
        match self {
            Self::Unset => policy,
            Self::Disabled => None,
            Self::After(limit) => Some(limit),
        }
    }
}

/// The retries that a rule asks for (GEP-1731).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuleRetry {
    /// Statuses that are tried again.
    pub codes: StatusSet,
    /// Retries after the first try; `None`: as the service's policy has it.
    pub attempts: Option<u32>,
    /// The shortest delay before a retry; `None`: as the service's policy has it.
    pub backoff: Option<Duration>,
}

impl RuleRetry {
    /// The policy for the rule's requests, given that of the service. Besides the
    /// codes, failures of the connection and of a try's time are tried again,
    /// as the GEP asks; methods, budget and bounds stay the policy's. A bound on
    /// time that nobody asked for does not take tries away that the rule asks for.
    pub fn over(&self, policy: &RetryPolicy) -> RetryPolicy {
        const CONNECTION: [RetryReason; 4] = [
            RetryReason::ConnectFailure,
            RetryReason::RefusedStream,
            RetryReason::Reset,
            RetryReason::PerTryTimeout,
        ];
        let mut merged = policy.clone();
        merged.attempts = self.attempts.unwrap_or(policy.attempts);
        merged.on = CONNECTION.into_iter().collect();
        merged.statuses = self.codes;
        if policy.max_elapsed_is_default {
            merged.max_elapsed = None;
        }
        if let Some(shortest) = self.backoff {
            // Jitter shrinks delays: what it shrinks is lengthened before.
            let jitter = policy.backoff.jitter.clamp(0.0, 0.5);
            let base = Duration::try_from_secs_f64(shortest.as_secs_f64() / (1.0 - jitter));
            let base = base.unwrap_or(Duration::MAX).max(shortest);
            merged.backoff = Backoff { base, max: policy.backoff.max.max(base), jitter, ..policy.backoff };
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::backoff::Growth;

    #[test]
    fn a_limit_of_the_rule_beats_that_of_the_policy() {
        let policy = Some(Duration::from_secs(5));
        assert_eq!(Limit::Unset.over(policy), policy);
        assert_eq!(Limit::Disabled.over(policy), None);
        assert_eq!(Limit::After(Duration::from_secs(9)).over(None), Some(Duration::from_secs(9)));
    }

    #[test]
    fn no_retry_comes_before_the_rules_backoff() {
        let mut codes = StatusSet::default();
        codes.insert(503);
        let shortest = Duration::from_secs(3);
        let retry = RuleRetry { codes, attempts: Some(4), backoff: Some(shortest) };
        let merged = retry.over(&RetryPolicy::default());
        let rng = Rng::new(1);
        assert!((0..4).all(|retries| merged.backoff.delay(retries, &rng) >= shortest));
        assert_eq!((merged.attempts, merged.statuses), (4, codes));
        assert!(merged.on.contains(RetryReason::Reset) && !merged.on.contains(RetryReason::GatewayError));
        assert_eq!(merged.max_elapsed, None, "nobody asked for a bound");
        let ten = Some(Duration::from_secs(10));
        let bound = RetryPolicy { max_elapsed_is_default: false, max_elapsed: ten, ..RetryPolicy::default() };
        assert_eq!(retry.over(&bound).max_elapsed, ten);
        let plain = RuleRetry::default().over(&RetryPolicy::default());
        assert_eq!((plain.attempts, plain.backoff), (2, Backoff::default()));
        assert_eq!(plain.backoff.growth, Growth::Exponential { multiplier: 2.0 });
    }
}
