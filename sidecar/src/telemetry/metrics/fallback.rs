//! What fallbacks answer, and which services are degraded.

use std::sync::Arc;

use super::ServiceLabels;
use super::cell::{Cell, Cells};
use super::encode::{Encoder, Kind};
use super::family::Family;

/// A step of a fallback that answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FallbackStep {
    /// A response that was kept.
    StaleCache,
    /// Another service.
    Service,
    /// A fixed response.
    Response,
}

impl FallbackStep {
    const ALL: [Self; 3] = [Self::StaleCache, Self::Service, Self::Response];

    /// The word in metrics and in the header `heddle-fallback`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StaleCache => "stale-cache",
            Self::Service => "service",
            Self::Response => "response",
        }
    }
}

/// The metrics of a service's fallback.
#[derive(Debug)]
pub struct FallbackMetrics(Arc<FallbackCells>);

#[derive(Default, Debug)]
pub(super) struct FallbackCells {
    answered: [Cell; 3],
    unanswered: Cell,
    /// How often it became degraded.
    entered: Cell,
    /// How many of its destinations are degraded now, each worker's counted.
    degraded: Cell,
}

impl FallbackMetrics {
    pub(super) fn new(cells: Arc<FallbackCells>) -> Self {
        Self(cells)
    }

    /// Counts an answer.
    pub fn answered(&self, step: FallbackStep) {
        self.0.answered[step as usize].add(1);
    }

    /// Counts an error that no step could replace.
    pub fn unanswered(&self) {
        self.0.unanswered.add(1);
    }

    /// Counts a destination as degraded from now on.
    pub fn degraded(&self) {
        self.0.entered.add(1);
        self.0.degraded.add(1);
    }

    /// Counts a destination as no longer degraded.
    pub fn recovered(&self) {
        self.0.degraded.subtract(1);
    }
}

impl FallbackCells {
    pub(super) fn is_degraded(&self) -> bool {
        self.degraded.get() > 0
    }
}

impl Cells for FallbackCells {
    fn absorb(&self, other: &Self) {
        self.retire(other);
        self.degraded.add(other.degraded.get());
    }

    fn retire(&self, leaving: &Self) {
        for (mine, theirs) in self.answered.iter().zip(&leaving.answered) {
            mine.add(theirs.get());
        }
        self.unanswered.add(leaving.unanswered.get());
        self.entered.add(leaving.entered.get());
    }
}

pub(super) fn encode(family: &Family<ServiceLabels, FallbackCells>, encoder: &mut Encoder) {
    let all = family.totals();
    let name = "heddle_fallback_total";
    let help = "Errors that a fallback was to replace, by the step that answered; none if no step could.";
    encoder.family(name, Kind::Counter, help);
    for (labels, cells) in &all {
        let steps = FallbackStep::ALL.map(|step| (step.as_str(), &cells.answered[step as usize]));
        for (step, cell) in steps.into_iter().chain([("none", &cells.unanswered)]) {
            let labels = [("service", &*labels.service), ("namespace", &*labels.namespace), ("step", step)];
            encoder.integer(name, &labels, cell.get());
        }
    }
    let name = "heddle_degraded";
    encoder.family(
        name,
        Kind::Gauge,
        "Whether a service is degraded: its requests lately needed its fallback.",
    );
    for (labels, cells) in &all {
        let labels = [("service", &*labels.service), ("namespace", &*labels.namespace)];
        encoder.integer(name, &labels, cells.is_degraded().into());
    }
    let name = "heddle_degradations_total";
    encoder.family(name, Kind::Counter, "How often a service became degraded.");
    for (labels, cells) in &all {
        let labels = [("service", &*labels.service), ("namespace", &*labels.namespace)];
        encoder.integer(name, &labels, cells.entered.get());
    }
}
