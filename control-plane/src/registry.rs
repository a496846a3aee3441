//! Who is registered: workloads outside Kubernetes, each held by the live
//! stream of its sidecar.
//!
//! A workload is known by the identity that its sidecar proved and the
//! instance that it named, so that nobody can speak for another identity. The
//! newest stream of a workload holds it; an older one that ends later changes
//! nothing. A lost stream leaves the workload in place for a grace period,
//! so that a reconnect goes unnoticed; one that said goodbye goes with its
//! stream. Pure: streams, clocks and files are left to others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_api::spiffe::SpiffeId;

use crate::model::Registration;

pub(crate) mod request;
pub(crate) mod saved;

/// The registered workloads.
#[derive(Debug)]
pub(crate) struct Registry {
    grace: Duration,
    entries: BTreeMap<WorkloadKey, Entry>,
    streams: u64,
}

/// What a workload is known by: its identity and its instance.
pub(crate) type WorkloadKey = (SpiffeId, String);

/// A stream's hold on a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hold {
    key: WorkloadKey,
    stream: u64,
}

impl Hold {
    /// The workload that is held.
    pub(crate) fn workload(&self) -> &WorkloadKey {
        &self.key
    }
}

/// What became of a workload's new description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Update {
    /// It compiles to something else.
    Changed,
    /// It says nothing that compiles.
    Noted,
    /// Another stream holds the workload meanwhile.
    Superseded,
}

#[derive(Debug)]
struct Entry {
    registration: Arc<Registration>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Held { stream: u64 },
    Lost { until: Instant },
}

impl Registry {
    pub(crate) fn new(grace: Duration) -> Self {
        Self { grace, entries: BTreeMap::new(), streams: 0 }
    }

    /// A stream described its workload for the first time.
    pub(crate) fn register(&mut self, registration: Registration) -> Hold {
        self.streams += 1;
        let hold = Hold {
            key: (registration.identity.clone(), registration.instance.clone()),
            stream: self.streams,
        };
        let state = State::Held { stream: hold.stream };
        self.entries.insert(hold.key.clone(), Entry { registration: Arc::new(registration), state });
        hold
    }

    /// A stream described its workload anew.
    pub(crate) fn update(&mut self, hold: &Hold, registration: Registration) -> Update {
        let Some(entry) = self.held(hold) else { return Update::Superseded };
        let update = match entry.registration.compiles_like(&registration) {
            true => Update::Noted,
            false => Update::Changed,
        };
        if *entry.registration != registration {
            entry.registration = Arc::new(registration);
        }
        update
    }

    /// A stream ended, in whatever way.
    pub(crate) fn lost(&mut self, hold: &Hold, now: Instant) {
        let until = now + self.grace;
        match self.held(hold) {
            Some(entry) if entry.registration.draining => {
                self.entries.remove(&hold.key);
            }
            Some(entry) => entry.state = State::Lost { until },
            None => {}
        }
    }

    /// Takes in workloads that an earlier run of this control plane knew, as
    /// if their streams had been lost, to be kept until `until`.
    pub(crate) fn restore(&mut self, registrations: Vec<Registration>, until: Instant) {
        for registration in registrations {
            let key = (registration.identity.clone(), registration.instance.clone());
            self.entries.entry(key).or_insert_with(|| Entry {
                registration: Arc::new(registration),
                state: State::Lost { until },
            });
        }
    }

    /// Drops the workloads whose grace has ended. Returns whether there were any.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let before = self.entries.len();
        self.entries.retain(|_, entry| !matches!(entry.state, State::Lost { until } if until <= now));
        self.entries.len() != before
    }

    /// When [`Self::expire`] has something to do next.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        let lost = |entry: &Entry| match entry.state {
            State::Lost { until } => Some(until),
            State::Held { .. } => None,
        };
        self.entries.values().filter_map(lost).min()
    }

    /// All workloads, ordered by identity and instance.
    pub(crate) fn registrations(&self) -> Vec<Arc<Registration>> {
        self.entries.values().map(|entry| entry.registration.clone()).collect()
    }

    /// How many workloads are held by a stream, and how many wait for one.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let held = self.entries.values().filter(|e| matches!(e.state, State::Held { .. })).count();
        (held, self.entries.len() - held)
    }

    fn held(&mut self, hold: &Hold) -> Option<&mut Entry> {
        self.entries.get_mut(&hold.key).filter(|entry| entry.state == State::Held { stream: hold.stream })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(5);

    pub(crate) fn registration(instance: &str) -> Registration {
        Registration {
            instance: instance.into(),
            identity: "spiffe://mesh.local/ns/shop/sa/users".parse().unwrap(),
            service: "shop/users".parse().unwrap(),
            address: "127.0.0.1".parse().unwrap(),
            inbound_port: 7102,
            ports: Vec::new(),
            labels: BTreeMap::new(),
            zone: String::new(),
            ready: true,
            draining: false,
            health: crate::model::Health::default(),
            admin: None,
            pid: 0,
            app_address: None,
        }
    }

    fn names(registry: &Registry) -> Vec<String> {
        registry.registrations().iter().map(|r| r.instance.clone()).collect()
    }

    #[test]
    fn a_lost_stream_leaves_its_workload_for_the_grace_period() {
        let (mut registry, start) = (Registry::new(GRACE), Instant::now());
        let hold = registry.register(registration("a"));
        assert_eq!(registry.next_expiry(), None);
        registry.lost(&hold, start);
        assert!(!registry.expire(start + GRACE / 2));
        assert_eq!(names(&registry), ["a"]);
        assert_eq!(registry.next_expiry(), Some(start + GRACE));
        assert!(registry.expire(start + GRACE));
        assert!(names(&registry).is_empty());
    }

    #[test]
    fn a_reconnect_within_the_grace_period_goes_unnoticed() {
        let (mut registry, start) = (Registry::new(GRACE), Instant::now());
        let hold = registry.register(registration("a"));
        registry.lost(&hold, start);
        registry.register(registration("a"));
        assert!(!registry.expire(start + GRACE * 10));
        assert_eq!(registry.counts(), (1, 0));
    }

    #[test]
    fn an_old_stream_that_ends_late_changes_nothing() {
        let (mut registry, start) = (Registry::new(GRACE), Instant::now());
        let old = registry.register(registration("a"));
        let new = registry.register(registration("a"));
        assert_eq!(registry.update(&old, registration("a")), Update::Superseded);
        registry.lost(&old, start);
        assert_eq!(registry.counts(), (1, 0));
        assert_eq!(registry.update(&new, registration("a")), Update::Noted);
    }

    /// Each message had the whole mesh compiled, be it equal to the last.
    #[test]
    fn only_what_compiles_is_a_change() {
        use heddle_api::discovery::v1::WorkloadHealth;

        use crate::model::Health;

        let mut registry = Registry::new(GRACE);
        let hold = registry.register(registration("a"));
        let health = |state, score| Health { state, score, cause: "cpu".into() };
        let told = Registration { health: health(WorkloadHealth::Sampling, 100), ..registration("a") };
        let moved = Registration { admin: Some("127.0.0.1:7190".parse().unwrap()), pid: 7, ..told.clone() };
        let slow = Registration { health: health(WorkloadHealth::Degraded, 70), ..moved.clone() };
        let unready = Registration { ready: false, ..slow.clone() };
        for (next, update) in [
            (registration("a"), Update::Noted),
            (told, Update::Noted),
            (moved, Update::Noted),
            (slow, Update::Changed),
            (unready, Update::Changed),
        ] {
            assert_eq!(registry.update(&hold, next.clone()), update, "{next:?}");
            assert_eq!(*registry.registrations()[0], next);
        }
    }

    #[test]
    fn a_workload_that_said_goodbye_goes_with_its_stream() {
        let mut registry = Registry::new(GRACE);
        let hold = registry.register(registration("a"));
        registry.update(&hold, Registration { draining: true, ..registration("a") });
        assert_eq!(names(&registry), ["a"], "it is still drained");
        registry.lost(&hold, Instant::now());
        assert!(names(&registry).is_empty());
    }

    #[test]
    fn restored_workloads_wait_for_their_streams() {
        let (mut registry, start) = (Registry::new(GRACE), Instant::now());
        registry.register(registration("a"));
        registry.restore(vec![registration("a"), registration("b")], start + GRACE * 6);
        assert_eq!(registry.counts(), (1, 1));
        registry.expire(start + GRACE * 6);
        assert_eq!(names(&registry), ["a"]);
    }
}
