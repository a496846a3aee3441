//! Circuit breakers as metrics and the admin listener show them.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::cell::{Cell, Cells};
use super::{EndpointLabels, Families};
use crate::policy::breaker::{Breaker, Cause, CircuitState};

/// What is shown of a breaker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Circuit {
    /// Its state.
    pub state: CircuitState,
    /// Why it is not closed.
    pub cause: Option<Cause>,
    /// Until when it is open.
    pub until: Option<Instant>,
    /// Failures in a row while closed, failed probes while half-open.
    pub failures: u32,
}

impl Circuit {
    /// What there is to show of `breaker`.
    pub fn of(breaker: &Breaker, now: Instant) -> Self {
        Self {
            state: breaker.state(now),
            cause: breaker.cause(),
            until: breaker.until(),
            failures: breaker.failures(),
        }
    }
}

/// The state of an endpoint's circuit. Over all that show the same endpoint, each
/// worker for each port of a service, the worst is shown; those that went show nothing.
#[derive(Debug)]
pub struct CircuitGauge {
    cell: Arc<CircuitCell>,
    labels: EndpointLabels,
    families: Arc<Families>,
}

#[derive(Default, Debug)]
pub(super) struct CircuitCell {
    state: Cell,
    cause: Cell,
    /// In milliseconds of the process's time, plus one; 0 for none.
    until: Cell,
    failures: Cell,
}

impl CircuitGauge {
    pub(super) fn new(families: &Arc<Families>, labels: &EndpointLabels) -> Self {
        let labels = families.circuits.admit(labels);
        Self { cell: families.circuits.join(&labels), labels, families: families.clone() }
    }

    /// Shows a breaker.
    pub fn set(&self, circuit: Circuit) {
        self.cell.state.set(circuit.state as u64);
        self.cell.cause.set(circuit.cause.map_or(0, |cause| cause as u64));
        self.cell.until.set(circuit.until.map_or(0, millis));
        self.cell.failures.set(circuit.failures.into());
    }
}

impl Drop for CircuitGauge {
    fn drop(&mut self) {
        self.families.circuits.leave(&self.labels, &self.cell);
    }
}

impl CircuitCell {
    /// What was shown last, brought up to `now`: an open breaker's time may be over.
    pub(super) fn circuit(&self, now: Instant) -> Circuit {
        let until = self
            .until
            .get()
            .checked_sub(1)
            .and_then(|millis| origin().checked_add(Duration::from_millis(millis)));
        let until = until.filter(|until| *until > now);
        Circuit {
            state: match self.state.get() {
                0 => CircuitState::Closed,
                2 if until.is_some() => CircuitState::Open,
                _ => CircuitState::HalfOpen,
            },
            cause: Cause::ALL.into_iter().find(|cause| *cause as u64 == self.cause.get()),
            until,
            failures: u32::try_from(self.failures.get()).unwrap_or(u32::MAX),
        }
    }
}

impl Cells for CircuitCell {
    fn absorb(&self, other: &Self) {
        let rank = |cell: &Self| (cell.state.get(), cell.until.get());
        if rank(other) > rank(self) {
            self.state.set(other.state.get());
            self.cause.set(other.cause.get());
            self.until.set(other.until.get());
        }
        self.failures.set(self.failures.get().max(other.failures.get()));
    }

    fn retire(&self, _: &Self) {}
}

/// Where the process's time begins: an `Instant` fits no cell.
fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(Instant::now)
}

fn millis(instant: Instant) -> u64 {
    let since = instant.saturating_duration_since(origin());
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX - 1).saturating_add(1)
}
