//! Health checks as the workers and the agent share them.
//!
//! A worker that has an endpoint whose policy asks for probes joins a
//! [`Check`]; the agent probes for as long as any worker holds it, so that
//! checks follow what is used. One check serves all workers and outlives changes
//! of the configuration. Nothing here is touched per request: workers look at
//! verdicts when one has changed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};

use heddle_api::name::ServiceName;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::Target;
use crate::config::AppProtocol;
use crate::policy::health_check::{HealthCheckPolicy, Verdict};

/// Endpoints that are probed at once, each at a port: a caller of thirty services with a
/// hundred endpoints each. Those beyond are not probed and count as discovery says.
const LIMIT: usize = 4096;

/// What is probed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CheckKey {
    /// The service.
    pub service: ServiceName,
    /// Its port.
    pub port: u16,
    /// What was declared about the port's bytes.
    pub protocol: AppProtocol,
    /// The endpoint's identifier.
    pub endpoint: Arc<str>,
    /// How it is reached.
    pub target: Target,
}

/// All health checks of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Checks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    known: Mutex<Known>,
    joined: Notify,
    verdicts: watch::Sender<()>,
}

#[derive(Default, Debug)]
struct Known {
    checks: HashMap<CheckKey, Weak<Check>>,
    /// Those that the agent has not taken yet.
    fresh: Vec<Weak<Check>>,
    /// Whether it was said that there is no room.
    is_full: bool,
}

/// The probes of one endpoint at one port.
#[derive(Debug)]
pub struct Check {
    /// What is probed.
    pub key: CheckKey,
    verdict: AtomicU8,
    policy: Mutex<Arc<HealthCheckPolicy>>,
    last_error: Mutex<Option<Box<str>>>,
    /// Wakes the agent when the policy changed, or when nobody holds this any more.
    nudge: Arc<Notify>,
}

impl Default for Checks {
    fn default() -> Self {
        let shared =
            Shared { known: Mutex::default(), joined: Notify::new(), verdicts: watch::channel(()).0 };
        Self(Arc::new(shared))
    }
}

impl Checks {
    /// Has an endpoint probed until the check is dropped; `None` if too many are already.
    pub fn join(&self, key: CheckKey, policy: &HealthCheckPolicy) -> Option<Arc<Check>> {
        let mut known = self.0.known.lock();
        if let Some(check) = known.checks.get(&key).and_then(Weak::upgrade) {
            drop(known);
            check.follow(policy);
            return Some(check);
        }
        if known.checks.len() >= LIMIT {
            known.checks.retain(|_, check| check.strong_count() > 0);
            let is_full = known.checks.len() >= LIMIT;
            if is_full && !known.is_full {
                tracing::warn!(limit = LIMIT, "so many endpoints are probed already; others are not");
            }
            known.is_full = is_full;
            if is_full {
                return None;
            }
        }
        let check = Arc::new(Check {
            key: key.clone(),
            verdict: AtomicU8::new(Verdict::Unknown as u8),
            policy: Mutex::new(Arc::new(policy.clone())),
            last_error: Mutex::default(),
            nudge: Arc::default(),
        });
        known.checks.insert(key, Arc::downgrade(&check));
        known.fresh.push(Arc::downgrade(&check));
        drop(known);
        self.0.joined.notify_one();
        Some(check)
    }

    /// Waits for checks that were joined since the last call.
    pub(crate) async fn joined(&self) -> Vec<Weak<Check>> {
        loop {
            let fresh = std::mem::take(&mut self.0.known.lock().fresh);
            if !fresh.is_empty() {
                return fresh;
            }
            self.0.joined.notified().await;
        }
    }

    /// Every check there is.
    pub(crate) fn all(&self) -> Vec<Arc<Check>> {
        self.0.known.lock().checks.values().filter_map(Weak::upgrade).collect()
    }

    /// Tells workers that a verdict has changed.
    pub(crate) fn announce(&self) {
        self.0.verdicts.send_replace(());
    }

    /// Changes whenever a verdict has.
    pub(crate) fn verdicts(&self) -> watch::Receiver<()> {
        self.0.verdicts.subscribe()
    }
}

impl Check {
    /// Takes over a policy.
    pub fn follow(&self, policy: &HealthCheckPolicy) {
        let mut own = self.policy.lock();
        if **own != *policy {
            *own = Arc::new(policy.clone());
            self.nudge.notify_one();
        }
    }

    /// What probes have said.
    pub fn verdict(&self) -> Verdict {
        match self.verdict.load(Ordering::Relaxed) {
            known if known == Verdict::Healthy as u8 => Verdict::Healthy,
            known if known == Verdict::Unhealthy as u8 => Verdict::Unhealthy,
            _ => Verdict::Unknown,
        }
    }

    /// What went wrong at the last probe; `None` if nothing did.
    pub fn last_error(&self) -> Option<Box<str>> {
        self.last_error.lock().clone()
    }

    pub(crate) fn policy(&self) -> Arc<HealthCheckPolicy> {
        self.policy.lock().clone()
    }

    pub(crate) fn nudge(&self) -> &Arc<Notify> {
        &self.nudge
    }

    pub(crate) fn set_verdict(&self, verdict: Verdict) {
        self.verdict.store(verdict as u8, Ordering::Relaxed);
    }

    pub(crate) fn set_last_error(&self, error: Option<Box<str>>) {
        *self.last_error.lock() = error;
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        self.nudge.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::health_check::Probe;

    fn key(port: u16) -> CheckKey {
        CheckKey {
            service: "shop/users".parse().unwrap(),
            port,
            protocol: AppProtocol::Http,
            endpoint: "a".into(),
            target: Target::Plain("127.0.0.1:1".parse().unwrap()),
        }
    }

    #[test]
    fn workers_share_a_check_and_it_ends_with_the_last() {
        let (checks, policy) = (Checks::default(), HealthCheckPolicy::new(Probe::Tcp));
        let one = checks.join(key(80), &policy).unwrap();
        one.set_verdict(Verdict::Unhealthy);
        let same = checks.join(key(80), &policy).unwrap();
        assert!(Arc::ptr_eq(&one, &same) && same.verdict() == Verdict::Unhealthy);
        assert_ne!(checks.join(key(81), &policy).unwrap().verdict(), Verdict::Unhealthy);
        assert_eq!(checks.all().len(), 1, "the other port's was dropped");
        drop((one, same));
        assert_eq!(checks.join(key(80), &policy).unwrap().verdict(), Verdict::Unknown);
    }

    #[test]
    fn there_are_no_more_than_may_be_until_some_go() {
        let (checks, policy) = (Checks::default(), HealthCheckPolicy::new(Probe::Tcp));
        let limit = u16::try_from(LIMIT).unwrap();
        let mut held: Vec<_> = (0..limit).map(|port| checks.join(key(port), &policy).unwrap()).collect();
        assert!(checks.join(key(limit), &policy).is_none());
        held.pop();
        assert!(checks.join(key(limit), &policy).is_some());
    }
}
