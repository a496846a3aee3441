//! Rate limits as requests to the application meet them: who asks, what the
//! answer says, and what is counted. What is admitted is decided in
//! [`crate::policy::rate_limit`], for both versions of HTTP alike.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config;
use crate::policy::jwt::Verified;
use crate::policy::rate_limit::{Client, Probes, RateLimit, Standing, admit};
use crate::reason::Reason;
use crate::route::Head;
use crate::session::Session;
use crate::telemetry::metrics::{Registry, SharedCounter};
use crate::word::Word;

/// The limits of one of the application's ports.
pub(crate) struct PortLimits {
    limits: Arc<[RateLimit]>,
    /// What callers' health checks may do beside them.
    probes: Arc<Probes>,
    /// Counts what each of them refused.
    refused: Box<[SharedCounter]>,
}

impl PortLimits {
    /// The limits on requests to this service's workload.
    pub(crate) fn new(
        config::PortLimits { limits, probes, .. }: &config::PortLimits,
        service: &str,
        namespace: &str,
        registry: &Registry,
    ) -> Self {
        let counter = |limit: &RateLimit| {
            let help = "Requests that a rate limit refused.";
            let labels = [
                ("service", service),
                ("namespace", namespace),
                ("policy", &*limit.source),
                ("limit", &*limit.name),
            ];
            registry.counter("heddle_rate_limited_total", help, &labels)
        };
        Self { refused: limits.iter().map(counter).collect(), limits: limits.clone(), probes: probes.clone() }
    }

    /// Whether these are the limits.
    pub(crate) fn is_of(&self, limits: &config::PortLimits) -> bool {
        Arc::ptr_eq(&self.limits, &limits.limits)
    }

    /// Asks for a request of `session`, which carries this mark and showed these tokens. `None`: no limit
    /// is about it. Boxed because it is rare.
    pub(crate) fn ask<H: Head>(
        &self,
        head: &H,
        session: &Session,
        mark: Option<&[u8]>,
        tokens: &[Rc<Verified>],
    ) -> Option<Box<Word>> {
        let mut client = Client { identity: &session.peer, address: session.client_address(), mark, tokens };
        let now = Instant::now();
        if client.is_probe() {
            if self.probes.admit(head, client, now) {
                return None;
            }
            client.mark = None;
        }
        let standing = admit(&self.limits, head, client, now)?;
        if standing.refused {
            self.refused[standing.place].increment();
        }
        Some(Box::new(word(&standing)))
    }
}

/// What a limit says, with the fields `ratelimit-policy` and `ratelimit` of the response
/// (draft-ietf-httpapi-ratelimit-headers-10).
fn word(standing: &Standing<'_>) -> Word {
    let Standing { limit, remaining, reset, refused, .. } = standing;
    let (name, quota) = (&limit.name, &limit.quota);
    let (requests, per) = (quota.requests(), quota.period());
    let reset = ceil(*reset);
    // The window is in whole seconds, or is left out.
    let window = match per {
        per if per.subsec_nanos() == 0 => format!(";w={}", per.as_secs()),
        _ => String::new(),
    };
    Word {
        policy: limit.source.clone(),
        refused: refused.then_some(Reason::RateLimited),
        retry_after: refused.then_some(reset.max(1)),
        message: match refused {
            true => format!("the limit {name} admits {requests} requests in {per:?}"),
            false => String::new(),
        },
        fields: vec![
            ("ratelimit-policy", format!("\"{name}\";q={requests}{window}")),
            ("ratelimit", format!("\"{name}\";r={remaining};t={reset}")),
        ],
    }
}

/// A time in whole seconds, rounded up: who waits so long does not wait in vain.
fn ceil(time: Duration) -> u32 {
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::rate_limit::{Buckets, Quota};

    fn told(per: Duration, reset: Duration, refused: bool) -> Word {
        let limit = RateLimit {
            source: "shop/limits".into(),
            name: "per-user".into(),
            marks: None,
            matches: Arc::default(),
            key: Arc::default(),
            quota: Quota::new(100, per, 100).unwrap(),
            buckets: Arc::new(Buckets::new(false, Instant::now())),
        };
        word(&Standing { limit: &limit, place: 0, remaining: 7, reset, refused })
    }

    #[test]
    fn the_fields_are_those_of_the_draft() {
        let told = told(Duration::from_secs(60), Duration::from_millis(29_001), false);
        assert_eq!(told.fields[0], ("ratelimit-policy", "\"per-user\";q=100;w=60".into()));
        assert_eq!(told.fields[1], ("ratelimit", "\"per-user\";r=7;t=30".into()));
        assert_eq!((told.retry_after, told.message.as_str()), (None, ""));
    }

    #[test]
    fn nobody_is_told_to_come_back_too_early_or_at_once() {
        assert_eq!(told(Duration::from_secs(1), Duration::from_millis(10), true).retry_after, Some(1));
        let told = told(Duration::from_millis(1500), Duration::from_millis(1001), true);
        assert_eq!((told.retry_after, told.fields[0].1.as_str()), (Some(2), "\"per-user\";q=100"));
        assert_eq!(told.message, "the limit per-user admits 100 requests in 1.5s");
    }
}
