//! The values behind metrics: atomics with one writer each.
//!
//! A worker updates its own cells with a relaxed load and a relaxed store, so
//! an update is two plain moves and an add: no lock prefix, no shared cache
//! line. The scrape reads them from another thread and may see a value that is
//! a few nanoseconds old. Counting a request costs about 80 instructions in all.
//! Two writers to one cell would lose updates: handles therefore come in an `Rc`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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

/// The bounds alone, close together.
const BOUNDS: [u64; BUCKETS.len()] = {
    let mut bounds = [0; BUCKETS.len()];
    let mut bucket = 0;
    while bucket < BUCKETS.len() {
        bounds[bucket] = BUCKETS[bucket].0;
        bucket += 1;
    }
    bounds
};

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
        let nanoseconds =
            duration.as_secs().saturating_mul(1_000_000_000).saturating_add(duration.subsec_nanos().into());
        // Most requests are fast: a scan from the small end ends within a few comparisons.
        let bucket = BOUNDS.iter().position(|bound| nanoseconds <= *bound).unwrap_or(BOUNDS.len());
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

impl Outcome {
    /// Whether the server's side or the mesh is at fault, and neither the client nor nobody: a
    /// 5xx, a gRPC status that blames the server, or a connection that was not carried.
    pub(super) fn is_failure(self) -> bool {
        match (self.code, self.grpc_status) {
            (_, Some(status)) => matches!(status, 2 | 4 | 13 | 14 | 15),
            (500.., None) => true,
            // Opaque connections have no status.
            (0, None) => self.error.is_some(),
            _ => false,
        }
    }
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

/// Counters by outcome: a list that only grows, so that its writer walks it without a
/// lock or a borrow flag while the scrape reads. The usual outcome is the first
/// that a series sees, and the first in the list.
#[derive(Default, Debug)]
pub(super) struct OutcomeCells(OnceLock<Box<OutcomeCell>>);

#[derive(Debug)]
struct OutcomeCell {
    key: OutcomeKey,
    count: Cell,
    next: OutcomeCells,
}

impl OutcomeCells {
    /// Counts one; by the cells' one writer.
    #[inline]
    pub(super) fn count(&self, outcome: Outcome) {
        let key = OutcomeKey::new(outcome);
        match self.iter().find(|cell| cell.key == key) {
            Some(cell) => cell.count.add(1),
            None => self.add_new(key, 1),
        }
    }

    fn add(&self, key: OutcomeKey, amount: u64) {
        match self.iter().find(|cell| cell.key == key) {
            Some(cell) => cell.count.add(amount),
            None => self.add_new(key, amount),
        }
    }

    #[cold]
    fn add_new(&self, key: OutcomeKey, amount: u64) {
        let key = if self.iter().count() < MAX_OUTCOMES { key } else { OutcomeKey::OTHER };
        let mut end = self;
        while let Some(cell) = end.0.get() {
            if cell.key == key {
                return cell.count.add(amount);
            }
            end = &cell.next;
        }
        let cell = Box::new(OutcomeCell { key, count: Cell::default(), next: Self::default() });
        end.0.get_or_init(|| cell).count.add(amount);
    }

    #[inline]
    fn iter(&self) -> impl Iterator<Item = &OutcomeCell> {
        std::iter::successors(self.0.get(), |cell| cell.next.0.get()).map(|cell| &**cell)
    }

    /// Shows each outcome that is known and how often it came.
    pub(super) fn visit(&self, mut look: impl FnMut(Outcome, u64)) {
        for cell in self.iter() {
            if let Some(outcome) = cell.key.outcome() {
                look(outcome, cell.count.get());
            }
        }
    }

    pub(super) fn sorted(&self) -> Vec<(OutcomeKey, u64)> {
        let mut all: Vec<_> = self.iter().map(|cell| (cell.key, cell.count.get())).collect();
        all.sort_unstable();
        all
    }
}

impl Cells for OutcomeCells {
    fn absorb(&self, other: &Self) {
        for cell in other.iter() {
            self.add(cell.key, cell.count.get());
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
        let cells = OutcomeCells::default();
        for _ in 0..2 {
            for code in 100..300 {
                cells.count(Outcome { code, ..Outcome::default() });
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
