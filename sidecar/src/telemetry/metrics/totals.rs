//! What was counted so far, for those in this process who judge it.

use std::time::Duration;

use super::cell::{BUCKETS, Cell, Histogram};
use super::{Direction, Outcome, Registry, ServiceLabels};

/// Durations of requests, by bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durations([u64; BUCKETS.len() + 1]);

impl Durations {
    fn of(histogram: &Histogram) -> Self {
        Self(histogram.buckets.each_ref().map(Cell::get))
    }

    /// All requests.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Those that took longer than `limit`. In the bucket of the limit they are
    /// taken to lie evenly, as for an interpolated quantile.
    // Counts stay far below 2⁵³.
    #[allow(clippy::cast_precision_loss)]
    pub fn longer_than(&self, limit: Duration) -> f64 {
        let limit = limit.as_nanos() as f64;
        let bounds = BUCKETS.iter().map(|(bound, _)| *bound as f64);
        let mut from = 0.0;
        let mut longer = 0.0;
        for (to, count) in bounds.zip(&self.0) {
            longer += *count as f64 * ((to - limit) / (to - from)).clamp(0.0, 1.0);
            from = to;
        }
        // Beyond the last bound nobody knows more than that.
        longer + self.0[BUCKETS.len()] as f64
    }
}

/// Whose requests.
pub type Side = (Direction, ServiceLabels);

impl Registry {
    /// Requests so far, by side and destination; a side comes several times. An outcome beyond the bound on outcomes has no status.
    pub fn outcomes(&self) -> Vec<(Side, Vec<(Outcome, u64)>)> {
        let totals = self.0.requests.sums().into_iter();
        let outcomes = totals.map(|(labels, cells)| {
            let counts = cells.sorted().into_iter();
            let counts = counts.map(|(key, count)| (key.outcome().unwrap_or_default(), count)).collect();
            let service = ServiceLabels { service: labels.service, namespace: labels.namespace };
            ((labels.direction, service), counts)
        });
        outcomes.collect()
    }

    /// How long requests took so far, by side and destination.
    pub fn durations(&self) -> Vec<(Side, Durations)> {
        let totals = self.0.routes.sums().into_iter();
        let durations = totals.map(|(labels, cells)| {
            let service = ServiceLabels { service: labels.service, namespace: labels.namespace };
            ((labels.direction, service), Durations::of(&cells.duration))
        });
        durations.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_in_the_limits_bucket_count_in_part() {
        let histogram = Histogram::default();
        for millis in [1, 200, 200, 400, 70_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let durations = Durations::of(&histogram);
        assert_eq!(durations.total(), 5);
        assert_eq!(durations.longer_than(Duration::from_millis(250)), 2.0);
        // Two of five lie between 100 and 250 ms, evenly as far as anyone knows.
        assert!((durations.longer_than(Duration::from_millis(175)) - 3.0).abs() < 1e-9);
        assert_eq!(durations.longer_than(Duration::from_secs(60)), 1.0);
    }
}
