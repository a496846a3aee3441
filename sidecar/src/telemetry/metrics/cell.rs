//! The values behind metrics: atomics with one writer each.
//!
//! A worker updates its own cells with a relaxed load and a relaxed store, so
//! an update is two plain moves and an add: no lock prefix, no shared cache
//! line. The scrape reads them from another thread and may see a value that is
//! a few nanoseconds old. Two writers to one cell would lose updates; handles
//! are therefore not `Send`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::reason::Reason;

/// Values that several shards hold parts of.
pub(super) trait Cells: Default {
    /// Takes the other's values in; only called on cells that no worker writes.
    fn absorb(&self, other: &Self);

    /// Keeps of a leaving shard's values what must not vanish from the sum.
    fn retire(&self, leaving: &Self) {
        self.absorb(leaving);
    }
}

/// A value with one writer.
#[derive(Default, Debug)]
pub(super) struct Cell(AtomicU64);

impl Cell {
    #[inline]
    pub(super) fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn subtract(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(amount), Ordering::Relaxed);
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the duration buckets, in nanoseconds; a last one is +Inf.
///
/// From 0.5 ms, below which a hop's own cost hides the difference, to 60 s, above which
/// every default timeout has struck; steps of about 2 to 2.5 (the 1-2.5-5 series) keep the error of
/// an interpolated quantile below half its value at 17 series per histogram.
pub(super) const BUCKETS: [(u64, &str); 16] = [
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_500_000, "0.0025"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (25_000_000, "0.025"),
    (50_000_000, "0.05"),
    (100_000_000, "0.1"),
    (250_000_000, "0.25"),
    (500_000_000, "0.5"),
    (1_000_000_000, "1"),
    (2_500_000_000, "2.5"),
    (5_000_000_000, "5"),
    (10_000_000_000, "10"),
    (30_000_000_000, "30"),
    (60_000_000_000, "60"),
];

/// Durations, counted by bucket. The total count is the buckets' sum, so that a
/// scrape during an update never shows a count that its buckets contradict.
#[derive(Default, Debug)]
pub(super) struct Histogram {
    pub(super) buckets: [Cell; BUCKETS.len() + 1],
    pub(super) nanoseconds: Cell,
}

impl Histogram {
    #[inline]
    pub(super) fn observe(&self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        // Most requests are fast: a scan from the small end ends within a few comparisons.
        let bucket = BUCKETS.iter().position(|(bound, _)| nanoseconds <= *bound).unwrap_or(BUCKETS.len());
        self.buckets[bucket].add(1);
        self.nanoseconds.add(nanoseconds);
    }
}

impl Cells for Histogram {
    fn absorb(&self, other: &Self) {
        for (mine, theirs) in self.buckets.iter().zip(&other.buckets) {
            mine.add(theirs.get());
        }
        self.nanoseconds.add(other.nanoseconds.get());
    }
}

/// How an exchange ended, as labels of `heddle_requests_total`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// The HTTP status that the client got; 0 if it went away before one was sent.
    pub code: u16,
    /// The gRPC status, of a gRPC call.
    pub grpc_status: Option<u8>,
    /// The mesh's reason, if the mesh made the answer or cut it short.
    pub error: Option<Reason>,
}

/// [`Outcome`] in one word, for a scan that compares words.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct OutcomeKey(u64);

impl OutcomeKey {
    /// Stands for every outcome beyond [`MAX_OUTCOMES`].
    pub(super) const OTHER: Self = Self(u64::MAX);

    #[inline]
    fn new(outcome: Outcome) -> Self {
        let grpc = outcome.grpc_status.map_or(0, |status| u64::from(status) + 1);
        let error = outcome.error.map_or(0, |reason| reason as u64 + 1);
        Self(u64::from(outcome.code) | grpc << 16 | error << 32)
    }

    /// What it was made from; `None` for [`Self::OTHER`].
    pub(super) fn outcome(self) -> Option<Outcome> {
        if self == Self::OTHER {
            return None;
        }
        let [low, high, grpc, grpc_high, error, ..] = self.0.to_le_bytes();
        let grpc = u16::from_le_bytes([grpc, grpc_high]);
        Some(Outcome {
            code: u16::from_le_bytes([low, high]),
            grpc_status: grpc.checked_sub(1).and_then(|status| u8::try_from(status).ok()),
            error: Reason::ALL.into_iter().find(|reason| *reason as u64 + 1 == u64::from(error)),
        })
    }
}

/// Outcomes per series: more than the statuses that any one service really uses, few
/// enough to scan; an application that makes up statuses ends in `other`.
const MAX_OUTCOMES: usize = 64;

/// Counters by outcome, as the scrape sees them.
#[derive(Default, Debug)]
pub(super) struct OutcomeCells(Mutex<Vec<(OutcomeKey, Arc<Cell>)>>);

impl OutcomeCells {
    fn counter(&self, key: OutcomeKey) -> (OutcomeKey, Arc<Cell>) {
        let mut all = self.0.lock();
        let key = if all.len() < MAX_OUTCOMES { key } else { OutcomeKey::OTHER };
        match all.iter().find(|(known, _)| *known == key) {
            Some((_, counter)) => (key, counter.clone()),
            None => {
                let counter = Arc::<Cell>::default();
                all.push((key, counter.clone()));
                (key, counter)
            }
        }
    }

    pub(super) fn sorted(&self) -> Vec<(OutcomeKey, u64)> {
        let mut all: Vec<_> = self.0.lock().iter().map(|(key, counter)| (*key, counter.get())).collect();
        all.sort_unstable();
        all
    }
}

impl Cells for OutcomeCells {
    fn absorb(&self, other: &Self) {
        for (key, count) in other.sorted() {
            self.counter(key).1.add(count);
        }
    }
}

/// The writer's view of [`OutcomeCells`]: the same counters without the lock.
#[derive(Debug)]
pub(super) struct Outcomes {
    shared: Arc<OutcomeCells>,
    known: std::cell::RefCell<Vec<(OutcomeKey, Arc<Cell>)>>,
}

impl Outcomes {
    pub(super) fn new(shared: Arc<OutcomeCells>) -> Self {
        Self { shared, known: std::cell::RefCell::default() }
    }

    #[inline]
    pub(super) fn count(&self, outcome: Outcome) {
        let key = OutcomeKey::new(outcome);
        match self.known.borrow().iter().find(|(known, _)| *known == key) {
            Some((_, counter)) => return counter.add(1),
            None => {}
        }
        self.count_new(key);
    }

    #[cold]
    fn count_new(&self, key: OutcomeKey) {
        let (kept, counter) = self.shared.counter(key);
        counter.add(1);
        if kept == key {
            self.known.borrow_mut().push((key, counter));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_survives_its_packing() {
        for error in [None].into_iter().chain(Reason::ALL.map(Some)) {
            for grpc_status in [None, Some(0), Some(16), Some(255)] {
                for code in [0, 200, 599, u16::MAX] {
                    let outcome = Outcome { code, grpc_status, error };
                    assert_eq!(OutcomeKey::new(outcome).outcome(), Some(outcome));
                }
            }
        }
    }

    #[test]
    fn outcomes_beyond_the_limit_are_counted_as_other() {
        let cells = Arc::new(OutcomeCells::default());
        let outcomes = Outcomes::new(cells.clone());
        for _ in 0..2 {
            for code in 100..300 {
                outcomes.count(Outcome { code, ..Outcome::default() });
            }
        }
        let sorted = cells.sorted();
        assert_eq!(sorted.len(), MAX_OUTCOMES + 1);
        assert_eq!(sorted.iter().map(|(_, count)| count).sum::<u64>(), 400);
        assert_eq!(sorted.last().map(|(key, _)| key.outcome()), Some(None));
    }

    #[test]
    fn a_duration_on_a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_micros(500));
        histogram.observe(Duration::from_nanos(500_001));
        histogram.observe(Duration::from_secs(61));
        let counts: Vec<_> = histogram.buckets.iter().map(Cell::get).collect();
        assert_eq!((counts[0], counts[1], counts[16]), (1, 1, 1));
    }
}
