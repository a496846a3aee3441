//! Hedges: second tries that raced a slow first one.

use std::rc::Rc;
use std::sync::Arc;

use super::cell::{Cell, Cells};
use super::encode::{Encoder, Kind};
use super::{Families, ServiceLabels, Shard};

/// What became of a hedge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HedgeOutcome {
    /// Its answer went to the client.
    Won,
    /// The first try answered before it, or it failed.
    Lost,
    /// It was due, and the retry budget did not allow it.
    Exhausted,
}

/// The hedges of one service.
#[derive(Debug)]
pub struct HedgeMetrics(Arc<HedgeCells>);

impl HedgeMetrics {
    /// Counts one.
    pub fn count(&self, outcome: HedgeOutcome) {
        match outcome {
            HedgeOutcome::Won => self.0.won.add(1),
            HedgeOutcome::Lost => self.0.lost.add(1),
            HedgeOutcome::Exhausted => self.0.exhausted.add(1),
        }
    }
}

#[derive(Default, Debug)]
pub(super) struct HedgeCells {
    won: Cell,
    lost: Cell,
    exhausted: Cell,
}

impl Cells for HedgeCells {
    fn absorb(&self, other: &Self) {
        self.won.add(other.won.get());
        self.lost.add(other.lost.get());
        self.exhausted.add(other.exhausted.get());
    }
}

impl Shard {
    /// The metrics of the hedges of a service.
    pub fn hedges(&self, labels: &ServiceLabels) -> Rc<HedgeMetrics> {
        self.hedges.resolve(&self.families.hedges, labels, |_, cells| HedgeMetrics(cells))
    }
}

pub(super) fn encode(families: &Families, encoder: &mut Encoder) {
    let name = "heddle_hedges_total";
    encoder.family(name, Kind::Counter, "Second tries that were due beside a slow first one, by outcome.");
    for (labels, cells) in families.hedges.totals() {
        for (outcome, cell) in [("won", &cells.won), ("lost", &cells.lost), ("exhausted", &cells.exhausted)] {
            let labels =
                [("service", &*labels.service), ("namespace", &*labels.namespace), ("outcome", outcome)];
            encoder.integer(name, &labels, cell.get());
        }
    }
}
